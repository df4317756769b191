"""What goes wrong outside of blockbuster: functions, disks, schedulers, workers."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import CapacityError, OutputError, SchedulerError, StageError, TileError
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers

TILE = 16
SIDE = 64
N_TILES = (SIDE // TILE) ** 2


@pytest.fixture(scope="module")
def image() -> NDArray[Any]:
    """Noise, with one voxel by which a function can tell the tile (2, 1)."""
    image = (np.random.default_rng(3).random((SIDE, SIDE)) < 0.5).astype(np.uint8)
    image[40, 20] = 77
    return image


@pytest.fixture
def folder(tmp_path: Path, image: NDArray[Any]) -> Path:
    """A folder with the image in it and nothing else."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    return folder


# Every scheduler, and every way of asking for a result, but not each with each.
every_way = pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        ("synchronous", "memory"),
        ("synchronous", "lazy"),
        ("threads", "lazy"),
        ("threads", "store"),
        ("processes", "memory"),
        ("distributed", "lazy"),
        ("distributed", "store"),
    ],
    indirect=["scheduler"],
)


def way(kind: str, folder: Path) -> dict[str, Any]:
    """The options that ask for a result in that way."""
    return {"memory": {"compute": True}, "lazy": {}, "store": {"write_to": folder / "labels.zarr"}}[kind]


