"""Downsampling by integer factors: which voxels of an image a region of the result needs, and what it makes of them.

Output voxel i of an axis with factor f stands for the cell of input voxels i f .. (i + 1) f - 1::

    input      0   1   2   3   4   5   6          f = 3, n = 7: ceil(7 / 3) = 3 output voxels
               [    0    ] [    1    ] [ 2
    strided    ^           ^           ^          at i f
    centred        ^           ^           ^      at (i + 1/2) f - 1/2; the last is beyond the border, and is mirrored

All coordinates are formed in the frame of the whole image, so that no result depends on the tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from blockbuster.casting import rounded
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import Region

__all__ = [
    "Cells",
    "Interpolation",
    "Method",
    "Resampling",
    "Stride",
    "check_factors",
    "make_resampling",
    "reduced_shape",
]

Method: TypeAlias = Literal["mean", "median", "mode", "mode-nonzero", "max", "min"]

# Poles of largest modulus of the B-spline prefilters (Unser, Aldroubi & Eden, IEEE Trans. Signal Process. 41, 1993):
# the influence of a voxel on the coefficients falls with their powers.
_POLES = {2: 0.171573, 3: 0.267949, 4: 0.361341, 5: 0.430575}
_NEGLIGIBLE = 1e-13
# Samples of integers are taken for equal that differ by less: what is half-way in theory is rounded alike in all tiles.
_SAME = 2.0**-20
# Standard deviations at which scipy cuts a Gaussian.
_TRUNCATE = 4.0
_MAX_ORDER = 5
# Voxels that are reduced at once.
_SLAB = 1 << 19


class Resampling(Protocol):
    """Makes any region of a smaller image from some region of an image."""

    @property
    def factors(self) -> tuple[int, ...]:
        """Input voxels per output voxel and axis."""

    @property
    def shift(self) -> tuple[float, ...]:
        """Where the centre of output voxel 0 lies, in input voxels from the centre of input voxel 0."""

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """What `region` of the result needs of an image of `shape`."""

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """`region` of the result, of the dtype of `block`, which is what `source` says."""

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes that each voxel of the block takes while it is worked on."""


@dataclass(frozen=True)
class Stride:
    """Every f-th voxel: ``image[::f]``."""

    factors: tuple[int, ...]

    @property
    def shift(self) -> tuple[float, ...]:
        """None: output voxels are where their input voxels are."""
        return (0.0,) * len(self.factors)

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """From the first voxel to the last."""
        return tuple(slice(s.start * f, (s.stop - 1) * f + 1) for s, f in zip(region, self.factors, strict=True))

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """The voxels themselves."""
        return block[tuple(slice(None, None, f) for f in self.factors)]

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Those of the block."""
        return dtype.itemsize


@dataclass(frozen=True)
class Cells:
    """One value for each cell of f voxels per axis; cells at the end of an axis may be smaller."""

    factors: tuple[int, ...]
    method: Method

    @property
    def shift(self) -> tuple[float, ...]:
        """From the first voxel of a cell to its centre."""
        return tuple((f - 1) / 2 for f in self.factors)

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """Whole cells, cut at the border of the image."""
        bounds = zip(region, self.factors, shape, strict=True)
        return tuple(slice(s.start * f, min(s.stop * f, n)) for s, f, n in bounds)

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """The values of the cells."""
        block = block.astype(block.dtype.newbyteorder("="), copy=False)
        out = np.empty(tuple(-(-n // f) for n, f in zip(block.shape, self.factors, strict=True)), block.dtype)
        for cell, part, where in _whole_cells(block.shape, self.factors):
            for slab, to in _slabs(part, where, cell):
                # Of infinities of both signs there is no mean: it is NaN.
                with np.errstate(invalid="ignore", over="ignore"):
                    out[to] = _REDUCTIONS[self.method](block[slab], cell)
        return out

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Those of the block: what comes of it is made slab by slab."""
        return dtype.itemsize


