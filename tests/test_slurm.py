"""Runs on the jobs of a real SLURM: what it refuses, cancels, loses and kills, and that nobody else gets in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import scipy.ndimage
import zarr
from distributed import Client
from distributed.core import rpc
from distributed.security import Security
from numpy.typing import NDArray

import blockbuster
from blockbuster import ParameterError, SchedulerError, StageError, TileError
from blockbuster.cluster import RunningCluster
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers
from tests.slurm import tools as slurm
from tests.slurm.tools import TILE, slow_components

pytestmark = pytest.mark.slurm

SIDE = 64
N_TILES = (SIDE // TILE) ** 2
LOOPBACK = "127.0.0.1"
# Made by the scheduler of dask in the client, with two locks in it.
SCRATCH_OF_DASK = "dask-scratch-space"
IMAGE = (np.random.default_rng(4).random((SIDE, SIDE)) < 0.5).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the image in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=IMAGE, chunks=(TILE, TILE))
    (folder / "calls").mkdir()
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., contextlib.AbstractContextManager[RunningCluster]]]:
    """Make clusters of jobs; fails the test if anything of theirs is left."""
    before = set(folder.iterdir())
    yield functools.partial(slurm.cluster, folder / "cluster")
    assert not any((folder / "cluster").iterdir())
    assert processes_of(folder) == []
    assert {path.name for path in set(folder.iterdir()) - before} <= {"cluster", "labels.zarr", "whole"}
    assert leftovers(folder) == []
    assert [path.name for path in (folder.parent / "system-tmp").iterdir() if path.name != SCRATCH_OF_DASK] == []


def processes_of(folder: Path) -> list[str]:
    """The other processes that are told of a folder when they are started."""
    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    found = []
    for process in others:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(" ".join(process.cmdline()))
    return [line for line in found if str(folder) in line]


@contextlib.contextmanager
def meanwhile(holds: Callable[[], bool], act: Callable[[], Any]) -> Iterator[None]:
    """Do something as soon as something holds, while a block runs; the block must not end before."""
    over = threading.Event()

    def watch() -> bool:
        while not over.wait(0.01):
            if holds():
                act()
                return not over.is_set()
        return False

    with ThreadPoolExecutor(1) as pool:
        acted = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
        assert acted.result(), "the run was over before anything was done to it"


def staged(folder: Path) -> int:
    """How many tiles are journalled."""
    return len(list(folder.rglob("*.tile")))


def name_of(running: RunningCluster) -> str:
    """The name of the jobs of a cluster."""
    name: str = running.cluster.job_name
    return name


def slowly(folder: Path) -> NDArray[Any]:
    """The ids that a run of many tiles stores, while things happen to it."""
    labels = blockbuster.tile_process(
        folder / "image.zarr",
        Recording(folder / "calls", slow_components),
        tile_shape=TILE,
        write_to=folder / "labels.zarr",
    )
    return np.asarray(labels)


def undisturbed(folder: Path) -> dict[str, str]:
    """The stored voxels of a run without any cluster."""
    with dask.config.set(scheduler="synchronous"):
        blockbuster.tile_process(
            folder / "image.zarr", components, tile_shape=TILE, write_to=folder / "whole" / "labels.zarr"
        )
    return chunks_of(folder / "whole" / "labels.zarr")


def chunks_of(store: Path) -> dict[str, str]:
    """The stored voxels, file by file; metadata tell of the function as well."""
    return {name: content for name, content in digest(store).items() if "/c/" in name}


# Jobs, nodes and clients that are lost


def test_a_cancelled_job_changes_no_label(start: Any, folder: Path) -> None:
    image = da.from_array(IMAGE, chunks=TILE).map_blocks(delayed_block, dtype=IMAGE.dtype)
    with start() as running:
        before = slurm.jobs_of(name_of(running))
        lost = min(before)
        with meanwhile(lambda: staged(folder) >= 10, lambda: slurm.command("scancel", lost)):
            labels = blockbuster.label(image, write_to=folder / "labels.zarr")
        np.testing.assert_array_equal(labels, scipy.ndimage.label(IMAGE)[0])
        assert slurm.eventually(lambda: len(slurm.jobs_of(name_of(running)).keys() - {lost}) == len(before))


def delayed_block(block: NDArray[Any]) -> NDArray[Any]:
    """The same block, later."""
    slow_components(block)
    return block


def test_a_killed_worker_is_started_again_in_its_job(start: Any, folder: Path) -> None:
    with start() as running:
        before = slurm.jobs_of(name_of(running))
        pids = running.client.run(os.getpid)
        with meanwhile(lambda: staged(folder) >= 10, lambda: os.kill(min(pids.values()), signal.SIGKILL)):
            slowly(folder)
        assert chunks_of(folder / "labels.zarr") == undisturbed(folder)
        assert slurm.jobs_of(name_of(running)) == before


@pytest.fixture
def lost_node() -> Iterator[str]:
    """A node that may be lost; it comes back afterwards."""
    if not slurm.is_ours() or len(slurm.usable_nodes()) < 2:
        pytest.skip("needs the SLURM of `make test-slurm`, with two nodes: one of its daemons is killed")
    yield slurm.usable_nodes()[-1]
    bring_back_nodes()


def bring_back_nodes() -> None:
    """Start the daemons that were killed, and wait for them."""
    slurm.command(str(Path(slurm.__file__).parent / "start-slurm.sh"))


def lose(node: str, job: str) -> None:
    """Kill the daemon of a node, and all that runs in a job there."""
    own = [one for one in psutil.process_iter(["name", "cmdline"]) if belongs_to(one, node, job)]
    for process in [*own, *slurm.processes_with("SLURM_JOB_ID", job)]:
        process.kill()


def belongs_to(process: psutil.Process, node: str, job: str) -> bool:
    """Whether a process is the daemon of a node, or the one that runs a job."""
    line = " ".join(process.info["cmdline"] or [])
    return (process.info["name"], line) == ("slurmd", f"slurmd -N {node}") or line.startswith(f"slurmstepd: [{job}.")


def test_a_lost_node_changes_no_label(start: Any, folder: Path, lost_node: str) -> None:
    with start() as running:
        (job,) = [job for job, node in slurm.jobs_of(name_of(running)).items() if node == lost_node]
        with meanwhile(lambda: staged(folder) >= 10, lambda: lose(lost_node, job)):
            slowly(folder)
        # SLURM does not let go of a job of a lost node before it answers again.
        bring_back_nodes()
        assert chunks_of(folder / "labels.zarr") == undisturbed(folder)


def client_killed(folder: Path, name: str, **options: Any) -> int:
    """Kill a process in the middle of its run on jobs of a name; tells how many tiles are journalled then."""
    arguments = json.dumps({"folder": str(folder), "job_name": name, **options})
    with (
        open(folder.parent / "said", "w") as said,
        subprocess.Popen(
            [sys.executable, "-m", "tests.drivers.slurm_client", arguments], cwd=slurm.ROOT, stdout=said, stderr=said
        ) as client,
    ):
        began = slurm.eventually(lambda: staged(folder) >= 10 or client.poll() is not None)
        client.kill()
    # What a client has just made is left alone by others: let it be old.
    for made in (folder / "cluster").iterdir():
        os.utime(made, (0, 0))
    assert began
    assert client.returncode == -signal.SIGKILL, (folder.parent / "said").read_text()
    return staged(folder)


def resume(folder: Path) -> None:
    """Go on with the run of a client that was killed."""
    blockbuster.tile_process(
        folder / "image.zarr",
        Recording(folder / "calls", slow_components),
        tile_shape=TILE,
        write_to=folder / "labels.zarr",
        resume=True,
    )


def test_jobs_of_a_killed_client_end_by_themselves_and_its_run_goes_on(start: Any, folder: Path) -> None:
    name = "blockbuster-test-killed"
    client_killed(folder, name, death_timeout=3)
    assert slurm.eventually(lambda: not slurm.jobs_of(name))
    assert slurm.eventually(lambda: not processes_of(folder))
    journalled, calls = staged(folder), len(list((folder / "calls").iterdir()))
    assert 10 <= journalled < N_TILES
    with start():
        resume(folder)
    assert len(list((folder / "calls").iterdir())) == calls + N_TILES - journalled
    assert chunks_of(folder / "labels.zarr") == undisturbed(folder)


def test_the_next_cluster_ends_the_jobs_that_a_killed_client_left(start: Any, folder: Path) -> None:
    name = "blockbuster-test-left"
    client_killed(folder, name, death_timeout=600)
    assert len(slurm.jobs_of(name)) == slurm.N_JOBS
    with start():
        assert slurm.eventually(lambda: not slurm.jobs_of(name))
        assert len(list((folder / "cluster").iterdir())) == 1
        resume(folder)
    assert chunks_of(folder / "labels.zarr") == undisturbed(folder)


LEFT_OPEN = """
import sys
import blockbuster

