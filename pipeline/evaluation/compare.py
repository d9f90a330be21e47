"""Two stores, heads or settings compared on the same test units."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.methods import Method
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.result_files import (
    filed,
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
    the one that stands for the answer. Raises LabelError unless both scored the same units with the
    same labels, in the same order, and call the same class positive.
    """
    truth, proba, fold = read_predictions(*first, setting)
    other_truth, other_proba, other_fold = read_predictions(*second, setting)
    # Differences are of paired units, so that their order counts as well. Pseudonyms do not:
    # another store has others.
    is_same = (
        np.array_equal(truth.y, other_truth.y)
        and truth.classes == other_truth.classes
        and same_grouping(truth.groups, other_truth.groups)
        and _same_folds(fold, other_fold)
    )
    if not is_same:
        raise LabelError(
            f"Results of {first[1].task!r} and {second[1].task!r} can be compared only on the same "
            f"test units with the same labels. Got {len(truth.y)} and {len(other_truth.y)} units, "
            "other labels, patients or another positive class; use one collection, task and split "
            "seed."
        )
    thresholds = (read_thresholds(*first, setting), read_thresholds(*second, setting))
    return metrics.compare(truth, proba, other_proba, fold, thresholds)


def same_grouping(first: NDArray[np.str_], second: NDArray[np.str_]) -> bool:
    """Return whether two namings, by other keys, tell the same patients apart."""
    firsts = first.tolist()
    seconds = second.tolist()
    pairs = set(zip(firsts, seconds, strict=True))
    return len(pairs) == len(set(firsts)) == len(set(seconds))


def _same_folds(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


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
            results[result.asked, result.method] = result
    return results


def _names(results: Results) -> str:
    return ", ".join(f"{task} by {method}" for task, method in results) or "nothing"
