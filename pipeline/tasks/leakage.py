"""Copies of an image on two sides of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.questions import Units
from stores.errors import LabelError

EXAMPLES = 3


def refuse_duplicates(digests: NDArray[np.uint8], units: Units, side: NDArray[np.int64]) -> None:
    """Raise LabelError where a unit on one side is, for the most part, copied on another.

    digests (m, 32): of the pixels of units.rows, zero where unknown; side (n,): of each unit, -1
    for none. For the most part: series share blank slices and are no copies for that.
    """
    sides = side[units.unit]
    asked = digests.any(axis=1) & (sides >= 0)
    images = np.ascontiguousarray(digests[asked]).view("V32").ravel()
    image = np.unique(images, return_inverse=True)[1]
    lowest = np.full(len(images), side.max() + 1)
    highest = np.full(len(images), -1)
    np.minimum.at(lowest, image, sides[asked])
    np.maximum.at(highest, image, sides[asked])
    shared = np.zeros(len(units.rows), bool)
    shared[asked] = (lowest < highest)[image]
    n = len(units.ids)
    copied = np.bincount(units.unit, weights=shared, minlength=n)
    leaked = np.flatnonzero(copied > np.bincount(units.unit, minlength=n) / 2)
    if len(leaked):
        row = units.rows[shared & np.isin(units.unit, leaked)][0]
        same = units.rows[(digests == digests[units.rows == row]).all(axis=1)]
        raise LabelError(
            f"{len(leaked)} units have the pixels of units on another side of the split, for "
            f"example rows {same[:EXAMPLES].tolist()} of the slice table: scores would be leaked. "
            'Leave the copies\' labels empty, or set split.allow: ["duplicates"].'
        )
