"""Records of the stage: whole, or known to be damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import blockbuster.stage
from blockbuster import StageError
from blockbuster.stage import Stage, TileRecord
from blockbuster.unions import Table, TableOutline
from tests.oracles import tree

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", ">u2")
MANIFEST = {"operation": "label", "target": "labels"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(str(tmp_path / "run"))
    made.make()
    made.describe(MANIFEST)
    return made


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """One for all examples that Hypothesis draws: records are replaced."""
    made = Stage(str(tmp_path_factory.mktemp("stage") / "run"))
    made.make()
    made.describe(MANIFEST)
    return made


def _assert_same(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


ARRAYS = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7))


@given(
    counts=st.dictionaries(st.text(max_size=5), st.integers(0, 2**60), max_size=3),
    arrays=st.dictionaries(st.text(max_size=5), ARRAYS, max_size=3),
)
def test_records_come_back_as_they_were(
    shared_stage: Stage, counts: dict[str, int], arrays: dict[str, NDArray[Any]]
) -> None:
    shared_stage.write_tile(3, counts, arrays)
    record = shared_stage.tile(3)
    assert record.counts == counts
    for name, array in arrays.items():
        assert record.has(name)
        _assert_same(record.array(name), array)
    assert shared_stage.has_tile(3)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[::-1, ::2], np.transpose], ids="fst")
def test_arrays_of_any_layout_come_back(stage: Stage, layout: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    array = layout(np.arange(30_000, dtype=np.uint32).reshape(200, 150))
    stage.write_tile(0, {}, {"labels": array})
    _assert_same(stage.tile(0).array("labels"), array)


@pytest.mark.parametrize("piece", [8, 24, 1000, 8000, 8008])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_arrays_larger_than_one_piece_come_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, piece: int, dtype: str
) -> None:
    monkeypatch.setattr(blockbuster.stage, "_PIECE", piece)
    array = np.random.default_rng(0).integers(0, 100, (10, 100)).astype(dtype)
    stage.write_tile(0, {"n": 1}, {"labels": array, "first": array[0]})
    assert stage.has_tile(0)
    _assert_same(stage.tile(0).array("labels"), array)
    _assert_same(stage.tile(0).array("first"), array[0])


def test_a_name_that_was_not_kept_is_not_there(stage: Stage) -> None:
    stage.write_tile(0, {}, {"labels": np.ones(3)})
    assert not stage.tile(0).has("values")


def test_header_of_many_arrays_is_read_whole(stage: Stage) -> None:
    arrays = {f"array-{i:04d}": np.array([i]) for i in range(500)}
    stage.write_tile(0, {"n": 500}, arrays)
    record = stage.tile(0)
    assert [int(record.array(name)[0]) for name in arrays] == list(range(500))


# Damage


@pytest.fixture
def record(stage: Stage) -> Path:
    """The file of a record with both raw and compressed arrays."""
    labels = np.random.default_rng(0).integers(0, 1000, (64, 64)).astype(np.uint16)
    stage.write_tile(7, {"n": 999}, {"plane-0-0": labels[0], "labels": labels})
    (path,) = Path(stage.path).rglob("*.tile")
    return path


def _is_damaged(stage: Stage) -> bool:
    """Damage must show in both ways, or in none."""
    if stage.has_tile(7):
        _read(stage)
        return False
    with pytest.raises(StageError, match="damaged"):
        _read(stage)
    return True


def _read(stage: Stage) -> None:
    for name in ("plane-0-0", "labels"):
        stage.tile(7).array(name)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 11, 12, 40, 100, 0.3, 0.7, -100, -1])
def test_a_torn_record_is_detected(stage: Stage, record: Path, keep: float) -> None:
    data = record.read_bytes()
    length = int(keep * len(data)) if isinstance(keep, float) else keep % len(data)
    record.write_bytes(data[:length])
    assert _is_damaged(stage)


def test_a_record_of_zeros_is_detected(stage: Stage, record: Path) -> None:
    record.write_bytes(bytes(record.stat().st_size))
    assert _is_damaged(stage)


def test_a_record_with_a_hole_is_detected(stage: Stage, record: Path) -> None:
    data = bytearray(record.read_bytes())
    data[-512:-256] = bytes(256)
    record.write_bytes(data)
    assert _is_damaged(stage)


def test_a_flip_of_any_bit_is_detected(stage: Stage, record: Path) -> None:
    data = record.read_bytes()
    places = [*range(400), *range(400, len(data), 37), len(data) - 1]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        record.write_bytes(flipped)
        assert _is_damaged(stage), f"byte {place}"
    record.write_bytes(data)
    assert not _is_damaged(stage)


def test_two_pieces_that_changed_places_are_detected(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockbuster.stage, "_PIECE", 100)
    stage.write_tile(
        7, {"n": 1}, {"plane-0-0": np.arange(100, dtype=np.uint8), "labels": np.arange(100, 200, dtype=np.uint8)}
    )
    (path,) = Path(stage.path).rglob("*.tile")
    data = path.read_bytes()
    path.write_bytes(data[:-200] + data[-100:] + data[-200:-100])
    assert _is_damaged(stage)


def test_a_missing_record_is_an_error_that_names_it(stage: Stage) -> None:
    assert not stage.has_tile(5)
    with pytest.raises(StageError, match=r"000005\.tile is missing; resume"):
        stage.tile(5)


def test_a_stage_that_is_gone_is_an_error_that_names_the_host_and_the_remedy(stage: Stage) -> None:
    shutil.rmtree(stage.path)
    with pytest.raises(StageError, match=r"not visible on host .* stage_dir="):
        stage.tile(5)


def test_a_write_that_fails_leaves_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = tree(stage.path)
    (Path(stage.path) / "tiles" / "0000").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            stage.write_tile(1, {"n": 0}, {})
    assert tree(stage.path) - before == {os.path.join(stage.path, "tiles", "0000")}
    assert not stage.has_tile(1)


# The whole stage


def test_a_record_is_replaced_by_writing_it_again(stage: Stage) -> None:
    for value in (1, 2):
        stage.write_tile(0, {"n": value}, {"labels": np.full(5, value)})
    assert stage.tile(0).array("labels").tolist() == [2] * 5
    assert stage.n_tiles() == 1


def test_records_are_counted_over_all_folders(stage: Stage) -> None:
    for block_id in (0, 999, 1000, 123_456_789):
        stage.write_tile(block_id, {"n": 0}, {})
    assert stage.n_tiles() == 4
    assert all(map(stage.has_tile, (0, 999, 1000, 123_456_789)))


def test_written_regions_are_marked_one_by_one_for_each_output(stage: Stage) -> None:
    for _ in range(2):
        stage.mark_written("int32", 1000)
    assert [stage.is_written("int32", n) for n in (0, 1000)] == [False, True]
    assert not stage.is_written("int8", 1000)


def test_a_removed_stage_stays_removed(stage: Stage) -> None:
    stage.write_tile(0, {"n": 0}, {})
    stage.remove()
    for write in (lambda: stage.write_tile(0, {"n": 0}, {}), lambda: stage.mark_written("int32", 0)):
        with pytest.raises(StageError, match="not visible"):
            write()
    assert os.listdir(os.path.dirname(stage.path)) == ["system-tmp"]
    stage.remove()


def test_creating_a_stage_again_keeps_what_is_in_it(stage: Stage) -> None:
    stage.write_tile(0, {"n": 4}, {})
    stage.make()
    stage.describe({"operation": "another"})
    assert stage.manifest() == MANIFEST
    assert stage.tile(0).counts == {"n": 4}


def test_a_stage_that_cannot_be_made_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=r"cannot be written: .* stage_dir="):
        Stage(str(tmp_path / "file" / "run")).make()


# The table


def _table(
    *, ids: NDArray[Any] | None = None, absorbed: int | None = None, target: int = 0, sequential: bool = True
) -> Table:
    """A table of three tiles with 2, 0 and 3 labels."""
    outline = TableOutline(
        offsets=np.array([0, 2, 2, 5], np.int64),
        starts=np.array([0, 0, 0, int(absorbed is not None)], np.int64),
        n_objects=4,
        sequential=sequential,
        ids_dtype=None if ids is None else ids.dtype.str,
    )
    gone = [] if absorbed is None else [absorbed]
    return Table(outline, np.array(gone, np.int64), np.array([target for _ in gone], np.int64), ids)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (_table(ids=np.array([4, 3, 1, 2, 4], np.uint16)), [[4, 3], [], [1, 2, 4]]),
        (_table(ids=np.array([4, 3, 1, 2, 4], np.int64)), [[4, 3], [], [1, 2, 4]]),
        (_table(absorbed=4, target=1, sequential=False), [[1, 2], [], [3, 1, 5]]),
        (_table(absorbed=4, target=1), [[1, 2], [], [3, 1, 4]]),
        (_table(), [[1, 2], [], [3, 4, 5]]),
    ],
)
def test_a_table_is_looked_up_tile_by_tile(stage: Stage, table: Table, expected: list[list[int]]) -> None:
    stage.write_table(table)
    for tile, ids in enumerate(expected):
        assert table.lookup(tile, "int32").tolist() == [0, *ids]
        kept = stage.lookup(tile, "int32")
        assert (kept.dtype, kept.tolist()) == (np.dtype(np.int32), [0, *ids])


def test_a_table_without_labels_is_looked_up(stage: Stage) -> None:
    empty = np.empty(0, np.int64)
    outline = TableOutline(np.zeros(2, np.int64), np.zeros(2, np.int64), 0, True, "<i4")
    stage.write_table(Table(outline, empty, empty, empty))
    assert stage.lookup(0, "uint8").tolist() == [0]


def test_only_the_slice_of_a_tile_is_read(stage: Stage) -> None:
    stage.write_table(_table(ids=np.array([4, 3, 1, 2, 4])))
    os.truncate(os.path.join(stage.path, "table", "ids"), 2 * 8)
    assert stage.lookup(0, "int32").tolist() == [0, 4, 3]


def test_a_table_that_is_written_anew_is_looked_up_anew(stage: Stage) -> None:
    stage.write_table(_table())
    assert stage.lookup(2, "int32").tolist() == [0, 3, 4, 5]
    stage.write_table(_table(absorbed=4, target=1))
    assert stage.lookup(2, "int32").tolist() == [0, 3, 1, 4]


def test_counts_are_read_without_any_array(record: Path) -> None:
    with open(record, "r+b") as file:
        file.truncate(record.stat().st_size - 1000)
    assert TileRecord.read(str(record)).counts == {"n": 999}
