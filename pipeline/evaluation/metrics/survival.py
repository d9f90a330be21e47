"""Survival: how well risks order who has the event first, and how many are left without it.

Under b columns of weights at once, as all metrics are computed. Dims: n units, e of them with the
event, t times, b draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.weighted import ratio
from pipeline.shared.arrays import batches

Floats = NDArray[np.float64]

# Risks that differ by less are equal: each of such a pair counts half.
TIED = 1e-8
# Pairs at once: 32 MB.
_PAIRS_AT_ONCE = 2**22


def concordances(truth: Truth, risk: Floats, weights: Floats) -> dict[str, Floats]:
    """Return Harrell's and Uno's C (b,) of risks (n,) under weights (n, b); NaN without a pair.

    A pair is one with the event and another that was watched for longer, or as long and without
    it; it is concordant where the first has the higher risk. Harrell's C (JAMA 247, 1982) is their
    share, and depends on how many were censored when. Uno's (Stat. Med. 30, 2011) weighs each pair
    by one over the square of the share that is not censored by the time of the event, as the units
    themselves say (Kaplan and Meier), and does not.
    """
    time, event = truth.y.T
    first = np.flatnonzero(event == 1)
    share = uncensored(time, event, weights)[first]
    # Where nobody is left uncensored, a pair counts for nothing.
    over_square = np.divide(1.0, share**2, out=np.zeros_like(share), where=share > 0)
    sums = np.zeros((2, 2, weights.shape[1]))
    for now in batches(len(first), max(1, _PAIRS_AT_ONCE // len(time))):
        some = first[now]
        is_pair = (time > time[some, None]) | ((time == time[some, None]) & (event == 0))
        higher = risk[some, None] - risk
        right = is_pair * np.where(np.abs(higher) <= TIED, 0.5, higher > 0)
        of_first = weights[some] * np.stack([np.ones_like(over_square[now]), over_square[now]])
        for i, pairs in enumerate((right, is_pair.astype(np.float64))):
            sums[i] += (of_first * (pairs @ weights)).sum(axis=1)
    harrell, uno = ratio(sums[0], sums[1])
    return {"c_harrell": harrell, "c_uno": uno}


def uncensored(time: Floats, event: Floats, weights: Floats) -> Floats:
    """Return (n, b) the share that is not censored by each unit's time, under weights (n, b).

    Kaplan and Meier's estimate, of which those with the event at a time leave before those who are
    censored then.
    """
    times, left = kaplan_meier(time, event == 0, weights, others_first=True)
    return left[np.searchsorted(times, time)]


def kaplan_meier(
    time: Floats,
    ends: NDArray[np.bool_],
    weights: Floats,
    *,
    others_first: bool = False,
) -> tuple[Floats, Floats]:
    """Return the times (t,) there are, and the share (t, b) that is left after each.

    ends (n,): whether the end of a unit's time is what is counted; others_first: whether those of
    whom it is not leave before those of whom it is, at the same time.
    """
    times, place = np.unique(time, return_inverse=True)
    leaving = _sums(place, weights, len(times))
    ending = _sums(place, weights * ends[:, None], len(times))
    at_risk = leaving[::-1].cumsum(axis=0)[::-1]
    if others_first:
        at_risk = at_risk - (leaving - ending)
    stays = 1 - np.divide(ending, at_risk, out=np.zeros_like(ending), where=at_risk > 0)
    # Rounding may leave a little less than none.
    return times, np.cumprod(np.maximum(stays, 0), axis=0)


def _sums(place: NDArray[np.int64], values: Floats, t: int) -> Floats:
    """Return (t, b) the sums of values (n, b) by their places (n,)."""
    sums = np.zeros((t, values.shape[1]))
    np.add.at(sums, place, values)
    return sums
