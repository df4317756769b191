"""`copy`: any image to zarr, voxel by voxel the same."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from dask.base import tokenize
from numpy.typing import DTypeLike, NDArray
from zarr.errors import ZarrUserWarning

from blockbuster.casting import Cast, Casting, make_cast
from blockbuster.destination import Destination
from blockbuster.encoding import Compression, ZarrFormat, check_format
from blockbuster.errors import ImageError, ParameterError
from blockbuster.grid import Region
from blockbuster.ngff import converted_attributes, holds_labels, member_names, ome_attributes, version_for
from blockbuster.outputs import METADATA
from blockbuster.progress import Progress
from blockbuster.sources import from_store, open_source
from blockbuster.stores import StoreRef, absolute_path, file_state, local_path, open_node, reading
from blockbuster.storing import Storage, plan_array
from blockbuster.tiffs import is_tiff
from blockbuster.tilewise import ArrayPlan, TilePlan, make_array, make_store
from blockbuster.tiling import TileShape, make_writing_grid

__all__ = ["Copying", "copy"]


@dataclass(frozen=True)
class Copying:
    """The voxels themselves, at most in another dtype, as a kernel."""

    cast: Cast
    keeps_values = True

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """The same region."""
        return region

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """The block in the dtype of the result."""
        return self.cast(block)

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Those of the block."""
        return dtype.itemsize


