"""Which label row each slice belongs to: by its path, an id, or the value of a DICOM tag.

A row joins slices by the path of their file or of any folder above it (the nearest named one
wins), by a patient, study or series id, or by the value of a DICOM tag. Dims: m slices.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.annotations.regions import STRUCTURE_OF
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError

LabelRows = NDArray[np.int64]


# --- keys ----------------------------------------------------------------------------------

# Ids are given leading zeros up to this length: longer ones are no numbers of a spreadsheet.
_LONGEST_ID = 16
# Of so many keys that join nothing, other spellings are tried; where none of them joins by one, no
# other key is tried: a table of another collection has a great many.
TRIED = 1000


@dataclass(frozen=True)
class LabelKeys:
    """What each label row is joined by: a relative path, or a pseudonym; "" for none.

    keys (rows,): as the store spells them. notes: which of them the table spells otherwise.
    """

    keys: list[str]
    notes: tuple[str, ...] = ()


def label_keys(
    table: LabelTable,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> LabelKeys:
    """Return what each label row is joined by. slices: SLICE_SCHEMA, with the real paths.

    A key that names nothing there, and would in another spelling, is joined by that: a spreadsheet
    takes leading zeros from ids, and two systems write an accent differently. Where two
    rows, or two slices, could be meant, neither is.
    """
    by = table.settings.by
    raw = table.columns[table.settings.key]
    folder = f"{root.as_posix().rstrip('/')}/"

    def key_of(text: str) -> str:
        return _relative(text, folder) if by == "path" else names.pseudonym(by, text)

    key_of_text = {text: key_of(text) for text in dict.fromkeys(raw) if text}
    there = names_there(_joined_by(slices, by), climb=by == "path")
    other, notes = _other_spellings(table, key_of_text, there, key_of)
    key_of_text |= other
    keys = [key_of_text.get(text, "") for text in raw]
    return LabelKeys(_below_structures(keys, _structures_of_rows(table, slices)), notes)


# Between the structure that a row, or a piece of a slice, is of, and what it is joined by: so that
# it stands where a folder would, and folders above a file are climbed as they are without it.
_BELOW = "\0/"


def _structures_of_rows(table: LabelTable, slices: pa.Table) -> Texts | None:
    """Return the structure of each label row; None where rows, or slices, are of none."""
    column = table.settings.structure
    return table.columns[column] if column and STRUCTURE_OF in slices.column_names else None


def _below_structures(names: Sequence[str | None], structures: Texts | None) -> list[str]:
    """Return what joins rows or slices, each below its structure; "" for what has no name."""
    if structures is None:
        return [name or "" for name in names]
    return [
        f"{structure}{_BELOW}{name}" if structure and name else ""
        for structure, name in zip(structures, names, strict=True)
    ]


def without_structure(key: str) -> str:
    """Return what a key joins by beside a structure."""
    return key.rpartition(_BELOW)[2]


def names_there(joined_by: Texts, *, climb: bool) -> set[str]:
    """Return what a label row may name: what slices are joined by, of paths the folders too."""
    there = set(joined_by) - {None}
    above = {name.rpartition("/")[0] for name in there} if climb else set()
    while above - there:
        there |= above
        above = {name.rpartition("/")[0] for name in above}
    return there - {""}


def _other_spellings(
    table: LabelTable,
    key_of_text: Mapping[str, str],
    there: set[str],
    key_of: Callable[[str], str],
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the keys of texts that join by another spelling alone, and notes with its cause."""
    taken = set(key_of_text.values())
    lost = [text for text, key in key_of_text.items() if key not in there]
    claims: dict[str, list[tuple[str, str]]] = {}
    for number, text in enumerate(lost):
        if number == TRIED and not claims:
            break
        spellings = {key_of(other): cause for other, cause in _spellings(text).items()}
        meant = [key for key in spellings if key in there]
        if len(meant) == 1 and meant[0] not in taken:
            claims.setdefault(meant[0], []).append((text, spellings[meant[0]]))
    joined: dict[str, str] = {}
    causes: Counter[str] = Counter()
    for key, claimants in claims.items():
        if len(claimants) == 1:
            ((text, cause),) = claimants
            joined[text] = key
            causes[cause] += 1
    column = table.settings.key
    notes = [f"{n} keys of column {column!r} join {cause}" for cause, n in causes.items()]
    return joined, tuple(notes)


def _spellings(text: str) -> dict[str, str]:
    """Return the other ways in which a key may be spelt in the store, each with its cause."""
    spellings: dict[str, str] = {}
    # Of a path, or an id behind its root's name, the last part may be a number.
    above, slash, last = text.rpartition("/")
    integer = last.removesuffix(".0")
    if integer.isdecimal() and integer.isascii():
        if integer != last:
            spellings[above + slash + integer] = "without the .0 that they have in the table"
        digits = integer.lstrip("0") or "0"
        for length in range(len(digits), _LONGEST_ID + 1):
            cause = (
                "with leading zeros, which a spreadsheet takes away"
                if length > len(integer)
                else "without the leading zeros that they have in the table"
            )
            spellings.setdefault(above + slash + digits.zfill(length), cause)
    for form in ("NFC", "NFD"):
        accents = "with accents written in one character or in two (NFC, NFD), whichever there is"
        spellings.setdefault(unicodedata.normalize(form, text), accents)
    spellings.pop(text, None)
    return spellings


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
        of_patients = sum(patients[one] != patients[other] for one, other in clashes)
        whose = (
            f" ({of_patients} of them with another patient in {column!r})" if of_patients else ""
        )
        raise LabelError(
            f"{len(clashes)} rows of {str(table.settings.file)!r} repeat a key with other values"
            f"{whose}, for example data rows {first + 1} and {second + 1}. Keep one row a key."
        )


def distinct_rows(table: LabelTable, keys: Sequence[str], joined: Container[str]) -> dict[str, int]:
    """Return the first row of each key: rows that say the same of one count once.

    joined: the keys that join something. A row without a key counts by itself. Of a table that
    lists files, those that join nothing do not count: they were not embedded, and label nothing.
    """
    first_of_key: dict[str, int] = {}
    for i, key in enumerate(keys):
        if key in joined or not table.lists_files:
            first_of_key.setdefault(key or f"\0{i}", i)
    return first_of_key


def label_rows(
    table: LabelTable,
    keys: Sequence[str],
    slices: pa.Table,
) -> LabelRows:
    """Return (m,) the label row of each slice of a slice table with the real paths, or -1."""
    by = table.settings.by
    row_of_key = {key: i for i, key in enumerate(keys) if key}
    names = _joined_by(slices, by)
    if _structures_of_rows(table, slices) is not None:
        below = _below_structures(names.tolist(), column_texts(slices, STRUCTURE_OF))
        names = np.array([name or None for name in below], dtype=object)
    return matched(names, row_of_key, climb=by == "path")


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
