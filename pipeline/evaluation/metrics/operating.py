"""Operating points: from which probability on a unit is called positive, as val says.

A threshold lies half-way between two probabilities of val, and a unit at or above it is called.
Dims: n units, c classes or labels, t thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.tasks import AtLeast, OperatingRule

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Without a threshold of its own a label is called above this; of two classes the likeliest is.
HALF = 0.5
# Rates that differ by less are equal.
ROUNDING = 1e-12


def is_called(proba: Floats, thresholds: Floats) -> Bools:
    """Return which probabilities are called positive: those at or above their threshold.

    Where that is NaN, those above one half, so that one half itself is a no.
    """
    with_threshold = proba >= thresholds
    return np.where(np.isnan(thresholds), proba > HALF, with_threshold)


def columns_with_points(truth: Truth) -> list[int]:
    """Return the columns that have operating points: the positive of two classes, or each label."""
    if truth.kind == "binary":
        return [1]
    return list(range(len(truth.classes))) if truth.kind == "multilabel" else []


def thresholds_of(truth: Truth, proba: Floats, rule: OperatingRule) -> Floats:
    """Return (c,) the threshold of each class or label by the probabilities (n, c) of val.

    NaN for the first of two classes, for classes that exclude each other, for labels without a
    model, and where val has one side of a label only, so that it says nothing.
    """
    thresholds = np.full(proba.shape[1], np.nan)
    if rule == "likeliest":
        return thresholds
    for j in columns_with_points(truth):
        known = truth.known[:, j]
        values = proba[known, j]
        if not np.isnan(values).any():
            thresholds[j] = threshold_of(truth.indicator[known, j], values, rule)
    return thresholds


def threshold_of(positive: Bools, values: Floats, rule: OperatingRule) -> float:
    """Return the threshold that a rule chooses for n values; NaN where one side is empty.

    Youden's index: the greatest sum of sensitivity and specificity. A sensitivity (specificity) to
    be reached: the greatest specificity (sensitivity) that leaves it. Of equals the lowest
    threshold, which misses least.
    """
    if positive.all() or not positive.any():
        return float("nan")
    rates = _Rates.of(positive, values)
    if not isinstance(rule, AtLeast):
        return rates.best(rates.sensitivity + rates.specificity)
    if rule.sensitivity is not None:
        reached = rates.sensitivity >= rule.sensitivity - ROUNDING
        return rates.best(np.where(reached, rates.specificity, -1.0))
    assert rule.specificity is not None
    reached = rates.specificity >= rule.specificity - ROUNDING
    return rates.best(np.where(reached, rates.sensitivity, -1.0))


@dataclass(frozen=True)
class _Rates:
    """Every threshold (t,), ascending, that divides values otherwise, with both its rates.

    The first calls all units, the last none.
    """

    thresholds: Floats
    sensitivity: Floats
    specificity: Floats

    @classmethod
    def of(cls, positive: Bools, values: Floats) -> _Rates:
        distinct = np.unique(values)
        # Half-way, so that a value of test that is off by little falls on the same side.
        between = (distinct[:-1] + distinct[1:]) / 2
        # Neighbours may be so close that their middle is the lower one, which would be called too.
        between = np.maximum(between, np.nextafter(distinct[:-1], np.inf))
        lowest = distinct[0] / 2
        highest = (distinct[-1] + 1) / 2
        above_all = max(highest, float(np.nextafter(distinct[-1], np.inf)))
        thresholds = np.concatenate([[lowest], between, [above_all]])
        positives = np.sort(values[positive])
        negatives = np.sort(values[~positive])
        missed = np.searchsorted(positives, thresholds, "left")
        spared = np.searchsorted(negatives, thresholds, "left")
        return cls(thresholds, 1 - missed / len(positives), spared / len(negatives))

    def best(self, worth: Floats) -> float:
        """Return the lowest of the thresholds that are worth most."""
        most = worth >= worth.max() - ROUNDING
        return float(self.thresholds[int(np.argmax(most))])
