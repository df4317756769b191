"""`open_image`, `load_ome_zarr`: any stored image as lazy arrays, with what its metadata tell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import zarr

from blockbuster.errors import ImageError
from blockbuster.image_files import ImageFile, open_file
from blockbuster.ngff import ome_attributes
from blockbuster.sources import StoredImage, from_file, lazily, open_source
from blockbuster.stores import open_node

__all__ = ["OpenedImage", "load_ome_zarr", "open_image"]


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """A stored image: its levels as lazy arrays, and what is known of them.

    Attributes
    ----------
    path : str
        Absolute path or URL; of the array or group that was taken where the one given left no other choice.
    levels : tuple of dask.array.Array
        The levels of its pyramid, the finest first; one where there is none.
    axes : str or None
        One letter per axis, such as "czyx"; None where they are not known.
    scales : tuple of tuple of float
        For each level the distance of neighbouring voxels, per axis, in `unit`; 1 where it is not known.
    translations : tuple of tuple of float
        For each level where the centre of the first voxel lies, per axis, in `unit`; 0 where it is not known.
    unit : tuple of (str or None)
        Per axis, such as "micrometer"; None where it is not known.
    channel_names : tuple of str
        As far as they are known.
    name : str
        Of the image; "" where it has none.
    version : str or None
        Of OME-Zarr, such as "0.5"; None for what is none.
    labels : tuple of str
        Names of the label images within the image.
    """

    path: str
    levels: tuple[da.Array, ...]
    axes: str | None
    scales: tuple[tuple[float, ...], ...]
    translations: tuple[tuple[float, ...], ...]
    unit: tuple[str | None, ...]
    channel_names: tuple[str, ...] = ()
    name: str = ""
    version: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def data(self) -> da.Array:
        """The finest level."""
        return self.levels[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis of the finest level."""
        shape: tuple[int, ...] = self.levels[0].shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""
        dtype: np.dtype[Any] = np.dtype(self.levels[0].dtype)
        return dtype

    @property
    def scale(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels of the finest level, per axis, in `unit`."""
        return self.scales[0]

    @property
    def translation(self) -> tuple[float, ...]:
        """Where the centre of the first voxel of the finest level lies, per axis, in `unit`."""
        return self.translations[0]


def open_image(path: str | os.PathLike[str], *, channel: int | str | None = None, chunks: Any = None) -> OpenedImage:
    """Open a stored image lazily, with all its levels and what its metadata tell.

    Parameters
    ----------
    path : str or path
        Path or URL of an OME-Zarr image of any version to 0.5, of a label image within one, of a field of a plate
        (``plate.zarr/B/03/0``), of a plain zarr array, of a zarr store in a zip file, or of a TIFF. A zarr group with
        one array or image in it stands for that. URLs need the extra ``blockbuster-imaging[remote]``.
    channel : int, str or None, default None
        One channel, by number or name; the channel axis goes. None: all.
    chunks : optional
        Blocks of the lazy arrays, as dask spells them. Default: the chunks that are stored.

    Returns
    -------
    image : OpenedImage
        Its arrays read their blocks when they are computed. Given to an operation, they are read in its tasks, as the
        path would be.

    Raises
    ------
    ImageError
        If there is no image, several of them, or no such channel.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/cells.ome.zarr"
    ...     _ = blockbuster.write_image(np.zeros((40, 50), np.uint8), path, scale=0.5, unit="um", n_levels=2)
    ...     image = blockbuster.open_image(path)
    ...     print(image.axes, image.scales, image.unit, [level.shape for level in image.levels])
    yx ((0.5, 0.5), (1.0, 1.0)) ('micrometer', 'micrometer') [(40, 50), (20, 25)]
    """
    if not isinstance(path, str | os.PathLike):
        raise ImageError(f"{type(path).__name__} is no path. Give the path or URL of an image.")
    file = open_file(os.fspath(path))
    sources = [from_file(file, channel=channel, level=level) for level in range(len(file.refs))]
    keep = [axis for axis, index in enumerate(sources[0].fixed) if index is None]
    return OpenedImage(
        path=file.path,
        levels=tuple(lazily(source, chunks) for source in sources),
        axes=sources[0].axes,
        scales=tuple(tuple(level.scale[axis] for axis in keep) for level in file.form.levels),
        translations=tuple(tuple(level.translation[axis] for axis in keep) for level in file.form.levels),
        unit=tuple(file.form.units[axis] for axis in keep),
        channel_names=_channel_names(file, sources[0]),
        name=file.form.name,
        version=file.form.version if file.is_ome else None,
        labels=_labels_of(file),
    )


def load_ome_zarr(
    path: str | os.PathLike[str], channel: int | str | None = 0, level: int = 0, chunks: Any = None
) -> da.Array:
    """One channel of one level of a stored image as a lazy array.

    Parameters
    ----------
    path : str or path
        As in `open_image`.
    channel : int, str or None, default 0
        By number or name; the channel axis goes. None: all channels.
    level : int, default 0
        Of the pyramid, 0 the finest.
    chunks : optional
        As in `open_image`.

    Returns
    -------
    image : dask.array.Array
        Its blocks are read when they are computed.

    Raises
    ------
    ImageError
        If there is no such image, channel or level.

    Examples
    --------
    >>> import tempfile, numpy as np, blockbuster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/cells.ome.zarr"
    ...     _ = blockbuster.write_image(np.ones((2, 40, 50), np.uint8), path, axes="cyx", channels=["DNA", "actin"])
    ...     blockbuster.load_ome_zarr(path, channel="actin").sum().compute()
    np.uint64(2000)
    """
    return lazily(open_source(path, channel=channel, level=level), chunks)


def _channel_names(file: ImageFile, source: StoredImage) -> tuple[str, ...]:
    names = file.form.channel_names
    picked = [index for index in source.fixed if index is not None]
    return tuple(names[index] for index in picked if index < len(names)) if picked else names


def _labels_of(file: ImageFile) -> tuple[str, ...]:
    if not file.is_ome:
        return ()
    group = open_node(file.path)
    labels = group.get("labels") if isinstance(group, zarr.Group) else None
    return tuple(map(str, ome_attributes(labels).get("labels", ()))) if isinstance(labels, zarr.Group) else ()
