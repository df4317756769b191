"""`tile_process`: what `fn` gets, what comes out, on every scheduler."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
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

import blockbuster
from blockbuster import Contact, Overlapping, Touching, Where, tile_process
from tests.helpers import (
    Recording,
    assert_same_objects,
    components,
    digest,
    leftovers,
    nothing_computed,
    padded_blocks,
    write_ome_zarr,
)
from tests.strategies import chunkings, overlaps, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")
amplified = pytest.mark.filterwarnings("ignore:overlap")

SOURCES = ["numpy", "dask", "dask of other chunks", "zarr", "zarr path", "OME-Zarr path"]


def source_of(kind: str, image: NDArray[Any], tile_shape: tuple[int, ...], folder: Path) -> Any:
    """The same image in one of the forms that are accepted."""
    if kind == "numpy":
        return image
    if kind == "dask":
        return da.from_array(image, chunks=tile_shape)
    if kind == "dask of other chunks":
        return da.from_array(image, chunks=tuple(t + 1 for t in tile_shape))
    path = folder / "image.zarr"
    if kind == "OME-Zarr path":
        return write_ome_zarr(path, [image], "zyx"[-image.ndim :], chunks=tile_shape)
    stored = zarr.create_array(path, data=image, chunks=tile_shape)
    return stored if kind == "zarr" else path


def whole(image: NDArray[Any], connectivity: int = 1) -> NDArray[Any]:
    """Components of the whole image: the oracle."""
    labels: NDArray[Any] = scipy.ndimage.label(
        image, scipy.ndimage.generate_binary_structure(image.ndim, connectivity)
    )[0]
    return labels


@dataclass(frozen=True)
class Components:
    """`fn` for any connectivity."""

    connectivity: int

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        return whole(block, self.connectivity)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    made = tmp_path / "calls"
    made.mkdir()
    return Recording(made)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """Small blobs, among them larger ones, and a lot of background."""
    noise = np.random.default_rng(5).random((22, 34))
    return (scipy.ndimage.gaussian_filter(noise, 0.8) > 0.56).astype(np.uint8)


# What fn gets


@synchronous
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("shape", "tile_shape", "overlap"),
    [
        pytest.param((9, 20), (4, 6), (0, 0), id="no overlap"),
        pytest.param((9, 20), (4, 6), (1, 3), id="ragged"),
        pytest.param((9, 13), (4, 6), (2, 3), id="last tile thinner than the overlap"),
        pytest.param((5, 9, 11), (1, 4, 5), (2, 1, 0), id="3-D, overlap as a tuple on a thin axis"),
        pytest.param((3, 4), (8, 9), (2, 2), id="tile larger than the image"),
        pytest.param((17,), (5,), (2,), id="1-D"),
    ],
)
def test_fn_gets_each_padded_tile_once_clipped_at_the_border(
    kind: str,
    shape: tuple[int, ...],
    tile_shape: tuple[int, ...],
    overlap: tuple[int, ...],
    folder: Path,
    recording: Recording,
) -> None:
    image = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int32)
    source = source_of(kind, image, tile_shape, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overlap")
        tile_process(source, recording, tile_shape=tile_shape, overlap=overlap, compute=True)
    actual, expected = recording.blocks(), padded_blocks(image, tile_shape, overlap)
    assert len(actual) == len(expected)
    # The order of tasks is the scheduler's: blocks are matched by their content.
    key = lambda block: (block.shape, block.tobytes())  # noqa: E731
    for a, e in zip(sorted(actual, key=key), sorted(expected, key=key), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


@synchronous
@pytest.mark.parametrize("kind", SOURCES)
def test_overlap_larger_than_the_tile_is_clipped_and_warned_of(kind: str, folder: Path, recording: Recording) -> None:
    image = np.random.default_rng(0).integers(0, 1000, (12, 8)).astype(np.int32)
    source = source_of(kind, image, (4, 8), folder)
    # Rows 0:9, 0:12 and 3:12 are read: 30 for 12.
    with pytest.warns(
        UserWarning, match=r"overlap \(5, 0\) exceeds the tile shape \(4, 8\) on axes \[0\].* 2\.5 times"
    ):
        labels = tile_process(source, recording, tile_shape=(4, 8), overlap=(5, 0), compute=True)
    assert sorted(len(block) for block in recording.blocks()) == [9, 9, 12]
    assert_same_objects(labels, components(image))


@synchronous
def test_thin_tiles_of_a_stack_stay_planes(recording: Recording) -> None:
    stack = np.random.default_rng(0).integers(0, 9, (8, 64, 64))
    labels = tile_process(stack, recording, tile_shape=(1, 32, 32), overlap=4, compute=True)
    assert [block.shape for block in recording.blocks()] == [(1, 36, 36)] * 32
    assert labels.shape == stack.shape


@synchronous
def test_overlap_as_a_tuple_is_taken_as_given_on_thin_axes(recording: Recording) -> None:
    tile_process(np.zeros((3, 4, 4)), recording, tile_shape=(1, 4, 4), overlap=(1, 0, 0), compute=True)
    assert sorted(block.shape[0] for block in recording.blocks()) == [2, 2, 3]


@synchronous
def test_no_tile_shape_means_the_chunks(recording: Recording, folder: Path) -> None:
    image = np.arange(120).reshape(10, 12)
    tile_process(da.from_array(image, chunks=((3, 5, 2), (7, 5))), recording, overlap=1, compute=True)
    assert sorted(block.shape for block in recording.blocks()) == [(3, 6), (3, 8), (4, 6), (4, 8), (7, 6), (7, 8)]
    stored = Recording(folder)
    tile_process(zarr.array(image, chunks=(4, 12)), stored, compute=True)
    assert sorted(block.shape for block in stored.blocks()) == [(2, 12), (4, 12), (4, 12)]


@synchronous
def test_chunks_without_voxels_are_no_tiles(recording: Recording) -> None:
    image = np.arange(35).reshape(7, 5) % 3
    lazy = da.from_array(image, chunks=((3, 0, 4), (5,)))
    labels = tile_process(lazy, recording, overlap=1, compute=True)
    assert sorted(block.shape for block in recording.blocks()) == [(4, 5), (5, 5)]
    assert_same_objects(labels, components(image))


@synchronous
def test_no_tile_shape_means_one_tile_for_a_numpy_array(recording: Recording) -> None:
    tile_process(np.zeros((30, 40)), recording, overlap=3, compute=True)
    assert [block.shape for block in recording.blocks()] == [(30, 40)]


@synchronous
def test_tile_shape_may_be_a_function_of_shape_and_dtype(recording: Recording) -> None:
    asked: list[Any] = []

    def halves(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
        asked.append((shape, dtype))
        return tuple(n // 2 for n in shape)

    tile_process(np.zeros((8, 6), np.uint16), recording, tile_shape=halves, compute=True)
    assert asked == [((8, 6), np.uint16)]
    assert [block.shape for block in recording.blocks()] == [(4, 3)] * 4


@synchronous
def test_tile_shape_auto_counts_the_halo_and_takes_whole_chunks(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockbuster.budget.available_memory", lambda: 2**20)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    image = da.zeros((512, 512), np.uint8, chunks=(16, 32))
    tile_process(image, recording, tile_shape="auto", overlap=4, block_ids=[0], compute=True)
    (block,) = recording.blocks()
    tall, wide = (n - 4 for n in block.shape)
    assert tall % 16 == 0
    assert wide % 32 == 0
    assert blockbuster.budget.tile_bytes((tall + 8, wide + 8), np.uint8) <= 2**19


@synchronous
@pytest.mark.parametrize("kind", SOURCES)
def test_an_fn_that_writes_to_its_block_leaves_the_image_and_other_tiles_alone(kind: str, folder: Path) -> None:
    image = (np.arange(200).reshape(10, 20) % 3).astype(np.int32)
    source, before = source_of(kind, image.copy(), (5, 5), folder), digest(folder)
    labels = tile_process(source, erasing_components, tile_shape=(5, 5), overlap=2, compute=True)
    assert_same_objects(labels, components(image))
    if "path" not in kind:
        np.testing.assert_array_equal(np.asarray(source), image)
    assert digest(folder) == before


@synchronous
def test_an_fn_that_writes_to_its_block_leaves_a_persisted_dask_array_alone(image: NDArray[Any]) -> None:
    persisted = da.from_array(image, chunks=(11, 17)).persist()
    tile_process(persisted, erasing_components, compute=True)
    np.testing.assert_array_equal(persisted.compute(), image)


def erasing_components(block: NDArray[Any]) -> NDArray[Any]:
    labels = components(block)
    block[...] = 0
    return labels


# What comes out


@synchronous
@given(data=st.data())
@amplified
def test_components_of_tiles_make_the_partition_of_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 4))
    image = data.draw(st.sampled_from([0.2, 0.4, 0.6])) > np.random.default_rng(data.draw(st.integers(0, 99))).random(
        shape
    )
    connectivity = data.draw(st.integers(1, len(shape)))
    tiled = data.draw(st.booleans())
    source = image if tiled else da.from_array(image, chunks=data.draw(chunkings(shape)))
    labels = tile_process(
        source,
        Components(connectivity),
        tile_shape=data.draw(tile_shapes(shape)) if tiled else None,
        overlap=data.draw(overlaps(shape)),
        merge=Touching(connectivity),
        sequential_labels=data.draw(st.booleans()),
        compute=True,
    )
    assert_same_objects(labels, whole(image, connectivity))


@synchronous
@given(data=st.data())
@amplified
def test_any_function_with_enough_overlap_makes_the_partition_of_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3))
    image = data.draw(st.sampled_from([0.2, 0.4, 0.6])) > np.random.default_rng(data.draw(st.integers(0, 99))).random(
        shape
    )
    # Each tile sees all: components that reach far are whole in every view, and so are those of the mean's level set.
    fn = data.draw(st.sampled_from([components, Components(len(shape)), brighter_than_mean]))
    merge = data.draw(st.sampled_from(["iou", Overlapping(0.9), Where(most_shared)]))
    labels = tile_process(
        image,
        fn,
        tile_shape=data.draw(tile_shapes(shape)),
        overlap=shape,
        merge=merge,
        compute=True,
    )
    assert_same_objects(labels, fn(image))


def brighter_than_mean(block: NDArray[Any]) -> NDArray[Any]:
    smooth = scipy.ndimage.gaussian_filter(block.astype(float), 1)
    return components(smooth > smooth.mean())


def most_shared(_i: Any, _j: Any, n: NDArray[Any], a: NDArray[Any], b: NDArray[Any], _axis: int) -> NDArray[Any]:
    most: NDArray[Any] = 2 * n > np.maximum(a, b)
    return most


@synchronous
@given(data=st.data())
@amplified
def test_objects_that_every_tile_sees_whole_come_out_whole_by_any_rule(data: st.DataObject) -> None:
    shape, largest = data.draw(shapes(1, 3, min_side=3)), data.draw(st.integers(1, 4))
    boxes = separate_boxes(shape, largest, data.draw(st.integers(0, 999)))
    merge = data.draw(
        st.sampled_from(["touching", "iou", "contact", Overlapping(0.9), Contact(0.9), Where(most_shared)])
    )
    tile_shape = data.draw(tile_shapes(shape))
    overlap = (largest,) * len(shape)
    labels = tile_process(boxes, components, tile_shape=tile_shape, overlap=overlap, merge=merge, compute=True)
    assert_same_objects(labels, components(boxes))


def separate_boxes(shape: tuple[int, ...], largest: int, seed: int) -> NDArray[np.uint8]:
    """Boxes of random sizes up to `largest` that do not touch, as many as find a place."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.uint8)
    for _ in range(60):
        size = [int(rng.integers(1, min(largest, n) + 1)) for n in shape]
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, size, strict=True)]
        around = tuple(slice(max(a - 1, 0), a + s + 1) for a, s in zip(start, size, strict=True))
        if not image[around].any():
            image[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = 1
    return image


@synchronous
@pytest.mark.parametrize("sequential", [False, True])
def test_ids_follow_the_order_of_tiles(sequential: bool) -> None:
    image = np.zeros((4, 12), np.uint8)
    image[0, 3:5] = image[0, 0] = image[2, 6] = image[2, 9] = 1
    labels = tile_process(image, components, tile_shape=(4, 4), sequential_labels=sequential, compute=True)
    # Local ids are 1, 2 | 1, 2 | 1; the first of the second tile belongs to the second of the first.
    assert labels[0].tolist() == [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0]
    assert labels[2, [6, 9]].tolist() == ([3, 4] if sequential else [4, 5])


@synchronous
@pytest.mark.parametrize("merge", ["touching", "iou", "contact", None])
def test_sequential_labels_have_no_gaps(merge: Any, image: NDArray[Any]) -> None:
    labels = tile_process(
        image, components, tile_shape=(5, 7), overlap=2, merge=merge, sequential_labels=True, compute=True
    )
    ids = np.unique(labels)
    assert ids.tolist() == list(range(ids.size))
    with_gaps = tile_process(image, components, tile_shape=(5, 7), overlap=2, merge=merge, compute=True)
    assert_same_objects(labels, with_gaps)


@synchronous
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", ">i4"])
def test_labels_have_the_dtype_asked_for(dtype: str, image: NDArray[Any]) -> None:
    lazy = tile_process(image, components, tile_shape=(8, 8), dtype=dtype)
    assert lazy.dtype == lazy.compute().dtype == np.dtype(dtype).newbyteorder("=")
    assert_same_objects(lazy.compute(), components(image))


@synchronous
def test_labels_are_int32_by_default(image: NDArray[Any]) -> None:
    assert tile_process(image, components, compute=True).dtype == np.int32


@synchronous
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64", "complex64", ">u2"])
def test_images_of_every_dtype_are_taken(dtype: str, image: NDArray[Any], folder: Path) -> None:
    recording = Recording(folder, foreground_components)
    tile_process(image.astype(dtype), recording, tile_shape=(11, 34), compute=True)
    assert [block.dtype for block in recording.blocks()] == [np.dtype(dtype).newbyteorder("=")] * 2


def foreground_components(block: NDArray[Any]) -> NDArray[Any]:
    return components(block != 0)


@synchronous
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0, 3)])
@pytest.mark.parametrize("to_store", [False, True])
def test_images_without_voxels_have_no_tiles(
    shape: tuple[int, ...], to_store: bool, recording: Recording, folder: Path
) -> None:
    write_to = folder / "out.zarr" if to_store else None
    labels = tile_process(np.zeros(shape, np.uint8), recording, tile_shape=(2,) * len(shape), write_to=write_to)
    assert np.asarray(labels).shape == shape
    assert recording.n_calls == 0


