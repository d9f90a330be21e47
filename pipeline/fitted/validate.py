"""A model held against the labels of another collection: external validation.

Everything is of the fixed model: its probabilities, its operating point. Intervals are of 95 %, by
a bootstrap over patients. Dims: n units, c classes, b draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Truth, Units
from pipeline.config.root import Config
from pipeline.config.tasks import CLASS_KINDS, Task
from pipeline.evaluate import count_of
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.known import key_of, known_units
from pipeline.evaluation.metrics.bootstrap import (
    IntervalRules,
    Values,
    bootstrap,
    patients_on_rarer_side,
)
from pipeline.evaluation.metrics.calibration import calibration, net_benefit
from pipeline.evaluation.metrics.values import columns_of
from pipeline.evaluation.pairs import Question, differing_questions
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.scoring import IN_WORDS, score_of
from pipeline.extraction.same_store import check_store
from pipeline.fitted.calibration import Calibration, calibrate
from pipeline.fitted.model import FiledModel, Model
from pipeline.fitted.predict import UNLIKE_AT
from pipeline.fitted.record import FiledRecord, ModelRecord
from pipeline.fitted.sources import check_recipe
from pipeline.fitted.units import units_from
from pipeline.fitted.unlike import References, evenly
from pipeline.recipe import recipe_of
from pipeline.results import Metric, PartCount, Score, Tally
from pipeline.segmentation.regions import update_regions
from pipeline.shared.arrays import Floats, Rows, unit_length
from pipeline.shared.frozen import Frozen
from stores.errors import ConfigError, LabelError
from stores.features import FeatureStore

Doubles = NDArray[np.float64]
# Where a decision curve is read.
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Units of each side that a domain probe is fitted on at most, and its folds.
MOST_COMPARED = 1000
FOLDS = 5


class Benefit(Frozen):
    """The net benefit of deciding from a probability on, and that of treating all."""

    threshold: float
    decided: Metric
    treat_all: Metric


class Recalibration(Frozen):
    """What makes a model's probabilities right elsewhere, fitted on a share of the patients there.

    They are in no score of the validation. calibration: fitted on their units; metrics: slope,
    intercept and in_the_large by class or label, of the probabilities of all others by it.
    """

    share: float
    patients: int
    units: int
    calibration: Calibration
    metrics: dict[str, dict[str, Metric]]


class AnyValidation(Frozen):
    """How a model, whatever it answers, does on the labels or masks of another collection.

    score: as answers have it; internal: what the model's own answer has of its test units. unlike:
    the share of units with p <= 0.05 of being like those the model learnt from; domain_auroc: how
    well a probe tells both collections apart. model: the key of its answer.
    """

    task: str
    model: str
    recipe: str
    random: bool
    count: PartCount
    score: Score
    internal: dict[str, Metric]
    unlike: Metric
    domain_auroc: float
    left_out: int
    tally: Tally
    notes: tuple[str, ...]


class Validation(AnyValidation):
    """How a model of a task does, at its operating point.

    calibration: slope, intercept and in_the_large by class or label, of the probabilities as they
    are, and calibrated: as the model makes them right. benefit: the decision curve by label.
    recalibration: where it was asked for; all else is then of the patients that it has not seen.
    """

    calibration: dict[str, dict[str, Metric]]
    calibrated: dict[str, dict[str, Metric]]
    benefit: dict[str, tuple[Benefit, ...]]
    recalibration: Recalibration | None = None


def validate(
    model: Model,
    config: Config,
    *,
    task: str | None = None,
    leave_out_known: bool = False,
    recalibrate: float | None = None,
) -> Validation:
    """Hold a model against a task of a config, over the config's store.

    task: by its name; unset, the one called like the model's. leave_out_known: leave out what the
    model has learnt from, instead of refusing it. recalibrate: the share of the patients by whose
    labels its probabilities are made right, and who are not scored. Raises ConfigError or
    LabelError for another question, RecipeMismatchError for other features.
    """
    _check_share(recalibrate, model.record)
    record = model.record
    config = _of_one_task(record, config, task)
    check_store(config)
    update_regions(config)
    (cases,) = cases_of(config)
    check_recipe(model, cases.store)
    _refuse_other_question(record, cases)
    units, left_out = _without_known(model, cases, leave_out_known)
    columns = cases.column_texts if record.covariates.columns else None
    proba, distances = model.of_store(cases.store, units, columns)
    made: _Made | None = None
    if recalibrate is not None:
        made = _recalibrated(units, proba, recalibrate, config.split.seed)
        units = some_units(units, made.scored)
        proba = proba[made.scored]
        distances = distances[made.scored]
    # What is asked of the cases from here on, subgroups as well, is of these units.
    cases.units = units
    return _validation(model, cases, proba, distances, left_out, made)


# --- made right on a share of the patients ---------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A calibration on a share of the patients. scored: the numbers of the units of the others."""

    share: float
    patients: int
    units: int
    calibration: Calibration
    scored: Rows
    notes: list[str]


