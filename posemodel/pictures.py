"""Pictures of flows, poses and scores, and the contact sheet that shows them side by side.

Nothing here knows about training. Images are `[3, H, W]` in uint8.
"""

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from posemodel.data.keypoints import (
    JOINT_COLORS,
    LIMB_COLORS,
    LIMBS,
    normalized_to_pixels,
)

_OVERSAMPLING = 4

# The contact sheet, in pixels.
_SMALLEST_CELL = 96
_MARGIN, _COLUMN_GAP, _ROW_GAP, _LEGEND = 28, 10, 10, 44
_INK, _FAINT, _HAIRLINE, _PAGE = (32, 33, 36), (110, 114, 120), (225, 227, 230), (255, 255, 255)


def flow_to_color(flow: Tensor, max_flow: float) -> Tensor:
    """The Middlebury colour wheel: direction is hue, length is saturation, white is no motion.

    Args:
        flow: displacements in pixels, `[2, h, w]`, (x, y); NaN counts as no motion.
        max_flow: length that gets the full colour; longer ones are drawn like it.

    Returns:
        `[3, h, w]`, uint8.
    """
    from torchvision.utils import flow_to_image

    flow = torch.nan_to_num(flow.detach().float().cpu(), nan=0.0, posinf=max_flow, neginf=-max_flow)
    length = flow.norm(dim=0, keepdim=True)
    flow = flow * (max_flow / length.clamp(min=max_flow))
    # torchvision scales by the longest flow that it finds. One row that has the given length makes
    # the colours comparable between pictures.
    ruler = torch.zeros(2, 1, flow.shape[2])
    ruler[0] = max_flow
    return flow_to_image(torch.cat([flow, ruler], dim=1))[:, :-1]


def draw_skeleton(pose: Tensor, size: tuple[int, int]) -> Tensor:
    """An OpenPose skeleton in its usual colours on black; a limb needs both of its joints.

    Args:
        pose: `[18, 3]`, (x, y, presence), normalised.
        size: height and width of the picture.

    Returns:
        `[3, H, W]`, uint8.
    """
    height, width = (_OVERSAMPLING * side for side in size)
    joints = normalized_to_pixels(pose.detach().float().cpu(), (height, width)).tolist()
    unit = height / 128
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for (first, second), color in zip(LIMBS, LIMB_COLORS, strict=True):
        (x0, y0, here), (x1, y1, there) = joints[first], joints[second]
        if here and there:
            # Limbs are darker than joints, as in OpenPose, where they are blended with the image.
            draw.polygon(_ellipse(x0, y0, x1, y1, 2 * unit), tuple(c * 3 // 4 for c in color))
    for (x, y, here), color in zip(joints, JOINT_COLORS, strict=True):
        if here:
            radius = 2.4 * unit
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), color)
    return _tensor(image.resize((size[1], size[0]), Image.Resampling.BOX))


def heat(values: Tensor) -> Tensor:
    """Values in [0, 1], `[h, w]`, in the colours of viridis, `[3, h, w]` in uint8; NaN is grey."""
    values = values.detach().float().cpu()
    index = (torch.nan_to_num(values).clamp(0, 1) * 255).round().long()
    colors = _viridis()[index]  # [h, w, 3]
    colors[values.isnan()] = 128
    return colors.permute(2, 0, 1).contiguous()