def copy(
    source: Any,
    write_to: str | os.PathLike[str] | None = None,
    *,
    mask: Any = None,
    tile_shape: TileShape = None,
    block_ids: Sequence[int] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: Any = "keep",
    compression: Compression = "keep",
    zarr_format: ZarrFormat | None = None,
    dtype: DTypeLike | None = None,
    casting: Casting = "safe",
    verify: bool = False,
    channel: int | str | None = None,
    level: int | None = None,
    output_component: str = "",
    compute: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """Copy an image to zarr, in other chunks, shards, codecs, zarr format or dtype where these are given.

    The copy has the voxels of the source, bit for bit. Where chunks, codecs, dtype and format stay, and there is no
    mask, the encoded chunks of a local zarr store are copied as they are.

    Parameters
    ----------
    source : dask.array.Array, numpy.ndarray, zarr.Array, zarr.Group, str or path
        As in `tile_process`. Of a group, such as an OME-Zarr image, everything within it is copied: all levels, labels
        and other arrays, with all attributes; unless, for a path, `channel` or `level` choose one array of it.
    write_to : path, optional
        Zarr store to write to; made if there is none. The copy appears in it complete or not at all.
    mask : array_like or path, optional
        Of the shape of the copy. Only voxels within it, where it is not 0, are copied; the others stay as they are in
        an existing output, which `overwrite` must allow, and are 0 in a new one. Tiles wholly outside are neither read
        nor written.
    tile_shape : None, int, tuple of int, "auto" or callable
        Voxels that a task copies, per axis: whole chunks or shards of the copy. Default: some of these, enough for the
        chunks of the source to be read as few times as 256 MiB allow.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles to copy; the others are as what is outside of `mask`.
    chunks : int or tuple of int, optional
        Voxels per chunk and axis. Default: those of the source; of what is not from zarr, as in `write_image`.
    shards : "keep", None, int or tuple of int, default "keep"
        Voxels per shard and axis, whole chunks; None for none.
    compression : "keep", "lz4", "zstd", "gzip", "none", or a codec, default "keep"
        "lz4" and "zstd" are those of Blosc, with bit shuffle. What is not from zarr is compressed by "lz4".
    zarr_format : {2, 3}, optional
        Default: that of the source; of other sources that of the store written to, 3 for a new one.
    dtype : dtype, optional
        Of the copy. Default: that of the source. Within a group, label images keep theirs.
    casting : {"safe", "same_kind", "unsafe", "exact", "clip"}, default "safe"
        Which changes of dtype are allowed. The first three as in ``numpy.can_cast``, but integers of
        64 bits are no safe floats. "exact": any, but it is an error
        if a value changes. "clip": any; values are rounded, halves to even, and clipped to the range of an integer
        dtype.
    verify : bool, default False
        Read all that was written again, and compare checksums, before the copy appears.
    channel : int, str or None
        For paths: copy one channel only, by number or name.
    level : int, optional
        For paths: copy one level of a pyramid only.
    output_component : str, default ""
        Path of the copy within the store; "" for the store itself.
    compute, progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `tile_process`. The scratch data are a journal of the tiles that are done. A lazy copy, or one with
        `compute`, has none, and nothing to resume.

    Returns
    -------
    copy : dask.array.Array or numpy.ndarray of `dtype`, of the shape of the source; or None
        With `write_to` backed by the store; None for a group.

    Raises
    ------
    OutputError
        If the copy would overwrite its source, or damaged data are found by `verify`.
    GeometryError, ParameterError, ImageError, OutputExistsError, ResumeError, SchedulerError
        Before the first task: for options that do not fit.
    TileError
        If a tile cannot be read or written, or `casting` is "exact" and a value changes.

    Notes
    -----
    Each task holds one tile. With `mask` or `block_ids` and an existing output, changed chunks are written beside it,
    and moved in when all are complete: jobs may copy different tiles to one output at the same time.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image = np.arange(64, dtype=np.uint16).reshape(8, 8)
    ...     stored = blockbuster.copy(image, f"{folder}/image.zarr", chunks=4, dtype="uint8", casting="exact")
    ...     print(stored.chunks, stored.dtype, int(stored.sum().compute()))
    ((4, 4), (4, 4)) uint8 2016
    """
    to = Destination(
        write_to=write_to,
        output_component=output_component,
        compute=compute,
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    form = check_format(zarr_format)
    if verify and write_to is None:
        raise ParameterError("verify=True reads what was written again, but nothing is written. Give write_to.")
    storage = Storage(chunks, shards, compression, form)
    group = _group_of(source) if channel is None and level is None else None
    if group is None:
        image = open_source(source, channel=channel, level=level or 0)
        cast = make_cast(image.dtype, dtype, casting)
        plan = plan_array(
            "copy",
            image,
            Copying(cast),
            to,
            storage,
            shape=image.shape,
            dtype=cast.dtype,
            tile_shape=tile_shape,
            mask=mask,
            block_ids=block_ids,
        )
        return make_array(replace(plan, verify=verify), to)
    if mask is not None or block_ids is not None or write_to is None:
        raise ParameterError(
            f"{source} is a group of arrays, which is copied whole and to a store: give write_to, and neither mask nor "
            "block_ids. For one array of an image, give level= or channel=."
        )
    make_store(_plan_group(*group, storage, tile_shape, dtype, casting, verify), to)
    return None


# Groups


def _group_of(source: Any) -> tuple[str, zarr.Group] | None:
    """Path and group of a source that is one."""
    if isinstance(source, zarr.Group):
        place = local_path(source)  # type: ignore[arg-type]
        if place is None:
            raise ImageError(f"{source} is a zarr group in no folder. Give its path, or one of its arrays.")
        return str(place[0] / place[1]), source
    if not isinstance(source, str | os.PathLike) or is_tiff(os.fspath(source)):
        return None
    path = absolute_path(os.fspath(source))
    with reading(path):
        node = open_node(path)
    return (path, node) if isinstance(node, zarr.Group) else None


def _plan_group(
    path: str,
    group: zarr.Group,
    storage: Storage,
    tile_shape: TileShape,
    dtype: DTypeLike | None,
    casting: Casting,
    verify: bool,
) -> TilePlan:
    form: ZarrFormat = storage.zarr_format or group.metadata.zarr_format
    # In one order: tiles are known by their numbers when a run is resumed.
    members = dict(sorted(_members(group, path)))
    groups = {name: node for name, node in members.items() if isinstance(node, zarr.Group)}
    arrays = []
    for name, node in members.items():
        if isinstance(node, zarr.Array):
            parent = groups[name.rpartition("/")[0]]
            axes = _axes_of(parent, name.rpartition("/")[2])
            is_label = holds_labels(parent) or "labels" in name.split("/")
            target = None if is_label else dtype
            arrays.append(_plan_member(path, name, node, axes, form, storage, tile_shape, target, casting))
    is_local = Path(path).is_dir()
    attributes = {name: _attributes(name, node, form) for name, node in groups.items()}
    beside = dict(_foreign_files(Path(path), members)) if is_local else {}
    return TilePlan(
        "copy",
        tuple(arrays),
        parameters={"attributes": tokenize(attributes), "beside": tokenize(list(map(file_state, beside.values())))},
        groups=attributes,
        zarr_format=form,
        verify=verify,
        folders=(Path(path),) if is_local else (),
        beside=beside,
        consolidated=group.metadata.consolidated_metadata is not None,
    )


def _plan_member(
    path: str,
    name: str,
    array: zarr.Array[Any],
    axes: list[str] | None,
    form: ZarrFormat,
    storage: Storage,
    tile_shape: TileShape,
    dtype: DTypeLike | None,
    casting: Casting,
) -> ArrayPlan:
    image = from_store(StoreRef(path, name))
    if image.dtype.kind not in "biufc":
        # Text and times are copied as they are stored, or not at all.
        if form != array.metadata.zarr_format or "://" in path:
            raise ImageError(f"{path}/{name} holds {image.dtype}, no numbers: it is copied as it is stored only.")
        storage, dtype, tile_shape = Storage(), None, None
    cast = make_cast(image.dtype, dtype, casting)
    storage = replace(storage, shards=_for_axes(storage.shards, array.ndim))
    encoding = storage.like(array, cast.dtype, form, _for_axes(storage.chunks, array.ndim))
    encoding.check(array.shape, cast.dtype)
    tiles = _for_axes(tile_shape, array.ndim)
    if form == 3 and axes is not None and len(axes) == array.ndim:
        encoding.options["dimension_names"] = axes
    return ArrayPlan(
        image,
        Copying(cast),
        make_writing_grid(array.shape, tiles, encoding.unit, dtype=cast.dtype, reads=array.chunks),
        cast.dtype,
        name=name,
        encoding=encoding,
        stored_dtype=array.dtype if array.dtype.newbyteorder("=") == cast.dtype else None,
        attributes=array.attrs.asdict(),
    )


def _for_axes(value: Any, ndim: int) -> Any:
    """A shape for an array of fewer axes, such as labels without a channel: the last entries."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > ndim:
        return tuple(value[len(value) - ndim :])
    return value


def _axes_of(group: zarr.Group, name: str) -> list[str] | None:
    """The names that a group gives to the axes of one of its levels."""
    images = ome_attributes(group).get("multiscales")
    for image in images if isinstance(images, Sequence) else ():
        axes = image.get("axes") if isinstance(image, Mapping) else None
        if axes and name in [dataset.get("path") for dataset in image.get("datasets", ())]:
            return [str(axis["name"] if isinstance(axis, Mapping) else axis) for axis in axes]
    return None


def _attributes(name: str, group: zarr.Group, form: ZarrFormat) -> dict[str, Any]:
    attributes: dict[str, Any] = group.attrs.asdict()
    if form == group.metadata.zarr_format:
        return attributes
    return converted_attributes(attributes, version_for(form), name)


def _members(group: zarr.Group, path: str) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """All that is in a group, itself under "": by listing it, or as its metadata tell where it cannot be listed.

    Raises
    ------
    ImageError
        If neither tells anything.
    """
    yield "", group
    if "://" not in path:
        with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
            yield from group.members(max_depth=None)
        return
    found = {**dict(_told_members(group)), **_listed_members(group)}
    if not found:
        raise ImageError(
            f"What is in the group {path} cannot be listed, and its metadata do not tell. Copy its arrays."
        )
    yield from found.items()


def _listed_members(group: zarr.Group) -> dict[str, zarr.Array[Any] | zarr.Group]:
    try:
        with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
            return dict(group.members(max_depth=None))
    except (OSError, NotImplementedError, ValueError):
        return {}


def _told_members(group: zarr.Group) -> Iterator[tuple[str, zarr.Array[Any] | zarr.Group]]:
    """What the metadata of a group name, and what the metadata of that name in turn."""
    for name in member_names(group):
        for depth in range(1, name.count("/") + 1):
            above = "/".join(name.split("/")[:depth])
            yield above, group[above]
        node = group[name]
        yield name, node
        if isinstance(node, zarr.Group):
            yield from ((f"{name}/{inner}", member) for inner, member in _told_members(node))


def _foreign_files(path: Path, members: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Files and folders within the groups of a local store that zarr knows nothing of."""
    for name, node in members.items():
        for entry in (path / name).iterdir() if isinstance(node, zarr.Group) else ():
            inner = f"{name}/{entry.name}".lstrip("/")
            if inner not in members and entry.name not in METADATA:
                yield inner, entry
