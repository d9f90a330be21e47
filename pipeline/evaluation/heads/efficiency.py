"""Label efficiency: the probe fitted on the labels of ever more patients, up to all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.annotations.units import Prediction, Truth
from pipeline.evaluation.heads.contract import FitInput, Floats, Head, Predicted, Rows
from pipeline.evaluation.heads.probe import ProbeSettings

if TYPE_CHECKING:
    from pipeline.evaluation.heads.probe_fit import Fitted

LEAST_DRAWS = 3


class EfficiencySettings(ProbeSettings):
    """Label efficiency: the probe fitted on a few patients a class, on twice as many, up to all.

    Each number of patients is scored on all test units. shots: patients a class. draws: how often
    each number is drawn, or fewer where the draws together would take more patients than there are
    (three at least). seed: of what is drawn. low, high, steps: as the probe has them.
    """

    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        1,
        2,
        4,
        8,
        16,
    )
    draws: Annotated[int, Field(ge=1)] = 10
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """Probes that were fitted on `shots` patients a class, `patients` in all: one a draw.

    patients: their mean number over the draws, since one may carry several classes. failed: how
    many draws had one class only; their probes are not among `probes`. on_val: what each probe says
    of val, None of a number.
    """

    shots: int
    patients: float
    probes: list[Fitted]
    on_val: list[NDArray[np.float64] | None]
    failed: int

    @property
    def notes(self) -> list[str]:
        """How many of the draws could not be fitted, where any could not."""
        if not self.failed:
            return []
        draws = len(self.probes) + self.failed
        return [f"{self.shots} shots: {self.failed} of {draws} draws had one class only"]

    def predict(self, x: Floats, rows: Rows) -> Prediction:
        """Return what the probes say of the units `rows`, draw after draw."""
        number = len(self.probes)
        setting = {"shots": self.shots, "patients": self.patients, "draws": number}
        proba = np.concatenate([fitted.predict(x, rows) for fitted in self.probes])
        of_classes = [each for each in self.on_val if each is not None]
        on_val = np.concatenate(of_classes) if of_classes else None
        return Prediction(setting, proba, draws=number, on_val=on_val)


def fit(given: FitInput[EfficiencySettings]) -> list[Point]:
    """Fit the probes of every point, the last point on all of train."""
    return list(points(given))


def predict(model: list[Point], x: Floats, rows: Rows) -> Predicted:
    """Return one prediction a point, of all its draws, where any could be fitted."""
    notes: list[str] = []
    for point in model:
        notes += point.notes
    fitted = [point for point in model if point.probes]
    # One by one: all points' predictions together are more than memory should hold.
    return Predicted((point.predict(x, rows) for point in fitted), notes)


def points(given: FitInput[EfficiencySettings]) -> Iterator[Point]:
    """Yield a point for each number of patients a class, the last with all of train.

    Of a number, the patients are drawn of each quarter of its values. A draw takes all units of its
    patients. C, or the penalty, is chosen on the whole of val, and val is not fitted, so that
    points differ by the patients of train alone.
    """
    from pipeline.evaluation.heads import probe_fit

    settings = given.settings
    train = given.parts["train"]
    patient = given.units.patient[train]  # of each train unit
    carriers = _carriers(given.units.at(train), patient)
    everyone = max(len(patients) for patients in carriers)
    for shots in _numbers(settings.shots, everyone):
        probes: list[Fitted] = []
        on_val: list[NDArray[np.float64] | None] = []
        patients = []
        draws = _draws(settings, shots, everyone)
        for draw in range(draws):
            units = train
            if shots < everyone:
                # By its own numbers, so that a draw does not depend on those before it.
                rng = np.random.default_rng([settings.seed, shots, draw])
                drawn = [rng.permutation(each)[:shots] for each in carriers]
                chosen = np.isin(patient, np.concatenate(drawn))
                units = train[chosen]
            parts = {**given.parts, "train": units}
            of_draw = replace(given, parts=parts)
            # Unchecked: the notes of single draws are not shown.
            probe = probe_fit.fit_unchecked(of_draw, refit_on=("train",))
            if probe.fitted is not None:
                probes.append(probe.fitted)
                on_val.append(probe.on_val)
            whose = given.units.patient[units]
            patients.append(len(np.unique(whose)))
        failed = draws - len(probes)
        yield Point(shots, float(np.mean(patients)), probes, on_val, failed)


def _draws(settings: EfficiencySettings, shots: int, everyone: int) -> int:
    """Return how often so many patients are drawn: all of them once."""
    if shots == everyone:
        return 1
    return min(settings.draws, max(LEAST_DRAWS, everyone // shots))


def _carriers(truth: Truth, patient: Rows) -> list[Rows]:
    """Return the patients that carry each class, label or quarter, where any does."""
    each = [np.unique(patient[carried]) for carried in truth.strata.T]
    return [patients for patients in each if len(patients)]


def _numbers(shots: tuple[int, ...], everyone: int) -> list[int]:
    """Return the numbers asked for, then twice as many each time, up to everyone."""
    numbers = sorted(k for k in shots if k < everyone)
    # Where none of those asked for is below everyone, everyone is the one point.
    while numbers and 2 * numbers[-1] < everyone:
        numbers.append(2 * numbers[-1])
    return [*numbers, everyone]


HEAD = Head(
    name="efficiency",
    title="Label efficiency",
    settings=EfficiencySettings,
    contract=10,
    fit=fit,
    predict=predict,
    folds="first",
    compared=False,
)