def contact_sheet(
    columns: list[tuple[str, list[Tensor]]],
    path: str | Path,
    title: str = "",
    scale: int | None = None,
    legend: str | Mapping[str, str] | None = None,
) -> None:
    """Write a PNG with one titled column for each list of images.

    Args:
        columns: title and images, `[3, H, W]` uint8. The smallest image sets the size of a cell;
            larger ones, such as skeletons drawn finely, are scaled down to it.
        path: the PNG; it appears entirely or not at all.
        title: line above the sheet.
        scale: whole number that small images are enlarged by, without smoothing; None: as much as
            makes a cell at least 96 pixels wide and high.
        legend: "flow", "heat", or both as keys with captions as values.
    """
    sizes = [image.shape[-2:] for _, images in columns for image in images]
    height, width = min(sizes, key=math.prod)
    scale = scale or max(1, math.ceil(_SMALLEST_CELL / min(height, width)))
    cell = (width * scale, height * scale)
    rows = max(len(images) for _, images in columns)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    if isinstance(legend, str):
        legend = {legend: _CAPTIONS[legend]}

    top = _MARGIN + (34 if title else 0)
    body = top + 26
    page_width = 2 * _MARGIN + len(columns) * (cell[0] + _COLUMN_GAP) - _COLUMN_GAP
    legend_top = body + rows * (cell[1] + _ROW_GAP) - _ROW_GAP + _MARGIN * 4 // 5
    bottom = legend_top + _LEGEND if legend else legend_top
    page = Image.new("RGB", (page_width, bottom + _MARGIN * 4 // 5), _PAGE)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((_MARGIN, _MARGIN), title, _INK, font=ImageFont.load_default(18), anchor="lt")
    for column, (name, images) in enumerate(columns):
        x = _MARGIN + column * (cell[0] + _COLUMN_GAP)
        fitting = font if draw.textlength(name, font=font) <= cell[0] else small
        draw.text((x + cell[0] / 2, body - 10), name, _INK, font=fitting, anchor="ms")
        for row, image in enumerate(images):
            y = body + row * (cell[1] + _ROW_GAP)
            draw.rectangle((x - 1, y - 1, x + cell[0], y + cell[1]), outline=_HAIRLINE)
            page.paste(_fit(image, cell), (x, y))
    if legend:
        _draw_legend(page, legend, (_MARGIN, legend_top), small)
    _write_png(page, Path(path))


_CAPTIONS = {
    "flow": "flow: the direction in which a pixel looks for its source; white: no motion",
    "heat": "low to high",
}


def _draw_legend(page: Image.Image, legend: Mapping[str, str], corner: tuple[int, int], font):
    x, y = corner
    draw = ImageDraw.Draw(page)
    for kind, caption in legend.items():
        mark = _image(_wheel(_LEGEND)) if kind == "flow" else _ramp(96, 10)
        page.paste(mark, (x, y + (_LEGEND - mark.height) // 2))
        x += mark.width + 10
        draw.text((x, y + _LEGEND / 2), caption, _FAINT, font=font, anchor="lm")
        x += round(draw.textlength(caption, font=font)) + 32


def _wheel(size: int) -> Tensor:
    """A disc of all directions, drawn finely and averaged down so that its rim is smooth."""
    fine = size * _OVERSAMPLING
    at = torch.linspace(-1, 1, fine)
    flow = torch.stack(torch.meshgrid(at, at, indexing="xy"))
    disc = flow_to_color(flow, max_flow=1.0)
    disc[:, flow.norm(dim=0) > 1] = 255
    return _tensor(_image(disc).resize((size, size), Image.Resampling.BOX))


def _ramp(width: int, height: int) -> Image.Image:
    return _image(heat(torch.linspace(0, 1, width).expand(height, width)))


def _fit(image: Tensor, cell: tuple[int, int]) -> Image.Image:
    picture = _image(image)
    larger = picture.width > cell[0] or picture.height > cell[1]
    # Enlarged pixels stay pixels: smoothing would flatter the model.
    method = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return picture.resize(cell, method)


def _ellipse(x0: float, y0: float, x1: float, y1: float, radius: float) -> list:
    """The outline of an ellipse whose long axis is the line from one joint to the other."""
    length = math.hypot(x1 - x0, y1 - y0) / 2
    angle = math.atan2(y1 - y0, x1 - x0)
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for turn in range(0, 360, 10):
        along = length * math.cos(math.radians(turn))
        across = radius * math.sin(math.radians(turn))
        points.append(((x0 + x1) / 2 + along * cos - across * sin,
                       (y0 + y1) / 2 + along * sin + across * cos))
    return points


@cache
def _viridis() -> Tensor:
    from matplotlib import colormaps

    return torch.from_numpy(np.array(colormaps["viridis"](range(256), bytes=True)[:, :3]))


def _image(tensor: Tensor) -> Image.Image:
    return Image.fromarray(tensor.cpu().permute(1, 2, 0).contiguous().numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _write_png(page: Image.Image, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        page.save(temporary, format="PNG", optimize=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
