"""What a run costs in exact numbers: tasks, calls, reads, writes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback
from numpy.typing import NDArray
from zarr.storage import MemoryStore

import blockbuster
import blockbuster.run
import blockbuster.stage
from blockbuster.grid import TileGrid
from blockbuster.outputs import Output
from blockbuster.stage import Stage, TileRecord
from tests.helpers import Recording, components, digest, padded_blocks
from tests.oracles import scipy_labels

SHAPE = (20, 33, 17)
IMAGE = (np.random.default_rng(0).random(SHAPE) < 0.3).astype(np.uint8)
TILES = (8, 8, 8)
N_TILES = 3 * 5 * 3


# Calls of the function


def test_every_scheduler_calls_the_function_once_per_tile(scheduler: str, tmp_path: Path) -> None:
    fn = Recording(tmp_path)
    blockbuster.tile_process(IMAGE, fn, tile_shape=TILES, overlap=2, compute=True)
    assert Counter(map(_bytes, fn.blocks())) == _padded(2)


@pytest.mark.filterwarnings("ignore:overlap .* exceeds the tile shape")
@pytest.mark.parametrize("overlap", [0, 1, (3, 0, 9)])
def test_the_function_is_given_the_padded_tile(overlap: Any, synchronous: None, tmp_path: Path) -> None:
    fn = Recording(tmp_path)
    blockbuster.tile_process(IMAGE, fn, tile_shape=TILES, overlap=overlap, compute=True)
    assert Counter(map(_bytes, fn.blocks())) == _padded(overlap)


def _padded(overlap: Any) -> Counter[Any]:
    return Counter(map(_bytes, padded_blocks(IMAGE, TILES, np.broadcast_to(overlap, 3).tolist())))


def _bytes(block: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    return block.shape, block.tobytes()


def test_computing_again_or_in_parts_calls_the_function_no_more(synchronous: None, tmp_path: Path) -> None:
    fn = Recording(tmp_path)
    labels = blockbuster.tile_process(IMAGE, fn, tile_shape=TILES)
    first = labels.compute()
    assert fn.n_calls == N_TILES
    assert (labels[3:12, 5].compute() == first[3:12, 5]).all()
    assert int((labels > 0).sum().compute()) == np.count_nonzero(first)
    assert (labels.compute() == first).all()
    assert fn.n_calls == N_TILES


def test_a_part_of_the_result_needs_every_tile_once_and_relabels_its_own(
    synchronous: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads = _count_array_reads(monkeypatch)
    fn = Recording(tmp_path)
    labels = blockbuster.tile_process(IMAGE, fn, tile_shape=TILES)
    labels[0, 0, 0].compute()
    assert fn.n_calls == N_TILES
    assert reads["finish", "labels"] == 1


def test_tiles_not_asked_for_are_not_computed(synchronous: None, tmp_path: Path) -> None:
    fn = Recording(tmp_path)
    blockbuster.tile_process(IMAGE, fn, tile_shape=TILES, block_ids=[0, 7, 7, 44], compute=True)
    assert fn.n_calls == 3


# Reads of the stage


def _count_array_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each array of records is read, by the step that reads it."""
    reads: Counter[tuple[str, str]] = Counter()
    step = ["?"]
    read = TileRecord.array

    def counted(record: TileRecord, name: str) -> NDArray[Any]:
        reads[step[0], name] += 1
        return read(record, name)

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any) -> Any:
            before, step[0] = step[0], name
            try:
                return function(*args)
            finally:
                step[0] = before

        return entered

    monkeypatch.setattr(TileRecord, "array", counted)
    for name, function in (("scan", "scan"), ("finish", "final_block"), ("finish", "write_block")):
        monkeypatch.setattr(blockbuster.run, function, within(name, getattr(blockbuster.run, function)))
    return reads


