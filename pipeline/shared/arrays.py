"""Arrays of features: in memory, or in a scratch file where they are more than it should hold.

A scratch file is a memory map of a file that nobody else sees: its pages are the operating
system's, written back and dropped when memory is short, and gone with the process however it ends.
Everything that works on an array works on it, by the same steps, to the same numbers.
Dims: n rows, d features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stores._disk import temporary_name, writing

# An array of more than this share of the memory is a scratch file. A flow holds at most three.
SHARE = 1 / 4
# Bytes of memory, where nothing says how many there are.
UNKNOWN = 8 * 2**30
ROWS_AT_ONCE = 16384
# Where a container's limit of memory is written, by cgroups of version 2 and of version 1.
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]


# --- memory and scratch files --------------------------------------------------------------


def memory_bytes() -> int | None:
    """Return the memory this process may use: the machine's, or its container's; None unknown."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in LIMITS:
        try:
            text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # "max", where there is no limit
            limits.append(int(text))
    return min(limits, default=None)


def allocate(n: int, d: int, folder: Path) -> Floats:
    """Return an array (n, d) to be filled: in memory, or where it is too large in `folder`.

    Raises UnwritableError where the disk has no room for it.
    """
    memory = memory_bytes() or UNKNOWN
    if 4 * n * d <= SHARE * memory:
        return np.empty((n, d), np.float32)
    return _mapped(n, d, folder)


def allocate_like(x: NDArray[Any], n: int, d: int) -> Floats:
    """Return an array (n, d) to be filled: in memory if x is, in a scratch file if x is."""
    if isinstance(x, np.memmap):
        folder = Path(str(x.filename)).parent
        return _mapped(n, d, folder)
    return np.empty((n, d), x.dtype)


def _mapped(n: int, d: int, folder: Path) -> Floats:
    path = folder / temporary_name("scratch")
    try:
        with writing(path), path.open("xb") as file:
            # Room is taken now: a full disk is an error here, and not a crash in the middle.
            os.posix_fallocate(file.fileno(), 0, max(4 * n * d, 1))
        return np.memmap(path, np.float32, "r+", shape=(n, d))
    finally:
        # The map stays while it is used; nothing is left of it when the process ends.
        path.unlink(missing_ok=True)


# --- some rows at a time -------------------------------------------------------------------


def batches(n: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Yield slices that cover n, `at_once` long."""
    for start in range(0, n, at_once):
        yield slice(start, min(start + at_once, n))


def numbers_of(labels: NDArray[Any]) -> Rows:
    """Return (n,) the number of each label (n,); labels count in the order of their first places.

    What is drawn by it does not depend on pseudonyms, which differ from store to store.
    """
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    # The rank of where each first stands, by the order of the labels.
    rank = np.argsort(np.argsort(first))
    return np.asarray(rank[which])


def take_scaled(
    x: NDArray[Any],
    rows: Rows,
    less: NDArray[Any] | float = 0,
    over: float = 1,
) -> Floats:
    """Return (x[rows] - less) / over, a copy; less: a row of numbers (d,)."""
    out = allocate_like(x, len(rows), x.shape[1])
    for now in batches(len(rows)):
        np.subtract(x[rows[now]], less, out=out[now], casting="same_kind")
        out[now] /= over
    return out


def mean(x: NDArray[Any], rows: Rows) -> Doubles:
    """Return the mean (d,) of the rows `rows` of x."""
    total = np.zeros(x.shape[1])
    for now in batches(len(rows)):
        total += x[rows[now]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def moments(x: NDArray[Any], rows: Rows) -> tuple[Doubles, float]:
    """Return the mean (d,) of the rows `rows` of x, and their spread about it: 1 where all agree.

    The spread is one for all columns: the root of the mean of their variances.
    """
    centre = mean(x, rows)
    square = 0.0
    for now in batches(len(rows)):
        square += float(((x[rows[now]] - centre) ** 2).sum())
    spread = (square / (len(rows) * x.shape[1])) ** 0.5
    return centre, spread or 1.0


# --- probabilities -------------------------------------------------------------------------


def softmax(logits: Doubles) -> Doubles:
    """Return the probabilities (n, c) of logits (n, c)."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Doubles = odds / odds.sum(axis=1, keepdims=True)
    return probabilities


# --- geometry ------------------------------------------------------------------------------


def unit_length(x: Floats) -> Floats:
    """Return vectors (..., d) scaled to length 1, float32 and contiguous; zeros stay zeros."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    return np.ascontiguousarray(x / np.maximum(norm, tiny), np.float32)


def principal_axes(covariance: Doubles) -> tuple[Doubles, Doubles]:
    """Return the variances (d,) along the principal axes, the greatest first, and the axes (d, d).

    covariance (d, d), or any multiple of it; axis i is column i, of length 1 and of either sign.
    """
    variance, axes = np.linalg.eigh(covariance)
    return variance[::-1], axes[:, ::-1]
