"""How much of each patch of the network's input each structure of a mask covers.

Pixels are counted where they are, at the slice's own size: a structure that is smaller than a pixel
of the input is not lost on the way. Dims: c classes, h, w patch grid, H, W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.segmentation.geometry import Labels, Shown, patches_of


class Coverage(NamedTuple):
    """Of each class: its share of each patch, its pixels, and how many of them the input shows.

    shares (c, h * w) float32 in [0, 1]; pixels, seen (c,).
    """

    shares: NDArray[np.float32]
    pixels: NDArray[np.int64]
    seen: NDArray[np.int64]


def coverage(labels: Labels, shows: Shown, grid: tuple[int, int], classes: int) -> Coverage:
    """Return what label values (H, W) below `classes` cover of a grid over what the input shows."""
    h, w = grid
    y = patches_of(np.arange(labels.shape[0]), shows.top, shows.height, h)
    x = patches_of(np.arange(labels.shape[1]), shows.left, shows.width, w)
    pixels = np.bincount(labels.ravel(), minlength=classes)
    inside = np.ix_(y >= 0, x >= 0)
    patch = y[y >= 0][:, None] * w + x[x >= 0]
    shown = labels[inside].astype(np.int64)
    counts = np.bincount((shown * (h * w) + patch).ravel(), minlength=classes * h * w)
    counts = counts.reshape(classes, h * w)
    area = (shows.height / h) * (shows.width / w)
    # Where pixels and patches do not come out even, a patch may hold a row more than its share.
    shares = np.minimum(counts / area, 1).astype(np.float32)
    return Coverage(shares, pixels, counts.sum(axis=1))
