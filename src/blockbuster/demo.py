"""`blockbuster demo`: segment the nuclei of a tissue section in 36 tiles, and get what the whole image gives.

It leaves in a folder:

- ``tissue.ome.zarr``: an OME-Zarr image, the labels in it as ``labels/nuclei``;
- ``demo.png``: the labels with the tile borders, and a detail before and after merging.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import color, data
from skimage.segmentation import watershed

from blockbuster.errors import BlockbusterError
from blockbuster.images import load_ome_zarr
from blockbuster.pictures import frame, page, panel
from blockbuster.tiles import tile_process
from blockbuster.writing import write_image, write_labels

__all__ = ["make_demo"]

NAME = "nuclei"
TILE_SHAPE = (96, 96)
# The function looks 24 voxels around to tell the background, and a nucleus spans about as many.
OVERLAP = 48
DETAIL = np.s_[250:327, 346:423]


def make_demo(folder: Path) -> dict[str, Any]:
    """Run the demo; returns what came out, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "tissue.ome.zarr"
    if store.exists():
        shutil.rmtree(store)
    section = data.immunohistochemistry()
    write_stains(store, section)
    labels = label_nuclei(store)
    pieces = tile_process(
        store, segment, tile_shape=TILE_SHAPE, overlap=OVERLAP, merge=None, sequential_labels=True, compute=True
    )
    whole = segment(load_ome_zarr(store, channel="haematoxylin").compute())
    picture(section, labels, pieces).save(folder / "demo.png", optimize=True)
    if not same_objects(labels, whole):
        raise BlockbusterError(f"The labels in {store} are not those of the whole image, which they must be.")
    n_tiles = np.prod([-(-extent // step) for extent, step in zip(labels.shape, TILE_SHAPE, strict=True)])
    return {
        "tiles": f"{n_tiles} of {TILE_SHAPE} voxels, read with {OVERLAP} voxels around them",
        "pieces": f"{n_objects(pieces)} before merging",
        "objects": f"{n_objects(labels)} after merging, {n_objects(whole)} in the whole image at once",
        "equal": "yes, voxel by voxel",
        "labels": str(store / "labels" / NAME),
        "picture": str(folder / "demo.png"),
    }


# The job


def segment(tile: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Label nuclei: an ordinary function of a numpy array, which knows nothing of tiles."""
    smooth = ndimage.gaussian_filter(tile.astype(np.float32), 2)
    background = ndimage.gaussian_filter(tile.astype(np.float32), 8, truncate=3)
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(smooth > background + 12, np.ones((3, 3), np.bool_)))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.5)
    centres = mask & (depth > 1.5) & (depth == ndimage.maximum_filter(depth, 11))
    seeds, _ = ndimage.label(centres, np.ones((3, 3)))
    labels: NDArray[np.int32] = watershed(-depth, seeds, mask=mask)
    return labels


def write_stains(store: Path, section: NDArray[np.uint8]) -> None:
    """Write the two stains of the section as the channels of an OME-Zarr image."""
    stains = np.moveaxis(color.rgb2hed(section)[..., [0, 2]], -1, 0)
    brightest = np.percentile(stains, 99.8, axis=(1, 2), keepdims=True)
    write_image(
        np.clip(stains / brightest * 255, 0, 255).astype(np.uint8),
        store,
        axes="cyx",
        name="tissue",
        channels=[{"label": "haematoxylin", "color": "5C7CFF"}, {"label": "DAB", "color": "C07830"}],
        chunks=(1, 128, 128),
    )


def label_nuclei(store: Path) -> NDArray[np.int32]:
    """Segment the image tile by tile, into the OME-Zarr that it lies in."""
    labels = tile_process(
        store,
        segment,
        channel="haematoxylin",
        tile_shape=TILE_SHAPE,
        overlap=OVERLAP,
        merge="iou",
        sequential_labels=True,
    )
    made: NDArray[np.int32] = write_labels(labels, store, NAME).data.compute()
    return made


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
    return np.asarray(np.clip(18 + 125 * density * (0.86, 0.93, 1.1), 0, 255), np.uint8)


def n_objects(labels: NDArray[np.int32]) -> int:
    """Number of labels but 0."""
    return int(np.count_nonzero(np.unique(labels)))


def same_objects(first: NDArray[np.int32], second: NDArray[np.int32]) -> bool:
    """Whether two label images differ in nothing but the ids."""
    pairs = np.unique(np.stack([first[first > 0], second[first > 0]]), axis=1)
    return np.array_equal(first > 0, second > 0) and pairs.shape[1] == n_objects(first) == n_objects(second)
