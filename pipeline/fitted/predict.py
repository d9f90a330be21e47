"""A model asked about images: a row a unit, piece by piece, so that memory holds one piece.

Dims: n units, c classes or labels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.tasks import CLASS_KINDS
from pipeline.evaluation.covariates import ColumnTexts
from pipeline.evaluation.known import known_units
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.slice_weights import SLICE_WEIGHTS, rows_of_weights
from pipeline.extraction.selection import LEFT_OUT, OTHER
from pipeline.fitted.columns import check_columns, columns_of
from pipeline.fitted.model import Model
from pipeline.fitted.record import ModelRecord
from pipeline.fitted.regions import check_target, regions_of
from pipeline.fitted.sources import FolderOptions, NoImagesError, Source, open_source
from pipeline.fitted.units import LiveUnits, Piece
from pipeline.io.decode import check_tags, read_headers
from pipeline.io.formats.limits import NO_PICTURE
from pipeline.report.wording import RANDOM
from pipeline.shared.paths import unescape_path
from pipeline.shared.table_files import check_suffix, table_writer
from stores.errors import ConfigError, StaleTablesError, UnreadableError
from stores.leaving import leaving

Doubles = NDArray[np.float64]
# Of images like those a model has learnt from, this share is called unlike.
UNLIKE_AT = 0.05
# Said of a unit whose patient, or pixels, the model knows: how right it is there shows nothing.
LEARNT = "the model has learnt from this patient or image"


@dataclass
class RunTally:
    """What a run of a model came to, whatever the model gives.

    units: with an answer. learnt: units of patients or images that the model has learnt from.
    unreadable: units and files without an answer. unlike: units with p <= UNLIKE_AT. pending:
    slices that await extraction. unwritten: units without the file that was asked for.
    files_set_aside: files that nobody took for images, which have no row, by what they are;
    folders_left_out: by what they are.
    """

    units: int = 0
    unlike: int = 0
    learnt: int = 0
    unreadable: int = 0
    pending: int = 0
    unwritten: int = 0
    files_set_aside: dict[str, int] = field(default_factory=dict)
    folders_left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class PredictTally(RunTally):
    """What a run of predictions came to. decided: units by what was decided.

    other: slices of other modalities.
    """

    decided: dict[str, int] = field(default_factory=dict)
    other: int = 0


def predict(
    model: Model,
    target: Path,
    out: Path,
    options: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
    *,
    tag: str | None = None,
) -> PredictTally:
    """Write what a model says of a store, a config's store or a folder; return the counts.

    A row a unit: see `schema_of`; of heads that weigh slices a row a slice beside it, in
    `slices_file`: see SLICE_WEIGHTS. tag: a DICOM keyword, whose value in each unit's first file is
    a column more, for the user's own eyes. Raises as `open_source` does, and writes nothing then.
    """
    _check_columns(out, tag)
    check_target(model.record.question, target)
    check_columns(model.record, target)
    with open_source(model, target, options) as source:
        return _write(model, source, out, tag)


def _check_columns(out: Path, tag: str | None) -> None:
    """Raise ConfigError for a file or a column that cannot be written: before hours of work."""
    check_suffix(out)
    check_tags([tag] if tag else [])


def _write(model: Model, source: Source, out: Path, tag: str | None) -> PredictTally:
    """Write what a model says of a source; return the counts."""
    with leaving(source.store) as written:
        live = live_units(model, source)
        tally = PredictTally(other=live.other, pending=live.pending, notes=list(source.notes))
        schema = schema_of(model.record)
        if tag is not None:
            schema = schema.insert(0, pa.field(tag, pa.string()))
        with contextlib.ExitStack() as files:
            write = files.enter_context(table_writer(out, schema))
            write_slices = None
            if model.sees == "slices":
                write_slices = files.enter_context(table_writer(slices_file(out), SLICE_WEIGHTS))
            for predicted in _predict_pieces(model, source, live, tally):
                write(predicted.units if tag is None else with_tag(predicted.units, source, tag))
                if write_slices is not None and predicted.slices is not None:
                    write_slices(predicted.slices)
        written.append(out)
        if write_slices is not None:
            written.append(slices_file(out))
    return tally


def slices_file(out: Path) -> Path:
    """Return where it is written, beside predictions, how much each slice counted."""
    return out.with_suffix(f".slices{out.suffix}")


def watch(
    model: Model,
    folder: Path,
    out: Path,
    options: FolderOptions,
    *,
    every_s: float,
    tag: str | None = None,
) -> Generator[PredictTally]:
    """Yield the counts each time a folder's images have changed and `out` was written anew.

    The folder is looked at every so many seconds, without end. What was embedded stays in
    `options.store`, so that whoever starts again goes on from there, and whoever reads `out` finds
    it whole. A file that is being copied is read again once it has grown. Raises ConfigError
    without a store, for what is no folder, and for a file or column that cannot be written.
    """
    if options.store is None or not folder.is_dir():
        raise ConfigError(
            "To watch, name a folder of images, and by --store where its features stay. Got "
            f"{str(folder)!r} and store {options.store}."
        )
    _check_columns(out, tag)
    check_target(model.record.question, folder)
    check_columns(model.record, folder)
    before = None
    while True:
        tally = None
        # An empty folder is one whose first image is still to come. What was taken back, since a
        # patient was withdrawn meanwhile, is written by the next look.
        passed_over = contextlib.suppress(NoImagesError, StaleTablesError)
        with passed_over, open_source(model, folder, options) as source:
            now = (source.store.fingerprint(), source.lost)
            if now != before:
                tally = _write(model, source, out, tag)
                before = now
        if tally is not None:
            yield tally
        time.sleep(every_s)


def with_tag(piece: pa.Table, source: Source, tag: str) -> pa.Table:
    """Return predictions with the value of a tag in each unit's first file; "" where none is."""
    if source.root is None or not source.names.has_key:
        raise ConfigError(
            f"{tag} is read from the files, and {source.store.place} alone does not say where they "
            "are. Name the config or the folder, not the store."
        )
    values = []
    for path in piece["path"].to_pylist():
        try:
            header = read_headers(source.root / unescape_path(path), tags=[tag])[0]
        except (UnreadableError, OSError):
            values.append("")
            continue
        values.append(header.tags.get(tag, ""))
    return piece.add_column(0, pa.field(tag, pa.string()), pa.array(values, pa.string()))


