"""LPIPS, where its weights are at hand."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posemodel.runtime import backbones
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import tensors_sha256

# The linear layers come with the package lpips.
BACKBONES = {"alex": replace(backbones.ALEXNET, what="LPIPS-alex"),
             "vgg": replace(backbones.VGG16, what="LPIPS-vgg")}
VERSION = "0.1"  # 0.0 did not scale its input

NO_WEIGHTS, NOT_ASKED = "not measured: no weights at hand", "not measured: not asked for"
"""what stands in the place of a network's record where it measures nothing"""

_AT_ONCE = 16


class _NoRandomStart(TorchFunctionMode):
    """Weights stay as memory is. A random start for those of a classifier, 123 millions of VGG-16
    that are thrown away, takes seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Not all functions of `nn.init` let a mode have a say, but what they call does.
        if (getattr(func, "__module__", None) == "torch.nn.init"
                or func in (Tensor.normal_, Tensor.uniform_)):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class Lpips:
    """The learned perceptual metric of Zhang et al. 2018 (version 0.1), one value per pair."""

    def __init__(self, net: str, device: torch.device, folder: str | Path = ""):
        """
        Args:
            net: "alex" or "vgg".
            folder: of `--weights`, see `PublishedWeights`.

        Raises: `UserError`, one line, when neither the package nor the weights can be had, or the
            weights are not those of the network.
        """
        try:
            import lpips
        except ImportError as error:
            raise UserError("LPIPS needs the package lpips: pip install -e '.[eval]'") from error
        tensors = BACKBONES[net].load(folder)
        with warnings.catch_warnings(), _NoRandomStart():
            # The package calls torchvision by arguments that have newer names.
            warnings.filterwarnings("ignore", module="torchvision")
            self.network = lpips.LPIPS(net=net, version=VERSION, pnet_rand=True, verbose=False)
        # The package's slices keep the numbers of the layers: slice2.3.bias is features.3.bias.
        self.network.net.load_state_dict({
            name: tensors[f"features.{name.split('.', 1)[1]}"]
            for name in self.network.net.state_dict()})
        linear = {f"lin{index}.weight": layer.model[-1].weight
                  for index, layer in enumerate(self.network.lins)}
        self.record = {"network": BACKBONES[net].constructor, "version": VERSION,
                       "sha256": tensors_sha256(tensors), "linear_sha256": tensors_sha256(linear)}
        """what the values depend on, JSON values: the network, all of its convolutions, the linear
        layers"""
        self.network.requires_grad_(False).to(device)

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two images `[B, 3, H, W]` in [-1, 1] -> `[B]`; memory is bounded for any B."""
        value, = self.distances([image], target)
        return value

    @torch.no_grad()
    def distances(self, images: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """Images and their one target, whose features are computed once -> `[B]` for each image."""
        parts = zip(*(image.float().split(_AT_ONCE) for image in (target, *images)), strict=True)
        rows = [self._distances(*part) for part in parts]
        return [torch.cat(values) for values in zip(*rows, strict=True)]

    def _distances(self, target: Tensor, *images: Tensor) -> list[Tensor]:
        wanted = self._unit_features(target)
        return [sum(layer((got - want).square()).mean((1, 2, 3))
                    for layer, got, want in zip(self.network.lins, self._unit_features(image),
                                                wanted, strict=True)) for image in images]

    def _unit_features(self, image: Tensor) -> list[Tensor]:
        """Of each layer the vectors of the positions, divided by their length."""
        network = self.network
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                for x in network.net(network.scaling_layer(image))]


def missing(net: str, folder: str | Path = "") -> str:
    """Why LPIPS cannot be had without a download, and where its weights belong; empty if it can.
    Raises: `UserError` for a folder that is not there."""
    if importlib.util.find_spec("lpips") is None:
        return "the package lpips is not installed (pip install -e '.[eval]')"
    return BACKBONES[net].missing(folder)


def networks(choice: str, device: torch.device, folder: str | Path = "",
             log: Callable[[str], None] = print) -> dict[str, Lpips]:
    """The networks that a choice asks for, by their net.

    Args:
        choice: "alex" or "vgg", that network alone; "none"; or "auto", all that are at hand.
        folder: of `--weights`, see `PublishedWeights`.
        log: is given a line for each that "auto" leaves out.

    Raises: `UserError` for one that is asked for by name and cannot be had, for a file with other
        weights, and for a folder that is not there.
    """
    found = {}
    for net in {"auto": tuple(BACKBONES), "none": ()}.get(choice, (choice,)):
        why = missing(net, folder) if choice == "auto" else ""
        if why:
            log(f"LPIPS-{net} left out: {why}")
        else:
            found[net] = Lpips(net, device, folder)
    return found


def records(found: Mapping[str, Lpips], choice: str) -> dict[str, dict | str]:
    """What stands beside the numbers, by net: the record of its network, or why it has none."""
    absent = NO_WEIGHTS if choice == "auto" else NOT_ASKED
    return {net: found[net].record if net in found else absent for net in BACKBONES}
