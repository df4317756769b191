"""`plan`: what a run would take of time, memory and disk, before it is started."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from dask.utils import format_time

from blockbuster.blobs import detect_blobs
from blockbuster.capacity import Room, Workers, planned_workers, room_at, size_words, workers_of
from blockbuster.errors import CapacityError, ParameterError
from blockbuster.grid import TileGrid
from blockbuster.labels import label
from blockbuster.mapping import map_tiles
from blockbuster.needs import FolderNeeds, Intent, Needs, intercepting, likely_peak, short_of, tiles_each
from blockbuster.outputs import plan_output
from blockbuster.parquet import TableFile
from blockbuster.pyramid import downsample
from blockbuster.reads import Reads, read_spans, reads_of, stored_chunk_shape
from blockbuster.rowwise import RowPlan
from blockbuster.schedulers import active_scheduler
from blockbuster.sources import Image, MemoryImage
from blockbuster.tables import map_tiles_to_table
from blockbuster.tiles import merge_tile_labels, tile_process
from blockbuster.transfer import copy
from blockbuster.trials import Trials, estimate, make_trials
from blockbuster.writing import pyramid, write_image, write_labels

__all__ = ["OPERATIONS", "DiskUse", "RunPlan", "plan"]

OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        label,
        tile_process,
        merge_tile_labels,
        map_tiles,
        copy,
        downsample,
        map_tiles_to_table,
        detect_blobs,
        write_image,
        write_labels,
        pyramid,
    )
}
# From here on it is worth saying that chunks are decoded again and again.
_MANY_READS = 3.0
_MANY_LAZY_TILES = 20_000
_PADDED = operator.attrgetter("padded")


@dataclass(frozen=True)
class DiskUse:
    """What a run takes on one file system.

    Attributes
    ----------
    path : str
        A folder on it.
    device : int
        Its number.
    stage_bytes, output_bytes : int
        Of the stage, which goes in the end, and of the output: measured on a few tiles, else what is usual.
    files : int
        At most: chunks without anything in them are not written.
    free_bytes : int
        What is free. A quota may leave less.
    free_files : int or None
        Files that can be made; None where the file system has no limit of its own.
    is_measured : bool
        Whether the bytes are measured.
    """

    path: str
    device: int
    stage_bytes: int
    output_bytes: int
    files: int
    free_bytes: int
    free_files: int | None
    is_measured: bool


@dataclass(frozen=True)
class RunPlan:
    """What a run would take: printed, a table.

    Attributes
    ----------
    operation : str
        Name of the operation.
    shape : tuple of int
        Of the image, voxels.
    dtype : str
        Of the image.
    tile_shape : tuple of int
        Of a tile, voxels, without its halo; of the first array where several are made.
    grid : tuple of int
        Tiles per axis, of the same.
    overlap : tuple of int
        Voxels read beyond each side of a tile, per axis.
    n_tiles : int
        Tiles of the run, of all arrays.
    voxels_read : int
        Voxels of the image that tasks ask for, halos counted.
    amplification : float
        How often that is each voxel of the tiles of the run.
    chunk_shape : tuple of int or None
        Stored chunks of the image, voxels; None for what is not stored.
    chunks_decoded : int
        How many of them are decoded, each time counted.
    chunk_amplification : float
        How often that is each chunk that is needed.
    n_workers : int
        Processes that run tasks.
    tiles_at_once : int
        Tiles at a time, on all of them.
    memory_limit : int or None
        Bytes that each may hold; None where no limit is known.
    tile_memory : int
        Bytes of one tile by the model, the own needs of a function left out.
    measured_tile_memory : int or None
        Bytes by which a worker grew for a while with each tile but its first; None where that was not seen.
    peak_memory : int
        Bytes of a worker at its peak, what it holds before the first tile counted.
    result_memory : int
        Bytes of a result that is handed back whole.
    disks : tuple of DiskUse
        For each file system what goes there.
    tile_seconds : tuple of float
        What each tile took that was tried.
    seconds : float or None
        Estimate for the run; None without tried tiles.
    seconds_range : tuple of float or None
        Between which it likely lies.
    problems : tuple of str
        Why the run cannot fit.
    warnings : tuple of str
        What may go wrong, or is slower than it could be.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> made = blockbuster.plan(np.zeros((64, 64), np.uint8), tile_shape=(32, 32), time_tiles=0)
    >>> made.n_tiles, made.amplification, made.fits
    (4, 1.0, True)
    """

    operation: str
    shape: tuple[int, ...]
    dtype: str
    tile_shape: tuple[int, ...]
    grid: tuple[int, ...]
    overlap: tuple[int, ...]
    n_tiles: int
    voxels_read: int
    amplification: float
    chunk_shape: tuple[int, ...] | None
    chunks_decoded: int
    chunk_amplification: float
    n_workers: int
    tiles_at_once: int
    memory_limit: int | None
    tile_memory: int
    measured_tile_memory: int | None
    peak_memory: int
    result_memory: int
    disks: tuple[DiskUse, ...]
    tile_seconds: tuple[float, ...]
    seconds: float | None
    seconds_range: tuple[float, float] | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is known that the run would lack."""
        return not self.problems

    def check(self) -> None:
        """Raise if the run cannot fit.

        Raises
        ------
        CapacityError
            With every reason, and what to change.
        """
        if self.problems:
            raise CapacityError("\n".join(self.problems))

    def as_dict(self) -> dict[str, Any]:
        """All fields as numbers, words, lists and dicts: for JSON."""
        return {**asdict(self), "fits": self.fits}

    def __str__(self) -> str:
        rows = [
            ("tiles", self._tile_words()),
            ("reads", self._read_words()),
            ("workers", self._worker_words()),
            ("memory", self._memory_words()),
            *(("disk", _disk_words(disk)) for disk in self.disks),
            ("time", self._time_words()),
            ("fits", "yes" if self.fits else "no"),
            *(("problem", problem) for problem in self.problems),
            *(("note", warning) for warning in self.warnings),
        ]
        head = f"{self.operation} of {self.dtype} {self.shape}"
        return "\n".join([head, *(f"{name:<9}{words}" for name, words in rows)])

    def _tile_words(self) -> str:
        halo = f", overlap {self.overlap}" if any(self.overlap) else ""
        return f"{self.n_tiles:,} of {self.tile_shape}, grid {self.grid}{halo}"

    def _read_words(self) -> str:
        voxels = f"{self.voxels_read:,} voxels, each {self.amplification:.2f} times"
        if self.chunk_shape is None:
            return voxels
        return f"{voxels}; {self.chunks_decoded:,} chunks {self.chunk_shape}, each {self.chunk_amplification:.2f} times"

    def _worker_words(self) -> str:
        limit = "no known limit" if self.memory_limit is None else f"at most {size_words(self.memory_limit)} each"
        return f"{self.n_workers}, {self.tiles_at_once} tiles at a time, {limit}"

    def _memory_words(self) -> str:
        seen = self.measured_tile_memory
        measured = f", {size_words(seen)} seen" if seen is not None else ""
        result = f"; the result {size_words(self.result_memory)}" if self.result_memory else ""
        each = f"{size_words(self.tile_memory)} a tile by the model{measured}"
        return f"{size_words(self.peak_memory)} per worker at its peak: {each}{result}"

    def _time_words(self) -> str:
        if self.seconds is None or self.seconds_range is None:
            return "not tried"
        low, high = map(format_time, self.seconds_range)
        tried = ", ".join(format_time(one) for one in self.tile_seconds)
        return f"{format_time(self.seconds)}, from {low} to {high}; tiles tried: {tried}"


