"""A small network on frozen features: one hidden layer, where a plane does not part the classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import FeatureSet, Scaling
from pipeline.evaluation.heads.contract import Head, deferred


class MlpSettings(HeadSettings):
    """A perceptron of one hidden layer (GELU, dropout), by AdamW.

    hidden: its width. decays: weight decays, of which val chooses one, as it chooses after which
    epoch it ends; the network is then trained anew on train and val, so far. rate: of learning.
    epochs: at most. batch: units a step. dropout: of hidden values. seed: of what is drawn.
    """

    features: FeatureSet = "cls+mean"
    scaling: Scaling = "standardise"
    hidden: Annotated[int, Field(ge=1)] = 256
    decays: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (
        0.01,
        0.1,
        1.0,
    )
    rate: Annotated[float, Field(gt=0)] = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 64
    seed: int = 0


HEAD = Head(
    name="mlp",
    title="Perceptron",
    settings=MlpSettings,
    contract=1,
    fit=deferred("pipeline.evaluation.heads.mlp_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.mlp_fit.predict"),
    to_state=deferred("pipeline.evaluation.heads.mlp_fit.to_state"),
    from_state=deferred("pipeline.evaluation.heads.mlp_fit.from_state"),
)
