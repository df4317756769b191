"""Detectors of blobs: scikit-image's, with how far each sees, and which of its blobs overlap too much."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blockbuster.duplicates import first_kept
from blockbuster.errors import ParameterError

__all__ = ["Detector", "Method", "Scales", "make_detector", "pruning_reach", "settled"]

Method: TypeAlias = Literal["log", "dog", "doh"]

# Filters of scikit-image end at this many standard deviations.
_TRUNCATE = 4.0
_DEFAULT_THRESHOLDS = {"log": 0.2, "dog": 0.5, "doh": 0.01}
# scikit-image computes overlaps in so many dimensions.
_MOST_AXES = 3
# Rounding in what scikit-image computes, as a share.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Scales:
    """The sizes of blobs to look for.

    Attributes
    ----------
    least, most : tuple of float
        Standard deviations per axis, voxels.
    is_one : bool
        Whether they are the same on all axes, and a blob has one.
    n : int
        How many there are, from the least to the most ("log", "doh").
    is_log : bool
        Whether they are evenly spaced by their logarithms.
    ratio : float
        From one to the next ("dog").
    """

    least: tuple[float, ...]
    most: tuple[float, ...]
    is_one: bool
    n: int = 10
    is_log: bool = False
    ratio: float = 1.6

    @property
    def ndim(self) -> int:
        """Axes that blobs extend over."""
        return len(self.most)

    @property
    def n_sigmas(self) -> int:
        """Columns of sigmas that a blob has."""
        return 1 if self.is_one else self.ndim

    def spaced(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The sigmas from the least to the most, one row for each, computed in a dtype."""
        least, most = np.asarray(self.least, dtype), np.asarray(self.most, dtype)
        if self.is_log:
            return np.logspace(np.log10(least), np.log10(most), self.n)
        return np.linspace(least, most, self.n)


