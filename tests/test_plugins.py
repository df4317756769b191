"""Segmenters with stand-ins for their libraries, which are as particular as the real ones and record their calls.

With the real libraries: `make test-cellpose3`, `make test-cellpose4`, `make test-stardist`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster import CapacityError, GeometryError, ParameterError, TileError, tile_process
from blockbuster.identity import function_identity
from blockbuster.plugins import cellpose as cellpose_plugin
from blockbuster.plugins import models as shared
from blockbuster.plugins.cellpose import auto_tile_shape_cellpose, cellpose_bytes, cellpose_fn
from blockbuster.plugins.stardist import stardist_fn
from blockbuster.schedulers import gpu_slots
from tests.helpers import assert_same_objects

GiB = 2**30
# The intensities of the images of these tests: the stand-ins find what is above the middle of them.
LOW, HIGH = 100, 300
with_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class OutOfMemoryError(RuntimeError):
    """What torch and TensorFlow raise when a GPU is full."""


@dataclass(repr=False)
class Calls:
    """What a library was asked for.

    Attributes
    ----------
    gpu_limit : int
        The largest batch, or image, that fits.
    most_at_once : int
        Calls that were under way at the same time.
    """

    loads: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    images: list[NDArray[Any]] = field(default_factory=list)
    freed: int = 0
    gpu_limit: int = 10**9
    has_gpu: bool = False
    now: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(0.002)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1

    def free(self) -> None:
        self.freed += 1


def record(calls: Calls, image: NDArray[Any], options: dict[str, Any]) -> NDArray[np.bool_]:
    """Keep what was given, then spoil it; the foreground."""
    calls.images.append(image.copy())
    calls.runs.append({key: dict(value) if isinstance(value, dict) else value for key, value in options.items()})
    assert min(image.shape[-3:-1]) >= 16, "a narrow axis is taken for channels"
    mask: NDArray[np.bool_] = image[..., 0] > 0.5
    image[:] = np.nan
    for value in options.values():
        if isinstance(value, dict):
            value["spoilt"] = True
    return mask


def fake_cellpose(calls: Calls, major: int) -> dict[str, types.ModuleType]:
    class CellposeModel:
        def __init__(self, **options: Any) -> None:
            time.sleep(0.01)
            calls.loads.append(options)

        def eval(self, image: NDArray[Any], *, batch_size: int, **options: Any) -> tuple[Any, ...]:
            calls.enter()
            try:
                mask = record(calls, image, {**options, "batch_size": batch_size})
                assert (image.ndim == 4) == ("z_axis" in options)
                assert image.shape[-1] in ({3: [2], 4: [1, 2, 3]}[major])
                assert image.dtype == np.float32
                if batch_size > calls.gpu_limit:
                    raise OutOfMemoryError("CUDA out of memory")
                return scipy.ndimage.label(mask)[0].astype(np.uint16).squeeze(), [], None
            finally:
                calls.leave()

    names = {3: ["cyto3", "nuclei"], 4: ["cpsam_v2", "cpsam"]}[major]
    models = module("cellpose.models", CellposeModel=CellposeModel, MODEL_NAMES=names, get_user_models=lambda: ["mine"])
    core = module("cellpose.core", use_gpu=lambda: calls.has_gpu)
    torch = module("torch", cuda=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, empty_cache=calls.free))
    return named(models, core, torch, module("cellpose", models=models, core=core))


def fake_stardist(calls: Calls) -> dict[str, types.ModuleType]:
    class StarDist2D:
        def __init__(self, config: None, name: str, basedir: str) -> None:
            time.sleep(0.01)
            calls.loads.append({"class": type(self).__name__, "name": name, "basedir": basedir})

        @classmethod
        def from_pretrained(cls, name: str) -> Any:
            return cls(None, name, "published")

        def predict_instances(
            self, image: NDArray[Any], *, axes: str, n_tiles: tuple[int, ...], **options: Any
        ) -> tuple[Any, ...]:
            calls.enter()
            try:
                mask = record(calls, image, {**options, "axes": axes, "n_tiles": n_tiles})
                assert len(axes) == image.ndim == len(n_tiles)
                assert image.dtype == np.float32
                if image.size / np.prod(n_tiles) > calls.gpu_limit:
                    raise OutOfMemoryError("OOM when allocating tensor")
                return scipy.ndimage.label(mask)[0].astype(np.int32), {}
            finally:
                calls.leave()

    class StarDist3D(StarDist2D):
        pass

    def normalize(image: NDArray[Any], pmin: float, pmax: float, dtype: Any, **options: Any) -> NDArray[Any]:
        low, high = np.percentile(image, [pmin, pmax])
        return ((image - low) / (high - low)).astype(dtype)

    def get_registered_models(kind: type) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
        return {"StarDist2D": (("2D_fluo",), {"2D_fluo": ("Fluorescence",)}), "StarDist3D": ((), {})}[kind.__name__]

    tensorflow = module(
        "tensorflow",
        config=types.SimpleNamespace(list_physical_devices=lambda kind: ["GPU:0"] if calls.has_gpu else []),
        errors=types.SimpleNamespace(ResourceExhaustedError=OutOfMemoryError),
    )
    models = module("stardist.models", StarDist2D=StarDist2D, StarDist3D=StarDist3D)
    pretrained = module("csbdeep.models.pretrained", get_registered_models=get_registered_models)
    utils = module("csbdeep.utils", normalize=normalize)
    packages = [module(name) for name in ("stardist", "csbdeep", "csbdeep.models")]
    return named(tensorflow, models, pretrained, utils, *packages)


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


def named(*modules: types.ModuleType) -> dict[str, types.ModuleType]:
    return {made.__name__: made for made in modules}


@pytest.fixture(autouse=True)
def _own_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shared, "_process", shared._Process())
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    cellpose_plugin._major.cache_clear()
    yield
    cellpose_plugin._major.cache_clear()


@pytest.fixture(params=[3, 4], ids=["cellpose3", "cellpose4"])
def major(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def cellpose(major: int, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{major}.1.1.3")
    for name, made in fake_cellpose(calls, major).items():
        monkeypatch.setitem(sys.modules, name, made)
    return calls


@pytest.fixture
def stardist(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    for name, made in fake_stardist(calls).items():
        monkeypatch.setitem(sys.modules, name, made)
    return calls


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file for Cellpose; the folder of a model for StarDist is around it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"n_dim": 2}))
    (folder / "weights.pt").write_bytes(b"weights")
    return folder / "weights.pt"


@pytest.fixture(params=["cellpose3", "cellpose4", "stardist"])
def segmenter(
    request: pytest.FixtureRequest, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., Any], Calls]:
    """How to make the function of each library for the images of these tests, and the calls of the library."""
    calls = Calls()
    major = int(request.param[-1]) if request.param != "stardist" else 0
    if major:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{major}.0")
    for name, made in (fake_cellpose(calls, major) if major else fake_stardist(calls)).items():
        monkeypatch.setitem(sys.modules, name, made)
    make = functools.partial(cellpose_fn, weights) if major else functools.partial(stardist_fn, weights.parent)
    return functools.partial(make, normalize=(LOW, HIGH)), calls


def disc_image(shape: tuple[int, ...] = (64, 96), seed: int = 0) -> NDArray[np.uint16]:
    """Dark noise with bright spots of a few voxels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(LOW, 190, shape)
    spots = scipy.ndimage.binary_dilation(rng.random(shape) < 0.01, iterations=2)
    return np.where(spots, HIGH, image).astype(np.uint16)


