"""Tiles in batches: as many tasks as a scheduler bears, and all else as with a task for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import scipy.ndimage
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import TileError, graph
from blockbuster.graph import Pass, PassesGraph, batch_size, map_tiles
from blockbuster.grid import Tile, TileGrid
from tests.helpers import Recording, components, leftovers
from tests.oracles import random_order

MOST = 7
TILE = 8
SIDE = 64
N_TILES = (SIDE // TILE) ** 2


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a scheduler bore seven tasks of a step."""
    monkeypatch.setattr(graph, "_MOST_TASKS", MOST)
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def image() -> NDArray[Any]:
    image = (np.random.default_rng(5).random((SIDE, SIDE)) < 0.55).astype(np.uint8)
    image[20, 20] = 77
    return image


@pytest.fixture
def path(image: NDArray[Any], tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    return folder / "image.zarr"


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    (tmp_path / "calls").mkdir()
    return Recording(tmp_path / "calls", components)


@pytest.mark.parametrize(("n", "size"), [(0, 1), (1, 1), (7, 1), (8, 2), (64, 10), (70, 10), (71, 11)])
def test_a_step_has_no_more_tasks_than_a_scheduler_bears(n: int, size: int) -> None:
    assert batch_size(range(n)) == size
    assert -(-n // size) <= MOST


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_the_same_and_each_tile_is_worked_on_once(
    seed: int, path: Path, image: NDArray[Any], recording: Recording
) -> None:
    with dask.config.set(scheduler=random_order(seed)):
        labels = blockbuster.label(path, write_to=path.parent / "labels.zarr", tile_shape=(TILE, TILE))
        blockbuster.tile_process(path, recording, write_to=path.parent / "made.zarr", tile_shape=(TILE, TILE))
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(image)[0])
    assert recording.n_calls == N_TILES
    assert leftovers(path.parent) == []


def test_chosen_tiles_alone_are_worked_on(path: Path, image: NDArray[Any], recording: Recording) -> None:
    chosen = [1, 2, 3, 9, 10, 11, 17, 40, 41, 42, 43, 60, 63]
    labels = blockbuster.tile_process(path, recording, tile_shape=(TILE, TILE), block_ids=chosen, compute=True)
    grid = TileGrid.regular((SIDE, SIDE), (TILE, TILE))
    wanted = np.zeros_like(image)
    for tile in map(grid.tile, chosen):
        wanted[tile.core] = image[tile.core]
    assert recording.n_calls == len(chosen)
    np.testing.assert_array_equal(labels > 0, wanted > 0)


def _fail_on_marked(block: NDArray[Any]) -> NDArray[Any]:
    if (block == 77).any():
        raise KeyError("no such model")
    return components(block)


def test_a_failing_tile_costs_nobody_else_of_its_batch(path: Path, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls", _fail_on_marked)
    with pytest.raises(TileError, match=r"Tile \(2, 2\).*no such model") as caught:
        blockbuster.tile_process(path, recording, write_to=path.parent / "labels.zarr", tile_shape=(TILE, TILE))
    assert f"{N_TILES - 1} finished tiles are kept" in "".join(caught.value.__notes__)
    n_before = recording.n_calls
    with pytest.raises(TileError):
        blockbuster.tile_process(
            path, recording, write_to=path.parent / "labels.zarr", tile_shape=(TILE, TILE), resume=True
        )
    assert recording.n_calls == n_before + 1


def test_progress_counts_tiles(path: Path) -> None:
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"tile_shape": (TILE, TILE), "progress": lambda now: told.append((now.done, now.total))}
    blockbuster.label(path, write_to=path.parent / "labels.zarr", **options)
    assert told[-1] == (2 * N_TILES, 2 * N_TILES)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    blockbuster.copy(path, write_to=path.parent / "copy.zarr", **options)
    assert told[-1] == (N_TILES, N_TILES)


def _number(tile: Tile) -> int:
    return tile.block_id


@pytest.mark.parametrize("seed", range(3))
def test_passes_wait_for_the_batches_that_they_need(seed: int) -> None:
    fine, coarse = TileGrid.regular((64,), (2,)), TileGrid.regular((32,), (2,))
    done: list[str] = []

    def first(tile: Tile) -> int:
        done.append(f"first {tile.block_id}")
        return tile.block_id

    def second(tile: Tile) -> int:
        assert {f"first {2 * tile.block_id}", f"first {2 * tile.block_id + 1}"} <= set(done)
        return -tile.block_id

    passes = PassesGraph(
        [
            Pass(first, fine, range(32)),
            Pass(second, coarse, range(16), needs=lambda tile: [2 * tile.block_id, 2 * tile.block_id + 1]),
        ]
    )
    with dask.config.set(scheduler=random_order(seed)):
        assert passes.compute() == [*range(32), *(-n for n in range(16))]
    assert set(passes.batches.values()) == {5, 3}


def test_values_come_in_the_order_asked_for() -> None:
    grid = TileGrid.regular((40,), (1,))
    numbers = [int(n) for n in np.random.default_rng(0).permutation(40)]
    assert map_tiles(lambda tile, _: _number(tile), grid, numbers, None) == numbers


def test_pyramids_are_the_same(path: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"axes": "yx", "chunks": (TILE, TILE), "n_levels": 4}
    blockbuster.write_image(path, path.parent / "batched.zarr", **options)
    monkeypatch.undo()
    with dask.config.set(scheduler="synchronous"):
        blockbuster.write_image(path, path.parent / "single.zarr", **options)
    for level in map(str, range(4)):
        one, other = (zarr.open_array(path.parent / f"{name}.zarr", path=level)[:] for name in ("batched", "single"))
        np.testing.assert_array_equal(one, other)
