"""Predictions as a file, a piece at a time: CSV, Parquet or JSON, whole or not there."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.shared.spreadsheets import quoted
from stores._disk import sync, temporary_name, writing
from stores.errors import ConfigError

SUFFIXES = (".csv", ".parquet", ".json")
# Adds the rows of a table, whose columns are those of the schema.
Write = Callable[[pa.Table], None]


def check_suffix(path: Path) -> None:
    """Raise ConfigError where a file's ending names no format."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"Predictions are written as {', '.join(SUFFIXES)}. Got {str(path)!r} instead; give "
            "--out one of these endings."
        )


@contextlib.contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    """Yield what writes pieces of a table to a file, which is there once all went well.

    A file that is there already is replaced then. Raises ConfigError, UnwritableError.
    """
    check_suffix(path)
    writers = {".csv": _csv, ".parquet": _parquet, ".json": _json}
    temporary = path.with_name(temporary_name(path.name))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with writers[path.suffix.lower()](temporary, schema) as write:
                yield write
            # The bytes before the name: a table that stands after a crash is whole.
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(quoted(schema.empty_table()).column_names)

        def write(piece: pa.Table) -> None:
            # Numbers as Python writes them: read back, they are the same.
            columns = [column.to_pylist() for column in quoted(piece).columns]
            out.writerows(zip(*columns, strict=True))

        yield write


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_table


@contextlib.contextmanager
def _json(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        separator = "\n"

        def write(piece: pa.Table) -> None:
            nonlocal separator
            for row in piece.to_pylist():
                file.write(separator + json.dumps(row))
                separator = ",\n"

        yield write
        file.write("\n]\n")
