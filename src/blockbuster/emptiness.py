"""Which tiles hold nothing: the exact maximum of each, and thresholds that say what they skip."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.graph import map_tiles
from blockbuster.grid import Tile, TileGrid
from blockbuster.sources import Image, StoredImage, given, open_source
from blockbuster.thresholds import otsu, sample_tiles, thinned
from blockbuster.tiling import TileShape, make_grid

__all__ = ["EmptyTiles", "estimate_empty_tiles"]


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
    tile_shape : None, int, tuple of int, "auto" or callable
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
    stored = source if isinstance(source, StoredImage) else None
    limit = float(threshold) if threshold is not None else _automatic(stored, source, grid)
    maxima = map_tiles(functools.partial(_maximum, stored), grid, range(grid.n_tiles), given(source))
    maximum = np.array(maxima, source.dtype).reshape(grid.numblocks)
    # Not "<=": a tile with NaN is not known to be empty.
    occupied = ~(maximum <= limit)
    n_occupied = int(np.count_nonzero(occupied))
    empty = 1 - n_occupied / grid.n_tiles if grid.n_tiles else 0.0
    return EmptyTiles(limit, grid.n_tiles, n_occupied, empty, occupied, maximum)


def _automatic(stored: StoredImage | None, source: Image, grid: TileGrid) -> float:
    chosen = sample_tiles(range(grid.n_tiles))
    return otsu(map_tiles(functools.partial(_sample, stored), grid, chosen, given(source)))


def _sample(source: StoredImage | None, tile: Tile, block: NDArray[Any] | None) -> NDArray[Any]:
    return thinned(_read(source, tile, block))


def _maximum(source: StoredImage | None, tile: Tile, block: NDArray[Any] | None) -> Any:
    return _read(source, tile, block).max()


def _read(source: StoredImage | None, tile: Tile, block: NDArray[Any] | None) -> NDArray[Any]:
    read = block if source is None else source.read(tile.padded)
    assert read is not None
    return read
