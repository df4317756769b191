"""Tiles of an image: integers in, integers out.

The one source of every boundary. A grid cuts the axes of an image at `bounds`; a tile is one cell of it::

    bounds of one axis     0        4        8     10
                           |--------|--------|-----|
    core of tile 1                  [        )
    padded, overlap 1             [            )
    seams                           ^        ^

Tiles that share a face, an edge or a corner are neighbours: each such pair is one `Seam`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from blockbuster.errors import GeometryError

__all__ = ["Region", "Seam", "Tile", "TileGrid", "forward_offsets", "met", "per_axis", "region_shape"]

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Tile:
    """One cell of a grid.

    Attributes
    ----------
    index : tuple of int
        Position in the grid.
    block_id : int
        Row-major number of the tile.
    start, stop : tuple of int
        The core: voxels that this tile owns.
    padded_start, padded_stop : tuple of int
        The core and the halo around it, clipped at the border of the image.
    """

    index: tuple[int, ...]
    block_id: int
    start: tuple[int, ...]
    stop: tuple[int, ...]
    padded_start: tuple[int, ...]
    padded_stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the core, voxels."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of the core with its halo, voxels."""
        return tuple(b - a for a, b in zip(self.padded_start, self.padded_stop, strict=True))

    @property
    def core(self) -> Region:
        """Slices of the core in the image."""
        return tuple(map(slice, self.start, self.stop))

    @property
    def padded(self) -> Region:
        """Slices of the core with its halo in the image."""
        return tuple(map(slice, self.padded_start, self.padded_stop))

    @property
    def trim(self) -> Region:
        """Slices of the core in the padded tile."""
        return self.within_padded(self.start, self.stop)

    def within_padded(self, start: Sequence[int], stop: Sequence[int]) -> Region:
        """Slices, in the padded tile, of the part of the image from `start` to `stop`."""
        return tuple(slice(a - p, b - p) for a, b, p in zip(start, stop, self.padded_start, strict=True))

    def grown(self, margin: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Start and stop of the core grown by `margin` voxels per axis, clipped at the padded tile."""
        start = tuple(max(a - m, p) for a, m, p in zip(self.start, margin, self.padded_start, strict=True))
        stop = tuple(min(b + m, p) for b, m, p in zip(self.stop, margin, self.padded_stop, strict=True))
        return start, stop


@dataclass(frozen=True)
class Seam:
    """Two neighbouring tiles.

    Attributes
    ----------
    first, second : int
        Block ids.
    offset : tuple of int
        Index of the second tile less that of the first: -1, 0 or 1 per axis, the first that is not 0 being 1.
    """

    first: int
    second: int
    offset: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes that the seam crosses: one for a face, more for an edge or a corner."""
        return tuple(axis for axis, o in enumerate(self.offset) if o)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of an image, in row-major order.

    Attributes
    ----------
    shape : tuple of int
        Shape of the image, voxels.
    bounds : tuple of tuple of int
        Borders of the tiles per axis, ascending from 0 to the extent of the axis.
    overlap : tuple of int
        Voxels read beyond each side of a tile, per axis.

    Examples
    --------
    >>> grid = TileGrid.regular((10, 6), (4, 6), overlap=1)
    >>> grid.numblocks, grid.n_tiles
    ((3, 1), 3)
    >>> grid.tile(1).core, grid.tile(1).padded
    ((slice(4, 8, None), slice(0, 6, None)), (slice(3, 9, None), slice(0, 6, None)))
    """

    shape: tuple[int, ...]
    bounds: tuple[tuple[int, ...], ...]
    overlap: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.bounds) == len(self.overlap):
            raise GeometryError(
                f"shape {self.shape}, bounds of {len(self.bounds)} axes and overlap {self.overlap} "
                "must have one entry per axis of the image."
            )
        for axis, (extent, cuts) in enumerate(zip(self.shape, self.bounds, strict=True)):
            if cuts[0] != 0 or cuts[-1] != extent or any(a >= b for a, b in itertools.pairwise(cuts)):
                raise GeometryError(f"bounds {cuts} of axis {axis} must ascend from 0 to its extent, {extent}.")

    @classmethod
    def regular(cls, shape: Sequence[int], tile_shape: Sequence[int], overlap: int | Sequence[int] = 0) -> TileGrid:
        """Tiles of one shape, clipped at the end of each axis.

        Parameters
        ----------
        shape : sequence of int
            Shape of the image, voxels.
        tile_shape : sequence of int
            Shape of a tile, voxels, each at least 1; may exceed the image.
        overlap : int or sequence of int
            Voxels read beyond each side. An int is 0 on axes where the tile is one voxel thick; a sequence is taken
            as given.

        Raises
        ------
        GeometryError
            If a tile is empty, or a length does not match the image.
        """
        tiles = per_axis("tile_shape", tile_shape, shape, minimum=1)
        bounds = tuple(
            (*range(0, extent, t), extent) if extent else (0,) for extent, t in zip(shape, tiles, strict=True)
        )
        return cls(tuple(shape), bounds, _overlap(overlap, tiles, shape))

    @classmethod
    def from_chunks(cls, chunks: Sequence[Sequence[int]], overlap: int | Sequence[int] = 0) -> TileGrid:
        """Tiles of the given extents per axis, as dask spells chunks; see `regular` for `overlap`."""
        bounds = tuple(tuple(itertools.accumulate((c for c in axis if c), initial=0)) for axis in chunks)
        shape = tuple(cuts[-1] for cuts in bounds)
        thickest = tuple(max(axis, default=0) for axis in chunks)
        return cls(shape, bounds, _overlap(overlap, thickest, shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @cached_property
    def numblocks(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(len(cuts) - 1 for cuts in self.bounds)

    @cached_property
    def n_tiles(self) -> int:
        """Tiles in all."""
        return math.prod(self.numblocks)

    @cached_property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Extents of the tiles per axis, as dask spells chunks; an empty axis has one chunk of 0."""
        return tuple(tuple(b - a for a, b in itertools.pairwise(cuts)) or (0,) for cuts in self.bounds)

    @cached_property
    def tile_shape(self) -> tuple[int, ...]:
        """The largest extent of a tile per axis."""
        return tuple(max(axis) for axis in self.chunks)

    @cached_property
    def is_regular(self) -> bool:
        """Whether all tiles but the last of an axis have one extent, and the last is not larger."""
        return all(len(set(axis[:-1])) <= 1 and axis[-1] <= axis[0] for axis in self.chunks)

    def tile(self, block_id: int) -> Tile:
        """The tile with row-major number `block_id`."""
        index = self._index(block_id)
        start = tuple(cuts[i] for cuts, i in zip(self.bounds, index, strict=True))
        stop = tuple(cuts[i + 1] for cuts, i in zip(self.bounds, index, strict=True))
        padded_start = tuple(max(a - o, 0) for a, o in zip(start, self.overlap, strict=True))
        padded_stop = tuple(min(b + o, n) for b, o, n in zip(stop, self.overlap, self.shape, strict=True))
        return Tile(index, block_id, start, stop, padded_start, padded_stop)

    def tiles(self) -> Iterator[Tile]:
        """All tiles in row-major order."""
        return map(self.tile, range(self.n_tiles))

    def block_id(self, index: Sequence[int]) -> int:
        """Row-major number of the tile at `index`."""
        number = 0
        for i, n in zip(index, self.numblocks, strict=True):
            number = number * n + i
        return number

    def seams(self, block_id: int, offsets: Sequence[tuple[int, ...]]) -> Iterator[Seam]:
        """Seams of one tile with its neighbours at `offsets` that lie within the grid."""
        index = self._index(block_id)
        for offset in offsets:
            other = tuple(map(operator.add, index, offset))
            if all(0 <= i < n for i, n in zip(other, self.numblocks, strict=True)):
                yield Seam(block_id, self.block_id(other), offset)

    def overlapping(self, start: Sequence[int], stop: Sequence[int]) -> Iterator[Tile]:
        """Tiles whose core meets the part of the image from `start` to `stop`."""
        ranges = [met(cuts, a, b) for cuts, a, b in zip(self.bounds, start, stop, strict=True)]
        for index in itertools.product(*ranges):
            yield self.tile(self.block_id(index))

    def is_aligned(self, unit: Sequence[int]) -> bool:
        """Whether every border of tiles within the image is one of units of storage, too."""
        return all(cut % u == 0 for cuts, u in zip(self.bounds, unit, strict=True) for cut in cuts[1:-1])

    @property
    def amplification(self) -> float:
        """Voxels read for each voxel of the image, halos counted."""
        factor = 1.0
        for extent, cuts, o in zip(self.shape, self.bounds, self.overlap, strict=True):
            read = sum(min(b + o, extent) - max(a - o, 0) for a, b in itertools.pairwise(cuts))
            factor *= read / extent if extent else 1.0
        return factor

    def _index(self, block_id: int) -> tuple[int, ...]:
        if not 0 <= block_id < self.n_tiles:
            raise GeometryError(f"block id {block_id} is not in a grid of {self.n_tiles} tiles {self.numblocks}.")
        index = []
        for n in reversed(self.numblocks):
            block_id, i = divmod(block_id, n)
            index.append(i)
        return tuple(reversed(index))


def forward_offsets(ndim: int, axes: Sequence[int], connectivity: int) -> list[tuple[int, ...]]:
    """Offsets to half of the neighbours over at most `connectivity` of `axes`: each seam is met once.

    Examples
    --------
    >>> forward_offsets(2, (0, 1), 1)
    [(0, 1), (1, 0)]
    >>> forward_offsets(2, (0, 1), 2)
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    choices = [(-1, 0, 1) if axis in axes else (0,) for axis in range(ndim)]
    zero = (0,) * ndim
    return [o for o in itertools.product(*choices) if o > zero and sum(map(abs, o)) <= connectivity]


def per_axis(name: str, value: int | Sequence[int], shape: Sequence[int], *, minimum: int) -> tuple[int, ...]:
    """One int per axis of `shape`.

    Raises
    ------
    GeometryError
        If `value` has another length, holds something else than ints, or an entry is below `minimum`.

    Examples
    --------
    >>> per_axis("overlap", 3, (8, 64), minimum=0)
    (3, 3)
    """
    extents = tuple(shape)
    given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value] * len(extents)
    if not all(map(_is_int, given)):
        raise GeometryError(f"{name} {value!r} is not an int or one int per axis of the image {extents}.")
    values = tuple(map(int, given))
    if len(values) != len(extents):
        raise GeometryError(
            f"{name} {values} has {len(values)} entries, the image has {len(extents)} axes {extents}. "
            "Give one number, or one per axis."
        )
    if any(v < minimum for v in values):
        raise GeometryError(f"{name} {values} has an entry below {minimum}. Every entry must be at least {minimum}.")
    return values


def met(cuts: Sequence[int], start: int, stop: int) -> range:
    """Positions of the intervals between ascending cuts that meet the one from `start` to `stop`.

    Examples
    --------
    >>> list(met((0, 4, 8, 10), 3, 8))
    [0, 1]
    """
    return range(max(bisect.bisect_right(cuts, start) - 1, 0), min(bisect.bisect_left(cuts, stop), len(cuts) - 1))


def region_shape(region: Region) -> tuple[int, ...]:
    """Shape of a region of plain slices."""
    return tuple(s.stop - s.start for s in region)


def _is_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _overlap(overlap: int | Sequence[int], tiles: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    values = per_axis("overlap", overlap, shape, minimum=0)
    if isinstance(overlap, Iterable):
        return values
    return tuple(0 if t == 1 else v for v, t in zip(values, tiles, strict=True))
