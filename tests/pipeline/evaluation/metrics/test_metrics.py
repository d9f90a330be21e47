from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics import bootstrap, metrics, null, paired, weighted
from pipeline.evaluation.metrics.values import one_sided
from pipeline.results import Metric


def truth_of(y: NDArray[Any], groups: NDArray[Any] | None = None, c: int = 2) -> Truth:
    """Return the truth of classes y (n,), of labels y (n, c), or of two classes y (n,) bool."""
    groups = np.arange(len(y)) if groups is None else groups
    if y.ndim == 2:
        labels = tuple("abcdefgh"[: y.shape[1]])
        return Truth(y.astype(np.int8), groups.astype(str), labels, "multilabel")
    classes = tuple(map(str, range(c)))
    kind = "binary" if c == 2 else "multiclass"
    return Truth(y.astype(np.int64), groups.astype(str), classes, kind)


def two(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as the probability of the second of two classes."""
    return np.stack([1 - values, values], axis=1)


def interval(metric: Metric) -> tuple[float, float]:
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.high


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw patients anew less often, for what is said of many intervals."""
    monkeypatch.setattr(bootstrap, "DRAWS", 500)


def softmax(z: NDArray[Any]) -> NDArray[np.float64]:
    odds = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("decimals", [1, 9])
def test_ranking_is_scikit_learns_with_ties_and_weights(by_weight: bool, decimals: int) -> None:
    rng = np.random.default_rng(1)
    y = rng.random(300) < 0.3
    values = np.round(rng.random(300) + np.where(y, 0.3, 0.0), decimals)
    weights = rng.integers(0, 4, (300, 5)).astype(float) if by_weight else np.ones((300, 1))
    auroc, precision, sensitivity = weighted.rank_metrics(y, values, weights)
    for i, w in enumerate(weights.T):
        assert auroc[i] == pytest.approx(roc_auc_score(y, values, sample_weight=w))
        assert precision[i] == pytest.approx(average_precision_score(y, values, sample_weight=w))
        fpr, tpr, _ = roc_curve(y, values, sample_weight=w, drop_intermediate=False)
        assert sensitivity[i] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())


def test_multiclass_is_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 200)
    proba = softmax(rng.standard_normal((200, 4)) + np.eye(4)[y])
    overall, by_class = metrics.score(truth_of(y, c=4), proba)
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
    each = f1_score(y, said, average=None)
    assert [by_class[name]["f1"].value for name in "0123"] == pytest.approx(each.tolist())


def test_f1_of_two_classes_is_the_positives_and_a_label_has_what_a_task_of_two_has() -> None:
    rng = np.random.default_rng(18)
    y = (rng.random((200, 2)) < [0.1, 0.4]).astype(np.int8)
    proba = np.clip(rng.random((200, 2)) * 0.7 + 0.3 * y, 0, 1)
    overall, by_label = metrics.score(truth_of(y), proba)
    expected = [f1_score(y[:, j], proba[:, j] > 0.5) for j in (0, 1)]
    assert overall["f1"].value == pytest.approx(np.mean(expected))
    for j, name in enumerate("ab"):
        alone, _ = metrics.score(truth_of(y[:, j] == 1), two(proba[:, j]))
        assert alone["f1"].value == pytest.approx(expected[j])
        assert by_label[name] == alone


def test_multilabel_leaves_out_labels_of_one_value_and_of_no_model() -> None:
    rng = np.random.default_rng(3)
    y = rng.random((100, 4)) < [0.5, 0.3, 0.0, 0.5]
    proba = np.clip(0.3 * y + 0.6 * rng.random((100, 4)), 0, 1)
    proba[:, 3] = np.nan
    overall, by_label = metrics.score(truth_of(y), proba)
    expected = roc_auc_score(y[:, :2], proba[:, :2], average="macro")
    assert overall["auroc"].value == pytest.approx(expected)
    assert set(by_label) == {"a", "b"}
    said = proba >= 0.5
    assert overall["accuracy"].value == pytest.approx((said == y)[:, :3].mean())
    assert one_sided(truth_of(y)) == ["c"]


