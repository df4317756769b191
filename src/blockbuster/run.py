"""From a plan to labels: lazy, in memory, or stored; new or resumed."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from numpy.typing import DTypeLike

from blockbuster.cluster import Scheduler, active_scheduler, check_picklable, check_visible
from blockbuster.errors import GeometryError, LabelOverflowError, ParameterError, SchedulerError
from blockbuster.files import remove_folder
from blockbuster.graph import RunGraph, Steps, array_of, compute_arrays, compute_value, run_graph, scalar_of
from blockbuster.grid import TileGrid, forward_offsets
from blockbuster.identity import function_identity
from blockbuster.outputs import Output, chunks_within, component_path, plan_output, store_path
from blockbuster.ownership import StageOwner, find_stage, new_stage_path, owned_stage, run_id, stopped_stages, sweep
from blockbuster.progress import Progress, shown
from blockbuster.rules import Rule, Where
from blockbuster.sources import Image, StoredImage, given
from blockbuster.stage import Manifest, Stage
from blockbuster.steps import (
    Job,
    Kernel,
    Report,
    begin,
    final_block,
    sample,
    scan,
    show_lines,
    stage_tile,
    unite,
    write_block,
)
from blockbuster.stores import open_node
from blockbuster.thresholds import sample_tiles
from blockbuster.unions import Numbering

__all__ = ["Destination", "Outcome", "Plan", "check_block_ids", "check_dtype", "execute"]

logger = logging.getLogger("blockbuster")


@dataclass(frozen=True)
class Plan:
    """What to compute: the same for every way of computing it.

    Attributes
    ----------
    operation : str
        Name of the public function.
    parameters : dict
        What tells two runs apart besides image, function, grid and rules; values as words.
    empty_threshold : float, "otsu" or None
        Skip tiles whose maximum does not exceed it; "otsu": that of a sample.
    """

    operation: str
    image: Image
    mask: Image | None
    grid: TileGrid
    kernel: Kernel
    rules: tuple[Rule, ...]
    numbering: Numbering
    dtype: np.dtype[Any]
    block_ids: tuple[int, ...] | None
    function: str
    parameters: dict[str, str]
    empty_threshold: float | Literal["otsu"] | None = None
    use_gpu: bool = False

    @property
    def tiles(self) -> Sequence[int]:
        """Numbers of the tiles of the run."""
        return range(self.grid.n_tiles) if self.block_ids is None else self.block_ids

    @property
    def inputs(self) -> list[Image]:
        """What is read."""
        return [image for image in (self.image, self.mask) if image is not None]

    def manifest(self, target: str) -> Manifest:
        """The run, field by field, for the one who resumes it."""
        return {
            "operation": self.operation,
            "target": target,
            "image": self.image.identity(),
            "mask": "none" if self.mask is None else self.mask.identity(),
            "function": self.function,
            "tiles": repr(self.grid.bounds if not self.grid.is_regular else (self.grid.shape, self.grid.tile_shape)),
            "overlap": repr(self.grid.overlap),
            "merge": "; ".join(map(_rule_words, self.rules)),
            "numbering": self.numbering,
            "block_ids": "all" if self.block_ids is None else repr(self.block_ids),
            **self.parameters,
        }


@dataclass(frozen=True)
class Destination:
    """Where a result goes and how it is made: the shared options of the operations."""

    write_to: Any = None
    output_component: str = "labels"
    compute: bool = False
    progress: Progress = False
    stage_dir: Any = None
    keep_stage: bool = False
    resume: bool = False
    overwrite: bool = False
    verbose: bool = False

    @property
    def root(self) -> Path:
        """Absolute path of the store that is written to."""
        return store_path(self.write_to)

    @property
    def component(self) -> str:
        """Path of the labels within it."""
        return component_path(self.output_component)


@dataclass(frozen=True)
class Outcome:
    """What an operation gives back.

    Attributes
    ----------
    labels : dask.array.Array or ndarray
        Final labels.
    n_objects : int or dask.array.Array
        Objects; lazy where the labels are.
    """

    labels: Any
    n_objects: Any


def execute(plan: Plan, to: Destination) -> Outcome:
    """Make the lazy array, the array in memory, or the stored array that `to` asks for."""
    show_lines(to.verbose)
    scheduler = active_scheduler()
    check_picklable(scheduler, "fn", plan.kernel)
    check_picklable(scheduler, "merge", plan.rules)
    _check_gpu(plan, scheduler)
    manifest = plan.manifest(_target(to, plan))
    if to.write_to is not None:
        return _to_store(plan, to, manifest, scheduler)
    owner = _stage_for(plan, to, manifest)
    job = _job(plan, to, owner.stage, manifest, scheduler)
    graph = _graph(plan, job, owner, scheduler)
    array, count = array_of(graph, plan.grid, plan.tiles, plan.dtype), scalar_of(graph, _n_objects)
    if not to.compute:
        return Outcome(array, count)
    keys, total = {graph.key("stage"), graph.key("labels")}, len(plan.tiles) + max(plan.grid.n_tiles, 1)
    with _eager(owner, job, scheduler), shown(to.progress, scheduler, keys, total):
        labels, n_objects = compute_arrays(array, count)
        return Outcome(labels, int(n_objects))


def _to_store(plan: Plan, to: Destination, manifest: Manifest, scheduler: Scheduler) -> Outcome:
    """Run everything with a stored array as its sink."""
    for folder in {_stage_folder(to, None), to.root.parent}:
        sweep(folder, manifest["target"])
    done = _done_before(plan, to, manifest)
    if done is not None:
        return done
    output = plan_output(
        to.root, to.component, overwrite=to.overwrite, inputs=[home for image in plan.inputs for home in image.homes]
    )
    owner = _stage_for(plan, to, manifest)
    output = replace(output, partial=_partial_of(owner.stage, output, plan.dtype), mark=str(plan.dtype))
    job = _job(plan, to, owner.stage, manifest, scheduler, output)
    graph = _graph(plan, job, owner, scheduler)
    numbers = _final_numbers(plan, job.final_grid)
    keys, total = {graph.key("stage"), graph.key("finish")}, len(plan.tiles) + len(numbers)
    with _eager(owner, job, scheduler):
        output.create(plan.grid.shape, chunks_within(plan.grid), plan.dtype, plan.image.axes)
        check_visible(scheduler, "output", output.partial, "write_to")
        with shown(to.progress, scheduler, keys, total):
            report: Report = compute_value(graph, numbers)
        output.annotate({"blockbuster": _provenance(plan, manifest, report)})
        output.commit(overwrite=to.overwrite)
        _discard_others(owner.stage, output)
    return Outcome(_lazily(output.root, output.component), report.n_objects)


def _n_objects(report: Report) -> int:
    return report.n_objects


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype of labels.

    Raises
    ------
    ParameterError
        If it is not one of integers.
    """
    try:
        made = np.dtype(dtype)
    except TypeError:
        made = None
    if made is None or made.kind not in "iu":
        named = repr(dtype) if made is None else made
        raise ParameterError(f"dtype {named} cannot hold labels. Choose an integer dtype, such as 'int32' or 'uint64'.")
    return made.newbyteorder("=")


