"""Metrics from probabilities, with 95 % intervals by a bootstrap over patients.

Every metric is computed with weights: ones give the value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline._paired import delong, holm, two_sided_p
from pipeline._weighted import SPECIFICITY, auroc, decisions, forms, mean, quadratic_kappa, ranking
from pipeline.types import Difference, Kind, Metric

DRAWS = 2000
SEED = 0
# weights at once: 32 MB
AT_ONCE = 2**22
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# (metric, class or label name; "" for all together) -> (b,) values, NaN where undefined
Values = dict[tuple[str, str], Floats]
Joint = dict[str, Floats]
RANKING = ("auroc", "average_precision", f"sensitivity_at_specificity_{SPECIFICITY}")


def score(
    indicator: Bools, proba: Floats, groups: NDArray[np.str_], classes: tuple[str, ...], kind: Kind
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all, and by class or label, each with its 95 % interval.

    indicator (n, c): which classes a unit carries; proba (n, c); groups (n,): patients. The
    interval is the 2.5th to 97.5th percentile over 2,000 seeded draws of patients with
    replacement; a draw without both sides of a label counts for the others only. A metric that
    the units leave undefined (a label of one value) is not there.
    """
    overall: dict[str, Metric] = {}
    by_label: dict[str, dict[str, Metric]] = {}
    found = _bootstrap(lambda w: statistics(indicator, proba, classes, kind, w), groups)
    for (name, label), metric in found.items():
        into = by_label.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, by_label


def compare(
    indicator: Bools,
    first: Floats,
    second: Floats,
    groups: NDArray[np.str_],
    classes: tuple[str, ...],
    kind: Kind,
) -> list[Difference]:
    """Return what `second` scores above `first` (n, c) on the same units, metric by metric."""

    def less(weights: Floats) -> Values:
        one, two = (statistics(indicator, p, classes, kind, weights) for p in (first, second))
        return {key: two[key] - one[key] for key in two if key in one}

    differences = _bootstrap(less, groups)
    patient = np.unique(groups, return_inverse=True)[1]
    tested = {"": 1} if kind == "binary" else {name: j for j, name in enumerate(classes)}
    p: dict[tuple[str, str], float] = {}
    for label, j in tested.items():
        if ("auroc", label) in differences:
            values = np.stack([first[:, j], second[:, j]])
            aurocs, covariance = delong(indicator[:, j], values, patient)
            variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
            p["auroc", label] = two_sided_p(float(aurocs[1] - aurocs[0]), float(variance))
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        Difference(
            metric=key[0], label=key[1], difference=metric, p=p.get(key), p_holm=adjusted.get(key)
        )
        for key, metric in differences.items()
    ]


def _bootstrap(
    statistic: Callable[[Floats], Values], groups: NDArray[np.str_]
) -> dict[tuple[str, str], Metric]:
    """Return each value under weights of one, where defined, with its interval over the draws."""
    values = statistic(np.ones((len(groups), 1)))
    chunks = [statistic(drawn) for drawn in draws(groups, DRAWS)]
    metrics = {}
    for key, value in values.items():
        if not np.isnan(value[0]):
            drawn = np.concatenate([chunk[key] for chunk in chunks])
            low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
            metrics[key] = Metric(value=float(value[0]), low=low, high=high)
    return metrics


def draws(groups: NDArray[np.str_], number: int) -> Iterator[Floats]:
    """Yield weights (n, b) until `number` are made: how often each draw took a unit's patient."""
    patients, first, patient = np.unique(groups, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[patient]  # names must not matter, only order
    p, rng = len(patients), np.random.default_rng(SEED)
    at_once = max(1, AT_ONCE // len(groups))
    for start in range(0, number, at_once):
        b = min(at_once, number - start)
        drawn = rng.integers(0, p, (b, p)) + np.arange(b)[:, None] * p
        counts = np.bincount(drawn.ravel(), minlength=b * p).reshape(b, p)
        yield counts.T.astype(np.float64)[place]


def statistics(
    indicator: Bools, proba: Floats, classes: tuple[str, ...], kind: Kind, weights: Floats
) -> Values:
    """Return every metric under each column of weights (n, b).

    What needs a decision takes the likeliest class, or for multi-label 0.5, and is averaged over
    classes or labels. What ranks (auroc, average precision, sensitivity at a specificity of 0.9)
    is of one class against the rest, and their mean; for binary, of the positive alone. brier is
    half the squared distance (binary and multi-label: the plain square); ece is of the positive,
    or for multi-class of the likeliest class. A label whose column is NaN has no model and stays
    out of every mean.
    """
    scored = _scored(proba, kind)
    each = [ranking(indicator[:, j], proba[:, j], weights) for j in scored]
    ranks = {name: np.array([one[i] for one in each]) for i, name in enumerate(RANKING)}
    if kind == "multilabel":
        joint = _by_label(indicator[:, scored], proba[:, scored], weights)
    else:
        joint = _by_class(indicator, proba, classes, weights)
    joint |= {name: mean(values) for name, values in ranks.items()}
    found = {(name, ""): value for name, value in joint.items()}
    if kind != "binary":
        for name, values in ranks.items():
            found |= {(name, classes[j]): v for j, v in zip(scored, values, strict=True)}
    return found


def _scored(proba: Floats, kind: Kind) -> list[int]:
    """Return which columns are ranked: those with a model, or the positive of two."""
    modelled: list[int] = np.flatnonzero(~np.isnan(proba).any(axis=0)).tolist()
    return [1] if kind == "binary" else modelled


def _by_class(indicator: Bools, proba: Floats, classes: tuple[str, ...], weights: Floats) -> Joint:
    c, total = len(classes), weights.sum(axis=0)
    sums = forms(indicator, proba, proba.argmax(axis=1)) @ weights
    joint = decisions(sums, total, c)
    if c > 2 and all(map(_is_number, classes)):
        joint["quadratic_kappa"] = quadratic_kappa(sums[: c * c].reshape(c, c, -1))
    return joint


def _by_label(indicator: Bools, proba: Floats, weights: Floats) -> Joint:
    """Return the means over labels, each of which is a matter of two classes."""
    total, labels = weights.sum(axis=0), []
    for j in range(proba.shape[1]):
        truth, sure = indicator[:, j], proba[:, j]
        two = np.stack([~truth, truth], axis=1), np.stack([1 - sure, sure], axis=1)
        labels.append(forms(*two, (sure >= 0.5).astype(np.int64)))
    if not labels:
        return {}
    sums = (np.concatenate(labels) @ weights).reshape(len(labels), len(labels[0]), -1)
    own = [decisions(each, total, 2) for each in sums]
    return {name: mean(np.array([one[name] for one in own])) for name in own[0]}


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def macro_auroc(indicator: Bools, proba: Floats, kind: Kind) -> float:
    """Return the mean AUROC over the classes that have both sides; NaN if none has."""
    each = [[auroc(indicator[:, j], proba[:, j])] for j in _scored(proba, kind)]
    return float(mean(np.array(each))[0]) if each else float("nan")


def one_sided(indicator: Bools, classes: tuple[str, ...]) -> list[str]:
    """Return the classes that all units carry, or none does: nothing can be ranked by them."""
    carried = indicator.mean(axis=0)
    return [name for name, share in zip(classes, carried, strict=True) if share in (0.0, 1.0)]
