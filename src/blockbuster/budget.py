"""Bytes to tile shape: what the process may use, what a tile needs."""

from __future__ import annotations

import functools
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

__all__ = ["auto_tile_shape", "available_memory", "available_vram", "cpu_count", "memory_limit", "tile_bytes"]

# Where the files lie that tell of cgroups.
_SYSTEM = Path("/")

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
    """CPUs that this process may use: its affinity, the quota and the set of its cgroups, and its SLURM task."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([own, *_cgroup_cpus(), *_slurm_cpus()]), 1)


def memory_limit() -> int:
    """Bytes that this process may ever use: those of the machine, of its cgroups, and of its SLURM job."""
    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_limits()), *_slurm_memory()])


def available_memory() -> int:
    """Bytes that this process may still use: the machine's, its cgroups', and its SLURM job's."""
    left = [max(limit - _used(folder), 0) for folder, limit in _memory_limits()]
    return min([psutil.virtual_memory().available, *left, *_slurm_memory()])


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


# Control groups
#
# A limit of a group holds for all groups within it, so what counts is the least on the way up.


def _memory_limits() -> list[tuple[Path, int]]:
    """The cgroups of this process that limit its memory, with their limits in bytes."""
    folders = _cgroup_folders(_SYSTEM, "memory")
    limits = [(folder, _number(folder / "memory.max", folder / "memory.limit_in_bytes")) for folder in folders]
    return [(folder, limit) for folder, limit in limits if limit is not None]


def _used(folder: Path) -> int:
    """Bytes that a cgroup uses and that cannot be taken back."""
    used = _number(folder / "memory.current", folder / "memory.usage_in_bytes") or 0
    return max(used - _idle_cache(folder), 0)


def _idle_cache(folder: Path) -> int:
    """Bytes of files in memory that the system drops before it refuses memory."""
    words = _text(folder / "memory.stat").split()
    facts = dict(zip(words[::2], words[1::2], strict=False))
    return int(facts.get("total_inactive_file", facts.get("inactive_file", "0")))


def _cgroup_cpus() -> list[int]:
    """CPUs that the quotas of the cgroups of this process amount to, and those in their sets."""
    found = []
    for folder in _cgroup_folders(_SYSTEM, "cpu"):
        quota, period = [*_text(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(max(int(quota) // int(period), 1))
    for folder in _cgroup_folders(_SYSTEM, "cpuset"):
        names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
        listed = next(filter(None, (_text(folder / name) for name in names)), "")
        found.extend([_n_listed(listed)] if listed else [])
    return found


def _n_listed(cpus: str) -> int:
    """How many CPUs a list such as "0-3,8" names."""
    ends = [part.split("-") for part in cpus.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


@functools.cache
def _cgroup_folders(system: Path, controller: str) -> tuple[Path, ...]:
    """Folders of the cgroup of this process and of those around it, in each hierarchy that has the controller."""
    groups = {}
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # The unified hierarchy, version 2, names no controllers.
        if not controllers or controller in controllers.split(","):
            groups["cgroup" if controllers else "cgroup2"] = path
    found: list[Path] = []
    for line in _text(system / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, mount = before.split()[:5]
        kind, _, options = after.split(" ", 2)
        if kind in groups and (kind == "cgroup2" or controller in options.split(",")):
            found.extend(_upwards(system / mount.lstrip("/"), _below(root, groups[kind])))
    return tuple(found)


def _below(root: str, group: str) -> str:
    """Where a group is below a mount of `root`: in a container that may be the mount itself."""
    inside = os.path.relpath(group, root)
    return "" if inside == "." or inside.startswith("..") else inside


def _upwards(mount: Path, group: str) -> list[Path]:
    folder = mount / group
    return [part for part in (folder, *folder.parents) if part.is_relative_to(mount) and part.is_dir()]


def _number(*paths: Path) -> int | None:
    """What the first of some files says that says a number."""
    said = (_text(path) for path in paths)
    return next((int(text) for text in said if text.isdigit()), None)


def _text(path: Path) -> str:
    """The content of a file of the system; nothing where there is none, or it must not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# SLURM


def _slurm_cpus() -> list[int]:
    """CPUs of the SLURM task, and those of its job on this node."""
    return _slurm("SLURM_CPUS_PER_TASK") + _slurm("SLURM_CPUS_ON_NODE")


def _slurm_memory() -> list[int]:
    """Bytes of the SLURM job on this node, which are given in MiB; 0 stands for all that the node has."""
    cpus = (_slurm("SLURM_CPUS_ON_NODE") or _slurm("SLURM_CPUS_PER_TASK") or [1])[0]
    gpus = (_slurm("SLURM_GPUS_ON_NODE") or [1])[0]
    return [
        *(n * 2**20 for n in _slurm("SLURM_MEM_PER_NODE")),
        *(n * 2**20 * cpus for n in _slurm("SLURM_MEM_PER_CPU")),
        *(n * 2**20 * gpus for n in _slurm("SLURM_MEM_PER_GPU")),
    ]


def _slurm(name: str) -> list[int]:
    """A number that SLURM tells, where it tells one."""
    told = os.environ.get(name, "")
    return [int(told)] if told.isdigit() and int(told) else []
