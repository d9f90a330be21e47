"""95 % intervals of metrics by a bootstrap over patients.

A metric is computed with weights: ones give its value, and how often a draw took each unit's
patient gives that draw's value. So value and interval cannot differ in what they mean, and 2,000
draws are a few matrix products. Dims: n units, c classes, b draws, p patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.results import Metric

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
