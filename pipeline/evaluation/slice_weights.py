"""Which slices mattered: how much each counted in what was said of its unit, as a filed table.

Heads that see slices and weigh them say it (`attention`, `transformer`). It lies beside the answer,
under the same name; paths are as the store has them, hidden where it hides them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotations.units import SliceWeights
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.folds import OutOfFold
from pipeline.evaluation.pairs import PairedCases
from pipeline.evaluation.result_files import predictions_path
from pipeline.results import Result
from stores.features import FeatureStore
from stores.filed_tables import read_filed_table

# What stands in an answer's file beside its name.
SLICES = ".slices.parquet"
# A row a slice of a unit. unit: as predictions name it; path, frame: of the slice's file;
# position_mm: along the normal of its volume; weight: sums to 1 over the slices of a unit.
SLICE_WEIGHTS = pa.schema(
    [
        ("unit", pa.string()),
        ("row", pa.int64()),
        ("path", pa.string()),
        ("frame", pa.int32()),
        ("position_mm", pa.float64()),
        ("weight", pa.float64()),
    ]
)


def weights_table(cases: Cases, tested: OutOfFold) -> pa.Table | None:
    """Return how much each slice of the test units counted (SLICE_WEIGHTS), by the main setting.

    None of a head that does not say.
    """
    if not tested.predictions:
        return None
    weights = tested.predictions[tested.chosen].weights
    if weights is None:
        return None
    # Of a pair the slices that test are of the second store, whose table this is.
    store = cases.tested.store if isinstance(cases, PairedCases) else cases.store
    ids = cases.units.ids[tested.rows]
    return rows_of_weights(store.slices(), weights, ids.tolist())


def rows_of_weights(slices: pa.Table, weights: SliceWeights, ids: list[str]) -> pa.Table:
    """Return a row a slice (SLICE_WEIGHTS); slices: a slice table, in any order; ids: of units."""
    rows = slices["row"].to_numpy()
    order = np.argsort(rows)
    place = order[np.searchsorted(rows, weights.rows, sorter=order)]
    of_slices = slices.select(["row", "path", "frame", "position_mm"]).take(pa.array(place))
    columns: dict[str, Any] = {name: of_slices[name] for name in of_slices.column_names}
    columns["unit"] = [ids[number] for number in weights.unit.tolist()]
    columns["weight"] = weights.weight
    return pa.table({name: columns[name] for name in SLICE_WEIGHTS.names}, schema=SLICE_WEIGHTS)


def slice_weights_path(store: Path, result: Result) -> Path:
    """Return where it lies how much slices counted in an answer, where that says it."""
    return predictions_path(store, result).with_suffix(SLICES)


def read_slice_weights(store: FeatureStore, result: Result) -> pa.Table | None:
    """Return how much each slice of an answer's test units counted (SLICE_WEIGHTS).

    None where the answer does not say. Raises CorruptStoreError for a damaged table.
    """
    path = slice_weights_path(store.path, result)
    return read_filed_table(path) if path.is_file() else None


def most_heeded(table: pa.Table, most: int) -> dict[str, list[tuple[int, float]]]:
    """Return row and weight of the slices of each unit that counted most, those first.

    table: SLICE_WEIGHTS.
    """
    rows = table["row"].to_numpy()
    weight = table["weight"].to_numpy()
    units = table["unit"].to_pylist()
    heeded: dict[str, list[tuple[int, float]]] = {}
    for i in np.argsort(-weight, kind="stable").tolist():
        of_unit = heeded.setdefault(units[i], [])
        if len(of_unit) < most:
            of_unit.append((int(rows[i]), float(weight[i])))
    return heeded
