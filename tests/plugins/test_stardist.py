"""StarDist, the real one with small networks, as a function of a tile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from stardist.models import StarDist2D

from blockbuster import CapacityError, ParameterError, global_percentiles, tile_process
from blockbuster.plugins.stardist import stardist_fn
from tests.plugins.discs import balls, discs, n_matched

# What the libraries warn of among themselves is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

WEIGHTS = Path(__file__).parent / "weights"
IMAGE, TRUTH = discs(seed=100)
OVERLAP = 40
LIMITS = (0.0, 1100.0)


def make(**options: Any) -> Any:
    return stardist_fn(WEIGHTS / "stardist2d", **{"normalize": LIMITS, **options})


def test_whole_images_have_their_discs() -> None:
    assert TRUTH.max() == 40
    assert n_matched(TRUTH, make()(IMAGE)) >= 38


def test_tiled_images_have_the_discs_of_the_whole_image() -> None:
    low, high = global_percentiles(IMAGE, [1, 99.8])
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
    options = {"tile_shape": (128, 128), "overlap": OVERLAP, "merge": "iou", "compute": True}
    with dask.config.set(scheduler="synchronous"):
        expected = tile_process(IMAGE, make(), **options)
    with dask.config.set(scheduler=name, num_workers=2):
        labels = tile_process(IMAGE, make(), **options)
    assert n_matched(TRUTH, expected) >= 38
    np.testing.assert_array_equal(labels, expected)


def test_threads_share_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = StarDist2D.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        loaded.append(threading.get_ident())
        load(self, *args, **kwargs)

    monkeypatch.setattr(StarDist2D, "__init__", counted)
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


@pytest.mark.parametrize("shape", [(24, 64, 64), (1, 64, 64), (2, 9, 30), (1, 24, 64, 64)])
def test_volumes_have_labels_of_their_shape(shape: tuple[int, ...]) -> None:
    image, _ = balls((24, 64, 64), [(12, 16, 16), (12, 48, 48)], 7)
    labels = stardist_fn(WEIGHTS / "stardist3d", dim=3, normalize=LIMITS)(
        image[-shape[-3] :, : shape[-2], : shape[-1]].reshape(shape)
    )
    assert labels.shape == shape


def test_volumes_have_their_balls() -> None:
    image, truth = balls((24, 96, 64), [(12, 16, 16), (11, 16, 48), (12, 47, 32), (13, 80, 16)], 7)
    fn = stardist_fn(WEIGHTS / "stardist3d", dim=3, normalize=LIMITS)
    assert n_matched(truth, fn(image)) == 4
    tiled = tile_process(image, fn, tile_shape=(24, 48, 64), overlap=(0, 24, 0), merge="iou", compute=True)
    assert n_matched(truth, tiled) == 4


def test_an_offset_of_the_whole_image_changes_nothing() -> None:
    fn = make(normalize=(500, 1600))
    assert n_matched(TRUTH, fn(IMAGE + np.uint16(500))) >= 38


def test_percentiles_of_a_tile_are_taken_where_they_are_asked_for() -> None:
    with pytest.warns(UserWarning, match="tiles may disagree"):
        fn = make(normalize=True)
    assert n_matched(TRUTH, fn(IMAGE)) >= 38


@pytest.mark.parametrize("tile", [np.zeros((40, 40), np.uint8), np.full((40, 40), 700.0), np.zeros((0, 3))])
def test_empty_tiles_have_no_labels(tile: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StarDist2D, "__init__", None)
    assert not make()(tile).any()


def test_values_that_are_not_finite_are_refused() -> None:
    tile = IMAGE.astype(np.float32)
    tile[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 65536 voxels of the tile are NaN or infinite"):
        make()(tile)


# A full GPU


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The pieces that were tried on a GPU that takes no less than `small_gpu[0]`."""
    tried: list[tuple[int, ...]] = [(2, 2, 1)]
    predict = StarDist2D.predict_instances

    def limited(self: Any, image: NDArray[Any], *, n_tiles: tuple[int, ...], **options: Any) -> Any:
        tried.append(n_tiles)
        if n_tiles < tried[0]:
            image *= 0
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return predict(self, image, n_tiles=n_tiles, **options)

    monkeypatch.setattr(StarDist2D, "predict_instances", limited)
    return tried


def test_pieces_are_made_smaller_until_they_fit(small_gpu: list[tuple[int, ...]]) -> None:
    assert n_matched(TRUTH, make()(IMAGE)) >= 38
    assert small_gpu[1:] == [(1, 1, 1), (2, 2, 1)]


def test_a_gpu_that_is_always_full_is_an_error(small_gpu: list[tuple[int, ...]]) -> None:
    small_gpu[0] = (99, 99, 1)
    with pytest.raises(CapacityError, match=r"The GPU has too little memory for a tile: OOM when allocating tensor"):
        make()(IMAGE)
    assert small_gpu[1:] == [(1, 1, 1), (2, 2, 1), (4, 4, 1)]


# Models


def test_nothing_is_downloaded_in_place_of_what_is_missing() -> None:
    with pytest.raises(ParameterError, match="There is no model folder"):
        stardist_fn("missing/model", normalize=LIMITS)
    with pytest.raises(ValueError, match=r"StarDist has no model '2D_wrong' with dim=2, but 2D_versatile_fluo"):
        stardist_fn("2D_wrong", normalize=LIMITS)(IMAGE)


def test_a_model_for_volumes_is_none_for_planes() -> None:
    with pytest.raises(ParameterError, match=r"is for 3 axes\. Give dim=3"):
        stardist_fn(WEIGHTS / "stardist3d", normalize=LIMITS)


def test_published_names_are_asked_for_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def published(name: str) -> Any:
        asked.append(name)
        return StarDist2D(None, name="stardist2d", basedir=str(WEIGHTS))

    monkeypatch.setattr(StarDist2D, "from_pretrained", published)
    assert n_matched(TRUTH, stardist_fn("Versatile (fluorescent nuclei)", normalize=LIMITS)(IMAGE)) >= 38
    assert asked == ["Versatile (fluorescent nuclei)"]
