"""What segmenters with models share: one model per process, one tile at a time on a GPU, intensities, retries."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import CapacityError, ParameterError

__all__ = [
    "Intensities",
    "Wrapping",
    "check_intensities",
    "existing",
    "gpu_turn",
    "is_empty",
    "is_path",
    "needing",
    "refuse_options",
    "scaled",
    "segment",
    "shared_model",
    "stamp_of",
    "until_it_fits",
]

# Whether to take them from each tile, or the lowest and the highest of each channel, or options of the library.
Intensities: TypeAlias = bool | tuple[tuple[float, float], ...] | Mapping[str, Any]

T = TypeVar("T")

# Below this, libraries take an axis for one of channels.
_SMALLEST = 16


# Models


@dataclass
class _Process:
    """What belongs to this process: neither models nor locks outlive a fork."""

    models: dict[Hashable, Any] = field(default_factory=dict)
    loading: threading.Lock = field(default_factory=threading.Lock)
    gpu: threading.Lock = field(default_factory=threading.Lock)


_process = _Process()


def _start_anew() -> None:
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def shared_model(key: Hashable, load: Callable[[], T]) -> T:
    """The model of a key, loaded when this process asks for it first."""
    own = _process
    with own.loading:
        if key not in own.models:
            own.models[key] = load()
        model: T = own.models[key]
        return model


@contextlib.contextmanager
def gpu_turn(uses_gpu: bool) -> Iterator[None]:
    """Wait until no other tile is on the GPU of this process.

    `tile_process` with `use_gpu` may hold a place of `gpu_slots` already: this is a lock of its own, for a thread that
    asked for a second place would wait for itself.
    """
    with _process.gpu if uses_gpu else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def needing(library: str) -> Iterator[None]:
    """Say what to install where a library is not there.

    Raises
    ------
    ModuleNotFoundError
        If it is not.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{library} is not installed where the tile is made ({error}). "
            f"There: pip install 'blockbuster-imaging[{library.lower()}]'"
        ) from error


def is_path(model: str | os.PathLike[str]) -> bool:
    """Whether a model is meant as a path, not as a name."""
    if not isinstance(model, str):
        return True
    return os.path.exists(model) or os.path.basename(model) != model or bool(os.path.splitext(model)[1])


