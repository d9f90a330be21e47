"""Predicted masks as tables, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.config.tasks import Part
from pipeline.evaluation.result_files import MASKS
from pipeline.evaluation.splits import PARTS
from pipeline.results import PartCount
from pipeline.segmentation.cases import Asked
from stores.errors import OccupiedError

if TYPE_CHECKING:
    from pipeline.segmentation.contracts import Parts
    from pipeline.segmentation.export import Unwritten
    from pipeline.segmentation.scores import Measured


Labels2D = NDArray[np.uint8]


def check_empty(out: Path) -> None:
    """Raise OccupiedError where `out` holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OccupiedError(f"{str(out)!r} is not empty. Name a folder that is, or a new one.")


def write_predictions(config: Config, out: Path) -> tuple[list[Path], list[Unwritten]]:
    """Write what each head, or tuned network, predicted on the test units, under `out`.

    Of answers on file. Return the files, and the units that could not be written. Raises
    OccupiedError where `out` holds anything, ConfigError, LabelError.
    """
    from pipeline.segmentation.export import write_pictures, write_units

    check_empty(out)
    written: list[Path] = []
    failed: list[Unwritten] = []
    for task in config.masks:
        asked = Asked.of(config, task)
        for head in asked.filed:
            predicted = read_predicted(asked, head)
            files, unwritten = write_units(asked, predicted, out / task / head)
            written, failed = written + files, failed + unwritten
            gone = {each.row for each in unwritten}
            seen = {row: labels for row, labels in predicted.items() if row not in gone}
            written += write_pictures(asked, seen, out / "pictures" / task, head)
    return written, failed


def _unit_table(
    asked: Asked,
    order: NDArray[np.int64],
    draw: NDArray[np.int64],
    measured: Measured,
    setting: dict[str, float],
) -> pa.Table:
    units: Units = asked.cases.units
    n, structures = len(order), asked.kept.classes[1:]
    tables = []
    for j, structure in enumerate(structures):
        columns = {
            "unit": units.ids[order],
            "patient": units.groups[order],
            "setting": [json.dumps(setting)] * n,
            "draw": draw,
            "structure": [structure] * n,
        }
        columns |= {name: values[:, j] for name, values in measured.values.items()}
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _label_table(drawn: Sequence[tuple[int, Labels2D]]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array([row for row, _ in drawn], pa.int64()),
            "size": pa.array([len(labels) for _, labels in drawn], pa.int32()),
            "labels": pa.array(
                [zlib.compress(np.ascontiguousarray(labels).tobytes(), 1) for _, labels in drawn],
                pa.binary(),
            ),
        }
    )


def read_predicted(asked: Asked, head: str) -> dict[int, Labels2D]:
    """Return the label values (S, S) that a head predicted for each row of the test units."""
    table = pq.read_table(asked.path(head).with_suffix(MASKS))
    return {
        row["row"]: np.frombuffer(zlib.decompress(row["labels"]), np.uint8).reshape(
            row["size"], row["size"]
        )
        for row in table.to_pylist()
    }


def _counts(asked: Asked, turns: Sequence[Parts]) -> dict[Part, PartCount]:
    sides = {**turns[0], "test": np.concatenate([turn["test"] for turn in turns])}
    units, found = asked.cases.units, {}
    for part in PARTS:
        own = units.at(sides[part])
        positives = dict(zip(units.classes, own.indicator.sum(axis=0).tolist(), strict=True))
        found[part] = PartCount(
            units=len(sides[part]), patients=len(np.unique(own.groups)), positives=positives
        )
    return found
