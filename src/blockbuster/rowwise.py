"""Runs that make rows of each tile, such as points: each point by the tile in whose core it lies.

::

    padded tile ──► kernel ──► rows of its core ──► stage ──► one file, tile after tile
                                       └──► a lazy array, a block for each tile
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blockbuster.destination import (
    Destination,
    partial_of,
    provenance,
    run_now,
    stage_folder,
    stage_for,
    sweep_around,
    target_name,
)
from blockbuster.errors import ParameterError, TileError
from blockbuster.graph import Input, Pass, PassesGraph, compute_arrays, map_tiles, table_of_tiles
from blockbuster.grid import Region, Tile, TileGrid
from blockbuster.needs import ready, row_needs
from blockbuster.ownership import stopped_stages
from blockbuster.parquet import Column, TableFile
from blockbuster.progress import Step, show_lines, shown
from blockbuster.schedulers import Scheduler, active_scheduler, check_picklable, check_visible
from blockbuster.sources import Image, StoredImage, given
from blockbuster.stage import Manifest, Stage
from blockbuster.tasks import attempting, blaming, computing, first_of, inside_of, kept_back, n_bytes_read

__all__ = ["Read", "RowKernel", "RowPlan", "make_rows", "voxels_of"]

logger = logging.getLogger("blockbuster")

# Gives the voxels of a region of the image: an array of the caller's own.
Read: TypeAlias = Callable[[Region], NDArray[Any]]


class RowKernel(Protocol):
    """Finds the rows of a tile."""

    @property
    def n_columns(self) -> int:
        """Numbers in a row; the first are the coordinates, one for each axis of the image, in voxels."""

    def source(self, tile: Tile, shape: Sequence[int]) -> Region:
        """What a task is given of an image of `shape` that it cannot read itself."""

    def __call__(self, tile: Tile, shape: Sequence[int], read: Read) -> NDArray[np.float64]:
        """The rows whose points lie in the core of a tile, in the coordinates of the image."""

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes that each voxel of what is read takes while it is worked on."""


class RowTable(Protocol):
    """The columns of a table, and how rows fill them."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in their order."""

    def __call__(self, rows: NDArray[np.float64], number: int) -> Mapping[str, NDArray[Any]]:
        """The values of the rows of one tile, by column; `number` is its block id."""


@dataclass(frozen=True)
class RowPlan:
    """What to make: the same for every way of making it.

    Attributes
    ----------
    operation : str
        Name of the public function.
    mask : Image or None
        Of the shape of the image: points are kept where it is not 0.
    table : RowTable
        What is written.
    """

    operation: str
    image: Image
    mask: Image | None
    grid: TileGrid
    kernel: RowKernel
    table: RowTable
    block_ids: tuple[int, ...] | None = None

    @property
    def tiles(self) -> Sequence[int]:
        """Numbers of the tiles of the run."""
        return range(self.grid.n_tiles) if self.block_ids is None else self.block_ids

    @property
    def inputs(self) -> list[Image]:
        """What is read."""
        return [self.image] if self.mask is None else [self.image, self.mask]

    def read(self, tile: Tile) -> Region:
        """What the task of a tile reads, or is given, of the image."""
        return tile.padded if isinstance(self.image, StoredImage) else self.kernel.source(tile, self.image.shape)

    def manifest(self, target: str) -> Manifest:
        """The run, field by field, for the one who resumes it."""
        return {
            "operation": self.operation,
            "target": target,
            "image": self.image.identity(),
            "mask": "none" if self.mask is None else self.mask.identity(),
            "function": repr(self.kernel),
            "tiles": repr((self.grid.bounds, self.grid.overlap)),
            "table": repr(self.table),
            "block_ids": "all" if self.block_ids is None else repr(self.block_ids),
        }


