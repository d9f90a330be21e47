"""Attention over a unit's slices, learnt with the head: which slices matter is not given."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.evaluation.heads.contract import Head, deferred
from pipeline.evaluation.heads.slice_settings import SliceSettings


class AttentionSettings(SliceSettings):
    """Attention over a unit's slices by the evidence of each, trained by AdamW.

    hidden: gated numbers between a slice's features and its evidence.
    """

    hidden: Annotated[int, Field(ge=1)] = 128


HEAD = Head(
    name="attention",
    title="Attention over slices",
    settings=AttentionSettings,
    contract=11,
    fit=deferred("pipeline.evaluation.heads.attention_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.over_slices.predict"),
    to_state=deferred("pipeline.evaluation.heads.over_slices.to_state"),
    from_state=deferred("pipeline.evaluation.heads.attention_fit.from_state"),
    sees="slices",
)