class Detector(Protocol):
    """Finds blobs in a block."""

    @property
    def scales(self) -> Scales:
        """The sizes that it looks for."""

    @property
    def largest(self) -> tuple[float, ...]:
        """The largest sigma that a blob of it has, per axis, voxels."""

    @property
    def reach(self) -> tuple[int, ...]:
        """How many voxels away something may change whether a voxel is one where a blob is, per axis."""

    @property
    def radius(self) -> float:
        """Radius of a blob for each voxel of its sigma."""

    @property
    def work(self) -> int:
        """Floats that it holds for each voxel."""

    def candidates(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """All blobs, the strongest first, whether they overlap or not: coordinates, then sigmas, voxels."""

    def may_find(self, low: Any, high: Any) -> bool:
        """Whether there may be a blob in a block whose values lie between two."""


@dataclass(frozen=True)
class _Filters:
    """What detectors have in common that blur with Gaussians.

    Attributes
    ----------
    threshold : float
        What a response must exceed.
    """

    scales: Scales
    threshold: float

    @property
    def largest(self) -> tuple[float, ...]:
        """The largest that was asked for."""
        return self.scales.most

    @property
    def reach(self) -> tuple[int, ...]:
        """Of the largest filter, and one voxel more for the comparison with its neighbours."""
        return tuple(math.ceil(_TRUNCATE * sigma) + 1 for sigma in self.largest)

    @property
    def radius(self) -> float:
        """The square root of the number of axes."""
        return math.sqrt(self.scales.ndim)


@dataclass(frozen=True)
class LaplacianOfGaussian(_Filters):
    """``skimage.feature.blob_log``, before it prunes."""

    @property
    def work(self) -> int:
        """The response at each scale, its maximum around each voxel, and what the filters hold."""
        return 2 * self.scales.n + 4

    def candidates(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """See `Detector`."""
        from scipy import ndimage

        image = _as_image(block)
        sigmas = self.scales.spaced(image.dtype)
        cube = np.empty((*image.shape, len(sigmas)), image.dtype)
        for number, sigma in enumerate(sigmas):
            # The mean of the squares makes the answers of all scales alike.
            cube[..., number] = -ndimage.gaussian_laplace(image, sigma) * np.mean(sigma) ** 2
        return _peaks(cube, self.threshold, sigmas[:, : self.scales.n_sigmas])

    def may_find(self, low: Any, high: Any) -> bool:
        """Whether any response to values between these two can exceed the threshold."""
        sigmas = self.scales.spaced(np.dtype(np.float64)).tolist()
        most = max(_most_response(tuple(sigma), *_as_floats(low, high)) for sigma in sigmas)
        # Not "most > threshold": what is not a number is not known to be empty.
        return not most <= self.threshold


@dataclass(frozen=True)
class DifferenceOfGaussians(_Filters):
    """``skimage.feature.blob_dog``, before it prunes."""

    @property
    def largest(self) -> tuple[float, ...]:
        """That of the last filter: the first of the geometric series that is not below what was asked for."""
        # In 32 bits rounding may make the series one longer.
        return tuple(
            max(float(self._series(np.dtype(kind))[-1, axis]) for kind in "fd") for axis in range(self.scales.ndim)
        )

    @property
    def work(self) -> int:
        """The response at each scale, its maximum around each voxel, and what the filters hold."""
        return 2 * len(self._series(np.dtype(np.float64))) + 4

    def _series(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The sigmas of the filters, one more than there are differences."""
        least, most = (np.asarray(ends, dtype) for ends in (self.scales.least, self.scales.most))
        n = int(np.mean(np.log(most / least) / np.log(self.scales.ratio) + 1))
        return np.array([least * self.scales.ratio**number for number in range(n + 1)])

    def candidates(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """See `Detector`."""
        from skimage.filters import gaussian

        image = _as_image(block)
        sigmas = self._series(image.dtype)
        cube = np.empty((*image.shape, len(sigmas) - 1), image.dtype)
        wide = gaussian(image, sigma=sigmas[0], mode="reflect")
        for number, sigma in enumerate(sigmas[1:]):
            narrow, wide = wide, gaussian(image, sigma=sigma, mode="reflect")
            cube[..., number] = narrow - wide
        cube *= 1 / (self.scales.ratio - 1)
        return _peaks(cube, self.threshold, sigmas[:, : self.scales.n_sigmas])

    def may_find(self, low: Any, high: Any) -> bool:
        """Whether two means of values between these two can differ by more than the threshold."""
        least, most = _as_floats(low, high)
        answer = (most - least) * (1 + _ROUNDING) + _ROUNDING * max(abs(least), abs(most))
        return not answer / (self.scales.ratio - 1) <= self.threshold


@dataclass(frozen=True)
class DeterminantOfHessian:
    """``skimage.feature.blob_doh``, before it prunes."""

    scales: Scales
    threshold: float

    @property
    def largest(self) -> tuple[float, ...]:
        """The largest that was asked for."""
        return self.scales.most

    @property
    def reach(self) -> tuple[int, ...]:
        """Of its box filters, which are 3 sigma wide, and of the comparison with the neighbours."""
        return tuple(math.ceil(1.5 * sigma) + 3 for sigma in self.scales.most)

    @property
    def radius(self) -> float:
        """As scikit-image says, about sigma."""
        return 1.0

    @property
    def work(self) -> int:
        """The response at each scale, its maximum around each voxel, and the integral image."""
        return 2 * self.scales.n + 3

    def candidates(self, block: NDArray[Any]) -> NDArray[np.float64]:
        """See `Detector`."""
        from skimage.feature import hessian_matrix_det

        image = _as_image(block)
        sigmas = self.scales.spaced(np.dtype(np.float64))[:, :1]
        cube = np.empty((*image.shape, len(sigmas)), image.dtype)
        for number, (sigma,) in enumerate(sigmas):
            cube[..., number] = hessian_matrix_det(image, sigma, approximate=True)
        return _peaks(cube, self.threshold, sigmas)

    def may_find(self, low: Any, high: Any) -> bool:
        """Always."""
        return True


def _as_image(block: NDArray[Any]) -> NDArray[Any]:
    """A block as scikit-image takes it: as floats of 32 or 64 bits, those of integers at most 1."""
    from skimage.util import img_as_float

    image = img_as_float(block)
    kind = np.float32 if image.dtype.itemsize <= 4 else np.float64
    return np.asarray(image, kind)


def _peaks(cube: NDArray[Any], threshold: float, sigmas: NDArray[Any]) -> NDArray[np.float64]:
    """The maxima of responses among their neighbours in space and scale, the strongest first."""
    from skimage.feature import peak_local_max

    found = peak_local_max(cube, threshold_abs=threshold, exclude_border=False, footprint=np.ones((3,) * cube.ndim))
    return np.column_stack([found[:, :-1], sigmas[found[:, -1]]]).astype(np.float64)


def make_detector(method: str, scales: Scales, threshold: float | None) -> Detector:
    """The detector of a name.

    Raises
    ------
    ParameterError
        If there is none, or it cannot look for such blobs.
    """
    if not isinstance(method, str):
        raise ParameterError(f"method {method!r} is neither a name nor a function.")
    kinds: dict[str, Callable[[Scales, float], Detector]] = {
        "log": LaplacianOfGaussian,
        "dog": DifferenceOfGaussians,
        "doh": DeterminantOfHessian,
    }
    if method not in kinds:
        raise ParameterError(
            f"method {method!r} is unknown. Choose one of {', '.join(map(repr, kinds))}, or give a function."
        )
    if method == "doh" and (scales.ndim != 2 or not scales.is_one):
        raise ParameterError(
            f"method 'doh' finds round blobs in images of two axes, but sigmas {scales.least} to {scales.most} were "
            "asked for. Choose 'log' or 'dog', one sigma, or a plane at a time."
        )
    if threshold is not None and threshold < 0:
        raise ParameterError(
            f"threshold {threshold!r} is below 0, the response to what is flat: all of the background would be blobs. "
            "Give one of at least 0."
        )
    return kinds[method](scales, _DEFAULT_THRESHOLDS[method] if threshold is None else threshold)


# How far filters see, and how much they answer


def _as_floats(low: Any, high: Any) -> tuple[float, float]:
    """Two values as scikit-image scales them: those of integers to at most 1."""
    from skimage.util import img_as_float64

    ends = img_as_float64(np.array([low, high]))
    return float(ends[0]), float(ends[1])


def _most_response(sigma: tuple[float, ...], low: float, high: float) -> float:
    """The most that the Laplacian of a Gaussian can answer to values between two.

    Its weights are positive ones that sum up to p and negative ones that sum up to n: the answer is at most
    ``p high - n low``.
    """
    positive, negative = _weights(sigma)
    scale = float(np.mean(sigma)) ** 2
    most = (positive * high - negative * low) * scale
    return float(most + _ROUNDING * scale * (positive + negative) * max(abs(low), abs(high)))


@functools.lru_cache(maxsize=256)
def _weights(sigma: tuple[float, ...]) -> tuple[float, float]:
    """Bounds of the sums of the positive and of the negative weights of the filter, its sign changed."""
    from scipy import ndimage

    positive = negative = 0.0
    for one in sigma:
        impulse = np.zeros(2 * math.ceil(_TRUNCATE * one) + 3)
        impulse[len(impulse) // 2] = -1.0
        # Along the other axes weights are those of means, which sum up to 1.
        second = ndimage.gaussian_filter1d(impulse, one, order=2)
        positive += float(second[second > 0].sum())
        negative -= float(second[second < 0].sum())
    return positive, negative


# Blobs that overlap


def pruning_reach(detector: Detector, overlap: float) -> tuple[int, ...]:
    """How many voxels away a blob may be that takes the place of another, per axis.

    A ball of which more than half lies in a larger one has its centre in there; with less, they only have to touch.
    """
    if detector.scales.ndim > _MOST_AXES or overlap >= 1:
        return (0,) * detector.scales.ndim
    radii = 1 if overlap >= 0.5 else 2
    return tuple(math.ceil(radii * sigma * math.sqrt(detector.scales.ndim)) for sigma in detector.largest)


def settled(found: NDArray[np.float64], overlap: float, ndim: int, unsure: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Which blobs stay: of two that overlap too much the larger one, of two of the same size the weaker one.

    A blob that is not there any more takes the place of none. Where blobs of three sizes overlap in a row, scikit-image
    leaves what depends on the order in which it happens to look at pairs; here the largest is looked at first.

    Parameters
    ----------
    found : ndarray of float64, shape (n, ndim + sigmas)
        Coordinates and sigmas, the strongest blob first.
    overlap : float
        Share of the smaller blob.
    unsure : ndarray of bool, shape (n,)
        Which blobs may have neighbours that are not among these.

    Returns
    -------
    status : ndarray of int8, shape (n,)
        1 for what stays, 0 for what goes, -1 for what depends on others than these.
    """
    if ndim > _MOST_AXES or overlap >= 1 or len(found) == 0:
        return np.ones(len(found), np.int8)
    from scipy.spatial import KDTree

    sizes = found[:, ndim:].max(axis=0) * math.sqrt(ndim)
    tree = KDTree(found[:, :ndim] / sizes)
    # As far as balls of radius 1 reach into each other: see `pruning_reach`.
    pairs = tree.query_pairs((1 if overlap >= 0.5 else 2) * (1 + _ROUNDING), output_type="ndarray")
    pairs = pairs[_shares(found[pairs[:, 0]], found[pairs[:, 1]], ndim) > overlap]
    first, second = pairs[:, 0], pairs[:, 1]
    larger = found[first, -1] > found[second, -1]
    return first_kept(len(found), np.where(larger, first, second), np.where(larger, second, first), unsure)


def _shares(one: NDArray[np.float64], other: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """The share of the smaller of two blobs that lies in the larger one, for each pair.

    Distances are measured in radii of the larger blob, so that it is a ball of radius 1.
    """
    swap = one[:, -1] > other[:, -1]
    large, small = np.where(swap[:, None], one, other), np.where(swap[:, None], other, one)
    r = small[:, -1] / large[:, -1]
    d = np.sqrt((((small - large)[:, :ndim] / (large[:, ndim:] * math.sqrt(ndim))) ** 2).sum(axis=1))
    made = np.zeros(len(d))
    made[d <= 1 - r] = 1.0
    part = (d > 1 - r) & (d <= 1 + r)
    made[part] = (_disk_share if ndim == 2 else _ball_share)(d[part], r[part])
    return made


def _disk_share(d: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a disk of radius r that lies in one of radius 1 at distance d: a lens of two segments of circles."""
    in_large = np.arccos(np.clip((d**2 + 1 - r**2) / (2 * d), -1, 1))
    in_small = np.arccos(np.clip((d**2 + r**2 - 1) / (2 * d * r), -1, 1))
    kite = np.sqrt(np.abs((1 + r - d) * (d + 1 - r) * (d - 1 + r) * (d + 1 + r))) / 2
    share: NDArray[np.float64] = (in_large + r**2 * in_small - kite) / (np.pi * r**2)
    return share


def _ball_share(d: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a ball of radius r that lies in one of radius 1 at distance d: two caps."""
    caps = np.pi * (1 + r - d) ** 2 * (d**2 + 2 * d * (1 + r) - 3 * (1 + r**2) + 6 * r) / (12 * d)
    share: NDArray[np.float64] = caps / (4 / 3 * np.pi * r**3)
    return share
