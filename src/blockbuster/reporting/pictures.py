"""The pictures of a report: tiles and seams as maps of small squares, workers as lanes, labels in colours."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ABSENT",
    "FAILED",
    "MOST_LAYERS",
    "RAMP",
    "SKIPPED",
    "Pixels",
    "encoded",
    "lane",
    "labelled",
    "laid_out",
    "seam_map",
    "tile_map",
]

Pixels = NDArray[np.uint8]

# From little to much, from dark to bright; what has no value has a colour of its own.
RAMP = ((49, 46, 107), (38, 101, 145), (33, 152, 133), (124, 196, 84), (250, 227, 86))
SKIPPED, FAILED, ABSENT = (168, 172, 180), (214, 69, 65), (226, 228, 232)
_LINE = (255, 255, 255)
# Pixels along a picture of tiles, and squares of a tile that are not larger than this.
_LARGEST, _SQUARE = 640, 28
# Layers that are put side by side; more are projected to one.
MOST_LAYERS = 12
# Tiles along a strip, before it is wrapped.
_WRAP = 32


def encoded(pixels: Pixels, *, is_photo: bool = False) -> bytes:
    """A picture as PNG, a photo as JPEG: rows, columns, and 3 or 4 colours."""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    if is_photo:
        picture.save(file, "JPEG", quality=88, subsampling=0)
    else:
        picture.save(file, "PNG", optimize=True)
    return file.getvalue()


# Tiles


def laid_out(values: NDArray[np.float64], *, of_layers: str = "max") -> NDArray[np.float64]:
    """The values of a grid of tiles in the plane: NaN stays where nothing is.

    Parameters
    ----------
    values : ndarray of float64
        In the shape of the grid. Axes with one tile are left out. The last two of the others are rows and columns; what
        is before them is layers, side by side where they are few.
    of_layers : {"max", "sum"}
        How many layers are made to one.

    Examples
    --------
    >>> laid_out(np.arange(8.0).reshape(2, 2, 1, 2))
    array([[ 0.,  1., nan,  4.,  5.],
           [ 2.,  3., nan,  6.,  7.]])
    """
    plane = values.squeeze()
    if plane.ndim < 2:
        return _wrapped(plane.reshape(-1))
    layers = plane.reshape(-1, *plane.shape[-2:])
    if len(layers) > MOST_LAYERS:
        return _projected(layers, of_layers)
    gap = np.full((layers.shape[1], 1), np.nan)
    parts = [part for layer in layers for part in (layer, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _wrapped(strip: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = min(max(len(strip), 1), max(_WRAP, math.isqrt(len(strip))))
    padded = np.full(-(-len(strip) // columns) * columns, np.nan)
    padded[: len(strip)] = strip
    return padded.reshape(-1, columns)


def _projected(layers: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    known = ~np.isnan(layers)
    filled = np.where(known, layers, -np.inf if how == "max" else 0)
    made: NDArray[np.float64] = filled.max(0) if how == "max" else filled.sum(0)
    return np.where(known.any(0), made, np.nan)


def tile_map(
    values: NDArray[np.float64], top: float, marks: Sequence[tuple[NDArray[np.bool_], tuple[int, ...]]]
) -> Pixels:
    """A square for each tile.

    Parameters
    ----------
    values : ndarray of float64, shape (rows, columns)
        As of `laid_out`; NaN for no tile, or for one without a value.
    top : float
        What has the brightest colour.
    marks : sequence of (ndarray of bool, colour)
        Tiles with a colour of their own.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 4)
        Transparent where there is no tile.
    """
    step = -(-max(values.shape) // _LARGEST)
    values = _pooled(values, step)
    colours = ramped(values / top if top > 0 else values * 0)
    shown = ~np.isnan(values)
    for where, colour in marks:
        marked = _pooled(where.astype(np.float64), step) == 1
        colours[marked] = colour
        shown |= marked
    return _enlarged(np.dstack([colours, np.where(shown, 255, 0).astype(np.uint8)]))


def _pooled(values: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """The greatest of each square of some tiles, where there are more tiles than pixels."""
    if step == 1:
        return values
    padded = np.pad(values, [(0, -n % step) for n in values.shape], constant_values=np.nan)
    rows, columns = (n // step for n in padded.shape)
    made: NDArray[np.float64] = np.fmax.reduce(padded.reshape(rows, step, columns, step), axis=(1, 3))
    return made


def ramped(share: NDArray[np.float64]) -> Pixels:
    """Colours of values from 0 to 1."""
    known = np.nan_to_num(np.clip(share, 0, 1))
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(known, stops, band) for band in zip(*RAMP, strict=True)], -1).astype(np.uint8)


def _square(shape: Sequence[int]) -> int:
    return max(min(_LARGEST // max(shape[:2]), _SQUARE), 1)


def _enlarged(squares: Pixels) -> Pixels:
    size = _square(squares.shape)
    large = squares.repeat(size, 0).repeat(size, 1)
    if size >= 6:
        large[size - 1 :: size, :, 3] = large[:, size - 1 :: size, 3] = 0
    return large


def seam_map(down: NDArray[np.float64], right: NDArray[np.float64], top: float) -> Pixels:
    """A grey square for each tile, and between two of them a bar in the colour of their seam.

    Parameters
    ----------
    down, right : ndarray of float64, shape (rows, columns)
        The value of the seam of each tile with the next row, and with the next column; 0 for none, NaN for no tile.
    top : float
        What has the brightest colour.

    Returns
    -------
    pixels : ndarray of uint8, shape (height, width, 4)
        Transparent where no pairs are.
    """
    step = -(-max(down.shape) // (_LARGEST // 4))
    down, right = _pooled(down, step), _pooled(right, step)
    size = max(_square(down.shape), 4)
    bar = max(size // 4, 1)
    pixels = np.zeros((down.shape[0] * size, down.shape[1] * size, 4), np.uint8)
    cells = pixels.reshape(down.shape[0], size, down.shape[1], size, 4)
    there = np.where(np.isnan(down), 0, 255).astype(np.uint8)
    cells[:, : size - bar, :, : size - bar, :3] = ABSENT
    cells[:, : size - bar, :, : size - bar, 3] = there[:, np.newaxis, :, np.newaxis]
    for values, place in (
        (down, np.s_[:, size - bar :, :, : size - bar]),
        (right, np.s_[:, : size - bar, :, size - bar :]),
    ):
        colours = np.dstack([ramped(values / max(top, 1)), np.where(values > 0, 255, 0).astype(np.uint8)])
        cells[place] = colours[:, np.newaxis, :, np.newaxis]
    return pixels


# Workers


def lane(busy: NDArray[np.float64], most: float) -> Pixels:
    """The work of one worker over time: one row, opaque where it is at work on as many tiles as ever."""
    alpha = np.clip(255 * busy / max(most, 1e-9), 0, 255)
    return np.dstack(
        [np.broadcast_to(np.array(RAMP[2], np.uint8), (1, len(busy), 3)), alpha.astype(np.uint8)[np.newaxis]]
    )


# Labels


def labelled(
    labels: NDArray[Any], backdrop: NDArray[Any] | None, cuts: Sequence[Sequence[float]], zoom: int = 1
) -> Pixels:
    """Labels in colours, over an image where there is one, with thin lines where tiles meet.

    Parameters
    ----------
    labels : ndarray of int, shape (rows, columns)
        0 is background.
    backdrop : ndarray or None, shape (rows, columns)
        An image in grey.
    cuts : sequence of sequence of float
        Where to draw lines, between pixels, per axis.
    zoom : int
        Pixels per voxel.
    """
    grey = np.zeros(labels.shape, np.float32) if backdrop is None else _stretched(backdrop)
    paper = np.repeat((20 + 190 * grey)[..., np.newaxis], 3, axis=2)
    fill = _hues(labels)
    share = 0.9 if backdrop is None else 0.5
    drawn = np.where((labels != 0)[..., np.newaxis], (1 - share) * paper + share * fill, paper).astype(np.uint8)
    large = drawn.repeat(zoom, 0).repeat(zoom, 1)
    for axis, places in enumerate(cuts):
        at = [int(zoom * place) for place in places if 0 < place < labels.shape[axis]]
        line = (slice(None),) * axis + (at,)
        large[line] = (large[line].astype(np.uint16) + 2 * np.array(_LINE, np.uint16)) // 3
    return large


def grey(image: NDArray[Any]) -> Pixels:
    """An image in grey."""
    return np.repeat((255 * _stretched(image)).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def _stretched(image: NDArray[Any]) -> NDArray[np.float32]:
    """Values as shares of the range that all but the darkest and brightest are in."""
    values = np.nan_to_num(np.asarray(image.real, np.float64))
    low, high = np.percentile(values, (1, 99.7)) if values.size else (0.0, 1.0)
    made: NDArray[np.float32] = np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    return made


def _hues(labels: NDArray[Any]) -> NDArray[np.float32]:
    """A colour for each label, so that ids that are near look different."""
    turn = (labels.astype(np.uint64) * np.uint64(2654435769) % np.uint64(1 << 32)).astype(np.float64) / 2**32
    phases = 2 * np.pi * (turn[..., np.newaxis] + np.array([0, 1 / 3, 2 / 3]))
    made: NDArray[np.float32] = (150 + 90 * np.cos(phases)).astype(np.float32)
    return made
