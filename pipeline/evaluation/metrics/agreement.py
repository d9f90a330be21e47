"""How far repeated measurements of the same units agree. Dims: n units, k repeats, d measures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def icc(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ICC(A,1) (d,) of values (n, k, d): two ways, absolute agreement, a single repeat.

    McGraw and Wong, Psychological Methods 1 (1996), case 2A; ICC(2,1) of Shrout and Fleiss (1979).
    NaN where nothing varies.
    """
    x = np.asarray(values, np.float64)
    n, k, _ = x.shape
    of_units = x.mean(axis=1)
    of_repeats = x.mean(axis=0)
    mean = x.mean(axis=(0, 1))
    # The mean squares of the two-way table: rows, columns, and what neither explains.
    between = k * ((of_units - mean) ** 2).sum(axis=0) / (n - 1)
    shift = n * ((of_repeats - mean) ** 2).sum(axis=0) / (k - 1)
    rest = x - of_units[:, None] - of_repeats[None] + mean
    error = (rest**2).sum(axis=(0, 1)) / ((n - 1) * (k - 1))
    total = between + (k - 1) * error + k * (shift - error) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        agreement: NDArray[np.float64] = np.where(total > 0, (between - error) / total, np.nan)
    return agreement
