"""The same bytes from every scheduler in any order of tasks, and no trace of the run afterwards."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
import blockbuster.steps
from blockbuster import LabelOverflowError, TileError
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers
from tests.oracles import random_order, scipy_labels, tree

SHAPE = (20, 33, 17)
IMAGE = (np.random.default_rng(0).random(SHAPE) < 0.35).astype(np.uint8)
TILES = (8, 8, 8)
N_TILES = 3 * 5 * 3


def _stored(folder: Path) -> zarr.Array[Any]:
    return zarr.create_array(folder / "in.zarr", data=IMAGE, chunks=(7, 9, 11))


# The same bytes


def test_labels_are_those_of_scipy_on_every_scheduler(scheduler: str, tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    lazy = da.from_array(IMAGE, chunks=((3, 11, 6), (30, 3), (1, 16)))
    labels = [
        blockbuster.label(stored, connectivity=3, tile_shape=TILES),
        blockbuster.label(IMAGE, connectivity=3, mask=stored, tile_shape=TILES),
        blockbuster.label(lazy, connectivity=3, by_value=True),
    ]
    for computed in dask.compute(*labels):
        assert computed.dtype == np.int32
        assert (computed == scipy_labels(IMAGE, 3)).all()


def _runs(folder: Path) -> dict[str, Callable[[Path], Any]]:
    """Runs whose ids follow the tiles, to a store."""
    stored = _stored(folder)
    return {
        "label": lambda to: blockbuster.label(stored, numbering="tile", tile_shape=TILES, write_to=to),
        "touching": lambda to: blockbuster.tile_process(IMAGE, components, tile_shape=TILES, overlap=2, write_to=to),
        "iou": lambda to: blockbuster.tile_process(
            stored, components, tile_shape=TILES, overlap=2, merge="iou", sequential_labels=True, write_to=to
        ),
    }


def test_stored_bytes_are_those_of_the_synchronous_scheduler(scheduler: str, tmp_path: Path) -> None:
    for name, run in _runs(tmp_path).items():
        run(tmp_path / name / "out.zarr")
        with dask.config.set(scheduler="synchronous"):
            run(tmp_path / "reference" / name / "out.zarr")
        assert digest(tmp_path / name / "out.zarr") == digest(tmp_path / "reference" / name / "out.zarr")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_bytes_do_not_depend_on_the_order_of_tasks_nor_on_repeats(seed: int, times: int, tmp_path: Path) -> None:
    for name, run in _runs(tmp_path).items():
        with dask.config.set(scheduler=random_order(seed, times=times)):
            run(tmp_path / name / "out.zarr")
        with dask.config.set(scheduler="synchronous"):
            run(tmp_path / "reference" / name / "out.zarr")
        assert digest(tmp_path / name / "out.zarr") == digest(tmp_path / "reference" / name / "out.zarr")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_lazy_labels_do_not_depend_on_the_order_of_tasks_nor_on_repeats(seed: int, times: int) -> None:
    lazy = da.from_array(IMAGE, chunks=((3, 11, 6), (30, 3), (1, 16)))
    with dask.config.set(scheduler=random_order(seed, times=times)):
        for image in (IMAGE, lazy):
            labels = blockbuster.label(image, tile_shape=TILES, connectivity=2)
            assert (labels.compute() == scipy_labels(IMAGE, 2)).all()


@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_bytes_do_not_depend_on_the_number_of_threads(n_threads: int) -> None:
    with dask.config.set(scheduler="threads", num_workers=n_threads):
        labels = blockbuster.tile_process(IMAGE, components, tile_shape=TILES, overlap=1, compute=True)
    with dask.config.set(scheduler="synchronous"):
        expected = blockbuster.tile_process(IMAGE, components, tile_shape=TILES, overlap=1, compute=True)
    assert labels.tobytes() == expected.tobytes()


def test_the_scheduler_may_be_chosen_when_a_lazy_result_is_computed() -> None:
    labels = blockbuster.label(IMAGE, tile_shape=TILES)
    for scheduler in ("threads", "processes", "synchronous"):
        assert (labels.compute(scheduler=scheduler) == scipy_labels(IMAGE)).all()


# No trace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def _eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something comes to hold: workers let go of what they had in their own time."""
    end = time.monotonic() + seconds
    gc.collect()
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
        gc.collect()
    return holds()


