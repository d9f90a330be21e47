"""FLOW 2: labels + split + cached features -> head -> scores. Opens no image, runs no backbone.

A result is a file named by all it depends on: the method and its settings, the task and the labels
it reads, the split, the store's fingerprint, and the version of what the code means by it. So an
answer is either found, without opening an array or importing what fits a head, or it is computed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.annotations.units import Truth
from pipeline.config.heads import DEFAULT_HEADS, declared
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tasks import Task
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.failures import Failures
from pipeline.evaluation.folds import OutOfFold
from pipeline.evaluation.pairs import PairedCases
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import (
    Computed,
    answer_on_file,
    find_or_compute,
    predictions_table,
    publish,
    result_key,
    result_path,
)
from pipeline.evaluation.result_files import tidy as tidy
from pipeline.evaluation.scoring import run
from pipeline.evaluation.slice_weights import SLICES, weights_table
from pipeline.evaluation.splits import PARTS
from pipeline.recipe import recipe_of
from pipeline.results import PartCount, Positive, Result, Score, Tuned
from pipeline.shared.steps import listening_to_steps, titled

# what is being answered, how many answers are done, of how many
Progress = Callable[[str, int, int], None]
# computes an answer: scores, the predictions behind them, and what was tuned for it
Compute = Callable[[], tuple[list[Score], OutOfFold, tuple[Tuned, ...]]]


def evaluate(
    config: Config,
    methods: Sequence[Method] = DEFAULT_HEADS,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Answer every task of the config by every method, from `results/` where nothing changed.

    device: of torch's, such as "cuda", where probes and trained heads are fitted; unset, the CPU.
    A task that cannot be answered leaves the others answered: then UnansweredError has those.
    Raises ConfigError where there is nothing to ask, StoreNotFoundError, or LabelError.
    """
    number = _count_answers(config, methods)
    results: list[Result] = []
    failures = Failures()
    for task in cases_of(config, failures):
        for cases, method in _questions(task, methods):
            if progress:
                progress(f"{cases.name}: {method}", len(results), number)
            steps = titled(progress, f"{cases.name}: {method}")
            compute = functools.partial(_run, cases, method, device)
            with failures.of(cases.name), listening_to_steps(steps):
                results.append(answer(cases, method, compute))
    if results:
        publish(config.store, results)
    failures.raise_with(results)
    return results


def on_file(config: Config, methods: Sequence[Method] = DEFAULT_HEADS) -> list[Result]:
    """Return those answers that `evaluate` or `tune` would find; computes none, writes nothing.

    Raises as `evaluate` does.
    """
    results = []
    for task in cases_of(config, Failures()):
        for cases, method in _questions(task, methods):
            result = answer_on_file(cases, method)
            if result is not None:
                results.append(result)
    return results


def fitting(config: Config) -> list[Result]:
    """Return the answers on file to the config's tasks by all methods that it has settings of.

    Those of other labels, another split, other settings or an earlier state of the store are not
    among them. Raises as `evaluate` does.
    """
    return on_file(config, config.methods)


def _count_answers(config: Config, methods: Sequence[Method]) -> int:
    """Return how many answers `evaluate` will give, as `_questions` yields them."""
    number = 0
    for task in config.tasks.values():
        number += len(_asked_of(task, methods))
        if "probe" in methods:
            number += len(task.shortcuts)
    return number


def _run(
    cases: Cases, method: Method, device: str | None
) -> tuple[list[Score], OutOfFold, tuple[Tuned, ...]]:
    return (*run(cases, method, device), ())


def _questions(task: Cases, methods: Sequence[Method]) -> Iterator[tuple[Cases, Method]]:
    """Yield what is asked of a task: every method, then a probe of each shortcut."""
    for method in _asked_of(task.task, methods):
        yield task, method
    if "probe" in methods:
        for column in task.task.shortcuts:
            yield _shortcut(task, column), "probe"


def _asked_of(task: Task, methods: Sequence[Method]) -> Sequence[Method]:
    """Return those of several methods that can be asked of a task of survival, or of others.

    Where none can, all: their answers say why not.
    """
    is_survival = task.time is not None
    able = [name for name in methods if ("survival" in declared(name).kinds) == is_survival]
    return able or methods


