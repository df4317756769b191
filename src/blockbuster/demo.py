"""Segment the nuclei of a tissue section in 36 tiles, and get what the whole image gives.

Run it with ``make demo``, or ``python examples/demo.py [folder]``. It leaves in the folder:

- ``tissue.ome.zarr``: an OME-Zarr image, the labels in it as ``labels/nuclei``;
- ``demo.png``: the labels with the tile borders, and a detail before and after merging.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from picture import frame, page, panel
from PIL import Image
from scipy import ndimage
from skimage import color, data
from skimage.segmentation import watershed

import blockbuster

NAME = "nuclei"
TILE_SHAPE = (96, 96)
# The function looks 24 voxels around to tell the background, and a nucleus spans about as many.
OVERLAP = 48
DETAIL = np.s_[250:327, 346:423]


def main(folder: Path) -> int:
    """Run the demo; returns the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "tissue.ome.zarr"
    if store.exists():
        shutil.rmtree(store)
    section = data.immunohistochemistry()
    write_stains(store, section)
    labels = label_nuclei(store)
    pieces = blockbuster.tile_process(
        store, segment, tile_shape=TILE_SHAPE, overlap=OVERLAP, merge=None, sequential_labels=True, compute=True
    )
    whole = segment(blockbuster.load_ome_zarr(store, channel="haematoxylin").compute())
    picture(section, labels, pieces).save(folder / "demo.png", optimize=True)
    return 0 if report(store, labels, pieces, whole) else 1


# The job


def segment(tile: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Label nuclei: an ordinary function of a numpy array, which knows nothing of tiles."""
    smooth = ndimage.gaussian_filter(tile.astype(np.float32), 2)
    background = ndimage.gaussian_filter(tile.astype(np.float32), 8, truncate=3)
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(smooth > background + 12, np.ones((3, 3))))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.5)
    centres = mask & (depth > 1.5) & (depth == ndimage.maximum_filter(depth, 11))
    seeds, _ = ndimage.label(centres, np.ones((3, 3)))
    return watershed(-depth, seeds, mask=mask)


def write_stains(store: Path, section: NDArray[np.uint8]) -> None:
    """Write the two stains of the section as the channels of an OME-Zarr image."""
    stains = np.moveaxis(color.rgb2hed(section)[..., [0, 2]], -1, 0)
    brightest = np.percentile(stains, 99.8, axis=(1, 2), keepdims=True)
    blockbuster.write_image(
        np.clip(stains / brightest * 255, 0, 255).astype(np.uint8),
        store,
        axes="cyx",
        name="tissue",
        channels=[{"label": "haematoxylin", "color": "5C7CFF"}, {"label": "DAB", "color": "C07830"}],
        chunks=(1, 128, 128),
    )


def label_nuclei(store: Path) -> NDArray[np.int32]:
    """Segment the image tile by tile, into the OME-Zarr that it lies in."""
    labels = blockbuster.tile_process(
        store,
        segment,
        channel="haematoxylin",
        tile_shape=TILE_SHAPE,
        overlap=OVERLAP,
        merge="iou",
        sequential_labels=True,
    )
    return blockbuster.write_labels(labels, store, NAME).data.compute()


# What a person sees


def picture(rgb: NDArray[np.uint8], labels: NDArray[np.int32], pieces: NDArray[np.int32]) -> Image.Image:
    """The nuclei with the borders of the tiles; beside them a detail of the tissue, the pieces, and the nuclei."""
    cuts = [range(0, extent, step) for extent, step in zip(labels.shape, TILE_SHAPE, strict=True)]
    backdrop = shaded(rgb)
    overview = panel(backdrop, labels, cuts, zoom=2)
    frame(overview, DETAIL, zoom=2)
    details = [
        ("the stained tissue", panel(rgb, np.zeros_like(labels), cuts, 4, DETAIL)),
        (f"before merging: {n_objects(pieces)} pieces", panel(backdrop, pieces, cuts, 4, DETAIL)),
        (f"after: {n_objects(labels)} nuclei", panel(backdrop, labels, cuts, 4, DETAIL)),
    ]
    return page([[("nuclei of a tissue section, segmented tile by tile", overview)], details])


def shaded(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The section as a dark backdrop, on which colours stand out."""
    density = 1 - color.rgb2gray(rgb)[..., np.newaxis]
    return np.clip(18 + 125 * density * (0.86, 0.93, 1.1), 0, 255).astype(np.uint8)


def report(store: Path, labels: NDArray[np.int32], pieces: NDArray[np.int32], whole: NDArray[np.int32]) -> bool:
    """Print what came out; returns whether it is what the whole image gives."""
    same = same_objects(labels, whole)
    n_tiles = np.prod([-(-extent // step) for extent, step in zip(labels.shape, TILE_SHAPE, strict=True)])
    print(f"tiles    {n_tiles} of {TILE_SHAPE} voxels, read with {OVERLAP} voxels around them")
    print(f"pieces   {n_objects(pieces)} before merging")
    print(f"objects  {n_objects(labels)} after merging, {n_objects(whole)} in the whole image at once")
    print(f"equal    {'yes, voxel by voxel' if same else 'NO'}")
    print(f"labels   {store / 'labels' / NAME}")
    print(f"picture  {store.parent / 'demo.png'}")
    return same


def n_objects(labels: NDArray[np.int32]) -> int:
    """Number of labels but 0."""
    return int(np.count_nonzero(np.unique(labels)))


def same_objects(first: NDArray[np.int32], second: NDArray[np.int32]) -> bool:
    """Whether two label images differ in nothing but the ids."""
    pairs = np.unique(np.stack([first[first > 0], second[first > 0]]), axis=1)
    return np.array_equal(first > 0, second > 0) and pairs.shape[1] == n_objects(first) == n_objects(second)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")))
