"""Metrics from probabilities, with 95 % intervals by a bootstrap over patients.

Every metric is computed with weights: ones give the value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.tasks import Kind
from pipeline.evaluation.metrics.null import permuted_aurocs
from pipeline.evaluation.metrics.paired import delong, holm, two_sided_p
from pipeline.evaluation.metrics.weighted import (
    SPECIFICITY,
    auroc,
    bins_of,
    confidence,
    decisions,
    f1_by_class,
    forms,
    mean,
    quadratic_kappa,
    ranking,
    ratio,
    regression,
)
from pipeline.results import Bin, Difference, Metric

DRAWS = 2000
INFLATED = ("ece",)
BIASED = ("average_precision", "average_precision_micro")
# Metrics that every unit counts in alike; in the others the rarer side of a label weighs most.
EVEN = ("accuracy", "brier", "ece", "mcc", "f1_micro", "auroc_micro", "average_precision_micro")
SEED = 0
# weights at once: 32 MB
AT_ONCE = 2**22
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Folds = NDArray[np.int64]
# (metric, class or label name; "" for all together) -> (b,) values, NaN where undefined
Values = dict[tuple[str, str], Floats]
Joint = dict[str, Floats]
RANKING = ("auroc", "average_precision", f"sensitivity_at_specificity_{SPECIFICITY}")


def score(
    truth: Truth, proba: Floats, fold: Folds | None = None, permutations: int = 0
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all, and by class or label, each with its 95 % interval.

    proba (n, c): of the units of `truth`; fold (n,): the model that scored each, where there are
    several: a metric is then its mean over folds, since scores of two models do not compare. The
    interval is of percentiles over 2,000 seeded draws of patients with replacement: the 2.5th to
    97.5th for very many patients, wider ones for few (`outermost`), on the rarer side of a label
    where a metric has sides; one patient has none. A draw without both sides of a label counts for
    the others only. ece is above the truth where bins hold few units, and average precision where
    few units are positive; their intervals are corrected for that, and may lie below them. With
    permutations, each AUROC has its p. A metric that the units leave undefined (a label of one
    value) is not there.
    """
    overall: dict[str, Metric] = {}
    by_label: dict[str, dict[str, Metric]] = {}
    of = truth.groups, proba.shape[1]
    values = partial(_over_folds, truth, proba, fold)
    found = bootstrap(values, *of, inflated=INFLATED, biased=BIASED, few=fewest(truth))
    p = _null_p(truth, proba, fold, permutations) if permutations else {}
    for (name, label), metric in found.items():
        if name == "auroc" and label in p:
            metric = metric.model_copy(update={"p": p[label]})
        into = by_label.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, by_label


def _null_p(truth: Truth, proba: Floats, fold: Folds | None, number: int) -> dict[str, float]:
    """Return for each label, and "" for their mean, the p of its AUROC among permuted ones."""
    if truth.kind == "regression":
        return {}
    patient = truth.patient
    fold = np.zeros(len(patient), np.int64) if fold is None else fold
    indicator, known = truth.indicator, truth.known
    nulls: dict[str, Floats] = {}
    for j in _scored(proba, truth.kind):
        of_folds = []
        for i in np.unique(fold):
            on = known[:, j] & (fold == i)
            positive, values = indicator[on, j], proba[on, j]
            if positive.any() and not positive.all():
                null = permuted_aurocs(positive, values, patient[on], number)
                of_folds.append(np.append(null, auroc(positive, values)))
        if of_folds:
            nulls[truth.classes[j]] = np.mean(of_folds, axis=0)
    if not nulls:
        return {}
    nulls[""] = np.mean(list(nulls.values()), axis=0)
    return {label: float((null >= null[-1] - 1e-12).mean()) for label, null in nulls.items()}


def reliability(truth: Truth, proba: Floats) -> dict[str, tuple[Bin, ...]]:
    """Return the reliability curve of each label, or of the classes together under ""."""
    indicator, known = truth.indicator, truth.known
    if truth.kind != "multilabel":
        return {"": _curve(*confidence(indicator, proba, proba.argmax(axis=1)))}
    return {
        truth.classes[j]: _curve(proba[known[:, j], j], indicator[known[:, j], j])
        for j in _scored(proba, truth.kind)
    }


