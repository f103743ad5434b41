"""Random mirroring and small affine maps of training pairs, image and joints alike.

The whole batch is moved on the training device, by one flow of 2 x 2 per image: a flow of any
coarseness stays affine in `flow_sample`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import pose_kernels
from posemodel.flow.affine import affine_flow, transform_pose
from posemodel.poses.joints import flip_pose

_AUGMENTATION = 2  # the random stream of this module; `pair_loader` has others


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a training pair may be moved.

    A mirrored pair is mirrored as a whole, or its two images would show two people. The affine maps
    of source and target are drawn one by one; where the background stays, both have the source's.
    """

    flip: bool = False
    """mirror every second pair, left and right joints changing places"""
    rotate: float = 0.0
    """largest rotation, degrees"""
    scale: float = 0.0
    """largest relative change of size"""
    shift: float = 0.0
    """largest shift along each axis, normalised coordinates"""


class Moves(NamedTuple):
    """What happens to each pair of a batch; on the CPU, where it is drawn."""

    flip: Tensor
    """`[B]` bool"""
    affine: Tensor | None
    """`[B, 2, 2, 3]`: for source and target `A x + b`, normalised; None: nothing is resampled"""


def draw(bounds: Augmentation, *, seed: int, positions: Sequence[int], aspect: float) -> Moves:
    """What happens to the pairs at these positions of the training sequence, a pure function of the
    arguments; `aspect` is width / height, so that a rotation does not shear a narrow image."""
    numbers = np.stack([np.random.default_rng([seed, _AUGMENTATION, position]).random(9)
                        for position in positions])
    # Always all nine, so that no field of `bounds` changes what another one draws.
    flip = torch.from_numpy(numbers[:, 0] < 0.5) & bounds.flip
    if max(bounds.rotate, bounds.scale, bounds.shift) == 0:
        return Moves(flip, None)
    signed = torch.from_numpy(2 * numbers[:, 1:].reshape(-1, 2, 4) - 1)            # [B, 2, 4]
    angle = torch.deg2rad(signed[..., 0] * bounds.rotate)
    size = 1 + signed[..., 1] * bounds.scale
    cos, sin = size * angle.cos(), size * angle.sin()
    linear = torch.stack([cos, -sin / aspect, sin * aspect, cos], -1).unflatten(-1, (2, 2))
    affine = torch.cat([linear, signed[..., 2:, None] * bounds.shift], dim=-1)
    return Moves(flip, affine.float())


def augment(batch: dict[str, Tensor], moves: Moves) -> dict[str, Tensor]:
    """The pairs, mirrored and then moved; the batch itself is left as it is.

    Args:
        batch: `source`, `target` `[B, 3, H, W]`, `source_pose`, `target_pose` `[B, 18, 3]`, and
            where there are masks `source_mask`, `target_mask` `[B, 1, H, W]`, 0 to 1; and with them
            `source_plate` `[B, 3, H, W]` and `source_known` `[B, 1, H, W]`, 0 or 1.
    """
    augmented = dict(batch)
    stays = "source_mask" in batch
    flip = moves.flip.to(batch["source"].device)
    any_flipped = bool(moves.flip.any())  # asked where it was drawn: a GPU is not waited for

    def mirrored(image: Tensor) -> Tensor:
        return torch.where(flip.view(-1, 1, 1, 1), image.flip(-1), image) if any_flipped else image

    def changed(image: Tensor, which: int) -> Tensor:
        """Zeros come in."""
        image = mirrored(image)
        return image if moves.affine is None else _resampled(image, moves.affine[:, which])

    for index, name in enumerate(("source", "target")):
        which = 0 if stays else index
        image, pose = mirrored(batch[name]), batch[f"{name}_pose"]
        if any_flipped:
            pose = torch.where(flip.view(-1, 1, 1), flip_pose(pose), pose)
        if moves.affine is not None:
            image, pose = move(image, pose, moves.affine[:, which])
        augmented[name], augmented[f"{name}_pose"] = image, pose
        if f"{name}_mask" in batch:  # what comes in is white, and nobody's
            augmented[f"{name}_mask"] = changed(batch[f"{name}_mask"], which)
    if "source_plate" in batch:
        augmented["source_plate"] = changed(batch["source_plate"], 0)
        # Half of a pixel that nobody knows is nothing that is known.
        augmented["source_known"] = (changed(batch["source_known"], 0) > 0.999).float()
    return augmented


def move(image: Tensor, pose: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """What was at x appears at `A x + b`; white comes in, joints that leave the frame are missing.

    Args:
        image: `[B, 3, H, W]` in [-1, 1].
        pose: `[B, 18, 3]`, (x, y, presence), normalised.
        affine: `[B, 2, 3]`, normalised coordinates, on the CPU or beside the image.
    """
    # The sampler can put zeros outside, and white is the zero of `image - 1`.
    moved = _resampled(image - 1, affine) + 1
    return moved, transform_pose(pose, affine.to(pose.device))


def _resampled(image: Tensor, affine: Tensor) -> Tensor:
    """What was at x appears at `A x + b`; zeros come in."""
    linear = torch.linalg.inv(affine[:, :, :2])
    inverse = torch.cat([linear, -linear @ affine[:, :, 2:]], dim=-1)
    flow = affine_flow(inverse, 2, 2).to(image.device)
    return pose_kernels.flow_sample(image, flow, padding_mode="zeros")
