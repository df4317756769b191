"""What goes wrong outside of copies, smaller images and pyramids: chunks, disks, schedulers, workers, other runs."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import CapacityError, OutputError, OutputExistsError, StageError, TileError, tiling
from tests.drivers.crashing import CASES, SHAPE, TILE, noise, out_of, some_mask
from tests.drivers.waiting import wait_for
from tests.helpers import digest, leftovers

ROOT = Path(__file__).parents[1]
N_TILES = 9


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as small as chunks."""
    monkeypatch.setattr(tiling, "_SMALL_TILE", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a source in it, and one to write to."""
    folder = tmp_path / "data"
    (folder / "to").mkdir(parents=True)
    CASES["raw copy"].prepare(folder)
    return folder


def case_folder(name: str, tmp_path: Path, **options: Any) -> tuple[Path, dict[str, str]]:
    """A folder with what a case needs, and what an undisturbed run makes of it, by its files."""
    folder = tmp_path / "case"
    (folder / "to").mkdir(parents=True)
    CASES[name].prepare(folder)
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", folder / "to", backup], check=True)
    with dask.config.set(scheduler="synchronous"):
        CASES[name].run(folder, **options)
    expected = digest(folder / "to")
    subprocess.run(["rm", "-r", folder / "to"], check=True)
    backup.rename(folder / "to")
    return folder, expected


def stages(folder: Path) -> list[Path]:
    """Scratch data in a folder."""
    return sorted(folder.glob("*.blockbuster-????????"))


def copied(folder: Path, **options: Any) -> Any:
    return blockbuster.copy(folder / "source.zarr", out_of(folder), **{"tile_shape": (TILE, TILE), **options})


ways = pytest.mark.parametrize("chunks", [TILE, 8], ids=["raw", "decoded"])


# Chunks


def damage(folder: Path, index: tuple[int, int] = (2, 1)) -> None:
    """Let a chunk of the source be one no more."""
    path = folder / "source.zarr/c" / str(index[0]) / str(index[1])
    path.write_bytes(b"garbage")


def some(*pairs: tuple[str, str]) -> Any:
    """Some cases on some schedulers: processes take seconds to start."""
    marked = [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] == "processes" else []) for pair in pairs]
    return pytest.mark.parametrize(("name", "scheduler"), marked, indirect=["scheduler"])


@some(*(("decoded copy", kind) for kind in ("synchronous", "threads", "processes", "distributed")))
def test_a_broken_chunk_names_tile_and_region(name: str, scheduler: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(TileError) as caught:
        copied(folder, chunks=8)
    error = caught.value
    assert error.tile == (2, 1)
    assert error.region == (slice(32, 48), slice(16, 32))
    assert "(2, 1)" in str(error)
    assert "32:48, 16:32" in str(error)
    assert "reading" in str(error)
    assert isinstance(error.__cause__, Exception)
    assert not out_of(folder).exists()
    # It may have been the first.
    for stage in stages(folder / "to"):
        assert any(str(stage) in note and "resume=True" in note for note in error.__notes__)


@pytest.mark.parametrize("name", ["downsample", "write_image", "write_labels", "copy of some tiles", "masked copy"])
def test_a_broken_chunk_of_any_source_is_one_clear_error(name: str, synchronous: None, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    (folder / "to").mkdir(parents=True)
    CASES[name].prepare(folder)
    before = digest(folder / "to")
    damage(folder, (0, 1))
    with pytest.raises(TileError, match="reading") as caught:
        CASES[name].run(folder)
    assert caught.value.__cause__ is not None
    kept = {k: v for k, v in digest(folder / "to").items() if k.startswith("to/out.zarr/")}
    assert kept == before


def test_a_broken_chunk_of_the_mask_is_told_as_one_of_the_mask(synchronous: None, tmp_path: Path) -> None:
    folder, _ = case_folder("masked copy", tmp_path)
    (folder / "mask.zarr/c/1/0").write_bytes(b"garbage")
    with pytest.raises(TileError, match="reading the mask") as caught:
        CASES["masked copy"].run(folder)
    assert caught.value.tile == (1, 0)


def test_a_broken_chunk_below_a_patch_is_told_as_one_of_what_stays(synchronous: None, tmp_path: Path) -> None:
    folder, _ = case_folder("masked copy", tmp_path)
    (out_of(folder) / "c/0/1").write_bytes(b"garbage")
    with pytest.raises(TileError, match="reading what stays") as caught:
        CASES["masked copy"].run(folder)
    assert caught.value.tile == (0, 1)


def test_a_broken_chunk_is_copied_as_it_is_where_chunks_are(synchronous: None, folder: Path) -> None:
    damage(folder)
    copied(folder)
    assert (out_of(folder) / "c/2/1").read_bytes() == b"garbage"


def test_an_error_of_a_dask_array_comes_through(synchronous: None, folder: Path) -> None:
    def break_down(block: NDArray[Any]) -> NDArray[Any]:
        raise OSError("the camera is gone")

    image = da.ones(SHAPE, chunks=TILE).map_blocks(break_down, meta=np.ones((0, 0)))
    with pytest.raises(OSError, match="the camera is gone"):
        blockbuster.copy(image, out_of(folder))
    assert list((folder / "to").iterdir()) == []


# Schedulers


@some(
    ("raw copy", "threads"),
    ("raw copy", "distributed"),
    ("decoded copy", "processes"),
    ("copy of a group", "threads"),
    ("copy of a group", "distributed"),
    ("downsample", "threads"),
    ("downsample", "distributed"),
    ("write_image", "threads"),
    ("write_image", "processes"),
    ("write_image", "distributed"),
    ("write_labels", "distributed"),
    ("pyramid", "threads"),
    ("pyramid", "distributed"),
    ("masked copy", "processes"),
    ("masked copy", "distributed"),
    ("masked downsample", "threads"),
)
def test_every_scheduler_makes_the_same_bytes_and_leaves_nothing(name: str, scheduler: str, tmp_path: Path) -> None:
    folder, expected = case_folder(name, tmp_path)
    CASES[name].run(folder)
    assert digest(folder / "to") == expected
    assert leftovers(folder) == []
    assert os.listdir(tmp_path / "system-tmp") == []


@some(
    ("decoded copy", "threads"),
    ("write_image", "distributed"),
    ("masked copy", "distributed"),
    ("pyramid", "processes"),
)
def test_a_stopped_run_goes_on_on_every_scheduler(name: str, scheduler: str, tmp_path: Path) -> None:
    folder, expected = case_folder(name, tmp_path)
    with dask.config.set(scheduler="synchronous"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockbuster.outputs.Output, "write", failing_after(blockbuster.outputs.Output.write, 4))
        with pytest.raises(TileError, match="stopped"):
            CASES[name].run(folder)
    CASES[name].run(folder, resume=True)
    assert digest(folder / "to") == expected


def failing_after(function: Callable[..., Any], n: int) -> Callable[..., Any]:
    """A function that fails after some calls."""
    calls = []

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) > n:
            raise OSError("stopped")
        return function(*args, **kwargs)

    return run


@pytest.mark.parametrize("scheduler_of_task", ["threads", "distributed"])
@pytest.mark.parametrize("name", ["raw copy", "write_image"])
def test_runs_work_within_a_dask_task(
    name: str, scheduler_of_task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, expected = case_folder(name, tmp_path)
    source, to = str(folder / "source.zarr"), str(out_of(folder))

    def run() -> Any:
        tiling._SMALL_TILE = 1
        if name == "raw copy":
            return blockbuster.copy(source, to, tile_shape=(TILE, TILE)).compute()
        options: dict[str, Any] = {"scale": 0.5, "unit": "um", "n_levels": 3, "chunks": TILE, "axes": "yx"}
        return np.asarray(blockbuster.write_image(source, to, **options).levels[0])

    if scheduler_of_task == "distributed":
        from distributed import Client

        with Client(request.getfixturevalue("local_cluster")) as client:
            made = client.submit(run, pure=False).result()
    else:
        made = dask.delayed(run)().compute(scheduler="threads")
    np.testing.assert_array_equal(made, noise(1))
    assert digest(folder / "to") == expected


# Steps that run twice


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


@pytest.mark.parametrize(("again", "journal"), [(twice_at_once, "believed"), (twice, "not seen")])
@pytest.mark.parametrize(
    "name", ["raw copy", "copy of a group", "write_image", "pyramid again", "masked copy", "copy of some tiles"]
)
def test_steps_that_run_twice_change_nothing(
    name: str,
    journal: str,
    again: Callable[..., Any],
    synchronous: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, expected = case_folder(name, tmp_path)
    monkeypatch.setattr(blockbuster.tilewise._Work, "write", again(blockbuster.tilewise._Work.write))
    if journal == "not seen":
        monkeypatch.setattr(blockbuster.stage.Stage, "has_tile", lambda *args: False)
    CASES[name].run(folder)
    assert digest(folder / "to") == expected


def killed_within(write: Callable[..., Any]) -> Callable[..., Any]:
    """Writing that ends within chunks that go beyond the end of an array: of each new file there is half.

    It does so once another tile is written, without which there is nothing to go on with.
    """
    done = []

    def run(output: Any, region: Any, *args: Any, **options: Any) -> None:
        before = set(Path(output.partial).rglob("*"))
        write(output, region, *args, **options)
        if done and any(s.stop % TILE for s in region):
            made = [path for path in set(Path(output.partial).rglob("*")) - before if path.is_file()]
            assert made
            for path in made:
                os.truncate(path, path.stat().st_size // 2)
            raise KeyboardInterrupt
        done.append(region)

    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("write_image", {}),
        # Of one chunk each: the order of several within a shard is that in which threads encode them.
        ("write_image", {"shards": TILE}),
        ("copy of a group", {}),
        ("copy of a group", {"zarr_format": 3, "shards": TILE}),
        ("masked copy", {}),
    ],
    ids=["image", "image in shards", "group", "group in shards", "patch"],
)
def test_half_a_chunk_beyond_the_end_that_a_killed_task_has_left_is_written_anew(
    name: str, options: dict[str, Any], synchronous: None, tmp_path: Path
) -> None:
    folder, expected = case_folder(name, tmp_path, **options)
    kind = blockbuster.outputs.Output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "write", killed_within(kind.write))
        with pytest.raises(KeyboardInterrupt):
            CASES[name].run(folder, **options)
    CASES[name].run(folder, **options, resume=True)
    assert digest(folder / "to") == expected


def test_a_step_that_runs_twice_works_once(synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = blockbuster.outputs.Output.write

    def counted(*args: Any, **options: Any) -> None:
        written.append(args)
        write(*args, **options)

    monkeypatch.setattr(blockbuster.outputs.Output, "write", counted)
    monkeypatch.setattr(blockbuster.tilewise._Work, "write", twice(blockbuster.tilewise._Work.write))
    copied(folder, chunks=8)
    assert len(written) == N_TILES


@ways
def test_tasks_that_come_after_the_end_change_nothing(
    chunks: int, synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Callable[[], Any]] = []
    write = blockbuster.tilewise._Work.write

    def remember(*args: Any) -> None:
        late.append(lambda: write(*args))
        write(*args)

    monkeypatch.setattr(blockbuster.tilewise._Work, "write", remember)
    copied(folder, chunks=chunks)
    before = digest(folder)
    assert len(late) == N_TILES
    for task in late:
        with pytest.raises((TileError, StageError, OutputError)):
            task()
    assert digest(folder) == before
    assert leftovers(folder) == []


# Workers


def killing_write(limit: Path, write: Callable[..., Any]) -> Callable[..., Any]:
    """Kill the process before some write, once."""

    def run(*args: Any, **options: Any) -> Any:
        with open(limit.parent / "writes", "ab") as file:
            file.write(b".")
            file.flush()
            reached = file.tell() >= 4
        if reached:
            with contextlib.suppress(FileNotFoundError):
                limit.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return write(*args, **options)

    return run


def arm(limit: str) -> None:
    """Let this process be killed."""
    kind = blockbuster.outputs.Output
    kind.write = killing_write(Path(limit), kind.write)  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoded copy", "write_image", "masked downsample"])
def test_a_killed_worker_costs_nothing_but_its_tile(name: str, tmp_path: Path) -> None:
    folder, expected = case_folder(name, tmp_path)
    (tmp_path / "limit").touch()
    with blockbuster.make_local_cluster(n_workers=2) as (client, _):
        client.run(arm, str(tmp_path / "limit"))
        CASES[name].run(folder)
    assert not (tmp_path / "limit").exists()
    assert digest(folder / "to") == expected


@pytest.mark.slow
def test_a_killed_process_of_a_pool_ends_the_run_and_keeps_its_tiles(tmp_path: Path) -> None:
    folder, expected = case_folder("decoded copy", tmp_path)
    (tmp_path / "limit").touch()
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, initializer=arm, initargs=(str(tmp_path / "limit"),)) as pool,
        dask.config.set(scheduler="processes", pool=pool),
        pytest.raises(Exception, match="terminated abruptly") as caught,
    ):
        CASES["decoded copy"].run(folder)
    assert not out_of(folder).exists()
    (stage,) = stages(folder / "to")
    assert len(list(stage.rglob("*.tile"))) == 3
    assert f"3 finished tiles are kept in {stage}" in "".join(caught.value.__notes__)
    CASES["decoded copy"].run(folder, resume=True)
    assert digest(folder / "to") == expected


# Runs side by side


class Beside:
    """Does something else within the n-th write of a run, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: int, other: Callable[[], Any]) -> None:
        self.n_calls = 0
        for owner, name in ((blockbuster.outputs.Output, "write"), (blockbuster.raw.RawChunks, "copy")):
            original = getattr(owner, name)

            def beside(*args: Any, original: Any = original, **options: Any) -> Any:
                self.n_calls += 1
                if self.n_calls == call:
                    other()
                return original(*args, **options)

            monkeypatch.setattr(owner, name, beside)


