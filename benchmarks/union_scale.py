"""Measure the union alone: the table of 10^8 labels and 10^7 pairs in 98 304 tiles, each step in a process of its own.

    python benchmarks/union_scale.py                          # as a run does it: one task
    python benchmarks/union_scale.py --bands 16               # the same table from 16 bands and a tree of joins
    python benchmarks/union_scale.py --bands 4 --tiles 4 216 216 --labels 187e6 --pairs 19e6

"table" is what the union task does: make the table, and write it to the stage. With `--bands` the pieces of `bands.py`
are run one after the other, and their result is compared with the table of one task, id by id. The seconds are those
that the process computes in the step, without making the synthetic scans that it reads, whatever else the machine does;
for the table also those that pass. The peak memory is that of the process with all that it reads.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bands import (
    Mapping,
    Open,
    Resolved,
    close_band,
    gone_of_band,
    join,
    join_all,
    look_up,
    number_by_first,
    number_by_tile,
    read_band,
    resolve_all,
)
from harness import Result, in_process, peak_mib
from seams import TILES_PER_PART, SyntheticScans

from blockbuster.stage import Stage
from blockbuster.unions import make_table

LOOKUPS = 1000
# What final ids are stored as: 10^8 of them fit int32.
DTYPE = "int32"


@dataclass(frozen=True)
class Problem:
    """What every step knows.

    Attributes
    ----------
    tiles : sequence of int
        Tiles per axis.
    numbering : str
        Of `make_table`: "raster" or "sequential".
    folder : str
        Where steps leave what later ones read.
    """

    tiles: tuple[int, ...]
    labels: int
    pairs: int
    numbering: str
    bands: int
    folder: str

    @property
    def scans(self) -> SyntheticScans:
        """What the scans have found."""
        return SyntheticScans(tuple(self.tiles), self.labels, self.pairs, self.numbering == "raster")

    def at(self, name: str) -> Path:
        """A file."""
        return Path(self.folder, name)

    def save(self, name: str, value: Mapping | Open | Resolved) -> None:
        """Keep the arrays of `value`."""
        for part, array in vars(value).items():
            np.save(self.at(f"{name}-{part}.npy"), array)

    def load(self, kind: type, name: str) -> Mapping | Open | Resolved:
        """What `save` has kept."""
        return kind(*(np.load(self.at(f"{name}-{part}.npy")) for part in kind.__dataclass_fields__))


def main() -> None:
    options = _options()
    if options.run:
        step, *number = options.run.split()
        STEPS[step](Problem(**json.loads(options.task)), *map(int, number))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for numbering in options.numbering:
            Path(folder, numbering).mkdir()
            problem = Problem(
                tuple(options.tiles),
                int(options.labels),
                int(options.pairs),
                numbering,
                options.bands,
                str(Path(folder, numbering)),
            )
            _report(problem)


def _report(problem: Problem) -> None:
    def run(name: str) -> Result:
        return in_process(__file__, name, asdict(problem))

    print(f"\n{problem.tiles} tiles, {problem.numbering} numbering")
    print("\n| step | processes | seconds, most | seconds, sum | peak memory, MiB |\n|---|---|---|---|---|")
    whole = run("table")
    _row("table", [whole])
    if problem.bands:
        each = range(problem.bands)
        _row("close a band", [run(f"close {number}") for number in each])
        joined = run("join")
        _row("join all, resolve all", [joined])
        _row("number a band", [run(f"number {number}") for number in each])
        _row("finish a band", [run(f"finish {number}") for number in each])
        print("\nThe same ids as from one task:", "yes" if run("compare")["same"] else "NO")
        ids, pairs = (f"{joined[name]:.0f} {name}" for name in ("ids", "pairs"))
        print(f"The longest join: {joined['join']:.2f} seconds, {ids}, {pairs}")
    print(", ".join(f"{whole[name]:.0f} {name}" for name in ("labels", "pairs", "objects")), end="; ")
    print(f"the table: {whole['passed']:.1f} s passed; the ids of a tile: {whole['lookup'] * 1e3:.2f} ms")


def _row(name: str, results: list[Result]) -> None:
    seconds, peak = [r["seconds"] for r in results], max(r["peak"] for r in results)
    print(f"| {name} | {len(results)} | {max(seconds):.2f} | {sum(seconds):.2f} | {peak:.0f} |", flush=True)


# The steps, each the whole of a process


def whole_table(problem: Problem) -> None:
    scans = problem.scans
    parts = scans.parts()
    stage = Stage(str(problem.at("stage")))
    stage.make()
    begin, clock = time.process_time(), time.perf_counter()
    made = make_table(parts, scans.grid.n_tiles, numbering=problem.numbering, dtype=DTYPE)
    stage.write_table(made)
    seconds, passed = time.process_time() - begin, time.perf_counter() - clock
    facts = {"passed": passed, "labels": int(made.outline.offsets[-1]), "objects": made.outline.n_objects}
    del made
    chosen = np.random.default_rng(0).integers(0, scans.grid.n_tiles, LOOKUPS).tolist()
    begin = time.process_time()
    for block_id in chosen:
        stage.lookup(block_id, DTYPE)
    lookup = (time.process_time() - begin) / LOOKUPS
    _tell(seconds, **facts, pairs=sum(len(p.pairs) for p in parts), lookup=lookup)


def close_one(problem: Problem, number: int) -> None:
    band = read_band(problem.scans, number, problem.bands)

    def work() -> None:
        mapping, shown = close_band(band)
        problem.save(f"mapping{number}", mapping)
        problem.save(f"shown{number}", shown)

    np.save(problem.at(f"extent{number}.npy"), [band.low, band.high])
    _tell(_seconds(work))


def join_bands(problem: Problem) -> None:
    each = range(problem.bands)
    shown = [problem.load(Open, f"shown{number}") for number in each]
    begin = time.process_time()
    levels = join_all(shown)
    for number, told in enumerate(resolve_all(levels)):
        problem.save(f"told{number}", told)
        n_local = np.load(problem.at(f"mapping{number}-gone.npy"), mmap_mode="r").size
        np.save(problem.at(f"n_gone{number}.npy"), n_local + np.count_nonzero(told.roots != told.ids))
    seconds = time.process_time() - begin
    longest = {"join": 0.0, "pairs": 0, "ids": 0}
    for level in levels:
        for before, after in zip(level.rows[::2], level.rows[1::2], strict=False):
            took = _seconds(functools.partial(join, before, after))
            if took > longest["join"]:
                longest = {"join": took, "pairs": before.upper.size, "ids": before.ids.size + after.ids.size}
    _tell(seconds, **longest)


def number_one(problem: Problem, number: int) -> None:
    band = read_band(problem.scans, number, problem.bands)

    def work() -> None:
        told = problem.load(Resolved, f"told{number}")
        gone = gone_of_band(problem.load(Mapping, f"mapping{number}"), told)
        problem.save(f"gone{number}", gone)
        n_before = sum(int(np.load(problem.at(f"n_gone{k}.npy"))) for k in range(number))
        if problem.numbering == "raster":
            ids, asked = number_by_first(band, gone, told, band.low - n_before, DTYPE)
            np.save(problem.at(f"ids{number}.npy"), ids)
        else:
            asked = number_by_tile(band, gone, told, n_before)
        problem.save(f"numbered{number}", asked)

    _tell(_seconds(work))


def finish_one(problem: Problem, number: int) -> None:
    lows = np.array([np.load(problem.at(f"extent{k}.npy"))[0] for k in range(problem.bands)])

    def work() -> None:
        gone = problem.load(Mapping, f"gone{number}")
        low = lows[number]
        if problem.numbering == "raster":
            ids = np.load(problem.at(f"ids{number}.npy"), mmap_mode="r+")
            others = gone.become <= low
            ids[gone.gone[others] - low - 1] = look_up(gone.become[others], lows, _numbered_by(problem))
            ids.flush()
            return
        n_before = sum(int(np.load(problem.at(f"n_gone{k}.npy"))) for k in range(number))

        def numbered(k: int) -> Callable[[np.ndarray], np.ndarray]:
            if k != number:
                return _numbered_by(problem)(k)
            return lambda ids: ids - n_before - np.searchsorted(gone.gone, ids)

        np.save(problem.at(f"targets{number}.npy"), look_up(gone.become, lows, numbered))

    _tell(_seconds(work))


def _numbered_by(problem: Problem) -> Callable[[int], Callable[[np.ndarray], np.ndarray]]:
    return lambda k: problem.load(Mapping, f"numbered{k}").of


def compare(problem: Problem) -> None:
    print(json.dumps({"same": is_same(problem)}))


def is_same(problem: Problem) -> bool:
    """Whether the files of the bands, one after the other, are those of the table."""
    pieces = {"ids": "ids{}"} if problem.numbering == "raster" else {"absorbed": "gone{}-gone", "targets": "targets{}"}
    return all(_is_same(problem, name, piece) for name, piece in pieces.items())


def _is_same(problem: Problem, name: str, piece: str) -> bool:
    whole = np.fromfile(problem.at(f"stage/table/{name}"), DTYPE if name == "ids" else np.int64)
    parts = [np.load(problem.at(f"{piece.format(k)}.npy"), mmap_mode="r") for k in range(problem.bands)]
    ends = np.cumsum([part.size for part in parts])
    return whole.size == ends[-1] and all(
        np.array_equal(whole[end - part.size : end], part) for end, part in zip(ends, parts, strict=True)
    )


STEPS = {
    "table": whole_table,
    "close": close_one,
    "join": join_bands,
    "number": number_one,
    "finish": finish_one,
    "compare": compare,
}


def _seconds(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _tell(seconds: float, **facts: float) -> None:
    print(json.dumps({"seconds": seconds, "peak": peak_mib(), **facts}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", nargs=3, type=int, default=[48, 32, 64], help="tiles per axis")
    parser.add_argument("--labels", type=float, default=1e8)
    parser.add_argument("--pairs", type=float, default=1e7)
    parser.add_argument("--numbering", nargs="+", choices=["raster", "sequential"], default=["raster", "sequential"])
    parser.add_argument("--bands", type=int, default=0)
    parser.add_argument("--folder", help="where to keep files in between; several GB")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    per_layer = options.tiles[1] * options.tiles[2]
    if options.bands and (options.bands > options.tiles[0] or per_layer % TILES_PER_PART):
        parser.error(f"--bands needs as many layers of tiles, each of a multiple of {TILES_PER_PART} tiles")
    return options


if __name__ == "__main__":
    main()
