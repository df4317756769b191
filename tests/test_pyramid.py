"""`pyramid`: the coarser levels of an image that is there."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import (
    BlockbusterError,
    ImageError,
    OutputExistsError,
    downsample,
    open_image,
    pyramid,
    write_image,
    write_labels,
)
from blockbuster.ngff import ome_attributes
from tests.helpers import components, digest, leftovers, nothing_computed
from tests.test_write_image import (
    consolidate,
    kind_of,
    noise,
    ome,
    read_elsewhere,
    reduced,
    write_elsewhere,
)

synchronous = pytest.mark.usefixtures("synchronous")
both_versions = pytest.mark.parametrize("version", ["0.4", "0.5"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def _by_hand(
    path: Path,
    levels: dict[str, NDArray[Any]],
    axes: str = "yx",
    version: str = "0.5",
    *,
    entry: dict[str, Any] | None = None,
    beside: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """An image as the specification spells it, its arrays of any name."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    kinds = {"t": "time", "c": "channel"}
    datasets = []
    for number, (name, level) in enumerate(levels.items()):
        if version == "0.5":
            options["dimension_names"] = list(axes)
        group.create_array(name, data=level, chunks=tuple(min(n, 16) for n in level.shape), **options)
        scale = [1.0 if axis in kinds else float(2**number) for axis in axes]
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": datasets,
        **(entry or {}),
    }
    if version == "0.4":
        group.attrs.update({"multiscales": [{**multiscale, "version": version}], **(beside or {})})
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale], **(beside or {})}
    return path


def _names(path: Path) -> list[str]:
    return [dataset["path"] for dataset in ome(path)["multiscales"][0]["datasets"]]


def _within(path: Path, name: str) -> dict[str, str]:
    return digest(path / name)


def _arrays(path: Path) -> list[str]:
    return sorted(
        p.name for p in path.iterdir() if p.is_dir() and {".zarray", "c"} & {inner.name for inner in p.iterdir()}
    )


# Added


@synchronous
@both_versions
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx"])
def test_levels_are_added_to_an_image_of_one(version: Any, axes: str, folder: Path) -> None:
    shape = [{"t": 2, "c": 3, "z": 5}.get(axis, 37) for axis in axes]
    image = noise(shape)
    scale = [{"t": 30.0, "c": 1.0, "z": 2.0}.get(axis, 0.5) for axis in axes]
    write_image(
        image, folder / "i.zarr", axes=axes, version=version, scale=scale, translation=scale, unit="um", n_levels=1
    )
    before = _within(folder / "i.zarr", "0")
    made = pyramid(folder / "i.zarr", n_levels=3)
    factors = [1 if axis in "tc" else 2 for axis in axes]
    first = reduced(image, factors, "mean")
    np.testing.assert_array_equal(made.levels[1].compute(), first)
    np.testing.assert_array_equal(made.levels[2].compute(), reduced(first, factors, "mean"))
    assert made.scales == tuple(tuple(s * f**k for s, f in zip(scale, factors, strict=True)) for k in range(3))
    for level in range(3):
        shift = [(f**level - 1) / 2 for f in factors]
        np.testing.assert_allclose(
            made.translations[level], [s + s * m for s, m in zip(scale, shift, strict=True)], atol=1e-12
        )
    assert _within(folder / "i.zarr", "0") == before
    assert kind_of(folder / "i.zarr") == "Image"
    (node,) = read_elsewhere(folder / "i.zarr").values()
    assert [level.shape for level in node.data] == [level.shape for level in made.levels]
    assert leftovers(folder) == []


@synchronous
@both_versions
@pytest.mark.parametrize(
    ("method", "order"), [("median", 0), ("max", 0), ("mode", 0), (None, 0), (None, 1), ("auto", 3)]
)
def test_levels_are_what_downsample_makes(version: Any, method: Any, order: int, folder: Path) -> None:
    image = noise((41, 58))
    _by_hand(folder / "i.zarr", {"0": image}, version=version)
    made = pyramid(folder / "i.zarr", n_levels=3, method=method, order=order, scale_factor=3)
    kernel: Any = {"order": order} if order else {"method": method}
    before = image
    for level in made.levels[1:]:
        before = downsample(before, 3, **kernel, compute=True)
        np.testing.assert_array_equal(level.compute(), before)
    assert made.translations[1] == ((0, 0) if method is None and order == 0 else (1, 1))


