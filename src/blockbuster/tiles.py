"""`tile_process`: any labelling function, tile by tile; `merge_tile_labels`: labels that were made that way."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from blockbuster.destination import Destination
from blockbuster.errors import GeometryError, ImageError, ParameterError
from blockbuster.grid import TileGrid, per_axis
from blockbuster.identity import function_identity
from blockbuster.ngff import holds_labels, spatial_axes
from blockbuster.outputs import component_path
from blockbuster.progress import Progress
from blockbuster.reporting import reporter
from blockbuster.rules import Merge, resolve_merge
from blockbuster.run import Plan, check_dtype, execute
from blockbuster.sources import GraphImage, Image, open_source
from blockbuster.steps import TileLabels
from blockbuster.stores import absolute_path, open_node
from blockbuster.tiffs import is_tiff
from blockbuster.tiling import TileShape, check_block_ids, make_grid

__all__ = ["merge_tile_labels", "tile_process"]


@dataclass(frozen=True)
class UserFunction:
    """A function of a padded tile as a kernel."""

    function: Callable[[NDArray[Any]], NDArray[Any]]

    def __call__(self, block: NDArray[Any], mask: NDArray[Any] | None) -> TileLabels:
        """What the function makes of the tile."""
        return TileLabels(self.function(block))


def tile_process(
    image: Any,
    fn: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    tile_shape: TileShape = None,
    overlap: int | Sequence[int] = 0,
    channel: int | str | None = 0,
    level: int = 0,
    use_gpu: bool = False,
    compute: bool = False,
    progress: Progress = False,
    write_to: str | os.PathLike[str] | None = None,
    output_component: str = "labels",
    sequential_labels: bool = False,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    merge: Merge = "touching",
    dtype: DTypeLike = "int32",
    block_ids: Sequence[int] | None = None,
    retries: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    report: bool | str | os.PathLike[str] = False,
) -> Any:
    """Label an image tile by tile, and make objects whole across tile borders.

    With a deterministic local `fn`, an `overlap` of at least the reach of `fn`, and a merge rule that suits its
    objects, the result is the partition that `fn` gives on the whole image.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        The image, or the path or URL of a zarr store, OME-Zarr or not, or of a TIFF. Never written.
    fn : callable
        ``ndarray -> ndarray`` of integers of the same shape, 0 for background. Called exactly once per tile, with the
        tile and `overlap` voxels around it, clipped at the border of the image, never mirrored. Must be picklable to
        leave this process.
    tile_shape : None, int, tuple of int, "auto" or callable
        Voxels per tile and axis. None: the chunks of the image. "auto": what fits the memory that is free now, see
        `auto_tile_shape`; not for runs that are to be resumed.
        A callable gets ``(shape, dtype)``.
    overlap : int or tuple of int, default 0
        Voxels read beyond each side of a tile; trimmed from the result. An int is 0 on axes where the tile is one
        voxel thick; a tuple is taken as given.
    channel : int, str or None, default 0
        For paths: the channel, by number or name, of a store with a channel axis; None for all. Ignored for arrays.
    level : int, default 0
        For paths: the level of the pyramid. Ignored for arrays.
    use_gpu : bool, default False
        One tile at a time; on a cluster one per worker with the resource "GPU".
    compute : bool, default False
        Return a numpy array.
    progress : bool or callable, default False
        Show a progress bar over tiles, or call ``progress(now)`` with a `RunProgress`, in the thread of this call, as
        tasks end. What that raises ends the run within a tile; ``resume=True`` goes on with it. For runs with `compute`
        or `write_to`.
    write_to : path, optional
        Zarr store to write to, in bounded memory; made if there is none. The labels appear in it complete or
        not at all.
    output_component : str, default "labels"
        Path of the labels within the store.
    sequential_labels : bool, default False
        Number the objects 1..N without gaps, at no extra pass.
    skip_empty : bool, default False
        Do not call `fn` on tiles whose maximum, halo counted, does not exceed `empty_threshold`. What was skipped is
        logged and kept with stored labels.
    empty_threshold : float, optional
        Default: Otsu's of a bounded sample, see `estimate_empty_tiles`, which can lie above dim objects.
    stage_dir : path, optional
        Folder for the scratch data of the run, seen by all workers. Default: beside `write_to`, else beside the image,
        else the system's temporary folder.
    keep_stage : bool, default False
        Leave the scratch data where they are.
    verbose : bool, default False
        Log one line per tile.
    merge : str, rule, callable, None, or a sequence of them with one entry per axis
        What makes labels of two tiles one object. "touching", the default: that they touch across the border; right for
        connected components, but on dense instances it chains whole tissues into one object. "iou": that both
        tiles drew the voxels next to the border alike; right for instance segmenters, needs an overlap. "contact": that
        their footprints on the two sides of the border agree. None: nothing does. See `Touching`, `Overlapping` and
        `Contact` for their settings, `Where` for functions. Where the axes are known, objects never merge over time or
        channel.
    dtype : dtype, default "int32"
        Of the labels, an integer type.
    block_ids : sequence of int, optional
        Row-major numbers of the tiles to work on; the others are 0 in the result.
    retries : int, default 0
        How often a tile is tried again where reading it or `fn` fails, before it counts as failed: for functions that
        fail by chance, such as those that share a GPU.
    resume : bool, default False
        Go on with the stopped run of the same image, `fn` and parameters; `fn` is called for tiles that were not
        finished only. Starts a new run where there is none to go on with.
    overwrite : bool, default False
        Replace existing labels, once the new ones are complete.
    report : bool or path, default False
        Write a page that tells of the labels and of the run, as the function `report` does, here with the times of
        tiles and all that was merged: True for a file beside the store, or the path of the file. For runs with
        `write_to`.

    Returns
    -------
    labels : dask.array.Array or numpy.ndarray of `dtype`, shape of `image` (less the channel axis where one was chosen)
        Ids in the order of tiles, 0 for background. With `write_to` backed by the store; otherwise lazy: computed when
        it is first computed, and from its scratch data after that, which are removed with the last reference to it.

    Raises
    ------
    GeometryError, ParameterError, ImageError, OutputExistsError, OutputError, ResumeError, SchedulerError
        Before the first task: for options that do not fit the image or the scheduler.
    TileError
        If `fn` fails on a tile, or returns no integers of its shape, or ends its process three times; names the tile
        and has the original as its cause. The other tiles are finished first, and kept for ``resume=True``, unless more
        fail than succeed.
    LabelOverflowError
        If there are more objects than `dtype` can number; nothing final is written then.

    Notes
    -----
    Each worker holds one padded tile and what `fn` makes of it; memory does not grow with the image. The result is the
    same, byte for byte, on every dask scheduler.

    Examples
    --------
    Label the two halves of a bar that lies across a tile border:

    >>> import numpy as np, scipy.ndimage, blockbuster
    >>> image = np.zeros((4, 8), np.uint8)
    >>> image[1:3, 2:6] = 255
    >>> def segment(tile):
    ...     return scipy.ndimage.label(tile)[0]
    >>> labels = blockbuster.tile_process(image, segment, tile_shape=(4, 4))
    >>> labels.compute()[1]
    array([0, 0, 1, 1, 1, 1, 0, 0], dtype=int32)
    """
    if not callable(fn):
        raise ParameterError(
            f"fn {fn!r} cannot be called. Give a function of a numpy array that returns integer labels."
        )
    source = open_source(image, channel=channel, level=level)
    grid = make_grid(source, tile_shape, overlap, use_gpu=use_gpu)
    threshold = _empty_threshold(skip_empty, empty_threshold)
    rules = resolve_merge(merge, overlap=grid.overlap, axes=spatial_axes(source.axes, grid.ndim))
    plan = Plan(
        operation="tile_process",
        image=source,
        mask=None,
        grid=grid,
        kernel=UserFunction(fn),
        rules=rules,
        numbering="sequential" if sequential_labels else "tile",
        dtype=check_dtype(dtype),
        block_ids=check_block_ids(block_ids, grid),
        function=function_identity(fn),
        parameters={"empty_threshold": repr(threshold)},
        empty_threshold=threshold,
        use_gpu=use_gpu,
        retries=_check_retries(retries),
    )
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
        report=reporter(report, write_to, output_component),
    )
    return execute(plan, to).labels


def merge_tile_labels(
    labeled: Any,
    write_to: str | os.PathLike[str] | None = None,
    *,
    input_component: str = "labels",
    output_component: str = "labels",
    overlap: int | Sequence[int] = 0,
    tile_shape: TileShape = None,
    sequential_labels: bool = False,
    merge: Merge = "touching",
    return_count: bool = False,
    compute: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    dtype: DTypeLike = "int32",
    block_ids: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: bool | str | os.PathLike[str] = False,
) -> Any:
    """Make objects whole across the borders of tiles that were labelled one by one.

    Parameters
    ----------
    labeled : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        Labels, 0 for background; an id stands for an object of its own in each tile. Never written.
    write_to : path, optional
        As in `tile_process`.
    input_component : str, default "labels"
        For paths: the labels within the store; ignored where the path is that of an array or of an OME-Zarr label
        image.
    output_component : str, default "labels"
        As in `tile_process`.
    overlap : int or tuple of int, default 0
        Voxels by which each block of `labeled` reaches into its neighbours, as ``dask.array.overlap.overlap`` makes
        them with ``boundary="none"``: only for dask arrays, one block per tile. The result has the shape of the blocks
        without these margins.
    tile_shape : None, int, tuple of int, "auto" or callable
        The tiles that were labelled one by one. Default: the chunks.
    sequential_labels, merge
        As in `tile_process`. Without an overlap choose "touching", "contact" or None.
    return_count : bool, default False
        Return the number of objects as well.
    compute, progress, stage_dir, keep_stage, verbose, dtype, block_ids, resume, overwrite, report
        As in `tile_process`.

    Returns
    -------
    labels : dask.array.Array or numpy.ndarray of `dtype`
        As in `tile_process`.
    n_objects : int or dask.array.Array
        With `return_count` only; lazy where the labels are.

    Raises
    ------
    GeometryError, ParameterError
        If blocks are not tiles of that overlap.
    BlockbusterError
        As in `tile_process`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, blockbuster
    >>> tiles = da.from_array(np.repeat([[10, 20, 30]], 4, axis=1).reshape(3, 4), chunks=(1, 4))
    >>> labels, n = blockbuster.merge_tile_labels(tiles, return_count=True, compute=True)
    >>> n
    1
    """
    source = _labels_of(labeled, input_component)
    if source.dtype.kind not in "iu":
        raise ParameterError(
            f"labeled has dtype {source.dtype}. Labels are integers: label a mask with blockbuster.label."
        )
    halo = per_axis("overlap", overlap, source.shape, minimum=0)
    if any(halo):
        if tile_shape is not None:
            raise ParameterError(
                f"tile_shape {tile_shape!r} has no effect with overlap {overlap}: each block is a tile."
            )
        source, grid = _padded_blocks(labeled, overlap, halo)
    else:
        grid = make_grid(source, tile_shape, 0)
    plan = Plan(
        operation="merge_tile_labels",
        image=source,
        mask=None,
        grid=grid,
        kernel=UserFunction(_as_it_is),
        rules=resolve_merge(merge, overlap=grid.overlap, axes=spatial_axes(source.axes, grid.ndim)),
        numbering="sequential" if sequential_labels else "tile",
        dtype=check_dtype(dtype),
        block_ids=check_block_ids(block_ids, grid),
        function="labels of each tile",
        parameters={},
    )
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
        report=reporter(report, write_to, output_component),
    )
    outcome = execute(plan, to)
    return (outcome.labels, outcome.n_objects) if return_count else outcome.labels


def _as_it_is(block: NDArray[Any]) -> NDArray[Any]:
    return block


def _labels_of(labeled: Any, component: str) -> Image:
    if not isinstance(labeled, str | os.PathLike):
        return open_source(labeled)
    path = absolute_path(os.fspath(labeled))
    node = None if is_tiff(path) else open_node(path)
    if not isinstance(node, zarr.Group) or holds_labels(node):
        return open_source(path, channel=None)
    component = component_path(component)
    if component not in node:
        names = ", ".join(sorted(name for name, _ in node.members())) or "nothing"
        raise ImageError(f"There is no {component!r} in {path}, which holds {names}. Give one of them.")
    return open_source(f"{path}/{component}".rstrip("/"), channel=None)


def _padded_blocks(labeled: Any, overlap: int | Sequence[int], halo: tuple[int, ...]) -> tuple[Image, TileGrid]:
    """The image that blocks with margins stand for, and the grid of their cores."""
    if not isinstance(labeled, da.Array):
        raise ParameterError(
            f"overlap {overlap} needs a dask array with one block per padded tile. Labels from other sources have no "
            "margins: give overlap=0."
        )
    source = GraphImage(labeled)
    cores = [_core_extents(c, o) for c, o in zip(source.chunks, halo, strict=True)]
    if any(core < max(o, 1) for axis, o in zip(cores, halo, strict=True) if len(axis) > 1 for core in axis):
        raise GeometryError(
            f"Blocks {source.chunks} cannot have margins of {halo}: without them the tiles are {cores}, and a tile "
            "must be at least as thick as the overlap."
        )
    grid = TileGrid.from_chunks(cores, halo)
    return replace(source, padded=grid.shape), grid


def _core_extents(chunks: Sequence[int], overlap: int) -> tuple[int, ...]:
    last = len(chunks) - 1
    return tuple(c - overlap * ((i > 0) + (i < last)) for i, c in enumerate(chunks))


def _check_retries(retries: Any) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int | np.integer) or retries < 0:
        raise ParameterError(f"retries {retries!r} is no int of at least 0.")
    return int(retries)


def _empty_threshold(skip_empty: bool, threshold: float | None) -> float | Literal["otsu"] | None:
    if threshold is not None and not (isinstance(threshold, Real | np.bool_) and math.isfinite(threshold)):
        raise ParameterError(f"empty_threshold {threshold!r} is not a number. Give one, or None for an automatic one.")
    if skip_empty:
        return "otsu" if threshold is None else float(threshold)
    if threshold is not None:
        raise ParameterError(f"empty_threshold {threshold} has no effect without skip_empty=True. Give both.")
    return None
