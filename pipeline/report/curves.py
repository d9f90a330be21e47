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
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.metrics.survival import kaplan_meier

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


def label_confusion(
    truth: Truth, proba: Floats, thresholds: Floats, label: int
) -> NDArray[np.int64]:
    """Return (2, 2): units without and with a label, or the positive of two classes (rows).

    Columns: not called and called so, at the operating points, thresholds (n, c).
    """
    known = truth.known[:, label]
    with_it = truth.indicator[known, label]
    called = is_called(proba[known, label], thresholds[known, label])
    return np.bincount(2 * with_it + called, minlength=4).reshape(2, 2)


# Weights of positives and of negatives at or above each threshold, (t + 1,) -> x, y (t + 1,).
Points = Callable[[Floats, Floats], tuple[Floats, Floats]]


def _roc_points(hits: Floats, alarms: Floats) -> tuple[Floats, Floats]:
    return alarms / alarms[-1], hits / hits[-1]


def _pr_points(hits: Floats, alarms: Floats) -> tuple[Floats, Floats]:
    total = hits + alarms
    precision = np.divide(hits, total, out=np.ones_like(hits), where=total > 0)
    # Nothing is called yet at the first point, so precision is not defined: the next one's stands.
    if len(precision) > 1:
        precision[0] = precision[1]
    return hits / hits[-1], precision


def _curve(
    truth: Truth, values: Floats, fold: NDArray[np.int64] | None, label: int, points: Points
) -> Curve | None:
    """Return the curve of values (n,) with its band over draws of patients; None for one side."""
    # A label may be unknown of a unit, and a unit may have no prediction.
    on = truth.known[:, label] & ~np.isnan(values)
    positive = truth.indicator[on, label]
    if not positive.any() or positive.all():
        return None
    values = values[on]
    groups = truth.groups[on]
    fold = np.zeros(len(values), np.int64) if fold is None else fold[on]
    models = [_Ranked.of(positive, values, np.flatnonzero(fold == i)) for i in np.unique(fold)]
    drawn: list[Floats] = []
    for weights in draws(groups, DRAWS):
        lines = [_mean_line(models, of_draw, points) for of_draw in weights.T]
        # A draw without patients of one side has no curve.
        drawn += [line for line in lines if line is not None]
    if not drawn:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    # The line itself is of all units once.
    ones = np.ones(len(values))
    if len(models) == 1:
        x, y = points(*models[0].above(ones))
        thinned = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(np.int64))
        return Curve(x[thinned], y[thinned], low, high)
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
        # Stable, so that the curve does not hang on the machine where values tie.
        order = units[np.argsort(-values[units], kind="stable")]
        ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
        return cls(order, positive[order].astype(np.float64), ends)

    def above(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weight of positives and of negatives (t + 1,) at or above each value."""
        weights = weights[self.units]
        hits = np.cumsum(weights * self.positive)[self.ends]
        alarms = np.cumsum(weights * (1 - self.positive))[self.ends]
        return np.append(0, hits), np.append(0, alarms)


def _mean_line(models: list[_Ranked], weights: Floats, points: Points) -> Floats | None:
    """Return the mean over models of y on GRID; None where no model has both sides."""
    lines = []
    for model in models:
        hits, alarms = model.above(weights)
        if hits[-1] > 0 and alarms[-1] > 0:
            x, y = points(hits, alarms)
            lines.append(np.interp(GRID, x, y))
    return np.mean(lines, axis=0) if lines else None


# --- survival ----------------------------------------------------------------------------------

# By rising risk.
GROUPS = ("low risk", "middle", "high risk")


@dataclass(frozen=True)
class Survival:
    """How many of a group of units are left without the event, after each of the times (t,).

    left (t,): from 1 on; low, high (t,): its band; censored: times (k,) of those who were, and how
    many were left then (k,).
    """

    name: str
    units: int
    events: int
    times: Floats
    left: Floats
    low: Floats
    high: Floats
    censored: tuple[Floats, Floats]


def survival_by_risk(truth: Truth, risk: Floats, fold: NDArray[np.int64] | None) -> list[Survival]:
    """Return the curve of each third of the units by risk (n,), the lowest first.

    Of several folds' models each one's own thirds, since risks of two models do not compare. By
    the predictions alone: no outcome says where one group ends.
    """
    group = np.zeros(len(risk), np.int64)
    folds = np.zeros(len(risk), np.int64) if fold is None else fold
    for i in np.unique(folds):
        on = folds == i
        bounds = np.quantile(risk[on], [1 / 3, 2 / 3])
        group[on] = np.searchsorted(bounds, risk[on], side="left")
    return [
        _survival(truth.at(group == i), name) for i, name in enumerate(GROUPS) if (group == i).any()
    ]


def _survival(truth: Truth, name: str) -> Survival:
    time, event = truth.y.T
    once = np.ones((len(time), 1))
    times, left = kaplan_meier(time, event == 1, once)
    drawn = [kaplan_meier(time, event == 1, each)[1] for each in draws(truth.groups, DRAWS)]
    low, high = np.percentile(np.concatenate(drawn, axis=1), [2.5, 97.5], axis=1)
    is_censored = event == 0
    at_censoring = left[np.searchsorted(times, time[is_censored]), 0]
    return Survival(
        name=name,
        units=len(time),
        events=int(event.sum()),
        times=np.concatenate([[0.0], times]),
        left=np.concatenate([[1.0], left[:, 0]]),
        low=np.concatenate([[1.0], low]),
        high=np.concatenate([[1.0], high]),
        censored=(time[is_censored], at_censoring),
    )
