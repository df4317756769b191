"""The geometry of tiles, against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockbuster import GeometryError
from blockbuster.grid import TileGrid, forward_offsets, per_axis, region_shape
from tests.strategies import chunkings, overlaps, shapes, tile_shapes


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    shape = draw(shapes(max_ndim=4))
    if draw(st.booleans()):
        return TileGrid.from_chunks(draw(chunkings(shape)), draw(overlaps(shape)))
    return TileGrid.regular(shape, draw(tile_shapes(shape)), draw(overlaps(shape)))


@given(grids())
def test_cores_cover_every_voxel_once(grid: TileGrid) -> None:
    owners = np.zeros(grid.shape, int)
    for tile in grid.tiles():
        owners[tile.core] += 1
        assert min(tile.shape) > 0
    assert (owners == 1).all()


@given(grids())
def test_padded_tile_is_the_core_and_its_halo_within_the_image(grid: TileGrid) -> None:
    for tile in grid.tiles():
        for core, padded, o, n in zip(tile.core, tile.padded, grid.overlap, grid.shape, strict=True):
            assert (padded.start, padded.stop) == (max(core.start - o, 0), min(core.stop + o, n))
        voxels = np.arange(math.prod(grid.shape)).reshape(grid.shape)
        assert (voxels[tile.padded][tile.trim] == voxels[tile.core]).all()
        assert (region_shape(tile.padded), region_shape(tile.core)) == (tile.padded_shape, tile.shape)


@given(grids())
def test_tiles_are_numbered_in_row_major_order(grid: TileGrid) -> None:
    indices = list(itertools.product(*map(range, grid.numblocks)))
    assert [tile.index for tile in grid.tiles()] == indices
    assert [grid.block_id(index) for index in indices] == list(range(grid.n_tiles))


@given(grids())
def test_chunks_are_the_extents_of_the_tiles(grid: TileGrid) -> None:
    for tile in grid.tiles():
        assert tile.shape == tuple(c[i] for c, i in zip(grid.chunks, tile.index, strict=True))
    assert grid.tile_shape == tuple(map(max, grid.chunks))


@given(grids(), st.data())
def test_seams_are_all_pairs_of_neighbours_once(grid: TileGrid, data: st.DataObject) -> None:
    connectivity = data.draw(st.integers(1, grid.ndim))
    axes = data.draw(st.sets(st.integers(0, grid.ndim - 1)))
    offsets = forward_offsets(grid.ndim, tuple(axes), connectivity)
    seams = [seam for tile in grid.tiles() for seam in grid.seams(tile.block_id, offsets)]
    found = [frozenset((seam.first, seam.second)) for seam in seams]
    expected = {
        frozenset((a.block_id, b.block_id))
        for a, b in itertools.combinations(grid.tiles(), 2)
        if _are_neighbours(a.index, b.index, axes, connectivity)
    }
    assert len(found) == len(set(found))
    assert set(found) == expected
    for seam in seams:
        first, second = grid.tile(seam.first), grid.tile(seam.second)
        assert seam.offset == tuple(np.subtract(second.index, first.index))
        assert seam.axes == tuple(np.flatnonzero(seam.offset))


def _are_neighbours(a: tuple[int, ...], b: tuple[int, ...], axes: set[int], connectivity: int) -> bool:
    steps = np.abs(np.subtract(a, b))
    return steps.max() == 1 and steps.sum() <= connectivity and set(np.flatnonzero(steps).tolist()) <= axes


@given(grids(), st.data())
def test_overlapping_finds_the_tiles_that_share_voxels_with_a_part(grid: TileGrid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True))
    owner = np.empty(grid.shape, int)
    for tile in grid.tiles():
        owner[tile.core] = tile.block_id
    inside = np.unique(owner[tuple(map(slice, start, stop))])
    assert [tile.block_id for tile in grid.overlapping(start, stop)] == inside.tolist()


@given(grids())
def test_amplification_is_voxels_read_per_voxel(grid: TileGrid) -> None:
    read = sum(math.prod(tile.padded_shape) for tile in grid.tiles())
    assert grid.amplification == pytest.approx(read / math.prod(grid.shape))


@given(grids())
def test_grid_is_regular_iff_a_tile_shape_makes_it(grid: TileGrid) -> None:
    remade = TileGrid.regular(grid.shape, tuple(axis[0] for axis in grid.chunks), grid.overlap)
    assert grid.is_regular == (remade == grid)


def test_last_tile_is_clipped_not_merged() -> None:
    assert TileGrid.regular((205,), (100,)).chunks == ((100, 100, 5),)


def test_int_overlap_is_0_on_axes_with_tiles_of_one_voxel() -> None:
    grid = TileGrid.regular((8, 64, 64), (1, 32, 32), 4)
    assert grid.overlap == (0, 4, 4)
    assert {tile.padded_shape for tile in grid.tiles()} == {(1, 36, 36)}
    assert TileGrid.from_chunks([(1, 1, 1), (4, 3)], 2).overlap == (0, 2)


def test_overlap_per_axis_is_taken_as_given() -> None:
    assert TileGrid.regular((8, 64), (1, 32), (2, 3)).overlap == (2, 3)


def test_overlap_may_exceed_the_tile_and_is_clipped_at_the_image() -> None:
    grid = TileGrid.regular((10,), (2,), (7,))
    assert [tile.padded_shape for tile in grid.tiles()] == [(9,), (10,), (10,), (10,), (9,)]


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
def test_an_empty_axis_has_no_tiles_and_one_chunk_of_0(shape: tuple[int, ...]) -> None:
    for grid in (TileGrid.regular(shape, (2,) * len(shape)), TileGrid.from_chunks([(n,) for n in shape])):
        assert grid.n_tiles == 0
        assert list(grid.tiles()) == []
        assert tuple(map(sum, grid.chunks)) == shape


def test_empty_chunks_make_no_tiles() -> None:
    assert TileGrid.from_chunks([(3, 0, 2)]).bounds == ((0, 3, 5),)


def test_grids_are_values() -> None:
    assert TileGrid.regular((10, 6), (4, 6)) == TileGrid.from_chunks([(4, 4, 2), (6,)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        TileGrid.regular((10,), (4,)).shape = (11,)  # type: ignore[misc]


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_forward_offsets_are_one_of_each_opposite_pair(ndim: int) -> None:
    offsets = forward_offsets(ndim, range(ndim), ndim)
    opposite = [tuple(-o for o in offset) for offset in offsets]
    assert len({*offsets, *opposite}) == 2 * len(offsets) == 3**ndim - 1


@pytest.mark.parametrize(
    ("tile_shape", "overlap", "words"),
    [
        ((4,), 0, "has 1 entries, the image has 2 axes"),
        ((4, 4, 4), 0, "has 3 entries, the image has 2 axes"),
        ((4, 0), 0, "below 1"),
        ((4, -1), 0, "below 1"),
        ((4, 1.5), 0, "is not an int"),
        ((4, True), 0, "is not an int"),
        ("44", 0, "is not an int"),
        ((4, 4), -1, "below 0"),
        ((4, 4), (1, -1), "below 0"),
        ((4, 4), (1,), "has 1 entries, the image has 2 axes"),
        ((4, 4), 1.0, "is not an int"),
        ((4, 4), None, "is not an int"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tile_shape: object, overlap: object, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        TileGrid.regular((8, 64), tile_shape, overlap)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [((0, 3),), ((1, 4),), ((0, 2, 2, 4),), ((0, 3, 2, 4),), ((0, 4), (0, 4))])
def test_bounds_that_do_not_ascend_to_the_extent_are_refused(bounds: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(GeometryError):
        TileGrid((4,), bounds, (0,))


@pytest.mark.parametrize("block_id", [-1, 4])
def test_a_block_id_outside_the_grid_is_refused(block_id: int) -> None:
    with pytest.raises(GeometryError, match="4 tiles"):
        TileGrid.regular((4, 4), (2, 2)).tile(block_id)


def test_per_axis_takes_numpy_ints() -> None:
    values = per_axis("overlap", np.array([1, 2], np.uint8), (5, 5), minimum=0)  # type: ignore[arg-type]
    assert values == (1, 2)
    assert {type(v) for v in values} == {int}
