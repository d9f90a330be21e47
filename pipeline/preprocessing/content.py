"""What a slice shows, by its pixels alone: whether anything, and where the body is. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Slice
from stores.errors import UnreadableError

# What is body and what is air round it: HU for CT, else a part of the slice's own range.
_BODY_HU = -500.0
_BODY_PART = 0.1


def check_finite(item: Slice) -> None:
    """Raise UnreadableError (`not-finite`) where a slice has no finite pixel to show."""
    if item.pixels.dtype.kind == "f" and not np.isfinite(item.pixels).any():
        raise UnreadableError("not-finite", "the slice has no finite pixel")


def body_box(pixels: NDArray[np.float32], modality: str) -> tuple[slice, slice]:
    """Return rows and columns of the largest connected piece of body; all where there is none."""
    from scipy import ndimage  # which few recipes need

    known = pixels[np.isfinite(pixels)]
    low = float(known.min())
    span = float(known.max()) - low
    threshold = _BODY_HU if modality == "CT" else low + _BODY_PART * span
    body = np.nan_to_num(pixels, nan=low) > threshold
    pieces, count = ndimage.label(body)
    if not count:
        return slice(None), slice(None)
    sizes = np.bincount(pieces.ravel())[1:]  # without what is no body
    largest = int(sizes.argmax())
    rows, columns = ndimage.find_objects(pieces)[largest]
    return rows, columns
