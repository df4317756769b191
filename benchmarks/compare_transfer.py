"""Time ways of copying 1 GiB of camera noise from zarr to zarr, and of making its pyramid, side by side.

    python benchmarks/compare_transfer.py                   # other chunks and codec; another codec; the same; a pyramid
    python benchmarks/compare_transfer.py --job pyramid --rounds 5

The volume is uint16, in chunks of 128 x 256 x 256. Each run has a process of its own, in turns; see `transfers.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from contestants import N_THREADS
from harness import Result, in_process, in_turns, run_one, table
from problems import store_camera_noise
from transfers import IMPORTS, TRANSFERS, Transfer


def main() -> None:
    options = _options()
    if options.run:
        job, name = options.run.split(": ")
        task = Transfer(**json.loads(options.task))
        run_one(lambda: TRANSFERS[job][name](task), IMPORTS[name])
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shape, chunks = tuple(options.shape), tuple(options.chunks)
        image = store_camera_noise(shape, chunks, Path(options.folder or folder))
        print(
            f"{' x '.join(map(str, shape))} uint16 in chunks of {chunks}, {N_THREADS} threads, {options.rounds} rounds"
        )
        for job in options.job:
            wanted = [n if n > 1 and job == "rechunk" else c for n, c in zip(options.to, chunks, strict=True)]
            task = Transfer(str(image), str(Path(folder, "result.zarr")), wanted)

            def run(name: str, job: str = job, task: Transfer = task) -> Result:
                shutil.rmtree(task.result, ignore_errors=True)
                return in_process(__file__, f"{job}: {name}", asdict(task))

            names = [name for name in TRANSFERS[job] if options.only is None or name in options.only]
            print(f"\n{job}, to chunks of {tuple(wanted)}\n")
            table(in_turns(names, options.rounds, run), "blockbuster")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", nargs="+", choices=TRANSFERS, default=list(TRANSFERS))
    parser.add_argument("--shape", nargs=3, type=int, default=[512, 1024, 1024])
    parser.add_argument("--chunks", nargs=3, type=int, default=[128, 256, 256])
    parser.add_argument("--to", nargs=3, type=int, default=[64, 128, 128], help="chunks of the copy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=IMPORTS)
    parser.add_argument("--folder", help="where the volume is kept for the next time")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
