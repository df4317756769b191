"""Clusters of our own: worker processes on this machine, or jobs of SLURM."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from dask.utils import parse_bytes

from blockbuster.budget import cpu_count
from blockbuster.errors import ParameterError
from blockbuster.folders import HeldFolder
from blockbuster.slurm import check_installed, check_interface, interface_to_controller, walltime_seconds

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RunningCluster", "make_local_cluster", "make_slurm_cluster"]

_LOOPBACK = "127.0.0.1"
# At a port that is free. Dashboards have no authentication: those of workers are not for others either.
_DASHBOARD = f"{_LOOPBACK}:0"
# Of a job, besides its worker: the process that watches over that one, and the shell.
_NANNY_BYTES = 256 * 2**20


class RunningCluster(NamedTuple):
    """A client and its cluster; as a context manager it closes both."""

    client: Client
    cluster: Any

    def __enter__(self) -> RunningCluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and their jobs."""
        try:
            self.client.close()
        finally:
            self.cluster.close()


def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: str | int | None = None,
    **kwargs: Any,
) -> RunningCluster:
    """Start worker processes on this machine and make them the active scheduler.

    They talk over TLS with credentials that are made for this cluster and live in its memory only: on a machine that
    others use as well, nobody else can run code as you. Pass ``security=False`` to do without.

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
        The cluster. Both listen on the loopback interface only, the dashboard too.

    Notes
    -----
    In a script, call it under ``if __name__ == "__main__":``, since worker processes import the script.

    Examples
    --------
    >>> with make_local_cluster(n_workers=1) as (client, cluster):  # doctest: +SKIP
    ...     labels = blockbuster.label("image.zarr", write_to="labels.zarr")
    """
    from blockbuster.local_cluster import OwnLocalCluster

    workers = n_workers or (1 if use_gpu else cpu_count())
    secured = kwargs.get("processes", True) and kwargs.get("protocol") is None
    options: dict[str, Any] = {"host": _LOOPBACK, "dashboard_address": _DASHBOARD, "security": secured, **kwargs}
    options.setdefault("worker_dashboard_address", options["dashboard_address"])
    options["security"] = options["security"] or None
    if use_gpu:
        options["resources"] = {"GPU": threads_per_worker, **kwargs.get("resources", {})}
    if memory_limit is not None:
        options["memory_limit"] = memory_limit
    base = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
    folder = HeldFolder(base, "blockbuster")
    with _removed_on_failure(folder):
        cluster = OwnLocalCluster(folder=folder, n_workers=workers, threads_per_worker=threads_per_worker, **options)
    return _connected(cluster)


