"""Masks drawn on images by a model: a file an image in its own space, and a table of all of them.

Images are taken some at a time, so that memory holds those alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.evaluation.known import known_units
from pipeline.fitted.images import LiveImage, LiveImages
from pipeline.fitted.mask_model import MaskModel, features_of
from pipeline.fitted.predict import LEARNT, UNLIKE_AT, RunTally, lost_rows, with_tag
from pipeline.fitted.record import MaskRecord
from pipeline.fitted.sources import FolderOptions, Source, open_source
from pipeline.io.decode import check_tags
from pipeline.report.wording import RANDOM
from pipeline.segmentation.contracts import FittedHead
from pipeline.segmentation.export import try_writing
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.mask_writer import MaskForm, UnitLabels
from pipeline.segmentation.placement import placement_of
from pipeline.segmentation.predictions import check_empty
from pipeline.segmentation.sources import NoMasks, StoreSource
from pipeline.segmentation.units import Unit, native_labels
from pipeline.shared.table_files import table_writer
from stores.errors import ConfigError, UnreadableError
from stores.features import FeatureStore
from stores.leaving import leaving

# The table, in the folder of the masks.
TABLE = "units.csv"
# Slices that are drawn on together, or those of one volume.
SLICES_AT_ONCE = 64


@dataclass
class DrawTally(RunTally):
    """What a run of drawing came to. files: of masks."""

    files: int = 0


def draw(
    model: MaskModel,
    target: Path,
    out: Path,
    options: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
    *,
    tag: str | None = None,
    to: MaskForm = "files",
) -> DrawTally:
    """Draw masks on the images of a folder, or of a config's store; return the counts.

    They are written into the new folder `out`, as `segment --out` writes them, beside the table
    TABLE (see `schema_of`), which is there once all is. to: NIfTI and PNG, or DICOM segmentations.
    tag: a DICOM keyword, whose value in each unit's first file is a column more. Raises as
    `open_source` does, and OccupiedError where `out` holds anything; nothing is written then.
    """
    check_empty(out)
    check_tags([tag] if tag else [])
    with open_source(model, target, options) as source, leaving(source.store) as written:
        written.append(out)
        return _draw(_Drawing.of(model, source, out, to, options.speed.device), tag)


# --- the columns -----------------------------------------------------------------------------


def schema_of(record: MaskRecord) -> pa.Schema:
    """Return the columns of the table.

    unit: pseudonym of the series, or row number of the image; path: of its first slice; patient: a
    pseudonym; slices: drawn on. pixels: of each structure, at the image's own resolution; mm3: what
    they fill, of volumes whose files say how large a voxel is. files: of the mask, under the folder
    of the table. unlike, unlike_p: as predictions of tasks have them.
    """
    columns = [
        ("unit", pa.string()),
        ("path", pa.string()),
        ("frame", pa.int64()),
        ("patient", pa.string()),
        ("slices", pa.int64()),
    ]
    columns += [(f"pixels:{name}", pa.int64()) for name in record.structures]
    columns += [(f"mm3:{name}", pa.float64()) for name in record.structures]
    columns += [("unlike", pa.float64()), ("unlike_p", pa.float64())]
    columns += [("files", pa.string()), ("notes", pa.string())]
    return pa.schema(columns)


# --- some images after others ----------------------------------------------------------------


@dataclass(frozen=True)
class _Drawing:
    """What all images of a run share. source: where the images, tokens and their store are."""

    model: MaskModel
    source: Source
    config: Config
    slices: StoreSource
    live: LiveImages
    out: Path
    to: MaskForm
    device: str

    @classmethod
    def of(cls, model: MaskModel, source: Source, out: Path, to: MaskForm, device: str) -> _Drawing:
        """Raises ConfigError where the files are not known, or there is nothing to draw on."""
        store = source.store
        config = source.config
        if config is None or not source.names.has_key:
            raise ConfigError(
                f"Masks are written in the space of their images, and {store.place} alone does not "
                "say where they are. Name the config or the folder, not the store."
            )
        live = LiveImages.of(store, source.names, source.patients)
        if not live.readable:
            raise ConfigError(
                f"{store.place} holds no slice with features to draw on: {live.pending} await "
                "`radprobe extract`."
            )
        slices = StoreSource(config, store, NoMasks(model.record.classes))
        return cls(model, source, config, slices, live, out, to, device)

    @property
    def store(self) -> FeatureStore:
        """The store of the images."""
        return self.source.store


def _draw(drawing: _Drawing, tag: str | None) -> DrawTally:
    tally = DrawTally(pending=drawing.live.pending, notes=list(drawing.source.notes))
    schema = schema_of(drawing.model.record)
    columns = schema if tag is None else schema.insert(0, pa.field(tag, pa.string()))
    with table_writer(drawing.out / TABLE, columns) as write:
        for rows in _rows(drawing, tally):
            piece = pa.Table.from_pylist(rows, schema=schema)
            write(piece if tag is None else with_tag(piece, drawing.source, tag))
    return tally


def _rows(drawing: _Drawing, tally: DrawTally) -> Iterator[list[dict[str, Any]]]:
    """Yield the table's rows of some images after others, then of the files without images."""
    head: FittedHead | None = None
    source = drawing.slices
    needs_tokens = drawing.model.record.needs_tokens
    at_once = max(SLICES_AT_ONCE, source.chunk_rows if needs_tokens else 1)
    for images in drawing.live.pieces(at_once):
        labels: dict[int, Labels] = {}
        rows = [image.rows for image in images if image.slices]
        if rows:
            if head is None:
                head = drawing.model.head(source, rows[0], drawing.device)
            labels = labels_of(head, source, rows)
        distances = _distances(drawing, images).tolist()
        learnt = _learnt(drawing, images)
        tally.learnt += int(learnt.sum())
        yield [
            _row(drawing, image, labels, distance, is_learnt, tally)
            for image, distance, is_learnt in zip(images, distances, learnt.tolist(), strict=True)
        ]
    yield lost_rows(drawing.source, tally)


