"""Renumbering of labels without gaps, in their order."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.graph_manipulation import clone
from numpy.typing import NDArray

from blockbuster.errors import ImageError, ParameterError
from blockbuster.graph import map_tiles, read_as_it_is, renumbered_blocks
from blockbuster.grid import Tile, TileGrid
from blockbuster.numbering import labels_in
from blockbuster.outputs import Output, plan_output
from blockbuster.sources import StoredImage, open_source
from blockbuster.stores import open_node

__all__ = ["relabel_sequential_array", "relabel_sequential_zarr"]


def relabel_sequential_array(labels: Any) -> Any:
    """Labels as 1..N without gaps, in their order.

    Parameters
    ----------
    labels : dask.array.Array or array_like of integers
        0 is background and stays so.

    Returns
    -------
    renumbered : dask.array.Array or numpy.ndarray, of the shape and dtype of `labels`
        Lazy where `labels` is. The lazy one reads a store twice; of what is computed it holds all blocks until their
        ids are known. For more than fits the memory, store the labels, and call `relabel_sequential_zarr`.

    Raises
    ------
    ParameterError
        If `labels` are not integers.
    ValueError
        If a label is negative.

    Examples
    --------
    >>> relabel_sequential_array(np.array([0, 7, 5, 7], np.uint8))
    array([0, 2, 1, 2], dtype=uint8)
    """
    if isinstance(labels, da.Array):
        _check_integers(labels.dtype)
        # Reading twice is cheaper than holding; computing twice is not.
        first = clone(labels) if read_as_it_is(labels, zarr.Array) is not None else labels
        return renumbered_blocks(first, labels, unique_labels, _ranks, _renumber)
    array = np.asarray(labels)
    _check_integers(array.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    ids = unique_labels(array)
    return _renumber(array, (ids, np.arange(1, ids.size + 1)))


def relabel_sequential_zarr(store: str | os.PathLike[str], component: str = "labels") -> int:
    """Renumber stored labels as 1..N without gaps, in their order.

    Replaces the array once its successor, of the same form, codecs and attributes, is complete; runs on the active dask
    scheduler. Does nothing where the labels are without gaps already.

    Parameters
    ----------
    store : path
        A zarr store on a local file system.
    component : str, default "labels"
        Path of the labels within the store; "" for the store itself.

    Returns
    -------
    n : int
        Number of labels.

    Raises
    ------
    ImageError
        If there is no such array.
    ParameterError
        If it does not hold integers.

    Notes
    -----
    Holds all ids, 8 bytes each, in each worker.

    Examples
    --------
    >>> import tempfile, zarr
    >>> with tempfile.TemporaryDirectory() as store:
    ...     zarr.save(store, labels=np.array([0, 70, 50, 70], np.int32))
    ...     n = relabel_sequential_zarr(store)
    ...     print(n, zarr.open(store)["labels"][:])
    2 [0 2 1 2]
    """
    path = Path(store, component.strip("/"))
    array = open_node(str(path))
    if not isinstance(array, zarr.Array):
        names = ", ".join(sorted(name for name, _ in array.arrays())) or "none"
        raise ImageError(f"{path} is a zarr group. Give the component of one of its arrays: {names}.")
    source = open_source(path, channel=None)
    assert isinstance(source, StoredImage)
    _check_integers(source.dtype)
    grid = TileGrid.regular(source.shape, array.shards or array.chunks)
    found = map_tiles(functools.partial(_unique_of, source), grid, range(grid.n_tiles), None)
    ids = np.unique(np.concatenate([np.empty(0, source.dtype), *found]))
    if ids.size and int(ids[-1]) != ids.size:
        _replace(Path(store), component, source, grid, ids, int(array.fill_value or 0))
    return int(ids.size)


def unique_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """The labels of an array but 0, ascending.

    Raises
    ------
    ValueError
        If one is negative.
    """
    found = labels_in(labels)
    if found.size and found[0] < 0:
        raise ValueError(f"The label {found[0]} is negative. Labels are positive, 0 is background.")
    return found


def _replace(
    root: Path, component: str, source: StoredImage, grid: TileGrid, ids: NDArray[Any], fill_value: int
) -> None:
    output = plan_output(root, component, overwrite=True, inputs=[])
    os.makedirs(output.partial)
    try:
        for name in ("zarr.json", ".zarray", ".zattrs"):
            if (output.path / name).exists():
                shutil.copy2(output.path / name, output.partial)
        map_tiles(_Renumbering(source, output, ids, fill_value), grid, range(grid.n_tiles), None)
    except BaseException:
        output.discard()
        raise
    output.commit(overwrite=True)


@dataclass(frozen=True, eq=False)
class _Renumbering:
    source: StoredImage
    output: Output
    ids: NDArray[Any]
    fill_value: int

    def __call__(self, tile: Tile, _block: object) -> None:
        block = self.source.read(tile.core)
        own = unique_labels(block)
        if own.size or self.fill_value != 0:
            self.output.write(tile.core, _renumber(block, (own, np.searchsorted(self.ids, own) + 1)))


def _unique_of(source: StoredImage, tile: Tile, _block: object) -> NDArray[Any]:
    return unique_labels(source.read(tile.core))


def _ranks(found: list[NDArray[Any]]) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    """For the labels of each block their new ids."""
    ids = np.unique(np.concatenate(found))
    return [(own, np.searchsorted(ids, own) + 1) for own in found]


def _renumber(block: NDArray[Any], ranks: tuple[NDArray[Any], NDArray[np.int64]]) -> NDArray[Any]:
    own, new = ranks
    if not own.size:
        return np.zeros_like(block)
    place = np.minimum(np.searchsorted(own, block), own.size - 1)
    return np.where(block != 0, new.astype(block.dtype)[place], block)


def _check_integers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu":
        raise ParameterError(f"labels have dtype {dtype}; they must be integers.")
