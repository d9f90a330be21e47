"""Regions: real lungs, region pooling beside the whole image, and phantoms only a region tells.

    RADPROBE_REAL_DATA=DIR python benchmarks/regions.py [--weights FILE] [--work DIR]
                                                        [--phantoms N] [--only xrays|phantoms]

xrays: DIR/cxr holds images, masks of both lungs together, and labels.csv. Each mask is parted into
the patient's right and left lung, which become regions; covid against the rest is asked of each
lung by its pooled tokens, by a crop round it, which is embedded by itself, and by its whole image,
on the same test units, and the differences are paired. Seconds are those from cached tokens alone,
all masks read anew.

phantoms: N noisy images of two equal discs at random places, of which the masks alone say which is
A and which B. One of both has a bright lesion: whether A has it is asked of the image, and of A.

Without --weights the network is untrained, and nothing here is said of DINOv2.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.compare import compare
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.results import Metric, Result
from pipeline.segmentation.crops import write_crops
from pipeline.segmentation.regions import update_regions

POOLS = ("mean", "max", "moments", "whole")
MARGIN = 10  # round a crop, in pixels: these images name no spacing
# Pixels of a phantom, of its discs' radius, of its lesion's, and how much brighter that is.
SIDE, DISC, LESION, BRIGHTER = 224, 40, 14, 60


def base(root: Path, work: Path, weights: str, masks: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"root": root, "include": ["images/**"], "modality": {"**": "DX"}},
        "store": work / "store",
        "backbone": {"name": "dinov2_vits14", "weights": weights},
        "outputs": {"keep": ["cls", "mean", "patch"]},
        "split": {"kind": "kfold"},
        "masks": {"regions": masks},
    }


# --- real X-rays ---------------------------------------------------------------------------------


def part_lungs(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return 1 for the patient's right lung, which is left in the picture, and 2 for the other."""
    pieces, n = ndimage.label(mask)
    columns = np.flatnonzero(mask.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2
    out = np.zeros(mask.shape, np.uint8)
    for number, (_, x) in enumerate(ndimage.center_of_mass(mask, pieces, range(1, n + 1)), start=1):
        out[pieces == number] = 1 if x < middle else 2
    return out


def write_xrays(root: Path, work: Path) -> None:
    """Write the parted masks, and labels of the images that have one, a line an image."""
    (work / "masks").mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open(newline="") as file, (work / "labels.csv").open("w") as into:
        out = csv.writer(into)
        out.writerow(["path", "patient", "covid"])
        for row in csv.DictReader(file):
            if not row["lung_mask"]:
                continue
            with Image.open(root / row["lung_mask"]) as image:
                lungs = part_lungs(np.asarray(image.convert("L")) > 0)
            Image.fromarray(lungs).save(work / "masks" / f"{Path(row['image']).stem}.png")
            covid = "covid" if row["label"] == "covid" else "rest"
            out.writerow([row["image"], row["patient_id"], covid])


def xrays(work: Path, weights: str) -> None:
    root = Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr"
    write_xrays(root, work)
    masks = {
        "root": work / "masks",
        "files": {"images/*": "{stem}.png"},
        "values": {1: "right lung", 2: "left lung"},
    }
    asked = {"labels": ["covid"], "positive": "covid"}
    tasks: dict[str, Any] = {"image": asked}
    for side in ("left", "right"):
        for pool in POOLS:
            region = {"masks": "regions", "structures": [f"{side} lung"], "pool": pool}
            tasks[f"{side} {pool}"] = {**asked, "level": "region", "region": region}
        crop = {**region, "pool": "crop", "crops": work / "crops" / "store"}
        tasks[f"{side} crop"] = {**asked, "level": "region", "region": crop}
    both = {"masks": "regions", "pool": "mean"}
    tasks["both mean"] = {**asked, "level": "region", "region": both}
    tasks["both whole"] = {**asked, "level": "region", "region": {**both, "pool": "whole"}}
    config = Config.model_validate(
        {
            **base(root, work, weights, masks),
            "labels": {"file": work / "labels.csv", "patient": "patient"},
            "split": {"kind": "kfold", "allow": ["duplicates", "near-duplicates"]},
            "tasks": tasks,
        }
    )
    timed("extract, all images", extract, config, Speed())
    (gathered,) = timed("regions from masks and cached tokens", update_regions, config)
    print("\n".join(gathered.lines()))
    timed("regions once more, nothing changed", update_regions, config)
    crops = timed("crops written", write_crops, config, "regions", work / "crops", MARGIN)
    timed(f"extract, {crops.crops} crops", extract, load_config(crops.config), Speed())
    results = timed("probe and kNN of all tasks", evaluate, config, ["probe", "knn"])
    show(results)
    for method in ("probe", "knn"):
        by_task = {result.task: result for result in results if result.method == method}
        for side in ("left", "right", "both"):
            for pool in (*POOLS[:3], "crop") if side != "both" else POOLS[:1]:
                differ(config, by_task[f"{side} whole"], by_task[f"{side} {pool}"])


# --- phantoms ------------------------------------------------------------------------------------


def write_phantoms(work: Path, n: int) -> None:
    """Write n images, their masks, and whether the lesion is in A."""
    for folder in ("images", "masks"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    with (work / "labels.csv").open("w", newline="") as into:
        out = csv.writer(into)
        out.writerow(["path", "patient", "lesion"])
        for i in range(n):
            rng = np.random.default_rng(i)
            noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 8)
            pixels = 90 + 12 * noise / noise.std() + rng.normal(0, 4, noise.shape)
            mask = np.zeros(noise.shape, np.uint8)
            # One disc in each half, and which of both is A by chance.
            halves = rng.permutation(2)
            centres = []
            for half in halves:
                cy = int(rng.integers(DISC, SIDE - DISC))
                cx = int(rng.integers(DISC, SIDE // 2 - DISC)) + half * SIDE // 2
                centres.append((cy, cx))
            for value, (cy, cx) in enumerate(centres, start=1):
                disc = (y - cy) ** 2 + (x - cx) ** 2 < DISC**2
                mask[disc] = value
                pixels[disc] += 25
            lesion = int(i % 2)
            cy, cx = centres[0 if lesion else 1]
            dy, dx = rng.integers(-DISC // 2, DISC // 2, 2)
            pixels[(y - cy - dy) ** 2 + (x - cx - dx) ** 2 < LESION**2] += BRIGHTER
            for folder, values in (("images", pixels.clip(0, 255)), ("masks", mask)):
                Image.fromarray(values.astype(np.uint8)).save(work / folder / f"p{i:04}.png")
            out.writerow([f"images/p{i:04}.png", f"p{i}", lesion])


def phantoms(work: Path, weights: str, n: int) -> None:
    write_phantoms(work, n)
    masks = {
        "root": work / "masks",
        "files": {"images/*": "{stem}.png"},
        "values": {1: "A", 2: "B"},
    }
    asked = {"labels": ["lesion"]}
    tasks: dict[str, Any] = {"image": asked}
    for pool in POOLS:
        region = {"masks": "regions", "structures": ["A"], "pool": pool}
        tasks[f"A {pool}"] = {**asked, "level": "region", "region": region}
    config = Config.model_validate(
        {
            **base(work, work, weights, masks),
            "labels": {"file": work / "labels.csv", "patient": "patient"},
            "split": {"kind": "kfold", "allow": ["near-duplicates"]},
            "tasks": tasks,
            "probe": {"features": "cls+mean"},
        }
    )
    timed(f"extract {n} phantoms", extract, config, Speed())
    timed("regions from masks and cached tokens", update_regions, config)
    show(timed("probe of all tasks", evaluate, config, ["probe"]))


# --- the table -----------------------------------------------------------------------------------


def timed(what: str, run: Any, *arguments: Any) -> Any:
    started, processor = time.perf_counter(), time.process_time()
    result = run(*arguments)
    spent = time.perf_counter() - started
    print(f"{what}: {spent:.1f} s ({time.process_time() - processor:.1f} s of the processor)")
    return result


def show(results: Sequence[Result]) -> None:
    table = Table("method", "task", "features", "units", "patients", "AUROC")
    for result in results:
        side = result.counts["test"]
        features = result.features
        auroc = text(result.main_score.metrics["auroc"])
        table.add_row(
            result.method, result.task, features, str(side.units), str(side.patients), auroc
        )
    stamp = "RANDOM WEIGHTS" if results[0].provenance.random else results[0].provenance.network
    table.title = stamp
    Console(width=120).print(table)


def differ(config: Config, one: Result, other: Result) -> None:
    """Print what the second scores above the first, on the same test units."""
    for each in compare((config.store, one), (config.store, other)):
        if each.metric == "auroc" and not each.label:
            p = "" if each.p is None else f", p {each.p:.3f} (DeLong)"
            print(f"{one.method}: {other.task} less {one.task}: {text(each.difference)}{p}")


def text(metric: Metric) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--weights", default="random:0")
    words.add_argument("--work", type=Path)
    words.add_argument("--phantoms", type=int, default=200)
    words.add_argument("--only", choices=["xrays", "phantoms"])
    given = words.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="regions-"))
    if given.only != "phantoms":
        xrays(work / "xrays", given.weights)
    if given.only != "xrays":
        phantoms(work / "phantoms", given.weights, given.phantoms)


if __name__ == "__main__":
    main()
