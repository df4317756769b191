"""Runs that make each tile of a result from a region of an image: no tile needs to know of another.

::

    region of the source ──► kernel ──► within the mask? ──► write whole chunks ──► journal

An array may be made from the one before it, as the levels of a pyramid are: a tile then waits for the tiles it reads.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray

from blockbuster.destination import (
    Destination,
    discard_others,
    done_before,
    lazy_store,
    partial_of,
    provenance,
    run_now,
    stage_for,
    sweep_around,
    target_name,
)
from blockbuster.encoding import Encoding, ZarrFormat
from blockbuster.errors import GeometryError, OutputError, TileError
from blockbuster.graph import Input, Pass, PassesGraph, array_of_tiles, compute_arrays, map_tiles
from blockbuster.grid import Region, Tile, TileGrid, region_shape
from blockbuster.needs import OVERLAPPING_PART, PART, array_needs, ready
from blockbuster.outputs import Members, Output, Part, Patch, consolidate, plan_output
from blockbuster.progress import Step, show_lines, shown
from blockbuster.raw import RawChunks, can_copy_raw
from blockbuster.schedulers import active_scheduler, check_visible
from blockbuster.scratch import scratch
from blockbuster.sources import Image, StoredImage, from_store, given
from blockbuster.stage import Manifest, Stage
from blockbuster.stores import StoreRef
from blockbuster.tasks import attempting, blaming, computing, first_of, inside_of, kept_back, n_bytes_read

__all__ = ["ArrayPlan", "Kernel", "TilePlan", "make_array", "make_store"]

logger = logging.getLogger("blockbuster")

# How much more two halves of a part may read than the whole.
_AGAIN = 1.5


class Kernel(Protocol):
    """Makes any region of a result from a region of an image.

    One with an attribute `whole_tiles` that is true is asked for whole tiles only, never for parts of them, and gets
    each block as an array of its own.
    """

    def source(self, region: Region, shape: Sequence[int]) -> Region:
        """What `region` of the result needs of an image of `shape`."""

    def __call__(self, block: NDArray[Any], region: Region, shape: Sequence[int]) -> NDArray[Any]:
        """`region` of the result, from what `source` says."""

    def work_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes that each voxel of the block takes while it is worked on."""


@dataclass(frozen=True)
class ArrayPlan:
    """One array to make.

    Attributes
    ----------
    source : Image or str
        What it is made from: an image, or the name of the array before it.
    grid : TileGrid
        Tiles of the array, whole chunks of it where it is stored.
    name : str
        Path within the output; "" for the output itself.
    encoding : Encoding or None
        How it is stored; None where it is not.
    stored_dtype : dtype, optional
        With another byte order than `dtype`.
    """

    source: Image | str
    kernel: Kernel
    grid: TileGrid
    dtype: np.dtype[Any]
    name: str = ""
    encoding: Encoding | None = None
    stored_dtype: np.dtype[Any] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.grid.shape