def plan(
    image: Any,
    *arguments: Any,
    operation: str | Callable[..., Any] | None = None,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: int | str | None = None,
    time_tiles: int = 3,
    **options: Any,
) -> RunPlan:
    """What a run would take, and whether it fits: the same call as that of the run, without the run.

    A few tiles are really made, by the active scheduler, into folders of their own beside those of the run, and removed
    again. Everything else is reckoned from shapes.

    Parameters
    ----------
    image : array_like or path
        As for the operation.
    *arguments
        As for the operation: such as `fn` of `tile_process`, or `scale_factor` of `downsample`.
    operation : str or callable, optional
        One of `label`, `tile_process`, `merge_tile_labels`, `map_tiles`, `map_tiles_to_table`, `detect_blobs`, `copy`,
        `downsample`, `write_image`, `write_labels` and `pyramid`, or its name. Default: `tile_process` where a function
        is given, else `label`.
    n_workers : int, optional
        Worker processes of a cluster that is to be started. Default: those of the active scheduler.
    threads_per_worker : int, optional
        Tiles at a time in each of them. Default: as now.
    memory_limit : int or str, optional
        Bytes for each of them, such as "16 GiB". Default: as now: the limits of the workers of a cluster, else what
        the machine, the cgroups and the SLURM job of this process allow.
    time_tiles : int, default 3
        How many tiles to try, spread over the image; 0 for none. Of several arrays, such as the levels of a pyramid,
        the largest is tried, and the others are reckoned by their voxels.
    **options
        As for the operation: such as `tile_shape`, `overlap`, `write_to`.

    Returns
    -------
    plan : RunPlan
        Its `check` raises where the run cannot fit.

    Raises
    ------
    ParameterError
        If there is no such operation, or a number is out of range.
    BlockbusterError
        What the operation would raise before its first task; or on one of the tiles that are tried.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> image = np.zeros((512, 512), np.uint8)
    >>> made = blockbuster.plan(image, tile_shape=(128, 128), n_workers=2, memory_limit="1 GiB", time_tiles=0)
    >>> made.n_tiles, made.fits
    (16, True)
    """
    function, call = _called(operation, image, arguments, options)
    if not hasattr(time_tiles, "__index__") or isinstance(time_tiles, bool) or time_tiles < 0:
        raise ParameterError(f"time_tiles {time_tiles!r} is no int of at least 0.")
    with intercepting() as found:
        function(*call.args, **call.kwargs)
    (intent,) = found
    _check_output(function, intent)
    scheduler = active_scheduler()
    there = workers_of(scheduler)
    workers = planned_workers(there, n_workers, threads_per_worker, memory_limit)
    if getattr(intent.run, "use_gpu", False):
        there, workers = (replace(one, tiles=one.n) for one in (there, workers))
    rooms = [room_at(folder.path) for folder in intent.needs.folders]
    lacks = list(short_of(intent.needs, workers, rooms))
    untried = None if lacks or not time_tiles else _reason_not_to_try(intent, there, workers)
    trials = None if lacks or untried or not time_tiles else make_trials(intent, scheduler, there, time_tiles)
    return _put_together(function.__name__, intent, workers, rooms, lacks, untried, trials)


