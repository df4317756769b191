"""Clusters on this machine: who gets in, who listens where, from where they are used, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.ndimage
import zarr
from distributed import Client
from distributed.core import rpc
from distributed.security import Security

import blockbuster
from blockbuster.cluster import RunningCluster
from tests.helpers import assert_same_objects, components, leftovers

TILE = 16
SIDE = 64
LOOPBACK = "127.0.0.1"
IMAGE = (np.random.default_rng(6).random((SIDE, SIDE)) < 0.5).astype(np.uint8)
PATIENCE = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the image in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=IMAGE, chunks=(TILE, TILE))
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def running(request: pytest.FixtureRequest) -> Iterator[RunningCluster]:
    """A cluster of one, and one of two workers of one thread each; what this process listens at for it is noted."""
    before = listening(os.getpid())
    with blockbuster.make_local_cluster(n_workers=request.param) as running:
        # It would be the scheduler of tests that ask for none.
        running.client.close()
        running.cluster.listening = listening(os.getpid()) - before
        yield running


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports at which a process listens."""
    found = psutil.Process(pid).net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


# Who gets in


def strangers(address: str) -> list[tuple[str, Security | None]]:
    """Where and with which credentials somebody may try."""
    return [(address.replace("tls://", "tcp://"), None), (address, None), (address, Security.temporary())]


def test_a_client_without_the_credentials_is_turned_away(running: RunningCluster) -> None:
    address = running.cluster.scheduler_address
    assert address.startswith(f"tls://{LOOPBACK}:")
    assert asyncio.run(greeted(address, running.cluster.security)) == "Scheduler"
    for where, security in strangers(address):
        with pytest.raises((OSError, TypeError, RuntimeError)):
            asyncio.run(greeted(where, security))
    with Client(address, security=running.cluster.security, timeout="30s", set_as_default=False) as invited:
        assert len(invited.run(os.getpid)) == len(running.cluster.workers)


def test_a_worker_answers_nobody_without_the_credentials(running: RunningCluster) -> None:
    nannies = [nanny.address for nanny in running.cluster.workers.values()]
    for address in [*running.cluster.scheduler_info["workers"], *nannies]:
        assert address.startswith(f"tls://{LOOPBACK}:")
        assert asyncio.run(greeted(address, running.cluster.security)) in ("Worker", "Nanny")
        for where, security in strangers(address):
            with pytest.raises((OSError, TypeError, RuntimeError)):
                asyncio.run(greeted(where, security))


async def greeted(address: str, security: Security | None) -> str:
    """What answers to whoever has these credentials."""
    arguments = security.get_connection_args("worker") if security else {}
    async with rpc(address, connection_args=arguments, timeout=3) as connected:
        return str((await connected.identity())["type"])


def test_nobody_listens_beyond_loopback(running: RunningCluster) -> None:
    with Client(running.cluster, set_as_default=False) as client:
        pids = client.run(os.getpid).values()
    # The scheduler and its dashboard, and each worker, are two at least.
    for found in [running.cluster.listening, *map(listening, pids)]:
        assert len(found) >= 2
        assert {ip for ip, _port in found} == {LOOPBACK}


def test_credentials_are_no_files(running: RunningCluster) -> None:
    security = running.cluster.security
    assert security.require_encryption
    for secret in (security.tls_scheduler_key, security.tls_worker_key, security.tls_client_key):
        assert secret.startswith("-----BEGIN")


# From where it is used


@pytest.mark.parametrize("kind", ["memory", "lazy", "store", "function"])
def test_a_run_within_a_task_of_the_cluster_comes_to_its_end(kind: str, running: RunningCluster, folder: Path) -> None:
    path, to = str(folder / "image.zarr"), str(folder / "labels.zarr")
    runs: dict[str, Callable[[], Any]] = {
        "memory": lambda: blockbuster.label(path, compute=True),
        "lazy": lambda: blockbuster.label(path).compute(),
        "store": lambda: blockbuster.label(path, write_to=to).compute(),
        "function": lambda: blockbuster.tile_process(path, components, write_to=to).compute(),
    }
    with Client(running.cluster) as client:
        labels = client.submit(runs[kind], pure=False).result(timeout=PATIENCE)
    if kind == "function":
        assert_same_objects(labels, scipy.ndimage.label(IMAGE)[0])
    else:
        np.testing.assert_array_equal(labels, scipy.ndimage.label(IMAGE)[0])
    assert eventually(lambda: leftovers(folder) == [])


def test_runs_within_as_many_tasks_as_there_are_workers_come_to_their_end(
    running: RunningCluster, folder: Path
) -> None:
    path = str(folder / "image.zarr")
    with Client(running.cluster) as client:
        futures = [
            client.submit(lambda n=n: blockbuster.label(path, write_to=f"{path}.{n}.zarr").compute(), pure=False)
            for n in range(len(running.cluster.workers) + 1)
        ]
        for labels in client.gather(futures):
            np.testing.assert_array_equal(labels, scipy.ndimage.label(IMAGE)[0])
    assert eventually(lambda: leftovers(folder) == [])


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold, once workers have let go."""
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    return holds()


OTHER_CLIENT = """
import json, sys
import blockbuster
from distributed import Client
from distributed.security import Security
from tests.helpers import components

address, credentials, folder = json.load(sys.stdin)
with Client(address, security=Security(**credentials)):
    blockbuster.label(f"{folder}/image.zarr", write_to=f"{folder}/labels.zarr")
    blockbuster.tile_process(f"{folder}/image.zarr", components, write_to=f"{folder}/cells.zarr")
    print(blockbuster.label(f"{folder}/image.zarr").max().compute())
"""


def test_a_client_in_another_process_uses_the_cluster(running: RunningCluster, folder: Path) -> None:
    names = ("tls_ca_file", "tls_client_cert", "tls_client_key")
    credentials = {"require_encryption": True} | {name: getattr(running.cluster.security, name) for name in names}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_CLIENT],
        input=json.dumps([running.cluster.scheduler_address, credentials, str(folder)]),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected, n_objects = scipy.ndimage.label(IMAGE)
    assert int(done.stdout) == n_objects
    np.testing.assert_array_equal(zarr.open_array(folder / "labels.zarr/labels", mode="r")[:], expected)
    assert_same_objects(zarr.open_array(folder / "cells.zarr/labels", mode="r")[:], expected)
    assert eventually(lambda: leftovers(folder) == [])


# What is left


def test_a_cluster_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    before = children()
    with blockbuster.make_local_cluster(n_workers=1):
        blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr")
        assert children() > before
    assert children() == before
    assert {path.name for path in folder.iterdir()} == {"image.zarr", "labels.zarr"}
    assert os.listdir(tmp_path / "system-tmp") == []


LEFT_OPEN = """
import blockbuster

if __name__ == "__main__":
    client, cluster = blockbuster.make_local_cluster(n_workers=1)
    print(client.submit(sum, [1, 2]).result())
"""


def test_a_cluster_that_is_left_open_leaves_nothing_behind_either(tmp_path: Path) -> None:
    script, temporary = tmp_path / "left_open.py", tmp_path / "its-own"
    script.write_text(LEFT_OPEN)
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    assert os.listdir(temporary) == []


def children() -> set[int]:
    """The processes that belong to this one, but those that watch over the resources of others."""
    found = psutil.Process().children(recursive=True)
    return {process.pid for process in found if "resource_tracker" not in " ".join(process.cmdline())}
