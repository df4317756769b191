"""Folders that live as long as the process that made them, or are swept by the next."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from blockbuster.files import remove_folder

__all__ = ["HeldFolder"]

# Seconds after which a folder that nobody holds is not one that is being made just now.
_STALE = 60.0


class HeldFolder:
    """A new folder, readable by this user only, held by a lock that dies with this process.

    Parameters
    ----------
    base : Path
        Where it is made. Folders of that kind there whose process is gone are removed.
    kind : str
        The beginning of its name.
    clean : callable, optional
        What else is to be done with a folder before it is removed.

    Attributes
    ----------
    path : Path
        The folder.
    """

    def __init__(self, base: Path, kind: str, clean: Callable[[Path], None] | None = None) -> None:
        base.mkdir(parents=True, exist_ok=True)
        for left in base.glob(f"{kind}-{8 * '[0-9a-f]'}"):
            _sweep(left, clean)
        self.path = base / f"{kind}-{os.urandom(4).hex()}"
        self.path.mkdir(mode=0o700)
        self._clean = clean
        self._lock = FileLock(self.path / "lock", thread_local=False)
        self._lock.acquire()

    def remove(self) -> None:
        """Remove the folder; does nothing the second time."""
        if not self._lock.is_locked:
            return
        try:
            if self._clean is not None:
                self._clean(self.path)
        finally:
            self._lock.release()
            remove_folder(self.path)


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder is one of ours: others may have such a name, too, and belong to anybody."""
    about, lock = folder.lstat(), (folder / "lock").lstat()
    mine = about.st_uid == lock.st_uid == os.getuid()
    return mine and stat.S_ISDIR(about.st_mode) and stat.S_ISREG(lock.st_mode) and time.time() - about.st_mtime > _STALE


def _sweep(folder: Path, clean: Callable[[Path], None] | None) -> None:
    try:
        if not _is_abandoned(folder):
            return
        lock = FileLock(folder / "lock").acquire(timeout=0)
    except (Timeout, PermissionError, FileNotFoundError, NotADirectoryError):
        return
    with lock:
        if clean is not None:
            clean(folder)
    remove_folder(folder)
