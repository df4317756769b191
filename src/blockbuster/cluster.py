"""Which dask scheduler is active, what it can do, and clusters of our own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import cloudpickle
import dask
import dask.local
import dask.multiprocessing
import dask.threaded
from dask.base import get_scheduler

from blockbuster.budget import cpu_count
from blockbuster.errors import SchedulerError, StageError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster


__all__ = [
    "RunningCluster",
    "Scheduler",
    "active_scheduler",
    "check_picklable",
    "check_visible",
    "gpu_slots",
    "in_worker",
    "make_local_cluster",
]

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
        return bool(workers) and all("GPU" in worker.get("resources", {}) for worker in workers)

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
    if multiprocessing.parent_process() is not None:
        return True
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

    Raises
    ------
    StageError
        Naming the workers that do not see it.
    """
    if scheduler.client is None:
        return
    seen: dict[str, bool] = scheduler.client.run(os.path.exists, path)
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise StageError(
            f"The {what} {path} is not visible from the workers {', '.join(blind)}. "
            f"Give {option}= a folder on a file system that the client and all workers share."
        )


class RunningCluster(NamedTuple):
    """A client and its cluster; as a context manager it closes both."""

    client: Client
    cluster: LocalCluster

    def __enter__(self) -> RunningCluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self.client.close()
        self.cluster.close()


def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: str | int | None = None,
    **kwargs: Any,
) -> RunningCluster:
    """Start worker processes on this machine and make them the active scheduler.

    Parameters
    ----------
    use_gpu : bool, default False
        One worker with one GPU, which takes one tile at a time.
    n_workers : int, optional
        Worker processes. Default: the CPUs that this process may use, or 1 with `use_gpu`.
    threads_per_worker : int, default 1
        Tiles at a time in each worker.
    memory_limit : str or int, optional
        Bytes per worker, such as "4GiB". Default: the memory of the machine divided by the workers.
    **kwargs
        Passed on to ``distributed.LocalCluster``.

    Returns
    -------
    client : distributed.Client
        The active client.
    cluster : distributed.LocalCluster
        The cluster. Both listen on the loopback interface only.

    Notes
    -----
    In a script, call it under ``if __name__ == "__main__":``, since worker processes import the script.

    Examples
    --------
    >>> with make_local_cluster(n_workers=1) as (client, cluster):  # doctest: +SKIP
    ...     labels = blockbuster.label("image.zarr", write_to="labels.zarr")
    """
    from distributed import Client, LocalCluster

    workers = n_workers or (1 if use_gpu else cpu_count())
    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", **kwargs}
    if use_gpu:
        options["resources"] = {"GPU": threads_per_worker, **kwargs.get("resources", {})}
    if memory_limit is not None:
        options["memory_limit"] = memory_limit
    cluster = LocalCluster(n_workers=workers, threads_per_worker=threads_per_worker, **options)
    return RunningCluster(Client(cluster), cluster)
