"""Formulas of `pipeline.evaluation.metrics.values`, each under b columns of weights at once.

Weights (n, b) are how often each unit counts: ones for the value itself, a bootstrap's draws for
its interval. Every function returns (b,) values, NaN where its denominator is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]
BINS = 15
SPECIFICITY = 0.9
# A false positive rate that rounding alone lifts above its limit is still within it.
ROUNDING = 1e-9


def ratio(
    top: Floats,
    bottom: Floats,
    empty: float = np.nan,
) -> Floats:
    """Return top / bottom, or `empty` where bottom is 0."""
    out: Floats = np.full(top.shape, empty)
    return np.divide(top, bottom, out=out, where=bottom > 0)


def mean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=0)
    count = defined.sum(axis=0).astype(float)
    return ratio(total, count)


# --- ranks ---------------------------------------------------------------------------------


class RankMetrics(NamedTuple):
    """What depends on the order of units alone, each (b,).

    auroc: the area under the ROC curve, that is the share of (positive, negative) pairs in order,
    ties half (Mann-Whitney U), each pair weighted by the product of its weights.
    average_precision: the mean over positives of the precision at their value. sensitivity: the
    greatest of any threshold with a specificity of at least SPECIFICITY.
    """

    auroc: Floats
    average_precision: Floats
    sensitivity: Floats


def rank_metrics(
    positive: Bools,
    values: Floats,
    weights: Floats,
) -> RankMetrics:
    """Return the metrics of ranking n units by `values`, of which some are positive."""
    thresholds = _Thresholds.of(positive, values, weights)
    return RankMetrics(
        thresholds.auroc(),
        thresholds.average_precision(),
        thresholds.sensitivity(),
    )


def auroc(positive: Bools, values: Floats) -> float:
    """Return the plain area under the ROC curve of n values; NaN where one side is empty."""
    once = np.ones((len(values), 1))
    return float(_Thresholds.of(positive, values, once).auroc()[0])


@dataclass(frozen=True)
class _Thresholds:
    """The weights on either side of m thresholds, one at the value of each positive unit.

    weight (m, b): of the positive itself. true, false (m, b): of the positives and negatives at or
    above its value; false_above (m, b): of the negatives above it alone, without ties.
    positives, negatives (b,): of all.
    """

    weight: Floats
    true: Floats
    false: Floats
    false_above: Floats
    positives: Floats
    negatives: Floats

    @classmethod
    def of(
        cls,
        positive: Bools,
        values: Floats,
        weights: Floats,
    ) -> _Thresholds:
        """Count by running sums over the units in falling order of their values."""
        order = np.argsort(-values, kind="stable")
        # Negated, so that they ascend, as a search among them needs.
        ordered = -values[order]
        at = np.flatnonzero(positive[order])
        # Units of equal values fall on one side of a threshold together: from `first` to `end`.
        first = np.searchsorted(ordered, ordered[at], "left")
        end = np.searchsorted(ordered, ordered[at], "right")
        of_all = _running_sum(weights[order])
        weight = weights[order[at]]
        of_positives = _running_sum(weight)
        true = of_positives[np.searchsorted(at, end)]
        true_above = of_positives[np.searchsorted(at, first)]
        return cls(
            weight=weight,
            true=true,
            false=of_all[end] - true,
            false_above=of_all[first] - true_above,
            positives=of_positives[-1],
            negatives=of_all[-1] - of_positives[-1],
        )

    def auroc(self) -> Floats:
        # Each positive wins against the negatives below it, and half against those it ties with.
        wins = self.negatives - (self.false + self.false_above) / 2
        total = (self.weight * wins).sum(axis=0)
        return ratio(total, self.positives * self.negatives)

    def average_precision(self) -> Floats:
        precision = ratio(self.true, self.true + self.false, empty=0.0)
        total = (self.weight * precision).sum(axis=0)
        return ratio(total, self.positives)

    def sensitivity(self) -> Floats:
        limit = (1 - SPECIFICITY) * self.negatives + ROUNDING
        allowed = self.false <= limit
        best = np.where(allowed, self.true, 0.0).max(axis=0, initial=0.0)
        return np.where(self.negatives > 0, ratio(best, self.positives), np.nan)


def _running_sum(weights: Floats) -> Floats:
    """Return (n + 1, b) of weights (n, b): in row t the sum of the first t."""
    n, b = weights.shape
    sums = np.zeros((n + 1, b))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


# --- decisions -----------------------------------------------------------------------------
#
# What depends on the class decided for is a function of a few weighted sums, so that the sums of
# all labels under all draws are one matrix product: terms (r, n) @ weights (n, b).


def decision_terms(
    indicator: Bools,
    proba: Floats,
    decided: Numbers,
) -> Floats:
    """Return (c * c + 1 + BINS, n): each cell of the confusion table, Brier terms, gaps by bin.

    indicator, proba (n, c); decided (n,): the class decided for. A unit whose column is zeroed
    counts for nothing.
    """
    c = proba.shape[1]
    is_decided = decided == np.arange(c)[:, None]
    cells = indicator.T[:, None] & is_decided  # (true, decided, n)
    brier = ((proba - indicator) ** 2).sum(axis=1) / 2
    sure, right = confidence(indicator, proba, decided)
    in_bin = bins_of(sure) == np.arange(BINS)[:, None]
    gaps = in_bin * (right - sure)
    return np.concatenate([cells.reshape(c * c, -1), brier[None], gaps])


def confidence(
    indicator: Bools,
    proba: Floats,
    decided: Numbers,
) -> tuple[Floats, Bools]:
    """Return (n,) how sure is what calibration is of, and (n,) whether it came true.

    That is the positive of two classes, and of several the class decided for.
    """
    if proba.shape[1] == 2:
        return proba[:, 1], indicator[:, 1]
    at = np.arange(len(decided))
    return proba[at, decided], indicator[at, decided]


def bins_of(sure: Floats) -> Numbers:
    """Return (n,) the number of each probability's bin, of BINS equal ones."""
    bins: Numbers = (sure * BINS).astype(np.int64)
    return np.minimum(bins, BINS - 1)


