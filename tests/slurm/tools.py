"""A SLURM for tests: whether there is one that they may use, clusters of its jobs, and what is in its queue."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray

import blockbuster
from blockbuster.cluster import RunningCluster
from tests.helpers import components

ROOT = Path(__file__).parent.parent.parent
# Set by `make test-slurm`: on a login node, nobody wants jobs submitted unasked.
ASKED_FOR = "BLOCKBUSTER_TEST_SLURM"
N_JOBS = 2
PATIENCE = 60.0
TILE = 8


def command(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


@functools.cache
def usable_nodes() -> tuple[str, ...]:
    """The nodes that take jobs."""
    try:
        listed = command("sinfo", "--noheader", "--Node", "--format=%N %T")
    except (OSError, subprocess.SubprocessError):
        return ()
    states = dict(line.split() for line in listed.splitlines())
    return tuple(node for node, state in states.items() if state in ("idle", "mixed", "allocated"))


def reason_to_skip() -> str | None:
    """Why there can be no tests on SLURM here, if so.

    Raises
    ------
    RuntimeError
        If they were asked for and there can be none.
    """
    if os.environ.get(ASKED_FOR) != "1":
        return f"needs SLURM, and {ASKED_FOR}=1 so that jobs are submitted: `make test-slurm` starts one and sets it"
    if not usable_nodes():
        raise RuntimeError(f"{ASKED_FOR}=1, but sinfo shows no usable node. Start a SLURM, or run `make test-slurm`.")
    return None


def is_ours() -> bool:
    """Whether it is the SLURM of start-slurm.sh, whose daemons may be killed."""
    conf = Path("/etc/slurm/slurm.conf")
    return os.geteuid() == 0 and conf.exists() and "(slurm-local)" in conf.read_text().split("\n", 1)[0]


def jobs_of(name: str) -> dict[str, str]:
    """The nodes of the jobs of a name that are in the queue, by the ids of the jobs."""
    lines = command("squeue", "--noheader", f"--name={name}", "--format=%A|%N").splitlines()
    return dict(line.split("|") for line in lines)


def in_queue(job: str) -> bool:
    """Whether a job waits, runs, or is being ended."""
    return job in command("squeue", "--noheader", "--format=%A").split()


def cancel(name: str) -> None:
    """Take all jobs of a name out of the queue."""
    command("scancel", f"--name={name}")


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """The processes that have a variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def slow_components(block: NDArray[Any]) -> NDArray[Any]:
    """Label a block by faces, so slowly that there is a middle of a run."""
    time.sleep(0.05)
    return components(block)


@contextlib.contextmanager
def cluster(
    folder: Path, jobs: int | tuple[int, int] = N_JOBS, n_workers: int = N_JOBS, **options: Any
) -> Iterator[RunningCluster]:
    """Jobs that can import the tests, in a folder of their own, once some workers are there; fails if a job is left."""
    name = f"blockbuster-test-{uuid.uuid4().hex[:8]}"
    settings: dict[str, Any] = {
        "cores": 1,
        "memory": "1GiB",
        "walltime": "00:30:00",
        "folder": folder,
        "job_name": name,
        "death_timeout": 20,
        "job_script_prologue": prologue(folder),
        **options,
    }
    try:
        with blockbuster.make_slurm_cluster(jobs, **settings) as running:
            if n_workers:
                running.client.wait_for_workers(n_workers, timeout=PATIENCE)
            yield running
        assert eventually(lambda: not jobs_of(settings["job_name"]), 10)
    finally:
        cancel(settings["job_name"])


def prologue(folder: Path) -> list[str]:
    """Lines of a job script: tests can be imported, and temporary files are in a folder that outlives a test."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [f"export PYTHONPATH={shlex.quote(path)}", f"export TMPDIR={shlex.quote(str(folder))}"]
