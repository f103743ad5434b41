"""The mask of a person made from joints alone, for mask-SSIM on Market-1501."""

import numpy as np

# Pairs of joints that a limb of the mask joins: the skeleton, plus what closes torso and head.
_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (1, 16), (1, 17), (8, 11), (11, 5),
    (8, 2), (16, 17),
)


def pose_mask(joints: np.ndarray, size: tuple[int, int], radius: float = 4.0) -> np.ndarray:
    """Which pixels lie near the skeleton: PATN's and pose-gan's mask, from its definition.

    A disc around each joint, a band along each limb whose two joints are there, then a closing by
    a square of 5 pixels.

    Args:
        joints: `[18, 3]` (x, y, presence) in pixels.
        size: (H, W).
        radius: of the discs, and half the width of the bands, in pixels.

    Returns: `[H, W]` bool.
    """
    pixels = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1)     # [H, W, 2] x, y
    xy, present = joints[:, :2].astype(np.float64), joints[:, 2] > 0
    mask = np.zeros(size, dtype=bool)
    for point in xy[present]:
        mask |= np.square(pixels - point).sum(-1) < radius**2
    for first, second in _LIMBS:
        along = xy[second] - xy[first]
        length = np.linalg.norm(along)
        if not (present[first] and present[second]) or length == 0:
            continue
        along = along / length
        offset = pixels - xy[first]
        position, side = offset @ along, offset @ [-along[1], along[0]]
        mask |= (position >= 0) & (position <= length) & (np.abs(side) <= radius)
    # The frame's border takes no part: nothing outside can fill or eat a pixel.
    grown = _windows(np.pad(mask, 2)).any((-2, -1))
    return _windows(np.pad(grown, 2, constant_values=True)).all((-2, -1))


def _windows(mask: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(mask, (5, 5))
