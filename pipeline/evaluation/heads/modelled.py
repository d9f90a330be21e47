"""Which classes or labels of a task can be fitted at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.evaluation.metrics.values import one_sided


@dataclass(frozen=True)
class Modelled:
    """`left_out`: what all or none of the fitted units carry; `enough`: whether a model remains."""

    left_out: list[str]
    enough: bool

    @property
    def notes(self) -> list[str]:
        """A line for each that is left out."""
        reason = "has no model: all or none of the train units carry it"
        return [f"{name!r} {reason}" for name in self.left_out]


def modelled(units: Units, train: NDArray[np.int64]) -> Modelled:
    """Return which labels, or of exclusive classes at least two, the train units can teach.

    A number they always can.
    """
    if units.kind == "regression":
        return Modelled([], True)
    left_out = one_sided(units.at(train))
    least = 1 if units.kind == "multilabel" else 2
    return Modelled(left_out, len(units.classes) - len(left_out) >= least)
