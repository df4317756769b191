"""Tables in parquet files: complete, or not there."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from blockbuster.errors import OutputError, OutputExistsError, ParameterError
from blockbuster.files import remove_folder
from blockbuster.grid import met

__all__ = ["Column", "TableFile", "table_path"]

# For each column its values.
Rows: TypeAlias = Mapping[str, NDArray[Any]]

_SUFFIX = ".parquet"
# Under which key of the metadata of the file we keep what is told of its run.
_KEY = b"blockbuster"
# Rows of one group: what a reader takes into memory at once.
_GROUP = 1 << 20


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    unit : str or None
        Of the values, as UDUNITS names it; None for numbers without one, and where it is not known.
    """

    name: str
    dtype: np.dtype[Any]
    unit: str | None = None


def table_path(write_to: Any) -> Path:
    """The absolute path of a table to write.

    Raises
    ------
    ParameterError
        If it is no path of a parquet file on a local file system, or there is nothing to write such files with.
    """
    is_path = isinstance(write_to, str | os.PathLike) and "://" not in str(os.fspath(write_to))
    if not is_path or Path(write_to).suffix != _SUFFIX:
        raise ParameterError(
            f"write_to {write_to!r} is not the path of a parquet file on a local file system. Tables are written as "
            f"parquet: give a path that ends in {_SUFFIX!r}."
        )
    _pyarrow()
    return Path(os.path.abspath(write_to))


@dataclass(frozen=True)
class TableFile:
    """A parquet file in the making.

    Attributes
    ----------
    path : Path
        Where it will be.
    partial : str
        The folder in which it is until it is complete.
    """

    path: Path
    partial: str

    def check(self, *, overwrite: bool) -> None:
        """Refuse to write over what is there.

        Raises
        ------
        OutputExistsError
            If there is a file, and `overwrite` is not set.
        OutputError
            If there is something else.
        """
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a folder, which is not replaced by a table. Give another write_to.")
        if self.path.exists() and not overwrite:
            raise OutputExistsError(f"{self.path} exists. Give overwrite=True to replace it, or another write_to.")

    @contextlib.contextmanager
    def in_the_making(self) -> Iterator[None]:
        """Within it there is a folder for the parts; nothing is left of it in the end."""
        try:
            with self._writing():
                os.makedirs(self.partial, exist_ok=True)
            yield
        finally:
            remove_folder(self.partial)

    def write(self, columns: Iterable[Column], parts: Iterable[Rows], told: Mapping[str, Any]) -> int:
        """Write the rows of all parts, in their order, a group at a time; returns how many there are.

        Raises
        ------
        OutputError
            If they cannot be written.
        """
        pyarrow = _pyarrow()
        schema = _schema(columns, told)
        n = 0
        with self._writing(), pyarrow.parquet.ParquetWriter(self._new, schema) as writer:
            for group in _groups(parts):
                writer.write_table(pyarrow.table(dict(group), schema=schema))
                n += len(next(iter(group.values())))
        return n

    def commit(self, *, overwrite: bool) -> None:
        """Put the complete file in its place."""
        self.check(overwrite=overwrite)
        with self._writing():
            os.replace(self._new, self.path)

    def told(self) -> dict[str, Any]:
        """What is kept of its run with the file that is there; nothing where it is not ours."""
        pyarrow = _pyarrow()
        if not self.path.is_file():
            return {}
        try:
            kept = pyarrow.parquet.read_schema(self.path).metadata or {}
        except pyarrow.ArrowInvalid:
            return {}
        found: dict[str, Any] = json.loads(kept.get(_KEY, b"{}"))
        return found

    def lazily(self, n_columns: int) -> da.Array:
        """The first columns of the file as a lazy array of float64: its blocks are read when they are computed."""
        stored = StoredRows(str(self.path), n_columns, _groups_of(str(self.path)), os.stat(self.path).st_ino)
        # A name of its own: a file that replaces another at the same path is not the same table.
        rows: da.Array = da.from_array(stored, (stored.groups or (0,), n_columns), name=f"rows-{uuid.uuid4().hex}")
        return rows

    @property
    def _new(self) -> str:
        return os.path.join(self.partial, self.path.name)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OutputError, OutputExistsError):
            raise
        except OSError as error:
            raise OutputError(
                f"The table {self.path} cannot be written: {error}. Make room, or choose another write_to."
            ) from error


@dataclass(frozen=True)
class StoredRows:
    """The first columns of a parquet file, read group by group: what dask takes for an array.

    Attributes
    ----------
    path : str
        Absolute path of the file.
    groups : tuple of int
        Rows of each group.
    inode : int
        Of the file: another file that has come in its place is another table.
    """

    path: str
    n_columns: int
    groups: tuple[int, ...]
    inode: int
    ndim = 2
    dtype = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and columns."""
        return sum(self.groups), self.n_columns

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.float64]:
        """Some rows.

        Raises
        ------
        OutputError
            If the file is no longer that of the table.
        """
        rows, columns = (slice(*s.indices(n)) for s, n in zip(key, self.shape, strict=True))
        bounds = tuple(itertools.accumulate(self.groups, initial=0))
        wanted = met(bounds, rows.start, rows.stop) if rows.stop > rows.start else range(0)
        if not wanted:
            return np.empty((0, columns.stop - columns.start))
        file = _pyarrow().parquet.ParquetFile(self.path)
        if os.stat(self.path).st_ino != self.inode or _groups_of(self.path) != self.groups:
            raise OutputError(f"{self.path} was replaced since this table was made of it. Read it again.")
        names = file.schema_arrow.names[columns]
        found = file.read_row_groups(list(wanted), names)
        made = np.column_stack([found.column(name).to_numpy().astype(self.dtype) for name in names])
        return made[rows.start - bounds[wanted[0]] : rows.stop - bounds[wanted[0]]]


def _groups_of(path: str) -> tuple[int, ...]:
    metadata = _pyarrow().parquet.read_metadata(path)
    return tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))


def _schema(columns: Iterable[Column], told: Mapping[str, Any]) -> Any:
    pyarrow = _pyarrow()
    fields = [
        pyarrow.field(
            column.name,
            pyarrow.from_numpy_dtype(column.dtype),
            nullable=False,
            metadata=None if column.unit is None else {"unit": column.unit},
        )
        for column in columns
    ]
    return pyarrow.schema(fields, metadata={_KEY: json.dumps(told).encode()})


def _groups(parts: Iterable[Rows]) -> Iterator[dict[str, NDArray[Any]]]:
    """The rows of many small parts, as many together as a group may hold."""
    held: list[Rows] = []
    n = 0
    for part in parts:
        held.append(part)
        n += len(next(iter(part.values())))
        if n >= _GROUP:
            yield _joined(held)
            held, n = [], 0
    if n:
        yield _joined(held)


def _joined(parts: list[Rows]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pyarrow() -> ModuleType:
    """The library for parquet, which comes with an extra.

    Raises
    ------
    ParameterError
        If it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ParameterError(
            "Tables are written by pyarrow: pip install 'blockbuster-imaging[tables]'; or leave write_to away and take "
            "the rows as an array."
        ) from error