if __name__ == "__main__":
    options = dict(cores=1, memory="1GiB", walltime=30, folder=sys.argv[1], job_name=sys.argv[2])
    client, cluster = blockbuster.make_slurm_cluster(1, **options)
    print(client.submit(sum, [1, 2]).result())
"""


@pytest.mark.usefixtures("start")
def test_a_cluster_that_is_left_open_ends_with_its_process(folder: Path) -> None:
    name, script = "blockbuster-test-left-open", folder.parent / "left_open.py"
    script.write_text(LEFT_OPEN)
    (folder / "cluster").mkdir()
    done = subprocess.run(
        [sys.executable, script, folder / "cluster", name],
        capture_output=True,
        text=True,
        timeout=slurm.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    assert slurm.jobs_of(name) == {}


# Jobs that SLURM ends over one tile


@dataclass(frozen=True)
class Fatal:
    """An `fn` that does not come to an end on the tile (2, 1), until it is mended."""

    folder: Path

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        if block[0, 0] == 77 and not (self.folder / "mended").exists():
            mark = self.folder / str(time.monotonic_ns())
            mark.with_suffix(".unfinished").write_text(f"{os.environ['SLURM_JOB_ID']} {os.getpid()}")
            mark.with_suffix(".unfinished").rename(mark)
            self.stay()
        return components(block)

    def stay(self) -> None:
        """Take too long."""
        time.sleep(600)

    def attempts(self) -> list[tuple[str, int]]:
        """The jobs and the processes that worked on the tile."""
        found = [path.read_text().split() for path in sorted(self.folder.glob("[0-9]*")) if not path.suffix]
        return [(job, int(pid)) for job, pid in found]


class Hungry(Fatal):
    """One that needs more memory than its job has, in a process that dask does not see."""

    def stay(self) -> None:
        """Take too much."""
        subprocess.run([sys.executable, "-c", "x = [bytearray(2**20) for _ in range(2**12)]"], check=False)
        time.sleep(600)


@pytest.fixture
def fatal_image(folder: Path) -> Path:
    """The image, with one voxel that tells the tile (2, 1)."""
    zarr.open_array(folder / "image.zarr")[2 * TILE, TILE] = 77
    return folder / "image.zarr"


def run_fatally(fn: Fatal, image: Path, **options: Any) -> NDArray[Any]:
    """Label an image by a function that may not come to an end."""
    to = image.parent / "labels.zarr"
    return np.asarray(blockbuster.tile_process(image, fn, tile_shape=TILE, write_to=to, **options))


def assert_mended(fn: Fatal, image: Path) -> None:
    """Assert that all other tiles are journalled, and that the run goes on once its function is mended."""
    assert staged(image.parent) == N_TILES - 1
    (fn.folder / "mended").touch()
    labels = run_fatally(fn, image, resume=True)
    np.testing.assert_array_equal(labels > 0, IMAGE > 0)
    assert_same_objects(labels, scipy.ndimage.label(IMAGE)[0])


def test_a_tile_that_outlasts_the_walltime_is_told_with_what_slurm_says(
    start: Any, folder: Path, fatal_image: Path
) -> None:
    fn = Fatal(folder / "calls")

    def end_all() -> None:
        job, _pid = fn.attempts()[0]
        out_of_time(job)
        assert slurm.eventually(lambda: not slurm.in_queue(job))
        for n in (1, 2):
            slurm.eventually(lambda n=n: len(fn.attempts()) > n)
            os.kill(fn.attempts()[n][1], signal.SIGKILL)

    with start():
        with meanwhile(lambda: len(fn.attempts()) == 1, end_all), pytest.raises(TileError) as caught:
            run_fatally(fn, fatal_image)
        assert caught.value.tile == (2, 1)
        assert f"job {fn.attempts()[0][0]} is TIMEOUT" in "".join(caught.value.__notes__)
        assert len(fn.attempts()) == 3
        assert_mended(fn, fatal_image)


def out_of_time(job: str) -> None:
    """Let a job be at the end of its walltime: SLURM ends it when it looks next, each half minute."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    slurm.command("scontrol", "update", f"JobId={job}", f"EndTime={now}")


