"""What the path or URL of an image leads to: its levels, and what is known of their axes and places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zarr

from blockbuster.errors import ParameterError
from blockbuster.ngff import Level, Multiscale, check_level, image_node, read_multiscale, unit_name
from blockbuster.stores import ArrayRef, Readable, StoreRef, absolute_path, open_node, reading
from blockbuster.tiffs import TiffForm, TiffRef, is_tiff, read_tiff_form

__all__ = ["ImageFile", "dimension_names", "open_file"]


@dataclass(frozen=True)
class ImageFile:
    """A stored image.

    Attributes
    ----------
    path : str
        Absolute path or URL, for messages.
    refs : tuple of ArrayRef
        Its levels, the finest first.
    form : Multiscale
        What its metadata tell; with axes "" where these are not known.
    is_ome : bool
        Whether these are the metadata of OME-Zarr.
    """

    path: str
    refs: tuple[ArrayRef, ...]
    form: Multiscale
    is_ome: bool = False

    @property
    def axes(self) -> str | None:
        """Names of the axes, where they are known."""
        return self.form.axes or None

    def array(self, level: Any) -> Readable:
        """One level.

        Raises
        ------
        ImageError
            If there is no such level.
        """
        check_level(level, len(self.refs), self.path)
        return self.refs[int(level)].open()


def open_file(path: str) -> ImageFile:
    """The image at a path or URL.

    Raises
    ------
    ImageError
        If there is none, or several.
    """
    path = absolute_path(path)
    with reading(path):
        return _open_tiff(path) if is_tiff(path) else _open_zarr(path)


def _open_zarr(path: str) -> ImageFile:
    node, component = open_node(path), ""
    if isinstance(node, zarr.Group):
        node, component = image_node(node, path)
    if isinstance(node, zarr.Array):
        inner = f"{path}/{component}".rstrip("/")
        return ImageFile(inner, (StoreRef(path, component),), _plain(node, inner, component))
    inner = f"{path}/{component}".rstrip("/")
    form = read_multiscale(node, inner, component)
    refs = tuple(StoreRef(path, f"{component}/{level.path}".strip("/")) for level in form.levels)
    return ImageFile(inner, refs, form, is_ome=True)


def _plain(array: zarr.Array[Any], path: str, component: str) -> Multiscale:
    """What an array tells that is no level of an image: at most the names of its axes."""
    axes = dimension_names(array)
    level = Level("", (1.0,) * array.ndim, (0.0,) * array.ndim)
    return Multiscale(axes or "", (None,) * array.ndim, (level,), path=path, component=component)


def dimension_names(array: zarr.Array[Any]) -> str | None:
    """The names of the axes of an array of zarr format 3, where they are one letter each."""
    names = getattr(array.metadata, "dimension_names", None)
    if not names or not all(isinstance(n, str) and len(n) == 1 for n in names) or len(set(names)) < len(names):
        return None
    return "".join(names).lower()


def _open_tiff(path: str) -> ImageFile:
    form = read_tiff_form(path)
    refs = tuple(TiffRef(path, level) for level in range(form.n_levels))
    finest = refs[0].open().shape
    levels = tuple(_tiff_level(form, finest, ref.open().shape) for ref in refs)
    units = tuple(_known_unit(form, axis) for axis in form.axes)
    channels = tuple({"label": name} for name in form.channels)
    return ImageFile(path, refs, Multiscale(form.axes, units, levels, path=path, channels=channels))


def _tiff_level(form: TiffForm, finest: tuple[int, ...], shape: tuple[int, ...]) -> Level:
    factors = [max(round(n / max(m, 1)), 1) for n, m in zip(finest, shape, strict=True)]
    steps = [form.scale.get(axis, 1.0) for axis in form.axes]
    return Level(
        "",
        tuple(step * f for step, f in zip(steps, factors, strict=True)),
        tuple(step * (f - 1) / 2 for step, f in zip(steps, factors, strict=True)),
    )


def _known_unit(form: TiffForm, axis: str) -> str | None:
    """The unit of an axis; None where the file names one that is no unit."""
    try:
        return unit_name(form.units.get(axis), axis)
    except ParameterError:
        return None
