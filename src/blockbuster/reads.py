"""What a run reads of an image: how many voxels, and how often each chunk is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from blockbuster.grid import Region, Tile, TileGrid
from blockbuster.sources import Image, StoredImage

__all__ = ["Reads", "read_spans", "reads_of", "stored_chunk_shape"]

# For each axis, where each tile along it begins and ends to read.
Spans: TypeAlias = tuple[NDArray[np.int64], ...]

# Chunks, and tiles, that are looked at one by one where a run is of some tiles only.
_MANY_CHUNKS = 10_000_000
_MANY_TILES = 100_000


@dataclass(frozen=True)
class Reads:
    """What tasks ask of one image.

    Attributes
    ----------
    voxels : int
        Voxels read, each time counted.
    owned : int
        Voxels that the tiles stand for.
    decoded : int
        Chunks decoded, each time counted; 0 where nothing is stored.
    needed : int
        Chunks of which something is read.
    """

    voxels: int
    owned: int
    decoded: int
    needed: int


def read_spans(grid: TileGrid, read: Callable[[Tile], Region]) -> Spans:
    """What tiles read, as a function says that treats each axis on its own: as kernels do, and halos."""

    def span(axis: int, i: int) -> tuple[int, int]:
        index = [0] * grid.ndim
        index[axis] = i
        along = read(grid.tile(grid.block_id(index)))[axis]
        return along.start, along.stop

    return tuple(
        np.array([span(axis, i) for i in range(n if grid.n_tiles else 0)], np.int64).reshape(-1, 2)
        for axis, n in enumerate(grid.numblocks)
    )


def reads_of(image: Image, grid: TileGrid, tiles: Sequence[int], spans: Spans, factors: Sequence[int]) -> Reads:
    """What some tiles of a grid read of an image.

    Parameters
    ----------
    factors : sequence of int
        Voxels of the image for each of the grid, per axis.

    Examples
    --------
    A halo of one voxel around four tiles of a line of eight, which is stored in chunks of two:

    >>> import zarr
    >>> from blockbuster.sources import open_source
    >>> image = open_source(zarr.zeros((8,), chunks=(2,)))
    >>> grid = TileGrid.regular((8,), (2,), overlap=1)
    >>> reads_of(image, grid, range(4), read_spans(grid, lambda tile: tile.padded), (1,))
    Reads(voxels=14, owned=8, decoded=10, needed=4)
    """
    owned = [
        np.diff(np.minimum(np.array(cuts) * f, n)) for cuts, f, n in zip(grid.bounds, factors, image.shape, strict=True)
    ]
    voxels = _total([span[:, 1] - span[:, 0] for span in spans], grid, tiles)
    chunk = stored_chunk_shape(image)
    if chunk is None or not voxels:
        return Reads(voxels, _total(owned, grid, tiles), 0, 0)
    met = [np.stack([s[:, 0] // c, -(-s[:, 1] // c)], axis=1) for s, c in zip(spans, chunk, strict=True)]
    decoded = _total([one[:, 1] - one[:, 0] for one in met], grid, tiles)
    return Reads(voxels, _total(owned, grid, tiles), decoded, _needed(met, grid, tiles, decoded))


def stored_chunk_shape(image: Image) -> tuple[int, ...] | None:
    """The chunks in which an image is stored, which dask may see as others; None for what is not stored."""
    if not isinstance(image, StoredImage):
        return None
    chunks = getattr(image.ref.open(), "chunks", None)
    if chunks is None:
        return tuple(max(axis) or 1 for axis in image.chunks)
    return tuple(int(c) for c, index in zip(chunks, image.fixed, strict=True) if index is None)


def _total(per_axis: Sequence[NDArray[np.int64]], grid: TileGrid, tiles: Sequence[int]) -> int:
    """The sum over tiles of what is a product over axes."""
    if len(tiles) == grid.n_tiles:
        return math.prod(int(one.sum()) for one in per_axis)
    if not len(tiles):
        return 0
    index = np.unravel_index(np.asarray(tiles), grid.numblocks)
    return int(np.prod([one[i] for one, i in zip(per_axis, index, strict=True)], axis=0).sum())


def _needed(met: Sequence[NDArray[np.int64]], grid: TileGrid, tiles: Sequence[int], decoded: int) -> int:
    """Chunks that any of some tiles meets."""
    along = [_marked(int(one.max()), one) for one in met]
    counts = [int(one.sum()) for one in along]
    if len(tiles) == grid.n_tiles:
        return math.prod(counts)
    extents = tuple(one.size for one in along)
    if math.prod(extents) > _MANY_CHUNKS or len(tiles) > _MANY_TILES:
        # As often as over the whole grid.
        whole = math.prod(int((one[:, 1] - one[:, 0]).sum()) for one in met)
        return max(decoded * math.prod(counts) // whole, 1)
    marked = np.zeros(extents, np.bool_)
    for tile in tiles:
        index = np.unravel_index(tile, grid.numblocks)
        marked[tuple(slice(*one[i]) for one, i in zip(met, index, strict=True))] = True
    return int(np.count_nonzero(marked))


def _marked(n: int, spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    found = np.zeros(n, np.bool_)
    for begin, end in spans:
        found[begin:end] = True
    return found
