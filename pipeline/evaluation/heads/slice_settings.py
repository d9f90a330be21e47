"""What the settings of all heads have that learn from a unit's slices by gradient."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import HeadSettings
from pipeline.config.tasks import Scaling


class SliceSettings(HeadSettings):
    """How a network over a unit's slices is trained, by AdamW.

    rate, decay: AdamW's. epochs: at most, as val says. batch: units a step. seed: of the first
    weights and the order of batches.
    """

    # Gates of tanh and sigmoid, and the products of attention, are flat for large numbers.
    scaling: Scaling = "standardise"
    rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(ge=0)] = 1e-2
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 16
    seed: int = 0
