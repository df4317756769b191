"""TIFFs: what they tell of axes, calibration and channels, read no further than needed, and written as OME-Zarr."""

from __future__ import annotations

import pickle
import struct
import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import tifffile
from numpy.typing import NDArray

import blockbuster
from blockbuster import GeometryError, ImageError, TileError, load_ome_zarr, open_image, write_image
from tests.helpers import components, digest, leftovers, nothing_computed

MICRO = "\u00b5m"


def values(*shape: int, dtype: str = "u1") -> NDArray[Any]:
    return np.random.default_rng(4).integers(0, 250, shape).astype(dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "i.tif"


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is decoded of TIFFs: one entry for each tile or strip."""
    decoded: list[Any] = []
    decode = tifffile.TiffPage.decode.func  # type: ignore[attr-defined]

    def watched(self: Any) -> Any:
        inner = decode(self)

        def watching(data: Any, index: Any, *args: Any, **kwargs: Any) -> Any:
            decoded.append((self.index, index))
            return inner(data, index, *args, **kwargs)

        return watching

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(watched))
    return decoded


# Axes


@pytest.mark.parametrize(
    ("shape", "options", "axes"),
    [
        pytest.param((20, 30), {}, "yx", id="plain"),
        pytest.param((1, 1), {}, "yx", id="one voxel"),
        pytest.param((13, 1), {}, "yx", id="one column"),
        pytest.param((1, 17), {}, "yx", id="one row"),
        pytest.param((40, 50), {"tile": (16, 32)}, "yx", id="tiled"),
        pytest.param((40, 50), {"tile": (16, 32), "compression": "zlib", "predictor": True}, "yx", id="compressed"),
        pytest.param((40, 50), {"rowsperstrip": 7, "compression": "zlib"}, "yx", id="strips, compressed"),
        pytest.param((40, 50), {"bigtiff": True}, "yx", id="BigTIFF"),
        pytest.param((40, 50), {"byteorder": ">"}, "yx", id="big-endian"),
        pytest.param((20, 30, 3), {"photometric": "rgb"}, "yxc", id="RGB"),
        pytest.param((20, 30, 4), {"photometric": "rgb"}, "yxc", id="RGBA"),
        pytest.param((3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, "cyx", id="RGB, planes"),
        pytest.param((2, 4, 3, 20, 30), {"imagej": True, "metadata": {"axes": "TZCYX"}}, "tzcyx", id="ImageJ"),
        pytest.param((4, 20, 30), {"imagej": True, "metadata": {"axes": "ZYX"}}, "zyx", id="ImageJ, z"),
        pytest.param((4, 20, 30), {"imagej": True, "metadata": {"axes": "TYX"}}, "tyx", id="ImageJ, t"),
        pytest.param((4, 20, 30), {"imagej": True, "metadata": {"axes": "CYX"}}, "cyx", id="ImageJ, c"),
        pytest.param((4, 20, 30, 3), {"imagej": True, "metadata": {"axes": "ZYXS"}}, "zyxc", id="ImageJ, RGB"),
        pytest.param((2, 3, 4, 20, 30), {"ome": True, "metadata": {"axes": "TCZYX"}}, "tczyx", id="OME"),
        pytest.param((4, 3, 20, 30), {"ome": True, "metadata": {"axes": "ZCYX"}}, "zcyx", id="OME, z before c"),
        pytest.param((3, 20, 30), {"ome": True, "metadata": {"axes": "CYX"}}, "cyx", id="OME, c"),
        pytest.param(
            (20, 30, 3), {"ome": True, "photometric": "rgb", "metadata": {"axes": "YXS"}}, "yxc", id="OME, RGB"
        ),
        pytest.param((4, 20, 30), {"metadata": {"axes": "ZYX"}}, "zyx", id="shaped, z"),
    ],
)
def test_axes_are_told_and_the_voxels_are_those_of_the_file(
    shape: tuple[int, ...], options: dict[str, Any], axes: str, path: Path
) -> None:
    stack = values(*shape)
    tifffile.imwrite(path, stack, **{"photometric": "minisblack", **options})
    with nothing_computed():
        image = open_image(path)
    assert (image.axes, image.shape, image.path) == (axes, shape, str(path))
    assert (image.version, image.labels, image.name) == (None, (), "")
    assert (len(image.levels), image.translation) == (1, (0.0,) * len(shape))
    np.testing.assert_array_equal(image.data.compute(), stack)
    np.testing.assert_array_equal(image.data.compute(), tifffile.imread(path))


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 20, 30), "qyx"), ((2, 5, 20, 30), "qqyx")], ids=["one unknown", "two unknown"]
)
def test_pages_of_which_nothing_is_known_are_kept(shape: tuple[int, ...], axes: str, path: Path) -> None:
    stack = values(*shape)
    tifffile.imwrite(path, stack, photometric="minisblack")
    image = open_image(path)
    assert image.shape == shape
    np.testing.assert_array_equal(image.data.compute(), stack)
    assert image.axes is None or len(image.axes) == len(shape)
    labels = blockbuster.label(path, compute=True)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(stack)[0])


def test_pages_that_belong_together_by_their_size_are_one_image(path: Path) -> None:
    stack = values(5, 20, 30)
    with tifffile.TiffWriter(path) as tiff:
        for plane in stack:
            tiff.write(plane, metadata=None, contiguous=False)
    image = open_image(path)
    assert image.shape == (5, 20, 30)
    np.testing.assert_array_equal(image.data.compute(), stack)


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", "i4", "u4", "u8", "f2", "f4", "f8", "c8"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiffs_of_every_dtype_are_read(dtype: str, byteorder: Any, path: Path) -> None:
    stack = values(9, 11, dtype=dtype)
    tifffile.imwrite(path, stack, byteorder=byteorder)
    image = open_image(path)
    assert image.dtype == np.dtype(dtype)
    made = image.data.compute()
    assert made.dtype.isnative
    np.testing.assert_array_equal(made, stack)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".TIF", ".ome.tif", ".ome.tiff"])
def test_tiffs_are_known_by_their_name(suffix: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / f"i{suffix}", np.eye(4))
    np.testing.assert_array_equal(open_image(tmp_path / f"i{suffix}").data.compute(), np.eye(4))
    np.testing.assert_array_equal(open_image((tmp_path / f"i{suffix}").as_uri()).data.compute(), np.eye(4))


@pytest.mark.parametrize(
    ("shape", "options", "axis"),
    [
        ((3, 20, 30), {"ome": True, "metadata": {"axes": "CYX"}}, 0),
        ((4, 3, 20, 30), {"imagej": True, "metadata": {"axes": "ZCYX"}}, 1),
        ((20, 30, 3), {"photometric": "rgb"}, 2),
    ],
    ids=["OME", "ImageJ", "RGB"],
)
def test_one_channel_is_opened(shape: tuple[int, ...], options: dict[str, Any], axis: int, path: Path) -> None:
    stack = values(*shape)
    tifffile.imwrite(path, stack, **options)
    for number in range(3):
        expected = stack.take(number, axis)
        np.testing.assert_array_equal(load_ome_zarr(path, channel=number).compute(), expected)
        image = open_image(path, channel=number)
        np.testing.assert_array_equal(image.data.compute(), expected)
        assert "c" not in (image.axes or "c")
    with pytest.raises(ImageError, match=r"channel 3 was asked for.*i\.tif has channels 0\.\.2"):
        load_ome_zarr(path, channel=3)


# Calibration


def test_imagej_tells_distances_and_unit(path: Path) -> None:
    tifffile.imwrite(
        path,
        values(3, 4, 2, 20, 30),
        imagej=True,
        resolution=(10.0, 5.0),
        metadata={"axes": "TZCYX", "spacing": 0.75, "unit": "um", "finterval": 2.5},
    )
    image = open_image(path)
    assert image.axes == "tzcyx"
    assert image.scale == pytest.approx((2.5, 0.75, 1.0, 0.2, 0.1))
    assert image.unit == ("second", "micrometer", None, "micrometer", "micrometer")
    assert image.channel_names == ()


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        ("micron", "micrometer"),
        ("um", "micrometer"),
        ("\\u00B5m", "micrometer"),
        ("nm", "nanometer"),
        ("mm", "millimeter"),
        ("cm", "centimeter"),
        ("microns", "micrometer"),
    ],
)
def test_units_of_imagej_are_known(unit: str, told: str, path: Path) -> None:
    metadata: dict[str, Any] = {"axes": "ZYX", "spacing": 2, "unit": unit}
    tifffile.imwrite(path, values(3, 20, 30), imagej=True, resolution=(4, 4), metadata=metadata)
    image = open_image(path)
    assert image.scale == pytest.approx((2, 0.25, 0.25))
    assert image.unit == (told,) * 3


@pytest.mark.parametrize("unit", ["furlong", "pixels", "\u5fae\u7c73", "s", "1", "micro meter"])
def test_a_unit_of_imagej_that_is_none_is_not_known(unit: str, path: Path) -> None:
    metadata: dict[str, Any] = {"axes": "ZYX", "spacing": 2, "unit": unit.encode("unicode-escape").decode()}
    tifffile.imwrite(path, values(3, 20, 30), imagej=True, resolution=(4, 4), metadata=metadata)
    image = open_image(path)
    assert image.unit == (None,) * 3
    assert image.scale == pytest.approx((2, 0.25, 0.25))


@pytest.mark.parametrize(
    ("unit", "resolution", "step"),
    [("CENTIMETER", 20000.0, 0.5), ("INCH", 50800.0, 0.5), ("NONE", 4.0, None)],
)
def test_imagej_without_a_unit_tells_the_one_of_the_tags(
    unit: Any, resolution: float, step: float | None, path: Path
) -> None:
    tifffile.imwrite(
        path,
        values(3, 20, 30),
        imagej=True,
        resolution=(resolution, resolution),
        resolutionunit=unit,
        metadata={"axes": "ZYX"},
    )
    image = open_image(path)
    assert image.scale == pytest.approx((1.0, step or 1.0, step or 1.0))
    assert image.unit[1:] == (("micrometer",) * 2 if step else (None,) * 2)


def test_an_imagej_file_without_calibration_has_none(path: Path) -> None:
    tifffile.imwrite(path, values(3, 20, 30), imagej=True, metadata={"axes": "TYX"})
    image = open_image(path)
    assert (image.scale, image.unit) == ((1.0,) * 3, (None,) * 3)


@pytest.mark.parametrize(
    ("key", "value"), [("spacing", "wide"), ("spacing", 0), ("spacing", -1.0), ("finterval", "slow"), ("finterval", 0)]
)
def test_a_calibration_that_is_no_number_is_left_out(key: str, value: Any, path: Path) -> None:
    axes = "ZYX" if key == "spacing" else "TYX"
    metadata: dict[str, Any] = {"axes": axes, "unit": "um", key: value}
    tifffile.imwrite(path, values(3, 20, 30), imagej=True, resolution=(4, 4), metadata=metadata)
    image = open_image(path)
    assert abs(image.scale[0]) == 1.0
    assert image.scale[1:] == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize("resolution", [(0, 0), (4, 0), (0, 4)])
def test_a_resolution_of_nothing_is_left_out(resolution: tuple[float, float], path: Path) -> None:
    tifffile.imwrite(path, values(3, 20, 30), imagej=True, metadata={"axes": "ZYX", "unit": "um"})
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in zip(("XResolution", "YResolution"), resolution, strict=True):
            tiff.pages[0].tags[name].overwrite((int(value), 1))  # type: ignore[union-attr]
    image = open_image(path)
    steps = tuple(1 / n if n else 1.0 for n in resolution[::-1])
    assert image.scale == pytest.approx((1.0, *steps))


def test_resolution_in_no_unit_of_length_does_not_scale_a_plain_tiff(path: Path) -> None:
    tifffile.imwrite(path, values(20, 30), resolution=(72, 72), resolutionunit="NONE")
    assert open_image(path).scale == (1.0, 1.0)


OME_UNITS = [
    (MICRO, "micrometer"),
    ("\u03bcm", "micrometer"),
    ("um", "micrometer"),
    ("nm", "nanometer"),
    ("mm", "millimeter"),
    ("m", "meter"),
    ("pm", "picometer"),
    ("\u00c5", "angstrom"),
    ("in", "inch"),
    ("ft", "foot"),
    ("mi", "mile"),
    ("yd", "yard"),
    ("km", "kilometer"),
    ("pixel", None),
    ("reference frame", None),
    ("thou", None),
    ("ly", None),
    ("", None),
    ("s", None),
]


@pytest.mark.parametrize(("unit", "told"), OME_UNITS)
def test_ome_tells_distances_and_units(unit: str, told: str | None, path: Path) -> None:
    tifffile.imwrite(
        path,
        values(2, 3, 4, 20, 30),
        ome=True,
        metadata={
            "axes": "TCZYX",
            "PhysicalSizeX": 0.1,
            "PhysicalSizeXUnit": unit,
            "PhysicalSizeY": 0.2,
            "PhysicalSizeYUnit": unit,
            "PhysicalSizeZ": 500.0,
            "PhysicalSizeZUnit": "nm",
            "TimeIncrement": 50.0,
            "TimeIncrementUnit": "ms",
            "Channel": {"Name": ["DAPI", "GFP", "Cy5"]},
        },
    )
    image = open_image(path)
    assert image.scale == (50.0, 1.0, 500.0, 0.2, 0.1)
    assert image.unit == ("millisecond", None, "nanometer", told, told)
    assert image.channel_names == ("DAPI", "GFP", "Cy5")
    assert open_image(path, channel="Cy5").channel_names == ("Cy5",)
    np.testing.assert_array_equal(load_ome_zarr(path, channel="GFP").compute(), values(2, 3, 4, 20, 30)[:, 1])
    with pytest.raises(ImageError, match=r"channel 'RFP' was asked for.*\['DAPI', 'GFP', 'Cy5'\]"):
        load_ome_zarr(path, channel="RFP")


def test_units_of_ome_default_to_micrometers_and_seconds(path: Path) -> None:
    metadata = {"axes": "TZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 3, "TimeIncrement": 7}
    tifffile.imwrite(path, values(2, 4, 20, 30), ome=True, metadata=metadata)
    image = open_image(path)
    assert image.scale == (7.0, 3.0, 0.2, 0.1)
    assert image.unit == ("second", "micrometer", "micrometer", "micrometer")


def test_an_ome_tiff_without_calibration_has_none(path: Path) -> None:
    tifffile.imwrite(path, values(3, 20, 30), ome=True, metadata={"axes": "CYX"})
    image = open_image(path)
    assert (image.scale, image.unit, image.channel_names) == ((1.0,) * 3, (None,) * 3, ())


def with_description(path: Path, change: Any) -> None:
    """Change the description of a TIFF in place, by one as long at most."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].tags["ImageDescription"]  # type: ignore[union-attr]
        tag.overwrite(change(tag.value))


@pytest.mark.parametrize("size", ["wide", "", "nan", "inf", "0", "-1"])
def test_a_size_in_ome_that_is_no_distance_is_left_out(size: str, path: Path) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 123456, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, values(20, 30), ome=True, metadata=metadata)
    with_description(path, lambda text: text.replace('"123456.0"', f'"{size}"').replace('"123456"', f'"{size}"'))
    image = open_image(path)
    assert image.scale == (0.5, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("<Pixels", "<Pixels&broken"), id="no XML"),
        pytest.param(lambda text: text.replace('SizeX="30"', 'SizeX="no"'), id="a size that is none"),
        pytest.param(lambda text: text.replace("Pixels", "Pixies"), id="no pixels"),
        pytest.param(lambda text: text.replace("DimensionOrder", "DimensionOther"), id="no order"),
    ],
)
def test_a_tiff_whose_ome_is_broken_is_read_or_refused(change: Any, path: Path) -> None:
    tifffile.imwrite(path, values(20, 30), ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.5})
    with_description(path, change)
    try:
        image = open_image(path)
    except ImageError as error:
        assert "i.tif" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(image.data.compute().reshape(20, 30), values(20, 30))