@ways
def test_the_second_run_to_one_output_does_not_replace_the_first_unasked(
    chunks: int, synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Beside(monkeypatch, 3, lambda: blockbuster.copy(noise(5), out_of(folder)))
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        copied(folder, chunks=chunks)
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(5))


@ways
def test_of_two_runs_that_may_overwrite_the_last_wins(
    chunks: int, synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Beside(monkeypatch, 3, lambda: blockbuster.copy(noise(5), out_of(folder), overwrite=True))
    copied(folder, chunks=chunks, overwrite=True)
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(1))
    assert leftovers(folder) == []


def test_a_commit_within_the_commit_of_another_run_loses_nothing(
    synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blockbuster.copy(noise(6), out_of(folder))
    rename, inner = os.rename, []

    def rename_and_run_another(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        if str(target).endswith(".replaced") and not inner:
            inner.append(None)
            blockbuster.copy(noise(5), out_of(folder), overwrite=True)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_and_run_another)
        with contextlib.suppress(OutputError):
            copied(folder, overwrite=True)
    assert inner
    found = zarr.open_array(out_of(folder), mode="r")[:]
    assert any(np.array_equal(found, noise(seed)) for seed in (1, 5))
    copied(folder, overwrite=True, resume=True)
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(1))
    assert leftovers(folder) == []


