"""What a run notes of its tiles as they end: when, how long each took, where, and what came of it.

::

    cells.zarr.labels.blockbuster-1f2e3d4c/log/
        node7-4242                one entry per tile that this process has ended
        seams                     pairs of labels that were joined, seam by seam

Each process appends to a file of its own. Nothing depends on these files but what people are told: they are no part of
the result, which has no times in it and is the same each time.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from blockbuster.files import write_whole

__all__ = ["ENTRY", "LogReader", "RunLog", "State", "append_entry", "read_log", "write_seams"]

ENTRY = np.dtype(
    [
        ("block_id", "<i8"),
        ("state", "u1"),
        ("began", "<f8"),
        ("seconds", "<f4"),
        ("n_bytes", "<i8"),
        ("n_objects", "<i8"),
    ]
)
_SEAMS = "seams"
_PROCESS = re.compile(r"-\d+$")


class State(IntEnum):
    """What came of a tile."""

    DONE = 0
    SKIPPED = 1
    FAILED = 2


@dataclass(frozen=True, eq=False)
class RunLog:
    """What a run has noted of its tiles, in the order in which they ended.

    Attributes
    ----------
    block_id : ndarray of int64, shape (n,)
        Each tile of which anything is noted, once.
    state : ndarray of uint8, shape (n,)
        A `State` each: the last there was.
    began : ndarray of float64, shape (n,)
        When work on the tile began, in seconds since 1970 by the clock of its machine.
    seconds : ndarray of float32, shape (n,)
        How long it took.
    n_bytes : ndarray of int64, shape (n,)
        Bytes of the image that it has read, decoded.
    n_objects : ndarray of int64, shape (n,)
        Labels in its core, before merging; rows, where it makes rows.
    worker : ndarray of int32, shape (n,)
        Which of `workers` did it.
    workers : tuple of str
        Host and process id of each.
    seams : ndarray of int64, shape (m, 3)
        Two tiles, and how many pairs of their labels were found to be one object: seams without any are left out.
    """

    block_id: NDArray[np.int64]
    state: NDArray[np.uint8]
    began: NDArray[np.float64]
    seconds: NDArray[np.float32]
    n_bytes: NDArray[np.int64]
    n_objects: NDArray[np.int64]
    worker: NDArray[np.int32]
    workers: tuple[str, ...]
    seams: NDArray[np.int64]


def append_entry(folder: str, entry: tuple[int, State, float, float, int, int]) -> None:
    """Note the end of work on a tile; `entry` has the fields of `ENTRY`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    # Closed each time: other machines see on a network file system what is closed.
    with open(os.path.join(folder, f"{socket.gethostname()}-{os.getpid()}"), "ab", buffering=0) as file:
        file.write(np.array([entry], ENTRY).tobytes())


def write_seams(folder: str, seams: NDArray[np.int64]) -> None:
    """Keep the merges of each seam; writing them again does not disturb readers.

    Parameters
    ----------
    seams : ndarray of int64, shape (m, 3)
        Two tiles, and how many pairs.
    """
    write_whole(os.path.join(folder, _SEAMS), seams.astype("<i8").tobytes())


class LogReader:
    """Reads a log that grows: each time what is new."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def new_entries(self) -> Iterator[tuple[str, NDArray[np.void]]]:
        """For each process that has noted anything since the last time, its entries, shape (n,), of dtype `ENTRY`."""
        for name in _processes(self._folder):
            begin = self._offsets.get(name, 0)
            with open(os.path.join(self._folder, name), "rb") as file:
                file.seek(begin)
                data = file.read()
            whole = len(data) - len(data) % ENTRY.itemsize
            if whole:
                self._offsets[name] = begin + whole
                yield name, np.frombuffer(data[:whole], ENTRY)


def read_log(folder: str) -> RunLog:
    """The whole log of a stage.

    Parameters
    ----------
    folder : str
        The folder ``log`` of a stage. Where there is none, the log is empty.
    """
    found = list(LogReader(folder).new_entries())
    entries = np.concatenate([np.empty(0, ENTRY), *(entries for _, entries in found)])
    worker = np.repeat(np.arange(len(found), dtype=np.int32), [len(entries) for _, entries in found])
    order = np.argsort(entries["began"] + entries["seconds"], kind="stable")
    # Of tiles that were worked on more than once, the last.
    _, last = np.unique(entries["block_id"][order][::-1], return_index=True)
    kept = order[np.sort(order.size - 1 - last)]
    fields = {name: np.ascontiguousarray(entries[name][kept]) for name in ENTRY.names or ()}
    return RunLog(**fields, worker=worker[kept], workers=tuple(name for name, _ in found), seams=_read_seams(folder))


def _processes(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _PROCESS.search(name))
    except FileNotFoundError:
        return []


def _read_seams(folder: str) -> NDArray[np.int64]:
    try:
        return np.fromfile(os.path.join(folder, _SEAMS), "<i8").reshape(-1, 3)
    except FileNotFoundError:
        return np.empty((0, 3), np.int64)
