"""`detect_blobs`: whatever the tiles, the blobs that the detectors of scikit-image find in the whole image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow.parquet
import pytest
import scipy.ndimage
import skimage.data
import skimage.feature
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import rgb2gray

import blockbuster
from blockbuster import detectors, spots
from blockbuster.detectors import Scales, make_detector, pruning_reach, settled
from blockbuster.errors import GeometryError, OutputError, OutputExistsError, ParameterError, TileError
from tests.helpers import Recording, digest, leftovers, nothing_computed, write_ome_zarr

synchronous = pytest.mark.usefixtures("synchronous")
WHOLE = {"log": skimage.feature.blob_log, "dog": skimage.feature.blob_dog, "doh": skimage.feature.blob_doh}


def rows(blobs: Any) -> list[tuple[float, ...]]:
    """Rows in an order of their own: each as often as it is there."""
    return sorted(map(tuple, np.asarray(blobs).tolist()))


def spotted(shape: Sequence[int], n: int, sigma: float, seed: int = 0) -> NDArray[np.float64]:
    """Gaussian spots of height 1 at random voxels, and noise."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, shape, (n, len(shape))).astype(int)
    image = np.zeros(shape)
    image[tuple(points.T)] = 1
    peak = 1 / ((2 * np.pi) ** 0.5 * sigma) ** len(shape)
    return scipy.ndimage.gaussian_filter(image, sigma) / peak + rng.normal(0, 0.01, shape)


NUCLEI = Path(__file__).parents[2] / "shared" / "data"
NOISE = np.random.default_rng(1).random((90, 80))
LOOK = {"min_sigma": 1, "max_sigma": 3, "num_sigma": 3, "threshold": 0.05}


# The whole image's


@pytest.fixture(scope="module")
def volume() -> NDArray[np.float64]:
    """220 spots of sigma 2, some of which overlap."""
    rng = np.random.default_rng(0)
    shape = (48, 160, 160)
    points = np.stack([rng.uniform(0, n, 220) for n in shape], axis=1).astype(int)
    image = np.zeros(shape)
    image[tuple(points.T)] = 1
    return scipy.ndimage.gaussian_filter(image, 2) * ((2 * np.pi) ** 1.5 * 8) + rng.normal(0, 0.01, shape)


VOLUME_LOOK = {"min_sigma": 1.5, "max_sigma": 3, "num_sigma": 4, "threshold": 0.12, "overlap": 0.5}


@pytest.fixture(scope="module")
def of_the_volume(volume: NDArray[np.float64]) -> list[tuple[float, ...]]:
    """What scikit-image finds in all of it."""
    return rows(skimage.feature.blob_log(volume, **VOLUME_LOOK))


def test_the_spots_of_a_volume_are_those_of_the_whole_on_every_scheduler(
    scheduler: str, volume: NDArray[np.float64], of_the_volume: list[tuple[float, ...]], tmp_path: Path
) -> None:
    stored = zarr.create_array(tmp_path / "image.zarr", data=volume, chunks=(24, 64, 64))
    found = blockbuster.detect_blobs(stored, tile_shape=(24, 64, 64), **VOLUME_LOOK)
    assert found.shape[1] == 4
    assert np.isnan(found.shape[0])
    assert len(of_the_volume) == 213
    assert rows(found) == of_the_volume


@pytest.mark.parametrize("kind", ["numpy", "dask graph"])
def test_spots_of_images_that_are_not_stored_are_the_same(
    kind: str, volume: NDArray[np.float64], of_the_volume: list[tuple[float, ...]]
) -> None:
    image = volume if kind == "numpy" else da.from_array(volume, chunks=(30, 70, 90)).map_blocks(np.copy)
    assert rows(blockbuster.detect_blobs(image, tile_shape=(25, 80, 80), **VOLUME_LOOK, compute=True)) == of_the_volume


