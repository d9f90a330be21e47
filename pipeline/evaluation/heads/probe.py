"""The linear probe: logistic regression on frozen features, for a number ridge regression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import FeatureSet
from pipeline.evaluation.heads.contract import Head, deferred


class ProbeSettings(HeadSettings):
    """Logistic regression; of a number, ridge with the penalty alpha = 1 / C.

    low, high, steps: C is chosen on val from 10^linspace(low, high, steps).
    """

    features: FeatureSet = "cls+mean"
    low: float = -6
    high: float = 5
    steps: Annotated[int, Field(ge=1)] = 45

    def chosen(self, setting: Mapping[str, float]) -> ProbeSettings:
        """Return these with one C alone."""
        c = setting["C"] if "C" in setting else 1 / setting["alpha"]
        power = math.log10(c)
        return self.model_copy(update={"low": power, "high": power, "steps": 1})


HEAD = Head(
    name="probe",
    title="Linear probe",
    settings=ProbeSettings,
    contract=12,
    fit=deferred("pipeline.evaluation.heads.probe_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.probe_fit.predict"),
    to_state=deferred("pipeline.evaluation.heads.probe_fit.to_state"),
    # Without scikit-learn: what predicts is a product and a softmax.
    from_state=deferred("pipeline.evaluation.heads.probe_state.from_state"),
)
