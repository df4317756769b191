"""Processes end with their pool, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from typing import Any

import dask
import pytest

from blockbuster.pools import pool_of_processes


def _seed(_: int) -> str | None:
    return os.environ.get("PYTHONHASHSEED")


def _of_processes(*tasks: Any) -> tuple[Any, ...]:
    with dask.config.set(scheduler="processes", num_workers=2), pool_of_processes():
        return dask.compute(*tasks)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_starts_while_its_pool_breaks_ends_as_well(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SpawnProcess] = []

    def lose(process: SpawnProcess) -> None:
        process.kill()
        process.join()
        # So long as the pool needs to see it.
        time.sleep(1)

    def start(process: SpawnProcess) -> None:
        if started and when == "before":
            lose(started[0])
        honest(process)
        if started and when == "after":
            lose(started[0])
        started.append(process)

    honest = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", start)
    with pytest.raises(BrokenProcessPool):
        _of_processes(*(dask.delayed(time.sleep)(0.01 * i) for i in range(100)))
    assert started
    for process in started:
        process.join(30)
        assert not process.is_alive()
    assert not set(started) & set(multiprocessing.active_children())


def test_strings_hash_alike_in_all_processes() -> None:
    seeds = _of_processes(*(dask.delayed(_seed)(i) for i in range(4)))
    assert len(set(seeds)) == 1
    assert seeds[0] not in (None, "0")


def test_a_pool_of_the_user_is_taken_as_it_is() -> None:
    with dask.config.set(pool="mine"):
        with pool_of_processes():
            assert dask.config.get("pool") == "mine"
        assert dask.config.get("pool") == "mine"
