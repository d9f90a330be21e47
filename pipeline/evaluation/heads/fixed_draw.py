"""The few-shot draw of arXiv 2312.02366, as its code makes it: one, without chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units

Rows = NDArray[np.int64]


def fixed_draw(units: Units, train: Rows, shots: int) -> Rows:
    """Return the units of `train` to fit on.

    Multi-label: for each class in turn its first `shots` patients, all of whose units carry it; one
    whom an earlier class took is skipped and not replaced; all units of these patients. Otherwise
    `shots` units in all, at equal distances. Patients and units count in their order in the store.
    """
    if units.kind != "multilabel":
        n = len(train)
        distance = n / min(shots, n)
        places = np.arange(0, n, distance).round().astype(np.int64)
        places = np.minimum(places, n - 1)
        return np.asarray(train[np.unique(places)])
    groups = units.groups[train]
    names, first, patient = np.unique(groups, return_index=True, return_inverse=True)
    # Whether all units of a patient carry a label.
    always = np.ones((len(names), len(units.classes)), bool)
    np.logical_and.at(always, patient, units.indicator[train])
    in_order = np.argsort(first)
    taken = np.zeros(len(names), bool)
    for j in range(len(units.classes)):
        carriers = in_order[always[in_order, j]]
        # Whom an earlier class took counts among the first, and is not replaced.
        taken[carriers[:shots]] = True
    return np.asarray(train[taken[patient]])
