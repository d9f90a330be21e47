"""What the answer that stands for a task says of each test unit, and which slices those are.

Dims: n test units, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.levels import LEVELS
from pipeline.annotations.units import Truth
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.result_files import (
    predicted_units,
    predictions_path,
    read_predictions,
    read_thresholds,
)
from pipeline.report.models import Case
from pipeline.report.regions import RegionPlaces
from pipeline.report.sources import Source
from pipeline.results import Result

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """What an answer says of its test units. called (n, c): by its operating points, or one half.

    rows: of the slices of each unit; ids: what each is called; parts: which part of its slices
    each is, "" for all of them; places: where such parts lie, None where nobody knows.
    """

    truth: Truth
    proba: Doubles
    called: Bools
    fold: NDArray[np.int64] | None
    rows: list[list[int]]
    ids: list[str]
    parts: list[str]
    places: RegionPlaces | None

    @classmethod
    def of(cls, source: Source, result: Result) -> Judged | None:
        """Return what is on file, of units that have slices still; None where nothing is."""
        path = source.store.path
        if not predictions_path(path, result).is_file():
            return None
        truth, proba, fold = read_predictions(path, result)
        called = is_called(proba, read_thresholds(path, result))
        ids = predicted_units(path, result).tolist()
        rows_of = rows_by_unit(source, result, ids)
        # Withdrawn slices have no picture and no features any more.
        there = np.array([name in rows_of for name in ids], bool)
        left = [name for name in ids if name in rows_of]
        return cls(
            truth.at(there),
            proba[there],
            called[there],
            None if fold is None else fold[there],
            [rows_of[name] for name in left],
            left,
            [LEVELS[result.level].part(name) or "" for name in left],
            RegionPlaces.of(source, result.task),
        )

    def row(self, i: int) -> int:
        """Return the row of the slice that a unit is shown by: its middle one, or most of it."""
        most = self.places.row(self.ids[i]) if self.places else None
        return self.rows[i][len(self.rows[i]) // 2] if most is None else most

    def case(self, i: int, row: int, about: str, picture: bytes | None) -> Case:
        """Return a unit as the page shows it, by one of its slices."""
        mark = self.places.mark(self.ids[i], row) if self.places and picture else None
        return Case(row, about, picture, part=self.parts[i], mark=mark)

    def at(self, which: Bools) -> Judged:
        """Return what is said of some of the units."""
        numbers = np.flatnonzero(which).tolist()
        fold = None if self.fold is None else self.fold[which]
        return Judged(
            self.truth.at(which),
            self.proba[which],
            self.called[which],
            fold,
            [self.rows[i] for i in numbers],
            [self.ids[i] for i in numbers],
            [self.parts[i] for i in numbers],
            self.places,
        )


def rows_by_unit(source: Source, result: Result, ids: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of the slices with features of each unit of an answer, by its name.

    Of the modalities that its task asks about, where the config says. ids: of the units.
    """
    rows: dict[str, list[int]] = {}
    named: Iterable[tuple[int, str]] = LEVELS[result.level].places(source.slices, ids)
    if result.level == "patient":  # those of the labels, as in the split
        named = enumerate(source.patients.tolist())
    task = source.config.tasks.get(result.task) if source.config else None
    wanted = task.modality if task else None
    modality = source.slices["modality"].to_pylist()
    of_place = source.rows.tolist()
    for place, name in named:
        if wanted is None or modality[place] in wanted:
            rows.setdefault(name, []).append(of_place[place])
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
