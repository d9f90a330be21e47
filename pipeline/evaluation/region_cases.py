"""A task of level region: its cases are structures of masks, seen by the patch tokens they cover.

What they cover and what their tokens come to is on file (`pipeline.annotations.regions`): neither a
mask nor a token is read. Dims: n regions, m pieces (what a region has of a slice), d features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotations.label_file import LabelTable, of_each_structure
from pipeline.annotations.region_features import seen_by_tokens
from pipeline.annotations.region_notes import region_notes
from pipeline.annotations.regions import (
    PIECE,
    WHOLE,
    Regions,
    crop_file,
    slices_of_regions,
    structures_of,
)
from pipeline.annotations.units import Units
from pipeline.config.base import HeadSettings
from pipeline.config.regions import STRUCTURE, RegionChoice, RegionFeatures
from pipeline.config.tasks import FeatureSet, Pool, Task
from pipeline.evaluation.cases import WITHOUT_IMAGES, Cases, Texts
from pipeline.evaluation.pooling import read_features
from pipeline.evaluation.splits import Parts
from pipeline.recipe import recipe_of
from pipeline.shared.arrays import Floats, Rows
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError, StoreNotFoundError
from stores.features import OK, FeatureStore

# Raised whenever crops are seen otherwise: older answers are then not found. Some of the first had
# seen whole images where crops were not there.
CROPS_CONTRACT = 2
# What answers call the features of each pool.
_FEATURES: dict[str, RegionFeatures] = {
    "mean": "region-mean",
    "max": "region-max",
    "moments": "region-moments",
}


def table_of_regions(table: LabelTable, task: Task, structures: Sequence[str]) -> LabelTable:
    """Return a label table that says which structure it is of, where the task asks for that."""
    if not task.reads_structure or STRUCTURE in table.columns:
        return table
    return of_each_structure(table, structures)


@dataclass
class RegionCases(Cases):
    """A task over the regions of a store; see `Cases`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.table = table_of_regions(self.table, self.task, self.structures)

    @property
    def choice(self) -> RegionChoice:
        """Which structures are cases, and how their tokens are pooled."""
        assert self.task.region is not None
        return self.task.region

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures that are cases, by their names."""
        return structures_of(self.config, self.choice)

    @cached_property
    def regions(self) -> Regions:
        """The regions on file. Raises ConfigError for none, or those of an earlier state."""
        regions = Regions.of(self.config, self.store, self.choice)
        regions.check_store(self.fingerprint)
        return regions

    @property
    def depends_on(self) -> dict[str, str]:
        """What the structures that are asked about cover, by its digest: no other's change.

        Where that is not known by now, no answer on file is found, and computing one says why.
        """
        try:
            regions = self.regions
        except ConfigError:
            return {"regions": ""}
        digest = hashlib.sha256()
        for piece in regions.index.select(["row", "structure", "box", "coverage"]).to_pylist():
            if piece["structure"] in self.structures:
                digest.update(json.dumps(piece).encode())
        content = {"regions": digest.hexdigest()}
        if self.choice.crops is not None:
            content["crops"] = str(CROPS_CONTRACT)
            with contextlib.suppress(StoreNotFoundError):
                content["crops"] += f":{FeatureStore.open(self.choice.crops).fingerprint()}"
        return content

    # --- units ---------------------------------------------------------------------------

    @cached_property
    def _slices(self) -> pa.Table:
        """The slice table, with the real paths, in which a slice stands once for each region."""
        slices = self._names.revealed(self.store.slices())
        return slices_of_regions(slices, self.regions, self.structures)

    def _join_units(self) -> Units:
        """Return the labels of the task, joined to the regions, in the order of their files."""
        units = super()._join_units()
        notes = region_notes(self.regions, self.structures, self.store)
        units = replace(units, notes=(*units.notes, *notes))
        if self.choice.crops is not None:
            crops = RegionCrops.of(self.choice.crops, self.regions, units, self._slices)
            return replace(units, seen=crops, notes=(*units.notes, crops.note))
        return seen_by_tokens(units, self.regions, self.choice.pool, self._slices)

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
            seen=None,
        )

    def _name_units(self) -> Texts:
        """Return (n,) the first file of each region's, and which region of that it is."""
        _, first = np.unique(self.units.unit, return_index=True)
        wholes = self._of_pieces(WHOLE)[first].tolist()
        each = zip(super()._name_units().tolist(), self.units.ids.tolist(), wholes, strict=True)
        return np.array([f"{key}\0{name.removeprefix(whole)}" for key, name, whole in each])

    @property
    def _without_copies(self) -> str:
        """How copies are left out: which structure a region is of stands in no file."""
        return WITHOUT_IMAGES if self.task.reads_structure else super()._without_copies

    def _of_pieces(self, column: str) -> Texts:
        """Return (m,) what the slice table says of each piece."""
        texts = self._slices[column].to_numpy(zero_copy_only=False)
        of_units: Texts = texts[self.units.places_in(self._slices)].astype(np.str_)
        return of_units

    # --- features ------------------------------------------------------------------------

    def features_of(self, head: HeadSettings) -> FeatureSet | RegionFeatures:
        """Return which features a head sees: the tokens', whatever it sees of slices."""
        return _FEATURES.get(self.choice.pool, head.features)

    def tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (n, d) the units' features before they are scaled for a head."""
        self._refuse_fit_store()
        return super().tokens(head, parts)

    def slice_tokens(self, head: HeadSettings, parts: Parts) -> Floats:
        """Return (m, d) what the tokens of each piece come to, before that is scaled."""
        self._refuse_fit_store()
        return super().slice_tokens(head, parts)

    def _refuse_fit_store(self) -> None:
        if self.fit_store is not None and self.choice.pool != "whole":
            raise ConfigError(
                f"{self.name}: heads on regions are fitted on the regions of the config's own "
                "store. Leave fit_on out, or name the config of another collection in it."
            )


