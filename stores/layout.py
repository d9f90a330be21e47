"""Pure arithmetic of the store: rows, chunks and parts. Touches no disk.

A part is a fixed range of rows with one writer and one receipt. It is a whole number of chunks in
every array, so that two parts never share a chunk: writers of unaligned ranges lose each other's
rows without an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stores._types import Rows

CHUNK_BYTES = 16 * 2**20
# A part is held in memory while it is made.
PART_BYTES = 256 * 2**20
MAX_PART_ROWS = 1024
# What the part of a store may have at the most, whoever made it: rows, and bytes of an array.
MOST_PART_ROWS = 2**20
MOST_PART_BYTES = 2**34


@dataclass(frozen=True, order=True, slots=True)
class PartRange:
    """Part number `index`: rows start (included) to stop (excluded)."""

    index: int
    start: int
    stop: int

    @property
    def span(self) -> slice:
        """Its rows, as an index into an array of all rows."""
        return slice(self.start, self.stop)

    def within(self, rows: Rows) -> Rows:
        """Return those of some ascending rows that are in the part."""
        first, last = np.searchsorted(rows, (self.start, self.stop))
        return rows[first:last]


def default_part_rows(row_bytes: int) -> int:
    """Return the rows of one part, for rows of so many bytes: a power of two, at most 1024."""
    return min(MAX_PART_ROWS, _power_of_two_within(PART_BYTES // max(1, row_bytes)))


def _power_of_two_within(limit: int) -> int:
    return 1 << (max(1, limit).bit_length() - 1)


@dataclass(frozen=True)
class Layout:
    """How rows fall into parts. `part_rows` is a power of two, so that chunks always divide it."""

    part_rows: int

    def __post_init__(self) -> None:
        if self.part_rows < 1 or self.part_rows & (self.part_rows - 1):
            raise ValueError(f"part_rows must be a power of two. Got {self.part_rows} instead.")
        if self.part_rows > MOST_PART_ROWS:
            raise ValueError(
                f"part_rows must be at most {MOST_PART_ROWS}. Got {self.part_rows} instead."
            )

    def parts(self, n: int) -> list[PartRange]:
        """Return the parts that hold rows 0 to n - 1."""
        indices = range(self.n_parts(n))
        return list(map(self.part, indices))

    def part(self, index: int) -> PartRange:
        """Return part number `index`."""
        start = index * self.part_rows
        return PartRange(index, start, start + self.part_rows)

    def n_parts(self, n: int) -> int:
        """Return how many parts n rows need."""
        return -(-n // self.part_rows)

    def next_boundary(self, n: int) -> int:
        """Return the first row of a fresh part after n rows: where an append starts."""
        return self.n_parts(n) * self.part_rows

    def chunk_rows(self, row_bytes: int) -> int:
        """Return the rows of one chunk: the largest power of two within CHUNK_BYTES and a part."""
        within_chunk = _power_of_two_within(CHUNK_BYTES // max(1, row_bytes))
        return min(self.part_rows, within_chunk)