def _shortcut(cases: Cases, column: str) -> Cases:
    """Return the question whether the features tell a column, on the split of a task."""
    shared = {"level", "region", "modality", "pool", "uncertain", "missing", "empty"}
    task = Task(labels=(column,), **cases.task.model_dump(include=shared))
    return replace(cases, name=f"{cases.name}/{column}", task=task, shortcut_of=cases)


# --- one answer ----------------------------------------------------------------------------


def answer(cases: Cases, method: Method, compute: Compute) -> Result:
    """Return the result that is on file, or compute it and file it."""
    path = functools.partial(result_path, cases, method)
    return find_or_compute(cases, path, Result, lambda: _computed(cases, method, compute))


def _computed(cases: Cases, method: Method, compute: Compute) -> Computed[Result]:
    """Return a result, with the predictions behind it where there are any."""
    started = time.perf_counter()
    scores, tested, tuned = compute()
    seconds = time.perf_counter() - started
    tables = {".parquet": predictions_table(cases.units, tested)} if tested.predictions else {}
    weights = weights_table(cases, tested)
    if weights is not None:
        tables[SLICES] = weights
    return Computed(_result(cases, method, scores, tested, tuned, seconds), tables)


def _result(
    cases: Cases,
    method: Method,
    scores: list[Score],
    tested: OutOfFold,
    tuned: tuple[Tuned, ...],
    seconds: float,
) -> Result:
    """Return an answer with all that it came from."""
    units = cases.units
    declaration = declared(method)
    settings = cases.config.settings_of(declaration)
    # Of several folds each unit tests once; train and val are those of the first.
    sides = {**cases.folds[0], "test": tested.rows}
    return Result(
        task=cases.name,
        question=cases.task,
        method=method,
        features=cases.features_of(settings),
        kind=units.kind,
        classes=units.classes,
        level=cases.task.level,
        settings=settings.model_dump(mode="json"),
        counts={part: count_of(units.at(sides[part])) for part in PARTS},
        tally=units.tally,
        scores=tuple(scores),
        notes=(*_fitted_elsewhere(cases), *units.notes, *cases.notes, *tested.notes),
        provenance=cases.provenance(
            result_key(cases, method),
            declaration.contract,
            cases.labels_digest,
            declaration.libraries,
        ),
        seconds=seconds,
        tuned=tuned,
        agreement=cases.agreement,
        positive=_positive(units.at(tested.rows)),
        chosen=tested.chosen,
        fitted_on=cases.fitted_on if isinstance(cases, PairedCases) else None,
    )


def _positive(tested: Truth) -> Positive | None:
    """Return the positive of two classes, and how many of the test units carry it."""
    if tested.kind != "binary":
        return None
    carried = tested.y == 1
    patients = np.unique(tested.groups[carried])
    return Positive(name=tested.classes[1], units=int(carried.sum()), patients=len(patients))


def _fitted_elsewhere(cases: Cases) -> list[str]:
    """Return a note where heads were fitted on another store."""
    if isinstance(cases, PairedCases):
        there, here = cases.names
        return [f"heads were fitted on train and val of {there}, and tested on test of {here}"]
    if cases.fit_store is None:
        return []
    recipe = recipe_of(cases.fit_store.store).digest[:12]
    note = f"heads were fitted on the features of another store (recipe {recipe})"
    if cases.agreement is not None:
        note += f", with which those tested agree by ICC {cases.agreement:.3f}"
    return [note]


def count_of(truth: Truth) -> PartCount:
    """Return how many units and patients there are, and how many units carry each class."""
    patients = len(np.unique(truth.groups))
    if truth.kind == "regression":
        return PartCount(units=len(truth.y), patients=patients, positives={})
    carried = truth.indicator.sum(axis=0).tolist()
    unknown = (~truth.known).sum(axis=0).tolist()
    return PartCount(
        units=len(truth.y),
        patients=patients,
        positives=dict(zip(truth.classes, carried, strict=True)),
        unknown={name: n for name, n in zip(truth.classes, unknown, strict=True) if n},
    )
