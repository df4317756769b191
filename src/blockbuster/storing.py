"""From the options of a call to a plan for one array: how it is stored, in which tiles it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import zarr

from blockbuster.destination import Destination
from blockbuster.encoding import Compression, Encoding, ZarrFormat, encode_like, new_encoding
from blockbuster.errors import ParameterError
from blockbuster.grid import TileGrid, per_axis
from blockbuster.outputs import chunks_within, format_of, node_kind
from blockbuster.sources import Image, MemoryImage, StoredImage, open_mask
from blockbuster.stores import StoreRef, open_node
from blockbuster.tilewise import ArrayPlan, Kernel, TilePlan
from blockbuster.tiling import TileShape, check_block_ids, make_grid, make_writing_grid, warn_of_amplification

__all__ = ["Axes", "Storage", "check_home", "plan_array", "stored_chunks"]

# For each axis of a result that of the image which it is; None for one that is new.
Axes: TypeAlias = tuple[int | None, ...]


@dataclass(frozen=True)
class Storage:
    """What was asked for of how a result is stored: see `blockbuster.copy`."""

    chunks: Any = None
    shards: Any = "keep"
    compression: Compression = "keep"
    zarr_format: ZarrFormat | None = None

    def like(self, array: zarr.Array[Any], dtype: np.dtype[Any], form: ZarrFormat, chunks: Any) -> Encoding:
        """As an array is stored, but for what was asked for."""
        return encode_like(
            array, dtype=dtype, zarr_format=form, chunks=chunks, shards=self.shards, compression=self.compression
        )

    def new(
        self,
        shape: Sequence[int],
        form: ZarrFormat,
        axes: str | None,
        *,
        chunks: Any = None,
        like: Sequence[int] | None = None,
    ) -> Encoding:
        """As arrays are stored that are not from zarr, but for what was asked for."""
        return new_encoding(
            shape,
            zarr_format=form,
            axes=axes,
            chunks=self.chunks if chunks is None else chunks,
            shards=None if _keeps(self.shards) else self.shards,
            compression="lz4" if _keeps(self.compression) else self.compression,
            like=like,
        )


def plan_array(
    operation: str,
    image: Image,
    kernel: Kernel,
    to: Destination,
    storage: Storage,
    *,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    tile_shape: TileShape,
    mask: Any,
    block_ids: Sequence[int] | None,
    axes: Axes | None = None,
    overlap: int | Sequence[int] = 0,
) -> TilePlan:
    """The plan of one array that is made from an image.

    Parameters
    ----------
    tile_shape : None, int, tuple of int, "auto" or callable
        Of the result.
    axes : sequence of (int or None), optional
        Which axes of the image those of the result are. New ones are whole in each tile. Default: the same.
    overlap : int or sequence of int
        Voxels that are read beyond each side of a tile, per axis of the image.

    Raises
    ------
    GeometryError, ParameterError, ImageError
        If options do not fit the image, the result, or each other.
    """
    patches = mask is not None or block_ids is not None
    own = tuple(range(len(image.shape)))
    axes = own if axes is None else axes
    stored = _plain_array(image) if axes == own else None
    same_type = stored is not None and stored.dtype.newbyteorder("=") == dtype
    same_shape = stored is not None and stored.shape == tuple(shape)
    encoding = None if to.write_to is None else _encoding(image, stored, to, storage, shape, dtype, tile_shape, axes)
    if encoding is None:
        grid = _grid(shape, image, tile_shape, axes)
    else:
        if patches:
            encoding.options["fill_value"] = 0
        encoding.check(shape, dtype)
        unit = _existing_unit(to, patches, len(shape)) or encoding.unit
        unit = tuple(max(n, 1) if a is None else u for n, a, u in zip(shape, axes, unit, strict=True))
        reads = _reads(shape, image, axes)
        few = [1] * len(unit) if block_ids is not None else reads
        tiles = unit if tile_shape is None and block_ids is not None else tile_shape
        held = None if axes == own else _voxel_bytes(shape, image, axes, dtype)
        grid = make_writing_grid(shape, tiles, unit, dtype=dtype, reads=few, voxel_bytes=held)
    grid = _with_overlap(grid, image, axes, overlap)
    warn_of_amplification(grid)
    array = ArrayPlan(
        image,
        kernel,
        grid,
        dtype,
        encoding=encoding,
        stored_dtype=stored.dtype if stored is not None and same_type else None,
        attributes=stored.attrs.asdict() if stored is not None and same_shape else {},
    )
    inside = open_mask(mask, shape, "result")
    return TilePlan(operation, (array,), mask=inside, block_ids=check_block_ids(block_ids, grid))


def stored_chunks(image: Image) -> tuple[int, ...]:
    """The largest chunk of an image per axis, voxels."""
    return tuple(max(axis, default=1) or 1 for axis in image.chunks)


def _encoding(
    image: Image,
    stored: zarr.Array[Any] | None,
    to: Destination,
    storage: Storage,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    tile_shape: TileShape,
    axes: Axes,
) -> Encoding:
    form = check_home(to, storage.zarr_format)
    if stored is not None:
        return storage.like(stored, dtype, form or stored.metadata.zarr_format, storage.chunks)
    picked, like, names = _zarr_array(image), _chunks(image, axes), _names(image, axes)
    if picked is not None:
        return _like_picked(like, names, picked, storage, shape, form or picked.metadata.zarr_format)
    chunks = storage.chunks
    is_given = isinstance(tile_shape, Sequence) and not isinstance(tile_shape, str)
    if chunks is None and _keeps(storage.shards) and is_given:
        chunks = chunks_within(TileGrid.regular(shape, tile_shape))  # type: ignore[arg-type]
    return storage.new(
        shape,
        form or format_of(to.root),
        names,
        chunks=chunks,
        like=None if isinstance(image, MemoryImage) else like,
    )


def _chunks(image: Image, axes: Axes) -> tuple[int, ...]:
    """The largest chunk of an image per axis of a result."""
    chunks = stored_chunks(image)
    return tuple(1 if a is None else chunks[a] for a in axes)


def _names(image: Image, axes: Axes) -> str | None:
    """The names of the axes of a result, where all are known."""
    kept = [image.axes[a] for a in axes if image.axes is not None and a is not None]
    return "".join(kept) if image.axes is not None and len(kept) == len(axes) else None


def _reads(shape: Sequence[int], image: Image, axes: Axes) -> list[int]:
    """Voxels of a result that one chunk of the image makes."""
    chunks = zip(shape, axes, _chunks(image, axes), strict=True)
    return [n if a is None else n * c // max(image.shape[a], 1) for n, a, c in chunks]


def _voxel_bytes(shape: Sequence[int], image: Image, axes: Axes, dtype: np.dtype[Any]) -> int:
    """Bytes for each voxel of a result: its own, or those of what it is made from, where these are more."""
    gone = math.prod(n for axis, n in enumerate(image.shape) if axis not in axes)
    new = math.prod(n for n, a in zip(shape, axes, strict=True) if a is None)
    return max(dtype.itemsize, image.dtype.itemsize * gone // new)


def _with_overlap(grid: TileGrid, image: Image, axes: Axes, overlap: int | Sequence[int]) -> TileGrid:
    """A grid of a result with the overlap that is asked for on axes of the image."""
    every = per_axis("overlap", overlap, image.shape, minimum=0)
    kept = [(chunks, a) for chunks, a in zip(grid.chunks, axes, strict=True) if a is not None]
    some = [every[a] for _, a in kept] if isinstance(overlap, Iterable) else overlap
    found = iter(TileGrid.from_chunks([chunks for chunks, _ in kept], some).overlap)
    return replace(grid, overlap=tuple(0 if a is None else next(found) for a in axes))


def _grid(shape: Sequence[int], image: Image, tile_shape: TileShape, axes: Axes) -> TileGrid:
    """Tiles of a result that is not stored: by default blocks as large as those of the image."""
    if not shape:
        return TileGrid.from_chunks(())
    if axes != tuple(range(len(image.shape))):
        blocks = [(n,) if a is None else image.chunks[a] for n, a in zip(shape, axes, strict=True)]
        return TileGrid.from_chunks(blocks) if tile_shape is None else TileGrid.regular(shape, tile_shape)  # type: ignore[arg-type]
    if tuple(shape) == image.shape:
        return make_grid(image, tile_shape, 0)
    chunks = stored_chunks(image)
    if not isinstance(image, StoredImage):
        # Tasks are given all that they need of it at once: what one block makes.
        chunks = tuple(max(n * c // max(m, 1), 1) for n, m, c in zip(shape, image.shape, chunks, strict=True))
    tiles = tile_shape if tile_shape not in (None, "auto") else chunks
    if callable(tiles):
        tiles = tiles(tuple(shape), image.dtype)
    return TileGrid.regular(shape, tiles)  # type: ignore[arg-type]


def check_home(to: Destination, zarr_format: ZarrFormat | None) -> ZarrFormat | None:
    """The zarr format of a result within a store: that of the store, where there is one.

    Raises
    ------
    ParameterError
        If another one was asked for: readers of a group do not find members of another format.
    """
    if not to.component or node_kind(to.root) is None:
        return zarr_format
    form = format_of(to.root)
    if zarr_format not in (None, form):
        raise ParameterError(
            f"{to.root} is of zarr format {form}, so what is written into it cannot be of format {zarr_format}. "
            "Write to another store."
        )
    return form


def _keeps(option: Any) -> bool:
    return isinstance(option, str) and option == "keep"


def _existing_unit(to: Destination, patches: bool, ndim: int) -> tuple[int, ...] | None:
    """Whole chunks or shards of the array that a patch goes into, if there is one."""
    if not patches or not to.path.exists():
        return None
    node = open_node(str(to.path))
    if not isinstance(node, zarr.Array) or node.ndim != ndim:
        # Refused where the output is planned.
        return None
    return node.shards or node.chunks


def _like_picked(
    like: Sequence[int],
    axes: str | None,
    array: zarr.Array[Any],
    storage: Storage,
    shape: Sequence[int],
    form: ZarrFormat,
) -> Encoding:
    """As an array is stored that an image is a part of, such as one channel."""
    keeps = _keeps(storage.compression) and form == array.metadata.zarr_format
    storage = replace(storage, compression=(array.compressors or None) if keeps else storage.compression)
    chunks = like if storage.chunks is None and _keeps(storage.shards) else storage.chunks
    return storage.new(shape, form, axes, chunks=chunks, like=like)


def _zarr_array(image: Image) -> zarr.Array[Any] | None:
    """The zarr array that an image is, or is a part of."""
    array = image.ref.open() if isinstance(image, StoredImage) and isinstance(image.ref, StoreRef) else None
    return array if isinstance(array, zarr.Array) else None


def _plain_array(image: Image) -> zarr.Array[Any] | None:
    """The zarr array that an image is, voxel by voxel."""
    if not isinstance(image, StoredImage) or any(index is not None for index in image.fixed):
        return None
    return _zarr_array(image)
