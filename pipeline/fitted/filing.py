"""What is filed of a model of a task: its record, and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Truth
from pipeline.config.data import BackboneChoice
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.covariates import Covariates
from pipeline.evaluation.heads.contract import HeadState
from pipeline.evaluation.known import training_digests
from pipeline.evaluation.pooling import FittedScaling
from pipeline.evaluation.result_files import KEY_LENGTH, predicted_units, read_predictions
from pipeline.evaluation.scoring import at_operating_points
from pipeline.fitted.calibration import Calibration, calibrate
from pipeline.fitted.card import card_text
from pipeline.fitted.cross_fit import CrossFitted
from pipeline.fitted.folder import CARD, HEAD, TRAINING, UNLIKE, array_bytes
from pipeline.fitted.learnt import trained_on
from pipeline.fitted.model import SCALING
from pipeline.fitted.record import ModelRecord, Scaled, Unlike, backbone_of
from pipeline.fitted.unlike import References
from pipeline.recipe import Recipe, recipe_of
from pipeline.results import Result
from pipeline.shared.arrays import Floats, Rows
from stores.errors import LabelError

Proba = NDArray[np.float64]


@dataclass(frozen=True)
class FiledNetwork:
    """A tuned network that is filed with its model: its files by their names, recipe and name."""

    files: Mapping[str, Path]
    recipe: Recipe
    backbone: BackboneChoice


@dataclass(frozen=True)
class Filing:
    """All that a model of a task is made of.

    chosen: the prediction of the setting that the model is of; val: the units that it says of val;
    x (n, d): features of the units of the cases, not scaled; learnt_from: which the model knows.
    difference: between what it says of test and what its answer says. crossed: what was said of
    train and val by folds, where val is small. covariates: of the columns that the head sees; None
    for none. tuned: of a tuned network.
    """

    cases: Cases
    result: Result
    chosen: Prediction
    val: Truth
    state: HeadState
    x: Floats
    learnt_from: Rows
    scaling: FittedScaling
    difference: float
    covariates: Covariates | None = None
    crossed: CrossFitted | None = None
    tuned: FiledNetwork | None = None

    @property
    def calibration(self) -> tuple[Calibration | None, list[str]]:
        """What makes the model's probabilities right, and notes on what is not."""
        if self.crossed is not None:
            return calibrate(self.crossed.truth, self.crossed.proba, "folds")
        return calibrate(self.val, self.chosen.on_val)


def references_of(task: str, x: Floats, learnt_from: Rows, patient: Rows) -> References:
    """Return what new images are held against: features x (n, d), of which rows, whose (n,).

    Raises LabelError where they are of one patient alone.
    """
    references = References.of(x, learnt_from, patient)
    if references is None:
        raise LabelError(
            f"{task}: a model needs two patients at least in train and val, so that new "
            "images can be held against them."
        )
    return references


def record_and_files(filing: Filing) -> tuple[ModelRecord, Mapping[str, bytes | Path]]:
    """Return a model's record, without digests, and its other files."""
    cases = filing.cases
    result = filing.result
    chosen = filing.chosen
    tuned = filing.tuned
    calibration, notes = filing.calibration
    references = references_of(result.task, filing.x, filing.learnt_from, cases.units.patient)
    recipe = recipe_of(cases.store) if tuned is None else tuned.recipe
    backbone = backbone_of(cases.config.backbone, recipe) if tuned is None else tuned.backbone
    record = ModelRecord(
        task=result.task,
        question=result.question,
        method=result.method,
        kind=result.kind,
        classes=result.classes,
        level=result.level,
        features=result.features,
        covariates=filing.covariates or Covariates(),
        scaling=Scaled(kind=filing.scaling.kind),
        settings=result.settings,
        setting=chosen.setting,
        thresholds=_thresholds(cases, filing.val, chosen),
        calibration=calibration,
        head=dict(filing.state.about),
        recipe=recipe,
        backbone=backbone,
        counts=result.counts,
        trained_on=trained_on(cases.store, cases.units, filing.learnt_from),
        score=result.main_score,
        unlike=Unlike(neighbours=references.k, references=len(references.features)),
        difference=filing.difference,
        notes=(*result.notes, *notes, *fold_notes(len(cases.folds))),
        provenance=result.provenance,
        tuned=tuned is not None,
        files={},
    )
    arrays = dict(filing.state.arrays) | _scaling_arrays(filing.scaling)
    training = training_digests(cases.store, cases.units, filing.learnt_from)
    files: dict[str, bytes | Path] = {
        HEAD: array_bytes(arrays),
        UNLIKE: array_bytes(references.arrays),
        TRAINING: array_bytes(training),
        CARD: card_text(record).encode(),
    }
    return record, files | dict(tuned.files if tuned else {})


def fold_notes(folds: int) -> list[str]:
    """Return a note on which of several folds a model is of."""
    if folds == 1:
        return []
    return [
        f"the answer is of {folds} models, each of other patients; this is the first of them, "
        "which learnt from all folds but the first"
    ]


def _scaling_arrays(scaling: FittedScaling) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name in ("centre", "over", "onto"):
        values = getattr(scaling, name)
        if values is not None:
            arrays[SCALING + name] = values
    return arrays


def _thresholds(cases: Cases, val: Truth, chosen: Prediction) -> dict[str, float]:
    """Return the operating points of a model, by class or label, as its answer's were chosen."""
    rule = cases.task.operating_point
    thresholds = at_operating_points(chosen, val, rule).thresholds
    if thresholds is None:
        return {}
    points = {}
    for name, threshold in zip(val.classes, thresholds[0].tolist(), strict=True):
        if not np.isnan(threshold):
            points[name] = threshold
    return points


def difference_of(cases: Cases, result: Result, test: Rows, proba: Proba, most: float) -> float:
    """Return the greatest difference between what a model and its answer say of test units.

    most: of it, relative to the greatest number where that is above 1. Raises LabelError where it
    is more: the model would not be the answer's.
    """
    _, answered, fold = read_predictions(cases.store.path, result)
    if fold is not None:  # the model is of the first fold
        answered = answered[fold == 0]
    ids = predicted_units(cases.store.path, result)[: len(test)]
    assert (ids == cases.units.ids[test]).all()
    difference = float(np.nanmax(np.abs(answered - proba), initial=0))
    if difference > most * max(1.0, float(np.nanmax(np.abs(answered)))):
        raise LabelError(
            f"{result.task}: fitted again, {result.method} differs by {difference:.2g} from the "
            "answer on file, which another machine or library made. Delete the answer in the "
            f"store's results ({result.provenance.key[:KEY_LENGTH]}) and fit again."
        )
    return difference
