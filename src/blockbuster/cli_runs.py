"""What a command does with its values: where it runs, what is shown and told, and the file that describes it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import dask
import tomli_w
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blockbuster.cluster import make_local_cluster, make_slurm_cluster
from blockbuster.errors import BlockbusterError, ParameterError
from blockbuster.progress import RunProgress

__all__ = ["Facts", "Run", "Work", "active", "carry_out", "read_run", "run_of"]

# What a command tells in the end, by name.
Facts: TypeAlias = Mapping[str, Any]
# Does what a command is for; calls the second argument with how far it is.
Work: TypeAlias = "Callable[[Run, Callable[[RunProgress], None] | bool], Facts]"

# Exit statuses; 2 is that of what is no command.
OK, FAILED, INTERRUPTED = 0, 1, 130
_SCHEDULERS = ("threads", "processes", "synchronous", "local", "slurm")
_ADDRESSES = ("tcp://", "tls://")
_OWN = ("json", "quiet", "debug", "save_run")
_WHERE = ("scheduler", "workers", "cluster")


@dataclass(frozen=True)
class Run:
    """One call of a command.

    Attributes
    ----------
    command : str
        Its name.
    paths : dict of str
        What it is given by place: such as "image" and "output".
    options : dict
        Options of the operation that were given.
    scheduler : str or None
        Where it runs; None for threads.
    workers : int, tuple of int, or None
        How many there are.
    cluster : dict
        Options of the cluster.
    """

    command: str
    paths: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    workers: Any = None
    cluster: dict[str, Any] = field(default_factory=dict)

    def toml(self) -> str:
        """As a file."""
        where = {"scheduler": self.scheduler, "workers": self.workers, "cluster": self.cluster}
        told = {
            "command": self.command,
            "paths": {name: _absolute(path) for name, path in self.paths.items()},
            **{name: value for name, value in where.items() if value},
            "options": self.options,
        }
        return tomli_w.dumps(_plain(told))


@dataclass(frozen=True)
class Telling:
    """What is told, and how.

    Attributes
    ----------
    as_json : bool
        The facts as JSON, and no progress.
    shows_progress : bool
        A bar on the standard output of errors, where that is a terminal.
    shows_traceback : bool
        Of errors.
    """

    as_json: bool = False
    shows_progress: bool = True
    shows_traceback: bool = False


def run_of(command: str, paths: Sequence[str], values: Mapping[str, Any]) -> tuple[Run, Telling, str | None]:
    """The run that values describe, how it is told, and the file to write it to."""
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    options = {name: value for name, value in given.items() if name not in (*paths, *_OWN, *_WHERE, "option")}
    options.update(dict(given.get("option", ())))
    run = Run(
        command,
        {name: given[name] for name in paths if name in given},
        options,
        given.get("scheduler"),
        given.get("workers"),
        dict(given.get("cluster", ())),
    )
    telling = Telling(bool(given.get("json")), not given.get("quiet"), bool(given.get("debug")))
    return run, telling, given.get("save_run")


def read_run(path: str) -> Run:
    """The run that a file describes.

    Raises
    ------
    ParameterError
        If it describes none.
    """
    try:
        with open(path, "rb") as file:
            told = tomllib.load(file)
        known = {"command", "paths", "options", *_WHERE}
        if not {"command", "paths"} <= set(told) <= known:
            raise ValueError(f"it has {', '.join(told) or 'nothing'}, of {', '.join(sorted(known))}")
        return Run(**{name: _tuples(value) for name, value in told.items()})
    except (OSError, ValueError, TypeError) as error:
        raise ParameterError(
            f"{path} describes no run: {error}. 'blockbuster COMMAND --save-run' writes one."
        ) from error


def carry_out(run: Run, work: Work, telling: Telling) -> int:
    """Do it, and tell; returns the exit status."""
    begin = time.perf_counter()
    try:
        with _warnings_in_words(run), active(run), _progress(telling) as progress:
            facts = work(run, progress)
    except KeyboardInterrupt:
        again = " The same command with --resume goes on where it stopped." if "output" in run.paths else ""
        _say(f"blockbuster {run.command}: stopped.{again}")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it is, a person reads it: in words, or with --debug in full
        _say_error(run.command, error, telling)
        return FAILED
    _tell({"command": run.command, **facts, "seconds_taken": round(time.perf_counter() - begin, 2)}, telling)
    return FAILED if facts.get("fits") is False else OK


# Where it runs


@contextlib.contextmanager
def active(run: Run) -> Iterator[None]:
    """Activate what a run asks for.

    Raises
    ------
    ParameterError
        If there is no such scheduler.
    """
    where, workers = run.scheduler, run.workers
    if where == "local":
        with make_local_cluster(n_workers=workers, **run.cluster):
            yield
    elif where == "slurm":
        with make_slurm_cluster(workers or 1, **run.cluster):
            yield
    elif where is not None and where.startswith(_ADDRESSES):
        from distributed import Client

        with Client(where, **run.cluster):
            yield
    elif where in (None, *_SCHEDULERS):
        if run.cluster:
            raise ParameterError(f"--cluster is for local and slurm, not for {where or 'threads'}: {run.cluster}.")
        settings = {"scheduler": where, "num_workers": workers}
        with dask.config.set({name: value for name, value in settings.items() if value is not None}):
            yield
    else:
        raise ParameterError(
            f"--scheduler {where!r} is unknown. Choose one of {', '.join(_SCHEDULERS)}, or give the address of a "
            "scheduler, such as tcp://host:8786."
        )


# What is told


@contextlib.contextmanager
def _progress(telling: Telling) -> Iterator[Callable[[RunProgress], None] | bool]:
    """A bar over tiles, where somebody looks."""
    console = Console(stderr=True)
    if telling.as_json or not telling.shows_progress or not console.is_terminal:
        yield False
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("blockbuster", total=None, more="tiles")

        def show(now: RunProgress) -> None:
            found = {"skipped": now.skipped, "failed": now.failed}
            more = ", ".join(["tiles", *(f"{n} {name}" for name, n in found.items() if n)])
            bar.update(task, description=now.step, completed=now.done, total=now.total, more=more)

        yield show


def _tell(facts: Facts, telling: Telling) -> None:
    if telling.as_json:
        told = {name: value for name, value in facts.items() if name != "text"}
        sys.stdout.write(json.dumps(_plain(told), indent=1) + "\n")
        return
    if "text" in facts:
        sys.stdout.write(f"{facts['text']}\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {_words(value)}\n")


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_words(one)}" for name, one in value.items())
    if isinstance(value, tuple | list):
        is_nested = any(isinstance(one, tuple | list) for one in value)
        return ("; " if is_nested else ", ").join(map(_words, value)) or "none"
    return "none" if value is None else str(value)


@contextlib.contextmanager
def _warnings_in_words(run: Run) -> Iterator[None]:
    """Tell warnings as errors are told: where in the code they come from helps nobody who types."""
    with warnings.catch_warnings():
        # Each once, whatever filters the process has.
        warnings.simplefilter("default", UserWarning)

        def say(message: Warning | str, *_where: Any, **_more: Any) -> None:
            _say(f"blockbuster {run.command}: warning: {message}")

        warnings.showwarning = say
        yield


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")


def _say_error(command: str, error: Exception, telling: Telling) -> None:
    if telling.shows_traceback:
        traceback.print_exception(error)
        return
    lines = [f"blockbuster {command}: {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    # The traceback of the original is a note where the error comes from another process.
    shown = [line for line in lines if not line.startswith("Traceback")]
    if not isinstance(error, BlockbusterError) or len(shown) < len(lines):
        shown.append("--debug shows where it comes from.")
    _say("\n".join(shown))


# Values in files


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _plain(value: Any) -> Any:
    """What TOML and JSON can hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return value
