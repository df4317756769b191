"""What napari finds in the manifest: the widget, the reader and the sample; and `blockbuster view`."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

import npe2
from PIL import Image as Picture

import blockbuster
from blockbuster.napari.reader import get_reader, read
from blockbuster.napari.sample import tissue_section
from tests.napari.conftest import Person, discs, finest

MANIFEST = Path(blockbuster.__file__).parent / "napari" / "napari.yaml"


# The manifest


def test_the_manifest_is_valid_and_all_that_it_names_is_there() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "blockbuster-imaging"
    found = {command.id for command in manifest.contributions.commands}
    assert {one.command for one in manifest.contributions.widgets} <= found


def test_napari_finds_the_manifest_of_the_installed_package() -> None:
    installed = npe2.PluginManifest.from_distribution("blockbuster-imaging")
    assert installed.contributions.widgets[0].display_name == "Process in tiles"


# The sample


def test_the_sample_shows_a_real_image_with_its_scale(person: Person) -> None:
    person.viewer.open_sample("blockbuster-imaging", "tissue")
    layer = person.viewer.layers["nuclei"]
    assert finest(layer).shape == (512, 512)
    np.testing.assert_array_equal(layer.scale, [0.5, 0.5])
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    assert person.form.image.layer.currentText() == "nuclei"
    person.viewer.reset_view()
    assert len(np.unique(person.canvas())) > 100


def test_levels_of_the_sample_are_those_of_the_library() -> None:
    for levels, options, kind in tissue_section():
        assert kind == "image"
        assert options["multiscale"]
        np.testing.assert_array_equal(levels[1], blockbuster.downsample(levels[0], 2, method="mean", compute=True))


# The reader


def test_a_store_is_read_lazily_with_all_that_its_metadata_tell(tmp_path: Path, make_napari_viewer: Any) -> None:
    path = str(tmp_path / "cells.zarr")
    stack = np.stack([discs(), 255 - discs()])
    blockbuster.write_image(
        stack, path, axes="cyx", scale=(1, 0.5, 0.5), unit="um", n_levels=2, channels=["DNA", "actin"], name="cells"
    )
    blockbuster.write_labels(discs() // 200, path, "nuclei")
    viewer = make_napari_viewer()
    viewer.open(path, plugin="blockbuster-imaging")
    assert [layer.name for layer in viewer.layers] == ["cells DNA", "cells actin", "nuclei"]
    for layer, expected in zip(viewer.layers, [*stack, discs() // 200], strict=True):
        assert [level.shape for level in layer.data] == [(128, 128), (64, 64)]
        np.testing.assert_array_equal(finest(layer), expected)
        np.testing.assert_array_equal(layer.scale, [0.5, 0.5])
        assert [str(unit) for unit in layer.units] == ["micrometer"] * 2


def test_an_image_of_one_level_is_no_pyramid(tmp_path: Path) -> None:
    path = str(tmp_path / "plain.zarr")
    blockbuster.copy(discs(), path)
    ((data, options, kind),) = read(path)
    assert (kind, options["multiscale"], options["name"]) == ("image", False, "plain")
    np.testing.assert_array_equal(np.asarray(data), discs())


def test_what_is_no_image_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    assert get_reader(str(tmp_path / "empty.zarr")) is None
    assert get_reader([str(tmp_path / "empty.zarr")]) is None


# The command `blockbuster view`


def view(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Look at an image as somebody who closes the window after a look at it."""
    code = f"""
    import sys
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication
    from blockbuster.cli import main

    def close():
        viewer = napari.current_viewer()
        viewer.screenshot({str(folder / "seen.png")!r}, flash=False)
        print([(layer.name, type(layer).__name__, layer.multiscale) for layer in viewer.layers])
        viewer.close()

    application = QApplication([])
    QTimer.singleShot(1500, close)
    sys.exit(main(["view", *sys.argv[1:]]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ}, check=False)


def test_view_shows_an_image_with_labels_over_it(tmp_path: Path, qapp: Any) -> None:
    image, labels = str(tmp_path / "cells.zarr"), str(tmp_path / "labels.zarr")
    blockbuster.write_image(discs(), image, scale=0.5, unit="um", n_levels=2)
    blockbuster.label(image, write_to=labels, output_component="")
    made = view(image, "--labels", labels, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "[('cells', 'Image', True), ('labels.zarr', 'Labels', False)]" in made.stdout
    with Picture.open(tmp_path / "seen.png") as seen:
        pixels = np.asarray(seen.convert("RGB")).astype(int)
    assert (np.ptp(pixels, axis=-1) > 50).any()


def test_view_of_nothing_is_an_error_in_words(tmp_path: Path, qapp: Any) -> None:
    made = view(str(tmp_path / "nothing.zarr"), folder=tmp_path)
    assert made.returncode == 1
    assert "blockbuster view: ImageError" in made.stderr
