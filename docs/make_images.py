"""Draw the pictures of the documentation: ``make docs-images``."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from docs.eight_steps import draw_steps
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.segmentation import watershed

import blockbuster
from blockbuster.demo import make_demo
from blockbuster.pictures import frame, page, panel

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
DARK, SEEN = (24, 27, 34), (52, 57, 68)
SHAPE, TILE_SHAPE = (384, 384), (96, 96)


def main() -> None:
    """Draw all of them."""
    IMAGES.mkdir(exist_ok=True)
    draw_demo()
    for name in ("start.md", "choosing.md", "ome-zarr.md", "spots.md"):
        draw_page(name)
    draw_steps().save(IMAGES / "steps.png", optimize=True)
    draw_seam().save(IMAGES / "seam.png", optimize=True)
    draw_dense().save(IMAGES / "dense.jpg", quality=92)
    draw_overlap().save(IMAGES / "overlap.jpg", quality=92)


def draw_demo() -> None:
    """The picture of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder))
        Image.open(Path(folder, "demo.png")).save(IMAGES / "demo.jpg", quality=92)


def draw_page(name: str) -> None:
    """The pictures that the code on a page makes."""
    code = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.DOTALL | re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for picture in (*Path(folder).glob("*.png"), *Path(folder).glob("*.jpg")):
            # "keep" is for JPEG, which would lose by being encoded again.
            Image.open(picture).save(IMAGES / picture.name, optimize=True, quality="keep")


# What each rule looks at


def draw_seam() -> Image.Image:
    """Two tiles that drew the voxels beside their border, and what the rules make of it."""
    truth = np.zeros((9, 16), np.int32)
    truth[1:5, 2:8] = 1
    truth[1:5, 8:13] = 3
    truth[5:8, 4:12] = 2
    # The tiles do not quite agree on the lower object.
    right = truth.copy()
    right[5, 6:8] = 0

    def segment_half(tile: NDArray[np.int64]) -> NDArray[np.int32]:
        return (right if tile[0, 0] else truth).reshape(-1)[tile]

    cuts, strip = [[], [8]], np.s_[0:9, 7:9]
    views, results = [], []
    for side, drawn, seen in (("left", truth, np.s_[:, :10]), ("right", right, np.s_[:, 6:])):
        backdrop, visible = _plain(truth.shape, DARK), np.zeros_like(drawn)
        backdrop[seen], visible[seen] = SEEN, drawn[seen]
        view = panel(backdrop, visible, cuts, 24, smooth=False)
        frame(view, strip, 24)
        views.append((f"as the {side} tile draws it", view))
    for rule in ("touching", "iou"):
        labels = blockbuster.tile_process(
            np.arange(truth.size).reshape(truth.shape),
            segment_half,
            tile_shape=(9, 8),
            overlap=2,
            merge=rule,
            sequential_labels=True,
            compute=True,
        )
        results.append((f"{rule}: {labels.max()} objects", panel(_plain(truth.shape, SEEN), labels, cuts, 24)))
    return page([views, results])


def _plain(shape: tuple[int, ...], shade: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((*shape, 3), shade, np.uint8)


# Dense tissue


def draw_dense() -> Image.Image:
    """A dense tissue, and its cells by each rule."""
    image = tissue(SHAPE, spacing=21)
    whole = segment(image)
    panels = [("the tissue", _over(image, np.zeros_like(whole)))]
    for rule in ("touching", "iou"):
        labels = _in_tiles(image, merge=rule, overlap=32)
        panels.append((f"{rule}: {labels.max()} of {whole.max()} cells", _over(image, labels)))
    return page([[part] for part in panels])


def draw_overlap() -> Image.Image:
    """The cells of a dense tissue that come out differently from the whole image, by overlap."""
    image = tissue(SHAPE, spacing=21)
    whole = segment(image)
    panels = []
    for overlap in (2, 8, 24):
        wrong = differing(_in_tiles(image, merge="iou", overlap=overlap), whole)
        panels.append((f"overlap {overlap}: {len(np.unique(wrong)) - 1} cells differ", _over(image, wrong)))
    return page([[part] for part in panels])


def differing(labels: NDArray[np.int32], whole: NDArray[np.int32]) -> NDArray[np.int32]:
    """The objects of `whole` that `labels` does not have as they are."""
    pairs = np.unique(np.stack([labels.ravel(), whole.ravel()]), axis=1)
    partners = [np.bincount(side) for side in pairs]
    same = (partners[0][pairs[0]] == 1) & (partners[1][pairs[1]] == 1)
    return np.where(np.isin(whole, pairs[1][same]), 0, whole)


def _in_tiles(image: NDArray[np.float32], *, merge: str, overlap: int) -> NDArray[np.int32]:
    return blockbuster.tile_process(
        image, segment, tile_shape=TILE_SHAPE, overlap=overlap, merge=merge, sequential_labels=True, compute=True
    )


def _over(image: NDArray[np.float32], labels: NDArray[np.int32]) -> Image.Image:
    backdrop = (25 + 150 * image[..., np.newaxis] * (0.9, 0.95, 1)).astype(np.uint8)
    return panel(backdrop, labels, [range(0, n, t) for n, t in zip(SHAPE, TILE_SHAPE, strict=True)], zoom=1)


def tissue(shape: tuple[int, int], spacing: int) -> NDArray[np.float32]:
    """Cells that fill the plane, bright inside, dark at their membranes."""
    random = np.random.default_rng(7)
    nodes = np.stack(np.meshgrid(*(np.arange(0, n + spacing, spacing) for n in shape), indexing="ij"), -1)
    centres = nodes.reshape(-1, 2) + random.uniform(-0.4, 0.4, (nodes.size // 2, 2)) * spacing
    near, _ = KDTree(centres).query(np.argwhere(np.ones(shape)), k=2)
    depth = (near[:, 1] - near[:, 0]).reshape(shape) / spacing
    noise = ndimage.gaussian_filter(random.normal(size=shape), 1)
    return np.clip(1.3 * depth**0.5 + 0.25 * noise, 0, 1).astype(np.float32)


def segment(tile: NDArray[np.float32]) -> NDArray[np.int32]:
    """Label cells: one for each bright centre."""
    smooth = ndimage.gaussian_filter(tile, 3)
    seeds, _ = ndimage.label(smooth == ndimage.maximum_filter(smooth, 11))
    return watershed(-smooth, seeds)


if __name__ == "__main__":
    main()
