"""Changes of dtype: which are allowed, and what becomes of values that do not fit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from blockbuster import ParameterError, TileError, copy
from blockbuster.casting import Cast, Casting, make_cast, rounded
from tests.strategies import FLOATS, INTEGERS

REAL = INTEGERS + FLOATS
NUMBERS = (*REAL, "complex64", "complex128")


@st.composite
def blocks(draw: st.DrawFn) -> NDArray[Any]:
    """Blocks of real numbers, many of them at a limit of some dtype or beside it."""
    dtype = np.dtype(draw(st.sampled_from(REAL)))
    shape = draw(hnp.array_shapes(max_dims=2, max_side=4))
    limits = [sign * (2**bits + off) for bits in (0, 7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64) for off in (-1, 0, 1)
              for sign in (1, -1)]  # fmt: skip
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            special = np.array([*map(float, limits), 0.5, 1.5, 2.5, -0.5, -1.5, np.nan, np.inf, -np.inf, -0.0])
            special = special.astype(dtype).tolist()
    elif dtype.kind == "b":
        special = [False, True]
    else:
        special = [v for v in limits if np.iinfo(dtype).min <= v <= np.iinfo(dtype).max]
    return draw(hnp.arrays(dtype, shape, elements=st.one_of(st.sampled_from(special), hnp.from_dtype(dtype))))


def exact_value(value: Any) -> Fraction | float:
    """A number as Python compares it exactly; infinities as they are."""
    number = value.item()
    return Fraction(number) if not isinstance(number, float) or math.isfinite(number) else number


def fits(value: Any, dtype: np.dtype[Any]) -> bool:
    number = exact_value(value)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            made = np.array([value]).astype(dtype)[0]
        return bool(number != number or exact_value(made) == number)
    if not isinstance(number, Fraction) or number.denominator != 1:
        return False
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(low <= number <= high)


def clipped(value: Any, dtype: np.dtype[Any]) -> int:
    number = exact_value(value)
    if number != number:
        return 0
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    whole = round(number) if isinstance(number, Fraction) else (high if number > 0 else low)
    return min(max(whole, low), high)


# Which changes are allowed


@pytest.mark.parametrize("casting", ["safe", "same_kind", "unsafe"])
@pytest.mark.parametrize("source", NUMBERS)
def test_numpys_castings_allow_what_numpy_allows_but_for_floats_of_64_bit_integers(source: str, casting: Any) -> None:
    for target in NUMBERS:
        loses_digits = casting == "safe" and source in ("int64", "uint64") and np.dtype(target).kind in "fc"
        if np.can_cast(source, target, casting) and not loses_digits:
            assert make_cast(np.dtype(source), target, casting) == Cast(np.dtype(target), casting)
        else:
            with pytest.raises(ParameterError, match=f"{target}.*{source}.*'{casting}'.*'exact'.*'clip'.*'unsafe'"):
                make_cast(np.dtype(source), target, casting)


@pytest.mark.parametrize("casting", ["exact", "clip"])
@pytest.mark.parametrize("source", NUMBERS)
def test_exact_and_clip_allow_any_change(source: str, casting: Any) -> None:
    for target in NUMBERS:
        assert make_cast(np.dtype(source), target, casting).dtype == target


@pytest.mark.parametrize("casting", get_args(Casting))
@pytest.mark.parametrize("dtype", NUMBERS)
def test_without_a_dtype_a_block_stays_as_it_is(dtype: str, casting: Any) -> None:
    block = np.array([0, 1], dtype)
    assert make_cast(block.dtype, None, casting)(block) is block


@pytest.mark.parametrize("casting", get_args(Casting))
def test_a_dtype_that_is_given_is_made_in_the_byte_order_of_the_machine(casting: Any) -> None:
    block = np.array([1, 258], ">u2")
    for target in ("uint16", ">u2", "<u2"):
        made = make_cast(block.dtype, target, casting)(block)
        assert made.dtype.isnative
        assert made.tolist() == [1, 258]


@pytest.mark.parametrize("casting", ["no", "equiv", "", None, ["clip"], "Exact"])
def test_an_unknown_casting_is_an_error_that_names_those_there_are(casting: Any) -> None:
    with pytest.raises(ParameterError, match=r"casting .*'safe', 'same_kind', 'unsafe', 'exact', 'clip'"):
        make_cast(np.dtype("uint8"), "uint16", casting)


@pytest.mark.parametrize("dtype", ["nonsense", "U5", "M8[s]", object, "f4,i4", 3, np.dtype([("a", "u1")])])
def test_a_dtype_of_no_numbers_is_an_error(dtype: Any) -> None:
    with pytest.raises(ParameterError, match=r"dtype .*Choose one such as 'uint16'"):
        make_cast(np.dtype("uint8"), dtype, "unsafe")


# What becomes of values


@given(blocks(), st.sampled_from(REAL))
def test_unsafe_makes_what_numpy_makes(block: NDArray[Any], target: str) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        expected = block.astype(target)
    np.testing.assert_array_equal(make_cast(block.dtype, target, "unsafe")(block), expected, strict=True)


@given(blocks(), st.sampled_from(REAL))
def test_exact_gives_the_same_numbers_or_refuses(block: NDArray[Any], target: str) -> None:
    cast = make_cast(block.dtype, target, "exact")
    wrong = [value for value in block.ravel() if not fits(value, cast.dtype)]
    if wrong and block.dtype != cast.dtype:
        with pytest.raises(ValueError, match=rf"^{len(wrong)} values.*{block.dtype}.*{target}.*'exact'"):
            cast(block)
        return
    made = cast(block)
    assert made.dtype == target
    for new, old in zip(made.ravel(), block.ravel(), strict=True):
        assert exact_value(new) == exact_value(old) or (np.isnan(new) and np.isnan(old))


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (-1, "int8", "uint8"),
        (-1, "int64", "uint64"),
        (200, "uint8", "int8"),
        (2**63, "uint64", "int64"),
        (2**53 + 1, "int64", "float64"),
        (2**53 + 1, "uint64", "float64"),
        (2**63 - 1, "int64", "float64"),
        (2**64 - 1, "uint64", "float64"),
        (2**64 - 1, "uint64", "float32"),
        (2**64 - 1, "uint64", "float16"),
        (2**24 + 1, "int32", "float32"),
        (2049, "uint16", "float16"),
        (-(2**31), "int32", "float16"),
        (-(2**63), "int64", "float16"),
        (2.0**63, "float64", "int64"),
        (2.0**64, "float64", "uint64"),
        (2.0**31, "float32", "int32"),
        (-1.0, "float64", "uint64"),
        (0.5, "float32", "int16"),
        (np.nan, "float64", "int32"),
        (np.nan, "float32", "bool"),
        (np.inf, "float64", "uint64"),
        (1e300, "float64", "float32"),
        (0.1, "float64", "float32"),
        (1e-300, "float64", "float32"),
        (2, "uint8", "bool"),
        (-1, "int8", "bool"),
        (0.5, "float64", "bool"),
    ],
)
def test_exact_refuses_a_value_that_changes(value: Any, source: str, target: str) -> None:
    block = np.array([0, value, 1], source)
    with pytest.raises(ValueError, match=f"^1 values, such as .*change from {source} to {target}"):
        make_cast(block.dtype, target, "exact")(block)


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([2**53, -(2**53), 2**62], "int64", "float64"),
        ([2**63, 2**63 + 2**11, 0], "uint64", "float64"),
        ([-(2**63), 2**62, -1], "int64", "float32"),
        ([-(2.0**63), 2.0**63 - 1024, -0.0], "float64", "int64"),
        ([2.0**64 - 2048, 0.0], "float64", "uint64"),
        ([65504, -65504, 2048], "int32", "float16"),
        ([np.nan, np.inf, -np.inf, 0.5], "float64", "float16"),
        ([0, 1, 1], "uint64", "bool"),
        ([0.0, 1.0], "float32", "bool"),
        ([True, False], "bool", "float16"),
    ],
)
def test_exact_lets_pass_what_fits(values: list[Any], source: str, target: str) -> None:
    block = np.array(values, source)
    made = make_cast(block.dtype, target, "exact")(block)
    assert made.dtype == target
    np.testing.assert_array_equal(made.astype(source), block)


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", ["complex64", "complex128"])
def test_exact_takes_real_numbers_for_complex_ones(source: str, target: str) -> None:
    block = np.array([0, 1], source)
    made = make_cast(block.dtype, target, "exact")(block)
    assert made.dtype == target
    assert made.tolist() == [0, 1]


def test_exact_refuses_what_complex_numbers_cannot_hold() -> None:
    for block, target in (
        (np.array([2**64 - 1], np.uint64), "complex128"),
        (np.array([2**53 + 1], np.int64), "complex128"),
        (np.array([1 + 1j]), "float64"),
        (np.array([1 + 1j]), "uint8"),
        (np.array([complex(1e300, 0)]), "complex64"),
    ):
        with pytest.raises(ValueError, match="'exact'"):
            make_cast(block.dtype, target, "exact")(block)


def test_exact_says_how_many_values_change_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^2 values, such as 300, change from int64 to uint8.*'clip'"):
        make_cast(np.dtype("int64"), "uint8", "exact")(np.array([[0, 300], [7, -1]]))


@given(blocks(), st.sampled_from([dtype for dtype in INTEGERS if dtype != "bool"]))
def test_clip_rounds_to_even_and_clips(block: NDArray[Any], target: str) -> None:
    cast = make_cast(block.dtype, target, "clip")
    made = cast(block)
    assert made.dtype == target
    assert made.shape == block.shape
    assert made.ravel().tolist() == [clipped(value, cast.dtype) for value in block.ravel()]


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", [dtype for dtype in INTEGERS if dtype != "bool"])
def test_clip_reaches_the_limits_of_every_integer_dtype(source: str, target: str) -> None:
    limits = np.iinfo(target)
    block = np.array([np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -0.5, -0.0], source)
    kept = [int(limits.max), int(limits.min), 0, 0, 2, 2, 0, 0]
    assert rounded(block, np.dtype(target)).tolist() == kept


@pytest.mark.parametrize(
    ("value", "source", "target", "made"),
    [
        (2**64 - 1, "uint64", "int64", 2**63 - 1),
        (-(2**63), "int64", "uint64", 0),
        (2**64 - 1, "uint64", "int8", 127),
        (-129, "int16", "int8", -128),
        (2.0**64, "float64", "uint64", 2**64 - 1),
        (1e300, "float64", "int64", 2**63 - 1),
        (2.0**64 - 2048, "float64", "uint64", 2**64 - 2048),
        (2.0**63, "float32", "int64", 2**63 - 1),
        (254.5, "float32", "uint8", 254),
        (255.5, "float32", "uint8", 255),
        (-0.5, "float64", "uint8", 0),
        (True, "bool", "int8", 1),
    ],
)
def test_clip_at_the_limits(value: Any, source: str, target: str, made: int) -> None:
    assert make_cast(np.dtype(source), target, "clip")(np.array([value], source)).tolist() == [made]


@given(blocks(), st.sampled_from(FLOATS))
def test_clip_to_floats_makes_what_numpy_makes(block: NDArray[Any], target: str) -> None:
    with np.errstate(over="ignore"):
        expected = block.astype(target)
    np.testing.assert_array_equal(make_cast(block.dtype, target, "clip")(block), expected, strict=True)


def test_clip_to_bool_is_true_above_one_half() -> None:
    floats = np.array([0.0, 0.5, 0.6, 1.0, 7.0, np.nan, np.inf, -0.6, -3.0, -np.inf])
    expected = [False, False, True, True, True, False, True, False, False, False]
    assert rounded(floats, np.dtype(bool)).tolist() == expected
    assert rounded(np.array([0, 1, 2, -1, -3], np.int8), np.dtype(bool)).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("dtype", REAL)
def test_one_value_without_axes_is_rounded_too(dtype: str) -> None:
    made = rounded(np.array(1.5), np.dtype(dtype))
    assert made.shape == ()
    assert made.dtype == dtype
    assert made == (1.5 if dtype in FLOATS else 1 if dtype == "bool" else 2)


@pytest.mark.parametrize("casting", get_args(Casting))
@pytest.mark.parametrize("target", ["uint8", "float32", "bool"])
def test_blocks_without_voxels_and_read_only_blocks_change_as_others(casting: Any, target: str) -> None:
    block = np.array([[0, 1], [1, 0]], bool).astype("float64")
    block.flags.writeable = False
    if np.can_cast(block.dtype, target, casting if casting not in ("exact", "clip") else "unsafe"):
        cast = make_cast(block.dtype, target, casting)
        assert cast(block).tolist() == [[0, 1], [1, 0]]
        assert cast(block.T[:0]).shape == (0, 2)
        assert block.tolist() == [[0.0, 1.0], [1.0, 0.0]]


# As users meet them


def test_a_copy_that_would_change_a_value_names_the_tile() -> None:
    image = np.arange(100, dtype=np.int16).reshape(10, 10)
    image[7, 3] = -5
    with pytest.raises(TileError, match=r"Tile \(1, 0\).*such as -5, change from int16 to uint8") as caught:
        copy(image, tile_shape=(5, 5), dtype="uint8", casting="exact", compute=True)
    assert isinstance(caught.value.__cause__, ValueError)
    made = copy(image, tile_shape=(5, 5), dtype="uint8", casting="clip", compute=True)
    np.testing.assert_array_equal(made, np.clip(image, 0, 255).astype(np.uint8), strict=True)


def test_a_copy_to_a_dtype_that_may_not_hold_all_is_refused_before_the_first_task() -> None:
    with pytest.raises(ParameterError, match=r"uint8 cannot hold all values of int16.*'exact'.*'clip'.*'unsafe'"):
        copy(np.zeros((4, 4), np.int16), dtype="uint8")
