"""A rectangle of a picture, and the joints in it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from posemodel.poses.joints import normalized_to_pixels, pixels_to_normalized


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle in whole pixels of a frame; it may reach beyond the edges."""

    left: int
    top: int
    width: int
    height: int

    def inside(self, frame: tuple[int, int]) -> "Crop":
        """Moved into a frame (H, W) or, where it is larger, to its middle."""
        height, width = frame
        return replace(self, left=_inside(self.left, self.width, width),
                       top=_inside(self.top, self.height, height))

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


def _inside(first: int, length: int, end: int) -> int:
    """A span moved into 0 .. end, or to its middle if it is longer."""
    return min(max(first, 0), end - length) if length <= end else (end - length) // 2
