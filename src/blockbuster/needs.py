"""What a run needs of memory, disk and files, and refusing what cannot fit before the first task.

Two numbers for each: the *least*, which a run needs whatever the image holds, and what it *likely* needs. A run is
refused for the first only; the second makes a warning, and a plan.

Memory of one tile of P padded voxels, or of C voxels of a result, in bytes::

    labels      the block, its mask, and P * 9: the foreground, its labels (4), what is kept or written of them (4)
    arrays      what the kernel works on, part by part, and C voxels twice: made, and encoded
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from blockbuster.capacity import Room, Workers, process_memory, room_at, size_words, workers_of
from blockbuster.destination import Destination, stage_folder
from blockbuster.encoding import Encoding
from blockbuster.errors import CapacityError
from blockbuster.grid import Region, Tile, TileGrid, region_shape
from blockbuster.outputs import chunks_within
from blockbuster.schedulers import Scheduler
from blockbuster.sources import GraphImage, Image, StoredImage

__all__ = [
    "OVERLAPPING_PART",
    "PART",
    "ArrayRun",
    "FolderNeeds",
    "Intent",
    "LabelsRun",
    "Needs",
    "array_needs",
    "check_room",
    "intercepting",
    "label_needs",
    "largest_tile",
    "likely_peak",
    "ready",
    "row_needs",
    "short_of",
    "tiles_each",
    "trying",
]

logger = logging.getLogger("blockbuster")

# Bytes per voxel beside the image while a tile is labelled.
_LABELLING = 1 + 4 + 4
# Bytes that a task works on at once: what it makes is put together from parts, where it would take more. And the same
# for a part that reads what others read as well.
PART = 1 << 24
OVERLAPPING_PART = 1 << 28
# Bytes of the least record of a tile in a stage.
_RECORD = 40
# Compressed, labels are seldom more than this share of themselves as uint32, and images seldom less than this.
_LABELS_SHARE = 1 / 50
_IMAGE_SHARE = 1 / 4
_FEW = 16
# Beside tiles and chunks: manifest, table, journal of the output, metadata.
_PER_FOLDER = 1000


class Kernel(Protocol):
    """What is known of a kernel before it runs."""

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """What `region` of the result needs of an image of `shape`."""

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes that each voxel of the block takes while it is worked on."""


class LabelsRun(Protocol):
    """What is known of a run that makes labels."""

    @property
    def operation(self) -> str:
        """Name of the public function."""

    @property
    def image(self) -> Image:
        """What is labelled."""

    @property
    def mask(self) -> Image | None:
        """Where."""

    @property
    def grid(self) -> TileGrid:
        """Its tiles."""

    @property
    def tiles(self) -> Sequence[int]:
        """Numbers of the tiles of the run."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the labels."""


class OneArray(Protocol):
    """What is known of one array that a run makes."""

    @property
    def source(self) -> Image | str:
        """What it is made from."""

    @property
    def kernel(self) -> Any:
        """How."""

    @property
    def grid(self) -> TileGrid:
        """Its tiles."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its voxels."""

    @property
    def encoding(self) -> Encoding | None:
        """How it is stored."""


class ArrayRun(Protocol):
    """What is known of a run that makes arrays tile by tile."""

    @property
    def operation(self) -> str:
        """Name of the public function."""

    @property
    def arrays(self) -> Sequence[OneArray]:
        """One after the other."""

    @property
    def mask(self) -> Image | None:
        """What is made of the only one."""

    @property
    def home(self) -> Path | None:
        """Where the image lies."""

    def tiles(self, array: Any, /) -> Sequence[int]:
        """Numbers of the tiles of one array that are made."""


