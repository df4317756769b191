"""Changes of dtype that say what they do to values that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from blockbuster.errors import ParameterError

__all__ = ["Cast", "Casting", "make_cast", "rounded"]

Casting: TypeAlias = Literal["safe", "same_kind", "unsafe", "exact", "clip"]


@dataclass(frozen=True)
class Cast:
    """A change of dtype.

    Attributes
    ----------
    dtype : dtype
        Of what it gives.
    casting : {"safe", "same_kind", "unsafe", "exact", "clip"}
        What happens to values that `dtype` cannot hold: see `blockbuster.copy`.

    Examples
    --------
    >>> Cast(np.dtype("uint8"), "clip")(np.array([-3.0, 7.5, 300.0]))
    array([  0,   8, 255], dtype=uint8)
    """

    dtype: np.dtype[Any]
    casting: Casting = "safe"

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        """The block in the new dtype: the block itself where it has that already.

        Raises
        ------
        ValueError
            If `casting` is "exact" and a value would change.
        """
        if block.dtype == self.dtype:
            return block
        if self.casting == "clip":
            return rounded(block, self.dtype)
        # Out of range is what "unsafe" asks for, and what "exact" finds.
        with np.errstate(invalid="ignore", over="ignore"):
            made = _plainly(block, self.dtype)
            if self.casting == "exact":
                _check_equal(block, made)
        return made


def _plainly(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return (block.real if block.dtype.kind == "c" and dtype.kind not in "bc" else block).astype(dtype)


def make_cast(source: np.dtype[Any], target: DTypeLike | None, casting: str) -> Cast:
    """The change from one dtype to another, checked.

    Raises
    ------
    ParameterError
        If `casting` is unknown, `target` is no dtype of numbers, or the change is not allowed.
    """
    if casting not in get_args(Casting):
        raise ParameterError(
            f"casting {casting!r} is unknown. Choose one of {', '.join(map(repr, get_args(Casting)))}."
        )
    if target is None:
        return Cast(source.newbyteorder("="))
    try:
        dtype = np.dtype(target)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biufc":
        raise ParameterError(f"dtype {target!r} is none of numbers. Choose one such as 'uint16' or 'float32'.")
    made = cast("Casting", casting)
    numpys = made if made in ("safe", "same_kind", "unsafe") else "unsafe"
    if not np.can_cast(source, dtype, numpys) or (made == "safe" and _loses_digits(source, dtype)):
        raise ParameterError(
            f"dtype {dtype} cannot hold all values of {source} (casting={casting!r}). Give casting='exact' to copy if "
            "all values fit, 'clip' to round them and clip them to the range of the dtype, or 'unsafe' for what NumPy "
            "makes of them."
        )
    return Cast(dtype.newbyteorder("="), made)


def _loses_digits(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether integers are more exact than floats can be, which NumPy takes for safe at 64 bits."""
    if source.kind not in "iu" or target.kind not in "fc":
        return False
    return 8 * source.itemsize - (source.kind == "i") > np.finfo(target).nmant + 1


def rounded(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as `dtype`: for integers rounded to the nearest, halves to even, and clipped; NaN becomes 0.

    Of complex numbers the real part is taken; bool is 0 or 1.

    Examples
    --------
    >>> rounded(np.array([0.5, 1.5, 1e30, np.nan]), np.dtype("int16"))
    array([    0,     2, 32767,     0], dtype=int16)
    """
    if block.dtype.kind == "c" and dtype.kind != "c":
        block = block.real
    if dtype.kind == "b":
        return np.asarray(block > 0.5)
    if dtype.kind in "fc":
        # What is too large for a narrow float is infinite there.
        with np.errstate(over="ignore"):
            return block.astype(dtype)
    if block.dtype.kind == "f":
        return _floats_to_integers(block, np.iinfo(dtype))
    if block.dtype.kind in "iu":
        block = np.clip(block, *_common_range(block.dtype, dtype))
    return block.astype(dtype)


def _floats_to_integers(block: NDArray[Any], limits: np.iinfo[Any]) -> NDArray[Any]:
    work = np.rint(block, dtype=np.float64)
    # As floats the limits of 64 bits are out of range themselves.
    above, below = work >= float(limits.max), work <= float(limits.min)
    made = np.where(above | below | np.isnan(work), 0.0, work).astype(limits.dtype)
    made[above], made[below] = limits.max, limits.min
    return made


def _common_range(source: np.dtype[Any], target: np.dtype[Any]) -> tuple[int, int]:
    one, other = np.iinfo(source), np.iinfo(target)
    return max(int(one.min), int(other.min)), min(int(one.max), int(other.max))


def _check_equal(block: NDArray[Any], made: NDArray[Any]) -> None:
    changed = _changed(block, made)
    if changed.any():
        value = block[changed].flat[0]
        raise ValueError(
            f"{np.count_nonzero(changed)} values, such as {value}, change from {block.dtype} to {made.dtype}, and "
            "casting='exact' was asked for. Give a dtype that holds them, or casting='clip' or 'unsafe'."
        )


def _changed(block: NDArray[Any], made: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value is not what it was: what wraps around comes back as it was, and must be told by other means."""
    if block.dtype.kind == "c" or made.dtype.kind == "c":
        parts = [np.asarray(_changed(_part(block, part), _part(made, part))) for part in ("real", "imag")]
        return np.asarray(parts[0] | parts[1])
    changed = np.asarray(made.astype(block.dtype) != block)
    if block.dtype.kind == "f" and made.dtype.kind == "f":
        changed &= ~(np.isnan(block) & np.isnan(made))
    if block.dtype.kind == "f" and made.dtype.kind in "biu":
        changed |= ~np.isfinite(block) | (np.abs(block.astype(np.float64)) >= 2.0 ** (8 * made.dtype.itemsize))
    if block.dtype.kind == "f" and made.dtype.kind == "i":
        changed |= block.astype(np.float64) >= 2.0 ** (8 * made.dtype.itemsize - 1)
    if block.dtype.kind in "iu" and made.dtype.kind in "iu":
        changed |= (block < 0) != (made < 0)
    if block.dtype.kind in "iu" and made.dtype.kind == "f":
        bits = 8 * block.dtype.itemsize - (block.dtype.kind == "i")
        changed |= ~np.isfinite(made) | (made.astype(np.float64) >= 2.0**bits)
    return changed


def _part(block: NDArray[Any], part: str) -> NDArray[Any]:
    """The real or imaginary part, which are themselves and 0 for what is not complex."""
    if block.dtype.kind == "c":
        return np.asarray(getattr(block, part))
    return block if part == "real" else np.zeros(block.shape, np.float64)
