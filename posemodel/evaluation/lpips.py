"""LPIPS, where its weights are at hand."""

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor

from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import PublishedWeights, read_weights

# The backbones, as torchvision publishes them. The linear layers come with the package lpips.
BACKBONES = {net: PublishedWeights(what="LPIPS", url=f"https://download.pytorch.org/models/{file}")
             for net, file in (("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth"))}
VERSION = "0.1"  # 0.0 did not scale its input

_AT_ONCE = 16


class Lpips:
    """The learned perceptual metric of Zhang et al. 2018 (version 0.1), one value per pair."""

    def __init__(self, net: str, device: torch.device, weights: str | Path | None = None):
        """
        Args:
            net: "alex" or "vgg".
            weights: file of the backbone in torchvision's format, of any value; None takes the
                published one from torch hub's cache, else downloads it there.

        Raises: `UserError`, one line, when neither the package nor the weights can be had.
        """
        try:
            import lpips
        except ImportError as error:
            raise UserError("LPIPS needs the package lpips: pip install -e '.[eval]'") from error
        path = BACKBONES[net].find() if weights is None else Path(weights)
        backbone = read_weights(path)
        with warnings.catch_warnings():
            # The package calls torchvision by arguments that have newer names.
            warnings.filterwarnings("ignore", module="torchvision")
            self.network = lpips.LPIPS(net=net, version=VERSION, pnet_rand=True, verbose=False)
        # The package's slices keep the numbers of the layers: slice2.3.bias is features.3.bias.
        names = {name: f"features.{name.split('.', 1)[1]}"
                 for name in self.network.net.state_dict()}
        try:
            self.network.net.load_state_dict({name: backbone[names[name]] for name in names})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path}: not the weights of torchvision's backbone for LPIPS-{net} "
                            f"({str(error).splitlines()[0]})") from error
        self.network.requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two images `[B, 3, H, W]` in [-1, 1] -> `[B]`; memory is bounded for any B."""
        parts = zip(image.float().split(_AT_ONCE), target.float().split(_AT_ONCE), strict=True)
        return torch.cat([self.network(*part).flatten() for part in parts])


def missing(net: str) -> str:
    """Why LPIPS cannot be had without a download, and where its weights belong; empty if it can."""
    if importlib.util.find_spec("lpips") is None:
        return "the package lpips is not installed (pip install -e '.[eval]')"
    return BACKBONES[net].missing()

