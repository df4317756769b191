"""Transfers that kill themselves before any of their steps on files.

Each line of the input is a JSON list ``[case, step, folder, options]``: a fork does the case in the folder, and is
killed right before its step of that number that makes, changes, renames or removes a file or a folder. How it ended
is printed: its exit code, or minus a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

import blockbuster
from blockbuster import tiling

TILE = 16
SHAPE = (48, 40)
N_TILES = 9


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """An image in which some chunks are empty, and so not stored."""
    image = np.random.default_rng(seed).integers(1, 60_000, shape, np.uint16)
    image[16:32, :16] = 0
    return image


def some_mask(seed: int = 5, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """A mask that some tiles are wholly within, some partly, and some not at all."""
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[:16, :16] = True
    mask[16:32, 16:32] = False
    mask[32:, 32:] = False
    return mask


@dataclass(frozen=True)
class Case:
    """One way of making something.

    Attributes
    ----------
    prepare : callable
        Makes what there is before, in a folder: inputs in it, an output in ``to/`` below it.
    run : callable
        ``(folder, **options)``; writes to ``to/out.zarr`` only.
    tiles : int
        How many tiles are made.
    written : int, optional
        How many of them are written.
    """

    prepare: Callable[[Path], None]
    run: Callable[..., Any]
    tiles: int
    written: int | None = None
    patches: bool = False

    @property
    def writes(self) -> int:
        """How many tiles are written."""
        return self.tiles if self.written is None else self.written


def out_of(folder: Path) -> Path:
    """What a case writes to."""
    return folder / "to" / "out.zarr"


def prepare_source(folder: Path) -> None:
    zarr.create_array(
        folder / "source.zarr", data=noise(1), chunks=(TILE, TILE), attributes={"stain": "DNA"}, fill_value=0
    )


def prepare_other(folder: Path) -> None:
    """An output that is there, which is not the source."""
    prepare_source(folder)
    zarr.create_array(out_of(folder), data=noise(2), chunks=(TILE, TILE), attributes={"made": "before"}, fill_value=0)


def prepare_masked(folder: Path) -> None:
    prepare_other(folder)
    zarr.create_array(folder / "mask.zarr", data=some_mask(), chunks=(TILE, TILE))


def prepare_small(folder: Path) -> None:
    """As `prepare_masked`, but the output half as large as the source."""
    zarr.create_array(folder / "source.zarr", data=noise(1, (96, 80)), chunks=(TILE, TILE))
    zarr.create_array(out_of(folder), data=noise(2), chunks=(TILE, TILE), fill_value=0)
    zarr.create_array(folder / "mask.zarr", data=some_mask(), chunks=(TILE, TILE))


def prepare_consolidated(folder: Path) -> None:
    prepare_source(folder)
    group = zarr.create_group(out_of(folder))
    group.create_array("first", data=noise(2), chunks=(TILE, TILE))
    with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
        zarr.consolidate_metadata(out_of(folder))


def prepare_group(folder: Path) -> None:
    blockbuster.write_image(
        noise(1), folder / "source.zarr", scale=0.5, unit="um", n_levels=2, chunks=TILE, channels=None
    )
    blockbuster.write_labels((noise(3) % 7).astype(np.uint8), folder / "source.zarr", "cells", chunks=TILE)


def prepare_image(folder: Path, n_levels: int = 1) -> None:
    blockbuster.write_image(noise(2), out_of(folder), scale=0.5, unit="um", n_levels=n_levels, chunks=TILE)


def prepare_labels(folder: Path) -> None:
    prepare_image(folder, 3)
    zarr.create_array(folder / "source.zarr", data=noise(1) % 5, chunks=(TILE, TILE))


def prepare_over_image(folder: Path) -> None:
    prepare_image(folder, 3)
    prepare_source(folder)


def prepare_levels(folder: Path) -> None:
    prepare_image(folder, 4)


def copied(folder: Path, **options: Any) -> Any:
    return blockbuster.copy(folder / "source.zarr", out_of(folder), **{"tile_shape": (TILE, TILE), **options})


def with_mask(folder: Path, **options: Any) -> Any:
    return copied(folder, **{"mask": folder / "mask.zarr", "overwrite": True, **options})


def downsampled(folder: Path, **options: Any) -> Any:
    options = {"method": "mean", "tile_shape": (TILE, TILE), **options}
    return blockbuster.downsample(folder / "source.zarr", 2, write_to=out_of(folder), **options)


def written(folder: Path, **options: Any) -> Any:
    options = {"scale": 0.5, "unit": "um", "n_levels": 3, "chunks": TILE, "axes": "yx", **options}
    return blockbuster.write_image(folder / "source.zarr", out_of(folder), **options)


def labelled(folder: Path, **options: Any) -> Any:
    return blockbuster.write_labels(folder / "source.zarr", out_of(folder), "cells", **{"chunks": TILE, **options})


def levelled(folder: Path, **options: Any) -> Any:
    return blockbuster.pyramid(out_of(folder), **{"n_levels": 3, **options})


def given(run: Callable[..., Any], **given: Any) -> Callable[..., Any]:
    """A case with some options."""
    return lambda folder, **options: run(folder, **{**given, **options})


CASES = {
    "raw copy": Case(prepare_source, copied, 9),
    "decoded copy": Case(prepare_source, given(copied, chunks=8, dtype="int32"), 9),
    "copy of a group": Case(prepare_group, given(copied, zarr_format=2), 9 + 4 + 9 + 4),
    "copy over another": Case(prepare_other, given(copied, overwrite=True), 9),
    "copy into a store": Case(prepare_consolidated, given(copied, output_component="a/b"), 9),
    "downsample": Case(prepare_small, given(downsampled, overwrite=True), 9),
    "write_image": Case(prepare_source, written, 9 + 4 + 1),
    "write_image over another": Case(prepare_over_image, given(written, overwrite=True, version="0.4"), 9 + 4 + 1),
    "write_labels": Case(prepare_labels, labelled, 9 + 4 + 1),
    "pyramid": Case(prepare_image, levelled, 4 + 1),
    "pyramid again": Case(prepare_levels, given(levelled, overwrite=True, method="max"), 4 + 1),
    "masked copy": Case(prepare_masked, with_mask, 9, 7, patches=True),
    "copy of some tiles": Case(prepare_other, given(copied, block_ids=[1, 3, 4, 8], overwrite=True), 4, patches=True),
    "masked downsample": Case(
        prepare_small,
        lambda folder, **options: downsampled(folder, **{"mask": folder / "mask.zarr", "overwrite": True, **options}),
        9,
        7,
        patches=True,
    ),
}


def cut_small() -> None:
    """Let each chunk be a tile: those of less than a few MiB are not worth a task otherwise."""
    tiling._SMALL_TILE = 1


# Steps on files

_LOCKS = ("/mutex", "/holders/", ".lock")


def is_step(event: str, args: tuple[Any, ...]) -> bool:
    """Whether something is about to change on the disk that matters to whoever comes after."""
    if event == "open":
        path, _, flags = args
        is_lock = isinstance(path, str | Path) and any(part in str(path) for part in _LOCKS)
        return bool(flags & (os.O_WRONLY | os.O_RDWR)) and not is_lock
    if event == "os.rmdir":
        return str(args[0]).startswith("/")
    return event in ("os.rename", "os.link", "shutil.copyfile")


class Killer:
    """Kills this process before a step on files, and says which that was."""

    def __init__(self, step: int) -> None:
        self._left = step
        self._lock = threading.Lock()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if is_step(event, args):
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    os.write(2, f"killed before {event} {args}\n".encode())
                    os.kill(os.getpid(), signal.SIGKILL)


def run(name: str, step: int, folder: Path, options: dict[str, Any]) -> None:
    """The case to be killed."""
    cut_small()
    warnings.simplefilter("ignore")
    with dask.config.set(scheduler="synchronous"):
        sys.addaudithook(Killer(step))
        CASES[name].run(folder, **options)


def fork(line: str) -> None:
    """Do what a line says, and end."""
    with contextlib.ExitStack() as stack:
        stack.callback(os._exit, 0)
        stack.push(lambda kind, error, _traceback: kind and traceback.print_exception(error))
        name, step, folder, options = json.loads(line)
        run(name, step, Path(folder), options)


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            fork(line)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
