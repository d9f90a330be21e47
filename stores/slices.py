"""The slice table and the file table: what was found, one row a slice, one row a file.

Both are Parquet. A slice's row number is its address in the feature arrays and never changes
meaning: a slice that is gone is withdrawn, its row stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

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
class Reconciled:
    """A new slice table, and how many slices came into it which way."""

    slices: pa.Table
    same: int
    moved: int
    added: int
    changed: int
    withdrawn: int


def reconcile(
    stored: pa.Table,
    found: pa.Table,
    *,
    opened: Set[str],
    digest_of: Callable[[int], str | None],
    hash_file: Callable[[str], str | None],
    boundary: int,
) -> Reconciled:
    """Give found slices their row numbers: known content keeps its row, the rest is appended.

    stored, found: SLICE_SCHEMA, found in extraction order without rows. opened: found paths whose
    size or time differ from when they were last seen. digest_of: row -> sha256 of the file it was
    made from, None where nothing was made yet. hash_file: path -> sha256 now. boundary: the first
    row of a fresh part. A slice keeps its row by path and frame while its content is the same, or
    by content where a file was moved or renamed; a slice no longer found is withdrawn.
    """
    old, new = stored.to_pylist(), found.to_pylist()
    hash_once = functools.cache(hash_file)

    def unchanged(slice_: dict[str, Any], row: dict[str, Any]) -> bool:
        if slice_["modality"] != row["modality"]:  # its intensities are read by another rule now
            return False
        made_from = digest_of(row["row"])
        return (
            slice_["path"] not in opened
            or made_from is None
            or made_from == hash_once(slice_["path"])
        )

    # Live rows win over withdrawn ones of the same name.
    by_name = {(row["path"], row["frame"]): row for row in sorted(old, key=_live_last)}
    kept: dict[int, dict[str, Any]] = {}
    rest: list[dict[str, Any]] = []
    for slice_ in new:
        row = by_name.get((slice_["path"], slice_["frame"]))
        if row is not None and unchanged(slice_, row):
            kept[row["row"]] = {**slice_, "row": row["row"]}
        else:
            rest.append(slice_)
    same = len(kept)

    by_content = {
        (digest_of(row["row"]), row["frame"], row["modality"]): row["row"]
        for row in sorted(old, key=_live_last)
        if row["row"] not in kept and digest_of(row["row"]) is not None
    }
    appended: list[dict[str, Any]] = []
    for slice_ in rest:
        content = hash_once(slice_["path"]) if by_content else None
        known = by_content.pop((content, slice_["frame"], slice_["modality"]), None)
        if known is None:
            appended.append({**slice_, "row": boundary + len(appended)})
        else:
            kept[known] = {**slice_, "row": known}
    gone = [row for row in old if row["row"] not in kept]
    changed = sum((slice_["path"], slice_["frame"]) in by_name for slice_ in appended)
    rows = [
        *({**row, "withdrawn": False} for row in (*kept.values(), *appended)),
        *({**row, "withdrawn": True} for row in gone),
    ]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["row"]), schema=SLICE_SCHEMA)
    return Reconciled(
        slices=table,
        same=same,
        moved=len(kept) - same,
        added=len(appended) - changed,
        changed=changed,
        withdrawn=sum(not row["withdrawn"] for row in gone),
    )


def _live_last(row: dict[str, Any]) -> bool:
    return not row["withdrawn"]
