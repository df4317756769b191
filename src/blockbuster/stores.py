"""Zarr arrays opened for our own reads and writes, with the fast codec pipeline where it can serve.

The pipeline is set on the arrays that are opened here, never in the configuration of zarr.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import urllib.parse
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import FsspecStore, LocalStore
from zarrs.pipeline import (
    UnsupportedMetadataError,
    ZarrsCodecPipeline,
    get_codec_pipeline_fallback,
    get_codec_pipeline_impl,
)

from blockbuster.errors import ImageError

__all__ = [
    "ArrayRef",
    "GivenRef",
    "Readable",
    "StoreRef",
    "TiffRef",
    "absolute_path",
    "is_tiff",
    "local_path",
    "open_node",
    "read_tiff_form",
    "reference",
    "with_fast_codecs",
]


FileState: TypeAlias = tuple[str, int, int]

# Chunks that are looked at for changes: all of them, but for arrays of very many.
_FILES = 4096


class Readable(Protocol):
    """What an image must have: a zarr array has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""

    def __getitem__(self, key: Any, /) -> Any: ...


class ArrayRef(Protocol):
    """How every process finds one stored array; equal references are opened once per process."""

    def open(self) -> Readable:
        """The array."""

    @property
    def home(self) -> Path | None:
        """Where it lies, if on a local file system."""

    def describe(self) -> str:
        """What it is called in messages and manifests: the same in each run."""

    def file_states(self) -> list[FileState]:
        """Name, size and time of change of a few of its files; none where it has no files."""


