"""`open_image` and `load_ome_zarr`: what a path leads to, lazily, and what operations make of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore, ZipStore

import blockbuster
from blockbuster import GeometryError, ImageError, OutputError, ParameterError, load_ome_zarr, open_image
from tests.helpers import (
    Recording,
    assert_same_objects,
    components,
    digest,
    leftovers,
    nothing_computed,
    write_ome_zarr,
)

AXES = "tczyx"
SHAPE = (2, 3, 4, 20, 30)


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(0, 60000, SHAPE).astype(np.uint16)


@pytest.fixture(params=["0.4", "0.5"])
def version(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint16]) -> Callable[[str], Path]:
    """An OME-Zarr image of each version, written once."""

    @functools.cache
    def write(version: Any) -> Path:
        levels, names = [values, values[..., ::2, ::2]], ["DAPI", "GFP", "Cy5"]
        path = tmp_path_factory.mktemp("series") / "i.zarr"
        return write_ome_zarr(path, levels, AXES, version=version, channels=names, chunks=(1, 1, 2, 10, 16))

    return write


@pytest.fixture
def series(tmp_path: Path, written: Callable[[str], Path], version: str) -> Path:
    """An OME-Zarr image, to do anything with."""
    return Path(shutil.copytree(written(version), tmp_path / "i.zarr"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all chunks that are read from folders, as they are read."""
    keys: list[str] = []
    get = LocalStore.get

    async def watched(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        if not key.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")):
            keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", watched)
    # The fast codecs read files without the store.
    monkeypatch.setattr("blockbuster.stores.with_fast_codecs", lambda array: array)
    return keys


def mask(shape: Sequence[int], seed: int = 0, density: float = 0.3) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)


def unless_stopped(block: NDArray[Any], stops: Path, calls: Path) -> NDArray[Any]:
    if stops.exists() and len(list(calls.iterdir())) > 5:
        raise RuntimeError("stopped")
    return components(block)


def tasks(array: da.Array) -> int:
    return len(dict(array.__dask_graph__()))


# What is told


def test_all_levels_are_lazy_arrays(series: Path, values: NDArray[Any]) -> None:
    with nothing_computed():
        image = open_image(series)
    assert all(isinstance(level, da.Array) for level in image.levels)
    assert (image.shape, image.dtype, image.axes) == (SHAPE, np.dtype(np.uint16), AXES)
    assert image.data is image.levels[0]
    assert image.channel_names == ("DAPI", "GFP", "Cy5")
    for level, expected in zip(image.levels, [values, values[..., ::2, ::2]], strict=True):
        assert level.shape == expected.shape
        np.testing.assert_array_equal(level.compute(), expected)


def test_nothing_is_read_until_it_is_computed(series: Path, values: NDArray[Any], reads: list[str]) -> None:
    image = open_image(series)
    lazy = load_ome_zarr(series, channel="GFP")
    assert reads == []
    part = image.data[1, 2, :2, :10, :16].compute()
    np.testing.assert_array_equal(part, values[1, 2, :2, :10, :16])
    assert len(reads) == 1
    lazy[0, 2:].compute()
    assert len(reads) == 1 + 4
    lazy.compute()
    assert len(reads) == 1 + 4 + 2 * 2 * 2 * 2


def test_blocks_are_the_chunks_that_are_stored(series: Path) -> None:
    image = open_image(series)
    assert image.data.chunks == ((1, 1), (1, 1, 1), (2, 2), (10, 10), (16, 14))
    assert image.levels[1].chunks == ((1, 1), (1, 1, 1), (2, 2), (10,), (15,))
    assert load_ome_zarr(series).chunks == ((1, 1), (2, 2), (10, 10), (16, 14))


@pytest.mark.parametrize("chunks", [(1, 4, 7, 30), "auto", -1, ((2,), (1, 3), (20,), (30,)), {3: 5}])
def test_blocks_may_be_chosen(chunks: Any, series: Path, values: NDArray[Any]) -> None:
    lazy = load_ome_zarr(series, chunks=chunks)
    assert lazy.chunks == da.zeros(lazy.shape, dtype=lazy.dtype, chunks=chunks).chunks
    np.testing.assert_array_equal(lazy.compute(), values[:, 0])
    if not isinstance(chunks, tuple) or isinstance(chunks[0], int):
        np.testing.assert_array_equal(open_image(series, channel=2, chunks=chunks).data.compute(), values[:, 2])


def test_a_block_that_is_asked_for_twice_is_not_kept(series: Path, values: NDArray[Any]) -> None:
    image = open_image(series)
    first = image.data.compute()
    first[...] = 0
    np.testing.assert_array_equal(image.data.compute(), values)


