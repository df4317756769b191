"""`global_percentiles`: what NumPy finds in the whole image, to the last bit."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from blockbuster import GeometryError, ImageError, ParameterError, TileError
from blockbuster.graph import Pass, ReducingGraph
from blockbuster.grid import Region, Tile, TileGrid
from blockbuster.percentiles import _Counts, _Digit, _joined, _Keys, global_percentiles
from blockbuster.sources import StoredImage
from tests.helpers import nothing_computed, write_ome_zarr
from tests.strategies import FLOATS, INTEGERS, chunkings, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")

SHAPE = (13, 20, 31)
Q = [0, 0.1, 1, 33.3, 50, 99, 99.9, 100]


def noise(dtype: str, seed: int = 0, shape: Sequence[int] = SHAPE) -> NDArray[Any]:
    """Values from all over a dtype."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.3
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, kind, endpoint=True)
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(kind)


def percentiles_of(values: NDArray[Any], q: Any) -> Any:
    """What NumPy finds, also among infinite numbers."""
    with np.errstate(all="ignore"), warnings.catch_warnings(category=RuntimeWarning, action="ignore"):
        return np.nanpercentile(values.astype(np.float64), q)


def assert_same(made: Any, expected: Any) -> None:
    """Equal to the last bit, but for the sign of zero; of the same shape and type."""
    assert type(made) is type(expected)
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, expected, strict=True)


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


# The same numbers


@synchronous
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("masked", [False, True])
def test_percentiles_are_those_of_numpy(dtype: str, masked: bool) -> None:
    image = noise(dtype)
    options: dict[str, Any] = {"tile_shape": (5, 7, 31)}
    inside = np.ones(SHAPE, np.bool_)
    if masked:
        inside = options["mask"] = np.random.default_rng(1).random(SHAPE) < 0.2
    assert_same(global_percentiles(image, Q, **options), percentiles_of(image[inside], Q))


def test_every_scheduler_finds_the_same(scheduler: str, tmp_path: Path) -> None:
    image = noise("float32")
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(5, 8, 8))
    mask = da.from_array(image > 0, chunks=9)
    assert_same(global_percentiles(tmp_path / "a.zarr", Q, mask=mask), percentiles_of(image[image > 0], Q))


@synchronous
@pytest.mark.parametrize(
    "q", [50, 12.5, np.float64(99.9), [50], [[1, 2, 3], [99, 50, 50]], np.array(3), [], np.empty((0, 2))]
)
def test_the_result_has_the_shape_of_q(q: Any) -> None:
    image = noise("uint16")
    expected = percentiles_of(image, q) if np.size(q) else np.empty(np.shape(q))
    assert_same(global_percentiles(image, q, tile_shape=SHAPE), expected)


EXTREMES = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0])


@st.composite
def extreme_values(draw: st.DrawFn) -> NDArray[Any]:
    dtype = np.dtype(draw(st.sampled_from(INTEGERS + FLOATS)))
    if dtype.kind == "f":
        info = np.finfo(dtype)
        limits = [info.max, info.min, info.tiny, info.smallest_subnormal, -info.smallest_subnormal]
        elements = EXTREMES | st.sampled_from([float(x) for x in limits]) | arrays.from_dtype(dtype)
    elif dtype.kind == "b":
        elements = st.booleans()
    else:
        elements = st.sampled_from([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1]) | arrays.from_dtype(dtype)
    size = draw(st.integers(1, 24))
    return np.array(draw(st.lists(elements, min_size=size, max_size=size)), dtype)


def of_kind(kind: str, values: NDArray[Any], data: st.DataObject) -> Any:
    if kind == "zarr":
        return zarr.create_array(MemoryStore(), data=values, chunks=data.draw(tile_shapes(values.shape)))
    if kind == "dask":
        return da.from_array(values, chunks=data.draw(chunkings(values.shape)), name=False).map_blocks(np.copy)
    return values


@synchronous
@given(data=st.data())
def test_extreme_values_are_met_as_numpy_meets_them(data: st.DataObject) -> None:
    values = data.draw(extreme_values())
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=values.size, max_size=values.size)))
    q = data.draw(st.lists(st.sampled_from([0, 100, 50]) | st.floats(0, 100), min_size=1, max_size=4))
    kinds = st.sampled_from(["numpy", "zarr", "dask"])
    image = of_kind(data.draw(kinds), values, data)
    options: dict[str, Any] = {"tile_shape": data.draw(st.none() | tile_shapes(values.shape))}
    counted = values
    if data.draw(st.booleans(), "masked"):
        options["mask"] = of_kind(data.draw(kinds), mask, data)
        counted = values[mask]
    if np.isnan(counted.astype(np.float64)).all():
        with pytest.raises(ImageError, match="None of the voxels"):
            global_percentiles(image, q, **options)
        return
    assert_same(global_percentiles(image, q, **options), percentiles_of(counted, q))


