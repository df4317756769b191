"""What Hypothesis draws: images, and ways to cut them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

__all__ = ["Case", "cases", "chunkings", "images", "label_images", "overlaps", "shapes", "tile_shapes"]

Shape = tuple[int, ...]

# By the number of axes: small enough for hundreds of cases, large enough for tiles with neighbours on all sides.
_LONGEST = {1: 64, 2: 16, 3: 9, 4: 6, 5: 4}
_MOST_TILES = {1: 16, 2: 5, 3: 4, 4: 3, 5: 2}

INTEGERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")


def shapes(min_ndim: int = 1, max_ndim: int = 5, min_side: int = 1) -> st.SearchStrategy[Shape]:
    """Shapes of images: axes of one voxel are as welcome as others."""
    return st.integers(min_ndim, max_ndim).flatmap(
        lambda ndim: st.tuples(*[st.integers(min_side, _LONGEST[ndim])] * ndim)
    )


def tile_shapes(shape: Shape) -> st.SearchStrategy[Shape]:
    """Tile shapes from one voxel to more than the image, so that there are few tiles per axis."""
    most = _MOST_TILES[len(shape)]
    return st.tuples(*(st.integers(max(1, math.ceil(n / most)), n + 2) for n in shape))


def overlaps(shape: Shape, most: int = 3) -> st.SearchStrategy[Shape]:
    """Overlaps, one per axis."""
    return st.tuples(*[st.integers(0, most)] * len(shape))


@st.composite
def chunkings(draw: st.DrawFn, shape: Shape) -> tuple[Shape, ...]:
    """Irregular chunks as dask spells them."""
    most = _MOST_TILES[len(shape)]
    chunks = []
    for n in shape:
        cuts = draw(st.sets(st.integers(1, n - 1), max_size=most - 1)) if n > 1 else set()
        chunks.append(tuple(b - a for a, b in itertools.pairwise([0, *sorted(cuts), n])))
    return tuple(chunks)


@st.composite
def images(
    draw: st.DrawFn,
    shape: Shape,
    dtypes: Sequence[str] = INTEGERS + FLOATS,
) -> NDArray[Any]:
    """Images of any dtype, sparse or dense, the extremes of the dtype and NaN among their values."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    noise = _noise(draw, shape)
    density = draw(st.sampled_from([0.5, 0.1, 0.3, 0.7, 0.95]))
    foreground = noise > 255 * (1 - density)
    return np.where(foreground, _values(noise, dtype), np.zeros((), dtype))


@st.composite
def label_images(draw: st.DrawFn, shape: Shape) -> NDArray[Any]:
    """Labels of few values, so that equal ones often meet: 0, 1, 2 and the extremes of the dtype."""
    dtype = np.dtype(draw(st.sampled_from(INTEGERS)))
    return _values(_noise(draw, shape), dtype)


def _noise(draw: st.DrawFn, shape: Shape) -> NDArray[np.uint8]:
    # Bytes shrink towards 0, which is background.
    size = math.prod(shape)
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(shape)


def _values(noise: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        choices = np.array([False, True])
    elif dtype.kind == "f":
        choices = np.array([0, 1, -1, 0.5, np.nan, np.inf, np.finfo(dtype).tiny], dtype)
    else:
        info = np.iinfo(dtype)
        choices = np.array([0, 1, 2, info.min, info.max], dtype)
    return choices[noise % len(choices)]


@dataclass(frozen=True)
class Case:
    """An image and a way to label it."""

    image: NDArray[Any]
    tile_shape: Shape
    connectivity: int


@st.composite
def cases(
    draw: st.DrawFn, min_ndim: int = 1, max_ndim: int = 5, dtypes: Sequence[str] | None = None, *, labels: bool = False
) -> Case:
    """Images with tile shapes and connectivities that fit them."""
    shape = draw(shapes(min_ndim, max_ndim))
    image = draw(label_images(shape) if labels else images(shape, dtypes or INTEGERS + FLOATS))
    return Case(image, draw(tile_shapes(shape)), draw(st.integers(1, len(shape))))
