"""Skeletons in the colours of OpenPose: on black, and on the picture they belong to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from posemodel.poses.joints import JOINT_COLORS, LIMB_COLORS, LIMBS, normalized_to_pixels
from posemodel.poses.layouts import Pose

if TYPE_CHECKING:  # joints out of a file are drawn without torch
    from torch import Tensor

_OVERSAMPLING = 4
_SMALLEST_PICTURE = 384  # small images are enlarged until their longer side is about that


def draw_skeleton(pose: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A skeleton on black; a limb needs both of its joints.

    Args:
        pose: `[18, 3]`, (x, y, presence), normalised.
        size: height and width of the picture.

    Returns: `[H, W, 3]`, uint8.
    """
    canvas = Image.new("RGB", size[::-1])
    pixels = normalized_to_pixels(pose.detach().float().cpu(), size).numpy()
    _draw(canvas, pixels[:, :2] + 0.5, pixels[:, 2] > 0, size[0] / 96)
    return np.asarray(canvas)


def draw_poses(image: np.ndarray, poses: list[Pose], chosen: Pose) -> Image.Image:
    """Skeletons on the image, which is enlarged if it is small.

    Where there are several people, the others are faint and the chosen one is framed.

    Args:
        image: `[H, W, 3]` uint8.
        poses: joints in pixels of the image.
        chosen: one of them.
    """
    scale = max(1, round(_SMALLEST_PICTURE / max(image.shape[:2])))
    canvas = Image.fromarray(image)
    canvas = canvas.resize((canvas.width * scale, canvas.height * scale), Image.Resampling.NEAREST)
    unit = max(1.0, max(canvas.size) / 256)
    for pose in poses:
        if pose is not chosen:
            _draw(canvas, (pose.joints[:, :2] + 0.5) * scale, pose.present, unit, opacity=0.4)
    if len(poses) > 1:
        _draw_frame(canvas, chosen, scale)
    _draw(canvas, (chosen.joints[:, :2] + 0.5) * scale, chosen.present, unit)
    return canvas


def _draw(canvas: Image.Image, xy: np.ndarray, present: np.ndarray, unit: float, *,
          opacity: float = 1.0) -> None:
    """One skeleton, joints `[18, 2]` in pixels counted from the canvas's edge; a limb is two units
    thick."""
    points = [tuple(point) for point in xy.tolist()]
    for (first, second), color in zip(LIMBS, LIMB_COLORS, strict=True):
        if present[first] and present[second]:
            # Limbs are darker than joints, as in OpenPose, where they are blended with the image.
            dark = tuple(channel * 3 // 4 for channel in color)
            _stroke(canvas, [points[first], points[second]], unit, dark, opacity)
    for point, here, color in zip(points, present, JOINT_COLORS, strict=True):
        if here:
            _stroke(canvas, [point], 1.6 * unit, color, opacity)


def _draw_frame(canvas: Image.Image, pose: Pose, scale: int) -> None:
    """A white frame with a dark edge around the joints of a person."""
    xy = (pose.joints[pose.present, :2] + 0.5) * scale
    margin = max(canvas.size) / 24
    (left, top), (right, bottom) = xy.min(axis=0) - margin, xy.max(axis=0) + margin
    edge = max(canvas.size) / 256
    left, top = max(left, edge), max(top, edge)
    right, bottom = min(right, canvas.width - edge), min(bottom, canvas.height - edge)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for radius, color in ((edge, (0, 0, 0)), (edge / 2, (255, 255, 255))):
        for start, end in zip(corners[:-1], corners[1:], strict=True):
            _stroke(canvas, [start, end], radius, color, 1.0)


def _stroke(canvas: Image.Image, points: list[tuple[float, float]], radius: float,
            color: tuple[int, ...], opacity: float) -> None:
    """A smooth dot, or a line between two points with round ends.

    It is drawn finely into a mask of just its own size: one of the size of the canvas would not fit
    into memory for large photographs.
    """
    xs, ys = zip(*points, strict=True)
    left, top = (max(0, math.floor(min(values) - radius)) for values in (xs, ys))
    right = min(canvas.width, math.ceil(max(xs) + radius))
    bottom = min(canvas.height, math.ceil(max(ys) + radius))
    if left >= right or top >= bottom:
        return
    size = (right - left, bottom - top)
    fine = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    # PIL counts from the centre of the first pixel, `points` from its edge.
    at = [tuple((p - o) * _OVERSAMPLING - 0.5 for p, o in zip(point, (left, top), strict=True))
          for point in points]
    thick = radius * _OVERSAMPLING
    ink = round(255 * opacity)
    if len(at) == 2:
        draw.line(at, fill=ink, width=round(2 * thick))
    for x, y in at:
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=ink)
    canvas.paste(color, (left, top), fine.resize(size, Image.Resampling.BOX))
