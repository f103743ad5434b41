"""Networks that others have trained on ImageNet, as torchvision builds and publishes them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import FLAG, PublishedWeights, read_weights

_PREFIX = "features."


@dataclass(frozen=True, kw_only=True)
class Backbone(PublishedWeights):
    """A network of torchvision, of which the convolutions are used and the classifier is not."""

    title: str
    """its name for people"""
    constructor: str
    """its name in `torchvision.models`"""

    def layers(self) -> nn.Sequential:
        """torchvision's `features`, without memory for their weights (on the device "meta")."""
        import torchvision

        # A random start for the classifier's millions of weights would take seconds.
        with torch.device("meta"):
            return getattr(torchvision.models, self.constructor)().features

    def load(self, folder: str | Path = "") -> dict[str, Tensor]:
        """The weights of all convolutions, float32, by torchvision's names (`features.0.weight`) in
        the order of the layers; a file may lack the classifier.

        Args:
            folder: of `--weights`, see `PublishedWeights`.

        Raises: `UserError`, one line, where no file can be had, or the first that is found is
            damaged, of another network or of other shapes.
        """
        path = self.find(folder)
        stored = {name: value for name, value in read_weights(path).items()
                  if str(name).startswith(_PREFIX)}
        wanted = {_PREFIX + name: value.shape for name, value in self.layers().state_dict().items()}
        wrong = _first_difference(stored, wanted)
        if wrong:
            raise UserError(f"{path}: {wrong}; expected torchvision's weights of {self.title}, at "
                            f"least its {len(wanted)} tensors {_PREFIX}*: replace or delete the "
                            f"file, or name another folder by {FLAG}")
        return {name: stored[name] for name in wanted}


def _first_difference(stored: dict, wanted: dict[str, torch.Size]) -> str:
    """What is wrong with some tensors, in a few words; empty if nothing is."""
    for name, shape in wanted.items():
        value = stored.get(name)
        if value is None:
            return f"it has no {name}"
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return f"{name} is not a tensor of float32"
        if value.shape != shape:
            return f"{name} is {_shape(value.shape)} and not {_shape(shape)}"
        if not value.isfinite().all():
            return f"{name} has values that are not finite"
    beyond = next(iter(stored.keys() - wanted.keys()), "")
    return f"{beyond} belongs to another network" if beyond else ""


def _shape(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def _backbone(title: str, constructor: str, file: str) -> Backbone:
    return Backbone(what=title, title=title, constructor=constructor,
                    url=f"https://download.pytorch.org/models/{file}",
                    plain=f"{constructor}-features.pth")


ALEXNET = _backbone("AlexNet", "alexnet", "alexnet-owt-7be5be79.pth")
VGG16 = _backbone("VGG-16", "vgg16", "vgg16-397923af.pth")
VGG19 = _backbone("VGG-19", "vgg19", "vgg19-dcbb9e9d.pth")

RESNETS = {name: PublishedWeights(what=f"--backbone {name}",
                                  url=f"https://download.pytorch.org/models/{name}-{digest}.pth")
           for name, digest in (("resnet50", "11ad3fa6"), ("resnet18", "f37072fd"))}
"""whole networks, the starts of re-identification baselines"""