@dataclass(frozen=True)
class StoreRef:
    """A zarr array by the path or URL of its store and its path within.

    Attributes
    ----------
    opening : str
        Tells runs apart, so that an array replaced between two of them is opened anew.
    """

    store: str
    component: str = ""
    opening: str = field(default_factory=lambda: uuid.uuid4().hex)

    def open(self) -> Readable:
        """The array."""
        return _opened(self)

    @property
    def home(self) -> Path | None:
        """Where it lies, if on a local file system."""
        return None if "://" in self.store else Path(self.store, self.component)

    def describe(self) -> str:
        """What it is called in messages and manifests."""
        return f"{self.store}/{self.component}".rstrip("/")

    def file_states(self) -> list[FileState]:
        """Name, size and time of change of its metadata and of some of its chunks."""
        if self.home is None:
            return []
        array = zarr.open_array(self.store, path=self.component, mode="r")
        units = array.shards or array.chunks
        counts = [max(-(-n // c), 1) for n, c in zip(array.shape, units, strict=True)]
        picked = np.unique(np.linspace(0, math.prod(counts) - 1, _FILES).astype(np.int64))
        indices = zip(*np.unravel_index(picked, counts), strict=True)
        keys = [array.metadata.encode_chunk_key(tuple(map(int, index))) for index in indices]
        return [_state(self.home / name) for name in ("zarr.json", ".zarray", *keys)]


@dataclass(frozen=True)
class TiffRef:
    """One level of the first series of a TIFF, read tile by tile or strip by strip."""

    path: str
    level: int = 0
    opening: str = field(default_factory=lambda: uuid.uuid4().hex)

    def open(self) -> Readable:
        """The array."""
        return _opened_tiff(self)

    @property
    def home(self) -> Path | None:
        """Where it lies."""
        return Path(self.path)

    def describe(self) -> str:
        """What it is called in messages and manifests."""
        return f"{self.path} level {self.level}"

    def file_states(self) -> list[FileState]:
        """Name, size and time of change of the file."""
        return [_state(Path(self.path))]


@dataclass(frozen=True, eq=False)
class GivenRef:
    """An array of the caller's whose store has no path, such as one in memory."""

    array: Readable

    def open(self) -> Readable:
        """The array."""
        return self.array

    @property
    def home(self) -> Path | None:
        """None: it lies on no local file system."""
        return None

    def describe(self) -> str:
        """What it is called in messages and manifests."""
        return str(getattr(self.array, "store_path", type(self.array).__name__))

    def file_states(self) -> list[FileState]:
        """None: it has no files."""
        return []


def _state(path: Path) -> FileState:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return path.name, 0, 0
    return str(path), facts.st_size, facts.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _opened(ref: StoreRef) -> Readable:
    return with_fast_codecs(zarr.open_array(ref.store, path=ref.component, mode="r"))


@functools.lru_cache(maxsize=16)
def _opened_tiff(ref: TiffRef) -> Readable:
    import tifffile

    store = tifffile.imread(ref.path, aszarr=True, level=ref.level)
    array = zarr.open_array(store, mode="r")
    weakref.finalize(array, store.close)
    return array


def is_tiff(path: str) -> bool:
    """Whether a path is that of a TIFF, by its name."""
    return path.lower().endswith((".tif", ".tiff"))


def read_tiff_form(path: str) -> tuple[str, int]:
    """Axes of the first series of a TIFF, in lower case, and how many levels it has.

    Raises
    ------
    ImageError
        If it is no TIFF.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            # The samples of a pixel, as of RGB, are channels.
            axes = series.axes.lower().replace("s", "c") if "C" not in series.axes else series.axes.lower()
            return axes, len(series.levels)
    except FileNotFoundError as error:
        raise ImageError(f"There is nothing at {path}. Give the path of a zarr store or of a TIFF.") from error
    except (tifffile.TiffFileError, IndexError) as error:
        raise ImageError(f"{path} cannot be read as a TIFF: {error}") from error


def reference(array: zarr.Array[Any]) -> ArrayRef:
    """The reference of an array that the caller has opened."""
    path = local_path(array)
    return GivenRef(array) if path is None else StoreRef(str(path[0]), path[1])


def local_path(array: zarr.Array[Any]) -> tuple[Path, str] | None:
    """Root and component of an array, if it lies on a local file system."""
    store = array.store
    if isinstance(store, LocalStore):
        return Path(store.root).absolute(), array.path
    # fsspec serves local files as well, through a wrapper that makes them asynchronous.
    system = getattr(store, "fs", None)
    protocol = getattr(getattr(system, "sync_fs", system), "protocol", ())
    if isinstance(store, FsspecStore) and "file" in protocol:
        return Path(store.path).absolute(), array.path
    return None


def absolute_path(path: str) -> str:
    """A path or URL that means the same in every process; "file:" URLs become paths.

    Examples
    --------
    >>> absolute_path("file:///data/my%20image.zarr"), absolute_path("s3://bucket/image.zarr")
    ('/data/my image.zarr', 's3://bucket/image.zarr')
    """
    parts = urllib.parse.urlsplit(path)
    if parts.scheme in ("file", "local"):
        return os.path.abspath(urllib.parse.unquote(parts.path))
    return path if "://" in path else os.path.abspath(path)


def open_node(path: str) -> zarr.Array[Any] | zarr.Group:
    """The array or group at a path or URL.

    Raises
    ------
    ImageError
        If there is none.
    """
    if "://" not in path and not os.path.exists(path):
        raise ImageError(f"There is nothing at {path}. Give the path of a zarr store or of a TIFF.")
    try:
        node: zarr.Array[Any] | zarr.Group = zarr.open(path, mode="r")
    except (FileNotFoundError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ImageError(f"{path} cannot be opened as zarr: {error}") from error
    return node


def with_fast_codecs(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array with the Rust codec pipeline, if that supports it; changes `array` itself.

    Only for arrays on local file systems in native byte order and C order; others keep the ordinary pipeline.
    """
    inner = array.async_array
    if not isinstance(array.store, LocalStore) or not is_native(array) or array.order != "C":
        return array
    try:
        impl = get_codec_pipeline_impl(inner.metadata, array.store, strict=True)
    except UnsupportedMetadataError:
        return array
    fallback = get_codec_pipeline_fallback(inner.metadata, strict=False)
    pipeline = ZarrsCodecPipeline(metadata=inner.metadata, store=array.store, impl=impl, python_impl=fallback)
    object.__setattr__(inner, "codec_pipeline", pipeline)
    return array


def is_native(array: zarr.Array[Any]) -> bool:
    """Whether the stored values are in the byte order of this machine."""
    order = getattr(array.metadata, "dtype", array.dtype)
    stored = getattr(order, "endianness", None)
    return array.dtype.isnative and stored in (None, sys.byteorder)


def read_region(array: Readable, region: tuple[slice | int, ...]) -> NDArray[Any]:
    """A region as a numpy array in native byte order."""
    block = np.asarray(array[region])
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))
