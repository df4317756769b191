"""`write_to`: labels in a zarr store, whole or not at all."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import BlockbusterError, OutputError, OutputExistsError, ParameterError, TileError, tile_process
from blockbuster.outputs import Output
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers, write_ome_zarr
from tests.strategies import chunkings, shapes, tile_shapes

synchronous = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def image() -> NDArray[np.bool_]:
    return np.random.default_rng(3).random((30, 41)) > 0.55


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    made = tmp_path / "calls"
    made.mkdir()
    return Recording(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


# Where labels go


@synchronous
@pytest.mark.parametrize(
    ("component", "where"),
    [("labels", "labels"), ("labels/cells", "labels/cells"), ("/a/b/c/", "a/b/c"), ("", "")],
)
def test_a_store_is_made_where_there_is_none(component: str, where: str, image: NDArray[Any], folder: Path) -> None:
    store = folder / "new" / "out.zarr"
    labels = tile_process(image, components, tile_shape=(12, 12), write_to=store, output_component=component)
    assert isinstance(labels, da.Array)
    assert labels.dtype == np.int32
    array = zarr.open_array(store / where, mode="r")
    np.testing.assert_array_equal(array[...], labels.compute())
    assert_same_objects(array[...], components(image))
    # Each folder down to the labels is a group that zarr can list.
    parts = where.split("/")[:-1] if where else []
    for depth in range(len(parts) + 1) if where else []:
        assert isinstance(zarr.open(store.joinpath(*parts[:depth]), mode="r"), zarr.Group)
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_are_of_the_zarr_format_of_their_store(zarr_format: Any, image: NDArray[Any], folder: Path) -> None:
    zarr.create_group(folder / "s.zarr", zarr_format=zarr_format).create_array("image", data=image)
    before = digest(folder / "s.zarr" / "image")
    tile_process(
        folder / "s.zarr" / "image",
        components,
        tile_shape=(12, 12),
        write_to=folder / "s.zarr",
        output_component="seg/cells",
    )
    for name in ("seg", "seg/cells"):
        assert zarr.open(folder / "s.zarr" / name, mode="r").metadata.zarr_format == zarr_format
    assert_same_objects(zarr.open_array(folder / "s.zarr" / "seg" / "cells")[...], components(image))
    assert digest(folder / "s.zarr" / "image") == before
    assert sorted(name for name, _ in zarr.open_group(folder / "s.zarr").members()) == ["image", "seg"]


@synchronous
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_written_beside_an_ome_zarr_image(version: Any, image: NDArray[Any], folder: Path) -> None:
    values = np.stack([image, ~image])[:, None].astype(np.uint8)
    path = write_ome_zarr(folder / "i.zarr", [values], "czyx", version=version, chunks=(1, 1, 12, 12))
    before = digest(path)
    labels = tile_process(path, components, channel=1, write_to=path, output_component="labels/cells")
    assert_same_objects(labels.compute(), components(~image)[None])
    assert {name: content for name, content in digest(path).items() if "/labels" not in name} == before
    array = zarr.open_array(path / "labels" / "cells", mode="r")
    assert array.metadata.zarr_format == (2 if version == "0.4" else 3)
    if version == "0.5":
        assert array.metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]


@synchronous
def test_labels_in_a_consolidated_store_are_found(image: NDArray[Any], folder: Path) -> None:
    group = zarr.create_group(folder / "s.zarr", zarr_format=2)
    group.create_array("image", data=image)
    zarr.consolidate_metadata(folder / "s.zarr")
    tile_process(folder / "s.zarr" / "image", components, write_to=folder / "s.zarr")
    assert_same_objects(zarr.open_group(folder / "s.zarr", mode="r")["labels"][...], components(image))


@synchronous
def test_stored_labels_tell_how_they_were_made(image: NDArray[Any], folder: Path) -> None:
    tile_process(image, components, tile_shape=(12, 12), write_to=folder / "out.zarr", sequential_labels=True)
    made = zarr.open_array(folder / "out.zarr" / "labels").attrs["blockbuster"]
    assert made["operation"] == "tile_process"
    assert made["report"]["n_objects"] == components(image).max()
    assert made["report"]["n_tiles"] == 12


@synchronous
@pytest.mark.parametrize("compute", [False, True])
def test_the_result_is_written_when_the_call_returns(
    compute: bool, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    labels = tile_process(image, recording, tile_shape=(12, 12), write_to=folder / "out.zarr", compute=compute)
    assert recording.n_calls == 12
    assert_same_objects(labels, components(image))
    assert recording.n_calls == 12


@synchronous
@pytest.mark.parametrize("as_text", [False, True])
def test_relative_paths_are_taken(
    as_text: bool, image: NDArray[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = "out.zarr" if as_text else Path("out.zarr")
    labels = tile_process(image, components, tile_shape=(12, 12), write_to=path)
    assert (folder / "out.zarr" / "labels").is_dir()
    assert_same_objects(labels.compute(), components(image))


@synchronous
def test_tiles_not_chosen_are_background(image: NDArray[Any], folder: Path, recording: Recording) -> None:
    stored = tile_process(
        image, recording, tile_shape=(12, 12), block_ids=[5, 2, 5], write_to=folder / "out.zarr", compute=True
    )
    assert recording.n_calls == 2
    expected = np.zeros(image.shape, np.uint8)
    expected[0:12, 24:36] = image[0:12, 24:36]
    expected[12:24, 12:24] = image[12:24, 12:24]
    assert_same_objects(stored, components(expected))
    lazy = tile_process(image, components, tile_shape=(12, 12), block_ids=[2, 5])
    np.testing.assert_array_equal(lazy.compute(), stored)


@synchronous
def test_no_tile_chosen_writes_background(image: NDArray[Any], folder: Path, recording: Recording) -> None:
    stored = tile_process(image, recording, tile_shape=(12, 12), block_ids=[], write_to=folder / "out.zarr")
    assert recording.n_calls == 0
    assert not stored.compute().any()


# Chunks


def watch_writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], ...]]:
    """Regions that are written from now on."""
    regions: list[tuple[tuple[int, int], ...]] = []
    write = Output.write

    def watched(self: Output, region: Any, block: NDArray[Any]) -> None:
        regions.append(tuple((s.start, s.stop) for s in region))
        write(self, region, block)

    monkeypatch.setattr(Output, "write", watched)
    return regions


def chunks_of(region: tuple[tuple[int, int], ...], array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    """Chunks that a region covers: whole ones only."""
    spans = []
    for (start, stop), size, extent in zip(region, array.chunks, array.shape, strict=True):
        assert start % size == 0
        assert stop % size == 0 or stop == extent
        spans.append(range(start // size, -(-stop // size)))
    return list(itertools.product(*spans))


@synchronous
@given(data=st.data())
def test_every_chunk_is_written_once_and_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = data.draw(shapes(1, 3))
    image = np.ones(shape, np.uint8)
    store = tmp_path_factory.mktemp("chunks") / "out.zarr"
    options: dict[str, Any] = {}
    source: Any = image
    if data.draw(st.booleans()):
        options["tile_shape"] = data.draw(tile_shapes(shape))
    else:
        source = da.from_array(image, chunks=data.draw(chunkings(shape)))
    with pytest.MonkeyPatch.context() as patch:
        regions = watch_writes(patch)
        stored = tile_process(source, components, write_to=store, **options)
    array = zarr.open_array(store / "labels", mode="r")
    written = [chunk for region in regions for chunk in chunks_of(region, array)]
    assert sorted(written) == sorted(set(written))
    assert len(written) == np.prod([-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)])
    assert (stored.compute() == 1).all()


@synchronous
def test_chunks_of_large_tiles_are_whole_parts_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockbuster.outputs._CHUNK_VOXELS", 1000)
    image = np.ones((128, 192), np.uint8)
    regions = watch_writes(monkeypatch)
    tile_process(image, components, tile_shape=(64, 96), write_to=folder / "out.zarr")
    array = zarr.open_array(folder / "out.zarr" / "labels", mode="r")
    assert np.prod(array.chunks) <= 1000
    assert 64 % array.chunks[0] == 96 % array.chunks[1] == 0
    assert len(regions) == 4
    assert all(chunks_of(region, array) for region in regions)


@synchronous
def test_empty_tiles_write_no_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((40, 40), np.uint8)
    image[1, 1] = 1
    regions = watch_writes(monkeypatch)
    tile_process(image, components, tile_shape=(10, 10), write_to=folder / "out.zarr")
    assert regions == [((0, 10), (0, 10))]


# What is there already


@synchronous
def test_existing_labels_are_refused_before_anything_runs(
    image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    tile_process(image, components, write_to=folder / "out.zarr")
    before = digest(folder)
    with pytest.raises(
        OutputExistsError, match=r"already something at .*out\.zarr/labels\. Give overwrite=True .* or another name"
    ):
        tile_process(~image, recording, write_to=folder / "out.zarr")
    with pytest.raises(FileExistsError):
        tile_process(~image, recording, write_to=folder / "out.zarr")
    assert recording.n_calls == 0
    assert digest(folder) == before
    assert leftovers(folder) == []


@synchronous
def test_overwrite_replaces_labels_once_the_new_ones_are_complete(image: NDArray[Any], folder: Path) -> None:
    tile_process(image, components, tile_shape=(12, 12), write_to=folder / "out.zarr")
    before = digest(folder)

    def checking(block: NDArray[Any]) -> NDArray[Any]:
        assert {name: d for name, d in digest(folder).items() if "/out.zarr/" in name} == before
        return components(block)

    labels = tile_process(
        ~image[:20], checking, tile_shape=(7, 9), dtype="uint16", write_to=folder / "out.zarr", overwrite=True
    )
    assert labels.shape == (20, 41)
    assert labels.dtype == np.uint16
    assert_same_objects(labels.compute(), components(~image[:20]))
    assert leftovers(folder) == []


@synchronous
def test_an_array_that_is_its_own_store_is_replaced(image: NDArray[Any], folder: Path) -> None:
    for values in (image, ~image):
        labels = tile_process(values, components, write_to=folder / "l.zarr", output_component="", overwrite=True)
        assert_same_objects(labels.compute(), components(values))
    assert os.listdir(folder) == ["l.zarr"]


@synchronous
@pytest.mark.parametrize("name", ["with space", "[1-9]*?", "µm² größe", "a.blockbuster-1", ".hidden"])
def test_names_of_any_characters_are_taken(name: str, image: NDArray[Any], folder: Path) -> None:
    for overwrite in (False, True):
        labels = tile_process(
            image,
            components,
            tile_shape=(12, 12),
            write_to=folder / name / "out.zarr",
            output_component=name,
            overwrite=overwrite,
            resume=overwrite,
        )
        assert_same_objects(labels.compute(), components(image))
    assert os.listdir(folder / name) == ["out.zarr"]


@synchronous
def test_overwrite_of_nothing_is_fine(image: NDArray[Any], folder: Path) -> None:
    labels = tile_process(image, components, write_to=folder / "out.zarr", overwrite=True)
    assert_same_objects(labels.compute(), components(image))


@synchronous
def test_a_failed_run_leaves_the_labels_that_it_was_to_replace(image: NDArray[Any], folder: Path) -> None:
    tile_process(image, components, tile_shape=(12, 12), write_to=folder / "out.zarr")
    before = digest(folder / "out.zarr")
    calls = []

    def failing(block: NDArray[Any]) -> NDArray[Any]:
        calls.append(block)
        if len(calls) == 5:
            raise MemoryError("too large")
        return components(block)

    with pytest.raises(TileError):
        tile_process(image, failing, tile_shape=(12, 12), write_to=folder / "out.zarr", overwrite=True)
    assert digest(folder / "out.zarr") == before


@synchronous
def test_a_run_that_fails_on_its_first_tile_leaves_nothing(image: NDArray[Any], folder: Path) -> None:
    def failing(block: NDArray[Any]) -> NDArray[Any]:
        raise MemoryError("too large")

    with pytest.raises(TileError):
        tile_process(image, failing, tile_shape=(12, 12), write_to=folder / "out.zarr")
    assert list(folder.iterdir()) == []


@synchronous
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["group", "folder of files", "file"])
def test_only_arrays_are_ever_replaced(
    kind: str, overwrite: bool, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    store = folder / "s.zarr"
    group = zarr.create_group(store)
    if kind == "group":
        group.create_array("labels/nuclei", data=np.arange(9))
    elif kind == "folder of files":
        (store / "labels").mkdir()
        (store / "labels" / "thesis.txt").write_text("years of work")
    else:
        (store / "labels").write_text("years of work")
    before = digest(store)
    with pytest.raises(BlockbusterError, match=r"s\.zarr/labels"):
        tile_process(image, recording, write_to=store, overwrite=overwrite)
    assert digest(store) == before
    assert recording.n_calls == 0


@synchronous
def test_a_store_with_other_arrays_is_not_replaced_by_labels(
    image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    zarr.create_group(folder / "s.zarr").create_array("raw", data=np.arange(9))
    before = digest(folder)
    with pytest.raises(BlockbusterError, match=r"s\.zarr"):
        tile_process(image, recording, write_to=folder / "s.zarr", output_component="", overwrite=True)
    assert digest(folder) == before
    assert recording.n_calls == 0


# Inputs


def opened_twice(path: Path) -> Any:
    return zarr.open_array(path, mode="r+")


@synchronous
@pytest.mark.parametrize(
    "kind",
    ["path", "opened array", "group member", "through a link to the store", "input through a link", "file URL"],
)
def test_an_output_onto_the_input_is_refused(
    kind: str, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    store = folder / "s.zarr"
    group = zarr.create_group(store)
    group.create_array("labels", data=image, chunks=(12, 12))
    link = folder / "link.zarr"
    link.symlink_to(store)
    before = digest(store)
    source = {
        "path": store / "labels",
        "opened array": opened_twice(store / "labels"),
        "group member": group["labels"],
        "through a link to the store": store / "labels",
        "input through a link": link / "labels",
        "file URL": f"file://{store}/labels",
    }[kind]
    write_to = link if kind == "through a link to the store" else store
    with pytest.raises(OutputError, match=r"would overwrite the input .*Inputs are never written"):
        tile_process(source, recording, write_to=write_to, overwrite=True)
    assert digest(store) == before
    assert recording.n_calls == 0


@synchronous
@pytest.mark.parametrize("component", ["", "0", "0/labels", "1"])
def test_an_output_onto_a_level_of_the_input_image_is_refused(
    component: str, image: NDArray[Any], folder: Path, recording: Recording
) -> None:
    path = write_ome_zarr(folder / "i.zarr", [image, image[::2, ::2]], "yx")
    before = digest(path)
    with pytest.raises((OutputError, OutputExistsError)):
        tile_process(path, recording, write_to=path, output_component=component)
    if component != "1":
        with pytest.raises(OutputError, match="overwrite the input"):
            tile_process(path, recording, write_to=path, output_component=component, overwrite=True)
    assert digest(path) == before
    assert recording.n_calls == 0


@synchronous
def test_an_output_within_another_array_is_refused(image: NDArray[Any], folder: Path, recording: Recording) -> None:
    zarr.create_array(folder / "other.zarr", data=np.arange(9))
    zarr.create_group(folder / "s.zarr").create_array("a/b", data=np.arange(9))
    before = digest(folder)
    for store, component in [("other.zarr", "labels"), ("s.zarr", "a/b/labels"), ("s.zarr/a/b", "labels")]:
        with pytest.raises(OutputError, match=r"would lie within the zarr array .*Choose another component"):
            tile_process(image, recording, write_to=folder / store, output_component=component)
    assert digest(folder) == before
    assert recording.n_calls == 0


@pytest.mark.parametrize("target", ["s3://bucket/out.zarr", 7, object(), b"out.zarr"])
def test_a_target_that_is_no_path_is_refused(target: Any, image: NDArray[Any], recording: Recording) -> None:
    with pytest.raises(ParameterError, match=r"write_to .* is not a path on a local file system\. Give the path"):
        tile_process(image, recording, write_to=target)
    assert recording.n_calls == 0


@pytest.mark.parametrize("component", ["../labels", "a//b", "a/./b", "."])
def test_a_component_that_leaves_the_store_is_refused(
    component: str, image: NDArray[Any], recording: Recording, folder: Path
) -> None:
    with pytest.raises(ParameterError, match=r"output_component .* must be a path within the store, such as 'labels/"):
        tile_process(image, recording, write_to=folder / "out.zarr", output_component=component)
    assert list(folder.iterdir()) == []
    assert recording.n_calls == 0


@synchronous
def test_a_target_below_a_file_is_refused(image: NDArray[Any], recording: Recording, folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")
    with pytest.raises(OutputError, match=r"cannot be written: .*notes\.txt is a file\. Choose another write_to"):
        tile_process(image, recording, write_to=folder / "notes.txt" / "out.zarr")
    assert recording.n_calls == 0
    assert os.listdir(folder) == ["notes.txt"]


# Many at once


def test_labels_of_one_image_may_be_written_to_one_store_by_many_schedulers(
    image: NDArray[Any], scheduler: str, folder: Path
) -> None:
    for number in range(2):
        tile_process(
            image, components, tile_shape=(12, 12), write_to=folder / "s.zarr", output_component=f"labels/{number}"
        )
    with dask.config.set(scheduler="synchronous"):
        for number in range(2):
            assert_same_objects(zarr.open_array(folder / "s.zarr" / f"labels/{number}")[...], components(image))
    assert leftovers(folder) == []
