"""`label` against the labels of the whole array."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import blockbuster
from blockbuster import BlockbusterError, GeometryError, LabelOverflowError, ParameterError, TileError
from tests.helpers import assert_same_objects, digest, leftovers, nothing_computed, write_ome_zarr
from tests.oracles import raster_numbered, scipy_labels, value_components
from tests.strategies import Case, cases, chunkings, images, label_images, shapes, tile_shapes

pytestmark = pytest.mark.usefixtures("synchronous")

THRESHOLDS = st.sampled_from([0, 0.5, 1, -1, 2, 254, 300, 60_000.0, float("inf"), float("nan"), np.float32(0.1)])


def _foreground(image: NDArray[Any]) -> NDArray[np.bool_]:
    return (image != 0) & (image == image)


def _assert_equal(labels: Any, expected: NDArray[Any]) -> None:
    """Assert the same values, dtype and kind as scipy gives."""
    assert isinstance(labels, np.ndarray)
    assert (labels.dtype, labels.shape) == (np.dtype(np.int32), expected.shape)
    assert expected.dtype == np.int32
    assert (labels == expected).all()


def _random_mask(seed: int, shape: tuple[int, ...], density: float = 0.4) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) < density


# Equal to scipy, bit for bit


@given(cases())
def test_labels_are_those_of_scipy(case: Case) -> None:
    labels = blockbuster.label(case.image, tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True)
    _assert_equal(labels, scipy_labels(_foreground(case.image), case.connectivity))


@given(cases(), THRESHOLDS)
def test_foreground_is_what_exceeds_the_threshold(case: Case, threshold: float) -> None:
    labels = blockbuster.label(
        case.image, threshold=threshold, tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True
    )
    _assert_equal(labels, scipy_labels(case.image > threshold, case.connectivity))


@pytest.mark.parametrize("threshold", [2**53, 2**63, 2**64 - 2, -(2**63), np.uint64(2**63)])
def test_integer_thresholds_are_compared_exactly(threshold: int) -> None:
    image = np.array([threshold - 1, threshold, threshold + 1] if threshold > 0 else [0, 1, 2**64 - 1], np.uint64)
    labels = blockbuster.label(image, threshold=threshold, tile_shape=(2,), compute=True)
    _assert_equal(labels, scipy_labels(image > threshold))
    assert labels.any()


@given(st.data())
def test_outside_the_mask_is_background(data: st.DataObject) -> None:
    case = data.draw(cases(max_ndim=3))
    mask = data.draw(images(case.image.shape, ["bool", "uint8", "int64", "float32"]))
    given_mask = data.draw(st.sampled_from([mask, da.from_array(mask, chunks=3)]))
    labels = blockbuster.label(
        case.image, mask=given_mask, tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True
    )
    _assert_equal(labels, scipy_labels(_foreground(case.image) & (mask != 0), case.connectivity))


@given(st.data())
def test_irregular_chunks_of_a_dask_array_are_tiles_like_others(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_ndim=4))
    image = data.draw(images(shape))
    lazy = da.from_array(image, chunks=data.draw(chunkings(shape)))
    tile_shape = data.draw(st.none() | tile_shapes(shape))
    connectivity = data.draw(st.integers(1, len(shape)))
    labels = blockbuster.label(lazy, tile_shape=tile_shape, connectivity=connectivity)
    if tile_shape is None:
        assert labels.chunks == lazy.chunks
    _assert_equal(labels.compute(), scipy_labels(_foreground(image), connectivity))


@pytest.mark.parametrize("connectivity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.4])
def test_every_connectivity_of_five_axes(connectivity: int, density: float) -> None:
    image = _random_mask(3, (5, 4, 5, 4, 5), density)
    labels = blockbuster.label(image, connectivity=connectivity, tile_shape=(3, 4, 2, 3, 3), compute=True)
    _assert_equal(labels, scipy_labels(image, connectivity))


@given(st.data())
def test_some_tiles_are_labelled_as_if_the_others_were_background(data: st.DataObject) -> None:
    image = data.draw(shapes(max_ndim=3).flatmap(lambda shape: images(shape, ["bool"])))
    tile_shape = data.draw(tile_shapes(image.shape))
    starts = list(itertools.product(*(range(0, n, t) for n, t in zip(image.shape, tile_shape, strict=True))))
    chosen = data.draw(st.sets(st.integers(0, len(starts) - 1)))
    kept = np.zeros_like(image)
    for start in (starts[block_id] for block_id in chosen):
        tile = tuple(slice(a, a + t) for a, t in zip(start, tile_shape, strict=True))
        kept[tile] = image[tile]
    labels = blockbuster.label(image, tile_shape=tile_shape, block_ids=sorted(chosen), compute=True)
    _assert_equal(labels, scipy_labels(kept))


@given(cases(max_ndim=3, dtypes=["bool"]))
@settings(max_examples=30)
def test_stored_labels_are_those_of_scipy(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        labels = blockbuster.label(
            case.image, tile_shape=case.tile_shape, connectivity=case.connectivity, write_to=Path(folder, "out.zarr")
        )
        _assert_equal(labels.compute(), scipy_labels(case.image, case.connectivity))
        _assert_equal(zarr.open_array(Path(folder, "out.zarr"), path="labels")[...], labels.compute())
        assert {path.name for path in Path(folder).iterdir()} == {"out.zarr"}


@given(st.data())
@settings(max_examples=30)
def test_stored_labels_of_irregular_tiles_are_those_of_scipy(data: st.DataObject) -> None:
    """Chunks of the output are regular, so tiles do not match them."""
    image = data.draw(shapes(max_ndim=3).flatmap(lambda shape: images(shape, ["bool"])))
    lazy = da.from_array(image, chunks=data.draw(chunkings(image.shape)))
    with tempfile.TemporaryDirectory() as folder:
        labels = blockbuster.label(lazy, write_to=Path(folder, "out.zarr"))
        _assert_equal(labels.compute(), scipy_labels(image))


# Other numberings


@given(cases())
def test_tile_numbering_gives_the_objects_of_scipy_as_1_to_n(case: Case) -> None:
    labels = blockbuster.label(
        case.image, numbering="tile", tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True
    )
    expected = scipy_labels(_foreground(case.image), case.connectivity)
    assert_same_objects(labels, expected)
    n = int(expected.max(initial=0))
    assert np.setdiff1d(labels, [0]).tolist() == list(range(1, n + 1))
    assert labels.dtype == np.int32


def test_tile_numbering_follows_the_tiles() -> None:
    image = np.zeros((4, 8), bool)
    image[[0, 0, 3, 3], [0, 7, 0, 7]] = True
    labels = blockbuster.label(image, numbering="tile", tile_shape=(4, 4), compute=True)
    assert labels[[0, 3, 0, 3], [0, 0, 7, 7]].tolist() == [1, 2, 3, 4]
    raster = blockbuster.label(image, tile_shape=(4, 4), compute=True)
    assert raster[[0, 0, 3, 3], [0, 7, 0, 7]].tolist() == [1, 2, 3, 4]


# Labels by value


@given(cases(max_ndim=3, labels=True))
def test_equal_neighbours_are_joined_as_scikit_image_does(case: Case) -> None:
    labels = blockbuster.label(
        case.image, by_value=True, tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True
    )
    expected = skimage.measure.label(case.image, background=0, connectivity=case.connectivity)
    # With an axis of one voxel scikit-image numbers differently.
    _assert_equal(labels, raster_numbered(expected) if 1 in expected.shape else expected.astype(np.int32))


@given(cases(labels=True))
def test_equal_neighbours_are_joined_in_any_number_of_axes(case: Case) -> None:
    labels = blockbuster.label(
        case.image, by_value=True, tile_shape=case.tile_shape, connectivity=case.connectivity, compute=True
    )
    _assert_equal(labels, value_components(case.image, case.connectivity))


@given(st.data())
def test_equal_neighbours_are_joined_within_the_mask(data: st.DataObject) -> None:
    image = data.draw(shapes(max_ndim=3).flatmap(label_images))
    mask = data.draw(images(image.shape, ["bool"]))
    tile_shape = data.draw(tile_shapes(image.shape))
    labels = blockbuster.label(image, by_value=True, mask=mask, tile_shape=tile_shape, compute=True)
    _assert_equal(labels, value_components(np.where(mask, image, image.dtype.type(0))))


@given(cases(max_ndim=3, labels=True))
def test_equal_neighbours_are_joined_in_tile_numbering(case: Case) -> None:
    labels = blockbuster.label(
        case.image,
        by_value=True,
        numbering="tile",
        tile_shape=case.tile_shape,
        connectivity=case.connectivity,
        compute=True,
    )
    expected = value_components(case.image, case.connectivity)
    assert_same_objects(labels, expected)
    assert labels.max(initial=0) == expected.max(initial=0)


@pytest.mark.parametrize("pair", [(2**53, 2**53 + 1), (2**63, 2**63 + 1), (2**64 - 1, 2**64 - 2)])
def test_large_values_are_compared_exactly(pair: tuple[int, int]) -> None:
    image = np.array([pair[0], pair[0], pair[1], pair[1]], np.uint64)
    for tile in (1, 2, 3, 4):
        assert blockbuster.label(image, by_value=True, tile_shape=(tile,), compute=True).tolist() == [1, 1, 2, 2]


def test_values_that_differ_by_tiles_only_locally_are_not_joined() -> None:
    # In each tile these are label 1; their values tell them apart.
    image = np.array([[7, 9], [9, 9]], np.uint8)
    assert blockbuster.label(image, by_value=True, tile_shape=(1, 1), compute=True).tolist() == [[1, 2], [2, 2]]


# Contacts over tile borders


@pytest.mark.parametrize(("connectivity", "n"), [(1, 2), (2, 1)])
def test_contact_over_the_corner_of_four_tiles(connectivity: int, n: int) -> None:
    for voxels in ([(7, 7), (8, 8)], [(7, 8), (8, 7)]):
        image = np.zeros((16, 16), bool)
        image[tuple(zip(*voxels, strict=True))] = True
        assert blockbuster.label(image, connectivity=connectivity, tile_shape=(8, 8), compute=True).max() == n


@pytest.mark.parametrize("step", [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)])
@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_contact_with_each_of_the_26_neighbours(step: tuple[int, int, int], connectivity: int) -> None:
    image = np.zeros((5, 5, 5), bool)
    image[2, 2, 2] = image[tuple(2 + s for s in step)] = True
    labels = blockbuster.label(
        image, connectivity=connectivity, tile_shape=(1, 1, 1), block_ids=_around(), compute=True
    )
    assert labels.max() == (1 if sum(map(abs, step)) <= connectivity else 2)


def _around() -> list[int]:
    """The tiles of one voxel around the middle of 5 x 5 x 5."""
    return [(z * 5 + y) * 5 + x for z, y, x in itertools.product((1, 2, 3), repeat=3)]


def test_a_u_through_a_third_tile_is_one_object() -> None:
    image = np.zeros((8, 12), bool)
    image[1:7, [1, 10]] = image[6, 1:11] = True
    for tile_shape in ((8, 4), (4, 4), (3, 5), (1, 12), (8, 1)):
        labels = blockbuster.label(image, tile_shape=tile_shape, compute=True)
        assert (labels == image).all()


def test_a_spiral_through_all_tiles_is_one_object() -> None:
    image = np.zeros((33, 33), bool)
    low, high = 0, 32
    image[0, :] = True
    while low < high:
        image[low : high + 1, high] = image[high, low : high + 1] = True
        image[low + 2 : high + 1, low] = image[low + 2, low : high - 1] = True
        low, high = low + 2, high - 2
    expected = scipy_labels(image)
    for numbering in ("raster", "tile"):
        labels = blockbuster.label(image, tile_shape=(5, 7), numbering=numbering, compute=True)
        assert (labels == expected).all()


# Shapes


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("options", [{}, {"numbering": "tile"}, {"by_value": True}, {"tile_shape": "same"}])
def test_arrays_without_voxels(shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, "tile_shape": (2,) * len(shape)} if "tile_shape" in options else options
    image = np.ones(shape, np.uint8)
    _assert_equal(blockbuster.label(image, compute=True, **options), np.zeros(shape, np.int32))
    _assert_equal(blockbuster.label(image, **options).compute(), np.zeros(shape, np.int32))
    stored = blockbuster.label(image, write_to=tmp_path / "out.zarr", **options)
    _assert_equal(stored.compute(), np.zeros(shape, np.int32))


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1,), (17,), (1, 1), (1, 17), (17, 1), (9, 17), (4, 5, 6), (1, 1, 1), (2, 3, 2, 3)])
def test_empty_and_full_arrays(shape: tuple[int, ...], value: int) -> None:
    image = np.full(shape, value, np.uint8)
    for tile in (1, 2, 3, 100):
        labels = blockbuster.label(image, tile_shape=(tile,) * len(shape), compute=True)
        _assert_equal(labels, np.full(shape, value, np.int32))


@pytest.mark.parametrize("tile_shape", [(100, 100), (1, 60), (60, 1), (1, 1), (7, 13), (59, 60), (60, 59), (31, 1000)])
def test_tiles_that_do_not_divide_the_shape_exceed_it_or_are_thin(tile_shape: tuple[int, int]) -> None:
    image = _random_mask(5, (23, 60) if tile_shape == (1, 1) else (60, 60), 0.55)
    _assert_equal(blockbuster.label(image, tile_shape=tile_shape, compute=True), scipy_labels(image))


def test_a_0_d_array_is_refused() -> None:
    with pytest.raises(GeometryError, match="no axes"):
        blockbuster.label(np.float32(3))


# Many labels


def _checkers(*shape: int) -> NDArray[np.bool_]:
    return np.asarray(np.indices(shape).sum(0) % 2 == 0)


@pytest.mark.parametrize(("side", "least"), [(363, 65_535), (450, 100_000)])
@pytest.mark.parametrize("numbering", ["raster", "tile"])
def test_more_labels_in_one_tile_than_16_bits_count(side: int, least: int, numbering: Any) -> None:
    image = _checkers(side + 40, side + 30)
    assert _checkers(side, side).sum() > least
    labels = blockbuster.label(image, tile_shape=(side, side), numbering=numbering, compute=True)
    if numbering == "raster":
        _assert_equal(labels, scipy_labels(image))
    else:
        assert np.bincount(labels.ravel())[1:].tolist() == [1] * int(image.sum())


def test_many_labels_of_one_tile_join_those_of_another() -> None:
    # Columns, cut between two rows: 150,000 labels per tile, each with a partner.
    image = np.zeros((4, 300_000), bool)
    image[:, ::2] = True
    labels = blockbuster.label(image, tile_shape=(2, 300_000), compute=True)
    _assert_equal(labels, scipy_labels(image))


# Dtypes of labels


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", int]
)
def test_labels_have_the_dtype_asked_for(dtype: Any, tmp_path: Path) -> None:
    image = _random_mask(0, (20, 30), 0.3)
    native = np.dtype(dtype).newbyteorder("=")
    lazy = blockbuster.label(image, tile_shape=(7, 8), dtype=dtype)
    stored = blockbuster.label(image, tile_shape=(7, 8), dtype=dtype, write_to=tmp_path / "out.zarr")
    for labels in (lazy, stored):
        assert labels.dtype == labels.compute().dtype == native
        assert (labels.compute() == scipy_labels(image)).all()


@pytest.mark.parametrize("numbering", ["raster", "tile"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
@pytest.mark.parametrize("n_tiles", [1, 2])
def test_as_many_objects_fit_as_the_dtype_can_number_and_no_more(
    dtype: str, numbering: Any, n_tiles: int, tmp_path: Path
) -> None:
    most = int(np.iinfo(dtype).max)
    image = np.zeros(2 * most + 2, np.uint8)
    image[: 2 * most : 2] = 1
    options = {"dtype": dtype, "numbering": numbering, "tile_shape": (-(-image.size // n_tiles),)}
    labels = blockbuster.label(image, compute=True, **options)
    assert labels.max() == most
    assert np.unique(labels).size == most + 1

    image[2 * most] = 1
    with pytest.raises(LabelOverflowError, match=f"{most + 1} objects .* dtype {dtype}"):
        blockbuster.label(image, compute=True, **options)
    lazy = blockbuster.label(image, **options)
    with pytest.raises(LabelOverflowError):
        lazy.compute()


def test_overflow_writes_no_output(tmp_path: Path) -> None:
    image = _checkers(40, 40)
    with pytest.raises(LabelOverflowError, match="800 objects"):
        blockbuster.label(image, tile_shape=(20, 20), dtype="uint8", write_to=tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_overflow_leaves_the_labels_that_were_to_be_replaced(tmp_path: Path) -> None:
    first = blockbuster.label(np.eye(8), tile_shape=(4, 4), write_to=tmp_path / "out.zarr").compute()
    before = digest(tmp_path / "out.zarr")
    with pytest.raises(LabelOverflowError):
        blockbuster.label(
            _checkers(40, 40), tile_shape=(20, 20), dtype="int8", write_to=tmp_path / "out.zarr", overwrite=True
        )
    assert digest(tmp_path / "out.zarr") == before
    assert (zarr.open_array(tmp_path / "out.zarr", path="labels", mode="r")[...] == first).all()


# Kinds of images

IMAGE = np.random.default_rng(1).integers(0, 3, (19, 33, 21)).astype(np.uint16)


def _stored(path: Path, **options: Any) -> zarr.Array[Any]:
    options = {"chunks": (8, 8, 8), **options}
    dtype = options.pop("dtype", IMAGE.dtype)
    array = zarr.create_array(path, shape=IMAGE.shape, dtype=dtype, **options)
    array[...] = IMAGE
    return array


KINDS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _: IMAGE,
    "numpy, Fortran order": lambda _: np.asfortranarray(IMAGE),
    "numpy, reversed": lambda _: IMAGE[::-1].copy()[::-1],
    "numpy, big-endian": lambda _: IMAGE.astype(">u2"),
    "numpy, read-only": lambda _: _read_only(IMAGE),
    "list": lambda _: IMAGE.tolist(),
    "dask": lambda _: da.from_array(IMAGE, chunks=(8, 9, 10)),
    "dask, irregular": lambda _: da.from_array(IMAGE, chunks=((3, 11, 5), (30, 3), (1, 1, 19))),
    "dask, big-endian": lambda _: da.from_array(IMAGE.astype(">u2"), chunks=8),
    "dask, computed": lambda _: (da.from_array(IMAGE, chunks=8) * 2 + 1).astype("u2") // 2,
    "zarr": lambda path: _stored(path / "in.zarr"),
    "zarr in memory": lambda _: zarr.array(IMAGE, chunks=(8, 8, 8)),
    "zarr v2": lambda path: _stored(path / "in.zarr", zarr_format=2),
    "zarr v2, big-endian": lambda path: _stored(path / "in.zarr", zarr_format=2, dtype=">u2"),
    "zarr v2, Fortran order": lambda path: _stored(path / "in.zarr", zarr_format=2, order="F"),
    "zarr sharded": lambda path: _stored(path / "in.zarr", shards=(16, 16, 16)),
    "path": lambda path: _path(_stored(path / "in.zarr")),
    "path, str": lambda path: str(_path(_stored(path / "in.zarr"))),
    "path of v2": lambda path: _path(_stored(path / "in.zarr", zarr_format=2)),
    "path of v2, big-endian": lambda path: _path(_stored(path / "in.zarr", zarr_format=2, dtype=">u2")),
    "path of v3, big-endian": lambda path: _path(
        _stored(path / "in.zarr", serializer=zarr.codecs.BytesCodec(endian="big"))
    ),
    "path within a group": lambda path: _within_group(path / "group.zarr"),
}


def _read_only(image: NDArray[Any]) -> NDArray[Any]:
    copy = image.copy()
    copy.flags.writeable = False
    return copy


def _path(array: zarr.Array[Any]) -> Path:
    return Path(array.store.root)  # type: ignore[attr-defined]


def _within_group(path: Path) -> Path:
    zarr.create_group(path).create_array("a/b", data=IMAGE, chunks=(8, 8, 8))
    return path / "a" / "b"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_shape", [None, (7, 16, 50), (32, 64, 32)])
@pytest.mark.parametrize("by_value", [False, True])
def test_every_kind_of_image_has_the_same_labels(kind: str, tile_shape: Any, by_value: bool, tmp_path: Path) -> None:
    image = KINDS[kind](tmp_path)
    expected = value_components(IMAGE) if by_value else scipy_labels(IMAGE)
    with nothing_computed():
        labels = blockbuster.label(image, tile_shape=tile_shape, by_value=by_value)
    _assert_equal(labels.compute(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_is_a_mask(kind: str, tmp_path: Path) -> None:
    ones = np.ones(IMAGE.shape, np.float32)
    labels = blockbuster.label(ones, mask=KINDS[kind](tmp_path), tile_shape=(7, 16, 50), compute=True)
    _assert_equal(labels, scipy_labels(IMAGE))


@pytest.mark.parametrize("kind", ["zarr", "zarr v2, big-endian", "path", "zarr sharded"])
@pytest.mark.parametrize("numbering", ["raster", "tile"])
def test_inputs_are_never_written(kind: str, numbering: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image = KINDS[kind](tmp_path / "data")
    before = digest(tmp_path / "data")
    blockbuster.label(image, mask=image, numbering=numbering, compute=True)
    blockbuster.label(image, mask=image, numbering=numbering, write_to=tmp_path / "out.zarr")
    assert digest(tmp_path / "data") == before


def test_numpy_and_dask_inputs_are_never_written() -> None:
    before = IMAGE.copy()
    for image in (IMAGE, da.from_array(IMAGE, chunks=8)):
        for by_value in (False, True):
            blockbuster.label(image, by_value=by_value, mask=IMAGE, tile_shape=(8, 8, 8), compute=True)
    assert (before == IMAGE).all()


def test_the_array_given_may_change_after_the_call_to_a_stored_result(tmp_path: Path) -> None:
    image = _random_mask(0, (20, 20))
    expected = scipy_labels(image)
    labels = blockbuster.label(image, tile_shape=(8, 8), write_to=tmp_path / "out.zarr")
    image[...] = False
    _assert_equal(labels.compute(), expected)


# Lazy in, lazy out


def test_nothing_is_computed_before_it_is_asked_for(tmp_path: Path) -> None:
    lazy = da.from_array(IMAGE, chunks=8)
    with nothing_computed():
        labels = blockbuster.label(lazy, mask=lazy > 1, tile_shape=(9, 9, 9))
    assert isinstance(labels, da.Array)
    assert (labels.shape, labels.dtype) == (IMAGE.shape, np.int32)
    assert labels.chunks == da.empty(IMAGE.shape, chunks=9).chunks
    assert leftovers(tmp_path) == []


def test_labels_go_on_in_other_lazy_graphs() -> None:
    image = _random_mask(2, (30, 40))
    labels = blockbuster.label(image, tile_shape=(8, 9))
    expected = scipy_labels(image)
    assert int(labels.max().compute()) == expected.max()
    assert (labels[5:20, ::3].compute() == expected[5:20, ::3]).all()
    assert ((labels.rechunk(7) > 3).sum().compute()) == (expected > 3).sum()
    again = blockbuster.label(labels, by_value=True, tile_shape=(11, 12))
    _assert_equal(again.compute(), expected)


def test_two_lazy_results_are_computed_together() -> None:
    image = _random_mask(2, (30, 40))
    by_faces, by_corners = (blockbuster.label(image, connectivity=c, tile_shape=(8, 9)) for c in (1, 2))
    difference = (by_faces.max() - by_corners.max()).compute()
    assert difference == scipy_labels(image, 1).max() - scipy_labels(image, 2).max()


def test_compute_gives_a_numpy_array_and_write_to_the_stored_one(tmp_path: Path) -> None:
    image = _random_mask(2, (30, 40))
    assert isinstance(blockbuster.label(image, compute=True), np.ndarray)
    labels = blockbuster.label(image, tile_shape=(8, 16), write_to=tmp_path / "out.zarr", output_component="a/cells")
    assert isinstance(labels, da.Array)
    stored = zarr.open_array(tmp_path / "out.zarr", path="a/cells", mode="r")
    assert stored.chunks == (8, 16)
    _assert_equal(stored[...], scipy_labels(image))
    _assert_equal(labels.compute(), scipy_labels(image))


def test_running_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    image = _random_mask(2, (30, 40))
    for name in ("first", "second"):
        blockbuster.label(image, numbering="tile", tile_shape=(8, 9), write_to=tmp_path / name / "out.zarr")
    chunks = [digest(tmp_path / name / "out.zarr" / "labels" / "c") for name in ("first", "second")]
    assert chunks[0] == chunks[1]


# Axes with a meaning


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_objects_do_not_go_on_over_time_and_channel(version: Any, tmp_path: Path) -> None:
    image = np.stack([_random_mask(0, (2, 4, 12, 13))] * 3).astype(np.uint8)  # a still scene: t, c, z, y, x
    path = write_ome_zarr(tmp_path / "in.zarr", [image], "tczyx", version=version, chunks=(2, 1, 3, 5, 7))
    labels = blockbuster.label(path, channel=1, connectivity=3, compute=True)
    structure = scipy.ndimage.generate_binary_structure(4, 3)
    structure[[0, 2]] = False
    expected, _ = scipy.ndimage.label(image[:, 1], structure)
    _assert_equal(labels, expected)
    for a, b in itertools.combinations(range(3), 2):
        assert np.intersect1d(labels[a], labels[b]).tolist() == [0]


def test_all_channels_at_once_stay_apart(tmp_path: Path) -> None:
    image = np.ones((2, 6, 7), np.uint8)
    path = write_ome_zarr(tmp_path / "in.zarr", [image], "cyx", chunks=(2, 4, 4))
    labels = blockbuster.label(path, channel=None, compute=True)
    assert (labels == np.array([1, 2])[:, None, None]).all()


def test_level_of_a_pyramid(tmp_path: Path) -> None:
    image = _random_mask(0, (16, 20)).astype(np.uint8)
    path = write_ome_zarr(tmp_path / "in.zarr", [image, image[::2, ::2]], "yx", chunks=(4, 4))
    _assert_equal(blockbuster.label(path, level=1, compute=True), scipy_labels(image[::2, ::2]))


def test_a_mask_with_a_path_is_taken_as_it_is_whatever_the_channel_and_level(tmp_path: Path) -> None:
    image = _random_mask(0, (2, 16, 20)).astype(np.uint8)
    path = write_ome_zarr(tmp_path / "in.zarr", [image, image[:, ::2, ::2]], "cyx", chunks=(1, 4, 4))
    mask = _random_mask(1, (8, 10), 0.8)
    zarr.create_array(tmp_path / "mask.zarr", data=mask, chunks=(4, 4))
    labels = blockbuster.label(path, channel=1, level=1, mask=tmp_path / "mask.zarr", compute=True)
    _assert_equal(labels, scipy_labels((image[1, ::2, ::2] > 0) & mask))


# What is refused, before the first task


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"connectivity": 0}, ParameterError, "1..3"),
        ({"connectivity": 4}, ParameterError, "1..3"),
        ({"connectivity": 1.5}, ParameterError, "connectivity"),
        ({"connectivity": True}, ParameterError, "connectivity"),
        ({"connectivity": "2"}, ParameterError, "connectivity"),
        ({"threshold": "dim"}, ParameterError, "threshold"),
        ({"threshold": [1, 2]}, ParameterError, "threshold"),
        ({"numbering": "sequential"}, ParameterError, "'raster' or 'tile'"),
        ({"by_value": True, "threshold": 3}, ParameterError, "threshold 3"),
        ({"mask": np.ones((3, 3))}, GeometryError, r"mask has shape \(3, 3\), the image \(19, 33, 21\)"),
        ({"dtype": "float32"}, ParameterError, "float32"),
        ({"dtype": "bool"}, ParameterError, "bool"),
        ({"tile_shape": (4, 4)}, GeometryError, "2 entries, the image has 3 axes"),
        ({"tile_shape": (4, 0, 4)}, GeometryError, "below 1"),
        ({"tile_shape": "all"}, ParameterError, "'auto'"),
        ({"block_ids": [0, 99]}, GeometryError, "block_ids"),
        ({"write_to": 3}, ParameterError, "write_to"),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_options_that_do_not_fit_are_refused_before_the_first_task(
    options: dict[str, Any], error: type[BlockbusterError], words: str, kind: str, tmp_path: Path
) -> None:
    with nothing_computed(), pytest.raises(error, match=words):
        blockbuster.label(KINDS[kind](tmp_path), **options)
    assert leftovers(tmp_path) == []


def test_by_value_of_floats_is_refused() -> None:
    with nothing_computed(), pytest.raises(ParameterError, match="float32"):
        blockbuster.label(IMAGE.astype(np.float32), by_value=True)


def test_an_error_of_the_image_names_the_tile_and_keeps_its_cause() -> None:
    def broken(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        if block_info[0]["chunk-location"] == (1, 2):
            raise OSError("bad sector")
        return block

    # A broken graph fails in a task of its own.
    lazy = da.zeros((8, 12), chunks=4).map_blocks(broken, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(OSError, match="bad sector"):
        blockbuster.label(lazy).compute()


def test_a_damaged_chunk_is_an_error_that_names_the_tile(tmp_path: Path) -> None:
    array = _stored(tmp_path / "in.zarr")
    (tmp_path / "in.zarr" / "c" / "0" / "4" / "2").write_bytes(b"torn")
    with pytest.raises(TileError, match=r"Tile \(0, 4, 2\), region \[0:8, 32:33, 16:21\]: reading the image") as caught:
        blockbuster.label(array, compute=True)
    assert caught.value.tile == (0, 4, 2)
    assert caught.value.__cause__ is not None
