"""Scores of predictions, with 95 % intervals and p values, and those of two models compared.

Dims: n units, c classes, s scored columns.
"""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.tasks import CLASS_KINDS
from pipeline.evaluation.metrics.bootstrap import (
    OF_ONE_SIDE,
    Correction,
    IntervalRules,
    Key,
    Statistic,
    Values,
    bootstrap,
    fold_widening,
    patients_on_rarer_side,
    reach_of,
    score_bounds,
)
from pipeline.evaluation.metrics.null import permuted_aurocs
from pipeline.evaluation.metrics.paired import delong, holm, two_sided_p
from pipeline.evaluation.metrics.values import (
    RANKING,
    ScoredColumn,
    all_metrics,
    columns_of,
    mean_of_models,
    metrics_over_folds,
)
from pipeline.evaluation.metrics.weighted import BINS, auroc, bins_of, confidence, mean
from pipeline.results import Bin, Difference, Metric

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]

# What chance adds to metrics where bins hold few units, or few units are positive.
CORRECTIONS: dict[str, Correction] = {
    "ece": "inflation",
    "average_precision": "bias",
    "average_precision_micro": "bias",
}
# The metrics that are shares of patients, or means of such, and the lowest value of each.
SHARES: dict[str, float] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "f1_micro", "brier"), 0.0),
    **dict.fromkeys(RANKING, 0.0),
    **dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), 0.0),
    **dict.fromkeys(("auroc_micro", "average_precision_micro"), 0.0),
    **dict.fromkeys(("c_harrell", "c_uno"), 0.0),
    **dict.fromkeys(("mcc", "quadratic_kappa"), -1.0),
}
# The metrics that lie between two ends, and the lower one; the upper one is 1.
BOUNDED = SHARES | {"ece": 0.0, "correlation": -1.0}
# What an error, and what is explained, cannot lie beyond.
ENDS: dict[str, tuple[float, float]] = {
    "mae": (0.0, np.inf),
    "rmse": (0.0, np.inf),
    "r2": (-np.inf, 1.0),
    "correlation": (-1.0, 1.0),
}
# Permuted labels count towards p where they do as well as the true ones, but for rounding.
ROUNDING = 1e-12
CHANCE = 0.5


# --- scores --------------------------------------------------------------------------------


