"""How a label file joins a collection: how many rows and slices do, and why others do not.

Dims: m slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_causes import cause_of
from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.label_join import (
    column_texts,
    distinct_rows,
    label_keys,
    label_rows,
)
from pipeline.annotations.patients import rows_of_withdrawn
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.withdrawn import NOBODY, Withdrawn

EXAMPLES = 3


@dataclass(frozen=True)
class JoinReport:
    """What of a label file joins what of a collection.

    rows: different keys; a row without a key counts by itself. repeated: the rows beyond those,
    which say again what one says. withdrawn_rows: those that join none
    since their patients were withdrawn. slices: those that are there. cause:
    the likeliest for the rows that join none, "" where all join. row_examples, slice_examples: the
    first that do not join, as a message may name them. notes: as `LabelTable` and `label_keys` have
    them.
    """

    file: str
    by: str
    rows: int
    joined_rows: int
    slices: int
    joined_slices: int
    cause: str
    row_examples: tuple[str, ...]
    slice_examples: tuple[str, ...]
    notes: tuple[str, ...]
    withdrawn_rows: int = 0
    repeated: int = 0

    def lines(self) -> list[str]:
        """Return it in sentences."""
        lost_rows = self.rows - self.joined_rows - self.withdrawn_rows
        lost_slices = self.slices - self.joined_slices
        counted = f", and {self.repeated} that repeat one of them," if self.repeated else ""
        lines = [
            f"Labels: {self.joined_rows} of {count(self.rows, 'row')} of {self.file!r}{counted} "
            f"join {self.joined_slices} of {count(self.slices, 'slice')} by {self.by}."
        ]
        if self.withdrawn_rows:
            lines.append(f"{self.withdrawn_rows} rows are of patients who were withdrawn.")
        if lost_rows:
            shown = f" First: {', '.join(self.row_examples)}."
            lines.append(
                f"{count(lost_rows, 'row joins', 'rows join')} no slice: {self.cause}.{shown}"
            )
        if lost_slices:
            shown = f" First: {', '.join(self.slice_examples)}." if self.slice_examples else ""
            lines.append(
                f"{count(lost_slices, 'slice has', 'slices have')} no row in the labels.{shown}"
            )
        return lines + [f"Labels: {note}." for note in self.notes]


def join_report(
    table: LabelTable, slices: pa.Table, root: Path, names: Names, withdrawn: Withdrawn = NOBODY
) -> JoinReport:
    """Return how a label table joins slices (SLICE_SCHEMA, real paths).

    Raises LabelError where no slice has the tag that labels are joined by.
    """
    by = table.settings.by
    found = label_keys(table, slices, root, names)
    keys = found.keys
    live = slices.filter(pa.array(~column_texts(slices, "withdrawn").astype(bool)))
    label = label_rows(table, keys, live)
    joined = {keys[i] for i in np.unique(label[label >= 0]).tolist()}
    first_of_key = distinct_rows(table, keys, joined)
    spare = [i for key, i in first_of_key.items() if key not in joined]
    of_withdrawn = rows_of_withdrawn(table, keys, slices, names, withdrawn)
    lost = [i for i in spare if not of_withdrawn[i]]
    without = live.filter(pa.array(label < 0))
    # Of each file that joins nothing, its first slice.
    first_rows: dict[str, int] = {}
    for path, row in zip(*(without[name].to_pylist() for name in ("path", "row")), strict=True):
        first_rows.setdefault(path, row)
    lost_files = list(first_rows.items())[:EXAMPLES]
    is_kept = names.paths == "keep"
    # Rows are known where there is a store.
    may_show = is_kept or names.has_key
    row_examples = []
    for i in lost[:EXAMPLES]:
        path = f" ({keys[i]})" if by == "path" and keys[i] and is_kept else ""
        row_examples.append(f"data row {i + 1}{path}")
    return JoinReport(
        file="BIDS tables" if table.lists_files else table.settings.file.name,
        by=by,
        rows=len(first_of_key),
        joined_rows=len(first_of_key) - len(spare),
        slices=len(live),
        joined_slices=int((label >= 0).sum()),
        cause=cause_of(table, lost, keys, live, root, names) if lost else "",
        row_examples=tuple(row_examples),
        slice_examples=tuple(
            path if is_kept else f"row {row}" for path, row in lost_files if may_show
        ),
        notes=(*table.notes, *found.notes),
        withdrawn_rows=len(spare) - len(lost),
        repeated=0 if table.lists_files else len(keys) - len(first_of_key),
    )
