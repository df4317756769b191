"""What the log of a run tells of it as a whole: totals, the slowest tiles, who was at work when, merges by axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.grid import TileGrid
from blockbuster.runlog import RunLog, State

__all__ = ["AxisMerges", "Totals", "busy_lanes", "merges_by_axis", "merges_to_next", "on_grid", "slowest", "totals"]


@dataclass(frozen=True)
class Totals:
    """What all tiles of a run came to.

    Attributes
    ----------
    n_done, n_skipped, n_failed : int
        Tiles.
    work : float
        Seconds that the tiles took, one after the other.
    active : float
        Seconds in which at least one tile was at work.
    began, ended : float
        When the first began and the last ended, in seconds since 1970.
    n_bytes : int
        Bytes of the image that were read, decoded.
    n_objects : int
        Labels in the cores, before merging.
    n_workers : int
        Processes that were at work.
    """

    n_done: int
    n_skipped: int
    n_failed: int
    work: float
    active: float
    began: float
    ended: float
    n_bytes: int
    n_objects: int
    n_workers: int

    @property
    def speed_up(self) -> float:
        """Tiles that were at work at a time, on average; 0 where none took any time."""
        return self.work / self.active if self.active else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Of the image, while any tile was at work; 0 where none took any time."""
        return self.n_bytes / self.active if self.active else 0.0


@dataclass(frozen=True)
class AxisMerges:
    """Pairs of labels that were found to be one object, over the seams of one direction.

    Attributes
    ----------
    axes : tuple of int
        That the seams cross; more than one for edges and corners of tiles.
    n_seams, n_pairs : int
        Seams with any pairs, and pairs.
    """

    axes: tuple[int, ...]
    n_seams: int
    n_pairs: int


def totals(log: RunLog) -> Totals:
    """The sums over all tiles; of a log of at least one."""
    n_of = {state: int(np.count_nonzero(log.state == state)) for state in State}
    ends = log.began + log.seconds
    return Totals(
        n_done=n_of[State.DONE],
        n_skipped=n_of[State.SKIPPED],
        n_failed=n_of[State.FAILED],
        work=float(log.seconds.sum(dtype=np.float64)),
        active=float(sum(end - begin for begin, end in _active_spans(log))),
        began=float(log.began.min()),
        ended=float(ends.max()),
        n_bytes=int(log.n_bytes.sum()),
        n_objects=int(log.n_objects.sum()),
        n_workers=len(np.unique(log.worker)),
    )


def slowest(log: RunLog, n: int) -> NDArray[np.int64]:
    """Positions in the log of up to `n` tiles, the slowest first; skipped tiles are none of them."""
    places = np.flatnonzero(log.state != State.SKIPPED)
    return places[np.argsort(-log.seconds[places], kind="stable")[:n]]


def on_grid(log: RunLog, values: NDArray[Any], grid: TileGrid) -> NDArray[np.float64]:
    """One value per tile in the shape of the grid, NaN for tiles that the log does not tell of."""
    made = np.full(grid.n_tiles, np.nan)
    # A pyramid numbers the tiles of its coarser levels after those of the first.
    known = log.block_id < grid.n_tiles
    made[log.block_id[known]] = values[known]
    return made.reshape(grid.numblocks)


def busy_lanes(log: RunLog, n_bins: int) -> NDArray[np.float64]:
    """For each worker, how many tiles it was at work on, over the time of the run.

    Time in which no tile was at work at all is left out where it is more than the other: a run may have been resumed
    days later.

    Returns
    -------
    lanes : ndarray of float64, shape (n_workers, n_bins)
        The mean over each of the equal bins of time.
    """
    begins, ends = log.began, log.began + log.seconds
    spans = np.array(_active_spans(log))
    if spans[-1, 1] - spans[0, 0] > 2 * (spans[:, 1] - spans[:, 0]).sum():
        begins, ends = (_less_idle(times, spans) for times in (begins, ends))
    origin, duration = begins.min(), max(ends.max() - begins.min(), 1e-9)
    scaled = [(times - origin) / duration * n_bins for times in (begins, ends)]
    lanes = np.zeros((len(log.workers), n_bins + 1))
    for times, sign in zip(scaled, (1, -1), strict=True):
        # From its time on each tile counts, from its end on it no longer does: in the bin of that time in part.
        place = np.minimum(times.astype(np.int64), n_bins - 1)
        part = times - place
        np.add.at(lanes, (log.worker, place), sign * (1 - part))
        np.add.at(lanes, (log.worker, place + 1), sign * part)
    made: NDArray[np.float64] = np.maximum(np.cumsum(lanes, axis=1)[:, :-1], 0)
    return made


def merges_by_axis(log: RunLog, grid: TileGrid) -> list[AxisMerges]:
    """The pairs of all seams by the axes that these cross, faces first."""
    if not len(log.seams):
        return []
    first, second = (np.stack(np.unravel_index(log.seams[:, side], grid.numblocks), axis=1) for side in (0, 1))
    crossed = first != second
    kind = crossed @ (1 << np.arange(grid.ndim))
    found = [
        AxisMerges(
            tuple(axis for axis in range(grid.ndim) if number >> axis & 1),
            int(np.count_nonzero(kind == number)),
            int(log.seams[kind == number, 2].sum()),
        )
        for number in np.unique(kind).tolist()
    ]
    return sorted(found, key=lambda one: (len(one.axes), one.axes))


def merges_to_next(log: RunLog, grid: TileGrid, axis: int) -> NDArray[np.int64]:
    """For each tile the pairs over its seam with the next one along an axis, in the shape of the grid."""
    made = np.zeros(grid.n_tiles, np.int64)
    step = int(np.prod(grid.numblocks[axis + 1 :]))
    first, second = np.sort(log.seams[:, :2], axis=1).T
    places = np.unravel_index(first, grid.numblocks)[axis] if len(first) else first
    along = (second - first == step) & (places < grid.numblocks[axis] - 1)
    made[first[along]] = log.seams[along, 2]
    return made.reshape(grid.numblocks)


def _active_spans(log: RunLog) -> list[tuple[float, float]]:
    """When at least one tile was at work: the union of the times of all, ascending."""
    order = np.argsort(log.began, kind="stable")
    begins, ends = log.began[order], np.maximum.accumulate((log.began + log.seconds)[order])
    first = np.flatnonzero(np.concatenate([[True], begins[1:] > ends[:-1]]))
    last = np.concatenate([first[1:] - 1, [len(begins) - 1]])
    return list(zip(begins[first].tolist(), ends[last].tolist(), strict=True))


def _less_idle(times: NDArray[np.float64], spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times as seconds of activity before them."""
    before = np.concatenate([[0.0], np.cumsum(spans[:, 1] - spans[:, 0])])
    span = np.searchsorted(spans[:, 0], times, side="right") - 1
    made: NDArray[np.float64] = before[span] + np.minimum(times, spans[span, 1]) - spans[span, 0]
    return made
