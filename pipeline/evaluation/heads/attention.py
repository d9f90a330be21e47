"""Gated attention over a unit's slices, learnt with the head: which slices matter is not given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import Scaling
from pipeline.evaluation.heads.contract import FitInput, Floats, Head, Predicted, Rows

if TYPE_CHECKING:
    from pipeline.evaluation.heads.attention_fit import Attention


class AttentionSettings(HeadSettings):
    """Gated attention over a unit's slices, trained by AdamW; `epochs` at most, as val says."""

    scaling: Scaling = "standardise"
    hidden: Annotated[int, Field(ge=1)] = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0


def fit(given: FitInput[AttentionSettings]) -> Attention:
    """Train on train, choose the number of epochs on val, train on train and val."""
    from pipeline.evaluation.heads import attention_fit

    return attention_fit.fit(given)


def predict(model: Attention, x: Floats, rows: Rows) -> Predicted:
    """Return what the network says of the units `rows`; x (m, d): of every slice."""
    return model.predict(x, rows)


HEAD = Head(
    name="attention",
    title="Attention over slices",
    settings=AttentionSettings,
    contract=5,
    fit=fit,
    predict=predict,
    sees="slices",
)
