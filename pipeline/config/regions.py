"""Settings of regions: structures of masks that are cases of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from pipeline.shared.frozen import Frozen

# What tasks call the structure that a region is of, where it is a label or a subgroup.
STRUCTURE = "region.structure"
RegionPool = Literal["mean", "max", "moments", "whole", "crop"]
# The features that regions have of their own, as answers name them.
RegionFeatures = Literal["region-mean", "region-max", "region-moments"]


class RegionChoice(Frozen):
    """Which structures of which masks are cases, and how their patch tokens become one vector.

    masks: by their name in `masks`. structures: by the names that `masks` gives; unset, all of
    them. pool: of the patch tokens that a structure covers, in all slices that it is in, each
    weighted by the share of the patch: their mean; the greatest of each number, over patches that
    are covered by half or more, or where none is by the most (max); their mean and standard
    deviation (moments). Or in their place what a head's `features` say of whole slices, for
    comparison on the same cases (whole), or of crops round the structures (crop). crops: the store
    of these, which `radprobe crops` prepares.
    """

    masks: str
    structures: tuple[str, ...] = ()
    pool: RegionPool = "mean"
    crops: Path | None = None

    @model_validator(mode="after")
    def _crops_of_a_store(self) -> RegionChoice:
        if (self.pool == "crop") != (self.crops is not None):
            raise ValueError(
                "Regions are seen by crops where both `pool: crop` and `crops: STORE` say so. Got "
                f"pool {self.pool} and crops {self.crops and str(self.crops)!r} instead."
            )
        return self
