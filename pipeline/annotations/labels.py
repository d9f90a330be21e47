"""Labels: a CSV, .xlsx or Parquet table, joined to the slices and gathered into units.

A value is compared as text, so a CSV and a Parquet of the same labels are the same labels: 1.0 is
1, Yes is yes, and an empty cell, NaN, NA, n/a, <NA> or null, in any case, is no label, unless
`labels.empty` says otherwise. Dims: m slices, n units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.classes import Classes, encode
from pipeline.annotations.label_causes import LIKELIEST, cause_of, prefix_hint
from pipeline.annotations.label_file import LabelTable as LabelTable
from pipeline.annotations.label_file import Texts
from pipeline.annotations.label_file import read_labels as read_labels
from pipeline.annotations.label_join import (
    LabelRows,
    column_texts,
    distinct_rows,
    label_keys,
    label_rows,
    pseudonyms_of,
    refuse_repeated_keys,
    without_structure,
)
from pipeline.annotations.label_join import matched as matched
from pipeline.annotations.label_values import LabelValues, apply_policies
from pipeline.annotations.levels import LEVELS
from pipeline.annotations.patients import rows_of_withdrawn
from pipeline.annotations.spellings import is_empty, merged_spellings
from pipeline.annotations.texts import is_number, is_text
from pipeline.annotations.units import Units, places_along
from pipeline.config.modalities import modality_code
from pipeline.config.root import Config
from pipeline.config.tasks import Level, Task
from pipeline.results import Tally
from pipeline.shared.few import FEW_PATIENTS
from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores.errors import LabelError
from stores.features import OK, UNREADABLE, VOID, WITHDRAWN
from stores.slices import with_column
from stores.withdrawn import NOBODY, Withdrawn

EXAMPLES = 3
# A class of fewer patients cannot train, validate and test.
_FEWEST_PATIENTS = 3

Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]
Status = NDArray[np.uint8]


# --- units ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labelled:
    """m slices that are named by a label row each, ascending by row number.

    headers: the patient pseudonym of the file itself, or None; ids: what the file says of the unit
    at the level that is asked about, or None; label: the label row of each.
    """

    rows: Numbers
    paths: Texts
    headers: Texts
    ids: Texts
    status: Status
    label: LabelRows

    @classmethod
    def of(
        cls,
        slices: pa.Table,
        status: Status,
        label: LabelRows,
        level: Level,
    ) -> _Labelled:
        """Take the columns of a slice table; status and label (m,): of its slices."""
        return cls(
            rows=slices["row"].to_numpy(),
            paths=column_texts(slices, "path"),
            headers=column_texts(slices, "patient"),
            ids=column_texts(slices, LEVELS[level].column),
            status=status,
            label=label,
        )

    def in_message(self, place: int, names: Names) -> str:
        """Return how a message names one of the slices."""
        return names.in_message(self.paths[place], int(self.rows[place]))

    def slices(self, which: Bools) -> int:
        """Return how many slices some are; one that stands there for several regions is one."""
        return len(np.unique(self.rows[which]))

    def at(self, keep: Bools) -> _Labelled:
        columns = {field.name: getattr(self, field.name)[keep] for field in fields(self)}
        return _Labelled(**columns)


def label_units(
    table: LabelTable,
    task: Task,
    slices: pa.Table,
    status: Status,
    root: Path,
    names: Names,
    *,
    either_way: bool = False,
    withdrawn: Withdrawn = NOBODY,
    reasons: Callable[[], Mapping[int, str]] = dict,
) -> Units:
    """Join the labels of `task` to the slices as units.

    slices: SLICE_SCHEMA, with the real paths; status (n,) by row. What is returned shows paths as
    `names` allows. either_way: see `classes.encode`. withdrawn: whose labels join nothing any more.
    reasons: says why rows could not be read, by row; asked where an error tells of it.

    Raises LabelError where labels do not join, contradict each other within a unit, or name no
    patient, saying how many and an example, and where classes are none (see `classes.encode`).
    """
    # The table is read through before it is joined: what is wrong in it is so for every store.
    values = apply_policies(table, task, either_way=either_way)
    keys = label_keys(table, slices, root, names)
    refuse_repeated_keys(table, keys.keys, values.texts)
    of_withdrawn = rows_of_withdrawn(table, keys.keys, slices, names, withdrawn)
    labelled, tally = _join(table, task, slices, status, keys.keys, root, names, of_withdrawn)
    patients = _patients(table, labelled, names)
    unit_names = _unit_names(labelled, patients, task.level, names)
    # What has no label or no features is counted, and leaves before anything is refused for it.
    lost = _Lost.of(labelled, unit_names, patients, values)
    use, tally = _usable(labelled, unit_names, values, task, tally, lost, reasons)
    was_lost = (
        lost.sentence(task.level, reasons) if lost.has_other_values(values, labelled, use) else ""
    )
    labelled = labelled.at(use)
    patients = patients[use]
    unit_names = unit_names[use]
    _refuse_unknown_patients(labelled, patients, names)
    first, unit = _first_and_inverse(unit_names)
    classes = encode(
        values.texts,
        labelled.label,
        task,
        len(first),
        either_way=either_way,
        empty=values.empty,
        lost=was_lost,
    )
    y = classes.y
    within = _WithinUnits(labelled, unit, first, task.level, names)
    within.refuse_disagreement(y, f"labels {list(task.truth_columns)}")
    within.refuse_disagreement(patients, "patients")
    # A row counts once, however many slices it labels.
    used_rows = np.unique(labelled.label)
    tally = tally.model_copy(
        update={
            "filled_labels": int(values.filled[used_rows].sum()),
            "unknown_labels": 0 if y.dtype.kind == "f" else int((y[first] == -1).sum()),
        }
    )
    return Units(
        y=y[first],
        groups=patients[first].astype(np.str_),
        classes=classes.names,
        kind=classes.kind,
        ids=unit_names[first].astype(np.str_),
        rows=labelled.rows,
        unit=unit,
        tally=tally,
        along=places_along(_of_rows(slices, labelled.rows)),
        notes=(
            *table.notes,
            *keys.notes,
            *values.empty,
            *values.notes,
            *_rare_classes(classes, y[first], patients[first]),
        ),
    )


def _of_rows(slices: pa.Table, rows: Numbers) -> pa.Table:
    """Return what tells volumes and places of some rows of a slice table."""
    place = np.searchsorted(slices["row"].to_numpy(), rows)
    return slices.select(["series", "position_mm"]).take(pa.array(place))


def _rare_classes(classes: Classes, y: NDArray[Any], patients: Texts) -> list[str]:
    """Return a note on classes of so few patients among many that they may be typing errors.

    y, patients (n,): of the units. A name is told where it can be none of a person: a short number.
    """
    if classes.kind not in ("binary", "multiclass") or len(set(patients)) < FEW_PATIENTS:
        return []
    rare = []
    for number, name in enumerate(classes.names):
        of_class = patients[y == number]
        n = len(set(of_class))
        if n < _FEWEST_PATIENTS:
            shown = f"class {name!r}" if is_number(name) and len(name) < 4 else "a class"
            units = f"{len(of_class)} unit{'s' * (len(of_class) > 1)}"
            rare.append(f"{shown} has {units} of {n} patient{'s' * (n > 1)}")
    if not rare:
        return []
    others = len(rare) - EXAMPLES
    more = f", and {others} more classes are as rare" if others > 0 else ""
    return [f"{', '.join(rare[:EXAMPLES])}{more}: a typing error?"]


def _join(
    table: LabelTable,
    task: Task,
    slices: pa.Table,
    status: Status,
    keys: Sequence[str],
    root: Path,
    names: Names,
    of_withdrawn: Bools,
) -> tuple[_Labelled, Tally]:
    """Return the slices of the task's modalities that a label row names, and what did not join.

    of_withdrawn (rows,): which label rows are of patients who were withdrawn.
    """
    by = table.settings.by
    label = label_rows(table, keys, slices)
    of_slice = status[slices["row"].to_numpy()]
    is_live = of_slice != WITHDRAWN
    is_wanted = is_live & _has_modality(slices, task) & LEVELS[task.level].has_unit(slices)
    is_joined = is_wanted & (label >= 0)
    # A label row of a slice of another modality has joined, though the task has no use for it.
    joined_keys = {keys[i] for i in np.unique(label[is_live & (label >= 0)]).tolist()}
    rows_of_keys = distinct_rows(table, keys, joined_keys)
    spare_keys = [i for key, i in rows_of_keys.items() if key not in joined_keys]
    spare_rows = [i for i in spare_keys if not of_withdrawn[i]]
    paths = column_texts(slices, "path")
    # The rows of whoever was purged join nothing any more, and an answer is filed: it names them by
    # their numbers where somebody was.
    by_path = by == "path" and all(paths)
    spare_names = []
    for i in spare_rows[:EXAMPLES]:
        shown = names.shown(without_structure(keys[i])) if by_path else f"data row {i + 1}"
        spare_names.append(shown)
    is_lost = is_wanted & (label < 0)
    lost_paths = paths[is_lost]
    if not is_joined.any():
        if joined_keys:
            raise LabelError(_nothing_wanted_joins(table, task, len(joined_keys)))
        raise LabelError(_nothing_joins(table, keys, slices, lost_paths, root, names))
    lost_names = list(dict.fromkeys(lost_paths))[:EXAMPLES]
    tally = Tally(
        # A slice that stands there once for each of its regions is one.
        unmatched_slices=len(np.unique(slices["row"].to_numpy()[is_lost])),
        unmatched_labels=len(spare_rows),
        withdrawn_labels=len(spare_keys) - len(spare_rows),
        unmatched_slice_examples=tuple(names.shown(name) for name in lost_names),
        unmatched_label_examples=tuple(spare_names),
    )
    return _Labelled.of(slices, of_slice, label, task.level).at(is_joined), tally


def _nothing_wanted_joins(table: LabelTable, task: Task, joined: int) -> str:
    """Return what is said where rows join slices, and none that the task asks about."""
    wanted = f"of modality {', '.join(task.modality)}" if task.modality else "that it asks about"
    of_level = "" if task.level == "image" else f" with a {task.level}"
    return (
        f"{joined} rows of {str(table.settings.file)!r} join slices, none of them "
        f"{wanted}{of_level}. Correct the task's modality or level, or add rows of such slices."
    )


def _nothing_joins(
    table: LabelTable,
    keys: Sequence[str],
    slices: pa.Table,
    lost_paths: Texts,
    root: Path,
    names: Names,
) -> str:
    """Return what is said where no label row joins a slice; no key and no path, which may name."""
    column = f"column {table.settings.key!r}"
    keys = [without_structure(key) for key in keys]
    by = table.settings.by
    remedy = "Set labels.key and labels.by"
    if by != "path":
        compared = f"{column} has {len(set(keys))} ids, of which none is one of the store's"
    else:
        remedy += "; paths are relative to data.root, and `radprobe slices` lists them"
        # Of one name in other folders: most likely paths that are relative to another root.
        files = {key.rpartition("/")[2] for key in keys}
        alike = [path for path in lost_paths if path.rpartition("/")[2] in files]
        if names.paths == "keep":
            examples = (alike or lost_paths.tolist())[:EXAMPLES]
            compared = f"{column} has {list(keys[:EXAMPLES])}, the store has {examples}"
        else:
            above = _depth(alike or lost_paths.tolist())
            compared = f"{column} names files {_depth(keys)} deep, the store has them {above} deep"
            if alike:
                compared += (
                    f", {len(alike)} of {len(lost_paths)} by the same name in another folder"
                )
        hint = prefix_hint(table, keys, lost_paths.tolist(), root, names)
        if hint:
            # What helps is said there, and neither another key nor another `by` would.
            compared += f"; {hint}"
            remedy = ""
    if remedy:
        first_of_key = {key: row for row, key in reversed([*enumerate(keys)])}
        lost = sorted(first_of_key.values())
        cause = cause_of(table, lost, keys, slices, root, names)
        compared = f"{compared}; {cause}"
        if by == "path" and cause.startswith(LIKELIEST):
            remedy = remedy.replace("Set labels.key and labels.by", f"Correct {column}")
        remedy = f" {remedy}."
    return f"No row of {str(table.settings.file)!r} joins a slice by {by}: {compared}.{remedy}"


def _depth(paths: Sequence[str] | Texts) -> str:
    """Return how many folders most of some paths have above them."""
    depths = Counter(path.count("/") for path in paths)
    return str(depths.most_common(1)[0][0]) if depths else "no"


def _has_modality(slices: pa.Table, task: Task) -> Bools:
    """Return (m,) which slices are of the task's modalities.

    Raises LabelError for none, and for a word that is neither in the store nor a code of DICOM.
    """
    if task.modality is None:
        return np.ones(len(slices), bool)
    modality = column_texts(slices, "modality")
    # A row that was purged has none.
    there = {name for name in modality.tolist() if name}
    for word in set(task.modality) - there:
        refused = _modality_fault(word)
        if refused:
            raise LabelError(f"{refused} The store has {sorted(there)}.")
    is_of_modality = np.isin(modality.astype(np.str_), task.modality)
    if not is_of_modality.any():
        raise LabelError(
            f"No slice has a modality of {list(task.modality)}; the store has {sorted(there)}."
        )
    return np.asarray(is_of_modality)


def _modality_fault(word: str) -> str:
    """Return why a task cannot ask for a modality by this word; "" for a code of DICOM."""
    try:
        code = modality_code(word)
    except ValueError as error:
        return str(error)
    return "" if code == word else f"{word!r} is no modality code of DICOM. Did you mean {code!r}?"


@dataclass(frozen=True)
class _Lost:
    """The units with a label of which no slice could be read.

    places, rows: of their slices. units, patients: how many lost every slice; of_units: how many
    have a label.
    """

    places: Numbers
    rows: Numbers
    units: int
    patients: int
    of_units: int

    @classmethod
    def of(
        cls, labelled: _Labelled, unit_names: Texts, patients: Texts, values: LabelValues
    ) -> _Lost:
        has_label = values.labelled[labelled.label]
        is_unreadable = has_label & (labelled.status == UNREADABLE)
        is_other = has_label & ~is_unreadable
        others = set(unit_names[is_other])
        units = set(unit_names[is_unreadable]) - others
        places = np.flatnonzero(is_unreadable & [name in units for name in unit_names])
        return cls(
            places,
            labelled.rows[places],
            len(units),
            len(set(patients[is_unreadable]) - set(patients[is_other]) - {None}),
            len(units) + len(others),
        )

    def has_other_values(self, values: LabelValues, labelled: _Labelled, use: Bools) -> bool:
        """Return whether a label of theirs has a value that no slice in use has."""
        texts = values.texts[:, 0].tolist()
        used = {texts[i] for i in np.unique(labelled.label[use]).tolist()}
        return any(texts[i] not in used for i in labelled.label[self.places].tolist())

    def sentence(self, level: Level, reasons: Callable[[], Mapping[int, str]]) -> str:
        """Return how many there are and why, with what to do."""
        by_row = reasons()
        why = Counter(by_row[row] for row in np.unique(self.rows).tolist() if row in by_row)
        slices = ", ".join(f"{n} {reason}" for reason, n in why.most_common())
        patients = f", of {count(self.patients, 'patient')}," if self.patients else ""
        return (
            f"{self.units} of {count(self.of_units, 'unit')} with a label (level: {level})"
            f"{patients} have no features, because none of their slices could be used"
            f"{f' (slices: {slices})' if slices else ''}. `radprobe failures` says why of each: "
            "mend the files and extract again, or label others."
        )


def _usable(
    labelled: _Labelled,
    unit_names: Texts,
    values: LabelValues,
    task: Task,
    tally: Tally,
    lost: _Lost,
    reasons: Callable[[], Mapping[int, str]],
) -> tuple[Bools, Tally]:
    """Return which slices have a label and features, and the tally with those that have not."""
    has_label = values.labelled[labelled.label]
    use = np.asarray(has_label & (labelled.status == OK))
    unlabelled = set(unit_names[~has_label]) - set(unit_names[has_label])
    tally = tally.model_copy(
        update={
            "unlabelled_units": len(unlabelled),
            "unreadable_slices": labelled.slices(has_label & (labelled.status == UNREADABLE)),
            "unreadable_units": lost.units,
            "unreadable_patients": lost.patients,
            "pending_slices": labelled.slices(has_label & (labelled.status == VOID)),
        }
    )
    if not use.any():
        if lost.units and not tally.pending_slices:
            raise LabelError(
                f"The labels {list(task.truth_columns)} join no slice with features. "
                f"{lost.sentence(task.level, reasons)}"
            )
        raise LabelError(
            f"None of the {len(use)} slices that the labels {list(task.truth_columns)} join has "
            f"both a label and features ({int(has_label.sum())} have a label, "
            f"{tally.pending_slices} of them await extraction). Run `radprobe extract`, or check "
            "the label column."
        )
    return use, tally


def _unit_names(
    labelled: _Labelled,
    patients: Texts,
    level: Level,
    names: Names,
) -> Texts:
    """Return the unit of each slice; a file without a series or study is its own."""
    if level == "patient":
        return patients
    if level == "image":
        return labelled.ids.astype(np.str_).astype(object)
    unit_names = []
    for name, path in zip(labelled.ids, labelled.paths, strict=True):
        unit_names.append(names.shown(path) if name is None else name)
    return np.array(unit_names, dtype=object)


def _first_and_inverse(unit_names: Texts) -> tuple[Numbers, Numbers]:
    """Return where each unit first stands, ascending, and each slice's number in that order."""
    # In order of rows: names are pseudonyms, which differ from store to store.
    number: dict[str, int] = {}
    unit = [number.setdefault(name, len(number)) for name in unit_names]
    _, first = np.unique(unit, return_index=True)
    return first, np.array(unit, dtype=np.int64)


