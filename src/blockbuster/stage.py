"""The stage: what a run keeps on disk between its steps.

::

    cells.zarr.labels.blockbuster-1f2e3d4c/
        manifest.json             what the run is: image, function, parameters, grid
        holders/*                 locked by the processes that need the stage
        tiles/0000/000007.tile    one record per finished tile: counts, slabs, labels
        table/                    final ids; its json is written last
        int32/0000/000007         marks regions of an output that are written
        tiles/0000/000008.part0   who is at work on a tile, or was when it died; becomes the record
        failed/0000/000007        tiles on which the function failed
        log/*                     what people are told of the run: see runlog.py

A record is written under another name and then renamed: a tile is done if and only if its record is there, whole, and
matches its checksums. Every write may happen twice. Files on one shared file system are all that workers share.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import socket
import struct
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numcodecs import blosc
from numpy.typing import DTypeLike, NDArray

from blockbuster.errors import Attempt, StageError
from blockbuster.files import remove_folder, write_whole
from blockbuster.runlog import State, append_entry, write_seams
from blockbuster.unions import Table, TableOutline

__all__ = ["Manifest", "Mark", "Stage", "TileRecord"]

Manifest: TypeAlias = dict[str, str]

_MAGIC = b"BBT1"
_PREFIX = struct.Struct("<4sII")
_RAW_BELOW = 512
# What is read at once from the beginning of a record.
_HEAD = 1 << 16
# Blosc takes buffers of less than 2 GiB.
_PIECE = 1 << 28
_PER_FOLDER = 1000
# Counts of tiles of which nothing was asked, and of what was found in the others.
_EMPTY = {"skipped", "outside"}
_FOUND = ("n", "rows")


@dataclass(frozen=True)
class Mark:
    """Says on disk that a process is at work on a tile.

    Attributes
    ----------
    path : str
        Of the file that becomes the record of the tile.
    began : float
        When the work began, in seconds since 1970.
    """

    path: str
    began: float


@dataclass(frozen=True)
class Stage:
    """The folder of one run, by its path: equal in every process that sees the file system.

    Attributes
    ----------
    path : str
        Absolute path of the folder.
    session : str
        Tells this try of the run from those before, of which tasks may still be at work.
    client : int
        Process that started this try; 0 where that is not known.
    """

    path: str
    session: str = ""
    client: int = 0

    # Creation and removal

    def make(self) -> None:
        """Make the folder; does nothing where it is there already.

        Raises
        ------
        StageError
            If it cannot be made.
        """
        with self._writing():
            os.makedirs(self._at("tiles"), exist_ok=True)
            os.makedirs(self.log, exist_ok=True)

    def describe(self, manifest: Manifest) -> None:
        """Say what the run is: from then on others can find the stage."""
        if not self.exists():
            with self._writing():
                write_whole(self._at("manifest.json"), json.dumps(manifest, indent=1).encode())

    def manifest(self) -> Manifest:
        """What the run is, field by field."""
        with open(self._at("manifest.json"), "rb") as file:
            read: Manifest = json.load(file)
        return read

    def exists(self) -> bool:
        """Whether the folder is there, as seen from this process."""
        return os.path.exists(self._at("manifest.json"))

    def require(self) -> None:
        """Raise if this process does not see the folder.

        Raises
        ------
        StageError
            Naming the host, if it does not.
        """
        if not self.exists():
            raise StageError(
                f"The stage {self.path} is not visible on host {socket.gethostname()}. "
                "Give stage_dir= a folder on a file system that the client and all workers share."
            )

    def remove(self) -> None:
        """Remove the folder and all in it."""
        # Renamed first: a task that is still running must not be able to write into it again.
        doomed = f"{self.path}.removed-{uuid.uuid4().hex[:8]}"
        if os.path.exists(self.path):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path, doomed)
                remove_folder(doomed)

    # Tiles

    def write_tile(
        self,
        block_id: int,
        counts: Mapping[str, int],
        arrays: Mapping[str, NDArray[Any]],
        mark: Mark | None = None,
        n_bytes: int = 0,
    ) -> None:
        """Keep a finished tile: all of it, or nothing. The mark of the attempt becomes its record.

        `n_bytes` is what was read for it, for the log.
        """
        pieces: list[bytes] = []
        index = {name: _encode(array, pieces) for name, array in arrays.items()}
        header = json.dumps({"counts": dict(counts), "arrays": index}, separators=(",", ":")).encode()
        prefix = _PREFIX.pack(_MAGIC, len(header), zlib.crc32(header))
        data = b"".join([prefix, header, *pieces])
        if mark is None:
            self._write_numbered("tiles", f"{block_id:06d}.tile", block_id, data)
            return
        with self._writing():
            with open(mark.path, "r+b") as file:
                file.write(data)
                file.truncate()
            _publish(mark.path, self._numbered("tiles", f"{block_id:06d}.tile", block_id))
        state = State.SKIPPED if _EMPTY & counts.keys() else State.DONE
        self._log(block_id, state, mark.began, n_bytes, sum(counts.get(name, 0) for name in _FOUND))

    def tile(self, block_id: int) -> TileRecord:
        """The record of a finished tile.

        Raises
        ------
        StageError
            If there is none, or it is damaged.
        """
        path = self._numbered("tiles", f"{block_id:06d}.tile", block_id)
        try:
            return TileRecord.read(path)
        except FileNotFoundError as error:
            self.require()
            raise StageError(f"The record {path} is missing; resume the run to make it again.") from error

    def has_tile(self, block_id: int) -> bool:
        """Whether a tile is finished: its record is there and all its checksums hold."""
        path = self._numbered("tiles", f"{block_id:06d}.tile", block_id)
        return os.path.exists(path) and _is_whole(path)

    def n_tiles(self) -> int:
        """Number of records, damaged ones counted."""
        return sum(name.endswith(".tile") for _, _, names in os.walk(self._at("tiles")) for name in names)

    def n_files(self) -> int:
        """Number of all files: it grows with whatever is done."""
        return sum(len(names) for _, _, names in os.walk(self.path))

    def mark_written(self, output: str, number: int) -> None:
        """Note that one region of an output is written."""
        self._write_numbered(output, f"{number:06d}", number, b"")

    def is_written(self, output: str, number: int) -> bool:
        """Whether one region of an output was noted as written."""
        return os.path.exists(self._numbered(output, f"{number:06d}", number))

    def forget(self, folder: str) -> None:
        """Take everything noted in one folder for undone."""
        remove_folder(self._at(folder))

    # Tiles that are not finished

    def begin_attempt(self, block_id: int, most: int) -> Mark | None:
        """Note that this process is at work on a tile; None where `most` have been so before, and have never ended.

        Returns
        -------
        mark : Mark or None
            For `write_tile` or `end_attempt`.
        """
        began = time.time()
        who = Attempt(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID", ""))
        for number in range(most):
            path = self._numbered("tiles", f"{block_id:06d}{self._part}{number}", block_id)
            with self._writing():
                if self._make_mark(path, json.dumps(who).encode()):
                    return Mark(path, began)
        return None

    def _make_mark(self, path: str, data: bytes) -> bool:
        """Write a new file; False where there is one."""
        try:
            with open(path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self.require()
            self._make_folders(path)
            return self._make_mark(path, data)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise
        return True

    def end_attempt(self, mark: Mark) -> None:
        """Note that the process lives and is at work on the tile no more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(mark.path)

    def attempts(self, block_id: int) -> list[Attempt]:
        """Who is, or was when it died, at work on a tile."""
        marks = self._numbered("tiles", f"{block_id:06d}{self._part}", block_id)
        found = []
        for path in sorted(glob.glob(f"{glob.escape(marks)}*")):
            # One that was killed while it wrote its record has left no name.
            with contextlib.suppress(FileNotFoundError, ValueError):
                found.append(Attempt(*json.loads(Path(path).read_bytes())))
        return found

    @property
    def _part(self) -> str:
        return f".{self.session}part"

    def note_failure(self, block_id: int) -> int:
        """Note that the function failed on a tile; returns on how many it did."""
        failed = f"failed{self.session}"
        self._write_numbered(failed, f"{block_id:06d}", block_id, b"")
        self._log(block_id, State.FAILED, time.time(), 0, 0)
        return sum(len(names) for _, _, names in os.walk(self._at(failed)))

    def tried_again(self) -> Stage:
        """The stage for another try of the run, which knows nothing of who failed or was lost in those before."""
        return replace(self, session=uuid.uuid4().hex[:4], client=os.getpid())

    # The log

    @property
    def log(self) -> str:
        """Folder of the log."""
        return self._at("log")

    def note_seams(self, seams: NDArray[np.int64]) -> None:
        """Note how many pairs of labels were joined between each two tiles, shape (m, 3)."""
        with self._writing():
            write_seams(self.log, seams)

    def _log(self, block_id: int, state: State, began: float, n_bytes: int, n_objects: int) -> None:
        with self._writing():
            try:
                append_entry(self.log, (block_id, state, began, time.time() - began, n_bytes, n_objects))
            except FileNotFoundError:
                self.require()

    # The table

    def write_table(self, table: Table) -> None:
        """Keep the table; writing it again does not disturb its readers."""
        with self._writing():
            os.makedirs(self._at("table"), exist_ok=True)
            for name, array in table.arrays().items():
                write_whole(self._at(f"table/{name}"), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            write_whole(self._at("table/table.json"), json.dumps(table.facts()).encode())

    def lookup(self, block_id: int, dtype: DTypeLike) -> NDArray[Any]:
        """Final ids of the labels 0..n of one tile: reads only that tile's slice of the table."""
        outline = _outline(self._at("table"), os.stat(self._at("table/table.json")).st_mtime_ns)

        def part(name: str, begin: int, end: int) -> NDArray[Any]:
            kind = outline.dtypes[name]
            path = self._at(f"table/{name}")
            return np.fromfile(path, kind, count=end - begin, offset=begin * kind.itemsize)

        return outline.lookup(block_id, dtype, part)

    # Paths

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except StageError:
            raise
        except OSError as error:
            raise StageError(
                f"The stage {self.path} cannot be written: {error}. Give stage_dir= a folder with room that can be "
                "written."
            ) from error

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _numbered(self, folder: str, name: str, block_id: int) -> str:
        return os.path.join(self.path, folder, f"{block_id // _PER_FOLDER:04d}", name)

    def _write_numbered(self, folder: str, name: str, block_id: int, data: bytes) -> None:
        path = self._numbered(folder, name, block_id)
        with self._writing():
            try:
                write_whole(path, data)
            except FileNotFoundError:
                self.require()
                self._make_folders(path)
                write_whole(path, data)

    def _make_folders(self, path: str) -> None:
        # Not "makedirs": a stage that is removed in between stays removed.
        for missing in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(missing)


@dataclass(frozen=True)
class TileRecord:
    """A finished tile, its arrays read one by one.

    Attributes
    ----------
    counts : dict of int
        Numbers kept with the tile: labels in its core, ghosts, and what a step wants to report.
    """

    path: str
    counts: dict[str, int]
    _arrays: dict[str, tuple[str, tuple[int, ...], list[tuple[int, int, int, bool]]]]
    _start: int
    _head: bytes

    @classmethod
    def read(cls, path: str) -> TileRecord:
        """Read what is in front of the arrays, and the first of these with it where they are small."""
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if len(head) < _PREFIX.size:
                raise _damaged(path)
            magic, length, checksum = _PREFIX.unpack_from(head)
            head += file.read(_PREFIX.size + length - len(head)) if length > len(head) - _PREFIX.size else b""
        header = head[_PREFIX.size : _PREFIX.size + length]
        if magic != _MAGIC or zlib.crc32(header) != checksum:
            raise _damaged(path)
        facts = json.loads(header)
        return cls(path, facts["counts"], facts["arrays"], _PREFIX.size + length, head)

    def has(self, name: str) -> bool:
        """Whether the tile keeps an array of that name."""
        return name in self._arrays

    def array(self, name: str) -> NDArray[Any]:
        """One array of the record.

        Raises
        ------
        StageError
            If its checksum does not hold.
        """
        dtype, shape, pieces = self._arrays[name]
        out = np.empty(shape, dtype)
        flat = out.reshape(-1).view(np.uint8)
        size = _piece_items(out) * out.itemsize
        for number, (offset, length, checksum, raw) in enumerate(pieces):
            data = self._piece(offset, length, checksum)
            target = flat[number * size : (number + 1) * size]
            if raw:
                target[:] = np.frombuffer(data, np.uint8)
            else:
                blosc.decompress(data, target)
        return out

    def check(self) -> None:
        """Raise `StageError` if any checksum does not hold."""
        for _, _, pieces in self._arrays.values():
            for offset, length, checksum, _ in pieces:
                self._piece(offset, length, checksum)

    def _piece(self, offset: int, length: int, checksum: int) -> bytes:
        begin = self._start + offset
        if begin + length <= len(self._head):
            data = self._head[begin : begin + length]
        else:
            with open(self.path, "rb") as file:
                file.seek(begin)
                data = file.read(length)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise _damaged(self.path)
        return data


def _publish(mark: str, record: str) -> None:
    """Let a mark be the record of its tile, unless there is one: others may have read that already."""
    try:
        os.link(mark, record)
    except FileExistsError:
        if not _is_whole(record):
            os.replace(mark, record)
            return
    except OSError:
        # There are file systems without links.
        os.replace(mark, record)
        return
    os.unlink(mark)


def _is_whole(record: str) -> bool:
    try:
        TileRecord.read(record).check()
    except StageError:
        return False
    return True


def _encode(array: NDArray[Any], pieces: list[bytes]) -> tuple[str, tuple[int, ...], list[tuple[int, int, int, bool]]]:
    """Append the bytes of `array` to `pieces`; returns where they are."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = _piece_items(flat)
    begin = sum(map(len, pieces))
    index = []
    for i in range(0, flat.size, step):
        part = flat[i : i + step]
        raw = part.nbytes < _RAW_BELOW
        data: bytes = part.tobytes() if raw else blosc.compress(part, b"lz4", 5, blosc.BITSHUFFLE)
        index.append((begin, len(data), zlib.crc32(data), raw))
        pieces.append(data)
        begin += len(data)
    return flat.dtype.str, array.shape, index


def _piece_items(array: NDArray[Any]) -> int:
    return _PIECE // array.itemsize


def _damaged(path: str) -> StageError:
    return StageError(f"The record {path} is damaged; resume the run to make it again.")


@functools.lru_cache(maxsize=4)
def _outline(folder: str, _written: int) -> TableOutline:
    with open(os.path.join(folder, "table.json"), "rb") as file:
        facts = json.load(file)
    offsets, starts = (np.fromfile(os.path.join(folder, name), np.int64) for name in ("offsets", "starts"))
    return TableOutline(offsets, starts, **facts)
