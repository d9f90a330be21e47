"""The units of a store that a model is asked about, without labels: which slices, whose, where.

Dims: n units, m slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.levels import LEVELS
from pipeline.annotations.region_features import seen_by_tokens
from pipeline.annotations.regions import Regions, slices_of_regions
from pipeline.annotations.units import Units, places_along
from pipeline.config.regions import RegionPool
from pipeline.config.tasks import Level, Task
from pipeline.evaluation.pooling import runs_of_units
from pipeline.recipe import recipe_of
from pipeline.shared.arrays import Rows
from pipeline.shared.pseudonyms import Names
from stores.features import OK, UNREADABLE, VOID, FeatureStore

Texts = NDArray[np.str_]
# Slices whose features are in memory at a time.
SLICES_AT_ONCE = 4096
COLUMNS = (
    "row",
    "path",
    "frame",
    "patient",
    "study",
    "series",
    "position_mm",
    "modality",
    "withdrawn",
)


@dataclass(frozen=True)
class Piece:
    """Some units: what a model needs of them, and what is said of each beside.

    answered (a,): the numbers of those that have features, which `units` is of. paths (n,): of the
    first slice, the real one where the key is there; frames (n,): its frame; patients (n,):
    pseudonyms, "" for none; modalities (n,): of the first slice; sizes (n,): slices with features;
    unreadable (n,): slices without, for good; why (n,): they could not be read. vectors (n,): how
    many vectors a unit has, of slices or of volumes. slices, unit (m,): those that `units` has, one
    a vector, and the number of the unit of each. files, file_unit: of all slices with features.
    """

    ids: Texts
    answered: Rows
    units: Units
    paths: Texts
    frames: Rows
    patients: Texts
    modalities: Texts
    sizes: Rows
    unreadable: Rows
    why: list[str]
    vectors: Rows
    slices: pa.Table
    unit: Rows
    files: Texts
    file_unit: Rows

    @property
    def units_by_patient(self) -> Units:
        """The answered units, grouped by patient; one of no patient is a group of its own."""
        patients = self.patients[self.answered]
        return replace(self.units, groups=np.where(patients == "", self.units.ids, patients))

    def paths_of(self, number: int) -> list[str]:
        """Return the paths of a unit's slices with features, each once, in their order."""
        return list(dict.fromkeys(self.files[self.file_unit == number].tolist()))


@dataclass(frozen=True)
class LiveUnits:
    """The live slices (m,) that a task is asked about, unit after unit in the order of first rows.

    unit (m,) ascending: of each slice; ids (n,): row number, pseudonym, or path. other: how many
    live slices are of other modalities; pending: how many await extraction. Units of these are
    left out. reasons: row -> why it could not be read. has_vector (m,): which have a vector of
    their own; of a volume, whose slices have one vector together, the middle one. regions, pool:
    what units are regions of, and how they are seen.
    """

    slices: pa.Table
    status: NDArray[np.uint8]
    unit: Rows
    ids: Texts
    has_vector: NDArray[np.bool_]
    other: int
    pending: int
    reasons: dict[int, str]
    regions: Regions | None = None
    pool: RegionPool = "whole"

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        names: Names,
        task: Task,
        patients: Texts | None,
        regions: Regions | None = None,
    ) -> LiveUnits:
        """Gather the units of a store by a task's level and modalities.

        patients (all slices,): who each is of where labels say it, None for the headers' word.
        regions: those of the store, where the task is asked of some.
        """
        slices = store.slices(COLUMNS)
        if patients is not None:
            slices = _with_patients(slices, patients)
        if names.has_key:
            slices = names.revealed(slices)
        if task.region is not None and regions is not None:
            structures = task.region.structures or regions.structures
            slices = slices_of_regions(slices, regions, structures)
        by_row = store.status()
        status = by_row[slices["row"].to_numpy()]
        modality = slices["modality"].to_numpy(zero_copy_only=False)
        is_live = np.isin(status, (OK, UNREADABLE, VOID))
        is_live &= ~slices["withdrawn"].to_numpy(zero_copy_only=False)
        is_wanted = np.ones(len(modality), bool)
        if task.modality is not None:
            is_wanted = np.isin(modality.astype(np.str_), task.modality)
        other = int((is_live & ~is_wanted).sum())
        is_wanted &= LEVELS[task.level].has_unit(slices)
        pending = int((is_live & is_wanted & (status == VOID)).sum())
        slices, status = _chosen(slices, status, is_live & is_wanted)
        # Of some of its slices a unit would be answered otherwise than of all.
        unit, _ = _units_of(slices, task.level)
        slices, status = _chosen(slices, status, ~np.isin(unit, unit[status == VOID]))
        has_vector = np.ones(len(slices), bool)
        if recipe_of(store).level == "volume":
            has_vector = _one_a_volume(slices)
        unit, ids = _units_of(slices, task.level)
        # Slices of a unit stand together, in the order of their rows.
        order = np.argsort(unit, kind="stable")
        return cls(
            slices.take(pa.array(order)),
            status[order],
            unit[order],
            ids,
            has_vector[order],
            other,
            pending,
            reasons_by_row(store, by_row),
            regions,
            "whole" if task.region is None else task.region.pool,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self) -> Iterator[Piece]:
        """Yield whole units, of about SLICES_AT_ONCE slices together."""
        bounds = np.searchsorted(self.unit, np.arange(len(self.ids) + 1))
        for first, stop in runs_of_units(bounds, SLICES_AT_ONCE):
            yield self._piece(first, stop, int(bounds[first]), int(bounds[stop]))

    def _piece(self, first: int, stop: int, start: int, end: int) -> Piece:
        """Return the units from `first` to before `stop`, whose slices are from start to end."""
        slices = self.slices.slice(start, end - start)
        unit = self.unit[start:end] - first
        n = stop - first
        has_features = self.status[start:end] == OK
        _, at = np.unique(unit, return_index=True)
        sizes = np.bincount(unit[has_features], minlength=n)
        # Units without a readable slice have a row all the same, and no features.
        answered = np.flatnonzero(sizes)
        number = np.cumsum(sizes > 0) - 1
        ids = self.ids[first:stop]
        paths = _texts(slices, "path")
        is_seen = has_features & self.has_vector[start:end]
        readable = slices.filter(pa.array(is_seen))
        rows = readable["row"].to_numpy()
        units = Units.unlabelled(ids[answered], rows, number[unit[is_seen]], places_along(readable))
        if self.regions is not None:
            units = seen_by_tokens(units, self.regions, self.pool, readable)
        return Piece(
            ids=ids,
            answered=answered,
            units=units,
            paths=paths[at],
            frames=slices["frame"].to_numpy()[at].astype(np.int64),
            patients=_texts(slices, "patient")[at],
            modalities=_texts(slices, "modality")[at],
            sizes=sizes,
            unreadable=np.bincount(unit, minlength=n) - sizes,
            why=self._why(slices, unit, n),
            vectors=np.bincount(unit[is_seen], minlength=n),
            slices=readable,
            unit=unit[is_seen],
            files=paths[has_features],
            file_unit=unit[has_features],
        )

    def _why(self, slices: pa.Table, unit: Rows, n: int) -> list[str]:
        """Return (n,) why slices of each unit could not be read, "" where all could."""
        reasons: list[list[str]] = [[] for _ in range(n)]
        if self.reasons:
            for row, number in zip(slices["row"].to_pylist(), unit.tolist(), strict=True):
                if row in self.reasons:
                    reasons[number].append(self.reasons[row])
        return [in_words(each) for each in reasons]


