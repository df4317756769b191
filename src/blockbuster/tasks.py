"""What every task on a tile does: say where it failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blockbuster.errors import TileError
from blockbuster.grid import Tile
from blockbuster.schedulers import in_worker

__all__ = ["blaming"]


@contextlib.contextmanager
def blaming(tile: Tile, step: str) -> Iterator[None]:
    """Say on which tile and in which step an error came up."""
    try:
        yield
    except TileError:
        raise
    except Exception as error:  # noqa: BLE001 - raised again with its place
        made = TileError.of(tile.index, tile.padded, step, error, leaves_process=in_worker())
        raise made from made.__cause__
