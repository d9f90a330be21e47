"""Two stores, heads or settings compared on the same test units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.config.methods import Method
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.pairing import Pairing, TestedUnits, pair_units
from pipeline.evaluation.result_files import (
    filed,
    predicted_units,
    predictions_path,
    read_predictions,
    read_thresholds,
)
from pipeline.results import Difference, Result
from stores.errors import LabelError, StoreNotFoundError

# A store and one of its results.
StoreResult = tuple[Path, Result]
Results = dict[tuple[str, Method], Result]


def compare(
    first: StoreResult,
    second: StoreResult,
    *,
    setting: int | None = None,
) -> list[Difference]:
    """Return what the second scores above the first on the same test units, metric by metric.

    For two backbones, heads or settings; `setting` picks one of each result's scores, by default
    the one that stands for the answer. Units are paired by their files (`pair_units`); those that
    only one answer was tested on are counted in `paired`. Raises LabelError where none is common,
    and where the common ones have other labels, patients or folds, or another positive class.
    """
    pairing, one, other = paired_predictions(first, second, setting)
    thresholds = (one.thresholds, other.thresholds)
    differences = metrics.compare(one.truth, one.proba, other.proba, one.fold, thresholds)
    paired = pairing.counted(len(np.unique(one.truth.groups)))
    return [each.model_copy(update={"paired": paired}) for each in differences]


@dataclass(frozen=True)
class _Predictions:
    """What an answer says of n units; fold (n,): which model said it, where there are several."""

    truth: Truth
    proba: NDArray[np.float64]
    fold: NDArray[np.int64] | None
    thresholds: NDArray[np.float64]

    @classmethod
    def of(cls, answer: StoreResult, setting: int | None) -> _Predictions:
        truth, proba, fold = read_predictions(*answer, setting)
        return cls(truth, proba, fold, read_thresholds(*answer, setting))

    def at(self, which: NDArray[np.int64]) -> _Predictions:
        return _Predictions(
            self.truth.at(which),
            self.proba[which],
            None if self.fold is None else self.fold[which],
            self.thresholds[which],
        )


def paired_predictions(
    first: StoreResult,
    second: StoreResult,
    setting: int | None = None,
) -> tuple[Pairing, _Predictions, _Predictions]:
    """Return which test units two answers share, and what each says of these, pair by pair.

    Raises LabelError as `compare` does.
    """
    _refuse_other_question(first[1], second[1])
    pairing = pair_units(_tested(first, setting), _tested(second, setting))
    one = _Predictions.of(first, setting).at(pairing.first)
    other = _Predictions.of(second, setting).at(pairing.second)
    faults = []
    differs = np.atleast_2d((one.truth.y != other.truth.y).T).any(axis=0)  # y (n,) or (n, c)
    if differs.any():
        faults.append(f"{differs.sum()} of them have other labels")
    if not same_grouping(one.truth.groups, other.truth.groups):
        faults.append("they are of other patients")
    if not _same_folds(one.fold, other.fold):
        faults.append("they were tested in other folds")
    if faults:
        raise LabelError(
            f"{_can_be_compared(first[1], second[1])} Of the {len(pairing.first)} test units that "
            f"both have, {' and '.join(faults)}; use one label file, task and split seed."
        )
    return pairing, one, other


def _tested(answer: StoreResult, setting: int | None) -> TestedUnits:
    store, result = answer
    return TestedUnits(store, result.level, predicted_units(store, result, setting))


def _can_be_compared(first: Result, second: Result) -> str:
    return (
        f"Results of {first.task!r} and {second.task!r} can be compared only on the same test "
        "units with the same labels."
    )


def _refuse_other_question(first: Result, second: Result) -> None:
    """Raise LabelError where two answers are of other classes, or of other units."""
    for what, one, other in (
        ("the classes, of two the last the positive", list(first.classes), list(second.classes)),
        ("the units", first.level, second.level),
        ("the kind", first.kind, second.kind),
    ):
        if one != other:
            raise LabelError(
                f"{_can_be_compared(first, second)} Got {one} and {other} for {what}; ask both "
                "stores the same task."
            )


def same_grouping(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether two namings, by other keys, tell the same patients apart."""
    firsts = first.tolist()
    seconds = second.tolist()
    pairs = set(zip(firsts, seconds, strict=True))
    return len(pairs) == len(set(firsts)) == len(set(seconds))


def _same_folds(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    if first is None or second is None:
        return first is second
    return same_grouping(first, second)


def compare_stores(
    first: Path,
    second: Path,
    heads: tuple[Method, Method] | None = None,
) -> list[tuple[Result, list[Difference]]]:
    """Return each task and method that two stores both answered, with the differences.

    With heads, each task that the first answered by the one method and the second by the other; it
    may be one store. The newest answer of each counts, in the setting that stands for it. p_holm is
    adjusted for every p of the table. Raises LabelError where they answered nothing in common.
    """
    return compare_results((first, newest(first)), (second, newest(second)), heads)


def compare_results(
    one_of_store: tuple[Path, Results],
    other_of_store: tuple[Path, Results],
    heads: tuple[Method, Method] | None = None,
) -> list[tuple[Result, list[Difference]]]:
    """Return what `compare_stores` does, of these results of two stores."""
    first, one = one_of_store
    second, two = other_of_store
    table: list[tuple[Result, list[Difference]]] = []
    for key, result in one.items():
        other = _counterpart(key, two, heads)
        if other is not None:
            table.append((other, compare((first, result), (second, other))))
    if not table:
        raise LabelError(
            f"The stores {str(first)!r} and {str(second)!r} have answered no task by "
            f"{' and '.join(heads) if heads else 'the same method'}: {_names(one)}; {_names(two)}. "
            "Run `radprobe evaluate` on both."
        )
    return _adjusted(table)


def _counterpart(
    key: tuple[str, Method],
    results: Results,
    heads: tuple[Method, Method] | None,
) -> Result | None:
    """Return the result that one of the first store is compared with, if there is any."""
    task, method = key
    if heads is None:
        return results.get(key)
    return results.get((task, heads[1])) if method == heads[0] else None


def _adjusted(
    table: list[tuple[Result, list[Difference]]],
) -> list[tuple[Result, list[Difference]]]:
    """Return the table with p_holm of each p among all of it, not of its own row alone."""
    p = []
    for _, differences in table:
        p += [each.p for each in differences if each.p is not None]
    in_order = iter(holm(p))
    adjusted = []
    for result, differences in table:
        row = [
            each if each.p is None else each.model_copy(update={"p_holm": next(in_order)})
            for each in differences
        ]
        adjusted.append((result, row))
    return adjusted


def newest(store: Path) -> Results:
    """Return the newest answer with predictions to each task by each method.

    Raises StoreNotFoundError where the store is not there or has answered nothing.
    """
    answers = list(filed(store))
    if not answers:
        raise StoreNotFoundError(f"There are no results in {str(store)!r}; evaluate it first.")
    # The oldest come first, so that a newer one takes the place of an older. What was fitted on
    # another collection is no answer of this store alone: its config asks for it.
    return with_predictions(store, [each for _, each in answers if each.fitted_on is None])


def with_predictions(store: Path, answers: Iterable[Result]) -> Results:
    """Return those answers that have predictions on file, the last to each task by each method."""
    results: Results = {}
    for result in answers:
        if predictions_path(store, result).is_file():
            results[result.configured_task, result.method] = result
    return results


def _names(results: Results) -> str:
    return ", ".join(f"{task} by {method}" for task, method in results) or "nothing"
