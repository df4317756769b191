"""`report`: one page that tells of a stored result, and of the run that made it.

The log of a run is kept in its stage, so times of tiles and merges are known while it ends only: `reporter` writes the
page then. Later the result itself still tells most of the rest.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr

from blockbuster.destination import kept_with
from blockbuster.errors import GeometryError, ImageError, OutputError, OutputExistsError, ParameterError
from blockbuster.files import write_whole
from blockbuster.image_files import ImageFile, open_file
from blockbuster.ngff import holds_labels, ome_attributes, spatial_axes
from blockbuster.outputs import component_path, node_kind, store_path
from blockbuster.reporting.page import LOGGED, MARK, page
from blockbuster.reporting.sections import Result, head_of, sections_of
from blockbuster.runlog import read_log
from blockbuster.seams import grid_of_run, makes_labels, seams_of
from blockbuster.sources import Image, StoredImage, from_file, open_source
from blockbuster.stores import absolute_path, open_node, reading
from blockbuster.tiling import TileShape, make_grid

__all__ = ["report", "reporter"]

# Those that label an image; the words of a manifest for one that is stored: its path, what it is, and its channel.
_OF_IMAGES = {"label", "tile_process"}
_IMAGE = re.compile(r"(.+?)(?: level \d+)? \([\d, ]*\) \w+ at \[(\d*)\] \w+")
# Faces of tiles that the seam index looks at, for each axis.
_FACES = 64
# How deep a store is searched for results.
_DEPTH = 3
_SUFFIXES = (".ome.zarr", ".zarr")
# Bytes of a file that tell whether it is a report.
_HEAD = 1000


def report(
    store: str | os.PathLike[str],
    component: str | None = None,
    *,
    image: Any = None,
    channel: int | str | None = 0,
    tile_shape: TileShape = None,
    max_faces: int = _FACES,
    write_to: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page that tells of a stored result, and of the run that made it.

    The page is one HTML file with its pictures in it: it opens in any browser without a network, on screens light and
    dark, and prints. Nothing is read whole, however large the result.

    Parameters
    ----------
    store : str or path
        Zarr store of a result, or path of the result itself. URLs and zip files need `write_to`.
    component : str, optional
        Path of the result within the store. Default: the only one there is.
    image : array_like or path, optional
        What was labelled, as `image` in `tile_process`, for the pictures. Default: for labels within an OME-Zarr image
        that image; else that of the run, where it is stored and still there; else none.
    channel : int, str or None, default 0
        For paths: the channel of `image`; None where it has no such axis.
    tile_shape : None, int, tuple of int, "auto" or callable
        Of the tiles in which it was made, as in `tile_process`, for results of others. Default: those of the run, where
        the store tells.
    max_faces : int, default 64
        Faces of tiles that the seam index looks at, as in `seam_index`; 0 for no seam index.
    write_to : str or path, optional
        The file. Default: beside the store, by the name of the result: ``cells.labels.report.html`` for the component
        "labels" of ``cells.zarr``.
    log : str or path, optional
        Folder ``log`` of the stage of the run, which ``keep_stage=True`` keeps: without it nobody knows how long tiles
        took, and what was merged. The option `report` of operations gives it by itself.

    Returns
    -------
    path : Path
        Of the file. An earlier report is replaced, but for one that was written at the end of the run.

    Raises
    ------
    ImageError
        If there is no result, or there are several; or if `image` cannot be opened.
    GeometryError
        If the tiles, or `image`, do not fit the result.
    ParameterError
        If there is no place for the page, or an option is not allowed.
    OutputExistsError
        If there is a file that is no report, or one with the times of the run.
    OutputError
        If the page cannot be written.

    Notes
    -----
    The page has the labels in colours, with the borders of tiles; the seam index, see `seam_index`; and the parameters.
    With ``report=True`` a run writes it itself at its end, and adds what only it knows: tiles as a map by the time that
    they took and by their objects, skipped and failed ones marked; the slowest tiles; merges by seam; and who was at
    work when.

    Pictures are made of a level with about a million voxels in a plane, or of every n-th voxel where there is none; and
    the seam index reads some planes of voxels.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = blockbuster.label(np.eye(64), tile_shape=(32, 32), connectivity=2, write_to=f"{folder}/lines.zarr")
    ...     path = blockbuster.report(f"{folder}/lines.zarr")
    ...     print(path.name, path.read_text()[:15])
    lines.labels.report.html <!doctype html>
    """
    if isinstance(max_faces, bool) or not hasattr(max_faces, "__index__") or max_faces < 0:
        raise ParameterError(f"max_faces {max_faces!r} is no int of at least 0.")
    if log is not None and not os.path.isdir(log):
        raise ParameterError(f"log {os.fspath(log)!r} is no folder. Give the folder 'log' of a stage that was kept.")
    root = absolute_path(os.fspath(store))
    path = f"{root}/{_component(root, component)}".rstrip("/")
    target = _target(root, path, write_to)
    _check_folder(target)
    if log is None and _begins_with(target, LOGGED):
        raise OutputExistsError(
            f"{target} has the times of the run, which its result does not keep. Give another write_to, or delete it."
        )
    result = _opened(path, target, tile_shape, log)
    result = replace(result, image=_pictured(result, image, channel))
    if tile_shape is not None or makes_labels(result.kept):
        result = _with_seam_index(result, max_faces)
    return _write(target, result)


