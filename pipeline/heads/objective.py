"""What heads that are trained by gradient minimise, and what their outputs mean.

Dims: b units, o outputs: one for two classes, else one a class or label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.questions import Truth, Units

NUMBERS = "needs classes: a number has none; the probe predicts it"


@dataclass(frozen=True)
class Targets:
    """y (n, o): 0 or 1; known (n, o): whether it counts."""

    y: Tensor
    known: Tensor
    exclusive: bool

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the cross-entropy of exclusive classes, else the binary ones summed over outputs.

        The mean over the b units `rows`, on the device of their logits (b, o).
        """
        y, known = self.y[rows].to(logits.device), self.known[rows].to(logits.device)
        if self.exclusive:
            return functional.cross_entropy(logits, y)
        each = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return (each * known).sum(dim=1).mean()


def targets(truth: Truth) -> Targets:
    """Return what is to be learnt of n units."""
    exclusive = truth.kind == "multiclass"
    first = 1 if truth.kind == "binary" else 0
    y, known = (torch.from_numpy(a[:, first:]).float() for a in (truth.indicator, truth.known))
    return Targets(y, known, exclusive)


def outputs(units: Units) -> int:
    """Return o."""
    return 1 if units.kind == "binary" else len(units.classes)


def probabilities(logits: Tensor, units: Units, left_out: list[str]) -> NDArray[np.float64]:
    """Return (b, c) of logits (b, o); NaN for the labels, zero for the classes, left out."""
    logits = logits.double().cpu()
    if units.kind == "multiclass":
        without = torch.tensor([name in left_out for name in units.classes])
        proba = torch.softmax(logits.masked_fill(without, -torch.inf), dim=1).numpy()
    else:
        proba = torch.sigmoid(logits).numpy()
    if units.kind == "binary":
        return np.concatenate([1 - proba, proba], axis=1)
    if units.kind == "multilabel":
        proba[:, np.isin(units.classes, left_out)] = np.nan
    return np.asarray(proba)
