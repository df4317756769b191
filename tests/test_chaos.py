"""Processes killed at random moments of a run, again and again: the result is that of a quiet run, to the byte.

The moments are drawn from a seed, as numbers of finished tiles. ``make chaos`` draws many more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import zarr

import blockbuster
from tests.drivers.chaotic import RUNS, TILE, Slow
from tests.helpers import digest, leftovers
from tests.slurm.tools import eventually, processes_with

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Profile:
    """How much chaos there is.

    Attributes
    ----------
    n_workers, n_pools, n_clients : int
        Workers of a cluster, processes of pools, and clients that are killed over one run each.
    side : int
        Tiles along an axis of the image.
    """

    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    n_workers: int
    n_pools: int
    n_clients: int
    side: int


SHORT = Profile(seeds=(1,), runs=("tile_process",), n_workers=20, n_pools=3, n_clients=2, side=20)
LONG = Profile(seeds=(1, 2, 3, 4), runs=tuple(RUNS), n_workers=60, n_pools=15, n_clients=10, side=40)
PROFILE = {"short": SHORT, "long": LONG}[os.environ.get("BLOCKBUSTER_CHAOS", "short")]
N_TILES = PROFILE.side**2

SECONDS = 600 if PROFILE is SHORT else 7200
every_seed = pytest.mark.parametrize("seed", PROFILE.seeds)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an image; fails if a run leaves anything in it, or a process that was started for it."""
    folder = tmp_path / "data"
    (folder / "calls").mkdir(parents=True)
    side = PROFILE.side * TILE
    image = (np.random.default_rng(8).random((side, side)) < 0.5).astype(np.uint8)
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    monkeypatch.setenv("BLOCKBUSTER_TESTS_RUN", uuid.uuid4().hex)
    monkeypatch.setattr(blockbuster.tiling, "_SMALL_TILE", 1)
    yield folder
    ended = eventually(lambda: working() == [])
    for process in working():
        process.kill()
    assert ended
    assert leftovers(folder) == []
    assert {path.name for path in folder.iterdir()} == {"image.zarr", "made.zarr", "calls"}


def working() -> list[psutil.Process]:
    """The processes that were started for this test."""
    return list(filter(is_worker, processes_with("BLOCKBUSTER_TESTS_RUN", os.environ["BLOCKBUSTER_TESTS_RUN"])))


def is_worker(process: psutil.Process) -> bool:
    """Whether a process does work, and does not only watch over the resources of others."""
    return process.pid != os.getpid() and command(process) != "" and "resource_tracker" not in command(process)


def command(process: psutil.Process) -> str:
    """The command line of a process; none of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


def quiet(folder: Path, kind: str) -> dict[str, str]:
    """The files that a run makes that nothing disturbs; none of them stays."""
    with dask.config.set(scheduler="synchronous"):
        RUNS[kind](folder)
    made = digest(folder / "made.zarr")
    (folder / "made.zarr").rename(folder.parent / "quiet.zarr")
    for path in (folder / "calls").iterdir():
        path.unlink()
    return made


# Chaos


def progress(folder: Path) -> int:
    """How much is done: the records of tiles, and the marks of what is written."""
    return sum(
        bool(re.fullmatch(r"\d{6,}(\.tile)?", name))
        for stage in folder.glob("*.blockbuster-????????")
        for _, _, names in os.walk(stage)
        for name in names
    )


def moments(seed: int, n: int, most: int) -> list[int]:
    """Amounts of progress at which something happens, so that all of it happens before the end."""
    return sorted(random.Random(seed).sample(range(1, int(0.9 * most)), n))


@contextlib.contextmanager
def chaos(folder: Path, at: list[int], act: Callable[[], None]) -> Iterator[None]:
    """Do something at each moment of a run; all of them must come before the block ends."""
    over = threading.Event()

    def watch() -> int:
        for n_done, moment in enumerate(at):
            while progress(folder) < moment:
                if over.wait(0.005):
                    return n_done
            act()
        return len(at)

    with ThreadPoolExecutor(1) as pool:
        acted = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
        assert acted.result() == len(at), "the run was over before all of it had happened"


def kill_one(chosen: random.Random, pids: Callable[[], list[int]]) -> None:
    """Kill one of some processes, which are there soon."""
    assert eventually(pids)
    os.kill(chosen.choice(pids()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@every_seed
@pytest.mark.parametrize("kind", PROFILE.runs)
def test_workers_killed_at_random_change_no_byte(kind: str, seed: int, folder: Path) -> None:
    expected = quiet(folder, kind)
    total = {"tile_process": 2 * N_TILES, "label": 2 * N_TILES}.get(kind, N_TILES)
    at = moments(seed, PROFILE.n_workers, total)
    chosen = random.Random(seed)
    with blockbuster.make_local_cluster(n_workers=2) as (_client, cluster):

        def living() -> list[int]:
            return [nanny.pid for nanny in cluster.workers.values() if nanny.pid and psutil.pid_exists(nanny.pid)]

        with chaos(folder, at, lambda: kill_one(chosen, living)):
            RUNS[kind](folder)
    assert digest(folder / "made.zarr") == expected
    if kind == "tile_process":
        n_calls = Slow(folder / "calls").recording.n_calls
        assert N_TILES <= n_calls <= N_TILES + PROFILE.n_workers


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@every_seed
def test_processes_of_pools_killed_at_random_change_no_byte(seed: int, folder: Path) -> None:
    expected = quiet(folder, "tile_process")
    chosen = random.Random(seed)
    at = moments(seed, PROFILE.n_pools, 2 * N_TILES)
    with (
        dask.config.set(scheduler="processes", num_workers=2),
        chaos(folder, at, lambda: kill_one(chosen, pool_processes)),
    ):
        RUNS["tile_process"](folder)
    assert digest(folder / "made.zarr") == expected
    # A pool ends with one of its processes, so each kill costs the tiles of both.
    assert N_TILES <= Slow(folder / "calls").recording.n_calls <= N_TILES + 2 * PROFILE.n_pools


def pool_processes() -> list[int]:
    """The processes that were started for tasks of this test: not those of a cluster of others."""
    return [process.pid for process in working() if "spawn_main" in command(process)]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@every_seed
@pytest.mark.parametrize("kind", ["processes", "distributed"])
def test_clients_killed_at_random_go_on_to_the_same_bytes(kind: str, seed: int, folder: Path) -> None:
    expected = quiet(folder, "tile_process")
    ends = [run_until(folder, kind, moment) for moment in [*moments(seed, PROFILE.n_clients, 2 * N_TILES), None]]
    assert ends == [-signal.SIGKILL] * PROFILE.n_clients + [0]
    assert digest(folder / "made.zarr") == expected
    assert N_TILES <= Slow(folder / "calls").recording.n_calls <= N_TILES + 2 * PROFILE.n_clients


def run_until(folder: Path, kind: str, moment: int | None) -> int:
    """Start a client that goes on with the run, and kill it alone at a moment; returns how it ended."""
    said = folder.parent / "said"
    with (
        open(said, "w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "tests.drivers.chaotic", str(folder), kind], cwd=ROOT, stdout=output, stderr=output
        ) as client,
    ):
        if moment is not None:
            assert eventually(lambda: progress(folder) >= moment or client.poll() is not None), said.read_text()
            client.kill()
    assert client.returncode in (0, -signal.SIGKILL), said.read_text()
    # What it had started ends by itself, and lets go of the stage.
    assert eventually(lambda: working() == [])
    return client.returncode


# The table of faults


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"
