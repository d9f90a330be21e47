"""Features that others computed: HDF5 and npy into a store of their own, marked as imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stores._disk import file_sha256
from stores._types import Values
from stores.contents import OK, ArraySpec
from stores.errors import ConfigError, UnreadableError
from stores.features import FeatureStore
from stores.hdf5 import member
from stores.layout import default_part_rows
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

_IDENTITIES = ("path", "patient", "study", "series", "instance")


@dataclass(frozen=True)
class Foreign:
    """Features (n, d) of another tool, and what is known of each row: columns by name."""

    source: Path
    features: Values
    columns: dict[str, list[Any]]
    ours: bool  # radprobe wrote it: its identifiers are pseudonyms


def read_foreign(source: Path, table: Path | None = None) -> Foreign:
    """Read `features` of an HDF5 file, or a .npy; table: a Parquet or CSV with a row a row.

    Without a table, the columns are those of the HDF5 file, or of the .parquet beside the .npy.
    Raises ConfigError where the features are not (n, d) or the columns not n long.
    """
    ours = False
    columns: dict[str, list[Any]] = {}
    if source.suffix == ".npy":
        features = np.load(source, allow_pickle=False)
        exported = source.with_suffix(".parquet")
        if table is None and exported.is_file():
            table = exported
            ours = True
    else:
        features, columns, ours = _read_h5(source)
    if table is not None:
        columns = _read_columns(table)
    if features.ndim == 3 and len(features) == 1:  # (1, n, d), as some MIL tools write it
        features = features[0]
    lengths = {len(features), *map(len, columns.values())}
    if features.ndim != 2 or len(lengths) != 1:
        raise ConfigError(
            f"{source} must hold features (n, d) and columns of n values each. Got features "
            f"{features.shape} and columns of {sorted(len(v) for v in columns.values())} values."
        )
    columns.setdefault("path", [source.name] * len(features))
    columns.setdefault("frame", list(range(len(features))))
    return Foreign(source, features, columns, ours)


def import_features(
    path: Path, recipe_text: str, blocks: int, dtype: str, foreign: Foreign
) -> FeatureStore:
    """Make a store whose `cls` (n, blocks, d) are foreign features; receipts say where from."""
    width = foreign.features.shape[1]
    row_shape = (blocks, width // blocks)
    part_rows = default_part_rows(width * np.dtype(dtype).itemsize)
    store = FeatureStore.create(path, recipe_text, {"cls": ArraySpec(row_shape, dtype)}, part_rows)
    store.write_tables(_slices(foreign), FILE_SCHEMA.empty_table())
    origin = {"file": foreign.source.name, "sha256": file_sha256(foreign.source)}
    for part in store.missing():
        of_part = foreign.features[part.span]  # fewer in the last part
        values = of_part.reshape(-1, *row_shape)
        arrays = store.empty_part()
        arrays["cls"][: len(values)] = values
        arrays["status"][: len(values)] = OK
        with store.reclaim(part) as claim:
            store.write(part, claim, arrays, {"imported": origin, "failures": []})
    return store


def _slices(foreign: Foreign) -> pa.Table:
    n = len(foreign.features)
    columns = dict(foreign.columns)
    columns["row"] = list(range(n))
    columns["withdrawn"] = [False] * n
    nothing = [None] * n
    arrays = {}
    for field in SLICE_SCHEMA:
        values = map(_known, columns.get(field.name, nothing))
        arrays[field.name] = pa.array(values, field.type)
    return pa.table(arrays, schema=SLICE_SCHEMA)


def _known(value: Any) -> Any:
    """Return a value, or None where it stands for nothing."""
    return None if value == "" or value != value else value


def _read_h5(source: Path) -> tuple[Values, dict[str, list[Any]], bool]:
    import h5py

    with h5py.File(source) as file:
        try:
            members = {name: member(file, name) for name in ("features", *SLICE_SCHEMA.names)}
        except UnreadableError as error:
            raise ConfigError(
                f"{source} cannot be imported: {error.detail}. Write the features and their "
                "columns into one file."
            ) from None
        if members["features"] is None:
            raise ConfigError(f"{source} must have a dataset `features`. It has: {list(file)}.")
        features = np.asarray(members["features"])
        columns = {}
        for name in SLICE_SCHEMA.names:
            column = members[name]
            # The rows and their withdrawal are the new store's own.
            if column is not None and name not in ("row", "withdrawn"):
                values = column.asstr()[:] if column.dtype.kind == "O" else column[:]
                columns[name] = values.tolist()
        return features, columns, "radprobe" in file.attrs


def _read_columns(table: Path) -> dict[str, list[Any]]:
    if table.suffix == ".csv":
        from pyarrow import csv

        read = csv.read_csv(table)
    else:
        read = pq.read_table(table)
    known = [name for name in SLICE_SCHEMA.names if name in read.column_names]
    return {name: read[name].to_pylist() for name in known}


def hide_identities(foreign: Foreign, hide: Any) -> Foreign:
    """Return the same with identifiers replaced by hide(kind, raw); what is ours stays as it is."""
    if foreign.ours:
        return foreign
    hidden: dict[str, list[Any]] = {}
    for kind in _IDENTITIES:
        if kind in foreign.columns:
            hidden[kind] = [_hidden(kind, value, hide) for value in foreign.columns[kind]]
    return Foreign(foreign.source, foreign.features, foreign.columns | hidden, foreign.ours)


def _hidden(kind: str, value: Any, hide: Any) -> Any:
    return None if value in (None, "") else hide(kind, str(value))
