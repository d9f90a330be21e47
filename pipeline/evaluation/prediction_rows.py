"""What was predicted of each test unit, as a table for people: by real paths and their own keys.

It goes where whoever asks says, never into a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import Texts, read_labels
from pipeline.annotations.label_join import column_texts, label_keys, label_rows
from pipeline.annotations.labels import labelled_patients
from pipeline.annotations.levels import LEVELS
from pipeline.annotations.units import Truth
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.result_files import (
    predicted_units,
    predictions_path,
    read_predictions,
    read_thresholds,
)
from pipeline.results import Result
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.slices import with_column

# A row a test unit and class. path: of the unit's first file, under data.root; key: what the label
# file joins it by, where that is no path; structure: that a region is, else null; truth: 1, 0, or
# the number; null where not known.
PREDICTION_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("method", pa.string()),
        ("path", pa.string()),
        ("key", pa.string()),
        ("structure", pa.string()),
        ("class", pa.string()),
        ("truth", pa.float64()),
        # a probability, or the number
        ("predicted", pa.float64()),
        ("called_from", pa.float64()),
        # whose model predicted it; null where one did
        ("fold", pa.int64()),
    ]
)


def prediction_rows(config: Config, results: Sequence[Result]) -> pa.Table:
    """Return what answers predicted of their test units (PREDICTION_SCHEMA), by their main setting.

    Answers that keep none, such as those of few shots, have no rows. Raises ConfigError where the
    key of the store is gone, without which paths are hidden.
    """
    store = FeatureStore.open(config.store)
    units = _UnitNames(config, store)
    pieces = [PREDICTION_SCHEMA.empty_table()]
    for result in results:
        if predictions_path(store.path, result).is_file():
            pieces.append(_rows(store, result, units))
    return pa.concat_tables(pieces)


def _rows(store: FeatureStore, result: Result, units: _UnitNames) -> pa.Table:
    truth, proba, fold = read_predictions(store.path, result)
    thresholds = read_thresholds(store.path, result)
    ids = predicted_units(store.path, result)
    paths, keys = units.of(result.level, ids)
    n = len(ids)
    structures = [LEVELS[result.level].part(name) for name in ids.tolist()]
    pieces = []
    for j, name in enumerate(result.classes):
        columns: dict[str, Any] = {
            "task": [result.task] * n,
            "method": [result.method] * n,
            "path": paths,
            "key": keys,
            "structure": structures,
            "class": [name] * n,
            "truth": _truth(truth, j),
            "predicted": proba[:, j],
            "called_from": pa.array(thresholds[:, j], pa.float64(), from_pandas=True),
            "fold": [None] * n if fold is None else fold,
        }
        pieces.append(pa.table(columns, schema=PREDICTION_SCHEMA))
    return pa.concat_tables(pieces)


def _truth(truth: Truth, j: int) -> pa.Array:
    """Return (n,) the number of each unit, or whether it carries a class; null where not known."""
    if truth.kind == "regression":
        return pa.array(truth.y, pa.float64())
    return pa.array(truth.indicator[:, j].astype(np.float64), mask=~truth.known[:, j])


class _UnitNames:
    """The real path and the label file's key of any unit of a store."""

    def __init__(self, config: Config, store: FeatureStore) -> None:
        names = Names(store.path, config.data.paths)
        shown = store.slices()
        slices = names.revealed(shown)
        patients = labelled_patients(config, slices, names)
        if patients is not None:
            shown = with_column(shown, "patient", pa.array(patients, pa.string()))
        self._shown = shown
        self._paths = column_texts(slices, "path")
        self._keys = _keys(config, slices, names)
        self._first: dict[Level, dict[str, int]] = {}

    def of(self, level: Level, ids: NDArray[np.str_]) -> tuple[list[str], list[str | None]]:
        """Return the first file of each unit, and its key."""
        first = self._first.setdefault(level, {})
        if not first.keys() >= {*ids.tolist()}:
            named = [*LEVELS[level].places(self._shown, ids.tolist())]
            # The first of each, since later ones are written over.
            first |= {name: i for i, name in reversed(named)}
        places = [first[name] for name in ids.tolist()]
        return [self._paths[place] for place in places], [self._keys[place] for place in places]


def _keys(config: Config, slices: pa.Table, names: Names) -> Texts:
    """Return (m,) the cell that joins each slice; None where labels name paths, which stand so."""
    if config.labels is None or config.labels.by == "path":
        return np.full(len(slices), None, dtype=object)
    table = read_labels(config.labels, [])
    keys = label_keys(table, slices, config.data.root, names).keys
    raw = np.array([*table.columns[config.labels.key], None], dtype=object)
    texts: Texts = raw[label_rows(table, keys, slices)]
    return texts
