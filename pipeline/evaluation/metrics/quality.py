"""How well probabilities do on val, by which heads choose among settings and epochs.

AUROC first. On few val units many settings rank alike, among them models that say nearly the same
of everything, so that between equals the log-loss decides. Dims: n units, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.metrics import macro_auroc

Floats = NDArray[np.float64]

# Scores that differ by less are equal: sums in another order.
ROUNDING = 1e-9
# No probability counts as less: the log of 0 would outweigh all others.
LEAST = 1e-15


class Quality(NamedTuple):
    """How well something does: the greater score, and of equal scores the smaller loss.

    score: NaN where val says nothing, since all of its units have the same labels.
    """

    score: float
    loss: float = 0.0


def quality(truth: Truth, proba: Floats) -> Quality:
    """Return macro AUROC and log-loss of probabilities (n, c); of a number less its squared error.

    NaN columns are of labels without a model, which count for nothing.
    """
    if truth.kind == "regression":
        error = truth.y - proba[:, 0]
        return Quality(-float(np.mean(error**2)))
    return Quality(macro_auroc(truth, proba), log_loss(truth, proba))


def log_loss(truth: Truth, proba: Floats) -> float:
    """Return the mean log-loss of the true class, or for multi-label of each label, and their mean.

    NaN where no unit has a label that is known and has a model.
    """
    if truth.kind != "multilabel":
        of_true = proba[np.arange(len(proba)), truth.y]
        return float(_surprise(of_true).mean())
    of_each = np.where(truth.indicator, proba, 1 - proba)
    counts = truth.known & ~np.isnan(proba)
    surprise = np.where(counts, _surprise(of_each), 0.0)
    units = counts.sum(axis=0)
    has_units = units > 0
    if not has_units.any():
        return float("nan")
    of_labels = surprise.sum(axis=0)[has_units] / units[has_units]
    return float(of_labels.mean())


def _surprise(proba: Floats) -> Floats:
    return -np.log(np.maximum(proba, LEAST))


def is_better(one: Quality, other: Quality | None) -> bool:
    """Return whether one does better than another, or than nothing; NaN never does."""
    if np.isnan(one.score):
        return False
    if other is None or np.isnan(other.score):
        return True
    if abs(one.score - other.score) > ROUNDING:
        return one.score > other.score
    return one.loss < other.loss


def best_of(qualities: Sequence[Quality]) -> int | None:
    """Return the place of the best, of equals the first; None where none is defined."""
    scores = np.array([each.score for each in qualities])
    if np.isnan(scores).all():
        return None
    # Against the best score, not each against the last: equals by rounding must not add up.
    ties = np.flatnonzero(scores >= np.nanmax(scores) - ROUNDING)
    losses = [qualities[i].loss for i in ties.tolist()]
    return int(ties[int(np.argmin(losses))])
