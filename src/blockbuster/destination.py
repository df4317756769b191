"""Where a result goes, and the stage of the run that makes it: new, or that of a stopped run."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import zarr

from blockbuster.errors import ParameterError, TileError
from blockbuster.files import remove_folder
from blockbuster.outputs import Output, component_path, node_kind, store_path
from blockbuster.ownership import StageOwner, find_stage, new_stage_path, owned_stage, run_id, stopped_stages, sweep
from blockbuster.progress import Progress
from blockbuster.schedulers import Scheduler, check_visible, why_lost
from blockbuster.stage import Manifest, Stage
from blockbuster.stores import open_node

__all__ = [
    "Destination",
    "discard_others",
    "done_before",
    "kept_with",
    "lazy_store",
    "partial_of",
    "provenance",
    "run_now",
    "stage_for",
    "sweep_around",
    "target_name",
]

logger = logging.getLogger("blockbuster")

# Characters of one part of a manifest: long lists of tiles would make the attributes slow to read.
_MOST_WORDS = 10_000


@dataclass(frozen=True)
class Destination:
    """Where a result goes and how it is made: the shared options of the operations.

    Attributes
    ----------
    report : callable, optional
        Tells people of the result, once it is stored; gets the folder of the log of its run, None where that is gone.
    """

    write_to: Any = None
    output_component: str = "labels"
    compute: bool = False
    progress: Progress = False
    stage_dir: Any = None
    keep_stage: bool = False
    resume: bool = False
    overwrite: bool = False
    verbose: bool = False
    report: Callable[[str | None], object] | None = None

    @property
    def root(self) -> Path:
        """Absolute path of the store that is written to."""
        return store_path(self.write_to)

    @property
    def component(self) -> str:
        """Path of the result within it."""
        return component_path(self.output_component)

    @property
    def path(self) -> Path:
        """Absolute path of the result."""
        return Path(self.root, self.component)


def target_name(to: Destination, home: Path | None, operation: str) -> str:
    """What names the stages of a run: where it writes to, or what it does to what."""
    if to.write_to is not None:
        parts = [to.root.name, *to.component.split("/")]
        return ".".join(filter(None, parts))
    return f"{_outermost_store(home).name if home is not None else 'array'}.{operation}"


def stage_folder(to: Destination, image_home: Path | None) -> Path:
    """Where asked, else beside the output, else beside the image, else the system's temporary folder."""
    if to.stage_dir is not None:
        if not isinstance(to.stage_dir, str | os.PathLike):
            raise ParameterError(f"stage_dir {to.stage_dir!r} is not a path. Give a folder that all workers see.")
        return Path(to.stage_dir).absolute()
    if to.write_to is not None:
        return to.root.parent
    if image_home is not None:
        beside = _outermost_store(image_home).parent
        if os.access(beside, os.W_OK):
            return beside
    return Path(tempfile.gettempdir())


def _outermost_store(path: Path) -> Path:
    """The folder that is a zarr store of its own: no stage is made within a store."""
    markers = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    while any((path.parent / marker).exists() for marker in markers):
        path = path.parent
    return path


def sweep_around(to: Destination, manifest: Manifest) -> None:
    """Remove what earlier runs to a stored result had left when they were killed."""
    for folder in {stage_folder(to, None), to.root.parent}:
        sweep(folder, manifest["target"])


def stage_for(to: Destination, image_home: Path | None, manifest: Manifest) -> StageOwner:
    """The stage of the run to resume, or the name of a new one."""
    folder = stage_folder(to, image_home)
    lazy = to.write_to is None and not to.compute
    found = find_stage(folder, manifest) if to.resume else None
    if found is not None:
        owner = StageOwner(found.tried_again(), manifest, keep=to.keep_stage, leased=lazy)
        owner.hold(manifest, alone=True)
        if not lazy:
            owner.spare()
        return owner
    for left in () if to.resume else stopped_stages(folder, manifest):
        logger.warning("The same run was stopped in %s: resume=True goes on with it, or delete that folder.", left.path)
    stage = Stage(new_stage_path(folder, manifest["target"]), client=os.getpid())
    return StageOwner(stage, manifest, keep=to.keep_stage, leased=lazy)


