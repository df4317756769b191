"""Stacks cut into pieces, and put together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

import blockbuster.chunking
from blockbuster.chunking import (
    Mode,
    get_split_stack_total_shape,
    merge_split_stack,
    split_stack,
    stack_splitter,
)
from blockbuster.errors import GeometryError, OutputError, ParameterError, TileError
from blockbuster.graph import PassesGraph
from blockbuster.sources import StoredImage, open_source
from tests.helpers import digest, nothing_computed
from tests.strategies import chunkings, images, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")
fewer = settings(max_examples=max(settings.default.max_examples // 2, 1))  # type: ignore[union-attr]

MODES: tuple[Mode, ...] = ("forward", "symmetric")


def numbered(shape: Sequence[int]) -> NDArray[np.int64]:
    """Every voxel another value."""
    return np.arange(math.prod(shape)).reshape(shape)


def bounds(slices: NDArray[Any], axis: int) -> list[tuple[int, int]]:
    """The pieces along one axis."""
    line = np.moveaxis(slices, axis, 0).reshape(slices.shape[axis], -1)[:, 0]
    return [(region[axis].start, region[axis].stop) for region in line]


def rebuilt(pieces: NDArray[Any], change: Callable[[Any], Any]) -> NDArray[Any]:
    """The grid of the pieces after some work on each."""
    made = np.empty(pieces.shape, object)
    for index in np.ndindex(pieces.shape):
        made[index] = change(pieces[index])
    return made


# Where the pieces lie


Z = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize(
    ("shape", "max_pixels", "overlap", "expected"),
    [
        ((5, 4, 4), (1, 3, 3), (0, 1, 1), [Z, [(0, 4), (3, 4)], [(0, 4), (3, 4)]]),
        ((5, 4, 4), (1, 3, 3), (0, 1, 2), [Z, [(0, 4), (3, 4)], [(0, 4), (3, 4)]]),
        (
            (5, 4, 4),
            (1, 3, 3),
            (1, 1, 2),
            [[(0, 2), (1, 3), (2, 4), (3, 5), (4, 5)], [(0, 4), (3, 4)], [(0, 4), (3, 4)]],
        ),
        ((5, 4, 4), (1, 3, 3), None, [Z, [(0, 3), (3, 4)], [(0, 3), (3, 4)]]),
        ((10, 10, 10), 9, 3, [[(0, 10), (9, 10)]] * 3),
        ((10, 10, 10), 9, 0, [[(0, 9), (9, 10)]] * 3),
        ((10, 10, 10), (20, 5, 4), 2, [[(0, 10)], [(0, 7), (5, 10)], [(0, 6), (4, 10), (8, 10)]]),
        (
            (7, 9, 11),
            (3, 4, 5),
            (1, 2, 3),
            [[(0, 4), (3, 7), (6, 7)], [(0, 6), (4, 9), (8, 9)], [(0, 8), (5, 11), (10, 11)]],
        ),
        ((10,), 3, 5, [[(0, 8), (3, 10), (6, 10), (9, 10)]]),
        ((0, 3), 2, 1, [[(0, 0)], [(0, 3), (2, 3)]]),
    ],
)
def test_pieces_reach_into_the_next_one(shape: Any, max_pixels: Any, overlap: Any, expected: Any) -> None:
    slices, offsets = stack_splitter(shape, max_pixels, overlap)
    assert slices.shape == tuple(map(len, expected))
    assert [bounds(slices, axis) for axis in range(len(shape))] == expected
    assert offsets.dtype == np.int64
    assert offsets.shape == (*slices.shape, len(shape))
    for index in np.ndindex(slices.shape):
        assert offsets[index].tolist() == [s.start for s in slices[index]]
        assert slices[index] == tuple(slice(*expected[axis][i]) for axis, i in enumerate(index))


def test_the_last_piece_lies_at_its_offset() -> None:
    slices, offsets = stack_splitter((5, 4, 4), (1, 3, 3), (0, 1, 1))
    assert slices.shape == (5, 2, 2)
    assert offsets[4, 1, 1].tolist() == [4, 3, 3]


def test_axes_without_an_entry_stay_whole() -> None:
    slices, offsets = stack_splitter((5, 4, 4, 2), (2, 3, 3), 1)
    assert slices.shape == (3, 2, 2)
    assert offsets.shape == (3, 2, 2, 3)
    image = numbered((5, 4, 4, 2))
    np.testing.assert_array_equal(image[slices[1, 0, 1]], image[2:5, 0:4, 3:4, :])
    assert [piece.shape[-1] for piece in split_stack(image, (2, 3, 3), 1).flat] == [2] * 12


@st.composite
def splits(draw: st.DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    """Ways to split, overlaps larger than the pieces among them, and trailing axes left whole."""
    n_axes = draw(st.integers(1, len(shape)), "axes that are split")
    options: dict[str, Any] = {"max_pixels": draw(tile_shapes(shape))[:n_axes]}
    longest = max(shape) + 2
    options["overlap"] = draw(
        st.none() | st.integers(0, longest) | st.tuples(*[st.integers(0, longest)] * n_axes), "overlap"
    )
    return options


@given(data=st.data())
def test_the_first_voxels_of_the_pieces_are_the_grid_and_they_read_the_overlap(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 4))
    options = data.draw(splits(shape))
    cores = options["max_pixels"]
    overlaps = np.broadcast_to(0 if options["overlap"] is None else options["overlap"], len(cores))
    slices, offsets = stack_splitter(shape, **options)
    assert slices.shape == tuple(-(-n // m) for n, m in zip(shape, cores, strict=False))
    for index in np.ndindex(slices.shape):
        assert offsets[index].tolist() == [k * m for k, m in zip(index, cores, strict=True)]
        last = [min(k * m + m + o, n) for k, m, o, n in zip(index, cores, overlaps, shape, strict=False)]
        assert [s.stop for s in slices[index]] == last


@pytest.mark.parametrize(
    ("shape", "max_pixels", "overlap", "words"),
    [
        ((4, 4), (2, 2, 2), None, "splits 3 axes, the stack has 2 axes"),
        ((4, 4), (), None, "splits 0 axes"),
        ((4, 4), (2, 0), None, "below 1"),
        ((4, 4), 1.5, None, "not an int"),
        ((4, 4), 2, -1, "below 0"),
        ((4, 4), (2,), (1, 1), "has 2 entries"),
        ((4, -4), 2, None, "below 0"),
        ((), 2, None, "splits 0 axes"),
        (4, 2, None, "shape 4 is not one int per axis"),
    ],
)
def test_splits_that_do_not_fit_are_refused(shape: Any, max_pixels: Any, overlap: Any, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        stack_splitter(shape, max_pixels, overlap)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ParameterError, match="mode 'both' is unknown"):
        split_stack(np.zeros(4), 2, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="mode 'both' is unknown"):
        merge_split_stack([np.zeros(4)], 2, mode="both")  # type: ignore[arg-type]


# Lazy pieces


SOURCES: dict[str, Callable[[st.DataObject, NDArray[Any]], Any]] = {
    "numpy": lambda _data, values: values,
    "zarr": lambda data, values: in_memory(values, data.draw(tile_shapes(values.shape), "chunks")),
    "dask": lambda data, values: da.from_array(values, chunks=data.draw(chunkings(values.shape))).map_blocks(np.copy),
    "dask from zarr": lambda data, values: da.from_zarr(
        in_memory(values, data.draw(tile_shapes(values.shape), "chunks"))
    ),
}


def in_memory(values: NDArray[Any], chunks: Sequence[int]) -> zarr.Array[Any]:
    made = zarr.create_array(MemoryStore(), shape=values.shape, dtype=values.dtype, chunks=tuple(chunks))
    made[...] = values
    return made


@synchronous
@given(data=st.data())
def test_pieces_are_the_slices_of_the_image(data: st.DataObject) -> None:
    image = data.draw(shapes(1, 4).flatmap(lambda shape: images(shape, ["uint16", "bool"])))
    source = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)), "source")](data, image)
    options = data.draw(splits(image.shape))
    with nothing_computed():
        pieces = split_stack(source, **options)
    slices, _ = stack_splitter(image.shape, **options)
    assert pieces.shape == slices.shape
    for index in np.ndindex(pieces.shape):
        assert pieces[index].npartitions == 1
        assert pieces[index].dtype == image.dtype
        np.testing.assert_array_equal(pieces[index].compute(), image[slices[index]])


@synchronous
@fewer
@given(data=st.data())
def test_symmetric_pieces_reach_to_both_sides(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3))
    options = data.draw(splits(shape))
    cores = options["max_pixels"]
    overlaps = np.broadcast_to(0 if options["overlap"] is None else options["overlap"], len(cores))
    image = numbered(shape)
    pieces = split_stack(image, **options, mode="symmetric")
    for index in np.ndindex(pieces.shape):
        region = tuple(slice(max(k * m - o, 0), k * m + m + o) for k, m, o in zip(index, cores, overlaps, strict=True))
        np.testing.assert_array_equal(pieces[index].compute(), image[region])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[slice, ...]]:
    """The regions that are read of stored images."""
    regions: list[tuple[slice, ...]] = []
    read = StoredImage.read

    def counted(image: StoredImage, region: Any, out: Any = None) -> NDArray[Any]:
        regions.append(region)
        return read(image, region, out)

    monkeypatch.setattr(StoredImage, "read", counted)
    return regions


@synchronous
def test_splitting_reads_nothing_and_a_piece_reads_itself_at_once(
    reads: list[tuple[slice, ...]], tmp_path: Path
) -> None:
    image = numbered((8, 9)).astype(np.uint16)
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(2, 2))
    for source in (zarr.open_array(tmp_path / "a.zarr", mode="r"), str(tmp_path / "a.zarr")):
        pieces = split_stack(source, 4, 1)
        merged = merge_split_stack(pieces, 4, 1)
        assert reads == []
        assert len(pieces[0, 1].__dask_graph__()) == 1
        np.testing.assert_array_equal(pieces[0, 1].compute(), image[0:5, 4:9])
        assert reads == [(slice(0, 5, 1), slice(4, 9, 1))]
        reads.clear()
        np.testing.assert_array_equal(merged.compute(), image)
        assert len(reads) == pieces.size
        reads.clear()


@synchronous
def test_pieces_can_be_indexed(reads: list[tuple[Any, ...]]) -> None:
    image = numbered((8, 9))
    piece = split_stack(in_memory(image, (2, 2)), (8, 4), 1)[0, 1]
    np.testing.assert_array_equal(piece[2:7:2, 1].compute(), image[2:7:2, 5])
    np.testing.assert_array_equal(piece[::-1, [0, 2]].compute(), image[::-1, [4, 6]])
    np.testing.assert_array_equal(piece[None, 3].compute(), image[None, 3, 4:9])


def test_what_dask_asks_of_a_piece_is_all_that_is_read(reads: list[tuple[Any, ...]]) -> None:
    image = numbered((8, 9))
    for source in (in_memory(image, (2, 2)), image):
        part = blockbuster.chunking._Part(open_source(source), (slice(2, 8), slice(4, 9)))  # type: ignore[arg-type]
        assert (part.shape, part.ndim, part.dtype) == ((6, 5), 2, image.dtype)
        np.testing.assert_array_equal(part[1:5:2, 1], image[3:7:2, 5])
        np.testing.assert_array_equal(part[-2:], image[6:8, 4:9])
    assert reads == [(slice(3, 7, 2), 5), (slice(6, 8, 1), slice(4, 9, 1))]


def test_the_same_pieces_have_the_same_names(tmp_path: Path) -> None:
    image = numbered((8, 9))
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(2, 2))
    for source in (image, str(tmp_path / "a.zarr"), in_memory(image, (3, 3))):
        names = [[piece.name for piece in split_stack(source, 4, 1).flat] for _ in range(2)]
        assert names[0] == names[1]
        assert len(set(names[0])) == 6
        # The piece of another overlap that has the same voxels is the same piece.
        assert split_stack(source, 4, 2)[1, 2].name == names[0][-1]
    assert split_stack(image, 4)[0, 0].name != split_stack(image + 1, 4)[0, 0].name


@synchronous
def test_changes_of_a_piece_leave_the_image_as_it_is() -> None:
    image = numbered((4, 4))
    piece = split_stack(image, 4)[0, 0]
    piece.map_blocks(lambda block: np.add(block, 1, out=block)).compute()
    np.testing.assert_array_equal(image, numbered((4, 4)))


def test_the_task_of_a_piece_in_memory_carries_its_own_voxels_only() -> None:
    pieces = split_stack(np.zeros((64, 64, 64)), 8)
    assert len(cloudpickle.dumps(pieces[1, 1, 1])) < 2 * 8**3 * 8


# Merging


@synchronous
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "max_pixels", "overlap"),
    [
        ((5, 4, 4), (1, 3, 3), (0, 1, 1)),
        ((5, 4, 4), (1, 3, 3), (0, 1, 2)),
        ((5, 4, 4), (1, 3, 3), (1, 1, 2)),
        ((5, 4, 4), (1, 3, 3), None),
        ((10, 10, 10), 9, 3),
        ((10, 10, 10), 9, 0),
        ((10, 10, 10), (20, 5, 4), 2),
        ((7, 9, 11), (3, 4, 5), (1, 2, 3)),
        ((10,), 3, 5),
        ((5, 7, 7), (1, 3, 3), (0, 2, 2)),
        ((5, 4, 4, 2), (2, 3, 3), 1),
        ((12, 12, 12), 4, 2),
        ((0, 5), 2, 1),
    ],
)
def test_merging_is_the_inverse_of_splitting(shape: Any, max_pixels: Any, overlap: Any, mode: Mode) -> None:
    image = numbered(shape)
    pieces = split_stack(image, max_pixels, overlap, mode)
    assert get_split_stack_total_shape(pieces, overlap, mode=mode) == shape
    merged = merge_split_stack(pieces, max_pixels, overlap, mode=mode)
    assert isinstance(merged, da.Array)
    np.testing.assert_array_equal(merged.compute(), image)
    output = np.full(shape, -1)
    assert merge_split_stack(pieces, max_pixels, overlap, output, mode=mode) is output
    np.testing.assert_array_equal(output, image)


PIECES: dict[str, Callable[[Any], Any]] = {
    "dask": lambda piece: piece,
    "numpy": lambda piece: piece.compute(),
    "zarr": lambda piece: in_memory(piece.compute(), tuple(max(n, 1) for n in piece.shape)),
    "dask, worked on": lambda piece: piece.map_blocks(lambda block: block + 1) - 1,
}


@synchronous
@given(data=st.data())
def test_random_splits_are_merged_to_the_image(data: st.DataObject) -> None:
    image = numbered(data.draw(shapes(1, 4)))
    options = data.draw(splits(image.shape))
    mode = data.draw(st.sampled_from(MODES))
    change = PIECES[data.draw(st.sampled_from(sorted(PIECES)))]
    pieces = rebuilt(split_stack(image, **options, mode=mode), change)
    assert get_split_stack_total_shape(pieces, options["overlap"], mode=mode) == image.shape
    with nothing_computed():
        merged = merge_split_stack(pieces, **options, mode=mode)
    np.testing.assert_array_equal(merged.compute(), image)
    output = data.draw(outputs(image.shape))
    assert merge_split_stack(pieces, **options, output=output, mode=mode) is output
    np.testing.assert_array_equal(output[...], image)


@st.composite
def outputs(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Arrays to write into, whose chunks and shards know nothing of pieces."""
    if draw(st.booleans()):
        return np.full(shape, -1)
    chunks = draw(tile_shapes(shape), "output chunks")
    form: dict[str, Any] = {}
    if draw(st.booleans()):
        form["shards"] = tuple(c * draw(st.integers(1, 3)) for c in chunks)
    return zarr.create_array(MemoryStore(), shape=shape, dtype=np.int64, chunks=chunks, fill_value=-1, **form)


