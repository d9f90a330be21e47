"""How AUROCs fall where labels say nothing: labels permuted among patients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**22
SEED = 0

Floats = NDArray[np.float64]


def permuted_aurocs(
    positive: NDArray[np.bool_], values: Floats, patient: NDArray[np.int64], number: int
) -> Floats:
    """Return (number,) AUROCs of values (n,) for labels that changed hands.

    Patients with equally many units exchange their labels whole, so that what the units of one
    patient share stays shared; a patient alone in his number keeps his. Equal patients are dealt
    equally, whatever the label: the nulls of two labels belong together draw by draw.
    """
    ranks, n, m = _midranks(values), len(values), int(positive.sum())
    found = []
    for order in _orders(patient, number):
        above = positive[order] @ ranks - m * (m + 1) / 2
        found.append(above / (m * (n - m)))
    return np.concatenate(found)


def _midranks(values: Floats) -> Floats:
    ordered = np.sort(values)
    low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    ranks: Floats = (low + high + 1) / 2
    return ranks


def _orders(patient: NDArray[np.int64], number: int) -> Iterator[NDArray[np.int64]]:
    """Yield (b, n) orders of the units until `number` are made."""
    rng, n = np.random.default_rng(SEED), len(patient)
    sizes = np.bincount(patient)
    own = np.split(np.argsort(patient, kind="stable"), np.cumsum(sizes)[:-1])
    blocks = [np.stack([own[p] for p in np.flatnonzero(sizes == s)]) for s in np.unique(sizes) if s]
    at_once = max(1, AT_ONCE // n)
    for start in range(0, number, at_once):
        b = min(at_once, number - start)
        order = np.empty((b, n), np.int64)
        for block in blocks:
            dealt = rng.permuted(np.tile(np.arange(len(block)), (b, 1)), axis=1)
            order[:, block.ravel()] = block[dealt].reshape(b, -1)
        yield order
