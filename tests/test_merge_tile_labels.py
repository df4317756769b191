"""`merge_tile_labels`: labels that were made tile by tile elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import GeometryError, ImageError, ParameterError, merge_tile_labels
from tests.helpers import assert_same_objects, components, digest, leftovers, nothing_computed, write_ome_zarr
from tests.strategies import chunkings, shapes

synchronous = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def image() -> NDArray[np.bool_]:
    return np.random.default_rng(3).random((30, 41)) > 0.55


def labelled_by_tile(image: NDArray[Any], chunks: Any, dtype: str = "int32") -> da.Array:
    """Each chunk labelled on its own, so that ids repeat from chunk to chunk."""
    return da.from_array(image, chunks=chunks).map_blocks(lambda block: components(block).astype(dtype), dtype=dtype)


def stored(folder: Path, labels: da.Array, component: str = "labels", zarr_format: Any = 3) -> Path:
    path = folder / "store.zarr"
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    group.create_array(component, data=labels.compute(), chunks=labels.chunksize)
    return path


@synchronous
@given(data=st.data())
def test_merged_tiles_make_the_partition_of_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 4))
    density = data.draw(st.sampled_from([0.2, 0.4, 0.6]))
    image = np.random.default_rng(data.draw(st.integers(0, 999))).random(shape) < density
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int32", "int64", "uint64"]))
    labels = labelled_by_tile(image, data.draw(chunkings(shape)), dtype)
    merged, n = merge_tile_labels(labels, return_count=True, compute=True)
    assert_same_objects(merged, components(image))
    assert n == components(image).max()


@synchronous
@given(data=st.data())
def test_blocks_with_margins_make_the_partition_of_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3, min_side=4))
    overlap = tuple(data.draw(st.integers(0, 2)) for _ in shape)
    chunks = tuple(max(2, n // data.draw(st.integers(1, 3))) for n in shape)
    image = np.random.default_rng(data.draw(st.integers(0, 999))).random(shape) < 0.5
    tiled = da.from_array(image, chunks=chunks)
    if any(min(axis) < max(o, 1) for axis, o in zip(tiled.chunks, overlap, strict=True)):
        return
    padded = da.overlap.overlap(tiled, depth=overlap, boundary="none", allow_rechunk=False)
    labels = padded.map_blocks(components, dtype=np.int32)
    merged = merge_tile_labels(labels, overlap=overlap, compute=True)
    assert merged.shape == shape
    assert_same_objects(merged, components(image))


@synchronous
@pytest.mark.parametrize("merge", ["touching", "iou", "contact"])
def test_blocks_with_margins_by_every_rule(merge: str) -> None:
    image = np.zeros((40, 50), np.uint8)
    for y in range(2, 40, 9):
        for x in range(2, 50, 9):
            image[y : y + 6, x : x + 6] = 1
    tiled = da.from_array(image, chunks=(16, 20))
    padded = da.overlap.overlap(tiled, depth=(6, 8), boundary="none", allow_rechunk=False)
    labels = padded.map_blocks(components, dtype=np.int32)
    merged, n = merge_tile_labels(labels, overlap=(6, 8), merge=merge, return_count=True, compute=True)
    assert merged.shape == image.shape
    assert_same_objects(merged, components(image))
    assert n == components(image).max()


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "zarr", "array path", "store path", "store path, other component"])
def test_labels_may_come_from_anywhere(kind: str, image: NDArray[Any], tmp_path: Path) -> None:
    labels = labelled_by_tile(image, (12, 15))
    options: dict[str, Any] = {}
    source: Any = labels.compute()
    if kind == "numpy":
        options["tile_shape"] = (12, 15)
    elif kind == "store path, other component":
        source, options["input_component"] = stored(tmp_path, labels, "a/cells"), "a/cells"
    else:
        store = stored(tmp_path, labels)
        source = {"zarr": zarr.open_array(store / "labels"), "array path": str(store / "labels"), "store path": store}[
            kind
        ]
    merged, n = merge_tile_labels(source, return_count=True, compute=True, **options)
    assert_same_objects(merged, components(image))
    assert n == components(image).max()


@synchronous
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_merged_from_a_store_into_the_same_store_leave_the_input_alone(
    zarr_format: Any, image: NDArray[Any], tmp_path: Path
) -> None:
    store = stored(tmp_path, labelled_by_tile(image, (12, 15)), zarr_format=zarr_format)
    before = digest(store / "labels")
    merged = merge_tile_labels(store, store, output_component="merged")
    assert digest(store / "labels") == before
    assert_same_objects(merged.compute(), components(image))
    assert zarr.open_array(store / "merged").metadata.zarr_format == zarr_format
    assert leftovers(tmp_path) == []


@synchronous
def test_labels_are_merged_from_a_read_only_store(image: NDArray[Any], tmp_path: Path) -> None:
    store = stored(tmp_path, labelled_by_tile(image, (12, 15)))
    for folder, _, files in os.walk(store):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    before = digest(store)
    try:
        merged = merge_tile_labels(store, compute=True)
    finally:
        for folder, _, _ in os.walk(store):
            os.chmod(folder, 0o755)
    assert_same_objects(merged, components(image))
    assert digest(store) == before


@synchronous
def test_merging_twice_gives_the_same(image: NDArray[Any], tmp_path: Path) -> None:
    store = stored(tmp_path, labelled_by_tile(image, (12, 15)))
    first = merge_tile_labels(store, tmp_path / "first.zarr").compute()
    again = merge_tile_labels(store, tmp_path / "again.zarr").compute()
    np.testing.assert_array_equal(first, again)
    # What is merged already stays as it is.
    merged = merge_tile_labels(tmp_path / "first.zarr", compute=True)
    assert_same_objects(merged, first)


@synchronous
def test_the_output_onto_the_input_is_refused(image: NDArray[Any], tmp_path: Path) -> None:
    store = stored(tmp_path, labelled_by_tile(image, (12, 15)))
    before = digest(store)
    with pytest.raises(OSError, match="would overwrite the input"):
        merge_tile_labels(store, store, overwrite=True)
    assert digest(store) == before


@synchronous
@pytest.mark.parametrize("merge", ["touching", "contact", None])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_count_is_that_of_objects(merge: Any, sequential: bool, image: NDArray[Any]) -> None:
    labels = labelled_by_tile(image, (12, 15))
    merged, n = merge_tile_labels(labels, merge=merge, sequential_labels=sequential, return_count=True, compute=True)
    ids = np.unique(merged[merged > 0])
    assert isinstance(n, int)
    assert n == ids.size
    if sequential:
        assert ids.tolist() == list(range(1, n + 1))


def test_nothing_runs_before_it_is_asked_for(image: NDArray[Any]) -> None:
    labels = labelled_by_tile(image, (12, 15))
    with nothing_computed():
        merged, n = merge_tile_labels(labels, return_count=True)
    assert isinstance(merged, da.Array)
    assert isinstance(n, da.Array)
    with dask.config.set(scheduler="threads"):
        both = dask.compute(merged, n)
    assert_same_objects(both[0], components(image))
    assert both[1] == components(image).max()


@synchronous
def test_a_count_comes_with_stored_labels_too(image: NDArray[Any], tmp_path: Path) -> None:
    merged, n = merge_tile_labels(labelled_by_tile(image, (12, 15)), tmp_path / "out.zarr", return_count=True)
    assert n == components(image).max()
    assert_same_objects(merged.compute(), components(image))


def test_every_scheduler_gives_the_same_bytes(image: NDArray[Any], scheduler: str) -> None:
    labels = labelled_by_tile(image, (12, 15))
    with dask.config.set(scheduler="synchronous"):
        expected = merge_tile_labels(labels, compute=True)
    assert merge_tile_labels(labels, compute=True).tobytes() == expected.tobytes()


@synchronous
def test_ids_beyond_what_floats_tell_apart_stay_apart() -> None:
    labels = np.zeros((6, 8), np.uint64)
    labels[1, 1], labels[1, 3], labels[1, 5] = 2**53, 2**53 + 1, 2**64 - 1
    labels[2, 1:7] = [2**53, 2**53, 2**53 + 1, 2**53 + 1, 2**64 - 1, 2**64 - 2]
    merged, n = merge_tile_labels(labels, tile_shape=(2, 8), return_count=True, compute=True)
    # Rows 1 and 2 touch at columns 1, 3 and 5; 2**64 - 2 has no partner.
    assert n == 4
    assert_same_objects(merged, np.where(labels, np.searchsorted(np.unique(labels), labels), 0))


@synchronous
def test_time_and_channels_stay_apart_in_ome_zarr_labels(tmp_path: Path) -> None:
    labels = np.ones((3, 4, 4), np.int32)
    path = write_ome_zarr(tmp_path / "labels.zarr", [labels], "tyx", chunks=(1, 2, 2))
    group = zarr.open_group(path, mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], "image-label": {}}
    merged = merge_tile_labels(path, compute=True)
    assert len({frozenset(np.unique(frame).tolist()) for frame in merged}) == 3
    assert np.unique(merged).size == 3


@synchronous
@pytest.mark.parametrize("ids", [[0], [1, 2], []])
def test_only_chosen_tiles_are_merged(ids: list[int]) -> None:
    labels = np.ones((2, 8), np.int32)
    merged = merge_tile_labels(labels, tile_shape=(2, 2), block_ids=ids, compute=True)
    expected = np.zeros((2, 8), bool)
    for number in ids:
        expected[:, 2 * number : 2 * number + 2] = True
    np.testing.assert_array_equal(merged > 0, expected)
    assert np.unique(merged[merged > 0]).size == min(len(ids), 1)


# What is refused


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64"])
def test_labels_that_are_no_integers_are_refused(dtype: str) -> None:
    with nothing_computed(), pytest.raises(ParameterError, match=rf"dtype {dtype}.*integers.*blockbuster\.label"):
        merge_tile_labels(np.zeros((4, 4), dtype), compute=True)


@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_an_overlap_needs_a_dask_array_of_padded_blocks(kind: str) -> None:
    labels: Any = np.zeros((8, 8), np.int32)
    if kind == "zarr":
        labels = zarr.array(labels)
    with pytest.raises(ParameterError, match=r"overlap 2 needs a dask array with one block per padded tile.*overlap=0"):
        merge_tile_labels(labels, overlap=2)


@pytest.mark.parametrize(
    ("chunks", "overlap", "message"),
    [
        (((3, 3), (8,)), (2, 0), r"Blocks .*cannot have margins of \(2, 0\).*\(1, 1\).*at least as thick"),
        (((5, 4, 5), (8,)), (2, 0), r"cannot have margins of \(2, 0\)"),
        (((8,), (8,)), (1, 1, 1), r"overlap \(1, 1, 1\) has 3 entries, the image has 2 axes \(8, 8\)"),
        (((8,), (8,)), -1, r"overlap \(-1, -1\) has an entry below 0"),
    ],
)
def test_blocks_that_cannot_have_such_margins_are_refused(chunks: Any, overlap: Any, message: str) -> None:
    labels = da.zeros([sum(axis) for axis in chunks], chunks=chunks, dtype=np.int32)
    with nothing_computed(), pytest.raises(GeometryError, match=message):
        merge_tile_labels(labels, overlap=overlap, compute=True)


def test_iou_without_margins_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"overlap \(0, 0\) is 0.*merge='contact'"):
        merge_tile_labels(np.zeros((8, 8), np.int32), tile_shape=(4, 4), merge="iou")


def test_negative_labels_are_refused() -> None:
    labels = np.zeros((8, 8), np.int32)
    labels[5, 5] = -3
    with pytest.raises(RuntimeError, match=r"Tile \(1, 1\).*label -3; labels must not be negative"):
        merge_tile_labels(labels, tile_shape=(4, 4), compute=True)


def test_a_store_without_the_component_is_refused(tmp_path: Path, image: NDArray[Any]) -> None:
    store = stored(tmp_path, labelled_by_tile(image, (12, 15)), "cells")
    with pytest.raises(ImageError, match="cells"):
        merge_tile_labels(store, input_component="nuclei")


def test_an_image_is_not_taken_for_labels(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "image.zarr", [np.ones((4, 4), np.uint16)], "yx")
    with pytest.raises(ImageError, match="There is no 'labels/typo'"):
        merge_tile_labels(path, input_component="labels/typo")


def test_labels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing at"):
        merge_tile_labels(tmp_path / "none.zarr")
