"""`downsample`: what the whole image gives, whatever the tiles, the source and the scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from blockbuster import GeometryError, OutputError, OutputExistsError, ParameterError, downsample, tilewise
from blockbuster.grid import Region, region_shape
from blockbuster.resampling import Method, make_resampling
from blockbuster.sources import StoredImage, open_source
from tests.helpers import digest, leftovers, nothing_computed, write_ome_zarr
from tests.strategies import chunkings, images, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")

METHODS: tuple[Method, ...] = get_args(Method)
# One of each kind, and all that work on cells.
WAYS: list[dict[str, Any]] = [
    {},
    {"order": 1},
    {"order": 3},
    {"order": 2, "anti_aliasing": True},
    {"order": 5, "anti_aliasing": True},
    *({"method": method} for method in METHODS),
]


def name_of(way: dict[str, Any]) -> str:
    return " ".join(map(str, way.values())) or "stride"


every_way = pytest.mark.parametrize("way", WAYS, ids=name_of)
# Of each kernel one.
each_kernel = pytest.mark.parametrize("way", [WAYS[0], WAYS[3], {"method": "mean"}], ids=name_of)


def whole(image: NDArray[Any], factors: Sequence[int], **way: Any) -> NDArray[Any]:
    """The result from the whole image at once."""
    asked = {"order": 0, "anti_aliasing": False, "method": None, **way}
    if not asked["order"] and asked["method"] is None:
        return image[tuple(slice(None, None, f) for f in factors)]
    kernel = make_resampling(tuple(factors), **asked)
    region = tuple(slice(0, -(-n // f)) for n, f in zip(image.shape, factors, strict=True))
    return kernel(image[kernel.source(region, image.shape)], region, image.shape)


def spline(image: NDArray[Any], factors: Sequence[int], order: int, anti_aliasing: bool) -> NDArray[np.float64]:
    work = np.asarray(image, np.float64)
    if anti_aliasing:
        work = ndimage.gaussian_filter(work, [(f - 1) / 2 for f in factors], mode="mirror")
    centres = [(np.arange(-(-n // f)) + 0.5) * f - 0.5 for n, f in zip(image.shape, factors, strict=True)]
    sampled: NDArray[np.float64] = ndimage.map_coordinates(
        work, np.meshgrid(*centres, indexing="ij"), order=order, mode="mirror"
    )
    return sampled


def assert_same(made: NDArray[Any], expected: NDArray[Any], *, exactly: bool = False) -> None:
    """Assert equality: of floats but for the last digits, where sums are of different order."""
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    if exactly or made.dtype.kind != "f":
        np.testing.assert_array_equal(made, expected)
    else:
        top = float(np.abs(expected).max(initial=1))
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5 * top if top < 1e30 else 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def image() -> NDArray[np.uint16]:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((23, 41, 37)), 1)
    return (smooth * 60000).astype(np.uint16)


@pytest.fixture
def smaller(image: NDArray[Any]) -> NDArray[Any]:
    return image[::2, ::3, ::2]


# Factors, shape and dtype


@pytest.mark.parametrize("factor", [2.0, 1.5, True, 0, -1, "2", None, (2,), (2, 2), (2, 2, 2, 2), (2, 2, 1.5), ()])
def test_what_is_no_factor_is_an_error_before_anything_is_done(factor: Any, image: NDArray[Any], folder: Path) -> None:
    with nothing_computed(), pytest.raises(GeometryError, match=r"scale_factor"):
        downsample(image, factor, write_to=folder / "out.zarr")
    assert list(folder.iterdir()) == []


@synchronous
@every_way
@pytest.mark.parametrize("factors", [2, (1, 1, 1), (23, 41, 37), (3, 50, 2), (1, 2, 5), (24, 1, 1000)])
def test_an_axis_of_n_voxels_gets_the_nth_part_rounded_up(
    factors: Any, way: dict[str, Any], image: NDArray[Any]
) -> None:
    each = (factors,) * 3 if isinstance(factors, int) else factors
    lazy = downsample(image, factors, tile_shape=(7, 8, 9), **way)
    assert lazy.shape == tuple(-(-n // f) for n, f in zip(image.shape, each, strict=True))
    assert lazy.dtype == image.dtype
    made = lazy.compute()
    assert made.shape == lazy.shape
    assert_same(made, whole(image, each, **way))


@synchronous
@every_way
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0, 3), (1,), (1, 1, 1, 1), (2, 1, 1, 1, 3)])
def test_images_without_or_with_single_voxels(way: dict[str, Any], shape: tuple[int, ...]) -> None:
    image = np.ones(shape, np.int16)
    expected = np.ones([-(-n // 2) for n in shape], np.int16)
    np.testing.assert_array_equal(downsample(image, 2, compute=True, **way), expected, strict=True)


@synchronous
@each_kernel
@pytest.mark.parametrize("shape", [(0,), (5, 0, 3), (1, 1)])
def test_results_without_or_with_single_voxels_are_stored(
    way: dict[str, Any], shape: tuple[int, ...], folder: Path
) -> None:
    stored = downsample(np.ones(shape, np.int16), 2, write_to=folder / "out.zarr", **way)
    np.testing.assert_array_equal(stored.compute(), np.ones([-(-n // 2) for n in shape], np.int16), strict=True)


def test_a_result_without_axes_is_its_image_or_an_error() -> None:
    try:
        made = downsample(np.array(3), 2, compute=True)
    except GeometryError as error:
        assert "no axes" in str(error)  # noqa: PT017
    else:
        assert made.shape == ()
        assert made == 3


# Every f-th voxel


@given(st.data(), st.integers(200, 1199), st.integers(2, 8))
def test_order_0_is_a_stride_on_long_axes(data: st.DataObject, n: int, f: int) -> None:
    image = np.arange(n, dtype=data.draw(st.sampled_from(["uint16", "int64", "float32"])))
    made = downsample(image, f, tile_shape=(32,)).compute(scheduler="synchronous")
    np.testing.assert_array_equal(made, image[::f], strict=True)


@given(st.data(), st.integers(200, 1199), st.integers(200, 1199), st.integers(2, 8), st.integers(2, 8))
@settings(max_examples=15)
def test_order_0_is_a_stride_on_two_long_axes(data: st.DataObject, n: int, m: int, f: int, g: int) -> None:
    image = np.arange(n * m, dtype=np.uint32).reshape(n, m)
    made = downsample(image, (f, g), tile_shape=(32, 32)).compute(scheduler="synchronous")
    np.testing.assert_array_equal(made, image[::f, ::g], strict=True)


@given(st.data(), shapes())
def test_order_0_makes_no_value_that_was_not_there(data: st.DataObject, shape: tuple[int, ...]) -> None:
    image = data.draw(images(shape))
    factors = data.draw(st.tuples(*[st.integers(1, 6)] * len(shape)))
    made = downsample(image, factors, tile_shape=data.draw(tile_shapes(shape))).compute(scheduler="synchronous")
    np.testing.assert_array_equal(made, image[tuple(slice(None, None, f) for f in factors)], strict=True)


# Splines


@given(
    st.data(), st.integers(200, 1199), st.integers(2, 8), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_splines_are_those_of_scipy_on_long_axes(
    data: st.DataObject, n: int, f: int, order: int, anti_aliasing: bool, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=n)
    tile = data.draw(st.sampled_from([32, 7, 33, 61]))
    made = downsample(image, f, order=order, anti_aliasing=anti_aliasing, tile_shape=(tile,))
    exact = spline(image, (f,), order, anti_aliasing)
    assert np.abs(made.compute(scheduler="synchronous") - exact).max() <= 1e-5 * np.abs(exact).max()


@given(
    st.integers(200, 500), st.integers(1, 300), st.integers(2, 8), st.integers(1, 8), st.integers(1, 5), st.booleans()
)
@settings(max_examples=20)
def test_splines_are_those_of_scipy_on_two_axes(
    n: int, m: int, f: int, g: int, order: int, anti_aliasing: bool
) -> None:
    image = np.random.default_rng(n).normal(size=(n, m)).astype(np.float32)
    made = downsample(image, (f, g), order=order, anti_aliasing=anti_aliasing, tile_shape=(32, 32))
    exact = spline(image, (f, g), order, anti_aliasing)
    assert np.abs(made.compute(scheduler="synchronous") - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.slow
@given(
    st.integers(200, 1199),
    st.integers(200, 1199),
    st.integers(2, 8),
    st.integers(2, 8),
    st.integers(1, 5),
    st.booleans(),
)
@settings(max_examples=40)
def test_splines_are_those_of_scipy_on_two_long_axes(
    n: int, m: int, f: int, g: int, order: int, anti_aliasing: bool
) -> None:
    image = np.random.default_rng(n).normal(size=(n, m))
    made = downsample(image, (f, g), order=order, anti_aliasing=anti_aliasing, tile_shape=(32, 32))
    exact = spline(image, (f, g), order, anti_aliasing)
    assert np.abs(made.compute(scheduler="synchronous") - exact).max() <= 1e-5 * np.abs(exact).max()


@synchronous
@pytest.mark.parametrize("anti_aliasing", [False, True])
@pytest.mark.parametrize("order", range(1, 6))
def test_splines_leave_time_and_channels_to_themselves(order: int, anti_aliasing: bool) -> None:
    image = np.random.default_rng(order).normal(size=(2, 3, 9, 30, 25))
    made = downsample(image, (1, 1, 2, 3, 2), order=order, anti_aliasing=anti_aliasing, tile_shape=(1, 2, 3, 4, 5))
    for t in range(2):
        for c in range(3):
            np.testing.assert_allclose(
                made[t, c].compute(), spline(image[t, c], (2, 3, 2), order, anti_aliasing), rtol=1e-8, atol=1e-8
            )


@synchronous
@pytest.mark.parametrize("anti_aliasing", [False, True])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_counts_for_order_1(odd: float, anti_aliasing: bool) -> None:
    image = np.random.default_rng(6).normal(size=(70, 60))
    image[20:23, 30:33] = image[68:, 57:] = odd
    for factors in ((2, 2), (3, 2), (5, 4)):
        made = downsample(image, factors, order=1, anti_aliasing=anti_aliasing, tile_shape=(4, 7), compute=True)
        exact = spline(image, factors, 1, anti_aliasing)
        assert not np.isfinite(exact).all()
        np.testing.assert_array_equal(np.isfinite(made), np.isfinite(exact))
        np.testing.assert_allclose(made, exact, rtol=1e-9, atol=1e-9)


@synchronous
@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e20])
@pytest.mark.parametrize("order", range(1, 6))
def test_channels_do_not_touch_each_other(order: int, odd: float) -> None:
    image = np.random.default_rng(order).normal(size=(3, 20, 30))
    expected = spline(image[0], (2, 3), order, True), spline(image[2], (2, 3), order, True)
    image[1] = odd
    for tiles in ((1, 4, 5), (3, 100, 100)):
        made = downsample(image, (1, 2, 3), order=order, anti_aliasing=True, tile_shape=tiles, compute=True)
        np.testing.assert_allclose(made[0], expected[0], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(made[2], expected[1], rtol=1e-8, atol=1e-8)


@synchronous
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int32"])
@pytest.mark.parametrize("order", range(1, 6))
def test_integers_at_ties_are_the_same_whatever_the_tiles(order: int, dtype: str) -> None:
    rows = np.repeat(np.arange(60), 5)
    image = ((rows[:, None] + rows[None, :60] * 3) % 120).astype(dtype)
    for f, anti_aliasing in ((2, False), (4, True)):
        one = downsample(image, f, order=order, anti_aliasing=anti_aliasing, compute=True)
        for tiles in ((17, 8), (32, 32)):
            made = downsample(image, f, order=order, anti_aliasing=anti_aliasing, tile_shape=tiles, compute=True)
            np.testing.assert_array_equal(made, one, strict=True)


@synchronous
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@every_way
def test_floats_of_any_width(dtype: str, way: dict[str, Any], image: NDArray[Any]) -> None:
    floats = (image / 60000).astype(dtype)
    made = downsample(floats, (2, 3, 2), tile_shape=(5, 6, 7), compute=True, **way)
    expected = whole(floats, (2, 3, 2), **way)
    assert made.dtype == expected.dtype == dtype
    np.testing.assert_allclose(made, expected, rtol=2 * float(np.finfo(dtype).eps), atol=1e-9)


# Methods


@given(st.data(), shapes(max_ndim=4), st.sampled_from(METHODS))
@settings(max_examples=150)
def test_methods_do_not_depend_on_tiles_or_chunks(data: st.DataObject, shape: tuple[int, ...], method: Any) -> None:
    values = data.draw(images(shape))
    factors = data.draw(st.tuples(*[st.integers(1, 5)] * len(shape)))
    source = da.from_array(values, chunks=data.draw(chunkings(shape)))
    tiles = data.draw(tile_shapes(shape))
    made = downsample(source, factors, method=method, tile_shape=tiles).compute(scheduler="synchronous")
    np.testing.assert_array_equal(made, whole(values, factors, method=method), strict=True)


@synchronous
def test_an_object_of_one_voxel_is_kept_by_mode_nonzero_only() -> None:
    labels = np.zeros((20, 21, 22), np.int32)
    labels[5, 7, 9] = 41
    labels[19, 20, 21] = 7
    kept = {
        name: np.unique(downsample(labels, 2, tile_shape=(3, 4, 5), compute=True, **way)).tolist()
        for name, way in (("stride", {}), ("mode", {"method": "mode"}), ("nonzero", {"method": "mode-nonzero"}))
    }
    # The last cell of odd axes has one voxel of them only.
    assert kept == {"stride": [0], "mode": [0], "nonzero": [0, 7, 41]}


# Sources and results

Source = Callable[[NDArray[Any], Path], Any]


def _stored(image: NDArray[Any], folder: Path, **options: Any) -> zarr.Array[Any]:
    made = zarr.create_array(folder / "in.zarr", shape=image.shape, dtype=image.dtype, **options)
    made[...] = image
    return made


def _path(image: NDArray[Any], folder: Path) -> Path:
    _stored(image, folder, chunks=(9, 10, 8))
    return folder / "in.zarr"


def _tiff(image: NDArray[Any], folder: Path) -> Path:
    tifffile.imwrite(folder / "in.tif", image, tile=(16, 16))
    return folder / "in.tif"


SOURCES: dict[str, Source] = {
    "numpy": lambda image, folder: image,
    "fortran": lambda image, folder: np.asfortranarray(image),
    "swapped": lambda image, folder: image.astype(image.dtype.newbyteorder()),
    "nested lists": lambda image, folder: image.tolist(),
    "dask": lambda image, folder: da.from_array(image, chunks=((5, 11, 7), (40, 1), (13, 24))),
    "dask of zarr": lambda image, folder: da.from_zarr(_stored(image, folder, chunks=(5, 7, 11))),
    "zarr": lambda image, folder: _stored(image, folder, chunks=(5, 7, 11)),
    "one chunk": lambda image, folder: _stored(image, folder, chunks=(64, 64, 64)),
    "sharded": lambda image, folder: _stored(image, folder, chunks=(4, 4, 4), shards=(8, 16, 12)),
    "zarr 2": lambda image, folder: _stored(image, folder, chunks=(5, 7, 11), zarr_format=2, order="F"),
    "big-endian zarr": lambda image, folder: _stored(image.astype(">u2"), folder, chunks=(5, 7, 11), zarr_format=2),
    "path": _path,
    "string": lambda image, folder: str(_path(image, folder)),
    "tiff": _tiff,
}


@each_kernel
@pytest.mark.parametrize("kind", SOURCES)
@synchronous
def test_any_source_gives_the_same(kind: str, way: dict[str, Any], image: NDArray[Any], folder: Path) -> None:
    source = SOURCES[kind](image, folder)
    expected = whole(image, (2, 3, 2), **way)
    with nothing_computed():
        lazy = downsample(source, (2, 3, 2), tile_shape=(7, 8, 11), **way)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), expected)
    now = downsample(source, (2, 3, 2), compute=True, **way)
    assert isinstance(now, np.ndarray)
    np.testing.assert_array_equal(now, expected)
    stored = downsample(
        source, (2, 3, 2), tile_shape=(7, 8, 11), chunks=(7, 8, 11), write_to=folder / "out.zarr", **way
    )
    assert isinstance(stored, da.Array)
    array = zarr.open_array(folder / "out.zarr", mode="r")
    assert array.shape == expected.shape
    np.testing.assert_array_equal(array[...], expected)
    np.testing.assert_array_equal(stored.compute(), expected)
    assert leftovers(folder) == []


@synchronous
@every_way
def test_the_image_is_neither_changed_nor_shared(way: dict[str, Any], image: NDArray[Any]) -> None:
    before = image.copy()
    image.flags.writeable = False
    for factors in (2, 1):
        made = downsample(image, factors, compute=True, **way)
        assert not np.shares_memory(made, image)
        made[...] = 0
    np.testing.assert_array_equal(image, before)


def test_every_scheduler_gives_the_same_bytes(scheduler: str, image: NDArray[Any], folder: Path) -> None:
    source = _stored(image, folder, chunks=(5, 7, 11))
    ways: list[dict[str, Any]] = [{}, {"order": 3, "anti_aliasing": True}, {"method": "mean"}, {"method": "mode"}]
    results = da.compute(*(downsample(source, (2, 3, 2), tile_shape=(6, 8, 10), **way) for way in ways))
    for way, made in zip(ways, results, strict=True):
        np.testing.assert_array_equal(made, whole(image, (2, 3, 2), **way), strict=True)
    out = folder / "out.zarr"
    downsample(source, (2, 3, 2), tile_shape=(12, 8, 10), chunks=(6, 4, 5), write_to=out, **ways[1])
    np.testing.assert_array_equal(zarr.open_array(out)[...], whole(image, (2, 3, 2), **ways[1]), strict=True)
    assert leftovers(folder) == []


@synchronous
def test_files_are_the_same_on_every_run_and_for_any_tiles(image: NDArray[Any], folder: Path) -> None:
    source = _stored(image, folder, chunks=(5, 7, 11))
    chunks = {}
    for name, tiles in (("a", (6, 8, 10)), ("b", (12, 4, 5)), ("c", None)):
        downsample(source, (2, 3, 2), order=3, tile_shape=tiles, chunks=(6, 4, 5), write_to=folder / f"{name}.zarr")
        files = digest(folder / f"{name}.zarr")
        chunks[name] = {path.partition("/")[2]: file for path, file in files.items() if "/c/" in path}
    assert len(chunks["a"]) == 2 * 4 * 4
    assert chunks["a"] == chunks["b"] == chunks["c"]


@synchronous
def test_a_result_is_stored_as_its_source_is(image: NDArray[Any], folder: Path) -> None:
    source = _stored(image, folder, chunks=(4, 5, 6), shards=(8, 10, 12), compressors=[zarr.codecs.GzipCodec(level=3)])
    downsample(source, 2, write_to=folder / "out.zarr")
    made = zarr.open_array(folder / "out.zarr", mode="r")
    assert made.chunks == (4, 5, 6)
    assert made.shards == (8, 10, 12)
    assert made.compressors == source.compressors
    np.testing.assert_array_equal(made[...], image[::2, ::2, ::2])
    downsample(source, 2, write_to=folder / "other.zarr", chunks=5, shards=None, compression="zstd", zarr_format=2)
    other = zarr.open_array(folder / "other.zarr", mode="r")
    assert (other.chunks, other.shards, other.metadata.zarr_format) == ((5, 5, 5), None, 2)
    np.testing.assert_array_equal(other[...], image[::2, ::2, ::2])


@synchronous
def test_an_output_that_is_there_is_overwritten_only_when_asked(image: NDArray[Any], folder: Path) -> None:
    out = folder / "out.zarr"
    downsample(image, 3, write_to=out)
    before = digest(out)
    with pytest.raises(OutputExistsError):
        downsample(image, 2, write_to=out)
    assert digest(out) == before
    made = downsample(image, 2, write_to=out, overwrite=True)
    np.testing.assert_array_equal(made.compute(), image[::2, ::2, ::2])


@synchronous
def test_an_image_is_never_overwritten_by_itself(image: NDArray[Any], folder: Path) -> None:
    source = _stored(image, folder, chunks=(5, 7, 11))
    before = digest(folder / "in.zarr")
    with pytest.raises(OutputError):
        downsample(source, 2, write_to=folder / "in.zarr", overwrite=True)
    assert digest(folder / "in.zarr") == before


@synchronous
def test_a_result_may_lie_beside_its_image(image: NDArray[Any], folder: Path) -> None:
    zarr.create_group(folder / "s.zarr").create_array("0", data=image, chunks=(5, 7, 11))
    before = digest(folder / "s.zarr" / "0")
    downsample(folder / "s.zarr" / "0", 2, write_to=folder / "s.zarr", output_component="1")
    downsample(folder / "s.zarr" / "1", 2, method="max", write_to=folder / "s.zarr", output_component="2")
    group = zarr.open_group(folder / "s.zarr", mode="r")
    np.testing.assert_array_equal(group["1"][...], image[::2, ::2, ::2])  # type: ignore[index]
    np.testing.assert_array_equal(group["2"][...], whole(image[::2, ::2, ::2], (2, 2, 2), method="max"))  # type: ignore[index]
    assert digest(folder / "s.zarr" / "0") == before


@synchronous
def test_parts_of_a_lazy_result_can_be_computed_alone(image: NDArray[Any]) -> None:
    lazy = downsample(image, (2, 3, 2), order=3, tile_shape=(5, 4, 7))
    expected = whole(image, (2, 3, 2), order=3)
    np.testing.assert_array_equal(lazy[4:9, 3, ::2].compute(), expected[4:9, 3, ::2])
    np.testing.assert_array_equal((lazy + 1).compute(), expected + 1)


@synchronous
@pytest.mark.parametrize("tiles", [None, "auto", (5, 4, 7), (100, 100, 100), lambda shape, dtype: (3, *shape[1:])])
def test_tiles_are_of_the_result(tiles: Any, image: NDArray[Any], smaller: NDArray[Any]) -> None:
    lazy = downsample(image, (2, 3, 2), tile_shape=tiles)
    if isinstance(tiles, tuple):
        assert lazy.chunksize == tuple(map(min, tiles, smaller.shape))
    elif callable(tiles):
        assert lazy.chunksize == (3, *smaller.shape[1:])
    np.testing.assert_array_equal(lazy.compute(), smaller)


@pytest.mark.parametrize("tiles", ["large", (5, 4), (0, 1, 1), (1.5, 2, 2)])
def test_what_is_no_tile_shape_is_an_error(tiles: Any, image: NDArray[Any]) -> None:
    with pytest.raises((GeometryError, ParameterError), match="tile_shape"):
        downsample(image, 2, tile_shape=tiles)


# Named axes, channels, levels


@synchronous
@pytest.mark.parametrize(
    ("names", "factors"),
    [("czyx", (1, 2, 2, 2)), ("tzyx", (1, 2, 2, 2)), ("tcyx", (1, 1, 2, 2)), ("zyxc", (2, 2, 2, 1))],
)
def test_one_factor_leaves_named_time_and_channels_alone(names: str, factors: tuple[int, ...], folder: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (3, 8, 9, 10), np.uint8)
    source = _stored(image, folder, chunks=(1, 4, 4, 4), dimension_names=list(names))
    for given_as in (source, folder / "in.zarr"):
        assert_same(downsample(given_as, 2, compute=True), whole(image, factors))
        assert_same(downsample(given_as, 2, method="mean", compute=True), whole(image, factors, method="mean"))
        assert_same(downsample(given_as, (2, 2, 2, 2), compute=True), image[::2, ::2, ::2, ::2])
    downsample(source, 2, write_to=folder / "out.zarr")
    assert zarr.open_array(folder / "out.zarr").metadata.dimension_names == tuple(names)  # type: ignore[union-attr]


@synchronous
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_channel_and_a_level_of_an_ome_zarr_image(version: Any, folder: Path) -> None:
    rng = np.random.default_rng(2)
    levels = [rng.integers(0, 9, (2, n, n, n), np.uint8) for n in (16, 8)]
    path = write_ome_zarr(folder / "i.zarr", levels, "czyx", version=version, channels=["dna", "actin"])
    assert_same(downsample(path, 2, compute=True), levels[0][:, ::2, ::2, ::2])
    assert_same(downsample(path, 2, level=1, compute=True), levels[1][:, ::2, ::2, ::2])
    assert_same(downsample(path, 3, channel="actin", compute=True), levels[0][1, ::3, ::3, ::3])
    assert_same(downsample(path, (1, 2, 2), channel=0, level=1, compute=True), levels[1][0, :, ::2, ::2])


# Masks and tiles that are chosen


@pytest.fixture
def mask(smaller: NDArray[Any]) -> NDArray[np.bool_]:
    made = np.zeros(smaller.shape, bool)
    made[2:7, 5:12, 3:] = True
    return made


@synchronous
@each_kernel
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_what_is_outside_of_the_mask_is_0(
    kind: str, way: dict[str, Any], image: NDArray[Any], mask: NDArray[Any], folder: Path
) -> None:
    source = SOURCES[kind](image, folder)
    expected = np.where(mask, whole(image, (2, 3, 2), **way), 0)
    inside = {
        "numpy": mask,
        "dask": da.from_array(mask.astype(np.uint8) * 7, chunks=(4, 5, 6)),
        "zarr": folder / "mask.zarr",
    }[kind]
    zarr.save_array(folder / "mask.zarr", mask)
    options: dict[str, Any] = {"mask": inside, "tile_shape": (4, 4, 8), **way}
    np.testing.assert_array_equal(downsample(source, (2, 3, 2), compute=True, **options), expected)
    downsample(source, (2, 3, 2), write_to=folder / "out.zarr", chunks=(4, 4, 8), **options)
    np.testing.assert_array_equal(zarr.open_array(folder / "out.zarr")[...], expected)


@synchronous
@each_kernel
def test_what_is_outside_of_the_mask_stays_in_an_output_that_is_there(
    way: dict[str, Any], image: NDArray[Any], mask: NDArray[Any], folder: Path
) -> None:
    out = folder / "out.zarr"
    first = downsample(image, (2, 3, 2), write_to=out, chunks=(4, 4, 8)).compute()
    other = (image[::-1] // 2).astype(image.dtype)
    with pytest.raises(OutputExistsError):
        downsample(other, (2, 3, 2), mask=mask, write_to=out, **way)
    downsample(other, (2, 3, 2), mask=mask, write_to=out, overwrite=True, **way)
    expected = np.where(mask, whole(other, (2, 3, 2), **way), first)
    np.testing.assert_array_equal(zarr.open_array(out)[...], expected)
    assert leftovers(folder) == []


@pytest.mark.parametrize("shape", [(23, 41, 37), (12, 14), (12, 14, 18), (1, 12, 14, 19)])
def test_a_mask_is_of_the_shape_of_the_result(shape: tuple[int, ...], image: NDArray[Any], folder: Path) -> None:
    with nothing_computed(), pytest.raises(GeometryError, match=r"mask has shape .*result \(12, 14, 19\)"):
        downsample(image, (2, 3, 2), mask=np.ones(shape, bool), write_to=folder / "out.zarr")
    assert list(folder.iterdir()) == []


@synchronous
@each_kernel
def test_only_tiles_that_are_chosen_are_made(way: dict[str, Any], image: NDArray[Any], folder: Path) -> None:
    expected = whole(image, (2, 3, 2), **way)
    chosen = np.zeros(expected.shape, bool)
    # Of tiles in a grid of (2, 2, 3): the last of the first row, and the first of the last.
    chosen[:8, :8, 16:] = chosen[8:, 8:, :8] = True
    options: dict[str, Any] = {"tile_shape": (8, 8, 8), "block_ids": [2, 9], **way}
    made = downsample(image, (2, 3, 2), compute=True, **options)
    np.testing.assert_array_equal(made, np.where(chosen, expected, 0))
    out = folder / "out.zarr"
    downsample(image, (2, 3, 2), write_to=out, **options)
    np.testing.assert_array_equal(zarr.open_array(out)[...], np.where(chosen, expected, 0))
    rest = [n for n in range(12) if n not in (2, 9)]
    downsample(image, (2, 3, 2), write_to=out, overwrite=True, **{**options, "block_ids": rest})
    np.testing.assert_array_equal(zarr.open_array(out)[...], expected)


@pytest.mark.parametrize("block_ids", [[12], [-1], [0.5]])
def test_unknown_tiles_are_an_error(block_ids: Any, image: NDArray[Any]) -> None:
    with pytest.raises(GeometryError, match="block_ids"):
        downsample(image, (2, 3, 2), tile_shape=(8, 8, 8), block_ids=block_ids)


# What is asked for


@pytest.mark.parametrize("order", [6, -1, True, 1.5, "1", None])
def test_an_unknown_order_is_an_error(order: Any, image: NDArray[Any]) -> None:
    with nothing_computed(), pytest.raises(ParameterError, match=rf"order {order!r} is not an int from 0 to 5"):
        downsample(image, 2, order=order)


@pytest.mark.parametrize("method", ["average", "MEAN", 0, ["mean"]])
def test_an_unknown_method_is_an_error(method: Any, image: NDArray[Any]) -> None:
    with nothing_computed(), pytest.raises(ParameterError, match=r"method .*unknown.*'mean'.*'mode-nonzero'.*'min'"):
        downsample(image, 2, method=method)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"anti_aliasing": True}, r"anti_aliasing=True.*order of 1 to 5"),
        ({"anti_aliasing": True, "method": "mean"}, r"method 'mean'.*anti_aliasing True"),
        ({"order": 1, "method": "max"}, r"method 'max'.*order 1"),
        ({"order": 1, "anti_aliasing": 1}, r"anti_aliasing 1 is neither True nor False"),
        ({"order": 1, "anti_aliasing": None}, r"anti_aliasing None is neither True nor False"),
    ],
)
def test_options_that_do_not_go_together_are_errors(way: Any, message: str, image: NDArray[Any]) -> None:
    with nothing_computed(), pytest.raises(ParameterError, match=message):
        downsample(image, 2, **way)


@synchronous
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_have_a_stride_and_a_mean_only(dtype: str) -> None:
    image = np.random.default_rng(3).normal(size=(10, 11, 2)).view(complex)[..., 0].astype(dtype)
    assert_same(downsample(image, 2, tile_shape=(3, 2), compute=True), image[::2, ::2])
    made = downsample(image, (2, 11), method="mean", tile_shape=(3, 2), compute=True)
    assert made.dtype == dtype
    np.testing.assert_allclose(made, image.reshape(5, 2, 1, 11).mean(axis=(1, 3)), rtol=1e-5)
    for way in ({"order": 1}, {"order": 3, "anti_aliasing": True}, *({"method": m} for m in METHODS if m != "mean")):
        with pytest.raises(ParameterError, match=rf"not defined for complex numbers.*{dtype}"):
            downsample(image, 2, **way)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ns]"])
@pytest.mark.parametrize("way", [{}, {"method": "max"}, {"order": 1}])
def test_what_is_no_number_is_refused(dtype: str, way: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="none of numbers"):
        downsample(np.zeros((4, 4), dtype), 2, **way)


# Memory


def limit_parts(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let tasks work on parts of so many bytes, however much of what one reads others read as well."""
    monkeypatch.setattr(tilewise, "PART", size)
    monkeypatch.setattr(tilewise, "OVERLAPPING_PART", size)
    monkeypatch.setattr(tilewise, "_AGAIN", float("inf"))


