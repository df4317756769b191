"""`plan`: what a run would take, against what runs take; and runs that are refused since they cannot fit."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import blockbuster
from blockbuster import CapacityError, GeometryError, OutputExistsError, ParameterError, TileError, plan
from blockbuster.capacity import Room, Workers, tile_budget
from blockbuster.grid import Region, TileGrid
from blockbuster.reads import read_spans, reads_of
from blockbuster.schedulers import active_scheduler
from blockbuster.sources import StoredImage, open_source
from blockbuster.trials import Trials, estimate, spread_tiles
from tests.helpers import Recording, components, leftovers, write_ome_zarr

ROOT = Path(__file__).parent.parent
GiB, MiB = 2**30, 2**20
SHAPE, CHUNKS, TILES = (20, 33, 17), (5, 8, 6), (8, 8, 8)
IMAGE = (np.random.default_rng(0).random(SHAPE) < 0.3).astype(np.uint8)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "image.zarr", data=IMAGE, chunks=CHUNKS)
    return tmp_path / "image.zarr"


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Region]:
    """What tasks read of stored images."""
    found: list[Region] = []
    read = StoredImage.read

    def recorded(self: StoredImage, region: Region, out: Any = None) -> NDArray[Any]:
        found.append(region)
        return read(self, region, out)

    monkeypatch.setattr(StoredImage, "read", recorded)
    return found


def n_voxels(regions: list[Region]) -> int:
    return sum(math.prod(s.stop - s.start for s in region) for region in regions)


def chunks_met(region: Region, chunks: tuple[int, ...]) -> set[tuple[int, ...]]:
    ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(region, chunks, strict=True)]
    return set(itertools.product(*ranges))


def run(operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    made = operation(*arguments, **options)
    if isinstance(made, da.Array) and "write_to" not in options:
        made.compute()


# Tiles and reads


@pytest.mark.usefixtures("synchronous")
@pytest.mark.parametrize(
    ("operation", "arguments", "options"),
    [
        (blockbuster.label, (), {"tile_shape": TILES}),
        (blockbuster.label, (), {}),
        (blockbuster.label, (), {"tile_shape": TILES, "block_ids": [0, 7, 44]}),
        (blockbuster.tile_process, (components,), {"tile_shape": TILES, "overlap": (2, 0, 3)}),
        (blockbuster.tile_process, (components,), {"tile_shape": TILES, "overlap": 1, "block_ids": [3, 4]}),
        (blockbuster.merge_tile_labels, (), {"tile_shape": TILES}),
        (blockbuster.copy, (), {"tile_shape": TILES, "dtype": "uint16"}),
        (blockbuster.downsample, (2,), {"tile_shape": (4, 5, 6)}),
        (blockbuster.downsample, ((1, 3, 2),), {"tile_shape": (4, 5, 6), "method": "mean"}),
        (blockbuster.downsample, (2,), {"tile_shape": (4, 5, 6), "order": 1, "block_ids": [0, 5]}),
    ],
)
def test_reads_are_those_of_the_run(
    operation: Any, arguments: Any, options: Any, stored: Path, regions: list[Region]
) -> None:
    made = plan(stored, *arguments, operation=operation, time_tiles=0, **options)
    assert regions == []
    run(operation, stored, *arguments, **options)
    assert made.n_tiles == len(regions)
    assert made.voxels_read == n_voxels(regions)
    met = [chunks_met(region, CHUNKS) for region in regions]
    assert made.chunk_shape == CHUNKS
    assert made.chunks_decoded == sum(map(len, met))
    assert made.chunk_amplification == pytest.approx(sum(map(len, met)) / len(set().union(*met)))


@given(data=st.data())
def test_reads_are_counted_as_one_by_one(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    draw = [
        tuple(data.draw(st.integers(low, high)) for _ in range(ndim)) for low, high in ((1, 20), (1, 9), (1, 7), (0, 5))
    ]
    shape, chunks, tile, overlap = draw
    grid = TileGrid.regular(shape, tile, overlap)
    every = range(grid.n_tiles)
    tiles = data.draw(st.sampled_from([every, sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))]))
    image = open_source(zarr.zeros(shape, chunks=chunks))
    made = reads_of(image, grid, tiles, read_spans(grid, lambda tile: tile.padded), (1,) * ndim)
    regions = [grid.tile(i).padded for i in tiles]
    met = [chunks_met(region, image.ref.open().chunks) for region in regions]  # type: ignore[union-attr]
    assert made.voxels == n_voxels(regions)
    assert made.owned == n_voxels([grid.tile(i).core for i in tiles])
    assert made.decoded == sum(map(len, met))
    assert made.needed == len(set().union(*met))


def test_amplification_is_that_of_the_halo(stored: Path) -> None:
    made = plan(stored, components, tile_shape=TILES, overlap=2, time_tiles=0)
    grid = TileGrid.regular(SHAPE, TILES, 2)
    assert made.amplification == pytest.approx(grid.amplification)
    assert (made.grid, made.tile_shape, made.overlap) == (grid.numblocks, TILES, (2, 2, 2))


def test_chunks_of_more_channels_than_one_are_decoded_for_one(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [np.zeros((2, 16, 16), np.uint8)], "cyx", chunks=(2, 8, 8))
    made = plan(path, channel=1, time_tiles=0)
    assert (made.shape, made.chunk_shape, made.chunks_decoded) == ((16, 16), (8, 8), 4)


def test_all_levels_of_an_image_count(tmp_path: Path) -> None:
    image = np.zeros((1024, 600), np.uint8)
    made = plan(image, tmp_path / "i.ome.zarr", operation="write_image", n_levels=3, chunks=256)
    assert made.operation == "write_image"
    assert made.seconds is not None
    assert made.voxels_read == image.size
    assert made.n_tiles >= 3
    # 4 x 3, 2 x 2, and 1 x 1 chunks, and the records of the tiles in one folder.
    assert sum(disk.files for disk in made.disks) == 12 + 4 + 1 + made.n_tiles + 1
    assert not (tmp_path / "i.ome.zarr").exists()


def test_files_are_those_of_the_run(stored: Path, tmp_path: Path) -> None:
    kept = {"write_to": tmp_path / "out.zarr", "stage_dir": tmp_path / "stage", "keep_stage": True}
    made = plan(stored, tile_shape=TILES, time_tiles=0, **kept)
    blockbuster.label(stored, tile_shape=TILES, **kept)
    files = [path for path in (tmp_path / "stage").rglob("*") if path.is_file()]
    records = [path for path in files if path.suffix == ".tile"]
    marks = [path for path in files if "int32" in path.parts]
    chunks = [path for path in (tmp_path / "out.zarr").rglob("*") if path.is_file() and path.name.isdigit()]
    assert sum(disk.files for disk in made.disks) == len(records) + 1 + len(marks) + len(chunks)


# Time


@pytest.fixture
def no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no tile were so quick that many are tried."""
    monkeypatch.setattr("blockbuster.trials._ENOUGH_SECONDS", 0.0)


