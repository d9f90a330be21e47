"""Reading and writing alone: an extraction whose network costs nothing, against bare loops.

    .venv/bin/python -m benchmarks.flow

Real DICOM (512 x 512, a file a slice). `bytes` reads the files and nothing else; `pydicom` is a
bare loop of dcmread and pixel_array, on one core; `read` is `read_files` with so many workers,
which gives HU and digests besides; `whole` is all that `extract` does after its look at the folder,
with a network that returns zeros: read, window, resize to 224, commit. The first table has slices
and MB of files a second as the clock saw them, then processor seconds of all processes: those of a
run over a few files, which is the start, and what each further slice costs. The second follows one
slice through its stages in one process, ms of a processor each. The third parts what a further
slice costs between the readers and the process that feeds the network, up to where pixels are
stacked for it, less what a run over 64 slices costs; its last line has readers that cost nothing,
and so tells how many slices one such process passes on. Medians of rounds; the files are in the
page cache. `--only shares` prints the third alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pydicom
import torch

from benchmarks.images import write_images
from benchmarks.waiting import start_asleep
from pipeline.backbones.load import Backbone
from pipeline.backbones.weights import Checkpoint
from pipeline.config.root import Config
from pipeline.extraction.embed import BadLimit, EmbedSettings, Speed, embed_missing
from pipeline.extraction.recipes import make_recipe, open_store
from pipeline.extraction.sync import update_tables
from pipeline.inference.forward import keep_memory
from pipeline.inference.speed import cores
from pipeline.io.decode import read_slices
from pipeline.io.digests import narrow, pixel_digest
from pipeline.io.idle import IDLE
from pipeline.io.pool import WorkerPool
from pipeline.io.reader import read_files
from pipeline.io.types import Request
from pipeline.preprocessing.prepare import prepare_batch
from pipeline.recipe import BatchFeatures, Recipe
from pipeline.shared.pseudonyms import load_key, reveal_path
from pipeline.types import Slice
from stores import FeatureStore
from stores._disk import file_sha256
from stores.features import OK

FEW = 8  # slices of a run that is nearly all start
FEW_SHARED = 64  # of a run by several processes that is
BATCH = 8
CARD_BATCH = 64  # slices a forward pass, as on a card


class Nothing(Backbone):
    """A network that costs nothing."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(torch.nn.Linear(1, 1), recipe.architecture, recipe.image_size, 4)

    def __call__(self, x: torch.Tensor) -> BatchFeatures:
        dim, b, grid = self.architecture.dim, len(x), self.image_size // self.architecture.patch
        return BatchFeatures(
            cls=torch.zeros(b, self.blocks, dim),
            mean=torch.zeros(b, dim),
            patch=torch.zeros(b, 1, 1, dim).expand(b, grid, grid, dim),
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", choices=["shares"])
    args = options.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_images(folder / "images", "dicom", args.slices)
        if args.only == "shares":
            show_shares(folder, root, args.slices, args.rounds)
            return
        few = write_images(folder / "few", "dicom", FEW)
        size = sum(path.stat().st_size for path in root.iterdir()) / 1e6 / args.slices
        ways: dict[str, Callable[[Path], float]] = {
            "bytes": functools.partial(timed, read_bytes),
            "pydicom": functools.partial(timed, read_bare),
            "read, 1 worker": functools.partial(timed, functools.partial(read_ours, 1)),
            "read, 2 workers": functools.partial(timed, functools.partial(read_ours, 2)),
            "whole, 1 worker": functools.partial(whole, folder / "store", 1),
            "whole, 2 workers": functools.partial(whole, folder / "store", 2),
        }
        for run in ways.values():  # imports, and files into the page cache
            run(few)
        rounds = [
            {way: (spent(run, few), spent(run, root)) for way, run in ways.items()}
            for _ in range(args.rounds)
        ]
        tell_ways(rounds, args.slices, size)
        print()
        tell_stages([stages(root, folder / "store") for _ in range(args.rounds)])
        print()
        show_shares(folder, root, args.slices, args.rounds)


Spent = tuple[float, float]  # seconds by the clock, of processors


def tell_ways(rounds: list[dict[str, tuple[Spent, Spent]]], slices: int, size: float) -> None:
    """Print the first table; size: MB a slice."""
    print(f"{'':<18}{'slices/s':>10}{'MB/s':>8}{'start s':>9}{'ms/slice':>10}{'of pydicom':>12}")
    cost = {
        way: [
            max(0.0, each[way][1][1] - each[way][0][1]) / (slices - FEW) * 1000 for each in rounds
        ]
        for way in rounds[0]
    }
    for way in rounds[0]:
        rate = statistics.median(slices / each[way][1][0] for each in rounds)
        start = statistics.median(each[way][0][1] for each in rounds)
        times = statistics.median(
            c / p for c, p in zip(cost[way], cost["pydicom"], strict=True) if p
        )
        ms = statistics.median(cost[way])
        print(f"{way:<18}{rate:>10.1f}{rate * size:>8.1f}{start:>9.2f}{ms:>10.2f}{times:>11.1f}x")


def spent(run: Callable[[Path], float], root: Path) -> Spent:
    before = processor_s()
    return run(root), processor_s() - before


def timed(run: Callable[[Path], None], root: Path) -> float:
    began = time.perf_counter()
    run(root)
    return time.perf_counter() - began


def processor_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


# --- the ways ------------------------------------------------------------------------------------


def read_bytes(root: Path) -> None:
    for path in root.iterdir():
        path.read_bytes()


def read_bare(root: Path) -> None:
    for path in sorted(root.iterdir()):
        assert pydicom.dcmread(path).pixel_array.size


def read_ours(workers: int, root: Path) -> None:
    requests = [Request(path.name, (0,)) for path in sorted(root.iterdir())]
    for read in read_files(root, requests, workers=workers):
        assert read.pixel_digest is not None, read.item


def prepared(root: Path, path: Path) -> tuple[Config, Recipe, FeatureStore]:
    """Return a new store at `path` that knows all slices, its config and recipe."""
    shutil.rmtree(path, ignore_errors=True)
    config = Config.model_validate(
        {
            "data": {"root": root, "modality": {"**": "CT"}},
            "backbone": {"weights": "random:0"},
            "store": path,
        }
    )
    recipe, _ = make_recipe(config)
    store = open_store(config, recipe)
    update_tables(config, store, workers=0)
    return config, recipe, store


def whole(path: Path, workers: int, root: Path) -> float:
    """Return the seconds of an extraction without its look at the folder."""
    config, recipe, store = prepared(root, path)
    slices = len(store.slices())
    began = time.perf_counter()
    settings = EmbedSettings(
        checkpoint=Checkpoint(config.backbone.name, recipe.weights),
        root=root,
        reveal=functools.partial(reveal_path, load_key(path)),
        limit=BadLimit(seen=slices, fraction=0.0),
        speed=Speed(device="cpu", workers=workers),
        load=lambda *_: Nothing(recipe),
    )
    done = embed_missing(store, settings)
    assert done.rows == slices, done
    return time.perf_counter() - began


# --- one slice through its stages --------------------------------------------------------------


def stages(root: Path, place: Path) -> dict[str, float]:
    """Return processor ms a slice of each stage, one after the other in this process."""
    _, recipe, store = prepared(root, place)
    paths = sorted(root.iterdir())
    found: dict[str, float] = {}

    def clock(name: str, work: Iterable[object]) -> list[object]:
        began = time.process_time()
        results = list(work)
        found[name] = (time.process_time() - began) / len(paths) * 1000
        return results

    clock("pydicom alone", (pydicom.dcmread(path).pixel_array.size for path in paths))
    clock("sha256 of the file", map(file_sha256, paths))
    items = clock("file to HU", (next(iter(read_slices(path, (0,)))) for path in paths))
    slices = [item for item in items if isinstance(item, Slice)]
    clock("sha256 of the pixels", (pixel_digest(item.pixels) for item in slices))
    narrowed = clock("narrowest dtype", (narrow(item.pixels) for item in slices))
    few = [Slice(0, pixels) for pixels in narrowed if isinstance(pixels, np.ndarray)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that none waits for another at its processor's cost
    batches = (few[start : start + BATCH] for start in range(0, len(few), BATCH))
    clock("window, resize", (prepare_batch(some, ["CT"] * len(some), recipe) for some in batches))
    torch.set_num_threads(before)
    clock("commit", commits(store))
    return found


def commits(store: FeatureStore) -> Iterable[None]:
    """Write the parts of a store, full of zeros."""
    for part in store.missing():
        claim = store.claim(part)
        assert claim is not None
        arrays = {name: np.zeros_like(values) for name, values in store.empty_part().items()}
        arrays["status"][...] = OK
        store.write(part, claim, arrays, {})
        claim.release()
        yield


def tell_stages(rounds: list[dict[str, float]]) -> None:
    print("one slice, ms of a processor")
    for name in rounds[0]:
        print(f"  {name:<24}{statistics.median(each[name] for each in rounds):>8.3f}")


# --- readers, and the process that feeds the network --------------------------------------------


Shares = tuple[float, float, float]  # seconds: of a processor by parent and readers; by the clock
KINDS = {"DICOM, 512 px": "dicom", "NIfTI.gz, 512 px": "nifti.gz", "PNG, 1024 px": "png-1024"}


def show_shares(folder: Path, dicom: Path, slices: int, rounds: int) -> None:
    """Print the third table; dicom: the collection of DICOM files, of so many slices."""
    found: dict[str, list[tuple[Shares, Shares]]] = {}
    for title, kind in KINDS.items():
        root = dicom
        if kind != "dicom":
            root = write_images(folder / kind, kind, slices)
        few = write_images(folder / f"few-{kind}", kind, FEW_SHARED)
        store = folder / "store"
        found[title] = [
            (shares(few, store, free=False), shares(root, store, free=False)) for _ in range(rounds)
        ]
        if kind == "dicom":
            free = [
                (shares(few, store, free=True), shares(root, store, free=True))
                for _ in range(rounds)
            ]
    tell_shares(found | {"readers that cost nothing": free}, slices)


def shares(root: Path, place: Path, *, free: bool) -> Shares:
    """Return what an extraction costs its two kinds of processes, with a network of no cost.

    free: whether the readers cost nothing either.
    """
    config, recipe, store = prepared(root, place)
    IDLE.close()
    slices = len(store.slices())
    spent_s: list[float] = []
    patches = [
        mock.patch.object(WorkerPool, "_work", _timed_thread(WorkerPool._work, spent_s)),
        mock.patch("pipeline.inference.forward.prepare_batch", _nothing_prepared),
    ]
    if free:
        patches.append(mock.patch.object(subprocess, "Popen", _free_reader))
    settings = EmbedSettings(
        checkpoint=Checkpoint(config.backbone.name, recipe.weights),
        root=root,
        reveal=functools.partial(reveal_path, load_key(place)),
        limit=BadLimit(seen=slices, fraction=0.0),
        speed=Speed(device="cpu", workers=cores(), batch_size=CARD_BATCH),
        load=lambda *_: Nothing(recipe),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        children = os.times()
        began_cpu = time.thread_time()
        began = time.perf_counter()
        done = embed_missing(store, settings)
        wall = time.perf_counter() - began
        spent_s.append(time.thread_time() - began_cpu)
    IDLE.close()  # their time counts once they have ended
    ended = os.times()
    assert done.rows == slices, done
    readers = ended.children_user + ended.children_system
    readers -= children.children_user + children.children_system
    return sum(spent_s), readers, wall


def _timed_thread(
    work: Callable[[WorkerPool], None], spent_s: list[float]
) -> Callable[[WorkerPool], None]:
    """Return the work of a thread, which adds its processor time to a list."""

    def timed_work(pool: WorkerPool) -> None:
        began = time.thread_time()
        work(pool)
        spent_s.append(time.thread_time() - began)

    return timed_work


def _nothing_prepared(items: Sequence[Slice], *_: object) -> torch.Tensor:
    return torch.zeros(len(items), 3, 8, 8)


_popen = subprocess.Popen


def _free_reader(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    handed = command[command.index("pipeline.io.worker") + 1 :]
    return _popen([sys.executable, "-m", "benchmarks.free_reader", *handed], **options)


def tell_shares(found: dict[str, list[tuple[Shares, Shares]]], slices: int) -> None:
    print(f"{'a slice, ms of a processor':<30}{'parent':>10}{'reader':>10}{'slices/s':>10}")
    for title, rounds in found.items():
        parent, reader, clock = (
            statistics.median(
                1000 * (whole[k] - few[k]) / (slices - FEW_SHARED) for few, whole in rounds
            )
            for k in range(3)
        )
        print(f"  {title:<28}{parent:>10.3f}{reader:>10.3f}{1000 / clock:>10.0f}")


if __name__ == "__main__":
    start_asleep("benchmarks.flow")
    main()
