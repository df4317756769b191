"""Dask graphs: the only module that builds them.

::

    begin ──► stage 0 ──► scan 0..63 ──► unite ──► finish 0
          ├─► stage 1 ──┘                       ├─► finish 1
          └─► ...                               └─► ...

One task per tile and step, or per batch of tiles where there are so many that a scheduler would not bear a task for
each. What is common to all tasks is the value of one key, so that no task carries it; the steps pass on counts and
pairs of labels, never voxels: these go through the stage.
"""

from __future__ import annotations

import functools
import itertools
import operator
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import MethodType
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, List, Task, TaskRef
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.base import optimize
from dask.blockwise import Blockwise
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from numpy.typing import NDArray

from blockbuster.errors import TileError
from blockbuster.grid import Region, Tile, TileGrid, met, region_shape
from blockbuster.schedulers import computed

__all__ = [
    "Blocks",
    "Input",
    "Pass",
    "PassesGraph",
    "ReducingGraph",
    "RunGraph",
    "Steps",
    "array_of",
    "array_of_tiles",
    "batch_size",
    "compute_arrays",
    "compute_value",
    "map_tiles",
    "read_as_it_is",
    "renumbered_blocks",
    "run_graph",
    "scalar_of",
    "table_of_tiles",
    "values_in_graph",
]

Layer: TypeAlias = dict[Any, Any]

# Tiles per scanning task: enough of them for few tasks, few enough for all workers to take part.
_SCAN_TILES = 64
_SCAN_TASKS = 64
# Tasks of one step, above which tiles are taken in batches: a task costs its client and scheduler some kilobytes and a
# millisecond, and this many keep thousands of workers busy.
_MOST_TASKS = 20_000
# Values that one task makes one of.
_FAN_IN = 8
# Tasks of a layer that are looked at for what they read: a layer reads from one object, or each task from its own.
_LEAVES = 10_000


@dataclass(frozen=True)
class Steps:
    """The work of a run: picklable functions, each one task.

    Attributes
    ----------
    begin : callable
        ``(samples) -> run``: what every other task gets as its first argument.
    sample : callable
        ``(tile, *blocks) -> sample``, before `begin`, of the tiles in `sampled`.
    sampled : sequence of int
        Block ids.
    stage : callable
        ``(run, block_id, *blocks) -> error or None``; blocks are the padded regions of inputs that are not stored.
    scan : callable
        ``(run, block_ids, staged) -> part``, after these tiles and their neighbours are staged; `staged` is what the
        staging of all of them returned.
    unite : callable
        ``(run, parts) -> result``.
    finish : callable
        ``(run, number) -> value``, after all the rest.
    """

    begin: Callable[[list[Any]], Any]
    sample: Callable[..., Any]
    sampled: Sequence[int]
    stage: Callable[..., Any]
    scan: Callable[[Any, tuple[int, ...], list[Any]], Any]
    unite: Callable[[Any, list[Any]], Any]
    finish: Callable[[Any, int], Any]


@dataclass(frozen=True)
class Blocks:
    """A dask array each of whose blocks is one padded tile."""

    array: da.Array


@dataclass(frozen=True)
class RunGraph:
    """The graph of a run up to its union, on which the last step is built.

    Attributes
    ----------
    token : str
        In the name of every key of the run.
    batch, scan_batch : int
        Tiles in each task that stages, and in each that scans.
    """

    token: str
    layers: dict[str, Any]
    dependencies: dict[str, set[str]]
    begin: TaskRef
    union: TaskRef
    steps: Steps
    batch: int
    scan_batch: int

    def key(self, step: str) -> str:
        """Name of the keys of one step."""
        return f"{step}-{self.token}"


