"""The linear heads of arXiv 2312.02366 and of DINOv2: a grid of them, one chosen on val."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import COLUMNS, FeatureSet
from pipeline.evaluation.heads.contract import Head, deferred


class LinearSettings(HeadSettings):
    """The grid of linear heads of arXiv 2312.02366, by SGD: rates times parts of the features.

    The parts of cls4+mean are CLS of the last block or of the last four, with or without the mean
    patch token. rates: learning rates; DINOv2's own are 1e-5 to 0.1 times batch / 256. epochs,
    batch: as the paper trains. seed: of the order of batches.
    """

    features: FeatureSet = "cls4+mean"
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-3,
        5e-3,
        1e-2,
        5e-2,
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    batch: Annotated[int, Field(ge=1)] = 128
    seed: int = 0

    @model_validator(mode="after")
    def _columns_stay(self) -> LinearSettings:
        if COLUMNS in self.features:
            raise ValueError(
                "The linear grid takes parts of the features, of which columns are none. Got "
                f"features {self.features!r}; take probe, or mlp."
            )
        if self.scaling == "whiten":
            raise ValueError(
                "The linear grid takes parts of the features, which whitening mixes. Set scaling "
                'to "none", "l2" or "standardise".'
            )
        return self


HEAD = Head(
    name="linear",
    title="Linear heads by SGD",
    settings=LinearSettings,
    contract=9,
    fit=deferred("pipeline.evaluation.heads.linear_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.linear_fit.predict"),
    to_state=deferred("pipeline.evaluation.heads.linear_fit.to_state"),
    from_state=deferred("pipeline.evaluation.heads.linear_fit.from_state"),
)
