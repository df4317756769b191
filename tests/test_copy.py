"""`copy`: the same voxels in another place, form or dtype."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

import blockbuster
from blockbuster import (
    BlockbusterError,
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
    ResumeError,
    TileError,
    copy,
)
from blockbuster.casting import make_cast
from blockbuster.graph import PassesGraph
from tests.helpers import CountingStore, digest, leftovers, nothing_computed, write_ome_zarr
from tests.strategies import FLOATS, INTEGERS, chunkings, images, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")
fewer = settings(max_examples=max(settings.default.max_examples // 3, 1))  # type: ignore[union-attr]

METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def image() -> NDArray[np.uint16]:
    return np.random.default_rng(6).integers(1, 60000, (21, 34)).astype(np.uint16)


def stored(path: Path, values: NDArray[Any], **form: Any) -> Path:
    options = {"shape": values.shape, "dtype": values.dtype, "chunks": (8, 8), **form}
    zarr.create_array(path, **options)[...] = values
    return path


def opened(path: Path) -> zarr.Array[Any]:
    return zarr.open_array(path, mode="r")


def bits(values: Any) -> tuple[Any, ...]:
    """Shape, dtype and bytes, so that NaN and -0.0 count."""
    array = np.asarray(values)
    native = array.astype(array.dtype.newbyteorder("="))
    return native.shape, native.dtype, native.tobytes()


def chunk_files(path: Path) -> dict[str, bytes]:
    """What is stored of an array, by the names of its files."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name not in METADATA)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def states(path: Path) -> dict[str, tuple[int, int]]:
    """Which files are there, and when they were written."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


# The same voxels


def big_endian(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder(">"))


SOURCES: dict[str, Callable[[st.DataObject, NDArray[Any], Path], Any]] = {
    "numpy": lambda _data, values, _path: values,
    "numpy, Fortran order": lambda _data, values, _path: np.asfortranarray(values),
    "numpy, backwards": lambda _data, values, _path: values[::-1].copy()[::-1],
    "numpy, big-endian": lambda _data, values, _path: big_endian(values),
    "dask": lambda data, values, _path: da.from_array(values, chunks=data.draw(chunkings(values.shape))),
    "dask, computed": lambda data, values, _path: da.from_array(
        values.view(np.uint8).reshape(*values.shape, -1), chunks=(*data.draw(chunkings(values.shape)), -1)
    ).map_blocks(lambda b: b.copy().view(values.dtype)[..., 0], dtype=values.dtype, drop_axis=values.ndim),
    "zarr path": lambda data, values, path: str(written(data, values, path)),
    "zarr array": lambda data, values, path: opened(written(data, values, path)),
    "zarr in memory": lambda data, values, path: written(data, values, MemoryStore()),
    "dask from zarr": lambda data, values, path: da.from_zarr(opened(written(data, values, path))),
}


def written(data: st.DataObject, values: NDArray[Any], place: Any) -> Any:
    chunks = data.draw(tile_shapes(values.shape), "source chunks")
    form: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {},
                {"shards": tuple(2 * c for c in chunks)},
                {"fill_value": 1},
                {"zarr_format": 2},
                {"zarr_format": 2, "order": "F"},
                {"zarr_format": 2, "compressors": numcodecs.Zlib(1), "fill_value": 1},
            ]
        ),
        "form",
    )
    dtype = data.draw(st.sampled_from([values.dtype, values.dtype.newbyteorder(">")]), "stored dtype")
    array = zarr.create_array(place, shape=values.shape, chunks=chunks, dtype=dtype, **form)
    array[...] = values
    return place if isinstance(place, Path) else array


@st.composite
def targets(draw: st.DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    """Ways to store a copy, and tiles that fit them."""
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["zarr_format"] = draw(st.sampled_from([2, 3]))
    if draw(st.booleans()):
        options["chunks"] = draw(tile_shapes(shape))
        unit = options["chunks"]
        if options.get("zarr_format") == 3 and draw(st.booleans()):
            unit = options["shards"] = tuple(c * draw(st.integers(1, 3)) for c in unit)
        if draw(st.booleans()):
            options["shards"] = options.get("shards")
            options["tile_shape"] = tuple(u * draw(st.integers(1, 3)) for u in unit)
    if draw(st.booleans()):
        options["compression"] = draw(st.sampled_from(["lz4", "zstd", "gzip", "none"]))
    return options


@st.composite
def voxels(draw: st.DrawFn) -> NDArray[Any]:
    shape = draw(shapes(1, 5))
    dtype = draw(st.sampled_from([*INTEGERS, *FLOATS, "complex64"]))
    if dtype == "complex64":
        values = np.asarray(draw(images(shape, ["float32"])))
        with np.errstate(invalid="ignore"):
            return values + np.complex64(1j) * values[::-1]
    return draw(images(shape, [dtype]))


@synchronous
@given(data=st.data())
def test_a_copy_has_the_same_voxels(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("copy")
    values = data.draw(voxels())
    source = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)), "source")](data, values, folder / "a.zarr")
    options = data.draw(targets(values.shape), "options")
    expected = values
    if data.draw(st.booleans(), "masked"):
        mask = data.draw(images(values.shape, ["bool"]), "mask")
        chunks = data.draw(chunkings(values.shape))
        options["mask"] = data.draw(st.sampled_from([mask, da.from_array(mask, chunks=chunks), mask.astype("f4")]))
        expected = np.where(mask, values, np.zeros((), values.dtype))
    before = digest(folder)
    made = copy(source, folder / "b.zarr", verify=data.draw(st.booleans(), "verify"), **options)
    assert bits(made.compute()) == bits(expected)
    assert bits(opened(folder / "b.zarr")[...]) == bits(expected)
    array = opened(folder / "b.zarr")
    for name in ("chunks", "shards"):
        assert name not in options or getattr(array, name) == options[name]
    assert options.get("zarr_format") in (None, array.metadata.zarr_format)
    assert {name: d for name, d in digest(folder).items() if "b.zarr" not in name} == before
    assert leftovers(folder) == []
    shutil.rmtree(folder)


@synchronous
@fewer
@given(data=st.data())
def test_a_copy_in_memory_has_the_same_voxels(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("copy")
    values = data.draw(voxels())
    source = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)), "source")](data, values, folder / "a.zarr")
    options: dict[str, Any] = {"tile_shape": data.draw(st.none() | tile_shapes(values.shape))}
    expected = values
    if data.draw(st.booleans(), "masked"):
        mask = options["mask"] = data.draw(images(values.shape, ["bool"]), "mask")
        expected = np.where(mask, values, np.zeros((), values.dtype))
    with nothing_computed():
        lazy = copy(source, **options)
    assert bits(lazy.compute()) == bits(expected)
    made = copy(source, compute=True, **options)
    assert isinstance(made, np.ndarray)
    assert bits(made) == bits(expected)
    assert not (isinstance(source, np.ndarray) and np.shares_memory(made, source))
    shutil.rmtree(folder)


@synchronous
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        pytest.param({}, id="plain"),
        pytest.param({"rowsperstrip": 4}, id="strips"),
        pytest.param({"tile": (16, 16)}, id="tiled"),
        pytest.param({"tile": (16, 16), "compression": "zlib", "predictor": True}, id="tiled, compressed"),
        pytest.param({"compression": "zlib"}, id="compressed"),
        pytest.param({"byteorder": ">"}, id="big-endian"),
        pytest.param({"bigtiff": True, "ome": True}, id="OME-TIFF"),
    ],
)
def test_a_copy_of_a_tiff_has_the_same_voxels(form: dict[str, Any], masked: bool, folder: Path) -> None:
    values = np.random.default_rng(1).integers(0, 60000, (3, 37, 45)).astype(np.uint16)
    container = {name: form[name] for name in ("byteorder", "bigtiff", "ome") if name in form}
    with tifffile.TiffWriter(folder / "a.tif", **container) as writer:
        writer.write(
            values,
            photometric="minisblack",
            metadata={"axes": "ZYX"},
            **{name: value for name, value in form.items() if name not in container},
        )
    mask = np.zeros(values.shape, bool)
    mask[:, 5:20, 3:] = True
    options = {"mask": mask} if masked else {}
    before = digest(folder)
    made = copy(folder / "a.tif", folder / "b.zarr", chunks=(2, 10, 16), verify=True, **options)
    np.testing.assert_array_equal(made.compute(), np.where(mask, values, 0) if masked else values)
    assert opened(folder / "b.zarr").metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]
    assert before.items() <= digest(folder).items()


@synchronous
def test_one_channel_or_level_of_an_image_is_copied(folder: Path) -> None:
    levels = [np.random.default_rng(n).integers(0, 99, (2, 20 >> n, 30 >> n)).astype(np.uint8) for n in range(2)]
    path = write_ome_zarr(folder / "i.zarr", levels, "cyx", channels=["DNA", "actin"], chunks=(1, 8, 8))
    for options, expected in [
        ({"channel": 1}, levels[0][1]),
        ({"channel": "DNA"}, levels[0][0]),
        ({"level": 1}, levels[1]),
        ({"level": 1, "channel": "actin"}, levels[1][1]),
        ({"level": 0}, levels[0]),
    ]:
        chosen: dict[str, Any] = options
        made = copy(path, folder / "o.zarr", overwrite=True, **chosen)
        np.testing.assert_array_equal(made.compute(), expected)
        np.testing.assert_array_equal(copy(path, compute=True, **chosen), expected)
        assert opened(folder / "o.zarr").chunks == (1, 8, 8)[-expected.ndim :]


@synchronous
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "zarr v2"])
def test_an_image_without_voxels_is_copied(kind: str, shape: tuple[int, ...], folder: Path) -> None:
    source: Any = np.zeros(shape, np.uint8)
    if kind == "dask":
        source = da.zeros(shape, chunks=2, dtype=np.uint8)
    elif kind != "numpy":
        chunks = (2,) * len(shape)
        source = stored(folder / "a.zarr", source, chunks=chunks, zarr_format=2 if kind == "zarr v2" else 3)
    for number, options in enumerate([{}, {"verify": True, "dtype": "uint16"}, {"mask": np.ones(shape, bool)}]):
        chosen: dict[str, Any] = options
        made = copy(source, folder / f"{number}.zarr", **chosen).compute()
        assert made.shape == shape
        assert made.dtype == chosen.get("dtype", np.uint8)
        chosen.pop("verify", None)
        assert copy(source, compute=True, **chosen).shape == shape
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_a_single_value_is_copied_or_refused_in_the_same_way_everywhere(kind: str, folder: Path) -> None:
    value = np.array(7, np.uint16)
    source: Any = {"numpy": value, "dask": da.from_array(value)}.get(kind)
    if source is None:
        source = zarr.create_array(folder / "a.zarr", data=value)
    outcomes = []
    for call in (
        lambda: copy(source, folder / "b.zarr").compute(),
        lambda: copy(source).compute(),
        lambda: copy(source, compute=True),
    ):
        try:
            outcomes.append(int(call()))
        except GeometryError as error:
            outcomes.append(str(error))
    assert len(set(outcomes)) == 1
    assert outcomes[0] == 7 or "no axes" in str(outcomes[0])
    assert leftovers(folder) == []


@synchronous
def test_large_tiles_are_read_in_parts(image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.tilewise.PART", 100)
    source = stored(folder / "a.zarr", image, chunks=(5, 9), shards=(10, 18))
    mask = image % 3 == 0
    for name, expected in [("b.zarr", image), ("c.zarr", np.where(mask, image, 0))]:
        chosen: dict[str, Any] = {} if name == "b.zarr" else {"mask": mask}
        np.testing.assert_array_equal(copy(source, compute=True, **chosen), expected)
        made = copy(source, folder / name, chunks=(7, 8), shards=None, verify=True, **chosen)
        np.testing.assert_array_equal(made.compute(), expected)


# What is kept


FORMS: list[Any] = [
    pytest.param({}, id="v3"),
    pytest.param({"shards": (16, 16)}, id="v3, shards"),
    pytest.param({"shards": (16, 24), "compressors": GzipCodec(), "fill_value": 3}, id="v3, shards, gzip, fill value"),
    pytest.param({"compressors": None}, id="v3, not compressed"),
    pytest.param({"compressors": BloscCodec(cname="zstd")}, id="v3, Blosc"),
    pytest.param({"compressors": ZstdCodec(level=9, checksum=True)}, id="v3, Zstd"),
    pytest.param({"serializer": BytesCodec(endian="big")}, id="v3, big-endian"),
    pytest.param({"filters": [TransposeCodec(order=(1, 0))]}, id="v3, transposed"),
    pytest.param({"dimension_names": ["row", "column"]}, id="v3, dimension names"),
    pytest.param({"chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v3, keys of v2"),
    pytest.param({"dtype": "f4", "fill_value": np.nan}, id="v3, NaN as fill value"),
    pytest.param({"zarr_format": 2}, id="v2"),
    pytest.param({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v2, dots"),
    pytest.param({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}, id="v2, slashes"),
    pytest.param({"zarr_format": 2, "order": "F", "dtype": ">u2"}, id="v2, Fortran order, big-endian"),
    pytest.param({"zarr_format": 2, "filters": [numcodecs.Delta("u2")], "compressors": numcodecs.LZ4()}, id="Delta"),
    pytest.param({"zarr_format": 2, "dtype": "f4", "fill_value": np.nan}, id="v2, NaN as fill value"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.Blosc("zstd", 3, -1)}, id="v2, Blosc"),
]  # fmt: skip


def with_gaps(path: Path, image: NDArray[Any], **form: Any) -> Path:
    """An array of which some chunks are stored, with attributes."""
    array = zarr.create_array(path, **{"shape": image.shape, "dtype": image.dtype, "chunks": (8, 8), **form})
    array[:8, :] = image[:8]
    array[16:, 24:] = image[16:, 24:]
    array.attrs.update({"unit": "um", "nested": {"a": [1, None, "µ"]}})
    return path


@synchronous
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verify", [False, True])
def test_by_default_everything_is_kept(verify: bool, form: dict[str, Any], image: NDArray[Any], folder: Path) -> None:
    source = with_gaps(folder / "a.zarr", image, **form)
    copy(source, folder / "b.zarr", verify=verify)
    assert chunk_files(folder / "b.zarr") == chunk_files(source)
    one, other = (opened(path).metadata.to_dict() for path in (source, folder / "b.zarr"))
    told: Any = other["attributes"]
    assert told.pop("blockbuster")["operation"] == "copy"
    np.testing.assert_equal(other, one)
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], opened(source)[...])


@synchronous
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"mask": True}, id="mask"),
        pytest.param({"chunks": (5, 9)}, id="chunks"),
        pytest.param({"compression": "zstd"}, id="compression"),
        pytest.param({"dtype": "float64"}, id="dtype"),
        pytest.param({"zarr_format": 2, "shards": None}, id="format 2"),
        pytest.param({"zarr_format": 3, "chunks": (4, 8)}, id="format 3"),
    ],
)
def test_arrays_of_every_form_are_copied_to_others(
    options: dict[str, Any], form: dict[str, Any], image: NDArray[Any], folder: Path
) -> None:
    source = with_gaps(folder / "a.zarr", image, **form)
    expected = opened(source)[...]
    if "mask" in options:
        mask = image % 2 == 0
        options = {"mask": mask}
        expected = np.where(mask, expected, 0)
    made = copy(source, folder / "b.zarr", verify=True, **options)
    np.testing.assert_array_equal(made.compute(), expected)
    assert {"unit": "um", "nested": {"a": [1, None, "µ"]}}.items() <= opened(folder / "b.zarr").attrs.asdict().items()


@synchronous
@pytest.mark.parametrize("name", ["name", "shape", "dtype", "encoding", "self", "region", "attributes", "path"])
def test_attributes_of_any_name_are_kept(name: str, image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image, attributes={name: "mine"})
    copy(source, folder / "b.zarr")
    assert opened(folder / "b.zarr").attrs[name] == "mine"


@synchronous
def test_a_copy_of_a_copy_tells_of_its_own_run(image: NDArray[Any], folder: Path) -> None:
    copy(stored(folder / "a.zarr", image), folder / "b.zarr")
    copy(folder / "b.zarr", folder / "c.zarr")
    runs = [opened(folder / name).attrs["blockbuster"]["run"] for name in ("b.zarr", "c.zarr")]
    assert len(set(runs)) == 2


@synchronous
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_copy_within_a_store_is_found_from_its_root(zarr_format: Any, image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image, zarr_format=zarr_format)
    copy(source, folder / "new.zarr", output_component="x/y")
    group = zarr.open_group(folder / "new.zarr", mode="r")
    np.testing.assert_array_equal(group["x/y"][...], image)
    copy(image, folder / "other.zarr", output_component="x/y", zarr_format=zarr_format)
    np.testing.assert_array_equal(zarr.open_group(folder / "other.zarr", mode="r")["x/y"][...], image)


@synchronous
@pytest.mark.parametrize("there", [2, 3])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("by_option", [False, True])
def test_a_store_of_another_format_takes_a_copy_that_is_found_or_refuses_it(
    by_option: bool, zarr_format: Any, there: Any, image: NDArray[Any], folder: Path
) -> None:
    store = folder / "s.zarr"
    zarr.create_group(store, zarr_format=there)
    options = {"zarr_format": zarr_format} if by_option else {}
    source = image if by_option else stored(folder / "a.zarr", image, zarr_format=zarr_format)
    with contextlib.suppress(OutputError, OutputExistsError, ParameterError):
        copy(source, store, output_component="x", **options)
        np.testing.assert_array_equal(zarr.open_group(store, mode="r")["x"][...], image)
        return
    assert zarr_format != there
    assert not (store / "x").exists()
    assert leftovers(folder) == []


# Chunks as they are


def break_chunk(path: Path, key: str) -> bytes:
    """Put something into the place of a chunk that no codec can read."""
    (path / key).write_bytes(b"this is no chunk" * 3)
    return (path / key).read_bytes()


@synchronous
@pytest.mark.parametrize(
    ("form", "key"),
    [
        ({}, "c/1/2"),
        ({"shards": (16, 16)}, "c/1/1"),
        ({"zarr_format": 2}, "1.2"),
        ({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}, "1/2"),
    ],
)
def test_chunks_that_stay_as_they_are_are_never_decoded(
    form: dict[str, Any], key: str, image: NDArray[Any], folder: Path
) -> None:
    source = stored(folder / "a.zarr", image, **form)
    broken = break_chunk(source, key)
    for options in [{}, {"verify": True}, {"compression": "keep", "casting": "exact", "dtype": "uint16"}]:
        chosen: dict[str, Any] = options
        copy(source, folder / "b.zarr", overwrite=True, **chosen)
        assert (folder / "b.zarr" / key).read_bytes() == broken
        assert chunk_files(folder / "b.zarr") == chunk_files(source)
    opened_array, lazy = opened(source), da.from_zarr(opened(source))
    for other in (opened_array, lazy):
        copy(other, folder / "b.zarr", overwrite=True)
        assert (folder / "b.zarr" / key).read_bytes() == broken


@synchronous
@pytest.mark.parametrize(
    "options",
    [
        {"mask": np.ones((21, 34), bool)},
        {"compression": "zstd"},
        {"compression": "none"},
        {"dtype": "uint32"},
        {"chunks": 7},
        {"shards": (16, 16)},
        {"zarr_format": 2},
    ],
    ids=str,
)
def test_chunks_that_change_are_decoded(options: dict[str, Any], image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image)
    break_chunk(source, "c/1/2")
    before = digest(source)
    with pytest.raises(TileError, match="reading the image failed"):
        copy(source, folder / "b.zarr", **options)
    assert not (folder / "b.zarr").exists()
    assert digest(source) == before


@synchronous
def test_only_the_chunks_of_the_tiles_that_were_asked_for_are_copied(image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image)
    break_chunk(source, "c/1/2")
    copy(source, folder / "b.zarr", block_ids=[0, 7, 11])
    files = chunk_files(source)
    assert chunk_files(folder / "b.zarr") == {key: files[key] for key in ("c/0/0", "c/1/2", "c/2/1")}


# What is asked for


@synchronous
@pytest.mark.parametrize(
    ("form", "options", "chunks", "shards", "zarr_format"),
    [
        ({}, {"chunks": 10}, (10, 10), None, 3),
        ({}, {"chunks": (5, 40)}, (5, 40), None, 3),
        ({}, {"chunks": 1000}, (21, 34), None, 3),
        ({}, {"shards": (16, 24)}, (8, 8), (16, 24), 3),
        ({}, {"shards": (10, 9)}, (5, 3), (10, 9), 3),
        ({}, {"chunks": 4, "shards": 12}, (4, 4), (12, 12), 3),
        ({"shards": (16, 16)}, {"shards": None}, (8, 8), None, 3),
        ({"shards": (16, 16)}, {"chunks": (4, 8)}, (4, 8), (16, 16), 3),
        ({"shards": (16, 16)}, {"chunks": 5}, (5, 5), None, 3),
        ({"shards": (16, 16)}, {"zarr_format": 2}, (8, 8), None, 2),
        ({"zarr_format": 2}, {"zarr_format": 3}, (8, 8), None, 3),
        ({"zarr_format": 2}, {"zarr_format": 3, "chunks": 4, "shards": (8, 16)}, (4, 4), (8, 16), 3),
        ({"zarr_format": 2}, {"chunks": (1, 34)}, (1, 34), None, 2),
        ({"zarr_format": 3}, {"zarr_format": 2, "chunks": (21, 1)}, (21, 1), None, 2),
    ],
)
def test_chunks_shards_and_format_are_as_asked_for(
    form: dict[str, Any],
    options: dict[str, Any],
    chunks: tuple[int, ...],
    shards: Any,
    zarr_format: int,
    image: NDArray[Any],
    folder: Path,
) -> None:
    source = stored(folder / "a.zarr", image, **form)
    copy(source, folder / "b.zarr", **options)
    array = opened(folder / "b.zarr")
    assert (array.chunks, array.shards, array.metadata.zarr_format) == (chunks, shards, zarr_format)
    np.testing.assert_array_equal(array[...], image)


@synchronous
@pytest.mark.parametrize(
    ("zarr_format", "compression", "expected"),
    [
        (3, "lz4", ("blosc", "lz4", "bitshuffle")),
        (3, "zstd", ("blosc", "zstd", "bitshuffle")),
        (3, "gzip", ("gzip", "'level': 5")),
        (3, GzipCodec(level=2), ("gzip", "'level': 2")),
        (3, ZstdCodec(level=2), ("zstd", "'level': 2")),
        (2, "lz4", ("blosc", "lz4", "'shuffle': 2")),
        (2, "zstd", ("blosc", "zstd", "'shuffle': 2")),
        (2, "gzip", ("gzip", "'level': 5")),
        (2, numcodecs.Zlib(2), ("zlib", "'level': 2")),
        (2, "none", ()),
        (2, None, ()),
        (3, "none", ()),
        (3, None, ()),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_compression_is_as_asked_for(
    kind: str, zarr_format: Any, compression: Any, expected: tuple[str, ...], image: NDArray[Any], folder: Path
) -> None:
    source = image if kind == "numpy" else stored(folder / "a.zarr", image, compressors="auto")
    copy(source, folder / "b.zarr", zarr_format=zarr_format, compression=compression)
    array = opened(folder / "b.zarr")
    np.testing.assert_array_equal(array[...], image)
    told = [getattr(c, "to_dict", None) or c.get_config for c in array.compressors]  # type: ignore[union-attr]
    assert len(told) == (len(expected) > 0)
    assert all(word in str(told[0]()) for word in expected)


@synchronous
def test_what_is_not_from_zarr_is_compressed_and_of_format_3(image: NDArray[Any], folder: Path) -> None:
    copy(image, folder / "b.zarr")
    array = opened(folder / "b.zarr")
    assert array.metadata.zarr_format == 3
    assert "lz4" in str(array.compressors)
    copy(da.from_array(np.zeros((200, 100)), chunks=(90, 80)), folder / "c.zarr")
    assert opened(folder / "c.zarr").chunks == (90, 80)
    copy(image, folder / "d.zarr", tile_shape=(6, 7))
    assert opened(folder / "d.zarr").chunks == (6, 7)


BAD: list[Any] = [
    ({"chunks": 0}, GeometryError),
    ({"chunks": (3, 4, 5)}, GeometryError),
    ({"chunks": (1.5, 3)}, GeometryError),
    ({"chunks": "auto"}, GeometryError),
    ({"chunks": 4, "shards": 6}, GeometryError),
    ({"shards": "auto"}, GeometryError),
    ({"shards": (8, 8), "zarr_format": 2}, ParameterError),
    ({"zarr_format": 4}, ParameterError),
    ({"zarr_format": True}, ParameterError),
    ({"compression": "lzma"}, ParameterError),
    ({"compression": 7}, ParameterError),
    ({"compression": numcodecs.Blosc(), "zarr_format": 3}, ParameterError),
    pytest.param({"compression": BloscCodec(), "zarr_format": 2}, ParameterError, id="codec of v3 in v2"),
    ({"dtype": "uint8"}, ParameterError),
    ({"dtype": "uint7"}, ParameterError),
    ({"dtype": "U5"}, ParameterError),
    ({"dtype": object}, ParameterError),
    ({"casting": "no"}, ParameterError),
    ({"casting": None}, ParameterError),
    ({"mask": np.ones((21, 33), bool)}, GeometryError),
    ({"mask": np.ones(21, bool)}, GeometryError),
    ({"mask": "/there/is/no/mask.zarr"}, ImageError),
    ({"block_ids": [15]}, GeometryError),
    ({"block_ids": [-1]}, GeometryError),
    ({"block_ids": [0.5]}, GeometryError),
    ({"tile_shape": (8, 9)}, GeometryError),
    ({"tile_shape": (7, 8)}, GeometryError),
    ({"tile_shape": "huge"}, ParameterError),
    ({"tile_shape": (8,)}, GeometryError),
    ({"output_component": "../x"}, ParameterError),
]


@synchronous
@pytest.mark.parametrize(("options", "error"), BAD, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    kind: str, options: dict[str, Any], error: Any, image: NDArray[Any], folder: Path
) -> None:
    source = image if kind == "numpy" else stored(folder / "a.zarr", image)
    before = states(folder)
    with pytest.raises(error), nothing_computed():
        copy(source, folder / "b.zarr", **({"chunks": 8} | options if kind == "numpy" else options))
    assert states(folder) == before
    assert not (folder / "b.zarr").exists()


def test_what_is_read_again_must_have_been_written(image: NDArray[Any]) -> None:
    with pytest.raises(ParameterError, match=r"verify=True .* nothing is written\. Give write_to"):
        copy(image, verify=True)


# dtype


NUMBERS = [*INTEGERS, *FLOATS, "complex64", "complex128"]


def extremes(dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values at and beside the limits of all dtypes, as far as `dtype` holds them."""
    whole = [k * 2**n + d for n in (0, 7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64) for d in (-1, 0, 1) for k in (-1, 1)]
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([n for n in {*whole, info.min, info.max} if info.min <= n <= info.max], dtype)
    with np.errstate(over="ignore"):
        reals = np.array([*map(float, whole), 0.5, -0.5, 1e-40, 1e300, 65504, 65520, np.nan, np.inf, -np.inf, -0.0])
        if dtype.kind == "c":
            return np.concatenate([reals, reals[:20] + 1j, [complex(0, np.nan)]]).astype(dtype)
        return reals.astype(dtype)