def _curve(sure: Floats, right: Bools) -> tuple[Bin, ...]:
    bins = bins_of(sure)
    each = [bins == i for i in np.unique(bins)]
    return tuple(
        Bin(predicted=sure[b].mean(), observed=right[b].mean(), units=int(b.sum())) for b in each
    )


def _over_folds(truth: Truth, proba: Floats, fold: Folds | None, weights: Floats) -> Values:
    """Return the mean of each metric over the folds that define it."""
    if fold is None:
        return statistics(truth, proba, weights)
    masks = [fold == i for i in np.unique(fold)]
    each = [statistics(truth.at(mask), proba[mask], weights[mask]) for mask in masks]
    keys = dict.fromkeys(key for values in each for key in values)
    return {key: mean(np.array([v[key] for v in each if key in v])) for key in keys}


def compare(
    truth: Truth, first: Floats, second: Floats, fold: Folds | None = None
) -> list[Difference]:
    """Return what `second` scores above `first` (n, c) on the same units, metric by metric.

    p, by DeLong's test, is of an AUROC of one model: not of a mean over folds.
    """

    def less(weights: Floats) -> Values:
        one, two = (_over_folds(truth, p, fold, weights) for p in (first, second))
        return {key: two[key] - one[key] for key in two if key in one}

    differences = bootstrap(less, truth.groups, first.shape[1], few=fewest(truth))
    p = {} if fold is not None else _delong_p(truth, first, second, differences)
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        Difference(
            metric=key[0], label=key[1], difference=metric, p=p.get(key), p_holm=adjusted.get(key)
        )
        for key, metric in differences.items()
    ]


