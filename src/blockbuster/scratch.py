"""Memory that a thread uses again for one tile after the other: fresh pages cost time, freed ones are kept anyway."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]

# Bytes that a thread keeps under one name from one tile to the next, and after the last.
_MOST = 1 << 25

_buffers = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that this thread may use until it asks for another of that name."""
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST:
        return np.empty(shape, dtype)
    held: dict[str, NDArray[np.uint8]] = _buffers.__dict__
    if name not in held or held[name].size < size:
        held[name] = np.empty(size, np.uint8)
    return held[name][:size].view(dtype).reshape(shape)
