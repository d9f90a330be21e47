"""The predictions of several models, each tested on a fold of its own, as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, SliceWeights
from pipeline.shared.texts import plain_number

Rows = NDArray[np.int64]
# What a head returns for one fold: a prediction a setting, and notes.
FoldAnswer = tuple[list[Prediction], list[str]]
# A setting such as {"k": 10}, as it can be looked up by.
Setting = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of units by models that were not fitted on them, one prediction a setting.

    rows (q,): the numbers of the units; fold (q,): the model that predicted each, None where there
    is one alone. notes: what was left out, and why. chosen: the place of the score that stands for
    the answer.
    """

    predictions: list[Prediction]
    rows: Rows
    fold: Rows | None
    notes: list[str]
    chosen: int = -1


def join_folds(answers: Sequence[FoldAnswer], tests: Sequence[Rows]) -> OutOfFold:
    """Join the predictions and notes of each fold, whose test units are `tests`.

    Predictions belong together where they are of one setting. Those that each fold chose, or made
    alone, do too, and a note says by which settings.
    """
    if len(answers) == 1:
        predictions, notes = answers[0]
        return OutOfFold(predictions, tests[0], None, notes, place_of_chosen(predictions))
    # Several folds: each unit is tested once, by the one model that has not seen its patient.
    by_fold = [predictions for predictions, _ in answers]
    notes = _numbered_notes(answers)
    joined: list[Prediction] = []
    # Of a head that tries one setting alone, each fold's is the one that it chose.
    if any(len(predictions) != 1 for predictions in by_fold):
        joined = _joined_by_setting(by_fold)
    chosen = _chosen_by_fold(by_fold)
    if chosen:
        joined += _joined_chosen(chosen, joined)
        if len({tuple(each.setting.items()) for each in chosen}) > 1:
            notes.append(f"chosen by fold: {', '.join(_in_words(chosen))}")
    sizes = [len(test) for test in tests]
    return OutOfFold(
        predictions=joined,
        rows=np.concatenate(tests),
        fold=np.repeat(np.arange(len(tests)), sizes),
        notes=notes,
        chosen=place_of_chosen(joined),
    )


def _numbered_notes(answers: Sequence[FoldAnswer]) -> list[str]:
    notes: list[str] = []
    for i, (_, of_fold) in enumerate(answers):
        notes += [f"fold {i}: {note}" for note in of_fold]
    return notes


def place_of_chosen(predictions: Sequence[Prediction]) -> int:
    """Return the place of the prediction that val chose; -1, of the last, where none is marked."""
    for i, prediction in enumerate(predictions):
        if prediction.chosen:
            return i
    return -1


def _chosen_by_fold(by_fold: Sequence[list[Prediction]]) -> list[Prediction]:
    """Return the prediction that each fold chose, or made alone; nothing where one has none."""
    chosen = []
    for predictions in by_fold:
        if len(predictions) == 1:
            chosen += predictions
        else:
            chosen += [prediction for prediction in predictions if prediction.chosen]
    return chosen if len(chosen) == len(by_fold) else []


def _joined_chosen(chosen: Sequence[Prediction], joined: list[Prediction]) -> list[Prediction]:
    """Return what the folds chose as a prediction of its own, unless it stands in `joined`.

    Where all chose alike, the one of that setting is marked there.
    """
    setting = chosen[0].setting
    if any(each.setting != setting for each in chosen):
        return [replace(_joined({}, chosen), chosen=True)]
    for i, prediction in enumerate(joined):
        if prediction.setting == setting:
            joined[i] = replace(prediction, chosen=True)
            return []
    return [_joined(setting, chosen)]


def _in_words(chosen: Sequence[Prediction]) -> list[str]:
    """Return a text such as "C = 0.1" for each number of each fold's setting."""
    words: list[str] = []
    for prediction in chosen:
        words += [f"{name} = {plain_number(value)}" for name, value in prediction.setting.items()]
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
    proba = np.concatenate([prediction.proba for prediction in each])
    thresholds = [prediction.thresholds for prediction in each if prediction.thresholds is not None]
    weights = [(one.weights, len(one.proba)) for one in each if one.weights is not None]
    return Prediction(
        setting,
        proba,
        thresholds=np.concatenate(thresholds) if len(thresholds) == len(each) else None,
        weights=SliceWeights.joined(weights) if len(weights) == len(each) else None,
    )