def _reason_not_to_try(intent: Intent, there: Workers, workers: Workers) -> str | None:
    """Why no tile can be made now, in a sentence."""
    needs = intent.needs
    if not there.n:
        return "The cluster has no worker yet: memory and time are not known."
    if any(one.memory is not None and likely_peak(needs, one) > one.memory for one in (there, workers)):
        return "No tile was tried, as it would likely not fit."
    if intent.to.write_to is None and needs.n_tiles > _MANY_LAZY_TILES:
        return f"No tile was tried: a lazy array of {needs.n_tiles:,} tiles takes long to build. Give write_to=."
    return None


def _called(
    operation: Any, image: Any, arguments: Sequence[Any], options: dict[str, Any]
) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """The operation, and what it is called with."""
    if operation is None:
        is_function = callable(arguments[0] if arguments else options.get("fn"))
        operation = tile_process if is_function else label
    function = OPERATIONS.get(operation) if isinstance(operation, str) else operation
    if function is None or function not in OPERATIONS.values():
        raise ParameterError(f"operation {operation!r} is unknown. Choose one of {', '.join(map(repr, OPERATIONS))}.")
    try:
        return function, inspect.signature(function).bind(image, *arguments, **options)
    except TypeError as error:
        raise ParameterError(f"{function.__name__} cannot be called so: {error}. See its documentation.") from error


