"""Answers of all cells as one tidy table, and what it says: scores, paired tests, ranks.

Dims: s backbones, n blocks (tasks of data sets).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.benchmark.paired import Paired, compared_with, pair
from pipeline.benchmark.published import Published, published
from pipeline.benchmark.run import Outcome
from pipeline.benchmark.settings import FROM_SCRATCH, Cell
from pipeline.evaluation.metrics.paired import holm
from pipeline.evaluation.metrics.ranking import Ranking, ranking
from pipeline.recipe import ViewName
from pipeline.report.wording import HEADLINE, positive_name, positive_text, units_alone
from pipeline.results import Metric, Result, Score, Segmented
from stores.errors import LabelError

Answer = Result | Segmented
Ranks = NDArray[np.float64]
CellAnswer = tuple[Cell, Answer]
TIDY = pa.schema(
    [(name, pa.string()) for name in ("dataset", "task", "backbone", "setting", "view", "method")]
    + [("seed", pa.int64()), ("patients", pa.int64())]
    + [(name, pa.string()) for name in ("at", "metric", "label")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "p", "published", "seconds")]
    + [("test_units", pa.int64()), ("test_patients", pa.int64())]
    + [("positive", pa.string()), ("positives", pa.int64()), ("random", pa.bool_())]
    + [(name, pa.string()) for name in ("network", "recipe", "weights", "split", "labels", "key")]
)


@dataclass(frozen=True)
class Question:
    """What all backbones are asked alike: a task of a data set, in a setting, at a number of shots.

    shots: None for all training patients; ranked: whether it counts for ranks: of a setting's
    scores the one that stands for the answer does.
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

    spread: the standard deviation over seeds, where there are several that differ. published: what
    was, and of_ours: the mean over seeds of what was measured so here. positive: which of two
    classes is, and how many test units of the first seed carry it.
    """

    metric: Metric
    seeds: int
    spread: float | None
    published: Published | None
    of_ours: float | None
    positive: str


@dataclass(frozen=True)
class Seed:
    """One seed's score on a question, and what it came from.

    metric: of the score, the one that the question is about.
    """

    metric: Metric
    score: Score
    cell: Cell
    answer: Answer


@dataclass(frozen=True)
class Test:
    """Two backbones on the same test units: second less first. p_holm: over the whole table.

    positive: as `Entry` has it.
    """

    question: Question
    first: str
    second: str
    paired: Paired
    p_holm: float | None
    positive: str


@dataclass(frozen=True)
class Steady:
    """How an answer holds where the test images are seen otherwise: of the first seed.

    plain, seen: its metric on the images as they are, and on the view; difference: the second less
    the first, on the same test units. icc_scores: ICC(A,1) of the predictions, the mean over
    classes; icc_features: as `results.Result.agreement` has it.
    """

    question: Question
    backbone: str
    view: ViewName
    plain: Metric
    seen: Metric
    difference: Metric
    icc_scores: float
    icc_features: float | None
    positive: str


@dataclass(frozen=True)
class Across:
    """How an answer holds where heads are fitted on another data set: of the first seed.

    question: of the data set that tests; fitted: the other. away, home: its metric by heads fitted
    there and here; difference: the first less the second, on the same test units. None where the
    data set has no such answer of its own.
    """

    question: Question
    backbone: str
    fitted: str
    away: Metric
    home: Metric | None
    difference: Metric | None
    positive: str


@dataclass(frozen=True)
class Gathered:
    """All that a benchmark's answers say.

    backbones: those that are held against each other, without what was trained on images alone;
    columns: these and that. scores: question -> backbone -> entry, of the images as they are,
    fitted and tested on one data set; across: of pairs of them. mean_ranks: setting ->
    backbone -> mean rank over the questions that every backbone answered. unpaired: why two
    answers could not be held against each other.
    """

    backbones: tuple[str, ...]
    columns: tuple[str, ...]
    tidy: pa.Table
    scores: dict[Question, dict[str, Entry]]
    tests: tuple[Test, ...]
    steady: tuple[Steady, ...]
    across: tuple[Across, ...]
    unpaired: tuple[str, ...]
    mean_ranks: dict[str, dict[str, float]]
    ranking: Ranking
    random: bool


def gather(outcomes: Sequence[Outcome]) -> Gathered:
    """Return what the answers say, of cells that have any."""
    every = _answers(outcomes)
    answers = [(cell, answer) for cell, answer in every if not cell.tested]
    on_images = [(cell, answer) for cell, answer in answers if cell.view == "none"]
    columns = tuple(dict.fromkeys(outcome.cell.backbone for outcome in outcomes))
    backbones = tuple(name for name in columns if name != FROM_SCRATCH)
    scores = _scores(on_images)
    tests, unpaired = _tests(on_images)
    steady, unsteady = _steady(answers)
    across, apart = _across(every)
    ranks = _ranks(scores, backbones)
    return Gathered(
        backbones=backbones,
        columns=columns,
        tidy=tidy(every),
        scores=scores,
        tests=tests,
        steady=tuple(steady),
        across=tuple(across),
        unpaired=(*unpaired, *unsteady, *apart),
        mean_ranks=_mean_ranks(ranks, backbones),
        ranking=ranking(backbones, _block_ranks(ranks)),
        random=any(answer.provenance.random for _, answer in every),
    )


def _answers(outcomes: Sequence[Outcome]) -> list[CellAnswer]:
    """Return every answer with its cell, but for those of shortcuts, which are no tasks."""
    answers: list[CellAnswer] = []
    for outcome in outcomes:
        tasks = [answer for answer in outcome.answers if "/" not in answer.task]
        answers += [(outcome.cell, answer) for answer in tasks]
    return answers


def _ranks(
    scores: Mapping[Question, Mapping[str, Entry]], backbones: Sequence[str]
) -> dict[Question, Ranks]:
    """Return the backbones' ranks (s,), 1 the best, on each question that all of them answered.

    Ties share their mean rank.
    """
    from scipy.stats import rankdata

    ranks: dict[Question, Ranks] = {}
    for question, entries in scores.items():
        # A backbone without an answer has no rank, and the others' would mean something else.
        if question.ranked and entries.keys() == {*backbones}:
            values = np.array([entries[backbone].metric.value for backbone in backbones])
            ranks[question] = rankdata(-values)
    return ranks


def _mean_ranks(
    ranks: Mapping[Question, Ranks], backbones: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return setting -> backbone -> its mean rank over the questions of that setting."""
    by_setting: dict[str, list[Ranks]] = {}
    for question, rank in ranks.items():
        by_setting.setdefault(question.setting, []).append(rank)
    return {
        setting: dict(zip(backbones, np.mean(of_setting, axis=0).tolist(), strict=True))
        for setting, of_setting in by_setting.items()
    }