def _kinds(folder: Path) -> dict[str, Any]:
    stored = _stored(folder)
    return {"numpy": IMAGE, "dask": da.from_array(IMAGE, chunks=7), "zarr": stored, "path": folder / "in.zarr"}


KINDS = ["numpy", "dask", "zarr", "path"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_lazy_result_is_gone(
    kind: str, synchronous: None, folder: Path, tmp_path: Path
) -> None:
    image = _kinds(folder)[kind]
    before = tree(tmp_path)
    labels = blockbuster.label(image, tile_shape=TILES)
    labels.compute()
    assert tree(tmp_path) != before
    del labels
    gc.collect()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_a_result_in_memory(kind: str, synchronous: None, folder: Path, tmp_path: Path) -> None:
    image = _kinds(folder)[kind]
    before = tree(tmp_path)
    blockbuster.label(image, tile_shape=TILES, compute=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_but_the_output_after_a_stored_result(
    kind: str, synchronous: None, folder: Path, tmp_path: Path
) -> None:
    image = _kinds(folder)[kind]
    before = tree(tmp_path)
    labels = blockbuster.label(image, tile_shape=TILES, write_to=tmp_path / "out.zarr")
    assert {p for p in tree(tmp_path) - before if "out.zarr" not in p} == set()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "system-tmp", "out.zarr"}
    assert (labels.compute() == scipy_labels(IMAGE)).all()


def test_nothing_is_left_of_a_lazy_result_that_was_never_computed(folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    labels = blockbuster.label(image, tile_shape=TILES)
    del labels
    gc.collect()
    assert tree(tmp_path) == before


def test_every_scheduler_leaves_nothing_behind(scheduler: str, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    labels = blockbuster.label(image, tile_shape=TILES)
    assert (labels.compute() == scipy_labels(IMAGE)).all()
    del labels
    assert _eventually(lambda: tree(tmp_path) == before), tree(tmp_path) - before


def test_every_scheduler_stages_once_for_all_computations(scheduler: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    fn = Recording(calls)
    labels = blockbuster.tile_process(IMAGE, fn, tile_shape=TILES)
    first = labels.compute()
    assert (labels[:5].compute() == first[:5]).all()
    assert (labels.compute() == first).all()
    assert fn.n_calls == N_TILES


def test_the_last_reference_may_be_in_another_lazy_array(synchronous: None, folder: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    labels = blockbuster.label(IMAGE, tile_shape=TILES)
    part = labels[::2].max()
    labels.compute()
    del labels
    gc.collect()
    staged = tree(tmp_path)
    assert staged != before
    assert int(part.compute()) == scipy_labels(IMAGE)[::2].max()
    assert tree(tmp_path) == staged
    del part
    gc.collect()
    assert tree(tmp_path) == before


def test_two_results_have_stages_of_their_own(synchronous: None, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    by_faces, by_corners = (blockbuster.label(image, connectivity=c, tile_shape=TILES) for c in (1, 3))
    by_faces.compute()
    by_corners.compute()
    del by_faces
    gc.collect()
    assert (by_corners.compute() == scipy_labels(IMAGE, 3)).all()
    del by_corners
    gc.collect()
    assert tree(tmp_path) == before


@pytest.fixture
def client(local_cluster: str) -> Any:
    with distributed.Client(local_cluster) as connected:
        yield connected


def test_a_persisted_result_outlives_its_lazy_array(client: Any, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    fn = Recording(calls)
    before = {p for p in tree(tmp_path) if not p.startswith(str(calls))}
    labels = blockbuster.tile_process(IMAGE, fn, tile_shape=TILES)
    kept = labels.persist()
    del labels
    gc.collect()
    assert_same_objects(kept.compute(), scipy_labels(IMAGE))
    assert (kept[:3].compute() == kept.compute()[:3]).all()
    assert fn.n_calls == N_TILES
    del kept
    assert _eventually(lambda: {p for p in tree(tmp_path) if not p.startswith(str(calls))} == before)


def test_a_result_whose_lazy_array_is_gone_before_it_is_made_is_made(client: Any, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    future = client.compute(blockbuster.label(image, tile_shape=TILES))
    gc.collect()
    assert (future.result() == scipy_labels(IMAGE)).all()
    del future
    assert _eventually(lambda: tree(tmp_path) == before), tree(tmp_path) - before


def _cluster() -> distributed.LocalCluster:
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    )


def slow_at_the_end() -> None:
    """Let the last tile, in the process that calls this, take long to relabel."""
    quick = blockbuster.steps._final_labels

    def slow(job: Any, region: Any, *rest: Any) -> NDArray[Any]:
        if region.block_id == N_TILES - 1:
            time.sleep(0.5)
        return quick(job, region, *rest)

    blockbuster.steps._final_labels = slow


def test_a_persisted_run_survives_the_release_of_copies(folder: Path) -> None:
    """Distributed drops copies of what a worker no longer needs, while others still do."""
    image = _stored(folder)
    with (
        dask.config.set({"distributed.scheduler.active-memory-manager.interval": "20ms"}),
        _cluster() as cluster,
        distributed.Client(cluster) as connected,
    ):
        connected.run(slow_at_the_end)
        for _ in range(5):
            kept = blockbuster.label(image, tile_shape=TILES).persist()
            gc.collect()
            assert (kept.compute() == scipy_labels(IMAGE)).all()


def test_many_results_at_once_do_not_disturb_each_other(client: Any, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    futures = [client.compute(blockbuster.label(image, connectivity=c, tile_shape=TILES)) for c in (1, 2, 3, 1)]
    for connectivity, future in zip((1, 2, 3, 1), futures, strict=True):
        assert (future.result() == scipy_labels(IMAGE, connectivity)).all()
    del future, futures
    assert _eventually(lambda: tree(tmp_path) == before), tree(tmp_path) - before


# After a failure


def fails_on_the_last_tile(block: NDArray[Any]) -> NDArray[Any]:
    if block.shape == (4, 1, 1):
        raise ValueError("no nuclei here")
    return components(block)


def test_nothing_is_left_of_a_lazy_result_that_failed(scheduler: str, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    labels = blockbuster.tile_process(image, fails_on_the_last_tile, tile_shape=TILES)
    with pytest.raises(TileError, match=r"Tile \(2, 4, 2\), region \[16:20, 32:33, 16:17\].*no nuclei here") as caught:
        labels.compute()
    assert isinstance(caught.value.__cause__, ValueError)
    del caught, labels
    assert _eventually(lambda: tree(tmp_path) == before), tree(tmp_path) - before


def test_nothing_is_left_of_a_failed_lazy_result_when_its_cluster_is_closed(folder: Path, tmp_path: Path) -> None:
    with _cluster() as cluster, distributed.Client(cluster):
        labels = blockbuster.tile_process(_stored(folder), fails_on_the_last_tile, tile_shape=TILES)
        with pytest.raises(TileError):
            labels.compute()
    del labels
    assert _eventually(lambda: leftovers(tmp_path) == []), leftovers(tmp_path)


def test_nothing_is_left_of_a_lazy_result_that_overflowed(synchronous: None, folder: Path, tmp_path: Path) -> None:
    image = _stored(folder)
    before = tree(tmp_path)
    labels = blockbuster.label(image, tile_shape=TILES, dtype="int8")
    with pytest.raises(LabelOverflowError):
        labels.compute()
    del labels
    gc.collect()
    assert tree(tmp_path) == before


def test_a_lazy_result_that_failed_may_be_computed_again(synchronous: None, tmp_path: Path) -> None:
    """Only tiles that were not finished are."""
    calls = tmp_path / "calls"
    calls.mkdir()
    fn = Recording(calls, _Fails(tmp_path / "broken"))
    (tmp_path / "broken").touch()
    labels = blockbuster.tile_process(IMAGE, fn, tile_shape=TILES)
    with pytest.raises(TileError):
        labels.compute()
    (tmp_path / "broken").unlink()
    assert_same_objects(labels.compute(), scipy_labels(IMAGE))
    assert fn.n_calls == N_TILES + 1


class _Fails:
    """A function that fails on the last tile while a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        return fails_on_the_last_tile(block) if self.path.exists() else components(block)
