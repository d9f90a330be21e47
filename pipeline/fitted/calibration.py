"""Probabilities made right on units that what is said of them has not been fitted on.

Of two classes, and of each label, by Platt's sigmoid on the logit, with his targets (Advances in
Large Margin Classifiers, 1999); where val is large, by isotonic regression (Zadrozny and Elkan, KDD
2002) if that foretells patients it has not seen better; of several classes by one temperature (Guo
et al., ICML 2017). Sigmoid and temperature keep the order of units, and isotonic regression does
but for ties, so that an operating point stays what it is. What they learn is of what a model of
train alone says of val, or where val is small of what models of four fifths of the patients of
train and val say of the others, and holds for the model of both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotations.units import Truth
from pipeline.config.tasks import CLASS_KINDS, Kind
from pipeline.evaluation.metrics.calibration import LEAST, fit_line, logit
from pipeline.evaluation.metrics.values import columns_of
from pipeline.shared.arrays import softmax
from pipeline.shared.frozen import Frozen

Doubles = NDArray[np.float64]

# Units on each side of a label that its sigmoid is fitted on at least.
FEWEST = 10
TEMPERATURES = (0.05, 20.0)
# Units in all, and on the rarer side, from which on isotonic regression is tried at all; and the
# folds of patients by which it must do better.
LARGE = 1000
LARGE_SIDE = 100
FOLDS = 5


class Sigmoid(Frozen):
    """logit(calibrated) = intercept + slope * logit(said), fitted on so many units."""

    kind: Literal["sigmoid"] = "sigmoid"
    intercept: float
    slope: Annotated[float, Field(gt=0)]
    units: int

    def apply(self, proba: Doubles) -> Doubles:
        """Return (n,) the probabilities of a label made right."""
        calibrated: Doubles = 1 / (1 + np.exp(-(self.intercept + self.slope * logit(proba))))
        return calibrated


class Isotonic(Frozen):
    """calibrated goes straight from step to step, fitted on so many units.

    said, observed: where the steps stand, both ascending; before the first and behind the last it
    stays.
    """

    kind: Literal["isotonic"] = "isotonic"
    said: tuple[float, ...]
    observed: tuple[float, ...]
    units: int

    def apply(self, proba: Doubles) -> Doubles:
        """Return (n,) the probabilities of a label made right."""
        calibrated: Doubles = np.interp(proba, self.said, self.observed)
        return calibrated


CalibrationUnits = Literal["val", "folds", "share"]
# How they are called in sentences.
IN_WORDS: dict[CalibrationUnits, str] = {
    "val": "val",
    "folds": "train and val, by cross-fitting",
    "share": "the share of patients",
}
OfLabel = Annotated[Sigmoid | Isotonic, Field(discriminator="kind")]


class Temperature(Frozen):
    """calibrated = softmax(log(said) / temperature), fitted on so many units."""

    kind: Literal["temperature"] = "temperature"
    temperature: Annotated[float, Field(gt=0)]
    units: int

    def apply(self, proba: Doubles) -> Doubles:
        """Return (n, c) the probabilities of all classes made right."""
        return _softened(proba, self.temperature)


class Calibration(Frozen):
    """What makes probabilities right: for each label (or the positive class), or a temperature.

    A label that is not there had too few units, and has no calibrated probability. fitted_on: val,
    said by a model of train alone; or folds of train and val, each said by models of the others; or
    a share of the patients of another collection.
    """

    sigmoids: dict[str, OfLabel] = Field(default_factory=dict)
    temperature: Temperature | None = None
    fitted_on: CalibrationUnits = "val"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels whose probabilities are made right."""
        return tuple(self.sigmoids)

    def apply(self, proba: Doubles, classes: tuple[str, ...], kind: Kind) -> Doubles:
        """Return (n, c) calibrated probabilities, NaN for what could not be calibrated."""
        if self.temperature is not None:
            return self.temperature.apply(proba)
        calibrated = np.full(proba.shape, np.nan)
        for name, sigmoid in self.sigmoids.items():
            j = classes.index(name)
            calibrated[:, j] = sigmoid.apply(proba[:, j])
            if kind == "binary":
                calibrated[:, 1 - j] = 1 - calibrated[:, j]
        return calibrated


def is_small(val: Truth) -> bool:
    """Return whether val is too small to say by itself how far probabilities are from right.

    That is where any class or label has fewer than LARGE_SIDE units on its rarer side (Van Calster
    et al., J Clin Epidemiol 2016, ask for 100 to 200). Of LARGE units and more it is not: rare as
    a label may be, heads of so many are not fitted over and over.
    """
    if val.kind not in CLASS_KINDS or len(val.y) >= LARGE:
        return False
    carried = (val.indicator & val.known).sum(axis=0)
    without = (~val.indicator & val.known).sum(axis=0)
    return bool(np.minimum(carried, without).min() < LARGE_SIDE)


