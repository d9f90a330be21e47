"""Operating points: chosen on val, and the rates of test at them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from pipeline.config.tasks import AtLeast, Task
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.operating import is_called, threshold_of, thresholds_of
from tests.pipeline.collection import units_of


def rates(positive: NDArray[Any], values: NDArray[Any], threshold: float) -> tuple[float, float]:
    called = values >= threshold
    return float(called[positive].mean()), float((~called)[~positive].mean())


@pytest.mark.parametrize("decimals", [1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_does_better(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.2
    values = np.clip(np.round(0.5 * rng.random(60) + 0.3 * positive, decimals), 0, 1)
    every = [rates(positive, values, t) for t in (*np.unique(values), 2.0)]
    chosen = rates(positive, values, threshold_of(positive, values, "youden"))
    assert sum(chosen) == pytest.approx(max(map(sum, every)))
    for least in (0.5, 0.9, 1.0):
        sensitive = rates(
            positive, values, threshold_of(positive, values, AtLeast(sensitivity=least))
        )
        assert sensitive[0] >= least
        assert sensitive[1] == max(spec for sens, spec in every if sens >= least)
        specific = rates(
            positive, values, threshold_of(positive, values, AtLeast(specificity=least))
        )
        assert specific[1] >= least
        assert specific[0] == max(sens for sens, spec in every if spec >= least)


@pytest.mark.parametrize("rule", ["youden", AtLeast(sensitivity=1.0), AtLeast(specificity=1.0)])
@pytest.mark.parametrize("edge", [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.3] * 4, [1.0] * 4])
def test_edges_have_a_point_as_well(rule: Any, edge: list[float]) -> None:
    positive = np.array([False, True, False, True])
    threshold = threshold_of(positive, np.array(edge), rule)
    sensitivity, specificity = rates(positive, np.array(edge), threshold)
    if rule == AtLeast(sensitivity=1.0):
        assert sensitivity == 1
    if rule == AtLeast(specificity=1.0):
        assert specificity == 1
    assert np.isnan(threshold_of(np.ones(4, bool), np.array(edge), rule))


def test_a_threshold_lies_half_way_and_calls_from_there_on() -> None:
    positive = np.array([False, False, True, True])
    values = np.array([0.01, 0.02, 0.06, 0.5])
    assert threshold_of(positive, values, "youden") == pytest.approx(0.04)
    called = is_called(
        np.array([0.04, 0.039, 0.5, 0.51]),
        np.array([0.04, 0.04, np.nan, np.nan]),
    )
    assert called.tolist() == [True, False, False, True]


def test_labels_have_points_of_their_own_and_likeliest_has_none() -> None:
    y = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1], [1, -1, 1]], np.int8)
    proba = np.array([[0.1, 0.3, 0.5], [0.2, 0.2, 0.5], [0.3, 0.1, 0.5], [0.4, 0.9, 0.5]])
    points = thresholds_of(units_of(y), proba, "youden")
    assert points[:2] == pytest.approx([0.25, 0.25])
    assert np.isnan(points[2])  # every unit carries it: val says nothing
    assert np.isnan(thresholds_of(units_of(y), proba, "likeliest")).all()
    classes = units_of(np.array([0, 1, 2, 2]))
    assert np.isnan(thresholds_of(classes, proba, "youden")).all()
    two = thresholds_of(units_of(np.array([0, 0, 1, 1])), proba[:, [1, 0]], "youden")
    assert np.isnan(two[0])
    assert two[1] == pytest.approx(0.25)


def test_what_needs_a_decision_is_judged_at_the_point() -> None:
    rng = np.random.default_rng(5)
    y = (rng.random(400) < 0.1).astype(np.int64)
    sure = np.clip(0.05 + 0.1 * y + 0.05 * rng.standard_normal(400), 0, 1)
    truth, proba = units_of(y), np.stack([1 - sure, sure], axis=1)
    thresholds = np.full((400, 2), np.nan)
    thresholds[:, 1] = 0.1
    at_half, _ = metrics.score(truth, proba)
    assert at_half["sensitivity"].value == 0  # a rare finding is never likelier than not
    assert "ppv" not in at_half  # nobody is called
    at_point, _ = metrics.score(truth, proba, thresholds=thresholds)
    called = sure >= 0.1
    (tn, fp), (fn, tp) = confusion_matrix(y, called)
    assert at_point["sensitivity"].value == pytest.approx(recall_score(y, called))
    assert at_point["specificity"].value == pytest.approx(tn / (tn + fp))
    assert at_point["ppv"].value == pytest.approx(precision_score(y, called))
    assert at_point["npv"].value == pytest.approx(tn / (tn + fn))
    assert at_point["accuracy"].value == pytest.approx((tp + tn) / 400)
    assert at_point["auroc"] == at_half["auroc"]
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        metric = at_point[name]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({}, "a sensitivity or a specificity"),
        ({"sensitivity": 0.9, "specificity": 0.9}, "a sensitivity or a specificity"),
        ({"sensitivity": 90}, "less than or equal to 1"),
        ("best", "youden"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Task.model_validate({"labels": ["a"], "operating_point": rule})
