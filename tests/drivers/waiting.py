"""A run that waits in its first tile until it is told to go on.

``python -m tests.drivers.waiting FOLDER NAME OPTIONS`` labels ``FOLDER/image.zarr``; in its first tile it makes
``FOLDER/NAME.waiting`` and waits for ``FOLDER/go``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

import blockbuster
from tests.helpers import components

PATIENCE = 60.0


def wait_for(path: Path) -> None:
    """Wait until there is a file, with an end."""
    for _ in range(int(PATIENCE / 0.01)):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


@dataclass(frozen=True)
class Waiting:
    """An `fn` that tells of its first call and waits there."""

    folder: Path
    name: str

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        mark = self.folder / f"{self.name}.waiting"
        if not mark.exists():
            mark.touch()
            wait_for(self.folder / "go")
        return components(block)


if __name__ == "__main__":
    # Functions of the main module are not those of the same name elsewhere.
    from tests.drivers.waiting import Waiting as Imported

    folder, name, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    with dask.config.set(scheduler="synchronous"):
        labels = blockbuster.tile_process(folder / "image.zarr", Imported(folder, name), **options)
    np.save(folder / f"{name}.npy", np.asarray(labels))
