"""Rules on slabs and the table of final ids, against naive oracles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import Contact, LabelOverflowError, Overlapping, ParameterError, Touching, Where, unions
from blockbuster.grid import TileGrid
from blockbuster.rules import Rule, resolve_merge, seams_and_slabs, slab_region, slabs_of
from blockbuster.unions import Numbering, ScanPart, make_table
from tests.strategies import shapes, tile_shapes

# The table

NUMBERINGS: tuple[Numbering, ...] = ("tile", "sequential", "raster")

Node = tuple[int, int]  # block id, local id


@dataclass(frozen=True)
class Scanned:
    """What scans have found: labels and ghosts per tile, pairs per seam, first voxels per label."""

    counts: list[int]
    ghosts: list[int]
    pairs: list[tuple[Node, Node]]
    first: dict[Node, int]

    @property
    def labels(self) -> list[Node]:
        return [(tile, local) for tile, n in enumerate(self.counts) for local in range(1, n + 1)]

    def parts(self, batches: list[list[int]]) -> list[ScanPart]:
        return [self._part(batch) for batch in batches]

    def _part(self, tiles: list[int]) -> ScanPart:
        seams, rows = [], []
        own = [pair for pair in self.pairs if pair[0][0] in tiles]
        for (a, b), group in itertools.groupby(sorted(own), lambda pair: (pair[0][0], pair[1][0])):
            found = [(i, j) for (_, i), (_, j) in group]
            seams.append((a, b, len(found)))
            rows.extend(found)
        return ScanPart(
            block_ids=np.array(tiles, np.int64),
            counts=np.array([self.counts[t] for t in tiles], np.int64),
            ghosts=np.array([self.ghosts[t] for t in tiles], np.int64),
            first=np.array([self.first[t, i] for t in tiles for i in range(1, self.counts[t] + 1)], np.int64),
            seams=np.array(seams, np.int64).reshape(-1, 3),
            pairs=np.array(rows, np.int64).reshape(-1, 2),
            skipped=0,
            reaching=0,
        )


@st.composite
def scans(draw: st.DrawFn) -> tuple[Scanned, list[list[int]]]:
    """Findings, and the batches in which tiles were scanned."""
    n_tiles = draw(st.integers(1, 7))
    numbers = st.lists(st.integers(0, 5), min_size=n_tiles, max_size=n_tiles)
    counts, ghosts = draw(numbers), draw(numbers)
    nodes = [(t, i) for t in range(n_tiles) for i in range(1, counts[t] + ghosts[t] + 1)]
    ends = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes)) if nodes else st.nothing()
    pairs = [(a, b) for a, b in draw(st.lists(ends, max_size=20) if nodes else st.just([])) if a[0] != b[0]]
    n_labels = sum(counts)
    order = draw(st.permutations(range(n_labels)))
    labels = [(t, i) for t in range(n_tiles) for i in range(1, counts[t] + 1)]
    scanned = Scanned(counts, ghosts, pairs, {label: 10 * p for label, p in zip(labels, order, strict=True)})
    tiles = draw(st.permutations(range(n_tiles)))
    cut = draw(st.integers(0, n_tiles))
    return scanned, [batch for batch in (tiles[:cut], tiles[cut:]) if batch]


def _roots(scanned: Scanned) -> dict[Node, Node]:
    """For each label the first label of its object, by a union-find of dictionaries."""
    parent: dict[Node, Node] = {label: label for label in scanned.labels}

    def find(node: Node) -> Node:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for a, b in scanned.pairs:
        parent[find(a)] = find(b)
    members: dict[Node, list[Node]] = {}
    for label in scanned.labels:
        members.setdefault(find(label), []).append(label)
    return {label: min(group) for group in members.values() for label in group}


def _expected_ids(scanned: Scanned, numbering: Numbering) -> dict[Node, int]:
    roots = _roots(scanned)
    if numbering == "tile":
        provisional = {label: n for n, label in enumerate(scanned.labels, 1)}
        return {label: provisional[root] for label, root in roots.items()}
    if numbering == "sequential":
        order = sorted(set(roots.values()))
    else:
        first: dict[Node, int] = {}
        for label, root in roots.items():
            first[root] = min(first.get(root, scanned.first[label]), scanned.first[label])
        order = sorted(first, key=first.__getitem__)
    number = {root: n for n, root in enumerate(order, 1)}
    return {label: number[root] for label, root in roots.items()}


@pytest.mark.parametrize("numbering", NUMBERINGS)
@given(scan=scans())
def test_table_gives_the_ids_of_a_naive_union_find(scan: tuple[Scanned, list[list[int]]], numbering: Numbering) -> None:
    scanned, batches = scan
    table = make_table(scanned.parts(batches), len(scanned.counts), numbering=numbering, dtype="int32")
    expected = _expected_ids(scanned, numbering)
    assert table.outline.n_objects == len(set(expected.values()))
    for tile, n in enumerate(scanned.counts):
        final = table.lookup(tile, "int32")
        assert final.dtype == np.int32
        assert final.tolist() == [0, *(expected[tile, i] for i in range(1, n + 1))]


@given(st.sets(st.integers(0, 2**40)), st.integers(0, 5), st.randoms(use_true_random=False))
def test_places_do_not_depend_on_how_many_are_sorted_at_a_time(places: set[int], n_gone: int, random: Any) -> None:
    first = [*places, *[-1] * n_gone]
    random.shuffle(first)
    expected = [sorted(places).index(p) + 1 if p >= 0 else 0 for p in first]
    with pytest.MonkeyPatch.context() as patch:
        for at_a_time in (3, 1 << 23):
            patch.setattr(unions, "_RANGE", at_a_time)
            assert unions.ranks(np.array(first, np.int64), "int32").tolist() == expected


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_tiles_in_no_part_have_no_labels(numbering: Numbering) -> None:
    scanned = Scanned([0, 2, 0, 1], [0] * 4, [((1, 2), (3, 1))], {(1, 1): 5, (1, 2): 1, (3, 1): 9})
    table = make_table(scanned.parts([[1], [3]]), 4, numbering=numbering, dtype="int32")
    assert [table.lookup(tile, "int32").size for tile in range(4)] == [1, 3, 1, 2]
    assert table.outline.n_objects == 2


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("n_tiles", [0, 3])
def test_no_labels_make_an_empty_table(numbering: Numbering, n_tiles: int) -> None:
    table = make_table([], n_tiles, numbering=numbering, dtype="uint8")
    assert table.outline.n_objects == 0
    assert [table.lookup(tile, "uint8").tolist() for tile in range(n_tiles)] == [[0]] * n_tiles


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_labels_that_only_a_ghost_connects_are_one_object(numbering: Numbering) -> None:
    # Tile 1 has one label and sees a ghost, which is label 1 of tile 0 and label 1 of tile 2.
    scanned = Scanned([1, 1, 1], [0, 1, 0], [((0, 1), (1, 2)), ((1, 2), (2, 1))], {(t, 1): t for t in range(3)})
    table = make_table(scanned.parts([[0, 1, 2]]), 3, numbering=numbering, dtype="int64")
    first, second, third = (int(table.lookup(t, "int64")[1]) for t in range(3))
    assert (first, third) == (1, 1)
    assert second == 2
    assert table.outline.n_objects == 2


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_exactly_as_many_objects_fit_as_the_dtype_can_number(numbering: Numbering, dtype: str) -> None:
    most = int(np.iinfo(dtype).max)
    for n in (most, most + 1):
        scanned = Scanned([n - 100, 100], [0, 0], [], dict(zip(_labels(n - 100, 100), range(n), strict=True)))
        parts = scanned.parts([[0, 1]])
        if n == most:
            assert make_table(parts, 2, numbering=numbering, dtype=dtype).lookup(1, dtype)[-1] == most
            continue
        with pytest.raises(LabelOverflowError, match=f"{n} objects .* dtype {dtype}, whose largest value is {most}"):
            make_table(parts, 2, numbering=numbering, dtype=dtype)


def test_only_ids_with_gaps_overflow_by_the_largest_id() -> None:
    # 128 provisional ids, of which the first 28 are one object: 101 objects, but ids up to 128.
    pairs = [((0, 1), (1, i)) for i in range(1, 28)]
    scanned = Scanned([1, 127], [0, 0], pairs, dict(zip(_labels(1, 127), range(128), strict=True)))
    parts = scanned.parts([[0, 1]])
    with pytest.raises(LabelOverflowError, match=r"101 objects with ids up to 128 .* sequential_labels=True"):
        make_table(parts, 2, numbering="tile", dtype="int8")
    for numbering in ("sequential", "raster"):
        assert make_table(parts, 2, numbering=numbering, dtype="int8").outline.n_objects == 101


def test_absorbed_ids_at_the_end_do_not_count_as_the_largest() -> None:
    pairs = [((0, i), (1, i)) for i in range(1, 101)]
    scanned = Scanned([100, 100], [0, 0], pairs, dict(zip(_labels(100, 100), range(200), strict=True)))
    table = make_table(scanned.parts([[0, 1]]), 2, numbering="tile", dtype="int8")
    assert table.lookup(1, "int8").tolist() == list(range(101))


def test_memory_of_a_table_without_raster_numbering_is_that_of_absorbed_labels() -> None:
    counts = [10_000, 10_000]
    scanned = Scanned(counts, [0, 0], [((0, 7), (1, 9))], dict(zip(_labels(*counts), range(20_000), strict=True)))
    for numbering in ("tile", "sequential"):
        table = make_table(scanned.parts([[0, 1]]), 2, numbering=numbering, dtype="int32")
        assert (table.absorbed.size, table.targets.size, table.ids) == (1, 1, None)
        assert table.outline.starts.tolist() == [0, 0, 1]


def _labels(*counts: int) -> list[Node]:
    return [(tile, i) for tile, n in enumerate(counts) for i in range(1, n + 1)]


# Rules


def _slab(labels: NDArray[Any], key: Any, tile: Any) -> NDArray[Any]:
    return labels[tuple(map(slice, *slab_region(key, tile)))]


def _planes(grid: TileGrid, labels: NDArray[Any], rule: Rule) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any]]]:
    """Each seam with the slabs that its tiles keep for it."""
    for tile in grid.tiles():
        for seam, mine, theirs in seams_and_slabs(tile.block_id, grid, rule):
            second = grid.tile(seam.second)
            assert mine in slabs_of(tile, grid, [rule])
            assert theirs in slabs_of(second, grid, [rule])
            yield seam, _slab(labels, mine, tile), _slab(labels, theirs, second)


@given(st.data())
def test_touching_finds_every_contact_over_tile_borders(data: st.DataObject) -> None:
    """Pairs over faces, edges and corners, as a walk over all voxels finds them."""
    shape = data.draw(shapes(max_ndim=4))
    grid = TileGrid.regular(shape, data.draw(tile_shapes(shape)))
    connectivity = data.draw(st.integers(1, len(shape)))
    labels = np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)
    labels[data.draw(_masks(shape))] = 0
    (rule,) = resolve_merge(Touching(connectivity), overlap=grid.overlap, axes=range(len(shape)))
    found = {
        frozenset(pair)
        for seam, first, second in _planes(grid, labels, rule)
        for pair in rule.join(seam, first, second).tolist()
    }
    assert found == _contacts(labels, grid, connectivity)


def _masks(shape: tuple[int, ...]) -> st.SearchStrategy[NDArray[np.bool_]]:
    size = int(np.prod(shape))
    return st.binary(min_size=size, max_size=size).map(lambda b: (np.frombuffer(b, np.uint8) > 150).reshape(shape))


def _contacts(labels: NDArray[Any], grid: TileGrid, connectivity: int) -> set[frozenset[int]]:
    owner = np.empty(grid.shape, int)
    for tile in grid.tiles():
        owner[tile.core] = tile.block_id
    found = set()
    for offset in itertools.product((-1, 0, 1), repeat=grid.ndim):
        if not 1 <= np.abs(offset).sum() <= connectivity:
            continue
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, grid.shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, grid.shape, strict=True))
        meet = (labels[here] > 0) & (labels[there] > 0) & (owner[here] != owner[there])
        pairs = zip(labels[here][meet].tolist(), labels[there][meet].tolist(), strict=True)
        found.update(map(frozenset, pairs))
    return found


def test_touching_joins_over_its_axes_only() -> None:
    grid = TileGrid.regular((4, 4), (2, 2))
    rule = Touching(1, axes=(1,))
    seams = [seam for tile in grid.tiles() for seam, _, _ in seams_and_slabs(tile.block_id, grid, rule)]
    assert {seam.axes for seam in seams} == {(1,)}


def _random_slabs(seed: int, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    first = np.kron(rng.integers(0, 5, tuple(n // 2 + 1 for n in shape)), np.ones([2] * len(shape), int))
    first = first[tuple(map(slice, shape))].astype(np.uint8)
    second = np.where(rng.random(shape) < 0.7, first, rng.integers(0, 5, shape)).astype(np.uint16)
    return first, second


def _naive_pairs(
    first: NDArray[Any], second: NDArray[Any], keep: Callable[[int, int, int], bool]
) -> set[tuple[int, int]]:
    pairs = itertools.product(np.unique(first[first > 0]).tolist(), np.unique(second[second > 0]).tolist())
    return {
        (i, j)
        for i, j in pairs
        if (n := int(((first == i) & (second == j)).sum()))
        and keep(n, int((first == i).sum()), int((second == j).sum()))
    }


SEAM = next(TileGrid.regular((2, 9, 7), (1, 9, 7)).seams(0, [(1, 0, 0)]))


@pytest.mark.parametrize("iou", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("rule", [Overlapping, Contact])
@pytest.mark.parametrize("seed", range(5))
def test_iou_is_compared_strictly(rule: Any, iou: float, seed: int) -> None:
    first, second = _random_slabs(seed, (2, 9, 7))
    joined = {(i, j) for i, j in rule(iou).join(SEAM, first, second).tolist()}
    assert joined == _naive_pairs(first, second, lambda n, a, b: n / (a + b - n) > iou)


def test_iou_of_one_half_is_no_match() -> None:
    first, second = np.array([[1, 1, 0]]), np.array([[0, 1, 0]])
    assert Overlapping(0.5).join(SEAM, first, second).tolist() == []
    assert Overlapping(0.4999).join(SEAM, first, second).tolist() == [[1, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_above_one_half_each_label_has_at_most_one_partner(seed: int) -> None:
    first, second = _random_slabs(seed, (2, 9, 7))
    pairs = Overlapping(0.5).join(SEAM, first, second)
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)


def test_a_function_gets_ids_shares_sizes_and_axis() -> None:
    first, second = np.array([[1, 1, 2, 2]]), np.array([[3, 3, 3, 0]])
    seen: list[Any] = []

    def test(i: Any, j: Any, n: Any, a: Any, b: Any, axis: int) -> NDArray[np.bool_]:
        seen.extend(np.array([i, j, n, a, b]).T.tolist())
        assert axis == 0
        return np.asarray(n == a)

    assert Where(test).join(SEAM, first, second).tolist() == [[1, 3]]
    assert sorted(seen) == [[1, 3, 2, 2, 3], [2, 3, 1, 2, 3]]


@pytest.mark.parametrize("answer", [np.array([1]), np.array([True, False]), True])
def test_a_function_that_returns_no_bool_per_pair_is_refused(answer: Any) -> None:
    rule = Where(lambda *_: answer)
    with pytest.raises(ParameterError, match="must return bool of shape \\(1,\\)"):
        rule.join(SEAM, np.array([[1]]), np.array([[1]]))


def test_large_local_ids_are_not_confused() -> None:
    first = np.array([[2**32 - 1, 1, 2**31]], np.uint32)
    second = np.array([[1, 2**32 - 1, 2**31]], np.uint32)
    pairs = Touching().join(SEAM, first, second).tolist()
    assert pairs == [[1, 2**32 - 1], [2**31, 2**31], [2**32 - 1, 1]]


@given(st.data())
def test_strips_of_both_tiles_cover_the_same_voxels(data: st.DataObject) -> None:
    shape = data.draw(shapes(min_ndim=2, max_ndim=3, min_side=2))
    grid = TileGrid.regular(shape, data.draw(tile_shapes(shape)), (1,) * len(shape))
    voxels = np.arange(np.prod(shape)).reshape(shape)
    for seam, first, second in _planes(grid, voxels, Overlapping(axes=tuple(range(len(shape))))):
        assert (first == second).all()
        (axis,) = seam.axes
        assert first.shape[axis] == 2


# Names


def test_names_stand_for_the_defaults_of_their_rules() -> None:
    assert resolve_merge("touching", overlap=(0, 0), axes=(0, 1)) == (Touching(1, axes=(0, 1)),)
    assert resolve_merge("iou", overlap=(2, 2), axes=(0, 1)) == (Overlapping(0.5, axes=(0, 1)),)
    assert resolve_merge("contact", overlap=(0, 0), axes=(0, 1)) == (Contact(0.5, axes=(0, 1)),)
    assert resolve_merge(None, overlap=(0, 0), axes=(0, 1)) == ()


def test_iou_goes_over_the_axes_that_have_an_overlap() -> None:
    assert resolve_merge("iou", overlap=(0, 2), axes=(0, 1)) == (Overlapping(0.5, axes=(1,)),)


def test_one_rule_per_axis() -> None:
    rules = resolve_merge(["touching", None, "iou"], overlap=(0, 0, 1), axes=(0, 1, 2))
    assert rules == (Touching(axes=(0,)), Overlapping(axes=(2,)))


def test_negative_axes_count_from_the_end() -> None:
    assert resolve_merge(Touching(axes=(-1,)), overlap=(0, 0), axes=(0, 1)) == (Touching(axes=(1,)),)


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        ("nearest", "'touching', 'iou', 'contact'"),
        (3, "unknown"),
        ("iou", "overlap"),
        (Overlapping(axes=(0,)), "overlap"),
        (Touching(connectivity=3), "1..2"),
        (Touching(connectivity=0), "1..2"),
        (Contact(iou=1.0), "below 1"),
        (Contact(iou=-0.1), "at least 0"),
        (Touching(axes=(2,)), "axes"),
        (["touching"], "1 entries, the image has 2 axes"),
    ],
)
def test_rules_that_do_not_fit_are_refused(merge: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        resolve_merge(merge, overlap=(0, 0), axes=(0, 1))
