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
    is background.
    """

    headers: list[Header]
    segments: dict[int, str] = field(default_factory=dict)
    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    sparse: bool = False
