"""The report of a run: what its log comes to, its pictures pixel by pixel, and the page as a browser would find it."""

from __future__ import annotations

import base64
import html.parser
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

import blockbuster
from blockbuster.errors import (
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
)
from blockbuster.grid import TileGrid
from blockbuster.image_files import open_file
from blockbuster.reporting import report
from blockbuster.reporting.page import facts, figure, page, table
from blockbuster.reporting.pictures import (
    FAILED,
    RAMP,
    encoded,
    labelled,
    laid_out,
    lane,
    seam_map,
    tile_map,
)
from blockbuster.reporting.totals import busy_lanes, merges_by_axis, merges_to_next, on_grid, slowest, totals
from blockbuster.reporting.views import close_up, place_on_seam, plane_of, resampled
from blockbuster.runlog import ENTRY, RunLog, State, write_seams
from blockbuster.sources import from_file, open_source
from tests.helpers import nothing_computed
from tests.test_seams import CountingStore, cells, ids

pytestmark = pytest.mark.usefixtures("synchronous")

SHAPE, TILE_SHAPE = (120, 160), (40, 40)
GRID = TileGrid.regular(SHAPE, TILE_SHAPE, 10)


def log_of(
    block_id: Sequence[int],
    began: Sequence[float],
    seconds: Sequence[float],
    *,
    state: Sequence[int] | None = None,
    worker: Sequence[int] | None = None,
    seams: Sequence[tuple[int, int, int]] = (),
) -> RunLog:
    """A log of some tiles, each of a thousand bytes and ten times its number of objects."""
    n = len(block_id)
    workers = np.zeros(n, np.int32) if worker is None else np.array(worker, np.int32)
    return RunLog(
        block_id=np.array(block_id, np.int64),
        state=np.zeros(n, np.uint8) if state is None else np.array(state, np.uint8),
        began=np.array(began, np.float64),
        seconds=np.array(seconds, np.float32),
        n_bytes=np.full(n, 1000, np.int64),
        n_objects=10 * np.array(block_id, np.int64),
        worker=workers,
        workers=tuple(f"node-{k}" for k in range(int(workers.max(initial=0)) + 1)),
        seams=np.array(seams, np.int64).reshape(-1, 3),
    )


# What a log comes to


def test_totals_count_overlapping_work_once() -> None:
    log = log_of(
        [0, 1, 2, 3], [100, 101, 110, 111], [3, 1, 4, 0.5], state=[State.DONE, State.DONE, State.FAILED, State.SKIPPED]
    )
    whole = totals(log)
    assert (whole.n_done, whole.n_skipped, whole.n_failed) == (2, 1, 1)
    assert (whole.work, whole.active, whole.began, whole.ended) == (8.5, 7, 100, 114)
    assert whole.speed_up == pytest.approx(8.5 / 7)
    assert whole.bytes_per_second == pytest.approx(4000 / 7)
    assert (whole.n_objects, whole.n_workers) == (60, 1)


def test_slowest_tiles_leave_out_skipped_ones() -> None:
    log = log_of([5, 6, 7, 8], [0] * 4, [1, 9, 3, 3], state=[0, State.SKIPPED, 0, State.FAILED])
    assert log.block_id[slowest(log, 3)].tolist() == [7, 8, 5]


def test_values_lie_on_the_grid_and_those_of_coarser_levels_are_left_out() -> None:
    grid = TileGrid.regular((4, 6), (2, 2))
    log = log_of([4, 1, 9], [0] * 3, [1, 2, 3])
    np.testing.assert_array_equal(on_grid(log, log.seconds, grid), [[np.nan, 2, np.nan], [np.nan, 1, np.nan]])


