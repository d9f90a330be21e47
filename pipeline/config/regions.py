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


class Boxes(Frozen):
    """Boxes of a table, each a region of its own.

    file: a CSV, .xlsx or Parquet, a row a box. key: the column with the path, under data.root, of
    its image, or of the file or folder of its volume. structure: the column that says what is in
    it; unset, each is called box. unit: of the columns x0 and x1 (across), y0 and y1 (down) and, of
    volumes, z0 and z1 (from slice to slice, in the order of their rows): voxels, counted from 0, or
    mm, both from the outside of the first voxel; or mm in coordinates of the patient, as DICOM has
    them (LPS: x to the left, y to posterior, z to superior) or as NIfTI has them (RAS: x to the
    right, y to anterior), however the volume lies on disk. A pixel is in a box where its middle is.
    """

    file: Path
    key: str = "path"
    structure: str | None = None
    unit: Literal["voxels", "mm", "LPS", "RAS"] = "voxels"


class RegionChoice(Frozen):
    """Which structures of which masks are cases, and how their patch tokens become one vector.

    masks: by their name in `masks`. boxes: in their place, by their name in `boxes`. structures: by
    the names that `masks` gives, or the table of boxes; unset, all of them. pool: of the patch
    tokens that a structure covers, in all slices that it is in, each weighted by the share of the
    patch: their mean; the greatest of each number, over patches that are covered by half or more,
    or where none is by the most (max); their mean and standard deviation (moments). Or in their
    place what a head's `features` say of whole slices, for comparison on the same cases (whole), or
    of crops round the structures (crop). crops: the store of these, which `radprobe crops`
    prepares.
    """

    masks: str | None = None
    boxes: str | None = None
    structures: tuple[str, ...] = ()
    pool: RegionPool = "mean"
    crops: Path | None = None

    @model_validator(mode="after")
    def _of_one_source(self) -> RegionChoice:
        if (self.masks is None) == (self.boxes is None):
            raise ValueError(
                "Regions are structures of masks or boxes of a table. Got masks "
                f"{self.masks!r} and boxes {self.boxes!r}; name one of both."
            )
        return self

    @property
    def name(self) -> str:
        """What the masks, or the boxes, are called."""
        return self.masks or self.boxes or ""

    @model_validator(mode="after")
    def _crops_of_a_store(self) -> RegionChoice:
        if (self.pool == "crop") != (self.crops is not None):
            raise ValueError(
                "Regions are seen by crops where both `pool: crop` and `crops: STORE` say so. Got "
                f"pool {self.pool} and crops {self.crops and str(self.crops)!r} instead."
            )
        return self
