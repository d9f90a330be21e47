"""The units that masks are split and scored by: volumes, and images where slices are no volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable
from pipeline.annotations.labels import patients_of
from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.evaluation.cases import order_of_files
from pipeline.results import Tally
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.geometry import Labels, Placement, to_slice
from pipeline.segmentation.masks import StoredMasks
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError
from stores.features import OK, UNREADABLE, VOID, FeatureStore
from stores.slices import SliceRow, slice_rows

# Bad masks that are named; the others are counted.
_EXAMPLES = 3


@dataclass(frozen=True)
class Unit:
    """A volume or an image: the rows of its slices in order, and mm a voxel (z, y, x) or (y, x).

    spacing: ones where the files name none; in_mm: whether they name all of it.
    """

    rows: tuple[int, ...]
    spacing: tuple[float, ...]
    in_mm: bool

    @property
    def volume(self) -> bool:
        """Whether it is scored in three dimensions."""
        return len(self.spacing) == 3

    @classmethod
    def of(cls, slices: Sequence[SliceRow]) -> Unit:
        """Return the unit that some rows of the slice table are, in the order of the rows."""
        rows = tuple(row.row for row in slices)
        in_plane = (slices[0].spacing_y_mm, slices[0].spacing_x_mm)
        spacing = tuple(mm or 1.0 for mm in in_plane)
        if len(slices) == 1:
            return cls(rows, spacing, all(in_plane))
        # What has no place is not finite here.
        positions = np.array([row.position_mm for row in slices], np.float64)
        if not np.isfinite(positions).all():
            return cls(rows, (1.0, *spacing), in_mm=False)
        gaps = np.abs(np.diff(positions))
        # The median: one slice that is missing must not stretch the volume.
        step = float(np.median(gaps))
        return cls(rows, (step or 1.0, *spacing), all(in_plane))


def units_of(
    config: Config, store: FeatureStore, masks: StoredMasks, table: LabelTable | None
) -> tuple[Units, list[Unit]]:
    """Return what is split and scored: a volume each, or an image each where slices are none.

    In the order of their files, as `Cases.units` are.

    table: the label table, if any, whose patient column counts before the files' headers. Raises
    LabelError where nothing has both a mask and features, or a slice names no patient.
    """
    names = Names(store.path, config.data.paths)
    every = names.revealed(store.slices())
    status = store.status()
    # Of the slices with a mask, those with features; the tally counts the others.
    ready = masks.rows[status[masks.rows] == OK]
    if not len(ready):
        raise LabelError(
            f"None of the {len(masks.rows)} slices with a mask has features. Run `radprobe "
            "extract`."
        )
    numbers = every["row"].to_numpy()
    tally = _tally(masks, status, numbers, len(ready))
    places = np.searchsorted(numbers, ready)
    slices = every.take(pa.array(places))
    patients = _patients(config, slices, names, table)
    rows = slice_rows(slices)
    ids, members = groups_of(rows)
    unit_of = np.empty(len(rows), np.int64)
    for i, of_unit in enumerate(members):
        unit_of[of_unit] = i
    # All slices of a unit are of one patient: the first one's.
    first = [of_unit[0] for of_unit in members]
    units = Units(
        y=_structures_present(masks, ready, members),
        groups=np.array(patients[first], np.str_),
        classes=masks.classes[1:],
        kind="multilabel",
        ids=np.array(ids, np.str_),
        rows=ready,
        unit=unit_of,
        tally=tally,
    )
    order = order_of_files(units, slices)
    parts = []
    for number in order.tolist():
        parts.append(Unit.of([rows[place] for place in members[number]]))
    return units.in_order(order), parts


def _tally(masks: StoredMasks, status: NDArray[np.uint8], live_rows: Rows, ready: int) -> Tally:
    """Count the slices that are not scored, and why; ready: the slices with a mask that are."""
    of_masked = status[masks.rows]
    with_features = int((status[live_rows] == OK).sum())
    unusable = masks.unusable
    examples = [f"{mask.source} {mask.detail}" for mask in unusable[:_EXAMPLES]]
    return Tally(
        unreadable_slices=int((of_masked == UNREADABLE).sum()),
        pending_slices=int((of_masked == VOID).sum()),
        unmatched_slices=with_features - ready,
        unmatched_labels=len(unusable),
        unmatched_label_examples=tuple(examples),
    )


def _patients(
    config: Config, slices: pa.Table, names: Names, table: LabelTable | None
) -> NDArray[Any]:
    """Return the patient (m,) of each slice. Raises LabelError where one names none."""
    if table is None:
        patients: NDArray[Any] = slices["patient"].to_numpy(zero_copy_only=False)
    else:
        patients = patients_of(table, slices, config.data.root, names)
    nameless = np.flatnonzero([patient is None for patient in patients])
    if len(nameless):
        path, row = (slices[name][int(nameless[0])].as_py() for name in ("path", "row"))
        example = names.in_message(path, row)
        raise LabelError(
            f"{len(nameless)} slices with a mask name no patient, for example {example}, so "
            "they cannot be split by patient. Name the column that does in labels.patient, or a "
            "pattern of the path in data.patient."
        )
    return patients


def groups_of(rows: Sequence[SliceRow]) -> tuple[list[str], list[list[int]]]:
    """Return the id of each unit, a series or the row of an image, and its slices' places.

    An image is a slice that lies nowhere, in a file of its own: slices of one series that name no
    place are no volume, but for the frames of one file, which are in order.
    """
    frames = Counter((row.series, row.path) for row in rows)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        single = frames[row.series, row.path] == 1
        alone = single and row.position_mm is None
        number = f"{row.row}" if alone else ""
        groups.setdefault((row.series, number), []).append(place)
    ids = [number or series for series, number in groups]
    return ids, list(groups.values())


def _structures_present(
    masks: StoredMasks, rows: Rows, members: Sequence[Sequence[int]]
) -> NDArray[np.int8]:
    """Return (n, c - 1): whether each unit has a pixel of each structure; members: by place."""
    of_slices = masks.present(rows)[:, 1:]
    of_units = []
    for places in members:
        of_units.append(of_slices[places].max(axis=0))
    return np.stack(of_units).astype(np.int8)


# --- label values of a unit ----------------------------------------------------------------------


def native_mask(masks: StoredMasks, unit: Unit) -> Labels:
    """Return a unit's mask at native resolution: (z, H, W), or (H, W) of an image."""
    planes = [masks.labels(row) for row in unit.rows]
    return np.stack(planes) if unit.volume else planes[0]


def native_labels(unit: Unit, labels: Sequence[Labels], placements: Sequence[Placement]) -> Labels:
    """Return label values (S, S) of a unit's slices at native size: (z, H, W), or (H, W).

    placements: where the input lies in each slice.
    """
    planes = []
    for at_input, (shape, shows) in zip(labels, placements, strict=True):
        planes.append(to_slice(at_input, shows, shape))
    return np.stack(planes) if unit.volume else planes[0]
