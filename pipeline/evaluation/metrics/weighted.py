"""Formulas of `pipeline.evaluation.metrics.metrics`, each under b columns of weights at once.

Weights (n, b) are how often each unit counts: ones for the value itself, a bootstrap's draws for
its interval. Every function returns (b,) values, NaN where its denominator is empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
BINS = 15
SPECIFICITY = 0.9


def ratio(top: Floats, bottom: Floats, empty: float = np.nan) -> Floats:
    """Return top / bottom, or `empty` where bottom is 0."""
    out: Floats = np.divide(top, bottom, out=np.full(top.shape, empty), where=bottom > 0)
    return out


def mean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(float))


def ranking(positive: Bools, values: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return what depends on order alone: three (b,).

    The area under the ROC curve: the share of (positive, negative) pairs in order, ties half
    (Mann-Whitney U), each pair weighted by the product of its weights. The average precision: the
    mean over positives of the precision at their value. The greatest sensitivity of any threshold
    with a specificity of at least SPECIFICITY.
    """
    order = np.argsort(-values, kind="stable")
    down, at = -values[order], np.flatnonzero(positive[order])
    starts, ends = (np.searchsorted(down, down[at], side) for side in ("left", "right"))
    above = np.zeros((len(values) + 1, weights.shape[1]))  # row t: the weight of the first t
    np.cumsum(weights[order], axis=0, out=above[1:])
    own = weights[order[at]]
    found = np.zeros((len(at) + 1, weights.shape[1]))  # row t: of the first t positives
    np.cumsum(own, axis=0, out=found[1:])
    found_at, above_at = found[np.searchsorted(at, ends)], above[ends]
    wrong_at = above_at - found_at
    wrong_before = above[starts] - found[np.searchsorted(at, starts)]
    positives, negatives = found[-1], above[-1] - found[-1]
    wins = (own * (negatives - (wrong_at + wrong_before) / 2)).sum(axis=0)
    precision = (own * ratio(found_at, above_at, empty=0.0)).sum(axis=0)
    few = wrong_at <= (1 - SPECIFICITY) * negatives + 1e-9
    best = np.where(few, found_at, 0.0).max(axis=0, initial=0.0)
    sensitivity = np.where(negatives > 0, ratio(best, positives), np.nan)
    return ratio(wins, positives * negatives), ratio(precision, positives), sensitivity


def auroc(positive: Bools, values: Floats) -> float:
    """Return the plain area under the ROC curve of n values; NaN where one side is empty."""
    return float(ranking(positive, values, np.ones((len(values), 1)))[0][0])


# --- decisions -----------------------------------------------------------------------------
#
# What depends on the class that is said is a function of a few weighted sums, so that the sums of
# all labels under all draws are one matrix product: forms (r, n) @ weights (n, b).


def forms(indicator: Bools, proba: Floats, said: NDArray[np.int64]) -> Floats:
    """Return (c * c + 1 + BINS, n): each cell of the confusion table, Brier terms, gaps by bin.

    A unit whose column is zeroed counts for nothing.

    indicator, proba (n, c); said (n,) the class that is said.
    """
    c = proba.shape[1]
    cells = indicator.T[:, None] & (said == np.arange(c)[:, None])  # (true, said, n)
    brier = ((proba - indicator) ** 2).sum(axis=1) / 2
    sure, right = confidence(indicator, proba, said)
    gaps = (bins_of(sure) == np.arange(BINS)[:, None]) * (right - sure)
    return np.concatenate([cells.reshape(c * c, -1), brier[None], gaps])


def confidence(
    indicator: Bools, proba: Floats, said: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (n,) how sure is what calibration is of, and (n,) whether it came true.

    That is the positive of two classes, and of several the class that is said.
    """
    if proba.shape[1] == 2:
        return proba[:, 1], indicator[:, 1]
    at = np.arange(len(said))
    return proba[at, said], indicator[at, said]


def bins_of(sure: Floats) -> NDArray[np.int64]:
    """Return (n,) the number of each probability's bin, of BINS equal ones."""
    bins: NDArray[np.int64] = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    return bins


def decisions(sums: Floats, c: int) -> dict[str, Floats]:
    """Return the metrics of c classes from the sums (r, b) of their forms.

    ece is the expected calibration error over 15 equal bins (Guo et al., ICML 2017, eq. 3).
    """
    table, brier, gaps = sums[: c * c].reshape(c, c, -1), sums[c * c], sums[c * c + 1 :]
    right, total = np.einsum("iib->ib", table), table.sum(axis=(0, 1))
    return {
        "accuracy": ratio(right.sum(axis=0), total),
        "balanced_accuracy": mean(ratio(right, table.sum(axis=1))),
        "f1": f1(table),
        "mcc": mcc(table),
        "brier": ratio(brier, total),
        "ece": ratio(np.abs(gaps).sum(axis=0), total),
    }


def regression(y: Floats, said: Floats, weights: Floats) -> dict[str, Floats]:
    """Return R2 (the share of the variance of y (n,) explained by said (n,)) and the mean error."""
    total = weights.sum(axis=0)
    centre = ratio(y @ weights, total)
    spread = ratio(y**2 @ weights, total) - centre**2
    left = ratio((y - said) ** 2 @ weights, total)
    return {"r2": 1 - ratio(left, spread), "mae": ratio(np.abs(y - said) @ weights, total)}


def f1(table: Floats) -> Floats:
    """Return the F1 of a confusion table (c, c, b): the positive's of two classes, else macro."""
    each = f1_by_class(table)
    return each[1] if len(each) == 2 else mean(each)


def f1_by_class(table: Floats) -> Floats:
    """Return (c, b) each class's F1; NaN for one that neither occurs nor is said."""
    right = np.einsum("iib->ib", table)
    return ratio(2 * right, table.sum(axis=0) + table.sum(axis=1))


def mcc(table: Floats) -> Floats:
    """Return Matthews' coefficient of a confusion table (c, c, b) (Gorodkin 2004, R_K)."""
    right, total = np.einsum("iib->b", table), table.sum(axis=(0, 1))
    said, true = table.sum(axis=0), table.sum(axis=1)
    covariance = right * total - (said * true).sum(axis=0)
    spread = (total**2 - (said**2).sum(axis=0)) * (total**2 - (true**2).sum(axis=0))
    return ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def quadratic_kappa(table: Floats) -> Floats:
    """Return Cohen's kappa, squared distances, of a confusion table (c, c, b) in class order."""
    c = len(table)
    cost = (np.subtract.outer(np.arange(c), np.arange(c)) ** 2)[:, :, None]
    by_chance = table.sum(axis=1)[:, None] * table.sum(axis=0)[None] / table.sum(axis=(0, 1))
    return 1 - ratio((cost * table).sum(axis=(0, 1)), (cost * by_chance).sum(axis=(0, 1)))
