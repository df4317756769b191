"""Which dask scheduler is active, what it can do, and waiting for it."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import cloudpickle
import dask
import dask.local
import dask.multiprocessing
import dask.threaded
from dask.base import compute, get_scheduler
from dask.callbacks import Callback

from blockbuster.errors import Attempt, BlockbusterError, SchedulerError, StageError
from blockbuster.pools import pool_of_processes

if TYPE_CHECKING:
    from distributed import Client, Future


__all__ = [
    "Listener",
    "Scheduler",
    "active_scheduler",
    "check_picklable",
    "check_visible",
    "computed",
    "gpu_slots",
    "in_worker",
    "is_on_cluster",
    "listening",
    "results_of",
    "why_lost",
]

# Seconds between two looks at how a cluster gets on.
_WATCH = 0.25
# None is the threads of dask.array.
_LOCAL = (None, dask.threaded.get, dask.multiprocessing.get, dask.local.get_sync)


class Listener(Protocol):
    """Wants to know how tasks get on; what it raises ends the waiting for them."""

    def ended(self, key: Any) -> None:
        """A task of a scheduler of this process has ended."""

    def look(self, client: Client) -> None:
        """The tasks of a cluster are waited for, and some time has passed."""


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)

Kind: TypeAlias = Literal["synchronous", "threads", "processes", "distributed"]


@dataclass(frozen=True)
class Scheduler:
    """What runs the tasks.

    Attributes
    ----------
    kind : {"synchronous", "threads", "processes", "distributed"}
        Which of dask's schedulers.
    client : distributed.Client or None
        Its client.
    """

    kind: Kind
    client: Client | None = None

    @property
    def crosses_processes(self) -> bool:
        """Whether tasks may run in another process than this one."""
        return self.kind == "processes" or (self.kind == "distributed" and not self._is_in_process())

    @property
    def has_gpu_resource(self) -> bool:
        """Whether every worker says how many tiles its GPU takes."""
        if self.client is None:
            return False
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        if not workers:
            # Those that are still in the queue of SLURM.
            return bool(getattr(self.client.cluster, "will_have_gpus", False))
        return all("GPU" in worker.get("resources", {}) for worker in workers)

    def _is_in_process(self) -> bool:
        if self.client is None:
            return False
        address: str = self.client.scheduler_info(n_workers=-1)["address"]
        return address.startswith("inproc://")


def active_scheduler() -> Scheduler:
    """The scheduler that dask would use now.

    Raises
    ------
    SchedulerError
        If ``dask.config`` names one that dask does not know, or a distributed one without a client.
    """
    try:
        get = get_scheduler()
    except (ValueError, RuntimeError) as error:
        raise SchedulerError(
            f"The scheduler {dask.config.get('scheduler', None)!r} of dask.config cannot be used: {error}. Set one of "
            "'synchronous', 'threads', 'processes', or start a distributed client."
        ) from error
    owner = getattr(get, "__self__", None)
    if owner is not None and hasattr(owner, "scheduler_info"):
        return Scheduler("distributed", owner)
    if get is dask.multiprocessing.get:
        return Scheduler("processes")
    if get is dask.local.get_sync:
        return Scheduler("synchronous")
    return Scheduler("threads")


def in_worker() -> bool:
    """Whether this is a worker, whose errors are pickled: one in the process of its client as well."""
    return multiprocessing.parent_process() is not None or is_on_cluster()


def is_on_cluster() -> bool:
    """Whether this is a task of a distributed worker."""
    try:
        from distributed import get_worker

        get_worker()
    except ValueError:
        return False
    return True


@functools.cache
def gpu_slots() -> threading.BoundedSemaphore:
    """As many places as this process has of the resource "GPU": one outside of a cluster's worker."""
    try:
        from distributed import get_worker

        places = int(get_worker().state.total_resources.get("GPU", 1))
    except ValueError:
        places = 1
    return threading.BoundedSemaphore(max(places, 1))


def check_picklable(scheduler: Scheduler, what: str, value: Any) -> None:
    """Refuse what cannot reach the workers.

    Raises
    ------
    SchedulerError
        If tasks run in other processes and `value` cannot be pickled.
    """
    # A client pickles graphs for workers in its own process as well.
    if not scheduler.crosses_processes and scheduler.client is None:
        return
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        raise SchedulerError(
            f"{what} {value!r} cannot be pickled, which the {scheduler.kind} scheduler needs: {error}. Define it at "
            "the top level of a module, open files and models within it, or use the threaded scheduler."
        ) from error


