"""The motion of one person carried over to another: the limbs keep the other's lengths.

Convention: joints are `[18, 3]` = (x, y, presence) in pixels, x in columns, y in rows.
"""

from typing import Literal

import numpy as np

from posemodel.poses.likeness import unlikeness

Mode = Literal["absolute", "relative"]
MODES = ("absolute", "relative")

# Parent and child, parents first; the neck is the root.
_TREE = ((1, 0), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11),
         (11, 12), (12, 13), (0, 14), (14, 16), (0, 15), (15, 17))
_ROOT = 1
# The limb on the other side of the body, which has the same length.
_TWIN = {(1, 2): (1, 5), (2, 3): (5, 6), (3, 4): (6, 7), (1, 8): (1, 11), (8, 9): (11, 12),
         (9, 10): (12, 13), (0, 14): (0, 15), (14, 16): (15, 17)}
_TWIN |= {twin: limb for limb, twin in _TWIN.items()}
# A photograph shortens limbs that point at the camera, so that one of them says little: a limb is
# at most so much longer or shorter for its owner's size than the driver's.
_PROPORTION = 1.4
_STRETCH = 3.0  # largest change of a limb's length on the way, relative mode
_LONG = 0.9  # of the frames: a limb is seen in its full length in the tenth that is beyond


def carried_over(driver: np.ndarray, source: np.ndarray, mode: Mode = "absolute") -> np.ndarray:
    """The driver's motion as the source person would make it.

    Args:
        driver: `[T, 18, 3]`, another person's joints, frame by frame, in a frame of their own.
        source: `[18, 3]`, joints of the person who is to move.
        mode: "absolute": limbs point where the driver's point; "relative": limbs turn from where
            the source's point by what the driver's have turned since the frame that is most like
            the source's pose, and change their length alike.

    Returns: `[T, 18, 3]` float32 in pixels of the source's picture. The neck starts where the
        source's is and moves as the driver's does, at the scale of the source. A joint is missing
        where the driver's is.

    Raises: `ValueError` where the two have no limb in common, or the driver never has a neck.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: expected {' or '.join(MODES)}")
    limbs = {limb: _vectors(driver, limb) for limb in _TREE}
    own = {limb: _vectors(source[None], limb)[0] for limb in _TREE}
    ratios = _ratios({limb: _typical(vectors) for limb, vectors in limbs.items()},
                     {limb: _length(vector) for limb, vector in own.items()})
    start = int(unlikeness(driver, source).argmin()) if mode == "relative" \
        else _first_with(driver, _ROOT)
    scale = ratios[None]
    necks = driver[:, _ROOT]
    if not necks[start, 2] or not source[_ROOT, 2]:
        raise ValueError("a motion can be carried over where driver and source have a neck")

    out = np.zeros(driver.shape, np.float32)
    out[:, _ROOT, :2] = source[_ROOT, :2] + scale * (necks[:, :2] - necks[start, :2])
    out[:, _ROOT, 2] = necks[:, 2]
    for limb in _TREE:
        parent, child = limb
        vectors = ratios[limb] * limbs[limb]
        if mode == "relative" and np.isfinite(limbs[limb][start]).all() \
                and np.isfinite(own[limb]).all():
            vectors = _turned(own[limb], limbs[limb], start)
        out[:, child, :2] = out[:, parent, :2] + vectors
        # Without its parent a joint has nothing to hang on but the neck.
        alone = (driver[:, parent, 2] == 0) & (driver[:, child, 2] > 0) & (necks[:, 2] > 0)
        out[alone, child, :2] = out[alone, _ROOT, :2] + scale * (driver[alone, child, :2]
                                                                 - necks[alone, :2])
        out[:, child, 2] = np.isfinite(out[:, child, :2]).all(1) & (driver[:, child, 2] > 0) \
            & (necks[:, 2] > 0)
    return np.where(out[..., 2:] > 0, out, 0.0).astype(np.float32)


def _vectors(joints: np.ndarray, limb: tuple[int, int]) -> np.ndarray:
    """`[T, 2]` from parent to child; NaN where one of them is missing."""
    parent, child = (joints[:, joint] for joint in limb)
    both = (parent[:, 2:] > 0) & (child[:, 2:] > 0)
    return np.where(both, child[:, :2] - parent[:, :2], np.nan).astype(np.float64)


def _length(vector: np.ndarray) -> float:
    return float(np.hypot(*vector))


def _typical(vectors: np.ndarray) -> float:
    """Of a film: the length of a limb that is seen as a whole; NaN where it never is."""
    lengths = np.hypot(vectors[:, 0], vectors[:, 1])
    lengths = lengths[np.isfinite(lengths)]
    return float(np.quantile(lengths, _LONG)) if len(lengths) else float("nan")


def _ratios(theirs: dict[tuple[int, int], float],
            own: dict[tuple[int, int], float]) -> dict[tuple[int, int] | None, float]:
    """How much longer each limb of the source is than the driver's; by None that of the bodies."""
    def longer(lengths: dict[tuple[int, int], float], limb: tuple[int, int]) -> float:
        both = [lengths[limb], lengths[_TWIN.get(limb, limb)]]
        known = [length for length in both if np.isfinite(length)]
        return max(known) if known else float("nan")

    each = {limb: longer(own, limb) / (longer(theirs, limb) or float("nan")) for limb in _TREE}
    known = [ratio for ratio in each.values() if np.isfinite(ratio)]
    if not known:
        raise ValueError("driver and source have no limb in common")
    scale = float(np.median(known))
    ratios = {limb: float(np.clip(ratio, scale / _PROPORTION, scale * _PROPORTION))
              if np.isfinite(ratio) else scale for limb, ratio in each.items()}
    return ratios | {None: scale}


def _turned(own: np.ndarray, vectors: np.ndarray, start: int) -> np.ndarray:
    """A limb of the source, turned and stretched as the driver's since frame `start`, `[T, 2]`."""
    z = vectors @ [1, 1j]
    change = z / z[start]
    size = np.clip(np.abs(change), 1 / _STRETCH, _STRETCH)
    moved = (own @ [1, 1j]) * size * np.exp(1j * np.angle(change))
    return np.stack([moved.real, moved.imag], -1)


def _first_with(driver: np.ndarray, joint: int) -> int:
    return int((driver[:, joint, 2] > 0).argmax())