def _block_ranks(ranks: Mapping[Question, Ranks]) -> NDArray[np.float64]:
    """Return (n, s): the mean ranks on each task, which is a block of Friedman's test.

    Settings of one task are no blocks of their own: they are asked of the same patients.
    """
    by_task: dict[tuple[str, str], list[Ranks]] = {}
    for question, rank in ranks.items():
        by_task.setdefault((question.dataset, question.task), []).append(rank)
    return np.array([np.mean(of_task, axis=0) for of_task in by_task.values()])


# --- scores ----------------------------------------------------------------------------------


def headline(answer: Answer) -> str:
    """Return the metric that stands for an answer."""
    if isinstance(answer, Segmented):
        return "dice"
    known = set(chain.from_iterable(score.metrics for score in answer.scores))
    return next((name for name in HEADLINE if name in known), min(known, default=""))


def shots_of(answer: Answer, score: Score) -> int | None:
    """Return how many patients (a class, or in all) a score was learnt from; None for all."""
    number = score.setting.get("patients" if isinstance(answer, Segmented) else "shots")
    return None if number is None else int(number)


def _shown(answer: Answer) -> Iterator[tuple[int | None, Score, bool]]:
    """Yield the scores that tables show: of each number of shots, and else the main one."""
    if not answer.scores:
        return
    main = answer.main_score if isinstance(answer, Result) else answer.scores[-1]
    for score in answer.scores:
        shots = shots_of(answer, score)
        is_main = score is main
        if shots is not None or is_main:
            yield shots, score, is_main


def _scores(answers: Sequence[CellAnswer]) -> dict[Question, dict[str, Entry]]:
    """Return question -> backbone -> its score over the seeds."""
    seeds: dict[Question, dict[str, dict[str, Seed]]] = {}
    for cell, answer in answers:
        name = headline(answer)
        for shots, score, last in _shown(answer):
            if name not in score.metrics:
                continue
            question = Question(cell.dataset, answer.task, cell.setting, shots, last, name)
            by_key = seeds.setdefault(question, {}).setdefault(cell.backbone, {})
            # Seeds that change nothing have one answer, filed under one key.
            by_key[answer.provenance.key] = Seed(score.metrics[name], score, cell, answer)
    scores: dict[Question, dict[str, Entry]] = {}
    for question, by_backbone in seeds.items():
        scores[question] = {
            backbone: _entry(question, list(by_key.values()))
            for backbone, by_key in by_backbone.items()
        }
    return scores