def partial_of(stage: Stage, beside: str | Path, kind: str) -> str:
    """Where an output is in the making, beside a path: told by the stage, so that a resumed run finds it."""
    return os.path.join(os.path.dirname(beside), f".{os.path.basename(stage.path)}.{kind}.partial")


def discard_others(stage: Stage, output: Output) -> None:
    """Remove what earlier tries of the run with another dtype had begun to write."""
    partial = Path(output.partial)
    for other in partial.parent.glob(f".{glob.escape(os.path.basename(stage.path))}.*.partial"):
        remove_folder(other)


@contextlib.contextmanager
def run_now(
    owner: StageOwner, scheduler: Scheduler, output: Output | None, useless: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Make the stage on the client, so that what is wrong with it shows before the first task.

    After a failure, an incomplete output is left only where a resumed run can finish it: where some tile is finished,
    and the error is none of the kinds after which it is `useless`.
    """
    with owned_stage(owner):
        owner.hold(owner.manifest, alone=True)
        check_visible(scheduler, "stage", owner.stage.path, "stage_dir")
        try:
            yield
        except BaseException as error:
            for why in why_lost(scheduler, error.attempts) if isinstance(error, TileError) and error.attempts else ():
                error.add_note(why)
            if output is not None and (isinstance(error, useless) or not owner.stage.n_tiles()):
                output.discard()
            elif output is not None and output.is_begun:
                error.add_note(f"What is written of the output is in {output.partial}; delete it with that folder.")
            raise


def provenance(manifest: Manifest, dtype: Any, **facts: Any) -> dict[str, Any]:
    """What is kept with a result: the run, in words but for those of great length, and what it found."""
    told = {name: words for name, words in manifest.items() if len(words) <= _MOST_WORDS}
    return {"run": _result_id(manifest, dtype), "operation": manifest["operation"], "manifest": told, **facts}


def kept_with(node: zarr.Array[Any] | zarr.Group) -> Mapping[str, Any]:
    """What the last run that wrote to a node keeps with it, as `provenance` made it; empty for nodes of others."""
    kept: Any = node.attrs.asdict().get("blockbuster", {})
    if not isinstance(kept, Mapping):
        return {}
    runs = [one for one in kept.values() if isinstance(one, Mapping) and "operation" in one]
    return kept if "operation" in kept or not runs else runs[-1]


def done_before(to: Destination, manifest: Manifest, dtype: Any) -> dict[str, Any] | None:
    """What is kept with the result of this very run, where it is complete already and was asked to be resumed."""
    if not to.resume:
        return None
    node = open_node(str(to.path)) if node_kind(to.path) is not None else None
    told: Any = {} if node is None else node.attrs.asdict().get("blockbuster", {})
    made: dict[str, Any] = told.get(manifest["operation"], told)
    if made.get("run") != _result_id(manifest, dtype):
        return None
    for left in () if to.keep_stage else stopped_stages(stage_folder(to, None), manifest):
        for folder in (to.root.parent, to.root):
            for partial in folder.glob(f".{glob.escape(os.path.basename(left.path))}.*.partial*"):
                remove_folder(partial)
        left.remove()
    return made


def _result_id(manifest: Manifest, dtype: Any) -> str:
    """The run and what its stage does not depend on."""
    return run_id({**manifest, "dtype": str(dtype)})


def lazy_store(root: Any, component: str) -> da.Array:
    """A stored array as a lazy one."""
    stored = zarr.open_array(os.fspath(root), path=component, mode="r")
    # A name of its own: an array that replaces another at the same path is not the same array.
    array: da.Array = da.from_zarr(stored, name=f"labels-{uuid.uuid4().hex}")
    return array
