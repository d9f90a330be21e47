"""What the settings of all heads have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from pipeline.config.tasks import FeatureSet, Scaling
from pipeline.shared.frozen import Frozen


class HeadSettings(Frozen):
    """What every head has: which features it sees, and scaled how, as the train units alone say.

    features: the CLS token of the last block or of the last four, with or without the mean patch
    token; of a store of a 3D network it is `volume`, its vector, whatever is said here. With
    `+columns` behind them, or `columns` alone, those that the task names so stand beside: numbers
    with a mean of 0 and a variance of 1, the median of train for a missing one, words as a number 0
    or 1 each. scaling:
    what is done to features before a head sees them. components: how many principal components
    `whiten` keeps at most.
    """

    features: FeatureSet = "cls"
    scaling: Scaling = "none"
    components: Annotated[int, Field(ge=1)] = 256

    @property
    def built_on(self) -> tuple[str, ...]:
        """The heads that this one fits itself, whose settings an answer then depends on too."""
        return ()

    def chosen(self, setting: Mapping[str, float]) -> HeadSettings:
        """Return these with what was chosen of them alone, where fewer are then fitted.

        setting: as a prediction has it, such as {"C": 0.1}.
        """
        return self
