"""`write_labels`: labels in the OME-Zarr of their image, at the same place."""

from __future__ import annotations

import gc
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import (
    BlockbusterError,
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
    TileError,
    label,
    open_image,
    tile_process,
    write_image,
    write_labels,
)
from blockbuster.ngff import ome_attributes
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers, write_ome_zarr
from tests.test_write_image import consolidate, kind_of, noise, ome, read_elsewhere, reduced, write_elsewhere

synchronous = pytest.mark.usefixtures("synchronous")
both_versions = pytest.mark.parametrize("version", ["0.4", "0.5"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def _image(folder: Path, version: Any = "0.5", **options: Any) -> Path:
    """Two channels of 6 x 40 x 50 voxels in three levels."""
    given: dict[str, Any] = {
        "axes": "czyx",
        "scale": (1, 3, 0.5, 0.25),
        "translation": (0, 10, 20, 30),
        "unit": "nm",
        "n_levels": 3,
        "channels": ["DNA", "actin"],
    }
    write_image(noise((2, 6, 40, 50)), folder / "i.zarr", version=version, **{**given, **options})
    return folder / "i.zarr"


def _objects(shape: Sequence[int] = (6, 40, 50), dtype: Any = "int32", seed: int = 0) -> NDArray[Any]:
    """Labels, most of one voxel or a few."""
    labels = components(np.random.default_rng(seed).random(tuple(shape)) > 0.9)
    return labels.astype(dtype)


def _extent(image: Any, level: int) -> NDArray[np.float64]:
    """Where the first voxel of a level begins and the last one ends, per axis."""
    scale, start = np.array(image.scales[level]), np.array(image.translations[level])
    begin = start - scale / 2
    return np.array([begin, begin + scale * image.levels[level].shape])


# In the image, valid for others


@synchronous
@both_versions
def test_labels_lie_in_the_image_and_tell_of_it(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    before = digest(path)
    labels = _objects()
    made = write_labels(labels, path, "cells")
    np.testing.assert_array_equal(made.data.compute(), labels)
    assert made.path == str(path / "labels" / "cells")
    assert (made.version, made.axes, made.name) == (version, "zyx", "cells")
    assert (made.scale, made.translation) == ((3, 0.5, 0.25), (10, 20, 30))
    assert made.unit == ("nanometer",) * 3
    image = open_image(path)
    assert image.labels == ("cells",)
    assert len(made.levels) == len(image.levels)
    told = ome(path / "labels" / "cells")["image-label"]
    assert told["source"]["image"] == "../../"
    assert told["version"] == version
    assert kind_of(path) == "Image"
    assert kind_of(path / "labels") == "Labels"
    assert kind_of(path / "labels" / "cells") == "ImageLabel"
    assert {name: content for name, content in digest(path).items() if "/labels" not in name} == before
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_every_node_is_of_the_format_of_the_image(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    write_labels(_objects(), path, "cells")
    members = dict(zarr.open_group(path, mode="r").members(max_depth=None))
    assert {"labels", "labels/cells", "labels/cells/0", "labels/cells/2"} <= set(members)
    assert {member.metadata.zarr_format for member in members.values()} == {2 if version == "0.4" else 3}
    others = "zarr.json" if version == "0.4" else ".z*"
    assert list(path.rglob(others)) == []
    if version == "0.5":
        assert members["labels/cells/1"].metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]


@synchronous
@both_versions
def test_others_find_the_labels_with_their_colors_and_properties(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    labels = _objects()
    write_labels(
        labels,
        path,
        "cells",
        colors={1: (255, 0, 0), np.int64(7): (0, 255, 0, 128)},  # type: ignore[dict-item]
        properties=[{"label-value": 1, "area": 3.5}, {"label-value": 7, "class": "dead"}],
    )
    told = ome(path / "labels" / "cells")["image-label"]
    assert told["colors"] == [
        {"label-value": 1, "rgba": [255, 0, 0, 255]},
        {"label-value": 7, "rgba": [0, 255, 0, 128]},
    ]
    assert told["properties"] == [{"label-value": 1, "area": 3.5}, {"label-value": 7, "class": "dead"}]
    assert kind_of(path / "labels" / "cells") == "ImageLabel"
    node = read_elsewhere(path)["cells"]
    np.testing.assert_array_equal(node.data[0].compute(), labels)
    assert node.metadata["color"][1] == [1, 0, 0, 1]
    assert node.metadata["properties"] == {1: {"area": 3.5}, 7: {"class": "dead"}}


@synchronous
@pytest.mark.parametrize(
    "options",
    [
        {"colors": {1: (256, 0, 0)}},
        {"colors": {1: (-1, 0, 0)}},
        {"colors": {1: (1, 2)}},
        {"colors": {1: "red"}},
        {"properties": [{"area": 3}]},
        {"name": ""},
        {"name": "a/b"},
        {"name": ".."},
        {"name": 3},
        {"name": "zarr.json"},
        {"name": ".zattrs"},
        {"method": "mean"},
        {"method": "median"},
        {"method": "average"},
        {"method": None, "order": 1},
        {"level": 3},
        {"level": -1},
        {"level": "0"},
        {"scale": 0},
        {"unit": "s"},
        {"axes": "cyx"},
        {"axes": "yx"},
        {"shards": 7, "chunks": 4},
        {"n_levels": 0},
    ],
)
@both_versions
def test_options_that_fit_nothing_are_refused(version: Any, options: dict[str, Any], folder: Path) -> None:
    path = _image(folder, version)
    before = digest(path)
    given = {"name": "cells", **options}
    with pytest.raises(BlockbusterError):
        write_labels(_objects(), path, **given)
    assert digest(path) == before
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "M8[s]", "U2"])
def test_what_are_no_integers_are_no_labels(dtype: str, folder: Path) -> None:
    path = _image(folder)
    with pytest.raises(BlockbusterError):
        write_labels(np.zeros((6, 40, 50), dtype), path, "cells")
    assert not (path / "labels").exists()


@synchronous
@pytest.mark.parametrize("shape", [(40, 50), (2, 6, 40, 50), (6, 40, 51), (3, 40, 50), (0, 40, 50)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...], folder: Path) -> None:
    path = _image(folder)
    with pytest.raises(GeometryError, match=r"\(6, 40, 50\)"):
        write_labels(np.zeros(shape, np.int32), path, "cells")
    assert not (path / "labels").exists()


@synchronous
def test_labels_of_another_level_than_the_given_one_are_refused(folder: Path) -> None:
    path = _image(folder)
    with pytest.raises(GeometryError, match="level 1"):
        write_labels(_objects(), path, "cells", level=1)


# Where they lie


@synchronous
@both_versions
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("image_method", ["mean", None])
def test_labels_of_a_level_lie_where_the_level_lies(
    version: Any, level: int, is_given: bool, image_method: Any, folder: Path
) -> None:
    path = _image(folder, version, method=image_method)
    image = open_image(path)
    labels = _objects(image.levels[level].shape[1:])
    made = write_labels(labels, path, "cells", level=level if is_given else None)
    np.testing.assert_array_equal(made.data.compute(), labels)
    assert made.scale == image.scales[level][1:]
    assert made.translation == image.translations[level][1:]
    assert len(made.levels) == len(image.levels)
    # The cells of cell-wise levels begin where the image begins, and end within a voxel of where it ends.
    for number in range(len(made.levels)):
        begin, end = _extent(made, number)
        np.testing.assert_allclose(begin, _extent(made, 0)[0])
        assert (end >= _extent(made, 0)[1] - 1e-9).all()
        assert (end < _extent(made, 0)[1] + np.array(made.scales[number])).all()
    for number in range(level, len(image.levels)):
        assert made.levels[number - level].shape == image.levels[number].shape[1:]
        assert made.scales[number - level] == image.scales[number][1:]
    assert kind_of(path) == "Image"


@synchronous
@both_versions
@pytest.mark.parametrize("factors", [(1, 1, 2, 2), (1, 2, 3, 1), [(1, 1, 2, 2), (1, 3, 1, 4)]])
def test_levels_of_labels_are_those_of_the_image(version: Any, factors: Any, folder: Path) -> None:
    path = _image(folder, version, scale_factor=factors)
    image, made = open_image(path), write_labels(_objects(), path, "cells")
    assert [level.shape for level in made.levels] == [level.shape[1:] for level in image.levels]
    assert list(made.scales) == [scale[1:] for scale in image.scales]
    np.testing.assert_allclose(made.translations, [start[1:] for start in image.translations])


@synchronous
@both_versions
@pytest.mark.parametrize("axes", ["yx", "cyx", "tcyx", "tzyx", "tczyx"])
def test_labels_have_the_axes_of_the_image_but_for_channels(version: Any, axes: str, folder: Path) -> None:
    shape = [{"t": 2, "c": 3, "z": 5}.get(axis, 20) for axis in axes]
    write_image(noise(shape), folder / "i.zarr", axes=axes, version=version, n_levels=2)
    kept = [n for n, axis in zip(shape, axes, strict=True) if axis != "c"]
    made = write_labels(_objects(kept), folder / "i.zarr", "cells")
    assert made.axes == axes.replace("c", "")
    assert kind_of(folder / "i.zarr") == "Image"


@synchronous
def test_place_and_unit_may_be_given(folder: Path) -> None:
    path = _image(folder)
    made = write_labels(_objects(), path, "cells", scale=(1, 2, 3), translation=-1, unit="um", n_levels=2)
    assert (made.scale, made.translation) == ((1, 2, 3), (-1, -1, -1))
    assert made.unit == ("micrometer",) * 3
    assert len(made.levels) == 2


@synchronous
@both_versions
def test_labels_of_an_image_by_ome_zarr_py_fit_it(version: Any, folder: Path) -> None:
    write_elsewhere(folder / "i.zarr", version, noise((2, 65, 81)), "cyx", scale_factors=[2, 4])
    image = open_image(folder / "i.zarr")
    for level in (0, 1):
        made = write_labels(_objects(image.levels[level].shape[1:]), folder / "i.zarr", f"cells{level}")
        assert made.version == version
        assert len(made.levels) == len(image.levels)
        assert made.scale == image.scales[level][1:]
        assert made.translation == image.translations[level][1:]
    assert kind_of(folder / "i.zarr") == "Image"
    assert set(read_elsewhere(folder / "i.zarr")) >= {"cells0", "cells1"}


# Levels


@synchronous
@both_versions
@pytest.mark.parametrize("method", ["mode-nonzero", "mode", "max", "min", None])
def test_levels_have_only_ids_that_are_there(version: Any, method: Any, folder: Path) -> None:
    path = _image(folder, version)
    labels = _objects()
    made = write_labels(labels, path, "cells", method=method)
    known = set(np.unique(labels).tolist()) | {0}
    before = labels
    for level in made.levels[1:]:
        before = reduced(before, [2 if n > 1 else 1 for n in before.shape], method)
        np.testing.assert_array_equal(level.compute(), before)
        assert set(np.unique(before).tolist()) <= known


@synchronous
def test_single_voxels_are_seen_on_every_level(folder: Path) -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[5::16, 5::16] = np.arange(1, 17).reshape(4, 4)
    write_image(np.zeros((64, 64), np.uint8), folder / "i.zarr", n_levels=5)
    made = write_labels(labels, folder / "i.zarr", "cells")
    assert [len(set(np.unique(level.compute())) - {0}) for level in made.levels] == [16] * 5


@synchronous
@both_versions
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "int64", "uint64", ">u4", ">i8"])
def test_integers_of_every_size_are_kept(version: Any, dtype: str, folder: Path) -> None:
    path = _image(folder, version)
    top = np.iinfo(dtype).max
    labels = np.where(_objects() > 0, np.array(top, dtype) - (_objects() % 100).astype(dtype), np.array(0, dtype))
    labels = labels.astype(dtype)
    made = write_labels(labels, path, "cells")
    assert made.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(made.data.compute(), labels)
    before = labels
    for level in made.levels[1:]:
        before = reduced(before, [2 if n > 1 else 1 for n in before.shape], "mode-nonzero")
        np.testing.assert_array_equal(level.compute(), before)
    assert kind_of(path) == "Image"