# Pyramids


@pytest.mark.parametrize(
    ("ome", "shape"),
    [(True, (3, 65, 130)), (True, (2, 33, 50)), (True, (64, 64)), (False, (65, 130)), (False, (33, 50))],
)
def test_levels_are_told_with_their_place(ome: bool, shape: tuple[int, ...], path: Path) -> None:
    stack = values(*shape)
    levels = [stack, stack[..., ::2, ::2], stack[..., ::4, ::4]]
    axes = "CYX"[-len(shape) :]
    metadata = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5} if ome else {"axes": axes}
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        tiff.write(levels[0], subifds=2, tile=(16, 16), photometric="minisblack", metadata=metadata)  # type: ignore[arg-type]
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, tile=(16, 16), photometric="minisblack")
    image = open_image(path)
    assert [level.shape for level in image.levels] == [level.shape for level in levels]
    for made, expected in zip(image.levels, levels, strict=True):
        np.testing.assert_array_equal(made.compute(), expected)
    step = np.array((1, 0.5, 0.25) if ome else (1, 1, 1), float)[-len(shape) :]
    for number, (level, scale, place) in enumerate(zip(levels, image.scales, image.translations, strict=True)):
        factors = np.array([2**number if n < m else 1 for n, m in zip(level.shape, shape, strict=True)])
        assert scale == tuple(step * factors)
        # The first voxel of a level is the middle of those that make it.
        assert place == tuple(step * (factors - 1) / 2)
    np.testing.assert_array_equal(load_ome_zarr(path, level=2, channel=None).compute(), levels[2])
    with pytest.raises(ImageError, match=r"level 3 was asked for.*i\.tif has levels 0\.\.2"):
        load_ome_zarr(path, level=3)