@synchronous
@every_way
@pytest.mark.parametrize(("part", "dtype"), [(2000, "float32"), (5000, "uint8")])
def test_a_tile_made_in_parts_is_the_same(
    dtype: str, part: int, way: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(4).integers(0, 250, (603, 31)).astype(dtype)
    # Chunks that divide neither the factors nor the tiles.
    source = _stored(values, folder, chunks=(47, 11))
    expected = whole(values, (3, 4), **way)
    # Around each voxel splines read some dozen more.
    limit_parts(monkeypatch, part * 40 if "order" in way else part)
    assert_same(downsample(source, (3, 4), tile_shape=(300, 40), compute=True, **way), expected)
    downsample(source, (3, 4), tile_shape=(106, 10), chunks=(53, 5), write_to=folder / "out.zarr", **way)
    assert_same(zarr.open_array(folder / "out.zarr")[...], expected)


@synchronous
@every_way
def test_a_tile_made_voxel_by_voxel_is_the_same(
    way: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(5).integers(0, 250, (25, 31), np.uint8)
    source = _stored(values, folder, chunks=(7, 11))
    limit_parts(monkeypatch, 1)
    assert_same(downsample(source, (4, 5), tile_shape=(40, 40), compute=True, **way), whole(values, (4, 5), **way))


@each_kernel
def test_parts_of_tiles_on_threads_do_not_meet(
    way: dict[str, Any], image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    source = _stored(image, folder, chunks=(5, 7, 11))
    limit_parts(monkeypatch, 200_000 if "order" in way else 1000)
    with dask.config.set(scheduler="threads", num_workers=4):
        downsample(source, (1, 2, 3), tile_shape=(6, 7, 5), chunks=(6, 7, 5), write_to=folder / "out.zarr", **way)
    assert_same(zarr.open_array(folder / "out.zarr")[...], whole(image, (1, 2, 3), **way))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_parts_read_little_more_than_the_tile_needs(way: dict[str, Any], factor: int, folder: Path) -> None:
    array = zarr.create_array(folder / "large.zarr", shape=(2048,) * 3, chunks=(64,) * 3, dtype="uint16")
    source = open_source(array)
    assert isinstance(source, StoredImage)
    kernel = make_resampling((factor,) * 3, **{"order": 0, "anti_aliasing": False, "method": None, **way})
    region = (slice(64, 128),) * 3

    def voxels(part: Region) -> int:
        return math.prod(region_shape(kernel.source(part, source.shape)))

    parts = list(tilewise._parts(region, kernel, source))
    assert sum(math.prod(region_shape(part)) for part in parts) == 64**3
    assert sum(map(voxels, parts)) <= 4 * voxels(region)
