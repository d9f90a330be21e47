"""A head run over the cases of a task, and what its predictions score.

Heads and metrics are imported when they are run: an answer that is on file needs neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Truth
from pipeline.config.base import HeadSettings
from pipeline.config.heads import HEADS, declared
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tasks import CLASS_KINDS, Kind, OperatingRule
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.folds import OutOfFold, join_folds, place_of_chosen
from pipeline.evaluation.heads.contract import Head, Predicted, fit_and_predict
from pipeline.evaluation.splits import Parts
from pipeline.results import Metric, Score, Subgroup
from pipeline.shared.arrays import Floats, Rows
from pipeline.shared.texts import count
from stores.errors import ConfigError, LabelError

IN_WORDS: dict[Kind, str] = {
    "binary": "two classes",
    "multiclass": "several classes",
    "multilabel": "several labels",
    "regression": "a number",
    "survival": "survival",
}
# The AUROC of what says nothing.
CHANCE = 0.5
# More are no groups: each has its own bootstrap, and a number is not a group.
MOST_SUBGROUPS = 20
# Of notes in an error: folds and labels say the same again and again.
_MOST_REASONS = 4
# Of one patient a score says what that patient has, and nothing of others like him.
_FEWEST_OF_SUBGROUP = 2


# --- a head over the folds of a split ------------------------------------------------------


def run(cases: Cases, method: Method, device: str | None = None) -> tuple[list[Score], OutOfFold]:
    """Fit a head on each fold of the split, and score what it predicts of the units that test.

    device: of torch's, where the head is fitted; unset, the CPU, without torch where it can be.
    Raises ConfigError where the method is no head, LabelError where nothing can be said of any unit
    that tests.
    """
    # Before the head is imported, and SciPy with it.
    if device is not None:
        _open_array_api()
    head = _head(method)
    if cases.units.kind not in head.kinds:
        return [], OutOfFold([], cases.folds[0]["test"], None, [_not_asked(head, cases.units.kind)])
    settings = cases.config.settings_of(head)
    others = settings_built_on(cases.config, settings)
    folds = cases.folds[:1] if head.folds == "first" else cases.folds
    predicted = []
    memory_notes: list[str] = []
    for parts in folds:
        x = _features(cases, head, parts)
        predicted.append(fit_and_predict(head, x, cases.units, parts, settings, device, others))
        memory_notes = _memory_notes(x)
        # Features are the most that is in memory: these go before the next fold's are read.
        del x
    if len(folds) == 1:
        scores, tested = _score_one_fold(cases, predicted[0], folds[0], memory_notes)
    else:
        answers = []
        doubtful = []
        for each, parts in zip(predicted, folds, strict=True):
            of_fold = list(each.predictions)
            predictions = [_at_points(cases, prediction, parts) for prediction in of_fold]
            answers.append((predictions, list(each.notes)))
            if of_fold:
                val = cases.units.at(parts["val"])
                chosen = of_fold[place_of_chosen(of_fold)]
                doubtful.append(doubtful_points(chosen, val, cases.task.operating_point))
        tested = join_folds(answers, [parts["test"] for parts in folds])
        tested.notes.extend(memory_notes)
        tested.notes.extend(_doubtful_notes(doubtful))
        scores = scores_of(cases, tested)
    if any(each.applies for each in predicted):
        refuse_no_scores(method, scores, tested.notes)
    if len(folds) < len(cases.folds):
        tested.notes.insert(0, "only the first fold is asked")
    return scores, tested


def _not_asked(head: Head[Any, Any], kind: Kind) -> str:
    """Return why a head is not asked about a task of a kind."""
    others = [name for name in HEADS if kind in declared(name).kinds]
    return f"{head.title} is not asked about {IN_WORDS[kind]}: {', '.join(others)} can be"


def refuse_no_scores(method: Method, scores: Sequence[Score], notes: Sequence[str]) -> None:
    """Raise LabelError, with the notes as its reason, where a method has no score."""
    if scores:
        return
    reasons = "; ".join(notes[:_MOST_REASONS])
    more = len(notes) - _MOST_REASONS
    others = f"; and {count(more, 'other reason')}" if more > 0 else ""
    raise LabelError(
        f"{method} can say nothing of any test unit: {reasons or 'it gave no reason'}{others}. "
        "Each side of a label must have patients that train, and others that test: label more."
    )


def settings_built_on(config: Config, settings: HeadSettings) -> dict[str, HeadSettings]:
    """Return the settings of the heads that one fits itself: its answer is by theirs too."""
    others: dict[str, HeadSettings] = {}
    for name in settings.built_on:
        others[name] = config.settings_of(declared(name))
    return others


def _head(method: Method) -> Head[Any, Any]:
    """Return a head by name. Raises ConfigError for a method that is none."""
    if method not in HEADS:
        raise ConfigError(f"{method} trains the network: ask for it by `radprobe tune`.")
    head = declared(method)
    assert isinstance(head, Head)
    return head


def _features(cases: Cases, head: Head[Any, Any], parts: Parts) -> Floats:
    """Return the features that a head sees: (n, d) of units, or (m, d) of slices."""
    settings = cases.config.settings_of(head)
    if head.sees == "slices":
        return cases.slices(settings, parts)
    return cases.features(settings, parts)


def _score_one_fold(
    cases: Cases,
    predicted: Predicted,
    parts: Parts,
    memory_notes: list[str],
) -> tuple[list[Score], OutOfFold]:
    """Score what a head says of the one fold it is asked, each prediction as it is made."""
    rows = parts["test"]
    scores = list(predicted.scores or ())
    filed = []
    drawn = False
    point_notes: list[list[str]] = []
    val = cases.units.at(parts["val"])
    for prediction in predicted.predictions:
        at_points = _at_points(cases, prediction, parts)
        score = score_of(cases, at_points, rows, None)
        scores.append(score)
        doubtful = doubtful_points(prediction, val, cases.task.operating_point)
        point_notes.append(
            [
                *_point_notes(cases, at_points),
                *_doubtful_notes([doubtful]),
                *interval_notes(score.metrics),
            ]
        )
        if prediction.draws is None:
            filed.append(at_points)
        else:  # a unit has several predictions: the table of predictions has one row for it
            drawn = True
    notes = [*predicted.notes, *memory_notes]
    if predicted.scores is None and not drawn:
        notes += _one_sided_notes(cases, rows)
    chosen = place_of_chosen(filed)
    if point_notes:  # of the setting that stands for the answer
        notes += point_notes[chosen]
    return scores, OutOfFold(filed, rows, None, notes, chosen)


def _memory_notes(x: NDArray[Any]) -> list[str]:
    """Return a note where features (n, d) are in a scratch file."""
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


# --- operating points ----------------------------------------------------------------------


def _at_points(cases: Cases, prediction: Prediction, parts: Parts) -> Prediction:
    """Return a prediction of test with the thresholds that its rule chooses on val."""
    truth = cases.units.at(parts["val"])
    return at_operating_points(prediction, truth, cases.task.operating_point)


def at_operating_points(prediction: Prediction, val: Truth, rule: OperatingRule) -> Prediction:
    """Return a prediction with the thresholds that a rule chooses by what it says of val.

    val: what is true of the units (v,) that `on_val` is of. Every draw has thresholds of its own.
    """
    from pipeline.evaluation.metrics.operating import columns_with_points, thresholds_of

    if prediction.on_val is None or not columns_with_points(val):
        return replace(prediction, on_val=None)
    draws = prediction.draws or 1
    q = len(prediction.proba) // draws
    thresholds = []
    for of_draw in np.split(prediction.on_val, draws):
        of_model = thresholds_of(val, of_draw, rule)
        thresholds.append(np.tile(of_model, (q, 1)))
    return replace(prediction, on_val=None, thresholds=np.concatenate(thresholds))


def _point_notes(cases: Cases, prediction: Prediction) -> list[str]:
    """Return a note for each class or label that is to have an operating point, and has none."""
    from pipeline.evaluation.metrics.operating import columns_with_points

    units = cases.units
    if cases.task.operating_point == "likeliest":
        return []
    notes = []
    for j in columns_with_points(units):
        has_model = ~np.isnan(prediction.proba[:, j])
        thresholds = prediction.thresholds
        lacks = has_model if thresholds is None else has_model & np.isnan(thresholds[:, j])
        if lacks.any():
            notes.append(
                f"{units.classes[j]!r} is called above 0.5: val says nothing of where it should be"
            )
    return notes


class DoubtfulPoint(NamedTuple):
    """The AUROC of val for a class or label, with its interval, and of how many patients it is."""

    auroc: Metric
    patients: int


DoubtfulPoints = dict[str, DoubtfulPoint]


def doubtful_points(prediction: Prediction, val: Truth, rule: OperatingRule) -> DoubtfulPoints:
    """Return the classes or labels whose ranks on val cannot be told from chance, nor their points.

    Those whose AUROC on val has an interval that reaches 0.5 or below. Where models were fitted on
    several draws, nobody's point stands for the answer.
    """
    from pipeline.evaluation.metrics.metrics import auroc_by_delong
    from pipeline.evaluation.metrics.operating import columns_with_points
    from pipeline.evaluation.metrics.values import columns_of

    if prediction.on_val is None or prediction.draws is not None or rule == "likeliest":
        return {}
    names = {val.classes[j] for j in columns_with_points(val)}
    doubtful = {}
    for column in columns_of(val, prediction.on_val):
        metric = auroc_by_delong(column, val.patient) if column.name in names else None
        if metric is not None and metric.low is not None and metric.low <= CHANCE:
            patients = len(np.unique(val.patient[column.known]))
            doubtful[column.name] = DoubtfulPoint(metric, patients)
    return doubtful


def _doubtful_notes(folds: Sequence[DoubtfulPoints]) -> list[str]:
    """Return a note for each class or label whose point val had no good reason for, in any fold."""
    by_name: dict[str, list[tuple[int, DoubtfulPoint]]] = {}
    for i, doubtful in enumerate(folds):
        for name, point in doubtful.items():
            by_name.setdefault(name, []).append((i, point))
    return [doubtful_note(name, of_folds, len(folds)) for name, of_folds in by_name.items()]


def doubtful_note(name: str, of_folds: Sequence[tuple[int, DoubtfulPoint]], folds: int) -> str:
    """Return what is said of an operating point that chance may have chosen."""
    where = ""
    if folds > 1:
        where = f" in fold{'s' * (len(of_folds) > 1)} {', '.join(str(i) for i, _ in of_folds)}"
    aurocs = ", ".join(
        f"{auroc.value:.2f} [{auroc.low:.2f}, {auroc.high:.2f}] (of {count(patients, 'patient')})"
        for _, (auroc, patients) in of_folds
    )
    return (
        f"the operating point of {name!r} cannot be told from one by chance: val{where} has an "
        f"AUROC of {aurocs}, and the interval reaches 0.5, so that it may call everybody, or nobody"
    )


def _points_of(
    truth: Truth,
    prediction: Prediction,
    model: Rows | None,
) -> dict[str, tuple[float, ...]]:
    """Return the operating points as results have them; model (q,): which one each is of."""
    from pipeline.evaluation.metrics.operating import columns_with_points

    if prediction.thresholds is None:
        return {}
    first = [0] if model is None else np.unique(model, return_index=True)[1]
    points = {}
    for j in columns_with_points(truth):
        of_label = prediction.thresholds[first, j]
        defined = of_label[~np.isnan(of_label)]
        if len(defined):
            name = "" if truth.kind == "binary" else truth.classes[j]
            points[name] = tuple(defined.tolist())
    return points


# --- scores --------------------------------------------------------------------------------


def scores_of(cases: Cases, tested: OutOfFold) -> list[Score]:
    """Return what predictions score, by label and subgroup too; adds to the notes of `tested`."""
    tested.notes.extend(_one_sided_notes(cases, tested.rows))
    if tested.predictions:
        tested.notes.extend(_point_notes(cases, tested.predictions[tested.chosen]))
    scores = [score_of(cases, each, tested.rows, tested.fold) for each in tested.predictions]
    if scores:
        tested.notes.extend(interval_notes(scores[tested.chosen].metrics))
    return scores


def _one_sided_notes(cases: Cases, rows: Rows) -> list[str]:
    """Return a note for each label that has no AUROC on the units `rows`, and what else lacks."""
    from pipeline.evaluation.metrics.values import one_sided

    reason = "has no AUROC: all or none of the test units carry it"
    truth = cases.units.at(rows)
    lacking = one_sided(truth)
    notes = [f"{name!r} {reason}" for name in lacking]
    if truth.kind in ("binary", "multiclass") and len(np.unique(truth.y)) == 1:
        notes.append("no balanced accuracy: all test units are of one class")
    return notes


def interval_notes(metrics: Mapping[str, Metric]) -> list[str]:
    """Return a note where metrics have no interval: of few patients, or of patients all alike."""
    without = [name for name, metric in metrics.items() if metric.low is None]
    if not without:
        return []
    names = ", ".join(name.replace("_", " ") for name in without)
    return [f"no interval of {names}: of patients so few, or so alike, it would not keep its word"]


def score_of(
    cases: Cases,
    prediction: Prediction,
    rows: Rows,
    fold: Rows | None,
) -> Score:
    """Return what one prediction of the units `rows` (q,) scores.

    fold (q,): which model predicted each unit, where there are several: a metric is then its mean
    over them. Draws count as folds do, so that its interval is of other test patients.
    """
    from pipeline.evaluation.metrics import metrics

    draws = prediction.draws or 1
    # The same units once for each draw, as `proba` has them.
    if draws > 1:
        fold = np.repeat(np.arange(draws), len(rows))
        rows = np.tile(rows, draws)
    truth = cases.units.at(rows)
    proba = prediction.proba
    thresholds = prediction.thresholds
    joint, labels = metrics.score(truth, proba, fold, cases.task.permutations, thresholds)
    return Score(
        setting=prediction.setting,
        metrics=joint,
        labels=labels,
        subgroups=_subgroups(cases, prediction, rows, fold),
        reliability=metrics.reliability(truth, proba) if truth.kind in CLASS_KINDS else {},
        operating_points=_points_of(truth, prediction, fold),
    )


def _subgroups(
    cases: Cases,
    prediction: Prediction,
    rows: Rows,
    fold: Rows | None,
) -> dict[str, Subgroup]:
    """Return the metrics of the units of each value of each subgroup column, as `column=value`.

    One of a single patient has no metrics. Raises LabelError for a column of too many values.
    """
    subgroups: dict[str, Subgroup] = {}
    for column in cases.task.subgroups:
        texts = cases.column(column)[rows]
        # "" stands for what is not known, or of several values.
        values = sorted({*texts.tolist()} - {""})
        if len(values) > MOST_SUBGROUPS:
            raise LabelError(
                f"A subgroup column must have at most {MOST_SUBGROUPS} values. {column!r} has "
                f"{len(values)} among the test units; give its values by group."
            )
        for value in values:
            members = texts == value
            of_members = _Members(
                rows=rows[members],
                proba=prediction.proba[members],
                fold=_at(fold, members),
                thresholds=_at(prediction.thresholds, members),
            )
            subgroups[f"{column}={value}"] = _subgroup(cases, of_members)
    return subgroups


@dataclass(frozen=True)
class _Members:
    """The test units (q,) of a subgroup, and what was said of them, as `Prediction` has it."""

    rows: Rows
    proba: NDArray[np.float64]
    fold: Rows | None
    thresholds: NDArray[np.float64] | None


def _at(values: NDArray[Any] | None, which: NDArray[np.bool_]) -> NDArray[Any] | None:
    return None if values is None else values[which]


def _subgroup(cases: Cases, members: _Members) -> Subgroup:
    from pipeline.evaluation.metrics import metrics

    rows = members.rows
    truth = cases.units.at(rows)
    patients = len(np.unique(truth.groups))
    joint: dict[str, Metric] = {}
    if patients >= _FEWEST_OF_SUBGROUP:
        thresholds = members.thresholds
        joint, _ = metrics.score(truth, members.proba, members.fold, thresholds=thresholds)
    carried: list[int] = []
    if truth.kind != "regression":
        carried = truth.indicator.sum(axis=0).tolist()
    return Subgroup(
        units=len(rows),
        patients=patients,
        positives=dict(zip(truth.classes, carried, strict=False)),
        metrics=joint,
    )