# Shapes and dtypes


@st.composite
def tiles(draw: st.DrawFn) -> NDArray[Any]:
    shape = draw(st.tuples(*[st.just(1)] * draw(st.integers(0, 2)), st.integers(0, 40), st.integers(0, 40)))
    dtype = draw(st.sampled_from(["uint8", "uint16", ">u2", "int32", "float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    tile = rng.choice([0, 255], shape, p=[0.7, 0.3]).astype(dtype)
    tile.setflags(write=False)
    return tile


@with_fixture
@given(tile=tiles())
def test_labels_have_the_shape_of_the_tile_whatever_it_is_and_the_tile_stays_as_it_was(
    segmenter: Any, tile: NDArray[Any]
) -> None:
    make, _ = segmenter
    before = tile.copy()
    labels = make(normalize=(0, 255))(tile)
    assert labels.dtype == np.int32
    # A tile of one value holds no object.
    is_empty = not tile.size or tile.min() == tile.max()
    np.testing.assert_array_equal(labels, np.zeros(tile.shape) if is_empty else scipy.ndimage.label(tile > 0)[0])
    np.testing.assert_array_equal(tile, before)


@pytest.mark.parametrize("shape", [(5, 1, 40), (2, 30, 7), (1, 2, 17, 18), (4, 40, 40)])
def test_volumes_are_segmented_as_volumes(cellpose: Calls, weights: Path, shape: tuple[int, ...]) -> None:
    tile = disc_image(shape)
    for how in ({"do_3D": True}, {"stitch_threshold": 0.3}):
        labels = cellpose_fn(weights, normalize=(LOW, HIGH), **how)(tile)
        np.testing.assert_array_equal(labels, scipy.ndimage.label(tile > 200)[0])
    assert [run["do_3D"] for run in cellpose.runs] == [True, False]
    assert [(run["z_axis"], run["channel_axis"]) for run in cellpose.runs] == [(0, 3)] * 2


def test_volumes_of_one_plane_are_segmented_as_planes(cellpose: Calls, weights: Path) -> None:
    tile = disc_image((1, 30, 30))
    fn = cellpose_fn(weights, normalize=(LOW, HIGH), do_3D=True, stitch_threshold=0.3)
    np.testing.assert_array_equal(fn(tile), scipy.ndimage.label(tile > 200)[0])
    (run,) = cellpose.runs
    assert run["do_3D"] is False
    assert not {"z_axis", "stitch_threshold"} & set(run)


def test_volumes_of_stardist_are_given_whole(stardist: Calls, weights: Path) -> None:
    (weights.parent / "config.json").write_text('{"n_dim": 3}')
    tile = disc_image((4, 30, 30))
    labels = stardist_fn(weights.parent, dim=3, normalize=(LOW, HIGH))(tile)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(tile > 200)[0])
    assert stardist.loads[0]["class"] == "StarDist3D"
    assert stardist.runs[0]["axes"] == "ZYXC"


@pytest.mark.parametrize("shape", [(40,), (3, 40, 40), (2, 1, 40, 40)])
def test_tiles_of_other_axes_are_refused(segmenter: Any, shape: tuple[int, ...]) -> None:
    make, calls = segmenter
    with pytest.raises(ValueError, match=r"works on 2 axes, but the tile has the shape .* Give a tile_shape of one"):
        make()(disc_image(shape))
    assert calls.loads == []


@pytest.mark.parametrize("tile", [np.zeros((20, 20)), np.full((20, 20), 255, np.uint8), np.zeros((0, 5))])
def test_empty_tiles_load_no_model(segmenter: Any, tile: NDArray[Any]) -> None:
    make, calls = segmenter
    assert not make()(tile).any()
    assert calls.loads == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(segmenter: Any, bad: float) -> None:
    make, _ = segmenter
    tile = disc_image().astype(np.float32)
    tile[3, 4:6] = bad
    with pytest.raises(ValueError, match=r"2 of 6144 voxels of the tile are NaN or infinite.*Replace them first"):
        make()(tile)


def test_labels_of_another_shape_are_refused() -> None:
    given = shared.Wrapping((20, 20), 2)
    with pytest.raises(ValueError, match=r"returned labels of shape \(20,\) for a tile of shape \(20, 20\)"):
        given.unwrap(np.zeros(20, np.int32))


# Channels


def test_channels_are_chosen_in_the_order_asked_for(cellpose: Calls, weights: Path, major: int) -> None:
    tile = np.stack([disc_image(seed=seed) for seed in range(4)])
    first = {3: 2, 4: 3}[major]
    for channels, expected in [
        (None, list(tile[:first])),
        ((3, 2), [tile[2], tile[1]]),
        ((2, 0), [tile[1]]),
        ((0, 1), [tile.mean(axis=0), tile[0]]),
    ]:
        fn = cellpose_fn(weights, normalize=False, channels=channels, channel_axis=0)
        assert fn(tile).shape == tile.shape[1:]
        given = np.moveaxis(cellpose.images[-1], -1, 0)
        if major == 3 and len(expected) == 1:
            expected.append(np.zeros(tile.shape[1:]))
        np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_the_channel_axis_may_be_any(segmenter: Any) -> None:
    make, calls = segmenter
    tile = np.stack([disc_image(), disc_image(seed=1)], axis=-1)
    labels = make(channel_axis=-1)(tile)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(tile[..., 0] > 200)[0])
    assert calls.images[0].shape == tile.shape


def test_channels_that_a_tile_does_not_have_are_refused(cellpose: Calls, weights: Path) -> None:
    fn = cellpose_fn(weights, normalize=False, channels=(3, 0), channel_axis=0)
    with pytest.raises(ValueError, match=r"channels \(3, 0\) are numbered from 1, but the tile has 2"):
        fn(np.stack([disc_image()] * 2))


@pytest.mark.parametrize("channels", [1, (1,), (1, 2, 3), (-1, 0), (1.5, 0), (True, 0), "ab"])
def test_channels_other_than_two_numbers_are_refused(weights: Path, channels: Any) -> None:
    with pytest.raises(ParameterError, match=r"are not two ints of at least 0"):
        cellpose_fn(weights, normalize=False, channels=channels, channel_axis=0)


def test_channels_need_their_axis(weights: Path) -> None:
    assert cellpose_fn(weights, normalize=False, channels=[0, 0]).channels == (0, 0)
    with pytest.raises(ParameterError, match=r"channels \[2, 1\] need channel_axis"):
        cellpose_fn(weights, normalize=False, channels=[2, 1])


# Intensities


def test_global_intensities_become_0_and_1(segmenter: Any) -> None:
    make, calls = segmenter
    tile = disc_image()
    make(normalize=np.array([50.0, 450.0]))(tile)
    np.testing.assert_allclose(calls.images[0][..., 0], (tile - 50.0) / 400, rtol=1e-6)


def test_each_channel_may_have_its_own_intensities(segmenter: Any) -> None:
    make, calls = segmenter
    tile = np.stack([disc_image(), 7 * disc_image(seed=1)])
    make(normalize=[(50, 450), (0, 7000)], channel_axis=0)(tile)
    expected = np.stack([(tile[0] - 50.0) / 400, tile[1] / 7000], axis=-1)
    np.testing.assert_allclose(calls.images[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"normalize has 3 pairs \(low, high\), but the model is given 2 channels"):
        make(normalize=[(0, 1)] * 3, channel_axis=0)(tile)


def test_a_missing_second_channel_stays_zero_whatever_the_intensities(cellpose: Calls, weights: Path) -> None:
    cellpose_fn(weights, normalize=(50, 450))(disc_image())
    assert not cellpose.images[0][..., 1:].any()


COMPLETE = {
    "lowhigh": None,
    "percentile": None,
    "normalize": False,
    "norm3D": True,
    "sharpen_radius": 0,
    "smooth_radius": 0,
    "tile_norm_blocksize": 0,
    "tile_norm_smooth3D": 1,
    "invert": False,
}


@pytest.mark.parametrize(
    ("normalize", "told"),
    [
        (False, {}),
        ((LOW, HIGH), {}),
        ({"lowhigh": [LOW, HIGH]}, {}),
        ({"percentile": [2, 98]}, {"percentile": [2, 98], "normalize": True}),
        ({"tile_norm_blocksize": 50, "invert": True}, {"tile_norm_blocksize": 50, "normalize": True, "invert": True}),
    ],
)
def test_cellpose_is_told_all_of_normalization_each_time(
    cellpose: Calls, weights: Path, normalize: Any, told: dict[str, Any]
) -> None:
    fn = cellpose_fn(weights, normalize=normalize)
    for _ in range(2):
        fn(disc_image())
    assert [run["normalize"] for run in cellpose.runs] == [COMPLETE | told] * 2


@pytest.mark.parametrize("normalize", [(50, 450), {"lowhigh": [50, 450]}])
def test_inverted_intensities_are_those_from_1_down(cellpose: Calls, weights: Path, normalize: Any) -> None:
    cellpose_fn(weights, normalize=normalize, invert=True)(disc_image())
    np.testing.assert_allclose(cellpose.images[0][..., 0], 1 - (disc_image() - 50.0) / 400, rtol=1e-5)
    assert "invert" not in cellpose.runs[0]


def test_intensities_of_each_tile_are_warned_of_once(
    cellpose: Calls, stardist: Calls, weights: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for make in (lambda: cellpose_fn(weights), lambda: stardist_fn(weights.parent, normalize=True)):
        with pytest.warns(
            UserWarning, match=r"tiles may disagree.*Give normalize=blockbuster\.global_percentiles"
        ) as told:
            fn = make()
        assert told[0].filename == __file__
        # Nothing more is said when it is called: a warning would be an error here.
        fn(disc_image())
    assert cellpose.runs[0]["normalize"] == COMPLETE | {"normalize": True}
    assert stardist.images[0].min() < 0.01


def test_stardist_takes_options_of_its_own_normalization(stardist: Calls, weights: Path) -> None:
    stardist_fn(weights.parent, normalize={"pmin": 10})(disc_image())
    low, high = np.percentile(disc_image(), [10, 99.8])
    np.testing.assert_allclose(stardist.images[0][..., 0], (disc_image() - low) / (high - low), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [None, "yes", (1,), (1, 2, 3), (2, 1), (1, 1), (0, np.nan), [[0, 1], [1, 0]], 5])
def test_intensities_that_are_no_pairs_are_refused(segmenter: Any, normalize: Any) -> None:
    make, _ = segmenter
    with pytest.raises(ParameterError, match=r"normalize .* is neither True, False, a dict, nor finite numbers"):
        make(normalize=normalize)


def test_unknown_names_in_a_dict_of_normalization_are_refused(weights: Path) -> None:
    with pytest.raises(ParameterError, match=r"normalize has no low, sharpen\. Cellpose knows lowhigh, percentile"):
        cellpose_fn(weights, normalize={"low": 1, "sharpen": 2})


# Options


def test_options_reach_cellpose(cellpose: Calls, weights: Path) -> None:
    cellpose_fn(weights, normalize=False, diameter=17, flow_threshold=0.7, batch_size=3)(disc_image())
    (run,) = cellpose.runs
    assert run == {
        "max_size_fraction": 1.0,
        "flow_threshold": 0.7,
        "normalize": COMPLETE,
        "batch_size": 3,
        "diameter": 17.0,
        "do_3D": False,
        "channel_axis": 2,
    }


def test_a_fraction_that_is_given_stays(cellpose: Calls, weights: Path) -> None:
    cellpose_fn(weights, normalize=False, max_size_fraction=0.2)(disc_image())
    assert cellpose.runs[0]["max_size_fraction"] == 0.2


def test_options_reach_stardist_and_stay_as_they_were(stardist: Calls, weights: Path) -> None:
    fn = stardist_fn(
        weights.parent, normalize=(LOW, HIGH), prob_thresh=0.5, nms_thresh=0.2, n_tiles=(2, 3), nms_kwargs={"a": 1}
    )
    identity = function_identity(fn)
    fn(disc_image())
    assert stardist.runs == [
        {
            "show_tile_progress": False,
            "prob_thresh": 0.5,
            "nms_thresh": 0.2,
            "nms_kwargs": {"a": 1},
            "axes": "YXC",
            "n_tiles": (2, 3, 1),
        }
    ]
    assert function_identity(fn) == identity
    assert fn.options["nms_kwargs"] == {"a": 1}


@pytest.mark.parametrize("name", ["x", "z_axis", "compute_masks", "progress"])
def test_options_of_cellpose_that_the_function_sets_are_refused(weights: Path, name: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{name} cannot be given"):
        cellpose_fn(weights, normalize=False, **{name: 0})


@pytest.mark.parametrize("name", ["img", "axes", "normalizer", "return_labels", "return_predict"])
def test_options_of_stardist_that_the_function_sets_are_refused(weights: Path, name: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{name} cannot be given"):
        stardist_fn(weights.parent, normalize=False, **{name: 0})


@pytest.mark.parametrize("diameter", [0, -1, "big", np.inf, True, np.nan])
def test_diameters_that_are_none_are_refused(weights: Path, diameter: Any) -> None:
    with pytest.raises(ParameterError, match="is no number of voxels above 0"):
        cellpose_fn(weights, normalize=False, diameter=diameter)


@pytest.mark.parametrize("options", [{"dim": 4}, {"dim": True}, {"n_tiles": (1, 1, 1)}, {"n_tiles": 4}, {"dim": 3}])
def test_options_that_do_not_fit_a_model_of_stardist_are_refused(weights: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"dim|n_tiles"):
        stardist_fn(weights.parent, normalize=False, **options)


# Models


def test_a_model_is_loaded_once_for_all_threads(segmenter: Any) -> None:
    make, calls = segmenter
    tile = disc_image()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make()(tile), range(24)))
    assert len(calls.loads) == 1
    assert len(calls.runs) == 24
    for labels in made:
        np.testing.assert_array_equal(labels, scipy.ndimage.label(tile > 200)[0])


def test_each_model_and_way_to_compute_is_loaded_for_itself(cellpose: Calls, weights: Path, major: int) -> None:
    cellpose.has_gpu = True
    names = {3: ["cyto3", "nuclei", "mine"], 4: ["cpsam_v2", "cpsam", "mine"]}[major]
    keys = [{"model": name, "gpu": gpu} for name in [*names, weights] for gpu in (False, True)]
    for _ in range(2):
        for key in keys:
            cellpose_fn(**key, normalize=False)(disc_image())
    extra = {} if major == 3 else {"use_bfloat16": False}
    expected = [{"gpu": key["gpu"], "pretrained_model": str(key["model"]), **extra} for key in keys]
    assert cellpose.loads == expected


def test_a_model_that_was_trained_further_is_another_one(segmenter: Any, weights: Path) -> None:
    make, calls = segmenter
    before = make()
    before(disc_image())
    weights.write_bytes(b"other weights")
    after = make()
    after(disc_image())
    assert len(calls.loads) == 2
    assert function_identity(before) != function_identity(after)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_models_and_locks_of_its_own(segmenter: Any) -> None:
    make, calls = segmenter
    make()(disc_image())
    with shared._process.loading, shared._process.gpu, warnings.catch_warnings():
        # Python warns where a process of several threads is forked.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if not child:
            calls.has_gpu = True
            make()(disc_image())
            os._exit(len(calls.loads))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert len(calls.loads) == 1


@pytest.mark.parametrize("path", ["missing/model", "missing.pt", Path("missing")])
def test_models_that_are_not_there_are_refused_before_anything_is_loaded(path: Any) -> None:
    for make in (cellpose_fn, stardist_fn):
        with pytest.raises(ParameterError, match=r"There is no model (file|folder) at /.*missing.* workers see"):
            make(path, normalize=False)


def test_a_model_that_vanishes_is_not_replaced_by_another(segmenter: Any, weights: Path) -> None:
    make, calls = segmenter
    fn = make()
    for file in weights.parent.iterdir():
        file.unlink()
    weights.parent.rmdir()
    with pytest.raises(ParameterError, match=r"There is no model (file|folder) at"):
        fn(disc_image())
    assert calls.loads == []


def test_paths_do_not_depend_on_the_folder_of_the_worker(
    segmenter: Any, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, calls = segmenter
    monkeypatch.chdir(weights.parent.parent)
    fn = make.func("model/weights.pt" if make.func is cellpose_fn else "model", normalize=False)
    monkeypatch.chdir("/")
    fn(disc_image())
    assert len(calls.loads) == 1


def test_what_is_no_model_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"is a folder\. Give the file"):
        cellpose_fn(weights.parent, normalize=False)
    with pytest.raises(ParameterError, match=r"There is no config\.json in"):
        stardist_fn(tmp_path, normalize=False)


def test_names_that_cellpose_does_not_know_are_refused(cellpose: Calls, major: int) -> None:
    name, other = {3: ("cpsam", "cyto3, nuclei, mine"), 4: ("cyto3", "cpsam_v2, cpsam, mine")}[major]
    message = rf"Cellpose {major} has no model '{name}', but {other}\. .* or install Cellpose {7 - major}"
    with pytest.raises(ValueError, match=message):
        cellpose_fn(name, normalize=False)(disc_image())
    assert cellpose.loads == []


def test_names_that_stardist_does_not_know_are_refused(stardist: Calls) -> None:
    for name in ("2D_fluo", "Fluorescence"):
        stardist_fn(name, normalize=(LOW, HIGH))(disc_image())
    assert [load["name"] for load in stardist.loads] == ["2D_fluo", "Fluorescence"]
    with pytest.raises(ValueError, match=r"StarDist has no model '2D_wrong' with dim=2, but 2D_fluo, Fluorescence"):
        stardist_fn("2D_wrong", normalize=False)(disc_image())


def test_fewer_bits_are_of_cellpose_4_only(cellpose: Calls, weights: Path, major: int) -> None:
    fn = cellpose_fn(weights, normalize=False, use_bfloat16=True)
    if major == 4:
        fn(disc_image())
        assert cellpose.loads[0]["use_bfloat16"] is True
    else:
        with pytest.raises(ValueError, match=r"use_bfloat16=True is of Cellpose 4, and this is Cellpose 3"):
            fn(disc_image())


# Graphics processors


def test_a_gpu_that_is_not_there_is_an_error(cellpose: Calls, weights: Path) -> None:
    with pytest.raises(RuntimeError, match="Cellpose finds no GPU in this process"):
        cellpose_fn(weights, normalize=False, gpu=True)(disc_image())
    assert cellpose.loads == []


def on_gpu(segmenter: Any) -> tuple[Any, Calls]:
    make, calls = segmenter
    calls.has_gpu = True
    return (make(gpu=True) if make.func is cellpose_fn else make()), calls


def test_one_tile_at_a_time_is_on_the_gpu(segmenter: Any) -> None:
    fn, calls = on_gpu(segmenter)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fn, [disc_image()] * 12))
    assert calls.most_at_once == 1


def test_a_thread_that_holds_the_gpu_already_does_not_wait_for_itself(segmenter: Any) -> None:
    fn, _ = on_gpu(segmenter)
    made: list[Any] = []

    def work() -> None:
        with gpu_slots():
            made.append(fn(disc_image()))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert len(made) == 1


def test_batches_are_halved_until_they_fit(cellpose: Calls, weights: Path) -> None:
    cellpose.gpu_limit = 2
    labels = cellpose_fn(weights, normalize=(LOW, HIGH), batch_size=12)(disc_image())
    np.testing.assert_array_equal(labels, scipy.ndimage.label(disc_image() > 200)[0])
    assert [run["batch_size"] for run in cellpose.runs] == [12, 6, 3, 1]
    assert cellpose.freed == 3
    # What is left of a failed try does not reach the next.
    for image in cellpose.images[1:]:
        np.testing.assert_array_equal(image, cellpose.images[0])
    assert [run["normalize"] for run in cellpose.runs] == [COMPLETE] * 4


def test_pieces_are_made_smaller_until_they_fit(stardist: Calls, weights: Path) -> None:
    stardist.gpu_limit = 4000
    tile = disc_image((50, 500))
    labels = stardist_fn(weights.parent, normalize=(LOW, HIGH))(tile)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(tile > 200)[0])
    assert [run["n_tiles"] for run in stardist.runs] == [(1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1)]
    for image in stardist.images[1:]:
        np.testing.assert_array_equal(image, stardist.images[0])


