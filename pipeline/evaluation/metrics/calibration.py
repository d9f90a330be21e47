"""How far probabilities are right in places that they were not fitted on, and what they are worth.

Calibration by Cox's recalibration (Biometrika 45 (1958); Van Calster et al., J. Clin. Epidemiol. 74
(2016)): logit(true) = intercept + slope * logit(said), fitted by maximum likelihood. A slope below
1 says that probabilities are too extreme; `in_the_large`, the intercept where the slope is held at
1, that they are too low where it is above 0. Net benefit by Vickers and Elkin (Med. Decis. Making
26 (2006)). Everything under b columns of weights at once. Dims: n units, b draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics.values import ScoredColumn

Floats = NDArray[np.float64]

# Probabilities nearer to 0 or 1 count as so near: their logits would be infinite.
LEAST = 1e-6
STEPS = 50
# A step of Newton's at most, which the first ones may overshoot.
LONGEST = 4.0
CONVERGED = 1e-8
# No intercept lies farther out: the logits do not.
FARTHEST = 60.0


def calibration(column: ScoredColumn, weights: Floats) -> dict[str, Floats]:
    """Return slope, intercept and in_the_large (b,) of a class or label; weights (n, b).

    NaN where draws are of one side, or where probabilities part the sides entirely.
    """
    on = column.known
    z = logit(column.proba[on])
    y = column.positive[on].astype(np.float64)
    w = weights[on]
    intercept, slope = fit_line(z, y, w)
    return {
        "slope": slope,
        "intercept": intercept,
        "in_the_large": _fit_offset(z, y, w),
    }


def logit(proba: Floats) -> Floats:
    """Return the logits of probabilities, those nearer to 0 or 1 than LEAST counted as so near."""
    clipped = np.clip(proba, LEAST, 1 - LEAST)
    logits: Floats = np.log(clipped / (1 - clipped))
    return logits


def fit_line(z: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Return intercept and slope (b,) of logistic regression of y (n,) on z (n,), w (n, b).

    By Newton's method; NaN where there is no maximum.
    """
    # About their mean and in units of their spread: logits of extreme probabilities are so far out
    # that steps of raw ones would go astray.
    centre = z.mean()
    spread = float(z.std()) or 1.0
    inside = (z - centre) / spread
    level = np.zeros(w.shape[1])
    slope = np.zeros(w.shape[1])
    step = np.full(w.shape[1], np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(STEPS):
            p = _sigmoid(level + inside[:, None] * slope)
            wrong = w * (y[:, None] - p)
            curve = w * p * (1 - p)
            g0 = wrong.sum(axis=0)
            g1 = inside @ wrong
            h0 = curve.sum(axis=0)
            h1 = inside @ curve
            h2 = (inside**2) @ curve
            determinant = h0 * h2 - h1**2
            first = (h2 * g0 - h1 * g1) / determinant
            second = (h0 * g1 - h1 * g0) / determinant
            step = np.maximum(np.abs(first), np.abs(second))
            shorter = np.minimum(1, LONGEST / np.maximum(step, LONGEST))
            level = level + first * shorter
            slope = slope + second * shorter
            if not (step > CONVERGED).any():
                break
    # Not reached, or NaN already, where both sides are told apart entirely or one is not there.
    is_lost = ~(step <= CONVERGED)
    level[is_lost] = np.nan
    slope[is_lost] = np.nan
    return level - slope * centre / spread, slope / spread


def _fit_offset(z: Floats, y: Floats, w: Floats) -> Floats:
    """Return the intercept (b,) of logistic regression of y on z, whose slope is 1.

    NaN for draws of one side. By Newton's method between bounds that close in.
    """
    low = np.full(w.shape[1], -FARTHEST)
    high = np.full(w.shape[1], FARTHEST)
    intercept = np.zeros(w.shape[1])
    positives = y @ w
    is_lost = (positives <= 0) | (positives >= w.sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(STEPS):
            p = _sigmoid(intercept + z[:, None])
            wrong = (w * (y[:, None] - p)).sum(axis=0)
            low = np.where(wrong > 0, intercept, low)
            high = np.where(wrong < 0, intercept, high)
            step = wrong / (w * p * (1 - p)).sum(axis=0)
            after = intercept + step
            # Where nearly all probabilities are 0 or 1, the step would leave the bounds.
            is_between = (after > low) & (after < high)
            after = np.where(is_between | (step == 0), after, (low + high) / 2)
            moved = np.abs(after - intercept)
            intercept = after
            if not (moved[~is_lost] > CONVERGED).any():
                break
    return np.where(is_lost, np.nan, intercept)


def _sigmoid(x: Floats) -> Floats:
    # By tanh, which overflows nowhere.
    values: Floats = 0.5 * (1 + np.tanh(x / 2))
    return values


def net_benefit(
    column: ScoredColumn,
    thresholds: Sequence[float],
    weights: Floats,
) -> tuple[Floats, Floats]:
    """Return (t, b) the net benefit of deciding by each threshold, and that of treating all.

    Per unit, in true positives: TP / n - FP / n * threshold / (1 - threshold).
    """
    on = column.known
    y = column.positive[on]
    w = weights[on]
    total = w.sum(axis=0)
    positives = (w * y[:, None]).sum(axis=0)
    decided = []
    treated = []
    for threshold in thresholds:
        odds = threshold / (1 - threshold)
        above = column.proba[on] >= threshold
        true = (w * (above & y)[:, None]).sum(axis=0)
        false = (w * (above & ~y)[:, None]).sum(axis=0)
        decided.append((true - false * odds) / total)
        treated.append((positives - (total - positives) * odds) / total)
    return np.stack(decided), np.stack(treated)
