"""What a mask file holds, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Header

Values = NDArray[np.int64]  # (H, W): a file's own whole numbers


@dataclass(frozen=True)
class MaskFile:
    """What a mask file holds, known without decoding it: a header a plane.

    Of a DICOM segmentation: segments (number -> label), the UIDs of the series and instances it is
    of, and, in the header of each plane, that of its own image. sparse: a slice that has no plane
    is background. is_drawn: it has contours and no planes, which become those of its images.
    """

    headers: list[Header]
    segments: dict[int, str] = field(default_factory=dict)
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    sparse: bool = False
    is_drawn: bool = False


# How far a plane, or a contour, may lie from its slice along the normal: as a part of the distance
# of planes, and in mm, where that is more.
_ALONG = 0.1
_EXACT_MM = 0.1


def tolerance_mm(positions: NDArray[np.float64]) -> float:
    """Return how far a plane may lie from its slice, by the positions (p,) of either, in mm."""
    distinct = np.unique(positions)
    if len(distinct) == 1:
        return _EXACT_MM
    apart = float(np.diff(distinct).min())
    return max(_EXACT_MM, _ALONG * apart)
