"""The part of a picture that a model is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posemodel.poses.joints import normalized_to_pixels, pixels_to_normalized

FITS = ("person", "frame")

#: Around the joints, as a share of the longer side of their box: for hair, hands and feet. A person
#: who stands then fills about as much of the view as in training.
_MARGIN = 0.14

#: A person who needs less of the frame than this is small in it, and gets a crop.
_SMALL = 0.7


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle in whole pixels of a frame; it may reach beyond the edges."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """These pixels of a picture `[H, W, 3]`; beyond its edges they are repeated."""
        rows = np.arange(self.top, self.top + self.height).clip(0, picture.shape[0] - 1)
        columns = np.arange(self.left, self.left + self.width).clip(0, picture.shape[1] - 1)
        return picture[rows][:, columns]

    def place(self, part: np.ndarray, frame: np.ndarray) -> None:
        """Write `[height, width, ...]` at this place of a frame; what is beyond it is dropped."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.height, frame.shape[0])
        right = min(self.left + self.width, frame.shape[1])
        frame[top:bottom, left:right] = part[top - self.top : bottom - self.top,
                                             left - self.left : right - self.left]

    def normalized(self, pose: np.ndarray) -> Tensor:
        """Joints `[18, 3]` in pixels of the frame -> normalised coordinates of this rectangle;
        those outside of it are missing."""
        pixels = torch.from_numpy(pose - np.float32([self.left, self.top, 0]))
        inside = pixels_to_normalized(pixels, (self.height, self.width))
        return inside * (inside[:, :2].abs() <= 1).all(1, keepdim=True)

    def pixels(self, places: Tensor) -> Tensor:
        """Normalised coordinates of this rectangle `[2, h, w]`, (x, y) -> pixels of the frame."""
        rows = torch.cat([places, torch.ones_like(places[:1])]).movedim(0, -1)
        inside = normalized_to_pixels(rows, (self.height, self.width))[..., :2].movedim(-1, 0)
        return inside + inside.new_tensor([self.left, self.top]).view(2, 1, 1)


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
    crop = _crop((low + high) / 2, side, aspect)
    return Crop(left=_inside(crop.left, crop.width, width),
                top=_inside(crop.top, crop.height, height), width=crop.width, height=crop.height)


def _crop(middle: Sequence[float], height: float, aspect: float) -> Crop:
    """A crop of at least this height around a place in pixel coordinates."""
    rows = max(1, int(np.ceil(height - 1e-6)))
    columns = max(1, round(rows * aspect))
    return Crop(left=round(float(middle[0]) - (columns - 1) / 2),
                top=round(float(middle[1]) - (rows - 1) / 2), width=columns, height=rows)


def _inside(first: int, length: int, end: int) -> int:
    """A span moved into 0 .. end, or to its middle if it is longer."""
    return min(max(first, 0), end - length) if length <= end else (end - length) // 2
