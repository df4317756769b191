"""What the commands take: arguments and options by groups, each by the name that it has in Python."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import click

__all__ = [
    "BLOBS",
    "CLUSTER",
    "COMPONENT",
    "DESTINATION",
    "EMPTY",
    "LABELS",
    "MASK",
    "OTHERS",
    "OUTPUT",
    "OVERLAP",
    "RUN",
    "SOURCE",
    "STORAGE",
    "TELLING",
    "TILES",
    "GroupedCommand",
    "Place",
    "floats",
    "ints",
    "named_value",
    "option",
]


_OTHERS = "Other options"


class Place(click.Argument):
    """A path that a command needs, with words for the help."""

    def __init__(self, name: str, words: str, default: str | None = None) -> None:
        given: dict[str, Any] = {} if default is None else {"default": default, "required": False}
        super().__init__([name], metavar=name.upper(), **given)
        self.words = words if default is None else f"{words} Default: {default}."


class Grouped(click.Option):
    """An option that is listed with others of its kind."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists options by their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, Place):
                groups.setdefault("Paths", []).append((parameter.make_metavar(ctx), parameter.words))
            elif (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(parameter, "group", _OTHERS), []).append(record)
        others = groups.pop(_OTHERS)
        for group, records in {**groups, _OTHERS: others}.items():
            with formatter.section(group):
                formatter.write_dl(records)


