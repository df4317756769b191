"""Label a stored image in a process of its own; tell the peak of its memory and what it found."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import dask
import zarr

import blockbuster


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most.

    What the system counts for a process includes its parent's peak at the moment of the fork; this does not.
    """
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(source: str, target: str, n_threads: int) -> None:
    with dask.config.set(scheduler="threads" if n_threads > 1 else "synchronous", num_workers=n_threads):
        begin = resident("VmRSS")
        blockbuster.label(source, write_to=target)
    n_objects = zarr.open_array(target, path="labels", mode="r").attrs["blockbuster"]["report"]["n_objects"]
    print(json.dumps({"begin": begin, "peak": resident("VmHWM"), "n_objects": n_objects}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
