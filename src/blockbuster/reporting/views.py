"""Planes of images of any size to look at: of a level that is small enough, or every n-th voxel; never read whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.graph import compute_arrays
from blockbuster.grid import Region, TileGrid, region_shape
from blockbuster.sources import Image, StoredImage, lazily

__all__ = ["View", "close_up", "place_on_seam", "plane_of", "resampled", "voxels_of"]

# Voxels of a plane that is shown; of the part of one that is read for it where there is no small level, and its chunks.
_SHOWN = 1 << 20
_READ = 1 << 28
_CHUNKS = 1 << 12
# Voxels beside a seam that are looked at for a place to show.
_FACE = 1 << 24


@dataclass(frozen=True, eq=False)
class View:
    """A plane of an image.

    Attributes
    ----------
    data : ndarray, shape (rows, columns)
        Its voxels.
    axes : tuple of int
        Which axes of the image are rows and columns.
    origin : tuple of float
        The corner of the first voxel, in voxels of the finest level, for both.
    step : tuple of float
        The distance of voxels of the view, in voxels of the finest level, for both.
    at : tuple of int
        Where along the other axes the plane lies, in voxels of the finest level.
    """

    data: NDArray[Any]
    axes: tuple[int, int]
    origin: tuple[float, float]
    step: tuple[float, float]
    at: tuple[int, ...] = ()

    def places(self, cuts: Sequence[int], side: int) -> list[float]:
        """Where borders of tiles along one of the two axes are in the view, in its voxels."""
        return [(cut - self.origin[side]) / self.step[side] for cut in cuts]


def plane_of(levels: Sequence[Image]) -> View:
    """The plane in the middle of an image along its last two axes: about a million voxels of it at most.

    Parameters
    ----------
    levels : sequence of Image
        Of a pyramid, the finest first; each of at least two axes.

    Examples
    --------
    >>> from blockbuster.sources import open_source
    >>> view = plane_of([open_source(np.zeros((9, 3000, 1500), np.uint8))])
    >>> view.data.shape, view.step, view.at
    ((1000, 500), (3.0, 3.0), (4,))
    """
    level = next((one for one in levels if math.prod(one.shape[-2:]) <= _SHOWN), levels[-1])
    finest, shape = levels[0].shape, level.shape
    axes = (len(shape) - 2, len(shape) - 1)
    window = _window(level)
    stride = max(math.ceil(math.sqrt(math.prod(end - begin for begin, end in window) / _SHOWN)), 1)
    at = tuple(n // 2 for n in shape[:-2])
    data = voxels_of(level, (*(slice(n, n + 1) for n in at), *(slice(begin, end, stride) for begin, end in window)))
    data = data.reshape(data.shape[-2:])
    factors = [n / max(m, 1) for n, m in zip(finest, shape, strict=True)]
    return View(
        data,
        axes,
        (window[0][0] * factors[-2], window[1][0] * factors[-1]),
        (stride * factors[-2], stride * factors[-1]),
        tuple(int(place * factor) for place, factor in zip(at, factors, strict=False)),
    )


def _window(level: Image) -> list[tuple[int, int]]:
    """The middle of a plane, or all of it: what can be read for a picture."""
    extents = level.shape[-2:]
    chunk = [max(axis, default=1) or 1 for axis in level.chunks[-2:]]
    most = math.isqrt(min(_READ, _CHUNKS * math.prod(chunk)))
    if math.prod(extents) <= most**2:
        return [(0, n) for n in extents]
    begins = [max((n - most) // 2, 0) for n in extents]
    return [(begin, min(begin + most, n)) for begin, n in zip(begins, extents, strict=True)]


def voxels_of(image: Image, index: Region) -> NDArray[Any]:
    """Some voxels, in this process where they are stored: a graph would have a task for each chunk of the image."""
    if isinstance(image, StoredImage):
        return np.asarray(image[index])
    (data,) = compute_arrays(lazily(image)[index])
    return np.asarray(data)


def close_up(image: Image, centre: Sequence[int], axes: tuple[int, int], side: int) -> View:
    """A square around a voxel, in the plane of two axes, at full resolution."""
    region: Region = tuple(
        slice(max(c - side // 2, 0), min(c + side // 2, n)) if axis in axes else slice(c, c + 1)
        for axis, (c, n) in enumerate(zip(centre, image.shape, strict=True))
    )
    data = voxels_of(image, region)
    others = tuple(axis for axis in range(len(centre)) if axis not in axes)
    rows, columns = axes
    return View(
        data.squeeze(others),
        axes,
        (region[rows].start, region[columns].start),
        (1.0, 1.0),
        tuple(centre[axis] for axis in others),
    )


def place_on_seam(labels: Image, grid: TileGrid, first: int, second: int) -> tuple[list[int], tuple[int, int]]:
    """A voxel where foreground goes from one tile to another, and the axes of a plane in which their seam is seen."""
    a, b = grid.tile(first), grid.tile(second)
    crossed = tuple(axis for axis, (x, y) in enumerate(zip(a.index, b.index, strict=True)) if x != y)
    start = [max(x, y) for x, y in zip(a.start, b.start, strict=True)]
    common: Region = tuple(
        slice(begin - 1, begin + 1) if axis in crossed else slice(begin, min(x, y))
        for axis, (begin, x, y) in enumerate(zip(start, a.stop, b.stop, strict=True))
    )
    last = grid.ndim - 1
    plane = (last - 1, last) if crossed[0] >= last - 1 else (crossed[0], last)
    if math.prod(region_shape(common)) <= _FACE:
        both = np.argwhere((voxels_of(labels, common) != 0).all(crossed, keepdims=True))
        if len(both):
            return [begin + int(place) for begin, place in zip(start, both[len(both) // 2], strict=True)], plane
    return [(one.start + one.stop) // 2 for one in common], plane


def resampled(view: View, like: View) -> NDArray[Any]:
    """The voxels of one view at the places of those of another."""
    places = []
    for side, n in enumerate(like.data.shape):
        centres = like.origin[side] + (np.arange(n) + 0.5) * like.step[side]
        found = np.floor((centres - view.origin[side]) / view.step[side]).astype(np.int64)
        places.append(np.clip(found, 0, view.data.shape[side] - 1))
    return view.data[np.ix_(*places)]
