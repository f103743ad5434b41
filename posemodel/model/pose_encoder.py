"""M, the pose encoder: one set of pose maps to a grid of feature vectors."""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posemodel.model.convolution import normalized, planes, unit_planes


class PoseEncoder(nn.Module):
    """Fully convolutional, shared by both poses; every layer has BatchNorm.

    The first `halvings` layers halve the resolution each, so `[B, maps, H, W]` become
    features `[B, features, h, w]`, with 2 of them `h = H/4`. The last layer has no ReLU: a signed
    dot product tells "different" from "unrelated".
    """

    def __init__(self, *, maps: int, channels: tuple[int, ...], features: int, halvings: int,
                 norm: Literal["location", "channel", "none"]):
        super().__init__()
        layers = []
        for index, (before, after) in enumerate(itertools.pairwise((maps, *channels))):
            stride = 2 if index < halvings else 1
            layers += normalized(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
        last = nn.Conv2d(channels[-1], features, 3, padding=1, bias=False)
        self.layers = nn.Sequential(*layers, last, nn.BatchNorm2d(features))
        self.norm = norm

    def forward(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """`[B, maps, H, W]` -> `[B, features, h, w]` in `dtype` and in planes, of unit length per
        location or per channel, as configured."""
        features = self.layers(maps)
        if self.norm == "location":
            return unit_planes(features, dtype)
        if self.norm == "channel":
            features = F.normalize(features.float().flatten(2), dim=2).unflatten(
                2, features.shape[2:])
        return planes(features, dtype)
