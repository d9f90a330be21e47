"""Pictures of what heads see and predict, without a name: overlays, and tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.shared.arrays import principal_axes

Labels = NDArray[np.uint8]
Picture = NDArray[np.uint8]
# Told apart by people who see colours otherwise as well (Okabe and Ito).
COLOURS = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    np.float32,
)
_OPACITY = 0.45
_GAP = 4  # pixels between two pictures
_NOTE_HEIGHT = 16


def grey_of(image: NDArray[np.float32]) -> Picture:
    """Return an image as the network saw it (3, S, S) as grey (S, S), from black to white."""
    plane = image.mean(axis=0)
    low = float(plane.min())
    # An image of one level is black.
    spread = float(plane.max()) - low or 1.0
    return _levels((plane - low) / spread)


def _levels(values: NDArray[Any]) -> Picture:
    """Return values from 0 to 1 as levels of 8 bits."""
    levels: Picture = np.rint(values * 255).astype(np.uint8)
    return levels


def painted(grey: Picture, labels: Labels) -> Picture:
    """Return grey (S, S) with its label values in colour, (S, S, 3)."""
    picture = in_channels(grey).astype(np.float32)
    drawn = labels > 0
    structures = labels[drawn].astype(np.int64) - 1
    # Past the last structure that has a colour of its own, they begin again.
    colour = COLOURS[structures % len(COLOURS)]
    picture[drawn] = (1 - _OPACITY) * picture[drawn] + _OPACITY * colour
    return np.rint(picture).astype(np.uint8)


def in_channels(grey: Picture) -> Picture:
    """Return grey (S, S) as (S, S, 3)."""
    return np.repeat(grey[..., None], 3, axis=2)


def overlay(grey: Picture, mask: Labels, predicted: Labels) -> Picture:
    """Return the image, its mask and what was predicted, side by side."""
    nothing = np.zeros_like(mask)
    return side_by_side([painted(grey, labels) for labels in (nothing, mask, predicted)])


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Return pictures (S, S, 3) in a row, with white between them."""
    height, _, channels = pictures[0].shape
    gap = _white(height, _GAP, channels)
    return _joined(pictures, gap, axis=1)


def stacked(rows: Sequence[Picture]) -> Picture:
    """Return rows of pictures as one, the first on top, with white between them."""
    _, width, channels = rows[0].shape
    gap = _white(_GAP, width, channels)
    return _joined(rows, gap, axis=0)


def _white(height: int, width: int, channels: int) -> Picture:
    return np.full((height, width, channels), 255, np.uint8)


def _joined(pictures: Sequence[Picture], gap: Picture, axis: int) -> Picture:
    pieces = [pictures[0]]
    for picture in pictures[1:]:
        pieces += [gap, picture]
    return np.concatenate(pieces, axis=axis)


def components(tokens: NDArray[np.float32], size: int) -> Picture:
    """Return the first three principal components of tokens (b, h, w, d) as (b, size, size, 3).

    Of all tokens together, each component from its 1st to its 99th percentile.
    """
    b, h, w, d = tokens.shape
    flat = tokens.reshape(-1, d)
    flat = flat.astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, axes = principal_axes(flat.T @ flat)
    scores = flat @ axes[:, :3]
    low, high = np.percentile(scores, [1, 99], axis=0)
    spread = np.where(high > low, high - low, 1.0)
    colours = (scores - low) / spread
    colours = np.clip(colours, 0, 1)
    patches = _levels(colours).reshape(b, h, w, -1)
    # Each pixel takes the colour of its patch.
    rows = np.arange(size) * h // size
    columns = np.arange(size) * w // size
    picture = patches[:, rows][:, :, columns]
    return np.ascontiguousarray(picture)


def write_png(path: Path, picture: Picture, note: str = "") -> None:
    """Write a picture, with a note below it where there is one."""
    image = Image.fromarray(picture)
    if note:
        taller = Image.new("RGB", (image.width, image.height + _NOTE_HEIGHT), "white")
        taller.paste(image, (0, 0))
        draw = ImageDraw.Draw(taller)
        draw.text((4, image.height + 2), note, fill="black")
        image = taller
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
