"""Batches of tokens, images and masks, in shuffled order, within a bounded memory.

Rows that lie in one chunk of the store are read together. Chunks come in an order of their own each
epoch, as many at once as fit the memory (a pool); the rows of a pool are shuffled among each other.
While one pool is learned from, a thread reads the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config.segmentation_heads import Need
from pipeline.segmentation.contracts import Rows, TokenSource

T = TypeVar("T")

# Of one pool. There are two at a time: one that is learned from, and one that is read.
POOL_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Batch:
    """What b rows are learned from or predicted on: None where it is not needed.

    tokens (b, l, h, w, d) float16 or float32; images (b, 3, S, S) float32; masks (b, S, S) uint8.
    """

    rows: Rows
    tokens: NDArray[Any] | None = None
    images: NDArray[np.float32] | None = None
    masks: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        arrays = (self.tokens, self.images, self.masks)
        return sum(array.nbytes for array in arrays if array is not None)

    def at(self, places: NDArray[np.int64] | slice) -> Batch:
        """Return some of its rows, by place."""
        return Batch(
            self.rows[places],
            None if self.tokens is None else self.tokens[places],
            None if self.images is None else self.images[places],
            None if self.masks is None else self.masks[places],
        )


def read(source: TokenSource, rows: Rows, needs: frozenset[Need], *, masks: bool) -> Batch:
    """Read what is needed of some rows, in their order."""
    return Batch(
        rows,
        source.tokens(rows) if "tokens" in needs else None,
        source.images(rows) if "images" in needs else None,
        source.masks(rows) if masks else None,
    )


def in_order(
    source: TokenSource, rows: Rows, needs: frozenset[Need], batch_size: int, *, masks: bool
) -> Iterator[Batch]:
    """Yield batches of rows in their order, each read while the one before is used."""
    starts = range(0, len(rows), batch_size)
    return read_ahead(
        read(source, rows[start : start + batch_size], needs, masks=masks) for start in starts
    )


class Loader:
    """Shuffled batches of the same rows, epoch after epoch.

    Equal seeds give equal batches. Rows that fit one pool are read once and kept.
    """

    def __init__(
        self,
        source: TokenSource,
        rows: Rows,
        needs: frozenset[Need],
        batch_size: int,
        seed: int,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self._source = source
        self._needs = needs
        self._batch_size = batch_size
        self._seed = seed
        chunk_rows = source.chunk_rows if "tokens" in needs else 1
        self._chunks = _chunks(np.sort(rows), chunk_rows)
        row_bytes = read(source, self._chunks[0][:1], needs, masks=True).nbytes
        self._pool_rows = max(batch_size, pool_bytes // row_bytes)
        self.batches = -(-len(rows) // batch_size)
        # The only pool, once it is read, where all rows fit into one.
        self._only_pool: Batch | None = None

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: each row once, the last batch with what is left."""
        size = self._batch_size
        rng = np.random.default_rng((self._seed, number))
        order = [self._chunks[i] for i in rng.permutation(len(self._chunks))]
        # What a pool left over, fewer rows than a batch: the next pool fills it up.
        rest: Batch | None = None
        for pool in self._pools(order):
            places = rng.permutation(len(pool.rows))
            if rest is not None:
                missing = size - len(rest.rows)
                rest = _joined(rest, pool.at(places[:missing]))
                places = places[missing:]
                if len(rest.rows) < size:
                    continue
                yield rest
            full = len(places) // size * size
            for start in range(0, full, size):
                stop = start + size
                yield pool.at(places[start:stop])
            rest = pool.at(places[full:]) if full < len(places) else None
        if rest is not None:
            yield rest

    def _pools(self, order: list[Rows]) -> Iterator[Batch]:
        """Read the chunks in their order, as many at once as fit a pool."""
        if self._only_pool is not None:
            yield self._only_pool
            return
        pools = list(_pool_rows(order, self._pool_rows))
        if len(pools) == 1:
            # In an order that does not depend on the epoch that read it.
            self._only_pool = self._read(pools[0])
            yield self._only_pool
            return
        yield from read_ahead(self._read(rows) for rows in pools)

    def _read(self, rows: Rows) -> Batch:
        """Read a pool, ascending: neighbours in the store are then read together."""
        return read(self._source, np.sort(rows), self._needs, masks=True)


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, none of them None, each made in a thread while the one before is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, iterator, None)
        while (item := upcoming.result()) is not None:
            # Begun before this one is handed over, and no further: two are there at a time.
            upcoming = thread.submit(next, iterator, None)
            yield item


def _chunks(rows: Rows, chunk_rows: int) -> list[Rows]:
    """Return ascending rows by the chunk they lie in."""
    chunk = rows // chunk_rows
    last = np.flatnonzero(np.diff(chunk))
    return np.split(rows, last + 1)


def _pool_rows(chunks: list[Rows], most: int) -> Iterator[Rows]:
    """Yield the rows of chunks that come one after the other, at most so many together.

    A chunk that alone has more is cut.
    """
    pool: list[Rows] = []
    size = 0
    for chunk in chunks:
        for start in range(0, len(chunk), most):
            piece = chunk[start : start + most]
            if pool and size + len(piece) > most:
                yield np.concatenate(pool)
                pool = []
                size = 0
            pool.append(piece)
            size += len(piece)
    yield np.concatenate(pool)


def _joined(first: Batch, second: Batch) -> Batch:
    """Return the rows of two batches as one."""
    return Batch(
        np.concatenate((first.rows, second.rows)),
        _both(first.tokens, second.tokens),
        _both(first.images, second.images),
        _both(first.masks, second.masks),
    )


def _both(first: NDArray[Any] | None, second: NDArray[Any] | None) -> NDArray[Any] | None:
    if first is None or second is None:
        return None
    return np.concatenate((first, second))