def _check_share(share: float | None, record: ModelRecord) -> None:
    """Raise ConfigError for a share that leaves nobody, or of a number."""
    if share is None:
        return
    if not 0 < share < 1:
        raise ConfigError(
            "Probabilities are made right on a share of the patients between 0 and 1, such as 0.3. "
            f"Got {share:g} instead."
        )
    if record.kind not in CLASS_KINDS:
        raise ConfigError(
            f"{record.task} is {IN_WORDS[record.kind]}, which has no probability to be made right."
        )


def _recalibrated(units: Units, proba: Doubles, share: float, seed: int) -> _Made:
    """Make probabilities (n, c) right on the units of a share of the patients, drawn by a seed.

    Raises LabelError where these, or the others, are too few.
    """
    patients = np.unique(units.patient)
    drawn = np.random.default_rng(seed).permutation(patients)[: round(share * len(patients))]
    is_drawn = np.isin(units.patient, drawn)
    calibration, notes = calibrate(units.at(is_drawn), proba[is_drawn], "share")
    if calibration is None or is_drawn.all():
        why = "; ".join(notes) or "nobody is left to be scored"
        raise LabelError(
            f"Of {len(patients)} patients the probabilities cannot be made right on {len(drawn)}: "
            f"{why}. Give another share, or more labels."
        )
    return _Made(
        share=share,
        patients=len(drawn),
        units=int(is_drawn.sum()),
        calibration=calibration,
        scored=np.flatnonzero(~is_drawn),
        notes=[
            f"the probabilities were made right on {len(drawn)} of {len(patients)} patients of "
            "this collection, who are in no score",
            *notes,
        ],
    )


# --- is it the model's question ------------------------------------------------------------


def _of_one_task(record: ModelRecord, config: Config, name: str | None) -> Config:
    """Return a config with the one task that the model is held against."""
    tasks = config.tasks
    if name is None:
        name = record.task if record.task in tasks else next(iter(tasks), "")
        if len(tasks) > 1 and name != record.task:
            raise ConfigError(
                f"The model answers {record.task!r}, and the config has {', '.join(tasks)}. Name "
                "the task that is the same by --task."
            )
    if name not in tasks:
        raise ConfigError(f"The config has no task {name!r}. It has: {', '.join(tasks) or 'none'}.")
    as_fitted = {"pool": record.question.pool, "columns": record.question.columns}
    task: Task = tasks[name].model_copy(update={"shortcuts": (), **as_fitted})
    return config.model_copy(update={"tasks": {name: task}, "fit_on": None})


def _refuse_other_question(record: ModelRecord, cases: Cases) -> None:
    """Raise LabelError, with both values, where a task is another than the model's."""
    units = cases.units
    different = differing_questions(
        Question(units.kind, units.classes, cases.task.level),
        Question(record.kind, record.classes, record.level),
        "the model",
    )
    if different:
        raise LabelError(
            f"{cases.name} is another question than the model's {record.task}: "
            f"{'; '.join(different)}. Both must be the same."
        )


# --- what the model has learnt from ----------------------------------------------------------


def _without_known(model: Model, cases: Cases, leave_out: bool) -> tuple[Units, int]:
    """Return the units that the model has not learnt from, and how many it has.

    Raises LabelError where there are such and they are not to be left out.
    """
    units = cases.units
    numbers = strange_units(model, cases.store, units, leave_out)
    known = len(units.ids) - len(numbers)
    if not known:
        return units, 0
    return some_units(units, numbers), known