@pytest.mark.usefixtures("synchronous", "no_more")
@pytest.mark.parametrize("to_store", [True, False])
def test_the_function_is_called_on_a_few_tiles_that_are_spread(
    to_store: bool, stored: Path, tmp_path: Path, regions: list[Region]
) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    options: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    made = plan(stored, recording, tile_shape=TILES, overlap=1, time_tiles=4, **options)
    grid = TileGrid.regular(SHAPE, TILES, 1)
    chosen = spread_tiles(grid, range(grid.n_tiles), 4)
    assert len(set(chosen)) == 4
    # The first one twice: what comes once is not the time of a tile.
    assert regions == [grid.tile(i).padded for i in (chosen[0], *chosen)]
    assert recording.n_calls == 5
    assert len(made.tile_seconds) == 4
    assert made.seconds is not None
    assert made.seconds_range is not None
    assert made.seconds_range[0] < made.seconds < made.seconds_range[1]


@pytest.mark.usefixtures("no_more")
def test_tiles_are_tried_at_once_where_the_run_would(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    with dask.config.set(scheduler="threads", num_workers=2):
        made = plan(stored, recording, tile_shape=TILES)
    assert made.tiles_at_once == 2
    assert recording.n_calls == 1 + 3 + min(2, blockbuster.budget.cpu_count()) * (blockbuster.budget.cpu_count() > 1)


def test_no_tile_is_tried_where_none_is_asked_for(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    made = plan(stored, recording, tile_shape=TILES, time_tiles=0)
    assert (recording.n_calls, made.seconds, made.tile_seconds, made.measured_tile_memory) == (0, None, (), None)


WORKERS = Workers(n=2, tiles=4, cpus=4, memory=None, most_memory=None, held=0, limit="")


def tried(
    n_tiles: int, *seconds: float, first: float = 0.0, n_together: int = 0, lanes: int = 1, together: float = 0.0
) -> Trials:
    return Trials(seconds, n_tiles, first, n_together, lanes, together, 0, 0, None, None)


def test_the_time_is_that_of_all_tiles_divided_by_the_workers() -> None:
    made = estimate(tried(100, 1.0, 2.0, 3.0, first=5.0), WORKERS)
    assert made.seconds == 5 + 100 / 4 * 2
    assert made.low == 100 / 4 * 1
    assert made.high == 5 + 100 / 4 * 3


def test_tiles_that_hinder_each_other_take_longer() -> None:
    # Two at once take 3 s, alone 2 s: four lanes of which each takes 3 s for a tile.
    trials = tried(100, 1.0, 2.0, 3.0, n_together=2, lanes=2, together=3.0)
    assert estimate(trials, WORKERS).seconds == 100 / 4 * 3
    assert estimate(trials, WORKERS).high == 100 / 4 * 3 * 1.5


def test_many_small_tiles_count_for_more_than_a_few() -> None:
    trials = tried(400, 0.1, 0.3, n_together=40, lanes=2, together=8.0)
    assert estimate(trials, WORKERS).seconds == pytest.approx(400 / 4 * 0.4)


def test_the_range_is_a_quarter_to_each_side_at_least() -> None:
    made = estimate(tried(40, 2.0, 2.0), WORKERS)
    assert (made.low, made.seconds, made.high) == pytest.approx((15, 20, 25))


def test_fewer_tiles_than_workers_take_one_tile() -> None:
    assert estimate(tried(3, 2.0), WORKERS).seconds == 2


@pytest.mark.usefixtures("synchronous")
def test_tiles_that_take_next_to_no_time_are_tried_in_numbers(
    stored: Path, regions: list[Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockbuster.trials._ENOUGH_SECONDS", 1e9)
    plan(stored, components, tile_shape=TILES, time_tiles=2)
    assert 1 + 2 + 30 < len(regions) <= 1 + 2 + 45


@pytest.mark.parametrize("shape", [(30,), (4, 4), (3, 5, 7), (1, 1, 64), (1,)])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_spread_tiles_are_different_ones(shape: tuple[int, ...], n: int) -> None:
    grid = TileGrid.regular(shape, (1,) * len(shape))
    chosen = spread_tiles(grid, range(grid.n_tiles), n)
    assert len(set(chosen)) == len(chosen) <= n
    assert len(chosen) >= min(n, grid.n_tiles, 3)
    some = range(0, grid.n_tiles, 2)
    assert set(spread_tiles(grid, some, n)) <= set(some)


# Nothing is left, nothing is changed


@pytest.mark.usefixtures("synchronous")
@pytest.mark.parametrize("to_store", [True, False])
@pytest.mark.parametrize(
    ("operation", "arguments", "options"),
    [
        (blockbuster.label, (), {"tile_shape": TILES}),
        (blockbuster.tile_process, (components,), {"overlap": 2, "merge": "iou"}),
        (blockbuster.merge_tile_labels, (), {"return_count": True}),
        (blockbuster.copy, (), {"dtype": "float32"}),
        (blockbuster.copy, (), {"block_ids": [0, 1]}),
        (blockbuster.downsample, (2,), {"method": "max", "chunks": 3}),
    ],
)
def test_a_plan_leaves_nothing(
    operation: Any, arguments: Any, options: Any, to_store: bool, stored: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    to = {"write_to": tmp_path / "new" / "out.zarr"} if to_store else {}
    made = plan(stored, *arguments, operation=operation, **options, **to)
    assert made.fits, str(made)
    assert made.seconds is not None
    assert sorted(tmp_path.rglob("*")) == before


def fail(_block: NDArray[Any]) -> NDArray[Any]:
    raise RuntimeError("no")


@pytest.mark.parametrize("to_store", [True, False])
def test_a_function_that_fails_is_found_and_leaves_nothing(to_store: bool, stored: Path, tmp_path: Path) -> None:
    to = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    with pytest.raises(TileError, match="the function failed with RuntimeError: no"):
        plan(stored, fail, **to)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("kind", ["dask", "numpy", "path"])
def test_images_of_every_kind_are_planned(kind: str, stored: Path) -> None:
    image: Any = {"dask": da.from_array(IMAGE, chunks=TILES) + 0, "numpy": IMAGE, "path": stored}[kind]
    made = plan(image, tile_shape=TILES)
    assert (made.n_tiles, made.voxels_read, made.fits) == (45, IMAGE.size, True)
    assert (made.chunk_shape is None) == (kind != "path")


def test_every_scheduler_can_try_tiles(many: str, stored: Path, tmp_path: Path) -> None:
    made = plan(stored, components, tile_shape=TILES, write_to=tmp_path / "out.zarr", time_tiles=2)
    assert made.fits
    assert len(made.tile_seconds) == 2
    assert made.disks[0].is_measured
    assert leftovers(tmp_path) == []


def test_bytes_on_disk_are_those_of_the_run(tmp_path: Path) -> None:
    """Of an image that is alike everywhere."""
    image = (np.random.default_rng(0).random((96, 96, 96)) < 0.3).astype(np.uint8)
    kept = {"write_to": tmp_path / "out.zarr", "stage_dir": tmp_path / "stage", "keep_stage": True}
    (disk,) = plan(image, tile_shape=(32, 32, 32), **kept).disks
    blockbuster.label(image, tile_shape=(32, 32, 32), **kept)
    stage, output = _size(tmp_path / "stage", "*.tile"), _size(tmp_path / "out.zarr", "[0-9]*")
    assert 0.8 < disk.stage_bytes / stage < 1.25
    # The ids of all tiles take more bits than those of one.
    assert 0.6 < disk.output_bytes / output < 1.25
    assert disk.free_bytes > 0


def _size(folder: Path, pattern: str) -> int:
    sizes = [path.stat().st_size for path in folder.rglob(pattern) if path.is_file()]
    assert sizes
    return sum(-(-size // 4096) * 4096 for size in sizes)


# What does not fit


def test_a_tile_larger_than_a_worker_is_refused_with_the_numbers(stored: Path) -> None:
    image = da.zeros((4096, 1024, 1024), chunks=(2048, 1024, 1024), dtype="uint16")
    made = plan(image, n_workers=4, memory_limit="2 GiB")
    assert not made.fits
    with pytest.raises(
        CapacityError,
        match=r"a task on one tile, with its halo \(2048, 1024, 1024\) of uint16, takes at least 8\.00 GiB, but the "
        r"memory_limit given is 2\.00 GiB\. Give a smaller tile_shape",
    ):
        made.check()
    assert plan(image, tile_shape=(128, 128, 128), n_workers=4, memory_limit="2 GiB", time_tiles=0).fits


def test_a_tile_that_fits_but_not_what_is_made_of_it_is_refused_by_the_plan() -> None:
    image = da.zeros((512, 1024, 512), chunks=(256, 1024, 512), dtype="uint8")
    made = plan(image, n_workers=1, threads_per_worker=1, memory_limit="1 GiB", time_tiles=0)
    assert made.tile_memory == 256 * 1024 * 512 * 10
    with pytest.raises(CapacityError, match=r"A worker takes [\d.]+ GiB at its peak: .* is 1\.00 GiB\. Give smaller"):
        made.check()


def test_one_tile_takes_the_memory_of_one_whatever_the_threads() -> None:
    image = np.zeros((64, 64), np.uint8)
    one, several = (plan(image, n_workers=1, threads_per_worker=n, time_tiles=0).peak_memory for n in (1, 8))
    assert one == several


def test_tiles_that_do_not_fit_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    made = plan(np.zeros((64, 64), np.uint8), recording, n_workers=1, memory_limit=100_000)
    assert not made.fits
    assert (recording.n_calls, made.seconds) == (0, None)
    assert made.warnings[0] == "No tile was tried, as it would likely not fit."


def test_tiles_at_once_share_the_memory_of_a_worker() -> None:
    image = da.zeros((512, 512, 512), chunks=128, dtype="uint8")
    peaks = [
        plan(image, n_workers=2, threads_per_worker=n, memory_limit="1 GiB", time_tiles=0).peak_memory
        for n in (1, 2, 8)
    ]
    assert peaks[1] - peaks[0] == 128**3 * 10
    assert peaks[2] - peaks[1] == 6 * 128**3 * 10


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> dict[str, Room]:
    """Free space by the name of the folder that a run writes to; devices are told apart by it."""
    known: dict[str, Room] = {}

    def room(path: Any) -> Room:
        name = os.path.basename(os.fspath(path))
        found = [known[key] for key in known if name.startswith(key)]
        real = next(part for part in (Path(path), *Path(path).parents) if part.exists())
        given = found[0] if found else Room(str(path), 0, 100 * GiB, None)
        return Room(str(real), given.device, given.free, given.free_files)

    for module in ("needs", "planning", "trials"):
        monkeypatch.setattr(f"blockbuster.{module}.room_at", room)
    return known


def test_stage_and_output_are_told_by_file_system(stored: Path, tmp_path: Path, rooms: dict[str, Room]) -> None:
    rooms["scratch"], rooms["out"] = Room("", 1, 50 * GiB, 1000), Room("", 2, 60 * GiB, None)
    to = {"write_to": tmp_path / "out.zarr", "stage_dir": tmp_path / "scratch"}
    stage, output = plan(stored, tile_shape=TILES, **to).disks
    assert (stage.free_bytes, stage.free_files, output.free_bytes) == (50 * GiB, 1000, 60 * GiB)
    assert stage.stage_bytes > 0 == stage.output_bytes
    assert output.output_bytes > 0 == output.stage_bytes
    assert (stage.files, output.files) == (45 + 1 + 45, 45)
    (both,) = plan(stored, tile_shape=TILES, write_to=tmp_path / "another.zarr").disks
    assert both.stage_bytes > 0 < both.output_bytes


def test_what_the_tiles_take_on_disk_is_refused(stored: Path, tmp_path: Path, rooms: dict[str, Room]) -> None:
    rooms["out"] = rooms["image"] = Room("", 1, 3000, None)
    made = plan(stored, tile_shape=TILES, write_to=tmp_path / "out.zarr", stage_dir=tmp_path / "out-stage")
    with pytest.raises(
        CapacityError,
        match=r"The run takes [\d.]+ kiB in .*: [\d.]+ kiB for its stage, [\d.]+ kiB for its output; but 2\.93 kiB are "
        r"free there\. Make room, or give another write_to or stage_dir",
    ):
        made.check()


def test_a_file_system_without_files_for_the_tiles_is_refused(
    stored: Path, tmp_path: Path, rooms: dict[str, Room]
) -> None:
    rooms["out"] = Room("", 1, GiB, 40)
    options = {"write_to": tmp_path / "out.zarr", "stage_dir": tmp_path / "out-stage", "tile_shape": TILES}
    with pytest.raises(
        CapacityError,
        match=r"label: the stage in .*out-stage and the output in .*out\.zarr takes at least 46 files, but the file "
        r"system has room for 40\. Give larger tiles, or another stage_dir= or write_to=",
    ):
        plan(stored, **options).check()
    rooms["out"] = Room("", 1, GiB, 100)
    made = plan(stored, **options)
    assert made.fits
    assert any("Up to 136 files" in warning for warning in made.warnings)


# Runs are refused before their first task


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.capacity.memory_limit", lambda: 1000)
    monkeypatch.setattr("blockbuster.capacity.psutil.swap_memory", lambda: type("Swap", (), {"total": 24})())


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("scheduler_name", ["synchronous", "threads", "processes"])
@pytest.mark.parametrize(
    "start",
    [
        lambda image, fn, to: blockbuster.tile_process(image, fn, tile_shape=(10, 10, 11), **to),
        lambda image, fn, to: blockbuster.tile_process(image, fn, tile_shape=(8, 8, 8), overlap=2, **to),
        lambda image, fn, to: blockbuster.label(image, mask=image, tile_shape=(8, 8, 9), **to),
        lambda image, fn, to: blockbuster.copy(
            da.from_zarr(image) + 0, tile_shape=(10, 10, 12), chunks=(10, 10, 12), **to
        ),
        lambda image, fn, to: blockbuster.downsample(image, 2, tile_shape=(10, 17, 9), chunks=(10, 17, 9), **to),
    ],
)
@pytest.mark.parametrize("to_store", [True, False])
def test_a_run_of_tiles_larger_than_the_memory_does_not_start(
    start: Any, scheduler_name: str, to_store: bool, stored: Path, tmp_path: Path, regions: list[Region]
) -> None:
    (tmp_path / "calls").mkdir()
    recording, to = Recording(tmp_path / "calls"), {"write_to": tmp_path / "out.zarr"} if to_store else {}
    before = sorted(tmp_path.rglob("*"))
    with (
        dask.config.set(scheduler=scheduler_name),
        pytest.raises(CapacityError, match=r"[1-9]\.\d\d kiB, but what this"),
    ):
        start(stored, recording, to)
    assert (recording.n_calls, regions, sorted(tmp_path.rglob("*"))) == (0, [], before)


@pytest.mark.usefixtures("small_machine")
def test_a_run_whose_tiles_may_fit_starts_with_a_warning(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="blockbuster"):
        blockbuster.label(stored, tile_shape=(4, 4, 4), compute=False)
    assert "label: a worker likely takes" in caplog.text
    assert "what this process may hold is 0.98 kiB" in caplog.text


@pytest.mark.usefixtures("small_machine", "synchronous")
def test_a_result_larger_than_the_memory_is_refused(stored: Path) -> None:
    with pytest.raises(CapacityError, match=r"compute=True asks for the whole result, 43\.83 kiB, .* Give write_to="):
        blockbuster.label(stored, tile_shape=(4, 4, 4), compute=True)
    with pytest.raises(CapacityError, match=r"copy: compute=True asks for the whole result, 10\.96 kiB"):
        blockbuster.copy(stored, compute=True)


@pytest.mark.usefixtures("small_machine", "synchronous")
def test_copies_of_files_need_no_memory_for_voxels(stored: Path, tmp_path: Path) -> None:
    """Tiles larger than the memory are copied file by file."""
    blockbuster.copy(stored, tmp_path / "out.zarr", tile_shape=(20, 40, 18))
    assert (zarr.open_array(tmp_path / "out.zarr", mode="r")[:] == IMAGE).all()


def test_files_that_cannot_be_made_stop_a_run_unless_it_is_resumed(
    stored: Path, tmp_path: Path, rooms: dict[str, Room]
) -> None:
    options = {"write_to": tmp_path / "out.zarr", "tile_shape": TILES, "stage_dir": tmp_path / "out-stage"}
    rooms["out"] = Room("", 1, GiB, 40)
    with pytest.raises(CapacityError, match="takes at least 46 files"):
        blockbuster.label(stored, **options)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out.zarr").exists()
    blockbuster.label(stored, resume=True, **options)


def test_a_full_disk_stops_a_run(stored: Path, tmp_path: Path, rooms: dict[str, Room]) -> None:
    rooms["out"] = Room("", 1, 100, None)
    with pytest.raises(CapacityError, match=r"takes at least 1\.\d+ kiB, but 100 B are free there\. Make room"):
        blockbuster.label(stored, write_to=tmp_path / "out.zarr", stage_dir=tmp_path / "out-stage", tile_shape=TILES)


def test_a_disk_that_is_likely_too_small_makes_a_warning(
    stored: Path, tmp_path: Path, rooms: dict[str, Room], caplog: pytest.LogCaptureFixture
) -> None:
    rooms["out"] = Room("", 1, 2000, None)
    with caplog.at_level(logging.WARNING, logger="blockbuster"):
        blockbuster.copy(stored, tmp_path / "out.zarr", stage_dir=tmp_path / "out-stage", dtype="uint16")
    assert "copy: stage and output likely take about" in caplog.text


def test_an_ordinary_run_warns_of_nothing(stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="blockbuster"):
        blockbuster.label(stored, write_to=tmp_path / "out.zarr")
        plan(stored, write_to=tmp_path / "out.zarr", output_component="another")
    assert caplog.text == ""


# Workers


def test_workers_of_a_cluster_are_told_by_it(stored: Path, local_cluster: str) -> None:
    from distributed import Client

    with Client(local_cluster) as client:
        told = client.scheduler_info(n_workers=-1)["workers"].values()
        made = plan(stored, tile_shape=TILES, time_tiles=2)
        assert (made.n_workers, made.tiles_at_once) == (2, 2)
        assert made.memory_limit == min(worker["memory_limit"] for worker in told)
        assert made.measured_tile_memory is not None
        assert tile_budget(active_scheduler()) == {"memory": 2 * made.memory_limit // 2, "n_workers": 2}
        with pytest.raises(CapacityError, match=r"the memory limit of the workers is"):
            blockbuster.label(da.zeros((2**20, 2**20), chunks=2**20, dtype="uint8"))


def test_a_cluster_without_workers_yet_is_planned_for(stored: Path) -> None:
    from distributed import Client

    with Client(processes=False, n_workers=0, dashboard_address=None):
        made = plan(stored, tile_shape=TILES)
        assert tile_budget(active_scheduler()) == {}
    assert tile_budget(active_scheduler()) == {}
    assert (made.n_workers, made.memory_limit, made.seconds) == (0, None, None)
    assert made.warnings[0].startswith("The cluster has no worker yet")


def test_threads_are_those_that_dask_would_use(stored: Path) -> None:
    with dask.config.set(scheduler="threads", num_workers=64):
        made = plan(stored, time_tiles=0)
    assert (made.n_workers, made.tiles_at_once) == (1, 64)
    assert made.warnings[0].startswith("64 tiles at a time share the")
    with dask.config.set(scheduler="synchronous"):
        assert plan(stored, time_tiles=0).tiles_at_once == 1
    with dask.config.set(scheduler="processes", num_workers=2):
        made = plan(stored, time_tiles=0)
    assert (made.n_workers, made.tiles_at_once) == (2, 2)


def test_a_slurm_job_is_the_limit(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "123")
    with dask.config.set(scheduler="threads"):
        assert plan(stored, time_tiles=0).memory_limit == 123 * MiB


@pytest.mark.slurm
def test_within_a_job_the_limits_are_those_of_the_job(stored: Path, tmp_path: Path) -> None:
    """As a job script would ask, by SLURM itself."""
    command = [sys.executable, "-m", "blockbuster", "plan", str(stored), "--time-tiles", "0", "--json"]
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\ncd {ROOT}\nexec {shlex.join(command)}\n")
    told = tmp_path / "told"
    options = ["--mem=300", "--cpus-per-task=1", "--time=1", "--wait", f"--output={told}", f"--chdir={tmp_path}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    made = subprocess.run(["sbatch", *options, script], env=environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, told.read_text() if told.exists() else made.stderr
    assert json.loads(told.read_text())["memory_limit"] == 300 * MiB


def test_a_cluster_that_is_to_be_is_planned_for(stored: Path) -> None:
    made = plan(stored, time_tiles=0, n_workers=100, threads_per_worker=4, memory_limit="16 GiB")
    assert (made.n_workers, made.tiles_at_once, made.memory_limit) == (100, 400, 16 * GiB)
    made = plan(stored, time_tiles=0, n_workers=100, threads_per_worker=1, memory_limit=5 * MiB)
    assert made.memory_limit == 5 * MiB
    assert not made.fits


def test_one_tile_at_a_time_is_on_a_gpu(stored: Path) -> None:
    made = plan(stored, components, use_gpu=True, tile_shape=TILES, n_workers=3, threads_per_worker=4, time_tiles=0)
    assert made.tiles_at_once == 3


# The call


def test_the_plan_is_that_of_the_operation_asked_for(stored: Path) -> None:
    assert plan(stored, time_tiles=0).operation == "label"
    assert plan(stored, components, time_tiles=0).operation == "tile_process"
    assert plan(stored, fn=components, time_tiles=0).operation == "tile_process"
    assert plan(stored, operation="copy", time_tiles=0).operation == "copy"
    assert plan(stored, 2, operation=blockbuster.downsample, time_tiles=0).operation == "downsample"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((), {"operation": "segment"}, ParameterError, "operation 'segment' is unknown. Choose one of 'label'"),
        ((), {"operation": len}, ParameterError, "is unknown"),
        ((), {"fold": 3}, ParameterError, "label cannot be called so: got an unexpected keyword argument 'fold'"),
        ((), {"operation": "downsample"}, ParameterError, "missing a required argument: 'scale_factor'"),
        ((), {"time_tiles": -1}, ParameterError, "time_tiles -1 is no int of at least 0"),
        ((), {"n_workers": 0}, ParameterError, "n_workers 0 is no int of at least 1"),
        ((), {"threads_per_worker": 1.5}, ParameterError, "threads_per_worker 1.5 is no int"),
        ((), {"memory_limit": "much"}, ParameterError, "memory_limit 'much' is no number of bytes"),
        ((), {"memory_limit": 0}, ParameterError, "memory_limit 0 is no number of bytes"),
        ((), {"tile_shape": (8, 8)}, GeometryError, "tile_shape"),
        ((), {"connectivity": 9}, ParameterError, "connectivity"),
        ((components,), {"merge": "iou"}, ParameterError, "merge='iou'"),
    ],
)
def test_what_the_operation_refuses_the_plan_refuses(
    arguments: Any, options: Any, error: type[Exception], words: str, stored: Path
) -> None:
    with pytest.raises(error, match=words):
        plan(stored, *arguments, **options)


@pytest.mark.parametrize("operation", ["label", "copy"])
def test_an_output_that_is_there_is_refused(operation: str, stored: Path, tmp_path: Path) -> None:
    to = {"write_to": tmp_path / "out.zarr", "output_component": "labels"}
    blockbuster.label(stored, **to)
    with pytest.raises(OutputExistsError):
        plan(stored, operation=operation, **to)
    assert plan(stored, operation=operation, overwrite=True, **to).fits
    assert plan(stored, operation=operation, resume=True, time_tiles=0, **to).fits
    with pytest.raises(blockbuster.OutputError, match="would overwrite the input"):
        plan(stored, operation=operation, write_to=stored, output_component="", overwrite=True)


def test_a_folder_that_cannot_be_written_is_told(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("blockbuster.trials.tempfile.mkdtemp", refuse)
    with pytest.raises(blockbuster.OutputError, match=r"cannot be tried in .*Permission denied.*or time_tiles=0"):
        plan(stored, write_to=tmp_path / "out.zarr")


# Odd calls


@pytest.mark.parametrize("to_store", [True, False])
@pytest.mark.parametrize("operation", ["label", "copy"])
@pytest.mark.parametrize(
    ("image", "options"),
    [(np.zeros((0, 4), np.uint8), {}), (IMAGE, {"block_ids": []}), (IMAGE, {"block_ids": [], "tile_shape": TILES})],
)
def test_runs_of_no_tiles_are_planned(operation: str, image: Any, options: Any, to_store: bool, tmp_path: Path) -> None:
    to = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    chunks = {"chunks": TILES} if to_store and operation == "copy" and options.get("tile_shape") else {}
    made = plan(image, operation=operation, **options, **to, **chunks)
    assert (made.n_tiles, made.voxels_read, made.fits, made.seconds) == (0, 0, True, None)
    assert str(made)


def test_a_pyramid_that_is_complete_is_planned(tmp_path: Path) -> None:
    blockbuster.write_image(np.zeros((40, 50), np.uint8), tmp_path / "i.ome.zarr", n_levels=1)
    made = plan(tmp_path / "i.ome.zarr", operation="pyramid")
    assert (made.n_tiles, made.fits, made.seconds) == (0, True, None)
    made = plan(tmp_path / "i.ome.zarr", operation="pyramid", n_levels=2)
    assert (made.n_tiles, len(made.tile_seconds)) == (1, 1)


def test_groups_are_tried_by_their_largest_array(tmp_path: Path) -> None:
    path = blockbuster.write_image(np.ones((64, 64), np.uint8), tmp_path / "i.ome.zarr", chunks=32, n_levels=2).path
    before = sorted(tmp_path.rglob("*"))
    made = plan(path, tmp_path / "out.zarr", operation="copy", compression="zstd")
    assert (made.n_tiles, made.shape, len(made.tile_seconds)) == (2, (64, 64), 1)
    labels = plan(np.ones((64, 64), np.int32), path, "cells", operation="write_labels")
    assert labels.seconds is not None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("patch", [{"block_ids": [1, 2]}, {"mask": np.ones((64, 64), np.bool_)}])
def test_tiles_of_an_array_that_is_changed_are_tried(patch: Any, tmp_path: Path) -> None:
    blockbuster.copy(np.ones((64, 64), np.uint8), tmp_path / "out.zarr", chunks=16)
    before = sorted(tmp_path.rglob("*"))
    made = plan(np.zeros((64, 64), np.uint8), tmp_path / "out.zarr", operation="copy", overwrite=True, **patch)
    assert made.seconds is not None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("synchronous")
def test_what_is_logged_of_the_tiles_tried_is_not_taken_for_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="blockbuster"):
        plan(np.zeros((64, 64), np.uint8), components, tile_shape=(16, 16), skip_empty=True)
        assert caplog.text == ""
        blockbuster.tile_process(np.zeros((64, 64), np.uint8), components, skip_empty=True, compute=True)
    assert "1 of 1 tiles were skipped" in caplog.text


def test_a_lazy_array_of_very_many_tiles_is_not_tried(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.planning._MANY_LAZY_TILES", 44)
    made = plan(stored, tile_shape=TILES)
    assert made.seconds is None
    assert made.warnings[0].startswith("No tile was tried: a lazy array of 45 tiles")


# What it says


def test_a_plan_is_json(stored: Path, tmp_path: Path) -> None:
    made = plan(stored, tile_shape=TILES, write_to=tmp_path / "out.zarr")
    read = json.loads(json.dumps(made.as_dict()))
    assert read["tile_shape"] == list(TILES)
    assert read["disks"][0]["files"] == made.disks[0].files
    assert read["fits"] is True


@pytest.mark.usefixtures("synchronous")
def test_a_plan_prints_as_a_table(stored: Path, tmp_path: Path) -> None:
    lines = str(plan(stored, components, tile_shape=TILES, overlap=1, write_to=tmp_path / "out.zarr")).split("\n")
    assert lines[0] == "tile_process of uint8 (20, 33, 17)"
    assert lines[1] == "tiles    45 of (8, 8, 8), grid (3, 5, 3), overlap (1, 1, 1)"
    assert lines[2] == "reads    20,664 voxels, each 1.84 times; 390 chunks (5, 8, 6), each 6.50 times"
    assert [line.split()[0] for line in lines[1:8]] == ["tiles", "reads", "workers", "memory", "disk", "time", "fits"]
    assert "quotas not counted" in lines[5]


# Against runs


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("operation", "dtype"), [("label", "uint8"), ("label", "uint16"), ("copy", "uint16")])
def test_the_peak_of_a_worker_is_what_the_model_says(
    operation: str, dtype: str, n_threads: int, tmp_path: Path
) -> None:
    side = 160
    blobs = np.kron(np.random.default_rng(0).random((20,) * 3) < 0.3, np.ones((8,) * 3, np.bool_))
    image = zarr.create_array(tmp_path / "in.zarr", shape=(2 * side, side, side), chunks=(80,) * 3, dtype=dtype)
    image[:side] = image[side:] = blobs * np.dtype(dtype).type(200)
    command = [sys.executable, "-m", "tests.drivers.planned", operation, str(tmp_path), str(n_threads)]
    environ = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # Two tiles are seldom at their peaks at once, and libraries take some memory once.
    assert 0.8 < (told["planned"] - told["begin"]) / (told["peak"] - told["begin"]) < 2.5
