"""What there is for a run: workers with their threads and memory, and room on file systems."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.system
import psutil
from dask.utils import format_bytes, parse_bytes

from blockbuster.budget import cpu_count, memory_limit
from blockbuster.errors import ParameterError
from blockbuster.schedulers import Scheduler

__all__ = ["Room", "Workers", "planned_workers", "process_memory", "room_at", "size_words", "tile_budget", "workers_of"]

# Bytes of a fresh worker process with its modules.
_FRESH = 128 << 20


@dataclass(frozen=True)
class Workers:
    """The processes that run the tasks.

    Attributes
    ----------
    n : int
        Worker processes; 0 where a cluster has none yet.
    tiles : int
        Tiles at a time, on all workers together.
    cpus : int
        CPUs for them, as far as it is known.
    memory : int or None
        Bytes that each may hold, the least of all; None where no limit is known.
    most_memory : int or None
        Bytes that the largest may hold, swap space counted where nothing forbids it.
    held : int
        Bytes that each holds before its first tile.
    limit : str
        Whose limit the memory is, in words.
    """

    n: int
    tiles: int
    cpus: int
    memory: int | None
    most_memory: int | None
    held: int
    limit: str

    @property
    def tiles_each(self) -> int:
        """Tiles at a time on one worker."""
        return max(-(-self.tiles // max(self.n, 1)), 1)


@dataclass(frozen=True)
class Room:
    """What is free on a file system.

    Attributes
    ----------
    path : str
        A folder on it.
    device : int
        Its number: equal for what shares the room.
    free : int
        Bytes. A quota may leave less to a user; no system call tells.
    free_files : int or None
        Files that can be made; None where the file system has no limit of its own.
    """

    path: str
    device: int
    free: int
    free_files: int | None


def workers_of(scheduler: Scheduler) -> Workers:
    """The workers of a scheduler as they are now."""
    if scheduler.client is not None:
        return _of_cluster(scheduler)
    memory, words = memory_limit(), "what this process may hold"
    most = process_memory()
    if scheduler.kind == "processes":
        n = _n_threads()
        return Workers(n, n, min(n, cpu_count()), memory // n, most, _FRESH, words)
    n = _n_threads() if scheduler.kind == "threads" else 1
    held = psutil.Process().memory_info().rss
    return Workers(1, n, min(n, cpu_count()), memory, most, held, words)


def tile_budget(scheduler: Scheduler) -> dict[str, int]:
    """What `auto_tile_shape` is to reckon with where a cluster does the work: half of the memory of its workers.

    Nothing where this process does it, or the cluster does not tell.
    """
    workers = workers_of(scheduler) if scheduler.client is not None else None
    if workers is None or not workers.n or workers.memory is None:
        return {}
    return {"memory": workers.n * workers.memory // 2, "n_workers": workers.tiles}


def process_memory() -> int:
    """Bytes that this process may ever hold, those in the swap space counted."""
    return memory_limit() + psutil.swap_memory().total


def planned_workers(
    there: Workers, n_workers: int | None, threads_per_worker: int | None, memory: int | str | None
) -> Workers:
    """Workers that are to be started; those that are there for what is not given.

    Raises
    ------
    ParameterError
        If a number is no int of at least 1, or the memory none of bytes.
    """
    if n_workers is None and threads_per_worker is None and memory is None:
        return there
    n = _at_least_one("n_workers", n_workers, max(there.n, 1))
    threads = _at_least_one("threads_per_worker", threads_per_worker, there.tiles_each)
    limit = there.memory if memory is None else _bytes(memory)
    held = there.held if n_workers is None else min(there.held, _FRESH)
    words = there.limit if memory is None else "the memory_limit given"
    return Workers(n, n * threads, n * threads, limit, limit, held, words)


def room_at(path: str | os.PathLike[str]) -> Room:
    """The room on the file system on which a path is, or would be made."""
    whole = Path(os.path.abspath(path))
    folder = next(part for part in (whole, *whole.parents) if os.path.exists(part))
    facts = os.statvfs(folder)
    free_files = facts.f_favail if facts.f_files else None
    # A file system without blocks, such as /proc, does not tell what it can hold.
    free = facts.f_bavail * facts.f_frsize if facts.f_blocks else sys.maxsize
    return Room(str(folder), os.stat(folder).st_dev, free, free_files)


def size_words(n: float) -> str:
    """Bytes for a person.

    Examples
    --------
    >>> size_words(3 * 2**30)
    '3.00 GiB'
    """
    words: str = format_bytes(int(n))
    return words


def _of_cluster(scheduler: Scheduler) -> Workers:
    assert scheduler.client is not None
    workers = scheduler.client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in workers]
    held = [worker.get("metrics", {}).get("memory", 0) for worker in workers]
    threads = sum(worker["nthreads"] for worker in workers)
    known = bool(limits) and all(limits)
    return Workers(
        n=len(limits),
        tiles=threads,
        cpus=threads,
        memory=min(limits) if known else None,
        most_memory=max(limits) if known else None,
        held=max(held, default=_FRESH),
        limit="the memory limit of the workers",
    )


def _n_threads() -> int:
    """Tasks at a time of dask's own schedulers."""
    pool = dask.config.get("pool", None)
    given = getattr(pool, "_max_workers", None) or dask.config.get("num_workers", None)
    return int(given or dask.system.CPU_COUNT)


def _at_least_one(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not hasattr(value, "__index__") or isinstance(value, bool) or value < 1:
        raise ParameterError(f"{name} {value!r} is no int of at least 1.")
    return int(value)


def _bytes(value: int | str) -> int:
    try:
        made = int(parse_bytes(value))
    except (ValueError, TypeError, AttributeError):
        made = 0
    if made < 1:
        raise ParameterError(f"memory_limit {value!r} is no number of bytes. Give one, or words such as '16 GiB'.")
    return made
