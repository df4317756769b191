"""Which tiles hold nothing: the exact maximum of each, and thresholds that say what they skip."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import ParameterError
from blockbuster.graph import map_tiles
from blockbuster.grid import Tile, TileGrid
from blockbuster.sources import GraphImage, Image, StoredImage, given, open_source
from blockbuster.tiling import TileShape, make_grid

__all__ = ["EmptyTiles", "estimate_empty_tiles", "otsu_threshold"]

_SAMPLE_TILES = 16
_SAMPLE_VOXELS = 1 << 18
_BINS = 256


@dataclass(frozen=True)
class EmptyTiles:
    """How much of an image holds nothing.

    Attributes
    ----------
    threshold : float
        A tile is occupied where its maximum exceeds this.
    n_tiles, n_occupied : int
        Tiles in all, and those that are occupied.
    empty_fraction : float
        Share of the tiles that are not occupied; 0 for an image without tiles.
    occupied : ndarray of bool, shape of the grid
        The tiles that are occupied.
    maximum : ndarray, shape of the grid, dtype of the image
        The exact maximum of each tile, its halo counted: choose a threshold from it.
    """

    threshold: float
    n_tiles: int
    n_occupied: int
    empty_fraction: float
    occupied: NDArray[np.bool_]
    maximum: NDArray[Any]


def estimate_empty_tiles(
    image: Any,
    tile_shape: TileShape = None,
    threshold: float | None = None,
    *,
    overlap: int | Sequence[int] = 0,
    channel: int | str | None = 0,
    level: int = 0,
) -> EmptyTiles:
    """Find the tiles in which nothing exceeds a threshold, in one pass over the image.

    The pass is exact and runs on the active dask scheduler; tiles are read one by one. Only the automatic threshold is
    an estimate: look at `maximum` before you skip dim tiles by it.

    Parameters
    ----------
    image : array_like or path
        As in `tile_process`.
    tile_shape : None, tuple of int, "auto" or callable
        As in `tile_process`.
    threshold : float, optional
        Tiles whose maximum does not exceed it are empty. Default: Otsu's, of up to 2**18 voxels of at most 16 tiles
        that are spread over the image.
    overlap : int or sequence of int, default 0
        Voxels beyond each side of a tile that count as part of it.
    channel, level
        As in `tile_process`.

    Returns
    -------
    tiles : EmptyTiles
        The threshold, the counts, and the grids of occupancy and of maxima.

    Examples
    --------
    >>> image = np.zeros((64, 64), np.uint8)
    >>> image[40:50, 40:50] = 200
    >>> tiles = estimate_empty_tiles(image, (32, 32), threshold=10)
    >>> tiles.n_tiles, tiles.n_occupied, tiles.empty_fraction
    (4, 1, 0.75)
    """
    source = open_source(image, channel=channel, level=level)
    grid = make_grid(source, tile_shape, overlap)
    limit = otsu_threshold(source, grid) if threshold is None else float(threshold)
    stored = source if isinstance(source, StoredImage) else None
    maxima = map_tiles(functools.partial(_maximum, stored), grid, given(source))
    maximum = np.array(maxima, source.dtype).reshape(grid.numblocks)
    # Not "<=": a tile with NaN is not known to be empty.
    occupied = ~(maximum <= limit)
    n_occupied = int(np.count_nonzero(occupied))
    empty = 1 - n_occupied / grid.n_tiles if grid.n_tiles else 0.0
    return EmptyTiles(limit, grid.n_tiles, n_occupied, empty, occupied, maximum)


def otsu_threshold(source: Image, grid: TileGrid) -> float:
    """Otsu's threshold of a bounded sample: a few voxels of each of a few tiles that are spread over the image.

    Raises
    ------
    ParameterError
        If the image has no finite voxel.
    """
    from skimage.filters import threshold_otsu

    numbers = (
        np.unique(np.linspace(0, grid.n_tiles - 1, _SAMPLE_TILES).astype(int)) if grid.n_tiles else np.empty(0, int)
    )
    parts = [_thinned(_read(source, grid.tile(int(n)))) for n in numbers]
    sample = np.concatenate([np.empty(0, source.dtype), *parts])
    if sample.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
    if sample.dtype.kind == "b":
        return 0.0
    if not sample.size:
        raise ParameterError(
            f"No threshold can be derived from an image {source.shape} without finite voxels. Give one."
        )
    if sample.min() == sample.max():
        # One value throughout the sample tells nothing: skip only what is not above zero.
        return min(float(sample.min()), 0.0)
    return float(threshold_otsu(sample, nbins=_BINS))


def _thinned(block: NDArray[Any]) -> NDArray[Any]:
    flat = block.reshape(-1)
    return flat[:: max(1, flat.size * _SAMPLE_TILES // _SAMPLE_VOXELS)]


def _read(source: Image, tile: Tile) -> NDArray[Any]:
    if isinstance(source, GraphImage):
        return np.asarray(source.array[tile.core].compute())
    return source.read(tile.core)


def _maximum(source: StoredImage | None, tile: Tile, block: NDArray[Any] | None) -> Any:
    read = block if source is None else source.read(tile.padded)
    assert read is not None
    return read.max()