def test_lanes_are_the_tiles_at_work_in_each_part_of_time() -> None:
    log = log_of([0, 1, 2, 3], [10, 12, 12, 19], [4, 2.5, 1, 1], worker=[0, 0, 1, 1])
    lanes = busy_lanes(log, 10)
    np.testing.assert_allclose(lanes[0], [1, 1, 2, 2, 0.5, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(lanes[1], [0, 0, 1, 0, 0, 0, 0, 0, 0, 1], atol=1e-6)
    assert lanes.sum() == pytest.approx(totals(log).work)


def test_lanes_leave_out_the_days_until_a_run_was_resumed() -> None:
    log = log_of([0, 1, 2], [0, 2, 100_000], [2, 2, 4])
    np.testing.assert_allclose(busy_lanes(log, 8), np.ones((1, 8)), atol=1e-3)


def test_merges_are_told_by_the_axes_that_seams_cross() -> None:
    grid = TileGrid.regular((4, 6), (2, 2))
    log = log_of([0], [0], [1], seams=[(0, 1, 7), (1, 2, 2), (0, 3, 5), (1, 3, 1), (0, 4, 1)])
    assert [(one.axes, one.n_seams, one.n_pairs) for one in merges_by_axis(log, grid)] == [
        ((0,), 1, 5),
        ((1,), 2, 9),
        ((0, 1), 2, 2),
    ]
    np.testing.assert_array_equal(merges_to_next(log, grid, 1), [[7, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(merges_to_next(log, grid, 0), [[5, 0, 0], [0, 0, 0]])
    assert merges_by_axis(log_of([0], [0], [1]), grid) == []


# Pictures


def pixels_of(picture: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(picture)))


def test_a_map_has_a_square_of_one_colour_for_each_tile() -> None:
    values = np.array([[0.0, 5.0], [10.0, np.nan]])
    failed = np.array([[False, False], [False, True]])
    made = pixels_of(encoded(tile_map(values, 10, [(failed, FAILED)])))
    size = made.shape[0] // 2
    corners = made[size // 2 :: size, size // 2 :: size]
    assert [tuple(corners[index]) for index in np.ndindex(2, 2)] == [
        (*RAMP[0], 255),
        (*RAMP[2], 255),
        (*RAMP[-1], 255),
        (*FAILED, 255),
    ]
    absent = tile_map(values, 10, [])
    assert absent[-1, -1, 3] == 0


def test_a_map_of_a_million_tiles_is_a_small_picture_of_the_greatest() -> None:
    values = np.zeros((1000, 1000))
    values[501, 7] = 1
    failed = np.zeros((1000, 1000), bool)
    failed[3, 999] = True
    made = tile_map(values, 1, [(failed, FAILED)])
    assert made.shape == (500, 500, 4)
    assert tuple(made[250, 3, :3]) == RAMP[-1]
    assert tuple(made[1, 499, :3]) == FAILED
    assert np.unique(made.reshape(-1, 4), axis=0).shape == (3, 4)
    assert max(tile_map(np.ones((3000, 10)), 1, []).shape) <= 640
    assert max(seam_map(np.ones((3000, 10)), np.ones((3000, 10)), 1).shape) <= 640


def test_grids_of_more_axes_are_layers_or_their_greatest() -> None:
    values = np.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    plane = laid_out(values)
    np.testing.assert_array_equal(plane[:, :4], values[0, 0])
    np.testing.assert_array_equal(plane[:, 5:], values[0, 1])
    many = np.arange(20 * 2 * 2.0).reshape(20, 2, 2)
    many[:, 1, 1] = np.nan
    np.testing.assert_array_equal(laid_out(many), [[76, 77], [78, np.nan]])
    np.testing.assert_array_equal(laid_out(many, of_layers="sum"), [[760, 780], [800, np.nan]])
    assert laid_out(np.ones((100, 1, 1))).shape == (4, 32)
    assert laid_out(np.ones((1, 1))).shape == (1, 1)


def test_a_seam_map_has_a_bar_where_labels_merged() -> None:
    down, right = np.array([[4.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [2.0, 0.0]])
    made = seam_map(down, right, 4)
    size = made.shape[0] // 2
    assert tuple(made[size - 1, 2]) == (*RAMP[-1], 255)
    assert tuple(made[size + 2, size - 1]) == (*RAMP[2], 255)
    assert made[2, size - 1, 3] == made[size - 1, size + 2, 3] == 0


def test_a_lane_is_as_opaque_as_its_worker_was_busy() -> None:
    assert lane(np.array([0, 1, 2]), 2)[0, :, 3].tolist() == [0, 127, 255]


def test_labels_have_a_colour_each_and_lines_between_tiles() -> None:
    labels = np.array([[0, 7, 7, 8]] * 4)
    made = labelled(labels, None, [[2], []], 3)
    assert made.shape == (12, 12, 3)
    assert len({tuple(made[0, column]) for column in (1, 4, 10)}) == 3
    assert tuple(made[0, 4]) == tuple(made[0, 7])
    assert (made[6].astype(int) > made[5]).all()
    assert (made[5] == made[4]).all()
    # A border between two voxels that are shown, near the end.
    assert labelled(labels, None, [[], [3.7]]).shape == (4, 4, 3)


# Views


def test_a_view_is_of_the_level_that_is_small_enough(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 1500, 1200), np.uint8)
    blockbuster.write_image(image, tmp_path / "i.ome.zarr", axes="zyx", n_levels=3, scale_factor=[1, 2, 2])
    file = open_file(str(tmp_path / "i.ome.zarr"))
    levels = [from_file(file, channel=None, level=level) for level in range(3)]
    view = plane_of(levels)
    assert (view.data.shape, view.step, view.at) == ((750, 600), (2.0, 2.0), (1,))
    assert view.places([0, 40, 1500], 0) == [0, 20, 750]
    only = plane_of(levels[:1])
    np.testing.assert_array_equal(only.data, image[1, ::2, ::2])
    np.testing.assert_array_equal(resampled(only, view), only.data)


def test_a_view_of_a_huge_plane_reads_its_middle_only() -> None:
    store = CountingStore(zarr.storage.MemoryStore())
    huge = zarr.create_array(store, shape=(200_000, 200_000), chunks=(4096, 4096), dtype="uint8", fill_value=0)
    view = plane_of([open_source(huge)])
    assert view.data.size <= 1 << 20
    assert view.step == (16.0, 16.0)
    assert len(store.read) <= 25
    middle = [origin + step * n / 2 for origin, step, n in zip(view.origin, view.step, view.data.shape, strict=True)]
    assert middle == pytest.approx([100_000, 100_000], abs=16)


def test_a_view_reads_no_chunk_beside_its_plane() -> None:
    store = CountingStore(zarr.storage.MemoryStore())
    labels = zarr.create_array(store, data=cells((64, 64, 64), 60).astype("uint16"), chunks=(8, 64, 64))
    view = plane_of([open_source(labels)])
    assert view.data.shape == (64, 64)
    assert set(store.read) == {"c/4/0/0"}


def test_a_place_on_a_seam_is_where_foreground_crosses_it() -> None:
    grid = TileGrid.regular((8, 20, 20), (4, 10, 10))
    labels = np.zeros((8, 20, 20), int)
    labels[2, 3, 8:12] = labels[6, 9:11, 15] = labels[3:5, 2, 3] = 1
    image = open_source(labels)
    assert place_on_seam(image, grid, 0, 1) == ([2, 3, 10], (1, 2))
    assert place_on_seam(image, grid, 5, 7) == ([6, 10, 15], (1, 2))
    assert place_on_seam(image, grid, 0, 4) == ([4, 2, 3], (0, 2))
    # Where nothing crosses it, the middle.
    assert place_on_seam(image, grid, 2, 3) == ([2, 15, 10], (1, 2))
    assert place_on_seam(image, grid, 0, 3) == ([2, 10, 10], (1, 2))


def test_a_close_up_is_a_plane_at_full_resolution() -> None:
    image = np.arange(20 * 30 * 40).reshape(20, 30, 40)
    view = close_up(open_source(image), [10, 2, 20], (0, 2), 12)
    np.testing.assert_array_equal(view.data, image[4:16, 2, 14:26])
    assert (view.origin, view.at) == ((4, 14), (2,))


# The page


class Outline(html.parser.HTMLParser):
    """What a page holds, and whether each element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.pictures: list[bytes] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
            assert not name.startswith("on")
        assert tag != "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
            return
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if "td" in self.open:
            self.rows[-1].append(data)
        self.words.append(data)


def outline(path: Path) -> Outline:
    """What a page holds; all of it is in the file."""
    made = Outline(path.read_text())
    for address in made.addresses:
        kind, _, data = address.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        made.pictures.append(base64.b64decode(data, validate=True))
        assert pixels_of(made.pictures[-1]).size
    return made


def segmented(folder: Path, merge: Any = "iou", name: str = "cells.zarr") -> Path:
    """Cells that touch, segmented tile by tile."""
    tissue = cells(SHAPE, 80)
    blockbuster.tile_process(
        tissue, ids, tile_shape=TILE_SHAPE, overlap=10, merge=merge, sequential_labels=True, write_to=folder / name
    )
    return folder / name


def kept(folder: Path, log: RunLog) -> Path:
    """The log as the processes of a run leave it."""
    folder.mkdir()
    for number, worker in enumerate(log.workers):
        mine = log.worker == number
        entries = np.zeros(np.count_nonzero(mine), ENTRY)
        for name in ENTRY.names or ():
            entries[name] = getattr(log, name)[mine]
        entries.tofile(folder / worker)
    write_seams(str(folder), log.seams)
    return folder


def full_log() -> RunLog:
    n = GRID.n_tiles
    state = np.zeros(n, int)
    state[[3, 5]] = State.SKIPPED, State.FAILED
    log = log_of(range(n), np.arange(n) / 2 + 1.7e9, np.linspace(1, 2, n), state=state, worker=np.arange(n) % 2)
    return replace(log, seams=np.array([(0, 1, 4), (1, 2, 9), (0, 4, 3), (0, 5, 1)]))


def test_a_report_of_a_run_has_all_parts_in_one_file(tmp_path: Path) -> None:
    store = segmented(tmp_path)
    image = 255 * (cells(SHAPE, 80) % 7 == 0).astype(np.uint8)
    made = report(store, image=image, log=kept(tmp_path / "log", full_log()))
    assert made == tmp_path / "cells.labels.report.html"
    found = outline(made)
    assert found.headings == [
        "cells.labels",
        "The labels",
        "Seams",
        "The tiles",
        "Merges",
        "Who was at work when",
        "What was run",
    ]
    text = " ".join(found.words)
    for words in ("80 objects", "12 tiles, 1 of them skipped", "1 tile failed", "seam index: "):
        assert words in text
    assert ["faces across axis 1", "2", "13", "6.5"] in found.rows
    assert ["1 at (0, 1), [0:40, 40:80]", "2 at (0, 2), [0:40, 80:120]", "9"] in found.rows
    # Labels, three details, time, objects, merges, and two workers.
    assert len(found.pictures) == 9


def test_the_map_of_a_report_shows_each_tile_by_its_time(tmp_path: Path) -> None:
    found = outline(report(segmented(tmp_path), log=kept(tmp_path / "log", full_log())))
    (seconds,) = [
        picture
        for picture, words in zip(found.pictures, re.findall(r'alt="([^"]*)"', report_text(tmp_path)), strict=True)
        if words == "Seconds of each tile."
    ]
    drawn = pixels_of(seconds)
    size = drawn.shape[0] // 3
    squares = drawn[size // 2 :: size, size // 2 :: size]
    assert squares.shape == (3, 4, 4)
    assert tuple(squares[1, 1, :3]) == FAILED
    assert tuple(squares[2, 3, :3]) == RAMP[-1]
    assert len(np.unique(squares.reshape(12, 4), axis=0)) == 12


def report_text(folder: Path) -> str:
    return (folder / "cells.labels.report.html").read_text()


@pytest.mark.parametrize(("merge", "verdict"), [("iou", "no visible seam"), (None, "cut"), ("touching", "over-merged")])
def test_a_report_says_what_the_seams_are_like(merge: Any, verdict: str, tmp_path: Path) -> None:
    tissue = cells((300, 300), 250)
    blockbuster.tile_process(
        tissue, ids, tile_shape=(50, 50), overlap=20, merge=merge, write_to=tmp_path / "cells.zarr"
    )
    found = outline(report(tmp_path / "cells.zarr", tile_shape=(50, 50)))
    assert f"seam index: {verdict}" in found.words


def test_results_of_others_get_a_report_of_what_is_known(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=cells((60, 60), 30), chunks=(20, 20))
    found = outline(report(tmp_path / "x.zarr"))
    assert found.headings == ["x", "The labels", "What was run"]
    assert "Nothing is kept with it of the run that made it." in found.words
    assert outline(report(tmp_path / "x.zarr", tile_shape=(20, 20))).headings[1:] == [
        "The labels",
        "Seams",
        "What was run",
    ]
    zarr.create_array(tmp_path / "f.zarr", data=np.ones((9, 9)), chunks=(3, 3))
    assert outline(report(tmp_path / "f.zarr", tile_shape=(3, 3))).headings == ["f", "The result", "What was run"]


@pytest.mark.parametrize("shape", [(50,), (9, 40, 50), (2, 2, 3, 40, 50), (0, 5)])
def test_results_of_every_number_of_axes_get_a_report(shape: tuple[int, ...], tmp_path: Path) -> None:
    labels = np.arange(np.prod(shape)).reshape(shape) // 7
    store = tmp_path / "out.zarr"
    tiles = tuple(max(n // 2, 1) for n in shape)
    blockbuster.tile_process(labels % 3, ids, tile_shape=tiles, write_to=store)
    found = outline(report(store, tile_shape=tiles))
    assert found.headings[0] == "out.labels"
    assert (len(found.pictures) == 1) is (len(shape) > 1 and 0 not in shape)


def test_grids_of_layers_get_their_maps(tmp_path: Path) -> None:
    store = tmp_path / "v.zarr"
    blockbuster.tile_process(cells((12, 40, 40), 40), ids, tile_shape=(4, 20, 20), merge=None, write_to=store)
    seams = [(0, 1, 4), (0, 4, 9), (4, 8, 2), (0, 5, 1)]
    log = log_of(range(12), np.zeros(12), np.ones(12), seams=seams)
    found = outline(report(store, log=kept(tmp_path / "log", log)))
    text = " ".join(found.words)
    assert "side by side are the layers along axis 0" in text
    assert "Merges of each tile with the next one along axis 0." in text
    assert "Merges over the faces across axis 1 and axis 2." in text
    assert ["edges and corners across axis 0, axis 2", "1", "1", "1"] in found.rows


def test_copies_get_a_report_of_their_tiles(tmp_path: Path) -> None:
    image = np.indices((64, 80)).sum(0).astype("uint8")
    blockbuster.copy(image, tmp_path / "c.zarr", chunks=(16, 40), tile_shape=(32, 40), keep_stage=True)
    (stage,) = (path for path in tmp_path.iterdir() if ".blockbuster-" in path.name)
    found = outline(report(tmp_path / "c.zarr", log=stage / "log"))
    assert found.headings == ["c", "The result", "The tiles", "Who was at work when", "What was run"]
    assert "2 x 2 tiles of 32 x 40 voxels, with an overlap of 0, 0. Rows are axis 0, columns axis 1." in found.words
    assert len(found.pictures) == 3


def test_labels_of_an_ome_zarr_are_shown_over_their_image(tmp_path: Path) -> None:
    path = tmp_path / "tissue.ome.zarr"
    tissue = cells((60, 80), 30)
    image = np.stack([np.zeros((60, 80)), np.indices((60, 80)).sum(0)]).astype("uint8")
    blockbuster.write_image(image, path, axes="cyx", n_levels=2)
    blockbuster.write_labels(tissue, path, "cells")
    over = outline(report(path, "labels/cells", channel=1))
    # The tiles in which they were written are not those in which they were made.
    assert over.headings == ["tissue.labels.cells", "The labels", "What was run"]
    # A photo is in it: that of the image.
    assert over.pictures[0].startswith(b"\xff\xd8")
    bright = pixels_of(over.pictures[0]).astype(int).sum(axis=2)
    n = bright.shape[0] // 2
    assert bright[n:, n:].mean() > 1.3 * bright[:n, :n].mean()
    assert outline(report(path, "")).headings[:2] == ["tissue", "The result"]


@pytest.mark.parametrize("name", ["image.ome.zarr", "image.zarr", "image.tif"])
def test_the_image_of_a_run_is_shown_while_it_is_there(name: str, tmp_path: Path) -> None:
    image = np.indices((60, 80)).sum(0).astype("uint8")
    if name == "image.tif":
        tifffile.imwrite(tmp_path / name, image)
    elif name == "image.zarr":
        zarr.create_array(tmp_path / name, data=image, chunks=(20, 20))
    else:
        blockbuster.write_image(np.stack([image, 0 * image]), tmp_path / name, axes="cyx", n_levels=2)
    store = tmp_path / "labels.zarr"
    blockbuster.label(tmp_path / name, threshold=20, tile_shape=(30, 40), write_to=store)
    drawn = pixels_of(outline(report(store)).pictures[0]).astype(int).sum(axis=2)
    n = drawn.shape[0] // 2
    assert drawn[n:, n:].mean() > 1.3 * drawn[:n, :n].mean()
    (tmp_path / name).rename(tmp_path / "moved")
    # Without the image, labels are pictures of few colours.
    assert outline(report(store)).pictures[0].startswith(b"\x89PNG")


def test_words_of_a_run_are_no_markup(tmp_path: Path) -> None:
    kept = {"operation": "tile_process", "manifest": {"function": "<script>alert(1)</script>"}}
    zarr.create_array(tmp_path / "a<b>.zarr", data=np.ones((8, 8), int), attributes={"blockbuster": kept})
    found = outline(report(tmp_path / "a<b>.zarr"))
    assert found.headings[0] == "a<b>"
    assert ["<script>alert(1)</script>"] in found.rows


def test_parts_of_pages_escape_their_words() -> None:
    made = [
        figure(encoded(np.zeros((1, 1, 3), np.uint8)), '"<&'),
        table(("<a>",), [["<b>"]], caption="<c>"),
        facts({"<d>": "<e>"}),
    ]
    whole = page("<f>", "<g>", made, [])
    assert Outline(whole).words
    assert re.findall(r"<[a-g]>", whole) == []


# At the end of a run


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_a_run_writes_its_own_report(scheduler: str, tmp_path: Path) -> None:
    tissue = cells(SHAPE, 80)
    tissue[:50, :50] = 0
    with dask.config.set(scheduler=scheduler):
        blockbuster.tile_process(
            tissue,
            ids,
            tile_shape=TILE_SHAPE,
            overlap=10,
            merge="iou",
            skip_empty=True,
            empty_threshold=0,
            write_to=tmp_path / "cells.zarr",
            report=True,
        )
    found = outline(tmp_path / "cells.labels.report.html")
    assert found.headings[1:] == ["The labels", "Seams", "The tiles", "Merges", "Who was at work when", "What was run"]
    assert {"12", "tiles, 1 of them skipped", "skipped as empty"} <= set(found.words)
    assert not any("failed" in words for words in found.words)


def test_a_report_of_a_run_goes_where_it_is_wanted(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((60, 80)) > 0.6
    blockbuster.label(image, tile_shape=(30, 40), write_to=tmp_path / "new" / "l.zarr", report=tmp_path / "mine.html")
    text = " ".join(outline(tmp_path / "mine.html").words)
    n_pairs = int(np.count_nonzero(image[29] & image[30]) + np.count_nonzero(image[:, 39] & image[:, 40]))
    faces = [row for row in outline(tmp_path / "mine.html").rows if row and row[0].startswith("faces across")]
    assert 0 < sum(int(row[2]) for row in faces) <= n_pairs
    assert "There is no seam index: nothing touches." in text


def test_times_of_a_run_are_not_lost_to_a_later_report(tmp_path: Path) -> None:
    image, store = np.eye(60), tmp_path / "l.zarr"
    options = {"tile_shape": (30, 30), "write_to": store}
    blockbuster.label(image, **options, report=True)
    page_of_run = tmp_path / "l.labels.report.html"
    before = page_of_run.read_text()
    with pytest.raises(OutputExistsError, match="has the times of the run"):
        report(store)
    assert outline(report(store, write_to=tmp_path / "other.html")).headings[0] == "other"
    blockbuster.label(image, **options, resume=True, report=True)
    assert page_of_run.read_text() == before
    page_of_run.unlink()
    blockbuster.label(image, **options, resume=True, report=True)
    assert "Who was at work when" not in page_of_run.read_text()
    blockbuster.label(image, **options, overwrite=True, report=True)
    assert "Who was at work when" in page_of_run.read_text()


def test_a_report_that_cannot_be_is_refused_before_the_first_task(tmp_path: Path) -> None:
    (tmp_path / "thesis.html").write_text("years of work")
    with nothing_computed():
        with pytest.raises(OutputExistsError, match="is no report"):
            blockbuster.label(np.eye(8), write_to=tmp_path / "l.zarr", report=tmp_path / "thesis.html")
        with pytest.raises(OutputError, match="there is no folder"):
            blockbuster.label(np.eye(8), write_to=tmp_path / "l.zarr", report=tmp_path / "none" / "r.html")
        with pytest.raises(ParameterError, match="Give write_to"):
            blockbuster.label(np.eye(8), compute=True, report=True)
        with pytest.raises(ParameterError, match="report 3 is neither"):
            blockbuster.label(np.eye(8), write_to=tmp_path / "l.zarr", report=3)
    assert not (tmp_path / "l.zarr").exists()


# Where it goes, and what is refused


def test_an_earlier_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    store = segmented(tmp_path)
    made = report(store)
    first = made.read_text()
    made.write_text(first.replace("What was run", "What was changed"))
    assert report(store) == made
    assert made.read_text() == first
    other = tmp_path / "thesis.html"
    other.write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"thesis\.html is there, and is no report"):
        report(store, write_to=other)
    with pytest.raises(OutputExistsError, match="is no report"):
        report(store, write_to=store)
    assert other.read_text() == "years of work"
    with pytest.raises(OutputError, match="there is no folder"):
        report(store, write_to=tmp_path / "none" / "r.html")


def test_a_path_into_a_store_leads_to_the_same_page(tmp_path: Path) -> None:
    store = segmented(tmp_path)
    assert report(f"{store}/labels") == report(store, "labels") == report(store)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "system-tmp") == [
        "cells.labels.report.html",
        "cells.zarr",
    ]


def test_several_results_are_named(tmp_path: Path) -> None:
    store = segmented(tmp_path)
    blockbuster.label(cells(SHAPE, 80) % 2, tile_shape=TILE_SHAPE, write_to=store, output_component="more/components")
    with pytest.raises(ImageError, match=r"'labels', 'more/components'\. Give one of them as component"):
        report(store)
    assert report(store, "more/components").name == "cells.more.components.report.html"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"component": "nothing"}, ImageError, "nothing"),
        ({"component": "../labels"}, ParameterError, "path within the store"),
        ({"max_faces": -1}, ParameterError, "max_faces -1"),
        ({"log": "nowhere"}, ParameterError, "log 'nowhere' is no folder"),
        ({"tile_shape": (4,)}, GeometryError, "tile_shape"),
        ({"image": np.ones((3, 3))}, GeometryError, r"shape \(3, 3\), the labels \(120, 160\)"),
        ({"image": "nothing.zarr"}, ImageError, "nothing.zarr"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path) -> None:
    store = segmented(tmp_path)
    with pytest.raises(kind, match=words):
        report(store, **options)
    assert not list(tmp_path.glob("*.html"))


def test_a_store_without_a_place_beside_it_needs_one() -> None:
    with pytest.raises(ParameterError, match="Give write_to"):
        report("s3://bucket/labels.zarr", "labels")