def test_the_first_of_several_images_in_a_file_is_taken(path: Path) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(values(20, 30), metadata=None)
        tiff.write(values(8, 8), metadata=None)
    np.testing.assert_array_equal(open_image(path).data.compute(), values(20, 30))


# Reading no more than needed


def test_a_crop_reads_its_tiles_only(path: Path, segments: list[Any]) -> None:
    stack = values(4, 64, 96)
    tifffile.imwrite(path, stack, tile=(16, 16), photometric="minisblack", metadata={"axes": "ZYX"})
    image = open_image(path)
    lazy = load_ome_zarr(path)
    assert segments == []
    np.testing.assert_array_equal(image.data[2, 5:20, 33:40].compute(), stack[2, 5:20, 33:40])
    assert len(segments) == 2
    segments.clear()
    np.testing.assert_array_equal(lazy[1:3, 16:32].compute(), stack[1:3, 16:32])
    assert len(segments) == 2 * 6
    segments.clear()
    np.testing.assert_array_equal(image.data.compute(), stack)
    assert len(segments) == 4 * 4 * 6


def test_a_coarse_level_reads_none_of_the_finest(path: Path, segments: list[Any]) -> None:
    stack = values(64, 64)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(stack, subifds=1, tile=(16, 16))
        tiff.write(stack[::2, ::2], subfiletype=1, tile=(16, 16))
    np.testing.assert_array_equal(load_ome_zarr(path, level=1).compute(), stack[::2, ::2])
    assert len(segments) == 4


