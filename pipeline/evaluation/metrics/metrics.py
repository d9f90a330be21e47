"""Metrics from probabilities, with 95 % intervals by a bootstrap over patients.

Every metric is computed with weights: ones give the value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients, s scored columns.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.null import permuted_aurocs
from pipeline.evaluation.metrics.paired import delong, holm, two_sided_p
from pipeline.evaluation.metrics.weighted import (
    SPECIFICITY,
    RankMetrics,
    auroc,
    bins_of,
    confidence,
    confusion_table,
    decision_metrics,
    decision_terms,
    f1_by_class,
    mean,
    quadratic_kappa,
    rank_metrics,
    ratio,
    regression,
)
from pipeline.results import Bin, Difference, Metric

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]
# (metric, class or label name; "" for all together)
Key = tuple[str, str]
# (b,) values by key, NaN where undefined
Values = dict[Key, Floats]
# (b,) values, or (s, b) of each scored class or label, by the name of the metric
ByMetric = dict[str, Floats]
# Computes every value under the columns of weights (n, b).
Statistic = Callable[[Floats], Values]

RANKING = (
    "auroc",
    "average_precision",
    f"sensitivity_at_specificity_{SPECIFICITY}",
)
# Permuted labels count towards p where they do as well as the true ones, but for rounding.
ROUNDING = 1e-12


# --- scores --------------------------------------------------------------------------------


def score(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None = None,
    permutations: int = 0,
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all, and by class or label, each with its 95 % interval.

    proba (n, c): of the units of `truth`; fold (n,): the model that scored each, where there are
    several: a metric is then its mean over folds, since scores of two models do not compare. The
    interval is of percentiles over 2,000 seeded draws of patients with replacement: the 2.5th to
    97.5th for very many patients, wider ones for few (`lowest_percentile`), on the rarer side of a
    label where a metric has sides; one patient has none. A draw without both sides of a label
    counts for the others only. ece is above the truth where bins hold few units, and average
    precision where few units are positive; their intervals are corrected for that, and may lie
    below them. With permutations, each AUROC has its p. A metric that the units leave undefined (a
    label of one value) is not there.
    """

    def values(weights: Floats) -> Values:
        return _mean_over_folds(truth, proba, fold, weights)

    metrics = bootstrap(
        values,
        truth.groups,
        proba.shape[1],
        corrections=CORRECTIONS,
        rarest=patients_on_rarer_side(truth),
    )
    p = _permutation_p(truth, proba, fold, permutations) if permutations else {}
    overall: dict[str, Metric] = {}
    by_label: dict[str, dict[str, Metric]] = {}
    for (name, label), metric in metrics.items():
        if name == "auroc" and label in p:
            metric = metric.model_copy(update={"p": p[label]})
        into = by_label.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, by_label


def _mean_over_folds(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None,
    weights: Floats,
) -> Values:
    """Return the mean of each metric over the folds that define it."""
    if fold is None:
        return all_metrics(truth, proba, weights)
    of_folds: dict[Key, list[Floats]] = {}
    for i in np.unique(fold):
        on = fold == i
        values = all_metrics(truth.at(on), proba[on], weights[on])
        for key, value in values.items():
            of_folds.setdefault(key, []).append(value)
    return {key: mean(np.array(values)) for key, values in of_folds.items()}


def _permutation_p(
    truth: Truth,
    proba: Floats,
    fold: Numbers | None,
    number: int,
) -> dict[str, float]:
    """Return for each label, and "" for their mean, the p of its AUROC among permuted ones."""
    if truth.kind == "regression":
        return {}
    fold = np.zeros(len(proba), np.int64) if fold is None else fold
    patient = truth.patient
    aurocs: dict[str, Floats] = {}
    for column in _columns(truth, proba):
        of_label = _permuted_and_true(column, patient, fold, number)
        if of_label is not None:
            aurocs[column.name] = of_label
    if not aurocs:
        return {}
    # Draw i permutes the patients of all labels alike, so that draws average one by one.
    aurocs[""] = np.mean(list(aurocs.values()), axis=0)
    return {label: _share_as_great(values) for label, values in aurocs.items()}