def stamp_of(files: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """What changes when a file is written again: a model that was trained further is another one."""
    facts = [os.stat(path) for path in files]
    return tuple((fact.st_size, fact.st_mtime_ns) for fact in facts)


# Intensities


def check_intensities(normalize: Any) -> Intensities:
    """The option `normalize` of a segmenter in one form.

    Raises
    ------
    ParameterError
        If it is none of those allowed.
    """
    if isinstance(normalize, bool | np.bool_):
        if normalize:
            _warn_of_tiles()
        return bool(normalize)
    if isinstance(normalize, Mapping):
        return dict(normalize)
    try:
        pairs = np.atleast_2d(np.asarray(normalize, dtype=np.float64))
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all() or (pairs[:, 0] >= pairs[:, 1]).any():
        raise ParameterError(
            f"normalize {normalize!r} is neither True, False, a dict, nor finite numbers (low, high) with low < high. "
            "Give blockbuster.global_percentiles(image, [1, 99])."
        )
    return tuple((float(low), float(high)) for low, high in pairs)


def scaled(channels: NDArray[np.float32], pairs: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    """Channels, first axis, with the lowest and the highest intensity at 0 and 1; one pair is that of all."""
    if len(pairs) not in (1, len(channels)):
        raise ValueError(
            f"normalize has {len(pairs)} pairs (low, high), but the model is given {len(channels)} channels. Give one "
            "pair, or one per channel."
        )
    low, high = np.asarray(pairs, np.float64).T.reshape(2, -1, *(1,) * (channels.ndim - 1))
    made: NDArray[np.float32] = ((channels - low) / (high - low)).astype(np.float32)
    return made


def _warn_of_tiles() -> None:
    warnings.warn(
        "normalize=True takes the intensities of each tile by itself, so tiles may disagree where they meet, and noise "
        "in empty ones is stretched. Give normalize=blockbuster.global_percentiles(image, [1, 99]).",
        UserWarning,
        stacklevel=4,
    )


# Tiles


def is_empty(channels: NDArray[Any]) -> bool:
    """Whether a tile holds no object: it has no voxels, or each of its channels, first axis, has one value.

    Raises
    ------
    ValueError
        If a voxel is not finite.
    """
    if not channels.size:
        return True
    if channels.dtype.kind == "f" and not np.isfinite(channels).all():
        raise ValueError(
            f"{int((~np.isfinite(channels)).sum())} of {channels.size} voxels of the tile are NaN or infinite, of "
            "which a network makes nonsense. Replace them first, as with blockbuster.map_tiles and numpy.nan_to_num."
        )
    return all(bool((channel == channel.flat[0]).all()) for channel in channels)


@dataclass(frozen=True)
class Wrapping:
    """How a tile is given to a library, and its labels taken back: leading axes of one voxel off, small axes padded.

    Attributes
    ----------
    shape : tuple of int
        Of the tile, voxels, without its channels.
    ndim : int
        Axes that the library is given.
    """

    shape: tuple[int, ...]
    ndim: int

    def __post_init__(self) -> None:
        extra = len(self.shape) - self.ndim
        if extra < 0 or math.prod(self.shape[:extra]) > 1:
            raise ValueError(
                f"the segmenter works on {self.ndim} axes, but the tile has the shape {self.shape}. Give a tile_shape "
                "of one voxel on the axes before these, and for channels a channel_axis; for objects in 3-D, "
                "do_3D=True or stitch_threshold (Cellpose), or dim=3 (StarDist)."
            )

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape without leading axes."""
        return self.shape[len(self.shape) - self.ndim :]

    @property
    def padded(self) -> tuple[int, ...]:
        """The shape as the library is given it: y and x have a least size."""
        return tuple(n if axis < self.ndim - 2 else max(n, _SMALLEST) for axis, n in enumerate(self.inner))

    def wrap(self, channels: NDArray[Any]) -> NDArray[np.float32]:
        """The channels of a tile, first axis, for the library: a copy that it may write to."""
        inner = channels.reshape(len(channels), *self.inner).astype(np.float32)
        margins = [(0, wide - n) for wide, n in zip(self.padded, self.inner, strict=True)]
        return np.pad(inner, [(0, 0), *margins], mode="edge") if any(after for _, after in margins) else inner

    def unwrap(self, labels: NDArray[Any]) -> NDArray[np.int32]:
        """What the library made of it, of the shape of the tile. Libraries drop axes of one voxel."""
        if labels.size != math.prod(self.padded):
            raise ValueError(
                f"the segmenter returned labels of shape {labels.shape} for a tile of shape {self.padded}. Check the "
                "options that tell it of axes."
            )
        whole = labels.reshape(self.padded)
        return whole[tuple(slice(n) for n in self.inner)].reshape(self.shape).astype(np.int32)


def until_it_fits(
    attempt: Callable[[T], NDArray[Any]],
    sizes: Iterable[T],
    *,
    full: tuple[type[Exception], ...],
    free: Callable[[], object],
    remedy: str,
) -> NDArray[Any]:
    """What the first of several attempts makes for which the memory of the GPU suffices.

    Parameters
    ----------
    attempt : callable
        Called with one of `sizes` after the other, the largest first.
    full : tuple of type
        Errors that tell of too little memory.
    free : callable
        Gives back what the library keeps for later, between attempts.

    Raises
    ------
    CapacityError
        If it never suffices.
    """
    failure: Exception | None = None
    for size in sizes:
        try:
            return attempt(size)
        except full as error:
            # Its frames hold the arrays that fill the memory.
            failure = error.with_traceback(None)
        free()
    raise CapacityError(f"The GPU has too little memory for a tile: {failure} {remedy}") from failure


def segment(
    tile: NDArray[Any],
    channel_axis: int | None,
    wrapping: Callable[[tuple[int, ...]], Wrapping],
    label: Callable[[NDArray[np.float32]], NDArray[Any]],
) -> NDArray[np.int32]:
    """Labels of a tile, whatever its shape and dtype, by a function that is particular about them.

    Parameters
    ----------
    tile : ndarray
        Never written.
    channel_axis : int or None
        Which of its axes is that of channels.
    wrapping : callable
        From the shape of a tile without channels to how it is given to `label`.
    label : callable
        From channels, first axis, to labels. What it is given may be written to. Not called for empty tiles.
    """
    channels = tile[np.newaxis] if channel_axis is None else np.moveaxis(tile, channel_axis, 0)
    given = wrapping(channels.shape[1:])
    if is_empty(channels):
        return np.zeros(given.shape, np.int32)
    return given.unwrap(label(given.wrap(channels)))


def existing(path: str | os.PathLike[str], what: str) -> str:
    """The absolute path of something that is there.

    Raises
    ------
    ParameterError
        If it is not.
    """
    whole = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(whole):
        raise ParameterError(
            f"There is no {what} at {whole}. Give the path of one that all workers see, or the name of a published one."
        )
    return whole


def refuse_options(given: Mapping[str, Any], own: Iterable[str]) -> None:
    """Refuse options of a library that the function sets itself.

    Raises
    ------
    ParameterError
        Naming them.
    """
    taken = sorted(set(given) & set(own))
    if taken:
        raise ParameterError(
            f"{', '.join(taken)} cannot be given: the axes of a tile are those of the image, z before y before x, and "
            "labels are what comes back."
        )
