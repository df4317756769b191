"""The widget on an image that is far larger than memory."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("napari")

from numpy.typing import NDArray

from blockbuster.grid import TileGrid
from blockbuster.napari.grid_layer import Outlines, coarse_level, estimated_tiles, outlines
from blockbuster.napari.layers import Picked
from tests.napari.conftest import Person

EXTENT, CHUNK = 50_000, 1000


class Counted:
    """A level that tells which threads read of it."""

    def __init__(self, extent: int) -> None:
        self.shape, self.dtype, self.ndim = (extent, extent), np.dtype(np.uint16), 2
        self.readers: list[str] = []

    def __getitem__(self, key: Any) -> NDArray[np.uint16]:
        self.readers.append(threading.current_thread().name)
        rows, columns = (np.arange(self.shape[0])[part] for part in key)
        bright = (rows[:, np.newaxis] < self.shape[0] // 2) & (columns % 8 == 0)
        return np.where(bright, 1000, 10).astype(np.uint16)


def pyramid() -> tuple[list[Counted], list[Any]]:
    levels = [Counted(EXTENT // 2**k) for k in range(7)]
    return levels, [
        da.from_array(level, chunks=CHUNK, asarray=False, meta=np.empty((0, 0), np.uint16)) for level in levels
    ]


def test_opening_and_the_grid_read_nothing_of_the_finest_level(person: Person, record_property: Any) -> None:
    levels, arrays = pyramid()
    person.viewer.add_image(arrays, multiscale=True, name="large", contrast_limits=(0, 1000))
    person.viewer.reset_view()
    person.settle()
    assert levels[-1].readers
    assert not levels[0].readers
    person.viewer.window.remove_dock_widget(person.dock)
    begin = time.perf_counter()
    _, person.dock = person.viewer.window.add_plugin_dock_widget("blockbuster-imaging", "Process in tiles")
    person.form = person.dock.form
    opened = time.perf_counter() - begin
    person.type(person.form.tiles.tile_shape, "512")
    begin = time.perf_counter()
    person.dock.preview.draw()
    drawn = time.perf_counter() - begin
    assert person.form.tiles.told.text() == "98 x 98 = 9,604 tiles"
    assert not levels[0].readers
    record_property("seconds_to_open", opened)
    record_property("seconds_to_draw", drawn)
    print(f"opened in {opened:.2f} s, drawn in {drawn:.2f} s")  # noqa: T201 - figures to look at


def test_skipped_tiles_are_estimated_from_a_coarse_level_in_another_thread(person: Person) -> None:
    levels, arrays = pyramid()
    person.viewer.add_image(arrays, multiscale=True, name="large", contrast_limits=(0, 1000))
    person.type(person.form.tiles.tile_shape, "1000")
    person.click(person.form.tiles.skip_empty)
    person.wait(lambda: "skipped" in person.form.tiles.told.text())
    # The row of tiles next to what is bright counts as such: a voxel of the coarse level may be of both.
    assert person.form.tiles.told.text().startswith("50 x 50 = 2,500 tiles, about 1,200 of them skipped")
    assert not any(level.readers for level in levels[:-2])


# What is estimated and drawn, by itself


def layer_of(levels: list[Any]) -> Any:
    return SimpleNamespace(multiscale=True, axis_labels=("y", "x"), ndim=2, data=levels)


def test_the_coarse_level_still_tells_tiles_apart() -> None:
    picked = Picked(layer_of([np.zeros((n, n)) for n in (512, 256, 128, 64)]))
    assert coarse_level(picked, TileGrid.regular((512, 512), (64, 64))) == 3
    assert coarse_level(picked, TileGrid.regular((512, 512), (8, 8))) == 2
    assert coarse_level(picked, TileGrid.regular((512, 512), (2, 2))) == 0


def test_the_estimate_finds_the_empty_tiles_of_a_grid_that_does_not_fit_the_level() -> None:
    image = np.zeros((500, 500), np.uint8)
    image[120:140, 330:350] = 200

    grid = TileGrid.regular((500, 500), (70, 90))
    found = estimated_tiles(Picked(layer_of([image, image[::4, ::4]])), grid, 100)
    assert found is not None
    occupied = np.array([image[tile.core].any() for tile in grid.tiles()]).reshape(grid.numblocks)
    assert found.occupied.shape == grid.numblocks
    assert (found.occupied >= occupied).all()
    assert found.n_occupied < grid.n_tiles // 3


def is_same(made: Outlines, lines: list[Any], n_crosses: int) -> bool:
    return sorted(made.lines.tolist()) == sorted(lines) and int(made.is_skipped.sum()) == n_crosses


def test_of_too_many_tiles_there_is_only_a_frame() -> None:
    bounds = (tuple(range(20_001)), (0, 5))
    frame = [
        [[-0.5, -0.5], [0, 5]],
        [[19_999.5, -0.5], [0, 5]],
        [[-0.5, -0.5], [20_000, 0]],
        [[-0.5, 4.5], [20_000, 0]],
    ]
    assert is_same(outlines(bounds, np.zeros((20_000, 1), np.bool_)), frame, 0)
    assert len(outlines((tuple(range(10_001)), (0, 5)), np.zeros((10_000, 1), np.bool_)).lines) == 10_003 + 20_000


def test_of_too_many_tiles_none_is_looked_at() -> None:
    picked = Picked(layer_of([np.zeros((512, 512), np.uint8)]))
    assert estimated_tiles(picked, TileGrid.regular((512, 512), (64, 64)), 1) is not None
    assert estimated_tiles(picked, TileGrid.regular((512, 512), (3, 3)), 1) is None


def test_outlines_are_the_borders_and_a_cross_over_each_skipped_tile() -> None:
    borders = [
        [[-0.5, -0.5], [0, 6]],
        [[3.5, -0.5], [0, 6]],
        [[-0.5, -0.5], [4, 0]],
        [[-0.5, 2.5], [4, 0]],
        [[-0.5, 5.5], [4, 0]],
    ]
    cross = [[[-0.5, 2.5], [4, 3]], [[3.5, 2.5], [-4, 3]]]
    bounds = ((0, 4), (0, 3, 6))
    assert is_same(outlines(bounds, np.array([[True, True]])), borders, 0)
    assert is_same(outlines(bounds, np.array([[True, False]])), borders + cross, 2)
