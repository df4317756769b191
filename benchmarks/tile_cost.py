"""Measure what a tile costs when there is next to nothing to do in it: 10 000 tiles of 32 x 32 pixels.

    python benchmarks/tile_cost.py                # threads, and a LocalCluster of two worker processes

"graph": building and running the graph of a run whose steps do nothing. "end to end": `label` from zarr to zarr.
"zarr alone": one read and one write of each tile on one thread, the least that any system built on zarr has to do.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dask
import zarr
from contestants import N_THREADS
from empty_runs import run_empty
from problems import store_problem

import blockbuster
from blockbuster.grid import TileGrid
from blockbuster.stores import with_fast_codecs

TILE = 32


def main() -> None:
    options = _options()
    n_side = round(options.tiles**0.5)
    with tempfile.TemporaryDirectory() as folder:
        image, _ = store_problem("tiny", n_side * TILE, TILE, Path(folder))
        print(f"{n_side**2} tiles of {TILE} x {TILE}; milliseconds per tile, the best of {options.rounds}\n")
        print("| | graph, ms | end to end, ms |\n|---|---|---|")
        with dask.config.set(scheduler="threads", num_workers=N_THREADS):
            _row(f"{N_THREADS} threads", n_side, image, Path(folder), options.rounds)
        with blockbuster.make_local_cluster(n_workers=2):
            _row("LocalCluster, 2 workers", n_side, image, Path(folder), options.rounds)
        with blockbuster.make_local_cluster(n_workers=2, security=False):
            _row("LocalCluster, 2 workers, no TLS", n_side, image, Path(folder), options.rounds)
        alone = _best(lambda: _zarr_alone(image, Path(folder)), options.rounds)
        print(f"| zarr alone, 1 thread | | {alone / n_side**2 * 1e3:.2f} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _row(name: str, n_side: int, image: Path, folder: Path, rounds: int) -> None:
    grid = TileGrid.regular((n_side * TILE,) * 2, (TILE, TILE))
    graph = _best(lambda: run_empty(grid), rounds)
    whole = _best(lambda: blockbuster.label(image, write_to=folder / "labels.zarr", overwrite=True), rounds)
    print(f"| {name} | {graph / n_side**2 * 1e3:.2f} | {whole / n_side**2 * 1e3:.2f} |")


def _zarr_alone(image: Path, folder: Path) -> None:
    source = with_fast_codecs(zarr.open_array(image, mode="r"))
    sink = zarr.create_array(
        folder / "copy.zarr", shape=source.shape, chunks=source.chunks, dtype="int32", overwrite=True
    )
    sink = with_fast_codecs(sink)
    for y, x in itertools.product(range(0, source.shape[0], TILE), range(0, source.shape[1], TILE)):
        region = slice(y, y + TILE), slice(x, x + TILE)
        sink[region] = source[region]


def _best(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main()
