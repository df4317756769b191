"""Time contestants side by side: each run in a process of its own, in turns."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Result = dict[str, float]


def in_process(script: str, name: str, task: dict[str, object]) -> Result:
    """One run of a contestant by ``script --run name --task ...``."""
    command = [sys.executable, script, "--run", name, "--task", json.dumps(task)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{name} failed:\n{answer.stderr[-4000:]}")
    result: Result = json.loads(answer.stdout.splitlines()[-1])
    return result


def run_one(work: Callable[[], object], module: str) -> None:
    """Import first, dask's own late import too: only the work is timed."""
    import distributed  # noqa: F401

    importlib.import_module(module)
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak": peak_mib()}))


def table(runs: dict[str, list[Result]], reference: str) -> None:
    """Median, range, ratio of medians to the reference, and the highest peak memory of a process."""
    medians = {name: statistics.median(r["seconds"] for r in results) for name, results in runs.items()}
    base = medians.get(reference, min(medians.values()))
    print(f"| | seconds (median) | lowest to highest | times {reference} | peak memory, MiB |\n|---|---|---|---|---|")
    for name, results in runs.items():
        times = [r["seconds"] for r in results]
        print(
            f"| {name} | {medians[name]:.2f} | {min(times):.2f} to {max(times):.2f} | {medians[name] / base:.2f} "
            f"| {max(r['peak'] for r in results):.0f} |"
        )


def in_turns(names: Sequence[str], rounds: int, run: Callable[[str], Result]) -> dict[str, list[Result]]:
    """The results of some rounds of all contestants, after one that warms the file cache."""
    runs: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            result = run(name)
            if number:
                runs[name].append(result)
    return runs


def peak_mib() -> float:
    """The high-water mark of this program alone: getrusage's is inherited from the program that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
