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
            made = block.astype(self.dtype)
            if self.casting == "exact":
                _check_equal(block, made)
        return made


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
    try:
        dtype = source if target is None else np.dtype(target)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biufc":
        raise ParameterError(f"dtype {target!r} is none of numbers. Choose one such as 'uint16' or 'float32'.")
    made = cast("Casting", casting)
    numpys = made if made in ("safe", "same_kind", "unsafe") else "unsafe"
    if not np.can_cast(source, dtype, numpys):
        raise ParameterError(
            f"dtype {dtype} cannot hold all values of {source} (casting={casting!r}). Give casting='exact' to copy if "
            "all values fit, 'clip' to round them and clip them to the range of the dtype, or 'unsafe' for what NumPy "
            "makes of them."
        )
    return Cast(dtype.newbyteorder("="), made)


def rounded(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as `dtype`: for integers rounded to the nearest, halves to even, and clipped; NaN becomes 0.

    Examples
    --------
    >>> rounded(np.array([0.5, 1.5, 1e30, np.nan]), np.dtype("int16"))
    array([    0,     2, 32767,     0], dtype=int16)
    """
    if dtype.kind == "b":
        return np.asarray(block > 0.5 if block.dtype.kind == "f" else block != 0)
    if dtype.kind not in "iu":
        return block.astype(dtype)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if block.dtype.kind != "f":
        if block.dtype.kind in "iu":
            low, high = max(low, int(np.iinfo(block.dtype).min)), min(high, int(np.iinfo(block.dtype).max))
            block = np.clip(block, low, high)
        return block.astype(dtype)
    work = block if block.dtype.itemsize >= 8 else block.astype(np.float64)
    made: NDArray[Any] = np.nan_to_num(np.clip(np.rint(work), low, _below(high, work.dtype)), copy=False)
    return made.astype(dtype)


def _below(limit: int, dtype: np.dtype[Any]) -> Any:
    """The largest float that is not above `limit`: 2**64 - 1 is none itself."""
    made = dtype.type(limit)
    return made if int(made) <= limit else np.nextafter(made, dtype.type(0))


def _check_equal(block: NDArray[Any], made: NDArray[Any]) -> None:
    back = made.astype(block.dtype)
    changed = (back != block) & (block == block)
    if block.dtype.kind in "fc" and made.dtype.kind in "biu":
        changed |= block != block
    if block.dtype.kind in "iu" and made.dtype.kind == "f":
        # 2**64 as float is out of range, and may come back as anything.
        changed |= made >= 2.0 ** (8 * block.dtype.itemsize - (block.dtype.kind == "i"))
    if changed.any():
        value = block[changed].flat[0]
        raise ValueError(
            f"{np.count_nonzero(changed)} values, such as {value}, change from {block.dtype} to {made.dtype}, and "
            "casting='exact' was asked for."
        )
