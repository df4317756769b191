"""`global_percentiles`: exact percentiles of an image larger than memory, from counts.

Values are mapped to unsigned integers in the same order, their *keys*. Each pass over the image counts one digit of 16
bits, from the highest on, of those keys whose digits before lead to a voxel that is looked for::

    pass 1    all keys                 ──► counts of 65536 digits ──► the digit that holds voxel k of the sorted image
    pass 2    keys with that digit     ──► counts of the next     ──► ...

After the last digit the key, and so the value, of voxel k is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blockbuster.errors import ImageError, ParameterError
from blockbuster.graph import Input, Pass, ReducingGraph
from blockbuster.grid import Tile, TileGrid
from blockbuster.progress import Progress, RunProgress, Step, shown
from blockbuster.sources import Image, StoredImage, given, open_mask, open_source
from blockbuster.tasks import blaming
from blockbuster.tiling import TileShape, make_grid

__all__ = ["global_percentiles"]

_DIGIT = 16
# Passes over floats of 64 bits that are not to be exact.
_ROUGH_PASSES = 2
# Voxels that are counted at once.
_SLAB = 1 << 18
# Counts of this many codes are made in an array, those of more by sorting.
_DENSE = 1 << 18


def global_percentiles(
    image: Any,
    q: ArrayLike,
    *,
    channel: int | str | None = 0,
    level: int = 0,
    mask: Any = None,
    tile_shape: TileShape = None,
    exact: bool = True,
    progress: Progress = False,
) -> NDArray[np.float64] | np.float64:
    """Percentiles of a whole image, or of what a mask holds of it: those that NumPy finds, to the last bit.

    The result is ``numpy.nanpercentile(whole.astype(numpy.float64), q)``, found in bounded memory by the active dask
    scheduler.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`, of real numbers of at most 64 bits. NaN is left out.
    q : array_like of float
        Percentages from 0 to 100.
    channel : int, str or None, default 0
        For paths: the channel, as in `tile_process`; None for all.
    level : int, default 0
        For paths: the level of the pyramid. A coarse one makes a good estimate.
    mask : array_like or path, optional
        Of the shape of `image`. Only voxels where it is not 0 count.
    tile_shape : None, int, tuple of int, "auto" or callable
        Voxels per tile and axis, as in `tile_process`. The result does not depend on it.
    exact : bool, default True
        False: read an image of 64-bit floats twice in place of four times. Each voxel that a percentile lies between is
        then cut, towards 0, to 21 significant bits: the percentile is off by less than 2**-20 of the larger of the two.
    progress : bool or callable, default False
        Show a progress bar over tiles for each pass, or call ``progress(now)`` with a `RunProgress` over all passes.

    Returns
    -------
    percentiles : ndarray of float64, shape of `q`; or numpy.float64 for a single number
        Interpolated linearly between the two nearest voxels of the sorted image. The sign of a zero is positive.

    Raises
    ------
    ParameterError
        If an entry of `q` is none from 0 to 100, or the image is not of real numbers of at most 64 bits.
    GeometryError
        If the tiles or the mask do not fit the image.
    ImageError
        If no voxel counts, or the image changes while it is read.
    TileError
        If a tile cannot be read.

    Notes
    -----
    The image is read once for each 16 bits of its dtype: once for 8 and 16 bits, twice for 32, four times for 64. Each
    task reads one tile, and returns no more than 65536 counts, in later passes at most as many for each voxel looked
    for, which are two for each percentage; they are added up eight tasks at a time. Beside its tile a task holds some
    MiB, and with more than two percentages of more than 16 bits up to 24 bytes for each voxel of the tile: ask for very
    many of them a few at a time.

    Integers of more than 53 bits are rounded to 64-bit floats, as by ``astype``. Next to an infinite voxel NumPy's
    interpolation may give NaN, even at that voxel itself, and so does this.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> image = np.arange(101, dtype=np.uint16).reshape(101, 1)
    >>> blockbuster.global_percentiles(image, [1, 50, 99.8], tile_shape=(10, 1))
    array([ 1. , 50. , 99.8])
    """
    source = open_source(image, channel=channel, level=level)
    _check_real(source.dtype)
    share = _check_percentages(q)
    grid = make_grid(source, tile_shape, 0)
    inside = open_mask(mask, source.shape)
    if not share.size:
        return share
    if 0 in source.shape:
        raise ImageError(f"The image of shape {source.shape} has no voxels, and so no percentiles.")
    values, n = _found(source, inside, grid, share, exact, progress)
    return _between(values, share, n)


def _check_real(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ParameterError(
            f"The image has dtype {dtype}; percentiles are of real numbers of at most 64 bits. Convert it first."
        )


def _check_percentages(q: ArrayLike) -> NDArray[np.float64]:
    """Percentages as shares of 1."""
    try:
        given = np.asarray(q, np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"q {q!r} is none of numbers. Give percentages from 0 to 100.") from error
    wrong = given[~((given >= 0) & (given <= 100))]
    if wrong.size:
        raise ParameterError(f"q has the entry {wrong[0]}. Give percentages from 0 to 100.")
    return np.asarray(given / 100)


# From shares to voxels of the sorted image


def _ranks(share: NDArray[np.float64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Between which voxels of n sorted ones shares lie, and how far from the first to the second."""
    place = np.asarray((n - 1) * share)
    before = np.asarray(np.minimum(np.floor(place), n - 1), np.int64)
    return before, np.asarray(np.minimum(before + 1, n - 1)), np.asarray(place - before)


def _between(values: dict[int, float], share: NDArray[np.float64], n: int) -> NDArray[np.float64] | np.float64:
    """Percentiles from the voxels next to them, rounded as NumPy rounds them."""
    before, after, fraction = _ranks(share, n)
    low, high = (
        np.array([values[r] for r in ranks.ravel().tolist()]).reshape(ranks.shape) for ranks in (before, after)
    )
    # Infinity less infinity is NaN, and the sums of huge numbers are infinite, which is what NumPy gives.
    with np.errstate(invalid="ignore", over="ignore"):
        step = high - low
        made: NDArray[np.float64] = np.where(fraction >= 0.5, high - step * (1 - fraction), low + step * fraction)
    return made[()]


def _found(
    image: Image,
    mask: Image | None,
    grid: TileGrid,
    share: NDArray[np.float64],
    exact: bool,
    progress: Progress,
) -> tuple[dict[int, float], int]:
    """The voxels of the sorted image that percentiles lie between, by their places in it; and how many voxels count."""
    keys = _Keys(image.dtype.newbyteorder("="))
    n_passes = keys.n_digits if exact or keys.dtype != np.float64 else _ROUGH_PASSES
    counts = _pass(image, mask, grid, _Digit(keys, 0, np.zeros(1, np.uint64)), _part(progress, 0, n_passes))
    n = int(counts.n.sum())
    if not n:
        outside = " or outside of the mask" if mask is not None else ""
        raise ImageError(f"None of the voxels of the image of shape {image.shape} counts: all are NaN{outside}.")
    before, after, _ = _ranks(share, n)
    ranks = np.unique([before, after])
    search = _Search(ranks, np.zeros(len(ranks), np.uint64), n)
    search = search.narrowed(counts, keys)
    for number in range(1, n_passes):
        digit = _Digit(keys, number, np.unique(search.prefixes))
        search = search.narrowed(_pass(image, mask, grid, digit, _part(progress, number, n_passes)), keys)
    found = keys.values(search.prefixes, n_passes).tolist()
    return dict(zip(ranks.tolist(), found, strict=True)), n


def _part(progress: Progress, number: int, n_passes: int) -> Progress:
    """What one pass of several reports to."""
    if not callable(progress):
        return progress

    def told(now: RunProgress) -> None:
        done, total = number * now.total + now.done, n_passes * now.total
        left = now.seconds_left
        # Each pass takes as long as the others.
        more = None if left is None else left + (n_passes - number - 1) * (now.seconds + left)
        progress(replace(now, done=done, total=total, staged=done, seconds_left=more))

    return told


# Keys


@dataclass(frozen=True)
class _Keys:
    """Unsigned integers that are in the order of the values of a dtype.

    Examples
    --------
    >>> _Keys(np.dtype("int8")).of(np.array([-128, -1, 0, 127], np.int8))
    array([  0, 127, 128, 255], dtype=uint8)
    """

    dtype: np.dtype[Any]

    @property
    def bits(self) -> int:
        """Of a key."""
        return 8 * self.dtype.itemsize

    @property
    def digit_bits(self) -> int:
        """Of a digit of a key."""
        return min(_DIGIT, self.bits)

    @property
    def n_digits(self) -> int:
        """Digits of a key."""
        return self.bits // self.digit_bits

    @property
    def unsigned(self) -> np.dtype[Any]:
        """The dtype of keys."""
        return np.dtype(f"u{self.dtype.itemsize}")

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """The keys of values, NaN left out."""
        if self.dtype.kind in "bu":
            return values.view(self.unsigned)
        sign = self.unsigned.type(1 << (self.bits - 1))
        if self.dtype.kind == "i":
            return np.asarray(values.view(self.unsigned) ^ sign)
        raw = values[~np.isnan(values)].view(self.unsigned)
        keys: NDArray[Any] = np.where(raw & sign, ~raw, raw | sign)
        return keys

    def values(self, prefixes: NDArray[np.uint64], n_digits: int) -> NDArray[np.float64]:
        """The values whose keys begin with some digits: of several the one next to 0."""
        left = np.uint64(self.bits - n_digits * self.digit_bits)
        keys = (prefixes << left).astype(self.unsigned)
        sign = self.unsigned.type(1 << (self.bits - 1))
        if self.dtype.kind == "i":
            keys = keys ^ sign
        elif self.dtype.kind == "f":
            rest = self.unsigned.type((1 << int(left)) - 1)
            keys = np.where(keys & sign, keys ^ sign, ~(keys | rest))
        # The two zeros are one.
        made: NDArray[np.float64] = keys.view(self.dtype).astype(np.float64) + 0.0
        return made


# Counts


@dataclass(frozen=True)
class _Counts:
    """How often codes occur: those that occur at all, ascending.

    A code is the number of a prefix, then a digit.
    """

    codes: NDArray[np.int64]
    n: NDArray[np.int64]


def _joined(several: Sequence[_Counts]) -> _Counts:
    """The sums of counts: in an array with a place for each code where that is no larger than what is joined."""
    n_codes = max((int(one.codes[-1]) + 1 for one in several if len(one.codes)), default=0)
    if n_codes <= sum(len(one.codes) for one in several):
        total = np.zeros(n_codes, np.int64)
        for one in several:
            total[one.codes] += one.n
        found = np.flatnonzero(total)
        return _Counts(found, total[found])
    codes = _counted_sparsely(one.codes for one in several).codes
    n = np.zeros(len(codes), np.int64)
    for one in several:
        n[np.searchsorted(codes, one.codes)] += one.n
    return _Counts(codes, n)


@dataclass(frozen=True)
class _Digit:
    """Counts one digit of keys that begin with some prefixes.

    Attributes
    ----------
    number : int
        Digits before it.
    prefixes : ndarray of uint64
        Ascending; the first digit has one, 0, that is of no digits.
    """

    keys: _Keys
    number: int
    prefixes: NDArray[np.uint64]

    def counts(self, values: NDArray[Any]) -> _Counts:
        """How often each digit occurs among values."""
        n_codes = len(self.prefixes) << self.keys.digit_bits
        slabs = (values[begin : begin + _SLAB] for begin in range(0, len(values), _SLAB))
        codes = map(self._codes, slabs)
        return _counted_densely(codes, n_codes) if n_codes <= _DENSE else _counted_sparsely(codes)

    def _codes(self, values: NDArray[Any]) -> NDArray[np.int64]:
        keys, width = self.keys.of(values), self.keys.digit_bits
        left = self.keys.bits - width * (self.number + 1)
        if not self.number:
            return np.asarray(keys >> keys.dtype.type(left), np.int64)
        top = keys >> keys.dtype.type(left + width)
        prefixes = self.prefixes.astype(keys.dtype)
        places = np.minimum(np.searchsorted(prefixes, top), len(prefixes) - 1)
        found = prefixes[places] == top
        digits = (keys[found] >> keys.dtype.type(left)) & keys.dtype.type((1 << width) - 1)
        return np.asarray((places[found] << width) + digits.astype(np.int64))


def _counted_densely(several: Iterable[NDArray[np.int64]], n_codes: int) -> _Counts:
    n = np.zeros(n_codes, np.int64)
    for codes in several:
        n += np.bincount(codes, minlength=n_codes)
    found = np.flatnonzero(n)
    return _Counts(found, n[found])


def _counted_sparsely(several: Iterable[NDArray[np.int64]]) -> _Counts:
    codes = np.concatenate([np.empty(0, np.int64), *several])
    codes.sort()
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    return _Counts(codes[first], np.diff(first, append=len(codes)))


@dataclass(frozen=True)
class _Search:
    """What is known of the keys of some voxels of the sorted image.

    Attributes
    ----------
    ranks : ndarray of int64
        The place of each among the voxels whose keys begin as its own, sorted.
    prefixes : ndarray of uint64
        The digits that are known of each.
    n : int
        Voxels whose keys begin as one of them.
    """

    ranks: NDArray[np.int64]
    prefixes: NDArray[np.uint64]
    n: int

    def narrowed(self, counts: _Counts, keys: _Keys) -> _Search:
        """With one digit more."""
        width = keys.digit_bits
        end = np.cumsum(counts.n)
        if int(counts.n.sum()) != self.n:
            raise ImageError(
                f"The image has {int(counts.n.sum())} voxels where {self.n} were counted before: it has changed while "
                "it was read, or is made anew each time. Store it first."
            )
        places = np.searchsorted(np.unique(self.prefixes), self.prefixes)
        before = np.concatenate([[0], end])[np.searchsorted(counts.codes, places << width)]
        at = np.searchsorted(end, before + self.ranks, side="right")
        digits = (counts.codes[at] & ((1 << width) - 1)).astype(np.uint64)
        return _Search(
            before + self.ranks - (end[at] - counts.n[at]),
            (self.prefixes << np.uint64(width)) | digits,
            int(counts.n[np.unique(at)].sum()),
        )


# Tasks


def _pass(image: Image, mask: Image | None, grid: TileGrid, digit: _Digit, progress: Progress) -> _Counts:
    """The counts of one digit over all tiles."""
    reader = _Reader(_stored(image), _stored(mask), mask is not None, digit)
    blocks = [given(one) for one in (image, mask) if one is not None]
    inputs = [Input(block) for block in blocks if block is not None]
    graph = ReducingGraph(Pass(reader, grid, range(grid.n_tiles), inputs), _joined)
    steps = {key: Step("staging", batch, grid.n_tiles) for key, batch in graph.batches.items()}
    with shown(progress, steps, grid.n_tiles):
        counts: _Counts = graph.compute()
    return counts


def _stored(image: Image | None) -> StoredImage | None:
    return image if isinstance(image, StoredImage) else None


@dataclass(frozen=True)
class _Reader:
    """Counts one tile.

    Attributes
    ----------
    image, mask : StoredImage or None
        What the task reads itself; None where it is given its blocks.
    """

    image: StoredImage | None
    mask: StoredImage | None
    has_mask: bool
    digit: _Digit

    def __call__(self, tile: Tile, *blocks: NDArray[Any]) -> _Counts:
        """Of the voxels of a tile that count."""
        block = self._read(tile, self.image, blocks[:1], "reading the image")
        if not self.has_mask:
            return self.digit.counts(_native(block).reshape(-1))
        inside = self._read(tile, self.mask, blocks[-1:], "reading the mask")
        return self.digit.counts(_native(block[inside != 0]))

    def _read(self, tile: Tile, image: StoredImage | None, blocks: Sequence[NDArray[Any]], step: str) -> NDArray[Any]:
        with blaming(tile, step):
            return np.asarray(blocks[0]) if image is None else image.read(tile.core)


def _native(block: NDArray[Any]) -> NDArray[Any]:
    return block.astype(block.dtype.newbyteorder("="), copy=False)