@pytest.mark.parametrize("moment", [1, 2])
def test_patches_of_other_tiles_at_the_same_time_both_land(
    moment: int, synchronous: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = case_folder("copy of some tiles", tmp_path)

    def other() -> None:
        blockbuster.copy(noise(5), out_of(folder), block_ids=[0, 2, 5], overwrite=True)

    Beside(monkeypatch, moment, other)
    CASES["copy of some tiles"].run(folder)
    expected = noise(2)
    for number in range(N_TILES):
        row, column = (TILE * i for i in divmod(number, 3))
        tile = np.s_[row : row + TILE, column : column + TILE]
        if number in (0, 2, 5):
            expected[tile] = noise(5)[tile]
        if number in (1, 3, 4, 8):
            expected[tile] = noise(1)[tile]
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], expected)
    assert leftovers(folder) == []


def test_patches_with_masks_of_other_tiles_at_the_same_time_both_land(
    synchronous: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = case_folder("masked copy", tmp_path)
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[:32, :20], second[32:, 5:] = True, True

    def other() -> None:
        blockbuster.copy(noise(5), out_of(folder), mask=second, overwrite=True)

    Beside(monkeypatch, 2, other)
    CASES["masked copy"].run(folder, mask=first)
    expected = np.where(first, noise(1), np.where(second, noise(5), noise(2)))
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], expected)