def _permuted_and_true(
    column: _Column,
    patient: Numbers,
    fold: Numbers,
    number: int,
) -> Floats | None:
    """Return (number + 1,) AUROCs of a label, the mean over folds; the last is the true one.

    None where no fold has both sides.
    """
    of_folds = []
    for i in np.unique(fold):
        on = column.known & (fold == i)
        positive = column.positive[on]
        values = column.proba[on]
        if positive.any() and not positive.all():
            permuted = permuted_aurocs(positive, values, patient[on], number)
            of_folds.append(np.append(permuted, auroc(positive, values)))
    return np.mean(of_folds, axis=0) if of_folds else None


def _share_as_great(aurocs: Floats) -> float:
    """Return the share of AUROCs that are at least the last one, itself included."""
    return float((aurocs >= aurocs[-1] - ROUNDING).mean())


def macro_auroc(truth: Truth, proba: Floats) -> float:
    """Return the mean AUROC over the classes that have both sides; NaN if none has."""
    aurocs = []
    for column in _columns(truth, proba):
        on = column.known
        aurocs.append(auroc(column.positive[on], column.proba[on]))
    if not aurocs:
        return float("nan")
    return float(mean(np.array(aurocs)[:, None])[0])


def one_sided(truth: Truth) -> list[str]:
    """Return the classes that all units carry, or none does: nothing can be ranked by them."""
    if truth.kind == "regression":
        return []
    is_carried = truth.indicator.any(axis=0)
    is_lacked = (truth.known & ~truth.indicator).any(axis=0)
    has_both = np.logical_and(is_carried, is_lacked).tolist()
    return [name for name, both in zip(truth.classes, has_both, strict=True) if not both]


@dataclass(frozen=True)
class _Column:
    """One class or label of n units: which carry it, of which that is known, how likely it is."""

    name: str
    positive: Bools
    known: Bools
    proba: Floats


def _columns(truth: Truth, proba: Floats) -> list[_Column]:
    """Return the columns that are scored: those with a model, or the positive of two."""
    indicator = truth.indicator
    known = truth.known
    has_model = ~np.isnan(proba).any(axis=0)
    scored = [1] if truth.kind == "binary" else np.flatnonzero(has_model).tolist()
    return [
        _Column(
            truth.classes[j],
            indicator[:, j],
            known[:, j],
            proba[:, j],
        )
        for j in scored
    ]


# --- reliability ---------------------------------------------------------------------------


def reliability(truth: Truth, proba: Floats) -> dict[str, tuple[Bin, ...]]:
    """Return the reliability curve of each label, or of the classes together under ""."""
    if truth.kind != "multilabel":
        sure, right = confidence(truth.indicator, proba, proba.argmax(axis=1))
        return {"": _reliability_curve(sure, right)}
    curves = {}
    for column in _columns(truth, proba):
        on = column.known
        curves[column.name] = _reliability_curve(column.proba[on], column.positive[on])
    return curves


def _reliability_curve(sure: Floats, right: Bools) -> tuple[Bin, ...]:
    """Return the bins that hold units; sure (n,): probabilities, right (n,): what came true."""
    bins = bins_of(sure)
    curve = []
    for i in np.unique(bins):
        on = bins == i
        curve.append(
            Bin(
                predicted=sure[on].mean(),
                observed=right[on].mean(),
                units=int(on.sum()),
            )
        )
    return tuple(curve)


# --- two models ----------------------------------------------------------------------------


def compare(
    truth: Truth,
    first: Floats,
    second: Floats,
    fold: Numbers | None = None,
) -> list[Difference]:
    """Return what `second` scores above `first` (n, c) on the same units, metric by metric.

    p, by DeLong's test, is of an AUROC of one model: not of a mean over folds.
    """

    def difference(weights: Floats) -> Values:
        less = _mean_over_folds(truth, first, fold, weights)
        more = _mean_over_folds(truth, second, fold, weights)
        return {key: more[key] - less[key] for key in more if key in less}

    differences = bootstrap(
        difference,
        truth.groups,
        first.shape[1],
        rarest=patients_on_rarer_side(truth),
    )
    p = _delong_p(truth, first, second, differences) if fold is None else {}
    p_holm = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        Difference(
            metric=name,
            label=label,
            difference=metric,
            p=p.get((name, label)),
            p_holm=p_holm.get((name, label)),
        )
        for (name, label), metric in differences.items()
    ]


