"""Runs of a few tiles, to see what all of them would take: time, memory, and bytes on disk.

A trial is the run itself for some of its tiles, into folders of its own beside those of the run: on the same file
systems, by the same workers. Nothing of it is left.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockbuster.capacity import Workers, room_at
from blockbuster.destination import Destination, stage_folder
from blockbuster.errors import OutputError
from blockbuster.files import remove_folder
from blockbuster.graph import compute_arrays
from blockbuster.grid import TileGrid
from blockbuster.needs import Intent, trying
from blockbuster.outputs import plan_output
from blockbuster.rowwise import RowPlan, make_rows
from blockbuster.run import Plan, execute
from blockbuster.schedulers import Scheduler
from blockbuster.tilewise import TilePlan, make_array, make_store

__all__ = ["Estimate", "Trials", "estimate", "make_trials", "spread_tiles"]

logger = logging.getLogger("blockbuster")

# Files take whole blocks of the file system.
_BLOCK = 4096
# The fractions by which one steps through a grid so that its parts are met evenly: powers of the root of
# x**(d + 1) = x + 1, which is the golden ratio in one dimension.
_ROOT_STEPS = 60
# What a tile takes of the time of a run of one tile, at least.
_LEAST = 0.1
# Two runs of the same work differ by this much at least.
_SPREAD = 0.25
# Tiles that take next to no time are made in such numbers that they take some: what disturbs them evens out.
_ENOUGH_SECONDS = 0.5
_ENOUGH_TILES = 100


@dataclass(frozen=True)
class Trials:
    """What a few tiles took.

    Attributes
    ----------
    seconds : tuple of float
        For each tile alone.
    n_tiles : float
        Tiles of the run; those of other arrays than the one that was tried by their voxels.
    first : float
        What the very first took more than the same tile again: imports, models, compilers.
    n_together, lanes : int
        How many tiles were then made in one run, and how many at a time.
    together : float
        Seconds that these took; 0 where none were.
    stage_bytes, output_bytes : float
        Mean of a tile, on disk.
    first_memory : int or None
        Bytes by which a worker grew with its first tile, and all that comes with it; None where it cannot be seen.
    memory : int or None
        Bytes by which it grew for a while with each tile after that.
    """

    seconds: tuple[float, ...]
    n_tiles: float
    first: float
    n_together: int
    lanes: int
    together: float
    stage_bytes: float
    output_bytes: float
    first_memory: int | None
    memory: int | None

    @property
    def mean(self) -> float:
        """Seconds of a tile alone."""
        return sum(self.seconds) / len(self.seconds)

    @property
    def busy(self) -> float:
        """Seconds that a tile keeps a worker's thread busy, the others being so as well."""
        return self.together * self.lanes / self.n_together if self.n_together else self.mean


@dataclass(frozen=True)
class Estimate:
    """Seconds that a run takes."""

    seconds: float
    low: float
    high: float


def estimate(trials: Trials, workers: Workers) -> Estimate:
    """The time of all tiles from that of a few.

    It lies as far to each side as the fastest and the slowest tile lie from the mean, and a quarter at least, as runs
    of the same work differ.
    """
    at_once = max(min(workers.tiles, workers.cpus, trials.n_tiles), 1)
    seconds = trials.n_tiles / at_once * trials.busy
    low = min(min(trials.seconds) / trials.mean, 1 - _SPREAD) * seconds
    high = max(max(trials.seconds) / trials.mean, 1 + _SPREAD) * seconds
    return Estimate(trials.first + seconds, low, trials.first + high)


