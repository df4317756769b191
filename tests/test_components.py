"""Components of one block, against scipy and scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster.components import block_components
from tests.oracles import raster_numbered, scipy_labels, value_components
from tests.strategies import images, label_images, shapes


@given(st.data())
def test_components_of_a_mask_are_those_of_scipy(data: st.DataObject) -> None:
    mask = data.draw(shapes().flatmap(lambda shape: images(shape, ["bool"])))
    connectivity = data.draw(st.integers(1, mask.ndim))
    labels, n = block_components(mask, connectivity=connectivity, axes=range(mask.ndim))
    expected = scipy_labels(mask, connectivity)
    assert n == expected.max(initial=0)
    assert (labels == expected).all()


@given(st.data())
def test_components_of_equal_values_are_those_of_scikit_image(data: st.DataObject) -> None:
    image = data.draw(shapes(max_ndim=3).flatmap(label_images))
    connectivity = data.draw(st.integers(1, image.ndim))
    labels, n = block_components(image, connectivity=connectivity, axes=range(image.ndim))
    expected, n_expected = skimage.measure.label(image, background=0, connectivity=connectivity, return_num=True)
    assert n == n_expected
    # With an axis of one voxel scikit-image numbers differently.
    assert (labels == (raster_numbered(expected) if 1 in image.shape else expected)).all()


@given(st.data())
def test_components_of_equal_values_in_any_number_of_axes(data: st.DataObject) -> None:
    image = data.draw(shapes().flatmap(label_images))
    connectivity = data.draw(st.integers(1, image.ndim))
    labels, n = block_components(image, connectivity=connectivity, axes=range(image.ndim))
    assert (labels == value_components(image, connectivity)).all()
    assert n == labels.max(initial=0)


@given(st.data())
def test_components_go_on_along_the_given_axes_only(data: st.DataObject) -> None:
    """As with a structure that is empty beyond the centre of the other axes."""
    image = data.draw(shapes(max_ndim=4).flatmap(lambda shape: images(shape, ["bool"])))
    axes = sorted(data.draw(st.sets(st.integers(0, image.ndim - 1), min_size=1)))
    connectivity = data.draw(st.integers(1, len(axes)))
    structure = scipy.ndimage.generate_binary_structure(image.ndim, connectivity)
    for axis in set(range(image.ndim)) - set(axes):
        structure = structure & (np.indices(structure.shape)[axis] == 1)
    expected, _ = scipy.ndimage.label(image, structure)
    labels, n = block_components(image, connectivity=connectivity, axes=axes)
    assert (labels == expected).all()
    assert n == expected.max(initial=0)


def _mask(*layout: str) -> NDArray[np.bool_]:
    return np.array([[voxel == "#" for voxel in row] for row in layout])


def test_all_arms_of_a_comb_are_one_component() -> None:
    comb = _mask(
        "#.#.#.#.#",
        "#.#.#.#.#",
        "#########",
    )
    assert block_components(comb, connectivity=1, axes=(0, 1))[1] == 1


def test_ids_follow_the_first_voxel_where_a_later_row_joins_two_runs() -> None:
    late = _mask(
        "..#..#..#",
        "..####...",
        "#........",
    )
    labels, n = block_components(late, connectivity=1, axes=(0, 1))
    assert n == 3
    assert labels[0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 2]
    assert labels[2, 0] == 3


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0, 2), (2, 3, 0, 1)])
@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_a_block_without_voxels_has_no_components(shape: tuple[int, ...], dtype: str) -> None:
    labels, n = block_components(np.zeros(shape, dtype), connectivity=1, axes=range(len(shape)))
    assert (labels.shape, n) == (shape, 0)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1, 1)])
def test_one_voxel_is_one_component(shape: tuple[int, ...]) -> None:
    labels, n = block_components(np.ones(shape, bool), connectivity=len(shape), axes=range(len(shape)))
    assert (labels.tolist(), n) == (np.ones(shape, int).tolist(), 1)


@pytest.mark.parametrize("transform", [np.asfortranarray, lambda a: a[::-1], lambda a: a[:, ::2], np.transpose])
def test_layout_in_memory_does_not_matter(transform: Any) -> None:
    block = transform(np.random.default_rng(1).random((20, 21)) < 0.6)
    assert (block_components(block, connectivity=2, axes=(0, 1))[0] == scipy_labels(block, 2)).all()


def test_input_is_not_changed() -> None:
    block = np.random.default_rng(2).integers(0, 3, (20, 20, 20))
    before = block.copy()
    block_components(block, connectivity=3, axes=(0, 1, 2))
    assert (block == before).all()


def test_more_components_than_16_bits_count() -> None:
    checkers = np.indices((600, 600)).sum(0) % 2 == 0
    labels, n = block_components(checkers, connectivity=1, axes=(0, 1))
    assert n == 180_000
    assert (labels == scipy_labels(checkers)).all()


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 3, 3), (3, 3, 3, 3)])
def test_values_of_64_bits(value: int, shape: tuple[int, ...]) -> None:
    block = np.zeros(shape, np.uint64)
    block[(-1,) * len(shape)] = value
    for first in (0, value - 1):
        block[(0,) * len(shape)] = first
        assert (block_components(block, connectivity=1, axes=range(len(shape)))[0] == value_components(block)).all()
