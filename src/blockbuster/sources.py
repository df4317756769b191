"""Any image as one of three: in memory, in a dask graph, or stored; with its chunks and, where known, its axes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import zarr
from dask.array.core import normalize_chunks
from dask.base import tokenize
from numpy.typing import NDArray

from blockbuster.errors import GeometryError, ImageError
from blockbuster.graph import Blocks, read_as_it_is, values_in_graph
from blockbuster.grid import Region
from blockbuster.image_files import ImageFile, dimension_names, open_file
from blockbuster.ngff import pick_channel
from blockbuster.stores import ArrayRef, read_region, reading, reference

__all__ = [
    "Chunks",
    "GraphImage",
    "Image",
    "MemoryImage",
    "StoredImage",
    "from_file",
    "from_store",
    "given",
    "lazily",
    "open_mask",
    "open_source",
]

Chunks: TypeAlias = tuple[tuple[int, ...], ...]

_SAMPLES = 4


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """A numpy array."""

    array: NDArray[Any]
    axes: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        return self.array.dtype

    @property
    def chunks(self) -> Chunks:
        """One chunk."""
        return tuple((n,) for n in self.shape)

    @property
    def home(self) -> Path | None:
        """None: it lies on no file system."""
        return None

    @property
    def homes(self) -> list[Path]:
        """None: it lies on no file system."""
        return []

    def identity(self) -> str:
        """Tells whether another run had the same image."""
        return f"numpy array {self.shape} {self.dtype} {tokenize(self.array)}"

    def read(self, region: Region) -> NDArray[Any]:
        """The voxels of a region."""
        return self.array[region]


@dataclass(frozen=True, eq=False)
class GraphImage:
    """A dask array.

    Attributes
    ----------
    padded : tuple of int or None
        Where each block is a tile with its halo: the shape of the image that the cores make.
    """

    array: da.Array
    axes: str | None = None
    padded: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        shape: tuple[int, ...] = self.array.shape
        return self.padded or shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def chunks(self) -> Chunks:
        """Extents of the blocks per axis."""
        chunks: Chunks = self.array.chunks
        return chunks

    @property
    def home(self) -> Path | None:
        """None: its graph may read from many places."""
        return None

    @property
    def homes(self) -> list[Path]:
        """Where its graph reads, as far as that is on local file systems."""
        return [ref.home for ref in self._refs() if ref.home is not None]

    def identity(self) -> str:
        """Tells whether another run had the same image: its graph's name, and the state of the files it reads."""
        states = [ref.file_states() for ref in self._refs()]
        return f"dask array {self.shape} {self.dtype} {self.array.name} {tokenize(states)}"

    def _refs(self) -> list[ArrayRef]:
        own = [image.ref for image in values_in_graph(self.array, StoredImage)]
        return own + [reference(array) for array in values_in_graph(self.array, zarr.Array)]


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A stored array, or one channel of it: read region by region, in the task.

    Attributes
    ----------
    ref : ArrayRef
        Where it is.
    fixed : tuple of (int or None)
        For each axis of the array the index taken there, None where the axis stays.
    """

    ref: ArrayRef
    fixed: tuple[int | None, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Chunks
    axes: str | None = None

    @property
    def home(self) -> Path | None:
        """Where it lies, if on a local file system."""
        return self.ref.home

    @property
    def homes(self) -> list[Path]:
        """Where it lies, if on a local file system."""
        return [] if self.home is None else [self.home]

    def identity(self) -> str:
        """Tells whether another run had the same image: its name, its form, and a few of its files or voxels."""
        picked = [i for i in self.fixed if i is not None]
        with reading(self.ref.describe()):
            content = self.ref.file_states() or self._samples()
        return f"{self.ref.describe()} {self.shape} {self.dtype} at {picked} {tokenize(content)}"

    def read(self, region: Region, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The voxels of a region; in `out`, of its shape, where they can be read into it."""
        slices = iter(region)
        return read_region(self.ref.open(), tuple(next(slices) if i is None else i for i in self.fixed), out)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> Any:
        """What the basic indexing of zarr gives: for dask, which reads blocks that way."""
        wanted = iter(key if isinstance(key, tuple) else (key,))
        return read_region(self.ref.open(), tuple(next(wanted, slice(None)) if i is None else i for i in self.fixed))

    def _samples(self) -> list[NDArray[Any]]:
        if 0 in self.shape:
            return []
        spots = [[(n - 1) * k // (_SAMPLES - 1) for n in self.shape] for k in range(_SAMPLES)]
        try:
            return [self.read(tuple(slice(i, i + 1) for i in spot)) for spot in spots]
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageError(f"The image {self.ref.describe()} cannot be read: {error}") from error


Image: TypeAlias = MemoryImage | GraphImage | StoredImage


def open_source(image: Any, *, channel: int | str | None = 0, level: int = 0, plain_level: bool = False) -> Image:
    """An image of any kind.

    Parameters
    ----------
    image : array_like or path
        A dask, numpy or zarr array, or the path or URL of a zarr store or of a TIFF.
    channel : int, str or None
        Channel of a store with a channel axis, by number or name; None for all. Ignored for arrays.
    level : int
        Level of a pyramid. Ignored for arrays.
    plain_level : bool
        Take a path to something without levels as it is, whatever the level.

    Raises
    ------
    ImageError
        If `image` is nothing of these, or has no such channel or level.
    """
    if isinstance(image, MemoryImage | GraphImage | StoredImage):
        return image
    if isinstance(image, da.Array):
        return _from_dask(image)
    if isinstance(image, zarr.Array):
        _check_numbers(image.dtype, str(image.store_path))
        return _stored(reference(image), image, dimension_names(image), (None,) * image.ndim)
    if isinstance(image, str | os.PathLike):
        file = open_file(os.fspath(image))
        has_levels = file.is_ome or len(file.refs) > 1
        return from_file(file, channel=channel, level=0 if plain_level and not has_levels else level)
    if isinstance(image, zarr.Group):
        raise ImageError(f"{image} is a zarr group. Give its path, or one of its arrays.")
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise ImageError(f"image is a {type(image).__name__} that is no array: {error}") from error
    if array.dtype.hasobject or array.dtype.kind in "USV":
        hint = " Give its .data, or one of its .levels." if hasattr(image, "levels") else ""
        raise ImageError(
            f"image is a {type(image).__name__}, which holds {array.dtype}. Give a dask, numpy or zarr array, or the "
            f"path of a zarr store or a TIFF.{hint}"
        )
    return MemoryImage(array)


def open_mask(mask: Any, shape: Sequence[int], what: str = "image") -> Image | None:
    """What tells which voxels count; None for all.

    Parameters
    ----------
    shape : sequence of int
        Of what it is the mask of.
    what : str
        What that is, for the error.

    Raises
    ------
    ImageError
        If it is no image.
    GeometryError
        If it has another shape.
    """
    if mask is None:
        return None
    inside = open_source(mask, channel=None, plain_level=True)
    if inside.shape != tuple(shape):
        raise GeometryError(f"The mask has shape {inside.shape}, the {what} {tuple(shape)}. They must be the same.")
    return inside


def given(image: Image) -> NDArray[Any] | da.Array | Blocks | None:
    """What a graph must give to the tasks of an image: nothing where they read it themselves."""
    if isinstance(image, StoredImage):
        return None
    if isinstance(image, GraphImage) and image.padded is not None:
        return Blocks(image.array)
    return image.array


def lazily(image: Image, chunks: Any = None) -> da.Array:
    """An image as a dask array whose blocks are read when they are computed.

    Parameters
    ----------
    chunks : optional
        As dask spells them. Default: those that the image is stored in.
    """
    if isinstance(image, GraphImage):
        array: da.Array = image.array if chunks is None else image.array.rechunk(chunks)
        return array
    source = image.array if isinstance(image, MemoryImage) else image
    try:
        blocks = image.chunks if chunks is None else normalize_chunks(chunks, image.shape, dtype=image.dtype)
        if any(extent < 0 for axis in blocks for extent in axis):
            raise ValueError("an extent is negative")
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise GeometryError(f"chunks {chunks!r} do not fit an image of shape {image.shape}: {error}") from error
    told = (image.ref.describe(), image.fixed) if isinstance(image, StoredImage) else image.identity()
    # The same name each time, so that a run that is resumed finds the same image.
    name = f"image-{tokenize(told, image.shape, str(image.dtype), blocks)}"
    read: da.Array = da.from_array(source, chunks=blocks, name=name, fancy=False)
    return read


def _from_dask(array: da.Array) -> Image:
    if any(np.isnan(n) for n in array.shape):
        raise ImageError(f"image is a dask array of unknown shape {array.shape}. Call its compute_chunk_sizes() first.")
    own: StoredImage | None = read_as_it_is(array, StoredImage)
    if own is not None:
        return replace(own, chunks=array.chunks)
    stored = read_as_it_is(array, zarr.Array)
    if stored is None:
        return GraphImage(array)
    return replace(_stored(reference(stored), stored, None, None), chunks=array.chunks)


def from_store(ref: ArrayRef) -> StoredImage:
    """A stored array, whole."""
    return _stored(ref, ref.open(), None, None)


def from_file(file: ImageFile, *, channel: int | str | None, level: int) -> StoredImage:
    """One level of a stored image, or one channel of it.

    Raises
    ------
    ImageError
        If there is no such channel or level.
    """
    array = file.array(level)
    _check_numbers(array.dtype, file.path)
    fixed = pick_channel(file.axes, file.form.channel_names, channel, array.shape, file.path)
    return _stored(file.refs[level], array, file.axes, fixed)


def _stored(ref: ArrayRef, array: Any, axes: str | None, fixed: Sequence[int | None] | None) -> StoredImage:
    fixed = tuple(fixed) if fixed is not None else (None,) * len(array.shape)
    keep = [axis for axis, i in enumerate(fixed) if i is None]
    chunks = tuple(_regular(array.shape[axis], array.chunks[axis]) for axis in keep)
    names = None if axes is None else "".join(axes[axis] for axis in keep)
    dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")
    return StoredImage(ref, fixed, tuple(array.shape[axis] for axis in keep), dtype, chunks, names)


def _check_numbers(dtype: np.dtype[Any], path: str) -> None:
    if dtype.kind not in "biufc":
        raise ImageError(f"{path} holds {dtype}, which is none of numbers: it is no image.")


def _regular(extent: int, chunk: int) -> tuple[int, ...]:
    whole, rest = divmod(extent, chunk)
    return (chunk,) * whole + ((rest,) if rest else ()) or (0,)
