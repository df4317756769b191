"""The union: from pairs of tile-local ids to the table of final ids.

The table is made once from the pairs of all seams, and read one tile at a time. Only labels that meet a border take
part; raster numbering adds one number for every label.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from blockbuster.errors import LabelOverflowError

__all__ = [
    "Numbering",
    "ScanPart",
    "Table",
    "TableOutline",
    "first_voxels_of",
    "make_table",
    "provisional_pairs",
    "ranks",
    "unite_pairs",
]

Ids: TypeAlias = NDArray[np.int64]
Numbering: TypeAlias = Literal["tile", "sequential", "raster"]

# First voxels that are sorted at a time, and how many are looked at to find each range of as many.
_RANGE = 1 << 23
_SAMPLE = 1 << 10


@dataclass(frozen=True)
class ScanPart:
    """What the scan of some tiles found.

    Attributes
    ----------
    block_ids, counts, ghosts : ndarray of int64, shape (m,)
        The tiles, the labels in their cores, and the labels that they see only in the halo.
    first : ndarray of int64, shape (counts.sum(),), or None
        Position of each label's first voxel, C order of the image; only for raster numbering.
    seams : ndarray of int64, shape (s, 3)
        Block ids of the two tiles of a seam, and how many rows of `pairs` it has.
    pairs : ndarray of int64, shape (k, 2)
        Tile-local ids that are one object, seam after seam.
    skipped : int
        How many of the tiles were skipped as empty.
    reaching : int
        How many labels reach the outer edge of what their tile has read.
    """

    block_ids: Ids
    counts: Ids
    ghosts: Ids
    first: Ids | None
    seams: Ids
    pairs: Ids
    skipped: int
    reaching: int


ReadPart: TypeAlias = Callable[[str, int, int], NDArray[Any]]


@dataclass(frozen=True)
class TableOutline:
    """The small part of a table: where the slices of each tile are.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n_tiles + 1,)
        Labels in all tiles before each one: a label has the provisional id ``offsets[block_id] + local``.
    starts : ndarray of int64, shape (n_tiles + 1,)
        Absorbed labels in all tiles before each one.
    n_objects : int
        Objects in all.
    sequential : bool
        Whether final ids are 1..n_objects.
    ids_dtype : str or None
        For raster numbering the dtype of the final ids.
    """

    offsets: Ids
    starts: Ids
    n_objects: int
    sequential: bool
    ids_dtype: str | None

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Of the arrays that `lookup` reads parts of."""
        wide = np.dtype(np.int64)
        return {"absorbed": wide, "targets": wide, "ids": np.dtype(self.ids_dtype or wide)}

    def lookup(self, block_id: int, dtype: DTypeLike, read: ReadPart) -> NDArray[Any]:
        """Final ids of the labels 0..n of one tile.

        Parameters
        ----------
        read : callable
            ``(name, begin, end) -> ndarray``: a part of the array `name` of the table.
        """
        low, high = int(self.offsets[block_id]), int(self.offsets[block_id + 1])
        final = np.zeros(high - low + 1, dtype=dtype)
        if self.ids_dtype is not None:
            final[1:] = read("ids", low, high)
            return final
        begin, end = int(self.starts[block_id]), int(self.starts[block_id + 1])
        gone = read("absorbed", begin, end) - low
        shift = _gaps(gone, high - low, before=begin) if self.sequential else 0
        final[1:] = np.arange(low + 1, high + 1) - shift
        final[gone] = read("targets", begin, end)
        return final


@dataclass(frozen=True)
class Table:
    """Final ids of all tiles.

    With raster numbering `ids` holds the final id of every provisional one. Otherwise only labels that were absorbed
    by another one are listed, with their target's final id, and the others keep theirs, less the number absorbed before
    them where there are to be no gaps.

    Attributes
    ----------
    outline : TableOutline
        Where the slices of each tile are.
    absorbed, targets : ndarray of int64, shape (n_absorbed,)
        Provisional ids that are gone, ascending, and the final ids of the objects that they belong to.
    ids : ndarray, shape (n_labels,), or None
        Final ids, for raster numbering.
    """

    outline: TableOutline
    absorbed: Ids
    targets: Ids
    ids: NDArray[Any] | None

    def lookup(self, block_id: int, dtype: DTypeLike) -> NDArray[Any]:
        """Final ids of the labels 0..n of one tile, of `dtype`."""
        arrays = self.arrays()
        return self.outline.lookup(block_id, dtype, lambda name, begin, end: arrays[name][begin:end])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        found = {"offsets": self.outline.offsets, "starts": self.outline.starts}
        if self.ids is not None:
            return {**found, "ids": self.ids}
        return {**found, "absorbed": self.absorbed, "targets": self.targets}

    def facts(self) -> dict[str, Any]:
        """The numbers that are no arrays."""
        kept = ("n_objects", "sequential", "ids_dtype")
        return {name: getattr(self.outline, name) for name in kept}


