"""What is asked for in the widget, and the calls of blockbuster that do it: for a run, a trial, a plan, or to copy."""

from __future__ import annotations

import ast
import glob
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray

import blockbuster
from blockbuster.errors import BlockbusterError, ParameterError
from blockbuster.grid import Tile
from blockbuster.methods import Method, make_method
from blockbuster.progress import RunProgress

__all__ = [
    "LABELLING",
    "TILED",
    "WRITERS",
    "Job",
    "Operation",
    "Source",
    "Trial",
    "arguments_of",
    "carry_out",
    "numbers_of",
    "plan_of",
    "python_of",
    "suggested_method",
    "suggested_tile_shape",
    "try_tile",
]

Operation: TypeAlias = Literal["segment", "label", "blobs", "downsample", "pyramid"]
Report: TypeAlias = Callable[[RunProgress], None]

# Operations that write a store; spots are few enough to be handed back.
WRITERS = ("segment", "label", "downsample", "pyramid")
# Those that look at an image tile by tile as the user says, and those that make labels.
TILED = ("segment", "label", "blobs")
LABELLING = ("segment", "label")


@dataclass(frozen=True, eq=False)
class Source:
    """An image: one level of a layer, less its channel axis.

    Attributes
    ----------
    array : array_like
        What is worked on.
    words : str
        The same as a Python expression.
    summary, summary_words
        The level that what depends on the whole image is taken from: a coarse one of a large image.
    axes : str or None
        One letter per axis, where they are known.
    scale, translation : tuple of float
        Of the level, per axis, in `unit`.
    unit : tuple of (str or None)
        Per axis.
    home : str or None
        The OME-Zarr on this machine that the image lies in.
    """

    array: Any
    words: str
    summary: Any
    summary_words: str
    axes: str | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: tuple[str | None, ...]
    home: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(map(int, self.array.shape))

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Voxels per chunk and axis, where there are chunks."""
        chunks = getattr(self.array, "chunks", None)
        return None if chunks is None else tuple(max(axis) if isinstance(axis, tuple) else axis for axis in chunks)


@dataclass(frozen=True)
class Job:
    """What to do with an image.

    Attributes
    ----------
    parameters : dict
        Of the operation, or of the method of "segment".
    tile_shape, overlap : tuple of int or None
        Voxels; None where the operation chooses.
    merge : str or None
        A rule by its name.
    empty_threshold : float or None
        With `skip_empty`; None for Otsu's.
    store, name : str
        Where the result goes, and what it is called there.
    """

    operation: Operation
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tile_shape: tuple[int, ...] | None = None
    overlap: tuple[int, ...] | None = None
    merge: str | None = "touching"
    skip_empty: bool = False
    empty_threshold: float | None = None
    store: str = ""
    name: str = ""
    resume: bool = False
    overwrite: bool = False

    @property
    def makes_labels(self) -> bool:
        """Whether the result is a label image."""
        return self.operation in LABELLING


@dataclass(frozen=True, eq=False)
class Trial:
    """What one tile gave.

    Attributes
    ----------
    found : ndarray
        Labels of the core of the tile, or rows of spots within it.
    seconds : float
        That it took.
    """

    tile: Tile
    found: NDArray[Any]
    n_found: int
    seconds: float


# Words of a person


def numbers_of(words: str, n_axes: int, name: str) -> tuple[int, ...]:
    """One int per axis, or one for all, from what was typed.

    Raises
    ------
    ParameterError
        If it is something else.

    Examples
    --------
    >>> numbers_of("64, 128", 2, "tile shape"), numbers_of("8", 3, "overlap")
    ((64, 128), (8, 8, 8))
    """
    try:
        numbers = tuple(int(part) for part in words.replace("x", ",").split(","))
    except ValueError as error:
        raise ParameterError(
            f"The {name} {words!r} is not made of whole numbers. Give one per axis: 64, 512, 512."
        ) from error
    if len(numbers) not in (1, n_axes):
        raise ParameterError(
            f"The {name} {words!r} has {len(numbers)} numbers. Give one, or one for each of the {n_axes} axes."
        )
    return numbers if len(numbers) == n_axes else numbers * n_axes


def arguments_of(words: str) -> dict[str, Any]:
    """Named arguments from what was typed.

    Raises
    ------
    ParameterError
        If it is something else.

    Examples
    --------
    >>> arguments_of("sigma=2, split=True, name='a'")
    {'sigma': 2, 'split': True, 'name': 'a'}
    """
    try:
        call = ast.parse(f"f({words})", mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or call.args
            or any(given.arg is None for given in call.keywords)
        ):
            raise ValueError("only names with values are allowed")
        return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ParameterError(
            f"The arguments {words!r} cannot be read: {error}. Give NAME=VALUE, such as sigma=2."
        ) from error


# What is suggested


def suggested_method(method: str, parameters: Mapping[str, Any]) -> Method | None:
    """A method without what depends on the image: how its objects are best merged. None where it cannot be made."""
    known = {**parameters}
    if method == "otsu":
        method, known["threshold"] = "threshold", 0.0
    elif method in ("cellpose", "stardist"):
        known["normalize"] = False
    try:
        return make_method(method, None, known)
    except BlockbusterError:
        return None


def suggested_tile_shape(source: Source, job: Job, n_workers: int | None) -> tuple[int, ...]:
    """The tile shape that fits the memory at hand.

    Raises
    ------
    BlockbusterError
        If none fits.
    """
    chunks = None if isinstance(source.array, np.ndarray) else source.chunks
    if chunks is not None:
        chunks = tuple(min(chunk, n) for chunk, n in zip(chunks, source.shape, strict=True))
    if job.method == "cellpose":
        options = {"use_gpu": bool(job.parameters.get("gpu")), "do_3D": bool(job.parameters.get("do_3D"))}
        return blockbuster.auto_tile_shape_cellpose(
            source.shape,
            source.array.dtype,
            job.parameters.get("diameter"),
            chunks=chunks,
            n_workers=n_workers,
            **options,
        )
    overlap = job.overlap or (0,) * len(source.shape)
    return blockbuster.auto_tile_shape(
        source.shape, source.array.dtype, overlap=overlap, chunks=chunks, axes=source.axes, n_workers=n_workers
    )


# Doing it


@dataclass(frozen=True)
class _Call:
    """A call of blockbuster, but for the image."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, image: Any, **more: Any) -> Any:
        return self.function(image, *self.arguments, **self.options, **more)

    def words(self, image: str, arguments: str = "", **more: Any) -> str:
        """As Python."""
        given = [
            image,
            *filter(None, [arguments]),
            *(f"{name}={value!r}" for name, value in (self.options | more).items()),
        ]
        return f"blockbuster.{self.function.__name__}({', '.join(given)})"


