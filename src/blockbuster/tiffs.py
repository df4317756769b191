"""TIFFs: read tile by tile or strip by strip, with what their metadata tell of axes and calibration."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import uuid
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr

from blockbuster.errors import ImageError
from blockbuster.stores import FileState, Readable, file_state

__all__ = ["TiffForm", "TiffRef", "is_tiff", "read_tiff_form"]

# Centimetres and inches, as tags of TIFF give resolution, in micrometres.
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}


@dataclass(frozen=True)
class TiffRef:
    """One level of the first series of a TIFF, read tile by tile or strip by strip."""

    path: str
    level: int = 0
    opening: str = field(default_factory=lambda: uuid.uuid4().hex)

    def open(self) -> Readable:
        """The array."""
        return _opened_tiff(self)

    @property
    def home(self) -> Path | None:
        """Where it lies."""
        return Path(self.path)

    def describe(self) -> str:
        """What it is called in messages and manifests."""
        return f"{self.path} level {self.level}"

    def file_states(self) -> list[FileState]:
        """Name, size and time of change of the file."""
        return [file_state(Path(self.path))]


@dataclass(frozen=True)
class TiffForm:
    """What a TIFF tells of its first series.

    Attributes
    ----------
    axes : str
        In lower case; the samples of a pixel, as of RGB, are channels.
    n_levels : int
        Levels of its pyramid.
    scale : dict of float
        Distance of voxels by axis, where that is known.
    units : dict of str
        Unit of `scale` by axis, in the words of the file.
    channels : tuple of str
        Names of the channels, as far as they are known.
    """

    axes: str
    n_levels: int
    scale: dict[str, float]
    units: dict[str, str]
    channels: tuple[str, ...]


def is_tiff(path: str) -> bool:
    """Whether a path is that of a TIFF, by its name."""
    return path.lower().endswith((".tif", ".tiff"))


def read_tiff_form(path: str) -> TiffForm:
    """What a TIFF tells of its first series.

    Raises
    ------
    ImageError
        If it is no TIFF, or not there.
    """
    import tifffile

    with _reading(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = series.axes.lower()
        scale, units, channels = _calibration(file)
        named = axes.replace("s", "c") if "c" not in axes else axes
        return TiffForm(named, len(series.levels), scale, units, channels)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Say which TIFF it is that cannot be read: there are as many errors as ways to be damaged."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"There is nothing at {path}. Give the path of a zarr store or of a TIFF.") from error
    except Exception as error:
        raise ImageError(f"{path} cannot be read as a TIFF: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=16)
def _opened_tiff(ref: TiffRef) -> Readable:
    import tifffile

    with _reading(ref.path):
        store = tifffile.imread(ref.path, aszarr=True, level=ref.level)
        array = zarr.open_array(store, mode="r")
    weakref.finalize(array, store.close)
    return array


Calibration = tuple[dict[str, float], dict[str, str], tuple[str, ...]]


def _calibration(file: Any) -> Calibration:
    if file.is_ome and file.ome_metadata:
        return _from_ome(file.ome_metadata)
    if file.is_imagej and file.imagej_metadata:
        return _from_imagej(file, file.imagej_metadata)
    return {}, {}, ()


def _from_ome(text: str) -> Calibration:
    """The first image of OME-XML, http://www.openmicroscopy.org/Schemas/OME/2016-06: in micrometres by default."""
    try:
        pixels = next((e for e in ET.fromstring(text).iter() if e.tag.endswith("}Pixels")), None)
    except ET.ParseError:
        pixels = None
    if pixels is None:
        return {}, {}, ()
    scale, units = {}, {}
    for axis, name, unit in (
        ("z", "PhysicalSizeZ", "µm"),
        ("y", "PhysicalSizeY", "µm"),
        ("x", "PhysicalSizeX", "µm"),
        ("t", "TimeIncrement", "s"),
    ):
        distance = _distance(pixels.attrib.get(name))
        if distance is not None:
            scale[axis] = distance
            units[axis] = pixels.attrib.get(f"{name}Unit", unit)
    channels = [e.attrib.get("Name", "") for e in pixels if e.tag.endswith("}Channel")]
    return scale, units, tuple(channels) if any(channels) else ()


def _from_imagej(file: Any, metadata: Mapping[str, Any]) -> Calibration:
    """ImageJ keeps x and y in the tags of resolution, voxels per unit, and z and t in its own words."""
    # ImageJ writes letters that are no ASCII as escapes.
    unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), str(metadata.get("unit", "")))
    tags = file.pages[0].tags
    scale: dict[str, float] = {}
    factor = 1.0
    if unit in ("", "pixel", "inch") and "ResolutionUnit" in tags:
        factor, unit = _RESOLUTION_UNITS.get(int(tags["ResolutionUnit"].value), 0.0), "µm"
    for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
        above, below = tags[tag].value if tag in tags else (0, 0)
        distance = _distance(factor * below / above if above else None)
        if distance is not None:
            scale[axis] = distance
    spacing, interval = _distance(metadata.get("spacing")), _distance(metadata.get("finterval"))
    if spacing is not None and scale:
        scale["z"] = spacing
    units = dict.fromkeys(scale, unit)
    if interval is not None:
        scale["t"], units["t"] = interval, "s"
    return scale, units, ()


def _distance(value: Any) -> float | None:
    """A distance between voxels; None for what is none."""
    try:
        made = float(value)
    except (TypeError, ValueError):
        return None
    return made if math.isfinite(made) and made > 0 else None