def check_block_ids(block_ids: Any, grid: TileGrid) -> tuple[int, ...] | None:
    """Tiles of a grid by their numbers, each once, ascending.

    Raises
    ------
    GeometryError
        If a number is not one of a tile.
    """
    if block_ids is None:
        return None
    chosen = np.unique(np.asarray(block_ids).reshape(-1))
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen[0] < 0 or chosen[-1] >= grid.n_tiles):
        raise GeometryError(
            f"block_ids {chosen.tolist()} are not all numbers of tiles: the grid has {grid.n_tiles} tiles "
            f"{grid.numblocks}, numbered 0..{grid.n_tiles - 1} in row-major order."
        )
    return tuple(chosen.tolist())


def _check_gpu(plan: Plan, scheduler: Scheduler) -> None:
    if plan.use_gpu and scheduler.client is not None and not scheduler.has_gpu_resource:
        raise SchedulerError(
            "use_gpu=True on a cluster whose workers do not all have the resource 'GPU'. "
            "Start one with make_local_cluster(use_gpu=True), or give its workers --resources GPU=1."
        )


def _graph(plan: Plan, job: Job, owner: StageOwner, scheduler: Scheduler) -> RunGraph:
    steps = Steps(
        begin=functools.partial(begin, job, owner),
        sample=functools.partial(sample, job.image),
        sampled=sample_tiles(plan.tiles) if plan.empty_threshold == "otsu" else (),
        stage=stage_tile,
        scan=scan,
        unite=unite,
        finish=final_block if job.output is None else write_block,
    )
    reach = max((rule.reach for rule in plan.rules), default=0)
    axes = sorted({axis for rule in plan.rules for axis in rule.axes or ()})
    offsets = forward_offsets(plan.grid.ndim, axes, reach)

    def neighbours(block_id: int) -> list[int]:
        return [seam.second for seam in plan.grid.seams(block_id, offsets)]

    images = [given(image) for image in plan.inputs]
    resources = {"GPU": 1.0} if plan.use_gpu and scheduler.client is not None else None
    return run_graph(steps, plan.grid, plan.tiles, neighbours, images, resources=resources)


