"""StarDist in 2-D and 3-D as a function of a tile."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import ParameterError
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

__all__ = ["StarDist", "stardist_fn"]

_PERCENTILES: Mapping[str, Any] = {"pmin": 1, "pmax": 99.8}
_OWN_OPTIONS = ("img", "axes", "normalizer", "return_labels", "return_predict")
# Where it does not fit in pieces of this size, voxels, smaller ones will not do either.
_SMALLEST_PIECE = 64


@dataclass(frozen=True)
class StarDist:
    """A function of a tile; see `stardist_fn`."""

    model: str
    stamp: tuple[tuple[int, int], ...]
    dim: Literal[2, 3]
    channel_axis: int | None
    normalize: Intensities = field(hash=False)
    options: Mapping[str, Any] = field(hash=False)

    def __call__(self, tile: NDArray[Any]) -> NDArray[np.int32]:
        """Labels of a tile."""
        return segment(tile, self.channel_axis, self._wrapping, self._label)

    def _wrapping(self, shape: tuple[int, ...]) -> Wrapping:
        return Wrapping(shape, self.dim)

    def _label(self, channels: NDArray[np.float32]) -> NDArray[Any]:
        """Labels of StarDist for channels, first axis."""
        # Processes that share a GPU must not each take all of it. This is read when TensorFlow is imported.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        import tensorflow as tf

        model = self._model()
        image = self._normalized(channels)
        options = {"show_tile_progress": False, **self.options}
        first = options.pop("n_tiles", None) or (1,) * self.dim

        def attempt(n_tiles: tuple[int, ...]) -> NDArray[Any]:
            # StarDist adds to the dicts of options that it is given.
            labels, _ = model.predict_instances(
                np.moveaxis(image, 0, -1).copy(),
                axes="ZYXC"[-1 - self.dim :],
                n_tiles=(*n_tiles, 1),
                **copy.deepcopy(options),
            )
            return np.asarray(labels)

        with gpu_turn(bool(tf.config.list_physical_devices("GPU"))):
            return until_it_fits(
                attempt,
                _more_tiles(first, image.shape[1:]),
                full=(tf.errors.ResourceExhaustedError,),
                # What fails leaves cycles that hold arrays; the session is that of models that others use.
                free=gc.collect,
                remedy="Even in many pieces (n_tiles). Give a smaller tile_shape, or let fewer processes share the "
                "GPU: tile_process(..., use_gpu=True).",
            )

    def _model(self) -> Any:
        """The model, loaded once per process."""
        key = ("stardist", self.model, self.stamp, self.dim)
        return shared_model(key, functools.partial(_load, self.model, self.dim))

    def _normalized(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Channels with intensities as the model was trained with."""
        if self.normalize is False:
            return channels
        if isinstance(self.normalize, tuple):
            return scaled(channels, self.normalize)
        from csbdeep.utils import normalize

        options = {**_PERCENTILES, **(self.normalize if isinstance(self.normalize, Mapping) else {})}
        return np.stack([normalize(channel, **options, dtype=np.float32) for channel in channels])


