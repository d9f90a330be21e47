"""Predictions as DICOM structured reports: a file a unit, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.fitted.draw import TABLE
from pipeline.fitted.model import Model
from pipeline.fitted.predict import (
    PredictTally,
    live_units,
    lost_rows,
    predict_piece,
    schema_of,
    with_tag,
)
from pipeline.fitted.record import ModelRecord
from pipeline.fitted.sources import FolderOptions, open_source
from pipeline.io.decode import check_tags
from pipeline.io.sniff import sniff
from pipeline.segmentation.mask_writer import dicom_name, place_for, read_dataset
from pipeline.segmentation.predictions import check_empty
from pipeline.shared.paths import collection_file, unescape_path
from pipeline.shared.table_files import table_writer
from stores.errors import ConfigError, UnreadableError
from stores.leaving import leaving

SUFFIX = ".sr.dcm"


def report(
    model: Model,
    target: Path,
    out: Path,
    options: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
    *,
    tag: str | None = None,
) -> PredictTally:
    """Write a structured report of each unit of DICOM files into the new folder `out`.

    Beside them the table that `predict` writes, with the name of each report, as TABLE; it is there
    once all is. Raises as `predict` does, and OccupiedError where `out` holds anything.
    """
    check_empty(out)
    check_tags([tag] if tag else [])
    with open_source(model, target, options) as source:
        root = source.root
        if root is None or not source.names.has_key:
            raise ConfigError(
                f"Reports name patient and study as their files do, and {source.store.place} alone "
                "does not say where they are. Name the config or the folder, not the store."
            )
        with leaving(source.store) as written:
            written.append(out)
            live = live_units(model, source)
            tally = PredictTally(other=live.other, pending=live.pending, notes=list(source.notes))
            schema = schema_of(model.record).append(pa.field("files", pa.string()))
            columns = schema if tag is None else schema.insert(0, pa.field(tag, pa.string()))
            with table_writer(out / TABLE, columns) as write:
                for piece in live.pieces():
                    rows = predict_piece(model, source, piece, tally).units.to_pylist()
                    for number, row in enumerate(rows):
                        paths = piece.paths_of(number)
                        _report(model.record, row, root, paths, out, tally)
                    table = pa.Table.from_pylist(rows, schema=schema)
                    write(table if tag is None else with_tag(table, source, tag))
                write(pa.Table.from_pylist(lost_rows(source, tally), schema=columns))
    return tally


def _report(
    record: ModelRecord,
    row: dict[str, Any],
    root: Path,
    paths: Sequence[str],
    out: Path,
    tally: PredictTally,
) -> None:
    """Write the report of a unit; put its name into its row, or why there is none."""
    row["files"] = ""
    if not paths:  # nothing is said of it
        return
    try:
        file = _write(record, row, [collection_file(root, path) for path in paths], paths[0], out)
        row["files"] = file.relative_to(out).as_posix()
    except UnreadableError as error:
        why = str(error)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        # A library's words may quote a header: the kind alone is reported.
        why = type(error).__name__
    else:
        return
    tally.unwritten += 1
    row["notes"] = "; ".join(filter(None, [row["notes"], f"there is no report of it: {why}"]))


def _write(
    record: ModelRecord, row: dict[str, Any], files: Sequence[Path], first: str, out: Path
) -> Path:
    """Write the report of some files; return where. Raises UnreadableError of what is no DICOM."""
    # highdicom takes a second to import, and most predictions need none of it.
    from pipeline.fitted.dicom_report import report_of

    if any(sniff(file) != "dicom" for file in files):
        raise UnreadableError("unsupported", "its files are no DICOM")
    made = report_of(record, row, [read_dataset(file, pixels=False) for file in files])
    name = unescape_path(first)
    path = place_for(out, dicom_name(name, is_alone=len(files) == 1), SUFFIX, name)
    made.save_as(path)
    return path
