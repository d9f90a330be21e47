"""Pictures of what heads see and say, without a word of whom: overlays, and tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
_GAP = 4


def grey_of(image: NDArray[np.float32]) -> Picture:
    """Return an image as the network saw it (3, S, S) as grey (S, S), from black to white."""
    plane = image.mean(axis=0)
    low, high = float(plane.min()), float(plane.max())
    grey: Picture = np.rint((plane - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    return grey


def painted(grey: Picture, labels: Labels) -> Picture:
    """Return grey (S, S) with its label values in colour, (S, S, 3)."""
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    on = labels > 0
    colour = COLOURS[(labels[on].astype(np.int64) - 1) % len(COLOURS)]
    picture[on] = (1 - _OPACITY) * picture[on] + _OPACITY * colour
    return np.rint(picture).astype(np.uint8)


def overlay(grey: Picture, mask: Labels, predicted: Labels) -> Picture:
    """Return the image, its mask and what was predicted, side by side."""
    return beside(
        [painted(grey, np.zeros_like(mask)), painted(grey, mask), painted(grey, predicted)]
    )


def beside(pictures: Sequence[Picture]) -> Picture:
    """Return pictures (S, S, 3) in a row."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
    row = [piece for picture in pictures for piece in (picture, gap)]
    return np.concatenate(row[:-1], axis=1)


def below(rows: Sequence[Picture]) -> Picture:
    """Return rows of pictures as one, the first on top."""
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([piece for row in rows for piece in (row, gap)][:-1], axis=0)


def components(tokens: NDArray[np.float32], size: int) -> Picture:
    """Return the first three principal components of tokens (b, h, w, d) as (b, size, size, 3).

    Of all tokens together, each component from its 1st to its 99th percentile.
    """
    b, h, w, d = tokens.shape
    flat = tokens.reshape(-1, d).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, axes = principal_axes(flat.T @ flat)
    scores = flat @ axes[:, :3]
    low, high = np.percentile(scores, [1, 99], axis=0)
    grey = np.clip((scores - low) / np.where(high > low, high - low, 1.0), 0, 1)
    picture = np.rint(grey * 255).astype(np.uint8).reshape(b, h, w, -1)
    rows, columns = (np.arange(size) * n // size for n in (h, w))
    return np.ascontiguousarray(picture[:, rows][:, :, columns])


def write_png(path: Path, picture: Picture, note: str = "") -> None:
    """Write a picture, with a note below it where there is one."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    if note:
        wider = Image.new("RGB", (image.width, image.height + 16), "white")
        wider.paste(image, (0, 0))
        ImageDraw.Draw(wider).text((4, image.height + 2), note, fill="black")
        image = wider
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