def test_a_tile_that_outgrows_its_job_is_told_with_what_slurm_says(start: Any, folder: Path, fatal_image: Path) -> None:
    if not slurm.is_ours():
        pytest.skip("needs the SLURM of `make test-slurm`, which ends jobs that take too much memory")
    fn = Hungry(folder / "calls")
    with start():
        with pytest.raises(TileError) as caught:
            run_fatally(fn, fatal_image)
        assert caught.value.tile == (2, 1)
        assert "exceeded memory limit" in "".join(caught.value.__notes__)
        assert len(fn.attempts()) == 3
        assert_mended(fn, fatal_image)


def test_a_tile_moves_on_before_the_walltime_of_its_job_ends(start: Any, folder: Path, fatal_image: Path) -> None:
    fn = Fatal(folder / "calls")
    # SLURM rounds it up to a minute; workers live for 5 to 15 seconds.
    with start(walltime="00:00:20"):
        with meanwhile(lambda: len(fn.attempts()) == 1, (folder / "calls" / "mended").touch):
            labels = run_fatally(fn, fatal_image)
        assert_same_objects(labels, scipy.ndimage.label(IMAGE)[0])
        assert len(fn.attempts()) == 1


# What SLURM refuses, or never starts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "nowhere"}, "invalid partition specified: nowhere"),
        ({"memory": "9TiB"}, "Requested node configuration is not available"),
        ({"job_extra_directives": ["--nonsense"]}, "unrecognized option '--nonsense'"),
    ],
)
def test_a_job_that_slurm_refuses_is_told_at_once(
    options: dict[str, Any], words: str, start: Any, folder: Path
) -> None:
    with pytest.raises(SchedulerError, match=f"SLURM refused the job.*{words}"), start(**options):
        pass


