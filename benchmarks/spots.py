"""Find spots in a volume, against scikit-image on the same padded tiles alone; and prune a million blobs.

    python benchmarks/spots.py                                         # 512 x 1024 x 1024 voxels, some minutes
    python benchmarks/spots.py --shape 64 128 128 --tile 32 64 64 --rounds 1 --blobs 1000

Both search the same tiles with the same borders, two at a time on threads, and keep the blobs in their cores; the
contestant without us does nothing else: no stage, no table, no row that is followed. What the detector takes of memory
for the whole image is told beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from harness import in_process, in_turns, run_one, table
from numpy.typing import NDArray

import blockbuster
from blockbuster.detectors import Scales, make_detector
from blockbuster.grid import Tile, TileGrid
from blockbuster.parquet import TableFile
from blockbuster.spots import halo_of

N_WORKERS = 2
LOOK: dict[str, Any] = {"min_sigma": 1.5, "max_sigma": 2.5, "num_sigma": 2, "threshold": 0.005}
SPOTS_PER_VOXEL = 1e-4


def store_spots(shape: tuple[int, ...], chunk: tuple[int, ...], folder: Path) -> Path:
    """Spots and noise as uint16, chunk by chunk."""
    path = folder / "spots.zarr"
    image = zarr.create_array(path, shape=shape, chunks=chunk, dtype="uint16")
    grid, rng = TileGrid.regular(shape, chunk), np.random.default_rng(0)
    z, y, x = np.mgrid[-6:7, -6:7, -6:7]
    spot = (2000 * np.exp(-(z**2 + y**2 + x**2) / 8)).astype(np.uint16)
    for tile in grid.tiles():
        block = rng.integers(100, 200, tile.shape, dtype=np.uint16)
        for corner in rng.integers(0, np.maximum(np.array(tile.shape) - 12, 1), (int(block.size * SPOTS_PER_VOXEL), 3)):
            part = block[tuple(slice(c, c + 13) for c in corner)]
            part += spot[tuple(slice(n) for n in part.shape)]
        image[tile.core] = block
    return path


def with_us(image: str, tile: tuple[int, ...], out: str) -> None:
    """All of it, to a table."""
    with dask.config.set(scheduler="threads", num_workers=N_WORKERS):
        blockbuster.detect_blobs(image, tile_shape=tile, write_to=out, overwrite=True, **LOOK)


def alone(image: str, tile: tuple[int, ...], out: str) -> None:
    """The detector on each padded tile, and the blobs in its core."""
    from skimage.feature import blob_log

    stored = zarr.open_array(image, mode="r")
    scales = Scales((LOOK["min_sigma"],) * 3, (LOOK["max_sigma"],) * 3, True, LOOK["num_sigma"])
    grid = TileGrid.regular(stored.shape, tile, halo_of(make_detector("log", scales, LOOK["threshold"]), 0.5))

    def search(one: Tile) -> NDArray[Any]:
        found = blob_log(stored[one.padded], **LOOK)
        found[:, :3] += one.padded_start
        inside = ((found[:, :3] >= one.start) & (found[:, :3] < one.stop)).all(axis=1)
        return np.asarray(found[inside])

    with ThreadPoolExecutor(N_WORKERS) as pool:
        np.save(out, np.concatenate(list(pool.map(search, grid.tiles()))))


def prune(n: int) -> None:
    """Blobs of overlapping pieces, one in four of them found twice."""
    rng = np.random.default_rng(0)
    tiles_per_axis = max(round((n / 1000) ** (1 / 3)), 2)
    places = rng.uniform(0, 100 * tiles_per_axis, (n * 4 // 5, 3))
    again = places[: n - len(places)] + rng.normal(0, 0.3, (n - len(places), 3))
    tile = (places // 100).astype(int)
    other = np.clip(tile[: len(again)] + np.array([0, 0, 1]), 0, tiles_per_axis)
    blobs = np.column_stack([np.concatenate([places, again]), np.ones(n), np.concatenate([tile, other])])
    begin = time.perf_counter()
    kept = blockbuster.prune_blobs(blobs, (2.0, 2.0, 2.0))
    print(f"{n} blobs pruned to {len(kept)} in {time.perf_counter() - begin:.2f} s")


CONTESTANTS = {"blockbuster": with_us, "scikit-image on the same padded tiles": alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 1024, 1024])
    parser.add_argument("--tile", type=int, nargs=3, default=[128, 128, 128])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--run")
    parser.add_argument("--task")
    options = parser.parse_args()
    if options.run:
        task = json.loads(options.task)
        work = CONTESTANTS[options.run]
        run_one(lambda: work(task["image"], tuple(task["tile"]), task["out"]), "blockbuster")
        return
    with tempfile.TemporaryDirectory() as folder:
        image = store_spots(tuple(options.shape), tuple(options.tile), Path(folder))
        outs = {name: f"{folder}/{n}{'.parquet' if n == 0 else '.npy'}" for n, name in enumerate(CONTESTANTS)}

        def run(name: str) -> dict[str, float]:
            return in_process(__file__, name, {"image": str(image), "tile": options.tile, "out": outs[name]})

        table(in_turns(list(CONTESTANTS), options.rounds, run), "scikit-image on the same padded tiles")
        ours = TableFile(Path(outs["blockbuster"]), "").lazily(4).compute()
        theirs = np.load(outs["scikit-image on the same padded tiles"])
        same = len(set(map(tuple, ours.tolist())) ^ set(map(tuple, theirs.tolist())))
        print(f"{len(ours)} blobs, {len(theirs)} by scikit-image alone; {same} of both are not the same")
    whole = 8 * math.prod(options.shape) * (1 + 2 * LOOK["num_sigma"]) / 2**30
    print(f"scikit-image on the whole image: the image as floats, the responses and their maxima: {whole:.1f} GiB")
    prune(options.blobs)


if __name__ == "__main__":
    main()
