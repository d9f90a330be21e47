"""How unlike a unit is to all that a model has learnt from.

The distance of a unit is the mean of 1 - cosine to its nearest references (Sun et al., arXiv
2204.06507, with a mean in the place of the k-th). Each reference has one as well, to those of other
patients. What share of them is nearer is the unit's percentile; what share is at least as far, the
unit itself counted, its conformal p-value (Vovk et al., 2005): of images like the references, a
share of 0.05 has p <= 0.05.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.neighbours import neighbours
from pipeline.shared.arrays import Floats, Rows, unit_length

# References a distance is the mean to.
NEIGHBOURS = 5
# References that are filed at most, evenly chosen: more say little more, and a model travels.
MOST = 4096

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class References:
    """Features (r, d) of length 1, whose they are (r,), and the distances (r,), ascending.

    patient: numbers that say nothing of who it is.
    """

    features: Floats
    patient: Rows
    distances: Doubles
    k: int

    @classmethod
    def of(cls, x: Floats, rows: Rows, patient: Rows) -> References | None:
        """Take units `rows` of x (n, d) as references; patient (n,): whose units they are.

        None where there are too few patients to say anything.
        """
        chosen = evenly(rows, MOST)
        whose = patient[chosen]
        others = len(chosen) - int(np.bincount(whose).max())
        k = min(NEIGHBOURS, others)
        if k < 1:
            return None
        features = unit_length(x[chosen])
        places = np.arange(len(chosen))
        # To other patients' alone: images of one patient are alike, and a new one is a stranger.
        cosine, _ = neighbours(features, places, places, k, whose)
        _, numbers = np.unique(whose, return_inverse=True)
        return cls(features, numbers.astype(np.int64), np.sort(_distances(cosine)), k)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is filed of them, by name."""
        return {
            "features": self.features,
            "patient": self.patient,
            "distances": self.distances,
        }

    def distances_of(self, x: Floats) -> Doubles:
        """Return (q,) the distance of each unit of x (q, d) to the references."""
        r = len(self.features)
        both = np.concatenate([self.features, unit_length(x)])
        queries = np.arange(r, len(both))
        cosine, _ = neighbours(both, np.arange(r), queries, self.k)
        return _distances(cosine)

    def percentiles(self, distances: Doubles) -> Doubles:
        """Return (q,) what percentage of the references is nearer than each distance."""
        below = np.searchsorted(self.distances, distances, side="left")
        percentiles: Doubles = 100 * below / len(self.distances)
        return percentiles

    def p_values(self, distances: Doubles) -> Doubles:
        """Return (q,) the conformal p-value of each distance."""
        n = len(self.distances)
        as_far = n - np.searchsorted(self.distances, distances, side="left")
        p: Doubles = (1 + as_far) / (n + 1)
        return p


def evenly(rows: Rows, most: int) -> Rows:
    """Return so many of some rows at most, evenly chosen from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)
    chosen: Rows = rows[places]
    return chosen


def _distances(cosine: Floats) -> Doubles:
    distances: Doubles = 1 - cosine.astype(np.float64).mean(axis=1)
    return distances
