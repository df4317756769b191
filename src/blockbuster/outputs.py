"""Zarr arrays and groups that appear whole or not at all.

An output is written beside its store under a name of its own and renamed into place when it is complete. What it
replaces is set aside first, and removed last. A patch, which changes some voxels of an array that is there, is written
in the same way, and moves into place chunk by chunk when all of them are complete.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from blockbuster.encoding import Encoding, ZarrFormat, group_files
from blockbuster.errors import BlockbusterError, OutputError, OutputExistsError, ParameterError
from blockbuster.files import remove_folder, write_new, write_whole
from blockbuster.grid import Region, TileGrid, region_shape
from blockbuster.stores import with_fast_codecs

__all__ = [
    "METADATA",
    "Members",
    "Output",
    "Patch",
    "component_path",
    "consolidate",
    "chunks_within",
    "format_of",
    "node_kind",
    "plan_members",
    "plan_output",
    "store_path",
]

# A chunk of 2^22 voxels is 16 MiB of int32: few files, and well below what blosc can take.
_CHUNK_VOXELS = 1 << 22
# What zarr, and we, call a file until it is whole.
_TEMPORARY = re.compile(r"[.][0-9a-f]{32}[.]partial$|^(zarr[.]json|complete[.]json|[.]z[a-z]+)[.][0-9a-f]{8}$")
_COMPLETE = "complete.json"
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Output:
    """An array or group of a zarr store in the making.

    Attributes
    ----------
    root : str
        Absolute path of the store.
    component : str
        Path of the output within the store.
    partial : str
        Where the output is until it is complete.
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

    def create(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        encoding: Encoding,
        *,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an empty array, the output itself or one within it; may be repeated.

        Raises
        ------
        OutputError
            If it cannot be made.
        """
        self._lay(name, encoding.files(shape, dtype, attributes or {}))

    def create_group(self, zarr_format: ZarrFormat, attributes: Mapping[str, Any], *, name: str = "") -> None:
        """Make a group, the output itself or one within it; may be repeated."""
        self._lay(name, group_files(zarr_format, attributes))

    def _lay(self, name: str, files: Mapping[str, bytes]) -> None:
        path = os.path.join(self.partial, name)
        is_new = not os.path.exists(path)
        try:
            with self._writing():
                os.makedirs(path, exist_ok=True)
                for key, data in files.items():
                    write_whole(os.path.join(path, key), data)
        except OutputError:
            if is_new:
                self.discard()
            raise

    def put(self, source: Path, name: str) -> None:
        """Copy a file or a folder into the output."""
        target = os.path.join(self.partial, name)
        with self._writing():
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)

    def write(self, region: Region, block: NDArray[Any], *, name: str = "") -> None:
        """Write whole chunks."""
        array = _opened(self, name)
        region, block = _whole_units(array, region, block)
        array[region] = block

    def read(self, region: Region, *, name: str = "") -> NDArray[Any]:
        """What was written."""
        return np.asarray(_opened(self, name)[region])

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Add attributes to the array or group."""
        with self._writing():
            zarr.open(self.partial, mode="r+").attrs.update(attributes)

    def commit(self, *, overwrite: bool) -> None:
        """Put the complete output in its place.

        Raises
        ------
        OutputExistsError
            If another one has come there and `overwrite` is not set.
        OutputError
            If it cannot be put there.
        """
        with self._writing():
            if self.component:
                self._make_groups(format_of(self.partial))
            self._swap(overwrite)
            consolidate(self.root)

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

    @property
    def is_begun(self) -> bool:
        """Whether an earlier try has left something to go on with."""
        return os.path.exists(self.partial)

    @property
    def is_complete(self) -> bool:
        """Whether all is written, and has only to be moved, a part of it perhaps being so already."""
        return os.path.exists(self._complete)

    @property
    def _complete(self) -> str:
        return os.path.join(self.partial, _COMPLETE)

    def tidy(self) -> None:
        """Remove the files that were under other names, to be renamed, when an earlier try was killed."""
        for folder, _, names in os.walk(self.partial):
            for name in filter(_TEMPORARY.search, names):
                os.unlink(os.path.join(folder, name))

    def discard(self) -> None:
        """Remove what was written so far."""
        remove_folder(self.partial)

    def _make_groups(self, form: ZarrFormat) -> None:
        parts = self.component.split("/")[:-1]
        for depth in range(len(parts) + 1):
            group = Path(self.root, *parts[:depth])
            if node_kind(group) is None:
                os.makedirs(group, exist_ok=True)
                for name, data in group_files(form, {}).items():
                    write_new(str(group / name), data)


def consolidate(root: str | Path, *, always: bool = False) -> None:
    """Where readers look arrays up in the metadata of a group, or of one around it, tell them what is in it now."""
    path = Path(root)
    while node_kind(path) is not None:
        group = zarr.open(path, mode="r")
        if isinstance(group, zarr.Group) and (always or group.metadata.consolidated_metadata is not None):
            with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
                zarr.consolidate_metadata(path)
        path, always = path.parent, False


@dataclass(frozen=True)
class Patch(Output):
    """Voxels of an array that is there, to be changed."""

    def create(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        encoding: Encoding,
        *,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare an array of the same form for the chunks that change."""
        with self._writing():
            os.makedirs(self.partial, exist_ok=True)
            for form in METADATA:
                if (self.path / form).exists():
                    shutil.copy2(self.path / form, self.partial)

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Leave the attributes of the array as they are, and note that all chunks are written."""
        with self._writing():
            write_whole(self._complete, b"{}")

    def commit(self, *, overwrite: bool) -> None:
        """Move the changed chunks into the array.

        Raises
        ------
        OutputError
            If that is no longer of the form that the chunks were written for.
        """
        with self._writing():
            if _form_of(self.path) != _form_of(Path(self.partial)):
                raise OutputError(f"{self.path} was replaced by an array of another form. Start again.")
            chunks = list(self._chunks())
            if chunks:
                self._forget_the_run()
            for key in chunks:
                os.makedirs((self.path / key).parent, exist_ok=True)
                os.replace(os.path.join(self.partial, key), self.path / key)
            self.discard()

    def _forget_the_run(self) -> None:
        """The array is no longer what the run made that it tells of."""
        attributes = zarr.open_array(self.path, mode="r+").attrs
        told: Any = attributes.asdict().get("blockbuster")
        if isinstance(told, Mapping) and "run" in told:
            attributes["blockbuster"] = {key: value for key, value in told.items() if key != "run"}

    def _chunks(self) -> Iterator[str]:
        """Names of the files of chunks that are not moved yet."""
        for folder, _, names in os.walk(self.partial):
            for name in names:
                key = os.path.relpath(os.path.join(folder, name), self.partial)
                if key not in (*METADATA, _COMPLETE):
                    yield key


@dataclass(frozen=True)
class Part(Output):
    """A new array of which other runs may make other parts.

    Attributes
    ----------
    merges : bool
        Whether it may go into an array that another run has made meanwhile: whole chunks may, parts of them not.
    """

    merges: bool = True

    def _swap(self, overwrite: bool) -> None:
        try:
            os.makedirs(self.path.parent, exist_ok=True)
            os.rename(self.partial, self.path)
        except OSError:
            if not self.path.exists() or not os.path.exists(self.partial):
                raise
            # Another run was first.
            if not overwrite or not self.merges:
                raise _exists(self.path, patches=True) from None
            Patch(self.root, self.component, self.partial).commit(overwrite=True)


@dataclass(frozen=True)
class Members(Output):
    """Arrays of a group that is there, to be added to it or to replace others, and the attributes that tell of them.

    Attributes
    ----------
    names : tuple of str
        Paths of the new arrays within the group.
    stale : tuple of str
        Paths of the arrays that go.
    """

    names: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    def check(self, *, overwrite: bool) -> None:
        """Refuse to replace what is there, unless asked to; not when all that is left is to move the arrays in.

        Raises
        ------
        OutputExistsError
            If there are levels, and `overwrite` is not set, or something else is where levels would go.
        """
        if self.is_complete:
            return
        if self.stale and not overwrite:
            raise OutputExistsError(
                f"The image {self.path} has the coarser levels {', '.join(self.stale)}. Give overwrite=True to replace "
                "them."
            )
        taken = [name for name in self.names if (self.path / name).exists() and name not in self.stale]
        if taken:
            raise OutputExistsError(
                f"There is already {', '.join(taken)} in {self.path}, where levels of its image would go."
            )

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Note what the attributes of the group are to be: from then on there is no way back."""
        with self._writing():
            os.makedirs(self.partial, exist_ok=True)
            told = {"attributes": attributes, "stale": self.stale}
            write_whole(self._complete, json.dumps(told).encode())

    def commit(self, *, overwrite: bool) -> None:
        """Move the arrays in, tell of them in the attributes, and remove those that go."""
        aside = f"{self.partial}.replaced"
        with self._writing():
            told = json.loads(Path(self._complete).read_bytes())
            attributes, stale = told["attributes"], told["stale"]
            group = zarr.open_group(self.path, mode="r+")
            # The metadata name no level that is not there, at no time.
            group.attrs.update(_with_finest_only(group.attrs.asdict()))
            os.makedirs(aside, exist_ok=True)
            for name in sorted({*stale, *self.names}):
                new, there = Path(self.partial, name), self.path / name
                # What is not here any more is there already: an earlier try was stopped half-way.
                if there.exists() and (new.exists() or name not in self.names):
                    os.rename(there, os.path.join(aside, uuid.uuid4().hex))
                if new.exists():
                    os.makedirs(there.parent, exist_ok=True)
                    os.rename(new, there)
            group.attrs.update(attributes)
            for left in filter(_TEMPORARY.search, os.listdir(self.path)):
                os.unlink(self.path / left)
            consolidate(self.root)
            remove_folder(aside)
            self.discard()


def _with_finest_only(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an image whose first multiscale has its first level only."""
    ome = attributes.get("ome", attributes)
    first, *others = ome["multiscales"]
    ome["multiscales"] = [{**first, "datasets": first["datasets"][:1]}, *others]
    return attributes


def _levels_in(attributes: Mapping[str, Any]) -> set[str]:
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    found = [image.get("datasets") for image in images or () if isinstance(image, Mapping)]
    return {
        str(one["path"]) for datasets in found for one in datasets or () if isinstance(one, Mapping) and "path" in one
    }


def plan_output(
    write_to: Any, component: str, *, overwrite: bool, inputs: Sequence[Path], patches: bool = False
) -> Output:
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
        What is read, never to be written.
    patches : bool
        Whether an array that is there is to be changed, not replaced.

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
        _check_replaceable(path, overwrite, patches)
    name = f".{'-'.join([root.name, *component.split('/')]).strip('-')}.{uuid.uuid4().hex[:8]}.partial"
    kind = (Patch if path.exists() else Part) if patches else Output
    return kind(str(root), component, str(_workplace(root) / name))


def plan_members(path: Path, names: Sequence[str], stale: Sequence[str]) -> Members:
    """Arrays to be put into the group at `path`, in place of the stale ones."""
    name = f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    return Members(str(path), "", str(_workplace(path) / name), names=tuple(names), stale=tuple(stale))


def component_path(component: Any) -> str:
    """The path of an array within a store, "" for the store itself.

    Raises
    ------
    ParameterError
        If it leads out of the store.
    """
    if isinstance(component, str):
        parts = component.strip("/").split("/")
        if parts == [""] or not {"", ".", "..", *METADATA} & set(parts):
            return "/".join(parts)
    raise ParameterError(f"output_component {component!r} must be a path within the store, such as 'labels/cells'.")


def _check_parents(root: Path, path: Path) -> None:
    """Refuse an output that would lie in a file or in another array."""
    existing = next(p for p in path.parents if p.exists())
    if not existing.is_dir():
        raise OutputError(f"The output {path} cannot be written: {existing} is a file. Choose another write_to.")
    for parent in path.parents:
        if parent.is_relative_to(root) and node_kind(parent) == "array":
            raise OutputError(f"The output {path} would lie within the zarr array {parent}. Choose another component.")


def _check_replaceable(path: Path, overwrite: bool, patches: bool) -> None:
    """Refuse to change anything unless asked to, and what others would miss in any case."""
    if not overwrite:
        raise _exists(path, patches)
    kind = node_kind(path)
    if kind == "array" or (path.is_dir() and not os.listdir(path)):
        return
    if kind == "group" and not patches:
        others = _other_members(path)
        if others is None or others:
            raise OutputExistsError(
                f"There is a zarr group at {path} with {', '.join(others or ['members'])} in it; overwrite=True "
                "replaces arrays, and images with nothing else in their group. Give another output_component, such as "
                "'labels/cells', or delete what is there."
            )
        return
    raise OutputExistsError(
        f"There is something that is no zarr array at {path}; overwrite=True does not replace it. Give another "
        "output_component, such as 'labels/cells'."
    )


def _other_members(path: Path) -> list[str] | None:
    """What lies in the group of an image beside its levels; None if it is no image."""
    group = zarr.open_group(path, mode="r")
    attributes: Any = group.attrs.asdict()
    if not _levels_in(attributes):
        return None
    levels = {name.split("/")[0] for name in _levels_in(attributes)}
    return sorted(entry.name for entry in path.iterdir() if entry.name not in {*levels, *METADATA})


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
    if any(part.endswith(".zip") for part in Path(write_to).parts):
        raise ParameterError(f"write_to {write_to!r} leads into a zip file, which is only read. Give a folder.")
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


def _exists(path: Path, patches: bool = False) -> OutputExistsError:
    if patches:
        return OutputExistsError(
            f"There is already something at {path}. Give overwrite=True to change the voxels within mask and "
            "block_ids, and to leave the others as they are, or another name."
        )
    return OutputExistsError(
        f"There is already something at {path}. Give overwrite=True to replace it, or another name."
    )


def _form_of(path: Path) -> dict[str, Any]:
    """What chunks depend on."""
    form = zarr.open_array(path, mode="r").metadata.to_dict()
    return {key: value for key, value in form.items() if key != "attributes"}


def node_kind(path: Path) -> str | None:
    """What a folder is, by the metadata that lie in it: "array", "group" or None."""
    if (path / ".zarray").exists():
        return "array"
    if (path / ".zgroup").exists():
        return "group"
    if (path / "zarr.json").exists():
        return "array" if isinstance(zarr.open(path, mode="r"), zarr.Array) else "group"
    return None


def format_of(root: str | Path) -> ZarrFormat:
    """The zarr format of a store; 3 where there is none yet."""
    return 2 if any(Path(root, name).exists() for name in (".zgroup", ".zarray")) else 3


@functools.lru_cache(maxsize=64)
def _opened(output: Output, name: str) -> zarr.Array[Any]:
    """An array to be written, as if it ended with its last chunks or shards.

    The fast codecs would read those that go beyond its end, to put a part of them in: a killed task may have left them
    half-written, and another may be at work on them.
    """
    array = _up_to_whole_units(zarr.open_array(output.partial, path=name, mode="r+"))
    if isinstance(output, Patch | Part):
        # A chunk that has become empty must be stored, to replace the one that is there; zarrs would leave it out.
        return array.with_config({"write_empty_chunks": True})
    if array.dtype.kind == "c":
        # Zarr takes complex numbers for empty that are 0 but for their signs.
        array = array.with_config({"write_empty_chunks": True})
    return with_fast_codecs(array)


def _up_to_whole_units(array: zarr.Array[Any]) -> zarr.Array[Any]:
    inner = array.async_array
    shape = _rounded_up(array.shape, array.shards or array.chunks)
    return zarr.Array(zarr.AsyncArray(inner.metadata.update_shape(shape), inner.store_path, inner.config))


def _whole_units(array: zarr.Array[Any], region: Region, block: NDArray[Any]) -> tuple[Region, NDArray[Any]]:
    """A region and its block, up to the end of the last chunks or shards that it meets."""
    stops = _rounded_up([s.stop for s in region], array.shards or array.chunks)
    whole = tuple(slice(s.start, stop) for s, stop in zip(region, stops, strict=True))
    if whole == region:
        return region, block
    fill = np.zeros((), array.dtype)[()] if array.fill_value is None else array.fill_value
    padded = np.full(region_shape(whole), fill, array.dtype)
    padded[tuple(slice(n) for n in block.shape)] = block
    return whole, padded


def _rounded_up(extents: Sequence[int], unit: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // u) * u for n, u in zip(extents, unit, strict=True))
