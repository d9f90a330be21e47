"""The slice table and the file table: what was found, one row a slice, one row a file.

Both are Parquet. A slice's row number is its address in the feature arrays and never changes
meaning: a slice that is gone is withdrawn, its row stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stores.errors import CorruptStoreError

SLICE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        # Relative to the data root, with forward slashes; as `pipeline.read.escape_path` writes it.
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


@dataclass(frozen=True)
class Tables:
    """Both tables of one moment, the patients withdrawn by name, and what the moment is called."""

    slices: pa.Table
    files: pa.Table
    patients: frozenset[str]
    seen: str


def as_table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table, taken some at a time: Python's take ten times the room."""
    left = iter(rows)
    pieces = iter(lambda: list(itertools.islice(left, 4096)), [])
    batches = [pa.RecordBatch.from_pylist(some, schema=schema) for some in pieces]
    return pa.Table.from_batches(batches, schema=schema)


def parse_table(data: bytes) -> pa.Table:
    """Return the table of a Parquet file's bytes. Raises CorruptStoreError.

    Without Arrow's threads: a process that ends soon after may be aborted by them (apache/arrow
    #34314).
    """
    import pyarrow.parquet as pq  # where a table is read: an answer on file needs none

    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"A table of the store cannot be read: {error}.") from None


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, with checksums."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
