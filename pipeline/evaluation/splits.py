"""Patient-disjoint splits: dealt once, kept as a file, checked on every use.

A split names patients (pseudonyms), not rows, so it outlives corrected labels and added slices.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Units
from pipeline.config.data import SplitChoice
from pipeline.config.tasks import Part, Task
from pipeline.evaluation.stratify import TEST, TRAIN, VAL, by_date, by_label, by_list, by_site
from stores.errors import LabelError

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Split:
    """Which patients stand on which side: in train, val and test, or in folds "0", "1", ...

    A patient of no side is left out.
    """

    patients: dict[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """Return the sha256 of who stands where, as hex."""
        text = json.dumps(self.patients, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def turns(self) -> list[dict[Part, tuple[str, ...]]]:
        """Return who trains, validates and tests: once, or for each fold that tests in turn.

        The fold after the one that tests validates.
        """
        if set(self.patients) == set(PARTS):
            return [{part: (part,) for part in PARTS}]
        folds = list(self.patients)
        turns: list[dict[Part, tuple[str, ...]]] = []
        for i, test in enumerate(folds):
            val = folds[(i + 1) % len(folds)]
            train = tuple(fold for fold in folds if fold not in (test, val))
            turns.append({"train": train, "val": (val,), "test": (test,)})
        return turns

    def sides_of(self, groups: NDArray[np.str_]) -> NDArray[np.int64]:
        """Return (n,) the number of each patient's side, -1 for a patient of none."""
        check_disjoint(self)
        side = np.full(len(groups), -1)
        for i, patients in enumerate(self.patients.values()):
            side[np.isin(groups, patients)] = i
        return side

    def parts_of(self, groups: NDArray[np.str_]) -> list[dict[Part, NDArray[np.int64]]]:
        """Return for each turn the unit numbers of each part, for `groups` (n,) patients.

        Raises LabelError for a part without units.
        """
        side, names = self.sides_of(groups), list(self.patients)
        turns: list[dict[Part, NDArray[np.int64]]] = []
        for turn in self.turns:
            parts: dict[Part, NDArray[np.int64]] = {}
            for part, sides in turn.items():
                parts[part] = np.flatnonzero(np.isin(side, [names.index(name) for name in sides]))
                if not len(parts[part]):
                    raise LabelError(
                        f"No unit of the task belongs to a {part!r} patient of its split file, "
                        "whose labels were taken away since. Delete the file to deal all patients "
                        "anew."
                    )
            turns.append(parts)
        return turns


def check_disjoint(split: Split) -> None:
    """Raise LabelError if a patient stands on two sides, or a side is empty."""
    sides = list(split.patients)
    for i, side in enumerate(sides):
        if not split.patients[side]:
            raise LabelError(f"The split has no patient in {side!r}; each part must have one.")
        for other in sides[i + 1 :]:
            both = sorted(set(split.patients[side]) & set(split.patients[other]))
            if both:
                raise LabelError(
                    f"{len(both)} patients stand in both {side!r} and {other!r} of the split, for "
                    f"example {both[0]!r}: scores would be leaked. Each patient must stand in one."
                )


def deal(units: Units, choice: SplitChoice, column: NDArray[np.str_] | None = None) -> Split:
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
        return _folded(*by_label(units, choice.folds, choice.seed), choice)
    match choice.kind:
        case "site":
            dealt = by_site(units, column, choice.folds, choice.seed)
        case "date":
            dealt = by_date(units, column, choice.folds)
        case _:
            dealt = by_list(units, column, choice.folds, choice.seed)
    return _sided(*dealt, PARTS)


def _folded(patients: NDArray[np.str_], fold: NDArray[np.int64], choice: SplitChoice) -> Split:
    if choice.kind == "kfold":
        return _sided(patients, fold, [str(i) for i in range(choice.folds)])
    # The first of a rare label trains, the second tests, the third validates.
    sides = np.array([TEST, VAL] + [TRAIN] * (choice.folds - 2))
    return _sided(patients, sides[fold], PARTS)


def _sided(patients: NDArray[np.str_], side: NDArray[np.int64], names: Sequence[str]) -> Split:
    return Split(
        {name: tuple(sorted(patients[side == i].tolist())) for i, name in enumerate(names)}
    )


