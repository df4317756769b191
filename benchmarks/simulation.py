"""A cluster that is not there: the tasks of a run on any number of workers, event by event.

What is modelled:

- a client that builds the graph and sends it, before anything starts;
- a scheduler that sends out one task after the other, each taking it some time, to the worker that holds fewest;
- workers of one thread, which hold one more task than the one they work on, and take some time to begin a task;
- shared storage: after its work a task moves its bytes, all tasks that do so sharing one bandwidth evenly;
- stragglers: the work of a task takes longer or shorter by a random factor, log-normal, of mean 1;
- workers that are lost at random and come again: what they were at is done again by others, and so is what they had
  done for tasks that still wait for more. (What tasks that could start need is on other workers, too.)

Tasks whose needs are met are sent out in the order of their priority. Time is in seconds, size in bytes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

# Time on the critical path in which a worker was lost and nothing else held the run up.
_LOST = "lost with a worker"

__all__ = ["Cluster", "Cost", "Graph", "Outcome", "longest_chain", "simulate"]


@dataclass(frozen=True)
class Graph:
    """Tasks and what they need.

    Attributes
    ----------
    steps : sequence of str
        The step of each task.
    needs : sequence of sequence of int
        The tasks that each task waits for.
    priority : sequence
        Of each task; smaller ones first.
    """

    steps: Sequence[str]
    needs: Sequence[Sequence[int]]
    priority: Sequence[Any]

    def needed_by(self) -> list[list[int]]:
        """The tasks that wait for each task."""
        found: list[list[int]] = [[] for _ in self.steps]
        for task, needs in enumerate(self.needs):
            for other in needs:
                found[other].append(task)
        return found


@dataclass(frozen=True)
class Cost:
    """What a task of one step takes.

    Attributes
    ----------
    seconds : sequence of float
        Of some tasks: each task draws one.
    n_bytes : float
        Moved from and to shared storage.
    again : float
        Share of both where a worker that is lost had done it before.
    """

    seconds: Sequence[float]
    n_bytes: float = 0.0
    again: float = 1.0


@dataclass(frozen=True)
class Cluster:
    """Where the tasks run.

    Attributes
    ----------
    n_workers : int
        Workers of one thread.
    begin : float
        Until the scheduler has the graph.
    send, handle : float
        What the scheduler takes per task, and what a worker does beside the work of the task.
    bandwidth, link : float
        Bytes per second of the storage, and of one worker.
    spread : float
        Standard deviation of the logarithm of the factor of stragglers.
    losses : float
        Per worker and second.
    replacement : float
        Until another worker is there.
    ahead : int
        Tasks that a worker holds, the one that it works on counted.
    """

    n_workers: int
    begin: float = 0.0
    send: float = 0.0
    handle: float = 0.0
    bandwidth: float = math.inf
    link: float = math.inf
    spread: float = 0.0
    losses: float = 0.0
    replacement: float = 60.0
    ahead: int = 2


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to.

    Attributes
    ----------
    makespan : float
        Until the last task is done.
    busy : float
        Share of the time of all workers in which they worked, or waited for storage.
    critical : dict of float
        Where the makespan comes from: seconds by step, of its storage, of the scheduler; they sum up to it.
    n_lost, n_again : int
        Workers that were lost, and tasks that were sent out again for that.
    """

    makespan: float
    busy: float
    critical: dict[str, float]
    n_lost: int = 0
    n_again: int = 0


def longest_chain(graph: Graph, costs: Mapping[str, Cost]) -> float:
    """Seconds that no number of workers goes below: the longest chain of needs, each task taking its step's mean."""
    mean = {step: float(np.mean(cost.seconds)) for step, cost in costs.items()}
    done: list[float] = []
    for step, needs in zip(graph.steps, graph.needs, strict=True):
        assert all(other < len(done) for other in needs), "tasks must come after what they need"
        done.append(max((done[other] for other in needs), default=0.0) + mean[step])
    return max(done, default=0.0)


def simulate(graph: Graph, costs: Mapping[str, Cost], cluster: Cluster, *, seed: int = 0) -> Outcome:
    """Run all tasks of a graph on a cluster."""
    return _Simulation(graph, costs, cluster, seed).run()


@dataclass
class _Try:
    """When a task was sent and run, this time, and why then: the end of a stretch before."""

    step: str
    ready: float
    why_ready: _Cause
    popped: float = 0.0
    why_popped: _Cause = None
    sent: float = 0.0
    started: float = 0.0
    why_started: _Cause = None
    computed: float = 0.0
    done: float = 0.0


# What ended when something else could begin: the sending of a task, or its run; None at the very beginning.
_Cause: TypeAlias = tuple[Literal["send", "run"], _Try] | None


@dataclass
class _Worker:
    held: deque[int] = field(default_factory=deque)
    task: int | None = None
    is_here: bool = True
    # How often it was lost: what is on its way to it then does not arrive.
    life: int = 0
    before: _Try | None = None
    results: list[int] = field(default_factory=list)


