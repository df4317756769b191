"""Merge rules: which labels of two neighbouring tiles are one object.

A tile numbers its labels 1..n. Its *ghosts*, n+1.., are labels that it sees only in the halo, one voxel deep. A *rule*
compares two small *slabs*, one stored by each tile of a seam, and gives pairs of these tile-local ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import ParameterError
from blockbuster.grid import Seam, Tile, TileGrid, forward_offsets

__all__ = [
    "Contact",
    "Merge",
    "Overlapping",
    "Rule",
    "SlabKey",
    "Touching",
    "Where",
    "resolve_merge",
    "seams_and_slabs",
    "slab_region",
    "slabs_of",
]

Labels: TypeAlias = NDArray[Any]
Ids: TypeAlias = NDArray[np.int64]
PairTest: TypeAlias = Callable[..., NDArray[np.bool_]]


@dataclass(frozen=True)
class SlabKey:
    """One stored view of a border of a tile.

    Attributes
    ----------
    kind : {"plane", "strip"}
        A plane is the outermost layer of the core. A strip is two layers deep, one on each side of the border, and
        one voxel wider than the core on the other axes.
    axis : int
        Axis that the border crosses.
    side : {0, 1}
        0 for the low end of the axis, 1 for the high end.
    """

    kind: Literal["plane", "strip"]
    axis: int
    side: Literal[0, 1]

    @property
    def name(self) -> str:
        """Name under which a stage keeps the slab."""
        return f"{self.kind}-{self.axis}-{self.side}"


class Rule(Protocol):
    """What decides that two labels on the two sides of a seam are one object."""

    @property
    def kind(self) -> Literal["plane", "strip"]:
        """The slab that `join` compares."""

    @property
    def axes(self) -> tuple[int, ...] | None:
        """Axes over which an object may go on from tile to tile."""

    @property
    def reach(self) -> int:
        """How many axes a seam may cross."""

    def join(self, seam: Seam, first: Labels, second: Labels) -> Ids:
        """Pairs of ids, shape (n, 2), from the slabs of the two tiles."""


@dataclass(frozen=True)
class Touching:
    """Labels that touch across a tile border are one object.

    Exact for connected components. On dense instances, where different objects touch, it chains whole tissues into
    one object: choose `Overlapping` for those.

    Parameters
    ----------
    connectivity : int, default 1
        1 for faces, 2 for edges as well, up to the number of `axes`, as in scikit-image; also into diagonal
        neighbours.
    axes : tuple of int, optional
        Axes over which an object may go on from tile to tile. Default: the spatial axes where they are known, else all.
    """

    connectivity: int = 1
    axes: tuple[int, ...] | None = None

    kind: ClassVar[Literal["plane"]] = "plane"

    @property
    def reach(self) -> int:
        """How many axes a seam may cross."""
        return self.connectivity

    def join(self, seam: Seam, first: Labels, second: Labels) -> Ids:
        """Pairs of ids that touch; slabs are planes across the first axis of the seam."""
        a, b = _contact_sets(seam, first, second)
        found = [_distinct_pairs(a[s], b[t]) for s, t in self._shifts(seam, a.shape)]
        return np.unique(np.concatenate(found), axis=0) if len(found) > 1 else found[0]

    def _shifts(self, seam: Seam, shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        free = [axis for axis in self.axes or () if axis not in seam.axes]
        slack = self.connectivity - len(seam.axes)
        choices = [(-1, 0, 1) if axis in free and slack else (0,) for axis in range(len(shape))]
        for shift in itertools.product(*choices):
            if sum(map(abs, shift)) <= slack:
                yield (
                    tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(shift, shape, strict=True)),
                    tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(shift, shape, strict=True)),
                )


@dataclass(frozen=True)
class Overlapping:
    """Labels are one object where both tiles drew it alike: what instance segmenters need.

    Both tiles have labelled the voxels next to their border. The two views of the same voxels, one voxel deep on each
    side of the border and over the whole face grown by one voxel on the other axes, are compared: labels i and j are
    one object iff ``n_ij / (a_i + b_j - n_ij) > iou``. From an `iou` of 0.5 on, each label has at most one partner
    per face.

    Parameters
    ----------
    iou : float, default 0.5
        Intersection over union that a pair must exceed, from 0 to below 1.
    axes : tuple of int, optional
        Axes over which an object may go on. Default: those with an overlap, of the spatial axes where these are known.
    """

    iou: float = 0.5
    axes: tuple[int, ...] | None = None

    kind: ClassVar[Literal["strip"]] = "strip"
    reach: ClassVar[int] = 1

    def join(self, seam: Seam, first: Labels, second: Labels) -> Ids:
        """Pairs of ids that the two strips draw alike."""
        return _pairs_above(self.iou, first, second)


@dataclass(frozen=True)
class Contact:
    """Labels are one object where their footprints on the two abutting planes agree.

    `Overlapping` for tiles without a halo: for ``overlap=0`` and for label stores made elsewhere.

    Parameters
    ----------
    iou : float, default 0.5
        Intersection over union of the footprints that a pair must exceed, from 0 to below 1.
    axes : tuple of int, optional
        Axes over which an object may go on. Default: the spatial axes where they are known, else all.
    """

    iou: float = 0.5
    axes: tuple[int, ...] | None = None

    kind: ClassVar[Literal["plane"]] = "plane"
    reach: ClassVar[int] = 1

    def join(self, seam: Seam, first: Labels, second: Labels) -> Ids:
        """Pairs of ids whose footprints agree."""
        return _pairs_above(self.iou, first, second)


@dataclass(frozen=True)
class Where:
    """Labels are one object where a function of their footprints says so.

    Parameters
    ----------
    test : callable
        ``(i, j, n, a, b, axis) -> bool array``: ids of the two tiles, voxels that both share, voxels of each, and
        the axis that the seam crosses. Compares strips where there is an overlap, else planes.
    axes : tuple of int, optional
        Axes over which an object may go on. Default: the spatial axes where they are known, else all.
    """

    test: PairTest
    axes: tuple[int, ...] | None = None

    kind: Literal["plane", "strip"] = field(default="plane", init=False, repr=False)
    reach: ClassVar[int] = 1

    def resolved(self, kind: Literal["plane", "strip"], axes: tuple[int, ...]) -> Where:
        """The same test on slabs of one kind."""
        made = replace(self, axes=axes)
        object.__setattr__(made, "kind", kind)
        return made

    def join(self, seam: Seam, first: Labels, second: Labels) -> Ids:
        """Pairs of ids that pass the test."""
        i, j, n, a, b = _contingency(first, second)
        (axis,) = seam.axes
        keep = np.asarray(self.test(i, j, n, a, b, axis))
        if keep.shape != i.shape or keep.dtype != np.bool_:
            raise ParameterError(
                f"The merge function returned {keep.dtype} of shape {keep.shape} for {i.size} pairs. "
                f"It must return bool of shape {i.shape}."
            )
        return np.stack([i, j], axis=1)[keep]


OneRule: TypeAlias = str | Touching | Overlapping | Contact | Where | PairTest | None
Merge: TypeAlias = OneRule | Sequence[OneRule]

_NAMED: dict[str, Touching | Overlapping | Contact] = {
    "touching": Touching(),
    "iou": Overlapping(),
    "contact": Contact(),
}


def resolve_merge(merge: Merge, *, overlap: Sequence[int], axes: Sequence[int]) -> tuple[Rule, ...]:
    """Rules with their axes known.

    Parameters
    ----------
    merge : str, rule, callable, None, or a sequence of them with one entry per axis of the image
        What to resolve; "touching", "iou" and "contact" stand for their rules' defaults.
    overlap : sequence of int
        Overlap of the grid, voxels per axis.
    axes : sequence of int
        Axes over which objects may go on where the rule does not say.

    Raises
    ------
    ParameterError
        If a name is unknown, a number is out of range, or a rule needs an overlap where there is none.
    """
    if isinstance(merge, Sequence) and not isinstance(merge, str):
        if len(merge) != len(overlap):
            raise ParameterError(
                f"merge has {len(merge)} entries, the image has {len(overlap)} axes. Give one rule, or one per axis."
            )
        return tuple(r for axis, one in enumerate(merge) for r in _resolve_one(one, overlap, (axis,)))
    return _resolve_one(merge, overlap, axes)


def _resolve_one(merge: OneRule, overlap: Sequence[int], axes: Sequence[int]) -> tuple[Rule, ...]:
    rule = _named(merge)
    if rule is None:
        return ()
    chosen = _checked_axes(rule, overlap, axes)
    if isinstance(rule, Touching):
        _check_connectivity(rule.connectivity, chosen)
    if isinstance(rule, Overlapping | Contact) and not (isinstance(rule.iou, Real) and 0 <= rule.iou < 1):
        raise ParameterError(f"iou {rule.iou!r} must be at least 0 and below 1: a pair joins when it exceeds it.")
    if not chosen:
        return ()
    if isinstance(rule, Where):
        # A seam without a halo has no strip: one rule for each kind of seam.
        with_halo, bare = tuple(a for a in chosen if overlap[a]), tuple(a for a in chosen if not overlap[a])
        return tuple(part for part in (rule.resolved("strip", with_halo), rule.resolved("plane", bare)) if part.axes)
    return (replace(rule, axes=chosen),)


def _check_connectivity(connectivity: Any, axes: Sequence[int]) -> None:
    """Refuse what is no number of axes over which a step to a neighbour may go.

    Raises
    ------
    ParameterError
        If it is not an int within 1 and the number of `axes`.
    """
    is_int = isinstance(connectivity, Integral) and not isinstance(connectivity, bool)
    if not is_int or not 1 <= connectivity <= max(len(axes), 1):
        raise ParameterError(
            f"connectivity {connectivity!r} is not within 1..{len(axes)}, the number of axes {tuple(axes)} over which "
            "objects go on."
        )


def _named(merge: OneRule) -> Touching | Overlapping | Contact | Where | None:
    if isinstance(merge, type):
        raise ParameterError(f"merge is the class {merge.__name__}. Give a rule, such as {merge.__name__}().")
    if isinstance(merge, Where) and not callable(merge.test):
        raise ParameterError(f"Where({merge.test!r}) holds no function. Give one (i, j, n, a, b, axis) -> bool array.")
    if merge is None or isinstance(merge, Touching | Overlapping | Contact | Where):
        return merge
    if isinstance(merge, str) and merge in _NAMED:
        return _NAMED[merge]
    if callable(merge):
        return Where(merge)
    raise ParameterError(
        f"merge {merge!r} is unknown. Choose one of {', '.join(map(repr, _NAMED))}, None, a rule such as "
        "Overlapping(iou=0.3), or a function (i, j, n, a, b, axis) -> bool array."
    )


def _checked_axes(
    rule: Touching | Overlapping | Contact | Where, overlap: Sequence[int], axes: Sequence[int]
) -> tuple[int, ...]:
    ndim = len(overlap)
    if rule.axes is None:
        if not isinstance(rule, Overlapping):
            return tuple(axes)
        with_halo = tuple(a for a in axes if overlap[a])
        if not with_halo:
            raise ParameterError(
                f"merge='iou' compares what two tiles read of the same voxels, but overlap {tuple(overlap)} is 0 on "
                f"every axis {tuple(axes)} over which objects go on. Give overlap >= 1, or choose merge='contact'."
            )
        return with_halo
    if not isinstance(rule.axes, Sequence) or any(not -ndim <= a < ndim for a in rule.axes):
        raise ParameterError(f"axes {rule.axes} of the merge rule are not all axes of an image with {ndim} axes.")
    chosen = tuple(sorted({a % ndim for a in rule.axes}))
    bare = tuple(a for a in chosen if not overlap[a])
    if isinstance(rule, Overlapping) and bare:
        raise ParameterError(
            f"merge={rule} needs an overlap of at least 1 on its axes; overlap {tuple(overlap)} is 0 on {bare}. "
            "Give an overlap there, leave these axes out, or choose Contact for them."
        )
    return chosen


# Slabs


def slabs_of(tile: Tile, grid: TileGrid, rules: Sequence[Rule]) -> list[SlabKey]:
    """The slabs that a tile has to keep for `rules`: one for each side where it has a neighbour."""
    sides = [
        SlabKey(rule.kind, axis, side)
        for rule in rules
        for axis in rule.axes or ()
        for side in (0, 1)
        if (tile.index[axis] > 0 if side == 0 else tile.index[axis] + 1 < grid.numblocks[axis])
    ]
    return list(dict.fromkeys(sides))


def slab_region(key: SlabKey, tile: Tile) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and stop, in the image, of one slab of a tile."""
    border = (tile.start, tile.stop)[key.side][key.axis]
    if key.kind == "plane":
        start, stop = list(tile.start), list(tile.stop)
        low = border if key.side == 0 else border - 1
        start[key.axis], stop[key.axis] = low, low + 1
    else:
        margin = tuple(0 if axis == key.axis else 1 for axis in range(len(tile.start)))
        grown_start, grown_stop = tile.grown(margin)
        start, stop = list(grown_start), list(grown_stop)
        start[key.axis], stop[key.axis] = border - 1, border + 1
    return tuple(start), tuple(stop)


