"""Merge rules: which labels of neighbouring tiles become one object."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import (
    Contact,
    Overlapping,
    ParameterError,
    TileError,
    Touching,
    Where,
    merge_tile_labels,
    tile_process,
)
from tests.helpers import assert_same_objects, components
from tests.strategies import tile_shapes

pytestmark = pytest.mark.usefixtures("synchronous")


def identity(block: NDArray[Any]) -> NDArray[Any]:
    return block


def n_objects(labels: Any) -> int:
    ids = np.unique(np.asarray(labels))
    return int(np.count_nonzero(ids))


def half_of_both(i: Any, j: Any, n: NDArray[Any], a: NDArray[Any], b: NDArray[Any], axis: int) -> NDArray[np.bool_]:
    """`Contact` and `Overlapping` with their default, as a function."""
    return np.asarray(n / (a + b - n) > 0.5)


def every_pair(i: NDArray[Any], j: Any, n: Any, a: Any, b: Any, axis: int) -> NDArray[np.bool_]:
    return np.ones(i.shape, np.bool_)


def no_pair(i: NDArray[Any], j: Any, n: Any, a: Any, b: Any, axis: int) -> NDArray[np.bool_]:
    return np.zeros(i.shape, np.bool_)


# 64 squares


@pytest.fixture(scope="module")
def squares() -> NDArray[np.uint8]:
    """64 squares, the bar at the right makes one of them longer."""
    image = np.zeros((100, 100), np.uint8)
    for y in range(4, 100, 12):
        for x in range(4, 100, 12):
            image[y : y + 5, x : x + 5] = 1
    image[60:66, 88:97] = 1
    assert n_objects(components(image)) == 64
    return image


@pytest.mark.parametrize("tile", [48, 32, 50, 33, 17])
@pytest.mark.parametrize("overlap", [0, 2, 8, 16])
@pytest.mark.parametrize(
    "merge",
    ["touching", Touching(connectivity=2), "iou", "contact", half_of_both, every_pair],
    ids=["touching", "touching corners", "iou", "contact", "function", "every pair"],
)
def test_64_squares_are_64_objects(tile: int, overlap: int, merge: Any, squares: NDArray[Any]) -> None:
    if merge == "iou" and overlap == 0:
        with pytest.raises(ParameterError, match=r"overlap \(0, 0\) is 0 on every axis.*overlap >= 1"):
            tile_process(squares, components, tile_shape=(tile, tile), overlap=overlap, merge=merge)
        return
    labels = tile_process(squares, components, tile_shape=(tile, tile), overlap=overlap, merge=merge, compute=True)
    assert n_objects(labels) == 64
    assert_same_objects(labels, components(squares))


@pytest.mark.parametrize("tile", [48, 32, 50, 33, 17])
@pytest.mark.parametrize("overlap", [0, 2, 8, 16])
def test_squares_cut_by_borders_stay_cut_without_a_rule(tile: int, overlap: int, squares: NDArray[Any]) -> None:
    labels = tile_process(squares, components, tile_shape=(tile, tile), overlap=overlap, merge=None, compute=True)
    pieces = sum(
        n_objects(components(squares[y : y + tile, x : x + tile]))
        for y in range(0, 100, tile)
        for x in range(0, 100, tile)
    )
    assert n_objects(labels) == pieces >= 64
    nothing = tile_process(squares, components, tile_shape=(tile, tile), overlap=overlap, merge=no_pair, compute=True)
    np.testing.assert_array_equal(nothing, labels)


# Small arrangements with known answers


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("merge", "n"), [("iou", 2), ("touching", 1), ("contact", 1), (None, 2)])
def test_two_values_that_meet_at_a_border(ndim: int, merge: Any, n: int) -> None:
    image = np.zeros((6,) * ndim, np.uint8)
    image[(slice(1, 5),) * ndim] = 2
    image[(slice(1, 3), *(slice(1, 5),) * (ndim - 1))] = 1
    labels = tile_process(image, identity, tile_shape=(3,) * ndim, overlap=1, merge=merge, compute=True)
    if merge is None:
        # Each of the 2^n tiles holds one corner of the box.
        n = 2**ndim
    assert n_objects(labels) == n
    if merge == "iou":
        assert_same_objects(labels, image)


@pytest.mark.parametrize("merge", ["touching", "contact"])
def test_chunks_filled_with_different_values_are_one_object(merge: str) -> None:
    image = np.repeat([10, 20, 30], 16).reshape(3, 4, 4)
    labels = tile_process(image, identity, tile_shape=(1, 4, 4), merge=merge, compute=True)
    assert n_objects(labels) == 1
    merged, n = merge_tile_labels(da.from_array(image, chunks=(1, 4, 4)), merge=merge, return_count=True, compute=True)
    assert n == n_objects(merged) == 1


@pytest.mark.parametrize(
    ("tile_shape", "merge", "overlap"),
    [
        ((6, 6), "touching", 0),
        ((6, 6), "contact", 0),
        ((6, 6), "iou", 1),
        ((6, 6), half_of_both, 2),
        ((6, 12), "touching", 0),
        ((6, 12), "touching", 2),
        # The arms are one object to the upper tile only if it sees where they meet.
        ((6, 12), "iou", 4),
    ],
)
def test_a_u_through_a_third_tile_is_one_object(tile_shape: tuple[int, int], merge: Any, overlap: int) -> None:
    image = np.zeros((12, 12), np.uint8)
    image[2:10, 2:4] = image[2:10, 8:10] = image[9, 2:10] = 1
    labels = tile_process(image, components, tile_shape=tile_shape, overlap=overlap, merge=merge, compute=True)
    assert n_objects(labels) == 1


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize(("connectivity", "n"), [(1, 2), (2, 1)])
def test_two_voxels_at_the_corner_of_four_tiles(mirrored: bool, overlap: int, connectivity: int, n: int) -> None:
    image = np.zeros((16, 16), np.uint8)
    image[7, 7] = image[8, 8] = 1
    if mirrored:
        image = image[:, ::-1]
    merge = Touching(connectivity)
    labels = tile_process(image, components, tile_shape=(8, 8), overlap=overlap, merge=merge, compute=True)
    assert n_objects(labels) == n


@pytest.mark.parametrize("connectivity", [1, 2, 3])
@pytest.mark.parametrize("other", [(7, 7), (7, 8), (8, 7), (8, 8)])
def test_two_voxels_at_the_corner_of_eight_tiles(connectivity: int, other: tuple[int, int]) -> None:
    image = np.zeros((16, 16, 16), np.uint8)
    image[7, 7, 7] = 1
    image[(8, *other)] = 1
    axes_between = 1 + sum(c == 8 for c in other)
    labels = tile_process(image, components, tile_shape=(8, 8, 8), merge=Touching(connectivity), compute=True)
    assert n_objects(labels) == (1 if axes_between <= connectivity else 2)


@pytest.mark.parametrize(("connectivity", "n"), [(1, 2), (2, 1)])
def test_diagonal_contact_across_a_face(connectivity: int, n: int) -> None:
    image = np.zeros((8, 8), np.uint8)
    image[3, 3] = image[4, 4] = 1
    labels = tile_process(image, components, tile_shape=(4, 8), merge=Touching(connectivity), compute=True)
    assert n_objects(labels) == n


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_iou_carries_objects_around_a_corner_through_tiles_that_see_them_only_beyond_the_border(ndim: int) -> None:
    image = np.zeros((8,) * ndim, np.uint8)
    # One object over a corner, with no voxel in any of the tiles between.
    image[(slice(1, 4),) * ndim] = image[(slice(4, 7),) * ndim] = 1
    labels = tile_process(image, identity, tile_shape=(4,) * ndim, overlap=1, merge="iou", compute=True)
    assert_same_objects(labels, image)


@pytest.mark.parametrize(
    ("merge", "tile", "overlap", "n"),
    [("iou", 64, 1, 128), ("iou", 100, 1, 128), ("iou", 100, 5, 128), ("iou", 64, 8, 128), ("touching", 64, 1, 1)],
)
def test_128_blocks_that_fill_a_volume(merge: str, tile: int, overlap: int, n: int) -> None:
    numbers = np.arange(1, 129, dtype=np.int32).reshape(8, 8, 2)
    volume = numbers.repeat(64, 0).repeat(64, 1).repeat(64, 2)
    labels = tile_process(volume, identity, tile_shape=(tile,) * 3, overlap=overlap, merge=merge, compute=True)
    blocks = labels.reshape(8, 64, 8, 64, 2, 64)
    ids = blocks[:, 0, :, 0, :, 0]
    assert np.count_nonzero(np.unique(ids)) == n
    assert (blocks == ids[:, None, :, None, :, None]).all()


@pytest.mark.parametrize("merge", ["touching", "iou", "contact"])
@pytest.mark.parametrize("side", [257, 320])
def test_more_labels_in_one_tile_than_16_bits_hold(merge: str, side: int) -> None:
    # 66,049 and 102,400 single voxels in the first tile.
    image = np.zeros((2 * side + 6, 2 * side), np.uint8)
    image[::2, ::2] = 1
    image[2 * side - 3 : 2 * side + 3, 4] = 1
    labels = tile_process(
        image,
        components,
        tile_shape=(2 * side, 2 * side),
        overlap=2,
        merge=merge,
        sequential_labels=True,
        compute=True,
    )
    assert labels.max() == n_objects(components(image))
    assert_same_objects(labels, components(image))


# Rules and what they look at


def two_footprints(first: slice, second: slice) -> NDArray[np.uint8]:
    image = np.zeros((8, 20), np.uint8)
    image[2:4, first] = 1
    image[4:6, second] = 2
    return image


@pytest.mark.parametrize(
    ("iou", "joined"),
    [(0.0, True), (0.3, True), (0.33, True), (1 / 3, False), (0.5, False), (0.9, False)],
)
def test_contact_compares_footprints_strictly(iou: float, joined: bool) -> None:
    # 4 and 4 voxels that share 2 columns: 2 of 6.
    image = two_footprints(slice(4, 8), slice(6, 10))
    labels = tile_process(image, identity, tile_shape=(4, 20), merge=Contact(iou), compute=True)
    assert n_objects(labels) == (1 if joined else 2)


@pytest.mark.parametrize("merge", ["contact", Contact(0.5), half_of_both])
def test_an_iou_of_exactly_the_threshold_does_not_join(merge: Any) -> None:
    # 4 and 8 voxels that share 4.
    image = two_footprints(slice(4, 8), slice(4, 12))
    labels = tile_process(image, identity, tile_shape=(4, 20), merge=merge, compute=True)
    assert n_objects(labels) == 2


@pytest.mark.parametrize(("iou", "joined"), [(0.0, True), (0.6, True), (2 / 3, False), (0.7, False)])
def test_overlapping_compares_two_views_of_the_same_voxels(iou: float, joined: bool) -> None:
    image = np.zeros((8, 6), np.uint8)
    image[7] = 1

    def segment(block: NDArray[Any]) -> NDArray[Any]:
        labels = np.ones(block.shape, np.int32)
        if block.any():
            # The lower tile misses two of the six columns: 8 of the 12 voxels of the strip.
            labels[:, :2] = 0
        return labels

    labels = tile_process(image, segment, tile_shape=(4, 6), overlap=1, merge=Overlapping(iou), compute=True)
    assert n_objects(labels) == (1 if joined else 2)


def test_a_function_gets_shared_and_own_voxels_of_each_pair() -> None:
    seen: list[tuple[list[int], ...]] = []

    def test(i: Any, j: Any, n: Any, a: Any, b: Any, axis: int) -> NDArray[np.bool_]:
        seen.append((i.tolist(), j.tolist(), n.tolist(), a.tolist(), b.tolist(), [axis]))
        return np.asarray(n > 1)

    image = np.zeros((8, 12), np.int32)
    image[3, 1:4] = image[3, 6] = 5
    image[4, 2:4] = 7
    image[4, 6:10] = 9
    labels = tile_process(image, components, tile_shape=(4, 12), merge=test, compute=True)
    # Above: labels 1 (3 voxels) and 2 (1 voxel); below: 1 (2 voxels) and 2 (4 voxels).
    assert seen == [([1, 2], [1, 2], [2, 1], [3, 1], [2, 4], [0])]
    assert n_objects(labels) == 3


def test_a_function_sees_planes_without_an_overlap_and_strips_with_one() -> None:
    sizes: list[int] = []

    def test(i: Any, j: Any, n: Any, a: NDArray[Any], b: Any, axis: int) -> NDArray[np.bool_]:
        sizes.extend(a.tolist())
        return np.ones(i.shape, np.bool_)

    image = np.ones((8, 12), np.int32)
    for overlap, expected in [((0, 0), [12]), ((1, 0), [24]), ((3, 0), [24])]:
        sizes.clear()
        tile_process(image, identity, tile_shape=(4, 12), overlap=overlap, merge=test, compute=True)
        assert sizes == expected


@pytest.mark.parametrize("wrong", [lambda i, *_: np.ones(i.shape), lambda i, *_: True, lambda i, *_: [True] * 7])
def test_a_function_that_returns_no_bools_is_refused(wrong: Any) -> None:
    image = np.ones((8, 12), np.int32)
    with pytest.raises(TileError, match=r"merge function returned.*must return bool of shape") as caught:
        tile_process(image, identity, tile_shape=(4, 12), merge=wrong, compute=True)
    assert isinstance(caught.value.__cause__, ParameterError)


def test_a_function_on_chosen_axes() -> None:
    image = np.ones((4, 4), np.int32)
    labels = tile_process(image, identity, tile_shape=(2, 2), merge=Where(every_pair, axes=(1,)), compute=True)
    assert labels.tolist() == [[1] * 4] * 2 + [[3] * 4] * 2


# Axes


def quadrants(merge: Any, overlap: int | Sequence[int] = 0) -> list[list[int]]:
    """Objects of a full 4 x 4 image in four tiles, one number per tile."""
    image = np.ones((4, 4), np.int32)
    labels: NDArray[Any] = tile_process(image, identity, tile_shape=(2, 2), overlap=overlap, merge=merge, compute=True)
    made: list[list[int]] = labels[::2, ::2].tolist()
    return made


@pytest.mark.parametrize(
    ("merge", "overlap", "expected"),
    [
        (["touching", None], 0, [[1, 2], [1, 2]]),
        ((None, "touching"), 0, [[1, 1], [3, 3]]),
        ([None, None], 0, [[1, 2], [3, 4]]),
        (["touching", "contact"], 0, [[1, 1], [1, 1]]),
        (["iou", None], (1, 0), [[1, 2], [1, 2]]),
        (["iou", "contact"], (1, 0), [[1, 1], [1, 1]]),
        ([no_pair, every_pair], 1, [[1, 1], [3, 3]]),
        (every_pair, (1, 0), [[1, 1], [1, 1]]),
        (Where(half_of_both), 0, [[1, 1], [1, 1]]),
        (Touching(axes=(0,)), 0, [[1, 2], [1, 2]]),
        (Touching(axes=(-1,)), 0, [[1, 1], [3, 3]]),
        (Contact(axes=(1,)), 0, [[1, 1], [3, 3]]),
        (Overlapping(axes=(0,)), 1, [[1, 2], [1, 2]]),
        (Overlapping(), (0, 1), [[1, 1], [3, 3]]),
        (Touching(axes=()), 0, [[1, 2], [3, 4]]),
        (Touching(2, axes=(0, 1)), 0, [[1, 1], [1, 1]]),
    ],
)
def test_rules_join_over_their_axes_only(merge: Any, overlap: Any, expected: list[list[int]]) -> None:
    assert quadrants(merge, overlap) == expected


def test_a_rule_for_each_axis_makes_the_partition_of_each() -> None:
    rng = np.random.default_rng(4)
    volume = (rng.random((6, 20, 20)) > 0.6).astype(np.uint8)

    def planes(block: NDArray[Any]) -> NDArray[Any]:
        structure = np.zeros((3, 3, 3), int)
        structure[1] = scipy.ndimage.generate_binary_structure(2, 1)
        labels: NDArray[Any] = scipy.ndimage.label(block, structure)[0]
        return labels

    merge = [None, "touching", "touching"]
    labels = tile_process(volume, planes, tile_shape=(2, 7, 8), overlap=(0, 1, 1), merge=merge, compute=True)
    assert_same_objects(labels, planes(volume))


@pytest.mark.parametrize("tile_shape", [(2, 7, 8), (1, 20, 5)])
def test_corners_join_within_planes_where_the_rule_has_two_axes(tile_shape: tuple[int, ...]) -> None:
    volume = (np.random.default_rng(4).random((4, 20, 20)) > 0.7).astype(np.uint8)
    structure = np.zeros((3, 3, 3), int)
    structure[1] = 1

    def planes(block: NDArray[Any]) -> NDArray[Any]:
        labels: NDArray[Any] = scipy.ndimage.label(block, structure)[0]
        return labels

    labels = tile_process(volume, planes, tile_shape=tile_shape, merge=Touching(2, axes=(1, 2)), compute=True)
    assert_same_objects(labels, planes(volume))


@pytest.mark.parametrize("shape", [(40,), (1, 40), (40, 1), (2, 40), (1, 1, 40), (1, 40, 2)])
@pytest.mark.parametrize("merge", ["touching", "iou", "contact", half_of_both])
def test_seams_that_are_lines_or_points_join(shape: tuple[int, ...], merge: Any) -> None:
    image = np.ones(shape, np.uint8)
    image[tuple(slice(20, 21) if n == 40 else slice(None) for n in shape)] = 0
    tile_shape = tuple(min(n, 7) for n in shape)
    overlap = tuple(2 if n == 40 else 0 for n in shape)
    labels = tile_process(image, components, tile_shape=tile_shape, overlap=overlap, merge=merge, compute=True)
    assert_same_objects(labels, components(image))


def stack_of_shifting_cells() -> NDArray[np.uint8]:
    """Ten planes with one cell each, a voxel further to the right in every plane."""
    stack = np.zeros((10, 12, 24), np.uint8)
    for z in range(10):
        stack[z, 3:8, 3 + z : 9 + z] = 1
    return stack


@pytest.mark.parametrize(
    ("merge", "overlap", "n"),
    [
        ([None, "touching", "touching"], 0, 10),
        (Touching(axes=(1, 2)), 0, 10),
        ("iou", 2, 10),
        ([None, "iou", "iou"], 2, 10),
        ("touching", 0, 1),
    ],
)
def test_cells_of_planes_chain_only_where_the_rule_joins_planes(merge: Any, overlap: int, n: int) -> None:
    labels = tile_process(
        stack_of_shifting_cells(), components, tile_shape=(1, 12, 10), overlap=overlap, merge=merge, compute=True
    )
    assert n_objects(labels) == n


@pytest.mark.parametrize("overlap", [1, 3])
def test_cells_that_meet_at_a_border_stay_apart_by_iou_and_fuse_by_touching(overlap: int) -> None:
    image = np.zeros((16, 30), np.int32)
    # Six cells in two rows, every contact on a tile border.
    for number, (y, x) in enumerate([(3, 0), (3, 10), (3, 20), (8, 0), (8, 10), (8, 20)], start=1):
        image[y : y + 5, x : x + 10] = number
    by = {
        merge: tile_process(image, identity, tile_shape=(8, 10), overlap=overlap, merge=merge, compute=True)
        for merge in ("iou", "touching")
    }
    assert_same_objects(by["iou"], image)
    assert n_objects(by["touching"]) == 1


def test_one_cell_over_a_border_is_one_by_iou() -> None:
    image = np.zeros((16, 16), np.int32)
    image[3:13, 3:13] = 4
    labels = tile_process(image, identity, tile_shape=(8, 8), overlap=1, merge="iou", compute=True)
    assert n_objects(labels) == 1


@given(data=st.data())
def test_touching_joins_exactly_what_is_connected(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(24,), (9, 14), (5, 7, 6), (3, 5, 4, 4)]))
    density = data.draw(st.sampled_from([0.2, 0.35, 0.6]))
    image = np.random.default_rng(data.draw(st.integers(0, 999))).random(shape) < density
    tile_shape, connectivity = data.draw(tile_shapes(shape)), data.draw(st.integers(1, len(shape)))
    structure = scipy.ndimage.generate_binary_structure(len(shape), connectivity)

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        labels: NDArray[Any] = scipy.ndimage.label(block, structure)[0]
        return labels

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overlap")
        overlap = data.draw(st.integers(0, 3))
        merge = Touching(connectivity)
        labels = tile_process(image, fn, tile_shape=tile_shape, overlap=overlap, merge=merge, compute=True)
    assert_same_objects(labels, fn(image))


# Rules as values


def test_names_stand_for_the_defaults_of_their_rules(squares: NDArray[Any]) -> None:
    for name, rule in [("touching", Touching()), ("iou", Overlapping()), ("contact", Contact())]:
        by_name, by_value = (
            tile_process(squares, components, tile_shape=(17, 17), overlap=2, merge=merge, compute=True)
            for merge in (name, rule)
        )
        np.testing.assert_array_equal(by_name, by_value)


def test_rules_are_frozen_values() -> None:
    assert Touching(2) == Touching(connectivity=2)
    assert Overlapping(0.3) != Contact(0.3)
    assert len({Touching(), Touching(), Overlapping(), Contact(), Where(every_pair)}) == 4
    with pytest.raises(AttributeError):
        Touching().connectivity = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (Touching(2), "Touching(connectivity=2, axes=None)"),
        (Overlapping(0.3, axes=(1, 2)), "Overlapping(iou=0.3, axes=(1, 2))"),
        (Contact(), "Contact(iou=0.5, axes=None)"),
    ],
)
def test_rules_are_shown_as_they_are_made(rule: Any, shown: str) -> None:
    assert repr(rule) == shown


# Warnings


def test_objects_larger_than_the_overlap_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    image = np.zeros((40, 40), np.uint8)
    image[2::4] = 1
    tile_process(image, components, tile_shape=(20, 20), overlap=3, merge="iou", compute=True)
    (line,) = [record.getMessage() for record in caplog.records]
    # Each tile has 5 rows in its core, and all reach as far as it reads.
    assert "20 of 20 labels reach the outer edge of what their tile has read (overlap (3, 3))" in line
    assert "Give a larger overlap" in line


@pytest.mark.parametrize(("merge", "overlap"), [("iou", 10), ("iou", 16), ("touching", 2), ("contact", 0)])
def test_objects_that_fit_the_overlap_are_not_warned_of(
    merge: str, overlap: int, squares: NDArray[Any], caplog: pytest.LogCaptureFixture
) -> None:
    tile_process(squares, components, tile_shape=(33, 33), overlap=overlap, merge=merge, compute=True)
    assert caplog.records == []
