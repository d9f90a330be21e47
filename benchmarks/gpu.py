"""Bare forward pass and whole extraction on a GPU: S, B, L, g at 224 and 518 px in bfloat16.

    .venv/bin/python -m benchmarks.gpu

Every network has random weights of the real shape. `bare` is the network alone on tensors that lie
on the card, at its fastest batch size: the limit. `whole` is `extract` of real DICOM files, less
the time it takes to load the network; the collection is as large as half a minute of bare forward.
`peak` is the share of the card's dense bfloat16 peak that bare multiplications reach; `busy` the
mean utilisation that the driver told during `whole`. Where there is no GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.images import write_images
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.inference.forward import out_of_memory
from pipeline.recipe import Architecture
from pipeline.studies.speed import forward_rate

NAMES = tuple(f"dinov2_vit{size}14" for size in "sblg")
SIZES = (224, 518)
BATCHES = (16, 32, 64, 128, 256, 512)
# Dense bfloat16 TFLOP/s by the makers' data sheets: the first name that is part of the card's.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "A10": 125}
HEAD = ("network", "px", "batch", "bare/s", "whole/s", "ratio", "peak", "busy")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--names", nargs="+", default=NAMES)
    options.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    options.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    options.add_argument("--slices", type=int, help="of the collection, not by the bare pace")
    options.add_argument("--seconds", type=float, default=30.0, help="of bare forward, in slices")
    options.add_argument("--least", type=float, default=2.0, help="seconds a batch size is run")
    options.add_argument("--device", default="cuda:0", help="cpu tries the script itself")
    args = options.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("No GPU here: nothing was measured. Run the same command where there is one.")
        return
    logging.disable(logging.WARNING)  # of random weights
    cuda = args.device.startswith("cuda")
    print(f"on {torch.cuda.get_device_name(args.device) if cuda else 'the CPU'}, bfloat16")
    print("".join(f"{title:>16}" if title == "network" else f"{title:>9}" for title in HEAD))
    for name in args.names:
        for size in args.sizes:
            print(row(name, size, args), flush=True)


def row(name: str, size: int, args: argparse.Namespace) -> str:
    """Measure one network at one size; return its line of the table."""
    network = load_backbone(
        name, "random:0", image_size=size, device=args.device, precision="bfloat16"
    )
    batch, bare = fastest(network, args.batches, args.least)
    flops = flops_a_slice(network.architecture, size)
    del network
    slices = args.slices or max(2 * batch, int(args.seconds * bare))
    with tempfile.TemporaryDirectory() as folder:
        root = write_images(Path(folder) / "images", "dicom", slices)
        config = Config.model_validate(
            {
                "data": {"root": root, "modality": {"**": "CT"}},
                "backbone": {
                    "name": name,
                    "weights": "random:0",
                    "image_size": size,
                    "precision": "bfloat16",
                },
                "store": Path(folder) / "store",
            }
        )
        with watched(args.device) as busy:
            summary = extract(config, Speed(device=args.device, batch_size=batch))
    assert summary.embedded == slices, summary
    whole = slices / (summary.seconds["embed"] - summary.seconds["load"])
    cells = [
        f"{name:>16}{size:>9}{batch:>9}{bare:>9.1f}{whole:>9.1f}{whole / bare:>9.3f}",
        share_of_peak(bare * flops, args.device),
        f"{statistics.mean(busy):>8.0f}%" if busy else f"{'-':>9}",
    ]
    return "".join(cells)


def fastest(network: Backbone, batches: tuple[int, ...], least_s: float) -> tuple[int, float]:
    """Return the fastest batch size that fits, and slices a second."""
    rates: dict[int, float] = {}
    for batch in batches:
        try:
            rates[batch] = forward_rate(network, batch, least_s)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
    best = max(rates, key=lambda batch: rates[batch])
    return best, rates[best]


def flops_a_slice(architecture: Architecture, size: int) -> float:
    """Return the multiplications and additions of one forward pass, of matrices alone."""
    d, tokens = architecture.dim, (size // architecture.patch) ** 2
    patches = 2 * tokens * 3 * architecture.patch**2 * d
    n = tokens + 1 + architecture.registers
    hidden = architecture.mlp_ratio * d
    if architecture.ffn == "swiglu":  # three matrices of two thirds, to a multiple of eight
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    mlp = (6 if architecture.ffn == "swiglu" else 4) * n * d * hidden
    return patches + architecture.depth * (8 * n * d * d + 4 * n * n * d + mlp)


def share_of_peak(flops_per_s: float, device: str) -> str:
    """Return the share of the card's peak, where it is known."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    return f"{'-':>9}" if peak is None else f"{flops_per_s / (peak * 1e12):>9.1%}"


@contextlib.contextmanager
def watched(device: str) -> Iterator[list[float]]:
    """Collect the card's utilisation in per cent while something runs."""
    found: list[float] = []
    if not device.startswith("cuda"):
        yield found
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            try:
                found.append(torch.cuda.utilization(device))
            except (RuntimeError, ModuleNotFoundError):  # no pynvml
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
