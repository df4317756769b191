"""The steps of a run: plain functions of a `Job`, which is the same for all tasks, and the number of a tile."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from blockbuster.errors import TileError
from blockbuster.grid import Region, Seam, Tile, TileGrid
from blockbuster.numbering import LocalLabels, first_voxels, number_locally
from blockbuster.outputs import Output
from blockbuster.ownership import Holder
from blockbuster.progress import show_lines
from blockbuster.rules import Rule, SlabKey, seams_and_slabs, slab_region, slabs_of
from blockbuster.schedulers import gpu_slots
from blockbuster.scratch import scratch
from blockbuster.sources import StoredImage
from blockbuster.stage import Manifest, Stage, TileRecord
from blockbuster.tasks import attempting, blaming, first_of, kept_back, n_bytes_read
from blockbuster.thresholds import otsu, thinned
from blockbuster.unions import Numbering, ScanPart, make_table

__all__ = [
    "Job",
    "Kernel",
    "Report",
    "TileLabels",
    "begin",
    "final_block",
    "sample",
    "scan",
    "stage_tile",
    "unite",
    "write_block",
]

logger = logging.getLogger("blockbuster")

P = ParamSpec("P")
T = TypeVar("T")
Records: TypeAlias = Callable[[int], TileRecord]

# Above this share of labels at the outer edge of what their tile has read, the overlap is likely too small.
_REACHING_SHARE = 0.5
_TAKE = 1 << 16


@dataclass(frozen=True)
class TileLabels:
    """What a kernel makes of a padded tile.

    Attributes
    ----------
    labels : ndarray of integers
        0 is background.
    n : int or None
        If the labels are 1..n without gaps, how many; None where that is not known.
    values : ndarray or None
        For each label the value that its partners in other tiles must share.
    """

    labels: NDArray[Any]
    n: int | None = None
    values: NDArray[Any] | None = None


class Kernel(Protocol):
    """Labels a padded tile."""

    def __call__(self, block: NDArray[Any], mask: NDArray[Any] | None) -> TileLabels:
        """Labels of the same shape as `block`."""


@dataclass(frozen=True)
class Job:
    """What every task of a run knows.

    Attributes
    ----------
    image, mask : StoredImage or None
        What tasks read themselves; None where they are given their blocks.
    final_grid : TileGrid
        Regions of the last step: the tiles, or the chunks of an output where tiles are irregular.
    empty_threshold : float or None
        Tiles whose maximum does not exceed it are empty.
    retries : int
        How often a tile that fails is tried again.
    use_gpu, on_cluster : bool
        Whether a tile needs a GPU, and whether that is one of a worker of a cluster.
    holder : Keeper or Ticket
        Keeps the stage.
    """

    grid: TileGrid
    final_grid: TileGrid
    kernel: Kernel
    rules: tuple[Rule, ...]
    numbering: Numbering
    dtype: np.dtype[Any]
    stage: Stage
    manifest: Manifest
    image: StoredImage | None
    mask: StoredImage | None
    has_mask: bool
    empty_threshold: float | None
    retries: int
    use_gpu: bool
    on_cluster: bool
    verbose: bool
    block_ids: frozenset[int] | None
    output: Output | None
    holder: Holder | None = None

    def holds(self, block_id: int) -> bool:
        """Whether a tile is part of the run."""
        return self.block_ids is None or block_id in self.block_ids


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes
    ----------
    n_objects : int
        Objects after merging.
    n_tiles, n_skipped : int
        Tiles of the run, and how many of them were skipped as empty.
    empty_threshold : float or None
        At what maximum a tile was skipped.
    n_labels, n_reaching : int
        Labels in all tiles, and how many of them reach the outer edge of what their tile has read.
    """

    n_objects: int
    n_tiles: int
    n_skipped: int
    empty_threshold: float | None
    n_labels: int
    n_reaching: int


@dataclass(frozen=True)
class Failures:
    """What is wrong with some tiles, in place of what a scan of them would have found."""

    errors: tuple[TileError, ...]


# The steps


def sample(image: StoredImage | None, tile: Tile, *blocks: NDArray[Any]) -> NDArray[Any]:
    """A few voxels of a tile, for the threshold of empty tiles."""
    with blaming(tile, "reading the image"):
        return thinned(blocks[0] if image is None else image.read(tile.padded))


