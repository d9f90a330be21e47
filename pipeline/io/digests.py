"""Digests of pixels, and the type they travel in."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """Return the sha256 of a slice's shape and float32 values: equal pictures, equal digests."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels, dtype="<f4").data)
    return digest.hexdigest()


def narrow(pixels: NDArray[np.float32]) -> NDArray[Any]:
    """Return pixels as the narrowest of uint8, int16 and uint16 that holds the same numbers.

    What most files hold: a quarter or half of the bytes to pass between processes and to a GPU.
    """
    low = float(pixels.min())  # NaN where a pixel is: no type has room
    high = float(pixels.max())
    for dtype in (np.uint8, np.int16, np.uint16):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            integers = pixels.astype(dtype)
            return integers if np.array_equal(integers, pixels) else pixels
    return pixels