def _stored(image: Image | None) -> StoredImage | None:
    return image if isinstance(image, StoredImage) else None


def _stage_for(plan: Plan, to: Destination, manifest: Manifest) -> StageOwner:
    """The stage of the run to resume, or the name of a new one."""
    folder = _stage_folder(to, plan.image.home)
    lazy = to.write_to is None and not to.compute
    found = find_stage(folder, manifest) if to.resume else None
    if found is not None:
        owner = StageOwner(found, manifest, keep=to.keep_stage, leased=lazy)
        owner.hold(manifest, alone=True)
        return owner
    for left in () if to.resume else stopped_stages(folder, manifest):
        logger.warning("The same run was stopped in %s: resume=True goes on with it, or delete that folder.", left.path)
    stage = Stage(new_stage_path(folder, manifest["target"]))
    return StageOwner(stage, manifest, keep=to.keep_stage, leased=lazy)


def _job(
    plan: Plan, to: Destination, stage: Stage, manifest: Manifest, scheduler: Scheduler, output: Output | None = None
) -> Job:
    regular = output is None or plan.grid.is_regular
    return Job(
        grid=plan.grid,
        final_grid=plan.grid if regular else TileGrid.regular(plan.grid.shape, chunks_within(plan.grid)),
        kernel=plan.kernel,
        rules=plan.rules,
        numbering=plan.numbering,
        dtype=plan.dtype,
        stage=stage,
        manifest=manifest,
        image=_stored(plan.image),
        mask=_stored(plan.mask),
        has_mask=plan.mask is not None,
        empty_threshold=None if plan.empty_threshold == "otsu" else plan.empty_threshold,
        use_gpu=plan.use_gpu,
        on_cluster=scheduler.client is not None,
        verbose=to.verbose,
        block_ids=None if plan.block_ids is None else frozenset(plan.block_ids),
        output=output,
    )


def _partial_of(stage: Stage, output: Output, dtype: np.dtype[Any]) -> str:
    """Where an output is in the making: told by the stage, so that a resumed run finds it."""
    folder = os.path.dirname(output.partial)
    return os.path.join(folder, f".{os.path.basename(stage.path)}.{dtype}.partial")


def _discard_others(stage: Stage, output: Output) -> None:
    """Remove what earlier tries of the run with another dtype had begun to write."""
    partial = Path(output.partial)
    for other in partial.parent.glob(f".{glob.escape(os.path.basename(stage.path))}.*.partial"):
        remove_folder(other)


