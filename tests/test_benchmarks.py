"""The benchmarks still run, at toy size, and their contestants do the same job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.helpers import assert_same_objects

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# The peers come with the extra "benchmark" only.
INSTALLED = ["blockbuster", "scipy in memory", "cc3d in memory"]


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["blobs", "random"])
def test_ways_of_labelling_are_compared(problem: str) -> None:
    size = ["--problem", problem, "--size", "32", "--chunk", "16", "--rounds", "1"]
    printed = run("compare_label.py", *size, "--only", *INSTALLED, "tiles without merge")
    assert all(f"| {name} |" in printed for name in INSTALLED)


@pytest.mark.slow
def test_the_cost_of_a_tile_is_measured() -> None:
    printed = run("tile_cost.py", "--tiles", "16", "--rounds", "1")
    assert "16 tiles" in printed
    assert "LocalCluster" in printed


@pytest.mark.slow
def test_ways_of_copying_are_compared() -> None:
    size = ["--shape", "16", "32", "32", "--chunks", "8", "16", "16", "--to", "4", "16", "16", "--rounds", "1"]
    printed = run("compare_transfer.py", *size, "--only", "blockbuster", "bare loop", "dask", "ome-zarr-py")
    assert printed.count("| blockbuster |") == 4
    assert printed.count("| dask |") == 3
    assert printed.count("| ome-zarr-py |") == 1


@pytest.mark.parametrize("job", ["rechunk", "recode", "same"])
def test_contestants_make_the_same_copy(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from problems import store_camera_noise
    from transfers import TRANSFERS, Transfer

    image = store_camera_noise((16, 32, 32), (8, 16, 16), tmp_path)
    for name in {"blockbuster", "bare loop", "dask"} & set(TRANSFERS[job]):
        copied = tmp_path / f"{name}.zarr"
        TRANSFERS[job][name](Transfer(str(image), str(copied), [8, 16, 16] if job == "same" else [4, 16, 16]))
        np.testing.assert_array_equal(zarr.open_array(copied)[...], zarr.open_array(image)[...])


def test_contestants_find_the_same_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contestants import CONTESTANTS, Task
    from problems import store_problem

    image, threshold = store_problem("blobs", 32, 16, tmp_path)
    made = {}
    for name in INSTALLED:
        labels = tmp_path / f"{name}.zarr"
        CONTESTANTS[name](Task(str(image), str(labels), threshold))
        made[name] = zarr.open_array(labels, mode="r")[...]
    np.testing.assert_array_equal(made["blockbuster"], made["scipy in memory"])
    assert_same_objects(made["cc3d in memory"], made["scipy in memory"])