class RowRun(Protocol):
    """What is known of a run that makes rows of tiles."""

    @property
    def operation(self) -> str:
        """Name of the public function."""

    @property
    def image(self) -> Image:
        """What is read."""

    @property
    def grid(self) -> TileGrid:
        """Its tiles, with what is read around them."""

    @property
    def tiles(self) -> Sequence[int]:
        """Numbers of those of the run."""

    @property
    def kernel(self) -> Any:
        """What finds the rows."""

    def read(self, tile: Tile, /) -> Region:
        """What the task of a tile reads, or is given, of the image."""


@dataclass(frozen=True)
class FolderNeeds:
    """What a run leaves in one folder while it goes on.

    Attributes
    ----------
    what : str
        "stage" or "output".
    option : str
        What says where it is.
    path : str
        The folder.
    files, most_files : int
        Files at least, and if nothing is left out as empty.
    bytes, likely_bytes : int
        Bytes at least, and where the content compresses as it mostly does.
    """

    what: str
    option: str
    path: str
    files: int
    most_files: int
    bytes: int
    likely_bytes: int


@dataclass(frozen=True)
class Needs:
    """What a run needs.

    Attributes
    ----------
    operation : str
        Name of the public function.
    n_tiles : int
        Tiles of the run.
    tile : tuple of int
        Voxels of the largest block that a task holds at once.
    dtype : dtype
        Of that block.
    tile_bytes, likely_tile_bytes : int
        Of a task on it, at least and likely.
    result : int
        Bytes of a result that is handed back whole.
    folders : tuple of FolderNeeds
        What it writes.
    """

    operation: str
    n_tiles: int
    tile: tuple[int, ...]
    dtype: np.dtype[Any]
    tile_bytes: int
    likely_tile_bytes: int
    result: int
    folders: tuple[FolderNeeds, ...]


# What runs need


def label_needs(run: LabelsRun, to: Destination) -> Needs:
    """What a run needs that makes labels."""
    shape = _largest([tile.padded_shape for tile in _candidates(run.grid, run.tiles)])
    inputs = [image.dtype for image in (run.image, run.mask) if image is not None]
    least = math.prod(shape) * sum(dtype.itemsize for dtype in inputs)
    n, cores = len(run.tiles), _voxels(run.grid, run.tiles)
    # Regions of the output that are marked as written are tiles, or chunks where tiles are irregular.
    units = 0 if to.write_to is None else _n_units(run.grid, chunks_within(run.grid), run.tiles)
    marks = n if run.grid.is_regular and units else units
    stage = _folder("stage", to, run.image.home, files=n, more=marks)
    folders = [_with_bytes(stage, n * _RECORD, cores * 4 * _LABELS_SHARE)]
    if to.write_to is not None:
        output = _folder("output", to, None, files=0, more=units)
        folders.append(_with_bytes(output, 0, cores * 4 * _LABELS_SHARE))
    result = math.prod(run.grid.shape) * run.dtype.itemsize if to.compute and to.write_to is None else 0
    likely = least + math.prod(shape) * _LABELLING
    if to.write_to is None and n:
        # Tiles that are handed back are made in their dtype, whatever is in them.
        least = max(least, math.prod(largest_tile(run.grid, run.tiles).shape) * run.dtype.itemsize)
    return Needs(run.operation, n, shape, run.image.dtype, least, max(likely, least), result, tuple(folders))


def array_needs(run: ArrayRun, to: Destination) -> Needs:
    """What a run needs that makes arrays tile by tile."""
    each = [_one_array(array, run.tiles(array), is_stored=to.write_to is not None) for array in run.arrays]
    shape, dtype, _, likely = max(each, key=lambda one: one[3], default=((), np.dtype("u1"), 0, 0))
    # What is outside of a mask is not made.
    least = max((one[2] for one in each), default=0) if run.mask is None else 0
    n = sum(len(run.tiles(array)) for array in run.arrays)
    if to.write_to is None:
        whole = sum(math.prod(array.grid.shape) * array.dtype.itemsize for array in run.arrays)
        return Needs(run.operation, n, shape, dtype, least, likely, whole if to.compute else 0, ())
    size = sum(_voxels(array.grid, run.tiles(array)) * array.dtype.itemsize for array in run.arrays)
    stored = [(array, array.encoding.unit) for array in run.arrays if array.encoding is not None]
    units = sum(_n_units(array.grid, unit, run.tiles(array)) for array, unit in stored)
    journal = _with_bytes(_folder("stage", to, run.home, files=n, more=0), n * _RECORD, n * _RECORD)
    output = _with_bytes(_folder("output", to, None, files=0, more=units), 0, size * _IMAGE_SHARE)
    return Needs(run.operation, n, shape, dtype, least, likely, 0, (journal, output))


