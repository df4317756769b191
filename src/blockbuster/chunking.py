"""Stacks cut into pieces, and put together again: for those who loop over the pieces themselves.

::

    forward      |========|---)                   === core: what a piece keeps when it is merged
                          |========|---)          --- overlap: what it reads of its neighbours
    symmetric    |========|---)
                      (---|========|---)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import dask.array as da
import numpy as np
import zarr
from dask.base import optimize, tokenize
from numpy.typing import NDArray
from zarr.storage import FsspecStore

from blockbuster.errors import GeometryError, OutputError, ParameterError
from blockbuster.graph import Input, Pass, PassesGraph, compute_arrays, values_in_graph
from blockbuster.grid import Region, Tile, per_axis, region_shape
from blockbuster.schedulers import active_scheduler, check_visible
from blockbuster.sources import GraphImage, Image, MemoryImage, StoredImage, open_source
from blockbuster.stores import local_path, reference
from blockbuster.tasks import blaming
from blockbuster.tiling import make_writing_grid

__all__ = ["Mode", "get_split_stack_total_shape", "merge_split_stack", "split_stack", "stack_splitter"]

Mode: TypeAlias = Literal["forward", "symmetric"]

# Bytes of the pieces that the client holds at a time where only it can write; and pieces, for what dask takes to put
# many arrays into one graph grows with the square of their number.
_AT_ONCE = 1 << 28
_PIECES = 256
# Steps after which two arrays are taken to share memory if that is not known yet.
_SHARING_WORK = 10_000


def stack_splitter(
    shape: Sequence[int], max_pixels: int | Sequence[int], overlap: int | Sequence[int] | None = None
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Cut a stack into pieces of at most some voxels, and what they read of the next piece.

    Parameters
    ----------
    shape : sequence of int
        Shape of the stack, voxels.
    max_pixels : int or sequence of int
        Voxels of a piece without its overlap, per axis, each at least 1; may exceed the stack. An int is for all axes.
        A sequence with fewer entries than `shape` leaves the last axes, such as channels, whole.
    overlap : int or sequence of int, optional
        Voxels that a piece reads beyond its end, per axis that is split; may exceed `max_pixels`. Default: none.

    Returns
    -------
    slices : ndarray of object, one tuple of slices per piece
        Where the pieces lie. Its axes are those that are split; piece k of an axis of N voxels is
        ``[k max, min(k max + max + overlap, N))``. An axis without voxels has one piece, without voxels.
    offsets : ndarray of int64, shape ``slices.shape + (axes that are split,)``
        First voxel of each piece.

    Raises
    ------
    GeometryError
        If a number is no int, too small, or there are not as many as axes.

    Examples
    --------
    >>> slices, offsets = stack_splitter((4, 10), (4, 5), overlap=(0, 2))
    >>> slices.shape, slices[0, 0], slices[0, 1]
    ((1, 2), (slice(0, 4, None), slice(0, 7, None)), (slice(0, 4, None), slice(5, 10, None)))
    >>> offsets[0, 1]
    array([0, 5])
    """
    regions = _regions(shape, max_pixels, overlap, "forward")
    starts = [[s.start for s in region] for region in regions.flat]
    return regions, np.array(starts, np.int64).reshape(*regions.shape, regions.ndim)