def calibrate(
    truth: Truth, said: Doubles | None, fitted_on: CalibrationUnits = "val"
) -> tuple[Calibration | None, list[str]]:
    """Return what makes right what is said (n, c) of units, and notes on what is not.

    None where nothing can be calibrated: of a number or a risk, and where nothing is said.
    """
    if said is None or truth.kind not in CLASS_KINDS:
        return None, []
    if truth.kind == "multiclass":
        return Calibration(temperature=_temperature(truth, said), fitted_on=fitted_on), []
    place = IN_WORDS[fitted_on]
    sigmoids: dict[str, Sigmoid | Isotonic] = {}
    notes = []
    for column in columns_of(truth, said):
        positive = column.positive[column.known]
        rarer = int(min(positive.sum(), (~positive).sum()))
        proba = column.proba[column.known]
        sigmoid = _sigmoid(positive, proba) if rarer >= FEWEST else None
        made: Sigmoid | Isotonic | None = sigmoid
        if sigmoid is not None and rarer >= LARGE_SIDE and len(proba) >= LARGE:
            made = _better(sigmoid, positive, proba, truth.patient[column.known])
        if made is not None:
            sigmoids[column.name] = made
        elif rarer < FEWEST:
            notes.append(
                f"{column.name!r} is not calibrated: {rarer} units are on its rarer side of "
                f"{place}, and {FEWEST} are needed"
            )
        else:
            notes.append(
                f"{column.name!r} is not calibrated: on {place} it ranks no better than chance"
            )
    return (Calibration(sigmoids=sigmoids, fitted_on=fitted_on) if sigmoids else None), notes


def _sigmoid(positive: NDArray[np.bool_], proba: Doubles) -> Sigmoid | None:
    """Return Platt's sigmoid; None where it would turn the order of units round."""
    n = len(positive)
    positives = int(positive.sum())
    # His targets: never quite 0 and 1, so that a label that is told entirely has a finite slope.
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    intercept, slope = fit_line(logit(proba), target, np.ones((n, 1)))
    if not slope[0] > 0:
        return None
    return Sigmoid(intercept=float(intercept[0]), slope=float(slope[0]), units=n)


def _isotonic(positive: NDArray[np.bool_], proba: Doubles) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    n = len(positive)
    # Never quite 0 and 1: so many units cannot tell.
    fitted = IsotonicRegression(y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), out_of_bounds="clip")
    fitted.fit(proba, positive.astype(np.float64))
    return Isotonic(
        said=tuple(fitted.X_thresholds_.tolist()),
        observed=tuple(fitted.y_thresholds_.tolist()),
        units=n,
    )


def _better(
    sigmoid: Sigmoid,
    positive: NDArray[np.bool_],
    proba: Doubles,
    patient: NDArray[np.int64],
) -> Sigmoid | Isotonic:
    """Return isotonic regression where it has the lower log-loss on patients it has not seen.

    Else the sigmoid. patient (n,): the numbers of the units' patients.
    """
    # By the number of the patient, which says nothing of who it is.
    _, number = np.unique(patient, return_inverse=True)
    fold = number % FOLDS
    losses = np.zeros(2)
    for i in range(FOLDS):
        fit = fold != i
        by_line = _sigmoid(positive[fit], proba[fit])
        if by_line is None:
            return sigmoid
        made = (by_line, _isotonic(positive[fit], proba[fit]))
        losses += [_log_loss(positive[~fit], each.apply(proba[~fit])) for each in made]
    return _isotonic(positive, proba) if losses[1] < losses[0] else sigmoid


def _log_loss(positive: NDArray[np.bool_], proba: Doubles) -> float:
    """Return the sum of the log-losses of units."""
    of_true = np.where(positive, proba, 1 - proba)
    return -float(np.log(np.maximum(of_true, LEAST)).sum())


def _temperature(truth: Truth, proba: Doubles) -> Temperature:
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(proba))

    def loss(log_temperature: float) -> float:
        softened = _softened(proba, float(np.exp(log_temperature)))
        return -float(np.log(np.maximum(softened[rows, truth.y], LEAST)).mean())

    bounds = tuple(np.log(TEMPERATURES))
    best = minimize_scalar(loss, bounds=bounds, method="bounded")
    return Temperature(temperature=float(np.exp(best.x)), units=len(proba))


def _softened(proba: Doubles, temperature: float) -> Doubles:
    return softmax(np.log(np.maximum(proba, LEAST)) / temperature)
