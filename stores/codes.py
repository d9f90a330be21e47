"""Tokens as int8 with a scale each: a quarter of float32, wrong by at most 1/254 of the largest.

A token x of d numbers is kept as round(x / s) with s = max |x| / 127, as float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stores._types import Rows, Values
from stores.features import FeatureStore

SCALE = "patch_scale"


def read_patch(store: FeatureStore, rows: Rows) -> Values:
    """Return the patch tokens of rows as floats, whatever they are kept as.

    Raises as `FeatureStore.read` does.
    """
    values = store.read("patch", rows)
    if SCALE not in store.arrays:
        return values
    scale: NDArray[np.float32] = store.read(SCALE, rows)
    decoded: NDArray[np.float32] = values.astype(np.float32)
    decoded *= scale[..., None]
    return decoded
