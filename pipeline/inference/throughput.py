"""What `doctor --bench` measured, kept in the user's cache by machine and network.

`plan` makes hours of it, and `extract` takes its batch size.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from pydantic import ValidationError

from pipeline.recipe import Precision, Recipe
from pipeline.types import Frozen
from stores._disk import write_atomic

# Kinds of devices, in the order in which a run takes them by itself.
_KINDS = ("cuda", "cpu")


class Forward(Frozen):
    """One setting of the forward pass, and slices a second."""

    precision: Precision
    compiled: bool
    batch_size: int
    slices_per_s: float


class Reading(Frozen):
    """How fast the files of one collection come: slices decoded by a core, and MB of files."""

    root: str
    slices_per_s: float
    mb_per_s: float


class Pace(Frozen):
    """How fast one machine is with one network: each stage by itself.

    device: cpu, cuda:0; card: its name. write_mb_per_s: committed to the disk of a store.
    """

    device: str
    card: str
    cores: int
    forward: tuple[Forward, ...]
    reading: Reading | None
    write_mb_per_s: float

    def best(self, precision: Precision, *, compiled: bool = False) -> Forward | None:
        """Return the fastest batch of one way through the network; None where none was measured."""
        ways = [f for f in self.forward if (f.precision, f.compiled) == (precision, compiled)]
        return max(ways, key=lambda way: way.slices_per_s, default=None)

    def seconds(
        self, slices: int, megabytes: float, precision: Precision, root: Path
    ) -> float | None:
        """Return how long a plain run takes: by its slowest stage, or on a CPU by all of them.

        Reading counts where it was measured on this collection. None where the precision was not.
        """
        best = self.best(precision)
        if best is None:
            return None
        forward, write = slices / best.slices_per_s, megabytes / self.write_mb_per_s
        known = self.reading is not None and self.reading.root == str(root.absolute())
        read = slices / self.reading.slices_per_s if self.reading and known else 0.0
        if self.device == "cpu":  # all stages share the cores
            return forward + (read + write) / self.cores
        return max(forward, read / max(1, self.cores - 1), write)


def save_pace(recipe: Recipe, pace: Pace) -> Path:
    """Keep what was measured with a recipe's network; return where."""
    path = _place(recipe, pace.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (pace.model_dump_json(indent=1) + "\n").encode())
    return path


def load_pace(recipe: Recipe, device: str | None = None) -> Pace | None:
    """Return what was measured on this machine with a recipe's network; None where nothing was.

    device: cpu, cuda:0; None for the one that a run takes by itself.
    """
    for kind in _KINDS if device is None else (device,):
        try:
            return Pace.model_validate_json(_place(recipe, kind).read_bytes())
        except (OSError, ValidationError):
            continue
    return None


def measured_batch(recipe: Recipe, device: str, *, compiled: bool) -> int | None:
    """Return the batch size that was measured as the fastest on a device (cpu, cuda:0)."""
    pace = load_pace(recipe, device)
    best = pace.best(recipe.precision, compiled=compiled) if pace is not None else None
    return best.batch_size if best is not None else None


def _place(recipe: Recipe, device: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    network = f"{recipe.architecture.model_dump_json()} {recipe.image_size}"
    digest = hashlib.sha256(network.encode()).hexdigest()[:16]
    kind = device.partition(":")[0]
    return cache / "radprobe" / "pace" / f"{socket.gethostname()}-{kind}-{digest}.json"