def everything(tmp_path: Path) -> set[str]:
    """All files and folders but the content of zarr stores."""
    paths = (path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    return {str(path) for path in paths if not any(part.endswith(".zarr") for part in path.parts[:-1])}


# Functions that fail


class OddError(Exception):
    """An error that takes two arguments and cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.lock = threading.Lock()


def fail_on_one_tile(block: NDArray[Any]) -> NDArray[Any]:
    if (block == 77).any():
        raise KeyError("no such model")
    return components(block)


def fail_oddly(block: NDArray[Any]) -> NDArray[Any]:
    if (block == 77).any():
        raise OddError("very", "odd")
    return components(block)


def fail_on_all_tiles(block: NDArray[Any]) -> NDArray[Any]:
    raise KeyError("no such model")


def fail_locally(block: NDArray[Any]) -> NDArray[Any]:
    class LocalError(Exception):
        pass

    raise LocalError("nobody can import me")


@every_way
def test_an_error_names_tile_region_and_cause_on_every_scheduler(kind: str, scheduler: str, folder: Path) -> None:
    with pytest.raises(TileError) as caught:
        blockbuster.tile_process(folder / "image.zarr", fail_on_one_tile, overlap=2, **way(kind, folder)).compute()
    error = caught.value
    assert error.tile == (2, 1)
    assert error.region == (slice(30, 50), slice(14, 34))
    assert "(2, 1)" in str(error)
    assert "30:50, 14:34" in str(error)
    assert "no such model" in str(error)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("no such model",)


@pytest.mark.parametrize("fn", [fail_oddly, fail_locally])
def test_errors_that_cannot_be_pickled_are_told_in_words(fn: Callable[..., Any], scheduler: str, folder: Path) -> None:
    with pytest.raises(TileError) as caught:
        blockbuster.tile_process(folder / "image.zarr", fn, compute=True)
    words = "very odd" if fn is fail_oddly else "nobody can import me"
    kind = "OddError" if fn is fail_oddly else "LocalError"
    assert kind in str(caught.value)
    assert words in str(caught.value)
    assert words in str(caught.value.__cause__)
    told = "\n".join(getattr(caught.value, "__notes__", []))
    assert isinstance(caught.value.__cause__, RuntimeError) or type(caught.value.__cause__).__name__ == kind
    if scheduler in ("processes", "distributed"):
        assert f"in {fn.__name__}" in told
    else:
        assert type(caught.value.__cause__).__name__ == kind
        assert caught.value.__cause__.__traceback__ is not None


def test_a_tile_error_survives_pickling() -> None:
    error = TileError.of((1, 2), (slice(0, 3), slice(4, 5)), "staging", OSError(28, "full"), leaves_process=True)
    again = pickle.loads(pickle.dumps(error))
    assert (again.tile, again.region, str(again)) == (error.tile, error.region, str(error))
    assert isinstance(again.__cause__, OSError)
    assert again.__notes__ == error.__notes__


def test_after_a_failing_tile_other_calls_of_the_session_work(
    scheduler: str, folder: Path, image: NDArray[Any]
) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", fail_on_one_tile, compute=True)
    np.testing.assert_array_equal(blockbuster.label(folder / "image.zarr", compute=True), scipy.ndimage.label(image)[0])
    labels = blockbuster.tile_process(folder / "image.zarr", components, write_to=folder / "labels.zarr")
    assert_same_objects(labels, scipy.ndimage.label(image)[0])


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("synchronous", "memory"), ("threads", "store"), ("processes", "memory"), ("distributed", "store")],
    indirect=["scheduler"],
)
def test_a_failure_before_any_tile_leaves_nothing(kind: str, scheduler: str, folder: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with pytest.raises(TileError) as caught:
        blockbuster.tile_process(folder / "image.zarr", fail_on_all_tiles, **way(kind, folder))
    assert everything(tmp_path) == before
    assert not any("resume=True" in note for note in getattr(caught.value, "__notes__", []))


@every_way
def test_success_leaves_the_output_and_nothing_else(kind: str, scheduler: str, folder: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    labels = blockbuster.tile_process(folder / "image.zarr", components, **way(kind, folder))
    np.asarray(labels)
    del labels
    gc.collect()
    assert everything(tmp_path) == before | ({"data/labels.zarr"} if kind == "store" else set())


def test_an_error_of_the_image_itself_names_the_tile(tmp_path: Path) -> None:
    def break_down(block: NDArray[Any]) -> NDArray[Any]:
        raise OSError("the camera is gone")

    before = everything(tmp_path)
    image = da.ones((8, 8), chunks=4).map_blocks(break_down, meta=np.ones((0, 0)))
    with dask.config.set(scheduler="synchronous"), pytest.raises(OSError, match="the camera is gone"):
        blockbuster.tile_process(image, components, compute=True)
    assert everything(tmp_path) == before


def test_a_chunk_that_cannot_be_decoded_names_the_tile(synchronous: None, folder: Path) -> None:
    chunk = folder / "image.zarr/c/2/1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(TileError, match="reading") as caught:
        blockbuster.label(folder / "image.zarr", compute=True)
    assert caught.value.tile == (2, 1)


# Schedulers


@pytest.mark.parametrize("kind", ["memory", "lazy", "store"])
def test_an_unknown_scheduler_is_refused_before_anything_is_done(kind: str, folder: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with dask.config.set(scheduler="thread"), pytest.raises(SchedulerError, match=r"'thread'.*'threads'"):
        blockbuster.label(folder / "image.zarr", **way(kind, folder))
    assert everything(tmp_path) == before


def test_the_distributed_scheduler_without_a_client_is_refused(folder: Path) -> None:
    with dask.config.set(scheduler="distributed"), pytest.raises(SchedulerError, match="client"):
        blockbuster.label(folder / "image.zarr", compute=True)


@every_way
def test_a_function_that_cannot_be_pickled_is_refused_where_it_must_be(
    kind: str, scheduler: str, folder: Path, image: NDArray[Any], tmp_path: Path
) -> None:
    lock = threading.Lock()

    def locked(block: NDArray[Any]) -> NDArray[Any]:
        with lock:
            return components(block)

    before = everything(tmp_path)
    if scheduler in ("synchronous", "threads"):
        labels = blockbuster.tile_process(folder / "image.zarr", locked, **way(kind, folder))
        assert_same_objects(labels, scipy.ndimage.label(image)[0])
        return
    with pytest.raises(SchedulerError, match=r"locked.*cannot be pickled.*Define it at the top level"):
        blockbuster.tile_process(folder / "image.zarr", locked, **way(kind, folder))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("scheduler_of_task", ["threads", "distributed"])
def test_runs_work_within_a_dask_task(
    scheduler_of_task: str, folder: Path, image: NDArray[Any], request: pytest.FixtureRequest
) -> None:
    path, to = str(folder / "image.zarr"), str(folder / "labels.zarr")

    def run() -> Any:
        in_memory = blockbuster.label(path).compute()
        stored = blockbuster.label(path, write_to=to, overwrite=True).compute()
        return np.stack([in_memory, stored])

    if scheduler_of_task == "distributed":
        from distributed import Client

        with Client(request.getfixturevalue("local_cluster")) as client:
            made = client.submit(run, pure=False).result()
    else:
        made = dask.delayed(run)().compute(scheduler="threads")
    np.testing.assert_array_equal(made[0], scipy.ndimage.label(image)[0])
    np.testing.assert_array_equal(made[1], scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


@pytest.mark.parametrize(
    "call",
    [
        "labels = blockbuster.label('image.zarr').compute()",
        "labels = blockbuster.label('image.zarr', write_to='labels.zarr', progress=True).compute()",
        "labels = blockbuster.tile_process('image.zarr', lambda b: ndimage.label(b)[0], compute=True, merge='contact')",
    ],
)
def test_a_script_without_a_main_guard_works(call: str, folder: Path, image: NDArray[Any]) -> None:
    script = folder / "script.py"
    script.write_text(f"import blockbuster\nfrom scipy import ndimage\n{call}\nprint((labels > 0).sum())\n")
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == np.count_nonzero(image)
    assert leftovers(folder) == []


# Tasks that run twice


def twice(step: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        step(*args)
        return step(*args)

    return run


def twice_at_once(step: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        other = threading.Thread(target=step, args=args)
        other.start()
        try:
            return step(*args)
        finally:
            other.join()

    return run


@pytest.mark.parametrize("again", [twice, twice_at_once])
@pytest.mark.parametrize("journal", ["believed", "not seen"])
@pytest.mark.parametrize("kind", ["memory", "store"])
@pytest.mark.parametrize("tile_shape", [(TILE, TILE), (24, 40)])
def test_steps_that_run_twice_change_nothing(
    again: Callable[..., Any],
    journal: str,
    kind: str,
    tile_shape: tuple[int, int],
    synchronous: None,
    folder: Path,
    image: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for step in ("stage_tile", "scan", "unite", "final_block", "write_block"):
        monkeypatch.setattr(blockbuster.run, step, again(getattr(blockbuster.run, step)))
    if journal == "not seen":
        monkeypatch.setattr(blockbuster.stage.Stage, "has_tile", lambda *args: False)
        monkeypatch.setattr(blockbuster.stage.Stage, "is_written", lambda *args: False)
    labels = blockbuster.label(folder / "image.zarr", tile_shape=tile_shape, **way(kind, folder))
    np.testing.assert_array_equal(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


def test_a_step_that_runs_twice_calls_fn_once(
    synchronous: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    monkeypatch.setattr(blockbuster.run, "stage_tile", twice(blockbuster.run.stage_tile))
    blockbuster.tile_process(folder / "image.zarr", recording, compute=True)
    assert recording.n_calls == N_TILES


def test_tasks_that_come_after_the_end_write_nothing(
    synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late: list[Callable[[], Any]] = []
    stage_tile, write_block = blockbuster.run.stage_tile, blockbuster.run.write_block

    def remember(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            late.append(lambda: step(*args))
            return step(*args)

        return run

    monkeypatch.setattr(blockbuster.run, "stage_tile", remember(stage_tile))
    monkeypatch.setattr(blockbuster.run, "write_block", remember(write_block))
    blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
    before, output = everything(tmp_path), digest(folder / "labels.zarr")
    assert len(late) == 2 * N_TILES
    for task in late:
        with pytest.raises((TileError, StageError)):
            task()
    assert everything(tmp_path) == before
    assert digest(folder / "labels.zarr") == output


# Disks


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A file system in memory, where the user may mount one."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nobody can write."""
    with mounted(tmp_path / "read-only", "size=1m,ro") as path:
        yield path


class Disk:
    """A small disk that can be filled up and emptied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self, leave: int = 0) -> None:
        """Take all room but some bytes."""
        with contextlib.suppress(OSError), open(self._filling, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        if leave:
            os.truncate(self._filling, self._filling.stat().st_size - leave)

    def empty(self) -> None:
        """Give the room back."""
        self._filling.unlink()

    def names(self) -> set[str]:
        """What others left there."""
        return {path.name for path in self.path.iterdir()} - {self._filling.name}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 2 MiB."""
    with mounted(tmp_path / "disk", "size=2m") as path:
        yield Disk(path)


def noise(block: NDArray[Any]) -> NDArray[Any]:
    """Labels that no codec makes smaller."""
    return np.random.default_rng(int(block.sum())).integers(1, 2**31 - 1, block.shape, np.int32)


@pytest.fixture
def large(folder: Path) -> Path:
    """An image whose labels by `noise` take 1 MiB in 16 tiles."""
    values = np.random.default_rng(0).integers(0, 255, (512, 512)).astype(np.uint8)
    zarr.create_array(folder / "large.zarr", data=values, chunks=(128, 128))
    return folder / "large.zarr"


@pytest.mark.parametrize("kind", ["memory", "lazy", "store"])
def test_a_read_only_stage_dir_is_one_clear_error(
    kind: str, synchronous: None, folder: Path, read_only: Path, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    with pytest.raises(StageError, match=r"read-only.*Give stage_dir="):
        blockbuster.label(folder / "image.zarr", stage_dir=read_only, **way(kind, folder)).compute()
    assert everything(tmp_path) == before


def test_a_read_only_target_is_one_clear_error_before_the_first_tile(
    synchronous: None, folder: Path, read_only: Path, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    recording = Recording(tmp_path)
    with pytest.raises(StageError, match=r"read-only"):
        blockbuster.tile_process(folder / "image.zarr", recording, write_to=read_only / "labels.zarr")
    with pytest.raises(OutputError, match=r"read-only/labels.zarr.*choose another write_to"):
        blockbuster.tile_process(
            folder / "image.zarr", recording, write_to=read_only / "labels.zarr", stage_dir=tmp_path
        )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("target", ["/proc/labels.zarr", "/sys/labels.zarr"])
def test_a_target_where_nobody_can_write_is_one_clear_error(
    target: str, synchronous: None, folder: Path, tmp_path: Path
) -> None:
    if not Path(target).parent.is_dir():
        pytest.skip(f"no {Path(target).parent} here")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=f"{target}.*choose another write_to"):
        blockbuster.label(folder / "image.zarr", write_to=target, stage_dir=tmp_path)
    with pytest.raises(StageError, match="stage_dir="):
        blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", stage_dir=Path(target).parent)
    assert everything(tmp_path) == before


def test_a_file_in_the_place_of_the_store_is_one_clear_error(synchronous: None, folder: Path, tmp_path: Path) -> None:
    (folder / "labels.zarr").write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=r"labels\.zarr"):
        blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
    assert (folder / "labels.zarr").read_text() == "precious"
    assert everything(tmp_path) == before


def test_an_image_on_a_read_only_disk_is_labelled_with_scratch_data_elsewhere(
    synchronous: None, image: NDArray[Any], tmp_path: Path
) -> None:
    with mounted(tmp_path / "archive", "size=2m") as archive:
        zarr.create_array(archive / "image.zarr", data=image, chunks=(TILE, TILE))
        subprocess.run(["mount", "-o", "remount,ro", str(archive)], check=True)
        before = everything(tmp_path)
        np.testing.assert_array_equal(
            blockbuster.label(archive / "image.zarr").compute(), scipy.ndimage.label(image)[0]
        )
        assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_disk_without_any_room_for_the_stage_is_one_clear_error(
    kind: str, synchronous: None, folder: Path, large: Path, disk: Disk
) -> None:
    disk.fill()
    with pytest.raises(CapacityError, match=f"{disk.path}.*stage_dir="):
        blockbuster.tile_process(large, noise, stage_dir=disk.path, **way(kind, folder))
    assert disk.names() == set()
    assert leftovers(folder) == []
    assert not (folder / "labels.zarr").exists()


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("synchronous", "memory"), ("threads", "store"), ("processes", "memory"), ("distributed", "store")],
    indirect=["scheduler"],
)
def test_a_stage_that_fills_its_disk_keeps_its_tiles_and_resumes(
    kind: str, scheduler: str, folder: Path, large: Path, disk: Disk, tmp_path: Path
) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls", noise)
    disk.fill(leave=1 << 19)
    with pytest.raises(TileError, match="No space left") as caught:
        blockbuster.tile_process(large, recording, merge=None, stage_dir=disk.path, **way(kind, folder))
    assert isinstance(caught.value.__cause__, OSError)
    (stage,) = disk.names()
    assert f"finished tiles are kept in {disk.path / stage}" in "".join(caught.value.__notes__)
    assert not (folder / "labels.zarr").exists()
    disk.empty()
    n_finished = len(list((disk.path / stage).rglob("*.tile")))
    n_before = recording.n_calls
    labels = blockbuster.tile_process(
        large, recording, merge=None, stage_dir=disk.path, resume=True, **way(kind, folder)
    )
    assert 0 < n_finished < 16
    assert recording.n_calls - n_before == 16 - n_finished
    assert_same_objects(labels, blockbuster.tile_process(large, noise, merge=None, compute=True))
    assert disk.names() == set()
    assert leftovers(folder) == []


