"""Time ways of labelling a volume side by side: each run in a process of its own, in turns, zarr to zarr.

    python benchmarks/compare_label.py                        # 512^3 smooth blobs in chunks of 128^3
    python benchmarks/compare_label.py --problem random --chunk 64 --only blockbuster "tiles without merge"

Prints the median of the rounds, the ratio of medians to blockbuster, and the highest peak memory of a process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from contestants import CONTESTANTS, N_THREADS, Task
from harness import Result, in_process, in_turns, run_one, table
from problems import PROBLEMS, store_problem

IMPORTS = {
    "blockbuster": "blockbuster",
    "tiles without merge": "blockbuster",
    "bioimage-py": "bioimage_py.segmentation",
    "dask-image": "dask_image.ndmeasure",
    "scipy in memory": "scipy.ndimage",
    "cc3d in memory": "cc3d",
}
DEFAULT = ["blockbuster", "tiles without merge", "bioimage-py", "scipy in memory", "cc3d in memory"]


def main() -> None:
    options = _options()
    if options.run:
        task = Task(**json.loads(options.task))
        run_one(lambda: CONTESTANTS[options.run](task), IMPORTS.get(options.run, "zarr"))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        problems = Path(options.folder or folder)
        image, threshold = store_problem(options.problem, options.size, options.chunk, problems)
        task = Task(str(image), str(Path(folder, "labels.zarr")), threshold)

        def run(name: str) -> Result:
            shutil.rmtree(task.labels, ignore_errors=True)
            return in_process(__file__, name, asdict(task))

        runs = in_turns(options.only, options.rounds, run)
    print(
        f"{options.problem} {options.size}, chunks of {options.chunk}, {N_THREADS} threads, {options.rounds} rounds\n"
    )
    table(runs, "blockbuster")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, default="blobs")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=DEFAULT)
    parser.add_argument("--folder", help="where the image is kept for the next time")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
