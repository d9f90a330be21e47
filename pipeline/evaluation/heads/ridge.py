"""Ridge regression along a path of penalties, from one decomposition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.shared.arrays import batches, mean

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def ridge(x: NDArray[np.float32], y: Floats, fit: Rows, score: Rows, grid: Floats) -> Floats:
    """Return (a, q): what the models of each penalty, of the rows `fit`, say of the rows `score`.

    Minimises |y - xw - b|^2 + alpha |w|^2 (Hoerl and Kennard, Technometrics 12 (1970)), b not
    penalised, in the smaller of the primal (d, d) and the dual (n, n), in float64.
    x (n, d), y (n,), grid (a,).
    """
    centre, middle = mean(x, fit), float(y[fit].mean())
    if len(fit) < x.shape[1]:
        inside = x[fit] - centre
        variance, axes = np.linalg.eigh(inside @ inside.T)
        axes, turned = inside.T @ axes, axes.T @ (y[fit] - middle)
    else:
        gram, moment = np.zeros((x.shape[1], x.shape[1])), np.zeros(x.shape[1])
        for now in batches(len(fit)):
            inside = x[fit[now]] - centre
            gram += inside.T @ inside
            moment += inside.T @ (y[fit[now]] - middle)
        variance, axes = np.linalg.eigh(gram)
        turned = axes.T @ moment
    weights = axes @ (turned[:, None] / (np.maximum(variance, 0)[:, None] + grid))
    said = [(x[score[now]] - centre) @ weights + middle for now in batches(len(score))]
    return np.concatenate(said).T