@pytest.mark.parametrize(
    ("channel", "number"), [(0, 0), (2, 2), ("DAPI", 0), ("Cy5", 2), (np.int64(1), 1), (np.uint8(2), 2)]
)
@pytest.mark.parametrize("level", [0, np.int64(1)])
def test_one_channel_is_chosen_by_number_or_name(
    channel: Any, number: int, level: int, series: Path, values: NDArray[Any]
) -> None:
    step = 2 ** int(level)
    expected = values[:, number, :, ::step, ::step]
    np.testing.assert_array_equal(load_ome_zarr(series, channel=channel, level=level).compute(), expected)
    image = open_image(series, channel=channel)
    assert (image.axes, image.channel_names) == ("tzyx", (("DAPI", "GFP", "Cy5")[number],))
    assert image.scales == ((1.0,) * 4, (2.0,) * 4)
    assert image.translations == ((0.0,) * 4,) * 2
    assert image.unit == (None,) * 4
    np.testing.assert_array_equal(image.levels[level].compute(), expected)


def test_no_channel_chosen_keeps_all(series: Path, values: NDArray[Any]) -> None:
    np.testing.assert_array_equal(load_ome_zarr(series, channel=None).compute(), values)
    np.testing.assert_array_equal(load_ome_zarr(series).compute(), values[:, 0])


@pytest.mark.parametrize("channel", [3, -1, "RFP", True, 1.0, "0", ""])
def test_a_channel_that_is_not_there_names_those_that_are(channel: Any, series: Path) -> None:
    for opened in (load_ome_zarr, open_image):
        with pytest.raises(ImageError, match=r"channel .* was asked for.*i\.zarr has channels.*DAPI.*GFP.*Cy5") as err:
            opened(series, channel=channel)
        assert repr(channel) in str(err.value)


@pytest.mark.parametrize("level", [2, -1, 0.0, "0", None, True])
def test_a_level_that_is_not_there_names_those_that_are(level: Any, series: Path) -> None:
    with pytest.raises(ImageError, match=rf"level {level!r} was asked for, but .*i\.zarr has levels 0\.\.1"):
        load_ome_zarr(series, level=level)


@pytest.mark.parametrize("channel", [1, "DAPI", -1, False])
def test_an_image_without_channels_has_only_the_first(channel: Any, tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [np.eye(4)], "yx")
    for first in (0, None, np.int64(0)):
        np.testing.assert_array_equal(load_ome_zarr(path, channel=first).compute(), np.eye(4))
    with pytest.raises(ImageError, match=rf"channel {channel!r} was asked for.*no channel axis \(axes yx\)"):
        load_ome_zarr(path, channel=channel)


def test_the_only_channel_may_be_named(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [np.eye(4)], "yx", channels=["DAPI"])
    np.testing.assert_array_equal(load_ome_zarr(path, channel="DAPI").compute(), np.eye(4))
    assert open_image(path, channel="DAPI").channel_names == ("DAPI",)


def test_what_was_opened_stays_as_it_is(series: Path) -> None:
    image = open_image(series)
    with pytest.raises(AttributeError):
        image.axes = "zyx"  # type: ignore[misc]
    assert image != open_image(series)
    assert repr(image).startswith("OpenedImage(path=")


def test_channel_and_chunks_are_named_in_open_image_but_may_be_in_place_in_load_ome_zarr() -> None:
    kinds = {p.kind for name, p in inspect.signature(open_image).parameters.items() if name != "path"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert list(inspect.signature(load_ome_zarr).parameters) == ["path", "channel", "level", "chunks"]


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (5, 7), (0, 4), (5, 0), (0, 0)])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_images_of_odd_shapes_are_opened(shape: tuple[int, int], chunk: int, version: Any, tmp_path: Path) -> None:
    stack = np.arange(shape[0] * shape[1]).reshape(shape)
    path = write_ome_zarr(tmp_path / "i.zarr", [stack], "yx", version=version, chunks=(chunk, chunk))
    image = open_image(path)
    assert image.shape == shape
    np.testing.assert_array_equal(image.data.compute(), stack)


# Paths


@pytest.mark.parametrize("spelled", [str, Path, lambda p: f"{p}/", lambda p: f"{p}/.", Path.as_uri])
def test_paths_are_spelled_in_several_ways(spelled: Callable[[Path], Any], series: Path) -> None:
    image = open_image(spelled(series))
    assert image.path == str(series)
    assert image.shape == SHAPE


def test_paths_with_unusual_letters_are_taken(values: NDArray[Any], tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "été 100% #1?.zarr", [values], AXES)
    for spelled in (path, path.as_uri()):
        np.testing.assert_array_equal(open_image(spelled).data.compute(), values)


