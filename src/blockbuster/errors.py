"""Errors of blockbuster, each also a child of the builtin that it refines.

::

    BlockbusterError
    ├── GeometryError         ValueError        shapes, tiles, overlaps, block ids that do not fit together
    ├── ParameterError        ValueError        an option outside what is allowed
    ├── ImageError            ValueError        an image that cannot be opened as asked
    ├── OutputExistsError     FileExistsError   an output is there and `overwrite` was not given
    ├── OutputError           OSError           an output cannot be written where asked
    ├── StageError            OSError           the stage cannot be made, seen or read
    ├── ResumeError           ValueError        the stage found belongs to another run
    ├── SchedulerError        RuntimeError      the active dask scheduler cannot do what was asked
    ├── CapacityError         RuntimeError      a run needs more memory, disk or files than there are
    ├── LabelOverflowError    OverflowError     more objects than `dtype` can number
    └── TileError             RuntimeError      a task failed on one tile; its cause is the original error

Everything but `TileError` and `LabelOverflowError` is raised before the first task whenever it can be known then.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Attempt",
    "BlockbusterError",
    "CapacityError",
    "GeometryError",
    "ImageError",
    "LabelOverflowError",
    "OutputError",
    "OutputExistsError",
    "ParameterError",
    "ResumeError",
    "SchedulerError",
    "StageError",
    "TileError",
]


class BlockbusterError(Exception):
    """The base of every error that blockbuster raises on purpose."""


class GeometryError(BlockbusterError, ValueError):
    """Shapes, tiles, overlaps or block ids that do not fit together."""


class ParameterError(BlockbusterError, ValueError):
    """An option outside what is allowed."""


class ImageError(BlockbusterError, ValueError):
    """An image that cannot be opened as asked."""


class OutputExistsError(BlockbusterError, FileExistsError):
    """An output that is already there while ``overwrite=True`` was not given."""


class OutputError(BlockbusterError, OSError):
    """An output that cannot be written where it was asked for."""


class StageError(BlockbusterError, OSError):
    """A stage that cannot be made, seen by a worker, or read."""


class ResumeError(BlockbusterError, ValueError):
    """A stage that belongs to another run than the one to resume."""


class SchedulerError(BlockbusterError, RuntimeError):
    """The active dask scheduler cannot do what was asked."""


class CapacityError(BlockbusterError, RuntimeError):
    """A run that needs more memory, disk space or files than there are."""


class LabelOverflowError(BlockbusterError, OverflowError):
    """More objects than the label dtype can number."""


class Attempt(NamedTuple):
    """A process that was at work on a tile.

    Attributes
    ----------
    job_id : str
        The SLURM job that it belonged to; "" for none.
    """

    host: str
    pid: int
    job_id: str = ""

    def __str__(self) -> str:
        job = f" of job {self.job_id}" if self.job_id else ""
        return f"process {self.pid}{job} on host {self.host}"


class TileError(BlockbusterError, RuntimeError):
    """A task failed on one tile.

    The original error is ``__cause__``, also after the error came from another process; there its
    traceback is in the notes of this error.

    Attributes
    ----------
    tile : tuple of int
        Index of the tile in the grid.
    region : tuple of slice
        The padded region of the tile, voxels of the image.
    step : str
        What failed: "reading the image", "the function", "writing", ...
    attempts : tuple of Attempt
        Where it was tried, when each time the process was lost that did so.
    """

    def __init__(
        self,
        message: str,
        tile: tuple[int, ...],
        region: tuple[slice, ...],
        step: str = "",
        attempts: Sequence[Attempt] = (),
    ) -> None:
        super().__init__(message)
        self.tile = tile
        self.region = region
        self.step = step
        self.attempts = tuple(attempts)

    @classmethod
    def of(
        cls, tile: tuple[int, ...], region: tuple[slice, ...], step: str, error: Exception, *, leaves_process: bool
    ) -> TileError:
        """The error of `step` on one tile.

        Parameters
        ----------
        leaves_process : bool
            Whether it will be pickled, which drops tracebacks: keep that of `error` as a note, and put words in its
            place if it cannot be pickled itself.
        """
        words = f"{type(error).__name__}: {error}"
        made = cls(f"{_place(tile, region)}: {step} failed with {words}", tile, region, step)
        made.__cause__ = error
        if leaves_process:
            made.add_note("Traceback of the original error:\n" + "".join(traceback.format_exception(error)))
            if not _survives_pickling(error):
                made.__cause__ = RuntimeError(words)
        return made

    @classmethod
    def lost(cls, tile: tuple[int, ...], region: tuple[slice, ...], attempts: Sequence[Attempt]) -> TileError:
        """The error of a tile that is no longer tried, since its process was lost each time."""
        who = "; ".join(map(str, attempts))
        return cls(
            f"{_place(tile, region)}: the process at work on it was lost {len(attempts)} times: {who}. It crashed, or "
            "was ended, for more memory or time than it may take: give workers more of both, or a smaller tile_shape.",
            tile,
            region,
            "the function",
            attempts,
        )

    def __reduce__(self) -> tuple[Callable[..., TileError], tuple[Any, ...]]:
        # Pickling by the rules of exceptions would drop the cause.
        notes = list(getattr(self, "__notes__", []))
        return _restore, (str(self), self.tile, self.region, self.step, self.attempts, self.__cause__, notes)


def _place(tile: tuple[int, ...], region: tuple[slice, ...]) -> str:
    return f"Tile {tile}, region [{', '.join(f'{s.start}:{s.stop}' for s in region)}]"


def _survives_pickling(error: BaseException) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), BaseException)
    except Exception:  # noqa: BLE001 - foreign code runs when a thing is pickled
        return False


def _restore(
    message: str,
    tile: tuple[int, ...],
    region: tuple[slice, ...],
    step: str,
    attempts: tuple[Attempt, ...],
    cause: BaseException | None,
    notes: list[str],
) -> TileError:
    made = TileError(message, tile, region, step, attempts)
    made.__cause__ = cause
    for note in notes:
        made.add_note(note)
    return made
