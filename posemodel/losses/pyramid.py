"""l1 at four resolutions, for where no perceptual network is at hand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posemodel.runtime.errors import UserError


class PyramidLoss(nn.Module):
    """Mean absolute difference at full, half, quarter and eighth size, averaged over the four.

    It stands in for the perceptual loss of Eq. 5 and is never called by its name: coarse levels
    give the flow a direction to move in where fine ones see nothing.
    """

    name = "pyramid l1 (no perceptual network)"
    levels = 4
    weights = None
    """of a network: it has none"""

    def forward(self, images: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """Images and their one target, `[B, 3, H, W]` in [-1, 1] -> a scalar for each image."""
        return [self._distance(image, target) for image in images]

    def features(self, image: Tensor) -> list[Tensor]:
        """The pixels of each 4 x 4 and each 8 x 8 cell, for methods that compare feature maps.

        A pixel is held by its brightness and by what it lacks to white, so that no feature is
        negative and the angle between two vectors tells light from dark.

        `[B, 3, H, W]` in [-1, 1] -> `[B, 96, H/4, W/4]` and `[B, 384, H/8, W/8]`. Raises:
        `UserError` when H or W is not a multiple of 8.
        """
        if image.shape[-2] % 8 or image.shape[-1] % 8:
            raise UserError(f"images of {tuple(image.shape[-2:])}, expected multiples of 8 to "
                            "compare their pixels")
        both = torch.cat([1 + image, 1 - image], dim=1) / 2
        return [F.pixel_unshuffle(both, 4), F.pixel_unshuffle(both, 8)]

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        # Averaging is linear: one pyramid of the difference serves for both images.
        differences = [(image - target).float()]
        while len(differences) < self.levels:
            differences.append(F.avg_pool2d(differences[-1], 2))
        return torch.stack([difference.abs().mean() for difference in differences]).mean()