def predictions(
    model: Model,
    target: Path,
    options: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
) -> pa.Table:
    """Return what `predict` writes, as one table."""
    check_target(model.record.question, target)
    check_columns(model.record, target)
    with open_source(model, target, options) as source:
        live = live_units(model, source)
        pieces = [
            predicted.units for predicted in _predict_pieces(model, source, live, PredictTally())
        ]
    return pa.concat_tables([schema_of(model.record).empty_table(), *pieces])


def live_units(model: Model, source: Source) -> LiveUnits:
    """Return the units of a source. Raises ConfigError where the model is asked about none."""
    question = model.record.question
    regions = regions_of(question, source)
    live = LiveUnits.of(source.store, source.names, question, source.patients, regions)
    if not len(live):
        wanted = model.record.question.modality
        raise ConfigError(
            f"{source.store.place} holds no slice with features that the model is asked about: "
            f"{live.other} are of other modalities than {list(wanted or ())}, {live.pending} "
            "await `radprobe extract`."
        )
    return live


# --- the columns -----------------------------------------------------------------------------


def schema_of(record: ModelRecord) -> pa.Schema:
    """Return the columns of predictions.

    unit: row number, pseudonym, or path of a file that names none; path: of the unit's first slice,
    the real one where the key is there; patient: a pseudonym. proba: what `evaluate` says of such a
    unit; calibrated: made right on val; called_from: the operating point, the same in each row;
    decision: at it. unlike: what percentage
    of the images that the model learnt from is nearer to the others than this unit is; unlike_p:
    the conformal p-value. Without an image that can be read, all numbers are null and the notes say
    why.
    """
    columns = [
        ("unit", pa.string()),
        ("path", pa.string()),
        ("frame", pa.int64()),
        ("patient", pa.string()),
        ("slices", pa.int64()),
    ]
    columns += [(name, pa.float64()) for name in number_columns(record)]
    columns += [(name, pa.float64()) for name in calibrated_columns(record)]
    columns += [(name, pa.float64()) for name in point_columns(record)]
    if record.kind in CLASS_KINDS:
        columns += [("decision", pa.string())]
    columns += [("unlike", pa.float64()), ("unlike_p", pa.float64()), ("notes", pa.string())]
    return pa.schema(columns)


