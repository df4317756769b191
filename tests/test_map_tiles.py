"""`map_tiles`: what a local function makes of the whole image, made tile by tile."""

from __future__ import annotations

import functools
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from blockbuster import (
    CapacityError,
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
    ResumeError,
    SchedulerError,
    TileError,
    plan,
)
from blockbuster.capacity import Workers
from blockbuster.grid import Region, TileGrid
from blockbuster.mapping import map_tiles
from blockbuster.sources import StoredImage
from tests.helpers import Recording, digest, leftovers, nothing_computed, padded_blocks, write_ome_zarr
from tests.strategies import chunkings, overlaps, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")

IMAGE = np.random.default_rng(5).integers(0, 60000, (9, 20, 33)).astype(np.uint16)

gaussian = functools.partial(scipy.ndimage.gaussian_filter, sigma=1, truncate=2)
median = functools.partial(scipy.ndimage.median_filter, size=3)
running_mean = functools.partial(scipy.ndimage.uniform_filter1d, size=5, axis=1)


def same(block: NDArray[Any]) -> NDArray[Any]:
    return block


def project(block: NDArray[Any]) -> NDArray[Any]:
    made: NDArray[Any] = block.max(axis=0)
    return made


def as_float(block: NDArray[Any]) -> NDArray[Any]:
    return block / 2


