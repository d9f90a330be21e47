"""Pictures of what heads see and predict, without a name: overlays, and tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

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
    spread = float(plane.max()) - low
    # An image of one level is black.
    grey: Picture = np.rint((plane - low) / (spread or 1.0) * 255).astype(np.uint8)
    return grey


def painted(grey: Picture, labels: Labels) -> Picture:
    """Return grey (S, S) with its label values in colour, (S, S, 3)."""
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    drawn = labels > 0
    # Past the last structure that has a colour of its own, they begin again.
    colour = COLOURS[(labels[drawn].astype(np.int64) - 1) % len(COLOURS)]
    picture[drawn] = (1 - _OPACITY) * picture[drawn] + _OPACITY * colour
    return np.rint(picture).astype(np.uint8)


def overlay(grey: Picture, mask: Labels, predicted: Labels) -> Picture:
    """Return the image, its mask and what was predicted, side by side."""
    nothing = np.zeros_like(mask)
    return side_by_side([painted(grey, labels) for labels in (nothing, mask, predicted)])


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Return pictures (S, S, 3) in a row, with white between them."""
    height, _, channels = pictures[0].shape
    return _joined(pictures, np.full((height, _GAP, channels), 255, np.uint8), axis=1)


def stacked(rows: Sequence[Picture]) -> Picture:
    """Return rows of pictures as one, the first on top, with white between them."""
    _, width, channels = rows[0].shape
    return _joined(rows, np.full((_GAP, width, channels), 255, np.uint8), axis=0)


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
    flat = tokens.reshape(-1, d).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    # Eigenvectors of the covariance come by rising variance: the last three, backwards.
    _, vectors = np.linalg.eigh(flat.T @ flat)
    scores = flat @ vectors[:, :-4:-1]
    low, high = np.percentile(scores, [1, 99], axis=0)
    grey = np.clip((scores - low) / np.where(high > low, high - low, 1.0), 0, 1)
    picture = np.rint(grey * 255).astype(np.uint8).reshape(b, h, w, -1)
    # Each pixel takes the colour of its patch.
    rows = np.arange(size) * h // size
    columns = np.arange(size) * w // size
    return np.ascontiguousarray(picture[:, rows][:, :, columns])


def write_png(path: Path, picture: Picture, note: str = "") -> None:
    """Write a picture, with a note below it where there is one."""
    image = Image.fromarray(picture)
    if note:
        taller = Image.new("RGB", (image.width, image.height + _NOTE_HEIGHT), "white")
        taller.paste(image, (0, 0))
        ImageDraw.Draw(taller).text((4, image.height + 2), note, fill="black")
        image = taller
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
