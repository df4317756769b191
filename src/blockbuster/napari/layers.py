"""From layers to images, and from results to layers: at the same place in the world."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.graph_manipulation import clone
from napari.layers import Image
from numpy.typing import NDArray

import blockbuster
from blockbuster.errors import BlockbusterError
from blockbuster.napari.jobs import Job, Source, Trial

__all__ = [
    "KEY",
    "Picked",
    "add_result",
    "add_trial",
    "as_data",
    "channel_axis",
    "is_image",
    "levels_of",
    "put",
    "remove",
    "result_of",
]

# Of what is kept in the metadata of layers.
KEY = "blockbuster"
# What depends on the whole image is taken from a level of at most so many voxels, where there is one.
_SUMMARY_VOXELS = 1 << 24
_NAMES = {"time": "t", "channel": "c"}


def is_image(layer: Any) -> bool:
    """Whether a layer is one to work on."""
    return isinstance(layer, Image) and not layer.rgb


def levels_of(layer: Any) -> list[Any]:
    """The arrays of a layer, the finest first."""
    return list(layer.data) if layer.multiscale else [layer.data]


def axes_of(layer: Any) -> str | None:
    """One letter per axis, where all are known."""
    letters = [_NAMES.get(label.lower(), label.lower()) for label in layer.axis_labels]
    known = all(letter in "tczyx" for letter in letters) and len(set(letters)) == len(letters)
    return "".join(letters) if known else None


def channel_axis(layer: Any) -> int | None:
    """The axis of channels, where there is one."""
    axes = axes_of(layer) or ""
    return axes.index("c") if "c" in axes else None


@dataclass(frozen=True, eq=False)
class Picked:
    """One level of a layer, and one of its channels."""

    layer: Any
    level: int = 0
    channel: int = 0

    @property
    def kept(self) -> list[int]:
        """The axes of the layer that the image has."""
        return [axis for axis in range(self.layer.ndim) if axis != channel_axis(self.layer)]

    @property
    def factors(self) -> tuple[float, ...]:
        """Voxels of the finest level per voxel of this one, per axis."""
        levels = levels_of(self.layer)
        pairs = [(levels[0].shape[axis], levels[self.level].shape[axis]) for axis in self.kept]
        return tuple(_factor(fine, coarse) for fine, coarse in pairs)

    def array(self, level: int) -> Any:
        """The voxels of a level."""
        array, axis = levels_of(self.layer)[level], channel_axis(self.layer)
        return array if axis is None else array[(*(slice(None),) * axis, self.channel)]

    def source(self) -> Source:
        """For a job."""
        layer, kept = self.layer, self.kept
        levels, axes = levels_of(layer), axes_of(layer)
        summary = next(
            (n for n in range(self.level, len(levels)) if levels[n].size <= _SUMMARY_VOXELS), len(levels) - 1
        )
        step = np.asarray(layer.scale)[kept]
        return Source(
            array=self.array(self.level),
            words=self._words(self.level),
            summary=self.array(summary),
            summary_words=self._words(summary),
            axes=None if axes is None else "".join(axes[axis] for axis in kept),
            scale=tuple((step * self.factors).tolist()),
            translation=tuple((np.asarray(layer.translate)[kept] + (np.array(self.factors) - 1) / 2 * step).tolist()),
            unit=tuple(None if str(layer.units[axis]) == "pixel" else str(layer.units[axis]) for axis in kept),
            home=_home(layer),
        )

    def world(self) -> dict[str, Any]:
        """Where an array of the shape of this level lies, as layers are told."""
        source = self.source()
        place = [*self.kept, self.layer.ndim]
        return {
            "scale": source.scale,
            "translate": source.translation,
            "units": [self.layer.units[axis] for axis in self.kept],
            "axis_labels": [self.layer.axis_labels[axis] for axis in self.kept],
            "affine": np.asarray(self.layer.affine.affine_matrix)[np.ix_(place, place)],
        }

    def voxel(self, point: Sequence[float]) -> tuple[int, ...]:
        """The voxel of this level at a point of the world, or the nearest one."""
        fine = np.asarray(self.layer.world_to_data(point))[self.kept]
        found = np.round((fine - (np.array(self.factors) - 1) / 2) / self.factors)
        return tuple(np.clip(found, 0, np.array(self.source().shape) - 1).astype(int).tolist())

    def _words(self, level: int) -> str:
        told = self.layer.metadata.get(KEY, {})
        if "path" in told:
            return f"blockbuster.load_ome_zarr({told['path']!r}, channel={told['channel']!r}, level={level})"
        words = f"viewer.layers[{self.layer.name!r}].data" + (f"[{level}]" if self.layer.multiscale else "")
        axis = channel_axis(self.layer)
        return words if axis is None else f"{words}[{':, ' * axis}{self.channel}]"


def _factor(fine: int, coarse: int) -> float:
    """Between two levels; the last voxel of a level may stand for fewer."""
    whole = round(fine / coarse) if coarse else 1
    return float(whole) if -(-fine // max(whole, 1)) == coarse else fine / coarse


def _home(layer: Any) -> str | None:
    """The OME-Zarr that a layer lies in, if labels can be written into it."""
    path = layer.metadata.get(KEY, {}).get("path") or layer.source.path
    can_be_written = path is not None and os.path.isdir(path) and os.access(path, os.W_OK)
    return str(path) if can_be_written and _is_ome_zarr(str(path)) else None


@functools.cache
def _is_ome_zarr(path: str) -> bool:
    try:
        return blockbuster.open_image(path).version is not None
    except BlockbusterError:
        return False


# Results


def add_result(viewer: Any, picked: Picked, job: Job, result: Any) -> Any:
    """Show what a job has made."""
    world, told = picked.world(), {KEY: {"result": job.name, "of": picked.layer.name}}
    if job.operation == "blobs":
        return put(viewer, "points", result[:, : len(picked.kept)], job.name, told, **world, **_circles(picked, result))
    if job.operation == "downsample":
        return put(viewer, "image", fresh([result]), job.name, told, **_coarser(picked, result.shape, job))
    kind = "image" if job.operation == "pyramid" else "labels"
    return put(viewer, kind, fresh(result.levels), job.name, told, **world)


def add_trial(viewer: Any, picked: Picked, job: Job, trial: Trial) -> Any:
    """Show what one tile has given."""
    world, told = picked.world(), {KEY: {"result": "try here"}}
    if job.operation == "blobs":
        rows = trial.found
        return put(viewer, "points", rows[:, : len(picked.kept)], "try here", told, **world, **_circles(picked, rows))
    # The affine transform comes after scale and translation.
    world["translate"] = tuple(
        t + a * s for t, a, s in zip(world["translate"], trial.tile.start, world["scale"], strict=True)
    )
    return put(viewer, "labels", trial.found, "try here", told, **world)


def put(viewer: Any, kind: str, data: Any, name: str, metadata: dict[str, Any], **options: Any) -> Any:
    """Add a layer in the place of the one that it replaces; what was selected stays so."""
    old = [layer for layer in viewer.layers if layer.metadata.get(KEY) == metadata[KEY]]
    place = viewer.layers.index(old[0]) if old else len(viewer.layers)
    chosen = [layer for layer in viewer.layers.selection if layer not in old]
    for layer in old:
        viewer.layers.remove(layer)
    added = getattr(viewer, f"add_{kind}")(data, name=name, metadata=metadata, **options)
    if place < len(viewer.layers) - 1:
        viewer.layers.move(len(viewer.layers) - 1, place)
    if chosen:
        viewer.layers.selection = set(chosen)
    return added


def result_of(layer: Any) -> str | None:
    """What a layer of ours shows."""
    found: str | None = layer.metadata.get(KEY, {}).get("result")
    return found


def remove(viewer: Any, result: str) -> None:
    """Remove the layer of a result, if there is one."""
    for layer in [one for one in viewer.layers if result_of(one) == result]:
        viewer.layers.remove(layer)


def fresh(levels: Sequence[Any]) -> Any:
    """Lazy arrays under new names: napari keeps what it has drawn, and a result that is replaced has the same names."""
    return as_data([clone(level) for level in levels])


def as_data(levels: Sequence[Any]) -> Any:
    """Levels as a layer takes them: a single one is no pyramid."""
    return list(levels) if len(levels) > 1 else levels[0]


def _circles(picked: Picked, rows: NDArray[Any]) -> dict[str, Any]:
    n = len(picked.kept)
    sigma = rows[:, n:].mean(axis=1) if len(rows) else np.ones(0)
    looks = {"face_color": "transparent", "border_color": "yellow", "border_width": 0.1}
    return {"size": 2 * np.sqrt(n) * sigma, "ndim": n, **looks}


def _coarser(picked: Picked, shape: Sequence[int], job: Job) -> dict[str, Any]:
    world, source = picked.world(), picked.source()
    factors = np.array([_factor(fine, coarse) for fine, coarse in zip(source.shape, shape, strict=True)])
    centre = (factors - 1) / 2 if job.parameters["method"] is not None else 0 * factors
    scale = np.array(source.scale)
    return {**world, "scale": scale * factors, "translate": np.array(source.translation) + centre * scale}
