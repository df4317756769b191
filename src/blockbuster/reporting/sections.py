"""What a report tells, part by part: each from what is known of a result to a section of the page."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.utils import format_time
from numpy.typing import NDArray

from blockbuster.capacity import size_words
from blockbuster.grid import TileGrid
from blockbuster.reporting.page import (
    Section,
    cards,
    facts,
    figure,
    lanes,
    legend,
    paragraph,
    ramp,
    side_by_side,
    swatch,
    table,
)
from blockbuster.reporting.pictures import (
    ABSENT,
    FAILED,
    MOST_LAYERS,
    RAMP,
    SKIPPED,
    encoded,
    grey,
    labelled,
    laid_out,
    lane,
    seam_map,
    tile_map,
)
from blockbuster.reporting.totals import busy_lanes, merges_by_axis, merges_to_next, on_grid, slowest, totals
from blockbuster.reporting.views import View, close_up, place_on_seam, plane_of, resampled
from blockbuster.runlog import RunLog, State
from blockbuster.seams import AxisSeams, SeamIndex
from blockbuster.sources import Image, StoredImage

__all__ = ["Result", "head_of", "sections_of"]

_SLOWEST, _STRONGEST, _FAILED_TOLD = 10, 10, 20
# Pixels along a lane, and lanes that have one each.
_LANE, _MOST_LANES = 960, 32
# Pixels of a plane that is shown as it is; smaller ones are enlarged.
_SMALL = 640
# Borders of tiles that are drawn, per axis.
_MOST_LINES = 64
_CLOSE, _CLOSE_ZOOM = 96, 3
_VERDICTS = {
    "no visible seam": "Objects are cut at the borders of tiles about as often as they are away from them.",
    "cut": "Objects are cut at the borders of tiles far more often than they are away from them: parts of one object "
    "were not merged. Look at the merge rule, and give a larger overlap.",
    "over-merged": "Where objects touch across a border of tiles, they are one object more often than away from "
    "borders: neighbours were chained. The rule 'iou', with an overlap, keeps them apart.",
    "not cut": "Objects are not cut at the borders of tiles more often than away from them. Too few touch to tell "
    "whether neighbours were chained.",
    "nothing touches": "No two objects touch, neither on borders of tiles nor away from them: no object is cut, and "
    "whether neighbours were chained cannot be told.",
    "too few": "Too few objects touch on borders of tiles, or on the planes away from them, to tell.",
    "nothing to compare": "There is no foreground on borders of tiles, or no tile is thick enough for a plane that is "
    "away from its borders.",
}


@dataclass(frozen=True, eq=False)
class Result:
    """A stored result, and what is known of the run that made it.

    Attributes
    ----------
    name : str
        For the title.
    path : str
        Absolute path or URL of the array, or of the group with its levels.
    levels : tuple of StoredImage
        The finest first.
    kept : mapping
        What the run keeps with its result; empty for results of others.
    log : RunLog or None
        What it noted of its tiles.
    grid : TileGrid or None
        Its tiles.
    is_labels : bool
        Whether the voxels are ids.
    image : tuple of Image
        The levels of what was labelled, for pictures; none where it is not known.
    seam_index : SeamIndex or None
        Of labels with known tiles.
    """

    name: str
    path: str
    levels: tuple[StoredImage, ...]
    kept: Mapping[str, Any]
    log: RunLog | None
    grid: TileGrid | None
    is_labels: bool
    image: tuple[Image, ...] = ()
    seam_index: SeamIndex | None = None

    @property
    def finest(self) -> StoredImage:
        """Its finest level."""
        return self.levels[0]

    def axis(self, number: int) -> str:
        """What an axis is called."""
        return self.finest.axes[number] if self.finest.axes else f"axis {number}"


def head_of(result: Result) -> list[str]:
    """The figures to see first."""
    return [cards(_figures(result))]


def sections_of(result: Result) -> Iterator[Section]:
    """All that is known, part by part."""
    yield from _pictures(result)
    if result.seam_index is not None:
        yield _seam_index(result, result.seam_index)
    if result.log is not None and len(result.log.block_id):
        if result.grid is not None:
            yield from _tiles(result, result.log, result.grid)
            yield from _merges(result, result.log, result.grid)
        yield _workers(result.log)
    yield _parameters(result)


def _figures(result: Result) -> Iterator[tuple[str, str, str]]:
    told: Mapping[str, Any] = result.kept.get("report", {})
    if result.is_labels and "n_objects" in told:
        yield f"{told['n_objects']:,}", "objects", ""
    if result.seam_index is not None:
        index = result.seam_index
        kind = {
            "no visible seam": "good",
            "not cut": "good",
            "nothing touches": "good",
            "cut": "bad",
            "over-merged": "bad",
        }
        yield _number(index.index), f"seam index: {index.verdict}", kind.get(index.verdict, "")
    if result.log is None or not len(result.log.block_id):
        if "n_tiles" in told:
            yield f"{told['n_tiles']:,}", f"tiles, {told.get('n_skipped', 0):,} of them skipped", ""
        return
    whole = totals(result.log)
    yield f"{whole.n_done + whole.n_skipped + whole.n_failed:,}", f"tiles, {whole.n_skipped:,} of them skipped", ""
    if whole.n_failed:
        yield f"{whole.n_failed:,}", "tile failed" if whole.n_failed == 1 else "tiles failed", "bad"
    yield format_time(whole.active), "at work on tiles", ""
    yield f"{whole.speed_up:.1f}", f"tiles at a time, in {_count(whole.n_workers, 'process', 'processes')}", ""
    if whole.n_bytes:
        yield f"{size_words(whole.bytes_per_second)}/s", f"of {size_words(whole.n_bytes)} of the image", ""


# Pictures


def _pictures(result: Result) -> Iterator[Section]:
    if len(result.finest.shape) < 2 or 0 in result.finest.shape:
        return
    view = plane_of(result.levels)
    if not result.is_labels:
        yield Section(
            "The result", (figure(encoded(_zoomed(grey(view.data)), is_photo=True), _where(result, view), hard=False),)
        )
        return
    backdrop = resampled(plane_of(result.image), view) if result.image else None
    pixels = _drawn(result, view, backdrop, _zoom(view.data))
    parts = [figure(encoded(pixels, is_photo=backdrop is not None), _where(result, view), hard=False)]
    yield Section("The labels", (*parts, *_strongest_seams(result)))


def _drawn(result: Result, view: View, backdrop: NDArray[Any] | None, zoom: int) -> NDArray[np.uint8]:
    return labelled(view.data, backdrop, _lines(result, view), zoom)


def _lines(result: Result, view: View) -> list[list[float]]:
    """Where borders of tiles are in a view, per axis; none where they would hide it."""
    if result.grid is None:
        return []
    lines = [view.places(result.grid.bounds[axis], side) for side, axis in enumerate(view.axes)]
    many = any(len(places) > _MOST_LINES for places in lines)
    return [] if many else lines


def _zoom(data: NDArray[Any]) -> int:
    return max(_SMALL // int(max(data.shape[:2])), 1)


def _zoomed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    zoom = _zoom(pixels)
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def _where(result: Result, view: View) -> str:
    others = [axis for axis in range(len(result.finest.shape)) if axis not in view.axes]
    at = ", ".join(f"{result.axis(axis)} = {place}" for axis, place in zip(others, view.at, strict=True))
    rows, columns = (f"{n * step:,.0f}" for n, step in zip(view.data.shape, view.step, strict=True))
    part = f"{rows} x {columns} voxels along {result.axis(view.axes[0])} and {result.axis(view.axes[1])}"
    shown = f", one of {view.step[0]:g} shown along each" if view.step[0] > 1 else ""
    lines = "; the lines are the borders of tiles" if result.is_labels and _lines(result, view) else ""
    return f"{part}{f', at {at}' if at else ''}{shown}{lines}."


def _strongest_seams(result: Result) -> Iterator[str]:
    """Details around the seams with the most merges."""
    if result.log is None or result.grid is None or not len(result.log.seams):
        return
    made = []
    for first, second, n_pairs in _by_pairs(result.log)[:3]:
        centre, axes = place_on_seam(result.finest, result.grid, int(first), int(second))
        view = close_up(result.finest, centre, axes, _CLOSE)
        backdrop = None
        if result.image:
            backdrop = close_up(result.image[0], centre, axes, _CLOSE).data
        words = f"Tiles {first} and {second}: {_count(int(n_pairs), 'pair')} merged."
        made.append(figure(encoded(_drawn(result, view, backdrop, _CLOSE_ZOOM), is_photo=backdrop is not None), words))
    yield paragraph("Where tiles with the most merges meet, in full resolution:")
    yield side_by_side(made)


# Tiles


def _tiles(result: Result, log: RunLog, grid: TileGrid) -> Iterator[Section]:
    marks = [
        (laid_out(on_grid(log, (log.state == state).astype(float), grid)) == 1, colour)
        for state, colour in ((State.SKIPPED, SKIPPED), (State.FAILED, FAILED))
    ]
    swatches = [
        swatch(colour, words)
        for (where, colour), words in zip(marks, ("skipped as empty", "failed"), strict=True)
        if where.any()
    ]
    made = [_map_of(on_grid(log, log.seconds, grid), "Seconds of each tile.", marks, swatches, "s")]
    if log.n_objects.any():
        words = "Labels of each tile, before merging." if result.is_labels else "Objects of each tile."
        made.append(_map_of(on_grid(log, log.n_objects, grid), words, marks, swatches, ""))
    parts = [paragraph(_layout(result, grid)), side_by_side(made), _slowest(log, grid)]
    if (log.state == State.FAILED).any():
        parts.insert(1, _failed(log, grid))
    yield Section("The tiles", tuple(parts))


def _map_of(values: NDArray[np.float64], words: str, marks: Any, swatches: Sequence[str], unit: str) -> str:
    plane = laid_out(values)
    top = float(np.nanmax(plane, initial=0))
    scale = ramp(RAMP, "0", f"{top:.3g} {unit}".strip())
    return figure(encoded(tile_map(plane, top, marks)), words, legend_=legend(scale, *swatches))


def _layout(result: Result, grid: TileGrid) -> str:
    several = [axis for axis, n in enumerate(grid.numblocks) if n > 1] or [grid.ndim - 1]
    blocks = " x ".join(map(str, grid.numblocks))
    tile = " x ".join(map(str, grid.tile_shape))
    if grid.n_tiles == 1:
        return f"One tile of {tile} voxels."
    words = f"{blocks} tiles of {tile} voxels, with an overlap of {', '.join(map(str, grid.overlap))}."
    if len(several) == 1:
        return f"{words} They lie along {result.axis(several[0])}, from the left to the right."
    words += f" Rows are {result.axis(several[-2])}, columns {result.axis(several[-1])}"
    n_layers = math.prod(grid.numblocks[axis] for axis in several[:-2])
    names = " and ".join(result.axis(axis) for axis in several[:-2])
    if n_layers > MOST_LAYERS:
        return f"{words}; of the {n_layers} layers along {names} the greatest value is shown."
    return f"{words}; side by side are the layers along {names}." if n_layers > 1 else f"{words}."


def _slowest(log: RunLog, grid: TileGrid) -> str:
    seconds = log.seconds[log.state != State.SKIPPED]
    if not len(seconds):
        return ""
    middle, most = (float(np.percentile(seconds, q)) for q in (50, 95))
    columns: tuple[str, ...] = ("tile", "made by", "seconds")
    rows: list[tuple[str, ...]] = [
        (_tile_words(grid, int(log.block_id[n])), log.workers[log.worker[n]], f"{log.seconds[n]:.3g}")
        for n in slowest(log, _SLOWEST)
    ]
    if log.n_objects.any():
        columns = (*columns, "objects")
        rows = [(*row, f"{log.n_objects[n]:,}") for row, n in zip(rows, slowest(log, _SLOWEST), strict=True)]
    caption = f"The slowest tiles; half of all took at most {format_time(middle)}, 95 % at most {format_time(most)}."
    return table(columns, rows, n_words=2, caption=caption)


def _failed(log: RunLog, grid: TileGrid) -> str:
    ids = log.block_id[log.state == State.FAILED]
    told = "; ".join(_tile_words(grid, int(n)) for n in ids[:_FAILED_TOLD])
    more = f" and {len(ids) - _FAILED_TOLD} more" if len(ids) > _FAILED_TOLD else ""
    return paragraph(f"Failed: {told}{more}.")


def _tile_words(grid: TileGrid, block_id: int) -> str:
    if block_id >= grid.n_tiles:
        return f"{block_id}, of a coarser level"
    tile = grid.tile(block_id)
    region = ", ".join(f"{a}:{b}" for a, b in zip(tile.start, tile.stop, strict=True))
    return f"{block_id} at {tile.index}, [{region}]"


# Merges


def _merges(result: Result, log: RunLog, grid: TileGrid) -> Iterator[Section]:
    if not result.is_labels or grid.n_tiles < 2:
        return
    if not len(log.seams):
        yield Section("Merges", (paragraph("No labels of different tiles were found to be one object."),))
        return
    rows = [
        (
            ("faces across " if len(one.axes) == 1 else "edges and corners across ")
            + ", ".join(map(result.axis, one.axes)),
            f"{one.n_seams:,}",
            f"{one.n_pairs:,}",
            f"{one.n_pairs / one.n_seams:.3g}",
        )
        for one in merges_by_axis(log, grid)
    ]
    strongest = [
        (_tile_words(grid, int(first)), _tile_words(grid, int(second)), f"{n:,}")
        for first, second, n in _by_pairs(log)[:_STRONGEST]
    ]
    yield Section(
        "Merges",
        (
            paragraph("Pairs of labels of two neighbouring tiles that the merge rule took for one object."),
            table(("seams", "with merges", "pairs", "pairs per seam"), rows),
            side_by_side(_seam_maps(result, log, grid)),
            table(("tile", "next tile", "pairs"), strongest, n_words=2, caption="The seams with the most merges."),
        ),
    )


def _by_pairs(log: RunLog) -> NDArray[np.int64]:
    return log.seams[np.argsort(-log.seams[:, 2], kind="stable")]


def _seam_maps(result: Result, log: RunLog, grid: TileGrid) -> Iterator[str]:
    several = [axis for axis, n in enumerate(grid.numblocks) if n > 1]
    if len(several) >= 2:
        rows, columns = several[-2:]
        down, right = (
            laid_out(merges_to_next(log, grid, axis).astype(float), of_layers="sum") for axis in (rows, columns)
        )
        top = float(max(np.nanmax(down), np.nanmax(right)))
        words = f"Merges over the faces across {result.axis(rows)} and {result.axis(columns)}."
        scale = legend(ramp(RAMP, "0", f"{top:.0f}"), swatch(ABSENT, "a tile"))
        yield figure(encoded(seam_map(down, right, top)), words, legend_=scale)
    for axis in several[:-2] if len(several) >= 2 else several:
        to_next = merges_to_next(log, grid, axis).astype(float)
        # The last tiles have no next one.
        np.moveaxis(to_next, axis, 0)[-1] = np.nan
        words = f"Merges of each tile with the next one along {result.axis(axis)}."
        yield _map_of(to_next, words, (), (), "")


# Seams


def _seam_index(result: Result, index: SeamIndex) -> Section:
    rows = [_seam_row(f"across {result.axis(one.axis)}", one) for one in index.axes]
    columns = ("borders", "verdict", "cut on borders", "cut away from them", "index", "from", "to")
    return Section(
        "Seams",
        (
            paragraph(f"{_index_words(index)}: {index.verdict}. {_VERDICTS[index.verdict]}"),
            table(columns, rows, n_words=2),
            paragraph(
                "Cut is the share of pairs of neighbouring foreground voxels with different labels: on the borders of "
                "tiles, and on planes mid-way between them. The index is the first over the second: 1 where borders "
                "cannot be seen, 0 where all that touches across them was merged, far above 1 where objects are cut."
            ),
        ),
    )


def _index_words(index: SeamIndex) -> str:
    if math.isnan(index.index):
        return "There is no seam index"
    low, high = index.interval
    return f"The seam index is {_number(index.index)} ({_number(low)} to {_number(high)})"


def _seam_row(name: str, one: AxisSeams) -> tuple[str, ...]:
    low, high = one.interval
    sides = (f"{_share(side.rate)} of {side.n_pairs:,}" for side in (one.borders, one.controls))
    return (name, one.verdict, *sides, _number(one.index), _number(low), _number(high))


# Workers


def _workers(log: RunLog) -> Section:
    busy = busy_lanes(log, _LANE)
    whole = totals(log)
    order = np.argsort([log.workers[n] for n in range(len(busy))], kind="stable")
    shown, others = order[:_MOST_LANES], order[_MOST_LANES:]
    rows = [(log.workers[n], busy[n]) for n in shown]
    if len(others):
        rows.append((f"{len(others)} others, on average", busy[others].mean(0)))
    most = max(float(one.max()) for _, one in rows)
    duration = whole.ended - whole.began
    is_whole = duration <= 2 * whole.active
    shown_time = duration if is_whole else whole.active
    ticks = ["0 s", *(format_time(share * shown_time) for share in (0.25, 0.5, 0.75, 1))]
    began, ended = (
        dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S") for at in (whole.began, whole.ended)
    )
    words = (
        f"From {began} to {ended} UTC. The tiles took {format_time(whole.work)} in all, in {format_time(whole.active)}."
    )
    words += " The darker, the more tiles at a time." if most > 1.5 else ""
    gaps = "" if is_whole else " Times at which no tile was at work are left out of the picture."
    return Section(
        "Who was at work when",
        (paragraph(words + gaps), lanes([(name, encoded(lane(one, most))) for name, one in rows], ticks)),
    )


# Parameters


def _parameters(result: Result) -> Section:
    finest = result.finest
    about = {
        "path": result.path,
        "shape": " x ".join(map(str, finest.shape)),
        "axes": finest.axes or "not known",
        "dtype": finest.dtype,
        "levels": len(result.levels),
    }
    parts = [facts(about)]
    kept = result.kept
    run = {"operation": kept.get("operation"), **dict(kept.get("manifest", {})), **dict(kept.get("report", {}))}
    told = {name.replace("_", " "): value for name, value in run.items() if value is not None}
    if told:
        parts += [paragraph("The run that made it:"), facts(told)]
    else:
        parts.append(paragraph("Nothing is kept with it of the run that made it."))
    if result.log is None or not len(result.log.block_id):
        parts.append(
            paragraph("Times and merges of its tiles are told when a run writes its report itself, by report=True.")
        )
    if result.is_labels and result.seam_index is None:
        parts.append(paragraph("There is no seam index: tile_shape tells in which tiles labels of others were made."))
    return Section("What was run", tuple(parts))


# Words


def _count(n: int, one: str, several: str = "") -> str:
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return "none" if math.isnan(value) else f"{100 * value:.3g} %"
