"""How an array is stored: chunks, shards, codecs, zarr format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from blockbuster.errors import GeometryError, ParameterError
from blockbuster.grid import per_axis

__all__ = [
    "Compression",
    "Encoding",
    "ZarrFormat",
    "check_format",
    "encode_like",
    "group_files",
    "new_encoding",
    "same_encoding",
]

ZarrFormat: TypeAlias = Literal[2, 3]
Compression: TypeAlias = Any

# By name: for zarr format 2, and for 3.
_NAMED: dict[str, tuple[Any, Any]] = {
    "lz4": (
        numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
        BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    ),
    "zstd": (
        numcodecs.Blosc("zstd", clevel=3, shuffle=numcodecs.Blosc.BITSHUFFLE),
        BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    ),
    "gzip": (numcodecs.GZip(level=5), GzipCodec(level=5)),
    "none": (None, None),
}
# A chunk of a volume, of a plane, and of anything of more axes: a few MiB each.
_EXTENTS = {1: 1 << 20, 2: 1024, 3: 128}


@dataclass(frozen=True, eq=False)
class Encoding:
    """How an array is stored.

    Attributes
    ----------
    chunks : tuple of int
        Voxels per chunk and axis.
    shards : tuple of int or None
        Voxels per shard and axis, whole chunks; None where each chunk is a file of its own.
    zarr_format : {2, 3}
        Version of the zarr format.
    options : dict
        More keyword arguments of ``zarr.create_array``.
    """

    chunks: tuple[int, ...]
    zarr_format: ZarrFormat
    shards: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> tuple[int, ...]:
        """Voxels of what is written at once: a shard, or a chunk."""
        return self.shards or self.chunks

    def __str__(self) -> str:
        return f"format {self.zarr_format}, chunks {self.chunks}, shards {self.shards}, {self.options}"

    def check(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        """Refuse what zarr would refuse, before anything is written.

        Raises
        ------
        ParameterError
            Such as for a codec of the other format.
        """
        try:
            self.files(shape, dtype, {})
        except (TypeError, ValueError, KeyError) as error:
            raise ParameterError(
                f"An array of {dtype} cannot be stored as asked in zarr format {self.zarr_format} ({self}): {error}"
            ) from error

    def files(self, shape: Sequence[int], dtype: np.dtype[Any], attributes: Mapping[str, Any]) -> dict[str, bytes]:
        """The files of the empty array, by their names."""
        held: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(held),
            shape=tuple(shape),
            dtype=dtype,
            chunks=self.chunks,
            shards=self.shards,
            zarr_format=self.zarr_format,
            attributes=dict(attributes),
            **self.options,
        )
        return {name: buffer.to_bytes() for name, buffer in held.items()}


def group_files(zarr_format: ZarrFormat, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of an empty group, by their names."""
    held: dict[str, Any] = {}
    zarr.create_group(MemoryStore(held), zarr_format=zarr_format, attributes=dict(attributes))
    return {name: buffer.to_bytes() for name, buffer in held.items()}


def check_format(zarr_format: Any) -> ZarrFormat | None:
    """A version of the zarr format, or None.

    Raises
    ------
    ParameterError
        If it is neither 2 nor 3.
    """
    if zarr_format not in (None, 2, 3) or isinstance(zarr_format, bool):
        raise ParameterError(f"zarr_format {zarr_format!r} is neither 2 nor 3.")
    made: ZarrFormat | None = zarr_format
    return made


