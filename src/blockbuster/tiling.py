"""From the options that users give to the grid of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from blockbuster.budget import auto_tile_shape
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import TileGrid
from blockbuster.sources import Image, MemoryImage

__all__ = ["TileShape", "make_grid"]

TileShape: TypeAlias = (
    Sequence[int] | Literal["auto"] | Callable[[tuple[int, ...], np.dtype[Any]], Sequence[int]] | None
)


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
    _warn_of_amplification(grid)
    return grid


def _tile_shape(image: Image, tile_shape: Any, overlap: int | Sequence[int], use_gpu: bool) -> Sequence[int]:
    if isinstance(tile_shape, str):
        if tile_shape != "auto":
            raise ParameterError(
                f"tile_shape {tile_shape!r} is unknown. Give None for the chunks of the image, one int per axis, "
                "'auto', or a function (shape, dtype) -> tuple."
            )
        in_memory = isinstance(image, MemoryImage)
        chunks = None if in_memory else tuple(max(axis) or 1 for axis in image.chunks)
        return auto_tile_shape(
            image.shape, image.dtype, overlap=overlap, chunks=chunks, axes=image.axes, use_gpu=use_gpu
        )
    if callable(tile_shape):
        made: Sequence[int] = tile_shape(image.shape, image.dtype)
        return made
    given: Sequence[int] = tile_shape
    return given


def _warn_of_amplification(grid: TileGrid) -> None:
    wide = [axis for axis, (o, t) in enumerate(zip(grid.overlap, grid.tile_shape, strict=True)) if o > t]
    if wide and grid.n_tiles > 1:
        warnings.warn(
            f"overlap {grid.overlap} exceeds the tile shape {grid.tile_shape} on axes {wide}: each voxel is read "
            f"{grid.amplification:.1f} times. Larger tiles read less.",
            UserWarning,
            stacklevel=4,
        )
