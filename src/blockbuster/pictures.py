"""Label images as pictures: a colour for each label, thin lines for the borders of tiles. Needs nothing but Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["colours", "frame", "page", "panel", "with_lines"]

INK = (236, 239, 244)
PAPER = (13, 15, 20)
ACCENT = (255, 209, 102)
MARGIN, GAP, CAPTION = 32, 16, 34


def panel(
    backdrop: NDArray[np.uint8],
    labels: NDArray[np.integer],
    cuts: Sequence[Sequence[int]],
    zoom: int,
    region: tuple[slice, slice] = np.s_[:, :],
    *,
    smooth: bool = True,
) -> Image.Image:
    """Draw labels over a colour image, and a line at each of the cuts per axis; all of it, or a region."""
    size = tuple(zoom * n for n in reversed(labels[region].shape))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    large = np.asarray(Image.fromarray(backdrop[region]).resize(size, how), np.float32)
    marked = labels[region].repeat(zoom, 0).repeat(zoom, 1)
    fill = colours(labels)[marked] * (0.72 + 0.5 * large.mean(-1, keepdims=True) / 255)
    drawn = np.where(marked[..., np.newaxis] > 0, 0.12 * large + 0.88 * fill, large)
    image = Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8))
    start = [axis.start or 0 for axis in region]
    return with_lines(image, [[(c - s) * zoom for c in axis] for axis, s in zip(cuts, start, strict=True)])


def colours(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """A table of colours by label: hues a golden section apart, so that the next label looks different."""
    hues = np.arange(int(labels.max(initial=0)) + 1) * 0.6180339887 % 1
    table = [colorsys.hsv_to_rgb(h, 0.45 + 0.2 * (i % 3), 1 - 0.14 * (i % 2)) for i, h in enumerate(hues)]
    return 255 * np.array(table, np.float32)


def with_lines(image: Image.Image, cuts: Sequence[Sequence[int]]) -> Image.Image:
    """Draw thin lines across each axis, rows first, where they lie within the image."""
    lines = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(lines)
    for y in filter(range(1, image.height).__contains__, cuts[0]):
        draw.line([(0, y), (image.width, y)], (*INK, 165), 1)
    for x in filter(range(1, image.width).__contains__, cuts[1]):
        draw.line([(x, 0), (x, image.height)], (*INK, 165), 1)
    return Image.alpha_composite(image.convert("RGBA"), lines).convert("RGB")


def frame(image: Image.Image, region: tuple[slice, slice], zoom: int) -> None:
    """Draw a frame around a region."""
    rows, columns = region
    box = [zoom * n for n in (columns.start, rows.start, columns.stop, rows.stop)]
    ImageDraw.Draw(image).rectangle(box, outline=ACCENT, width=3)


def page(columns: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Put captioned panels on a page, column by column."""
    widths = [max(part.width for _, part in column) for column in columns]
    heights = [sum(part.height + CAPTION + GAP for _, part in column) - GAP for column in columns]
    size = (sum(widths) + GAP * (len(columns) - 1) + 2 * MARGIN, max(heights) - CAPTION // 2 + 2 * MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=20)
    left = MARGIN
    for column, width in zip(columns, widths, strict=True):
        top = MARGIN - CAPTION // 2
        for caption, part in column:
            draw.text((left, top + CAPTION // 2), caption, INK, font, anchor="lm")
            sheet.paste(part, (left, top + CAPTION))
            top += CAPTION + part.height + GAP
        left += width + GAP
    return sheet
