"""Tables of blobs, and blobs that several tiles have found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster.chunking import stack_splitter
from blockbuster.duplicates import DROPPED, KEPT, OPEN, first_kept, merge_blobs, prune_blobs
from blockbuster.errors import ParameterError


def grid_of(shape: tuple[int, ...], tables: dict[tuple[int, ...], Any]) -> NDArray[Any]:
    grid = np.empty(shape, object)
    for index, table in tables.items():
        grid[index] = table
    return grid


# One table


def test_rows_come_in_the_order_of_the_pieces_with_their_index() -> None:
    tables = grid_of((1, 2, 2), {(0, 0, 0): [[0, 1, 2, 3]], (0, 1, 0): [[4, 5, 6, 1], [7, 8, 9, 2]]})
    merged = merge_blobs(tables)
    assert merged.dtype == np.int64
    assert merged.tolist() == [[0, 1, 2, 3, 0, 0, 0], [4, 5, 6, 1, 0, 1, 0], [7, 8, 9, 2, 0, 1, 0]]


def test_a_list_is_a_grid_of_one_axis() -> None:
    merged = merge_blobs([np.array([[1.5, 2]]), None, [[3, 4], [5, 6]]])
    np.testing.assert_array_equal(merged, [[1.5, 2, 0], [3, 4, 2], [5, 6, 2]])


@given(data=st.data())
def test_merged_rows_are_those_of_the_pieces(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), "grid"))
    columns = data.draw(st.integers(1, 4), "columns")
    grid, expected = np.empty(shape, object), []
    for index in np.ndindex(shape):
        rows = data.draw(st.none() | st.lists(st.lists(st.integers(-99, 99), min_size=columns, max_size=columns)))
        grid[index] = data.draw(st.sampled_from([list, np.array]))(rows) if rows else rows
        expected += [[*row, *index] for row in rows or ()]
    merged = merge_blobs(grid)
    assert merged.tolist() == expected
    assert not expected or merged.dtype == np.int64


@pytest.mark.parametrize(
    ("empty", "columns", "dtype"),
    [
        (None, 0, np.float64),
        ([], 0, np.float64),
        (np.empty((0, 4), np.float32), 4, np.float32),
        (np.empty((0, 2), np.int16), 2, np.int16),
    ],
)
def test_without_blobs_there_is_an_empty_table(empty: Any, columns: int, dtype: Any) -> None:
    merged = merge_blobs(grid_of((2, 3), {(0, 1): empty}))
    assert merged.shape == (0, columns + 2)
    assert merged.dtype == dtype
    assert merge_blobs([]).shape == (0, 1)


def test_empty_tables_do_not_change_dtype_or_columns() -> None:
    merged = merge_blobs([[], np.empty((0, 9)), np.array([[1, 2]], np.int32), None])
    assert merged.dtype == np.int32
    assert merged.tolist() == [[1, 2, 2]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.float16, np.float32])
def test_the_dtype_holds_the_index_of_every_piece(dtype: Any) -> None:
    tables: list[Any] = [None] * 5000
    tables[3], tables[4999] = np.ones((1, 2), dtype), np.ones((1, 2), dtype)
    assert merge_blobs(tables).tolist() == [[1, 1, 3], [1, 1, 4999]]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([[[1, 2]], None, [[1, 2, 3]]], r"piece \(2,\) has 3 columns, that of piece \(0,\) has 2"),
        (np.zeros((3, 4)), "tables are a ndarray"),
        ({(0, 0): [[1, 2]]}, "tables are a dict"),
        (None, "tables are a NoneType"),
        ([[1, 2, 3]], r"of piece \(0,\) has shape \(3,\)"),
        ([[[1, 2], [3]]], r"of piece \(0,\) is no array"),
        ([[["a", "b"]]], "dtype <U1"),
        ([np.zeros((2, 2), complex)], "complex128"),
    ],
)
def test_what_is_no_grid_of_tables_is_refused(tables: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        merge_blobs(tables)


# Which are kept


def kept_one_by_one(n: int, pairs: Sequence[tuple[int, int]], unsure: Sequence[bool]) -> list[int]:
    """The definition, for items whose rank is their number."""
    state: list[int] = []
    for item in range(n):
        above = {state[a] for a, b in pairs if b == item}
        if KEPT in above:
            state.append(DROPPED)
        else:
            state.append(OPEN if unsure[item] or OPEN in above else KEPT)
    return state


@given(data=st.data())
def test_items_are_kept_as_by_going_through_them(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12), "items")
    every = list(itertools.combinations(range(n), 2))
    pairs = data.draw(st.lists(st.sampled_from(every), max_size=30), "conflicts") if every else []
    unsure = data.draw(st.lists(st.booleans(), min_size=n, max_size=n), "unsure")
    expected = {known: kept_one_by_one(n, pairs, [known and u for u in unsure]) for known in (False, True)}
    # Items have any numbers, and conflicts any order.
    names = np.array(data.draw(st.permutations(range(n)), "numbers"))
    before, after = (names[[pair[side] for pair in pairs]].astype(np.int64) for side in (0, 1))
    flags = np.zeros(n, bool)
    flags[names] = unsure
    for known, given_flags in ((False, None), (True, flags)):
        state = first_kept(n, before, after, given_flags)
        assert state.dtype == np.int8
        assert state[names].tolist() == expected[known]


def test_nothing_is_kept_of_nothing() -> None:
    none = np.empty(0, np.int64)
    assert first_kept(0, none, none).tolist() == []
    assert first_kept(2, none, none).tolist() == [KEPT, KEPT]
    assert first_kept(2, none, none, np.array([True, False])).tolist() == [OPEN, KEPT]


def test_a_long_chain_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conflict is gathered once, though there are as many rounds as half of the chain."""
    n = 2001
    gathered = []
    below: Callable[..., NDArray[Any]] = first_kept.__globals__["_below"]

    def noted(*args: Any) -> NDArray[Any]:
        found = below(*args)
        gathered.append(len(found))
        return found

    monkeypatch.setattr("blockbuster.duplicates._below", noted)
    state = first_kept(n, np.arange(n - 1), np.arange(1, n))
    assert state.tolist() == [KEPT, DROPPED] * (n // 2) + [KEPT]
    assert sum(gathered) == n - 1


# Blobs found twice


MASTER = [[1, 3, 4], [1, 8, 5], [3, 8, 5]]
CHECK = [[1, 3, 5], [2, 10, 5], [2, 2, 4], [3, 3, 5], [9, 9, 9]]


def test_of_a_second_tile_stay_those_that_the_first_has_not_found() -> None:
    expected = [*MASTER, [3, 3, 5], [9, 9, 9]]
    tiles = [0] * len(MASTER) + [1] * len(CHECK)
    pruned = prune_blobs(MASTER + CHECK, (1, 2, 2), tiles=tiles)
    assert pruned.tolist() == expected
    assert prune_blobs(MASTER + CHECK, (1, 2, 2), tiles=np.c_[tiles, tiles]).tolist() == expected
    tables = grid_of((2, 1, 1), {(0, 0, 0): MASTER, (1, 0, 0): CHECK})
    for blobs in (tables, merge_blobs(tables)):
        assert prune_blobs(blobs, (1, 2, 2))[:, :3].tolist() == expected
        assert prune_blobs(blobs, (1, 2, 2)).shape == (5, 6)


def test_the_tolerance_is_inclusive() -> None:
    tables = grid_of((2,), {(0,): [[10]], (1,): [[15]]})
    assert prune_blobs(tables, 5)[:, 0].tolist() == [10]
    tables = grid_of((2,), {(0,): [[10]], (1,): [[16]]})
    assert prune_blobs(tables, 5)[:, 0].tolist() == [10, 16]
    assert prune_blobs(tables, np.nextafter(6, 0))[:, 0].tolist() == [10, 16]


def seen_in_pieces(blobs: NDArray[Any], shape: Any, max_pixels: Any, overlap: Any) -> NDArray[Any]:
    """Tables of the blobs that lie in each piece of a stack."""
    slices, _ = stack_splitter(shape, max_pixels, overlap)
    tables = np.empty(slices.shape, object)
    for index in np.ndindex(slices.shape):
        inside = [(blobs[:, a] >= s.start) & (blobs[:, a] < s.stop) for a, s in enumerate(slices[index])]
        tables[index] = blobs[np.logical_and.reduce(inside)]
    return tables


@pytest.mark.parametrize("position", [(0, 0, 0), (8, 8, 8), (10, 12, 9), (12.5, 3, 19), (23, 23, 23), (20, 9, 16)])
def test_a_blob_that_every_piece_around_it_sees_is_one_row(position: tuple[float, ...]) -> None:
    tables = seen_in_pieces(np.array([[*position, 2.0]]), (24, 24, 24), 8, 5)
    assert len(merge_blobs(tables)) >= 1
    for by in ("box", "ball"):
        for keep in ("strongest", "mean"):
            pruned = prune_blobs(tables, 5, by=by, keep=keep)  # type: ignore[arg-type]
            assert pruned[:, :4].tolist() == [[*position, 2.0]]


@given(data=st.data())
def test_blobs_seen_with_noise_come_out_once_however_the_stack_is_split(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3), "axes")
    shape = (24,) * ndim
    rng = np.random.default_rng(data.draw(st.integers(0, 999), "seed"))
    spots = np.stack(np.meshgrid(*[np.arange(1, 24, 7)] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    blobs = np.c_[spots, np.arange(len(spots))].astype(float)[rng.random(len(spots)) < 0.7]
    max_pixels = data.draw(st.tuples(*[st.integers(3, 30)] * ndim), "max_pixels")
    tables = seen_in_pieces(blobs, shape, max_pixels, data.draw(st.integers(0, 12), "overlap"))
    for index in np.ndindex(tables.shape):
        tables[index][:, :ndim] += rng.uniform(-1, 1, tables[index][:, :ndim].shape)
    # Noise moves two views of a blob apart by up to 2, different blobs to no less than 5.
    for keep in ("strongest", "mean"):
        pruned = prune_blobs(tables, 3, keep=keep)  # type: ignore[arg-type]
        assert sorted(pruned[:, ndim]) == blobs[:, ndim].tolist()


@st.composite
def tables_of_blobs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Blobs on a coarse grid, so that ties and exact tolerances are frequent; strengths and tiles of few values."""
    ndim = draw(st.integers(1, 3))
    n = draw(st.integers(0, 14))
    numbers = st.integers(0, 6).map(lambda value: value / 2)
    points = np.array(draw(st.lists(st.tuples(*[numbers] * ndim), min_size=n, max_size=n))).reshape(n, ndim)
    strengths = np.array(draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), min_size=n, max_size=n)))
    tiles = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
    return points, strengths.reshape(n), tiles, ndim


def pruned_one_by_one(
    points: NDArray[Any], strengths: NDArray[Any], tiles: NDArray[Any], tolerance: Sequence[float], by: str
) -> list[list[int]]:
    """Rows that stay, each with those dropped for it, strongest first."""
    order = sorted(range(len(points)), key=lambda i: (np.isnan(strengths[i]), -np.nan_to_num(strengths[i]), i))
    groups: list[list[int]] = []
    for i in order:
        for group in groups:
            if tiles[i] != tiles[group[0]] and are_near(points[i], points[group[0]], tolerance, by):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def are_near(a: NDArray[Any], b: NDArray[Any], tolerance: Sequence[float], by: str) -> bool:
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    if by == "box":
        return all(d <= t for d, t in zip(differences, tolerance, strict=True))
    ratios = [d / t if t else (0.0 if d == 0 else np.inf) for d, t in zip(differences, tolerance, strict=True)]
    return sum(r**2 for r in ratios) <= 1


@given(data=st.data())
def test_duplicates_are_those_that_going_through_all_pairs_finds(data: st.DataObject) -> None:
    points, strengths, tiles, ndim = data.draw(tables_of_blobs(), "blobs")
    tolerance = data.draw(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 1.5])] * ndim), "tolerance")
    by = data.draw(st.sampled_from(["box", "ball"]), "by")
    groups = pruned_one_by_one(points, strengths, tiles, tolerance, by)
    table = np.c_[points, strengths, np.arange(len(points))]
    options: dict[str, Any] = {"tiles": tiles, "by": by}
    pruned = prune_blobs(table, tolerance, **options)
    assert pruned[:, -1].tolist() == sorted(group[0] for group in groups)
    np.testing.assert_array_equal(pruned, table[pruned[:, -1].astype(int)])
    means = prune_blobs(table, tolerance, keep="mean", **options)
    expected = [table[group].mean(axis=0) for group in sorted(groups)]
    np.testing.assert_allclose(means, np.reshape(expected, means.shape), rtol=1e-12)
    # The order of the axes does not matter.
    axes = data.draw(st.permutations(range(ndim)), "axes")
    turned = prune_blobs(
        np.c_[points[:, axes], strengths, np.arange(len(points))], [tolerance[a] for a in axes], **options
    )
    assert turned[:, -1].tolist() == pruned[:, -1].tolist()


@given(scale=st.sampled_from([1e-300, 1e-9, 1e-3, 0.1, 1 / 3, 7.0, 1e9, 1e300]), shift=st.integers(-3, 3))
def test_tolerances_are_exact_in_floating_point(scale: float, shift: int) -> None:
    places = (np.arange(8) + shift * 1000) * scale
    for tolerance in (scale, np.nextafter(scale, 0), np.nextafter(scale, np.inf), 0.0, 5e-324):
        for a, b in itertools.pairwise(places):
            n_left = len(prune_blobs([[a], [b]], [tolerance], tiles=[0, 1]))
            assert n_left == (1 if abs(a - b) <= tolerance else 2)
            assert len(prune_blobs([[a], [a]], [tolerance], tiles=[0, 1])) == 1


@pytest.mark.parametrize("by", ["box", "ball"])
def test_without_tolerance_an_axis_must_agree_to_the_last_digit(by: Any) -> None:
    for other, n_left in ((1.0, 1), (np.nextafter(1.0, 2), 2)):
        assert len(prune_blobs([[0.0, 1.0], [0.5, other]], (1, 0), tiles=[0, 1], by=by)) == n_left


def test_the_strongest_stays_and_equal_ones_in_the_order_of_rows() -> None:
    table = np.array([[1.0, 5, 0], [1.5, 7, 1], [2.0, 7, 0]])
    kept = {"tolerance": (2,)}
    assert prune_blobs(table, **kept).tolist() == [[1.5, 7, 1]]
    assert prune_blobs(table[::-1], **kept).tolist() == [[2, 7, 0], [1, 5, 0]]
    assert prune_blobs(table, strength=0, **kept).tolist() == [[1, 5, 0], [2, 7, 0]]
    assert prune_blobs(table, strength=-3, **kept).tolist() == [[1, 5, 0], [2, 7, 0]]
    assert prune_blobs(table, strength=[9, 8, 7], **kept).tolist() == [[1, 5, 0], [2, 7, 0]]
    assert prune_blobs(table, strength=np.array([1, 2**63, 0], np.uint64), **kept).tolist() == [[1.5, 7, 1]]
    assert prune_blobs(table, strength=[np.nan, np.nan, -np.inf], **kept).tolist() == [[1, 5, 0], [2, 7, 0]]


def test_without_a_column_between_coordinates_and_tiles_the_earlier_row_stays() -> None:
    table = np.array([[1.0, 1], [2.0, 0]])
    assert prune_blobs(table, (1,)).tolist() == [[1, 1]]
    assert prune_blobs([[1.0, 3.0], [2.0, 4.0]], (1,), tiles=[0, 1]).tolist() == [[2, 4]]
    assert prune_blobs([[1.0], [2.0]], (1,), tiles=[0, 1]).tolist() == [[1]]


def test_blobs_of_one_tile_are_never_the_same() -> None:
    table = [[1.0, 1.0, 0, 0]] * 3
    assert prune_blobs(table, (1, 1)).tolist() == table
    # Tiles that differ in one index only are different ones.
    assert len(prune_blobs([[1.0, 1.0, 0, 7], [1.0, 1.0, 1, 7], [1.0, 1.0, 0, 7]], (1, 1))) == 2
    assert len(prune_blobs([[1.0, 1.0, 0, 1], [1.0, 1.0, 1, 0]], (1, 1))) == 1


def test_what_is_the_same_as_a_removed_blob_only_stays() -> None:
    table = [[0.0, 9, 0], [1.0, 8, 1], [2.0, 7, 2]]
    assert prune_blobs(table, (1,)).tolist() == [table[0], table[2]]
    assert prune_blobs(table, (1,), keep="mean").tolist() == [[0.5, 8.5, 0], table[2]]


def test_means_keep_the_tile_of_the_strongest_and_integers_become_floats() -> None:
    table = [[2, 4, 10, 0, 0], [3, 4, 30, 0, 1], [3, 5, 20, 1, 1]]
    pruned = prune_blobs(table, (1, 1), keep="mean")
    assert pruned.dtype == np.float64
    np.testing.assert_allclose(pruned, [[8 / 3, 13 / 3, 20, 0, 1]])
    assert prune_blobs(table, (1, 1)).dtype == np.int64
    assert prune_blobs(np.array(table, np.float32), (1, 1), keep="mean").dtype == np.float32


def test_blobs_without_a_place_are_the_same_as_no_other() -> None:
    table = np.array([[np.nan, 1, 0], [np.nan, 1, 1], [np.inf, 1, 0], [np.inf, 1, 1], [2, 1, 0], [2, 2, 1]])
    np.testing.assert_array_equal(prune_blobs(table, (1,)), table[[0, 1, 2, 3, 5]])


def test_the_number_of_coordinates_may_be_given() -> None:
    table = [[1.0, 1.0, 0, 0], [1.0, 2.0, 0, 1]]
    assert prune_blobs(table, 1, ndim=2).tolist() == table[:1]
    assert len(prune_blobs(table, 0.5, ndim=2)) == 2
    # A grid of one axis, for blobs of two coordinates.
    tables = grid_of((2,), {(0,): [[1.0, 1.0]], (1,): [[1.0, 2.0]]})
    assert prune_blobs(tables, (0, 1)).tolist() == [[1, 1, 0]]
    assert prune_blobs(tables, 1, ndim=2).tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("blobs", [np.empty((0, 7)), [], np.empty((1, 2, 2), object)])
def test_empty_tables_stay_empty(blobs: Any) -> None:
    assert len(prune_blobs(blobs, (1, 1, 1))) == 0
    assert len(prune_blobs(blobs, (1, 1, 1), keep="mean")) == 0
    assert prune_blobs(np.empty((0, 7), np.int32), (1, 1, 1)).shape == (0, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tolerance": 1}, "does not tell how many columns are coordinates"),
        ({"tolerance": (1, -1)}, "at least 0"),
        ({"tolerance": (1, np.nan)}, "finite"),
        ({"tolerance": (1, np.inf)}, "finite"),
        ({"tolerance": ()}, "at least 0"),
        ({"tolerance": "far"}, "no number"),
        ({"tolerance": None, "ndim": 2}, "finite"),
        ({"tolerance": (1, 1), "ndim": 3}, "2 entries, but ndim is 3"),
        ({"tolerance": 1, "ndim": 0}, "ndim 0"),
        ({"tolerance": 1, "ndim": 1.5}, "ndim 1.5"),
        ({"tolerance": (1, 1, 1)}, "5 columns, which are fewer than 3 coordinates and 3 of the index"),
        ({"tolerance": (1,) * 6, "tiles": [0, 1]}, "5 columns, which are fewer than 6 coordinates"),
        ({"tolerance": (1, 1), "keep": "first"}, "keep 'first' is unknown"),
        ({"tolerance": (1, 1), "by": "cube"}, "by 'cube' is unknown"),
        ({"tolerance": (1, 1), "tiles": [0]}, "tiles have shape"),
        ({"tolerance": (1, 1), "tiles": [0.0, 1.0]}, "tiles have shape"),
        ({"tolerance": (1, 1), "tiles": 0}, "tiles have shape"),
        ({"tolerance": (1, 1), "strength": 5}, "strength 5 is no column"),
        ({"tolerance": (1, 1), "strength": -6}, "strength -6 is no column"),
        ({"tolerance": (1, 1), "strength": [1]}, "strength has shape"),
        ({"tolerance": (1, 1), "strength": True}, "strength has shape"),
        ({"tolerance": (1, 1), "strength": "a"}, "strength has shape"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        prune_blobs([[1.0, 1.0, 3.0, 0, 0], [2.0, 1.0, 3.0, 0, 1]], **options)


@pytest.mark.parametrize("last", [0.5, np.nan, np.inf])
def test_a_table_without_the_index_of_tiles_is_refused(last: float) -> None:
    with pytest.raises(ParameterError, match="are no index of tiles"):
        prune_blobs([[1.0, 1.0, 3.0, 0, last]], (1, 1))


@pytest.mark.parametrize("blobs", [[1.0, 2.0], [["a", "b"]], [[1], [1, 2]], np.zeros((2, 2, 2))])
def test_what_is_no_table_is_refused(blobs: Any) -> None:
    with pytest.raises(ParameterError, match="The table"):
        prune_blobs(blobs, (1,))
