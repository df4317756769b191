"""The widget in a window of napari, driven by clicks and keys."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("napari")

import scipy.ndimage
import skimage.feature
import tifffile
from napari.layers import Image, Labels, Points

import blockbuster
from blockbuster.napari.workers import Workers
from tests.helpers import assert_same_objects
from tests.napari import functions
from tests.napari.conftest import Person, discs, finest, own_threads

OBJECTS, N_OBJECTS = scipy.ndimage.label(discs())
VOLUME = np.stack([discs(64)] * 4)


# From the image to the result


def test_a_run_shows_the_labels_of_the_whole_image_where_the_image_lies(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.run()
    labels, image = at_discs.viewer.layers["objects"], at_discs.viewer.layers["discs"]
    assert isinstance(labels, Labels)
    assert_same_objects(finest(labels), OBJECTS)
    np.testing.assert_array_equal(labels.scale, image.scale)
    np.testing.assert_array_equal(labels.translate, image.translate)
    assert labels.units == image.units
    assert len(functions.calls) == 16
    assert at_discs.says.startswith("objects is done")
    assert at_discs.dock.bar.value() == at_discs.dock.bar.maximum() == 1


def test_the_labels_are_seen_on_the_canvas(at_discs: Person) -> None:
    at_discs.click(at_discs.form.tiles.grid)
    assert at_discs.wait_for_grid() is None
    at_discs.viewer.reset_view()
    before = at_discs.canvas()
    assert len(np.unique(before)) > 1
    assert not at_discs.shows_colours()
    at_discs.segment_with("components")
    at_discs.run()
    at_discs.settle()
    after = at_discs.canvas()
    assert len(np.unique(after[(after != before).any(axis=-1)], axis=0)) > N_OBJECTS // 2


def test_a_result_is_replaced_and_not_doubled(at_discs: Person) -> None:
    at_discs.click(at_discs.form.tiles.grid)
    at_discs.viewer.reset_view()
    at_discs.segment_with("components")
    at_discs.run()
    assert at_discs.shows_colours()
    arguments = at_discs.form.what.forms["function"].controls["arguments"]
    at_discs.type(arguments, "above=250")
    at_discs.run()
    assert at_discs.says.startswith("OutputExistsError")
    assert "replace what is there" in at_discs.says
    assert len(functions.calls) == 16
    at_discs.click(at_discs.form.output.overwrite)
    at_discs.run()
    found = [layer for layer in at_discs.viewer.layers if isinstance(layer, Labels)]
    assert [layer.name for layer in found] == ["objects"]
    assert finest(found[0]).max() == 0
    assert not at_discs.shows_colours()


def test_results_of_two_images_are_two_layers(at_discs: Person) -> None:
    at_discs.viewer.add_image(255 - discs(), name="holes")
    at_discs.segment_with("components")
    for image in ("discs", "holes"):
        at_discs.choose(at_discs.form.image.layer, image)
        at_discs.type(at_discs.form.tiles.tile_shape, "64")
        at_discs.run()
    found = [finest(layer).max() for layer in at_discs.viewer.layers if isinstance(layer, Labels)]
    assert found == [N_OBJECTS, 1]


def test_a_level_of_a_pyramid_is_worked_on_and_its_result_lies_on_the_image(person: Person) -> None:
    fine = np.kron(discs(), np.ones((2, 2), np.uint8))
    person.viewer.add_image([fine, discs()], multiscale=True, name="pyramid", scale=(0.5, 0.5), rotate=30)
    person.choose(person.form.image.level, "1: 128 x 128")
    person.segment_with("components")
    person.run()
    labels, image = person.viewer.layers["objects"], person.viewer.layers["pyramid"]
    assert_same_objects(finest(labels), OBJECTS)
    np.testing.assert_array_equal(labels.scale, [1, 1])
    np.testing.assert_array_equal(labels.translate, [0.25, 0.25])
    np.testing.assert_allclose(labels.affine.affine_matrix, image.affine.affine_matrix)


def test_one_channel_is_worked_on(person: Person) -> None:
    channels = np.stack([np.zeros_like(discs()), discs()])
    person.viewer.add_image(channels, name="stack", axis_labels=("c", "y", "x"), scale=(1, 0.5, 0.5))
    person.choose(person.form.image.channel, "1")
    person.segment_with("components")
    person.run()
    labels = person.viewer.layers["objects"]
    assert_same_objects(finest(labels), OBJECTS)
    np.testing.assert_array_equal(labels.scale, [0.5, 0.5])


def test_labels_go_into_the_ome_zarr_that_the_image_was_opened_from(person: Person) -> None:
    blockbuster.write_image(discs(), "cells.ome.zarr", scale=0.5, unit="um", chunks=(32, 32), n_levels=2)
    person.type(person.form.image.path, "cells.ome.zarr")
    assert person.form.image.layer.currentText() == "cells"
    assert person.form.output.store.text() == str(Path("cells.ome.zarr").absolute())
    person.segment_with("components")
    person.type(person.form.output.name, "discs")
    person.run()
    assert blockbuster.open_image("cells.ome.zarr").labels == ("discs",)
    assert len(person.viewer.layers["discs"].data) == 2
    assert_same_objects(finest(person.viewer.layers["discs"]), OBJECTS)
    assert sorted(path.name for path in Path().iterdir() if "blockbuster" in path.name or "finest" in path.name) == []


def test_labels_go_into_an_ome_zarr_that_another_plugin_has_opened(person: Person) -> None:
    pytest.importorskip("napari_ome_zarr")
    stack = np.stack([np.zeros_like(discs()), discs()])
    blockbuster.write_image(stack, "cells.zarr", axes="cyx", scale=(1, 0.5, 0.5), unit="um", n_levels=2)
    person.viewer.open(str(Path("cells.zarr").absolute()), plugin="napari-ome-zarr")
    person.choose(person.form.image.layer, "cells [1]")
    person.segment_with("components")
    person.run()
    assert person.says.startswith("objects is done")
    assert_same_objects(finest(person.viewer.layers["objects"]), OBJECTS)
    assert blockbuster.open_image("cells.zarr/labels/objects").scale == (0.5, 0.5)


def test_a_tiff_can_be_opened_by_its_path(person: Person) -> None:
    tifffile.imwrite("discs.tif", discs())
    person.type(person.form.image.path, "discs.tif")
    assert person.form.image.layer.currentText() == "discs"
    np.testing.assert_array_equal(finest(person.viewer.layers["discs"]), discs())


def test_a_path_without_an_image_is_told(person: Person) -> None:
    person.type(person.form.image.path, "nothing.zarr")
    assert person.says.startswith("ImageError")
    assert len(person.viewer.layers) == 0


# The choices


def test_without_an_image_there_is_only_a_hint(person: Person) -> None:
    assert person.form.hint.isVisible()
    assert not any(control.isEnabled() for control in (person.dock.run, person.dock.plan, person.dock.try_here))
    layer = person.viewer.add_image(discs())
    assert person.dock.run.isEnabled()
    assert not person.form.hint.isVisible()
    person.viewer.layers.remove(layer)
    assert not person.dock.run.isEnabled()


def test_layers_are_those_of_the_list_and_none_of_colours(person: Person) -> None:
    person.viewer.add_image(discs(), name="first")
    person.viewer.add_image(np.zeros((8, 8, 3), np.uint8), name="colours", rgb=True)
    person.viewer.add_labels(OBJECTS, name="labels")
    second = person.viewer.add_image(discs(), name="second")
    names = person.form.image.layer
    assert [names.itemText(n) for n in range(names.count())] == ["first", "second"]
    person.choose(names, "second")
    person.viewer.layers.remove(second)
    assert names.currentText() == "first"


@pytest.mark.parametrize(
    ("method", "shown", "merge"),
    [
        ("Otsu's threshold", {"sigma", "min_distance"}, "touching"),
        ("Threshold", {"threshold", "sigma", "min_distance"}, "touching"),
        ("Cellpose", {"model", "diameter", "do_3D", "gpu", "flow_threshold", "cellprob_threshold"}, "iou"),
        ("Python function", {"function", "arguments"}, "touching"),
    ],
)
def test_a_method_shows_its_own_parameters_and_its_merge_rule(
    at_discs: Person, method: str, shown: set[str], merge: str
) -> None:
    at_discs.choose(at_discs.form.what.method, method)
    forms = at_discs.form.what.forms.values()
    visible = {name for form in forms for name, control in form.controls.items() if control.isVisible()}
    assert visible == shown
    assert at_discs.form.tiles.merge.currentData() == merge


def test_overlap_follows_the_diameter_until_a_person_says_another(at_discs: Person) -> None:
    at_discs.choose(at_discs.form.what.method, "Cellpose")
    diameter = at_discs.form.what.forms["cellpose"].controls["diameter"]
    at_discs.type(diameter, "20")
    assert at_discs.form.tiles.overlap.text() == "40, 40"
    at_discs.type(at_discs.form.tiles.overlap, "7")
    at_discs.type(diameter, "30")
    assert at_discs.form.tiles.overlap.text() == "7"
    assert at_discs.dock.job().overlap == (7, 7)
    assert at_discs.dock.job().parameters["diameter"] == 30
    at_discs.click(at_discs.form.tiles.suggest)
    assert at_discs.form.tiles.overlap.text() == "60, 60"


def test_tiles_are_suggested_from_chunks(person: Person) -> None:
    person.viewer.add_image(da.zeros((4096, 4096), chunks=(256, 256), dtype=np.uint16), contrast_limits=(0, 1))
    tile_shape = [int(n) for n in person.form.tiles.tile_shape.text().split(",")]
    assert len(tile_shape) == 2
    assert all(n % 256 == 0 for n in tile_shape)


def test_each_merge_rule_has_its_sentence_and_reaches_the_run(at_discs: Person) -> None:
    at_discs.segment_with("components")
    combo = at_discs.form.tiles.merge
    told = set()
    for words in ("drawn alike", "touching", "same contact", "not merged"):
        at_discs.choose(combo, words)
        told.add(at_discs.form.tiles.sentence.text())
    assert len(told) == 4
    assert at_discs.dock.job().merge is None
    at_discs.run()
    assert finest(at_discs.viewer.layers["objects"]).max() > N_OBJECTS


@pytest.mark.parametrize("typed", ["32, 32, 32", "many", "0, 32", ""])
def test_tiles_that_cannot_be_are_told_and_nothing_is_raised(at_discs: Person, typed: str) -> None:
    at_discs.type(at_discs.form.tiles.tile_shape, typed)
    assert at_discs.wait_for_grid() is None
    assert "tile" in at_discs.form.tiles.told.text()
    at_discs.run()
    assert "Error" in at_discs.says
    assert at_discs.dock.run.isEnabled()


def test_slurm_is_greyed_with_its_reason_where_there_is_none(at_discs: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockbuster.napari.form import WhereBox

    monkeypatch.setenv("PATH", "")
    box = WhereBox()
    item = box.kind.model().item(box.kind.findData("slurm"))
    assert not item.isEnabled()
    assert "no sbatch" in item.toolTip()
    at_discs.qtbot.addWidget(box)


def test_jobs_of_slurm_are_those_that_were_asked_for(
    at_discs: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockbuster.napari.form import WhereBox

    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    box = WhereBox()
    at_discs.qtbot.addWidget(box)
    box.show()
    at_discs.choose(box.kind, "jobs of SLURM")
    at_discs.type(box.n, "3")
    assert box.workers() == Workers("slurm", 3, {})
    for control, words in ((box.queue, "short"), (box.cores, "4"), (box.memory, "16GiB"), (box.walltime, "01:00:00")):
        assert control.isVisible()
        at_discs.type(control, words)
    options = {"queue": "short", "memory": "16GiB", "walltime": "01:00:00", "cores": 4}
    assert box.workers() == Workers("slurm", 3, options)


def test_a_run_on_processes_leaves_the_window_its_own_threads(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.choose(at_discs.form.where.kind, "processes on this machine")
    at_discs.type(at_discs.form.where.n, "1")
    at_discs.run()
    assert at_discs.says.startswith("objects is done")
    assert_same_objects(finest(at_discs.viewer.layers["objects"]), OBJECTS)
    assert functions.calls == []


# The grid


def test_the_grid_is_drawn_over_the_image(at_discs: Person) -> None:
    at_discs.type(at_discs.form.tiles.tile_shape, "32, 64")
    grid = at_discs.wait_for_grid()
    assert at_discs.form.tiles.told.text().startswith("4 x 2 = 8 tiles")
    assert len(grid.data) == 5 + 3
    assert (grid.data[:, 0].min(), grid.data.sum(axis=1).max()) == (-0.5, 127.5)
    np.testing.assert_array_equal((grid.scale, grid.translate), [(0.5, 0.5), (10, 20)])
    at_discs.viewer.reset_view()
    pixels = at_discs.canvas().astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 60) & (pixels[..., 1] > pixels[..., 2] + 30)
    assert 0 < green.mean() < 0.1


def test_the_grid_follows_what_is_typed_and_goes_with_its_box(at_discs: Person) -> None:
    chosen = at_discs.viewer.layers["discs"]
    at_discs.viewer.layers.selection = {chosen}
    for typed, n in (("64", 6), ("32", 10)):
        at_discs.type(at_discs.form.tiles.tile_shape, typed)
        assert len(at_discs.wait_for_grid().data) == n
    assert set(at_discs.viewer.layers.selection) == {chosen}
    at_discs.click(at_discs.form.tiles.grid)
    assert at_discs.wait_for_grid() is None
    at_discs.click(at_discs.form.tiles.grid)
    at_discs.viewer.layers.remove(at_discs.wait_for_grid())
    assert not at_discs.form.tiles.grid.isChecked()


def test_skipped_tiles_are_grey_and_not_called(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.click(at_discs.form.tiles.skip_empty)
    at_discs.type(at_discs.form.tiles.threshold, "100")
    grid = at_discs.wait_for_grid()
    n_grey = np.count_nonzero((grid.edge_color[:, :3] == grid.edge_color[:, :1]).all(axis=1)) // 2
    expected = blockbuster.estimate_empty_tiles(discs(), (32, 32), 100)
    assert n_grey == expected.n_tiles - expected.n_occupied > 0
    assert f"about {n_grey} of them skipped" in at_discs.form.tiles.told.text()
    at_discs.run()
    assert len(functions.calls) == expected.n_occupied
    assert_same_objects(finest(at_discs.viewer.layers["objects"]), OBJECTS)


def test_of_a_volume_one_outline_stands_for_all_tiles_above_each_other(person: Person) -> None:
    person.viewer.add_image(VOLUME, scale=(2, 1, 1))
    person.type(person.form.tiles.tile_shape, "1, 32, 32")
    grid = person.wait_for_grid()
    assert person.form.tiles.told.text().startswith("4 x 2 x 2 = 16 tiles")
    assert len(grid.data) == 6
    assert grid.ndim == 2


# Try, plan, copy


def test_try_here_labels_the_tile_in_the_middle_of_the_view(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.viewer.camera.center = (0, 10 + 0.5 * 40, 20 + 0.5 * 70)
    at_discs.viewer.camera.zoom = 8
    at_discs.click(at_discs.dock.try_here)
    at_discs.wait_for_end()
    layer = at_discs.viewer.layers["try here"]
    np.testing.assert_array_equal(layer.translate, [10 + 0.5 * 32, 20 + 0.5 * 64])
    assert_same_objects(layer.data, scipy.ndimage.label(discs()[32:64, 64:96])[0])
    assert functions.calls == [(32, 32)]
    assert at_discs.says.startswith("Tile (1, 2): ")
    assert "16 tiles" in at_discs.says


def test_try_here_reads_around_the_tile(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.type(at_discs.form.tiles.overlap, "5")
    at_discs.viewer.reset_view()
    at_discs.click(at_discs.dock.try_here)
    at_discs.wait_for_end()
    assert functions.calls == [(42, 42)]
    assert at_discs.viewer.layers["try here"].data.shape == (32, 32)


def test_a_plan_is_read_out(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.click(at_discs.dock.plan)
    at_discs.wait_for_end()
    told = at_discs.dock.read_out.toPlainText()
    assert at_discs.dock.read_out.isVisible()
    assert "16 of (32, 32), grid (4, 4)" in told
    assert {"memory", "disk", "time", "fits"} <= {line.split()[0] for line in told.splitlines()}
    assert "objects" not in at_discs.viewer.layers


def test_the_copied_script_gives_what_the_run_gives(at_discs: Person) -> None:
    from qtpy.QtWidgets import QApplication

    at_discs.segment_with("components")
    at_discs.type(at_discs.form.output.store, "run.zarr")
    at_discs.run()
    at_discs.type(at_discs.form.output.store, "script.zarr")
    at_discs.click(at_discs.dock.copy)
    exec(QApplication.clipboard().text(), {"viewer": at_discs.viewer})
    run, script = (blockbuster.open_image(f"{name}.zarr/labels/objects") for name in ("run", "script"))
    np.testing.assert_array_equal(run.data.compute(), script.data.compute())
    assert (run.scales, run.translations, run.unit) == (script.scales, script.translations, script.unit)


# Cancel, resume, and what goes wrong


def test_a_run_is_cancelled_within_a_tile_and_resumed(at_discs: Person) -> None:
    at_discs.segment_with("gated")
    at_discs.type(at_discs.form.where.n, "2")
    at_discs.click(at_discs.dock.run)
    for _ in range(5):
        functions.gate.release()
    at_discs.wait(lambda: len(functions.calls) == 7)
    at_discs.wait(lambda: "tiles" in at_discs.says and at_discs.dock.bar.value() > 0)
    assert not at_discs.dock.run.isEnabled()
    at_discs.click(at_discs.dock.cancel)
    functions.gate.release()
    functions.gate.release()
    at_discs.wait_for_end()
    assert at_discs.says.startswith("Stopped")
    assert "objects" not in at_discs.viewer.layers
    n_done = len(functions.calls)
    assert n_done <= 9
    functions.open_wide.set()
    at_discs.click(at_discs.dock.resume)
    at_discs.wait_for_end()
    assert_same_objects(finest(at_discs.viewer.layers["objects"]), OBJECTS)
    # The tiles that were being worked on are done again, if at all.
    assert 16 <= len(functions.calls) <= 16 + 2


def test_the_bar_only_rises_and_tells_of_tiles(at_discs: Person) -> None:
    at_discs.segment_with("gated")
    told: list[tuple[int, str]] = []
    at_discs.dock.background.progressed.connect(
        lambda _now: told.append((at_discs.dock.bar.value(), at_discs.says)), type=_queued()
    )
    at_discs.click(at_discs.dock.run)
    for _ in range(16):
        functions.gate.release()
        at_discs.qtbot.wait(60)
    at_discs.wait_for_end()
    values = [value for value, _ in told]
    assert len(values) > 3
    staging = [value for value, words in told if words.startswith("staging")]
    assert staging == sorted(staging)
    assert any("of 16 tiles" in words for _, words in told)


def _queued() -> Any:
    from qtpy.QtCore import Qt

    return Qt.ConnectionType.QueuedConnection


@pytest.mark.parametrize("function", ["failing", "missing"])
def test_a_function_that_fails_is_told_in_words(at_discs: Person, function: str) -> None:
    at_discs.segment_with(function)
    at_discs.run()
    words = {
        "failing": r"TileError: Tile .* the function failed with RuntimeError: CUDA out of memory",
        "missing": r"ParameterError: 'tests.napari.functions:missing' cannot be imported",
    }
    assert re.match(words[function], at_discs.says)
    assert at_discs.dock.run.isEnabled()
    assert "objects" not in at_discs.viewer.layers
    assert own_threads() == []


def test_a_run_without_a_place_is_refused_before_the_first_tile(at_discs: Person) -> None:
    at_discs.segment_with("components")
    at_discs.type(at_discs.form.output.store, "")
    at_discs.run()
    assert at_discs.says.startswith("ParameterError: The result has no place")
    assert functions.calls == []


def test_closing_the_dock_in_the_middle_of_a_run_ends_it(at_discs: Person) -> None:
    at_discs.segment_with("gated")
    at_discs.click(at_discs.dock.run)
    at_discs.wait(lambda: len(functions.calls) > 0)
    at_discs.viewer.window.remove_dock_widget(at_discs.dock)
    functions.open_wide.set()
    at_discs.wait(lambda: own_threads() == [])
    assert len(functions.calls) < 16
    assert [layer.name for layer in at_discs.viewer.layers] == ["discs"]
    at_discs.viewer.add_image(discs())


def test_closing_the_window_in_the_middle_of_a_run_ends_it(at_discs: Person) -> None:
    at_discs.segment_with("gated")
    at_discs.click(at_discs.dock.run)
    at_discs.wait(lambda: len(functions.calls) > 0)
    at_discs.viewer.close()
    functions.open_wide.set()
    at_discs.wait(lambda: own_threads() == [])
    assert len(functions.calls) < 16


# Other operations


def test_label_is_that_of_scipy(at_discs: Person) -> None:
    at_discs.choose(at_discs.form.what.operation, "Label")
    at_discs.type(at_discs.form.what.forms["label"].controls["threshold"], "100")
    at_discs.type(at_discs.form.tiles.tile_shape, "32")
    at_discs.run()
    np.testing.assert_array_equal(finest(at_discs.viewer.layers["components"]), OBJECTS)


def test_spots_are_those_of_scikit_image_as_points(at_discs: Person) -> None:
    at_discs.choose(at_discs.form.what.operation, "Find spots")
    at_discs.type(at_discs.form.tiles.tile_shape, "64")
    at_discs.run()
    points = at_discs.viewer.layers["spots"]
    expected = skimage.feature.blob_log(discs(), min_sigma=1, max_sigma=5, num_sigma=5, threshold=0.2)
    assert isinstance(points, Points)
    assert sorted(map(tuple, points.data)) == sorted(map(tuple, expected[:, :2]))
    np.testing.assert_array_equal(points.scale, [0.5, 0.5])
    np.testing.assert_array_equal(points.translate, [10, 20])


def test_downsample_gives_an_image_that_lies_on_the_other(at_discs: Person) -> None:
    at_discs.choose(at_discs.form.what.operation, "Downsample")
    at_discs.run()
    image = at_discs.viewer.layers["smaller"]
    assert isinstance(image, Image)
    np.testing.assert_array_equal(finest(image), blockbuster.downsample(discs(), 2, method="mean", compute=True))
    np.testing.assert_array_equal(outer_edges(image), outer_edges(at_discs.viewer.layers["discs"]))


def test_a_pyramid_has_all_levels(at_discs: Person) -> None:
    at_discs.choose(at_discs.form.what.operation, "Pyramid")
    at_discs.type(at_discs.form.what.forms["pyramid"].controls["n_levels"], "3")
    at_discs.run()
    image = at_discs.viewer.layers["pyramid"]
    assert [level.shape for level in image.data] == [(128, 128), (64, 64), (32, 32)]
    np.testing.assert_array_equal(finest(image), discs())
    np.testing.assert_array_equal(image.translate, [10, 20])


def outer_edges(layer: Any) -> Any:
    """Of the voxels, in the world."""
    first = np.array(layer.translate) - 0.5 * layer.scale
    return first, first + layer.scale * finest(layer).shape


# The layout


def test_nothing_is_cut_off(at_discs: Person) -> None:
    at_discs.settle()
    scroll, dock = at_discs.dock.scroll, at_discs.dock
    assert scroll.widget().width() <= scroll.viewport().width() <= dock.width()
    for control in (dock.run, dock.cancel, dock.resume, dock.plan, dock.try_here, dock.copy):
        assert control.width() >= control.minimumSizeHint().width()
        assert dock.rect().contains(control.geometry())


def test_the_wheel_changes_only_what_a_person_has_clicked_on(at_discs: Person) -> None:
    method, workers = at_discs.form.what.method, at_discs.form.where.n
    before = method.currentText(), workers.value()
    for control in (method, workers):
        turn_wheel(control)
    assert (method.currentText(), workers.value()) == before
    at_discs.viewer.window.activate()
    method.setFocus()
    at_discs.wait(method.hasFocus)
    turn_wheel(method)
    assert method.currentText() != before[0]


def turn_wheel(control: Any) -> None:
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication

    place = QPointF(control.rect().center())
    event = QWheelEvent(
        place,
        QPointF(control.mapToGlobal(control.rect().center())),
        QPoint(0, 0),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(control, event)
