"""Parts committed in a thread of their own, while the next ones are embedded."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a full queue is waited for before the claims are renewed.
_PATIENCE_S = 30.0


class Writer(Generic[T]):
    """Does one piece of work after the other in a thread, in order, a bounded number waiting.

    What the work raises is raised to the owner at the next call, and nothing more is done. To be
    closed.
    """

    def __init__(self, work: Callable[[T], None], waiting: int = 1) -> None:
        self._work = work
        self._queue: queue.Queue[T | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="radprobe-write", daemon=True)
        self._thread.start()

    def put(self, piece: T, while_full: Callable[[], None]) -> None:
        """Hand over a piece, once there is room; `while_full` is called every half minute until."""
        self._raise()
        while True:
            with contextlib.suppress(queue.Full):
                self._queue.put(piece, timeout=_PATIENCE_S)
                return
            while_full()

    def drain(self) -> None:
        """Wait until all that was handed over is done."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """End the thread once it is through with the piece at work; those behind are dropped."""
        self._closing.set()  # before the end is queued: there may be pieces in front of it
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if not self._closing.is_set() and self._error is None:
                try:
                    self._work(piece)
                except BaseException as error:  # raised in the owner's thread
                    self._error = error
            # Also of what is dropped: `drain` waits for every piece.
            self._queue.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
