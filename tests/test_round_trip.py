"""The whole way: image to OME-Zarr to labels to pyramid, and what others see of it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr_models import open_ome_zarr

from blockbuster import label, open_image, pyramid, tile_process, write_image, write_labels
from tests.helpers import assert_same_objects, components, leftovers
from tests.oracles import scipy_labels
from tests.test_write_image import kind_of, read_elsewhere, reduced, write_elsewhere

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

synchronous = pytest.mark.usefixtures("synchronous")
both_versions = pytest.mark.parametrize("version", ["0.4", "0.5"])
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real images beside the checkout")

UNITS = {"nm": ("nanometer", 1e-9), "um": ("micrometer", 1e-6), "mm": ("millimeter", 1e-3)}
SHAPES = {"yx": (70, 93), "zyx": (9, 50, 61), "cyx": (2, 70, 93), "czyx": (2, 9, 50, 61), "tczyx": (2, 2, 5, 33, 41)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def _blobs(shape: Sequence[int]) -> NDArray[np.uint8]:
    """Objects of a few voxels, and single ones; the same in all channels and times but for their brightness."""
    rng = np.random.default_rng(0)
    seeds = rng.random(tuple(shape)) > 0.9
    grown = seeds | np.roll(seeds, 1, -1) | np.roll(seeds, 1, -2)
    return (grown * rng.integers(100, 200, tuple(shape))).astype(np.uint8)


def _world(node: Any, level: int) -> NDArray[np.float64]:
    """Begin and end of a level in metres, per axis of space, as ome-zarr-py reads it."""
    transforms = node.metadata["coordinateTransformations"][level]
    shape = np.array(node.data[level].shape)
    scale, start = np.ones(len(shape)), np.zeros(len(shape))
    for transform in transforms:
        if transform["type"] == "scale":
            scale = np.array(transform["scale"], float)
        else:
            start = np.array(transform["translation"], float)
    metres = dict(UNITS.values())
    begin, end = start - scale / 2, start - scale / 2 + scale * shape
    axes = node.metadata["axes"]
    chosen = [n for n, axis in enumerate(axes) if axis["type"] == "space"]
    unit = np.array([metres[axes[n]["unit"]] for n in chosen])
    return np.array([begin[chosen] * unit, end[chosen] * unit])


def _voxel(node: Any, level: int) -> NDArray[np.float64]:
    """Extent of one voxel in metres, per axis of space."""
    begin, end = _world(node, level)
    kept = [n for n, axis in enumerate(node.metadata["axes"]) if axis["type"] == "space"]
    size: NDArray[np.float64] = (end - begin) / np.array(node.data[level].shape)[kept]
    return size


@synchronous
@both_versions
@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("unit", UNITS)
def test_image_and_labels_cover_the_same_world_on_every_level(version: Any, axes: str, unit: str, folder: Path) -> None:
    path = folder / "i.zarr"
    image = _blobs(SHAPES[axes])
    units = tuple({"t": "s", "c": None}.get(axis, unit) for axis in axes)
    scale = tuple({"t": 30.0, "c": 1.0, "z": 2.0, "y": 0.65, "x": 0.325}[axis] for axis in axes)
    start = tuple({"t": 0.0, "c": 0.0, "z": -8.0, "y": 100.0, "x": 33.3}[axis] for axis in axes)
    write_image(image, path, axes=axes, version=version, unit=units, scale=scale, translation=start, n_levels=1)
    pyramid(path, n_levels=3)
    written = open_image(path)
    first = tuple(0 if axis == "c" else slice(None) for axis in axes)
    for level, name in ((0, "fine"), (1, "coarse")):
        write_labels(components(written.levels[level].compute()[first] > 60), path, name)
    assert kind_of(path) == "Image"
    nodes = read_elsewhere(path)
    shown, whole = nodes["i.zarr"], _world(nodes["i.zarr"], 0)
    np.testing.assert_array_equal(shown.data[0].compute(), image)
    # In metres: nothing is a thousand times as large as it was.
    extents = [n * s * UNITS[unit][1] for n, s, axis in zip(image.shape, scale, axes, strict=True) if axis in "zyx"]
    np.testing.assert_allclose(whole[1] - whole[0], extents, rtol=1e-12)
    for name in ("i.zarr", "fine", "coarse"):
        for level in range(3):
            world = _world(nodes[name], level)
            voxel = _voxel(nodes[name], level)
            np.testing.assert_allclose(world[0], whole[0], atol=1e-6 * voxel.min())
            # A level has whole voxels: it may end beyond the image, by less than one.
            assert (world[1] > whole[1] - 1e-6 * voxel).all()
            assert (world[1] < whole[1] + voxel * (2 if name == "coarse" else 1)).all()
    for level in range(3):
        np.testing.assert_allclose(_world(nodes["fine"], level), _world(shown, level))
    for level in range(2):
        np.testing.assert_allclose(_world(nodes["coarse"], level), _world(shown, level + 1))
    assert open_image(path).labels == ("fine", "coarse")
    assert leftovers(folder) == []


@synchronous
@both_versions
@pytest.mark.parametrize("level", [0, 1])
def test_an_object_lies_at_the_same_place_in_image_and_labels_on_every_level(
    version: Any, level: int, folder: Path
) -> None:
    path = folder / "i.zarr"
    image = np.zeros((64, 96), np.uint8)
    image[16:32, 40:72] = 200
    write_image(image, path, scale=(2, 0.5), translation=(100, -7), unit="um", version=version, n_levels=4)
    write_labels(label(path, level=level), path, "cells")
    centres = [
        _centre(found.levels[k].compute() > 0, found.scales[k], found.translations[k])
        for found in (open_image(path), open_image(path / "labels" / "cells"))
        for k in range(3)
    ]
    np.testing.assert_allclose(centres, [centres[0]] * 6, atol=1e-9)
    np.testing.assert_allclose(centres[0], (100 + 2 * 23.5, -7 + 0.5 * 55.5))


def _centre(inside: NDArray[np.bool_], scale: Sequence[float], start: Sequence[float]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = np.argwhere(inside).mean(0) * scale + start
    return middle


@synchronous
@both_versions
def test_an_image_of_ome_zarr_py_takes_the_whole_way(version: Any, folder: Path) -> None:
    image = _blobs((2, 64, 80))
    path = write_elsewhere(folder / "i.zarr", version, image, "cyx", scale_factors=[2])
    pyramid(path, n_levels=3, overwrite=True)
    write_labels(label(path, channel=1, tile_shape=(16, 16)), path, "cells")
    nodes = read_elsewhere(path)
    np.testing.assert_array_equal(nodes["cells"].data[0].compute(), scipy_labels(image[1] > 0, 1))
    assert len(nodes["cells"].data) == len(nodes["i.zarr"].data) == 3
    assert kind_of(path) == "Image"


@synchronous
@both_versions
def test_labels_may_come_before_the_pyramid(version: Any, folder: Path) -> None:
    path = folder / "i.zarr"
    image = _blobs((64, 80))
    write_image(image, path, version=version, n_levels=1, scale=0.5, unit="um")
    write_labels(label(path), path, "cells")
    with pytest.warns(UserWarning, match="cells"):
        pyramid(path, n_levels=3)
    pyramid(path / "labels" / "cells", n_levels=3)
    made, labels = open_image(path), open_image(path / "labels" / "cells")
    assert made.scales == labels.scales
    assert made.translations == labels.translations
    first = reduced(components(image), (2, 2), "mode-nonzero")
    np.testing.assert_array_equal(labels.levels[1].compute(), first)
    assert kind_of(path) == "Image"


@synchronous
@both_versions
def test_an_image_keeps_all_it_has_from_version_to_version_and_back(version: Any, folder: Path) -> None:
    first = write_image(
        _blobs((2, 9, 50, 61)),
        folder / "a.zarr",
        axes="czyx",
        version=version,
        scale=(1, 2, 0.5, 0.25),
        translation=(0, 1, 2, 3),
        unit="nm",
        channels=["DNA", {"label": "actin", "color": "ABCDEF"}],
        name="cells",
        n_levels=3,
    )
    other: Any = "0.5" if version == "0.4" else "0.4"
    write_image(folder / "a.zarr", folder / "b.zarr", version=other, n_levels=3)
    last = write_image(folder / "b.zarr", folder / "c.zarr", version=version, n_levels=3)
    for field in ("axes", "scales", "translations", "unit", "channel_names", "name", "version"):
        assert getattr(last, field) == getattr(first, field)
    for one, two in zip(first.levels, last.levels, strict=True):
        np.testing.assert_array_equal(one.compute(), two.compute())
    told = [zarr.open_group(folder / name, mode="r").attrs.asdict() for name in ("a.zarr", "c.zarr")]
    for attributes in told:
        attributes.pop("blockbuster")
    assert told[0] == told[1]


@synchronous
def test_all_images_of_a_written_store_are_found_by_its_models(folder: Path) -> None:
    path = folder / "i.zarr"
    write_image(_blobs((2, 64, 80)), path, axes="cyx", n_levels=2, unit="um", channels=["a", "b"])
    write_labels(label(path, channel=0), path, "cells")
    model = open_ome_zarr(zarr.open_group(path, mode="r"))
    assert model.labels.get_image_labels_group("cells") is not None  # type: ignore[union-attr]
    assert len(model.datasets[0]) == 2  # type: ignore[union-attr]


# Real images


@needs_data
@synchronous
@both_versions
@pytest.mark.parametrize("way", ["label", "tile_process"])
@pytest.mark.parametrize("name", ["2d", "3d"])
def test_real_nuclei_go_the_whole_way(version: Any, way: str, name: str, folder: Path) -> None:
    image, mask = (tifffile.imread(DATA / f"{kind}{name}.tif") for kind in ("img", "mask"))
    axes = "yx" if image.ndim == 2 else "zyx"
    path = folder / "nuclei.ome.zarr"
    write_image(DATA / f"img{name}.tif", path, axes=axes, scale=0.5, unit="um", version=version, n_levels=3)
    tiles = (200, 150) if image.ndim == 2 else (16, 32, 25)
    if way == "label":
        # The masks of an expert, cut into tiles and put together again.
        expected = skimage.measure.label(mask, connectivity=1)
        lazy = label(DATA / f"mask{name}.tif", by_value=True, tile_shape=tiles, stage_dir=folder)
    else:
        threshold = float(np.quantile(image, 0.9))
        expected = components(image > threshold)
        lazy = tile_process(path, _Above(threshold), tile_shape=tiles, overlap=1)
    made = write_labels(lazy, path, "nuclei")
    del lazy
    gc.collect()
    found = made.data.compute()
    assert_same_objects(found, expected)
    assert (made.scale, made.unit) == ((0.5,) * image.ndim, ("micrometer",) * image.ndim)
    nodes = read_elsewhere(path)
    np.testing.assert_array_equal(nodes["nuclei"].data[0].compute(), found)
    np.testing.assert_array_equal(nodes["nuclei.ome.zarr"].data[0].compute(), image)
    for level in range(3):
        np.testing.assert_allclose(_world(nodes["nuclei"], level), _world(nodes["nuclei.ome.zarr"], level))
        ids = set(np.unique(made.levels[level].compute()).tolist())
        assert ids <= set(np.unique(found).tolist())
    # Whatever has a voxel of its own at level 0 fills or shares one at level 1: few vanish, and none large.
    lost = set(np.unique(found).tolist()) - set(np.unique(made.levels[1].compute()).tolist())
    assert all(np.count_nonzero(found == value) < 2**image.ndim for value in lost)
    assert kind_of(path) == "Image"
    assert leftovers(folder) == []


class _Above:
    """Connected components above a threshold: a picklable `fn`."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        return components(block > self.threshold)


