"""Probabilities made right on val: by a line, or by steps where val is large and they do better."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from pipeline.annotations.units import Truth
from pipeline.fitted.calibration import Calibration, Isotonic, Sigmoid, calibrate, is_small

CLASSES = ("no", "yes")


def drawn(n: int, true: np.ndarray, seed: int = 0) -> Truth:
    """Return n units, two a patient, that are positive as often as `true` says."""
    y = (np.random.default_rng(seed).random(n) < true).astype(np.int64)
    groups = np.array([f"p{i // 2:05}" for i in range(n)])
    return Truth(y, groups, CLASSES, "binary")


def of_both(positive: np.ndarray) -> np.ndarray:
    return np.stack([1 - positive, positive], axis=1)


def said_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.02, 0.98, n)


def stepped(said: np.ndarray) -> np.ndarray:
    """Return a truth that no line on the logit can follow."""
    return np.where(said < 0.3, 0.05, np.where(said < 0.8, 0.5, 0.6))


def test_steps_are_taken_where_val_is_large_and_they_do_better() -> None:
    said = said_of(4000)
    truth = drawn(4000, stepped(said))
    made, notes = calibrate(truth, of_both(said))
    assert notes == []
    assert made is not None
    steps = made.sigmoids["yes"]
    assert isinstance(steps, Isotonic)
    assert steps.units == 4000
    new = said_of(2000)
    right = made.apply(of_both(new), CLASSES, "binary")
    assert np.abs(right[:, 1] - stepped(new)).mean() < 0.05
    np.testing.assert_allclose(right.sum(axis=1), 1)
    # As scikit-learn has it, and in the order of what was said.
    theirs = IsotonicRegression(y_min=1 / 4002, y_max=4001 / 4002, out_of_bounds="clip")
    theirs.fit(said, truth.y)
    np.testing.assert_allclose(right[:, 1], theirs.predict(new), atol=1e-9)
    assert (np.diff(right[np.argsort(new), 1]) >= 0).all()
    assert 0 < right.min() < right.max() < 1


@pytest.mark.parametrize("n", [400, 4000])
def test_a_line_is_kept_where_val_is_small_or_a_line_is_right(n: int) -> None:
    said = said_of(n)
    slope, intercept = 0.5, -0.4
    logit = np.log(said / (1 - said))
    truth = drawn(n, 1 / (1 + np.exp(-(intercept + slope * logit))) if n > 1000 else stepped(said))
    made, _ = calibrate(truth, of_both(said))
    assert made is not None
    line = made.sigmoids["yes"]
    assert isinstance(line, Sigmoid)
    if n > 1000:
        assert line.slope == pytest.approx(slope, abs=0.1)
        assert line.intercept == pytest.approx(intercept, abs=0.1)


def test_what_is_filed_reads_back_the_same_also_from_before_there_were_steps() -> None:
    said = said_of(4000)
    made, _ = calibrate(drawn(4000, stepped(said)), of_both(said))
    assert made is not None
    again = Calibration.model_validate_json(made.model_dump_json())
    assert again == made
    before = {"sigmoids": {"yes": {"kind": "sigmoid", "intercept": 0, "slope": 1, "units": 20}}}
    old = Calibration.model_validate_json(json.dumps(before))
    assert isinstance(old.sigmoids["yes"], Sigmoid)


@pytest.mark.parametrize(
    ("n", "rarer", "small"), [(400, 99, True), (400, 100, False), (1000, 20, False), (60, 6, True)]
)
def test_val_is_small_where_a_label_has_few_units_of_few(n: int, rarer: int, small: bool) -> None:
    y = (np.arange(n) < rarer).astype(np.int64)
    groups = np.arange(n).astype(str)
    assert is_small(Truth(y, groups, CLASSES, "binary")) == small
    assert is_small(Truth(1 - y, groups, CLASSES, "binary")) == small
    several = np.stack([y, np.arange(n) % 2, np.full(n, -1)], axis=1).astype(np.int8)
    assert is_small(Truth(several, groups, ("a", "b", "c"), "multilabel")) == (n < 1000)
    assert not is_small(Truth(y.astype(float), groups, ("age",), "regression"))