def stardist_fn(
    model: str | os.PathLike[str],
    *,
    dim: Literal[2, 3] = 2,
    normalize: Any = True,
    prob_thresh: float | None = None,
    nms_thresh: float | None = None,
    **predict_kwargs: Any,
) -> StarDist:
    """StarDist as a function of a tile.

    Parameters
    ----------
    model : str or path
        Folder of a model, with its ``config.json``, or the name of a published one, such as "2D_versatile_fluo", which
        StarDist downloads where it is not there yet.
    dim : {2, 3}, default 2
        Whether it is a model for planes, tiles of one voxel on axes before y, or for volumes, axes z, y, x.
    normalize : bool, pair, sequence of pairs or dict, default True
        Intensities (low, high) that become 0 and 1, one pair for all channels or one for each:
        ``blockbuster.global_percentiles(image, [1, 99.8])``, so that tiles agree. True: percentiles of each tile, with
        a warning. False: the image is normalized already. A dict: options of ``csbdeep.utils.normalize``, for each
        tile and channel; what it leaves out is ``{"pmin": 1, "pmax": 99.8}``.
    prob_thresh, nms_thresh : float, optional
        How probable an object must be, and how much two may overlap. Default: those of the model.
    **predict_kwargs
        Of ``predict_instances``: `n_tiles` with one entry per axis of space, `scale`, `sparse`, ..., and
        `channel_axis`, the axis of channels in a tile.

    Returns
    -------
    fn : callable
        ``ndarray -> ndarray of int32`` of the same shape, less the channel axis: for `tile_process`, with an overlap of
        about two objects and ``merge="iou"``. Small when pickled: it holds no model.

    Raises
    ------
    ParameterError
        If there is no such folder, its model has other axes, or an option is none that is allowed.

    Warns
    -----
    UserWarning
        If `normalize` is True.

    Notes
    -----
    The model is loaded when a process meets its first tile that is not empty, once, and shared by threads. A tile of
    one value throughout has no objects; NaN is an error. TensorFlow takes a GPU where it finds one; then one tile is
    computed at a time in each process, and where memory does not suffice, in two, four, ... pieces per axis.

    Examples
    --------
    >>> from blockbuster.plugins.stardist import stardist_fn
    >>> fn = stardist_fn("2D_versatile_fluo", normalize=(100, 1100), prob_thresh=0.5)
    >>> fn.model, fn.dim
    ('2D_versatile_fluo', 2)

    With weights at hand, ``blockbuster.tile_process(path, fn, overlap=40, merge="iou", write_to=...)``.
    """
    if isinstance(dim, bool) or dim not in (2, 3):
        raise ParameterError(f"dim {dim!r} is neither 2 nor 3. Give 2 for planes, 3 for volumes.")
    refuse_options(predict_kwargs, _OWN_OPTIONS)
    options = dict(predict_kwargs)
    channel_axis = options.pop("channel_axis", None)
    folder = existing(model, "model folder") if is_path(model) else None
    n_tiles = options.get("n_tiles")
    if n_tiles is not None and (not isinstance(n_tiles, Sequence) or len(n_tiles) != dim):
        raise ParameterError(f"n_tiles {n_tiles!r} has not one entry for each of the {dim} axes of space.")
    return StarDist(
        model=folder or str(model),
        stamp=_check_folder(folder, dim) if folder else (),
        dim=dim,
        channel_axis=channel_axis,
        normalize=check_intensities(normalize),
        options=options | {"prob_thresh": prob_thresh, "nms_thresh": nms_thresh},
    )


def _check_folder(folder: str, dim: int) -> tuple[tuple[int, int], ...]:
    """Refuse what is no model of these axes; what tells it apart from one that is trained further."""
    config = os.path.join(folder, "config.json")
    if not os.path.isfile(config):
        raise ParameterError(f"There is no config.json in {folder}. Give the folder of a StarDist model.")
    with open(config) as file:
        axes = json.load(file).get("n_dim")
    if axes != dim:
        raise ParameterError(f"The model {folder} is for {axes} axes. Give dim={axes}, or another model.")
    return stamp_of(entry.path for entry in sorted(os.scandir(folder), key=lambda e: e.name) if entry.is_file())


def _load(model: str, dim: Literal[2, 3]) -> Any:
    with needing("StarDist"):
        from csbdeep.models.pretrained import get_registered_models
        from stardist.models import StarDist2D, StarDist3D

    kind = {2: StarDist2D, 3: StarDist3D}[dim]
    if os.path.isabs(model):
        folder = existing(model, "model folder")
        return kind(None, name=os.path.basename(folder), basedir=os.path.dirname(folder))
    names, aliases = get_registered_models(kind)
    known = [*names, *(alias for name in names for alias in aliases[name])]
    if model not in known:
        raise ValueError(
            f"StarDist has no model {model!r} with dim={dim}, but {', '.join(known)}. Give one of them, or a folder."
        )
    return kind.from_pretrained(model)


def _more_tiles(first: Sequence[int], shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Ever more pieces, twice as many on each axis that is longer than the smallest."""
    n_tiles = tuple(first)
    while True:
        yield n_tiles
        more = tuple(k * 2 if n > k * _SMALLEST_PIECE else k for k, n in zip(n_tiles, shape, strict=True))
        if more == n_tiles:
            return
        n_tiles = more