@synchronous
@both_versions
def test_a_pyramid_is_the_one_that_would_have_been_written(version: Any, folder: Path) -> None:
    options: Any = {"axes": "cyx", "version": version, "unit": "um", "scale": 0.5, "name": "n"}
    image = noise((2, 300, 520))
    first = write_image(image, folder / "a.zarr", **options)
    write_image(image, folder / "b.zarr", **options, n_levels=1)
    second = pyramid(folder / "b.zarr")
    assert len(first.levels) == 3
    assert (first.scales, first.translations) == (second.scales, second.translations)
    told = [ome(folder / name)["multiscales"] for name in ("a.zarr", "b.zarr")]
    assert told[0] == told[1]
    for level in "012":
        one, other = digest(folder / "a.zarr" / level), digest(folder / "b.zarr" / level)
        assert one == other


@synchronous
@both_versions
def test_levels_of_labels_have_only_their_ids(version: Any, folder: Path) -> None:
    labels = components(np.random.default_rng(0).random((40, 52)) > 0.9) * 1000
    write_image(noise((40, 52)), folder / "i.zarr", version=version, n_levels=1)
    write_labels(labels, folder / "i.zarr", "cells", properties=[{"label-value": 1000}], colors={1000: (1, 2, 3)})
    before = ome(folder / "i.zarr" / "labels" / "cells")["image-label"]
    with pytest.warns(UserWarning, match=r"3 levels now, its labels cells have another number"):
        pyramid(folder / "i.zarr", n_levels=3)
    made = pyramid(folder / "i.zarr" / "labels" / "cells", n_levels=3)
    first = reduced(labels, (2, 2), "mode-nonzero")
    np.testing.assert_array_equal(made.levels[1].compute(), first)
    np.testing.assert_array_equal(made.levels[2].compute(), reduced(first, (2, 2), "mode-nonzero"))
    assert ome(folder / "i.zarr" / "labels" / "cells")["image-label"] == before
    assert kind_of(folder / "i.zarr") == "Image"
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_labels_that_only_their_group_tells_of_are_labels_too(version: Any, folder: Path) -> None:
    labels = np.zeros((32, 32), np.int32)
    labels[1::4, 1::4] = 1000
    path = _by_hand(folder / "i.zarr", {"0": noise((32, 32))}, version=version)
    group = zarr.create_group(path / "labels", zarr_format=2 if version == "0.4" else 3)
    group.attrs.update({"labels": ["cells"]} if version == "0.4" else {"ome": {"version": "0.5", "labels": ["cells"]}})
    _by_hand(path / "labels" / "cells", {"0": labels}, version=version)
    made = pyramid(path / "labels" / "cells", n_levels=3)
    assert set(np.unique(made.levels[1].compute())) == {0, 1000}


@synchronous
@both_versions
@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("0", ["1", "2"]),
        ("s0", ["s1", "s2"]),
        ("scale0", ["scale1", "scale2"]),
        ("full", ["full-1", "full-2"]),
        ("10", ["10-1", "10-2"]),
        ("res/0", ["res/1", "res/2"]),
        ("a/b/full", ["a/b/full-1", "a/b/full-2"]),
    ],
)
def test_levels_are_named_after_the_first_one(version: Any, first: str, others: list[str], folder: Path) -> None:
    image = noise((40, 52))
    path = _by_hand(folder / "i.zarr", {first: image}, version=version)
    before = _within(path, first)
    for overwrite in (False, True):
        made = pyramid(path, n_levels=3, overwrite=overwrite)
        assert _names(path) == [first, *others]
        assert _within(path, first) == before
        assert [level.shape for level in made.levels] == [(40, 52), (20, 26), (10, 13)]
        np.testing.assert_array_equal(made.levels[1].compute(), reduced(image, (2, 2), "mean"))
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_an_image_of_ome_zarr_py_gets_levels(version: Any, folder: Path) -> None:
    image = noise((2, 64, 80))
    path = write_elsewhere(folder / "i.zarr", version, image, "cyx", scale_factors=[2, 4])
    finest = _names(path)[0]
    before = _within(path, finest)
    with pytest.raises(OutputExistsError):
        pyramid(path)
    made = pyramid(path, n_levels=4, overwrite=True)
    assert len(made.levels) == 4
    np.testing.assert_array_equal(made.data.compute(), image)
    np.testing.assert_array_equal(made.levels[1].compute(), reduced(image, (1, 2, 2), "mean"))
    assert _within(path, finest) == before
    assert kind_of(path) == "Image"
    (node,) = read_elsewhere(path).values()
    assert [level.shape for level in node.data] == [level.shape for level in made.levels]


