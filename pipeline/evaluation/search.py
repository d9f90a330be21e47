"""The nearest images, series, studies or patients of anything in a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.neighbours import neighbours
from pipeline.evaluation.pooling import read_features, scaled
from pipeline.recipe import recipe_of
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError
from stores.features import OK, FeatureStore


@dataclass(frozen=True)
class Hit:
    """One neighbour: how near, what it is, and where its first slice lies (the real path)."""

    cosine: float
    unit: str
    patient: str | None
    modality: str
    row: int
    path: str
    slices: int


def search(config: Config, query: str, *, k: int = 10, level: Level = "series") -> list[Hit]:
    """Return the k nearest units of `query`: a row number, a path, or a patient's pseudonym.

    A path is of a file or folder of the collection, relative to data.root. The query's slices are
    pooled to one vector, as those of every unit are, and its own patient is left out. Features and
    scaling are those of `knn`. Raises ConfigError for what is not in the store.
    """
    store = FeatureStore.open(config.store)
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    slices = slices.filter(pa.array(store.status()[slices["row"].to_numpy()] == OK))
    asked = _asked(slices, query, config)
    names, patients = _names(slices, level), _names(slices, "patient")
    others = np.flatnonzero(~np.isin(patients, patients[asked]))
    if not len(others):
        raise ConfigError(f"All slices of the store are of the patient of {query!r}.")
    ids, first, unit = np.unique(names[others], return_index=True, return_inverse=True)
    rows = slices["row"].to_numpy()
    units = Units.unlabelled(
        np.append(ids, "query"),
        rows[np.concatenate([others, asked])],
        np.concatenate([unit, np.full(len(asked), len(ids))]),
    )
    known = np.arange(len(ids))
    x = read_features(store, units, config.knn.features)
    x = scaled(x, known, config.knn.scaling, config.knn.components)
    cosine, nearest = neighbours(x, known, np.array([len(ids)]), min(k, len(ids)))
    sizes = np.bincount(unit)
    found = slices.take(pa.array(others[first[nearest[0]]])).to_pylist()
    return [
        Hit(
            cosine=float(near),
            unit=str(ids[i]),
            patient=row["patient"],
            modality=row["modality"],
            row=row["row"],
            path=row["path"],
            slices=int(sizes[i]),
        )
        for near, i, row in zip(cosine[0], nearest[0], found, strict=True)
    ]


def is_random(config: Config) -> bool:
    """Return whether the store was made by an untrained network, which must be said."""
    return recipe_of(FeatureStore.open(config.store)).random


def _asked(slices: pa.Table, query: str, config: Config) -> NDArray[np.int64]:
    """Return the places in the slice table that a query names."""
    root = f"{config.data.root.as_posix().rstrip('/')}/"
    path = query.removeprefix(root).removeprefix("./").rstrip("/")
    paths, patients = slices["path"].to_pylist(), slices["patient"].to_pylist()
    found = np.array([p == path or p.startswith(f"{path}/") for p in paths])
    if not found.any():
        found = np.array([patient == query for patient in patients])
    if not found.any() and query.isdecimal():
        found = slices["row"].to_numpy() == int(query)
    if not found.any():
        raise ConfigError(
            f"Nothing with features in the store {str(config.store)!r} is named {query!r}. Give a "
            f"row number, a path under {root!r}, or a patient's pseudonym of the slice table."
        )
    return np.flatnonzero(found)


def _names(slices: pa.Table, level: Level) -> NDArray[np.str_]:
    """Return the unit of each slice; without a series, study or patient a file is its own."""
    column = "row" if level == "image" else level
    names = zip(slices[column].to_pylist(), slices["path"].to_pylist(), strict=True)
    return np.array([str(path if name is None else name) for name, path in names])
