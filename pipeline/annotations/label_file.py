"""The label file: CSV or Parquet, read as text, so that equal labels are equal in either."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.data import Labels
from pipeline.config.tasks import Task
from pipeline.shared.spreadsheets import unquoted_cell
from stores.errors import LabelError

# Endings of names that are read as Parquet; all else is CSV.
PARQUET = (".parquet", ".pq")

# What Arrow says of a row that is torn, without the row.
_COUNTS = re.compile(r"(Row #\d+: )?Expected \d+ columns, got \d+")

# (n,) of str, or None
Texts = NDArray[Any]


@dataclass(frozen=True)
class LabelTable:
    """The columns of a label file that some tasks need, as text, with the settings they join by."""

    settings: Labels
    columns: dict[str, Texts]

    def digest(self, task: Task) -> str:
        """Return the sha256 of what `task` depends on: another column's edit leaves it alone."""
        digest = hashlib.sha256()
        for name in _columns_of(self.settings, [task]):
            texts = self.columns[name]
            digest.update(f"{name}\0{len(texts)}\0".encode())
            digest.update("\0".join(texts).encode())
        return digest.hexdigest()


def read_labels(
    settings: Labels,
    tasks: Iterable[Task],
    more: Iterable[str] = (),
) -> LabelTable:
    """Read the columns that `tasks` need, and `more`.

    Raises LabelError for a missing file or column.
    """
    names = list(dict.fromkeys([*_columns_of(settings, tasks), *more]))
    try:
        table = _read_table(settings.file, names)
    except FileNotFoundError:
        raise LabelError(
            f"There is no label file {str(settings.file)!r}; set labels.file to a CSV or Parquet."
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        why = _why_unread(error)
        raise LabelError(f"The label file {str(settings.file)!r} cannot be read: {why}.") from None
    columns = {name: _texts(table.column(name)) for name in names}
    return LabelTable(settings, columns)


def _columns_of(settings: Labels, tasks: Iterable[Task]) -> list[str]:
    """Return the key, the patient column if any, labels and subgroups, each once."""
    names = [settings.key]
    if settings.patient:
        names.append(settings.patient)
    for task in tasks:
        names += task.labels
        names += task.subgroups
    return list(dict.fromkeys(names))


def _read_table(path: Path, names: Sequence[str]) -> Any:
    """Return some columns as a pyarrow table: of text from CSV, of any type from Parquet."""
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path, names)
    return _read_csv(path, names)


def _read_parquet(path: Path, names: Sequence[str]) -> Any:
    import pyarrow.parquet as pq

    _require(path, names, pq.read_schema(path).names)
    return pq.read_table(path, columns=list(names))


def _read_csv(path: Path, names: Sequence[str]) -> Any:
    from pyarrow import csv

    # A report may stand in a quoted cell, over several lines (RFC 4180).
    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as reader:
        _require(path, names, reader.schema.names)
    # As text: what pyarrow would make of a column depends on all of its values.
    convert = csv.ConvertOptions(
        include_columns=list(names),
        column_types={name: pa.string() for name in names},
    )
    return csv.read_csv(path, parse_options=parse, convert_options=convert)


def _require(
    path: Path,
    names: Sequence[str],
    there: Sequence[str],
) -> None:
    """Raise LabelError for a name that is not among the columns that are there."""
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            if near:
                hint = f"Did you mean {near[0]!r}?"
            elif set(names) & set(there):
                hint = f"It has {', '.join(there)}."
            else:  # the first line may be data, and name a patient
                hint = f"Its first line must name the columns; it has {len(there)} others."
            raise LabelError(f"The label file {str(path)!r} has no column {name!r}. {hint}")


def _why_unread(error: Exception) -> str:
    """Return why a table cannot be read, without the cells that Arrow quotes."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    counts = _COUNTS.search(str(error))
    if counts is None:
        return "it is no table of UTF-8 text, or no Parquet"
    return f"{counts[0]}. Correct that row, or put cells with commas into quotes"


def _texts(column: Any) -> Texts:
    """Return a pyarrow column as an array of stripped text; a whole number loses its ".0"."""
    if column.type != pa.string():  # a cast imports all of Arrow's functions
        column = column.cast(pa.string())
    return np.array([_text(value or "") for value in column.to_pylist()], dtype=object)


def _text(value: str) -> str:
    value = unquoted_cell(value.strip())
    digits, point, fraction = value.partition(".")
    is_integer = point and not fraction.strip("0") and digits.lstrip("+-").isdecimal()
    return digits if is_integer else value