def test_jobs_that_never_start_are_told_while_a_run_waits_for_them(start: Any, folder: Path) -> None:
    with start(n_workers=0, job_extra_directives=["--hold"]), pytest.raises(SchedulerError, match="JobHeldUser"):
        blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
    assert not (folder / "labels.zarr").exists()


def test_jobs_that_start_too_late_are_told(start: Any, folder: Path) -> None:
    with (
        start(n_workers=0, job_extra_directives=["--begin=now+1hour"], start_timeout=1),
        pytest.raises(SchedulerError, match=r"start_timeout 1 s.*PENDING \(BeginTime\)"),
    ):
        blockbuster.label(folder / "image.zarr", compute=True)


def test_jobs_that_end_at_their_start_are_told_with_their_log(start: Any, folder: Path) -> None:
    with (
        start(n_workers=0, python="/nonexistent/python"),
        pytest.raises(
            SchedulerError, match=r"(?s)before a worker came.*FAILED.*exit code 127.*/nonexistent/python: No"
        ),
    ):
        blockbuster.label(folder / "image.zarr", compute=True)


# Who gets in


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster at an interface that others could reach."""
    before = listening(os.getpid())
    with slurm.cluster(tmp_path_factory.mktemp("watched"), interface=other_interface()[0]) as running:
        running.client.close()
        running.cluster.listening = listening(os.getpid()) - before
        yield running


def test_a_client_without_the_credentials_is_turned_away(watched: RunningCluster) -> None:
    address = watched.cluster.scheduler_address
    assert address.startswith("tls://")
    for where, security in [
        (address.replace("tls://", "tcp://"), None),
        (address, None),
        (address, Security.temporary()),
    ]:
        with pytest.raises((OSError, TypeError, RuntimeError)):
            Client(where, security=security, timeout="3s", set_as_default=False)
    with Client(address, security=watched.cluster.security, timeout="30s", set_as_default=False) as invited:
        assert len(invited.run(os.getpid)) == slurm.N_JOBS


def test_a_worker_answers_nobody_without_the_credentials(watched: RunningCluster) -> None:
    for worker in watched.cluster.scheduler_info["workers"]:
        assert asyncio.run(greeted(worker, watched.cluster.security)) == "Worker"
        for where, security in [(worker.replace("tls://", "tcp://"), None), (worker, Security.temporary())]:
            with pytest.raises(OSError):
                asyncio.run(greeted(where, security))


async def greeted(worker: str, security: Security | None) -> str:
    """What a worker answers to whoever has these credentials."""
    arguments = security.get_connection_args("worker") if security else {}
    async with rpc(worker, connection_args=arguments, timeout=3) as connected:
        return str((await connected.identity())["type"])


def test_credentials_are_for_their_user_only(watched: RunningCluster) -> None:
    security = watched.cluster.security
    files = {Path(path) for path in (security.tls_ca_file, security.tls_worker_key, security.tls_worker_cert)}
    assert {path.stat().st_mode & 0o077 for path in files | {path.parent for path in files}} == {0}


def test_all_listen_at_the_interface_and_the_dashboard_at_loopback(watched: RunningCluster) -> None:
    _interface, address = other_interface()
    assert {ip for ip, _port in watched.cluster.listening} == {address, LOOPBACK}
    dashboard = watched.cluster.scheduler.http_server.port
    assert [ip for ip, port in watched.cluster.listening if port == dashboard] == [LOOPBACK]
    with Client(watched.cluster, set_as_default=False) as client:
        pids = [*client.run(os.getpid).values(), *client.run(os.getppid).values()]
    for pid in pids:
        assert address in {ip for ip, _port in listening(pid)} <= {address, LOOPBACK}


def other_interface() -> tuple[str, str]:
    """An interface of this machine that is not loopback, and its address."""
    for interface, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return interface, one.address
    pytest.skip("this machine has the loopback interface only")


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports at which a process listens."""
    found = psutil.Process(pid).net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


