"""Chunks copied as they are stored, without decoding them."""

from __future__ import annotations

import itertools
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from blockbuster.encoding import same_encoding
from blockbuster.grid import Region
from blockbuster.sources import Image, StoredImage

__all__ = ["RawChunks", "can_copy_raw"]


def can_copy_raw(image: Image, target: zarr.Array[Any]) -> bool:
    """Whether chunks of a stored image are, byte by byte, what those of another array would be."""
    if (
        not isinstance(image, StoredImage)
        or image.home is None
        or not image.home.is_dir()
        or any(index is not None for index in image.fixed)
    ):
        return False
    source = zarr.open_array(image.home, mode="r")
    return source.shape == target.shape and same_encoding(source, target)


@dataclass(frozen=True)
class RawChunks:
    """The files of one array that become those of another.

    Attributes
    ----------
    source, target : str
        Folders of the arrays.
    unit : tuple of int
        Voxels of what is one file.
    """

    source: str
    target: str
    unit: tuple[int, ...]

    def copy(self, region: Region) -> None:
        """Copy what is stored of a region of whole units; what is not stored is left to the fill value."""
        for source, target in self._files(region):
            if source.exists():
                os.makedirs(target.parent, exist_ok=True)
                shutil.copyfile(source, target)

    def differs(self, region: Region) -> bool:
        """Whether the files of a region, read again, have other checksums than those that they were copied from."""
        return any(_checksum(source) != _checksum(target) for source, target in self._files(region))

    def _files(self, region: Region) -> Iterator[tuple[Path, Path]]:
        keys = [zarr.open_array(path, mode="r").metadata.encode_chunk_key for path in (self.source, self.target)]
        ranges = [range(s.start // u, -(-s.stop // u)) for s, u in zip(region, self.unit, strict=True)]
        for index in itertools.product(*ranges):
            yield Path(self.source, keys[0](index)), Path(self.target, keys[1](index))


def _checksum(path: Path) -> int | None:
    return zlib.crc32(path.read_bytes()) if path.exists() else None