@synchronous
@both_versions
def test_a_mask_becomes_labels_of_0_and_1(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    mask = _objects() > 0
    for number, source in enumerate((mask, da.from_array(mask, chunks=(6, 7, 50)))):
        made = write_labels(source, path, f"mask{number}")
        assert made.dtype == np.uint8
        np.testing.assert_array_equal(made.data.compute(), mask)
    assert kind_of(path) == "Image"


# Lazy labels


@synchronous
@both_versions
@pytest.mark.parametrize("level", [0, 1])
def test_labels_of_label_are_computed_into_the_store(version: Any, level: int, folder: Path) -> None:
    image = (np.random.default_rng(0).random((40, 50)) > 0.6).astype(np.uint8)
    write_image(image, folder / "i.zarr", version=version, n_levels=3, method="max", scale=0.5, unit="um")
    before = digest(folder / "i.zarr")
    finest = open_image(folder / "i.zarr").levels[level].compute()
    made = write_labels(label(folder / "i.zarr", level=level, tile_shape=(16, 16)), folder / "i.zarr", "cells")
    gc.collect()
    np.testing.assert_array_equal(made.data.compute(), components(finest))
    assert made.scale == (0.5 * 2**level,) * 2
    after = digest(folder / "i.zarr")
    assert {name: content for name, content in after.items() if "/labels" not in name} == before
    assert leftovers(folder) == []


def test_the_function_is_called_once_per_tile(scheduler: str, tmp_path: Path, folder: Path) -> None:
    _check_calls(tmp_path, folder)


@synchronous
@pytest.mark.parametrize("chunks", [(7, 9), (16, 50), (100, 100)])
def test_the_function_is_called_once_per_tile_whatever_the_chunks(chunks: Any, tmp_path: Path, folder: Path) -> None:
    _check_calls(tmp_path, folder, chunks=chunks)


def _check_calls(tmp_path: Path, folder: Path, **options: Any) -> None:
    image = (np.random.default_rng(0).random((40, 50)) > 0.6).astype(np.uint8)
    write_image(image, folder / "i.zarr", n_levels=3)
    calls = tmp_path / "calls"
    calls.mkdir()
    fn = Recording(calls)
    labels = tile_process(folder / "i.zarr", fn, tile_shape=(16, 16), overlap=2)
    made = write_labels(labels, folder / "i.zarr", "cells", **options)
    finest, coarse = made.data.compute(), made.levels[1].compute()
    assert fn.n_calls == 3 * 4
    assert_same_objects(finest, components(image))
    np.testing.assert_array_equal(coarse, reduced(finest, (2, 2), "mode-nonzero"))


@synchronous
def test_labels_that_fail_are_not_seen_and_may_be_finished(tmp_path: Path, folder: Path) -> None:
    path = _image(folder)
    before = digest(path)
    calls = tmp_path / "calls"
    calls.mkdir()
    failing = Recording(calls, _fails_on_the_last)
    with pytest.raises(TileError):
        write_labels(tile_process(path, failing, channel=0, tile_shape=(6, 20, 25)), path, "cells")
    assert digest(path) == before
    assert open_image(path).labels == ()
    made = write_labels(tile_process(path, components, channel=0, tile_shape=(6, 20, 25)), path, "cells")
    assert_same_objects(made.data.compute(), components(open_image(path).data[0].compute()))


def _fails_on_the_last(block: NDArray[Any]) -> NDArray[Any]:
    if block[-1, -1, -1] == noise((2, 6, 40, 50))[0, -1, -1, -1]:
        raise ArithmeticError("no labels here")
    return components(block)


@synchronous
@pytest.mark.parametrize("kind", ["path", "zarr", "dask", "opened"])
def test_labels_of_every_kind_are_written(kind: str, folder: Path) -> None:
    path = _image(folder)
    labels = _objects()
    stored = zarr.create_array(folder / "labels.zarr", data=labels, chunks=(3, 20, 20))
    before = digest(folder / "labels.zarr")
    sources: dict[str, Any] = {
        "path": folder / "labels.zarr",
        "zarr": stored,
        "dask": da.from_array(labels, chunks=(6, 13, 50)),
        "opened": open_image(folder / "labels.zarr").data,
    }
    made = write_labels(sources[kind], path, "cells")
    np.testing.assert_array_equal(made.data.compute(), labels)
    assert made.axes == "zyx"
    assert digest(folder / "labels.zarr") == before


@synchronous
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_are_those_of_the_image_unless_given(version: Any, folder: Path) -> None:
    path = _image(folder, version, chunks=(1, 3, 16, 32))
    write_labels(_objects(), path, "a")
    write_labels(_objects(), path, "b", chunks=(2, 8, 8))
    assert zarr.open_array(path / "labels" / "a" / "0", mode="r").chunks == (3, 16, 32)
    assert zarr.open_array(path / "labels" / "b" / "0", mode="r").chunks == (2, 8, 8)
    if version == "0.5":
        write_labels(_objects(), path, "c", chunks=(2, 8, 8), shards=(4, 16, 16))
        assert zarr.open_array(path / "labels" / "c" / "0", mode="r").shards == (4, 16, 16)
        assert kind_of(path) == "Image"


# Several label images


@synchronous
@both_versions
def test_all_label_images_are_listed_once(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    for name in ("cells", "nuclei", "ä b", "cells"):
        write_labels(_objects(), path, name, overwrite=True)
    assert open_image(path).labels == ("cells", "nuclei", "ä b")
    assert kind_of(path) == "Image"
    assert {"cells", "nuclei", "ä b"} <= set(read_elsewhere(path))


@synchronous
@both_versions
def test_labels_that_are_there_are_kept_unless_they_are_to_be_replaced(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    write_labels(_objects(), path, "cells", colors={1: (1, 2, 3)})
    write_labels(_objects(seed=1), path, "nuclei")
    before = digest(path)
    with pytest.raises(OutputExistsError):
        write_labels(_objects(seed=2), path, "cells")
    assert digest(path) == before
    made = write_labels(_objects(seed=2), path, "cells", n_levels=3, overwrite=True)
    np.testing.assert_array_equal(made.data.compute(), _objects(seed=2))
    assert "colors" not in ome(path / "labels" / "cells")["image-label"]
    others = {name: content for name, content in before.items() if "labels/cells" not in name}
    assert {name: content for name, content in digest(path).items() if "labels/cells" not in name} == others
    assert open_image(path).labels == ("cells", "nuclei")
    assert leftovers(folder) == []


@synchronous
def test_attributes_of_the_group_of_labels_are_kept(folder: Path) -> None:
    path = _image(folder)
    write_labels(_objects(), path, "cells")
    group = zarr.open_group(path / "labels")
    group.attrs["mine"] = {"a": [1]}
    group.attrs["ome"] = {**dict(group.attrs["ome"]), "more": 1}  # type: ignore[call-overload]
    write_labels(_objects(), path, "nuclei")
    assert zarr.open_group(path / "labels", mode="r").attrs["mine"] == {"a": [1]}
    assert ome(path / "labels")["labels"] == ["cells", "nuclei"]
    assert ome(path / "labels")["more"] == 1


@synchronous
@both_versions
def test_a_second_run_writes_the_same_bytes(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    options: Any = {"colors": {1: (1, 2, 3)}, "properties": [{"label-value": 2}]}
    write_labels(_objects(), path, "cells", **options)
    before = digest(path)
    write_labels(_objects(), path, "cells", **options, overwrite=True)
    assert digest(path) == before
    write_labels(_objects(), path, "cells", **options, resume=True)
    assert digest(path) == before


@synchronous
def test_labels_are_not_written_over_what_they_are_made_from(folder: Path) -> None:
    path = _image(folder)
    write_labels(_objects(), path, "cells")
    before = digest(path)
    for source in (path / "labels" / "cells", open_image(path / "labels" / "cells").data + 1):
        with pytest.raises(OutputError):
            write_labels(source, path, "cells", overwrite=True)
    assert digest(path) == before


def _write_many(path: str, names: Sequence[str], begin: Any) -> None:
    with dask.config.set(scheduler="synchronous"):
        begin.wait(60)
        for name in names:
            write_labels(np.ones((8, 9), np.uint8), path, name)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "consolidated"), [("0.4", True), ("0.5", False)])
def test_processes_that_write_at_the_same_time_are_all_listed(version: Any, consolidated: bool, folder: Path) -> None:
    with dask.config.set(scheduler="synchronous"):
        write_image(noise((8, 9)), folder / "i.zarr", version=version)
    if consolidated:
        consolidate(folder / "i.zarr")
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(2)
    names = [[f"{process}-{number}" for number in range(6)] for process in range(2)]
    workers = [context.Process(target=_write_many, args=(str(folder / "i.zarr"), mine, begin)) for mine in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(open_image(folder / "i.zarr").labels) == sorted([*names[0], *names[1]])
    if consolidated:
        store = zarr.open_consolidated(folder / "i.zarr")
        assert sorted(ome_attributes(store["labels"])["labels"]) == sorted([*names[0], *names[1]])  # type: ignore[arg-type]
    assert [p.name for p in folder.iterdir()] == ["i.zarr"]


@synchronous
@both_versions
def test_consolidated_metadata_of_the_image_tell_of_its_labels(version: Any, folder: Path) -> None:
    path = _image(folder, version)
    consolidate(path)
    write_labels(_objects(), path, "cells")
    write_labels(_objects(seed=1), path, "nuclei")
    store = zarr.open_consolidated(path)
    assert ome_attributes(store["labels"])["labels"] == ["cells", "nuclei"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(store["labels/nuclei/0"][...], _objects(seed=1))  # type: ignore[index]
    assert ome_attributes(store["labels/cells"])["image-label"]["version"] == version  # type: ignore[arg-type]
    assert open_image(path).labels == ("cells", "nuclei")
    assert set(read_elsewhere(path)) >= {"cells", "nuclei"}


# Other stores


@synchronous
def test_a_store_without_an_image_takes_labels(folder: Path) -> None:
    zarr.create_group(folder / "old.zarr", zarr_format=2, attributes={"mine": 1})
    (folder / "empty.zarr").mkdir()
    for name, version in (("old.zarr", "0.4"), ("new.zarr", "0.5"), ("empty.zarr", "0.5")):
        made = write_labels(_objects(), folder / name, "cells", scale=2, unit="um", axes="tyx", n_levels=2)
        assert (made.version, made.axes, made.scale) == (version, "tyx", (1, 2, 2))
        assert ome(folder / name / "labels")["labels"] == ["cells"]
        assert "source" not in ome(folder / name / "labels" / "cells")["image-label"]
        assert kind_of(folder / name / "labels" / "cells") == "ImageLabel"
    assert zarr.open_group(folder / "old.zarr", mode="r").attrs["mine"] == 1


@synchronous
@pytest.mark.parametrize("kind", ["array", "file", "tiff"])
def test_what_takes_no_labels_is_refused(kind: str, folder: Path) -> None:
    path = folder / "store"
    if kind == "array":
        zarr.create_array(path, data=_objects())
    else:
        path = folder / ("image.tif" if kind == "tiff" else "store")
        path.write_text("mine")
    before = digest(path)
    with pytest.raises(BlockbusterError):
        write_labels(_objects(), path, "cells")
    assert digest(path) == before
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_labels_of_an_image_within_a_store_lie_in_that_image(version: Any, folder: Path) -> None:
    write_image(noise((20, 30)), folder / "s.zarr", output_component="a/b", version=version, scale=3)
    made = write_labels(_objects((20, 30)), folder / "s.zarr" / "a" / "b", "cells")
    assert made.scale == (3, 3)
    assert open_image(folder / "s.zarr" / "a" / "b").labels == ("cells",)
    assert kind_of(folder / "s.zarr" / "a" / "b") == "Image"


@synchronous
def test_labels_of_a_collection_of_one_image_do_not_lie_apart_from_it(folder: Path) -> None:
    write_image(noise((20, 30)), folder / "s.zarr", output_component="0", scale=3)
    zarr.open_group(folder / "s.zarr").attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    try:
        made = write_labels(_objects((20, 30)), folder / "s.zarr", "cells")
    except ImageError:
        assert not (folder / "s.zarr" / "labels").exists()
    else:
        assert made.scale == (3, 3)
        assert open_image(folder / "s.zarr").labels == ("cells",)


@synchronous
@both_versions
def test_labels_fit_an_image_whose_metadata_are_of_another_hand(version: Any, folder: Path) -> None:
    levels = [noise((1, 33, 41)), noise((1, 16, 20))]
    write_ome_zarr(folder / "i.zarr", levels, "cyx", version=version)
    made = write_labels(_objects((33, 41)), folder / "i.zarr", "cells")
    assert [level.shape for level in made.levels] == [(33, 41), (17, 21)]
    assert made.scales == ((1, 1), (2, 2))
    assert math.isclose(made.translations[1][0], 0.5)
    assert kind_of(folder / "i.zarr") == "Image"


@pytest.mark.parametrize("bad", [{"name": "x", "level": 5}, {"name": "y", "method": "mean"}])
@synchronous
def test_errors_say_which_option_is_wrong(bad: dict[str, Any], folder: Path) -> None:
    path = _image(folder)
    with pytest.raises((ParameterError, ImageError), match=r"level 5|mean"):
        write_labels(_objects(), path, **bad)


NAMED = [("time", "time"), ("channel", "channel"), ("plane", "space"), ("row", "space"), ("col", "space")]


def test_labels_keep_the_names_of_the_axes_of_their_image_in_full(tmp_path: Path) -> None:
    path = tmp_path / "i.zarr"
    group = zarr.create_group(path)
    values = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 8, 9), np.uint8)
    group.create_array("0", data=values, chunks=(1, 1, 4, 8, 9), dimension_names=[name for name, _ in NAMED])
    axes = [{"name": name, "type": kind} for name, kind in NAMED]
    places = [{"type": "scale", "scale": [1, 1, 2, 0.5, 0.5]}]
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": places}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    assert blockbuster.open_image(path).axes == "tczyx"
    np.testing.assert_array_equal(blockbuster.load_ome_zarr(path, channel=1), values[:, 1])
    blockbuster.write_labels(blockbuster.label(path, channel=1, threshold=5), path, "cells")
    written = zarr.open_group(path / "labels" / "cells").attrs["ome"]["multiscales"][0]["axes"]
    assert written == [axes[0], *axes[2:]]
    assert zarr.open_array(path / "labels" / "cells" / "0").metadata.dimension_names == ("time", "plane", "row", "col")


def test_labels_of_a_mask_may_be_written_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "i.zarr"
    blockbuster.write_image(np.ones((8, 8), np.uint8), path)
    for _ in range(2):
        labels = blockbuster.write_labels(np.eye(8, dtype=bool), path, "cells", resume=True)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.data, np.eye(8))


def test_properties_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "i.zarr"
    blockbuster.write_image(np.ones((8, 8), np.uint8), path)
    found = [{"label-value": np.int64(1), "area": np.float64(36)}]
    blockbuster.write_labels(np.ones((8, 8), int), path, "cells", properties=found)
    kept = zarr.open_group(path / "labels" / "cells").attrs["ome"]["image-label"]["properties"]
    assert kept == [{"label-value": 1, "area": 36.0}]


@pytest.mark.parametrize("version", ["0.1", "0.3"])
def test_labels_of_images_of_old_versions_are_refused_with_a_remedy(version: str, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "i.zarr", zarr_format=2)
    group.create_array("0", data=np.ones((1, 1, 1, 8, 8), np.uint8))
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}]}]
    with pytest.raises(ParameterError, match=rf"{version}.*write_image"):
        blockbuster.write_labels(np.ones((1, 1, 8, 8), int), tmp_path / "i.zarr", "cells")
