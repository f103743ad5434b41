"""What nobody has seen of a picture, made up from what lies around it: edges and patterns where
OpenCV is installed, else a smooth surface.

Frequency selective reconstruction (Seiler et al., Resampling Images to a Regular Grid From a
Non-Regular Subset of Pixel Positions Using Frequency Selective Reconstruction, 2015; Genser et al.,
2018): block by block a sparse sum of waves that fits the pixels around, so that edges and patterns
go on into the hole. A large one takes a CPU about a second.
"""

import functools
import importlib.util

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posemodel.pictures.pixels import to_pictures, to_tensor

_AROUND = 48  # pixels around a hole that may have a say in it
_FURTHER = 8  # pixels
_KEPT = 128  # pictures that are remembered
_SMOOTHINGS = 8  # of each level of a smooth surface
_BLOCK = 16  # pixels; OpenCV leaves out what is no whole block, at the lower and right edges


@functools.lru_cache(maxsize=1)
def opencv_version() -> str:
    """Of the OpenCV that is installed; empty where there is none with its contributed modules."""
    if importlib.util.find_spec("cv2") is None:
        return ""
    import cv2

    return cv2.__version__ if hasattr(cv2, "xphoto") else ""


def filling(*, plate: bool = False) -> str:
    """For people and for records: what fills the hole behind a person here; `plate`: other pictures
    of the same camera say it in part (`pictures.plate`)."""
    if plate:
        return f"what the camera sees there at other times, and where that is not known {filling()}"
    if version := opencv_version():
        return f"its surroundings continued (OpenCV {version})"
    return ("a smooth surface; pip install opencv-contrib-python, which the extra 'pose' brings, "
            "continues edges and patterns into it")


def inpaint(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture whose hole is filled; `opencv_version` must not be empty.

    Args:
        picture: `[H, W, 3]` uint8.
        hole: `[H, W]` bool, neither all nor nothing of it True.

    Returns: `[H, W, 3]` uint8, equal to the picture outside of the hole. The same pictures are
        filled once: films and pages ask for one again and again.
    """
    rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    box = tuple(slice(max(0, places[0] - _AROUND), places[-1] + 1 + _AROUND)
                for places in (rows, columns))
    part, inside = np.ascontiguousarray(picture[box]), np.ascontiguousarray(hole[box])
    made = np.frombuffer(_filled(part.tobytes(), inside.tobytes(), inside.shape), np.uint8)
    filled = picture.copy()
    filled[box][inside] = made.reshape(part.shape)[inside]
    return filled


@functools.lru_cache(maxsize=_KEPT)
def _filled(picture: bytes, hole: bytes, size: tuple[int, int]) -> bytes:
    import cv2

    rest = [(0, -side % _BLOCK) for side in size]
    pixels = np.pad(np.frombuffer(picture, np.uint8).reshape(*size, 3), [*rest, (0, 0)], "edge")
    missing = np.pad(np.frombuffer(hole, np.uint8).reshape(size), rest, "edge")
    made = np.zeros_like(pixels)
    # It knows blue, green and red; what is known is not zero.
    cv2.xphoto.inpaint(np.ascontiguousarray(pixels[..., ::-1]), 255 * (1 - missing), made,
                       cv2.xphoto.INPAINT_FSR_FAST)
    # Waves that fit one side alone run away on the other: nothing is darker or brighter than all
    # that is known as far away as the nearest known pixel, and a little further.
    reach = int(cv2.distanceTransform(missing, cv2.DIST_L2, 5).max()) + _FURTHER
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    away = missing[..., None] > 0
    made = np.clip(made[..., ::-1], cv2.erode(np.where(away, np.uint8(255), pixels), square),
                   cv2.dilate(np.where(away, np.uint8(0), pixels), square))
    return made[:size[0], :size[1]].tobytes()


def completed(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture `[H, W, 3]` uint8 whose hole, `[H, W]` bool, is filled as `filling` says; a picture
    that is all hole stays as it is."""
    if not hole.any() or hole.all():
        return picture
    if opencv_version():
        return inpaint(picture, hole)
    image = to_tensor(picture, torch.device("cpu"))
    return to_pictures(fill(image, torch.from_numpy(hole)[None, None].float()))[0]


def fill(image: Tensor, hole: Tensor) -> Tensor:
    """An image whose hole is filled from its rim: by pull and push, means over ever coarser cells
    wherever nothing finer is known (Gortler et al., The Lumigraph, 1996), each level made smooth
    by Jacobi steps towards the harmonic function with the values of the rim.

    Args:
        image: `[B, C, H, W]`.
        hole: `[B, 1, H, W]`, 1 where nothing is known, else 0.

    Returns: `[B, C, H, W]`, equal to the image outside of the hole; 0 where all is hole.
    """
    known = 1 - hole.to(image.dtype)
    levels = [(image * known, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        total, weight = (F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1])
        found = (weight > 0).to(weight.dtype)
        levels.append((total / weight.clamp_min(1e-6) * found, found))
    filled = levels[-1][0]
    for values, found in reversed(levels[:-1]):
        coarse = F.interpolate(filled, values.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(found > 0, values, coarse)
        for _ in range(_SMOOTHINGS):
            around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
            mean = (around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
                    + around[..., :-2, 1:-1] + around[..., 2:, 1:-1]) / 4
            filled = torch.where(found > 0, values, mean)
    return filled
