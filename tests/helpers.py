"""What tests compare and measure with."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import scipy.ndimage
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore, WrapperStore


def assert_same_objects(actual: Any, expected: Any) -> None:
    """Assert that two label images are the same up to ids: each id has one partner, 0 has 0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    # Ranks stand for ids: a common dtype of both would round 64-bit ids.
    (ids, a), (others, b) = (np.unique(labels, return_inverse=True) for labels in (actual, expected))
    pairs = np.unique(a.ravel().astype(np.int64) * len(others) + b.ravel())
    assert len(ids) == len(pairs) == len(others), "objects differ"
    assert [bool(ids[p // len(others)]) for p in pairs] == [bool(others[p % len(others)]) for p in pairs], (
        "background differs"
    )


def components(block: NDArray[Any]) -> NDArray[Any]:
    """Label a block by faces: a picklable `fn`."""
    labels: NDArray[Any] = scipy.ndimage.label(block)[0]
    return labels


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """Fail if dask computes anything."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        yield


def padded_blocks(image: NDArray[Any], tile_shape: Sequence[int], overlap: Sequence[int]) -> list[NDArray[Any]]:
    """The padded tiles of an image in row-major order, clipped at its border."""
    starts = itertools.product(*(range(0, n, t) for n, t in zip(image.shape, tile_shape, strict=True)))
    return [
        image[tuple(slice(max(a - o, 0), a + t + o) for a, t, o in zip(start, tile_shape, overlap, strict=True))]
        for start in starts
    ]


@dataclass(frozen=True)
class Recording:
    """An `fn` that keeps each block it is given, in a folder, whatever process calls it."""

    folder: Path
    fn: Callable[[NDArray[Any]], NDArray[Any]] = components

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        path = self.folder / f"{time.monotonic_ns():020d}-{uuid.uuid4().hex}.npy"
        # A killed process must leave whole files only.
        partial = path.with_suffix(".unfinished")
        with open(partial, "xb") as file:
            np.save(file, block)
        partial.rename(path)
        return self.fn(block)

    def blocks(self) -> list[NDArray[Any]]:
        """What `fn` was called with, in the order of the calls."""
        return [np.load(path) for path in sorted(self.folder.glob("*.npy"))]

    @property
    def n_calls(self) -> int:
        """How often `fn` was called."""
        return len(self.blocks())


class CountingStore(WrapperStore[MemoryStore]):
    """A store that keeps which chunks were read."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.read: list[str] = []

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        if key.startswith("c/"):
            self.read.append(key)
        return await super().get(key, *args, **options)


def digest(path: Path) -> dict[str, str]:
    """The content of every file under a path, by name."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leftovers(folder: Path) -> list[str]:
    """Names of stages and incomplete outputs that lie in a folder or below it."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if ".blockbuster-" in p.name or ".partial" in p.name
    )


def write_ome_zarr(
    path: Path,
    levels: Sequence[NDArray[Any]],
    axes: str,
    *,
    version: Literal["0.4", "0.5"] = "0.5",
    channels: Sequence[str] = (),
    chunks: Sequence[int] | None = None,
) -> Path:
    """Write an OME-Zarr image with its metadata as the specification spells them."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    for number, level in enumerate(levels):
        options: dict[str, Any] = {"dimension_names": list(axes)} if version == "0.5" else {}
        group.create_array(str(number), data=np.asarray(level), chunks=tuple(chunks or level.shape), **options)
    kinds = {"t": "time", "c": "channel"}
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": [
            {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [float(2**n)] * len(axes)}]}
            for n in range(len(levels))
        ],
    }
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if channels:
        ome["omero"] = {"channels": [{"label": name} for name in channels]}
    if version == "0.4":
        multiscale["version"] = version
        group.attrs.update(ome)
    else:
        group.attrs["ome"] = {"version": version, **ome}
    return path
