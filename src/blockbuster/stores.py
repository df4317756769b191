"""Zarr arrays opened for our own reads and writes, with the fast codec pipeline where it can serve.

The pipeline is set on the arrays that are opened here, never in the configuration of zarr.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import sys
import urllib.parse
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import NDBuffer
from zarr.storage import FsspecStore, LocalStore, ZipStore
from zarrs.pipeline import (
    UnsupportedMetadataError,
    ZarrsCodecPipeline,
    get_codec_pipeline_fallback,
    get_codec_pipeline_impl,
)

from blockbuster.errors import BlockbusterError, ImageError

__all__ = [
    "ArrayRef",
    "FileState",
    "GivenRef",
    "Readable",
    "StoreRef",
    "absolute_path",
    "file_state",
    "local_path",
    "open_node",
    "reading",
    "reference",
    "with_fast_codecs",
]


FileState: TypeAlias = tuple[str, int, int]

# Chunks that are looked at for changes: all of them, but for arrays of very many.
_FILES = 4096
_REMOTE_FILES = 8
# What servers tell of the content of a file, in the words of fsspec.
_MARKS = ("ETag", "LastModified", "Last-Modified", "Content-MD5", "Digest", "mtime")


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
        if "://" in self.store:
            return None
        return _archive_of(self.store)[0] or Path(self.store, self.component)

    def describe(self) -> str:
        """What it is called in messages and manifests."""
        return f"{self.store}/{self.component}".rstrip("/")

    def file_states(self) -> list[FileState]:
        """Name, size and time of change of its metadata and of some of its chunks."""
        if self.home is None:
            return _remote_states(self)
        archive, _ = _archive_of(self.store)
        if archive is not None:
            return [file_state(archive)]
        array = zarr.open_array(self.store, path=self.component, mode="r")
        return [file_state(self.home / name) for name in ("zarr.json", ".zarray", *_chunk_keys(array, _FILES))]


def _chunk_keys(array: zarr.Array[Any], most: int) -> list[str]:
    """Names of some of the files of an array, spread evenly."""
    units = array.shards or array.chunks
    counts = [max(-(-n // c), 1) for n, c in zip(array.shape, units, strict=True)]
    if not counts:
        return [array.metadata.encode_chunk_key(())]
    picked = np.unique(np.linspace(0, math.prod(counts) - 1, most).astype(np.int64))
    indices = zip(*np.unravel_index(picked, counts), strict=True)
    return [array.metadata.encode_chunk_key(tuple(map(int, index))) for index in indices]


def _remote_states(ref: StoreRef) -> list[FileState]:
    """What a server tells of some files, without their content."""
    import fsspec

    array = zarr.open_array(ref.store, path=ref.component, mode="r")
    system, root = fsspec.core.url_to_fs(ref.store)
    form = json.dumps(array.metadata.to_dict(), default=str, sort_keys=True)
    states: list[FileState] = [(hashlib.sha256(form.encode()).hexdigest(), len(form), 0)]
    for key in _chunk_keys(array, _REMOTE_FILES):
        name = "/".join(filter(None, (root, ref.component, key)))
        try:
            facts = system.info(name)
        except FileNotFoundError:
            facts = {}
        told = [str(facts[word]) for word in _MARKS if facts.get(word)]
        states.append((" ".join([key, *told]), int(facts.get("size") or 0), 0))
    return states


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


def file_state(path: Path) -> FileState:
    """Name, size and time of change of a file; zeros where there is none."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return path.name, 0, 0
    return str(path), facts.st_size, facts.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _opened(ref: StoreRef) -> Readable:
    store, inner = _store_of(ref.store)
    return with_fast_codecs(zarr.open_array(store, path=f"{inner}/{ref.component}".strip("/"), mode="r"))


def _store_of(path: str) -> tuple[str | ZipStore, str]:
    """What zarr opens for a path, and the path that remains within it."""
    archive, inner = _archive_of(path)
    return (path, "") if archive is None else (ZipStore(archive, mode="r"), inner)


def _archive_of(path: str) -> tuple[Path | None, str]:
    """The zip file that a path leads into, and the path within it."""
    if "://" in path or ".zip" not in path:
        return None, ""
    whole = Path(path)
    for archive in (whole, *whole.parents):
        if archive.suffix == ".zip" and archive.is_file() and zipfile.is_zipfile(archive):
            return archive, whole.relative_to(archive).as_posix().removeprefix(".")
    return None, ""


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
    """The array or group at a path or URL, or within a zip file.

    Raises
    ------
    ImageError
        If there is none.
    """
    archive, inner = _archive_of(path)
    if "://" not in path and archive is None and not os.path.exists(path):
        raise ImageError(f"There is nothing at {path}. Give the path of a zarr store or of a TIFF.")
    try:
        store = path if archive is None else ZipStore(archive, mode="r")
        node: zarr.Array[Any] | zarr.Group = zarr.open(store, path=inner or None, mode="r")
    except (ImportError, zipfile.BadZipFile) as error:
        raise ImageError(
            f"{path} cannot be opened: {error}. For URLs, install what opens them: "
            "pip install 'blockbuster-imaging[remote]'."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"{path} cannot be opened as zarr: {error}") from error
    return node


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Say of what comes up on the way to a URL where that was: each protocol has errors of its own."""
    try:
        yield
    except BlockbusterError:
        raise
    except Exception as error:
        if "://" not in path:
            raise
        hint = " Open buckets want the environment variable FSSPEC_S3_ANON=true." if path.startswith("s3:") else ""
        raise ImageError(f"{path} cannot be read: {type(error).__name__}: {error}.{hint}") from error


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


def read_region(array: Readable, region: tuple[slice | int, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """A region as a numpy array in native byte order.

    Parameters
    ----------
    out : ndarray, optional
        C-contiguous, of the shape and dtype of what is read: where to put it, if that can be done.
    """
    if out is not None and isinstance(array, zarr.Array) and array.dtype == out.dtype and is_native(array):
        array.get_basic_selection(region, out=NDBuffer.from_numpy_array(out))
        return out
    block = np.asarray(array[region])
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))
