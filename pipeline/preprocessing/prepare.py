"""Pixels to what a network sees: pure functions, one a step.

(another view ->) intensity -> [0, 1] -> crop to the body -> aspect -> bicubic resize -> clamp ->
three channels -> mean and std. The numbers of a slice depend on that slice alone, so that what is
cached stays true whatever lies beside it; a rule of scope `volume` makes them depend on its volume,
and no further.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.preprocessing.content import body_box, check_finite
from pipeline.preprocessing.intensity import apply_intensity
from pipeline.preprocessing.perturb import SHIFT, viewed
from pipeline.recipe import (
    RESIZED_OF_CROPPED,
    Architecture,
    Aspect,
    FileWindow,
    Preprocess,
    Recipe,
)
from pipeline.types import Slice

# Pixels that are scaled at once: more of a batch gains nothing, and takes memory.
_PIECE_PIXELS = 2**24


def prepare(item: Slice, modality: str, recipe: Recipe) -> Tensor:
    """Return a slice as the network wants it: float32 (3, S, S), normalised.

    Raises UnreadableError (`not-finite`) where no pixel is finite.
    """
    check_finite(item)
    return prepare_batch([item], [modality], recipe)[0]


def prepare_batch(
    items: Sequence[Slice],
    modalities: Sequence[str],
    recipe: Recipe,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Return (b, 3, S, S) float32 on `device`, where all but views and the body is computed.

    One shape, one resize. What a view shows, and where the body is, is found on the CPU before, by
    codecs and connected pieces that a card has not: it is handed the pixels of the one, and cuts to
    the box of the other. The items have passed `check_finite`. Equal to `prepare` of each slice
    within 1e-5 on the CPU and 1e-3 elsewhere, where resampling sums in another order. On a GPU the
    call returns before the work that it has there is done.
    """
    size = recipe.image_size
    device = torch.device(device)
    items = [
        _as_seen(item, modality, recipe.preprocess)
        for item, modality in zip(items, modalities, strict=True)
    ]
    out = torch.empty((len(items), 3, size, size), device=device)
    for piece in _pieces(items, modalities, recipe.preprocess):
        alike = items[piece]
        modality = modalities[piece.start]
        grey = _grey(alike, modality, recipe.preprocess, device)
        if recipe.preprocess.crop != "body":
            out[piece] = squared(grey, recipe.preprocess.aspect, size)
            continue
        for i, item in enumerate(alike):
            body = _cropped(grey[i], item, modality)  # of another shape than the next one's
            out[piece.start + i] = squared(body[None], recipe.preprocess.aspect, size)[0]
    return normalise(out, recipe.architecture)