def _delong_p(
    truth: Truth,
    first: Floats,
    second: Floats,
    defined: Container[Key],
) -> dict[Key, float]:
    """Return DeLong's p of each AUROC of two sides, where it has one."""
    patient = truth.patient
    of_first = {column.name: column for column in _columns(truth, first)}
    p: dict[Key, float] = {}
    for column in _columns(truth, second):
        key = ("auroc", "" if truth.kind == "binary" else column.name)
        if key in defined:
            of_label = _delong_p_of(of_first[column.name], column, patient)
            if of_label is not None:
                p[key] = of_label
    return p


def _delong_p_of(
    first: _Column,
    second: _Column,
    patient: Numbers,
) -> float | None:
    """Return DeLong's p of one class or label; None where its variance is not known."""
    known = first.known
    aurocs, covariance = delong(
        first.positive[known],
        np.stack([first.proba[known], second.proba[known]]),
        patient[known],
    )
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return two_sided_p(float(aurocs[1] - aurocs[0]), float(variance))


# --- bootstrap -----------------------------------------------------------------------------

DRAWS = 2000
SEED = 0
# Weights at once: 32 MB.
AT_ONCE = 2**22
# What chance adds to a metric, which its interval is corrected for. `bias`: chance adds to the
# value, and as much once more to the draws, whose percentiles are lowered by both (Efron and
# Tibshirani 1993, ch. 10). `inflation`: of a sum of absolute deviations it adds to the squares.
Correction = Literal["bias", "inflation"]
CORRECTIONS: dict[str, Correction] = {
    "ece": "inflation",
    "average_precision": "bias",
    "average_precision_micro": "bias",
}
# Metrics that every unit counts in alike; in the others the rarer side of a label weighs most.
EVEN = (
    "accuracy",
    "brier",
    "ece",
    "mcc",
    "f1_micro",
    "auroc_micro",
    "average_precision_micro",
)


def bootstrap(
    statistic: Statistic,
    groups: NDArray[np.str_],
    c: int,
    *,
    corrections: Mapping[str, Correction] | None = None,
    fits: Numbers | None = None,
    rarest: Mapping[str, float] | None = None,
) -> dict[Key, Metric]:
    """Return each value under weights of one, where defined, with its interval over the draws.

    groups (n,): patients, who are drawn; c: classes, as `draws` has them. corrections: by metric.
    fits (n,): which of several fits, each of other training patients, scored a unit; the interval
    is then also of other fits. rarest: how many patients a label's metrics hang on, as
    `patients_on_rarer_side` says; without, very many.
    """
    once = np.ones((len(groups), 1))
    values = statistic(once)
    chunks = [statistic(weights) for weights in draws(groups, DRAWS, c, fits)]
    everyone = float(len(np.unique(groups)))
    metrics = {}
    for key, value in values.items():
        if np.isnan(value[0]):
            continue
        patients = _hangs_on(key, rarest, everyone)
        drawn = np.concatenate([chunk[key] for chunk in chunks])
        correction = (corrections or {}).get(key[0])
        metrics[key] = _with_interval(float(value[0]), drawn, patients, correction)
    return metrics


def _hangs_on(
    key: Key,
    rarest: Mapping[str, float] | None,
    everyone: float,
) -> float:
    """Return how many patients a metric hangs on; infinity where that is not asked for."""
    if rarest is None:
        return np.inf
    name, label = key
    return everyone if name in EVEN else rarest.get(label, everyone)