@synchronous
def test_integers_of_64_bits_are_rounded_to_floats() -> None:
    image = np.array([2**53 + 1, 2**53 + 3, 2**63 - 1, -(2**63)], np.int64)
    assert_same(global_percentiles(image, [0, 25, 40, 66, 100]), percentiles_of(image, [0, 25, 40, 66, 100]))


@synchronous
@pytest.mark.parametrize("values", [[-0.0, -0.0], [0.0, -0.0, -1.0], [-5e-324, 5e-324]])
@pytest.mark.parametrize("exact", [True, False])
def test_zero_is_positive(values: list[float], exact: bool) -> None:
    made = global_percentiles(np.array(values), [50, 100], exact=exact)
    assert not np.signbit(made[made == 0]).any()


@synchronous
@pytest.mark.parametrize("order", [">", "<"])
def test_byte_order_is_of_no_account(order: str) -> None:
    image = noise("float64").astype(f"{order}f8")
    stored = zarr.create_array(MemoryStore(), data=image, chunks=(5, 8, 8))
    for source in (image, stored, np.asfortranarray(image), image[::-1, ::2]):
        expected = percentiles_of(np.asarray(source), Q)
        assert_same(global_percentiles(source, Q), expected)
        np.testing.assert_allclose(global_percentiles(source, Q, exact=False), expected, rtol=2**-20)


@synchronous
def test_many_percentages_are_found_at_once(regions: list[Region]) -> None:
    """More than are counted in an array: here by sorting."""
    image = noise("float32")
    q = np.linspace(0, 100, 301)
    stored = zarr.create_array(MemoryStore(), data=image, chunks=(5, 20, 31))
    assert_same(global_percentiles(stored, q), percentiles_of(image, q))
    assert len(regions) == 2 * 3


@synchronous
def test_one_channel_and_level_is_chosen(tmp_path: Path) -> None:
    levels = [noise("uint16", shape=(2, 16, 16)), noise("uint16", 1, shape=(2, 8, 8))]
    path = write_ome_zarr(tmp_path / "i.zarr", levels, "cyx", channels=["DNA", "actin"])
    assert_same(global_percentiles(path, Q), percentiles_of(levels[0][0], Q))
    assert_same(global_percentiles(path, Q, channel="actin", level=1), percentiles_of(levels[1][1], Q))
    assert_same(global_percentiles(path, Q, channel=None), percentiles_of(levels[0], Q))
    mask = tmp_path / "mask.zarr"
    zarr.create_array(mask, data=levels[1][0] > 30000)
    inside = levels[1][0][levels[1][0] > 30000]
    assert_same(global_percentiles(path, Q, level=1, mask=mask), percentiles_of(inside, Q))


# Not exact


@synchronous
@given(values=st.lists(st.floats(-1e300, 1e300, allow_subnormal=False), min_size=1, max_size=9), q=st.floats(0, 100))
def test_two_passes_are_off_by_as_little_as_is_said(values: list[float], q: float) -> None:
    image = np.array(values)
    ordered = np.sort(image)
    place = (len(values) - 1) * (q / 100)
    larger = max(abs(ordered[int(np.floor(place))]), abs(ordered[int(np.ceil(place))]))
    made = global_percentiles(image, q, exact=False)
    assert abs(made - np.percentile(image, q)) <= 2.0**-20 * larger


@synchronous
@pytest.mark.parametrize("dtype", ["uint64", "int64", "float32", "int8"])
def test_other_dtypes_than_long_floats_are_exact_anyway(dtype: str) -> None:
    assert_same(global_percentiles(noise(dtype), Q, exact=False), percentiles_of(noise(dtype), Q))


@synchronous
def test_short_values_are_exact_in_two_passes(regions: list[Region]) -> None:
    """What has 21 significant bits, and what is infinite."""
    image = np.array([-np.inf, -(2.0**20 + 1), -3.5, 0, 0.625, 2.0**21 - 1, 1e308, np.inf])
    stored = zarr.create_array(MemoryStore(), data=image, chunks=(3,))
    # The last but one is longer.
    q = np.array([0, 1, 2, 3, 4, 5, 7]) / 7 * 100
    assert_same(global_percentiles(stored, q, exact=False), percentiles_of(image, q))
    assert len(regions) == 2 * 3