@synchronous
def test_an_image_of_background_has_no_objects() -> None:
    labels = tile_process(np.zeros((9, 9), np.uint8), components, tile_shape=(4, 4), overlap=1, compute=True)
    assert not labels.any()


@synchronous
def test_one_object_over_all_tiles_is_one(folder: Path) -> None:
    labels = tile_process(np.ones((9, 10, 11), np.uint8), components, tile_shape=(4, 4, 4), compute=True)
    assert np.unique(labels).tolist() == [1]


@synchronous
def test_ragged_last_tiles_keep_400_squares_apart() -> None:
    image = np.zeros((205, 205), np.uint8)
    for y in range(2, 200, 10):
        for x in range(2, 200, 10):
            image[y : y + 6, x : x + 6] = 1
    for chunks in [(100, 100), ((30, 100, 75), (60, 145))]:
        lazy = da.from_array(image, chunks=chunks)
        for merge in ("touching", "iou"):
            labels = tile_process(lazy, components, overlap=16, merge=merge, compute=True)
            assert_same_objects(labels, components(image))


@synchronous
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("merge", ["touching", "iou", "contact"])
def test_flipping_the_image_flips_the_result(axis: int, merge: str) -> None:
    rng = np.random.default_rng(8)
    image = scipy.ndimage.gaussian_filter(rng.random((40, 53)), 1.5)
    chunks = [(16, 16, 8), (20, 20, 10, 3)]
    straight = tile_process(da.from_array(image, chunks=chunks), above_half_of_range, overlap=3, merge=merge)
    chunks[axis] = chunks[axis][::-1]
    turned = tile_process(
        da.from_array(np.flip(image, axis), chunks=chunks), above_half_of_range, overlap=3, merge=merge
    )
    assert_same_objects(np.flip(turned.compute(), axis), straight.compute())


