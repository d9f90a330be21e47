"""Pixels to what a network sees: pure functions, one a step.

intensity -> [0, 1] -> crop to the body -> aspect -> bicubic resize -> clamp -> three channels ->
mean and std. Whatever is done, the numbers of a slice depend on that slice alone, so that what is
cached stays true whatever lies beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

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
    intensity_kind,
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
    items: Sequence[Slice], modalities: Sequence[str], recipe: Recipe, device: str = "cpu"
) -> Tensor:
    """Return (b, 3, S, S) float32 on `device`; slices of one shape are resized together.

    Equal to `prepare` of each slice on the CPU within 1e-5 on the CPU and 1e-3 elsewhere, where
    resampling sums in another order. Raises UnreadableError (`not-finite`).
    """
    size = recipe.image_size
    out = torch.empty((len(items), 3, size, size), dtype=torch.float32, device=device)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    scaled = []
    for i, (item, modality) in enumerate(zip(items, modalities, strict=True)):
        grey = scale(item, modality, recipe.preprocess)
        groups[grey.shape].append(i)
        scaled.append(grey)
    for members in groups.values():
        batch = torch.from_numpy(np.stack([scaled[i] for i in members])).to(device)
        out[members] = resize(batch, size).expand(-1, 3, -1, -1)
    return normalise(out, recipe.architecture)


def scale(item: Slice, modality: str, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return grey in [0, 1], (1 or 3, H', W'), cut and padded as the recipe asks, not resized.

    X-rays are scaled by their extremes here, before the resize, where the paper's code does it
    after: there, the overshoot of the bicubic kernel at one bright edge would set the contrast of
    all other pixels, and differently for each image size.
    """
    pixels = item.pixels
    if not np.isfinite(pixels).any():
        raise UnreadableError("not-finite", "the slice has no finite pixel")
    rule: Intensity = getattr(preprocess, intensity_kind(modality))
    grey = apply_intensity(pixels, rule, item.voi)
    if preprocess.crop == "body":
        rows, columns = body_box(pixels, modality)
        grey = grey[:, rows, columns]
    return reshape_to(grey, preprocess)


# --- intensity -----------------------------------------------------------------------------------


def apply_intensity(
    pixels: NDArray[np.float32], rule: Intensity, voi: Voi | None
) -> NDArray[np.float32]:
    """Return (1 or 3, H, W) in [0, 1]; padding (NaN) is 0, infinities are the ends."""
    match rule:
        case Windows():
            return np.stack(
                [ramp(pixels, w.low, w.high) for w in (rule.red, rule.green, rule.blue)]
            )
        case Window():
            return ramp(pixels, rule.low, rule.high)[None]
        case FileWindow() if voi is not None:
            return apply_voi(pixels, voi)[None]
        case FileWindow() | MinMax():
            known = pixels[np.isfinite(pixels)]
            return ramp(pixels, float(known.min()), float(known.max()))[None]
        case Percentiles():
            known = pixels[np.isfinite(pixels)]
            low, high = np.percentile(known, (rule.low, rule.high))
            return ramp(pixels, float(low), float(high))[None]
        case ZScore():
            known = pixels[np.isfinite(pixels)].astype(np.float64)
            reach = rule.clip * float(known.std())
            return ramp(pixels, float(known.mean()) - reach, float(known.mean()) + reach)[None]


def ramp(pixels: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Return pixels with low -> 0 and high -> 1, clipped; zeros where low equals high."""
    if not high > low:
        return np.zeros_like(pixels)
    # float64 for the difference: scanner units may lie beyond what float32 can subtract.
    grey = np.clip((pixels.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    return np.nan_to_num(grey, nan=0.0).astype(np.float32)


def apply_voi(pixels: NDArray[np.float32], voi: Voi) -> NDArray[np.float32]:
    """Return pixels through the file's own window or table, in [0, 1] (PS3.3 C.11.2)."""
    if voi.shape == "linear":
        return ramp(pixels, voi.low, voi.high)
    if voi.shape == "table":
        places = ramp(pixels, voi.low, voi.high) * (len(voi.table) - 1)
        grey = np.asarray(voi.table, dtype=np.float32)[np.rint(places).astype(np.intp)]
    else:
        middle, width = (voi.low + voi.high) / 2, voi.high - voi.low
        bent = np.clip(-4.0 * (pixels.astype(np.float64) - middle) / width, -700.0, 700.0)
        grey = (1.0 / (1.0 + np.exp(bent))).astype(np.float32)
    return np.where(np.isnan(pixels), np.float32(0), grey)


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


def reshape_to(grey: NDArray[np.float32], preprocess: Preprocess) -> NDArray[np.float32]:
    """Return (C, H, W) padded with black to a square, its middle square, or as it is."""
    height, width = grey.shape[1:]
    if preprocess.aspect == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        ends = (0, 0), (top, side - height - top), (left, side - width - left)
        return np.pad(grey, ends)
    if preprocess.aspect == "crop":
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