def test_memory_that_never_suffices_is_an_error_that_says_so(segmenter: Any) -> None:
    make, calls = segmenter
    calls.gpu_limit = 0
    with pytest.raises(CapacityError, match=r"too little memory for a tile: .*Give a smaller tile_shape") as caught:
        make()(disc_image())
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    # Its frames would keep what fills the memory.
    assert caught.value.__cause__.__traceback__ is None
    assert len(calls.runs) == (4 if "batch_size" in calls.runs[0] else 2)


# As functions of `tile_process`


def test_functions_are_small_when_pickled_and_the_same_after(segmenter: Any) -> None:
    make, calls = segmenter
    fn = make()
    fn(disc_image())
    words = pickle.dumps(fn)
    assert len(words) < 1024
    again = pickle.loads(words)
    assert again == fn
    assert hash(again) == hash(fn)
    assert function_identity(again) == function_identity(fn)
    again(disc_image())
    assert len(calls.loads) == 1


def test_functions_are_told_apart_by_all_that_changes_what_they_do(weights: Path) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"gpu": True},
        {"diameter": 20},
        {"do_3D": True},
        {"channel_axis": 0},
        {"channels": (1, 0), "channel_axis": 0},
        {"normalize": (0, 2)},
        {"normalize": {"percentile": [3, 97]}},
        {"use_bfloat16": True},
        {"flow_threshold": 0.3},
    ]
    identities = [function_identity(cellpose_fn(weights, **{"normalize": (0, 1), **way})) for way in ways]
    assert identities == [function_identity(cellpose_fn(weights, **{"normalize": (0, 1), **way})) for way in ways]
    assert len(set(identities)) == len(ways)
    more: list[dict[str, Any]] = [{}, {"normalize": False}, {"prob_thresh": 0.1}, {"nms_thresh": 0.1}, {"scale": 2}]
    assert len({function_identity(stardist_fn("2D_fluo", **{"normalize": (0, 1), **way})) for way in more}) == len(more)


