"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import dask
import hypothesis
import pytest

from tests.slurm import tools as slurm

# "default" is for the test command; "thorough" for the night: HYPOTHESIS_PROFILE=thorough.
hypothesis.settings.register_profile("default", deadline=None, max_examples=35, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two worker processes."""
    from distributed import LocalCluster

    # Not in the temporary folder of the first test that asks for it, which may look for what is left there.
    with dask.config.set({"temporary-directory": str(tmp_path_factory.mktemp("cluster"))}):
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0")
    with cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two jobs of SLURM with one worker each."""
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as (client, cluster):
        # It would be the scheduler of tests that ask for none.
        client.close()
        yield cluster


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what takes minutes unless it is asked for, and what needs SLURM where there is none for tests."""
    if item.get_closest_marker("long") and os.environ.get("BLOCKBUSTER_TEST_LONG") != "1":
        pytest.skip("takes minutes: `make test-long` runs it")
    if item.get_closest_marker("slurm") and (reason := slurm.reason_to_skip()):
        pytest.skip(reason)


on_slurm = pytest.param("slurm", marks=pytest.mark.slurm)


@pytest.fixture(params=["synchronous", "threads", "processes", "distributed", on_slurm])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every scheduler in turn, active for the test."""
    yield from _active(request)


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.slow), "distributed", on_slurm])
def many(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every scheduler that works in parallel."""
    yield from _active(request)


CLUSTERS = {"distributed": "local_cluster", "slurm": "slurm_cluster"}


def _active(request: pytest.FixtureRequest) -> Iterator[str]:
    """Activate a scheduler for a test, which is told what dask calls it."""
    if request.param in CLUSTERS:
        from distributed import Client

        with Client(request.getfixturevalue(CLUSTERS[request.param])) as client:
            client.wait_for_workers(slurm.N_JOBS, timeout=slurm.PATIENCE)
            yield "distributed"
        return
    with dask.config.set(scheduler=request.param):
        yield request.param


@pytest.fixture
def synchronous() -> Iterator[None]:
    """The scheduler without threads: errors and order are the plainest there."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see what it leaves behind in the system's temporary folder."""
    import tempfile

    folder = os.path.join(str(tmp_path), "system-tmp")
    os.mkdir(folder)
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
