"""The command ``blockbuster``: a table of commands, each of which calls one public function.

A command is a row: what it is given by place, the groups of its options, and the function that does its work. Options
have the names of Python, so that each page of the documentation is one of the command, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import zarr

import blockbuster
from blockbuster.cli_options import (
    BLOBS,
    CLUSTER,
    COMPONENT,
    DESTINATION,
    EMPTY,
    LABELS,
    MASK,
    OTHERS,
    OUTPUT,
    OVERLAP,
    REPORT,
    RUN,
    SOURCE,
    STORAGE,
    TELLING,
    TILES,
    GroupedCommand,
    Place,
    ints,
    named_value,
    option,
)
from blockbuster.cli_runs import Facts, Run, Work, active, carry_out, read_run, run_of
from blockbuster.errors import ParameterError
from blockbuster.image_files import open_file
from blockbuster.methods import METHODS, find_function, make_method
from blockbuster.progress import Progress
from blockbuster.tiffs import is_tiff

__all__ = ["main"]

IMAGE = Place("image", "Path or URL of a zarr store, OME-Zarr or not, or of a TIFF.")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    name : str
        As it is typed.
    summary : str
        What its help says.
    paths : tuple of Place
        What it is given by place.
    options : tuple of Option
        What else it takes.
    work : callable
        Does it: see `cli_runs.Work`.
    """

    name: str
    summary: str
    paths: tuple[Place, ...]
    options: tuple[click.Option, ...]
    work: Work

    def made(self) -> click.Command:
        """For the parser."""
        names = [str(path.name) for path in self.paths]

        def called(**values: Any) -> int:
            run, telling, file = run_of(self.name, names, values)
            if file is not None:
                Path(file).write_text(run.toml(), encoding="utf-8")
            return carry_out(run, self.work, telling)

        parameters: list[click.Parameter] = [*self.paths, *self.options]
        short = self.summary.partition(". ")[0].rstrip(".")
        return GroupedCommand(
            self.name,
            params=parameters,
            callback=called,
            help=self.summary,
            short_help=short,
            no_args_is_help=any(path.required for path in self.paths),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    status : int
        0 if all went well, 1 after an error, 2 for what is no command, 130 if it was interrupted. Errors are told on
        the standard output of errors.
    """
    group = _Group(
        "blockbuster",
        commands={command.name: command.made() for command in COMMANDS},
        help="Any function over an image larger than memory, tile by tile, with one consistent result.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    click.version_option(blockbuster.__version__, message="%(prog)s %(version)s")(group)
    try:
        status: int = group.main(
            None if arguments is None else list(arguments), prog_name="blockbuster", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return status or 0


class _Group(click.Group):
    """Commands in the order of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)


# From options to calls


def _keywords(run: Run, progress: Progress, *without: str) -> dict[str, Any]:
    """The options of a run as an operation takes them that reports its progress."""
    return {**_options(run, *without), "progress": progress}


def _options(run: Run, *without: str) -> dict[str, Any]:
    """The options of a run as a function takes them."""
    given = {name: value for name, value in run.options.items() if name not in without}
    for name in ("channel", "merge"):
        if given.get(name) == "none":
            given[name] = None
    return given


def _labelled(run: Run, component: str) -> Facts:
    """What is told of labels that are written."""
    where = run.options.get("output_component", component)
    stored = zarr.open_array(run.paths["output"], path=where, mode="r")
    kept: Any = stored.attrs.asdict().get("blockbuster", {})
    report: dict[str, Any] = dict(kept.get("report", {}))
    told = {name: value for name, value in report.items() if name in ("n_objects", "n_tiles", "n_skipped")}
    return {"labels": os.path.join(run.paths["output"], where), "shape": stored.shape, **told}


def _label(run: Run, progress: Progress) -> Facts:
    blockbuster.label(run.paths["image"], write_to=run.paths["output"], **_keywords(run, progress))
    return _labelled(run, "labels")


