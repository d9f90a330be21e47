"""Repeated scans of the same patients: how far features, and answers on file, agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.labels import matched, read_labels
from pipeline.annotations.units import Units
from pipeline.config.data import Labels
from pipeline.config.root import Config
from pipeline.config.tasks import FeatureSet
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.compare import with_predictions
from pipeline.evaluation.heads.knn import HEAD as KNN
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.pooling import read_features
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import (
    answer_on_file,
    predicted_units,
    read_predictions,
)
from pipeline.results import Result
from pipeline.shared.arrays import unit_length
from pipeline.shared.pseudonyms import Names
from stores.errors import LabelError
from stores.features import OK, FeatureStore

# Pairs: ICC of fewer says nothing.
LEAST = 3

Numbers = NDArray[np.int64]
# (n, 2): the two scans of a patient
Pairs = NDArray[np.int64]


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

    rows: Numbers
    scan: Numbers
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
    features = _agreement_of_features(f"features ({which})", _features(store, scans, which))
    return [features, *_agreement_of_answers(config, store, scans)]


# --- scans ---------------------------------------------------------------------------------


def _scans(
    config: Config,
    store: FeatureStore,
    file: Path,
) -> Scans:
    """Return which slices are of the scans that a table names, and the pairs that have features."""
    table = read_labels(Labels(file=file, key="first"), [], ["second"])
    first = _without_slashes(table.columns["first"])
    second = _without_slashes(table.columns["second"])
    number = {name: i for i, name in enumerate(dict.fromkeys(first + second)) if name}
    slices = Names(store.path, config.data.paths).revealed(store.slices())
    rows = slices["row"].to_numpy()
    paths = slices["path"].to_numpy(zero_copy_only=False)
    has_features = store.status()[rows] == OK
    scan = np.where(has_features, matched(paths, number, climb=True), -1)
    pairs = np.stack([_numbers(first, number), _numbers(second, number)], axis=1)
    # A scan with itself would agree perfectly.
    is_usable = np.isin(pairs, scan[scan >= 0]).all(axis=1) & (pairs[:, 0] != pairs[:, 1])
    if is_usable.sum() < LEAST:
        there = {name for name, i in number.items() if i in scan}
        absent = len(number.keys() - there)
        raise LabelError(
            f"{LEAST} pairs of scans or more must have features. {str(file)!r} has {len(pairs)} "
            f"pairs, of which {is_usable.sum()} have; {absent} of its {len(number)} scans are not "
            f"in the store {str(store.path)!r}. Paths are relative to data.root, as `radprobe "
            "slices` lists them."
        )
    return Scans(rows, scan, pairs[is_usable])


def _without_slashes(names: Iterable[str]) -> list[str]:
    return [name.strip().rstrip("/") for name in names]


def _numbers(names: Sequence[str], number: Mapping[str, int]) -> Numbers:
    """Return the number of each name, -1 for an empty one."""
    return np.array([number.get(name, -1) for name in names], np.int64)


# --- features ------------------------------------------------------------------------------


def _features(
    store: FeatureStore,
    scans: Scans,
    which: FeatureSet,
) -> NDArray[np.float32]:
    """Return (n, 2, d) the features of both scans of each pair."""
    paired, place = np.unique(scans.pairs, return_inverse=True)
    is_paired = np.isin(scans.scan, paired)
    units = Units.unlabelled(
        paired.astype(np.str_),
        scans.rows[is_paired],
        np.searchsorted(paired, scans.scan[is_paired]),
    )
    return read_features(store, units, which)[place.reshape(-1, 2)]


def _agreement_of_features(what: str, x: NDArray[np.float32]) -> Agreement:
    """Return how far x (n, 2, d), the features of both scans of n pairs, agree."""
    low, middle = np.nanquantile(icc(x), [0.05, 0.5]).tolist()
    unit = unit_length(x)
    cosine = unit[:, 0] @ unit[:, 1].T  # (n, n): of every first scan with every second
    is_nearest = cosine.argmax(axis=1) == np.arange(len(cosine))
    return Agreement(
        what=what,
        pairs=len(x),
        icc=middle,
        icc_low=low,
        cosine=float(cosine.diagonal().mean()),
        nearest=float(is_nearest.mean()),
    )


# --- answers on file -----------------------------------------------------------------------


def _agreement_of_answers(
    config: Config,
    store: FeatureStore,
    scans: Scans,
) -> Iterator[Agreement]:
    """Yield how far each task's answers on file agree, on pairs that they were tested on."""
    for cases in cases_of(config) if config.tasks else ():
        answers = [answer for each in config.methods if (answer := answer_on_file(cases, each))]
        for (task, method), result in with_predictions(store.path, answers).items():
            x = _paired_predictions(cases, result, scans)
            if len(x) >= LEAST:
                agreement = float(np.nanmean(icc(x)))
                yield Agreement(f"{task} by {method}", len(x), agreement)


def _paired_predictions(
    cases: Cases,
    result: Result,
    scans: Scans,
) -> NDArray[np.float64]:
    """Return (n, 2, c): what an answer says of both scans of those pairs that were tested.

    Of a scan the mean over its units.
    """
    _, proba, _ = read_predictions(cases.store.path, result)
    tested = predicted_units(cases.store.path, result)
    scan_of_unit = dict(
        zip(cases.units.ids.tolist(), _scan_of_units(cases.units, scans), strict=True)
    )
    scan = np.array([scan_of_unit.get(unit, -1) for unit in tested.tolist()], np.int64)
    counted = scan >= 0
    most = int(scans.pairs.max()) + 1
    counts = np.bincount(scan[counted], minlength=most)
    sums = [np.bincount(scan[counted], column, minlength=most) for column in proba[counted].T]
    is_tested = (counts[scans.pairs] > 0).all(axis=1)
    pairs = scans.pairs[is_tested]
    means: NDArray[np.float64] = np.stack(sums, axis=1)[pairs] / counts[pairs][:, :, None]
    return means


def _scan_of_units(units: Units, scans: Scans) -> list[int]:
    """Return (n,) the scan of each unit; -1 for one with slices of several, or of none."""
    scan_of_row = dict(zip(scans.rows.tolist(), scans.scan.tolist(), strict=True))
    scan = np.array([scan_of_row.get(row, -1) for row in units.rows.tolist()], np.int64)
    # The least and the greatest are equal where all slices of a unit are of one scan.
    lowest = np.full(len(units.ids), np.iinfo(np.int64).max)
    highest = np.full(len(units.ids), -1)
    np.minimum.at(lowest, units.unit, scan)
    np.maximum.at(highest, units.unit, scan)
    scans_of_units: list[int] = np.where(lowest == highest, highest, -1).tolist()
    return scans_of_units
