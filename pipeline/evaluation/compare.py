"""Two stores, heads or settings held against each other on the same test units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.methods import Method
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.result_files import filed, read_predictions
from pipeline.results import Difference, Result
from stores.errors import LabelError, StoreNotFoundError

# A store and one of its results.
Answered = tuple[Path, Result]


def compare(first: Answered, second: Answered, *, setting: int = -1) -> list[Difference]:
    """Return what the second scores above the first on the same test units, metric by metric.

    For two backbones, heads or settings; `setting` picks one of each result's scores. Raises
    LabelError unless both scored the same units with the same labels, in the same order.
    """
    (truth, one, fold), (other, two, other_fold) = (
        read_predictions(store, result, setting) for store, result in (first, second)
    )
    if not (
        np.array_equal(truth.y, other.y)
        and same_grouping(truth.groups, other.groups)
        and _same_folds(fold, other_fold)
    ):
        raise LabelError(
            f"Results of {first[1].task!r} and {second[1].task!r} can be compared only on the same "
            f"test units with the same labels. Got {len(truth.y)} and {len(other.y)} units, "
            "other labels or other patients; use one collection, task and split seed."
        )
    return metrics.compare(truth, one, two, fold)


def same_grouping(first: NDArray[np.str_], second: NDArray[np.str_]) -> bool:
    """Return whether two namings, by other keys, tell the same patients apart."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def _same_folds(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def compare_stores(
    first: Path, second: Path, heads: tuple[Method, Method] | None = None
) -> list[tuple[Result, list[Difference]]]:
    """Return each task and method that two stores both answered, with the differences.

    With heads, each task that the first answered by the one method and the second by the other; it
    may be one store. The newest answer of each counts, in its last setting. p_holm is adjusted for
    every p of the whole table. Raises LabelError where they answered nothing in common.
    """
    one, two = newest(first), newest(second)
    pairs = [
        (mine, (mine[0], heads[1] if heads else mine[1]))
        for mine in one
        if heads is None or mine[1] == heads[0]
    ]
    shared = [(mine, other) for mine, other in pairs if other in two]
    if not shared:
        raise LabelError(
            f"The stores {str(first)!r} and {str(second)!r} have answered no task by "
            f"{' and '.join(heads) if heads else 'the same method'}: {_names(one)}; {_names(two)}. "
            "Run `radprobe evaluate` on both."
        )
    found = [(two[b], compare((first, one[a]), (second, two[b]))) for a, b in shared]
    every = [d.p for _, differences in found for d in differences if d.p is not None]
    adjusted = iter(holm(every))
    return [(result, list(_adjusted(differences, adjusted))) for result, differences in found]


def _adjusted(differences: list[Difference], adjusted: Iterator[float]) -> Iterator[Difference]:
    for d in differences:
        yield d if d.p is None else d.model_copy(update={"p_holm": next(adjusted)})


def newest(store: Path) -> dict[tuple[str, Method], Result]:
    """Return the newest answer with predictions to each task by each method.

    Raises StoreNotFoundError where the store is not there or has answered nothing.
    """
    answers = list(filed(store))
    if not answers:
        raise StoreNotFoundError(f"There are no results in {str(store)!r}; evaluate it first.")
    return {
        (result.task, result.method): result
        for path, result in answers
        if path.with_suffix(".parquet").is_file()
    }


def _names(results: dict[tuple[str, Method], Result]) -> str:
    return ", ".join(f"{task} by {method}" for task, method in results) or "nothing"
