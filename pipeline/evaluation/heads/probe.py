"""The linear probe: logistic regression on frozen features, for a number ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import FeatureSet, Part
from pipeline.evaluation.heads.contract import FitInput, Floats, Head, Predicted, Rows

if TYPE_CHECKING:
    from pipeline.evaluation.heads.probe_fit import Probe


class ProbeSettings(HeadSettings):
    """Probe settings: C = 10^linspace(low, high, steps), chosen on validation.

    Regression is ridge with the penalty alpha = 1 / C.
    """

    features: FeatureSet = "cls+mean"
    low: float = -6
    high: float = 5
    steps: Annotated[int, Field(ge=1)] = 45


def fit(given: FitInput[ProbeSettings], refit_on: Sequence[Part] = ("train", "val")) -> Probe:
    """Fit on train for each C, choose C on val by macro AUROC, and fit it again on `refit_on`.

    Of equals the smaller C is chosen. Notes say which labels have no model, how C was chosen, and
    how many fits stopped early. On a device scikit-learn fits classes through its array API.
    """
    from pipeline.evaluation.heads.probe_fit import fit_classes, fit_number

    if given.units.kind == "regression":
        return fit_number(given, refit_on)
    return fit_classes(given, refit_on)


def predict(model: Probe, x: Floats, rows: Rows) -> Predicted:
    """Return probabilities, NaN for the labels without a model, or the number; x (n, d)."""
    return model.predict(x, rows)


HEAD = Head(
    name="probe",
    title="Linear probe",
    settings=ProbeSettings,
    contract=8,
    fit=fit,
    predict=predict,
)