# napari


@synchronous
@both_versions
def test_napari_gets_image_and_labels_at_one_place(version: Any, folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        plugin = pytest.importorskip("napari_ome_zarr", reason="needs napari-ome-zarr")
    path = folder / "i.zarr"
    image = _blobs((2, 10, 60, 80))
    write_image(
        image, path, axes="czyx", version=version, n_levels=3, scale=(1, 2, 0.5, 0.5), unit="um", channels=["a", "b"]
    )
    write_labels(label(path, channel=0), path, "fine")
    write_labels(label(path, channel=0, level=1), path, "coarse")
    with warnings.catch_warnings(action="ignore"):
        layers = plugin.napari_get_reader(str(path))(str(path))
    assert [kind for _, _, kind in layers] == ["image", "labels", "labels"]
    (shown, told, _), (fine, fine_told, _), (coarse, coarse_told, _) = layers
    np.testing.assert_array_equal(np.asarray(shown[0]), image)
    assert [level.shape for level in fine] == [level.shape[1:] for level in shown]
    assert [level.shape for level in coarse][:2] == [level.shape[1:] for level in shown][1:]
    assert list(told["scale"]) == list(fine_told["scale"]) == [2, 0.5, 0.5]
    # The reader takes no translation, so labels of a coarser level are shown half a voxel of theirs less half of one
    # of the image beside their place.
    assert list(coarse_told["scale"]) == [4, 1, 1]
    assert told["units"] == fine_told["units"] == coarse_told["units"]
    assert told["channel_axis"] == 0