def split_stack(
    array: Any,
    max_pixels: int | Sequence[int],
    overlap: int | Sequence[int] | None = None,
    mode: Mode = "forward",
) -> NDArray[np.object_]:
    """Cut an image into lazy pieces.

    Parameters
    ----------
    array : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        The image; of a path to one with channels, all of them.
    max_pixels, overlap
        As in `stack_splitter`.
    mode : {"forward", "symmetric"}, default "forward"
        Whether a piece reads `overlap` voxels of the next piece only, or of the one before it as well.

    Returns
    -------
    pieces : ndarray of object, one dask.array.Array per piece
        On the grid of `stack_splitter`. Each is one chunk. `merge_split_stack` is the inverse.

    Raises
    ------
    GeometryError
        As `stack_splitter`.
    ParameterError
        If `mode` is unknown.
    ImageError
        If `array` is no image.

    Notes
    -----
    Nothing is read. A piece of an image in memory or in a store is one task, which reads its own voxels. The same image
    split in the same way gives pieces of the same names.

    Examples
    --------
    >>> import numpy as np
    >>> pieces = split_stack(np.arange(10), 4, overlap=1)
    >>> [piece.compute().tolist() for piece in pieces]
    [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9]]
    >>> [piece.compute().tolist() for piece in split_stack(np.arange(10), 4, overlap=1, mode="symmetric")]
    [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9]]
    """
    image = open_source(array, channel=None)
    regions = _regions(image.shape, max_pixels, overlap, mode)
    return _cut(regions, [image] * regions.size, [_name(image)] * regions.size)


def get_split_stack_total_shape(
    pieces: Any, overlap: int | Sequence[int] | None = None, *, mode: Mode = "forward"
) -> tuple[int, ...]:
    """Shape of the stack that pieces are of.

    Parameters
    ----------
    pieces, overlap, mode
        As in `merge_split_stack`.

    Returns
    -------
    shape : tuple of int
        Voxels, of the size that they have in the pieces.

    Raises
    ------
    GeometryError, ParameterError, ImageError
        As in `merge_split_stack`.

    Examples
    --------
    >>> import numpy as np
    >>> get_split_stack_total_shape(split_stack(np.zeros((10, 7)), 4, overlap=2), overlap=2)
    (10, 7)
    """
    images = _images(pieces)
    overlaps = _overlaps(images, overlap, mode)
    lengths, rest = _lengths(images)
    return (*(_ends(one, reach)[-1] for one, reach in zip(lengths, overlaps, strict=True)), *rest)


def merge_split_stack(
    pieces: Any,
    max_pixels: int | Sequence[int],
    overlap: int | Sequence[int] | None = None,
    output: Any = None,
    axis_offset: int = 0,
    *,
    mode: Mode = "forward",
) -> Any:
    """Put the pieces of a stack together: the inverse of splitting it.

    Parameters
    ----------
    pieces : ndarray of object, or list
        The pieces on their grid, as `split_stack` makes them; a list is a grid of one axis. Each is what `split_stack`
        takes. They may have been worked on, and be of other shapes than when they were split.
    max_pixels, overlap : int or sequence of int
        As they were split, one per axis of the grid; in the voxels of the pieces, where these have been rescaled.
    output : numpy.ndarray or zarr.Array, optional
        What to write into.
    axis_offset : int, default 0
        Leading axes of `output`, of extent 1 each, that the pieces do not have.
    mode : {"forward", "symmetric"}, default "forward"
        As they were split.

    Returns
    -------
    stack : dask.array.Array, or `output`
        Lazy without `output`, each piece one chunk. Of the dtype that holds those of all pieces.

    Raises
    ------
    GeometryError
        If there are no pieces, one is None, their shapes do not fit together, or not `max_pixels` and `overlap`; or if
        `output` has another shape.
    ParameterError
        If `mode` is unknown, `output` is no array, or its dtype is of a kind that cannot hold the pieces.
    OutputError
        If `output` cannot be written, or the pieces are read from it.
    ImageError
        If a piece is no array.

    Notes
    -----
    Of voxels that several pieces have, those of the core are taken: with ``mode="forward"``, a piece that is not the
    last gives up its overlap, or what it has of it where the stack ends.

    Into a zarr array in files, or behind a URL, the tasks write, on any scheduler, whole chunks or shards of `output`,
    each one once, however the pieces lie to them. A task holds up to 256 MiB of `output`, or one chunk or shard, and of
    the pieces what lies there. Into any other `output` the client writes, and holds up to 256 MiB of pieces at a time,
    or one. What several pieces in a dask graph need may be computed more than once then. When a task fails, `output` is
    written in parts.

    An `overlap` that is smaller than that of the pieces may go unnoticed: what they have more is taken for core.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(10)
    >>> pieces = split_stack(image, 4, overlap=2)
    >>> merge_split_stack(pieces, 4, overlap=2).compute()
    array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    >>> for index in np.ndindex(pieces.shape):
    ...     pieces[index] = pieces[index][::2]
    >>> merge_split_stack(pieces, 2, overlap=1, output=np.zeros((1, 5), int), axis_offset=1)
    array([[0, 2, 4, 6, 8]])
    """
    images = _images(pieces)
    cores = _per_split_axis("max_pixels", max_pixels, images, minimum=1)
    overlaps = _overlaps(images, overlap, mode)
    lengths, _ = _lengths(images)
    kept = [list(_kept(*facts)) for facts in zip(range(images.ndim), lengths, cores, overlaps, strict=True)]
    parts = _cut(_grid_of(kept), list(images.flat), [_name(image) for image in images.flat])
    merged = _joined(parts)
    _check_axis_offset(axis_offset, output)
    if output is None:
        return merged
    _check_output(output, merged, axis_offset)
    if isinstance(output, zarr.Array) and _is_shared(output):
        _write_in_tasks(merged, _Place(output, axis_offset))
    else:
        _write_here(parts, merged.dtype, _Place(output, axis_offset))
    return output


