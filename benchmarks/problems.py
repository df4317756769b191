"""Images that the benchmarks run on, each named for what it is hard with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage
import zarr


def smooth_blobs(size: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """A uint8 volume of blobs about ten voxels wide, and a threshold with 30 % above it."""
    noise = np.random.default_rng(seed).random((size,) * 3, dtype=np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, 4)
    low, high = smooth.min(), smooth.max()
    image = ((smooth - low) / (high - low) * 255).astype(np.uint8)
    return image, float(np.quantile(image[: size // 8], 0.7))


def random_foreground(size: int, seed: int = 0) -> tuple[np.ndarray, None]:
    """A mask with 3 % of its voxels set at random: as many objects as there can be."""
    return (np.random.default_rng(seed).random((size,) * 3, dtype=np.float32) < 0.03).astype(np.uint8), None


def tiny_tiles(size: int, seed: int = 0) -> tuple[np.ndarray, None]:
    """A 2-D mask with 40 % of its pixels set at random, for tiles that cost next to nothing themselves."""
    return (np.random.default_rng(seed).random((size,) * 2, dtype=np.float32) < 0.4).astype(np.uint8), None


def store_camera_noise(shape: tuple[int, ...], chunks: tuple[int, ...], folder: Path, seed: int = 0) -> Path:
    """A uint16 volume as a camera gives it: dim structure, shot noise, an offset; unless it is there from before."""
    path = folder / f"noise-{'x'.join(map(str, shape))}.zarr"
    if path.exists():
        return path
    array = zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint16")
    rng = np.random.default_rng(seed)
    for z in range(0, shape[0], chunks[0]):
        slab = (min(chunks[0], shape[0] - z), *shape[1:])
        coarse = rng.random([-(-n // 32) + 1 for n in slab], dtype=np.float32)
        structure = scipy.ndimage.zoom(coarse, 32, order=1)[tuple(slice(0, n) for n in slab)]
        array[z : z + slab[0]] = (100 + rng.poisson(20 + 300 * structure**4)).astype(np.uint16)
    return path


def store_mirrored_blobs(n_tiles: tuple[int, ...], side: int, folder: Path, seed: int = 0) -> tuple[Path, float]:
    """A uint16 volume of as many cubes, chunks of their own, as asked for: one cube of blobs, mirrored so that all fit.

    Returns its path and a threshold with 30 % above it.
    """
    noise = np.random.default_rng(seed).random((side,) * 3, dtype=np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, 4)
    low, high = smooth.min(), smooth.max()
    block = ((smooth - low) / (high - low) * 4095).astype(np.uint16)
    threshold = float(np.quantile(block[: side // 8], 0.7))
    path = folder / f"mirrored-{'x'.join(map(str, n_tiles))}-{side}.zarr"
    if not path.exists():
        shape = tuple(n * side for n in n_tiles)
        array = zarr.create_array(path, shape=shape, chunks=block.shape, dtype="uint16")
        for index in np.ndindex(n_tiles):
            flipped = np.flip(block, [axis for axis, i in enumerate(index) if i % 2])
            array[tuple(slice(i * side, (i + 1) * side) for i in index)] = flipped
    return path, threshold


PROBLEMS: dict[str, Callable[..., tuple[np.ndarray, float | None]]] = {
    "blobs": smooth_blobs,
    "random": random_foreground,
    "tiny": tiny_tiles,
}


def store_problem(name: str, size: int, chunk: int, folder: Path) -> tuple[Path, float | None]:
    """Write a problem to a zarr store, unless it is there from before; returns its path and threshold."""
    path = folder / f"{name}-{size}-{chunk}.zarr"
    if path.exists():
        array = zarr.open_array(path, mode="r")
        threshold = array.attrs["threshold"]
        return path, None if threshold is None else float(threshold)
    image, threshold = PROBLEMS[name](size)
    array = zarr.create_array(path, shape=image.shape, chunks=(chunk,) * image.ndim, dtype=image.dtype)
    array[...] = image
    array.attrs["threshold"] = threshold
    return path, threshold
