"""A window of napari with the widget in it, and a person at it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.napari import functions

os.environ.setdefault("LP_NUM_THREADS", "1")

NAME = "blockbuster-napari"
PATIENCE = 20_000


class Person:
    """Does what a person does at the window: clicks and keys.

    Attributes
    ----------
    viewer : napari.Viewer
    dock : BlockbusterDock
    """

    def __init__(self, viewer: Any, dock: Any, qtbot: Any) -> None:
        self.viewer, self.dock, self.qtbot, self.form = viewer, dock, qtbot, dock.form

    def click(self, control: Any) -> None:
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtWidgets import QCheckBox

        self._look_at(control)
        assert control.isEnabled()
        # Of a box, the words beside it may be shorter than the control.
        place = QPoint(8, control.height() // 2) if isinstance(control, QCheckBox) else control.rect().center()
        self.qtbot.mouseClick(control, Qt.MouseButton.LeftButton, pos=place)

    def type(self, control: Any, words: str) -> None:
        from qtpy.QtCore import Qt

        self._look_at(control)
        assert control.isEnabled()
        control.setFocus()
        control.selectAll()
        self.qtbot.keyClick(control, Qt.Key.Key_Delete)
        self.qtbot.keyClicks(control, words)
        self.qtbot.keyClick(control, Qt.Key.Key_Return)

    def choose(self, combo: Any, words: str) -> None:
        from qtpy.QtCore import Qt

        self._look_at(combo)
        assert combo.isEnabled()
        self.qtbot.keyClick(combo, Qt.Key.Key_Home)
        for _ in range(combo.count()):
            if combo.currentText() == words:
                return
            self.qtbot.keyClick(combo, Qt.Key.Key_Down)
        raise AssertionError(f"{words} is not among {[combo.itemText(n) for n in range(combo.count())]}")

    def wait(self, until: Any) -> None:
        self.qtbot.waitUntil(until, timeout=PATIENCE)

    def wait_for_end(self) -> None:
        self.wait(lambda: not self.dock.background.is_running and self.dock.run.isEnabled())

    def wait_for_grid(self) -> Any:
        """Until nothing is to be drawn any more."""
        self.wait(lambda: self.dock.preview.is_settled)
        return next((layer for layer in self.viewer.layers if layer.name == "tile grid"), None)

    def settle(self) -> None:
        self.qtbot.wait(30)

    def canvas(self) -> NDArray[np.uint8]:
        """What is to be seen of the image, without its frame of black."""
        return np.asarray(self.viewer.screenshot(canvas_only=True, flash=False))[..., :3]

    def shows_colours(self) -> bool:
        """Whether something on the canvas is not grey."""
        self.settle()
        pixels = self.canvas()
        return bool((pixels != pixels[..., :1]).any())

    @property
    def says(self) -> str:
        return str(self.dock.message.text())

    def segment_with(self, function: str, **more: str) -> None:
        """Fill in the form for a function of a tile."""
        self.choose(self.form.what.method, "Python function")
        controls = self.form.what.forms["function"].controls
        self.type(controls["function"], f"tests.napari.functions:{function}")
        self.type(self.form.tiles.tile_shape, more.get("tile_shape", "32, 32"))

    def run(self) -> None:
        self.click(self.dock.run)
        self.wait_for_end()

    def _look_at(self, control: Any) -> None:
        self.dock.scroll.ensureWidgetVisible(control)


def discs(n: int = 128) -> NDArray[np.uint8]:
    """An image of bright discs, the lower right quarter empty."""
    image = np.zeros((n, n), np.uint8)
    y, x = np.ogrid[:n, :n]
    for cy in range(16, n, 24):
        for cx in range(16, n, 24):
            if cy < n // 2 - 4 or cx < n // 2 - 4:
                image[(y - cy) ** 2 + (x - cx) ** 2 < 49] = 200
    return image


def finest(layer: Any) -> NDArray[Any]:
    """The voxels of a layer."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(NAME)]


def wait_for_threads() -> None:
    end = time.monotonic() + 20
    while own_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert own_threads() == []


@pytest.fixture
def person(make_napari_viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    """At a window with the widget in it."""
    monkeypatch.chdir(tmp_path)
    functions.start_anew()
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1300, 950)
    _, dock = viewer.window.add_plugin_dock_widget("blockbuster-imaging", "Process in tiles")
    yield Person(viewer, dock, qtbot)
    functions.open_wide.set()
    wait_for_threads()


@pytest.fixture
def at_discs(person: Person) -> Person:
    """With an image of discs, half a micrometer per voxel."""
    person.viewer.add_image(discs(), name="discs", scale=(0.5, 0.5), translate=(10, 20), units=("um", "um"))
    return person
