"""The arithmetic of downsampling, region by region, against the whole array."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
import skimage.transform
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from blockbuster import GeometryError, ParameterError, resampling
from blockbuster.grid import TileGrid
from blockbuster.resampling import (
    Cells,
    Interpolation,
    Method,
    Resampling,
    Stride,
    check_factors,
    make_resampling,
    reduced_shape,
)
from tests.strategies import FLOATS, INTEGERS, images, shapes

METHODS: tuple[Method, ...] = get_args(Method)
ORDERS = (1, 2, 3, 4, 5)
# All pairs of an extent and a factor that are swept: some hundred, without a common period.
PAIRS = [(n, f) for n in range(200, 1200, 13) for f in range(2, 9)]


def by_tiles(kernel: Resampling, image: NDArray[Any], tile_shape: Sequence[int] | int) -> NDArray[Any]:
    """The result put together from tiles of it, each made from no more than it asks for."""
    shape = reduced_shape(image.shape, kernel.factors)
    tiles = [tile_shape] * image.ndim if isinstance(tile_shape, int) else tile_shape
    out = np.empty(shape, image.dtype)
    for tile in TileGrid.regular(shape, tiles).tiles():
        source = kernel.source(tile.core, image.shape)
        assert all(0 <= s.start < s.stop <= n for s, n in zip(source, image.shape, strict=True))
        made = kernel(image[source].copy(), tile.core, image.shape)
        assert made.shape == tile.shape
        assert made.dtype == image.dtype
        out[tile.core] = made
    return out


def spline(image: NDArray[Any], factors: Sequence[int], order: int, *, anti_aliasing: bool) -> NDArray[np.float64]:
    """The definition: blur, then sample at the centres of cells, the whole image at once."""
    work = np.asarray(image, np.float64)
    if anti_aliasing:
        work = ndimage.gaussian_filter(work, [(f - 1) / 2 for f in factors], mode="mirror")
    centres = [(np.arange(-(-n // f)) + 0.5) * f - 0.5 for n, f in zip(image.shape, factors, strict=True)]
    grid = np.meshgrid(*centres, indexing="ij")
    sampled: NDArray[np.float64] = ndimage.map_coordinates(work, grid, order=order, mode="mirror")
    return sampled


def assert_rounded(made: NDArray[Any], exact: NDArray[np.float64], slack: float = 1e-6) -> None:
    """Assert that integers are some floats rounded and clipped; where those are halves but for `slack`, either way."""
    limits = np.iinfo(made.dtype)
    low = np.clip(np.rint(exact - slack), float(limits.min), float(limits.max))
    high = np.clip(np.rint(exact + slack), float(limits.min), float(limits.max))
    assert ((low <= made) & (made <= high)).all()


def cells(image: NDArray[Any], factors: Sequence[int]) -> list[NDArray[Any]]:
    starts = itertools.product(*(range(0, n, f) for n, f in zip(image.shape, factors, strict=True)))
    return [image[tuple(slice(a, a + f) for a, f in zip(start, factors, strict=True))].ravel() for start in starts]


def one_value(cell: NDArray[Any], method: str) -> Any:
    """What a method makes of one cell, in numbers of any size."""
    values = sorted(cell.tolist())
    whole = cell.dtype.kind in "biu"
    if method in ("mode", "mode-nonzero"):
        counts = Counter(v for v in values if v or method == "mode")
        return min(counts, key=lambda v: (-counts[v], v)) if counts else 0
    if any(v != v for v in values):
        return math.nan
    if method in ("max", "min"):
        return values[-1 if method == "max" else 0]
    if method == "median":
        values = [values[(len(values) - 1) // 2], values[len(values) // 2]]
    if not all(map(math.isfinite, values)):
        return sum(map(float, values))
    mean = sum(map(Fraction, values)) / len(values)
    return round(mean) if whole else mean


def brute(image: NDArray[Any], factors: Sequence[int], method: str) -> NDArray[Any]:
    values = [one_value(cell, method) for cell in cells(image, factors)]
    kept = [float(v) if isinstance(v, Fraction) else v for v in values]
    return np.array(kept, image.dtype).reshape(reduced_shape(image.shape, factors))


# Factors


@pytest.mark.parametrize(
    "factor", [2.0, 1.5, True, np.True_, 0, -1, "2", None, np.float32(2), (2, 0), (2, -1), (2.0, 2)]
)
def test_a_factor_that_is_no_int_of_at_least_1_is_an_error(factor: Any) -> None:
    with pytest.raises(GeometryError, match=r"scale_factor .*ints of at least 1"):
        check_factors(factor, (5, 7))


@pytest.mark.parametrize("factors", [(), (2,), (2, 2, 2), [3]])
def test_as_many_factors_as_axes_are_needed(factors: Any) -> None:
    with pytest.raises(GeometryError, match=rf"has {len(factors)} entries.*2 axes \(5, 7\).*one int, or one per axis"):
        check_factors(factors, (5, 7))


def test_an_array_without_axes_is_no_sequence_of_factors() -> None:
    try:
        assert check_factors(np.array(2), (5, 7)) == (2, 2)
    except GeometryError as error:
        assert "scale_factor" in str(error)  # noqa: PT017


@pytest.mark.parametrize("factor", [2, np.int8(2), np.uint64(2), [2, 2], (2, np.int32(2)), np.array([2, 2])])
def test_factors_are_any_ints(factor: Any) -> None:
    made = check_factors(factor, (5, 7))
    assert made == (2, 2)
    assert all(type(f) is int for f in made)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [("czyx", (1, 3, 3, 3)), ("tcyx", (1, 1, 3, 3)), ("zyxc", (3, 3, 3, 1)), (None, (3, 3, 3, 3)), ("????", (3,) * 4)],
)
def test_one_factor_leaves_time_and_channels_alone(axes: str | None, expected: tuple[int, ...]) -> None:
    assert check_factors(3, (9, 9, 9, 9), axes) == expected
    assert check_factors((3, 3, 3, 3), (9, 9, 9, 9), axes) == (3, 3, 3, 3)


# Every f-th voxel


def test_stride_sweep() -> None:
    for n, f in PAIRS:
        image = np.arange(n, dtype=np.uint16)
        np.testing.assert_array_equal(by_tiles(Stride((f,)), image, 32), image[::f])


@given(st.data(), shapes(max_ndim=5))
def test_stride_takes_voxels_as_they_are(data: st.DataObject, shape: tuple[int, ...]) -> None:
    image = data.draw(images(shape))
    factors = data.draw(st.tuples(*[st.integers(1, 5)] * len(shape)))
    made = by_tiles(Stride(factors), image, data.draw(st.integers(2, 7)))
    np.testing.assert_array_equal(made, image[tuple(slice(None, None, f) for f in factors)], strict=True)


# Splines


@pytest.mark.parametrize("anti_aliasing", [False, True])
def test_spline_sweep(anti_aliasing: bool) -> None:
    rng = np.random.default_rng(0)
    for number, (n, f) in enumerate(PAIRS):
        image = rng.normal(size=n)
        order = 1 + number % 5
        exact = spline(image, (f,), order, anti_aliasing=anti_aliasing)
        made = by_tiles(Interpolation((f,), order, anti_aliasing), image, 32)
        assert np.abs(made - exact).max() <= 1e-9 * np.abs(image).max(), (n, f, order)


@pytest.mark.parametrize("anti_aliasing", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_splines_of_a_few_voxels(order: int, anti_aliasing: bool) -> None:
    rng = np.random.default_rng(1)
    for n, f in itertools.product(range(1, 11), (2, 3, 4, 5, 7, 8, 13)):
        image = rng.normal(size=n)
        exact = spline(image, (f,), order, anti_aliasing=anti_aliasing)
        for tile in (1, 2, 3):
            made = by_tiles(Interpolation((f,), order, anti_aliasing), image, tile)
            np.testing.assert_allclose(made, exact, rtol=1e-9, atol=1e-9, err_msg=f"{n} / {f}")


@given(st.data(), shapes(min_ndim=2, max_ndim=5), st.sampled_from(ORDERS), st.booleans(), st.integers(0, 2**32 - 1))
def test_splines_of_many_axes(
    data: st.DataObject, shape: tuple[int, ...], order: int, anti_aliasing: bool, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=shape)
    factors = data.draw(st.tuples(*[st.integers(1, 5)] * len(shape)))
    tiles = data.draw(st.tuples(*(st.integers(2, 9) for _ in shape)))
    made = by_tiles(Interpolation(factors, order, anti_aliasing), image, tiles)
    np.testing.assert_allclose(made, spline(image, factors, order, anti_aliasing=anti_aliasing), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("anti_aliasing", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("shape", "factors"), [((240,), (6,)), ((60, 84), (2, 3)), ((48, 30), (8, 5)), ((12, 20, 28), (2, 4, 7))]
)
def test_where_factors_divide_extents_splines_are_those_of_skimage(
    shape: tuple[int, ...], factors: tuple[int, ...], order: int, anti_aliasing: bool
) -> None:
    image = np.random.default_rng(order).normal(size=shape)
    expected = skimage.transform.resize(
        image,
        reduced_shape(shape, factors),
        order=order,
        anti_aliasing=anti_aliasing,
        clip=False,
        preserve_range=True,
    )
    made = by_tiles(Interpolation(factors, order, anti_aliasing), image, 9)
    np.testing.assert_allclose(made, expected, rtol=1e-8, atol=1e-8)


# Largest poles, from the closed forms of the B-splines.
POLES = {
    2: 3 - math.sqrt(8),
    3: 2 - math.sqrt(3),
    4: 19 - math.sqrt(304) - math.sqrt(664 - math.sqrt(438976)),
    5: 6.5 - math.sqrt(26.25) - math.sqrt(67.5 - math.sqrt(4436.25)),
}


@pytest.mark.parametrize("anti_aliasing", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factor", range(2, 9))
def test_a_region_asks_for_the_voxels_that_the_notes_of_downsample_tell(
    factor: int, order: int, anti_aliasing: bool
) -> None:
    prefilter = math.ceil(math.log(1e-13) / math.log(POLES[order])) if order > 1 else 0
    blur = int(4 * (factor - 1) / 2 + 0.5) if anti_aliasing else 0
    halo = order // 2 + 1 + prefilter + blur
    kernel = Interpolation((factor, 1), order, anti_aliasing)
    assert kernel.reach == (halo, 0)
    rows, columns = kernel.source((slice(100, 132), slice(3, 5)), (5000, 9))
    first, last = 100.5 * factor - 0.5, 131.5 * factor - 0.5
    assert (rows, columns) == (slice(math.floor(first) - halo, math.ceil(last) + halo + 1), slice(3, 5))
    # At both borders of the image there is no more.
    (rows, _) = kernel.source((slice(0, -(-5000 // factor)), slice(0, 9)), (5000, 9))
    assert rows.start == max(math.floor(0.5 * factor - 0.5) - halo, 0)
    assert rows.stop == min(math.ceil((-(-5000 // factor) - 0.5) * factor - 0.5) + halo + 1, 5000)


@pytest.mark.parametrize("order", ORDERS)
def test_voxels_that_are_not_asked_for_do_not_count(order: int) -> None:
    image = np.random.default_rng(2).normal(size=400)
    kernel = Interpolation((3,), order, anti_aliasing=True)
    (read,) = kernel.source((slice(50, 60),), image.shape)
    other = image + 1000
    other[read] = image[read]
    one, two = (spline(a, (3,), order, anti_aliasing=True)[50:60] for a in (image, other))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [None, *ORDERS])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_without_a_factor_above_1_voxels_stay_as_they_are(dtype: str, order: int | None) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 2, (5, 7)).astype(dtype)
    if image.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        image.flat[:4] = [limits.max, limits.min, limits.max - 1, 1]
    kernels = [Interpolation((1, 1), order, True)] if order else [Cells((1, 1), method) for method in METHODS]
    for kernel in kernels:
        np.testing.assert_array_equal(by_tiles(kernel, image, 3), image, strict=True)


# Splines of other dtypes than float64


@pytest.mark.parametrize("dtype", [d for d in INTEGERS if d != "bool"])
@given(st.data(), st.sampled_from(ORDERS), st.booleans(), st.integers(0, 2**32 - 1))
def test_integers_are_rounded_and_clipped(
    dtype: str, data: st.DataObject, order: int, anti_aliasing: bool, seed: int
) -> None:
    shape = data.draw(st.one_of(st.tuples(st.integers(1, 90)), st.tuples(st.integers(1, 20), st.integers(1, 20))))
    limits = np.iinfo(dtype)
    image = np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    factors = data.draw(st.tuples(*[st.integers(2, 6)] * len(shape)))
    made = by_tiles(Interpolation(factors, order, anti_aliasing), image, 7)
    exact = spline(image, factors, order, anti_aliasing=anti_aliasing)
    if limits.bits <= 16:
        # Weights of order 1 are halves and wholes: nothing is lost.
        assert_rounded(made, exact, 0.0 if order == 1 and not anti_aliasing and len(shape) == 1 else 1e-4)
    else:
        clipped = np.clip(exact, float(limits.min), float(limits.max))
        np.testing.assert_allclose(made.astype(float), clipped, rtol=1e-9, atol=1e-9 * float(limits.max))


def test_halves_go_to_even() -> None:
    image = np.array([0, 1, 1, 2, 2, 3, 254, 255, 253, 254], np.uint8)
    assert by_tiles(Interpolation((2,), 1, False), image, 2).tolist() == [0, 2, 2, 254, 254]
    signed = np.array([0, -1, -1, -2, -3, -2, -128, -127], np.int8)
    assert by_tiles(Interpolation((2,), 1, False), signed, 2).tolist() == [0, -2, -2, -128]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_overshoot_of_splines_is_clipped(order: int, dtype: str) -> None:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    image = np.where(np.arange(120) % 17 % 7 > 2, high, low).astype(dtype)
    exact = spline(image, (2,), order, anti_aliasing=False)
    step = float(high) - float(low)
    over, under = exact > float(high) + 1e-6 * step, exact < float(low) - 1e-6 * step
    assert over.any()
    assert under.any()
    made = by_tiles(Interpolation((2,), order, False), image, 5)
    assert (made[over] == high).all()
    assert (made[under] == low).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_an_image_of_one_value_keeps_it(dtype: str, order: int) -> None:
    value = True if dtype == "bool" else np.iinfo(dtype).max
    image = np.full((9, 14), value, dtype)
    made = by_tiles(Interpolation((2, 3), order, True), image, 3)
    if np.dtype(dtype).itemsize == 8:
        np.testing.assert_allclose(made.astype(float), float(value), rtol=1e-12)
    else:
        assert (made == value).all()


@pytest.mark.parametrize("order", ORDERS)
def test_bool_is_what_is_above_one_half(order: int) -> None:
    rng = np.random.default_rng(order)
    for anti_aliasing in (False, True):
        image = rng.random((60, 45)) > 0.5
        made = by_tiles(Interpolation((2, 3), order, anti_aliasing), image, 7)
        exact = spline(image, (2, 3), order, anti_aliasing=anti_aliasing)
        clear = np.abs(exact - 0.5) > 1e-6
        assert made.dtype == bool
        np.testing.assert_array_equal(made[clear], (exact > 0.5)[clear])


@pytest.mark.parametrize("order", [3, 5])
def test_bool_undershoot_is_false(order: int) -> None:
    # True wherever the spline at one centre has a negative weight: it is far below 0 there.
    one = np.eye(24)
    weights = np.array([spline(row, (2,), order, anti_aliasing=False)[6] for row in one])
    image = np.multiply.outer(weights, weights) < 0
    exact = spline(image, (2, 2), order, anti_aliasing=False)
    assert exact[6, 6] < -0.6
    made = by_tiles(Interpolation((2, 2), order, False), image, 4)
    assert not made[6, 6]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "digits"), [("float16", 1e-3), ("float32", 1e-6), ("float64", 1e-9)])
def test_floats_keep_their_dtype(dtype: str, digits: float, order: int) -> None:
    image = np.random.default_rng(4).normal(size=(50, 31)).astype(dtype)
    made = by_tiles(Interpolation((3, 2), order, True), image, 6)
    exact = spline(image, (3, 2), order, anti_aliasing=True)
    np.testing.assert_allclose(made, exact, rtol=digits, atol=digits * np.abs(exact).max())


def test_what_overshoots_a_narrow_float_is_infinite() -> None:
    image = np.repeat(np.array([65504, -65504] * 8, np.float16), 3)
    exact = spline(image, (2,), 3, anti_aliasing=False)
    made = by_tiles(Interpolation((2,), 3, False), image, 5)
    beyond = np.abs(exact) > 65520
    assert beyond.any()
    assert np.isinf(made[beyond]).all()
    np.testing.assert_allclose(made[~beyond], exact[~beyond], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool"])
def test_ties_do_not_depend_on_tiles(dtype: str, order: int) -> None:
    rng = np.random.default_rng(5)
    for image in (
        np.repeat(np.arange(120), 5),
        (np.arange(600) >= 301) * 255,
        np.repeat(rng.integers(0, 2, 60), 10) * 255,
        np.repeat(rng.integers(0, 2, 120), 5),
    ):
        kept = image.astype(dtype)
        for f, anti_aliasing in itertools.product((2, 4, 8), (False, True)):
            kernel = Interpolation((f,), order, anti_aliasing)
            whole = by_tiles(kernel, kept, 600)
            for tile in (7, 8, 33, 64):
                np.testing.assert_array_equal(by_tiles(kernel, kept, tile), whole, err_msg=f"{f} {tile}")


# Cells


@pytest.mark.parametrize("method", METHODS)
@given(st.data(), shapes(max_ndim=4))
def test_cells_are_exact(method: Any, data: st.DataObject, shape: tuple[int, ...]) -> None:
    image = data.draw(images(shape))
    if method.startswith("mode"):
        image = np.nan_to_num(image)
    factors = data.draw(st.tuples(*[st.integers(1, 5)] * len(shape)))
    made = by_tiles(Cells(factors, method), image, data.draw(st.integers(2, 5)))
    expected = brute(image, factors, method)
    assert made.dtype == image.dtype
    if image.dtype.kind == "f" and method == "mean":
        # Sums are of 64 bits: what cancels leaves as much as their last digit.
        lost = 1e-14 * float(np.abs(image[np.isfinite(image)]).max(initial=0))
        np.testing.assert_allclose(made, expected, rtol=4 * float(np.finfo(image.dtype).eps), atol=lost)
    else:
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [d for d in INTEGERS if d != "bool"])
def test_cells_of_any_integers_are_exact(dtype: str, method: Any) -> None:
    rng = np.random.default_rng(6)
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    near = [max(low + k, low) for k in range(4)] + [high - k for k in range(4)]
    pools = [
        rng.integers(low, high, (13, 11), dtype, endpoint=True),
        rng.choice(np.array(near, dtype), (13, 11)),
        rng.choice(np.array(near[:4], dtype), (13, 11)),
        rng.choice(np.array(near[4:], dtype), (13, 11)),
        rng.integers(max(-3, low), 4, (13, 11)).astype(dtype),
        np.full((13, 11), low, dtype),
        np.full((13, 11), high, dtype),
    ]
    for image, factors in itertools.product(pools, [(2, 2), (3, 5), (4, 4), (1, 7), (16, 1), (13, 11), (20, 20)]):
        made = by_tiles(Cells(factors, method), image, 3)
        np.testing.assert_array_equal(made, brute(image, factors, method), err_msg=str(factors), strict=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slab", [1, 7, 64])
def test_slabs_within_a_block_do_not_count(method: Any, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(7).integers(0, 5, (9, 14, 11), np.uint16)
    expected = brute(image, (2, 4, 3), method)
    monkeypatch.setattr(resampling, "_SLAB", slab)
    np.testing.assert_array_equal(by_tiles(Cells((2, 4, 3), method), image, 9), expected)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_larger_than_a_slab(method: Any) -> None:
    image = np.random.default_rng(8).integers(0, 4, (1, 1501, 903), np.uint8)
    made = by_tiles(Cells((1, 2, 3), method), image, 2000)
    assert made.shape == (1, 751, 301)
    for corner in itertools.product((0, 375, 749), (0, 160, 300)):
        y, x = corner
        cell = image[0, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].ravel()
        assert made[0, y, x] == one_value(cell, method)
    if method in ("max", "min"):
        padded = np.pad(image[0], ((0, 1), (0, 0)), mode="edge").reshape(751, 2, 301, 3)
        np.testing.assert_array_equal(made[0], getattr(padded, method)(axis=(1, 3)))


@pytest.mark.parametrize(
    ("cell", "mode", "nonzero"),
    [
        ([0, 0, 0, 5], 0, 5),
        ([3, 3, 2, 2], 2, 2),
        ([7, 1, 5, 3], 1, 1),
        ([0, 0, 9, 9], 0, 9),
        ([0, 4, 2, 4], 4, 4),
        ([0, 0, 0, 0], 0, 0),
        ([0, -1, 1, 0], 0, -1),
        ([-5, -5, 3, 3], -5, -5),
    ],
)
def test_the_most_frequent_value_is_the_smallest_of_equals(cell: list[int], mode: int, nonzero: int) -> None:
    image = np.array(cell, np.int32).reshape(2, 2)
    assert by_tiles(Cells((2, 2), "mode"), image, 1).item() == mode
    assert by_tiles(Cells((2, 2), "mode-nonzero"), image, 1).item() == nonzero


def test_an_object_of_one_voxel_stays_where_a_stride_loses_it() -> None:
    labels = np.zeros((9, 9, 9), np.uint32)
    labels[4, 5, 7] = 2**32 - 1
    assert not by_tiles(Stride((2, 2, 2)), labels, 3).any()
    assert not by_tiles(Cells((2, 2, 2), "mode"), labels, 3).any()
    made = by_tiles(Cells((2, 2, 2), "mode-nonzero"), labels, 3)
    assert np.argwhere(made).tolist() == [[2, 2, 3]]
    assert made.max() == 2**32 - 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["mean", "median", "max", "min"])
def test_nan_is_met_as_numpy_meets_it(method: Any, dtype: str) -> None:
    rng = np.random.default_rng(9)
    image = rng.choice(np.array([np.nan, np.inf, 1, 2, -3, 0], dtype), (31, 17), p=[0.08, 0.08, 0.21, 0.21, 0.21, 0.21])
    made = by_tiles(Cells((3, 2), method), image, 4)
    with np.errstate(invalid="ignore"):
        expected = [getattr(np, method)(cell.astype(np.float64)) for cell in cells(image, (3, 2))]
    np.testing.assert_allclose(made.ravel(), expected, rtol=2 * float(np.finfo(dtype).eps))


def test_the_mean_of_complex_numbers() -> None:
    image = np.random.default_rng(10).normal(size=(9, 8, 2)).view(complex)[..., 0]
    made = by_tiles(Cells((2, 3), "mean"), image, 2)
    np.testing.assert_allclose(made.ravel(), [cell.mean() for cell in cells(image, (2, 3))], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["fortran", "swapped", "strided", "reversed", "read-only"])
def test_any_memory_layout_gives_the_same(form: str, method: Any) -> None:
    plain = np.random.default_rng(11).integers(0, 1000, (11, 8), np.int32)
    image: NDArray[Any] = {
        "fortran": np.asfortranarray(plain),
        "swapped": plain.astype(plain.dtype.newbyteorder()),
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        "reversed": np.ascontiguousarray(plain[::-1, ::-1])[::-1, ::-1],
        "read-only": plain.copy(),
    }[form]
    image.flags.writeable = False
    made = Cells((2, 3), method)(image, (slice(0, 6), slice(0, 3)), image.shape)
    np.testing.assert_array_equal(made, brute(plain, (2, 3), method))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
@example([-(2**63)] * 3)
@example([2**63 - 1] * 7)
@example([-(2**63), 2**63 - 1])
@example([2**63 - 1, 2**63 - 2])
@example([-(2**63), -(2**63) + 1])
def test_means_and_medians_of_64_bits_are_exact(values: list[int]) -> None:
    for dtype, offset in (("int64", 0), ("uint64", 2**63)):
        image = np.array([v + offset for v in values], dtype)
        for method in ("mean", "median"):
            made = by_tiles(Cells((len(values),), method), image, 1)  # type: ignore[arg-type]
            assert made.tolist() == [one_value(image, method)]


# What is asked for


@pytest.mark.parametrize("order", [6, -1, True, np.True_, 1.5, 2.0, "1", None])
def test_an_unknown_order_is_an_error(order: Any) -> None:
    with pytest.raises(ParameterError, match=rf"order {order!r} is not an int from 0 to 5"):
        make_resampling((2, 2), order=order, anti_aliasing=False, method=None)


@pytest.mark.parametrize("method", ["average", "", 3, ["mean"], "Mean", True])
def test_an_unknown_method_is_an_error_that_names_those_there_are(method: Any) -> None:
    with pytest.raises(ParameterError, match=r"method .* is unknown.*'mean', 'median', 'mode', 'mode-nonzero', 'max'"):
        make_resampling((2, 2), order=0, anti_aliasing=False, method=method)


@pytest.mark.parametrize("anti_aliasing", [1, None, "yes", 0.5])
def test_anti_aliasing_is_true_or_false(anti_aliasing: Any) -> None:
    with pytest.raises(ParameterError, match=rf"anti_aliasing {anti_aliasing!r} is neither True nor False"):
        make_resampling((2, 2), order=1, anti_aliasing=anti_aliasing, method=None)


def test_options_that_do_not_go_together_are_errors() -> None:
    with pytest.raises(ParameterError, match=r"anti_aliasing=True.*Give an order of 1 to 5"):
        make_resampling((2,), order=0, anti_aliasing=True, method=None)
    with pytest.raises(ParameterError, match=r"method 'mean'.*anti_aliasing True"):
        make_resampling((2,), order=0, anti_aliasing=True, method="mean")
    with pytest.raises(ParameterError, match=r"method 'mean'.*order 1"):
        make_resampling((2,), order=1, anti_aliasing=False, method="mean")


def test_options_choose_a_kernel() -> None:
    assert make_resampling((2,), order=0, anti_aliasing=False, method=None) == Stride((2,))
    assert make_resampling((2,), order=np.int64(3), anti_aliasing=np.True_, method=None) == Interpolation((2,), 3, True)
    assert make_resampling((2,), order=0, anti_aliasing=False, method="mode") == Cells((2,), "mode")


def test_centres_shift_by_half_a_cell_but_for_a_stride() -> None:
    assert Stride((2, 3)).shift == (0.0, 0.0)
    for kernel in (Interpolation((2, 1), 1, False), Cells((2, 1), "mean")):
        assert kernel.shift == (0.5, 0.0)


@pytest.mark.parametrize("order", ORDERS)
def test_a_ramp_is_sampled_at_the_centres_that_the_shift_tells(order: int) -> None:
    ramp = np.arange(300.0)
    kernel = Interpolation((4,), order, True)
    made = by_tiles(kernel, ramp, 10)
    np.testing.assert_allclose(made[15:-15], (np.arange(75) * 4 + kernel.shift[0])[15:-15], rtol=1e-9)