def number_columns(record: ModelRecord) -> list[str]:
    """Return the columns of what the head says: a probability a class, the number, or the risk."""
    if record.kind == "regression":
        return ["value"]
    if record.kind == "survival":
        return ["risk"]
    return [f"proba:{name}" for name in record.classes]


def calibrated_columns(record: ModelRecord) -> list[str]:
    """Return the columns of calibrated probabilities, where the model has any."""
    if record.calibration is None:
        return []
    return [f"calibrated:{name}" for name in record.classes]


def point_columns(record: ModelRecord) -> dict[str, float]:
    """Return from which probability on a class or label is called, by the name of its column.

    Of two classes that of the positive one; none where the likeliest is called, and of a number.
    """
    return {f"called_from:{name}": point for name, point in record.thresholds.items()}


def decisions(record: ModelRecord, proba: Doubles) -> list[str]:
    """Return (n,) what is decided at the operating point: the class, or the labels, parted by ";".

    Of several classes the likeliest.
    """
    classes = np.array(record.classes, np.str_)
    thresholds = np.array([record.thresholds.get(name, np.nan) for name in record.classes])
    called = is_called(proba, thresholds)
    if record.kind == "multilabel":
        return [";".join(classes[on]) for on in called]
    likeliest = proba.argmax(axis=1)
    if record.kind == "binary":
        likeliest = called[:, 1].astype(np.int64)
    decided: list[str] = classes[likeliest].tolist()
    return decided


# --- a piece at a time -----------------------------------------------------------------------


@dataclass(frozen=True)
class PredictedUnits:
    """What a model says of some units, a row each. slices: how much each of their slices counted
    (SLICE_WEIGHTS), of heads that say so.
    """

    units: pa.Table
    slices: pa.Table | None = None


def _predict_pieces(
    model: Model, source: Source, live: LiveUnits, tally: PredictTally
) -> Iterator[PredictedUnits]:
    """Yield what is said of some units after others, then of files that could not be read."""
    columns = columns_of(model.record, source)
    for piece in live.pieces():
        yield predict_piece(model, source, piece, tally, columns)
    lost = lost_rows(source, tally)
    if lost:
        yield PredictedUnits(pa.Table.from_pylist(lost, schema=schema_of(model.record)))


def lost_rows(source: Source, tally: RunTally) -> list[dict[str, Any]]:
    """Return a row for each file that could not be read, which says why, and count it.

    What nobody took for an image is counted alone, so that no file goes without a word.
    """
    rows = []
    for each in source.lost:
        if each.frame is not None:  # of a slice, whose unit tells it
            continue
        if each.detail.startswith(LEFT_OUT):
            _add_one(tally.folders_left_out, each.detail.removeprefix(LEFT_OUT))
        elif each.reason == OTHER:
            _add_one(tally.files_set_aside, each.detail.removeprefix(NO_PICTURE))
        else:
            note = f"cannot be read: {each.reason}" + (f" ({each.detail})" if each.detail else "")
            rows.append({"unit": "", "path": each.path, "slices": 0, "notes": note})
    tally.unreadable += len(rows)
    return rows