def with_new(split: Split, units: Units, choice: SplitChoice) -> Split | None:
    """Return what the patients whom the split does not know add to it; None if nothing.

    Raises LabelError where they may neither be dealt nor left out.
    """
    known = {patient for patients in split.patients.values() for patient in patients}
    new = ~np.isin(units.groups, sorted(known))
    if not new.any() or choice.new == "leave-out":
        return None
    if choice.new == "refuse":
        raise LabelError(
            f"{len(np.unique(units.groups[new]))} of the task's {len(np.unique(units.groups))} "
            'patients are not in its split. Set split.new: "deal" to deal them to the sides that '
            'stand, or "leave-out" to leave them out; or delete the split file to deal all '
            "patients anew (scores are then not comparable with earlier ones)."
        )
    dealt = by_label(units.at(new), choice.folds, choice.seed, first=len(known) - 1)
    return _folded(*dealt, choice)


def joined(split: Split, addition: Split) -> Split:
    """Return both together, side by side."""
    return Split(
        {
            name: tuple(sorted(patients + addition.patients[name]))
            for name, patients in split.patients.items()
        }
    )


def split_path(store: Path, name: str, task: Task, choice: SplitChoice) -> Path:
    """Return where a task's split is kept: named by who is asked about, never by their labels."""
    question = task.model_dump(mode="json", include={"labels", "level", "modality"})
    how = choice.model_dump(mode="json", exclude={"file", "new", "allow"})
    if choice.file is not None:
        how["file"] = hashlib.sha256(_list_bytes(choice.file)).hexdigest()
    text = json.dumps({"task": question, "split": how}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    safe = re.sub(r"[^\w.-]", "_", name)
    return store / "splits" / f"{safe}-{digest}.json"


def _list_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise LabelError(
            f"There is no split list {str(file)!r}; set split.file to a CSV of key and part."
        ) from None


def load_split(path: Path) -> Split:
    """Read and check a split file. Raises FileNotFoundError, or LabelError if it was altered."""
    data = json.loads(path.read_text(encoding="utf-8"))
    split = _patients(data)
    check_disjoint(split)
    _check_digest(split, data, path)
    for each in data["additions"]:
        addition = _patients(each)
        _check_digest(addition, each, path)
        split = joined(split, addition)
    check_disjoint(split)
    return split


def _patients(data: Any) -> Split:
    return Split({side: tuple(patients) for side, patients in data["patients"].items()})


def _check_digest(split: Split, data: Any, path: Path) -> None:
    if split.digest != data["digest"]:
        raise LabelError(
            f"The split file {str(path)!r} was altered: its patients have the digest "
            f"{split.digest[:12]}, it says {data['digest'][:12]}. Restore it, or delete it to deal "
            "the patients anew."
        )


def split_text(split: Split, name: str, choice: SplitChoice) -> str:
    """Return the JSON text of a split file."""
    settings = choice.model_dump(mode="json", exclude={"file", "new", "allow"})
    head = {"task": name, "settings": settings, "digest": split.digest}
    return json.dumps({**head, "patients": split.patients, "additions": []}, indent=1) + "\n"


def extended_text(text: str, addition: Split) -> str:
    """Return the text of a split file with patients added to it."""
    data = json.loads(text)
    data["additions"].append({"digest": addition.digest, "patients": addition.patients})
    return json.dumps(data, indent=1) + "\n"


@dataclass(frozen=True)
class Tested:
    """Predictions of the units `rows` (q,), and the fold (q,) of each where there are several."""

    predictions: list[Prediction]
    rows: NDArray[np.int64]
    fold: NDArray[np.int64] | None
    notes: list[str]


def together(
    answers: Sequence[tuple[list[Prediction], list[str]]], tests: Sequence[NDArray[np.int64]]
) -> Tested:
    """Join the predictions and notes of each turn, which tested the units `tests`.

    Predictions belong together where they are of one setting. Where each turn made one, by a
    setting it chose itself, they do too, and a note says what was chosen.
    """
    if len(answers) == 1:
        return Tested(answers[0][0], tests[0], None, answers[0][1])
    notes = [f"fold {i}: {note}" for i, (_, said) in enumerate(answers) for note in said]
    made = [predictions for predictions, _ in answers]
    if all(len(own) == 1 for own in made) and any(p.setting != made[0][0].setting for (p,) in made):
        chosen = [f"{k} = {v:.3g}" for own in made for k, v in own[0].setting.items()]
        notes.append(f"chosen by fold: {', '.join(chosen)}")
        joined = [_join({}, [own[0] for own in made])]
    else:
        by_setting = [{tuple(p.setting.items()): p for p in own} for own in made]
        shared = [s for s in by_setting[0] if all(s in own for own in by_setting)]
        joined = [_join(dict(s), [own[s] for own in by_setting]) for s in shared]
    fold = np.repeat(np.arange(len(tests)), [len(test) for test in tests])
    return Tested(joined, np.concatenate(tests), fold, notes)


def _join(setting: dict[str, float], each: Sequence[Prediction]) -> Prediction:
    return Prediction(setting, np.concatenate([p.proba for p in each]))
