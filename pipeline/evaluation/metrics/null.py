"""How AUROCs fall where labels say nothing: labels permuted among patients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**22
SEED = 0

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


def permuted_aurocs(
    positive: NDArray[np.bool_],
    values: Floats,
    patient: Numbers,
    number: int,
) -> Floats:
    """Return (number,) AUROCs of values (n,) for labels that changed hands.

    Patients with equally many units exchange all their labels, so that what the units of one
    patient share stays shared; a patient alone in his number keeps his. Equal patients are shuffled
    equally, whatever the label: the nulls of two labels belong together draw by draw.
    """
    from scipy.stats import rankdata

    ranks = rankdata(values)
    n = len(values)
    m = int(positive.sum())
    # The AUROC by the positives' sum of ranks (Mann-Whitney U), less the least it can be.
    least = m * (m + 1) / 2
    aurocs = []
    for order in _orders(patient, number):
        wins = positive[order] @ ranks - least
        aurocs.append(wins / (m * (n - m)))
    return np.concatenate(aurocs)


def _orders(patient: Numbers, number: int) -> Iterator[Numbers]:
    """Yield (b, n) orders of the units until `number` are made."""
    rng = np.random.default_rng(SEED)
    n = len(patient)
    # Labels change hands between patients of as many units, all of a patient's together.
    blocks = _units_by_size(patient)
    at_once = max(1, AT_ONCE // n)
    for start in range(0, number, at_once):
        b = min(at_once, number - start)
        order = np.empty((b, n), np.int64)
        for block in blocks:
            in_order = np.tile(np.arange(len(block)), (b, 1))
            shuffled = rng.permuted(in_order, axis=1)
            order[:, block.ravel()] = block[shuffled].reshape(b, -1)
        yield order


def _units_by_size(patient: Numbers) -> list[Numbers]:
    """Return (p, s) the units of the p patients that have s units each, for every s that occurs."""
    sizes = np.bincount(patient)
    by_patient = np.argsort(patient, kind="stable")
    units = np.split(by_patient, np.cumsum(sizes)[:-1])
    blocks = []
    for size in np.unique(sizes[sizes > 0]):
        patients = np.flatnonzero(sizes == size)
        blocks.append(np.stack([units[p] for p in patients]))
    return blocks
