"""What each feature set is made of: outputs of a network, of so many of its last blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.config.regions import RegionFeatures
from pipeline.config.tasks import COLUMNS, FeatureSet, SliceFeatures
from pipeline.recipe import Output


@dataclass(frozen=True)
class MadeOf:
    """Outputs that a feature set is made of, and CLS tokens of how many of the last blocks."""

    outputs: tuple[Output, ...]
    blocks: int = 1

    @property
    def mean(self) -> bool:
        """Whether the mean patch token stands behind the CLS tokens."""
        return "mean" in self.outputs

    @property
    def tokens(self) -> int:
        """How many tokens stand side by side."""
        return self.blocks + self.mean


_MADE_OF: dict[str, MadeOf] = {
    "cls": MadeOf(("cls",)),
    "cls+mean": MadeOf(("cls", "mean")),
    "cls4": MadeOf(("cls",), blocks=4),
    "cls4+mean": MadeOf(("cls", "mean"), blocks=4),
    "volume": MadeOf(("volume",)),
    COLUMNS: MadeOf(("cls",)),  # which tells units that are copies of each other
    "patch": MadeOf(("patch",)),
    **dict.fromkeys(get_args(RegionFeatures), MadeOf(("patch",))),
}


def made_of(which: FeatureSet | RegionFeatures | Literal["patch"]) -> MadeOf:
    """Return what a feature set is made of, the columns beside it left out."""
    return _MADE_OF[which.removesuffix(f"+{COLUMNS}")]


def are_kept(which: FeatureSet | RegionFeatures, outputs: Collection[Output], blocks: int) -> bool:
    """Return whether some outputs, of so many blocks, have what a feature set is made of."""
    made = made_of(which)
    return set(made.outputs) <= set(outputs) and made.blocks <= blocks


def kept_features(outputs: Collection[Output], blocks: int) -> list[SliceFeatures]:
    """Return the feature sets of slices that some outputs, of so many blocks, have."""
    return [each for each in get_args(SliceFeatures) if are_kept(each, outputs, blocks)]
