"""What every task on a tile does: say where it failed, where it is at work, and whether others may go on."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from blockbuster.errors import OutputError, StageError, TileError
from blockbuster.grid import Region, Tile, TileGrid, region_shape
from blockbuster.schedulers import Scheduler, in_worker, is_on_cluster
from blockbuster.sources import StoredImage
from blockbuster.stage import Mark, Stage

__all__ = ["attempting", "blaming", "computing", "first_of", "inside_of", "kept_back", "n_bytes_read"]

T = TypeVar("T")

# Processes that a tile may cost before it is no longer tried: as many as dask gives a task. Also pools in a row.
_ATTEMPTS = 3
# Tiles that may fail before a run gives up, when no more than these have been finished.
_FAILURES = 3
_TOLD = 20
# Steps that fail for all tiles alike.
_AT_ONCE = {"staging", "writing", "noting it", "copying chunks"}


@contextlib.contextmanager
def blaming(tile: Tile, step: str) -> Iterator[None]:
    """Say on which tile and in which step an error came up."""
    try:
        yield
    except TileError:
        raise
    except Exception as error:  # noqa: BLE001 - raised again with its place
        made = TileError.of(tile.index, tile.padded, step, error, leaves_process=in_worker())
        raise made from made.__cause__


def inside_of(tile: Tile, mask: StoredImage | None, blocks: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Which voxels of the core of a tile a mask holds; where it is not stored, the last of the blocks is its part."""
    with blaming(tile, "reading the mask"):
        found = blocks[-1] if mask is None else mask.read(tile.core)
        return np.asarray(found != 0)


def n_bytes_read(region: Region, images: Sequence[StoredImage | None], blocks: Sequence[NDArray[Any]]) -> int:
    """Bytes of a region of stored images, which a task reads itself, and of the blocks that it is given."""
    n_voxels = math.prod(region_shape(region))
    stored = sum(n_voxels * image.dtype.itemsize for image in images if image is not None)
    return stored + sum(block.nbytes for block in blocks)


@contextlib.contextmanager
def attempting(stage: Stage, tile: Tile, number: int) -> Iterator[Mark]:
    """Note in the stage that a tile is worked on: what ends its process leaves no other trace.

    Parameters
    ----------
    number : int
        The tile's in the journal.

    Yields
    ------
    mark : Mark
        What becomes the record of the tile.

    Raises
    ------
    TileError
        If the process that worked on the tile was lost too often.
    """
    _end_with(stage.client)
    with blaming(tile, "staging"):
        mark = stage.begin_attempt(number, 1)
    if mark is not None:
        with _ending(stage, mark):
            yield mark
        return
    with _alone(stage):
        with blaming(tile, "staging"):
            mark = stage.begin_attempt(number, _ATTEMPTS)
        if mark is None:
            raise TileError.lost(tile.index, tile.padded, stage.attempts(number))
        with _ending(stage, mark):
            yield mark


@functools.cache
def _end_with(client: int) -> None:
    """Let a process of the client's pool go when the client is killed: it would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != client:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="blockbuster-parent", daemon=True).start()


@contextlib.contextmanager
def _ending(stage: Stage, mark: Mark) -> Iterator[None]:
    try:
        yield
    except BaseException:
        stage.end_attempt(mark)
        raise


def _alone(stage: Stage) -> contextlib.AbstractContextManager[object]:
    """Lets one tile at a time be tried again that was at work when its process was lost.

    The others that were so at the same time are innocent: were they tried beside it again, they would be lost with it
    again, and blamed. A pool of processes ends as a whole, a worker of a cluster by itself.
    """
    if is_on_cluster():
        return _one_suspect(stage.path)
    return FileLock(os.path.join(stage.path, "suspects.lock"), poll_interval=0.02)


@functools.lru_cache(maxsize=64)
def _one_suspect(_stage: str) -> threading.Lock:
    return threading.Lock()


def kept_back(stage: Stage, number: int, error: TileError) -> TileError:
    """The error of one tile, to be told when the others are finished.

    It is raised at once where the stage or the output is what fails, or failing is the rule.
    """
    if error.step in _AT_ONCE or isinstance(error.__cause__, StageError | OutputError):
        raise error
    # Frames keep the run, and with it the stage, for as long as the error is kept; a pickled error tells them in words.
    error.__traceback__ = None
    error.__context__ = error.__cause__
    if error.__cause__ is not None and in_worker():
        error.__cause__.__traceback__ = None
    n_failed = stage.note_failure(number)
    if n_failed >= _FAILURES and n_failed > stage.n_tiles():
        raise error
    return error


def computing(
    compute: Callable[[], T], stage: Stage, scheduler: Scheduler, grids: Mapping[str, tuple[TileGrid, str]]
) -> T:
    """What a graph comes to, though processes are lost on the way.

    Parameters
    ----------
    grids : mapping
        For each name of keys that are numbered as tiles: the grid, and the step.

    Raises
    ------
    TileError
        In place of dask's own error, if workers are lost too often over one tile.
    """
    n_known, n_barren = -1, 0
    while True:
        try:
            return compute()
        except BrokenProcessPool:
            # A pool ends with one of its processes. A new one goes on, while that brings anything about.
            n_files = stage.n_files()
            n_barren = 0 if n_files > n_known else n_barren + 1
            n_known = n_files
            if scheduler.kind != "processes" or n_barren >= _ATTEMPTS:
                raise
        except Exception as error:
            name, number = _killing_task(error)
            if name not in grids:
                raise
            grid, step = grids[name]
            tile = grid.tile(number)
            raise TileError.of(tile.index, tile.padded, step, error, leaves_process=False) from error


def _killing_task(error: Exception) -> tuple[str, int]:
    """The key over which a cluster has lost too many workers; none for any other error."""
    from distributed import KilledWorker

    key: Any = error.task if isinstance(error, KilledWorker) else None
    return key if isinstance(key, tuple) and len(key) == 2 else ("", 0)


def first_of(errors: Iterable[TileError]) -> TileError:
    """The error of the first tile that failed, which tells of the others."""
    found = {(error.tile, str(error)): error for error in errors}
    first, *others = (found[key] for key in sorted(found))
    if others:
        names = ", ".join(str(error.tile) for error in others[:_TOLD])
        more = f" and {len(others) - _TOLD} more" if len(others) > _TOLD else ""
        first.add_note(f"{len(others)} other tiles failed as well: {names}{more}.")
    return first
