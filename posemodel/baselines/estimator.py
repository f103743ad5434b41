"""What every baseline is: a module that turns two poses into one flow."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posemodel.errors import UserError

Features = Callable[[Tensor], list[Tensor]]
"""Images `[B, 3, H, W]` in [-1, 1] -> maps `[B, c, h, w]` at several resolutions, none negative:
`PerceptualLoss.features` where VGG-19 is at hand, else `pixel_features`."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What a baseline says about two poses; methods with more to say have a class of their own."""

    flow: Tensor
    """target -> source, `[B, 2, h, w]`, float32"""
    occlusion: Tensor | None = None
    """`[B, 1, h, w]`, 1 where the warped source can be trusted; None where it is not asked for"""


class FlowEstimator(nn.Module, ABC):
    """The common face of the baselines; stands where `WarpingNetwork` stands in `PoseTransfer`.

    `progress` is the share of the training that is done, 0 to 1. A trainer sets it before each
    step; only TPSMM's dropout follows it.

    Convention: absolute sampling locations in the source, (x, y), normalised, pixel centres.
    """

    progress = 0.0

    def __init__(self, *, image_size: tuple[int, int], uses_image: bool):
        super().__init__()
        self.image_size = image_size
        self.uses_image = uses_image

    def forward(
        self, source_pose: Tensor, target_pose: Tensor, source_image: Tensor | None = None
    ) -> Tensor:
        """Two poses -> flow `[k B, 2, h, w]`; arguments as in `estimate`."""
        return self.estimate(source_pose, target_pose, source_image).flow

    def estimate(
        self, source_pose: Tensor, target_pose: Tensor, source_image: Tensor | None = None
    ) -> Motion:
        """The flow, and whatever else the method estimates.

        Args:
            source_pose: `[k B, 18, 3]`; k > 1 gives each target k sources, all first sources before
                all second ones.
            target_pose: `[B, 18, 3]`.
            source_image: `[k B, 3, H, W]` in [-1, 1] for a method that looks at it (`uses_image`),
                else None.

        Raises: ValueError when an image is missing or not wanted.
        """
        if (source_image is not None) != self.uses_image:
            wanted = "needs" if self.uses_image else "does not use"
            raise ValueError(f"source_image: this estimator {wanted} the source image")
        # Shapes, not len(): an exported program takes any batch.
        times = source_pose.shape[0] // target_pose.shape[0]
        target_pose = target_pose.repeat(times, 1, 1)
        return self._estimate(source_pose, target_pose, source_image)

    @abstractmethod
    def _estimate(
        self, source_pose: Tensor, target_pose: Tensor, source_image: Tensor | None
    ) -> Motion:
        """As `estimate`, with as many targets as sources."""

    def losses(
        self, motion: Motion, batch: dict[str, Tensor], features: Features
    ) -> dict[str, Tensor]:
        """The method's own losses by name, each with its weight, to be added to the common ones.

        Args:
            motion: what `estimate` said about the poses of the batch.
            batch: "source" and "target", `[B, 3, H, W]` in [-1, 1].
            features: gives the maps in which images are compared.
        """
        return {}


def require(config: object, allowed: str, *names: str) -> None:
    """Check fields of a configuration: "positive", "not negative" or "a share".

    Raises: `UserError` naming the field.
    """
    for name in names:
        value = getattr(config, name)
        if not {"positive": 0 < value < float("inf"), "not negative": 0 <= value < float("inf"),
                "a share": 0 <= value <= 1}[allowed]:
            raise UserError(f"{type(config).__name__}: {name} is {value!r}, expected {allowed}")


def pixel_features(image: Tensor) -> list[Tensor]:
    """The pixels of each 4 x 4 and each 8 x 8 cell, for where no perceptual network is at hand.

    A pixel is held by its brightness and by what it lacks to white, so that no feature is negative
    and the angle between two vectors tells light from dark.

    Returns: `[B, 96, H/4, W/4]` and `[B, 384, H/8, W/8]`.

    Raises: `UserError` when H or W is not a multiple of 8.
    """
    if image.shape[-2] % 8 or image.shape[-1] % 8:
        raise UserError(
            f"images of {tuple(image.shape[-2:])}, expected multiples of 8 to compare their pixels")
    both = torch.cat([1 + image, 1 - image], dim=1) / 2
    return [F.pixel_unshuffle(both, 4), F.pixel_unshuffle(both, 8)]
