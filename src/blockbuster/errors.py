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
    ├── LabelOverflowError    OverflowError     more objects than `dtype` can number
    └── TileError             RuntimeError      a task failed on one tile; its cause is the original error

Everything but `TileError` and `LabelOverflowError` is raised before the first task whenever it can be known then.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

__all__ = [
    "BlockbusterError",
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


class LabelOverflowError(BlockbusterError, OverflowError):
    """More objects than the label dtype can number."""


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
    """

    def __init__(self, message: str, tile: tuple[int, ...], region: tuple[slice, ...]) -> None:
        super().__init__(message)
        self.tile = tile
        self.region = region

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
        place = ", ".join(f"{s.start}:{s.stop}" for s in region)
        words = f"{type(error).__name__}: {error}"
        made = cls(f"Tile {tile}, region [{place}]: {step} failed with {words}", tile, region)
        made.__cause__ = error
        if leaves_process:
            made.add_note("Traceback of the original error:\n" + "".join(traceback.format_exception(error)))
            if not _survives_pickling(error):
                made.__cause__ = RuntimeError(words)
        return made

    def __reduce__(self) -> tuple[Callable[..., TileError], tuple[Any, ...]]:
        # Pickling by the rules of exceptions would drop the cause.
        notes = list(getattr(self, "__notes__", []))
        return _restore, (str(self), self.tile, self.region, self.__cause__, notes)


def _survives_pickling(error: BaseException) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), BaseException)
    except Exception:  # noqa: BLE001 - foreign code runs when a thing is pickled
        return False


def _restore(
    message: str,
    tile: tuple[int, ...],
    region: tuple[slice, ...],
    cause: BaseException | None,
    notes: list[str],
) -> TileError:
    made = TileError(message, tile, region)
    made.__cause__ = cause
    for note in notes:
        made.add_note(note)
    return made