def _check_output(function: Callable[..., Any], intent: Intent) -> None:
    """Refuse an output that the operation would refuse: those that make levels of images have rules of their own."""
    to, run = intent.to, intent.run
    if to.write_to is None or to.resume or function in (write_image, write_labels, pyramid):
        return
    if isinstance(run, RowPlan):
        TableFile(to.root, "").check(overwrite=to.overwrite)
        return
    homes = [*getattr(run, "folders", ()), *(home for image in run.inputs for home in image.homes)]
    patches = function in (map_tiles, copy, downsample) and (run.mask is not None or run.block_ids is not None)
    plan_output(to.root, to.component, overwrite=to.overwrite, inputs=homes, patches=patches)


# From parts to a plan


def _put_together(
    operation: str,
    intent: Intent,
    workers: Workers,
    rooms: Sequence[Room],
    lacks: Sequence[str],
    untried: str | None,
    trials: Trials | None,
) -> RunPlan:
    needs, (image, grid), reads = intent.needs, _first(intent.run), _reads(intent.run)
    first, seen = (None, None) if trials is None else (trials.first_memory, trials.memory)
    more = max(needs.likely_tile_bytes, seen or 0)
    peak = workers.held + max(more, first or 0) + (tiles_each(needs, workers) - 1) * more
    disks = tuple(_disks(needs, rooms, trials))
    time = None if trials is None else estimate(trials, workers)
    repeats = reads.decoded / reads.needed if reads.needed else 1.0
    return RunPlan(
        operation=operation,
        shape=image.shape,
        dtype=str(image.dtype),
        tile_shape=grid.tile_shape,
        grid=grid.numblocks,
        overlap=grid.overlap,
        n_tiles=needs.n_tiles,
        voxels_read=reads.voxels,
        amplification=reads.voxels / reads.owned if reads.owned else 1.0,
        chunk_shape=stored_chunk_shape(image),
        chunks_decoded=reads.decoded,
        chunk_amplification=repeats,
        n_workers=workers.n,
        tiles_at_once=workers.tiles,
        memory_limit=workers.memory,
        tile_memory=needs.likely_tile_bytes,
        measured_tile_memory=seen,
        peak_memory=peak,
        result_memory=needs.result,
        disks=disks,
        tile_seconds=() if trials is None else trials.seconds,
        seconds=None if time is None else time.seconds,
        seconds_range=None if time is None else (time.low, time.high),
        problems=tuple(lacks or _lacking(needs, workers, peak, disks)),
        warnings=(*([untried] if untried else []), *_doubts(workers, disks, repeats)),
    )


def _first(run: Any) -> tuple[Image, TileGrid]:
    """The image, and the tiles of what is made of it first."""
    if not hasattr(run, "arrays"):
        return run.image, run.grid
    found = next(((array.source, array.grid) for array in run.arrays if not isinstance(array.source, str)), None)
    # A pyramid may have nothing to add.
    return found or (MemoryImage(np.empty(0, np.uint8)), TileGrid.regular((0,), (1,)))


def _reads(run: Any) -> Reads:
    """What is read of images; what a level reads of the one before it is not counted."""
    if not hasattr(run, "arrays"):
        ones = (1,) * run.grid.ndim
        spans = read_spans(run.grid, run.read if isinstance(run, RowPlan) else _PADDED)
        return reads_of(run.image, run.grid, run.tiles, spans, ones)
    found = [_array_reads(array, run.tiles(array)) for array in run.arrays if not isinstance(array.source, str)]
    return Reads(*(sum(getattr(one, field.name) for one in found) for field in fields(Reads)))


