"""The search of one tile for blobs, and the table of what is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.detectors import Detector, pruning_reach, settled
from blockbuster.grid import Region, Tile
from blockbuster.parquet import Column
from blockbuster.rowwise import Read, RowKernel
from blockbuster.tables import planes

__all__ = ["BlobTable", "Blobs", "Occupied", "halo_of"]

# How many blobs in a row, each larger than the one before, may overlap: for one beside its own a tile reads enough in
# the first place, and where it cannot read itself it is given enough for some.
_CHAIN, _LONG_CHAIN = 1, 4
_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)


def halo_of(detector: Detector, overlap: float, chain: int = _CHAIN) -> tuple[int, ...]:
    """Voxels to read beyond each side of a tile, per axis of space, for so many larger blobs in a row."""
    return tuple(r + chain * p for r, p in zip(detector.reach, pruning_reach(detector, overlap), strict=True))


@dataclass(frozen=True)
class Blobs:
    """Finds the blobs of a tile that the whole image has, as a kernel.

    Attributes
    ----------
    overlap : float
        The share of a blob that may lie in a larger one.
    spatial : tuple of int
        The axes of the image that blobs extend over; along the others each image is searched by itself.
    ndim : int
        Axes of the image.
    border : tuple of int or None
        Voxels to read beyond each side of a tile, per axis of space, and no more; None for what it takes.
    exclude_border : tuple of int
        Voxels at the border of the image without blobs, per axis of space.
    """

    detector: Detector
    overlap: float
    spatial: tuple[int, ...]
    ndim: int
    border: tuple[int, ...] | None
    exclude_border: tuple[int, ...]

    @property
    def n_columns(self) -> int:
        """Coordinates and sigmas."""
        return self.ndim + self.detector.scales.n_sigmas

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """The block, and what the detector holds."""
        return dtype.itemsize + 8 * self.detector.work

    def source(self, tile: Tile, shape: Sequence[int]) -> Region:
        """Enough for long rows of overlapping blobs."""
        return self._around(tile, shape, self.border or halo_of(self.detector, self.overlap, _LONG_CHAIN))

    def __call__(self, tile: Tile, shape: Sequence[int], read: Read) -> NDArray[np.float64]:
        """The blobs whose centres are in the core of a tile."""
        region = self._around(tile, shape, self.border or halo_of(self.detector, self.overlap))
        block = read(region)
        found = [np.empty((0, self.n_columns))]
        for where, inner in planes(tile, self.spatial):
            search = _Search(self, tile, shape, where, read)
            found.append(search.placed(search.rows(region, block[inner])))
        return np.concatenate(found)

    def _around(self, tile: Tile, shape: Sequence[int], halo: Sequence[int]) -> Region:
        """The core of a tile with so much around it, clipped at the border of the image."""
        margins = dict(zip(self.spatial, halo, strict=True))
        return tuple(
            slice(max(a - margins.get(axis, 0), 0), min(b + margins.get(axis, 0), shape[axis]))
            for axis, (a, b) in enumerate(zip(tile.start, tile.stop, strict=True))
        )

    def grown(self, tile: Tile, shape: Sequence[int], region: Region) -> Region:
        """A region with room for rows of twice as many overlapping blobs."""
        near = pruning_reach(self.detector, self.overlap)
        beyond = [
            max(tile.start[axis] - region[axis].start, region[axis].stop - tile.stop[axis]) - reach
            for axis, reach in zip(self.spatial, self.detector.reach, strict=True)
        ]
        rows = max(-(-b // n) for b, n in zip(beyond, near, strict=True))
        return self._around(tile, shape, halo_of(self.detector, self.overlap, 2 * max(rows, 1)))


@dataclass(frozen=True)
class _Search:
    """The search of one image of a tile: a plane, or a volume, at one index along the other axes."""

    kernel: Blobs
    tile: Tile
    shape: Sequence[int]
    where: dict[int, int]
    read: Read

    def rows(self, region: Region, block: NDArray[Any]) -> NDArray[np.float64]:
        """The blobs in the core, coordinates and sigmas on the axes of space: reads more until they are known."""
        kernel = self.kernel
        while True:
            found = self._candidates(region, block)
            unsure = self._unsure(found, region)
            status = settled(found, kernel.overlap, len(kernel.spatial), unsure)
            mine = self._in_core(found)
            if not (mine & (status < 0)).any():
                return np.asarray(found[mine & (status > 0)])
            region = self._here(kernel.grown(self.tile, self.shape, region))
            block = self.read(region)[self._plane()]

    def placed(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows with coordinates on all axes of the image."""
        kernel = self.kernel
        made = np.empty((len(rows), kernel.n_columns))
        for axis, index in self.where.items():
            made[:, axis] = index
        n = len(kernel.spatial)
        made[:, list(kernel.spatial)] = rows[:, :n]
        made[:, kernel.ndim :] = rows[:, n:]
        return made

    def _here(self, region: Region) -> Region:
        return tuple(
            slice(self.where[axis], self.where[axis] + 1) if axis in self.where else along
            for axis, along in enumerate(region)
        )

    def _plane(self) -> tuple[Any, ...]:
        return tuple(0 if axis in self.where else slice(None) for axis in range(self.kernel.ndim))

    def _candidates(self, region: Region, block: NDArray[Any]) -> NDArray[np.float64]:
        """All blobs that are known to be ones of the whole image, whether they overlap or not."""
        kernel = self.kernel
        n = len(kernel.spatial)
        if block.size == 0 or not kernel.detector.may_find(block.min(), block.max()):
            return np.empty((0, n + kernel.detector.scales.n_sigmas))
        found = kernel.detector.candidates(block)
        found[:, :n] += [region[axis].start for axis in kernel.spatial]
        low, high = self._known(region)
        edge = np.array(kernel.exclude_border)
        low = np.maximum(low, edge)
        high = np.minimum(high, np.array([self.shape[axis] for axis in kernel.spatial]) - edge)
        known: NDArray[np.bool_] = ((low <= found[:, :n]) & (found[:, :n] < high)).all(axis=1)
        return np.asarray(found[known])

    def _known(self, region: Region) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """From where to where nothing beyond a region has a say: all of the core in any case."""
        low, high = [], []
        for axis, reach in zip(self.kernel.spatial, self.kernel.detector.reach, strict=True):
            along, n = region[axis], self.shape[axis]
            low.append(min(along.start + reach, self.tile.start[axis]) if along.start > 0 else -math.inf)
            high.append(max(along.stop - reach, self.tile.stop[axis]) if along.stop < n else math.inf)
        return np.array(low), np.array(high)

    def _unsure(self, found: NDArray[np.float64], region: Region) -> NDArray[np.bool_]:
        """Which blobs may have to make room for others that are not known."""
        if self.kernel.border is not None:
            return np.zeros(len(found), np.bool_)
        n = len(self.kernel.spatial)
        near = np.array(pruning_reach(self.kernel.detector, self.kernel.overlap))
        low, high = self._known(region)
        beyond = (found[:, :n] - near < low) | (found[:, :n] + near >= high)
        return np.asarray(beyond.any(axis=1))

    def _in_core(self, found: NDArray[np.float64]) -> NDArray[np.bool_]:
        axes = list(self.kernel.spatial)
        start, stop = np.array(self.tile.start)[axes], np.array(self.tile.stop)[axes]
        centres = found[:, : len(axes)]
        return np.asarray(((start <= centres) & (centres < stop)).all(axis=1))


