"""Files of tests about reading, read one frame at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.io.decode import read_headers, read_slices
from pipeline.types import Failure, Slice
from stores.errors import UnreadableError

GREY = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24)


def one(path: Path, frame: int = 0, plane: str = "axial") -> np.ndarray:
    (item,) = read_slices(path, [frame], plane)
    assert isinstance(item, Slice), item
    assert item.frame == frame
    assert item.pixels.dtype == np.float32
    return item.pixels


def reason_of(path: Path) -> str | None:
    """Return why a file is refused, at its header or at its first pixels; None if it is read."""
    try:
        headers = read_headers(path)
        (item,) = read_slices(path, [headers[0].frame])
    except UnreadableError as error:
        return error.reason
    return item.reason if isinstance(item, Failure) else None