@synchronous
@both_versions
@pytest.mark.parametrize("kind", ["big-endian", "F order", "sharded", "no compressor", "dots", "fill value"])
def test_levels_are_stored_like_the_first_one(version: Any, kind: str, folder: Path) -> None:
    if version == "0.4" and kind == "sharded":
        pytest.skip("format 2 has no shards")
    image = noise((64, 80))
    options: dict[str, Any] = {
        "F order": {"order": "F"} if version == "0.4" else {},
        "sharded": {"shards": (32, 32)},
        "no compressor": {"compressors": None},
        "dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        "fill value": {"fill_value": 7},
    }.get(kind, {})
    if kind == "big-endian":
        image = image.astype(">u2")
    path = _by_hand(folder / "i.zarr", {"0": image}, version=version, **options)
    made = pyramid(path, n_levels=3)
    first = reduced(image.astype("uint16"), (2, 2), "mean")
    np.testing.assert_array_equal(made.levels[1].compute(), first)
    np.testing.assert_array_equal(made.levels[2].compute(), reduced(first, (2, 2), "mean"))
    finest, coarse = (zarr.open_array(path / name, mode="r") for name in "01")
    assert coarse.chunks == finest.chunks
    assert coarse.compressors == finest.compressors
    assert coarse.fill_value == finest.fill_value
    assert getattr(coarse.metadata, "dimension_names", None) == getattr(finest.metadata, "dimension_names", None)
    if kind == "sharded":
        assert coarse.shards == (32, 32)
    assert kind_of(path) == "Image"


@synchronous
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int64", "float16", "float32", "float64"])
def test_every_dtype_is_kept(dtype: str, folder: Path) -> None:
    image = noise((33, 20)).astype(dtype)
    _by_hand(folder / "i.zarr", {"0": image})
    made = pyramid(folder / "i.zarr", n_levels=4, method="max")
    before = image
    for level in made.levels[1:]:
        before = reduced(before, [2 if n > 1 else 1 for n in before.shape], "max")
        assert level.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(level.compute(), before)


@synchronous
@pytest.mark.parametrize("factors", [[(1, 2, 2), (3, 1, 2)], (1, 4, 2)])
def test_factors_may_be_per_axis_and_level(factors: Any, folder: Path) -> None:
    write_image(noise((9, 40, 52)), folder / "i.zarr", n_levels=1)
    options: Any = {} if isinstance(factors, list) else {"n_levels": 2}
    made = pyramid(folder / "i.zarr", scale_factor=factors, **options)
    steps = factors if isinstance(factors, list) else [factors]
    assert len(made.levels) == len(steps) + 1
    for number, step in enumerate(steps):
        assert made.scales[number + 1] == tuple(s * f for s, f in zip(made.scales[number], step, strict=True))
        assert made.levels[number + 1].shape == tuple(
            math.ceil(n / f) for n, f in zip(made.levels[number].shape, step, strict=True)
        )


# Replaced


@synchronous
@both_versions
def test_levels_that_are_there_are_kept_unless_they_are_to_be_replaced(version: Any, folder: Path) -> None:
    image = noise((64, 80))
    path = _by_hand(
        folder / "i.zarr",
        {str(k): np.zeros_like(image[:: 2**k, :: 2**k]) if k else image for k in range(5)},
        version=version,
    )
    before, finest = digest(path), _within(path, "0")
    with nothing_computed(), pytest.raises(OutputExistsError, match=r"1, 2, 3, 4"):
        pyramid(path, n_levels=3)
    assert digest(path) == before
    assert leftovers(folder) == []
    made = pyramid(path, n_levels=3, overwrite=True)
    np.testing.assert_array_equal(made.levels[1].compute(), reduced(image, (2, 2), "mean"))
    assert _arrays(path) == _names(path) == ["0", "1", "2"]
    assert _within(path, "0") == finest
    assert kind_of(path) == "Image"
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_all_coarser_levels_may_be_taken_away(version: Any, folder: Path) -> None:
    write_image(noise((64, 80)), folder / "i.zarr", version=version, n_levels=3)
    finest = _within(folder / "i.zarr", "0")
    made = pyramid(folder / "i.zarr", n_levels=1, overwrite=True)
    assert len(made.levels) == 1
    assert _arrays(folder / "i.zarr") == ["0"]
    assert _within(folder / "i.zarr", "0") == finest
    assert kind_of(folder / "i.zarr") == "Image"
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_a_small_image_needs_no_more_levels(version: Any, folder: Path) -> None:
    write_image(noise((64, 80)), folder / "i.zarr", version=version)
    before = _within(folder / "i.zarr", "0")
    assert len(pyramid(folder / "i.zarr").levels) == 1
    assert _within(folder / "i.zarr", "0") == before
    assert kind_of(folder / "i.zarr") == "Image"
    assert leftovers(folder) == []