def _merge(run: Run, progress: Progress) -> Facts:
    blockbuster.merge_tile_labels(run.paths["labels"], run.paths["output"], **_keywords(run, progress))
    return _labelled(run, "labels")


def _copy(run: Run, progress: Progress) -> Facts:
    blockbuster.copy(run.paths["source"], run.paths["output"], **_keywords(run, progress))
    return _stored(run)


def _downsample(run: Run, progress: Progress) -> Facts:
    given = _keywords(run, progress, "scale_factor")
    factor = run.options.get("scale_factor", 2)
    blockbuster.downsample(run.paths["image"], factor, write_to=run.paths["output"], **given)
    return _stored(run)


def _stored(run: Run) -> Facts:
    where = os.path.join(run.paths["output"], run.options.get("output_component", "")).rstrip("/")
    node = zarr.open(where, mode="r")
    return {"output": where} | ({"shape": node.shape} if isinstance(node, zarr.Array) else {})


def _pyramid(run: Run, progress: Progress) -> Facts:
    made = blockbuster.pyramid(run.paths["image"], **_keywords(run, progress))
    return {"image": made.path, "levels": [level.shape for level in made.levels]}


def _blobs(run: Run, progress: Progress) -> Facts:
    given = _keywords(run, progress, "method")
    method = run.options.get("method", "log")
    found = blockbuster.detect_blobs(
        run.paths["image"],
        method=find_function(method) if ":" in method else method,
        write_to=run.paths["output"],
        **given,
    )
    return {"table": run.paths["output"], "n_blobs": found.shape[0]}


def _info(run: Run, _progress: Progress) -> Facts:
    path = run.paths["image"]
    image = blockbuster.open_image(path)
    file = open_file(path)
    finest = image.levels[0]
    return {
        "path": image.path,
        "format": f"OME-Zarr {image.version}" if image.version else "TIFF" if is_tiff(path) else "zarr",
        "name": image.name or None,
        "axes": image.axes,
        "shape": finest.shape,
        "dtype": str(finest.dtype),
        "chunks": getattr(file.array(0), "chunks", None),
        "bytes": finest.nbytes,
        "levels": [level.shape for level in image.levels],
        "scale": image.scale,
        "unit": image.unit,
        "channels": image.channel_names,
        "labels": image.labels,
    }


def _plan(run: Run, _progress: Progress) -> Facts:
    given = _options(run, "fn", "progress")
    operation = given.get("operation")
    if "fn" in run.options:
        given["fn"] = find_function(run.options["fn"])
    if operation in ("write_image", "write_labels") and "write_to" in given:
        given["store"] = given.pop("write_to")
    made = blockbuster.plan(run.paths["image"], **given)
    return {"text": str(made), **made.as_dict()}


def _segment(run: Run, progress: Progress) -> Facts:
    image, options = run.paths["image"], run.options
    source = {name: value for name, value in _options(run).items() if name in ("channel", "level")}
    method = make_method(options.get("method", "otsu"), image, dict(options.get("param", {})), **source)
    given = {"merge": method.merge, "overlap": method.overlap or 0, **_keywords(run, progress, "method", "param")}
    if given["merge"] == "iou" and not given["overlap"]:
        raise ParameterError(
            "Objects are compared in what two tiles both read, so they need an overlap. Give --overlap, about two "
            "objects wide, such as --overlap 64."
        )
    blockbuster.tile_process(image, method.fn, write_to=run.paths["output"], **given)
    return {**_labelled(run, "labels"), "merge": given["merge"], "overlap": given["overlap"]}


def _report(run: Run, _progress: Progress) -> Facts:
    return {"report": blockbuster.report(run.paths["store"], **_options(run))}


def _view(run: Run, _progress: Progress) -> Facts:
    try:
        import napari
    except ImportError as error:
        raise ParameterError("view needs napari: pip install 'blockbuster-imaging[napari]' 'napari[pyqt6]'.") from error
    from blockbuster.napari.reader import read, read_labels

    layers = [*read(run.paths["image"]), *map(read_labels, run.options.get("labels", ()))]
    viewer = napari.Viewer()
    for data, options, kind in layers:
        getattr(viewer, f"add_{kind}")(data, **options)
    napari.run()
    return {"viewed": run.paths["image"]}