@dataclass(frozen=True)
class _WithinUnits:
    """Slices (m,), the unit of each, and the first slice (n,) of each unit."""

    labelled: _Labelled
    unit: Numbers
    first: Numbers
    level: Level
    names: Names

    def refuse_disagreement(self, values: NDArray[Any], what: str) -> None:
        """Raise LabelError where slices of one unit differ in values (m,) or (m, c)."""
        differs = np.asarray(values != values[self.first][self.unit])
        if differs.ndim == 2:
            differs = np.asarray(differs.any(axis=1))
        if differs.any():
            i = int(np.flatnonzero(differs)[0])
            first = int(self.first[self.unit[i]])
            units = np.unique(self.unit[differs])
            one = self.labelled.in_message(first, self.names)
            other = self.labelled.in_message(i, self.names)
            raise LabelError(
                f"{len(units)} {self.level} units hold slices with different {what}, for example "
                f"{one} and {other}. Ask at a finer level, or give each {self.level} one value."
            )


# --- other columns -------------------------------------------------------------------------


def texts_of(
    table: LabelTable,
    column: str,
    units: Units,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> NDArray[np.str_]:
    """Return (n,) what a column says of each unit; "" where it says nothing, or several things."""
    return one_text_a_unit(texts_of_slices(table, column, units, slices, root, names), units.unit)


def one_text_a_unit(of_slice: NDArray[np.str_], unit: Numbers) -> NDArray[np.str_]:
    """Return (n,) what slices (m,) say of their units, unit (m,); "" where several things."""
    _, first = np.unique(unit, return_index=True)
    texts: NDArray[np.str_] = of_slice[first]
    is_other = of_slice != texts[unit]
    texts[unit[is_other]] = ""
    return texts


def texts_of_slices(
    table: LabelTable,
    column: str,
    units: Units,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> NDArray[np.str_]:
    """Return (m,) what a column says of each slice of the units, in their order; "" for nothing."""
    return column_of(table, column, slices, root, names)[units.places_in(slices)]


def column_of(
    table: LabelTable,
    column: str,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> NDArray[np.str_]:
    """Return (m,) what a column says of each slice (SLICE_SCHEMA, real paths); "" for nothing.

    Spellings of one value are one: a site has patients in common with itself.
    """
    keys = label_keys(table, slices, root, names).keys
    texts = merged_spellings(table.columns[column])
    texts = np.where(is_empty(texts, table.settings.empty), "", texts)
    refuse_repeated_keys(table, keys, texts[:, None])
    label = label_rows(table, keys, slices)
    return np.where(label >= 0, texts[label], "").astype(np.str_)


# --- patients ------------------------------------------------------------------------------


def labelled_patients(config: Config, slices: pa.Table, names: Names) -> Texts | None:
    """Return (m,) each slice's patient as splits have it; None where no label column says it.

    slices: SLICE_SCHEMA, with the real paths. Raises LabelError as `patients_of` does.
    """
    if config.labels is None or config.labels.patient is None:
        return None
    return patients_of(read_labels(config.labels, []), slices, config.data.root, names)


def with_patients(slices: pa.Table, config: Config, names: Names) -> pa.Table:
    """Return a slice table, with the real paths, whose patients are those that splits have."""
    patients = labelled_patients(config, slices, names)
    if patients is None:
        return slices
    return with_column(slices, "patient", pa.array(patients, pa.string()))


def patients_of(
    table: LabelTable,
    slices: pa.Table,
    root: Path,
    names: Names,
) -> Texts:
    """Return (m,) each slice's patient pseudonym, by the label table before the header, or None.

    Raises LabelError where the two group slices differently.
    """
    label = label_rows(table, label_keys(table, slices, root, names).keys, slices)
    # No status is asked for: slices without features have patients too.
    every = _Labelled.of(slices, np.zeros(len(label), np.uint8), label, "patient")
    is_labelled = label >= 0
    of_labelled = _patients(table, every.at(is_labelled), names)
    # A header whose patient the table names elsewhere has that name where it does not.
    same = _patient_of_header(every.headers[is_labelled], of_labelled)
    patients = np.array([same.get(header, header) for header in every.headers], dtype=object)
    patients[is_labelled] = of_labelled
    return patients


def _patients(
    table: LabelTable,
    labelled: _Labelled,
    names: Names,
) -> Texts:
    """Return each slice's patient pseudonym, by the label column before the header, or None."""
    if table.settings.patient is None:
        return labelled.headers
    raw = table.columns[table.settings.patient]
    pseudonyms = pseudonyms_of("patient", raw, names)
    of_row = np.array([pseudonyms.get(text) for text in raw], dtype=object)
    named: Texts = of_row[labelled.label]
    if table.settings.headers == "agree":
        _refuse_other_grouping(labelled, named, names)
    # A slice that its row leaves without a patient is of whom its header is elsewhere.
    same = _patient_of_header(labelled.headers, named)
    fallback = np.array([same.get(header, header) for header in labelled.headers], dtype=object)
    return np.where(is_text(named), named, fallback)


def _patient_of_header(headers: Texts, named: Texts) -> Mapping[str, str]:
    """Return the patient that each header's is by name, where a slice has both."""
    return {header: name for header, name in zip(headers, named, strict=True) if header and name}


def _refuse_other_grouping(labelled: _Labelled, named: Texts, names: Names) -> None:
    """Raise LabelError unless headers and labels agree on which slices are one patient's."""
    both = list(zip(labelled.headers, named, strict=True))
    pairs = {(header, name) for header, name in both if header and name}
    # Pairs, not slices: a header with two names, or a name of two headers, tears a patient.
    names_of_header = Counter(header for header, _ in pairs)
    headers_of_name = Counter(name for _, name in pairs)
    is_torn = np.array(
        [names_of_header[header] > 1 or headers_of_name[name] > 1 for header, name in both]
    )
    if is_torn.any():
        places = np.flatnonzero(is_torn)[:EXAMPLES].tolist()
        examples = ", ".join(labelled.in_message(place, names) for place in places)
        raise LabelError(
            f"The patient column and the file headers group {int(is_torn.sum())} slices "
            f"differently, for example {examples}: a patient could stand on both sides of a split. "
            'Correct the column, or set labels.headers: "ignore" if the headers are wrong.'
        )


def _refuse_unknown_patients(labelled: _Labelled, patients: Texts, names: Names) -> None:
    is_unknown = ~is_text(patients)
    if is_unknown.any():
        example = labelled.in_message(int(np.flatnonzero(is_unknown)[0]), names)
        raise LabelError(
            f"{int(is_unknown.sum())} labelled slices name no patient, for example {example}, "
            "so they cannot be split by patient. Name the column that does in labels.patient, or a "
            "pattern of the path in data.patient."
        )