def _final_numbers(plan: Plan, final_grid: TileGrid) -> Sequence[int]:
    """Regions of the last step: those that meet a tile of the run."""
    if final_grid is plan.grid:
        return plan.tiles
    if plan.block_ids is None:
        return range(final_grid.n_tiles)
    tiles = map(plan.grid.tile, plan.block_ids)
    return sorted({region.block_id for tile in tiles for region in final_grid.overlapping(tile.start, tile.stop)})


@contextlib.contextmanager
def _eager(owner: StageOwner, job: Job, scheduler: Scheduler) -> Iterator[None]:
    """Run now: make the stage on the client, so that what is wrong with it shows before the first task.

    After a failure, an incomplete output is left only where a resumed run can finish it.
    """
    with owned_stage(owner):
        owner.hold(job.manifest, alone=True)
        check_visible(scheduler, "stage", owner.stage.path, "stage_dir")
        try:
            yield
        except BaseException as error:
            unusable = isinstance(error, LabelOverflowError) or not owner.stage.n_tiles()
            if job.output is not None and unusable:
                job.output.discard()
            raise


def _provenance(plan: Plan, manifest: Manifest, report: Report) -> dict[str, Any]:
    return {"run": _result_id(plan, manifest), "operation": manifest["operation"], "report": asdict(report)}


def _result_id(plan: Plan, manifest: Manifest) -> str:
    """The run and what its stage does not depend on."""
    return run_id({**manifest, "dtype": str(plan.dtype)})


def _rule_words(rule: Rule) -> str:
    if isinstance(rule, Where):
        return f"Where({function_identity(rule.test)}, axes={rule.axes})"
    return repr(rule)


def _done_before(plan: Plan, to: Destination, manifest: Manifest) -> Outcome | None:
    """The output of this very run where it is complete already, and the run was asked to be resumed."""
    if not to.resume:
        return None
    path = Path(to.root, to.component)
    node = open_node(str(path)) if path.exists() else None
    made: Any = {} if node is None else node.attrs.asdict().get("blockbuster", {})
    if made.get("run") != _result_id(plan, manifest):
        return None
    for left in () if to.keep_stage else stopped_stages(_stage_folder(to, None), manifest):
        left.remove()
    return Outcome(_lazily(to.root, to.component), made["report"]["n_objects"])


def _lazily(root: Any, component: str) -> da.Array:
    stored = zarr.open_array(os.fspath(root), path=component, mode="r")
    # A name of its own: labels that replace others at the same path are not the same array.
    array: da.Array = da.from_zarr(stored, name=f"labels-{uuid.uuid4().hex}")
    return array


def _stage_folder(to: Destination, image_home: Path | None) -> Path:
    """Where asked, else beside the output, else beside the image, else the system's temporary folder."""
    if to.stage_dir is not None:
        if not isinstance(to.stage_dir, str | os.PathLike):
            raise ParameterError(f"stage_dir {to.stage_dir!r} is not a path. Give a folder that all workers see.")
        return Path(to.stage_dir).absolute()
    if to.write_to is not None:
        return to.root.parent
    if image_home is not None:
        beside = _outermost_store(image_home).parent
        if os.access(beside, os.W_OK):
            return beside
    return Path(tempfile.gettempdir())


def _outermost_store(path: Path) -> Path:
    """The folder that is a zarr store of its own: no stage is made within a store."""
    markers = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    while any((path.parent / marker).exists() for marker in markers):
        path = path.parent
    return path


def _target(to: Destination, plan: Plan) -> str:
    if to.write_to is not None:
        parts = [to.root.name, *to.component.split("/")]
        return ".".join(filter(None, parts))
    home = plan.image.home
    return f"{_outermost_store(home).name if home is not None else 'array'}.{plan.operation}"
