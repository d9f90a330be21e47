"""Where a network's square input lies in a slice, and label values through it and back.

The input of side S shows a rectangle of the slice: all of it, its middle, the box of its body, or
more than it (padding). Label values go through by nearest-exact sampling, as PyTorch names it:
pixel j of n that show m is pixel floor((j + 1/2) m / n), here in whole numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import RESIZED_OF_CROPPED, Aspect

Labels = NDArray[np.uint8]


class Shown(NamedTuple):
    """The rectangle that the input shows, in pixels of the slice; it may reach beyond them."""

    top: int
    left: int
    height: int
    width: int


class Placement(NamedTuple):
    """Where the input lies in a slice: the slice's size (H, W), and what the input shows of it."""

    shape: tuple[int, int]
    shows: Shown


def shown(
    height: int,
    width: int,
    aspect: Aspect,
    body: tuple[slice, slice] | None = None,
) -> Shown:
    """Return what the input shows of a slice (H, W), as `preprocess.fit_aspect` has it.

    body: the rows and columns that the slice is cut to first.
    """
    top = 0
    left = 0
    if body is not None:
        rows, columns = body
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        height = bottom - top
        width = right - left
    match aspect:
        case "square":
            return Shown(top, left, height, width)
        case "pad":
            side = max(height, width)
            return Shown(top - (side - height) // 2, left - (side - width) // 2, side, side)
        case "crop" | "dinov2":
            side = min(height, width)
            if aspect == "dinov2":  # in pixels of the slice, which may be a fraction off
                side = max(1, round(side / RESIZED_OF_CROPPED))
            return Shown(top + (height - side) // 2, left + (width - side) // 2, side, side)


def to_input(labels: Labels, shows: Shown, size: int) -> Labels:
    """Return label values (size, size) of a slice's (H, W); 0 where the input shows no slice."""
    height, width = labels.shape
    # Which row and column of the slice each of the input's shows.
    y = shows.top + nearest(shows.height, size)
    x = shows.left + nearest(shows.width, size)
    rows = _inside(y, height)
    columns = _inside(x, width)
    out = np.zeros((size, size), np.uint8)
    inside = np.ix_(rows, columns)
    out[inside] = labels[np.ix_(y[rows], x[columns])]
    return out


def to_slice(labels: Labels, shows: Shown, shape: tuple[int, int]) -> Labels:
    """Return label values (H, W) of a slice of an input's (S, S); 0 where the input shows none."""
    size = len(labels)
    height, width = shape
    # Where in the slice the rectangle's rows and columns lie, and which of the input's they are.
    y = np.arange(shows.height) + shows.top
    x = np.arange(shows.width) + shows.left
    input_y = nearest(size, shows.height)
    input_x = nearest(size, shows.width)
    rows = _inside(y, height)
    columns = _inside(x, width)
    out = np.zeros(shape, np.uint8)
    inside = np.ix_(y[rows], x[columns])
    out[inside] = labels[np.ix_(input_y[rows], input_x[columns])]
    return out


def patches_of(pixel: NDArray[np.int64], first: int, length: int, n: int) -> NDArray[np.int64]:
    """Return which of n patches over `length` pixels from `first` on each pixel is in; -1: none."""
    patch = (2 * (pixel - first) + 1) * n // (2 * length)
    return np.where((patch >= 0) & (patch < n), patch, -1)


def patch_at(shows: Shown, grid: tuple[int, int], y: int, x: int) -> tuple[int, int] | None:
    """Return the row and column of the patch that shows a pixel; None where the input does not."""
    row = int(patches_of(np.array([y]), shows.top, shows.height, grid[0])[0])
    column = int(patches_of(np.array([x]), shows.left, shows.width, grid[1])[0])
    return None if min(row, column) < 0 else (row, column)


def patch_middle(
    placement: Placement, grid: tuple[int, int], patch: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the row and column of the pixel in a patch's middle; None where no slice is there."""
    shows = placement.shows
    y = shows.top + (2 * patch[0] + 1) * shows.height // (2 * grid[0])
    x = shows.left + (2 * patch[1] + 1) * shows.width // (2 * grid[1])
    height, width = placement.shape
    return (y, x) if 0 <= y < height and 0 <= x < width else None


def nearest(of: int, into: int) -> NDArray[np.int64]:
    """Return (into,) which of `of` pixels each of `into` pixels is, nearest-exact."""
    return (2 * np.arange(into) + 1) * of // (2 * into)


def _inside(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.flatnonzero((places >= 0) & (places < length))
