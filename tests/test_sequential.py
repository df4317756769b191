"""`relabel_sequential_array` and `relabel_sequential_zarr`: ids without gaps, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from blockbuster import ImageError, ParameterError, relabel_sequential_array, relabel_sequential_zarr, tile_process
from blockbuster.outputs import Output
from tests.helpers import assert_same_objects, components, digest, leftovers, nothing_computed
from tests.strategies import chunkings

UNSIGNED_AND_SIGNED = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


def sequential(labels: NDArray[Any]) -> NDArray[Any]:
    """The rank of each label among those that are not 0: the oracle."""
    ids = np.unique(labels[labels != 0])
    out: NDArray[Any] = np.where(labels != 0, np.searchsorted(ids, labels) + 1, 0)
    return out


def labels_of(dtype: str) -> st.SearchStrategy[NDArray[Any]]:
    """Labels, the largest that the dtype holds among them."""
    top = int(np.iinfo(dtype).max)
    values = st.sampled_from([0, 0, 1, 2, 3, 7, 100, top - 2, top - 1, top])
    return hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=6), elements=values)


@given(labels=st.sampled_from(UNSIGNED_AND_SIGNED).flatmap(labels_of))
def test_arrays_are_renumbered_without_gaps_in_order(labels: NDArray[Any]) -> None:
    before = labels.copy()
    renumbered = relabel_sequential_array(labels)
    assert renumbered.dtype == labels.dtype
    np.testing.assert_array_equal(renumbered, sequential(labels))
    np.testing.assert_array_equal(labels, before)


@pytest.mark.usefixtures("synchronous")
@given(data=st.data())
def test_dask_arrays_are_renumbered_like_arrays(data: st.DataObject) -> None:
    labels = data.draw(st.sampled_from(UNSIGNED_AND_SIGNED).flatmap(labels_of))
    lazy = relabel_sequential_array(da.from_array(labels, chunks=data.draw(chunkings(labels.shape))))
    assert lazy.dtype == labels.dtype
    np.testing.assert_array_equal(lazy.compute(), sequential(labels))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([1, 2], [1, 2]),
        ([5], [1]),
        ([2, 3, 4], [1, 2, 3]),
        ([1, 3], [1, 2]),
        ([0, 0], [0, 0]),
        ([], []),
        ([[7, 7], [0, 3]], [[2, 2], [0, 1]]),
    ],
)
def test_no_id_is_skipped_and_no_object_becomes_0(labels: Any, expected: Any) -> None:
    array = np.array(labels, np.uint16)
    assert relabel_sequential_array(array).tolist() == expected


def test_lists_are_taken() -> None:
    assert relabel_sequential_array([0, 9, 4]).tolist() == [0, 2, 1]


def test_lazy_arrays_stay_lazy() -> None:
    labels = da.from_array(np.array([[0, 9], [4, 0]]), chunks=1)
    with nothing_computed():
        lazy = relabel_sequential_array(labels)
    assert lazy.chunks == labels.chunks
    assert lazy.compute().tolist() == [[0, 2], [1, 0]]


def test_lazy_arrays_are_renumbered_on_every_scheduler(scheduler: str) -> None:
    labels = np.random.default_rng(0).integers(0, 50, (12, 12)) * 3
    lazy = relabel_sequential_array(da.from_array(labels, chunks=5))
    np.testing.assert_array_equal(lazy.compute(), sequential(labels))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "bool"])
def test_what_is_no_integer_is_refused_before_anything_runs(lazy: bool, dtype: str) -> None:
    labels: Any = np.zeros((4, 4), dtype)
    with nothing_computed(), pytest.raises(ParameterError, match=f"dtype {dtype}.*integers"):
        relabel_sequential_array(da.from_array(labels) if lazy else labels)


def test_negative_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="label -4 is negative"):
        relabel_sequential_array(np.array([3, -4, 0]))


# Stored labels


def store(folder: Path, labels: NDArray[Any], component: str = "labels", **options: Any) -> Path:
    path = folder / "store.zarr"
    zarr_format = options.pop("zarr_format", 3)
    if component:
        group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
        array = group.create_array(component, shape=labels.shape, dtype=labels.dtype, **options)
    else:
        array = zarr.create_array(path, shape=labels.shape, dtype=labels.dtype, zarr_format=zarr_format, **options)
    array[...] = labels
    array.attrs["of"] = "cells"
    return path


@pytest.fixture
def labels() -> NDArray[np.uint16]:
    """Labels with gaps, and a corner without any."""
    made = (np.random.default_rng(0).integers(0, 40, (20, 26)) * 7).astype(np.uint16)
    made[:8, :8] = 0
    return made


@pytest.mark.parametrize("component", ["labels", "labels/cells", "/labels/", ""])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stored_labels_are_renumbered_in_place(
    component: str, zarr_format: Any, labels: NDArray[Any], tmp_path: Path
) -> None:
    path = store(tmp_path, labels, component.strip("/"), chunks=(8, 8), zarr_format=zarr_format)
    n = relabel_sequential_zarr(path, component)
    array = zarr.open_array(path, path=component.strip("/"), mode="r")
    assert n == sequential(labels).max()
    np.testing.assert_array_equal(array[...], sequential(labels))
    assert (array.dtype, array.chunks, array.attrs["of"]) == (np.uint16, (8, 8), "cells")
    assert array.metadata.zarr_format == zarr_format
    assert leftovers(tmp_path) == []


def test_form_and_codecs_stay_as_they_were(labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(
        tmp_path,
        labels,
        chunks=(4, 4),
        shards=(8, 8),
        fill_value=0,
        compressors=zarr.codecs.GzipCodec(level=2),
        dimension_names=["y", "x"],
    )
    before = zarr.open_array(path / "labels").metadata
    assert relabel_sequential_zarr(str(path)) == sequential(labels).max()
    after = zarr.open_array(path / "labels")
    assert after.metadata == before
    np.testing.assert_array_equal(after[...], sequential(labels))


@pytest.mark.parametrize("form", [{"chunks": (3, 26)}, {"chunks": (20, 26)}, {"chunks": (4, 2), "shards": (8, 6)}])
def test_every_chunk_is_written_at_most_once(
    form: Any, labels: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path, labels, **form)
    written: list[tuple[int, ...]] = []
    write = Output.write

    def watched(self: Output, region: Any, block: NDArray[Any]) -> None:
        written.append(tuple(s.start for s in region))
        whole = form.get("shards", form["chunks"])
        assert all(s.start % n == 0 and s.stop - s.start <= n for s, n in zip(region, whole, strict=True))
        write(self, region, block)

    monkeypatch.setattr(Output, "write", watched)
    with dask.config.set(scheduler="synchronous"):
        relabel_sequential_zarr(path)
    assert len(written) == len(set(written)) > 0


def test_labels_without_gaps_are_not_touched(labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(tmp_path, sequential(labels).astype(np.uint16), chunks=(8, 8))
    before = digest(path)
    inode = (path / "labels").stat().st_ino
    assert relabel_sequential_zarr(path) == sequential(labels).max()
    assert digest(path) == before
    assert (path / "labels").stat().st_ino == inode


def test_renumbering_twice_changes_nothing(labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(tmp_path, labels, chunks=(8, 8))
    n = relabel_sequential_zarr(path)
    before = digest(path)
    assert relabel_sequential_zarr(path) == n
    assert digest(path) == before


@pytest.mark.parametrize("shape", [(8, 8), (0, 5)])
def test_stores_without_labels_have_none(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = store(tmp_path, np.zeros(shape, np.int32), chunks=(4, 4))
    assert relabel_sequential_zarr(path) == 0


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint8"])
def test_the_largest_ids_of_a_dtype_are_renumbered(dtype: str, tmp_path: Path) -> None:
    top = np.iinfo(dtype).max
    path = store(tmp_path, np.array([[0, top], [top - 1, 1]], dtype), chunks=(1, 2))
    assert relabel_sequential_zarr(path) == 3
    assert zarr.open_array(path / "labels")[...].tolist() == [[0, 3], [2, 1]]


def test_stored_labels_are_renumbered_on_every_scheduler(scheduler: str, labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(tmp_path, labels, chunks=(8, 8))
    assert relabel_sequential_zarr(path) == sequential(labels).max()
    np.testing.assert_array_equal(zarr.open_array(path / "labels")[...], sequential(labels))


def test_a_failure_leaves_the_labels_as_they_were(
    labels: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path, labels, chunks=(8, 8))
    before, calls = digest(path), []
    write = Output.write

    def failing(self: Output, region: Any, block: NDArray[Any]) -> None:
        calls.append(region)
        if len(calls) == 3:
            raise OSError("no space left on device")
        write(self, region, block)

    monkeypatch.setattr(Output, "write", failing)
    with dask.config.set(scheduler="synchronous"), pytest.raises(OSError, match="no space left"):
        relabel_sequential_zarr(path)
    assert digest(path) == before
    assert leftovers(tmp_path) == []


def test_stored_negative_labels_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path, np.array([[0, -2], [5, 1]], np.int16), chunks=(1, 2))
    before = digest(path)
    with pytest.raises(ValueError, match="label -2 is negative"):
        relabel_sequential_zarr(path)
    assert digest(path) == before


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_a_store_of_no_integers_is_refused(dtype: str, tmp_path: Path) -> None:
    path = store(tmp_path, np.zeros((4, 4), dtype), chunks=(2, 2))
    with pytest.raises(ParameterError, match=f"dtype {dtype}.*integers"):
        relabel_sequential_zarr(path)


def test_a_component_that_is_not_there_is_refused(labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(tmp_path, labels, "cells", chunks=(8, 8))
    with pytest.raises(ImageError, match=r"nothing at.*nuclei"):
        relabel_sequential_zarr(path, "nuclei")


def test_a_group_is_refused(labels: NDArray[Any], tmp_path: Path) -> None:
    path = store(tmp_path, labels, "labels/cells", chunks=(8, 8))
    with pytest.raises(ImageError, match=r"zarr group.*cells"):
        relabel_sequential_zarr(path)


def test_blocks_without_labels_stay_without(tmp_path: Path) -> None:
    stored = zarr.create_array(
        tmp_path / "labels.zarr", shape=(4,), chunks=(2,), dtype="i4", fill_value=7, config={"write_empty_chunks": True}
    )
    stored[...] = [0, 0, 5, 9]
    assert relabel_sequential_zarr(tmp_path / "labels.zarr", "") == 2
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "labels.zarr")[...], [0, 0, 1, 2])


def test_big_endian_labels_are_renumbered() -> None:
    np.testing.assert_array_equal(relabel_sequential_array(np.array([0, 7, 5, 7], ">i4")), [0, 2, 1, 2])


def test_lazy_results_are_renumbered() -> None:
    image = (np.random.default_rng(0).random((30, 30)) < 0.4).astype(np.uint8)
    labels = tile_process(image, components, tile_shape=(10, 10))
    renumbered = relabel_sequential_array(labels).compute()
    assert_same_objects(renumbered, labels.compute())
    assert np.unique(renumbered[renumbered > 0]).tolist() == list(range(1, renumbered.max() + 1))