def make_slurm_cluster(
    jobs: int | tuple[int, int] = 1,
    cores: int | None = None,
    memory: str | int | None = None,
    walltime: str | int | None = None,
    gpus_per_job: int = 0,
    interface: str | None = None,
    *,
    start_timeout: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> RunningCluster:
    """Ask SLURM for jobs of one worker process each, and make them the active scheduler.

    What is not given comes from dask-jobqueue's own configuration, ``jobqueue.slurm`` in ``~/.config/dask/*.yaml``. The
    jobs are started as SLURM has room for them; work begins with the first. A job that is lost is replaced, and
    workers end in order before the walltime ends them. Scheduler and workers talk over TLS with credentials made for
    this cluster; a client without them is turned away.

    Parameters
    ----------
    jobs : int or (int, int), default 1
        How many, or the least and the most: then as many as there is work for.
    cores : int, optional
        CPUs of a job: as many tiles at a time.
    memory : str or int, optional
        Bytes of a job, such as "16GiB". Its worker may use 5 %, or 256 MiB, less, so that it is ended and started
        again within the job before SLURM ends the job.
    walltime : str or int, optional
        Of a job: minutes, or words such as "04:00:00".
    gpus_per_job : {0, 1}, default 0
        With 1, a job has one GPU and takes one tile that needs a GPU at a time: for ``use_gpu=True``.
    interface : str, optional
        Network interface at which the scheduler listens, such as "ib0". Default: what the configuration says, else the
        one by which this machine reaches SLURM's controller.
    start_timeout : float, optional
        Seconds to wait for the first worker. Default: as long as SLURM keeps the jobs in its queue.
    folder : path, optional
        Where a folder is made, and removed at the end, that all nodes see: for credentials, scratch and logs of the
        jobs. Default: ``shared-temp-directory`` of the configuration, else ``~/.cache/blockbuster``.
    **kwargs
        Passed on to ``dask_jobqueue.SLURMCluster``: ``queue``, ``account``, ``job_script_prologue``,
        ``job_extra_directives``, ``log_directory`` (logs outlive the cluster there), ``local_directory``, ...

    Returns
    -------
    client : distributed.Client
        The active client.
    cluster : dask_jobqueue.SLURMCluster
        The cluster; its dashboard is at the loopback interface of this machine.

    Raises
    ------
    ParameterError
        If an option is not allowed, or one that SLURM needs is nowhere given.
    SchedulerError
        If there is no SLURM, or it refuses such a job: with what it says. A run on the cluster raises it as soon as
        SLURM says that there will be no worker.

    Examples
    --------
    >>> with make_slurm_cluster(jobs=(2, 50), cores=4, memory="16GiB", walltime="04:00:00") as (
    ...     client,
    ...     cluster,
    ... ):  # doctest: +SKIP
    ...     labels = blockbuster.label("image.zarr", write_to="labels.zarr")
    """
    check_installed()
    from blockbuster.slurm_cluster import SlurmCluster, make_folder, write_credentials

    config: dict[str, Any] = dask.config.get("jobqueue.slurm")
    minimum, maximum = _between(jobs)
    options: dict[str, Any] = {
        "cores": _needed("cores", cores, config),
        **_memory(_needed("memory", memory, config), config),
        "walltime": str(walltime if walltime is not None else config["walltime"]),
        "interface": _interface(interface, config),
        "job_name": f"blockbuster-{uuid.uuid4().hex[:8]}",
        **kwargs,
        "processes": 1,
        "scheduler_options": {"dashboard_address": _DASHBOARD, **_given("scheduler_options", kwargs, config)},
    }
    options["worker_extra_args"] = [
        *_given("worker_extra_args", kwargs, config),
        *_lifetime(options["walltime"]),
        *("--dashboard-address", _DASHBOARD),
        *_on_gpu(gpus_per_job, "--resources", "GPU=1"),
    ]
    options["job_extra_directives"] = [
        *_given("job_extra_directives", kwargs, config),
        "--no-requeue",
        *_on_gpu(gpus_per_job, "--gres=gpu:1"),
    ]
    asked = {name: _given(name, kwargs, config) for name in ("log_directory", "local_directory")}
    folders = {name: _absolute(name, path) for name, path in asked.items() if path is not None}
    made = make_folder(_base(folder, config))
    with _removed_on_failure(made):
        within = {"log_directory": str(made.path / "logs"), "local_directory": str(made.path / "scratch")}
        options = {"security": write_credentials(made.path), **options, **within, **folders}
        cluster = SlurmCluster(folder=made, minimum=minimum, maximum=maximum, start_timeout=start_timeout, **options)
    return _connected(cluster)


def _connected(cluster: Any) -> RunningCluster:
    from distributed import Client

    try:
        return RunningCluster(Client(cluster), cluster)
    except BaseException:
        cluster.close()
        raise


@contextlib.contextmanager
def _removed_on_failure(folder: HeldFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        folder.remove()
        raise


def _given(name: str, kwargs: dict[str, Any], config: dict[str, Any]) -> Any:
    """An option of dask-jobqueue: as it is given here, else as it is configured."""
    return kwargs.get(name) or config[name.replace("_", "-")]


def _on_gpu(gpus_per_job: int, *words: str) -> tuple[str, ...]:
    if gpus_per_job not in (0, 1):
        raise ParameterError(
            f"gpus_per_job {gpus_per_job!r} is neither 0 nor 1. Ask for more jobs of one GPU each: a job that is lost "
            "then takes one tile with it, and SLURM finds room for it sooner."
        )
    return words if gpus_per_job else ()


def _between(jobs: Any) -> tuple[int, int]:
    least, most = jobs if isinstance(jobs, tuple | list) and len(jobs) == 2 else (jobs, jobs)
    if not isinstance(least, int) or not isinstance(most, int) or not 0 <= least <= most or most < 1:
        raise ParameterError(f"jobs {jobs!r} is neither a number of at least 1 nor a (least, most) of such numbers.")
    return least, most


def _needed(name: str, value: Any, config: dict[str, Any]) -> Any:
    found = value if value is not None else config[name]
    if found is None:
        raise ParameterError(
            f"{name} of a job is given neither here nor as jobqueue.slurm.{name} in dask's configuration. Give both "
            "cores and memory, such as cores=4, memory='16GiB'."
        )
    return found


def _memory(asked: str | int, config: dict[str, Any]) -> dict[str, Any]:
    """What a worker may use of the memory of its job, where SLURM ends all that uses more."""
    size = parse_bytes(asked)
    besides = max(size // 20, min(_NANNY_BYTES, size // 4))
    return {"memory": size - besides, "job_mem": config["job-mem"] or f"{-(-size // 2**20)}M"}


def _interface(interface: str | None, config: dict[str, Any]) -> str:
    found: str = interface or config["interface"] or interface_to_controller()
    check_interface(found)
    return found


def _base(folder: Any, config: dict[str, Any]) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(_absolute("folder", folder or config["shared-temp-directory"] or f"{cache}/blockbuster"))


def _absolute(name: str, path: Any) -> str:
    made: str = os.path.abspath(os.path.expanduser(os.path.expandvars(path)))
    if len(made.split()) != 1:
        raise ParameterError(f"{name} {made!r} has blanks, which job scripts cannot take. Give another folder.")
    return made


def _lifetime(walltime: str) -> list[str]:
    """Options by which workers end before SLURM ends them, not all at once."""
    seconds = walltime_seconds(walltime)
    if seconds is None:
        return []
    # A tile is finished and the next worker started in this time, be the walltime short or long.
    margin = min(max(seconds // 20, 30), 300, seconds // 4)
    return ["--lifetime", f"{seconds - 2 * margin}s", "--lifetime-stagger", f"{margin}s"]