def reasons_by_row(store: FeatureStore, status: NDArray[np.uint8]) -> dict[int, str]:
    """Return why slices could not be read, by row; status: of all rows."""
    return {failure.row: failure.reason for failure in store.unreadable(status)}


def in_words(reasons: Sequence[str]) -> str:
    """Return why some slices could not be read: `truncated`, or how many for each reason."""
    counts = sorted(Counter(reasons).items())
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{reason} {n}" for reason, n in counts)


def unit_chunks(units: Units) -> Iterator[Units]:
    """Yield whole units, without labels, of about SLICES_AT_ONCE slices together."""
    bags = units.bags()
    for first, stop in runs_of_units(bags.first, SLICES_AT_ONCE):
        places = bags.order[bags.first[first] : bags.first[stop]]
        unit = units.unit[places] - first
        seen = None if units.seen is None else units.seen.at(places)
        ids, rows = units.ids[first:stop], units.rows[places]
        yield Units.unlabelled(ids, rows, unit, units.z[places], seen)


def units_from(units: Units, numbers: Rows) -> Units:
    """Return some units by their numbers, without labels; each must have a slice."""
    bags = units.bags()
    of_units = [bags[unit] for unit in numbers.tolist()]
    sizes = [len(each) for each in of_units]
    places = np.concatenate(of_units)
    return Units.unlabelled(
        units.ids[numbers],
        units.rows[places],
        np.repeat(np.arange(len(numbers)), sizes),
        units.z[places],
        None if units.seen is None else units.seen.at(places),
    )


def _one_a_volume(slices: pa.Table) -> NDArray[np.bool_]:
    """Return (m,) which is the middle slice of each volume, whose vector all of its slices have."""
    rows = slices["row"].to_numpy()
    every = Units.unlabelled(rows.astype(np.str_), rows, np.arange(len(rows)))
    return np.asarray(np.isin(rows, every.one_a_volume(slices).rows))


def _chosen(
    slices: pa.Table, status: NDArray[np.uint8], which: NDArray[np.bool_]
) -> tuple[pa.Table, NDArray[np.uint8]]:
    return slices.filter(pa.array(which)), status[which]


def _with_patients(slices: pa.Table, patients: Texts) -> pa.Table:
    place = slices.schema.get_field_index("patient")
    return slices.set_column(place, "patient", pa.array(patients, pa.string()))


def _texts(slices: pa.Table, column: str) -> Texts:
    values = [value or "" for value in slices[column].to_pylist()]
    texts: Texts = np.array(values, np.str_)
    return texts


def _units_of(slices: pa.Table, level: Level) -> tuple[Rows, Texts]:
    """Return the unit of each slice (m,), numbered as they first stand, and their names (n,)."""
    number: dict[str, int] = {}
    unit = np.empty(len(slices), np.int64)
    for i, name in enumerate(LEVELS[level].unit_names(slices).tolist()):
        unit[i] = number.setdefault(name, len(number))
    return unit, np.array(list(number), np.str_)
