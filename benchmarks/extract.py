"""Whole extraction against the bare forward pass, and against the loop one would write.

    .venv/bin/python -m benchmarks.extract

Real DICOM (512 x 512, a file a slice), gzipped NIfTI and PNG (X-rays of about 512 px as they are,
and enlarged to 1024 px) are embedded with ViT-S/14 at 224 px, in float32, in rounds that run each
way once, one after the other. `bare` is the network alone on tensors that lie ready, in a process
of its own whose threads wait as torch has them wait, at its fastest batch size and with all cores
at one batch or each at its own, whichever is the faster: the limit. `ours` is `extract`, without
the time it takes to load the network; `whole` has that and the look at the folder in it, which a
long run does not feel. `loop` is pydicom, nibabel or Pillow, the transformers processor and model,
and np.save, slice by slice. `limit` is what ours/bare could be at most: the network, and pydicom,
nibabel or Pillow decoding the same files and nothing else, shared evenly by the same cores.
Medians over the rounds; ratios are taken within a round, so that what else the machine does falls
on both.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from benchmarks.images import write_images
from benchmarks.waiting import POLICY, start_asleep
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.inference.forward import keep_memory
from pipeline.inference.lanes import Lanes

KINDS = ("dicom", "nifti.gz", "png", "png-1024")
WANTED = {"dicom": 0.95, "nifti.gz": 0.90, "png": 0.95, "png-1024": 0.95}
NAME, WEIGHTS, SIZE = "dinov2_vits14", "random:0", 224
LOW, HIGH = -1024.0, 600.0

Run = Callable[[Sequence[Callable[[], None]]], None]


@dataclass
class Round:
    """Slices a second of one round; decode: seconds of a core that decoding one slice takes."""

    bare: float
    ours: float
    whole: float
    loop: float
    decode: float

    @property
    def limit(self) -> float:
        """Return the share of the bare pass that decoding on the same cores leaves."""
        return 1 / (1 + self.bare * self.decode / torch.get_num_threads())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slices", type=int, default=384)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options.add_argument("--workers", type=int)
    options.add_argument("--bare", action="store_true", help="be the process of the bare pass")
    args = options.parse_args()
    logging.disable(logging.WARNING)  # of random weights
    keep_memory()
    if args.bare:
        serve(load_backbone(NAME, WEIGHTS, image_size=SIZE))
        return
    # ViT-S/14 as transformers has it: how fast it is does not hang on its weights.
    theirs = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6)).eval()
    limit = Bare()
    way = max(itertools.product((1, 4, 8, 16, 32), (0, 1)), key=lambda way: limit.rate(*way, 64))
    said = f"batches of {way[0]}, {'a batch a core' if way[1] else 'all cores at one'}"
    print(f"{torch.get_num_threads()} threads, {args.slices} slices, bare at {said}")
    head = ("bare", "ours", "ours/bare", "wanted", "limit", "whole", "loop", "ours/loop")
    print(f"{'slices/s':<10}" + "".join(f"{title:>11}" for title in head) + "   ours/bare by round")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            root = write_images(Path(folder) / "images", kind, args.slices)
            rounds = []
            for number in range(args.rounds):
                store = Path(folder) / f"store{number}"
                rounds.append(one_round(theirs, limit, way, kind, root, store, args))
        report(kind, rounds)


def report(kind: str, rounds: list[Round]) -> None:
    """Print the medians of a kind."""
    shares = sorted(r.ours / r.bare for r in rounds)
    cells = [
        f"{statistics.median(r.bare for r in rounds):.1f}",
        f"{statistics.median(r.ours for r in rounds):.1f}",
        f"{statistics.median(shares):.3f}",
        f"{WANTED[kind]:.2f}",
        f"{statistics.median(r.limit for r in rounds):.3f}",
        f"{statistics.median(r.whole for r in rounds):.1f}",
        f"{statistics.median(r.loop for r in rounds):.1f}",
        f"{statistics.median(r.ours / r.loop for r in rounds):.2f}",
    ]
    each = " ".join(f"{share:.3f}" for share in shares)
    print(f"{kind:<10}" + "".join(f"{cell:>11}" for cell in cells) + f"   {each}", flush=True)


def one_round(
    theirs: Dinov2Model,
    limit: Bare,
    way: tuple[int, int],
    kind: str,
    root: Path,
    store: Path,
    args: argparse.Namespace,
) -> Round:
    """Run each way once; the bare pass half before and half after ours."""
    half = args.slices // 2
    before = limit.rate(*way, half)
    config = Config.model_validate(
        {
            "data": {"root": root, "modality": {"**": "CT"}},
            "backbone": {"name": NAME, "weights": WEIGHTS, "image_size": SIZE},
            "store": store,
        }
    )
    began = time.perf_counter()
    summary = extract(config, Speed(device="cpu", workers=args.workers))
    whole = time.perf_counter() - began
    assert summary.embedded == args.slices, summary
    ours = summary.seconds["embed"] - summary.seconds["load"]
    after = limit.rate(*way, half)
    began = time.perf_counter()
    assert loop(theirs, kind, root, store.with_name("loop")) == args.slices
    looped = time.perf_counter() - began
    return Round(
        2 / (1 / before + 1 / after),
        args.slices / ours,
        args.slices / whole,
        args.slices / looped,
        decode(kind, root) / args.slices,
    )


class Bare:
    """The network alone, in a process of its own."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != POLICY}
        command = [sys.executable, "-m", "benchmarks.extract", "--bare"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def rate(self, batch: int, apart: int, slices: int) -> float:
        """Return slices a second. apart: 1 where each core has a batch of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(batch, apart, slices, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def serve(network: Backbone) -> None:
    """Answer each batch size, way and number of slices with slices a second, until nobody asks."""
    for line in sys.stdin:
        batch, apart, slices = map(int, line.split())
        if apart:
            with contextlib.closing(Lanes()) as lanes:
                found = rate(network, batch, slices, lanes.number, functools.partial(beside, lanes))
        else:
            found = rate(network, batch, slices, 1, lambda works: works[0]())
        print(found, flush=True)


def rate(network: Backbone, batch: int, slices: int, width: int, run: Run) -> float:
    """Return slices a second of `width` batches at once, as `run` does their work."""
    times = max(1, slices // (batch * width))
    xs = [torch.randn(batch, 3, SIZE, SIZE) for _ in range(width)]
    run([functools.partial(passes, network, x, 1) for x in xs])
    began = time.perf_counter()
    run([functools.partial(passes, network, x, times) for x in xs])
    return times * batch * width / (time.perf_counter() - began)


def passes(network: Backbone, x: torch.Tensor, times: int) -> None:
    for _ in range(times):
        network(x)


def beside(lanes: Lanes, works: Sequence[Callable[[], None]]) -> None:
    """Let each lane do one piece of work, and wait for all."""
    for each in [lanes.start(work) for work in works]:
        each.result()


def decode(kind: str, root: Path) -> float:
    """Return the processor seconds in which a kind's own library decodes a folder."""
    began = time.process_time()
    for path in sorted(root.iterdir()):
        if kind == "dicom":
            assert pydicom.dcmread(path).pixel_array.size
        elif kind == "nifti.gz":
            assert np.asarray(nib.load(path).dataobj.get_unscaled()).size
        else:
            assert np.asarray(Image.open(path)).size
    return time.process_time() - began


def loop(model: Dinov2Model, kind: str, root: Path, out: Path) -> int:
    """Do what one would write in ten lines; return how many slices."""
    processor = BitImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    out.mkdir(exist_ok=True)
    count = 0
    for pixels in pictures(kind, root):
        grey = np.clip((pixels - LOW) / (HIGH - LOW), 0, 1) * 255
        image = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        inputs = processor(image, return_tensors="pt")
        with torch.inference_mode():
            output = model(inputs["pixel_values"], output_hidden_states=True)
        cls = torch.stack([hidden[0, 0] for hidden in output.hidden_states[-4:]])
        np.save(out / f"{count}.npy", cls.numpy())
        np.save(out / f"{count}_mean.npy", output.last_hidden_state[0, 1:].mean(0).numpy())
        count += 1
    return count


def pictures(kind: str, root: Path) -> Iterator[NDArray[np.float64]]:
    """Yield the slices of a folder as their libraries give them."""
    for path in sorted(root.iterdir()):
        if kind == "dicom":
            dataset = pydicom.dcmread(path)
            slope = float(dataset.get("RescaleSlope", 1))
            yield dataset.pixel_array * slope + float(dataset.get("RescaleIntercept", 0))
        elif kind == "nifti.gz":
            volume = nib.load(path).get_fdata()
            for k in range(volume.shape[2]):
                yield volume[:, :, k].T
        else:
            yield np.asarray(Image.open(path)) * 6.375 + LOW


if __name__ == "__main__":
    if "--bare" not in sys.argv:
        start_asleep("benchmarks.extract")
    main()
