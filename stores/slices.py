"""The slice table and the file table: what was found, one row a slice, one row a file.

Both are Parquet. A slice's row number is its address in the feature arrays and never changes
meaning: a slice that is gone is withdrawn, its row stays.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from stores._types import Mask, Rows
from stores.contents import SLICES
from stores.errors import CorruptStoreError, as_corrupt
from stores.parquet_file import ParquetFile
from stores.withdrawn import Withdrawn

# Rows that are decoded at a time, where a table is not read as a whole.
_GROUP_ROWS = 2**13

SLICE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        # Relative to the data root, with forward slashes, escaped (`pipeline.shared.paths`).
        ("path", pa.string()),
        ("frame", pa.int32()),
        ("patient", pa.string()),  # pseudonyms; null where the file names none
        ("study", pa.string()),
        # One value a volume: the series' pseudonym, and behind a dot, from the second volume of
        # the series on, the volume's number.
        ("series", pa.string()),
        ("instance", pa.string()),
        ("position_mm", pa.float64()),  # along the normal of the slices
        ("modality", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing_y_mm", pa.float64()),
        ("spacing_x_mm", pa.float64()),
        ("flags", pa.list_(pa.string())),  # findings about the series: missing-position, ...
        # DICOM keyword -> the value's pseudonym, of the tags the config names; null where none is.
        ("tags", pa.map_(pa.string(), pa.string())),
        ("withdrawn", pa.bool_()),
    ]
)

FILE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("slices", pa.int32()),  # 0 where the file was set aside
        ("reason", pa.string()),  # null where the file was read; else one of `Reason`, or "other"
        ("detail", pa.string()),
    ]
)


# The columns without which a row of the slice table means nothing.
_NEEDED = ("row", "frame", "withdrawn")
_KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "text": lambda dtype: pa.types.is_string(dtype) or pa.types.is_large_string(dtype),
}
# More rows a byte than any collection's table has: a row takes some 40 bytes, and those of one
# regular volume a few.
_ROWS_A_BYTE = 16
# What stands in a SliceRow for null, so that whoever takes the value need not ask.
_UNNAMED = {"series": "", "modality": "", "height": 0, "width": 0, "flags": ()}


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One row of the slice table, for the slices that are looked at one by one.

    Bulk work goes by Arrow's columns: as Python's, a slice takes ten times the room. series and
    modality are empty and height and width 0 where nothing names them. A field with a default has
    it where the table was read without that column.
    """

    row: int
    path: str
    frame: int
    series: str
    modality: str
    patient: str | None = None
    instance: str | None = None
    position_mm: float | None = None
    height: int = 0
    width: int = 0
    spacing_y_mm: float | None = None
    spacing_x_mm: float | None = None
    withdrawn: bool = False
    flags: Sequence[str] = ()


def slice_rows(table: pa.Table) -> list[SliceRow]:
    """Return the rows of a slice table that has at least the first five columns of SliceRow.

    Raises KeyError where one of the five is not there.
    """
    columns: list[Iterable[Any]] = []
    for field in fields(SliceRow):
        if field.name not in table.column_names:
            if field.default is MISSING:
                raise KeyError(
                    f"A slice table must have the column {field.name!r}. "
                    f"It has: {', '.join(table.column_names)}."
                )
            columns.append(itertools.repeat(field.default))
        elif field.name in _UNNAMED:
            unnamed = _UNNAMED[field.name]
            columns.append([value or unnamed for value in table[field.name].to_pylist()])
        else:
            columns.append(table[field.name].to_pylist())
    return [SliceRow(*values) for values in zip(*columns, strict=False)]


@dataclass(frozen=True)
class Tables:
    """Both tables of one moment, who is withdrawn by name, and what the moment is called."""

    slices: pa.Table
    files: pa.Table
    withdrawn: Withdrawn
    seen: str


def as_table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table, taken some at a time: Python's take ten times the room."""
    left = iter(rows)
    pieces = iter(lambda: list(itertools.islice(left, 1024)), [])
    batches = [pa.RecordBatch.from_pylist(some, schema=schema) for some in pieces]
    return pa.Table.from_batches(batches, schema=schema)


