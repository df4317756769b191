"""Zarr arrays that appear whole or not at all.

An output is written beside its store under a name of its own and renamed into place when it is complete. What it
replaces is set aside first, and removed last.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.errors import ZarrUserWarning

from blockbuster.errors import BlockbusterError, OutputError, OutputExistsError, ParameterError
from blockbuster.files import remove_folder
from blockbuster.grid import Region, TileGrid
from blockbuster.stores import with_fast_codecs

__all__ = ["Output", "component_path", "chunks_within", "plan_output", "store_path"]

# A chunk of 2^22 voxels is 16 MiB of int32: few files, and well below what blosc can take.
_CHUNK_VOXELS = 1 << 22


@dataclass(frozen=True)
class Output:
    """An array of a zarr store in the making.

    Attributes
    ----------
    root : str
        Absolute path of the store.
    component : str
        Path of the array within the store.
    partial : str
        Where the array is until it is complete.
    mark : str
        Under which name a stage notes what is written.
    """

    root: str
    component: str
    partial: str
    mark: str = ""
    opening: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def path(self) -> Path:
        """Where the array will be."""
        return Path(self.root, self.component)

    def create(self, shape: Sequence[int], chunks: Sequence[int], dtype: np.dtype[Any], axes: str | None) -> None:
        """Make the empty array, in the zarr format of the store; does nothing where it is there already.

        Raises
        ------
        OutputError
            If it cannot be made.
        """
        form = _format_of(self.root)
        options: dict[str, Any] = {"compressors": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")}
        if form == 2:
            options = {"compressors": Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)}
            options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
        elif axes is not None:
            options["dimension_names"] = list(axes)
        if _node_kind(Path(self.partial)) == "array":
            return
        self.discard()
        try:
            with self._writing():
                os.makedirs(os.path.dirname(self.partial), exist_ok=True)
                zarr.create_array(
                    self.partial,
                    shape=tuple(shape),
                    chunks=tuple(chunks),
                    dtype=dtype,
                    zarr_format=form,
                    fill_value=0,
                    **options,
                )
        except OutputError:
            self.discard()
            raise

    def write(self, region: Region, block: NDArray[Any]) -> None:
        """Write whole chunks."""
        _opened(self)[region] = block

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Add attributes to the array."""
        with self._writing():
            zarr.open_array(self.partial, mode="r+").attrs.update(attributes)

    def commit(self, *, overwrite: bool) -> None:
        """Put the complete array in its place.

        Raises
        ------
        OutputExistsError
            If another one has come there and `overwrite` is not set.
        OutputError
            If it cannot be put there.
        """
        with self._writing():
            if self.component:
                self._make_groups(_format_of(self.root))
            self._swap(overwrite)
            self._consolidate()

    def _swap(self, overwrite: bool) -> None:
        aside = f"{self.partial}.replaced"
        if os.path.exists(self.partial):
            if self.path.exists():
                if not overwrite:
                    raise _exists(self.path)
                # What an earlier try has set aside was replaced by another run since.
                remove_folder(aside)
                os.rename(self.path, aside)
            os.makedirs(self.path.parent, exist_ok=True)
            os.rename(self.partial, self.path)
        remove_folder(aside)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BlockbusterError:
            raise
        except OSError as error:
            raise OutputError(
                f"The output {self.path} cannot be written: {error}. Make room, or choose another write_to."
            ) from error

    def _consolidate(self) -> None:
        """Where readers look arrays up in the metadata of the store, tell them of this one."""
        group = zarr.open(self.root, mode="r")
        if isinstance(group, zarr.Group) and group.metadata.consolidated_metadata is not None:
            with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
                zarr.consolidate_metadata(self.root)

    def discard(self) -> None:
        """Remove what was written so far."""
        remove_folder(self.partial)

    def _make_groups(self, form: Literal[2, 3]) -> None:
        parts = self.component.split("/")[:-1]
        for depth in range(len(parts) + 1):
            if _node_kind(Path(self.root, *parts[:depth])) is None:
                zarr.open_group(self.root, path="/".join(parts[:depth]), mode="a", zarr_format=form)


