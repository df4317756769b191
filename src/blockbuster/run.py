"""From a plan to labels: lazy, in memory, or stored; new or resumed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

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
from blockbuster.encoding import new_encoding
from blockbuster.errors import LabelOverflowError, ParameterError, SchedulerError
from blockbuster.graph import RunGraph, Steps, array_of, batch_size, compute_arrays, compute_value, run_graph, scalar_of
from blockbuster.grid import TileGrid, forward_offsets
from blockbuster.identity import function_identity
from blockbuster.needs import label_needs, ready
from blockbuster.outputs import Output, chunks_within, consolidate, format_of, plan_output
from blockbuster.ownership import StageOwner
from blockbuster.progress import Step, show_lines, shown
from blockbuster.rules import Rule, Where
from blockbuster.schedulers import Scheduler, active_scheduler, check_picklable, check_visible
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
    stage_tile,
    unite,
    write_block,
)
from blockbuster.tasks import computing
from blockbuster.thresholds import sample_tiles
from blockbuster.unions import Numbering

__all__ = ["Outcome", "Plan", "check_dtype", "execute"]


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
    retries : int
        How often a tile that fails is tried again.
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
    retries: int = 0

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
    ready(plan, to, scheduler, label_needs)
    check_picklable(scheduler, "fn", plan.kernel)
    check_picklable(scheduler, "merge", plan.rules)
    _check_gpu(plan, scheduler)
    manifest = plan.manifest(target_name(to, plan.image.home, plan.operation))
    if to.write_to is not None:
        return _to_store(plan, to, manifest, scheduler)
    owner = stage_for(to, plan.image.home, manifest)
    job = _job(plan, to, owner.stage, manifest, scheduler)
    graph = _graph(plan, job, owner, scheduler)
    array, count = array_of(graph, plan.grid, plan.tiles, plan.dtype), scalar_of(graph, _n_objects)
    if not to.compute:
        return Outcome(array, count)
    steps = _steps(plan, graph, {graph.key("labels"): Step("writing", 1, max(plan.grid.n_tiles, 1))})
    grids = {graph.key("stage"): (plan.grid, "the function")}
    with run_now(owner, scheduler, None), _shown(plan, to, steps, owner):
        labels, n_objects = computing(lambda: compute_arrays(array, count), owner.stage, scheduler, grids)
        return Outcome(labels, int(n_objects))


def _to_store(plan: Plan, to: Destination, manifest: Manifest, scheduler: Scheduler) -> Outcome:
    """Run everything with a stored array as its sink."""
    sweep_around(to, manifest)
    done = done_before(to, manifest, plan.dtype)
    if done is not None:
        consolidate(to.root)
        _tell(to, None)
        return Outcome(lazy_store(to.root, to.component), done["report"]["n_objects"])
    output = plan_output(
        to.root, to.component, overwrite=to.overwrite, inputs=[home for image in plan.inputs for home in image.homes]
    )
    owner = stage_for(to, plan.image.home, manifest)
    output = replace(output, partial=partial_of(owner.stage, output.partial, str(plan.dtype)), mark=str(plan.dtype))
    job = _job(plan, to, owner.stage, manifest, scheduler, output)
    graph = _graph(plan, job, owner, scheduler)
    numbers = _final_numbers(plan, job.final_grid)
    steps = _steps(plan, graph, {graph.key("finish"): Step("writing", batch_size(numbers), len(numbers))})
    grids = {graph.key("stage"): (plan.grid, "the function"), graph.key("finish"): (job.final_grid, "writing")}
    chunks = chunks_within(plan.grid)
    encoding = new_encoding(plan.grid.shape, zarr_format=format_of(to.root), axes=plan.image.axes, chunks=chunks)
    with run_now(owner, scheduler, output, (LabelOverflowError,)):
        if output.is_begun:
            output.tidy()
        else:
            owner.stage.forget(output.mark)
        output.create(plan.grid.shape, plan.dtype, encoding)
        check_visible(scheduler, "output", output.partial, "write_to")
        with _shown(plan, to, steps, owner):
            report: Report = computing(lambda: compute_value(graph, numbers), owner.stage, scheduler, grids)
        output.annotate({"blockbuster": provenance(manifest, plan.dtype, report=asdict(report))})
        output.commit(overwrite=to.overwrite)
        discard_others(owner.stage, output)
        _tell(to, owner.stage.log)
    return Outcome(lazy_store(output.root, output.component), report.n_objects)


def _steps(plan: Plan, graph: RunGraph, last: dict[str, Step]) -> dict[str, Step]:
    n_tiles = len(plan.tiles)
    return {
        graph.key("stage"): Step("staging", graph.batch, n_tiles),
        graph.key("scan"): Step("merging", graph.scan_batch, n_tiles),
        **last,
    }


def _shown(plan: Plan, to: Destination, steps: dict[str, Step], owner: StageOwner) -> AbstractContextManager[None]:
    return shown(to.progress, steps, len(plan.tiles), owner.stage.log)


def _tell(to: Destination, log: str | None) -> None:
    if to.report is not None:
        to.report(log)


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
        retries=plan.retries,
        use_gpu=plan.use_gpu,
        on_cluster=scheduler.client is not None,
        verbose=to.verbose,
        block_ids=None if plan.block_ids is None else frozenset(plan.block_ids),
        output=output,
    )


def _final_numbers(plan: Plan, final_grid: TileGrid) -> Sequence[int]:
    """Regions of the last step: those that meet a tile of the run."""
    if final_grid is plan.grid:
        return plan.tiles
    if plan.block_ids is None:
        return range(final_grid.n_tiles)
    tiles = map(plan.grid.tile, plan.block_ids)
    return sorted({region.block_id for tile in tiles for region in final_grid.overlapping(tile.start, tile.stop)})


def _rule_words(rule: Rule) -> str:
    if isinstance(rule, Where):
        return f"Where({function_identity(rule.test)}, axes={rule.axes})"
    return repr(rule)
