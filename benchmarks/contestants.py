"""The ways of labelling a zarr array that are compared: each reads `image`, writes `labels`, and returns nothing.

All read the same store and write with the same codec, on `N_THREADS` threads where they can.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import dask
import numpy as np
import zarr
from zarr.codecs import BloscCodec

N_THREADS = 2


@dataclass(frozen=True)
class Task:
    """One job for every contestant.

    Attributes
    ----------
    image, labels : str
        Paths of zarr stores.
    threshold : float or None
        Above it is foreground.
    """

    image: str
    labels: str
    threshold: float | None


def blockbuster_label(task: Task) -> None:
    import blockbuster

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        blockbuster.label(task.image, threshold=task.threshold, write_to=task.labels, output_component="")


def tiles_without_merge(task: Task) -> None:
    """The floor: read, label and write each tile on its own, through the same codecs."""
    from blockbuster.components import block_components
    from blockbuster.stores import with_fast_codecs

    image = with_fast_codecs(zarr.open_array(task.image, mode="r"))
    labels = with_fast_codecs(_empty_labels(task, image, "int32"))
    axes = tuple(range(image.ndim))

    def one(region: tuple[slice, ...]) -> None:
        block = _foreground(image[region], task)
        labels[region] = block_components(block, connectivity=1, axes=axes)[0].astype(np.int32)

    with ThreadPoolExecutor(N_THREADS) as pool:
        list(pool.map(one, _chunk_regions(image)))


def bioimage_py(task: Task) -> None:
    from bioimage_py.segmentation import label

    image = zarr.open_array(task.image, mode="r")
    labels = _empty_labels(task, image, "uint64")
    label(image, labels, threshold=task.threshold, num_workers=N_THREADS, block_shape=image.chunks)


def dask_image(task: Task) -> None:
    import dask.array as da
    from dask_image.ndmeasure import label

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        image = da.from_zarr(task.image)
        found, _ = label(image if task.threshold is None else image > task.threshold)
        found.to_zarr(task.labels)


def scipy_in_memory(task: Task) -> None:
    from scipy.ndimage import label

    image = zarr.open_array(task.image, mode="r")
    labels = _empty_labels(task, image, "int32")
    labels[...] = label(_foreground(image[...], task))[0]


def cc3d_in_memory(task: Task) -> None:
    import cc3d

    image = zarr.open_array(task.image, mode="r")
    labels = _empty_labels(task, image, "uint32")
    labels[...] = cc3d.connected_components(_foreground(image[...], task), connectivity=6, out_dtype=np.uint32)


CONTESTANTS: dict[str, Callable[[Task], None]] = {
    "blockbuster": blockbuster_label,
    "tiles without merge": tiles_without_merge,
    "bioimage-py": bioimage_py,
    "dask-image": dask_image,
    "scipy in memory": scipy_in_memory,
    "cc3d in memory": cc3d_in_memory,
}


def _empty_labels(task: Task, image: zarr.Array, dtype: str) -> zarr.Array:
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    return zarr.create_array(task.labels, shape=image.shape, chunks=image.chunks, dtype=dtype, compressors=codec)


def _foreground(block: np.ndarray, task: Task) -> np.ndarray:
    return block != 0 if task.threshold is None else block > task.threshold


def _chunk_regions(image: zarr.Array) -> list[tuple[slice, ...]]:
    axes = [[slice(a, min(a + c, n)) for a in range(0, n, c)] for n, c in zip(image.shape, image.chunks, strict=True)]
    return list(itertools.product(*axes))
