"""Reading and writing alone: an extraction whose network costs nothing, against bare loops.

    .venv/bin/python -m benchmarks.flow

Real DICOM (512 x 512, a file a slice). `bytes` reads the files and nothing else; `pydicom` is a
bare loop of dcmread and pixel_array, on one core; `read` is `read_files` with so many workers,
which gives HU and digests besides, and has the start of its processes in it; `whole` is all that
`extract` does after its look at the folder, with a network that returns zeros: read, window, resize
to 224, commit. Slices and MB of files a second; a core: by the processor time of all processes.
Medians of rounds; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import torch

from benchmarks.images import write_images
from pipeline.backbones import Backbone
from pipeline.collection import make_recipe, open_store, settle
from pipeline.config import Config
from pipeline.embed import BadLimit, Progress, Speed, embed_missing
from pipeline.names import load_key, reveal_path
from pipeline.read import Request, read_files
from pipeline.types import Features, Recipe


class Nothing(Backbone):
    """A network that costs nothing."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(torch.nn.Linear(1, 1), recipe.architecture, recipe.image_size, 4)

    def __call__(self, x: torch.Tensor) -> Features:
        dim, b, grid = self.architecture.dim, len(x), self.image_size // self.architecture.patch
        return Features(
            cls=torch.zeros(b, self.blocks, dim),
            mean=torch.zeros(b, dim),
            patch=torch.zeros(b, 1, 1, dim).expand(b, grid, grid, dim),
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_images(folder / "images", "dicom", args.slices)
        size = sum(path.stat().st_size for path in root.iterdir()) / 1e6
        ways: dict[str, Callable[[int], float]] = {
            "bytes": lambda _: timed(functools.partial(read_bytes, root)),
            "pydicom": lambda _: timed(functools.partial(read_bare, root)),
            "read, 1 worker": lambda _: timed(functools.partial(read_ours, root, 1)),
            "read, 2 workers": lambda _: timed(functools.partial(read_ours, root, 2)),
            "whole, 1 worker": lambda i: whole(root, folder / f"one{i}", args.slices, 1),
            "whole, 2 workers": lambda i: whole(root, folder / f"two{i}", args.slices, 2),
        }
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for i in range(args.rounds):
            for way, run in ways.items():
                before = processor_s()
                seconds = run(i)
                rates[way].append((args.slices / seconds, args.slices / (processor_s() - before)))
    print(f"{'':<18}{'slices/s':>10}{'MB/s':>8}{'a core':>10}{'of pydicom':>12}")
    for way, each in rates.items():
        rate, a_core = (statistics.median(values) for values in zip(*each, strict=True))
        share = statistics.median(
            r / p for (r, _), (p, _) in zip(each, rates["pydicom"], strict=True)
        )
        print(
            f"{way:<18}{rate:>10.1f}{rate * size / args.slices:>8.1f}{a_core:>10.1f}{share:>12.2f}"
        )


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def processor_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def read_bytes(root: Path) -> None:
    for path in root.iterdir():
        path.read_bytes()


def read_bare(root: Path) -> None:
    for path in sorted(root.iterdir()):
        assert pydicom.dcmread(path).pixel_array.size


def read_ours(root: Path, workers: int) -> None:
    requests = [Request(path.name, (0,)) for path in sorted(root.iterdir())]
    for read in read_files(root, requests, workers=workers):
        assert read.pixel_digest is not None, read.item


def whole(root: Path, path: Path, slices: int, workers: int) -> float:
    """Return the seconds of an extraction without its look at the folder."""
    config = Config.model_validate(
        {
            "data": {"root": root, "modality": {"**": "CT"}},
            "backbone": {"weights": "random:0"},
            "store": path,
        }
    )
    recipe, _ = make_recipe(config)
    store = open_store(config, recipe)
    settle(config, store)
    began = time.perf_counter()
    done = embed_missing(
        store,
        recipe,
        config.backbone.name,
        recipe.weights,
        root,
        functools.partial(reveal_path, load_key(path)),
        Speed(device="cpu", workers=workers),
        Progress(),
        BadLimit(seen=slices, fraction=0.0),
        load=lambda *_: Nothing(recipe),
    )
    assert done.rows == slices, done
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
