"""The metadata of OME-Zarr, 0.4 and 0.5: axes, channels, levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zarr

from blockbuster.errors import ImageError

__all__ = ["Multiscale", "check_level", "holds_labels", "pick_channel", "read_multiscale", "spatial_axes"]


@dataclass(frozen=True)
class Multiscale:
    """What the metadata of an image tells.

    Attributes
    ----------
    axes : str
        One lower-case letter per axis, "tczyx".
    components : tuple of str
        Path of each level within the group, the finest first.
    channels : tuple of str
        Names of the channels, as far as they are known.
    """

    axes: str
    components: tuple[str, ...]
    channels: tuple[str, ...]
    path: str

    def component(self, level: int) -> str:
        """Path of one level.

        Raises
        ------
        ImageError
            If there is no such level.
        """
        check_level(level, len(self.components), self.path)
        return self.components[level]


def check_level(level: Any, n_levels: int, path: str) -> None:
    """Refuse a level that is not there.

    Raises
    ------
    ImageError
        If `level` is not an int from 0 to below `n_levels`.
    """
    if not hasattr(level, "__index__") or isinstance(level, bool) or not 0 <= level < n_levels:
        raise ImageError(f"level {level!r} was asked for, but {path} has levels 0..{n_levels - 1}.")


def read_multiscale(group: zarr.Group, path: str) -> Multiscale:
    """The first multiscale image of a group.

    Raises
    ------
    ImageError
        If the group has none.
    """
    attributes: Mapping[str, Any] = group.attrs.asdict()
    ome: Mapping[str, Any] = attributes.get("ome", attributes)
    if not ome.get("multiscales"):
        arrays = ", ".join(sorted(name for name, _ in group.arrays())) or "none"
        raise ImageError(
            f"{path} is a zarr group without OME-Zarr metadata. Give the path of one of its arrays: {arrays}."
        )
    multiscale = ome["multiscales"][0]
    components = tuple(str(dataset["path"]) for dataset in multiscale["datasets"])
    missing = [name for name in components if not isinstance(group.get(name), zarr.Array)]
    if missing:
        raise ImageError(f"The metadata of {path} names the levels {', '.join(missing)}, but there are no such arrays.")
    axes = _axis_names(multiscale.get("axes"), len(group[components[0]].shape))  # type: ignore[union-attr]
    channels = tuple(str(c.get("label", "")) for c in ome.get("omero", {}).get("channels", []))
    return Multiscale(axes, components, channels, path)


def holds_labels(group: zarr.Group) -> bool:
    """Whether the metadata of a group say that it is a label image."""
    attributes: Mapping[str, Any] = group.attrs.asdict()
    return "image-label" in attributes.get("ome", attributes)


def _axis_names(axes: Sequence[Any] | None, ndim: int) -> str:
    if axes is None:
        # Versions before 0.3 name no axes: they are always these.
        return "tczyx"[-ndim:]
    return "".join((axis["name"] if isinstance(axis, Mapping) else axis)[0].lower() for axis in axes)


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
        if channel not in (0, *names[:1]):
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