def row_needs(run: RowRun, to: Destination) -> Needs:
    """What a run needs that makes rows of tiles."""
    n, dtype = len(run.tiles), run.image.dtype
    shape = _largest([region_shape(run.read(tile)) for tile in _candidates(run.grid, run.tiles)])
    voxels = math.prod(shape) if n else 0
    folders: tuple[FolderNeeds, ...] = ()
    if to.write_to is not None:
        stage = _with_bytes(_folder("stage", to, run.image.home, files=n, more=0), n * _RECORD, n * _RECORD)
        folders = (stage, _folder("output", to, None, files=1, more=0))
    least, likely = voxels * dtype.itemsize, voxels * run.kernel.work_bytes(dtype)
    return Needs(run.operation, n, shape, dtype, least, max(least, likely), 0, folders)


def largest_tile(grid: TileGrid, tiles: Sequence[int]) -> Tile:
    """The tile that has the most voxels, its halo counted."""
    return max(_candidates(grid, tiles), key=lambda tile: math.prod(tile.padded_shape))


def _candidates(grid: TileGrid, tiles: Sequence[int]) -> list[Tile]:
    """Tiles of which one is the largest of all, or nearly: of a regular grid one from its middle is."""
    n = len(tiles)
    if n <= _FEW:
        return [grid.tile(i) for i in tiles]
    if n == grid.n_tiles:
        extents = [_padded_extents(grid, axis) for axis in range(grid.ndim)]
        return [grid.tile(grid.block_id([axis.index(max(axis)) for axis in extents]))]
    return [grid.tile(tiles[k * (n - 1) // (_FEW - 1)]) for k in range(_FEW)]


def _padded_extents(grid: TileGrid, axis: int) -> list[int]:
    cuts, extent, o = grid.bounds[axis], grid.shape[axis], grid.overlap[axis]
    return [min(b + o, extent) - max(a - o, 0) for a, b in itertools.pairwise(cuts)] or [0]


def _largest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return max(shapes, key=math.prod, default=())


def _voxels(grid: TileGrid, tiles: Sequence[int]) -> int:
    """Voxels in the cores of tiles."""
    if len(tiles) == grid.n_tiles:
        return math.prod(grid.shape)
    return len(tiles) * max((math.prod(tile.shape) for tile in _candidates(grid, tiles)), default=0)


def _n_units(grid: TileGrid, unit: Sequence[int], tiles: Sequence[int]) -> int:
    """Chunks or shards of an array, and of some tiles of it."""
    n = math.prod(-(-extent // u) for extent, u in zip(grid.shape, unit, strict=True))
    return n if len(tiles) == grid.n_tiles else -(-n * len(tiles) // grid.n_tiles)


def _one_array(
    array: OneArray, tiles: Sequence[int], *, is_stored: bool
) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """The largest block that a task holds, its dtype, and the bytes of the task at least and likely."""
    if not len(tiles):
        return (), array.dtype, 0, 0
    tile = largest_tile(array.grid, tiles)
    made = math.prod(tile.shape) * array.dtype.itemsize
    if isinstance(array.source, str):
        # From the array before it, part by part.
        return tile.shape, array.dtype, made, 2 * made + PART
    shape = array.source.shape
    read = array.kernel.source(tile.core, shape)
    block = math.prod(region_shape(read)) * array.source.dtype.itemsize
    work = math.prod(region_shape(read)) * array.kernel.work_bytes(array.source.dtype)
    is_whole = getattr(array.kernel, "whole_tiles", False)
    if is_whole or not isinstance(array.source, StoredImage):
        # A task has all that it needs at once: of a numpy array a view, but where the kernel wants it for its own.
        least = block if is_whole or isinstance(array.source, GraphImage) else 0
        return region_shape(read), array.source.dtype, least, work + 2 * made
    may_copy_files = is_stored and getattr(array.kernel, "keeps_values", False)
    part = OVERLAPPING_PART if _reads_again(array.kernel, tile.core, shape) else PART
    return tile.shape, array.dtype, 0 if may_copy_files else made, min(work, part) + 2 * made


def _reads_again(kernel: Kernel, region: Region, shape: Sequence[int]) -> bool:
    """Whether the halves of a region need more of the image than the whole."""
    axis = max(range(len(region)), key=lambda a: region[a].stop - region[a].start, default=0)
    if not region or region[axis].stop - region[axis].start < 2:
        return False
    middle = (region[axis].start + region[axis].stop) // 2
    halves = (slice(region[axis].start, middle), slice(middle, region[axis].stop))
    parts = [kernel.source((*region[:axis], half, *region[axis + 1 :]), shape) for half in halves]
    return sum(math.prod(region_shape(p)) for p in parts) > math.prod(region_shape(kernel.source(region, shape)))


def _folder(what: str, to: Destination, home: Path | None, *, files: int, more: int) -> FolderNeeds:
    option, path = ("stage_dir", stage_folder(to, home)) if what == "stage" else ("write_to", to.root)
    folders = -(-files // _PER_FOLDER)
    return FolderNeeds(what, option, str(path), files + folders, files + folders + more, 0, 0)


def _with_bytes(folder: FolderNeeds, least: float, likely: float) -> FolderNeeds:
    return replace(folder, bytes=int(least), likely_bytes=int(max(likely, least)))


# What does not fit


def check_room(needs: Needs, workers: Workers, rooms: Sequence[Room]) -> None:
    """Refuse what cannot fit, and warn of what likely does not.

    Parameters
    ----------
    rooms : sequence of Room
        For each folder of `needs`, in order.

    Raises
    ------
    CapacityError
        If some need exceeds what there is, whatever the image holds.
    """
    for problem in short_of(needs, workers, rooms):
        raise CapacityError(problem)
    for warning in _likely_short_of(needs, workers, rooms):
        logger.warning("%s", warning)


def short_of(needs: Needs, workers: Workers, rooms: Sequence[Room]) -> Iterator[str]:
    """What surely is not enough, in sentences that say what to change."""
    most = workers.most_memory
    if most is not None and needs.tile_bytes > most:
        yield (
            f"{needs.operation}: a task on one tile, with its halo {needs.tile} of {needs.dtype}, takes at least "
            f"{size_words(needs.tile_bytes)}, but {workers.limit} is {size_words(most)}. Give a smaller tile_shape or "
            "overlap, or workers with more memory."
        )
    if needs.result and needs.result > process_memory():
        yield (
            f"{needs.operation}: compute=True asks for the whole result, {size_words(needs.result)}, in the memory of "
            f"this process, which may hold {size_words(process_memory())}. Give write_to=, and leave compute away."
        )
    for room, folders in _by_device(needs, rooms):
        files, least = sum(folder.files for folder in folders), sum(folder.bytes for folder in folders)
        where = " and ".join(f"the {folder.what} in {folder.path}" for folder in folders)
        options = " or ".join(dict.fromkeys(f"{folder.option}=" for folder in folders))
        if room.free_files is not None and files > room.free_files:
            yield (
                f"{needs.operation}: {where} takes at least {files:,} files, but the file system has room for "
                f"{room.free_files:,}. Give larger tiles, or another {options}."
            )
        if least > room.free:
            yield (
                f"{needs.operation}: {where} takes at least {size_words(least)}, but {size_words(room.free)} are free "
                f"there. Make room, or give another {options}."
            )


def likely_peak(needs: Needs, workers: Workers) -> int:
    """Bytes of a worker at its peak, by the model."""
    return workers.held + tiles_each(needs, workers) * needs.likely_tile_bytes


def tiles_each(needs: Needs, workers: Workers) -> int:
    """Tiles at a time on one worker."""
    return min(workers.tiles_each, needs.n_tiles)


def _likely_short_of(needs: Needs, workers: Workers, rooms: Sequence[Room]) -> Iterator[str]:
    peak, at_once = likely_peak(needs, workers), tiles_each(needs, workers)
    if workers.memory is not None and peak > workers.memory:
        yield (
            f"{needs.operation}: a worker likely takes {size_words(peak)} at its peak ({at_once} tiles at a time, "
            f"{size_words(needs.likely_tile_bytes)} each), but {workers.limit} is {size_words(workers.memory)}. "
            "Smaller tiles or fewer threads take less."
        )
    for room, folders in _by_device(needs, rooms):
        likely = sum(folder.likely_bytes for folder in folders)
        if likely > room.free:
            names = " and ".join(folder.what for folder in folders)
            yield (
                f"{needs.operation}: {names} likely take about {size_words(likely)} in {folders[0].path}, where "
                f"{size_words(room.free)} are free."
            )


def _by_device(needs: Needs, rooms: Sequence[Room]) -> Iterator[tuple[Room, list[FolderNeeds]]]:
    """File systems, and what is to go there."""
    for device in dict.fromkeys(room.device for room in rooms):
        there = [(room, folder) for room, folder in zip(rooms, needs.folders, strict=True) if room.device == device]
        yield there[0][0], [folder for _, folder in there]


# Before the first task


@dataclass(frozen=True)
class Intent:
    """A run that is about to start.

    Attributes
    ----------
    run : LabelsRun or ArrayRun
        What it makes.
    to : Destination
        Where.
    needs : Needs
        What it takes.
    """

    run: Any
    to: Destination
    needs: Needs


class _InterceptedError(BaseException):
    """Carries a run that is planned out of the operation that would start it."""

    def __init__(self, intent: Intent) -> None:
        super().__init__("A run was planned, not started.")
        self.intent = intent


_mode: ContextVar[Literal["run", "plan", "trial"]] = ContextVar("_mode", default="run")


def ready(run: Any, to: Destination, scheduler: Scheduler, needs_of: Callable[[Any, Destination], Needs]) -> None:
    """The last thing before a run touches anything: refuse it if it cannot fit.

    Where runs are planned, it does not come back: `intercepting` gets the run.

    Raises
    ------
    CapacityError
        If the run cannot fit, whatever the image holds.
    """
    if _mode.get() == "trial":
        return
    needs = needs_of(run, to)
    if _mode.get() == "plan":
        raise _InterceptedError(Intent(run, to, needs))
    if to.resume:
        # What is done already needs no room any more.
        needs = replace(needs, folders=())
    check_room(needs, workers_of(scheduler), [room_at(folder.path) for folder in needs.folders])


@contextlib.contextmanager
def intercepting() -> Iterator[list[Intent]]:
    """Within it, an operation stops before its first task; the run that it would start is in the list."""
    found: list[Intent] = []
    token = _mode.set("plan")
    try:
        yield found
    except _InterceptedError as stopped:
        found.append(stopped.intent)
    finally:
        _mode.reset(token)


@contextlib.contextmanager
def trying() -> Iterator[None]:
    """Within it, runs are trials of a few tiles: whether all of it fits is told elsewhere."""
    token = _mode.set("trial")
    try:
        yield
    finally:
        _mode.reset(token)
