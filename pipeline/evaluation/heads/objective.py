"""What heads that are trained by gradient minimise, and what their outputs mean.

Dims: b units, o outputs: one for two classes or a number, else one a class or label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.annotations.units import Truth, Units
from pipeline.config.tasks import Kind
from pipeline.evaluation.heads.modelled import modelled

Proba = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """What a head's outputs stand for, as the train units say.

    left_out: classes or labels without a model; enough: whether any has one. A number is learnt in
    units of its spread (standard deviation) about its middle (mean).
    """

    kind: Kind
    classes: tuple[str, ...]
    left_out: list[str]
    enough: bool
    notes: list[str]
    middle: float
    spread: float

    @classmethod
    def of(cls, units: Units, train: NDArray[np.int64]) -> Objective:
        """Return what heads of these units learn."""
        able = modelled(units, train)
        middle = 0.0
        spread = 1.0
        if units.kind == "regression":
            y = units.y[train]
            middle = float(y.mean())
            spread = float(y.std()) or 1.0
        return cls(
            units.kind, units.classes, able.left_out, able.enough, able.notes, middle, spread
        )

    def to_about(self) -> dict[str, Any]:
        """Return what outputs stand for as a filed head says it."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            "left_out": self.left_out,
            "middle": self.middle,
            "spread": self.spread,
        }

    @classmethod
    def of_about(cls, about: Mapping[str, Any]) -> Objective:
        """Return what `to_about` told."""
        return cls(
            kind=about["kind"],
            classes=tuple(about["classes"]),
            left_out=list(about["left_out"]),
            enough=True,
            notes=[],
            middle=float(about["middle"]),
            spread=float(about["spread"]),
        )

    @property
    def outputs(self) -> int:
        """The number o of outputs."""
        return 1 if self.kind in ("binary", "regression") else len(self.classes)

    def targets(self, truth: Truth) -> Targets:
        """Return what is to be learnt of n units."""
        if self.kind == "regression":
            scaled = (truth.y - self.middle) / self.spread
            y = torch.from_numpy(scaled).float()[:, None]
            return Targets(y, torch.ones_like(y), self.kind)
        # Of two classes the second, the positive one, is learnt alone.
        first = 1 if self.kind == "binary" else 0
        y = torch.from_numpy(truth.indicator[:, first:]).float()
        known = torch.from_numpy(truth.known[:, first:]).float()
        return Targets(y, known, self.kind)

    def decode(self, outputs: Tensor) -> Proba:
        """Return what outputs (b, o) stand for: the probabilities (b, c), or the number (b, 1).

        NaN for the labels, zero for the classes, left out.
        """
        # In float64, so that probabilities near 0 and 1 keep their order.
        outputs = outputs.double().cpu()
        match self.kind:
            case "regression":
                return np.asarray(outputs * self.spread + self.middle)
            case "multiclass":
                without = torch.tensor([name in self.left_out for name in self.classes])
                masked = outputs.masked_fill(without, -torch.inf)
                return np.asarray(torch.softmax(masked, dim=1))
            case "binary":
                positive = torch.sigmoid(outputs).numpy()
                return np.concatenate([1 - positive, positive], axis=1)
            case _:
                proba = torch.sigmoid(outputs).numpy()
                without_model = np.isin(self.classes, self.left_out)
                proba[:, without_model] = np.nan
                return np.asarray(proba)


@dataclass(frozen=True)
class Targets:
    """y (n, o): 0 or 1, or a number; known (n, o): whether it counts."""

    y: Tensor
    known: Tensor
    kind: Kind

    def loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the mean over the b units `rows`, on the device of their outputs (b, o).

        The cross-entropy of exclusive classes, else the binary ones summed over outputs. Of a
        number Huber's loss (Ann. Math. Statist. 35 (1964)): its slope is bounded as theirs is, so
        that the same learning rates hold.
        """
        y = self.y[rows].to(outputs.device)
        match self.kind:
            case "multiclass":
                return functional.cross_entropy(outputs, y)
            case "regression":
                return functional.huber_loss(outputs, y)
            case _:
                known = self.known[rows].to(outputs.device)
                each = functional.binary_cross_entropy_with_logits(outputs, y, reduction="none")
                return (each * known).sum(dim=1).mean()