def run_graph(
    steps: Steps,
    grid: TileGrid,
    block_ids: Sequence[int],
    neighbours: Callable[[int], Sequence[int]],
    images: Sequence[NDArray[Any] | da.Array | Blocks | None],
    *,
    resources: Mapping[str, float] | None,
) -> RunGraph:
    """Tasks that stage, scan and unite some tiles.

    Parameters
    ----------
    steps : Steps
        What the tasks do.
    grid : TileGrid
        The tiles.
    block_ids : sequence of int
        Tiles to stage.
    neighbours : callable
        The other tiles whose records the scan of a tile reads.
    images : sequence of (ndarray, dask array, Blocks or None)
        Inputs whose padded regions the tasks are given; None for one that the task reads itself.
    resources : mapping, optional
        Resources of distributed workers that one staging task takes.
    """
    token = uuid.uuid4().hex
    begin_key, union_key = f"begin-{token}", f"unite-{token}"
    run = TaskRef(begin_key)
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    given = [
        _giver(image, f"pieces{number}-{token}", layers, dependencies)
        for number, image in enumerate(images)
        if image is not None
    ]

    def blocks(block_id: int) -> list[Any]:
        return [block(tile, tile.padded) for tile in [grid.tile(block_id)] for block in given]

    inputs = set(layers)
    sample_name, stage_name, scan_name = f"sample-{token}", f"stage-{token}", f"scan-{token}"
    samples: Layer = {}
    for block_id in steps.sampled:
        key = (sample_name, block_id)
        samples[key] = Task(key, steps.sample, grid.tile(block_id), *blocks(block_id))
    layers[sample_name] = samples
    dependencies[sample_name] = inputs
    sampled = List(*(TaskRef(key) for key in samples))
    layers[begin_key] = {begin_key: Task(begin_key, steps.begin, sampled)}
    dependencies[begin_key] = {sample_name}
    batches = _Batches(stage_name, block_ids, 1 if given else None)
    staged: Layer = {}
    for key, batch in batches:
        pieces = blocks(batch[0]) if given else []
        staged[key] = Task(key, _errors_of, steps.stage, run, batch, *pieces)
    layers[stage_name] = MaterializedLayer(staged, annotations={"resources": dict(resources)} if resources else None)
    dependencies[stage_name] = {begin_key, *inputs}
    scan_batch = max(min(max(len(block_ids) // _SCAN_TASKS, 1), _SCAN_TILES), batches.size)
    layers[scan_name] = _scan_layer(steps, run, scan_name, batches, neighbours, scan_batch)
    dependencies[scan_name] = {begin_key, stage_name}
    parts = List(*(TaskRef(key) for key in layers[scan_name]))
    layers[union_key] = {union_key: Task(union_key, steps.unite, run, parts)}
    dependencies[union_key] = {begin_key, scan_name}
    return RunGraph(token, layers, dependencies, run, TaskRef(union_key), steps, batches.size, scan_batch)


def array_of(graph: RunGraph, grid: TileGrid, block_ids: Sequence[int], dtype: np.dtype[Any]) -> da.Array:
    """The lazy array of the final blocks: tiles not in `block_ids` are 0."""
    name = graph.key("labels")
    wanted = set(block_ids)
    blocks: Layer = {}
    indices = itertools.product(*(range(len(c)) for c in grid.chunks))
    empty = 0 in grid.shape
    for number, index in enumerate(indices):
        key = (name, *index)
        if empty or number not in wanted:
            shape = tuple(c[i] for c, i in zip(grid.chunks, index, strict=True))
            blocks[key] = Task(key, np.zeros, shape, dtype)
        else:
            blocks[key] = Task(key, _after, graph.union, graph.steps.finish, graph.begin, number)
    layers = {**graph.layers, name: blocks}
    dependencies = {**graph.dependencies, name: {graph.key("begin"), graph.key("unite")}}
    return da.Array(HighLevelGraph(layers, dependencies), name, grid.chunks, dtype=dtype)


def compute_value(graph: RunGraph, numbers: Sequence[int]) -> Any:
    """Run everything, the last step for each of `numbers`; returns the result of the union."""
    name, end = graph.key("finish"), graph.key("end")
    finished: Layer = {}
    for key, batch in _Batches(name, numbers):
        finished[key] = Task(key, _finish, graph.union, graph.steps.finish, graph.begin, batch)
    done = List(*(TaskRef(key) for key in finished))
    layers = {**graph.layers, name: finished, end: {end: Task(end, _first, graph.union, done)}}
    dependencies = {
        **graph.dependencies,
        name: {graph.key("begin"), graph.key("unite")},
        end: {graph.key("unite"), name},
    }
    (result,) = computed(Delayed(end, HighLevelGraph(layers, dependencies)))
    return result


def scalar_of(graph: RunGraph, function: Callable[[Any], int]) -> da.Array:
    """The lazy 0-d array of a number that the result of the union tells."""
    name = graph.key("scalar")
    key = (name,)
    layers = {**graph.layers, name: {key: Task(key, _scalar, graph.union, function)}}
    dependencies = {**graph.dependencies, name: {graph.key("unite")}}
    return da.Array(HighLevelGraph(layers, dependencies), name, (), dtype=np.int64)


def compute_arrays(*arrays: da.Array) -> tuple[NDArray[Any], ...]:
    """Arrays in memory, their common graph run once."""
    return computed(*arrays)


@dataclass(frozen=True)
class Input:
    """What the tasks of a pass are given of an image that they do not read themselves.

    Attributes
    ----------
    image : ndarray, dask array or Blocks
        The image.
    region : callable
        ``tile -> region`` of the image.
    """

    image: NDArray[Any] | da.Array | Blocks
    region: Callable[[Tile], Region] = operator.attrgetter("padded")


@dataclass(frozen=True)
class Pass:
    """One task for each of some tiles.

    Attributes
    ----------
    function : callable
        ``(tile, *blocks) -> value``, one block for each input. A value that is a `TileError` is that of the tiles that
        need it as well.
    block_ids : sequence of int
        Which tiles of the grid.
    needs : callable, optional
        ``tile -> block ids``: which tiles of the pass before must be done.
    """

    function: Callable[..., Any]
    grid: TileGrid
    block_ids: Sequence[int]
    inputs: Sequence[Input] = ()
    needs: Callable[[Tile], Sequence[int]] | None = None


class PassesGraph:
    """The graph of passes of which each may need tiles of the one before.

    Attributes
    ----------
    grids : dict of TileGrid
        The grid whose tiles the keys of one name are.
    batches : dict of int
        Tiles in each task of one name of keys.
    """

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._layers: dict[str, Any] = {}
        self._dependencies: dict[str, set[str]] = {}
        self._end = f"end-{uuid.uuid4().hex}"
        batches = [
            _Batches(f"tiles{number}-{uuid.uuid4().hex}", one.block_ids, 1 if one.inputs else None)
            for number, one in enumerate(passes)
        ]
        self.grids = {all_of.name: one.grid for all_of, one in zip(batches, passes, strict=True)}
        self.batches = {all_of.name: all_of.size for all_of in batches}
        for number, one in enumerate(passes):
            self._add(one, batches[number], batches[number - 1] if number else None)
        done = List(*(TaskRef(key) for name in self.grids for key in self._layers[name]))
        self._layers[self._end] = {self._end: Task(self._end, _flat, done)}
        self._dependencies[self._end] = set(self.grids)

    def compute(self) -> list[Any]:
        """Run all; returns the values, pass by pass."""
        (values,) = computed(Delayed(self._end, HighLevelGraph(self._layers, self._dependencies)))
        made: list[Any] = values
        return made

    def _add(self, one: Pass, batches: _Batches, before: _Batches | None) -> None:
        task = _pass_tasks(one, batches.name, self._layers, self._dependencies)
        layer: Layer = {}
        for key, batch in batches:
            needs = [one.needs(one.grid.tile(n)) for n in batch] if one.needs is not None else []
            needed = dict.fromkeys(before.key(n) for tiles in needs for n in tiles) if before is not None else {}
            layer[key] = task(key, _each, batch, [key for key in needed if key is not None])
        self._dependencies[batches.name] = set(self._layers)
        self._layers[batches.name] = layer


class ReducingGraph:
    """The graph of a pass whose values are joined to one, a few at a time: no task is given many, nor is the client.

    Attributes
    ----------
    batches : dict of int
        Tiles in each task of one name of keys.
    """

    def __init__(self, one: Pass, join: Callable[[list[Any]], Any]) -> None:
        token = uuid.uuid4().hex
        name, joined = f"tiles-{token}", f"joined-{token}"
        self._layers: dict[str, Any] = {}
        self._dependencies: dict[str, set[str]] = {}
        task = _pass_tasks(one, name, self._layers, self._dependencies)
        batches = _Batches(name, one.block_ids, 1 if one.inputs else None)
        way = functools.partial(_joined_tiles, join)
        layer: Layer = {key: task(key, way, batch, []) for key, batch in batches}
        self.batches = {name: batches.size}
        self._dependencies[name] = set(self._layers)
        self._layers[name] = layer
        tree = _tree(joined, join, list(layer))
        self._layers[joined] = tree
        self._dependencies[joined] = {name}
        self._end = list(tree)[-1]

    def compute(self) -> Any:
        """Run all; returns the one value."""
        name = f"end-{uuid.uuid4().hex}"
        end = {name: Task(name, _itself, TaskRef(self._end))}
        layers = {**self._layers, name: end}
        dependencies = {**self._dependencies, name: {self._end[0]}}
        (value,) = computed(Delayed(name, HighLevelGraph(layers, dependencies)))
        return value


def _tree(name: str, join: Callable[[list[Any]], Any], keys: Sequence[Any]) -> Layer:
    """Tasks that join the values of some keys, in rounds; the last of them joins all."""
    layer: Layer = {}
    while True:
        groups = [keys[begin : begin + _FAN_IN] for begin in range(0, len(keys), _FAN_IN)] or [[]]
        keys = [(name, len(layer) + number) for number in range(len(groups))]
        for key, group in zip(keys, groups, strict=True):
            layer[key] = Task(key, join, List(*map(TaskRef, group)))
        if len(groups) == 1:
            return layer


def map_tiles(
    function: Callable[[Tile, NDArray[Any] | None], Any],
    grid: TileGrid,
    block_ids: Sequence[int],
    image: NDArray[Any] | da.Array | Blocks | None,
) -> list[Any]:
    """One small value for each of some tiles: ``function(tile, padded block)``.

    Parameters
    ----------
    function : callable
        Gets None for the block where `image` is None: it reads that itself.
    grid : TileGrid
        The tiles.
    block_ids : sequence of int
        Which of them.
    image : ndarray, dask array, Blocks or None
        What is not stored.
    """
    inputs = [] if image is None else [Input(image)]
    given = function if inputs else functools.partial(_without_block, function)
    return PassesGraph([Pass(given, grid, block_ids, inputs)]).compute()


def array_of_tiles(one: Pass, dtype: np.dtype[Any]) -> da.Array:
    """The lazy array of the blocks that a pass makes: tiles not in its `block_ids` are 0."""
    name = f"tiles-{uuid.uuid4().hex}"
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    task = _pass_tasks(one, name, layers, dependencies)
    wanted = set(one.block_ids)
    blocks: Layer = {}
    for number, index in enumerate(itertools.product(*(range(len(c)) for c in one.grid.chunks))):
        key = (name, *index)
        if 0 in one.grid.shape or number not in wanted:
            shape = tuple(c[i] for c, i in zip(one.grid.chunks, index, strict=True))
            blocks[key] = Task(key, np.zeros, shape, dtype)
        else:
            blocks[key] = task(key, _only, (number,), [])
    dependencies[name] = set(layers)
    layers[name] = blocks
    return da.Array(HighLevelGraph(layers, dependencies), name, one.grid.chunks, dtype=dtype)


def table_of_tiles(one: Pass, n_columns: int, dtype: np.dtype[Any]) -> da.Array:
    """The lazy array of the rows that a pass finds, tile after tile: how many there are is not known before."""
    name = f"rows-{uuid.uuid4().hex}"
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    task = _pass_tasks(one, name, layers, dependencies)
    blocks: Layer = {}
    for number, (_, batch) in enumerate(_Batches(name, one.block_ids, 1 if one.inputs else None)):
        blocks[(name, number, 0)] = task((name, number, 0), _stacked, batch, [])
    rows: tuple[float, ...] = (np.nan,) * len(blocks)
    if not blocks:
        rows, key = (0,), (name, 0, 0)
        blocks[key] = Task(key, np.empty, (0, n_columns), dtype)
    dependencies[name] = set(layers)
    layers[name] = blocks
    return da.Array(HighLevelGraph(layers, dependencies), name, (rows, (n_columns,)), dtype=dtype)


def _pass_tasks(
    one: Pass, name: str, layers: dict[str, Any], dependencies: dict[str, set[str]]
) -> Callable[[Any, Callable[..., Any], tuple[int, ...], Sequence[Any]], Task]:
    """What makes the task of some tiles: ``(key, way, tiles, keys to wait for) -> task``.

    It adds to the graph what all tasks share.
    """
    shared = f"function-{name}"
    layers[shared] = {shared: DataNode(shared, functools.partial(_on_tile, one.function, one.grid))}
    dependencies[shared] = set()
    givers = [
        (_giver(source.image, f"pieces{number}-{name}", layers, dependencies), source.region)
        for number, source in enumerate(one.inputs)
    ]

    def task(key: Any, way: Callable[..., Any], batch: tuple[int, ...], after: Sequence[Any]) -> Task:
        tile = one.grid.tile(batch[0]) if givers else None
        blocks = [block(tile, region(tile)) for block, region in givers] if tile is not None else []
        if after:
            return Task(key, _unless_failed, List(*map(TaskRef, after)), way, TaskRef(shared), batch, *blocks)
        return Task(key, way, TaskRef(shared), batch, *blocks)

    return task


def renumbered_blocks(
    first: da.Array,
    labels: da.Array,
    find: Callable[[NDArray[Any]], Any],
    join: Callable[[list[Any]], list[Any]],
    change: Callable[[NDArray[Any], Any], NDArray[Any]],
) -> da.Array:
    """Change each block of `labels` by what all blocks of `first`, the same array, tell together.

    Parameters
    ----------
    find : callable
        ``block -> found``, for each block of `first`.
    join : callable
        ``[found, ...] -> [told, ...]``, one for each block.
    change : callable
        ``(block, told) -> block``, for each block of `labels`.
    """
    token = uuid.uuid4().hex
    name, found_name, told_name, end = (f"{step}-{token}" for step in ("labels", "found", "told", "joined"))
    indices = list(itertools.product(*map(range, labels.numblocks)))
    found: Layer = {(found_name, *i): Task((found_name, *i), find, TaskRef((first.name, *i))) for i in indices}
    joined: Layer = {end: Task(end, join, List(*(TaskRef(key) for key in found)))}
    told: Layer = {
        (told_name, *i): Task((told_name, *i), operator.getitem, TaskRef(end), n) for n, i in enumerate(indices)
    }
    changed: Layer = {
        (name, *i): Task((name, *i), change, TaskRef((labels.name, *i)), TaskRef((told_name, *i))) for i in indices
    }
    base = HighLevelGraph.merge(first.dask, labels.dask)
    layers: dict[str, Any] = {**base.layers, found_name: found, end: joined, told_name: told, name: changed}
    dependencies: dict[str, set[str]] = {
        **base.dependencies,
        found_name: {first.name},
        end: {found_name},
        told_name: {end},
        name: {labels.name, told_name},
    }
    return da.Array(HighLevelGraph(layers, dependencies), name, labels.chunks, dtype=labels.dtype)


def values_in_graph(array: da.Array, kind: type) -> list[Any]:
    """Objects of a type that tasks of a dask array read from."""
    found: dict[int, Any] = {}
    for layer in array.dask.layers.values():
        for leaf in _leaves(layer):
            found.update((id(value), value) for value in _parts_of(leaf) if isinstance(value, kind))
    return list(found.values())


def read_as_it_is(array: da.Array, kind: type) -> Any | None:
    """The object whose blocks a dask array is, if all that its graph does is to read them; else None."""
    layer = array.dask.layers[array.name]
    sources = values_in_graph(array, kind)
    if len(sources) != 1 or len(array.dask.layers) > 2 or not isinstance(layer, Blockwise):
        return None
    reads = layer.task.func in (getter, getter_inline, getter_nofancy)
    same = sources[0].shape == array.shape and sources[0].dtype == array.dtype
    return sources[0] if reads and same else None


def _leaves(layer: Any) -> Iterator[Any]:
    if isinstance(layer, Blockwise):
        yield from (index[0] for index in layer.indices)
        return
    for node in itertools.islice(layer.values(), _LEAVES):
        yield node.value if isinstance(node, DataNode) else node
        yield from (node.func, *node.args) if isinstance(node, Task) else ()


def _parts_of(value: Any) -> Iterator[Any]:
    """A value, and what a function is bound to."""
    yield value
    if isinstance(value, MethodType):
        yield from _parts_of(value.__self__)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _parts_of(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield getattr(value, one.name)


def _scalar(value: Any, function: Callable[[Any], int]) -> NDArray[np.int64]:
    return np.array(function(value), np.int64)


def _without_block(function: Callable[[Tile, None], Any], tile: Tile) -> Any:
    return function(tile, None)


class _Batches:
    """The tiles of a step, in as many tasks as a scheduler bears; the key of a task has the number of its first tile.

    Attributes
    ----------
    size : int
        Tiles in a task.
    """

    def __init__(self, name: str, block_ids: Sequence[int], size: int | None = None) -> None:
        self.name = name
        self.block_ids = block_ids
        self.size = size if size is not None else batch_size(block_ids)

    def __iter__(self) -> Iterator[tuple[tuple[str, int], tuple[int, ...]]]:
        for begin in range(0, len(self.block_ids), self.size):
            batch = tuple(self.block_ids[begin : begin + self.size])
            yield (self.name, batch[0]), batch

    def key(self, block_id: int) -> tuple[str, int] | None:
        """The key of the task of a tile; None for a tile that is not one of these."""
        place = self._places.get(block_id)
        return None if place is None else (self.name, self.block_ids[place - place % self.size])

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {block_id: place for place, block_id in enumerate(self.block_ids)}


def batch_size(block_ids: Sequence[int]) -> int:
    """How many of some tiles are one task, where tasks read their blocks themselves."""
    return max(-(-len(block_ids) // _MOST_TASKS), 1)


def _errors_of(stage: Callable[..., Any], run: Any, batch: tuple[int, ...], *blocks: Any) -> list[Any]:
    """Stage some tiles; returns what is wrong with those that failed."""
    return [error for error in (stage(run, block_id, *blocks) for block_id in batch) if error is not None]


def _scanned(scan: Callable[..., Any], run: Any, batch: tuple[int, ...], errors: list[list[Any]]) -> Any:
    return scan(run, batch, _flat(errors))


def _finish(_union: object, finish: Callable[[Any, int], Any], run: Any, batch: tuple[int, ...]) -> None:
    for number in batch:
        finish(run, number)


def _on_tile(function: Callable[..., Any], grid: TileGrid, number: int, *blocks: Any) -> Any:
    return function(grid.tile(number), *blocks)


def _each(function: Callable[..., Any], batch: tuple[int, ...], *blocks: Any) -> list[Any]:
    return [function(number, *blocks) for number in batch]


def _joined_tiles(
    join: Callable[[list[Any]], Any], function: Callable[..., Any], batch: tuple[int, ...], *blocks: Any
) -> Any:
    """One value of some tiles, of which two values are held at a time."""
    first, *others = batch
    return functools.reduce(
        lambda made, number: join([made, function(number, *blocks)]), others, function(first, *blocks)
    )


def _itself(value: Any) -> Any:
    return value


def _only(function: Callable[..., Any], batch: tuple[int, ...], *blocks: Any) -> Any:
    return function(batch[0], *blocks)


def _stacked(function: Callable[..., Any], batch: tuple[int, ...], *blocks: Any) -> NDArray[Any]:
    return np.concatenate([function(number, *blocks) for number in batch])


def _flat(values: Sequence[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(values))


def _giver(
    image: NDArray[Any] | da.Array | Blocks, name: str, layers: dict[str, Any], dependencies: dict[str, set[str]]
) -> Callable[[Tile, Region], Any]:
    """What gives the task of a tile a region of an image; adds to the graph what that takes."""
    if isinstance(image, np.ndarray):
        return lambda _tile, region: image[region]
    (optimized,) = optimize(image.array if isinstance(image, Blocks) else image)
    source = HighLevelGraph.from_collections(f"source-{name}", {}, dependencies=[optimized])
    layers.update(source.layers)
    dependencies.update(source.dependencies)
    if isinstance(image, Blocks):
        return lambda tile, _region: TaskRef((optimized.name, *tile.index))
    pieces = _Pieces(optimized, name)
    layers[name] = pieces.parts
    dependencies[name] = set(source.layers)
    return lambda _tile, region: pieces.block(region)


def _scan_layer(
    steps: Steps,
    run: TaskRef,
    name: str,
    staged: _Batches,
    neighbours: Callable[[int], Sequence[int]],
    size: int,
) -> Layer:
    layer: Layer = {}
    tiles = staged.block_ids
    for number, begin in enumerate(range(0, len(tiles), size)):
        batch = tuple(tiles[begin : begin + size])
        needed = dict.fromkeys(staged.key(n) for block_id in batch for n in (block_id, *neighbours(block_id)))
        after = List(*(TaskRef(one) for one in needed if one is not None))
        key = (name, number)
        layer[key] = Task(key, _scanned, steps.scan, run, batch, after)
    return layer


def _after(_barrier: object, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _unless_failed(before: Sequence[list[Any]], function: Callable[..., Any], *args: Any) -> Any:
    """The values of a task, or the error of a tile that it needs."""
    for error in _flat(before):
        if isinstance(error, TileError):
            return [error]
    return function(*args)


def _first(value: Any, _rest: object) -> Any:
    return value


class _Pieces:
    """The blocks of a dask array cut to what padded tiles need of them.

    A block that a tile needs whole is the task's own input. Of others only the part needed is passed on, once for all
    tiles that need the same part, so that the block itself can be released.
    """

    def __init__(self, image: da.Array, name: str) -> None:
        self.parts: Layer = {}
        self._image = image
        self._name = name
        self._bounds = [tuple(itertools.accumulate(c, initial=0)) for c in image.chunks]

    def block(self, wanted: Region) -> Task:
        """A task that puts a region of the image together."""
        ranges = [met(cuts, s.start, s.stop) for cuts, s in zip(self._bounds, wanted, strict=True)]
        placed = [self._placed(index, wanted) for index in itertools.product(*ranges)]
        regions, parts = [region for region, _ in placed], List(*(ref for _, ref in placed))
        return Task(None, _assemble, region_shape(wanted), self._image.dtype, regions, parts)

    def _placed(self, index: tuple[int, ...], padded: Region) -> tuple[Region, TaskRef]:
        block = [(cuts[i], cuts[i + 1]) for cuts, i in zip(self._bounds, index, strict=True)]
        common = [(max(lo, s.start), min(hi, s.stop)) for (lo, hi), s in zip(block, padded, strict=True)]
        where = tuple(slice(a - s.start, b - s.start) for (a, b), s in zip(common, padded, strict=True))
        key = (self._image.name, *index)
        if common == block:
            return where, TaskRef(key)
        part = tuple(slice(a - lo, b - lo) for (a, b), (lo, _) in zip(common, block, strict=True))
        part_key = (self._name, *index, *(bound for s in part for bound in (s.start, s.stop)))
        if part_key not in self.parts:
            self.parts[part_key] = Task(part_key, _cut, TaskRef(key), part)
        return where, TaskRef(part_key)


def _cut(block: NDArray[Any], part: Region) -> NDArray[Any]:
    # A copy: a view would keep the whole block in memory.
    return np.array(block[part])


def _assemble(
    shape: tuple[int, ...], dtype: np.dtype[Any], regions: Sequence[Region], blocks: Sequence[Any]
) -> NDArray[Any]:
    if len(blocks) == 1 and region_shape(regions[0]) == shape:
        return np.asarray(blocks[0])
    out = np.empty(shape, dtype)
    for region, block in zip(regions, blocks, strict=True):
        out[region] = block
    return out
