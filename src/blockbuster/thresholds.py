"""Thresholds from a bounded sample of the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import ParameterError

__all__ = ["otsu", "sample_tiles", "thinned"]

_TILES = 16
_VOXELS = 1 << 18
_BINS = 256


def sample_tiles(block_ids: Sequence[int]) -> list[int]:
    """A few of the tiles, spread evenly.

    Examples
    --------
    >>> sample_tiles(range(3)), len(sample_tiles(range(1000)))
    ([0, 1, 2], 16)
    """
    places = np.linspace(0, len(block_ids) - 1, _TILES) if block_ids else np.empty(0)
    return [block_ids[int(i)] for i in np.unique(places.astype(int))]


def thinned(block: NDArray[Any]) -> NDArray[Any]:
    """A few voxels of one tile, spread evenly: a copy."""
    flat = block.reshape(-1)
    return flat[:: max(1, flat.size * _TILES // _VOXELS)].copy()


def otsu(samples: Sequence[NDArray[Any]]) -> float:
    """Otsu's threshold of all samples; of samples of one value that value, but at most 0.

    Raises
    ------
    ParameterError
        If there is no finite voxel.
    """
    from skimage.filters import threshold_otsu

    sample = np.concatenate([np.empty(0, samples[0].dtype if samples else np.uint8), *samples])
    if sample.dtype.kind == "b":
        return 0.0
    # Of integers scikit-image makes one bin for each value between the extremes, however many.
    sample = sample.astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise ParameterError("No threshold can be derived from an image without finite voxels. Give a threshold.")
    if sample.min() == sample.max():
        # One value throughout tells nothing of what objects are like: skip only what is not above zero.
        return min(float(sample.min()), 0.0)
    return float(threshold_otsu(sample, nbins=_BINS))