def decision_metrics(sums: Floats, c: int) -> dict[str, Floats]:
    """Return the metrics of c classes from the sums (r, b) of their `decision_terms`.

    ece is the expected calibration error over 15 equal bins (Guo et al., ICML 2017, eq. 3). Of two
    classes there are the rates of the second as well: the share of positives and of negatives that
    are called so (sensitivity, specificity), and of those called positive and negative that are so
    (ppv, npv), which hang on how common the positive is among these units.
    """
    table = confusion_table(sums, c)
    brier = sums[c * c]
    gaps = sums[c * c + 1 :]
    right = np.einsum("iib->ib", table)
    total = table.sum(axis=(0, 1))
    metrics = {
        "accuracy": ratio(right.sum(axis=0), total),
        "balanced_accuracy": balanced_accuracy(table),
        "f1": f1(table),
        "mcc": mcc(table),
        "brier": ratio(brier, total),
        "ece": ratio(np.abs(gaps).sum(axis=0), total),
    }
    return metrics | rates_of_two(table) if c == 2 else metrics


def balanced_accuracy(table: Floats) -> Floats:
    """Return the mean over the classes that occur of the share decided for; NaN of one class."""
    true = table.sum(axis=1)
    right = np.einsum("iib->ib", table)
    occurring = (true > 0).sum(axis=0)
    return np.where(occurring > 1, mean(ratio(right, true)), np.nan)


def rates_of_two(table: Floats) -> dict[str, Floats]:
    """Return the four rates of a confusion table of two classes, the second the positive."""
    right = np.einsum("iib->ib", table)
    of_true = ratio(right, table.sum(axis=1))
    of_called = ratio(right, table.sum(axis=0))
    return {
        "sensitivity": of_true[1],
        "specificity": of_true[0],
        "ppv": of_called[1],
        "npv": of_called[0],
    }


