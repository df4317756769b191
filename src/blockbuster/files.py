"""Files that appear whole or not at all, and folders that may be removed by two processes at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid

__all__ = ["remove_folder", "write_new", "write_whole"]


def write_whole(path: str, data: bytes | memoryview) -> None:
    """Write a file under another name first: nobody sees a part of it."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_new(path: str, data: bytes) -> None:
    """Write a file unless there is one, or another process makes one at the same time."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}"
    write_whole(temporary, data)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError:
        # There are file systems without links.
        if not os.path.exists(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder with all in it; does nothing where it is gone."""
    shutil.rmtree(path, onerror=_unless_gone)


def _unless_gone(_function: object, _path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    if not issubclass(info[0], FileNotFoundError):
        raise info[1]
