"""An answer to a model: what `evaluate` fitted for it is fitted once more, and filed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Truth, Units
from pipeline.config.heads import HEADS, declared
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.cases import Cases, cases_of, slices_of
from pipeline.evaluation.folds import place_of_chosen
from pipeline.evaluation.heads.contract import FitInput, Head, HeadState, fit_input
from pipeline.evaluation.pooling import FittedScaling, fit_scaling
from pipeline.evaluation.result_files import KEY_LENGTH, predicted_units, read_predictions
from pipeline.evaluation.scoring import at_operating_points, settings_built_on
from pipeline.evaluation.splits import Parts
from pipeline.extraction.same_store import check_store
from pipeline.fitted.calibration import calibrate
from pipeline.fitted.card import card_text
from pipeline.fitted.folder import (
    CARD,
    HEAD,
    TRAINING,
    UNLIKE,
    array_bytes,
    check_free,
    write_model,
)
from pipeline.fitted.model import SCALING, Model
from pipeline.fitted.record import ModelRecord, Scaled, TrainedOn, Unlike, backbone_of
from pipeline.fitted.unlike import References
from pipeline.recipe import recipe_of
from pipeline.results import Result
from pipeline.shared.arrays import Floats, Rows
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError, LabelError

Digests = NDArray[np.uint8]
Proba = NDArray[np.float64]
# Bytes of a sha256 that tell one from another.
DIGEST = 16
# A model that says other than its answer does by more than this is not the answer's.
ROUNDING = 1e-6


def fit(
    config: Config,
    out: Path,
    *,
    task: str | None = None,
    method: Method = "probe",
    device: str | None = None,
) -> Model:
    """Fit the model of an answer and write its folder; the answer is found or computed first.

    task: by its name in the config, where that has several. Raises ConfigError for a task or method
    that no model comes of, OccupiedError where `out` is taken, and as `evaluate` does. Nothing is
    written then.
    """
    check_free(out)  # before hours of work
    head = fileable_head(method)
    config = _of_one_task(config, task)
    check_store(config)
    (result,) = evaluate(config, [method], device=device)
    (cases,) = cases_of(config)
    if not result.scores:
        raise LabelError(
            f"{result.task}: {method} gave no prediction, so that there is no model of it: "
            f"{'; '.join(result.notes) or 'no reason is noted'}."
        )
    fitting = _Fitting.of(cases, head, device)
    given = fitting.given
    fitted = head.fit(given)
    assert head.to_state is not None
    state = head.to_state(fitted, given.x)
    predictions = list(head.predict(fitted, given.x, fitting.parts["test"]).predictions)
    if state is None or not predictions:
        raise LabelError(f"{result.task}: {method} could not be fitted: {'; '.join(result.notes)}.")
    chosen = predictions[place_of_chosen(predictions)]
    record, files = _record_and_files(fitting, result, state, chosen)
    written = write_model(out, record, files)
    return Model(out, written)


# --- what can be filed -----------------------------------------------------------------------


def fileable_head(method: str) -> Head[Any, Any]:
    """Return a head whose model can be filed. Raises ConfigError naming those there are."""
    head = declared(method) if method in HEADS else None
    if not isinstance(head, Head) or head.to_state is None or head.from_state is None:
        names = ", ".join(fileable_methods())
        raise ConfigError(
            f"A model can be made by {names}. Got {method!r} instead, whose answers come from no "
            "single model."
        )
    return head


def fileable_methods() -> list[str]:
    """Return the names of the heads whose models can be filed."""
    names = []
    for name in HEADS:
        head = declared(name)
        if isinstance(head, Head) and head.to_state is not None:
            names.append(name)
    return names


def _of_one_task(config: Config, name: str | None) -> Config:
    """Return a config with the one task a model is made of, without what is asked beside it."""
    tasks = config.tasks
    if name is None and len(tasks) == 1:
        (name,) = tasks
    if name is None or name not in tasks:
        got = "none is named" if name is None else f"got {name!r}"
        raise ConfigError(
            f"A model is made of one task: {got}, the config has {', '.join(tasks) or 'none'}. "
            "Name one by --task."
        )
    if config.fit_on is not None:
        raise ConfigError(
            "A model is fitted on the config's own store. Leave out fit_on, or make that store "
            f"({config.fit_on}) the config's."
        )
    # Shortcuts are asked by probes of their own, and change no answer.
    task = tasks[name].model_copy(update={"shortcuts": ()})
    return config.model_copy(update={"tasks": {name: task}})


# --- the fit of the answer, once more --------------------------------------------------------


@dataclass(frozen=True)
class _Fitting:
    """What the answer's head was fitted on, in its first fold.

    given: as the head gets it; pooled (n, d): the features of units, not scaled.
    """

    cases: Cases
    head: Head[Any, Any]
    parts: Parts
    given: FitInput[Any]
    pooled: Floats
    scaling: FittedScaling

    @classmethod
    def of(cls, cases: Cases, head: Head[Any, Any], device: str | None) -> _Fitting:
        parts = cases.folds[0]
        settings = cases.config.settings_of(head)
        pooled = cases.unscaled(settings, parts)
        raw = pooled
        fit_on = parts["train"]
        if head.sees == "slices":
            raw = cases.unscaled_slices(settings, parts)
            fit_on = slices_of(cases.units, fit_on)
        scaling = fit_scaling(raw, fit_on, settings.scaling, settings.components)
        given = fit_input(
            scaling.apply(raw),
            cases.units,
            parts,
            settings,
            device,
            settings_built_on(cases.config, settings),
        )
        return cls(cases, head, parts, given, pooled, scaling)

    @property
    def units(self) -> Units:
        return self.cases.units

    @property
    def learnt_from(self) -> Rows:
        """The units of train, then those of val."""
        return self.given.train_and_val

    @property
    def places(self) -> Rows:
        """The places in `units.rows` of the slices of the units that were learnt from."""
        return slices_of(self.units, self.learnt_from)


# --- what is filed ---------------------------------------------------------------------------


def _record_and_files(
    fitting: _Fitting,
    result: Result,
    state: HeadState,
    chosen: Prediction,
) -> tuple[ModelRecord, Mapping[str, bytes]]:
    """Return a model's record, without digests, and its other files.

    chosen: the prediction of test by the setting that the model is of.
    """
    cases = fitting.cases
    val = cases.units.at(fitting.parts["val"])
    calibration, notes = calibrate(val, chosen.on_val)
    filed = _predict_test(fitting, state, chosen.setting)
    references = References.of(fitting.pooled, fitting.learnt_from, cases.units.patient)
    if references is None:
        raise LabelError(
            f"{result.task}: a model needs two patients at least in train and val, so that new "
            "images can be held against them."
        )
    names = Names(cases.store.path)
    recipe = recipe_of(cases.store)
    record = ModelRecord(
        task=result.task,
        question=result.question,
        method=result.method,
        kind=result.kind,
        classes=result.classes,
        level=result.level,
        features=result.features,
        scaling=Scaled(kind=fitting.scaling.kind),
        settings=result.settings,
        setting=chosen.setting,
        thresholds=_thresholds(cases, val, chosen),
        calibration=calibration,
        head=dict(state.about),
        recipe=recipe,
        backbone=backbone_of(cases.config.backbone, recipe),
        counts=result.counts,
        trained_on=_trained_on(fitting, names),
        score=result.main_score,
        unlike=Unlike(neighbours=references.k, references=len(references.features)),
        difference=_difference(cases, result, fitting.parts["test"], filed),
        notes=(*result.notes, *notes, *_notes(cases)),
        provenance=result.provenance,
        files={},
    )
    arrays = dict(state.arrays) | _scaling_arrays(fitting.scaling)
    files = {
        HEAD: array_bytes(arrays),
        UNLIKE: array_bytes(
            {
                "features": references.features,
                "patient": references.patient,
                "distances": references.distances,
            },
        ),
        TRAINING: array_bytes(_training(fitting)),
        CARD: card_text(record).encode(),
    }
    return record, files


def _notes(cases: Cases) -> list[str]:
    n = len(cases.folds)
    if n == 1:
        return []
    return [
        f"the answer is of {n} models, each of other patients; this is the first of them, which "
        "learnt from all folds but the first"
    ]


def _scaling_arrays(scaling: FittedScaling) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name in ("centre", "over", "onto"):
        values = getattr(scaling, name)
        if values is not None:
            arrays[SCALING + name] = values
    return arrays


def _trained_on(fitting: _Fitting, names: Names) -> TrainedOn:
    """Count what the model has learnt from."""
    units = fitting.units
    learnt_from = fitting.learnt_from
    sizes = np.bincount(units.unit, minlength=len(units.ids))[learnt_from]
    slices = fitting.cases.store.slices(["row", "modality"])
    at = np.searchsorted(slices["row"].to_numpy(), units.rows[fitting.places])
    counts = slices["modality"].take(pa.array(at)).value_counts().to_pylist()
    modalities = {each["values"]: each["counts"] for each in counts}
    return TrainedOn(
        units=len(learnt_from),
        patients=len(np.unique(units.groups[learnt_from])),
        slices=(int(sizes.min()), int(sizes.max())),
        modalities=dict(sorted(modalities.items())),
        key=names.pseudonym("key", "radprobe"),
    )


def _training(fitting: _Fitting) -> dict[str, Digests]:
    """Return what tells the images and patients of training again: digests, sorted."""
    units = fitting.units
    pixels = fitting.cases.store.read("pixel_digest", units.rows[fitting.places])[:, :DIGEST]
    names = np.unique(units.groups[fitting.learnt_from]).tolist()
    patients = [patient_digest(name) for name in names]
    return {
        "pixels": np.unique(pixels, axis=0),
        "patients": np.unique(np.stack(patients), axis=0),
    }


def patient_digest(pseudonym: str) -> Digests:
    """Return (DIGEST,) what stands for a patient in a model: the digest of a keyed pseudonym."""
    digest = hashlib.sha256(f"radprobe patient {pseudonym}".encode()).digest()
    return np.frombuffer(digest[:DIGEST], np.uint8)


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


def _predict_test(fitting: _Fitting, state: HeadState, setting: dict[str, float]) -> Proba:
    """Return (q, c) what the filed head says of the units of test: none that it was fitted on."""
    assert fitting.head.from_state is not None
    units = fitting.units
    test = fitting.parts["test"]
    places = slices_of(units, test)
    number = np.searchsorted(test, units.unit[places])
    tested = Units.unlabelled(units.ids[test], units.rows[places], number)
    x = fitting.given.x[places if fitting.head.sees == "slices" else test]
    predictions = fitting.head.from_state(state)(x, tested)
    return next(each.proba for each in predictions if each.setting == setting)


def _difference(cases: Cases, result: Result, test: Rows, proba: Proba) -> float:
    """Return the greatest difference between what a model and its answer say of the test units.

    Raises LabelError where it is more than rounding: the model would not be the answer's.
    """
    _, answered, fold = read_predictions(cases.store.path, result)
    if fold is not None:  # the model is of the first fold
        answered = answered[fold == 0]
    ids = predicted_units(cases.store.path, result)[: len(test)]
    assert (ids == cases.units.ids[test]).all()
    difference = float(np.nanmax(np.abs(answered - proba), initial=0))
    if difference > ROUNDING * max(1.0, float(np.nanmax(np.abs(answered)))):
        raise LabelError(
            f"{result.task}: fitted again, {result.method} differs by {difference:.2g} from the "
            "answer on file, which another machine or library made. Delete the answer in the "
            f"store's results ({result.provenance.key[:KEY_LENGTH]}) and fit again."
        )
    return difference