@synchronous
@pytest.mark.filterwarnings("ignore:overlap:UserWarning")
@given(st.data())
def test_tiles_change_nothing(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["log", "dog", "doh"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=2 if method == "doh" else 3)))
    # Three axes of 40 voxels are many for one test.
    shape = tuple(min(n, 50 // len(shape)) for n in shape)
    tiles = tuple(data.draw(st.integers(min(8, n), n + 3)) for n in shape)
    image = np.random.default_rng(data.draw(st.integers(0, 1000))).random(shape)
    if data.draw(st.booleans()):
        image = scipy.ndimage.gaussian_filter(image, 1)
    least = data.draw(st.floats(0.7, 2))
    look = {
        "method": method,
        "min_sigma": least,
        "max_sigma": least * data.draw(st.floats(1, 2)),
        "threshold": data.draw(st.sampled_from([0.001, 0.01, 0.05])),
        "overlap": data.draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])),
    }
    look |= {"sigma_ratio": 1.3} if method == "dog" else {"num_sigma": 3}
    # Stored, so that a tile can read as much more as rows of overlapping blobs take.
    stored = zarr.array(image, chunks=shape)
    found = blockbuster.detect_blobs(stored, tile_shape=tiles, **look, compute=True)
    one = blockbuster.detect_blobs(image, tile_shape=shape, **look, compute=True)
    assert rows(found) == rows(one)
    if look["overlap"] == 1:
        # Nothing is left out, so nothing depends on an order of pairs.
        whole = WHOLE[look.pop("method")](image, **look)
        assert rows(one) == rows(whole)


@synchronous
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int16", "float32", "float64"])
def test_values_are_taken_as_scikit_image_takes_them(dtype: str) -> None:
    image = np.clip(spotted((60, 70), 20, 2), 0, 1)
    scale = 1 if dtype.startswith("float") else 100 if dtype == "uint8" else 30_000
    image = image > 0.4 if dtype == "bool" else (image * scale).astype(dtype)
    look = LOOK | {"threshold": 0.1}
    whole = skimage.feature.blob_log(image, **look)
    assert len(whole) > 5
    assert rows(blockbuster.detect_blobs(image, tile_shape=(32, 35), **look, compute=True)) == rows(whole)


@pytest.mark.parametrize("method", ["log", "dog", "doh"])
def test_galaxies_of_a_photograph_are_those_of_the_whole(method: str) -> None:
    image = rgb2gray(skimage.data.hubble_deep_field())
    look = {"max_sigma": 30, "threshold": 0.01 if method == "doh" else 0.1}
    whole = WHOLE[method](image, **look)
    found = blockbuster.detect_blobs(image, method=method, tile_shape=(436, 500), **look, compute=True)
    assert len(whole) > 200
    assert rows(found) == rows(whole)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="needs the images beside the checkout")
@pytest.mark.parametrize(
    ("name", "tile_shape", "least"), [("img2d.tif", (200, 150), 150), ("img3d.tif", (31, 40, 57), 50)]
)
def test_nuclei_of_microscopes_are_those_of_the_whole(name: str, tile_shape: tuple[int, ...], least: int) -> None:
    image = tifffile.imread(NUCLEI / name)
    look = {"min_sigma": 2, "max_sigma": 6, "num_sigma": 5, "threshold": 0.02 * image.max() / np.iinfo(image.dtype).max}
    whole = skimage.feature.blob_log(image, **look)
    found = blockbuster.detect_blobs(NUCLEI / name, tile_shape=tile_shape, **look, compute=True)
    assert len(whole) > least
    assert rows(found) == rows(whole)


