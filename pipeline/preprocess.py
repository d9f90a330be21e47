"""Pixels to what a network sees: pure functions, one a step.

intensity -> [0, 1] -> crop to the body -> aspect -> bicubic resize -> clamp -> three channels ->
mean and std. The numbers of a slice depend on that slice alone, so that what is cached stays true
whatever lies beside it; a rule of scope `volume` makes them depend on its volume, and no further.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.types import (
    Architecture,
    FileWindow,
    Intensity,
    MinMax,
    Percentiles,
    Preprocess,
    Recipe,
    Slice,
    Voi,
    Window,
    Windows,
    ZScore,
)
from stores.errors import UnreadableError

# What is body and what is air round it: HU for CT, else a part of the slice's own range.
_BODY_HU = -500.0
_BODY_PART = 0.1


def prepare(item: Slice, modality: str, recipe: Recipe) -> Tensor:
    """Return a slice as the network wants it: float32 (3, S, S), normalised.

    Raises UnreadableError (`not-finite`) where no pixel is finite.
    """
    return prepare_batch([item], [modality], recipe)[0]


def prepare_batch(
    items: Sequence[Slice],
    modalities: Sequence[str],
    recipe: Recipe,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return (b, 3, S, S) float32 on `device`, where all is computed; one shape, one resize.

    Equal to `prepare` of each slice within 1e-5 on the CPU and 1e-3 elsewhere, where resampling
    sums in another order. Raises UnreadableError (`not-finite`).
    """
    size = recipe.image_size
    out = torch.empty((len(items), 3, size, size), device=device)
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    scaled = []
    for i, (item, modality) in enumerate(zip(items, modalities, strict=True)):
        grey = scale(item, modality, recipe.preprocess, device)
        groups[grey.shape].append(i)
        scaled.append(grey)
    for members in groups.values():
        batch = torch.stack([scaled[i] for i in members])
        out[members] = resize(batch, size).expand(-1, 3, -1, -1)
    return normalise(out, recipe.architecture)


def check(item: Slice) -> None:
    """Raise UnreadableError (`not-finite`) where a slice has no finite pixel to show."""
    if not np.isfinite(item.pixels).any():
        raise UnreadableError("not-finite", "the slice has no finite pixel")


def scale(
    item: Slice, modality: str, preprocess: Preprocess, device: str | torch.device = "cpu"
) -> Tensor:
    """Return grey in [0, 1], (1 or 3, H', W'), cut and padded as the recipe asks, not resized.

    X-rays are scaled by their extremes here, before the resize, where the paper's code does it
    after: there, the overshoot of the bicubic kernel at one bright edge would set the contrast of
    all other pixels, and differently for each image size.
    """
    check(item)
    pixels = torch.tensor(item.pixels, device=device)  # a copy: a reader's array may be read-only
    grey = apply_intensity(pixels, preprocess.rule(modality), item.voi, item.ends)
    if preprocess.crop == "body":
        rows, columns = body_box(item.pixels, modality)
        grey = grey[:, rows, columns]
    return fit_aspect(grey, preprocess.aspect)


# --- intensity -----------------------------------------------------------------------------------


def apply_intensity(
    pixels: Tensor, rule: Intensity, voi: Voi | None, ends: tuple[float, float] | None = None
) -> Tensor:
    """Return (1 or 3, H, W) in [0, 1]; padding (NaN) is 0, infinities are the ends.

    ends: of the volume, which a rule of scope `volume` must have. Raises ValueError.
    """
    match rule:
        case Percentiles(scope="volume") | ZScore(scope="volume"):
            if ends is None:
                raise ValueError(
                    f"ends must be those of the volume for {rule!r}. Got None instead; take a "
                    "rule of scope 'slice' for a slice by itself."
                )
            return ramp(pixels, *ends)[None]
        case Windows():
            windows = rule.red, rule.green, rule.blue
            return torch.stack([ramp(pixels, window.low, window.high) for window in windows])
        case Window():
            return ramp(pixels, rule.low, rule.high)[None]
        case FileWindow() if voi is not None:
            return apply_voi(pixels, voi)[None]
        case FileWindow() | MinMax():
            return ramp(pixels, *torch.aminmax(finite(pixels)))[None]
        case Percentiles():
            return ramp(pixels, *percentiles(finite(pixels), (rule.low, rule.high)))[None]
        case ZScore():
            known = finite(pixels).double()
            mean, reach = known.mean(), rule.clip * known.std(correction=0)
            return ramp(pixels, mean - reach, mean + reach)[None]


def finite(pixels: Tensor) -> Tensor:
    """Return the finite pixels, (n,)."""
    return pixels[torch.isfinite(pixels)]


def percentiles(values: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Return percentiles of (n,) values, float64, linear between neighbours as in NumPy."""
    places = [percent / 100 * (len(values) - 1) for percent in percents]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    if values.is_cuda:
        ordered = values.sort().values
    else:  # the same order statistics, several times faster than sorting
        ordered = torch.from_numpy(np.partition(values.numpy(), ranks))
    low = [ordered[math.floor(place)].double() for place in places]
    high = [ordered[math.ceil(place)].double() for place in places]
    return [a + (b - a) * (place % 1) for a, b, place in zip(low, high, places, strict=True)]


def ramp(pixels: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Return pixels with low -> 0 and high -> 1, clipped; zeros where low equals high."""
    low, high = float(low), float(high)
    if not high > low:
        return torch.zeros_like(pixels)
    # Quarters, which are exact: the difference of two float32 may lie beyond float32.
    grey = (pixels * 0.25).sub_(low / 4).div_(high / 4 - low / 4)
    return grey.clamp_(0.0, 1.0).nan_to_num_(0.0)


def apply_voi(pixels: Tensor, voi: Voi) -> Tensor:
    """Return pixels through the file's own window or table, in [0, 1] (PS3.3 C.11.2)."""
    if voi.shape == "linear":
        return ramp(pixels, voi.low, voi.high)
    if voi.shape == "table":
        table = torch.tensor(voi.table, device=pixels.device)
        places = ramp(pixels, voi.low, voi.high) * (len(table) - 1)
        grey = table[places.round().long()]
    else:
        middle, width = (voi.low + voi.high) / 2, voi.high - voi.low
        grey = torch.sigmoid(4.0 * (pixels.double() - middle) / width).float()
    return torch.where(pixels.isnan(), 0.0, grey)


# --- shape ---------------------------------------------------------------------------------------


def body_box(pixels: NDArray[np.float32], modality: str) -> tuple[slice, slice]:
    """Return rows and columns of the largest connected piece of body; all where there is none."""
    from scipy import ndimage

    known = pixels[np.isfinite(pixels)]
    low = float(known.min())
    threshold = _BODY_HU if modality == "CT" else low + _BODY_PART * (float(known.max()) - low)
    pieces, count = ndimage.label(np.nan_to_num(pixels, nan=low) > threshold)
    if not count:
        return slice(None), slice(None)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(pieces)[largest]
    return rows, columns


def fit_aspect(grey: Tensor, aspect: Literal["square", "pad", "crop"]) -> Tensor:
    """Return (C, H, W) padded with black to a square, its middle square, or as it is."""
    height, width = grey.shape[1:]
    if aspect == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        return functional.pad(grey, (left, side - width - left, top, side - height - top))
    if aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return grey[:, top : top + side, left : left + side]
    return grey


def resize(batch: Tensor, size: int) -> Tensor:
    """Return (b, C, size, size): antialiased bicubic, its overshoot clipped to [0, 1]."""
    if batch.shape[2:] != (size, size):
        batch = functional.interpolate(
            batch, (size, size), mode="bicubic", antialias=True, align_corners=False
        )
    return batch.clamp(0.0, 1.0)


def normalise(batch: Tensor, architecture: Architecture) -> Tensor:
    """Return (b, 3, S, S) less the mean and over the std that the network was trained with."""
    mean = torch.tensor(architecture.mean, device=batch.device)[:, None, None]
    std = torch.tensor(architecture.std, device=batch.device)[:, None, None]
    return (batch - mean) / std
