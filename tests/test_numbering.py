"""Local ids and first voxels of one tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockbuster.numbering import first_voxels, number_locally
from tests.oracles import scipy_labels
from tests.strategies import shapes

IDS = st.sampled_from([1, 2, 3, 5, 255, 256, 70_000, 2**31, 2**53 + 1, 2**62, 2**64 - 1])


@st.composite
def padded_labels(draw: st.DrawFn) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """Labels with any ids, and where among them a core is."""
    shape = draw(shapes(max_ndim=3))
    size = int(np.prod(shape))
    ids = np.array([0, *draw(st.lists(IDS, max_size=6))], np.uint64)
    noise = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    core = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        core.append(slice(start, draw(st.integers(start + 1, n))))
    return ids[noise % ids.size].reshape(shape), tuple(core)


@given(padded_labels())
def test_labels_of_the_core_are_numbered_in_their_order_and_ghosts_after_them(
    drawn: tuple[NDArray[Any], tuple[slice, ...]],
) -> None:
    labels, core = drawn
    inside = np.setdiff1d(labels[core], [0])
    ghosts = np.setdiff1d(labels, [0, *inside.tolist()])
    local = number_locally(labels, core, None)
    assert (local.n, local.ghosts) == (inside.size, ghosts.size)
    expected = np.zeros(labels.shape, int)
    for number, label in enumerate([*inside.tolist(), *ghosts.tolist()], 1):
        expected[labels == label] = number
    assert (local.labels == expected).all()


@given(padded_labels())
def test_labels_as_they_were_are_found_again(drawn: tuple[NDArray[Any], tuple[slice, ...]]) -> None:
    labels, core = drawn
    local = number_locally(labels, core, None)
    in_core = np.isin(labels, labels[core])
    assert (local.of(labels)[in_core] == local.labels[in_core]).all()
    if local.ids is not None:
        assert (local.of(labels)[~in_core] == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"])
def test_labels_of_every_dtype_are_numbered(dtype: str) -> None:
    top = np.iinfo(dtype).max
    labels = np.array([[0, top, 3], [3, 0, 7]], dtype)
    local = number_locally(labels, (slice(None),) * 2, None)
    assert local.labels.tolist() == [[0, 3, 1], [1, 0, 2]]


@pytest.mark.parametrize(
    ("n", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")]
)
@pytest.mark.parametrize("known", [True, False])
def test_ids_take_as_few_bytes_as_they_need(n: int, dtype: str, known: bool) -> None:
    labels = np.arange(n + 1, dtype=np.int64)
    local = number_locally(labels, (slice(None),), n if known else None)
    assert local.labels.dtype == dtype
    assert (local.labels == labels).all()


def test_ghosts_count_for_the_width_of_ids() -> None:
    labels = np.arange(301, dtype=np.int32)
    local = number_locally(labels, (slice(0, 200),), None)
    assert (local.n, local.ghosts, local.labels.dtype) == (199, 101, np.uint16)


def test_background_alone_has_no_labels() -> None:
    local = number_locally(np.zeros((3, 4), np.int32), (slice(1, 2), slice(0, 4)), None)
    assert (local.n, local.ghosts) == (0, 0)
    assert not local.labels.any()


def test_more_labels_than_16_bits_hold_keep_their_identity() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(2**40, 200_000, replace=False).reshape(400, 500) + 1
    local = number_locally(labels, (slice(0, 300), slice(None)), None)
    assert (local.n, local.ghosts) == (150_000, 50_000)
    assert np.unique(local.labels).size == labels.size
    assert (np.argsort(labels[:300].ravel()) == np.argsort(local.labels[:300].ravel())).all()


@given(st.data())
def test_first_voxels_are_places_in_the_whole_image(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    start = tuple(data.draw(st.integers(0, 5)) for _ in shape)
    whole = tuple(a + n + data.draw(st.integers(0, 5)) for a, n in zip(start, shape, strict=True))
    size = int(np.prod(shape))
    noise = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(shape)
    labels = scipy_labels(noise > 100).astype(np.uint16)
    image = np.zeros(whole, np.uint16)
    image[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = labels
    ids, first = np.unique(image, return_index=True)
    assert first_voxels(labels, start, whole).tolist() == first[ids > 0].tolist()


def test_first_voxels_beyond_32_bits() -> None:
    labels = np.zeros((2, 2), np.uint8)
    labels[1, 1] = 1
    shape = (2**20, 2**20)
    assert first_voxels(labels, (2**20 - 2, 2**20 - 2), shape).tolist() == [2**40 - 1]