# Where pieces lie


class _Overlap(NamedTuple):
    """Voxels that a piece has beyond its core, on each side."""

    before: int
    behind: int


def _regions(shape: Sequence[int], max_pixels: Any, overlap: Any, mode: Mode) -> NDArray[Any]:
    """The regions of the pieces of a stack, on their grid."""
    if not _is_sequence(shape):
        raise GeometryError(f"shape {shape!r} is not one int per axis of the stack.")
    extents = per_axis("shape", shape, shape, minimum=0)
    n_axes = len(max_pixels) if _is_sequence(max_pixels) else len(extents)
    if not 1 <= n_axes <= len(extents):
        raise GeometryError(
            f"max_pixels {max_pixels!r} splits {n_axes} axes, the stack has {len(extents)} axes {extents}. Give one "
            "number, or one for each axis from the first on that is to be split."
        )
    split = extents[:n_axes]
    cores = per_axis("max_pixels", max_pixels, split, minimum=1)
    overlaps = _in_mode(per_axis("overlap", 0 if overlap is None else overlap, split, minimum=0), mode)
    return _grid_of([list(_along(*facts)) for facts in zip(split, cores, overlaps, strict=True)])


def _along(extent: int, core: int, overlap: _Overlap) -> Iterator[slice]:
    """The pieces along one axis."""
    for start in range(0, max(extent, 1), core):
        yield slice(max(start - overlap.before, 0), min(start + core + overlap.behind, extent))


def _in_mode(overlaps: Sequence[int], mode: Mode) -> list[_Overlap]:
    if mode not in get_args(Mode):
        raise ParameterError(f"mode {mode!r} is unknown. Choose one of {', '.join(map(repr, get_args(Mode)))}.")
    return [_Overlap(o if mode == "symmetric" else 0, o) for o in overlaps]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _grid_of(slices: Sequence[Sequence[slice]]) -> NDArray[Any]:
    """One region for each choice of a slice per axis."""
    grid = np.empty([len(axis) for axis in slices], object)
    for index in np.ndindex(grid.shape):
        grid[index] = tuple(axis[i] for axis, i in zip(slices, index, strict=True))
    return grid


# What pieces keep


def _ends(lengths: Sequence[int], overlap: _Overlap) -> list[int]:
    """Where the pieces along an axis end in the stack.

    The next piece begins ``before + behind`` voxels in front of the end of this one, or at 0: unless this one was cut
    off at the end of the stack. Then the next begins later, and ends where this one does, so that the larger of the
    two numbers is right in either case.
    """
    ends = [lengths[0]]
    for length in lengths[1:]:
        ends.append(max(ends[-1], max(ends[-1] - sum(overlap), 0) + length))
    return ends