def _array_reads(array: Any, tiles: Sequence[int]) -> Reads:
    """What is read of the image that one array is made from."""
    image, grid, kernel = array.source, array.grid, array.kernel
    if not hasattr(kernel, "image_grid"):
        factors = getattr(kernel, "factors", (1,) * grid.ndim)
        spans = read_spans(grid, lambda tile: kernel.source(tile.core, image.shape))
        return reads_of(image, grid, tiles, spans, factors)
    if 0 in image.shape:
        return Reads(0, 0, 0, 0)
    # The axes of the result are not those of the image.
    there = kernel.image_grid(grid, image.shape)
    return reads_of(image, there, tiles, read_spans(there, _PADDED), (1,) * there.ndim)


def _disks(needs: Needs, rooms: Sequence[Room], trials: Trials | None) -> Iterator[DiskUse]:
    for device in dict.fromkeys(room.device for room in rooms):
        there = [(room, folder) for room, folder in zip(rooms, needs.folders, strict=True) if room.device == device]
        room = there[0][0]
        size = {folder.what: _expected(folder, trials, needs.n_tiles) for _, folder in there}
        yield DiskUse(
            path=room.path,
            device=device,
            stage_bytes=size.get("stage", 0),
            output_bytes=size.get("output", 0),
            files=sum(folder.most_files for _, folder in there),
            free_bytes=room.free,
            free_files=room.free_files,
            is_measured=trials is not None,
        )


def _expected(folder: FolderNeeds, trials: Trials | None, n_tiles: int) -> int:
    if trials is None:
        return folder.likely_bytes
    return int(n_tiles * trials.stage_bytes if folder.what == "stage" else trials.n_tiles * trials.output_bytes)


# What is said of it


def _lacking(needs: Needs, workers: Workers, peak: int, disks: Sequence[DiskUse]) -> Iterator[str]:
    """What is not enough by the model and by what was seen."""
    if workers.memory is not None and peak > workers.memory:
        yield (
            f"A worker takes {size_words(peak)} at its peak: {size_words(workers.held)} before its first tile, the "
            f"rest for {tiles_each(needs, workers)} tiles of {needs.tile} at a time; but {workers.limit} is "
            f"{size_words(workers.memory)}. Give smaller tiles, fewer threads per worker, or more memory."
        )
    for disk in disks:
        size = disk.stage_bytes + disk.output_bytes
        if disk.is_measured and size > disk.free_bytes:
            yield (
                f"The run takes {size_words(size)} in {disk.path}: {size_words(disk.stage_bytes)} for its stage, "
                f"{size_words(disk.output_bytes)} for its output; but {size_words(disk.free_bytes)} are free there. "
                "Make room, or give another write_to or stage_dir."
            )


def _doubts(workers: Workers, disks: Sequence[DiskUse], repeats: float) -> Iterator[str]:
    """What may go wrong, or is slower than it could be."""
    if workers.tiles > workers.cpus:
        yield (
            f"{workers.tiles} tiles at a time share the {workers.cpus} CPUs that this process may use: "
            f"dask.config.set(num_workers={workers.cpus}) takes less memory for the same time."
        )
    if repeats > _MANY_READS:
        yield f"Each chunk is decoded {repeats:.1f} times: tiles of whole chunks, or larger ones, read less."
    for disk in disks:
        size = disk.stage_bytes + disk.output_bytes
        if not disk.is_measured and size > disk.free_bytes:
            yield f"About {size_words(size)} likely go to {disk.path}, where {size_words(disk.free_bytes)} are free."
        if disk.free_files is not None and disk.files > disk.free_files:
            yield (
                f"Up to {disk.files:,} files go to {disk.path}, which has room for {disk.free_files:,}: larger chunks, "
                "or shards, make fewer."
            )


def _disk_words(disk: DiskUse) -> str:
    parts = [
        f"{name} {size_words(size)}"
        for name, size in (("stage", disk.stage_bytes), ("output", disk.output_bytes))
        if size
    ]
    about = "measured on the tiles tried" if disk.is_measured else "as is usual"
    return (
        f"{disk.path}: {' and '.join(parts) or 'next to nothing'} ({about}), at most {disk.files:,} files; "
        f"{size_words(disk.free_bytes)} free, quotas not counted"
    )
