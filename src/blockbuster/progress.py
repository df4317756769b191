"""How far a run is, for people who wait: the same on any scheduler."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from blockbuster.errors import TileError
from blockbuster.runlog import LogReader, State
from blockbuster.schedulers import listening

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Progress", "RunProgress", "Step", "show_lines", "shown"]

logger = logging.getLogger("blockbuster")

# Seconds between two looks at a log, and those that tell how fast a run is.
_INTERVAL = 0.2
_RECENT = 60.0
_UNFINISHED = {"waiting", "queued", "no-worker", "processing", "erred"}


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes
    ----------
    step : {"staging", "merging", "writing"}
        What goes on: the function is called for each tile; labels are joined across tiles; the result is written.
        Operations that do not merge only have "writing", and tables only "staging".
    done, total : int
        Tiles, each counted in each step but merging.
    n_tiles : int
        Tiles of the run.
    staged, skipped, failed : int
        Tiles that are done with the function, all told; those of them that were skipped as empty, and that failed.
    scanned : int
        Tiles whose seams have been compared.
    relabelled : int
        Tiles, or regions of the output where these are larger, that have got their final labels.
    n_bytes : int
        Bytes of the image that tiles have read, decoded.
    seconds : float
        Since the run, or its resumption, began.
    seconds_left : float or None
        At the pace of the last minute; None as long as that is not known.

    See Also
    --------
    tile_process : as all operations, takes a function of this as `progress`.
    """

    step: Literal["staging", "merging", "writing"]
    done: int
    total: int
    n_tiles: int
    staged: int = 0
    skipped: int = 0
    failed: int = 0
    scanned: int = 0
    relabelled: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None


Progress: TypeAlias = bool | Callable[[RunProgress], None]


@dataclass(frozen=True)
class Step:
    """What the tasks of one name of keys do.

    Attributes
    ----------
    batch : int
        Tiles in each task; the last may have fewer.
    n_tiles : int
        Tiles in all of them.
    """

    name: Literal["staging", "merging", "writing"]
    batch: int
    n_tiles: int


@contextlib.contextmanager
def shown(progress: Progress, steps: Mapping[str, Step], n_tiles: int, log: str | None = None) -> Iterator[None]:
    """Report the tasks of some steps as they are done.

    Parameters
    ----------
    progress : bool or callable
        True for a bar on the terminal or in the notebook; a callable gets a `RunProgress`, in the thread of the caller.
        What it raises ends the run.
    steps : mapping of str to Step
        By the name of their keys, in their order.
    n_tiles : int
        How many tiles there are.
    log : str, optional
        Folder of the log of the run.
    """
    if not progress:
        yield
        return
    with _reporter(progress, _total(steps)) as report:
        meter = _Meter(report, steps, n_tiles, log)
        try:
            with listening(meter):
                yield
        except TileError:
            meter.tell(at_once=True)
            raise
        meter.end()