def _entry(question: Question, seeds: Sequence[Seed]) -> Entry:
    values = [seed.metric.value for seed in seeds]
    ends = [(seed.metric.low, seed.metric.high) for seed in seeds]
    low: float | None = None
    high: float | None = None
    # An interval that one seed lacks has no mean.
    if not any(end is None for end in chain.from_iterable(ends)):
        low, high = np.mean(np.array(ends, float), axis=0).tolist()
    first = seeds[0]
    seen = _published(first.cell, first.answer, question.shots)
    return Entry(
        metric=Metric(value=float(np.mean(values)), low=low, high=high),
        seeds=len(seeds),
        spread=float(np.std(values, ddof=1)) if len(seeds) > 1 else None,
        published=seen,
        of_ours=None if seen is None else _of_ours(seen, [seed.score for seed in seeds]),
        positive=positive_text(first.answer),
    )


def _of_ours(figure: Published, scores: Sequence[Score]) -> float | None:
    """Return the mean over seeds of what was measured as a published figure was."""
    values = [figure.of_ours(score) for score in scores]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def tidy(answers: Sequence[CellAnswer]) -> pa.Table:
    """Return one row a number: of what, with its interval, and what it was computed from."""
    rows: list[dict[str, Any]] = []
    for cell, answer in answers:
        for score in answer.scores:
            about = {**_about(cell, answer), **_at(answer, score)}
            seen = _published(cell, answer, shots_of(answer, score))
            for number in (*_numbers(score), *_of_several(seen, score)):
                about_label = _positive_of(answer, number["label"]) | _beside(seen, number)
                rows.append(about | number | about_label)
    return pa.Table.from_pylist(rows, schema=TIDY)


def _of_several(seen: Published | None, score: Score) -> Iterator[dict[str, Any]]:
    """Yield what a score comes to as a figure was measured that is a mean of several metrics."""
    value = None if seen is None else seen.of_ours(score)
    if seen is not None and value is not None and len(seen.metrics) > 1:
        yield {"metric": seen.metric, "label": "", "value": value}


def _beside(seen: Published | None, number: dict[str, Any]) -> dict[str, Any]:
    """Return the published figure of a number, where it is of the same metric of all labels."""
    is_of_it = seen is not None and (number["metric"], number["label"]) == (seen.metric, "")
    return {"published": seen.value if seen is not None and is_of_it else None}


def _numbers(score: Score) -> Iterator[dict[str, Any]]:
    """Yield each metric of a score, of all classes together ("") and of each."""
    for label, metrics in {"": score.metrics, **score.labels}.items():
        for name, metric in metrics.items():
            yield {"metric": name, "label": label, **metric.model_dump()}


def _positive_of(answer: Answer, label: str) -> dict[str, Any]:
    """Return the class or label that a number calls positive, and how many test units carry it."""
    name = positive_name(answer) or label
    return {"positive": name or None, "positives": answer.counts["test"].positives.get(name)}


