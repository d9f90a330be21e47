"""95 % intervals of metrics by a bootstrap over patients.

A metric is computed with weights: ones give its value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.tasks import CLASS_KINDS
from pipeline.results import Metric
from pipeline.shared.arrays import numbers_of

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
# (metric, class or label name; "" for all together)
Key = tuple[str, str]
# (b,) values by key, NaN where undefined
Values = dict[Key, Floats]
# Computes every value under the columns of weights (n, b).
Statistic = Callable[[Floats], Values]

DRAWS = 2000
SEED = 0
# Weights at once: 32 MB.
AT_ONCE = 2**22
# What chance adds to a metric, which its interval is corrected for. `bias`: chance adds to the
# value, and as much once more to the draws, whose percentiles are lowered by both (Efron and
# Tibshirani 1993, ch. 10). `inflation`: of a sum of absolute deviations it adds to the squares.
Correction = Literal["bias", "inflation"]
# Where a mean over patients has a symmetric interval: a share as its logit, what is positive and
# skewed as its logarithm, a difference as it is.
Scale = Literal["logit", "log", "plain"]
# Standard errors that 95 % of a normal lie within.
NORMAL_REACH = 1.959964
# Patients who are wrong, or right, of whom a bootstrap tells too little where they are fewer.
FEW_WRONG = 5
# What is a share of the patients of one side, or of those called so.
OF_ONE_SIDE = ("sensitivity", "specificity", "ppv", "npv")
# What a few patients on one side can make wrong, however many stand on the other.
OF_RARER_SIDE = ("f1", "mcc", "auroc", "average_precision")
# Whom a model calls moves with how common the label is among its training patients, which folds
# share: with it moves what counts the calls of one side.
MOVED_BY_CALLS = ("sensitivity", "specificity", "f1", "f1_micro")
# How far on the logit scale an interval reaches at most: exp of more is no number.
MOST_LOGIT = 50.0
# Draws that differ by less, relative to their size, agree: sums in another order.
ROUNDING = 1e-9
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


@dataclass(frozen=True)
class IntervalRules:
    """What an interval takes into account beside the draws of patients.

    corrections: by metric. rarest: how many patients a label's metrics hang on, as
    `patients_on_rarer_side` says; without, very many. folds: how many models, each tested on a fold
    of its own, a metric is the mean of. scales: metrics that are means over patients, whose
    interval is so many standard errors on a scale (`interval_on`), and no percentiles. shares: the
    lowest value of each metric that is a share of patients, or a mean of such, the highest being 1
    (`score_bounds`). bounded: the same of each metric that lies between two ends at all, whose
    draws may all agree (`_where_draws_agree`). ends: what no metric of a name can lie beyond, below
    and above. of_difference: that values are those of one model
    less those of another. fewest: by metric, of how many patients at least there is an interval;
    of one there never is.
    """

    corrections: Mapping[str, Correction] = field(default_factory=dict)
    rarest: Mapping[str, float] | None = None
    folds: int = 1
    scales: Mapping[str, Scale] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    bounded: Mapping[str, float] = field(default_factory=dict)
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    of_difference: bool = False
    fewest: Mapping[str, float] = field(default_factory=dict)


def bootstrap(
    statistic: Statistic,
    groups: NDArray[np.str_],
    c: int,
    rules: IntervalRules = IntervalRules(),
    *,
    fits: Numbers | None = None,
) -> dict[Key, Metric]:
    """Return each value under weights of one, where defined, with its interval over the draws.

    groups (n,): patients, who are drawn; c: classes, as `draws` has them. fits (n,): which of
    several fits, each of other training patients, scored a unit; the interval is then also of other
    fits. No interval has a width of 0, as that of draws that all agree would: see
    `_where_draws_agree`, `_of_both_sides` and `_of_all_labels`, and of what is not bounded there is
    none.
    """
    once = np.ones((len(groups), 1))
    values = statistic(once)
    chunks = [statistic(weights) for weights in draws(groups, DRAWS, c, fits)]
    everyone = float(len(np.unique(groups)))
    metrics: dict[Key, Metric] = {}
    agreed: set[Key] = set()
    for key, value in values.items():
        if np.isnan(value[0]):
            continue
        name = key[0]
        patients = _hangs_on(key, rules.rarest, everyone)
        drawn = np.concatenate([chunk[key] for chunk in chunks])
        metric = _with_interval(name, float(value[0]), drawn, patients, rules)
        # What is of one side's patients hangs on the fewer ones; a mean over both is of all.
        of_side = name.startswith(OF_ONE_SIDE)
        wrong_among = patients if of_side else everyone
        if name in OF_RARER_SIDE and rules.rarest:
            wrong_among = min(everyone, _as_many_each(key, rules.rarest, c))
        # An F1 of 0 has found no positive, of whom there are fewer.
        none_found = name == "f1" and metric.value == 0
        right_among = patients if of_side or none_found else everyone
        metric = _within_bounds(name, metric, wrong_among, right_among, rules)
        if name == "ece":
            metric = _of_unseen_faults(metric, everyone)
        if _are_enough(name, patients, rules) and _all_agree(drawn):
            agreed.add(key)
            among = wrong_among if rules.of_difference else min(patients, everyone)
            metric = _where_draws_agree(name, metric, among, rules)
        metrics[key] = _within_ends(name, metric, rules)
    # Of the labels first: what is of all of them is made of these.
    for key in sorted(metrics, key=lambda each: each[1] == ""):
        if key[0] == "balanced_accuracy":
            metrics[key] = _of_both_sides(key, metrics, agreed, rules)
        if key[1] == "":
            metrics[key] = _of_all_labels(key, metrics, agreed, rules)
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


def _as_many_each(
    key: Key,
    rarest: Mapping[str, float],
    c: int,
) -> float:
    """Return of how many patients a collection would be with as many on every side as on the rarer.

    Of 7 positives among 136, all found: by its interval the sensitivity may be 0.65, with which the
    F1 is 0.79, as its own interval of 14 patients says, and not 0.97.
    """
    label = key[1]
    sides = 2 if label else max(2, c)
    return sides * rarest.get(label, np.inf)


def _of_unseen_faults(metric: Metric, patients: float) -> Metric:
    """Return an ECE of less than one patient's with what patients like those not seen may add.

    Draws of a model that is sure and right of all do not show how often it would be sure and wrong.
    """
    if metric.low is None or metric.high is None or metric.value * patients >= 1:
        return metric
    _, high = score_bounds(max(0.0, metric.value), patients)  # rounding may leave less than none
    return metric.model_copy(update={"high": max(metric.high, high)})


def _are_enough(name: str, patients: float, rules: IntervalRules) -> bool:
    """Return whether a metric of so many patients has an interval."""
    # One says nothing of others, and every draw of one is the same.
    return patients > 1 and patients >= rules.fewest.get(name, 0)


def _with_interval(
    name: str,
    value: float,
    drawn: Floats,
    patients: float,
    rules: IntervalRules,
) -> Metric:
    """Return a value with its interval over drawn (b,) ones; NaN draws are left out."""
    if not _are_enough(name, patients, rules):
        return Metric(value=value)
    if name in rules.scales:
        error = float(np.nanstd(drawn))
        reach = reach_of(patients) * fold_widening(name, rules.folds)
        return interval_on(rules.scales[name], value, error, reach)
    lowest = lowest_percentile(patients)
    low, high = np.nanpercentile(drawn, [lowest, 100 - lowest]).tolist()
    # Draws of patients know nothing of how folds differ by what they were trained on.
    if rules.folds > 1:
        middle = float(np.nanmean(drawn))
        wider = fold_widening(name, rules.folds)
        low = middle - wider * (middle - low)
        high = middle + wider * (high - middle)
    match rules.corrections.get(name):
        case "inflation":
            excess = 2 * (float(np.nanmean(drawn**2)) - value**2)
            low = max(0.0, max(0.0, low) ** 2 - excess) ** 0.5
            high = max(0.0, high**2 - excess) ** 0.5
        case "bias":
            excess = 2 * (float(np.nanmean(drawn)) - value)
            low -= excess
            high -= excess
    return Metric(value=value, low=low, high=high)


def _all_agree(drawn: Floats) -> bool:
    """Return whether all drawn (b,) values that are defined are one, so that they say nothing."""
    lowest = float(np.nanmin(drawn))
    highest = float(np.nanmax(drawn))
    return highest - lowest <= ROUNDING * max(1.0, abs(highest))


def _where_draws_agree(
    name: str,
    metric: Metric,
    patients: float,
    rules: IntervalRules,
) -> Metric:
    """Return a value that all draws give with an interval that so many patients allow.

    As of a model that calls everybody, of equal scores, or of perfect ones. The score interval has
    the greatest variance that a mean of so many values between the ends can have (Bhatia and Davis,
    Am. Math. Monthly 107, 2000), and an AUROC with so many patients on the rarer side (Birnbaum and
    Klose, Ann. Math. Statist. 28, 1957). Two models that agree may differ by as much as each may be
    wrong of, where it is wrong of none. What has no ends has no interval. At an end of a share
    `_within_bounds` has been before.
    """
    if metric.low is not None and metric.high is not None and metric.high - metric.low > ROUNDING:
        return metric
    lowest = rules.bounded.get(name)
    if lowest is None:
        return Metric(value=metric.value)
    span = 1 - lowest
    if rules.of_difference:
        none_wrong, _ = score_bounds(1.0, patients)
        reach = span * (1 - none_wrong)
        return Metric(value=metric.value, low=metric.value - reach, high=metric.value + reach)
    share = min(1.0, max(0.0, (metric.value - lowest) / span))
    low, high = score_bounds(share, patients)
    return Metric(
        value=metric.value,
        low=lowest + span * max(0.0, low),
        high=lowest + span * min(1.0, high),
    )


def _of_both_sides(
    key: Key,
    metrics: Mapping[Key, Metric],
    agreed: Container[Key],
    rules: IntervalRules,
) -> Metric:
    """Return a balanced accuracy with an interval as wide as those of its two sides make it.

    The draws know too little of a side of which fewer than FEW_WRONG patients are wrong, or right:
    a model that calls everybody has one balanced accuracy in all of them. The interval of the mean
    of two independent rates follows from theirs by the method of variance estimates recovery (Zou
    and Donner, Stat. Med. 27, 2008; of proportions Newcombe's square-and-add, Stat. Med. 17, 1998).
    """
    metric = metrics[key]
    label = key[1]
    sides = [(name, label) for name in ("sensitivity", "specificity")]
    rates = [metrics[side] for side in sides if side in metrics]
    if len(rates) < len(sides) or any(each.low is None for each in (metric, *rates)):
        return metric
    patients = rules.rarest.get(label, np.inf) if rules.rarest else np.inf
    is_agreed = any(side in agreed for side in sides)
    is_few = not rules.of_difference and any(
        min(rate.value, 1 - rate.value) * patients < FEW_WRONG for rate in rates
    )
    if not is_agreed and not is_few:
        return metric
    below, above = _reaches(rates)
    low = metric.value - _distance(below) / 2
    high = metric.value + _distance(above) / 2
    if key not in agreed and metric.low is not None and metric.high is not None:
        low = min(low, metric.low)
        high = max(high, metric.high)
    return metric.model_copy(update={"low": low, "high": high})


def _of_all_labels(
    key: Key,
    metrics: Mapping[Key, Metric],
    agreed: Container[Key],
    rules: IntervalRules,
) -> Metric:
    """Return a mean over labels with what draws do not show of labels on which they all agree.

    These may be wrong of the same patients, so that their distances add up; with what the draws
    show of the others they are joined as in `_of_both_sides`.
    """
    metric = metrics[key]
    name = key[0]
    of_labels = [each for each in metrics if each[0] == name and each[1]]
    hidden = [metrics[each] for each in of_labels if each in agreed]
    if not hidden or metric.low is None or metric.high is None:
        return metric
    below, above = _reaches(hidden)
    # All that this interval is of stands in theirs.
    is_theirs = key in agreed and len(hidden) == len(of_labels)
    shown_below = 0.0 if is_theirs else metric.value - metric.low
    shown_above = 0.0 if is_theirs else metric.high - metric.value
    low = metric.value - _distance([shown_below, sum(below) / len(of_labels)])
    high = metric.value + _distance([shown_above, sum(above) / len(of_labels)])
    lowest = rules.bounded.get(name)
    if lowest is not None and not rules.of_difference:
        low = max(lowest, low)
        high = min(1.0, high)
    return metric.model_copy(update={"low": low, "high": high})


def _reaches(metrics: Iterable[Metric]) -> tuple[list[float], list[float]]:
    """Return how far below and above the values their intervals reach, of those that have one."""
    below = []
    above = []
    for metric in metrics:
        if metric.low is not None and metric.high is not None:
            below.append(metric.value - metric.low)
            above.append(metric.high - metric.value)
    return below, above


def _distance(parts: Sequence[float]) -> float:
    return math.sqrt(sum(part**2 for part in parts))


def _within_ends(name: str, metric: Metric, rules: IntervalRules) -> Metric:
    """Return a metric whose interval, wider for few patients, says nothing impossible."""
    if name not in rules.ends or metric.low is None or metric.high is None:
        return metric
    least, most = rules.ends[name]
    return metric.model_copy(update={"low": max(least, metric.low), "high": min(most, metric.high)})


def _within_bounds(
    name: str,
    metric: Metric,
    wrong_among: float,
    right_among: float,
    rules: IntervalRules,
) -> Metric:
    """Return a share with an interval that is within its range, and has a width at its ends.

    wrong_among, right_among: of how many patients some may be wrong, or right. Where fewer than
    FEW_WRONG of them are, draws know too little of those: the score interval counts where it is
    wider.
    """
    lowest = rules.shares.get(name)
    if lowest is None or metric.low is None or metric.high is None:
        return metric
    span = 1 - lowest
    # Rounding may lift a perfect share above 1, where no interval is defined.
    share = min(1.0, max(0.0, (metric.value - lowest) / span))
    low = max(lowest, metric.low)
    high = min(1.0, metric.high)
    if (1 - share) * wrong_among < FEW_WRONG:
        low_bound, _ = score_bounds(share, wrong_among)
        low = min(low, lowest + span * low_bound)
    if share * right_among < FEW_WRONG:
        _, high_bound = score_bounds(share, right_among)
        high = max(high, lowest + span * high_bound)
    return metric.model_copy(update={"low": low, "high": high})


def interval_on(
    scale: Scale,
    value: float,
    error: float,
    reach: float,
) -> Metric:
    """Return a value with the interval of `reach` standard errors on a scale.

    error: of the value itself; what that is on the scale, its slope says. At an end of its scale a
    value has no slope, and no interval.
    """
    low: float | None = None
    high: float | None = None
    match scale:
        case "plain":
            low = value - reach * error
            high = value + reach * error
        case "log" if value > 0:
            factor = math.exp(reach * error / value)
            low = value / factor
            high = value * factor
        case "logit" if 0 < value < 1:
            odds = value / (1 - value)
            factor = math.exp(min(MOST_LOGIT, reach * error / (value * (1 - value))))
            low = odds / factor / (1 + odds / factor)
            high = odds * factor / (1 + odds * factor)
    return Metric(value=value, low=low, high=high)


def fold_widening(name: str, folds: int) -> float:
    """Return how much wider the interval of a metric of k folds is than the draws make it.

    Models of k folds share most of their patients, and each is tested on what the others are fitted
    on, so that their scores vary together: draws of patients, whose models stay, do not show it.
    With a correlation of 1 / k (Nadeau and Bengio, Machine Learning 52, 2003, sec. 3) the mean of k
    scores has 1 + (k - 1) / k times the variance of k independent ones. Of what moves as whole
    models do, the draws show no more than is independent, which is 1 - 1 / k of that: their
    variance is too small by as much again.
    """
    if folds == 1:
        return 1.0
    variance = 2 - 1 / folds
    if name in MOVED_BY_CALLS:
        variance /= 1 - 1 / folds
    return math.sqrt(variance)


def patients_on_rarer_side(truth: Truth) -> dict[str, float]:
    """Return how many patients stand on the rarer side of each class or label that has two.

    Under "" for all together: their harmonic mean, since the variance of a mean over labels is a
    mean of theirs, and each in proportion to one over its number. Of a number nothing is rare; of
    survival what counts are the patients with the event, which each pair begins with.
    """
    if truth.kind == "survival":
        return {"": float(len(np.unique(truth.groups[truth.indicator[:, 0]])))}
    if truth.kind not in CLASS_KINDS:
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

    patients: more than one.
    """
    from scipy.special import ndtr

    return 2.5 if np.isinf(patients) else 100 * float(ndtr(-reach_of(patients)))


def reach_of(patients: float) -> float:
    """Return how many standard errors an interval of so many patients reaches.

    A bootstrap of few is too narrow, by the root of (n - 1) / n and by the normal's tail in the
    place of Student's, which this gives back (Hesterberg, Am. Stat. 69(4), 2015, sec. 5.3).
    """
    if np.isinf(patients):
        return NORMAL_REACH
    return student_reach(patients) * math.sqrt(patients / (patients - 1))


def student_reach(patients: float) -> float:
    """Return how many standard errors 95 % of Student's distribution of so many lie within."""
    from scipy.special import stdtrit

    return float(stdtrit(patients - 1, 0.975))


def score_bounds(share: float, patients: float) -> tuple[float, float]:
    """Return the interval of a share of so many patients, each of them right or wrong as a whole.

    Wilson's score interval (JASA 22, 1927), which a share of 1 has too: draws of patients who are
    all right are all right, as if no patient could ever be wrong.
    """
    square = NORMAL_REACH**2
    middle = share + square / (2 * patients)
    spread = share * (1 - share) / patients + square / (4 * patients**2)
    half = NORMAL_REACH * spread**0.5
    divisor = 1 + square / patients
    return (middle - half) / divisor, (middle + half) / divisor


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
    # Numbered once for all draws: names are many, and slow to sort.
    patient = numbers_of(groups)
    fit = None if fits is None else numbers_of(fits)
    rng = np.random.default_rng(SEED)
    at_once = max(1, AT_ONCE // (len(groups) * c))
    for start in range(0, number, at_once):
        b = min(at_once, number - start)
        weights = _times_drawn(patient, b, rng)
        if fit is not None:
            weights = weights * _times_drawn(fit, b, rng)
        yield weights


def _times_drawn(
    number: Numbers,
    b: int,
    rng: np.random.Generator,
) -> Floats:
    """Return (n, b): how often each of b draws with replacement took each unit's number (n,)."""
    p = int(number.max(initial=-1)) + 1
    drawn = rng.integers(0, p, (b, p))
    # One count of all draws together: those of draw i are counted from i * p on.
    apart = drawn + np.arange(b)[:, None] * p
    counts = np.bincount(apart.ravel(), minlength=b * p).reshape(b, p)
    return counts.T.astype(np.float64)[number]
