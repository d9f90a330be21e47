"""A CPU's cores as lanes: passes of the network side by side, each with threads of its own.

Threads that share one pass wait for each other after every layer, so that what else runs on one
core holds up all of them. Lanes wait for nobody: the same pass takes 0.95 of the time on 2 cores,
and readers cost no more than their own work (measured: benchmarks/extract.py). The bits of a pass
depend on a lane's threads alone: on up to `_MOST` cores that is one, however many cores there are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

# Each lane holds the activations of a batch; beyond so many, threads share a lane.
_MOST = 8


class Lanes:
    """As many lanes as torch has threads here, up to _MOST."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self.number = min(self._threads, _MOST)
        threads_a_lane = self._threads // self.number
        self._pool = ThreadPoolExecutor(
            self.number,
            "radprobe-lane",
            initializer=torch.set_num_threads,
            initargs=(threads_a_lane,),
        )

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Let the next free lane do some work; what is started first begins first."""
        return self._pool.submit(work)

    def close(self) -> None:
        """Wait for the work at hand, drop what waits, and give this process its threads back."""
        # Before the threads are given back: a pass at work would change its number of them.
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # the lanes' setting is the whole process's for MKL
