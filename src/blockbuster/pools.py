"""Pools of processes that all end with their pool."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, cast

import dask
import dask.multiprocessing
import dask.system

__all__ = ["pool_of_processes"]

# Any will do: it is the one of dask's own pools.
_HASH_SEED = "6640"


@contextlib.contextmanager
def pool_of_processes() -> Iterator[None]:
    """Let dask's scheduler of processes use a pool of which no process outlives it.

    A pool breaks when one of its processes is killed, and ends the others. A process that is being started at that
    moment is overlooked by Python 3.11: it would wait for work for ever, and this interpreter for it.

    Raises
    ------
    BrokenProcessPool
        If one of its processes is lost, whatever comes of that.
    """
    if dask.config.get("pool", None) is not None:
        yield
        return
    # Strings hash alike in all processes, so that functions do the same with sets of them.
    if os.environ.get("PYTHONHASHSEED") in (None, "0"):
        os.environ["PYTHONHASHSEED"] = _HASH_SEED
    initializer = dask.config.get("multiprocessing.initializer", None)
    context = _Recording(dask.multiprocessing.get_context())
    pool = ProcessPoolExecutor(
        dask.config.get("num_workers", None) or dask.system.CPU_COUNT,
        mp_context=cast("BaseContext", context),
        initializer=functools.partial(dask.multiprocessing.initialize_worker_process, user_initializer=initializer),
    )
    try:
        with dask.config.set(pool=pool):
            yield
    except Exception as error:
        # They end of themselves only when the pool is shut down. A broken pool has other errors as well.
        if any(process.exitcode is not None for process in context.started):
            for process in context.started:
                process.kill()
            raise BrokenProcessPool(f"a process of the pool was lost: {error}") from error
        raise
    finally:
        pool.shutdown()


class _Recording:
    """A context of multiprocessing that remembers the processes it has made."""

    def __init__(self, context: BaseContext) -> None:
        self._context = context
        self._made: list[BaseProcess] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *args: Any, **keywords: Any) -> BaseProcess:  # noqa: N802 - the name that pools ask for
        process: BaseProcess = self._context.Process(*args, **keywords)  # type: ignore[attr-defined]
        self._made.append(process)
        return process

    @property
    def started(self) -> list[BaseProcess]:
        """Those that have been started."""
        return [process for process in self._made if process.pid is not None]
