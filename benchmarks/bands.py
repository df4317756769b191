"""The union of a volume too large for one task: bands of tiles, united on their own, then joined two by two.

::

    close_band 0 ─┐                                           ┌─► number_band 0 ──┐
    close_band 1 ─┴► join ─┐                       ┌► resolve ┴─► number_band 1   ├─► finish_band 0
    close_band 2 ─┐        ├► join ─► resolve ─────┤                              ├─► finish_band 1
    close_band 3 ─┴► join ─┘                       └► resolve ┬─► number_band 2 ──┤   ...
                                                              └─► number_band 3 ──┘

A band is some whole layers of tiles along the first axis. What goes up from it are the labels that an open seam
touches, those at the borders of the band; a join closes all that only the seams between its two halves touch. What
comes down is, for each label that went up, the label that its object begins with. Labels are numbered layer by layer,
and so are voxels: by either order, an object begins in the earliest band that it meets. So each band numbers the
objects that begin in it, and looks the others up.

Every piece is a plain function, and no piece holds more than one band or the labels at three borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from seams import SyntheticScans

from blockbuster.unions import ScanPart, first_voxels_of, provisional_pairs, ranks, unite_pairs

Ids: TypeAlias = NDArray[np.int64]

_NO_LIMIT = _NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Mapping:
    """Ids that stand for others: the ones that are gone, ascending, and what they have become."""

    gone: Ids
    become: Ids

    def of(self, ids: Ids) -> Ids:
        """What each of some ids has become: itself where it is not gone."""
        if not self.gone.size:
            return ids
        place = np.minimum(np.searchsorted(self.gone, ids), self.gone.size - 1)
        return np.where(self.gone[place] == ids, self.become[place], ids)


@dataclass(frozen=True)
class Open:
    """What some bands in a row show to those around them.

    Attributes
    ----------
    lower, upper : ndarray of int64
        Ids at the ends of the pairs over the border before the first band, and over that after the last one.
    ids, first : ndarray of int64
        The same ids, ascending, each once, and the first voxel of each as far as it is known.
    """

    lower: Ids
    upper: Ids
    ids: Ids
    first: Ids


@dataclass(frozen=True)
class Joined:
    """Two rows of bands in one: what it shows, and what has become of what the two of them showed."""

    shown: Open
    mapping: Mapping
    ids: Ids
    first: Ids


@dataclass(frozen=True)
class Resolved:
    """For each id that some bands showed: the id that its object begins with, and the first voxel of the object."""

    ids: Ids
    roots: Ids
    first: Ids


@dataclass(frozen=True)
class Band:
    """Some whole layers of tiles, and what their scans found.

    Attributes
    ----------
    low, high : int
        Its labels are ``low + 1 .. high``.
    parts : list of ScanPart
        The scans of its tiles.
    inner, lower, upper : ndarray of int64, shape (n, 2)
        Pairs within the band, over the border before it, and over that after it.
    """

    low: int
    high: int
    offsets: Ids
    parts: list[ScanPart]
    inner: Ids
    lower: Ids
    upper: Ids

    def first_voxels(self) -> Ids:
        """Of its labels."""
        return first_voxels_of(self.parts, np.clip(self.offsets - self.low, 0, self.high - self.low))


def read_band(scans: SyntheticScans, number: int, n_bands: int) -> Band:
    """One of `n_bands` bands, and the pairs over the border before it, from the scans of the last layer there."""
    layers, per_layer = scans.numblocks[0], scans.grid.n_tiles // scans.numblocks[0]
    begin, end = (layers * k // n_bands * per_layer for k in (number, number + 1))
    offsets = np.concatenate([[0], np.cumsum(scans.counts)])
    low, high = int(offsets[begin]), int(offsets[end])
    parts = scans.parts(begin, end)
    pairs = _pairs(scans, parts, offsets)
    before = _pairs(scans, scans.parts(begin - per_layer, begin), offsets) if number else pairs[:0]
    leaves = pairs[:, 1] > high
    return Band(low, high, offsets, parts, pairs[~leaves], before[before[:, 1] > low], pairs[leaves])


def close_band(band: Band) -> tuple[Mapping, Open]:
    """Unite the pairs within a band."""
    mapping = Mapping(*unite_pairs(band.inner, _NO_LIMIT))
    lower, upper = mapping.of(band.lower[:, 1]), mapping.of(band.upper[:, 0])
    ids = np.unique(np.concatenate([lower, upper]))
    if band.parts[0].first is None:
        return mapping, Open(lower, upper, ids, np.full(ids.size, _NOWHERE))
    first = band.first_voxels()
    np.minimum.at(first, mapping.become - band.low - 1, first[mapping.gone - band.low - 1])
    return mapping, Open(lower, upper, ids, first[ids - band.low - 1])


def join(before: Open, after: Open) -> Joined:
    """Unite the pairs over the border between two rows of bands."""
    mapping = Mapping(*unite_pairs(np.stack([before.upper, after.lower], axis=1), _NO_LIMIT))
    lower, upper = mapping.of(before.lower), mapping.of(after.upper)
    ids, place = np.unique(mapping.of(np.concatenate([before.ids, after.ids])), return_inverse=True)
    first = np.full(ids.size, _NOWHERE)
    np.minimum.at(first, place, np.concatenate([before.first, after.first]))
    shown = np.unique(np.concatenate([lower, upper]))
    return Joined(Open(lower, upper, shown, first[np.searchsorted(ids, shown)]), mapping, ids, first)


def resolve(joined: Joined, above: Resolved, half: Open) -> Resolved:
    """What a join, and all those above it, tell one of its halves."""
    here = joined.mapping.of(half.ids)
    roots, first = Mapping(above.ids, above.roots).of(here), joined.first[np.searchsorted(joined.ids, here)]
    if above.ids.size:
        place = np.minimum(np.searchsorted(above.ids, here), above.ids.size - 1)
        first = np.where(above.ids[place] == here, above.first[place], first)
    return Resolved(half.ids, roots, first)


@dataclass(frozen=True)
class Level:
    """One level of a tree over bands: rows of bands, and the joins of two neighbours each.

    The last of an odd number of rows goes up as it is.
    """

    rows: list[Open]
    joins: list[Joined]


def join_all(shown: Sequence[Open]) -> list[Level]:
    """The tree over the bands, from below."""
    rows, levels = list(shown), []
    while len(rows) > 1:
        levels.append(Level(rows, [join(a, b) for a, b in zip(rows[::2], rows[1::2], strict=False)]))
        rows = [one.shown for one in levels[-1].joins] + ([rows[-1]] if len(rows) % 2 else [])
    return levels


def resolve_all(levels: Sequence[Level]) -> list[Resolved]:
    """What each band is told."""
    none = np.empty(0, np.int64)
    told = [Resolved(none, none, none)]
    for level in reversed(levels):
        told = [
            resolve(level.joins[k // 2], told[k // 2], row) if k // 2 < len(level.joins) else told[k // 2]
            for k, row in enumerate(level.rows)
        ]
    return told


def gone_of_band(mapping: Mapping, told: Resolved) -> Mapping:
    """All labels of a band that are gone, and the id that their object begins with."""
    moved = told.roots != told.ids
    gone = np.concatenate([mapping.gone, told.ids[moved]])
    become = np.concatenate([Mapping(told.ids, told.roots).of(mapping.become), told.roots[moved]])
    order = np.argsort(gone)
    return Mapping(gone[order], become[order])


def number_by_tile(band: Band, gone: Mapping, told: Resolved, n_gone_before: int) -> Mapping:
    """Final ids, without gaps, of the objects that begin in a band and that other bands may ask for."""
    own = np.unique(told.roots[told.roots > band.low])
    return Mapping(own, own - n_gone_before - np.searchsorted(gone.gone, own))


def number_by_first(
    band: Band, gone: Mapping, told: Resolved, n_objects_before: int, dtype: str
) -> tuple[NDArray[np.integer], Mapping]:
    """Final ids of the labels of a band whose objects begin in it; and of the objects that others may ask for."""
    first = band.first_voxels()
    inside = gone.become > band.low
    mine, roots = gone.gone[inside] - band.low - 1, gone.become[inside] - band.low - 1
    np.minimum.at(first, roots, first[mine])
    here = told.roots > band.low
    first[told.roots[here] - band.low - 1] = told.first[here]
    first[gone.gone - band.low - 1] = -1
    ids = ranks(first, dtype)
    ids[ids > 0] += n_objects_before
    ids[mine] = ids[roots]
    own = np.unique(told.roots[here])
    return ids, Mapping(own, ids[own - band.low - 1].astype(np.int64))


def look_up(roots: Ids, lows: Ids, numbered: Callable[[int], Callable[[Ids], Ids]]) -> Ids:
    """Final ids of objects by the ids that they begin with, from the bands that have numbered them.

    Parameters
    ----------
    lows : ndarray of int64
        `low` of each band.
    numbered : callable
        ``band -> (ids -> final ids)``.
    """
    final = np.empty_like(roots)
    bands = np.searchsorted(lows, roots) - 1
    for number in np.unique(bands):
        here = bands == number
        final[here] = numbered(int(number))(roots[here])
    return final


def _pairs(scans: SyntheticScans, parts: Sequence[ScanPart], offsets: Ids) -> Ids:
    return provisional_pairs(parts, offsets, scans.counts, np.zeros_like(scans.counts))
