"""Ridge regression along a path of penalties, from one decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.shared.arrays import batches, mean

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RidgePath:
    """Fitted models, one a penalty: y = (x - centre) @ weights + middle.

    centre (d,): the mean of the features they were fitted on, middle: that of y; weights (d, a).
    """

    centre: Floats
    middle: float
    weights: Floats

    def predict(self, x: NDArray[np.float32], rows: Rows) -> Floats:
        """Return (a, q): what the model of each penalty says of the rows `rows` of x (n, d)."""
        numbers = []
        for batch in batches(len(rows)):
            centred = x[rows[batch]] - self.centre
            numbers.append(centred @ self.weights + self.middle)
        return np.concatenate(numbers).T


def fit_ridge(
    x: NDArray[np.float32],
    y: Floats,
    rows: Rows,
    penalties: Floats,
) -> RidgePath:
    """Fit the rows `rows` of x (n, d) to y (n,) with each of the penalties (a,), in float64.

    Minimises |y - xw - b|^2 + alpha |w|^2 (Hoerl and Kennard, Technometrics 12 (1970)), b not
    penalised, in the smaller of the primal (d, d) and the dual (n, n).
    """
    d = x.shape[1]
    centre = mean(x, rows)
    middle = float(y[rows].mean())
    residual = y[rows] - middle
    if len(rows) < d:
        # The dual: of fewer rows than features the weights lie in the span of the rows.
        inside = x[rows] - centre
        variance, axes = np.linalg.eigh(inside @ inside.T)
        turned = axes.T @ residual
        axes = inside.T @ axes
    else:
        gram = np.zeros((d, d))
        moment = np.zeros(d)
        # Some rows at a time: x may be more than memory holds.
        for batch in batches(len(rows)):
            inside = x[rows[batch]] - centre
            gram += inside.T @ inside
            moment += inside.T @ residual[batch]
        variance, axes = np.linalg.eigh(gram)
        turned = axes.T @ moment
    # Rounding leaves variances a little below zero.
    variance = np.maximum(variance, 0)
    shrunk = turned[:, None] / (variance[:, None] + penalties)
    return RidgePath(centre, middle, axes @ shrunk)
