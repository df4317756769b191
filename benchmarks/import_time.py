"""Measure what `import blockbuster` takes beside what numpy, dask and dask.array take, and which packages take it.

    python benchmarks/import_time.py

Each import is done in processes of its own, in turns. The times are those of the processor, user and system together,
the least of some rounds: what else the machine does delays an import, and does not shorten it. The packages are timed
by ``python -X importtime``, which slows imports down a little.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile

BASE = "import numpy, dask, dask.array"
STATEMENTS = {
    "numpy, dask, dask.array": BASE,
    "the same and zarr": f"{BASE}, zarr",
    "blockbuster": f"{BASE}, blockbuster",
    "blockbuster.cli": f"{BASE}, blockbuster.cli",
}
TIMING = """
import resource
{}
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        # The byte code of the package may not be there yet, and is there from the first round on.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _times(options.rounds, environment)
        _packages(options.rounds, environment)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def _times(rounds: int, environment: dict[str, str]) -> None:
    runs = [{name: _seconds(code, environment) for name, code in STATEMENTS.items()} for _ in range(rounds + 1)][1:]
    least = {name: min(run[name] for run in runs) for name in STATEMENTS}
    print(f"the least of {rounds} rounds\n")
    print("| import | seconds | beside numpy, dask, dask.array |\n|---|---|---|")
    for name, seconds in least.items():
        print(f"| {name} | {seconds:.2f} | {seconds - least['numpy, dask, dask.array']:.2f} |")


def _seconds(statement: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", TIMING.format(statement)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def _packages(rounds: int, environment: dict[str, str]) -> None:
    """The packages of which the modules that an import adds take the most time, those that they import not counted."""
    runs = [_by_package(environment) for _ in range(rounds)]
    least = {name: min(run[name] for run in runs) for name in runs[0]}
    print("\n| package | milliseconds |\n|---|---|")
    for name, microseconds in sorted(least.items(), key=lambda one: -one[1])[:10]:
        print(f"| {name} | {microseconds / 1e3:.0f} |")


def _by_package(environment: dict[str, str]) -> collections.Counter[str]:
    code = f"{BASE}\nimport sys\nsys.stderr.write('now\\n')\nimport blockbuster"
    command = [sys.executable, "-X", "importtime", "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    taken: collections.Counter[str] = collections.Counter()
    for line in told.partition("now\n")[2].splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        taken[name.strip().partition(".")[0]] += int(own)
    return taken


if __name__ == "__main__":
    main()
