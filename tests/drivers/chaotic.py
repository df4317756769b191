"""A process that labels on workers of its own, to be killed: ``python -m tests.drivers.chaotic FOLDER KIND``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from numpy.typing import NDArray

import blockbuster
from blockbuster import tiling
from tests.helpers import Recording, components

TILE = 8


@dataclass(frozen=True)
class Slow:
    """An `fn` whose calls are recorded, and take so long that processes are killed in the middle of them."""

    folder: Path
    seconds: float = 0.02

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        time.sleep(self.seconds)
        return self.recording(block)

    @property
    def recording(self) -> Recording:
        """Its calls."""
        return Recording(self.folder, components)


def labelled(folder: Path, **options: Any) -> None:
    """Label by a slow function."""
    fn = Slow(folder / "calls")
    blockbuster.tile_process(folder / "image.zarr", fn, tile_shape=TILE, write_to=folder / "made.zarr", **options)


def raster(folder: Path, **options: Any) -> None:
    """Label in the order of SciPy."""
    blockbuster.label(folder / "image.zarr", tile_shape=TILE, write_to=folder / "made.zarr", **options)


def copied(folder: Path, **options: Any) -> None:
    """Copy into other chunks."""
    blockbuster.copy(folder / "image.zarr", folder / "made.zarr", chunks=TILE // 2, tile_shape=(TILE, TILE), **options)


def levels(folder: Path, **options: Any) -> None:
    """Write an image with its pyramid."""
    blockbuster.write_image(
        folder / "image.zarr", folder / "made.zarr", axes="yx", scale=0.5, unit="um", chunks=TILE, n_levels=3, **options
    )


RUNS = {"tile_process": labelled, "label": raster, "copy": copied, "write_image": levels}


def cut_small() -> None:
    """Let each chunk be a tile: those of less than a few MiB are not worth a task otherwise."""
    tiling._SMALL_TILE = 1


def main(folder: Path, kind: str) -> None:
    """Go on with the run, wherever it stopped."""
    cut_small()
    if kind == "processes":
        with dask.config.set(scheduler="processes", num_workers=2):
            labelled(folder, resume=True)
        return
    with blockbuster.make_local_cluster(n_workers=2):
        labelled(folder, resume=True)


if __name__ == "__main__":
    # Functions of the main module are not those of the same name elsewhere.
    from tests.drivers.chaotic import main as imported

    imported(Path(sys.argv[1]), sys.argv[2])
