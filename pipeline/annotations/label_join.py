"""Which label row each slice belongs to: by its path, an id, or the value of a DICOM tag.

A row joins slices by the path of their file or of any folder above it (the nearest named one
wins), by a patient, study or series id, or by the value of a DICOM tag. Dims: m slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError

LabelRows = NDArray[np.int64]


def label_keys(
    table: LabelTable,
    root: Path,
    names: Names,
) -> list[str]:
    """Return what each label row is joined by: a relative path, or a pseudonym; "" for none."""
    by = table.settings.by
    raw = table.columns[table.settings.key]
    if by == "path":
        folder = f"{root.as_posix().rstrip('/')}/"
        return [_relative(text, folder) for text in raw]
    pseudonyms = pseudonyms_of(by, raw, names)
    return [pseudonyms.get(text, "") for text in raw]


def pseudonyms_of(
    kind: str,
    raw: Iterable[str],
    names: Names,
) -> dict[str, str]:
    """Return the pseudonym of each id that is named, as `Names.pseudonym` has it."""
    return {text: names.pseudonym(kind, text) for text in set(raw) if text}


def _relative(text: str, root: str) -> str:
    """Return a path as the slice table has it: under the root, with forward slashes."""
    return text.replace("\\", "/").removeprefix(root).removeprefix("./").rstrip("/")


def refuse_repeated_keys(
    table: LabelTable,
    keys: Sequence[str],
    texts: NDArray[Any],
) -> None:
    """Raise LabelError where two rows of one key differ in texts (rows, labels) or patient."""
    column = table.settings.patient
    patients = table.columns[column] if column else [""] * len(keys)
    rows = list(zip(map(tuple, texts.tolist()), patients, strict=True))
    first_of_key: dict[str, int] = {}
    clashes = []
    for i, key in enumerate(keys):
        first = first_of_key.setdefault(key, i)
        if key and rows[first] != rows[i]:
            clashes.append((first, i))
    if clashes:
        first, second = clashes[0]
        raise LabelError(
            f"{len(clashes)} rows of {str(table.settings.file)!r} repeat a key with other values, "
            f"for example data rows {first + 1} and {second + 1}. Keep one row a key."
        )


def label_rows(
    table: LabelTable,
    keys: Sequence[str],
    slices: pa.Table,
) -> LabelRows:
    """Return (m,) the label row of each slice of a slice table with the real paths, or -1."""
    by = table.settings.by
    row_of_key = {key: i for i, key in enumerate(keys) if key}
    return matched(_joined_by(slices, by), row_of_key, climb=by == "path")


def matched(
    names: Texts,
    number: Mapping[str, int],
    climb: bool,
) -> LabelRows:
    """Return (m,) the number of each name, or -1.

    climb: names are paths, and one without a number has that of the nearest folder with one.
    """
    # Each name once: the slices of a volume share their path.
    known: dict[str | None, int] = {None: -1}
    for name in set(names) - {None}:
        known[name] = _nearest_number(name, number) if climb else number.get(name, -1)
    return np.array([known[name] for name in names], dtype=np.int64)


def _nearest_number(path: str, number: Mapping[str, int]) -> int:
    """Return the number of a path, or of the nearest folder above it that has one, or -1."""
    separator = "/"
    while separator and path not in number:
        # Without another folder above it, `rpartition` finds no separator, and leaves "".
        path, separator, _ = path.rpartition("/")
    return number.get(path, -1)


# --- columns of the slice table ------------------------------------------------------------


def column_texts(slices: pa.Table, name: str) -> Texts:
    """Return (m,) a column of the slice table, None where nothing is said."""
    texts: Texts = slices[name].to_numpy(zero_copy_only=False)
    return texts


def _joined_by(slices: pa.Table, by: str) -> Texts:
    """Return what each slice is joined by; the volumes of one series share the series' id."""
    if by.startswith("tag:"):
        return _tag(slices, by.removeprefix("tag:"))
    # Of several volumes, the slice table has for each the series' id, a point and a number.
    texts = column_texts(slices, by)
    if by != "series":
        return texts
    return np.array([text and text.partition(".")[0] for text in texts], dtype=object)


def _tag(slices: pa.Table, keyword: str) -> Texts:
    """Return the pseudonym of a DICOM tag's value in each slice, or None."""
    # Here, since it brings all of Arrow's functions, which no other key needs.
    import pyarrow.compute as pc

    values = pc.map_lookup(slices["tags"], pa.scalar(keyword), "first")
    if values.null_count == len(values):
        raise LabelError(
            f"No slice has the tag {keyword!r} that labels.by asks for. Add {keyword!r} to "
            "data.tags and run `radprobe extract`: it reads the headers again and embeds nothing."
        )
    return np.array(values.to_pylist(), dtype=object)
