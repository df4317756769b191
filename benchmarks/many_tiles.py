"""Measure runs of very many tiny tiles on a LocalCluster of two workers: the graph alone, and end to end.

    python benchmarks/many_tiles.py                              # 100 000 tiles of 32 x 32 pixels
    python benchmarks/many_tiles.py --tiles 1000000 --empty      # none of which has anything in it

"graph" is a run whose steps do nothing. "end to end" is `label` from zarr to zarr, every call and file of which costs
something: an image in as many chunks, a record of each tile in the stage, and as many chunks of labels; of empty tiles
neither the chunks of the image nor those of the labels are stored. The client and the scheduler share a process, whose
peak memory is that of both. The columns are the time that passed, and how long the processes computed in it, both in
milliseconds per tile; what others do on the machine disturbs the second less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr
from distributed import Client
from empty_runs import empty_graph, run_empty
from harness import Result, in_process, peak_mib

import blockbuster
from blockbuster.grid import TileGrid

TILE = 32
N_WORKERS = 2


@dataclass(frozen=True)
class Case:
    """A square of tiles.

    Attributes
    ----------
    side : int
        Tiles along each axis.
    empty : bool
        Whether there is nothing in them.
    """

    side: int
    empty: bool
    folder: str

    @property
    def grid(self) -> TileGrid:
        """The tiles."""
        return TileGrid.regular((self.side * TILE,) * 2, (TILE, TILE))

    @property
    def image(self) -> Path:
        """The image."""
        return Path(self.folder, "image.zarr")

    @property
    def labels(self) -> Path:
        """What becomes of it."""
        return Path(self.folder, "labels.zarr")


def main() -> None:
    options = _options()
    if options.run:
        STEPS[options.run](Case(**json.loads(options.task)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        case = Case(round(options.tiles**0.5), options.empty, folder)
        make(case)
        tasks = len(empty_graph(case.grid))
        n_tiles = case.grid.n_tiles
        kind = "empty tiles" if case.empty else "tiles with 40 % of their pixels set"
        print(f"{n_tiles} {kind} of {TILE} x {TILE}, {tasks} tasks, {N_WORKERS} workers\n")
        print("| | ms per tile | computed: client, scheduler | computed: workers | seconds | peak MiB | of a worker |")
        print("|---|---|---|---|---|---|---|")
        for name in options.only:
            _row(name, in_process(__file__, name, asdict(case)), n_tiles)


def make(case: Case) -> None:
    """Store the image, a row of tiles after the other."""
    shape = case.grid.shape
    image = zarr.create_array(case.image, shape=shape, chunks=(TILE, TILE), dtype="uint8", fill_value=0)
    rng = np.random.default_rng(0)
    for row in () if case.empty else range(0, shape[0], TILE):
        image[row : row + TILE] = rng.random((TILE, shape[1]), np.float32) < 0.4


def graph(case: Case) -> None:
    with blockbuster.make_local_cluster(n_workers=N_WORKERS) as (client, _):
        begin = time.perf_counter()
        run_empty(case.grid)
        _tell(client, time.perf_counter() - begin)


def label(case: Case) -> None:
    with blockbuster.make_local_cluster(n_workers=N_WORKERS) as (client, _):
        begin = time.perf_counter()
        blockbuster.label(case.image, write_to=case.labels, dtype="int64")
        _tell(client, time.perf_counter() - begin)


STEPS = {"graph": graph, "end to end": label}


def _tell(client: Client, seconds: float) -> None:
    peaks, times = client.run(peak_mib).values(), client.run(time.process_time).values()
    told = {"cpu": time.process_time(), "cpu_workers": sum(times), "peak": peak_mib(), "peak_worker": max(peaks)}
    print(json.dumps({"seconds": seconds, **told}))


def _row(name: str, result: Result, n_tiles: int) -> None:
    each = " | ".join(f"{result[kind] / n_tiles * 1e3:.2f}" for kind in ("seconds", "cpu", "cpu_workers"))
    peaks = f"{result['peak']:.0f} | {result['peak_worker']:.0f}"
    print(f"| {name} | {each} | {result['seconds']:.0f} | {peaks} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000, help="about how many; they make a square")
    parser.add_argument("--empty", action="store_true", help="with nothing in them")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folder", help="where the image is made, for the time of the run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
