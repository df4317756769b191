"""Graphs: one task per tile and step, in an order that the graph alone enforces."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster.graph import (
    Blocks,
    RunGraph,
    Steps,
    array_of,
    compute_arrays,
    compute_value,
    map_tiles,
    renumbered_blocks,
    run_graph,
    scalar_of,
)
from blockbuster.grid import Tile, TileGrid, forward_offsets
from tests.helpers import nothing_computed
from tests.oracles import random_order
from tests.strategies import chunkings, overlaps, shapes, tile_shapes


@dataclass
class Log:
    """Steps that note what ran and what they were given."""

    grid: TileGrid
    events: list[tuple[str, Any]] = field(default_factory=list)
    blocks: dict[int, list[NDArray[Any]]] = field(default_factory=dict)

    def steps(self, sampled: Sequence[int] = ()) -> Steps:
        return Steps(
            begin=self.begin,
            sample=self.sample,
            sampled=sampled,
            stage=self.stage,
            scan=self.scan,
            unite=self.unite,
            finish=self.finish,
        )

    def begin(self, samples: list[int]) -> str:
        self.events.append(("begin", samples))
        return "run"

    def sample(self, tile: Tile, *blocks: NDArray[Any]) -> int:
        self.events.append(("sample", tile.block_id))
        self.blocks[tile.block_id] = list(blocks)
        return tile.block_id

    def stage(self, run: str, block_id: int, *blocks: NDArray[Any]) -> None:
        assert run == "run"
        self.events.append(("stage", block_id))
        self.blocks[block_id] = list(blocks)

    def scan(self, run: str, block_ids: tuple[int, ...], staged: list[None]) -> int:
        self.events.append(("scan", block_ids))
        return sum(block_ids)

    def unite(self, run: str, parts: list[int]) -> int:
        self.events.append(("unite", None))
        return sum(parts)

    def finish(self, run: str, number: int) -> NDArray[Any]:
        self.events.append(("finish", number))
        return np.full(self.grid.tile(number).shape, number)

    def of(self, step: str) -> list[Any]:
        return [value for name, value in self.events if name == step]

    def order(self) -> list[str]:
        return [name for name, _ in self.events]


def _neighbours(grid: TileGrid) -> Callable[[int], list[int]]:
    offsets = forward_offsets(grid.ndim, range(grid.ndim), grid.ndim)
    return lambda block_id: [seam.second for seam in grid.seams(block_id, offsets)]


def _graph(
    log: Log,
    block_ids: Sequence[int] | None = None,
    images: Sequence[Any] = (None,),
    *,
    sampled: Sequence[int] = (),
    resources: dict[str, float] | None = None,
) -> RunGraph:
    tiles = range(log.grid.n_tiles) if block_ids is None else block_ids
    return run_graph(log.steps(sampled), log.grid, tiles, _neighbours(log.grid), images, resources=resources)


GRID = TileGrid.regular((30, 50), (3, 5))


@pytest.mark.parametrize("seed", range(5))
def test_each_step_follows_what_it_needs_in_any_order_of_tasks(seed: int) -> None:
    log = Log(GRID)
    graph = _graph(log)
    with dask.config.set(scheduler=random_order(seed)):
        total = compute_value(graph, range(GRID.n_tiles))
    assert total == sum(range(100))
    order = log.order()
    assert order[0] == "begin"
    assert order.index("unite") > max(i for i, name in enumerate(order) if name == "scan")
    assert order.index("unite") < order.index("finish")
    staged: set[int] = set()
    for name, value in log.events:
        if name == "stage":
            staged.add(value)
        if name == "scan":
            needed = {n for block_id in value for n in (block_id, *_neighbours(GRID)(block_id))}
            assert needed <= staged


def test_every_task_runs_once(synchronous: None) -> None:
    log = Log(GRID)
    labels = array_of(_graph(log), GRID, range(100), np.dtype(int))
    labels.compute()
    assert sorted(log.of("stage")) == sorted(log.of("finish")) == list(range(100))
    assert sorted(itertools.chain.from_iterable(log.of("scan"))) == list(range(100))
    assert len(log.of("begin")) == len(log.of("unite")) == 1


@pytest.mark.parametrize(("n", "most_scans"), [(1, 1), (2, 2), (100, 100), (4096, 64), (10_000, 160)])
def test_there_are_two_tasks_per_tile_and_few_scans(n: int, most_scans: int) -> None:
    grid = TileGrid.regular((3, 5 * n), (3, 5))
    graph = _graph(Log(grid))
    labels = array_of(graph, grid, range(n), np.dtype(int))
    scans = len(graph.layers[graph.key("scan")])
    assert 1 <= scans <= most_scans
    assert len(labels.dask) == 2 * n + 2 + scans  # stage and finish; begin and unite


def test_array_has_the_blocks_of_the_tiles(synchronous: None) -> None:
    log = Log(GRID)
    labels = array_of(_graph(log), GRID, range(100), np.dtype(int))
    expected = np.arange(100).reshape(10, 10).repeat(3, axis=0).repeat(5, axis=1)
    assert labels.chunks == GRID.chunks
    assert (labels.compute() == expected).all()


def test_tiles_that_are_not_wanted_are_0_and_never_run(synchronous: None) -> None:
    log = Log(GRID)
    labels = array_of(_graph(log, [3, 4]), GRID, [3, 4], np.dtype(np.uint8))
    result = labels.compute()
    assert set(np.unique(result)) == {0, 3, 4}
    assert sorted(log.of("stage")) == sorted(log.of("finish")) == [3, 4]


def test_one_block_of_the_result_stages_all_and_finishes_one(synchronous: None) -> None:
    log = Log(GRID)
    labels = array_of(_graph(log), GRID, range(100), np.dtype(int))
    assert (labels.blocks[2, 3].compute() == 23).all()
    assert len(log.of("stage")) == 100
    assert log.of("finish") == [23]


def test_array_and_count_share_one_run(synchronous: None) -> None:
    log = Log(GRID)
    graph = _graph(log)
    labels, total = compute_arrays(array_of(graph, GRID, range(100), np.dtype(int)), scalar_of(graph, lambda n: 2 * n))
    assert int(total) == 2 * sum(range(100))
    assert labels.shape == GRID.shape
    assert len(log.of("stage")) == 100


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_come_before_all_else(seed: int) -> None:
    log = Log(GRID)
    image = np.arange(1500).reshape(30, 50)
    graph = _graph(log, images=[da.from_array(image, chunks=7)], sampled=[5, 80])
    with dask.config.set(scheduler=random_order(seed)):
        compute_value(graph, [])
    assert sorted(log.order()[:2]) == ["sample", "sample"]
    assert log.events[2] == ("begin", [5, 80])
    for block_id in (5, 80):
        assert (log.blocks[block_id][0] == image[GRID.tile(block_id).padded]).all()


def test_an_image_without_voxels_has_no_tiles_to_run(synchronous: None) -> None:
    grid = TileGrid.regular((0, 5), (2, 2))
    log = Log(grid)
    graph = _graph(log)
    assert array_of(graph, grid, [], np.dtype(int)).compute().shape == (0, 5)
    assert log.events == []
    assert compute_value(graph, []) == 0
    assert log.order() == ["begin", "unite"]


def test_staging_alone_takes_the_resources() -> None:
    graph = _graph(Log(GRID), resources={"GPU": 1.0})
    labels = array_of(graph, GRID, range(100), np.dtype(int))
    annotated = {name: layer.annotations for name, layer in labels.dask.layers.items() if layer.annotations}
    assert annotated == {graph.key("stage"): {"resources": {"GPU": 1.0}}}


def test_what_is_common_to_all_tasks_is_carried_by_one_of_them() -> None:
    steps = dataclasses.replace(Log(GRID).steps(), begin=_Heavy(), stage=print, scan=print, unite=print, finish=print)
    graph = run_graph(steps, GRID, range(100), _neighbours(GRID), [None], resources=None)
    labels = array_of(graph, GRID, range(100), np.dtype(int))
    sizes = sorted(len(pickle.dumps(task)) for task in dict(labels.dask).values())
    assert sizes[-1] > 100_000
    assert sizes[-2] < 10_000


class _Heavy:
    def __init__(self) -> None:
        self.payload = bytes(100_000)

    def __call__(self, _samples: list[Any]) -> None: ...


# What the tasks are given


@pytest.mark.parametrize("seed", [0, 1])
@given(data=st.data())
def test_tasks_are_given_the_padded_regions_of_dask_arrays(seed: int, data: st.DataObject) -> None:
    """However chunks and tiles lie to each other."""
    shape = data.draw(shapes(max_ndim=3))
    image = np.arange(np.prod(shape)).reshape(shape)
    lazy = da.from_array(image, chunks=data.draw(chunkings(shape)))
    log = Log(TileGrid.regular(shape, data.draw(tile_shapes(shape)), data.draw(overlaps(shape))))
    graph = _graph(log, images=[lazy])
    with dask.config.set(scheduler=random_order(seed)):
        compute_value(graph, [])
    for tile in log.grid.tiles():
        (block,) = log.blocks[tile.block_id]
        assert (block == image[tile.padded]).all()
        assert block.shape == tile.padded_shape


def test_tasks_are_given_images_and_masks_of_different_kinds(synchronous: None) -> None:
    image, mask = np.arange(1500).reshape(30, 50), np.arange(1500).reshape(30, 50) % 2
    log = Log(TileGrid.regular((30, 50), (7, 8), 2))
    compute_value(_graph(log, images=[da.from_array(image, chunks=(9, 50)), mask]), [])
    for tile in log.grid.tiles():
        given_image, given_mask = log.blocks[tile.block_id]
        assert (given_image == image[tile.padded]).all()
        assert (given_mask == mask[tile.padded]).all()


def test_blocks_that_are_padded_tiles_are_given_as_they_are(synchronous: None) -> None:
    image = np.arange(64).reshape(8, 8)
    padded = da.overlap.overlap(da.from_array(image, chunks=(4, 4)), depth=1, boundary="none")
    log = Log(TileGrid.regular((8, 8), (4, 4), 1))
    compute_value(_graph(log, images=[Blocks(padded)]), [])
    for tile in log.grid.tiles():
        assert (log.blocks[tile.block_id][0] == image[tile.padded]).all()


def test_each_block_of_a_dask_array_is_computed_once(synchronous: None) -> None:
    calls: list[Any] = []

    def noted(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        calls.append(block_info[0]["chunk-location"])
        return block

    lazy = da.zeros((30, 50), chunks=(11, 13)).map_blocks(noted, dtype=float, meta=np.empty((0, 0)))
    log = Log(TileGrid.regular((30, 50), (7, 8), 3))
    compute_value(_graph(log, images=[lazy]), [])
    assert sorted(calls) == list(itertools.product(range(3), range(4)))


def test_a_part_of_a_block_that_several_tiles_need_is_cut_once() -> None:
    # Tile 0 and tile 1 both read voxels 6..9, the end of the first block.
    lazy = da.from_array(np.arange(20), chunks=10)
    log = Log(TileGrid.regular((20,), (10,), 4))
    graph = _graph(log, images=[lazy])
    parts = [key for layer in graph.layers.values() for key in layer if str(key[0]).startswith("pieces")]
    assert len(parts) == len(set(parts)) == 2


def test_dask_arrays_with_tiles_as_chunks_add_no_tasks_but_their_own() -> None:
    lazy = da.zeros((30, 50), chunks=(3, 5))
    graph = _graph(Log(GRID), images=[lazy])
    labels = array_of(graph, GRID, range(100), np.dtype(int))
    scans = len(graph.layers[graph.key("scan")])
    assert len(labels.dask) == len(lazy.dask) + 2 * 100 + 2 + scans


# Other graphs


def _sum_of(tile: Tile, block: NDArray[Any] | None) -> tuple[int, int]:
    return tile.block_id, -1 if block is None else int(block.sum())


@pytest.mark.parametrize("kind", ["numpy", "dask", "stored"])
def test_map_tiles_gives_one_value_per_tile_in_order(kind: str, synchronous: None) -> None:
    image = np.arange(1500).reshape(30, 50)
    grid = TileGrid.regular((30, 50), (8, 9), 1)
    given_image = {"numpy": image, "dask": da.from_array(image, chunks=7), "stored": None}[kind]
    sums = [-1 if kind == "stored" else int(image[tile.padded].sum()) for tile in grid.tiles()]
    assert map_tiles(_sum_of, grid, range(grid.n_tiles), given_image) == list(enumerate(sums))
    assert map_tiles(_sum_of, grid, [3, 1], given_image) == [(3, sums[3]), (1, sums[1])]


def _own_ids(block: NDArray[Any]) -> set[int]:
    return set(np.unique(block).tolist())


def _told(found: list[set[int]]) -> list[list[int]]:
    order = sorted(set().union(*found))
    return [order for _ in found]


def _rank(block: NDArray[Any], told: list[int]) -> NDArray[Any]:
    return np.searchsorted(told, block)


def test_blocks_are_renumbered_by_what_all_of_them_tell(scheduler: str) -> None:
    image = np.array([[0, 70, 70, 9], [9, 0, 5, 5]])
    first, second = (da.from_array(image, chunks=(1, 2), name=name) for name in ("first", "second"))
    with nothing_computed():
        renumbered = renumbered_blocks(first, second, _own_ids, _told, _rank)
    assert renumbered.chunks == second.chunks
    assert renumbered.compute().tolist() == [[0, 3, 3, 2], [2, 0, 1, 1]]
