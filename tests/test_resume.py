"""Runs that are killed or fail at any step, and go on from there."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from blockbuster import ResumeError, TileError
from blockbuster.stage import Stage
from tests.drivers import killed
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers

ROOT = Path(__file__).parents[1]
TILE = 8
# More tiles than one scan task takes.
SIDE = 72
N_TILES = (SIDE // TILE) ** 2


@pytest.fixture(scope="module")
def image() -> NDArray[Any]:
    """Noise, so that each tile is told by its voxels."""
    return np.random.default_rng(2).random((SIDE, SIDE)) < 0.5


@pytest.fixture
def folder(tmp_path: Path, image: NDArray[Any]) -> Path:
    """A folder with the image in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=image.view(np.uint8), chunks=(TILE, TILE))
    (folder / "calls").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _synchronous(synchronous: None) -> None:
    """Resume in the simplest way: the journal is the same for all schedulers."""


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory, image: NDArray[Any]) -> dict[str, str]:
    """The files of an output that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    zarr.create_array(folder / "image.zarr", data=image.view(np.uint8), chunks=(TILE, TILE))
    with dask.config.set(scheduler="synchronous"):
        blockbuster.tile_process(folder / "image.zarr", components, write_to=folder / "labels.zarr")
    return chunk_files(folder / "labels.zarr")


def chunk_files(store: Path) -> dict[str, str]:
    """The stored voxels, file by file; metadata tell the run as well."""
    return {name: content for name, content in digest(store).items() if "/c/" in name}


def only_stage(folder: Path) -> Stage | None:
    """The stage in a folder, if there is one."""
    found = [path for path in folder.glob("*.blockbuster-????????") if (path / "manifest.json").exists()]
    assert len(found) <= 1
    return Stage(str(found[0])) if found else None


def journalled(folder: Path) -> set[int]:
    """Numbers of the tiles that are finished."""
    stage = only_stage(folder)
    return {number for number in range(N_TILES) if stage is not None and stage.has_tile(number)}


def tile_numbers(blocks: list[NDArray[Any]], image: NDArray[Any]) -> list[int]:
    """Which tiles blocks are, by their voxels."""
    starts = range(0, SIDE, TILE)
    tiles = [image[y : y + TILE, x : x + TILE] for y in starts for x in starts]
    number = {tile.tobytes(): i for i, tile in enumerate(tiles)}
    assert len(number) == N_TILES
    return [number[block.astype(bool).tobytes()] for block in blocks]


def names(folder: Path) -> set[str]:
    """What lies in the folder, hidden or not."""
    return {path.name for path in folder.iterdir()}


# SIGKILL


class Killer:
    """Another process, whose forks run until they kill themselves."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self._process = process
        self._said = said

    def __call__(self, step: str, scheduler: str, folder: Path, **options: Any) -> None:
        """Run until the process is at a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([step, scheduler, str(folder), options]), file=self._process.stdin, flush=True)
        assert int(self._process.stdout.readline()) == -signal.SIGKILL, self._said.read_text()


@pytest.fixture(scope="module")
def run_until_killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    """Runs in other processes."""
    folder = tmp_path_factory.mktemp("killed")
    said = folder / "stderr"
    with (
        open(said, "w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.drivers.killed"],
            cwd=ROOT,
            # A killed process leaves the folder of its cluster to whoever makes one next.
            env={**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        yield Killer(process, said)


def assert_resumes(folder: Path, image: NDArray[Any], chunks: dict[str, str], **options: Any) -> None:
    """Resume the run; it must end like one that nothing interrupted, and label no finished tile again."""
    recording = Recording(folder / "calls")
    finished = journalled(folder)
    complete = not finished and only_stage(folder) is None and chunk_files(folder / "labels.zarr") == chunks
    n_before = recording.n_calls
    labels = blockbuster.tile_process(
        folder / "image.zarr", recording, write_to=folder / "labels.zarr", resume=True, overwrite=True, **options
    )
    called = tile_numbers(recording.blocks()[n_before:], image)
    expected = set() if complete else set(range(N_TILES)) - finished
    assert sorted(called) == sorted(expected)
    assert chunk_files(folder / "labels.zarr") == chunks
    assert_same_objects(labels.compute(), scipy.ndimage.label(image)[0])


# Tiles that are finished when one thread is killed at a step: else all. The first scan begins before the last tile.
FINISHED = {
    "making the stage": 0,
    "stage made": 0,
    "making the output": 0,
    "output made": 0,
    "in the function": 29,
    "staging": 29,
    "staging, record not in place": 29,
    "tile staged": 30,
    "stage out of the way": 0,
}


@pytest.mark.parametrize("step", killed.STEPS)
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(
    run_until_killed: Killer, step: str, folder: Path, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    earlier = blockbuster.tile_process(folder / "image.zarr", components, write_to=folder / "labels.zarr", merge=None)
    old = earlier.compute()
    run_until_killed(step, "synchronous", folder)
    assert len(journalled(folder)) == FINISHED.get(step, N_TILES) or step == "scanning"
    if list(killed.STEPS).index(step) < list(killed.STEPS).index("old output set aside"):
        np.testing.assert_array_equal(zarr.open_array(folder / "labels.zarr/labels", mode="r")[:], old)
    for stage in folder.glob("*.blockbuster-????????"):
        # As if it were long ago: a stage that is being made just now is left alone.
        os.utime(stage, (0, 0))
    assert_resumes(folder, image, chunks)
    assert leftovers(folder) == []
    assert names(folder) == {"image.zarr", "labels.zarr", "calls"}


@pytest.mark.parametrize("step", ["staging, record not in place", "scanning", "relabelling", "block written"])
def test_a_run_on_threads_killed_at_any_step_resumes_to_the_same_bytes(
    run_until_killed: Killer, step: str, folder: Path, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    run_until_killed(step, "threads", folder)
    assert not (folder / "labels.zarr").exists()
    assert_resumes(folder, image, chunks)
    assert leftovers(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("among", "step"),
    [
        ("processes", "tile staged"),
        ("processes", "writing the table"),
        ("distributed", "tile staged"),
        ("distributed", "scanning"),
        ("distributed", "block written"),
    ],
)
def test_a_run_on_processes_killed_at_any_step_resumes_to_the_same_bytes(
    run_until_killed: Killer, among: str, step: str, folder: Path, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    run_until_killed(step, among, folder)
    assert not (folder / "labels.zarr").exists()
    assert_resumes(folder, image, chunks)
    assert leftovers(folder) == []


def test_a_run_may_be_killed_again_and_again(
    run_until_killed: Killer, folder: Path, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    run_until_killed("tile staged", "synchronous", folder)
    for step in ("tile staged", "scanning", "block written"):
        run_until_killed(step, "synchronous", folder, resume=True)
    assert sorted(tile_numbers(Recording(folder / "calls").blocks(), image)) == list(range(N_TILES))
    assert_resumes(folder, image, chunks)
    assert leftovers(folder) == []


def test_a_killed_run_resumes_as_a_lazy_array_or_in_memory_only_for_the_same_target(
    run_until_killed: Killer, folder: Path, image: NDArray[Any]
) -> None:
    run_until_killed("tile staged", "synchronous", folder)
    recording = Recording(folder / "calls")
    n_before = recording.n_calls
    labels = blockbuster.tile_process(folder / "image.zarr", recording, resume=True, compute=True)
    assert recording.n_calls - n_before == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert len(journalled(folder)) == 30


# Failures


@dataclass(frozen=True)
class Failing:
    """An `fn` that records its calls and fails from some call on, for as long as a file says so."""

    folder: Path
    recording: Recording = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recording", Recording(self.folder))

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        limit = self.folder / "limit"
        if limit.exists() and len(list(self.folder.glob("*.npy"))) >= int(limit.read_text()):
            raise ValueError("out of order")
        return self.recording(block)

    def fail_after(self, n_calls: int) -> None:
        (self.folder / "limit").write_text(str(n_calls))

    def repair(self) -> None:
        (self.folder / "limit").unlink()


@pytest.fixture
def failing(folder: Path) -> Failing:
    """A function that fails after 30 tiles, until it is repaired."""
    made = Failing(folder / "calls")
    made.fail_after(30)
    return made


def destinations(folder: Path) -> dict[str, dict[str, Any]]:
    """The ways of making a result eagerly."""
    return {"store": {"write_to": folder / "labels.zarr"}, "memory": {"compute": True}}


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_a_failed_run_keeps_its_stage_and_names_it(kind: str, folder: Path, failing: Failing) -> None:
    with pytest.raises(TileError) as caught:
        blockbuster.tile_process(folder / "image.zarr", failing, **destinations(folder)[kind])
    stage = only_stage(folder)
    assert stage is not None
    note = next(note for note in caught.value.__notes__ if "30 finished tiles" in note)
    assert stage.path in note
    assert "resume=True" in note
    partial = [note for note in caught.value.__notes__ if ".partial" in note]
    assert len(partial) == (1 if kind == "store" else 0)
    assert not (folder / "labels.zarr").exists()


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_a_failed_run_resumes_where_it_failed(
    kind: str, folder: Path, failing: Failing, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, **destinations(folder)[kind])
    failing.repair()
    labels = blockbuster.tile_process(folder / "image.zarr", failing, resume=True, **destinations(folder)[kind])
    assert sorted(tile_numbers(failing.recording.blocks(), image)) == list(range(N_TILES))
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []
    if kind == "store":
        assert chunk_files(folder / "labels.zarr") == chunks


def test_a_run_fails_and_resumes_any_number_of_times(folder: Path, failing: Failing, image: NDArray[Any]) -> None:
    for limit in (30, 31, 50):
        failing.fail_after(limit)
        with pytest.raises(TileError, match="out of order"):
            blockbuster.tile_process(folder / "image.zarr", failing, resume=True, write_to=folder / "labels.zarr")
        assert len(journalled(folder)) == limit
    failing.repair()
    blockbuster.tile_process(folder / "image.zarr", failing, resume=True, write_to=folder / "labels.zarr")
    assert sorted(tile_numbers(failing.recording.blocks(), image)) == list(range(N_TILES))


def test_a_failed_run_resumes_on_another_scheduler(
    scheduler: str, folder: Path, failing: Failing, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    with dask.config.set(scheduler="synchronous"), pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    failing.repair()
    blockbuster.tile_process(folder / "image.zarr", failing, resume=True, write_to=folder / "labels.zarr")
    assert sorted(tile_numbers(failing.recording.blocks(), image)) == list(range(N_TILES))
    assert chunk_files(folder / "labels.zarr") == chunks


def test_images_in_memory_and_in_dask_graphs_resume_as_well(
    tmp_path: Path, folder: Path, failing: Failing, image: NDArray[Any]
) -> None:
    for source in (image.copy(), da.from_array(image, chunks=TILE)):
        failing.fail_after(30)
        options: dict[str, Any] = {"tile_shape": (TILE, TILE), "stage_dir": tmp_path / "scratch", "compute": True}
        with pytest.raises(TileError):
            blockbuster.tile_process(source, failing, **options)
        failing.repair()
        labels = blockbuster.tile_process(source, failing, resume=True, **options)
        assert sorted(tile_numbers(failing.recording.blocks(), image)) == list(range(N_TILES))
        assert_same_objects(labels, scipy.ndimage.label(image)[0])
        for record in failing.folder.glob("*.npy"):
            record.unlink()


def test_a_run_of_label_resumes_with_the_ids_of_scipy(
    folder: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_written = 0
    write = blockbuster.outputs.Output.write

    def fail_later(*args: Any) -> None:
        nonlocal n_written
        n_written += 1
        if n_written > 20:
            raise OSError("the disk is gone")
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.outputs.Output, "write", fail_later)
        with pytest.raises(TileError, match="the disk is gone"):
            blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
    labels = blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", resume=True)
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


@pytest.mark.parametrize("component", ["", "cells", "labels/cells/0"])
def test_outputs_anywhere_in_a_store_resume(
    component: str, folder: Path, failing: Failing, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    to: dict[str, Any] = {"write_to": folder / "other.zarr", "output_component": component}
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, **to)
    assert not (folder / "other.zarr" / component).exists()
    failing.repair()
    labels = blockbuster.tile_process(folder / "image.zarr", failing, resume=True, **to)
    assert failing.recording.n_calls == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert names(folder) == {"image.zarr", "calls", "other.zarr"}


# Torn records


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("tear", [truncated, empty, zeroed, flipped])
@pytest.mark.parametrize("step", ["tile staged", "block written"])
def test_a_torn_record_is_made_again(
    step: str,
    tear: Callable[[bytes], bytes],
    folder: Path,
    failing: Failing,
    image: NDArray[Any],
    chunks: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if step == "block written":
        failing.repair()
        monkeypatch.setattr(blockbuster.outputs.Output, "annotate", refuse)
    with pytest.raises((TileError, InterruptedError)):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    monkeypatch.undo()
    stage = only_stage(folder)
    assert stage is not None
    record = sorted(Path(stage.path).rglob("*.tile"))[7]
    torn = int(record.stem)
    record.write_bytes(tear(record.read_bytes()))
    (failing.folder / "limit").unlink(missing_ok=True)
    n_before = failing.recording.n_calls
    assert torn not in journalled(folder)
    finished = journalled(folder)
    blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr", resume=True)
    called = tile_numbers(failing.recording.blocks()[n_before:], image)
    assert sorted(called) == sorted(set(range(N_TILES)) - finished)
    assert chunk_files(folder / "labels.zarr") == chunks


def test_a_record_torn_after_it_was_journalled_is_never_believed(
    folder: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table = blockbuster.steps.make_table

    def tear_one_first(*args: Any, **kwargs: Any) -> Any:
        record = sorted(folder.rglob("*.tile"))[40]
        record.write_bytes(flipped(record.read_bytes()))
        return make_table(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.steps, "make_table", tear_one_first)
        with pytest.raises(TileError, match="resume"):
            blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
    labels = blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", resume=True)
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(image)[0])


def test_a_torn_table_is_made_again(
    folder: Path, image: NDArray[Any], failing: Failing, chunks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.repair()
    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.outputs.Output, "write", refuse)
        with pytest.raises(TileError):
            blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    stage = only_stage(folder)
    assert stage is not None
    for file in Path(stage.path, "table").iterdir():
        file.write_bytes(truncated(file.read_bytes()))
    blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr", resume=True)
    assert failing.recording.n_calls == N_TILES
    assert chunk_files(folder / "labels.zarr") == chunks


def refuse(*_args: Any, **_kwargs: Any) -> None:
    raise InterruptedError("stopped")


# What a run is


def threshold_fn(block: NDArray[Any], cut: float = 0.5) -> NDArray[Any]:
    return components(block > cut)


def other_fn(block: NDArray[Any], cut: float = 0.5) -> NDArray[Any]:
    return components(block >= cut)


def fn_of(cut: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def cut_and_label(block: NDArray[Any]) -> NDArray[Any]:
        return components(block > cut)

    return cut_and_label


@dataclass(frozen=True)
class Segmenter:
    """A function with a setting."""

    cut: float

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        return components(block > self.cut)

    def segment(self, block: NDArray[Any]) -> NDArray[Any]:
        return components(block > self.cut)


@pytest.fixture
def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stage]]:
    """Stop a run after all its tiles are staged."""

    def stop(operation: Callable[..., Any], *args: Any, **options: Any) -> Stage:
        with monkeypatch.context() as patch:
            patch.setattr(blockbuster.steps, "make_table", refuse)
            with pytest.raises(InterruptedError):
                operation(folder / "image.zarr", *args, write_to=folder / "labels.zarr", **options)
        stage = only_stage(folder)
        assert stage is not None
        return stage

    return stop  # type: ignore[return-value]


def assert_refused(folder: Path, stage: Stage, named: str, call: Callable[[], Any]) -> None:
    """The call must say what differs, and leave the stage as it is."""
    before = digest(Path(stage.path))
    with pytest.raises(ResumeError) as caught:
        call()
    assert f"{named} was " in str(caught.value)
    assert stage.path in str(caught.value)
    after = digest(Path(stage.path))
    assert {name: after.get(name) for name in before} == before
    assert not (folder / "labels.zarr").exists()


@pytest.mark.parametrize(
    ("was", "now"),
    [
        pytest.param(threshold_fn, other_fn, id="another function"),
        pytest.param(threshold_fn, functools.partial(threshold_fn, cut=0.5), id="a partial function"),
        pytest.param(
            functools.partial(threshold_fn, cut=0.5), functools.partial(threshold_fn, cut=0.6), id="another argument"
        ),
        pytest.param(fn_of(0.5), fn_of(0.6), id="another closure"),
        pytest.param(Segmenter(0.5), Segmenter(0.6), id="another attribute"),
        pytest.param(Segmenter(0.5).segment, Segmenter(0.6).segment, id="another method"),
        pytest.param(lambda b: components(b > 0.5), lambda b: components(b > 0.6), id="another constant"),
        pytest.param(lambda b: components(b), lambda b: components(b.T).T, id="other code"),
    ],
)
def test_resuming_with_another_function_is_refused(
    was: Callable[..., Any], now: Callable[..., Any], folder: Path, stopped: Callable[..., Stage]
) -> None:
    stage = stopped(blockbuster.tile_process, was)
    assert_refused(
        folder,
        stage,
        "function",
        lambda: blockbuster.tile_process(folder / "image.zarr", now, write_to=folder / "labels.zarr", resume=True),
    )


def test_a_corrected_function_is_another_one(folder: Path, failing: Failing) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    stage = only_stage(folder)
    assert stage is not None
    assert_refused(
        folder,
        stage,
        "function",
        lambda: blockbuster.tile_process(
            folder / "image.zarr", components, write_to=folder / "labels.zarr", resume=True
        ),
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tile_shape": (8, 24)}, "tiles"),
        ({"overlap": 1}, "overlap"),
        ({"merge": None}, "merge"),
        ({"merge": "contact"}, "merge"),
        ({"merge": blockbuster.Touching(connectivity=2)}, "merge"),
        ({"sequential_labels": True}, "numbering"),
        ({"block_ids": [0, 1, 2]}, "block_ids"),
        ({"skip_empty": True, "empty_threshold": 0}, "empty_threshold"),
    ],
)
def test_resuming_tile_process_with_another_parameter_is_refused(
    options: dict[str, Any], named: str, folder: Path, stopped: Callable[..., Stage]
) -> None:
    stage = stopped(blockbuster.tile_process, components)

    def call() -> Any:
        return blockbuster.tile_process(
            folder / "image.zarr", components, write_to=folder / "labels.zarr", resume=True, **options
        )

    assert_refused(folder, stage, named, call)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"threshold": 0.5}, "threshold"),
        ({"connectivity": 2}, "merge"),
        ({"by_value": True}, "by_value"),
        ({"numbering": "tile"}, "numbering"),
        ({"mask": np.ones((SIDE, SIDE), bool)}, "mask"),
        ({"tile_shape": (24, 24)}, "tiles"),
    ],
)
def test_resuming_label_with_another_parameter_is_refused(
    options: dict[str, Any], named: str, folder: Path, stopped: Callable[..., Stage]
) -> None:
    stage = stopped(blockbuster.label)

    def call() -> Any:
        return blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", resume=True, **options)

    assert_refused(folder, stage, named, call)


def test_resuming_with_another_operation_is_refused(folder: Path, stopped: Callable[..., Stage]) -> None:
    stage = stopped(blockbuster.tile_process, components)
    assert_refused(
        folder,
        stage,
        "operation",
        lambda: blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", resume=True),
    )


def another_path(folder: Path, image: NDArray[Any]) -> Any:
    zarr.create_array(folder / "another.zarr", data=image.view(np.uint8), chunks=(TILE, TILE))
    return folder / "another.zarr"


def other_voxels(folder: Path, image: NDArray[Any]) -> Any:
    zarr.create_array(folder / "image.zarr", data=(~image).view(np.uint8), chunks=(TILE, TILE), overwrite=True)
    return folder / "image.zarr"


def one_other_chunk(folder: Path, image: NDArray[Any]) -> Any:
    zarr.open_array(folder / "image.zarr", mode="r+")[2 * TILE : 3 * TILE, 4 * TILE : 5 * TILE] = 1
    return folder / "image.zarr"


def another_dtype(folder: Path, image: NDArray[Any]) -> Any:
    zarr.create_array(folder / "image.zarr", data=image.astype(np.int16), chunks=(TILE, TILE), overwrite=True)
    return folder / "image.zarr"


def an_array_in_memory(folder: Path, image: NDArray[Any]) -> Any:
    return image.view(np.uint8)


@pytest.mark.parametrize("change", [another_path, other_voxels, one_other_chunk, another_dtype, an_array_in_memory])
def test_resuming_with_another_image_is_refused(
    change: Callable[[Path, NDArray[Any]], Any], folder: Path, image: NDArray[Any], stopped: Callable[..., Stage]
) -> None:
    stage = stopped(blockbuster.tile_process, components)
    other = change(folder, image)

    def call() -> Any:
        return blockbuster.tile_process(
            other, components, write_to=folder / "labels.zarr", tile_shape=(TILE, TILE), resume=True
        )

    assert_refused(folder, stage, "image", call)


@pytest.mark.parametrize(
    "opened",
    [da.from_zarr, lambda path: da.from_zarr(path) + 0, lambda path: da.from_zarr(path)[::-1]],
    ids=["as it is", "computed from", "a view"],
)
def test_a_dask_array_of_a_changed_store_is_another_image(
    opened: Callable[[str], da.Array], folder: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**options: Any) -> Any:
        source = opened(str(folder / "image.zarr"))
        return blockbuster.tile_process(source, components, write_to=folder / "labels.zarr", **options)

    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.steps, "make_table", refuse)
        with pytest.raises(InterruptedError):
            run()
    stage = only_stage(folder)
    assert stage is not None
    one_other_chunk(folder, image)
    assert_refused(folder, stage, "image", lambda: run(resume=True))


def test_another_chunk_of_the_mask_is_another_mask(
    folder: Path, image: NDArray[Any], stopped: Callable[..., Stage]
) -> None:
    mask = zarr.create_array(folder / "mask.zarr", data=np.ones_like(image, np.uint8), chunks=(TILE, TILE))
    options = {"mask": folder / "mask.zarr"}
    stage = stopped(blockbuster.label, **options)
    mask[3 * TILE : 4 * TILE, 2 * TILE : 3 * TILE] = 0

    def call() -> Any:
        return blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr", resume=True, **options)

    assert_refused(folder, stage, "mask", call)


CUT = 0.5


def above_cut(block: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(block > CUT)


def above_another_cut(block: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(block > CUT + 0.25)


def helped(block: NDArray[Any]) -> NDArray[Any]:
    return components(above_cut(block))


@pytest.mark.parametrize(("name", "value"), [("CUT", 0.6), ("above_cut", above_another_cut)])
def test_what_a_function_uses_of_its_module_is_part_of_it(
    name: str, value: Any, folder: Path, stopped: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stopped(blockbuster.tile_process, helped)
    monkeypatch.setattr(sys.modules[__name__], name, value)

    def call() -> Any:
        return blockbuster.tile_process(folder / "image.zarr", helped, write_to=folder / "labels.zarr", resume=True)

    assert_refused(folder, stage, "function", call)


def joins_all(i: Any, *_counts: Any) -> Any:
    return i > 0


def joins_none(i: Any, *_counts: Any) -> Any:
    return i < 0


@pytest.mark.parametrize(
    ("was", "now", "named"),
    [
        ({"merge": blockbuster.Contact(0.3)}, {"merge": blockbuster.Contact(0.5)}, "merge"),
        ({"merge": joins_all}, {"merge": joins_none}, "merge"),
        (
            {"skip_empty": True, "empty_threshold": 0.1},
            {"skip_empty": True, "empty_threshold": 0.2},
            "empty_threshold",
        ),
    ],
)
def test_resuming_with_other_settings_of_an_option_is_refused(
    was: dict[str, Any], now: dict[str, Any], named: str, folder: Path, stopped: Callable[..., Stage]
) -> None:
    stage = stopped(blockbuster.tile_process, components, **was)

    def call() -> Any:
        return blockbuster.tile_process(
            folder / "image.zarr", components, write_to=folder / "labels.zarr", resume=True, **now
        )

    assert_refused(folder, stage, named, call)


def test_one_other_voxel_is_another_array_in_memory(tmp_path: Path, image: NDArray[Any]) -> None:
    recording = Recording(tmp_path)
    (tmp_path / "limit").touch()
    options: dict[str, Any] = {"tile_shape": (TILE, TILE), "stage_dir": tmp_path / "scratch", "compute": True}
    failing = Failing(tmp_path)
    failing.fail_after(3)
    with pytest.raises(TileError):
        blockbuster.tile_process(image, failing, **options)
    failing.repair()
    changed = image.copy()
    changed[5, 50] ^= True
    with pytest.raises(ResumeError, match="image was "):
        blockbuster.tile_process(changed, failing, resume=True, **options)
    assert recording.n_calls == 3


def test_all_differences_are_named(folder: Path, stopped: Callable[..., Stage]) -> None:
    stopped(blockbuster.tile_process, components)
    with pytest.raises(ResumeError) as caught:
        blockbuster.tile_process(
            folder / "image.zarr",
            threshold_fn,
            write_to=folder / "labels.zarr",
            overlap=2,
            merge="iou",
            resume=True,
        )
    assert [f"{field} was " in str(caught.value) for field in ("function", "overlap", "merge")] == [True] * 3
    assert [f"{field} was " in str(caught.value) for field in ("image", "tiles", "numbering")] == [False] * 3


def test_a_refused_run_resumes_when_it_is_repeated_as_it_was(
    folder: Path, failing: Failing, image: NDArray[Any], chunks: dict[str, str]
) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    failing.repair()
    with pytest.raises(ResumeError):
        blockbuster.tile_process(
            folder / "image.zarr", failing, write_to=folder / "labels.zarr", overlap=1, resume=True
        )
    blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr", resume=True)
    assert sorted(tile_numbers(failing.recording.blocks(), image)) == list(range(N_TILES))
    assert chunk_files(folder / "labels.zarr") == chunks


def test_options_that_change_no_label_do_not_hinder_resuming(
    folder: Path, failing: Failing, chunks: dict[str, str]
) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    failing.repair()
    blockbuster.tile_process(
        str(folder / "image.zarr"),
        Failing(folder / "calls"),
        tile_shape=(TILE, TILE),
        write_to=os.path.relpath(folder / "labels.zarr"),
        resume=True,
        overwrite=True,
        verbose=True,
        progress=lambda now: None,
    )
    assert failing.recording.n_calls == N_TILES
    assert chunk_files(folder / "labels.zarr") == chunks


# Nothing to resume


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_resume_with_nothing_to_resume_starts_a_run(kind: str, folder: Path, image: NDArray[Any]) -> None:
    recording = Recording(folder / "calls")
    labels = blockbuster.tile_process(folder / "image.zarr", recording, resume=True, **destinations(folder)[kind])
    assert recording.n_calls == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


def test_resume_after_completion_gives_the_result_without_calling_fn(folder: Path, chunks: dict[str, str]) -> None:
    recording = Recording(folder / "calls")
    for overwrite in (False, False, True):
        labels = blockbuster.tile_process(
            folder / "image.zarr", recording, write_to=folder / "labels.zarr", resume=True, overwrite=overwrite
        )
        assert recording.n_calls == N_TILES
        assert chunk_files(folder / "labels.zarr") == chunks
        np.testing.assert_array_equal(labels.compute(), zarr.open_array(folder / "labels.zarr/labels", mode="r")[:])


def test_resume_after_completion_with_other_parameters_is_no_resume(folder: Path) -> None:
    recording = Recording(folder / "calls")
    blockbuster.tile_process(folder / "image.zarr", recording, write_to=folder / "labels.zarr")
    with pytest.raises(blockbuster.OutputExistsError):
        blockbuster.tile_process(
            folder / "image.zarr", recording, write_to=folder / "labels.zarr", merge=None, resume=True
        )
    assert recording.n_calls == N_TILES
    labels = blockbuster.tile_process(
        folder / "image.zarr", recording, write_to=folder / "labels.zarr", merge=None, resume=True, overwrite=True
    )
    assert recording.n_calls == 2 * N_TILES
    assert labels.max().compute() == sum(components(block).max() for block in recording.blocks()[:N_TILES])


def test_without_resume_a_stopped_run_is_left_alone_and_told_of(
    folder: Path, failing: Failing, chunks: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    failing.repair()
    stage = only_stage(folder)
    assert stage is not None
    before = digest(Path(stage.path))
    blockbuster.tile_process(folder / "image.zarr", failing, write_to=folder / "labels.zarr")
    assert failing.recording.n_calls == 30 + N_TILES
    assert chunk_files(folder / "labels.zarr") == chunks
    assert [r.getMessage() for r in caplog.records if stage.path in r.getMessage() and "resume=True" in r.getMessage()]
    after = digest(Path(stage.path))
    assert {name: after.get(name) for name in before} == before


# The old result


def test_the_old_result_stays_until_the_new_one_is_complete(folder: Path, image: NDArray[Any]) -> None:
    to = folder / "labels.zarr"
    old = blockbuster.tile_process(folder / "image.zarr", components, write_to=to, merge=None).compute()
    seen = []

    def look(block: NDArray[Any]) -> NDArray[Any]:
        seen.append(zarr.open_array(to / "labels", mode="r")[:])
        return components(block)

    def look_too(now: blockbuster.RunProgress) -> None:
        if now.done < now.total:
            seen.append(zarr.open_array(to / "labels", mode="r")[:])

    new = blockbuster.tile_process(
        folder / "image.zarr", look, write_to=to, overwrite=True, progress=look_too, tile_shape=(24, 24)
    )
    assert len(seen) > 9 + 9
    assert all(np.array_equal(array, old) for array in seen)
    assert_same_objects(new, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


@pytest.mark.parametrize("fails", ["fn", "table", "dtype", "write", "annotate", "commit"])
def test_the_old_result_stays_when_the_new_one_fails(
    fails: str, folder: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = folder / "labels.zarr"
    blockbuster.tile_process(folder / "image.zarr", components, write_to=to)
    old = digest(to)
    if fails != "fn":
        failing.repair()
    dtype = "int8" if fails == "dtype" else "int32"
    if fails == "table":
        monkeypatch.setattr(blockbuster.steps, "make_table", refuse)
    if fails in ("write", "annotate", "commit"):
        monkeypatch.setattr(blockbuster.outputs.Output, fails, refuse)
    with pytest.raises((TileError, OverflowError, InterruptedError, OSError)):
        blockbuster.tile_process(folder / "image.zarr", failing, write_to=to, overwrite=True, dtype=dtype)
    assert digest(to) == old


def test_more_objects_than_the_dtype_holds_keep_the_tiles_for_a_wider_one(folder: Path, image: NDArray[Any]) -> None:
    recording = Recording(folder / "calls")
    with pytest.raises(blockbuster.LabelOverflowError):
        blockbuster.tile_process(folder / "image.zarr", recording, write_to=folder / "labels.zarr", dtype="int8")
    assert names(folder) == {"image.zarr", "calls", Path(only_stage(folder).path).name}  # type: ignore[union-attr]
    labels = blockbuster.tile_process(folder / "image.zarr", recording, write_to=folder / "labels.zarr", resume=True)
    assert recording.n_calls == N_TILES
    assert labels.dtype == np.int32
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []
