"""Which test units a reader should look at: the worst errors of an answer, by picture.

Dims: n test units, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth, unit_names
from pipeline.config.tasks import Level
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.result_files import (
    predicted_units,
    predictions_path,
    read_predictions,
    read_thresholds,
)
from pipeline.report.atlas import Atlas
from pipeline.report.models import Case, CaseGroup
from pipeline.report.pictures import pictures
from pipeline.report.sources import Source
from pipeline.results import Result
from pipeline.shared.arrays import Rows

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Cases of a kind that are shown, labels that have them, and neighbours that each is shown with.
MOST_CASES = 6
MOST_LABELS = 4
NEIGHBOURS = 3


@dataclass(frozen=True)
class Judged:
    """What an answer says of its test units. called (n, c): by its operating points, or one half.

    rows: of the slices of each unit.
    """

    truth: Truth
    proba: Doubles
    called: Bools
    fold: NDArray[np.int64] | None
    rows: list[list[int]]

    @classmethod
    def of(cls, source: Source, result: Result) -> Judged | None:
        """Return what is on file, of units that have slices still; None where nothing is."""
        path = source.store.path
        if not predictions_path(path, result).is_file():
            return None
        truth, proba, fold = read_predictions(path, result)
        called = is_called(proba, read_thresholds(path, result))
        ids = predicted_units(path, result).tolist()
        rows_of = rows_by_unit(source, result.level)
        # Withdrawn slices have no picture and no features any more.
        there = np.array([name in rows_of for name in ids], bool)
        rows = [rows_of[name] for name in ids if name in rows_of]
        return cls(
            truth.at(there),
            proba[there],
            called[there],
            None if fold is None else fold[there],
            rows,
        )

    def at(self, which: Bools) -> Judged:
        """Return what is said of some of the units."""
        rows = [each for each, is_one in zip(self.rows, which, strict=True) if is_one]
        fold = None if self.fold is None else self.fold[which]
        return Judged(self.truth.at(which), self.proba[which], self.called[which], fold, rows)


def rows_by_unit(source: Source, level: Level) -> dict[str, list[int]]:
    """Return the rows of the slices with features of each unit, by its name."""
    rows: dict[str, list[int]] = {}
    # Patients are those of the labels, as in the split.
    is_patient = level == "patient"
    names = (source.patients if is_patient else unit_names(source.slices, level)).tolist()
    for name, row in zip(names, source.rows.tolist(), strict=True):
        rows.setdefault(name, []).append(row)
    return rows


def leading_answers(source: Source) -> dict[str, Result]:
    """Return the answer that stands for each task: the probe's, or the first that there is.

    Not the best one: that would be chosen by its test score.
    """
    leading: dict[str, Result] = {}
    for (task, method), result in source.results.items():
        # A shortcut's task has its finding; an answer without a score says nothing.
        if "/" not in task and result.scores and (task not in leading or method == "probe"):
            leading[task] = result
    return leading


def task_cases(source: Source, atlas: Atlas | None) -> dict[str, tuple[CaseGroup, ...]]:
    """Return the worst cases of each task's leading answer, with the slices nearest to them."""
    cases = {}
    for task, result in leading_answers(source).items():
        judged = Judged.of(source, result)
        if judged is None:
            continue
        groups = []
        for group in worst(judged):
            shown = cases_of(source, judged.rows, group.numbers, group.texts)
            if atlas is not None:
                shown = _with_neighbours(source, atlas, task, shown)
            groups.append(CaseGroup(group.title, group.about, shown))
        cases[task] = tuple(groups)
    return cases


# --- which ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Units of one kind of error, the worst first. numbers: theirs; texts: what is said of each."""

    title: str
    about: str
    numbers: Rows
    texts: list[str]


def worst(judged: Judged) -> Iterator[Group]:
    """Yield the errors of an answer, by kind."""
    truth = judged.truth
    if truth.kind == "regression":
        yield _farthest(truth, judged.proba)
        return
    if truth.kind == "multiclass":
        yield _unlikeliest(truth, judged.proba)
        return
    labels = range(1, 2) if truth.kind == "binary" else range(len(truth.classes))
    for j in list(labels)[:MOST_LABELS]:
        name = truth.classes[j]
        proba = judged.proba[:, j]
        called = judged.called[:, j]
        positive = truth.indicator[:, j]
        known = truth.known[:, j] & ~np.isnan(proba)
        wrong = np.flatnonzero(known & called & ~positive)
        highest = wrong[np.argsort(-proba[wrong], kind="stable")]
        yield _of_label("Worst false positives", f"called {name}, and not", highest, proba)
        missed = np.flatnonzero(known & ~called & positive)
        lowest = missed[np.argsort(proba[missed], kind="stable")]
        yield _of_label("Worst false negatives", f"{name}, and not called so", lowest, proba)


def _of_label(title: str, which: str, numbers: Rows, proba: Doubles) -> Group:
    shown = numbers[:MOST_CASES]
    about = f"Test units that are {which}: {len(numbers)}, the {len(shown)} worst here."
    return Group(title, about, shown, [f"{proba[i]:.3g}" for i in shown])


def _farthest(truth: Truth, proba: Doubles) -> Group:
    error = np.abs(proba[:, 0] - truth.y)
    shown = np.argsort(-error, kind="stable")[:MOST_CASES]
    texts = [f"{proba[i, 0]:.4g} in place of {truth.y[i]:.4g}" for i in shown]
    return Group(
        "Farthest off", "Test units whose number is farthest from the true one.", shown, texts
    )


def _unlikeliest(truth: Truth, proba: Doubles) -> Group:
    of_true = proba[np.arange(len(proba)), truth.y]
    wrong = np.flatnonzero(proba.argmax(axis=1) != truth.y)
    shown = wrong[np.argsort(of_true[wrong], kind="stable")][:MOST_CASES]
    texts = []
    for i in shown:
        said = truth.classes[int(proba[i].argmax())]
        texts.append(f"{said} in place of {truth.classes[truth.y[i]]} ({of_true[i]:.3g})")
    about = f"Test units of which another class is likelier: {len(wrong)}, the worst here."
    return Group("Worst errors", about, shown, texts)


# --- how they look -------------------------------------------------------------------------------


def cases_of(
    source: Source, rows: Sequence[list[int]], numbers: Rows, texts: Sequence[str]
) -> tuple[Case, ...]:
    """Return some units as cases; each is shown by its middle slice."""
    shown = [rows[i][len(rows[i]) // 2] for i in numbers.tolist()]
    drawn = _pictures(source, shown)
    return tuple(Case(row, text, drawn.get(row)) for row, text in zip(shown, texts, strict=True))


def _with_neighbours(
    source: Source, atlas: Atlas, task: str, cases: Sequence[Case]
) -> tuple[Case, ...]:
    """Return cases with the slices of other patients that lie nearest, and their labels."""
    places = np.searchsorted(source.rows, [case.row for case in cases])
    nearest = [atlas.pictured[atlas.nearest[place][:NEIGHBOURS]] for place in places]
    rows = [source.rows[each].tolist() for each in nearest]
    drawn = _pictures(source, [row for each in rows for row in each])
    words = next((column for column in atlas.columns if column.name == task), None)
    with_neighbours = []
    for case, place, beside, of_case in zip(cases, places, nearest, rows, strict=True):
        neighbours = []
        for number, (other, row) in enumerate(zip(beside, of_case, strict=True)):
            word = "" if words is None else words.word(int(other))
            cosine = f"{atlas.cosine[place][number]:.2f}"
            neighbours.append(Case(row, f"{word}, {cosine}" if word else cosine, drawn.get(row)))
        with_neighbours.append(replace(case, neighbours=tuple(neighbours)))
    return tuple(with_neighbours)


def _pictures(source: Source, rows: Sequence[int]) -> dict[int, bytes]:
    """Return the pictures of some slices by their rows, as far as files can be read."""
    places = np.searchsorted(source.rows, np.unique(np.array(rows, np.int64)))
    drawn = pictures(source, places) if len(places) else {}
    return {int(source.rows[place]): picture for place, picture in drawn.items()}
