"""From the options that users give to the grid of a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from blockbuster.budget import auto_tile_shape
from blockbuster.capacity import tile_budget
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import TileGrid, per_axis
from blockbuster.schedulers import active_scheduler
from blockbuster.sources import Image, MemoryImage

__all__ = ["TileShape", "check_block_ids", "make_grid", "make_writing_grid", "warn_of_amplification"]

TileShape: TypeAlias = (
    int | Sequence[int] | Literal["auto"] | Callable[[tuple[int, ...], np.dtype[Any]], Sequence[int]] | None
)

# Bytes of a tile that is worth a task of its own, and of the largest that is taken to read a block only once.
_SMALL_TILE = 1 << 23
_LARGE_TILE = 1 << 28


def make_grid(image: Image, tile_shape: TileShape, overlap: int | Sequence[int], *, use_gpu: bool = False) -> TileGrid:
    """The grid of a run over `image`.

    Raises
    ------
    ParameterError
        If `tile_shape` is a string other than "auto".
    GeometryError
        If a shape or an overlap does not fit the image.
    """
    if not image.shape:
        raise GeometryError("The image has no axes, only one value. Give an array with at least one axis.")
    if tile_shape is None:
        grid = TileGrid.from_chunks(image.chunks, overlap)
    else:
        grid = TileGrid.regular(image.shape, _tile_shape(image, tile_shape, overlap, use_gpu), overlap)
    warn_of_amplification(grid)
    return grid


def make_writing_grid(
    shape: Sequence[int],
    tile_shape: TileShape,
    unit: Sequence[int],
    *,
    dtype: np.dtype[Any],
    reads: Sequence[int],
    voxel_bytes: int | None = None,
) -> TileGrid:
    """The grid of a run that writes units of storage, whole chunks or shards: no two tiles share one.

    Parameters
    ----------
    tile_shape : None, int, tuple of int, "auto" or callable
        None, "auto": few units, as many as hold a few MiB, or as span the blocks that are read where that fits.
    unit : sequence of int
        Voxels of a unit.
    reads : sequence of int
        Voxels, of the result, that one chunk of the image makes.
    voxel_bytes : int, optional
        Bytes that are held for each voxel of the result. Default: its own.

    Raises
    ------
    ParameterError
        If `tile_shape` is a string other than "auto".
    GeometryError
        If it is not whole units.
    """
    if tile_shape is None or isinstance(tile_shape, str):
        if tile_shape not in (None, "auto"):
            raise _unknown(tile_shape)
        return TileGrid.regular(shape, _whole_units(shape, unit, voxel_bytes or dtype.itemsize, reads))
    given = tile_shape(tuple(shape), dtype) if callable(tile_shape) else tile_shape
    grid = TileGrid.regular(shape, per_axis("tile_shape", given, shape, minimum=1))
    if not grid.is_aligned(unit):
        raise GeometryError(
            f"tile_shape {grid.tile_shape} is not whole chunks or shards {tuple(unit)}: two tiles would write to "
            "one of them. Give a multiple of them, or chunks that divide it."
        )
    return grid


def _whole_units(shape: Sequence[int], unit: Sequence[int], itemsize: int, reads: Sequence[int]) -> tuple[int, ...]:
    tile = [min(u, -(-n // u) * u) if n else u for u, n in zip(unit, shape, strict=True)]
    limits = [max(-(-n // u) * u, u) for u, n in zip(unit, shape, strict=True)]

    def size(candidate: Sequence[int]) -> int:
        return math.prod(candidate) * itemsize

    # Blocks that are read once for each tile that they meet are best met by one.
    for axis in sorted(range(len(tile)), key=lambda a: reads[a] / unit[a]):
        wanted = min(-(-reads[axis] // unit[axis]) * unit[axis], limits[axis])
        grown = [*tile[:axis], max(wanted, tile[axis]), *tile[axis + 1 :]]
        while size(grown) > _LARGE_TILE and grown[axis] > tile[axis]:
            grown[axis] -= unit[axis]
        tile = grown
    while size(tile) < _SMALL_TILE:
        growing = [axis for axis in range(len(tile)) if tile[axis] < limits[axis]]
        if not growing:
            break
        axis = min(growing, key=lambda a: (tile[a], -a))
        tile[axis] = min(2 * tile[axis], limits[axis])
    return tuple(tile)


def _unknown(tile_shape: Any) -> ParameterError:
    return ParameterError(
        f"tile_shape {tile_shape!r} is unknown. Give None for the chunks of the image, one int per axis, 'auto', or a "
        "function (shape, dtype) -> tuple."
    )


def check_block_ids(block_ids: Any, grid: TileGrid) -> tuple[int, ...] | None:
    """Tiles of a grid by their numbers, each once, ascending.

    Raises
    ------
    GeometryError
        If a number is not one of a tile.
    """
    if block_ids is None:
        return None
    chosen = np.unique(np.asarray(block_ids).reshape(-1))
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen[0] < 0 or chosen[-1] >= grid.n_tiles):
        raise GeometryError(
            f"block_ids {chosen.tolist()} are not all numbers of tiles: the grid has {grid.n_tiles} tiles "
            f"{grid.numblocks}, numbered 0..{grid.n_tiles - 1} in row-major order."
        )
    return tuple(chosen.tolist())


def _tile_shape(image: Image, tile_shape: Any, overlap: int | Sequence[int], use_gpu: bool) -> Sequence[int]:
    if isinstance(tile_shape, str):
        if tile_shape != "auto":
            raise _unknown(tile_shape)
        in_memory = isinstance(image, MemoryImage)
        chunks = None if in_memory else tuple(max(axis) or 1 for axis in image.chunks)
        # Of the workers, where they are others than this process.
        room = {} if use_gpu else tile_budget(active_scheduler())
        return auto_tile_shape(
            image.shape, image.dtype, overlap=overlap, chunks=chunks, axes=image.axes, use_gpu=use_gpu, **room
        )
    if callable(tile_shape):
        made: Sequence[int] = tile_shape(image.shape, image.dtype)
        return made
    given: Sequence[int] = tile_shape
    return given


def warn_of_amplification(grid: TileGrid) -> None:
    """Say to the caller of an operation, two calls above, that it reads each voxel several times."""
    wide = [
        axis
        for axis, (o, t, n) in enumerate(zip(grid.overlap, grid.tile_shape, grid.numblocks, strict=True))
        if o > t and n > 1
    ]
    if wide:
        warnings.warn(
            f"overlap {grid.overlap} exceeds the tile shape {grid.tile_shape} on axes {wide}: each voxel is read "
            f"{grid.amplification:.1f} times. Larger tiles read less.",
            UserWarning,
            stacklevel=4,
        )
