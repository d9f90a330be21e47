"""Which test units a reader should look at: the worst errors of an answer, by picture.

Dims: n test units, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth
from pipeline.report.atlas import Atlas, Column, Scale
from pipeline.report.judged import Judged, leading_answers
from pipeline.report.mattered import Heeded, heeded_slices
from pipeline.report.models import Case, CaseGroup
from pipeline.report.pictures import pictures
from pipeline.report.sources import Source
from pipeline.shared.arrays import Rows

Doubles = NDArray[np.float64]
# Cases of a kind that are shown, labels that have them, and neighbours that each is shown with.
MOST_CASES = 6
MOST_LABELS = 4
NEIGHBOURS = 3


def task_cases(
    source: Source, atlas: Atlas | None, drawn: Mapping[int, bytes]
) -> dict[str, tuple[CaseGroup, ...]]:
    """Return the worst cases of each task's leading answer, with the slices nearest to them.

    drawn: the pictures of the map's slices, by place, of which none is drawn again.
    """
    errors: dict[str, tuple[Judged, list[tuple[Group, list[int]]]]] = {}
    for task, result in leading_answers(source).items():
        judged = Judged.of(source, result)
        if judged is not None:
            groups = [(group, _rows_of(judged, group.numbers)) for group in worst(judged)]
            errors[task] = judged, groups
    heeded = heeded_slices(source)
    rows = {row for _, groups in errors.values() for _, of_group in groups for row in of_group}
    rows |= {row for answers in heeded.values() for each in answers for row in each.rows}
    places = np.searchsorted(source.rows, sorted(rows))
    on_map = () if atlas is None else atlas.pictured
    # All at once: each reading starts processes.
    others = np.setdiff1d(places, on_map)
    every = dict(drawn) | (pictures(source, others) if len(others) else {})
    cases = {}
    for task, (judged, groups) in errors.items():
        by_group = []
        for group, of_group in groups:
            # What neighbours are labelled is what the map is coloured by.
            column = group.label or task
            shown = []
            for i, row, text in zip(group.numbers.tolist(), of_group, group.texts, strict=True):
                place = int(np.searchsorted(source.rows, row))
                neighbours = (
                    () if atlas is None else _neighbours(source, atlas, column, place, every)
                )
                case = judged.case(i, row, text, every.get(place))
                shown.append(replace(case, neighbours=neighbours))
            by_group.append(CaseGroup(group.title, group.about, tuple(shown)))
        cases[task] = tuple(by_group)
    for task, answers in heeded.items():
        shown_slices = [_mattered(source, each, every) for each in answers]
        cases[task] = (*cases.get(task, ()), *shown_slices)
    return cases


def _mattered(source: Source, heeded: Heeded, drawn: Mapping[int, bytes]) -> CaseGroup:
    """Return the slices that an answer heeded most, as the page shows them."""

    def case(i: int, row: int, about: str) -> Case:
        place = int(np.searchsorted(source.rows, row))
        return heeded.judged.case(i, row, about, drawn.get(place))

    cases = []
    for i, verdict, slices in heeded.units:
        (row, weight), *others = slices
        neighbours = tuple(case(i, other, f"weight {of_other:.2f}") for other, of_other in others)
        shown = case(i, row, f"weight {weight:.2f}; {verdict}")
        cases.append(replace(shown, neighbours=neighbours))
    return CaseGroup(heeded.title, heeded.about, tuple(cases), "The slices that counted next most")


# --- which ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Units of one kind of error, the worst first. numbers: theirs; texts: what is said of each.

    label: of several labels the one that it is about.
    """

    title: str
    about: str
    numbers: Rows
    texts: list[str]
    label: str = ""


def worst(judged: Judged) -> Iterator[Group]:
    """Yield the errors of an answer, by kind."""
    truth = judged.truth
    if truth.kind == "regression":
        yield _farthest(truth, judged.proba)
        return
    if truth.kind == "survival":
        yield from _surprising(truth, judged.proba)
        return
    if truth.kind == "multiclass":
        yield _unlikeliest(truth, judged.proba)
        return
    labels = range(1, 2) if truth.kind == "binary" else range(len(truth.classes))
    for j in list(labels)[:MOST_LABELS]:
        name = truth.classes[j]
        label = "" if truth.kind == "binary" else name
        proba = judged.proba[:, j]
        called = judged.called[:, j]
        positive = truth.indicator[:, j]
        known = truth.known[:, j] & ~np.isnan(proba)
        wrong = np.flatnonzero(known & called & ~positive)
        highest = wrong[np.argsort(-proba[wrong], kind="stable")]
        yield _of_label("positives", f"called {name}, and not", highest, proba, label)
        missed = np.flatnonzero(known & ~called & positive)
        lowest = missed[np.argsort(proba[missed], kind="stable")]
        yield _of_label("negatives", f"{name}, and not called so", lowest, proba, label)


def _of_label(kind: str, which: str, numbers: Rows, proba: Doubles, label: str) -> Group:
    shown = numbers[:MOST_CASES]
    title = f"Worst false {kind} of {label}" if label else f"Worst false {kind}"
    few = f", the {len(shown)} worst here" if len(shown) < len(numbers) else ""
    about = f"Test units that are {which}: {len(numbers) or 'none'}{few}."
    return Group(title, about, shown, [f"{proba[i]:.3g}" for i in shown], label)


def _farthest(truth: Truth, proba: Doubles) -> Group:
    error = np.abs(proba[:, 0] - truth.y)
    shown = np.argsort(-error, kind="stable")[:MOST_CASES]
    texts = [f"{proba[i, 0]:.4g} in place of {truth.y[i]:.4g}" for i in shown]
    return Group(
        "Farthest off", "Test units whose number is farthest from the true one.", shown, texts
    )


def _surprising(truth: Truth, proba: Doubles) -> Iterator[Group]:
    """Yield those with the event at the lowest risks, and those without it at the highest."""
    seen = truth.indicator[:, 0]
    name = truth.classes[0]
    for title, numbers, sign in (
        (f"{name} at low risk", np.flatnonzero(seen), 1),
        (f"High risk, and not {name}", np.flatnonzero(~seen), -1),
    ):
        shown = numbers[np.argsort(sign * proba[numbers, 0], kind="stable")][:MOST_CASES]
        texts = [f"{proba[i, 0]:.2g}, watched for {truth.y[i, 0]:.4g}" for i in shown]
        about = f"Test units, of {len(numbers)} such: the logs of their hazards."
        yield Group(title, about, shown, texts)


def _unlikeliest(truth: Truth, proba: Doubles) -> Group:
    of_true = proba[np.arange(len(proba)), truth.y]
    wrong = np.flatnonzero(proba.argmax(axis=1) != truth.y)
    shown = wrong[np.argsort(of_true[wrong], kind="stable")][:MOST_CASES]
    texts = []
    for i in shown:
        predicted = truth.classes[int(proba[i].argmax())]
        texts.append(f"{predicted} in place of {truth.classes[truth.y[i]]} ({of_true[i]:.3g})")
    about = f"Test units of which another class is likelier: {len(wrong)}, the worst here."
    return Group("Worst errors", about, shown, texts)


# --- how they look -------------------------------------------------------------------------------


def cases_of(
    source: Source, judged: Judged, numbers: Rows, texts: Sequence[str]
) -> tuple[Case, ...]:
    """Return some units as cases; each is shown by one slice."""
    shown = _rows_of(judged, numbers)
    places = np.searchsorted(source.rows, np.unique(np.array(shown, np.int64)))
    drawn = pictures(source, places) if len(places) else {}
    of_row = {int(source.rows[place]): picture for place, picture in drawn.items()}
    each = zip(numbers.tolist(), shown, texts, strict=True)
    return tuple(judged.case(i, row, text, of_row.get(row)) for i, row, text in each)


def _rows_of(judged: Judged, numbers: Rows) -> list[int]:
    """Return the row of the slice that each of some units is shown by."""
    return [judged.row(i) for i in numbers.tolist()]


def _neighbours(
    source: Source, atlas: Atlas, column: str, place: int, drawn: Mapping[int, bytes]
) -> tuple[Case, ...]:
    """Return the slices of other patients that lie nearest to one, and what they are labelled."""
    labelled: list[Column | Scale] = [*atlas.columns, *atlas.scales]
    words = next((each for each in labelled if each.name == column), None)
    neighbours = []
    for number, cosine in zip(atlas.nearest[place], atlas.cosine[place], strict=True):
        other = int(atlas.pictured[number])
        word = "" if words is None else words.word(other)
        about = f"{word}, {cosine:.2f}" if word else f"{cosine:.2f}"
        neighbours.append(Case(int(source.rows[other]), about, drawn.get(other)))
    return tuple(neighbours[:NEIGHBOURS])
