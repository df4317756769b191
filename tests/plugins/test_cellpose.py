"""Cellpose 3 or 4, the real one with a small network, as a function of a tile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import numpy as np
import pytest
import torch
from cellpose import models
from numpy.typing import NDArray

from blockbuster import CapacityError, ParameterError, global_percentiles, tile_process
from blockbuster.plugins.cellpose import cellpose_fn
from tests.plugins.discs import balls, discs, n_matched
from tests.plugins.networks import MAJOR, WEIGHTS, OnSmallNetwork, use_small_networks

# What the libraries warn of among themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

IMAGE, TRUTH = discs(seed=100)
# Across the smallest disc and the largest there are 16 and 22 voxels.
DIAMETER = 19
OVERLAP = 40
LIMITS = (0.0, 1100.0)


@pytest.fixture(autouse=True, scope="module")
def _small_networks() -> None:
    use_small_networks()


def make(**options: Any) -> Any:
    return cellpose_fn(WEIGHTS, **{"diameter": DIAMETER, "normalize": LIMITS, **options})


def test_truth_has_40_discs() -> None:
    assert TRUTH.max() == 40
    assert n_matched(TRUTH, TRUTH) == 40


def test_whole_images_have_their_discs() -> None:
    assert n_matched(TRUTH, make()(IMAGE)) >= 38


def test_tiled_images_have_the_discs_of_the_whole_image() -> None:
    low, high = global_percentiles(IMAGE, [1, 99])
    fn = make(normalize=(low, high))
    whole = fn(IMAGE)
    tiled = tile_process(
        IMAGE, fn, tile_shape=(128, 128), overlap=OVERLAP, merge="iou", sequential_labels=True, compute=True
    )
    assert tiled.shape == IMAGE.shape
    assert n_matched(TRUTH, whole) >= 38
    assert n_matched(TRUTH, tiled) >= 38
    assert n_matched(whole, tiled) >= whole.max() - 2
    assert abs(int(tiled.max()) - int(whole.max())) <= 2


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_every_scheduler_finds_the_same(name: str) -> None:
    fn = OnSmallNetwork(make())
    options = {"tile_shape": (128, 128), "overlap": OVERLAP, "merge": "iou", "compute": True}
    with dask.config.set(scheduler="synchronous"):
        expected = tile_process(IMAGE, fn, **options)
    with dask.config.set(scheduler=name, num_workers=2):
        labels = tile_process(IMAGE, fn, **options)
    assert n_matched(TRUTH, expected) >= 38
    np.testing.assert_array_equal(labels, expected)


def test_threads_share_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = models.CellposeModel.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        loaded.append(threading.get_ident())
        load(self, *args, **kwargs)

    monkeypatch.setattr(models.CellposeModel, "__init__", counted)
    fn, tiles = make(), [IMAGE[:128, :128], IMAGE[:128, 128:], IMAGE[128:, :128]]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(fn, tiles))
    assert len(loaded) == 1
    for labels, tile in zip(together, tiles, strict=True):
        np.testing.assert_array_equal(labels, fn(tile))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(5, 40), (40, 5), (1, 256), (256, 1), (1, 1), (17, 33), (1, 64, 64), (1, 1, 20, 20), (0, 9), (120, 150)]
)
def test_labels_have_the_shape_of_the_tile_which_stays_as_it_was(shape: tuple[int, ...], dtype: str) -> None:
    tile = (IMAGE[: shape[-2], : shape[-1]] // 5).reshape(shape).astype(dtype)
    before = tile.copy()
    tile.setflags(write=False)
    labels = make(normalize=(0, 220))(tile)
    assert labels.shape == shape
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(tile, before)
    if shape == (120, 150):
        # 12 discs are in it as a whole.
        assert n_matched(TRUTH[:120, :150], labels) >= 11


def test_planes_are_the_same_with_axes_of_one_voxel_before_them() -> None:
    tile = IMAGE[:100, :90]
    expected = make()(tile)
    assert expected.max() >= 4
    np.testing.assert_array_equal(make()(tile[None, None])[0, 0], expected)
    np.testing.assert_array_equal(make(do_3D=True)(tile[None])[0], expected)
    np.testing.assert_array_equal(make(stitch_threshold=0.3)(tile[None])[0], expected)


def test_channels_are_those_asked_for() -> None:
    tile = IMAGE[:100, :90]
    stack = np.stack([np.zeros_like(tile), tile[::-1], tile])
    # Nuclei that are not there: Cellpose 3 has a channel for them in any case.
    labels = make(channels=(3, 0), channel_axis=0)(stack)
    np.testing.assert_array_equal(labels, make()(tile))


@pytest.mark.parametrize("how", [{"stitch_threshold": 0.3}, {"do_3D": True, "batch_size": 4}])
def test_volumes_have_their_balls(how: dict[str, Any]) -> None:
    image, truth = balls((16, 48, 56), [(8, 14, 14), (8, 14, 33.5), (8, 33, 24)], 8)
    labels = make(**how, diameter=16)(image)
    assert labels.shape == image.shape
    assert n_matched(truth, labels, iou=0.4) >= 2


def test_a_cell_may_fill_its_tile() -> None:
    y, x = np.indices((96, 96)) - 48
    inside = np.hypot(y, x) < 40
    tile = np.where(inside, 800 - 400 * (y**2 + x**2) / 40**2, 100).astype(np.uint16)
    assert n_matched(inside.astype(int), make(diameter=80)(tile)) == 1
    assert n_matched(inside.astype(int), make(diameter=80, max_size_fraction=0.4)(tile)) == 0


def test_an_offset_of_the_whole_image_changes_nothing() -> None:
    fn = make(normalize=(500, 1600))
    assert n_matched(TRUTH, fn(IMAGE + np.uint16(500))) >= 38


def test_a_call_without_normalization_does_not_change_the_next() -> None:
    tile = IMAGE[:128, :128]
    told = {"normalize": {"percentile": [1, 99]}}
    expected = make(**told)(tile)
    make(normalize=False)(tile)
    assert expected.any()
    np.testing.assert_array_equal(make(**told)(tile), expected)


@pytest.mark.parametrize("tile", [np.zeros((40, 40), np.uint8), np.full((40, 40), 700.0), np.zeros((0, 3))])
def test_empty_tiles_have_no_labels(tile: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CellposeModel", None)
    assert not make()(tile).any()


def test_values_that_are_not_finite_are_refused() -> None:
    tile = IMAGE.astype(np.float32)
    tile[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 65536 voxels of the tile are NaN or infinite"):
        make()(tile)


# A full GPU


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that were tried on a GPU that takes `small_gpu[0]` of them."""
    tried: list[int] = [2]
    evaluate = models.CellposeModel.eval

    def limited(self: Any, image: NDArray[Any], *, batch_size: int, **options: Any) -> Any:
        tried.append(batch_size)
        if batch_size > tried[0]:
            image *= 0
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return evaluate(self, image, batch_size=batch_size, **options)

    monkeypatch.setattr(models.CellposeModel, "eval", limited)
    return tried