def _demo(run: Run, _progress: Progress) -> Facts:
    from blockbuster.demo import make_demo

    return make_demo(Path(run.paths["folder"]))


def _run(run: Run, progress: Progress) -> Facts:
    again = read_run(run.paths["file"])
    works = {command.name: command.work for command in COMMANDS if command.name != "run"}
    if again.command not in works:
        raise ParameterError(f"{run.paths['file']} describes the command {again.command!r}. There is none.")
    options = {name: True for name in ("resume", "overwrite") if run.options.get(name)}
    again = replace(again, options={**again.options, **options})
    with active(again):
        return works[again.command](again, progress)


_WHOLE = (*CLUSTER, *OTHERS, *RUN)
COMMANDS = (
    Command(
        "info", "Say what an image is: its form, axes, levels, scale, channels and labels.", (IMAGE,), TELLING, _info
    ),
    Command(
        "plan",
        "Say what a run would take of time, memory and disk, and whether it fits, without starting it. The options "
        "are those of the operation, by the same names. Exit status 1 if it cannot fit.",
        (IMAGE,),
        (
            option("operation", "Default: tile_process with --fn, else label.", metavar="NAME"),
            option("fn", "A function of a tile, by its module and name.", metavar="MODULE:NAME"),
            *SOURCE,
            *MASK,
            *TILES,
            *OVERLAP,
            option("threshold", "What is above it is foreground.", float, group="Labels"),
            option("connectivity", "1 to the number of axes.", int, group="Labels"),
            *LABELS,
            option("scale_factor", "Input voxels per output voxel.", ints, metavar="N", group="Levels"),
            option("method", "Of downsampling, or of finding blobs.", group="Levels"),
            *STORAGE,
            option("write_to", "Where the run would write to.", metavar="PATH", group="Result"),
            option("compute", "Whether the result is taken into memory.", bool, group="Result"),
            *COMPONENT,
            *DESTINATION[:3],
            option("n_workers", "Worker processes of a cluster that is to be started.", int, group="Workers"),
            option("threads_per_worker", "Tiles at a time in each.", int, group="Workers"),
            option("memory_limit", "For each, such as '16 GiB'.", metavar="BYTES", group="Workers"),
            option("time_tiles", "Tiles to try; 0 for none. Default: 3.", int, metavar="N", group="Workers"),
            *_WHOLE,
        ),
        _plan,
    ),
    Command(
        "label",
        "Label connected components, with the ids that SciPy gives for the whole image.",
        (IMAGE, OUTPUT),
        (
            option("threshold", "What is above it is foreground. Default: what is not 0.", float, group="Labels"),
            option("connectivity", "1: faces; up to the number of axes: corners too.", int, group="Labels"),
            option("by_value", "Neighbours belong together if they are equal.", bool, group="Labels"),
            option("numbering", "'raster', as SciPy, or 'tile'.", group="Labels"),
            option("dtype", "Integer type of the labels.", group="Labels"),
            *SOURCE,
            *MASK,
            *TILES,
            *COMPONENT,
            *DESTINATION,
            REPORT,
            *_WHOLE,
        ),
        _label,
    ),
    Command(
        "segment",
        "Segment an image tile by tile, and make objects whole across the borders of tiles.",
        (IMAGE, OUTPUT),
        (
            option(
                "method",
                f"{', '.join(METHODS)}, or MODULE:NAME of a function of a tile. Default: otsu.",
                metavar="NAME",
                group="Method",
            ),
            option(
                "param",
                "A parameter of the method, such as diameter=30. May be repeated.",
                named_value,
                metavar="NAME=VALUE",
                group="Method",
                many=True,
            ),
            option("use_gpu", "One tile at a time on each GPU.", bool, group="Method"),
            *LABELS,
            *SOURCE,
            *TILES,
            *OVERLAP,
            *EMPTY,
            *COMPONENT,
            *DESTINATION,
            REPORT,
            *_WHOLE,
        ),
        _segment,
    ),
    Command(
        "merge",
        "Make objects whole in labels that were made tile by tile.",
        (Place("labels", "Path of the labels."), OUTPUT),
        (
            option("input_component", "Path of the labels within the store.", metavar="PATH", group="Image"),
            *LABELS,
            *TILES,
            *COMPONENT,
            *DESTINATION,
            REPORT,
            *_WHOLE,
        ),
        _merge,
    ),
    Command(
        "copy",
        "Copy an image to zarr: in other chunks, shards, codecs, formats or dtypes where asked.",
        (Place("source", "Path or URL of an image, or of a whole OME-Zarr."), OUTPUT),
        (
            option("dtype", "Of the copy."),
            option("casting", "'safe', 'same_kind', 'unsafe', 'exact' or 'clip'."),
            option("verify", "Read all again, and compare checksums.", bool),
            *SOURCE,
            *MASK,
            *TILES,
            *STORAGE,
            option("zarr_format", "2 or 3.", int, group="Storage"),
            *COMPONENT,
            *DESTINATION,
            *_WHOLE,
        ),
        _copy,
    ),
    Command(
        "downsample",
        "Make an image smaller by integer factors.",
        (IMAGE, OUTPUT),
        (
            option(
                "scale_factor", "Input voxels per output voxel: one, or one per axis. Default: 2.", ints, metavar="N"
            ),
            option("method", "'mean', 'median', 'mode', 'mode-nonzero', 'max' or 'min'; default: every n-th voxel."),
            option("order", "Of a spline, in place of a method.", int),
            option("anti_aliasing", "Blur before, with a spline.", bool),
            *SOURCE,
            *MASK,
            *TILES,
            *STORAGE,
            *COMPONENT,
            *DESTINATION,
            *_WHOLE,
        ),
        _downsample,
    ),
    Command(
        "pyramid",
        "Give an OME-Zarr image the coarser levels that it lacks.",
        (IMAGE,),
        (
            option("n_levels", "Levels, the first counted. Default: until one is small.", int),
            option("scale_factor", "From level to level: one, or one per axis.", ints, metavar="N"),
            option("method", "As of downsample; default: mean, of labels mode."),
            *DESTINATION,
            *_WHOLE,
        ),
        _pyramid,
    ),
    Command(
        "blobs",
        "Find bright spots, those of the whole image, and write a table of them.",
        (IMAGE, Place("output", "Parquet file to write: *.parquet.")),
        (*BLOBS, *SOURCE, *MASK, *TILES, *EMPTY, *DESTINATION, *_WHOLE),
        _blobs,
    ),
    Command(
        "report",
        "Write a page that tells of a result: its labels, seams, tiles and workers.",
        (Place("store", "Zarr store of a result, or path of the result itself."),),
        (
            option("component", "Path of the result within the store. Default: the only one.", metavar="PATH"),
            option("image", "Path of what was labelled, for the pictures.", metavar="PATH"),
            SOURCE[0],
            TILES[0],
            option("max_faces", "Faces of tiles that the seam index looks at; 0 for none.", int, metavar="N"),
            option("write_to", "The HTML file. Default: beside the store.", metavar="PATH"),
            option("log", "Folder 'log' of the stage of the run, where that was kept.", metavar="FOLDER"),
            *TELLING,
        ),
        _report,
    ),
    Command(
        "view",
        "Look at an image in napari, with label images over it.",
        (IMAGE,),
        (option("labels", "Path of labels. May be repeated.", metavar="PATH", many=True), *TELLING),
        _view,
    ),
    Command(
        "demo",
        "Segment the nuclei of a real image in tiles, and draw what came out.",
        (Place("folder", "Folder to write to; made if there is none.", "demo-output"),),
        TELLING,
        _demo,
    ),
    Command(
        "run",
        "Do what a file describes that --save-run has written.",
        (Place("file", "The TOML file."),),
        (*DESTINATION[:2], *TELLING),
        _run,
    ),
)
