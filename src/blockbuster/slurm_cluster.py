"""A dask cluster of SLURM jobs that tells why it cannot go on; needs the extra ``slurm``."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed.security import Security

from blockbuster.errors import SchedulerError
from blockbuster.folders import HeldFolder
from blockbuster.jobqueue import SLURMCluster, SLURMJob
from blockbuster.slurm import JobState, cancel_jobs, check_script, job_states, refusal

__all__ = ["SlurmCluster", "make_folder", "write_credentials"]

logger = logging.getLogger("blockbuster")

# Seconds between two questions to SLURM.
_POLL = 2.0
# Jobs that end before any worker has come, after which no more is expected of others.
_FAILED_STARTS = 3
# Of the files in the folder that have the name and the numbers of the jobs.
_NAME, _JOBS = "job-name", "jobs"
_LOG_LINES = 8
_LOG_BYTES = 20_000


@dataclass
class _Submissions:
    """What came of asking for jobs: written by the event loop, read by the watch."""

    folder: Path
    accepted: list[str] = field(default_factory=list)
    refusals: deque[str] = field(default_factory=lambda: deque(maxlen=1))

    def accept(self, job_id: str) -> None:
        """Note a job, also for those who find the folder when this process is gone."""
        self.accepted.append(job_id)
        with open(self.folder / _JOBS, "a") as file:
            file.write(f"{job_id}\n")


class _Job(SLURMJob):
    """A job that notes whether SLURM takes it."""

    def __init__(self, *args: Any, submissions: _Submissions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._submissions = submissions

    async def _submit_job(self, script_filename: str) -> str:
        try:
            said: str = await super()._submit_job(script_filename)
        except RuntimeError as error:
            self._submissions.refusals.append(str(error).partition("stderr:")[2])
            raise
        self._submissions.refusals.clear()
        self._submissions.accept(self._job_id_from_submit_output(said))
        return said


class SlurmCluster(SLURMCluster):
    """SLURM jobs of one worker process each, kept at a number, or between two.

    Parameters
    ----------
    folder : HeldFolder
        Which all nodes see, for credentials, logs and scratch; removed at the end.
    minimum, maximum : int
        Jobs. A job that is lost is replaced.
    start_timeout : float or None
        Seconds to wait for the first worker; None for as long as SLURM keeps the jobs in its queue.
    **options
        Passed on to ``dask_jobqueue.SLURMCluster``.

    Raises
    ------
    SchedulerError
        If SLURM would not take such a job.
    """

    job_cls: type[SLURMJob] = _Job

    def __init__(
        self, *, folder: HeldFolder, minimum: int, maximum: int, start_timeout: float | None, **options: Any
    ) -> None:
        submissions = _Submissions(folder.path)
        self._slurm_folder = folder
        (folder.path / _NAME).write_text(options["job_name"])
        self._slurm_watch = _Watch(self, submissions, Path(options["log_directory"]), start_timeout)
        # The scheduler, in this process, makes a folder for scratch as well, wherever that option says.
        with dask.config.set({"temporary-directory": str(folder.path)}):
            super().__init__(submissions=submissions, **options)
        try:
            check_script(self.job_script())
            # A job that is idle for a minute has no more to do; a new one would have to queue again.
            self.adapt(minimum_jobs=minimum, maximum_jobs=maximum, interval="1s", wait_count=60)
            self._slurm_watch.start()
        except BaseException:
            self.close()
            raise

    @property
    def will_have_gpus(self) -> bool:
        """Whether each worker will have the resource "GPU"."""
        return "GPU=1" in self._job_kwargs["worker_extra_args"]

    def trouble(self) -> SchedulerError | None:
        """Why no more work can be done, with what SLURM said; None while it can."""
        return self._slurm_watch.trouble

    def fate(self, job_id: str) -> str | None:
        """What SLURM says of a job that has ended, and the last lines of its log."""
        return self._slurm_watch.fate(job_id)

    async def _close(self) -> None:
        await super()._close()
        # Not in threads: there are no new ones while the interpreter exits, which closes clusters that are left open.
        try:
            self._slurm_watch.stop()
        finally:
            self._slurm_folder.remove()


class _Watch:
    """Asks SLURM about the jobs of a cluster, in a thread of its own.

    Attributes
    ----------
    trouble : SchedulerError or None
        Why there will be no worker.
    """

    def __init__(
        self, cluster: SLURMCluster, submissions: _Submissions, logs: Path, start_timeout: float | None
    ) -> None:
        self.trouble: SchedulerError | None = None
        self._cluster = cluster
        self._submissions = submissions
        self._logs = logs
        self._start_timeout = start_timeout
        self._since = time.monotonic()
        self._came: set[str] = set()
        self._failed_starts: list[str] = []
        self._states: dict[str, JobState] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blockbuster-slurm", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more, and wait until the jobs, which still write to their logs, are gone."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for _ in range(50):
            states = job_states(self._open_jobs())
            if all(state.has_ended for state in states.values()):
                return
            self._states.update(states)
            time.sleep(0.1)

    def fate(self, job_id: str) -> str | None:
        """What SLURM says of a job that has ended, and the last lines of its log."""
        state = job_states([job_id]).get(job_id) or self._states.get(job_id)
        return f"SLURM says that {state}.{self._tail(job_id)}" if state is not None and state.has_ended else None

    def _run(self) -> None:
        while not self._stop.wait(_POLL):
            try:
                self._look()
            except SchedulerError as error:
                # A controller that is restarted, for one.
                logger.warning("%s", error)

    def _look(self) -> None:
        """Take note of what has become of the jobs."""
        names = {worker["name"] for worker in self._cluster.scheduler_info["workers"].values()}
        self._came.update(job.job_id for name, job in list(self._cluster.workers.items()) if name in names)
        states = job_states(self._open_jobs())
        self._states.update(states)
        ended = [job_id for job_id, state in states.items() if state.has_ended]
        self._failed_starts = [] if names else [*self._failed_starts, *(one for one in ended if one not in self._came)]
        found = None if names else self._found()
        if found is not None and self.trouble is None:
            logger.error("%s", found)
        self.trouble = found
        if ended and found is None:
            self._let_replace(ended)

    def _open_jobs(self) -> list[str]:
        known = self._states
        return [one for one in list(self._submissions.accepted) if one not in known or not known[one].has_ended]

    def _let_replace(self, ended: Sequence[str]) -> None:
        """Let new jobs take the place of some at once: dask misses only workers that had come, and waits for these."""
        names = [name for name, job in list(self._cluster.workers.items()) if job.job_id in ended]
        assert self._cluster.loop is not None
        self._cluster.loop.add_callback(self._cluster.scale_down, names)

    def _found(self) -> SchedulerError | None:
        """What is wrong, when there is no worker."""
        alive = [state for state in self._states.values() if not state.has_ended]
        waited = time.monotonic() - self._since
        if self._submissions.refusals and not alive:
            return SchedulerError(refusal(self._submissions.refusals[-1]))
        if alive and all(state.never_starts for state in alive):
            return SchedulerError(
                f"The jobs will never start: SLURM says that {alive[0]}. Change what they ask for (cores, memory, "
                "walltime, queue=, account=), or ask those who run the cluster."
            )
        if len(self._failed_starts) >= _FAILED_STARTS:
            last = self._states[self._failed_starts[-1]]
            return SchedulerError(
                f"{len(self._failed_starts)} jobs in a row ended before a worker came of them: SLURM says that {last}."
                f"{self._tail(last.job_id)}\nA node must see this Python and this folder, and reach this machine by "
                "the interface; a walltime must be long enough to start."
            )
        if not self._came and self._start_timeout is not None and waited > self._start_timeout:
            said = "; ".join(map(str, alive)) or "there is none in the queue"
            return SchedulerError(
                f"No worker has come in {waited:.0f} s (start_timeout {self._start_timeout:g} s): SLURM says that "
                f"{said}. Wait longer, or ask for less."
            )
        return None

    def _tail(self, job_id: str) -> str:
        """The last lines of what a job wrote to its log."""
        lines: list[str] = []
        for path in sorted(self._logs.glob(f"*-{job_id}.err")):
            with open(path, "rb") as file:
                file.seek(max(os.path.getsize(path) - _LOG_BYTES, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return "" if not lines else "\nThe last lines of its log:\n    " + "\n    ".join(lines)


def write_credentials(folder: Path) -> Security:
    """Keys and certificates for one cluster, in files that its nodes and nobody else can read."""
    made = Security.temporary()
    paths = {}
    for role, pem in (("ca_file", made.tls_ca_file), ("key", made.tls_worker_key), ("cert", made.tls_worker_cert)):
        paths[role] = str(folder / f"{role}.pem")
        with open(paths[role], "x", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(pem)
    roles = {f"tls_{who}_{what}": paths[what] for who in ("client", "scheduler", "worker") for what in ("key", "cert")}
    return Security(require_encryption=True, tls_ca_file=paths["ca_file"], **roles)


def make_folder(base: Path) -> HeldFolder:
    """A new folder for a cluster; ends the jobs of clusters whose client was killed."""
    return HeldFolder(base, "slurm", _cancel_left)


def _cancel_left(folder: Path) -> None:
    if (folder / _JOBS).exists():
        cancel_jobs((folder / _NAME).read_text(), (folder / _JOBS).read_text().split())
