"""The widget: the form, its buttons, and what they start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask.utils import format_time
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import (
    QApplication,
    QFrame,
    QGridLayout,
    QPlainTextEdit,
    QProgressBar,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from blockbuster.errors import BlockbusterError, OutputExistsError
from blockbuster.grid import TileGrid
from blockbuster.napari import grid_layer
from blockbuster.napari.background import Background
from blockbuster.napari.controls import button, note
from blockbuster.napari.form import Form
from blockbuster.napari.jobs import (
    TILED,
    Job,
    Source,
    Trial,
    carry_out,
    named_method,
    numbers_of,
    plan_of,
    python_of,
    suggested_method,
    suggested_tile_shape,
    try_tile,
)
from blockbuster.napari.layers import Picked, add_result, add_trial, remove, result_of
from blockbuster.napari.preview import Preview
from blockbuster.napari.reader import read
from blockbuster.napari.workers import Workers, active
from blockbuster.progress import RunProgress

__all__ = ["BlockbusterDock"]

_OVERLAP = 32
# Pixels in which napari can write the title.
_WIDTH = 350
_PLAIN, _BAD = "", "color: #ff8080;"


class BlockbusterDock(QWidget):
    """Process the image of a layer in tiles.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Whose layers are worked on. napari gives it to an argument of this name.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.form = Form()
        self.background = Background()
        self.preview = Preview(self, napari_viewer, self.form.tiles, self.grid)
        self._asked: tuple[Picked, Job, Workers] | None = None
        self._lay_out()
        self._connect()
        self._follow_layers()

    def event(self, event: Any) -> bool:
        """What Qt tells; a widget that is taken out of its window is done with."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._end()
        handled: bool = super().event(event)
        return handled

    def _end(self) -> None:
        """End what runs, and hear of nothing any more."""
        self.background.cancel()
        self.preview.end()
        for event in self._layer_events:
            event.disconnect(self._follow_layers)

    # The widget

    def _lay_out(self) -> None:
        self.plan = button("Plan", "What the run would take, tried on three tiles.", self._plan)
        self.try_here = button("Try here", "On the tile in the middle of the view.", self._try)
        self.run = button("Run", "On all tiles.", self._run)
        self.cancel = button("Cancel", "End within a tile; what is done is kept for Resume.", self._cancel)
        self.resume = button("Resume", "Go on with the run that was stopped.", self._resume)
        self.copy = button("Copy as Python", "Put a script that does the same on the clipboard.", self._copy)
        self.bar, self.message = QProgressBar(), note()
        self.read_out = QPlainTextEdit(readOnly=True, visible=False)
        self.read_out.setMaximumHeight(170)
        self.scroll = QScrollArea(widgetResizable=True)
        self.scroll.setFrameShape(QFrame.Shape.NoFrame)
        self.scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.scroll.setWidget(self.form)
        needed = self.form.minimumSizeHint().width() + self.scroll.verticalScrollBar().sizeHint().width() + 8
        self.setMinimumWidth(max(needed, _WIDTH))
        buttons = QGridLayout()
        parts = (self.plan, self.try_here, self.copy, self.run, self.cancel, self.resume)
        for n, part in enumerate(parts):
            buttons.addWidget(part, n // 3, n % 3)
        layout = QVBoxLayout(self)
        layout.addWidget(self.scroll, stretch=1)
        layout.addLayout(buttons)
        for part in (self.bar, self.message, self.read_out):
            layout.addWidget(part)
        self.bar.setRange(0, 1)
        self.bar.setTextVisible(False)

    def _connect(self) -> None:
        form = self.form
        form.image.changed.connect(self._image_changed)
        form.image.opened.connect(self._open)
        form.what.changed.connect(self._what_changed)
        form.tiles.changed.connect(self._changed)
        form.tiles.suggested.connect(self._suggest_again)
        self.background.progressed.connect(self._show_progress)
        self.background.failed.connect(self._failed)
        self.background.cancelled.connect(self._was_cancelled)
        self.background.returned.connect(self._returned)
        for event in self._layer_events:
            event.connect(self._follow_layers)
        self.destroyed.connect(self.background.cancel)

    def _follow_layers(self, event: Any = None) -> None:
        if self.preview.is_drawing:
            return
        if event is not None and event.type == "removed" and result_of(event.value) == grid_layer.NAME:
            self.form.tiles.grid.setChecked(False)
        self.form.image.offer(self.viewer.layers)
        self._enable()

    def _open(self, path: str) -> None:
        try:
            layers = read(path)
        except BlockbusterError as error:
            self._failed(error)
            return
        for data, options, kind in layers:
            getattr(self.viewer, f"add_{kind}")(data, **options)
        self._say(f"{path} is open.")

    @property
    def _layer_events(self) -> tuple[Any, Any]:
        return self.viewer.layers.events.inserted, self.viewer.layers.events.removed

    # What was chosen

    def picked(self) -> Picked | None:
        """The image that is chosen."""
        return self.form.image.picked()

    def job(self, *, resume: bool = False) -> Job:
        """What is asked for.

        Raises
        ------
        ParameterError
            If something that was typed cannot be read.
        """
        form, picked = self.form, self.picked()
        n_axes = len(picked.kept) if picked is not None else 2
        operation = form.what.operation.currentData()
        is_tiled = operation in TILED
        merge = form.tiles.merge.currentData()
        return Job(
            operation=operation,
            method=form.what.subject if operation == "segment" else "",
            parameters=form.what.parameters(),
            tile_shape=numbers_of(form.tiles.tile_shape.text(), n_axes, "tile shape") if is_tiled else None,
            overlap=numbers_of(form.tiles.overlap.text(), n_axes, "overlap") if operation == "segment" else None,
            merge=None if merge == "none" else merge,
            skip_empty=form.tiles.skip_empty.isChecked() and operation in ("segment", "blobs"),
            empty_threshold=form.tiles.empty_threshold,
            store=form.output.store.text().strip(),
            name=form.output.name.text().strip(),
            resume=resume,
            overwrite=form.output.overwrite.isChecked(),
        )

    def _image_changed(self) -> None:
        self.form.tiles.is_own["tile_shape"] = False
        self._what_changed()

    def _what_changed(self) -> None:
        form, picked = self.form, self.picked()
        operation = form.what.operation.currentData()
        form.tiles.show_for(operation)
        source = None if picked is None else picked.source()
        form.output.suggest(operation, "" if picked is None else picked.layer.name, source)
        if source is not None:
            self._suggest(source)
        self._changed()

    def _suggest_again(self) -> None:
        self.form.tiles.is_own.update(dict.fromkeys(self.form.tiles.is_own, False))
        self._what_changed()

    def _suggest(self, source: Source) -> None:
        """Fit merge rule, overlap and tile shape to the rest, but for what a person has set."""
        tiles, what = self.form.tiles, self.form.what
        if what.operation.currentData() == "segment":
            self._suggest_method(source)
        if tiles.is_own["tile_shape"]:
            return
        # What is asked for with one tile, until there is a better one.
        tiles.tile_shape.setText(", ".join(map(str, source.shape)))
        try:
            shape = suggested_tile_shape(source, self.job(), self.form.where.workers().n)
        except BlockbusterError as error:
            self._failed(error)
            return
        tiles.tile_shape.setText(", ".join(map(str, shape)))

    def _suggest_method(self, source: Source) -> None:
        tiles, what = self.form.tiles, self.form.what
        try:
            made = suggested_method(*named_method(Job("segment", what.subject, what.parameters())))
        except BlockbusterError:
            made = None
        merge = "touching" if made is None else made.merge
        # An instance segmenter needs some.
        default = _OVERLAP if merge == "iou" else 0
        overlap = default if made is None or made.overlap is None else made.overlap
        if not tiles.is_own["overlap"]:
            tiles.overlap.setText(", ".join("0" if n == 1 else str(overlap) for n in source.shape))
        if not tiles.is_own["merge"]:
            tiles.merge.setCurrentIndex(tiles.merge.findData(merge))

    def _changed(self) -> None:
        self._enable()
        self.preview.renew()

    def _enable(self) -> None:
        form, is_idle = self.form, not self.background.is_running
        has_image = self.picked() is not None
        is_tiled = form.what.operation.currentData() in TILED
        form.hint.setVisible(not has_image)
        for part in (form.what, form.tiles, form.output, form.where):
            part.setEnabled(has_image)
        for control in (self.run, self.plan, self.resume):
            control.setEnabled(has_image and is_idle)
        self.try_here.setEnabled(has_image and is_idle and is_tiled)
        self.copy.setEnabled(has_image)
        self.cancel.setEnabled(not is_idle)

    def grid(self) -> tuple[Picked, TileGrid] | None:
        """The tiles that are asked for; None where there is no image, or an operation has its own.

        Raises
        ------
        BlockbusterError
            If there can be no such tiles.
        """
        picked, job = self.picked(), self.job()
        if picked is None or job.tile_shape is None:
            return None
        return picked, TileGrid.regular(picked.source().shape, job.tile_shape, job.overlap or 0)

    # What the buttons do

    def _start(
        self, words: str, call: Callable[[Job, Source, Callable[[RunProgress], None]], Any], *, resume: bool = False
    ) -> None:
        picked = self.picked()
        assert picked is not None
        try:
            job, workers = self.job(resume=resume), self.form.where.workers()
        except BlockbusterError as error:
            self._failed(error)
            return
        source = picked.source()
        self._asked = (picked, job, workers)

        def work(report: Callable[[Any], None]) -> Any:
            with active(workers):
                return call(job, source, report)

        self.background.start(work)
        self.bar.setRange(0, 0)
        self.read_out.setVisible(False)
        self._say(words)
        self._enable()

    def _run(self) -> None:
        self._start("Starting …", carry_out)

    def _resume(self) -> None:
        self._start("Going on …", carry_out, resume=True)

    def _cancel(self) -> None:
        self.background.cancel()
        self._say("Stopping with the tiles that are being worked on …")

    def _plan(self) -> None:
        self._start("Trying a few tiles …", lambda job, source, _report: str(plan_of(job, source)))

    def _try(self) -> None:
        try:
            asked = self.grid()
        except BlockbusterError as error:
            self._failed(error)
            return
        assert asked is not None
        self.preview.draw()
        picked, grid = asked
        voxel = picked.voxel(self._centre(picked))
        (tile,) = grid.overlapping(voxel, [i + 1 for i in voxel])
        self._start(f"Trying tile {tile.index} …", lambda job, source, _report: try_tile(job, source, tile))

    def _centre(self, picked: Picked) -> list[float]:
        """The middle of the view, in the world of a layer."""
        point, dims = list(self.viewer.dims.point), self.viewer.dims
        for axis, value in zip(dims.displayed, self.viewer.camera.center[-len(dims.displayed) :], strict=True):
            point[axis] = value
        return point[-picked.layer.ndim :]

    def _copy(self) -> None:
        picked = self.picked()
        assert picked is not None
        try:
            QApplication.clipboard().setText(python_of(self.job(), picked.source()))
        except BlockbusterError as error:
            self._failed(error)
            return
        self._say("A script that does the same is on the clipboard.")

    # What is told

    def _show_progress(self, now: RunProgress) -> None:
        self.bar.setRange(0, now.total)
        self.bar.setValue(now.done)
        left = "" if now.seconds_left is None else f", {format_time(now.seconds_left)} left"
        skipped = f", {now.skipped:,} skipped" if now.skipped else ""
        self._say(f"{now.step}: {now.staged:,} of {now.n_tiles:,} tiles{skipped}{left}")

    def _returned(self, result: Any) -> None:
        assert self._asked is not None
        picked, job, workers = self._asked
        self._end_bar(done=True)
        if isinstance(result, str):
            self.read_out.setPlainText(result)
            self.read_out.setVisible(True)
            self._say("The run would take:")
        elif isinstance(result, Trial):
            add_trial(self.viewer, picked, job, result)
            self._say(self._trial_words(result, workers))
        else:
            remove(self.viewer, "try here")
            add_result(self.viewer, picked, job, result)
            self._say(f"{job.name} is done: {_result_words(job, result)}")

    def _trial_words(self, trial: Trial, workers: Workers) -> str:
        n_tiles = self.preview.n_to_do
        whole = format_time(trial.seconds * -(-n_tiles // workers.n))
        return (
            f"Tile {trial.tile.index}: {trial.n_found:,} found in {format_time(trial.seconds)}. {n_tiles:,} tiles "
            f"with {workers.n} at a time take about {whole}, and their merging and writing."
        )

    def _was_cancelled(self) -> None:
        self._end_bar()
        self._say("Stopped. Resume goes on with it, and does no tile again that is done.")

    def _failed(self, error: BaseException) -> None:
        if not self.background.is_running:
            self._end_bar()
        advice = (
            " Tick “replace what is there”, or choose another name." if isinstance(error, OutputExistsError) else ""
        )
        self._say("\n".join([f"{type(error).__name__}: {error}{advice}", *_notes(error)]), is_bad=True)

    def _end_bar(self, *, done: bool = False) -> None:
        self.bar.setRange(0, 1)
        self.bar.setValue(int(done))
        self._enable()

    def _say(self, words: str, *, is_bad: bool = False) -> None:
        self.message.setStyleSheet(_BAD if is_bad else _PLAIN)
        self.message.setText(words)


def _result_words(job: Job, result: Any) -> str:
    if job.operation == "blobs":
        return f"{len(result):,} spots."
    return f"see {job.store}."


def _notes(error: BaseException) -> list[str]:
    """What is added to an error, but for tracebacks of other processes."""
    return [line for line in getattr(error, "__notes__", []) if not line.startswith("Traceback")]
