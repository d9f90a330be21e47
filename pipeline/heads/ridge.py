"""Ridge regression along a path of penalties, from one decomposition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 16384

Floats = NDArray[np.float64]


def ridge(x: NDArray[np.float32], y: Floats, queries: NDArray[np.float32], grid: Floats) -> Floats:
    """Return (a, q): what the models of each penalty say of the queries (q, d).

    Minimises |y - xw - b|^2 + alpha |w|^2 (Hoerl and Kennard, Technometrics 12 (1970)), b not
    penalised, in the smaller of the primal (d, d) and the dual (n, n), in float64.
    x (n, d), y (n,), grid (a,).
    """
    centre, middle = x.mean(axis=0, dtype=np.float64), float(y.mean())
    if len(x) < x.shape[1]:
        inside = x - centre
        variance, axes = np.linalg.eigh(inside @ inside.T)
        axes, turned = inside.T @ axes, axes.T @ (y - middle)
    else:
        gram, moment = np.zeros((x.shape[1], x.shape[1])), np.zeros(x.shape[1])
        for start in range(0, len(x), AT_ONCE):
            inside = x[start : start + AT_ONCE] - centre
            gram += inside.T @ inside
            moment += inside.T @ (y[start : start + AT_ONCE] - middle)
        variance, axes = np.linalg.eigh(gram)
        turned = axes.T @ moment
    weights = axes @ (turned[:, None] / (np.maximum(variance, 0)[:, None] + grid))
    said: Floats = ((queries - centre) @ weights + middle).T
    return said
