"""Gated attention over a unit's slices, learnt with the head: which slices matter is not given."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.evaluation.heads.contract import Head, deferred
from pipeline.evaluation.heads.slice_settings import SliceSettings


class AttentionSettings(SliceSettings):
    """Gated attention over a unit's slices, trained by AdamW.

    hidden: numbers between a slice's features and its weight.
    """

    hidden: Annotated[int, Field(ge=1)] = 128


HEAD = Head(
    name="attention",
    title="Attention over slices",
    settings=AttentionSettings,
    contract=10,
    fit=deferred("pipeline.evaluation.heads.attention_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.over_slices.predict"),
    to_state=deferred("pipeline.evaluation.heads.over_slices.to_state"),
    from_state=deferred("pipeline.evaluation.heads.attention_fit.from_state"),
    sees="slices",
)