def confusion_table(sums: Floats, c: int) -> Floats:
    """Return (c, c, b), the true class by the one decided for, from sums of `decision_terms`."""
    return sums[: c * c].reshape(c, c, -1)


def regression(
    y: Floats,
    predicted: Floats,
    weights: Floats,
) -> dict[str, Floats]:
    """Return how near `predicted` (n,) is to y (n,).

    R2, the share of the variance of y that is explained; MAE and RMSE, in y's unit; Pearson's
    correlation, which does not ask for the same scale.
    """
    total = weights.sum(axis=0)
    centre = ratio(y @ weights, total)
    variance = ratio(y**2 @ weights, total) - centre**2
    unexplained = ratio((y - predicted) ** 2 @ weights, total)
    return {
        "r2": 1 - ratio(unexplained, variance),
        "mae": ratio(np.abs(y - predicted) @ weights, total),
        "rmse": np.sqrt(unexplained),
        "correlation": _correlation(y, predicted, weights),
    }


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return Pearson's correlation of x (n,) and y (n,); NaN where either is the same for all."""
    total = weights.sum(axis=0)
    # About the means of all, so that sums of squares lose no digits.
    x = x - x.mean()
    y = y - y.mean()
    of_x = ratio(x @ weights, total)
    of_y = ratio(y @ weights, total)
    covariance = ratio((x * y) @ weights, total) - of_x * of_y
    spread_x = ratio(x**2 @ weights, total) - of_x**2
    spread_y = ratio(y**2 @ weights, total) - of_y**2
    # Rounding may leave a product of spreads just below 0, of which there is no root.
    return ratio(covariance, np.sqrt(np.maximum(spread_x * spread_y, 0)))


# --- confusion tables, (c, c, b): true class, class decided for, draw ------------------------


def f1(table: Floats) -> Floats:
    """Return the F1 of a confusion table: the positive's of two classes, else macro."""
    each = f1_by_class(table)
    return each[1] if len(each) == 2 else mean(each)


def f1_by_class(table: Floats) -> Floats:
    """Return (c, b) each class's F1; NaN for one that neither occurs nor is decided for."""
    right = np.einsum("iib->ib", table)
    decided = table.sum(axis=0)
    true = table.sum(axis=1)
    return ratio(2 * right, decided + true)


def mcc(table: Floats) -> Floats:
    """Return Matthews' coefficient of a confusion table (Gorodkin 2004, R_K)."""
    right = np.einsum("iib->b", table)
    total = table.sum(axis=(0, 1))
    decided = table.sum(axis=0)
    true = table.sum(axis=1)
    covariance = right * total - (decided * true).sum(axis=0)
    spread_decided = total**2 - (decided**2).sum(axis=0)
    spread_true = total**2 - (true**2).sum(axis=0)
    # Rounding may leave a product of spreads just below 0, of which there is no root.
    product = np.maximum(spread_decided * spread_true, 0)
    return ratio(covariance, np.sqrt(product))


def quadratic_kappa(table: Floats) -> Floats:
    """Return Cohen's kappa, squared distances, of a confusion table in class order."""
    place = np.arange(len(table))
    cost = (np.subtract.outer(place, place) ** 2)[:, :, None]
    true = table.sum(axis=1)
    decided = table.sum(axis=0)
    # A draw may take no unit of a fold, which then has no table.
    pairs = true[:, None] * decided[None]
    total = np.broadcast_to(table.sum(axis=(0, 1)), pairs.shape)
    by_chance = ratio(pairs, total)
    observed = (cost * table).sum(axis=(0, 1))
    expected = (cost * by_chance).sum(axis=(0, 1))
    return 1 - ratio(observed, expected)
