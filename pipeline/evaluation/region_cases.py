"""A task of level region: its cases are structures of masks, seen by the patch tokens they cover.

What they cover and what their tokens come to is on file (`pipeline.annotations.regions`): neither a
mask nor a token is read. Dims: n regions, m pieces (what a region has of a slice), d features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import of_each_structure
from pipeline.annotations.region_notes import region_notes
from pipeline.annotations.regions import (
    COVERED,
    PIECE,
    STRUCTURE_OF,
    WHOLE,
    Regions,
    slices_of_regions,
)
from pipeline.annotations.units import Units
from pipeline.config.base import HeadSettings
from pipeline.config.regions import STRUCTURE, RegionChoice, RegionFeatures
from pipeline.config.tasks import FeatureSet
from pipeline.evaluation.cases import Cases, Texts
from pipeline.evaluation.splits import Parts
from pipeline.shared.arrays import Doubles, Floats
from stores.errors import ConfigError
from stores.features import OK

_FEATURES: dict[str, RegionFeatures] = {
    "mean": "region-mean",
    "max": "region-max",
    "moments": "region-moments",
}


@dataclass
class RegionCases(Cases):
    """A task over the regions of a store; see `Cases`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {*self.task.labels, *self.task.subgroups, *self.task.shortcuts}
        if STRUCTURE in asked and STRUCTURE not in self.table.columns:
            self.table = of_each_structure(self.table, self.structures)

    @property
    def choice(self) -> RegionChoice:
        """Which structures are cases, and how their tokens are pooled."""
        assert self.task.region is not None
        return self.task.region

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that are cases, by their names."""
        masks = self.config.masks[self.choice.masks]
        return self.choice.structures or masks.classes[1:]

    @cached_property
    def regions(self) -> Regions:
        """The regions on file. Raises ConfigError for none, or those of an earlier state."""
        regions = Regions.of(self.config, self.store, self.choice.masks)
        regions.check_store(self.fingerprint)
        return regions

    @property
    def depends_on(self) -> dict[str, str]:
        """What the structures that are asked about cover, by its digest: no other's change."""
        digest = hashlib.sha256()
        columns = (self.regions.column(name) for name in ("row", "structure", "coverage"))
        for row, structure, coverage in zip(*columns, strict=True):
            if structure in self.structures:
                digest.update(json.dumps([int(row), structure, coverage]).encode())
        return {"regions": digest.hexdigest()}

    # --- units ---------------------------------------------------------------------------

    @cached_property
    def _slices(self) -> pa.Table:
        """The slice table, with the real paths, in which a slice stands once for each region."""
        slices = self._names.revealed(self.store.slices())
        return slices_of_regions(slices, self.regions, self.structures)

    @cached_property
    def units(self) -> Units:
        """The labels of the task, joined to the regions, in the order of their files."""
        units = super().units
        slices = self.store.slices(["row", "series"])
        has_features = self.store.status()[slices["row"].to_numpy()] == OK
        seen = slices.filter(pa.array(has_features))
        notes = region_notes(self.regions, self.structures, seen)
        return replace(units, notes=(*units.notes, *notes))

    @cached_property
    def pictured(self) -> Units:
        """The images and volumes that the regions lie in."""
        units = self.units
        wholes = self._of_pieces(WHOLE)
        rows, first = np.unique(units.rows, return_index=True)
        ids, at, unit = np.unique(wholes[first], return_index=True, return_inverse=True)
        of_first = units.unit[first[at]]
        return replace(
            units,
            y=units.y[of_first],
            groups=units.groups[of_first],
            ids=ids,
            rows=rows,
            unit=unit,
            along=None,
        )

    @cached_property
    def keys(self) -> Texts:
        """(n,) the first file of each region's, and its structure."""
        _, first = np.unique(self.units.unit, return_index=True)
        structures = self._of_pieces(STRUCTURE_OF)[first]
        both = zip(super().keys.tolist(), structures.tolist(), strict=True)
        return np.array([f"{key}\0{structure}" for key, structure in both])

    def _of_pieces(self, column: str) -> Texts:
        """Return (m,) what the slice table says of each piece."""
        texts = self._slices[column].to_numpy(zero_copy_only=False)
        of_units: Texts = texts[self.units.places_in(self._slices)].astype(np.str_)
        return of_units

    # --- features ------------------------------------------------------------------------

    def features_of(self, head: HeadSettings) -> FeatureSet | RegionFeatures:
        """Return which features a head sees: the tokens', whatever it sees of slices."""
        return _FEATURES.get(self.choice.pool, head.features)

    def read(self, which: FeatureSet) -> Floats:
        """Return (n, d) what the regions' tokens come to, whatever features of slices are meant."""
        if self.choice.pool == "whole":
            return super().read(which)
        return self._pooled(self.units.unit, len(self.units.ids))

    def unscaled(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) the units' features before they are scaled for a head."""
        self._refuse_fit_store()
        return super().unscaled(head, parts)

    def unscaled_slices(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (m, d) what the tokens of each piece come to, before that is scaled."""
        self._refuse_fit_store()
        if self.choice.pool == "whole":
            return super().unscaled_slices(head, parts)
        self._last_read = None
        m = len(self.units.rows)
        return self._pooled(np.arange(m), m)

    def _refuse_fit_store(self) -> None:
        if self.fit_store is not None:
            raise ConfigError(
                f"{self.name}: heads on regions are fitted on the regions of the config's own "
                "store. Leave fit_on out, or name the config of another collection in it."
            )

    def _pooled(self, group: NDArray[np.int64], n: int) -> Floats:
        """Return (n, d) the pieces' features, together for each group (m,) of pieces."""
        pieces = self._slices[PIECE].to_numpy()[self.units.places_in(self._slices)]
        match self.choice.pool:
            case "max":
                cover = self.regions.column("cover")[pieces]
                return _greatest(self.regions.features("max", pieces), cover, group, n)
            case "moments":
                weight = self.regions.column("weight")[pieces]
                mean = _mean(self.regions.features("mean", pieces), weight, group, n)
                square = _mean(self.regions.features("square", pieces), weight, group, n)
                deviation = np.sqrt(np.maximum(square - mean**2, 0))
                return np.concatenate([mean, deviation], axis=1).astype(np.float32)
            case _:
                weight = self.regions.column("weight")[pieces]
                return _mean(self.regions.features("mean", pieces), weight, group, n).astype(
                    np.float32
                )


def _mean(x: Floats, weight: Doubles, group: NDArray[np.int64], n: int) -> Doubles:
    """Return (n, d) the mean of the pieces x (m, d) of each group, by weight (m,)."""
    total = np.zeros((n, x.shape[1]))
    np.add.at(total, group, x * weight[:, None])
    mean: Doubles = total / np.bincount(group, weights=weight, minlength=n)[:, None]
    return mean


def _greatest(x: Floats, cover: Doubles, group: NDArray[np.int64], n: int) -> Floats:
    """Return (n, d) the greatest of each number over the pieces that count.

    cover (m,): the greatest share of a patch that each covers. Those count that cover one by half,
    and where none of a group does, those that cover one by the most.
    """
    most = np.zeros(n)
    np.maximum.at(most, group, cover)
    counts = cover >= np.minimum(COVERED, most)[group]
    greatest = np.full((n, x.shape[1]), -np.inf, np.float32)
    np.maximum.at(greatest, group[counts], x[counts])
    return greatest