def _kept(axis: int, lengths: Sequence[int], core: int, overlap: _Overlap) -> Iterator[slice]:
    """What each piece along an axis keeps of itself.

    Raises
    ------
    GeometryError
        If the lengths tell something else than the size of the core.
    """
    start = 0
    for number, (length, end) in enumerate(zip(lengths, _ends(lengths, overlap), strict=True)):
        cut = min(overlap.before, start)
        rest = length - cut
        if start + rest != end:
            raise GeometryError(
                f"Pieces of {tuple(lengths)} voxels along axis {axis} do not come from max_pixels {core} and overlap "
                f"{overlap.behind}: piece {number} would end at voxel {start + rest}, by its length and the one before "
                f"it at {end}. Give max_pixels and overlap in the voxels of the pieces."
            )
        if number < len(lengths) - 1:
            # What was cut off at the end of the stack is overlap, or part of it.
            rest = min(core, rest) if rest < core + overlap.behind else rest - overlap.behind
        yield slice(cut, cut + rest)
        start += rest


def _images(pieces: Any) -> NDArray[Any]:
    """The pieces on their grid, opened."""
    grid = pieces
    if isinstance(pieces, list | tuple):
        grid = np.empty(len(pieces), object)
        for number, piece in enumerate(pieces):
            grid[number] = piece
    if not isinstance(grid, np.ndarray) or not grid.dtype.hasobject or not grid.ndim:
        raise GeometryError(
            f"pieces are a {type(pieces).__name__}{'' if grid is not pieces else _facts(pieces)}. Give an array of "
            "dtype object with one array per piece, as split_stack makes it, or a list of arrays."
        )
    if not grid.size:
        raise GeometryError(f"There are no pieces in a grid of {grid.shape}. Give at least one.")
    images = np.empty(grid.shape, object)
    for index in np.ndindex(grid.shape):
        if grid[index] is None:
            raise GeometryError(f"Piece {index} is None. Give every piece of the grid {grid.shape}.")
        images[index] = open_source(grid[index], channel=None)
    return images


def _facts(pieces: Any) -> str:
    return f" of dtype {pieces.dtype} and shape {pieces.shape}" if isinstance(pieces, np.ndarray) else ""


def _lengths(images: NDArray[Any]) -> tuple[list[list[int]], tuple[int, ...]]:
    """Lengths of the pieces along each axis of their grid, and the extents of the axes that are not split.

    Raises
    ------
    GeometryError
        If pieces that lie beside each other differ in them.
    """
    n_axes = images.ndim
    shape = images[(0,) * n_axes].shape
    corner = [0] * n_axes
    lengths = [
        [_shape(images, (*corner[:a], k, *corner[a + 1 :]))[a] for k in range(n)] for a, n in enumerate(images.shape)
    ]
    for index in np.ndindex(images.shape):
        found = _shape(images, index)
        expected = (*(axis[i] for axis, i in zip(lengths, index, strict=True)), *shape[n_axes:])
        if found != expected:
            raise GeometryError(
                f"Piece {index} has shape {found}; by the first pieces along each axis it must have {expected}. Pieces "
                "that lie beside each other must have the same extents."
            )
    return lengths, shape[n_axes:]


def _shape(images: NDArray[Any], index: tuple[int, ...]) -> tuple[int, ...]:
    shape: tuple[int, ...] = images[index].shape
    if len(shape) < images.ndim:
        raise GeometryError(
            f"Piece {index} has shape {shape}, which is fewer axes than the grid of pieces has, {images.shape}. Give "
            "pieces with at least these."
        )
    return shape


def _overlaps(images: NDArray[Any], overlap: Any, mode: Mode) -> list[_Overlap]:
    values = _per_split_axis("overlap", 0 if overlap is None else overlap, images, minimum=0)
    return _in_mode(values, mode)


