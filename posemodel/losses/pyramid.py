"""l1 at four resolutions, for where no perceptual network is at hand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PyramidLoss(nn.Module):
    """Mean absolute difference at full, half, quarter and eighth size, averaged over the four.

    It stands in for the perceptual loss of Eq. 5 and is never called by its name: coarse levels
    give the flow a direction to move in where fine ones see nothing.
    """

    name = "pyramid l1 (no perceptual network)"
    levels = 4

    def forward(self, images: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """Images and their one target, `[B, 3, H, W]` in [-1, 1] -> a scalar for each image."""
        return [self._distance(image, target) for image in images]

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        difference = (image - target).float()
        losses = []
        for level in range(self.levels):
            losses.append(difference.abs().mean())
            if level + 1 < self.levels:
                # Averaging is linear: one pyramid of the difference serves for both images.
                difference = F.avg_pool2d(difference, 2)
        return torch.stack(losses).mean()
