"""Localizers told by how they lie: few slices of a series, across each other.

Most say nothing of it in their ImageType: those of MR are three short stacks of one series, those
of CT a view from the front and one from the side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Header

LOCALIZER = "localizer"
# Slices of a localizer at most, and of one of its directions.
_MOST = 60
_MOST_ALIKE = 20
# Cosines of the angles between normals: below 20 degrees they are one direction, and above 60
# degrees slices lie across each other. What turns in smaller steps is a projection, or radial.
_ALIKE = 0.94
_ACROSS = 0.5


def lie_as_localizers(headers: Sequence[Header]) -> bool:
    """Return whether slices of one series lie as a localizer's do: in two or three directions."""
    axes = [header.axes for header in headers if header.axes is not None]
    if not 2 <= len(axes) <= _MOST:
        return False
    directions: list[NDArray[np.float64]] = []
    counts: list[int] = []
    for along_and_down in axes:
        normal = np.cross(along_and_down[:3], along_and_down[3:])
        cosines = [abs(float(normal @ other)) for other in directions]
        alike = [number for number, cosine in enumerate(cosines) if cosine > _ALIKE]
        if alike:
            counts[alike[0]] += 1
        elif all(cosine < _ACROSS for cosine in cosines):
            directions.append(normal)
            counts.append(1)
        else:
            return False
    return 2 <= len(directions) <= 3 and max(counts) <= _MOST_ALIKE
