"""Answers of all cells as one tidy table, and what it says: scores, paired tests, ranks.

Dims: s backbones, n blocks (tasks of data sets).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.benchmark.paired import Paired, held_against, pair
from pipeline.benchmark.published import Published, method_of, published
from pipeline.benchmark.run import Outcome
from pipeline.benchmark.settings import Cell
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.metrics.ranking import Ranking, ranking
from pipeline.recipe import ViewName
from pipeline.report.wording import HEADLINE
from pipeline.results import Metric, Result, Score, Segmented
from stores.errors import LabelError

Answer = Result | Segmented
TIDY = pa.schema(
    [(name, pa.string()) for name in ("dataset", "task", "backbone", "setting", "view", "method")]
    + [("seed", pa.int64()), ("patients", pa.int64())]
    + [(name, pa.string()) for name in ("at", "metric", "label")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "p", "published", "seconds")]
    + [("test_units", pa.int64()), ("test_patients", pa.int64()), ("random", pa.bool_())]
    + [(name, pa.string()) for name in ("recipe", "weights", "split", "labels", "key")]
)


@dataclass(frozen=True)
class Question:
    """What all backbones are asked alike: a task of a data set, in a setting, at a number of shots.

    shots: None for all training patients; ranked: whether it counts for ranks: the last of a
    setting's scores does.
    """

    dataset: str
    task: str
    setting: str
    shots: int | None
    ranked: bool
    metric: str


@dataclass(frozen=True)
class Entry:
    """A backbone's score on a question: the mean over seeds of value and of both ends.

    spread: the standard deviation over seeds, where there are several that differ.
    """

    metric: Metric
    seeds: int
    spread: float | None
    published: Published | None


@dataclass(frozen=True)
class Test:
    """Two backbones on the same test units: second less first. p_holm: over the whole table."""

    question: Question
    first: str
    second: str
    paired: Paired
    p_holm: float | None


@dataclass(frozen=True)
class Steady:
    """How an answer holds where the test images are seen otherwise: of the first seed.

    plain, seen: its metric on the images as they are, and on the view; difference: the second less
    the first, on the same test units. icc_scores: ICC(A,1) of the predictions, the mean over
    classes; icc_features: see `questions.Result.agreement`.
    """

    question: Question
    backbone: str
    view: ViewName
    plain: Metric
    seen: Metric
    difference: Metric
    icc_scores: float
    icc_features: float | None


@dataclass(frozen=True)
class Gathered:
    """All that a benchmark's answers say.

    scores: question -> backbone -> entry, of the images as they are. mean_ranks: setting ->
    backbone -> mean rank over the questions that every backbone answered. unpaired: why two
    answers could not be held against each other.
    """

    backbones: tuple[str, ...]
    tidy: pa.Table
    scores: dict[Question, dict[str, Entry]]
    tests: tuple[Test, ...]
    steady: tuple[Steady, ...]
    unpaired: tuple[str, ...]
    mean_ranks: dict[str, dict[str, float]]
    ranking: Ranking
    random: bool


def gather(outcomes: Sequence[Outcome]) -> Gathered:
    """Return what the answers say, of cells that have any."""
    every = [(outcome.cell, answer) for outcome in outcomes for answer in outcome.answers]
    every = [(cell, answer) for cell, answer in every if "/" not in answer.task]  # no shortcuts
    held = [(cell, answer) for cell, answer in every if cell.view == "none"]
    backbones = tuple(dict.fromkeys(outcome.cell.backbone for outcome in outcomes))
    scores = _scores(held)
    tests, unpaired = _tests(held)
    steady, unsteady = _steady(every)
    ranked = {q: own for q, own in scores.items() if q.ranked and own.keys() == {*backbones}}
    ranks = {q: _ranks([own[b].metric.value for b in backbones]) for q, own in ranked.items()}
    mean_ranks = {
        setting: dict(zip(backbones, np.mean(own, axis=0).tolist(), strict=True))
        for setting in dict.fromkeys(q.setting for q in ranks)
        if (own := [rank for q, rank in ranks.items() if q.setting == setting])
    }
    blocks: dict[tuple[str, str], list[np.ndarray[Any, Any]]] = {}
    for question, rank in ranks.items():
        blocks.setdefault((question.dataset, question.task), []).append(rank)
    return Gathered(
        backbones=backbones,
        tidy=tidy(every),
        scores=scores,
        tests=tests,
        steady=tuple(steady),
        unpaired=(*unpaired, *unsteady),
        mean_ranks=mean_ranks,
        ranking=ranking(backbones, np.array([np.mean(own, axis=0) for own in blocks.values()])),
        random=any(answer.provenance.random for _, answer in held),
    )


def _ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return ranks (s,) of values, 1 the greatest; ties share their mean rank."""
    from scipy.stats import rankdata

    ranks: np.ndarray[Any, Any] = rankdata(-np.array(values))
    return ranks


# --- scores ----------------------------------------------------------------------------------


def headline(answer: Answer) -> str:
    """Return the metric that stands for an answer."""
    if isinstance(answer, Segmented):
        return "dice"
    known = {name for score in answer.scores for name in score.metrics}
    return next((name for name in HEADLINE if name in known), min(known, default=""))


def shots_of(answer: Answer, score: Score) -> int | None:
    """Return how many patients (a class, or in all) a score was learnt from; None for all."""
    number = score.setting.get("patients" if isinstance(answer, Segmented) else "shots")
    return None if number is None else int(number)


def _shown(answer: Answer) -> Iterator[tuple[int | None, Score, bool]]:
    """Yield the scores that tables show: of each number of shots, and else the last."""
    for score in answer.scores:
        shots, last = shots_of(answer, score), score is answer.scores[-1]
        if shots is not None or last:
            yield shots, score, last


