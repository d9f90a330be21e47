"""A fitted probe as arrays, and what it says of units, by numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Units
from pipeline.evaluation.heads.contract import Floats, HeadState, Predictor
from pipeline.evaluation.heads.ridge import RidgePath
from pipeline.shared.arrays import softmax, take_scaled

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticProblem:
    """One fitted logistic regression: coef (1 or k, d), intercept (1 or k,), in its own dtype.

    classes (k,): the numbers of the classes that it was fitted on; label: which label it is of,
    None where classes exclude each other.
    """

    coef: NDArray[np.floating]
    intercept: NDArray[np.floating]
    classes: NDArray[np.int64]
    label: int | None

    def proba(self, x: Floats, c: int) -> Doubles:
        """Return the probabilities (q, c) of centred and scaled features x (q, d)."""
        inside = x.astype(self.coef.dtype, copy=False)
        logits = np.asarray(inside @ self.coef.T + self.intercept, np.float64)
        if logits.shape[1] == 1:  # of two classes the second's alone is there
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        proba = np.zeros((len(x), c))
        proba[:, self.classes] = softmax(logits)
        return proba


@dataclass(frozen=True)
class LogisticState:
    """Fitted logistic regressions of c classes, or one a label, on features that are scaled first.

    centre (d,), spread: as `pipeline.shared.arrays.moments` has them of the fitted units.
    """

    centre: Doubles
    spread: float
    problems: Sequence[LogisticProblem]
    c: int

    def predict(self, x: Floats) -> Doubles:
        """Return the probabilities (q, c) of x (q, d), NaN for labels without a model."""
        inside = take_scaled(x, np.arange(len(x)), self.centre, self.spread)
        joint = np.full((len(x), self.c), np.nan)
        for problem in self.problems:
            if problem.label is None:
                return problem.proba(inside, self.c)
            joint[:, problem.label] = problem.proba(inside, 2)[:, 1]
        return joint

    def to_state(self, setting: dict[str, float]) -> HeadState:
        """Return it as arrays."""
        arrays = {"centre": self.centre, "spread": np.array([self.spread])}
        labels = []
        for i, problem in enumerate(self.problems):
            arrays[f"coef.{i}"] = problem.coef
            arrays[f"intercept.{i}"] = problem.intercept
            arrays[f"classes.{i}"] = problem.classes
            labels.append(problem.label)
        about = {"kind": "logistic", "setting": setting, "labels": labels, "outputs": self.c}
        return HeadState(arrays, about)

    @classmethod
    def of_state(cls, state: HeadState) -> LogisticState:
        """Return what `to_state` wrote."""
        arrays = state.arrays
        problems = []
        for i, label in enumerate(state.about["labels"]):
            problem = LogisticProblem(
                coef=arrays[f"coef.{i}"],
                intercept=arrays[f"intercept.{i}"],
                classes=arrays[f"classes.{i}"],
                label=label,
            )
            problems.append(problem)
        outputs = int(state.about["outputs"])
        return cls(arrays["centre"], float(arrays["spread"][0]), problems, outputs)


def ridge_state(path: RidgePath, setting: dict[str, float]) -> HeadState:
    """Return ridge regression with one penalty as arrays."""
    arrays = {
        "centre": path.centre,
        "middle": np.array([path.middle]),
        "weights": path.weights,
    }
    return HeadState(arrays, {"kind": "ridge", "setting": setting})


def from_state(state: HeadState) -> Predictor:
    """Return what a filed probe says of units, from their features (n, d)."""
    setting = dict(state.about["setting"])
    if state.about["kind"] == "ridge":
        arrays = state.arrays
        path = RidgePath(arrays["centre"], float(arrays["middle"][0]), arrays["weights"])

        def number(x: Floats, units: Units) -> list[Prediction]:
            return [Prediction(setting, path.predict(x, np.arange(len(x))).T)]

        return number
    logistic = LogisticState.of_state(state)

    def classes(x: Floats, units: Units) -> list[Prediction]:
        return [Prediction(setting, logistic.predict(x))]

    return classes
