"""A network tuned on the classes or numbers of a task, fold by fold."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction
from pipeline.config.feature_sets import made_of
from pipeline.config.methods import Method
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.folds import OutOfFold, join_folds
from pipeline.evaluation.heads.objective import Objective
from pipeline.evaluation.heads.probe import HEAD as PROBE
from pipeline.evaluation.scoring import (
    at_operating_points,
    doubtful_note,
    doubtful_points,
    refuse_no_scores,
    scores_of,
)
from pipeline.evaluation.splits import Parts
from pipeline.results import Score, Tuned
from pipeline.shared.texts import plain_number
from pipeline.tuning.fold import Fold, TunedFold, fold_name
from pipeline.tuning.goals import LabelGoal
from pipeline.tuning.job import TuningJob, open_job
from pipeline.tuning.launch import trained_again, tune_fold
from pipeline.tuning.options import TuningOptions
from pipeline.tuning.training import TrainVal
from stores.errors import LabelError

# Of the head's first weights, as of DINOv2's linear heads.
_WEIGHT_STD = 0.01


@dataclass(frozen=True)
class _FoldAnswer:
    """What the network of a fold predicts. tested: the test units that could be read.

    tuned: None where nothing could be learned.
    """

    predictions: list[Prediction]
    notes: list[str]
    tested: NDArray[np.int64]
    tuned: Tuned | None


def tune_on_labels(
    cases: Cases, method: Method, name: str, options: TuningOptions
) -> tuple[list[Score], OutOfFold, tuple[Tuned, ...]]:
    """Tune in each fold, and score what the networks predict of their test units together.

    name: of the answer's file. Raises LabelError where units are not pooled by their mean, and
    where nothing could be learnt in any fold.
    """
    if cases.task.pool != "mean" and len(cases.units.rows) > len(cases.units.ids):
        raise LabelError(
            f"A network is tuned on the mean of a unit's slices. Got pool: {cases.task.pool} in "
            f"the task {cases.name!r} instead; take mean, or level: image."
        )
    label = f"{cases.name}: {method}"
    folds = cases.folds
    answers = []
    with open_job(cases, method, name, options, label) as job:
        for i, parts in enumerate(folds):
            answers.append(_tune_fold(job, cases, parts, fold_name(i, len(folds))))
    tested = join_folds(
        [(answer.predictions, answer.notes) for answer in answers],
        [answer.tested for answer in answers],
    )
    scores = scores_of(cases, tested) if tested.predictions else []
    refuse_no_scores(method, scores, tested.notes)
    tuned = tuple(answer.tuned for answer in answers if answer.tuned is not None)
    return scores, tested, tuned


def _tune_fold(job: TuningJob, cases: Cases, parts: Parts, name: str) -> _FoldAnswer:
    """Tune on train, and let the network predict what test is. name: of the fold's folder."""
    units = cases.units
    objective = Objective.of(units, parts["train"])
    test = parts["test"]
    if not len(parts["val"]):
        return _FoldAnswer([], ["tuning needs val, to say when to end"], test, None)
    if not objective.enough:
        return _FoldAnswer([], objective.notes, test, None)
    notes = list(objective.notes)
    head = _new_head(job, objective)
    if job.settings.start == "probe":
        c = _start_as_probe(head, cases, parts, job.settings, objective)
        notes.append(f"the head began as the probe of C = {plain_number(c)}")
    architecture = job.recipe.architecture
    # Made anew for each training, in each process: it remembers what it has observed.
    goal = functools.partial(LabelGoal, units, parts["val"], objective, job.settings, architecture)
    data = TrainVal(units, parts["train"], parts["val"])
    begun = Fold(job, head, job.settings.features, data, goal, name)
    chosen = tune_fold(begun)
    # The network has learnt nothing of val, so that val may say where it calls.
    on_val, val_there = _predict(chosen, parts["val"])
    fold = trained_again(begun, chosen)
    proba, there = _predict(fold, test)
    # Behind the prediction: slices of test that cannot be used are known only now.
    notes += fold.notes
    if not there.all():
        notes.append(f"{(~there).sum()} test units are not scored: none of their slices")
    if all(value is None for value in fold.tuned.history):
        notes.append("the last epoch is kept: all val units have the same labels")
    val = units.at(parts["val"][val_there])
    rule = cases.task.operating_point
    prediction = Prediction({"epoch": fold.tuned.epoch}, proba, on_val=on_val)
    for label, point in doubtful_points(prediction, val, rule).items():
        notes.append(doubtful_note(label, [(0, point)], 1))
    at_points = at_operating_points(prediction, val, rule)
    return _FoldAnswer([at_points], notes, test[there], fold.tuned)


def _new_head(job: TuningJob, objective: Objective) -> torch.nn.Linear:
    """Return a linear head on the features that the settings name, with weights of the seed."""
    tokens = made_of(job.settings.features).tokens
    torch.manual_seed(job.settings.seed)
    head = torch.nn.Linear(job.recipe.architecture.dim * tokens, objective.outputs)
    torch.nn.init.normal_(head.weight, std=_WEIGHT_STD)
    torch.nn.init.zeros_(head.bias)
    return head


def _start_as_probe(
    head: torch.nn.Linear, cases: Cases, parts: Parts, settings: Tuning, objective: Objective
) -> float:
    """Let the head be the probe of the cached features; return the C that was chosen for it."""
    # scikit-learn is imported for this alone.
    from pipeline.evaluation.heads.probe_fit import linear_head

    probe = cases.config.settings_of(PROBE)
    x = cases.features(settings, parts)
    weight, bias, c = linear_head(x, cases.units, parts, probe, objective.left_out)
    # The head learns a number in units of its spread about its middle; the probe knew it as it is.
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / objective.spread))
        head.bias.copy_(torch.from_numpy((bias - objective.middle) / objective.spread))
    return c


def _predict(
    fold: TunedFold, units: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probabilities of the units that have a slice to be read, and which have one."""
    goal = fold.training.goal
    assert isinstance(goal, LabelGoal)
    for batch in fold.training.test_batches(units):
        goal.observe(fold.training.network, batch)
    return goal.predictions()
