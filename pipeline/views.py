"""The same slice seen otherwise: what another scan, viewer or archive might have made of it.

Pure functions on pixels (H, W), each a function of the slice alone.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.types import Slice, ViewName

Pixels = NDArray[np.float32]

# Of the slice's range, from the 1st percentile to the 99th.
NOISE, SHIFT = 0.02, 0.05
DEGREES = 5
QUALITY = 50


def viewed(item: Slice, view: ViewName) -> Slice:
    """Return a slice with its pixels as a view has them, float32, padding at the darkest value.

    The slice has a finite pixel.
    """
    if view == "none":
        return item
    pixels = np.asarray(item.pixels, np.float32)
    known = np.isfinite(pixels)
    filled = np.where(known, pixels, pixels[known].min())
    return replace(item, pixels=_CHANGES[view](filled))


def _range(pixels: Pixels) -> float:
    """Return how far apart the 1st and the 99th percentile are."""
    low, high = np.quantile(pixels, [0.01, 0.99])
    return float(high - low) or float(np.ptp(pixels)) or 1.0


def _noise(pixels: Pixels) -> Pixels:
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))  # the same for the same slice
    noise = rng.normal(0, NOISE * _range(pixels), pixels.shape)
    return (pixels + noise).astype(np.float32)


def _shift(pixels: Pixels) -> Pixels:
    return pixels + np.float32(SHIFT * _range(pixels))


def _turn(pixels: Pixels) -> Pixels:
    from scipy import ndimage

    turned: Pixels = ndimage.rotate(pixels, DEGREES, reshape=False, order=1, mode="nearest")
    return turned


def _jpeg(pixels: Pixels) -> Pixels:
    low, high = float(pixels.min()), float(pixels.max())
    scale = (high - low) / 255 or 1.0
    grey = ((pixels - low) / scale).round().astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(grey).save(sink, "JPEG", quality=QUALITY)
    with Image.open(sink, formats=("JPEG",)) as image:
        return (np.asarray(image, np.float32) * scale + low).astype(np.float32)


_CHANGES: dict[ViewName, Callable[[Pixels], Pixels]] = {
    "noise": _noise,
    "shift": _shift,
    "turn": _turn,
    "jpeg": _jpeg,
}
# What each is, in words.
VIEWS: dict[ViewName, str] = {
    "noise": f"noise of {100 * NOISE:.0f} % of the range",
    "shift": f"shift by {100 * SHIFT:.0f} % of the range",
    "turn": f"turn by {DEGREES} degrees",
    "jpeg": f"JPEG of quality {QUALITY}",
}
