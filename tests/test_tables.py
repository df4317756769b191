"""`map_tiles_to_table`: the points of the whole image, whatever the tiles; and tables in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow.parquet
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.feature import peak_local_max

import blockbuster
from blockbuster import parquet
from blockbuster.errors import GeometryError, OutputError, ParameterError, TileError
from blockbuster.parquet import Column, TableFile
from tests.helpers import Recording, leftovers, nothing_computed, padded_blocks
from tests.strategies import overlaps, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")


def bright(block: NDArray[Any]) -> NDArray[Any]:
    """Each voxel above a half, and its value."""
    places = np.argwhere(block > 0.5)
    return np.column_stack([places, block[tuple(places.T)]])


def peaks(block: NDArray[Any]) -> NDArray[Any]:
    """Local maxima, which depend on voxels two away, at places between voxels."""
    if 0 in block.shape:
        return np.empty((0, block.ndim))
    return peak_local_max(block, min_distance=2, threshold_abs=0, exclude_border=False) + 0.4


def rows(table: Any) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.asarray(table).tolist()))


def contents(blocks: list[NDArray[Any]]) -> list[tuple[Any, ...]]:
    return sorted((block.shape, block.tobytes()) for block in blocks)


IMAGE = np.random.default_rng(2).random((30, 40))


# The whole image's points


@synchronous
@given(st.data())
def test_points_are_those_of_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3))
    tiles = data.draw(tile_shapes(shape))
    image = np.random.default_rng(data.draw(st.integers(0, 1000))).random(shape)
    found = blockbuster.map_tiles_to_table(image, bright, ["value"], tile_shape=tiles, compute=True)
    assert rows(found) == rows(bright(image))


@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask graph"])
def test_points_beside_borders_are_found_once_on_every_scheduler(kind: str, scheduler: str, tmp_path: Path) -> None:
    image: Any = IMAGE
    if kind == "zarr":
        image = zarr.create_array(tmp_path / "image.zarr", data=IMAGE, chunks=(16, 16))
    elif kind == "dask graph":
        image = da.from_array(IMAGE, chunks=(9, 17)).map_blocks(np.copy)
    found = blockbuster.map_tiles_to_table(image, peaks, tile_shape=(7, 13), overlap=6, compute=True)
    assert len(found) > 20
    assert rows(found) == rows(peaks(IMAGE))


@dataclass(frozen=True)
class At:
    """The points at some places of the image, as seen from a block that tells where it is."""

    places: tuple[tuple[float, float], ...]

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        here = np.array(self.places) - block[:, 0, 0]
        return here[(here > -1).all(axis=1) & (here < np.array(block.shape[1:])).all(axis=1)]


PLACES = st.tuples(st.floats(-0.5, 11.5), st.floats(-0.5, 9.5))


@synchronous
@given(st.lists(PLACES, max_size=8), st.integers(1, 12), st.integers(1, 10), st.integers(1, 3))
def test_each_point_belongs_to_one_tile(
    places: list[tuple[float, float]], height: int, width: int, overlap: int
) -> None:
    image = np.stack(np.meshgrid(np.arange(12.0), np.arange(10.0), indexing="ij"))

    def function(block: NDArray[Any]) -> NDArray[Any]:
        found = At(tuple(places))(block) if places else np.empty((0, 2))
        return np.column_stack([np.zeros(len(found)), found])

    found = blockbuster.map_tiles_to_table(
        image,
        function,
        tile_shape=(2, height, width),
        overlap=(0, min(overlap, height), min(overlap, width)),
        compute=True,
    )
    np.testing.assert_allclose(rows(found[:, 1:]), sorted(places), atol=1e-9)


@synchronous
@given(data=st.data())
def test_the_function_sees_each_padded_tile_once(data: st.DataObject, tmp_path_factory: Any) -> None:
    shape = data.draw(shapes(1, 3))
    tiles, overlap = data.draw(tile_shapes(shape)), data.draw(overlaps(shape))
    overlap = tuple(min(o, t) for o, t in zip(overlap, tiles, strict=True))
    image = np.random.default_rng(0).random(shape)
    recording = Recording(tmp_path_factory.mktemp("calls"), fn=bright)
    table = blockbuster.map_tiles_to_table(image, recording, ["value"], tile_shape=tiles, overlap=overlap)
    assert recording.n_calls == 0
    table.compute()
    assert contents(recording.blocks()) == contents(padded_blocks(image, tiles, overlap))


@synchronous
def test_a_function_may_change_its_block() -> None:
    image = IMAGE.copy()

    def greedy(block: NDArray[Any]) -> NDArray[Any]:
        found = bright(block)
        block[:] = 0
        return found

    for source in (image, da.from_array(image, chunks=(10, 40)).map_blocks(np.copy)):
        found = blockbuster.map_tiles_to_table(source, greedy, ["value"], tile_shape=(10, 10), overlap=2, compute=True)
        assert rows(found) == rows(bright(IMAGE))
    np.testing.assert_array_equal(image, IMAGE)


@synchronous
def test_rows_may_come_with_names() -> None:
    @dataclass
    class Frame:
        """As much of a DataFrame as is looked at."""

        values: dict[str, NDArray[Any]]

        @property
        def columns(self) -> list[str]:
            return list(self.values)

        def __getitem__(self, names: list[str]) -> Frame:
            return Frame({name: self.values[name] for name in names})

        def to_numpy(self) -> NDArray[Any]:
            return np.column_stack(list(self.values.values()))

    def named(block: NDArray[Any]) -> Frame:
        y, x, value = bright(block).T
        return Frame({"value": value, "more": value, "x": x, "y": y})

    found = blockbuster.map_tiles_to_table(IMAGE, named, ["value"], tile_shape=(10, 10), compute=True)
    assert rows(found) == rows(bright(IMAGE))
    with pytest.raises(TileError, match=r"without the columns \['area'\]"):
        blockbuster.map_tiles_to_table(IMAGE, named, ["area"], compute=True)


@synchronous
def test_a_mask_and_some_tiles() -> None:
    mask = np.zeros(IMAGE.shape, np.bool_)
    mask[12:, :25] = True
    expected = [row for row in bright(IMAGE).tolist() if mask[int(row[0]), int(row[1])]]
    table = blockbuster.map_tiles_to_table(IMAGE, bright, ["value"], mask=mask, tile_shape=(10, 20), compute=True)
    assert rows(table) == sorted(map(tuple, expected))
    some = blockbuster.map_tiles_to_table(
        IMAGE, bright, ["value"], mask=da.from_array(mask, chunks=7), tile_shape=(10, 20), block_ids=[2], compute=True
    )
    assert rows(some) == sorted(tuple(row) for row in expected if 10 <= row[0] < 20 and row[1] < 20)


def a_little_to_the_right(block: NDArray[Any]) -> NDArray[Any]:
    """Points whose voxel is the one after that which they are found in."""
    return np.argwhere(block > 5) + np.array([0, 0.7])


@synchronous
@pytest.mark.parametrize("tile_shape", [(8, 8), (8, 4), (4, 3)])
@pytest.mark.parametrize("side", [0, 1])
def test_a_mask_and_the_owner_agree_on_the_voxel_of_a_point(tile_shape: tuple[int, int], side: int) -> None:
    image, mask = np.zeros((8, 8)), np.zeros((8, 8), np.bool_)
    image[2, 3] = 9
    mask[:, 4 * side : 4 * side + 4] = True
    found = blockbuster.map_tiles_to_table(
        image, a_little_to_the_right, tile_shape=tile_shape, mask=mask, overlap=2, compute=True
    )
    assert rows(found) == ([(2, 3.7)] if side else [])


@synchronous
def test_an_overlap_counts_on_axes_of_thin_tiles_as_well() -> None:
    image = np.random.default_rng(0).random((9, 30))
    with pytest.warns(UserWarning, match="exceeds the tile shape"):
        found = blockbuster.map_tiles_to_table(image, peaks, tile_shape=(1, 30), overlap=9, compute=True)
    assert rows(found) == rows(peaks(image))


# What does not fit


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\), but a row has 3 numbers: y, x, value"),
        (np.zeros(3), r"shape \(3,\)"),
        ("text", "could not convert"),
    ],
)
@synchronous
def test_what_is_no_rows_is_an_error_with_its_tile(returned: Any, words: str) -> None:
    with pytest.raises(TileError, match=words) as caught:
        blockbuster.map_tiles_to_table(IMAGE, lambda _block: returned, ["value"], compute=True)
    assert caught.value.tile == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((7,), {}, ParameterError, "fn 7 cannot be called"),
        ((bright, "value"), {}, ParameterError, "columns 'value' is not a sequence of names"),
        ((bright, [1]), {}, ParameterError, "not a sequence of names"),
        ((bright, ["x"]), {}, ParameterError, "'x' is given twice"),
        ((bright, ["tile"]), {}, ParameterError, "'tile' is given twice"),
        ((bright,), {"overlap": -1}, GeometryError, "below 0"),
        ((bright,), {"write_to": "table.zarr"}, ParameterError, "ends in '.parquet'"),
        ((bright,), {"write_to": "s3://bucket/table.parquet"}, ParameterError, "local file system"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with nothing_computed(), pytest.raises(error, match=words):
        blockbuster.map_tiles_to_table(IMAGE, *arguments, **options)


@synchronous
def test_a_folder_is_not_replaced_by_a_table(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        blockbuster.map_tiles_to_table(IMAGE, bright, ["value"], write_to=tmp_path / "table.parquet", overwrite=True)
    assert leftovers(tmp_path) == []


@synchronous
def test_without_pyarrow_a_table_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with nothing_computed(), pytest.raises(ParameterError, match=r"blockbuster-imaging\[tables\]"):
        blockbuster.map_tiles_to_table(IMAGE, bright, ["value"], write_to="table.parquet")


# Tables in files


@synchronous
def test_a_table_names_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    stored = blockbuster.map_tiles_to_table(IMAGE, bright, ["value"], tile_shape=(10, 20), write_to=path)
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["y", "x", "value", "tile"]
    y, x, value, tile = (table[name].to_numpy() for name in table.column_names)
    np.testing.assert_array_equal(stored, np.column_stack([y, x, value]))
    np.testing.assert_array_equal(tile, 2 * (y // 10) + x // 20)
    assert (np.diff(tile) >= 0).all()
    assert rows(stored) == rows(bright(IMAGE))


@synchronous
def test_axes_without_names_are_numbered_where_there_are_many(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    blockbuster.map_tiles_to_table(np.ones((1, 1, 1, 2)), bright, ["value"], write_to=path)
    names = ["axis_0", "axis_1", "axis_2", "axis_3", "value", "tile"]
    assert pyarrow.parquet.read_schema(path).names == names


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_rows_are_written_and_read_in_groups(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP", size)
    columns = [Column("a", np.dtype("f8"), "micrometer"), Column("b", np.dtype("i8"))]
    parts = [{"a": np.arange(n) + 0.5, "b": np.full(n, n)} for n in (2, 1, 4, 1, 3)]
    file = TableFile(tmp_path / "t.parquet", str(tmp_path / ".making"))
    with file.in_the_making():
        assert file.write(columns, parts, {"run": "mine"}) == 11
        assert not file.path.exists()
        file.commit(overwrite=False)
    assert file.told() == {"run": "mine"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "system-tmp"] == ["t.parquet"]
    expected = np.column_stack([np.concatenate([part[name] for part in parts]) for name in "ab"])
    stored = file.lazily(2)
    assert stored.shape == (11, 2)
    assert max(stored.chunks[0]) <= size + 4
    np.testing.assert_array_equal(stored, expected)
    for begin, end in [(0, 0), (0, 11), (1, 2), (3, 9), (10, 11), (-3, None)]:
        np.testing.assert_array_equal(stored[begin:end, 1:], expected[begin:end, 1:])


def test_a_file_that_is_no_table_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert TableFile(path, "").told() == {}
    path.write_bytes(b"PAR1 but not really")
    assert TableFile(path, "").told() == {}
