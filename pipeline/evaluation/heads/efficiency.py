"""Label efficiency: the probe fitted on the labels of ever more patients, up to all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Truth, Units
from pipeline.config.heads import Efficiency
from pipeline.config.tasks import Part
from pipeline.evaluation.heads import probe

Rows = NDArray[np.int64]
LEAST_DRAWS = 3


@dataclass(frozen=True)
class Point:
    """What a probe says that saw `shots` patients a class, `patients` in all: (q, c) a draw.

    patients: their mean number over the draws, since one may carry several classes.
    """

    shots: int
    patients: float
    predictions: list[NDArray[np.float64]]
    notes: list[str]


def points(
    x: NDArray[np.float32],
    units: Units,
    parts: Mapping[Part, Rows],
    settings: Efficiency,
    device: str | None = None,
) -> Iterator[Point]:
    """Yield a point for each number of patients a class, the last with all of train; x (n, d).

    Of a number, the patients are drawn of each quarter of its values. A draw takes all units of its
    patients. C, or the penalty, is chosen on the whole of val, and val is not fitted,
    so that points differ by the patients of train alone.
    """
    patient = units.patient
    carriers = _carriers(units.at(parts["train"]), patient[parts["train"]])
    everyone = max(map(len, carriers))
    for shots in _numbers(settings.shots, everyone):
        draws = 1 if shots == everyone else settings.draws
        if shots < everyone:
            draws = min(draws, max(LEAST_DRAWS, everyone // shots))
        predictions, failed, seen = [], 0, []
        for i in range(draws):
            rng = np.random.default_rng([settings.seed, shots, i])
            taken = [rng.permutation(own)[:shots] for own in carriers]
            drawn = parts["train"][np.isin(patient[parts["train"]], np.concatenate(taken))]
            fit = {**parts, "train": drawn if shots < everyone else parts["train"]}
            found, _ = probe.predict(x, units, fit, settings, refit_on=("train",), device=device)
            predictions += [each.proba for each in found]
            failed += not found
            seen.append(len(np.unique(patient[fit["train"]])))
        notes = [f"{shots} shots: {failed} of {draws} draws had one class only"] if failed else []
        yield Point(shots, float(np.mean(seen)), predictions, notes)


def _carriers(truth: Truth, patient: Rows) -> list[Rows]:
    """Return the patients that carry each class, label or quarter, where any does."""
    each = [np.unique(patient[carried]) for carried in truth.strata.T]
    return [own for own in each if len(own)]


def _numbers(shots: tuple[int, ...], everyone: int) -> list[int]:
    """Return the numbers asked for, then twice as many each time, up to everyone."""
    numbers = sorted(k for k in shots if k < everyone)
    while (more := 2 * (numbers[-1] if numbers else everyone)) < everyone:
        numbers.append(more)
    return [*numbers, everyone]
