"""The graph of a run whose steps do nothing: what the graph alone costs, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask

from blockbuster.graph import Steps, compute_value, run_graph
from blockbuster.grid import TileGrid, forward_offsets


class _CapturedError(Exception):
    """Carries a graph out of dask."""


def run_empty(grid: TileGrid) -> None:
    """Build the graph that labels all tiles of a grid, and run it; each task does nothing."""
    offsets = forward_offsets(grid.ndim, range(grid.ndim), 1)

    def neighbours(block_id: int) -> list[int]:
        return [seam.second for seam in grid.seams(block_id, offsets)]

    steps = Steps(
        begin=_nothing, sample=_nothing, sampled=(), stage=_nothing, scan=_nothing, unite=_nothing, finish=_nothing
    )
    numbers = range(grid.n_tiles)
    compute_value(run_graph(steps, grid, numbers, neighbours, [None], resources=None), numbers)


def empty_graph(grid: TileGrid) -> Mapping[Any, Any]:
    """The tasks of that graph by their keys, as a scheduler is given them."""
    try:
        with dask.config.set(scheduler=_capture):
            run_empty(grid)
    except _CapturedError as error:
        found: Mapping[Any, Any] = error.args[0]
        return found
    raise AssertionError("dask has not been asked for anything")


def _capture(graph: Any, _keys: Any, **_options: Any) -> Any:
    raise _CapturedError(dict(graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph))


def _nothing(*_args: Any) -> None:
    return None
