"""`write_image`: any image as OME-Zarr with all its levels."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models import open_ome_zarr
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore

import blockbuster.outputs
import blockbuster.stores
from blockbuster import (
    BlockbusterError,
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
    copy,
    downsample,
    open_image,
    write_image,
    write_labels,
)
from blockbuster.ngff import ome_attributes
from tests.helpers import digest, leftovers, nothing_computed, write_ome_zarr
from tests.strategies import images, shapes

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"

synchronous = pytest.mark.usefixtures("synchronous")
both_versions = pytest.mark.parametrize("version", ["0.4", "0.5"])

# Shapes with what often goes wrong in them: primes, axes of one voxel, odd extents.
SHAPES = {"yx": (37, 64), "zyx": (7, 30, 41), "cyx": (3, 25, 40), "czyx": (2, 5, 30, 17), "tczyx": (2, 2, 1, 19, 24)}
METHODS: list[Any] = ["mean", "median", "mode", "mode-nonzero", "max", "min", None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def noise(shape: Sequence[int], dtype: Any = "uint16", seed: int = 0) -> NDArray[Any]:
    values: NDArray[Any] = np.random.default_rng(seed).integers(0, 120, tuple(shape)).astype(dtype)
    return values


def ome(path: Path) -> dict[str, Any]:
    """The metadata of a group, whatever their version."""
    return dict(ome_attributes(zarr.open_group(path, mode="r")))


def kind_of(path: Path) -> str:
    """What a group is for the models of the specification, which refuse what is not valid."""
    return type(open_ome_zarr(zarr.open_group(path, mode="r"))).__name__


def read_elsewhere(path: Path) -> dict[str, Any]:
    """The nodes that ome-zarr-py finds, by the last part of their names."""
    location = parse_url(path)
    assert location is not None
    return {Path(str(node.zarr).split(" [")[0]).name: node for node in Reader(location)()}


def consolidate(path: Path) -> None:
    """Put the metadata of all that is in a store into one place; in format 3 zarr warns that others do not know it."""
    with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
        zarr.consolidate_metadata(path)


def write_elsewhere(path: Path, version: str, image: NDArray[Any], axes: str, **options: Any) -> Path:
    """Write an image by ome-zarr-py."""
    with warnings.catch_warnings(action="ignore"):
        # Its import warns of a class of its own, and its levels of what they do not halve.
        from ome_zarr import format as forms
        from ome_zarr.writer import write_image as write

        form = forms.FormatV04() if version == "0.4" else forms.FormatV05()
        group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
        write(image, group, axes=axes, fmt=form, **options)
    return path


def reduced(image: NDArray[Any], factors: Sequence[int], method: str | None) -> NDArray[Any]:
    """Cell by cell, what a level is of the one before."""
    if method is None:
        return image[tuple(slice(None, None, f) for f in factors)]
    out = np.empty([-(-n // f) for n, f in zip(image.shape, factors, strict=True)], image.dtype)
    for index in np.ndindex(*out.shape):
        cell = image[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))]
        out[index] = _value(cell.ravel(), method)
    return out


def _value(cell: NDArray[Any], method: str) -> Any:
    if method in ("max", "min"):
        return getattr(np, method)(cell)
    if method in ("mean", "median"):
        value = getattr(np, method)(cell.astype(np.float64))
        return np.rint(value) if cell.dtype.kind in "iu" else value
    values, counts = np.unique(cell[cell != 0] if method == "mode-nonzero" else cell, return_counts=True)
    return values[counts.argmax()] if len(values) else 0


# Valid for others


@synchronous
@both_versions
@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize(("unit", "name"), [("nm", "nanometer"), ("um", "micrometer"), ("mm", "millimeter")])
def test_an_image_is_valid_and_the_same_in_other_readers(
    version: Any, axes: str, unit: str, name: str, folder: Path
) -> None:
    image = noise(SHAPES[axes])
    units = tuple({"t": "s", "c": None}.get(axis, unit) for axis in axes)
    scale = tuple({"t": 30.0, "c": 1.0, "z": 2.0}.get(axis, 0.65) for axis in axes)
    made = write_image(image, folder / "i.zarr", axes=axes, version=version, unit=units, scale=scale, n_levels=3)
    assert kind_of(folder / "i.zarr") == "Image"
    (node,) = read_elsewhere(folder / "i.zarr").values()
    np.testing.assert_array_equal(node.data[0].compute(), image)
    assert [axis["name"] for axis in node.metadata["axes"]] == list(axes)
    expected = {"t": "second", "c": None}
    assert [axis.get("unit") for axis in node.metadata["axes"]] == [expected.get(axis, name) for axis in axes]
    assert (made.version, made.axes, made.scale, made.translation) == (version, axes, scale, (0,) * len(axes))
    assert made.unit == tuple(expected.get(axis, name) for axis in axes)
    assert zarr.open_group(folder / "i.zarr", mode="r").metadata.zarr_format == (2 if version == "0.4" else 3)
    if version == "0.5":
        names = zarr.open_array(folder / "i.zarr" / "2", mode="r").metadata.dimension_names  # type: ignore[union-attr]
        assert names == tuple(axes)
    assert leftovers(folder) == []


@synchronous
@both_versions
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_keep_their_dtype_on_every_level(version: Any, dtype: str, folder: Path) -> None:
    image = noise((20, 31)).astype(dtype)
    made = write_image(image, folder / "i.zarr", version=version, n_levels=3)
    assert [level.dtype for level in made.levels] == [np.dtype(dtype)] * 3
    np.testing.assert_array_equal(made.data.compute(), image)


@synchronous
@both_versions
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", ">u2", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_layout_in_memory_is_written_as_its_values(version: Any, dtype: str, order: Any, folder: Path) -> None:
    image = np.asarray(noise((20, 31)).astype(dtype), order=order)
    image.flags.writeable = False
    made = write_image(image, folder / "i.zarr", version=version, n_levels=2)
    np.testing.assert_array_equal(made.data.compute(), image)
    assert made.dtype == np.dtype(dtype).newbyteorder("=")
    expected = image.reshape(10, 2, 31)[:, :, :30].reshape(10, 2, 15, 2).mean((1, 3), dtype="complex128")
    np.testing.assert_allclose(made.levels[1].compute()[:, :15], expected, atol=0.51, rtol=1e-3)


@synchronous
@pytest.mark.parametrize("value", ["min", "max"])
@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "uint8"])
def test_extremes_of_a_dtype_stay_on_every_level(dtype: str, value: str, folder: Path) -> None:
    extreme = getattr(np.iinfo(dtype), value)
    made = write_image(np.full((9, 9), extreme, dtype), folder / "i.zarr", n_levels=4, channels=["x"])
    assert all((level.compute() == extreme).all() for level in made.levels)


@synchronous
@pytest.mark.parametrize("shape", [(1, 1), (1, 257), (0, 5), (3, 0, 4), (1, 1, 1, 1, 1)])
@both_versions
def test_axes_of_one_voxel_or_none_are_written(version: Any, shape: tuple[int, ...], folder: Path) -> None:
    made = write_image(np.ones(shape, np.uint8), folder / "i.zarr", version=version, n_levels=2)
    assert made.shape == shape
    assert (made.data.compute() == 1).all()
    assert kind_of(folder / "i.zarr") == "Image"


# Levels


@synchronous
@both_versions
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axes", ["yx", "czyx"])
def test_each_level_is_the_downsampled_one_before(version: Any, method: Any, axes: str, folder: Path) -> None:
    image = noise(SHAPES[axes], "uint8") % 5
    made = write_image(image, folder / "i.zarr", axes=axes, version=version, method=method, n_levels=4)
    assert len(made.levels) == 4
    before = image
    for number, level in enumerate(made.levels[1:], 1):
        factors = [1 if axis in "tc" or n == 1 else 2 for axis, n in zip(axes, before.shape, strict=True)]
        np.testing.assert_array_equal(level.compute(), reduced(before, factors, method))
        again = downsample(made.levels[number - 1], factors, method=method, compute=True)
        np.testing.assert_array_equal(level.compute(), again)
        before = level.compute()


@synchronous
@pytest.mark.parametrize(("order", "anti_aliasing"), [(1, False), (3, False), (1, True), (5, True)])
def test_levels_of_splines_are_those_of_scipy(order: int, anti_aliasing: bool, folder: Path) -> None:
    image = np.random.default_rng(0).random((30, 45))
    made = write_image(
        image, folder / "i.zarr", method=None, order=order, anti_aliasing=anti_aliasing, n_levels=2, scale_factor=3
    )
    smooth = scipy.ndimage.gaussian_filter(image, 1, mode="mirror") if anti_aliasing else image
    centres = np.meshgrid(np.arange(10) * 3 + 1, np.arange(15) * 3 + 1, indexing="ij")
    expected = scipy.ndimage.map_coordinates(smooth, centres, order=order, mode="mirror")
    np.testing.assert_allclose(made.levels[1].compute(), expected, atol=1e-8)
    np.testing.assert_array_equal(
        made.levels[1].compute(), downsample(image, 3, order=order, anti_aliasing=anti_aliasing, compute=True)
    )
    assert made.translations[1] == (1, 1)


def _ramp(shape: Sequence[int], axis: int, scale: float, translation: float) -> NDArray[np.float64]:
    """Each voxel tells where its centre lies along an axis."""
    along = np.arange(shape[axis]) * scale + translation
    return np.broadcast_to(along.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape).copy()


@synchronous
@pytest.mark.parametrize(("method", "order"), [("mean", 0), ("median", 0), (None, 0), (None, 1), (None, 3)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factors", [2, (1, 3, 2), [(1, 2, 2), (2, 3, 1), (3, 1, 5)]])
def test_metadata_tell_where_the_voxels_of_every_level_lie(
    method: Any, order: int, axis: int, factors: Any, folder: Path
) -> None:
    shape, scale, translation = (18, 60, 90), (2.0, 0.5, 0.25), (-7.0, 1000.0, 3.125)
    image = _ramp(shape, axis, scale[axis], translation[axis])
    made = write_image(
        image,
        folder / "i.zarr",
        scale=scale,
        translation=translation,
        method=method,
        order=order,
        scale_factor=factors,
        n_levels=4 if isinstance(factors, list) else 3,
    )
    for level, steps, begin in zip(made.levels, made.scales, made.translations, strict=True):
        expected = _ramp(level.shape, axis, steps[axis], begin[axis])
        # Splines mirror the ramp at the border, and a last cell that is cut has another mean.
        inner = tuple(slice(n // 4, max(n - n // 4 - 1, n // 4 + 1)) for n in level.shape)
        np.testing.assert_allclose(
            level.compute()[inner], expected[inner], atol=0.01 * steps[axis] if order == 3 else 1e-9
        )


@synchronous
@both_versions
@pytest.mark.parametrize(("method", "order"), [("mean", 0), ("max", 0), ("mode-nonzero", 0), (None, 0), (None, 2)])
def test_scales_grow_by_the_factors_exactly_and_first_voxels_shift(
    version: Any, method: Any, order: int, folder: Path
) -> None:
    factors = [(1, 2, 3), (1, 3, 2), (2, 2, 2)]
    made = write_image(
        noise((5, 101, 67)),
        folder / "i.zarr",
        axes="zyx",
        scale=(0.3, 0.1, 0.7),
        translation=(1, -2, 0.25),
        version=version,
        scale_factor=factors,
        method=method,
        order=order,
    )
    assert [level.shape for level in made.levels] == [(5, 101, 67), (5, 51, 23), (5, 17, 12), (3, 9, 6)]
    for number, factor in enumerate(factors):
        before, after = made.scales[number], made.scales[number + 1]
        assert after == tuple(s * f for s, f in zip(before, factor, strict=True))
        moved = np.subtract(made.translations[number + 1], made.translations[number])
        shift = np.zeros(3) if method is None and order == 0 else np.multiply(before, np.subtract(factor, 1)) / 2
        np.testing.assert_allclose(moved, shift, atol=1e-12)


@synchronous
@settings(max_examples=25)
@given(st.data())
def test_any_image_has_its_voxels_and_its_levels(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    image = data.draw(shapes(2, 5).flatmap(lambda shape: images(shape, ("uint8", "int16", "uint64", "bool"))))
    factors = data.draw(st.tuples(*[st.integers(1, 4)] * min(image.ndim, 3)))
    factors = (1,) * (image.ndim - len(factors)) + factors
    method = data.draw(st.sampled_from(["mode-nonzero", "max", "min", "mode", None]))
    chunks = data.draw(st.tuples(*(st.integers(1, n + 2) for n in image.shape)))
    version = data.draw(st.sampled_from(["0.4", "0.5"]))
    path = tmp_path_factory.mktemp("any") / "i.zarr"
    made = write_image(
        image, path, method=method, scale_factor=factors, n_levels=3, chunks=chunks, version=version, shards=None
    )
    np.testing.assert_array_equal(made.data.compute(), image)
    before = image
    for level in made.levels[1:]:
        kept = [f if n > 1 else 1 for f, n in zip(factors, before.shape, strict=True)]
        before = reduced(before, kept, method)
        np.testing.assert_array_equal(level.compute(), before)
    assert kind_of(path) == "Image"
    shutil.rmtree(path)


@synchronous
@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((256, 256), "yx", 1),
        ((257, 10), "yx", 2),
        ((1024, 300), "yx", 3),
        ((1025, 300), "yx", 4),
        ((300, 4, 4), "cyx", 1),
        ((300, 4, 4), "tyx", 1),
        ((300, 4, 4), "zyx", 2),
    ],
)
def test_by_default_levels_end_at_256_voxels(shape: tuple[int, ...], axes: str, expected: int, folder: Path) -> None:
    made = write_image(np.zeros(shape, np.uint8), folder / "i.zarr", axes=axes)
    assert len(made.levels) == expected


@synchronous
@pytest.mark.parametrize("n_levels", [1, 2, np.int64(3), 6])
def test_there_are_as_many_levels_as_asked_for(n_levels: Any, folder: Path) -> None:
    made = write_image(noise((3, 2)), folder / "i.zarr", n_levels=n_levels)
    assert len(made.levels) == n_levels
    assert min(math.prod(level.shape) for level in made.levels) >= 1
    # What has one voxel left is not halved any more, nor said to be.
    for before, after in itertools.pairwise(range(n_levels)):
        ratios = np.divide(made.scales[after], made.scales[before])
        assert ratios.tolist() == [2 if n > 1 else 1 for n in made.levels[before].shape]
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale_factor": 3, "n_levels": 3}, [(2, 4, 64, 60), (2, 2, 22, 20), (2, 1, 8, 7)]),
        ({"scale_factor": (1, 1, 2, 4), "n_levels": 3}, [(2, 4, 64, 60), (2, 4, 32, 15), (2, 4, 16, 4)]),
        ({"scale_factor": [(1, 1, 2, 2), (1, 4, 4, 5)]}, [(2, 4, 64, 60), (2, 4, 32, 30), (2, 1, 8, 6)]),
        ({"scale_factor": [2, (1, 4, 4, 5)]}, [(2, 4, 64, 60), (2, 2, 32, 30), (2, 1, 8, 6)]),
        ({"scale_factor": [(1, 1, 2, 2), (1, 4, 4, 5)], "n_levels": 3}, [(2, 4, 64, 60), (2, 4, 32, 30), (2, 1, 8, 6)]),
        ({"scale_factor": 1}, [(2, 4, 64, 60)]),
        ({"scale_factor": 1000, "n_levels": 2}, [(2, 4, 64, 60), (2, 1, 1, 1)]),
    ],
)
def test_factors_are_one_for_space_or_one_per_axis_or_such_per_level(
    options: dict[str, Any], expected: list[tuple[int, ...]], folder: Path
) -> None:
    made = write_image(np.zeros((2, 4, 64, 60), np.uint8), folder / "i.zarr", axes="czyx", **options)
    assert [level.shape for level in made.levels] == expected


# Axes, places, units


@synchronous
@pytest.mark.parametrize(("ndim", "axes"), [(2, "yx"), (3, "zyx"), (4, "czyx"), (5, "tczyx")])
def test_axes_are_told_by_their_number(ndim: int, axes: str, folder: Path) -> None:
    assert write_image(np.zeros((2,) * ndim, np.uint8), folder / "i.zarr").axes == axes


@synchronous
@pytest.mark.parametrize("axes", ["tzyx", "TCYX", ("t", "z", "y", "x")])
def test_axes_may_be_given(axes: Any, folder: Path) -> None:
    made = write_image(np.zeros((2, 2, 4, 4), np.uint8), folder / "i.zarr", axes=axes)
    assert made.axes == "".join(axes).lower()
    kinds = {"t": "time", "c": "channel"}
    told = [(axis["name"], axis["type"]) for axis in ome(folder / "i.zarr")["multiscales"][0]["axes"]]
    assert told == [(name, kinds.get(name, "space")) for name in made.axes or ""]


@synchronous
@pytest.mark.parametrize("shape", [(), (3,), (2,) * 6])
def test_images_of_other_than_2_to_5_axes_are_refused(shape: tuple[int, ...], folder: Path) -> None:
    with pytest.raises(GeometryError, match="2 to 5 axes"):
        write_image(np.zeros(shape, np.uint8), folder / "i.zarr")
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize("axes", ["yx", "xyz", "zxy", "yyx", "qyx", "zyxc", "ctz", ""])
def test_axes_that_ome_zarr_does_not_know_are_refused(axes: str, folder: Path) -> None:
    with pytest.raises(GeometryError):
        write_image(np.zeros((3, 4, 5), np.uint8), folder / "i.zarr", axes=axes)
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize(
    ("given_scale", "expected"),
    [
        (0.5, (1, 1, 0.5, 0.5, 0.5)),
        (np.float32(0.5), (1, 1, 0.5, 0.5, 0.5)),
        (np.array(3), (1, 1, 3, 3, 3)),
        (2, (1, 1, 2, 2, 2)),
        ((60, 1, 2, 0.5, 0.25), (60, 1, 2, 0.5, 0.25)),
        (np.array([60, 1, 2, 0.5, 0.25]), (60, 1, 2, 0.5, 0.25)),
        (None, (1,) * 5),
    ],
)
def test_one_number_counts_for_the_axes_of_space(given_scale: Any, expected: tuple[float, ...], folder: Path) -> None:
    image = np.zeros((1, 1, 2, 4, 4), np.uint8)
    made = write_image(image, folder / "i.zarr", scale=given_scale, translation=given_scale, n_levels=2)
    assert made.scale == expected
    offset = (0,) * 5 if given_scale is None else (0, 0, *expected[2:]) if np.ndim(given_scale) == 0 else expected
    assert made.translation == offset


@synchronous
@pytest.mark.parametrize(
    "scale", [0, -1, math.nan, math.inf, (1, 0), (1, -2.0), (1, math.nan), (1, 2, 3), (), True, "ab", (None, 1), 1j]
)
def test_scales_that_are_none_are_refused(scale: Any, folder: Path) -> None:
    with pytest.raises((GeometryError, ParameterError)):
        write_image(np.zeros((4, 4), np.uint8), folder / "i.zarr", scale=scale)
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize("translation", [math.nan, math.inf, (1, math.nan), (1, 2, 3), (1,), "ab", True])
def test_translations_that_are_none_are_refused(translation: Any, folder: Path) -> None:
    with pytest.raises((GeometryError, ParameterError)):
        write_image(np.zeros((4, 4), np.uint8), folder / "i.zarr", translation=translation)
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize("translation", [0, -1, (0, -5.5)])
def test_translations_may_be_of_any_sign(translation: Any, folder: Path) -> None:
    made = write_image(np.zeros((4, 4), np.uint8), folder / "i.zarr", translation=translation)
    assert made.translation == tuple(np.broadcast_to(translation, 2).tolist())


@synchronous
@pytest.mark.parametrize("unit", ["s", "quark", ("um",), ("um", "um", "um"), ("um", "s"), 3])
def test_units_that_are_none_of_an_axis_are_refused(unit: Any, folder: Path) -> None:
    with pytest.raises((GeometryError, ParameterError)):
        write_image(np.zeros((4, 4), np.uint8), folder / "i.zarr", unit=unit)
    assert list(folder.iterdir()) == []


@synchronous
def test_a_length_on_the_axis_of_time_is_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="'t'"):
        write_image(np.zeros((2, 4, 4), np.uint8), folder / "i.zarr", axes="tyx", unit=("um", "um", "um"))


@synchronous
@pytest.mark.parametrize(
    "options",
    [
        {"n_levels": 0},
        {"n_levels": -1},
        {"n_levels": 1.5},
        {"n_levels": True},
        {"scale_factor": 0},
        {"scale_factor": (2,)},
        {"scale_factor": (2, 0)},
        {"scale_factor": 1.5},
        {"scale_factor": [(2, 2), (2, 2)], "n_levels": 2},
        {"scale_factor": [(2, 2), (2, 2, 2)]},
        {"method": "average"},
        {"order": 1},
        {"method": None, "order": 6},
        {"method": None, "anti_aliasing": True},
        {"version": "0.3"},
        {"version": 5},
        {"chunks": 0},
        {"chunks": (4,)},
        {"shards": (3, 4), "chunks": (2, 2)},
        {"compression": "zip"},
        {"channels": ["a", "b"]},
        {"output_component": "../x"},
        {"channel": 3, "level": 0, "channels": ["a", "b", "c"]},
    ],
)
def test_options_that_fit_nothing_are_refused_and_leave_nothing(options: dict[str, Any], folder: Path) -> None:
    with nothing_computed(), pytest.raises(BlockbusterError):
        write_image(noise((600, 600)), folder / "i.zarr", **options)
    assert list(folder.iterdir()) == []


@synchronous
def test_channels_are_not_downsampled(folder: Path) -> None:
    with pytest.raises(GeometryError):
        write_image(
            noise((4, 32, 32)), folder / "i.zarr", axes="cyx", channels=list("abcd"), scale_factor=(2, 2, 2), n_levels=2
        )
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("dtype", ["M8[s]", "U3", "O", "longdouble", [("a", "i4")]])
def test_what_is_no_array_of_numbers_is_refused(dtype: Any, n_levels: int, folder: Path) -> None:
    with pytest.raises(BlockbusterError):
        write_image(np.zeros((4, 4), dtype), folder / "i.zarr", n_levels=n_levels)
    assert list(folder.iterdir()) == []


# Channels and names


@synchronous
@both_versions
def test_channels_and_name_are_kept(version: Any, folder: Path) -> None:
    channels = ["DNA", {"label": "actin", "color": "123456", "window": {"min": 0, "max": 9, "start": 1, "end": 5}}]
    made = write_image(
        noise((2, 20, 30)), folder / "i.zarr", axes="cyx", version=version, channels=channels, name="cells"
    )
    assert made.channel_names == ("DNA", "actin")
    assert made.name == "cells"
    first, second = ome(folder / "i.zarr")["omero"]["channels"]
    assert first["label"] == "DNA"
    assert int(first["color"], 16) > 0
    assert {key: second[key] for key in channels[1]} == channels[1]  # type: ignore[index]
    assert kind_of(folder / "i.zarr") == "Image"
    (node,) = read_elsewhere(folder / "i.zarr").values()
    assert node.metadata["channel_names"] == ["DNA", "actin"]
    assert node.metadata["contrast_limits"][1] == [1, 5]
    assert open_image(folder / "i.zarr", channel="actin").shape == (20, 30)


@synchronous
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int8", "int64", "uint64", "float16", "float32", "bool"])
@pytest.mark.parametrize("kind", ["noise", "extremes", "flat", "nan"])
def test_windows_of_channels_lie_within_the_data(dtype: str, kind: str, folder: Path) -> None:
    image = noise((2, 300, 280)).astype(dtype)
    if kind == "extremes":
        limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else None
        low, high = (limits.min, limits.max) if limits else (0, 1) if dtype == "bool" else _limits(dtype)
        image = np.array([[[low, high]], [[high, low]]], dtype)
    elif kind == "flat" and dtype != "bool":
        image = np.full((2, 5, 5), 3, dtype)
    elif kind == "nan" and np.dtype(dtype).kind == "f":
        image[:, :50] = np.nan
        image[0, 60] = np.inf
    write_image(image, folder / "i.zarr", axes="cyx", channels=["a", "b"])
    for number, channel in enumerate(ome(folder / "i.zarr")["omero"]["channels"]):
        window = channel["window"]
        values = image[number][np.isfinite(image[number])]
        assert float(values.min()) <= window["start"] <= window["end"] <= float(values.max())
        assert window["min"] <= window["start"]
        assert window["end"] <= window["max"]
    assert "NaN" not in json.dumps(ome(folder / "i.zarr"))
    assert "Infinity" not in json.dumps(ome(folder / "i.zarr"))


def _limits(dtype: str) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


# How it is stored


@synchronous
def test_chunks_are_moderate_where_none_are_given(folder: Path) -> None:
    write_image(da.zeros((2, 3, 3000, 3000), chunks=-1, dtype="u1"), folder / "i.zarr", axes="tcyx", n_levels=2)
    for name in "01":
        array = zarr.open_array(folder / "i.zarr" / name, mode="r")
        assert array.chunks == (1, 1, 1024, 1024)
        assert array.shards is None


@synchronous
@pytest.mark.parametrize(("source", "expected"), [((64, 96), (64, 96)), ((30, 40), (300, 400))])
def test_chunks_of_the_source_are_kept_if_they_are_moderate(source: Any, expected: Any, folder: Path) -> None:
    write_image(da.zeros((300, 400), chunks=source, dtype="u1"), folder / "i.zarr")
    assert zarr.open_array(folder / "i.zarr" / "0", mode="r").chunks == expected


@synchronous
@both_versions
@pytest.mark.parametrize("chunks", [(16, 32), 16, (500, 500), (1, 37)])
def test_chunks_are_as_given(version: Any, chunks: Any, folder: Path) -> None:
    image = noise((37, 90))
    made = write_image(image, folder / "i.zarr", chunks=chunks, version=version, n_levels=3)
    for name, level in zip("012", made.levels, strict=True):
        array = zarr.open_array(folder / "i.zarr" / name, mode="r")
        wanted = np.broadcast_to(chunks, 2)
        assert array.chunks == tuple(min(c, n) for c, n in zip(wanted, level.shape, strict=True))
    np.testing.assert_array_equal(made.data.compute(), image)


@synchronous
@pytest.mark.parametrize(
    ("chunks", "shards"), [((8, 8), (32, 16)), (8, 64), (None, (32, 32)), ((8, 8), (400, 400)), ((5, 7), (10, 35))]
)
def test_shards_are_as_given(chunks: Any, shards: Any, folder: Path) -> None:
    image = noise((61, 90))
    made = write_image(image, folder / "i.zarr", chunks=chunks, shards=shards, n_levels=5)
    array = zarr.open_array(folder / "i.zarr" / "0", mode="r")
    assert array.shards is not None
    assert all(s % c == 0 for s, c in zip(array.shards, array.chunks, strict=True))
    assert all(have <= want for have, want in zip(array.shards, np.broadcast_to(shards, 2), strict=True))
    before = image
    for level in made.levels[1:]:
        before = reduced(before, (2, 2), "mean")
        np.testing.assert_array_equal(level.compute(), before)
    np.testing.assert_array_equal(made.data.compute(), image)
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
def test_shards_are_refused_for_what_has_none(folder: Path) -> None:
    with pytest.raises(ParameterError, match="shards"):
        write_image(noise((64, 64)), folder / "i.zarr", version="0.4", shards=32, chunks=16)
    assert list(folder.iterdir()) == []


@synchronous
@both_versions
@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", "none", None])
def test_every_compression_gives_the_same_voxels(version: Any, compression: Any, folder: Path) -> None:
    image = noise((64, 64))
    made = write_image(image, folder / "i.zarr", version=version, compression=compression, n_levels=2)
    np.testing.assert_array_equal(made.data.compute(), image)
    compressors = zarr.open_array(folder / "i.zarr" / "1", mode="r").compressors
    assert bool(compressors) == (compression not in ("none", None))


# Sources


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "list", "dask", "zarr", "zarr path", "memory zarr", "opened"])
def test_images_of_every_kind_are_written(kind: str, folder: Path) -> None:
    image = noise((40, 70))
    stored = zarr.create_array(folder / "source.zarr", data=image, chunks=(16, 16))
    before = digest(folder / "source.zarr")
    sources: dict[str, Any] = {
        "numpy": image,
        "list": image.tolist(),
        "dask": da.from_array(image, chunks=((7, 33), (70,))),
        "zarr": stored,
        "zarr path": folder / "source.zarr",
        "memory zarr": zarr.create_array({}, data=image, chunks=(16, 16)),
        "opened": open_image(folder / "source.zarr").data,
    }
    made = write_image(sources[kind], folder / "i.zarr", n_levels=3)
    np.testing.assert_array_equal(made.data.compute(), image)
    np.testing.assert_array_equal(made.levels[2].compute(), reduced(reduced(image, (2, 2), "mean"), (2, 2), "mean"))
    assert digest(folder / "source.zarr") == before
    assert leftovers(folder) == []


def _source(folder: Path, version: Any) -> NDArray[Any]:
    image = noise((2, 3, 30, 40))
    write_image(
        image,
        folder / "source.zarr",
        axes="czyx",
        version=version,
        scale=(1, 3, 0.5, 0.5),
        translation=(0, 1, 2, 3),
        unit="nm",
        channels=["DNA", {"label": "actin", "color": "ABCDEF", "active": False}],
        name="cells",
        n_levels=3,
    )
    return image


@synchronous
@both_versions
@pytest.mark.parametrize("target", ["0.4", "0.5", None])
def test_the_metadata_of_an_ome_zarr_are_kept(version: Any, target: Any, folder: Path) -> None:
    image = _source(folder, version)
    before = digest(folder / "source.zarr")
    made = write_image(folder / "source.zarr", folder / "i.zarr", version=target, n_levels=2)
    np.testing.assert_array_equal(made.data.compute(), image)
    assert made.version == (target or "0.5")
    assert (made.axes, made.scale, made.translation) == ("czyx", (1, 3, 0.5, 0.5), (0, 1, 2, 3))
    assert made.unit == (None, "nanometer", "nanometer", "nanometer")
    assert (made.channel_names, made.name) == (("DNA", "actin"), "cells")
    channel = ome(folder / "i.zarr")["omero"]["channels"][1]
    assert (channel["color"], channel["active"]) == ("ABCDEF", False)
    assert kind_of(folder / "i.zarr") == "Image"
    assert digest(folder / "source.zarr") == before


@synchronous
def test_what_is_given_takes_the_place_of_what_is_known(folder: Path) -> None:
    _source(folder, "0.5")
    made = write_image(
        folder / "source.zarr", folder / "i.zarr", scale=2, unit="mm", channels=["x", "y"], name="n", translation=0
    )
    assert (made.scale, made.translation) == ((1, 2, 2, 2), (0, 0, 0, 0))
    assert made.unit == (None, "millimeter", "millimeter", "millimeter")
    assert (made.channel_names, made.name) == (("x", "y"), "n")


@synchronous
def test_one_channel_of_a_coarser_level_is_written_where_it_lies(folder: Path) -> None:
    _source(folder, "0.4")
    source = open_image(folder / "source.zarr")
    made = write_image(folder / "source.zarr", folder / "i.zarr", channel="actin", level=1)
    np.testing.assert_array_equal(made.data.compute(), source.levels[1][1].compute())
    assert (made.axes, made.scale) == ("zyx", source.scales[1][1:])
    assert made.translation == source.translations[1][1:]
    assert made.channel_names == ("actin",)
    assert ome(folder / "i.zarr")["omero"]["channels"][0]["color"] == "ABCDEF"


@synchronous
@pytest.mark.parametrize("axes", ["cyx", "tyx"])
def test_other_axes_do_not_keep_lengths_where_there_are_none(axes: str, folder: Path) -> None:
    write_image(noise((3, 20, 30)), folder / "source.zarr", axes="zyx", scale=(5, 2, 2), unit="um")
    made = write_image(folder / "source.zarr", folder / "i.zarr", axes=axes)
    assert made.unit == (None, "micrometer", "micrometer")
    assert made.scale[1:] == (2, 2)
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
def test_axes_in_another_order_are_put_in_order(folder: Path) -> None:
    image = noise((20, 30, 3))
    zarr.create_array(folder / "source.zarr", data=image, dimension_names=["y", "x", "c"], chunks=(8, 8, 3))
    made = write_image(folder / "source.zarr", folder / "i.zarr", channels=list("rgb"))
    assert made.axes == "cyx"
    np.testing.assert_array_equal(made.data.compute(), image.transpose(2, 0, 1))
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
@both_versions
def test_a_tiff_keeps_its_calibration(version: Any, folder: Path) -> None:
    image = noise((5, 2, 30, 40))
    tifffile.imwrite(
        folder / "i.ome.tif",
        image,
        metadata={
            "axes": "ZCYX",
            "PhysicalSizeX": 0.25,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "nm",
            "PhysicalSizeZ": 2,
            "PhysicalSizeZUnit": "nm",
            "Channel": {"Name": ["DNA", "actin"]},
        },
    )
    before = digest(folder / "i.ome.tif")
    made = write_image(folder / "i.ome.tif", folder / "i.zarr", version=version, n_levels=2)
    np.testing.assert_array_equal(made.data.compute(), image.transpose(1, 0, 2, 3))
    assert (made.axes, made.scale) == ("czyx", (1, 2, 0.5, 0.25))
    assert made.unit == (None, "nanometer", "nanometer", "nanometer")
    assert made.channel_names == ("DNA", "actin")
    assert kind_of(folder / "i.zarr") == "Image"
    assert digest(folder / "i.ome.tif") == before


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real images beside the checkout")
@synchronous
@both_versions
@pytest.mark.parametrize("name", ["img2d", "img3d"])
def test_real_images_are_written_from_their_tiffs(version: Any, name: str, folder: Path) -> None:
    image = tifffile.imread(DATA / f"{name}.tif")
    axes = "yx" if image.ndim == 2 else "zyx"
    made = write_image(
        DATA / f"{name}.tif", folder / "i.zarr", axes=axes, version=version, scale=0.5, unit="um", n_levels=3
    )
    np.testing.assert_array_equal(made.data.compute(), image)
    np.testing.assert_array_equal(made.levels[1].compute(), reduced(image, (2,) * image.ndim, "mean"))
    assert kind_of(folder / "i.zarr") == "Image"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_scheduler_writes_the_same_bytes(version: Any, scheduler: str, folder: Path) -> None:
    image = noise((3, 61, 90))
    stored = zarr.create_array(folder / "source.zarr", data=image, chunks=(1, 16, 16), compressors=None)
    before = digest(folder / "source.zarr")
    options: Any = {"axes": "cyx", "channels": list("abc"), "n_levels": 3, "chunks": (1, 20, 20), "version": version}
    write_image(stored, folder / "i.zarr", **options)
    written = digest(folder / "i.zarr")
    with dask.config.set(scheduler="synchronous"):
        write_image(stored, folder / "i.zarr", **options, overwrite=True)
    assert digest(folder / "i.zarr") == written
    assert digest(folder / "source.zarr") == before
    assert leftovers(folder) == []


# Into stores


@synchronous
@both_versions
def test_an_image_may_be_a_component_of_a_store(version: Any, folder: Path) -> None:
    image = noise((20, 30))
    for component in ("a", "b/c"):
        made = write_image(image, folder / "s.zarr", output_component=component, version=version)
        assert made.path == str(folder / "s.zarr" / component)
        np.testing.assert_array_equal(made.data.compute(), image)
    # Every folder is a group of one format, and the store lists all of them.
    members = dict(zarr.open_group(folder / "s.zarr", mode="r").members(max_depth=None))
    assert {"a", "a/0", "b", "b/c", "b/c/0"} <= set(members)
    assert {member.metadata.zarr_format for member in members.values()} == {2 if version == "0.4" else 3}


@synchronous
@pytest.mark.parametrize(("there", "version"), [(2, "0.4"), (3, "0.5")])
def test_an_image_takes_the_version_of_its_store(there: Any, version: str, folder: Path) -> None:
    zarr.create_group(folder / "s.zarr", zarr_format=there, attributes={"mine": 1})
    assert write_image(noise((20, 30)), folder / "s.zarr", output_component="a").version == version
    assert zarr.open_group(folder / "s.zarr", mode="r").attrs["mine"] == 1


@synchronous
@pytest.mark.parametrize(("there", "version"), [(3, "0.4"), (2, "0.5")])
def test_a_store_of_one_format_takes_no_image_of_the_other(there: Any, version: Any, folder: Path) -> None:
    zarr.create_group(folder / "s.zarr", zarr_format=there)
    before = digest(folder / "s.zarr")
    with pytest.raises(BlockbusterError):
        write_image(noise((20, 30)), folder / "s.zarr", output_component="a", version=version)
    assert digest(folder / "s.zarr") == before
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_a_consolidated_store_tells_of_the_new_image(version: Any, folder: Path) -> None:
    zarr.create_group(folder / "s.zarr", zarr_format=2 if version == "0.4" else 3)
    consolidate(folder / "s.zarr")
    write_image(noise((20, 30)), folder / "s.zarr", output_component="a", n_levels=2)
    store = zarr.open_consolidated(folder / "s.zarr")
    assert store["a/1"].shape == (10, 15)
    assert ome_attributes(store["a"])["multiscales"]


@synchronous
@both_versions
def test_an_image_that_is_there_is_kept_unless_it_is_to_be_replaced(version: Any, folder: Path) -> None:
    write_image(noise((50, 60)), folder / "i.zarr", version=version, n_levels=4, name="first")
    before = digest(folder / "i.zarr")
    with pytest.raises(OutputExistsError):
        write_image(noise((20, 30)), folder / "i.zarr")
    assert digest(folder / "i.zarr") == before
    other = noise((2, 20, 30), seed=1)
    made = write_image(other, folder / "i.zarr", axes="cyx", n_levels=2, overwrite=True)
    np.testing.assert_array_equal(made.data.compute(), other)
    assert made.version == version
    assert made.name == ""
    assert sorted(p.name for p in (folder / "i.zarr").iterdir() if not p.name.startswith((".", "zarr"))) == ["0", "1"]
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize(("old", "new"), [("0.4", "0.5"), ("0.5", "0.4")])
def test_an_image_may_be_replaced_by_one_of_another_version(old: Any, new: Any, folder: Path) -> None:
    write_image(noise((50, 60)), folder / "i.zarr", version=old)
    made = write_image(noise((50, 60)), folder / "i.zarr", version=new, overwrite=True)
    assert made.version == new
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
@pytest.mark.parametrize("beside", ["labels", "array", "file"])
def test_an_image_with_other_things_in_its_group_is_not_replaced(beside: str, folder: Path) -> None:
    write_image(noise((50, 60)), folder / "i.zarr")
    if beside == "labels":
        write_labels(np.ones((50, 60), np.uint8), folder / "i.zarr", "cells")
    elif beside == "array":
        zarr.open_group(folder / "i.zarr").create_array("mine", data=noise((3, 3)))
    else:
        (folder / "i.zarr" / "notes.txt").write_text("do not lose me")
    before = digest(folder / "i.zarr")
    with pytest.raises(OutputExistsError, match=r"labels|mine|notes"):
        write_image(noise((50, 60), seed=1), folder / "i.zarr", overwrite=True)
    assert digest(folder / "i.zarr") == before
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("component", ["", "0", "0/copy"])
def test_an_image_is_not_written_over_itself(component: str, overwrite: bool, folder: Path) -> None:
    write_image(noise((50, 60)), folder / "i.zarr")
    before = digest(folder / "i.zarr")
    with pytest.raises((OutputError, OutputExistsError)):
        write_image(folder / "i.zarr", folder / "i.zarr", output_component=component, overwrite=overwrite)
    assert digest(folder / "i.zarr") == before
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("there", ["file", "folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_not_written_over(there: str, overwrite: bool, folder: Path) -> None:
    if there == "folder":
        (folder / "i.zarr").mkdir()
    (folder / "i.zarr" / "notes.txt" if there == "folder" else folder / "i.zarr").write_text("mine")
    before = digest(folder / "i.zarr")
    with pytest.raises(BlockbusterError):
        write_image(noise((50, 60)), folder / "i.zarr", overwrite=overwrite)
    assert digest(folder / "i.zarr") == before
    assert leftovers(folder) == []


@synchronous
def test_a_failing_tile_leaves_no_image_and_a_second_run_finishes_it(folder: Path) -> None:
    image = noise((64, 64))
    zarr.create_array(folder / "source.zarr", data=image, chunks=(32, 32), compressors=None)
    chunk = folder / "source.zarr" / "c" / "1" / "1"
    kept = chunk.read_bytes()
    chunk.write_bytes(b"torn")
    options: Any = {"chunks": (16, 16), "n_levels": 2, "compression": "zstd"}
    with pytest.raises(BlockbusterError):
        write_image(folder / "source.zarr", folder / "i.zarr", **options)
    assert not (folder / "i.zarr").exists()
    chunk.write_bytes(kept)
    made = write_image(folder / "source.zarr", folder / "i.zarr", **options)
    np.testing.assert_array_equal(made.data.compute(), image)


@synchronous
def test_a_second_run_writes_the_same_bytes(folder: Path) -> None:
    write_image(noise((64, 90)), folder / "i.zarr", n_levels=3, channels=["x"])
    before = digest(folder / "i.zarr")
    write_image(noise((64, 90)), folder / "i.zarr", n_levels=3, channels=["x"], overwrite=True)
    assert digest(folder / "i.zarr") == before
    write_image(noise((64, 90)), folder / "i.zarr", n_levels=3, channels=["x"], resume=True)
    assert digest(folder / "i.zarr") == before


@synchronous
def test_an_image_that_cannot_be_opened_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ImageError):
        write_image(folder / "none.zarr", folder / "i.zarr")
    write_ome_zarr(folder / "source.zarr", [noise((2, 8, 8))], "cyx", channels=["a", "b"])
    for options in ({"channel": 2}, {"channel": "c"}, {"level": 1}):
        with pytest.raises(ImageError):
            write_image(folder / "source.zarr", folder / "i.zarr", **options)
    assert [p.name for p in folder.iterdir()] == ["source.zarr"]


# Exact counts


def _count_chunks(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """How often the chunks of every local array are read and written, through the ordinary codecs of zarr."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for module in (blockbuster.stores, blockbuster.outputs):
        monkeypatch.setattr(module, "with_fast_codecs", lambda array: array)
    get, put = LocalStore.get, LocalStore.set

    def counted_get(store: LocalStore, key: str, *args: Any, **options: Any) -> Any:
        reads[_chunk(store, key)] += 1
        return get(store, key, *args, **options)

    def counted_put(store: LocalStore, key: str, *args: Any, **options: Any) -> Any:
        writes[_chunk(store, key)] += 1
        return put(store, key, *args, **options)

    monkeypatch.setattr(LocalStore, "get", counted_get)
    monkeypatch.setattr(LocalStore, "set", counted_put)
    return reads, writes


