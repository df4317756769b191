"""Who may use a stage, who finds it again, and who removes it.

Whoever needs a stage holds the lock of a file of its own in ``holders/``: the owner in the process that made the run,
and leases in the processes where a lazy array is computed. A lock dies with its process. The last to let go removes the
stage; the owner of a run that failed lets go without removing it, for the run to be resumed.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import hashlib
import json
import multiprocessing
import multiprocessing.util
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from blockbuster.errors import ResumeError
from blockbuster.files import remove_folder
from blockbuster.stage import Manifest, Stage

__all__ = [
    "Holder",
    "Keeper",
    "StageOwner",
    "Ticket",
    "find_stage",
    "new_stage_path",
    "owned_stage",
    "run_id",
    "stopped_stages",
    "sweep",
]

_ATTEMPTS = 3
# Seconds after which a stage without a manifest is not one that is being made just now.
_STALE = 60.0


# Finding


def run_id(manifest: Manifest) -> str:
    """A digest of the manifest: two runs with the same one give the same labels."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def new_stage_path(folder: str | Path, target: str) -> str:
    """A path that no other run has, in `folder`, that tells `target` in its name."""
    return os.path.join(os.path.abspath(folder), f"{target}.blockbuster-{uuid.uuid4().hex[:8]}")


def find_stage(folder: str | Path, manifest: Manifest) -> Stage | None:
    """The stage of the run that `manifest` describes, or None where its target has none.

    Raises
    ------
    ResumeError
        If there are stages of stopped runs to its target, but all of other runs: names each difference.
    """
    found = _stages(folder, manifest["target"])
    for stage, theirs in reversed(found):
        if theirs == manifest:
            return stage
    for stage, theirs in reversed(found):
        if not _is_held(stage):
            raise ResumeError(_difference(stage, theirs, manifest))
    return None


def stopped_stages(folder: str | Path, manifest: Manifest) -> list[Stage]:
    """Stages of the run that `manifest` describes at which no process is at work, oldest first."""
    found = _stages(folder, manifest["target"])
    return [stage for stage, theirs in found if theirs == manifest and not _is_held(stage)]


def sweep(folder: str | Path, target: str) -> None:
    """Remove what runs to `target` had done with, or had only begun, when they were killed."""
    stage = f"{glob.escape(target)}.blockbuster-????????"
    for begun in filter(_is_ours, Path(folder).glob(stage)):
        if not (begun / "manifest.json").exists() and _age(begun) > _STALE and not _is_held(Stage(str(begun))):
            remove_folder(begun)
    doomed_ones = [*Path(folder).glob(f"{stage}.removed-*"), *Path(folder).glob(f".{stage}.*.partial.replaced")]
    for doomed in filter(_is_ours, doomed_ones):
        partial = doomed.with_suffix("") if doomed.suffix == ".replaced" else None
        if partial is None or not partial.exists():
            remove_folder(doomed)


def _is_ours(path: Path) -> bool:
    try:
        return os.access(path, os.W_OK | os.X_OK)
    except FileNotFoundError:
        return False


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except (FileNotFoundError, PermissionError):
        return 0.0


def _stages(folder: str | Path, target: str) -> list[tuple[Stage, Manifest]]:
    found = []
    for path in Path(folder).glob(f"{glob.escape(target)}.blockbuster-????????"):
        stage = Stage(str(path))
        # A stage may be removed by its run at any time, and may be that of another user.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            found.append(((path / "manifest.json").stat().st_mtime, stage, stage.manifest()))
    found.sort(key=lambda entry: entry[0])
    return [(stage, manifest) for _, stage, manifest in found if manifest["target"] == target]


def _difference(stage: Stage, theirs: Manifest, manifest: Manifest) -> str:
    fields = [key for key in {**theirs, **manifest} if theirs.get(key) != manifest.get(key)]
    lines = "; ".join(f"{key} was {theirs.get(key)}, is {manifest.get(key)}" for key in fields)
    return (
        f"The stage {stage.path} belongs to another run: {lines}. Repeat the call with what it was, "
        "or delete the stage and start again without resume=True."
    )


# Holding


def _holders(stage: Stage) -> str:
    return os.path.join(stage.path, "holders")


@contextlib.contextmanager
def _mutex(stage: Stage) -> Iterator[None]:
    """Keep two processes from looking for holders, becoming one, and removing the stage at the same time.

    Raises
    ------
    FileNotFoundError
        If there is no stage.
    """
    if not os.path.isdir(_holders(stage)):
        raise FileNotFoundError(stage.path)
    lock = FileLock(os.path.join(stage.path, "mutex"))
    try:
        lock.acquire()
    except FileExistsError as error:
        # The stage was removed while the lock was about to make its folder again.
        raise FileNotFoundError(stage.path) from error
    try:
        if not os.path.isdir(_holders(stage)):
            # The stage was removed in between, and the lock has made its folder again.
            stage.remove()
            raise FileNotFoundError(stage.path)
        yield
    finally:
        lock.release()


def _is_held(stage: Stage) -> bool:
    """Whether a living process holds the stage."""
    try:
        with _mutex(stage):
            return _has_holder(stage)
    except FileNotFoundError:
        return False
    except PermissionError:
        # Another user's: not for us to use or to remove.
        return True


def _has_holder(stage: Stage) -> bool:
    return any(_is_locked(os.path.join(_holders(stage), name)) for name in os.listdir(_holders(stage)))


