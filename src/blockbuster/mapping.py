"""`map_tiles`: any function of an image, tile by tile, that gives an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from blockbuster.destination import Destination
from blockbuster.encoding import Compression, ZarrFormat, check_format
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import Region, TileGrid, per_axis, region_shape
from blockbuster.identity import function_identity
from blockbuster.progress import Progress
from blockbuster.schedulers import active_scheduler, check_picklable
from blockbuster.sources import Image, open_source
from blockbuster.storing import Axes, Storage, plan_array
from blockbuster.tilewise import TilePlan, make_array
from blockbuster.tiling import TileShape, make_grid

__all__ = ["TileFunction", "map_tiles"]


@dataclass(frozen=True)
class TileFunction:
    """A function of a padded tile as a kernel.

    Attributes
    ----------
    identity : str
        What tells the function from others.
    axes : tuple of (int or None)
        For each axis of the result that of the image which it is; None for one that is new.
    overlap : tuple of int
        Voxels that are read beyond each side, per axis of the result.
    """

    function: Callable[[NDArray[Any]], NDArray[Any]] = field(repr=False)
    identity: str
    axes: Axes
    dtype: np.dtype[Any]
    overlap: tuple[int, ...] = ()
    whole_tiles = True

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """The region with its halo, clipped at the border of the image; axes that are dropped, whole."""
        found = [slice(0, n) for n in shape]
        for s, o, axis in zip(region, self.overlap, self.axes, strict=True):
            if axis is not None:
                found[axis] = slice(max(s.start - o, 0), min(s.stop + o, shape[axis]))
        return tuple(found)

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """What the function makes of the padded tile, trimmed.

        Raises
        ------
        TypeError, ValueError
            If that is no array of the right shape, or of a dtype or values that the dtype of the result does not take.
        """
        read = self.source(region, shape)
        padded = region_shape(read)
        made = self.function(block)
        self._check(made, padded, region)
        starts = [s.start if axis is None else read[axis].start for s, axis in zip(region, self.axes, strict=True)]
        core = made[tuple(slice(s.start - a, s.stop - a) for s, a in zip(region, starts, strict=True))]
        self._check_fits(core)
        return core.astype(self.dtype, copy=False)

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Those of the block, and as many for what becomes of it."""
        return 2 * dtype.itemsize

    def image_grid(self, grid: TileGrid, shape: Sequence[int]) -> TileGrid:
        """The tiles of the image that those of the result are made of, by the same numbers."""
        bounds: list[tuple[int, ...]] = [(0, n) for n in shape]
        overlap = [0] * len(shape)
        for cuts, o, axis in zip(grid.bounds, grid.overlap, self.axes, strict=True):
            if axis is not None:
                bounds[axis], overlap[axis] = cuts, o
        return TileGrid(tuple(shape), tuple(bounds), tuple(overlap))

    def _check(self, made: Any, padded: tuple[int, ...], region: Region) -> None:
        extents = region_shape(region)
        expected = tuple(n if axis is None else padded[axis] for n, axis in zip(extents, self.axes, strict=True))
        if not isinstance(made, np.ndarray):
            raise TypeError(f"the function returned {type(made).__name__}; expected a numpy array of shape {expected}.")
        if made.shape != expected:
            raise ValueError(
                f"the function returned shape {made.shape} for a padded tile of shape {padded}; expected {expected}: "
                "that of the padded tile, less the axes in drop_axis, and with those in new_axis."
            )
        if not np.can_cast(made.dtype, self.dtype, "same_kind"):
            raise TypeError(
                f"the function returned {made.dtype}, which is not cast to {self.dtype}: give dtype='{made.dtype}'."
            )

    def _check_fits(self, core: NDArray[Any]) -> None:
        """Refuse integers that a narrower dtype would wrap around."""
        if self.dtype.kind not in "iu" or np.can_cast(core.dtype, self.dtype):
            return
        info, low, high = np.iinfo(self.dtype), int(core.min()), int(core.max())
        if low < info.min or high > info.max:
            raise ValueError(
                f"the function returned {core.dtype} from {low} to {high}, which {self.dtype} cannot hold: give "
                f"dtype='{core.dtype}'."
            )