def scale(item: Slice, modality: str, preprocess: Preprocess) -> Tensor:
    """Return grey in [0, 1], (1 or 3, H', W'), cut and padded as the recipe asks, not resized.

    X-rays are scaled by their extremes here, before the resize, where the paper's code does it
    after: there, the overshoot of the bicubic kernel at one bright edge would set the contrast of
    all other pixels, and differently for each image size. Raises UnreadableError (`not-finite`).
    """
    check_finite(item)
    item = _as_seen(item, modality, preprocess)
    grey = _grey([item], modality, preprocess, torch.device("cpu"))[0]
    if preprocess.crop == "body":
        grey = _cropped(grey, item, modality)
    return fit_aspect(grey, preprocess.aspect)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: over single slices, others wait for work on the readers' cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pieces(
    items: Sequence[Slice], modalities: Sequence[str], preprocess: Preprocess
) -> Iterator[slice]:
    """Yield runs of slices that are scaled alike: of one shape, type and rule."""

    def kind(i: int) -> tuple[Any, ...]:
        pixels = items[i].pixels
        voi = items[i].voi
        by_file = isinstance(preprocess.rule(modalities[i]), FileWindow)
        window = voi.shape if by_file and voi is not None else None
        return pixels.shape, pixels.dtype, modalities[i], window

    for (shape, *_), run in itertools.groupby(range(len(items)), kind):
        places = list(run)
        stop = places[-1] + 1
        most = max(1, _PIECE_PIXELS // int(np.prod(shape)))
        for start in range(places[0], stop, most):
            yield slice(start, min(start + most, stop))


def _grey(
    items: Sequence[Slice], modality: str, preprocess: Preprocess, device: torch.device
) -> Tensor:
    """Return slices of one kind as grey in [0, 1], (b, 1 or 3, H, W), on the device."""
    grey = apply_intensity(_stacked(items, device), preprocess.rule(modality), items)
    if _shifts_scaled(items[0], modality, preprocess):
        grey = (grey + SHIFT).clamp(0.0, 1.0)
    return grey


def _as_seen(item: Slice, modality: str, preprocess: Preprocess) -> Slice:
    """Return a slice as the recipe's view has it, unless that comes after it is scaled."""
    if _shifts_scaled(item, modality, preprocess):
        return item
    return viewed(item, preprocess.view)


def _shifts_scaled(item: Slice, modality: str, preprocess: Preprocess) -> bool:
    return preprocess.shifts_scaled(modality, has_window=item.voi is not None)


def _stacked(items: Sequence[Slice], device: torch.device) -> Tensor:
    """Return pixels of one shape and type as (b, H, W) on the device.

    To a GPU they go from pinned memory, so that nobody waits for the copy: from where they are, or
    by way of such memory. They must stay until the card has them.
    """
    pixels = [item.pixels for item in items]
    shape = (len(items), *pixels[0].shape)
    dtype = torch.from_numpy(pixels[0][:0].copy()).dtype
    if device.type == "cuda" and all(map(_is_pinned, pixels)):
        stacked = torch.empty(shape, dtype=dtype, device=device)
        for place, one in zip(stacked, pixels, strict=True):
            place.copy_(torch.from_numpy(one), non_blocking=True)
        return stacked
    host = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(pixels, out=host.numpy())
    return host.to(device, non_blocking=True)


def _is_pinned(pixels: NDArray[Any]) -> bool:
    """Return whether a GPU can read an array where it is."""
    flags = pixels.flags
    return flags.c_contiguous and flags.writeable and torch.from_numpy(pixels).is_pinned()


# --- shape ---------------------------------------------------------------------------------------


def _cropped(grey: Tensor, item: Slice, modality: str) -> Tensor:
    """Return the body of one slice, (C, H', W')."""
    rows, columns = body_box(item.pixels, modality)
    return grey[:, rows, columns]


def squared(grey: Tensor, aspect: Aspect, size: int) -> Tensor:
    """Return (b, C, H, W) as (b, C, size, size)."""
    if aspect != "dinov2":
        return resize(fit_aspect(grey, aspect), size)
    # As torchvision's Resize and CenterCrop, which DINOv2's evaluation takes: the longer side is
    # rounded down, and the middle is cut out after the resize.
    height, width = grey.shape[-2:]
    shorter = min(height, width)
    short = round(size * RESIZED_OF_CROPPED)
    to_height = short * height // shorter
    to_width = short * width // shorter
    resized = _interpolated(grey, to_height, to_width)
    top = round((to_height - size) / 2)
    left = round((to_width - size) / 2)
    return resized[..., top : top + size, left : left + size]


def fit_aspect(grey: Tensor, aspect: Aspect) -> Tensor:
    """Return (..., H, W) padded with black to a square, its middle square, or as it is.

    Of `dinov2` that is what is left of the middle, before it is resized.
    """
    height, width = grey.shape[-2:]
    if aspect == "pad":
        side = max(height, width)
        top = (side - height) // 2
        bottom = side - height - top
        left = (side - width) // 2
        right = side - width - left
        return functional.pad(grey, (left, right, top, bottom))
    if aspect in ("crop", "dinov2"):
        side = min(height, width)
        if aspect == "dinov2":
            side = max(1, round(side / RESIZED_OF_CROPPED))
        top = (height - side) // 2
        left = (width - side) // 2
        return grey[..., top : top + side, left : left + side]
    return grey


def resize(batch: Tensor, size: int) -> Tensor:
    """Return (b, C, size, size): antialiased bicubic, its overshoot clipped to [0, 1]."""
    return _interpolated(batch, size, size)


def _interpolated(batch: Tensor, height: int, width: int) -> Tensor:
    if batch.shape[2:] != (height, width):
        batch = functional.interpolate(
            batch, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
    return batch.clamp(0.0, 1.0)


def normalise(batch: Tensor, architecture: Architecture) -> Tensor:
    """Return (b, 3, S, S) less the mean and over the std that the network was trained with.

    In place.
    """
    device = batch.device
    mean = _channels(architecture.mean, device)
    std = _channels(architecture.std, device)
    return batch.sub_(mean).div_(std)


@functools.cache  # copied to a GPU once, since such a copy waits for all work before it
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]
