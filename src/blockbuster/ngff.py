"""The metadata of OME-Zarr, 0.4 and 0.5: axes, units, levels with their scales and translations, channels, labels.

https://ngff.openmicroscopy.org/0.4/ and /0.5/. In 0.4 they are attributes of a zarr group of format 2, in 0.5 they are
under "ome" in those of a group of format 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from blockbuster.encoding import ZarrFormat
from blockbuster.errors import GeometryError, ImageError, ParameterError

__all__ = [
    "Level",
    "Multiscale",
    "Version",
    "axes_for",
    "check_level",
    "check_version",
    "converted_attributes",
    "format_for",
    "holds_labels",
    "image_attributes",
    "image_node",
    "label_attributes",
    "member_names",
    "ome_attributes",
    "pick_channel",
    "read_multiscale",
    "spatial_axes",
    "unit_name",
    "version_for",
]

Version: TypeAlias = Literal["0.4", "0.5"]
Attributes: TypeAlias = dict[str, Any]

_FORMATS: dict[str, ZarrFormat] = {"0.4": 2, "0.5": 3}
_KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_ORDER = "tczyx"
_DEFAULT_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}
_PREFIXES = {
    "y": "yocto", "z": "zepto", "a": "atto", "f": "femto", "p": "pico", "n": "nano", "u": "micro", "µ": "micro",
    "μ": "micro", "m": "milli", "c": "centi", "d": "deci", "da": "deca", "h": "hecto", "k": "kilo", "M": "mega",
    "G": "giga", "T": "tera", "P": "peta", "E": "exa", "Z": "zetta", "Y": "yotta",
}  # fmt: skip
_BASES = {"m": "meter", "metre": "meter", "s": "second", "sec": "second"}
_WORDS = {
    "micron": "micrometer", "Å": "angstrom", "\u212b": "angstrom", "in": "inch", "inche": "inch", "feet": "foot",
    "ft": "foot", "yd": "yard", "mi": "mile", "msec": "millisecond", "min": "minute", "h": "hour", "d": "day",
}  # fmt: skip
_SPACE = {"angstrom", "foot", "inch", "mile", "parsec", "yard", "meter", *(f"{p}meter" for p in _PREFIXES.values())}
_TIME = {"day", "hour", "minute", "second", *(f"{p}second" for p in _PREFIXES.values())}


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes
    ----------
    path : str
        Of the array within the group of the image.
    scale : tuple of float
        Distance of neighbouring voxels, in the unit of each axis.
    translation : tuple of float
        Centre of the first voxel, in the unit of each axis.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Multiscale:
    """What the metadata of an image tell.

    Attributes
    ----------
    axes : str
        One lower-case letter per axis, "tczyx".
    units : tuple of (str or None)
        Of the scales of the axes, as UDUNITS names them: "micrometer".
    levels : tuple of Level
        The finest first.
    channels : tuple of mapping
        What "omero" keeps of each channel: label, color, window.
    path : str
        Of the group, for messages.
    component : str
        Path of the group within what was opened.
    label : mapping or None
        What "image-label" keeps, for labels.
    names : tuple of str
        Of the axes in full, where these are not their letters.
    """

    axes: str
    units: tuple[str | None, ...]
    levels: tuple[Level, ...]
    path: str = ""
    component: str = ""
    name: str = ""
    version: str = "0.5"
    channels: tuple[Mapping[str, Any], ...] = ()
    label: Mapping[str, Any] | None = None
    names: tuple[str, ...] = ()

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the axes in full."""
        return self.names or tuple(self.axes)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, as far as they are known."""
        return tuple(str(channel.get("label", "")) for channel in self.channels)

    def level(self, number: Any) -> Level:
        """One level.

        Raises
        ------
        ImageError
            If there is no such level.
        """
        check_level(number, len(self.levels), self.path)
        return self.levels[int(number)]

    def less_channel(self) -> Multiscale:
        """The same without the channel axis: the frame of labels."""
        if "c" not in self.axes:
            return self
        keep = [axis for axis, name in enumerate(self.axes) if name != "c"]
        levels = tuple(
            replace(one, scale=_picked(one.scale, keep), translation=_picked(one.translation, keep))
            for one in self.levels
        )
        axes, units = "".join(self.axes[axis] for axis in keep), _picked(self.units, keep)
        names = _picked(self.axis_names, keep)
        return replace(self, axes=axes, units=units, levels=levels, channels=(), names=names)


def _picked(values: Sequence[Any], keep: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[axis] for axis in keep)


# Reading


def check_level(level: Any, n_levels: int, path: str) -> None:
    """Refuse a level that is not there.

    Raises
    ------
    ImageError
        If `level` is not an int from 0 to below `n_levels`.
    """
    if not isinstance(level, int | np.integer) or isinstance(level, bool) or not 0 <= level < n_levels:
        raise ImageError(f"level {level!r} was asked for, but {path} has levels 0..{n_levels - 1}.")


def ome_attributes(node: zarr.Array[Any] | zarr.Group) -> Mapping[str, Any]:
    """The attributes of a node that are those of OME-Zarr, whatever the version."""
    attributes: Mapping[str, Any] = node.attrs.asdict()
    return _mapping(attributes.get("ome", attributes))


def image_node(group: zarr.Group, path: str) -> tuple[zarr.Array[Any] | zarr.Group, str]:
    """What to take for the image of a group, and its path within: an image, or the only thing that can be meant.

    Raises
    ------
    ImageError
        If several can be meant: names them.
    """
    ome = ome_attributes(group)
    if "multiscales" in ome:
        return group, ""
    if "plate" in ome:
        wells = [str(well["path"]) for well in ome["plate"].get("wells", ())]
        raise ImageError(
            f"{path} is a plate. Give the path of a field of a well, {path}/<well>/<field>: {_few(wells)}."
        )
    if "well" in ome:
        return _only(
            [str(image["path"]) for image in ome["well"].get("images", ())], group, path, "a well with the fields"
        )
    if "bioformats2raw.layout" in ome:
        return _only(_series(group), group, path, "a collection of the images")
    if ome.get("labels"):
        return _only(list(map(str, ome["labels"])), group, path, "a group of the labels")
    try:
        names = sorted(name for name, node in group.members() if _can_be_meant(node))
    except (OSError, NotImplementedError, ValueError) as error:
        raise ImageError(
            f"{path} is a zarr group without OME-Zarr metadata, and its members cannot be listed."
        ) from error
    return _only(names, group, path, "a zarr group without OME-Zarr metadata, with the arrays")


def _can_be_meant(node: zarr.Array[Any] | zarr.Group) -> bool:
    return isinstance(node, zarr.Array) or "multiscales" in ome_attributes(node)


def _series(group: zarr.Group) -> list[str]:
    listed = ome_attributes(group["OME"]).get("series") if "OME" in group else None
    if listed:
        return list(map(str, listed))
    names: list[str] = []
    while str(len(names)) in group:
        names.append(str(len(names)))
    return names


def _only(names: Sequence[str], group: zarr.Group, path: str, kind: str) -> tuple[zarr.Array[Any] | zarr.Group, str]:
    if len(names) != 1:
        raise ImageError(f"{path} is {kind} {_few(names)}. Give the path of one of them.")
    node = group.get(names[0])
    if node is None:
        raise ImageError(f"The metadata of {path} names {names[0]}, but there is no such array or group.")
    if isinstance(node, zarr.Array):
        return node, names[0]
    found, inner = image_node(node, f"{path}/{names[0]}")
    return found, f"{names[0]}/{inner}".rstrip("/")


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:12], *(["..."] if len(names) > 12 else [])]) or "none"


def read_multiscale(group: zarr.Group, path: str, component: str = "") -> Multiscale:
    """The first multiscale image of a group that has one.

    Raises
    ------
    ImageError
        If the metadata do not fit the arrays, or each other.
    """
    ome = ome_attributes(group)
    image = _first(ome["multiscales"], path)
    names = _level_paths(image, path)
    arrays = [group.get(name) for name in names]
    missing = [name for name, array in zip(names, arrays, strict=True) if not isinstance(array, zarr.Array)]
    if missing:
        raise ImageError(f"The metadata of {path} names the levels {', '.join(missing)}, but there are no such arrays.")
    shapes = [array.shape for array in arrays]  # type: ignore[union-attr]
    axes, names_in_full, units = _axes_of(image.get("axes"), len(shapes[0]), path)
    for name, shape in zip(names, shapes, strict=True):
        if len(shape) != len(axes):
            raise ImageError(f"Level {name} of {path} has {len(shape)} axes, the others {len(axes)}.")
    levels = tuple(
        _level_of(name, dataset, image, shape, shapes[0], path)
        for name, dataset, shape in zip(names, image["datasets"], shapes, strict=True)
    )
    label = ome.get("image-label")
    return Multiscale(
        axes=axes,
        units=units,
        levels=levels,
        path=path,
        component=component,
        name=str(image.get("name") or ""),
        version=str(ome.get("version") or image.get("version") or "0.4"),
        channels=tuple(one for one in _mapping(ome.get("omero")).get("channels") or () if isinstance(one, Mapping)),
        label=None if label is None else _mapping(label),
        names=names_in_full,
    )


def _first(images: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(images, Sequence) or isinstance(images, str) or not images or not isinstance(images[0], Mapping):
        raise ImageError(f"The metadata of {path} have multiscales {images!r}, which is no list of images.")
    first: Mapping[str, Any] = images[0]
    return first


def _level_paths(image: Mapping[str, Any], path: str) -> list[str]:
    datasets = image.get("datasets")
    if not isinstance(datasets, Sequence) or isinstance(datasets, str) or not datasets:
        raise ImageError(f"The metadata of {path} have datasets {datasets!r}, which is no list of levels.")
    if any(not isinstance(one, Mapping) or not isinstance(one.get("path"), str) for one in datasets):
        raise ImageError(f"The metadata of {path} have a level without a path: {datasets!r}.")
    return [one["path"] for one in datasets]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def member_names(group: zarr.Group) -> list[str]:
    """Arrays and groups within a group that its metadata name."""
    ome = ome_attributes(group)
    images = [_mapping(image) for image in ome.get("multiscales") or ()]
    names = [str(dataset["path"]) for image in images for dataset in image.get("datasets", ())]
    names += [str(name) for name in ome.get("labels") or () if str(name) in group]
    names += [str(image["path"]) for image in _mapping(ome.get("well")).get("images", ())]
    names += [str(well["path"]) for well in _mapping(ome.get("plate")).get("wells", ())]
    names += ["labels"] if images and "labels" in group else []
    if "bioformats2raw.layout" in ome:
        names += [*_series(group), *(["OME"] if "OME" in group else [])]
    return list(dict.fromkeys(names))


def holds_labels(group: zarr.Group) -> bool:
    """Whether the metadata of a group say that it is a label image."""
    return "image-label" in ome_attributes(group)


def _axes_of(axes: Any, ndim: int, path: str) -> tuple[str, tuple[str, ...], tuple[str | None, ...]]:
    """A letter for each axis, its name in full, and its unit."""
    if axes is None:
        # Versions before 0.3 name no axes: they are always these.
        return _ORDER[-ndim:], tuple(_ORDER[-ndim:]), (None,) * ndim
    listed = axes if isinstance(axes, Sequence) else ()
    named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in listed]
    if not named or any(not isinstance(axis.get("name"), str) or not axis["name"] for axis in named):
        raise ImageError(f"The metadata of {path} have the axes {axes!r}, which do not all have a name.")
    if len(named) != ndim:
        raise ImageError(f"The metadata of {path} names {len(named)} axes, but its arrays have {ndim}.")
    return _letters(named), tuple(axis["name"] for axis in named), tuple(axis.get("unit") for axis in named)


def _letters(axes: Sequence[Mapping[str, Any]]) -> str:
    """One letter per axis: by its type where that is time or channel, else by its name.

    Axes of space that are not called z, y or x, such as rows and columns, are these in their order.
    """
    letters = [{"time": "t", "channel": "c"}.get(str(axis.get("type")), axis["name"][0].lower()) for axis in axes]
    space = [place for place, axis in enumerate(axes) if axis.get("type") == "space"]
    spatial = [letters[place] for place in space]
    if len(space) <= 3 and (not set(spatial) <= set("zyx") or len(set(spatial)) < len(spatial)):
        for place, letter in zip(space, "zyx"[-len(space) :], strict=True):
            letters[place] = letter
    return "".join(letters)


def _level_of(
    name: str,
    dataset: Mapping[str, Any],
    image: Mapping[str, Any],
    shape: Sequence[int],
    finest: Sequence[int],
    path: str,
) -> Level:
    own, common = (one.get("coordinateTransformations") or () for one in (dataset, image))
    scale, translation = np.ones(len(shape)), np.zeros(len(shape))
    if not own:
        # Versions before 0.4 do not say how far apart voxels are: what can be known is how many make one.
        scale = np.array([max(round(n / max(m, 1)), 1) for n, m in zip(finest, shape, strict=True)], float)
    for transform in (*own, *common):
        kind = _mapping(transform).get("type")
        if kind == "identity":
            continue
        values = _numbers(_mapping(transform).get(str(kind)), len(shape))
        if kind not in ("scale", "translation") or values is None:
            raise ImageError(
                f"Level {name} of {path} has the transformation {transform!r}, which is no scale or translation with "
                f"one number for each of its {len(shape)} axes."
            )
        if kind == "scale":
            scale, translation = scale * values, translation * values
        else:
            translation = translation + values
    return Level(name, tuple(scale.tolist()), tuple(translation.tolist()))


def _numbers(values: Any, n: int) -> NDArray[np.float64] | None:
    """The numbers of a transformation, or None where it has not n of them."""
    if not isinstance(values, Sequence) or len(values) != n:
        return None
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
        return None
    return np.array(values, float)


def pick_channel(
    axes: str | None, names: Sequence[str], channel: int | str | None, shape: Sequence[int], path: str
) -> tuple[int | None, ...]:
    """For each axis the index to take there: that of the channel on the channel axis, None on the others.

    Raises
    ------
    ImageError
        If there is no such channel.
    """
    keep: list[int | None] = [None] * len(shape)
    if channel is None:
        return tuple(keep)
    if axes is None or "c" not in axes:
        if isinstance(channel, bool) or channel not in (0, *names[:1]):
            raise ImageError(f"channel {channel!r} was asked for, but {path} has no channel axis (axes {axes}).")
        return tuple(keep)
    axis = axes.index("c")
    number = _channel_number(channel, names, shape[axis], path)
    keep[axis] = number
    return tuple(keep)


def _channel_number(channel: int | str, names: Sequence[str], n: int, path: str) -> int:
    if isinstance(channel, str):
        if channel not in names:
            raise ImageError(f"channel {channel!r} was asked for, but {path} has channels {list(names)}.")
        return list(names).index(channel)
    if isinstance(channel, bool) or not hasattr(channel, "__index__") or not 0 <= channel < n:
        raise ImageError(f"channel {channel!r} was asked for, but {path} has channels 0..{n - 1} {list(names)}.")
    return int(channel)


def spatial_axes(axes: str | None, ndim: int) -> tuple[int, ...]:
    """Positions of the axes that are neither time nor channel: all where the axes are not known.

    Examples
    --------
    >>> spatial_axes("tczyx", 5), spatial_axes(None, 2)
    ((2, 3, 4), (0, 1))
    """
    return tuple(axis for axis in range(ndim) if axes is None or axes[axis] not in "tcs")


# Writing


def check_version(version: Any) -> Version:
    """A version of OME-Zarr that can be written.

    Raises
    ------
    ParameterError
        If it is none of "0.4" and "0.5".
    """
    if str(version) not in _FORMATS:
        raise ParameterError(f"version {version!r} of OME-Zarr cannot be written. Choose '0.4' or '0.5'.")
    made: Version = str(version)  # type: ignore[assignment]
    return made


def format_for(version: str) -> ZarrFormat:
    """The zarr format that a version of OME-Zarr is stored in."""
    return _FORMATS[version]


def version_for(zarr_format: ZarrFormat) -> Version:
    """The version of OME-Zarr that is stored in a zarr format."""
    return "0.4" if zarr_format == 2 else "0.5"


def axes_for(axes: Any, ndim: int) -> str:
    """Names of the axes of an image to write; by their number where they are not given.

    Raises
    ------
    GeometryError
        If they are not as many as those of the image, or not in the order of OME-Zarr.

    Examples
    --------
    >>> axes_for(None, 3), axes_for("CYX", 3)
    ('zyx', 'cyx')
    """
    if axes is None:
        if ndim not in _DEFAULT_AXES:
            raise GeometryError(f"An OME-Zarr image has 2 to 5 axes; this one has {ndim}.")
        return _DEFAULT_AXES[ndim]
    listed = [axes] if not isinstance(axes, Iterable) else list(axes)
    named = "".join(map(str, listed)).lower()
    if len(named) != ndim:
        raise GeometryError(f"axes {named!r} are {len(named)}, the image has {ndim}. Give one letter per axis.")
    places = [_ORDER.find(name) for name in named]
    if -1 in places or sorted(set(places)) != places or not named.endswith("yx"):
        raise GeometryError(
            f"axes {named!r} are not those of OME-Zarr: some of {_ORDER!r}, in this order, with 'yx'. Transpose the "
            "image, or name its axes by axes=."
        )
    return named


def unit_name(unit: str | None, axis: str) -> str | None:
    """A unit as OME-Zarr spells it.

    Raises
    ------
    ParameterError
        If it is no unit of length on an axis of space, or of time on that of time.

    Examples
    --------
    >>> unit_name("um", "x"), unit_name("µm", "y"), unit_name("nanometer", "z"), unit_name("ms", "t")
    ('micrometer', 'micrometer', 'nanometer', 'millisecond')
    """
    if unit is None or not str(unit).strip() or axis == "c":
        return None
    word = _long_unit(str(unit).strip())
    known = _TIME if axis == "t" else _SPACE
    if word not in known:
        kind = "time, such as 's'" if axis == "t" else "length, such as 'um', 'nm' or 'millimeter'"
        raise ParameterError(f"unit {unit!r} of axis {axis!r} is no unit of {kind}.")
    return word


def _long_unit(unit: str) -> str:
    if unit in _WORDS:
        return _WORDS[unit]
    if unit in _BASES:
        return _BASES[unit]
    if unit[-1] in _BASES and unit[:-1] in _PREFIXES:
        return _PREFIXES[unit[:-1]] + _BASES[unit[-1]]
    plain = unit.lower().replace("metre", "meter").removesuffix("s")
    return _WORDS.get(plain, plain)


def image_attributes(image: Multiscale, *, kind: str | None = None) -> Attributes:
    """The attributes of the group of an image, in the words of its version.

    Parameters
    ----------
    kind : str, optional
        How the levels were made.
    """
    described = zip(image.axes, image.axis_names, image.units, strict=True)
    axes = [_axis_words(letter, name, unit) for letter, name, unit in described]
    entry: Attributes = {"axes": axes, "datasets": [_level_words(level) for level in image.levels]}
    if image.name:
        entry["name"] = image.name
    if kind is not None:
        entry["type"] = kind
    ome: Attributes = {"multiscales": [entry]}
    if image.channels:
        ome["omero"] = {"channels": [dict(channel) for channel in image.channels]}
    if image.label is not None:
        ome["image-label"] = dict(image.label)
    return _versioned(ome, image.version)


def _axis_words(letter: str, name: str, unit: str | None) -> Attributes:
    words: Attributes = {"name": name, "type": _KINDS.get(letter, "space")}
    return {**words, "unit": unit} if unit is not None else words


def _level_words(level: Level) -> Attributes:
    transforms: list[Attributes] = [{"type": "scale", "scale": list(level.scale)}]
    if any(level.translation):
        transforms.append({"type": "translation", "translation": list(level.translation)})
    return {"path": level.path, "coordinateTransformations": transforms}


def label_attributes(names: Sequence[str], version: str) -> Attributes:
    """The attributes of the group "labels" of an image."""
    return _versioned({"labels": list(names)}, version)


def _versioned(ome: Attributes, version: str) -> Attributes:
    if version != "0.4":
        versioned = {key: {**ome[key], "version": version} for key in ("image-label", "plate", "well") if key in ome}
        return {"ome": {"version": version, **ome, **versioned}}
    made = dict(ome)
    for key in ("multiscales",):
        if key in made:
            made[key] = [{**entry, "version": version} for entry in made[key]]
    for key in ("omero", "image-label", "plate", "well"):
        if key in made:
            made[key] = {**made[key], "version": version}
    return made


def converted_attributes(attributes: Mapping[str, Any], version: Version, name: str) -> Attributes:
    """The attributes of any group in the words of another version of OME-Zarr; those that are not of it as they are.

    Parameters
    ----------
    name : str
        Path of the group, which tells whether "labels" and "series" are words of OME-Zarr.
    """
    inner = attributes.get("ome")
    source = inner if isinstance(inner, Mapping) else attributes
    ome = {key: value for key, value in source.items() if _is_ome(key, value, name)}
    others = {key: value for key, value in attributes.items() if key not in ome and not (key == "ome" and ome)}
    if not ome:
        return others
    for key in ("omero", "plate", "well"):
        if key in ome:
            ome[key] = {k: v for k, v in ome[key].items() if k != "version"}
    if "multiscales" in ome:
        ome["multiscales"] = [{k: v for k, v in _mapping(one).items() if k != "version"} for one in ome["multiscales"]]
    return {**others, **_versioned(ome, version)}


def _is_ome(key: str, value: Any, name: str) -> bool:
    """Whether an attribute of the group `name` is one of OME-Zarr."""
    if key in ("omero", "image-label", "plate", "well"):
        return isinstance(value, Mapping)
    if key == "multiscales":
        return isinstance(value, list)
    if key == "labels":
        return _are_names(value) and (name == "" or name.endswith("labels"))
    if key == "series":
        return _are_names(value) and name.endswith("OME")
    return key == "bioformats2raw.layout"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
