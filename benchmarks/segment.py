"""An epoch of head training from the store, and what it costs beside the ways round it.

    .venv/bin/python -m benchmarks.segment [--slices 256] [--size 224] [--epochs 2]

`ratio`: the same epochs of the same head on the same batches, with tokens from the store, and with
the network run on each batch, whose images lie ready in memory: what is saved is the forward pass
alone, without reading and preprocessing. `loader`: slices a second that the loader hands over by
itself, and that the head learns from when batches lie ready; it keeps up where it is the quicker.
`memory`: the most a process has held while it trained on stores of growing size, beyond what it
held before.

Tokens are noise in float16 and in int8, as dinov2_vits14 has them; all seven learning rates of the
defaults are trained at once. The numbers are the least of so many epochs.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.weights import locate
from pipeline.config.segmentation import Segment
from pipeline.config.segmentation_heads import SEGMENTATION_HEADS
from pipeline.recipe import PatchTokens, Recipe
from pipeline.segmentation import training
from pipeline.segmentation.loader import Batch, Loader
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.devices import pick_device
from stores import ArraySpec, FeatureStore
from stores.layout import default_part_rows
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

Rows = NDArray[np.int64]
NAME, WEIGHTS = "dinov2_vits14", "random:0"
MEGABYTE = 2**20
BATCH = 16


@dataclass(frozen=True)
class Cached:
    """Tokens from a store; masks of two classes, and images, made of nothing."""

    store: FeatureStore
    image_size: int
    classes: tuple[str, ...] = ("background", "organ")

    @property
    def chunk_rows(self) -> int:
        return Tokens(self.store).chunk_rows

    def tokens(self, rows: Rows) -> NDArray[Any]:
        return Tokens(self.store).read(rows)

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        masks = np.zeros((len(rows), self.image_size, self.image_size), np.uint8)
        masks[:, : self.image_size // 3] = 1
        return masks

    def images(self, rows: Rows) -> NDArray[np.float32]:
        return np.zeros((len(rows), 3, self.image_size, self.image_size), np.float32)


@dataclass(frozen=True)
class InTheLoop(Cached):
    """The same, but that tokens come from the network each time."""

    network: Backbone | None = None

    def tokens(self, rows: Rows) -> NDArray[Any]:
        assert self.network is not None
        patch = self.network(torch.from_numpy(self.images(rows))).patch
        return patch.cpu().numpy()[:, None]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=256)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--growth", type=int, default=32, help="of the largest store for memory")
    options.add_argument("--device", default="auto")
    options.add_argument("--train-on", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    logging.disable(logging.WARNING)  # of random weights
    if args.train_on:
        print(peak(FeatureStore.open(args.train_on), args))
        return
    device = torch.device(pick_device(args.device))
    print(
        f"{args.slices} slices, {NAME} at {args.size} px, {device}, "
        f"{torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        plain, blocks, coded = (
            write_store(Path(folder) / f"{how.coding}{how.blocks}", args.slices, args.size, how)
            for how in (PatchTokens(), PatchTokens(blocks=5), PatchTokens(coding="int8"))
        )
        ratio(plain, args, device)
        for method, store in (("linear", plain), ("linear", coded), ("decoder", blocks)):
            loader(store, method, args, device)
        memory(Path(folder), args)


def write_store(path: Path, n: int, size: int, how: PatchTokens) -> FeatureStore:
    """Write a store of n slices whose patch tokens are noise."""
    architecture = locate(NAME, WEIGHTS).architecture
    recipe = Recipe(
        architecture=architecture, weights=WEIGHTS, image_size=size, outputs=("patch",), patch=how
    )
    specs = {name: ArraySpec(shape, dtype) for name, (shape, dtype) in recipe.arrays.items()}
    row_bytes = sum(int(np.prod(s.row_shape)) * np.dtype(s.dtype).itemsize for s in specs.values())
    store = FeatureStore.create(path, recipe.canonical(), specs, default_part_rows(row_bytes))
    slices = [
        {"row": i, "path": f"{i}.png", "frame": 0, "modality": "DX", "withdrawn": False}
        for i in range(n)
    ]
    store.write_tables(pa.Table.from_pylist(slices, SLICE_SCHEMA), FILE_SCHEMA.empty_table())
    rng = np.random.default_rng(0)
    noise = {
        name: rng.normal(0, 50, (1, *s.row_shape)).astype(s.dtype) for name, s in specs.items()
    }
    for part in store.missing():
        arrays = store.empty_part()
        for name, value in noise.items():
            arrays[name][:] = value
        arrays["status"][:] = 1
        claim = store.claim(part)
        assert claim is not None
        store.write(part, claim, arrays, {"failures": []})
        claim.release()
    return store


def ratio(store: FeatureStore, args: argparse.Namespace, device: torch.device) -> None:
    """Time epochs from the store and with the network in the loop."""
    few = np.arange(min(args.slices, 64))  # a share of the work is enough of the slow way
    network = load_backbone(NAME, WEIGHTS, image_size=args.size, device=device)
    seconds = [
        seconds_a_slice(source, few, args.epochs, device)
        for source in (Cached(store, args.size), InTheLoop(store, args.size, network=network))
    ]
    print(
        f"ratio   an epoch from the store {1e3 * seconds[0]:.1f} ms a slice, with the network in "
        f"the loop {1e3 * seconds[1]:.1f} ms: {seconds[1] / seconds[0]:.1f} times"
    )


def seconds_a_slice(source: Cached, rows: Rows, epochs: int, device: torch.device) -> float:
    """Return the time of training the linear head for an epoch, its loader anew each time."""
    found = []
    for _ in range(epochs):
        started = time.perf_counter()
        settings = asked("linear")
        training.train(build_of(settings), source, rows, settings, settings.learning_rates, device)
        found.append((time.perf_counter() - started) / len(rows))
    return min(found)


def loader(
    store: FeatureStore, method: Any, args: argparse.Namespace, device: torch.device
) -> None:
    """Time the loader by itself, and the head on batches that lie ready."""
    settings, source, rows = asked(method), Cached(store, args.size), np.arange(args.slices)
    seconds = []
    for epoch in range(args.epochs):
        # Of a pool a quarter of the store's size, so that none of it is kept.
        held = source.tokens(rows[:1]).nbytes * args.slices // 4
        made = Loader(source, rows, frozenset({"tokens"}), settings.batch_size, 0, held)
        started = time.perf_counter()
        first, *_ = (batch.at(slice(None)) for batch in made.epoch(epoch))
        seconds.append((time.perf_counter() - started) / len(rows))
    head = head_seconds(source, first, settings, args.epochs, device)
    coding = store.array("patch").dtype
    print(
        f"loader  {method} on {coding}: {1 / min(seconds):.0f} slices/s handed over "
        f"({store.array('patch').row_bytes / min(seconds) / MEGABYTE:.0f} MB/s of the store), "
        f"{1 / head:.1f} learned from: {head / min(seconds):.1f} times"
    )


def head_seconds(
    source: Cached, batch: Batch, settings: Segment, epochs: int, device: torch.device
) -> float:
    """Return the time a slice of training steps on one batch that lies ready."""
    ready = _Ready(source, batch)
    found = []
    for _ in range(epochs):
        started = time.perf_counter()
        many = settings.model_copy(update={"epochs": 4})
        rows = np.arange(len(batch.rows))
        training.train(build_of(many), ready, rows, many, many.learning_rates, device)
        found.append((time.perf_counter() - started) / (4 * len(batch.rows)))
    return min(found)


class _Ready(Cached):
    """One batch, whichever rows are asked for."""

    def __init__(self, source: Cached, batch: Batch) -> None:
        super().__init__(source.store, source.image_size)
        object.__setattr__(self, "held", batch.tokens)

    def tokens(self, rows: Rows) -> NDArray[Any]:
        return self.held[: len(rows)]  # type: ignore[attr-defined, no-any-return]


def memory(folder: Path, args: argparse.Namespace) -> None:
    """Train on stores of growing size, each in a process of its own."""
    for times in sizes(args.growth):
        n = times * args.slices
        store = write_store(folder / f"memory{times}", n, args.size, PatchTokens())
        command = [sys.executable, "-m", "benchmarks.segment", "--train-on", str(store.path)]
        command += ["--size", str(args.size), "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        bytes_ = n * store.array("patch").row_bytes
        print(
            f"memory  a store of {bytes_ / MEGABYTE:.0f} MB: {done.stdout.strip()} MB", flush=True
        )


def sizes(growth: int) -> Iterator[int]:
    """Yield 2, 8, 32, ... to growth."""
    times = 2
    while times <= growth:
        yield times
        times *= 4


def peak(store: FeatureStore, args: argparse.Namespace) -> str:
    """Train the linear head at one learning rate for an epoch; return the memory that took."""
    source, rows = Cached(store, args.size), store.slices()["row"].to_numpy()
    few = rows[:BATCH]
    settings, device = asked("linear"), torch.device("cpu")
    training.train(build_of(settings), source, few, settings, (0.1,), device)  # what torch sets up
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
    before = held("VmRSS")
    training.train(build_of(settings), source, rows, settings, (0.1,), device)
    return f"{held('VmHWM') - before:.0f}"


def held(name: str) -> float:
    """Return the MB of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(name)) / 2**10


def build_of(settings: Segment) -> training.Build:
    build: training.Build = importlib.import_module(
        SEGMENTATION_HEADS[settings.method].module
    ).build
    return build


def asked(method: Any) -> Segment:
    return Segment(method=method, epochs=1, batch_size=BATCH)


if __name__ == "__main__":
    main()