def check_visible(scheduler: Scheduler, what: str, path: str, option: str) -> None:
    """Refuse a folder that some worker cannot see.

    Every worker that is there looks for it; where none is there yet, the first that comes.

    Raises
    ------
    StageError
        Naming the workers that do not see it, and their hosts.
    SchedulerError
        If the cluster can get no worker.
    """
    client = scheduler.client
    if client is None:
        return
    asked: dict[str, Any] = client.run(_look_for, path, on_error="return")
    # A worker that ends just now is none that needs to see it.
    seen = {worker: found for worker, found in asked.items() if not isinstance(found, OSError)}
    for worker, found in seen.items():
        if isinstance(found, BaseException):
            raise SchedulerError(f"The worker {worker} cannot run tasks of blockbuster: {found!r}.") from found
    if not seen:
        (found,) = results_of(client, [client.submit(_look_for, path, pure=False)])
        seen = {"the first worker": found}
    blind = [f"{worker} on host {host}" for worker, (host, sees) in seen.items() if not sees]
    if blind:
        raise StageError(
            f"The {what} {path} is not visible from the workers {', '.join(blind)}. "
            f"Give {option}= a folder on a file system that the client and all workers share."
        )


def _look_for(path: str) -> tuple[str, bool]:
    return socket.gethostname(), os.path.exists(path)


def computed(*collections: Any) -> tuple[Any, ...]:
    """What dask collections come to on the active scheduler, in graphs as they are.

    Raises
    ------
    SchedulerError
        If a cluster of ours tells that it cannot go on.
    """
    scheduler = active_scheduler()
    client = scheduler.client
    # A task that waits on a cluster must leave its place to others, which only dask's own way of waiting does.
    if client is None or is_on_cluster():
        pool = pool_of_processes() if scheduler.kind == "processes" else contextlib.nullcontext()
        with pool, _callbacks(client) as callbacks:
            results: tuple[Any, ...] = compute(*collections, optimize_graph=False, **callbacks)
        return results
    return tuple(results_of(client, client.compute(collections, optimize_graph=False)))


@contextlib.contextmanager
def _callbacks(client: Client | None) -> Iterator[dict[str, Any]]:
    """What dask is to be given so that a listener hears of tasks.

    Callbacks that are active for dask are so for all threads, and a computation in any of them sets all aside for a
    while: where dask takes them as an argument, none is lost.
    """
    listener = _LISTENER.get()
    if listener is None or client is not None:
        yield {}
        return
    own = Callback(posttask=lambda key, *_rest: listener.ended(key))
    if get_scheduler() in _LOCAL:
        yield {"callbacks": [*Callback.active, own._callback]}
        return
    with own:
        yield {}


def results_of(client: Client, futures: Sequence[Future[Any]]) -> list[Any]:
    """Wait for tasks of a client, for as long as its cluster can do them.

    Raises
    ------
    SchedulerError
        If the cluster tells that it cannot go on: its tasks are cancelled.
    """
    from distributed import wait

    listener = _LISTENER.get()
    try:
        while True:
            try:
                wait(futures, timeout=_WATCH)
                break
            except TimeoutError:
                trouble = trouble_of(client)
                if trouble is not None:
                    raise trouble from None
                if listener is not None:
                    listener.look(client)
        results: list[Any] = client.gather(futures)
        return results
    finally:
        client.cancel(futures)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let somebody know how the tasks get on for which this thread waits."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def why_lost(scheduler: Scheduler, attempts: Sequence[Attempt]) -> list[str]:
    """What nannies and the cluster say of processes that were lost."""
    client = scheduler.client
    if client is None:
        return []
    try:
        logs: dict[str, Any] = client.get_worker_logs(nanny=True)
    except Exception as error:  # noqa: BLE001 - told in place of the logs: the error to explain matters more
        return [f"The logs of the workers could not be read: {error!r}"]
    lines = [line for log in logs.values() if isinstance(log, list | tuple) for _, line in log]
    found: list[str] = []
    for attempt in attempts:
        about = re.compile(rf"\b(?:process|pid=)\s?{attempt.pid}\b")
        found.extend(f"{attempt}: {line}" for line in lines if about.search(line))
    tell = getattr(client.cluster, "fate", None)
    jobs = dict.fromkeys(attempt.job_id for attempt in attempts if attempt.job_id)
    fates = [tell(job_id) for job_id in jobs] if tell is not None else []
    return list(dict.fromkeys([*found, *filter(None, fates)]))


def trouble_of(client: Client) -> BlockbusterError | None:
    """Why the cluster of a client can do no more work, if it tells."""
    tell = getattr(client.cluster, "trouble", None)
    return None if tell is None else tell()
