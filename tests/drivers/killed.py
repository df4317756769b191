"""Runs that kill themselves, and every process that they started, at one call of one step.

Each line of the input is a JSON list ``[step, scheduler, folder, options]``: a fork labels ``folder/image.zarr`` into
``folder/labels.zarr`` and records the calls in ``folder/calls``. How it ended is printed: its exit code, or minus a
signal.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dask

import blockbuster
from tests.helpers import Recording

ENVIRONMENT = "BLOCKBUSTER_TESTS_KILLED"


class Moment(NamedTuple):
    """Before or after the `call`-th call of a function, of those whose last argument has `pattern` in it."""

    function: str
    call: int
    before: bool
    pattern: str = ""


STEPS = {
    "making the stage": Moment("blockbuster.stage:Stage.describe", 1, before=True),
    "stage made": Moment("blockbuster.stage:Stage.describe", 1, before=False),
    "making the output": Moment("blockbuster.outputs:Output.create", 1, before=True),
    "output made": Moment("blockbuster.outputs:Output.create", 1, before=False),
    "in the function": Moment("scipy.ndimage:label", 30, before=True),
    "staging": Moment("blockbuster.stage:Stage.write_tile", 30, before=True),
    "staging, record not in place": Moment("os:link", 30, before=True, pattern=r"\.tile$"),
    "tile staged": Moment("blockbuster.stage:Stage.write_tile", 30, before=False),
    "scanning": Moment("blockbuster.rules:Touching.join", 30, before=True),
    "uniting": Moment("blockbuster.steps:make_table", 1, before=True),
    "writing the table": Moment("os:replace", 1, before=True, pattern=r"table\.json$"),
    "table written": Moment("blockbuster.stage:Stage.write_table", 1, before=False),
    "relabelling": Moment("blockbuster.stage:Stage.lookup", 30, before=True),
    "writing": Moment("blockbuster.outputs:Output.write", 30, before=True),
    "block written": Moment("blockbuster.outputs:Output.write", 30, before=False),
    "block marked": Moment("blockbuster.stage:Stage.mark_written", 30, before=False),
    "all written": Moment("blockbuster.outputs:Output.annotate", 1, before=True),
    "committing": Moment("blockbuster.outputs:Output.commit", 1, before=True),
    "old output set aside": Moment("os:rename", 1, before=False, pattern=r"\.replaced$"),
    "new output in place": Moment("os:rename", 1, before=False, pattern=r"labels\.zarr/labels$"),
    "committed": Moment("blockbuster.outputs:Output.commit", 1, before=False),
    "removing the stage": Moment("blockbuster.stage:Stage.remove", 1, before=True),
    "stage out of the way": Moment("os:rename", 1, before=False, pattern=r"\.removed-"),
}


def deadly(function: Callable[..., Any], moment: Moment, counter: Path) -> Callable[..., Any]:
    """The function with a kill before or after one of its calls in all processes together."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment.pattern and not re.search(moment.pattern, str(args[-1])):
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


def run(step: str, scheduler: str, folder: Path, options: dict[str, Any]) -> None:
    """The run to be killed."""
    counter = folder.parent / "counter"
    counter.unlink(missing_ok=True)
    os.environ[ENVIRONMENT] = json.dumps([step, str(counter)])
    arm(step, counter)
    with contextlib.ExitStack() as stack:
        if scheduler == "distributed":
            stack.enter_context(blockbuster.make_local_cluster(n_workers=2))
        else:
            stack.enter_context(dask.config.set(scheduler=scheduler, num_workers=2))
        blockbuster.tile_process(
            folder / "image.zarr",
            Recording(folder / "calls"),
            write_to=folder / "labels.zarr",
            overwrite=True,
            **options,
        )


def fork(line: str) -> None:
    """Do what a line says in a session of its own, and end."""
    with contextlib.ExitStack() as stack:
        stack.callback(os._exit, 0)
        stack.push(lambda kind, error, _traceback: kind and traceback.print_exception(error))
        os.setsid()
        step, scheduler, folder, options = json.loads(line)
        run(step, scheduler, Path(folder), options)


# Also in processes that are started for tasks: they import this module again.
if ENVIRONMENT in os.environ:
    armed_step, armed_counter = json.loads(os.environ[ENVIRONMENT])
    arm(armed_step, Path(armed_counter))

if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            fork(line)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