def voxels_of(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """The voxels in which points lie: their centres are at whole numbers."""
    return np.floor(points + 0.5).astype(np.int64)


def make_rows(plan: RowPlan, to: Destination) -> Any:
    """The rows of all tiles: a lazy array, an array in memory, or a lazy table, as `to` asks."""
    scheduler = active_scheduler()
    ready(plan, to, scheduler, row_needs)
    check_picklable(scheduler, "fn", plan.kernel)
    if to.write_to is not None:
        return _to_file(plan, to, scheduler)
    one = _pass(plan, _work(plan).rows)
    lazy = table_of_tiles(one, plan.kernel.n_columns, np.dtype(np.float64))
    if not to.compute:
        return lazy
    n_tiles = len(plan.tiles)
    step = Step("staging", -(-n_tiles // max(lazy.numblocks[0], 1)), n_tiles)
    with shown(to.progress, {lazy.name: step}, n_tiles):
        (made,) = compute_arrays(lazy)
    return made


def _to_file(plan: RowPlan, to: Destination, scheduler: Scheduler) -> Any:
    """Run everything with a file as its sink."""
    manifest = plan.manifest(target_name(to, None, plan.operation))
    sweep_around(to, manifest)
    file = TableFile(to.root, "")
    if to.resume and file.told().get("run") == provenance(manifest, None)["run"]:
        _discard_stopped(to, manifest)
        return file.lazily(plan.kernel.n_columns)
    file.check(overwrite=to.overwrite)
    owner = stage_for(to, plan.image.home, manifest)
    file = replace(file, partial=partial_of(owner.stage, to.root, "table"))
    show_lines(to.verbose)
    with run_now(owner, scheduler, None), file.in_the_making():
        check_visible(scheduler, "output", file.partial, "write_to")
        one = _pass(plan, replace(_work(plan), stage=owner.stage, verbose=to.verbose).stage_rows)
        graph = PassesGraph([one])
        grids = {key: (grid, "the function") for key, grid in graph.grids.items()}
        steps = {key: Step("staging", batch, len(plan.tiles)) for key, batch in graph.batches.items()}
        with shown(to.progress, steps, len(plan.tiles), owner.stage.log):
            made = computing(graph.compute, owner.stage, scheduler, grids)
        errors = [error for error in made if error is not None]
        if errors:
            raise first_of(errors)
        told = provenance(manifest, None)
        # A task like the others: the stage may be nearer to the workers than to the client.
        map_tiles(_Writing(plan, owner.stage, file, told), TileGrid.regular((1,), (1,)), [0], None)
        file.commit(overwrite=to.overwrite)
    return file.lazily(plan.kernel.n_columns)


def _discard_stopped(to: Destination, manifest: Manifest) -> None:
    for left in () if to.keep_stage else stopped_stages(stage_folder(to, None), manifest):
        left.remove()


# Tasks


@dataclass(frozen=True)
class _Work:
    """What tasks know.

    Attributes
    ----------
    image, mask : StoredImage or None
        What tasks read themselves; None where they are given their blocks.
    shape : tuple of int
        Of the image.
    """

    kernel: RowKernel
    shape: tuple[int, ...]
    image: StoredImage | None
    mask: StoredImage | None
    has_mask: bool
    stage: Stage | None = None
    verbose: bool = False

    def rows(self, tile: Tile, *blocks: NDArray[Any]) -> NDArray[np.float64]:
        """The rows of one tile."""
        inside = self._inside(tile, blocks)
        if inside is not None and not inside.any():
            return np.empty((0, self.kernel.n_columns))
        with blaming(tile, "the function"):
            found = self.kernel(tile, self.shape, functools.partial(self._read, tile, blocks))
        if inside is None:
            return found
        voxel = voxels_of(found[:, : len(self.shape)])
        # A point beyond the border of the image counts as of the voxel there.
        voxel = np.clip(voxel, tile.start, np.array(tile.stop) - 1) - tile.start
        kept: NDArray[np.float64] = found[inside[tuple(voxel.T)]]
        return kept

    def stage_rows(self, tile: Tile, *blocks: NDArray[Any]) -> TileError | None:
        """Keep the rows of one tile, unless they are kept already; returns what is wrong with it."""
        assert self.stage is not None
        number = tile.block_id
        self.stage.require()
        if self.stage.has_tile(number):
            return None
        if self.verbose:
            show_lines(self.verbose)
            logger.info("tile %s, region %s", tile.index, tile.core)
        try:
            with attempting(self.stage, tile, number) as mark:
                found = self.rows(tile, *blocks)
                with blaming(tile, "noting it"):
                    n_bytes = n_bytes_read(self.kernel.source(tile, self.shape), (self.image,), blocks[:1])
                    rows = {"rows": found} if len(found) else {}
                    self.stage.write_tile(number, {"rows": len(found)}, rows, mark, n_bytes)
        except TileError as error:
            return kept_back(self.stage, number, error)
        return None

    def _read(self, tile: Tile, blocks: Sequence[NDArray[Any]], region: Region) -> NDArray[Any]:
        if self.image is not None:
            with blaming(tile, "reading the image"):
                return self.image.read(region)
        there = self.kernel.source(tile, self.shape)
        if any(r.start < s.start or r.stop > s.stop for r, s in zip(region, there, strict=True)):
            raise ParameterError(
                f"The function needs the region {region} of the image, more than the {there} that its task was given. "
                "Store the image first, by blockbuster.copy: tasks read of a store what they need."
            )
        # A copy: what is given is shared with other tasks, or is the caller's own array.
        return np.array(
            blocks[0][tuple(slice(r.start - s.start, r.stop - s.start) for r, s in zip(region, there, strict=True))]
        )

    def _inside(self, tile: Tile, blocks: Sequence[NDArray[Any]]) -> NDArray[np.bool_] | None:
        return inside_of(tile, self.mask, blocks) if self.has_mask else None


@dataclass(frozen=True)
class _Writing:
    """Writes the rows of all tiles, as a task."""

    plan: RowPlan
    stage: Stage
    file: TableFile
    told: Mapping[str, Any]

    def __call__(self, _tile: Tile, _block: object) -> int:
        return self.file.write(self.plan.table.columns, self._parts(), self.told)

    def _parts(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        for number in self.plan.tiles:
            record = self.stage.tile(number)
            if record.counts["rows"]:
                yield self.plan.table(record.array("rows"), number)


def _work(plan: RowPlan) -> _Work:
    return _Work(
        kernel=plan.kernel,
        shape=plan.image.shape,
        image=plan.image if isinstance(plan.image, StoredImage) else None,
        mask=plan.mask if isinstance(plan.mask, StoredImage) else None,
        has_mask=plan.mask is not None,
    )


def _pass(plan: RowPlan, function: Callable[..., Any]) -> Pass:
    inputs = []
    blocks = given(plan.image)
    if blocks is not None:
        shape, kernel = plan.image.shape, plan.kernel
        inputs.append(Input(blocks, lambda tile: kernel.source(tile, shape)))
    mask = None if plan.mask is None else given(plan.mask)
    if mask is not None:
        inputs.append(Input(mask, lambda tile: tile.core))
    return Pass(function, plan.grid, plan.tiles, inputs)