@synchronous
@pytest.mark.parametrize("ratio", [1.2, 1.6, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_filter_of_the_difference_is_known(ratio: float, dtype: str, monkeypatch: Any) -> None:
    used: list[float] = []

    def gaussian(image: NDArray[Any], sigma: NDArray[Any], **options: Any) -> NDArray[Any]:
        used.append(float(np.max(sigma)))
        return image

    monkeypatch.setattr("skimage.filters.gaussian", gaussian)
    monkeypatch.setattr("skimage.feature.blob.gaussian", gaussian)
    for most in (1.0, 2.0, 4.0, 2 * ratio**3, 7.3):
        used.clear()
        detector = make_detector("dog", Scales((1.0, 1.0), (most, most), True, ratio=ratio), 0.1)
        detector.candidates(np.zeros((4, 4), dtype))
        ours = sorted(used)
        used.clear()
        skimage.feature.blob_dog(np.zeros((4, 4), dtype), 1.0, most, ratio, threshold=0.1)
        assert sorted(used) == ours
        assert max(used) <= detector.largest[0] * (1 + 1e-6)
        assert max(used) >= detector.largest[0] / ratio * (1 - 1e-6)


@synchronous
@pytest.mark.parametrize("method", ["log", "dog", "doh"])
def test_nothing_beyond_the_reach_has_a_say(method: str) -> None:
    detector = make_detector(method, Scales((1.0, 1.0), (3.0, 3.0), True, n=4), 0.0001)
    (reach, _), side = detector.reach, 2 * 40 + 1
    image = np.random.default_rng(3).random((side, side))
    here = detector.candidates(image)
    core = here[(abs(here[:, :2] - 40) <= 40 - reach).all(axis=1)]
    around = np.pad(image, 20, mode="linear_ramp", end_values=7)
    there = detector.candidates(around)
    there[:, :2] -= 20
    assert set(map(tuple, core)) <= set(map(tuple, there))
    assert len(core) > 5


# Blobs that overlap


@given(st.integers(1, 3), st.booleans(), st.integers(0, 10_000))
def test_shares_are_those_of_scikit_image(ndim: int, is_one: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_sigmas = 1 if is_one else ndim
    blobs = np.column_stack([rng.uniform(0, 4, (12, ndim)), rng.uniform(0.5, 2, (12, 1)) * np.ones(n_sigmas)])
    one, other = blobs[:6], blobs[6:]
    expected = [skimage.feature.blob._blob_overlap(a, b, sigma_dim=n_sigmas) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(detectors._shares(one, other, ndim), expected, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.integers(0, 10_000))
def test_no_blob_beyond_the_reach_takes_the_place_of_another(ndim: int, overlap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = Scales((1.0,) * ndim, (3.0,) * ndim, True)
    reach = np.array(pruning_reach(make_detector("log", scales, 0.1), overlap))
    blobs = np.column_stack([rng.integers(0, 20, (40, ndim)), rng.uniform(1, 3, 40)]).astype(float)
    first, second = np.triu_indices(40, 1)
    much = detectors._shares(blobs[first], blobs[second], ndim) > overlap
    apart = abs(blobs[first] - blobs[second])[:, :ndim]
    assert (apart[much] <= reach).all()


@given(st.sampled_from([0.1, 0.5, 0.7]), st.integers(0, 10_000))
def test_the_larger_of_two_stays(overlap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Pairs far from each other: what scikit-image leaves does not depend on the order of pairs.
    centres = np.repeat(np.arange(10) * 100.0, 2)[:, None] + rng.uniform(0, 3, (20, 2))
    blobs = np.column_stack([centres, rng.integers(1, 3, 20)])
    status = settled(blobs, overlap, 2, np.zeros(20, np.bool_))
    expected = skimage.feature.blob._prune_blobs(blobs.copy(), overlap)
    assert rows(blobs[status > 0]) == rows(expected)
    assert not (status < 0).any()


def test_a_row_of_overlapping_blobs_is_followed_beyond_the_halo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Each is a little larger than the one before, and lies within its reach: what stays of the last depends on all.
    image = np.zeros((60, 400))
    y, x = np.mgrid[:60, :400]
    for k in range(12):
        sigma = 2 + 0.35 * k
        image += np.exp(-((y - 30) ** 2 + (x - 60 - 5.5 * k) ** 2) / (2 * sigma**2))
    look = {"min_sigma": 2, "max_sigma": 6, "num_sigma": 12, "threshold": 0.01, "overlap": 0.3}
    stored = zarr.create_array(tmp_path / "image.zarr", data=image + 0.2 * np.random.default_rng(0).random(image.shape))
    one = blockbuster.detect_blobs(stored, tile_shape=(60, 400), **look, compute=True)
    grown: list[Any] = []
    really = spots.Blobs.grown

    def counted(self: spots.Blobs, *arguments: Any) -> Any:
        grown.append(arguments)
        return really(self, *arguments)

    monkeypatch.setattr(spots.Blobs, "grown", counted)
    for width in (66, 75, 90):
        found = blockbuster.detect_blobs(stored, tile_shape=(60, width), **look, compute=True)
        assert rows(found) == rows(one)
    assert grown


@synchronous
def test_a_row_that_leaves_what_a_task_was_given_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spots, "_LONG_CHAIN", 1)
    look = LOOK | {"max_sigma": 6, "num_sigma": 10, "threshold": 0.02}
    image = da.from_array(np.random.default_rng(1).random((150, 150)), chunks=50).map_blocks(np.copy)
    with pytest.raises(TileError, match="Store the image first"):
        blockbuster.detect_blobs(image, tile_shape=(50, 50), **look, compute=True)


# Axes


@synchronous
def test_sigmas_may_differ_per_axis() -> None:
    image = scipy.ndimage.gaussian_filter(spotted((40, 90), 15, 1), (1, 2))
    look = LOOK | {"min_sigma": (1, 2), "max_sigma": (2, 4), "threshold": 0.02}
    whole = skimage.feature.blob_log(image, **look)
    found = blockbuster.detect_blobs(image, tile_shape=(20, 45), **look, compute=True)
    assert found.shape == whole.shape == (len(whole), 4)
    assert len(whole) > 3
    assert rows(found) == rows(whole)


@synchronous
def test_sigmas_in_units_make_balls_of_voxels_that_are_no_cubes() -> None:
    image = spotted((40, 60), 12, 2)
    look = LOOK | {"threshold": 0.1}
    found = blockbuster.detect_blobs(image, voxel_size=(2.0, 0.5), sigma_in_units=True, tile_shape=(40, 60), **look)
    per_axis = look | {"min_sigma": (0.5, 2.0), "max_sigma": (1.5, 6.0)}
    assert rows(found) == rows(skimage.feature.blob_log(image, **per_axis))


@synchronous
@pytest.mark.parametrize("way", ["store", "channel_axis"])
def test_channels_and_times_are_searched_apart(way: str, tmp_path: Path) -> None:
    image = np.stack([[spotted((50, 60), 10, 2, seed=10 * t + c) for c in range(2)] for t in range(2)])
    expected = [
        (t, c, *row) for t in range(2) for c in range(2) for row in skimage.feature.blob_log(image[t, c], **LOOK)
    ]
    if way == "store":
        path = write_ome_zarr(tmp_path / "image.zarr", [image], "tcyx", chunks=(1, 2, 25, 30))
        found = blockbuster.detect_blobs(path, channel=None, **LOOK, compute=True)
        assert rows(found) == sorted(expected)
        assert rows(blockbuster.detect_blobs(path, channel=1, **LOOK)) == sorted(
            (t, *row) for t, c, *row in expected if c == 1
        )
    else:
        found = blockbuster.detect_blobs(image[0], channel_axis=0, tile_shape=(2, 25, 60), **LOOK, compute=True)
        assert rows(found) == sorted((c, *row) for t, c, *row in expected if t == 0)


@synchronous
@pytest.mark.parametrize("edge", [0, 5, (3, 9)])
def test_the_border_of_the_image_may_be_left_out(edge: Any) -> None:
    whole = skimage.feature.blob_log(NOISE, **LOOK | {"overlap": 1.0}, exclude_border=edge)
    found = blockbuster.detect_blobs(NOISE, tile_shape=(40, 50), exclude_border=edge, **LOOK | {"overlap": 1.0})
    assert rows(found) == rows(whole)


@synchronous
def test_a_mask_keeps_what_is_centred_in_it() -> None:
    mask = np.zeros(NOISE.shape, np.uint8)
    mask[:30, 20:70] = 1
    whole = blockbuster.detect_blobs(NOISE, tile_shape=NOISE.shape, **LOOK, compute=True)
    found = blockbuster.detect_blobs(NOISE, mask=mask, tile_shape=(32, 40), **LOOK, compute=True)
    assert rows(found) == rows([row for row in whole if mask[int(row[0]), int(row[1])]])


# Tiles without blobs


@dataclass(frozen=True)
class Counting:
    """A detector that records the blocks that it searches."""

    recording: Recording

    def __call__(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def candidates(detector: Any, block: NDArray[Any]) -> Any:
            self.recording(block)
            return really(detector, block)

        return candidates


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """The blocks that are searched."""
    (tmp_path / "calls").mkdir()
    recording = Recording(tmp_path / "calls", fn=lambda block: block)
    for kind in (detectors.LaplacianOfGaussian, detectors.DifferenceOfGaussians):
        monkeypatch.setattr(kind, "candidates", Counting(recording)(kind.candidates))
    return recording


@synchronous
@pytest.mark.parametrize("method", ["log", "dog"])
def test_tiles_in_which_nothing_can_exceed_the_threshold_are_not_searched(method: str, searched: Recording) -> None:
    image = np.full((120, 120), 0.3)
    image[20, 30] = 40
    found = blockbuster.detect_blobs(
        image, method=method, tile_shape=(40, 40), min_sigma=1, max_sigma=2, threshold=0.2, compute=True
    )
    assert len(found) == 1
    # The tile of the spot, and those that see it in their halo.
    assert searched.n_calls == 2


@given(st.sampled_from(["log", "dog"]), st.integers(1, 3), st.floats(0.5, 3), st.integers(0, 10_000))
def test_no_response_exceeds_what_is_taken_for_possible(method: str, ndim: int, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Values at both ends only come closest to what is possible.
    image = rng.choice([-1.0, 3.0], (12,) * ndim)
    scales = Scales((sigma,) * ndim, (1.5 * sigma,) * ndim, True, n=2)
    most = max(
        -scipy.ndimage.gaussian_laplace(image, s).min() * 0 + (-scipy.ndimage.gaussian_laplace(image, s)).max() * s**2
        for s in (sigma, 1.5 * sigma)
    )
    if method == "dog":
        blurred = [scipy.ndimage.gaussian_filter(image, sigma * 1.6**k) for k in range(3)]
        most = max((a - b).max() / 0.6 for a, b in itertools.pairwise(blurred))
    assert make_detector(method, scales, most * (1 - 1e-9)).may_find(np.float64(-1), np.float64(3))


@synchronous
def test_tiles_below_a_limit_are_not_searched(searched: Recording) -> None:
    image = spotted((80, 80), 0, 2) + 0.1
    image[10, 10] = 9
    blockbuster.detect_blobs(image, tile_shape=(40, 40), **LOOK | {"threshold": 0}, compute=True)
    assert searched.n_calls == 4
    options = LOOK | {"threshold": 0.0, "skip_empty": True, "empty_threshold": 5}
    blockbuster.detect_blobs(image, tile_shape=(40, 40), **options, compute=True)
    assert searched.n_calls == 4 + 1


@synchronous
def test_each_tile_is_searched_once(searched: Recording) -> None:
    found = blockbuster.detect_blobs(NOISE, tile_shape=(45, 40), border=20, **LOOK)
    assert searched.n_calls == 0
    found.compute()
    assert sorted(block.shape for block in searched.blocks()) == [(65, 60)] * 4


# A function of one's own


def brightest(block: NDArray[Any]) -> NDArray[Any]:
    """A detector without scales: the local maxima above a half, with sigma 1."""
    places = skimage.feature.peak_local_max(block, threshold_abs=0.9, exclude_border=False)
    return np.column_stack([places, np.ones(len(places))])


def test_a_function_is_a_detector_on_every_scheduler(scheduler: str) -> None:
    image = np.stack([NOISE, NOISE[::-1]])
    found = blockbuster.detect_blobs(image, method=brightest, border=2, channel_axis=0, tile_shape=(1, 30, 30))
    expected = [(c, *row) for c in range(2) for row in brightest(image[c])]
    assert rows(found) == sorted(expected)


def test_a_function_needs_a_border() -> None:
    with pytest.raises(ParameterError, match="Give border="):
        blockbuster.detect_blobs(NOISE, method=brightest)


# Tables


def test_a_table_has_a_column_for_everything(scheduler: str, tmp_path: Path) -> None:
    image = np.stack([spotted((50, 60), 10, 2, seed=c) for c in range(2)])
    path = tmp_path / "image.ome.zarr"
    blockbuster.write_image(image, path, axes="cyx", scale=(1, 0.25, 0.5), unit="um", n_levels=1, chunks=(1, 32, 32))
    stored = blockbuster.detect_blobs(path, channel=None, write_to=tmp_path / "blobs.parquet", **LOOK)
    table = pyarrow.parquet.read_table(tmp_path / "blobs.parquet")
    lazy = np.asarray(blockbuster.detect_blobs(path, channel=None, **LOOK))
    names = ["channel", "y", "x", "sigma", "radius", "radius_physical_y", "radius_physical_x", "tile"]
    assert table.column_names == names
    np.testing.assert_array_equal(stored, lazy)
    table = {name: table[name].to_numpy() for name in names}
    np.testing.assert_array_equal(np.column_stack([table[name] for name in names[:4]]), lazy)
    np.testing.assert_array_equal(table["radius"], np.sqrt(2) * lazy[:, 3])
    np.testing.assert_array_equal(table["radius_physical_x"], np.sqrt(2) * lazy[:, 3] * 0.5)
    tile = 4 * table["channel"] + 2 * (table["y"] >= 32) + (table["x"] >= 32)
    np.testing.assert_array_equal(table["tile"], tile)
    schema = pyarrow.parquet.read_schema(tmp_path / "blobs.parquet")
    assert schema.field("radius_physical_y").metadata == {b"unit": b"micrometer"}
    assert table["channel"].dtype == table["tile"].dtype == np.int64
    assert leftovers(tmp_path) == []


@synchronous
def test_columns_of_the_other_kinds_of_sigmas(tmp_path: Path) -> None:
    def names(**options: Any) -> list[str]:
        path = tmp_path / "blobs.parquet"
        blockbuster.detect_blobs(NOISE, write_to=path, overwrite=True, **LOOK | options)
        return list(pyarrow.parquet.read_schema(path).names)

    assert names() == ["y", "x", "sigma", "radius", "tile"]
    assert names(voxel_size=2.0) == ["y", "x", "sigma", "radius", "radius_physical", "tile"]
    anisotropic = ["y", "x", "sigma_y", "sigma_x", "radius_y", "radius_x"]
    assert names(min_sigma=(1, 1)) == [*anisotropic, "tile"]
    physical = ["radius_physical_y", "radius_physical_x"]
    assert names(voxel_size=(2, 1), sigma_in_units=True) == [*anisotropic, *physical, "tile"]
    assert names(method=brightest, border=1) == ["y", "x", "sigma", "tile"]
    assert names(channel_axis=0) == ["channel", "x", "sigma", "radius", "tile"]


@synchronous
def test_an_image_without_blobs_has_an_empty_table(tmp_path: Path) -> None:
    empty = np.zeros((64, 64), np.uint8)
    assert blockbuster.detect_blobs(empty, tile_shape=(32, 32), **LOOK, compute=True).shape == (0, 3)
    table = blockbuster.detect_blobs(empty, tile_shape=(32, 32), **LOOK, write_to=tmp_path / "none.parquet")
    assert table.shape == (0, 3)
    assert np.asarray(table).shape == (0, 3)
    assert pyarrow.parquet.read_schema(tmp_path / "none.parquet").names == ["y", "x", "sigma", "radius", "tile"]
    assert blockbuster.detect_blobs(empty, block_ids=[], **LOOK, compute=True).shape == (0, 3)
    assert blockbuster.detect_blobs(np.zeros((0, 9)), **LOOK, compute=True).shape == (0, 3)


@synchronous
def test_some_tiles_have_their_rows_only() -> None:
    table = blockbuster.detect_blobs(NOISE, tile_shape=(45, 40), block_ids=[1, 2], **LOOK, compute=True)
    whole = blockbuster.detect_blobs(NOISE, tile_shape=NOISE.shape, **LOOK, compute=True)
    assert rows(table) == rows([r for r in whole if (r[0] < 45) != (r[1] < 40)])


@dataclass(frozen=True)
class FailingOnce:
    """A detector that fails on one tile until a file is there."""

    calls: Recording
    allowed: Path

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        self.calls(block)
        if not self.allowed.exists() and block[0, 0] == NOISE[40, 38]:
            raise ZeroDivisionError("no")
        return brightest(block)


def test_a_run_that_failed_goes_on(many: str, tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    method = FailingOnce(Recording(tmp_path / "calls", fn=brightest), tmp_path / "allowed")
    stored = zarr.create_array(tmp_path / "image.zarr", data=NOISE, chunks=(30, 40))
    options: dict[str, Any] = {"method": method, "border": 2, "tile_shape": (42, 40), "resume": True}
    with pytest.raises(TileError, match="no"):
        blockbuster.detect_blobs(stored, write_to=tmp_path / "blobs.parquet", **options)
    assert not (tmp_path / "blobs.parquet").exists()
    assert [name for name in leftovers(tmp_path) if "partial" in name] == []
    failed = method.calls.n_calls
    method.allowed.touch()
    blockbuster.detect_blobs(stored, write_to=tmp_path / "blobs.parquet", **options)
    assert method.calls.n_calls == failed + 1
    before = digest(tmp_path / "blobs.parquet")
    # And then it is there.
    again = blockbuster.detect_blobs(stored, write_to=tmp_path / "blobs.parquet", **options)
    assert method.calls.n_calls == failed + 1
    assert digest(tmp_path / "blobs.parquet") == before
    assert rows(again) == rows(brightest(NOISE))
    assert leftovers(tmp_path) == []


@synchronous
def test_a_table_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "blobs.parquet"
    path.write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="overwrite=True"):
            blockbuster.detect_blobs(NOISE, write_to=path, resume=resume, **LOOK)
    assert path.read_bytes() == b"mine"
    blockbuster.detect_blobs(NOISE, write_to=path, overwrite=True, **LOOK)
    assert pyarrow.parquet.read_metadata(path).num_rows > 0


# What is asked for


def test_nothing_is_computed_before_it_is_asked_for(tmp_path: Path) -> None:
    with nothing_computed():
        blockbuster.detect_blobs(zarr.create_array(tmp_path / "a.zarr", data=NOISE, chunks=(40, 40)), **LOOK)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "sift"}, ParameterError, "'sift' is unknown. Choose one of 'log', 'dog', 'doh'"),
        ({"threshold_rel": 0.1}, ParameterError, "global_percentiles"),
        ({"threshold": "high"}, ParameterError, "threshold 'high' is no finite number"),
        ({"min_sigma": 0}, ParameterError, "min_sigma 0 is not a positive number"),
        ({"max_sigma": (3, 3, 3)}, ParameterError, "has 3 entries, the image has 2 axes of space"),
        ({"min_sigma": 4}, ParameterError, "min_sigma 4 exceeds max_sigma 3"),
        ({"num_sigma": 0}, ParameterError, "num_sigma 0 is no int of at least 1"),
        ({"sigma_ratio": 1}, ParameterError, "sigma_ratio 1 is no number above 1"),
        ({"overlap": 1.5}, ParameterError, "overlap 1.5 is no share of a blob"),
        ({"method": "doh", "min_sigma": (1, 2)}, ParameterError, "method 'doh' finds round blobs"),
        ({"threshold": -0.1}, ParameterError, "threshold -0.1 is below 0"),
        ({"method": ["log"]}, ParameterError, "neither a name nor a function"),
        ({"min_sigma": np.array(0.0)}, ParameterError, "is not a positive number"),
        ({"empty_threshold": 3}, ParameterError, "no effect without skip_empty=True"),
        ({"channel_axis": 5}, GeometryError, "channel_axis 5 is none of the 2 axes"),
        ({"sigma_in_units": True}, ParameterError, "Give voxel_size="),
        ({"voxel_size": -1}, ParameterError, "voxel_size -1 is not a positive number"),
        ({"border": -1}, GeometryError, "border .* entry below 0"),
        ({"skip_empty": True}, ParameterError, "needs empty_threshold"),
        ({"mask": np.ones((3, 3))}, GeometryError, "They must be the same"),
        ({"write_to": "blobs.csv"}, ParameterError, "ends in '.parquet'"),
        ({"block_ids": [7]}, GeometryError, "not all numbers of tiles"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with nothing_computed(), pytest.raises(error, match=words):
        blockbuster.detect_blobs(NOISE, **LOOK | options)


def test_images_of_other_numbers_are_refused() -> None:
    with nothing_computed(), pytest.raises(ParameterError, match="The image has dtype complex128"):
        blockbuster.detect_blobs(NOISE.astype(complex), **LOOK)


def test_a_channel_is_picked_once(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "image.zarr", [np.zeros((2, 3, 8, 8))], "czyx")
    with pytest.raises(ParameterError, match="channel 1 of the image is picked already"):
        blockbuster.detect_blobs(path, channel=1, channel_axis=0, **LOOK)


@synchronous
def test_another_size_of_voxels_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "blobs.parquet"
    blockbuster.detect_blobs(NOISE, voxel_size=1.0, write_to=path, **LOOK)
    with pytest.raises(OutputExistsError):
        blockbuster.detect_blobs(NOISE, voxel_size=2.0, write_to=path, resume=True, **LOOK)


@synchronous
def test_a_table_that_was_replaced_is_not_read_as_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "blobs.parquet"
    old = blockbuster.detect_blobs(NOISE, write_to=path, **LOOK)
    blockbuster.detect_blobs(NOISE, write_to=path, overwrite=True, **LOOK | {"threshold": 0.1})
    with pytest.raises(OutputError, match="was replaced since"):
        old.compute()


def test_no_pair_of_candidates_is_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(skimage.feature.blob, "_blob_overlap")
    for method in WHOLE:
        assert len(blockbuster.detect_blobs(NOISE, method=method, **LOOK | {"threshold": 0.001}, compute=True)) > 5


@synchronous
@pytest.mark.parametrize("method", ["log", "dog"])
def test_rounding_counts_where_the_threshold_is_zero(method: str) -> None:
    # Small: scikit-image looks at pairs of blobs one by one, and here each voxel is one.
    image = np.full((26, 26), 1000.0)
    image[5, 5] += 100
    look = {"min_sigma": 1, "max_sigma": 2, "threshold": 0, "overlap": 1.0}
    found = blockbuster.detect_blobs(image, method=method, tile_shape=(13, 13), **look, compute=True)
    assert rows(found) == rows(WHOLE[method](image, **look))


def test_a_plan_tells_what_a_search_takes(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path / "image.zarr", data=NOISE, chunks=(45, 40))
    for write_to in (None, tmp_path / "blobs.parquet"):
        made = blockbuster.plan(stored, operation="detect_blobs", write_to=write_to, time_tiles=2, **LOOK)
        # ceil(4 * 3) + 1 + ceil(3 * sqrt(2))
        assert made.overlap == (18, 18)
        assert made.n_tiles == 4
        assert made.voxels_read == (63 + 63) * (58 + 58)
        assert made.seconds is not None
    assert {path.name for path in tmp_path.iterdir()} == {"image.zarr", "system-tmp"}
    # Tasks that cannot read themselves are given enough for four in a row.
    given_all = blockbuster.plan(NOISE, operation="detect_blobs", tile_shape=(45, 40), time_tiles=0, **LOOK)
    assert given_all.voxels_read == (78 + 78) * (73 + 73)
