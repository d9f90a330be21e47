"""Masks in pictures (PNG, TIFF, BMP), as planes of label values. JPEG alters values: not here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.mask_types import Values
from pipeline.io.decode import read_headers
from pipeline.io.formats.raster import stored_pages
from stores.errors import UnreadableError


def planes(path: Path) -> Iterator[Values]:
    """Yield the label values (H, W) of each page. Raises UnreadableError."""
    read_headers(path)  # whose sizes are checked against the limits there
    for values in stored_pages(path):
        yield _indices(values)


def _indices(values: NDArray[Any]) -> Values:
    """Return label values (H, W); colours whose channels are equal are one value."""
    if values.ndim == 3:
        # Without the alpha channel of LA and RGBA.
        opaque = values[..., :-1] if values.shape[2] in (2, 4) else values
        if (opaque != opaque[..., :1]).any():
            raise UnreadableError(
                "unsupported", "is a coloured picture: save label values as grey or as a palette"
            )
        values = opaque[..., 0]
    return values.astype(np.int64)