def _per_split_axis(name: str, value: Any, images: NDArray[Any], *, minimum: int) -> tuple[int, ...]:
    if _is_sequence(value) and len(value) != images.ndim:
        raise GeometryError(
            f"{name} {tuple(value)} has {len(value)} entries, the grid of pieces has {images.ndim} axes "
            f"{images.shape}. Give one number, or one per axis of the grid."
        )
    return per_axis(name, value, images.shape, minimum=minimum)


# Lazy pieces


@dataclass(frozen=True, eq=False)
class _Part:
    """A region of an image that dask reads at once."""

    image: MemoryImage | StoredImage
    region: Region

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return region_shape(self.region)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.region)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        return self.image.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """What basic indexing with steps of at least 1 gives: dask cuts all of it, or parts that are all it needs."""
        given = iter(key if isinstance(key, tuple) else (key,))
        block = self.image.read(tuple(_within(s, next(given, slice(None))) for s in self.region))
        # A view would let the caller of the result change the image.
        return np.array(block) if isinstance(self.image, MemoryImage) else block


def _within(outer: slice, key: Any) -> Any:
    """The part of the image that `key` asks of a part of it."""
    found = range(outer.start, outer.stop)[key]
    return slice(found.start, found.stop, found.step) if isinstance(found, range) else found


def _name(image: Image) -> str:
    """The same for the same image."""
    if isinstance(image, GraphImage):
        return ""
    told = (image.ref.describe(), image.fixed) if isinstance(image, StoredImage) else image.identity()
    return str(tokenize(told, image.shape, str(image.dtype)))


def _cut(regions: NDArray[Any], images: Sequence[Image], names: Sequence[str]) -> NDArray[Any]:
    """Lazy regions of images, on their grid."""
    parts = np.empty(regions.shape, object)
    for index, image, name in zip(np.ndindex(regions.shape), images, names, strict=True):
        whole = tuple(slice(0, n) for n in image.shape[regions.ndim :])
        parts[index] = _lazy_part(image, (*regions[index], *whole), name)
    return parts


def _lazy_part(image: Image, region: Region, name: str) -> da.Array:
    if isinstance(image, GraphImage):
        cut: da.Array = image.array[region].rechunk(-1)
        return cut
    part = _Part(image, region)
    if isinstance(image, MemoryImage):
        # The task of a piece must not carry the whole image.
        part = _Part(MemoryImage(image.array[region]), tuple(slice(0, n) for n in region_shape(region)))
    bounds = [(s.start, s.stop) for s in region]
    read: da.Array = da.from_array(
        part,
        chunks=-1,
        name=f"piece-{tokenize(name, bounds)}",
        fancy=False,
        inline_array=True,
        meta=np.empty((0,) * part.ndim, part.dtype),
    )
    return read


def _joined(parts: NDArray[Any], axis: int = 0) -> da.Array:
    """The array that parts on a grid make."""
    rows = list(parts) if parts.ndim == 1 else [_joined(row, axis + 1) for row in parts]
    joined: da.Array = da.concatenate(rows, axis=axis)
    return joined


# Writing


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a stack goes in an array of the caller's."""

    output: Any
    axis_offset: int

    def put(self, region: Region, block: NDArray[Any]) -> None:
        """Write one region."""
        where = (*(slice(0, 1),) * self.axis_offset, *region)
        shape = (1,) * self.axis_offset + block.shape
        self.output[where] = block.astype(self.output.dtype, copy=False).reshape(shape)

    def write(self, tile: Tile, block: NDArray[Any]) -> None:
        """The task of one tile."""
        with blaming(tile, "writing"):
            self.put(tile.core, block)


def _write_in_tasks(merged: da.Array, place: _Place) -> None:
    """Write an array that tasks can write to: whole chunks or shards of it in each."""
    path = local_path(place.output)
    if path is not None:
        check_visible(active_scheduler(), "output", str(path[0]), "output")
    unit = (place.output.shards or place.output.chunks)[place.axis_offset :]
    reads = [max(axis) for axis in merged.chunks]
    grid = make_writing_grid(merged.shape, None, unit, dtype=place.output.dtype, reads=reads)
    PassesGraph([Pass(place.write, grid, range(grid.n_tiles), [Input(merged)])]).compute()


