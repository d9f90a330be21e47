"""Parts over the workers of a dask cluster, to which `clusters` connects.

The cluster carries the tasks, the store's receipts say what is done: a task is a stretch of parts,
as addresses; it may be lost, or run twice at once, and nothing is counted twice. A bounded number
of tasks is in flight, whatever the number of parts.
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
from pipeline.extraction.distributed.scheduler import WINDOW, Assignment, PartScheduler
from pipeline.extraction.distributed.tasks import (
    MAX_FAILURES_IN_A_ROW,
    EmbedResult,
    EndingError,
    Work,
    WorkerOutcome,
    add,
    describe_error,
    embed_parts,
    live_slices,
    note_failure,
    tally,
)
from pipeline.extraction.embed import BadLimit, Embedded, Progress
from stores import FeatureStore, PartRange
from stores.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

# How long a task is waited for before the rest of the run is looked after.
_POLL_S = 0.5
# How often the cluster is asked for its workers, and the store for what others have claimed.
_WORKERS_S = 2.0
_CLAIMS_S = 5.0
# How long the dask scheduler may take for an answer before it counts as lost.
_ANSWER_S = 30.0


def embed_on_cluster(
    connect: Callable[[], Client],
    work: Work,
    store: FeatureStore,
    parts: Sequence[PartRange],
    progress: Progress,
    limit: BadLimit,
    patience_s: float = PATIENCE_S,
) -> EmbedResult:
    """Embed the parts on a cluster's workers, who see the store and the collection as folders.

    patience_s: how long a first worker is waited for. Returns what was added meanwhile (by the
    receipts), and the parts that failed with why. Raises ClusterError where the cluster cannot be
    reached, or is lost for long; what was committed is kept.
    """
    run = _ClusterRun(connect, work, store, progress, limit, patience_s)
    return run.embed([part.index for part in parts])


def embed_at_worker(work: Work, parts: Sequence[int]) -> tuple[str, WorkerOutcome]:
    """Embed parts in a worker of a cluster; return which it is, and what became of them.

    A worker that is told to end, or has lost its scheduler, ends after the batch it is at.
    """
    from distributed import Status, get_worker

    worker = get_worker()

    def end_with_worker(_: int) -> None:
        if worker.status not in (Status.running, Status.paused):
            raise EndingError

    outcome = embed_parts(work, parts, Progress(advance=end_with_worker))
    return str(worker.address), outcome


# --- the run -----------------------------------------------------------------------------------


class _LostError(Exception):
    """The dask scheduler does not answer any more."""


class _ClusterRun:
    """One run: what goes out next, and the client that carries it, replaced when it is lost."""

    def __init__(
        self,
        connect: Callable[[], Client],
        work: Work,
        store: FeatureStore,
        progress: Progress,
        limit: BadLimit,
        patience_s: float,
    ) -> None:
        self.connect = connect
        self.work = work
        self.store = store
        self.progress = progress
        self.limit = limit
        self.patience_s = patience_s
        self.claims_read_at = 0.0

    def embed(self, parts: Sequence[int]) -> EmbedResult:
        """Have every part done, or failed."""
        self.parts = PartScheduler(set(parts))
        self.embedded = Embedded()
        self.slices = live_slices(self.store)
        self.progress.plan(sum(self.slices[index] for index in parts))
        self._connect()
        try:
            while self.parts.left:
                try:
                    self._submit()
                    self._receive()
                    self._check_claimed()
                except _LostError:
                    self._reconnect()
        finally:
            self._close()
        return EmbedResult(self.embedded, self.parts.failed)

    def _submit(self) -> None:
        """Give out assignments, as many as the window has room for."""
        workers = self._count_workers()
        while len(self.in_flight) < WINDOW * workers:
            assignment = self.parts.next(workers)
            if assignment is None:
                return
            self._submit_one(assignment)

    def _submit_one(self, assignment: Assignment) -> None:
        tried = assignment.tried
        untried = [worker for worker in self.workers if worker not in tried] if tried else []
        on_gpu = self.work.speed.device.startswith("cuda")
        future = self.client.submit(
            embed_at_worker,
            self.work,
            assignment.parts,
            key=f"{self.name}-{next(self.count)}",
            pure=False,
            resources={"GPU": 1} if on_gpu else None,
            workers=untried or None,
            allow_other_workers=bool(untried),  # they may have died when its turn comes
        )
        # Before the callback: it may come at once, and `_receive` then looks for the key.
        self.in_flight[future.key] = assignment, future
        future.add_done_callback(self.finished.put)

    def _receive(self) -> None:
        """Take one task that has come back, waiting a moment for it."""
        with contextlib.suppress(queue.Empty):
            future = self.finished.get(timeout=_POLL_S)
            assignment, _ = self.in_flight.pop(future.key)
            self._take(assignment, future)
        if self.client.status != "running":
            raise _LostError

    def _take(self, assignment: Assignment, future: Future) -> None:
        """Take what a task has come to: a result, an error of its worker, or nothing."""
        if future.status == "finished":
            worker, outcome = self._query(future.result)
            self._record(assignment, outcome, worker)
        elif future.status == "error":
            error = describe_error(self._query(future.exception), self.work.root)
            self._record(assignment, WorkerOutcome(undone=assignment.parts, error=error), "")
        else:  # cancelled, or lost with its scheduler
            self.parts.give_back(assignment)

    def _record(self, assignment: Assignment, outcome: WorkerOutcome, worker: str) -> None:
        """Note what became of parts. Raises TooManyBadError, and ClusterError where all fails."""
        failed_before = set(self.parts.failed)
        self._count(self.parts.record(assignment, outcome, worker))
        for index in self.parts.failed.keys() - failed_before:
            note_failure(self.store.path, index, self.parts.failed[index])
        if self.parts.fails >= MAX_FAILURES_IN_A_ROW:
            raise ClusterError(
                f"{self.parts.fails} parts failed one after the other, each on several workers. "
                f"The last: {outcome.error} What was committed is kept."
            )

    def _count(self, news: Sequence[int]) -> None:
        """Count parts that are done, each once: it is their receipts that are counted."""
        more, bad = tally(self.store, news)
        self.embedded = add(self.embedded, more)
        self.progress.advance(sum(self.slices[index] for index in news))
        self.limit.bad += bad
        self.limit.check()

    def _check_claimed(self) -> None:
        """See what became of parts that others have claimed: done, or free again."""
        now = time.monotonic()
        if not self.parts.claimed or now - self.claims_read_at < _CLAIMS_S:
            return
        self.claims_read_at = now
        # Claims before receipts: a claim is given back after its part's receipt is there, so a part
        # whose claim is gone and that has no receipt then was given up, and not just committed.
        holders = self.store.holders()
        for index in sorted(self.parts.claimed):
            if self.store.receipt(index) is not None:
                self._count(self.parts.mark_done([index]))
            elif index not in holders:
                self.parts.release(index)

    # --- the connection ---

    def _connect(self) -> None:
        self.client = self.connect()
        # A name of its own for each connection: a dask scheduler that comes back may still know
        # the tasks of the one before.
        self.name = f"radprobe-{uuid.uuid4().hex[:8]}"
        self.count = itertools.count()
        self.in_flight: dict[str, tuple[Assignment, Future]] = {}
        self.finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.workers: list[str] = []
        self.workers_read_at = float("-inf")
        self.had_workers_at = time.monotonic()

    def _close(self) -> None:
        """Leave the cluster: it forgets this run's tasks, and workers commit what they are at."""
        with contextlib.suppress(Exception):  # a scheduler that is lost cannot be told
            self.client.close(timeout=2)

    def _reconnect(self) -> None:
        """Wait for the dask scheduler to come back, and go on with what has no receipt then."""
        log.warning(
            "The scheduler is lost. It is waited for for %g s; what its workers are at, they "
            "commit.",
            PATIENCE_S,
        )
        self._close()
        self._connect()
        log.warning("The scheduler is back.")
        # Only now: workers have committed parts while nobody listened, and what still has no
        # receipt goes out again. A worker that is still at one has its claim on it.
        committed = [i for i in sorted(self.parts.left) if self.store.receipt(i) is not None]
        self._count(self.parts.mark_done(committed))
        self.parts.restart()

    def _query(self, call: Callable[..., Any]) -> Any:
        """Return the dask scheduler's answer. Raises _LostError where none comes."""
        from distributed.comm import CommClosedError

        try:
            return call(timeout=_ANSWER_S)
        except (OSError, TimeoutError, CommClosedError):
            raise _LostError from None

    def _count_workers(self) -> int:
        """Return how many workers there are, asked for now and then."""
        now = time.monotonic()
        if now - self.workers_read_at > _WORKERS_S:
            self.workers_read_at = now
            self.workers = list(self._query(lambda timeout: self.client.nthreads()))
            if self.workers:
                self.had_workers_at = now
            elif now - self.had_workers_at > self.patience_s:
                raise ClusterError(
                    f"The scheduler has had no worker for {self.patience_s:g} s. Start workers "
                    "(`dask worker ADDRESS --nthreads 1`) and run the same command again. What was "
                    "committed is kept."
                )
        return len(self.workers)
