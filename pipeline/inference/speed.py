"""Settings that change how fast features come, chosen by the machine where they are left open."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.inference.throughput import measured_batch
from pipeline.recipe import Recipe

# Slices a forward pass where nothing was measured. On a CPU few, a lane each (2 to 32 of ViT-S are
# as fast, measured); elsewhere, so many tokens as keep a card busy.
_CPU_BATCH = 4
_TOKENS = 2**15


@dataclass(frozen=True)
class Speed:
    """Settings that change how fast features come, and no value beyond rounding.

    device: auto (the first GPU where there is one), cpu, cuda:1, mps. batch_size: slices a forward
    pass; workers: processes that read files; None: chosen by the machine. time_limit_s: decoding
    time of one file. compiled: through torch.compile. trace: where a trace of the first batches is
    written, for chrome://tracing.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    time_limit_s: float = 60.0
    compiled: bool = False
    trace: Path | None = None

    @property
    def header_workers(self) -> int:
        """How many processes open files, beside which no network runs: by default one a core."""
        return cores() if self.workers is None else self.workers

    def chosen(self, device: str, recipe: Recipe) -> Speed:
        """Return these settings with nothing left open, for a run on a device (cpu, cuda:0).

        The same every time on one machine, so that a run that is resumed makes the same batches:
        what `doctor --bench` measured, or else a rule.
        """
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = measured_batch(recipe, device, compiled=self.compiled)
        if batch_size is None:
            tokens = (recipe.image_size // recipe.architecture.patch) ** 2
            batch_size = _CPU_BATCH if device == "cpu" else _power_of_two(_TOKENS // tokens)
        workers = self.workers
        if workers is None:  # on a CPU more would take the network's cores
            workers = 1 if device == "cpu" else max(1, cores() - 1)
        return replace(self, device=device, batch_size=batch_size, workers=workers)


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep where they wait for each other, and not spin on their cores.

    Readers and others have those then: beside other work a pass of ViT-S takes 0.6 of the processor
    time, and less by the clock (measured: benchmarks/extract.py). OpenMP looks once, as torch is
    imported; what the user has set stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _power_of_two(limit: int) -> int:
    return 1 << (max(1, limit).bit_length() - 1)
