"""`map_tiles_to_table`: any function that finds points, tile by tile."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.destination import Destination
from blockbuster.errors import ParameterError
from blockbuster.grid import Region, Tile, per_axis
from blockbuster.identity import function_identity
from blockbuster.parquet import Column, table_path
from blockbuster.progress import Progress
from blockbuster.rowwise import Read, RowPlan, make_rows, voxels_of
from blockbuster.sources import Image, open_mask, open_source
from blockbuster.tiling import TileShape, check_block_ids, make_grid

__all__ = ["PointTable", "Points", "axis_names", "map_tiles_to_table", "planes", "space_names"]

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)


def map_tiles_to_table(
    image: Any,
    fn: Callable[[NDArray[Any]], Any],
    columns: Sequence[str] = (),
    *,
    tile_shape: TileShape = None,
    overlap: int | Sequence[int] = 0,
    mask: Any = None,
    block_ids: Sequence[int] | None = None,
    channel: int | str | None = 0,
    level: int = 0,
    write_to: str | os.PathLike[str] | None = None,
    compute: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """Find points tile by tile: each one once, by the tile in whose core its voxel lies.

    With an `overlap` of at least the reach of `fn`, the rows are those that `fn` finds in the whole image.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`.
    fn : callable
        ``ndarray -> rows``: of a tile and `overlap` voxels around it, clipped at the border of the image, the points in
        it. An array of shape (n, axes + columns): first the coordinates in the block, in voxels, the centre of its
        first voxel at 0, then the values of `columns`; or a DataFrame that has columns of these names, and of those of
        the axes. Called exactly once per tile. Must be picklable to leave this process.
    columns : sequence of str
        Names of what a row has besides coordinates.
    tile_shape : None, int, tuple of int, "auto" or callable
        As in `tile_process`.
    overlap : int or tuple of int, default 0
        Voxels read beyond each side of a tile: one for all axes, or one per axis.
    mask : array_like or path, optional
        Of the shape of the image. Points are kept whose voxel is not 0 in it; `fn` is not called for tiles outside.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles to work on.
    channel, level
        As in `tile_process`.
    write_to : path, optional
        Parquet file to write, which must end in ".parquet". It appears complete or not at all.
    compute, progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `tile_process`.

    Returns
    -------
    table : dask.array.Array or numpy.ndarray of float64, shape (nan, axes + columns)
        The coordinates in the image, and the values; tiles in row-major order, within them the order of `fn`. With
        `write_to` read from the file, which has a column for each axis (z, y, x where the image does not name them),
        those of `columns`, and ``tile``, the row-major number of the tile.

    Raises
    ------
    GeometryError, ParameterError, ImageError, OutputExistsError, OutputError, ResumeError, SchedulerError
        Before the first task: for options that do not fit the image or the scheduler.
    TileError
        If `fn` fails on a tile, or returns something else than rows; as in `tile_process`.

    Notes
    -----
    A point belongs to the tile whose core has its voxel, the one at ``floor(x + 1/2)``, as the centres of voxels are at
    whole numbers. Points beyond the border of the image belong to the tile there. Each worker holds one
    padded tile; a lazy array has no scratch data, and nothing to resume.

    Examples
    --------
    The brightest voxels of an image, with their values:

    >>> import numpy as np, blockbuster
    >>> image = np.zeros((8, 8), np.uint8)
    >>> image[2, 3], image[6, 5] = 7, 9
    >>> def brightest(tile):
    ...     places = np.argwhere(tile > 5)
    ...     return np.column_stack([places, tile[tuple(places.T)]])
    >>> blockbuster.map_tiles_to_table(image, brightest, ["value"], tile_shape=(4, 4)).compute()
    array([[2., 3., 7.],
           [6., 5., 9.]])
    """
    if not callable(fn):
        raise ParameterError(f"fn {fn!r} cannot be called. Give a function of a numpy array that returns rows.")
    to = Destination(
        write_to=None if write_to is None else table_path(write_to),
        output_component="",
        compute=compute,
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    source = open_source(image, channel=channel, level=level)
    # A number counts on every axis: planes of a volume are no images of their own where points are looked for.
    grid = make_grid(source, tile_shape, per_axis("overlap", overlap, source.shape, minimum=0))
    axes = axis_names(source)
    names = _checked_names(columns, axes)
    table = PointTable(axes, names)
    plan = RowPlan(
        operation="map_tiles_to_table",
        image=source,
        mask=open_mask(mask, source.shape),
        grid=grid,
        kernel=Points(fn, tuple(range(grid.ndim)), grid.overlap, table.axes, names),
        table=table,
        block_ids=check_block_ids(block_ids, grid),
    )
    return make_rows(plan, to)


@dataclass(frozen=True)
class Points:
    """A function that finds points in a block, as a kernel.

    Attributes
    ----------
    spatial : tuple of int
        The axes of the image that blocks have; it is called for each index along the others.
    overlap : tuple of int
        Voxels beyond each side of a tile, per axis of the image.
    axes, names : tuple of str
        Columns of rows that have names.
    """

    function: Callable[[NDArray[Any]], Any]
    spatial: tuple[int, ...]
    overlap: tuple[int, ...]
    axes: tuple[str, ...]
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Points({function_identity(self.function)}, {self.spatial}, {self.overlap}, {self.names})"

    @property
    def n_columns(self) -> int:
        """Coordinates and values."""
        return len(self.overlap) + len(self.names)

    def source(self, tile: Tile, shape: Sequence[int]) -> Region:
        """The padded tile."""
        return tile.padded

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """The block, and as much again for the function."""
        return 2 * dtype.itemsize

    def __call__(self, tile: Tile, shape: Sequence[int], read: Read) -> NDArray[np.float64]:
        """The points in the core of a tile."""
        block = read(tile.padded)
        found = [self._of_plane(tile, shape, where, block[inner]) for where, inner in planes(tile, self.spatial)]
        return np.concatenate([np.empty((0, self.n_columns)), *found])

    def _of_plane(
        self, tile: Tile, shape: Sequence[int], where: Mapping[int, int], plane: NDArray[Any]
    ) -> NDArray[np.float64]:
        rows = self._rows(self.function(plane))
        made = np.empty((len(rows), self.n_columns))
        made[:, len(self.overlap) :] = rows[:, len(self.spatial) :]
        for axis, index in where.items():
            made[:, axis] = index
        for column, axis in enumerate(self.spatial):
            made[:, axis] = rows[:, column] + tile.padded_start[axis]
        return made[_in_core(made, tile, shape, self.spatial)]

    def _rows(self, found: Any) -> NDArray[np.float64]:
        wanted = [*(self.axes[axis] for axis in self.spatial), *self.names]
        if hasattr(found, "columns"):
            missing = [name for name in wanted if name not in found.columns]
            if missing:
                raise ValueError(f"it returned a table without the columns {missing}: it has {list(found.columns)}")
            found = found[wanted].to_numpy()
        rows = np.asarray(found, np.float64)
        if rows.size == 0:
            return np.empty((0, len(wanted)))
        if rows.ndim != 2 or rows.shape[1] != len(wanted):
            raise ValueError(
                f"it returned an array of shape {rows.shape}, but a row has {len(wanted)} numbers: {', '.join(wanted)}"
            )
        return rows


def planes(tile: Tile, spatial: Sequence[int]) -> Iterator[tuple[dict[int, int], tuple[Any, ...]]]:
    """For each index of a tile along the axes that are not spatial: where that is, and how a padded block has it."""
    others = [axis for axis in range(len(tile.start)) if axis not in spatial]
    ranges = [range(tile.start[axis], tile.stop[axis]) for axis in others]
    for indices in itertools.product(*ranges):
        where = dict(zip(others, indices, strict=True))
        inner = tuple(
            where[axis] - tile.padded_start[axis] if axis in where else slice(None) for axis in range(len(tile.start))
        )
        yield where, inner


def _in_core(
    points: NDArray[np.float64], tile: Tile, shape: Sequence[int], spatial: Sequence[int]
) -> NDArray[np.bool_]:
    """Which points lie in voxels of the core of a tile, or beyond it where that is beyond the image."""
    kept = np.ones(len(points), np.bool_)
    for axis in spatial:
        x = voxels_of(points[:, axis])
        low = tile.start[axis] if tile.start[axis] > 0 else -np.inf
        high = tile.stop[axis] if tile.stop[axis] < shape[axis] else np.inf
        kept &= (low <= x) & (x < high)
    return kept


@dataclass(frozen=True)
class PointTable:
    """The columns of a table of points: for each axis one, then values, then the tile."""

    axes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in their order."""
        floats = tuple(Column(name, _FLOAT) for name in (*self.axes, *self.names))
        return (*floats, Column("tile", _INT))

    def __call__(self, rows: NDArray[np.float64], number: int) -> dict[str, NDArray[Any]]:
        """The values of some rows, by column."""
        made: dict[str, NDArray[Any]] = dict(zip((*self.axes, *self.names), rows.T, strict=True))
        return {**made, "tile": np.full(len(rows), number, _INT)}


def axis_names(image: Image) -> tuple[str, ...]:
    """A name for each axis: those that the image has, else as axes of space are called."""
    if image.axes is not None:
        return tuple(image.axes)
    return space_names(range(len(image.shape)))


def space_names(axes: Sequence[int]) -> tuple[str, ...]:
    """What axes of space are called that have no names."""
    return tuple("zyx"[-len(axes) :]) if len(axes) <= 3 else tuple(f"axis_{axis}" for axis in axes)


def _checked_names(columns: Sequence[str], axes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or not all(isinstance(name, str) and name for name in columns):
        raise ParameterError(f"columns {columns!r} is not a sequence of names.")
    every = [*axes, *columns, "tile"]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise ParameterError(f"{twice!r} is given twice: the table has the columns {', '.join(every)}. Rename one.")
    return tuple(columns)