def new_encoding(
    shape: Sequence[int],
    *,
    zarr_format: ZarrFormat,
    axes: str | None = None,
    chunks: Any = None,
    shards: Any = None,
    compression: Compression = "lz4",
    like: Sequence[int] | None = None,
) -> Encoding:
    """How to store a new array.

    Parameters
    ----------
    chunks : int or sequence of int, optional
        Default: those of `like` if they are of moderate size, else a few MiB, one voxel thick over time and channel.
    shards : int or sequence of int, optional
        Whole chunks per axis, in voxels. Default: none.
    compression : {"lz4", "zstd", "gzip", "none"}, codec or None
        A name, or a codec for that zarr format.
    like : sequence of int, optional
        Chunks that the image is in now.

    Raises
    ------
    GeometryError
        If chunks do not fit the shape, or shards are not whole chunks.
    ParameterError
        If there is no such compression, or shards are asked for in zarr format 2.
    """
    made = _chunks(shape, axes, chunks, like)
    if chunks is None and shards is not None:
        made = _dividing(made, per_axis("shards", shards, shape, minimum=1))
    codec = _codec(compression, zarr_format)
    options: dict[str, Any] = {"compressors": codec, "fill_value": 0}
    if zarr_format == 2:
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    elif axes is not None:
        options["dimension_names"] = list(axes)
    return Encoding(made, zarr_format, _shards(shards, made, shape, zarr_format), options)


def encode_like(
    array: zarr.Array[Any],
    *,
    dtype: np.dtype[Any],
    zarr_format: ZarrFormat | None = None,
    chunks: Any = None,
    shards: Any = "keep",
    compression: Compression = "keep",
) -> Encoding:
    """How to store a copy of an array: as it is stored, but for what is given.

    Raises
    ------
    GeometryError, ParameterError
        As `new_encoding`.
    """
    form: ZarrFormat = zarr_format or array.metadata.zarr_format
    moved = form != array.metadata.zarr_format
    same_type = dtype == array.dtype.newbyteorder("=")
    options = _kept_options(array, form)
    if isinstance(compression, str) and compression == "keep":
        options.update(_kept_codecs(array, same_type) if not moved else {"compressors": _translated(array, form)})
    else:
        options["compressors"] = _codec(compression, form)
    if not same_type:
        options["fill_value"] = 0
    made = array.chunks if chunks is None else _chunks(array.shape, None, chunks, None)
    keep = isinstance(shards, str) and shards == "keep"
    if chunks is None and shards is not None and not keep:
        made = _dividing(made, per_axis("shards", shards, array.shape, minimum=1))
    # Shards that no longer are whole chunks, or that the format does not know, are left away.
    kept = array.shards if keep and form == 3 and _are_whole(array.shards, made) else None
    return Encoding(made, form, kept if keep else _shards(shards, made, array.shape, form), options)


def same_encoding(source: zarr.Array[Any], target: zarr.Array[Any]) -> bool:
    """Whether the bytes of a chunk of the one are those of the same chunk of the other."""
    return _stored_form(source) == _stored_form(target)


def _stored_form(array: zarr.Array[Any]) -> dict[str, Any]:
    beside = ("attributes", "dimension_names", "dimension_separator", "chunk_key_encoding")
    return {key: value for key, value in array.metadata.to_dict().items() if key not in beside}


def _chunks(shape: Sequence[int], axes: str | None, chunks: Any, like: Sequence[int] | None) -> tuple[int, ...]:
    if chunks is not None:
        given = per_axis("chunks", chunks, shape, minimum=1)
        return (
            given
            if not isinstance(chunks, int)
            else tuple(min(c, max(n, 1)) for c, n in zip(given, shape, strict=True))
        )
    if like is not None and (1 << 12) <= math.prod(like) <= (1 << 24):
        return tuple(max(c, 1) for c in like)
    thick = [axis for axis in range(len(shape)) if axes is None or axes[axis] not in "tc"][-3:]
    extent = _EXTENTS.get(sum(shape[axis] > 1 for axis in thick) or 1, 128)
    return tuple(max(min(n, extent), 1) if axis in thick else 1 for axis, n in enumerate(shape))