@synchronous
@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_fewer_voxels_are_merged_by_their_own_shapes(mode: Mode) -> None:
    image = numbered((8, 8, 8))
    pieces = rebuilt(split_stack(image, 4, mode=mode), lambda piece: piece[::2, ::2, ::2])
    np.testing.assert_array_equal(merge_split_stack(pieces, 2, mode=mode).compute(), image[::2, ::2, ::2])
    image = numbered((9, 14))
    pieces = rebuilt(split_stack(image, 4, 2, mode), lambda piece: piece[::2, ::2].compute())
    assert get_split_stack_total_shape(pieces, 1, mode=mode) == (5, 7)
    np.testing.assert_array_equal(merge_split_stack(pieces, 2, 1, mode=mode).compute(), image[::2, ::2])


@synchronous
def test_pieces_of_more_voxels_are_merged_by_their_own_shapes() -> None:
    image = numbered((5, 7))
    pieces = rebuilt(split_stack(image, 3, 1), lambda piece: piece.compute().repeat(2, axis=1))
    merged = merge_split_stack(pieces, (3, 6), (1, 2))
    np.testing.assert_array_equal(merged.compute(), image.repeat(2, axis=1))


@synchronous
def test_pieces_of_more_voxels_that_do_not_overlap_are_merged_as_they_were_split() -> None:
    image = numbered((5, 7))
    pieces = rebuilt(split_stack(image, 3), lambda piece: piece.compute().repeat(2, axis=1))
    np.testing.assert_array_equal(merge_split_stack(pieces, 3).compute(), image.repeat(2, axis=1))