def above_half_of_range(block: NDArray[Any]) -> NDArray[Any]:
    # Depends on all of the block: neighbouring tiles disagree.
    return components(block > (block.min() + block.max()) / 2)


@synchronous
@pytest.mark.parametrize("merge", ["touching", "iou", "contact"])
def test_a_last_tile_thinner_than_the_overlap_has_its_seam(merge: str) -> None:
    image = np.zeros((17, 9), np.uint8)
    image[12:17, 2:4] = image[16, 6:8] = 1
    labels = tile_process(image, components, tile_shape=(8, 9), overlap=4, merge=merge, compute=True)
    assert_same_objects(labels, components(image))


# Laziness


@pytest.mark.parametrize("kind", SOURCES)
def test_nothing_runs_before_it_is_asked_for(
    kind: str, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    source = source_of(kind, image, (11, 17), folder)
    with nothing_computed():
        lazy = tile_process(source, recording, tile_shape=(11, 17), overlap=2)
    assert isinstance(lazy, da.Array)
    assert lazy.shape == image.shape
    assert lazy.chunks == ((11, 11), (17, 17))
    assert recording.n_calls == 0
    assert leftovers(folder.parent) == []


@pytest.mark.parametrize("kind", SOURCES)
def test_nothing_runs_early_where_the_empty_threshold_is_automatic(
    kind: str, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    source = source_of(kind, image, (11, 17), folder)
    with nothing_computed():
        tile_process(source, recording, tile_shape=(11, 17), skip_empty=True)


@synchronous
def test_a_lazy_result_computed_twice_calls_fn_once_per_tile(image: NDArray[Any], recording: Recording) -> None:
    lazy = tile_process(image, recording, tile_shape=(11, 17))
    first, second = lazy.compute(), lazy.compute()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(lazy[5:9, 3:30].compute(), first[5:9, 3:30])
    assert recording.n_calls == 4


@synchronous
def test_lazy_results_are_used_like_any_dask_array(image: NDArray[Any]) -> None:
    lazy = tile_process(image, components, tile_shape=(11, 17), sequential_labels=True)
    n = whole(image).max()
    assert lazy.max().compute() == n
    assert ((lazy > 0).sum() + (image > 0).sum()).compute() == 2 * np.count_nonzero(image)


@synchronous
def test_a_repeated_run_gives_the_same_bytes(image: NDArray[Any]) -> None:
    first, second = (
        tile_process(image, components, tile_shape=(7, 6), overlap=3, merge="iou", compute=True) for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


@synchronous
@pytest.mark.parametrize("kind", ["lazy", "compute", "write_to"])
def test_no_scratch_data_are_left(kind: str, image: NDArray[Any], folder: Path, tmp_path: Path) -> None:
    if kind == "lazy":
        lazy = tile_process(image, components, tile_shape=(7, 6), stage_dir=folder)
        lazy.compute()
        assert leftovers(folder) != []
        del lazy
    else:
        write_to = folder / "out.zarr" if kind == "write_to" else None
        tile_process(image, components, tile_shape=(7, 6), compute=True, write_to=write_to)
    assert leftovers(tmp_path) == []


@synchronous
def test_scratch_data_stay_where_they_were_asked_for(image: NDArray[Any], folder: Path) -> None:
    tile_process(image, components, tile_shape=(7, 6), compute=True, stage_dir=folder / "scratch", keep_stage=True)
    (stage,) = os.listdir(folder / "scratch")
    assert ".blockbuster-" in stage


@synchronous
def test_scratch_data_lie_beside_the_output_else_beside_the_image(image: NDArray[Any], folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    path = write_ome_zarr(folder / "in" / "image.zarr", [image], "yx")
    tile_process(path, components, compute=True, keep_stage=True)
    assert leftovers(folder / "in")[0].startswith("image.zarr.tile_process.blockbuster-")
    tile_process(path, components, write_to=folder / "out" / "labels.zarr", keep_stage=True)
    assert leftovers(folder / "out")[0].startswith("labels.zarr.labels.blockbuster-")


# Schedulers


@pytest.fixture(scope="module")
def noise() -> NDArray[np.uint8]:
    values = np.random.default_rng(1).random((30, 41, 26))
    made: NDArray[np.uint8] = (scipy.ndimage.gaussian_filter(values, 0.7) > 0.53).astype(np.uint8)
    return made


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr path"])
@pytest.mark.parametrize("to_store", [False, True])
def test_every_scheduler_calls_fn_once_per_tile_and_gives_the_same_bytes(
    kind: str, to_store: bool, noise: NDArray[Any], scheduler: str, folder: Path, recording: Recording
) -> None:
    source = source_of(kind, noise, (16, 16, 16), folder)
    with dask.config.set(scheduler="synchronous"):
        expected = tile_process(noise, components, tile_shape=(16, 16, 16), overlap=2, merge="iou", compute=True)
    labels = tile_process(
        source,
        recording,
        tile_shape=(16, 16, 16),
        overlap=2,
        merge="iou",
        compute=True,
        write_to=folder / "out.zarr" if to_store else None,
    )
    assert np.asarray(labels).tobytes() == expected.tobytes()
    assert recording.n_calls == 12
    assert leftovers(folder) == []


def test_lazy_results_compute_on_every_scheduler(noise: NDArray[Any], scheduler: str) -> None:
    lazy = tile_process(da.from_array(noise, chunks=(16, 16, 16)), components, overlap=1)
    assert_same_objects(lazy.compute(), components(noise))


# Progress and logging


@pytest.mark.parametrize("to_store", [False, True])
def test_progress_counts_to_the_total(noise: NDArray[Any], scheduler: str, to_store: bool, folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    tile_process(
        noise,
        components,
        tile_shape=(16, 16, 16),
        compute=True,
        write_to=folder / "out.zarr" if to_store else None,
        progress=lambda now: calls.append((now.done, now.total)),
    )
    # Each of the 12 tiles is labelled once and relabelled once.
    assert {total for _, total in calls} == {24}
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert done[-1] == 24
    if scheduler != "distributed":
        assert set(done) == set(range(1, 25))


def test_progress_shows_a_bar_over_tiles(
    noise: NDArray[Any], scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tile_process(noise, components, tile_shape=(16, 16, 16), compute=True, progress=True)
    shown = capsys.readouterr().err
    assert "blockbuster: 100%" in shown
    assert "24/24" in shown


@synchronous
def test_no_progress_is_shown_unless_asked_for(image: NDArray[Any], capfd: pytest.CaptureFixture[str]) -> None:
    tile_process(image, components, tile_shape=(7, 6), compute=True)
    assert capfd.readouterr() == ("", "")


@synchronous
def test_progress_of_a_failed_run_does_not_claim_to_be_done(image: NDArray[Any]) -> None:
    calls: list[tuple[int, int]] = []
    with pytest.raises(blockbuster.TileError):
        tile_process(image, failing, compute=True, progress=lambda now: calls.append((now.done, now.total)))
    assert all(done < total for done, total in calls)


def failing(block: NDArray[Any]) -> NDArray[Any]:
    raise RuntimeError("no labels today")


@pytest.mark.parametrize("kind", ["synchronous", "threads"])
def test_verbose_logs_one_line_per_tile(kind: str, image: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    with dask.config.set(scheduler=kind), caplog.at_level(logging.INFO, "blockbuster"):
        tile_process(image, components, tile_shape=(11, 17), compute=True, verbose=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    for index in ("(0, 0)", "(0, 1)", "(1, 0)", "(1, 1)"):
        assert sum(f"tile {index}" in line for line in lines) == 1


def test_verbose_lines_come_from_other_processes_as_well(
    image: NDArray[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with dask.config.set(scheduler="processes"):
        tile_process(image, components, tile_shape=(11, 17), compute=True, verbose=True)
    shown = capfd.readouterr().err
    for index in ("(0, 0)", "(0, 1)", "(1, 0)", "(1, 1)"):
        assert shown.count(f"tile {index}") == 1


@synchronous
def test_nothing_is_logged_per_tile_unless_asked_for(image: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tile_process(image, components, tile_shape=(11, 17), compute=True)
    assert caplog.records == []


# Concurrency


@pytest.mark.parametrize("target", ["two stores", "one store", "memory"])
def test_two_runs_at_once_in_one_folder_are_both_exact(target: str, folder: Path) -> None:
    rng = np.random.default_rng(2)
    images = [(rng.random((60, 60)) > 0.6).astype(np.uint8) for _ in range(2)]
    results: dict[int, Any] = {}
    together = threading.Barrier(2, timeout=60)

    def run(number: int) -> None:
        write_to = {"two stores": folder / f"{number}.zarr", "one store": folder / "one.zarr", "memory": None}[target]
        together.wait()
        results[number] = np.asarray(
            tile_process(
                images[number],
                components,
                tile_shape=(7, 8),
                overlap=1,
                compute=True,
                write_to=write_to,
                output_component=f"labels{number}",
                stage_dir=folder,
            )
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert_same_objects(results[number], components(images[number]))
    assert leftovers(folder) == []


def test_two_runs_of_one_image_at_once_are_both_exact(image: NDArray[Any], folder: Path) -> None:
    path = write_ome_zarr(folder / "image.zarr", [image], "yx", chunks=(7, 6))
    with dask.config.set(scheduler="threads"):
        first, second = dask.compute(
            tile_process(path, components, overlap=1), tile_process(path, components, tile_shape=(5, 9), merge=None)
        )
        alone = tile_process(path, components, tile_shape=(5, 9), merge=None, compute=True)
    assert_same_objects(first, components(image))
    np.testing.assert_array_equal(second, alone)


@pytest.mark.timeout(120)
def test_tasks_of_dask_may_run_tile_process(image: NDArray[Any], local_cluster: str) -> None:
    from distributed import Client

    with Client(local_cluster) as client:
        labels = client.submit(label_within_a_task, image, pure=False).result()
    assert_same_objects(labels, components(image))


def label_within_a_task(image: NDArray[Any]) -> NDArray[Any]:
    with dask.config.set(scheduler="synchronous"):
        labels: NDArray[Any] = tile_process(image, components, tile_shape=(7, 6), compute=True)
    return labels


# One tile at a time


@dataclass(frozen=True)
class Exclusive:
    """`fn` that fails if it runs twice at the same time, in whatever processes."""

    folder: Path

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        busy = self.folder / "busy"
        busy.touch(exist_ok=False)
        # Long enough for another call to come in between.
        time.sleep(0.02)
        busy.unlink()
        return components(block)


def test_without_use_gpu_tiles_are_labelled_side_by_side(image: NDArray[Any]) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(block: NDArray[Any]) -> NDArray[Any]:
        together.wait()
        return components(block)

    with dask.config.set(scheduler="threads", num_workers=2):
        labels = tile_process(image, meet, tile_shape=(11, 17), compute=True)
    assert_same_objects(labels, components(image))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_use_gpu_labels_one_tile_at_a_time(kind: str, image: NDArray[Any], folder: Path) -> None:
    with dask.config.set(scheduler=kind, num_workers=4):
        labels = tile_process(image, Exclusive(folder), tile_shape=(6, 9), use_gpu=True, compute=True)
    assert_same_objects(labels, components(image))


@pytest.mark.parametrize("to_store", [False, True])
def test_use_gpu_takes_the_gpu_resource_of_workers(to_store: bool, image: NDArray[Any], folder: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, resources={"GPU": 1}, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        labels = tile_process(
            image,
            Exclusive(folder),
            tile_shape=(6, 9),
            use_gpu=True,
            compute=True,
            write_to=folder / "out.zarr" if to_store else None,
        )
        assert_same_objects(labels, components(image))


def test_make_local_cluster_for_a_gpu_labels_one_tile_at_a_time(image: NDArray[Any], folder: Path) -> None:
    with blockbuster.make_local_cluster(use_gpu=True) as (_, cluster):
        assert len(cluster.workers) == 1
        labels = tile_process(image, Exclusive(folder), tile_shape=(6, 9), use_gpu=True, compute=True)
        assert_same_objects(labels, components(image))


def test_use_gpu_is_refused_on_a_cluster_without_the_resource(
    image: NDArray[Any], local_cluster: str, recording: Recording
) -> None:
    from distributed import Client

    with (
        Client(local_cluster),
        pytest.raises(blockbuster.SchedulerError, match=r"resource 'GPU'.*make_local_cluster\(use_gpu=True\)"),
    ):
        tile_process(image, recording, use_gpu=True, compute=True)
    assert recording.n_calls == 0


def test_make_local_cluster_listens_on_the_loopback_and_becomes_the_scheduler(image: NDArray[Any]) -> None:
    client, cluster = blockbuster.make_local_cluster(n_workers=1, threads_per_worker=2, memory_limit="1GiB")
    try:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["nthreads"] == 2
        assert worker["memory_limit"] == 2**30
        assert worker["host"] == "127.0.0.1"
        labels = tile_process(image, components, tile_shape=(11, 17)).compute()
        assert_same_objects(labels, components(image))
    finally:
        client.close()
        cluster.close()


def big_endian(block: NDArray[Any]) -> NDArray[Any]:
    return components(block).astype(">u2")


def test_labels_in_another_byte_order_are_taken() -> None:
    image = (np.random.default_rng(0).random((20, 20)) < 0.4).astype(np.uint8)
    labels = tile_process(image, big_endian, tile_shape=(7, 7), compute=True)
    assert_same_objects(labels, components(image))


def test_progress_over_chosen_tiles_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    image = np.ones((40, 40), np.uint8)
    tile_process(
        image,
        components,
        tile_shape=(10, 10),
        block_ids=[0, 1],
        compute=True,
        progress=lambda now: seen.append((now.done, now.total)),
    )
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_the_automatic_threshold_is_that_of_the_estimate(kind: str, tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 200, (48, 48)).astype(np.uint8)
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(8, 8))
    source: Any = {"numpy": image, "dask": da.from_array(image, chunks=8), "zarr": tmp_path / "image.zarr"}[kind]
    options: dict[str, Any] = {"tile_shape": (8, 8), "overlap": 8}
    tile_process(source, components, skip_empty=True, write_to=tmp_path / "labels.zarr", **options)
    report = zarr.open_array(tmp_path / "labels.zarr", path="labels").attrs["blockbuster"]["report"]
    assert report["empty_threshold"] == blockbuster.estimate_empty_tiles(source, **options).threshold
