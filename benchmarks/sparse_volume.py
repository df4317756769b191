"""Label a sparse virtual volume on a LocalCluster of two workers: 8192^3 voxels of uint8, ten objects, half a terabyte.

    python benchmarks/sparse_volume.py
    python benchmarks/sparse_volume.py --side 2048 --tile 128 128 128     # a quick try

Only the chunks that hold a part of an object are stored; all others are 0, the fill value. Every tile is read and
looked at all the same: nothing is skipped. The client runs in a process of its own, the scheduler with it, so its peak
memory is that of both. Objects lie at borders of tiles, over corners of eight of them, over thousands of voxels, and
within one; each must have its own id and as many voxels as were put there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr
from harness import Result, in_process, peak_mib

import blockbuster

N_WORKERS = 2
# Begin and end of each object, in units of a tile along each axis.
OBJECTS = [
    ((0, 0, 0), (0.01, 0.01, 0.01)),
    ((0.3, 0.9, 0.9), (0.35, 1.1, 1.1)),
    ((0.3, 1.5, 1.5), (0.35, 1.6, 1.6)),
    ((0.95, 0.95, 0.95), (1.05, 1.05, 1.05)),
    ((1.2, 0.1, 0.1), (1.3, 3.9, 0.12)),
    ((1.5, 2.0, 2.0), (1.6, 2.5, 2.5)),
    ((2.0, 0.1, 0.1), (2.1, 0.2, 0.2)),
    ((0.5, 2.5, 3.5), (3.5, 2.52, 3.52)),
    ((3.1, 0.0, 3.99), (3.2, 0.1, 4.0)),
    ((3.99, 3.99, 3.99), (4.0, 4.0, 4.0)),
]


@dataclass(frozen=True)
class Volume:
    """A cube with ten objects in it.

    Attributes
    ----------
    side : int
        Voxels along each axis.
    tile : sequence of int
        Voxels of a tile and chunk per axis.
    """

    side: int
    tile: tuple[int, ...]
    folder: str

    @property
    def image(self) -> Path:
        """The image."""
        return Path(self.folder, "image.zarr")

    @property
    def labels(self) -> Path:
        """What becomes of it."""
        return Path(self.folder, "labels.zarr")

    def boxes(self) -> list[tuple[slice, ...]]:
        """Where the objects are, scattered over the whole volume: every tile border of theirs is one of the volume."""
        stretch = [self.side // (4 * t) for t in self.tile]
        boxes = []
        for start, stop in OBJECTS:
            moved = [int(a) * (s - 1) * t for a, s, t in zip(start, stretch, self.tile, strict=True)]
            ends = zip(start, stop, self.tile, moved, strict=True)
            boxes.append(tuple(slice(round(a * t) + m, round(b * t) + m) for a, b, t, m in ends))
        return boxes


def main() -> None:
    options = _options()
    if options.run:
        label(Volume(**json.loads(options.task)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        volume = Volume(options.side, tuple(options.tile), folder)
        make(volume)
        result = in_process(__file__, "label", asdict(volume))
        _report(volume, result)


def make(volume: Volume) -> None:
    """Store the image."""
    image = zarr.create_array(volume.image, shape=(volume.side,) * 3, chunks=volume.tile, dtype="uint8", fill_value=0)
    for box in volume.boxes():
        image[box] = 200


def label(volume: Volume) -> None:
    """The whole of the client's process."""
    with blockbuster.make_local_cluster(n_workers=N_WORKERS) as (client, _):
        idle = peak_mib()
        begin = time.perf_counter()
        blockbuster.label(volume.image, write_to=volume.labels, output_component="")
        seconds = time.perf_counter() - begin
        workers = max(client.run(peak_mib).values())
    print(json.dumps({"seconds": seconds, "peak": peak_mib(), "idle": idle, "workers": workers}))


def sizes(volume: Volume) -> Counter[int]:
    """Voxels of each label, read from the chunks that are stored."""
    labels = zarr.open_array(volume.labels, mode="r")
    found: Counter[int] = Counter()
    folder = Path(volume.labels, "c")
    for path in folder.glob("*/*/*"):
        index = map(int, path.relative_to(folder).parts)
        region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, labels.chunks, strict=True))
        ids, counts = np.unique(labels[region], return_counts=True)
        found.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    del found[0]
    return found


def expected_sizes(volume: Volume) -> Counter[int]:
    """Voxels of each object, numbered by first voxel."""
    boxes = sorted(volume.boxes(), key=lambda box: tuple(s.start for s in box))
    return Counter({n: int(np.prod([s.stop - s.start for s in box])) for n, box in enumerate(boxes, 1)})


def _report(volume: Volume, result: Result) -> None:
    n_tiles = int(np.prod([-(-volume.side // t) for t in volume.tile]))
    stored = sum(path.stat().st_size for path in volume.labels.rglob("*") if path.is_file())
    right = sizes(volume) == expected_sizes(volume)
    print(f"{volume.side}^3 voxels in {n_tiles} tiles of {volume.tile}, {N_WORKERS} workers\n")
    print(f"objects with the right ids and numbers of voxels: {'all of 10' if right else 'NOT ALL'}")
    print(f"seconds: {result['seconds']:.0f}, {result['seconds'] / n_tiles * 1e3:.1f} ms per tile")
    print(
        f"peak memory, MiB: client with scheduler {result['peak']:.0f} ({result['idle']:.0f} before the run), ", end=""
    )
    print(f"worker {result['workers']:.0f}; stored labels {stored / 2**20:.1f} MiB")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--tile", nargs=3, type=int, default=[256, 256, 256])
    parser.add_argument("--folder", help="where the volume is made, for the time of the run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
