"""`label`: connected components of an array of any size."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from blockbuster.components import block_components
from blockbuster.destination import Destination
from blockbuster.errors import GeometryError, ParameterError
from blockbuster.ngff import spatial_axes
from blockbuster.numbering import first_voxels
from blockbuster.progress import Progress
from blockbuster.reporting import reporter
from blockbuster.rules import Touching, resolve_merge
from blockbuster.run import Plan, check_dtype, execute
from blockbuster.sources import Image, open_source
from blockbuster.steps import TileLabels
from blockbuster.tiling import TileShape, check_block_ids, make_grid

__all__ = ["label"]


@dataclass(frozen=True)
class Components:
    """Connected components of a tile as a kernel."""

    threshold: float | None
    connectivity: int
    by_value: bool
    axes: tuple[int, ...]

    def __call__(self, block: NDArray[Any], mask: NDArray[Any] | None) -> TileLabels:
        """Components of the foreground, or of equal values."""
        if self.threshold is None and not block.any():
            return TileLabels(np.zeros(block.shape, np.uint8), 0, block.reshape(-1)[:0])
        kept = block if self.by_value else self._foreground(block)
        if mask is not None:
            kept = np.where(mask, kept, kept.dtype.type(0))
        labels, n = block_components(kept, connectivity=self.connectivity, axes=self.axes)
        if not self.by_value:
            return TileLabels(labels, n)
        begins = first_voxels(labels, (0,) * labels.ndim, labels.shape) if n else np.empty(0, np.int64)
        return TileLabels(labels, n, kept.reshape(-1)[begins])

    def _foreground(self, block: NDArray[Any]) -> NDArray[np.bool_]:
        foreground: NDArray[np.bool_]
        if self.threshold is not None:
            foreground = block > _comparable(self.threshold, block.dtype)
        elif block.dtype.kind in "fc":
            foreground = (block != 0) & ~np.isnan(block)
        else:
            foreground = block != 0
        return foreground


def _comparable(threshold: float, dtype: np.dtype[Any]) -> float:
    """A threshold with the same voxels above it: an int for ints, which compare faster, where that is exact."""
    if dtype.kind in "iu" and dtype.itemsize <= 4 and math.isfinite(threshold):
        return math.floor(threshold)
    return threshold


def label(
    image: Any,
    *,
    threshold: float | None = None,
    connectivity: int = 1,
    mask: Any = None,
    by_value: bool = False,
    tile_shape: TileShape = None,
    numbering: Literal["raster", "tile"] = "raster",
    channel: int | str | None = 0,
    level: int = 0,
    write_to: str | os.PathLike[str] | None = None,
    output_component: str = "labels",
    compute: bool = False,
    progress: Progress = False,
    stage_dir: str | os.PathLike[str] | None = None,
    keep_stage: bool = False,
    verbose: bool = False,
    dtype: DTypeLike = "int32",
    block_ids: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: bool | str | os.PathLike[str] = False,
) -> Any:
    """Label connected components: the same ids as ``scipy.ndimage.label`` gives for the whole array.

    Parameters
    ----------
    image : dask.array.Array, numpy.ndarray, zarr.Array, str or path
        As in `tile_process`; of any numeric dtype, with any number of axes.
    threshold : float, optional
        Voxels above it are foreground. Default: voxels other than 0. NaN is background.
    connectivity : int, default 1
        How many axes a step to a neighbour may change: 1 for faces, up to the number of axes for corners.
    mask : array_like or path, optional
        Of the shape of `image`; outside of it, where it is 0, everything is background.
    by_value : bool, default False
        `image` holds labels: join neighbours of equal value only, as ``skimage.measure.label`` does. (On arrays with
        axes of one voxel that one may number differently; the objects are the same.)
    tile_shape : None, int, tuple of int, "auto" or callable
        As in `tile_process`. The result does not depend on it.
    numbering : {"raster", "tile"}, default "raster"
        "raster": 1..N by the first voxel of each object in C order, as scipy numbers; costs 8 bytes per label of a
        tile. "tile": 1..N in the order of tiles; memory grows with the area of the tile borders only.
    channel, level, write_to, output_component, compute, progress, stage_dir, keep_stage, verbose
        As in `tile_process`.
    dtype : dtype, default "int32"
        Of the labels, an integer type.
    block_ids, resume, overwrite, report
        As in `tile_process`.

    Returns
    -------
    labels : dask.array.Array or numpy.ndarray of `dtype`, shape of `image`
        As in `tile_process`. Where the store names its axes, objects do not go on over time and
        channel; otherwise over all axes.

    Raises
    ------
    ParameterError
        If options do not go together, or `connectivity` is not within 1..ndim.
    LabelOverflowError
        If there are more objects than `dtype` can number; nothing final is written then.

    Examples
    --------
    >>> import numpy as np, blockbuster
    >>> image = np.eye(4, dtype=np.uint8)
    >>> blockbuster.label(image, connectivity=2, tile_shape=(2, 2)).compute()
    array([[1, 0, 0, 0],
           [0, 1, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 0, 1]], dtype=int32)
    """
    source = open_source(image, channel=channel, level=level)
    inside = None if mask is None else open_source(mask, level=level, plain_level=True)
    grid = make_grid(source, tile_shape, 0)
    _check_options(source, inside, threshold, by_value, numbering)
    axes = spatial_axes(source.axes, grid.ndim)
    plan = Plan(
        operation="label",
        image=source,
        mask=inside,
        grid=grid,
        kernel=Components(threshold, connectivity, by_value, axes),
        rules=resolve_merge(Touching(connectivity), overlap=grid.overlap, axes=axes),
        numbering="raster" if numbering == "raster" else "sequential",
        dtype=check_dtype(dtype),
        block_ids=check_block_ids(block_ids, grid),
        function="connected components",
        parameters={"threshold": repr(threshold), "by_value": repr(by_value)},
    )
    to = Destination(
        write_to=write_to,
        output_component=output_component,
        compute=compute,
        progress=progress,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        resume=resume,
        overwrite=overwrite,
        verbose=verbose,
        report=reporter(report, write_to, output_component),
    )
    return execute(plan, to).labels


def _check_options(source: Image, mask: Image | None, threshold: Any, by_value: bool, numbering: str) -> None:
    if numbering not in ("raster", "tile"):
        raise ParameterError(f"numbering {numbering!r} is unknown. Choose 'raster' or 'tile'.")
    if threshold is not None and not isinstance(threshold, Real | np.bool_):
        raise ParameterError(f"threshold {threshold!r} is not a number. Give one, or None for voxels other than 0.")
    if by_value and threshold is not None:
        raise ParameterError(f"by_value=True joins equal values; threshold {threshold} has no meaning with it.")
    if by_value and source.dtype.kind not in "iub":
        raise ParameterError(f"by_value=True needs labels of an integer dtype; the image has dtype {source.dtype}.")
    if mask is not None and mask.shape != source.shape:
        raise GeometryError(f"The mask has shape {mask.shape}, the image {source.shape}. They must be the same.")
