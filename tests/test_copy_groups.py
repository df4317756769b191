"""`copy` of groups: OME-Zarr images, plates, and whatever else lies in a zarr store."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr.format import FormatV04, FormatV05
from zarr.storage import MemoryStore

import blockbuster
from blockbuster import (
    BlockbusterError,
    GeometryError,
    ImageError,
    OutputError,
    OutputExistsError,
    ParameterError,
    TileError,
    copy,
    open_image,
    write_image,
    write_labels,
)
from tests.helpers import digest, leftovers, nothing_computed

with warnings.catch_warnings(action="ignore"):
    import ome_zarr.writer

pytestmark = pytest.mark.usefixtures("synchronous")

Version = Literal["0.4", "0.5"]
FORMATS: dict[str, Any] = {"0.4": 2, "0.5": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def noise(*shape: int) -> NDArray[np.uint16]:
    return np.random.default_rng(7).integers(1, 60000, shape).astype(np.uint16)


# What is copied


def labels_of(values: NDArray[Any]) -> NDArray[np.uint32]:
    return (values // 6000).astype(np.uint32)


def own_image(path: Path, version: Version) -> Path:
    """An image with two channels, two levels and labels."""
    stack = noise(2, 6, 33, 30)
    write_image(
        stack,
        path,
        axes="czyx",
        version=version,
        n_levels=2,
        chunks=(1, 6, 16, 16),
        shards=(1, 6, 32, 32) if version == "0.5" else None,
        scale=(1, 2, 0.5, 0.5),
        translation=(0, 1, 2, 3),
        unit="um",
        channels=["DNA", {"label": "actin", "color": "00FFFF"}],
        name="cells",
    )
    labels = labels_of(stack[0])
    write_labels(labels, path, "cells", colors={1: (255, 0, 0)}, properties=[{"label-value": 1, "area": 3}])
    return path


def ome_format(version: Version) -> Any:
    return FormatV04() if version == "0.4" else FormatV05()


def add_image(group: zarr.Group, version: Version, *, labels: bool) -> None:
    form = ome_format(version)
    options: Any = {"fmt": form, "axes": "zyx", "scale_factors": [2], "storage_options": {"chunks": (3, 16, 16)}}
    ome_zarr.writer.write_image(noise(6, 33, 30), group, **options)
    if labels:
        with warnings.catch_warnings(action="ignore"):
            ome_zarr.writer.write_labels(labels_of(noise(6, 33, 30)), group, name="cells", scaler=None, **options)
        if version == "0.5":
            # The writer leaves the version away here.
            group["labels"].attrs["ome"] = {"version": "0.5", "labels": ["cells"]}


def foreign_image(path: Path, version: Version) -> Path:
    add_image(zarr.open_group(path, mode="w", zarr_format=FORMATS[version]), version, labels=True)
    return path


def plate(path: Path, version: Version) -> Path:
    group, form = zarr.open_group(path, mode="w", zarr_format=FORMATS[version]), ome_format(version)
    acquisitions = [{"id": 1, "name": "first"}]
    ome_zarr.writer.write_plate_metadata(
        group, ["A", "B"], ["1", "2"], ["A/1", "B/2"], fmt=form, acquisitions=acquisitions, field_count=2, name="p"
    )
    for name in ("A/1", "B/2"):
        well = group.require_group(name)
        fields: Any = [{"path": "0", "acquisition": 1}, {"path": "1", "acquisition": 1}]
        ome_zarr.writer.write_well_metadata(well, fields, fmt=form)
        for field in ("0", "1"):
            add_image(well.require_group(field), version, labels=(name, field) == ("A/1", "0"))
    return path


MAKERS: dict[str, Callable[[Path, Version], Path]] = {
    "own image": own_image,
    "image of ome_zarr": foreign_image,
    "plate": plate,
}
both = pytest.mark.parametrize("version", ["0.4", "0.5"])
made_by = pytest.mark.parametrize("maker", sorted(MAKERS))


def nodes(path: Path) -> dict[str, Any]:
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    return {"": group, **dict(group.members(max_depth=None))}


def told(node: Any) -> dict[str, Any]:
    """The attributes of a node, less what says who made it."""
    return {key: value for key, value in node.attrs.asdict().items() if key != "blockbuster"}


def assert_same_voxels(one: Path, other: Path) -> None:
    nodes_of_one, nodes_of_other = nodes(one), nodes(other)
    assert nodes_of_one.keys() == nodes_of_other.keys()
    for name, node in nodes_of_one.items():
        assert isinstance(node, zarr.Array) == isinstance(nodes_of_other[name], zarr.Array)
        if isinstance(node, zarr.Array):
            assert node.dtype == nodes_of_other[name].dtype
            np.testing.assert_array_equal(nodes_of_other[name][...], node[...])


def assert_same(one: Path, other: Path) -> None:
    """Assert that two groups have the same nodes, voxels and metadata."""
    assert_same_voxels(one, other)
    of_other = nodes(other)
    for name, node in nodes(one).items():
        assert told(of_other[name]) == told(node), name
        if isinstance(node, zarr.Array):
            forms = [
                {k: v for k, v in a.metadata.to_dict().items() if k != "attributes"} for a in (node, of_other[name])
            ]
            assert forms[0] == forms[1]


def kinds(path: Path) -> dict[str, str]:
    """What ome_zarr_models takes each group with metadata of OME-Zarr for; fails where it refuses one."""
    from ome_zarr_models import open_ome_zarr

    found = {}
    for name, node in nodes(path).items():
        words = {"multiscales", "labels", "plate", "well"} & set(told(node).get("ome", told(node)))
        if words and isinstance(node, zarr.Group):
            model = open_ome_zarr(str(path / name))
            found[name] = f"{type(model).__module__.split('.')[1]} {type(model).__name__}"
    return found


@both
@made_by
@pytest.mark.parametrize("verify", [False, True])
def test_everything_in_an_image_or_plate_is_copied(verify: bool, maker: str, version: Version, folder: Path) -> None:
    path = MAKERS[maker](folder / "a.zarr", version)
    before = digest(path)
    assert copy(path, folder / "b.zarr", verify=verify) is None
    assert_same(path, folder / "b.zarr")
    assert kinds(folder / "b.zarr") == kinds(path)
    assert digest(path) == before
    assert leftovers(folder) == []
    assert zarr.open_group(folder / "b.zarr").attrs["blockbuster"]["operation"] == "copy"  # type: ignore[index, call-overload]


@both
@made_by
def test_an_image_or_plate_is_converted_to_the_other_version(maker: str, version: Version, folder: Path) -> None:
    path = MAKERS[maker](folder / "a.zarr", version)
    other: Version = "0.5" if version == "0.4" else "0.4"
    copy(path, folder / "b.zarr", zarr_format=FORMATS[other], verify=True)
    assert_same_voxels(path, folder / "b.zarr")
    old, new = f"v{version.replace('.', '')}", f"v{other.replace('.', '')}"
    expected = {name: kind.replace(old, new) for name, kind in kinds(path).items()}
    assert kinds(folder / "b.zarr") == expected
    assert all(node.metadata.zarr_format == FORMATS[other] for node in nodes(folder / "b.zarr").values())
    # There and back.
    copy(folder / "b.zarr", folder / "c.zarr", zarr_format=FORMATS[version])
    assert kinds(folder / "c.zarr") == kinds(path)
    of_copy = nodes(folder / "c.zarr")
    for name, node in nodes(path).items():
        assert less_versions(told(of_copy[name])) == less_versions(told(node)), name


def less_versions(value: Any) -> Any:
    """Metadata without versions, which may stand in several places."""
    if isinstance(value, dict):
        return {key: less_versions(one) for key, one in value.items() if key != "version"}
    return list(map(less_versions, value)) if isinstance(value, list) else value


@both
def test_a_converted_image_is_at_the_same_place_in_the_world(version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    write_labels(noise(6, 33, 30) > 9, path, "nuclei")
    other: Version = "0.5" if version == "0.4" else "0.4"
    copy(path, folder / "b.zarr", zarr_format=FORMATS[other])
    for inner in ("", "labels/cells", "labels/nuclei"):
        one, two = open_image(path / inner), open_image(folder / "b.zarr" / inner)
        assert two.version == other
        for name in ("axes", "scales", "translations", "unit", "channel_names", "name", "labels"):
            assert getattr(one, name) == getattr(two, name)
    labels = nodes(folder / "b.zarr")["labels/cells"].attrs.asdict()
    words = labels.get("ome", labels)["image-label"]
    assert words["colors"] == [{"label-value": 1, "rgba": [255, 0, 0, 255]}]
    assert words["properties"] == [{"label-value": 1, "area": 3}]
    if other == "0.5":
        assert nodes(folder / "b.zarr")["0"].metadata.dimension_names == ("c", "z", "y", "x")
        assert nodes(folder / "b.zarr")["labels/cells/1"].metadata.dimension_names == ("z", "y", "x")


def test_long_names_of_axes_become_those_of_dimensions(folder: Path) -> None:
    group = zarr.create_group(folder / "a.zarr", zarr_format=2)
    group.create_array("0", data=noise(2, 9, 8))
    axes = [{"name": "channel", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    copy(folder / "a.zarr", folder / "b.zarr", zarr_format=3)
    assert kinds(folder / "b.zarr") == {"": "v05 Image"}
    assert nodes(folder / "b.zarr")["0"].metadata.dimension_names == ("channel", "y", "x")


def test_names_of_dimensions_are_kept(folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.5")
    zarr.open_group(path).create_array("extra", data=noise(2, 3, 4, 5), dimension_names=["a", "b", None, "d"])
    copy(path, folder / "b.zarr")
    assert nodes(folder / "b.zarr")["extra"].metadata.dimension_names == ("a", "b", None, "d")


def plain_group(path: Path, zarr_format: Any, **attributes: Any) -> Path:
    """A group of groups, arrays of every kind, and nothing."""
    group = zarr.create_group(path, zarr_format=zarr_format, attributes={"a": {"b": [1, None]}, **attributes})
    group.create_array("x/y/z", data=noise(9), chunks=(4,), attributes={"unit": "um"})
    group["x"].attrs["deep"] = True
    group.create_array("x/float", data=np.array([[1.5, np.nan], [-0.0, np.inf]], np.float32), fill_value=np.nan)
    group.create_array("flags", data=noise(7, 5) > 9, chunks=(3, 3))
    group.create_array("big", data=noise(7, 5).astype(">u2"), chunks=(3, 3))
    group.create_array("one", data=np.array(5, np.int8))
    group.create_array("none", shape=(0, 3), dtype="u1", chunks=(1, 1))
    group.create_array("empty", shape=(30, 30), dtype="u1", chunks=(8, 8), fill_value=7)
    group.create_group("nothing/in it")
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_groups_that_are_no_images_are_copied(zarr_format: Any, folder: Path) -> None:
    path = plain_group(folder / "a.zarr", zarr_format)
    copy(path, folder / "b.zarr", verify=True)
    assert_same(path, folder / "b.zarr")
    files = [{name.partition("/")[2] for name in digest(folder / store)} for store in ("a.zarr", "b.zarr")]
    assert files[0] - {".zattrs"} <= files[1]
    copy(path, folder / "c.zarr", zarr_format=5 - zarr_format)
    for name, node in nodes(path).items():
        if not isinstance(node, zarr.Array):
            assert told(nodes(folder / "c.zarr")[name]) == told(node)
            continue
        np.testing.assert_array_equal(nodes(folder / "c.zarr")[name][...], node[...])
        assert told(nodes(folder / "c.zarr")[name]) == told(node)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "attributes",
    [
        {"name": "x", "zarr_format": 7, "self": 1, "path": "p", "attributes": {}},
        {"labels": 5, "series": "x", "version": "1", "well": "A1"},
        {"ome": "no metadata"},
        {},
    ],
    ids=list,
)
def test_attributes_of_groups_are_kept_whatever_their_names(
    attributes: dict[str, Any], zarr_format: Any, folder: Path
) -> None:
    zarr.create_group(folder / "a.zarr", zarr_format=3, attributes=attributes).create_group("in", attributes=attributes)
    copy(folder / "a.zarr", folder / "b.zarr", zarr_format=zarr_format)
    assert told(nodes(folder / "b.zarr")[""]) == attributes
    assert told(nodes(folder / "b.zarr")["in"]) == attributes


@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_with_consolidated_metadata_is_copied(zarr_format: Any, folder: Path) -> None:
    path = plain_group(folder / "a.zarr", zarr_format)
    zarr.consolidate_metadata(path)
    copy(path, folder / "b.zarr")
    assert_same_voxels(path, folder / "b.zarr")
    group = zarr.open_group(folder / "b.zarr", mode="r")
    np.testing.assert_array_equal(group["x/y/z"][...], noise(9))
    assert told(group) == {"a": {"b": [1, None]}}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_empty_group_is_copied(zarr_format: Any, folder: Path) -> None:
    zarr.create_group(folder / "a.zarr", zarr_format=zarr_format, attributes={"k": 1})
    copy(folder / "a.zarr", folder / "b.zarr", verify=True)
    assert_same(folder / "a.zarr", folder / "b.zarr")
    assert nodes(folder / "b.zarr")[""].metadata.zarr_format == zarr_format


@both
def test_chunks_of_groups_are_copied_without_decoding_them(version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    for name in ("0/c/0/0/0/0", "labels/cells/1/c/0/0/0", "0/0/0/0/0", "labels/cells/1/0/0/0"):
        if (path / name).exists():
            (path / name).write_bytes(b"no chunk")
    copy(path, folder / "b.zarr", verify=True)
    data = [
        {name.partition("/")[2]: d for name, d in digest(folder / store).items() if name.rpartition("/")[2].isdigit()}
        for store in ("a.zarr", "b.zarr")
    ]
    assert len(data[0]) > 8
    assert data[0] == data[1]
    with pytest.raises(TileError):
        copy(path, folder / "c.zarr", compression="gzip")
    assert not (folder / "c.zarr").exists()


# Kinds of sources


@both
def test_a_group_may_be_given_opened_or_as_a_part_of_another(version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    group = zarr.open_group(path, mode="r")
    copy(group, folder / "b.zarr")
    assert_same(path, folder / "b.zarr")
    copy(group["labels"], folder / "c.zarr")
    assert_same(path / "labels", folder / "c.zarr")
    copy(path / "labels" / "cells", folder / "d.zarr", output_component="in/it")
    assert_same(path / "labels" / "cells", folder / "d.zarr" / "in" / "it")
    inside = zarr.open_group(folder / "d.zarr", mode="r")["in/it/0"]
    np.testing.assert_array_equal(inside[...], group["labels/cells/0"][...])


@both
def test_a_group_in_a_zip_file_is_copied(version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    shutil.make_archive(str(folder / "a"), "zip", path)
    (folder / "a.zip").rename(folder / "a.zarr.zip")
    copy(folder / "a.zarr.zip", folder / "b.zarr", verify=True)
    assert_same(path, folder / "b.zarr")


def test_a_group_in_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ImageError, match="is a zarr group in no folder"):
        copy(zarr.create_group(MemoryStore()), folder / "b.zarr")
    assert os.listdir(folder) == []


def test_one_array_of_a_group_is_chosen_by_level_or_channel(folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.5")
    expected = nodes(path)["1"][...]
    np.testing.assert_array_equal(copy(path, level=1, compute=True), expected)
    np.testing.assert_array_equal(copy(path, level=1, channel="actin", compute=True), expected[1])
    copy(path, folder / "b.zarr", level=1)
    np.testing.assert_array_equal(zarr.open_array(folder / "b.zarr", mode="r")[...], expected)


# Options


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mask": np.ones((2, 6, 33, 30))}, ParameterError),
        ({"block_ids": [0]}, ParameterError),
        ({"write_to": None}, ParameterError),
        ({"write_to": None, "compute": True}, ParameterError),
        ({"write_to": None, "verify": True}, ParameterError),
        ({"chunks": 0}, GeometryError),
        ({"chunks": (4,)}, GeometryError),
        ({"shards": (1, 6, 33, 30), "chunks": 16}, GeometryError),
        ({"dtype": "uint8"}, ParameterError),
        ({"dtype": "U3"}, ParameterError),
        ({"casting": "no"}, ParameterError),
        ({"compression": "lzma"}, ParameterError),
        ({"zarr_format": 2, "shards": 32}, ParameterError),
        ({"tile_shape": (1, 1, 7, 7)}, GeometryError),
    ],
    ids=str,
)
def test_what_makes_no_sense_for_a_group_is_refused_before_anything_is_written(
    options: dict[str, Any], error: Any, folder: Path
) -> None:
    path = own_image(folder / "a.zarr", "0.5")
    before = digest(folder)
    with pytest.raises(error), nothing_computed():
        copy(path, **{"write_to": folder / "b.zarr", **options})
    assert digest(folder) == before
    assert os.listdir(folder) == ["a.zarr"]


@both
def test_dtype_is_for_images_not_for_their_labels(version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    copy(path, folder / "b.zarr", dtype="float32", verify=True)
    of_copy = nodes(folder / "b.zarr")
    for name, node in nodes(path).items():
        if isinstance(node, zarr.Array):
            assert of_copy[name].dtype == (node.dtype if "labels" in name else np.float32)
            np.testing.assert_array_equal(of_copy[name][...], node[...])
    assert kinds(folder / "b.zarr") == kinds(path)
    copy(path / "labels", folder / "c.zarr", dtype="uint8", casting="exact")
    assert nodes(folder / "c.zarr")["cells/0"].dtype == np.uint32
    copy(path, folder / "d.zarr", dtype="uint8", casting="clip")
    np.testing.assert_array_equal(nodes(folder / "d.zarr")["0"][...], np.clip(nodes(path)["0"][...], 0, 255))


def test_an_exact_copy_of_a_group_that_fails_leaves_nothing_in_its_place(folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.4")
    with pytest.raises(TileError, match="casting='exact'"):
        copy(path, folder / "b.zarr", dtype="uint8", casting="exact")
    assert not (folder / "b.zarr").exists()


@both
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_and_shards_of_four_axes_fit_labels_of_three(version: Version, zarr_format: Any, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    shards = (1, 6, 16, 16) if zarr_format == 3 else None
    options: Any = {"chunks": (1, 3, 8, 8), "shards": shards, "zarr_format": zarr_format, "compression": "zstd"}
    copy(path, folder / "b.zarr", tile_shape=(1, 6, 16, 32), verify=True, **options)
    assert_same_voxels(path, folder / "b.zarr")
    for node in nodes(folder / "b.zarr").values():
        if isinstance(node, zarr.Array):
            assert node.chunks == options["chunks"][-node.ndim :]
            assert node.shards == (shards[-node.ndim :] if shards else None)
            assert "zstd" in str(node.compressors)


def test_progress_counts_the_tiles_of_all_arrays(folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.5")
    calls: list[tuple[int, int]] = []
    copy(path, folder / "b.zarr", progress=lambda now: calls.append((now.done, now.total)))
    done, total = calls[-1]
    assert done == total >= 4


# What is there already


@both
def test_an_image_is_replaced_only_if_asked_for(version: Version, folder: Path) -> None:
    for name, values in (("a.zarr", noise(20, 30)), ("b.zarr", noise(20, 30) // 2)):
        write_image(values, folder / name, version=version, n_levels=2)
    before = digest(folder)
    with pytest.raises(OutputExistsError, match=r"Give overwrite=True to replace it"):
        copy(folder / "a.zarr", folder / "b.zarr")
    assert digest(folder) == before
    copy(folder / "a.zarr", folder / "b.zarr", overwrite=True)
    assert_same(folder / "a.zarr", folder / "b.zarr")
    assert leftovers(folder) == []


@both
@pytest.mark.parametrize("kind", ["image with labels", "plain group", "file", "folder"])
def test_what_has_more_than_an_image_in_it_is_never_replaced(kind: str, version: Version, folder: Path) -> None:
    path = own_image(folder / "a.zarr", version)
    target = folder / "b.zarr"
    if kind == "image with labels":
        own_image(target, version)
    elif kind == "plain group":
        plain_group(target, FORMATS[version])
    elif kind == "file":
        target.write_text("years of work")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    before = digest(folder)
    for overwrite in (False, True):
        with pytest.raises(BlockbusterError, match=r"b\.zarr"):
            copy(path, target, overwrite=overwrite)
        assert digest(folder) == before
    assert leftovers(folder) == []


def test_a_group_replaces_an_array_and_an_array_an_image(folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.5")
    copy(noise(9), folder / "b.zarr")
    copy(path, folder / "b.zarr", overwrite=True)
    assert_same(path, folder / "b.zarr")
    write_image(noise(9, 9), folder / "c.zarr", n_levels=1)
    copy(noise(9), folder / "c.zarr", overwrite=True)
    np.testing.assert_array_equal(zarr.open_array(folder / "c.zarr", mode="r")[...], noise(9))


@both
@pytest.mark.parametrize(
    ("source", "target", "component"),
    [
        ("a.zarr", "a.zarr", ""),
        ("a.zarr", "link.zarr", ""),
        ("link.zarr", "a.zarr", ""),
        ("a.zarr", "a.zarr", "0"),
        ("a.zarr", "a.zarr", "1"),
        ("a.zarr", "a.zarr", "labels/cells"),
        ("a.zarr", "a.zarr", "labels/new"),
        ("a.zarr", "a.zarr", "copy"),
        ("a.zarr", "a.zarr/copy.zarr", ""),
        ("a.zarr", "link.zarr/copy.zarr", ""),
        ("a.zarr/labels", "a.zarr", ""),
        ("a.zarr/labels/cells", "a.zarr", "labels"),
        ("a.zarr/0", "a.zarr", ""),
        ("empty.zarr", "empty.zarr", ""),
        ("empty.zarr", "empty.zarr", "in"),
        ("empty.zarr/in", "empty.zarr", ""),
    ],
)
def test_a_copy_onto_or_into_its_source_is_refused(
    source: str, target: str, component: str, version: Version, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    if source.startswith("empty"):
        zarr.create_group(folder / "empty.zarr", zarr_format=FORMATS[version]).create_group("in")
    else:
        write_image(noise(20, 30), folder / "a.zarr", version=version, n_levels=2)
        write_labels(noise(20, 30), folder / "a.zarr", "cells", n_levels=1)
        (folder / "link.zarr").symlink_to("a.zarr")
    before = digest(folder)
    for given in (source, folder / source, zarr.open(source, mode="r")):
        for overwrite in (False, True):
            with pytest.raises((OutputError, OutputExistsError)):
                copy(given, target, output_component=component, overwrite=overwrite)
            assert digest(folder) == before
    assert leftovers(folder) == []


@both
def test_a_group_may_be_copied_beside_its_source_in_one_store(version: Version, folder: Path) -> None:
    group = zarr.create_group(folder / "s.zarr", zarr_format=FORMATS[version])
    own_image(folder / "s.zarr" / "a", version)
    before = digest(folder / "s.zarr" / "a")
    copy(folder / "s.zarr" / "a", folder / "s.zarr", output_component="b")
    assert_same(folder / "s.zarr" / "a", folder / "s.zarr" / "b")
    assert digest(folder / "s.zarr" / "a") == before
    assert sorted(group.group_keys()) == ["a", "b"]


# What is no image data


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["words", "dates"])
def test_arrays_of_no_numbers_are_copied_or_named(kind: str, zarr_format: Any, folder: Path) -> None:
    values = np.array(["a", "bc"]) if kind == "words" else np.array(["2020-01-01", "2021-01-01"], "M8[D]")
    group = zarr.create_group(folder / "a.zarr", zarr_format=zarr_format)
    group.create_array("table/column", data=values)
    group.create_array("image", data=noise(9, 9))
    try:
        copy(folder / "a.zarr", folder / "b.zarr")
    except BlockbusterError as error:
        words = str(error)
        assert not (folder / "b.zarr").exists()
        assert "table/column" in words
    else:
        np.testing.assert_array_equal(zarr.open_group(folder / "b.zarr")["table/column"][...], values)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_a_group_is_copied_by_every_scheduler(scheduler: str, folder: Path) -> None:
    path = own_image(folder / "a.zarr", "0.4")
    copy(path, folder / "b.zarr", zarr_format=3, shards=(1, 6, 32, 32), verify=True)
    assert_same_voxels(path, folder / "b.zarr")
    assert leftovers(folder) == []


def test_labels_without_metadata_keep_their_dtype_too(tmp_path: Path) -> None:
    blockbuster.write_image(np.full((8, 8), 7, np.uint16), tmp_path / "i.zarr")
    labels = np.arange(64, dtype=np.int32).reshape(8, 8) * 100
    blockbuster.copy(labels, tmp_path / "i.zarr", output_component="labels/cells")
    blockbuster.copy(tmp_path / "i.zarr", tmp_path / "o.zarr", dtype="uint8", casting="clip")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "o.zarr" / "labels" / "cells")[:], labels)
    assert zarr.open_array(tmp_path / "o.zarr" / "0").dtype == np.uint8


def test_a_group_that_has_changed_is_copied_anew(tmp_path: Path) -> None:
    blockbuster.write_image(np.ones((8, 8), np.uint8), tmp_path / "i.zarr")
    blockbuster.copy(tmp_path / "i.zarr", tmp_path / "o.zarr")
    zarr.open_group(tmp_path / "i.zarr").attrs["note"] = "new"
    (tmp_path / "i.zarr" / "notes.txt").write_text("words")
    with pytest.raises(OutputExistsError):
        blockbuster.copy(tmp_path / "i.zarr", tmp_path / "o.zarr", resume=True)
    blockbuster.copy(tmp_path / "i.zarr", tmp_path / "p.zarr")
    assert zarr.open_group(tmp_path / "p.zarr").attrs["note"] == "new"
    assert (tmp_path / "p.zarr" / "notes.txt").read_text() == "words"
