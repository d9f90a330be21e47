"""How a label file joins a collection: how many rows and slices do, and why others do not.

Dims: m slices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.label_join import (
    column_texts,
    distinct_rows,
    label_keys,
    label_rows,
    prefix_hint,
)
from pipeline.annotations.patients import rows_of_withdrawn
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.inside import is_below
from stores.withdrawn import NOBODY, Withdrawn

EXAMPLES = 3
# Of rows that join nothing, so many are looked into for the cause.
_LOOKED_INTO = 1000
_ELSEWHERE = "files of that name lie in another folder: paths are relative to data.root"


@dataclass(frozen=True)
class JoinReport:
    """What of a label file joins what of a collection.

    rows: different keys; a row without a key counts by itself. withdrawn_rows: those that join none
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

    def lines(self) -> list[str]:
        """Return it in sentences."""
        lost_rows = self.rows - self.joined_rows - self.withdrawn_rows
        lost_slices = self.slices - self.joined_slices
        lines = [
            f"Labels: {self.joined_rows} of {count(self.rows, 'row')} of {self.file!r} join "
            f"{self.joined_slices} of {count(self.slices, 'slice')} by {self.by}."
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
        cause=_cause(table, lost, keys, live, root, names) if lost else "",
        row_examples=tuple(row_examples),
        slice_examples=tuple(
            path if is_kept else f"row {row}" for path, row in lost_files if may_show
        ),
        notes=(*table.notes, *found.notes),
        withdrawn_rows=len(spare) - len(lost),
    )


def _cause(
    table: LabelTable,
    lost: list[int],
    keys: list[str],
    slices: pa.Table,
    root: Path,
    names: Names,
) -> str:
    """Return the likeliest cause that rows join nothing, and of how many it would be the cause."""
    some = lost[:_LOOKED_INTO]
    raw = [str(table.columns[table.settings.key][i]) for i in some]
    if not any(raw):
        return "their key is empty"
    if table.settings.by == "path":
        paths = set(column_texts(slices, "path"))
        causes = _causes_of_paths([keys[i] for i in some], paths, root)
    else:
        causes = _causes_of_ids(table.settings.by, raw, slices, names)
    if not causes:
        what = "path" if table.settings.by == "path" else table.settings.by
        return f"no image of the collection has that {what}, nor one like it"
    cause, n = causes.most_common(1)[0]
    if cause == _ELSEWHERE:
        is_lost = set(some)
        lost_keys = [key if i in is_lost else "" for i, key in enumerate(keys)]
        hint = prefix_hint(table, lost_keys, paths, names)
        cause += hint and f"; {hint}"
    return f"likeliest (as for {n} of {len(some)}), {cause}"


def _causes_of_paths(lost: list[str], paths: set[str], root: Path) -> Counter[str]:
    there = [PurePosixPath(path) for path in paths]
    any_case = {str(path).casefold() for path in there}
    without_suffix = {str(path.with_suffix("")) for path in there}
    by_name = {path.name for path in there}
    causes: Counter[str] = Counter()
    for key in filter(None, lost):
        path = PurePosixPath(key)
        if key.casefold() in any_case:
            causes["they differ from files of the collection in upper and lower case alone"] += 1
        elif {key, str(path.with_suffix(""))} & without_suffix:
            causes["they lack the suffix of a file, or have another"] += 1
        elif path.name in by_name:
            causes[_ELSEWHERE] += 1
        elif is_below(key) and (root / unescape_path(key)).exists():
            causes[
                "they are on the disk, but no image was read there, or data.include and exclude "
                "leave them out"
            ] += 1
    return causes


def _causes_of_ids(by: str, raw: list[str], slices: pa.Table, names: Names) -> Counter[str]:
    causes: Counter[str] = Counter()
    for kind in ("patient", "study", "series"):
        there = set(column_texts(slices, kind))
        if kind == by:
            for text in raw:
                others = {text.upper(), text.lower()} - {text}
                if any(names.pseudonym(kind, other) in there for other in others):
                    causes["they differ from ids in upper and lower case alone"] += 1
            continue
        is_kind = sum(names.pseudonym(kind, text) in there for text in raw if text)
        if is_kind:
            causes[f"they are ids of another kind: set `by: {kind}` in labels"] += is_kind
    files = set(column_texts(slices, "path"))
    is_path = sum(text in files for text in raw if text)
    if is_path:
        causes["they are paths: set `by: path` in labels"] += is_path
    return causes