@synchronous
@both_versions
def test_levels_of_other_names_go_and_other_arrays_stay(version: Any, folder: Path) -> None:
    image = noise((64, 80))
    levels = {"full": image, "half": image[::2, ::2], "x/quarter": image[::4, ::4]}
    path = _by_hand(folder / "i.zarr", levels, version=version)
    group = zarr.open_group(path)
    group.create_array("mine", data=image)
    group.create_array("x/mine", data=image)
    (path / "notes.txt").write_text("do not lose me")
    kept = [digest(path / name) for name in ("mine", "x/mine", "notes.txt", "full")]
    pyramid(path, n_levels=3, overwrite=True)
    assert _names(path) == ["full", "full-1", "full-2"]
    assert _arrays(path) == ["full", "full-1", "full-2", "mine"]
    assert sorted(p.name for p in (path / "x").iterdir() if p.is_dir()) == ["mine"]
    assert [digest(path / name) for name in ("mine", "x/mine", "notes.txt", "full")] == kept


@synchronous
@pytest.mark.parametrize("overwrite", [False, True])
def test_arrays_that_are_no_levels_are_not_replaced(overwrite: bool, folder: Path) -> None:
    path = _by_hand(folder / "i.zarr", {"0": noise((64, 80))})
    zarr.open_group(path).create_array("1", data=noise((3, 3)))
    before = digest(path)
    with pytest.raises(OutputExistsError, match="1"):
        pyramid(path, n_levels=3, overwrite=overwrite)
    assert digest(path) == before
    assert leftovers(folder) == []


@synchronous
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_image_whose_levels_go_by_falling_numbers_keeps_its_finest(overwrite: bool, folder: Path) -> None:
    image = noise((64, 80))
    path = _by_hand(folder / "i.zarr", {"2": image, "1": image[::2, ::2], "0": image[::4, ::4]})
    if not overwrite:
        with pytest.raises(OutputExistsError):
            pyramid(path)
        return
    made = pyramid(path, n_levels=3, overwrite=True)
    np.testing.assert_array_equal(made.data.compute(), image)
    np.testing.assert_array_equal(made.levels[1].compute(), reduced(image, (2, 2), "mean"))


@synchronous
@both_versions
def test_a_second_run_writes_the_same_bytes(version: Any, folder: Path) -> None:
    write_image(noise((64, 80)), folder / "i.zarr", version=version, n_levels=1)
    pyramid(folder / "i.zarr", n_levels=3)
    before = digest(folder / "i.zarr")
    for options in ({"overwrite": True}, {"overwrite": True}, {"resume": True}):
        pyramid(folder / "i.zarr", n_levels=3, **options)  # type: ignore[arg-type]
        assert digest(folder / "i.zarr") == before
    assert leftovers(folder) == []


# Kept


