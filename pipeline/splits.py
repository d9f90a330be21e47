"""Patient-disjoint splits: dealt once, kept as a file, checked on every use.

A split names patients (pseudonyms), not rows, so it outlives corrected labels and added slices.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SplitChoice
from pipeline.types import Part, Task, Units
from stores.errors import LabelError

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Split:
    """Which patients train, validate and test."""

    patients: dict[Part, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """Return the sha256 of who stands where, as hex."""
        text = json.dumps(self.patients, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def parts_of(self, groups: NDArray[np.str_]) -> dict[Part, NDArray[np.int64]]:
        """Return the unit numbers of each part, for `groups` (n,) patients.

        Raises LabelError for a patient whom the split does not know, or a part without units.
        """
        check_disjoint(self)
        found = {part: np.isin(groups, self.patients[part]) for part in PARTS}
        unknown = ~np.logical_or.reduce(list(found.values()))
        if unknown.any():
            raise LabelError(
                f"{len(np.unique(groups[unknown]))} of the task's {len(np.unique(groups))} "
                "patients are not in its split file, so they were added after it was made. Delete "
                "the file to deal all patients anew (scores are then not comparable with earlier "
                "ones), or leave the new patients' labels empty."
            )
        for part, mask in found.items():
            if not mask.any():
                raise LabelError(
                    f"No unit of the task belongs to a {part!r} patient of its split file, whose "
                    "labels were taken away since. Delete the file to deal all patients anew."
                )
        return {part: np.flatnonzero(mask) for part, mask in found.items()}


def check_disjoint(split: Split) -> None:
    """Raise LabelError if a patient stands on two sides, or a side is empty."""
    for i, part in enumerate(PARTS):
        if not split.patients[part]:
            raise LabelError(f"The split has no patient in {part!r}; each part must have one.")
        for other in PARTS[i + 1 :]:
            both = sorted(set(split.patients[part]) & set(split.patients[other]))
            if both:
                raise LabelError(
                    f"{len(both)} patients stand in both {part!r} and {other!r} of the split, for "
                    f"example {both[0]!r}: scores would be leaked. Each patient must stand in one."
                )


def deal(units: Units, choice: SplitChoice) -> Split:
    """Deal the patients of `units` into folds: one tests, one validates, the others train.

    Stratified by dealing in turn from a deck sorted by label combination, rarest label first, and
    shuffled within a combination: every combination, and the rarest label exactly, is spread over
    the folds to within one patient, however few carry it. Patients count in the order of their
    first units, so that two stores of one collection are split alike whatever their pseudonyms.
    Raises LabelError for fewer patients than folds.
    """
    patients, carries = _labels_by_patient(units)
    if len(patients) < choice.folds:
        raise LabelError(
            f"A split into {choice.folds} folds must have at least as many patients. Got "
            f"{len(patients)} instead; label more patients or lower split.folds."
        )
    rng = np.random.default_rng(choice.seed)
    shuffled = rng.permutation(len(patients))
    rarest_last = np.argsort(-carries.sum(axis=0), kind="stable")
    deck = shuffled[np.lexsort(carries[shuffled][:, rarest_last].T)[::-1]]
    # The first of a rare label trains, the second tests, the third validates.
    fold = (np.arange(len(deck)) - 1) % choice.folds
    sides = {"test": fold == 0, "val": fold == 1, "train": fold > 1}
    return Split({part: tuple(sorted(patients[deck[sides[part]]].tolist())) for part in PARTS})


def _labels_by_patient(units: Units) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Return the p patients and, (p, c), which classes or labels any unit of theirs carries."""
    patients, first, patient = np.unique(units.groups, return_index=True, return_inverse=True)
    carries = np.zeros((len(patients), len(units.classes)), bool)
    np.logical_or.at(carries, patient, units.indicator)
    order = np.argsort(first)
    return patients[order], carries[order]


def split_path(store: Path, name: str, task: Task, choice: SplitChoice) -> Path:
    """Return where the split of a task is kept: it depends on the question, never on labels."""
    question = task.model_dump(mode="json", exclude={"pool"})
    asked = {"task": question, "split": choice.model_dump(mode="json")}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    safe = re.sub(r"[^\w.-]", "_", name)
    return store / "splits" / f"{safe}-{digest}.json"


def load_split(path: Path) -> Split:
    """Read and check a split file. Raises FileNotFoundError, or LabelError if it was altered."""
    data = json.loads(path.read_text(encoding="utf-8"))
    split = Split({part: tuple(data["patients"][part]) for part in PARTS})
    check_disjoint(split)
    if split.digest != data["digest"]:
        raise LabelError(
            f"The split file {str(path)!r} was altered: its patients have the digest "
            f"{split.digest[:12]}, it says {data['digest'][:12]}. Restore it, or delete it to deal "
            "the patients anew."
        )
    return split


def split_text(split: Split, name: str, choice: SplitChoice) -> str:
    """Return the JSON text of a split file."""
    head = {"task": name, "settings": choice.model_dump(mode="json"), "digest": split.digest}
    return json.dumps({**head, "patients": split.patients}, indent=1) + "\n"
