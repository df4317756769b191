"""Tiles on which a function fails, or that end the process at work on them: all others are kept, the run goes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import TileError, tiling
from blockbuster.cluster import RunningCluster
from tests.helpers import Recording, digest, leftovers

TILE = 16
SIDE = 64
N_TILES = (SIDE // TILE) ** 2
MARK = 77
# A worker is ended near this; one that has loaded the tests takes about 200 MB.
MEMORY = 700 * 2**20
# Made by the scheduler of dask in the client, with two locks in it.
SCRATCH_OF_DASK = "dask-scratch-space"
GIL_SECONDS = 60 if os.environ.get("BLOCKBUSTER_CHAOS") == "long" else 4


# What a function does to its process


def fail() -> None:
    """Fail as a function does that is wrong."""
    raise ValueError("no such model")


def crash() -> None:
    """Read where nothing may be read."""
    ctypes.string_at(0)


def eat() -> None:
    """Take memory until somebody ends this process."""
    eaten = []
    while len(eaten) * 2**24 < 4 * MEMORY:
        eaten.append(np.ones(2**24, np.uint8))
        time.sleep(0.01)
    raise AssertionError("nobody has ended this process")


def hold_the_gil() -> None:
    """Stop every thread of the process: PyDLL keeps the GIL during its calls."""
    ctypes.PyDLL(None).sleep(GIL_SECONDS)


@dataclass(frozen=True)
class Harmful:
    """An `fn` that does harm on the tile (2, 1), unless it is mended; its calls are recorded."""

    folder: Path
    harm: Callable[[], None]

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        labels = self.recording(block)
        if (block == MARK).any() and not self._mended.exists():
            self.harm()
        return labels

    @property
    def recording(self) -> Recording:
        """Its calls."""
        return Recording(self.folder)

    @property
    def _mended(self) -> Path:
        return self.folder / "mended"

    def mend(self) -> None:
        """Let it do no harm from now on."""
        self._mended.touch()

    def n_calls(self) -> tuple[int, int]:
        """How often it was called: with the tile (2, 1), and with others."""
        blocks = self.recording.blocks()
        harmful = sum(bool((block == MARK).any()) for block in blocks)
        return harmful, len(blocks) - harmful


@dataclass(frozen=True)
class Twice(Harmful):
    """One that does harm in its first two calls with that tile."""

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        if self.n_calls()[0] == 2:
            self.mend()
        return super().__call__(block)


# Where they run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two workers of little memory."""
    scratch = str(tmp_path_factory.mktemp("scratch"))
    with (
        dask.config.set({"temporary-directory": scratch}),
        blockbuster.make_local_cluster(n_workers=2, memory_limit=MEMORY) as running,
    ):
        # It would be the scheduler of tests that ask for none.
        running.client.close()
        yield running


