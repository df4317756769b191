"""A dask cluster of worker processes on this machine that leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import dask
from distributed import LocalCluster

from blockbuster.folders import HeldFolder

__all__ = ["OwnLocalCluster"]


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
        # The scheduler, in this process, makes a folder as well, wherever that option says.
        with dask.config.set({"temporary-directory": str(folder.path)}):
            super().__init__(**options)

    async def _close(self) -> None:
        await super()._close()
        await asyncio.to_thread(self._held_folder.remove)
