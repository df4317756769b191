"""The figure of "How it works": the eight steps of a run, on coins where two tiles meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage import data

import blockbuster
from blockbuster.pictures import ACCENT, INK, PAPER, colours, frame, page, panel

# Two tiles beside each other, of 3 x 2 chunks each.
REGION, WIDTH, OVERLAP, CHUNK = np.s_[180:300, 34:194], 80, 24, 40
ZOOM = 2
NONE: list[list[int]] = [[], []]
SIZE = (ZOOM * 2 * WIDTH, ZOOM * 3 * CHUNK)
SHADE = (52, 57, 68)

Labels = NDArray[np.int32]
Colours = NDArray[np.float32]


def draw_steps() -> Image.Image:
    """The eight steps, two beside each other."""
    image = data.coins()[REGION]
    pieces, final = in_tiles(image, None), in_tiles(image, "iou")
    n_left = int(pieces[:, :WIDTH].max())
    local = np.where(pieces > n_left, pieces - n_left, pieces)
    views = views_of(image, local)
    pairs = joined(*views)
    parts = [
        ("1  open: a path, nothing is read", opened(image)),
        ("2  tile: a core and its overlap", tiled(image)),
        ("3  map: fn labels what a tile reads", mapped(image, views[0])),
        ("4  stage: ids 1..n of each tile, slabs", staged(image, local)),
        ("5  scan: compare what both drew", scanned(views, pairs)),
        ("6  unite: one small table", united(local, n_left, pairs)),
        ("7  relabel: final ids, tile by tile", relabelled(image, final)),
        ("8  write: whole chunks", written(image, final)),
    ]
    return page([parts[::2], parts[1::2]])


# What the run makes


def segment(tile: NDArray[np.uint8]) -> Labels:
    """Label coins."""
    bright = ndimage.gaussian_filter(tile.astype(np.float32), 2) > 105
    labels: Labels = ndimage.label(ndimage.binary_fill_holes(bright))[0].astype(np.int32)
    return labels


def in_tiles(image: NDArray[np.uint8], merge: str | None) -> Labels:
    """The labels of two tiles."""
    return blockbuster.tile_process(
        image,
        segment,
        tile_shape=(image.shape[0], WIDTH),
        overlap=(0, OVERLAP),
        merge=merge,
        sequential_labels=True,
        compute=True,
    )


def views_of(image: NDArray[np.uint8], local: Labels) -> tuple[Labels, Labels]:
    """What each tile draws, by its own ids, in the place of the whole; 0 where it has not read."""
    views = []
    for core, read in (
        (np.s_[:, :WIDTH], np.s_[:, : WIDTH + OVERLAP]),
        (np.s_[:, WIDTH:], np.s_[:, WIDTH - OVERLAP :]),
    ):
        drawn = np.zeros_like(local)
        drawn[read] = segment(image[read])
        # Labels that the tile sees beyond its core only have ids of no consequence here.
        table = np.zeros(int(drawn.max()) + 1, np.int32)
        table[drawn[core]] = local[core]
        views.append(table[drawn])
    return views[0], views[1]


def joined(left: Labels, right: Labels) -> list[tuple[int, int]]:
    """Pairs of ids that both tiles have beside the border."""
    strip = np.s_[:, WIDTH - 1 : WIDTH + 1]
    pairs = np.unique(np.stack([left[strip].ravel(), right[strip].ravel()], axis=1), axis=0)
    return [(int(a), int(b)) for a, b in pairs if a and b]


# The panels


def grey(image: NDArray[np.uint8], light: float) -> NDArray[np.uint8]:
    """The image as a backdrop."""
    return np.stack([image * light] * 3, axis=-1).astype(np.uint8)


def opened(image: NDArray[np.uint8]) -> Image.Image:
    """The image with its chunks."""
    cuts = [range(0, n, CHUNK) for n in image.shape]
    return panel(grey(image, 0.8), np.zeros_like(image, np.int32), cuts, ZOOM)


def tiled(image: NDArray[np.uint8]) -> Image.Image:
    """The core of the left tile, and what it reads beyond."""
    light = np.full(image.shape, 0.3)
    light[:, : WIDTH + OVERLAP] = 0.6
    light[:, :WIDTH] = 1
    made = panel((grey(image, 1) * light[..., np.newaxis]).astype(np.uint8), np.zeros_like(image, np.int32), NONE, ZOOM)
    frame(made, np.s_[0 : image.shape[0], 0 : WIDTH + OVERLAP], ZOOM)
    write(made, (WIDTH // 2, 6), "core")
    write(made, (WIDTH + OVERLAP // 2, 6), "overlap", 15)
    return made


def mapped(image: NDArray[np.uint8], view: Labels) -> Image.Image:
    """What the left tile draws."""
    light = np.where(np.arange(image.shape[1]) < WIDTH + OVERLAP, 0.8, 0.15)
    made = panel((grey(image, 1) * light[:, np.newaxis]).astype(np.uint8), view, [[], [WIDTH]], ZOOM)
    frame(made, np.s_[0 : image.shape[0], 0 : WIDTH + OVERLAP], ZOOM)
    return made


def staged(image: NDArray[np.uint8], local: Labels) -> Image.Image:
    """The ids of each tile, and the slabs beside the border."""
    made = panel(grey(image, 0.5), local, [[], [WIDTH]], ZOOM)
    for core in (np.s_[:, :WIDTH], np.s_[:, WIDTH:]):
        alone = np.zeros_like(local)
        alone[core] = local[core]
        number(made, alone)
    frame(made, np.s_[0 : image.shape[0], WIDTH - 2 : WIDTH + 2], ZOOM)
    return made


def scanned(views: tuple[Labels, Labels], pairs: list[tuple[int, int]]) -> Image.Image:
    """The strip beside the border as each tile has drawn it, and the labels that agree."""
    made, middle = Image.new("RGB", SIZE, PAPER), SIZE[0] // 2
    draw = ImageDraw.Draw(made)
    table = colours(np.maximum(*views))
    for view, left in zip(views, (middle - 90, middle + 50), strict=True):
        for row, labels in enumerate(view[:, WIDTH - 1 : WIDTH + 1]):
            for column, label in enumerate(labels):
                shade = tuple(map(int, table[label])) if label else SHADE
                x, y = left + 20 * column, ZOOM * row
                draw.rectangle([(x, y), (x + 19, y + ZOOM - 1)], fill=shade)
    for a, b in pairs:
        row = float(np.nonzero(views[0][:, WIDTH] == a)[0].mean())
        draw.line([(middle - 46, ZOOM * row), (middle + 46, ZOOM * row)], ACCENT, 2)
        for x, words, size in ((-110, str(a), 20), (0, "the same", 15), (110, str(b), 20)):
            write(made, ((middle + x) / ZOOM, row - (7 if x == 0 else 0)), words, size)
    return made


def united(local: Labels, n_left: int, pairs: list[tuple[int, int]]) -> Image.Image:
    """Counts, pairs, and what becomes of them."""
    n_right = int(local[:, WIDTH:].max())
    lines = [
        f"left: {n_left} labels, 1 to {n_left}",
        f"right: {n_right} labels, {n_left + 1} to {n_left + n_right}",
        "",
        *(f"{a} and {b + n_left} ({b} + {n_left}) are one" for a, b in pairs),
        "",
        f"{n_left + n_right} - {len(pairs)} = {n_left + n_right - len(pairs)} objects",
    ]
    made = Image.new("RGB", SIZE, (30, 34, 42))
    for line, text in enumerate(lines):
        ImageDraw.Draw(made).text((24, 32 + 28 * line), text, INK, ImageFont.load_default(size=20), anchor="lm")
    return made


def relabelled(image: NDArray[np.uint8], final: Labels) -> Image.Image:
    """The final ids."""
    made = panel(grey(image, 0.5), final, [[], [WIDTH]], ZOOM)
    number(made, final)
    return made


def written(image: NDArray[np.uint8], final: Labels) -> Image.Image:
    """The labels with their chunks."""
    cuts = [range(0, n, CHUNK) for n in image.shape]
    return panel(grey(image, 0.1), final, cuts, ZOOM)


def number(made: Image.Image, labels: Labels) -> None:
    """Write the id of each object on it."""
    for label in range(1, int(labels.max()) + 1):
        if np.count_nonzero(labels == label) > 60:
            y, x = ndimage.center_of_mass(labels == label)
            write(made, (min(x, labels.shape[1] - 5), y), str(label))


def write(made: Image.Image, at: tuple[float, float], words: str, size: int = 20) -> None:
    """Words with a dark rim, centred at a voxel (x, y)."""
    place = (ZOOM * at[0], ZOOM * at[1])
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(made).text(place, words, INK, font, anchor="mm", stroke_width=3, stroke_fill=PAPER)
