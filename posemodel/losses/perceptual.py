"""The multi-resolution perceptual loss on VGG-19 (Eq. 5)."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posemodel.errors import UserError

# torchvision's `vgg19().features` up to and including relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.
_LAYER_ENDS = (2, 7, 12, 21, 30)
_SCALES = (1.0, 0.5, 0.25, 0.125)


class PerceptualLoss(nn.Module):
    """l1 between VGG-19 features of image and target, five layers at four resolutions.

    The structure of FOMM and its family: sum over scales and layers of the mean absolute
    difference. Frozen, in evaluation mode, target features computed without a graph.
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
        self.eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """relu1_1 to relu5_1 of an image in [-1, 1]; layers that a small image has no room for are
        left out (each layer halves it)."""
        x = ((image + 1) / 2 - self.mean) / self.std
        found = []
        for index, layers in enumerate(self.slices):
            if index and min(x.shape[-2:]) < 2:
                break
            x = layers(x)
            found.append(x)
        return found

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Two images `[B, 3, H, W]` in [-1, 1] -> scalar."""
        loss = image.new_zeros(())
        for scale in _SCALES:
            with torch.no_grad():
                wanted = self.features(_resize(target, scale))
            for got, want in zip(self.features(_resize(image, scale)), wanted, strict=True):
                loss = loss + (got - want).abs().float().mean()
        return loss


def _resize(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    return F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)


def load_perceptual_loss(weights: str = "") -> PerceptualLoss:
    """VGG-19 with ImageNet weights from a file, else torch hub's cache, else torchvision's server.

    Raises: `UserError`, one line, when none of them has the weights.
    """
    from torchvision.models import VGG19_Weights, vgg19

    if weights:
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"--loss.vgg-weights {weights}: no such file")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            network = vgg19()
            # Only the convolutions are used; files without the classifier are fine.
            network.features.load_state_dict({
                name.removeprefix("features."): value for name, value in state.items()
                if name.startswith("features.")})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--loss.vgg-weights {weights}: not torchvision's VGG-19 weights "
                            f"({reason})") from error
        return PerceptualLoss(network.features)
    entry = VGG19_Weights.IMAGENET1K_V1
    try:
        state = entry.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the perceptual loss needs {Path(entry.url).name}: not in {folder}, and the download "
            f"failed ({error}); put the file there, name it by --loss.vgg-weights, or train with "
            "--loss.reconstruction pyramid") from error
    network = vgg19()
    network.load_state_dict(state)
    return PerceptualLoss(network.features)
