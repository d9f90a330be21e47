"""Features and labels as torch's batches, for whoever trains a head of their own on them.

Dims: n units, d features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset


def batches_of(
    x: NDArray[np.float32], y: NDArray[Any], chosen: NDArray[np.bool_], *, size: int, shuffle: bool
) -> DataLoader[Any]:
    """Return a loader of (x, y) of the chosen (n,) units.

    y (n,) or (n, c): of names their numbers, by alphabet; of numbers float32, as x, or no loss
    would take both.
    """
    if y.dtype.kind in "UO":
        y = np.unique(y, return_inverse=True)[1]
    elif y.dtype.kind == "f":
        y = y.astype(np.float32)
    units = TensorDataset(torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]))
    return DataLoader(units, batch_size=size, shuffle=shuffle)