def test_each_tile_is_read_once_for_a_copy(path: Path, tmp_path: Path, segments: list[Any]) -> None:
    stack = values(3, 48, 64)
    tifffile.imwrite(path, stack, tile=(16, 16), photometric="minisblack", metadata={"axes": "CYX"})
    copied = blockbuster.copy(path, tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copied.compute(), stack)
    assert len(segments) == 3 * 3 * 4


def test_each_tile_is_read_once_for_an_image(path: Path, tmp_path: Path, segments: list[Any]) -> None:
    stack = values(3, 48, 64)
    tifffile.imwrite(path, stack, tile=(16, 16), photometric="minisblack", metadata={"axes": "CYX"})
    write_image(path, tmp_path / "o.zarr", n_levels=3)
    assert len(segments) == 3 * 3 * 4


def test_the_file_is_never_changed(path: Path, tmp_path: Path) -> None:
    tifffile.imwrite(path, values(40, 50), tile=(16, 16))
    before, changed = digest(path), path.stat().st_mtime_ns
    open_image(path).data.compute()
    blockbuster.label(path, write_to=tmp_path / "labels.zarr")
    blockbuster.copy(path, tmp_path / "copy.zarr")
    write_image(path, tmp_path / "o.zarr")
    assert (digest(path), path.stat().st_mtime_ns) == (before, changed)
    assert leftovers(tmp_path) == []


