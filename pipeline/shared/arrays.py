"""What features are held in: memory, or a scratch file where they are more than memory should hold.

A scratch file is a memory map of a file that nobody else sees: its pages are the operating
system's, written back and dropped when memory is short, and gone with the process however it ends.
Everything that works on an array works on it, by the same steps, to the same numbers.
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
UNKNOWN = 8 * 2**30  # bytes of memory, where nothing says how many there are
ROWS_AT_ONCE = 16384

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def memory_bytes() -> int | None:
    """Return the memory this process may use: the machine's, or its container's; None unknown."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found, default=None)


def room(n: int, d: int, folder: Path) -> Floats:
    """Return an array (n, d) to be filled: in memory, or where it is too large in `folder`.

    Raises UnwritableError where the disk has no room for it.
    """
    if 4 * n * d <= SHARE * (memory_bytes() or UNKNOWN):
        return np.empty((n, d), np.float32)
    return _mapped(n, d, folder)


def beside(x: NDArray[Any], n: int, d: int) -> Floats:
    """Return an array (n, d) to be filled, made of x and held as x is."""
    if isinstance(x, np.memmap):
        return _mapped(n, d, Path(str(x.filename)).parent)
    return np.empty((n, d), x.dtype)


def taken(x: NDArray[Any], rows: Rows, less: NDArray[Any] | float = 0, over: float = 1) -> Floats:
    """Return (x[rows] - less) / over, a copy, held as x is; less: a row of numbers (d,)."""
    out = beside(x, len(rows), x.shape[1])
    for now in batches(len(rows)):
        np.subtract(x[rows[now]], less, out=out[now], casting="same_kind")
        out[now] /= over
    return out


def mean(x: NDArray[Any], rows: Rows) -> NDArray[np.float64]:
    """Return the mean (d,) of the rows `rows` of x."""
    total = np.zeros(x.shape[1])
    for now in batches(len(rows)):
        total += x[rows[now]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def moments(x: NDArray[Any], rows: Rows) -> tuple[NDArray[np.float64], float]:
    """Return the mean (d,) of the rows `rows` of x, and their spread about it: 1 where all agree.

    The spread is one for all columns: the root of the mean of their variances.
    """
    middle, total = mean(x, rows), 0.0
    for now in batches(len(rows)):
        total += float(((x[rows[now]] - middle) ** 2).sum())
    return middle, (total / (len(rows) * x.shape[1])) ** 0.5 or 1.0


def batches(n: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Yield slices that cover n, `at_once` long."""
    for start in range(0, n, at_once):
        yield slice(start, min(start + at_once, n))


def _mapped(n: int, d: int, folder: Path) -> Floats:
    path = folder / temporary_name("scratch")
    try:
        with writing(path), path.open("xb") as file:
            # Room is taken now: a full disk is an error here, and not a crash in the middle.
            os.posix_fallocate(file.fileno(), 0, max(4 * n * d, 1))
        return np.memmap(path, np.float32, "r+", shape=(n, d))
    finally:
        path.unlink(missing_ok=True)


def unit_length(x: Floats) -> Floats:
    """Return rows scaled to length 1, float32 and contiguous; a zero row stays zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.maximum(norm, np.finfo(np.float32).tiny), np.float32)