def test_patches_within_one_chunk_one_after_the_other_both_land(synchronous: None, tmp_path: Path) -> None:
    folder, _ = case_folder("masked copy", tmp_path)
    CASES["masked copy"].run(folder)
    blockbuster.copy(noise(5), out_of(folder), mask=~some_mask(), overwrite=True)
    found = zarr.open_array(out_of(folder), mode="r")[:]
    np.testing.assert_array_equal(found, np.where(some_mask(), noise(1), noise(5)))


@pytest.mark.slow
def test_jobs_make_the_tiles_of_a_new_output_at_the_same_time(folder: Path) -> None:
    """As array jobs of a cluster do: each in a process of its own, all with the same output."""
    script = folder / "job.py"
    script.write_text(
        "import sys, json, blockbuster, dask\n"
        "dask.config.set(scheduler='synchronous')\n"
        "source, to, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "blockbuster.copy(source, to, tile_shape=(16, 16), block_ids=ids, overwrite=True)\n"
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, script, folder / "source.zarr", out_of(folder), json.dumps(ids)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for ids in ([0, 4, 8], [1, 5, 6], [2, 3, 7])
    ]
    said = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 3, said
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(1))
    assert leftovers(folder) == []


def end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let four runs come to their ends at the same time."""
    together = threading.Barrier(4)
    commit = blockbuster.outputs.Output.commit

    def wait_first(*args: Any, **options: Any) -> None:
        together.wait(30)
        commit(*args, **options)

    monkeypatch.setattr(blockbuster.outputs.Output, "commit", wait_first)


@pytest.mark.parametrize("_round", range(4))
def test_an_image_gets_labels_of_several_names_at_the_same_time(
    _round: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    (folder / "to").mkdir(parents=True)
    CASES["write_labels"].prepare(folder)
    names = [f"cells{n}" for n in range(4)]
    end_together(monkeypatch)
    with dask.config.set(scheduler="synchronous"), ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(blockbuster.write_labels, folder / "source.zarr", out_of(folder), name) for name in names]
        for run in runs:
            run.result()
    assert sorted(blockbuster.open_image(out_of(folder)).labels) == names
    assert [path.name for path in (folder / "to").iterdir()] == ["out.zarr"]


@pytest.mark.parametrize("_round", range(4))
def test_copies_go_into_one_new_store_at_the_same_time(
    _round: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_together(monkeypatch)
    with dask.config.set(scheduler="synchronous"), ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(copied, folder, output_component=f"a/b/{n}") for n in range(4)]
        for run in runs:
            np.testing.assert_array_equal(run.result().compute(), noise(1))
    assert leftovers(folder) == []


def test_a_run_that_goes_on_in_another_process_cannot_be_resumed(folder: Path) -> None:
    waiting = (
        "import sys, dask, blockbuster\n"
        "from pathlib import Path\n"
        "from tests.drivers.waiting import wait_for\n"
        "write = blockbuster.outputs.Output.write\n"
        "def wait_and_write(*args, **options):\n"
        "    Path(sys.argv[1], 'waiting').touch()\n"
        "    wait_for(Path(sys.argv[1], 'go'))\n"
        "    write(*args, **options)\n"
        "blockbuster.outputs.Output.write = wait_and_write\n"
        "dask.config.set(scheduler='synchronous')\n"
        "folder = Path(sys.argv[1])\n"
        "blockbuster.copy(folder / 'source.zarr', folder / 'to/out.zarr', chunks=8, tile_shape=(16, 16))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting, folder], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(folder / "waiting")
        (stage,) = stages(folder / "to")
        with pytest.raises(blockbuster.ResumeError, match=f"{stage} is still going on"):
            copied(folder, chunks=8, resume=True)
        (folder / "go").touch()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(1))
    assert leftovers(folder) == []


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


def fill(disk: Path, leave: int = 0) -> None:
    """Take all room of a disk but some bytes."""
    filling = disk / "filling"
    with contextlib.suppress(OSError), open(filling, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if leave:
        os.truncate(filling, filling.stat().st_size - leave)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with mounted(tmp_path / "disk", "size=4m") as path:
        yield path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """An image that no codec makes smaller, of 2 MiB in 64 chunks."""
    zarr.create_array(
        tmp_path / "large.zarr",
        data=np.random.default_rng(0).integers(0, 2**16, (1024, 1024), np.uint16),
        chunks=(128, 128),
    )
    return tmp_path / "large.zarr"


WRITERS: dict[str, Callable[..., Any]] = {
    "raw": lambda large, to, **options: blockbuster.copy(large, to, tile_shape=(128, 128), **options),
    "decoded": lambda large, to, **options: blockbuster.copy(large, to, tile_shape=(128, 128), chunks=64, **options),
    "downsample": lambda large, to, **options: blockbuster.downsample(
        large, (1, 2), write_to=to, tile_shape=(128, 128), **options
    ),
    "image": lambda large, to, **options: blockbuster.write_image(large, to, n_levels=3, chunks=128, **options),
}


@pytest.mark.parametrize(("scheduler", "old"), [("synchronous", False), ("threads", True)], indirect=["scheduler"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fills_up_leaves_nothing_half_made_and_the_run_goes_on(
    kind: str, old: bool, scheduler: str, disk: Path, large: Path, tmp_path: Path
) -> None:
    expected = tmp_path / "expected" / "out.zarr"
    WRITERS[kind](large, expected)
    to = disk / "out.zarr"
    if old:
        blockbuster.copy(np.ones((8, 8), np.uint8), to)
    before = digest(to) if old else None
    fill(disk, leave=1 << 19)
    with pytest.raises((TileError, OutputError, StageError), match=r"No space left|cannot be written") as caught:
        WRITERS[kind](large, to, overwrite=old)
    assert str(disk) in str(caught.value) or isinstance(caught.value, TileError)
    cause = caught.value.__cause__
    assert cause is not None
    assert "No space left" in f"{cause} {caught.value}"
    assert (digest(to) if to.exists() else None) == before
    (stage,) = stages(disk)
    assert str(stage) in "".join(caught.value.__notes__)
    assert 0 < len(list(stage.rglob("*.tile"))) < 64
    (disk / "filling").unlink()
    WRITERS[kind](large, to, overwrite=old, resume=True)
    assert leftovers(disk) == []
    assert {path.name for path in disk.iterdir()} == {"out.zarr"}
    assert digest(to) == digest(expected)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_without_any_room_is_one_clear_error(kind: str, synchronous: None, disk: Path, large: Path) -> None:
    fill(disk)
    with pytest.raises(CapacityError, match=r"takes? at least .*Make room") as caught:
        WRITERS[kind](large, disk / "out.zarr")
    assert str(disk) in str(caught.value)
    assert {path.name for path in disk.iterdir()} == {"filling"}


def test_scratch_data_on_a_full_disk_are_told_as_such(synchronous: None, disk: Path, folder: Path) -> None:
    fill(disk)
    with pytest.raises(CapacityError, match=f"{disk}.*stage_dir="):
        copied(folder, stage_dir=disk)
    assert {path.name for path in disk.iterdir()} == {"filling"}
    assert list((folder / "to").iterdir()) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_read_only_folder_is_one_clear_error_before_anything_is_done(
    kind: str, synchronous: None, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: Any, **_options: Any) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(blockbuster.outputs.Output, "write", never)
    monkeypatch.setattr(blockbuster.raw.RawChunks, "copy", never)
    with mounted(tmp_path / "archive", "size=1m,ro") as archive:
        with pytest.raises((OutputError, StageError), match=rf"{archive}.*(R|r)ead-only"):
            WRITERS[kind](large, archive / "out.zarr")
        with pytest.raises(OutputError, match=r"archive/out.zarr.*choose another write_to"):
            WRITERS[kind](large, archive / "out.zarr", stage_dir=tmp_path)
    assert stages(tmp_path) == []


@pytest.mark.parametrize("name", ["raw copy", "decoded copy", "downsample", "write_image", "copy of a group"])
def test_a_source_on_a_read_only_disk_is_read(name: str, synchronous: None, tmp_path: Path) -> None:
    with mounted(tmp_path / "archive", "size=4m") as archive:
        (archive / "to").mkdir()
        CASES[name].prepare(archive)
        target = tmp_path / "data"
        (target / "to").mkdir(parents=True)
        subprocess.run(["mount", "-o", "remount,ro", str(archive)], check=True)
        (target / "source.zarr").symlink_to(archive / "source.zarr")
        before = digest(archive)
        options: dict[str, Any] = {"overwrite": False} if name == "downsample" else {}
        CASES[name].run(target, **options)
        assert digest(archive) == before
        assert leftovers(target) == []
        assert out_of(target).exists()


@ways
def test_files_of_a_read_only_source_make_no_read_only_copy(chunks: int, synchronous: None, folder: Path) -> None:
    for path in (folder / "source.zarr").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    copied(folder, chunks=chunks)
    modes = [path.stat().st_mode for path in out_of(folder).rglob("*")]
    assert all(mode & stat.S_IWUSR for mode in modes)
    zarr.open_array(out_of(folder), mode="r+")[:] = 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EACCES])
@ways
def test_a_disk_that_breaks_while_it_is_written_to_is_one_clear_error(
    chunks: int, number: int, synchronous: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.outputs.Output, "write", broken)
        patch.setattr(blockbuster.raw.RawChunks, "copy", broken)
        with pytest.raises(TileError, match=os.strerror(number)) as caught:
            copied(folder, chunks=chunks)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert list((folder / "to").iterdir()) == []


# Options


@pytest.mark.parametrize("name", ["raw copy", "write_image", "pyramid", "masked copy"])
def test_keep_stage_keeps_the_journal_and_the_output_is_the_same(name: str, synchronous: None, tmp_path: Path) -> None:
    folder, expected = case_folder(name, tmp_path)
    CASES[name].run(folder, keep_stage=True)
    (stage,) = stages(folder / "to")
    assert len(list(stage.rglob("*.tile"))) == CASES[name].tiles
    assert [path for path in leftovers(folder / "to") if ".partial" in path] == []
    kept = {k: v for k, v in digest(folder / "to").items() if k.startswith("to/out.zarr/")}
    assert kept == expected


def test_a_kept_journal_is_not_believed_without_its_output(synchronous: None, folder: Path) -> None:
    copied(folder, keep_stage=True)
    expected = digest(out_of(folder))
    subprocess.run(["rm", "-r", out_of(folder)], check=True)
    copied(folder, resume=True)
    assert digest(out_of(folder)) == expected
    assert leftovers(folder) == []


@pytest.mark.parametrize("name", ["raw copy", "write_image", "pyramid", "masked copy"])
def test_scratch_data_lie_where_they_are_asked_to(
    name: str, synchronous: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = case_folder(name, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with monkeypatch.context() as patch:
        for owner, method in ((blockbuster.outputs.Output, "write"), (blockbuster.raw.RawChunks, "copy")):
            patch.setattr(owner, method, failing_after(getattr(owner, method), 2))
        with pytest.raises(TileError) as caught:
            CASES[name].run(folder, stage_dir=scratch)
    (stage,) = stages(scratch)
    assert stages(folder / "to") == []
    assert any(str(stage) in note for note in caught.value.__notes__)
    CASES[name].run(folder, stage_dir=scratch, resume=True)
    assert digest(folder / "to") == expected
    assert list(scratch.iterdir()) == []


@some(
    ("raw copy", "synchronous"),
    ("raw copy", "threads"),
    ("raw copy", "distributed"),
    ("write_image", "threads"),
    ("write_image", "distributed"),
    ("pyramid", "threads"),
    ("pyramid", "processes"),
    ("masked copy", "threads"),
    ("copy of some tiles", "distributed"),
)
def test_progress_comes_to_the_total_on_every_scheduler(name: str, scheduler: str, tmp_path: Path) -> None:
    folder, expected = case_folder(name, tmp_path)
    seen: list[tuple[int, int]] = []
    CASES[name].run(folder, progress=lambda now: seen.append((now.done, now.total)))
    total = CASES[name].tiles
    assert seen[-1] == (total, total)
    assert {total for _, total in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    if scheduler != "distributed":
        assert {done for done, _ in seen} == set(range(1, total + 1))
    assert digest(folder / "to") == expected


def test_an_error_in_the_progress_of_the_caller_ends_the_run_and_it_goes_on(synchronous: None, folder: Path) -> None:
    def stop(now: blockbuster.RunProgress) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copied(folder, progress=stop)
    assert not out_of(folder).exists()
    assert len(list((folder / "to").rglob("*.tile"))) == 4
    copied(folder, resume=True)
    np.testing.assert_array_equal(zarr.open_array(out_of(folder), mode="r")[:], noise(1))
    assert leftovers(folder) == []


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"], indirect=True)
@pytest.mark.parametrize("name", ["raw copy", "write_image", "masked copy"])
def test_verbose_names_every_tile(name: str, scheduler: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = case_folder(name, tmp_path)
    with caplog.at_level(logging.INFO, "blockbuster"):
        CASES[name].run(folder, verbose=True)
    lines = [record.getMessage() for record in caplog.records if "tile" in record.getMessage()]
    assert len(lines) == CASES[name].tiles
    assert len(set(lines)) == CASES[name].tiles


def test_without_verbose_nothing_is_said(
    synchronous: None, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "blockbuster"):
        copied(folder)
    assert [record for record in caplog.records if record.name.startswith("blockbuster")] == []
    assert capsys.readouterr() == ("", "")
