"""Pixels to grey in [0, 1]: the intensity rules, for slices of one shape at once.

Everything is computed where the pixels are, and on a GPU nothing waits for it: ranges stay on the
device as (b, 1, 1) float64, and numbers that a slice brings along are copied without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.recipe import (
    FileWindow,
    Intensity,
    MinMax,
    Percentiles,
    Window,
    Windows,
    ZScore,
    of_volume,
)
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
    channels = _channels(stored, rule, items)
    if len(channels) > 1:
        return torch.stack(channels, 1)
    return channels[0][:, None]  # a view, where stacking would copy


def _channels(stored: Tensor, rule: Intensity, items: Sequence[Slice]) -> list[Tensor]:
    """Return one or three channels (b, H, W) in [0, 1]. What a new rule does is a case here."""
    if of_volume(rule):
        low, high = _ends(items, rule, stored.device)
        return [ramp(stored, low, high)]
    match rule:
        case Window():
            return [ramp(stored, rule.low, rule.high)]
        case Windows():
            windows = (rule.red, rule.green, rule.blue)
            return [ramp(stored, window.low, window.high) for window in windows]
        case FileWindow():
            return [_by_file(stored, items)]
        case MinMax():
            low, high = extremes(stored)
            return [ramp(stored, low, high)]
        case Percentiles():
            low, high = percentiles(stored, (rule.low, rule.high))
            return [ramp(stored, low, high)]
        case ZScore():
            mean, std = mean_and_std(stored)
            reach = rule.clip * std
            return [ramp(stored, mean - reach, mean + reach)]


def ramp(stored: Tensor, low: Bound, high: Bound) -> Tensor:
    """Return pixels (b, H, W) with low -> 0 and high -> 1, clipped; zeros where low is not below.

    On a CPU some rows after the others go through all steps, as many as its caches hold.
    """
    # Quarters, which are exact: the difference of two float32 may lie beyond float32.
    start = low / 4
    span = high / 4 - low / 4
    grey = torch.empty(stored.shape, device=stored.device)
    rows_in = stored.flatten(0, 1)
    rows_out = grey.flatten(0, 1)  # a view: what is written to it is in `grey`
    most = len(rows_in)
    if not stored.is_cuda:
        most = max(1, _BLOCK // stored.shape[2])
    for first in range(0, len(rows_in), most):
        rows = slice(first, first + most)
        some = rows_out[rows].copy_(rows_in[rows]).mul_(0.25)
        some.sub_(_of_rows(start, stored, rows)).div_(_of_rows(span, stored, rows))
        some.clamp_(0.0, 1.0).nan_to_num_(0.0)
    rising = high > low
    return torch.where(rising, grey, 0.0) if isinstance(rising, Tensor) else grey


def _of_rows(bound: Bound, stored: Tensor, rows: slice) -> Bound:
    """Return a bound of each slice (b, 1, 1) for some rows of all slices, (n, 1) float32."""
    if not isinstance(bound, Tensor):
        return bound
    slices, height, _ = stored.shape
    by_row = bound.float().expand(slices, height, 1)
    return by_row.flatten(0, 1)[rows]


def extremes(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest finite value of each slice (b, H, W), each (b, 1, 1)."""
    low = high = stored
    if stored.is_floating_point():
        finite = torch.isfinite(stored)
        low = torch.where(finite, stored, math.inf)
        high = torch.where(finite, stored, -math.inf)
    elif stored.dtype == torch.uint16:  # which has no amin
        low = high = stored.to(torch.int32)
    lowest = low.amin((1, 2), keepdim=True).double()
    highest = high.amax((1, 2), keepdim=True).double()
    return lowest, highest


