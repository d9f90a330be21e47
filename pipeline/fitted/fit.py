"""An answer to a model: what `evaluate` fitted for it is fitted once more, and filed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.heads import HEADS, TUNED, declared
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.config.tasks import COLUMNS
from pipeline.evaluate import evaluate
from pipeline.evaluation.cases import Cases, slices_of
from pipeline.evaluation.covariates import Covariates
from pipeline.evaluation.folds import place_of_chosen
from pipeline.evaluation.heads.contract import FitInput, Head, HeadState, fit_input
from pipeline.evaluation.pooling import FittedScaling, fit_scaling
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.scoring import settings_built_on
from pipeline.evaluation.splits import Parts
from pipeline.extraction.same_store import check_store
from pipeline.fitted.calibration import is_small
from pipeline.fitted.cross_fit import CrossFitted, cross_fitted
from pipeline.fitted.filing import Filing, difference_of, record_and_files
from pipeline.fitted.folder import check_free, write_model
from pipeline.fitted.model import Model
from pipeline.segmentation.regions import update_regions
from pipeline.shared.arrays import Floats, Rows
from stores.errors import ConfigError, LabelError

Proba = NDArray[np.float64]
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
    config = of_one_task(config, task)
    check_store(config)
    if config.settings_of(head).features == COLUMNS:
        raise ConfigError(
            f"A model is of images, and {method} sees `features: {COLUMNS}` alone. Take features "
            f"beside them, such as cls+{COLUMNS}."
        )
    update_regions(config)
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
    predicted = _predict_test(fitting, state, chosen.setting)
    test = fitting.parts["test"]
    val = cases.units.at(fitting.parts["val"])
    crossed: CrossFitted | None = None
    if is_small(val) and chosen.on_val is not None:
        crossed = cross_fitted(cases, head, fitting.raw_by, given, chosen.setting)
    filing = Filing(
        cases=cases,
        result=result,
        chosen=chosen,
        val=val,
        state=state,
        x=fitting.pooled,
        learnt_from=fitting.learnt_from,
        scaling=fitting.scaling,
        difference=difference_of(cases, result, test, predicted, ROUNDING),
        covariates=fitting.covariates,
        crossed=crossed,
    )
    record, files = record_and_files(filing)
    written = write_model(out, record, files)
    return Model(out, written)


# --- what can be filed -----------------------------------------------------------------------


def fileable_head(method: str) -> Head[Any, Any]:
    """Return a head whose model can be filed. Raises ConfigError naming those there are."""
    head = declared(method) if method in HEADS else None
    if not isinstance(head, Head) or head.to_state is None or head.from_state is None:
        names = ", ".join([*fileable_methods(), *TUNED])
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


def of_one_task(config: Config, name: str | None) -> Config:
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
            "A model is fitted on the config's own store. Leave out fit_on, or make that store the "
            "config's."
        )
    # Shortcuts are asked by probes of their own, and change no answer.
    task = tasks[name].model_copy(update={"shortcuts": ()})
    return config.model_copy(update={"tasks": {name: task}})


# --- the fit of the answer, once more --------------------------------------------------------


@dataclass(frozen=True)
class _Fitting:
    """What the answer's head was fitted on, in its first fold.

    given: as the head gets it; raw: that before it is scaled; pooled (n, d): the features of units,
    not scaled, without columns beside them, of which train says `covariates`.
    """

    cases: Cases
    head: Head[Any, Any]
    parts: Parts
    given: FitInput[Any]
    raw: Floats
    pooled: Floats
    scaling: FittedScaling
    covariates: Covariates

    @classmethod
    def of(cls, cases: Cases, head: Head[Any, Any], device: str | None) -> _Fitting:
        parts = cases.folds[0]
        settings = cases.config.settings_of(head)
        pooled = cases.tokens(settings, parts)
        raw = cases.unscaled(settings, parts)
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
        covariates = cases.covariates(settings, parts)
        return cls(cases, head, parts, given, raw, pooled, scaling, covariates)

    @property
    def units(self) -> Units:
        return self.cases.units

    def raw_by(self, parts: Parts) -> Floats:
        """Return what the head sees before it is scaled, where other units train."""
        if not self.covariates.columns:
            return self.raw
        cases = self.cases
        settings = cases.config.settings_of(self.head)
        of_head = cases.unscaled if self.head.sees == "units" else cases.unscaled_slices
        return of_head(settings, parts)

    @property
    def learnt_from(self) -> Rows:
        """The units of train, then those of val."""
        return self.given.train_and_val


# --- held against its answer -----------------------------------------------------------------


def _predict_test(fitting: _Fitting, state: HeadState, setting: dict[str, float]) -> Proba:
    """Return (q, c) what the filed head says of the units of test: none that it was fitted on."""
    assert fitting.head.from_state is not None
    units = fitting.units
    test = fitting.parts["test"]
    places = slices_of(units, test)
    number = np.searchsorted(test, units.unit[places])
    tested = Units.unlabelled(units.ids[test], units.rows[places], number, units.z[places])
    x = fitting.given.x[places if fitting.head.sees == "slices" else test]
    predictions = fitting.head.from_state(state)(x, tested)
    return next(each.proba for each in predictions if each.setting == setting)