@dataclass(frozen=True)
class Interpolation:
    """Splines sampled at the centres of the cells, the image mirrored at its border, its edge voxels not repeated.

    Attributes
    ----------
    order : int
        Of the spline, 1 to 5.
    anti_aliasing : bool
        Whether a Gaussian of sigma (f - 1) / 2 comes first.
    """

    factors: tuple[int, ...]
    order: int
    anti_aliasing: bool

    @property
    def shift(self) -> tuple[float, ...]:
        """From the first voxel of a cell to its centre."""
        return tuple((f - 1) / 2 for f in self.factors)

    @property
    def reach(self) -> tuple[int, ...]:
        """Voxels, per axis, that count beyond the outermost centres."""
        return tuple(self._reach(f) if f > 1 else 0 for f in self.factors)

    def _reach(self, factor: int) -> int:
        taps = self.order // 2 + 1
        decay = math.ceil(math.log(_NEGLIGIBLE) / math.log(_POLES[self.order])) if self.order > 1 else 0
        blur = int(_TRUNCATE * self._sigma(factor) + 0.5)
        return int(taps + decay + blur)

    def _sigma(self, factor: int) -> float:
        return (factor - 1) / 2 if self.anti_aliasing else 0.0

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """Around the centres, mirrored where they are beyond the border."""
        bounds = zip(region, self.factors, self.reach, shape, strict=True)
        return tuple(_around_centres(s, f, reach, n) for s, f, reach, n in bounds)

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """The samples, rounded and clipped to integer dtypes."""
        if all(f == 1 for f in self.factors):
            return block
        kept = [axis for axis, f in enumerate(self.factors) if f == 1]
        out = np.empty(tuple(s.stop - s.start for s in region), block.dtype.newbyteorder("="))
        starts = [s.start for s in self.source(region, shape)]
        scaled = [axis for axis in range(block.ndim) if axis not in kept]
        offsets = [self._offset(region[axis], self.factors[axis], starts[axis]) for axis in scaled]
        factors = [self.factors[axis] for axis in scaled]
        for index in itertools.product(*(range(block.shape[axis]) for axis in kept)):
            where = _at(index, kept, block.ndim)
            sampled = self._sample(block[where], factors, offsets, out[where].shape)
            if block.dtype.kind in "biu":
                sampled = np.rint(sampled / _SAME) * _SAME
            out[where] = rounded(sampled, out.dtype)
        return out

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Those of the block, of the blurred one, and of the coefficients of its spline."""
        return dtype.itemsize + 2 * 8

    @staticmethod
    def _offset(region: slice, factor: int, start: int) -> float:
        first: float = (region.start + 0.5) * factor - 0.5
        return first - start

    def _sample(
        self, block: NDArray[Any], factors: Sequence[int], offsets: Sequence[float], shape: tuple[int, ...]
    ) -> NDArray[np.float64]:
        from scipy import ndimage

        smooth = block.astype(np.float64)
        if self.anti_aliasing:
            smooth = ndimage.gaussian_filter(smooth, list(map(self._sigma, factors)), mode="mirror", truncate=_TRUNCATE)
        sampled: NDArray[np.float64] = ndimage.affine_transform(
            smooth,
            np.array(factors, float),
            list(offsets),
            shape,
            order=self.order,
            mode="mirror",  # type: ignore[call-overload]
        )
        return sampled


def make_resampling(factors: tuple[int, ...], *, order: Any, anti_aliasing: Any, method: Any) -> Resampling:
    """The way of downsampling that some options ask for.

    Raises
    ------
    ParameterError
        If they are none of those there are, or do not go together.
    """
    if not hasattr(order, "__index__") or isinstance(order, bool) or not 0 <= order <= _MAX_ORDER:
        raise ParameterError(f"order {order!r} is not an int from 0 to {_MAX_ORDER}.")
    if not isinstance(anti_aliasing, bool | np.bool_):
        raise ParameterError(f"anti_aliasing {anti_aliasing!r} is neither True nor False.")
    if method is not None and method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)))
        raise ParameterError(f"method {method!r} is unknown. Choose one of {known}, or None for splines of an order.")
    if method is not None and (order or anti_aliasing):
        raise ParameterError(
            f"method {method!r} reduces cells: order {order} and anti_aliasing {anti_aliasing} have no meaning with it."
        )
    if method is not None:
        return Cells(factors, method)
    if order == 0 and anti_aliasing:
        raise ParameterError("anti_aliasing=True makes new values, which order=0 never does. Give an order of 1 to 5.")
    return Interpolation(factors, int(order), bool(anti_aliasing)) if order else Stride(factors)


def check_factors(value: Any, shape: Sequence[int], axes: str | None = None) -> tuple[int, ...]:
    """One factor per axis.

    Parameters
    ----------
    value : int or sequence of int
        One for all axes but time and channel, where the axes are known; or one per axis.

    Raises
    ------
    GeometryError
        If there are not as many as axes, or one is no int of at least 1.

    Examples
    --------
    >>> check_factors(2, (3, 64, 64), "cyx")
    (1, 2, 2)
    """
    single = not isinstance(value, Iterable) or isinstance(value, str | bytes) or getattr(value, "ndim", 1) == 0
    given = [value] * len(shape) if single else list(value)
    if len(given) != len(shape):
        raise GeometryError(
            f"scale_factor {tuple(given)} has {len(given)} entries, the image has {len(shape)} axes {tuple(shape)}. "
            "Give one int, or one per axis."
        )
    for factor in given:
        if not hasattr(factor, "__index__") or isinstance(factor, bool | np.bool_) or factor < 1:
            raise GeometryError(
                f"scale_factor {value!r} must be made of ints of at least 1; {factor!r} is none. A factor of 2 halves "
                "an axis."
            )
    if not single:
        return tuple(map(int, given))
    still = [axes is not None and axes[axis] in "tc" for axis in range(len(shape))]
    return tuple(1 if kept else int(factor) for factor, kept in zip(given, still, strict=True))


def reduced_shape(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Shape of the result: ceil(n / f).

    Examples
    --------
    >>> reduced_shape((7, 8), (2, 2))
    (4, 4)
    """
    return tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))