def test_batches_are_halved_until_they_fit(small_gpu: list[int]) -> None:
    assert n_matched(TRUTH, make(batch_size=8)(IMAGE)) >= 38
    assert small_gpu[1:] == [8, 4, 2]


def test_a_gpu_that_is_always_full_is_an_error(small_gpu: list[int]) -> None:
    small_gpu[0] = 0
    with pytest.raises(CapacityError, match=r"The GPU has too little memory for a tile: CUDA out of memory"):
        make(batch_size=8)(IMAGE)
    assert small_gpu[1:] == [8, 4, 2, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="finds no GPU"):
        make(gpu=True)(IMAGE)


# Models


def test_nothing_is_downloaded_in_place_of_what_is_missing() -> None:
    with pytest.raises(ParameterError, match="There is no model file"):
        cellpose_fn("missing/model", normalize=LIMITS)
    other = "cpsam_v2" if MAJOR == 3 else "cyto3"
    with pytest.raises(ValueError, match=f"Cellpose {MAJOR} has no model '{other}'"):
        cellpose_fn(other, normalize=LIMITS)(IMAGE)


def test_published_names_are_asked_for_by_that_name() -> None:
    name = "cyto3" if MAJOR == 3 else "cpsam_v2"
    with pytest.raises(AssertionError, match=rf"something is downloaded: .*{name}"):
        cellpose_fn(name, normalize=LIMITS)(IMAGE)


@pytest.mark.skipif(MAJOR == 3, reason="of Cellpose 4")
def test_fewer_bits_find_the_same_discs() -> None:
    assert n_matched(TRUTH, make(use_bfloat16=True)(IMAGE)) >= 38
