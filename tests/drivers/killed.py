"""A run that kills itself, and every process that it started, at one call of one step.

``python -m tests.drivers.killed SCHEDULER FOLDER OPTIONS`` labels ``FOLDER/image.zarr`` into ``FOLDER/labels.zarr`` and records
the calls in ``FOLDER/calls``. The step is in the environment. It must be the leader of its process group.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dask

import blockbuster
from tests.helpers import Recording

ENVIRONMENT = "BLOCKBUSTER_TESTS_KILLED"


class Moment(NamedTuple):
    """Before or after the `call`-th call of a function, of those that have `argument` at the end of an argument."""

    function: str
    call: int
    before: bool
    argument: str = ""


STEPS = {
    "making the stage": Moment("blockbuster.stage:Stage.describe", 1, before=True),
    "stage made": Moment("blockbuster.stage:Stage.describe", 1, before=False),
    "making the output": Moment("blockbuster.outputs:Output.create", 1, before=True),
    "output made": Moment("blockbuster.outputs:Output.create", 1, before=False),
    "in the function": Moment("scipy.ndimage:label", 30, before=True),
    "staging": Moment("blockbuster.stage:Stage.write_tile", 30, before=True),
    "staging, record not in place": Moment("os:replace", 30, before=True, argument=".tile"),
    "tile staged": Moment("blockbuster.stage:Stage.write_tile", 30, before=False),
    "scanning": Moment("blockbuster.rules:Touching.join", 30, before=True),
    "uniting": Moment("blockbuster.steps:make_table", 1, before=True),
    "writing the table": Moment("os:replace", 1, before=True, argument="table.json"),
    "table written": Moment("blockbuster.stage:Stage.write_table", 1, before=False),
    "relabelling": Moment("blockbuster.stage:Stage.lookup", 30, before=True),
    "writing": Moment("blockbuster.outputs:Output.write", 30, before=True),
    "block written": Moment("blockbuster.outputs:Output.write", 30, before=False),
    "block marked": Moment("blockbuster.stage:Stage.mark_written", 30, before=False),
    "all written": Moment("blockbuster.outputs:Output.annotate", 1, before=True),
    "committing": Moment("blockbuster.outputs:Output.commit", 1, before=True),
    "old output set aside": Moment("os:rename", 1, before=False, argument=".replaced"),
    "new output in place": Moment("os:rename", 1, before=False, argument="labels.zarr/labels"),
    "committed": Moment("blockbuster.outputs:Output.commit", 1, before=False),
    "removing the stage": Moment("blockbuster.stage:Stage.remove", 1, before=True),
}


def deadly(function: Callable[..., Any], moment: Moment, counter: Path) -> Callable[..., Any]:
    """The function with a kill before or after one of its calls in all processes together."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not any(str(argument).endswith(moment.argument) for argument in args):
            return function(*args, **kwargs)
        with open(counter, "ab") as file:
            file.write(b".")
            file.flush()
            fatal = file.tell() == moment.call
        if fatal and moment.before:
            os.killpg(0, signal.SIGKILL)
        result = function(*args, **kwargs)
        if fatal:
            os.killpg(0, signal.SIGKILL)
        return result

    return wrapped


def arm(step: str, counter: Path) -> None:
    """Put the kill in its place."""
    moment = STEPS[step]
    module, _, name = moment.function.partition(":")
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    setattr(owner, last, deadly(getattr(owner, last), moment, counter))


def run(scheduler: str, folder: Path, options: dict[str, Any]) -> None:
    """The run to be killed."""
    blockbuster.tile_process(
        folder / "image.zarr", Recording(folder / "calls"), write_to=folder / "labels.zarr", overwrite=True, **options
    )


# Also in processes that are started for tasks: they import this module again.
if ENVIRONMENT in os.environ:
    arm(os.environ[ENVIRONMENT], Path(os.environ[ENVIRONMENT + "_COUNTER"]))

if __name__ == "__main__":
    assert os.getpgrp() == os.getpid()
    scheduler, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if scheduler == "distributed":
        with blockbuster.make_local_cluster(n_workers=2):
            run(scheduler, folder, options)
    else:
        with dask.config.set(scheduler=scheduler, num_workers=2):
            run(scheduler, folder, options)
