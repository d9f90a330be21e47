"""What regions are seen by: the tokens of their pieces, pooled. Dims: n regions, m pieces, d."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.regions import COVERED, PIECE, Regions
from pipeline.annotations.units import Units
from pipeline.config.regions import RegionPool
from pipeline.config.tasks import Pool
from pipeline.shared.arrays import Doubles, Floats

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class RegionTokens:
    """The `Seen` of regions: pieces (m,) by number, and how their tokens are pooled."""

    regions: Regions
    pool: RegionPool
    pieces: Numbers

    def at(self, places: Numbers) -> RegionTokens:
        """Return those of some slices."""
        return replace(self, pieces=self.pieces[places])

    def features(self, unit: Numbers, n: int, which: str, pool: Pool) -> Floats:
        """Return (n, d) what the tokens of each region come to; unit (m,): of each piece.

        which, pool: of whole slices, which say nothing of tokens.
        """
        match self.pool:
            case "max":
                cover = self.regions.column("cover")[self.pieces]
                return _greatest(self.regions.features("max", self.pieces), cover, unit, n)
            case "moments":
                mean = self._mean("mean", unit, n)
                deviation = np.sqrt(np.maximum(self._mean("square", unit, n) - mean**2, 0))
                return np.concatenate([mean, deviation], axis=1).astype(np.float32)
            case _:
                return self._mean("mean", unit, n).astype(np.float32)

    def _mean(self, name: str, unit: Numbers, n: int) -> Doubles:
        """Return (n, d) the mean over the pieces of each region, by what each covers."""
        weight = self.regions.column("weight")[self.pieces]
        x = self.regions.features(name, self.pieces)
        total = np.zeros((n, x.shape[1]))
        np.add.at(total, unit, x * weight[:, None])
        mean: Doubles = total / np.bincount(unit, weights=weight, minlength=n)[:, None]
        return mean


def _greatest(x: Floats, cover: Doubles, unit: Numbers, n: int) -> Floats:
    """Return (n, d) the greatest of each number over the pieces that count.

    cover (m,): the greatest share of a patch that each covers. Those count that cover one by half,
    and where none of a region does, those that cover one by the most.
    """
    most = np.zeros(n)
    np.maximum.at(most, unit, cover)
    counts = cover >= np.minimum(COVERED, most)[unit]
    greatest = np.full((n, x.shape[1]), -np.inf, np.float32)
    np.maximum.at(greatest, unit[counts], x[counts])
    return greatest


def seen_by_tokens(units: Units, regions: Regions, pool: RegionPool, slices: pa.Table) -> Units:
    """Return units of regions that are seen by their tokens, or as slices are where no pool says.

    slices: as `slices_of_regions` gives them, with each of the units' slices.
    """
    if pool in ("whole", "crop"):
        return units
    pieces = slices[PIECE].to_numpy()[units.places_in(slices)]
    return replace(units, seen=RegionTokens(regions, pool, pieces))
