"""Concordance and Kaplan-Meier, against lifelines, scikit-survival's numbers, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.metrics import score
from pipeline.evaluation.metrics.survival import concordances, kaplan_meier


def watched(n: int, seed: int = 0) -> tuple[Truth, NDArray[np.float64]]:
    """Return n units, a patient each, with times that are tied, and risks that say something."""
    rng = np.random.default_rng(seed)
    happens, censored = rng.exponential(10, n), rng.exponential(12, n)
    time, event = np.ceil(np.minimum(happens, censored)), happens <= censored
    event[time == time.max()] = False
    risk = np.round(-happens / 5 + rng.normal(size=n) * 2, 1)
    y = np.stack([time, event], axis=1).astype(float)
    return Truth(y, np.arange(n).astype(np.str_), ("died",), "survival"), risk


def once(truth: Truth) -> NDArray[np.float64]:
    return np.ones((len(truth.y), 1))


# Of `watched(n)`: concordance_index_ipcw(y, y, risk)[0] of scikit-survival 0.28.0.
@pytest.mark.parametrize(("n", "uno"), [(60, 0.7545760283224915), (400, 0.744157588006045)])
def test_the_values_are_those_of_the_libraries(n: int, uno: float) -> None:
    truth, risk = watched(n)
    time, event = truth.y.T
    values = concordances(truth, risk, once(truth))
    assert values["c_harrell"][0] == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)
    assert values["c_uno"][0] == pytest.approx(uno, abs=1e-12)


def test_a_weight_is_a_patient_so_many_times() -> None:
    truth, risk = watched(80)
    times = np.random.default_rng(1).integers(0, 4, 80)
    often = np.repeat(np.arange(80), times)
    weighted = concordances(truth, risk, times[:, None].astype(float))
    repeated = concordances(truth.at(often), risk[often], once(truth.at(often)))
    for name, value in repeated.items():
        assert weighted[name][0] == pytest.approx(value[0], abs=1e-12)


def test_what_has_no_pair_has_no_concordance() -> None:
    y = np.array([[1.0, 0], [2, 0], [3, 1]])  # the one with the event was watched for longest
    truth = Truth(y, np.array(["a", "b", "c"]), ("died",), "survival")
    assert all(
        np.isnan(v).all() for v in concordances(truth, np.zeros(3), np.ones((3, 1))).values()
    )
    metrics, labels = score(truth, np.zeros((3, 1)))
    assert (metrics, labels) == ({}, {})


def test_kaplan_and_meiers_estimate() -> None:
    truth, _ = watched(70)
    time, event = truth.y.T
    times, left = kaplan_meier(time, event == 1, once(truth))
    fitted = KaplanMeierFitter().fit(time, event)
    np.testing.assert_allclose(left[:, 0], fitted.predict(times), atol=1e-12)


def test_the_interval_is_of_patients_and_reaches_chance_for_no_signal() -> None:
    truth, risk = watched(120)
    metrics, _ = score(truth, risk[:, None])
    for name in ("c_harrell", "c_uno"):
        metric = metrics[name]
        assert metric.low is not None
        assert metric.high is not None
        assert 0.5 < metric.low < metric.value < metric.high < 1
    nothing, _ = score(truth, np.random.default_rng(2).normal(size=(120, 1)))
    low = nothing["c_harrell"].low
    assert low is not None
    assert low < 0.5
    # Each unit twice under its patient: no more is known, and the interval is as wide.
    twice = np.tile(np.arange(120), 2)
    doubled, _ = score(truth.at(twice), np.tile(risk, 2)[:, None])
    assert doubled["c_harrell"].low == pytest.approx(metrics["c_harrell"].low, abs=0.02)
