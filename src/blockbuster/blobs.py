"""`detect_blobs`: bright spots of an image, those that the whole image has."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from blockbuster.destination import Destination
from blockbuster.detectors import Method, Scales, make_detector
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import per_axis
from blockbuster.image_files import open_file
from blockbuster.ngff import spatial_axes
from blockbuster.parquet import table_path
from blockbuster.progress import Progress
from blockbuster.rowwise import RowKernel, RowPlan, make_rows
from blockbuster.sources import Image, StoredImage, open_mask, open_source
from blockbuster.spots import Blobs, BlobTable, Occupied, halo_of
from blockbuster.tables import Points, axis_names, space_names
from blockbuster.tiling import TileShape, check_block_ids, make_grid

__all__ = ["detect_blobs"]


def detect_blobs(
    image: Any,
    *,
    method: Method | Callable[[NDArray[Any]], Any] = "log",
    min_sigma: float | Sequence[float] = 1,
    max_sigma: float | Sequence[float] = 50,
    num_sigma: int = 10,
    log_scale: bool = False,
    sigma_ratio: float = 1.6,
    threshold: float | None = None,
    threshold_rel: float | None = None,
    overlap: float = 0.5,
    exclude_border: int | Sequence[int] = 0,
    voxel_size: float | Sequence[float] | None = None,
    sigma_in_units: bool = False,
    channel_axis: int | None = None,
    tile_shape: TileShape = None,
    border: int | Sequence[int] | None = None,
    mask: Any = None,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
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
    r"""Find bright spots: those that the detectors of scikit-image find in the whole image, whatever the tiles.

    Each tile looks at as much around it as can have a say in what is found in it, and keeps the blobs whose centre is
    in its core: none is found twice, none is lost, and no tolerance is needed.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`. Along axes of time and channel each image is searched by itself.
    method : {"log", "dog", "doh"} or callable, default "log"
        Laplacian of Gaussian, difference of Gaussians, or determinant of the Hessian (two axes only):
        ``skimage.feature.blob_log``, ``blob_dog``, ``blob_doh``. Or a function of a block that returns rows as these
        do: coordinates in it, then sigma (one for each axis if `min_sigma` or `max_sigma` are sequences). Its rows are
        taken as they are, and none of the options down to `exclude_border` counts; it needs a `border`.
    min_sigma, max_sigma : float or sequence of float, default 1 and 50
        The smallest and the largest standard deviation, in voxels: one, or one for each axis of space. What a tile
        reads grows with the largest.
    num_sigma : int, default 10
        How many there are from the smallest to the largest ("log", "doh").
    log_scale : bool, default False
        Whether these are evenly spaced by their logarithms ("log", "doh").
    sigma_ratio : float, default 1.6
        Between a standard deviation and the next ("dog").
    threshold : float, optional
        What the response must exceed, at least 0; that of integers is computed with their range as 1. Default, as in
        scikit-image: 0.2, 0.5 and 0.01.
    threshold_rel : None
        Refused: a share of the strongest response depends on the tile.
    overlap : float, default 0.5
        If more than this share of a blob lies in a larger one, it is left out; from 0 to 1.
    exclude_border : int or sequence of int, default 0
        Voxels at the border of the image in which there are no blobs.
    voxel_size : float or sequence of float, optional
        Extent of a voxel, for each axis of space. Default: what an OME-Zarr or a TIFF tells.
    sigma_in_units : bool, default False
        `min_sigma` and `max_sigma` are in the unit of `voxel_size`: round blobs in an image whose voxels are not cubes.
        Rows then have a sigma, in voxels, for each axis.
    channel_axis : int, optional
        The axis of an array that holds channels. Known of stores that name their axes.
    tile_shape : None, int, tuple of int, "auto" or callable
        As in `tile_process`.
    border : int or sequence of int, optional
        Voxels read beyond each side of a tile, for each axis of space. Default: enough for the result of the whole
        image; see Notes. What is given is read, and no more, whether that is enough or not.
    mask : array_like or path, optional
        Of the shape of the image. Blobs are kept whose centre is not 0 in it. Tiles wholly outside are not searched.
    skip_empty : bool, default False
        Do not search tiles whose maximum, border counted, does not exceed `empty_threshold`. Where no response can
        exceed the threshold, tiles are not searched in any case.
    empty_threshold : float, optional
        Needed with `skip_empty`; in the values of the image.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles to search.
    channel, level
        As in `tile_process`.
    write_to : path, optional
        Parquet file to write, which must end in ".parquet". It appears complete or not at all.
    compute, progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `tile_process`.

    Returns
    -------
    blobs : dask.array.Array or numpy.ndarray of float64, shape (nan, axes + sigmas)
        Coordinates of the centres, one for each axis of the image, and sigma, in voxels. Tiles in row-major order,
        within each image of a tile the strongest blob first. With `write_to` read from the file, which has a column for
        each axis, ``sigma``, ``radius`` (voxels; ``sqrt(axes of space) * sigma``, for "doh" ``sigma``),
        ``radius_physical`` where the size of voxels is known, ``channel`` where there are channels, and ``tile``, the
        row-major number of the tile. With a sigma for each axis there are ``sigma_z``, ``radius_z``, and so on.

    Raises
    ------
    GeometryError, ParameterError, ImageError, OutputExistsError, OutputError, ResumeError, SchedulerError
        Before the first task: for options that do not fit the image or the scheduler.
    TileError
        As in `tile_process`. Also if a tile of a numpy array or of a dask graph needs more than it was given: store
        such an image first.

    Notes
    -----
    A tile reads, for s the largest sigma of an axis and n axes of space,

    .. math:: \lceil 4 s \rceil + 1 + \lceil k s \sqrt n \rceil

    voxels beyond each side. The first term is the reach of the filters and the comparison with the next voxels
    (for "dog", s is the first of the series not below `max_sigma`; for "doh" it is ``ceil(1.5 s) + 3``). The second is
    how far a larger blob may be that takes the place of one; k is 1 for an `overlap` of at least 1/2, and 2 below.
    Where that larger one may have to make room itself, for one that lies farther out, the tile reads more, until it is
    known what stays of the blobs in its core.

    The image must be finite: what scikit-image makes of NaN and infinity depends on where it begins.

    Where three blobs overlap in a row, scikit-image leaves what depends on the order in which it happens to look at
    pairs. Here the largest is looked at first, so that there is one result. The determinant of the Hessian is
    computed from sums over all of a block, whose rounding depends on where that begins: equal up to ties.

    A worker holds, for each voxel of a padded tile, the response at each sigma, twice, in 64 bits.

    Examples
    --------
    >>> import numpy as np, scipy.ndimage, blockbuster
    >>> image = np.zeros((40, 40))
    >>> image[10, 12] = image[30, 19] = 1
    >>> image = scipy.ndimage.gaussian_filter(image, 2)
    >>> options = dict(min_sigma=1, max_sigma=3, num_sigma=3, threshold=0.001)
    >>> blockbuster.detect_blobs(image, tile_shape=(20, 20), **options, compute=True)
    array([[10., 12.,  2.],
           [30., 19.,  2.]])
    """
    if threshold_rel is not None:
        raise ParameterError(
            f"threshold_rel {threshold_rel!r} is a share of the strongest response, which depends on the tile. Give "
            "threshold; blockbuster.global_percentiles tells how bright the whole image is."
        )
    source = open_source(image, channel=channel, level=level)
    if source.dtype.kind not in "biuf" or source.dtype.itemsize > 8:
        raise ParameterError(f"The image has dtype {source.dtype}. Blobs are found in images of numbers up to 64 bits.")
    space = _space(image, source, level, channel_axis, voxel_size)
    scales = _scales(space, min_sigma, max_sigma, num_sigma, log_scale, sigma_ratio, in_units=sigma_in_units)
    detector = None if callable(method) else make_detector(method, scales, _number("threshold", threshold))
    table = BlobTable(
        space.names,
        space.axes,
        scales.n_sigmas,
        space.voxel_size,
        space.unit,
        None if detector is None else detector.radius,
        space.channel,
    )
    share, halo = _share(overlap), None if border is None else space.per_axis("border", border)
    if detector is not None:
        # scikit-image spells none as False.
        edge = space.per_axis("exclude_border", 0 if exclude_border is False else exclude_border)
        kernel: RowKernel = Blobs(detector, share, space.axes, space.ndim, halo, edge)
        halo = halo_of(detector, share) if halo is None else halo
    if halo is None:
        raise ParameterError(f"How far the function {method!r} sees is not known. Give border=, in voxels.")
    grid = make_grid(source, tile_shape, space.on_all_axes(halo))
    if callable(method):
        kernel = Points(method, space.axes, grid.overlap, space.names, table.sigmas)
    limit = _empty_limit(skip_empty, empty_threshold)
    plan = RowPlan(
        operation="detect_blobs",
        image=source,
        mask=open_mask(mask, source.shape),
        grid=grid,
        kernel=kernel if limit is None else Occupied(kernel, limit),
        table=table,
        block_ids=check_block_ids(block_ids, grid),
    )
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
    return make_rows(plan, to)


@dataclass(frozen=True)
class _Space:
    """What is known of the axes of an image.

    Attributes
    ----------
    names : tuple of str
        Of all axes.
    axes : tuple of int
        Those of space.
    extents : tuple of int
        Of these, voxels.
    voxel_size : tuple of float or None
        Along these.
    unit : str or None
        Of that.
    channel : int or None
        The channel that was picked.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    extents: tuple[int, ...]
    voxel_size: tuple[float, ...] | None
    unit: str | None
    channel: int | None

    @property
    def ndim(self) -> int:
        """Axes of the image."""
        return len(self.names)

    def per_axis(self, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        """One int of at least 0 for each axis of space."""
        return per_axis(name, value, self.extents, minimum=0)

    def on_all_axes(self, values: Sequence[int]) -> tuple[int, ...]:
        """Values for the axes of space, and 0 for the others."""
        there = dict(zip(self.axes, values, strict=True))
        return tuple(there.get(axis, 0) for axis in range(self.ndim))


def _space(image: Any, source: Image, level: int, channel_axis: int | None, voxel_size: Any) -> _Space:
    names, ndim = list(axis_names(source)), len(source.shape)
    axes = spatial_axes(source.axes, ndim)
    picked = [i for i in source.fixed if i is not None] if isinstance(source, StoredImage) else []
    if channel_axis is not None and picked:
        raise ParameterError(
            f"channel_axis {channel_axis} was given, but channel {picked[0]} of the image is picked already. Give "
            "channel=None, or leave channel_axis away."
        )
    if channel_axis is not None:
        if not hasattr(channel_axis, "__index__") or not -ndim <= channel_axis < ndim:
            raise GeometryError(
                f"channel_axis {channel_axis!r} is none of the {ndim} axes of the image {source.shape}."
            )
        channel_axis %= ndim
        if channel_axis not in axes:
            raise GeometryError(f"channel_axis {channel_axis} is axis {names[channel_axis]!r} of the image already.")
        axes = tuple(axis for axis in axes if axis != channel_axis)
        if source.axes is None:
            names = [*space_names(axes)]
            names.insert(channel_axis, "c")
        else:
            names[channel_axis] = "c"
    if not axes:
        raise GeometryError(f"The image {source.shape} has no axis of space to search for blobs.")
    sizes, unit = _voxel_size(image, source, level, axes, voxel_size)
    return _Space(
        tuple("channel" if name == "c" else name for name in names),
        axes,
        tuple(source.shape[axis] for axis in axes),
        sizes,
        unit,
        picked[0] if picked else None,
    )


def _voxel_size(
    image: Any, source: Image, level: int, axes: Sequence[int], given: Any
) -> tuple[tuple[float, ...] | None, str | None]:
    """The extent of a voxel along the axes of space, and its unit, where that is known."""
    if given is not None:
        sizes = _floats("voxel_size", given, len(axes))
        return sizes, None
    if not isinstance(image, str | os.PathLike) or not isinstance(source, StoredImage):
        return None, None
    form = open_file(os.fspath(image)).form
    kept = [axis for axis, index in enumerate(source.fixed) if index is None]
    units = {form.units[kept[axis]] for axis in axes}
    if units == {None}:
        return None, None
    scale = form.levels[level if len(form.levels) > 1 else 0].scale
    return tuple(scale[kept[axis]] for axis in axes), units.pop() if len(units) == 1 else None


def _scales(
    space: _Space,
    min_sigma: Any,
    max_sigma: Any,
    num_sigma: Any,
    log_scale: bool,
    ratio: Any,
    *,
    in_units: bool,
) -> Scales:
    """The sizes to look for, checked.

    Raises
    ------
    ParameterError
        If a number is out of range.
    """
    n = len(space.axes)
    least, most = _floats("min_sigma", min_sigma, n), _floats("max_sigma", max_sigma, n)
    is_one = not _is_several(min_sigma) and not _is_several(max_sigma)
    if any(a > b for a, b in zip(least, most, strict=True)):
        raise ParameterError(f"min_sigma {min_sigma} exceeds max_sigma {max_sigma}.")
    if not hasattr(num_sigma, "__index__") or isinstance(num_sigma, bool) or num_sigma < 1:
        raise ParameterError(f"num_sigma {num_sigma!r} is no int of at least 1.")
    if not _is_number(ratio) or not 1 < ratio < math.inf:
        raise ParameterError(f"sigma_ratio {ratio!r} is no number above 1.")
    if in_units:
        if space.voxel_size is None:
            raise ParameterError("sigma_in_units=True needs the size of a voxel, which is not known. Give voxel_size=.")
        least, most = (tuple(s / v for s, v in zip(ends, space.voxel_size, strict=True)) for ends in (least, most))
        is_one = False
    return Scales(least, most, is_one, int(num_sigma), bool(log_scale), float(ratio))


def _floats(name: str, value: Any, n: int) -> tuple[float, ...]:
    """One positive number for each of n axes of space."""
    given = list(value) if _is_several(value) else [value] * n
    if len(given) != n:
        raise ParameterError(f"{name} {value!r} has {len(given)} entries, the image has {n} axes of space.")
    if not all(_is_number(v) and 0 < v < math.inf for v in given):
        raise ParameterError(f"{name} {value!r} is not a positive number, or one for each axis of space.")
    return tuple(map(float, given))


def _is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def _number(name: str, value: Any) -> float | None:
    if value is not None and not (_is_number(value) and math.isfinite(value)):
        raise ParameterError(f"{name} {value!r} is no finite number.")
    return None if value is None else float(value)


def _share(overlap: Any) -> float:
    if not _is_number(overlap) or not 0 <= overlap <= 1:
        raise ParameterError(f"overlap {overlap!r} is no share of a blob. Give a number from 0 to 1.")
    return float(overlap)


def _empty_limit(skip_empty: bool, empty_threshold: Any) -> float | None:
    """What a tile must exceed to be searched."""
    limit = _number("empty_threshold", empty_threshold)
    if not skip_empty:
        if limit is not None:
            raise ParameterError(f"empty_threshold {empty_threshold} has no effect without skip_empty=True.")
        return None
    if limit is None:
        raise ParameterError(
            "skip_empty=True needs empty_threshold: where nothing can exceed the threshold of the detector, tiles are "
            "not searched in any case. blockbuster.estimate_empty_tiles shows how bright tiles are."
        )
    return limit
