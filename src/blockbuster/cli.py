"""The command ``blockbuster``.

A command is a function that adds its options to a parser, and one that does its work; options that several commands
have are groups of their own. What a command prints goes to the standard output, everything else to that of errors.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import blockbuster
from blockbuster.errors import BlockbusterError
from blockbuster.planning import OPERATIONS, plan

__all__ = ["main"]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    name, summary, description : str
        What its help says.
    add_options : callable
        ``parser -> None``.
    work : callable
        ``options -> exit status``.
    """

    name: str
    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    status : int
        0 if all went well, 1 after an error, which is told on the standard output of errors.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.work(options)
    except BlockbusterError as error:
        _say_error(options.command, error)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockbuster",
        description="Any function over an image larger than memory, tile by tile, with one consistent result.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"blockbuster {blockbuster.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        one = commands.add_parser(
            command.name, help=command.summary, description=command.description, allow_abbrev=False
        )
        command.add_options(one)
        one.set_defaults(work=command.work)
    return parser


def _say_error(command: str, error: BlockbusterError) -> None:
    lines = [f"blockbuster {command}: {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    sys.stderr.write("\n".join(lines) + "\n")


# Options that commands share: each is named as in Python. What is not given is left to the operation.


def _add_image(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("image")
    group.add_argument("image", metavar="IMAGE", help="path or URL of a zarr store, OME-Zarr or not, or of a TIFF")
    group.add_argument("--channel", type=_channel, default=argparse.SUPPRESS, help="number, name, or 'none' for all")
    group.add_argument("--level", type=int, default=argparse.SUPPRESS, help="of a pyramid")
    group.add_argument("--mask", default=argparse.SUPPRESS, metavar="PATH", help="0 outside")


def _add_tiles(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tiles")
    group.add_argument("--tile-shape", **_several(_extent), help="voxels per axis, or 'auto'")
    group.add_argument("--overlap", **_several(int), help="voxels read beyond each side: one for all axes, or each")
    group.add_argument("--block-ids", **_several(int), help="numbers of some tiles only")


def _add_labelling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels")
    group.add_argument("--fn", type=_function, default=argparse.SUPPRESS, metavar="MODULE:NAME", help="a function")
    group.add_argument("--merge", default=argparse.SUPPRESS, type=_merge, help="'touching', 'iou', 'contact' or 'none'")
    group.add_argument("--threshold", type=float, default=argparse.SUPPRESS)
    group.add_argument("--connectivity", type=int, default=argparse.SUPPRESS)
    group.add_argument("--dtype", default=argparse.SUPPRESS)


def _add_arrays(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("copies and levels")
    group.add_argument("--scale-factor", **_several(int), help="input voxels per output voxel")
    group.add_argument("--method", default=argparse.SUPPRESS, help="'mean', 'max', ...")
    group.add_argument("--chunks", **_several(int), help="voxels per chunk and axis")
    group.add_argument("--shards", **_several(int), help="voxels per shard and axis")
    group.add_argument("--compression", default=argparse.SUPPRESS, help="'lz4', 'zstd', 'gzip' or 'none'")


def _add_destination(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument("--write-to", default=argparse.SUPPRESS, metavar="STORE", help="zarr store to write to")
    group.add_argument("--output-component", default=argparse.SUPPRESS, metavar="PATH", help="where within it")
    group.add_argument("--stage-dir", default=argparse.SUPPRESS, metavar="FOLDER", help="for scratch data")
    for name, words in (
        ("overwrite", "replace what is there"),
        ("resume", "go on with a stopped run"),
        ("compute", "take the result into memory"),
    ):
        group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=words)


def _add_others(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option",
        action="append",
        type=_named_value,
        default=[],
        metavar="NAME=VALUE",
        dest="others",
        help="any other option of the operation; the value as Python spells it. May be repeated",
    )


def _several(kind: Callable[[str], Any]) -> dict[str, Any]:
    return {"nargs": "+", "type": kind, "default": argparse.SUPPRESS, "action": _OneOrMany}


class _OneOrMany(argparse.Action):
    """One value as it is, several as a tuple."""

    def __call__(self, _parser: Any, options: Any, values: Any, _option: Any = None) -> None:
        setattr(options, self.dest, values[0] if len(values) == 1 and self.dest != "block_ids" else tuple(values))


def _extent(words: str) -> int | str:
    if words != "auto" and not words.isdigit():
        raise argparse.ArgumentTypeError(f"{words!r} is neither a number of voxels nor 'auto'")
    return words if words == "auto" else int(words)


def _channel(words: str) -> int | str | None:
    return None if words == "none" else int(words) if words.isdigit() else words


def _merge(words: str) -> str | None:
    return None if words == "none" else words


def _named_value(words: str) -> tuple[str, Any]:
    name, is_given, value = words.partition("=")
    if not is_given or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{words!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _function(words: str) -> Any:
    """A function by the module that holds it and its name."""
    module, is_given, name = words.partition(":")
    if not is_given:
        raise argparse.ArgumentTypeError(f"{words!r} is not MODULE:NAME")
    # As with `python -m`, modules of the working folder count.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{words!r} cannot be imported: {error}") from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{words!r} is a {type(found).__name__}, which cannot be called")
    return found


# blockbuster plan


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--operation",
        choices=list(OPERATIONS),
        default=None,
        help="default: tile_process with --fn, else label",
    )
    for add in (_add_image, _add_tiles, _add_labelling, _add_arrays, _add_destination, _add_others):
        add(parser)
    group = parser.add_argument_group("plan")
    group.add_argument("--n-workers", type=int, help="worker processes of a cluster that is to be started")
    group.add_argument("--threads-per-worker", type=int, help="tiles at a time in each")
    group.add_argument("--memory-limit", metavar="BYTES", help="for each, such as '16 GiB'")
    group.add_argument("--time-tiles", type=int, default=3, metavar="N", help="tiles to try; 0 for none (default: 3)")
    group.add_argument("--json", action="store_true", help="print the plan as JSON")


def _plan(options: argparse.Namespace) -> int:
    own = ("command", "work", "json", "others", "image")
    given = {name: value for name, value in vars(options).items() if name not in own} | dict(options.others)
    if options.operation in ("write_image", "write_labels") and "write_to" in given:
        given["store"] = given.pop("write_to")
    made = plan(options.image, **given)
    sys.stdout.write((json.dumps(made.as_dict(), indent=1) if options.json else str(made)) + "\n")
    made.check()
    return 0


COMMANDS = (
    Command(
        "plan",
        "what a run would take, and whether it fits",
        "Say what a run would take of time, memory and disk, and whether it fits, without starting it. "
        "The options are those of the operation, by the same names. Exit status 1 if it cannot fit.",
        _add_plan,
        _plan,
    ),
)