def _write_here(parts: NDArray[Any], dtype: np.dtype[Any], place: _Place) -> None:
    """Write an array that tasks may not see: they make the parts, a few at a time."""
    arrays = list(parts.flat)
    regions = list(_cores(parts))
    size = max(max(array.size for array in arrays) * dtype.itemsize, 1)
    step = min(max(_AT_ONCE // size, 1), _PIECES)
    for begin in range(0, len(arrays), step):
        made = compute_arrays(*optimize(*arrays[begin : begin + step]))
        for region, block in zip(regions[begin : begin + step], made, strict=True):
            place.put(region, block)


def _cores(parts: NDArray[Any]) -> Iterator[Region]:
    """Where parts lie in the array that they make, in row-major order."""
    lengths, rest = _lengths(parts)
    bounds = [np.cumsum([0, *axis]).tolist() for axis in lengths]
    for index in np.ndindex(parts.shape):
        split = (slice(cuts[i], cuts[i + 1]) for cuts, i in zip(bounds, index, strict=True))
        yield (*split, *(slice(0, n) for n in rest))


def _is_shared(array: zarr.Array[Any]) -> bool:
    """Whether tasks in other processes can write to an array."""
    if local_path(array) is not None:
        return True
    protocol = getattr(getattr(array.store, "fs", None), "protocol", ())
    return isinstance(array.store, FsspecStore) and "memory" not in (
        (protocol,) if isinstance(protocol, str) else protocol
    )


def _check_axis_offset(axis_offset: Any, output: Any) -> None:
    if not hasattr(axis_offset, "__index__") or isinstance(axis_offset, bool) or axis_offset < 0:
        raise ParameterError(
            f"axis_offset {axis_offset!r} is no int of at least 0: the number of leading axes of output."
        )
    if axis_offset and output is None:
        raise ParameterError(
            f"axis_offset {axis_offset} is the number of leading axes of output, but there is no output."
        )


def _check_output(output: Any, merged: da.Array, axis_offset: int) -> None:
    """Refuse what the stack cannot be written into."""
    if not isinstance(output, np.ndarray | zarr.Array):
        raise ParameterError(f"output is a {type(output).__name__}. Give a numpy array, a memory map or a zarr array.")
    if output.shape[:axis_offset] != (1,) * min(axis_offset, output.ndim) or output.ndim < axis_offset:
        raise GeometryError(
            f"The first {axis_offset} axes of an output of shape {output.shape} must have extent 1 (axis_offset="
            f"{axis_offset}). Select one index of each of them."
        )
    if output.shape[axis_offset:] != merged.shape:
        raise GeometryError(
            f"The stack has shape {merged.shape}, the output {output.shape} with axis_offset={axis_offset}. Give an "
            f"output of shape {(1,) * axis_offset + merged.shape}."
        )
    if not np.can_cast(merged.dtype, output.dtype, "same_kind"):
        raise ParameterError(
            f"The output of dtype {output.dtype} cannot hold pieces of dtype {merged.dtype}. Convert them first."
        )
    if output.read_only if isinstance(output, zarr.Array) else not output.flags.writeable:
        raise OutputError("The output is read-only. Open it for writing: mode='r+'.")
    if _reads_from(merged, output):
        raise OutputError("Pieces are read from the output, and would see what is written there. Give another output.")


def _reads_from(merged: da.Array, output: NDArray[Any] | zarr.Array[Any]) -> bool:
    if isinstance(output, np.ndarray):
        arrays = [image.array for image in values_in_graph(merged, MemoryImage)]
        arrays += values_in_graph(merged, np.ndarray)
        return any(
            np.may_share_memory(array, output, max_work=_SHARING_WORK)  # type: ignore[arg-type]
            for array in arrays
        )
    refs = [image.ref for image in values_in_graph(merged, StoredImage)]
    refs += [reference(array) for array in values_in_graph(merged, zarr.Array)]
    return reference(output).describe() in {ref.describe() for ref in refs}
