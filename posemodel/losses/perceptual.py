"""The multi-resolution perceptual loss on VGG-19 (Eq. 5)."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import PublishedWeights, check_hash, read_weights

VGG19 = PublishedWeights(
    what="the perceptual loss", url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    otherwise="put the file there, name it by --loss.vgg-weights, or train with "
              "--loss.reconstruction pyramid")

# torchvision's `vgg19().features` up to and including relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.
_LAYER_ENDS = (2, 7, 12, 21, 30)
_SCALES = (1.0, 0.5, 0.25, 0.125)


class PerceptualLoss(nn.Module):
    """l1 between VGG-19 features of images and target, five layers at four resolutions.

    The structure of FOMM and its family: sum over scales and layers of the mean absolute
    difference (they weigh each term by 10, here 1). Frozen, in evaluation mode, target features
    computed once and without a graph. The convolutions follow autocast; normalisation, scaling and
    the sums are float32.
    """

    name = "VGG-19 perceptual, four scales"

    def __init__(self, features: nn.Sequential):
        super().__init__()
        ends = (0, *_LAYER_ENDS)
        self.slices = nn.ModuleList(
            nn.Sequential(*features[start:end]) for start, end in itertools.pairwise(ends))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """relu1_1 to relu5_1 of an image in [-1, 1]; layers that a small image has no room for are
        left out (each layer halves it)."""
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
        losses = [image.new_zeros((), dtype=torch.float32) for image in images]
        for scale in _SCALES:
            with torch.no_grad():
                wanted = self.features(_resize(target, scale))
            for index, image in enumerate(images):
                for got, want in zip(self.features(_resize(image, scale)), wanted, strict=True):
                    losses[index] = losses[index] + mean_distance(got, want)
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


def load_perceptual_loss(weights: str = "") -> PerceptualLoss:
    """VGG-19 with ImageNet weights from a file, else torch hub's cache, else torchvision's server.

    A file named as torchvision names it, `vgg19-dcbb9e9d.pth`, has to have that SHA-256.

    Raises: `UserError`, one line, when none of them has the weights, or the file is damaged.
    """
    from torchvision.models import vgg19

    if weights:
        path, origin = Path(weights), f"--loss.vgg-weights {weights}"
        if not path.is_file():
            raise UserError(f"{origin}: no such file")
        check_hash(path, origin)
    else:
        path = VGG19.find()
        origin = str(path)
    # On "meta", since a random start for 144 million weights would take seconds.
    with torch.device("meta"):
        features = vgg19().features
    try:
        # Only the convolutions are used; files without the classifier are fine.
        state = {name.removeprefix("features."): value
                 for name, value in read_weights(path).items() if name.startswith("features.")}
        features.load_state_dict(state, assign=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{origin}: not torchvision's VGG-19 weights ({reason})") from error
    return PerceptualLoss(features)