# How it is asked for


def test_the_configuration_of_dask_jobqueue_is_that_of_its_users(start: Any, folder: Path) -> None:
    config = {"cores": 1, "memory": "700MiB", "walltime": "00:07:00", "job-extra-directives": ["--comment=mine"]}
    with (
        dask.config.set({f"jobqueue.slurm.{name}": value for name, value in config.items()}),
        blockbuster.make_slurm_cluster(folder=folder / "cluster") as running,
    ):
        asked = ["squeue", "--noheader", f"--name={name_of(running)}", "--format=%C|%m|%l|%k"]
        assert slurm.eventually(lambda: slurm.command(*asked).split())
        assert slurm.command(*asked).split() == ["1|700M|7:00|mine"]


def test_a_folder_with_blanks_is_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="blanks"), slurm.cluster(folder / "with blanks"):
        pass
    assert not (folder / "with blanks").exists()


def test_gpus_are_asked_for(start: Any, folder: Path) -> None:
    if "gpu" in slurm.command("sinfo", "--noheader", "--format=%G"):
        pytest.skip("this SLURM has GPUs, and would give one")
    with pytest.raises(SchedulerError, match=r"(?s)Invalid generic resource.*--gres=gpu:1"), start(gpus_per_job=1):
        pass


def test_jobs_come_when_there_is_work(start: Any, folder: Path) -> None:
    with start(jobs=(0, 2), n_workers=0) as running:
        assert slurm.jobs_of(name_of(running)) == {}
        slowly(folder)
        # How many is for dask to say, by how long the work will take.
        assert len(slurm.jobs_of(name_of(running))) in (1, 2)
        assert chunks_of(folder / "labels.zarr") == undisturbed(folder)