@dataclass(frozen=True)
class RegionCrops:
    """The `Seen` of regions by their crops: a store of these, and the row (m,) of each piece's."""

    store: FeatureStore
    rows: Rows

    @classmethod
    def of(cls, path: Path, regions: Regions, units: Units, slices: pa.Table) -> RegionCrops:
        """Find the crop of each piece of some units; slices: as `slices_of_regions` has them.

        Raises StoreNotFoundError, and ConfigError where crops are not there, or are of masks as
        they were before.
        """
        try:
            store = FeatureStore.open(path)
        except StoreNotFoundError as error:
            raise StoreNotFoundError(
                f"The crops round the regions are not embedded: {error} It is of the crops.yaml "
                "that `radprobe crops` writes."
            ) from None
        there = Names(store.path).revealed(store.slices())
        has_features = store.status()[there["row"].to_numpy()] == OK
        row_of: dict[str, int] = {}
        for row, name, is_one in zip(
            there["row"].to_pylist(), there["path"].to_pylist(), has_features, strict=True
        ):
            if name and is_one:
                row_of[name.rpartition("/")[2]] = row
        pieces = slices[PIECE].to_numpy()[units.places_in(slices)]
        index = regions.index.select(["row", "structure", "coverage"]).take(pa.array(pieces))
        names = [crop_file(**piece) for piece in index.to_pylist()]
        lacking = [name for name in names if name not in row_of]
        if lacking:
            raise ConfigError(
                f"{len(lacking)} of {len(names)} crops are not in the store {store.place}, first "
                f"{lacking[0]!r}: run `radprobe crops` again, and `radprobe extract` of its config."
            )
        return cls(store, np.array([row_of[name] for name in names], np.int64))

    @property
    def note(self) -> str:
        """What results say of the features."""
        recipe = recipe_of(self.store)
        return f"features are of crops round the regions, by {recipe.network}, {recipe.digest[:12]}"

    def at(self, places: Rows) -> RegionCrops:
        """Return those of some slices."""
        return replace(self, rows=self.rows[places])

    def features(self, unit: Rows, n: int, which: Any, pool: Pool) -> Floats:
        """Return (n, d) the features of the crops of each region, pooled; unit (m,): of each."""
        crops = Units.unlabelled(np.arange(n).astype(np.str_), self.rows, unit)
        return read_features(self.store, crops, which, pool)