def test_a_file_that_was_replaced_is_opened_anew(path: Path) -> None:
    for value in (1, 2):
        tifffile.imwrite(path, np.full((4, 4), value, np.uint8))
        assert (open_image(path).data.compute() == value).all()


def test_a_file_is_read_by_many_threads_at_once(path: Path) -> None:
    stack = values(8, 64, 64)
    tifffile.imwrite(path, stack, tile=(16, 16), compression="zlib", photometric="minisblack")
    lazy = open_image(path).data
    wrong: list[str] = []

    def read() -> None:
        made = [lazy.compute(scheduler="threads", num_workers=4) for _ in range(3)]
        wrong.extend("differs" for one in made if not np.array_equal(one, stack))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Operations


def test_tiffs_are_labelled_copied_and_written_on_every_scheduler(many: str, path: Path, tmp_path: Path) -> None:
    stack = (values(3, 40, 50) > 160).astype(np.uint8)
    tifffile.imwrite(path, stack, tile=(16, 16), photometric="minisblack", metadata={"axes": "CYX"})
    lazy = load_ome_zarr(path, channel=1)
    expected = scipy.ndimage.label(stack[1])[0]
    np.testing.assert_array_equal(blockbuster.label(path, channel=1, compute=True), expected)
    np.testing.assert_array_equal(blockbuster.label(lazy, compute=True), expected)
    copied = blockbuster.copy(open_image(path).data, tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copied.compute(), stack)
    made = write_image(path, tmp_path / "o.zarr", n_levels=2)
    np.testing.assert_array_equal(made.data.compute(), stack)