def _scores(held: Sequence[tuple[Cell, Answer]]) -> dict[Question, dict[str, Entry]]:
    found: dict[Question, dict[str, dict[str, tuple[Metric, Cell, Answer]]]] = {}
    for cell, answer in held:
        name = headline(answer)
        for shots, score, last in _shown(answer):
            if name in score.metrics:
                asked = Question(cell.dataset, answer.task, cell.setting, shots, last, name)
                own = found.setdefault(asked, {}).setdefault(cell.backbone, {})
                # Seeds that change nothing have one answer, filed under one key.
                own[answer.provenance.key] = (score.metrics[name], cell, answer)
    return {
        asked: {name: _entry(asked, list(own.values())) for name, own in each.items()}
        for asked, each in found.items()
    }


def _entry(asked: Question, own: Sequence[tuple[Metric, Cell, Answer]]) -> Entry:
    metrics, (_, cell, answer) = [metric for metric, *_ in own], own[0]
    values = [metric.value for metric in metrics]
    ends = [(m.low, m.high) for m in metrics if m.low is not None and m.high is not None]
    low, high = np.mean(ends, axis=0).tolist() if len(ends) == len(own) else (None, None)
    return Entry(
        metric=Metric(value=float(np.mean(values)), low=low, high=high),
        seeds=len(own),
        spread=float(np.std(values, ddof=1)) if len(own) > 1 else None,
        published=_published(cell, answer, asked.shots),
    )


def tidy(held: Sequence[tuple[Cell, Answer]]) -> pa.Table:
    """Return one row a number: of what, with its interval, and what it was computed from."""
    rows = [
        {**_about(cell, answer), **_at(cell, answer, score), "metric": name, "label": label}
        | metric.model_dump()
        for cell, answer in held
        for score in answer.scores
        for label, metrics in {"": score.metrics, **score.labels}.items()
        for name, metric in metrics.items()
    ]
    return pa.Table.from_pylist(rows, schema=TIDY)


def _about(cell: Cell, answer: Answer) -> dict[str, Any]:
    origin = answer.provenance.model_dump(include={"recipe", "weights", "split", "labels", "key"})
    test = answer.counts["test"]
    return origin | {
        "dataset": cell.dataset,
        "task": answer.task,
        "backbone": cell.backbone,
        "setting": cell.setting,
        "view": cell.view,
        "method": answer.method,
        "seed": cell.seed,
        "seconds": answer.seconds,
        "test_units": test.units,
        "test_patients": test.patients,
        "random": answer.provenance.random,
    }


def _at(cell: Cell, answer: Answer, score: Score) -> dict[str, Any]:
    shots = shots_of(answer, score)
    seen = _published(cell, answer, shots)
    return {
        "patients": shots,
        "at": ", ".join(f"{key} = {value:g}" for key, value in score.setting.items()),
        "published": None if seen is None else seen.value,
    }


def _published(cell: Cell, answer: Answer, shots: int | None) -> Published | None:
    return published(cell.dataset, cell.config.backbone.name, method_of(answer), shots)


# --- views -----------------------------------------------------------------------------------


def _steady(every: Sequence[tuple[Cell, Answer]]) -> tuple[list[Steady], list[str]]:
    """Return each answer on a view against that on the images as they are, of the first seed.

    And why two could not be held against each other.
    """
    plain: dict[tuple[Question, str], tuple[Cell, Result]] = {}
    found: list[Steady] = []
    unpaired: list[str] = []
    for cell, answer in sorted(every, key=lambda each: each[0].view != "none"):
        if not isinstance(answer, Result):
            continue
        metric = headline(answer)
        asked = Question(cell.dataset, answer.task, cell.setting, None, True, metric)
        if cell.view == "none":
            plain.setdefault((asked, cell.backbone), (cell, answer))
            continue
        there = plain.get((asked, cell.backbone))
        if there is None or there[0].seed != cell.seed:
            continue
        try:
            held = held_against(there, (cell, answer), metric)
        except LabelError as error:
            unpaired.append(f"{cell.name}: {error}")
            continue
        if held is not None:
            ends = there[1].scores[-1].metrics[metric], answer.scores[-1].metrics[metric]
            found.append(Steady(asked, cell.backbone, cell.view, *ends, *held, answer.agreement))
    return found, unpaired


# --- paired tests ----------------------------------------------------------------------------


def _tests(held: Sequence[tuple[Cell, Answer]]) -> tuple[tuple[Test, ...], tuple[str, ...]]:
    """Return every pair of backbones on every question, of the first seed, in the last setting."""
    groups: dict[Question, dict[str, tuple[Cell, Answer]]] = {}
    for cell, answer in held:
        asked = Question(cell.dataset, answer.task, cell.setting, None, True, headline(answer))
        groups.setdefault(asked, {}).setdefault(cell.backbone, (cell, answer))
    found: list[tuple[Question, str, str, Paired]] = []
    unpaired: list[str] = []
    for asked, own in groups.items():
        for first, second in combinations(own, 2):
            try:
                paired = pair(asked.metric, *own[first], *own[second])
            except LabelError as error:
                unpaired.append(f"{asked.dataset}, {asked.task}, {asked.setting}: {error}")
                continue
            if paired is not None:
                found.append((asked, first, second, paired))
    adjusted = iter(holm([each.p for *_, each in found if each.p is not None]))
    return tuple(
        Test(*each, None if each[3].p is None else next(adjusted)) for each in found
    ), tuple(unpaired)
