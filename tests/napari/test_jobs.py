"""What the widget asks of blockbuster: without Qt and napari."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
from dask.base import get_scheduler

import blockbuster
from blockbuster.errors import GeometryError, OutputExistsError, ParameterError
from blockbuster.grid import TileGrid
from blockbuster.napari.jobs import (
    Job,
    Source,
    arguments_of,
    carry_out,
    numbers_of,
    plan_of,
    python_of,
    suggested_method,
    suggested_tile_shape,
    try_tile,
)
from blockbuster.napari.workers import Workers, active
from blockbuster.schedulers import active_scheduler
from tests.helpers import assert_same_objects
from tests.napari import functions
from tests.napari.conftest import discs
from tests.slurm import tools as slurm

OBJECTS = scipy.ndimage.label(discs())[0]


def source_of(array: Any, axes: str = "yx", **more: Any) -> Source:
    n = len(axes)
    place = {
        "scale": (0.5,) * n,
        "translation": (3.0,) * n,
        "unit": tuple("micrometer" if axis in "zyx" else None for axis in axes),
    }
    return Source(array, "given", array, "given", axes, **place, **more)


def components_job(**more: Any) -> Job:
    parameters = {"function": "tests.napari.functions:components", "arguments": ""}
    given = {"method": "function", "tile_shape": (32, 32), "overlap": (0, 0), "store": "result.zarr", "name": "cells"}
    return Job("segment", **{"parameters": parameters, **given, **more})


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    functions.start_anew()


# What is typed


@pytest.mark.parametrize(("typed", "expected"), [("64", (64, 64)), ("64, 32", (64, 32)), ("64x32", (64, 32))])
def test_numbers_are_one_for_all_axes_or_one_each(typed: str, expected: tuple[int, ...]) -> None:
    assert numbers_of(typed, 2, "tile shape") == expected


@pytest.mark.parametrize("typed", ["", "many", "1.5", "1, 2, 3"])
def test_other_words_are_refused_with_what_was_typed(typed: str) -> None:
    with pytest.raises(ParameterError, match=f"tile shape '{typed}'"):
        numbers_of(typed, 2, "tile shape")


def test_arguments_are_literals_by_name() -> None:
    assert arguments_of("") == {}
    assert arguments_of("a=1, b='x', c=(2, None)") == {"a": 1, "b": "x", "c": (2, None)}


@pytest.mark.parametrize("typed", ["1", "a=", "a=b", "a=print()", "**{}", "a=1)(b=2"])
def test_arguments_that_are_none_are_refused(typed: str) -> None:
    with pytest.raises(ParameterError, match="cannot be read"):
        arguments_of(typed)


# What is done, and the script that does the same


JOBS = {
    "segment": components_job(),
    "otsu": components_job(method="otsu", parameters={"sigma": 1.0, "min_distance": 0}, overlap=(8, 8), merge="iou"),
    "label": Job("label", "", {"threshold": 100.0, "connectivity": 1}, (32, 32), store="result.zarr", name="cells"),
    "blobs": Job(
        "blobs",
        "",
        {
            "method": "log",
            "min_sigma": 2.0,
            "max_sigma": 5.0,
            "num_sigma": 3,
            "threshold": None,
            "overlap": 0.5,
        },
        (64, 64),
        name="spots",
    ),
    "downsample": Job("downsample", "", {"scale_factor": 2, "method": "max"}, store="result.zarr", name="smaller"),
    "pyramid": Job(
        "pyramid", "", {"scale_factor": 2, "method": "mean", "n_levels": 2}, store="result.zarr", name="levels"
    ),
}


def made_of(result: Any) -> Any:
    """The voxels of a result, and where they lie; or its rows."""
    if isinstance(result, blockbuster.OpenedImage):
        return result.scales, result.translations, result.unit, [np.asarray(level) for level in result.levels]
    return np.asarray(result)


@pytest.mark.parametrize("name", JOBS)
def test_the_script_does_what_the_job_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, source = JOBS[name], source_of(discs())
    expected = made_of(carry_out(job, source, lambda _now: None))
    script = tmp_path / "script"
    script.mkdir()
    monkeypatch.chdir(script)
    lines = python_of(job, source).strip().split("\n")
    last = f"result = {lines[-1].removeprefix('result = ')}"
    namespace: dict[str, Any] = {"given": discs()}
    exec("\n".join([*lines[:-1], last]), namespace)
    np.testing.assert_equal(made_of(namespace["result"]), expected)


def test_a_run_leaves_nothing_but_its_result() -> None:
    carry_out(components_job(), source_of(discs()), lambda _now: None)
    assert [path.name for path in Path().iterdir() if path.name != "system-tmp"] == ["result.zarr"]
    assert_same_objects(np.asarray(blockbuster.open_image("result.zarr/labels/cells").data), OBJECTS)


def test_objects_do_not_go_on_over_time() -> None:
    stack = np.stack([discs()] * 2)
    result = carry_out(
        components_job(tile_shape=(1, 64, 64), overlap=(0, 0, 0)), source_of(stack, "tyx"), lambda _now: None
    )
    labels = np.asarray(result.data)
    assert set(np.unique(labels[0])) & set(np.unique(labels[1])) == {0}
    assert_same_objects(labels[1], OBJECTS)


class Enough(Exception):
    """As when somebody cancels."""


def stop_at(n: int, step: str) -> Any:
    """A report that does not want to go on once so many tiles have had a step."""

    def report(now: Any) -> None:
        if now.step == step and now.done >= n:
            raise Enough

    return report


def test_a_cancelled_job_is_resumed_with_the_tiles_that_are_left() -> None:
    source = source_of(discs())
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(Enough):
            carry_out(components_job(), source, stop_at(5, "staging"))
        assert len(functions.calls) == 5
        result = carry_out(components_job(resume=True), source, lambda _now: None)
    assert len(functions.calls) == 16
    assert_same_objects(np.asarray(result.data), OBJECTS)


def test_a_job_that_is_done_is_not_done_again_by_resuming_it() -> None:
    carry_out(components_job(), source_of(discs()), lambda _now: None)
    functions.start_anew()
    with pytest.raises(OutputExistsError):
        carry_out(components_job(resume=True), source_of(discs()), lambda _now: None)
    assert functions.calls == []


def test_a_job_that_was_stopped_while_levels_were_written_calls_nothing_again() -> None:
    source = source_of(discs())
    told = []

    def report(now: Any) -> None:
        told.append(now)
        # The second run, of the levels, only writes.
        if now.staged and now.n_tiles != 16:
            raise Enough

    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(Enough):
            carry_out(components_job(), source, report)
        assert len(functions.calls) == 16
        carry_out(components_job(resume=True), source, lambda _now: None)
    assert len(functions.calls) == 16


# What is refused


def test_a_name_that_is_taken_is_refused_before_the_first_tile() -> None:
    source = source_of(discs())
    carry_out(components_job(), source, lambda _now: None)
    functions.start_anew()
    with pytest.raises(OutputExistsError):
        carry_out(components_job(), source, lambda _now: None)
    assert functions.calls == []
    carry_out(components_job(overwrite=True), source, lambda _now: None)
    assert len(functions.calls) == 16


def test_a_store_of_another_image_is_refused_before_the_first_tile() -> None:
    blockbuster.write_image(np.zeros((40, 40), np.uint8), "result.zarr")
    with pytest.raises(GeometryError, match="shape of a level"):
        carry_out(components_job(), source_of(discs()), lambda _now: None)
    assert functions.calls == []


def test_a_name_with_a_folder_in_it_is_refused() -> None:
    with pytest.raises(ParameterError, match="no name of a label image"):
        carry_out(components_job(name="a/b"), source_of(discs()), lambda _now: None)


@pytest.mark.parametrize("missing", ["store", "name"])
def test_a_result_without_a_place_or_a_name_is_refused(missing: str) -> None:
    with pytest.raises(ParameterError, match=r"has no (place|name)"):
        carry_out(components_job(**{missing: ""}), source_of(discs()), lambda _now: None)


# What is suggested, planned and tried


def test_what_is_suggested_does_not_look_at_the_image() -> None:
    parameters = {"sigma": 2.0, "min_distance": 0}
    otsu, cellpose = suggested_method("otsu", parameters), suggested_method("cellpose", {"diameter": 20.0})
    assert otsu is not None
    assert cellpose is not None
    assert (otsu.merge, otsu.overlap) == ("touching", 8)
    assert (cellpose.merge, cellpose.overlap) == ("iou", 40)
    assert suggested_method("nothing", {}) is None


def test_a_suggested_tile_shape_is_whole_chunks() -> None:
    image = da.zeros((2048, 2048), chunks=(256, 128), dtype=np.uint16)
    shape = suggested_tile_shape(source_of(image), components_job(), 2)
    assert shape[0] % 256 == 0
    assert shape[1] % 128 == 0


@pytest.mark.parametrize("name", JOBS)
def test_each_job_has_a_plan(name: str) -> None:
    assert plan_of(JOBS[name], source_of(discs())).fits
    assert [path.name for path in Path().iterdir() if path.name != "system-tmp"] == []


def test_a_tile_is_tried_with_what_it_reads_around_it() -> None:
    job = components_job(overlap=(4, 4))
    tile = TileGrid.regular((128, 128), (32, 32), 4).tile(5)
    trial = try_tile(job, source_of(discs()), tile)
    assert functions.calls == [(40, 40)]
    assert trial.found.shape == (32, 32)
    assert trial.n_found == len(np.unique(trial.found)) - 1
    np.testing.assert_array_equal(trial.found > 0, OBJECTS[tile.core] > 0)


# Where it runs


def test_threads_are_as_many_as_asked_for() -> None:
    with active(Workers("threads", 3)):
        assert active_scheduler().kind == "threads"
        assert dask.config.get("num_workers") == 3


@pytest.mark.slow
def test_a_cluster_is_that_of_its_own_thread_only() -> None:
    found = {}
    with active(Workers("local", 1)):
        found["here"] = active_scheduler().kind
        other = threading.Thread(target=lambda: found.update(there=get_scheduler()))
        other.start()
        other.join()
    assert found == {"here": "distributed", "there": None}
    assert active_scheduler().kind == "threads"


@pytest.mark.slurm
def test_a_job_is_done_by_jobs_of_slurm(tmp_path: Path) -> None:
    job = {"cores": 1, "memory": "1GiB", "walltime": "00:30:00"}
    own = {"folder": tmp_path, "job_script_prologue": slurm.prologue(tmp_path)}
    with active(Workers("slurm", 1, {**job, **own})):
        result = carry_out(components_job(), source_of(discs()), lambda _now: None)
    assert functions.calls == []
    assert_same_objects(np.asarray(result.data), OBJECTS)