def tasks(array: da.Array) -> int:
    return len(dict(array.__dask_graph__()))


def test_a_lazy_tiff_is_read_in_the_tasks_as_its_path_is(path: Path) -> None:
    tifffile.imwrite(path, values(2, 48, 48) // 200, tile=(16, 16), photometric="minisblack", metadata={"axes": "CYX"})
    for operation in (blockbuster.label, blockbuster.copy):
        by_path = operation(path, channel=1)
        by_array = operation(load_ome_zarr(path, channel=1))
        assert tasks(by_array) == tasks(by_path)
        np.testing.assert_array_equal(by_array.compute(), by_path.compute())


def test_frames_of_a_lazy_tiff_stay_apart(path: Path) -> None:
    tifffile.imwrite(path, np.ones((4, 6, 6), np.uint8), imagej=True, metadata={"axes": "TYX"})
    lazy = open_image(path).data
    assert blockbuster.label(lazy, compute=True).max() == 4
    labels = blockbuster.tile_process(lazy, components, tile_shape=(1, 3, 6), compute=True)
    assert np.unique(labels).size == 4


def test_a_lazy_tiff_pickles_small(path: Path) -> None:
    tifffile.imwrite(path, values(40, 50), tile=(16, 16))
    image = open_image(path)
    text = pickle.dumps(image)
    assert len(text) < 20_000
    np.testing.assert_array_equal(pickle.loads(text).data.compute(), values(40, 50))


# As OME-Zarr


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_samples_become_channels_in_front(photometric: str, path: Path, tmp_path: Path) -> None:
    stack = values(20, 30, 3)
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "mm"}
    tifffile.imwrite(path, stack, ome=True, photometric=photometric, metadata=metadata, planarconfig="contig")  # type: ignore[arg-type]
    before = digest(path)
    made = write_image(path, tmp_path / "o.zarr", n_levels=2)
    assert (made.axes, made.scale) == ("cyx", (1.0, 0.5, 0.25))
    assert made.unit == (None, "micrometer", "millimeter")
    np.testing.assert_array_equal(made.data.compute(), np.moveaxis(stack, -1, 0))
    assert made.levels[1].shape == (3, 10, 15)
    assert digest(path) == before


@pytest.mark.parametrize(
    ("axes", "written"), [("TZCYX", "tczyx"), ("ZCYX", "czyx"), ("TYX", "tyx"), ("ZYXS", "czyx"), ("TZYXS", "tczyx")]
)
def test_axes_are_put_in_the_order_of_ome_zarr(axes: str, written: str, path: Path, tmp_path: Path) -> None:
    sizes = {"T": 2, "Z": 4, "C": 3, "Y": 20, "X": 30, "S": 3}
    steps = {"t": 2.5, "z": 0.75, "c": 1.0, "y": 0.2, "x": 0.1}
    stack = values(*(sizes[axis] for axis in axes))
    metadata: dict[str, Any] = {"axes": axes, "spacing": 0.75, "unit": "um", "finterval": 2.5}
    tifffile.imwrite(path, stack, imagej=True, resolution=(10.0, 5.0), metadata=metadata)
    made = write_image(path, tmp_path / "o.zarr", n_levels=1)
    assert made.axes == written
    assert made.scale == pytest.approx([steps[axis] for axis in written])
    order = [axes.lower().replace("s", "c").index(axis) for axis in written]
    np.testing.assert_array_equal(made.data.compute(), stack.transpose(order))


def test_calibration_and_names_are_kept_by_what_is_written(path: Path, tmp_path: Path) -> None:
    metadata = {
        "axes": "ZCYX",
        "PhysicalSizeX": 0.1,
        "PhysicalSizeXUnit": MICRO,
        "PhysicalSizeY": 0.2,
        "PhysicalSizeZ": 300,
        "PhysicalSizeZUnit": "nm",
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    stack = values(4, 2, 40, 60)
    tifffile.imwrite(path, stack, ome=True, metadata=metadata)
    made = write_image(path, tmp_path / "o.zarr", n_levels=2)
    assert (made.axes, made.channel_names) == ("czyx", ("DAPI", "GFP"))
    assert made.scale == (1.0, 300.0, 0.2, 0.1)
    assert made.unit == (None, "nanometer", "micrometer", "micrometer")
    np.testing.assert_array_equal(made.data.compute(), stack.swapaxes(0, 1))
    one = write_image(path, tmp_path / "one.zarr", channel="GFP", n_levels=1)
    assert (one.axes, one.scale, one.unit) == ("zyx", made.scale[1:], made.unit[1:])
    np.testing.assert_array_equal(one.data.compute(), stack[:, 1])
    given = write_image(path, tmp_path / "given.zarr", scale=3, unit="mm", channels=["a", "b"], n_levels=1)
    assert (given.scale, given.channel_names) == ((1.0, 3.0, 3.0, 3.0), ("a", "b"))
    assert given.unit == (None, *["millimeter"] * 3)


def test_a_level_of_a_pyramid_is_written_where_it_lies(path: Path, tmp_path: Path) -> None:
    stack = values(64, 64)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(stack, subifds=1, tile=(16, 16), metadata=metadata)  # type: ignore[arg-type]
        tiff.write(stack[::2, ::2], subfiletype=1, tile=(16, 16))
    made = write_image(path, tmp_path / "o.zarr", level=1, n_levels=1)
    assert (made.scale, made.translation) == ((1.0, 1.0), (0.25, 0.25))
    np.testing.assert_array_equal(made.data.compute(), stack[::2, ::2])


def test_axes_that_are_not_known_are_those_of_their_number_or_given(path: Path, tmp_path: Path) -> None:
    stack = values(5, 20, 30)
    tifffile.imwrite(path, stack, photometric="minisblack")
    assert write_image(path, tmp_path / "o.zarr", n_levels=1).axes == "zyx"
    made = write_image(path, tmp_path / "t.zarr", axes="tyx", scale=(2, 1, 1), unit="um", n_levels=1)
    assert (made.axes, made.scale) == ("tyx", (2.0, 1.0, 1.0))
    np.testing.assert_array_equal(made.data.compute(), stack)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param((2, 3, 20, 30), {"metadata": {"axes": "QCYX"}}, id="a channel axis, one unknown"),
        pytest.param((2, 20, 30, 3), {"ome": True, "photometric": "rgb", "metadata": {"axes": "CYXS"}}, id="RGB twice"),
    ],
)
def test_axes_of_which_some_are_known_must_be_given(
    shape: tuple[int, ...], options: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    """By their number they would be other axes than those that are known."""
    tifffile.imwrite(path, values(*shape), **{"photometric": "minisblack", **options})
    assert open_image(path).shape == shape
    with pytest.raises(GeometryError, match="axes"):
        write_image(path, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
    made = write_image(path, tmp_path / "o.zarr", axes="tcyx", n_levels=1)
    assert (made.axes, made.shape) == ("tcyx", shape)


# What cannot be read


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no tiff at all", id="text"),
        pytest.param(b"II*\0", id="cut in the header"),
        pytest.param(b"II*\0\x08\0\0\0", id="cut after the header"),
        pytest.param(b"II*\0\0\0\0\0", id="no pages"),
        pytest.param(b"II*\0\xff\xff\xff\x7f", id="a page beyond the end"),
        pytest.param(b"II*\0\x08\0\0\0\x05\0" + bytes(8), id="tags that are cut"),
        pytest.param(b"MM\0*\0\0\0\x08\xff\xff" + bytes(100), id="tags that are none"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(20), id="another format"),
        pytest.param(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16), id="BigTIFF, cut"),
    ],
)
def test_what_is_no_tiff_is_an_error_of_the_image(content: bytes, path: Path, tmp_path: Path) -> None:
    path.write_bytes(content)
    for use in (open_image, load_ome_zarr, blockbuster.label, lambda p: write_image(p, tmp_path / "o.zarr")):
        with pytest.raises(ImageError, match=r"i\.tif cannot be read as a TIFF"):
            use(path)
    assert not (tmp_path / "o.zarr").exists()


def test_a_path_to_nothing_and_a_folder_are_no_tiffs(path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing at .*i\.tif"):
        open_image(path)
    path.mkdir()
    with pytest.raises(ImageError, match=r"i\.tif"):
        open_image(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_was_cut_short_is_an_error_of_a_tile_or_the_image(
    compression: Any, path: Path, tmp_path: Path
) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (200, 200)).astype(np.uint8)
    tifffile.imwrite(path, stack, tile=(16, 16), compression=compression)
    cut(path, 0.5)
    with pytest.raises((TileError, ImageError)):
        blockbuster.copy(path, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr").exists()


@pytest.mark.parametrize("seed", range(40))
def test_a_tiff_with_wrong_bytes_is_read_or_an_error_of_the_image(seed: int, path: Path) -> None:
    tifffile.imwrite(path, values(20, 30), tile=(16, 16), ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.5})
    draw = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for place in draw.integers(0, 300, 4):
        content[place] = draw.integers(0, 256)
    path.write_bytes(content)
    try:
        image = open_image(path)
    except ImageError as error:
        assert "i.tif" in str(error)  # noqa: PT017
    else:
        assert len(image.axes or image.shape) == len(image.shape)


def test_a_codec_that_is_not_there_is_an_error(path: Path, tmp_path: Path) -> None:
    tifffile.imwrite(path, values(20, 30))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(34712)  # type: ignore[union-attr]
    with pytest.raises((TileError, ImageError)):
        blockbuster.copy(path, tmp_path / "copy.zarr")
