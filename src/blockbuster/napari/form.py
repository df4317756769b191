"""The controls of the widget, in boxes: each knows what it was told, and says when that has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QLabel,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from blockbuster.budget import cpu_count
from blockbuster.napari.choices import MERGES, METHODS, OPERATIONS
from blockbuster.napari.controls import Box, ParameterForm, button, combo, line, note, row
from blockbuster.napari.jobs import LABELLING, TILED, WRITERS, Source
from blockbuster.napari.layers import Picked, channel_axis, is_image, levels_of
from blockbuster.napari.workers import Workers, why_no_slurm

__all__ = ["Form", "ImageBox", "OutputBox", "TilesBox", "WhatBox", "WhereBox"]


class ImageBox(Box):
    """The layer, its level and its channel.

    Attributes
    ----------
    opened : Signal
        With the path of an image that is to become a layer.
    """

    opened = Signal(str)

    def __init__(self) -> None:
        super().__init__("Image")
        self.layer = self.add("layer", combo(), "The image layer to work on.")
        self.path = line("or open a path: *.zarr, *.tif")
        self.browse = button("…", "Choose a zarr store.", self._browse)
        self.add("path", row(self.path, self.browse), "Of an image to open: press Enter.")
        self.level = self.add("level", combo(), "Of the pyramid: 0 is the finest.")
        self.channel = self.add("channel", combo(), "The channel to work on.")
        self.path.returnPressed.connect(lambda: self.opened.emit(self.path.text().strip()))
        self.layer.currentIndexChanged.connect(lambda _index: self._layer_chosen())
        for control in (self.level, self.channel):
            control.currentIndexChanged.connect(lambda _index: self.changed.emit())
        self._layer_chosen()

    def picked(self) -> Picked | None:
        """What is chosen; None without a layer."""
        layer = self.layer.currentData()
        if layer is None:
            return None
        return Picked(layer, max(self.level.currentIndex(), 0), max(self.channel.currentIndex(), 0))

    def offer(self, layers: Any) -> None:
        """Follow the list of layers; what was chosen stays chosen."""
        chosen = self.layer.currentData()
        images = [layer for layer in layers if is_image(layer)]
        self.layer.blockSignals(True)
        self.layer.clear()
        for layer in images:
            self.layer.addItem(layer.name, layer)
        seen = [layer for layer in images if layer.visible]
        default = images.index(seen[-1]) if seen else len(images) - 1
        self.layer.setCurrentIndex(images.index(chosen) if chosen in images else default)
        self.layer.blockSignals(False)
        if self.layer.currentData() is not chosen:
            self._layer_chosen()

    def _layer_chosen(self) -> None:
        layer = self.layer.currentData()
        levels = [] if layer is None else levels_of(layer)
        axis = None if layer is None else channel_axis(layer)
        for control in (self.level, self.channel):
            control.blockSignals(True)
            control.clear()
        for n, level in enumerate(levels):
            self.level.addItem(f"{n}: {' x '.join(map(str, level.shape))}")
        for n in range(levels[0].shape[axis] if axis is not None else 0):
            self.channel.addItem(str(n))
        for control in (self.level, self.channel):
            control.blockSignals(False)
        self.show_row(self.level, len(levels) > 1)
        self.show_row(self.channel, axis is not None)
        self.changed.emit()

    def _browse(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "A zarr store")
        if path:
            self.path.setText(path)
            self.opened.emit(path)


class WhatBox(Box):
    """The operation, the method, and their parameters."""

    def __init__(self) -> None:
        super().__init__("What to do")
        self.operation = self.add("do", combo([(choice.title, name) for name, choice in OPERATIONS.items()]))
        self.method = self.add("method", combo([(choice.title, name) for name, choice in METHODS.items()]))
        self.sentence = note()
        self.rows.addRow(self.sentence)
        choices = {**METHODS, **{name: choice for name, choice in OPERATIONS.items() if choice.parameters}}
        self.forms = {name: ParameterForm(choice) for name, choice in choices.items()}
        for form in self.forms.values():
            self.rows.addRow(form)
            form.changed.connect(self.changed)
        for control in (self.operation, self.method):
            control.currentIndexChanged.connect(lambda _index: self._chosen())
        self._chosen()

    @property
    def subject(self) -> str:
        """The method that segments, else the operation."""
        name: str = self.operation.currentData()
        return self.method.currentData() if name == "segment" else name

    def parameters(self) -> dict[str, Any]:
        """Of the method, else of the operation."""
        return self.forms[self.subject].values()

    def _chosen(self) -> None:
        self.show_row(self.method, self.operation.currentData() == "segment")
        self.sentence.setText((METHODS | OPERATIONS)[self.subject].sentence)
        for name, form in self.forms.items():
            self.show_row(form, name == self.subject)
        self.changed.emit()


class TilesBox(Box):
    """Tiles, how objects go on from one to the next, and which tiles are left out."""

    suggested = Signal()

    def __init__(self) -> None:
        super().__init__("Tiles")
        self.tile_shape = line("512, 512")
        self.suggest = button("Suggest", "Fit tiles to the memory, the chunks and the method.", self.suggested.emit)
        self.add("tile shape", row(self.tile_shape, self.suggest), "Voxels of a tile: one number, or one per axis.")
        self.overlap = self.add("overlap", line("32"), "Voxels that are read beyond each side of a tile.")
        self.merge = self.add("objects", combo([(choice.title, name) for name, choice in MERGES.items()]))
        self.sentence = note()
        self.rows.addRow(self.sentence)
        self.skip_empty = QCheckBox("skip tiles below")
        self.skip_empty.setToolTip("Those in which nothing is above it are not worked on, and are empty in the result.")
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(-1, 1e9)
        self.threshold.setSpecialValueText("Otsu's")
        self.threshold.setValue(-1)
        self.threshold.setEnabled(False)
        self.threshold.setMinimumWidth(120)
        self.rows.addRow(row(self.skip_empty, self.threshold))
        self.grid = QCheckBox("show the tiles")
        self.grid.setChecked(True)
        self.rows.addRow(self.grid)
        self.told = note()
        self.rows.addRow(self.told)
        # Of the suggestions, what a person has typed is left alone.
        self.is_own = {"tile_shape": False, "overlap": False, "merge": False}
        self._connect()
        self._say_merge()

    def _connect(self) -> None:
        for name, control in (("tile_shape", self.tile_shape), ("overlap", self.overlap)):
            control.textEdited.connect(lambda _text, name=name: self.is_own.update({name: True}))
            control.textChanged.connect(lambda _text: self.changed.emit())
        self.merge.activated.connect(lambda _index: self.is_own.update({"merge": True}))
        self.merge.currentIndexChanged.connect(lambda _index: self._say_merge())
        self.skip_empty.toggled.connect(self.threshold.setEnabled)
        self.threshold.valueChanged.connect(lambda _value: self.changed.emit())
        for box in (self.skip_empty, self.grid):
            box.toggled.connect(lambda _checked: self.changed.emit())

    @property
    def empty_threshold(self) -> float | None:
        """None for Otsu's."""
        value: float = self.threshold.value()
        return None if value == self.threshold.minimum() else value

    def show_for(self, operation: str) -> None:
        """Show what an operation can be told."""
        self.setVisible(operation in TILED)
        for control in (self.overlap, self.merge, self.sentence):
            self.show_row(control, operation == "segment")
        self.show_row(self.skip_empty.parentWidget(), operation in ("segment", "blobs"))

    def _say_merge(self) -> None:
        self.sentence.setText(MERGES[self.merge.currentData()].sentence)
        self.changed.emit()