class Spelled(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value that is spelled in words."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self.name = read.__name__
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that words spell."""
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def option(
    name: str,
    help_: str,
    kind: Callable[[str], Any] | type = str,
    *,
    metavar: str | None = None,
    group: str = _OTHERS,
    many: bool = False,
) -> Grouped:
    """An option, which is left to the operation where it is not given."""
    words = [f"--{name.replace('_', '-')}", name]
    if kind is bool:
        return Grouped(words, group=group, help=help_, is_flag=True, default=None)
    spelled = kind if isinstance(kind, type) else Spelled(kind)
    return Grouped(words, group=group, help=help_, type=spelled, metavar=metavar, multiple=many)


# How values are spelled


def ints(words: str) -> Any:
    """One int, or several with commas between: ``64,128,128``."""
    return _one_or_several(words, int, "an int nor ints")


def floats(words: str) -> Any:
    """One number, or several with commas between."""
    return _one_or_several(words, float, "a number nor numbers")


def _one_or_several(words: str, kind: Callable[[str], Any], neither: str) -> Any:
    try:
        values = tuple(map(kind, words.split(",")))
    except ValueError:
        raise ValueError(f"{words!r} is neither {neither} with commas between") from None
    return values[0] if len(values) == 1 else values


def tile_shape(words: str) -> Any:
    """Voxels per axis, or one number for all axes, or 'auto'."""
    if words == "auto":
        return words
    try:
        return ints(words)
    except ValueError:
        raise ValueError(f"{words!r} is neither 'auto' nor ints with commas between") from None


def block_ids(words: str) -> Any:
    """Numbers of tiles."""
    values = ints(words)
    return values if isinstance(values, tuple) else (values,)


def channel(words: str) -> Any:
    """A number, a name, or 'none'."""
    return "none" if words == "none" else int(words) if words.isdigit() else words


def named_value(words: str) -> Any:
    """``NAME=VALUE``, the value as Python spells it."""
    name, is_given, value = words.partition("=")
    if not is_given or not name.isidentifier():
        raise ValueError(f"{words!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


# Groups of options

SOURCE = (
    option("channel", "Number or name of a channel; 'none' for all.", channel, metavar="NAME", group="Image"),
    option("level", "Of a pyramid; 0 is the finest.", int, group="Image"),
)
MASK = (option("mask", "Path of an image that is 0 where nothing is to be done.", metavar="PATH", group="Image"),)
TILES = (
    option(
        "tile_shape",
        "Voxels per axis, such as 64,512,512; one number for all; or 'auto'.",
        tile_shape,
        metavar="N,N,..",
        group="Tiles",
    ),
    option("block_ids", "Numbers of some tiles, row-major.", block_ids, metavar="N,N,..", group="Tiles"),
)
OVERLAP = (
    option(
        "overlap", "Voxels read beyond each side of a tile: one, or one per axis.", ints, metavar="N", group="Tiles"
    ),
)
EMPTY = (
    option("skip_empty", "Leave out tiles in which nothing is bright.", bool, group="Tiles"),
    option("empty_threshold", "What a tile must exceed to count as bright.", float, group="Tiles"),
)
LABELS = (
    option("merge", "'touching', 'iou', 'contact' or 'none'.", metavar="RULE", group="Labels"),
    option("sequential_labels", "Number objects 1..N without gaps.", bool, group="Labels"),
    option("dtype", "Integer type of the labels.", group="Labels"),
)
STORAGE = (
    option("chunks", "Voxels per chunk: one, or one per axis.", ints, metavar="N,N,..", group="Storage"),
    option("shards", "Voxels per shard and axis.", ints, metavar="N,N,..", group="Storage"),
    option("compression", "'lz4', 'zstd', 'gzip' or 'none'.", metavar="CODEC", group="Storage"),
)
BLOBS = (
    option("method", "'log', 'dog', 'doh', or MODULE:NAME of a function.", metavar="NAME", group="Blobs"),
    option(
        "min_sigma", "Smallest standard deviation, voxels: one, or one per axis.", floats, metavar="X", group="Blobs"
    ),
    option("max_sigma", "Largest standard deviation, voxels.", floats, metavar="X", group="Blobs"),
    option("num_sigma", "How many there are between ('log', 'doh').", int, group="Blobs"),
    option("sigma_in_units", "Sigmas are in the unit of the image.", bool, group="Blobs"),
    option(
        "voxel_size", "Extent of a voxel per axis, where the image does not tell.", floats, metavar="X", group="Blobs"
    ),
    option("threshold", "What the response must exceed.", float, group="Blobs"),
    option(
        "border", "Voxels read beyond each side of a tile; default: what it takes.", ints, metavar="N", group="Blobs"
    ),
)
OUTPUT = Place("output", "Zarr store to write to; made if there is none.")
COMPONENT = (option("output_component", "Path of the result within the store.", metavar="PATH", group="Result"),)
DESTINATION = (
    option("resume", "Go on with the same run where it stopped.", bool, group="Result"),
    option("overwrite", "Replace what is there, once the new result is complete.", bool, group="Result"),
    option("stage_dir", "Folder for scratch data, seen by all workers.", metavar="FOLDER", group="Result"),
    option("keep_stage", "Leave the scratch data.", bool, group="Result"),
)
REPORT = option(
    "report", "Write a page that tells of the labels and of the run, beside the store.", bool, group="Result"
)
CLUSTER = (
    option(
        "scheduler",
        "threads, processes, synchronous, local (worker processes with a dashboard), slurm, or the address of a "
        "scheduler, such as tcp://host:8786.",
        metavar="WHERE",
        group="Where it runs",
    ),
    option("workers", "Threads, processes, or jobs; LEAST,MOST of jobs.", ints, metavar="N", group="Where it runs"),
    option(
        "cluster",
        "An option of the cluster, such as walltime=02:00:00. May be repeated.",
        named_value,
        metavar="NAME=VALUE",
        group="Where it runs",
        many=True,
    ),
)
TELLING = (
    option("json", "Print the facts as JSON, and no progress.", bool, group="What is told"),
    option("debug", "Show the traceback of an error.", bool, group="What is told"),
)
RUN = (
    *TELLING,
    option("quiet", "Show no progress.", bool, group="What is told"),
    option("verbose", "Log a line for each tile.", bool, group="What is told"),
    option("save_run", "Write this run as a TOML file for 'blockbuster run'.", metavar="FILE", group="What is told"),
)
OTHERS = (
    option(
        "option",
        "Any other option of the operation, the value as Python spells it. May be repeated.",
        named_value,
        metavar="NAME=VALUE",
        many=True,
    ),
)