def _shards(shards: Any, chunks: tuple[int, ...], shape: Sequence[int], form: ZarrFormat) -> tuple[int, ...] | None:
    if shards is None:
        return None
    if form == 2:
        raise ParameterError(f"shards {shards!r} need zarr format 3 (OME-Zarr 0.5); the output is of format 2.")
    made = per_axis("shards", shards, shape, minimum=1)
    if not _are_whole(made, chunks):
        raise GeometryError(
            f"shards {made} are not whole chunks {chunks}. Give a multiple of the chunks on every axis."
        )
    return made


def _dividing(chunks: Sequence[int], shards: Sequence[int]) -> tuple[int, ...]:
    """Chunks of at most the given size, of which shards are whole."""
    return tuple(max(d for d in range(1, min(c, s) + 1) if s % d == 0) for c, s in zip(chunks, shards, strict=True))


def _are_whole(shards: Sequence[int] | None, chunks: Sequence[int]) -> bool:
    return shards is not None and all(s % c == 0 for s, c in zip(shards, chunks, strict=True))


def _codec(compression: Compression, form: ZarrFormat) -> Any:
    if compression is None:
        return None
    if not isinstance(compression, str):
        return compression
    if compression not in _NAMED:
        raise ParameterError(
            f"compression {compression!r} is unknown. Choose one of {', '.join(map(repr, _NAMED))}, or give a codec."
        )
    return _NAMED[compression][form - 2]


def _kept_options(array: zarr.Array[Any], form: ZarrFormat) -> dict[str, Any]:
    metadata = array.metadata
    options: dict[str, Any] = {"fill_value": array.fill_value}
    if form == 2:
        separator = getattr(metadata, "dimension_separator", "/")
        options["chunk_key_encoding"] = {"name": "v2", "separator": separator}
        options["order"] = getattr(metadata, "order", "C")
    elif isinstance(metadata, ArrayV3Metadata):
        options["chunk_key_encoding"] = metadata.chunk_key_encoding
        options["dimension_names"] = metadata.dimension_names
    return options


def _kept_codecs(array: zarr.Array[Any], same_type: bool) -> dict[str, Any]:
    codecs: dict[str, Any] = {"compressors": array.compressors or None}
    if same_type:
        codecs["filters"] = array.filters or None
        if array.metadata.zarr_format == 3:
            codecs["serializer"] = array.serializer
    return codecs


def _translated(array: zarr.Array[Any], form: ZarrFormat) -> Any:
    """The compressor of an array in the words of the other format; ours where there is no word for it."""
    for codec in array.compressors[:1]:
        if isinstance(codec, numcodecs.Blosc) and form == 3:
            return BloscCodec.from_dict({"name": "blosc", "configuration": _blosc_words(codec, array.dtype)})
        if isinstance(codec, numcodecs.Zstd) and form == 3:
            return ZstdCodec(level=codec.level)
        if isinstance(codec, numcodecs.GZip | numcodecs.Zlib) and form == 3:
            return GzipCodec(level=codec.level)
        if isinstance(codec, BloscCodec) and form == 2:
            shuffle = ("noshuffle", "shuffle", "bitshuffle").index(codec.shuffle.value)
            return numcodecs.Blosc(codec.cname.value, clevel=codec.clevel, shuffle=shuffle)
        if isinstance(codec, ZstdCodec) and form == 2:
            return numcodecs.Zstd(level=codec.level)
        if isinstance(codec, GzipCodec) and form == 2:
            return numcodecs.GZip(level=codec.level)
        return _codec("lz4", form)
    return None


def _blosc_words(codec: Any, dtype: np.dtype[Any]) -> dict[str, Any]:
    bits = numcodecs.Blosc.BITSHUFFLE if dtype.itemsize == 1 else numcodecs.Blosc.SHUFFLE
    shuffle = codec.shuffle if codec.shuffle >= 0 else bits
    return {
        "cname": codec.cname,
        "clevel": codec.clevel,
        "shuffle": ("noshuffle", "shuffle", "bitshuffle")[shuffle],
        "typesize": dtype.itemsize,
        "blocksize": codec.blocksize,
    }
