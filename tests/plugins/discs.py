"""Images of bright discs that touch, with their true labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["balls", "discs", "n_matched"]


def discs(
    shape: tuple[int, int] = (256, 256), n: int = 40, *, seed: int, radius: tuple[float, float] = (8, 11)
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """An image and its labels: half of the discs touch one that was there before."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    image = rng.normal(0.1, 0.05, shape)
    grid = np.indices(shape)
    for number, (y, x, r) in enumerate(_places(rng, shape, n, radius), 1):
        distance = np.hypot(grid[0] - y, grid[1] - x)
        inside = distance < r
        labels[inside] = number
        image[inside] += rng.uniform(0.6, 1.0) * (1 - (distance[inside] / r) ** 2 / 2)
    return (1000 * image.clip(0)).astype(np.uint16), labels


def balls(
    shape: tuple[int, int, int], centres: list[tuple[float, float, float]], radius: float
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A volume of bright balls and its labels."""
    labels = np.zeros(shape, np.uint16)
    image = np.random.default_rng(0).normal(100, 40, shape)
    for number, centre in enumerate(centres, 1):
        offsets = np.indices(shape) - np.array(centre)[:, None, None, None]
        distance = np.sqrt((offsets**2).sum(axis=0))
        inside = distance < radius
        labels[inside] = number
        image[inside] += 800 * (1 - (distance[inside] / radius) ** 2 / 2)
    return image.clip(0).astype(np.uint16), labels


def n_matched(truth: NDArray[np.integer], found: NDArray[np.integer], iou: float = 0.5) -> int:
    """How many objects have a partner whose intersection over union with it is at least `iou`."""
    n_true, n_found = int(truth.max()) + 1, int(found.max()) + 1
    pairs = truth.astype(np.int64).ravel() * n_found + found.astype(np.int64).ravel()
    both = np.bincount(pairs, minlength=n_true * n_found).reshape(n_true, n_found)
    union = both.sum(axis=0) + both.sum(axis=1)[:, None] - both
    return int((both[1:, 1:] >= iou * np.maximum(union[1:, 1:], 1)).sum())


def _places(
    rng: np.random.Generator, shape: tuple[int, int], n: int, radius: tuple[float, float]
) -> list[tuple[float, float, float]]:
    """Centres and radii of discs that do not overlap."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(5000):
        if len(placed) == n:
            break
        r = rng.uniform(*radius)
        if placed and rng.random() < 0.5:
            beside = placed[rng.integers(len(placed))]
            angle, distance = rng.uniform(0, 2 * np.pi), beside[2] + r + 0.5
            y, x = beside[0] + distance * np.sin(angle), beside[1] + distance * np.cos(angle)
        else:
            y, x = rng.uniform(r, shape[0] - r), rng.uniform(r, shape[1] - r)
        is_inside = r < y < shape[0] - r and r < x < shape[1] - r
        if is_inside and all(np.hypot(y - b, x - a) >= r + s for b, a, s in placed):
            placed.append((y, x, r))
    return placed
