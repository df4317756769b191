"""The tiles that are asked for, drawn over the image a moment after the last change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from qtpy.QtCore import QObject, QTimer

from blockbuster.emptiness import EmptyTiles
from blockbuster.errors import BlockbusterError
from blockbuster.grid import TileGrid
from blockbuster.napari import grid_layer
from blockbuster.napari.background import Background
from blockbuster.napari.form import TilesBox
from blockbuster.napari.layers import Picked, remove

__all__ = ["Preview"]

# Milliseconds after the last change.
_PATIENCE = 250


class Preview(QObject):
    """Draws tiles, and tells how many there are, and how many of them hold nothing.

    Parameters
    ----------
    tiles : TilesBox
        Says whether they are to be seen, and is where they are told of.
    asked : callable
        The image and the tiles that are asked for now, if any; what it raises is told.

    Attributes
    ----------
    is_drawing : bool
        Whether a change of the layers is its own.
    """

    def __init__(
        self, parent: Any, viewer: Any, tiles: TilesBox, asked: Callable[[], tuple[Picked, TileGrid] | None]
    ) -> None:
        super().__init__(parent)
        self.is_drawing = False
        self._viewer, self._tiles, self._asked = viewer, tiles, asked
        self._grid: TileGrid | None = None
        self._estimated: EmptyTiles | None = None
        self._estimator = Background()
        self._estimator.returned.connect(self._show_estimate)
        self._estimator.failed.connect(self._tell_error)
        self._timer = QTimer(self, singleShot=True, interval=_PATIENCE)
        self._timer.timeout.connect(self.draw)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to draw."""
        return not self._timer.isActive() and not self._estimator.is_running

    @property
    def n_to_do(self) -> int:
        """Tiles that are not skipped, as far as is known."""
        if self._estimated is not None:
            return self._estimated.n_occupied
        return 0 if self._grid is None else self._grid.n_tiles

    def renew(self) -> None:
        """Draw soon, and forget what was estimated."""
        self._estimated = None
        self._timer.start()

    def end(self) -> None:
        """Draw nothing any more."""
        self._timer.stop()
        self._remove()

    def draw(self) -> None:
        """Draw now."""
        try:
            asked = self._asked()
        except BlockbusterError as error:
            self._tell_error(error)
            asked = None
        self._grid = None if asked is None else asked[1]
        if asked is None or not self._tiles.grid.isChecked():
            self._remove()
        else:
            with self._own_change():
                grid_layer.draw(self._viewer, *asked, None if self._estimated is None else self._estimated.occupied)
        if asked is not None:
            self._tell(asked[1])
            self._estimate(*asked)

    @contextlib.contextmanager
    def _own_change(self) -> Iterator[None]:
        self.is_drawing = True
        try:
            yield
        finally:
            self.is_drawing = False

    def _remove(self) -> None:
        with self._own_change():
            remove(self._viewer, grid_layer.NAME)

    def _tell(self, grid: TileGrid, more: str = "") -> None:
        words = f"{' x '.join(map(str, grid.numblocks))} = {grid.n_tiles:,} tiles"
        found = self._estimated
        if found is not None:
            n_empty = grid.n_tiles - found.n_occupied
            words += f", about {n_empty:,} of them skipped, which have nothing above {found.threshold:g}"
        self._tiles.told.setText(words + more)

    def _tell_error(self, error: BaseException) -> None:
        self._tiles.told.setText(str(error))

    # Tiles that hold nothing

    def _estimate(self, picked: Picked, grid: TileGrid) -> None:
        if not self._tiles.skip_empty.isChecked() or self._estimated is not None:
            return
        if self._estimator.is_running:
            self._timer.start()
            return
        threshold = self._tiles.empty_threshold
        self._estimator.start(lambda _report: (grid, grid_layer.estimated_tiles(picked, grid, threshold)))

    def _show_estimate(self, found: tuple[TileGrid, EmptyTiles | None]) -> None:
        grid, estimated = found
        if grid is not self._grid:
            return
        if estimated is None:
            self._tell(grid, "; those that are skipped are only known in the run")
            return
        self._estimated = estimated
        self.draw()
