"""Who may use a stage, who finds it again, and who removes it.

A run holds the lock of its stage. A stage is found again only by its manifest. It is removed by its owner: after a run
that succeeded, or with the last reference to a lazy array, whose runs in other processes hold leases meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import hashlib
import json
import os
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from blockbuster.errors import ResumeError
from blockbuster.stage import Manifest, Stage

__all__ = ["Keeper", "StageOwner", "Ticket", "find_stage", "new_stage_path", "owned_stage", "run_id", "stopped_stages"]


def run_id(manifest: Manifest) -> str:
    """A digest of the manifest: two runs with the same one give the same bytes."""
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
    for stage in reversed(_stages(folder, manifest["target"])):
        if stage.manifest() == manifest:
            return stage
    others = stopped_stages(folder, manifest["target"])
    if others:
        raise ResumeError(_difference(others[-1], manifest))
    return None


def stopped_stages(folder: str | Path, target: str) -> list[Stage]:
    """Stages of runs to `target` at which no process is at work, oldest first."""
    return [stage for stage in _stages(folder, target) if not _is_claimed(stage)]


def _stages(folder: str | Path, target: str) -> list[Stage]:
    manifests = Path(folder).glob(f"{glob.escape(target)}.blockbuster-????????/manifest.json")
    stages = [Stage(str(path.parent)) for path in sorted(manifests, key=lambda path: path.stat().st_mtime)]
    return [stage for stage in stages if stage.manifest()["target"] == target]


def _is_claimed(stage: Stage) -> bool:
    lock = stage.lock()
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _difference(stage: Stage, manifest: Manifest) -> str:
    theirs = stage.manifest()
    fields = [key for key in {**theirs, **manifest} if theirs.get(key) != manifest.get(key)]
    lines = "; ".join(f"{key} was {theirs.get(key)}, is {manifest.get(key)}" for key in fields)
    return (
        f"The stage {stage.path} belongs to another run: {lines}. Repeat the call with what it was, "
        "or delete the stage and start again without resume=True."
    )


@dataclass(frozen=True)
class Ticket:
    """The name of a stage without any claim on it: what an owner or a lease is in another process."""

    stage: Stage

    def hold(self) -> Keeper:
        """Keep the stage for as long as the lease lives, also when its owner lets go of it."""
        return Lease(self.stage).hold()


class Keeper:
    """Keeps a stage while it lives; pickled, it becomes a `Ticket`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._lock: FileLock | None = None

    def hold(self) -> Keeper:
        """Claim the run where no other process has, and hold on to the stage."""
        with contextlib.suppress(ResumeError):
            self.claim()
        return self

    def claim(self) -> None:
        """Take the lock of the run.

        Raises
        ------
        ResumeError
            If another one has it.
        """
        if self._lock is not None:
            return
        lock = self.stage.lock()
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ResumeError(
                f"The run in {self.stage.path} is still going on, or a lazy array uses it. Wait for it, or start a run "
                "of its own without resume=True."
            ) from error
        self._lock = lock

    def unlock(self) -> None:
        """Give the lock of the run back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __reduce__(self) -> tuple[Callable[..., Ticket], tuple[Stage]]:
        return Ticket, (self.stage,)


class Lease(Keeper):
    """Keeps a stage while the run of a lazy array needs it in a process other than its owner's."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        path = os.path.join(stage.path, "leases", uuid.uuid4().hex)
        Path(path).touch()
        weakref.finalize(self, _end_lease, stage, path)


class StageOwner(Keeper):
    """The one who removes a stage: when it is garbage, or when its process exits.

    Attributes
    ----------
    keep : bool
        Leave the stage where it is.
    """

    def __init__(self, stage: Stage, *, keep: bool) -> None:
        super().__init__(stage)
        self.keep = keep
        if not keep:
            self._finalizer = weakref.finalize(self, _end_ownership, stage)
            self._finalizer.atexit = False
            _owners.add(self)

    def release(self) -> None:
        """Leave the stage to whoever resumes the run."""
        _owners.discard(self)
        if hasattr(self, "_finalizer"):
            self._finalizer.detach()
        self.unlock()

    def remove(self) -> None:
        """Remove the stage now."""
        self.release()
        self.stage.remove()


_owners: weakref.WeakSet[StageOwner] = weakref.WeakSet()


@atexit.register
def _remove_owned() -> None:
    for owner in list(_owners):
        owner.remove()


def _end_ownership(stage: Stage) -> None:
    """Remove the stage, or leave that to the last lease."""
    leases = os.path.join(stage.path, "leases")
    if os.path.isdir(leases) and os.listdir(leases):
        Path(stage.path, "abandoned").touch()
        if os.listdir(leases):
            return
    stage.remove()


def _end_lease(stage: Stage, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if os.path.exists(os.path.join(stage.path, "abandoned")):
        stage.remove()


@contextlib.contextmanager
def owned_stage(owner: StageOwner) -> Iterator[Stage]:
    """Remove the stage after a run that succeeds; after one that fails, only where no tile was finished."""
    try:
        yield owner.stage
    except BaseException as error:
        if owner.keep or owner.stage.n_tiles():
            owner.release()
            error.add_note(
                f"{owner.stage.n_tiles()} finished tiles are kept in {owner.stage.path}. "
                "Repeat the call with resume=True to go on from there, or delete that folder."
            )
        else:
            owner.remove()
        raise
    if owner.keep:
        owner.release()
    else:
        owner.remove()
