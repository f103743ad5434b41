"""The contact sheet: pictures `[H, W, 3]` uint8 side by side, in titled columns."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from posemodel.pictures.flow_colors import flow_to_color, heat

_OVERSAMPLING = 4

# The contact sheet, in pixels.
_SMALLEST_CELL = 96
_MARGIN, _COLUMN_GAP, _ROW_GAP, _LEGEND = 28, 10, 10, 44
_INK, _FAINT, _HAIRLINE, _PAGE = (32, 33, 36), (110, 114, 120), (225, 227, 230), (255, 255, 255)


def contact_sheet(columns: list[tuple[str, list[np.ndarray]]], path: str | Path, title: str = "",
                  legend: bool = False) -> None:
    """Write a PNG with one titled column for each list of images.

    Args:
        columns: title and pictures, `[H, W, 3]` uint8. The smallest image sets the size of a cell,
            enlarged by a whole number without smoothing where it is less than 96 pixels wide or
            high; larger ones, such as skeletons drawn finely, are scaled down to it.
        path: the PNG; it appears entirely or not at all.
        title: line above the sheet.
        legend: whether the colours of flows and of visibility are explained below it.
    """
    sizes = [image.shape[:2] for _, images in columns for image in images]
    height, width = min(sizes, key=math.prod)
    scale = max(1, math.ceil(_SMALLEST_CELL / min(height, width)))
    cell = (width * scale, height * scale)
    rows = max(len(images) for _, images in columns)

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
        draw.text((x + cell[0] / 2, body - 10), name, _INK, font=_fitting(draw, name, cell[0]),
                  anchor="ms")
        for row, image in enumerate(images):
            y = body + row * (cell[1] + _ROW_GAP)
            draw.rectangle((x - 1, y - 1, x + cell[0], y + cell[1]), outline=_HAIRLINE)
            picture = Image.fromarray(image)
            larger = picture.width > cell[0] or picture.height > cell[1]
            # Enlarged pixels stay pixels: smoothing would flatter the model.
            method = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
            page.paste(picture.resize(cell, method), (x, y))
    if legend:
        _draw_legend(page, (_MARGIN, legend_top), ImageFont.load_default(13))
    _write_png(page, Path(path))


def _fitting(draw: ImageDraw.ImageDraw, name: str, width: int):
    """The largest font in which a column's title is no wider than the column, within reason."""
    fonts = [ImageFont.load_default(size) for size in range(15, 7, -1)]
    return next((font for font in fonts if draw.textlength(name, font=font) <= width), fonts[-1])


def _draw_legend(page: Image.Image, corner: tuple[int, int], font) -> None:
    x, y = corner
    draw = ImageDraw.Draw(page)
    ramp = Image.fromarray(heat(torch.linspace(0, 1, 96).expand(10, 96)))
    for mark, caption in (
        (_wheel(_LEGEND), "flow: where a pixel looks for its source; white: no motion"),
        (ramp, "visible in the source: no to yes")):
        page.paste(mark, (x, y + (_LEGEND - mark.height) // 2))
        x += mark.width + 10
        draw.text((x, y + _LEGEND / 2), caption, _FAINT, font=font, anchor="lm")
        x += round(draw.textlength(caption, font=font)) + 32


def _wheel(size: int) -> Image.Image:
    """A disc of all directions, drawn finely and averaged down so that its rim is smooth."""
    fine = size * _OVERSAMPLING
    at = torch.linspace(-1, 1, fine)
    flow = torch.stack(torch.meshgrid(at, at, indexing="xy"))
    disc = flow_to_color(flow, max_flow=1.0)
    disc[flow.norm(dim=0).numpy() > 1] = 255
    return Image.fromarray(disc).resize((size, size), Image.Resampling.BOX)


def _write_png(page: Image.Image, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        page.save(temporary, format="PNG", optimize=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
