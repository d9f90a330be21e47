"""A transformer over a unit's slices and where each lies: the Medical Slice Transformer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.evaluation.heads.contract import Head, deferred
from pipeline.evaluation.heads.slice_settings import SliceSettings


class TransformerSettings(SliceSettings):
    """A transformer over a unit's slices and where each lies along its volume, trained by AdamW.

    width: numbers that a slice's features are brought to before it. layers, heads: of the
    transformer.
    """

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    layers: Annotated[int, Field(ge=1)] = 1
    heads: Annotated[int, Field(ge=1)] = 4


HEAD = Head(
    name="transformer",
    title="Transformer over slices",
    settings=TransformerSettings,
    contract=1,
    fit=deferred("pipeline.evaluation.heads.transformer_fit.fit"),
    predict=deferred("pipeline.evaluation.heads.over_slices.predict"),
    to_state=deferred("pipeline.evaluation.heads.over_slices.to_state"),
    from_state=deferred("pipeline.evaluation.heads.transformer_fit.from_state"),
    sees="slices",
)