def test_the_interval_is_a_plain_bootstrap_over_patients() -> None:
    rng = np.random.default_rng(4)
    n, p = 120, 30
    patient = rng.integers(0, p, n)
    y = rng.random(n) < 0.4
    values = rng.random(n) + 0.4 * y
    overall, _ = metrics.score(truth_of(y, patient), two(values))
    drawn = []
    units_of = [np.flatnonzero(patient == i) for i in np.unique(patient)]
    for _ in range(2000):
        take = np.concatenate([units_of[i] for i in rng.integers(0, len(units_of), len(units_of))])
        case, control = values[take][y[take]], values[take][~y[take]]
        above = np.greater.outer(case, control) + 0.5 * np.equal.outer(case, control)
        drawn.append(above.mean())  # scikit-learn's, at a twentieth of its time
    got = interval(overall["auroc"])
    rarer = min(len(np.unique(patient[y == side])) for side in (True, False))
    # The standard error of a mean of n is too small by this, and a normal's tail by Student's
    wider = t.ppf(0.975, rarer - 1) * np.sqrt(rarer / (rarer - 1))
    low, high = np.percentile(drawn, [100 * norm.cdf(-wider), 100 * norm.cdf(wider)])
    assert got == pytest.approx((low, high), abs=0.01)


@pytest.mark.usefixtures("few_draws")
def test_an_interval_of_few_patients_covers_as_one_of_many() -> None:
    rng = np.random.default_rng(21)
    truth = 0.76024994  # of N(1, 1) above N(0, 1): Phi(1 / sqrt 2)
    covered, narrow = 0, 0
    y = np.arange(60) < 6
    for _ in range(150):
        values = rng.standard_normal(60) + y
        overall, _ = metrics.score(truth_of(y), two(values))
        low, high = interval(overall["auroc"])
        covered += low <= truth <= high
        low, high = np.nanpercentile(_aurocs(y, values), [2.5, 97.5])
        narrow += low <= truth <= high
    assert narrow < covered
    assert covered >= 135


def test_one_patient_on_a_side_has_no_interval_of_what_ranks() -> None:
    values = np.linspace(0, 1, 40)
    overall, _ = metrics.score(truth_of(values > 0.99), two(values))
    assert overall["auroc"].value == 1
    assert overall["auroc"].low is None
    assert overall["accuracy"].low is not None


