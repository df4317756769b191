"""The tiles of a run, drawn over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

import blockbuster
from blockbuster.grid import TileGrid
from blockbuster.napari.layers import KEY, Picked, levels_of, put

__all__ = ["NAME", "Outlines", "draw", "estimated_tiles", "outlines"]

NAME = "tile grid"
# More could not be told apart, and take seconds to draw: then there is only a frame, and nothing is crossed out.
_MOST_LINES = 20_000
# Of more tiles it takes minutes to find those that hold nothing.
_MOST_TILES = 20_000
# The coarsest level in which a tile still has so many voxels on each axis tells whether it is empty.
_FEW = 2
_SUMMARY_VOXELS = 1 << 24
_TO_DO, _SKIPPED = (0.24, 0.86, 0.52, 1.0), (0.6, 0.6, 0.6, 1.0)


@dataclass(frozen=True, eq=False)
class Outlines:
    """Lines, as napari takes vectors.

    Attributes
    ----------
    lines : ndarray of float, shape (n, 2, 2)
        Where each begins and how far it goes, y and x in voxels.
    is_skipped : ndarray of bool, shape (n,)
        Which cross out a tile that is skipped.
    """

    lines: NDArray[np.float64]
    is_skipped: NDArray[np.bool_]


def outlines(bounds: Sequence[Sequence[int]], occupied: NDArray[np.bool_]) -> Outlines:
    """The borders of the tiles of a plane, and a cross over each that is skipped.

    Parameters
    ----------
    bounds : pair of sequence of int
        Borders of the tiles along y and x.
    occupied : ndarray of bool, one for each tile
        Those that are not skipped.
    """
    # A voxel reaches half of one to both sides of its centre.
    is_dense = sum(map(len, bounds)) > _MOST_LINES
    rows, columns = (np.array([cuts[0], cuts[-1]] if is_dense else cuts) - 0.5 for cuts in bounds)
    borders = [[(row, columns[0]), (0, columns[-1] - columns[0])] for row in rows]
    borders += [[(rows[0], column), (rows[-1] - rows[0], 0)] for column in columns]
    empty = np.argwhere(~occupied)
    crosses: list[Any] = []
    for i, j in empty if 2 * len(empty) <= _MOST_LINES and not is_dense else ():
        height, width = rows[i + 1] - rows[i], columns[j + 1] - columns[j]
        crosses.append([(rows[i], columns[j]), (height, width)])
        crosses.append([(rows[i + 1], columns[j]), (-height, width)])
    is_skipped = np.arange(len(borders) + len(crosses)) >= len(borders)
    return Outlines(np.array(borders + crosses, np.float64), is_skipped)


def draw(viewer: Any, picked: Picked, grid: TileGrid, occupied: NDArray[np.bool_] | None) -> Any:
    """Draw the tiles over the image: of a volume one outline for all tiles above each other.

    Parameters
    ----------
    occupied : ndarray of bool, shape of the grid, optional
        Tiles that are not skipped. Default: all.
    """
    above_each_other = tuple(range(grid.ndim - 2))
    plane = np.ones(grid.numblocks[-2:], np.bool_) if occupied is None else occupied.any(axis=above_each_other)
    made = outlines(grid.bounds[-2:], np.asarray(plane))
    # Not shapes: napari 0.9 crashes when a layer of these is added after another was removed.
    return put(
        viewer,
        "vectors",
        made.lines,
        NAME,
        {KEY: {"result": NAME}},
        vector_style="line",
        edge_color=np.where(made.is_skipped[:, np.newaxis], _SKIPPED, _TO_DO),
        edge_width=min(max(grid.shape[-2:]) / 500, min(grid.tile_shape[-2:]) / 12),
        **_plane(picked.world()),
    )


def _plane(world: dict[str, Any]) -> dict[str, Any]:
    """The last two axes of a place in the world."""
    kept = np.ix_([-3, -2, -1], [-3, -2, -1])
    return {name: value[kept] if name == "affine" else value[-2:] for name, value in world.items()}


def estimated_tiles(picked: Picked, grid: TileGrid, threshold: float | None) -> blockbuster.EmptyTiles | None:
    """Which tiles hold nothing, as far as a coarse level tells; None where there is none, or there are too many tiles.

    Objects that are smaller than a voxel of that level may be missed: it is an estimate.
    """
    level = coarse_level(picked, grid)
    if level is None or grid.n_tiles > _MOST_TILES:
        return None
    array = picked.array(level)
    cuts = [_coarse_cuts(bounds, n) for bounds, n in zip(grid.bounds, array.shape, strict=True)]
    chunks = tuple(tuple(np.diff(cut).tolist()) for cut in cuts)
    factors = [fine / coarse for fine, coarse in zip(grid.shape, array.shape, strict=True)]
    halo = tuple(
        math.ceil(o / f) + 1 if len(cut) > 2 else 0 for o, f, cut in zip(grid.overlap, factors, cuts, strict=True)
    )
    coarse = da.asarray(array).rechunk(chunks)
    return blockbuster.estimate_empty_tiles(coarse, None, threshold, overlap=halo)


def coarse_level(picked: Picked, grid: TileGrid) -> int | None:
    """The coarsest level that still tells tiles apart, if it can be read at once."""
    for level in reversed(range(picked.level, len(levels_of(picked.layer)))):
        shape = picked.array(level).shape
        if _tells_apart(grid, shape):
            return level if math.prod(shape) <= _SUMMARY_VOXELS else None
    return None


def _tells_apart(grid: TileGrid, shape: Sequence[int]) -> bool:
    steps = [fine / coarse for fine, coarse in zip(grid.shape, shape, strict=True)]
    return all(t / s >= _FEW or n == m for t, s, n, m in zip(grid.tile_shape, steps, grid.shape, shape, strict=True))


def _coarse_cuts(bounds: Sequence[int], n: int) -> list[int]:
    """Borders of tiles in a coarser level of `n` voxels, each tile with one at least."""
    cuts = [round(cut * n / bounds[-1]) for cut in bounds]
    for i in range(1, len(cuts)):
        cuts[i] = max(cuts[i], cuts[i - 1] + 1)
    for i in reversed(range(len(cuts))):
        cuts[i] = min(cuts[i], n - (len(cuts) - 1 - i))
    return cuts
