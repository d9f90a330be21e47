"""Two backbones' answers to one question, compared on the same test units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.benchmark.settings import Cell
from pipeline.evaluation.compare import compare, paired_predictions, same_grouping
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.metrics.bootstrap import IntervalRules, Values, bootstrap
from pipeline.evaluation.pairing import TestedUnits, pair_units
from pipeline.evaluation.result_files import predictions_path, read_units, segmentation_path
from pipeline.results import Difference, Metric, PairedUnits, Result, Segmented
from pipeline.shared.arrays import numbers_of
from stores.errors import LabelError


@dataclass(frozen=True)
class Paired:
    """Second less first, with its interval; p: of `test`, or None where there is none.

    units: on which units both were tested, and level what these are.
    """

    difference: Metric
    p: float | None
    test: str
    units: PairedUnits
    level: str


def pair(
    metric: str, one: Cell, first: Result | Segmented, two: Cell, second: Result | Segmented
) -> Paired | None:
    """Return how two answers differ, or None for few-shot episodes, which share no test units.

    Classification: `compare`'s bootstrap over patients, DeLong's p. Segmentation: patients' mean
    Dice, its bootstrap and Wilcoxon's signed ranks. Raises LabelError for other test units.
    """
    if isinstance(first, Segmented) and isinstance(second, Segmented):
        return _segmented((one, first), (two, second))
    if not isinstance(first, Result) or not isinstance(second, Result):
        raise LabelError("One backbone was asked for a class, the other for a segmentation.")
    differences = _compared((one, first), (two, second))
    overall = _overall(differences, metric)
    if overall is None or overall.paired is None:
        return None
    # DeLong's p is of a label; of several labels, the joint difference has its interval alone.
    p = overall.p
    if p is None:
        p = _only_p([each.p for each in differences if each.metric == metric])
    test = "" if p is None else "DeLong"
    return Paired(overall.difference, p, test, overall.paired, first.level)


def _overall(differences: list[Difference], metric: str) -> Difference | None:
    """Return the difference of a metric over all labels, if there is one."""
    for difference in differences:
        if difference.metric == metric and not difference.label:
            return difference
    return None


def compared_with(
    one: tuple[Cell, Result], two: tuple[Cell, Result], metric: str
) -> tuple[Difference, float] | None:
    """Return the second's score less the first's, and how far their predictions agree.

    That is ICC(A,1), the mean over the classes that vary. None where they have no predictions.
    Raises LabelError for other test units.
    """
    overall = _overall(_compared(one, two), metric)
    if overall is None:
        return None
    _, first, second = paired_predictions(_stored(one), _stored(two))
    agreement = icc(np.stack([first.proba, second.proba], axis=1))
    return overall, float(np.nanmean(agreement))


def _compared(one: tuple[Cell, Result], two: tuple[Cell, Result]) -> list[Difference]:
    """Return what the second scores above the first; nothing where they have no predictions."""
    first = _stored(one)
    second = _stored(two)
    if not all(predictions_path(*each).is_file() for each in (first, second)):
        return []
    return compare(first, second)


def _stored(answer: tuple[Cell, Result]) -> tuple[Path, Result]:
    """Return the store that a cell's answer is filed in, and the answer."""
    cell, result = answer
    return cell.config.store, result


def _only_p(every: list[float | None]) -> float | None:
    """Return the one p that there is; None where there are none or several."""
    known = [p for p in every if p is not None]
    return known[0] if len(known) == 1 else None


def _path(cell: Cell, answer: Segmented) -> Path:
    key = answer.provenance.key
    return segmentation_path(cell.config.store, answer.task, answer.head, key)


def _segmented(one: tuple[Cell, Segmented], two: tuple[Cell, Segmented]) -> Paired:
    """Pair the patients of two answers on the units that both were tested on."""
    first = read_units(_path(*one))
    second = read_units(_path(*two))
    pairing = pair_units(_tested(one[0], first), _tested(two[0], second))
    of_first = of_units(first, pairing.first)
    difference, p = dice_apart(of_first, of_units(second, pairing.second))
    units = pairing.counted(len(np.unique(_patients(of_first))))
    return Paired(difference, p, "Wilcoxon", units, one[1].level)


def dice_apart(one: pa.Table, two: pa.Table) -> tuple[Metric, float]:
    """Return by how much patients' mean Dice differs, two less one, and Wilcoxon's p.

    Of two tables whose rows are of the same units; a patient undefined in either is left out. By
    the units' order: each store has names of its own for patients. Raises LabelError where the
    units are of other patients, and where none is defined in both.
    """
    patients = _patients(one)
    if len(one) != len(two) or not same_grouping(patients, _patients(two)):
        raise LabelError(
            "Two backbones segmented units of other test patients. Embed the same collection with "
            "both, and name patients alike."
        )
    from scipy import stats

    of = numbers_of(patients)  # in the order of the units, not of names
    differences = _means(_dice(two), of) - _means(_dice(one), of)
    apart = differences[np.isfinite(differences)]
    if not len(apart):
        raise LabelError("No test patient has a Dice by both backbones.")
    # The test has nothing to rank where all pairs are equal.
    p = float(stats.wilcoxon(apart).pvalue) if np.any(apart) else 1.0
    return _mean_of(apart), p


def _tested(cell: Cell, table: pa.Table) -> TestedUnits:
    """Return the units of a segmentation: series, and the rows of images that are no volume."""
    return TestedUnits(cell.config.store, "series", _unit_ids(table))


def _unit_ids(table: pa.Table) -> NDArray[np.str_]:
    """Return the units of a table, which has a row a structure of each, in their order."""
    return np.array(list(dict.fromkeys(table["unit"].to_pylist())), np.str_)


def of_units(table: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """Return the rows of some units, by their places in `_unit_ids`, structure by structure."""
    rank = dict(zip(_unit_ids(table)[places].tolist(), range(len(places)), strict=True))
    unit = table["unit"].to_pylist()
    structure = table["structure"].to_pylist()
    kept = [i for i, name in enumerate(unit) if name in rank]
    # Both tables in one order, by which their rows belong together.
    kept.sort(key=lambda i: (structure[i], rank[unit[i]]))
    return table.take(pa.array(kept, pa.int64()))


def _mean_of(differences: NDArray[np.float64]) -> Metric:
    """Return the mean of patients' differences, with its interval over patients.

    One patient has none, as everywhere.
    """
    names = np.arange(len(differences)).astype(np.str_)

    def statistic(weights: NDArray[np.float64]) -> Values:
        return {("dice", ""): differences @ weights / weights.sum(axis=0)}

    # A bootstrap over patients: units of one patient are not independent of each other.
    rules = IntervalRules(
        rarest={}, scales={"dice": "plain"}, bounded={"dice": 0.0}, of_difference=True
    )
    return bootstrap(statistic, names, 1, rules)["dice", ""]


def _patients(table: pa.Table) -> NDArray[np.str_]:
    patients: NDArray[np.str_] = table["patient"].to_numpy(zero_copy_only=False).astype(np.str_)
    return patients


def _dice(table: pa.Table) -> NDArray[np.float64]:
    dice: NDArray[np.float64] = table["dice"].to_numpy(zero_copy_only=False)
    return dice


def _means(dice: NDArray[np.float64], of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each patient's mean of the Dice that is defined, NaN where none is."""
    known = np.isfinite(dice)
    counts = np.bincount(of, weights=known)
    sums = np.bincount(of, weights=np.where(known, dice, 0))
    means: NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means
