"""Labels: a CSV or Parquet table, joined to the slices and gathered into units.

A value is compared as text, so a CSV and a Parquet of the same labels are the same labels: 1.0 is
1, and an empty cell, NaN, NA, n/a or null is no label. A row joins slices by the path of their
file or of any folder above it (the nearest named one wins), by a patient, study or series id, or
by the value of a DICOM tag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable as LabelTable
from pipeline.annotations.label_file import Texts
from pipeline.annotations.label_file import read_labels as read_labels
from pipeline.annotations.label_values import Settled, encode, settle
from pipeline.annotations.units import Units
from pipeline.config.tasks import Level, Task
from pipeline.results import Tally
from pipeline.shared.pseudonyms import Names
from stores.contents import OK, UNREADABLE, VOID, WITHDRAWN
from stores.errors import LabelError

EXAMPLES = 3


# --- joining -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Joined:
    """m slices that are named by a label row each, ascending by row number."""

    rows: NDArray[np.int64]
    paths: Texts
    headers: Texts  # the patient pseudonym of the file itself, or None
    series: Texts
    study: Texts
    status: NDArray[np.uint8]
    label: NDArray[np.int64]  # the label row of each

    def at(self, keep: NDArray[np.bool_]) -> _Joined:
        return _Joined(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def label_units(
    table: LabelTable,
    task: Task,
    slices: pa.Table,
    status: NDArray[np.uint8],
    root: Path,
    names: Names,
) -> Units:
    """Join the labels of `task` to the slices as units.

    slices: SLICE_SCHEMA, with the real paths; status (n,) by row. What is returned shows paths as
    `names` allows.

    Raises LabelError where labels do not join, contradict each other within a unit, or name no
    patient, saying how many and an example.
    """
    keys = _keys(table, root, names)
    settled = settle(table, task)
    _refuse_duplicates(table, keys, settled.texts)
    joined, tally = _join(table, task, slices, status, keys, names)
    patients = _patients(table, joined, names)
    called = _unit_names(joined, patients, task.level, names)
    use, tally = _usable(joined, called, settled, task, tally)
    joined, patients, called = joined.at(use), patients[use], called[use]
    _refuse_unknown_patients(joined, patients)
    y, classes, kind = encode(settled.texts, joined.label, task)
    first, unit = _first_and_inverse(called)
    _refuse_disagreement(joined.paths, unit, first, y, f"labels {list(task.labels)}", task.level)
    _refuse_disagreement(joined.paths, unit, first, patients, "patients", task.level)
    tally = tally.model_copy(
        update={
            "filled_labels": int(settled.filled[np.unique(joined.label)].sum()),
            "unknown_labels": int((y[first] == -1).sum()),
        }
    )
    ids, groups = called[first].astype(np.str_), patients[first].astype(np.str_)
    return Units(y[first], groups, classes, kind, ids, joined.rows, unit, tally)


def texts_of(
    table: LabelTable,
    column: str,
    units: Units,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> NDArray[np.str_]:
    """Return (n,) what a column says of each unit; "" where it says nothing, or several things."""
    keys = _keys(table, root, names)
    _refuse_duplicates(table, keys, table.columns[column][:, None])
    where, by = {key: i for i, key in enumerate(keys) if key}, table.settings.by
    place = np.searchsorted(slices["row"].to_numpy(), units.rows)
    label = matched(_joined_by(slices, by)[place], where, climb=by == "path")
    texts = np.where(label >= 0, table.columns[column][label], "").astype(np.str_)
    first = np.unique(units.unit, return_index=True)[1]
    torn = units.unit[texts != texts[first][units.unit]]
    said: NDArray[np.str_] = texts[first]
    said[torn] = ""
    return said


def column_of(
    table: LabelTable, column: str, slices: pa.Table, root: Path, names: Names
) -> NDArray[np.str_]:
    """Return (m,) what a column says of each slice (SLICE_SCHEMA, real paths); "" for nothing."""
    keys = _keys(table, root, names)
    _refuse_duplicates(table, keys, table.columns[column][:, None])
    label = _labels_of(table, keys, slices)
    said: NDArray[np.str_] = np.where(label >= 0, table.columns[column][label], "").astype(np.str_)
    return said


def patients_of(table: LabelTable, slices: pa.Table, root: Path, names: Names) -> Texts:
    """Return (m,) each slice's patient pseudonym, by the label table before the header, or None.

    Raises LabelError where the two group slices differently.
    """
    label = _labels_of(table, _keys(table, root, names), slices)
    paths, headers, series, study = (
        _column(slices, name) for name in ("path", "patient", "series", "study")
    )
    status = np.zeros(len(paths), np.uint8)
    every = _Joined(slices["row"].to_numpy(), paths, headers, series, study, status, label)
    on = label >= 0
    found = headers.copy()
    found[on] = _patients(table, every.at(on), names)
    called = {h: n for h, n in zip(headers[on], found[on], strict=True) if h and n}
    found[~on] = [called.get(header, header) for header in headers[~on]]
    return found


def _labels_of(table: LabelTable, keys: Sequence[str], slices: pa.Table) -> NDArray[np.int64]:
    """Return (m,) the label row of each slice, or -1."""
    where, by = {key: i for i, key in enumerate(keys) if key}, table.settings.by
    return matched(_joined_by(slices, by), where, climb=by == "path")


def _usable(
    joined: _Joined, called: Texts, settled: Settled, task: Task, tally: Tally
) -> tuple[NDArray[np.bool_], Tally]:
    """Return which slices have a label and features, and the tally with those that have not."""
    labelled = settled.labelled[joined.label]
    use: NDArray[np.bool_] = labelled & (joined.status == OK)
    tally = tally.model_copy(
        update={
            "unlabelled_units": len(set(called[~labelled]) - set(called[labelled])),
            "unreadable_slices": int((labelled & (joined.status == UNREADABLE)).sum()),
            "pending_slices": int((labelled & (joined.status == VOID)).sum()),
        }
    )
    if not use.any():
        raise LabelError(
            f"None of the {len(use)} slices that the labels {list(task.labels)} join has both a "
            f"label and features ({int(labelled.sum())} have a label, {tally.pending_slices} of "
            "them await extraction). Run `radprobe extract`, or check the label column."
        )
    return use, tally


def _keys(table: LabelTable, root: Path, names: Names) -> list[str]:
    """Return what each label row is joined by: a relative path, or a pseudonym; "" for none."""
    by, raw = table.settings.by, table.columns[table.settings.key]
    if by == "path":
        return [_relative(text, f"{root.as_posix().rstrip('/')}/") for text in raw]
    known = {text: names.pseudonym(by, text) for text in set(raw) if text}
    return [known.get(text, "") for text in raw]


def _relative(text: str, root: str) -> str:
    """Return a path as the slice table has it: under the root, with forward slashes."""
    return text.replace("\\", "/").removeprefix(root).removeprefix("./").rstrip("/")


def _refuse_duplicates(table: LabelTable, keys: Sequence[str], texts: NDArray[Any]) -> None:
    """Raise LabelError where two rows of one key say different things."""
    name = table.settings.patient
    patients = table.columns[name] if name else [""] * len(keys)
    said = [(*row, patient) for row, patient in zip(texts.tolist(), patients, strict=True)]
    seen: dict[str, int] = {}
    clashes = [
        (seen[key], i)
        for i, key in enumerate(keys)
        if key and said[seen.setdefault(key, i)] != said[i]
    ]
    if clashes:
        first, second = clashes[0]
        raise LabelError(
            f"{len(clashes)} rows of {str(table.settings.file)!r} repeat a key with other values, "
            f"for example data rows {first + 1} and {second + 1}: {texts[first].tolist()} and "
            f"{texts[second].tolist()}. Keep one row a key."
        )


def _join(
    table: LabelTable,
    task: Task,
    slices: pa.Table,
    status: NDArray[np.uint8],
    keys: Sequence[str],
    names: Names,
) -> tuple[_Joined, Tally]:
    """Return the slices of the task's modalities that a label row names, and what did not join."""
    where = {key: i for i, key in enumerate(keys) if key}
    by = table.settings.by
    label = matched(_joined_by(slices, by), where, climb=by == "path")
    rows = slices["row"].to_numpy()
    live = status[rows] != WITHDRAWN
    asked = live & _has_modality(slices, task)
    found = asked & (label >= 0)
    hit = np.zeros(len(keys), bool)
    hit[label[live & (label >= 0)]] = True
    spare, paths = np.flatnonzero(~hit), _column(slices, "path")
    lost = paths[asked & (label < 0)]
    named = [keys[i] if by == "path" else f"data row {i + 1}" for i in spare[:EXAMPLES]]
    if not found.any():
        files = {key.rpartition("/")[2] for key in keys}
        alike = [path for path in lost if path.rpartition("/")[2] in files]
        raise LabelError(
            f"No row of {str(table.settings.file)!r} joins a slice by {by}: column "
            f"{table.settings.key!r} has {named}, the store has "
            f"{(alike or lost.tolist())[:EXAMPLES]}. Set "
            "labels.key and labels.by; paths are relative to data.root."
        )
    tally = Tally(
        unmatched_slices=len(lost),
        unmatched_labels=len(spare),
        unmatched_slice_examples=tuple(map(names.shown, [*dict.fromkeys(lost)][:EXAMPLES])),
        unmatched_label_examples=tuple(map(names.shown, named) if by == "path" else named),
    )
    patient, series, study = (_column(slices, name) for name in ("patient", "series", "study"))
    every = _Joined(rows, paths, patient, series, study, status[rows], label)
    return every.at(found), tally


