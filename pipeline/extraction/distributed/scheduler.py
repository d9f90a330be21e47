"""Which parts go to which worker next, and what comes of them: plain data, whoever carries it.

Parts go out in stretches, shorter towards the end. A stretch that fails goes out again part by
part; a part that fails by itself goes to other workers; one that fails on all is named.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.extraction.distributed.tasks import WorkerOutcome

log = logging.getLogger(__name__)

# Assignments that a worker has at a time: one at work and one to go on with.
WINDOW = 2
# Parts of one assignment at most: enough to hide what it costs, few enough to lose little.
STRETCH = 64
# Workers that a part which fails is tried on.
ATTEMPTS = 3


@dataclass(frozen=True)
class Assignment:
    """Parts to embed in one go; tried: the workers on which a part that fails has failed."""

    parts: tuple[int, ...]
    tried: tuple[str, ...] = ()


@dataclass
class PartScheduler:
    """Parts on their way to done or failed: pure data, which knows of no cluster and no store.

    left: neither done nor failed; fresh: of these, not given out yet; again: to be given out
    before those; claimed: at work in processes of other runs, or in workers that were lost. fails:
    parts that failed since one was done.
    """

    left: set[int]
    fresh: deque[int] = field(default_factory=deque)
    again: deque[Assignment] = field(default_factory=deque)
    claimed: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    fails: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Have everything that is left go out again."""
        self.fresh = deque(sorted(self.left))
        self.again.clear()
        self.claimed.clear()

    def next(self, workers: int) -> Assignment | None:
        """Return what goes out next to one of so many workers; None where all is out."""
        # What failed before goes first: where it fails for good, that is known early.
        if self.again:
            return self.again.popleft()
        if not self.fresh:
            return None
        # Half of an even share of what is left, rounded up: stretches shorten towards the end, so
        # that all workers end at about the same time.
        half_share = -(-len(self.fresh) // (2 * WINDOW * workers))
        size = min(STRETCH, half_share)
        return Assignment(tuple(self.fresh.popleft() for _ in range(size)))

    def give_back(self, assignment: Assignment) -> None:
        """Take back an assignment of which nobody knows what became."""
        self.fresh.extendleft(reversed(assignment.parts))

    def record(self, assignment: Assignment, outcome: WorkerOutcome, worker: str) -> list[int]:
        """Note what a worker did of an assignment; return the parts that are done by that."""
        # Parts that are done or failed already stay so: an assignment may have run twice at once.
        self.claimed |= self.left.intersection(outcome.claimed)
        for index in outcome.undone:
            if index in self.left:
                self._undone(index, assignment, outcome.error, worker)
        done = set(assignment.parts).difference(outcome.undone, outcome.claimed)
        return self.mark_done(done)

    def mark_done(self, indices: Collection[int]) -> list[int]:
        """Note parts that have their receipt; return those of which that is news."""
        news = sorted(self.left.intersection(indices))
        self.left.difference_update(news)
        self.claimed.difference_update(news)
        if news:
            self.fails = 0
        return news

    def release(self, index: int) -> None:
        """Have a part go out again that another process claimed, and gave up."""
        self.claimed.discard(index)
        self.fresh.append(index)

    def _undone(self, index: int, assignment: Assignment, error: str | None, worker: str) -> None:
        """Give a part out again: by itself, and where it has failed by itself, to another."""
        if error is None:  # somebody claimed it, and let it go
            self.fresh.append(index)
            return
        # A part that failed beside others is not tried yet: any of them may be at fault.
        alone = len(assignment.parts) == 1
        tried = (*assignment.tried, worker) if alone else ()
        # A dask scheduler gives up on a task when several workers died that had it: one that was
        # only next in line gets a second chance, and no more workers than these are spent on it.
        deaths = ATTEMPTS - 1 if alone and error.startswith("KilledWorker") else ATTEMPTS
        if len(tried) < deaths:
            log.info("Part %d is tried again: %s", index, error)
            self.again.append(Assignment((index,), tried))
            return
        self.left.discard(index)
        self.failed[index] = error
        self.fails += 1
