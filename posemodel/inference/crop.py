"""The part of a picture that a model is shown."""

from collections.abc import Sequence

import numpy as np

from posemodel.poses.crop import Crop

FITS = ("person", "frame")

#: Around the joints, as a share of the longer side of their box: for hair, hands and feet. A person
#: who stands then fills about as much of the view as in training.
_MARGIN = 0.14

#: A person who needs less of the frame than this is small in it, and gets a crop.
_SMALL = 0.7


def find_crop(pose: np.ndarray, frame: tuple[int, int], aspect: float, fit: str) -> Crop:
    """The part of a frame that the model is shown.

    Args:
        pose: `[18, 3]` in pixels.
        frame: (H, W).
        aspect: width to height of the crop.
        fit: "frame": the smallest crop that holds the whole frame. "person": of a person who is
            small in it the box of the joints with a margin, since models are trained on people who
            fill the picture; moved to lie inside of the frame where it can.
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: expected one of {', '.join(FITS)}")
    height, width = frame
    whole = _crop(((width - 1) / 2, (height - 1) / 2), max(height, width / aspect), aspect)
    xy = pose[pose[:, 2] > 0, :2]
    if fit == "frame" or not len(xy):
        return whole
    # Joints that are guessed beyond the edge shall not make the person small.
    xy = xy.clip(0, (width - 1, height - 1))
    low, high = xy.min(0), xy.max(0)
    across, down = high - low + 2 * _MARGIN * (high - low).max()
    side = max(down, across / aspect)
    if side > _SMALL * whole.height or side < 2:
        return whole
    return _crop((low + high) / 2, side, aspect).inside(frame)


def _crop(middle: Sequence[float], height: float, aspect: float) -> Crop:
    """A crop of at least this height around a place in pixel coordinates."""
    rows = max(1, int(np.ceil(height - 1e-6)))
    columns = max(1, round(rows * aspect))
    return Crop(left=round(float(middle[0]) - (columns - 1) / 2),
                top=round(float(middle[1]) - (rows - 1) / 2), width=columns, height=rows)