@pytest.mark.parametrize("scheduler_name", ["synchronous", "threads"])
@pytest.mark.parametrize("use_gpu", [False, True])
def test_tiles_make_the_objects_of_the_whole_image(segmenter: Any, scheduler_name: str, use_gpu: bool) -> None:
    fn, calls = on_gpu(segmenter) if use_gpu else (segmenter[0](), segmenter[1])
    image = disc_image((3, 100, 90))
    with dask.config.set(scheduler=scheduler_name):
        labels = tile_process(
            image, fn, tile_shape=(1, 32, 32), overlap=12, merge=["touching"] * 3, use_gpu=use_gpu, compute=True
        )
    assert len(calls.loads) == 1
    assert_same_objects(labels, scipy.ndimage.label(image > 200)[0])


def test_what_fails_names_the_tile(segmenter: Any) -> None:
    make, _ = segmenter
    image = disc_image((40, 40)).astype(np.float32)
    image[30, 30] = np.nan
    with pytest.raises(TileError, match=r"Tile \(1, 1\).*NaN or infinite"):
        tile_process(image, make(), tile_shape=(20, 20), compute=True)


def test_imports_wait_for_the_first_tile() -> None:
    code = (
        "import sys, blockbuster.plugins.cellpose as c, blockbuster.plugins.stardist as s\n"
        "c.cellpose_fn('cyto3', normalize=(0, 1)), s.stardist_fn('2D_x', normalize=(0, 1))\n"
        "print({'cellpose', 'torch', 'stardist', 'csbdeep', 'tensorflow', 'skimage'} & set(sys.modules))"
    )
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (made.stdout, made.stderr) == ("set()\n", "")