def seams_and_slabs(block_id: int, grid: TileGrid, rule: Rule) -> Iterator[tuple[Seam, SlabKey, SlabKey]]:
    """Each seam that tile `block_id` opens, with the slabs of its two tiles that `rule` compares."""
    offsets = forward_offsets(grid.ndim, rule.axes or (), rule.reach)
    for seam in grid.seams(block_id, offsets):
        axis = seam.axes[0]
        yield seam, SlabKey(rule.kind, axis, 1), SlabKey(rule.kind, axis, 0)


def _contact_sets(seam: Seam, first: Labels, second: Labels) -> tuple[Labels, Labels]:
    """The parts of two planes that meet at the seam: ends on the axes crossed, all of the others."""
    across = seam.axes[0]
    a = [slice(None)] * first.ndim
    b = [slice(None)] * first.ndim
    for axis in seam.axes:
        if axis != across:
            last, begin = slice(-1, None), slice(0, 1)
            a[axis], b[axis] = (last, begin) if seam.offset[axis] > 0 else (begin, last)
    return first[tuple(a)], second[tuple(b)]


# Pairs


def _codes(first: Labels, second: Labels) -> NDArray[np.uint64]:
    # Local ids have at most 32 bits: two of them fit one uint64.
    return (first.astype(np.uint64).ravel() << np.uint64(32)) | second.astype(np.uint64).ravel()


def _decode(codes: NDArray[np.uint64]) -> tuple[Ids, Ids]:
    return (codes >> np.uint64(32)).astype(np.int64), (codes & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _distinct_pairs(first: Labels, second: Labels) -> Ids:
    both = (first != 0) & (second != 0)
    codes = _codes(first[both], second[both])
    if codes.size:
        codes = np.unique(codes[np.concatenate([[True], codes[1:] != codes[:-1]])])
    return np.stack(_decode(codes), axis=1)


def _contingency(first: Labels, second: Labels) -> tuple[Ids, Ids, Ids, Ids, Ids]:
    """Ids i, j that share voxels, how many they share, and how many each has."""
    codes, n = np.unique(_codes(first, second), return_counts=True)
    i, j = _decode(codes)
    a, b = (np.bincount(k, weights=n).astype(np.int64)[k] for k in (i, j))
    both = (i != 0) & (j != 0)
    return i[both], j[both], n[both].astype(np.int64), a[both], b[both]


def _pairs_above(iou: float, first: Labels, second: Labels) -> Ids:
    i, j, n, a, b = _contingency(first, second)
    return np.stack([i, j], axis=1)[n > iou * (a + b - n)]
