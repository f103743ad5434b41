"""A person and what is behind them, where the mask of the person is known."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from posemodel.model.scene import (
    PERSON,
    Scene,
    bounds_of,
    continued,
    front_of,
    light,
    scene_of,
    uncertain,
)
from posemodel.pictures.pixels import resized, to_images, to_pictures, to_tensor
from posemodel.poses.crop import Crop
from posemodel.runtime.errors import UserError

CPU = torch.device("cpu")
BACKGROUNDS = ("keep", "white")
# Of the person's part of the picture, where the hole behind them is filled: what is continued into
# it gets no better by more, and takes longer.
_FILLED_ROWS = 256
# Rows of that part to those that the mask covers.
_MARGIN = 1.25
# Of a view, where it is found out how much the person covers at least and at most: capsules are as
# good when they are enlarged.
_BOUNDS_ROWS = 128


def checked_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask as float32 0 to 1. Raises: `ValueError` for one of another size (H, W), or with other
    values."""
    mask = np.asarray(mask)
    if mask.shape != tuple(size) or mask.dtype.kind not in "buif":
        raise ValueError(f"mask: expected numbers [{size[0]}, {size[1]}], found {mask.shape} "
                         f"{mask.dtype}")
    values = mask.astype(np.float32) / (255.0 if mask.dtype == np.uint8 else 1.0)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("mask: expected values from 0 to 1, found some from "
                         f"{values.min():g} to {values.max():g}")
    return values


def laid_behind(image: np.ndarray, mask: np.ndarray, frame: tuple[int, int],
                background: str | np.ndarray) -> np.ndarray:
    """What the moved person is laid over, `[H, W, 3]` uint8: `background`, a picture of the target
    frame (H, W), or by one of `BACKGROUNDS` (see `behind_person`). Raises: `ValueError`."""
    if isinstance(background, np.ndarray):
        if background.shape != (*frame, 3) or background.dtype != np.uint8:
            raise ValueError(f"background: expected a picture of the target frame, [{frame[0]}, "
                             f"{frame[1]}, 3] uint8, found {background.shape} {background.dtype}")
        return background
    if background not in BACKGROUNDS:
        raise ValueError(f"background {background!r}: expected {', '.join(BACKGROUNDS)} or a "
                         "picture of the target frame")
    return behind_person(image, mask, frame, background)


def behind_person(image: np.ndarray, mask: np.ndarray, frame: tuple[int, int], background: str,
                  plate: np.ndarray | None = None) -> np.ndarray:
    """The background of a target frame, `[H, W, 3]` uint8.

    Args:
        image: the source, `[H, W, 3]` uint8.
        mask: of the person in it, `[H, W]` float32.
        frame: (H, W) of the target.
        background: of `BACKGROUNDS`.
        plate: the same place without the person, `[H, W, 3]` uint8 as `image`; its light is fitted
            to that of `image`. None: what is behind the person is made up.

    Raises: `UserError` where the source's background does not fit the frame.
    """
    if background == "white":
        return np.full((*frame, 3), 255, np.uint8)
    if image.shape[:2] != tuple(frame):
        raise UserError("the background can be kept where the target poses belong to a picture of "
                        f"the source's size, {image.shape[1]} x {image.shape[0]}; theirs is "
                        f"{frame[1]} x {frame[0]}")
    covered = np.flatnonzero((mask >= PERSON).any(1))
    if not len(covered):
        return image
    rows = _MARGIN * (covered[-1] + 1 - covered[0])
    scale = min(1.0, _FILLED_ROWS / rows)
    size = _scaled(frame, scale)
    small = _small(image, size)
    scene = scene_of(small, _resized_mask(mask, size), rows=rows * scale)
    if plate is not None:
        lighter = light(small, _small(plate, size), scene.hole)
        lighter = F.interpolate(lighter, frame, mode="bilinear", align_corners=False)
        filled = to_pictures(to_tensor(plate, CPU) + lighter)[0]
    else:
        filled = resized(to_pictures(continued(scene).behind)[0], frame)
    hole = F.interpolate(scene.hole, frame, mode="nearest")[0, 0].numpy() > 0
    return np.where(hole[..., None], filled, image)


def person_in_front(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The person of a source's crop `[h, w, 3]` uint8 with the mask `[h, w]` float32, their colours
    continued over their edge (`scene.front_of`); as sharp as they were where they are known."""
    frame = image.shape[:2]
    size = _scaled(frame, min(1.0, _FILLED_ROWS / frame[0]))
    small = _small(image, size)
    continued_ = resized(to_pictures(front_of(small, _resized_mask(mask, size)))[0], frame)
    unknown = uncertain(torch.from_numpy(mask)[None, None])[0, 0].numpy()
    return np.where(unknown[..., None], continued_, image)


def scene_of_views(mask: np.ndarray, front: np.ndarray | None, behind: np.ndarray,
                   crops: Sequence[Crop], poses: tuple[torch.Tensor, torch.Tensor],
                   size: tuple[int, int], device: torch.device) -> Scene:
    """The scene of some targets in their views.

    Args:
        mask: of the source's crop, `[h, w]` float32.
        front: the person in it, `[h, w, 3]` uint8; None: nothing of them will be moved.
        behind: background of the target frame, `[H, W, 3]` uint8.
        crops: of the N targets.
        poses: `[18, 3]` in the source view and `[N, 18, 3]` in the target views, normalised.
        size: (H, W) of a view.
    """
    count = len(crops)
    views = np.stack([resized(crop.cut(behind), size) for crop in crops])
    coarse = _resized_mask(mask, _scaled(size, min(1.0, _BOUNDS_ROWS / size[0])))
    bounds = bounds_of(coarse.to(device), poses[0][None].to(device), poses[1].to(device))
    if front is not None:
        front = to_tensor(resized(front, size), device).expand(count, -1, -1, -1)
    return Scene(
        _resized_mask(mask, size).to(device).expand(count, -1, -1, -1),
        to_images(torch.from_numpy(views).to(device)), front=front,
        bounds=tuple(F.interpolate(bound, size, mode="bilinear", align_corners=False)
                     for bound in bounds))


def _small(picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return to_tensor(resized(picture, size), CPU)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return tuple(max(1, round(side * scale)) for side in size)


def _resized_mask(mask: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """`[1, 1, *size]`, averaged where it is reduced."""
    return F.interpolate(torch.from_numpy(mask)[None, None], size, mode="bilinear",
                         antialias=True, align_corners=False)
