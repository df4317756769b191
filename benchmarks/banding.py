"""The graph of a run whose union is one task, with the union in bands in its place: the pieces of `bands.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from simulation import Graph

__all__ = ["PIECES", "in_bands"]

PIECES = ("close a band", "join bands", "resolve", "gather", "number a band", "finish a band")
_BEFORE, _AFTER = ("begin", "sample", "stage", "scan"), ("finish", "end")


def in_bands(graph: Graph, n_bands: int) -> Graph:
    """Replace the union of a run: the scans of a row of tiles are a band, in the order in which they come."""
    return _Builder(graph, n_bands).graph()


class _Builder:
    def __init__(self, graph: Graph, n_bands: int) -> None:
        self._old, self._n_bands = graph, n_bands
        self._steps: list[str] = []
        self._needs: list[tuple[int, ...]] = []
        self._new: dict[int, int] = {}

    def graph(self) -> Graph:
        for task in self._of(_BEFORE):
            self._keep(task)
        finished = self._union([self._new[task] for task in self._of(("scan",))])
        (union,) = self._of(("unite",))
        finishing = self._of(("finish",))
        for place, task in enumerate(finishing):
            self._new[union] = finished[place * self._n_bands // len(finishing)]
            self._keep(task)
        for task in self._of(("end",)):
            self._keep(task)
        ranks = {step: rank for rank, step in enumerate((*_BEFORE, *PIECES, *_AFTER))}
        return Graph(self._steps, self._needs, [(-ranks[step], n) for n, step in enumerate(self._steps)])

    def _union(self, scans: Sequence[int]) -> list[int]:
        """The pieces; returns what must be done before the tiles of each band are finished."""
        cuts = [len(scans) * k // self._n_bands for k in range(self._n_bands + 1)]
        # A band reads the scans of the border before it, too.
        closed = [self._add("close a band", scans[max(a - 1, 0) : b]) for a, b in itertools.pairwise(cuts)]
        told = self._tree(closed)
        counted = self._add("gather", told)
        numbered = [self._add("number a band", [counted, one]) for one in told]
        published = self._add("gather", numbered)
        return [self._add("finish a band", [published]) for _ in numbered]

    def _tree(self, rows: list[int]) -> list[int]:
        """Joins of two rows of bands each, and what they tell both of them."""
        if len(rows) == 1:
            return rows
        joins = [self._add("join bands", pair) for pair in zip(rows[::2], rows[1::2], strict=False)]
        told = self._tree(joins + ([rows[-1]] if len(rows) % 2 else []))
        return [
            self._add("resolve", [joins[k // 2], told[k // 2], row]) if k // 2 < len(joins) else told[k // 2]
            for k, row in enumerate(rows)
        ]

    def _of(self, steps: Sequence[str]) -> list[int]:
        return [task for task, step in enumerate(self._old.steps) if step in steps]

    def _keep(self, task: int) -> None:
        self._new[task] = self._add(self._old.steps[task], [self._new[other] for other in self._old.needs[task]])

    def _add(self, step: str, needs: Sequence[int]) -> int:
        self._steps.append(step)
        self._needs.append(tuple(dict.fromkeys(needs)))
        return len(self._steps) - 1
