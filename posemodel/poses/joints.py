"""Key points: the 18 OpenPose joints, how they are drawn, and the coordinates they live in.

Convention: a pose is `[..., 18, 3]` = (x, y, presence). Unless a name says `pixels`, x and y
are normalised with pixel centres: pixel column `j` of `W` lies at `x = (2 j + 1) / W - 1`, so
that the frame is [-1, 1] and every resolution shares the coordinates. A missing joint has `x = y =
presence = 0`.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # drawing tools and command lines import this module without torch
    import torch

JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)

# The 17 limbs in OpenPose's drawing order, as pairs of joint indices.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)

# FLIP_PAIRS[k] is the joint that joint k becomes in a mirror: left and right change places.
FLIP_PAIRS = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)


def _hue_circle(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours (RGB, 0..255) evenly around the hue circle, from red."""
    circle = (colorsys.hsv_to_rgb(k / count, 1.0, 1.0) for k in range(count))
    return tuple(tuple(round(255 * channel) for channel in colour) for colour in circle)


JOINT_COLORS = _hue_circle(len(JOINTS))
LIMB_COLORS = _hue_circle(len(LIMBS))


def pixels_to_normalized(pose: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixel coordinates to normalised ones.

    Args:
        pose: `[..., 3]` (x, y, presence); x in columns and y in rows, 0 = centre of the first
            pixel.
        size: (H, W) of the image.

    Returns:
        `[..., 3]`; missing joints come back as zeros, whatever coordinates marked them (-1, NaN,
        ...).
    """
    height, width = size
    scale = pose.new_tensor([2.0 / width, 2.0 / height])
    shift = pose.new_tensor([1.0 / width - 1.0, 1.0 / height - 1.0])
    return _with_presence(pose[..., :2] * scale + shift, pose[..., 2:])


def normalized_to_pixels(pose: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Inverse of `pixels_to_normalized`, `[..., 3]`; missing joints stay zeros: ask presence."""
    height, width = size
    scale = pose.new_tensor([width / 2.0, height / 2.0])
    shift = pose.new_tensor([(width - 1) / 2.0, (height - 1) / 2.0])
    return _with_presence(pose[..., :2] * scale + shift, pose[..., 2:])


def flip_pose(pose: torch.Tensor) -> torch.Tensor:
    """The pose in a horizontally mirrored image: x changes sign, left and right joints change
    places.

    Args:
        pose: `[..., 18, 3]` in normalised coordinates.
    """
    mirrored = pose[..., list(FLIP_PAIRS), :]
    return mirrored * pose.new_tensor([-1.0, 1.0, 1.0])


def _with_presence(xy: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
    import torch

    present = presence > 0
    return torch.cat([xy.masked_fill(~present, 0.0), present.to(xy.dtype)], dim=-1)
