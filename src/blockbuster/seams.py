"""`seam_index`: whether the borders of tiles can be seen in labels.

Two neighbouring voxels that are both foreground are *cut* where their labels differ. Where objects touch, some are,
also within a tile. Borders of tiles should not differ from planes mid-way between them, the *controls*::

    |········:········|········:········|
    0        4        8        12       16      |  border, between the planes of voxels on its two sides
                                                :  control, between the two planes in the middle of a tile

    seam index = share of pairs that are cut on borders / share of pairs that are cut on controls
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from blockbuster.destination import kept_with
from blockbuster.errors import GeometryError, ImageError, ParameterError
from blockbuster.graph import Input, Pass, PassesGraph
from blockbuster.grid import Region, Tile, TileGrid
from blockbuster.ngff import spatial_axes
from blockbuster.sources import Image, StoredImage, given, open_source
from blockbuster.tasks import blaming
from blockbuster.tiling import TileShape, make_grid
from blockbuster.trials import spread_tiles

__all__ = ["AxisSeams", "Cuts", "SeamIndex", "grid_of_run", "makes_labels", "seam_index", "seams_of"]

# Operations that make labels tile by tile; others may copy labels in tiles that are not those in which they were made.
_MAKING = {"label", "tile_process", "merge_tile_labels"}

# The middle of a thinner tile is not away from its borders.
_THINNEST = 4
# Faces of tiles, on either side, with fewer of which nothing can be said.
_FEWEST_FACES = 6
# Standard errors to both sides, and the events that a count of 0 allows for: for 95 %, and for a verdict, which is to
# be wrong far less often.
_USUAL = (1.96, 3.69)
_SURE = (3.0, 6.61)
# What is a visible difference, and what an interval must lie within to exclude one.
_VISIBLE = 1.25
_NARROW = 2.0


@dataclass(frozen=True)
class Cuts:
    """Pairs of neighbouring foreground voxels across some planes, and how many of them are cut.

    Attributes
    ----------
    n_cut : int
        Pairs with different labels.
    n_pairs : int
        Pairs of voxels that are both foreground.
    n_faces : int
        Faces of tiles, each a part of a plane, with such pairs.
    variance : float
        Of `n_cut`, from face to face: an object that is cut makes many pairs at once.

    Examples
    --------
    >>> Cuts.of([(3, 10), (1, 10), (0, 0)])
    Cuts(n_cut=4, n_pairs=20, n_faces=2, variance=4.0)
    """

    n_cut: int
    n_pairs: int
    n_faces: int
    variance: float

    @classmethod
    def of(cls, faces: Sequence[tuple[int, int]]) -> Cuts:
        """From what is cut and what is there, face by face."""
        counts = np.array(faces, np.float64).reshape(-1, 2)
        cut, pairs = counts[counts[:, 1] > 0].T
        rate = cut.sum() / pairs.sum() if len(pairs) else 0.0
        spread = len(pairs) / (len(pairs) - 1) * np.sum((cut - rate * pairs) ** 2) if len(pairs) > 1 else 0.0
        return cls(int(cut.sum()), int(pairs.sum()), len(pairs), float(spread))

    @property
    def rate(self) -> float:
        """Share of the pairs that are cut; NaN where there are none."""
        return self.n_cut / self.n_pairs if self.n_pairs else math.nan


@dataclass(frozen=True)
class AxisSeams:
    """The borders across one axis, beside their controls.

    Attributes
    ----------
    axis : int
        That the borders cut.
    borders, controls : Cuts
        On the borders, and mid-way between them.
    """

    axis: int
    borders: Cuts
    controls: Cuts

    @property
    def index(self) -> float:
        """The rate on borders over that on controls: NaN where nothing touches, infinite where only borders cut."""
        return _Compared.of([self]).index

    @property
    def interval(self) -> tuple[float, float]:
        """Within which the index lies, by the differences from face to face, in about 95 of 100 images."""
        return _Compared.of([self]).interval()

    @property
    def verdict(self) -> str:
        """What the index says: see `SeamIndex.verdict`."""
        return _verdict([self])


@dataclass(frozen=True)
class SeamIndex:
    """How far the borders of tiles can be seen in labels.

    Attributes
    ----------
    axes : tuple of AxisSeams
        Axis by axis.
    """

    axes: tuple[AxisSeams, ...]

    @property
    def index(self) -> float:
        """Pairs that are cut on borders, over those that would be if borders were as the controls of their axis.

        1: no visible seam; 0: what touches across a border is one object, where within tiles it is not; far above 1:
        objects are cut; NaN: nothing touches, neither on borders nor away from them.
        """
        return _Compared.of(self.axes).index

    @property
    def interval(self) -> tuple[float, float]:
        """Within which the index lies, by the differences from face to face, in about 95 of 100 images."""
        return _Compared.of(self.axes).interval()

    @property
    def verdict(self) -> str:
        """What the index says.

        "no visible seam"; "cut"; "over-merged"; "not cut" where too few objects touch to tell whether others were
        chained; "too few" where they tell nothing; "nothing touches" where no two do; "nothing to compare" where
        nothing is on borders, or no tile is thick enough for a control.
        """
        return _verdict(self.axes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"seam index {self.index:.2f} ({low:.2f} to {high:.2f}): {self.verdict}"


def seam_index(
    labels: Any,
    tile_shape: TileShape = None,
    *,
    axes: Sequence[int] | None = None,
    level: int = 0,
    max_faces: int = 64,
) -> SeamIndex:
    """Compare how often labels are cut at the borders of tiles with how often they are away from them.

    Of the labels, two planes of voxels at each border and two in the middle of each tile are read, in one task per
    tile, axis and plane, on the active dask scheduler.

    Parameters
    ----------
    labels : array_like or path
        Any labels, 0 is background: as `image` in `tile_process`.
    tile_shape : None, int, tuple of int, "auto" or callable
        Of the tiles in which they were made, as in `tile_process`. None: that of the run that wrote them, where the
        store tells, else the chunks.
    axes : sequence of int, optional
        Across which borders are looked at. Default: the spatial ones where they are known, else all.
    level : int, default 0
        For paths: the level of the pyramid.
    max_faces : int, default 64
        Faces of tiles, for each axis, that are looked at on borders, and as many on controls. Of more, this many are
        taken, spread over the volume; always the same.

    Returns
    -------
    index : SeamIndex
        The rates axis by axis, the index with an interval, and a verdict in words.

    Raises
    ------
    ImageError
        If `labels` is no image of integers.
    GeometryError
        If the tiles do not fit, or there is no such axis.
    ParameterError
        If `max_faces` is no int of at least 1.
    TileError
        If a plane cannot be read.

    Notes
    -----
    It takes no second run and no truth: the labels themselves tell how often objects touch. It sees cuts and chains,
    not objects that were missed. Labels in which no two objects touch, such as connected components, have the index
    NaN when all is well, and infinity when some are cut.

    Examples
    --------
    Cells that fill the plane, and the same in tiles that were never merged:

    >>> import numpy as np, blockbuster
    >>> from scipy.spatial import KDTree
    >>> centres = np.random.default_rng(0).uniform(0, 400, (400, 2))
    >>> cells = 1 + KDTree(centres).query(np.argwhere(np.ones((400, 400))))[1].reshape(400, 400)
    >>> print(blockbuster.seam_index(cells, (50, 50)))
    seam index 1.09 (0.84 to 1.41): no visible seam
    >>> tile = np.arange(400) // 50
    >>> print(blockbuster.seam_index(cells + 400 * (8 * tile[:, np.newaxis] + tile), (50, 50)))
    seam index 17.11 (14.43 to 20.30): cut
    """
    source = open_source(labels, channel=None, level=level, plain_level=True)
    if tile_shape is None:
        kept = _kept(source)
        made_in = grid_of_run(kept, source.shape) if makes_labels(kept) else None
        grid = made_in or make_grid(source, None, 0)
    else:
        grid = make_grid(source, tile_shape, 0)
    looked_at = spatial_axes(source.axes, grid.ndim) if axes is None else _check_axes(axes, grid.ndim)
    if not hasattr(max_faces, "__index__") or isinstance(max_faces, bool) or max_faces < 1:
        raise ParameterError(
            f"max_faces {max_faces!r} is no int of at least 1. Say how many faces of tiles to look at."
        )
    return seams_of(source, grid, looked_at, max_faces)


def seams_of(image: Image, grid: TileGrid, axes: Sequence[int], max_faces: int) -> SeamIndex:
    """The seam index of labels for the tiles of a grid.

    Raises
    ------
    ImageError
        If they are none of integers.
    TileError
        If a plane cannot be read.
    """
    if image.dtype.kind not in "biu":
        raise ImageError(f"The labels have dtype {image.dtype}. Labels are integers.")
    passes = [
        one
        for axis in axes
        for one in (_borders(image, grid, axis, max_faces), _controls(image, grid, axis, max_faces))
    ]
    found = iter(PassesGraph(passes).compute() if any(len(one.block_ids) for one in passes) else ())
    cuts = [Cuts.of([next(found) for _ in one.block_ids]) for one in passes]
    return SeamIndex(
        tuple(AxisSeams(axis, *pair) for axis, pair in zip(axes, zip(cuts[::2], cuts[1::2], strict=True), strict=True))
    )


def makes_labels(kept: Mapping[str, Any]) -> bool:
    """Whether a run has made the labels that it keeps this with in its tiles."""
    return kept.get("operation") in _MAKING


def grid_of_run(kept: Mapping[str, Any], shape: Sequence[int]) -> TileGrid | None:
    """The tiles of the run that made an array of a shape, by what is kept with it; None where that does not tell.

    Examples
    --------
    >>> kept = {"manifest": {"tiles": "((100, 90), (32, 32))", "overlap": "(8, 8)"}}
    >>> grid_of_run(kept, (100, 90)).numblocks
    (4, 3)
    """
    manifest = kept.get("manifest", {})
    try:
        words = manifest["tiles" if "tiles" in manifest else "tiles of 0"]
        told, overlap = ast.literal_eval(words), ast.literal_eval(manifest.get("overlap", "0"))
        # A run whose tiles are written as they are tells their bounds and the dtype.
        bounds = told[0] if isinstance(told[1], str) else told
        grid = _grid_of_words(bounds, overlap)
    except (KeyError, ValueError, SyntaxError, TypeError, IndexError):
        return None
    return grid if grid.shape == tuple(shape) else None


def _grid_of_words(words: Any, overlap: Any) -> TileGrid:
    """From the bounds, which begin with 0, or from the shape of the image and that of a tile."""
    if all(axis[0] == 0 for axis in words):
        return TileGrid.from_chunks([np.diff(axis).tolist() for axis in words], overlap)
    shape, tile_shape = words
    return TileGrid.regular(shape, tile_shape, overlap)


def _kept(image: Image) -> Mapping[str, Any]:
    """What was kept with labels by the run that wrote them."""
    node = image.ref.open() if isinstance(image, StoredImage) else None
    return kept_with(node) if isinstance(node, zarr.Array) else {}


def _check_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    wrong = [axis for axis in axes if not hasattr(axis, "__index__") or not 0 <= axis < ndim]
    if wrong or len(set(axes)) < len(axes):
        raise GeometryError(f"axes {tuple(axes)} are not different axes 0..{ndim - 1} of the labels.")
    return tuple(map(int, axes))


# Planes


def _borders(image: Image, grid: TileGrid, axis: int, most: int) -> Pass:
    """Count at the far borders of tiles."""
    return _counting(image, grid, axis, range(grid.numblocks[axis] - 1), most, functools.partial(_border, axis))


def _controls(image: Image, grid: TileGrid, axis: int, most: int) -> Pass:
    """Count in the middle of tiles that are thick enough."""
    places = [place for place, extent in enumerate(grid.chunks[axis]) if extent >= _THINNEST]
    return _counting(image, grid, axis, places, most, functools.partial(_middle, axis))


def _border(axis: int, tile: Tile) -> Region:
    return _pair(tile, axis, tile.stop[axis])


def _middle(axis: int, tile: Tile) -> Region:
    return _pair(tile, axis, (tile.start[axis] + tile.stop[axis]) // 2)


def _pair(tile: Tile, axis: int, cut: int) -> Region:
    """The planes of voxels on both sides of a cut, as far as the tile has them."""
    return (*tile.core[:axis], slice(cut - 1, cut + 1), *tile.core[axis + 1 :])


def _counting(
    image: Image, grid: TileGrid, axis: int, places: Sequence[int], most: int, region: Callable[[Tile], Region]
) -> Pass:
    stored = image if isinstance(image, StoredImage) else None
    block = given(image)
    inputs = [] if block is None else [Input(block, region)]
    return Pass(_Counter(stored, axis, region), grid, _chosen(grid, axis, places, most), inputs)


def _chosen(grid: TileGrid, axis: int, places: Sequence[int], most: int) -> list[int]:
    """Numbers of up to `most` tiles at some places along an axis, spread over the grid."""
    counts = (*grid.numblocks[:axis], len(places), *grid.numblocks[axis + 1 :])
    if not math.prod(counts):
        return []
    lattice = TileGrid.regular(counts, (1,) * grid.ndim)
    numbers = (
        range(lattice.n_tiles)
        if lattice.n_tiles <= most
        else sorted(spread_tiles(lattice, range(lattice.n_tiles), most))
    )
    indices = (lattice.tile(number).index for number in numbers)
    return [grid.block_id((*index[:axis], places[index[axis]], *index[axis + 1 :])) for index in indices]


@dataclass(frozen=True)
class _Counter:
    """Counts what is cut across one face.

    Attributes
    ----------
    image : StoredImage or None
        What the task reads itself; None where it is given the planes.
    """

    image: StoredImage | None
    axis: int
    region: Callable[[Tile], Region]

    def __call__(self, tile: Tile, *blocks: NDArray[Any]) -> tuple[int, int]:
        """Pairs that are cut, and all pairs."""
        with blaming(tile, "reading the labels"):
            planes = np.asarray(blocks[0]) if self.image is None else self.image.read(self.region(tile))
        near, far = np.split(planes, 2, self.axis)
        both = (near != 0) & (far != 0)
        return int(np.count_nonzero(both & (near != far))), int(np.count_nonzero(both))


# What the counts say


@dataclass(frozen=True)
class _Compared:
    """What is cut on borders beside what would be if they were controls; pooled over axes.

    Attributes
    ----------
    n_cut, expected : float
        Pairs on borders that are cut, and how many would be.
    cut_variance, expected_variance : float
        Of both.
    cut_clump, control_clump : float
        Pairs that are cut at once, on borders and on controls: the variance of their number over the number itself.
    per_control : float
        Pairs on borders for each on controls.
    """

    n_cut: float
    expected: float
    cut_variance: float
    expected_variance: float
    cut_clump: float
    control_clump: float
    per_control: float

    @classmethod
    def of(cls, several: Sequence[AxisSeams]) -> _Compared:
        """Of the axes that have borders and controls."""
        both = _comparable(several)
        shares = [one.borders.n_pairs / one.controls.n_pairs for one in both]
        n_cut = sum(one.borders.n_cut for one in both)
        n_control = sum(one.controls.n_cut for one in both)
        cut_variance = sum(one.borders.variance for one in both)
        return cls(
            n_cut,
            sum(share * one.controls.n_cut for share, one in zip(shares, both, strict=True)),
            cut_variance,
            sum(share**2 * one.controls.variance for share, one in zip(shares, both, strict=True)),
            max(cut_variance / n_cut, 1.0) if n_cut else 1.0,
            max(sum(one.controls.variance for one in both) / n_control, 1.0) if n_control else 1.0,
            sum(shares) / len(shares) if shares else 1.0,
        )

    @property
    def index(self) -> float:
        if self.expected:
            return self.n_cut / self.expected
        return math.inf if self.n_cut else math.nan

    def interval(self, level: tuple[float, float] = _USUAL) -> tuple[float, float]:
        n_errors, n_in_none = level
        if self.n_cut and self.expected:
            spread = math.sqrt(self.cut_variance / self.n_cut**2 + self.expected_variance / self.expected**2)
            factor = math.exp(min(n_errors * spread, 700.0))
            return self.index / factor, self.index * factor
        # A count of 0 tells how rare its events are at most, in units of what is cut at once.
        low = self.n_cut / (n_in_none * self.cut_clump * self.per_control) if self.n_cut else 0.0
        high = n_in_none * self.control_clump / self.expected if self.expected else math.inf
        return low, high


def _comparable(several: Sequence[AxisSeams]) -> list[AxisSeams]:
    return [one for one in several if one.borders.n_pairs and one.controls.n_pairs]


def _verdict(several: Sequence[AxisSeams]) -> str:
    both = _comparable(several)
    if not both:
        return "nothing to compare"
    compared = _Compared.of(both)
    index, (least, most), (low, high) = compared.index, compared.interval(_SURE), compared.interval()
    if math.isnan(index):
        return "nothing touches"
    if min(sum(one.borders.n_faces for one in both), sum(one.controls.n_faces for one in both)) < _FEWEST_FACES:
        return "too few"
    if index > _VISIBLE and least > 1:
        return "cut"
    if index < 1 / _VISIBLE and most < 1:
        return "over-merged"
    if high > _NARROW:
        return "too few"
    return "no visible seam" if low >= 1 / _NARROW else "not cut"
