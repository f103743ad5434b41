"""Multi-resolution perceptual losses (Eq. 5): the paper's form, and VGG-16 beside the pyramid."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posemodel.losses.pyramid import PyramidLoss
from posemodel.runtime import backbones
from posemodel.runtime.backbones import Backbone
from posemodel.runtime.weights import tensors_sha256


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which features are compared, and how much that counts."""

    name: str
    """for people"""
    network: Backbone
    layers: dict[str, int]
    """names of the layers, and where each ends in torchvision's `features`"""
    scales: tuple[float, ...]
    """of the images"""
    weight: float
    """of each layer at each scale"""
    pyramid: bool
    """whether `PyramidLoss` is added"""


def _network(network: Backbone) -> Backbone:
    return replace(network, what="the perceptual loss",
                   otherwise="train with --loss.reconstruction pyramid, which needs none")


VGG19 = Form(name="VGG-19 perceptual, four scales", network=_network(backbones.VGG19),
             layers={"relu1_1": 2, "relu2_1": 7, "relu3_1": 12, "relu4_1": 21, "relu5_1": 30},
             scales=(1.0, 0.5, 0.25, 0.125), weight=1.0, pyramid=False)
"""The structure of FOMM and its family, which weigh each term by 10."""
VGG16 = Form(name="pyramid l1 and VGG-16 perceptual, two scales", network=_network(backbones.VGG16),
             layers={"relu1_2": 4, "relu2_2": 9, "relu3_3": 16},
             scales=(1.0, 0.5), weight=0.03, pyramid=True)
"""Half as many convolutions at half as many scales. What it does not see, the coarse scales, the
pyramid does; the two parts are of about the same size (`docs/training.md`), so that weights which
suit the pyramid suit it."""
VGG16_PAPER = replace(VGG19, name="VGG-16 perceptual, four scales",
                      network=_network(backbones.VGG16),
                      layers={**VGG19.layers, "relu4_1": 19, "relu5_1": 26})
"""The paper's form on VGG-16, the network nearest to VGG-19: the same layers by name."""
VGG16_FEATURES = replace(
    VGG16, name="pyramid l1, with VGG-16 features for a method's own losses",
    layers={name: end for name, end in VGG16_PAPER.layers.items() if name != "relu5_1"}, scales=())
"""Nothing but the pyramid is compared; GFLA and TPSMM compare features in losses of their own."""
FORMS = {"vgg16": VGG16, "vgg16-paper": VGG16_PAPER, "vgg16-features": VGG16_FEATURES,
         "vgg19": VGG19}
"""by their names in `loss.reconstruction`"""


class PerceptualLoss(nn.Module):
    """l1 between VGG features of images and target, summed over the layers and scales of a form.

    Each term is a mean absolute difference. The network is frozen, in evaluation mode; target
    features are computed once and without a graph. The convolutions follow autocast; normalisation,
    scaling and the sums are float32.
    """

    def __init__(self, features: nn.Sequential, form: Form = VGG19):
        """
        Args:
            features: torchvision's, at least as far as the form's last layer.
        """
        super().__init__()
        self.form, self.name = form, form.name
        self.slices = nn.ModuleList(
            nn.Sequential(*features[start:end])
            for start, end in itertools.pairwise((0, *form.layers.values())))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.weights: dict | None = None
        """the network, its layers and the SHA-256 of its tensors, where they are published ones"""
        self.pyramid = PyramidLoss() if form.pyramid else None
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps of an image in [-1, 1], for methods that compare them: the form's layers, and where
        those end at a quarter of the resolution, the last one also at an eighth, by averaging."""
        maps = self.maps(image)
        if len(self.slices) == 3:
            maps.append(F.avg_pool2d(maps[-1], 2))
        return maps

    def maps(self, image: Tensor) -> list[Tensor]:
        """The form's layers of an image in [-1, 1], `[B, c, H / 2^n, W / 2^n]` for the n-th; those
        that a small image has no room for are left out."""
        x = ((image.float() + 1) / 2 - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for index, layers in enumerate(self.slices):
            if index and min(x.shape[-2:]) < 2:
                break
            x = layers(x)
            maps.append(x)
        return maps

    def forward(self, images: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """Images and their one target, `[B, 3, H, W]` in [-1, 1] -> a scalar for each image."""
        if self.pyramid is None:
            losses = [image.new_zeros((), dtype=torch.float32) for image in images]
        else:
            losses = self.pyramid(images, target)
        for scale in self.form.scales:
            with torch.no_grad():
                wanted = self.maps(_resize(target, scale))
            for index, image in enumerate(images):
                for got, want in zip(self.maps(_resize(image, scale)), wanted, strict=True):
                    losses[index] = losses[index] + self.form.weight * mean_distance(got, want)
        return losses


def mean_distance(x: Tensor, target: Tensor) -> Tensor:
    """Mean of |x - target|, a float32 scalar; `target` gets no gradient.

    The features of the first layers are the largest tensors of a training step. In torch's own
    operators, two more of their size live until backward, and backward makes another two.
    """
    return _MeanDistance.apply(x, target)


class _MeanDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, target)
        # On a CPU a sample at a time, in one and the same small buffer; a GPU wants few calls.
        size = 1 if x.device.type == "cpu" else len(x)
        sums = [torch.sub(a, b).abs_().sum(dtype=torch.float32)
                for a, b in zip(x.split(size), target.split(size), strict=True)]
        return torch.stack(sums).sum() / x.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, target = ctx.saved_tensors
        signs = torch.sub(x, target).sign_()
        return signs.mul_((gradient / x.numel()).to(signs.dtype)), None


def _resize(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    return F.interpolate(image.float(), scale_factor=scale, mode="bilinear", antialias=True)


def load_perceptual_loss(form: Form, folder: str | Path = "") -> PerceptualLoss:
    """A form with ImageNet weights, of which no more layers are made than it compares.

    Args:
        folder: of `--weights`, see `PublishedWeights`.

    Raises: `UserError`, one line, when the weights cannot be had, or are not those of the network.
    """
    tensors = form.network.load(folder)
    features = form.network.layers()[:max(form.layers.values())]
    used = {f"features.{name}": tensors[f"features.{name}"] for name in features.state_dict()}
    features.load_state_dict({name.removeprefix("features."): tensor
                              for name, tensor in used.items()}, assign=True)
    loss = PerceptualLoss(features, form)
    loss.weights = {"network": form.network.constructor, "layers": list(form.layers),
                    "sha256": tensors_sha256(used)}
    return loss
