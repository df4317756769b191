"""Zarr stores as layers of napari: lazily, with all levels, where their metadata place them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import blockbuster
from blockbuster.errors import BlockbusterError
from blockbuster.napari.layers import KEY, as_data

__all__ = ["get_reader", "read", "read_labels"]

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]

_COLOURS = ("cyan", "magenta", "yellow", "green", "red", "blue")


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[LayerData]] | None:
    """What reads a path; None for what is no image.

    Parameters
    ----------
    path : str
        As napari has it; of several, that are to become one layer, none is read.
    """
    if not isinstance(path, str):
        return None
    try:
        blockbuster.open_image(path)
    except BlockbusterError:
        return None
    return read


def read(path: str) -> list[LayerData]:
    """The layers of an image: one for each channel, and its labels.

    Raises
    ------
    ImageError
        If there is no image.
    """
    image = blockbuster.open_image(path)
    n_channels = image.shape[image.axes.index("c")] if image.axes and "c" in image.axes else None
    name = image.name or Path(image.path).name.split(".")[0]
    if n_channels is None:
        layers = [_layer(image, "image", name)]
    else:
        layers = [_channel(path, channel, name, n_channels) for channel in range(n_channels)]
    return [*layers, *(read_labels(f"{image.path}/labels/{one}") for one in image.labels)]


def read_labels(path: str) -> LayerData:
    """The layer of a label image.

    Raises
    ------
    ImageError
        If there is none.
    """
    return _layer(blockbuster.open_image(path), "labels", Path(path).name)


def _channel(path: str, channel: int, name: str, n_channels: int) -> LayerData:
    image = blockbuster.open_image(path, channel=channel)
    words = image.channel_names[0] if image.channel_names else f"channel {channel}"
    looks = {"colormap": _COLOURS[channel % len(_COLOURS)], "blending": "additive"} if n_channels > 1 else {}
    return _layer(image, "image", f"{name} {words}", channel, **looks)


def _layer(image: blockbuster.OpenedImage, kind: str, name: str, channel: int | None = None, **looks: Any) -> LayerData:
    place = {
        "scale": image.scale,
        "translate": image.translation,
        "units": [unit or "pixel" for unit in image.unit],
        **({"axis_labels": tuple(image.axes)} if image.axes else {}),
    }
    told = {KEY: {"path": image.path, "channel": channel}}
    options = {"name": name, "multiscale": len(image.levels) > 1, "metadata": told, **place, **looks}
    return as_data(image.levels), options, kind