def _chunk(store: LocalStore, key: str) -> str:
    """The level and the place of a chunk; the same for all that is no chunk."""
    parts = f"{store.root}/{key}".split("/")
    if not parts[-1].isdigit():
        return "metadata"
    return "/".join(parts[[n for n, part in enumerate(parts) if ".zarr" in part or part.endswith(".partial")][-1] :])


@synchronous
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_each_chunk_is_read_once_and_written_once(
    compression: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    image = noise((40, 100, 70)) + 1
    source = write_image(image, folder / "source.zarr", chunks=(8, 16, 16), compression="lz4", n_levels=1)
    reads, writes = _count_chunks(monkeypatch)
    copied: list[str] = []
    monkeypatch.setattr(
        "blockbuster.raw.shutil.copyfile",
        lambda a, b, original=shutil.copyfile: (copied.append(str(a)), original(a, b))[1],
    )
    write_image(folder / "source.zarr", folder / "i.zarr", chunks=(8, 16, 16), compression=compression, n_levels=3)
    n_chunks = [math.prod(-(-n // c) for n, c in zip(shape, (8, 16, 16), strict=True)) for shape in _halved(3, source)]
    by_level: dict[str, Counter[int]] = {"source": Counter(), "0": Counter(), "1": Counter(), "2": Counter()}
    written: dict[str, Counter[int]] = {"0": Counter(), "1": Counter(), "2": Counter()}
    for key, count in reads.items():
        if key != "metadata":
            first, level = key.split("/")[:2]
            by_level["source" if first == "source.zarr" else level][count] += 1
    for key, count in writes.items():
        if key != "metadata":
            written[key.split("/")[1]][count] += 1
    # Chunks that are stored in the same way are copied as files.
    is_raw = compression == "lz4"
    assert by_level["source"] == ({} if is_raw else {1: n_chunks[0]})
    assert len(copied) == len(set(copied)) == (n_chunks[0] if is_raw else 0)
    assert written["0"] == ({} if is_raw else {1: n_chunks[0]})
    assert by_level["0"] == {1: n_chunks[0]}
    assert written["1"] == {1: n_chunks[1]}
    assert by_level["1"] == {1: n_chunks[1]}
    assert written["2"] == {1: n_chunks[2]}


def _halved(n_levels: int, image: Any) -> list[tuple[int, ...]]:
    return [tuple(-(-n // 2**k) for n in image.shape) for k in range(n_levels)]


# Memory

_PEAK = """
import sys
import dask
import blockbuster
from tests.drivers.peak import resident

if __name__ == "__main__":
    with dask.config.set(scheduler="threads", num_workers=int(sys.argv[3])):
        blockbuster.write_image(sys.argv[1], sys.argv[2], compression="zstd", method=sys.argv[4], n_levels=4)
    print(resident("VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("method", ["mean", "mode-nonzero"])
def test_peak_memory_is_that_of_tiles_for_a_volume_8_times_larger(n_threads: int, method: str, folder: Path) -> None:
    block = noise((8, 8, 8)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    peaks = []
    for side in (192, 384):
        array = zarr.create_array(folder / f"{side}.zarr", shape=(side,) * 3, chunks=(64,) * 3, dtype="uint16")
        for index in itertools.product(range(side // 64), repeat=3):
            array[tuple(slice(i * 64, (i + 1) * 64) for i in index)] = block
        script = [str(folder / f"{side}.zarr"), str(folder / f"out-{side}.zarr"), str(n_threads), method]
        # What is freed goes back to the system at once: the peak is that of what is in use.
        environ = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        shutil.rmtree(folder / f"out-{side}.zarr")
    # One volume in memory would add 99 MB. The small one has too few tiles for both threads to be at the largest.
    assert peaks[1] < (1.1 * peaks[0] if n_threads == 1 else peaks[0] + 40e6)


@synchronous
def test_a_copy_of_a_written_image_is_the_image(folder: Path) -> None:
    write_image(noise((2, 20, 30)), folder / "i.zarr", axes="cyx", channels=["a", "b"], unit="um", n_levels=2)
    copy(folder / "i.zarr", folder / "copy.zarr")
    assert kind_of(folder / "copy.zarr") == "Image"
    first, second = open_image(folder / "i.zarr"), open_image(folder / "copy.zarr")
    assert (first.scales, first.translations, first.unit) == (second.scales, second.translations, second.unit)
    assert first.channel_names == second.channel_names
