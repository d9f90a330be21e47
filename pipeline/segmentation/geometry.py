"""Where a network's square input lies in a slice, and label values through it and back.

The input of side S shows a rectangle of the slice: all of it, its middle, the box of its body, or
more than it (padding). Label values go through by nearest-exact sampling, as PyTorch names it:
pixel j of n that show m is pixel floor((j + 1/2) m / n), here in whole numbers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]


class Shown(NamedTuple):
    """The rectangle that the input shows, in pixels of the slice; it may reach beyond them."""

    top: int
    left: int
    height: int
    width: int


def shown(
    height: int,
    width: int,
    aspect: Literal["square", "pad", "crop"],
    body: tuple[slice, slice] | None = None,
) -> Shown:
    """Return what the input shows of a slice (H, W), as `preprocess.fit_aspect` has it.

    body: the rows and columns that the slice is cut to first.
    """
    top, left = 0, 0
    if body is not None:
        (top, bottom, _), (left, right, _) = body[0].indices(height), body[1].indices(width)
        height, width = bottom - top, right - left
    if aspect == "square":
        return Shown(top, left, height, width)
    side = max(height, width) if aspect == "pad" else min(height, width)
    if aspect == "pad":
        return Shown(top - (side - height) // 2, left - (side - width) // 2, side, side)
    return Shown(top + (height - side) // 2, left + (width - side) // 2, side, side)


def to_input(labels: Labels, shows: Shown, size: int) -> Labels:
    """Return label values (size, size) of a slice's (H, W); 0 where the input shows no slice."""
    rows = shows.top + nearest(shows.height, size)
    columns = shows.left + nearest(shows.width, size)
    height, width = labels.shape
    inside_rows, inside_columns = _inside(rows, height), _inside(columns, width)
    out = np.zeros((size, size), np.uint8)
    out[np.ix_(inside_rows, inside_columns)] = labels[
        np.ix_(rows[inside_rows], columns[inside_columns])
    ]
    return out


def to_slice(labels: Labels, shows: Shown, shape: tuple[int, int]) -> Labels:
    """Return label values (H, W) of a slice of an input's (S, S); 0 where the input shows none."""
    size = len(labels)
    rows, columns = nearest(size, shows.height), nearest(size, shows.width)
    y, x = np.arange(shows.height) + shows.top, np.arange(shows.width) + shows.left
    inside_rows, inside_columns = _inside(y, shape[0]), _inside(x, shape[1])
    out = np.zeros(shape, np.uint8)
    out[np.ix_(y[inside_rows], x[inside_columns])] = labels[
        np.ix_(rows[inside_rows], columns[inside_columns])
    ]
    return out


def nearest(of: int, into: int) -> NDArray[np.int64]:
    """Return (into,) which of `of` pixels each of `into` pixels is, nearest-exact."""
    return (2 * np.arange(into) + 1) * of // (2 * into)


def _inside(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.flatnonzero((places >= 0) & (places < length))
