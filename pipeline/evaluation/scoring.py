"""A head run over the cases of a task, and what its predictions score.

Heads and metrics are imported when they are run: an answer that is on file needs neither.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction
from pipeline.config.heads import Head
from pipeline.config.tasks import Method
from pipeline.config.tuning import Tuning
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.folds import OutOfFold, join_folds
from pipeline.evaluation.heads.fixed_draw import fixed_draw
from pipeline.results import Score, Subgroup
from stores.errors import ConfigError, LabelError

# More are no groups: each has its own bootstrap, and a number is not a group.
MOST_SUBGROUPS = 20


def heads_of(cases: Cases, method: Method) -> list[Head]:
    """Return the settings that an answer depends on, the method's own first."""
    config = cases.config
    own: Head = getattr(config, method)
    by_probe = isinstance(own, Tuning) and own.start == "probe"
    if by_probe or (method == "fewshot" and config.fewshot.draw == "paper"):
        return [own, config.probe]
    return [own]


def run(cases: Cases, method: Method, device: str | None = None) -> tuple[list[Score], OutOfFold]:
    """Run one head, whose module is imported here and not before.

    device: of torch's, where the head is fitted; unset, the CPU, without torch where it can be.
    """
    if device is not None:
        _open_array_api()
    match method:
        case "fewshot":
            return _few(cases, device)
        case "efficiency":
            return _efficiency(cases, device)
        case "knn":
            speed = {}
        case "probe" | "linear" | "attention":
            speed = {"device": device}
        case "finetune" | "lora" | "bitfit" | "norm":
            raise ConfigError(f"{method} trains the network: ask for it by `radprobe tune`.")
        case _:
            assert_never(method)
    units, turns, settings = cases.units, cases.folds, getattr(cases.config, method)
    head = importlib.import_module(f"pipeline.evaluation.heads.{method}")
    seen = cases.slices if method == "attention" else cases.features
    answers, notes = [], []
    for turn in turns:
        x = seen(settings, turn)
        answers.append(head.predict(x, units, turn, settings, **speed))
        notes = _held(x)
        del x  # before the next are read
    tested = join_folds(answers, [turn["test"] for turn in turns])
    tested.notes.extend(notes)
    return scores_of(cases, tested), tested


def _held(x: NDArray[Any]) -> list[str]:
    """Return what there is to say of where features (n, d) are held."""
    if not isinstance(x, np.memmap):
        return []
    return [f"features of {x.nbytes / 2**30:.1f} GiB were held in a scratch file, not in memory"]


def _open_array_api() -> None:
    """Let scikit-learn take tensors, for which SciPy must be told before it is imported."""
    if "scipy" in sys.modules and os.environ.get("SCIPY_ARRAY_API") != "1":
        raise ConfigError(
            "A device must be asked for before SciPy is imported, since scikit-learn needs SciPy's "
            "array API. Set SCIPY_ARRAY_API=1 in the environment, and start again."
        )
    os.environ["SCIPY_ARRAY_API"] = "1"


def _few(cases: Cases, device: str | None) -> tuple[list[Score], OutOfFold]:
    """Score few-shot episodes, or the one draw of the paper; of several folds, the first alone."""
    settings, units, parts = cases.config.fewshot, cases.units, cases.folds[0]
    x = cases.features(settings, parts)
    predictions: list[Prediction] = []
    notes = ["only the first fold is asked"] if len(cases.folds) > 1 else []
    notes += _held(x)
    if settings.draw == "paper":
        from pipeline.evaluation.heads import probe

        for shots in settings.shots:
            fit = {**parts, "train": fixed_draw(units, parts["train"], shots)}
            found, said = probe.predict(
                x, units, fit, cases.config.probe, refit_on=("train",), device=device
            )
            predictions += [Prediction({"shots": shots} | p.setting, p.proba) for p in found]
            notes += [f"{shots} shots: {note}" for note in said]
        tested = OutOfFold(predictions, parts["test"], None, notes)
        return scores_of(cases, tested), tested
    from pipeline.evaluation.heads import fewshot

    scores, said = fewshot.score(x, units, parts, settings)
    return scores, OutOfFold([], parts["test"], None, notes + said)


def _efficiency(cases: Cases, device: str | None) -> tuple[list[Score], OutOfFold]:
    """Score the probe fitted on ever more patients; of several folds, the first alone.

    A metric is its mean over the draws of as many patients, its interval of other test patients.
    """
    from pipeline.evaluation.heads import efficiency

    settings, units, parts = cases.config.efficiency, cases.units, cases.folds[0]
    notes = ["only the first fold is asked"] if len(cases.folds) > 1 else []
    x = cases.features(settings, parts)
    notes += _held(x)
    curve = efficiency.points(x, units, parts, settings, device)
    scores: list[Score] = []
    for point in curve:
        number, q = len(point.predictions), len(parts["test"])
        notes += point.notes
        if number:
            joined = Prediction(
                {"shots": point.shots, "patients": point.patients, "draws": number},
                np.concatenate(point.predictions),
            )
            fold = np.repeat(np.arange(number), q) if number > 1 else None
            scores += scores_of(
                cases, OutOfFold([joined], np.tile(parts["test"], number), fold, [])
            )
    return scores, OutOfFold([], parts["test"], None, notes)


def scores_of(cases: Cases, tested: OutOfFold) -> list[Score]:
    """Return what predictions score, by label and subgroup too; adds to the notes of `tested`."""
    from pipeline.evaluation.metrics import metrics

    truth = cases.units.at(tested.rows)
    tested.notes.extend(
        f"{name!r} has no AUROC: all or none of the test units carry it"
        for name in metrics.one_sided(truth)
    )
    scores = []
    for each in tested.predictions:
        number = cases.task.permutations
        joint, labels = metrics.score(truth, each.proba, tested.fold, number)
        curve = {} if truth.kind == "regression" else metrics.reliability(truth, each.proba)
        scores.append(
            Score(
                setting=each.setting,
                metrics=joint,
                labels=labels,
                subgroups=_subgroups(cases, tested, each),
                reliability=curve,
            )
        )
    return scores


def _subgroups(cases: Cases, tested: OutOfFold, predicted: Prediction) -> dict[str, Subgroup]:
    """Return the metrics of the units of each value of each subgroup column.

    Raises LabelError for a column of too many values.
    """
    from pipeline.evaluation.metrics import metrics

    found: dict[str, Subgroup] = {}
    for column in cases.task.subgroups:
        texts = cases.column(column)[tested.rows]
        values = sorted({*texts.tolist()} - {""})
        if len(values) > MOST_SUBGROUPS:
            raise LabelError(
                f"A subgroup column must have at most {MOST_SUBGROUPS} values. {column!r} has "
                f"{len(values)} among the test units; give its values by group."
            )
        for value in values:
            on = texts == value
            truth = cases.units.at(tested.rows[on])
            fold = None if tested.fold is None else tested.fold[on]
            joint, _ = metrics.score(truth, predicted.proba[on], fold)
            patients = len(np.unique(truth.groups))
            carried = [] if truth.kind == "regression" else truth.indicator.sum(axis=0).tolist()
            found[f"{column}={value}"] = Subgroup(
                units=int(on.sum()),
                patients=patients,
                positives=dict(zip(truth.classes, carried, strict=False)),
                metrics=joint,
            )
    return found
