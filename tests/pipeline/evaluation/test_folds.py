"""Predictions of several folds as those of one model: what belongs together, and what is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction
from pipeline.evaluation.folds import join_folds

TESTS = [np.array([4, 0]), np.array([1]), np.array([3, 2, 5])]


def predictions(test: NDArray[np.int64], *settings: dict[str, float]) -> list[Prediction]:
    """Return a prediction a setting, whose numbers tell the unit and the setting."""
    return [
        Prediction(setting, 10 * test[:, None] + sum(setting.values(), 0.0)) for setting in settings
    ]


def test_one_fold_is_what_it_is() -> None:
    made = predictions(TESTS[0], {"k": 3})
    joined = join_folds([(made, ["a note"])], TESTS[:1])
    assert joined.predictions is made
    assert joined.rows is TESTS[0]
    assert joined.fold is None
    assert joined.notes == ["a note"]


def test_settings_that_every_fold_has_are_joined_in_order_of_the_folds() -> None:
    threes, fives = {"k": 3.0}, {"k": 5.0}
    answers = [
        (predictions(TESTS[0], fives, threes), ["few"]),
        (predictions(TESTS[1], threes), ["k = 5 left out", "few"]),
        (predictions(TESTS[2], threes, fives), []),
    ]
    joined = join_folds(answers, TESTS)
    (three,) = joined.predictions
    assert three.setting == threes
    assert three.proba.ravel().tolist() == [43, 3, 13, 33, 23, 53]
    assert joined.rows.tolist() == [4, 0, 1, 3, 2, 5]
    assert joined.fold is not None
    assert joined.fold.tolist() == [0, 0, 1, 2, 2, 2]
    assert joined.notes == ["fold 0: few", "fold 1: k = 5 left out", "fold 1: few"]


def test_what_each_fold_chose_itself_is_joined_and_told() -> None:
    chosen = [{"C": 0.1}, {"C": 10.0}, {"C": 0.1}]
    answers = [(predictions(test, own), []) for test, own in zip(TESTS, chosen, strict=True)]
    joined = join_folds(answers, TESTS)
    (only,) = joined.predictions
    assert only.setting == {}
    assert only.proba.ravel() == pytest.approx([40.1, 0.1, 20, 30.1, 20.1, 50.1])
    assert joined.notes == ["chosen by fold: C = 0.1, C = 10, C = 0.1"]
    alike = [(predictions(test, {"C": 0.1}), []) for test in TESTS]
    same = join_folds(alike, TESTS)
    assert same.predictions[0].setting == {"C": 0.1}
    assert same.notes == []


def test_of_several_the_one_that_each_fold_chose_stands_for_the_answer() -> None:
    def answers(*chosen: float) -> list[tuple[list[Prediction], list[str]]]:
        each = []
        for test, k in zip(TESTS, chosen, strict=True):
            made = predictions(test, {"k": 3.0}, {"k": 5.0})
            each.append(([replace(p, chosen=p.setting["k"] == k) for p in made], []))
        return each

    alike = join_folds(answers(3, 3, 3), TESTS)
    assert [p.setting for p in alike.predictions] == [{"k": 3.0}, {"k": 5.0}]
    assert alike.chosen == 0
    assert alike.notes == []
    apart = join_folds(answers(3, 5, 3), TESTS)
    assert [p.setting for p in apart.predictions] == [{"k": 3.0}, {"k": 5.0}, {}]
    assert apart.chosen == 2
    assert apart.predictions[2].proba.ravel().tolist() == [43, 3, 15, 33, 23, 53]
    assert apart.notes == ["chosen by fold: k = 3, k = 5, k = 3"]


def test_operating_points_are_joined_where_every_fold_has_them() -> None:
    with_points = []
    for i, test in enumerate(TESTS):
        (made,) = predictions(test, {"C": 1.0})
        points = np.full(made.proba.shape, float(i))
        with_points.append(([replace(made, thresholds=points)], []))
    joined = join_folds(with_points, TESTS).predictions[0]
    assert joined.thresholds is not None
    assert joined.thresholds.ravel().tolist() == [0, 0, 1, 2, 2, 2]
    with_points[1] = (predictions(TESTS[1], {"C": 1.0}), [])
    assert join_folds(with_points, TESTS).predictions[0].thresholds is None


def test_a_fold_without_a_prediction_leaves_none() -> None:
    answers = [(predictions(TESTS[0], {"k": 3.0}), []), ([], ["no model"]), ([], [])]
    joined = join_folds(answers, TESTS)
    assert joined.predictions == []
    assert joined.notes == ["fold 1: no model"]
