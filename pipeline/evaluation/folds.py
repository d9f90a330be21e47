"""The predictions of several models, each tested on a fold of its own, as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction

Rows = NDArray[np.int64]
# What a head returns for one fold: a prediction a setting, and notes.
FoldAnswer = tuple[list[Prediction], list[str]]
# A setting such as {"k": 10}, as it can be looked up by.
Setting = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of units by models that were not fitted on them, one prediction a setting.

    rows (q,): the numbers of the units; fold (q,): the model that predicted each, None where there
    is one alone. notes: what was left out, and why.
    """

    predictions: list[Prediction]
    rows: Rows
    fold: Rows | None
    notes: list[str]


def join_folds(answers: Sequence[FoldAnswer], tests: Sequence[Rows]) -> OutOfFold:
    """Join the predictions and notes of each fold, whose test units are `tests`.

    Predictions belong together where they are of one setting. Where each fold made one, by a
    setting it chose itself, they do too, and a note says what was chosen.
    """
    if len(answers) == 1:
        predictions, notes = answers[0]
        return OutOfFold(predictions, tests[0], None, notes)
    # Several folds: each unit is tested once, by the one model that has not seen its patient.
    by_fold = [predictions for predictions, _ in answers]
    notes = _numbered_notes(answers)
    if _each_chose_another(by_fold):
        chosen = [predictions[0] for predictions in by_fold]
        notes.append(f"chosen by fold: {', '.join(_in_words(chosen))}")
        joined = [_joined({}, chosen)]
    else:
        joined = _joined_by_setting(by_fold)
    sizes = [len(test) for test in tests]
    return OutOfFold(
        predictions=joined,
        rows=np.concatenate(tests),
        fold=np.repeat(np.arange(len(tests)), sizes),
        notes=notes,
    )


def _numbered_notes(answers: Sequence[FoldAnswer]) -> list[str]:
    notes: list[str] = []
    for i, (_, of_fold) in enumerate(answers):
        notes += [f"fold {i}: {note}" for note in of_fold]
    return notes


def _each_chose_another(by_fold: Sequence[list[Prediction]]) -> bool:
    """Return whether every fold has one prediction, and not all are of one setting."""
    if any(len(predictions) != 1 for predictions in by_fold):
        return False
    first = by_fold[0][0].setting
    return any(predictions[0].setting != first for predictions in by_fold)


def _in_words(chosen: Sequence[Prediction]) -> list[str]:
    """Return a text such as "C = 0.1" for each number of each fold's setting."""
    words: list[str] = []
    for prediction in chosen:
        words += [f"{name} = {value:.3g}" for name, value in prediction.setting.items()]
    return words


def _joined_by_setting(by_fold: Sequence[list[Prediction]]) -> list[Prediction]:
    """Return a prediction a setting that every fold has, in the first fold's order."""
    by_setting = [_by_setting(predictions) for predictions in by_fold]
    joined = []
    for setting in by_setting[0]:
        # A fold of too few units may have left out, say, the largest k.
        if all(setting in of_fold for of_fold in by_setting):
            each = [of_fold[setting] for of_fold in by_setting]
            joined.append(_joined(dict(setting), each))
    return joined


def _by_setting(predictions: Sequence[Prediction]) -> dict[Setting, Prediction]:
    return {tuple(prediction.setting.items()): prediction for prediction in predictions}


def _joined(setting: dict[str, float], each: Sequence[Prediction]) -> Prediction:
    return Prediction(setting, np.concatenate([prediction.proba for prediction in each]))
