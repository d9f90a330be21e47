"""Patient-disjoint splits: dealt once, kept as a file, checked on every use.

A split names patients (pseudonyms), not rows, so it outlives corrected labels and added slices. One
that was made of a column or a list is checked against what that says now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.data import SplitChoice
from pipeline.config.tasks import Part, Task
from pipeline.evaluation.stratify import (
    TEST,
    TRAIN,
    VAL,
    Sides,
    folds_by_label,
    sides_by_date,
    sides_by_list,
    sides_by_site,
    torn_by_date,
    torn_by_site,
)
from pipeline.shared.texts import file_name
from stores._disk import read_file
from stores.errors import CorruptStoreError, LabelError, as_corrupt
from stores.split_files import digest_of

PARTS: tuple[Part, ...] = get_args(Part)
# Settings of a split that say nothing of who stands where: a list counts by its content.
NOT_OF_THE_SPLIT = {"file", "new", "allow"}
# Patients that a message names.
MOST_NAMED = 50

Texts = NDArray[np.str_]
# The unit numbers of train, val and test.
Parts = dict[Part, NDArray[np.int64]]


# --- who stands where ----------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which patients stand on which side: in train, val and test, or in folds "0", "1", ...

    A patient of no side is left out.
    """

    patients: dict[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """The sha256 of who stands where, as hex."""
        return digest_of(self.patients)

    @property
    def folds(self) -> list[dict[Part, tuple[str, ...]]]:
        """The sides that train, validate and test: once, or for each fold that tests in turn.

        The fold after the one that tests validates.
        """
        if set(self.patients) == set(PARTS):
            return [{part: (part,) for part in PARTS}]
        sides = list(self.patients)
        folds: list[dict[Part, tuple[str, ...]]] = []
        for i, test in enumerate(sides):
            val = sides[(i + 1) % len(sides)]
            train = tuple(side for side in sides if side not in (test, val))
            folds.append({"train": train, "val": (val,), "test": (test,)})
        return folds

    def sides_of(self, groups: Texts) -> Sides:
        """Return (n,) the number of each patient's side, -1 for a patient of none."""
        # On every use: a leak costs more than this check.
        check_disjoint(self)
        side = np.full(len(groups), -1)
        for i, patients in enumerate(self.patients.values()):
            side[np.isin(groups, patients)] = i
        return side

    def parts_of(self, groups: Texts) -> list[Parts]:
        """Return for each fold the unit numbers of each part, for `groups` (n,) patients.

        Raises LabelError for a part without units.
        """
        side = self.sides_of(groups)
        number = {name: i for i, name in enumerate(self.patients)}
        folds: list[Parts] = []
        for fold in self.folds:
            parts: Parts = {}
            for part, names in fold.items():
                numbers = [number[name] for name in names]
                parts[part] = np.flatnonzero(np.isin(side, numbers))
            _refuse_empty(parts)
            folds.append(parts)
        return folds


def _refuse_empty(parts: Parts) -> None:
    for part, units in parts.items():
        if not len(units):
            raise LabelError(
                f"No unit of the task belongs to a {part!r} patient of its split file, whose "
                "labels were taken away since. Delete the file to deal all patients anew."
            )


def check_disjoint(split: Split) -> None:
    """Raise LabelError if a patient stands on two sides, or a side is empty."""
    for side, patients in split.patients.items():
        if not patients:
            raise LabelError(f"The split has no patient in {side!r}; each part must have one.")
    for side, other in combinations(split.patients, 2):
        both = sorted(set(split.patients[side]) & set(split.patients[other]))
        if both:
            raise LabelError(
                f"{len(both)} patients stand in both {side!r} and {other!r} of the split, for "
                f"example {both[0]!r}: scores would be leaked. Each patient must stand in one."
            )


# --- making and extending ------------------------------------------------------------------


@dataclass(frozen=True)
class ToSplit:
    """The units that are divided, and what beside their labels says how.

    keys (n,): a text of each unit that is the same in every store of the collection, by which
    chance knows its patient; without, the patients' names. column (n,): each unit's site, date or
    listed part. linked (n,): what patients who must stand on one side have in common.
    """

    units: Units
    keys: Texts | None = None
    column: Texts | None = None
    linked: Texts | None = None


def make_split(
    units: Units,
    choice: SplitChoice,
    column: Texts | None = None,
    *,
    keys: Texts | None = None,
    linked: Texts | None = None,
) -> Split:
    """Divide the patients of `units` as chosen; column, keys, linked: as `ToSplit` has them.

    Raises LabelError for fewer patients than folds, and where the column cannot be split by.
    """
    given = ToSplit(units, keys, column, linked)
    # Patients who share a copy move together, and count once.
    movable = units.groups if linked is None else linked
    n = len(np.unique(movable))
    if n < choice.folds:
        what = "patients" if linked is None else "patients without a copy of another"
        raise LabelError(
            f"A split into {choice.folds} folds must have at least as many {what}. Got {n} "
            "instead; label more patients or lower split.folds."
        )
    if column is None:
        patients, fold = _folds_by_label(given, choice, alone=False)
        return _split_of_folds(patients, fold, choice)
    match choice.kind:
        case "site":
            patients, side = sides_by_site(units, column, choice.folds, choice.seed)
        case "date":
            patients, side = sides_by_date(units, column, choice.folds, keys)
        case _:
            patients, side = sides_by_list(units, column, choice.folds, choice.seed, keys)
    return _split_of_sides(patients, side, PARTS)


def _folds_by_label(given: ToSplit, choice: SplitChoice, *, alone: bool) -> tuple[Texts, Sides]:
    """Return the patients and the fold of each, those that are linked in one.

    alone: as `folds_by_label` has it.
    """
    units = given.units
    if given.linked is None:
        return folds_by_label(units, choice.folds, choice.seed, given.keys, alone=alone)
    clusters = replace(units, groups=given.linked)
    names, fold = folds_by_label(clusters, choice.folds, choice.seed, given.keys, alone=alone)
    patients, first = np.unique(units.groups, return_index=True)
    return patients, fold[np.searchsorted(names, given.linked[first])]


def _split_of_folds(
    patients: Texts,
    fold: Sides,
    choice: SplitChoice,
) -> Split:
    """Return folds (p,) as they are, or for a holdout two of them as test and val."""
    if choice.kind == "kfold":
        names = [str(i) for i in range(choice.folds)]
        return _split_of_sides(patients, fold, names)
    # The first of a rare label trains, the second tests, the third validates.
    side_of_fold = np.array([TEST, VAL] + [TRAIN] * (choice.folds - 2))
    return _split_of_sides(patients, side_of_fold[fold], PARTS)


def _split_of_sides(
    patients: Texts,
    side: Sides,
    names: Sequence[str],
) -> Split:
    by_name = {}
    for i, name in enumerate(names):
        on_side = patients[side == i].tolist()
        by_name[name] = tuple(sorted(on_side))
    return Split(by_name)


def split_new_patients(
    split: Split,
    units: Units,
    choice: SplitChoice,
    *,
    keys: Texts | None = None,
    linked: Texts | None = None,
) -> Split | None:
    """Return what the patients whom the split does not know add to it; None if nothing.

    keys, linked: as `ToSplit` has them. Raises LabelError where they may neither be dealt nor left
    out.
    """
    known: set[str] = set()
    known.update(*split.patients.values())
    is_new = ~np.isin(units.groups, sorted(known))
    if not is_new.any() or choice.new == "leave-out":
        return None
    if choice.new == "refuse":
        raise LabelError(
            f"{len(np.unique(units.groups[is_new]))} of the task's {len(np.unique(units.groups))} "
            'patients are not in its split. Set split.new: "deal" to deal them to the sides that '
            'stand, or "leave-out" to leave them out; or delete the split file to deal all '
            "patients anew (scores are then not comparable with earlier ones)."
        )
    # Each by his hash alone: whoever comes before or after him, he goes to the same side.
    patients, fold = _folds_by_label(ToSplit(units, keys, None, linked), choice, alone=True)
    is_added = np.isin(patients, units.groups[is_new])
    addition = _split_of_folds(patients[is_added], fold[is_added], choice)
    return addition if linked is None else _with_their_copies(addition, split, units, linked)


def _with_their_copies(
    addition: Split,
    split: Split,
    units: Units,
    linked: Texts,
) -> Split:
    """Return an addition whose patients stand where those of the split do that they are linked to.

    Those of a link that knows two sides stay: copies on two sides are refused later.
    """
    side_of: dict[str, str] = {}
    for name, patients in split.patients.items():
        for link in np.unique(linked[np.isin(units.groups, patients)]).tolist():
            side_of.setdefault(link, name)
    link_of = dict(zip(units.groups.tolist(), linked.tolist(), strict=True))
    by_name: dict[str, list[str]] = {name: [] for name in addition.patients}
    for name, patients in addition.patients.items():
        for patient in patients:
            by_name[side_of.get(link_of[patient], name)].append(patient)
    return Split({name: tuple(sorted(patients)) for name, patients in by_name.items()})


def merged(split: Split, addition: Split) -> Split:
    """Return both together, side by side."""
    by_name = {}
    for name, patients in split.patients.items():
        by_name[name] = tuple(sorted(patients + addition.patients[name]))
    return Split(by_name)


# --- whether the column still says so ------------------------------------------------------


def check_column(
    split: Split,
    units: Units,
    column: Texts,
    choice: SplitChoice,
) -> None:
    """Raise LabelError where a column (n,) no longer puts patients where the split has them."""
    side = _in_order_of_parts(split)[split.sides_of(units.groups)]
    match choice.kind:
        case "site":
            sites, moved = torn_by_site(units, column, side)
            what = f"{len(sites)} sites stand on two sides by now"
        case "date":
            moved = torn_by_date(units, column, side)
            what = "train does not come before val, and val before test, any more"
        case _:
            moved = _moved_by_list(units, column, side)
            what = "the list has them in another part by now"
    if len(moved):
        raise LabelError(
            f"The split on file was made of the {choice.kind} of each patient, and that has "
            f"changed since: {what}. {len(moved)} patients moved: {_some(moved)}. Put the column "
            "back as it was, or delete the split file to divide the patients anew (scores are "
            "then not comparable with earlier ones)."
        )


def _in_order_of_parts(split: Split) -> Sides:
    """Return for each number of a side of the split, and for -1, what it is among the parts."""
    places = [PARTS.index(name) for name in split.patients]
    return np.array([*places, -1], np.int64)


def _moved_by_list(units: Units, parts: Texts, side: Sides) -> Texts:
    """Return the patients who stand on another side than a list has them."""
    listed = np.array([PARTS.index(part) if part in PARTS else -1 for part in parts.tolist()])
    moved = (listed >= 0) & (side >= 0) & (listed != side)
    # Where the list has no val, the split has taken it out of train.
    if not (listed == VAL).any():
        moved &= ~((listed == TRAIN) & (side == VAL))
    return np.unique(units.groups[moved])


def _some(patients: Texts) -> str:
    """Return the first patients of many, by their pseudonyms."""
    names = ", ".join(patients[:MOST_NAMED].tolist())
    more = len(patients) - MOST_NAMED
    return f"{names} and {more} more" if more > 0 else names


# --- files ---------------------------------------------------------------------------------


def split_path(
    store: Path,
    name: str,
    task: Task,
    choice: SplitChoice,
) -> Path:
    """Return where a task's split is kept: named by who is asked about, never by their labels."""
    # Not the pool, nor the policies for values: they change no unit's patient.
    question = task.model_dump(mode="json", include={"labels", "level", "modality"})
    how = _settings_of(choice)
    if choice.file is not None:
        how["file"] = hashlib.sha256(_list_bytes(choice.file)).hexdigest()
    text = json.dumps(
        {"task": question, "split": how},
        sort_keys=True,
        separators=(",", ":"),
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return store / "splits" / f"{file_name(name)}-{digest}.json"


def _settings_of(choice: SplitChoice) -> dict[str, Any]:
    """Return the settings that say who stands where, as the names of split files have them."""
    settings = choice.model_dump(mode="json", exclude=NOT_OF_THE_SPLIT)
    # As before there was a choice: splits on file are found under the name that they have.
    if choice.group == "none":
        del settings["group"]
    return settings


def _list_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise LabelError(
            f"There is no split list {str(file)!r}; set split.file to a CSV of key and part."
        ) from None


def load_split(path: Path) -> Split:
    """Read and check a split file. Raises FileNotFoundError, or LabelError if it was altered."""
    try:
        with as_corrupt(f"The split file {str(path)!r}"):
            data = json.loads(read_file(path))
            split = _patients_in(data)
            # Before the digest is looked at: of a patient on two sides, this must be said.
            check_disjoint(split)
            _check_digest(split, data, path)
            for each in data["additions"]:
                addition = _patients_in(each)
                _check_digest(addition, each, path)
                split = merged(split, addition)
            check_disjoint(split)
            return split
    except CorruptStoreError as error:
        raise LabelError(f"{error} Restore it, or delete it to deal the patients anew.") from None


def _patients_in(data: Any) -> Split:
    return Split({side: tuple(patients) for side, patients in data["patients"].items()})


def _check_digest(
    split: Split,
    data: Any,
    path: Path,
) -> None:
    """Raise LabelError unless the patients still have the digest that is filed with them."""
    if split.digest != data["digest"]:
        raise LabelError(
            f"The split file {str(path)!r} was altered: its patients have the digest "
            f"{split.digest[:12]}, it says {data['digest'][:12]}. Restore it, or delete it to deal "
            "the patients anew."
        )


def split_text(
    split: Split,
    name: str,
    choice: SplitChoice,
) -> str:
    """Return the JSON text of a split file."""
    data = {
        "task": name,
        "settings": _settings_of(choice),
        "digest": split.digest,
        "patients": split.patients,
        "additions": [],
    }
    return json.dumps(data, indent=1) + "\n"


def extended_text(text: str, addition: Split) -> str:
    """Return the text of a split file with patients added to it."""
    # Beside what stands, which is not written anew: its digest stays what it was.
    data = json.loads(text)
    data["additions"].append(
        {
            "digest": addition.digest,
            "patients": addition.patients,
        }
    )
    return json.dumps(data, indent=1) + "\n"
