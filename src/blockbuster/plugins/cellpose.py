"""Cellpose 3 and 4 as functions of a tile, and the tiles that suit them."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from blockbuster.budget import auto_tile_shape, available_memory, available_vram, cpu_count, tile_bytes
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.plugins.models import (
    Intensities,
    Wrapping,
    check_intensities,
    existing,
    gpu_turn,
    is_path,
    needing,
    refuse_options,
    scaled,
    segment,
    shared_model,
    stamp_of,
    until_it_fits,
)

__all__ = ["Cellpose", "auto_tile_shape_cellpose", "cellpose_bytes", "cellpose_fn"]

# All of them are given always: the library keeps what one call says of some as the defaults of the next.
_NORMALIZATION = {
    "lowhigh": None,
    "percentile": None,
    "normalize": True,
    "norm3D": True,
    "sharpen_radius": 0,
    "smooth_radius": 0,
    "tile_norm_blocksize": 0,
    "tile_norm_smooth3D": 1,
    "invert": False,
}
_OWN_OPTIONS = ("x", "z_axis", "compute_masks", "progress")
_BATCH_SIZE = 8
# Channels that the networks of Cellpose 3 and 4 have.
_CHANNELS = {3: 2, 4: 3}

# Voxels that a cell measures in the image that a network is given.
DIAMETER = 30.0
# Bytes that Cellpose holds per voxel: of the tile, and of the image that the network is given; in planes, in volumes.
# About twice what versions 3.1 and 4.2 were seen to hold, for it depends on how many cells there are.
_TILE_BYTES = {False: 100, True: 160}
_NETWORK_BYTES = {False: 100, True: 160}


@dataclass(frozen=True)
class Cellpose:
    """A function of a tile; see `cellpose_fn`."""

    model: str
    stamp: tuple[tuple[int, int], ...]
    gpu: bool
    diameter: float | None
    is_volume: bool
    channels: tuple[int, int] | None
    channel_axis: int | None
    pairs: tuple[tuple[float, float], ...]
    normalization: Mapping[str, Any] = field(hash=False)
    use_bfloat16: bool
    options: Mapping[str, Any] = field(hash=False)

    def __call__(self, tile: NDArray[Any]) -> NDArray[np.int32]:
        """Labels of a tile."""
        return segment(tile, self.channel_axis, self._wrapping, self._label)

    def _wrapping(self, shape: tuple[int, ...]) -> Wrapping:
        """How a tile is given to Cellpose: a volume of one plane is a plane, which networks for volumes do not take."""
        sees_depth = self.is_volume or bool(self.options.get("stitch_threshold"))
        is_plane = len(shape) > 2 and shape[-3] == 1
        return Wrapping(shape, 3 if sees_depth and not is_plane else 2)

    def _label(self, channels: NDArray[np.float32]) -> NDArray[Any]:
        """Masks of Cellpose for channels, first axis."""
        with needing("Cellpose"):
            import torch

        model = self._model()
        chosen = self._chosen(channels)
        options = self._evaluation(is_volume=channels.ndim == 4)

        def attempt(batch_size: int) -> NDArray[Any]:
            # Cellpose writes to what it is given.
            image = np.moveaxis(chosen, 0, -1).copy()
            masks, *_ = model.eval(image, **copy.deepcopy(options), batch_size=batch_size)
            return np.asarray(masks)

        with gpu_turn(self.gpu):
            return until_it_fits(
                attempt,
                _halved(self.options.get("batch_size", _BATCH_SIZE)),
                full=(torch.cuda.OutOfMemoryError,),
                free=torch.cuda.empty_cache,
                remedy="batch_size was 1. Give a smaller tile_shape, or let fewer processes share the GPU: "
                "tile_process(..., use_gpu=True).",
            )

    def _model(self) -> Any:
        """The model, loaded once per process."""
        key = ("cellpose", self.model, self.stamp, self.gpu, self.use_bfloat16)
        return shared_model(key, functools.partial(_load, self.model, self.gpu, self.use_bfloat16))

    def _chosen(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The channels that the network is given, in its order; Cellpose 3 has always two."""
        if self.channels is not None:
            channels = _selected(channels, *self.channels)
        given = channels[: _CHANNELS[_major()]]
        if self.pairs:
            given = scaled(given, self.pairs)
        is_short = _major() == 3 and len(given) == 1
        return np.concatenate([given, np.zeros_like(given)]) if is_short else given

    def _evaluation(self, *, is_volume: bool) -> dict[str, Any]:
        """Options of `eval`: a cell may fill a tile, though hardly an image."""
        options = {"max_size_fraction": 1.0, **self.options, "normalize": dict(self.normalization)}
        options.pop("batch_size", None)
        options |= {"diameter": self.diameter, "do_3D": self.is_volume and is_volume}
        if is_volume:
            return options | {"z_axis": 0, "channel_axis": 3}
        options.pop("stitch_threshold", None)
        return options | {"channel_axis": 2}