def carry_out(job: Job, source: Source, report: Report) -> Any:
    """Do a job.

    Returns
    -------
    result : OpenedImage, dask.array.Array or numpy.ndarray
        What was written: labels or an image with all their levels, or a smaller image; or rows of spots.

    Raises
    ------
    BlockbusterError
        What the operation raises.
    """
    if job.makes_labels:
        return _write_labels(job, source, report)
    call = _call(job, source)
    if job.operation != "blobs":
        check_store(job)
    return call(source.array, **_target(job), resume=job.resume, progress=report)


def _write_labels(job: Job, source: Source, report: Report) -> blockbuster.OpenedImage:
    """Two runs, each of which goes on where it was stopped: the labels, then these with all their levels."""
    check_store(job)
    writing = _Call(blockbuster.write_labels, (job.store, job.name), {**_place(job, source), **_kept(job)})
    _check_options(source, writing)
    store = Path(job.store)
    scratch = store.with_name(f".{store.name}.{job.name}.finest.zarr")
    resume = job.resume and _is_begun(scratch)
    if not resume:
        shutil.rmtree(scratch, ignore_errors=True)
    if not resume and not job.overwrite:
        _check_free(job, source)
    made = _call(job, source)(source.array, write_to=scratch, resume=resume, progress=report)
    written: blockbuster.OpenedImage = writing(made, resume=resume, progress=report)
    shutil.rmtree(scratch)
    return written


def _is_begun(scratch: Path) -> bool:
    """Whether there are labels of a run that was stopped, or its stage, which lies beside them."""
    return any(scratch.parent.glob(f"{glob.escape(scratch.name)}*"))


def _check_options(source: Source, writing: _Call) -> None:
    """Refuse before the first tile what could not be written in the end."""
    blockbuster.plan(_empty(source), *writing.arguments, operation=writing.function, time_tiles=0, **writing.options)


def _check_free(job: Job, source: Source) -> None:
    """Refuse a name that is taken: of levels a plan does not say that, but of a single array."""
    where = f"labels/{job.name}"
    blockbuster.plan(_empty(source), operation="copy", time_tiles=0, write_to=job.store, output_component=where)


def _empty(source: Source) -> da.Array:
    """As large as the labels of an image."""
    made: da.Array = da.zeros(source.shape, dtype=np.int32, chunks=source.chunks or source.shape)
    return made


def check_store(job: Job) -> None:
    """Refuse a job that does not say where its result goes.

    Raises
    ------
    ParameterError
        If it does not.
    """
    if not job.store:
        raise ParameterError("The result has no place. Choose a zarr store to write it to.")
    if not job.name and job.makes_labels:
        raise ParameterError("The result has no name. Give one, such as cells.")


def _call(job: Job, source: Source) -> _Call:
    """The call of a job."""
    makers: dict[Operation, Callable[[Job, Source], _Call]] = {
        "segment": _segment,
        "label": _label,
        "blobs": _blobs,
        "downsample": _downsample,
        "pyramid": _pyramid,
    }
    return makers[job.operation](job, source)


def _segment(job: Job, source: Source) -> _Call:
    return _Call(blockbuster.tile_process, (_method(job, source.summary).fn,), _segment_options(job, source))


def _segment_options(job: Job, source: Source) -> dict[str, Any]:
    options = {"tile_shape": job.tile_shape, "overlap": job.overlap or 0, "merge": _merge(job, source)}
    if job.parameters.get("gpu"):
        options["use_gpu"] = True
    return {**options, "sequential_labels": True, **_skipping(job)}