def _with_interval(
    value: float,
    drawn: Floats,
    patients: float,
    correction: Correction | None,
) -> Metric:
    """Return a value with its interval over drawn (b,) ones; NaN draws are left out."""
    if patients <= 1:  # one says nothing of others, and every draw of one is the same
        return Metric(value=value)
    lowest = lowest_percentile(patients)
    low, high = np.nanpercentile(drawn, [lowest, 100 - lowest]).tolist()
    match correction:
        case "inflation":
            excess = 2 * (float(np.nanmean(drawn**2)) - value**2)
            low = max(0.0, low**2 - excess) ** 0.5
            high = max(0.0, high**2 - excess) ** 0.5
        case "bias":
            excess = 2 * (float(np.nanmean(drawn)) - value)
            low = min(1.0, max(0.0, low - excess))
            high = min(1.0, max(0.0, high - excess))
    return Metric(value=value, low=low, high=high)


def patients_on_rarer_side(truth: Truth) -> dict[str, float]:
    """Return how many patients stand on the rarer side of each class or label that has two.

    Under "" for all together: their harmonic mean, since the variance of a mean over labels is a
    mean of theirs, and each in proportion to one over its number. Of a number nothing is rare.
    """
    if truth.kind == "regression":
        return {}
    indicator = truth.indicator
    known = truth.known
    patients: dict[str, float] = {}
    for j, name in enumerate(truth.classes):
        with_it = np.unique(truth.groups[known[:, j] & indicator[:, j]])
        without = np.unique(truth.groups[known[:, j] & ~indicator[:, j]])
        rarer = float(min(len(with_it), len(without)))
        if rarer:
            patients[name] = rarer
    if patients:
        patients[""] = len(patients) / sum(1 / number for number in patients.values())
    return patients


def lowest_percentile(patients: float) -> float:
    """Return the lowest percentile of the draws that an interval of so many patients takes in.

    A bootstrap of few is too narrow, by the root of (n - 1) / n and by the normal's tail in the
    place of Student's, which this gives back (Hesterberg, Am. Stat. 69(4), 2015, sec. 5.3).
    patients: more than one.
    """
    from scipy.special import ndtr, stdtrit

    if np.isinf(patients):
        return 2.5
    widened = stdtrit(patients - 1, 0.975) * (patients / (patients - 1)) ** 0.5
    return 100 * float(ndtr(-widened))