# Tiles that fit


@given(data=st.data())
def test_tiles_for_cellpose_fit_the_memory_by_its_own_formula(data: st.DataObject) -> None:
    do_3d = data.draw(st.booleans())
    ndim = data.draw(st.integers(3 if do_3d else 2, 4))
    shape = tuple(data.draw(st.integers(1, 20000)) for _ in range(ndim))
    chunks = data.draw(st.one_of(st.none(), st.tuples(*[st.integers(1, 300)] * ndim)))
    diameter = data.draw(st.one_of(st.none(), st.floats(4, 120)))
    memory, workers = data.draw(st.integers(2**28, 2**38)), data.draw(st.integers(1, 16))
    model_memory = data.draw(st.sampled_from([0, GiB, 3 * GiB]))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float64"]))

    def need(tile: tuple[int, ...]) -> int:
        halo = [0] * (ndim - (3 if do_3d else 2)) + [int(np.ceil(2 * (diameter or 30)))] * (3 if do_3d else 2)
        padded = [min(t + 2 * h, n) for t, h, n in zip(tile, halo, shape, strict=True)]
        return cellpose_bytes(padded, dtype, diameter, do_3D=do_3d) + model_memory

    steps = chunks or (1,) * ndim
    n_spatial = 3 if do_3d else 2
    try:
        tile = auto_tile_shape_cellpose(
            shape,
            dtype,
            diameter,
            do_3D=do_3d,
            memory=memory,
            n_workers=workers,
            model_memory=model_memory,
            chunks=chunks,
        )
    except ParameterError:
        least = tuple(1 if axis < ndim - n_spatial else min(s, shape[axis]) for axis, s in enumerate(steps))
        assert need(least) > memory // workers
        return
    assert need(tile) <= memory // workers
    assert tile[: ndim - n_spatial] == (1,) * (ndim - n_spatial)
    for n, t, step in list(zip(shape, tile, steps, strict=True))[-n_spatial:]:
        assert type(t) is int
        assert 1 <= t <= n
        assert t % step == 0 or t == n


