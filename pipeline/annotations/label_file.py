"""The label file: CSV or Parquet, read as text, so that equal labels are equal in either."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.data import Labels
from pipeline.config.tasks import Task
from stores.errors import LabelError

Texts = NDArray[Any]  # (n,) of str, or None


@dataclass(frozen=True)
class LabelTable:
    """The columns of a label file that some tasks need, as text, with the settings they join by."""

    settings: Labels
    columns: dict[str, Texts]

    def digest(self, task: Task) -> str:
        """Return the sha256 of what `task` depends on: another column's edit leaves it alone."""
        digest = hashlib.sha256()
        for name in _columns_of(self.settings, [task]):
            digest.update(f"{name}\0{len(self.columns[name])}\0".encode())
            digest.update("\0".join(self.columns[name]).encode())
        return digest.hexdigest()


def read_labels(settings: Labels, tasks: Iterable[Task], more: Iterable[str] = ()) -> LabelTable:
    """Read the columns that `tasks` need, and `more`.

    Raises LabelError for a missing file or column.
    """
    wanted = list(dict.fromkeys([*_columns_of(settings, tasks), *more]))
    try:
        table = _read_table(settings.file, wanted)
    except FileNotFoundError:
        raise LabelError(
            f"There is no label file {str(settings.file)!r}; set labels.file to a CSV or Parquet."
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise LabelError(f"The label file {str(settings.file)!r} cannot be read: {error}") from None
    columns = {name: _texts(table.column(name)) for name in wanted}
    return LabelTable(settings, columns)


def _columns_of(settings: Labels, tasks: Iterable[Task]) -> list[str]:
    """Return the key, the patient column if any, labels and subgroups, each once."""
    first = [settings.key] + ([settings.patient] if settings.patient else [])
    asked = [name for task in tasks for name in (*task.labels, *task.subgroups)]
    return list(dict.fromkeys(first + asked))


def _read_table(path: Path, wanted: Sequence[str]) -> Any:
    """Return the wanted columns as a pyarrow table: of text from CSV, of any type from Parquet."""
    if path.suffix.lower() in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        _require(path, wanted, pq.read_schema(path).names)
        return pq.read_table(path, columns=list(wanted))
    from pyarrow import csv

    with csv.open_csv(path) as reader:
        _require(path, wanted, reader.schema.names)
    convert = csv.ConvertOptions(
        include_columns=list(wanted), column_types={name: pa.string() for name in wanted}
    )
    return csv.read_csv(path, convert_options=convert)


def _require(path: Path, wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(names)}."
            raise LabelError(f"The label file {str(path)!r} has no column {name!r}. {hint}")


def _texts(column: Any) -> Texts:
    """Return a pyarrow column as an array of stripped text; a whole number loses its ".0"."""
    if column.type != pa.string():  # a cast imports all of Arrow's functions
        column = column.cast(pa.string())
    return np.array([_text(value or "") for value in column.to_pylist()], dtype=object)


def _text(value: str) -> str:
    value = value.strip()
    head, dot, tail = value.partition(".")
    return head if dot and tail.strip("0") == "" and head.lstrip("+-").isdecimal() else value
