"""The ways of copying a zarr array, and of making a pyramid of it, that are compared.

All read the same store, on `N_THREADS` threads, and write chunks of the same shape with the same codec.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dask
import zarr
from contestants import N_THREADS


@dataclass(frozen=True)
class Transfer:
    """One job for every contestant.

    Attributes
    ----------
    image, result : str
        Paths of zarr stores.
    chunks : list of int
        Of the result.
    n_levels : int
        Of a pyramid.
    """

    image: str
    result: str
    chunks: list[int]
    n_levels: int = 5

    @property
    def codec(self) -> zarr.codecs.ZstdCodec:
        """Of the result."""
        return zarr.codecs.ZstdCodec(level=1)


def blockbuster_copy(task: Transfer) -> None:
    import blockbuster

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        blockbuster.copy(task.image, task.result, chunks=task.chunks, compression=task.codec)


def blockbuster_bytes(task: Transfer) -> None:
    import blockbuster

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        blockbuster.copy(task.image, task.result)


def dask_copy(task: Transfer) -> None:
    import dask.array as da

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        image = da.from_zarr(task.image).rechunk(tuple(task.chunks))
        image.to_zarr(task.result, compressors=task.codec)


def dask_same(task: Transfer) -> None:
    import dask.array as da

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        da.from_zarr(task.image).to_zarr(task.result)


def bioimage_py_copy(task: Transfer) -> None:
    from bioimage_py.copy import copy

    image, result = _opened(task)
    copy(image, result, num_workers=N_THREADS, block_shape=tuple(task.chunks))


def bare_loop(task: Transfer) -> None:
    """Two threads that read chunk after chunk and write it, all through zarrs: what any system has to do."""
    from blockbuster.stores import with_fast_codecs

    image, result = map(with_fast_codecs, _opened(task))
    steps = map(max, image.chunks, task.chunks)
    axes = [[slice(a, a + c) for a in range(0, n, c)] for n, c in zip(image.shape, steps, strict=True)]

    def move(region: tuple[slice, ...]) -> None:
        result[region] = image[region]

    with ThreadPoolExecutor(N_THREADS) as pool:
        list(pool.map(move, itertools.product(*axes)))


def blockbuster_pyramid(task: Transfer) -> None:
    import blockbuster

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        blockbuster.write_image(
            task.image,
            task.result,
            n_levels=task.n_levels,
            scale_factor=(1, 2, 2),
            chunks=task.chunks,
            compression=task.codec,
        )


def ome_zarr_pyramid(task: Transfer) -> None:
    """The writer of ome-zarr-py as it comes: each level a resize of the one before."""
    _ome_zarr(task)


def ome_zarr_mean(task: Transfer) -> None:
    """The same with means of cells, as the others make them."""
    from ome_zarr.scale import Methods

    _ome_zarr(task, method=Methods.LOCAL_MEAN)


def _ome_zarr(task: Transfer, **options: Any) -> None:
    import dask.array as da
    from ome_zarr.writer import write_image

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        write_image(
            da.from_zarr(task.image),
            task.result,
            axes="zyx",
            scale_factors=[{"z": 1, "y": 2**k, "x": 2**k} for k in range(1, task.n_levels)],
            storage_options={"chunks": tuple(task.chunks), "compressors": task.codec},
            **options,
        )


def patchworks_pyramid(task: Transfer) -> None:
    import dask.array as da
    from patchworks.plugins.ome_zarr import to_ome_zarr

    with dask.config.set(scheduler="threads", num_workers=N_THREADS):
        to_ome_zarr(
            da.from_zarr(task.image),
            task.result,
            axes="zyx",
            n_levels=task.n_levels,
            chunks=tuple(task.chunks),
            compression="zstd:1",
            progress=False,
        )


TRANSFERS: dict[str, dict[str, Callable[[Transfer], None]]] = {
    "rechunk": {
        "blockbuster": blockbuster_copy,
        "bare loop": bare_loop,
        "dask": dask_copy,
        "bioimage-py": bioimage_py_copy,
    },
    "recode": {
        "blockbuster": blockbuster_copy,
        "bare loop": bare_loop,
        "dask": dask_copy,
        "bioimage-py": bioimage_py_copy,
    },
    "same": {"blockbuster": blockbuster_bytes, "dask": dask_same},
    "pyramid": {
        "blockbuster": blockbuster_pyramid,
        "ome-zarr-py": ome_zarr_pyramid,
        "ome-zarr-py, means": ome_zarr_mean,
        "patchworks": patchworks_pyramid,
    },
}
# Imported before the clock starts.
IMPORTS = {
    "blockbuster": "blockbuster",
    "bare loop": "blockbuster.stores",
    "dask": "dask.array",
    "bioimage-py": "bioimage_py.copy",
    "ome-zarr-py": "ome_zarr.writer",
    "ome-zarr-py, means": "ome_zarr.writer",
    "patchworks": "patchworks.plugins.ome_zarr",
}


def _opened(task: Transfer) -> tuple[zarr.Array, zarr.Array]:
    image = zarr.open_array(task.image, mode="r")
    result = zarr.create_array(
        task.result, shape=image.shape, chunks=tuple(task.chunks), dtype=image.dtype, compressors=task.codec
    )
    return image, result
