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


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Return Nemenyi's critical difference of mean ranks: q sqrt(s (s + 1) / 6 n)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def ranking(names: Sequence[str], ranks: NDArray[np.float64]) -> Ranking:
    """Return the methods in order of their mean rank over ranks (n, s), tested."""
    n, s = len(ranks), len(names)
    if not n:
        return Ranking(tuple(names), (), 0, None, None, (), "no question was answered by all")
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    ordered = tuple(names[i] for i in order), tuple(means[order].tolist())
    if s < 3 or n < 2:
        unable = f"Friedman's test needs three backbones and two tasks; there are {s} and {n}"
        return Ranking(*ordered, n, None, None, (), unable)
    from scipy.stats import friedmanchisquare

    tied = bool((ranks == ranks[:, :1]).all())  # everywhere, which the test does not define
    p = 1.0 if tied else float(friedmanchisquare(*ranks.T).pvalue)
    critical = critical_difference(s, n)
    return Ranking(*ordered, n, p, critical, _alike(means[order], critical), "")


def _alike(means: NDArray[np.float64], critical: float) -> tuple[tuple[int, int], ...]:
    """Return the longest runs of ordered mean ranks that lie within the critical difference."""
    runs: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = int(np.flatnonzero(means <= means[first] + critical)[-1])
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return tuple(runs)