@dataclass(frozen=True)
class Occupied:
    """A kernel for tiles in which something exceeds a limit; the others have no rows."""

    kernel: RowKernel
    limit: float

    @property
    def n_columns(self) -> int:
        """Those of the kernel."""
        return self.kernel.n_columns

    def source(self, tile: Tile, shape: Sequence[int]) -> Region:
        """What the kernel needs."""
        return self.kernel.source(tile, shape)

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """What the kernel takes."""
        return self.kernel.work_bytes(dtype)

    def __call__(self, tile: Tile, shape: Sequence[int], read: Read) -> NDArray[np.float64]:
        """The rows of the kernel."""
        block = read(tile.padded)
        # Not "<=": a tile with NaN is not known to be empty.
        if block.size and not block.max() <= self.limit:
            # Most often it asks for the same again.
            return self.kernel(tile, shape, lambda region: block if region == tile.padded else read(region))
        return np.empty((0, self.n_columns))


@dataclass(frozen=True)
class BlobTable:
    """The columns of a table of blobs.

    Attributes
    ----------
    axes : tuple of str
        Names of the axes of the image.
    spatial : tuple of int
        Those that blobs extend over.
    n_sigmas : int
        1, or one for each of these.
    voxel_size : tuple of float or None
        Extent of a voxel along these.
    unit : str or None
        Of that.
    radius : float or None
        For each voxel of sigma; None where that is not known.
    channel : int or None
        The channel that was picked.
    """

    axes: tuple[str, ...]
    spatial: tuple[int, ...]
    n_sigmas: int
    voxel_size: tuple[float, ...] | None
    unit: str | None
    radius: float | None
    channel: int | None

    @property
    def sigmas(self) -> tuple[str, ...]:
        """Names of the columns of sigmas."""
        return self._each("sigma", self.n_sigmas)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in their order."""
        whole = ("channel", "t")
        made = [Column(name, _INT if name in whole else _FLOAT) for name in (*self.axes, *self.sigmas)]
        if self.radius is not None:
            made += [Column(name, _FLOAT) for name in self._each("radius", self.n_sigmas)]
            made += [Column(name, _FLOAT, self.unit) for name in self._physical]
        if self.channel is not None:
            made.append(Column("channel", _INT))
        return (*made, Column("tile", _INT))

    def __call__(self, rows: NDArray[np.float64], number: int) -> dict[str, NDArray[Any]]:
        """The values of some rows, by column."""
        n = len(self.axes)
        sigmas = rows[:, n:]
        values: list[NDArray[Any]] = [*rows.T]
        if self.radius is not None:
            radii = self.radius * sigmas
            values += [*radii.T]
            values += [*(radii * self._sizes).T] if self._physical else []
        if self.channel is not None:
            values.append(np.full(len(rows), self.channel))
        values.append(np.full(len(rows), number))
        columns = zip(self.columns, values, strict=True)
        return {column.name: value.astype(column.dtype) for column, value in columns}

    @property
    def _physical(self) -> tuple[str, ...]:
        if self.voxel_size is None:
            return ()
        return self._each("radius_physical", max(self.n_sigmas, len(self._sizes)))

    @property
    def _sizes(self) -> NDArray[np.float64]:
        """Factors from voxels to the unit: one where one sigma has the same on all axes."""
        assert self.voxel_size is not None
        sizes = np.array(self.voxel_size)
        return sizes[:1] if self.n_sigmas == 1 and (sizes == sizes[0]).all() else sizes

    def _each(self, name: str, n: int) -> tuple[str, ...]:
        return (name,) if n == 1 else tuple(f"{name}_{self.axes[axis]}" for axis in self.spatial)
