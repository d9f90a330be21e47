"""A head as somebody would add it: the class whose mean is nearest. One module, and one line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.annotations.units import Prediction
from pipeline.config.base import HeadSettings
from pipeline.evaluation.heads.contract import FitInput, Floats, Head, Predicted, Rows


class NearestMeanSettings(HeadSettings):
    """temperature: of the softmax over distances."""

    temperature: float = 1.0


@dataclass(frozen=True)
class Means:
    """The mean features (c, d) of each class on train and val."""

    means: Floats
    temperature: float


def fit(given: FitInput[NearestMeanSettings]) -> Means:
    """Take the mean of each class."""
    rows = given.train_and_val
    carried = given.units.indicator[rows]
    means = np.stack([given.x[rows[members]].mean(axis=0) for members in carried.T])
    return Means(means, given.settings.temperature)


def predict(model: Means, x: Floats, rows: Rows) -> Predicted:
    """Return the softmax of less the distances to the means."""
    distance = np.linalg.norm(x[rows][:, None] - model.means, axis=2)
    odds = np.exp((distance.min(axis=1, keepdims=True) - distance) / model.temperature)
    proba = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float64)
    return Predicted([Prediction({"temperature": model.temperature}, proba)])


HEAD = Head(
    name="nearest_mean",
    title="Nearest class mean",
    settings=NearestMeanSettings,
    contract=1,
    fit=fit,
    predict=predict,
)