def spread_tiles(grid: TileGrid, tiles: Sequence[int], n: int) -> list[int]:
    """Numbers of up to `n` tiles that are spread over a grid, and over each of its axes.

    Examples
    --------
    >>> spread_tiles(TileGrid.regular((90, 90), (10, 10)), range(81), 3)
    [40, 18, 5]
    """
    if len(tiles) < grid.n_tiles:
        return [tiles[(2 * k + 1) * len(tiles) // (2 * min(n, len(tiles)))] for k in range(min(n, len(tiles)))]
    root = 2.0
    for _ in range(_ROOT_STEPS):
        root = (1 + root) ** (1 / (grid.ndim + 1))
    # Axes with the most tiles step by the fraction that fills them most evenly.
    order = sorted(range(grid.ndim), key=lambda axis: -grid.numblocks[axis])
    steps = {axis: root ** -(place + 1) for place, axis in enumerate(order)}
    found: dict[int, None] = {}
    for k in range(8 * n):
        index = [int((0.5 + k * steps[axis]) % 1 * blocks) for axis, blocks in enumerate(grid.numblocks)]
        if len(found) < min(n, grid.n_tiles):
            found[grid.block_id(index)] = None
    return list(found)


def make_trials(intent: Intent, scheduler: Scheduler, workers: Workers, n: int) -> Trials | None:
    """Make a few tiles; None where there is none to be made."""
    tried = _tried(intent.run)
    if tried is None:
        return None
    chosen = spread_tiles(tried.grid, tried.tiles, n)
    with _own_folders(intent.to, tried.home) as (out, stage), trying(), _in_silence():
        return _Bench(tried, intent.to, out, stage, scheduler).measure(chosen, min(workers.tiles, workers.cpus))


@dataclass(frozen=True)
class _Tried:
    """What is tried of a run.

    Attributes
    ----------
    run : Plan, RowPlan or TilePlan
        The run, or that of the largest of its arrays alone.
    share : float
        Voxels of all arrays for each of that one.
    """

    run: Any
    grid: TileGrid
    tiles: Sequence[int]
    home: Path | None
    share: float

    @property
    def suffix(self) -> str:
        """Of the name of what it writes."""
        return ".parquet" if isinstance(self.run, RowPlan) else ".zarr"

    def blocks(self, made: Any, tiles: Sequence[int]) -> list[Any]:
        """Those of a lazy result that some tiles make."""
        if isinstance(self.run, RowPlan):
            return [made]
        return [made.blocks[self.grid.tile(tile).index] for tile in tiles]

    def make(self, tiles: Sequence[int], to: Destination) -> Any:
        """Some tiles; an array where they are not stored."""
        run = replace(self.run, block_ids=tuple(sorted(tiles)))
        if isinstance(run, Plan):
            return execute(run, to).labels
        if isinstance(run, RowPlan):
            return make_rows(run, to)
        if to.write_to is None:
            return make_array(run, to)
        is_patch = self.run.mask is not None or self.run.block_ids is not None
        make_store(run, to, None if is_patch else lambda: plan_output(to.root, "", overwrite=False, inputs=[]))
        return None


def _tried(run: Plan | RowPlan | TilePlan) -> _Tried | None:
    if isinstance(run, Plan | RowPlan):
        return _Tried(run, run.grid, run.tiles, run.image.home, 1.0) if len(run.tiles) else None
    sizes = {array.name: math.prod(array.shape) for array in run.arrays if len(run.tiles(array))}
    sources = [array for array in run.arrays if not isinstance(array.source, str) and sizes.get(array.name)]
    if not sources:
        return None
    largest = max(sources, key=lambda array: sizes[array.name])
    share = sum(sizes.values()) / sizes[largest.name]
    alone = replace(
        run, arrays=(replace(largest, name=""),), groups={}, beside={}, folders=(), consolidated=False, finish=None
    )
    return _Tried(alone, largest.grid, run.tiles(largest), run.home, share)


@contextlib.contextmanager
def _own_folders(to: Destination, home: Path | None) -> Iterator[tuple[str, str]]:
    """Folders on the file systems of the output and of the stage, removed in the end."""
    staged = room_at(stage_folder(to, home)).path
    written = staged if to.write_to is None else room_at(to.root.parent).path
    with contextlib.ExitStack() as stack:
        made = []
        for folder in (written, staged):
            made.append(_new_folder(folder))
            stack.callback(remove_folder, made[-1])
        yield made[0], made[1]


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Log no warnings: what is told of a few tiles, again and again, would be taken for the run's."""

    def is_grave(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(is_grave)
    try:
        yield
    finally:
        logger.removeFilter(is_grave)


def _new_folder(where: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=".blockbuster-plan-", dir=where)
    except OSError as error:
        raise OutputError(
            f"A few tiles cannot be tried in {where}, where the run would write: {error}. Give another write_to or "
            "stage_dir, or time_tiles=0."
        ) from error


@dataclass(frozen=True)
class _Bench:
    tried: _Tried
    to: Destination
    out: str
    stage: str
    scheduler: Scheduler

    def measure(self, chosen: Sequence[int], at_once: int) -> Trials:
        fresh = _reset_peaks(self.scheduler)
        very_first = self._run("first", chosen[:1])
        first_peak = _peaks(self.scheduler)
        settled = _reset_peaks(self.scheduler)
        made = [self._run(f"{k}", [tile]) for k, tile in enumerate(chosen)]
        peak = _peaks(self.scheduler)
        overhead = min(self._run(name, []).seconds for name in ("none", "none-again")) if self.is_stored else 0.0
        seconds = [max(one.seconds - overhead, _LEAST * one.seconds) for one in made]
        several = self._several(chosen, sum(seconds) / len(seconds), at_once)
        together = self._run("together", several).seconds if several else 0.0
        return Trials(
            seconds=tuple(seconds),
            n_tiles=len(self.tried.tiles) * self.tried.share,
            first=max(very_first.seconds - made[0].seconds, 0.0),
            n_together=len(several),
            lanes=min(at_once, len(several)),
            together=max(together - overhead, _LEAST * together),
            stage_bytes=sum(one.stage_bytes for one in made) / len(made),
            output_bytes=sum(one.output_bytes for one in made) / len(made),
            first_memory=_growth(fresh, first_peak, peak),
            memory=_growth(settled, peak),
        )

    def _several(self, chosen: Sequence[int], seconds: float, at_once: int) -> Sequence[int]:
        """Tiles for one run of several: some of those that were tried, or many where each takes next to no time."""
        enough = int(min(_ENOUGH_SECONDS * at_once / seconds, _ENOUGH_TILES)) if seconds else _ENOUGH_TILES
        if enough > len(chosen):
            return spread_tiles(self.tried.grid, self.tried.tiles, enough)
        return chosen[:at_once] if at_once > 1 and len(chosen) > 1 else ()

    @property
    def is_stored(self) -> bool:
        """Whether the run writes to a store."""
        return self.to.write_to is not None

    def _run(self, name: str, tiles: Sequence[int]) -> _Made:
        """Some tiles, and what has to be done for any."""
        stage, out = os.path.join(self.stage, f"{name}.stage"), os.path.join(self.out, f"{name}{self.tried.suffix}")
        os.mkdir(stage)
        to = replace(
            self.to,
            write_to=out if self.is_stored else None,
            output_component="",
            stage_dir=stage,
            keep_stage=self.is_stored,
            compute=False,
            progress=False,
            verbose=False,
            resume=False,
            overwrite=False,
        )
        begin = time.perf_counter()
        made = self.tried.make(tiles, to)
        if not self.is_stored:
            blocks = self.tried.blocks(made, tiles)
            begin = time.perf_counter()
            compute_arrays(*blocks)
        seconds = time.perf_counter() - begin
        return _Made(seconds, _bytes_in(stage, r"\.tile$"), _bytes_in(out, r"^[^.z]"))


@dataclass(frozen=True)
class _Made:
    seconds: float
    stage_bytes: int
    output_bytes: int


def _bytes_in(folder: str, pattern: str) -> int:
    """Bytes that a file takes, or those in a folder whose names match a pattern, in whole blocks."""
    sizes = [os.path.getsize(folder)] if os.path.isfile(folder) else []
    sizes += [
        os.path.getsize(os.path.join(where, name))
        for where, _, names in os.walk(folder)
        for name in names
        if re.search(pattern, name)
    ]
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes)


# The memory of processes, where the system tells of it


def _reset_peaks(scheduler: Scheduler) -> dict[str, int]:
    """Let the peak of each worker begin anew; what each holds now."""
    return _on_workers(scheduler, _reset_peak)


def _peaks(scheduler: Scheduler) -> dict[str, int]:
    return _on_workers(scheduler, _peak)


def _on_workers(scheduler: Scheduler, function: Callable[[], int]) -> dict[str, int]:
    if scheduler.client is not None:
        found: dict[str, int] = scheduler.client.run(function)
        return found
    # Other processes come and go with each run.
    return {} if scheduler.kind == "processes" else {"": function()}


def _growth(before: Mapping[str, int], *after: Mapping[str, int]) -> int | None:
    grown = [peaks[worker] - held for worker, held in before.items() for peaks in after if held and peaks.get(worker)]
    return max(grown, default=None)


def _reset_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    told = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