def where(table: pa.Table, mask: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return the rows that a mask keeps: where it keeps all, the table itself and no copy."""
    import pyarrow.compute as pc  # an answer on file needs none

    keeps_all = pc.all(mask, skip_nulls=False, min_count=0).as_py()
    return table if keeps_all else table.filter(mask)


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return a table with other values in one of its columns, one a row."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def row_numbers(slices: pa.Table) -> Rows:
    """Return (n,) the rows of slices."""
    rows: Rows = slices["row"].to_numpy()
    return rows


def is_withdrawn(slices: pa.Table) -> Mask:
    """Return (n,) which slices are withdrawn."""
    withdrawn: Mask = slices["withdrawn"].to_numpy(zero_copy_only=False)
    return withdrawn


def end_of(rows: Rows) -> int:
    """Return the first row behind all of some ascending ones."""
    return int(rows[-1]) + 1 if rows.size else 0


def of_modalities(slices: pa.Table, wanted: Callable[[str], bool]) -> pa.ChunkedArray:
    """Return which slices are of a modality that is wanted: bool, one a slice."""
    import pyarrow.compute as pc  # an answer on file needs none

    names = filter(wanted, pc.unique(slices["modality"]).to_pylist())
    return pc.is_in(slices["modality"], pa.array(names, pa.string()))


class TableFile:
    """A table as the bytes of its Parquet file, of which as much is decoded as is asked for.

    Decoded, a slice takes some hundred bytes; in the file, some forty. Whatever decodes raises
    CorruptStoreError where it cannot.
    """

    def __init__(self, data: bytes, schema: pa.Schema | None = None) -> None:
        """Raises CorruptStoreError where the bytes are no Parquet file of a table.

        schema: SLICE_SCHEMA or FILE_SCHEMA, against which the columns are held.
        """
        with _readable():
            self._file = ParquetFile(data)
        # Nothing is decoded that would not stand in memory beside what it was decoded from.
        if self.rows > _ROWS_A_BYTE * len(data):
            raise CorruptStoreError(
                f"A table of the store has {self.rows} rows in {len(data)} bytes, which no table "
                "of a collection has."
            )
        self._schema = schema or self._file.schema
        _check_columns(self._file.schema, self._schema)

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return int(self._file.about.num_rows)

    @cached_property
    def table(self) -> pa.Table:
        """The table in full, kept once it was asked for."""
        return self.read()

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return some columns of the table, or all; nothing is kept.

        What a table of a version before lacks of those is null.
        """
        wanted = self._schema.names if columns is None else columns
        with _readable():
            return self._completed(self._file.read(wanted), wanted)

    def between(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of a slice table numbered from start to before stop, piece by piece.

        columns: those to read, `row` among them.
        """
        groups = self._file.groups(columns, first=int(np.searchsorted(self._last, start)))
        while True:
            with _readable():
                piece = next(groups, None)
                if piece is None:
                    return
                piece = self._completed(piece, columns)
            rows = piece["row"].to_numpy()
            if not rows.size:
                continue
            if rows[0] >= stop:
                return
            first, last = np.searchsorted(rows, (start, stop))
            yield piece.slice(first, last - first)

    def _completed(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        """Return columns of what was read, as the schema has them; null those that the file lacks.

        Raises CorruptStoreError where a row has no number, ArrowException where text is no
        UTF-8, or a value does not fit.
        """
        table.validate(full=True)
        for name in _NEEDED:
            if name in table.column_names and table[name].null_count:
                raise CorruptStoreError(f"A table of the store has rows without {name!r}.")
        values = []
        fields = [self._schema.field(name) for name in columns]
        for field in fields:
            place = table.schema.get_field_index(field.name)
            nothing = pa.chunked_array([pa.nulls(len(table), field.type)])
            values.append(nothing if place < 0 else table.column(place).cast(field.type))
        return pa.table(values, schema=pa.schema(fields, table.schema.metadata))

    @cached_property
    def _last(self) -> Rows:
        """The last row of each group of rows, which ascend."""
        about = self._file.about
        groups = map(about.row_group, range(about.num_row_groups))
        column = SLICE_SCHEMA.get_field_index("row")
        with as_corrupt(SLICES):
            last = [group.column(column).statistics.max for group in groups if group.num_rows]
            return np.array(last, np.int64)


def _check_columns(columns: pa.Schema, schema: pa.Schema) -> None:
    """Raise CorruptStoreError where a table lacks a column, or has one of another kind.

    Tables of versions before lack some, and may have numbers of other sizes.
    """
    twice = {name for name in columns.names if columns.names.count(name) > 1}
    if twice:
        raise CorruptStoreError(f"A table of the store has the columns {sorted(twice)} twice.")
    for field in schema:
        place = columns.get_field_index(field.name)
        if place < 0 and field.name in _NEEDED:
            raise CorruptStoreError(f"A table of the store has no column {field.name!r}.")
        if place >= 0 and _kind_of(columns.field(place).type) != _kind_of(field.type):
            raise CorruptStoreError(
                f"The column {field.name!r} of a table of the store must be {field.type}. "
                f"Got {columns.field(place).type} instead."
            )


def _kind_of(dtype: pa.DataType) -> str:
    for kind, is_kind in _KINDS.items():
        if is_kind(dtype):
            return kind
    return str(dtype.id)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"A table of the store cannot be read: {error}.") from None


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, with checksums."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=_GROUP_ROWS, write_page_checksum=True, compression="zstd"
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data