@synchronous
@both_versions
def test_all_other_metadata_are_kept(version: Any, folder: Path) -> None:
    image = noise((2, 64, 80))
    entry = {
        "name": "cells",
        "mine": {"a": [1, None]},
        "metadata": {"by": "hand"},
        "coordinateTransformations": [
            {"type": "scale", "scale": [1, 3.0, 3.0]},
            {"type": "translation", "translation": [0, 10.0, 20.0]},
        ],
    }
    omero = {
        "channels": [
            {"label": c, "color": "00FF00", "window": {"min": 0, "max": 9, "start": 0, "end": 5}} for c in "ab"
        ],
        "rdefs": {"model": "color"},
    }
    path = _by_hand(
        folder / "i.zarr",
        {"0": image, "1": image[:, ::2, ::2]},
        "cyx",
        version,
        entry=entry,
        beside={"omero": omero, "mine": 5},
    )
    group = zarr.open_group(path)
    group.attrs["custom"] = {"deep": [1, {"x": None}]}
    told = ome(path)
    second = {**told["multiscales"][0], "name": "second", "datasets": told["multiscales"][0]["datasets"][:1]}
    told["multiscales"] = [*told["multiscales"], second]
    group.attrs.update({"multiscales": told["multiscales"]} if version == "0.4" else {"ome": told})
    before = open_image(path)
    assert before.scale == (1, 3, 3)
    made = pyramid(path, n_levels=3, overwrite=True)
    after = ome(path)
    assert after["multiscales"][1] == second
    assert (after["omero"], after["mine"]) == (omero, 5)
    assert zarr.open_group(path, mode="r").attrs["custom"] == {"deep": [1, {"x": None}]}
    first = after["multiscales"][0]
    assert (first["name"], first["mine"], first["axes"]) == ("cells", {"a": [1, None]}, second["axes"])
    # What held for all levels holds for each of them.
    assert (made.scale, made.translation) == (before.scale, before.translation)
    assert made.scales[2] == (1, 12, 12)
    assert made.translations[2] == (0, 10 + 4.5, 20 + 4.5)
    assert made.channel_names == ("a", "b")


@synchronous
@both_versions
def test_consolidated_metadata_tell_of_the_levels(version: Any, folder: Path) -> None:
    path = folder / "i.zarr"
    write_image(noise((64, 80)), path, version=version, n_levels=2, name="n")
    consolidate(path)
    pyramid(path, n_levels=3, scale_factor=4, overwrite=True)
    store = zarr.open_consolidated(path)
    assert [store[name].shape for name in "012"] == [(64, 80), (16, 20), (4, 5)]  # type: ignore[union-attr]
    assert len(ome_attributes(store)["multiscales"][0]["datasets"]) == 3
    pyramid(path, n_levels=2, overwrite=True)
    assert "2" not in zarr.open_consolidated(path)
    assert open_image(path).scales[1] == (2, 2)


@synchronous
@both_versions
def test_labels_with_another_number_of_levels_are_warned_of(version: Any, folder: Path) -> None:
    path = folder / "i.zarr"
    write_image(noise((64, 80)), path, version=version, n_levels=2)
    for name in ("cells", "nuclei", "mask"):
        write_labels(noise((64, 80)), path, name, n_levels=3 if name == "mask" else 2)
    with pytest.warns(UserWarning, match=r"3 levels now, its labels cells, nuclei have another number"):
        pyramid(path, n_levels=3, overwrite=True)
    for name in ("cells", "nuclei"):
        pyramid(path / "labels" / name, n_levels=3, overwrite=True)
    with warnings.catch_warnings(action="error"):
        pyramid(path, n_levels=3, overwrite=True)
    assert kind_of(path) == "Image"
    assert open_image(path).labels == ("cells", "nuclei", "mask")


@synchronous
@both_versions
def test_the_only_image_of_a_collection_gets_levels(version: Any, folder: Path) -> None:
    write_image(noise((64, 80)), folder / "s.zarr", output_component="0", version=version, n_levels=1)
    group = zarr.open_group(folder / "s.zarr")
    layout = {"bioformats2raw.layout": 3}
    group.attrs.update(layout if version == "0.4" else {"ome": {"version": "0.5", **layout}})
    made = pyramid(folder / "s.zarr", n_levels=3)
    assert made.path == str(folder / "s.zarr" / "0")
    assert len(open_image(folder / "s.zarr" / "0").levels) == 3
    assert kind_of(folder / "s.zarr" / "0") == "Image"
    assert leftovers(folder) == []


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_scheduler_makes_the_same_bytes(version: Any, scheduler: str, folder: Path) -> None:
    with dask.config.set(scheduler="synchronous"):
        write_image(noise((3, 61, 90)), folder / "i.zarr", version=version, n_levels=1, chunks=(1, 16, 16))
        pyramid(folder / "i.zarr", n_levels=3)
    before = digest(folder / "i.zarr")
    pyramid(folder / "i.zarr", n_levels=3, overwrite=True)
    assert digest(folder / "i.zarr") == before
    assert leftovers(folder) == []


# Refused


@synchronous
@pytest.mark.parametrize("kind", ["array", "group", "nothing", "file", "folder"])
def test_what_is_no_image_is_refused(kind: str, folder: Path) -> None:
    path = folder / "i.zarr"
    if kind == "array":
        zarr.create_array(path, data=noise((4, 4)))
    elif kind == "group":
        zarr.create_group(path).create_array("0", data=noise((4, 4)))
    elif kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    before = digest(folder)
    with pytest.raises(ImageError):
        pyramid(path)
    assert digest(folder) == before