def _column(slices: pa.Table, name: str) -> Texts:
    values: Texts = slices[name].to_numpy(zero_copy_only=False)
    return values


def _joined_by(slices: pa.Table, by: str) -> Texts:
    """Return what each slice is joined by; the volumes of one series share the series' id."""
    if by.startswith("tag:"):
        return _tag(slices, by.removeprefix("tag:"))
    values = _column(slices, by)
    if by != "series":
        return values
    return np.array([value and value.partition(".")[0] for value in values], dtype=object)


def _tag(slices: pa.Table, keyword: str) -> Texts:
    """Return the pseudonym of a DICOM tag's value in each slice, or None."""
    import pyarrow.compute as pc

    values = pc.map_lookup(slices["tags"], pa.scalar(keyword), "first")
    if values.null_count == len(values):
        raise LabelError(
            f"No slice has the tag {keyword!r} that labels.by asks for. Add {keyword!r} to "
            "data.tags and run `radprobe extract`: it reads the headers again and embeds nothing."
        )
    return np.array(values.to_pylist(), dtype=object)


def matched(names: Texts, where: dict[str, int], climb: bool) -> NDArray[np.int64]:
    """Return for each name the label row it belongs to, or -1; with climb, through its folders."""
    known: dict[str | None, int] = {None: -1}
    for name in set(names) - {None}:
        step, more = name, "/"
        while climb and more and step not in where:
            step, more, _ = step.rpartition("/")
        known[name] = where.get(step, -1)
    return np.array([known[name] for name in names], dtype=np.int64)


