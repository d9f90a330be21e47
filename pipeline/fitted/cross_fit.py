"""What a head says of train and val by models that have not seen the patient: cross-fitting.

Where val is small, what makes probabilities right is learnt from all that the model knows, as
scikit-learn's `CalibratedClassifierCV(ensemble=False)` does it: each fold of patients is predicted
by a head that is fitted, with the setting that was chosen for the model, on the others alone. Dims:
v units of train and val, c classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Prediction, Truth
from pipeline.evaluation.cases import Cases, slices_of
from pipeline.evaluation.folds import place_of_chosen
from pipeline.evaluation.heads.contract import FitInput, Head, fit_and_predict
from pipeline.evaluation.pooling import fit_scaling
from pipeline.evaluation.splits import Parts
from pipeline.evaluation.stratify import folds_by_label
from pipeline.shared.arrays import Floats

# Each is told by a head of the others, of which one is what the head takes for val.
FOLDS = 5


@dataclass(frozen=True)
class CrossFitted:
    """What is true of the units of train and val, and what was said of them (v, c)."""

    truth: Truth
    proba: NDArray[np.float64]


def cross_fitted(
    cases: Cases,
    head: Head[Any, Any],
    raw_by: Callable[[Parts], Floats],
    given: FitInput[Any],
    setting: dict[str, float],
) -> CrossFitted | None:
    """Return what a head says of train and val by folds of patients.

    raw_by: the features that it sees, not scaled, by who trains; given: what the model was fitted
    on; setting: which of the head's was chosen then. A head that finds another by itself, such as
    the epochs that val ends, is taken as it is. None where a fold cannot be told by the others.
    """
    settings = given.settings.chosen(setting)
    units = given.units
    both = given.train_and_val
    truth = units.at(both)
    names, fold_of = folds_by_label(truth, FOLDS, cases.config.split.seed, cases.keys[both])
    fold = fold_of[np.searchsorted(names, truth.groups)]
    proba = np.full((len(both), len(units.classes)), np.nan)
    for i in range(FOLDS):
        # The next fold is val, since heads end their training by one.
        is_test = fold == i
        is_val = fold == (i + 1) % FOLDS
        parts: Parts = {
            "train": both[~is_test & ~is_val],
            "val": both[is_val],
            "test": both[is_test],
        }
        if not all(map(len, parts.values())):
            return None
        fit_on = parts["train"] if head.sees == "units" else slices_of(units, parts["train"])
        # Scaled anew by those who train in this fold: the rest would leak into it.
        raw = raw_by(parts)
        scaling = fit_scaling(raw, fit_on, settings.scaling, settings.components)
        x = scaling.apply(raw)
        predicted = fit_and_predict(head, x, units, parts, settings, given.device, given.others)
        predictions = list(predicted.predictions)
        if not predictions:
            return None
        proba[is_test] = _of_setting(predictions, setting).proba
    return CrossFitted(truth, proba)


def _of_setting(predictions: list[Prediction], setting: dict[str, float]) -> Prediction:
    for prediction in predictions:
        if prediction.setting == setting:
            return prediction
    return predictions[place_of_chosen(predictions)]