def make_table(parts: Iterable[ScanPart], n_tiles: int, *, numbering: Numbering, dtype: DTypeLike) -> Table:
    """One table from what the scan of all tiles found.

    Parameters
    ----------
    parts : iterable of ScanPart
        Every tile of the run in exactly one of them, in any order; a tile in none has no labels.
    n_tiles : int
        Tiles of the grid.
    numbering : {"tile", "sequential", "raster"}
        "tile": an object keeps the smallest provisional id of its labels, there may be gaps. "sequential": the same
        without gaps. "raster": 1..N by the first voxel of each object in C order.
    dtype : dtype
        What final ids must fit.

    Raises
    ------
    LabelOverflowError
        If an id does not fit `dtype`.
    """
    parts = list(parts)
    counts, ghosts = np.zeros(n_tiles, np.int64), np.zeros(n_tiles, np.int64)
    for part in parts:
        counts[part.block_ids] = part.counts
        ghosts[part.block_ids] = part.ghosts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    n_labels = int(offsets[-1])
    absorbed, targets = unite_pairs(provisional_pairs(parts, offsets, counts, ghosts), n_labels)
    n_objects = n_labels - absorbed.size
    largest = n_objects if numbering != "tile" else _largest_root(n_labels, absorbed)
    _check_fit(n_objects, largest, np.dtype(dtype), numbering)
    if numbering == "raster":
        ids = _raster_ids(parts, offsets, absorbed, targets, np.dtype(dtype))
        outline = TableOutline(offsets, np.zeros_like(offsets), n_objects, True, ids.dtype.str)
        return Table(outline, absorbed[:0], targets[:0], ids)
    if numbering == "sequential":
        targets = targets - np.searchsorted(absorbed, targets)
    starts = np.searchsorted(absorbed, offsets + 1)
    return Table(TableOutline(offsets, starts, n_objects, numbering == "sequential", None), absorbed, targets, None)


def _gaps(gone: Ids, n: int, *, before: int) -> Ids:
    """How many absorbed ids precede each of the ids 1..n."""
    taken = np.zeros(n + 1, np.int64)
    taken[gone] = 1
    return before + np.cumsum(taken)[1:]


def provisional_pairs(parts: Sequence[ScanPart], offsets: Ids, counts: Ids, ghosts: Ids) -> Ids:
    """All pairs as provisional ids; ghosts number on after all labels."""
    ghost_offsets = offsets[-1] + np.cumsum(ghosts) - ghosts
    columns = []
    for side in (0, 1):
        tiles = np.concatenate([np.repeat(p.seams[:, side], p.seams[:, 2]) for p in parts] or [np.empty(0, np.int64)])
        local = np.concatenate([p.pairs[:, side] for p in parts] or [np.empty(0, np.int64)])
        own = counts[tiles]
        columns.append(np.where(local <= own, offsets[tiles] + local, ghost_offsets[tiles] + local - own))
    return np.stack(columns, axis=1)


def unite_pairs(pairs: Ids, n_labels: int) -> tuple[Ids, Ids]:
    """Labels that are not the smallest of their component, ascending, and that smallest one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(pairs, return_inverse=True)
    first, second = ends.reshape(-1, 2).T
    links = coo_array((np.ones(first.size, np.int8), (first, second)), shape=(nodes.size, nodes.size))
    n_components, component = connected_components(links, directed=False)
    root = np.empty(n_components, np.int64)
    # Nodes ascend: writing them backwards leaves the smallest one of each component.
    root[component[::-1]] = nodes[::-1]
    target = root[component]
    gone = (target != nodes) & (nodes <= n_labels)
    return nodes[gone], target[gone]


def _largest_root(n_labels: int, absorbed: Ids) -> int:
    """The largest id of 1..n_labels that is not in `absorbed`."""
    tail = np.arange(n_labels - absorbed.size + 1, n_labels + 1)
    kept = np.flatnonzero(absorbed != tail)
    return n_labels - (absorbed.size - 1 - int(kept[-1]) if kept.size else absorbed.size)


def _raster_ids(
    parts: Sequence[ScanPart], offsets: Ids, absorbed: Ids, targets: Ids, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Final ids of all provisional ones, by the first voxel of each object."""
    first = first_voxels_of(parts, offsets)
    np.minimum.at(first, targets - 1, first[absorbed - 1])
    first[absorbed - 1] = -1
    ids = ranks(first, dtype)
    ids[absorbed - 1] = ids[targets - 1]
    return ids


def first_voxels_of(parts: Sequence[ScanPart], offsets: Ids) -> Ids:
    """First voxels of all provisional ids."""
    first = np.empty(int(offsets[-1]), np.int64)
    for part in parts:
        found = part.first if part.first is not None else np.empty(0, np.int64)
        ends = np.cumsum(part.counts)
        for block_id, stop, n in zip(part.block_ids, ends, part.counts, strict=True):
            first[offsets[block_id] : offsets[block_id] + n] = found[stop - n : stop]
    return first


def ranks(first: Ids, dtype: DTypeLike) -> NDArray[Any]:
    """The place of each position in their order, from 1; 0 for negative ones."""
    found = np.zeros(first.size, dtype)
    number = 1
    # Range after range: all positions sorted at once, with their places, would take four times the memory of the ids.
    for low, high in itertools.pairwise(_ranges(first)):
        within = np.flatnonzero((first >= low) & (first < high))
        found[within[np.argsort(first[within])]] = np.arange(number, number + within.size)
        number += within.size
    return found


def _ranges(first: Ids) -> list[int]:
    """Cuts between ranges that hold about equally many positions, by a sample of them."""
    n = -(-first.size // _RANGE)
    sample = np.sort(first[:: max(first.size // (_SAMPLE * n), 1)]) if n > 1 else first[:0]
    inner = np.unique(sample[[sample.size * i // n for i in range(1, n)]]).tolist()
    return [0, *(cut for cut in inner if cut > 0), int(first.max(initial=0)) + 1]


def _check_fit(n_objects: int, largest: int, dtype: np.dtype[Any], numbering: Numbering) -> None:
    limit = int(np.iinfo(dtype).max)
    if largest <= limit:
        return
    remedy = "Choose a wider dtype"
    if n_objects <= limit and numbering == "tile":
        remedy += " or sequential_labels=True"
    raise LabelOverflowError(
        f"{n_objects} objects with ids up to {largest} do not fit dtype {dtype}, whose largest value is {limit}. "
        f"{remedy}; nothing final was written."
    )