# What is read, and what is passed on


@synchronous
@pytest.mark.parametrize(
    ("dtype", "n_passes"),
    [("bool", 1), ("uint8", 1), ("int16", 1), ("float16", 1), ("float32", 2), ("int32", 2), ("uint64", 4)],
)
def test_each_tile_is_read_once_per_pass(dtype: str, n_passes: int, regions: list[Region]) -> None:
    stored = zarr.create_array(MemoryStore(), data=noise(dtype), chunks=(5, 20, 8))
    global_percentiles(stored, Q)
    grid = TileGrid.regular(SHAPE, (5, 20, 8))
    expected = [tile.core for tile in grid.tiles()] * n_passes
    assert sorted(map(repr, regions)) == sorted(map(repr, expected))


@synchronous
def test_only_two_passes_are_made_that_are_not_exact(regions: list[Region]) -> None:
    stored = zarr.create_array(MemoryStore(), data=noise("float64"), chunks=SHAPE)
    global_percentiles(stored, Q, exact=False)
    assert len(regions) == 2
    global_percentiles(stored, Q)
    assert len(regions) == 2 + 4


@synchronous
def test_nothing_is_read_for_no_percentages() -> None:
    with nothing_computed():
        assert global_percentiles(noise("uint8"), []).shape == (0,)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tasks_pass_on_counts_of_bounded_size(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tiles: as many counts as a digit has values, for each voxel that is looked for."""
    sizes: list[list[int]] = []

    def joined(several: Sequence[_Counts]) -> _Counts:
        made = _joined(several)
        sizes.append([len(one.codes) for one in (*several, made)])
        return made

    monkeypatch.setattr("blockbuster.percentiles._joined", joined)
    image = noise(dtype, shape=(400, 1000))
    with dask.config.set(scheduler="synchronous"):
        assert_same(global_percentiles(image, [1, 99], tile_shape=(10, 100)), percentiles_of(image, [1, 99]))
    # 400 tiles, eight at a time.
    n_joins = 50 + 7 + 1
    assert len(sizes) == n_joins * (2 if dtype == "float32" else 1)
    assert max(len(one) - 1 for one in sizes) == 8
    assert max(max(one) for one in sizes[:n_joins]) <= 65536
    assert max((max(one) for one in sizes[n_joins:]), default=0) <= 4 * 65536
    # Of 400 000 voxels with as many values, only those are passed on that may be the ones looked for.
    assert sum(one[-1] for one in sizes[n_joins : n_joins + 50]) < image.size / 10


@synchronous
@given(data=st.data())
@settings(max_examples=20)
def test_counts_are_added_up(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.lists(st.integers(0, 20), max_size=9), max_size=5))
    several = [_Counts(*np.unique(np.array(part, np.int64), return_counts=True)) for part in parts]
    codes, n = np.unique(np.array([code for part in parts for code in part], np.int64), return_counts=True)
    made = _joined(several)
    np.testing.assert_array_equal(made.codes, codes)
    np.testing.assert_array_equal(made.n, n)


@pytest.mark.parametrize("n_prefixes", [1, 4, 5, 40])
def test_counts_are_the_same_in_an_array_and_by_sorting(n_prefixes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise("int32").ravel()
    keys = _Keys(values.dtype)
    tops = np.unique(keys.of(values) >> np.uint32(16)).astype(np.uint64)
    digit = _Digit(keys, 1, tops[:: len(tops) // n_prefixes][:n_prefixes])
    made = digit.counts(values)
    monkeypatch.setattr("blockbuster.percentiles._DENSE", 0 if n_prefixes <= 4 else 1 << 30)
    monkeypatch.setattr("blockbuster.percentiles._SLAB", 100)
    other = digit.counts(values)
    assert made.n.sum() == np.isin(keys.of(values) >> np.uint32(16), digit.prefixes).sum() >= n_prefixes
    np.testing.assert_array_equal(made.codes, other.codes)
    np.testing.assert_array_equal(made.n, other.n)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_keys_are_in_the_order_of_the_values(dtype: str) -> None:
    values = np.sort(noise(dtype).ravel())
    keys = _Keys(values.dtype)
    made = keys.of(values)
    assert (np.diff(made.astype(np.float64)) >= 0).all()
    assert (made[1:] > made[:-1]).sum() == (values[1:] > values[:-1]).sum()
    np.testing.assert_array_equal(keys.values(made.astype(np.uint64), keys.n_digits), values.astype(np.float64))


def number_of(_offset: int, tile: Tile, *blocks: NDArray[Any]) -> list[int]:
    return [tile.block_id, *(int(block.sum()) for block in blocks)]


def put_together(several: list[list[int]]) -> list[int]:
    return [n for one in several for n in one]


@synchronous
@pytest.mark.parametrize("n", [0, 1, 2, 16, 17, 300])
def test_values_of_tiles_are_joined_in_their_order(n: int) -> None:
    grid = TileGrid.regular((300,), (1,))
    graph = ReducingGraph(Pass(functools.partial(number_of, 0), grid, range(n)), put_together)
    assert graph.compute() == list(range(n))


@synchronous
def test_very_many_tiles_share_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.graph._MOST_TASKS", 7)
    grid = TileGrid.regular((300,), (1,))
    graph = ReducingGraph(Pass(functools.partial(number_of, 0), grid, range(300)), put_together)
    assert list(graph.batches.values()) == [43]
    assert graph.compute() == list(range(300))


# Progress


@synchronous
def test_progress_is_told_over_all_passes() -> None:
    told: list[tuple[int, int]] = []
    global_percentiles(
        noise("float32"), 50, tile_shape=(5, 20, 31), progress=lambda now: told.append((now.done, now.total))
    )
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {done for done, _ in told} >= {1, 2, 3, 4, 5, 6}
    assert {total for _, total in told} == {6}


# What is refused


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (-1, "q has the entry -1.0. Give percentages from 0 to 100"),
        ([50, 100.5], "q has the entry 100.5"),
        ([50, np.nan], "q has the entry nan"),
        (np.inf, "q has the entry inf"),
        ("median", "q 'median' is none of numbers"),
        ([[1], [2, 3]], "is none of numbers"),
        (None, "q has the entry nan|none of numbers"),
    ],
)
def test_percentages_out_of_range_are_refused(q: Any, words: str) -> None:
    with nothing_computed(), pytest.raises(ParameterError, match=words):
        global_percentiles(noise("uint8"), q)


@pytest.mark.parametrize(
    ("image", "options", "error", "words"),
    [
        (np.zeros(4, np.complex64), {}, ParameterError, "dtype complex64; percentiles are of real numbers"),
        (np.zeros(4, np.longdouble), {}, ParameterError, "at most 64 bits"),
        (np.array(3), {}, GeometryError, "no axes"),
        (np.zeros((0, 4)), {}, ImageError, r"shape \(0, 4\) has no voxels"),
        (np.zeros(4), {"mask": np.ones(5)}, GeometryError, r"mask has shape \(5,\), the image \(4,\)"),
        (np.zeros(4), {"tile_shape": (2, 2)}, GeometryError, "tile_shape"),
        ("nothing.zarr", {}, ImageError, "nothing.zarr"),
    ],
)
def test_images_without_percentiles_are_refused(
    image: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with nothing_computed(), pytest.raises(error, match=words):
        global_percentiles(image, 50, **options)


@synchronous
def test_an_image_of_which_nothing_counts_is_refused() -> None:
    with pytest.raises(ImageError, match=r"None of the voxels of the image of shape \(3,\) counts: all are NaN\."):
        global_percentiles(np.full(3, np.nan), 50)
    with pytest.raises(ImageError, match="all are NaN or outside of the mask"):
        global_percentiles(np.ones(3, np.uint8), 50, mask=np.zeros(3))


@synchronous
def test_an_image_that_changes_is_found() -> None:
    rng = np.random.default_rng(0)
    image = da.zeros((40, 40), chunks=10).map_blocks(lambda block: rng.normal(size=block.shape).astype(np.float32))
    image = image.astype(np.float32)
    with pytest.raises(ImageError, match="it has changed while it was read"):
        global_percentiles(image, 50)


@synchronous
def test_a_tile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=noise("uint16"), chunks=(5, 20, 31), compressors=None)
    damaged = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    damaged.write_bytes(b"no")
    with pytest.raises(TileError, match=r"Tile \(1, 0, 0\), .*: reading the image failed"):
        global_percentiles(tmp_path / "a.zarr", 50)