def test_larger_cells_and_volumes_change_the_tiles() -> None:
    plane = functools.partial(auto_tile_shape_cellpose, (500, 20000, 20000), "uint16", memory=8 * GiB, n_workers=1)
    small, medium, large = (plane(diameter)[1] for diameter in (10, 30, 90))
    assert small < medium < large
    volume = plane(30, do_3D=True)
    assert volume[0] > 1
    assert volume[1] < medium


def test_half_of_the_free_memory_is_taken_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellpose_plugin, "available_memory", lambda: 32 * GiB)
    monkeypatch.setattr(cellpose_plugin, "available_vram", lambda: 16 * GiB)
    monkeypatch.setattr(cellpose_plugin, "cpu_count", lambda: 2)
    ask = functools.partial(auto_tile_shape_cellpose, (20000, 20000), "uint16", 30)
    assert ask() == ask(memory=16 * GiB, n_workers=2)
    assert ask(use_gpu=True) == ask(memory=8 * GiB, n_workers=1)


def test_memory_that_no_tile_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ParameterError,
        match=r"One chunk with an overlap of 2 diameters, \(121, 121\), needs [\d,]+ bytes and the model "
        r"3,221,225,472, but each of 4 workers has 268,435,456\. Give more memory, fewer workers, or a tile_shape",
    ):
        auto_tile_shape_cellpose((2000, 2000), "uint16", 30, memory=GiB, n_workers=4)


def test_images_of_too_few_axes_have_no_tiles_for_cellpose() -> None:
    with pytest.raises(GeometryError, match=r"shape \(64, 64\) has 2 axes, but Cellpose works on 3"):
        auto_tile_shape_cellpose((64, 64), "uint8", 30, do_3D=True)


def test_tiles_for_cellpose_are_chosen_when_the_image_is_known(segmenter: Any) -> None:
    make, _ = segmenter
    tile_shape = functools.partial(
        auto_tile_shape_cellpose, diameter=10, memory=2 * GiB, n_workers=8, model_memory=200 * 2**20
    )
    image = disc_image((2, 300, 280))
    labels = tile_process(image, make(), tile_shape=tile_shape, overlap=20)
    assert labels.chunksize == tile_shape(image.shape, image.dtype)
    assert labels.chunksize[0] == 1