def score(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None = None,
    permutations: int = 0,
    thresholds: Floats | None = None,
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all, and by class or label, each with its 95 % interval.

    proba (n, c): of the units of `truth`; thresholds (n, c): their operating points, as
    `all_metrics` has them; fold (n,): the model that scored each, where there are several: see
    `metrics_over_folds`; where they scored the same patients, a metric is its mean over them. The
    interval is of percentiles over 2,000 seeded draws of patients with replacement: the 2.5th to
    97.5th for very many patients, wider ones for few (`lowest_percentile`), on the rarer side of a
    label where a metric has sides; one patient has none. Of several folds it is wider still
    (`fold_widening`), and none has a width of 0, of a perfect score either (see `bootstrap`). A
    draw without both sides of a label counts for the others only. ece is above the truth where bins
    hold few units, and average precision where few units are positive; their intervals are
    corrected for that, and may lie below them. What would not keep its word has no interval
    (`_fewest`). With permutations, each AUROC has its p. A metric that the units leave undefined (a
    label of one value) is not there.
    """
    folds = _parts_that_test(truth, fold)
    metrics = bootstrap(
        _statistic(truth, proba, fold, thresholds),
        truth.groups,
        proba.shape[1],
        IntervalRules(
            corrections=CORRECTIONS,
            rarest=patients_on_rarer_side(truth),
            folds=folds,
            shares=SHARES,
            bounded=BOUNDED,
            ends=ENDS,
            fewest=_fewest(folds),
        ),
    )
    p = _permutation_p(truth, proba, fold, permutations) if permutations else {}
    overall: dict[str, Metric] = {}
    by_label: dict[str, dict[str, Metric]] = {}
    for (name, label), metric in metrics.items():
        # Metrics are frozen, as answers on file are made of them.
        if name == "auroc" and label in p:
            metric = metric.model_copy(update={"p": p[label]})
        into = by_label.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, by_label


def _fewest(folds: int) -> dict[str, float]:
    """Return of how many patients metrics have intervals; of fewer these would not keep their word.

    For ece there must be as many as bins. Folds that lack a side rank nothing, and those with one
    or two patients of it lift all but the AUROC by more than can be corrected: on the rarer side
    there must be two a fold, and four patients a fold where all labels are ranked together.
    """
    if folds == 1:
        return {"ece": BINS}
    return {
        "ece": BINS,
        **dict.fromkeys(RANKING, 2 * folds),
        **dict.fromkeys(("auroc", "c_harrell", "c_uno"), folds),
        "average_precision_micro": 4 * folds,
    }


def _parts_that_test(truth: Truth, fold: Numbers | None) -> int:
    """Return how many folds test patients of their own; 1 where draws of one train test the same.

    Models of several draws of few patients are folds here as well, of one and the same test set.
    """
    if fold is None:
        return 1
    pairs = np.unique(np.stack([truth.patient, fold]), axis=1)
    is_of_one_fold = pairs.shape[1] == len(np.unique(truth.patient))
    return len(np.unique(fold)) if is_of_one_fold else 1


def _statistic(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None,
    thresholds: Floats | None = None,
) -> Statistic:
    """Return what computes every metric of one model, or of several, under weights (n, b)."""
    if fold is None:
        return lambda weights: all_metrics(truth, proba, weights, thresholds)
    if _parts_that_test(truth, fold) > 1:
        return lambda weights: metrics_over_folds(truth, proba, fold, weights, thresholds)
    each = [fold == i for i in np.unique(fold)]

    def mean_of_draws(weights: Floats) -> Values:
        of_draws = []
        for on in each:
            points = None if thresholds is None else thresholds[on]
            of_draws.append(all_metrics(truth.at(on), proba[on], weights[on], points))
        return mean_of_models(of_draws)

    return mean_of_draws


def _permutation_p(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None,
    number: int,
) -> dict[str, float]:
    """Return for each label, and "" for their mean, the p of its AUROC among permuted ones."""
    if truth.kind not in CLASS_KINDS:
        return {}
    fold = np.zeros(len(proba), np.int64) if fold is None else fold
    patient = truth.patient
    aurocs: dict[str, Floats] = {}
    for column in columns_of(truth, proba):
        of_label = _permuted_and_true(column, patient, fold, number)
        if of_label is not None:
            aurocs[column.name] = of_label
    if not aurocs:
        return {}
    # Draw i permutes the patients of all labels alike, so that draws average one by one.
    aurocs[""] = np.mean(list(aurocs.values()), axis=0)
    # Labels are permuted after the fit, so that the draws do not show how models of folds that
    # share their patients vary together: they are spread by as much as intervals are.
    wider = fold_widening("auroc", _parts_that_test(truth, fold))
    return {label: _share_as_great(values, wider) for label, values in aurocs.items()}


def _permuted_and_true(
    column: ScoredColumn,
    patient: Numbers,
    fold: Numbers,
    number: int,
) -> Floats | None:
    """Return (number + 1,) AUROCs of a label, the mean over folds; the last is the true one.

    None where no fold has both sides.
    """
    of_folds = []
    for i in np.unique(fold):
        on = column.known & (fold == i)
        positive = column.positive[on]
        values = column.proba[on]
        # A fold of one side has no AUROC, and stays out of the mean.
        if positive.any() and not positive.all():
            permuted = permuted_aurocs(positive, values, patient[on], number)
            of_folds.append(np.append(permuted, auroc(positive, values)))
    return np.mean(of_folds, axis=0) if of_folds else None


def _share_as_great(aurocs: Floats, wider: float) -> float:
    """Return the share of AUROCs that are at least the last one, itself included.

    wider: how much further from chance the permuted ones lie than they do.
    """
    permuted = CHANCE + wider * (aurocs[:-1] - CHANCE)
    as_great = (permuted >= aurocs[-1] - ROUNDING).sum() + 1
    return float(as_great / len(aurocs))


def macro_auroc(truth: Truth, proba: Floats) -> float:
    """Return the mean AUROC over the classes that have both sides; NaN if none has."""
    aurocs = []
    for column in columns_of(truth, proba):
        on = column.known
        aurocs.append(auroc(column.positive[on], column.proba[on]))
    if not aurocs:
        return float("nan")
    return float(mean(np.array(aurocs)[:, None])[0])


def auroc_by_delong(column: ScoredColumn, patient: Numbers) -> Metric | None:
    """Return the AUROC of a class or label with an interval by DeLong's variance; patient (n,).

    Of so many standard errors as the patients of the rarer side allow (`reach_of`); where nothing
    varies, as of equal scores or perfect ones, the score interval. None where a side is empty.
    """
    known = column.known
    positive = column.positive[known]
    if not positive.any() or positive.all():
        return None
    whose = patient[known]
    rarer = min(len(np.unique(whose[positive])), len(np.unique(whose[~positive])))
    aurocs, covariance = delong(positive, column.proba[known][None], whose)
    value = float(aurocs[0])
    variance = float(covariance[0, 0])
    # Of one patient the variance is not known.
    if rarer < 2 or not variance > 0:
        low, high = score_bounds(value, rarer)
    else:
        reach = reach_of(rarer) * math.sqrt(variance)
        low = value - reach
        high = value + reach
    return Metric(value=value, low=max(0.0, low), high=min(1.0, high))


# --- reliability ---------------------------------------------------------------------------


def reliability(truth: Truth, proba: Floats) -> dict[str, tuple[Bin, ...]]:
    """Return the reliability curve of each label, or of the classes together under ""."""
    if truth.kind != "multilabel":
        # Of two classes the positive; of several the likeliest, since one curve must do.
        sure, right = confidence(truth.indicator, proba, proba.argmax(axis=1))
        return {"": _reliability_curve(sure, right)}
    curves = {}
    for column in columns_of(truth, proba):
        on = column.known
        curves[column.name] = _reliability_curve(column.proba[on], column.positive[on])
    return curves


def _reliability_curve(sure: Floats, right: Bools) -> tuple[Bin, ...]:
    """Return the bins that hold units; sure (n,): probabilities, right (n,): what came true."""
    bins = bins_of(sure)
    curve = []
    for i in np.unique(bins):
        on = bins == i
        curve.append(
            Bin(
                predicted=sure[on].mean(),
                observed=right[on].mean(),
                units=int(on.sum()),
            )
        )
    return tuple(curve)


# --- two models ----------------------------------------------------------------------------


def compare(
    truth: Truth,
    first: Floats,
    second: Floats,
    fold: Numbers | None = None,
    thresholds: tuple[Floats | None, Floats | None] = (None, None),
) -> list[Difference]:
    """Return what `second` scores above `first` (n, c) on the same units, metric by metric.

    thresholds: the operating points (n, c) of each. p, by DeLong's test, is of an AUROC of one
    model: not of a mean over folds.
    """
    of_first = _statistic(truth, first, fold, thresholds[0])
    of_second = _statistic(truth, second, fold, thresholds[1])

    # Both under the same draws of patients: what both find hard cancels out.
    def difference(weights: Floats) -> Values:
        less = of_first(weights)
        more = of_second(weights)
        return {key: more[key] - less[key] for key in more if key in less}

    rarest = patients_on_rarer_side(truth)
    folds = _parts_that_test(truth, fold)
    differences = bootstrap(
        difference,
        truth.groups,
        first.shape[1],
        IntervalRules(
            rarest=rarest,
            folds=folds,
            bounded=BOUNDED,
            of_difference=True,
            fewest=_fewest_to_compare(folds),
        ),
    )
    p = _delong_p(truth, first, second, differences) if fold is None else {}
    # As many labels as are tested, so many chances to be wrong.
    p_holm = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        Difference(
            metric=name,
            label=label,
            difference=metric,
            p=p.get((name, label)),
            p_holm=p_holm.get((name, label)),
        )
        for (name, label), metric in differences.items()
    ]


def _fewest_to_compare(folds: int) -> dict[str, float]:
    """Return of how many patients differences have intervals, as `_fewest` does of scores.

    What bins and few positives add to either score, the difference is rid of. Two models that call
    few patients, and nearly the same ones, differ by more than draws of these show; over folds the
    intervals are wide enough for that.
    """
    if folds > 1:
        return dict.fromkeys(RANKING, folds)
    return {**dict.fromkeys(OF_ONE_SIDE, 10), "mcc": 15}


def _delong_p(
    truth: Truth,
    first: Floats,
    second: Floats,
    defined: Container[Key],
) -> dict[Key, float]:
    """Return DeLong's p of each AUROC of two sides, where it has one."""
    if truth.kind not in CLASS_KINDS:
        return {}
    patient = truth.patient
    of_first = {column.name: column for column in columns_of(truth, first)}
    p: dict[Key, float] = {}
    for column in columns_of(truth, second):
        key = ("auroc", "" if truth.kind == "binary" else column.name)
        if key in defined:
            of_label = _delong_p_of(of_first[column.name], column, patient)
            if of_label is not None:
                p[key] = of_label
    return p


def _delong_p_of(
    first: ScoredColumn,
    second: ScoredColumn,
    patient: Numbers,
) -> float | None:
    """Return DeLong's p of one class or label; None where its variance is not known."""
    known = first.known
    aurocs, covariance = delong(
        first.positive[known],
        np.stack([first.proba[known], second.proba[known]]),
        patient[known],
    )
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return two_sided_p(float(aurocs[1] - aurocs[0]), float(variance))
