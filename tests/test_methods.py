"""Segmenters by their names, and the one that needs no library of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

import blockbuster
from blockbuster.errors import ParameterError
from blockbuster.methods import find_function, make_method
from blockbuster.plugins.thresholding import threshold_fn
from tests.helpers import assert_same_objects

pytestmark = pytest.mark.usefixtures("synchronous")


def discs(seed: int = 0) -> NDArray[np.float32]:
    """Bright discs on a dark ground, some of which touch at a waist."""
    rng = np.random.default_rng(seed)
    image = np.zeros((96, 96), np.float32)
    y, x = np.mgrid[:96, :96]
    for row in range(4):
        for column in range(4):
            centre = np.array([12 + 24 * row, 12 + 22 * column]) + rng.integers(-1, 2, 2)
            image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 11.5**2] = 100
    return image + rng.normal(0, 2, image.shape).astype(np.float32)


def test_a_threshold_gives_the_components_of_the_whole() -> None:
    image = discs()
    for sigma in (0, 1.5):
        fn = threshold_fn(50, sigma=sigma)
        smooth = scipy.ndimage.gaussian_filter(image, sigma) if sigma else image
        found = blockbuster.tile_process(image, fn, tile_shape=(30, 40), overlap=fn.reach, compute=True)
        assert_same_objects(found, scipy.ndimage.label(smooth > 50)[0])


def test_what_touches_is_split_at_its_waist_as_in_the_whole() -> None:
    image, method = discs(), make_method("otsu", discs(), {"min_distance": 8, "sigma": 1})
    whole = method.fn(image)
    assert scipy.ndimage.label(image > 50)[1] < 16
    assert len(np.unique(whole)) - 1 == 16
    found = blockbuster.tile_process(
        image, method.fn, tile_shape=(48, 48), overlap=method.overlap, merge=method.merge, compute=True
    )
    assert_same_objects(found, whole)


def test_otsu_is_that_of_the_whole_image() -> None:
    image = (discs().clip(0, 120)).astype(np.uint8)
    fn = make_method("otsu", image, {}).fn
    assert abs(fn.threshold - threshold_otsu(image)) < 1
    np.testing.assert_array_equal(fn(image) > 0, image > fn.threshold)


def test_a_segmenter_is_picklable_and_does_not_change_its_tile() -> None:
    tile = discs()
    tile.flags.writeable = False
    fn = pickle.loads(pickle.dumps(threshold_fn(50, sigma=1, min_distance=8)))
    assert fn == threshold_fn(50, sigma=1, min_distance=8)
    assert fn(tile).dtype == np.int32
    assert fn(np.zeros((5, 6), np.uint8)).shape == (5, 6)


def halves(tile: NDArray[Any], above: float = 0) -> NDArray[Any]:
    return (tile > above).astype(np.int32)


def test_a_function_is_taken_with_its_parameters() -> None:
    method = make_method("tests.test_methods:halves", None, {"above": 50})
    np.testing.assert_array_equal(method.fn(discs()), discs() > 50)
    assert make_method("tests.test_methods:halves", None, {}).fn is find_function("tests.test_methods:halves")


def test_models_are_given_the_percentiles_of_the_whole_image(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    image = discs()
    low, high = np.percentile(image.astype(np.float64), [1, 99])
    method = make_method("cellpose", image, {"model": str(tmp_path / "model"), "diameter": 20})
    assert method.fn.pairs == ((low, high),)
    assert (method.merge, method.overlap) == ("iou", 40)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("magic", {}, "method 'magic' is unknown. Choose one of 'threshold', 'otsu', 'cellpose', 'stardist'"),
        ("threshold", {}, "cannot be made with the parameters {}.*'threshold'"),
        ("threshold", {"threshold": "high"}, "threshold 'high' is no finite number"),
        ("threshold", {"threshold": 3, "sigma": -1}, "sigma -1 must be at least 0"),
        ("threshold", {"threshold": 3, "min_distance": 1.5}, "min_distance 1.5 an int"),
        ("otsu", {"size": 3}, "cannot be made with the parameters {'size': 3}"),
        ("tests.test_methods:nothing", {}, "has no attribute 'nothing'"),
        (":f", {}, "is not MODULE:NAME"),
    ],
)
def test_what_is_no_segmenter_is_refused(name: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        make_method(name, discs(), parameters)
