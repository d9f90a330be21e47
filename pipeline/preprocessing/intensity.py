"""Pixels to grey in [0, 1]: the intensity rules, for slices of one shape at once. Private.

Everything is computed where the pixels are, and on a GPU nothing waits for it: ranges stay on the
device as (b, 1, 1) float64, and numbers that a slice brings along are copied without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.recipe import FileWindow, Intensity, MinMax, Percentiles, Window, Windows, ZScore
from pipeline.types import Slice, Voi

Bound = float | Tensor
# Values that are scaled at once on a CPU: they stay in its caches from step to step (1024 px slices
# in half the time, measured).
_BLOCK = 2**17


def apply_intensity(stored: Tensor, rule: Intensity, items: Sequence[Slice]) -> Tensor:
    """Return (b, 1 or 3, H, W) in [0, 1]; padding (NaN) is 0, infinities are the ends.

    stored (b, H, W): the pixels of the items, of which each has a finite one; float32, or integers.
    The items bring their files' windows, all of one kind, and the ends of their volumes, which a
    rule of scope `volume` must have. Raises ValueError.
    """
    match rule:
        case Percentiles(scope="volume") | ZScore(scope="volume"):
            return ramp(stored, *_ends(items, rule, stored.device))[:, None]
        case Windows():
            windows = rule.red, rule.green, rule.blue
            return torch.stack([ramp(stored, window.low, window.high) for window in windows], 1)
        case Window():
            return ramp(stored, rule.low, rule.high)[:, None]
        case FileWindow() if items[0].voi is not None:
            return _apply_vois(stored, [item.voi for item in items if item.voi])[:, None]
        case FileWindow() | MinMax():
            return ramp(stored, *extremes(stored))[:, None]
        case Percentiles():
            return ramp(stored, *percentiles(stored, (rule.low, rule.high)))[:, None]
        case ZScore():
            mean, std = mean_and_std(stored)
            return ramp(stored, mean - rule.clip * std, mean + rule.clip * std)[:, None]


def ramp(stored: Tensor, low: Bound, high: Bound) -> Tensor:
    """Return pixels (b, H, W) with low -> 0 and high -> 1, clipped; zeros where low is not below.

    On a CPU some rows after the others go through all steps, as many as its caches hold.
    """
    # Quarters, which are exact: the difference of two float32 may lie beyond float32.
    start, span = low / 4, high / 4 - low / 4
    grey = torch.empty(stored.shape, device=stored.device)
    rows, out = stored.flatten(0, 1), grey.flatten(0, 1)
    most = len(rows) if stored.is_cuda else max(1, _BLOCK // stored.shape[2])
    for first in range(0, len(rows), most):
        at = slice(first, first + most)
        some = out[at].copy_(rows[at]).mul_(0.25)
        some.sub_(_of_rows(start, stored, at)).div_(_of_rows(span, stored, at))
        some.clamp_(0.0, 1.0).nan_to_num_(0.0)
    rising = high > low
    return torch.where(rising, grey, 0.0) if isinstance(rising, Tensor) else grey


def _of_rows(bound: Bound, stored: Tensor, rows: slice) -> Bound:
    """Return a bound of each slice (b, 1, 1) for some rows of all slices, (n, 1) float32."""
    if not isinstance(bound, Tensor):
        return bound
    return bound.float().expand(*stored.shape[:2], 1).flatten(0, 1)[rows]


def extremes(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest finite value of each slice (b, H, W), each (b, 1, 1)."""
    low = high = stored
    if stored.is_floating_point():
        finite = torch.isfinite(stored)
        low, high = (torch.where(finite, stored, end) for end in (math.inf, -math.inf))
    elif stored.dtype == torch.uint16:  # which has no amin
        low = high = stored.to(torch.int32)
    return low.amin((1, 2), keepdim=True).double(), high.amax((1, 2), keepdim=True).double()


def percentiles(stored: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Return percentiles of the finite values of (b, H, W), each (b, 1, 1) float64.

    Linear between neighbours, as in NumPy.
    """
    if stored.is_cuda:
        return sorted_percentiles(stored.float(), percents)
    found = [_partitioned_percentiles(one.reshape(-1), percents) for one in stored]
    return [
        torch.tensor(column, dtype=torch.float64)[:, None, None]
        for column in zip(*found, strict=True)
    ]


def _partitioned_percentiles(values: Tensor, percents: Sequence[float]) -> list[float]:
    """Return percentiles of one slice's values, several times faster than by sorting them."""
    known = values[torch.isfinite(values)] if values.is_floating_point() else values
    places = [percent / 100 * (len(known) - 1) for percent in percents]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    ordered = np.partition(known.numpy(), ranks)
    low = [float(ordered[math.floor(place)]) for place in places]
    high = [float(ordered[math.ceil(place)]) for place in places]
    return [a + (b - a) * (place % 1) for a, b, place in zip(low, high, places, strict=True)]


def sorted_percentiles(pixels: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Return what `percentiles` does, all slices at once: the way of a GPU."""
    flat = pixels.flatten(1)
    finite = torch.isfinite(flat)
    ordered = torch.where(finite, flat, math.inf).sort(1).values
    last = finite.sum(1, keepdim=True).double() - 1
    found = []
    for percent in percents:
        place = percent / 100 * last
        low, high = (ordered.gather(1, at.long()).double() for at in (place.floor(), place.ceil()))
        found.append((low + (high - low) * (place % 1))[:, :, None])
    return found


def mean_and_std(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the finite values of (b, H, W), each (b, 1, 1)."""
    pixels = stored.double()
    finite = torch.isfinite(pixels)
    count = finite.sum((1, 2), keepdim=True)
    mean = torch.where(finite, pixels, 0.0).sum((1, 2), keepdim=True) / count
    squares = torch.where(finite, pixels - mean, 0.0).square_()
    return mean, (squares.sum((1, 2), keepdim=True) / count).sqrt()


def _ends(items: Sequence[Slice], rule: Intensity, device: torch.device) -> tuple[Tensor, Tensor]:
    ends = [item.ends for item in items if item.ends is not None]
    if len(ends) < len(items):
        raise ValueError(
            f"ends must be those of the volume for {rule!r}. Got None instead; take a rule of "
            "scope 'slice' for a slice by itself."
        )
    return _column([low for low, _ in ends], device), _column([high for _, high in ends], device)


def _apply_vois(stored: Tensor, vois: Sequence[Voi]) -> Tensor:
    """Return pixels through their files' own windows or tables (PS3.3 C.11.2)."""
    low = _column([voi.low for voi in vois], stored.device)
    high = _column([voi.high for voi in vois], stored.device)
    if vois[0].shape == "linear":
        return ramp(stored, low, high)
    pixels = stored.float()
    if vois[0].shape == "sigmoid":
        middle, width = (low + high) / 2, high - low
        grey = torch.sigmoid(4.0 * (pixels.double() - middle) / width).float()
    else:
        tables = [torch.tensor(voi.table, device=pixels.device) for voi in vois]
        places = ramp(pixels, low, high)
        grey = torch.stack(
            [
                table[(place * (len(table) - 1)).round().long()]
                for table, place in zip(tables, places, strict=True)
            ]
        )
    return torch.where(pixels.isnan(), 0.0, grey)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers, one a slice, as (b, 1, 1) float64 on the device."""
    column = torch.tensor(values, dtype=torch.float64)[:, None, None]
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column
