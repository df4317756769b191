"""Local ids: the labels of one tile as 1..n, in as few bits as they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

from blockbuster.grid import Region

__all__ = ["LocalLabels", "first_voxels", "labels_in", "number_locally"]


@dataclass(frozen=True)
class LocalLabels:
    """Labels renumbered 1..n for those of the core, n+1.. for the *ghosts*, seen only around it.

    Attributes
    ----------
    labels : ndarray of unsigned integers
        The renumbered labels.
    n, ghosts : int
        How many labels are in the core, and only around it.
    ids : ndarray or None
        The labels of the core as they were, ascending; None where they were 1..n.
    """

    labels: NDArray[Any]
    n: int
    ghosts: int
    ids: NDArray[Any] | None

    def of(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Local ids of some labels as they were; 0 for those that are not in the core."""
        if self.ids is None:
            return np.where(labels <= self.n, labels, 0).astype(np.int64)
        where = np.searchsorted(self.ids, labels)
        known = where < self.ids.size
        known[known] = self.ids[where[known]] == labels[known]
        return np.where(known, where + 1, 0)


def number_locally(labels: NDArray[Any], core: Region, n: int | None) -> LocalLabels:
    """Renumber the labels of a tile in their order.

    Parameters
    ----------
    labels : ndarray of non-negative integers
        The core and, where neighbours compare it, one voxel around it.
    core : tuple of slice
        Where the core is.
    n : int or None
        If `labels` are known to be 1..n, how many.
    """
    all_core = labels[core].shape == labels.shape
    if n is not None and all_core:
        return LocalLabels(_narrow(labels, n), n, 0, None)
    ids = labels_in(labels[core])
    ghosts = ids[:0] if all_core else np.setdiff1d(labels_in(labels), ids, assume_unique=True)
    if ids.size and not ghosts.size and int(ids[-1]) == ids.size:
        return LocalLabels(_narrow(labels, ids.size), ids.size, 0, None)
    return LocalLabels(_renumbered(labels, np.concatenate([ids, ghosts])), ids.size, ghosts.size, ids)


def first_voxels(labels: NDArray[Any], start: Sequence[int], shape: Sequence[int]) -> NDArray[np.int64]:
    """Position of the first voxel of each label 1..n, as an index into the flattened image.

    Parameters
    ----------
    labels : ndarray of integers
        Labels of a core, numbered by first voxel in C order.
    start : sequence of int
        Where the core begins in the image.
    shape : sequence of int
        Shape of the image.

    Examples
    --------
    >>> first_voxels(np.array([[0, 1, 1], [2, 0, 1]]), start=(10, 0), shape=(20, 100))
    array([1001, 1100])
    """
    rows = labels.reshape(-1, labels.shape[-1])
    # Labels rise in raster order: a row has a new one if and only if its largest exceeds all before it.
    highest = np.maximum.accumulate(rows.max(axis=1))
    before = np.concatenate([[0], highest[:-1]]).astype(highest.dtype)
    fresh = np.flatnonzero(highest > before)
    place, value = _candidates(rows[fresh], before[fresh])
    largest = np.maximum.accumulate(value)
    first = place[np.concatenate([value[:1] > 0, largest[1:] > largest[:-1]])]
    row, column = np.divmod(first, rows.shape[1])
    local = np.unravel_index(fresh[row] * rows.shape[1] + column, labels.shape)
    placed = tuple(i + a for i, a in zip(local, start, strict=True))
    position: NDArray[np.int64] = np.ravel_multi_index(placed, tuple(shape)).astype(np.int64)
    return position


def _candidates(rows: NDArray[Any], before: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Where in `rows`, flattened, values are larger than all in the rows `before`, and these values."""
    place = np.flatnonzero(rows > before[:, np.newaxis])
    return place, rows.reshape(-1)[place]


def labels_in(labels: NDArray[Any]) -> NDArray[Any]:
    """The labels of an array but 0, ascending."""
    found = fastremap.unique(np.ascontiguousarray(labels)) if labels.size else labels.reshape(-1)
    inside: NDArray[Any] = found[found != 0]
    return inside


def _renumbered(labels: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
    """Labels by their place in `ids`, from 1; all of them but 0 are there."""
    dtype = _narrowest(ids.size)
    top = int(ids.max(initial=0))
    if top <= max(4 * labels.size, 1 << 16):
        table = np.zeros(top + 1, dtype)
        table[ids] = np.arange(1, ids.size + 1)
        renumbered: NDArray[Any] = table[labels]
        return renumbered
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], labels)
    place[labels == 0] = 0
    renumbered = (order + 1).astype(dtype)[place]
    renumbered[labels == 0] = 0
    return renumbered


def _narrowest(n: int) -> np.dtype[Any]:
    return np.min_scalar_type(n)


def _narrow(labels: NDArray[Any], n: int) -> NDArray[Any]:
    return labels.astype(_narrowest(n), copy=False)
