"""What the page of a report says of a model: its worst cases on the test units, with pictures.

Dims: n test units, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth, Units, unit_names
from pipeline.config.tasks import Level
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.result_files import filed, predicted_units, read_predictions
from pipeline.fitted.card import facts, summary_line
from pipeline.fitted.kinds import load_model
from pipeline.fitted.model import Model
from pipeline.fitted.predict import UNLIKE_AT
from pipeline.fitted.sources import check_recipe
from pipeline.report.models import Case, CaseGroup, ModelSection
from pipeline.report.pictures import pictures
from pipeline.report.sources import Source
from pipeline.results import Result
from pipeline.shared.arrays import Rows
from stores.errors import RecipeMismatchError

Doubles = NDArray[np.float64]
# Cases of a kind that are shown, and labels that have them.
MOST_CASES = 6
MOST_LABELS = 4


def sections_of(paths: Sequence[Path], sources: Sequence[Source]) -> list[ModelSection]:
    """Return what is to be said of models, each with the test units of the store it comes from.

    paths: of their folders. Raises ModelError.
    """
    sections = []
    for path in paths:
        model = load_model(path)
        record = model.record
        groups: tuple[CaseGroup, ...] = ()
        notes = list(record.notes)
        if isinstance(model, Model):
            found = _answer_of(model, sources)
            if found is None:
                notes.append("its answer is in none of these stores, so that no case is shown")
            else:
                groups = tuple(_groups(model, *found))
        section = ModelSection(
            name=path.name,
            sentence=summary_line(record),
            random=record.random,
            facts=tuple(facts(record)),
            metrics=record.score.metrics,
            groups=groups,
            notes=tuple(notes),
        )
        sections.append(section)
    return sections


def _answer_of(model: Model, sources: Sequence[Source]) -> tuple[Source, Result] | None:
    """Return the store that a model's answer is filed in, and the answer."""
    for source in sources:
        for _, result in filed(source.store.path):
            if result.provenance.key == model.record.provenance.key:
                return source, result
    return None


# --- which cases -----------------------------------------------------------------------------


def _groups(model: Model, source: Source, result: Result) -> Iterator[CaseGroup]:
    """Yield the cases of a model's test units that are to be looked at."""
    truth, proba, fold = read_predictions(source.store.path, result)
    ids = predicted_units(source.store.path, result)
    if fold is not None:  # the model is of the first fold
        first = fold == 0
        truth = truth.at(first)
        proba = proba[first]
        ids = ids[first]
    # Withdrawn slices have no picture and no features any more.
    rows_of = _rows_by_unit(source, result.level)
    there = np.array([name in rows_of for name in ids.tolist()], bool)
    truth = truth.at(there)
    proba = proba[there]
    rows = [rows_of[name] for name in ids[there].tolist()]
    for title, about, numbers, texts in _worst(model, truth, proba):
        yield CaseGroup(title, about, _cases(source, rows, numbers, texts))
    yield _unlike(model, source, rows)


def _rows_by_unit(source: Source, level: Level) -> dict[str, list[int]]:
    """Return the rows of the slices with features of each unit, by its name."""
    rows: dict[str, list[int]] = {}
    names = unit_names(source.slices, level).tolist()
    for name, row in zip(names, source.rows.tolist(), strict=True):
        rows.setdefault(name, []).append(row)
    return rows


Group = tuple[str, str, Rows, list[str]]


def _worst(model: Model, truth: Truth, proba: Doubles) -> Iterator[Group]:
    """Yield title, text, unit numbers and what is said of each, of errors, the worst first."""
    record = model.record
    if record.kind == "regression":
        yield _farthest(truth, proba)
        return
    if record.kind == "multiclass":
        yield _unlikeliest(truth, proba)
        return
    thresholds = np.array([record.thresholds.get(name, np.nan) for name in record.classes])
    called = is_called(proba, thresholds)
    labels = range(1, 2) if record.kind == "binary" else range(len(record.classes))
    for j in list(labels)[:MOST_LABELS]:
        name = record.classes[j]
        positive = truth.indicator[:, j]
        known = truth.known[:, j] & ~np.isnan(proba[:, j])
        wrong = np.flatnonzero(known & called[:, j] & ~positive)
        highest = wrong[np.argsort(-proba[wrong, j], kind="stable")]
        yield _of_label("Worst false positives", f"called {name}, and not", highest, proba[:, j])
        missed = np.flatnonzero(known & ~called[:, j] & positive)
        lowest = missed[np.argsort(proba[missed, j], kind="stable")]
        yield _of_label("Worst false negatives", f"{name}, and not called so", lowest, proba[:, j])


def _of_label(title: str, which: str, numbers: Rows, proba: Doubles) -> Group:
    shown = numbers[:MOST_CASES]
    about = f"Test units that are {which}: {len(numbers)}, the {len(shown)} worst here."
    return title, about, shown, [f"{proba[i]:.3g}" for i in shown]


def _farthest(truth: Truth, proba: Doubles) -> Group:
    error = np.abs(proba[:, 0] - truth.y)
    shown = np.argsort(-error, kind="stable")[:MOST_CASES]
    texts = [f"{proba[i, 0]:.4g} in place of {truth.y[i]:.4g}" for i in shown]
    return "Farthest off", "Test units whose number is farthest from the true one.", shown, texts


def _unlikeliest(truth: Truth, proba: Doubles) -> Group:
    of_true = proba[np.arange(len(proba)), truth.y]
    wrong = np.flatnonzero(proba.argmax(axis=1) != truth.y)
    shown = wrong[np.argsort(of_true[wrong], kind="stable")][:MOST_CASES]
    texts = []
    for i in shown:
        said = truth.classes[int(proba[i].argmax())]
        texts.append(f"{said} in place of {truth.classes[truth.y[i]]} ({of_true[i]:.3g})")
    about = f"Test units of which another class is likelier: {len(wrong)}, the worst here."
    return "Worst errors", about, shown, texts


def _unlike(model: Model, source: Source, rows: Sequence[list[int]]) -> CaseGroup:
    """Return the test units that are least like what the model has learnt from."""
    title = "Unlike what it learnt from"
    try:
        check_recipe(model, source.store)
    except RecipeMismatchError:
        return CaseGroup(title, "Not known: this store has features of another network.", ())
    sizes = [len(each) for each in rows]
    names = np.arange(len(rows)).astype(np.str_)
    unit = np.repeat(np.arange(len(rows)), sizes)
    units = Units.unlabelled(names, np.concatenate(rows).astype(np.int64), unit)
    _, distances = model.of_store(source.store, units)
    p = model.references.p_values(distances)
    far = np.flatnonzero(p <= UNLIKE_AT)
    shown = far[np.argsort(p[far], kind="stable")][:MOST_CASES]
    about = (
        f"Test units with a conformal p-value of {UNLIKE_AT:g} or less: {len(far)} of {len(p)}; "
        f"of images like those of training {UNLIKE_AT:.0%} would be."
    )
    return CaseGroup(title, about, _cases(source, rows, shown, [f"p {p[i]:.3g}" for i in shown]))


# --- how they look ---------------------------------------------------------------------------


def _cases(
    source: Source, rows: Sequence[list[int]], numbers: Rows, texts: Sequence[str]
) -> tuple[Case, ...]:
    """Return some units as cases; each is shown by its middle slice."""
    shown = [rows[i][len(rows[i]) // 2] for i in numbers.tolist()]
    places = np.searchsorted(source.rows, np.unique(np.array(shown, np.int64)))
    drawn = pictures(source, places) if len(places) else {}
    of_row = {int(source.rows[place]): picture for place, picture in drawn.items()}
    return tuple(Case(row, text, of_row.get(row)) for row, text in zip(shown, texts, strict=True))
