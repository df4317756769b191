"""Functions of a tile for the tests of the widget, by which it is seen and steered what is called when."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

# How often each has been called, and what lets the gated one go on.
calls: list[tuple[int, ...]] = []
gate = threading.Semaphore(0)
open_wide = threading.Event()


def start_anew() -> None:
    calls.clear()
    open_wide.clear()
    while gate.acquire(blocking=False):
        pass


def components(tile: NDArray[Any], above: float = 100) -> NDArray[Any]:
    calls.append(tile.shape)
    return np.asarray(scipy.ndimage.label(tile > above)[0])


def gated(tile: NDArray[Any]) -> NDArray[Any]:
    """Waits for the gate."""
    calls.append(tile.shape)
    while not (open_wide.is_set() or gate.acquire(timeout=0.02)):
        pass
    return np.asarray(scipy.ndimage.label(tile > 100)[0])


def failing(tile: NDArray[Any]) -> NDArray[Any]:
    """As libraries fail on a GPU: with a RuntimeError."""
    raise RuntimeError("CUDA out of memory")
