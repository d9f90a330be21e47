"""Metrics from probabilities, with 95 % intervals by a bootstrap over patients.

Every metric is computed with weights: ones give the value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Kind, Metric

DRAWS = 2000
SEED = 0
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# (metric, class or label name; "" for all together) -> (b,) values, NaN where undefined
Values = dict[tuple[str, str], Floats]


def score(
    indicator: Bools, proba: Floats, groups: NDArray[np.str_], classes: tuple[str, ...], kind: Kind
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all, and by class or label, each with its 95 % interval.

    indicator (n, c): which classes a unit carries; proba (n, c); groups (n,): patients. The
    interval is the 2.5th to 97.5th percentile over 2,000 seeded draws of patients with
    replacement; a draw without both sides of a label counts for the others only. A metric that
    the units leave undefined (a label of one value) is not there.
    """
    values = statistics(indicator, proba, classes, kind, np.ones((len(proba), 1)))
    chunks = [
        statistics(indicator, proba, classes, kind, weights) for weights in _draws(groups, DRAWS)
    ]
    overall: dict[str, Metric] = {}
    by_label: dict[str, dict[str, Metric]] = {}
    for (name, label), value in values.items():
        if np.isnan(value[0]):
            continue
        drawn = np.concatenate([chunk[name, label] for chunk in chunks])
        low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
        into = by_label.setdefault(label, {}) if label else overall
        into[name] = Metric(value=float(value[0]), low=low, high=high)
    return overall, by_label


def _draws(groups: NDArray[np.str_], draws: int) -> Iterator[Floats]:
    """Yield weights (n, b) until `draws` are made: how often each draw took a unit's patient."""
    patients, patient = np.unique(groups, return_inverse=True)
    p, rng = len(patients), np.random.default_rng(SEED)
    at_once = max(1, 2**22 // len(groups))
    for start in range(0, draws, at_once):
        b = min(at_once, draws - start)
        drawn = rng.integers(0, p, (b, p)) + np.arange(b)[:, None] * p
        counts = np.bincount(drawn.ravel(), minlength=b * p).reshape(b, p)
        yield counts.T.astype(np.float64)[patient]


def statistics(
    indicator: Bools, proba: Floats, classes: tuple[str, ...], kind: Kind, weights: Floats
) -> Values:
    """Return every metric under each column of weights (n, b).

    accuracy and balanced accuracy: of the likeliest class, or for multi-label at 0.5, averaged
    over labels. auroc: one class against the rest, and their mean (for binary: the positive's).
    A label whose column is NaN has no model and stays out of every mean.
    """
    modelled = np.flatnonzero(~np.isnan(proba).any(axis=0))
    if kind == "multilabel":
        values = _multilabel(indicator[:, modelled], proba[:, modelled], weights)
    else:
        values = _singlelabel(indicator, proba, weights)
    scored = [1] if kind == "binary" else modelled.tolist()
    each = {classes[j]: auroc(indicator[:, j], proba[:, j], weights) for j in scored}
    values["auroc", ""] = _mean(np.array(list(each.values())))
    if kind != "binary":
        values |= {("auroc", name): value for name, value in each.items()}
    return values


def _singlelabel(indicator: Bools, proba: Floats, weights: Floats) -> Values:
    right = indicator[np.arange(len(proba)), proba.argmax(axis=1)]
    hits, sizes = (indicator & right[:, None]).T @ weights, indicator.T @ weights
    return {
        ("accuracy", ""): hits.sum(axis=0) / sizes.sum(axis=0),
        ("balanced_accuracy", ""): _mean(_ratio(hits, sizes)),
    }


def _multilabel(indicator: Bools, proba: Floats, weights: Floats) -> Values:
    said = proba >= 0.5
    positives, negatives = indicator.T @ weights, (~indicator).T @ weights
    true_positives = (indicator & said).T @ weights
    true_negatives = (~indicator & ~said).T @ weights
    sensitivity = _ratio(true_positives, positives)
    specificity = _ratio(true_negatives, negatives)
    return {
        ("accuracy", ""): ((true_positives + true_negatives) / weights.sum(axis=0)).mean(axis=0),
        ("balanced_accuracy", ""): _mean((sensitivity + specificity) / 2),
    }


def auroc(positive: Bools, values: Floats, weights: Floats) -> Floats:
    """Return (b,) the weighted area under the ROC curve; NaN where a side has no weight.

    The share of (positive, negative) pairs that are in order, ties half (Mann-Whitney U), each
    pair weighted by the product of its weights (n, b).
    """
    order = np.argsort(values[~positive], kind="stable")
    negative, above = values[~positive][order], values[positive]
    w_negative, w_positive = weights[~positive][order], weights[positive]
    below = np.zeros((len(negative) + 1, weights.shape[1]))
    np.cumsum(w_negative, axis=0, out=below[1:])
    low, high = (np.searchsorted(negative, above, side) for side in ("left", "right"))
    wins = (w_positive * (below[low] + below[high])).sum(axis=0) / 2
    return _ratio(wins, w_positive.sum(axis=0) * below[-1])


def macro_auroc(indicator: Bools, proba: Floats, kind: Kind) -> float:
    """Return the mean AUROC over the classes that have both sides; NaN if none has."""
    ones = np.ones((len(proba), 1))
    scored = [1] if kind == "binary" else np.flatnonzero(~np.isnan(proba).any(axis=0)).tolist()
    each = [auroc(indicator[:, j], proba[:, j], ones) for j in scored]
    return float(_mean(np.array(each))[0])


def one_sided(indicator: Bools, classes: tuple[str, ...]) -> list[str]:
    """Return the classes that all units carry, or none does: nothing can be ranked by them."""
    carried = indicator.mean(axis=0)
    return [name for name, share in zip(classes, carried, strict=True) if share in (0.0, 1.0)]


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Return top / bottom, NaN where bottom is 0."""
    ratio: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return ratio


def _mean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(float))
