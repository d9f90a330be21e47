"""Calibration against scikit-learn's fit, and net benefit by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.metrics.calibration import calibration, logit, net_benefit
from pipeline.evaluation.metrics.values import ScoredColumn


def column(positive: np.ndarray, proba: np.ndarray) -> ScoredColumn:
    known = np.ones(len(proba), bool)
    return ScoredColumn("sick", positive, known, proba, np.full(len(proba), np.nan))


def drawn(n: int = 400, slope: float = 2.0) -> ScoredColumn:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, n)
    positive = rng.random(n) < 1 / (1 + np.exp(-(z - 0.5)))
    return column(positive, 1 / (1 + np.exp(-slope * z)))


def test_slope_and_intercept_are_those_of_logistic_regression_on_the_logit() -> None:
    drawn_column = drawn()
    weights = np.random.default_rng(1).integers(0, 3, (400, 3)).astype(float)
    values = calibration(drawn_column, weights)
    z = logit(drawn_column.proba)[:, None]
    for i in range(3):
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        model.fit(z, drawn_column.positive, sample_weight=weights[:, i])
        assert values["slope"][i] == pytest.approx(model.coef_[0, 0], abs=1e-4)
        assert values["intercept"][i] == pytest.approx(model.intercept_[0], abs=1e-4)


def test_extreme_probabilities_have_a_slope_too() -> None:
    rng = np.random.default_rng(0)
    proba = 1 / (1 + np.exp(-rng.normal(0, 12, 60)))
    positive = rng.random(60) < 0.3 + 0.4 * (proba > 0.5)
    values = calibration(column(positive, proba), np.ones((60, 1)))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logit(proba)[:, None], positive)
    assert values["slope"][0] == pytest.approx(model.coef_[0, 0], abs=1e-5)
    assert values["intercept"][0] == pytest.approx(model.intercept_[0], abs=1e-4)
    moved = 1 / (1 + np.exp(-(logit(proba) + values["in_the_large"][0])))
    assert moved.mean() == pytest.approx(positive.mean(), abs=1e-6)


def test_in_the_large_makes_the_mean_right() -> None:
    drawn_column = drawn()
    offset = calibration(drawn_column, np.ones((400, 1)))["in_the_large"][0]
    moved = 1 / (1 + np.exp(-(logit(drawn_column.proba) + offset)))
    assert moved.mean() == pytest.approx(drawn_column.positive.mean())


def test_sides_that_are_parted_entirely_have_no_slope_and_one_side_has_nothing() -> None:
    parted = column(np.arange(10) > 4, np.linspace(0.1, 0.9, 10))
    assert np.isnan(calibration(parted, np.ones((10, 1)))["slope"][0])
    one_side = column(np.zeros(10, bool), np.linspace(0.1, 0.9, 10))
    assert all(np.isnan(v[0]) for v in calibration(one_side, np.ones((10, 1))).values())


def test_net_benefit_counts_what_a_false_alarm_costs() -> None:
    four = column(np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1]))
    decided, treated = net_benefit(four, [0.5, 0.2], np.ones((4, 1)))
    # At 0.5 one true and one false positive, which cost alike; at 0.2 two true and one false.
    assert decided[:, 0] == pytest.approx([0.0, 2 / 4 - 1 / 4 * 0.25])
    assert treated[:, 0] == pytest.approx([0.0, 2 / 4 - 2 / 4 * 0.25])