def _add_one(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def predict_piece(
    model: Model,
    source: Source,
    piece: Piece,
    tally: PredictTally,
    covariates: ColumnTexts | None = None,
) -> PredictedUnits:
    """Return what a model says of some units, and count it.

    covariates: what the columns that it sees say, of heads that see any.
    """
    record = model.record
    n = len(piece.ids)
    numbers = np.full((n, len(number_columns(record))), np.nan)
    calibrated = np.full((n, len(calibrated_columns(record))), np.nan)
    percentile = np.full(n, np.nan)
    p = np.full(n, np.nan)
    slices: pa.Table | None = None
    decided: list[str | None] = [None] * n
    learnt = np.zeros(n, bool)
    at = piece.answered
    if len(at):
        answer = model.answer(source.store, piece.units, covariates)
        proba = answer.proba
        distance = answer.distances
        if answer.weights is not None:
            slices = rows_of_weights(piece.slices, answer.weights, piece.ids[at].tolist())
        numbers[at] = proba
        if record.calibration is not None:
            calibrated[at] = record.calibration.apply(proba, record.classes, record.kind)
        percentile[at] = model.references.percentiles(distance)
        p[at] = model.references.p_values(distance)
        learnt[at] = known_units(source.store, piece.units_by_patient, model.training)
        if record.kind in CLASS_KINDS:
            for i, name in zip(at.tolist(), decisions(record, proba), strict=True):
                decided[i] = name
                tally.decided[name] = tally.decided.get(name, 0) + 1
    tally.units += len(at)
    tally.unreadable += n - len(at)
    tally.unlike += int((p <= UNLIKE_AT).sum())
    tally.learnt += int(learnt.sum())
    columns: dict[str, Any] = {
        "unit": piece.ids,
        "path": piece.paths,
        "frame": piece.frames,
        "patient": piece.patients,
        "slices": piece.sizes,
        "decision": decided,
        "unlike": _or_null(percentile),
        "unlike_p": _or_null(p),
        "notes": _notes(record, piece, p, learnt, covariates),
    }
    for name, column in zip(number_columns(record), numbers.T, strict=True):
        columns[name] = _or_null(column)
    for name, column in zip(calibrated_columns(record), calibrated.T, strict=True):
        columns[name] = _or_null(column)
    for name, point in point_columns(record).items():
        columns[name] = np.full(n, point)
    schema = schema_of(record)
    return PredictedUnits(
        pa.table({name: columns[name] for name in schema.names}, schema=schema), slices
    )


def _or_null(values: Doubles) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


def _notes(
    record: ModelRecord,
    piece: Piece,
    p: Doubles,
    learnt: NDArray[np.bool_],
    covariates: ColumnTexts | None,
) -> list[str]:
    """Return (n,) what is to be known of each unit beside its numbers, parted by "; "."""
    fewest, most = record.trained_on.slices
    lacking: dict[int, list[str]] = {}
    if covariates is not None:
        texts = covariates.of_units(piece.units)
        for column in record.covariates.columns:
            for place in np.flatnonzero(column.is_missing(texts[column.name])).tolist():
                lacking.setdefault(int(piece.answered[place]), []).append(column.name)
    each = []
    for i in range(len(piece.ids)):
        notes = [RANDOM] if record.random else []
        size = int(piece.sizes[i])
        if not size:
            notes.append(f"no slice can be read: {piece.why[i]}")
        elif piece.unreadable[i]:
            notes.append(f"{piece.unreadable[i]} slices cannot be read: {piece.why[i]}")
        vectors = int(piece.vectors[i])
        if vectors and not fewest <= vectors <= most:
            what = "slices" if vectors == size else "volumes"
            notes.append(f"{vectors} {what}, the model learnt from units of {fewest} to {most}")
        if piece.modalities[i] not in record.trained_on.modalities:
            notes.append(f"modality {piece.modalities[i]}, of which the model has seen none")
        if p[i] <= UNLIKE_AT:
            notes.append("unlike the images that the model learnt from")
        if learnt[i]:
            notes.append(LEARNT)
        if i in lacking:
            notes.append(f"no value of {', '.join(lacking[i])}: what is usual stands for it")
        each.append("; ".join(notes))
    return each
