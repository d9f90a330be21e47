"""The same slice seen otherwise: what another scan, viewer or archive might have made of it.

Pure functions on pixels (H, W), each of the slice alone, but for a thicker one.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import ViewName
from pipeline.types import Slice

Pixels = NDArray[np.float32]

# Of the slice's range, from the 1st percentile to the 99th.
NOISE = 0.02
SHIFT = 0.05
DEGREES = 5
QUALITY = 50


def viewed(item: Slice, view: ViewName) -> Slice:
    """Return a slice with its pixels as a view has them, float32, padding at the darkest value.

    The slice has a finite pixel. One that is to be thicker is already (see `thickened`).
    """
    if view in ("none", "thick"):
        return item
    pixels = np.asarray(item.pixels, np.float32)
    known = np.isfinite(pixels)
    darkest = pixels[known].min()
    filled = np.where(known, pixels, darkest)
    return replace(item, pixels=_CHANGES[view](filled))


def thickened(item: Slice, neighbours: Sequence[Slice]) -> Slice:
    """Return a slice as one of its own thickness and its neighbours' would show: the mean, float32.

    Of the pixels that are no padding, and of neighbours of its shape.
    """
    layers = [np.asarray(item.pixels, np.float32)]
    for neighbour in neighbours:
        if neighbour.pixels.shape == item.pixels.shape:
            layers.append(np.asarray(neighbour.pixels, np.float32))
    stack = np.stack(layers)
    known = np.isfinite(stack)
    sums = np.where(known, stack, 0).sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # where all are padding: 0 / 0 is NaN, which is padding
        mean = sums / known.sum(axis=0)
    return replace(item, pixels=mean.astype(np.float32))


def _range(pixels: Pixels) -> float:
    """Return how far apart the 1st and the 99th percentile are."""
    low, high = np.quantile(pixels, [0.01, 0.99])
    return float(high - low) or float(np.ptp(pixels)) or 1.0


def _noise(pixels: Pixels) -> Pixels:
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))  # the same for the same slice
    deviation = NOISE * _range(pixels)
    noise = rng.normal(0, deviation, pixels.shape)
    return (pixels + noise).astype(np.float32)


def _shift(pixels: Pixels) -> Pixels:
    return pixels + np.float32(SHIFT * _range(pixels))


def _turn(pixels: Pixels) -> Pixels:
    from scipy import ndimage

    turned: Pixels = ndimage.rotate(pixels, DEGREES, reshape=False, order=1, mode="nearest")
    return turned


def _jpeg(pixels: Pixels) -> Pixels:
    from PIL import Image

    low = float(pixels.min())
    high = float(pixels.max())
    scale = (high - low) / 255 or 1.0
    steps = (pixels - low) / scale
    grey = steps.round().astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(grey).save(sink, "JPEG", quality=QUALITY)
    with Image.open(sink, formats=("JPEG",)) as image:
        decoded = np.asarray(image, np.float32)
    return (decoded * scale + low).astype(np.float32)


_CHANGES: dict[ViewName, Callable[[Pixels], Pixels]] = {
    "noise": _noise,
    "shift": _shift,
    "turn": _turn,
    "jpeg": _jpeg,
}
# What each is, in words: of a slice alone, and of all.
OF_A_SLICE: dict[ViewName, str] = {
    "noise": f"noise of {100 * NOISE:.0f} % of the range",
    "shift": f"shift by {100 * SHIFT:.0f} % of the range",
    "turn": f"turn by {DEGREES} degrees",
    "jpeg": f"JPEG of quality {QUALITY}",
}
VIEWS = OF_A_SLICE | {"thick": "three slices as one"}
