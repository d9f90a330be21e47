"""Parts over the workers of a dask cluster, to which `clusters` connects.

The scheduler carries the tasks, the store's receipts say what is done: a task is a stretch of
parts, as addresses; it may be lost, or run twice at once, and nothing is counted twice. A bounded
number of tasks is out at a time, whatever the number of parts.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.extraction.distributed.clusters import PATIENCE_S
from pipeline.extraction.distributed.scheduler import WINDOW, Deal, Task
from pipeline.extraction.distributed.tasks import (
    HOPELESS,
    EndingError,
    Outcome,
    Work,
    add,
    embed_parts,
    live_slices,
    note_failure,
    tally,
    told,
)
from pipeline.extraction.embed import BadLimit, Embedded, Progress
from stores import FeatureStore, PartRange
from stores.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

_POLL_S = 0.5
_WORKERS_S = 2.0
_HELD_S = 5.0
_ANSWER_S = 30.0


def embed_on(
    connect: Callable[[], Client],
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
    patience_s: float = PATIENCE_S,
) -> tuple[Embedded, dict[int, str]]:
    """Embed the parts on a cluster's workers, who see the store and the collection as folders.

    patience_s: how long a first worker is waited for. Returns what was added meanwhile (by the
    receipts), and the parts that failed with why. Raises ClusterError where the cluster cannot be
    reached, or is lost for long; what was committed is kept.
    """
    run = _Run(connect, work, store, progress, limit, patience_s)
    return run.embed([part.index for part in parts])


def at_worker(work: Work, parts: Sequence[int]) -> tuple[str, Outcome]:
    """Embed parts in a worker of a cluster; return which it is, and what became of them.

    A worker that is told to end, or has lost its scheduler, ends after the batch it is at.
    """
    from distributed import Status, get_worker

    worker = get_worker()

    def go_on(_: int) -> None:
        if worker.status not in (Status.running, Status.paused):
            raise EndingError

    return str(worker.address), embed_parts(work, parts, Progress(advance=go_on))


# --- the run -----------------------------------------------------------------------------------


class _LostError(Exception):
    """The scheduler does not answer any more."""


class _Run:
    """One run: a deal, and the client that carries it, replaced when its scheduler is lost."""

    def __init__(
        self,
        connect: Callable[[], Client],
        work: Work,
        store: FeatureStore,
        progress: Progress,
        limit: BadLimit,
        patience_s: float,
    ) -> None:
        self.connect, self.work, self.store = connect, work, store
        self.progress, self.limit, self.patience_s = progress, limit, patience_s
        self.held_at = 0.0

    def embed(self, parts: Sequence[int]) -> tuple[Embedded, dict[int, str]]:
        """Have every part done, or failed."""
        self.deal, self.done = Deal(set(parts)), Embedded()
        self.slices = live_slices(self.store)
        self.progress.plan(sum(self.slices[index] for index in parts))
        self._open()
        try:
            while self.deal.left:
                try:
                    self._submit()
                    self._receive()
                    self._look_at_held()
                except _LostError:
                    self._reopen()
        finally:
            self._close()
        return self.done, self.deal.failed

    def _submit(self) -> None:
        """Give out tasks, as many as the window has room for."""
        workers = self._count_workers()
        while len(self.out) < WINDOW * workers and (task := self.deal.next(workers)) is not None:
            others = [each for each in self.workers if each not in task.tried] if task.tried else []
            future = self.client.submit(
                at_worker,
                self.work,
                task.parts,
                key=f"{self.name}-{next(self.count)}",
                pure=False,
                resources={"GPU": 1} if self.work.speed.device.startswith("cuda") else None,
                workers=others or None,
                allow_other_workers=bool(others),  # they may have died when its turn comes
            )
            self.out[future.key] = task, future
            future.add_done_callback(self.back.put)

    def _receive(self) -> None:
        """Take what has come back, waiting a moment for the first."""
        with contextlib.suppress(queue.Empty):
            future = self.back.get(timeout=_POLL_S)
            task, _ = self.out.pop(future.key)
            if future.status == "finished":
                worker, outcome = self._ask(future.result)
                self._take(task, outcome, worker)
            elif future.status == "error":
                error = told(self._ask(future.exception), self.work.root)
                self._take(task, Outcome(undone=task.parts, error=error), "")
            else:
                self.deal.lost(task)
        if self.client.status != "running":
            raise _LostError

    def _take(self, task: Task, outcome: Outcome, worker: str) -> None:
        """Note what became of a task. Raises TooManyBadError, and ClusterError where all fails."""
        before, deal = set(self.deal.failed), self.deal
        self._note(deal.take(task, outcome, worker))
        for index in deal.failed.keys() - before:
            note_failure(self.store.path, index, deal.failed[index])
        if deal.fails >= HOPELESS:
            raise ClusterError(
                f"{deal.fails} parts failed one after the other, each on several workers. The "
                f"last: {outcome.error} What was committed is kept."
            )

    def _note(self, news: Sequence[int]) -> None:
        """Count parts that are done, each once: it is their receipts that are counted."""
        more, bad = tally(self.store, news)
        self.done = add(self.done, more)
        self.progress.advance(sum(self.slices[index] for index in news))
        self.limit.bad += bad
        self.limit.check()

    def _look_at_held(self) -> None:
        """See what became of parts that others hold: done, or free again."""
        now = time.monotonic()
        if not self.deal.held or now - self.held_at < _HELD_S:
            return
        self.held_at, held = now, self.store.holders()
        for index in sorted(self.deal.held):
            if self.store.receipt(index) is not None:
                self._note(self.deal.done([index]))
            elif index not in held:
                self.deal.free(index)

    # --- the connection ---

    def _open(self) -> None:
        self.client = self.connect()
        self.name = f"radprobe-{uuid.uuid4().hex[:8]}"
        self.count = itertools.count()
        self.out: dict[str, tuple[Task, Future]] = {}
        self.back: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.workers: list[str] = []
        self.asked_at, self.met_at = float("-inf"), time.monotonic()

    def _close(self) -> None:
        """Leave the scheduler: it forgets this run's tasks, and workers commit what they are at."""
        with contextlib.suppress(Exception):  # a scheduler that is lost cannot be told
            self.client.close(timeout=2)

    def _reopen(self) -> None:
        """Wait for the scheduler to come back, and go on with what has no receipt then."""
        log.warning(
            "The scheduler is lost. It is waited for for %g s; what its workers are at, they "
            "commit.",
            PATIENCE_S,
        )
        self._close()
        self._open()
        log.warning("The scheduler is back.")
        left = sorted(self.deal.left)
        self._note(self.deal.done([i for i in left if self.store.receipt(i) is not None]))
        self.deal.restart()

    def _ask(self, question: Callable[..., Any]) -> Any:
        """Return the scheduler's answer. Raises _LostError where none comes."""
        from distributed.comm import CommClosedError

        try:
            return question(timeout=_ANSWER_S)
        except (OSError, TimeoutError, CommClosedError):
            raise _LostError from None

    def _count_workers(self) -> int:
        """Return how many workers there are, asked for now and then."""
        now = time.monotonic()
        if now - self.asked_at > _WORKERS_S:
            self.asked_at = now
            self.workers = list(self._ask(lambda timeout: self.client.nthreads()))
            if self.workers:
                self.met_at = now
            elif now - self.met_at > self.patience_s:
                raise ClusterError(
                    f"The scheduler has had no worker for {self.patience_s:g} s. Start workers "
                    "(`dask worker ADDRESS --nthreads 1`) and run the same command again. What was "
                    "committed is kept."
                )
        return len(self.workers)
