"""What the scans of a volume too large to make would have found: labels, first voxels and pairs, drawn at random.

Each tile has labels at random places. Over each seam pairs of labels are one object, drawn at random too, and label 1
of each tile goes on through the first axis: objects as long as the volume. Any part can be made without the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from blockbuster.grid import TileGrid, forward_offsets
from blockbuster.unions import ScanPart

TILE = 256
# As the scanning tasks of a run take them.
TILES_PER_PART = 64


@dataclass(frozen=True)
class SyntheticScans:
    """Scans of the tiles of a grid.

    Attributes
    ----------
    numblocks : tuple of int
        Tiles per axis.
    n_labels, n_pairs : int
        How many there are in all, at least.
    has_first : bool
        Whether the parts tell first voxels, as raster numbering needs them.
    """

    numblocks: tuple[int, ...]
    n_labels: int
    n_pairs: int
    has_first: bool
    seed: int = 0

    @cached_property
    def grid(self) -> TileGrid:
        """The tiles."""
        return TileGrid.regular(tuple(TILE * n for n in self.numblocks), (TILE,) * len(self.numblocks))

    @cached_property
    def counts(self) -> np.ndarray:
        """Labels of each tile: about half to one and a half times the mean, at least 1."""
        mean = self.n_labels / self.grid.n_tiles
        drawn = np.random.default_rng(self.seed).integers(int(mean / 2), int(1.5 * mean) + 1, self.grid.n_tiles)
        missing = max(self.n_labels - int(drawn.sum()), 0)
        return np.maximum(drawn + -(-missing // drawn.size), 1)

    def parts(self, begin: int = 0, end: int | None = None) -> list[ScanPart]:
        """What the scanning tasks of the tiles from `begin` to `end` found, both multiples of the tiles of a task."""
        end = self.grid.n_tiles if end is None else end
        return [self._part(range(k, min(k + TILES_PER_PART, end))) for k in range(begin, end, TILES_PER_PART)]

    def _part(self, numbers: range) -> ScanPart:
        rng, tiles = np.random.default_rng((self.seed, numbers.start)), np.array(numbers)
        seams, pairs = self._pairs(tiles, rng)
        return ScanPart(
            block_ids=tiles,
            counts=self.counts[tiles],
            ghosts=np.zeros_like(tiles),
            first=np.concatenate([self._first(int(tile), rng) for tile in tiles]) if self.has_first else None,
            seams=seams,
            pairs=pairs,
            skipped=0,
            reaching=0,
        )

    def _pairs(self, tiles: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        offsets = forward_offsets(self.grid.ndim, range(self.grid.ndim), 1)
        ends = [(s.first, s.second, s.axes[0]) for tile in tiles for s in self.grid.seams(int(tile), offsets)]
        first, second, axis = np.array(ends, np.int64).reshape(-1, 3).T
        n_seams = sum(self.grid.n_tiles // n * (n - 1) for n in self.numblocks)
        each = -(-self.n_pairs // max(n_seams, 1))
        sides = [rng.integers(1, self.counts[side][:, np.newaxis] + 1, (side.size, each)) for side in (first, second)]
        pairs = np.stack(sides, axis=-1)
        pairs[axis == 0, 0] = 1
        return np.stack([first, second, np.full_like(first, each)], axis=1), pairs.reshape(-1, 2)

    def _first(self, tile: int, rng: np.random.Generator) -> np.ndarray:
        start, box = self.grid.tile(tile).start, (TILE,) * self.grid.ndim
        places = rng.choice(math.prod(box), self.counts[tile], replace=False, shuffle=False)
        where = [a + within for a, within in zip(start, np.unravel_index(places, box), strict=True)]
        return np.sort(np.ravel_multi_index(where, self.grid.shape))
