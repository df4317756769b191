"""`downsample`: an image smaller by integer factors; and the levels of pyramids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from blockbuster.destination import Destination
from blockbuster.encoding import Compression, Encoding, ZarrFormat, check_format
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.ngff import Level
from blockbuster.progress import Progress
from blockbuster.resampling import Method, Resampling, check_factors, make_resampling, reduced_shape
from blockbuster.sources import Image, open_source
from blockbuster.storing import Storage, plan_array, stored_chunks
from blockbuster.tilewise import ArrayPlan, Kernel, make_array
from blockbuster.tiling import TileShape, make_writing_grid

__all__ = ["Ladder", "downsample", "level_plans", "make_ladder"]

# A coarsest level of at most this many voxels along an axis is drawn at once.
_SMALL = 256


def downsample(
    image: Any,
    scale_factor: int | Sequence[int],
    *,
    order: int = 0,
    anti_aliasing: bool = False,
    method: Method | None = None,
    mask: Any = None,
    block_ids: Sequence[int] | None = None,
    tile_shape: TileShape = None,
    chunks: int | Sequence[int] | None = None,
    shards: Any = "keep",
    compression: Compression = "keep",
    zarr_format: ZarrFormat | None = None,
    channel: int | str | None = None,
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
    """Make an image smaller by an integer factor per axis: what the whole image gives, whatever the tiles.

    An axis of n voxels gets ceil(n / f), each f times as large as before, exactly.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`; of any dtype of numbers, with any number of axes.
    scale_factor : int or tuple of int
        Input voxels per output voxel, at least 1: one for all axes, but for time and channel where the store names its
        axes; or one per axis.
    order : int, default 0
        0: ``image[::f]``; no value appears that was not there, so it suits labels. 1 to 5: a spline of that order,
        sampled at ``(i + 1/2) f - 1/2``, the centre of the f voxels that output voxel i stands for; the image is
        mirrored at its border, its edge voxels not repeated. That is ``scipy.ndimage`` with ``mode="mirror"``, and
        where f divides n ``skimage.transform.resize(..., clip=False, preserve_range=True)``.
    anti_aliasing : bool, default False
        With an order of 1 to 5: blur before, by a Gaussian of sigma (f - 1) / 2.
    method : {"mean", "median", "mode", "mode-nonzero", "max", "min"}, optional
        In place of an order: one value for each cell of f voxels per axis, those at the end of an axis smaller where
        f does not divide n. Exact: integer means and medians are rounded, halves to even. "mode": the most frequent
        value, the smallest of several. "mode-nonzero": the same of those other than 0, which keeps small objects.
    mask : array_like or path, optional
        Of the shape of the result. Only voxels within it are made; as in `copy`.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles of the result to make; as in `copy`.
    tile_shape : None, int, tuple of int, "auto" or callable
        Voxels of the result that a task makes, as in `copy`. The result does not depend on it (splines:
        by less than what rounding makes of 64-bit numbers).
    chunks, shards, compression, zarr_format
        How the result is stored, as in `copy`.
    channel : int, str or None, default None
        For paths: one channel only.
    level : int, default 0
        For paths: the level to start from.
    write_to, output_component, compute, progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `copy`.

    Returns
    -------
    smaller : dask.array.Array or numpy.ndarray, of the dtype of `image`
        Integers of orders 1 to 5 are rounded, halves to even, and clipped to the dtype.

    Raises
    ------
    GeometryError
        If a factor is no int of at least 1, or there are not as many as axes.
    ParameterError
        If `order`, `anti_aliasing` and `method` are unknown, or do not go together.
    BlockbusterError
        As in `copy`.

    Notes
    -----
    A task reads the f voxels of each of its own; of an image in a dask graph all at once, else in parts of some MiB
    (orders from 2: up to 256 MiB, or what their reach asks for). For orders from 1 it reads more on each side of an
    axis with f > 1: ``order // 2 + 1`` voxels for the spline; ``ceil(log(1e-13) / log(z))`` for its prefilter from
    order 2 on, where z, 0.17, 0.27, 0.36 and 0.43 for the orders 2 to 5, is how much the influence of a voxel falls
    from one to the next; and ``int(4 sigma + 1/2)`` for the blur.

    Splines from order 2 on spread a NaN over their block: what is NaN then depends on the tiles. All other ways keep it
    in the voxels that it counts for.

    Where the first voxel of the image has its centre at 0, that of the result has it at 0 for ``order=0``, else at
    ``(f - 1) / 2``.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 6)
    >>> blockbuster.downsample(image, 2).compute()
    array([[0, 2, 4]], dtype=uint8)
    >>> blockbuster.downsample(image, (1, 3), method="max", compute=True)
    array([[ 2,  5],
           [ 8, 11]], dtype=uint8)
    """
    source = open_source(image, channel=channel, level=level)
    factors = check_factors(scale_factor, source.shape, source.axes)
    kernel = make_resampling(factors, order=order, anti_aliasing=anti_aliasing, method=method)
    _check_dtype(kernel, source.dtype)
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
    plan = plan_array(
        "downsample",
        source,
        kernel,
        to,
        Storage(chunks, shards, compression, check_format(zarr_format)),
        shape=reduced_shape(source.shape, factors),
        dtype=source.dtype,
        tile_shape=tile_shape,
        mask=mask,
        block_ids=block_ids,
    )
    return make_array(plan, to)


# Pyramids


@dataclass(frozen=True)
class Ladder:
    """The levels of a pyramid below its first.

    Attributes
    ----------
    kernels : tuple of Resampling
        How each level is made from the one before.
    shapes : tuple of tuple of int
        Of all levels, the first as well.
    """

    kernels: tuple[Resampling, ...]
    shapes: tuple[tuple[int, ...], ...]

    def placed(self, first: Level, names: Sequence[str]) -> Iterator[Level]:
        """Where the levels lie, from the first on."""
        level = replace(first, path=names[0])
        yield level
        for kernel, name in zip(self.kernels, names[1:], strict=True):
            scale = tuple(s * f for s, f in zip(level.scale, kernel.factors, strict=True))
            moved = zip(level.translation, level.scale, kernel.shift, strict=True)
            level = Level(name, scale, tuple(t + s * shift for t, s, shift in moved))
            yield level


def make_ladder(
    shape: Sequence[int],
    axes: str,
    dtype: np.dtype[Any],
    *,
    n_levels: int | None,
    scale_factor: int | Sequence[int],
    method: Method | None,
    order: int = 0,
    anti_aliasing: bool = False,
) -> Ladder:
    """The levels of a pyramid.

    Parameters
    ----------
    n_levels : int or None
        The first counted. None: until no axis that shrinks has more than 256 voxels.
    scale_factor : int, or sequence of int, or sequence of these
        From level to level: one for all spatial axes, one per axis, or one such for each level below the first.

    Raises
    ------
    GeometryError, ParameterError
        If there cannot be such levels.
    """
    if n_levels is not None and (not hasattr(n_levels, "__index__") or isinstance(n_levels, bool) or n_levels < 1):
        raise ParameterError(f"n_levels {n_levels!r} is no int of at least 1. One level is the image itself.")
    several = isinstance(scale_factor, Sequence) and any(isinstance(one, Sequence) for one in scale_factor)
    steps = _steps(scale_factor, n_levels, several)
    _check_numbers(dtype)
    shapes, kernels = [tuple(shape)], []
    for step in steps:
        factors = check_factors(step, shapes[-1], axes)
        # What cannot shrink any more stays.
        factors = tuple(f if n > 1 else 1 for f, n in zip(factors, shapes[-1], strict=True))
        shrinking = [n for n, f in zip(shapes[-1], factors, strict=True) if f > 1]
        if "c" in axes and factors[axes.index("c")] > 1:
            raise GeometryError(f"scale_factor {step!r} would join channels: it must be 1 on axis 'c' of {axes!r}.")
        if n_levels is None and not several and max(shrinking, default=0) <= _SMALL:
            break
        kernel = make_resampling(factors, order=order, anti_aliasing=anti_aliasing, method=method)
        _check_dtype(kernel, dtype)
        kernels.append(kernel)
        shapes.append(reduced_shape(shapes[-1], factors))
    return Ladder(tuple(kernels), tuple(shapes))


def level_plans(
    image: Image,
    first: Kernel | None,
    ladder: Ladder,
    names: Sequence[str],
    encodings: Sequence[Encoding],
    dtype: np.dtype[Any],
) -> list[ArrayPlan]:
    """The arrays of a pyramid, each made from the one before.

    Parameters
    ----------
    image : Image
        What the first is made from.
    first : Kernel or None
        How; None where it is there already, and not to be made.
    names : sequence of str
        Of the arrays that are made.
    encodings : sequence of Encoding
        How they are stored.
    dtype : dtype
        Of all of them.
    """
    kernels: list[Kernel] = [*([first] if first is not None else []), *ladder.kernels]
    shapes = ladder.shapes[len(ladder.shapes) - len(kernels) :]
    source: Image | str = image
    reads: Sequence[int] = stored_chunks(image)
    plans = []
    for kernel, shape, name, encoding in zip(kernels, shapes, names, encodings, strict=True):
        factors = getattr(kernel, "factors", (1,) * len(shape))
        seen = [max(n // f, 1) for n, f in zip(reads, factors, strict=True)]
        grid = make_writing_grid(shape, None, encoding.unit, dtype=dtype, reads=seen)
        plans.append(ArrayPlan(source, kernel, grid, dtype, name=name, encoding=encoding))
        source, reads = name, encoding.unit
    return plans


def _steps(scale_factor: Any, n_levels: int | None, several: bool) -> Iterator[Any]:
    """The factors from level to level, one after the other."""
    if several and n_levels not in (None, len(scale_factor) + 1):
        raise GeometryError(
            f"scale_factor {scale_factor!r} makes {len(scale_factor) + 1} levels, but n_levels is {n_levels}."
        )
    if several:
        yield from scale_factor
        return
    count = 0
    while n_levels is None or count < n_levels - 1:
        yield scale_factor
        count += 1


def _check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biufc":
        raise ParameterError(f"The image has dtype {dtype}, which is none of numbers.")


def _check_dtype(kernel: Resampling, dtype: np.dtype[Any]) -> None:
    _check_numbers(dtype)
    method, order = getattr(kernel, "method", None), getattr(kernel, "order", 0)
    if dtype.kind == "c" and (order or method not in (None, "mean")):
        asked = f"order {order}" if order else f"method {method!r}"
        raise ParameterError(f"{asked} is not defined for complex numbers; the image has dtype {dtype}.")