@synchronous
def test_pieces_of_uneven_lengths_that_do_not_overlap_are_laid_side_by_side() -> None:
    pieces = [np.full((n, 2), n) for n in (2, 3, 1, 4)]
    assert get_split_stack_total_shape(pieces) == (10, 2)
    merged = merge_split_stack(pieces, 4)
    np.testing.assert_array_equal(merged.compute(), np.concatenate(pieces))


@synchronous
def test_overlapping_voxels_are_those_of_the_core() -> None:
    pieces = rebuilt(split_stack(np.zeros(10, int), 4, 2), lambda piece: piece)
    for number in range(3):
        pieces[number] = pieces[number] + number
    np.testing.assert_array_equal(merge_split_stack(pieces, 4, 2).compute(), [0] * 4 + [1] * 4 + [2] * 2)
    pieces = split_stack(np.zeros(10, int), 4, 2, "symmetric")
    for number in range(3):
        pieces[number] = pieces[number] + number
    merged = merge_split_stack(pieces, 4, 2, mode="symmetric")
    np.testing.assert_array_equal(merged.compute(), [0] * 4 + [1] * 4 + [2] * 2)


@synchronous
def test_the_dtype_holds_that_of_all_pieces() -> None:
    pieces = [np.zeros(2, np.uint8), np.full(2, -1, np.int8), np.full(2, 300, np.uint16)]
    merged = merge_split_stack(pieces, 2)
    assert merged.dtype == np.int32
    np.testing.assert_array_equal(merged.compute(), [0, 0, -1, -1, 300, 300])
    output = np.zeros(6, np.float32)
    np.testing.assert_array_equal(merge_split_stack(pieces, 2, output=output), [0, 0, -1, -1, 300, 300])


