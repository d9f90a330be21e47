"""Curves of probabilities against truth, with 95 % bands by a bootstrap over patients.

Dims: n units, b draws, t thresholds, g grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.bootstrap import draws

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DRAWS = 400
GRID = np.linspace(0, 1, 101)
# A drawn line needs no more points.
MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """A line x, y (t,), and its band low, high (g,) over GRID."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def roc(truth: Truth, proba: Floats, fold: NDArray[np.int64] | None, label: int) -> Curve | None:
    """Return sensitivity (y) by 1 - specificity (x) of one class or label; None for one side.

    Of several folds' models, the mean of their curves, as the AUROC is of their areas.
    """
    return _curve(truth, proba[:, label], fold, label, _roc_points)


def precision_recall(
    truth: Truth, proba: Floats, fold: NDArray[np.int64] | None, label: int
) -> Curve | None:
    """Return precision (y) by recall (x) of one class or label; None for one side."""
    return _curve(truth, proba[:, label], fold, label, _pr_points)


def confusion(truth: Truth, proba: Floats) -> NDArray[np.int64]:
    """Return (c, c): units of each class (row) by the likeliest class (column)."""
    c = len(truth.classes)
    return np.bincount(truth.y * c + proba.argmax(axis=1), minlength=c * c).reshape(c, c)


def label_confusion(truth: Truth, proba: Floats, label: int) -> NDArray[np.int64]:
    """Return (2, 2): units without and with a label (rows), called so at 0.5 (columns)."""
    known = truth.known[:, label]
    with_it, called = truth.indicator[known, label], proba[known, label] >= 0.5
    return np.bincount(2 * with_it + called, minlength=4).reshape(2, 2)


# (positives found, negatives found) at each threshold, (t + 1,), and both totals -> x, y (t + 1,)
Points = Callable[[Floats, Floats], tuple[Floats, Floats]]


def _roc_points(found: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    return wrong / wrong[-1], found / found[-1]


def _pr_points(found: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    total = found + wrong
    precision = np.divide(found, total, out=np.ones_like(found), where=total > 0)
    if len(precision) > 1:
        precision[0] = precision[1]
    return found / found[-1], precision


def _curve(
    truth: Truth, values: Floats, fold: NDArray[np.int64] | None, label: int, points: Points
) -> Curve | None:
    on = truth.known[:, label] & ~np.isnan(values)
    positive = truth.indicator[on, label]
    if not positive.any() or positive.all():
        return None
    values, groups = values[on], truth.groups[on]
    fold = np.zeros(len(values), np.int64) if fold is None else fold[on]
    models = [_Ranked.of(positive, values, np.flatnonzero(fold == i)) for i in np.unique(fold)]
    drawn = [
        line
        for weights in draws(groups, DRAWS)
        for w in weights.T
        if (line := _mean_line(models, w, points)) is not None
    ]
    if not drawn:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    ones = np.ones(len(values))
    if len(models) == 1:
        x, y = points(*models[0].found(ones))
        keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(np.int64))
        return Curve(x[keep], y[keep], low, high)
    line = _mean_line(models, ones, points)
    return None if line is None else Curve(GRID, line, low, high)


@dataclass(frozen=True)
class _Ranked:
    """One model's units (m,) by falling value; ends (t,): the last unit of each value."""

    units: NDArray[np.int64]
    positive: Floats
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, positive: Bools, values: Floats, units: NDArray[np.int64]) -> _Ranked:
        order = units[np.argsort(-values[units], kind="stable")]
        ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
        return cls(order, positive[order].astype(np.float64), ends)

    def found(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weight of positives and of negatives (t + 1,) at or above each value."""
        own = weights[self.units]
        found = np.cumsum(own * self.positive)[self.ends]
        wrong = np.cumsum(own * (1 - self.positive))[self.ends]
        return np.append(0, found), np.append(0, wrong)


def _mean_line(models: list[_Ranked], weights: Floats, points: Points) -> Floats | None:
    """Return the mean over models of y on GRID; None where no model has both sides."""
    lines = []
    for model in models:
        found, wrong = model.found(weights)
        if found[-1] > 0 and wrong[-1] > 0:
            x, y = points(found, wrong)
            lines.append(np.interp(GRID, x, y))
    return np.mean(lines, axis=0) if lines else None