def cellpose_fn(
    model: str | os.PathLike[str] = "cyto3",
    *,
    gpu: bool = False,
    diameter: float | None = None,
    do_3D: bool = False,  # noqa: N803 - as Cellpose spells it
    channels: Sequence[int] | None = None,
    normalize: Any = True,
    use_bfloat16: bool = False,
    **eval_kwargs: Any,
) -> Cellpose:
    """Cellpose, 3 or 4, whichever is installed, as a function of a tile.

    Parameters
    ----------
    model : str or path, default "cyto3"
        File of a model, or the name of a published one, which Cellpose downloads where it is not there yet: "cyto3",
        "nuclei", ... of Cellpose 3, "cpsam_v2", "cpsam", ... of Cellpose 4.
    gpu : bool, default False
        Compute on a GPU, one tile at a time in each process; without one it is an error. Give `tile_process`
        ``use_gpu=True`` as well, so that processes take turns.
    diameter : float, optional
        Of the cells, voxels. Default: that of the model (Cellpose 3), or no scaling (Cellpose 4).
    do_3D : bool, default False
        Segment volumes, axes z, y, x, in 3-D. Otherwise planes: tiles of one voxel on axes before y.
    channels : (int, int), optional
        For tiles with a channel axis, see ``channel_axis`` below: the channel to segment and that of nuclei, numbered
        from 1; 0 for the mean of all, and for none. Default: the first two (Cellpose 3) or three (Cellpose 4).
    normalize : bool, pair, sequence of pairs or dict, default True
        Intensities (low, high) that become 0 and 1, one pair for all channels or one for each that the model is given:
        ``blockbuster.global_percentiles(image, [1, 99])``, so that tiles agree. True: percentiles of each tile, with a
        warning. False: the image is normalized already. A dict: as Cellpose has it; what it leaves out has Cellpose's
        defaults.
    use_bfloat16 : bool, default False
        Compute with 16 bits, of Cellpose 4 only: faster, but cells may differ by some voxels.
    **eval_kwargs
        Of ``CellposeModel.eval``: `flow_threshold`, `cellprob_threshold`, `stitch_threshold`, `anisotropy`, `min_size`,
        `batch_size`, ..., and `channel_axis`, the axis of channels in a tile. `max_size_fraction` is 1 unless given,
        for Cellpose compares cells with the tile.

    Returns
    -------
    fn : callable
        ``ndarray -> ndarray of int32`` of the same shape, less the channel axis: for `tile_process`, with an overlap of
        about two diameters and ``merge="iou"``. Small when pickled: it holds no model.

    Raises
    ------
    ParameterError
        If there is no such file, or an option is none that is allowed.

    Warns
    -----
    UserWarning
        If `normalize` is True.

    Notes
    -----
    The model is loaded when a process meets its first tile that is not empty, once, and shared by threads. A tile of
    one value throughout has no cells; NaN is an error. Where the memory of the GPU does not suffice, `batch_size` is
    halved, down to 1. `auto_tile_shape_cellpose` finds tiles that fit.

    Examples
    --------
    >>> from blockbuster.plugins.cellpose import cellpose_fn
    >>> fn = cellpose_fn("cyto3", diameter=30, normalize=(100, 1100))
    >>> fn.model, fn.diameter
    ('cyto3', 30.0)

    With weights at hand, ``blockbuster.tile_process(path, fn, overlap=60, merge="iou", write_to=...)``.
    """
    refuse_options(eval_kwargs, _OWN_OPTIONS)
    options = dict(eval_kwargs)
    channel_axis = options.pop("channel_axis", None)
    file = existing(model, "model file") if is_path(model) else None
    if file is not None and not os.path.isfile(file):
        raise ParameterError(f"model {file} is a folder. Give the file of a Cellpose model.")
    if diameter is not None and not (_is_number(diameter) and diameter > 0):
        raise ParameterError(f"diameter {diameter!r} is no number of voxels above 0. Give None for that of the model.")
    pairs, normalization = _intensities(check_intensities(normalize), bool(options.pop("invert", False)))
    return Cellpose(
        model=file or str(model),
        stamp=stamp_of([file]) if file else (),
        gpu=bool(gpu),
        diameter=None if diameter is None else float(diameter),
        is_volume=bool(do_3D),
        channels=_check_channels(channels, channel_axis),
        channel_axis=channel_axis,
        pairs=pairs,
        normalization=normalization,
        use_bfloat16=bool(use_bfloat16),
        options=options,
    )