def percentiles(stored: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Return percentiles of the finite values of (b, H, W), each (b, 1, 1) float64.

    Linear between neighbours, as in NumPy.
    """
    if stored.is_cuda:
        return sorted_percentiles(stored.float(), percents)
    by_slice = [_partitioned_percentiles(one.reshape(-1), percents) for one in stored]
    by_percent = zip(*by_slice, strict=True)
    return [torch.tensor(values, dtype=torch.float64)[:, None, None] for values in by_percent]


def _partitioned_percentiles(values: Tensor, percents: Sequence[float]) -> list[float]:
    """Return percentiles of one slice's values, several times faster than by sorting them."""
    known = values
    if values.is_floating_point():
        known = values[torch.isfinite(values)]
    last = len(known) - 1
    places = [percent / 100 * last for percent in percents]
    ranks: set[int] = set()
    for place in places:
        ranks |= {math.floor(place), math.ceil(place)}
    ordered = np.partition(known.numpy(), sorted(ranks))
    at_percents = []
    for place in places:
        below = float(ordered[math.floor(place)])
        above = float(ordered[math.ceil(place)])
        at_percents.append(below + (above - below) * (place % 1))
    return at_percents


def sorted_percentiles(pixels: Tensor, percents: Sequence[float]) -> list[Tensor]:
    """Return what `percentiles` does, all slices at once: the way of a GPU."""
    flat = pixels.flatten(1)
    finite = torch.isfinite(flat)
    ordered = torch.where(finite, flat, math.inf).sort(1).values
    last = finite.sum(1, keepdim=True).double() - 1
    values = []
    for percent in percents:
        place = percent / 100 * last
        below = ordered.gather(1, place.floor().long()).double()
        above = ordered.gather(1, place.ceil().long()).double()
        value = below + (above - below) * (place % 1)
        values.append(value[:, :, None])
    return values


def mean_and_std(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the finite values of (b, H, W), each (b, 1, 1)."""
    pixels = stored.double()
    finite = torch.isfinite(pixels)
    count = finite.sum((1, 2), keepdim=True)
    total = torch.where(finite, pixels, 0.0).sum((1, 2), keepdim=True)
    mean = total / count
    squares = torch.where(finite, pixels - mean, 0.0).square_()
    variance = squares.sum((1, 2), keepdim=True) / count
    return mean, variance.sqrt()


def _ends(items: Sequence[Slice], rule: Intensity, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the values that the slices' volumes make 0 and 1, each (b, 1, 1)."""
    ends = [item.ends for item in items if item.ends is not None]
    if len(ends) < len(items):
        raise ValueError(
            f"ends must be those of the volume for {rule!r}. Got None instead; take a rule of "
            "scope 'slice' for a slice by itself."
        )
    low = _column([low for low, _ in ends], device)
    high = _column([high for _, high in ends], device)
    return low, high


def _by_file(stored: Tensor, items: Sequence[Slice]) -> Tensor:
    """Return pixels by their files' windows; by minimum and maximum where these have none."""
    vois = [item.voi for item in items if item.voi is not None]
    if not vois:
        return ramp(stored, *extremes(stored))
    return _apply_vois(stored, vois)


def _apply_vois(stored: Tensor, vois: Sequence[Voi]) -> Tensor:
    """Return pixels through their files' own windows or tables (PS3.3 C.11.2)."""
    low = _column([voi.low for voi in vois], stored.device)
    high = _column([voi.high for voi in vois], stored.device)
    if vois[0].shape == "linear":
        return ramp(stored, low, high)
    pixels = stored.float()
    if vois[0].shape == "sigmoid":
        middle = (low + high) / 2
        width = high - low
        steps = 4.0 * (pixels.double() - middle) / width
        grey = torch.sigmoid(steps).float()
    else:
        grey = _look_up(ramp(pixels, low, high), vois)
    return torch.where(pixels.isnan(), 0.0, grey)


def _look_up(places: Tensor, vois: Sequence[Voi]) -> Tensor:
    """Return the grey of each place in [0, 1] along its slice's table, (b, H, W)."""
    slices = []
    for place, voi in zip(places, vois, strict=True):
        table = torch.tensor(voi.table, device=places.device)
        entries = (place * (len(table) - 1)).round().long()
        slices.append(table[entries])
    return torch.stack(slices)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers, one a slice, as (b, 1, 1) float64 on the device."""
    column = torch.tensor(values, dtype=torch.float64)[:, None, None]
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column