@dataclass(frozen=True)
class TilePlan:
    """What to make: the same for every way of making it.

    Attributes
    ----------
    parameters : dict
        What tells two runs apart besides images, kernels and grids; values as words.
    groups : mapping
        Attributes of the groups of the output, by their paths within it.
    mask : Image or None
        Of the shape of the only array: what is not 0 is made.
    folders : tuple of Path
        Where more is read than the images.
    beside : mapping
        Files and folders that are no part of zarr, by where they go in the output.
    consolidated : bool
        Whether the metadata of all members are kept in the group as well.
    finish : callable, optional
        ``output -> attributes``, once all arrays are made and before they are seen.
    """

    operation: str
    arrays: tuple[ArrayPlan, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    zarr_format: ZarrFormat = 3
    mask: Image | None = None
    block_ids: tuple[int, ...] | None = None
    verify: bool = False
    folders: tuple[Path, ...] = ()
    beside: Mapping[str, Path] = field(default_factory=dict)
    consolidated: bool = False
    finish: Callable[[Output], Mapping[str, Any]] | None = None

    @property
    def inputs(self) -> list[Image]:
        """What is read."""
        images = [array.source for array in self.arrays if not isinstance(array.source, str)]
        return images if self.mask is None else [*images, self.mask]

    @property
    def home(self) -> Path | None:
        """Where the image lies, if on a local file system."""
        source = self.arrays[0].source if self.arrays else ""
        return None if isinstance(source, str) else source.home

    def tiles(self, array: ArrayPlan) -> Sequence[int]:
        """Numbers of the tiles of one array that are to be made."""
        return range(array.grid.n_tiles) if self.block_ids is None else self.block_ids

    def manifest(self, target: str) -> Manifest:
        """The run, field by field, for the one who resumes it."""
        made = {"operation": self.operation, "target": target}
        for array in self.arrays:
            about = f" of {array.name}" if array.name else ""
            source = array.source if isinstance(array.source, str) else array.source.identity()
            made[f"image{about}"] = source
            made[f"function{about}"] = repr(array.kernel)
            made[f"tiles{about}"] = repr((array.grid.bounds, str(array.dtype)))
            made[f"stored{about}"] = str(array.encoding)
        return {
            **made,
            "verify": repr(self.verify),
            "mask": "none" if self.mask is None else self.mask.identity(),
            "block_ids": "all" if self.block_ids is None else repr(self.block_ids),
            **self.parameters,
        }


def make_array(plan: TilePlan, to: Destination) -> Any:
    """The only array of a plan: lazy, in memory, or stored, as `to` asks."""
    if to.write_to is not None:
        make_store(plan, to)
        return lazy_store(to.root, to.component)
    scheduler = active_scheduler()
    ready(plan, to, scheduler, array_needs)
    (array,) = plan.arrays
    work = _work(plan, array, 0)
    lazy = array_of_tiles(_pass(plan, array, work, work.block), array.dtype)
    if not to.compute:
        return lazy
    n_tiles = len(plan.tiles(array))
    with shown(to.progress, {lazy.name: Step("writing", 1, n_tiles)}, n_tiles):
        (made,) = compute_arrays(lazy)
    return made


def make_store(plan: TilePlan, to: Destination, place: Callable[[], Output] | None = None) -> None:
    """All arrays of a plan, in the groups that they belong to: complete, or not at all.

    Parameters
    ----------
    place : callable, optional
        Says where they go, checked. Default: to a new array or group, or into the array that a mask or some tiles of it
        are to change.
    """
    scheduler = active_scheduler()
    ready(plan, to, scheduler, array_needs)
    manifest = plan.manifest(target_name(to, None, plan.operation))
    sweep_around(to, manifest)
    if done_before(to, manifest, None) is not None:
        consolidate(to.root)
        return
    output = place() if place is not None else _place(plan, to)
    owner = stage_for(to, plan.home, manifest)
    # What is begun as one kind of output is not gone on with as another.
    output = replace(
        output, partial=partial_of(owner.stage, output.partial, f"{plan.operation}-{type(output).__name__}")
    )
    if isinstance(output, Members):
        output.check(overwrite=to.overwrite)
    if isinstance(output, Part):
        output = replace(output, merges=plan.mask is None)
    show_lines(to.verbose)
    with run_now(owner, scheduler, output):
        if output.is_complete:
            output.commit(overwrite=to.overwrite)
            return
        if output.is_begun:
            output.tidy()
        else:
            owner.stage.forget("tiles")
        _create(plan, output)
        check_visible(scheduler, "output", output.partial, "write_to")
        works = list(_works(plan, output, owner.stage, to.verbose))
        passes = [_pass(plan, array, work, work.write) for array, work in zip(plan.arrays, works, strict=True)]
        graph = PassesGraph(passes)
        grids = {key: (grid, "the function") for key, grid in graph.grids.items()}
        steps = {
            key: Step("writing", batch, len(one.block_ids))
            for (key, batch), one in zip(graph.batches.items(), passes, strict=True)
        }
        with shown(to.progress, steps, sum(step.n_tiles for step in steps.values()), owner.stage.log):
            made = computing(graph.compute, owner.stage, scheduler, grids)
            errors = [error for error in made if error is not None]
            if errors:
                raise first_of(errors)
        if plan.verify:
            _verify(plan, works, passes)
        facts = dict(plan.finish(output)) if plan.finish is not None else {}
        told = provenance(manifest, None)
        if isinstance(output, Members):
            told = {**dict(facts.get("blockbuster", {})), plan.operation: told}
        output.annotate({**facts, "blockbuster": told})
        output.commit(overwrite=to.overwrite)
        discard_others(owner.stage, output)


# Putting an output together


def _place(plan: TilePlan, to: Destination) -> Output:
    homes = [*plan.folders, *(home for image in plan.inputs for home in image.homes)]
    patches = plan.mask is not None or plan.block_ids is not None
    output = plan_output(to.root, to.component, overwrite=to.overwrite, inputs=homes, patches=patches)
    if isinstance(output, Patch):
        _check_form(output, plan)
    return output


def _create(plan: TilePlan, output: Output) -> None:
    for name in sorted(plan.groups):
        output.create_group(plan.zarr_format, plan.groups[name], name=name)
    for array in plan.arrays:
        assert array.encoding is not None
        dtype = array.stored_dtype or array.dtype
        output.create(array.shape, dtype, array.encoding, name=array.name, attributes=array.attributes)
    for name, source in plan.beside.items():
        output.put(source, name)
    if plan.consolidated:
        consolidate(output.partial, always=True)


def _check_form(output: Output, plan: TilePlan) -> None:
    """Refuse to change some voxels of an array that is not like the one that would be made."""
    (array,) = plan.arrays
    there = zarr.open_array(output.path, mode="r")
    if there.shape != array.shape or there.dtype.newbyteorder("=") != array.dtype:
        raise OutputError(
            f"{output.path} has shape {there.shape} and dtype {there.dtype}; with mask or block_ids, overwrite=True "
            f"changes voxels of it, so it must have shape {array.shape} and dtype {array.dtype}."
        )
    unit = there.shards or there.chunks
    if not array.grid.is_aligned(unit):
        raise GeometryError(
            f"Tiles of {array.grid.tile_shape} are not whole chunks or shards {unit} of {output.path}: two tiles would "
            "write to one of them. Give a tile_shape that is a multiple of them."
        )


# Tasks


@dataclass(frozen=True)
class _Work:
    """What the tasks of one array know.

    Attributes
    ----------
    image, mask : StoredImage or None
        What tasks read themselves; None where they are given their blocks.
    image_shape : tuple of int
        Shape of the image, which may be in a graph.
    first : int
        Number of its first tile in the journal.
    below : StoredImage or None
        What there is already, for a patch.
    """

    kernel: Kernel
    dtype: np.dtype[Any]
    image: StoredImage | None
    image_shape: tuple[int, ...]
    mask: StoredImage | None
    has_mask: bool
    name: str = ""
    first: int = 0
    output: Output | None = None
    stage: Stage | None = None
    below: StoredImage | None = None
    raw: RawChunks | None = None
    verify: bool = False
    verbose: bool = False

    def block(self, tile: Tile, *blocks: NDArray[Any]) -> NDArray[Any]:
        """The voxels of one tile; those outside of the mask are 0."""
        inside = self._inside(tile, blocks)
        if inside is None:
            made = self._made(tile, blocks)
            # A view would keep all that was read for it.
            return made.copy() if made.base is not None and made.base.size > made.size else made
        if not inside.any():
            return np.zeros(tile.shape, self.dtype)
        return np.where(inside, self._made(tile, blocks), np.zeros((), self.dtype))

    def write(self, tile: Tile, *blocks: NDArray[Any]) -> TileError | None:
        """Write one tile, unless it is done or outside of the mask; then note it in the journal.

        Returns what is wrong with it, for the others to go on.
        """
        assert self.output is not None
        assert self.stage is not None
        number = self.first + tile.block_id
        # A task that comes after the end of its run finds no stage, and must not make the output anew.
        self.stage.require()
        if self.stage.has_tile(number) and "merged" not in self.stage.tile(number).counts:
            return None
        if self.verbose:
            show_lines(self.verbose)
            logger.info("%s tile %s, region %s", self.name, tile.index, tile.core)
        try:
            with attempting(self.stage, tile, number) as mark:
                inside = self._inside(tile, blocks)
                counts = self._written(tile, inside, self._wanted(tile, inside, blocks))
                with blaming(tile, "noting it"):
                    self.stage.write_tile(number, counts, {}, mark, self._n_bytes(tile, blocks, counts))
        except TileError as error:
            return kept_back(self.stage, number, error)
        return None

    def _wanted(
        self, tile: Tile, inside: NDArray[np.bool_] | None, blocks: Sequence[NDArray[Any]]
    ) -> NDArray[Any] | None:
        """What is to be written; None where that is nothing, or files as they are."""
        if self.raw is not None or (inside is not None and not inside.any()):
            return None
        return self._made(tile, blocks) if inside is None else self._merged(tile, inside, blocks)

    def _written(self, tile: Tile, inside: NDArray[np.bool_] | None, block: NDArray[Any] | None) -> dict[str, int]:
        """Write a tile; returns what is noted of it."""
        assert self.output is not None
        if self.raw is not None:
            with blaming(tile, "copying chunks"):
                self.raw.copy(tile.core)
            return {}
        if block is None:
            return {"outside": 1}
        with blaming(tile, "writing"):
            self.output.write(tile.core, block, name=self.name)
        counts = {"crc": _checksum(block)} if self.verify else {}
        if inside is not None and self.below is not None and not inside.all():
            # What others write there until the run is resumed would be lost: the tile is made again then.
            counts["merged"] = 1
        return counts

    def _n_bytes(self, tile: Tile, blocks: Sequence[NDArray[Any]], counts: Mapping[str, int]) -> int:
        if "outside" in counts:
            return 0
        return n_bytes_read(self.kernel.source(tile.core, self.image_shape), (self.image,), blocks[:1])

    def differs(self, tile: Tile, _block: object) -> bool:
        """Whether what is stored of a tile is not what was written."""
        assert self.output is not None
        assert self.stage is not None
        if self.raw is not None:
            return self.raw.differs(tile.core)
        counts = self.stage.tile(self.first + tile.block_id).counts
        if "crc" not in counts:
            return False
        try:
            again = self.output.read(tile.core, name=self.name)
        except (OSError, ValueError, RuntimeError):
            # What cannot be read is not what was written.
            return True
        return _checksum(again.astype(self.dtype, copy=False)) != counts["crc"]

    def _inside(self, tile: Tile, blocks: Sequence[NDArray[Any]]) -> NDArray[np.bool_] | None:
        return inside_of(tile, self.mask, blocks) if self.has_mask else None

    def _merged(self, tile: Tile, inside: NDArray[np.bool_], blocks: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The tile as it is to be, with what stays as it was."""
        made = self._made(tile, blocks)
        if inside.all():
            return made
        with blaming(tile, "reading what stays"):
            kept = np.zeros((), self.dtype) if self.below is None else self.below.read(tile.core)
        return np.where(inside, made, kept)

    def _made(self, tile: Tile, blocks: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if self.image is None:
            with blaming(tile, "the function"):
                block = _own(blocks[0]) if _takes_whole_tiles(self.kernel) else np.asarray(blocks[0])
                made = self.kernel(block, tile.core, self.image_shape)
        else:
            made = self._read_and_made(tile, self.image)
        return made.astype(self.dtype, copy=False)

    def _read_and_made(self, tile: Tile, image: StoredImage) -> NDArray[Any]:
        """Part by part, so that what is read for a tile need not fit the memory at once.

        What is not handed on is in memory that is used again.
        """
        parts = [tile.core] if _takes_whole_tiles(self.kernel) else list(_parts(tile.core, self.kernel, image))
        if len(parts) == 1:
            return self._part(tile, image, tile.core)
        is_lent = self.output is not None
        out = scratch("made", tile.shape, self.dtype) if is_lent else np.empty(tile.shape, self.dtype)
        for part in parts:
            where = tuple(slice(s.start - o, s.stop - o) for s, o in zip(part, tile.start, strict=True))
            out[where] = self._part(tile, image, part)
        return out

    def _part(self, tile: Tile, image: StoredImage, part: Region) -> NDArray[Any]:
        region = self.kernel.source(part, image.shape)
        with blaming(tile, "reading the image"):
            is_lent = self.output is not None and not _takes_whole_tiles(self.kernel)
            lent = scratch("read", region_shape(region), image.dtype) if is_lent else None
            block = image.read(region, lent)
        with blaming(tile, "the function"):
            return self.kernel(block, part, image.shape)


def _works(plan: TilePlan, output: Output, stage: Stage, verbose: bool) -> Iterator[_Work]:
    first = 0
    for array in plan.arrays:
        work = _work(plan, array, first, output)
        yield replace(
            work,
            output=output,
            stage=stage,
            below=from_store(StoreRef(str(output.root), output.component)) if isinstance(output, Patch) else None,
            raw=_raw(plan, array, output),
            verbose=verbose,
        )
        first += array.grid.n_tiles


def _work(plan: TilePlan, array: ArrayPlan, first: int, output: Output | None = None) -> _Work:
    source = _source(array, output)
    return _Work(
        kernel=array.kernel,
        dtype=array.dtype,
        image=source if isinstance(source, StoredImage) else None,
        image_shape=source.shape,
        mask=plan.mask if isinstance(plan.mask, StoredImage) else None,
        has_mask=plan.mask is not None,
        name=array.name,
        first=first,
        verify=plan.verify,
    )


def _source(array: ArrayPlan, output: Output | None) -> Image:
    if isinstance(array.source, str):
        assert output is not None
        return from_store(StoreRef(output.partial, array.source))
    return array.source


def _raw(plan: TilePlan, array: ArrayPlan, output: Output) -> RawChunks | None:
    """The chunks to copy as they are, where nothing is to be done to voxels."""
    if isinstance(array.source, str) or plan.mask is not None or not getattr(array.kernel, "keeps_values", False):
        return None
    partial = os.path.join(output.partial, array.name)
    if isinstance(output, Patch) or not can_copy_raw(array.source, zarr.open_array(partial, mode="r")):
        return None
    assert array.encoding is not None
    return RawChunks(str(array.source.home), partial, array.encoding.unit)


def _pass(plan: TilePlan, array: ArrayPlan, work: _Work, function: Callable[..., Any]) -> Pass:
    block_ids = plan.tiles(array)
    inputs = []
    if work.image is None and not isinstance(array.source, str):
        shape = array.source.shape
        inputs.append(_input(array.source, lambda tile: array.kernel.source(tile.core, shape)))
        if plan.mask is not None and work.output is not None:
            # Tiles that are given their blocks would read them before the mask is known.
            block_ids = _within(plan.mask, array.grid, block_ids)
    if plan.mask is not None and work.mask is None:
        inputs.append(_input(plan.mask, lambda tile: tile.core))
    before = next((one for one in plan.arrays if one.name == array.source), None)
    needs = None if before is None else functools.partial(_needed, array.kernel, before.grid)
    return Pass(function, array.grid, block_ids, inputs, needs)


def _needed(kernel: Kernel, before: TileGrid, tile: Tile) -> list[int]:
    """The tiles of the array before that a tile reads."""
    region = kernel.source(tile.core, before.shape)
    met = before.overlapping([s.start for s in region], [s.stop for s in region])
    return [other.block_id for other in met]


def _input(image: Image, region: Callable[[Tile], Region]) -> Input:
    blocks = given(image)
    assert blocks is not None
    return Input(blocks, region)


def _within(mask: Image, grid: TileGrid, block_ids: Sequence[int]) -> list[int]:
    """The tiles that a mask meets."""
    stored = mask if isinstance(mask, StoredImage) else None
    meets = map_tiles(_Meets(stored), replace(grid, overlap=(0,) * grid.ndim), block_ids, given(mask))
    return [n for n, met in zip(block_ids, meets, strict=True) if met]


@dataclass(frozen=True)
class _Meets:
    mask: StoredImage | None

    def __call__(self, tile: Tile, block: NDArray[Any] | None) -> bool:
        return bool(np.any(block if self.mask is None else self.mask.read(tile.core)))


def _verify(plan: TilePlan, works: Sequence[_Work], passes: Sequence[Pass]) -> None:
    """Read all that was written again, once nothing is written any more."""
    for array, work, one in zip(plan.arrays, works, passes, strict=True):
        wrong = map_tiles(work.differs, array.grid, one.block_ids, None)
        bad = [array.grid.tile(n).index for n, differs in zip(one.block_ids, wrong, strict=True) if differs]
        if bad:
            assert work.stage is not None
            work.stage.forget("tiles")
            raise OutputError(
                f"{len(bad)} tiles of {array.name or 'the output'}, the first of them {bad[0]}, were read back with "
                "other checksums than they were written with: the disk, or what else writes to it, damages data."
            )


def _takes_whole_tiles(kernel: Kernel) -> bool:
    return getattr(kernel, "whole_tiles", False)


def _own(block: NDArray[Any]) -> NDArray[Any]:
    """A copy in native byte order: a function may write to its block, and others may share the one given."""
    return np.array(block, dtype=block.dtype.newbyteorder("="), order="C")


def _parts(region: Region, kernel: Kernel, image: StoredImage) -> Iterator[Region]:
    """A region cut so that what each part reads fits into the memory of a task, at chunks of it where that can be."""
    read = kernel.source(region, image.shape)
    work = _voxels(read) * kernel.work_bytes(image.dtype)
    if work <= PART or _voxels(region) <= 1:
        yield region
        return
    halves = _halves(region, read, image)
    again = sum(_voxels(kernel.source(half, image.shape)) for half in halves) / _voxels(read)
    if again > 1 and (work <= OVERLAPPING_PART or again > _AGAIN):
        yield region
        return
    for half in halves:
        yield from _parts(half, kernel, image)


def _halves(region: Region, read: Region, image: StoredImage) -> tuple[Region, Region]:
    """A region cut in two across the axis along which it reads the most chunks."""
    chunks = [max(axis[0], 1) for axis in image.chunks]
    spans = [-(-(s.stop - s.start) // c) for s, c in zip(read, chunks, strict=True)]
    extents = region_shape(region)
    axis = max((a for a, n in enumerate(extents) if n > 1), key=lambda a: (spans[a], extents[a]))
    chunk = chunks[axis] * extents[axis] // max(read[axis].stop - read[axis].start, 1)
    half = extents[axis] // 2
    cut = region[axis].start + max(half // chunk * chunk if 0 < chunk <= half else half, 1)
    before, after = slice(region[axis].start, cut), slice(cut, region[axis].stop)
    return (*region[:axis], before, *region[axis + 1 :]), (*region[:axis], after, *region[axis + 1 :])


def _voxels(region: Region) -> int:
    return math.prod(region_shape(region))


def _checksum(block: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(block).data.cast("B")) if block.size else 0