class OutputBox(Box):
    """Where the result goes."""

    def __init__(self) -> None:
        super().__init__("Result")
        self.store = line("result.ome.zarr")
        self.browse = button("…", "Choose the folder to write to.", self._browse)
        self.add("write to", row(self.store, self.browse), "OME-Zarr: that of the image, another, or a new one.")
        self.name = self.add("name", line("cells"), "Of the layer, and of the labels in the store.")
        self.overwrite = QCheckBox("replace what is there")
        self.overwrite.setToolTip("Once the new result is complete.")
        self.rows.addRow(self.overwrite)
        self._suggestion = ("", "")
        for control in (self.store, self.name):
            control.textChanged.connect(lambda _text: self.changed.emit())

    def suggest(self, operation: str, layer_name: str, source: Source | None) -> None:
        """Say where a result could go, unless a person has said so."""
        found = _suggested_store(operation, layer_name, source), _NAMES[operation]
        for control, old, new in zip((self.store, self.name), self._suggestion, found, strict=True):
            if control.text() in ("", old):
                control.setText(new)
        self._suggestion = found
        self.show_row(self.store.parentWidget(), operation in WRITERS)
        self.show_row(self.overwrite, operation in WRITERS)

    def _browse(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self, "Write to", self.store.text(), options=QFileDialog.Option.DontConfirmOverwrite
        )
        if path:
            self.store.setText(path)


