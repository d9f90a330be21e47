"""FLOW 2: labels + split + cached features -> head -> scores. Opens no image, runs no backbone.

A result is a file named by all it depends on: the method and its settings, the task and the labels
it reads, the split, the store's fingerprint, and the version of what the code means by it. So an
answer is either found, without opening an array or importing a head, or it is computed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.root import Config
from pipeline.config.tasks import Method, Task
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases, cases_of
from pipeline.evaluation.result_files import (
    CONTRACT,
    _key,
    answer_in,
    publish,
    result_path,
    write_predictions,
)
from pipeline.evaluation.result_files import tidy as tidy
from pipeline.evaluation.scoring import run
from pipeline.evaluation.splits import PARTS, Tested
from pipeline.recipe import recipe_of
from pipeline.results import PartCount, Result, Score, Tuned
from stores._disk import write_checked

METHODS: tuple[Method, ...] = ("knn", "probe", "fewshot")  # unless others are asked for by name
LIBRARIES = ("radprobe", "numpy", "scikit-learn", "faiss-cpu", "torch")
LIBRARIES_OF_TUNING = ("transformers", "peft")

# what is being answered, how many answers are done, of how many
Progress = Callable[[str, int, int], None]
# computes an answer: scores, the predictions behind them, and what was tuned for it
Run = Callable[[], tuple[list[Score], Tested, tuple[Tuned, ...]]]


def evaluate(
    config: Config,
    methods: Sequence[Method] = METHODS,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Answer every task of the config by every method, from `results/` where nothing changed.

    device: of torch's, such as "cuda", where probes and trained heads are fitted; unset, the CPU.
    Raises ConfigError where there is nothing to ask, StoreNotFoundError, or LabelError.
    """
    tasks = config.tasks.values()
    shortcuts = sum(len(task.shortcuts) for task in tasks) if "probe" in methods else 0
    number = len(tasks) * len(methods) + shortcuts
    results: list[Result] = []
    for cases in cases_of(config):
        for each, method in _asked(cases, methods):
            if progress:
                progress(f"{each.name}: {method}", len(results), number)
            results.append(answer(each, method, functools.partial(_run, each, method, device)))
    publish(config.store, results)
    return results


def on_file(config: Config, methods: Sequence[Method] = METHODS) -> list[Result]:
    """Return those answers that `evaluate` or `tune` would find; computes none, writes nothing.

    Raises as `evaluate` does.
    """
    every = [asked for cases in cases_of(config) for asked in _asked(cases, methods)]
    found = [answer_in(result_path(*asked), Result) for asked in every if asked[0].is_split]
    return [result for result in found if result is not None]


def _run(
    cases: Cases, method: Method, device: str | None
) -> tuple[list[Score], Tested, tuple[Tuned, ...]]:
    return (*run(cases, method, device), ())


def _asked(cases: Cases, methods: Sequence[Method]) -> Iterator[tuple[Cases, Method]]:
    """Yield what is asked of a task: every method, then a probe of each shortcut."""
    yield from ((cases, method) for method in methods)
    if "probe" in methods:
        yield from ((_shortcut(cases, column), "probe") for column in cases.task.shortcuts)


def _shortcut(cases: Cases, column: str) -> Cases:
    """Return the question whether the features tell a column, on the split of a task."""
    kept = cases.task.model_dump(include={"level", "modality", "pool", "uncertain", "missing"})
    task = Task(labels=(column,), **kept)
    return replace(cases, name=f"{cases.name}/{column}", task=task, beside=cases)


def answer(cases: Cases, method: Method, compute: Run) -> Result:
    """Return the result that is on file, or compute it and file it."""
    found = answer_in(result_path(cases, method), Result)
    if found is None:
        cases.turns  # noqa: B018  may add new patients to the split, and so change the key
        found = answer_in(result_path(cases, method), Result)
    if found is not None:
        return found
    started = time.perf_counter()
    scores, tested, tuned = compute()
    result = _result(cases, method, scores, tested, time.perf_counter() - started)
    result = result.model_copy(update={"tuned": tuned})
    path = result_path(cases, method)
    path.parent.mkdir(exist_ok=True)
    if tested.predictions:
        write_predictions(path.with_suffix(".parquet"), cases.units, tested)
    write_checked(path, result.model_dump_json(indent=1).encode())
    return result


def _result(
    cases: Cases, method: Method, scores: list[Score], tested: Tested, seconds: float
) -> Result:

    units, settings = cases.units, getattr(cases.config, method)
    sides = {**cases.turns[0], "test": tested.rows}
    libraries = LIBRARIES + (LIBRARIES_OF_TUNING if isinstance(settings, Tuning) else ())
    return Result(
        task=cases.name,
        question=cases.task,
        method=method,
        features=settings.features,
        kind=units.kind,
        classes=units.classes,
        level=cases.task.level,
        settings=settings.model_dump(mode="json"),
        counts={part: _count(units, sides[part]) for part in PARTS},
        tally=units.tally,
        scores=tuple(scores),
        notes=(*_elsewhere(cases), *cases.notes, *tested.notes),
        provenance=cases.provenance(
            _key(cases, method), CONTRACT[method], cases.labels_digest, libraries
        ),
        seconds=seconds,
        agreement=cases.agreement,
    )


def _elsewhere(cases: Cases) -> list[str]:
    """Return what must be said of an answer whose heads were fitted on another store."""
    if cases.fitted is None:
        return []
    recipe = recipe_of(cases.fitted.store).digest[:12]
    agreed = (
        ""
        if cases.agreement is None
        else f", with which those tested agree by ICC {cases.agreement:.3f}"
    )
    return [f"heads were fitted on the features of another store (recipe {recipe}){agreed}"]


def _count(units: Units, rows: NDArray[np.int64]) -> PartCount:
    truth = units.at(rows)
    patients = len(np.unique(truth.groups))
    if truth.kind == "regression":
        return PartCount(units=len(rows), patients=patients, positives={})
    unknown = dict(zip(units.classes, (~truth.known).sum(axis=0).tolist(), strict=True))
    return PartCount(
        units=len(rows),
        patients=patients,
        positives=dict(zip(units.classes, truth.indicator.sum(axis=0).tolist(), strict=True)),
        unknown={name: n for name, n in unknown.items() if n},
    )
