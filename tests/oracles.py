"""Whole-array results to compare with, and schedulers and folders to watch."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.ndimage
from dask._task_spec import convert_legacy_graph
from dask.core import flatten
from dask.local import nested_get
from numpy.typing import NDArray


def scipy_labels(foreground: NDArray[Any], connectivity: int = 1) -> NDArray[Any]:
    """The labels of the whole array by scipy."""
    structure = scipy.ndimage.generate_binary_structure(foreground.ndim, connectivity)
    labels: NDArray[Any] = scipy.ndimage.label(foreground, structure)[0]
    return labels


def raster_numbered(labels: NDArray[Any]) -> NDArray[np.int32]:
    """The same objects, numbered by their first voxel in C order."""
    ids, first, place = np.unique(labels, return_index=True, return_inverse=True)
    first[ids == 0] = -1
    numbers = np.empty(ids.size, np.int32)
    numbers[np.argsort(first)] = np.arange(ids.size) + (0 if 0 in ids else 1)
    return numbers[place].reshape(labels.shape)


def random_order(seed: int, *, times: int = 1) -> Callable[..., Any]:
    """A scheduler that runs the tasks in a random order among those that are ready, each one some `times`."""

    def get(graph: Any, keys: Any, **_options: Any) -> Any:
        choose = random.Random(seed)
        tasks = convert_legacy_graph(graph if isinstance(graph, Mapping) else graph.__dask_graph__())
        left = _needed(tasks, set(flatten(keys)))
        values: dict[Any, Any] = {}
        while left:
            key = choose.choice(sorted((k for k in left if tasks[k].dependencies <= values.keys()), key=str))
            for _ in range(times):
                values[key] = tasks[key]({d: values[d] for d in tasks[key].dependencies})
            left.remove(key)
        return nested_get(keys, values)

    return get


def _needed(tasks: Mapping[Any, Any], keys: set[Any]) -> set[Any]:
    needed: set[Any] = set()
    while keys:
        needed |= keys
        keys = {d for key in keys for d in tasks[key].dependencies} - needed
    return needed


def tree(*folders: Any) -> set[str]:
    """Every path within some folders."""
    return {os.path.join(at, name) for f in folders for at, dirs, files in os.walk(f) for name in (*dirs, *files)}


def value_components(labels: NDArray[Any], connectivity: int = 1) -> NDArray[np.int32]:
    """Components of equal values other than 0, in raster order, one value after the other by scipy."""
    out = np.zeros(labels.shape, np.int32)
    for value in np.unique(labels[labels != 0]):
        found = scipy_labels(labels == value, connectivity)
        out[found > 0] = found[found > 0] + out.max(initial=0)
    return raster_numbered(out)