def _is_locked(path: str) -> bool:
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _hold(stage: Stage, *, alone: bool) -> FileLock:
    """Take a lock of one's own; `alone`, only where nobody else holds one."""
    stage.make()
    os.makedirs(_holders(stage), exist_ok=True)
    with _mutex(stage):
        if alone and _has_holder(stage):
            raise ResumeError(
                f"The run in {stage.path} is still going on, or a lazy array uses it. Wait for it, or start a run of "
                "its own without resume=True."
            )
        lock = FileLock(os.path.join(_holders(stage), uuid.uuid4().hex), thread_local=False)
        lock.acquire()
    return lock


def _let_go(held: list[FileLock]) -> None:
    while held:
        lock = held.pop()
        lock.release()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock.lock_file)


def _let_go_last(stage: Stage, held: list[FileLock]) -> None:
    """Let go, and remove the stage unless somebody else holds it."""
    _let_go(held)
    with contextlib.suppress(FileNotFoundError), _mutex(stage):
        if not _has_holder(stage):
            stage.remove()


@dataclass(frozen=True)
class Ticket:
    """The name of a stage without any claim on it: what a keeper is in another process.

    Attributes
    ----------
    leased : bool
        Whether who uses the stage must hold it: not so where its owner outlives the run.
    """

    stage: Stage
    leased: bool

    def hold(self, manifest: Manifest) -> Keeper | Ticket:
        """Make the stage if there is none, and keep it for as long as the keeper lives."""
        if not self.leased:
            self.stage.require()
            return self
        return Keeper(self.stage).hold(manifest)

    def fail(self) -> None:
        """Do nothing: a ticket holds nothing."""


class Keeper:
    """Keeps a stage while it lives, and removes it if it was the last; a copy in another process keeps it as well."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._held: list[FileLock] = []
        self._finalizer = weakref.finalize(self, _let_go_last, stage, self._held)
        self._finalizer.atexit = False
        _living.add(self)

    def hold(self, manifest: Manifest, *, alone: bool = False) -> Keeper:
        """Make the stage if there is none, and hold it.

        Raises
        ------
        ResumeError
            If `alone` and somebody else holds it.
        """
        for attempt in range(_ATTEMPTS):
            try:
                if not self._held:
                    self._held.append(_hold(self.stage, alone=alone))
                break
            except FileNotFoundError:
                # Whoever let go of the stage just now has removed it: make it again.
                if attempt == _ATTEMPTS - 1:
                    raise
        self.stage.describe(manifest)
        return self

    def join(self) -> Keeper:
        """Hold the stage if it is there."""
        if self.stage.exists():
            with contextlib.suppress(FileNotFoundError):
                self._held.append(_hold(self.stage, alone=False))
        return self

    def finish(self) -> None:
        """Let go now."""
        self._finalizer()

    def fail(self) -> None:
        """Let go, since the run has failed."""
        self.finish()

    def __reduce__(self) -> tuple[Callable[..., Holder], tuple[Any, ...]]:
        return _joined, (self.stage,)


def _joined(stage: Stage) -> Keeper:
    return Keeper(stage).join()


class StageOwner(Keeper):
    """The keeper in the process that made the run; lets go when that process exits.

    Parameters
    ----------
    stage : Stage
        The stage; need not exist yet.
    manifest : Manifest
        What the run is.
    keep : bool
        Leave the stage where it is.
    leased : bool
        Whether other processes must hold the stage while they use it: where the owner may go before the run ends.
    """

    def __init__(self, stage: Stage, manifest: Manifest, *, keep: bool, leased: bool) -> None:
        super().__init__(stage)
        self.manifest = manifest
        self.keep = keep
        self.leased = leased and not keep
        self._outlived = leased
        if keep:
            self._finalizer.detach()

    def spare(self) -> None:
        """Let nothing but `remove` remove the stage: not an error on the way to the first task, for one."""
        self._finalizer.detach()

    def release(self) -> None:
        """Leave the stage to whoever resumes the run."""
        self._finalizer.detach()
        _let_go(self._held)

    def remove(self) -> None:
        """Remove the stage now."""
        self.release()
        with contextlib.suppress(FileNotFoundError), _mutex(self.stage):
            self.stage.remove()

    def finish(self) -> None:
        """Remove the stage, if it was to go with its owner."""
        if self._finalizer.alive:
            self.remove()

    def fail(self) -> None:
        """Hold on: the array may be computed again."""

    def __reduce__(self) -> tuple[Callable[..., Holder], tuple[Any, ...]]:
        if self._outlived and (self.keep or self._finalizer.alive):
            # Tasks in other processes must find the stage, and that it has an owner: the last of them would remove it.
            self.hold(self.manifest)
        return Ticket, (self.stage, self.leased)


Holder: TypeAlias = Keeper | Ticket

_living: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _finish_living() -> None:
    for keeper in list(_living):
        keeper.finish()


if multiprocessing.parent_process() is None:
    atexit.register(_finish_living)
else:
    # Processes that multiprocessing starts, workers among them, leave without the handlers of atexit.
    multiprocessing.util.Finalize(None, _finish_living, exitpriority=0)


@contextlib.contextmanager
def owned_stage(owner: StageOwner) -> Iterator[Stage]:
    """Remove the stage after a run that succeeds; after one that fails, only where no tile was finished."""
    try:
        yield owner.stage
    except BaseException as error:
        n_finished = owner.stage.n_tiles()
        if owner.keep or n_finished:
            owner.release()
            error.add_note(
                f"{n_finished} finished tiles are kept in {owner.stage.path}. "
                "Repeat the call with resume=True to go on from there, or delete that folder."
            )
        else:
            owner.remove()
        raise
    if owner.keep:
        owner.release()
    else:
        owner.remove()