def begin(job: Job, holder: Holder, samples: list[NDArray[Any]]) -> Job:
    """Make the stage, and hold it while any task may need it."""
    threshold = otsu(samples) if samples else job.empty_threshold
    return replace(job, holder=holder.hold(job.manifest), empty_threshold=threshold)


def _step(function: Callable[Concatenate[Job, P], T]) -> Callable[Concatenate[Job, P], T]:
    """A step that, when it fails, leaves nothing behind that its error would carry along."""

    @functools.wraps(function)
    def step(job: Job, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(job, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed = error
        # The error keeps the job alive, for long on a cluster: hold the stage no longer.
        if job.holder is not None:
            job.holder.fail()
        if isinstance(failed, TileError):
            # What it came from, which may be impossible to pickle, is its cause already, or stands there in words.
            failed.__context__ = failed.__cause__
        raise failed

    return step


@_step
def stage_tile(job: Job, block_id: int, *blocks: NDArray[Any]) -> TileError | None:
    """Label one padded tile, and keep its labels and slabs; returns what is wrong with it, for the others to go on."""
    if job.stage.has_tile(block_id):
        return None
    tile = job.grid.tile(block_id)
    if job.verbose:
        show_lines(job.verbose)
        logger.info("tile %s of %s, region %s", tile.index, job.grid.numblocks, tile.padded)
    try:
        with attempting(job.stage, tile, block_id) as mark:
            made = _labelled(job, tile, blocks)
            with blaming(tile, "staging"):
                counts, arrays = ({"n": 0, "skipped": 1}, {}) if made is None else _record(job, tile, made)
                n_bytes = n_bytes_read(tile.padded, (job.image, job.mask), blocks)
                job.stage.write_tile(block_id, counts, arrays, mark, n_bytes)
    except TileError as error:
        return kept_back(job.stage, block_id, error)
    return None


@_step
def scan(job: Job, block_ids: tuple[int, ...], staged: Sequence[TileError | None]) -> ScanPart | Failures:
    """Compare the slabs of some tiles with those of their neighbours: reads no labels."""
    errors = [error for error in staged if error is not None]
    if errors:
        return Failures(tuple(errors))
    records: Records = functools.lru_cache(maxsize=4 * len(block_ids) + 64)(job.stage.tile)
    own = [records(block_id) for block_id in block_ids]
    seams: list[tuple[int, int, int]] = []
    pairs = [np.empty((0, 2), np.int64)]
    for block_id in block_ids:
        with blaming(job.grid.tile(block_id), "merging"):
            for seam, joined in _joined_seams(job, block_id, records):
                seams.append((seam.first, seam.second, len(joined)))
                pairs.append(joined)
    return ScanPart(
        block_ids=np.array(block_ids, np.int64),
        counts=_counts(own, "n"),
        ghosts=_counts(own, "ghosts"),
        first=_first_of(own) if job.numbering == "raster" else None,
        seams=np.array(seams, np.int64).reshape(-1, 3),
        pairs=np.concatenate(pairs),
        skipped=int(_counts(own, "skipped").sum()),
        reaching=int(_counts(own, "reaching").sum()),
    )


@_step
def unite(job: Job, scanned: list[ScanPart | Failures]) -> Report:
    """Make the table of final ids, if no tile failed."""
    errors = [error for part in scanned if isinstance(part, Failures) for error in part.errors]
    if errors:
        raise first_of(errors)
    parts = [part for part in scanned if isinstance(part, ScanPart)]
    table = make_table(parts, job.grid.n_tiles, numbering=job.numbering, dtype=job.dtype)
    job.stage.write_table(table)
    job.stage.note_seams(np.concatenate([np.empty((0, 3), np.int64), *(part.seams for part in parts)]))
    report = Report(
        n_objects=table.outline.n_objects,
        n_tiles=sum(part.block_ids.size for part in parts),
        n_skipped=sum(part.skipped for part in parts),
        empty_threshold=job.empty_threshold,
        n_labels=int(table.outline.offsets[-1]),
        n_reaching=sum(part.reaching for part in parts),
    )
    _tell(report, job)
    return report


@_step
def final_block(job: Job, number: int) -> NDArray[Any]:
    """The final labels of one region of the final grid."""
    region = job.final_grid.tile(number)
    with blaming(region, "relabelling"):
        return _final_labels(job, region, _labelled_tiles(job, region), np.empty(region.shape, job.dtype))


@_step
def write_block(job: Job, number: int) -> None:
    """Write the final labels of one region of the final grid; one without labels is left to the fill value."""
    assert job.output is not None
    if job.stage.is_written(job.output.mark, number):
        return
    region = job.final_grid.tile(number)
    with blaming(region, "writing"):
        tiles = _labelled_tiles(job, region)
        if tiles:
            job.output.write(region.core, _final_labels(job, region, tiles, scratch("labels", region.shape, job.dtype)))
        job.stage.mark_written(job.output.mark, number)


# Parts of steps


def _labelled(job: Job, tile: Tile, blocks: Sequence[NDArray[Any]]) -> TileLabels | None:
    """What the kernel makes of a tile, tried again where it fails; None for one that is empty."""
    for left in reversed(range(job.retries + 1)):
        try:
            # A function may have written to its block: each try has its own.
            block, mask = _inputs(job, tile, blocks)
            if _is_empty(job, block):
                return None
            with blaming(tile, "the function"), _with_gpu(job):
                return _checked(job.kernel(block, mask), block.shape)
        except TileError as error:
            if not left:
                raise
            logger.warning("%s. It is tried again, up to %d times.", error, left)
    raise AssertionError("no try was made")


def _inputs(job: Job, tile: Tile, blocks: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The padded tile of the image and of the mask: given, or read here."""
    given = iter(blocks)
    with blaming(tile, "reading the image"):
        block = _own(next(given)) if job.image is None else job.image.read(tile.padded)
    if not job.has_mask:
        return block, None
    with blaming(tile, "reading the mask"):
        return block, _own(next(given)) if job.mask is None else job.mask.read(tile.padded)


def _own(block: NDArray[Any]) -> NDArray[Any]:
    """A copy in native byte order: a function may write to its block, and others may share the one given."""
    return np.array(block, dtype=block.dtype.newbyteorder("="), order="C")


def _is_empty(job: Job, block: NDArray[Any]) -> bool:
    return job.empty_threshold is not None and bool(block.max() <= job.empty_threshold)


@contextlib.contextmanager
def _with_gpu(job: Job) -> Iterator[None]:
    """Wait for a GPU: on a cluster one of this worker, else the one of this machine.

    A cluster gives out its GPUs as resources, but a lazy array's tasks lose theirs when dask optimizes its graph.
    """
    if not job.use_gpu:
        yield
    elif job.on_cluster:
        with gpu_slots():
            yield
    else:
        with FileLock(os.path.join(job.stage.path, "gpu.lock"), poll_interval=0.005):
            yield


def _checked(made: TileLabels, shape: tuple[int, ...]) -> TileLabels:
    """Refuse what is no labelling of the block."""
    labels = made.labels
    if not isinstance(labels, np.ndarray):
        got = type(labels).__name__
        raise TypeError(f"the function returned {got}; expected integers of shape {shape}, as a numpy array.")
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise TypeError(
            f"the function returned {labels.dtype} of shape {labels.shape}; expected integers of shape {shape}."
        )
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise ValueError(
            f"the function returned the label {labels.min()}; labels must not be negative, 0 is background."
        )
    return replace(made, labels=labels.astype(labels.dtype.newbyteorder("="), copy=False))


def _record(job: Job, tile: Tile, made: TileLabels) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    """Counts and arrays that are kept of a tile."""
    keys = slabs_of(tile, job.grid, job.rules)
    margin = tuple(int(any(k.kind == "strip" for k in keys) and o > 0) for o in job.grid.overlap)
    start, stop = tile.grown(margin)
    seen = made.labels[tile.within_padded(start, stop)]
    core = _within(tile.start, tile.stop, start)
    local = number_locally(seen, core, made.n)
    if not local.n + local.ghosts:
        return {"n": 0}, {}
    counts = {"n": local.n, "ghosts": local.ghosts}
    arrays = {key.name: local.labels[_within(*slab_region(key, tile), start)] for key in keys}
    if not local.n:
        return counts, arrays
    if any(margin):
        counts["reaching"] = _n_reaching(made.labels, tile, job.grid, local)
    if job.numbering == "raster":
        arrays["first"] = first_voxels(local.labels[core], tile.start, job.grid.shape)
    if made.values is not None:
        arrays["values"] = made.values
    arrays["labels"] = local.labels[core]
    return counts, arrays


def _within(start: Sequence[int], stop: Sequence[int], origin: Sequence[int]) -> Region:
    return tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))


def _n_reaching(labels: NDArray[Any], tile: Tile, grid: TileGrid, local: LocalLabels) -> int:
    """How many labels of the core reach the outermost layer of what the tile has read, image borders left out."""
    reaching = np.zeros(local.n + 1, np.bool_)
    for axis, extent in enumerate(grid.shape):
        for inner, layer in ((tile.padded_start[axis] > 0, 0), (tile.padded_stop[axis] < extent, -1)):
            if inner and grid.overlap[axis]:
                reaching[local.of(np.unique(labels.take(layer, axis)))] = True
    return int(np.count_nonzero(reaching[1:]))


def _joined(rule: Rule, seam: Seam, records: Records, mine: SlabKey, theirs: SlabKey) -> NDArray[np.int64]:
    """Pairs of ids of the two tiles of a seam that are one object, of one value where labels have values."""
    first, second = records(seam.first), records(seam.second)
    pairs = rule.join(seam, first.array(mine.name), second.array(theirs.name))
    if len(pairs) and first.has("values"):
        pairs = pairs[first.array("values")[pairs[:, 0] - 1] == second.array("values")[pairs[:, 1] - 1]]
    return pairs


def _joined_seams(job: Job, block_id: int, records: Records) -> Iterator[tuple[Seam, NDArray[np.int64]]]:
    """Seams that a tile opens, with the pairs of labels that are one object there."""
    for rule in job.rules:
        for seam, mine, theirs in seams_and_slabs(block_id, job.grid, rule):
            if job.holds(seam.second) and records(seam.first).has(mine.name) and records(seam.second).has(theirs.name):
                pairs = _joined(rule, seam, records, mine, theirs)
                if len(pairs):
                    yield seam, pairs


def _counts(records: Sequence[TileRecord], name: str) -> NDArray[np.int64]:
    return np.array([record.counts.get(name, 0) for record in records], np.int64)


def _first_of(records: Sequence[TileRecord]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(r.array("first") for r in records if r.counts["n"])])


def _labelled_tiles(job: Job, region: Tile) -> list[tuple[Tile, TileRecord]]:
    """The tiles that a region meets and that have labels."""
    tiles = [tile for tile in job.grid.overlapping(region.start, region.stop) if job.holds(tile.block_id)]
    found = [(tile, job.stage.tile(tile.block_id)) for tile in tiles]
    return [(tile, record) for tile, record in found if record.counts["n"]]


def _final_labels(job: Job, region: Tile, tiles: Sequence[tuple[Tile, TileRecord]], out: NDArray[Any]) -> NDArray[Any]:
    """Final labels of a region, put together in `out` from the records of its tiles."""
    if [tile.core for tile, _ in tiles] != [region.core]:
        out[...] = 0
    for tile, record in tiles:
        low, high = tuple(map(max, tile.start, region.start)), tuple(map(min, tile.stop, region.stop))
        local = record.array("labels")[_within(low, high, tile.start)]
        final = job.stage.lookup(tile.block_id, job.dtype)
        _take(final, local, out[_within(low, high, region.start)])
    return out


def _take(table: NDArray[Any], local: NDArray[Any], target: NDArray[Any]) -> None:
    """Look `local` up in `table`, a part at a time: numpy widens indices, which should stay in the cache."""
    if not target.flags.c_contiguous or not local.flags.c_contiguous:
        np.take(table, local, out=target, mode="clip")
        return
    source, sink = local.reshape(-1), target.reshape(-1)
    for begin in range(0, source.size, _TAKE):
        part = slice(begin, begin + _TAKE)
        # "clip" lets numpy write to `out` without a buffer; all ids are in range.
        np.take(table, source[part], out=sink[part], mode="clip")


def _tell(report: Report, job: Job) -> None:
    if report.n_skipped:
        logger.warning(
            "%d of %d tiles were skipped as empty: no voxel above the threshold %s.",
            report.n_skipped,
            report.n_tiles,
            report.empty_threshold,
        )
    if report.n_reaching > _REACHING_SHARE * report.n_labels and report.n_reaching > 1:
        logger.warning(
            "%d of %d labels reach the outer edge of what their tile has read (overlap %s): objects larger than the "
            "overlap may be cut differently from tile to tile. Give a larger overlap.",
            report.n_reaching,
            report.n_labels,
            job.grid.overlap,
        )
