"""What `doctor --bench` measured, in the user's cache by machine and network.

`plan` makes hours of it, and `extract` takes its batch size.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from pydantic import ValidationError

from pipeline.recipe import Precision, Recipe
from pipeline.shared.frozen import Frozen
from stores._disk import write_atomic

# Kinds of devices, in the order in which a run takes them by itself.
_KINDS = ("cuda", "cpu")


class ForwardRate(Frozen):
    """One setting of the forward pass, and slices a second."""

    precision: Precision
    compiled: bool
    batch_size: int
    slices_per_s: float


class ReadingRate(Frozen):
    """How fast the files of one collection come: slices decoded by a core, and MB of files."""

    root: str
    slices_per_s: float
    mb_per_s: float


class Throughput(Frozen):
    """How fast one machine is with one network: each stage by itself.

    device: cpu, cuda:0; card: its name. write_mb_per_s: committed to the disk of a store.
    """

    device: str
    card: str
    cores: int
    forward: tuple[ForwardRate, ...]
    reading: ReadingRate | None
    write_mb_per_s: float

    def best(self, precision: Precision, *, compiled: bool = False) -> ForwardRate | None:
        """Return the fastest batch at a precision; None where none was measured."""
        rates = [f for f in self.forward if (f.precision, f.compiled) == (precision, compiled)]
        return max(rates, key=lambda rate: rate.slices_per_s, default=None)

    def seconds(
        self, slices: int, megabytes: float, precision: Precision, root: Path
    ) -> float | None:
        """Return how long a plain run takes: by its slowest stage, or on a CPU by all of them.

        Reading counts where it was measured on this collection. None where the precision was not.
        """
        best = self.best(precision)
        if best is None:
            return None
        forward_s = slices / best.slices_per_s
        write_s = megabytes / self.write_mb_per_s
        read_s = 0.0  # of one core
        if self.reading is not None and self.reading.root == str(root.absolute()):
            read_s = slices / self.reading.slices_per_s
        if self.device == "cpu":  # all stages share the cores
            return forward_s + (read_s + write_s) / self.cores
        return max(forward_s, read_s / max(1, self.cores - 1), write_s)


def save_throughput(recipe: Recipe, throughput: Throughput) -> Path:
    """Put what was measured with a recipe's network into the cache; return where."""
    path = _path(recipe, throughput.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (throughput.model_dump_json(indent=1) + "\n").encode())
    return path


def load_throughput(recipe: Recipe, device: str | None = None) -> Throughput | None:
    """Return what was measured on this machine with a recipe's network; None where nothing was.

    device: cpu, cuda:0; None for the one that a run takes by itself.
    """
    for kind in _KINDS if device is None else (device,):
        try:
            return Throughput.model_validate_json(_path(recipe, kind).read_bytes())
        except (OSError, ValidationError):
            continue
    return None


def measured_batch(recipe: Recipe, device: str, *, compiled: bool) -> int | None:
    """Return the batch size that was measured as the fastest on a device (cpu, cuda:0)."""
    throughput = load_throughput(recipe, device)
    if throughput is None:
        return None
    best = throughput.best(recipe.precision, compiled=compiled)
    return None if best is None else best.batch_size


def _path(recipe: Recipe, device: str) -> Path:
    """Return the file of a machine, a kind of device, and a network at an image size."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Speed depends on the shape alone: any weights of it have the same.
    network = f"{recipe.architecture.model_dump_json()} {recipe.image_size}"
    digest = hashlib.sha256(network.encode()).hexdigest()[:16]
    kind = device.partition(":")[0]
    return cache / "radprobe" / "pace" / f"{socket.gethostname()}-{kind}-{digest}.json"