def _aurocs(y: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return the AUROC of 2,000 draws of units with replacement."""
    weights = np.concatenate([*bootstrap.draws(np.arange(len(y)).astype(str), 2000)], axis=1)
    return weighted.rank_metrics(y, values, weights)[0]


def test_repeating_a_patients_images_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(5)
    y = rng.random(60) < 0.5
    values = rng.random(60) + 0.3 * y
    width = []
    for times in (1, 10):
        truth, scores = np.repeat(y, times), np.repeat(values, times)
        overall, _ = metrics.score(truth_of(truth, np.repeat(np.arange(60), times)), two(scores))
        got = interval(overall["auroc"])
        width.append(got[1] - got[0])
    assert width[1] == pytest.approx(width[0], rel=0.02)


@pytest.mark.usefixtures("few_draws")
def test_intervals_cover_a_known_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(6)
    truth = 0.76024994  # of N(1, 1) above N(0, 1): Phi(1 / sqrt 2)
    covered = 0
    for _ in range(100):
        y = np.arange(80) % 2 == 0
        values = rng.standard_normal(80) + y
        overall, _ = metrics.score(truth_of(y), two(values))
        got = interval(overall["auroc"])
        covered += got[0] <= truth <= got[1]
    assert 90 <= covered <= 99


def test_calibration_error_is_guos_sum_over_bins() -> None:
    rng = np.random.default_rng(7)
    sure = rng.random(500)
    y = rng.random(500) < sure**2
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & (sure < low + 1 / 15)
        expected += inside.mean() * abs(y[inside].mean() - sure[inside].mean())
    overall, _ = metrics.score(truth_of(y), two(sure))
    assert overall["ece"].value == pytest.approx(expected)


@pytest.mark.usefixtures("few_draws")
def test_the_interval_of_ece_keeps_the_calibrated_and_leaves_out_the_overconfident() -> None:
    rng = np.random.default_rng(19)
    kept = left_out = 0
    for _ in range(40):
        sure = rng.random(150)
        y = rng.random(150) < sure  # calibrated: the truth is 0, which no plain interval reaches
        overall, _ = metrics.score(truth_of(y), two(sure))
        kept += interval(overall["ece"])[0] == 0
        bold = np.where(sure > 0.5, 0.99, 0.01)  # off by 0.24 on either side
        overall, _ = metrics.score(truth_of(y), two(bold))
        low, high = interval(overall["ece"])
        left_out += 0 < low <= 0.24 <= high
    assert kept >= 36
    assert left_out >= 33


def covariance_as_written(
    positive: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """DeLong, DeLong and Clarke-Pearson (1988), eqs. 4 to 8, pair by pair."""
    psi = [
        [[(x > y) + (x == y) / 2 for y in row[~positive]] for x in row[positive]] for row in values
    ]
    v10, v01 = np.mean(psi, axis=2), np.mean(psi, axis=1)
    m, n = v10.shape[1], v01.shape[1]
    return v10.mean(axis=1), np.cov(v10) / m + np.cov(v01) / n


def test_delong_is_the_paper_pair_by_pair() -> None:
    rng = np.random.default_rng(8)
    y = rng.random(80) < 0.4
    values = np.round(rng.random((2, 80)) + np.where(y, 0.3, 0), 2)
    aurocs, covariance = paired.delong(y, values, np.arange(80))
    expected_aurocs, expected = covariance_as_written(y, values)
    np.testing.assert_allclose(aurocs, expected_aurocs, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_delong_by_patient_is_as_wide_as_the_patients_say() -> None:
    rng = np.random.default_rng(9)
    y = rng.random(60) < 0.5
    values = rng.random((2, 60)) + np.where(y, 0.3, 0)
    _, once = paired.delong(y, values, np.arange(60))
    _, copied = paired.delong(np.repeat(y, 5), np.repeat(values, 5, 1), np.arange(300) // 5)
    _, naive = paired.delong(np.repeat(y, 5), np.repeat(values, 5, 1), np.arange(300))
    np.testing.assert_allclose(copied, once, rtol=1e-9)
    assert naive[0, 0] < once[0, 0] / 3


def test_holm_is_the_worked_example() -> None:
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, and 0.005 * 4 for the smallest of four
    assert paired.holm([0.03, 0.005, 0.02, 0.04]) == pytest.approx([0.06, 0.02, 0.06, 0.06])
    assert paired.two_sided_p(1.959964, 1.0) == pytest.approx(0.05, abs=1e-6)


def test_one_patient_alone_on_a_side_has_no_p() -> None:
    y = np.array([True, False, False, False, False])
    values = np.array([[0.5, 0.4, 0.6, 0.7, 0.8], [0.9, 0.1, 0.2, 0.3, 0.4]])
    aurocs, c = paired.delong(y, values, np.arange(5))
    assert aurocs.tolist() == [0.25, 1.0]
    assert paired.two_sided_p(0.75, c[0, 0] + c[1, 1] - 2 * c[0, 1]) is None
    truth = truth_of(y[:, None], np.arange(5).astype(str))
    found = {d.metric: d for d in metrics.compare(truth, *values[:, :, None])}
    assert (found["auroc"].difference.value, found["auroc"].p) == (0.75, None)


def test_a_better_score_is_told_from_its_equal() -> None:
    rng = np.random.default_rng(10)
    y = rng.random((300, 2)) < 0.4
    groups = (np.arange(300) // 2).astype(str)
    first = np.clip(rng.random((300, 2)) * 0.7 + 0.2 * y, 0, 1)
    second = np.clip(first + 0.3 * y * [1, 0], 0, 1)
    found = {(d.metric, d.label): d for d in metrics.compare(truth_of(y, groups), first, second)}
    better, equal = found["auroc", "a"], found["auroc", "b"]
    assert better.difference.low is not None
    assert better.difference.low > 0
    assert better.p is not None
    assert better.p_holm == pytest.approx(2 * better.p)
    assert (equal.difference.value, equal.p) == (0, 1)
    assert found["auroc", ""].p is None


def test_delongs_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(11)
    low = 0
    for _ in range(200):
        y = np.arange(100) % 2 == 0
        values = rng.standard_normal((2, 100)) + rng.standard_normal(100) + y
        aurocs, c = paired.delong(y, values, np.arange(100))
        p = paired.two_sided_p(aurocs[1] - aurocs[0], c[0, 0] + c[1, 1] - 2 * c[0, 1])
        assert p is not None
        low += p < 0.05
    assert 3 <= low <= 19


def test_a_label_that_is_not_known_leaves_the_unit_out_for_that_label_alone() -> None:
    rng = np.random.default_rng(12)
    y = (rng.random((200, 2)) < 0.4).astype(np.int8)
    proba = np.clip(rng.random((200, 2)) * 0.7 + 0.3 * y, 0, 1)
    hidden = rng.random(200) < 0.3
    masked = y.copy()
    masked[hidden, 1] = -1
    overall, by_label = metrics.score(truth_of(masked), proba)
    _, of_all = metrics.score(truth_of(y), proba)
    _, of_rest = metrics.score(truth_of(y[~hidden]), proba[~hidden])
    assert by_label["a"] == of_all["a"]
    for name in ("auroc", "average_precision"):
        assert by_label["b"][name].value == pytest.approx(of_rest["b"][name].value)
    kept = [np.ones(200, bool), ~hidden]
    each = [((proba[k, j] >= 0.5) == y[k, j]).mean() for j, k in enumerate(kept)]
    assert overall["accuracy"].value == pytest.approx(np.mean(each))
    assert overall["brier"].value == pytest.approx(
        np.mean([((proba[k, j] - y[k, j]) ** 2).mean() for j, k in enumerate(kept)])
    )
    pairs = [(y[k, j], proba[k, j]) for j, k in enumerate(kept)]
    flat = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    assert overall["auroc_micro"].value == pytest.approx(roc_auc_score(*flat))
    assert overall["average_precision_micro"].value == pytest.approx(average_precision_score(*flat))
    assert overall["f1_micro"].value == pytest.approx(f1_score(flat[0], flat[1] >= 0.5))


def test_several_models_are_scored_each_and_averaged() -> None:
    rng = np.random.default_rng(13)
    y, fold = rng.random(120) < 0.4, np.arange(120) % 3
    values = np.clip(rng.random(120) * 0.6 + 0.2 * y + 0.1 * fold, 0, 1)
    overall, _ = metrics.score(truth_of(y), two(values), fold)
    each = [roc_auc_score(y[fold == i], values[fold == i]) for i in range(3)]
    assert overall["auroc"].value == pytest.approx(np.mean(each))
    low, high = interval(overall["auroc"])
    assert low < np.mean(each) < high


def test_of_folds_what_counts_units_is_of_all_together() -> None:
    rng = np.random.default_rng(18)
    y = rng.random(24) < 0.4
    fold = np.arange(24) % 8
    values = np.clip(rng.random(24) * 0.6 + 0.3 * y, 0, 1)
    overall, _ = metrics.score(truth_of(y), two(values), fold)
    assert overall["f1"].value == pytest.approx(f1_score(y, values > 0.5))
    assert overall["mcc"].value == pytest.approx(matthews_corrcoef(y, values > 0.5))
    once, _ = metrics.score(truth_of(y), two(values))
    assert overall["ece"].value == pytest.approx(once["ece"].value)
    thresholds = np.column_stack([np.full(24, np.nan), 0.1 + 0.1 * fold])
    at_points, _ = metrics.score(truth_of(y), two(values), fold, thresholds=thresholds)
    called = values >= 0.1 + 0.1 * fold
    assert at_points["f1"].value == pytest.approx(f1_score(y, called))
    age = rng.standard_normal(24)
    said = age + rng.standard_normal(24)
    of_age = Truth(age, np.arange(24).astype(str), ("age",), "regression")
    numbers, _ = metrics.score(of_age, said[:, None], fold)
    assert numbers["r2"].value == pytest.approx(r2_score(age, said))


def test_a_label_that_one_fold_has_no_model_of_is_scored_in_the_others() -> None:
    rng = np.random.default_rng(19)
    y = rng.random((120, 2)) < 0.4
    fold = np.arange(120) % 3
    proba = np.clip(rng.random((120, 2)) * 0.6 + 0.3 * y, 0, 1)
    proba[fold == 2, 1] = np.nan
    _, by_label = metrics.score(truth_of(y), proba, fold, permutations=99)
    rest = fold != 2
    _, of_rest = metrics.score(truth_of(y[rest]), proba[rest], fold[rest])
    for name, metric in of_rest["b"].items():
        assert by_label["b"][name].value == pytest.approx(metric.value)
    assert by_label["b"]["auroc"].p is not None
    assert metrics.reliability(truth_of(y), proba).keys() == {"a", "b"}


@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("n", [4, 8])
def test_of_few_patients_no_error_is_below_0_and_no_correlation_beyond_1(
    n: int, folds: int
) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        truth = Truth(rng.normal(60, 9, n), np.arange(n).astype(str), ("age",), "regression")
        fold = np.arange(n) % folds if folds > 1 else None
        overall, _ = metrics.score(truth, rng.normal(60, 9, (n, 1)), fold)
        for name, (least, most) in metrics.ENDS.items():
            metric = overall[name]
            if metric.low is not None and metric.high is not None:
                assert least <= metric.low <= metric.high <= most, name


def test_regression_is_scikit_learns() -> None:
    rng = np.random.default_rng(14)
    y = rng.standard_normal(150) * 10 + 50
    said = y + rng.standard_normal(150) * 5
    truth = Truth(y, np.arange(150).astype(str), ("age",), "regression")
    overall, by_label = metrics.score(truth, said[:, None])
    assert overall["r2"].value == pytest.approx(r2_score(y, said))
    assert overall["mae"].value == pytest.approx(mean_absolute_error(y, said))
    assert overall["rmse"].value == pytest.approx(root_mean_squared_error(y, said))
    assert overall["correlation"].value == pytest.approx(np.corrcoef(y, said)[0, 1])
    assert by_label == {}
    low, high = interval(overall["r2"])
    assert 0.6 < low < overall["r2"].value < high < 0.9


def test_the_reliability_curve_is_what_ece_sums() -> None:
    rng = np.random.default_rng(15)
    y, proba = rng.integers(0, 3, 300), softmax(rng.standard_normal((300, 3)))
    labels = (rng.random((300, 2)) < 0.3).astype(np.int8)
    labels[:50, 1] = -1
    sure = rng.random((300, 2))
    for truth, said in (
        (truth_of(y > 0), two(proba[:, 0])),
        (truth_of(y, c=3), proba),
        (truth_of(labels), sure),
    ):
        overall, _ = metrics.score(truth, said)
        gaps = []
        for curve in metrics.reliability(truth, said).values():
            n = sum(each.units for each in curve)
            gaps.append(sum(e.units * abs(e.observed - e.predicted) for e in curve) / n)
        assert overall["ece"].value == pytest.approx(np.mean(gaps))
    curve = metrics.reliability(truth_of(labels), sure)["b"]
    assert sum(each.units for each in curve) == 250


def test_permuted_aurocs_are_those_of_a_loop_and_blocks_stay_whole() -> None:
    rng = np.random.default_rng(16)
    patient = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    y, values = rng.random(40)[patient] < 0.4, np.round(rng.random(len(patient)), 1)
    orders = np.concatenate(list(null._orders(patient, 25)))
    assert len(orders) == 25
    for order in orders:
        assert sorted(order) == list(range(len(patient)))
        for p in range(40):  # a block comes from one patient of as many units
            (source,) = set(patient[order[patient == p]])
            assert (patient == source).sum() == (patient == p).sum()
    found = null.permuted_aurocs(y, values, patient, 25)
    expected = [roc_auc_score(y[order], values) for order in orders]
    np.testing.assert_allclose(found, expected)


def test_the_permutation_p_is_small_for_a_signal_and_uniform_for_noise() -> None:
    rng = np.random.default_rng(17)
    y = rng.random((120, 2)) < 0.4
    proba = np.clip(rng.random((120, 2)) * 0.7 + y * [0.3, 0], 0, 1)
    overall, by_label = metrics.score(truth_of(y), proba, permutations=500)
    assert by_label["a"]["auroc"].p == pytest.approx(1 / 501)
    assert by_label["b"]["auroc"].p is not None
    assert by_label["b"]["auroc"].p > 0.01
    assert overall["auroc"].p == pytest.approx(1 / 501)
    assert overall["average_precision"].p is None
    patient = np.arange(120) // 3
    low = 0
    for _ in range(200):  # whole patients: scores and labels of one patient are alike
        sick, values = (rng.random(40) < 0.5)[patient], rng.random(40)[patient]
        drawn = null.permuted_aurocs(sick, values, patient, 99)
        low += (1 + (drawn >= roc_auc_score(sick, values)).sum()) / 100 <= 0.05
    assert 3 <= low <= 19


# --- intervals of folds and of perfect scores ------------------------------------------------


def test_a_perfect_score_has_an_interval_that_so_many_patients_allow() -> None:
    for patients, lowest in ((20, 0.839), (100, 0.963)):
        y = np.arange(patients) % 2 == 0
        overall, _ = metrics.score(truth_of(y), two(np.where(y, 0.9, 0.1)))
        for name in ("auroc", "accuracy", "f1", "average_precision"):
            assert overall[name].value == 1
            assert interval(overall[name]) == (pytest.approx(lowest, abs=1e-3), 1)
        assert overall["mcc"].low == pytest.approx(2 * lowest - 1, abs=2e-3)
        assert overall["brier"].high > overall["brier"].value + 0.03
        # Of one side alone there are half as many.
        of_side = overall["sensitivity"].low
        assert of_side < lowest
        # A mean of two sides is as uncertain as both: the root of the sum of squares, over two.
        assert overall["balanced_accuracy"].value == 1
        below = pytest.approx(1 - (1 - of_side) / 2**0.5)
        assert interval(overall["balanced_accuracy"]) == (below, 1)


def test_of_few_positives_among_many_a_perfect_score_says_what_so_few_allow() -> None:
    y = np.arange(136) % 20 == 0
    overall, _ = metrics.score(truth_of(y), two(np.where(y, 0.9, 0.1)))
    sensitivity = overall["sensitivity"].low
    assert sensitivity == pytest.approx(0.646, abs=1e-3)
    # With all called right but so many of the positives.
    for name in ("f1", "auroc", "average_precision"):
        assert overall[name].low <= 2 * sensitivity / (1 + sensitivity) + 1e-9
    assert overall["mcc"].low < sensitivity**0.5
    # What counts all alike hangs on all.
    assert overall["accuracy"].low == pytest.approx(0.973, abs=1e-3)


def test_a_model_that_is_sure_of_all_may_be_sure_of_others_and_wrong() -> None:
    y = np.arange(60) % 2 == 0
    sure = 1 - np.random.default_rng(0).uniform(1e-7, 1e-6, 60)
    overall, _ = metrics.score(truth_of(y), two(np.where(y, sure, 1 - sure)))
    assert overall["ece"].value < 1e-6
    assert overall["ece"].high == pytest.approx(0.06, abs=2e-3)


def test_two_that_are_right_of_everybody_may_yet_differ() -> None:
    y = np.arange(30) % 2 == 0
    first, second = (two(np.where(y, high, 1 - high)) for high in (0.9, 0.8))
    differences = {each.metric: each for each in metrics.compare(truth_of(y), first, second)}
    assert interval(differences["auroc"].difference) == (
        pytest.approx(-0.114, abs=1e-2),
        pytest.approx(0.114, abs=1e-2),
    )
    # Two that say the same of these, on others.
    same = {each.metric: each for each in metrics.compare(truth_of(y), first, first)}
    assert same["auroc"].difference.value == 0
    assert interval(same["auroc"].difference) == interval(differences["auroc"].difference)


CONSTANT = {"all": 0.9, "none": 0.1, "half": 0.5}


@pytest.mark.parametrize("said", CONSTANT)
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("folds", [1, 5])
def test_what_all_draws_agree_on_has_an_interval(said: str, kind: Any, folds: int) -> None:
    rng = np.random.default_rng(22)
    n = 60
    groups = np.arange(n).astype(str)
    proba = np.full((n, 3), CONSTANT[said])
    match kind:
        case "binary":
            truth = truth_of(rng.random(n) < 0.4)
            proba = two(proba[:, 0])
        case "multiclass":
            truth = Truth(rng.integers(0, 3, n), groups, ("0", "1", "2"), kind)
            proba /= 3 * CONSTANT[said]
        case _:
            truth = Truth((rng.random((n, 3)) < 0.4).astype(np.int8), groups, ("a", "b", "c"), kind)
    fold = None if folds == 1 else np.arange(n) % folds
    overall, by_label = metrics.score(truth, proba, fold)
    for scores in (overall, *by_label.values()):
        for name, metric in scores.items():
            if metric.low is not None:
                assert metric.low <= metric.value <= metric.high or name == "ece"
                assert metric.high - metric.low > 0.01
    chance = overall["balanced_accuracy"]
    assert chance.value == pytest.approx(1 / 3 if kind == "multiclass" else 0.5)
    assert 0.05 < chance.high - chance.low < 0.5
    auroc = overall["auroc"]
    assert auroc.value == 0.5
    assert 0.2 < auroc.high - auroc.low < 0.5
    if kind == "multiclass":
        assert overall["quadratic_kappa"].value == pytest.approx(0)
        assert overall["quadratic_kappa"].low < -0.1


def test_a_balanced_accuracy_joins_what_is_known_of_both_sides() -> None:
    y = np.arange(40) < 20
    overall, _ = metrics.score(truth_of(y), two(np.full(40, 0.9)))
    # Twenty of twenty, and none of twenty: the square-and-add interval of their mean.
    assert interval(overall["sensitivity"]) == (pytest.approx(0.839, abs=1e-3), 1)
    assert interval(overall["specificity"]) == (0, pytest.approx(0.161, abs=1e-3))
    half = 0.161 / 2
    expected = (pytest.approx(0.5 - half, abs=1e-3), pytest.approx(0.5 + half, abs=1e-3))
    assert interval(overall["balanced_accuracy"]) == expected


def test_a_number_that_is_always_right_has_no_interval() -> None:
    y = np.random.default_rng(23).standard_normal(30)
    truth = Truth(y, np.arange(30).astype(str), ("age",), "regression")
    overall, _ = metrics.score(truth, y[:, None])
    assert overall["mae"].value == 0
    assert overall["mae"].low is None
    assert overall["r2"].low is None
    assert overall["rmse"].low is None
    assert overall["correlation"].value == pytest.approx(1)


def test_what_is_the_same_for_all_correlates_with_nothing() -> None:
    y = np.random.default_rng(24).standard_normal(30)
    truth = Truth(y, np.arange(30).astype(str), ("age",), "regression")
    assert "correlation" not in metrics.score(truth, np.full((30, 1), 0.1))[0]


def test_units_of_one_class_have_no_balanced_accuracy() -> None:
    overall, _ = metrics.score(truth_of(np.ones(10, bool)), two(np.full(10, 0.9)))
    assert "balanced_accuracy" not in overall
    assert overall["sensitivity"].value == 1


def test_an_interval_of_folds_is_wider_and_that_of_draws_of_one_test_is_not() -> None:
    rng = np.random.default_rng(8)
    y = rng.random(200) < 0.4
    values = np.clip(0.3 * rng.random(200) + 0.2 * y + 0.3, 0, 1)
    fold = np.arange(200) % 5
    plain = bootstrap.bootstrap(
        metrics._statistic(truth_of(y), two(values), fold),
        truth_of(y).groups,
        2,
        bootstrap.IntervalRules(rarest=bootstrap.patients_on_rarer_side(truth_of(y))),
    )["auroc", ""]
    overall, _ = metrics.score(truth_of(y), two(values), fold)
    narrow, wide = interval(plain), interval(overall["auroc"])
    assert wide[1] - wide[0] == pytest.approx(1.8**0.5 * (narrow[1] - narrow[0]), rel=0.01)
    # Ten models that test the same patients are no folds.
    truth = truth_of(np.tile(y, 2), np.tile(np.arange(200), 2))
    twice, _ = metrics.score(truth, two(np.tile(values, 2)), np.repeat([0, 1], 200))
    once, _ = metrics.score(truth_of(y), two(values))
    assert interval(twice["auroc"]) == pytest.approx(interval(once["auroc"]), abs=0.005)


def test_of_folds_what_moves_by_whom_a_model_calls_is_wider_by_more() -> None:
    assert bootstrap.fold_widening("auroc", 5) == pytest.approx(1.8**0.5)
    assert bootstrap.fold_widening("f1", 5) == pytest.approx(1.5)
    for name in ("auroc", "f1"):
        assert bootstrap.fold_widening(name, 1) == 1


def test_what_would_not_keep_its_word_has_no_interval() -> None:
    rng = np.random.default_rng(20)
    # Four of ten patients are positive, on five folds.
    for patients, ranks, bins in ((10, False, False), (14, True, False), (40, True, True)):
        y = np.arange(patients) % 10 < 4
        values = np.clip(rng.random(patients) * 0.6 + 0.3 * y, 0, 1)
        overall, _ = metrics.score(truth_of(y), two(values), np.arange(patients) % 5)
        assert (overall["auroc"].low is not None) == ranks
        for name in ("average_precision", "sensitivity_at_specificity_0.9"):
            assert (overall[name].low is not None) == (patients == 40)
        assert (overall["ece"].low is not None) == bins
        assert overall["accuracy"].low is not None
        # Of one model the patients of both sides are ranked together.
        of_one, _ = metrics.score(truth_of(y), two(values))
        for name in ("auroc", "average_precision", "sensitivity_at_specificity_0.9"):
            assert of_one[name].low is not None
        assert (of_one["ece"].low is not None) == bins


def test_differences_of_what_few_are_called_have_no_interval() -> None:
    rng = np.random.default_rng(21)
    for patients, has in ((20, False), (60, True)):
        y = np.arange(patients) % 5 < 2
        first, second = (two(np.clip(rng.random(patients) * 0.6 + 0.3 * y, 0, 1)) for _ in "ab")
        of_one = {each.metric: each for each in metrics.compare(truth_of(y), first, second)}
        folds = np.arange(patients) % 5
        of_folds = {
            each.metric: each for each in metrics.compare(truth_of(y), first, second, folds)
        }
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            assert (of_one[name].difference.low is not None) == has
            assert of_folds[name].difference.low is not None
        assert of_one["auroc"].difference.low is not None


def test_an_f1_of_nought_reaches_as_high_as_so_few_positives_allow() -> None:
    y = np.arange(10) < 4
    overall, _ = metrics.score(truth_of(y), two(np.where(y, 0.1, 0.3)))
    assert overall["f1"].value == 0
    assert interval(overall["f1"]) == (0, pytest.approx(bootstrap.score_bounds(0, 4)[1]))


@pytest.mark.parametrize(("scale", "value"), [("logit", 0.95), ("log", 3.0), ("plain", -0.1)])
def test_an_interval_on_a_scale_is_symmetric_there(scale: Any, value: float) -> None:
    to = {"logit": lambda p: np.log(p / (1 - p)), "log": np.log, "plain": lambda x: x}[scale]
    low, high = interval(bootstrap.interval_on(scale, value, 0.02, 2.0))
    assert to(high) - to(value) == pytest.approx(to(value) - to(low))
    assert low < value < high
    assert high < 1 or scale != "logit"
