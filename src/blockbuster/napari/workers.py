"""Where jobs run: threads of this process, processes of this machine, or jobs of SLURM."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import dask

import blockbuster
from blockbuster.budget import cpu_count
from blockbuster.errors import SchedulerError
from blockbuster.slurm import check_installed

__all__ = ["Workers", "active", "why_no_slurm"]


@dataclass(frozen=True)
class Workers:
    """Where a job runs.

    Attributes
    ----------
    kind : {"threads", "local", "slurm"}
        Threads, processes, or jobs of SLURM.
    n : int
        How many there are.
    options : dict
        Of the cluster.
    """

    kind: Literal["threads", "local", "slurm"] = "threads"
    n: int = field(default_factory=cpu_count)
    options: dict[str, Any] = field(default_factory=dict)


def why_no_slurm() -> str | None:
    """Why no job can be submitted from here; None if one can."""
    try:
        check_installed()
    except SchedulerError as error:
        return str(error)
    if importlib.util.find_spec("dask_jobqueue") is None:
        return "Jobs of SLURM need dask-jobqueue: pip install 'blockbuster-imaging[slurm]'."
    return None


@contextlib.contextmanager
def active(workers: Workers) -> Iterator[None]:
    """Activate workers for this thread.

    The window goes on to draw layers with its own threads: it must not wait for a cluster.

    Raises
    ------
    BlockbusterError
        If there can be no such workers.
    """
    if workers.kind == "threads":
        with dask.config.set(scheduler="threads", num_workers=workers.n):
            yield
        return
    from distributed import Client

    make = blockbuster.make_local_cluster if workers.kind == "local" else blockbuster.make_slurm_cluster
    given = {"n_workers" if workers.kind == "local" else "jobs": workers.n, **workers.options}
    with make(**given) as (client, cluster):
        # That client is the scheduler of all threads.
        client.close()
        with Client(cluster, set_as_default=False) as own, own.as_current(), dask.config.set(scheduler=None):
            yield
