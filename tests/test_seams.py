"""The seam index: exact counts on borders and controls, and what they say of merged, cut and chained labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dask.array as da
import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import KDTree
from zarr.storage import MemoryStore

import blockbuster
from blockbuster.errors import GeometryError, ImageError, ParameterError, TileError
from blockbuster.grid import TileGrid
from blockbuster.seams import AxisSeams, Cuts, SeamIndex, grid_of_run, seam_index
from tests.helpers import CountingStore
from tests.strategies import label_images, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")


def cells(shape: tuple[int, ...], n: int, seed: int = 0) -> NDArray[np.int64]:
    """Cells that fill the space."""
    centres = np.random.default_rng(seed).uniform(0, shape, (n, len(shape)))
    nearest: NDArray[np.int64] = KDTree(centres).query(np.argwhere(np.ones(shape)))[1]
    return 1 + nearest.reshape(shape)


def ids(tile: NDArray[Any]) -> NDArray[Any]:
    """A segmenter that makes no mistakes: the ids mean nothing outside of the tile."""
    return 1 + np.unique(tile, return_inverse=True)[1].reshape(tile.shape)


def counts(index: SeamIndex) -> list[tuple[int, ...]]:
    """For each axis what is cut and what is there, on borders and on controls."""
    sides = [(one.borders, one.controls) for one in index.axes]
    return [(b.n_cut, b.n_pairs, c.n_cut, c.n_pairs) for b, c in sides]


def counted(labels: NDArray[Any], tile_shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The same, from the whole array."""
    n, step = labels.shape[axis], tile_shape[axis]
    starts = range(0, n, step)
    middles = [(a + min(a + step, n)) // 2 for a in starts if min(a + step, n) - a >= 4]
    found = []
    for cuts in (list(starts)[1:], middles):
        near = np.take(labels, [cut - 1 for cut in cuts], axis)
        far = np.take(labels, cuts, axis)
        both = (near != 0) & (far != 0)
        found += [np.count_nonzero(both & (near != far)), np.count_nonzero(both)]
    return tuple(found)


# Counts


@synchronous
def test_rates_of_a_small_array_are_those_counted_by_hand() -> None:
    labels = np.array(
        [
            [1, 1, 1, 1, 2, 2, 2, 2],
            [1, 1, 3, 3, 3, 3, 2, 2],
            [4, 4, 0, 0, 5, 5, 5, 6],
            [4, 4, 4, 4, 5, 5, 0, 6],
        ]
    )
    (across,) = seam_index(labels, (4, 4), axes=[1]).axes
    # The border is between columns 3 and 4; the controls are between 1 and 2, and between 5 and 6.
    assert (across.borders.n_cut, across.borders.n_pairs, across.borders.n_faces) == (2, 3, 1)
    assert (across.controls.n_cut, across.controls.n_pairs, across.controls.n_faces) == (2, 6, 2)
    assert across.borders.rate == pytest.approx(2 / 3)
    assert across.index == pytest.approx((2 / 3) / (2 / 6))


@synchronous
@hypothesis.given(st.data())
def test_counts_are_those_of_the_whole_array(data: st.DataObject) -> None:
    labels = data.draw(label_images(data.draw(shapes(max_ndim=3))))
    tile_shape = data.draw(tile_shapes(labels.shape))
    index = seam_index(labels, tile_shape)
    assert counts(index) == [counted(labels, tile_shape, axis) for axis in range(labels.ndim)]


@synchronous
def test_axes_in_another_order_give_the_same() -> None:
    labels = np.random.default_rng(1).integers(0, 4, (12, 30, 21))
    tile_shape, order = (6, 10, 7), (2, 0, 1)
    there = seam_index(labels, tile_shape)
    turned = seam_index(labels.transpose(order), tuple(tile_shape[axis] for axis in order))
    assert counts(turned) == [counts(there)[axis] for axis in order]
    assert turned.index == pytest.approx(there.index)
    assert turned.interval == pytest.approx(there.interval)


@synchronous
def test_every_kind_of_labels_gives_the_same(tmp_path: Path) -> None:
    labels = cells((60, 70), 40)
    stored = zarr.create_array(tmp_path / "labels.zarr", data=labels, chunks=(16, 20))
    kinds = [labels, stored, str(tmp_path / "labels.zarr"), da.from_array(labels, chunks=(13, 70)) + 0]
    expected = [counted(labels, (20, 20), axis) for axis in (0, 1)]
    assert [counts(seam_index(kind, (20, 20))) for kind in kinds] == [expected] * len(kinds)


def test_every_scheduler_gives_the_same(many: str, tmp_path: Path) -> None:
    labels = cells((60, 70), 40)
    zarr.create_array(tmp_path / "labels.zarr", data=labels, chunks=(16, 20))
    expected = [counted(labels, (20, 20), axis) for axis in (0, 1)]
    assert counts(seam_index(tmp_path / "labels.zarr", (20, 20))) == expected


@synchronous
def test_labels_of_many_ids_and_of_every_integer_dtype_are_told_apart() -> None:
    for dtype in ("uint8", "int16", "int64", "uint64"):
        top = np.iinfo(dtype).max
        labels = np.full((8, 8), top, dtype)
        labels[4:] = top - 1
        assert counts(seam_index(labels, (4, 4)))[0] == (8, 8, 0, 16)


# What it says


@synchronous
def test_labels_of_the_whole_image_have_no_seam() -> None:
    verdicts, holding = [], 0
    for seed in range(20):
        index = seam_index(cells((240, 240), 200, seed), (40, 40))
        low, high = index.interval
        holding += low <= 1 <= high
        verdicts.append(index.verdict)
    assert holding >= 18
    assert verdicts.count("no visible seam") >= 18


@synchronous
def test_unmerged_tiles_are_cut_chained_ones_are_over_merged_and_iou_leaves_no_seam() -> None:
    tissue = cells((300, 300), 250)
    found = {}
    for merge in (None, "touching", "iou"):
        labels = blockbuster.tile_process(tissue, ids, tile_shape=(50, 50), overlap=20, merge=merge, compute=True)
        found[merge] = seam_index(labels, (50, 50))
    assert [found[merge].verdict for merge in found] == ["cut", "over-merged", "no visible seam"]
    assert all(axis.borders.rate == 1 for axis in found[None].axes)
    assert found[None].index > 10
    assert found["touching"].index == 0
    assert found["iou"].index == seam_index(tissue, (50, 50)).index
    assert str(found["touching"]).endswith(": over-merged")


@synchronous
def test_interval_holds_the_index_where_it_is_zero_or_infinite() -> None:
    tissue = cells((240, 240), 200)
    chained = tissue.copy()
    chained[39:241:40] = chained[40:240:40] = 999
    (rows,) = seam_index(chained, (40, 40), axes=[0]).axes
    assert rows.index == rows.interval[0] == 0 < rows.interval[1] < 0.3
    stripes = 1 + np.repeat(np.arange(6), 40)[:, np.newaxis] * np.ones((240, 240), int)
    (rows,) = seam_index(stripes, (40, 40), axes=[0]).axes
    assert (rows.index, rows.interval[1], rows.verdict) == (math.inf, math.inf, "cut")
    assert rows.interval[0] > 1


@synchronous
@pytest.mark.parametrize(
    ("labels", "tile_shape", "verdict"),
    [
        (np.zeros((64, 64), int), (16, 16), "nothing to compare"),
        (np.ones((64, 64), int), (64, 64), "nothing to compare"),
        (np.ones((64, 64), int), (1, 1), "nothing to compare"),
        (np.ones((64, 64), int), (16, 16), "nothing touches"),
        (cells((40, 40), 20), (20, 20), "too few"),
    ],
    ids=["empty", "one tile", "thin tiles", "one object", "four tiles"],
)
def test_verdict_says_when_nothing_can_be_said(labels: Any, tile_shape: tuple[int, ...], verdict: str) -> None:
    assert seam_index(labels, tile_shape).verdict == verdict


def test_index_of_several_axes_compares_each_with_its_own_controls() -> None:
    flat = Cuts(5, 100, 10, 4.0)
    # Axes on which objects are thin are cut more often everywhere, and weigh as their borders do.
    steep = Cuts(400, 1000, 10, 100.0)
    both = SeamIndex(tuple(map(AxisSeams, (0, 1), (flat, steep), (flat, steep))))
    assert both.index == 1
    only_borders = AxisSeams(2, Cuts(50, 50, 10, 0.0), Cuts.of([]))
    assert SeamIndex((*both.axes, only_borders)).index == 1
    assert math.isnan(only_borders.index)


@pytest.mark.parametrize(
    ("borders", "verdict"),
    [
        (Cuts(100, 2000, 50, 120.0), "no visible seam"),
        (Cuts(180, 2000, 50, 200.0), "cut"),
        (Cuts(45, 2000, 50, 60.0), "over-merged"),
        (Cuts(60, 2000, 50, 600.0), "not cut"),
        (Cuts(100, 2000, 50, 4000.0), "too few"),
        (Cuts(2000, 2000, 5, 0.0), "too few"),
        (Cuts(0, 2000, 50, 0.0), "over-merged"),
        (Cuts(0, 140, 50, 0.0), "not cut"),
        (Cuts(0, 20, 50, 0.0), "too few"),
    ],
)
def test_verdict_is_as_sure_as_the_counts_are(borders: Cuts, verdict: str) -> None:
    controls = Cuts(100, 2000, 50, 120.0)
    assert AxisSeams(0, borders, controls).verdict == verdict


# What is read


@synchronous
def test_only_chunks_beside_the_chosen_planes_are_read() -> None:
    store = CountingStore(MemoryStore())
    labels = zarr.create_array(store, data=cells((64, 64), 30), chunks=(4, 64))
    store.read.clear()
    seam_index(labels, (32, 32), axes=[0])
    # Both sides of row 32 for each of two columns of tiles; rows 16 and 48, where chunks meet as well.
    assert sorted(store.read) == sorted(2 * [f"c/{row}/0" for row in (7, 8, 3, 4, 11, 12)])


@synchronous
def test_huge_grids_are_sampled_and_always_at_the_same_faces() -> None:
    store = CountingStore(MemoryStore())
    labels = zarr.create_array(store, shape=(4000, 4000), chunks=(20, 20), dtype="int32", fill_value=1)
    first = seam_index(labels, max_faces=32)
    assert [(a.borders.n_faces, a.controls.n_faces) for a in first.axes] == [(32, 32)] * 2
    # Two chunks at each border, one in the middle of each tile.
    assert len(store.read) == 2 * 32 * (2 + 1)
    again = list(store.read)
    store.read.clear()
    assert seam_index(labels, max_faces=32) == first
    assert store.read == again
    rows = {int(key.split("/")[1]) for key in again}
    assert len(rows) > 40


# The tiles


@synchronous
def test_tiles_are_those_in_which_a_run_made_the_labels() -> None:
    labels, told = cells((40, 60), 20), {"tiles": "((40, 60), (20, 30))", "overlap": "(4, 4)"}

    def stored(**kept: Any) -> Any:
        return zarr.create_array({}, data=labels, chunks=(10, 10), attributes={"blockbuster": kept})

    by_tiles, by_chunks = seam_index(labels, (20, 30)), seam_index(labels, (10, 10))
    assert seam_index(stored(operation="tile_process", manifest=told)) == by_tiles
    # Who copies labels writes in tiles of its own.
    assert seam_index(stored(operation="write_labels", manifest=told)) == by_chunks
    assert seam_index(stored()) == by_chunks


@synchronous
def test_labels_that_were_just_made_need_no_tile_shape(tmp_path: Path) -> None:
    blockbuster.tile_process(cells((60, 80), 40), ids, tile_shape=(30, 40), merge=None, write_to=tmp_path / "l.zarr")
    assert seam_index(tmp_path / "l.zarr" / "labels") == seam_index(tmp_path / "l.zarr" / "labels", (30, 40))
    assert seam_index(tmp_path / "l.zarr" / "labels").axes[0].borders.rate == 1


@pytest.mark.parametrize(
    ("manifest", "grid"),
    [
        (
            {"tiles": "((100, 90), (32, 32))", "overlap": "(8, 8)"},
            TileGrid.regular((100, 90), (32, 32), (8, 8)),
        ),
        ({"tiles": "((0, 10, 100), (0, 90))", "overlap": "(0, 0)"}, TileGrid.from_chunks(((10, 90), (90,)))),
        ({"tiles": "(((0, 50, 100), (0, 90)), 'uint8')"}, TileGrid.from_chunks(((50, 50), (90,)))),
        ({"tiles of 0": "(((0, 50, 100), (0, 90)), 'uint8')"}, TileGrid.from_chunks(((50, 50), (90,)))),
        ({"tiles of 1": "(((0, 50, 100), (0, 90)), 'uint8')"}, None),
        ({"tiles": "((100, 91), (32, 32))"}, None),
        ({"tiles": "some"}, None),
        ({"tiles": "7"}, None),
        ({}, None),
    ],
)
def test_grid_of_a_run_is_read_from_what_is_kept(manifest: dict[str, str], grid: TileGrid | None) -> None:
    assert grid_of_run({"manifest": manifest}, (100, 90)) == grid


@synchronous
def test_borders_in_time_are_none(tmp_path: Path) -> None:
    labels = np.stack([cells((40, 40), 20, seed) for seed in range(3)])
    blockbuster.write_image(labels.astype("uint16"), tmp_path / "t.ome.zarr", axes="tyx", n_levels=1)
    assert [one.axis for one in seam_index(tmp_path / "t.ome.zarr", (1, 20, 20)).axes] == [1, 2]
    assert [one.axis for one in seam_index(labels, (1, 20, 20)).axes] == [0, 1, 2]


# Errors


@synchronous
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"tile_shape": (4, 4, 4)}, GeometryError, "tile_shape"),
        ({"axes": [2]}, GeometryError, r"axes \(2,\) are not different axes 0..1"),
        ({"axes": [0, 0]}, GeometryError, "different"),
        ({"max_faces": 0}, ParameterError, "max_faces 0"),
        ({"max_faces": 2.5}, ParameterError, "max_faces 2.5"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        seam_index(np.ones((8, 8), int), **options)


def test_what_is_no_label_image_is_refused() -> None:
    with pytest.raises(ImageError, match="dtype float64"):
        seam_index(np.ones((8, 8)), (4, 4))


@synchronous
def test_a_chunk_that_cannot_be_read_tells_its_tile(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "labels.zarr", data=np.ones((8, 8), int), chunks=(4, 4), shards=None)
    (tmp_path / "labels.zarr" / "c" / "1" / "1").write_bytes(b"none of these bytes are a chunk")
    with pytest.raises(TileError, match=r"region \[.*4:8\]: reading the labels"):
        seam_index(tmp_path / "labels.zarr", (4, 4))