# Writing


IMAGE = numbered((12, 12, 12)).astype(np.uint16)


def new_zarr(place: Any, **form: Any) -> zarr.Array[Any]:
    return zarr.create_array(place, shape=IMAGE.shape, dtype=IMAGE.dtype, **form)


OUTPUTS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _path: np.zeros(IMAGE.shape, np.uint16),
    "numpy, Fortran order": lambda _path: np.zeros(IMAGE.shape, np.float32, order="F"),
    "memory map": lambda path: np.lib.format.open_memmap(path, mode="w+", shape=IMAGE.shape, dtype=np.uint16),
    "zarr": lambda path: new_zarr(path, chunks=(5, 7, 3)),
    "zarr, shards": lambda path: new_zarr(path, chunks=(1, 2, 3), shards=(5, 6, 9)),
    "zarr v2": lambda path: zarr.open_array(
        new_zarr(path, chunks=(9, 2, 12), zarr_format=2, order="F").store, path="", mode="r+"
    ),
    "zarr in a group": lambda path: zarr.create_group(path).create_array(
        "x", shape=IMAGE.shape, dtype=np.int32, chunks=(12, 5, 5)
    ),
    "zarr in memory": lambda _path: new_zarr(MemoryStore(), chunks=(5, 4, 3)),
    "zarr in memory, by URL": lambda path: new_zarr(FsspecStore.from_url(f"memory://{path}"), chunks=(5, 4, 3)),
    "zarr, by URL": lambda path: new_zarr(
        FsspecStore.from_url(f"file://{path}", storage_options={"auto_mkdir": True}), chunks=(5, 4, 3)
    ),
    "zarr in a zip file": lambda path: new_zarr(ZipStore(path, mode="w"), chunks=IMAGE.shape),
}


