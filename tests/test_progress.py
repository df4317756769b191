"""What a run tells of itself while it goes on, and how whoever listens can end it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback
from numpy.typing import NDArray

import blockbuster
from blockbuster import RunProgress, TileError
from blockbuster.progress import _Pace
from tests.helpers import Recording, assert_same_objects, components, leftovers

N_TILES = 16
SHAPE = (64, 64)
TILES = {"tile_shape": (16, 16)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 16 tiles, of which the last four are empty."""
    values = (np.random.default_rng(0).random(SHAPE) < 0.4).astype(np.uint16)
    values[48:] = 0
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "image.zarr"
    zarr.create_array(path, data=values, chunks=(16, 16))
    return path


def with_hole(block: NDArray[Any]) -> NDArray[Any]:
    """Labels; fails for a block without any object."""
    if not block.any():
        raise ValueError("nothing here")
    return components(block)


class Stop(Exception):
    """What a listener raises who has had enough."""


# What is told


def test_tiles_are_told_apart_by_what_came_of_them(image: Path, scheduler: str) -> None:
    seen: list[RunProgress] = []
    blockbuster.tile_process(
        image, components, write_to=image.parent / "labels.zarr", skip_empty=True, progress=seen.append, **TILES
    )
    last = seen[-1]
    assert (last.step, last.done, last.total, last.n_tiles) == ("writing", 32, 32, N_TILES)
    assert (last.staged, last.skipped, last.failed) == (N_TILES, 4, 0)
    assert (last.scanned, last.relabelled) == (N_TILES, N_TILES)
    assert last.n_bytes == 2 * 64 * 64
    assert last.seconds_left == 0
    assert [now.seconds for now in seen] == sorted(now.seconds for now in seen)


def test_steps_follow_each_other(image: Path, synchronous: None) -> None:
    seen: list[RunProgress] = []
    blockbuster.label(image, compute=True, progress=seen.append, **TILES)
    steps = [now.step for now in seen]
    assert list(dict.fromkeys(steps)) == ["staging", "merging", "writing"]
    assert steps == sorted(steps, key=["staging", "merging", "writing"].index)
    assert all(now.relabelled == 0 for now in seen if now.step != "writing")
    assert all(now.staged == N_TILES for now in seen if now.step != "staging")


def test_what_overlaps_is_read_more_than_once(image: Path, synchronous: None) -> None:
    seen: list[RunProgress] = []
    blockbuster.tile_process(image, components, overlap=4, compute=True, progress=seen.append, **TILES)
    assert seen[-1].n_bytes == 2 * (20 + 24 + 24 + 20) ** 2


def test_failed_tiles_are_counted_until_they_are_made(image: Path, synchronous: None) -> None:
    seen: list[RunProgress] = []
    options: dict[str, Any] = {"write_to": image.parent / "labels.zarr", "progress": seen.append, **TILES}
    stored = zarr.open_array(image, mode="r+")
    stored[50, 16:] = 1
    with pytest.raises(TileError, match="nothing here"):
        blockbuster.tile_process(image, with_hole, **options)
    assert (seen[-1].step, seen[-1].staged, seen[-1].failed) == ("writing", N_TILES, 1)
    assert seen[-1].relabelled == 0


@pytest.mark.parametrize("operation", ["copy", "downsample", "percentiles", "table"])
def test_operations_of_one_step_tell_of_it(operation: str, image: Path, synchronous: None) -> None:
    seen: list[RunProgress] = []
    options: dict[str, Any] = {"progress": seen.append, **TILES}
    if operation == "copy":
        blockbuster.copy(image, image.parent / "copy.zarr", chunks=(8, 8), **options)
    elif operation == "downsample":
        blockbuster.downsample(image, 2, write_to=image.parent / "small.zarr", progress=seen.append)
    elif operation == "percentiles":
        blockbuster.global_percentiles(image, 50, **options)
    else:
        blockbuster.map_tiles_to_table(image, np.argwhere, [], compute=True, **options)
    last = seen[-1]
    assert last.done == last.total == last.staged
    assert last.relabelled == last.scanned == 0
    assert last.step == ("writing" if operation in ("copy", "downsample") else "staging")
    # Of every second voxel, nothing is read beyond the last.
    assert last.n_bytes == {"copy": 2 * 64 * 64, "downsample": 2 * 63 * 63}.get(operation, 0)


def test_it_is_told_in_the_thread_of_the_caller(image: Path, scheduler: str) -> None:
    threads: set[int] = set()
    blockbuster.label(image, compute=True, progress=lambda _: threads.add(threading.get_ident()), **TILES)
    assert threads == {threading.get_ident()}


# Ending a run


def test_what_a_listener_raises_ends_the_run_which_then_goes_on(image: Path, scheduler: str) -> None:
    recording = Recording(image.parent.parent / "calls", slow)
    recording.folder.mkdir()

    def listen(now: RunProgress) -> None:
        if now.staged >= 3:
            raise Stop

    options: dict[str, Any] = {"write_to": image.parent / "labels.zarr", **TILES}
    with pytest.raises(Stop):
        blockbuster.tile_process(image, recording, progress=listen, **options)
    n_before = recording.n_calls
    assert 3 <= n_before < N_TILES
    assert not (image.parent / "labels.zarr").exists()
    made = blockbuster.tile_process(image, recording, resume=True, **options)
    # Tiles at work when the run ended were finished, or are made again.
    assert N_TILES <= recording.n_calls <= N_TILES + 4
    assert_same_objects(made.compute(), components(zarr.open_array(image, mode="r")[:]))
    assert leftovers(image.parent) == []


def slow(block: NDArray[Any]) -> NDArray[Any]:
    """Labels, in more time than it takes to look at how far a run is."""
    threading.Event().wait(0.15)
    return components(block)


# The time that is left


def test_the_time_left_follows_the_pace_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("blockbuster.progress.time.monotonic", lambda: clock[0])
    pace = _Pace()
    assert pace.after(500, 1000) == (0, None)
    for second in range(1, 201):
        clock[0] = 100.0 + second
        elapsed, left = pace.after(500 + second, 1000)
    # The 500 tiles that were there at once are forgotten: one a second.
    assert elapsed == 200
    assert left is not None
    assert left == pytest.approx(300, rel=0.03)
    assert pace.after(1000, 1000)[1] == 0


def test_computations_in_other_threads_take_no_news_away(image: Path) -> None:
    over = threading.Event()

    def compute_all_the_time() -> None:
        while not over.is_set():
            dask.array.ones(10, chunks=1).sum().compute()

    other = threading.Thread(target=compute_all_the_time)
    other.start()
    try:
        for _ in range(5):
            seen: list[RunProgress] = []
            blockbuster.label(image, compute=True, progress=seen.append, **TILES)
            assert {now.done for now in seen} == set(range(1, 33))
    finally:
        over.set()
        other.join()


def test_callbacks_of_dask_hear_of_tasks_as_ever(image: Path, synchronous: None) -> None:
    heard: list[Any] = []
    with Callback(posttask=lambda key, *_: heard.append(key)):
        blockbuster.label(image, compute=True, progress=lambda _: None, **TILES)
    assert sum(isinstance(key, tuple) and key[0].startswith("stage-") for key in heard) == N_TILES
