"""Which units of two answers are one and the same, whatever each store calls them.

Row numbers say how a store grew, and pseudonyms are of its key: two units are one where they share
a slice, which its file and frame tell. Dims: n units of the first answer, q pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.levels import LEVELS
from pipeline.annotations.patients import notes_of
from pipeline.config.tasks import Level
from pipeline.results import PairedUnits
from pipeline.shared.pseudonyms import HIDDEN, Names
from stores.errors import LabelError
from stores.features import FeatureStore

Rows = NDArray[np.int64]
Texts = NDArray[np.str_]
# Units that only one answer has, and that are named; the others are counted.
EXAMPLES = 3
# A slice: the real path of its file, its frame, and of a region the structure that is meant of it.
Slice = tuple[str, int, str]


@dataclass(frozen=True)
class TestedUnits:
    """The units (n,) that an answer of a store was tested on: row numbers, or pseudonyms."""

    store: Path
    level: Level
    ids: Texts


@dataclass(frozen=True)
class Pairing:
    """Two answers' common units: places (q,) in the first and in the second, in the first's order.

    first_only, second_only: the ids of the units that only one was tested on.
    """

    first: Rows
    second: Rows
    first_only: Texts
    second_only: Texts

    def counted(self, patients: int) -> PairedUnits:
        """Return how many units there are of each kind; patients: whose the common ones are."""
        return PairedUnits(
            units=len(self.first),
            patients=patients,
            first_only=len(self.first_only),
            second_only=len(self.second_only),
            first_only_examples=tuple(self.first_only[:EXAMPLES].tolist()),
            second_only_examples=tuple(self.second_only[:EXAMPLES].tolist()),
        )


def pair_units(first: TestedUnits, second: TestedUnits) -> Pairing:
    """Pair two answers' units by the slices that they share; of one store, by their ids.

    Raises LabelError where no unit has a counterpart, where a unit of one is several of the other,
    and ConfigError where a store hides its paths and has lost its key.
    """
    # Row numbers and pseudonyms mean the same in one store alone.
    if first.store == second.store:
        place_of = {name: place for place, name in enumerate(second.ids.tolist())}
        there = [place_of.get(name, -1) for name in first.ids.tolist()]
    else:
        there = _by_slices(first, second)
    counterpart = np.array(there, np.int64)
    has_one = counterpart >= 0
    if not has_one.any():
        raise LabelError(
            f"The answers have no test unit in common: none of {len(first.ids)} and "
            f"{len(second.ids)} is of the same file. Paths are compared as they are below "
            "data.root; use one collection, task and split seed. Of two collections, `radprobe "
            "compare A.yaml B.yaml --across` says what heads fitted on A are worth on B."
        )
    pairs = counterpart[has_one]
    return Pairing(
        first=np.flatnonzero(has_one),
        second=pairs,
        first_only=first.ids[~has_one],
        second_only=np.delete(second.ids, pairs),
    )


def _by_slices(first: TestedUnits, second: TestedUnits) -> list[int]:
    """Return (n,) the place of each unit's counterpart in the second answer, -1 for none."""
    place_of_slice: dict[Slice, int] = {}
    for place, slices in enumerate(_slices_of(second)):
        place_of_slice.update(dict.fromkeys(slices, place))
    counterparts = []
    for slices in _slices_of(first):
        places = {place_of_slice[each] for each in slices if each in place_of_slice}
        counterparts.append(_only(places))
    paired = [place for place in counterparts if place >= 0]
    if len(set(paired)) < len(paired):
        raise _ambiguous()
    return counterparts


def _only(places: set[int]) -> int:
    if len(places) > 1:
        raise _ambiguous()
    return places.pop() if places else -1


def _ambiguous() -> LabelError:
    return LabelError(
        "The answers can be compared only on the same test units: a unit of one is several units "
        "of the other, so that series, studies or patients are told apart otherwise. Use one "
        "collection and the same labels.patient and data.patient."
    )


def _slices_of(tested: TestedUnits) -> list[list[Slice]]:
    """Return the slices of each unit (n,) that still have a path."""
    store = FeatureStore.open(tested.store)
    slices = store.slices()
    slices_of_name: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in _names_of_slices(store, slices, tested.level, tested.ids.tolist()):
        slices_of_name[name].append(place)
    # Units of masks that lie in no volume are called by their rows, whatever the others are.
    place_of_row = {str(row): i for i, row in enumerate(slices["row"].to_pylist())}
    paths = _real_paths(store, slices)
    frames = slices["frame"].to_pylist()
    of_units = []
    for name in tested.ids.tolist():
        places = slices_of_name.get(name)
        if places is None:
            places = [place_of_row[name]] if name in place_of_row else []
        part = LEVELS[tested.level].part(name) or ""
        of_units.append([(paths[i], frames[i], part) for i in places if paths[i]])
    return of_units


def _names_of_slices(
    store: FeatureStore, slices: pa.Table, level: Level, ids: Sequence[str]
) -> Iterable[tuple[int, str]]:
    """Yield places of the slice table and what units they may be of; patients by labels too."""
    yield from LEVELS[level].places(slices, ids)
    if level != "patient":
        return
    place_of_row = {row: i for i, row in enumerate(slices["row"].to_pylist())}
    for note in notes_of(store):
        for row, patient in zip(note.rows.tolist(), note.patients.tolist(), strict=True):
            if row in place_of_row:
                yield place_of_row[row], patient


def _real_paths(store: FeatureStore, slices: pa.Table) -> list[str]:
    """Return the path (m,) of each slice, "" of one that was purged."""
    paths = slices["path"].to_pylist()
    # Without a hidden name no key is needed, which may lie elsewhere.
    if any(path and HIDDEN in path for path in paths):
        paths = Names(store.path).revealed(slices)["path"].to_pylist()
    return [path or "" for path in paths]