def some_units(units: Units, numbers: Rows) -> Units:
    """Return some units by their numbers, with their labels."""
    some = units_from(units, numbers)
    return replace(
        units,
        y=units.y[numbers],
        groups=units.groups[numbers],
        ids=some.ids,
        rows=some.rows,
        unit=some.unit,
        along=some.along,
        seen=some.seen,
    )


def strange_units(
    model: FiledModel[Any], store: FeatureStore, units: Units, leave_out: bool
) -> Rows:
    """Return the numbers of the units of patients whom a model has not learnt from.

    Raises LabelError where it has learnt from some and they are not to be left out, or from all.
    """
    is_known = known_units(store, units, model.training)
    known = int(is_known.sum())
    if known and not leave_out:
        patients = len(np.unique(units.groups[is_known]))
        raise LabelError(
            f"{known} of the {len(is_known)} units, of {patients} patients, are of patients whom "
            "the model has learnt from, by their patients or pixels: scores would be leaked. Name "
            "another collection, or leave them out by --leave-out-known."
        )
    if known == len(is_known):
        raise LabelError("The model has learnt from every unit: there is none to hold it against.")
    return np.flatnonzero(~is_known)


# --- scores ----------------------------------------------------------------------------------


def _validation(
    model: Model,
    cases: Cases,
    proba: Doubles,
    distances: Doubles,
    left_out: int,
    made: _Made | None,
) -> Validation:
    record = model.record
    units = cases.units
    rows = np.arange(len(units.ids))
    truth = units.at(rows)
    p = model.references.p_values(distances)
    calibrated = np.full(proba.shape, np.nan)
    if record.calibration is not None:
        calibrated = record.calibration.apply(proba, record.classes, record.kind)
    return Validation(
        task=cases.name,
        model=record.provenance.key,
        recipe=recipe_of(cases.store).digest,
        random=record.random,
        count=count_of(truth),
        score=score_of(cases, _prediction(record, proba), rows, None),
        internal=record.score.metrics,
        calibration=calibration_of(truth, proba),
        calibrated=calibration_of(truth, calibrated),
        benefit=benefit_of(truth, proba),
        unlike=unlike_share(p <= UNLIKE_AT, truth.groups),
        domain_auroc=_domain_auroc_of(model, cases),
        left_out=left_out,
        tally=units.tally,
        notes=tuple(_notes(record, cases) + (made.notes if made else [])),
        recalibration=None if made is None else _recalibration(record, truth, proba, made),
    )


def _recalibration(record: ModelRecord, truth: Truth, proba: Doubles, made: _Made) -> Recalibration:
    """Return what a calibration on other patients comes to on these."""
    right = made.calibration.apply(proba, record.classes, record.kind)
    return Recalibration(
        share=made.share,
        patients=made.patients,
        units=made.units,
        calibration=made.calibration,
        metrics=calibration_of(truth, right),
    )


def _prediction(record: ModelRecord, proba: Doubles) -> Prediction:
    """Return what the model says, with its fixed operating points."""
    points = [record.thresholds.get(name, np.nan) for name in record.classes]
    thresholds = np.tile(np.array(points), (len(proba), 1))
    if record.kind not in ("binary", "multilabel"):
        return Prediction(record.setting, proba)
    return Prediction(record.setting, proba, thresholds=thresholds)


def calibration_of(truth: Truth, proba: Doubles) -> dict[str, dict[str, Metric]]:
    """Return slope, intercept and in_the_large by class or label, each with its interval."""
    if truth.kind not in CLASS_KINDS or np.isnan(proba).all():
        return {}
    columns = columns_of(truth, proba)

    def values(weights: Doubles) -> Values:
        by_key: Values = {}
        for column in columns:
            for name, each in calibration(column, weights).items():
                by_key[name, column.name] = each
        return by_key

    metrics = bootstrap(
        values,
        truth.groups,
        proba.shape[1],
        IntervalRules(rarest=patients_on_rarer_side(truth)),
    )
    return _by_label(metrics)