@synchronous
def test_a_zip_file_is_refused(folder: Path) -> None:
    write_image(noise((64, 80)), folder / "i.zarr", n_levels=1)
    shutil.make_archive(str(folder / "i.zarr"), "zip", folder / "i.zarr")
    before = digest(folder)
    with pytest.raises(BlockbusterError):
        pyramid(folder / "i.zarr.zip", n_levels=2)
    assert digest(folder) == before


@synchronous
@pytest.mark.parametrize(
    "options",
    [
        {"n_levels": 0},
        {"n_levels": 2.5},
        {"scale_factor": 0},
        {"scale_factor": (2,)},
        {"method": "average"},
        {"method": "mean", "order": 2},
        {"method": None, "order": 9},
        {"anti_aliasing": True},
        {"scale_factor": (2, 2, 2)},
    ],
)
def test_options_that_fit_nothing_are_refused(options: dict[str, Any], folder: Path) -> None:
    write_image(noise((3, 600, 600)), folder / "i.zarr", axes="cyx", n_levels=1, channels=list("abc"))
    before = digest(folder)
    with nothing_computed(), pytest.raises(BlockbusterError):
        pyramid(folder / "i.zarr", **options)
    assert digest(folder) == before


@synchronous
@pytest.mark.parametrize("options", [{"method": "mean"}, {"method": None, "order": 1}])
def test_levels_that_are_no_labels_are_not_made_of_labels(options: dict[str, Any], folder: Path) -> None:
    write_image(noise((64, 80)), folder / "i.zarr", n_levels=1)
    write_labels(noise((64, 80)), folder / "i.zarr", "cells")
    with pytest.raises(BlockbusterError):
        pyramid(folder / "i.zarr" / "labels" / "cells", n_levels=2, **options)
    assert len(open_image(folder / "i.zarr" / "labels" / "cells").levels) == 1


@synchronous
@both_versions
def test_a_damaged_chunk_leaves_the_image_as_it_was(version: Any, folder: Path) -> None:
    path = _by_hand(folder / "i.zarr", {"0": noise((64, 80)), "1": noise((32, 40))}, version=version)
    kept = _chunk_file(path, version)
    data = kept.read_bytes()
    kept.write_bytes(b"torn")
    before = digest(path)
    with pytest.raises(BlockbusterError):
        pyramid(path, n_levels=3, overwrite=True)
    assert digest(path) == before
    kept.write_bytes(data)
    made = pyramid(path, n_levels=3, overwrite=True)
    assert len(made.levels) == 3


def _chunk_file(path: Path, version: str) -> Path:
    names = ("c/1/1",) if version == "0.5" else ("1.1", "1/1")
    return next(path / "0" / name for name in names if (path / "0" / name).exists())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_readers_of_the_consolidated_store_see_new_levels_of_labels(version: Any, tmp_path: Path) -> None:
    path = tmp_path / "i.zarr"
    blockbuster.write_image(np.ones((64, 64), np.uint8), path, version=version, n_levels=2)
    blockbuster.write_labels(np.ones((64, 64), np.int32), path, "cells")
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(path)
    blockbuster.pyramid(path / "labels" / "cells", n_levels=3, scale_factor=4, overwrite=True)
    cells = zarr.open_consolidated(path)["labels/cells"]
    assert [cells[name].shape for name in "012"] == [(64, 64), (16, 16), (4, 4)]


def test_a_script_may_write_an_image_and_its_levels_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        blockbuster.write_image(np.ones((64, 64), np.uint8), tmp_path / "i.zarr", n_levels=1, resume=True)
        image = blockbuster.pyramid(tmp_path / "i.zarr", n_levels=3, resume=True)
    assert len(image.levels) == 3


def test_levels_that_another_image_names_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "i.zarr"
    blockbuster.write_image(np.ones((64, 64), np.uint8), path, n_levels=3)
    group = zarr.open_group(path)
    ome = group.attrs["ome"]
    first = ome["multiscales"][0]
    group.attrs["ome"] = {**ome, "multiscales": [first, {**first, "datasets": first["datasets"][2:]}]}
    blockbuster.pyramid(path, n_levels=2, overwrite=True)
    assert zarr.open_group(path)["2"].shape == (16, 16)