class _Storage:
    """Flows that share a bandwidth evenly: what each of them has moved so far is the same for all, `moved`."""

    def __init__(self, cluster: Cluster) -> None:
        self._bandwidth, self._link = cluster.bandwidth, cluster.link
        self._moved = self._now = 0.0
        self._ends: list[tuple[float, int]] = []
        self._gone: set[tuple[float, int]] = set()
        self._active: dict[int, tuple[float, int]] = {}

    @property
    def is_free(self) -> bool:
        """Whether it takes no time at all."""
        return math.isinf(self._bandwidth) and math.isinf(self._link)

    def _rate(self) -> float:
        return min(self._link, self._bandwidth / len(self._active))

    def _go_on(self, now: float) -> None:
        if self._active:
            self._moved += (now - self._now) * self._rate()
        self._now = now

    def add(self, now: float, flow: int, n_bytes: float) -> None:
        self._go_on(now)
        entry = (self._moved + n_bytes, flow)
        self._active[flow] = entry
        heapq.heappush(self._ends, entry)

    def remove(self, now: float, flow: int) -> None:
        self._go_on(now)
        entry = self._active.pop(flow, None)
        if entry is not None:
            self._gone.add(entry)

    def next_end(self) -> tuple[float, int] | None:
        """When the next flow is done, and which."""
        while self._ends and self._ends[0] in self._gone:
            self._gone.discard(heapq.heappop(self._ends))
        if not self._ends:
            return None
        end, flow = self._ends[0]
        return self._now + max(end - self._moved, 0.0) / self._rate(), flow


