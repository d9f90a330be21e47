from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    roc_auc_score,
    roc_curve,
)

from pipeline import _weighted, metrics


def softmax(z: NDArray[Any]) -> NDArray[np.float64]:
    odds = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("decimals", [1, 9])
def test_ranking_is_scikit_learns_with_ties_and_weights(weighted: bool, decimals: int) -> None:
    rng = np.random.default_rng(1)
    y = rng.random(300) < 0.3
    values = np.round(rng.random(300) + 0.3 * y, decimals)
    weights = rng.integers(0, 4, (300, 5)).astype(float) if weighted else np.ones((300, 1))
    auroc, precision, sensitivity = _weighted.ranking(y, values, weights)
    for i, w in enumerate(weights.T):
        assert auroc[i] == pytest.approx(roc_auc_score(y, values, sample_weight=w))
        assert precision[i] == pytest.approx(average_precision_score(y, values, sample_weight=w))
        fpr, tpr, _ = roc_curve(y, values, sample_weight=w, drop_intermediate=False)
        assert sensitivity[i] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())


def test_multiclass_is_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 200)
    proba = softmax(rng.standard_normal((200, 4)) + np.eye(4)[y])
    overall, by_class = metrics.score(
        np.eye(4, dtype=bool)[y], proba, np.arange(200).astype(str), tuple("0123"), "multiclass"
    )
    said = proba.argmax(axis=1)
    assert overall["accuracy"].value == pytest.approx(accuracy_score(y, said))
    assert overall["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(y, said))
    assert overall["auroc"].value == pytest.approx(
        roc_auc_score(y, proba, multi_class="ovr", average="macro")
    )
    assert overall["f1"].value == pytest.approx(f1_score(y, said, average="macro"))
    assert overall["mcc"].value == pytest.approx(matthews_corrcoef(y, said))
    kappa = cohen_kappa_score(y, said, weights="quadratic")
    assert overall["quadratic_kappa"].value == pytest.approx(kappa)
    brier = brier_score_loss(y, proba, scale_by_half=True)
    assert overall["brier"].value == pytest.approx(brier)
    assert by_class["2"]["auroc"].value == pytest.approx(roc_auc_score(y == 2, proba[:, 2]))


def test_multilabel_leaves_out_labels_of_one_value_and_of_no_model() -> None:
    rng = np.random.default_rng(3)
    y = rng.random((100, 4)) < [0.5, 0.3, 0.0, 0.5]
    proba = np.clip(0.3 * y + 0.6 * rng.random((100, 4)), 0, 1)
    proba[:, 3] = np.nan
    overall, by_label = metrics.score(
        y, proba, np.arange(100).astype(str), tuple("abcd"), "multilabel"
    )
    expected = roc_auc_score(y[:, :2], proba[:, :2], average="macro")
    assert overall["auroc"].value == pytest.approx(expected)
    assert set(by_label) == {"a", "b"}
    said = proba >= 0.5
    assert overall["accuracy"].value == pytest.approx((said == y)[:, :3].mean())
    assert metrics.one_sided(y, tuple("abcd")) == ["c"]


def test_the_interval_is_a_plain_bootstrap_over_patients() -> None:
    rng = np.random.default_rng(4)
    n, p = 120, 30
    patient = rng.integers(0, p, n)
    y = rng.random(n) < 0.4
    values = rng.random(n) + 0.4 * y
    overall, _ = metrics.score(
        np.stack([~y, y], axis=1), np.stack([1 - values, values], axis=1),
        patient.astype(str), ("no", "yes"), "binary",
    )  # fmt: skip
    drawn = []
    units_of = [np.flatnonzero(patient == i) for i in np.unique(patient)]
    for _ in range(2000):
        take = np.concatenate([units_of[i] for i in rng.integers(0, len(units_of), len(units_of))])
        drawn.append(roc_auc_score(y[take], values[take]))
    auroc = overall["auroc"]
    assert auroc.low is not None
    assert auroc.high is not None
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert auroc.low == pytest.approx(low, abs=0.01)
    assert auroc.high == pytest.approx(high, abs=0.01)


def test_repeating_a_patients_images_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(5)
    y = rng.random(60) < 0.5
    values = rng.random(60) + 0.3 * y
    width = []
    for times in (1, 10):
        truth, scores = np.repeat(y, times), np.repeat(values, times)
        overall, _ = metrics.score(
            np.stack([~truth, truth], axis=1), np.stack([1 - scores, scores], axis=1),
            np.repeat(np.arange(60), times).astype(str), ("no", "yes"), "binary",
        )  # fmt: skip
        auroc = overall["auroc"]
        assert auroc.low is not None
        assert auroc.high is not None
        width.append(auroc.high - auroc.low)
    assert width[1] == pytest.approx(width[0], rel=0.02)


def test_intervals_cover_a_known_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(6)
    truth = 0.76024994  # of N(1, 1) above N(0, 1): Phi(1 / sqrt 2)
    covered = 0
    for _ in range(100):
        y = np.arange(80) % 2 == 0
        values = rng.standard_normal(80) + y
        overall, _ = metrics.score(
            np.stack([~y, y], axis=1), np.stack([-values, values], axis=1),
            np.arange(80).astype(str), ("no", "yes"), "binary",
        )  # fmt: skip
        auroc = overall["auroc"]
        assert auroc.low is not None
        assert auroc.high is not None
        covered += auroc.low <= truth <= auroc.high
    assert 90 <= covered <= 99


def test_calibration_error_is_guos_sum_over_bins() -> None:
    rng = np.random.default_rng(7)
    sure = rng.random(500)
    y = rng.random(500) < sure**2
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & (sure < low + 1 / 15)
        expected += inside.mean() * abs(y[inside].mean() - sure[inside].mean())
    overall, _ = metrics.score(
        np.stack([~y, y], axis=1), np.stack([1 - sure, sure], axis=1),
        np.arange(500).astype(str), ("no", "yes"), "binary",
    )  # fmt: skip
    assert overall["ece"].value == pytest.approx(expected)