# Interpolation


def _around_centres(region: slice, factor: int, reach: int, extent: int) -> slice:
    if factor == 1:
        return region
    first, last = (region.start + 0.5) * factor - 0.5, (region.stop - 0.5) * factor - 0.5
    low, high = math.floor(first) - reach, math.ceil(last) + reach + 1
    beyond = last - (extent - 1)
    if beyond > 0:
        # What lies beyond is the mirror image of what lies as far before the border.
        low = min(low, math.floor(extent - 1 - beyond) - reach)
    return slice(max(low, 0), min(high, extent))


def _at(index: Sequence[int], axes: Sequence[int], ndim: int) -> tuple[int | slice, ...]:
    chosen = dict(zip(axes, index, strict=True))
    return tuple(chosen.get(axis, slice(None)) for axis in range(ndim))


# Cells

Cell: TypeAlias = tuple[int, ...]


def _whole_cells(shape: Sequence[int], factors: Sequence[int]) -> Iterator[tuple[Cell, Region, Region]]:
    """Parts of a block that are made of cells of one shape: those, the part, and where it is in the result."""
    choices = []
    for n, f in zip(shape, factors, strict=True):
        whole, rest = divmod(n, f)
        choices.append([(f, slice(0, whole * f), slice(0, whole))] if whole else [])
        choices[-1] += [(rest, slice(whole * f, n), slice(whole, whole + 1))] if rest else []
    for chosen in itertools.product(*choices):
        yield tuple(c for c, _, _ in chosen), tuple(p for _, p, _ in chosen), tuple(w for _, _, w in chosen)