@pytest.mark.parametrize("moment", ["make_table", "write", "annotate", "commit"])
@pytest.mark.parametrize("old", [False, True])
def test_an_output_that_fills_its_disk_is_never_half_there_and_resumes(
    moment: str, old: bool, synchronous: None, large: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    to = disk.path / "labels.zarr"
    if old:
        blockbuster.label(large, write_to=to, threshold=254)
    before = digest(to) if old else None
    options: dict[str, Any] = {"write_to": to, "threshold": 127, "numbering": "raster", "overwrite": old}
    owner = blockbuster.steps if moment == "make_table" else blockbuster.outputs.Output
    original = getattr(owner, moment)

    def fill_first(*args: Any, **kwargs: Any) -> Any:
        if not (disk.path / "filling").exists():
            disk.fill()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, fill_first)
        if moment == "commit" and old:
            # Nothing more is to be written.
            blockbuster.label(large, **options)
        else:
            with pytest.raises(
                (StageError, OutputError, TileError), match=r"No space left|cannot be written"
            ) as caught:
                blockbuster.label(large, **options)
            assert str(disk.path) in str(caught.value) or "Tile" in str(caught.value)
            assert "16 finished tiles" in "".join(caught.value.__notes__)
            assert (digest(to) if old else not (to / "labels").exists()) == (before or True)
    disk.empty()
    labels = blockbuster.label(large, resume=True, **options)
    values = zarr.open_array(large, mode="r")[:]
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(values > 127)[0])
    assert disk.names() == {"labels.zarr"}


