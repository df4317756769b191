"""The metadata of OME-Zarr: axes, units, transformations, of every version and as others write them."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import GeometryError, ImageError, ParameterError, open_image, write_image
from blockbuster.ngff import axes_for, unit_name
from tests.helpers import components

Transforms = Sequence[Mapping[str, Any]]


def scaling(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def translation(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


def write(
    path: Path,
    transforms: Sequence[Any],
    *,
    common: Any = None,
    version: str = "0.4",
    axes: Any = (
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ),
    shapes: Sequence[tuple[int, ...]] = (),
    **more: Any,
) -> Path:
    """Write an image by hand: one level for each entry of `transforms`, which are left out where that is None."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    datasets: list[dict[str, Any]] = []
    for number, own in enumerate(transforms):
        shape = shapes[number] if shapes else tuple(max(24 >> number, 1) for _ in axes or (1, 2, 3, 4, 5))
        group.create_array(f"s{number}", data=np.arange(np.prod(shape), dtype=np.uint16).reshape(shape))
        datasets.append({"path": f"s{number}", **({} if own is None else {"coordinateTransformations": own})})
    image: dict[str, Any] = {"datasets": datasets, "name": "nuclei"}
    if axes is not None:
        image["axes"] = axes if isinstance(axes, str) else list(axes)
    if common is not None:
        image["coordinateTransformations"] = common
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [image], **more}
    else:
        group.attrs.update({"multiscales": [{**image, "version": version}], **more})
    return path


def reference(module: str) -> Any:
    """A module of the reference implementation, which warns of itself when it is imported."""
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        return importlib.import_module(module)


# Versions


def test_0_1_has_no_names_of_axes_and_always_the_five(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [None, None], version="0.1", axes=None, shapes=[(1, 2, 3, 8, 9), (1, 2, 3, 4, 5)])
    image = open_image(path)
    assert (image.axes, image.version, image.name) == ("tczyx", "0.1", "nuclei")
    assert image.unit == (None,) * 5
    # How large voxels are is not known; how many of the finest make one of the second is.
    assert image.scales == ((1.0,) * 5, (1.0, 1.0, 1.0, 2.0, 2.0))
    assert [level.shape for level in image.levels] == [(1, 2, 3, 8, 9), (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(("axes", "ndim"), [("tczyx", 5), (["c", "y", "x"], 3), (["y", "x"], 2)])
def test_0_3_names_axes_by_strings(axes: Any, ndim: int, tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [None], version="0.3", axes=list(axes), shapes=[(2,) * ndim])
    image = open_image(path)
    assert (image.axes, image.version) == ("".join(axes), "0.3")
    assert (image.scale, image.translation) == ((1.0,) * ndim, (0.0,) * ndim)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_the_metadata_tell_is_told(version: str, tmp_path: Path) -> None:
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space", "unit": "nanometer"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space"},
    ]
    levels = [
        [scaling(30, 1, 500, 0.2, 0.1)],
        [scaling(30, 1, 500, 0.4, 0.2), translation(0, 0, 0, 0.1, 0.05)],
    ]
    omero = {"channels": [{"label": "DAPI", "color": "0000FF"}, {"label": "GFP"}]}
    path = write(
        tmp_path / "i.zarr",
        levels,
        version=version,
        axes=axes,
        shapes=[(3, 2, 5, 8, 8), (3, 2, 5, 4, 4)],
        omero=omero,
    )
    image = open_image(path)
    assert image.path == str(path)
    assert (image.axes, image.version, image.name) == ("tczyx", version, "nuclei")
    assert image.unit == ("second", None, "nanometer", "micrometer", None)
    assert image.scales == ((30.0, 1.0, 500.0, 0.2, 0.1), (30.0, 1.0, 500.0, 0.4, 0.2))
    assert image.translations == ((0.0,) * 5, (0.0, 0.0, 0.0, 0.1, 0.05))
    assert image.scale == image.scales[0]
    assert image.translation == image.translations[0]
    assert image.channel_names == ("DAPI", "GFP")
    assert image.labels == ()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_images_of_the_reference_writer_are_read(version: str, tmp_path: Path) -> None:
    writer = reference("ome_zarr.writer")
    fmt = reference("ome_zarr.format").format_from_version(version)
    values = np.random.default_rng(0).integers(0, 900, (2, 40, 60)).astype(np.uint16)
    group = zarr.create_group(tmp_path / "i.zarr", zarr_format=fmt.zarr_format)
    writer.write_image(
        values,
        group,
        fmt=fmt,
        axes="cyx",
        scale_factors=(2, 4),
        scale={"c": 1.0, "y": 0.5, "x": 0.25},
        axes_units={"y": "micrometer", "x": "micrometer"},
        name="cells",
        storage_options={"chunks": (1, 16, 16)},
        metadata={"omero": {"channels": [{"label": "DNA", "color": "FF0000"}, {"label": "actin", "color": "00FF00"}]}},
    )
    mask = components(values[0] > 450).astype(np.int32)
    writer.write_labels(mask, group, name="nuclei", fmt=fmt, axes="yx", scale_factors=(2, 4), scaler=None)
    image = open_image(tmp_path / "i.zarr")
    assert (image.axes, image.version) == ("cyx", version)
    assert image.unit == (None, "micrometer", "micrometer")
    assert image.scales == ((1.0, 0.5, 0.25), (1.0, 1.0, 0.5), (1.0, 2.0, 1.0))
    assert image.labels == ("nuclei",)
    np.testing.assert_array_equal(image.data.compute(), values)
    stored = zarr.open_group(tmp_path / "i.zarr", mode="r")
    names = [d["path"] for d in fmt_multiscale(stored)["datasets"]]
    for level, name in zip(image.levels, names, strict=True):
        np.testing.assert_array_equal(level.compute(), stored[name][...])  # type: ignore[index]
    labels = open_image(tmp_path / "i.zarr" / "labels" / "nuclei")
    assert (labels.axes, len(labels.levels)) == ("yx", 3)
    np.testing.assert_array_equal(labels.data.compute(), mask)


def fmt_multiscale(group: zarr.Group) -> Any:
    attributes: Any = group.attrs.asdict()
    return attributes.get("ome", attributes)["multiscales"][0]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_written_is_valid_for_the_reference_reader(version: Any, tmp_path: Path) -> None:
    values = np.arange(2 * 20 * 30, dtype=np.uint16).reshape(2, 20, 30)
    write_image(
        values, tmp_path / "i.zarr", axes="cyx", scale=0.5, unit="um", channels=["a", "b"], version=version, n_levels=2
    )
    location = reference("ome_zarr.io").parse_url(tmp_path / "i.zarr")
    node = next(iter(reference("ome_zarr.reader").Reader(location)()))
    np.testing.assert_array_equal(np.asarray(node.data[0]), values)
    assert [axis["name"] for axis in node.metadata["axes"]] == list("cyx")
    assert node.metadata["channel_names"] == ["a", "b"]
    assert [t[0]["scale"] for t in node.metadata["coordinateTransformations"]] == [[1.0, 0.5, 0.5], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("words", [{}, {"version": "0.4"}])
def test_channels_without_names_have_none(words: dict[str, str], tmp_path: Path) -> None:
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "yx")]
    omero = {"channels": [{"color": "FF0000"}, {"label": "GFP"}], **words}
    path = write(tmp_path / "i.zarr", [[scaling(1, 1, 1)]], axes=axes, shapes=[(2, 4, 4)], omero=omero)
    assert open_image(path).channel_names == ("", "GFP")
    assert open_image(path, channel="GFP").channel_names == ("GFP",)
    with pytest.raises(ImageError, match="channel 'DAPI'"):
        open_image(path, channel="DAPI")


@pytest.mark.parametrize("omero", [None, {}, {"channels": None}, {"channels": []}])
def test_channels_that_are_not_told_of_are_no_channels(omero: Any, tmp_path: Path) -> None:
    assert open_image(write(tmp_path / "i.zarr", [[scaling(1, 1)]], omero=omero)).channel_names == ()


def test_the_first_of_several_multiscales_is_the_image(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(3, 3)]])
    group = zarr.open_group(path)
    first = fmt_multiscale(group)
    group.attrs["multiscales"] = [first, {**first, "datasets": [{"path": "elsewhere"}]}]
    assert open_image(path).scale == (3.0, 3.0)


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_name_that_is_none_is_empty(name: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]])
    group = zarr.open_group(path)
    group.attrs["multiscales"] = [{**fmt_multiscale(group), "name": name}]
    assert open_image(path).name == ("7" if name == 7 else "")


def test_names_of_axes_in_words_are_their_first_letters(tmp_path: Path) -> None:
    axes = [{"name": "Channel", "type": "channel"}, {"name": "Y", "type": "space"}, {"name": "X", "type": "space"}]
    path = write(tmp_path / "i.zarr", [[scaling(1, 2, 3)]], axes=axes, shapes=[(2, 4, 4)])
    assert open_image(path).axes == "cyx"
    assert open_image(path, channel=1).scale == (2.0, 3.0)


# Transformations


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("own", "common", "scale", "moved"),
    [
        pytest.param([scaling(2, 3)], None, (2, 3), (0, 0), id="scale"),
        pytest.param([scaling(2, 3), translation(5, 7)], None, (2, 3), (5, 7), id="scale, translation"),
        pytest.param([translation(5, 7), scaling(2, 3)], None, (2, 3), (10, 21), id="translation, scale"),
        pytest.param([translation(5, 7)], None, (1, 1), (5, 7), id="translation"),
        pytest.param([scaling(2, 3)], [scaling(10, 100)], (20, 300), (0, 0), id="scale of all"),
        pytest.param([scaling(2, 3)], [translation(1, 4)], (2, 3), (1, 4), id="translation of all"),
        pytest.param(
            [scaling(2, 3), translation(5, 7)],
            [scaling(10, 100), translation(1, 4)],
            (20, 300),
            (51, 704),
            id="all of them",
        ),
        pytest.param([{"type": "identity"}], None, (1, 1), (0, 0), id="identity"),
        pytest.param([{"type": "identity"}, scaling(2, 3)], [{"type": "identity"}], (2, 3), (0, 0), id="identities"),
        pytest.param([scaling(2, 3)], [], (2, 3), (0, 0), id="none of all"),
        pytest.param([scaling(-1, 3)], None, (-1, 3), (0, 0), id="mirrored"),
    ],
)
def test_transformations_are_composed_in_order_and_those_of_all_levels_last(
    own: Transforms, common: Any, scale: Any, moved: Any, version: str, tmp_path: Path
) -> None:
    image = open_image(write(tmp_path / "i.zarr", [own], common=common, version=version))
    assert (image.scale, image.translation) == (scale, moved)


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
steps = st.lists(
    st.one_of(
        st.builds(scaling, numbers, numbers),
        st.builds(translation, numbers, numbers),
        st.just({"type": "identity"}),
    ),
    min_size=1,
    max_size=4,
)


@given(steps, steps)
def test_a_level_lies_where_its_transformations_put_its_voxels(
    tmp_path_factory: pytest.TempPathFactory, own: Transforms, common: Transforms
) -> None:
    path = write(tmp_path_factory.mktemp("image") / "i.zarr", [own], common=common)
    image = open_image(path)
    for index in ((0, 0), (3, 11)):
        place = np.array(index, float)
        for step in [*own, *common]:
            if step["type"] == "scale":
                place = place * step["scale"]
            elif step["type"] == "translation":
                place = place + step["translation"]
        told = np.array(image.scale) * index + image.translation
        np.testing.assert_allclose(told, place, rtol=1e-9, atol=1e-3)


def test_levels_without_transformations_are_as_much_coarser_as_they_are_smaller(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [None] * 4, shapes=[(41, 100), (21, 50), (11, 25), (1, 1)])
    image = open_image(path)
    assert image.scales == ((1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (41.0, 100.0))
    assert image.translations == ((0.0, 0.0),) * 4


def test_a_transformation_of_all_levels_alone_scales_them_by_their_size_too(tmp_path: Path) -> None:
    image = open_image(write(tmp_path / "i.zarr", [None, None], common=[scaling(0.5, 0.25)]))
    assert image.scales == ((0.5, 0.25), (1.0, 0.5))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"type": "affine", "affine": [[1, 0, 0], [0, 1, 0]]}, id="unknown type"),
        pytest.param({"type": "scale", "scale": [2]}, id="too few"),
        pytest.param({"type": "scale", "scale": [2, 2, 2]}, id="too many"),
        pytest.param({"type": "scale", "scale": 2.0}, id="a number"),
        pytest.param({"type": "scale", "scale": "ab"}, id="letters"),
        pytest.param({"type": "scale", "scale": ["a", "b"]}, id="words"),
        pytest.param({"type": "scale", "scale": [None, 1]}, id="null"),
        pytest.param({"type": "scale", "scale": None}, id="null for all"),
        pytest.param({"type": "scale", "scale": {"y": 1, "x": 1}}, id="mapping"),
        pytest.param({"type": "scale", "scale": [[1, 2], [3, 4]]}, id="nested"),
        pytest.param({"type": "scale", "path": "elsewhere"}, id="by path"),
        pytest.param({"type": "translation", "scale": [1, 1]}, id="mixed up"),
        pytest.param({"scale": [1, 1]}, id="no type"),
        pytest.param({}, id="empty"),
        pytest.param("scale", id="a string"),
    ],
)
@pytest.mark.parametrize("of_all", [False, True], ids=["of a level", "of all"])
def test_transformations_that_are_malformed_are_named_with_their_level(
    bad: Any, of_all: bool, version: str, tmp_path: Path
) -> None:
    own = [scaling(1, 1)] if of_all else [scaling(1, 1), bad]
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)], own], common=[bad] if of_all else None, version=version)
    with pytest.raises(ImageError, match=r"Level s[01] of .*i\.zarr has the transformation") as raised:
        open_image(path)
    assert str(bad) in str(raised.value)
    assert ("Level s0" in str(raised.value)) == of_all


# Metadata that do not fit


def test_axes_that_are_not_as_many_as_those_of_the_arrays_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]], axes=["z", "y", "x"], shapes=[(4, 4)])
    with pytest.raises(ImageError, match=r"i\.zarr names 3 axes, but its arrays have 2"):
        open_image(path)


def test_levels_with_another_number_of_axes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [None, None], shapes=[(4, 4), (2, 2, 2)])
    with pytest.raises(ImageError, match=r"s1.*i\.zarr|i\.zarr.*s1"):
        open_image(path)


def test_levels_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]])
    group = zarr.open_group(path)
    datasets = [{"path": "s0"}, {"path": "gone"}, {"path": "far/away"}]
    group.attrs["multiscales"] = [{**fmt_multiscale(group), "datasets": datasets}]
    with pytest.raises(ImageError, match=r"i\.zarr names the levels gone, far/away, but there are no such arrays"):
        open_image(path)


def test_a_level_that_is_a_group_is_no_level(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]])
    group = zarr.open_group(path)
    group.create_group("folder")
    group.attrs["multiscales"] = [{**fmt_multiscale(group), "datasets": [{"path": "folder"}]}]
    with pytest.raises(ImageError, match="folder"):
        open_image(path)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param({"axes": ["y", "x"], "datasets": []}, id="no datasets"),
        pytest.param({"axes": ["y", "x"]}, id="datasets left out"),
        pytest.param({"axes": ["y", "x"], "datasets": None}, id="datasets null"),
        pytest.param({"axes": ["y", "x"], "datasets": [{}]}, id="dataset without a path"),
        pytest.param({"axes": ["y", "x"], "datasets": ["s0"]}, id="dataset a string"),
        pytest.param({"axes": ["y", ""], "datasets": [{"path": "s0"}]}, id="axis without a letter"),
        pytest.param({"axes": ["y", {"type": "space"}], "datasets": [{"path": "s0"}]}, id="axis without a name"),
        pytest.param({"axes": 2, "datasets": [{"path": "s0"}]}, id="axes a number"),
        pytest.param("image", id="a string"),
        pytest.param(None, id="null"),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_that_are_malformed_are_an_error_of_the_image(image: Any, version: str, tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]], version=version)
    group = zarr.open_group(path)
    ome = {"multiscales": [image]}
    group.attrs.update(ome if version == "0.4" else {"ome": {"version": version, **ome}})
    with pytest.raises(ImageError, match=r"i\.zarr"):
        open_image(path)


@pytest.mark.parametrize("multiscales", [{}, "x", 5, {"datasets": []}])
def test_multiscales_that_are_no_list_are_an_error_of_the_image(multiscales: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "i.zarr", attributes={"ome": {"version": "0.5", "multiscales": multiscales}})
    group.create_array("a", data=np.zeros((2, 2)))
    group.create_array("b", data=np.zeros((2, 2)))
    with pytest.raises(ImageError, match=r"i\.zarr"):
        open_image(tmp_path / "i.zarr")


@pytest.mark.parametrize("ome", [None, [], "0.5", 3])
def test_an_entry_ome_that_is_no_mapping_is_that_of_a_plain_group(ome: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr", attributes={"ome": ome})
    group.create_array("only", data=np.eye(3))
    image = open_image(tmp_path / "g.zarr")
    assert image.version is None
    np.testing.assert_array_equal(image.data.compute(), np.eye(3))


def test_metadata_that_are_no_json_are_an_error_of_the_image(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]])
    (path / ".zattrs").write_text("{")
    with pytest.raises(ImageError, match=r"i\.zarr"):
        open_image(path)


# The form of the arrays


def values_of(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return np.random.default_rng(3).integers(0, 2**15, shape).astype(dtype)


@pytest.mark.parametrize(
    ("version", "options"),
    [
        pytest.param("0.4", {}, id="v2"),
        pytest.param("0.4", {"dtype": ">u2"}, id="v2, big-endian"),
        pytest.param("0.4", {"dtype": ">f8"}, id="v2, big-endian floats"),
        pytest.param("0.4", {"order": "F"}, id="v2, F order"),
        pytest.param("0.4", {"order": "F", "dtype": ">u2"}, id="v2, F order, big-endian"),
        pytest.param("0.4", {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, id="v2, nested"),
        pytest.param("0.4", {"chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v2, flat"),
        pytest.param("0.4", {"compressors": None}, id="v2, not compressed"),
        pytest.param("0.5", {}, id="v3"),
        pytest.param("0.5", {"shards": (2, 16, 16)}, id="v3, sharded"),
        pytest.param("0.5", {"serializer": zarr.codecs.BytesCodec(endian="big")}, id="v3, big-endian"),
        pytest.param("0.5", {"chunk_key_encoding": {"name": "v2", "separator": "."}}, id="v3, keys of v2"),
        pytest.param("0.5", {"fill_value": 7}, id="v3, filled"),
    ],
)
@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 1, 1), (5, 7, 1)])
def test_arrays_of_every_form_are_read_as_zarr_reads_them(
    version: str, options: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    group = zarr.create_group(tmp_path / "i.zarr", zarr_format=2 if version == "0.4" else 3)
    form: dict[str, Any] = {"dtype": "<u2", "chunks": (1, 8, 8), **options}
    for number in range(2):
        array = group.create_array(str(number), shape=shape, **form)
        values = values_of(shape, str(array.dtype))
        # The last chunks are left out: what is not stored is the fill value.
        array[..., : max(shape[-1] - 8, 1)] = values[..., : max(shape[-1] - 8, 1)]
    image = {"axes": list("zyx"), "datasets": [{"path": "0"}, {"path": "1"}]}
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    opened = open_image(tmp_path / "i.zarr")
    for number, level in enumerate(opened.levels):
        expected: Any = zarr.open_array(tmp_path / "i.zarr", path=str(number), mode="r")[...]
        made = level.compute()
        np.testing.assert_array_equal(made, expected)
        assert made.dtype == expected.dtype.newbyteorder("=") == level.dtype
        assert made.dtype.isnative


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int64", "float16", "float64", "complex64"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_arrays_of_every_dtype_are_read(dtype: str, version: str, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "i.zarr", zarr_format=2 if version == "0.4" else 3)
    values = values_of((9, 5), dtype)
    group.create_array("0", data=values, chunks=(4, 4))
    image = {"axes": ["y", "x"], "datasets": [{"path": "0"}]}
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    opened = open_image(tmp_path / "i.zarr")
    assert opened.dtype == dtype
    np.testing.assert_array_equal(opened.data.compute(), values)


def test_levels_may_lie_in_groups_of_their_own(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "i.zarr")
    group.create_array("scale0/image", data=np.eye(4))
    group.attrs["ome"] = {"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "scale0/image"}]}]}
    np.testing.assert_array_equal(open_image(tmp_path / "i.zarr").data.compute(), np.eye(4))


def test_attributes_that_others_keep_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "i.zarr", [[scaling(1, 1)]], version="0.5", more={"x": [1, None]})
    attributes = json.loads((path / "zarr.json").read_text())
    attributes["attributes"]["other"] = {"multiscales": "mine"}
    (path / "zarr.json").write_text(json.dumps(attributes))
    assert open_image(path).version == "0.5"


# Units

SPACE = [
    "angstrom", "attometer", "centimeter", "decimeter", "exameter", "femtometer", "foot", "gigameter", "hectometer",
    "inch", "kilometer", "megameter", "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec", "petameter",
    "picometer", "terameter", "yard", "yoctometer", "yottameter", "zeptometer", "zettameter",
]  # fmt: skip
TIME = [
    "attosecond", "centisecond", "day", "decisecond", "exasecond", "femtosecond", "gigasecond", "hectosecond", "hour",
    "kilosecond", "megasecond", "microsecond", "millisecond", "minute", "nanosecond", "petasecond", "picosecond",
    "second", "terasecond", "yoctosecond", "yottasecond", "zeptosecond", "zettasecond",
]  # fmt: skip


@pytest.mark.parametrize("unit", SPACE)
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_units_of_length_are_kept(unit: str, axis: str) -> None:
    assert unit_name(unit, axis) == unit


@pytest.mark.parametrize("unit", TIME)
def test_units_of_time_are_kept(unit: str) -> None:
    assert unit_name(unit, "t") == unit


@pytest.mark.parametrize("unit", [f"{unit}s" for unit in SPACE if unit not in ("foot", "inch")])
def test_units_of_length_may_be_plural(unit: str) -> None:
    assert unit_name(unit, "x") == unit[:-1]


@pytest.mark.parametrize("unit", [f"{unit}s" for unit in TIME])
def test_units_of_time_may_be_plural(unit: str) -> None:
    assert unit_name(unit, "t") == unit[:-1]


PREFIXES = {
    "y": "yocto", "z": "zepto", "a": "atto", "f": "femto", "p": "pico", "n": "nano", "u": "micro", "\u00b5": "micro",
    "\u03bc": "micro", "m": "milli", "c": "centi", "d": "deci", "": "", "h": "hecto", "k": "kilo", "M": "mega",
    "G": "giga", "T": "tera", "P": "peta", "E": "exa", "Z": "zetta", "Y": "yotta",
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_units_are_written_out(prefix: str) -> None:
    assert unit_name(f"{prefix}m", "x") == f"{PREFIXES[prefix]}meter"
    assert unit_name(f"{prefix}s", "t") == f"{PREFIXES[prefix]}second"


@pytest.mark.parametrize(
    ("given", "axis", "written"),
    [
        ("micron", "x", "micrometer"),
        ("Microns", "x", "micrometer"),
        (" um ", "x", "micrometer"),
        ("Micrometer", "x", "micrometer"),
        ("micrometre", "y", "micrometer"),
        ("nanometres", "y", "nanometer"),
        ("\u00c5", "z", "angstrom"),
        ("\u212b", "z", "angstrom"),
        ("Angstrom", "z", "angstrom"),
        ("in", "x", "inch"),
        ("inches", "x", "inch"),
        ("ft", "x", "foot"),
        ("feet", "x", "foot"),
        ("yd", "x", "yard"),
        ("mi", "x", "mile"),
        ("sec", "t", "second"),
        ("msec", "t", "millisecond"),
        ("min", "t", "minute"),
        ("h", "t", "hour"),
        ("d", "t", "day"),
        (None, "x", None),
        ("", "x", None),
        ("  ", "t", None),
        (None, "c", None),
        ("um", "c", None),
    ],
)
def test_units_have_several_names(given: str | None, axis: str, written: str | None) -> None:
    assert unit_name(given, axis) == written


@pytest.mark.parametrize(
    ("unit", "axis"),
    [
        ("s", "x"),
        ("second", "x"),
        ("min", "y"),
        ("m", "t"),
        ("um", "t"),
        ("micrometer", "t"),
        ("pixel", "x"),
        ("px", "x"),
        ("banana", "x"),
        ("xm", "x"),
        ("mmm", "x"),
        ("UM", "x"),
        ("kg", "x"),
        ("-", "t"),
        (5, "x"),
    ],
)
def test_what_is_no_unit_is_named_with_its_axis(unit: Any, axis: str) -> None:
    kind = "time" if axis == "t" else "length"
    with pytest.raises(ParameterError, match=rf"unit '?{unit}'? of axis '{axis}' is no unit of {kind}, such as"):
        unit_name(unit, axis)


def test_units_that_others_write_are_told_as_they_are(tmp_path: Path) -> None:
    axes = [{"name": "y", "type": "space", "unit": "furlong"}, {"name": "x", "type": "space", "unit": None}]
    assert open_image(write(tmp_path / "i.zarr", [[scaling(1, 1)]], axes=axes)).unit == ("furlong", None)


# Axes to write


@pytest.mark.parametrize(
    ("given", "ndim", "axes"),
    [
        (None, 2, "yx"),
        (None, 3, "zyx"),
        (None, 4, "czyx"),
        (None, 5, "tczyx"),
        ("yx", 2, "yx"),
        ("tyx", 3, "tyx"),
        ("CYX", 3, "cyx"),
        ("tcyx", 4, "tcyx"),
        ("tzyx", 4, "tzyx"),
        (("c", "y", "x"), 3, "cyx"),
        (["Y", "X"], 2, "yx"),
    ],
)
def test_axes_are_letters_in_the_order_of_ome_zarr(given: Any, ndim: int, axes: str) -> None:
    assert axes_for(given, ndim) == axes


@pytest.mark.parametrize("axes", ["xy", "yxc", "xyz", "zcyx", "ctyx", "yzx"])
def test_axes_in_another_order_are_refused(axes: str) -> None:
    with pytest.raises(GeometryError, match=f"axes '{axes}' are not those of OME-Zarr.*'tczyx', in this order"):
        axes_for(axes, len(axes))


@pytest.mark.parametrize("axes", ["yyx", "ccyx", "zzyx", "yxx"])
def test_axes_that_come_twice_are_refused(axes: str) -> None:
    with pytest.raises(GeometryError, match=f"axes '{axes}'"):
        axes_for(axes, len(axes))


@pytest.mark.parametrize("axes", ["qyx", "yxs", "y ", "..", "wyx"])
def test_letters_that_are_no_axes_are_refused(axes: str) -> None:
    with pytest.raises(GeometryError, match="not those of OME-Zarr"):
        axes_for(axes, len(axes))


@pytest.mark.parametrize("axes", ["tc", "zx", "ty", "zy", "cx"])
def test_axes_without_y_and_x_are_refused(axes: str) -> None:
    with pytest.raises(GeometryError, match="with 'yx'"):
        axes_for(axes, 2)


@pytest.mark.parametrize(("axes", "ndim"), [("yx", 3), ("zyx", 2), ("", 2), (("time", "y", "x"), 3)])
def test_axes_that_are_not_one_letter_each_are_refused(axes: Any, ndim: int) -> None:
    with pytest.raises(GeometryError, match=f"the image has {ndim}"):
        axes_for(axes, ndim)


@pytest.mark.parametrize("ndim", [0, 1, 6])
def test_images_have_two_to_five_axes(ndim: int) -> None:
    with pytest.raises(GeometryError, match=f"2 to 5 axes; this one has {ndim}"):
        axes_for(None, ndim)


@pytest.mark.parametrize("axes", [5, ["y", 3], [None, "x"]])
def test_axes_that_are_no_letters_are_refused(axes: Any) -> None:
    with pytest.raises(GeometryError, match="axes"):
        axes_for(axes, 2)
