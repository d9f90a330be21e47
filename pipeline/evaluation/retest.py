"""Repeated scans of the same patients: how far features, and answers on file, agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.labels import matched, read_labels
from pipeline.annotations.units import Units
from pipeline.config.data import Labels
from pipeline.config.root import Config
from pipeline.evaluation.cases import Cases, cases_of
from pipeline.evaluation.compare import newest
from pipeline.evaluation.heads.knn import HEAD as KNN
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.pooling import read_features
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.results import Result
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError, StoreNotFoundError
from stores.features import OK, FeatureStore

LEAST = 3  # pairs: ICC of fewer says nothing

Pairs = NDArray[np.int64]  # (n, 2): the two scans of a patient


@dataclass(frozen=True)
class Agreement:
    """How far the two scans of each pair agree in what is told of them.

    icc: ICC(A,1), the median over the numbers of a feature, or the mean over classes; icc_low: the
    5th percentile over the numbers; cosine: the mean over pairs; nearest: the share of first scans
    to which, of all second ones, their own is the nearest. The last three are of features alone.
    """

    what: str
    pairs: int
    icc: float
    icc_low: float | None = None
    cosine: float | None = None
    nearest: float | None = None


@dataclass(frozen=True)
class Scans:
    """What a table of pairs names: scan (m,) of each row (m,) of a store with features, or -1."""

    rows: NDArray[np.int64]
    scan: NDArray[np.int64]
    pairs: Pairs


def retest(config: Config, file: Path) -> list[Agreement]:
    """Return how far the pairs agree that a table names: of features, then of answers on file.

    file: CSV or Parquet with columns `first` and `second`, files or folders of the collection, the
    nearest named one above a slice counting. Features are those of `knn`, a scan's the mean of its
    slices'. Raises LabelError where fewer than LEAST pairs have features, StoreNotFoundError.
    """
    store = FeatureStore.open(config.store)
    scans = _scans(config, store, file)
    which = config.settings_of(KNN).features
    there, pairs = np.unique(scans.pairs, return_inverse=True)
    here = np.isin(scans.scan, there)
    unit = np.searchsorted(there, scans.scan[here])
    units = Units.unlabelled(there.astype(np.str_), scans.rows[here], unit)
    x = read_features(store, units, which)[pairs.reshape(-1, 2)]
    found = icc(x)
    low, middle = np.nanquantile(found, [0.05, 0.5]).tolist()
    length = np.linalg.norm(x, axis=2, keepdims=True)
    cosine = (x[:, 0] / length[:, 0]) @ (x[:, 1] / length[:, 1]).T
    own = float((cosine.argmax(axis=1) == np.arange(len(cosine))).mean())
    mean = float(cosine.diagonal().mean())
    features = Agreement(f"features ({which})", len(x), middle, low, mean, own)
    return [features, *_answers(config, store, scans)]


def _scans(config: Config, store: FeatureStore, file: Path) -> Scans:
    """Return which slices are of the scans that a table names, and the pairs that have features."""
    table = read_labels(Labels(file=file, key="first"), [], ["second"])
    sides = [
        [name.strip().rstrip("/") for name in table.columns[key]] for key in ("first", "second")
    ]
    where = {name: i for i, name in enumerate(dict.fromkeys(sides[0] + sides[1])) if name}
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    rows = slices["row"].to_numpy()
    ok = store.status()[rows] == OK
    paths = slices["path"].to_numpy(zero_copy_only=False)
    scan = np.where(ok, matched(paths, where, climb=True), -1)
    pairs = np.array([[where.get(name, -1) for name in pair] for pair in zip(*sides, strict=True)])
    pairs = pairs.reshape(-1, 2)
    there = np.isin(pairs, scan[scan >= 0]).all(axis=1) & (pairs[:, 0] != pairs[:, 1])
    if there.sum() < LEAST:
        absent = sorted({*where} - {name for name, i in where.items() if i in scan})
        raise LabelError(
            f"{LEAST} pairs of scans or more must have features. {str(file)!r} has {len(pairs)} "
            f"pairs, of which {there.sum()} have; not in the store {str(store.path)!r}: "
            f"{absent[:3] or 'none'}. Paths are relative to data.root, as `radprobe slices` "
            "lists them."
        )
    return Scans(rows, scan, pairs[there])


def _answers(config: Config, store: FeatureStore, scans: Scans) -> Iterator[Agreement]:
    """Yield how far each task's newest answers agree, on pairs that they were tested on."""
    try:
        answers = newest(store.path)
    except StoreNotFoundError:  # none on file
        return
    for cases in cases_of(config) if config.tasks else ():
        for (task, method), result in answers.items():
            if task != cases.name:
                continue
            x = _said(cases, result, scans)
            if len(x) >= LEAST:
                yield Agreement(f"{task} by {method}", len(x), float(np.nanmean(icc(x))))


def _said(cases: Cases, result: Result, scans: Scans) -> NDArray[np.float64]:
    """Return (n, 2, c): what an answer says of both scans of those pairs that were tested.

    Of a scan the mean over its units; a unit with slices of another scan as well is of none.
    """
    units = cases.units
    of_row = dict(zip(scans.rows.tolist(), scans.scan.tolist(), strict=True))
    first, last = (np.full(len(units.ids), end) for end in (np.iinfo(np.int64).max, -1))
    own = np.array([of_row.get(row, -1) for row in units.rows.tolist()], np.int64)
    np.minimum.at(first, units.unit, own)
    np.maximum.at(last, units.unit, own)
    scan = dict(zip(units.ids.tolist(), np.where(first == last, last, -1).tolist(), strict=True))
    _, proba, _ = read_predictions(cases.store.path, result, -1)
    tested = predicted_units(cases.store.path, result, -1)
    of = np.array([scan.get(unit, -1) for unit in tested.tolist()], np.int64)
    most = int(scans.pairs.max()) + 1
    counts = np.bincount(of[of >= 0], minlength=most)
    sums = np.stack([np.bincount(of[of >= 0], p, minlength=most) for p in proba[of >= 0].T], axis=1)
    both = scans.pairs[(counts[scans.pairs] > 0).all(axis=1)]
    said: NDArray[np.float64] = sums[both] / counts[both][:, :, None]
    return said
