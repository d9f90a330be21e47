"""Which parts go to which worker next, and what comes of them: plain data, whoever carries it.

Parts go out in stretches, shorter towards the end. A stretch that fails goes out again part by
part; a part that fails by itself goes to other workers; one that fails on all is named.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.extraction.distributed.tasks import Outcome

log = logging.getLogger(__name__)

# Tasks that a worker has at a time: one at work and one to go on with.
WINDOW = 2
# Parts of one task at most: enough to hide what a task costs, few enough to lose little.
STRETCH = 64
# Workers that a part which fails is tried on.
ATTEMPTS = 3


@dataclass(frozen=True)
class Task:
    """Parts to embed in one go; tried: the workers on which a part that fails has failed."""

    parts: tuple[int, ...]
    tried: tuple[str, ...] = ()


@dataclass
class Deal:
    """Parts on their way to done or failed.

    left: neither done nor failed; fresh: of these, not given out yet; held: at work in processes
    of other runs, or in workers that were lost. fails: parts that failed since one was done.
    """

    left: set[int]
    fresh: deque[int] = field(default_factory=deque)
    again: deque[Task] = field(default_factory=deque)
    held: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    fails: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Have everything that is left go out again."""
        self.fresh = deque(sorted(self.left))
        self.again.clear()
        self.held.clear()

    def next(self, workers: int) -> Task | None:
        """Return what goes out next to one of so many workers; None where all is out."""
        if self.again:
            return self.again.popleft()
        if not self.fresh:
            return None
        size = min(STRETCH, -(-len(self.fresh) // (2 * WINDOW * workers)))
        return Task(tuple(self.fresh.popleft() for _ in range(size)))

    def lost(self, task: Task) -> None:
        """Take back a task of which nobody knows what became."""
        self.fresh.extendleft(reversed(task.parts))

    def take(self, task: Task, outcome: Outcome, worker: str) -> list[int]:
        """Note what a worker did of a task; return the parts that are done."""
        self.held |= self.left.intersection(outcome.held)
        for index in outcome.undone:
            if index in self.left:
                self._undone(index, task, outcome.error, worker)
        return self.done(set(task.parts).difference(outcome.undone, outcome.held))

    def done(self, indices: Collection[int]) -> list[int]:
        """Note parts that have their receipt; return those of which that is news."""
        news = sorted(self.left.intersection(indices))
        self.left.difference_update(news)
        self.held.difference_update(news)
        if news:
            self.fails = 0
        return news

    def free(self, index: int) -> None:
        """Have a part go out again that another process held, and gave up."""
        self.held.discard(index)
        self.fresh.append(index)

    def _undone(self, index: int, task: Task, error: str | None, worker: str) -> None:
        """Give a part out again: by itself, and where it has failed by itself, to another."""
        if error is None:  # somebody held it, and let it go
            self.fresh.append(index)
            return
        alone = len(task.parts) == 1
        tried = (*task.tried, worker) if alone else ()
        # A scheduler gives up on a task when several workers died that had it: one that was only
        # next in line gets a second chance, and no more workers than these are spent on it.
        deaths = ATTEMPTS - 1 if alone and error.startswith("KilledWorker") else ATTEMPTS
        if len(tried) < deaths:
            log.info("Part %d is tried again: %s", index, error)
            self.again.append(Task((index,), tried))
            return
        self.left.discard(index)
        self.failed[index] = error
        self.fails += 1
