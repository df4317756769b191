"""Bytes to tile shape: what the process may use, what a tile needs."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import DTypeLike

from blockbuster.errors import ParameterError
from blockbuster.grid import per_axis

__all__ = ["auto_tile_shape", "available_memory", "available_vram", "cpu_count", "tile_bytes"]

# Labels as the function returns them (int64 at the most), the narrow copy that is kept, and the final ones.
_LABEL_BYTES = 8 + 4 + 4
# Copies of the image that a function may make in float32 while it works.
_FUNCTION_BYTES = 4 * 4
_SHARE = 0.5
# Workers share the tiles evenly enough with this many each.
_TILES_PER_WORKER = 4
_SMALLEST = 64


def tile_bytes(padded_shape: Sequence[int], dtype: DTypeLike) -> int:
    """Bytes that one padded tile needs while it is worked on, function and labels counted.

    Examples
    --------
    >>> tile_bytes((128, 128, 128), "uint8") // 2**20
    66
    """
    return math.prod(padded_shape) * (np.dtype(dtype).itemsize + _LABEL_BYTES + _FUNCTION_BYTES)


def auto_tile_shape(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    overlap: int | Sequence[int] = 0,
    chunks: Sequence[int] | None = None,
    axes: str | None = None,
    use_gpu: bool = False,
    memory: int | None = None,
    n_workers: int | None = None,
) -> tuple[int, ...]:
    """The tile shape that fits the memory at hand.

    Tiles are as near to cubes as whole chunks allow, halo counted, and small enough for every worker to have several.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image, voxels.
    dtype : dtype
        Of the image.
    overlap : int or sequence of int, default 0
        Voxels read beyond each side of a tile.
    chunks : sequence of int, optional
        Storage chunks of the image, voxels; tiles are whole multiples of them.
    axes : str, optional
        Names of the axes, such as "tczyx"; tiles are one voxel thick over time and channel.
    use_gpu : bool, default False
        Fit one tile into the free memory of the GPU, not several into that of the machine.
    memory : int, optional
        Bytes for all workers. Default: half of what is available to this process, its cgroup and SLURM job counted.
    n_workers : int, optional
        Tiles at a time. Default: the CPUs that this process may use; 1 with `use_gpu`.

    Returns
    -------
    tile_shape : tuple of int
        Shape of a tile, voxels, without its halo.

    Raises
    ------
    ParameterError
        If not even one chunk fits, or there is no GPU.

    Examples
    --------
    >>> auto_tile_shape((2048, 2048, 2048), "uint16", chunks=(128, 128, 128), memory=2**33, n_workers=2)
    (512, 512, 384)
    """
    shape = tuple(max(n, 1) for n in shape)
    workers = n_workers or (1 if use_gpu else cpu_count())
    limit = memory if memory is not None else int(_SHARE * (available_vram() if use_gpu else available_memory()))
    halo = per_axis("overlap", overlap, shape, minimum=0)
    steps = per_axis("chunks", chunks, shape, minimum=1) if chunks is not None else (1,) * len(shape)
    tile = _smallest_tile(shape, steps, axes)
    share = limit // workers

    def needs(candidate: Sequence[int]) -> int:
        padded = [min(t + 2 * h, max(n, 1)) for t, h, n in zip(candidate, halo, shape, strict=True)]
        return tile_bytes(padded, dtype)

    if needs(tile) > share:
        raise ParameterError(
            f"One chunk {tuple(steps)} with overlap {halo} needs {needs(tile):,} bytes, but each of {workers} workers "
            f"has {share:,}. Give a tile_shape, fewer workers, or store the image in smaller chunks."
        )
    wanted = _TILES_PER_WORKER * workers
    fixed = _fixed_axes(shape, axes)
    growing = [axis for axis in range(len(shape)) if axis not in fixed]
    while growing:
        axis = min(growing, key=lambda a: tile[a])
        grown = list(tile)
        grown[axis] = min(tile[axis] + _step(tile[axis], steps[axis]), _whole(shape[axis], steps[axis]))
        few = _n_tiles(shape, grown) < wanted and min(tile[a] for a in growing) >= _SMALLEST
        if grown[axis] == tile[axis]:
            growing.remove(axis)
        elif few or needs(grown) > share:
            break
        else:
            tile = tuple(grown)
    return tuple(min(t, max(n, 1)) for t, n in zip(tile, shape, strict=True))


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that this process may still use: the machine's, its cgroup's, and its SLURM job's."""
    return min([psutil.virtual_memory().available, *_cgroup_memory(), *_slurm_memory()])


def available_vram() -> int:
    """Free bytes of the first GPU that this process may use.

    Raises
    ------
    ParameterError
        If there is none.
    """
    tool = shutil.which("nvidia-smi")
    command = [tool or "", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        command.append(f"--id={visible.split(',')[0]}")
    answer = subprocess.run(command, capture_output=True, text=True, check=False) if tool else None
    lines = answer.stdout.split() if answer is not None and answer.returncode == 0 else []
    if not lines:
        raise ParameterError(
            "tile_shape='auto' with use_gpu=True needs the free memory of a GPU, but nvidia-smi shows none. "
            "Give a tile_shape, or use_gpu=False."
        )
    return int(lines[0]) * 2**20


def _fixed_axes(shape: Sequence[int], axes: str | None) -> set[int]:
    return {axis for axis in range(len(shape)) if axes is not None and axes[axis] in "tc"}


def _smallest_tile(shape: Sequence[int], steps: Sequence[int], axes: str | None) -> tuple[int, ...]:
    fixed = _fixed_axes(shape, axes)
    return tuple(
        1 if axis in fixed else min(step, max(n, 1)) for axis, (step, n) in enumerate(zip(steps, shape, strict=True))
    )


def _step(extent: int, chunk: int) -> int:
    """Grow by about an eighth, in whole chunks."""
    return max(extent // (8 * chunk), 1) * chunk


def _whole(extent: int, chunk: int) -> int:
    return -(-extent // chunk) * chunk


def _n_tiles(shape: Sequence[int], tile: Sequence[int]) -> int:
    return math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True))


def _cgroup_memory() -> list[int]:
    """What is left of the memory of this process' cgroup, version 2 or 1."""
    found = []
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and Path(usage).exists():
            most = Path(limit).read_text().strip()
            if most.isdigit():
                found.append(int(most) - int(Path(usage).read_text()))
    return [n for n in found if n > 0]


def _slurm_memory() -> list[int]:
    """Bytes of the SLURM job on this node, which are given in MiB."""
    if "SLURM_MEM_PER_NODE" in os.environ:
        return [int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20]
    if "SLURM_MEM_PER_CPU" in os.environ:
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
        return [int(os.environ["SLURM_MEM_PER_CPU"]) * cpus * 2**20]
    return []
