"""How far a run is, for people who wait: tiles done, on any scheduler."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from dask.callbacks import Callback
from tqdm.auto import tqdm

from blockbuster.schedulers import Scheduler

__all__ = ["Progress", "show_lines", "shown"]

logger = logging.getLogger("blockbuster")

Progress: TypeAlias = bool | Callable[[int, int], None]

_INTERVAL = 0.2
_UNFINISHED = {"waiting", "queued", "no-worker", "processing", "erred"}


@contextlib.contextmanager
def shown(progress: Progress, scheduler: Scheduler, keys: Mapping[str, int], total: int) -> Iterator[None]:
    """Report the tasks of some steps as they are done.

    Parameters
    ----------
    progress : bool or callable
        True for a bar on the terminal or in the notebook; a callable gets ``(done, total)``.
    scheduler : Scheduler
        What runs the tasks.
    keys : mapping of str to int
        Names of the keys to count, and how many tiles each is.
    total : int
        How many tiles there are.
    """
    if not progress:
        yield
        return
    with _reporter(progress, total) as report:
        watch = _watched_client if scheduler.client is not None else _watched_tasks
        # The last batch may be smaller than the others.
        with watch(scheduler, keys, lambda done: report(min(done, total))):
            yield
        report(total)


@contextlib.contextmanager
def _reporter(progress: Progress, total: int) -> Iterator[Callable[[int], None]]:
    if callable(progress):
        yield lambda done: progress(done, total)
        return
    with tqdm(total=total, unit="tile", desc="blockbuster") as bar:

        def report(done: int) -> None:
            bar.update(done - bar.n)

        yield report


@contextlib.contextmanager
def _watched_tasks(_scheduler: Scheduler, keys: Mapping[str, int], report: Callable[[int], None]) -> Iterator[None]:
    done = 0

    def count(key: Any, *_rest: object) -> None:
        nonlocal done
        if isinstance(key, tuple) and key[0] in keys:
            done += keys[key[0]]
            report(done)

    with Callback(posttask=count):
        yield


@contextlib.contextmanager
def _watched_client(scheduler: Scheduler, keys: Mapping[str, int], report: Callable[[int], None]) -> Iterator[None]:
    client = scheduler.client
    assert client is not None
    stop = threading.Event()

    def watch() -> None:
        done = 0
        while not stop.wait(_INTERVAL):
            # The scheduler forgets a step once all that needs it is done: never count back.
            done = max(done, client.run_on_scheduler(_finished_tiles, keys=dict(keys)))
            report(done)

    thread = threading.Thread(target=watch, name="blockbuster-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _finished_tiles(keys: dict[str, int], dask_scheduler: Any = None) -> int:
    groups = [
        (dask_scheduler.task_groups[key], size) for key, size in keys.items() if key in dask_scheduler.task_groups
    ]
    return sum(n * size for group, size in groups for state, n in group.states.items() if state not in _UNFINISHED)


def show_lines(verbose: bool) -> None:
    """Let the lines of verbose runs be seen where logging is not set up."""
    if verbose and not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    if verbose:
        logger.setLevel(logging.INFO)
