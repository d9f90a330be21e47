"""Patient-disjoint splits: dealt once, kept as a file, checked on every use.

A split names patients (pseudonyms), not rows, so it outlives corrected labels and added slices.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
)
from stores._disk import read_file
from stores.errors import CorruptStoreError, LabelError, as_corrupt

PARTS: tuple[Part, ...] = get_args(Part)
# Settings of a split that say nothing of who stands where: a list counts by its content.
NOT_OF_THE_SPLIT = {"file", "new", "allow"}

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
        # Sorted and without spaces: equal splits are equal text.
        text = json.dumps(self.patients, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

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


def make_split(
    units: Units,
    choice: SplitChoice,
    column: Texts | None = None,
) -> Split:
    """Divide the patients of `units` as chosen; column (n,): each unit's site, date or list part.

    Raises LabelError for fewer patients than folds, and where the column cannot be split by.
    """
    n = len(np.unique(units.groups))
    if n < choice.folds:
        raise LabelError(
            f"A split into {choice.folds} folds must have at least as many patients. Got {n} "
            "instead; label more patients or lower split.folds."
        )
    if column is None:
        patients, fold = folds_by_label(units, choice.folds, choice.seed)
        return _split_of_folds(patients, fold, choice)
    match choice.kind:
        case "site":
            patients, side = sides_by_site(units, column, choice.folds, choice.seed)
        case "date":
            patients, side = sides_by_date(units, column, choice.folds)
        case _:
            patients, side = sides_by_list(units, column, choice.folds, choice.seed)
    return _split_of_sides(patients, side, PARTS)


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
) -> Split | None:
    """Return what the patients whom the split does not know add to it; None if nothing.

    Raises LabelError where they may neither be dealt nor left out.
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
    # They go on where the patients before them stopped, so that folds stay of one size.
    patients, fold = folds_by_label(
        units.at(is_new),
        choice.folds,
        choice.seed,
        first=len(known) - 1,
    )
    return _split_of_folds(patients, fold, choice)


def merged(split: Split, addition: Split) -> Split:
    """Return both together, side by side."""
    by_name = {}
    for name, patients in split.patients.items():
        by_name[name] = tuple(sorted(patients + addition.patients[name]))
    return Split(by_name)


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
    how = choice.model_dump(mode="json", exclude=NOT_OF_THE_SPLIT)
    if choice.file is not None:
        how["file"] = hashlib.sha256(_list_bytes(choice.file)).hexdigest()
    text = json.dumps(
        {"task": question, "split": how},
        sort_keys=True,
        separators=(",", ":"),
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    safe_name = re.sub(r"[^\w.-]", "_", name)
    return store / "splits" / f"{safe_name}-{digest}.json"


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
        "settings": choice.model_dump(mode="json", exclude=NOT_OF_THE_SPLIT),
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