def _slabs(part: Region, where: Region, cell: Cell) -> Iterator[tuple[Region, Region]]:
    """A part and its place in the result, cut into slabs whose intermediate results stay in the cache."""
    extents = [s.stop - s.start for s in where]
    axis = next((axis for axis, n in enumerate(extents) if n > 1), 0)
    layer = math.prod(s.stop - s.start for s in part) // max(extents[axis], 1)
    step = max(_SLAB // max(layer, 1), 1)
    for begin in range(0, extents[axis], step):
        end = min(begin + step, extents[axis])
        source, target = list(part), list(where)
        source[axis] = slice(part[axis].start + begin * cell[axis], part[axis].start + end * cell[axis])
        target[axis] = slice(where[axis].start + begin, where[axis].start + end)
        yield tuple(source), tuple(target)


def _along_axes(block: NDArray[Any], cell: Cell, join: np.ufunc, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Join the voxels of each cell, axis by axis: the first are contiguous, and leave less to do.

    Parameters
    ----------
    dtype : dtype, optional
        To join them in. Default: that of the block.
    """
    wide = block.dtype if dtype is None else dtype
    for axis, f in enumerate(cell):
        if f > 1:
            joined = join(_strided(block, axis, f, 0), _strided(block, axis, f, 1), dtype=wide)
            for k in range(2, f):
                join(joined, _strided(block, axis, f, k), out=joined)
            block = joined
    return block.astype(wide, copy=False)


def _strided(block: NDArray[Any], axis: int, step: int, begin: int) -> NDArray[Any]:
    return block[(slice(None),) * axis + (slice(begin, None, step),)]


def _max(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    return _along_axes(block, cell, np.maximum)


def _min(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    return _along_axes(block, cell, np.minimum)


def _mean(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    """Exact, rounded to the nearest for integers, halves to even."""
    n = math.prod(cell)
    if block.dtype.kind in "fc":
        return np.asarray(_along_axes(block, cell, np.add, np.result_type(block.dtype, np.float64)) / n)
    if block.dtype.kind == "b":
        return np.asarray(_mean(block.view(np.uint8), cell) != 0)
    wide = _wide(block.dtype, n)
    if wide is None:
        quotients, rests = np.divmod(block, block.dtype.type(n))
        whole, rest = np.divmod(_along_axes(rests, cell, np.add), block.dtype.type(n))
        return _half_to_even(_along_axes(quotients, cell, np.add) + whole, rest, n)
    total = _along_axes(block, cell, np.add, wide)
    return _shifted(total, n) if n & (n - 1) == 0 else _half_to_even(*np.divmod(total, wide.type(n)), n)


def _wide(dtype: np.dtype[Any], n: int) -> np.dtype[Any] | None:
    """The narrowest signed integers that hold twice the sum of n values; None where there are none."""
    limits = np.iinfo(dtype)
    most = 2 * n * max(-int(limits.min), int(limits.max))
    fitting = (np.dtype(kind) for kind in (np.int16, np.int32, np.int64) if most <= np.iinfo(kind).max)
    return next(fitting, None)


def _shifted(total: NDArray[Any], n: int) -> NDArray[Any]:
    """``total / n`` rounded, for n a power of 2."""
    bits = n.bit_length() - 1
    if not bits:
        return total
    # Halves go up where the floor is odd: then the floor of this is the even one.
    made = total >> bits
    made &= 1
    made += total
    made += n // 2 - 1
    made >>= bits
    return made


def _half_to_even(whole: NDArray[Any], rest: NDArray[Any], n: int) -> NDArray[Any]:
    """``whole + rest / n`` rounded."""
    twice = rest * rest.dtype.type(2)
    up = (twice > n) | ((twice == n) & (whole % whole.dtype.type(2) != 0))
    return np.asarray(whole + up.astype(whole.dtype))


def _median(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    """The middle value; of an even number of them the mean of the two, rounded for integers, halves to even."""
    values = np.sort(_gathered(block, cell), axis=-1)
    n = values.shape[-1]
    low, high = values[..., (n - 1) // 2], values[..., n // 2]
    if block.dtype.kind == "b":
        return np.asarray(low & high)
    if block.dtype.kind in "fc":
        # Sorted to the end, one NaN makes the whole cell NaN as it does for numpy.
        wide = np.result_type(block.dtype, np.float64)
        middle = (low.astype(wide) + high.astype(wide)) / 2
        return np.asarray(np.where(np.isnan(values[..., -1]), values[..., -1], middle))
    one, two = block.dtype.type(1), block.dtype.type(2)
    whole = low // two + high // two + (low & high & one)
    return _half_to_even(whole, (low ^ high) & one, 2)


def _mode(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    """The most frequent value, the smallest of those that are equally so."""
    return _most_frequent(block, cell, _count_runs)


def _mode_nonzero(block: NDArray[Any], cell: Cell) -> NDArray[Any]:
    """The most frequent value other than 0; 0 where there is no other."""
    return _most_frequent(block, cell, _count_nonzero_runs)


def _most_frequent(block: NDArray[Any], cell: Cell, count: Callable[[NDArray[Any]], NDArray[np.intp]]) -> NDArray[Any]:
    out = np.array(_min(block, cell))
    # Cells of one value, most of those of labels, are done.
    mixed = np.nonzero(out != _max(block, cell))
    if mixed[0].size:
        values = np.sort(_gathered(block, cell, mixed), axis=-1)
        out[mixed] = np.take_along_axis(values, count(values).argmax(axis=-1)[:, np.newaxis], axis=-1)[:, 0]
    return out


def _count_runs(values: NDArray[Any]) -> NDArray[np.intp]:
    """How often the value at each place of sorted rows has come up so far."""
    counts = np.ones(values.shape, np.intp)
    for k in range(1, values.shape[-1]):
        counts[:, k] += np.where(values[:, k] == values[:, k - 1], counts[:, k - 1], 0)
    # The last of a run has the length of it; `argmax` takes the first of equals, which is the smallest value.
    return counts


def _count_nonzero_runs(values: NDArray[Any]) -> NDArray[np.intp]:
    return np.where(values != 0, _count_runs(values), 0)


def _gathered(block: NDArray[Any], cell: Cell, chosen: tuple[NDArray[np.intp], ...] | None = None) -> NDArray[Any]:
    """The voxels of each cell, or of the cells at some places, along a last axis of their own."""
    shape = [m for n, f in zip(block.shape, cell, strict=True) for m in (n // f, f)]
    split = block.reshape(shape) if block.flags.c_contiguous else np.ascontiguousarray(block).reshape(shape)
    moved = np.moveaxis(split, range(0, 2 * block.ndim, 2), range(block.ndim))
    if chosen is not None:
        return moved[chosen].reshape(len(chosen[0]), -1)
    return moved.reshape(*moved.shape[: block.ndim], -1)


_REDUCTIONS: dict[str, Callable[[NDArray[Any], Cell], NDArray[Any]]] = {
    "mean": _mean,
    "median": _median,
    "mode": _mode,
    "mode-nonzero": _mode_nonzero,
    "max": _max,
    "min": _min,
}
