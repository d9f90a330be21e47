"""The nearest images, series, studies or patients of anything in a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.labels import with_patients
from pipeline.annotations.levels import LEVELS
from pipeline.annotations.patients import patient_names
from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.heads.knn import HEAD as KNN
from pipeline.evaluation.neighbours import neighbours
from pipeline.evaluation.pooling import pooled_features, read_features, scaled
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.arrays import Floats, allocate
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError
from stores.features import OK, FeatureStore

Rows = NDArray[np.int64]


class UnknownQueryError(ConfigError):
    """Nothing in a store bears a query's name."""


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


def search(
    config: Config,
    query: str,
    *,
    k: int = 10,
    level: Level = "series",
) -> list[Hit]:
    """Return the k nearest units of `query`: a row number, a path, or a patient (id or pseudonym).

    A path is of a file or folder of the collection, relative to data.root; a number that is a row's
    is no patient's id. The query's slices are pooled to one vector, as those of every unit are, and
    its own patient, by labels or headers as in splits, is left out. Features and scaling are those
    of `knn`. Raises ConfigError for what is not in the store, LabelError where labels name patients
    and cannot be read.
    """
    store = FeatureStore.open(config.store)
    slices = slices_with_features(store, config)
    query_rows = queried(slices, query, config, Names(store.path))
    # The query's own patient is no answer to it: images of one patient are alike.
    patients = LEVELS["patient"].unit_names(slices)
    others = np.flatnonzero(~np.isin(patients, patients[query_rows]))
    if not len(others):
        raise ConfigError("All slices of the store are of the query's patient.")
    row = slices["row"].to_numpy()[query_rows]
    (vector,) = read_features(store, _one_unit(row), config.settings_of(KNN).features)
    return _hits(store, config, slices.take(pa.array(others)), vector, k, level)


def search_elsewhere(
    config: Config,
    queries: FeatureStore,
    *,
    k: int = 10,
    level: Level = "series",
) -> list[Hit]:
    """Return the k nearest units of what another store of the same recipe holds, as one query.

    Raises ConfigError where that holds no features.
    """
    store = FeatureStore.open(config.store)
    rows = np.flatnonzero(queries.status() == OK)
    if not len(rows):
        raise ConfigError("No image of the query can be read: there is nothing to search by.")
    (vector,) = read_features(queries, _one_unit(rows), config.settings_of(KNN).features)
    slices = slices_with_features(store, config)
    return _hits(store, config, slices, vector, k, level)


def _one_unit(rows: Rows) -> Units:
    """Return slices as one unit."""
    return Units.unlabelled(np.array(["query"]), rows, np.zeros(len(rows), np.int64))


def _hits(
    store: FeatureStore,
    config: Config,
    slices: pa.Table,
    vector: Floats,
    k: int,
    level: Level,
) -> list[Hit]:
    """Return the k units of some slices whose pooled features are nearest to a vector (d,)."""
    ids, first, unit = np.unique(
        LEVELS[level].unit_names(slices), return_index=True, return_inverse=True
    )
    units = Units.unlabelled(ids, slices["row"].to_numpy(), unit)
    cosine, nearest = _nearest(store, config, units, vector, min(k, len(ids)))
    # A unit is shown by the first of its slices, in the order of the table.
    sizes = np.bincount(unit)
    first_slices = slices.take(pa.array(first[nearest])).to_pylist()
    return [
        Hit(
            cosine=float(near),
            unit=str(ids[i]),
            patient=slice_["patient"],
            modality=slice_["modality"],
            row=slice_["row"],
            path=slice_["path"],
            slices=int(sizes[i]),
        )
        for near, i, slice_ in zip(cosine, nearest, first_slices, strict=True)
    ]


def slices_with_features(store: FeatureStore, config: Config) -> pa.Table:
    """Return the slice table, with real paths and the patients of splits, of what has features."""
    names = Names(store.path, config.data.paths)
    slices = with_patients(names.revealed(store.slices()), config, names)
    has_features = store.status()[slices["row"].to_numpy()] == OK
    return slices.filter(pa.array(has_features))


def _nearest(
    store: FeatureStore,
    config: Config,
    units: Units,
    vector: Floats,
    k: int,
) -> tuple[Floats, Rows]:
    """Return (k,) cosines and numbers of the units nearest to a query's vector (d,)."""
    knn = config.settings_of(KNN)
    query = len(units.ids)
    # The query stands behind the units: what is searched is one array, wherever it lies.
    x = allocate(query + 1, len(vector), store.path)
    first = 0
    for pooled in pooled_features(store, units, knn.features):
        x[first : first + len(pooled)] = pooled
        first += len(pooled)
    x[query] = vector
    # Scaling learns from what is searched alone, as a head's does from train.
    searched = np.arange(query)
    x = scaled(x, searched, knn.scaling, knn.components)
    cosine, nearest = neighbours(x, searched, np.array([query]), k)
    return cosine[0], nearest[0]


def recipe_of_store(config: Config) -> Recipe:
    """Return the recipe of the config's store: whatever shows a number says of which network."""
    return recipe_of(FeatureStore.open(config.store))


def queried(
    slices: pa.Table,
    query: str,
    config: Config,
    names: Names,
) -> Rows:
    """Return the places in the slice table that a query names: a path before anything else.

    slices: as `slices_with_features` has them. Raises UnknownQueryError where it names none.
    """
    root = f"{config.data.root.as_posix().rstrip('/')}/"
    path = query.removeprefix(root).removeprefix("./").rstrip("/")
    paths = slices["path"].to_pylist()
    # A folder names all that lies in it, at any depth.
    is_named = np.array([each == path or each.startswith(f"{path}/") for each in paths])
    patients = slices["patient"].to_pylist()
    if not is_named.any():
        is_named = np.array([patient == query for patient in patients])
    # Behind these, since a folder may be called by a number.
    if not is_named.any() and query.isdecimal():
        is_named = slices["row"].to_numpy() == int(query)
    # Last, since ids are often numbers: what was a row stays one.
    if not is_named.any():
        wanted = patient_names(names, query)
        is_named = np.array([patient in wanted for patient in patients])
    if not is_named.any():
        raise UnknownQueryError(
            f"Nothing with features in the store {str(config.store)!r} bears that name. Give a row "
            f"number, a path under {root!r}, a patient's id or pseudonym, or an image or folder "
            "elsewhere."
        )
    return np.flatnonzero(is_named)