def _delong_p(
    truth: Truth, first: Floats, second: Floats, defined: Container[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Return DeLong's p of each AUROC of two sides, where it has one."""
    patient = truth.patient
    tested = {"": 1} if truth.kind == "binary" else {n: j for j, n in enumerate(truth.classes)}
    p: dict[tuple[str, str], float] = {}
    for label, j in tested.items():
        if ("auroc", label) in defined:
            known = truth.known[:, j]
            values = np.stack([first[known, j], second[known, j]])
            aurocs, covariance = delong(truth.indicator[known, j], values, patient[known])
            variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
            own = two_sided_p(float(aurocs[1] - aurocs[0]), float(variance))
            if own is not None:
                p["auroc", label] = own
    return p


def bootstrap(
    statistic: Callable[[Floats], Values],
    groups: NDArray[np.str_],
    c: int,
    inflated: Container[str] = (),
    biased: Container[str] = (),
    fits: NDArray[np.int64] | None = None,
    few: Mapping[str, float] | None = None,
) -> dict[tuple[str, str], Metric]:
    """Return each value under weights of one, where defined, with its interval over the draws.

    fits (n,): which of several fits, each of other training patients, scored a unit; the interval
    is then also of other fits. Of a metric that is `biased`, chance adds to the value, and as much
    once more to the draws, whose percentiles are lowered by both (Efron and Tibshirani 1993, ch.
    10). Of one that is `inflated`, a sum of absolute deviations, it adds to the squares. few:
    how many patients a label's metrics hang on, as `fewest` says; without, very many.
    """
    values = statistic(np.ones((len(groups), 1)))
    chunks = [statistic(drawn) for drawn in draws(groups, DRAWS, c, fits)]
    metrics, everyone = {}, float(len(np.unique(groups)))
    for key, value in values.items():
        if not np.isnan(value[0]):
            drawn = np.concatenate([chunk[key] for chunk in chunks])
            least = 2.5
            if few is not None:
                patients = everyone if key[0] in EVEN else few.get(key[1], everyone)
                if patients <= 1:  # one says nothing of others, and every draw of one is the same
                    metrics[key] = Metric(value=float(value[0]))
                    continue
                least = outermost(patients)
            low, high = np.nanpercentile(drawn, [least, 100 - least]).tolist()
            if key[0] in inflated:
                above = 2 * (float(np.nanmean(drawn**2)) - float(value[0]) ** 2)
                low, high = (max(0.0, side**2 - above) ** 0.5 for side in (low, high))
            elif key[0] in biased:
                above = 2 * (float(np.nanmean(drawn)) - float(value[0]))
                low, high = (min(1.0, max(0.0, side - above)) for side in (low, high))
            metrics[key] = Metric(value=float(value[0]), low=low, high=high)
    return metrics


def fewest(truth: Truth) -> dict[str, float]:
    """Return how many patients stand on the rarer side of each class or label that has two.

    Under "" for all together: their harmonic mean, since the variance of a mean over labels is a
    mean of theirs, and each in proportion to one over its number. Of a number nothing is rare.
    """
    if truth.kind == "regression":
        return {}
    sides = {}
    for j, name in enumerate(truth.classes):
        carried, known = truth.indicator[:, j], truth.known[:, j]
        both = (truth.groups[known & (carried == side)] for side in (True, False))
        sides[name] = float(min(len(np.unique(side)) for side in both))
    found = {name: number for name, number in sides.items() if number}
    return found | {"": len(found) / sum(1 / number for number in found.values())} if found else {}


def outermost(patients: float) -> float:
    """Return the lowest percentile of the draws that an interval of so many patients takes in.

    A bootstrap of few is too narrow, by the root of (n - 1) / n and by the normal's tail in the
    place of Student's, which this gives back (Hesterberg, Am. Stat. 69(4), 2015, sec. 5.3).
    patients: more than one.
    """
    from scipy.special import ndtr, stdtrit

    return 100 * float(ndtr(-stdtrit(patients - 1, 0.975) * (patients / (patients - 1)) ** 0.5))


def draws(
    groups: NDArray[np.str_], number: int, c: int = 1, fits: NDArray[np.int64] | None = None
) -> Iterator[Floats]:
    """Yield weights (n, b) until `number` are made: how often each draw took a unit's patient.

    With fits (n,), times how often it took the unit's fit: the pigeonhole bootstrap of Owen
    (arXiv 0712.1111). Fewer at once for more classes c, whose weights the micro averages hold side
    by side.
    """
    rng = np.random.default_rng(SEED)
    at_once = max(1, AT_ONCE // (len(groups) * c))
    for start in range(0, number, at_once):
        b = min(at_once, number - start)
        weights = _taken(groups, b, rng)
        yield weights if fits is None else weights * _taken(fits, b, rng)


def _taken(labels: NDArray[Any], b: int, rng: np.random.Generator) -> Floats:
    """Return (n, b): how often each of b draws with replacement took each unit's label."""
    found, first, of = np.unique(labels, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[of]  # names must not matter, only order
    p = len(found)
    drawn = rng.integers(0, p, (b, p)) + np.arange(b)[:, None] * p
    counts = np.bincount(drawn.ravel(), minlength=b * p).reshape(b, p)
    return counts.T.astype(np.float64)[place]


def statistics(truth: Truth, proba: Floats, weights: Floats) -> Values:
    """Return every metric under each column of weights (n, b).

    What needs a decision takes the likeliest class, the first of equals, or for multi-label what is
    above 0.5 (so 0.5 itself is a no in both), and is averaged over classes or labels; the f1 of two
    classes, and so of a label, is the positive's. What ranks (auroc, average precision, sensitivity
    at a specificity of 0.9) is of one class against the rest, and their mean; for binary, of the
    positive alone; `_micro` ranks all (unit, class) pairs together. brier is half the squared
    distance (binary and multi-label: the plain square); ece is of the positive, or for multi-class
    of the likeliest class. A label that is not known of a unit leaves the unit out for that label;
    one whose column is NaN has no model and stays out of every mean, and one that all units carry,
    or none, has nothing said of it alone.
    """
    if truth.kind == "regression":
        found = regression(truth.y, proba[:, 0], weights)
        return {(name, ""): value for name, value in found.items()}
    indicator, known, scored = truth.indicator, truth.known, _scored(proba, truth.kind)
    each = []
    for j in scored:
        on = slice(None) if known[:, j].all() else known[:, j]
        each.append(ranking(indicator[on, j], proba[on, j], weights[on]))
    ranks = {name: np.array([one[i] for one in each]) for i, name in enumerate(RANKING)}
    if truth.kind == "multilabel":
        some = indicator[:, scored], known[:, scored], proba[:, scored]
        joint, own = _by_label(*some, weights)
    else:
        joint, own = _by_class(indicator, proba, truth.classes, weights)
    joint |= {name: mean(values) for name, values in ranks.items()}
    if truth.kind != "binary" and scored:
        row, place = np.nonzero(known[:, scored])
        column = np.array(scored)[place]
        micro = ranking(indicator[row, column], proba[row, column], weights[row])
        joint |= {f"{name}_micro": value for name, value in zip(RANKING[:2], micro, strict=False)}
    values = {(name, ""): value for name, value in joint.items()}
    if truth.kind != "binary":
        two_sided = [j for j in scored if truth.classes[j] not in one_sided(truth)]
        for name, of in (ranks | own).items():
            by_label = dict(zip(scored, of, strict=True))
            values |= {(name, truth.classes[j]): by_label[j] for j in two_sided}
    return values


def _scored(proba: Floats, kind: Kind) -> list[int]:
    """Return which columns are ranked: those with a model, or the positive of two."""
    modelled: list[int] = np.flatnonzero(~np.isnan(proba).any(axis=0)).tolist()
    return [1] if kind == "binary" else modelled


def _by_class(
    indicator: Bools, proba: Floats, classes: tuple[str, ...], weights: Floats
) -> tuple[Joint, Joint]:
    """Return what is of all classes, and (c, b) what is of each."""
    c = len(classes)
    sums = forms(indicator, proba, proba.argmax(axis=1)) @ weights
    joint, table = decisions(sums, c), sums[: c * c].reshape(c, c, -1)
    if c > 2 and all(map(_is_number, classes)):
        joint["quadratic_kappa"] = quadratic_kappa(table)
    return joint, {"f1": f1_by_class(table)}


def _by_label(
    indicator: Bools, known: Bools, proba: Floats, weights: Floats
) -> tuple[Joint, Joint]:
    """Return the means over labels, and (c, b) of each label, a matter of two classes."""
    labels = []
    for j in range(proba.shape[1]):
        positive, sure = indicator[:, j], proba[:, j]
        two = np.stack([~positive, positive], axis=1), np.stack([1 - sure, sure], axis=1)
        labels.append(forms(*two, (sure > 0.5).astype(np.int64)) * known[:, j])
    if not labels:
        return {}, {}
    sums = (np.concatenate(labels) @ weights).reshape(len(labels), len(labels[0]), -1)
    each = [decisions(one, 2) for one in sums]
    own = {name: np.array([one[name] for one in each]) for name in each[0]}
    wrong, right = sums[:, 1:3].sum(axis=(0, 1)), sums[:, 3].sum(axis=0)
    joint = {name: mean(values) for name, values in own.items()}
    return joint | {"f1_micro": ratio(2 * right, 2 * right + wrong)}, own


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def macro_auroc(truth: Truth, proba: Floats) -> float:
    """Return the mean AUROC over the classes that have both sides; NaN if none has."""
    indicator, known = truth.indicator, truth.known
    each = [
        [auroc(indicator[known[:, j], j], proba[known[:, j], j])]
        for j in _scored(proba, truth.kind)
    ]
    return float(mean(np.array(each))[0]) if each else float("nan")


def one_sided(truth: Truth) -> list[str]:
    """Return the classes that all units carry, or none does: nothing can be ranked by them."""
    if truth.kind == "regression":
        return []
    carried, absent = truth.indicator, truth.known & ~truth.indicator
    return [
        name
        for j, name in enumerate(truth.classes)
        if not (carried[:, j].any() and absent[:, j].any())
    ]
