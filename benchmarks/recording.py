"""Record what a distributed run did: each task, on which worker, when."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin


@dataclass(frozen=True)
class Ran:
    """One task that a worker has done.

    Attributes
    ----------
    step : str
        Which step of a run it is: the name of its key without the token.
    start, stop : float
        Of its work, without waiting for what it needs; seconds of the clock.
    n_bytes : int
        Of its result.
    """

    step: str
    worker: str
    start: float
    stop: float
    n_bytes: int

    @property
    def seconds(self) -> float:
        """How long it worked."""
        return self.stop - self.start


class Recorder(SchedulerPlugin):
    """Keeps all that ran, in a scheduler of this process."""

    def __init__(self) -> None:
        self.ran: list[Ran] = []
        # Of the thread of the scheduler, at the end of each task.
        self.cpu: list[float] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) != ("processing", "memory"):
            return
        self.cpu.append(time.thread_time())
        for part in kwargs.get("startstops") or ():
            if part["action"] == "compute":
                ran = Ran(step_of(key), kwargs["worker"], part["start"], part["stop"], kwargs.get("nbytes") or 0)
                self.ran.append(ran)

    @property
    def seconds_per_task(self) -> float:
        """What the scheduler worked for each task, once it had the graph."""
        return (self.cpu[-1] - self.cpu[0]) / max(len(self.cpu) - 1, 1)

    @property
    def steps(self) -> dict[str, list[Ran]]:
        """What ran, step by step."""
        found: dict[str, list[Ran]] = defaultdict(list)
        for ran in self.ran:
            found[ran.step].append(ran)
        return dict(found)


@contextlib.contextmanager
def recorded(cluster: Any) -> Iterator[Recorder]:
    """Record what a `LocalCluster` does."""
    recorder = Recorder()
    cluster.scheduler.add_plugin(recorder, name="recorder")
    try:
        yield recorder
    finally:
        cluster.scheduler.remove_plugin("recorder")


def step_of(key: Any) -> str:
    """The step that a key belongs to: keys are ``step-token``, or ``(step-token, number)``."""
    name = key[0] if isinstance(key, tuple) else key
    return str(name).rsplit("-", 1)[0]


def span(ran: list[Ran]) -> float:
    """Seconds from the start of the first to the end of the last."""
    return max(r.stop for r in ran) - min(r.start for r in ran)