@synchronous
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_of_output_is_written(kind: str, tmp_path: Path) -> None:
    output = OUTPUTS[kind](tmp_path / "output")
    # A zip file cannot replace what it has, so that it must be one piece.
    max_pixels = 12 if kind == "zarr in a zip file" else 4
    in_tasks = kind in ("zarr", "zarr, shards", "zarr v2", "zarr in a group", "zarr, by URL")
    assert not isinstance(output, zarr.Array) or blockbuster.chunking._is_shared(output) == in_tasks
    assert merge_split_stack(split_stack(IMAGE, max_pixels, 2), max_pixels, 2, output) is output
    np.testing.assert_array_equal(output[...], IMAGE)
    if isinstance(output, zarr.Array):
        output.store.close()


def test_every_scheduler_writes_into_files_and_into_memory(scheduler: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(5, 5, 5))
    pieces = split_stack(str(tmp_path / "a.zarr"), 4, 2)
    for kind in ("numpy", "zarr in memory", "zarr, shards"):
        output = OUTPUTS[kind](tmp_path / f"{kind}.zarr")
        assert merge_split_stack(pieces, 4, 2, output) is output
        np.testing.assert_array_equal(output[...], IMAGE)


@synchronous
@fewer
@given(data=st.data())
def test_each_chunk_or_shard_has_one_writer(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = numbered(data.draw(shapes(1, 3)))
    options = data.draw(splits(image.shape))
    chunks = data.draw(tile_shapes(image.shape), "output chunks")
    shards = tuple(c * data.draw(st.integers(1, 2)) for c in chunks) if data.draw(st.booleans()) else None
    store = LocalStore(tmp_path_factory.mktemp("merge") / "a.zarr")
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2), "chunks of leading axes")
    output = zarr.create_array(
        store,
        shape=(1,) * len(lead) + image.shape,
        dtype=image.dtype,
        chunks=(*lead, *chunks),
        shards=None if shards is None else (*lead, *shards),
    )
    written: list[tuple[slice, ...]] = []
    put = blockbuster.chunking._Place.put

    def noted(place: Any, region: tuple[slice, ...], block: Any) -> None:
        written.append(region)
        put(place, region, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockbuster.chunking._Place, "put", noted)
        # Small tiles would be joined to few.
        patch.setattr("blockbuster.tiling._SMALL_TILE", 1)
        merge_split_stack(split_stack(image, **options), **options, output=output, axis_offset=len(lead))
    np.testing.assert_array_equal(output[(0,) * len(lead)], image)
    owners = np.zeros([-(-n // u) for n, u in zip(image.shape, shards or chunks, strict=True)], int)
    for region in written:
        owners[tuple(slice(s.start // u, -(-s.stop // u)) for s, u in zip(region, shards or chunks, strict=True))] += 1
    assert (owners == 1).all()


@synchronous
def test_pieces_are_read_once_however_the_chunks_lie(reads: list[Any], tmp_path: Path) -> None:
    image = numbered((12, 12))
    pieces = split_stack(in_memory(image, (5, 5)), 4, 2)
    output = zarr.create_array(tmp_path / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(5, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockbuster.tiling._SMALL_TILE", 1)
        merge_split_stack(pieces, 4, 2, output)
    np.testing.assert_array_equal(output[...], image)
    assert len(reads) == pieces.size


@synchronous
@pytest.mark.parametrize(
    ("at_once", "most", "turns"), [(1, 256, 6), (3 * 4 * 6 * 8, 256, 2), (1 << 20, 256, 1), (1 << 20, 2, 3)]
)
def test_the_client_holds_a_few_pieces_at_a_time(
    at_once: int, most: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockbuster.chunking, "_AT_ONCE", at_once)
    monkeypatch.setattr(blockbuster.chunking, "_PIECES", most)
    held: list[int] = []
    compute = blockbuster.chunking.compute_arrays

    def noted(*arrays: da.Array) -> tuple[NDArray[Any], ...]:
        made = compute(*arrays)
        held.append(sum(block.nbytes for block in made))
        return made

    monkeypatch.setattr(blockbuster.chunking, "compute_arrays", noted)
    image = numbered((12, 12))
    output = np.zeros_like(image)
    merge_split_stack(split_stack(image, (4, 6), 2), (4, 6), 2, output)
    np.testing.assert_array_equal(output, image)
    assert len(held) == turns
    assert max(held) <= max(at_once, 4 * 6 * 8)


@synchronous
@pytest.mark.parametrize("axis_offset", [1, 2])
def test_leading_axes_of_the_output_are_passed_over(axis_offset: int, tmp_path: Path) -> None:
    image = numbered((5, 4, 4))
    pieces = split_stack(image, (1, 3, 3), (0, 1, 1))
    shape = (1,) * axis_offset + image.shape
    chunks = (2,) * axis_offset + (2, 3, 3)
    for output in (np.zeros(shape, int), zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype=int, chunks=chunks)):
        assert merge_split_stack(pieces, (1, 3, 3), (0, 1, 1), output, axis_offset) is output
        np.testing.assert_array_equal(output[...].reshape(image.shape), image)


@synchronous
def test_what_was_in_the_output_is_replaced_by_the_fill_value_too(tmp_path: Path) -> None:
    for place in (tmp_path / "a.zarr", MemoryStore()):
        output = zarr.create_array(place, data=numbered((6, 6)) + 1, chunks=(2, 2), fill_value=0)
        merge_split_stack(split_stack(np.eye(6, dtype=int), 4, 1), 4, 1, output)
        np.testing.assert_array_equal(output[...], np.eye(6))


@synchronous
def test_what_cannot_be_written_is_told_with_its_place(tmp_path: Path) -> None:
    output = zarr.create_array(tmp_path / "a.zarr", shape=(8,), dtype=int, chunks=(4,))
    (tmp_path / "a.zarr" / "c").write_text("a file where a folder must be")
    with pytest.raises(TileError, match="writing failed"):
        merge_split_stack([np.ones(8, int)], 8, output=output)


# What does not fit


def grid_of(*shapes: tuple[int, ...]) -> NDArray[Any]:
    pieces = np.empty((2, len(shapes) // 2), object)
    for number, shape in enumerate(shapes):
        pieces.flat[number] = np.zeros(shape)
    return pieces


BAD_PIECES: dict[str, tuple[Any, str]] = {
    "a row of another length": (grid_of((4, 4), (4, 2), (4, 4), (3, 2)), r"Piece \(1, 1\) has shape \(3, 2\)"),
    "other channels": (grid_of((4, 4, 2), (4, 4, 2), (4, 4, 3), (4, 4, 2)), r"Piece \(1, 0\) has shape \(4, 4, 3\)"),
    "more axes": (grid_of((4, 4), (4, 4, 1), (4, 4), (4, 4)), r"Piece \(0, 1\) has shape \(4, 4, 1\)"),
    "too few axes": (grid_of((4, 4), (4,), (4, 4), (4, 4)), r"Piece \(0, 1\) has shape \(4,\), which is fewer axes"),
    "None": ([np.zeros(4), None], r"Piece \(1,\) is None"),
    "none": (np.empty((0, 2), object), "no pieces"),
    "an array": (np.zeros((4, 4)), "pieces are a ndarray of dtype float64"),
    "a dict": ({0: np.zeros(4)}, "pieces are a dict"),
}


@pytest.mark.parametrize("pieces", BAD_PIECES)
def test_pieces_that_do_not_fit_together_are_refused(pieces: str) -> None:
    made, words = BAD_PIECES[pieces]
    with nothing_computed():
        with pytest.raises(GeometryError, match=words):
            merge_split_stack(made, 4)
        with pytest.raises(GeometryError, match=words):
            get_split_stack_total_shape(made)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("max_pixels", "overlap"),
    [(4, 3), (2, 2), (3, 2), (7, 2), (9, 1), (1, 9)],
)
def test_sizes_that_the_pieces_do_not_have_are_refused(max_pixels: int, overlap: int, mode: Mode) -> None:
    pieces = split_stack(np.zeros(9), 4, 2, mode)
    with nothing_computed(), pytest.raises(GeometryError, match="in the voxels of the pieces"):
        merge_split_stack(pieces, max_pixels, overlap, mode=mode)


def test_sizes_of_the_image_before_it_was_made_smaller_are_refused() -> None:
    pieces = rebuilt(split_stack(np.zeros((16, 16)), 4, 2), lambda piece: piece[::2, ::2])
    with pytest.raises(GeometryError, match=r"axis 0 .* max_pixels 4 and overlap 2"):
        merge_split_stack(pieces, 4, 2)


@pytest.mark.parametrize(
    ("max_pixels", "overlap", "words"),
    [
        ((4, 4, 4), None, r"max_pixels \(4, 4, 4\) has 3 entries, the grid of pieces has 2 axes"),
        (4, (1,), r"overlap \(1,\) has 1 entries, the grid of pieces has 2 axes"),
        (0, None, "below 1"),
        (4, -1, "below 0"),
        (4, "1", "not an int"),
    ],
)
def test_merges_with_numbers_that_do_not_fit_the_grid_are_refused(max_pixels: Any, overlap: Any, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        merge_split_stack(split_stack(np.zeros((8, 8)), 4), max_pixels, overlap)


def test_outputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    image = numbered((4, 4)).astype(np.float32)
    pieces = split_stack(image, 2)
    zarr.create_array(tmp_path / "a.zarr", data=image)
    locked = np.zeros((4, 4))
    locked.flags.writeable = False
    cases: list[tuple[Any, int, type[Exception], str]] = [
        (np.zeros((4, 5)), 0, GeometryError, r"stack has shape \(4, 4\), the output \(4, 5\)"),
        (np.zeros((4, 4)), 1, GeometryError, "must have extent 1"),
        (np.zeros((2, 4, 4)), 1, GeometryError, "Select one"),
        (np.zeros((1, 4, 4)), 0, GeometryError, r"Give an output of shape \(4, 4\)"),
        (np.zeros((1,)), 2, GeometryError, "must have extent 1"),
        (np.zeros((4, 4), np.int32), 0, ParameterError, "int32 cannot hold pieces of dtype float32"),
        (np.zeros((4, 4)), -1, ParameterError, "axis_offset -1"),
        (np.zeros((4, 4)), True, ParameterError, "axis_offset True"),
        (None, 1, ParameterError, "there is no output"),
        (da.zeros((4, 4)), 0, ParameterError, "output is a Array"),
        ([[0] * 4] * 4, 0, ParameterError, "output is a list"),
        (locked, 0, OutputError, "read-only"),
        (zarr.open_array(tmp_path / "a.zarr", mode="r"), 0, OutputError, "read-only"),
    ]
    before = digest(tmp_path / "a.zarr")
    for output, axis_offset, error, words in cases:
        with nothing_computed(), pytest.raises(error, match=words):
            merge_split_stack(pieces, 2, None, output, axis_offset)
    assert digest(tmp_path / "a.zarr") == before


def test_pieces_are_never_written_over(tmp_path: Path) -> None:
    image = numbered((4, 4))
    stored = zarr.create_array(tmp_path / "a.zarr", data=image)
    in_store = in_memory(image, (2, 2))
    for source in (image, stored, in_store, da.from_zarr(stored) + 0):
        output = stored if isinstance(source, da.Array) else source
        for change in (lambda piece: piece, lambda piece: piece + 1):
            pieces = rebuilt(split_stack(source, 2, 1), change)
            with nothing_computed(), pytest.raises(OutputError, match="read from the output"):
                merge_split_stack(pieces, 2, 1, output)
        np.testing.assert_array_equal(output[...], numbered((4, 4)))


@synchronous
def test_views_of_one_array_that_share_no_voxel_are_no_obstacle() -> None:
    both = np.stack([numbered((4, 4)), np.zeros((4, 4), int)], axis=-1)
    merge_split_stack(split_stack(both[..., 0], 2, 1), 2, 1, both[..., 1])
    np.testing.assert_array_equal(both[..., 1], numbered((4, 4)))


def test_graphs_of_tasks_are_made_in_one_place_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A merge into files is one pass, of one task for some whole chunks."""
    passes: list[Any] = []
    init = PassesGraph.__init__

    def noted(graph: PassesGraph, given: Any) -> None:
        passes.extend(given)
        init(graph, given)

    monkeypatch.setattr(PassesGraph, "__init__", noted)
    monkeypatch.setattr("blockbuster.tiling._SMALL_TILE", 1)
    output = zarr.create_array(tmp_path / "a.zarr", shape=(12, 12), dtype=int, chunks=(6, 6))
    with dask.config.set(scheduler="synchronous"):
        merge_split_stack(split_stack(numbered((12, 12)), 6, 2), 6, 2, output)
    assert [one.grid.numblocks for one in passes] == [(2, 2)]
