"""Where an image to write lies, and what is kept of it: from what is given, and from what is known."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np

from blockbuster.errors import GeometryError, ParameterError
from blockbuster.image_files import open_file
from blockbuster.ngff import Level, Multiscale, unit_name
from blockbuster.sources import GraphImage, Image, from_file, lazily, open_source

__all__ = [
    "describe_channels",
    "describe_labels",
    "factors_between",
    "from_level",
    "in_order",
    "make_frame",
    "read_frame",
]

_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FF0000", "0000FF", "FFFF00")


def read_frame(image: Any, channel: int | str | None, level: int) -> tuple[Image, Multiscale | None]:
    """The image, and what its metadata tell of the level that is taken."""
    if not isinstance(image, str | os.PathLike):
        source = open_source(image)
        return source, _named(source)
    file = open_file(os.fspath(image))
    stored = from_file(file, channel=channel, level=level)
    form = from_level(file.form, level)
    if any(index is not None for index in stored.fixed):
        picked = next(index for index in stored.fixed if index is not None)
        form = replace(form.less_channel(), channels=form.channels[picked : picked + 1])
    return stored, form if form.axes else None


def _named(source: Image) -> Multiscale | None:
    """What an array tells: the names of its axes."""
    if source.axes is None:
        return None
    n = len(source.shape)
    return Multiscale(source.axes, (None,) * n, (Level("", (1.0,) * n, (0.0,) * n),))


def from_level(form: Multiscale, level: int) -> Multiscale:
    """The image without its levels before one of them."""
    return replace(form, levels=form.levels[level:])


def in_order(source: Image, known: Multiscale | None, axes: Any) -> tuple[Image, Multiscale | None]:
    """An image whose own axes are known, with these in the order of OME-Zarr."""
    if known is None or axes is not None or not set(known.axes) <= set("tczyx"):
        return source, known
    order = sorted(range(len(known.axes)), key=lambda axis: "tczyx".index(known.axes[axis]))
    if order == list(range(len(order))):
        return source, known
    levels = tuple(
        replace(one, scale=tuple(one.scale[a] for a in order), translation=tuple(one.translation[a] for a in order))
        for one in known.levels
    )
    moved = replace(
        known,
        axes="".join(known.axes[a] for a in order),
        names=tuple(known.axis_names[a] for a in order),
        units=tuple(known.units[a] for a in order),
        levels=levels,
    )
    transposed: da.Array = lazily(source).transpose(order)
    return GraphImage(transposed, moved.axes), moved


def make_frame(known: Multiscale | None, axes: str, scale: Any, translation: Any, unit: Any) -> Multiscale:
    """Axes, units and place of the finest level: what is given, else what is known."""
    base, units = _by_name(known, axes)
    steps = _numbers("scale", scale, axes, base.scale)
    if any(step <= 0 for step in steps):
        raise GeometryError(f"scale {steps} has an entry that is not above 0.")
    first = Level("", steps, _numbers("translation", translation, axes, base.translation))
    made = Multiscale(axes, _units(unit, axes, units), (first,))
    if known is not None:
        called = dict(zip(known.axes, known.axis_names, strict=True))
        made = replace(made, names=tuple(called.get(letter, letter) for letter in axes))
    return made if known is None else replace(made, name=known.name, channels=known.channels)


def _by_name(known: Multiscale | None, axes: str) -> tuple[Level, list[str | None]]:
    """What is known of each axis, by its name."""
    places = [known.axes.find(name) if known is not None else -1 for name in axes]
    first = known.levels[0] if known is not None else Level("", (), ())
    units = known.units if known is not None else ()
    return (
        Level(
            "",
            tuple(first.scale[place] if place >= 0 else 1.0 for place in places),
            tuple(first.translation[place] if place >= 0 else 0.0 for place in places),
        ),
        [units[place] if place >= 0 else None for place in places],
    )


def _numbers(what: str, value: Any, axes: str, known: Sequence[float]) -> tuple[float, ...]:
    """One number per axis: given for all spatial axes, per axis, or known."""
    if value is None:
        return tuple(known)
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        numbers = np.full(1, np.nan)
    given = numbers.astype(float).tolist()
    if numbers.ndim == 0:
        given = [given if name in "zyx" else own for name, own in zip(axes, known, strict=True)]
    if numbers.ndim > 1 or len(given) != len(axes) or not np.all(np.isfinite(given)):
        raise GeometryError(f"{what} {value!r} is not one finite number for each of the axes {axes!r}.")
    return tuple(given)


def _units(unit: Any, axes: str, known: Sequence[str | None]) -> tuple[str | None, ...]:
    if unit is None:
        return tuple(known)
    single = isinstance(unit, str) or not isinstance(unit, Sequence)
    given = [unit if name in "zyx" else own for name, own in zip(axes, known, strict=True)] if single else list(unit)
    if len(given) != len(axes):
        raise GeometryError(f"unit {unit!r} has {len(given)} entries for the axes {axes!r}. Give one, or one per axis.")
    return tuple(unit_name(one, name) for one, name in zip(given, axes, strict=True))


def describe_channels(channels: Any, form: Multiscale, source: Image) -> tuple[Mapping[str, Any], ...]:
    """What is kept of each channel: a name, and a colour where there are several."""
    n = source.shape[form.axes.index("c")] if "c" in form.axes else 1
    if channels is None and len(form.channels) != n:
        return ()
    given = [{"label": one} if isinstance(one, str) else _plain(dict(one)) for one in channels or form.channels]
    if len(given) != n:
        raise GeometryError(f"channels {[one.get('label') for one in given]} are {len(given)}, the image has {n}.")
    colours = ("FFFFFF",) if n == 1 else _COLOURS
    return tuple(
        {"label": f"channel {k}", "color": colours[k % len(colours)], "active": True, **one}
        for k, one in enumerate(given)
    )


def factors_between(known: Multiscale | None, begin: int, n_levels: int | None) -> Any:
    """The factors between the levels of an image from one on, the last of them again for more levels than it has.

    2 where they are not all whole numbers.
    """
    if known is None or len(known.levels) < 2:
        return 2
    steps = []
    for fine, coarse in itertools.pairwise(known.levels):
        ratios = [b / a for a, b in zip(fine.scale, coarse.scale, strict=True)]
        if any(abs(ratio - round(ratio)) > 1e-3 or round(ratio) < 1 for ratio in ratios):
            return 2
        steps.append(tuple(map(round, ratios)))
    wanted = steps[begin:] if n_levels is None else [*steps[begin:], *[steps[-1]] * n_levels][: max(n_levels - 1, 0)]
    return wanted or 2


def describe_labels(colors: Any, properties: Any, *, has_image: bool) -> dict[str, Any]:
    """What "image-label" keeps: the image of the labels, their colours and properties."""
    words: dict[str, Any] = {"source": {"image": "../../"}} if has_image else {}
    if colors is not None and not isinstance(colors, Mapping):
        raise ParameterError(f"colors {colors!r} are no mapping of labels to (red, green, blue).")
    if colors is not None:
        words["colors"] = [_colour(value, rgba) for value, rgba in colors.items()]
    if properties is not None:
        words["properties"] = [_plain(dict(one)) for one in properties]
        if any("label-value" not in one for one in words["properties"]):
            raise ParameterError("Each of properties needs the key 'label-value', the label that it is about.")
    return words


def _plain(words: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of some metadata: numbers of numpy become plain ones.

    Raises
    ------
    ParameterError
        If there is something that it cannot hold.
    """
    try:
        made: dict[str, Any] = json.loads(json.dumps(words, default=_item))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{words!r} cannot be kept as metadata: {error}") from error
    return made


def _item(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} is no plain value")


def _colour(value: Any, rgba: Any) -> dict[str, Any]:
    parts = list(rgba) if isinstance(rgba, Iterable) and not isinstance(rgba, str) else []
    good = all(hasattr(part, "__index__") and 0 <= part <= 255 for part in parts)
    if len(parts) not in (3, 4) or not good or not hasattr(value, "__index__"):
        raise ParameterError(f"The color {rgba!r} of label {value!r} is not three or four ints from 0 to 255.")
    return {"label-value": int(value), "rgba": [*map(int, parts), 255][:4]}