def probabilities(block: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Of three classes, along a new axis."""
    smooth = scipy.ndimage.uniform_filter(block.astype(np.float64), 3)
    return np.stack([smooth > limit for limit in (10000, 30000, 50000)], axis).astype(np.float32)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "image.zarr", data=IMAGE, chunks=(4, 8, 8))
    return tmp_path / "image.zarr"


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., Recording]:
    def make(fn: Callable[[NDArray[Any]], NDArray[Any]] = same) -> Recording:
        (tmp_path / "calls").mkdir(exist_ok=True)
        return Recording(tmp_path / "calls", fn)

    return make


def assert_equal(made: Any, expected: NDArray[Any]) -> None:
    """The same bits, and the same dtype."""
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(made), expected, strict=True)


def contents(blocks: list[NDArray[Any]]) -> list[tuple[Any, ...]]:
    """Blocks in an order that does not depend on that of the tasks."""
    return sorted((block.shape, str(block.dtype), block.tobytes()) for block in blocks)


# The result of the whole image


@synchronous
@pytest.mark.parametrize(
    ("fn", "overlap", "dtype"),
    [
        pytest.param(gaussian, 2, "uint16", id="gaussian"),
        pytest.param(gaussian, (2, 2, 2), "float64", id="gaussian of floats"),
        pytest.param(median, (1, 1, 1), "uint16", id="median"),
        pytest.param(median, 4, "float64", id="median of floats, more overlap than it needs"),
        # Of floats, sums that run along a line round by where they begin.
        pytest.param(running_mean, (0, 2, 0), "uint16", id="running mean"),
    ],
)
def test_filters_give_what_they_give_on_the_whole_image(fn: Any, overlap: Any, dtype: str) -> None:
    image = IMAGE if dtype == "uint16" else IMAGE / 3
    made = map_tiles(image, fn, tile_shape=(4, 7, 9), overlap=overlap)
    assert_equal(made.compute(), fn(image))


def test_stored_results_are_those_of_the_whole_image(stored: Path, tmp_path: Path, scheduler: str) -> None:
    made = map_tiles(stored, gaussian, overlap=2, tile_shape=(4, 8, 16), write_to=tmp_path / "out.zarr")
    assert made.chunks == ((4, 4, 1), (8, 8, 4), (8, 8, 8, 8, 1))
    assert_equal(zarr.open_array(tmp_path / "out.zarr")[...], gaussian(IMAGE))
    assert leftovers(tmp_path) == []


def of_kind(kind: str, values: NDArray[Any], data: st.DataObject, folder: Path) -> Any:
    chunks = data.draw(tile_shapes(values.shape), "chunks")
    if kind == "zarr":
        zarr.create_array(folder / "a.zarr", data=values, chunks=chunks)
        return folder / "a.zarr"
    if kind == "zarr in memory":
        return zarr.create_array(MemoryStore(), data=values, chunks=chunks)
    if kind == "dask":
        return da.from_array(values, chunks=data.draw(chunkings(values.shape))) + 0
    return values


@synchronous
@given(data=st.data())
def test_any_tiles_of_any_image_give_the_same(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("map")
    shape = data.draw(shapes(1, 3))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-999, 999, shape).astype(np.int16)
    reach = data.draw(overlaps(shape, 2), "reach")
    overlap = tuple(r + data.draw(st.integers(0, 2)) for r in reach)
    fn = functools.partial(scipy.ndimage.median_filter, size=tuple(2 * r + 1 for r in reach))
    source = of_kind(data.draw(st.sampled_from(["numpy", "zarr", "zarr in memory", "dask"])), values, data, folder)
    tiles = data.draw(st.none() | tile_shapes(shape), "tiles")
    to: dict[str, Any] = {}
    if data.draw(st.booleans(), "to store"):
        to = {"write_to": folder / "b.zarr"}
        if tiles is not None:
            to["chunks"] = tuple(max(t // data.draw(st.integers(1, 1 + t % 2)), 1) for t in tiles)
            to["chunks"] = tuple(c if t % c == 0 else t for c, t in zip(to["chunks"], tiles, strict=True))
    expected = fn(values)
    if data.draw(st.booleans(), "masked"):
        mask = np.random.default_rng(3).random(shape) < 0.3
        to["mask"] = data.draw(st.sampled_from([mask, da.from_array(mask, chunks=data.draw(chunkings(shape)))]))
        expected = np.where(mask, expected, 0).astype(np.int16)
    # Tiles may be thinner than the overlap.
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        made = map_tiles(source, fn, tile_shape=tiles, overlap=overlap, **to)
        assert_equal(made.compute(), expected)
        to.pop("write_to", None)
        to.pop("chunks", None)
        assert_equal(map_tiles(source, fn, tile_shape=tiles, overlap=overlap, compute=True, **to), expected)
    shutil.rmtree(folder)


@synchronous
def test_the_function_sees_exactly_the_padded_tiles(recording: Any) -> None:
    fn = recording()
    map_tiles(IMAGE, fn, tile_shape=(4, 7, 9), overlap=(1, 0, 3), compute=True)
    expected = padded_blocks(IMAGE, (4, 7, 9), (1, 0, 3))
    assert contents(fn.blocks()) == contents(expected)


@pytest.mark.parametrize("to_store", [True, False])
def test_the_function_is_called_once_per_tile(
    to_store: bool, stored: Path, tmp_path: Path, recording: Any, scheduler: str
) -> None:
    image = stored if to_store else da.from_array(IMAGE, chunks=(9, 9, 9)) + 0
    fn = recording()
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr", "chunks": (4, 8, 16)} if to_store else {}
    made = map_tiles(image, fn, tile_shape=(4, 8, 16), overlap=2, **to)
    assert to_store or fn.n_calls == 0
    assert_equal(zarr.open_array(tmp_path / "out.zarr")[...] if to_store else made.compute(), IMAGE)
    grid = TileGrid.regular(IMAGE.shape, (4, 8, 16))
    assert fn.n_calls == grid.n_tiles == 27


@synchronous
@pytest.mark.parametrize("to_store", [True, False])
@pytest.mark.parametrize("overlap", [0, 2])
def test_large_tiles_are_not_cut_into_parts(
    to_store: bool, overlap: int, stored: Path, tmp_path: Path, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockbuster.tilewise.PART", 10)
    monkeypatch.setattr("blockbuster.tilewise.OVERLAPPING_PART", 10)
    fn = recording()
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {"compute": True}
    assert_equal(map_tiles(stored, fn, tile_shape=(8, 8, 40), overlap=overlap, **to), IMAGE)
    assert contents(fn.blocks()) == contents(padded_blocks(IMAGE, (8, 8, 40), (overlap,) * 3))


@synchronous
def test_nothing_is_computed_before_it_is_asked_for(recording: Any) -> None:
    fn = recording()
    image = da.from_array(IMAGE, chunks=(9, 9, 9)) + 0
    with nothing_computed():
        lazy = map_tiles(image, fn, overlap=1, dtype="float32", mask=IMAGE > 5)
    assert (lazy.shape, lazy.dtype, lazy.chunks) == (IMAGE.shape, np.float32, image.chunks)
    assert fn.n_calls == 0


@synchronous
def test_an_overlap_of_one_number_spares_axes_of_thin_tiles(recording: Any) -> None:
    fn = recording()
    map_tiles(IMAGE, fn, tile_shape=(1, 20, 33), overlap=3, compute=True)
    assert {block.shape for block in fn.blocks()} == {(1, 20, 33)}


@synchronous
def test_one_channel_or_level_is_chosen(tmp_path: Path) -> None:
    levels = [IMAGE[:2], IMAGE[:2, ::2, ::2]]
    path = write_ome_zarr(tmp_path / "i.zarr", levels, "cyx", channels=["DNA", "actin"], chunks=(1, 8, 8))
    fn = functools.partial(scipy.ndimage.maximum_filter, size=3)
    assert_equal(map_tiles(path, fn, overlap=1, compute=True), fn(IMAGE[0]))
    assert_equal(map_tiles(path, fn, overlap=1, channel="actin", compute=True), fn(IMAGE[1]))
    assert_equal(map_tiles(path, same, channel=None, level=1, compute=True), levels[1])
    made = map_tiles(path, fn, overlap=1, channel=1, level=1, write_to=tmp_path / "o.zarr")
    assert_equal(made.compute(), fn(levels[1][1]))
    assert zarr.open_array(tmp_path / "o.zarr").metadata.dimension_names == ("y", "x")


# What the function may do


def spoil(block: NDArray[Any]) -> NDArray[Any]:
    block += 1
    return block


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "dask of numpy", "zarr in memory"])
@pytest.mark.parametrize("to_store", [True, False])
def test_a_function_that_writes_to_its_block_harms_nothing(kind: str, to_store: bool, tmp_path: Path) -> None:
    values = IMAGE.copy()
    values.flags.writeable = kind != "numpy"
    lazy = da.from_array(values, chunks=(9, 9, 9))
    source = {
        "numpy": values,
        "dask": lazy.persist(scheduler="synchronous") if kind == "dask" else None,
        "dask of numpy": lazy,
        "zarr in memory": zarr.create_array(MemoryStore(), data=values, chunks=(4, 8, 8)),
    }[kind]
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr", "chunks": (4, 8, 8)} if to_store else {}
    made = map_tiles(source, spoil, tile_shape=(4, 8, 8), overlap=1, **to)
    assert_equal(made.compute(), IMAGE + 1)
    np.testing.assert_array_equal(values, IMAGE)
    if kind != "numpy":
        np.testing.assert_array_equal(np.asarray(source), IMAGE)


@dataclass
class Keeping:
    """An `fn` that keeps what it is given, and gives it back."""

    kept: list[NDArray[Any]]

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        self.kept.append(block)
        return block


@synchronous
def test_blocks_that_are_kept_stay_as_they_were(stored: Path, tmp_path: Path) -> None:
    fn = Keeping([])
    map_tiles(stored, fn, tile_shape=(4, 8, 8), write_to=tmp_path / "out.zarr")
    assert contents(fn.kept) == contents(padded_blocks(IMAGE, (4, 8, 8), (0, 0, 0)))


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_blocks_are_in_native_byte_order(kind: str, recording: Any) -> None:
    values = IMAGE.astype(">u2")
    source = values if kind == "numpy" else zarr.create_array(MemoryStore(), data=values)
    fn = Keeping([])
    made = map_tiles(source, fn, compute=True)
    assert all(block.dtype == np.dtype("=u2") and block.dtype.isnative for block in fn.kept)
    assert_equal(made, IMAGE)


# dtype


@synchronous
@pytest.mark.parametrize(("given_dtype", "dtype"), [("float64", "float64"), (None, "uint16"), ("int32", "int32")])
def test_the_result_has_the_dtype_asked_for(given_dtype: Any, dtype: str, tmp_path: Path) -> None:
    fn = as_float if given_dtype == "float64" else same
    expected = fn(IMAGE).astype(dtype)
    assert_equal(map_tiles(IMAGE, fn, dtype=given_dtype, compute=True), expected)
    made = map_tiles(IMAGE, fn, dtype=given_dtype, write_to=tmp_path / "out.zarr")
    assert zarr.open_array(tmp_path / "out.zarr").dtype == dtype
    assert_equal(made.compute(), expected)


@synchronous
def test_floats_are_cast_to_narrower_floats() -> None:
    assert_equal(map_tiles(IMAGE, as_float, dtype="float32", compute=True), (IMAGE / 2).astype(np.float32))


@synchronous
def test_a_dtype_that_is_not_cast_is_named() -> None:
    words = r"the function returned float64, which is not cast to uint16: give dtype='float64'"
    with pytest.raises(TileError, match=words):
        map_tiles(IMAGE, as_float, compute=True)


@synchronous
@pytest.mark.parametrize(("dtype", "wide"), [("uint8", "uint16"), ("int16", "int64"), ("int8", "uint8")])
def test_integers_are_cast_where_they_fit(dtype: str, wide: str) -> None:
    image = (IMAGE % 120).astype(dtype)
    image[4, 3, 20] = np.iinfo(dtype).max
    assert_equal(map_tiles(image, lambda block: block.astype(wide), compute=True), image)
    words = rf"the function returned {wide} from 1 to \d+, which {dtype} cannot hold: give dtype='{wide}'"
    with pytest.raises(TileError, match=words):
        map_tiles(image, lambda block: block.astype(wide) + 1, compute=True)


@synchronous
def test_integers_below_those_of_the_dtype_are_refused() -> None:
    with pytest.raises(TileError, match="the function returned int32 from -129 to 0, which int8 cannot hold"):
        map_tiles(np.array([1, 130], np.int16), lambda block: 1 - block.astype(np.int32), dtype="int8", compute=True)


# Axes that come and go


@synchronous
@pytest.mark.parametrize("to_store", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_a_projection_is_that_of_the_whole_image(kind: str, to_store: bool, stored: Path, tmp_path: Path) -> None:
    image = {"numpy": IMAGE, "zarr": stored, "dask": da.from_array(IMAGE, chunks=(4, 9, 9)) + 0}[kind]
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    made = map_tiles(image, project, drop_axis=0, **to)
    if not to_store:
        chunks = {"numpy": (1, 1), "zarr": (3, 5), "dask": (3, 4)}
        assert made.numblocks == chunks[kind]
    assert_equal(made.compute(), IMAGE.max(axis=0))
    if to_store and kind == "zarr":
        assert zarr.open_array(tmp_path / "out.zarr").chunks == (8, 8)


def smooth_projection(block: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(median(block.max(axis=1)))


def test_axes_that_stay_have_their_overlap(scheduler: str) -> None:
    made = map_tiles(IMAGE, smooth_projection, drop_axis=1, overlap=1, tile_shape=(2, 20, 8))
    assert made.numblocks == (5, 5)
    assert_equal(made.compute(), smooth_projection(IMAGE))


@synchronous
def test_channels_are_reduced(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [IMAGE], "cyx", channels=list("abcdefghi"), chunks=(1, 8, 8))
    made = map_tiles(path, project, channel=None, drop_axis=-3, write_to=tmp_path / "out.zarr")
    assert_equal(made.compute(), IMAGE.max(axis=0))
    array = zarr.open_array(tmp_path / "out.zarr")
    assert (array.chunks, array.metadata.dimension_names) == ((8, 8), ("y", "x"))


@synchronous
@pytest.mark.parametrize("to_store", [True, False])
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_classes_come_first_or_last(axis: int, to_store: bool, stored: Path, tmp_path: Path) -> None:
    fn = functools.partial(probabilities, axis=axis)
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {"tile_shape": (4, 8, 8)}
    made = map_tiles(stored, fn, overlap=1, new_axis={axis: 3}, dtype="float32", **to)
    assert_equal(made.compute(), fn(IMAGE))


@synchronous
@pytest.mark.parametrize("tile_shape", [None, (9, 8, 16)])
@pytest.mark.parametrize("to_store", [True, False])
def test_an_axis_takes_the_place_of_another(
    tile_shape: Any, to_store: bool, stored: Path, tmp_path: Path, recording: Any
) -> None:
    """Channels to classes."""
    fn = recording(lambda block: np.stack([block.min(0), block.max(0)], -1))
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    made = map_tiles(stored, fn, drop_axis=[0], new_axis={2: 2}, overlap=2, tile_shape=tile_shape, **to)
    assert_equal(made.compute(), fn.fn(IMAGE))
    assert {block.shape[0] for block in fn.blocks()} == {9}
    if tile_shape:
        assert fn.n_calls == 9


@synchronous
def test_new_axes_have_one_voxel_where_no_extent_is_given() -> None:
    made = map_tiles(IMAGE, lambda block: block[:, None, :, :, None], new_axis=[1, -1], tile_shape=(4, 8, 8))
    assert_equal(made.compute(), IMAGE[:, None, :, :, None])
    assert made.numblocks == (3, 1, 3, 5, 1)


@synchronous
@given(data=st.data())
def test_axes_come_and_go_in_any_order(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("axes")
    shape = data.draw(shapes(1, 3))
    values = np.random.default_rng(1).integers(0, 99, shape).astype(np.int32)
    dropped = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)), "dropped"))
    n_new = data.draw(st.integers(0 if len(dropped) < len(shape) else 1, 2))
    ndim = len(shape) - len(dropped) + n_new
    new = sorted(data.draw(st.sets(st.integers(0, ndim - 1), min_size=n_new, max_size=n_new)))
    extents = [data.draw(st.integers(1, 3)) for _ in new]

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        made = np.expand_dims(block.sum(axis=tuple(dropped)), tuple(new))
        for axis, n in zip(new, extents, strict=True):
            ramp = np.arange(1, n + 1).reshape([n if a == axis else 1 for a in range(ndim)])
            made = made * ramp
        return np.asarray(made)

    some = data.draw(tile_shapes(shape), "tiles")
    tiles = [n if axis in dropped else t for axis, (n, t) in enumerate(zip(shape, some, strict=True))]
    source = of_kind(data.draw(st.sampled_from(["numpy", "zarr", "dask"])), values, data, folder)
    options: dict[str, Any] = {"tile_shape": data.draw(st.sampled_from([None, tuple(tiles)])), "dtype": "int64"}
    if data.draw(st.booleans(), "to store"):
        options |= {
            "write_to": folder / "b.zarr",
            "chunks": data.draw(st.none() | st.integers(3, 9)),
            "tile_shape": None,
        }
    made = map_tiles(source, fn, drop_axis=dropped, new_axis=dict(zip(new, extents, strict=True)), **options)
    assert_equal(made.compute(), fn(values))
    shutil.rmtree(folder)


@synchronous
def test_projections_are_stored_from_tiles_of_bounded_size(tmp_path: Path, recording: Any) -> None:
    """What is read of dropped axes counts: else the tiles of a small result would take the image whole."""
    image = zarr.create_array(tmp_path / "a.zarr", shape=(4096, 64, 64), chunks=(64, 16, 16), dtype=np.uint16)
    image[:, :16] = 7
    fn = recording(project)
    made = map_tiles(image, fn, drop_axis=0, write_to=tmp_path / "out.zarr")
    assert_equal(made.compute(), image[...].max(axis=0))
    assert max(block.nbytes for block in fn.blocks()) < image.nbytes


# Some tiles only


@synchronous
@pytest.mark.parametrize("to_store", [True, False])
def test_block_ids_are_those_of_the_result(to_store: bool, stored: Path, tmp_path: Path, recording: Any) -> None:
    fn = recording(lambda block: np.stack([block.max(axis=1)] * 2))
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr", "chunks": (1, 4, 8)} if to_store else {"compute": True}
    options: dict[str, Any] = {"drop_axis": 1, "new_axis": {0: 2}, "tile_shape": (4, 20, 8), "overlap": 1, **to}
    made = np.asarray(map_tiles(stored, fn, block_ids=[1, 5], **options))
    whole = np.stack([IMAGE.max(axis=1)] * 2)
    expected = np.zeros_like(whole)
    expected[:, :4, 8:16] = whole[:, :4, 8:16]
    expected[:, 4:8, :8] = whole[:, 4:8, :8]
    assert_equal(made, expected)
    assert fn.n_calls == 2
    with pytest.raises(GeometryError, match="block_ids"):
        map_tiles(stored, fn, block_ids=[15], **{**options, "write_to": None, "compute": True})


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_tiles_outside_of_the_mask_are_not_made(kind: str, tmp_path: Path, recording: Any) -> None:
    mask = np.zeros(IMAGE.shape, bool)
    mask[:4, 3:7, 20:22] = True
    fn = recording()
    inside: Any = {
        "numpy": mask,
        "dask": da.from_array(mask, chunks=5),
        "zarr": zarr.create_array(MemoryStore(), data=mask),
    }
    options: dict[str, Any] = {"tile_shape": (4, 8, 8), "overlap": 3, "mask": inside[kind]}
    assert_equal(map_tiles(IMAGE, fn, compute=True, **options), np.where(mask, IMAGE, 0).astype(np.uint16))
    assert fn.n_calls == 1
    made = map_tiles(IMAGE, fn, write_to=tmp_path / "out.zarr", chunks=(4, 8, 8), **options)
    assert_equal(made.compute(), np.where(mask, IMAGE, 0).astype(np.uint16))
    assert fn.n_calls == 2


@synchronous
def test_of_an_image_in_a_graph_only_what_the_mask_meets_is_made(tmp_path: Path) -> None:
    mask = np.zeros(IMAGE.shape, bool)
    mask[:4, 3:7, 20:22] = True
    made = Keeping([])
    image = da.from_array(IMAGE, chunks=(4, 8, 8)).map_blocks(made, meta=np.empty((0, 0, 0), np.uint16))
    inside = da.from_array(mask, chunks=5) + 0
    map_tiles(image, same, overlap=3, mask=inside, write_to=tmp_path / "out.zarr", tile_shape=(4, 8, 8))
    # The padded tile is [0:7, 0:11, 13:27].
    assert len(made.kept) == 2 * 2 * 3


@synchronous
@pytest.mark.parametrize("shards", [None, (4, 16, 16)])
def test_tiles_of_single_units_are_whole_along_new_axes(shards: Any, tmp_path: Path) -> None:
    image = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(block[None], 7, axis=0)

    options: dict[str, Any] = {"new_axis": {0: 7}, "chunks": (2, 16, 8), "shards": shards}
    made = map_tiles(image, fn, block_ids=[0, 1], write_to=tmp_path / "out.zarr", **options).compute()
    np.testing.assert_array_equal(made[:, :16, :16], fn(image[:16, :16]))
    assert not made[:, 16:, :16].any()


# Failures, and going on after them


@dataclass(frozen=True)
class FailingOnce:
    """An `fn` that fails on one block while a file is there."""

    flag: Path
    value: int

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        if self.flag.exists() and self.value in block:
            raise RuntimeError("no")
        return block * 2


def test_a_failed_run_goes_on_where_it_was(tmp_path: Path, recording: Any, scheduler: str) -> None:
    image = IMAGE.astype(np.uint32)
    image[5, 10, 10] = 99999
    source = zarr.create_array(tmp_path / "b.zarr", data=image, chunks=(4, 8, 8))
    flag = tmp_path / "fails"
    flag.touch()
    fn = recording(FailingOnce(flag, 99999))
    options: dict[str, Any] = {"tile_shape": (4, 8, 8), "chunks": (4, 8, 8), "write_to": tmp_path / "out.zarr"}
    with pytest.raises(TileError, match="the function failed with RuntimeError: no") as caught:
        map_tiles(source, fn, overlap=1, **options)
    assert caught.value.tile == (1, 1, 1)
    assert caught.value.region == (slice(3, 9), slice(7, 17), slice(7, 17))
    assert fn.n_calls == 45
    assert not (tmp_path / "out.zarr").exists()
    flag.unlink()
    map_tiles(source, fn, overlap=1, resume=True, **options)
    assert_equal(zarr.open_array(tmp_path / "out.zarr")[...], image * 2)
    assert fn.n_calls == 46
    assert leftovers(tmp_path) == []
    map_tiles(source, fn, overlap=1, resume=True, **options)
    assert fn.n_calls == 46


@synchronous
@pytest.mark.parametrize(
    ("change", "words"),
    [({"overlap": 2}, "function"), ({"dtype": "int64"}, "function|tiles"), ({"fn": same}, "function")],
)
def test_another_run_is_not_gone_on_with(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    flag = tmp_path / "fails"
    flag.touch()
    image = IMAGE.astype(np.uint32)
    image[5, 10, 10] = 99999
    options: dict[str, Any] = {"fn": FailingOnce(flag, 99999), "overlap": 1, "tile_shape": (4, 8, 8)}
    with pytest.raises(TileError):
        map_tiles(image, write_to=tmp_path / "out.zarr", **options)
    with pytest.raises(ResumeError, match=words):
        map_tiles(image, write_to=tmp_path / "out.zarr", resume=True, **{**options, **change})


def wrong_shape(block: NDArray[Any]) -> NDArray[Any]:
    return block[1:]


def no_array(block: NDArray[Any]) -> Any:
    return block.tolist()


@pytest.mark.parametrize(
    ("fn", "options", "words"),
    [
        (wrong_shape, {}, r"shape \(5, 9, 9\) for a padded tile of shape \(6, 9, 9\); expected \(6, 9, 9\)"),
        (same, {"drop_axis": 0, "tile_shape": (9, 8, 8)}, r"shape \(9, 9, 9\) .* expected \(9, 9\): .*drop_axis"),
        (same, {"new_axis": {0: 4}}, r"shape \(6, 9, 9\) for .* expected \(4, 6, 9, 9\): .*new_axis"),
        (no_array, {}, r"the function returned list; expected a numpy array of shape \(6, 9, 9\)"),
    ],
)
def test_what_a_function_returns_is_checked(fn: Any, options: dict[str, Any], words: str, stored: Path) -> None:
    with dask.config.set(scheduler="synchronous"), pytest.raises(TileError, match=words) as caught:
        map_tiles(stored, fn, compute=True, block_ids=[0], **{"tile_shape": (5, 8, 8), "overlap": 1, **options})
    assert set(caught.value.tile) == {0}
    assert isinstance(caught.value.__cause__, TypeError | ValueError)


# Refused before the first task


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fn": 3}, ParameterError, "fn 3 cannot be called"),
        ({"dtype": "text"}, ParameterError, "dtype 'text' is none of numbers"),
        ({"dtype": "U3"}, ParameterError, "none of numbers"),
        ({"overlap": -1}, GeometryError, "overlap"),
        ({"overlap": (1, 1)}, GeometryError, r"overlap \(1, 1\) has 2 entries, the image has 3 axes"),
        ({"tile_shape": (4, 4)}, GeometryError, "tile_shape"),
        ({"tile_shape": "some"}, ParameterError, "tile_shape 'some' is unknown"),
        ({"drop_axis": 3}, GeometryError, r"drop_axis 3 is not of axes: the image \(9, 20, 33\) has 3 axes"),
        ({"drop_axis": "z"}, GeometryError, "drop_axis 'z' is not of axes"),
        ({"drop_axis": (0, -3)}, GeometryError, r"drop_axis \(0, -3\) names an axis twice"),
        ({"drop_axis": (0, 1, 2)}, GeometryError, r"drop_axis \(0, 1, 2\) leaves no axis"),
        ({"drop_axis": 0, "tile_shape": (4, 8, 8)}, GeometryError, r"cuts the axes \[0\] .* Give \(9,\) voxels there"),
        ({"drop_axis": 0, "tile_shape": lambda *_: (4, 8, 8)}, GeometryError, r"cuts the axes \[0\]"),
        ({"new_axis": 4}, GeometryError, "new_axis 4 is not of axes: the result, 1 new ones counted, has 4 axes"),
        ({"new_axis": {0: 0}}, GeometryError, "new_axis extents"),
        ({"new_axis": {0: 1.5}}, GeometryError, "new_axis extents"),
        ({"mask": np.ones((9, 20))}, GeometryError, "mask has shape"),
        ({"block_ids": [99]}, GeometryError, "block_ids"),
        ({"zarr_format": 7}, ParameterError, "zarr_format"),
        ({"channel": 3, "image": "nothing.zarr"}, ImageError, "nothing.zarr"),
        ({"image": np.array(3)}, GeometryError, "no axes"),
        ({"overlap": "1"}, GeometryError, "overlap"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with nothing_computed(), pytest.raises(error, match=words):
        map_tiles(**{"image": IMAGE, "fn": same, **options})


@synchronous
def test_tiles_that_share_a_chunk_are_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"tile_shape \(6, 8, 8\) is not whole chunks or shards"):
        map_tiles(stored, same, tile_shape=(6, 8, 8), write_to=tmp_path / "out.zarr")


@synchronous
def test_outputs_are_not_overwritten_unasked(stored: Path, tmp_path: Path) -> None:
    map_tiles(stored, same, write_to=tmp_path / "out.zarr")
    before = digest(tmp_path)
    with pytest.raises(OutputExistsError):
        map_tiles(stored, spoil, write_to=tmp_path / "out.zarr")
    with pytest.raises(OutputError, match="would overwrite"):
        map_tiles(stored, spoil, write_to=stored, overwrite=True)
    assert digest(tmp_path) == before
    assert_equal(map_tiles(stored, spoil, write_to=tmp_path / "out.zarr", overwrite=True).compute(), IMAGE + 1)


def test_a_function_that_cannot_be_pickled_is_refused() -> None:
    lock = threading.Lock()

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        with lock:
            return block

    with dask.config.set(scheduler="processes"), pytest.raises(SchedulerError, match=r"fn .* cannot be pickled"):
        map_tiles(IMAGE, fn)
    with dask.config.set(scheduler="threads"):
        assert_equal(map_tiles(IMAGE, fn, compute=True), IMAGE)


def test_an_overlap_larger_than_the_tiles_makes_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"overlap \(5, 5, 5\) exceeds the tile shape \(4, 8, 8\)") as caught:
        map_tiles(IMAGE, same, tile_shape=(4, 8, 8), overlap=5)
    assert caught[0].filename == __file__


# Odd images


@synchronous
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
@pytest.mark.parametrize("to_store", [True, False])
def test_an_image_without_voxels_gives_one(
    shape: tuple[int, ...], to_store: bool, tmp_path: Path, recording: Any
) -> None:
    fn = recording()
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {}
    made = map_tiles(np.zeros(shape, np.uint8), fn, overlap=1, **to).compute()
    assert_equal(made, np.zeros(shape, np.uint8))
    assert fn.n_calls == 0


@synchronous
def test_a_dropped_axis_without_voxels_is_what_the_function_makes_of_it() -> None:
    image = np.zeros((0, 5), np.int64)
    assert_equal(map_tiles(image, lambda block: block.sum(0), drop_axis=0, compute=True), np.zeros(5, np.int64))
    assert plan(image, lambda block: block.sum(0), operation="map_tiles", drop_axis=0).voxels_read == 0


# Plans


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Region]:
    """What tasks read of stored images."""
    found: list[Region] = []
    read = StoredImage.read

    def recorded(self: StoredImage, region: Region, out: Any = None) -> NDArray[Any]:
        found.append(region)
        return read(self, region, out)

    monkeypatch.setattr(StoredImage, "read", recorded)
    return found


def stacked(block: NDArray[Any]) -> NDArray[Any]:
    return np.stack([block.max(axis=0)] * 2, -1)


@synchronous
@pytest.mark.parametrize(
    ("fn", "options"),
    [
        (same, {"overlap": (2, 0, 3), "tile_shape": (4, 7, 9)}),
        (same, {"overlap": 2}),
        (same, {"overlap": 1, "tile_shape": (4, 7, 9), "block_ids": [3, 7]}),
        (project, {"overlap": 1, "drop_axis": 0, "tile_shape": (9, 7, 9)}),
        (stacked, {"overlap": 1, "drop_axis": 0, "new_axis": {2: 2}, "tile_shape": (9, 7, 9), "block_ids": [0, 5]}),
    ],
)
def test_a_plan_counts_what_is_read(fn: Any, options: dict[str, Any], stored: Path, regions: list[Region]) -> None:
    made = plan(stored, fn, operation="map_tiles", time_tiles=0, **options)
    assert regions == []
    map_tiles(stored, fn, compute=True, **options)
    read = sum(np.prod([s.stop - s.start for s in region]) for region in regions)
    met = [[-(-s.stop // c) - s.start // c for s, c in zip(region, (4, 8, 8), strict=True)] for region in regions]
    assert (made.operation, made.n_tiles, made.voxels_read) == ("map_tiles", len(regions), read)
    assert made.chunks_decoded == sum(np.prod(one) for one in met)
    cores = TileGrid.regular(IMAGE.shape, options.get("tile_shape", (4, 8, 8)))
    owned = sum(np.prod(cores.tile(n).shape) for n in options.get("block_ids", range(cores.n_tiles)))
    assert made.amplification == pytest.approx(read / owned)


@synchronous
@pytest.mark.parametrize("to_store", [True, False])
def test_a_plan_tries_tiles_and_leaves_nothing(to_store: bool, stored: Path, tmp_path: Path, recording: Any) -> None:
    fn = recording(stacked)
    before = digest(stored)
    to: dict[str, Any] = {"write_to": tmp_path / "out.zarr"} if to_store else {"tile_shape": (9, 8, 8)}
    made = plan(stored, fn, operation="map_tiles", drop_axis=0, new_axis={-1: 2}, time_tiles=2, **to)
    assert made.fits
    assert made.seconds is not None
    assert fn.n_calls >= 2
    assert digest(stored) == before
    assert not (tmp_path / "out.zarr").exists()


def test_a_plan_refuses_an_output_as_the_run_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mask": IMAGE > 0, "write_to": tmp_path / "out.zarr", "chunks": (4, 8, 8)}
    map_tiles(IMAGE, same, **options)
    with pytest.raises(OutputExistsError) as planned:
        plan(IMAGE, same, operation="map_tiles", **options)
    with pytest.raises(OutputExistsError) as run:
        map_tiles(IMAGE, same, **options)
    assert str(planned.value) == str(run.value)


def test_memory_is_that_of_whole_tiles(stored: Path) -> None:
    """They are not cut, however large: what does not fit is refused."""
    image = zarr.zeros((1 << 14, 1 << 14, 64), chunks=(1 << 14, 1 << 14, 1), dtype=np.uint8)
    options: dict[str, Any] = {"tile_shape": image.shape, "time_tiles": 0, "memory_limit": "8 GiB", "n_workers": 1}
    made = plan(image, same, operation="map_tiles", **options)
    assert not made.fits
    assert "takes at least 16.00 GiB" in made.problems[0]
    projected = plan(image, project, operation="map_tiles", drop_axis=2, **options)
    assert not projected.fits


@synchronous
def test_a_run_of_tiles_larger_than_the_memory_does_not_start(recording: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Workers(n=1, tiles=1, cpus=1, memory=1000, most_memory=1000, held=0, limit="the memory")
    monkeypatch.setattr("blockbuster.needs.workers_of", lambda _scheduler: small)
    fn = recording()
    with pytest.raises(CapacityError, match="a task on one tile"):
        map_tiles(IMAGE, fn, compute=True)
    assert fn.n_calls == 0
