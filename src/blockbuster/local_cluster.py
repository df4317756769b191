"""A dask cluster of worker processes on this machine that starts lost ones again, and leaves nothing behind."""

from __future__ import annotations

import time
from typing import Any

import dask
from distributed import LocalCluster
from distributed.deploy.cluster import Cluster

from blockbuster.errors import SchedulerError
from blockbuster.folders import HeldFolder

__all__ = ["OwnLocalCluster"]

# Seconds in which some worker must be there again: starting one takes a few.
_PATIENCE = 120.0


class OwnLocalCluster(LocalCluster):
    """Worker processes whose scratch data go with them.

    Parameters
    ----------
    folder : HeldFolder
        For scratch data; removed at the end.
    **options
        Passed on to ``distributed.LocalCluster``.
    """

    def __init__(self, *, folder: HeldFolder, **options: Any) -> None:
        self._held_folder = folder
        self._empty_since: float | None = None
        # The scheduler, in this process, makes a folder as well, wherever that option says.
        with dask.config.set({"temporary-directory": str(folder.path)}):
            super().__init__(**options)

    def trouble(self) -> SchedulerError | None:
        """Why no more work can be done: its workers are gone, and do not come back."""
        if self.scheduler_info["workers"]:
            self._empty_since = None
            return None
        self._empty_since = self._empty_since or time.monotonic()
        waited = time.monotonic() - self._empty_since
        if waited < _PATIENCE:
            return None
        return SchedulerError(
            f"The workers of the cluster have ended, and none has come back in {waited:.0f} s. Start a new cluster, "
            "with more memory for each worker or fewer of them, and repeat the call with resume=True."
        )

    def _update_worker_status(self, op: Any, msg: Any) -> None:
        # The next class but one: LocalCluster would end a nanny whose worker is just starting again, 15 s after any
        # loss of it, and nobody would start another.
        Cluster._update_worker_status(self, op, msg)

    async def _close(self) -> None:
        await super()._close()
        # Not in a thread: there are no new ones while the interpreter exits, which closes clusters that are left open.
        self._held_folder.remove()