_NAMES = {"segment": "objects", "label": "components", "blobs": "spots", "downsample": "smaller", "pyramid": "pyramid"}


def _suggested_store(operation: str, layer_name: str, source: Source | None) -> str:
    """The OME-Zarr of the image for labels; else one in the working folder, or in that of the user."""
    if source is None:
        return ""
    if source.home is not None and operation in LABELLING:
        return source.home
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) and Path.cwd() != Path("/") else Path.home()
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in layer_name)
    return str(folder / f"{plain}-{_NAMES[operation]}.zarr")


class WhereBox(Box):
    """What the job runs on."""

    def __init__(self) -> None:
        super().__init__("Where to run")
        kinds = [("threads of napari", "threads"), ("processes on this machine", "local"), ("jobs of SLURM", "slurm")]
        self.kind = self.add("on", combo(kinds), "Threads need no start; processes suit functions of pure Python.")
        self.n = self.add("workers", QSpinBox(), "Tiles at a time; jobs, for SLURM.")
        self.n.setRange(1, 10_000)
        self.n.setValue(cpu_count())
        self.queue = self.add("partition", line("as configured"), "Of SLURM.")
        self.cores = self.add("cores", QSpinBox(), "CPUs of a job: as many tiles at a time.")
        self.cores.setRange(0, 1024)
        self.cores.setSpecialValueText("as configured")
        self.memory = self.add("memory", line("as configured"), "Of a job, such as 16GiB.")
        self.walltime = self.add("time", line("as configured"), "Of a job, such as 04:00:00.")
        self._refuse_slurm(why_no_slurm())
        self.kind.currentIndexChanged.connect(lambda _index: self._chosen())
        self.n.valueChanged.connect(lambda _value: self.changed.emit())
        self._chosen()

    def workers(self) -> Workers:
        """What is chosen."""
        kind = self.kind.currentData()
        if kind != "slurm":
            return Workers(kind, self.n.value())
        told = {name: getattr(self, name).text().strip() for name in ("queue", "memory", "walltime")}
        told["cores"] = self.cores.value()
        return Workers("slurm", self.n.value(), {name: value for name, value in told.items() if value})

    def _refuse_slurm(self, why: str | None) -> None:
        item = self.kind.model().item(self.kind.findData("slurm"))
        item.setEnabled(why is None)
        item.setToolTip(why or "As many jobs as workers, in the queue until SLURM has room.")

    def _chosen(self) -> None:
        for control in (self.queue, self.cores, self.memory, self.walltime):
            self.show_row(control, self.kind.currentData() == "slurm")
        self.changed.emit()


class Form(QWidget):
    """All boxes, one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.what, self.tiles = ImageBox(), WhatBox(), TilesBox()
        self.output, self.where = OutputBox(), WhereBox()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2, 2, 2, 2)
        self.hint = QLabel("Add an image layer, or try File > Open Sample > Tissue section.")
        self.hint.setWordWrap(True)
        layout.addWidget(self.hint)
        for box in (self.image, self.what, self.tiles, self.output, self.where):
            layout.addWidget(box)
        layout.addStretch(1)
        for control in (*self.findChildren(QComboBox), *self.findChildren(QAbstractSpinBox)):
            control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            control.installEventFilter(self)

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802 - as Qt spells it
        """Who turns the wheel scrolls the form, and changes no value that the pointer happens to be over."""
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()
            return True
        handled: bool = super().eventFilter(watched, event)
        return handled