def test_relative_paths_stay_the_same_in_another_folder(
    series: Path, values: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(series.parent)
    image = open_image("i.zarr")
    monkeypatch.chdir("/")
    assert image.path == str(series)
    np.testing.assert_array_equal(image.data.compute(), values)


def test_an_image_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    for value in (1, 2):
        blockbuster.write_image(np.full((4, 4), value), tmp_path / "i.zarr", overwrite=True)
        assert (open_image(tmp_path / "i.zarr").data.compute() == value).all()


@pytest.mark.parametrize("opened", [open_image, load_ome_zarr])
def test_a_path_to_nothing_is_refused(opened: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing at .*none\.zarr\. Give the path of a zarr store or of a TIFF"):
        opened(tmp_path / "none.zarr")


@pytest.mark.parametrize("path", ["nonsense://bucket/i.zarr", "://", "memory://nothing/i.zarr"])
def test_a_url_to_nothing_is_refused(path: str) -> None:
    with pytest.raises(ImageError):
        open_image(path)


@pytest.mark.parametrize("path", [None, 5, np.eye(3), b"i.zarr", ["i.zarr"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ImageError, match=r"path"):
        open_image(path)


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("dtype", ["U5", "M8[s]", [("r", "u1"), ("g", "u1")]], ids=["words", "times", "records"])
def test_stored_arrays_without_numbers_are_refused(dtype: Any, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(3, 3), dtype=dtype, zarr_format=2)
    for use in (load_ome_zarr, blockbuster.label, blockbuster.copy):
        with pytest.raises(ImageError, match=r"a\.zarr.* holds"):
            use(tmp_path / "a.zarr")  # type: ignore[operator]


@pytest.mark.parametrize("chunks", ["x", (1, 2, 3), (0, 5), (-5, 5), 1.5, ((3,), (3,))])
def test_blocks_that_do_not_fit_are_refused(chunks: Any, tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [np.eye(6)], "yx")
    with pytest.raises(GeometryError, match="chunks"):
        load_ome_zarr(path, chunks=chunks)


# Plain arrays and groups


@pytest.mark.parametrize(
    ("form", "axes"),
    [
        pytest.param({"zarr_format": 2}, None, id="v2"),
        pytest.param({"zarr_format": 2, "dtype": ">u2", "order": "F"}, None, id="v2, big-endian, F order"),
        pytest.param({"zarr_format": 3}, None, id="v3"),
        pytest.param({"zarr_format": 3, "dimension_names": ["c", "y", "x"]}, "cyx", id="v3, named"),
        pytest.param({"zarr_format": 3, "dimension_names": ["C", "Y", "X"]}, "cyx", id="v3, named by capitals"),
        pytest.param({"zarr_format": 3, "dimension_names": ["c", None, "x"]}, None, id="v3, named in part"),
        pytest.param({"zarr_format": 3, "dimension_names": ["channel", "lat", "lon"]}, None, id="v3, other names"),
        pytest.param({"zarr_format": 3, "dimension_names": ["x", "x", "x"]}, None, id="v3, named alike"),
        pytest.param({"zarr_format": 3, "shards": (2, 20, 20)}, None, id="v3, sharded"),
    ],
)
def test_plain_arrays_have_at_most_names_of_axes(form: dict[str, Any], axes: str | None, tmp_path: Path) -> None:
    stack = np.random.default_rng(2).integers(0, 9000, (3, 15, 30)).astype(form.pop("dtype", "u2"))
    array = zarr.create_array(tmp_path / "a.zarr", shape=stack.shape, dtype=stack.dtype, chunks=(1, 10, 10), **form)
    array[...] = stack
    image = open_image(tmp_path / "a.zarr")
    assert (image.axes, image.version, image.name) == (axes, None, "")
    assert (image.labels, image.channel_names) == ((), ())
    assert (image.scales, image.translations) == (((1.0,) * 3,), ((0.0,) * 3,))
    assert image.unit == (None,) * 3
    assert len(image.levels) == 1
    assert image.dtype.isnative
    np.testing.assert_array_equal(image.data.compute(), stack)
    first = load_ome_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(first.compute(), stack if axes is None else stack[0])


def test_an_array_without_axes_is_opened(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.array(5))
    image = open_image(tmp_path / "a.zarr")
    assert (image.shape, int(image.data.compute())) == ((), 5)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_only_array_of_a_group_is_taken(zarr_format: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr", zarr_format=zarr_format)
    group.create_array("em", data=np.eye(5))
    image = open_image(tmp_path / "g.zarr")
    np.testing.assert_array_equal(image.data.compute(), np.eye(5))
    assert image.path == str(tmp_path / "g.zarr" / "em")
    np.testing.assert_array_equal(load_ome_zarr(tmp_path / "g.zarr" / "em").compute(), np.eye(5))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_several_arrays_of_a_group_are_named(zarr_format: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr", zarr_format=zarr_format)
    for name in ("raw", "em", "mask"):
        group.create_array(name, data=np.eye(5))
    message = r"g\.zarr is a zarr group without OME-Zarr metadata, with the arrays em, mask, raw\. Give the path of one"
    for opened in (open_image, load_ome_zarr, blockbuster.label):
        with pytest.raises(ImageError, match=message):
            opened(tmp_path / "g.zarr")  # type: ignore[operator]


def test_many_arrays_of_a_group_are_named_in_part(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    for number in range(20):
        group.create_array(f"a{number:02}", data=np.eye(1))
    with pytest.raises(ImageError, match=r"a10, a11, \.\.\.\. Give"):
        open_image(tmp_path / "g.zarr")


def test_an_empty_group_has_no_image(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g.zarr")
    with pytest.raises(ImageError, match=r"g\.zarr is a zarr group.*none"):
        open_image(tmp_path / "g.zarr")


def test_the_only_image_of_a_group_is_taken(version: Any, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g.zarr", zarr_format=2 if version == "0.4" else 3)
    write_ome_zarr(tmp_path / "g.zarr" / "cells", [np.eye(5)], "yx", version=version)
    image = open_image(tmp_path / "g.zarr")
    assert (image.path, image.version) == (str(tmp_path / "g.zarr" / "cells"), version)
    np.testing.assert_array_equal(image.data.compute(), np.eye(5))


def test_several_images_of_a_group_are_named(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g.zarr")
    for name in ("cells", "tissue"):
        write_ome_zarr(tmp_path / "g.zarr" / name, [np.eye(5)], "yx")
    with pytest.raises(ImageError, match=r"g\.zarr is .*cells, tissue\. Give the path of one of them"):
        open_image(tmp_path / "g.zarr")


# Labels within an image


@pytest.fixture
def labelled(series: Path, version: Any) -> Path:
    for name in ("nuclei", "cells"):
        blockbuster.write_labels(np.full((2, 4, 20, 30), len(name), np.int32), series, name, level=0, axes="tzyx")
    return series


def test_labels_are_named_and_opened_by_their_path(labelled: Path, version: Any) -> None:
    assert open_image(labelled).labels == ("nuclei", "cells")
    for name in ("nuclei", "cells"):
        image = open_image(labelled / "labels" / name)
        assert (image.axes, image.version, image.labels, image.name) == ("tzyx", version, (), name)
        assert len(image.levels) == 2
        assert (image.data.compute() == len(name)).all()
        assert (load_ome_zarr(labelled / "labels" / name, level=1).compute() == len(name)).all()


def test_several_labels_are_named(labelled: Path) -> None:
    with pytest.raises(ImageError, match=r"labels is a group of the labels nuclei, cells\. Give the path of one"):
        open_image(labelled / "labels")


def test_the_only_label_image_is_taken(series: Path) -> None:
    blockbuster.write_labels(np.full((2, 4, 20, 30), 3, np.int32), series, "cells", axes="tzyx")
    image = open_image(series / "labels")
    assert image.path == str(series / "labels" / "cells")
    assert (image.data.compute() == 3).all()


def test_labels_that_are_named_but_not_there_are_refused(series: Path, version: Any) -> None:
    words = {"labels": ["gone"]}
    attributes = words if version == "0.4" else {"ome": {"version": version, **words}}
    zarr.create_group(series / "labels", zarr_format=2 if version == "0.4" else 3, attributes=attributes)
    assert open_image(series).labels == ("gone",)
    with pytest.raises(ImageError, match="gone"):
        open_image(series / "labels")


# Plates and collections


def node(path: Path, version: str, **words: Any) -> None:
    """A group with entries of OME-Zarr."""
    form: Any = 2 if version == "0.4" else 3
    attributes = words if version == "0.4" else {"ome": {"version": version, **words}}
    zarr.create_group(path, zarr_format=form, attributes=attributes)


def make_plate(path: Path, version: Any, fields: Sequence[int]) -> Path:
    """A plate with the wells A/1, A/2..., and as many fields in each as said."""
    wells = [f"A/{column}" for column in range(1, len(fields) + 1)]
    plate = {
        "rows": [{"name": "A"}],
        "columns": [{"name": str(c)} for c in range(1, len(fields) + 1)],
        "wells": [{"path": well, "rowIndex": 0, "columnIndex": c} for c, well in enumerate(wells)],
    }
    node(path, version, plate=plate)
    node(path / "A", version)
    for well, n in zip(wells, fields, strict=True):
        node(path / well, version, well={"images": [{"path": str(f)} for f in range(n)]})
        for field in range(n):
            image = np.full((2, 6, 8), 10 * field + int(well[-1]), np.uint8)
            write_ome_zarr(path / well / str(field), [image], "cyx", version=version)
    return path


def test_a_field_of_a_plate_is_opened_by_its_path(version: Any, tmp_path: Path) -> None:
    plate = make_plate(tmp_path / "p.zarr", version, [2, 1])
    image = open_image(plate / "A" / "1" / "1")
    assert (image.axes, image.version) == ("cyx", version)
    assert (image.data.compute() == 11).all()
    assert (load_ome_zarr(plate / "A/2/0").compute() == 2).all()


def test_a_plate_names_its_wells_and_a_well_its_fields(version: Any, tmp_path: Path) -> None:
    plate = make_plate(tmp_path / "p.zarr", version, [2, 1])
    with pytest.raises(ImageError, match=r"p\.zarr is a plate\. Give .*p\.zarr/<well>/<field>: A/1, A/2\."):
        open_image(plate)
    with pytest.raises(ImageError, match=r"p\.zarr/A/1 is a well with the fields 0, 1\. Give the path of one of them"):
        open_image(plate / "A" / "1")
    with pytest.raises(ImageError, match=r"p\.zarr/A/2/5"):
        open_image(plate / "A" / "2" / "5")


def test_the_only_field_of_a_well_is_taken(version: Any, tmp_path: Path) -> None:
    plate = make_plate(tmp_path / "p.zarr", version, [2, 1])
    image = open_image(plate / "A" / "2")
    assert image.path == str(plate / "A" / "2" / "0")
    assert (image.data.compute() == 2).all()
    assert (load_ome_zarr(plate / "A" / "2", channel=1).compute() == 2).all()


def test_a_plate_of_many_wells_names_some(version: Any, tmp_path: Path) -> None:
    node(tmp_path / "p.zarr", version, plate={"wells": [{"path": f"A/{n}"} for n in range(400)]})
    with pytest.raises(ImageError, match=r"A/0, A/1, .*, \.\.\.") as raised:
        open_image(tmp_path / "p.zarr")
    assert len(str(raised.value)) < 400 + len(str(tmp_path)) * 2


@pytest.mark.parametrize("plate", [{}, {"wells": []}])
def test_a_plate_without_wells_has_none(plate: Any, version: Any, tmp_path: Path) -> None:
    node(tmp_path / "p.zarr", version, plate=plate)
    with pytest.raises(ImageError, match="none"):
        open_image(tmp_path / "p.zarr")


@pytest.mark.parametrize("listed", [True, False], ids=["series listed", "series by number"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_series_of_a_collection_is_taken_if_it_is_the_only_one(
    n: int, listed: bool, version: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    node(path, version, **{"bioformats2raw.layout": 3})
    names = [f"series{k}" for k in range(n)] if listed else [str(k) for k in range(n)]
    for k, name in enumerate(names):
        write_ome_zarr(path / name, [np.full((4, 5), k + 1)], "yx", version=version)
    if listed:
        node(path / "OME", version, series=names)
    if n == 1:
        image = open_image(path)
        assert image.path == str(path / names[0])
        assert (image.data.compute() == 1).all()
    else:
        with pytest.raises(ImageError, match=rf"c\.zarr is a collection of the images {', '.join(names)}\. Give the"):
            open_image(path)
    assert (open_image(path / names[-1]).data.compute() == n).all()


def test_a_collection_without_series_has_none(version: Any, tmp_path: Path) -> None:
    node(tmp_path / "c.zarr", version, **{"bioformats2raw.layout": 3})
    with pytest.raises(ImageError, match=r"c\.zarr is a collection of the images none"):
        open_image(tmp_path / "c.zarr")


@pytest.mark.parametrize("layout", ["plate", "collection", "labels", "well"])
def test_what_a_group_names_but_has_not_is_an_error_of_the_image(layout: str, version: Any, tmp_path: Path) -> None:
    path = tmp_path / "g.zarr"
    words: dict[str, Any] = {
        "plate": {"plate": {"wells": [{"path": "A/1"}]}},
        "collection": {"bioformats2raw.layout": 3},
        "labels": {"labels": ["gone"]},
        "well": {"well": {"images": [{"path": "gone"}]}},
    }
    node(path, version, **words[layout])
    if layout == "collection":
        node(path / "OME", version, series=["gone"])
    with pytest.raises(ImageError, match=r"g\.zarr"):
        open_image(path)


# Zip files


def zipped(folder: Path, within: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """The store in a zip file beside it."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, Path(within, file.relative_to(folder)))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_image_in_a_zip_is_opened(
    compression: int, labelled: Path, values: NDArray[Any], version: Any, tmp_path: Path
) -> None:
    path = zipped(labelled, compression=compression)
    before = digest(path)
    image = open_image(path)
    assert (image.path, image.axes, image.version) == (str(path), AXES, version)
    assert (image.labels, image.channel_names) == (("nuclei", "cells"), ("DAPI", "GFP", "Cy5"))
    for level, expected in zip(image.levels, [values, values[..., ::2, ::2]], strict=True):
        np.testing.assert_array_equal(level.compute(), expected)
    inner = open_image(path / "labels" / "cells")
    assert (inner.path, inner.axes) == (str(path / "labels" / "cells"), "tzyx")
    assert (inner.data.compute() == 5).all()
    np.testing.assert_array_equal(load_ome_zarr(path, channel="GFP", level=1).compute(), values[:, 1, :, ::2, ::2])
    np.testing.assert_array_equal(load_ome_zarr(path / "0", channel=None).compute(), values)
    with pytest.raises(ImageError, match=r"i\.zarr\.zip/labels is a group of the labels nuclei, cells"):
        open_image(path / "labels")
    assert digest(path) == before


def test_a_store_in_a_folder_of_a_zip_is_opened(series: Path, values: NDArray[Any]) -> None:
    path = zipped(series, within="deep/i.zarr")
    np.testing.assert_array_equal(open_image(path / "deep" / "i.zarr").data.compute(), values)


def test_an_array_in_a_zip_is_opened(tmp_path: Path) -> None:
    with ZipStore(tmp_path / "a.zip", mode="w") as store:
        zarr.create_array(store, data=np.eye(9), chunks=(4, 4))
    np.testing.assert_array_equal(open_image(tmp_path / "a.zip").data.compute(), np.eye(9))
    np.testing.assert_array_equal(blockbuster.label(tmp_path / "a.zip", compute=True), components(np.eye(9)))


def test_a_folder_may_be_named_like_a_zip(series: Path, values: NDArray[Any]) -> None:
    path = series.rename(series.with_name("i.zip"))
    np.testing.assert_array_equal(open_image(path).data.compute(), values)
    outer = path.parent / "o.zip"
    outer.mkdir()
    np.testing.assert_array_equal(open_image(path.rename(outer / "i.zarr")).data.compute(), values)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("inner", ["", "labels/cells"])
def test_a_zip_that_is_none_is_refused(content: bytes, inner: str, tmp_path: Path) -> None:
    (tmp_path / "i.zarr.zip").write_bytes(content)
    with pytest.raises(ImageError, match=r"i\.zarr\.zip"):
        open_image(tmp_path / "i.zarr.zip" / inner)


def test_a_zip_without_zarr_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    for inner in ("", "none", "readme.txt"):
        with pytest.raises(ImageError, match=r"i\.zip"):
            open_image(tmp_path / "i.zip" / inner)


def test_images_in_zips_are_labelled_and_copied_on_every_scheduler(many: str, tmp_path: Path) -> None:
    cells = mask((2, 24, 24))
    path = zipped(write_ome_zarr(tmp_path / "i.zarr", [cells[:, ::2], cells], "cyx", chunks=(1, 8, 8)))
    before = digest(path)
    out = tmp_path / "out"
    out.mkdir()
    labels = blockbuster.label(path, level=1, channel=1, write_to=out / "labels.zarr")
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(cells[1])[0])
    copied = blockbuster.copy(path / "1", out / "copy.zarr", chunks=(2, 5, 24))
    np.testing.assert_array_equal(copied.compute(), cells)
    blockbuster.copy(path, out / "all.zarr")
    np.testing.assert_array_equal(open_image(out / "all.zarr").levels[1].compute(), cells)
    made = blockbuster.tile_process(path, components, overlap=2, channel=0, compute=True)
    assert_same_objects(made, scipy.ndimage.label(cells[0, ::2])[0])
    np.testing.assert_array_equal(load_ome_zarr(path, channel=1, level=1).compute(), cells[1])
    assert digest(path) == before
    assert leftovers(out) == []


@pytest.mark.parametrize(
    "opened", [zarr.open_array, lambda store: da.from_zarr(zarr.open_array(store))], ids=["zarr", "dask"]
)
def test_arrays_of_a_zip_that_the_caller_opened_are_read(
    opened: Callable[[Any], Any], many: str, tmp_path: Path
) -> None:
    cells = mask((24, 24))
    with ZipStore(tmp_path / "a.zip", mode="w") as store:
        zarr.create_array(store, data=cells, chunks=(8, 8))
    with ZipStore(tmp_path / "a.zip", mode="r") as store:
        labels = blockbuster.label(opened(store), compute=True)
        np.testing.assert_array_equal(labels, scipy.ndimage.label(cells)[0])
        copied = blockbuster.copy(opened(store), tmp_path / "copy.zarr")
        np.testing.assert_array_equal(copied.compute(), cells)


def test_labels_in_a_zip_are_copied_with_their_image(labelled: Path, tmp_path: Path) -> None:
    path = zipped(labelled)
    blockbuster.copy(path, tmp_path / "copy.zarr")
    copied = open_image(tmp_path / "copy.zarr")
    assert copied.labels == ("nuclei", "cells")
    np.testing.assert_array_equal(copied.data.compute(), open_image(labelled).data.compute())
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "copy.zarr/labels/cells/1")[...], 5)
    blockbuster.copy(path / "labels" / "cells", tmp_path / "cells.zarr")
    np.testing.assert_array_equal(open_image(tmp_path / "cells.zarr").data.compute(), 5)


def test_a_zip_is_read_by_many_threads_at_once(series: Path, values: NDArray[Any]) -> None:
    lazy = open_image(zipped(series)).data
    wrong: list[str] = []

    def read() -> None:
        made = [lazy.compute(scheduler="threads", num_workers=4) for _ in range(3)]
        wrong.extend("differs" for one in made if not np.array_equal(one, values))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_zip_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    for value in (1, 2):
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / "a.zip").unlink()
        with ZipStore(tmp_path / "a.zip", mode="w") as store:
            zarr.create_array(store, data=np.full((4, 4), value))
        assert (open_image(tmp_path / "a.zip").data.compute() == value).all()


WRITERS: list[Any] = [
    pytest.param(lambda image, to: blockbuster.copy(image, to, overwrite=True), id="copy"),
    pytest.param(lambda image, to: blockbuster.write_image(image, to, overwrite=True), id="write_image"),
    pytest.param(lambda image, to: blockbuster.write_labels(image, to, "cells", overwrite=True), id="write_labels"),
    pytest.param(lambda image, to: blockbuster.label(image, write_to=to, overwrite=True), id="label"),
    pytest.param(lambda image, to: blockbuster.downsample(image, 2, write_to=to, overwrite=True), id="downsample"),
    pytest.param(lambda image, to: blockbuster.pyramid(to, overwrite=True), id="pyramid"),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("inner", ["", "labels/cells"])
def test_nothing_is_written_into_a_zip(write: Callable[[Any, Path], Any], inner: str, tmp_path: Path) -> None:
    path = zipped(write_ome_zarr(tmp_path / "i.zarr", [np.eye(8, dtype=np.uint8)], "yx"))
    before = digest(tmp_path)
    if "pyramid" in str(write.__code__.co_names):
        inner = ""
    with pytest.raises((OutputError, ParameterError, ImageError), match=r"i\.zarr\.zip.*(zip file|folder|is a file)"):
        write(np.eye(8, dtype=np.uint8), path / inner)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("write", WRITERS[:-1])
def test_no_zip_is_made(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    """A name that ends so means a zip file to those who read it; a folder of that name would be none."""
    with pytest.raises((OutputError, ParameterError), match=r"new\.zarr\.zip.*zip"):
        write(np.eye(8, dtype=np.uint8), tmp_path / "new.zarr.zip")
    assert not (tmp_path / "new.zarr.zip").exists()


# Lazy arrays as inputs


@pytest.fixture
def cells(tmp_path: Path, version: Any) -> Path:
    return write_ome_zarr(
        tmp_path / "cells.zarr", [mask((2, 24, 24, 24))], "czyx", version=version, chunks=(1, 8, 8, 8)
    )


OPERATIONS: list[Any] = [
    pytest.param(lambda image, **options: blockbuster.label(image, **options), id="label"),
    pytest.param(
        lambda image, **options: blockbuster.tile_process(image, components, overlap=2, **options), id="tile_process"
    ),
    pytest.param(lambda image, **options: blockbuster.copy(image, **options), id="copy"),
    pytest.param(lambda image, **options: blockbuster.downsample(image, 2, **options), id="downsample"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lazy_image_is_read_in_the_tasks_as_its_path_is(operation: Callable[..., Any], cells: Path) -> None:
    by_path = operation(cells, channel=1)
    for lazy in (load_ome_zarr(cells, channel=1), open_image(cells, channel=1).data):
        by_array = operation(lazy)
        assert tasks(by_array) == tasks(by_path)
        np.testing.assert_array_equal(by_array.compute(), by_path.compute())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lazy_image_in_other_blocks_is_read_in_the_tasks_too(operation: Callable[..., Any], cells: Path) -> None:
    lazy = load_ome_zarr(cells, channel=1, chunks=(24, 12, 12))
    made = operation(lazy)
    assert tasks(made) <= tasks(operation(cells, channel=1))
    np.testing.assert_array_equal(np.asarray(made) > 0, np.asarray(operation(lazy.compute())) > 0)


def test_a_lazy_image_costs_at_most_two_tasks_more_per_tile_when_it_is_computed_from(cells: Path) -> None:
    lazy = load_ome_zarr(cells)
    by_path = tasks(blockbuster.label(cells))
    by_array = tasks(blockbuster.label(lazy > 0, tile_shape=(8, 8, 8)))
    assert by_array <= by_path + 2 * 27


@pytest.mark.parametrize("operation", OPERATIONS)
def test_lazy_images_are_read_by_other_processes(operation: Callable[..., Any], many: str, tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "cells.zarr", [mask((2, 16, 16, 16))], "czyx", chunks=(1, 8, 8, 8))
    expected = operation(mask((2, 16, 16, 16))[1], tile_shape=(8, 8, 8) if operation is not OPERATIONS[3] else None)
    made = operation(load_ome_zarr(path, channel=1), compute=True)
    assert_same_objects(made, np.asarray(expected))


def test_lazy_images_pickle_small(cells: Path) -> None:
    image = open_image(cells)
    again = pickle.loads(pickle.dumps(image))
    assert (again.axes, again.scales, again.path) == (image.axes, image.scales, image.path)
    np.testing.assert_array_equal(again.data.compute(), image.data.compute())
    assert len(pickle.dumps(image.data)) < 20_000


@pytest.mark.parametrize("merge", ["touching", "iou"])
def test_objects_of_a_lazy_image_do_not_merge_over_time_and_channels(merge: Any, tmp_path: Path) -> None:
    still = np.zeros((2, 3, 12, 12), np.uint8)
    still[..., 3:9, 3:9] = 1
    path = write_ome_zarr(tmp_path / "i.zarr", [still], "tcyx", chunks=(1, 1, 6, 6))
    together = load_ome_zarr(path, channel=None, chunks=(2, 3, 6, 6))
    assert blockbuster.label(together, compute=True).max() == 6
    for image in (path, open_image(path).data):
        options: dict[str, Any] = {"channel": None} if image is path else {}
        assert blockbuster.label(image, compute=True, **options).max() == 6
        labels = blockbuster.tile_process(image, components, overlap=(0, 0, 2, 2), merge=merge, compute=True, **options)
        assert [np.unique(labels[t, c][still[t, c] > 0]).size for t in range(2) for c in range(3)] == [1] * 6
        assert np.unique(labels[still > 0]).size == 6
    assert blockbuster.label(open_image(path, channel=1).data, compute=True).max() == 2


def test_a_lazy_image_keeps_its_axes_when_it_is_written(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "i.zarr", [mask((2, 8, 8))], "tyx", chunks=(1, 4, 4))
    made = blockbuster.write_image(open_image(path).data, tmp_path / "o.zarr")
    assert made.axes == "tyx"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lazy_image_is_never_replaced(operation: Callable[..., Any], cells: Path) -> None:
    before = digest(cells)
    for lazy in (load_ome_zarr(cells), load_ome_zarr(cells) + 1, load_ome_zarr(cells)[1:]):
        with pytest.raises(OutputError, match="Inputs are never written"):
            operation(lazy, write_to=cells, output_component="0", overwrite=True)
    assert digest(cells) == before


def test_a_view_of_a_lazy_image_is_what_it_shows(cells: Path) -> None:
    expected = mask((2, 24, 24, 24))[0]
    lazy = load_ome_zarr(cells)
    for view in (
        lambda a: a[3:20, ::2],
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a[5],
        lambda a: a[[1, 5, 2]],
        lambda a: a[None],
        lambda a: a.astype(np.float32),
        lambda a: a[a.shape[0] // 2, 3],
    ):
        np.testing.assert_array_equal(view(lazy).compute(), view(expected))  # type: ignore[no-untyped-call]
        labels = blockbuster.label(view(lazy), compute=True)  # type: ignore[no-untyped-call]
        np.testing.assert_array_equal(labels, scipy.ndimage.label(view(expected))[0])  # type: ignore[no-untyped-call]


def test_two_lazy_images_are_computed_together(cells: Path) -> None:
    expected = mask((2, 24, 24, 24))
    first, second = load_ome_zarr(cells, channel=0), load_ome_zarr(cells, channel=1)
    np.testing.assert_array_equal((first + second).compute(), expected.sum(0))
    labels = blockbuster.label(first, mask=second, compute=True)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(expected[0] * expected[1])[0])


def test_a_run_on_a_lazy_image_resumes(cells: Path, tmp_path: Path) -> None:
    stops = tmp_path / "stops"
    stops.touch()
    calls = tmp_path / "calls"
    calls.mkdir()
    recording = Recording(calls, functools.partial(unless_stopped, stops=stops, calls=calls))
    out = tmp_path / "out.zarr"
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(blockbuster.TileError):
            blockbuster.tile_process(load_ome_zarr(cells), recording, write_to=out)
        stops.unlink()
        done = recording.n_calls
        labels = blockbuster.tile_process(load_ome_zarr(cells), recording, write_to=out, resume=True)
    # Five were made, then more failed than that; those that failed are the only ones that were tried twice.
    assert (done, recording.n_calls) == (5 + 6, 27 + 6)
    assert_same_objects(labels.compute(), scipy.ndimage.label(mask((2, 24, 24, 24))[0])[0])


def test_a_lazy_image_of_the_cluster_is_read_where_it_is_computed(cells: Path, local_cluster: str) -> None:
    from distributed import Client

    expected = mask((2, 24, 24, 24))[1]
    lazy = load_ome_zarr(cells, channel=1)
    with Client(local_cluster):
        np.testing.assert_array_equal(lazy.compute(), expected)
        np.testing.assert_array_equal(lazy.sum(axis=0).compute(), expected.sum(axis=0))
        np.testing.assert_array_equal(lazy.persist().compute(), expected)
        labels = blockbuster.label(lazy)
        np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(expected)[0])
