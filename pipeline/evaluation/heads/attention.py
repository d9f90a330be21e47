"""Gated attention over a unit's slices, learnt with the head: which slices matter is not given."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import Scaling
from pipeline.evaluation.heads.contract import Head, deferred


class AttentionSettings(HeadSettings):
    """Gated attention over a unit's slices, trained by AdamW.

    hidden: numbers between a slice's features and its weight. rate, decay: AdamW's. epochs: at
    most, as val says. batch: units a step. seed: of the first weights and the order of batches.
    """

    # Gates of tanh and sigmoid are flat for large numbers.
    scaling: Scaling = "standardise"
    hidden: Annotated[int, Field(ge=1)] = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0


HEAD = Head(
    name="attention",
    title="Attention over slices",
    settings=AttentionSettings,
    contract=9,
    fit=deferred("pipeline.evaluation.heads.attention_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.attention_fit.predict"),
    to_state=deferred("pipeline.evaluation.heads.attention_fit.to_state"),
    from_state=deferred("pipeline.evaluation.heads.attention_fit.from_state"),
    sees="slices",
)