class _Simulation:
    def __init__(self, graph: Graph, costs: Mapping[str, Cost], cluster: Cluster, seed: int) -> None:
        self._graph, self._costs, self._cluster = graph, costs, cluster
        self._rng = np.random.default_rng(seed)
        self._needed_by = graph.needed_by()
        self._missing = [len(set(needs)) for needs in graph.needs]
        self._seconds = self._drawn_seconds()
        self._tries = [_Try(step, 0.0, None) for step in graph.steps]
        self._last: _Try | None = None
        self._was_done = bytearray(len(graph.steps))
        self._workers = [_Worker() for _ in range(cluster.n_workers)]
        # Workers by how many tasks they hold; entries that have changed since are skipped.
        self._load = [0] * cluster.n_workers
        self._free: list[list[int]] = [list(range(cluster.n_workers - 1, -1, -1)), *([] for _ in range(cluster.ahead))]
        self._ready: list[tuple[Any, int]] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._storage, self._flows = _Storage(cluster), 0
        self._sending = False
        self._now = cluster.begin
        self._left = len(graph.steps)
        self._busy = 0.0
        self._n_lost = self._n_again = 0

    def run(self) -> Outcome:
        for task, missing in enumerate(self._missing):
            if not missing:
                self._make_ready(task, None)
        for number in range(self._cluster.n_workers):
            self._plan_loss(number)
        self._send_next(self._last and ("run", self._last))
        while self._left:
            self._now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        busy = self._busy / (self._cluster.n_workers * self._now) if self._now else 0.0
        return Outcome(self._now, busy, self._critical(), self._n_lost, self._n_again)

    # The scheduler

    def _make_ready(self, task: int, why: _Cause) -> None:
        self._tries[task] = _Try(self._graph.steps[task], self._now, why)
        heapq.heappush(self._ready, (self._graph.priority[task], task))

    def _send_next(self, why: _Cause) -> None:
        """Send a task out, if there is one and a worker to take it; `why` is what has made that possible now."""
        if self._sending or not self._ready:
            return
        number = self._freest()
        if number is None:
            return
        _, task = heapq.heappop(self._ready)
        this = self._tries[task]
        this.popped = self._now
        this.why_popped = this.why_ready if this.ready == self._now else why
        self._sending = True
        self._change_load(number, 1)
        self._at(self._cluster.send, self._arrive, task, number, self._workers[number].life)

    def _arrive(self, task: int, number: int, life: int) -> None:
        self._sending = False
        this, worker = self._tries[task], self._workers[number]
        this.sent = self._now
        if worker.life == life:
            worker.held.append(task)
            self._start_next(number)
        else:
            self._n_again += 1
            self._make_ready(task, ("send", this))
        self._send_next(("send", this))

    def _freest(self) -> int | None:
        for load, numbers in enumerate(self._free[: self._cluster.ahead]):
            while numbers:
                number = numbers[-1]
                if self._load[number] == load and self._workers[number].is_here:
                    return number
                numbers.pop()
        return None

    def _change_load(self, number: int, by: int) -> None:
        self._load[number] += by
        self._free[self._load[number]].append(number)

    # Workers

    def _start_next(self, number: int) -> None:
        worker = self._workers[number]
        if worker.task is not None or not worker.held:
            return
        task = worker.held.popleft()
        worker.task = task
        this = self._tries[task]
        this.started = self._now
        waited = worker.before is not None and this.sent < self._now
        this.why_started = ("run", worker.before) if waited and worker.before is not None else ("send", this)
        self._at(self._work_of(task), self._computed, task, number, worker.life)

    def _work_of(self, task: int) -> float:
        return float(self._seconds[task]) * self._share_of(task) + self._cluster.handle

    def _share_of(self, task: int) -> float:
        return self._costs[self._graph.steps[task]].again if self._was_done[task] else 1.0

    def _computed(self, task: int, number: int, life: int) -> None:
        if self._workers[number].life != life:
            return
        self._tries[task].computed = self._now
        n_bytes = self._costs[self._graph.steps[task]].n_bytes * self._share_of(task)
        if not n_bytes or self._storage.is_free:
            self._finish(task, number)
            return
        self._storage.add(self._now, number, n_bytes)
        self._plan_flow()

    def _plan_flow(self) -> None:
        self._flows += 1
        end = self._storage.next_end()
        if end is not None:
            self._at(end[0] - self._now, self._flow_ends, end[1], self._flows)

    def _flow_ends(self, number: int, flows: int) -> None:
        # Flows that began or ended since have changed the time of all others.
        if flows != self._flows:
            return
        self._storage.remove(self._now, number)
        task = self._workers[number].task
        assert task is not None
        self._finish(task, number)
        self._plan_flow()

    def _finish(self, task: int, number: int) -> None:
        worker, this = self._workers[number], self._tries[task]
        this.done = self._now
        self._busy += this.done - this.started
        worker.task, worker.before, self._last = None, this, this
        worker.results.append(task)
        self._was_done[task] = True
        self._left -= 1
        self._change_load(number, -1)
        for other in self._needed_by[task]:
            self._missing[other] -= 1
            if not self._missing[other]:
                self._make_ready(other, ("run", this))
        self._start_next(number)
        self._send_next(("run", this))

    # Losses

    def _plan_loss(self, number: int) -> None:
        if self._cluster.losses:
            self._at(self._rng.exponential(1 / self._cluster.losses), self._lose, number)

    def _lose(self, number: int) -> None:
        worker = self._workers[number]
        self._n_lost += 1
        interrupted = list(worker.held)
        if worker.task is not None:
            self._busy += self._now - self._tries[worker.task].started
            self._storage.remove(self._now, number)
            self._plan_flow()
            interrupted.append(worker.task)
        wanted = [task for task in worker.results if any(self._missing[other] for other in self._needed_by[task])]
        self._workers[number] = _Worker(is_here=False, life=worker.life + 1)
        self._load[number] = 0
        for task in interrupted:
            self._make_ready(task, ("send", self._tries[task]))
        for task in wanted:
            self._undo(task)
        self._n_again += len(interrupted) + len(wanted)
        self._at(self._cluster.replacement, self._join, number)
        self._send_next(self._last and ("run", self._last))

    def _undo(self, task: int) -> None:
        self._left += 1
        for other in self._needed_by[task]:
            # Those that could start have their needs elsewhere.
            if self._missing[other]:
                self._missing[other] += 1
        self._make_ready(task, ("run", self._tries[task]))

    def _join(self, number: int) -> None:
        self._workers[number].is_here = True
        self._change_load(number, 0)
        self._plan_loss(number)
        self._send_next(self._last and ("run", self._last))

    # Time

    def _at(self, later: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self._now + later, next(self._order), act, arguments))

    def _drawn_seconds(self) -> np.ndarray:
        drawn = np.empty(len(self._graph.steps))
        of_step = defaultdict(list)
        for task, step in enumerate(self._graph.steps):
            of_step[step].append(task)
        for step, tasks in of_step.items():
            drawn[tasks] = self._rng.choice(np.asarray(self._costs[step].seconds, float), len(tasks))
        spread = self._cluster.spread
        return drawn * self._rng.lognormal(-spread * spread / 2, spread, drawn.size)

    # Where the time went

    def _critical(self) -> dict[str, float]:
        """Walk back from the last task, each stretch of time to the one that ended when it began."""
        found: dict[str, float] = defaultdict(float)
        cause: _Cause = self._last and ("run", self._last)
        until = self._now
        while cause is not None:
            kind, this = cause
            if kind == "run":
                cause = this.why_started
                stretches = [(_LOST, this.done), (f"{this.step}, storage", this.computed), (this.step, this.started)]
            else:
                cause = this.why_popped
                stretches = [(_LOST, this.sent), ("scheduler", this.popped)]
            for name, begin in stretches:
                found[name] += until - begin
                until = begin
        found[_LOST] += until - self._cluster.begin
        found["before the first task"] = self._cluster.begin
        return {name: seconds for name, seconds in found.items() if seconds}
