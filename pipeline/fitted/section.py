"""What the page of a report says of a model: its worst cases on the test units, with pictures.

Dims: n test units, c classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.annotations.levels import LEVELS
from pipeline.annotations.units import Units
from pipeline.evaluation.metrics.operating import is_called
from pipeline.evaluation.result_files import filed
from pipeline.fitted.card import facts, summary_line
from pipeline.fitted.kinds import load_model
from pipeline.fitted.model import Model
from pipeline.fitted.predict import UNLIKE_AT
from pipeline.fitted.sources import check_recipe
from pipeline.report.cases import MOST_CASES, cases_of, worst
from pipeline.report.judged import Judged
from pipeline.report.models import CaseGroup, ModelSection
from pipeline.report.sources import Source
from pipeline.results import Result
from stores.errors import RecipeMismatchError


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
            answer = _answer_of(model, sources)
            if answer is None:
                notes.append("its answer is in none of these stores, so that no case is shown")
            else:
                groups = tuple(_groups(model, *answer))
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
    judged = Judged.of(source, result)
    if judged is None:
        return
    if judged.fold is not None:  # the model is of the first fold
        judged = judged.at(judged.fold == 0)
    record = model.record
    thresholds = np.array([record.thresholds.get(name, np.nan) for name in record.classes])
    judged = replace(judged, called=is_called(judged.proba, thresholds))
    for group in worst(judged):
        shown = cases_of(source, judged, group.numbers, group.texts)
        yield CaseGroup(group.title, group.about, shown)
    yield _unlike(model, source, judged)


def _unlike(model: Model, source: Source, judged: Judged) -> CaseGroup:
    """Return the test units that are least like what the model has learnt from."""
    title = "Unlike what it learnt from"
    if not LEVELS[model.record.question.level].is_whole:
        return CaseGroup(title, "Not looked for among regions.", ())
    try:
        check_recipe(model, source.store)
    except RecipeMismatchError:
        return CaseGroup(title, "Not known: this store has features of another network.", ())
    rows = judged.rows
    sizes = [len(each) for each in rows]
    names = np.arange(len(rows)).astype(np.str_)
    unit = np.repeat(np.arange(len(rows)), sizes)
    units = Units.unlabelled(names, np.concatenate(rows).astype(np.int64), unit)
    distances = model.references.distances_of(model.features_of(source.store, units))
    p = model.references.p_values(distances)
    far = np.flatnonzero(p <= UNLIKE_AT)
    shown = far[np.argsort(p[far], kind="stable")][:MOST_CASES]
    about = (
        f"Test units with a conformal p-value of {UNLIKE_AT:g} or less: {len(far)} of {len(p)}; "
        f"of images like those of training {UNLIKE_AT:.0%} would be."
    )
    return CaseGroup(
        title, about, cases_of(source, judged, shown, [f"p {p[i]:.3g}" for i in shown])
    )
