"""What settings are made of. Apart from the types that reading processes need: pydantic is slow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A validated, immutable settings object that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
