"""Draw the picture of the widget: ``make widget-image``. A person at a window of napari, on the sample."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from PIL import Image
from qtpy.QtWidgets import QApplication

PICTURE = Path(__file__).parent / "images" / "napari.png"
PATIENCE = 120.0


def main() -> None:
    """Segment the nuclei of the sample in tiles, and take a picture of the window."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        viewer = napari.Viewer()
        viewer.window.resize(1400, 980)
        viewer.open_sample("blockbuster-imaging", "tissue")
        _, dock = viewer.window.add_plugin_dock_widget("blockbuster-imaging", "Process in tiles")
        segment_nuclei(dock)
        viewer.reset_view()
        viewer.layers.selection = {viewer.layers["nuclei found"]}
        after(0.5)
        seen = viewer.screenshot(canvas_only=False, flash=False)
        Image.fromarray(seen[..., :3]).quantize(256).save(PICTURE, optimize=True)
        viewer.close()


def segment_nuclei(dock: Any) -> None:
    """Fill in the form, and run."""
    what = dock.form.what
    what.method.setCurrentIndex(what.method.findData("function"))
    what.forms["function"].controls["function"].setText("blockbuster.demo:segment")
    dock.form.tiles.merge.setCurrentIndex(dock.form.tiles.merge.findData("iou"))
    dock.form.tiles.tile_shape.setText("96, 96")
    dock.form.tiles.overlap.setText("48")
    dock.form.output.name.setText("nuclei found")
    after(1)
    dock.run.click()
    after(PATIENCE, lambda: not dock.background.is_running)


def after(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Let the window work for some seconds, or until something is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.instance().processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    main()
