"""Time ways of labelling a volume side by side: each run in a process of its own, in turns, zarr to zarr.

    python benchmarks/compare_label.py                        # 512^3 smooth blobs in chunks of 128^3
    python benchmarks/compare_label.py --problem random --chunk 64 --only blockbuster "tiles without merge"

Prints the median of the rounds, the ratio of medians to blockbuster, and the highest peak memory of a process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from contestants import CONTESTANTS, N_THREADS, Task
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
        _run_one(options.run, Task(**json.loads(options.task)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        problems = Path(options.folder or folder)
        image, threshold = store_problem(options.problem, options.size, options.chunk, problems)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
        for number in range(options.rounds + 1):
            for name in options.only:
                result = _in_process(name, Task(str(image), str(Path(folder, "labels.zarr")), threshold))
                # The first round warms the file cache.
                if number:
                    runs[name].append(result)
    _print(options, runs)


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


def _in_process(name: str, task: Task) -> dict[str, float]:
    shutil.rmtree(task.labels, ignore_errors=True)
    command = [sys.executable, __file__, "--run", name, "--task", json.dumps(asdict(task))]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def _run_one(name: str, task: Task) -> None:
    """Import first, dask's own late import too: only the work is timed."""
    import distributed  # noqa: F401

    importlib.import_module(IMPORTS.get(name, "zarr"))
    begin = time.perf_counter()
    CONTESTANTS[name](task)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak": _peak_mib()}))


def _peak_mib() -> float:
    """The high-water mark of this program alone: getrusage's is inherited from the program that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def _print(options: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> None:
    medians = {name: statistics.median(r["seconds"] for r in results) for name, results in runs.items()}
    reference = medians.get("blockbuster", min(medians.values()))
    print(
        f"{options.problem} {options.size}, chunks of {options.chunk}, {N_THREADS} threads, {options.rounds} rounds\n"
    )
    print("| | seconds (median) | lowest to highest | times blockbuster | peak memory, MiB |\n|---|---|---|---|---|")
    for name, results in runs.items():
        times = [r["seconds"] for r in results]
        print(
            f"| {name} | {medians[name]:.2f} | {min(times):.2f} to {max(times):.2f} | {medians[name] / reference:.2f} "
            f"| {max(r['peak'] for r in results):.0f} |"
        )


if __name__ == "__main__":
    main()
