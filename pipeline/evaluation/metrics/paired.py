"""Tests of two scores of the same units: DeLong's, and Holm's correction of many."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def delong(
    positive: Bools,
    values: Floats,
    patient: Numbers,
) -> tuple[Floats, Floats]:
    """Return the AUROCs (s,) of s scores (s, n) of the same units, and their covariance (s, s).

    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), with placements by rank (Sun and Xu,
    2014); units of one patient (n,) count as a cluster (Obuchowski, Biometrics 53 (1997)), which
    changes nothing where each patient has one.
    """
    negative = ~positive
    m = int(positive.sum())
    n = int(negative.sum())
    of_positives = np.stack([_placements(v[negative], v[positive]) for v in values])
    of_negatives = 1 - np.stack([_placements(v[positive], v[negative]) for v in values])
    # A placement is how much of the other side a unit is in order with: their mean is the AUROC.
    aurocs = of_positives.mean(axis=1)
    p = int(patient.max()) + 1
    x = _by_cluster(of_positives - aurocs[:, None], patient[positive], p)
    y = _by_cluster(of_negatives - aurocs[:, None], patient[negative], p)
    # A patient with units on both sides makes their sums covary.
    cross = _unbiased(patient) * x @ y.T
    covariance = (
        _unbiased(patient[positive]) * x @ x.T / m**2
        + _unbiased(patient[negative]) * y @ y.T / n**2
        + (cross + cross.T) / (m * n)
    )
    return aurocs, covariance


def _placements(others: Floats, values: Floats) -> Floats:
    """Return the share of `others` below each value, ties half.

    That is its rank among all, less its rank among its own (Sun and Xu, 2014).
    """
    from scipy.stats import rankdata

    among_all = rankdata(np.concatenate([values, others]))[: len(values)]
    placements: Floats = (among_all - rankdata(values)) / len(others)
    return placements


def _by_cluster(
    values: Floats,
    cluster: Numbers,
    p: int,
) -> Floats:
    """Return (s, p) the sums of values (s, n) over the units of each of p clusters."""
    return np.stack([np.bincount(cluster, weights=row, minlength=p) for row in values])


def _unbiased(cluster: Numbers) -> float:
    """Return what a sum of squares over clusters is multiplied by; NaN for one cluster alone."""
    clusters = len(np.unique(cluster))
    return clusters / (clusters - 1) if clusters > 1 else math.nan


def two_sided_p(difference: float, variance: float) -> float | None:
    """Return the p value of a normal difference, 1 where nothing differs.

    None where its variance is 0 or not known, as where one patient alone stands on a side.
    """
    if difference == 0:
        return 1.0
    return math.erfc(abs(difference) / math.sqrt(2 * variance)) if variance > 0 else None


def holm(p: list[float]) -> list[float]:
    """Return p values adjusted for their number (Holm, Scand. J. Statist. 6 (1979))."""
    order = np.argsort(p, kind="stable")
    still_tested = np.arange(len(p), 0, -1)
    scaled = np.array(p)[order] * still_tested
    adjusted = np.empty(len(p))
    # None may be less than one before it in order.
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()