def draws(
    groups: NDArray[np.str_],
    number: int,
    c: int = 1,
    fits: Numbers | None = None,
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
        weights = _times_drawn(groups, b, rng)
        if fits is not None:
            weights = weights * _times_drawn(fits, b, rng)
        yield weights


def _times_drawn(
    labels: NDArray[Any],
    b: int,
    rng: np.random.Generator,
) -> Floats:
    """Return (n, b): how often each of b draws with replacement took each unit's label."""
    names, first, which = np.unique(labels, return_index=True, return_inverse=True)
    # Labels are numbered as they first occur: their order must matter, never their names.
    number = np.argsort(np.argsort(first))[which]
    p = len(names)
    drawn = rng.integers(0, p, (b, p))
    # One count of all draws together: those of draw i are counted from i * p on.
    apart = drawn + np.arange(b)[:, None] * p
    counts = np.bincount(apart.ravel(), minlength=b * p).reshape(b, p)
    return counts.T.astype(np.float64)[number]


# --- every metric under weights --------------------------------------------------------------


def all_metrics(
    truth: Truth,
    proba: Floats,
    weights: Floats,
) -> Values:
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
        return _for_all(regression(truth.y, proba[:, 0], weights))
    columns = _columns(truth, proba)
    ranks = _ranks_by_label(columns, weights)
    if truth.kind == "multilabel":
        joint, by_label = _decisions_on_labels(columns, weights)
    else:
        joint, by_label = _decisions_on_classes(truth, proba, weights)
    for name, values in ranks.items():
        joint[name] = mean(values)
    if truth.kind == "binary":
        return _for_all(joint)
    joint |= _micro_ranks(columns, weights)
    return _for_all(joint) | _for_each(columns, ranks | by_label)


def _for_all(joint: ByMetric) -> Values:
    return {(name, ""): values for name, values in joint.items()}


def _for_each(columns: list[_Column], by_label: ByMetric) -> Values:
    """Return the values (s, b) of each scored class or label that has two sides, by its name."""
    has_two_sides = [_has_two_sides(column) for column in columns]
    values: Values = {}
    for metric, of_labels in by_label.items():
        for i, of_label in enumerate(of_labels):
            if has_two_sides[i]:
                values[metric, columns[i].name] = of_label
    return values


def _has_two_sides(column: _Column) -> bool:
    """Return whether some units are known to carry a label, and others to lack it."""
    lacked = column.known & ~column.positive
    return bool(column.positive.any() and lacked.any())


def _ranks_by_label(columns: list[_Column], weights: Floats) -> ByMetric:
    """Return what ranks, (s, b) of each scored class or label against the rest."""
    each: list[RankMetrics] = []
    for column in columns:
        # A slice, where it can be, saves a copy of the weights.
        on = slice(None) if column.known.all() else column.known
        each.append(rank_metrics(column.positive[on], column.proba[on], weights[on]))
    by_metric = zip(*each, strict=True)
    return {name: np.stack(of_labels) for name, of_labels in zip(RANKING, by_metric, strict=False)}


def _micro_ranks(columns: list[_Column], weights: Floats) -> ByMetric:
    """Return what ranks all (unit, class) pairs that are known together, unit by unit."""
    if not columns:
        return {}
    known = np.stack([column.known for column in columns], axis=1)
    positive = np.stack([column.positive for column in columns], axis=1)
    proba = np.stack([column.proba for column in columns], axis=1)
    unit, _ = np.nonzero(known)
    ranks = rank_metrics(positive[known], proba[known], weights[unit])
    return {
        "auroc_micro": ranks.auroc,
        "average_precision_micro": ranks.average_precision,
    }


def _decisions_on_classes(
    truth: Truth,
    proba: Floats,
    weights: Floats,
) -> tuple[ByMetric, ByMetric]:
    """Return what is of all classes, and (c, b) what is of each."""
    c = len(truth.classes)
    terms = decision_terms(truth.indicator, proba, proba.argmax(axis=1))
    sums = terms @ weights
    joint = decision_metrics(sums, c)
    table = confusion_table(sums, c)
    if c > 2 and all(map(_is_number, truth.classes)):
        joint["quadratic_kappa"] = quadratic_kappa(table)
    return joint, {"f1": f1_by_class(table)}


def _decisions_on_labels(
    columns: list[_Column],
    weights: Floats,
) -> tuple[ByMetric, ByMetric]:
    """Return the means over labels, and (s, b) of each label, a matter of two classes."""
    if not columns:
        return {}, {}
    terms = [_terms_of_label(column) for column in columns]
    # The labels' terms below each other: one product with the weights serves all of them.
    sums = np.concatenate(terms) @ weights
    sums = sums.reshape(len(terms), len(terms[0]), -1)
    each = [decision_metrics(of_label, 2) for of_label in sums]
    by_label = {}
    for name in each[0]:
        by_label[name] = np.stack([metrics[name] for metrics in each])
    joint = {name: mean(values) for name, values in by_label.items()}
    joint["f1_micro"] = _micro_f1(sums)
    return joint, by_label


def _terms_of_label(column: _Column) -> Floats:
    """Return the `decision_terms` of a label as two classes, nil for units it is not known of."""
    terms = decision_terms(
        np.stack([~column.positive, column.positive], axis=1),
        np.stack([1 - column.proba, column.proba], axis=1),
        (column.proba > 0.5).astype(np.int64),
    )
    return terms * column.known


def _micro_f1(sums: Floats) -> Floats:
    """Return the F1 of all (unit, label) pairs, from the sums (s, r, b) of each label's terms."""
    # The first four terms are a table of two classes: true and decided 0 0, 0 1, 1 0, 1 1.
    wrong = sums[:, 1:3].sum(axis=(0, 1))
    right = sums[:, 3].sum(axis=0)
    return ratio(2 * right, 2 * right + wrong)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
