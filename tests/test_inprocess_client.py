"""A client whose scheduler and workers are threads of this process."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import zarr
from distributed import Client
from numpy.typing import NDArray

import blockbuster
from blockbuster import SchedulerError, TileError
from tests.helpers import Recording, assert_same_objects, components, leftovers

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
    """A folder with the image and a folder for the calls of a function."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    (folder / "calls").mkdir()
    return folder


@pytest.fixture
def client() -> Iterator[Client]:
    """A client with two workers in this process."""
    with Client(processes=False, n_workers=2, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture
def recording(folder: Path) -> Recording:
    """A function whose calls are counted."""
    return Recording(folder / "calls")


def is_clean(folder: Path) -> bool:
    """Whether nothing is left, once the workers have let go."""
    for attempt in range(250):
        if attempt % 25 == 0:
            gc.collect()
        if leftovers(folder) == []:
            return True
        time.sleep(0.02)
    return False


class OddError(Exception):
    """An error that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("very odd")
        self.lock = threading.Lock()


def fail_oddly(block: NDArray[Any]) -> NDArray[Any]:
    if (block == 77).any():
        raise OddError
    return components(block)


@pytest.mark.parametrize("kind", ["memory", "lazy", "store", "persisted"])
def test_runs_are_exact_and_leave_nothing(
    kind: str, client: Client, folder: Path, recording: Recording, image: NDArray[Any]
) -> None:
    options: dict[str, Any] = {"memory": {"compute": True}, "store": {"write_to": folder / "labels.zarr"}}.get(kind, {})
    labels = blockbuster.tile_process(folder / "image.zarr", recording, **options)
    if kind == "persisted":
        labels = labels.persist()
        gc.collect()
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert recording.n_calls == N_TILES
    del labels
    assert is_clean(folder)


def test_a_lazy_array_computed_again_calls_fn_no_more(client: Client, folder: Path, recording: Recording) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    first = labels[:4].compute()
    np.testing.assert_array_equal(labels.compute()[:4], first)
    assert recording.n_calls == N_TILES
    del labels
    assert is_clean(folder)


def test_a_function_that_cannot_be_pickled_is_refused_at_once(client: Client, folder: Path) -> None:
    lock = threading.Lock()

    def locked(block: NDArray[Any]) -> NDArray[Any]:
        with lock:
            return components(block)

    with pytest.raises(SchedulerError, match=r"cannot be pickled.*Define it at the top level"):
        blockbuster.tile_process(folder / "image.zarr", locked, compute=True)
    assert leftovers(folder) == []


def test_errors_come_with_their_tile_and_cause(client: Client, folder: Path) -> None:
    with pytest.raises(TileError, match="very odd") as caught:
        blockbuster.tile_process(folder / "image.zarr", fail_oddly, compute=True)
    assert caught.value.tile == (2, 1)
    assert "very odd" in str(caught.value.__cause__)


def test_runs_work_within_a_task(client: Client, folder: Path, image: NDArray[Any]) -> None:
    path = str(folder / "image.zarr")
    future = client.submit(lambda: blockbuster.label(path).compute(), pure=False)
    np.testing.assert_array_equal(future.result(), scipy.ndimage.label(image)[0])
    del future
    assert is_clean(folder)


def test_a_failed_run_resumes(
    client: Client, folder: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(folder / "calls")
    make_table = blockbuster.steps.make_table

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InterruptedError("stopped")

    monkeypatch.setattr(blockbuster.steps, "make_table", refuse)
    with pytest.raises(InterruptedError):
        blockbuster.tile_process(folder / "image.zarr", recording, write_to=folder / "labels.zarr")
    monkeypatch.setattr(blockbuster.steps, "make_table", make_table)
    labels = blockbuster.tile_process(folder / "image.zarr", recording, write_to=folder / "labels.zarr", resume=True)
    assert recording.n_calls == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert is_clean(folder)


def hold_the_gil(block: NDArray[Any]) -> NDArray[Any]:
    """Stop every thread of the process for 30 s: PyDLL keeps the GIL during its calls."""
    if (block == 77).any():
        ctypes.PyDLL(None).sleep(30)
    return components(block)


@pytest.mark.slow
def test_a_function_that_holds_the_gil_for_long_loses_no_work(
    client: Client, folder: Path, image: NDArray[Any]
) -> None:
    recording = Recording(folder / "calls", hold_the_gil)
    labels = blockbuster.tile_process(folder / "image.zarr", recording, compute=True)
    assert recording.n_calls == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert is_clean(folder)
