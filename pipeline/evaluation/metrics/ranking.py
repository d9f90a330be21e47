"""Several methods on several data sets: Friedman's test of their ranks, Nemenyi's difference.

Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006). Dims: n data
sets, s methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Fewer methods or data sets are nothing that Friedman's test could tell apart.
LEAST_METHODS = 3
LEAST_BLOCKS = 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks, 1 the best; p: Friedman's; critical: how far mean ranks must lie apart.

    alike: groups of methods whose mean ranks do not, as positions in order of rank: (first, last).
    unable: why there is no test.
    """

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    blocks: int
    p: float | None
    critical: float | None
    alike: tuple[tuple[int, int], ...]
    unable: str


def critical_difference(
    methods: int,
    blocks: int,
    level: float = 0.05,
) -> float:
    """Return Nemenyi's critical difference of mean ranks: q sqrt(s (s + 1) / 6 n)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def ranking(names: Sequence[str], ranks: Floats) -> Ranking:
    """Return the methods in order of their mean rank over ranks (n, s), tested."""
    n = len(ranks)
    s = len(names)
    if not n:
        return _untested(names, (), 0, "no question was answered by all")
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    ordered = [names[i] for i in order]
    if s < LEAST_METHODS or n < LEAST_BLOCKS:
        unable = f"Friedman's test needs three backbones and two tasks; there are {s} and {n}"
        return _untested(ordered, means[order].tolist(), n, unable)
    critical = critical_difference(s, n)
    return Ranking(
        names=tuple(ordered),
        mean_ranks=tuple(means[order].tolist()),
        blocks=n,
        p=_friedman_p(ranks),
        critical=critical,
        alike=_alike(means[order], critical),
        unable="",
    )


def _untested(
    names: Sequence[str],
    mean_ranks: Sequence[float],
    blocks: int,
    unable: str,
) -> Ranking:
    return Ranking(
        names=tuple(names),
        mean_ranks=tuple(mean_ranks),
        blocks=blocks,
        p=None,
        critical=None,
        alike=(),
        unable=unable,
    )


def _friedman_p(ranks: Floats) -> float:
    """Return the p of Friedman's test of ranks (n, s)."""
    from scipy.stats import friedmanchisquare

    # The test is not defined where all methods tie on every data set: nothing differs then.
    if (ranks == ranks[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*ranks.T).pvalue)


def _alike(means: Floats, critical: float) -> tuple[tuple[int, int], ...]:
    """Return the longest runs of ordered mean ranks that lie within the critical difference."""
    runs: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = int(np.flatnonzero(means <= means[first] + critical)[-1])
        # A run that ends where one before it does is a part of that one.
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return tuple(runs)
