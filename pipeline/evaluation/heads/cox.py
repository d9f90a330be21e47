"""Cox's proportional hazards on frozen features, for tasks of survival.

By lifelines, which the extra `survival` installs: it is imported where a model is fitted, and not
where one is read or asked.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotations.units import Prediction, Truth, Units
from pipeline.config.base import HeadSettings
from pipeline.config.heads import LIBRARIES
from pipeline.config.tasks import FeatureSet, Scaling
from pipeline.evaluation.heads.contract import (
    FitInput,
    Floats,
    Head,
    HeadState,
    Predicted,
    Predictor,
    Rows,
)
from pipeline.shared.texts import plain_number
from stores.errors import ConfigError

Doubles = NDArray[np.float64]


class CoxSettings(HeadSettings):
    """Cox regression with a ridge penalty on features whitened to few components.

    low, high, steps: the penalty is chosen on val from 10^linspace(low, high, steps), by the
    partial likelihood of val; it is of features as if each had variance 1.
    """

    features: FeatureSet = "cls+mean"
    scaling: Scaling = "whiten"
    components: Annotated[int, Field(ge=1)] = 32
    low: float = -3
    high: float = 1
    steps: Annotated[int, Field(ge=1)] = 9


@dataclass(frozen=True)
class Cox:
    """A fitted model: the log of the hazard is (x - centre) @ coef, beside one of time alone.

    coef, centre (d,); no model where coef is None. setting: the penalty that val chose.
    """

    coef: Doubles | None
    centre: Doubles
    setting: dict[str, float]
    notes: tuple[str, ...]


def fit(given: FitInput[CoxSettings]) -> Cox:
    """Fit on train with each penalty, choose by the partial likelihood of val, fit on both.

    Where val says nothing, since no event of it comes before another unit's time, the strongest
    penalty counts.
    """
    settings = given.settings
    both = given.train_and_val
    centre = given.x[both].mean(axis=0, dtype=np.float64)
    if not given.units.indicator[given.parts["train"]].any():
        return Cox(None, centre, {}, ("no train unit has the event",))
    penalties = 10 ** np.linspace(settings.low, settings.high, settings.steps)
    of_val = np.array([_likelihood_of_val(given, float(penalty)) for penalty in penalties])
    best = int(np.argmax(of_val))
    notes = []
    if not of_val[np.isfinite(of_val)].any():
        best = len(penalties) - 1
        notes.append(
            f"penalty = {plain_number(penalties[best])} was not chosen: no event of val comes "
            "before another unit's time"
        )
    elif settings.steps > 1 and best in (0, len(penalties) - 1):
        notes.append(f"penalty = {plain_number(penalties[best])} is at the edge of the grid")
    coef = _coefficients(given.x[both], given.units.at(both), float(penalties[best]))
    if coef is None:
        notes.append("the fit does not converge: ask for a stronger penalty or fewer components")
    return Cox(coef, centre, {"penalty": float(penalties[best])}, tuple(notes))


def _likelihood_of_val(given: FitInput[CoxSettings], penalty: float) -> float:
    """Return what the fit on train makes of val; minus infinity where it does not converge."""
    train = given.parts["train"]
    val = given.parts["val"]
    coef = _coefficients(given.x[train], given.units.at(train), penalty)
    if coef is None:
        return -np.inf
    return partial_likelihood(given.units.at(val), given.x[val] @ coef)


def _coefficients(x: Floats, truth: Truth, penalty: float) -> Doubles | None:
    """Return the coefficients (d,) of features x (n, d) with a penalty; None without convergence.

    Ties by Efron's method. Raises ConfigError where lifelines is not installed.
    """
    try:
        import pandas as pd
        from lifelines import CoxPHFitter
        from lifelines.exceptions import ConvergenceError, ConvergenceWarning
    except ImportError as error:
        raise ConfigError(
            f"Cox regression is fitted by lifelines, which is not there ({error}). Install it by "
            "`pip install 'radprobe[survival]'`."
        ) from None
    coef = np.zeros(x.shape[1])
    deviation = x.std(axis=0, dtype=np.float64)
    # What is the same of all says nothing, and has no variance to be divided by.
    varies = deviation > 0
    table = pd.DataFrame(x[:, varies] / deviation[varies])
    table["time"], table["event"] = truth.y.T
    with warnings.catch_warnings():
        # What lifelines' way to ask pandas, and columns that tell the event nearly alone, give.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".*failed to converge", ConvergenceWarning)
        try:
            fitted = CoxPHFitter(penalizer=penalty).fit(table, "time", "event")
        except (ConvergenceError, ConvergenceWarning):
            return None
    coef[varies] = fitted.params_.to_numpy() / deviation[varies]
    return coef


def partial_likelihood(truth: Truth, log_hazard: Doubles) -> float:
    """Return Cox's log partial likelihood (Breslow's, of ties) of log hazards (n,); 0 of no event.

    The sum over events of the log of the share that the unit's hazard has of those still watched.
    """
    time, event = truth.y.T
    order = np.argsort(-time, kind="stable")
    watched = np.logaddexp.accumulate(log_hazard[order])
    # Of equal times all are still watched: the last of them, in this order, has the sum.
    last = len(time) - 1 - np.searchsorted(time[order][::-1], time[order], side="left")
    shares = log_hazard[order] - watched[last]
    return float(shares[event[order] == 1].sum())


def predict(model: Cox, x: Floats, rows: Rows) -> Predicted:
    """Return the log hazards of units against the mean of those fitted on: higher is sooner."""
    return Predicted(_said(model, x[rows]), model.notes)


def _said(model: Cox, x: Floats) -> list[Prediction]:
    if model.coef is None:
        return []
    risk = (x - model.centre) @ model.coef
    return [Prediction(model.setting, risk[:, None])]


def to_state(model: Cox, x: Floats) -> HeadState | None:
    """Return a model as it can be filed; None where there is none."""
    if model.coef is None:
        return None
    return HeadState({"coef": model.coef, "centre": model.centre}, {"setting": model.setting})


def from_state(state: HeadState) -> Predictor:
    """Return what says log hazards of units' features."""
    model = Cox(state.arrays["coef"], state.arrays["centre"], state.about["setting"], ())

    def predict_units(x: Floats, units: Units) -> list[Prediction]:
        return _said(model, x)

    return predict_units


HEAD = Head(
    name="cox",
    title="Cox regression",
    settings=CoxSettings,
    contract=1,
    libraries=(*LIBRARIES, "lifelines"),
    kinds=("survival",),
    fit=fit,
    predict=predict,
    to_state=to_state,
    from_state=from_state,
)