def labels_of(
    head: FittedHead, source: StoreSource, units: Sequence[NDArray[np.int64]]
) -> dict[int, Labels]:
    """Return row -> label values (S, S) of the slices of some units; none of one with a bad image.

    units: the rows of each.
    """
    try:
        return dict(head.predict(source, np.sort(np.concatenate(units))))
    except UnreadableError:
        if len(units) == 1:
            return {}
    labels = {}
    for rows in units:
        labels.update(labels_of(head, source, [rows]))
    return labels


def _distances(drawing: _Drawing, images: Sequence[LiveImage]) -> NDArray[np.float64]:
    """Return (n,) how far each image is from those learnt from; NaN where it has no features."""
    distances = np.full(len(images), np.nan)
    there, units = _with_features(images)
    if there:
        x = features_of(drawing.store, units)
        distances[there] = drawing.model.references.distances_of(x)
    return distances


def _learnt(drawing: _Drawing, images: Sequence[LiveImage]) -> NDArray[np.bool_]:
    """Return (n,) which are of patients, or have pixels, that the model has learnt from."""
    learnt = np.zeros(len(images), bool)
    there, units = _with_features(images)
    if there:
        learnt[there] = known_units(drawing.store, units, drawing.model.training)
    return learnt


def _with_features(images: Sequence[LiveImage]) -> tuple[list[int], Units]:
    """Return the numbers of the images with features, and these as units, grouped by patient."""
    there = [i for i, image in enumerate(images) if image.slices]
    rows = [images[i].rows for i in there]
    unit = np.repeat(np.arange(len(there)), [len(each) for each in rows])
    names = np.array([images[i].name for i in there], np.str_)
    units = Units.unlabelled(names, np.concatenate([*rows, np.zeros(0, np.int64)]), unit)
    # An image of no patient is a group of its own.
    patients = [images[i].first.patient or images[i].name for i in there]
    return there, replace(units, groups=np.array(patients, np.str_))


# --- one image -------------------------------------------------------------------------------