def _about(cell: Cell, answer: Answer) -> dict[str, Any]:
    named = {"network", "recipe", "weights", "split", "labels", "key"}
    origin = answer.provenance.model_dump(include=named)
    test = answer.counts["test"]
    return origin | {
        "dataset": cell.dataset,
        "task": answer.configured_task if isinstance(answer, Result) else answer.task,
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


def _at(answer: Answer, score: Score) -> dict[str, Any]:
    return {
        "patients": shots_of(answer, score),
        "at": ", ".join(f"{key} = {value:g}" for key, value in score.setting.items()),
    }


def _published(cell: Cell, answer: Answer, shots: int | None) -> Published | None:
    network = cell.config.backbone
    return published(
        cell.dataset,
        FROM_SCRATCH if cell.backbone == FROM_SCRATCH else network.name,
        answer,
        shots,
        image_size=network.image_size,
        treatment=network.treatment,
    )


# --- views -----------------------------------------------------------------------------------


def _steady(answers: Sequence[CellAnswer]) -> tuple[list[Steady], list[str]]:
    """Return each answer on a view against that on the images as they are, of the first seed.

    And why two could not be held against each other.
    """
    plain: dict[tuple[Question, str], tuple[Cell, Result]] = {}
    steady: list[Steady] = []
    unpaired: list[str] = []
    # Answers on the images as they are come first: those on views are held against them.
    for cell, answer in sorted(answers, key=lambda each: each[0].view != "none"):
        if not isinstance(answer, Result):
            continue
        metric = headline(answer)
        question = Question(cell.dataset, answer.task, cell.setting, None, True, metric)
        if cell.view == "none":
            plain.setdefault((question, cell.backbone), (cell, answer))
            continue
        first = plain.get((question, cell.backbone))
        if first is None or first[0].seed != cell.seed:
            continue
        try:
            compared = compared_with(first, (cell, answer), metric)
        except LabelError as error:
            unpaired.append(f"{cell.name}: {error}")
            continue
        if compared is not None:
            difference, agreement = compared
            for text in units_alone(difference.paired, answer.level):
                unpaired.append(f"{cell.name}: {text}")
            as_they_are = first[1].main_score.metrics[metric]
            seen = answer.main_score.metrics[metric]
            positive = positive_text(answer)
            numbers = (as_they_are, seen, difference.difference, agreement, answer.agreement)
            steady.append(Steady(question, cell.backbone, cell.view, *numbers, positive))
    return steady, unpaired


# --- pairs of data sets ----------------------------------------------------------------------


def _across(answers: Sequence[CellAnswer]) -> tuple[list[Across], list[str]]:
    """Return each answer of a pair of data sets beside that of the one that tests, of its seed.

    Of the first seed alone. And why two could not be held against each other.
    """
    home: dict[tuple[Question, str], tuple[Cell, Result]] = {}
    away: dict[tuple[Question, str, str], tuple[Cell, Result]] = {}
    for cell, answer in answers:
        if not isinstance(answer, Result) or cell.view != "none" or not answer.scores:
            continue
        dataset = cell.tested or cell.dataset
        metric = headline(answer)
        question = Question(dataset, answer.configured_task, cell.setting, None, True, metric)
        if cell.tested:
            away.setdefault((question, cell.backbone, cell.dataset), (cell, answer))
        else:
            home.setdefault((question, cell.backbone), (cell, answer))
    across: list[Across] = []
    unpaired: list[str] = []
    for (question, backbone, pair_name), (cell, answer) in away.items():
        at_home = home.get((question, backbone))
        difference: Metric | None = None
        if at_home is not None and at_home[0].seed == cell.seed:
            try:
                compared = compared_with(at_home, (cell, answer), question.metric)
            except LabelError as error:
                unpaired.append(f"{cell.name}: {error}")
            else:
                difference = None if compared is None else compared[0].difference
        across.append(
            Across(
                question=question,
                backbone=backbone,
                fitted=pair_name.partition("->")[0],
                away=answer.main_score.metrics[question.metric],
                home=None if at_home is None else at_home[1].main_score.metrics[question.metric],
                difference=difference,
                positive=positive_text(answer),
            )
        )
    return across, unpaired


# A question, two backbones, how they compare, and what is positive.
_Pair = tuple[Question, str, str, Paired, str]


# --- paired tests ----------------------------------------------------------------------------


def _tests(answers: Sequence[CellAnswer]) -> tuple[tuple[Test, ...], tuple[str, ...]]:
    """Return every pair of backbones on every question: of the first seed, by the main score."""
    by_question: dict[Question, dict[str, CellAnswer]] = {}
    for cell, answer in answers:
        question = Question(cell.dataset, answer.task, cell.setting, None, True, headline(answer))
        by_question.setdefault(question, {}).setdefault(cell.backbone, (cell, answer))
    pairs: list[_Pair] = []
    unpaired: list[str] = []
    for question, by_backbone in by_question.items():
        for first, second in combinations(by_backbone, 2):
            try:
                paired = pair(question.metric, *by_backbone[first], *by_backbone[second])
            except LabelError as error:
                unpaired.append(f"{question.dataset}, {question.task}, {question.setting}: {error}")
                continue
            if paired is not None:
                positive = positive_text(by_backbone[first][1])
                pairs.append((question, first, second, paired, positive))
    return _adjusted(pairs), tuple(unpaired)


def _adjusted(pairs: Sequence[_Pair]) -> tuple[Test, ...]:
    """Return the tests with Holm's p over all that have a p at all."""
    adjusted = iter(holm([paired.p for *_, paired, _ in pairs if paired.p is not None]))
    tests: list[Test] = []
    for question, first, second, paired, positive in pairs:
        p_holm = None if paired.p is None else next(adjusted)
        tests.append(Test(question, first, second, paired, p_holm, positive))
    return tuple(tests)
