"""Segmentation by a threshold: what is bright, in pieces where it has waists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from blockbuster.errors import ParameterError

__all__ = ["Thresholding", "threshold_fn"]

# Filters of SciPy end at this many standard deviations.
_TRUNCATE = 4.0


@dataclass(frozen=True)
class Thresholding:
    """A function of a tile; see `threshold_fn`."""

    threshold: float
    sigma: float
    min_distance: int

    @property
    def reach(self) -> int:
        """How far the blur sees, voxels. Where objects are split, more is seen: about the size of one."""
        return int(_TRUNCATE * self.sigma + 0.5)

    def __call__(self, tile: NDArray[Any]) -> NDArray[np.int32]:
        """Labels of a tile."""
        smooth = scipy.ndimage.gaussian_filter(tile.astype(np.float32), self.sigma) if self.sigma else tile
        mask = smooth > self.threshold
        if not self.min_distance or not mask.any():
            return np.asarray(scipy.ndimage.label(mask)[0], np.int32)
        return self._split(mask)

    def _split(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """A watershed of the distance to the background, from its maxima."""
        from skimage.feature import peak_local_max
        from skimage.segmentation import watershed

        depth = scipy.ndimage.gaussian_filter(scipy.ndimage.distance_transform_edt(mask), 1)
        objects, _ = scipy.ndimage.label(mask)
        peaks = peak_local_max(depth, min_distance=self.min_distance, labels=objects, exclude_border=False)
        seeds = np.zeros(mask.shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        labels: NDArray[np.int32] = watershed(-depth, seeds, mask=mask)
        return labels


def threshold_fn(threshold: float, *, sigma: float = 0.0, min_distance: int = 0) -> Thresholding:
    """A segmenter that needs no more than a threshold: of the whole image, so that tiles agree.

    Parameters
    ----------
    threshold : float
        What is above it is foreground, in the values of the image. `estimate_empty_tiles` finds Otsu's.
    sigma : float, default 0
        Standard deviation of a blur before, voxels.
    min_distance : int, default 0
        Split what touches at its waists: voxels between the centres of two objects, at least. 0 for connected
        components. Where objects are split, use the merge rule "iou" and an overlap of about one object.

    Returns
    -------
    fn : callable
        ``ndarray -> ndarray of int32`` of the same shape: for `tile_process`.

    Raises
    ------
    ParameterError
        If a number is out of range.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> from blockbuster.plugins.thresholding import threshold_fn
    >>> image = np.zeros((8, 8)); image[1:4, 1:7] = 5
    >>> int(blockbuster.tile_process(image, threshold_fn(1), tile_shape=(4, 4)).max().compute())
    1
    """
    numbers = {"threshold": threshold, "sigma": sigma, "min_distance": min_distance}
    for name, value in numbers.items():
        if isinstance(value, bool | str) or not hasattr(value, "__float__") or not math.isfinite(value):
            raise ParameterError(f"{name} {value!r} is no finite number.")
    if sigma < 0 or min_distance < 0 or int(min_distance) != min_distance:
        raise ParameterError(
            f"sigma {sigma!r} must be at least 0, and min_distance {min_distance!r} an int of at least 0."
        )
    return Thresholding(float(threshold), float(sigma), int(min_distance))