def reporter(
    wanted: bool | str | os.PathLike[str], write_to: Any, component: str
) -> Callable[[str | None], Path] | None:
    """What writes the report of a run, once its result is stored.

    Parameters
    ----------
    wanted : bool or path
        Whether there is to be a report; or where.
    write_to, component
        Where the result goes.

    Returns
    -------
    write : callable or None
        Gets the folder of the log of the run; None where that is gone, which leaves a report that is there. Returns
        the path of the file.

    Raises
    ------
    ParameterError
        If the result is not stored, or `wanted` is no path.
    OutputError, OutputExistsError
        If there is no folder for it, or a file that is no report.
    """
    if wanted is False:
        return None
    if wanted is not True and not isinstance(wanted, str | os.PathLike):
        raise ParameterError(f"report {wanted!r} is neither a bool nor the path of an HTML file.")
    if write_to is None:
        raise ParameterError("report is for results that are stored. Give write_to as well.")
    root, component = str(store_path(write_to)), component_path(component)
    target = _target(root, f"{root}/{component}".rstrip("/"), None if wanted is True else wanted)
    # The folder of a store is made by the run, if need be.
    if wanted is not True:
        _check_folder(target)
    return functools.partial(_report_of_run, root, component, target)


def _report_of_run(root: str, component: str, target: Path, log: str | None) -> Path:
    if log is None and target.exists():
        return target
    return report(root, component, write_to=target, log=log)


def _with_seam_index(result: Result, max_faces: int) -> Result:
    if not result.is_labels or result.grid is None or not max_faces:
        return result
    axes = spatial_axes(result.finest.axes, result.grid.ndim)
    return replace(result, seam_index=seams_of(result.finest, result.grid, axes, max_faces))


def _write(target: Path, result: Result) -> Path:
    has_log = result.log is not None and len(result.log.block_id) > 0
    text = page(result.name, result.path, head_of(result), sections_of(result), mark=LOGGED if has_log else MARK)
    try:
        write_whole(str(target), text.encode())
    except OSError as error:
        raise OutputError(f"The report {target} cannot be written: {error}. Choose another place for it.") from error
    return target


# What there is


def _component(path: str, component: str | None) -> str:
    """Where in a store the result is."""
    if component is not None:
        return component_path(component)
    with reading(path):
        node = open_node(path)
        found = list(_results_in(node, "", _DEPTH))
    if len(found) > 1:
        names = ", ".join(repr(name) if name else "'' (the image itself)" for name in found)
        raise ImageError(f"{path} holds several results: {names}. Give one of them as component.")
    # Without a trace of a run, the image that the store holds.
    return found[0] if found else ""


def _results_in(node: zarr.Array[Any] | zarr.Group, name: str, depth: int) -> Iterator[str]:
    """Paths of arrays and groups that keep what run made them."""
    if "blockbuster" in node.attrs:
        yield name
    if isinstance(node, zarr.Group) and depth:
        for key, member in sorted(node.members()):
            yield from _results_in(member, f"{name}/{key}".lstrip("/"), depth - 1)


