"""The loader: every row once, by its seed, chunk by chunk, within its memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.segmentation.loader import Batch, Loader, in_order, read_ahead
from tests.pipeline.segmentation.planted import Planted

TOKENS = frozenset({"tokens"})


def rows_of(loader: Loader, epoch: int) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader.epoch(epoch)]


def small(source: Planted, batch_size: int = 8, seed: int = 0, rows: int = 16) -> Loader:
    """A loader whose pools hold so many rows."""
    row_bytes = source.tokens(np.array([0])).nbytes + source.masks(np.array([0])).nbytes
    source.reads.clear()
    every = np.arange(source.n)
    return Loader(source, every, TOKENS, batch_size, seed, pool_bytes=rows * row_bytes)


@pytest.mark.parametrize("pool_rows", [8, 24, 1000])
@pytest.mark.parametrize("batch_size", [1, 8, 10])
def test_an_epoch_has_every_row_once_with_what_belongs_to_it(
    batch_size: int, pool_rows: int
) -> None:
    source = Planted(50)
    loader = small(source, batch_size, rows=pool_rows)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.batches
    assert [len(b.rows) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sorted(np.concatenate([b.rows for b in batches])) == list(range(50))
    for batch in batches:
        np.testing.assert_array_equal(batch.tokens, source.all_tokens[batch.rows])
        np.testing.assert_array_equal(batch.masks, source.all_masks[batch.rows])


@pytest.mark.parametrize("pool_rows", [16, 1000])
def test_the_order_is_of_seed_and_epoch(pool_rows: int) -> None:
    first, again, other = (small(Planted(64), seed=s, rows=pool_rows) for s in (0, 0, 1))
    orders = [rows_of(first, 0), rows_of(first, 1), rows_of(other, 0)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert rows_of(again, 1) == orders[1]  # whichever epochs came before
    assert rows_of(again, 0) == orders[0]


def test_a_chunk_is_read_once_an_epoch() -> None:
    source = Planted(64, chunk_rows=4)
    loader = small(source, rows=16)
    source.reads.clear()
    list(loader.epoch(0))
    chunks = [set((rows // 4).tolist()) for rows in source.reads]
    assert len(chunks) == 4
    assert sum(map(len, chunks)) == len(set().union(*chunks)) == 16
    # Neighbours in the store are not neighbours in the batches.
    far = [np.ptp(rows) for rows in rows_of(loader, 0)]
    assert min(far) > 8


def test_rows_that_fit_are_read_once() -> None:
    source = Planted(16)
    loader = small(source, rows=1000)
    source.reads.clear()
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert len(source.reads) == 1


def test_images_alone_need_no_tokens() -> None:
    source = Planted(16)
    source.chunk_rows = 0  # as of a store without them: a division by it would say so
    batches = list(Loader(source, np.arange(16), frozenset({"images"}), 4, 0).epoch(0))
    assert source.reads == []
    np.testing.assert_array_equal(batches[0].images, source.all_images[batches[0].rows])


class Endless(Planted):
    """As many rows as asked for, of 1 MB each, made when they are read."""

    def __post_init__(self) -> None:
        self.image_size = 4

    def tokens(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return np.zeros((len(rows), 1, 64, 64, 64), np.float32)

    def masks(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(rows), 4, 4), np.uint8)


def test_memory_is_that_of_two_pools_however_many_rows() -> None:
    peaks = []
    for n in (64, 512):
        loader = Loader(Endless(n), np.arange(n), TOKENS, 4, 0, pool_bytes=8 * 2**20)
        tracemalloc.start()
        for _ in loader.epoch(0):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    # Two pools, what is left of one, a batch; whether both pools are there at once, the threads say.
    assert max(peaks) < 8 * 2 + 3 * 4 + 1


def test_the_next_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for i, event in enumerate(made):
            event.set()
            yield i + 1

    for item in read_ahead(items()):
        assert item == 3 or made[item].wait(10)
        assert not any(event.is_set() for event in made[item + 1 :])  # and no further


def test_an_error_of_the_thread_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        list(read_ahead(items()))


def test_in_order_keeps_the_order() -> None:
    source, rows = Planted(16), np.array([5, 3, 9, 0, 1])
    batches: list[Batch] = list(in_order(source, rows, TOKENS, 2, masks=False))
    assert [b.rows.tolist() for b in batches] == [[5, 3], [9, 0], [1]]
    assert all(b.masks is None and b.images is None for b in batches)
