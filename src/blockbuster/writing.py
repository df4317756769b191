"""`write_image`, `write_labels`, `pyramid`: OME-Zarr with all its levels, in one run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from filelock import FileLock

from blockbuster.casting import Cast
from blockbuster.destination import Destination
from blockbuster.encoding import Compression, Encoding
from blockbuster.errors import GeometryError, ImageError, OutputError, ParameterError
from blockbuster.frames import (
    describe_channels,
    describe_labels,
    factors_between,
    from_level,
    in_order,
    make_frame,
    read_frame,
)
from blockbuster.image_files import ImageFile, open_file
from blockbuster.images import OpenedImage, open_image
from blockbuster.ngff import (
    Level,
    Multiscale,
    Version,
    axes_for,
    check_version,
    format_for,
    image_attributes,
    label_attributes,
    ome_attributes,
    version_for,
)
from blockbuster.outputs import Output, consolidate, format_of, node_kind, plan_members, store_path
from blockbuster.progress import Progress
from blockbuster.pyramid import Ladder, level_plans, make_ladder
from blockbuster.resampling import Method
from blockbuster.sources import Image, MemoryImage, from_file, open_source
from blockbuster.storing import Storage, check_home, stored_chunks
from blockbuster.tilewise import TilePlan, make_store
from blockbuster.transfer import Copying

__all__ = ["pyramid", "write_image", "write_labels"]

# Voxels of the coarsest level that are read for the range to show.
_RANGE_VOXELS = 1 << 24


def write_image(
    image: Any,
    store: str | os.PathLike[str],
    *,
    axes: str | Sequence[str] | None = None,
    scale: float | Sequence[float] | None = None,
    translation: float | Sequence[float] | None = None,
    unit: str | Sequence[str | None] | None = None,
    channels: Sequence[str | Mapping[str, Any]] | None = None,
    name: str | None = None,
    version: Literal["0.4", "0.5"] | None = None,
    n_levels: int | None = None,
    scale_factor: int | Sequence[Any] = 2,
    method: Method | None = "mean",
    order: int = 0,
    anti_aliasing: bool = False,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    compression: Compression = "lz4",
    channel: int | str | None = None,
    level: int = 0,
    output_component: str = "",
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> OpenedImage:
    """Write an image as OME-Zarr, with all levels of its pyramid, tile by tile.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`. What the metadata of an OME-Zarr or a TIFF tell of axes, scale, unit, translation and
        channels is kept, unless it is given.
    store : path
        Zarr store to write to; made if there is none. The image appears in it complete or not at all.
    axes : str, optional
        Names of the axes, some of "tczyx" in this order. Default: those of the source; by their number "yx", "zyx",
        "czyx" or "tczyx". An image whose own axes are in another order is transposed.
    scale : float or tuple of float, optional
        Distance of neighbouring voxels: one for all spatial axes, or one per axis.
    translation : float or tuple of float, optional
        Where the centre of the first voxel lies: one for all spatial axes, or one per axis.
    unit : str or tuple of (str or None), optional
        Of `scale` and `translation`, such as "um", "nm" or "millimeter": one for all spatial axes, or one per axis.
    channels : sequence of (str or mapping), optional
        Names of the channels; or what OME-Zarr keeps of each, such as ``{"label": "DNA", "color": "00FFFF"}``.
    name : str, optional
        Of the image.
    version : {"0.4", "0.5"}, optional
        Of OME-Zarr. Default: that of the store where there is one, else "0.5".
    n_levels : int, optional
        Levels of the pyramid, `image` itself counted. Default: until no axis that shrinks exceeds 256 voxels.
    scale_factor : int, tuple of int, or sequence of these, default 2
        From each level to the next: one for all spatial axes, one per axis, or one such for each level.
    method, order, anti_aliasing
        How a level is made of the one before, as in `downsample`; for an order give ``method=None``.
    chunks : int or tuple of int, optional
        Voxels per chunk and axis. Default: those of the source if they are of moderate size, else a few MiB.
    shards : int or tuple of int, optional
        Voxels per shard and axis, whole chunks; in version 0.5 only. Default: no shards.
    compression : {"lz4", "zstd", "gzip", "none"}, codec or None, default "lz4"
        As in `copy`.
    channel, level
        For paths: take one channel, or another level than the finest.
    output_component : str, default ""
        Path of the image within the store.
    progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `copy`. An image with labels or other things in its group is not overwritten.

    Returns
    -------
    image : OpenedImage
        The image in the store.

    Raises
    ------
    GeometryError, ParameterError, ImageError, OutputError, OutputExistsError, ResumeError
        Before the first task: for options that do not fit the image, the store, or each other.
    TileError
        If a tile cannot be read or written.

    Notes
    -----
    Runs on the active dask scheduler. Each voxel of a level is read and written once, a level as soon as the tiles of
    the one before are there. A task holds one tile of a few MiB or one chunk, and what that is made from in parts, so
    memory does not grow with the image.

    The levels of ``order=0`` begin where the image begins. Those of the others are shifted by half a voxel of theirs
    less half a voxel of the image, as their `translation` tells.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stack = np.zeros((2, 30, 40, 50), np.uint16)
    ...     image = blockbuster.write_image(
    ...         stack, f"{folder}/cells.ome.zarr", axes="czyx", scale=(1, 2, 0.5, 0.5), unit="um", n_levels=2,
    ...         channels=["DNA", "actin"],
    ...     )
    ...     print(image.scales[1], image.translations[1], image.channel_names)
    (1.0, 4.0, 1.0, 1.0) (0.0, 1.0, 0.25, 0.25) ('DNA', 'actin')
    """
    to = Destination(
        write_to=store,
        output_component=output_component,
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    source, known = read_frame(image, channel, level)
    source, known = in_order(source, known, axes)
    made = axes_for(axes if axes is not None else _known_axes(known), len(source.shape))
    form = make_frame(known, made, scale, translation, unit)
    chosen = check_version(version) if version is not None else version_for(format_of(to.root))
    form = replace(form, version=chosen, name=form.name if name is None else name)
    form = replace(form, channels=describe_channels(channels, form, source))
    ladder = make_ladder(
        source.shape,
        form.axes,
        source.dtype,
        n_levels=n_levels,
        scale_factor=scale_factor,
        method=method,
        order=order,
        anti_aliasing=anti_aliasing,
    )
    _write(source, form, ladder, to, chunks, shards, compression, "write_image", _kind(method, order))
    return open_image(to.path)


def write_labels(
    labels: Any,
    store: str | os.PathLike[str],
    name: str,
    *,
    level: int | None = None,
    scale: float | Sequence[float] | None = None,
    translation: float | Sequence[float] | None = None,
    unit: str | Sequence[str | None] | None = None,
    axes: str | Sequence[str] | None = None,
    colors: Mapping[int, Sequence[int]] | None = None,
    properties: Sequence[Mapping[str, Any]] | None = None,
    n_levels: int | None = None,
    scale_factor: int | Sequence[Any] | None = None,
    method: Method | None = "mode-nonzero",
    order: int = 0,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    compression: Compression = "lz4",
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> OpenedImage:
    """Write labels into the OME-Zarr of their image, with all levels of their pyramid, at the same place in the world.

    Parameters
    ----------
    labels : dask.array.Array, numpy.ndarray, zarr.Array, str or path, of integers
        Of the shape of a level of the image less its channel axis. The lazy result of `label` or `tile_process` is
        computed on the way into the store.
    store : path
        The OME-Zarr image. The labels appear in it, as ``labels/<name>``, complete or not at all, in its version of
        OME-Zarr. A store without an image, or none, takes labels as well.
    name : str
        Of the label image.
    level : int, optional
        The level of the image that was labelled. Default: the one with the shape of the labels.
    scale, translation, unit, axes
        As in `write_image`. Default: those of the level of the image.
    colors : mapping of int to (int, int, int) or (int, int, int, int), optional
        Red, green, blue, and opacity, from 0 to 255, by label.
    properties : sequence of mapping, optional
        What is known of labels, each with the key "label-value".
    n_levels : int, optional
        As in `write_image`. Default: as many as the image has, which OME-Zarr demands.
    scale_factor : int, tuple of int, or sequence of these, optional
        As in `write_image`. Default: those of the image from `level` on.
    method, order
        How a level is made of the one before, as in `downsample`. The default "mode-nonzero" keeps small objects;
        ``method=None`` takes every f-th voxel. Ways that make values which are no labels are refused.
    chunks, shards, compression
        As in `write_image`. Default: chunks of the labels, else those of the image, if they are of moderate size.
    progress, stage_dir, keep_stage, verbose, resume, overwrite
        As in `copy`.

    Returns
    -------
    labels : OpenedImage
        The labels in the store.

    Raises
    ------
    GeometryError
        If no level of the image has the shape of the labels.
    ParameterError, ImageError, OutputError, OutputExistsError, ResumeError, TileError
        As in `write_image`.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/cells.ome.zarr"
    ...     image = np.zeros((1, 40, 50), np.uint8)
    ...     image[:, 5:15, 5:15] = 200
    ...     _ = blockbuster.write_image(image, path, axes="cyx", scale=(1, 0.5, 0.5), unit="um")
    ...     labels = blockbuster.write_labels(blockbuster.label(path), path, "cells")
    ...     print(labels.axes, labels.scale, blockbuster.open_image(path).labels)
    yx (0.5, 0.5) ('cells',)
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ParameterError(f"name {name!r} is no name of a label image. Give one without '/', such as 'cells'.")
    to = Destination(
        write_to=store,
        output_component=f"labels/{name}",
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    _check_label_method(method, order)
    source = open_source(labels, channel=None, plain_level=True)
    if source.dtype.kind not in "iub":
        raise ParameterError(f"labels have dtype {source.dtype}. Labels are integers: see copy(..., dtype=, casting=).")
    parent = _parent(to)
    if parent is not None:
        to = replace(to, write_to=parent.path)
    number = None if parent is None else _labelled_level(parent, source.shape, level)
    frame = None if parent is None else parent.form.less_channel()
    known = None if frame is None or number is None else from_level(frame, number)
    named = axes_for(axes or (known.axes if known is not None else None), len(source.shape))
    form = make_frame(known, named, scale, translation, unit)
    if parent is not None and number is not None and chunks is None and stored_chunks(source) == source.shape:
        chunks = _chunks_of(parent, number, source.shape)
    if n_levels is None and parent is not None and scale_factor is None:
        n_levels = len(parent.form.levels)
    ladder = make_ladder(
        source.shape,
        form.axes,
        source.dtype,
        n_levels=n_levels,
        scale_factor=factors_between(frame, number or 0, n_levels) if scale_factor is None else scale_factor,
        method=method,
        order=order,
    )
    if parent is not None:
        _check_writable_version(parent)
    version = check_version(parent.form.version) if parent is not None else version_for(format_of(to.root))
    words = describe_labels(colors, properties, has_image=parent is not None)
    form = replace(form, version=version, name=name, label=words)
    _write(source, form, ladder, to, chunks, shards, compression, "write_labels", _kind(method, order))
    _register(to.root, name, version)
    return open_image(to.path)


def pyramid(
    store: str | os.PathLike[str],
    *,
    n_levels: int | None = None,
    scale_factor: int | Sequence[Any] = 2,
    method: Method | Literal["auto"] | None = "auto",
    order: int = 0,
    anti_aliasing: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> OpenedImage:
    """Make the coarser levels of an OME-Zarr image that is there, or make them again.

    Parameters
    ----------
    store : path
        An image, or a label image such as ``cells.ome.zarr/labels/nuclei``. Its finest level is left as it is.
    n_levels, scale_factor
        As in `write_image`.
    method : {"auto", "mean", "median", "mode", "mode-nonzero", "max", "min"} or None, default "auto"
        How a level is made of the one before, as in `downsample`. "auto": "mode-nonzero" for labels, else "mean".
    order, anti_aliasing
        As in `downsample`, with ``method=None``.
    progress, stage_dir, keep_stage, verbose, resume
        As in `copy`.
    overwrite : bool, default False
        Replace the coarser levels that the image has, once the new ones are complete.

    Returns
    -------
    image : OpenedImage
        The image with its levels.

    Raises
    ------
    ImageError
        If there is no OME-Zarr image.
    OutputExistsError
        If it has coarser levels, and `overwrite` is not set.
    ParameterError, GeometryError, OutputError, ResumeError, TileError
        As in `write_image`.

    Warns
    -----
    UserWarning
        If the image has labels with another number of levels then.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/cells.ome.zarr"
    ...     _ = blockbuster.write_image(np.zeros((40, 50), np.uint8), path, n_levels=1)
    ...     image = blockbuster.pyramid(path, n_levels=3)
    ...     print([level.shape for level in image.levels])
    [(40, 50), (20, 25), (10, 13)]
    """
    root = store_path(store)
    file = open_file(str(root))
    if not root.is_dir():
        raise OutputError(f"{root} cannot be changed: it is no folder. Copy it by blockbuster.copy first.")
    if not file.is_ome:
        raise ImageError(f"{file.path} is no OME-Zarr image. Make one of it by blockbuster.write_image.")
    if file.form.component:
        root = Path(file.path)
    _check_writable_version(file)
    form = file.form
    source = from_file(file, channel=None, level=0)
    if method != "auto" and _is_label(file):
        _check_label_method(method, order)
    if method == "auto":
        method = "mode-nonzero" if _is_label(file) else "mean"
        method = None if order else method
    ladder = make_ladder(
        source.shape,
        form.axes,
        source.dtype,
        n_levels=n_levels,
        scale_factor=scale_factor,
        method=method,
        order=order,
        anti_aliasing=anti_aliasing,
    )
    to = Destination(
        write_to=root,
        output_component="",
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
    )
    _add_levels(file, source, ladder, to, _kind(method, order))
    made = open_image(root)
    _warn_of_labels(made)
    return made


def _is_label(file: ImageFile) -> bool:
    """Whether an image says so itself, or the group that it lies in does."""
    if file.form.label is not None:
        return True
    path = Path(file.path)
    listed = node_kind(path.parent) == "group" and ome_attributes(zarr.open_group(path.parent, mode="r")).get("labels")
    return path.parent.name == "labels" and path.name in map(str, listed or ())


def _check_writable_version(file: ImageFile) -> None:
    if file.form.version not in ("0.4", "0.5"):
        raise ParameterError(
            f"{file.path} is of OME-Zarr {file.form.version}, to which nothing is added. Write the image anew by "
            "blockbuster.write_image, as 0.4 or 0.5."
        )


def _check_label_method(method: str | None, order: int) -> None:
    """Refuse ways of making levels that make values which are no labels.

    Raises
    ------
    ParameterError
        If this is one of them.
    """
    if order or method in ("mean", "median"):
        asked = f"order {order}" if order else f"method {method!r}"
        raise ParameterError(
            f"{asked} makes values that are no labels. Choose method='mode-nonzero', 'mode', 'max' or 'min', or "
            "method=None with order=0."
        )


def _known_axes(known: Multiscale | None) -> str | None:
    """The axes of a source; None where it only counts them, as a TIFF does by "q" and "i"."""
    return None if known is None or (set(known.axes) <= set("qiyx") and set(known.axes) & set("qi")) else known.axes


# What is written


def _write(
    source: Image,
    form: Multiscale,
    ladder: Ladder,
    to: Destination,
    chunks: Any,
    shards: Any,
    compression: Compression,
    operation: str,
    kind: str,
) -> None:
    """Write an image or labels: a group with one array for each level."""
    check_home(to, format_for(form.version))
    names = [str(number) for number in range(len(ladder.shapes))]
    form = replace(form, levels=tuple(ladder.placed(form.levels[0], names)))
    first = Storage(chunks, shards, compression).new(
        source.shape,
        format_for(form.version),
        form.axes,
        like=None if isinstance(source, MemoryImage) else stored_chunks(source),
    )
    if form.version != "0.4":
        first.options["dimension_names"] = list(form.axis_names)
    # OME-Zarr has no labels that are masks.
    dtype = np.dtype(np.uint8) if source.dtype.kind == "b" and form.label is not None else source.dtype
    first.check(source.shape, dtype)
    encodings = [_for_level(first, shape) for shape in ladder.shapes]
    arrays = level_plans(source, Copying(Cast(dtype)), ladder, names, encodings, dtype)
    attributes = image_attributes(form, kind=kind if ladder.kernels else None)
    make_store(
        TilePlan(
            operation,
            tuple(arrays),
            parameters={"metadata": repr(attributes)},
            groups={"": attributes},
            zarr_format=format_for(form.version),
            finish=lambda output: _with_ranges(form, output, kind if ladder.kernels else None),
        ),
        to,
    )


def _add_levels(file: ImageFile, source: Image, ladder: Ladder, to: Destination, kind: str) -> None:
    """Add coarser levels to the group of an image."""
    form = file.form
    named_elsewhere = _levels_of_others(to.path)
    old = [level.path for level in form.levels[1:] if level.path not in named_elsewhere]
    names = [form.levels[0].path, *_level_names(form.levels[0].path, len(ladder.kernels))]
    base = zarr.open_array(to.root, path=names[0], mode="r")
    first = Storage().like(base, source.dtype, base.metadata.zarr_format, None)
    encodings = [_for_level(first, shape) for shape in ladder.shapes[1:]]
    arrays = level_plans(source, None, ladder, names[1:], encodings, source.dtype)
    levels = tuple(ladder.placed(form.levels[0], names))

    make_store(
        TilePlan(
            "pyramid",
            tuple(arrays),
            zarr_format=base.metadata.zarr_format,
            finish=lambda _output: _attributes_with(to.path, levels, kind),
        ),
        to,
        lambda: plan_members(to.path, names[1:], old),
    )


def _warn_of_labels(image: OpenedImage) -> None:
    """OME-Zarr demands as many levels of labels as of their image."""
    there = [name for name in image.labels if node_kind(Path(image.path, "labels", name)) == "group"]
    counts = {name: len(open_image(f"{image.path}/labels/{name}").levels) for name in there}
    others = [name for name, count in counts.items() if count != len(image.levels)]
    if others:
        warnings.warn(
            f"{image.path} has {len(image.levels)} levels now, its labels {', '.join(others)} have another number. "
            "Readers may refuse that: call pyramid for the labels with the same n_levels.",
            UserWarning,
            stacklevel=3,
        )


def _levels_of_others(path: Path) -> set[str]:
    """Arrays that images in a group name, but the first image."""
    images = ome_attributes(zarr.open_group(path, mode="r")).get("multiscales") or ()
    return {str(dataset["path"]) for image in images[1:] for dataset in image.get("datasets", ())}


def _attributes_with(path: Path, levels: Sequence[Level], kind: str) -> dict[str, Any]:
    """The attributes of a group with other levels in its first image."""
    attributes: dict[str, Any] = zarr.open_group(path, mode="r").attrs.asdict()
    ome = attributes.get("ome", attributes)
    form = Multiscale("", (), tuple(levels))
    made = image_attributes(form)["ome"]["multiscales"][0]["datasets"]
    first, *others = ome["multiscales"]
    # What holds for all levels is in the places of the levels now.
    first = {key: value for key, value in first.items() if key != "coordinateTransformations"}
    ome["multiscales"] = [{**first, "datasets": made, "type": kind}, *others]
    return attributes


def _level_names(first: str, n: int) -> list[str]:
    """Names of coarser levels after that of the finest: "0" and "1", "s0" and "s1"."""
    stem = first[:-1] if first.endswith("0") and not first[:-1].endswith(tuple("123456789")) else f"{first}-"
    return [f"{stem}{number}" for number in range(1, n + 1)]


def _for_level(encoding: Encoding, shape: Sequence[int]) -> Encoding:
    """Chunks and shards cut to what a small level needs of them."""
    chunks = tuple(min(c, max(n, 1)) for c, n in zip(encoding.chunks, shape, strict=True))
    if encoding.shards is None:
        return replace(encoding, chunks=chunks)
    whole = [-(-max(n, 1) // c) * c for n, c in zip(shape, chunks, strict=True)]
    shards = tuple(min(s, w) // c * c for s, w, c in zip(encoding.shards, whole, chunks, strict=True))
    return replace(encoding, chunks=chunks, shards=shards)


def _kind(method: str | None, order: int) -> str:
    return method or ("stride" if order == 0 else f"spline of order {order}")


def _with_ranges(form: Multiscale, output: Output, kind: str | None) -> dict[str, Any]:
    """The attributes of an image, with the range of values to show in each channel."""
    if not form.channels:
        return image_attributes(form, kind=kind)
    coarsest = zarr.open_array(output.partial, path=form.levels[-1].path, mode="r")
    ranges = _ranges(coarsest, form.axes)
    channels = tuple(
        {**channel, "window": channel.get("window") or window}
        for channel, window in zip(form.channels, ranges, strict=True)
    )
    return image_attributes(replace(form, channels=channels), kind=kind)


def _ranges(array: zarr.Array[Any], axes: str) -> list[dict[str, float]]:
    axis = axes.find("c")
    ranges = []
    for number in range(array.shape[axis] if axis >= 0 else 1):
        region = tuple(slice(number, number + 1) if a == axis else slice(None) for a in range(array.ndim))
        low, high = _type_range(array.dtype)
        size = array.size // (array.shape[axis] if axis >= 0 else 1)
        values = np.asarray(array[region]) if 0 < size <= _RANGE_VOXELS and array.dtype.kind in "iuf" else np.empty(0)
        finite = values[np.isfinite(values)]
        start, end = np.percentile(finite.astype(np.float64), (0.1, 99.9)) if finite.size else (low, high)
        if array.dtype.kind == "f":
            low, high = float(start), float(end)
        ranges.append({"min": low, "max": high, "start": float(start), "end": float(max(end, start))})
    return ranges


def _type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return 0.0, 1.0


# Labels and their image


def _parent(to: Destination) -> ImageFile | None:
    """The image that labels belong to, if there is one."""
    kind = node_kind(to.root)
    if kind == "array":
        raise ImageError(f"{to.root} is a zarr array, which takes no labels in it. Give the group of the image.")
    images = {"multiscales", "bioformats2raw.layout", "plate", "well"}
    if kind is None or not images & set(ome_attributes(zarr.open_group(to.root, mode="r"))):
        return None
    return open_file(str(to.root))


def _labelled_level(parent: ImageFile, shape: tuple[int, ...], level: int | None) -> int:
    shapes = [_less_channel(parent.array(n).shape, parent.form.axes) for n in range(len(parent.refs))]
    if level is None:
        if shape not in shapes:
            raise GeometryError(
                f"The labels have shape {shape}, but the levels of {parent.path}, less their channels, have {shapes}. "
                "Labels have the shape of a level of their image."
            )
        return shapes.index(shape)
    parent.array(level)
    if shapes[level] != shape:
        raise GeometryError(
            f"The labels have shape {shape}, but level {level} of {parent.path}, less its channels, has "
            f"{shapes[level]}."
        )
    return level


def _less_channel(values: Sequence[Any], axes: str) -> tuple[Any, ...]:
    return tuple(value for value, name in zip(values, axes, strict=True) if name != "c")


def _chunks_of(parent: ImageFile, level: int, shape: Sequence[int]) -> tuple[int, ...]:
    array: Any = parent.array(level)
    chunks = _less_channel(array.chunks, parent.form.axes)
    return tuple(min(c, max(n, 1)) for c, n in zip(chunks, shape, strict=True))


def _register(root: Path, name: str, version: Version) -> None:
    """Tell of a label image in the attributes of the group "labels"."""
    lock = FileLock(root.parent / f".{root.name}.labels.lock")
    with lock:
        group = zarr.open_group(root, path="labels", mode="r+")
        names = [str(one) for one in ome_attributes(group).get("labels", ())]
        if name not in names:
            made = label_attributes([*names, name], version)
            others: Any = group.attrs.asdict().get("ome", {})
            group.attrs.update({"ome": {**others, **made["ome"]}} if "ome" in made else made)
            consolidate(root)
    Path(lock.lock_file).unlink(missing_ok=True)
