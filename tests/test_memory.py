"""Memory that does not grow with the volume: peaks of processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import zarr
from numpy.typing import NDArray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc"),
]

ROOT = Path(__file__).parent.parent


# What is freed goes back to the system at once: the peak is then that of what is in use, the same in each run.
EXACT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def _label(source: Path, target: Path, n_threads: int, environment: Mapping[str, str]) -> dict[str, int]:
    """Label in another process: its peak, and the number of objects."""
    command = [sys.executable, "-m", "tests.drivers.peak", str(source), str(target), str(n_threads)]
    environ = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def _blobs(side: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).random((side,) * 3, np.float32)
    return (scipy.ndimage.gaussian_filter(noise, 3, mode="wrap") > 0.51).astype(np.uint8)


def _fill(path: Path, side: int, block: NDArray[np.uint8]) -> Path:
    """A cube of copies of a block, each one chunk, and each mirrored so that borders fit."""
    array = zarr.create_array(path, shape=(side,) * 3, chunks=block.shape, dtype=block.dtype)
    step = len(block)
    for index in itertools.product(range(side // step), repeat=3):
        mirrored = np.flip(block, [axis for axis, i in enumerate(index) if i % 2])
        array[tuple(slice(i * step, (i + 1) * step) for i in index)] = mirrored
    return path


@pytest.mark.parametrize("n_threads", [1, 2])
def test_peak_memory_is_the_same_for_a_volume_8_times_larger(n_threads: int, tmp_path: Path) -> None:
    block = _blobs(64)
    peaks, found = [], []
    for side in (192, 384):
        source = _fill(tmp_path / f"in-{side}.zarr", side, block)
        measured = _label(source, tmp_path / f"out-{side}.zarr", n_threads, EXACT)
        peaks.append(measured["peak"])
        found.append(measured["n_objects"])
    assert 7 < found[1] / found[0] < 9
    # One volume in memory would add 57 MB as uint8, and 226 MB as int32.
    assert peaks[1] < 1.1 * peaks[0]


# Where ten objects lie in a cube of 4096: on a border of tiles, over the corner of eight of them, in the last one.
SIDE, TILE = 4096, (128, 256, 256)
BOXES = [
    ((0, 0, 0), (1, 1, 1)),
    ((3, 100, 250), (9, 110, 262)),
    ((3, 100, 300), (9, 110, 310)),
    ((500, 500, 500), (530, 530, 530)),
    ((700, 4000, 2000), (701, 4001, 2600)),
    ((2040, 2040, 2040), (2056, 2056, 2056)),
    ((2048, 10, 10), (2060, 20, 20)),
    ((3000, 0, 4090), (3003, 5, 4096)),
    ((4095, 0, 0), (4096, 1, 1)),
    ((4090, 4090, 4090), (4096, 4096, 4096)),
]


def _region(start: tuple[int, ...], stop: tuple[int, ...], margin: int = 0) -> tuple[slice, ...]:
    return tuple(slice(max(a - margin, 0), min(b + margin, SIDE)) for a, b in zip(start, stop, strict=True))


@pytest.mark.long
def test_a_virtual_volume_of_4096_cubed_with_ten_objects_takes_less_than_500_mb(tmp_path: Path) -> None:
    """64 GiB of voxels, of which few chunks are there; the labels would be 256 GiB."""
    image = zarr.create_array(tmp_path / "in.zarr", shape=(SIDE,) * 3, chunks=TILE, dtype="uint8", fill_value=0)
    for start, stop in BOXES:
        image[_region(start, stop)] = 200
    measured = _label(tmp_path / "in.zarr", tmp_path / "out.zarr", 2, {})
    assert measured["n_objects"] == len(BOXES)
    assert measured["peak"] < 500e6
    labels = zarr.open_array(tmp_path / "out.zarr", path="labels", mode="r")
    assert labels.shape == (SIDE,) * 3
    order = sorted(range(len(BOXES)), key=lambda i: BOXES[i][0])
    for number, i in enumerate(order, 1):
        around = labels[_region(*BOXES[i], margin=5)]
        inside = image[_region(*BOXES[i], margin=5)] > 0
        assert (around == number * inside).all()
    n_voxels = sum(int(np.prod(np.subtract(stop, start))) for start, stop in BOXES)
    assert _count_labelled(labels) == n_voxels


def _count_labelled(labels: zarr.Array) -> int:  # type: ignore[type-arg]
    """Voxels that are labelled, read from the chunks that were written."""
    folder = Path(labels.store.root, labels.path, "c")  # type: ignore[attr-defined]
    count = 0
    for path in folder.glob("*/*/*"):
        index = map(int, path.relative_to(folder).parts)
        region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, labels.chunks, strict=True))
        count += int(np.count_nonzero(labels[region]))
    return count
