"""A process that labels on a SLURM cluster of its own, to be killed: ``python -m tests.drivers.slurm_client JSON``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import blockbuster
from tests.helpers import Recording
from tests.slurm import tools as slurm


def run(folder: Path, **options: Any) -> None:
    """Label ``folder/image.zarr`` into ``folder/labels.zarr``, slowly, and record the calls in ``folder/calls``."""
    with slurm.cluster(folder / "cluster", **options):
        blockbuster.tile_process(
            folder / "image.zarr",
            Recording(folder / "calls", slurm.slow_components),
            tile_shape=slurm.TILE,
            write_to=folder / "labels.zarr",
        )


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    run(Path(arguments.pop("folder")), **arguments)
