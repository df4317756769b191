"""The benchmarks still run, at toy size, and their contestants do the same job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from blockbuster.grid import TileGrid
from tests.helpers import assert_same_objects

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# The peers come with the extra "benchmark" only.
INSTALLED = ["blockbuster", "scipy in memory", "cc3d in memory"]


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.long
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
def test_the_time_of_an_import_is_measured() -> None:
    printed = run("import_time.py", "--rounds", "1")
    assert "| blockbuster.cli |" in printed
    assert "| zarr |" in printed


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("union_scale.py", "--tiles 4 8 8 --labels 5000 --pairs 2000 --bands 2", "as from one task: yes"),
        ("sparse_volume.py", "--side 256 --tile 64 64 64", "numbers of voxels: all of 10"),
        ("many_tiles.py", "--tiles 16", "| end to end |"),
        ("many_tiles.py", "--tiles 16 --empty", "16 empty tiles"),
        ("spots.py", "--shape 64 96 96 --tile 32 48 48 --rounds 1 --blobs 1000", "0 of both are not the same"),
        ("speed_up.py", "--size 32 --chunk 16 --shape 16 32 32 --chunks 8 16 16 --rounds 1", "| pyramid |"),
        ("simulate.py", "--blocks 2 2 1 --side 32 --volume 4 4 4 --workers 8 --bands 2 --small", "union in 2 bands"),
    ],
)
def test_what_large_runs_take_is_measured(script: str, options: str, words: str) -> None:
    assert words in run(script, *options.split())


@pytest.mark.long
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


# The simulation


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import simulation

    return simulation


def _fan(sim: Any, n: int) -> Any:
    """A graph of n tasks, and one that needs them all."""
    return sim.Graph(["work"] * n + ["join"], [()] * n + [tuple(range(n))], [(0, k) for k in range(n + 1)])


def _costs(sim: Any, n_bytes: float = 0.0, again: float = 1.0) -> Any:
    return {"work": sim.Cost([1.0], n_bytes, again), "join": sim.Cost([3.0])}


@pytest.mark.parametrize(("n_workers", "makespan"), [(1, 7), (2, 5), (3, 5), (4, 4), (100, 4)])
def test_workers_share_the_tasks(sim: Any, n_workers: int, makespan: float) -> None:
    made = sim.simulate(_fan(sim, 4), _costs(sim), sim.Cluster(n_workers))
    assert made.makespan == makespan
    assert made.busy == pytest.approx(7 / (n_workers * makespan))
    assert made.critical == {"work": makespan - 3, "join": 3}


def test_no_number_of_workers_goes_below_the_longest_chain(sim: Any) -> None:
    graph = sim.Graph(["work", "work", "join", "work"], [(), (0,), (1,), ()], [0, 1, 2, 3])
    assert sim.longest_chain(graph, _costs(sim)) == 5
    assert sim.simulate(graph, _costs(sim), sim.Cluster(100)).makespan == 5


def test_a_slow_scheduler_bounds_a_large_cluster(sim: Any) -> None:
    made = sim.simulate(_fan(sim, 4), _costs(sim), sim.Cluster(100, begin=10, send=2))
    # Sent at 12, 14, 16, 18; the last is done at 19, what needs it is sent until 21 and done at 24.
    assert made.makespan == 24
    assert made.critical == {"before the first task": 10, "scheduler": 10, "work": 1, "join": 3}


def test_tasks_that_workers_hold_hide_a_fast_scheduler(sim: Any) -> None:
    made = sim.simulate(_fan(sim, 4), _costs(sim), sim.Cluster(1, send=0.5))
    assert made.makespan == 0.5 + 4 + 0.5 + 3
    # With nothing held, each task is waited for.
    assert sim.simulate(_fan(sim, 4), _costs(sim), sim.Cluster(1, send=0.5, ahead=1)).makespan == 5 * 0.5 + 4 + 3


def test_what_a_worker_does_beside_the_work_counts_for_each_task(sim: Any) -> None:
    assert sim.simulate(_fan(sim, 4), _costs(sim), sim.Cluster(1, handle=0.25)).makespan == 7 + 5 * 0.25


@pytest.mark.parametrize(
    ("bandwidth", "link", "moving"),
    [(10, np.inf, 4), (20, np.inf, 2), (np.inf, 5, 2), (40, 5, 2), (10, 5, 4)],
)
def test_storage_is_shared(sim: Any, bandwidth: float, link: float, moving: float) -> None:
    made = sim.simulate(_fan(sim, 4), _costs(sim, n_bytes=10), sim.Cluster(4, bandwidth=bandwidth, link=link))
    assert made.makespan == pytest.approx(1 + moving + 3)
    assert made.critical == pytest.approx({"work": 1, "work, storage": moving, "join": 3})


def test_flows_that_begin_later_slow_those_that_are_there(sim: Any) -> None:
    graph = sim.Graph(["early", "late", "join"], [(), (), (0, 1)], [0, 1, 2])
    costs = {"early": sim.Cost([1.0], 10), "late": sim.Cost([2.0], 10), "join": sim.Cost([0.0])}
    made = sim.simulate(graph, costs, sim.Cluster(2, bandwidth=10 / 3))
    # Alone from 1 to 2, a third of it; both from 2 to 6, two thirds each; the rest of the later one from 6 to 7.
    assert made.makespan == pytest.approx(7)


def test_stragglers_do_not_change_the_work_in_all(sim: Any) -> None:
    made = sim.simulate(_fan(sim, 4000), _costs(sim), sim.Cluster(1, spread=0.5))
    assert made.makespan == pytest.approx(4003, rel=0.05)
    assert made.makespan != 4003


@pytest.mark.parametrize("again", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_runs_end_though_workers_are_lost(sim: Any, seed: int, again: float) -> None:
    cluster = sim.Cluster(4, send=0.01, losses=0.03, replacement=5, bandwidth=1000)
    made = sim.simulate(_fan(sim, 400), _costs(sim, 5.0, again), cluster, seed=seed)
    assert made.n_lost > 0
    assert made.n_again > 0
    assert made.makespan > 103
    assert made.busy <= 1
    assert sum(made.critical.values()) == pytest.approx(made.makespan)


def test_the_graph_that_is_simulated_is_that_of_a_run(sim: Any) -> None:
    from empty_runs import empty_graph
    from simulate import graph_of

    graph = graph_of(empty_graph(TileGrid.regular((12, 8), (4, 4))))
    tasks = {step: [k for k, s in enumerate(graph.steps) if s == step] for step in graph.steps}
    assert {step: len(found) for step, found in tasks.items()} == {
        "begin": 1,
        "stage": 6,
        "scan": 6,
        "unite": 1,
        "finish": 6,
        "end": 1,
    }
    # Tile 0 is scanned after itself, the one beside it and the one below.
    assert set(graph.needs[tasks["scan"][0]]) == {*tasks["begin"], *(tasks["stage"][k] for k in (0, 1, 2))}
    # begin, stage, scan, unite, finish, end: one after the other.
    costs = {step: sim.Cost([1.0]) for step in tasks}
    assert sim.simulate(graph, costs, sim.Cluster(100)).makespan == 6


@pytest.mark.parametrize("n_bands", [1, 2, 5, 6])
def test_a_union_in_bands_keeps_what_runs_before_and_after(sim: Any, n_bands: int) -> None:
    from banding import PIECES, in_bands
    from empty_runs import empty_graph
    from simulate import graph_of

    whole = graph_of(empty_graph(TileGrid.regular((24, 8), (4, 4))))
    banded = in_bands(whole, n_bands)
    n_of = {step: banded.steps.count(step) for step in banded.steps}
    assert n_of["stage"] == n_of["finish"] == 12
    assert n_of["close a band"] == n_of["number a band"] == n_of["finish a band"] == n_bands
    assert n_of.get("join bands", 0) == n_bands - 1
    assert "unite" not in n_of
    costs = {step: sim.Cost([float(step in PIECES and step != "gather")]) for step in banded.steps}
    made = sim.simulate(banded, costs, sim.Cluster(100)).makespan
    # Closed, up and down a tree, numbered, finished.
    assert made == 3 + 2 * int(np.ceil(np.log2(n_bands)))


# The union in bands


@pytest.mark.parametrize("numbering", ["raster", "sequential"])
@pytest.mark.parametrize("n_bands", [1, 2, 3, 5])
def test_bands_and_joins_make_the_same_table_as_one_task(
    numbering: str, n_bands: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import union_scale

    problem = union_scale.Problem((5, 8, 8), 3000, 2500, numbering, n_bands, str(tmp_path))
    told: list[dict[str, float]] = []
    monkeypatch.setattr(union_scale, "_tell", lambda seconds, **facts: told.append(facts))
    union_scale.whole_table(problem)
    # Enough pairs for objects that wind through several bands.
    assert told[0]["objects"] < 0.4 * told[0]["labels"]
    for step in (union_scale.close_one, union_scale.number_one, union_scale.finish_one):
        for number in range(n_bands):
            step(problem, number)
        if step is union_scale.close_one:
            union_scale.join_bands(problem)
    assert union_scale.is_same(problem)
