"""Images of every kind: what `fn` gets of them, and what cannot be opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from blockbuster import ImageError, tile_process
from tests.helpers import Recording, assert_same_objects, components, digest, write_ome_zarr

pytestmark = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def ones(block: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ones(block.shape, np.uint8)


@pytest.fixture
def seen(tmp_path: Path) -> Callable[..., NDArray[Any]]:
    """What `fn` sees of an image in one tile."""
    made = tmp_path / "calls"
    made.mkdir()

    def see(image: Any, **options: Any) -> NDArray[Any]:
        for file in made.iterdir():
            file.unlink()
        recording = Recording(made, ones)
        labels = tile_process(image, recording, tile_shape=lambda shape, dtype: shape, compute=True, **options)
        (block,) = recording.blocks()
        assert labels.shape == block.shape
        return block

    return see


Seen = Callable[..., NDArray[Any]]


@pytest.fixture
def image() -> NDArray[np.uint16]:
    return np.random.default_rng(6).integers(0, 60000, (20, 30)).astype(np.uint16)


# Arrays


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda a: a, id="numpy"),
        pytest.param(lambda a: a.tolist(), id="lists"),
        pytest.param(np.asfortranarray, id="Fortran order"),
        pytest.param(lambda a: np.repeat(a, 2, 1)[:, ::2], id="a view with strides"),
        pytest.param(lambda a: a.astype(">u2"), id="big-endian numpy"),
        pytest.param(lambda a: da.from_array(a, chunks=(7, 30)), id="dask"),
        pytest.param(lambda a: da.from_array(a + 1, chunks=(7, 9)) - 1, id="a dask graph"),
        pytest.param(lambda a: da.from_array(a.T, chunks=(7, 9)).T, id="a transposed dask array"),
        pytest.param(lambda a: zarr.array(a, chunks=(8, 8)), id="zarr in memory"),
        pytest.param(lambda a: zarr.array(a, chunks=(8, 8), zarr_format=2), id="zarr v2 in memory"),
    ],
)
def test_arrays_are_read_as_they_are(make: Any, image: NDArray[Any], seen: Seen) -> None:
    np.testing.assert_array_equal(seen(make(image)), image)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), da.zeros((4, 4), chunks=2)])
def test_channel_and_level_are_ignored_for_arrays(image: Any, seen: Seen) -> None:
    assert seen(image, channel=7, level=3).shape == (4, 4)
    assert seen(zarr.array(np.zeros((4, 4))), channel="DAPI", level=3).shape == (4, 4)


FORMS: list[Any] = [
    pytest.param({"zarr_format": 2}, id="v2"),
    pytest.param({"zarr_format": 3}, id="v3"),
    pytest.param({"zarr_format": 2, "dtype": ">u2"}, id="v2, big-endian"),
    pytest.param({"zarr_format": 2, "order": "F"}, id="v2, Fortran order"),
    pytest.param({"zarr_format": 3, "shards": (16, 16)}, id="v3, sharded"),
    pytest.param({"zarr_format": 3, "compressors": None}, id="v3, not compressed"),
    pytest.param({"zarr_format": 3, "compressors": zarr.codecs.GzipCodec()}, id="v3, gzip"),
    pytest.param(
        {"zarr_format": 3, "serializer": zarr.codecs.BytesCodec(endian="big")},
        id="v3, big-endian",
    ),
    pytest.param({"zarr_format": 3, "filters": [zarr.codecs.TransposeCodec(order=(1, 0))]}, id="v3, transposed"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by_path", [False, True])
def test_stored_arrays_of_every_form_are_read(
    form: dict[str, Any], by_path: bool, image: NDArray[Any], seen: Seen, folder: Path
) -> None:
    options = {"dtype": image.dtype, **form}
    array = zarr.create_array(folder / "a.zarr", shape=image.shape, chunks=(8, 8), **options)
    array[...] = image
    block = seen(folder / "a.zarr" if by_path else array)
    np.testing.assert_array_equal(block, image)
    assert block.dtype == np.uint16


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float32", "complex64"])
def test_stored_arrays_of_every_dtype_are_read(dtype: str, seen: Seen, folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (9, 9)).astype(dtype)
    zarr.create_array(folder / "a.zarr", data=values, chunks=(4, 4))
    block = seen(str(folder / "a.zarr"))
    np.testing.assert_array_equal(block, values)
    assert block.dtype == dtype


def test_an_array_within_a_group_is_opened_by_its_path(image: NDArray[Any], seen: Seen, folder: Path) -> None:
    group = zarr.create_group(folder / "store.zarr")
    group.create_array("raw/em", data=image, chunks=(8, 8))
    np.testing.assert_array_equal(seen(folder / "store.zarr" / "raw" / "em"), image)
    np.testing.assert_array_equal(seen(group["raw/em"]), image)


def test_relative_paths_are_taken(
    image: NDArray[Any], seen: Seen, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array(folder / "a.zarr", data=image, chunks=(8, 8))
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(seen("a.zarr"), image)


def test_an_array_replaced_between_two_runs_is_opened_anew(seen: Seen, folder: Path) -> None:
    for value in (1, 2):
        zarr.create_array(folder / "a.zarr", data=np.full((4, 4), value), overwrite=True)
        assert (seen(folder / "a.zarr") == value).all()


# OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_without_a_channel_axis_is_kept_whole(
    version: Any, image: NDArray[Any], seen: Seen, folder: Path
) -> None:
    path = write_ome_zarr(folder / "i.zarr", [image, image[::2, ::2]], "yx", version=version, chunks=(8, 8))
    np.testing.assert_array_equal(seen(path), image)
    np.testing.assert_array_equal(seen(str(path), channel=0, level=1), image[::2, ::2])
    np.testing.assert_array_equal(seen(path, channel=None), image)


@pytest.fixture(params=["0.4", "0.5"])
def series(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, NDArray[np.uint16]]:
    """An OME-Zarr image (t, c, z, y, x) with three channels."""
    values = np.random.default_rng(1).integers(0, 60000, (2, 3, 4, 8, 10)).astype(np.uint16)
    path = write_ome_zarr(
        folder / "series.zarr",
        [values, values[..., ::2, ::2]],
        "tczyx",
        version=request.param,
        channels=["DAPI", "GFP", "Cy5"],
        chunks=(1, 1, 4, 8, 8),
    )
    return path, values


@pytest.mark.parametrize(
    ("channel", "number"),
    [(0, 0), (1, 1), (2, 2), ("DAPI", 0), ("GFP", 1), ("Cy5", 2), (np.int64(1), 1)],
)
@pytest.mark.parametrize("level", [0, 1])
def test_a_channel_is_chosen_by_number_or_name(
    channel: Any, number: int, level: int, series: tuple[Path, NDArray[Any]], seen: Seen
) -> None:
    path, values = series
    step = 2**level
    np.testing.assert_array_equal(seen(path, channel=channel, level=level), values[:, number, :, ::step, ::step])


def test_the_first_channel_is_the_default_and_none_keeps_all(series: tuple[Path, NDArray[Any]], seen: Seen) -> None:
    path, values = series
    np.testing.assert_array_equal(seen(path), values[:, 0])
    np.testing.assert_array_equal(seen(path, channel=None), values)


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (3, r"channel 3 was asked for.*series\.zarr has channels 0\.\.2 \['DAPI', 'GFP', 'Cy5'\]"),
        (-1, r"channel -1 was asked for.*channels 0\.\.2"),
        ("RFP", r"channel 'RFP' was asked for.*channels \['DAPI', 'GFP', 'Cy5'\]"),
        (True, r"channel True was asked for.*channels 0\.\.2"),
        (1.5, r"channel 1\.5 was asked for.*channels 0\.\.2"),
    ],
)
def test_channels_that_are_not_there_are_refused(
    channel: Any, message: str, series: tuple[Path, NDArray[Any]], seen: Seen
) -> None:
    with pytest.raises(ImageError, match=message):
        seen(series[0], channel=channel)


@pytest.mark.parametrize("level", [2, -1])
def test_levels_that_are_not_there_are_refused(level: int, series: tuple[Path, NDArray[Any]], seen: Seen) -> None:
    with pytest.raises(ImageError, match=rf"level {level} was asked for.*series\.zarr has levels 0\.\.1"):
        seen(series[0], level=level)


@pytest.mark.parametrize("channel", [1, "DAPI"])
def test_a_channel_of_an_image_without_that_axis_is_refused(channel: Any, folder: Path, seen: Seen) -> None:
    path = write_ome_zarr(folder / "i.zarr", [np.zeros((4, 5))], "yx")
    with pytest.raises(ImageError, match=rf"channel {channel!r} was asked for.*no channel axis \(axes yx\)"):
        seen(path, channel=channel)


def test_ids_are_disjoint_over_time_and_channels(folder: Path) -> None:
    values = np.ones((2, 2, 2, 6, 6), np.uint8)
    path = write_ome_zarr(folder / "i.zarr", [values], "tczyx", chunks=(1, 1, 1, 3, 3))
    labels = tile_process(path, components, channel=None, compute=True)
    assert labels.shape == values.shape
    # One object in each of 2 x 2 volumes, whole in all of space.
    assert [np.unique(labels[t, c]).size for t in range(2) for c in range(2)] == [1] * 4
    assert np.unique(labels).size == 4
    labels = tile_process(path, components, channel=1, overlap=1, merge="iou", compute=True)
    assert labels.shape == (2, 2, 6, 6)
    assert np.unique(labels[0]).size == np.unique(labels[1]).size
    assert not set(np.unique(labels[0])) & set(np.unique(labels[1]))


def test_a_still_cell_has_another_id_at_each_time(folder: Path) -> None:
    values = np.zeros((5, 12, 12), np.uint8)
    values[:, 4:9, 4:9] = 1
    path = write_ome_zarr(folder / "i.zarr", [values], "tyx", chunks=(1, 6, 6))
    for merge in ("touching", "iou", "contact"):
        labels = tile_process(path, components, overlap=3, merge=merge, sequential_labels=True, compute=True)
        assert labels.max() == 5
        for time in range(5):
            assert_same_objects(labels[time], values[time])
    # Array axes have no names: there a still cell is one object of three dimensions.
    assert tile_process(values, components, tile_shape=(1, 6, 6), compute=True).max() == 1


def test_dimension_names_of_a_plain_array_are_its_axes(folder: Path, seen: Seen) -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    zarr.create_array(folder / "a.zarr", data=values, dimension_names=["c", "y", "x"])
    np.testing.assert_array_equal(seen(folder / "a.zarr", channel=1), values[1])
    with pytest.raises(ImageError, match=r"channels 0\.\.1"):
        seen(folder / "a.zarr", channel=2)


def test_a_plain_array_has_no_channels_and_one_level(folder: Path, seen: Seen) -> None:
    zarr.create_array(folder / "a.zarr", data=np.zeros((3, 4)))
    assert seen(folder / "a.zarr", channel=0).shape == (3, 4)
    with pytest.raises(ImageError, match=r"channel 1 was asked for.*a\.zarr has no channel axis"):
        seen(folder / "a.zarr", channel=1)
    with pytest.raises(ImageError, match=r"level 1 was asked for.*a\.zarr has levels 0\.\.0"):
        seen(folder / "a.zarr", level=1)


def test_old_metadata_without_axes_means_the_last_ones(folder: Path, seen: Seen) -> None:
    values = np.zeros((1, 2, 1, 4, 5), np.uint8)
    group = zarr.create_group(folder / "i.zarr", zarr_format=2)
    group.create_array("0", data=values)
    group.attrs["multiscales"] = [{"version": "0.1", "datasets": [{"path": "0"}]}]
    assert seen(folder / "i.zarr", channel=1).shape == (1, 1, 4, 5)


# TIFF


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="strips"),
        pytest.param({"tile": (16, 16), "compression": "zlib"}, id="tiles, compressed"),
        pytest.param({"byteorder": ">"}, id="big-endian"),
        pytest.param({"bigtiff": True}, id="BigTIFF"),
        pytest.param({"ome": True}, id="OME"),
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_tiffs_are_read(options: dict[str, Any], suffix: str, image: NDArray[Any], seen: Seen, folder: Path) -> None:
    path = folder / f"image{suffix}"
    tifffile.imwrite(path, image, **options)
    np.testing.assert_array_equal(seen(path), image)
    np.testing.assert_array_equal(seen(str(path)), image)


@pytest.mark.parametrize("n_pages", [1, 5])
def test_pages_of_a_tiff_are_planes_read_tile_by_tile(n_pages: int, folder: Path, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (n_pages, 40, 50)).astype(np.uint8)
    tifffile.imwrite(folder / "stack.tif", stack, tile=(16, 16), photometric="minisblack")
    before = digest(folder)
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls")
    labels = tile_process(folder / "stack.tif", recording, compute=True)
    assert recording.n_calls == 12 * n_pages
    assert_same_objects(labels, components(tifffile.imread(folder / "stack.tif")))
    assert digest(folder) == before


def test_levels_of_a_tiff_pyramid_are_chosen(image: NDArray[Any], seen: Seen, folder: Path) -> None:
    with tifffile.TiffWriter(folder / "p.tif") as tiff:
        tiff.write(image, subifds=1, tile=(16, 16))
        tiff.write(image[::2, ::2], subfiletype=1, tile=(16, 16))
    np.testing.assert_array_equal(seen(folder / "p.tif"), image)
    np.testing.assert_array_equal(seen(folder / "p.tif", level=1), image[::2, ::2])
    for level in (2, -1):
        with pytest.raises(ImageError, match=rf"level {level} was asked for.*p\.tif has levels 0\.\.1"):
            seen(folder / "p.tif", level=level)


@pytest.mark.parametrize(
    ("shape", "options", "axis"),
    [
        pytest.param((3, 20, 30), {"ome": True, "metadata": {"axes": "CYX"}}, 0, id="OME, CYX"),
        pytest.param((2, 4, 3, 20, 30), {"imagej": True, "metadata": {"axes": "TZCYX"}}, 2, id="ImageJ, TZCYX"),
        pytest.param((20, 30, 3), {"photometric": "rgb"}, 2, id="RGB"),
    ],
)
def test_channels_of_a_tiff_are_chosen(
    shape: tuple[int, ...], options: dict[str, Any], axis: int, seen: Seen, folder: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    tifffile.imwrite(folder / "i.tif", values, **options)
    for channel in range(3):
        np.testing.assert_array_equal(seen(folder / "i.tif", channel=channel), values.take(channel, axis))
    np.testing.assert_array_equal(seen(folder / "i.tif", channel=None), values)
    with pytest.raises(ImageError, match=r"channel 3 was asked for.*i\.tif has channels 0\.\.2"):
        seen(folder / "i.tif", channel=3)


def test_frames_of_a_tiff_stay_apart(folder: Path) -> None:
    tifffile.imwrite(folder / "i.tif", np.ones((4, 6, 6), np.uint8), imagej=True, metadata={"axes": "TYX"})
    labels = tile_process(folder / "i.tif", components, tile_shape=(1, 3, 6), compute=True)
    assert np.unique(labels).size == 4
    assert all(np.unique(frame).size == 1 for frame in labels)


def test_a_channel_of_a_tiff_without_channels_is_refused(image: NDArray[Any], seen: Seen, folder: Path) -> None:
    tifffile.imwrite(folder / "i.tif", image)
    with pytest.raises(ImageError, match=r"channel 1 was asked for.*i\.tif has no channel axis"):
        seen(folder / "i.tif", channel=1)


@pytest.mark.parametrize("content", [None, b"no tiff at all"])
def test_what_is_no_tiff_is_refused(content: bytes | None, seen: Seen, folder: Path) -> None:
    if content is not None:
        (folder / "i.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"i\.tif"):
        seen(folder / "i.tif")


# What is no image


def test_a_path_where_nothing_is_is_refused(folder: Path, seen: Seen) -> None:
    with pytest.raises(ImageError, match=r"nothing at .*none\.zarr\. Give the path of a zarr store or of a TIFF"):
        seen(folder / "none.zarr")


@pytest.mark.parametrize("kind", ["file", "folder", "broken metadata"])
def test_what_is_no_zarr_is_refused(kind: str, folder: Path, seen: Seen) -> None:
    path = folder / "thing"
    if kind == "file":
        path.write_text("text")
    else:
        path.mkdir()
    if kind == "broken metadata":
        (path / "zarr.json").write_text('{"zarr_format": 3, ')
    with pytest.raises(ImageError, match="thing cannot be opened as zarr"):
        seen(path)


def test_a_group_without_ome_metadata_names_its_arrays(folder: Path, seen: Seen) -> None:
    group = zarr.create_group(folder / "g.zarr")
    group.create_array("b", data=np.zeros(3))
    group.create_array("a", data=np.zeros(3))
    with pytest.raises(ImageError, match=r"g\.zarr is a zarr group without OME-Zarr metadata, with the arrays a, b"):
        seen(folder / "g.zarr")
    with pytest.raises(ImageError, match=r"is a zarr group\. Give its path, or one of its arrays"):
        seen(group)


def test_ome_metadata_that_name_no_array_are_refused(folder: Path, seen: Seen) -> None:
    path = write_ome_zarr(folder / "i.zarr", [np.zeros((4, 4))], "yx")
    group = zarr.open_group(path)
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][0]["path"] = "gone"  # type: ignore[index,call-overload]
    group.attrs["ome"] = ome
    with pytest.raises(ImageError, match="gone"):
        seen(path)


def test_a_dask_array_of_unknown_shape_is_refused(seen: Seen) -> None:
    values = da.from_array(np.arange(6), chunks=3)
    with pytest.raises(ImageError, match=r"unknown shape \(nan,\)\. Call its compute_chunk_sizes\(\)"):
        seen(values[values > 2])


@pytest.mark.parametrize(
    ("image", "held"),
    [
        (["a", "b"], "<U1"),
        (np.array([None, 1]), "object"),
        ({"y": 3}, "object"),
        (None, "object"),
        (np.zeros(3, [("r", "u1"), ("g", "u1")]), r"\[\('r', 'u1'\)"),
    ],
)
def test_what_holds_no_numbers_is_refused(image: Any, held: str, seen: Seen) -> None:
    with pytest.raises(ImageError, match=rf"image is a .*which holds {held}.*Give a dask, numpy or zarr array"):
        seen(image)


@pytest.mark.parametrize("image", [[[1, 2], [3]]])
def test_ragged_lists_are_refused(image: Any, seen: Seen) -> None:
    with pytest.raises(ImageError, match="image is a list"):
        seen(image)


# Inputs are never written


@pytest.mark.parametrize("kind", ["v2", "v3", "sharded", "0.4", "0.5", "tiff"])
@pytest.mark.parametrize("merge", ["touching", "iou"])
def test_inputs_on_disk_are_never_written(kind: str, merge: str, folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    path = folder / ("i.tif" if kind == "tiff" else "i.zarr")
    if kind == "tiff":
        tifffile.imwrite(path, image, tile=(16, 16))
    elif kind in ("0.4", "0.5"):
        write_ome_zarr(path, [image], "yx", version=kind, chunks=(8, 8))  # type: ignore[arg-type]
    else:
        shards = (16, 16) if kind == "sharded" else None
        zarr.create_array(path, data=image, chunks=(8, 8), shards=shards, zarr_format=2 if kind == "v2" else 3)
    before = digest(path)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    for options in ({"compute": True}, {"write_to": folder / "out.zarr"}):
        tile_process(path, components, tile_shape=(8, 8), overlap=2, merge=merge, **options)
    assert digest(path) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times