def number(value: Any) -> Any:
    """A value as what compares exactly: a fraction, a pair of them, or a word."""
    if np.iscomplexobj(value):
        imaginary = number(value.imag)
        return number(value.real) if imaginary == 0 else (number(value.real), imaginary)
    if isinstance(value, np.floating):
        return Fraction(float(value)) if np.isfinite(value) else str(value)
    return Fraction(int(value))


def holds(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has this very value."""
    exact = number(value)
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return isinstance(exact, Fraction) and exact.denominator == 1 and low <= exact <= high
    if dtype.kind == "f":
        if not isinstance(exact, Fraction):
            return isinstance(exact, str)
        try:
            with np.errstate(over="ignore"):
                return number(dtype.type(float(exact))) == exact and Fraction(float(exact)) == exact
        except OverflowError:
            return False
    part = np.empty(0, dtype).real.dtype
    return all(holds(x, part) for x in ([value.real, value.imag] if np.iscomplexobj(value) else [value]))


@pytest.mark.parametrize("source", NUMBERS)
def test_an_exact_cast_finds_each_value_that_changes(source: str) -> None:
    for target in map(np.dtype, NUMBERS):
        cast = make_cast(np.dtype(source), target, "exact")
        for value in extremes(np.dtype(source)):
            # Vector units and scalars may disagree on what is out of range.
            for block in (np.full(1, value), np.full(64, value)):
                try:
                    made = cast(block)
                except ValueError as error:
                    found = str(error)
                else:
                    assert made.dtype == target
                    found = "the same" if number(made[0]) == number(value) else f"{made[0]}"
                expected = "the same" if holds(value, target) else "casting='exact' was asked for"
                assert expected in found, (value, target)


@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS])
def test_clipping_takes_the_nearest_value_that_a_dtype_has(source: str) -> None:
    values = extremes(np.dtype(source))
    for dtype in map(np.dtype, NUMBERS):
        made = make_cast(np.dtype(source), dtype, "clip")(values)
        assert made.dtype == dtype
        if dtype.kind not in "biu":
            with np.errstate(over="ignore"):
                assert bits(made) == bits(values.astype(dtype))
            continue
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        for value, result in zip(values, made, strict=True):
            exact = number(value)
            if not isinstance(exact, Fraction):
                exact = {"nan": 0, "inf": high, "-inf": low}[exact]
            assert int(result) == min(max(round(exact), low), high), (value, dtype)


def loses_digits(source: str, target: str, casting: Any) -> bool:
    """What NumPy takes for safe, though floats have fewer digits than integers of 64 bits."""
    return casting == "safe" and source in ("int64", "uint64") and np.dtype(target).kind in "fc"


@pytest.mark.parametrize("casting", ["safe", "same_kind", "unsafe"])
@pytest.mark.parametrize("source", NUMBERS)
def test_casts_of_numpy_do_what_numpy_does(source: str, casting: Any) -> None:
    values = extremes(np.dtype(source))
    for target in NUMBERS:
        if not np.can_cast(source, target, casting) or loses_digits(source, target, casting):
            with pytest.raises(ParameterError, match=r"Give casting='exact' to copy if all values fit"):
                make_cast(np.dtype(source), target, casting)
            continue
        made = make_cast(np.dtype(source), target, casting)(values)
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            expected = values.astype(target)
        # What becomes of a number that no integer is near to, NumPy leaves to the processor.
        known = np.ones(values.shape, bool)
        if expected.dtype.kind in "iu" and values.dtype.kind in "fc":
            known = (np.abs(values) < 127) & (values.real >= 0)
        assert bits(made[known]) == bits(expected[known])


@pytest.mark.parametrize("target", ["uint8", "float32", "bool"])
def test_complex_values_are_clipped_to_no_real_ones_in_silence(target: str) -> None:
    values = np.array([1000 + 0j, -5, 0.6], np.complex64)
    expected = {"uint8": [255, 0, 1], "float32": [1000, -5, np.float32(0.6)], "bool": [True, False, True]}[target]
    with contextlib.suppress(ParameterError):
        assert make_cast(values.dtype, target, "clip")(values).tolist() == expected


@synchronous
def test_a_copy_that_would_lose_values_is_refused_unless_asked_for(image: NDArray[Any], folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"dtype uint8 cannot hold all values of uint16 \(casting='safe'\)"):
        copy(image, folder / "b.zarr", dtype="uint8")
    assert os.listdir(folder) == []
    for casting, expected in [("unsafe", image.astype(np.uint8)), ("same_kind", image.astype(np.uint8))]:
        wanted: Any = casting
        made = copy(image, folder / "b.zarr", dtype="uint8", casting=wanted, overwrite=True)
        np.testing.assert_array_equal(made.compute(), expected)
    made = copy(image, folder / "b.zarr", dtype="uint8", casting="clip", overwrite=True, verify=True)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made.compute(), np.clip(image, 0, 255))
    np.testing.assert_array_equal(copy(image, dtype="uint8", casting="clip", compute=True), np.clip(image, 0, 255))


@synchronous
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_an_exact_copy_names_the_tile_of_a_value_that_changes(kind: str, folder: Path) -> None:
    values = np.zeros((20, 30), np.float32)
    values[13, 27] = 0.5
    source: Any = values
    if kind == "dask":
        source = da.from_array(values, chunks=7)
    elif kind == "zarr":
        source = stored(folder / "a.zarr", values)
    options: dict[str, Any] = {"dtype": "uint8", "casting": "exact"}
    with pytest.raises(TileError, match=r"1 values, such as 0\.5, change from float32 to uint8") as caught:
        copy(source, folder / "b.zarr", chunks=10, tile_shape=(10, 10), **options)
    assert caught.value.tile == (1, 2)
    assert not (folder / "b.zarr").exists()
    with pytest.raises(TileError):
        copy(source, compute=True, **options)
    values[13, 27] = 1
    if kind == "zarr":
        zarr.open_array(folder / "a.zarr")[...] = values
    made = copy(source if kind != "dask" else da.from_array(values, chunks=7), folder / "c.zarr", **options)
    np.testing.assert_array_equal(made.compute(), values)


# Masks


MASKS: dict[str, Callable[[NDArray[np.bool_], Path], Any]] = {
    "numpy": lambda mask, _path: mask,
    "numbers": lambda mask, _path: mask * np.float32(-0.25),
    "dask": lambda mask, _path: da.from_array(mask, chunks=(6, 7)),
    "path": lambda mask, path: str(stored(path, mask)),
    "zarr array": lambda mask, path: opened(stored(path, mask)),
    "zarr in memory": lambda mask, _path: zarr.array(mask, chunks=(9, 9)),
    "lists": lambda mask, _path: mask.tolist(),
}
KINDS: dict[str, Callable[[NDArray[Any], Path], Any]] = {
    "numpy": lambda values, _path: values,
    "dask": lambda values, _path: da.from_array(values, chunks=(6, 20)) + 0,
    "path": lambda values, path: stored(path, values),
}


@synchronous
@pytest.mark.parametrize(
    ("kind", "masked_by"),
    [*[("numpy", name) for name in MASKS], ("dask", "numpy"), ("dask", "dask"), ("path", "path"), ("path", "dask")],
)
def test_only_voxels_within_the_mask_are_copied(masked_by: str, kind: str, image: NDArray[Any], folder: Path) -> None:
    inside = np.zeros(image.shape, bool)
    inside[3:12, 5:30] = image[3:12, 5:30] % 3 > 0
    mask = MASKS[masked_by](inside, folder / "mask.zarr")
    source = KINDS[kind](image, folder / "a.zarr")
    expected = np.where(inside, image, 0)
    with nothing_computed():
        lazy = copy(source, mask=mask)
    np.testing.assert_array_equal(lazy.compute(), expected)
    np.testing.assert_array_equal(copy(source, mask=mask, compute=True), expected)
    made = copy(source, folder / "b.zarr", mask=mask, chunks=8, verify=True)
    np.testing.assert_array_equal(made.compute(), expected)
    # What is there stays.
    there = np.full(image.shape, 9, np.uint16)
    copy(there, folder / "c.zarr", chunks=7)
    with pytest.raises(OutputExistsError, match="overwrite=True to change the voxels within mask"):
        copy(source, folder / "c.zarr", mask=mask)
    made = copy(source, folder / "c.zarr", mask=mask, overwrite=True, verify=True)
    np.testing.assert_array_equal(made.compute(), np.where(inside, image, 9))
    assert opened(folder / "c.zarr").chunks == (7, 7)
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("by", ["mask", "block_ids"])
@pytest.mark.parametrize("form", [{}, {"shards": (8, 16)}, {"zarr_format": 2, "compressors": numcodecs.Zlib(1)}])
def test_what_is_not_copied_is_0_in_a_new_output_whatever_the_fill_value(
    form: dict[str, Any], by: str, image: NDArray[Any], folder: Path
) -> None:
    source = stored(folder / "a.zarr", image, fill_value=9, **form)
    inside = np.zeros(image.shape, bool)
    if by == "mask":
        inside[2:5, 3:6] = True
        options: dict[str, Any] = {"mask": inside, "tile_shape": (8, 16)}
    else:
        inside[:8, :16] = True
        options = {"block_ids": [0], "tile_shape": (8, 16)}
    made = copy(source, folder / "b.zarr", **options)
    np.testing.assert_array_equal(made.compute(), np.where(inside, image, 0))
    np.testing.assert_array_equal(copy(source, **options).compute(), np.where(inside, image, 0))


def counting(image: NDArray[Any]) -> tuple[CountingStore, zarr.Array[Any]]:
    """An array without files, and what tells which chunks of it were read."""
    store = CountingStore(MemoryStore())
    zarr.create_array(store, data=image, chunks=(8, 8))
    store.read.clear()
    return store, zarr.open_array(store, mode="r+")


# Looked at to tell whether a run that resumes has the same image.
SAMPLES = ["c/0/0", "c/0/1", "c/1/2", "c/2/4"]


@synchronous
def test_tiles_outside_of_the_mask_are_not_read(image: NDArray[Any], folder: Path) -> None:
    store, source = counting(image)
    mask = np.zeros(image.shape, bool)
    mask[9, 10] = mask[20, 31] = True
    wanted = ["c/1/1", "c/2/3"]
    for number, masked_by in enumerate([mask, da.from_array(mask, chunks=5), mask.astype(np.float32)]):
        made = copy(source, folder / f"{number}.zarr", mask=masked_by, tile_shape=(8, 8), chunks=8)
        assert Counter(store.read) - Counter(SAMPLES) == Counter(wanted)
        assert sorted(chunk_files(folder / f"{number}.zarr")) == wanted
        np.testing.assert_array_equal(made.compute(), np.where(mask, image, 0))
        store.read.clear()
    copy(source, folder / "0.zarr", mask=mask, tile_shape=(8, 8), overwrite=True)
    assert Counter(store.read) - Counter(SAMPLES) == Counter(wanted)
    store.read.clear()
    lazy = copy(source, mask=mask, tile_shape=(8, 8))
    assert store.read == []
    np.testing.assert_array_equal(lazy.compute(), np.where(mask, image, 0))
    assert sorted(store.read) == wanted
    store.read.clear()
    copy(source, folder / "b.zarr", block_ids=[6, 13], chunks=8)
    assert Counter(store.read) - Counter(SAMPLES) == Counter(wanted)
    store.read.clear()
    copy(source, folder / "c.zarr", chunks=8)
    assert Counter(store.read) - Counter(SAMPLES) == Counter(f"c/{i}/{j}" for i in range(3) for j in range(5))


@synchronous
def test_each_chunk_of_the_source_is_read_once_where_others_are_asked_for(image: NDArray[Any], folder: Path) -> None:
    store, source = counting(image)
    for options in [{"chunks": 5}, {"chunks": (3, 34)}, {"chunks": 4, "shards": 12}, {"tile_shape": (24, 40)}]:
        copy(source, folder / "b.zarr", overwrite=True, **options)
        assert Counter(store.read) - Counter(SAMPLES) == Counter(f"c/{i}/{j}" for i in range(3) for j in range(5))
        store.read.clear()


@synchronous
@pytest.mark.parametrize("kind", ["path", "dask"])
def test_chunks_outside_of_the_mask_are_neither_decoded_nor_written(
    kind: str, image: NDArray[Any], folder: Path
) -> None:
    source = stored(folder / "a.zarr", image)
    for key in ("c/0/0", "c/2/4", "c/1/2"):
        break_chunk(source, key)
    mask = np.zeros(image.shape, bool)
    mask[8:16, :16] = True
    mask[0, 8:16] = True
    copy(np.full_like(image, 9), folder / "b.zarr", chunks=8)
    before = states(folder / "b.zarr")
    given = source if kind == "path" else da.from_zarr(opened(source)) + 0
    made = copy(given, folder / "b.zarr", mask=mask, tile_shape=(8, 8), overwrite=True)
    np.testing.assert_array_equal(made.compute(), np.where(mask, image, 9))
    after = states(folder / "b.zarr")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"zarr.json"} == {"c/0/1", "c/1/0", "c/1/1"}
    assert set(after) == set(before)


@synchronous
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_mask_of_nothing_copies_nothing(kind: str, image: NDArray[Any], folder: Path) -> None:
    source = KINDS[kind](image, folder / "a.zarr")
    nothing = np.zeros(image.shape, bool)
    copy(np.full_like(image, 9), folder / "b.zarr", chunks=8)
    before = states(folder / "b.zarr")
    copy(source, folder / "b.zarr", mask=nothing, overwrite=True, verify=True)
    assert states(folder / "b.zarr") == before
    assert not copy(source, folder / "c.zarr", mask=nothing).any().compute()
    assert chunk_files(folder / "c.zarr") == {}


@synchronous
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"shards": (8, 16)},
        {"shards": (16, 40)},
        {"fill_value": 5},
        {"fill_value": 5, "shards": (8, 16)},
        {"zarr_format": 2},
        {"zarr_format": 2, "fill_value": 5},
        {"zarr_format": 2, "order": "F", "dtype": ">u2"},
        {"zarr_format": 2, "fill_value": None},
        {"serializer": BytesCodec(endian="big")},
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [0, 5])
def test_a_chunk_that_becomes_its_fill_value_is_that_afterwards(
    value: int, form: dict[str, Any], image: NDArray[Any], folder: Path
) -> None:
    stored(folder / "b.zarr", image, **form)
    mask = np.zeros(image.shape, bool)
    mask[:17, :20] = True
    made = copy(np.full_like(image, value), folder / "b.zarr", mask=mask, overwrite=True, verify=True)
    np.testing.assert_array_equal(made.compute(), np.where(mask, value, image))
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], np.where(mask, value, image))


@synchronous
@fewer
@given(data=st.data())
def test_many_masked_copies_into_one_output_are_like_assignments(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("masked")
    shape = data.draw(shapes(1, 3))
    chunks = data.draw(tile_shapes(shape))
    expected = data.draw(images(shape, ["int16"]))
    form: dict[str, Any] = data.draw(
        st.sampled_from([{}, {"shards": tuple(2 * c for c in chunks)}, {"zarr_format": 2}, {"fill_value": 2}])
    )
    stored(folder / "b.zarr", expected, chunks=chunks, **form)
    expected = expected.copy()
    for _ in range(2):
        values = data.draw(images(shape, ["int16"]))
        mask = data.draw(images(shape, ["bool"]))
        source = data.draw(st.sampled_from([values, da.from_array(values, chunks=data.draw(chunkings(shape)))]))
        verify = data.draw(st.booleans())
        copy(source, folder / "b.zarr", mask=mask, overwrite=True, verify=verify)
        expected[mask] = values[mask]
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], expected)
    assert leftovers(folder) == []
    shutil.rmtree(folder)


@synchronous
@pytest.mark.parametrize("by", ["mask", "block_ids"])
@pytest.mark.parametrize(
    ("there", "error"),
    [
        (np.zeros((21, 35), np.uint16), OutputError),
        (np.zeros((21, 34), np.int32), OutputError),
        (np.zeros((21, 34, 1), np.uint16), BlockbusterError),
        (None, OutputExistsError),
    ],
)
def test_voxels_of_an_output_of_another_kind_are_not_changed(
    there: Any, error: Any, by: str, image: NDArray[Any], folder: Path
) -> None:
    if there is None:
        zarr.create_group(folder / "b.zarr").create_array("0", data=image)
    else:
        zarr.create_array(folder / "b.zarr", data=there)
    before = states(folder)
    options: dict[str, Any] = {"mask": image > 9} if by == "mask" else {"block_ids": [0]}
    with pytest.raises(error):
        copy(image, folder / "b.zarr", overwrite=True, **options)
    assert states(folder) == before


@synchronous
def test_a_masked_copy_keeps_the_form_and_attributes_of_the_output(image: NDArray[Any], folder: Path) -> None:
    stored(folder / "b.zarr", image, zarr_format=2, compressors=numcodecs.Zlib(1), attributes={"k": 1})
    before = {name: d for name, d in digest(folder / "b.zarr").items() if Path(name).name in METADATA}
    copy(image + 1, folder / "b.zarr", mask=image > 30000, overwrite=True)
    after = {name: d for name, d in digest(folder / "b.zarr").items() if Path(name).name in METADATA}
    assert after == before
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], np.where(image > 30000, image + 1, image))


@synchronous
def test_a_masked_copy_that_fails_leaves_the_output_as_it_was(image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image)
    break_chunk(source, "c/2/4")
    copy(np.full_like(image, 9), folder / "b.zarr", chunks=8)
    before = states(folder / "b.zarr")
    for options in [{"mask": np.ones(image.shape, bool)}, {"block_ids": range(15)}]:
        chosen: dict[str, Any] = options
        with pytest.raises(TileError):
            copy(source, folder / "b.zarr", overwrite=True, tile_shape=(8, 8), **chosen)
    assert states(folder / "b.zarr") == before


# Some tiles


@synchronous
def test_tiles_are_chosen_by_their_numbers(image: NDArray[Any], folder: Path) -> None:
    expected = np.zeros_like(image)
    expected[0:8, 8:16] = image[0:8, 8:16]
    expected[16:, 32:] = image[16:, 32:]
    for source in (image, da.from_array(image, chunks=9), stored(folder / "a.zarr", image)):
        for form in [{"chunks": 8}, {"chunks": 4, "shards": 8}]:
            options: dict[str, Any] = {**form, "block_ids": [14, 1, 1], "overwrite": True}
            shutil.rmtree(folder / "b.zarr", ignore_errors=True)
            np.testing.assert_array_equal(copy(source, folder / "b.zarr", **options).compute(), expected)
            there = np.where(expected > 0, expected, 9).astype(np.uint16)
            copy(np.full_like(image, 9), folder / "c.zarr", overwrite=True, **form)
            np.testing.assert_array_equal(copy(source, folder / "c.zarr", **options).compute(), there)
        lazy = copy(source, tile_shape=(8, 8), block_ids=[14, 1])
        np.testing.assert_array_equal(lazy.compute(), expected)


@synchronous
def test_no_tile_may_be_chosen(image: NDArray[Any], folder: Path) -> None:
    assert not copy(image, folder / "b.zarr", block_ids=[]).any().compute()
    before = states(folder)
    copy(image, folder / "b.zarr", block_ids=[], overwrite=True)
    assert states(folder) == before


@synchronous
def test_tiles_of_an_output_that_is_there_are_whole_chunks_of_it(image: NDArray[Any], folder: Path) -> None:
    copy(np.full_like(image, 9), folder / "b.zarr", chunks=4, shards=12)
    expected = np.full_like(image, 9)
    expected[:12, 12:24] = image[:12, 12:24]
    # What is given for new outputs is not for this one.
    copy(image, folder / "b.zarr", block_ids=[1], chunks=5, overwrite=True)
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], expected)
    before = states(folder)
    with pytest.raises(GeometryError, match="whole chunks or shards"):
        copy(image, folder / "b.zarr", block_ids=[1], tile_shape=(4, 4), overwrite=True)
    with pytest.raises(GeometryError, match="whole chunks or shards"):
        copy(image, folder / "b.zarr", mask=image > 0, tile_shape=(18, 12), overwrite=True)
    assert states(folder) == before


@dataclass(frozen=True)
class CopyTile:
    """One copy of one tile; what became of it."""

    source: str
    target: str
    options: dict[str, Any]

    def __call__(self, number: int) -> str:
        with contextlib.suppress(OutputError, OutputExistsError), dask.config.set(scheduler="synchronous"):
            copy(self.source, self.target, block_ids=[number], overwrite=True, **self.options)
            return "copied"
        return "refused"


def in_threads() -> Executor:
    return ThreadPoolExecutor(8)


def in_processes() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


AT_ONCE = [pytest.param(in_threads, id="threads"), pytest.param(in_processes, id="processes", marks=pytest.mark.slow)]


def tile_of(number: int) -> tuple[slice, slice]:
    return tuple(slice(8 * i, 8 * i + 8) for i in divmod(number, 5))  # type: ignore[return-value]


@synchronous
@pytest.mark.parametrize("executor", AT_ONCE)
@pytest.mark.parametrize("form", [{"chunks": 8}, {"chunks": 4, "shards": 8}, {"chunks": 8, "zarr_format": 2}], ids=str)
def test_many_copies_at_once_into_one_output_lose_nothing(
    form: dict[str, Any], executor: Callable[[], Executor], image: NDArray[Any], folder: Path
) -> None:
    source = stored(folder / "a.zarr", image)
    copy(np.zeros_like(image), folder / "b.zarr", **form)
    with executor() as pool:
        outcomes = list(pool.map(CopyTile(str(source), str(folder / "b.zarr"), {}), range(15)))
    assert outcomes == ["copied"] * 15
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], image)
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("executor", AT_ONCE)
@pytest.mark.parametrize("form", [{"chunks": 8}, {"chunks": 4, "shards": 8}, {"chunks": 8, "zarr_format": 2}], ids=str)
def test_many_copies_at_once_into_a_new_output_lose_nothing_that_was_copied(
    form: dict[str, Any], executor: Callable[[], Executor], image: NDArray[Any], folder: Path
) -> None:
    source = stored(folder / "a.zarr", image, **({} if "zarr_format" not in form else {"zarr_format": 2}))
    job = CopyTile(str(source), str(folder / "b.zarr"), {"shards": None, **form})
    with executor() as pool:
        outcomes = list(pool.map(job, range(15)))
    assert "copied" in outcomes
    expected = np.zeros_like(image)
    for number, outcome in enumerate(outcomes):
        if outcome == "copied":
            expected[tile_of(number)] = image[tile_of(number)]
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], expected)
    # Whoever was refused may go on.
    assert [job(number) for number, outcome in enumerate(outcomes) if outcome == "refused"].count("refused") == 0
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], image)


@synchronous
def test_masked_copies_at_once_into_one_output_lose_nothing(image: NDArray[Any], folder: Path) -> None:
    copy(np.zeros_like(image), folder / "b.zarr", chunks=8)

    def copy_rows(number: int) -> None:
        mask = np.zeros(image.shape, bool)
        mask[8 * number : 8 * number + 8] = True
        copy(image, folder / "b.zarr", mask=mask, tile_shape=(8, 8), overwrite=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(copy_rows, range(3)))
    np.testing.assert_array_equal(opened(folder / "b.zarr")[...], image)
    assert leftovers(folder) == []


# Tiles, chunks and shards that do not fit each other


@pytest.fixture
def threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=8):
        yield


def unlike(kind: str, values: NDArray[Any], path: Path, chunks: tuple[int, int]) -> Any:
    if kind == "zarr":
        return stored(path, values, chunks=chunks)
    source = da.from_array(values, chunks=chunks)
    return source if kind == "dask" else source + np.uint8(0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("chunks", "options"),
    [
        ((7, 11), {"chunks": (5, 6), "tile_shape": (5, 12)}),
        ((7, 11), {"chunks": (5, 6), "shards": (10, 18), "tile_shape": (10, 18)}),
        pytest.param((64, 3), {"chunks": (3, 64), "tile_shape": (3, 64)}, marks=pytest.mark.slow),
        pytest.param((1, 60), {"chunks": (60, 1), "shards": (60, 4), "tile_shape": (60, 8)}, marks=pytest.mark.slow),
    ],
)
def test_no_voxel_is_lost_where_chunks_do_not_fit(
    chunks: tuple[int, int], options: dict[str, Any], folder: Path
) -> None:
    values = np.random.default_rng(0).integers(1, 99, (31, 37)).astype(np.uint8)
    sources = [unlike(kind, values, folder / "a.zarr", chunks) for kind in ("zarr", "dask", "computed")]
    for number in range(20):
        copy(sources[number % 3], folder / "b.zarr", overwrite=True, **options)
        np.testing.assert_array_equal(opened(folder / "b.zarr")[...], values)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("form", [{"chunks": (5, 6)}, {"chunks": (5, 6), "shards": (10, 18)}], ids=str)
def test_no_voxel_is_lost_where_chunks_of_the_output_do_not_fit(form: dict[str, Any], folder: Path) -> None:
    values = np.random.default_rng(0).integers(1, 99, (31, 37)).astype(np.uint8)
    ways: list[dict[str, Any]] = [{"mask": values > 0}, {"block_ids": range(12)}]
    copy(np.zeros_like(values), folder / "b.zarr", **form)
    for number in range(20):
        values += 1
        source = unlike(("zarr", "dask", "computed")[number % 3], values, folder / f"{number}.zarr", (7, 11))
        copy(source, folder / "b.zarr", overwrite=True, tile_shape=(10, 18), **ways[number % 2])
        np.testing.assert_array_equal(opened(folder / "b.zarr")[...], values)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "options",
    [
        {"tile_shape": (7, 11)},
        {"tile_shape": (5, 7)},
        {"tile_shape": (5, 6), "shards": (10, 12)},
        {"tile_shape": lambda shape, dtype: (10, 13)},
    ],
)
def test_tiles_that_share_a_chunk_or_shard_are_refused(options: dict[str, Any], folder: Path) -> None:
    values = np.ones((61, 67), np.uint8)
    for source in (values, da.from_array(values, chunks=(7, 11)), stored(folder / "a.zarr", values)):
        before = states(folder)
        with pytest.raises(GeometryError, match=r"is not whole chunks or shards .*: two tiles would write to one"):
            copy(source, folder / "b.zarr", chunks=(5, 6), **options)
        assert states(folder) == before


# Onto itself


WAYS: dict[str, Callable[[Path], tuple[Any, Any, str]]] = {
    "same path": lambda store: (store / "a", store / "a", ""),
    "component": lambda store: (store / "a", store, "a"),
    "relative input": lambda store: ("s.zarr/a", str(store / "a"), ""),
    "relative output": lambda store: (str(store / "a"), "s.zarr/a", ""),
    "dots": lambda store: (store / "b" / ".." / "a", store / "a", ""),
    "output through a link": lambda store: (store / "a", store.parent / "link.zarr" / "a", ""),
    "input through a link": lambda store: (store.parent / "link.zarr" / "a", store / "a", ""),
    "file URL": lambda store: (f"file://{store}/a", store / "a", ""),
    "opened array": lambda store: (opened(store / "a"), store / "a", ""),
    "member of a group": lambda store: (zarr.open_group(store, mode="r")["a"], store, "a"),
    "dask array": lambda store: (da.from_zarr(opened(store / "a")), store / "a", ""),
    "dask array by path": lambda store: (da.from_zarr(str(store / "a")), store / "a", ""),
    "dask array through a link": lambda store: (da.from_zarr(str(store.parent / "link.zarr" / "a")), store / "a", ""),
    "dask array, computed": lambda store: ((da.from_zarr(opened(store / "a")) + 1)[::-1], store / "a", ""),
    "lazy copy": lambda store: (copy(store / "a"), store / "a", ""),
    "lazy copy of a dask array": lambda store: (copy(da.from_zarr(opened(store / "a")) + 1), store / "a", ""),
    "input within the output": lambda store: (store / "a", store, ""),
    "output within the input": lambda store: (store / "a", store / "a" / "x", ""),
}


@synchronous
@pytest.mark.parametrize("options", [{}, {"block_ids": [0]}, {"mask": np.ones((21, 34), bool)}], ids=list)
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_copy_onto_its_source_is_refused(
    way: str, options: dict[str, Any], image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    zarr.create_group(folder / "s.zarr").create_array("b", data=image)
    stored(folder / "s.zarr" / "a", image)
    (folder / "link.zarr").symlink_to(folder / "s.zarr")
    before = states(folder)
    source, target, component = WAYS[way](folder / "s.zarr")
    for overwrite in (True, False):
        with pytest.raises(BlockbusterError) as caught:
            copy(source, target, output_component=component, overwrite=overwrite, **options)
        assert not overwrite or isinstance(caught.value, OutputError)
        assert states(folder) == before


@synchronous
@pytest.mark.parametrize("kind", ["path", "opened", "dask"])
def test_a_copy_onto_its_mask_is_refused(kind: str, image: NDArray[Any], folder: Path) -> None:
    path = stored(folder / "m.zarr", image)
    mask = {"path": path, "opened": opened(path), "dask": da.from_zarr(opened(path)) > 5}[kind]
    before = states(folder)
    with pytest.raises(OutputError, match="would overwrite the input"):
        copy(image + 1, path, mask=mask, overwrite=True)
    assert states(folder) == before


@synchronous
def test_an_output_is_not_replaced_unasked(image: NDArray[Any], folder: Path) -> None:
    copy(image, folder / "b.zarr")
    before = states(folder)
    for options in [{}, {"mask": image > 0}, {"block_ids": [0]}]:
        chosen: dict[str, Any] = options
        with pytest.raises(OutputExistsError, match="overwrite=True"), nothing_computed():
            copy(image + 1, folder / "b.zarr", **chosen)
    assert states(folder) == before
    made = copy(image[1:] + 1, folder / "b.zarr", overwrite=True)
    np.testing.assert_array_equal(made.compute(), image[1:] + 1)


# Reading what was written again


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def swap(file: Path) -> None:
    """Put another chunk of the array in its place: it can be decoded."""
    other = next(one for one in sorted(file.parent.parent.rglob("[0-9]")) if one.is_file() and one != file)
    file.write_bytes(other.read_bytes())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGES: dict[str, Callable[[Path], None]] = {"flip": flip, "swap": swap, "cut": cut, "remove": Path.unlink}


@synchronous
@pytest.mark.parametrize(
    ("damage", "kind", "options"),
    [
        *[(damage, "zarr", {}) for damage in sorted(DAMAGES)],
        *[(damage, "zarr", {"compression": "none"}) for damage in sorted(DAMAGES)],
        *[(damage, "sharded", {"chunks": 4}) for damage in sorted(DAMAGES)],
        ("swap", "sharded", {}),
        ("cut", "zarr", {"chunks": 7}),
        ("swap", "zarr", {"dtype": "float64"}),
        ("swap", "zarr", {"mask": np.ones((21, 34), bool)}),
        ("flip", "zarr", {"block_ids": range(15)}),
        ("remove", "numpy", {"chunks": 8}),
        ("cut", "dask", {"chunks": 8}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_damage_after_the_write_is_found(
    damage: str, kind: str, options: dict[str, Any], image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Any = {"numpy": image, "dask": da.from_array(image, chunks=9)}.get(kind)
    if source is None:
        source = stored(folder / "a.zarr", image, **({"shards": (16, 16)} if kind == "sharded" else {}))
    before = digest(folder)
    compute = PassesGraph.compute
    damaged: list[Path] = []

    def compute_and_damage(graph: PassesGraph) -> list[Any]:
        made = compute(graph)
        files = [file for file in sorted(folder.rglob("c/0/1")) if ".partial" in str(file)]
        if files and not damaged:
            DAMAGES[damage](files[0])
            damaged.append(files[0])
        return made

    with monkeypatch.context() as patch:
        patch.setattr(PassesGraph, "compute", compute_and_damage)
        with pytest.raises(OutputError, match="damages data"):
            copy(source, folder / "b.zarr", verify=True, **options)
    assert damaged
    assert not (folder / "b.zarr").exists()
    assert {name: d for name, d in digest(folder).items() if "/a.zarr/" in name} == before
    # Another try starts anew.
    made = copy(source, folder / "b.zarr", verify=True, resume=True, **options)
    np.testing.assert_array_equal(made.compute(), image)
    assert leftovers(folder) == []


@synchronous
def test_damage_is_found_before_voxels_of_an_output_change(
    image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(np.zeros_like(image), folder / "b.zarr", chunks=8)
    before = states(folder / "b.zarr")
    compute = PassesGraph.compute

    def compute_and_damage(graph: PassesGraph) -> list[Any]:
        made = compute(graph)
        for file in folder.glob(".*.partial/c/1/1"):
            swap(file)
        return made

    monkeypatch.setattr(PassesGraph, "compute", compute_and_damage)
    with pytest.raises(OutputError, match="damages data"):
        copy(image, folder / "b.zarr", mask=image > 0, tile_shape=(8, 8), overwrite=True, verify=True)
    assert states(folder / "b.zarr") == before


# When it is computed, and by what


@synchronous
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_is_computed_before_it_is_asked_for(kind: str, image: NDArray[Any], folder: Path) -> None:
    source = KINDS[kind](image, folder / "a.zarr")
    before = states(folder)
    with nothing_computed():
        lazy = copy(source, dtype="float64")
        chosen = copy(source, tile_shape=(8, 8), block_ids=[2])
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.float64
    np.testing.assert_array_equal(lazy.compute(), image)
    np.testing.assert_array_equal(lazy[3:5, ::2].compute(), image[3:5, ::2])
    np.testing.assert_array_equal(chosen[:8, 16:24].compute(), image[:8, 16:24])
    assert chosen.sum().compute() == image[:8, 16:24].sum()
    made = copy(source, dtype="float64", compute=True)
    assert isinstance(made, np.ndarray)
    assert bits(made) == bits(lazy.compute())
    assert states(folder) == before


@synchronous
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_inputs_that_are_read_only_stay_as_they_are(kind: str, image: NDArray[Any], folder: Path) -> None:
    kept = image.copy()
    image.flags.writeable = False
    source = KINDS[kind](image, folder / "a.zarr")
    made = copy(source, compute=True)
    made += 1
    lazy = copy(source).compute()
    np.testing.assert_array_equal(lazy, kept)
    copy(source, folder / "b.zarr", chunks=5)
    np.testing.assert_array_equal(image, kept)


@synchronous
@pytest.mark.parametrize("to_store", [False, True])
def test_progress_counts_tiles(to_store: bool, image: NDArray[Any], folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {"write_to": folder / "b.zarr"} if to_store else {"compute": True}
    copy(
        da.from_array(image, chunks=8),
        progress=lambda now: calls.append((now.done, now.total)),
        tile_shape=(8, 8),
        **options,
    )
    assert calls[-1] == (15, 15)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.slow
def test_every_scheduler_makes_the_same_bytes(scheduler: str, image: NDArray[Any], folder: Path) -> None:
    source = stored(folder / "a.zarr", image)
    mask = image % 3 > 0
    with dask.config.set(scheduler="synchronous"):
        copy(source, folder / "0.zarr", chunks=5, dtype="float32")
        copy(image, folder / "1.zarr", chunks=5, mask=mask)
        expected = [chunk_files(folder / f"{n}.zarr") for n in range(2)]
    copy(source, folder / "b.zarr", verify=True)
    assert chunk_files(folder / "b.zarr") == chunk_files(source)
    copy(source, folder / "c.zarr", chunks=5, dtype="float32", verify=True)
    assert chunk_files(folder / "c.zarr") == expected[0]
    copy(da.from_array(image, chunks=8), folder / "d.zarr", chunks=5, mask=mask, verify=True)
    assert chunk_files(folder / "d.zarr") == expected[1]
    copy(source, folder / "d.zarr", mask=da.from_array(~mask, chunks=7), overwrite=True)
    made = copy(source, tile_shape=(6, 7), compute=True)
    np.testing.assert_array_equal(made, image)
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(opened(folder / "d.zarr")[...], image)
    assert leftovers(folder) == []


# Going on with what was stopped


@synchronous
@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"mask": np.ones((21, 34), bool)}], ids=list)
def test_a_stopped_copy_is_resumed_where_it_stopped(options: dict[str, Any], image: NDArray[Any], folder: Path) -> None:
    store, source = counting(image)
    chunks = store._store._store_dict
    kept = chunks["c/1/1"]
    chunks["c/1/1"] = type(kept).from_bytes(b"this is no chunk")
    wanted: dict[str, Any] = {"tile_shape": (8, 8), "chunks": 8, "verify": True, **options}
    with pytest.raises(TileError) as caught:
        copy(source, folder / "b.zarr", **wanted)
    assert caught.value.tile == (1, 1)
    assert not (folder / "b.zarr").exists()
    done = len(Counter(store.read) - Counter(SAMPLES)) - 1
    chunks["c/1/1"] = kept
    store.read.clear()
    made = copy(source, folder / "b.zarr", resume=True, **wanted)
    np.testing.assert_array_equal(made.compute(), image)
    assert (Counter(store.read) - Counter(SAMPLES)).total() == 15 - done
    assert leftovers(folder) == []
    # What is complete is not made again.
    before = states(folder)
    copy(source, folder / "b.zarr", resume=True, **wanted)
    assert states(folder) == before


def test_a_part_that_meets_another_copy_brings_its_zeros_too(tmp_path: Path) -> None:
    other = np.full((4, 8), 9, np.uint8)

    def meet(now: blockbuster.RunProgress) -> None:
        if now.done == now.total and not (tmp_path / "o.zarr").exists():
            blockbuster.copy(other, tmp_path / "o.zarr", chunks=4)

    zeros = np.zeros((4, 8), np.uint8)
    blockbuster.copy(zeros, tmp_path / "o.zarr", chunks=4, block_ids=[0], overwrite=True, progress=meet)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "o.zarr")[:], np.where(np.arange(8) < 4, 0, other))


def test_a_masked_copy_that_meets_another_says_so(tmp_path: Path) -> None:
    def meet(now: blockbuster.RunProgress) -> None:
        if now.done == now.total and not (tmp_path / "o.zarr").exists():
            blockbuster.copy(np.full((4, 4), 9, np.uint8), tmp_path / "o.zarr", chunks=4)

    values, mask = np.full((4, 4), 5, np.uint8), np.arange(4) < 2
    options: dict[str, Any] = {"chunks": 4, "mask": np.tile(mask, (4, 1)), "overwrite": True}
    with pytest.raises(OutputExistsError):
        blockbuster.copy(values, tmp_path / "o.zarr", progress=meet, **options)
    made = blockbuster.copy(values, tmp_path / "o.zarr", resume=True, **options)
    np.testing.assert_array_equal(made, np.where(mask, values, 9))


def test_a_run_that_verifies_does_not_go_on_with_one_that_did_not(tmp_path: Path) -> None:
    def stop(now: blockbuster.RunProgress) -> None:
        if now.done == 2:
            raise KeyboardInterrupt

    values = np.ones((16, 16), np.uint8)
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(KeyboardInterrupt):
            blockbuster.copy(values, tmp_path / "o.zarr", chunks=4, tile_shape=(4, 16), progress=stop)
        with pytest.raises(ResumeError, match="verify was False, is True"):
            blockbuster.copy(values, tmp_path / "o.zarr", chunks=4, tile_shape=(4, 16), verify=True, resume=True)


def test_a_lazy_result_keeps_no_more_than_itself() -> None:
    made = blockbuster.downsample(np.ones((64, 64), np.uint8), 8, compute=True)
    assert made.base is None or made.base.size <= made.size
