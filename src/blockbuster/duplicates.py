"""Tables of blobs, one per tile: made one, and without the blobs that several tiles have found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blockbuster.errors import ParameterError

__all__ = ["DROPPED", "KEPT", "OPEN", "By", "Keep", "first_kept", "merge_blobs", "prune_blobs"]

Keep: TypeAlias = Literal["strongest", "mean"]
By: TypeAlias = Literal["box", "ball"]

KEPT, DROPPED, OPEN = 1, 0, -1
_UNDECIDED = -2


def merge_blobs(tables: Any) -> NDArray[Any]:
    """One table of the blobs of all pieces of a stack, with the piece that each was found in.

    Parameters
    ----------
    tables : ndarray of object, or list
        One table per piece, on the grid of the pieces; a list is a grid of one axis. A table has one row per blob:
        an array of shape (blobs, columns) or nested lists; None and empty tables are for pieces without blobs.

    Returns
    -------
    blobs : ndarray, shape (blobs in all, columns + axes of the grid)
        The rows of all pieces in row-major order of the grid, each with the index of its piece as the last columns. Of
        the dtype that holds all tables and the index. Without any blob it has no rows.

    Raises
    ------
    ParameterError
        If `tables` is no grid, an entry is no table, or two tables differ in their number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> tables = np.empty((2, 2), object)
    >>> tables[0, 0], tables[1, 0] = [[5, 6]], [[7, 8], [9, 0]]
    >>> merge_blobs(tables)
    array([[5, 6, 0, 0],
           [7, 8, 1, 0],
           [9, 0, 1, 0]])
    """
    grid = _grid(tables)
    found = {index: _table(grid[index], f"of piece {index}") for index in np.ndindex(grid.shape)}
    full = {index: table for index, table in found.items() if len(table)}
    _check_columns(full)
    if not full:
        columns = max((table.shape[1] for table in found.values()), default=0)
        dtypes = {table.dtype for table in found.values() if table.shape[1]} or {np.dtype(np.float64)}
        return np.empty((0, columns + grid.ndim), np.result_type(*dtypes))
    dtypes = {table.dtype for table in full.values()}
    dtype = np.result_type(*dtypes, np.min_scalar_type(max(grid.shape) - 1))
    counts = [len(table) for table in full.values()]
    rows = np.concatenate([table.astype(dtype, copy=False) for table in full.values()])
    pieces = np.repeat(np.array(list(full)), counts, axis=0)
    return np.concatenate([rows, pieces.astype(dtype)], axis=1)


def prune_blobs(
    blobs: Any,
    tolerance: float | Sequence[float],
    *,
    tiles: ArrayLike | None = None,
    ndim: int | None = None,
    strength: int | ArrayLike | None = None,
    keep: Keep = "strongest",
    by: By = "box",
) -> NDArray[Any]:
    """Remove blobs that another tile has found as well.

    Two blobs are the same when different tiles have found them and they are no further apart than `tolerance`. Of these
    the strongest stays. Blobs of one tile are never the same. A blob that is the same as a removed one only, stays.

    Parameters
    ----------
    blobs : array_like, shape (blobs, columns), or ndarray of object
        A table as `merge_blobs` makes it, or the tables of all pieces on their grid. The first columns are the
        coordinates, the last ones the index of the tile.
    tolerance : float or sequence of float
        How far apart the same blobs may be, in the unit of the coordinates, per axis: at least 0.
    tiles : array_like of int, shape (blobs,) or (blobs, axes), optional
        The tile of each blob. Default: the last columns of the table, as many as the grid has axes, or as there are
        coordinates.
    ndim : int, optional
        Number of coordinates. Default: as many as `tolerance` has entries, or as the grid of tables has axes.
    strength : int or array_like, shape (blobs,), optional
        The stronger of two blobs has the larger value: a column of the table by its number, or values. NaN is the
        weakest. Default: the first column after the coordinates, unless it is of the index of the tile. The earlier row
        is the stronger where that is equal, or where there is none.
    keep : {"strongest", "mean"}, default "strongest"
        What stays of blobs that are the same: the row of the strongest, or the mean of all of them, but for the index
        of the tile. A blob that is the same as several that stay counts for the strongest of them.
    by : {"box", "ball"}, default "box"
        Whether `tolerance` is for each axis by itself, inclusive; or is the semi-axes of an ellipsoid, so that
        ``sum((difference / tolerance) ** 2) <= 1``.

    Returns
    -------
    blobs : ndarray, shape (blobs that stay, columns)
        In the order of the rows of `blobs`. With ``keep="mean"`` of a floating dtype.

    Raises
    ------
    ParameterError
        If an option is unknown, or options do not fit the table or each other.

    Notes
    -----
    Tiles need not be of one shape, nor overlap by the same. A blob with a coordinate that is NaN or infinite is the
    same as no other. Memory is that of the pairs of blobs that are no further apart than `tolerance`.

    Examples
    --------
    >>> import numpy as np
    >>> blobs = np.array([[1.0, 4.0, 0, 0], [1.0, 5.0, 0, 1], [9.0, 5.0, 0, 1]])
    >>> prune_blobs(blobs, tolerance=(0, 2))
    array([[1., 4., 0., 0.],
           [9., 5., 0., 1.]])
    """
    _check_choices(keep, by)
    grid_ndim = blobs.ndim if _is_grid(blobs) else None
    table = merge_blobs(blobs) if grid_ndim is not None else _table(blobs, "blobs")
    reach = _tolerances(tolerance, ndim, grid_ndim)
    n_index = 0 if tiles is not None else grid_ndim or len(reach)
    if not len(table):
        return table
    layout = _layout(table, len(reach), n_index)
    numbers = _tile_numbers(table[:, layout.place] if tiles is None else _given_tiles(tiles, len(table)))
    order = _by_strength(len(table), _strengths(table, strength, layout))
    rank = np.argsort(order)
    before, after = _ranked(_same(table[:, : len(reach)].astype(np.float64), reach, numbers, by), rank)
    kept = first_kept(len(table), before, after) == KEPT
    rows = table if keep == "strongest" else _means(table, _groups(kept, before, after, rank, order), layout)
    pruned: NDArray[Any] = rows[kept]
    return pruned


def first_kept(
    n: int, before: NDArray[Any], after: NDArray[Any], unsure: NDArray[np.bool_] | None = None
) -> NDArray[np.int8]:
    """Which items stay when, from the highest rank on, each one that stays drops those that it conflicts with.

    Parameters
    ----------
    n : int
        Number of items.
    before, after : ndarray of int, shape (conflicts,)
        The two items of each conflict, the one of higher rank first. There must be an order of all items that agrees.
    unsure : ndarray of bool, shape (n,), optional
        Items that may conflict with others of higher rank that are not known.

    Returns
    -------
    state : ndarray of int8, shape (n,)
        `DROPPED` if an item conflicts with a kept one of higher rank; else `OPEN` if it is unsure, or conflicts with an
        open one of higher rank; else `KEPT`.

    Notes
    -----
    Every conflict is looked at once: time follows the number of items and conflicts, and of rounds, as many as the
    longest chain of conflicts has items.

    Examples
    --------
    >>> import numpy as np
    >>> first_kept(4, np.array([0, 1, 2]), np.array([1, 2, 3]))
    array([1, 0, 1, 0], dtype=int8)
    >>> first_kept(4, np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([False, False, True, False]))
    array([ 1,  0, -1, -1], dtype=int8)
    """
    state = np.full(n, _UNDECIDED, np.int8)
    blurred = np.zeros(n, bool) if unsure is None else np.array(unsure, bool)
    inferior = after[np.argsort(before, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(before, minlength=n))])
    waiting = np.bincount(after, minlength=n)
    # Items whose superiors are all decided, and none of them kept.
    ready = np.flatnonzero(waiting == 0)
    while len(ready):
        state[ready] = np.where(blurred[ready], OPEN, KEPT)
        below_kept = _below(ready[~blurred[ready]], bounds, inferior)
        dropped = np.unique(below_kept[state[below_kept] == _UNDECIDED])
        state[dropped] = DROPPED
        below_open = _below(ready[blurred[ready]], bounds, inferior)
        blurred[below_open] = True
        settled = np.concatenate([below_open, below_kept, _below(dropped, bounds, inferior)])
        np.subtract.at(waiting, settled, 1)
        ready = np.unique(settled[(waiting[settled] == 0) & (state[settled] == _UNDECIDED)])
    return state


def _below(items: NDArray[Any], bounds: NDArray[Any], inferior: NDArray[Any]) -> NDArray[Any]:
    """The items of lower rank that some items conflict with, one for each conflict."""
    starts, counts = bounds[items], bounds[items + 1] - bounds[items]
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    below: NDArray[Any] = inferior[np.repeat(starts, counts) + steps]
    return below


# Tables


class _Layout(NamedTuple):
    """Columns of a table: coordinates, then others, then the index of the tile."""

    others: slice
    place: slice


def _is_grid(tables: Any) -> bool:
    return isinstance(tables, np.ndarray) and tables.dtype.hasobject


def _grid(tables: Any) -> NDArray[Any]:
    if isinstance(tables, list | tuple):
        grid = np.empty(len(tables), object)
        for number, table in enumerate(tables):
            grid[number] = table
        return grid
    if not _is_grid(tables) or not tables.ndim:
        raise ParameterError(
            f"tables are a {type(tables).__name__}. Give an array of dtype object with one table per piece, or a list "
            "of tables."
        )
    return np.asarray(tables)


def _table(table: Any, name: str) -> NDArray[Any]:
    """A table as an array; without columns where it has no rows to tell them."""
    if table is None:
        return np.empty((0, 0))
    try:
        rows = np.asarray(table)
    except ValueError as error:
        raise ParameterError(f"The table {name} is no array: {error}. Give rows of one length.") from error
    if not rows.size and rows.ndim != 2:
        return np.empty((0, 0))
    if rows.ndim != 2 or rows.dtype.kind not in "biuf":
        raise ParameterError(
            f"The table {name} has shape {rows.shape} and dtype {rows.dtype}. Give real numbers, one row per blob: "
            "shape (blobs, columns)."
        )
    return rows


def _check_columns(tables: dict[tuple[int, ...], NDArray[Any]]) -> None:
    indices = list(tables)
    for index in indices[1:]:
        columns, expected = tables[index].shape[1], tables[indices[0]].shape[1]
        if columns != expected:
            raise ParameterError(
                f"The table of piece {index} has {columns} columns, that of piece {indices[0]} has {expected}. All "
                "tables must have the same columns."
            )


def _layout(table: NDArray[Any], ndim: int, n_index: int) -> _Layout:
    columns = table.shape[1]
    if columns < ndim + n_index:
        more = f" and {n_index} of the index of the tile" if n_index else ""
        raise ParameterError(
            f"The table has {columns} columns, which are fewer than {ndim} coordinates{more}. Give tolerance or ndim "
            "for the coordinates that there are, and tiles= for a table without the index."
        )
    index = table[:, columns - n_index :]
    if not (np.isfinite(index) & (index == np.floor(index))).all():
        raise ParameterError(
            f"The last {n_index} columns of the table are not all whole numbers, so they are no index of tiles. Give "
            "tiles=, the tile of each row."
        )
    return _Layout(slice(ndim, columns - n_index), slice(columns - n_index, columns))


# Options


def _check_choices(keep: Any, by: Any) -> None:
    for name, value, kind in (("keep", keep, Keep), ("by", by, By)):
        if value not in get_args(kind):
            raise ParameterError(f"{name} {value!r} is unknown. Choose one of {', '.join(map(repr, get_args(kind)))}.")


def _tolerances(tolerance: Any, ndim: Any, grid_ndim: int | None) -> NDArray[np.float64]:
    """One tolerance per coordinate."""
    if ndim is not None and (not hasattr(ndim, "__index__") or isinstance(ndim, bool) or ndim < 1):
        raise ParameterError(f"ndim {ndim!r} is no int of at least 1: the number of coordinates.")
    try:
        values = np.asarray(tolerance, np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"tolerance {tolerance!r} is no number, nor one per axis: {error}.") from error
    if values.ndim > 1 or not values.size or not (np.isfinite(values) & (values >= 0)).all():
        raise ParameterError(f"tolerance {tolerance!r} must be one finite number of at least 0, or one per axis.")
    count = len(values) if values.ndim else ndim if ndim is not None else grid_ndim
    if count is None:
        raise ParameterError(
            f"tolerance {tolerance!r} is one number, which does not tell how many columns are coordinates. Give one "
            "number per axis, or ndim=."
        )
    if ndim not in (None, count):
        raise ParameterError(f"tolerance {tolerance!r} has {count} entries, but ndim is {ndim}. They must agree.")
    return np.broadcast_to(values, count)


def _given_tiles(tiles: ArrayLike, n: int) -> NDArray[Any]:
    numbers = np.asarray(tiles)
    if numbers.ndim not in (1, 2) or len(numbers) != n or (numbers.dtype.kind not in "iu" and numbers.size):
        raise ParameterError(
            f"tiles have shape {numbers.shape} and dtype {numbers.dtype}; the table has {n} rows. Give ints, of shape "
            f"({n},) or ({n}, axes)."
        )
    return numbers.reshape(n, -1)


def _tile_numbers(index: NDArray[Any]) -> NDArray[np.int64]:
    """One number for each row of indices, the same for the same index."""
    numbers = np.zeros(len(index), np.int64)
    for column in index.T:
        values, places = np.unique(column, return_inverse=True)
        # Ranks stay below the number of rows, so that they cannot overflow.
        numbers = np.unique(numbers * len(values) + places, return_inverse=True)[1]
    return numbers


def _strengths(table: NDArray[Any], strength: Any, layout: _Layout) -> NDArray[Any] | None:
    columns = table.shape[1]
    if strength is None:
        return table[:, layout.others.start] if layout.others.start < layout.others.stop else None
    if not np.ndim(strength) and hasattr(strength, "__index__") and not isinstance(strength, bool):
        if not -columns <= int(strength) < columns:
            raise ParameterError(f"strength {strength} is no column of a table of {columns} columns.")
        column: NDArray[Any] = table[:, int(strength)]
        return column
    values = np.asarray(strength)
    if values.shape != (len(table),) or values.dtype.kind not in "biuf":
        raise ParameterError(
            f"strength has shape {values.shape} and dtype {values.dtype}. Give the number of a column, or one number "
            f"for each of the {len(table)} rows."
        )
    return values


def _by_strength(n: int, strengths: NDArray[Any] | None) -> NDArray[np.int64]:
    """Rows from the strongest on; of equal ones the earlier first."""
    if strengths is None:
        return np.arange(n)
    if strengths.dtype.kind == "f":
        strengths = np.where(np.isnan(strengths), -np.inf, strengths)
    # Backwards twice: a stable sort leaves equal ones in their order.
    return n - 1 - np.argsort(strengths[::-1], kind="stable")[::-1]


# The same blobs


def _same(
    points: NDArray[np.float64], reach: NDArray[np.float64], tiles: NDArray[np.int64], by: By
) -> NDArray[np.int64]:
    """Pairs of rows that different tiles have found and that are within reach, shape (pairs, 2)."""
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    pairs = finite[_near(points[finite], reach, by)]
    pairs = pairs[tiles[pairs[:, 0]] != tiles[pairs[:, 1]]]
    same: NDArray[np.int64] = pairs[_within_reach(np.abs(points[pairs[:, 0]] - points[pairs[:, 1]]), reach, by)]
    return same


def _near(points: NDArray[np.float64], reach: NDArray[np.float64], by: By) -> NDArray[np.int64]:
    """Pairs of points that may be within reach: all that are, and some that are not by no more than rounding."""
    from scipy.spatial import KDTree

    largest = np.abs(points).max(axis=0, initial=0.0)
    precision = np.finfo(np.float64).eps
    # No finer than coordinates are themselves: so that none overflows, and a reach of 0 is one of these.
    unit = np.maximum(reach, largest * precision)
    scaled = points / np.where(unit > 0, unit, 1.0)
    radius = 1.0 + 4 * precision * (1.0 + np.abs(scaled).max(initial=0.0))
    tree = KDTree(scaled, balanced_tree=False, compact_nodes=False)
    pairs: NDArray[np.int64] = tree.query_pairs(radius, p=np.inf if by == "box" else 2.0, output_type="ndarray")
    return pairs


def _within_reach(difference: NDArray[np.float64], reach: NDArray[np.float64], by: By) -> NDArray[np.bool_]:
    if by == "box":
        return np.asarray((difference <= reach).all(axis=1))
    free = reach > 0
    squares = (difference[:, free] / reach[free]) ** 2
    return np.asarray((difference[:, ~free] == 0).all(axis=1) & (squares.sum(axis=1) <= 1))


def _ranked(pairs: NDArray[np.int64], rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stronger and the weaker row of each pair."""
    one, other = pairs.T
    is_first = rank[one] < rank[other]
    return np.where(is_first, one, other), np.where(is_first, other, one)


def _groups(
    kept: NDArray[np.bool_], before: NDArray[Any], after: NDArray[Any], rank: NDArray[Any], order: NDArray[Any]
) -> NDArray[np.int64]:
    """For each row the one that stays for it: itself, or the strongest that dropped it."""
    strongest = rank.copy()
    dropping = kept[before]
    strongest[after[dropping]] = len(rank)
    np.minimum.at(strongest, after[dropping], rank[before[dropping]])
    groups: NDArray[np.int64] = order[strongest]
    return groups


def _means(table: NDArray[Any], groups: NDArray[np.int64], layout: _Layout) -> NDArray[Any]:
    """Each row that others are grouped with as the mean of its group, but for the index of the tile."""
    means = table.astype(table.dtype if table.dtype.kind == "f" else np.float64)
    members = np.maximum(np.bincount(groups, minlength=len(table)), 1)
    for column in range(layout.place.start):
        means[:, column] = np.bincount(groups, table[:, column].astype(np.float64), len(table)) / members
    return means
