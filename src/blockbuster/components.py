"""Connected components of one numpy block, in any number of dimensions, numbered in raster order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from blockbuster.grid import forward_offsets

__all__ = ["block_components"]

# What cc3d calls the connectivities 1, 2, 3 of blocks with two and three axes.
_CC3D: dict[int, tuple[Literal[4, 6, 8, 18, 26], ...]] = {2: (4, 8), 3: (6, 18, 26)}

# Its shortcut for bool miscounts with these (4.1.1: wrong in 2-D, too small a buffer for thin blocks in 3-D).
_NO_BINARY = (8, 26)


def block_components(block: NDArray[Any], *, connectivity: int, axes: Sequence[int]) -> tuple[NDArray[Any], int]:
    """Label runs of neighbouring equal values, 0 being background.

    Parameters
    ----------
    block : ndarray of bool or integers
        A mask, or values of which only equal ones join.
    connectivity : int
        How many axes a step to a neighbour may change.
    axes : sequence of int
        Axes along which voxels are neighbours.

    Returns
    -------
    labels : ndarray of unsigned integers
        1..n by first voxel in C order.
    n : int
        Number of components.

    Examples
    --------
    >>> block_components(np.array([[1, 1, 0], [0, 0, 2]]), connectivity=2, axes=(0, 1))
    (array([[1, 1, 0],
           [0, 0, 2]], dtype=uint16), 2)
    """
    if not block.size:
        return np.zeros(block.shape, np.uint8), 0
    if not block.flags.writeable:
        # cc3d asks for memory that it may write to, and leaves it as it is.
        block = block.copy()
    if block.dtype == np.uint64:
        # cc3d takes no value above int64's; which bits are equal stays the same.
        block = block.view(np.int64)
    joined = [axis for axis in axes if block.shape[axis] > 1]
    apart = [axis for axis in range(block.ndim) if axis not in joined]
    if not joined:
        return _each_voxel(block)
    # Axes that join go last: each of the rest is then a stack of blocks on their own.
    moved = np.ascontiguousarray(block.transpose(*apart, *joined))
    stack = moved.reshape(-1, *(block.shape[axis] for axis in joined))
    labels, n = _stack_components(stack, min(connectivity, len(joined)))
    back = labels.reshape(moved.shape).transpose(np.argsort([*apart, *joined]))
    if [*apart, *joined] == sorted([*apart, *joined]) or len(stack) == 1:
        return np.ascontiguousarray(back), n
    renumbered, _ = fastremap.renumber(np.ascontiguousarray(back))
    return renumbered, n


def _stack_components(stack: NDArray[Any], connectivity: int) -> tuple[NDArray[Any], int]:
    if len(stack) == 1:
        labels, n = _one(stack[0], connectivity)
        return labels[np.newaxis], n
    made = [_one(block, connectivity) for block in stack]
    before = np.cumsum([0, *(n for _, n in made)])
    dtype = np.min_scalar_type(int(before[-1]))
    out = np.zeros(stack.shape, dtype)
    for target, (labels, _), offset in zip(out, made, before, strict=False):
        np.add(labels, offset, out=target, where=labels > 0, casting="unsafe")
    return out, int(before[-1])


def _one(block: NDArray[Any], connectivity: int) -> tuple[NDArray[Any], int]:
    if block.ndim == 1:
        labels, n = _one(block[np.newaxis], 1)
        return labels[0], n
    if block.ndim in _CC3D:
        chosen = _CC3D[block.ndim][connectivity - 1]
        if chosen in _NO_BINARY and block.dtype == np.bool_:
            block = block.view(np.uint8)
        made = cc3d.connected_components(block, connectivity=chosen, return_N=True)
        return made[0], int(made[1])
    if block.dtype == np.bool_:
        from scipy import ndimage

        found, n = ndimage.label(block, ndimage.generate_binary_structure(block.ndim, connectivity))
        return found.astype(np.uint32 if n < 1 << 32 else np.uint64), n
    return _by_value(block, connectivity)


def _by_value(block: NDArray[Any], connectivity: int) -> tuple[NDArray[Any], int]:
    """Components of equal values in more axes than any labeller takes, from the graph of neighbours."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = np.arange(block.size).reshape(block.shape)
    ends = []
    for offset in forward_offsets(block.ndim, range(block.ndim), connectivity):
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, block.shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, block.shape, strict=True))
        equal = (block[here] == block[there]) & (block[here] != 0)
        ends.append((number[here][equal], number[there][equal]))
    first, second = (np.concatenate(side) for side in zip(*ends, strict=True))
    links = coo_array((np.ones(first.size, np.int8), (first, second)), shape=(block.size, block.size))
    _, component = connected_components(links, directed=False)
    grown = component.reshape(block.shape) + 1
    grown[block == 0] = 0
    labels, _ = fastremap.renumber(grown)
    return labels, int(labels.max())


def _each_voxel(block: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Every voxel that is not 0 is a component of its own."""
    foreground = block != 0
    n = int(np.count_nonzero(foreground))
    labels = np.zeros(block.shape, np.min_scalar_type(n))
    labels[foreground] = np.arange(1, n + 1)
    return labels, n