class _Meter:
    """Makes reports of the tasks that end, and of what the log says."""

    def __init__(
        self, report: Callable[[RunProgress], None], steps: Mapping[str, Step], n_tiles: int, log: str | None
    ) -> None:
        self._steps = steps
        self._report = report
        self._n_tiles = n_tiles
        self._n_done = dict.fromkeys(steps, 0)
        self._told = _Told(log)
        self._pace = _Pace()
        self._said: dict[str, int] | None = None

    def ended(self, key: Any) -> None:
        """Count one more task, if it is of one of the steps."""
        if isinstance(key, tuple) and key[0] in self._steps:
            self._count({key[0]: self._n_done[key[0]] + self._steps[key[0]].batch})

    def look(self, client: Client) -> None:
        """Ask the scheduler of a cluster, which forgets a step once all that needs it is done."""
        batches = {key: step.batch for key, step in self._steps.items()}
        self._count(client.run_on_scheduler(functools.partial(_finished_tiles, batches)))

    def _count(self, n_done: Mapping[str, int]) -> None:
        """Take over how many tiles are done; never counts back."""
        for key, n in n_done.items():
            self._n_done[key] = min(max(n, self._n_done[key]), self._steps[key].n_tiles)
        self.tell()

    def end(self) -> None:
        """Say that all is done."""
        n_done = {key: step.n_tiles for key, step in self._steps.items()}
        if n_done != self._said:
            self._count(n_done)

    def tell(self, *, at_once: bool = False) -> None:
        """Report; `at_once` with all that the log says by now."""
        counted = {step.name: 0 for step in self._steps.values()}
        for key, step in self._steps.items():
            counted[step.name] += self._n_done[key]
        total = _total(self._steps)
        done = sum(n for name, n in counted.items() if name != "merging")
        self._told.look(at_once=at_once or done == total)
        # Of an operation of one step, this is where the function is called.
        staged = counted.get("staging", counted.get("writing", 0))
        seconds, left = self._pace.after(done, total)
        self._said = dict(self._n_done)
        self._report(
            RunProgress(
                step=self._step(),
                done=done,
                total=total,
                n_tiles=self._n_tiles,
                staged=staged,
                skipped=self._told.n(State.SKIPPED),
                failed=self._told.n(State.FAILED),
                scanned=counted.get("merging", 0),
                relabelled=counted.get("writing", 0) if "staging" in counted else 0,
                n_bytes=self._told.n_bytes,
                seconds=seconds,
                seconds_left=left,
            )
        )

    def _step(self) -> Literal["staging", "merging", "writing"]:
        """The first step that is not done, or the last."""
        open_steps = [step.name for key, step in self._steps.items() if self._n_done[key] < step.n_tiles]
        return open_steps[0] if open_steps else list(self._steps.values())[-1].name


def _total(steps: Mapping[str, Step]) -> int:
    """Tiles that count: comparing seams takes next to no time."""
    return sum(step.n_tiles for step in steps.values() if step.name != "merging")


class _Told:
    """What a log says so far."""

    def __init__(self, log: str | None) -> None:
        self._reader = LogReader(log) if log is not None else None
        self._tiles: dict[int, set[int]] = {State.SKIPPED: set(), State.FAILED: set()}
        self._next = 0.0
        self.n_bytes = 0

    def n(self, state: State) -> int:
        """Tiles that were skipped, or that failed and were not made since."""
        return len(self._tiles[state])

    def look(self, *, at_once: bool = False) -> None:
        """Read what is new, if it was not done a moment ago."""
        if self._reader is None or (time.monotonic() < self._next and not at_once):
            return
        for _, entries in self._reader.new_entries():
            self.n_bytes += int(entries["n_bytes"].sum())
            for state, tile in zip(entries["state"].tolist(), entries["block_id"].tolist(), strict=True):
                self._note(tile, state)
        self._next = time.monotonic() + _INTERVAL

    def _note(self, tile: int, state: int) -> None:
        for other, tiles in self._tiles.items():
            if other == state:
                tiles.add(tile)
            else:
                tiles.discard(tile)


class _Pace:
    """How fast a run is of late: what was done before, or skipped, says little of what is to come."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._seen = deque([(self._begin, 0)])

    def after(self, done: int, total: int) -> tuple[float, float | None]:
        """Seconds since the beginning, and those that are left."""
        now = time.monotonic()
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RECENT:
            self._seen.popleft()
        then, before = self._seen[0]
        left = (total - done) * (now - then) / (done - before) if done > before and now - then >= 1 else None
        return now - self._begin, 0.0 if done == total else left


# To whom it is reported


@contextlib.contextmanager
def _reporter(progress: Progress, total: int) -> Iterator[Callable[[RunProgress], None]]:
    if callable(progress):
        yield progress
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="tile", desc="blockbuster") as bar:

        def report(now: RunProgress) -> None:
            found = {"skipped": now.skipped, "failed": now.failed}
            bar.set_postfix({name: n for name, n in found.items() if n}, refresh=False)
            bar.update(now.done - bar.n)

        yield report


def _finished_tiles(batches: dict[str, int], dask_scheduler: Any = None) -> dict[str, int]:
    groups = {key: dask_scheduler.task_groups[key] for key in batches if key in dask_scheduler.task_groups}
    return {
        key: batches[key] * sum(n for state, n in group.states.items() if state not in _UNFINISHED)
        for key, group in groups.items()
    }


def show_lines(verbose: bool) -> None:
    """Let the lines of verbose runs be seen where logging is not set up."""
    if verbose and not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    if verbose:
        logger.setLevel(logging.INFO)