# Where the client is, and what the workers see


def test_a_task_of_a_job_may_run_the_whole(slurm_cluster: Any, folder: Path) -> None:
    path = str(folder / "image.zarr")
    with Client(slurm_cluster) as client:
        labels = client.submit(lambda: blockbuster.label(path).compute(), pure=False).result()
    np.testing.assert_array_equal(labels, scipy.ndimage.label(IMAGE)[0])


def test_a_client_in_another_process_may_use_the_jobs(slurm_cluster: Any, folder: Path) -> None:
    script = f"""
import blockbuster, distributed
from distributed.security import Security
with distributed.Client({slurm_cluster.scheduler_address!r}, security=Security(**{credentials(slurm_cluster)!r})):
    blockbuster.label({str(folder / "image.zarr")!r}, write_to={str(folder / "labels.zarr")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    labels = zarr.open_array(folder / "labels.zarr" / "labels", mode="r")[:]
    np.testing.assert_array_equal(labels, scipy.ndimage.label(IMAGE)[0])


def credentials(cluster: Any) -> dict[str, Any]:
    """What another client needs to be let in."""
    names = ("tls_ca_file", "tls_client_cert", "tls_client_key")
    return {"require_encryption": True, **{name: getattr(cluster.security, name) for name in names}}


def test_a_stage_that_a_node_does_not_see_is_refused_with_its_name(start: Any, folder: Path) -> None:
    unseen = folder / "cluster" / "unseen"
    unseen.mkdir(parents=True)
    python = folder / "cluster" / "python"
    python.write_text(
        f'#!/bin/sh\nexec unshare --mount sh -c \'mount -t tmpfs none {unseen} && exec {sys.executable} "$@"\' - "$@"\n'
    )
    python.chmod(0o755)
    with start(python=str(python)), pytest.raises(StageError, match=f"on host {socket.gethostname()}.*stage_dir="):
        blockbuster.label(folder / "image.zarr", stage_dir=unseen, write_to=folder / "labels.zarr")
    assert list(unseen.iterdir()) == []
    shutil.rmtree(unseen)
    python.unlink()


# The SLURM of the tests


def refused_start(**environment: str) -> str:
    """What start-slurm.sh says when it does not start."""
    script = Path(slurm.__file__).parent / "start-slurm.sh"
    done = subprocess.run(
        [script], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=slurm.PATIENCE
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def _ours() -> None:
    """Leave out what is about the SLURM of the tests where there is another."""
    if not slurm.is_ours():
        pytest.skip("needs the SLURM of `make test-slurm`")


@pytest.mark.usefixtures("_ours")
def test_a_slurm_that_the_environment_names_is_not_touched(tmp_path: Path) -> None:
    assert "names another SLURM" in refused_start(SLURM_CONF=str(tmp_path / "slurm.conf"))


@pytest.mark.usefixtures("_ours")
def test_a_slurm_that_runs_beside_ours_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "slurmctld"
    shutil.copy(shutil.which("sleep"), other)
    with subprocess.Popen([other, "600"]) as daemon:
        try:
            assert slurm.eventually(lambda: psutil.Process(daemon.pid).name() == "slurmctld")
            said = refused_start()
            assert daemon.poll() is None
        finally:
            daemon.kill()
    assert f"another SLURM runs on this machine: processes {daemon.pid}" in said