def _merge(job: Job, source: Source) -> Any:
    """The rule; objects do not go on over time and channel."""
    axes = source.axes or ""
    if job.merge is None or not set(axes) & set("tc"):
        return job.merge
    return [None if name in "tc" else job.merge for name in axes]


def _label(job: Job, _source: Source) -> _Call:
    return _Call(blockbuster.label, (), {**job.parameters, "tile_shape": job.tile_shape})


def _blobs(job: Job, _source: Source) -> _Call:
    return _Call(blockbuster.detect_blobs, (), {**job.parameters, "tile_shape": job.tile_shape, **_skipping(job)})


def _skipping(job: Job) -> dict[str, Any]:
    return {"skip_empty": True, "empty_threshold": job.empty_threshold} if job.skip_empty else {}


def _pyramid(job: Job, source: Source) -> _Call:
    return _Call(blockbuster.write_image, (job.store,), {**job.parameters, **_place(job, source), "name": job.name})


def _downsample(job: Job, source: Source) -> _Call:
    options = dict(job.parameters)
    factor = options.pop("scale_factor")
    axes = source.axes or " " * len(source.shape)
    return _Call(blockbuster.downsample, (tuple(1 if name in "tc" else factor for name in axes),), options)


def _target(job: Job) -> dict[str, Any]:
    """Where a result goes that is not labels."""
    if job.operation == "blobs":
        return {"compute": True}
    where = {"write_to": job.store, "output_component": job.name} if job.operation == "downsample" else {}
    return {**where, **_kept(job)}


def _kept(job: Job) -> dict[str, Any]:
    return {"overwrite": True} if job.overwrite else {}


def _method(job: Job, summary: Any) -> Method:
    name, parameters = named_method(job)
    return make_method(name, summary, parameters)


def named_method(job: Job) -> tuple[str, dict[str, Any]]:
    """The method of a job and its parameters as `make_method` takes them."""
    if job.method != "function":
        return job.method, {name: value for name, value in job.parameters.items() if value is not None}
    if ":" not in job.parameters["function"]:
        raise ParameterError(
            f"The function {job.parameters['function']!r} is not MODULE:NAME, such as mymodule:segment."
        )
    return job.parameters["function"], arguments_of(job.parameters["arguments"])


def _place(job: Job, source: Source) -> dict[str, Any]:
    """Where a result lies, unless the image that it is written into tells."""
    if source.home is not None and Path(job.store).absolute() == Path(source.home).absolute():
        return {}
    return {"axes": source.axes, "scale": source.scale, "translation": source.translation, "unit": source.unit}


# Before it, and instead


def plan_of(job: Job, source: Source) -> blockbuster.RunPlan:
    """What a job would take.

    Raises
    ------
    BlockbusterError
        What the operation raises before its first task.
    """
    if job.operation != "blobs":
        check_store(job)
    call = _call(job, source)
    target = _target(job)
    if job.makes_labels:
        target = {"write_to": job.store, "output_component": f"labels/{job.name}", **target}
    return blockbuster.plan(source.array, *call.arguments, operation=call.function, **call.options, **target)


def try_tile(job: Job, source: Source, tile: Tile) -> Trial:
    """Do a job on one tile alone, with what the tile reads around it.

    Raises
    ------
    BlockbusterError
        What the operation raises.
    """
    call = _call(job, source)
    block = np.asarray(source.array[tile.padded])
    alone = {**call.options, "tile_shape": block.shape, "skip_empty": False}
    alone.pop("empty_threshold", None)
    if job.operation == "label":
        alone.pop("skip_empty")
    begin = time.perf_counter()
    found = call.function(block, *call.arguments, **alone, compute=True)
    seconds = time.perf_counter() - begin
    if job.makes_labels:
        found = found[tile.trim]
        return Trial(tile, found, int(np.count_nonzero(np.unique(found))), seconds)
    found[:, : block.ndim] += tile.padded_start
    return Trial(tile, found, len(found), seconds)


def python_of(job: Job, source: Source) -> str:
    """A job as Python that does the same.

    Raises
    ------
    ParameterError
        If something of it cannot be read.
    """
    lines = ["import blockbuster", "", f"image = {source.words}"]
    if job.operation == "segment":
        name, parameters = named_method(job)
        summary = "image" if source.summary_words == source.words else source.summary_words
        lines[1:1] = ["from blockbuster.methods import make_method"]
        lines.append(f"method = make_method({name!r}, {summary}, {parameters!r})")
        call = _Call(blockbuster.tile_process, (), _segment_options(job, source))
        lines.append(f"labels = {call.words('image', 'method.fn')}")
    elif job.operation == "label":
        lines.append(f"labels = {_call(job, source).words('image')}")
    else:
        call = _call(job, source)
        lines.append(f"result = {call.words('image', ', '.join(map(repr, call.arguments)), **_target(job))}")
    if job.makes_labels:
        writing = _Call(blockbuster.write_labels, (), {**_place(job, source), **_kept(job)})
        lines.append(writing.words("labels", f"{job.store!r}, {job.name!r}"))
    return "\n".join(lines) + "\n"