def plan_output(write_to: Any, component: str, *, overwrite: bool, inputs: Sequence[Path]) -> Output:
    """Where an output goes, checked before anything is done.

    Parameters
    ----------
    write_to : path
        A zarr store on a local file system; made if there is none.
    component : str
        Path of the array within the store; "" for the store itself.
    overwrite : bool
        Whether an existing array may be replaced.
    inputs : sequence of Path
        Arrays that are read, never to be written.

    Raises
    ------
    OutputExistsError
        If the array is there and `overwrite` is not set.
    OutputError
        If the output would lie in an input or in another array.
    """
    root, component = store_path(write_to), component_path(component)
    path = root / component
    for source in inputs:
        if _same_or_within(path, source) or _same_or_within(source, path):
            raise OutputError(f"The output {path} would overwrite the input {source}. Inputs are never written.")
    _check_parents(root, path)
    if path.exists():
        _check_replaceable(path, overwrite)
    name = f".{'-'.join([root.name, *component.split('/')]).strip('-')}.{uuid.uuid4().hex[:8]}.partial"
    return Output(str(root), component, str(_workplace(root) / name))


def component_path(component: Any) -> str:
    """The path of an array within a store, "" for the store itself.

    Raises
    ------
    ParameterError
        If it leads out of the store.
    """
    if isinstance(component, str):
        parts = component.strip("/").split("/")
        if parts == [""] or not {"", ".", ".."} & set(parts):
            return "/".join(parts)
    raise ParameterError(f"output_component {component!r} must be a path within the store, such as 'labels/cells'.")


def _check_parents(root: Path, path: Path) -> None:
    """Refuse an output that would lie in a file or in another array."""
    existing = next(p for p in path.parents if p.exists())
    if not existing.is_dir():
        raise OutputError(f"The output {path} cannot be written: {existing} is a file. Choose another write_to.")
    for parent in path.parents:
        if parent.is_relative_to(root) and _node_kind(parent) == "array":
            raise OutputError(f"The output {path} would lie within the zarr array {parent}. Choose another component.")


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse to replace anything unless asked to, and what is no array in any case."""
    if not overwrite:
        raise _exists(path)
    if _node_kind(path) != "array" and not (path.is_dir() and not os.listdir(path)):
        kind = "a zarr group" if _node_kind(path) == "group" else "something that is no zarr array"
        raise OutputExistsError(
            f"There is {kind} at {path}; overwrite=True replaces arrays only. "
            "Give another output_component, such as 'labels/cells'."
        )


def store_path(write_to: Any) -> Path:
    """The absolute path of a store to write to.

    Raises
    ------
    ParameterError
        If it is not a path on a local file system.
    """
    if not isinstance(write_to, str | os.PathLike) or "://" in str(os.fspath(write_to)):
        raise ParameterError(
            f"write_to {write_to!r} is not a path on a local file system. Give the path of a zarr store."
        )
    return Path(os.path.abspath(write_to))


def chunks_within(grid: TileGrid) -> tuple[int, ...]:
    """Chunks of moderate size for an output: parts of a tile of a regular grid, so that no two tiles share one."""
    chunk = [max(n, 1) for n in grid.tile_shape]
    while math.prod(chunk) > _CHUNK_VOXELS:
        factors = [(c, axis) for axis, c in enumerate(chunk) if _smallest_factor(c) > 1]
        if not factors:
            break
        c, axis = max(factors)
        chunk[axis] = c // _smallest_factor(c)
    return tuple(chunk)


def _smallest_factor(n: int) -> int:
    """The smallest factor above 1 that leaves a chunk of at least 16, or 1."""
    return next((f for f in range(2, n // 16 + 1) if n % f == 0), 1)


def _workplace(root: Path) -> Path:
    """The folder beside the store; the store itself where it is mounted, since renames do not cross file systems."""
    existing = next(p for p in (root, *root.parents) if p.exists())
    if existing == root and os.stat(root).st_dev != os.stat(root.parent).st_dev:
        return root
    return root.parent


def _same_or_within(path: Path, other: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(other))


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(
        f"There is already something at {path}. Give overwrite=True to replace it, or another name."
    )


def _node_kind(path: Path) -> str | None:
    """Tell by the metadata that lies in a folder: "array", "group" or None."""
    if (path / ".zarray").exists():
        return "array"
    if (path / ".zgroup").exists():
        return "group"
    if (path / "zarr.json").exists():
        return "array" if isinstance(zarr.open(path, mode="r"), zarr.Array) else "group"
    return None


def _format_of(root: str) -> Literal[2, 3]:
    return 2 if any(Path(root, name).exists() for name in (".zgroup", ".zarray")) else 3


@functools.lru_cache(maxsize=16)
def _opened(output: Output) -> zarr.Array[Any]:
    return with_fast_codecs(zarr.open_array(output.partial, mode="r+"))