RUNS: dict[str, Callable[[Any], Any]] = {
    "label, raster": lambda options: blockbuster.label(IMAGE, tile_shape=TILES, connectivity=3, **options),
    "label, tile": lambda options: blockbuster.label(IMAGE, tile_shape=TILES, numbering="tile", **options),
    "label, by value": lambda options: blockbuster.label(IMAGE, tile_shape=TILES, by_value=True, **options),
    "tile_process, touching": lambda options: blockbuster.tile_process(
        IMAGE, components, tile_shape=TILES, overlap=2, **options
    ),
    "tile_process, iou": lambda options: blockbuster.tile_process(
        IMAGE, components, tile_shape=TILES, overlap=2, merge="iou", **options
    ),
    "tile_process, contact": lambda options: blockbuster.tile_process(
        IMAGE, components, tile_shape=TILES, merge="contact", **options
    ),
    "merge_tile_labels": lambda options: blockbuster.merge_tile_labels(da.from_array(IMAGE, chunks=TILES), **options),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("sink", ["lazy", "stored"])
def test_scanning_reads_no_labels_and_relabelling_reads_them_once(
    run: str, sink: str, synchronous: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads = _count_array_reads(monkeypatch)
    if sink == "lazy":
        RUNS[run]({}).compute()
    else:
        RUNS[run]({"write_to": tmp_path / "out.zarr"})
    assert reads["scan", "labels"] == 0
    assert sum(reads[key] for key in reads if key[0] == "scan") > 0
    assert {key: n for key, n in reads.items() if key[0] != "scan"} == {("finish", "labels"): N_TILES}


def test_scanning_reads_each_plane_of_a_face_once_with_faces_as_contacts(
    synchronous: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _count_array_reads(monkeypatch)
    blockbuster.label(IMAGE, tile_shape=TILES, numbering="tile", compute=True)
    grid = TileGrid.regular(SHAPE, TILES)
    seams = {axis: N_TILES // grid.numblocks[axis] * (grid.numblocks[axis] - 1) for axis in range(3)}
    planes = {("scan", f"plane-{axis}-{side}"): n for axis, n in seams.items() for side in (0, 1)}
    assert {key: n for key, n in reads.items() if key[0] == "scan"} == planes


def test_empty_tiles_are_read_by_no_step(synchronous: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = _count_array_reads(monkeypatch)
    image = np.zeros((80, 80), np.uint8)
    image[3:6, 3:25] = 1  # tiles 0, 1 and 2 of the first row of ten
    assert blockbuster.label(image, tile_shape=(8, 8), compute=True).max() == 1
    assert reads["finish", "labels"] == 4
    assert all(n <= 4 for n in reads.values())


def test_each_record_is_written_once(synchronous: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = Stage.write_tile

    def counted(stage: Stage, block_id: int, *rest: Any) -> None:
        written.append(block_id)
        write(stage, block_id, *rest)

    monkeypatch.setattr(Stage, "write_tile", counted)
    labels = blockbuster.label(IMAGE, tile_shape=TILES)
    labels.compute()
    labels.compute()
    assert sorted(written) == list(range(N_TILES))


def test_a_record_takes_about_as_many_bytes_as_its_ids_need(synchronous: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[np.dtype[Any]] = []
    encode = blockbuster.stage._encode

    def noted(array: NDArray[Any], pieces: list[bytes]) -> Any:
        kept.append(array.dtype)
        return encode(array, pieces)

    monkeypatch.setattr(blockbuster.stage, "_encode", noted)
    blockbuster.label(IMAGE, tile_shape=TILES, numbering="tile", compute=True)
    assert set(kept) == {np.dtype(np.uint8)}


# Tasks


class _Tasks(Callback):  # type: ignore[misc]
    """The keys that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Any] = []

    def _pretask(self, key: Any, *_: Any) -> None:
        self.keys.append(key)


def _sources(path: Path) -> dict[str, Any]:
    array = zarr.create_array(path / "in.zarr", data=IMAGE, chunks=TILES)
    return {"numpy": IMAGE, "zarr": array, "path": path / "in.zarr"}


@pytest.mark.parametrize("kind", ["numpy", "zarr", "path"])
@pytest.mark.parametrize("tile_shape", [TILES, (3, 3, 3), (1, 33, 1)])
def test_a_graph_has_at_most_four_tasks_per_tile(kind: str, tile_shape: tuple[int, ...], tmp_path: Path) -> None:
    labels = blockbuster.label(_sources(tmp_path)[kind], tile_shape=tile_shape)
    n_tiles = TileGrid.regular(SHAPE, tile_shape).n_tiles
    assert len(labels.dask) <= 4 * n_tiles


@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_overlap_costs_no_tasks(kind: str, tmp_path: Path) -> None:
    image = _sources(tmp_path)[kind]
    sizes = {
        len(blockbuster.tile_process(image, components, tile_shape=TILES, overlap=overlap).dask) for overlap in (0, 3)
    }
    assert len(sizes) == 1
    assert sizes.pop() <= 4 * N_TILES


@pytest.mark.parametrize("kind", ["numpy", "zarr"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_at_most_four_tasks_per_tile_run(kind: str, with_mask: bool, synchronous: None, tmp_path: Path) -> None:
    image = _sources(tmp_path)[kind]
    options = {"mask": image} if with_mask else {}
    for sink in ({"compute": True}, {"write_to": tmp_path / "out.zarr"}):
        with _Tasks() as tasks:
            blockbuster.label(image, tile_shape=TILES, **options, **sink)
        assert len(set(tasks.keys)) == len(tasks.keys) <= 4 * N_TILES


def test_dask_images_add_no_tasks_but_their_own_where_chunks_are_tiles() -> None:
    lazy = da.zeros(SHAPE, chunks=TILES, dtype=np.uint8)
    assert len(blockbuster.label(lazy).dask) - len(lazy.dask) <= 4 * N_TILES


def test_masks_add_no_tasks_but_their_own() -> None:
    masks = {"numpy": IMAGE, "dask": da.zeros(SHAPE, chunks=TILES)}
    alone = len(blockbuster.label(IMAGE, tile_shape=TILES).dask)
    for mask, own in ((masks["numpy"], 0), (masks["dask"], N_TILES)):
        assert len(blockbuster.label(IMAGE, mask=mask, tile_shape=TILES).dask) == alone + own


def test_pyramids_of_lazy_results_share_one_run(synchronous: None) -> None:
    labels = blockbuster.label(IMAGE, tile_shape=TILES)
    with _Tasks() as tasks:
        da.compute(labels, labels[::2, ::2, ::2], labels.max())
    stages = [key for key in tasks.keys if isinstance(key, tuple) and str(key[0]).startswith("stage-")]
    assert len(stages) == N_TILES


# Reads of the image


class _CountingStore(MemoryStore):
    """Counts how often each chunk is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if "c/" in key:
            self.reads[key] += 1
        return await super().get(key, *args, **kwargs)


@pytest.fixture
def counted() -> tuple[zarr.Array[Any], Counter[str]]:
    store = _CountingStore()
    array = zarr.create_array(store, data=IMAGE, chunks=TILES)
    store.reads.clear()
    return array, store.reads


def _chunks_of(region: tuple[slice, ...]) -> Iterator[str]:
    ranges = (range(s.start // c, -(-s.stop // c)) for s, c in zip(region, TILES, strict=True))
    return ("c/" + "/".join(map(str, index)) for index in itertools.product(*ranges))


def _expected_reads(tile_shape: tuple[int, ...], overlap: int) -> Counter[str]:
    grid = TileGrid.regular(SHAPE, tile_shape, overlap)
    return Counter(chunk for tile in grid.tiles() for chunk in _chunks_of(tile.padded))


@pytest.mark.parametrize("tile_shape", [None, TILES, (16, 8, 24), (100, 100, 100)])
@pytest.mark.parametrize("sink", ["lazy", "stored"])
def test_each_chunk_is_read_once_where_tiles_are_whole_chunks(
    counted: Any, tile_shape: Any, sink: str, synchronous: None, tmp_path: Path
) -> None:
    array, reads = counted
    labels = blockbuster.label(array, tile_shape=tile_shape)
    reads.clear()
    labels.compute()
    assert set(reads.values()) == {1}
    assert len(reads) == N_TILES
    reads.clear()
    labels.compute()
    assert not reads


@pytest.mark.parametrize("tile_shape", [TILES, (5, 5, 5), (9, 16, 30)])
@pytest.mark.parametrize("overlap", [0, 1, 4])
def test_a_tile_reads_the_chunks_of_its_padded_region_once(
    counted: Any, tile_shape: tuple[int, ...], overlap: int, synchronous: None
) -> None:
    array, reads = counted
    labels = blockbuster.tile_process(array, components, tile_shape=tile_shape, overlap=overlap)
    reads.clear()
    labels.compute()
    assert reads == _expected_reads(tile_shape, overlap)


def test_a_call_reads_few_chunks_before_it_computes(counted: Any) -> None:
    """Only what tells one image from another when a run is resumed, however large the image is."""
    array, reads = counted
    blockbuster.label(array)
    assert sum(reads.values()) <= 8 * 2**3


def test_each_chunk_of_the_mask_is_read_once(counted: Any, synchronous: None) -> None:
    array, reads = counted
    labels = blockbuster.label(np.ones(SHAPE), mask=array, tile_shape=TILES)
    reads.clear()
    labels.compute()
    assert (set(reads.values()), len(reads)) == ({1}, N_TILES)


# Writes of the output


def test_each_tile_with_labels_is_written_once_and_others_never(
    synchronous: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Any] = []
    write = Output.write

    def counted(output: Output, region: tuple[slice, ...], block: NDArray[Any]) -> None:
        written.append(region)
        write(output, region, block)

    monkeypatch.setattr(Output, "write", counted)
    image = np.zeros((80, 80), np.uint8)
    image[3:6, 3:25] = 1
    labels = blockbuster.label(image, tile_shape=(8, 8), write_to=tmp_path / "out.zarr")
    assert sorted(r[1].start for r in written) == [0, 8, 16, 24]
    assert {r[0].start for r in written} == {0}
    assert len([p for p in (tmp_path / "out.zarr" / "labels" / "c").rglob("*") if p.is_file()]) == 4
    assert (labels.compute() == scipy_labels(image)).all()


@pytest.mark.parametrize("chunks", [((8, 8, 4), (16, 8, 9), (17,)), ((3, 11, 6), (30, 3), (1, 16))])
def test_each_chunk_of_an_output_has_one_writer(
    chunks: Any, synchronous: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where tiles are irregular: regions that are written never share a chunk."""
    regions: list[Any] = []
    write = Output.write

    def noted(output: Output, region: tuple[slice, ...], block: NDArray[Any]) -> None:
        regions.append(region)
        write(output, region, block)

    monkeypatch.setattr(Output, "write", noted)
    blockbuster.label(da.from_array(IMAGE, chunks=chunks), write_to=tmp_path / "out.zarr")
    stored = zarr.open_array(tmp_path / "out.zarr", path="labels", mode="r")
    owners = Counter(
        index
        for region in regions
        for index in itertools.product(
            *(range(s.start // c, -(-s.stop // c)) for s, c in zip(region, stored.chunks, strict=True))
        )
    )
    assert set(owners.values()) == {1}


# The client of a cluster

ON_CLUSTER: dict[str, Callable[[Path, Path], Any]] = {
    "tile_process": lambda image, to: blockbuster.tile_process(image, components, write_to=to),
    "label": lambda image, to: blockbuster.label(image, write_to=to),
    "by_chunks": lambda image, to: blockbuster.label(image, write_to=to, tile_shape=(7, 9, 5)),
    "copy": lambda image, to: blockbuster.copy(image, write_to=to, chunks=(5, 8, 8)),
    "downsample": lambda image, to: blockbuster.downsample(image, 2, write_to=to),
    "pyramid": lambda image, to: blockbuster.write_image(image, to, axes="zyx", n_levels=3),
}


@pytest.mark.parametrize("kind", ON_CLUSTER)
def test_the_client_of_a_cluster_reads_and_writes_no_voxels(
    kind: str, local_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    from blockbuster.sources import StoredImage

    image = tmp_path / "image.zarr"
    zarr.create_array(image, data=IMAGE, chunks=TILES)
    ON_CLUSTER[kind](image, tmp_path / "expected.zarr")

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("the client did the work of a worker")

    # In this process only: the workers have their own.
    with Client(local_cluster), monkeypatch.context() as patch:
        for owner, names in ((StoredImage, ["read"]), (TileRecord, ["array"]), (Output, ["read", "write"])):
            for name in names:
                patch.setattr(owner, name, refuse)
        ON_CLUSTER[kind](image, tmp_path / "made.zarr")
    assert _chunks(tmp_path / "made.zarr") == _chunks(tmp_path / "expected.zarr") != {}


def _chunks(store: Path) -> dict[str, str]:
    files = {str(Path(*Path(name).parts[1:])): content for name, content in digest(store).items()}
    return {name: content for name, content in files.items() if not name.endswith("zarr.json")}