def _opened(path: str, target: Path, tile_shape: TileShape, log: str | os.PathLike[str] | None) -> Result:
    file = open_file(path)
    levels = tuple(from_file(file, channel=None, level=level) for level in range(len(file.refs)))
    with reading(path):
        node = open_node(file.path)
    kept = kept_with(node)
    finest = levels[0]
    grid = grid_of_run(kept, finest.shape) if tile_shape is None else make_grid(finest, tile_shape, 0)
    return Result(
        name=target.name.removesuffix(".html").removesuffix(".report"),
        path=file.path,
        levels=levels,
        kept=kept,
        log=None if log is None else read_log(os.fspath(log)),
        grid=grid,
        is_labels=_is_labels(node, kept, finest),
    )


def _is_labels(node: zarr.Array[Any] | zarr.Group, kept: Mapping[str, Any], finest: StoredImage) -> bool:
    if finest.dtype.kind not in "biu":
        return False
    if "operation" in kept:
        return makes_labels(kept) or kept["operation"] == "write_labels"
    return not isinstance(node, zarr.Group) or holds_labels(node)


# The image


def _pictured(result: Result, image: Any, channel: int | str | None) -> tuple[Image, ...]:
    """The levels of what was labelled, in the axes of the labels."""
    if not result.is_labels:
        return ()
    if image is None:
        found = _source_of(result.path)
        levels = _levels_of_run(result.kept) if found is None else _levels(found, channel)
        return levels if levels and levels[0].shape == result.finest.shape else ()
    levels = _levels(image, channel)
    if levels[0].shape != result.finest.shape:
        raise GeometryError(
            f"The image has shape {levels[0].shape}, the labels {result.finest.shape}. Give the image that was "
            "labelled, and its channel."
        )
    return levels


def _levels_of_run(kept: Mapping[str, Any]) -> tuple[Image, ...]:
    """The image that a run labelled and its coarser levels, if it is still where it was."""
    told = _IMAGE.fullmatch(str(kept.get("manifest", {}).get("image", "")))
    if kept.get("operation") not in _OF_IMAGES or told is None or not os.path.exists(told[1]):
        return ()
    path, channel = told[1], int(told[2]) if told[2] else None
    if node_kind(Path(path).parent) == "group" and "multiscales" in ome_attributes(open_node(os.path.dirname(path))):
        file = open_file(os.path.dirname(path))
        names = [ref.describe() for ref in file.refs]
        if path in names:
            return tuple(from_file(file, channel=channel, level=n) for n in range(names.index(path), len(names)))
    return _levels(path, channel)


def _levels(image: Any, channel: int | str | None) -> tuple[Image, ...]:
    if not isinstance(image, str | os.PathLike):
        return (open_source(image, channel=channel),)
    file: ImageFile = open_file(os.fspath(image))
    return tuple(from_file(file, channel=channel, level=level) for level in range(len(file.refs)))


def _source_of(path: str) -> str | None:
    """The OME-Zarr image that holds labels."""
    parts = path.rsplit("/", 2)
    if len(parts) < 3 or parts[1] != "labels" or node_kind(Path(parts[0])) != "group":
        return None
    file = open_file(parts[0])
    return file.path if file.is_ome else None


# The file


def _target(root: str, path: str, write_to: str | os.PathLike[str] | None) -> Path:
    """Where the page goes.

    Parameters
    ----------
    root : str
        A store, or something within it.
    path : str
        The result.

    Raises
    ------
    ParameterError
        If that must be told.
    OutputExistsError
        If there is a file that is no report.
    """
    if write_to is None and ("://" in path or ".zip" in path):
        raise ParameterError(f"A report of {path} cannot lie beside it. Give write_to, the path of an HTML file.")
    target = _beside(Path(root), Path(path)) if write_to is None else Path(os.path.abspath(write_to))
    if target.exists() and not (_begins_with(target, MARK) or _begins_with(target, LOGGED)):
        raise OutputExistsError(f"{target} is there, and is no report. Choose another place, or delete it.")
    return target


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"The report {target} cannot be written: there is no folder {target.parent}.")


def _beside(store: Path, path: Path) -> Path:
    """Beside the outermost store, by the names that lead to the result."""
    while node_kind(store.parent) is not None:
        store = store.parent
    stem = next((store.name.removesuffix(suffix) for suffix in _SUFFIXES if store.name.endswith(suffix)), store.name)
    return store.with_name(".".join([stem, *path.relative_to(store).parts, "report.html"]))


def _begins_with(file: Path, mark: str) -> bool:
    """Whether the head of a file has a mark."""
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return mark.encode() in opened.read(_HEAD)