@pytest.fixture(params=["processes", "distributed"])
def workers(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every scheduler that works in processes of its own; a pool leaves none of them."""
    if request.param == "processes":
        before = children()
        with dask.config.set(scheduler="processes", num_workers=2):
            yield request.param
        assert children() == before
        return
    with connected(request.getfixturevalue("cluster")):
        yield request.param


def connected(running: RunningCluster) -> Any:
    """A client of a cluster, once all workers are there."""
    from distributed import Client

    client = Client(running.cluster)
    client.wait_for_workers(2, timeout=60)
    return client


def children() -> set[int]:
    """The processes that belong to this one, but those that watch over the resources of others."""
    found = psutil.Process().children(recursive=True)
    return {process.pid for process in found if "resource_tracker" not in " ".join(process.cmdline())}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an image, in which one voxel tells the tile (2, 1); fails if a run leaves anything in it."""
    folder = tmp_path / "data"
    (folder / "calls").mkdir(parents=True)
    image = (np.random.default_rng(3).random((SIDE, SIDE)) < 0.5).astype(np.uint8)
    image[2 * TILE + 8, TILE + 4] = MARK
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    yield folder
    assert leftovers(folder) == []
    assert set(os.listdir(tmp_path / "system-tmp")) <= {SCRATCH_OF_DASK}


def run(fn: Harmful, **options: Any) -> dict[str, str]:
    """Label the image; returns the files of the result."""
    folder = fn.folder.parent
    blockbuster.tile_process(folder / "image.zarr", fn, write_to=folder / "labels.zarr", **options)
    return digest(folder / "labels.zarr")


def quiet(fn: Harmful) -> dict[str, str]:
    """The files of a result without any harm, of which nothing stays."""
    fn.mend()
    with dask.config.set(scheduler="synchronous"):
        made = run(fn)
    (fn.folder.parent / "labels.zarr").rename(fn.folder.parent.parent / "quiet.zarr")
    for path in fn.folder.iterdir():
        path.unlink()
    return made


def journalled(folder: Path) -> int:
    """How many tiles are finished."""
    return len(list(folder.rglob("*.tile")))


def assert_all_others_are_kept(error: TileError, folder: Path) -> None:
    """Assert that one error names the tile, that all others are journalled, and that it says how to go on."""
    assert error.tile == (2, 1)
    assert error.region == (slice(32, 48), slice(16, 32))
    assert "Tile (2, 1), region [32:48, 16:32]" in str(error)
    notes = "\n".join(error.__notes__)
    assert "failed as well" not in notes
    assert f"{N_TILES - 1} finished tiles are kept in {folder}" in notes
    assert "resume=True" in notes
    assert journalled(folder) == N_TILES - 1
    assert not (folder / "labels.zarr").exists()


# Functions that fail


def on(*schedulers: str) -> Any:
    """Some schedulers: processes take seconds to start."""
    marks = {"processes": [pytest.mark.slow], "slurm": [pytest.mark.slurm]}
    made = [pytest.param(name, marks=marks.get(name, [])) for name in schedulers]
    return pytest.mark.parametrize("scheduler", made, indirect=True)


@on("synchronous", "threads", "processes", "distributed", "slurm")
def test_a_function_that_fails_on_one_tile_for_good_costs_that_tile_only(scheduler: str, folder: Path) -> None:
    fn = Harmful(folder / "calls", fail)
    expected = quiet(fn)
    with pytest.raises(TileError, match="no such model") as caught:
        run(fn)
    assert_all_others_are_kept(caught.value, folder)
    assert fn.n_calls() == (1, N_TILES - 1)
    fn.mend()
    assert run(fn, resume=True) == expected
    assert fn.n_calls() == (2, N_TILES - 1)


@on("synchronous", "distributed", "slurm")
def test_a_function_that_fails_twice_and_then_works_is_tried_again(scheduler: str, folder: Path) -> None:
    fn = Twice(folder / "calls", fail)
    expected = quiet(fn)
    assert run(fn, retries=2) == expected
    assert fn.n_calls() == (3, N_TILES - 1)


@on("threads", "distributed")
def test_a_function_that_fails_twice_and_then_works_is_resumed_twice(scheduler: str, folder: Path) -> None:
    fn = Twice(folder / "calls", fail)
    expected = quiet(fn)
    for options in ({}, {"resume": True}):
        with pytest.raises(TileError, match="no such model"):
            run(fn, **options)
        assert journalled(folder) == N_TILES - 1
    assert run(fn, resume=True) == expected
    assert fn.n_calls() == (3, N_TILES - 1)


def test_too_few_retries_are_one_clear_error(synchronous: None, folder: Path) -> None:
    fn = Twice(folder / "calls", fail)
    expected = quiet(fn)
    with pytest.raises(TileError, match="no such model") as caught:
        run(fn, retries=1)
    assert_all_others_are_kept(caught.value, folder)
    assert fn.n_calls() == (2, N_TILES - 1)
    assert run(fn, resume=True, retries=1) == expected


# Images that cannot be read


def copied(folder: Path, **options: Any) -> dict[str, str]:
    """The files of a copy in other chunks."""
    blockbuster.copy(folder / "image.zarr", folder / "copy.zarr", chunks=TILE // 2, tile_shape=(TILE, TILE), **options)
    return digest(folder / "copy.zarr")


def downsampled(folder: Path, **options: Any) -> dict[str, str]:
    """The files of the image at half its size, each chunk of one chunk of it."""
    options |= {"method": "mean", "chunks": TILE // 2, "tile_shape": (TILE // 2, TILE // 2)}
    blockbuster.downsample(folder / "image.zarr", 2, write_to=folder / "small.zarr", **options)
    return digest(folder / "small.zarr")


READ = [
    pytest.param(make, name, marks=[pytest.mark.slow] if name == "processes" else [])
    for make, names in (
        (copied, ("threads", "processes", "distributed")),
        (downsampled, ("synchronous", "distributed")),
    )
    for name in names
]


@pytest.mark.parametrize(("make", "scheduler"), READ, indirect=["scheduler"])
def test_a_chunk_that_cannot_be_read_costs_its_tile_only(
    make: Callable[..., None], scheduler: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise such small tiles are joined to larger ones.
    monkeypatch.setattr(tiling, "_SMALL_TILE", 1)
    before = {path.name for path in folder.iterdir()}
    with dask.config.set(scheduler="synchronous"):
        expected = make(folder)
    (made,) = {path.name for path in folder.iterdir()} - before
    (folder / made).rename(folder.parent / made)
    with broken(folder / "image.zarr/c/2/1"), pytest.raises(TileError, match="reading the image") as caught:
        make(folder)
    assert caught.value.tile == (2, 1)
    assert f"{N_TILES - 1} finished tiles are kept in" in "".join(caught.value.__notes__)
    assert journalled(folder) == N_TILES - 1
    assert {path.name for path in folder.iterdir() if "blockbuster-" not in path.name} == before
    assert make(folder, resume=True) == expected


@contextlib.contextmanager
def broken(chunk: Path) -> Iterator[None]:
    """Let a chunk be one no more, for some time that its file does not tell."""
    content, state = chunk.read_bytes(), chunk.stat()
    chunk.write_bytes(bytes(len(content)))
    os.utime(chunk, ns=(state.st_atime_ns, state.st_mtime_ns))
    try:
        yield
    finally:
        chunk.write_bytes(content)
        os.utime(chunk, ns=(state.st_atime_ns, state.st_mtime_ns))


# Functions that end their process


@pytest.mark.slow
def test_a_function_that_crashes_on_one_tile_costs_that_tile_only(workers: str, folder: Path) -> None:
    fn = Harmful(folder / "calls", crash)
    expected = quiet(fn)
    with pytest.raises(TileError, match="the process at work on it was lost 3 times") as caught:
        run(fn)
    assert_all_others_are_kept(caught.value, folder)
    assert_three_were_lost(caught.value)
    assert_called(fn, workers, 3)
    fn.mend()
    assert run(fn, resume=True) == expected
    assert_called(fn, workers, 4)


@pytest.mark.slow
def test_a_function_that_eats_memory_on_one_tile_costs_that_tile_only(cluster: RunningCluster, folder: Path) -> None:
    fn = Harmful(folder / "calls", eat)
    expected = quiet(fn)
    with connected(cluster):
        with pytest.raises(TileError, match=r"lost 3 times.*more memory") as caught:
            run(fn)
        assert_all_others_are_kept(caught.value, folder)
        assert_three_were_lost(caught.value)
        said = "\n".join(caught.value.__notes__)
        assert all(f"{attempt}: " in said for attempt in caught.value.attempts)
        assert said.count("memory") >= 3
        assert fn.n_calls() == (3, N_TILES - 1)
        fn.mend()
        assert run(fn, resume=True) == expected
    assert fn.n_calls() == (4, N_TILES - 1)


def assert_three_were_lost(error: TileError) -> None:
    """Assert that an error names three processes, and that they have ended."""
    pids = [attempt.pid for attempt in error.attempts]
    assert len(set(pids)) == 3
    assert all(f"process {pid}" in str(error) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def assert_called(fn: Harmful, workers: str, n_harmful: int) -> None:
    """Assert how often a function was called: a pool ends with one of its processes, and costs the tile beside it."""
    harmful, others = fn.n_calls()
    assert harmful == n_harmful
    assert N_TILES - 1 <= others <= N_TILES - 1 + (3 if workers == "processes" else 0)


@pytest.mark.slow
def test_a_function_that_holds_the_gil_loses_nothing(cluster: RunningCluster, folder: Path) -> None:
    fn = Harmful(folder / "calls", hold_the_gil)
    expected = quiet(fn)
    with connected(cluster) as client:
        before = client.run(os.getpid)
        assert run(fn) == expected
        assert client.run(os.getpid) == before
    assert fn.n_calls() == (1, N_TILES - 1)
