"""A clean plate: what a camera that stands still sees where somebody moves about, without them.

Each pixel is the median of the frames in which the person is elsewhere.
"""

import numpy as np

_AWAY = 0.1  # of a mask, which fades out over the edge: a pixel with less is background
_TIMES_SEEN = 3  # frames that a pixel has to be seen in
_ROWS = 16  # that are sorted at a time: the median of all would take eight times their memory


def clean_plate(pictures: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is behind a person.

    Args:
        pictures: frames of one fixed camera, `[N, H, W, 3]` uint8.
        masks: the person in each, `[N, H, W]` uint8, 0 to 255.

    Returns: the plate, `[H, W, 3]` uint8, 0 where nothing is known, and where it is known, `[H, W]`
        bool: where the person is elsewhere in three frames at least.
    """
    away = background(masks)
    known = away.sum(0) >= _TIMES_SEEN
    plate = np.zeros(pictures.shape[1:], np.uint8)
    for first in range(0, len(plate), _ROWS):
        rows = slice(first, first + _ROWS)
        hidden = np.broadcast_to((~away[:, rows] | ~known[rows])[..., None],
                                 pictures[:, rows].shape)
        plate[rows] = np.ma.median(np.ma.array(pictures[:, rows], mask=hidden), 0).filled(0)
    return plate, known


def background(masks: np.ndarray) -> np.ndarray:
    """`[N, H, W]` bool: where a frame shows nothing of the person."""
    return masks < 255 * _AWAY


def unsteadiness(pictures: np.ndarray, masks: np.ndarray, plate: np.ndarray,
                 known: np.ndarray) -> float:
    """By how much of 255 the background of a frame is off from the plate, in the mean over its
    pixels, in the median over the frames: little more than noise where the camera stands still."""
    off = [np.abs(picture.astype(np.int16) - plate).mean(-1)[away & known].mean()
           for picture, away in zip(pictures, background(masks), strict=True)
           if (away & known).any()]
    return float(np.median(off)) if off else float("inf")
