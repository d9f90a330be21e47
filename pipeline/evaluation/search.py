"""The nearest images, series, studies or patients of anything in a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.heads.knn import HEAD as KNN
from pipeline.evaluation.neighbours import neighbours
from pipeline.evaluation.pooling import read_features, scaled
from pipeline.recipe import Recipe, recipe_of
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError
from stores.features import OK, FeatureStore

Rows = NDArray[np.int64]


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
    """Return the k nearest units of `query`: a row number, a path, or a patient's pseudonym.

    A path is of a file or folder of the collection, relative to data.root. The query's slices are
    pooled to one vector, as those of every unit are, and its own patient is left out. Features and
    scaling are those of `knn`. Raises ConfigError for what is not in the store.
    """
    store = FeatureStore.open(config.store)
    slices = _slices_with_features(store, config)
    queried = _queried(slices, query, config)
    # The query's own patient is no answer to it: images of one patient are alike.
    patients = _units_of(slices, "patient")
    others = np.flatnonzero(~np.isin(patients, patients[queried]))
    if not len(others):
        raise ConfigError("All slices of the store are of the query's patient.")
    ids, first, unit = np.unique(
        _units_of(slices, level)[others],
        return_index=True,
        return_inverse=True,
    )
    cosine, nearest = _nearest(
        store,
        config,
        _units_and_query(slices, others, queried, ids, unit),
        min(k, len(ids)),
    )
    # A unit is shown by the first of its slices, in the order of the table.
    sizes = np.bincount(unit)
    first_slices = slices.take(pa.array(others[first[nearest]])).to_pylist()
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


def _slices_with_features(store: FeatureStore, config: Config) -> pa.Table:
    """Return the slice table, with the real paths, of what has features."""
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    has_features = store.status()[slices["row"].to_numpy()] == OK
    return slices.filter(pa.array(has_features))


def _units_and_query(
    slices: pa.Table,
    others: Rows,
    queried: Rows,
    ids: NDArray[np.str_],
    unit: Rows,
) -> Units:
    """Return the units that are searched, and after them the query as one more.

    others, queried: places in the slice table; unit: of each of the others, by place in `ids`.
    """
    rows = slices["row"].to_numpy()
    last = np.full(len(queried), len(ids))
    return Units.unlabelled(
        np.append(ids, "query"),
        rows[np.concatenate([others, queried])],
        np.concatenate([unit, last]),
    )


def _nearest(
    store: FeatureStore,
    config: Config,
    units: Units,
    k: int,
) -> tuple[NDArray[np.float32], Rows]:
    """Return (k,) cosines and numbers of the units nearest to the last one, the query."""
    query = len(units.ids) - 1
    # Scaling learns from what is searched alone, as a head's does from train.
    searched = np.arange(query)
    knn = config.settings_of(KNN)
    x = read_features(store, units, knn.features)
    x = scaled(x, searched, knn.scaling, knn.components)
    cosine, nearest = neighbours(x, searched, np.array([query]), k)
    return cosine[0], nearest[0]


def recipe_asked(config: Config) -> Recipe:
    """Return the recipe of the config's store: whatever shows a number says of which network."""
    return recipe_of(FeatureStore.open(config.store))


def _queried(
    slices: pa.Table,
    query: str,
    config: Config,
) -> Rows:
    """Return the places in the slice table that a query names: a path before anything else."""
    root = f"{config.data.root.as_posix().rstrip('/')}/"
    path = query.removeprefix(root).removeprefix("./").rstrip("/")
    paths = slices["path"].to_pylist()
    # A folder names all that lies in it, at any depth.
    is_named = np.array([each == path or each.startswith(f"{path}/") for each in paths])
    if not is_named.any():
        is_named = np.array([patient == query for patient in slices["patient"].to_pylist()])
    # Last, since a folder may be called by a number.
    if not is_named.any() and query.isdecimal():
        is_named = slices["row"].to_numpy() == int(query)
    if not is_named.any():
        raise ConfigError(
            f"Nothing with features in the store {str(config.store)!r} bears that name. Give a row "
            f"number, a path under {root!r}, or a patient's pseudonym of the slice table."
        )
    return np.flatnonzero(is_named)


def _units_of(slices: pa.Table, level: Level) -> NDArray[np.str_]:
    """Return the unit of each slice; without a series, study or patient a file is its own."""
    column = "row" if level == "image" else level
    names = []
    for name, path in zip(slices[column].to_pylist(), slices["path"].to_pylist(), strict=True):
        names.append(str(path if name is None else name))
    return np.array(names)
