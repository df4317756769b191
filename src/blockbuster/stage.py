"""The stage: what a run keeps on disk between its steps.

::

    cells.zarr.labels.blockbuster-1f2e3d4c/
        manifest.json             what the run is: image, function, parameters, grid
        lock                      held by the process that drives the run
        tiles/0000/000007.tile    one record per finished tile: counts, slabs, labels
        table/                    final ids; its json is written last
        written/0000/000007       marks tiles whose final labels are written
        leases/                   runs of lazy arrays in other processes

A record is written under another name and then renamed: a tile is done if and only if its record is there, whole, and
matches its checksums. Every write may happen twice. Files on one shared file system are all that workers share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import struct
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from filelock import FileLock
from numcodecs import blosc
from numpy.typing import NDArray

from blockbuster.errors import StageError
from blockbuster.unions import Table

__all__ = ["Manifest", "Stage", "TileRecord"]

Manifest: TypeAlias = dict[str, str]

_MAGIC = b"BBT1"
_PREFIX = struct.Struct("<4sII")
_RAW_BELOW = 512
# Blosc takes buffers of less than 2 GiB.
_PIECE = 1 << 28
_PER_FOLDER = 1000


@dataclass(frozen=True)
class Stage:
    """The folder of one run, by its path: equal in every process that sees the file system.

    Attributes
    ----------
    path : str
        Absolute path of the folder.
    """

    path: str

    # Creation and removal

    def create(self, manifest: Manifest) -> None:
        """Make the folder; does nothing where it is there already."""
        try:
            for name in ("tiles", "written", "leases"):
                os.makedirs(self._at(name), exist_ok=True)
            if not os.path.exists(self._at("manifest.json")):
                _write_whole(self._at("manifest.json"), json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise StageError(
                f"The stage {self.path} cannot be made: {error}. Give stage_dir= a folder that can be written."
            ) from error

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
        try:
            os.rename(self.path, doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed)

    def lock(self) -> FileLock:
        """The lock of the run, not yet taken."""
        return FileLock(self._at("lock"), thread_local=False)

    # Tiles

    def write_tile(self, block_id: int, counts: Mapping[str, int], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished tile: all of it, or nothing."""
        pieces: list[bytes] = []
        index = {name: _encode(array, pieces) for name, array in arrays.items()}
        header = json.dumps({"counts": dict(counts), "arrays": index}, separators=(",", ":")).encode()
        prefix = _PREFIX.pack(_MAGIC, len(header), zlib.crc32(header))
        self._write_numbered("tiles", f"{block_id:06d}.tile", block_id, b"".join([prefix, header, *pieces]))

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
        if not os.path.exists(path):
            return False
        try:
            TileRecord.read(path).check()
        except StageError:
            return False
        return True

    def n_tiles(self) -> int:
        """Number of records, damaged ones counted."""
        return sum(name.endswith(".tile") for _, _, names in os.walk(self._at("tiles")) for name in names)

    def mark_written(self, block_id: int) -> None:
        """Note that the final labels of a tile are written."""
        self._write_numbered("written", f"{block_id:06d}", block_id, b"")

    def is_written(self, block_id: int) -> bool:
        """Whether the final labels of a tile were noted as written."""
        return os.path.exists(self._numbered("written", f"{block_id:06d}", block_id))

    # The table

    def write_table(self, table: Table) -> None:
        """Keep the table; writing it again leaves what readers have mapped as it is."""
        os.makedirs(self._at("table"), exist_ok=True)
        for name in ("offsets", "absorbed", "targets", "ids"):
            array = getattr(table, name)
            if array is not None:
                _write_array(self._at(f"table/{name}.npy"), array)
        facts = {"n_objects": table.n_objects, "sequential": table.sequential, "has_ids": table.ids is not None}
        _write_whole(self._at("table/table.json"), json.dumps(facts).encode())

    def table(self) -> Table:
        """The table, its arrays mapped from their files: only what is looked up is read."""
        return _mapped_table(self._at("table"))

    # Paths

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _numbered(self, folder: str, name: str, block_id: int) -> str:
        return os.path.join(self.path, folder, f"{block_id // _PER_FOLDER:04d}", name)

    def _write_numbered(self, folder: str, name: str, block_id: int, data: bytes) -> None:
        path = self._numbered(folder, name, block_id)
        try:
            _write_whole(path, data)
        except FileNotFoundError:
            # Only the last level is made: a removed stage stays removed.
            with contextlib.suppress(FileExistsError):
                try:
                    os.mkdir(os.path.dirname(path))
                except FileNotFoundError:
                    self.require()
                    raise
            _write_whole(path, data)


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

    @classmethod
    def read(cls, path: str) -> TileRecord:
        """Read what is in front of the arrays."""
        with open(path, "rb") as file:
            head = file.read(4096)
            if len(head) < _PREFIX.size:
                raise _damaged(path)
            magic, length, checksum = _PREFIX.unpack_from(head)
            header = head[_PREFIX.size : _PREFIX.size + length]
            header += file.read(length - len(header))
        if magic != _MAGIC or zlib.crc32(header) != checksum:
            raise _damaged(path)
        facts = json.loads(header)
        return cls(path, facts["counts"], facts["arrays"], _PREFIX.size + length)

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
        with open(self.path, "rb") as file:
            for number, (offset, length, checksum, raw) in enumerate(pieces):
                data = self._piece(file, offset, length, checksum)
                target = flat[number * size : (number + 1) * size]
                if raw:
                    target[:] = np.frombuffer(data, np.uint8)
                else:
                    blosc.decompress(data, target)
        return out

    def check(self) -> None:
        """Raise `StageError` if any checksum does not hold."""
        with open(self.path, "rb") as file:
            for _, _, pieces in self._arrays.values():
                for offset, length, checksum, _ in pieces:
                    self._piece(file, offset, length, checksum)

    def _piece(self, file: BinaryIO, offset: int, length: int, checksum: int) -> bytes:
        file.seek(self._start + offset)
        data = file.read(length)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise _damaged(self.path)
        return data


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


def _write_whole(path: str, data: bytes) -> None:
    """Write a file so that it appears complete or not at all."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_array(path: str, array: NDArray[Any]) -> None:
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.npy"
    np.save(temporary, array)
    os.replace(temporary, path)


@functools.lru_cache(maxsize=4)
def _mapped_table(folder: str) -> Table:
    with open(os.path.join(folder, "table.json"), "rb") as file:
        facts = json.load(file)

    def mapped(name: str) -> NDArray[Any]:
        path = os.path.join(folder, f"{name}.npy")
        # An empty file cannot be mapped.
        empty = os.path.getsize(path) <= 128 and np.load(path).size == 0
        array: NDArray[Any] = np.load(path, mmap_mode=None if empty else "r")
        return array

    return Table(
        offsets=mapped("offsets"),
        n_objects=facts["n_objects"],
        absorbed=mapped("absorbed"),
        targets=mapped("targets"),
        ids=mapped("ids") if facts["has_ids"] else None,
        sequential=facts["sequential"],
    )