def _has_modality(slices: pa.Table, task: Task) -> NDArray[np.bool_]:
    modality = _column(slices, "modality")
    if task.modality is None:
        return np.ones(len(modality), bool)
    found: NDArray[np.bool_] = np.isin(modality.astype(np.str_), task.modality)
    if not found.any():
        raise LabelError(
            f"No slice has a modality of {list(task.modality)}; the store has "
            f"{sorted(set(modality.astype(np.str_)))}."
        )
    return found


# --- patients and units --------------------------------------------------------------------


def _patients(table: LabelTable, joined: _Joined, names: Names) -> Texts:
    """Return each slice's patient pseudonym, by the label column before the header, or None."""
    if table.settings.patient is None:
        return joined.headers
    raw = table.columns[table.settings.patient]
    pseudonyms = {text: names.pseudonym("patient", text) for text in set(raw) if text}
    named: Texts = np.array([pseudonyms.get(text) for text in raw], dtype=object)[joined.label]
    if table.settings.headers == "agree":
        _refuse_other_grouping(joined, named)
    both = {h: n for h, n in zip(joined.headers, named, strict=True) if h and n}
    fallback = [both.get(header, header) for header in joined.headers]
    return np.where(named == None, np.array(fallback, dtype=object), named)  # noqa: E711


def _refuse_other_grouping(joined: _Joined, named: Texts) -> None:
    """Raise LabelError unless headers and labels agree on which slices are one patient's."""
    pairs = {(h, n) for h, n in zip(joined.headers, named, strict=True) if h and n}
    headers, names = Counter(h for h, _ in pairs), Counter(n for _, n in pairs)
    torn = np.array(
        [headers[h] > 1 or names[n] > 1 for h, n in zip(joined.headers, named, strict=True)]
    )
    if torn.any():
        raise LabelError(
            f"The patient column and the file headers group {int(torn.sum())} slices differently, "
            f"for example {list(dict.fromkeys(joined.paths[torn]))[:EXAMPLES]}: a patient could "
            'stand on both sides of a split. Correct the column, or set labels.headers: "ignore" '
            "if the headers are wrong."
        )


def _refuse_unknown_patients(joined: _Joined, patients: Texts) -> None:
    unknown = patients == None  # noqa: E711
    if unknown.any():
        raise LabelError(
            f"{int(unknown.sum())} labelled slices name no patient, for example "
            f"{joined.paths[unknown][0]!r}, so they cannot be split by patient. Name the column "
            "that does in labels.patient, or a pattern of the path in data.patient."
        )


def _unit_names(joined: _Joined, patients: Texts, level: Level, names: Names) -> Texts:
    """Return the unit of each slice; a file without a series or study is its own."""
    if level == "image":
        return joined.rows.astype(np.str_).astype(object)
    if level == "patient":
        return patients
    named = joined.series if level == "series" else joined.study
    called = [
        names.shown(path) if name is None else name
        for name, path in zip(named, joined.paths, strict=True)
    ]
    return np.array(called, dtype=object)


def _first_and_inverse(called: Texts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each unit first stands, ascending, and each slice's number in that order."""
    number: dict[str, int] = {}
    unit = np.array([number.setdefault(name, len(number)) for name in called], dtype=np.int64)
    return np.unique(unit, return_index=True)[1], unit


def _refuse_disagreement(
    paths: Texts,
    unit: NDArray[np.int64],
    first: NDArray[np.int64],
    values: NDArray[Any],
    what: str,
    level: Level,
) -> None:
    """Raise LabelError where the slices of a unit differ in what must be the unit's own."""
    other = values != values[first][unit]
    other = other.any(axis=1) if other.ndim == 2 else other
    if other.any():
        i = int(np.flatnonzero(other)[0])
        raise LabelError(
            f"{len(np.unique(unit[other]))} {level} units hold slices with different {what}, for "
            f"example {paths[first[unit[i]]]!r} and {paths[i]!r}. Ask at a finer level, or give "
            f"each {level} one value."
        )
