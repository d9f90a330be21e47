"""What `doctor --bench` measured, kept beside the store it was measured for.

`plan` makes hours of it, and `extract` takes its batch size.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.types import Frozen, Precision
from stores._disk import write_atomic


class Forward(Frozen):
    """One setting of the forward pass, and slices a second."""

    precision: Precision
    compiled: bool
    batch_size: int
    slices_per_s: float


class Pace(Frozen):
    """How fast one machine is at one store: slices a second of each stage by itself.

    device: cpu, or the name of the card. read_per_s: slices read and decoded by one core, at
    read_mb_per_s of files; write_mb_per_s: committed to the store's disk.
    """

    host: str = Field(default_factory=socket.gethostname)
    recipe: str  # digest
    precision: Precision  # of the recipe
    device: str
    cores: int
    forward: tuple[Forward, ...]
    read_per_s: float | None
    read_mb_per_s: float | None
    write_mb_per_s: float

    @property
    def best(self) -> Forward:
        """The fastest way through the network that a plain run takes: eager, of the recipe."""
        plain = [f for f in self.forward if f.precision == self.precision and not f.compiled]
        return max(plain, key=lambda forward: forward.slices_per_s)

    def seconds(self, slices: int, megabytes: float, workers: int | None = None) -> float:
        """Return how long so many slices take: the slowest stage, or on a CPU their sum."""
        forward = slices / self.best.slices_per_s
        read = slices / self.read_per_s if self.read_per_s else 0.0
        write = megabytes / self.write_mb_per_s
        if self.device == "cpu":  # all stages share the cores
            return forward + read / self.cores + write / self.cores
        return max(forward, read / (workers or max(1, self.cores - 1)), write)


def save_pace(store: Path, pace: Pace) -> Path:
    """Keep what was measured beside the store; return where."""
    path = _place(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (pace.model_dump_json(indent=1) + "\n").encode())
    return path


def load_pace(store: Path, recipe: str) -> Pace | None:
    """Return what was measured on this machine for a store's recipe; None where nothing was."""
    try:
        pace = Pace.model_validate(json.loads(_place(store).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    mine = pace.host == socket.gethostname() and pace.recipe == recipe
    return pace if mine and pace.forward else None


def measured_batch(store: Path, recipe: str, device: str) -> int | None:
    """Return the batch size that was measured as the fastest on a device (cpu, cuda:0)."""
    pace = load_pace(store, recipe)
    if pace is None or (pace.device == "cpu") != (device == "cpu"):
        return None
    return pace.best.batch_size


def best_of(forward: Sequence[Forward]) -> Forward:
    """Return the fastest of what was measured."""
    return max(forward, key=lambda one: one.slices_per_s)


def _place(store: Path) -> Path:
    return store.with_name(store.name + ".bench.json")