def test_files_that_may_not_grow_are_one_clear_error(
    synchronous: None, folder: Path, large: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = everything(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    try:
        with pytest.raises(TileError, match="File too large"):
            blockbuster.tile_process(large, noise, write_to=folder / "labels.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path) == before


# Workers


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cluster whose workers and client each have a working folder of their own: paths below it differ."""
    from distributed import Client, LocalCluster

    if not Path("/proc/self/cwd").exists():
        pytest.skip("no /proc here")
    here = tmp_path / "client"
    here.mkdir()
    monkeypatch.chdir(here)

    def move() -> None:
        other = tmp_path / f"worker-{uuid.uuid4().hex}"
        other.mkdir()
        os.chdir(other)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.run(move)
        yield Path("/proc/self/cwd")


@pytest.mark.slow
def test_paths_that_workers_do_not_see_are_refused_before_the_first_tile(
    apart: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    before = everything(tmp_path)
    ways: list[dict[str, Any]] = [{"compute": True}, {"write_to": folder / "labels.zarr"}]
    for options in ways:
        with pytest.raises(StageError, match=r"not visible from the workers tcp://.*Give stage_dir="):
            blockbuster.tile_process(folder / "image.zarr", recording, stage_dir=apart, **options)
    with pytest.raises((OutputError, StageError), match=r"not visible from the workers tcp://.*Give write_to="):
        blockbuster.tile_process(folder / "image.zarr", recording, stage_dir=folder, write_to=apart / "labels.zarr")
    assert recording.n_calls == 0
    assert everything(tmp_path) == before
    with pytest.raises(TileError, match=r"not visible on host .*Give stage_dir="):
        blockbuster.tile_process(folder / "image.zarr", recording, stage_dir=apart).compute()


@dataclass(frozen=True)
class KillingOnce:
    """An `fn` that kills its process in some call, once."""

    recording: Recording

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        labels = self.recording(block)
        with contextlib.suppress(FileNotFoundError):
            if self.recording.n_calls >= int(self._limit.read_text()):
                self._limit.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return labels

    @property
    def _limit(self) -> Path:
        return self.recording.folder / "limit"

    def kill_in(self, call: int) -> None:
        """Kill in that call, or soon after."""
        self._limit.write_text(str(call))


@pytest.fixture
def killing(tmp_path: Path) -> KillingOnce:
    """A function that kills one process."""
    (tmp_path / "calls").mkdir()
    made = KillingOnce(Recording(tmp_path / "calls"))
    made.kill_in(6)
    return made


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_tile_that_it_had(
    killing: KillingOnce, folder: Path, image: NDArray[Any]
) -> None:
    with blockbuster.make_local_cluster(n_workers=2) as (client, _):
        labels = blockbuster.tile_process(folder / "image.zarr", killing, write_to=folder / "labels.zarr")
        assert killing.recording.n_calls == N_TILES + 1
        expected = blockbuster.tile_process(folder / "image.zarr", components, compute=True)
        np.testing.assert_array_equal(labels.compute(), expected)
        assert leftovers(folder) == []

        client.wait_for_workers(2, timeout=60)
        killing.kill_in(N_TILES + 1 + 6)
        lazy = blockbuster.tile_process(folder / "image.zarr", killing)
        np.testing.assert_array_equal(lazy.compute(), expected)
        assert killing.recording.n_calls == 2 * (N_TILES + 1)
        del lazy
        client.wait_for_workers(2, timeout=60)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_workers_killed_too_often_end_the_run_and_keep_its_tiles(
    killing: KillingOnce, folder: Path, image: NDArray[Any]
) -> None:
    from distributed import KilledWorker

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        blockbuster.make_local_cluster(n_workers=2) as (client, _),
    ):
        with pytest.raises(TileError, match="the function failed with KilledWorker") as caught:
            blockbuster.tile_process(folder / "image.zarr", killing, write_to=folder / "labels.zarr")
        assert isinstance(caught.value.__cause__, KilledWorker)
        assert "resume=True" in "".join(caught.value.__notes__)
        client.wait_for_workers(2, timeout=60)
        n_finished = len(list(folder.glob("*.blockbuster-*/tiles/*/*.tile")))
        n_before = killing.recording.n_calls
        labels = blockbuster.tile_process(folder / "image.zarr", killing, write_to=folder / "labels.zarr", resume=True)
        assert killing.recording.n_calls - n_before == N_TILES - n_finished
        assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


def test_a_killed_process_of_a_pool_costs_only_the_tile_that_it_had(
    killing: KillingOnce, folder: Path, image: NDArray[Any]
) -> None:
    with dask.config.set(scheduler="processes", num_workers=1):
        labels = blockbuster.tile_process(folder / "image.zarr", killing, compute=True)
    assert killing.recording.n_calls == N_TILES + 1
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []
