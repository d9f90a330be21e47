"""Two backbones' answers to one question, compared on the same test units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.benchmark.settings import Cell
from pipeline.evaluation.compare import compare, same_grouping
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.metrics.bootstrap import IntervalRules, Values, bootstrap
from pipeline.evaluation.result_files import (
    predictions_path,
    read_predictions,
    read_units,
    segmentation_path,
)
from pipeline.results import Difference, Metric, Result, Segmented
from pipeline.shared.arrays import numbers_of
from stores.errors import LabelError


@dataclass(frozen=True)
class Paired:
    """Second less first, with its interval; p: of `test`, or None where there is none."""

    difference: Metric
    p: float | None
    test: str


def pair(
    metric: str, one: Cell, first: Result | Segmented, two: Cell, second: Result | Segmented
) -> Paired | None:
    """Return how two answers differ, or None for few-shot episodes, which share no test units.

    Classification: `compare`'s bootstrap over patients, DeLong's p. Segmentation: patients' mean
    Dice, its bootstrap and Wilcoxon's signed ranks. Raises LabelError for other test units.
    """
    if isinstance(first, Segmented) and isinstance(second, Segmented):
        return _segmented(read_units(_path(one, first)), read_units(_path(two, second)))
    if not isinstance(first, Result) or not isinstance(second, Result):
        raise LabelError("One backbone was asked for a class, the other for a segmentation.")
    differences = _compared((one, first), (two, second))
    overall = _overall(differences, metric)
    if overall is None:
        return None
    # DeLong's p is of a label; of several labels, the joint difference has its interval alone.
    p = overall.p
    if p is None:
        p = _only_p([each.p for each in differences if each.metric == metric])
    return Paired(overall.difference, p, "" if p is None else "DeLong")


def _overall(differences: list[Difference], metric: str) -> Difference | None:
    """Return the difference of a metric over all labels, if there is one."""
    for difference in differences:
        if difference.metric == metric and not difference.label:
            return difference
    return None


def held_against(
    one: tuple[Cell, Result], two: tuple[Cell, Result], metric: str
) -> tuple[Metric, float] | None:
    """Return the second's score less the first's, and how far their predictions agree.

    That is ICC(A,1), the mean over the classes that vary. None where they have no predictions.
    Raises LabelError for other test units.
    """
    overall = _overall(_compared(one, two), metric)
    if overall is None:
        return None
    predictions = []
    for cell, answer in (one, two):
        _, probabilities, _ = read_predictions(cell.config.store, answer)
        predictions.append(probabilities)
    agreement = icc(np.stack(predictions, axis=1))
    return overall.difference, float(np.nanmean(agreement))


def _compared(one: tuple[Cell, Result], two: tuple[Cell, Result]) -> list[Difference]:
    """Return what the second scores above the first; nothing where they have no predictions."""
    first = (one[0].config.store, one[1])
    second = (two[0].config.store, two[1])
    if not all(predictions_path(*each).is_file() for each in (first, second)):
        return []
    return compare(first, second)


def _only_p(every: list[float | None]) -> float | None:
    """Return the one p that there is; None where there are none or several."""
    known = [p for p in every if p is not None]
    return known[0] if len(known) == 1 else None


def _path(cell: Cell, answer: Segmented) -> Path:
    key = answer.provenance.key
    return segmentation_path(cell.config.store, answer.task, answer.head, key)


def _segmented(one: pa.Table, two: pa.Table) -> Paired:
    """Pair the patients of two tables of the same test units; one undefined in either is left out.

    By the units' order: each store has names of its own for patients.
    """
    first = _patients(one)
    second = _patients(two)
    if len(first) != len(second) or not same_grouping(first, second):
        raise LabelError(
            f"Two backbones segmented other test patients: {len({*first})} and {len({*second})}. "
            "Embed the same collection with both."
        )
    from scipy import stats

    of = numbers_of(first)  # in the order of the units, not of names
    differences = _means(_dice(two), of) - _means(_dice(one), of)
    apart = differences[np.isfinite(differences)]
    if not len(apart):
        raise LabelError("No test patient has a Dice by both backbones.")
    # The test has nothing to rank where all pairs are equal.
    p = float(stats.wilcoxon(apart).pvalue) if np.any(apart) else 1.0
    return Paired(_mean_of(apart), p, "Wilcoxon")


def _mean_of(differences: NDArray[np.float64]) -> Metric:
    """Return the mean of patients' differences, with its interval over patients.

    One patient has none, as everywhere.
    """
    names = np.arange(len(differences)).astype(np.str_)

    def statistic(weights: NDArray[np.float64]) -> Values:
        return {("dice", ""): differences @ weights / weights.sum(axis=0)}

    # A bootstrap over patients: units of one patient are not independent of each other.
    rules = IntervalRules(rarest={}, scales={"dice": "plain"})
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
