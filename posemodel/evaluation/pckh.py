"""PCKh: how often a pose estimator finds the joints of a generated image where they should be."""

from dataclasses import dataclass

import numpy as np

_HEAD = (0, 1, 14, 15, 16, 17)  # nose, neck, eyes, ears
_SHARE = 0.5  # of the head's size


@dataclass(frozen=True)
class Pckh:
    """Counts for each of N images; an image without a head measures nothing and counts nothing."""

    right: np.ndarray
    """`[N]` joints found"""
    joints: np.ndarray
    """`[N]` joints of the target"""
    measured: np.ndarray
    """`[N]` bool: the target shows at least two points of the head"""

    @property
    def value(self) -> float:
        """The share of all joints that are right, NaN where there are none."""
        total = int(self.joints.sum())
        return int(self.right.sum()) / total if total else float("nan")


def pckh(found: np.ndarray, target: np.ndarray) -> Pckh:
    """PCKh as PATN's `tool/calPCKH_fashion.py` defines it.

    A joint is right if it lies less than half the head's width from its place across, and less than
    half the head's height along. The head is the box around nose, neck, eyes and ears of the
    target, so a head of no width or height makes every joint wrong. A joint that was not found is
    wrong; what was found but the target does not have counts nothing.

    Args:
        found: `[N, 18, 3]` (x, y, presence) in pixels, joints found in the generated images.
        target: `[N, 18, 3]`, joints of the target, in the same pixels.

    Raises: `ValueError` for arrays of other shapes.
    """
    if found.shape != target.shape or found.ndim != 3 or found.shape[1:] != (18, 3):
        raise ValueError(f"expected two arrays [N, 18, 3]; got {found.shape} and {target.shape}")
    present = target[..., 2] > 0
    head = present[:, _HEAD, None]
    points = target[:, _HEAD, :2]
    measured = head[..., 0].sum(1) >= 2
    high = np.where(head, points, -np.inf).max(1)
    low = np.where(head, points, np.inf).min(1)
    reach = np.where(measured[:, None], _SHARE * (high - low), 0.0)     # [N, 2]
    near = (np.abs(found[..., :2] - target[..., :2]) < reach[:, None]).all(-1)
    right = near & present & (found[..., 2] > 0)
    return Pckh(right.sum(1), np.where(measured, present.sum(1), 0), measured)
