"""How arrays are stored: like others, or anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from blockbuster import GeometryError, ParameterError
from blockbuster.encoding import Encoding, check_format, encode_like, new_encoding, same_encoding
from tests.strategies import shapes, tile_shapes

FORMS: list[Any] = [
    pytest.param({}, id="v3"),
    pytest.param({"shards": (20, 20)}, id="v3, shards"),
    pytest.param({"compressors": BloscCodec(cname="zstd", clevel=2, shuffle="shuffle")}, id="v3, Blosc"),
    pytest.param({"compressors": ZstdCodec(level=3, checksum=True)}, id="v3, Zstd"),
    pytest.param({"compressors": GzipCodec(level=2)}, id="v3, gzip"),
    pytest.param({"compressors": [ZstdCodec(), Crc32cCodec()]}, id="v3, two codecs"),
    pytest.param({"compressors": Crc32cCodec()}, id="v3, checksums only"),
    pytest.param({"compressors": None}, id="v3, not compressed"),
    pytest.param({"serializer": BytesCodec(endian="big")}, id="v3, big-endian"),
    pytest.param({"dtype": ">u2"}, id="v3, big-endian dtype"),
    pytest.param({"filters": [TransposeCodec(order=(1, 0))]}, id="v3, transposed"),
    pytest.param({"filters": [TransposeCodec(order=(1, 0))], "shards": (10, 20)}, id="v3, transposed in shards"),
    pytest.param({"chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v3, keys of v2"),
    pytest.param({"chunk_key_encoding": {"name": "default", "separator": "."}}, id="v3, keys with dots"),
    pytest.param({"dimension_names": ["y", None]}, id="v3, dimension names"),
    pytest.param({"fill_value": 9}, id="v3, fill value"),
    pytest.param({"zarr_format": 2}, id="v2"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.Blosc("lz4hc", 3, -1)}, id="v2, Blosc, auto shuffle"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.Zlib(4)}, id="v2, Zlib"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.Zstd(4)}, id="v2, Zstd"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.GZip(4)}, id="v2, GZip"),
    pytest.param({"zarr_format": 2, "compressors": numcodecs.BZ2(4)}, id="v2, BZ2"),
    pytest.param({"zarr_format": 2, "compressors": None}, id="v2, not compressed"),
    pytest.param({"zarr_format": 2, "filters": [numcodecs.Delta("u2")]}, id="v2, Delta"),
    pytest.param({"zarr_format": 2, "order": "F"}, id="v2, Fortran order"),
    pytest.param({"zarr_format": 2, "dtype": ">u2"}, id="v2, big-endian"),
    pytest.param({"zarr_format": 2, "fill_value": 7}, id="v2, fill value"),
    pytest.param({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v2, dots"),
    pytest.param({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}, id="v2, slashes"),
]


def lay(path: Path, files: dict[str, bytes]) -> None:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 60000, (50, 45)).astype(np.uint16)


def stored(path: Path, values: NDArray[Any], **form: Any) -> zarr.Array[Any]:
    options = {"shape": values.shape, "dtype": values.dtype, "chunks": (5, 5), **form}
    array = zarr.create_array(path, **options)
    array[...] = values
    return array


def create(encoding: Encoding, path: Path, shape: tuple[int, ...], dtype: Any, **attributes: Any) -> None:
    path.mkdir()
    for name, content in encoding.files(shape, np.dtype(dtype), attributes).items():
        (path / name).write_bytes(content)


def made(encoding: Encoding, path: Path, values: NDArray[Any], dtype: Any = None) -> zarr.Array[Any]:
    """An array made by an encoding, after a write of all voxels, opened anew."""
    create(encoding, path, values.shape, dtype or values.dtype, k=[1])
    zarr.open_array(path, mode="r+")[...] = values
    array = zarr.open_array(path, mode="r")
    np.testing.assert_array_equal(array[...], values)
    assert array.attrs.asdict() == {"k": [1]}
    return array


def metadata(array: zarr.Array[Any]) -> dict[str, Any]:
    return {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}


# As another array is stored


@pytest.mark.parametrize("form", FORMS)
def test_an_array_like_another_is_stored_as_that_is(form: dict[str, Any], values: NDArray[Any], tmp_path: Path) -> None:
    source = stored(tmp_path / "a.zarr", values, **form)
    encoding = encode_like(source, dtype=values.dtype)
    target = made(encoding, tmp_path / "b.zarr", values, source.dtype)
    assert metadata(target) == metadata(source)
    assert same_encoding(source, target)
    assert encoding.unit == (source.shards or source.chunks)


@given(data=st.data())
def test_an_array_like_another_but_for_what_is_given_is_read_back(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("like")
    values = np.arange(143, dtype=np.uint8).reshape(13, 11)
    form = data.draw(st.sampled_from([one.values[0] for one in FORMS]))
    source = zarr.create_array(folder / "a.zarr", **{"shape": (13, 11), "dtype": "u2", "chunks": (5, 5), **form})
    dtype = np.dtype(data.draw(st.sampled_from(["uint16", "float32", "uint8"])))
    chunks, made_chunks = data.draw(st.sampled_from([(None, (5, 5)), ((10, 7), (10, 7)), (4, (4, 4))]))
    shards = data.draw(st.sampled_from(["keep", None, (20, 28)]))
    zarr_format: Any = data.draw(st.sampled_from([None, 2, 3]))
    wanted: Any = {"dtype": dtype, "zarr_format": zarr_format, "chunks": chunks, "shards": shards}
    target_format = zarr_format or source.metadata.zarr_format
    if target_format == 2 and shards == (20, 28):
        with pytest.raises(ParameterError, match="need zarr format 3"):
            encode_like(source, **wanted)
        return
    encoding = encode_like(source, **wanted)
    assert f"format {target_format}, chunks" in str(encoding)
    target = made(encoding, folder / "b.zarr", values.astype(dtype))
    assert target.metadata.zarr_format == target_format
    assert target.chunks == (made_chunks if chunks or shards != (20, 28) else (5, 4))
    if shards != "keep":
        assert target.shards == shards


SHUFFLES = ["noshuffle", "shuffle", "bitshuffle"]


@pytest.mark.parametrize(
    ("codec", "other"),
    [
        (numcodecs.Blosc("zstd", 3, 1), {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"}),
        (numcodecs.Blosc("lz4", 9, 2), {"cname": "lz4", "clevel": 9, "shuffle": "bitshuffle"}),
        (numcodecs.Blosc("lz4", 9, 0), {"cname": "lz4", "clevel": 9, "shuffle": "noshuffle"}),
        (numcodecs.Blosc("zlib", 1, -1), {"cname": "zlib", "clevel": 1, "shuffle": "shuffle"}),
        (numcodecs.LZ4(), {"cname": "lz4"}),
        (numcodecs.Zstd(7), ZstdCodec(level=7)),
        (numcodecs.GZip(7), GzipCodec(level=7)),
        (numcodecs.Zlib(7), GzipCodec(level=7)),
        (None, None),
    ],
)
def test_a_codec_of_format_2_becomes_its_like_in_format_3(
    codec: Any, other: Any, values: NDArray[Any], tmp_path: Path
) -> None:
    source = stored(tmp_path / "a.zarr", values, zarr_format=2, compressors=codec)
    target = made(encode_like(source, dtype=values.dtype, zarr_format=3), tmp_path / "b.zarr", values)
    if isinstance(other, dict):
        (found,) = (codec.to_dict() for codec in target.compressors)
        assert found["name"] == "blosc"
        assert other.items() <= found["configuration"].items()
    else:
        assert target.compressors == (() if other is None else (other,))


@pytest.mark.parametrize(
    ("codec", "other"),
    [
        *[
            (BloscCodec(cname=name, clevel=level, shuffle=SHUFFLES[shuffle]), numcodecs.Blosc(name, level, shuffle))
            for name, level, shuffle in [("zstd", 3, 1), ("lz4", 9, 2), ("lz4", 9, 0), ("zlib", 1, 1)]
        ],
        (ZstdCodec(level=7), numcodecs.Zstd(7)),
        (GzipCodec(level=7), numcodecs.GZip(7)),
        (None, None),
    ],
)
@pytest.mark.parametrize("shards", [None, (10, 10)])
def test_a_codec_of_format_3_becomes_its_like_in_format_2(
    shards: Any, codec: Any, other: Any, values: NDArray[Any], tmp_path: Path
) -> None:
    source = stored(tmp_path / "a.zarr", values, compressors=codec, shards=shards)
    target = made(encode_like(source, dtype=values.dtype, zarr_format=2), tmp_path / "b.zarr", values)
    assert target.compressors == (() if other is None else (other,))
    assert target.chunks == (5, 5)
    assert target.shards is None


def test_what_belongs_to_a_dtype_goes_with_it(tmp_path: Path) -> None:
    source = zarr.create_array(
        tmp_path / "a.zarr", shape=(9,), chunks=(4,), dtype="uint16", zarr_format=2, fill_value=9,
        filters=[numcodecs.Delta("u2")], compressors=numcodecs.Zlib(3),
    )  # fmt: skip
    target = made(encode_like(source, dtype=np.dtype("float32")), tmp_path / "b.zarr", np.arange(9, dtype=np.float32))
    assert target.fill_value == 0
    assert target.filters == ()
    assert target.compressors == (numcodecs.Zlib(3),)


@pytest.mark.parametrize("fill_value", [np.nan, np.inf, -0.0, 1.5])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_fill_values_of_floats_are_kept(zarr_format: Any, fill_value: float, tmp_path: Path) -> None:
    source = zarr.create_array(
        tmp_path / "a.zarr", shape=(9,), chunks=(4,), dtype="f4", zarr_format=zarr_format, fill_value=fill_value
    )
    for form in (2, 3):
        encoding = encode_like(source, dtype=source.dtype, zarr_format=form)
        create(encoding, tmp_path / f"{form}.zarr", (9,), source.dtype)
        target = zarr.open_array(tmp_path / f"{form}.zarr", mode="r")
        assert np.asarray(target.fill_value).tobytes() == np.float32(fill_value).tobytes()
        assert np.asarray(target[...]).tobytes() == np.full(9, fill_value, np.float32).tobytes()
    assert same_encoding(source, zarr.open_array(tmp_path / f"{zarr_format}.zarr", mode="r"))


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [((10, 10), (20, 20)), ((4, 5), (20, 20)), ((20, 20), (20, 20)), ((3, 5), None), ((40, 20), None), (7, None)],
)
def test_shards_are_kept_where_they_are_whole_chunks(
    chunks: Any, kept: Any, values: NDArray[Any], tmp_path: Path
) -> None:
    source = stored(tmp_path / "a.zarr", values, shards=(20, 20))
    encoding = encode_like(source, dtype=values.dtype, chunks=chunks)
    assert encoding.shards == kept
    made(encoding, tmp_path / "b.zarr", values)


@pytest.mark.parametrize(("shards", "chunks"), [((20, 20), (5, 5)), ((6, 7), (3, 1)), (4, (4, 4)), ((1, 40), (1, 5))])
def test_chunks_are_made_to_divide_the_shards_that_are_given(
    shards: Any, chunks: Any, values: NDArray[Any], tmp_path: Path
) -> None:
    source = stored(tmp_path / "a.zarr", values)
    encoding = encode_like(source, dtype=values.dtype, shards=shards)
    assert encoding.chunks == chunks
    made(encoding, tmp_path / "b.zarr", values)


# Whether chunks may be copied as they are


def test_arrays_that_differ_in_how_chunks_are_named_are_encoded_alike(values: NDArray[Any], tmp_path: Path) -> None:
    source = stored(tmp_path / "a.zarr", values)
    other = stored(
        tmp_path / "b.zarr",
        values,
        attributes={"a": 1},
        dimension_names=["y", "x"],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    assert same_encoding(source, other)
    by_dot = {"name": "v2", "separator": "."}
    assert same_encoding(
        stored(tmp_path / "c.zarr", values, zarr_format=2),
        stored(tmp_path / "d.zarr", values, zarr_format=2, chunk_key_encoding=by_dot),
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"chunks": (5, 6)}),
        ({}, {"shards": (10, 10)}),
        ({"shards": (10, 10)}, {"shards": (10, 20)}),
        ({}, {"fill_value": 1}),
        ({}, {"compressors": None}),
        ({}, {"serializer": BytesCodec(endian="big")}),
        ({}, {"filters": [TransposeCodec(order=(1, 0))]}),
        ({}, {"dtype": "int16"}),
        ({}, {"zarr_format": 2}),
        ({"zarr_format": 2}, {"zarr_format": 2, "order": "F"}),
        ({"zarr_format": 2}, {"zarr_format": 2, "dtype": ">u2"}),
        ({"zarr_format": 2}, {"zarr_format": 2, "filters": [numcodecs.Delta("u2")]}),
        ({"zarr_format": 2}, {"zarr_format": 2, "compressors": numcodecs.Zlib(1)}),
        ({"shape": (50, 40)}, {"shape": (50, 45)}),
    ],
)
def test_arrays_whose_chunks_are_other_bytes_are_told_apart(one: Any, other: Any, tmp_path: Path) -> None:
    arrays = [
        zarr.create_array(tmp_path / name, **{"shape": (50, 45), "dtype": "uint16", "chunks": (5, 5), **form})
        for name, form in (("a.zarr", one), ("b.zarr", other))
    ]
    assert not same_encoding(*arrays)


# New arrays


@given(data=st.data())
def test_new_arrays_are_read_back(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = data.draw(shapes(1, 5))
    form: Any = data.draw(st.sampled_from([2, 3]))
    chunks = data.draw(st.none() | st.integers(1, 20) | tile_shapes(shape))
    shards: Any = None
    if form == 3 and isinstance(chunks, tuple):
        shards = data.draw(st.none() | st.integers(1, 3).map(lambda k: tuple(k * c for c in chunks)))
    compression = data.draw(st.sampled_from(["lz4", "zstd", "gzip", "none", None]))
    like = data.draw(st.none() | tile_shapes(shape))
    axes = data.draw(st.sampled_from([None, "tczyx"[-len(shape) :]]))
    encoding = new_encoding(
        shape, zarr_format=form, axes=axes, chunks=chunks, shards=shards, compression=compression, like=like
    )
    values = np.random.default_rng(0).integers(0, 9, shape).astype(np.int16)
    array = made(encoding, tmp_path_factory.mktemp("new") / "a.zarr", values)
    assert array.metadata.zarr_format == form
    assert array.shards == shards
    assert array.fill_value == 0
    if isinstance(chunks, tuple):
        assert array.chunks == chunks


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["lz4", "zstd", "gzip", "none"])
def test_compression_has_the_same_names_in_both_formats(zarr_format: Any, name: str, tmp_path: Path) -> None:
    encoding = new_encoding((100, 100), zarr_format=zarr_format, compression=name)
    array = made(encoding, tmp_path / "a.zarr", np.zeros((100, 100), np.uint16))
    words = str([getattr(c, "to_dict", getattr(c, "get_config", None))() for c in array.compressors])  # type: ignore[misc]
    assert name == "none" if not array.compressors else name in words
    if name in ("lz4", "zstd"):
        assert "bitshuffle" in words if zarr_format == 3 else "'shuffle': 2" in words


@pytest.mark.parametrize(
    ("shape", "axes", "chunks"),
    [
        ((3000, 4000), "yx", (1024, 1024)),
        ((3000, 4000), None, (1024, 1024)),
        ((500, 600, 700), "zyx", (128, 128, 128)),
        ((4, 500, 600, 700), "czyx", (1, 128, 128, 128)),
        ((3, 4, 500, 600, 700), "tczyx", (1, 1, 128, 128, 128)),
        ((3, 1000, 600), "cyx", (1, 1000, 600)),
        ((3, 1, 5000, 600), "czyx", (1, 1, 1024, 600)),
        ((1, 1), "yx", (1, 1)),
        ((2, 2, 2, 300, 300), None, (1, 1, 2, 128, 128)),
        ((10_000_000,), None, (1 << 20,)),
        ((0, 7), None, (1, 7)),
    ],
)
def test_new_chunks_hold_a_few_mebibytes_one_voxel_thick_over_time_and_channel(
    shape: tuple[int, ...], axes: str | None, chunks: tuple[int, ...]
) -> None:
    assert new_encoding(shape, zarr_format=3, axes=axes).chunks == chunks


@pytest.mark.parametrize(
    ("like", "taken"), [((64, 64), True), ((1, 20), False), ((1 << 13, 1 << 12), False), ((1, 4096), True)]
)
def test_chunks_of_the_image_are_taken_if_they_are_of_moderate_size(like: Any, taken: bool) -> None:
    chunks = new_encoding((9000, 9000), zarr_format=3, like=like).chunks
    assert chunks == (like if taken else (1024, 1024))


def test_one_number_for_chunks_is_cut_to_the_shape() -> None:
    assert new_encoding((3, 500, 1), zarr_format=3, chunks=64).chunks == (3, 64, 1)


def test_names_of_axes_are_kept_in_format_3() -> None:
    assert new_encoding((3, 4), zarr_format=3, axes="yx").options["dimension_names"] == ["y", "x"]
    assert "dimension_names" not in new_encoding((3, 4), zarr_format=2, axes="yx").options


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chunks": 0}, GeometryError, "chunks"),
        ({"chunks": (3, 4, 5)}, GeometryError, "chunks .* has 3 entries"),
        ({"chunks": (3, -4)}, GeometryError, "chunks"),
        ({"chunks": (1.5, 2)}, GeometryError, "chunks"),
        ({"chunks": True}, GeometryError, "chunks"),
        ({"chunks": "auto"}, GeometryError, "chunks"),
        ({"chunks": 4, "shards": 6}, GeometryError, r"shards \(6, 6\) are not whole chunks \(4, 4\)"),
        ({"chunks": 4, "shards": (8, 2)}, GeometryError, "not whole chunks"),
        ({"chunks": 4, "shards": "big"}, GeometryError, "shards"),
        ({"shards": 8, "zarr_format": 2}, ParameterError, r"shards 8 need zarr format 3"),
        ({"compression": "lzma"}, ParameterError, "compression 'lzma' is unknown. Choose one of 'lz4'"),
        ({"compression": 7}, ParameterError, "cannot be stored as asked in zarr format"),
        ({"compression": numcodecs.Zlib()}, ParameterError, "cannot be stored as asked in zarr format"),
        ({"compression": GzipCodec(), "zarr_format": 2}, ParameterError, "cannot be stored as asked in zarr format"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    options: dict[str, Any], error: Any, words: str, values: NDArray[Any], tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        new_encoding((30, 31), **{"zarr_format": 3, **options}).check((30, 31), np.dtype("u1"))
    source = zarr.create_array(tmp_path / "a.zarr", shape=(30, 31), chunks=(5, 5), dtype="u1")
    with pytest.raises(error, match=words):
        encode_like(source, dtype=np.dtype("u1"), **options).check((30, 31), np.dtype("u1"))


@pytest.mark.parametrize(
    ("compression", "zarr_format"),
    [(numcodecs.Zlib(3), 2), (GzipCodec(level=3), 3), (BloscCodec(cname="zlib"), 3), (numcodecs.Blosc("zlib"), 2)],
)
def test_codecs_are_taken_as_they_are(compression: Any, zarr_format: Any, tmp_path: Path) -> None:
    encoding = new_encoding((30, 31), zarr_format=zarr_format, compression=compression)
    array = made(encoding, tmp_path / "a.zarr", np.arange(930, dtype=np.uint16).reshape(30, 31))
    (codec,) = array.compressors
    assert type(codec) is type(compression)


@pytest.mark.parametrize("zarr_format", [1, 4, "2", True, 2.5])
def test_a_zarr_format_is_2_or_3(zarr_format: Any) -> None:
    with pytest.raises(ParameterError, match="is neither 2 nor 3"):
        check_format(zarr_format)
    assert check_format(None) is None
    assert [check_format(form) for form in (2, 3)] == [2, 3]
