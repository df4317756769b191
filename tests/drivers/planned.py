"""Plan a run and start it in a process of its own; tell the peak of memory that was planned, and that which came."""

from __future__ import annotations

import json
import sys

import dask

import blockbuster
from tests.drivers.peak import resident


def main(operation: str, folder: str, n_threads: int) -> None:
    options = {"tile_shape": (160, 160, 160), "write_to": f"{folder}/out.zarr"}
    if operation == "copy":
        options["chunks"] = 80
        options["compression"] = "zstd"
    with dask.config.set(scheduler="threads" if n_threads > 1 else "synchronous", num_workers=n_threads):
        planned = blockbuster.plan(f"{folder}/in.zarr", operation=operation, time_tiles=0, **options).peak_memory
        begin = resident("VmRSS")
        getattr(blockbuster, operation)(f"{folder}/in.zarr", **options)
    print(json.dumps({"planned": planned, "begin": begin, "peak": resident("VmHWM")}))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