def map_tiles(
    image: Any,
    fn: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    tile_shape: TileShape = None,
    overlap: int | Sequence[int] = 0,
    dtype: DTypeLike | None = None,
    drop_axis: int | Sequence[int] | None = None,
    new_axis: int | Sequence[int] | Mapping[int, int] | None = None,
    mask: Any = None,
    block_ids: Sequence[int] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: Any = "keep",
    compression: Compression = "keep",
    zarr_format: ZarrFormat | None = None,
    channel: int | str | None = 0,
    level: int = 0,
    write_to: str | os.PathLike[str] | None = None,
    output_component: str = "",
    compute: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """Apply a function to an image tile by tile: denoise it, deconvolve it, predict from it.

    Where what `fn` does at a voxel depends only on voxels within `overlap` of it, the result is what `fn` makes of the
    whole image.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`. Never written.
    fn : callable
        ``ndarray -> ndarray`` of the same shape, but for `drop_axis` and `new_axis`. Called exactly once per tile, with
        the tile and `overlap` voxels around it, clipped at the border of the image, never mirrored. It may write to
        what it is given. Must be picklable to leave this process.
    tile_shape : None, int, tuple of int, "auto" or callable
        Voxels of the image per tile and axis. None: its chunks; with `write_to` whole chunks or shards of the result,
        as in `copy`. Must span the axes in `drop_axis`; None and "auto" do. A callable gets ``(shape, dtype)``.
    overlap : int or tuple of int, default 0
        Voxels of the image read beyond each side of a tile; trimmed from the result. An int is 0 on axes where the tile
        is one voxel thick; a tuple is taken as given.
    dtype : dtype, optional
        Of the result. Default: that of `image`. What `fn` returns is cast to it within its kind, such as float64 to
        float32. It is an error if it is of a larger kind, such as floats for integers, or has integers that do not fit.
    drop_axis : int or sequence of int, optional
        Axes of the image that `fn` removes, such as that of a projection. They are whole in each tile.
    new_axis : int, sequence of int, or mapping of int to int, optional
        Axes of the result that `fn` adds, such as that of classes: of extent 1, or ``{axis: extent}``. They are whole
        in each tile.
    mask : array_like or path, optional
        Of the shape of the result. Only voxels within it are made; `fn` is called for tiles that it meets only. As in
        `copy`.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles of the result to make; as in `copy`.
    chunks, shards, compression, zarr_format
        How the result is stored, as in `copy`.
    channel : int, str or None, default 0
        For paths: the channel, as in `tile_process`; None for all.
    level : int, default 0
        For paths: the level of the pyramid.
    write_to, output_component, compute, progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `copy`.

    Returns
    -------
    made : dask.array.Array or numpy.ndarray of `dtype`
        Of the shape of the image, less `drop_axis`, and with `new_axis`. With `write_to` backed by the store.

    Raises
    ------
    ParameterError
        If `fn` cannot be called, or `dtype` is none of numbers.
    GeometryError
        If `drop_axis` or `new_axis` do not fit the image, or a tile does not span a dropped axis.
    BlockbusterError
        As in `copy`, before the first task.
    TileError
        If `fn` fails on a tile, or returns another shape than it must, or what `dtype` does not take. It names the
        tile, and has the original as its cause. With `write_to` the other tiles are finished first, and kept for
        ``resume=True``.

    Notes
    -----
    Each worker holds one padded tile and what `fn` makes of it; memory does not grow with the image. The result does
    not depend on the scheduler, nor on the tiles where `fn` rounds alike whatever the shape of its block: filters of
    SciPy do so for integers and mostly for floats, what uses Fourier transforms does not.

    Examples
    --------
    A median filter reaches one voxel:

    >>> import numpy as np, scipy.ndimage, blockbuster
    >>> def smooth(tile):
    ...     return scipy.ndimage.median_filter(tile, 3)
    >>> image = np.arange(64, dtype=np.uint8).reshape(8, 8) % 7
    >>> smoothed = blockbuster.map_tiles(image, smooth, tile_shape=(4, 4), overlap=1)
    >>> bool((smoothed.compute() == smooth(image)).all())
    True

    A projection over the first axis:

    >>> blockbuster.map_tiles(image, lambda tile: tile.max(0), drop_axis=0, tile_shape=(8, 2), compute=True)
    array([6, 6, 6, 6, 6, 6, 6, 6], dtype=uint8)
    """
    if not callable(fn):
        raise ParameterError(f"fn {fn!r} cannot be called. Give a function of a numpy array that returns one.")
    source = open_source(image, channel=channel, level=level)
    if not source.shape:
        raise GeometryError("The image has no axes, only one value. Give an array with at least one axis.")
    axes, shape = _result_axes(source.shape, drop_axis, new_axis)
    made_of = _check_dtype(source.dtype if dtype is None else dtype)
    check_picklable(active_scheduler(), "fn", fn)
    to = Destination(
        write_to=write_to,
        output_component=output_component,
        compute=compute,
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    kernel = TileFunction(fn, function_identity(fn), axes, made_of)
    plan = plan_array(
        "map_tiles",
        source,
        kernel,
        to,
        Storage(chunks, shards, compression, check_format(zarr_format)),
        shape=shape,
        dtype=made_of,
        tile_shape=_result_tiles(source, tile_shape, axes, shape, overlap, is_stored=write_to is not None),
        mask=mask,
        block_ids=block_ids,
        axes=axes,
        overlap=overlap,
    )
    return make_array(_with_halo(plan, kernel), to)


def _with_halo(plan: TilePlan, kernel: TileFunction) -> TilePlan:
    """The plan whose kernel reads what its tiles overlap, which depends on how thick they are."""
    (array,) = plan.arrays
    return replace(plan, arrays=(replace(array, kernel=replace(kernel, overlap=array.grid.overlap)),))


# From options to axes


def _result_axes(shape: tuple[int, ...], drop_axis: Any, new_axis: Any) -> tuple[Axes, tuple[int, ...]]:
    """The axes of the result, and its shape."""
    extents = dict(new_axis) if isinstance(new_axis, Mapping) else None
    dropped = _axes_in("drop_axis", drop_axis, len(shape), f"the image {shape} has")
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    asked = new_axis if extents is None else list(extents)
    n_new = 0 if asked is None else len(_as_list(asked))
    ndim = len(kept) + n_new
    new = _axes_in("new_axis", asked, ndim, f"the result, {n_new} new ones counted, has")
    if not ndim:
        raise GeometryError(f"drop_axis {drop_axis!r} leaves no axis of the image {shape}. Leave at least one.")
    sizes = [1] * n_new if extents is None else list(extents.values())
    by_axis = dict(zip(new, per_axis("new_axis extents", sizes, sizes, minimum=1), strict=True))
    left = iter(kept)
    axes = tuple(None if axis in by_axis else next(left) for axis in range(ndim))
    return axes, tuple(by_axis[n] if a is None else shape[a] for n, a in enumerate(axes))


def _axes_in(name: str, value: Any, ndim: int, whose: str) -> list[int]:
    """Axes by their numbers, from the end where they are negative."""
    if value is None:
        return []
    given = _as_list(value)
    if not all(hasattr(a, "__index__") and not isinstance(a, bool) and -ndim <= a < ndim for a in given):
        raise GeometryError(f"{name} {value!r} is not of axes: {whose} {ndim} axes, numbered 0..{ndim - 1}.")
    found = [int(a) % ndim for a in given]
    if len(set(found)) < len(found):
        raise GeometryError(f"{name} {value!r} names an axis twice. Give each axis once.")
    return found


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        made = np.dtype(dtype)
    except TypeError:
        made = None
    if made is None or made.kind not in "biufc":
        raise ParameterError(f"dtype {dtype!r} is none of numbers. Choose one such as 'float32' or 'uint16'.")
    return made.newbyteorder("=")


def _result_tiles(
    image: Image,
    tile_shape: TileShape,
    axes: Axes,
    shape: Sequence[int],
    overlap: int | Sequence[int],
    *,
    is_stored: bool,
) -> TileShape:
    """Tiles of the image as tiles of the result.

    Raises
    ------
    GeometryError
        If they do not span the axes that are dropped.
    """
    if tile_shape is None or (isinstance(tile_shape, str) and is_stored):
        return tile_shape
    if isinstance(tile_shape, str):
        tiles: Any = make_grid(image, tile_shape, overlap).tile_shape
    else:
        tiles = tile_shape(image.shape, image.dtype) if callable(tile_shape) else tile_shape
        tiles = per_axis("tile_shape", tiles, image.shape, minimum=1)
        _check_whole(tiles, image.shape, axes)
    return tuple(n if a is None else max(tiles[a], 1) for n, a in zip(shape, axes, strict=True))


def _check_whole(tiles: Sequence[int], shape: Sequence[int], axes: Axes) -> None:
    cut = [axis for axis, (t, n) in enumerate(zip(tiles, shape, strict=True)) if axis not in axes and t < n]
    if cut:
        raise GeometryError(
            f"tile_shape {tuple(tiles)} cuts the axes {cut} of the image {tuple(shape)}, which drop_axis removes: a "
            f"tile must span them. Give {tuple(shape[axis] for axis in cut)} voxels there, or tile_shape=None."
        )
