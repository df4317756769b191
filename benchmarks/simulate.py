"""Predict a run on a large cluster: the task graph of the run, measured times of its tasks, a simulated cluster.

    python benchmarks/simulate.py                          # measure, check the simulation on 2 workers, predict
    python benchmarks/simulate.py --blocks 4 2 2 --side 64 --volume 8 8 8 --workers 20      # all small

1. `label` runs on a LocalCluster of one worker, then on one of two; all their tasks are recorded. A run whose steps do
   nothing tells what the scheduler takes per task, and what it takes to build the graph and send it. The union of
   synthetic seams tells what it takes per label.
2. The run on two workers is simulated, with the times of its own tasks and with those of the run on one worker, and
   compared with what it took.
3. The graph is built for the large volume, by the same functions, and simulated on the large cluster; `simulation.py`
   says what is modelled. Storage, stragglers and losses are assumptions, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from banding import in_bands
from bands import close_band, gone_of_band, join_all, look_up, number_by_first, read_band, resolve_all
from empty_runs import empty_graph, run_empty
from problems import store_mirrored_blobs
from recording import Ran, recorded, span, step_of
from seams import SyntheticScans
from simulation import Cluster, Cost, Graph, Outcome, longest_chain, simulate

import blockbuster
from blockbuster.grid import TileGrid
from blockbuster.stage import Stage
from blockbuster.unions import make_table

# The steps of a run, in their order; tasks of later ones are sent out first.
STEPS = ("begin", "sample", "stage", "scan", "unite", "finish", "end")
# Steps whose work is that of their tiles, and what one task of them draws its time from.
PER_TILE = ("stage", "scan", "finish")
DRAWN = 1000
# How large the runs are that tell what the scheduler and the union take.
EMPTY_TILES = 10_000
UNION_LABELS = 20_000_000
# Assumed: bytes per second of a shared storage, and of one worker; stragglers; losses per worker and second.
STORAGE, LINK = 20e9, 1e9
SPREAD = 0.5
LOSSES = 1 / (10 * 3600)


@dataclass(frozen=True)
class Measured:
    """What was measured, all of it in seconds and bytes.

    Attributes
    ----------
    times, times_two : dict of list of float
        Of the tasks of each step, on one worker and on two.
    span_one, span_two : float
        From the start of the first task to the end of the last one, on one worker and on two.
    n_tiles, n_labels : int
        Of that run.
    stage_bytes, finish_bytes : float
        What a task of these steps reads and writes.
    again : float
        Share of the time of staging a tile that it takes to see that it is staged.
    send, handle : float
        What the scheduler takes per task, and what a worker takes beside the work of a task, on one worker.
    deliver : float
        What it takes per task, of a graph that is built, until the first one starts.
    union, close, number, finish : float
        Of the union task, and of the pieces of a union in bands, per label.
    join : float
        Of a join of bands, per id that they show.
    """

    times: dict[str, list[float]]
    times_two: dict[str, list[float]]
    span_one: float
    span_two: float
    n_tiles: int
    n_labels: int
    stage_bytes: float
    finish_bytes: float
    again: float
    send: float
    handle: float
    deliver: float
    union: float
    close: float
    number: float
    finish: float
    join: float


def main() -> None:
    options = _options()
    if options.measured and Path(options.measured).exists():
        measured = Measured(**json.loads(Path(options.measured).read_text()))
    else:
        measured = measure(tuple(options.blocks), options.side, options.folder, small=options.small)
        if options.measured:
            Path(options.measured).write_text(json.dumps(asdict(measured)))
    _report_measured(measured)
    _report_check(measured, _grid(options.blocks, options.side))
    _report_predictions(measured, _grid(options.volume, options.side), options.workers, options.bands)


def _grid(n_tiles: Sequence[int], side: int) -> TileGrid:
    return TileGrid.regular([n * side for n in n_tiles], (side,) * len(n_tiles))


# What is measured


def measure(blocks: tuple[int, ...], side: int, folder: str | None, *, small: bool) -> Measured:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        image, threshold = store_mirrored_blobs(blocks, side, Path(made))
        labels, stages = Path(made, "labels.zarr"), Path(made, "stages")

        def run(n_workers: int, **options: Any) -> dict[str, list[Ran]]:
            with blockbuster.make_local_cluster(n_workers=n_workers) as (_, cluster):
                # Once before: workers import, and the image comes into the file cache.
                for _ in range(2):
                    with recorded(cluster) as recorder:
                        blockbuster.label(image, threshold=threshold, write_to=labels, overwrite=True, **options)
                return recorder.steps

        one, two = run(1), run(2)
        blockbuster.label(
            image, threshold=threshold, write_to=labels, overwrite=True, stage_dir=stages, keep_stage=True
        )
        n_tiles = math.prod(blocks)
        stage = Stage(str(next(stages.iterdir())))
        times, times_two = ({step: [ran.seconds for ran in tasks] for step, tasks in run.items()} for run in (one, two))
        begin = time.perf_counter()
        assert all(stage.has_tile(number) for number in range(n_tiles))
        seen = (time.perf_counter() - begin) / n_tiles
        sizes = {path: _stored(path) / n_tiles for path in (image, stages, labels)}
        report = zarr.open_array(labels, path="labels").attrs["blockbuster"]["report"]
    send, deliver = _empty_run(EMPTY_TILES // 100 if small else EMPTY_TILES)
    span_one, span_two = (span([ran for tasks in run.values() for ran in tasks]) for run in (one, two))
    each = [seconds for tasks in times.values() for seconds in tasks]
    return Measured(
        times=times,
        times_two=times_two,
        span_one=span_one,
        span_two=span_two,
        n_tiles=n_tiles,
        n_labels=report["n_labels"],
        stage_bytes=sizes[image] + sizes[stages],
        finish_bytes=sizes[stages] + sizes[labels],
        again=min(seen / float(np.mean(times["stage"])), 1.0),
        send=send,
        handle=(span_one - sum(each)) / len(each),
        deliver=deliver,
        **_union_seconds(UNION_LABELS // 100 if small else UNION_LABELS),
    )


def _stored(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _empty_run(n_tiles: int) -> tuple[float, float]:
    """What the scheduler takes per task; and what it takes per task of a built graph until the first one starts."""
    grid = TileGrid.regular((n_tiles,), (1,))
    begin = time.perf_counter()
    n_tasks = len(empty_graph(grid))
    build = time.perf_counter() - begin
    with blockbuster.make_local_cluster(n_workers=2) as (_, cluster), recorded(cluster) as recorder:
        begin = time.time()
        run_empty(grid)
    first = min(ran.start for ran in recorder.ran)
    return recorder.seconds_per_task, (first - begin - build) / n_tasks


def _union_seconds(n_labels: int) -> dict[str, float]:
    """Seconds per label of the union in one task, and of the pieces of that in bands."""
    scans = SyntheticScans((16, 32, 32), n_labels, n_labels // 10, has_first=True)
    parts = scans.parts()
    begin = time.perf_counter()
    make_table(parts, scans.grid.n_tiles, numbering="raster", dtype="int32")
    whole = time.perf_counter() - begin
    bands = [read_band(scans, number, 2) for number in range(2)]
    begin = time.perf_counter()
    closed = [close_band(band) for band in bands]
    close = time.perf_counter() - begin
    begin = time.perf_counter()
    levels = join_all([shown for _, shown in closed])
    told = resolve_all(levels)
    join = time.perf_counter() - begin
    begin = time.perf_counter()
    gone = [gone_of_band(mapping, one) for (mapping, _), one in zip(closed, told, strict=True)]
    numbered = [number_by_first(band, *of, band.low, "int32") for band, *of in zip(bands, gone, told, strict=True)]
    number = time.perf_counter() - begin
    begin = time.perf_counter()
    lows = np.array([band.low for band in bands])
    for band, mapping in zip(bands, gone, strict=True):
        look_up(mapping.become[mapping.become <= band.low], lows, lambda k: numbered[k][1].of)
    finish = time.perf_counter() - begin
    n_labels, n_shown = int(scans.counts.sum()), sum(shown.ids.size for _, shown in closed)
    whole, close, number, finish = (seconds / n_labels for seconds in (whole, close, number, finish))
    return {"union": whole, "close": close, "number": number, "finish": finish, "join": join / n_shown}


# From measurements to costs


def costs_of(measured: Measured, graph: Graph, n_tiles: int, n_labels: int) -> dict[str, Cost]:
    """What the tasks of a graph take: those of a tile as measured, those of several tiles as long as these together."""
    n_tasks = Counter(graph.steps)
    rng = np.random.default_rng(0)
    costs = {}
    for step, seconds in measured.times.items():
        n_measured = len(seconds)
        if step in PER_TILE:
            each = (n_tiles / n_tasks[step]) / (measured.n_tiles / n_measured)
            seconds = rng.choice(seconds, (DRAWN, max(round(each), 1))).mean(axis=1) * each
        n_bytes = {"stage": measured.stage_bytes, "finish": measured.finish_bytes}.get(step, 0.0)
        again = measured.again if step in ("stage", "finish") else 1.0
        costs[step] = Cost(seconds, n_bytes * n_tiles / max(n_tasks[step], 1), again)
    costs["unite"] = Cost([max(measured.union * n_labels, float(np.mean(measured.times["unite"])))])
    return costs


def costs_in_bands(measured: Measured, grid: TileGrid, n_labels: int, n_bands: int) -> dict[str, Cost]:
    """What the pieces of a union in bands take, as many labels being at seams as in the synthetic ones: a tenth."""
    # Each of two rows shows the labels at both of its borders; one in three seams is one over the first axis.
    at_borders = 4 * n_labels * 0.1 / (grid.ndim * grid.numblocks[0])
    of_bands = {"close a band": measured.close, "number a band": measured.number, "finish a band": measured.finish}
    join = Cost([measured.join * at_borders])
    pieces = {step: Cost([seconds * n_labels / n_bands]) for step, seconds in of_bands.items()}
    return {**pieces, "join bands": join, "resolve": join, "gather": Cost([0.0])}


def graph_of(tasks: Mapping[Any, Any]) -> Graph:
    """The tasks of a run, as dask is given them."""
    keys = sorted(tasks, key=lambda key: (STEPS.index(step_of(key)), key))
    numbers = {key: number for number, key in enumerate(keys)}
    needs = [tuple(numbers[other] for other in tasks[key].dependencies) for key in keys]
    return Graph([step_of(key) for key in keys], needs, [(-STEPS.index(step_of(key)), n) for key, n in numbers.items()])


# What is told


def _report_measured(measured: Measured) -> None:
    print(f"Measured: {measured.n_tiles} tiles, {measured.n_labels} labels\n")
    print("| step | tasks | seconds of a task, mean | lowest to highest |\n|---|---|---|---|")
    for step, seconds in measured.times.items():
        low, high = min(seconds), max(seconds)
        print(f"| {step} | {len(seconds)} | {np.mean(seconds):.4f} | {low:.4f} to {high:.4f} |")
    send, deliver = measured.send * 1e3, measured.deliver * 1e3
    print(f"\nscheduler: {send:.2f} ms per task, and {deliver:.2f} ms before the first one starts", end="; ")
    print(f"a worker, beside the work: {measured.handle * 1e3:.2f} ms per task")
    pieces = measured.close + measured.number + measured.finish
    print(f"union, ns per label: {measured.union * 1e9:.0f}; in bands {pieces * 1e9:.0f}", end=", ")
    print(f"and {measured.join * 1e9:.0f} per label at a border")
    stage, finish = measured.stage_bytes / 2**20, measured.finish_bytes / 2**20
    print(f"stored bytes that a tile moves: staging {stage:.1f} MiB, finishing {finish:.1f} MiB")


def _report_check(measured: Measured, grid: TileGrid) -> None:
    graph = graph_of(empty_graph(grid))
    print("\n| workers | times of tasks from | measured, s | simulated, s | difference |\n|---|---|---|---|---|")
    for n_workers, source, times, took in (
        (1, "this run", measured.times, measured.span_one),
        (2, "this run", measured.times_two, measured.span_two),
        (2, "the run on 1", measured.times, measured.span_two),
    ):
        costs = {step: Cost(seconds) for step, seconds in times.items()}
        made = simulate(graph, costs, Cluster(n_workers, send=measured.send, handle=measured.handle)).makespan
        print(f"| {n_workers} | {source} | {took:.2f} | {made:.2f} | {(made / took - 1) * 100:+.0f} % |")


def _report_predictions(measured: Measured, grid: TileGrid, n_workers: int, n_bands: int) -> None:
    n_tiles, n_labels = grid.n_tiles, round(measured.n_labels / measured.n_tiles * grid.n_tiles)
    begin = time.process_time()
    tasks = empty_graph(grid)
    build = time.process_time() - begin
    graph = graph_of(tasks)
    costs = costs_of(measured, graph, n_tiles, n_labels)
    work = sum(float(np.mean(costs[step].seconds)) * n for step, n in Counter(graph.steps).items())
    chain = longest_chain(graph, costs)
    tera = math.prod(grid.shape) * 2 / 1e12
    print(f"\n{tera:.1f} TB of uint16, {n_tiles} tiles, {len(graph.steps)} tasks, {n_labels:.2g} labels")
    print(
        f"{n_workers} workers: work {work / 3600:.1f} h, {work / n_workers:.0f} s each; longest chain {chain:.0f} s\n"
    )
    print("| | makespan, s | workers busy | where the makespan comes from, s |\n|---|---|---|---|")
    until = build + measured.deliver * len(graph.steps)
    plain = Cluster(n_workers, begin=until, send=measured.send, handle=measured.handle)
    slow = replace(plain, bandwidth=STORAGE, link=LINK)
    cases = {
        "as measured": plain,
        f"storage of {STORAGE / 1e9:.0f} GB/s": slow,
        f"and stragglers, sigma {SPREAD}": replace(slow, spread=SPREAD),
        f"and a loss per worker and {1 / LOSSES / 3600:.0f} h": replace(slow, spread=SPREAD, losses=LOSSES),
    }
    for name, cluster in cases.items():
        _tell(name, simulate(graph, costs, cluster))
    if n_bands:
        banded, piece_costs = in_bands(graph, n_bands), costs_in_bands(measured, grid, n_labels, n_bands)
        _tell(f"as measured, union in {n_bands} bands", simulate(banded, {**costs, **piece_costs}, plain))


def _tell(name: str, made: Outcome) -> None:
    parts = sorted(made.critical.items(), key=lambda part: -part[1])
    told = ", ".join(f"{step} {seconds:.0f}" for step, seconds in parts if seconds >= 0.005 * made.makespan)
    lost = f"; {made.n_lost} workers lost, {made.n_again} tasks again" if made.n_lost else ""
    print(f"| {name} | {made.makespan:.0f} | {made.busy * 100:.0f} % | {told}{lost} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs=3, type=int, default=[4, 4, 4], help="tiles of the volume that is measured")
    parser.add_argument("--side", type=int, default=256, help="voxels of a tile along each axis")
    parser.add_argument("--volume", nargs=3, type=int, default=[40, 80, 96], help="tiles of the large volume")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--bands", type=int, default=40, help="bands of the union; 0 leaves that out")
    parser.add_argument("--small", action="store_true", help="measure scheduler and union on next to nothing")
    parser.add_argument("--measured", help="file where measurements are kept for the next time")
    parser.add_argument("--folder", help="where the volume is made, for the time of the run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