def cellpose_bytes(
    padded_shape: Sequence[int],
    dtype: DTypeLike,
    diameter: float | None,
    *,
    do_3D: bool = False,  # noqa: N803 - as Cellpose spells it
) -> int:
    """Bytes that one padded tile needs while Cellpose works on it, without the model.

    Cellpose scales images until cells measure 30 voxels, and holds its arrays at both sizes.

    Examples
    --------
    >>> cellpose_bytes((1024, 1024), "uint16", 30) // 2**20
    234
    """
    return tile_bytes(padded_shape, dtype) + math.prod(padded_shape) * _own_bytes(diameter, do_3D)


def auto_tile_shape_cellpose(
    shape: Sequence[int],
    dtype: DTypeLike,
    diameter: float | None = None,
    *,
    use_gpu: bool = False,
    do_3D: bool = False,  # noqa: N803 - as Cellpose spells it
    memory: int | None = None,
    n_workers: int | None = None,
    model_memory: int = 3 * 2**30,
    chunks: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The tile shape for Cellpose that fits the memory at hand, with an overlap of two diameters.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image, voxels: y and x last, z before them.
    dtype : dtype
        Of the image.
    diameter : float, optional
        Of the cells, voxels. Default: 30.
    use_gpu : bool, default False
        Fit one tile into the free memory of the GPU, not several into that of the machine.
    do_3D : bool, default False
        Tiles are volumes; otherwise they are one voxel thick on all axes but y and x.
    memory : int, optional
        Bytes for all workers, the models counted. Default: half of what is available to this process, as for
        `auto_tile_shape`.
    n_workers : int, optional
        Tiles at a time. Default: the CPUs that this process may use; 1 with `use_gpu`.
    model_memory : int, default 3 GiB
        Bytes of each worker for the model and what it computes with, of which Cellpose 4 needs most.
    chunks : sequence of int, optional
        Storage chunks of the image, voxels; tiles are whole multiples of them on the axes that they span.

    Returns
    -------
    tile_shape : tuple of int
        Shape of a tile, voxels, without its overlap. With 2 diameters of overlap around, `cellpose_bytes` of a tile
        and `model_memory`, times `n_workers`, are at most `memory`.

    Raises
    ------
    ParameterError
        If not even one chunk fits, or there is no GPU.
    GeometryError
        If the image has too few axes, or `chunks` do not fit it.

    Examples
    --------
    >>> auto_tile_shape_cellpose((64, 20000, 20000), "uint16", 30, memory=2**33, n_workers=1)
    (1, 4817, 4282)

    As a function of shape and dtype, for an image that is not open yet:

    >>> import functools
    >>> tile_shape = functools.partial(auto_tile_shape_cellpose, diameter=30, do_3D=True)
    """
    n_spatial = 3 if do_3D else 2
    if len(shape) < n_spatial:
        raise GeometryError(
            f"shape {tuple(shape)} has {len(shape)} axes, but Cellpose works on {n_spatial}. Give do_3D={not do_3D}, "
            "or an image with more axes."
        )
    workers = n_workers or (1 if use_gpu else cpu_count())
    available = memory if memory is not None else (available_vram() if use_gpu else available_memory()) // 2
    overlap = [0] * (len(shape) - n_spatial) + [_overlap(diameter)] * n_spatial
    steps = chunks and [*(1,) * (len(shape) - n_spatial), *chunks[len(shape) - n_spatial :]]
    bare = tile_bytes((1,), dtype)
    # Tiles are chosen by what any function needs, of a memory that is smaller by as much as Cellpose needs more.
    share = max(available // workers - model_memory, 0) * bare // (bare + _own_bytes(diameter, do_3D))
    try:
        return auto_tile_shape(
            shape,
            dtype,
            overlap=overlap,
            chunks=steps,
            axes="t" * (len(shape) - n_spatial) + "zyx"[-n_spatial:],
            memory=share * workers,
            n_workers=workers,
        )
    except ParameterError as error:
        least = [min(step + 2 * o, n) for step, o, n in zip(steps or [1] * len(shape), overlap, shape, strict=True)]
        raise ParameterError(
            f"One chunk with an overlap of 2 diameters, {tuple(least)}, needs "
            f"{cellpose_bytes(least, dtype, diameter, do_3D=do_3D):,} bytes and the model {model_memory:,}, but each "
            f"of {workers} workers has {available // workers:,}. Give more memory, fewer workers, or a tile_shape."
        ) from error


def _load(model: str, gpu: bool, use_bfloat16: bool) -> Any:
    with needing("Cellpose"):
        from cellpose import core, models

    major = _major()
    if os.path.isabs(model):
        # Where it is not, Cellpose would download another one.
        existing(model, "model file")
    elif model not in (known := [*models.MODEL_NAMES, *models.get_user_models()]):
        raise ValueError(
            f"Cellpose {major} has no model {model!r}, but {', '.join(known)}. Give one of them, the path of a file, "
            f"or install Cellpose {7 - major}."
        )
    if gpu and not core.use_gpu():
        raise RuntimeError(
            "gpu=True, but Cellpose finds no GPU in this process. Give gpu=False, or run it where one is."
        )
    if major == 3 and use_bfloat16:
        raise ValueError("use_bfloat16=True is of Cellpose 4, and this is Cellpose 3. Give use_bfloat16=False.")
    options = {"use_bfloat16": use_bfloat16} if major > 3 else {}
    return models.CellposeModel(gpu=gpu, pretrained_model=model, **options)


@functools.cache
def _major() -> int:
    """The version of Cellpose that is installed: 3, or 4 for that and later ones."""
    return min(max(int(importlib.metadata.version("cellpose").partition(".")[0]), 3), 4)


def _intensities(given: Intensities, invert: bool) -> tuple[tuple[tuple[float, float], ...], dict[str, Any]]:
    """Pairs (low, high) that are applied here, and what Cellpose is told of normalization, in full."""
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(_NORMALIZATION))
        if unknown:
            raise ParameterError(f"normalize has no {', '.join(unknown)}. Cellpose knows {', '.join(_NORMALIZATION)}.")
        told = {**_NORMALIZATION, "invert": invert, **given}
        if told["lowhigh"] is None:
            return (), told
        given, invert = check_intensities(told["lowhigh"]), bool(told["invert"])
    if isinstance(given, bool):
        return (), _NORMALIZATION | {"invert": invert, "normalize": given}
    assert isinstance(given, tuple)
    pairs = tuple((high, low) for low, high in given) if invert else given
    return pairs, _NORMALIZATION | {"normalize": False}


def _check_channels(channels: Any, channel_axis: Any) -> tuple[int, int] | None:
    if channel_axis is not None and (isinstance(channel_axis, bool) or not hasattr(channel_axis, "__index__")):
        raise ParameterError(f"channel_axis {channel_axis!r} is no int. Give the axis of channels in a tile, or None.")
    if channels is None:
        return None
    chosen = tuple(channels) if isinstance(channels, Sequence) else ()
    if len(chosen) != 2 or not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in chosen):
        raise ParameterError(
            f"channels {channels!r} are not two ints of at least 0: the channel to segment, and that of nuclei or 0."
        )
    if channel_axis is None and max(chosen) > 1:
        raise ParameterError(f"channels {channels!r} need channel_axis, the axis of channels in a tile.")
    return chosen


def _selected(channels: NDArray[np.float32], main: int, nuclei: int) -> NDArray[np.float32]:
    """The channel to segment, 0 for the mean of all, and that of nuclei, 0 for none."""
    if max(main, nuclei) > len(channels):
        raise ValueError(f"channels {(main, nuclei)} are numbered from 1, but the tile has {len(channels)}.")
    first = channels[main - 1] if main else channels.mean(axis=0)
    return np.stack([first, channels[nuclei - 1]] if nuclei else [first])


def _halved(batch_size: int) -> Iterator[int]:
    size = int(batch_size)
    while size >= 1:
        yield size
        size //= 2


def _own_bytes(diameter: float | None, do_3D: bool) -> int:  # noqa: N803
    """Bytes that Cellpose holds per voxel of a tile, beside what any function does."""
    zoom = DIAMETER / (diameter or DIAMETER)
    return math.ceil(_TILE_BYTES[do_3D] + _NETWORK_BYTES[do_3D] * zoom ** (3 if do_3D else 2))


def _overlap(diameter: float | None) -> int:
    return math.ceil(2 * (diameter or DIAMETER))


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and hasattr(value, "__float__") and math.isfinite(value)