def _row(
    drawing: _Drawing,
    image: LiveImage,
    labels: dict[int, Labels],
    distance: float,
    is_learnt: bool,
    tally: DrawTally,
) -> dict[str, Any]:
    """Write an image's mask; return its row of the table."""
    record = drawing.model.record
    first = image.first
    row: dict[str, Any] = {
        "unit": image.name,
        "path": first.path,
        "frame": first.frame,
        "patient": first.patient or "",
        "slices": len(image.slices),
    }
    notes = _notes(record, image)
    if is_learnt:
        notes.append(LEARNT)
    if not math.isnan(distance):  # of an image without a slice there is none
        at = np.array([distance])
        row["unlike"] = float(drawing.model.references.percentiles(at)[0])
        row["unlike_p"] = float(drawing.model.references.p_values(at)[0])
        if row["unlike_p"] <= UNLIKE_AT:
            tally.unlike += 1
            notes.append("unlike the images that the model learnt from")
    # A volume is drawn whole or not at all: a slice left out would be read as one without anything.
    if not image.slices or not all(each.row in labels for each in image.slices):
        if image.slices:
            notes.append("an image cannot be read any more")
        tally.unreadable += 1
        return row | {"notes": "; ".join(notes)}
    at_input = [labels[each.row] for each in image.slices]
    try:
        native, unit = _native(drawing, image, at_input)
    except UnreadableError as error:
        tally.unreadable += 1
        return row | {"notes": "; ".join([*notes, f"cannot be drawn: {error.reason}"])}
    tally.units += 1
    row |= sizes_of(record, unit, native)
    written, why = _write(drawing, image, unit, native)
    tally.files += len(written)
    if not written:
        tally.unwritten += 1
        notes.append(why)
    names = [path.relative_to(drawing.out).as_posix() for path in written]
    return row | {"files": ";".join(names), "notes": "; ".join(notes)}


def _notes(record: MaskRecord, image: LiveImage) -> list[str]:
    """Return what is to be known of an image beside its mask."""
    notes = [RANDOM] if record.random else []
    if not image.slices:
        return [*notes, f"no slice can be read: {image.why}"]
    if image.unreadable:
        notes.append(f"{image.unreadable} slices cannot be read, and have no mask: {image.why}")
    if image.first.modality not in record.trained_on.modalities:
        notes.append(f"modality {image.first.modality}, of which the model has seen none")
    return notes


def _native(drawing: _Drawing, image: LiveImage, at_input: Sequence[Labels]) -> tuple[Labels, Unit]:
    """Return an image's label values at its own resolution. Raises UnreadableError."""
    root = drawing.config.data.root
    preprocess = drawing.config.preprocess
    unit = Unit.of(image.slices)
    placements = [placement_of(row, root, preprocess) for row in image.slices]
    return native_labels(unit, at_input, placements), unit


def sizes_of(record: MaskRecord, unit: Unit, native: Labels) -> dict[str, Any]:
    """Return the pixels of each structure, and mm3 where an image is a volume of known voxels."""
    counts = np.bincount(native.ravel(), minlength=len(record.classes))
    sizes: dict[str, Any] = {}
    for name, count in zip(record.structures, counts[1:].tolist(), strict=True):
        sizes[f"pixels:{name}"] = count
        if unit.volume and unit.in_mm:
            sizes[f"mm3:{name}"] = count * math.prod(unit.spacing)
    return sizes


def _write(
    drawing: _Drawing, image: LiveImage, unit: Unit, native: Labels
) -> tuple[list[Path], str]:
    """Write an image's mask; return its files, and why there are none."""
    labels = UnitLabels(
        root=drawing.config.data.root,
        slices=image.slices,
        planes=list(native) if unit.volume else [native],
        plane=drawing.config.preprocess.plane,
        classes=drawing.model.record.classes,
    )
    written, why = try_writing(labels, drawing.out, [drawing.to])
    if why:
        return [], f"its mask is not written: {why}"
    if not written:
        return [], "no DICOM file a slice: there is no DICOM segmentation of it"
    return written, ""
