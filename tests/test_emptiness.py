"""Tiles in which nothing is: `estimate_empty_tiles`, `skip_empty` and thresholds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import skimage.filters
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import EmptyTiles, GeometryError, ImageError, ParameterError, estimate_empty_tiles, tile_process
from tests.helpers import Recording, assert_same_objects, components, padded_blocks, write_ome_zarr
from tests.strategies import images, overlaps, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    made = tmp_path / "calls"
    made.mkdir()
    return Recording(made, bright)


def bright(block: NDArray[Any]) -> NDArray[Any]:
    return components(block > 10)


@pytest.fixture
def image() -> NDArray[np.uint16]:
    """8 x 12, four objects of falling brightness."""
    made = np.zeros((8, 12), np.uint16)
    made[1, 1], made[4, 4], made[6, 10], made[0, 11] = 1000, 200, 50, 20
    return made


def maxima(image: NDArray[Any], tile_shape: Sequence[int], overlap: Sequence[int]) -> NDArray[Any]:
    grid = [-(-n // t) for n, t in zip(image.shape, tile_shape, strict=True)]
    values: NDArray[Any] = np.array([b.max() for b in padded_blocks(image, tile_shape, overlap)]).reshape(grid)
    return values


# estimate_empty_tiles


@synchronous
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:overlap")
def test_maxima_and_occupancy_are_exact(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3))
    image = data.draw(images(shape, ("uint8", "uint16", "int32", "int64", "float32")))
    tile_shape, overlap = data.draw(tile_shapes(shape)), data.draw(overlaps(shape))
    threshold = data.draw(st.sampled_from([-1, 0, 0.5, 1, 255]))
    found = estimate_empty_tiles(image, tile_shape, threshold, overlap=overlap)
    expected = maxima(image, tile_shape, overlap)
    np.testing.assert_array_equal(found.maximum, expected)
    assert found.maximum.dtype == image.dtype
    # NaN is not known to be empty.
    occupied = np.isnan(expected) | (expected > threshold)
    np.testing.assert_array_equal(found.occupied, occupied)
    assert found.n_tiles == expected.size
    assert found.n_occupied == np.count_nonzero(occupied)
    assert found.empty_fraction == pytest.approx(1 - np.count_nonzero(occupied) / expected.size)
    assert found.threshold == threshold


def source_of(kind: str, image: NDArray[Any], folder: Path) -> Any:
    if kind == "numpy":
        return image
    if kind == "dask":
        return da.from_array(image, chunks=(3, 5))
    if kind == "zarr":
        return zarr.create_array(folder / "image.zarr", data=image, chunks=(4, 4))
    return write_ome_zarr(folder / "image.ome.zarr", [image[None]], "cyx", chunks=(1, 4, 4), channels=["DAPI"])


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "path"])
def test_any_image_is_looked_at(kind: str, image: NDArray[Any], tmp_path: Path) -> None:
    source = source_of(kind, image, tmp_path)
    options = {"channel": "DAPI"} if kind == "path" else {}
    found = estimate_empty_tiles(source, (4, 4), 10, overlap=1, **options)
    np.testing.assert_array_equal(found.maximum, [[1000, 200, 20], [200, 200, 50]])
    assert (found.n_tiles, found.n_occupied, found.empty_fraction) == (6, 6, 0)
    assert estimate_empty_tiles(source, (4, 4), 100, **options).occupied.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_every_scheduler_finds_the_same(image: NDArray[Any], scheduler: str) -> None:
    found = estimate_empty_tiles(da.from_array(image, chunks=(3, 5)), (4, 4), overlap=1)
    np.testing.assert_array_equal(found.maximum, [[1000, 200, 20], [200, 200, 50]])


@synchronous
def test_the_chunks_are_the_tiles_by_default(image: NDArray[Any]) -> None:
    assert estimate_empty_tiles(da.from_array(image, chunks=((3, 5), (12,))), threshold=0).maximum.shape == (2, 1)
    assert estimate_empty_tiles(image, threshold=0).n_tiles == 1


@synchronous
def test_a_level_of_a_pyramid_may_be_looked_at(image: NDArray[Any], tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "image.zarr", [image, image[::2, ::2]], "yx")
    assert estimate_empty_tiles(path, (2, 2), 0, level=1).maximum.shape == (2, 3)


@synchronous
def test_the_automatic_threshold_is_otsus() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 5, (64, 64))
    image[20:40, 20:40] = rng.normal(300, 5, (20, 20))
    found = estimate_empty_tiles(image, (16, 16))
    assert found.threshold == pytest.approx(skimage.filters.threshold_otsu(image), rel=0.05)
    assert found.n_occupied == 4


@synchronous
def test_the_automatic_threshold_reads_a_bounded_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockbuster.sources import StoredImage

    array = zarr.create_array(tmp_path / "image.zarr", shape=(200, 200), chunks=(10, 10), dtype="uint8")
    array[:] = 7
    reads: list[Any] = []
    read = StoredImage.read
    monkeypatch.setattr(StoredImage, "read", lambda self, region: (reads.append(region), read(self, region))[1])
    estimate_empty_tiles(array)
    assert 400 < len(reads) <= 400 + 16


@synchronous
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int64", "float16", "float64"])
def test_the_automatic_threshold_of_every_dtype(dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 50, (64, 64)).astype(dtype)
    bright_value = 1e4 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    image[20:40, 20:40] = bright_value
    found = estimate_empty_tiles(image, (16, 16))
    assert 49 <= found.threshold < bright_value
    assert found.n_occupied == 4


@synchronous
def test_every_tile_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockbuster.sources import StoredImage

    array = zarr.create_array(tmp_path / "image.zarr", shape=(40, 50), chunks=(10, 10), dtype="uint8")
    reads: list[Any] = []
    read = StoredImage.read
    monkeypatch.setattr(StoredImage, "read", lambda self, region: (reads.append(region), read(self, region))[1])
    estimate_empty_tiles(array, threshold=0)
    assert len(reads) == len({str(region) for region in reads}) == 20


@synchronous
@pytest.mark.parametrize(
    ("image", "threshold", "n_occupied"),
    [
        (np.zeros((8, 8), np.uint8), 0, 0),
        (np.full((8, 8), 9, np.uint8), 0, 4),
        (np.full((8, 8), -9, np.int8), -9, 0),
        (np.eye(8, dtype=bool), 0, 2),
        (np.where(np.eye(8), np.inf, 0.0), 0, 2),
    ],
)
def test_images_that_tell_no_threshold_skip_only_what_is_certainly_empty(
    image: NDArray[Any], threshold: float, n_occupied: int
) -> None:
    found = estimate_empty_tiles(image, (4, 4))
    assert (found.threshold, found.n_occupied) == (threshold, n_occupied)


@synchronous
def test_an_image_without_tiles_has_no_empty_fraction() -> None:
    found = estimate_empty_tiles(np.zeros((0, 4)), (2, 2), 0)
    assert (found.n_tiles, found.n_occupied, found.empty_fraction) == (0, 0, 0)


@pytest.mark.parametrize("image", [np.full((4, 4), np.nan), np.zeros((0, 4))])
def test_no_threshold_can_be_derived_without_finite_voxels(image: NDArray[Any]) -> None:
    with pytest.raises(ParameterError, match=r"No threshold .* without finite voxels\. Give a threshold"):
        estimate_empty_tiles(image, (2, 2))


def test_what_cannot_be_tiled_is_refused(tmp_path: Path, image: NDArray[Any]) -> None:
    with pytest.raises(GeometryError, match=r"tile_shape \(4,\) has 1 entries, the image has 2 axes"):
        estimate_empty_tiles(image, (4,), 0)
    with pytest.raises(GeometryError, match=r"overlap \(-1, -1\) has an entry below 0"):
        estimate_empty_tiles(image, (4, 4), 0, overlap=-1)
    with pytest.raises(ImageError, match="nothing at"):
        estimate_empty_tiles(tmp_path / "none.zarr")


def test_the_result_is_a_frozen_value(image: NDArray[Any]) -> None:
    found = estimate_empty_tiles(image, (4, 4), 0)
    assert isinstance(found, EmptyTiles)
    with pytest.raises(AttributeError):
        found.threshold = 3  # type: ignore[misc]


# skip_empty


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "path"])
def test_fn_is_called_where_core_or_halo_exceed_the_threshold(
    kind: str, image: NDArray[Any], recording: Recording, tmp_path: Path
) -> None:
    source = source_of(kind, image, tmp_path)
    for overlap, n_calls in [(0, 3), (1, 5)]:
        for file in recording.folder.iterdir():
            file.unlink()
        # At or below 20 is empty: the object of 20 is skipped unless another one is in its tile's halo.
        labels = tile_process(
            source,
            recording,
            tile_shape=(4, 4),
            overlap=overlap,
            skip_empty=True,
            empty_threshold=20,
            compute=True,
        )
        expected = maxima(image, (4, 4), (overlap, overlap)) > 20
        assert recording.n_calls == np.count_nonzero(expected) == n_calls
        assert all(block.max() > 20 for block in recording.blocks())
        np.testing.assert_array_equal(labels > 0, image > 20)


@synchronous
@given(data=st.data())
def test_skipping_below_what_fn_sees_changes_nothing(data: st.DataObject) -> None:
    shape = data.draw(shapes(1, 3))
    image = data.draw(images(shape, ("uint8", "int16", "float32")))
    tile_shape = data.draw(tile_shapes(shape))

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        return components(block > 0.5)

    labels = tile_process(image, fn, tile_shape=tile_shape, skip_empty=True, empty_threshold=0.5, compute=True)
    assert_same_objects(labels, fn(image))


@synchronous
def test_tiles_with_nan_are_not_skipped(recording: Recording) -> None:
    image = np.zeros((4, 8))
    image[0, 0] = np.nan
    tile_process(image, recording, tile_shape=(4, 4), skip_empty=True, empty_threshold=100, compute=True)
    assert recording.n_calls == 1


@synchronous
@pytest.mark.parametrize("to_store", [False, True])
def test_what_was_skipped_is_reported(
    to_store: bool, image: NDArray[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_to = tmp_path / "out.zarr" if to_store else None
    with caplog.at_level(logging.WARNING, "blockbuster"):
        tile_process(
            image,
            bright,
            tile_shape=(4, 4),
            skip_empty=True,
            empty_threshold=20,
            compute=True,
            write_to=write_to,
        )
    (line,) = [record.getMessage() for record in caplog.records]
    assert "3 of 6 tiles were skipped as empty" in line
    assert "threshold 20" in line
    if write_to is not None:
        report = zarr.open_array(write_to / "labels").attrs["blockbuster"]["report"]
        assert report["n_skipped"] == 3
        assert report["n_tiles"] == 6
        assert report["empty_threshold"] == 20


@synchronous
def test_nothing_is_reported_where_nothing_was_skipped(
    image: NDArray[Any], caplog: pytest.LogCaptureFixture, recording: Recording
) -> None:
    with caplog.at_level(logging.WARNING, "blockbuster"):
        tile_process(image, recording, tile_shape=(4, 4), overlap=3, skip_empty=True, empty_threshold=0, compute=True)
    assert recording.n_calls == 6
    assert caplog.records == []


@synchronous
def test_an_automatic_threshold_over_dim_cells_says_what_it_skips(
    caplog: pytest.LogCaptureFixture, recording: Recording
) -> None:
    image = np.full((64, 64), 5, np.uint8)
    image[4:12, 4:12] = 250
    image[40:48, 40:48] = 60
    with caplog.at_level(logging.WARNING, "blockbuster"):
        labels = tile_process(image, recording, tile_shape=(16, 16), skip_empty=True, compute=True)
    assert labels[44, 44] == 0, "Otsu's threshold was meant to lie above the dim cell"
    assert recording.n_calls == 1
    assert "15 of 16 tiles were skipped" in caplog.text
    # The exact maxima show what an automatic threshold would lose.
    tiles = estimate_empty_tiles(image, (16, 16))
    assert tiles.n_occupied == 1
    assert sorted(tiles.maximum[~tiles.occupied].tolist())[-1] == 60
    exact = tile_process(image, bright, tile_shape=(16, 16), skip_empty=True, empty_threshold=5, compute=True)
    assert_same_objects(exact, bright(image))


def test_skipping_is_the_same_on_every_scheduler(image: NDArray[Any], scheduler: str, recording: Recording) -> None:
    labels = tile_process(
        image, recording, tile_shape=(4, 4), skip_empty=True, empty_threshold=20, compute=True, overlap=1
    )
    assert recording.n_calls == 5
    np.testing.assert_array_equal(labels > 0, image > 20)


@synchronous
def test_objects_go_on_over_tiles_whose_neighbours_were_skipped() -> None:
    image = np.zeros((4, 16), np.uint8)
    image[1, 2:7] = image[1, 12:14] = 200
    labels = tile_process(image, components, tile_shape=(4, 4), skip_empty=True, empty_threshold=0, compute=True)
    assert_same_objects(labels, components(image))


def test_a_threshold_without_skip_empty_is_refused(image: NDArray[Any], recording: Recording) -> None:
    with pytest.raises(ParameterError, match=r"empty_threshold 3 has no effect without skip_empty=True\. Give both"):
        tile_process(image, recording, empty_threshold=3, compute=True)
    assert recording.n_calls == 0
