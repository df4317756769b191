"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import dask
import hypothesis
import pytest

# "default" is for the test command; "thorough" for the night: HYPOTHESIS_PROFILE=thorough.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[str]:
    """The address of a cluster of two worker processes."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(params=["synchronous", "threads", "processes", "distributed"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every scheduler in turn, active for the test."""
    yield from _active(request)


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.slow), "distributed"])
def many(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every scheduler that works in parallel."""
    yield from _active(request)


def _active(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "distributed":
        from distributed import Client

        with Client(request.getfixturevalue("local_cluster")):
            yield request.param
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
