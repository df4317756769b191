"""`auto_tile_shape`: from bytes to tiles."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockbuster import GeometryError, ParameterError, auto_tile_shape, tile_process
from blockbuster.budget import available_memory, available_vram, cpu_count, memory_limit, tile_bytes
from tests.helpers import Recording, write_ome_zarr

GiB, MiB = 2**30, 2**20


@given(data=st.data())
def test_tiles_fit_the_memory_in_whole_chunks(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 3000)) for _ in range(ndim))
    chunks = tuple(data.draw(st.integers(1, 64)) for _ in range(ndim))
    overlap = tuple(data.draw(st.integers(0, 16)) for _ in range(ndim))
    memory, workers = data.draw(st.integers(2**20, 2**34)), data.draw(st.integers(1, 64))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float64"]))
    try:
        tile = auto_tile_shape(shape, dtype, overlap=overlap, chunks=chunks, memory=memory, n_workers=workers)
    except ParameterError:
        one = [min(min(c, n) + 2 * o, n) for n, c, o in zip(shape, chunks, overlap, strict=True)]
        assert tile_bytes(one, dtype) > memory // workers
        return
    padded = [min(t + 2 * o, n) for n, t, o in zip(shape, tile, overlap, strict=True)]
    assert tile_bytes(padded, dtype) <= memory // workers
    for n, t, c in zip(shape, tile, chunks, strict=True):
        assert 1 <= t <= n
        assert t % c == 0 or t == n


@pytest.mark.parametrize("memory", [2 * GiB, 8 * GiB, 64 * GiB])
def test_tiles_of_large_volumes_use_the_memory_and_are_nearly_cubes(memory: int) -> None:
    tile = auto_tile_shape((8192,) * 3, "uint16", chunks=(64,) * 3, memory=memory, n_workers=4)
    assert max(tile) - min(tile) <= 64 + max(tile) // 8
    assert memory / 4 / 2 < tile_bytes(tile, "uint16") <= memory / 4


def test_more_memory_never_makes_smaller_tiles() -> None:
    sizes = [
        math.prod(auto_tile_shape((4096,) * 3, "uint8", chunks=(64,) * 3, memory=m * GiB, n_workers=2))
        for m in (1, 2, 4, 8, 16, 32)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


def test_a_halo_is_paid_for_from_the_memory() -> None:
    bare, padded = (
        auto_tile_shape((4096,) * 3, "uint8", overlap=overlap, memory=GiB, n_workers=1) for overlap in (0, 60)
    )
    assert math.prod(padded) < math.prod(bare)
    assert tile_bytes([t + 120 for t in padded], "uint8") <= GiB


def test_every_worker_gets_several_tiles() -> None:
    tile = auto_tile_shape((1024, 1024, 1024), "uint8", chunks=(64,) * 3, memory=512 * GiB, n_workers=8)
    assert math.prod(-(-1024 // t) for t in tile) >= 4 * 8


@pytest.mark.parametrize(("axes", "thin"), [("tczyx", (0, 1)), ("tyx", (0,)), ("zcyx", (1,)), ("zyx", ()), (None, ())])
def test_tiles_are_one_voxel_thick_over_time_and_channel(axes: str | None, thin: tuple[int, ...]) -> None:
    ndim = len(axes) if axes else 3
    tile = auto_tile_shape((16,) * ndim, "uint8", chunks=(2,) * ndim, axes=axes, memory=64 * GiB, n_workers=1)
    assert [axis for axis, n in enumerate(tile) if n == 1] == list(thin)


@pytest.mark.parametrize("shape", [(5,), (0, 4), (1, 1, 1)])
def test_small_images_are_one_tile(shape: tuple[int, ...]) -> None:
    tile = auto_tile_shape(shape, "uint8", memory=GiB, n_workers=1)
    assert tile == tuple(max(n, 1) for n in shape)


def test_memory_that_no_chunk_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ParameterError,
        match=r"One chunk \(512, 512, 512\) with overlap \(8, 8, 8\) needs [\d,]+ bytes, but each of 4 workers "
        r"has 268,435,456\. Give a tile_shape, fewer workers, or store the image in smaller chunks",
    ):
        auto_tile_shape((2048,) * 3, "uint8", overlap=8, chunks=(512,) * 3, memory=GiB, n_workers=4)


def test_what_does_not_fit_the_axes_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"overlap \(1, 2\) has 2 entries, the image has 3 axes"):
        auto_tile_shape((8, 8, 8), "uint8", overlap=(1, 2), memory=GiB)
    with pytest.raises(GeometryError, match=r"chunks \(0, 8, 8\) has an entry below 1"):
        auto_tile_shape((8, 8, 8), "uint8", chunks=(0, 8, 8), memory=GiB)


# What is available


def test_half_of_the_available_memory_is_shared_by_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.budget.available_memory", lambda: 8 * GiB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    expected = auto_tile_shape((4096,) * 3, "uint8", memory=4 * GiB, n_workers=2)
    assert auto_tile_shape((4096,) * 3, "uint8") == expected


@pytest.fixture(autouse=True)
def _outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "100"}, 100),
        ({"SLURM_MEM_PER_CPU": "10", "SLURM_CPUS_ON_NODE": "3"}, 30),
        ({"SLURM_MEM_PER_CPU": "10", "SLURM_CPUS_PER_TASK": "2"}, 20),
        ({"SLURM_MEM_PER_CPU": "10"}, 10),
        ({"SLURM_MEM_PER_GPU": "10", "SLURM_GPUS_ON_NODE": "2"}, 20),
        ({"SLURM_MEM_PER_NODE": "100", "SLURM_MEM_PER_CPU": "10"}, 10),
    ],
)
def test_a_slurm_job_limits_the_memory(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert available_memory() == expected * MiB
    assert memory_limit() == expected * MiB


@pytest.mark.parametrize("told", ["0", "", "all", "4(x2)"])
def test_what_slurm_does_not_limit_is_no_limit(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, told)
    assert memory_limit() > 100 * MiB
    assert cpu_count() >= 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_ON_NODE": "64"}, 8),
    ],
)
def test_a_slurm_job_limits_the_cpus(
    environment: dict[str, str], expected: int, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cpu_count() == expected


def test_the_memory_of_the_machine_is_the_limit_otherwise() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert available_memory() <= memory_limit() <= psutil.virtual_memory().total


# Control groups


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of the file system of which tests write the parts that tell of cgroups."""
    root = tmp_path / "root"
    (root / "proc" / "self").mkdir(parents=True)
    monkeypatch.setattr("blockbuster.budget._SYSTEM", root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    return root


def lay(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> None:
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("".join(f"{i} 23 0:{i} {mount}\n" for i, mount in enumerate(mounts)))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


UNIFIED = "/ /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def v1(controller: str, root: str = "/") -> str:
    return f"{root} /sys/fs/cgroup/{controller} rw,relatime - cgroup cgroup rw,{controller}"


def test_no_cgroup_is_no_limit(system: Path) -> None:
    import psutil

    assert memory_limit() == psutil.virtual_memory().total
    assert cpu_count() == 8


@pytest.mark.parametrize(("inner", "outer"), [("300", "max"), ("max", "300"), ("300", "400"), ("400", "300")])
def test_the_least_limit_on_the_way_up_holds(inner: str, outer: str, system: Path) -> None:
    """A SLURM job limits its step, or the step's parent: not the group that is mounted."""
    limits = {
        "job_1/step_0/memory.max": inner,
        "job_1/step_0/memory.current": "100",
        "job_1/memory.max": outer,
        "job_1/memory.current": "150",
    }
    lay(system, "0::/job_1/step_0\n", [UNIFIED], {f"sys/fs/cgroup/{k}": f"{v}\n" for k, v in limits.items()})
    assert memory_limit() == 300
    left = [int(limit) - used for limit, used in ((inner, 100), (outer, 150)) if limit != "max"]
    assert available_memory() == min(left)


def test_the_groups_beside_do_not_count(system: Path) -> None:
    lay(
        system, "0::/mine\n", [UNIFIED], {"sys/fs/cgroup/other/memory.max": "5", "sys/fs/cgroup/mine/memory.max": "max"}
    )
    assert memory_limit() > 100 * MiB


def test_cached_files_are_memory_that_is_free(system: Path) -> None:
    folder = "sys/fs/cgroup/job"
    files = {"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 200\nfile 700\ninactive_file 600\n"}
    lay(system, "0::/job\n", [UNIFIED], {f"{folder}/{name}": text for name, text in files.items()})
    assert available_memory() == 1000 - 900 + 600


def test_a_group_that_is_full_has_no_memory_left(system: Path) -> None:
    lay(system, "0::/\n", [UNIFIED], {"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "1200"})
    assert available_memory() == 0


@pytest.mark.parametrize(
    ("groups", "mount"),
    [
        ("4:memory:/slurm/uid_0/job_7\n3:cpuset:/\n0::/\n", v1("memory")),
        ("4:memory:/docker/f00/slurm/uid_0/job_7\n", v1("memory", "/docker/f00")),
        ("4:hugetlb,memory:/slurm/uid_0/job_7\n", v1("memory")),
    ],
)
def test_groups_of_version_1_limit_the_memory(groups: str, mount: str, system: Path) -> None:
    unlimited, folder = "9223372036854771712", "sys/fs/cgroup/memory"
    files = {
        f"{folder}/memory.limit_in_bytes": unlimited,
        f"{folder}/memory.usage_in_bytes": "5000",
        f"{folder}/slurm/uid_0/memory.limit_in_bytes": "4000",
        f"{folder}/slurm/uid_0/memory.usage_in_bytes": "3000",
        f"{folder}/slurm/uid_0/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        f"{folder}/slurm/uid_0/job_7/memory.limit_in_bytes": unlimited,
    }
    lay(system, groups, [mount, v1("cpuset")], files)
    assert memory_limit() == 4000
    assert available_memory() == 4000 - 3000 + 500


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_by_it(system: Path) -> None:
    """Without a namespace of its own it is told a path that is not there."""
    mount = "/docker/f00 /sys/fs/cgroup ro - cgroup2 cgroup2 rw"
    lay(system, "0::/docker/f00\n", [mount], {"sys/fs/cgroup/memory.max": "700"})
    assert memory_limit() == 700


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_quota_limits_the_cpus(quota: str, expected: int, system: Path) -> None:
    lay(
        system,
        "0::/job/step\n",
        [UNIFIED],
        {"sys/fs/cgroup/job/cpu.max": quota, "sys/fs/cgroup/job/step/cpu.max": "max"},
    )
    assert cpu_count() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_a_quota_of_version_1_limits_the_cpus(quota: str, expected: int, system: Path) -> None:
    folder = "sys/fs/cgroup/cpu/job"
    mount = "/ /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
    lay(
        system,
        "2:cpu,cpuacct:/job\n",
        [mount],
        {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"},
    )
    assert cpu_count() == expected


@pytest.mark.parametrize(("cpus", "expected"), [("0-3", 4), ("1", 1), ("0-1,4,6-7", 5), ("", 8)])
@pytest.mark.parametrize("version", [1, 2])
def test_a_set_limits_the_cpus(cpus: str, expected: int, version: int, system: Path) -> None:
    if version == 2:
        lay(system, "0::/job\n", [UNIFIED], {"sys/fs/cgroup/job/cpuset.cpus.effective": f"{cpus}\n"})
    else:
        lay(system, "3:cpuset:/job\n", [v1("cpuset")], {"sys/fs/cgroup/cpuset/job/cpuset.cpus": f"{cpus}\n"})
    assert cpu_count() == expected


def gpu_tool(folder: Path, answer: str, status: int = 0) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho \"$@\" > {folder}/asked\nprintf '{answer}'\nexit {status}\n")
    tool.chmod(0o755)


def test_one_tile_fits_half_the_free_memory_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_tool(tmp_path, r"4096\n16384\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert available_vram() == 4 * GiB
    expected = auto_tile_shape((4096,) * 3, "uint8", memory=2 * GiB, n_workers=1)
    assert auto_tile_shape((4096,) * 3, "uint8", use_gpu=True) == expected


def test_the_gpu_asked_about_is_the_first_visible_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_tool(tmp_path, r"2048\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert available_vram() == 2 * GiB
    assert "--id=3" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("status", [None, 9])
def test_use_gpu_without_a_gpu_is_refused(status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if status is not None:
        gpu_tool(tmp_path, "NVIDIA-SMI has failed", status)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ParameterError, match=r"use_gpu=True needs the free memory of a GPU.*Give a tile_shape, or use_gpu=False"
    ):
        tile_process(np.zeros((8, 8)), Recording(tmp_path), tile_shape="auto", use_gpu=True)


# As tile_shape="auto"


@pytest.mark.usefixtures("synchronous")
def test_auto_takes_whole_chunks_and_thin_time_and_channels_of_ome_zarr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockbuster.budget.available_memory", lambda: MiB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    image = np.zeros((2, 2, 60, 80), np.uint8)
    path = write_ome_zarr(tmp_path / "image.zarr", [image], "tcyx", chunks=(1, 1, 8, 10))
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    tile_process(path, recording, tile_shape="auto", channel=None, block_ids=[0], compute=True)
    (block,) = recording.blocks()
    assert block.shape[:2] == (1, 1)
    assert block.shape[2] % 8 == 0 or block.shape[2] == 60
    assert block.shape[3] % 10 == 0 or block.shape[3] == 80


@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_an_image_that_no_tile_fits_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.budget.available_memory", lambda: 2**20)
    image: Any = np.zeros((512, 512), np.uint8)
    if kind == "dask":
        image = da.from_array(image, chunks=512)
        with pytest.raises(ParameterError, match=r"One chunk \(512, 512\)"):
            tile_process(image, Recording(tmp_path), tile_shape="auto")
    else:
        # Memory has no chunks that a tile must be whole ones of.
        labels = tile_process(image, Recording(tmp_path), tile_shape="auto")
        assert max(labels.chunks[0]) < 512
