"""Predicted masks as tables, and back; and as files and pictures in a folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.config.root import Config
from pipeline.config.tasks import Part
from pipeline.evaluation.result_files import MASKS, read_units
from pipeline.evaluation.splits import PARTS
from pipeline.results import PartCount
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.masks import inflate
from pipeline.shared.pseudonyms import Names
from pipeline.shared.table_files import table_writer
from stores.errors import CorruptStoreError, OccupiedError, as_corrupt
from stores.features import FeatureStore
from stores.filed_tables import read_filed_table
from stores.leaving import leaving

if TYPE_CHECKING:
    from pipeline.segmentation.export import Unwritten
    from pipeline.segmentation.scores import UnitScores


_LABEL_KINDS = {
    "row": pa.types.is_integer,
    "size": pa.types.is_integer,
    "labels": pa.types.is_binary,
}
# What of `segment --out` has the scores of each unit.
SCORES = "scores.csv"

# --- files and pictures --------------------------------------------------------------------------


def check_empty(out: Path) -> None:
    """Raise OccupiedError where `out` holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OccupiedError(f"{str(out)!r} is not empty. Name a folder that is, or a new one.")


def write_predictions(config: Config, out: Path) -> tuple[list[Path], list[Unwritten]]:
    """Write what each head, or tuned network, predicted on the test units, under `out`.

    Of answers on file, with scores.csv: a row a unit and structure. Return the files, and the units
    that could not be written. Raises OccupiedError where `out` holds anything, ConfigError,
    LabelError.
    """
    from pipeline.segmentation.export import write_pictures, write_units

    check_empty(out)
    written: list[Path] = []
    scores: list[pa.Table] = []
    failed: list[Unwritten] = []
    with leaving(FeatureStore.open(config.store)) as left:
        left.append(out)
        for task in config.masks:
            cases = SegmentationCases.of(config, task)
            for head in cases.heads_on_file():
                predicted = read_predicted(cases, head)
                files, unwritten = write_units(cases, predicted, out / task / head)
                written += files
                failed += unwritten
                # A unit whose image could not be read has no picture either.
                for unit in unwritten:
                    del predicted[unit.row]
                written += write_pictures(cases, predicted, out / "pictures" / task, head)
                scores.append(_scores_by_path(cases, head))
        if scores:
            table = pa.concat_tables(scores, promote_options="default")
            with table_writer(out / SCORES, table.schema) as write:
                write(table)
            written.append(out / SCORES)
    return written, failed


def _scores_by_path(cases: SegmentationCases, head: str) -> pa.Table:
    """Return the scores of each test unit and structure, by the path of the unit's first file."""
    names = Names(cases.store.path, cases.config.data.paths)
    slices = names.revealed(cases.store.slices(["row", "path"]))
    rows = [unit.rows[0] for unit in cases.units]
    places = np.searchsorted(slices["row"].to_numpy(), rows)
    paths = slices["path"].take(pa.array(places)).to_pylist()
    path_of = dict(zip(cases.task_cases.units.ids.tolist(), paths, strict=True))
    table = read_units(cases.path(head))
    scored = table["unit"].to_pylist()
    columns = {
        "masks": [cases.task_cases.name] * len(scored),
        "head": [head] * len(scored),
        "path": [],
    }
    with as_corrupt(str(cases.path(head))):
        columns["path"] = [path_of[unit] for unit in scored]
    others = table.drop_columns(["unit", "patient", "setting", "draw"])
    return pa.table(columns | dict(zip(others.column_names, others.columns, strict=True)))


# --- tables --------------------------------------------------------------------------------------


def unit_table(
    cases: SegmentationCases, order: Rows, draw: Rows, scores: UnitScores, setting: dict[str, float]
) -> pa.Table:
    """Return a row a scored unit and structure. order, draw (n,): the units, and of which draw."""
    units = cases.task_cases.units
    n = len(order)
    tables = []
    for i, structure in enumerate(cases.masks.classes[1:]):
        columns = {
            "unit": units.ids[order],
            "patient": units.groups[order],
            "setting": [json.dumps(setting)] * n,
            "draw": draw,
            "structure": [structure] * n,
        }
        for name, values in scores.values.items():
            columns[name] = values[:, i]
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def label_table(predicted: Sequence[tuple[int, Labels]]) -> pa.Table:
    """Return a row a slice with its label values (S, S), as a zlib stream."""
    streams = []
    for _, labels in predicted:
        streams.append(zlib.compress(np.ascontiguousarray(labels).tobytes(), 1))
    return pa.table(
        {
            "row": pa.array([row for row, _ in predicted], pa.int64()),
            "size": pa.array([len(labels) for _, labels in predicted], pa.int32()),
            "labels": pa.array(streams, pa.binary()),
        }
    )


def read_predicted(cases: SegmentationCases, head: str) -> dict[int, Labels]:
    """Return the label values (S, S) that a head predicted for each row of the test units.

    Of those that were scored: one that cannot be read is no more. Raises CorruptStoreError where
    the table lacks a row of them.
    """
    path = cases.path(head).with_suffix(MASKS)
    table = read_filed_table(path, _LABEL_KINDS)
    predicted = {}
    with as_corrupt(str(path)):
        for row in table.to_pylist():
            size = row["size"]
            values = np.frombuffer(inflate(row["labels"], size * size), np.uint8)
            predicted[row["row"]] = values.reshape(size, size)
    scored = np.isin(cases.task_cases.units.ids, read_units(cases.path(head))["unit"].to_pylist())
    lacking = set(cases.rows_of(np.flatnonzero(scored)).tolist()) - predicted.keys()
    if lacking:
        raise CorruptStoreError(
            f"{path} has no masks of {len(lacking)} rows that were scored (first: {min(lacking)}). "
            "Remove the file and run the command that made it again."
        )
    return predicted


def part_counts(cases: SegmentationCases) -> dict[Part, PartCount]:
    """Return how many units and patients each part has, and how many show each structure.

    Of several folds train and val are the first one's, test is what they test together.
    """
    units = cases.task_cases.units
    folds = cases.task_cases.folds
    tested = np.concatenate([fold["test"] for fold in folds])
    counts = {}
    for part in PARTS:
        members = tested if part == "test" else folds[0][part]
        truth = units.at(members)
        positives = truth.indicator.sum(axis=0).tolist()
        counts[part] = PartCount(
            units=len(members),
            patients=len(np.unique(truth.groups)),
            positives=dict(zip(units.classes, positives, strict=True)),
        )
    return counts
