"""Where and how networks are tuned: speed settings, of which nothing is of an answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

CHECKPOINT_S = 300.0
# What is being tuned, steps done, of how many at most.
Progress = Callable[[str, int, int], None]
ReportSteps = Callable[[int, int], None]  # steps done, of how many at most


@dataclass(frozen=True)
class TuningOptions:
    """The options of a run.

    device: of torch's; auto, the first GPU where there is one. processes: that share every step,
    each with a GPU of its own, or all with the CPU. workers: processes that read files; None, by
    the machine. checkpoint_s: seconds between two checkpoints. progress: called after each step.
    """

    device: str
    processes: int
    workers: int | None
    checkpoint_s: float
    progress: Progress | None

    def step_reporter(self, label: str) -> ReportSteps:
        """Return what is called with steps done and steps at most; label: what is being tuned."""
        if self.progress is None:
            return report_nothing
        return functools.partial(self.progress, label)


def report_nothing(done: int, most: int) -> None:
    """Report no steps. A function of a module, which other processes can be sent."""
