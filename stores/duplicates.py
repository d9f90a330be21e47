"""The same pixels in two rows: found by their digests, across files and formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stores.features import OK, FeatureStore


@dataclass(frozen=True)
class Twins:
    """Rows whose slices have exactly the same pixels, ascending; patients: how many they are of.

    Twins of several patients leak from train to test, however the patients are divided.
    """

    rows: tuple[int, ...]
    patients: int


def find_twins(store: FeatureStore) -> list[Twins]:
    """Return the groups of live embedded rows with equal pixels, by their first rows."""
    rows = np.flatnonzero(store.status() == OK)
    groups = group_equal(store.read("pixel_digest")[rows])
    slices = store.slices()
    patient = dict(zip(slices["row"].to_pylist(), slices["patient"].to_pylist(), strict=True))
    found = []
    for group in groups:
        members = tuple(int(row) for row in rows[group])
        # A slice of no patient is a person of its own: nothing says that it is not.
        people = {patient.get(row) or f"row {row}" for row in members}
        found.append(Twins(members, len(people)))
    return sorted(found, key=lambda twins: twins.rows)


def group_equal(digests: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Return the places of each digest (m, 32) that occurs more than once, ascending."""
    if not len(digests):
        return []
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.cumsum(counts)[:-1])
    return [part for part in parts if len(part) > 1]