def benefit_of(
    truth: Truth,
    proba: Doubles,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, tuple[Benefit, ...]]:
    """Return the decision curve of each class or label."""
    if truth.kind not in CLASS_KINDS:
        return {}
    columns = columns_of(truth, proba)

    def values(weights: Doubles) -> Values:
        by_key: Values = {}
        for column in columns:
            decided, treated = net_benefit(column, thresholds, weights)
            for i in range(len(thresholds)):
                by_key[f"decided.{i}", column.name] = decided[i]
                by_key[f"treated.{i}", column.name] = treated[i]
        return by_key

    metrics = bootstrap(
        values,
        truth.groups,
        proba.shape[1],
        IntervalRules(rarest=patients_on_rarer_side(truth)),
    )
    curves = {}
    for name, of_label in _by_label(metrics).items():
        curve = []
        for i, threshold in enumerate(thresholds):
            benefit = Benefit(
                threshold=threshold,
                decided=of_label[f"decided.{i}"],
                treat_all=of_label[f"treated.{i}"],
            )
            curve.append(benefit)
        curves[name] = tuple(curve)
    return curves


def _by_label(metrics: dict[tuple[str, str], Metric]) -> dict[str, dict[str, Metric]]:
    by_label: dict[str, dict[str, Metric]] = {}
    for (name, label), metric in metrics.items():
        by_label.setdefault(label, {})[name] = metric
    return by_label


def unlike_share(which: NDArray[np.bool_], groups: NDArray[np.str_]) -> Metric:
    """Return a share of units, with its interval over patients."""
    holds = which.astype(np.float64)

    def values(weights: Doubles) -> Values:
        return {("share", ""): holds @ weights / weights.sum(axis=0)}

    patients = float(len(np.unique(groups)))
    # None of few patients does not say that none is.
    rules = IntervalRules(rarest={"": patients}, shares={"share": 0.0}, bounded={"share": 0.0})
    return bootstrap(values, groups, 1, rules)["share", ""]


# --- how far both collections are apart ------------------------------------------------------


def _domain_auroc_of(model: Model, cases: Cases) -> float:
    units = cases.units
    ours = evenly(np.arange(len(units.ids)), MOST_COMPARED)
    x = model.features_of(cases.store, units_from(units, ours))
    return domain_auroc(model.references, x, units.patient[ours])


def domain_auroc(theirs: References, x: Floats, patient: Rows) -> float:
    """Return how well a probe tells a model's images from others, by patients it has not seen.

    x (n, d), patient (n,): features of the others, and whose they are. 0.5 where it cannot, 1 where
    each image tells where it is from.
    """
    from pipeline.evaluation.heads.probe_fit import probabilities
    from pipeline.evaluation.metrics.weighted import auroc

    those = evenly(np.arange(len(theirs.features)), MOST_COMPARED)
    x = np.concatenate([theirs.features[those], unit_length(x)])
    is_ours = np.repeat([0, 1], [len(those), len(patient)])
    patient = np.concatenate([theirs.patient[those], patient])
    # Numbers count from 0 on either side, and are of other people.
    groups = np.char.add(np.where(is_ours, "here ", "there "), patient.astype(np.str_))
    names = np.arange(len(x)).astype(np.str_)
    both = replace(
        Units.unlabelled(names, np.arange(len(x)), np.arange(len(x))),
        y=is_ours,
        groups=groups,
        classes=("there", "here"),
        kind="binary",
    )
    # By patient: slices of one are alike, whichever side they are of.
    fold = both.patient % FOLDS
    proba_here = np.full(len(x), np.nan)
    for i in range(FOLDS):
        fit = np.flatnonzero(fold != i)
        test = np.flatnonzero(fold == i)
        if len(test) and len(np.unique(is_ours[fit])) == 2:
            (proba,), _ = probabilities(x, both, fit, test, np.ones(1), [])
            proba_here[test] = proba[:, 1]
    done = ~np.isnan(proba_here)
    return auroc(is_ours[done] == 1, proba_here[done])


def _notes(record: ModelRecord, cases: Cases) -> list[str]:
    return [*cases.units.notes, *key_notes(record, cases.store)]


def key_notes(record: FiledRecord, store: FeatureStore) -> list[str]:
    """Return a note where patients of a store cannot be known again."""
    if key_of(store) == record.trained_on.key:
        return []
    return [
        "the store has another key than the model's: patients that both have are known by "
        "their pixels alone"
    ]
