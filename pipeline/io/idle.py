"""Workers that a pool is through with, kept for the next one: each takes half a second to start.

A run has one pool for headers and another for pixels, and a notebook or a watched folder one for
each call. What waits here takes memory, and is ended once nobody has come for it in a while.
"""

from __future__ import annotations

import atexit
import os
import threading

from pipeline.io.process import Worker

KEEP_S = 20.0


class IdleWorkers:
    """Workers that wait for a pool. Threads may share it."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._inherited: list[Worker] = []  # of the process that this one was forked from
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def take(self) -> Worker | None:
        """Return one that waits or starts, and lives; None where there is none."""
        with self._lock:
            while self._workers:
                worker = self._workers.pop()
                if worker.is_usable():
                    return worker
                worker.close()
        return None

    def put(self, worker: Worker) -> None:
        """Keep a worker until it is taken, or for so many seconds; end one that is at a file."""
        if not worker.is_usable():
            worker.close()
            return
        with self._lock:
            self._workers.append(worker)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(KEEP_S, self.close)
            self._timer.daemon = True
            self._timer.start()

    def forget(self) -> None:
        """Begin anew in a forked process: those that wait are its parent's, which goes on."""
        self._inherited = self._workers  # not dropped: nothing of them may be ended here
        self._workers = []
        self._lock = threading.Lock()  # another thread, which is not here, may have had it
        self._timer = None

    def close(self) -> None:
        """End those that wait."""
        with self._lock:
            while self._workers:
                self._workers.pop().close()


IDLE = IdleWorkers()
atexit.register(IDLE.close)
os.register_at_fork(after_in_child=IDLE.forget)
