"""Real X-rays, end to end: covid against the rest, by patient, with every interval.

    RADPROBE_REAL_DATA=DIR python benchmarks/xrays.py [--weights FILE] [--work DIR] [--methods ...]

DIR/cxr holds images and labels.csv (image, patient_id, label, view, sex). Without --weights the
network is untrained, and every table says so: the run then shows that the machinery works on real
files, and nothing of DINOv2. The set holds some images twice, under other patients' ids; the later
copy of each is left out, and named.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from pipeline.commands.show import show_results
from pipeline.config import Config
from pipeline.embed import Speed
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.names import Names
from stores.features import FeatureStore


def config_of(root: Path, work: Path, weights: str) -> Config:
    task = {"labels": ["covid"], "subgroups": ["view", "sex"], "shortcuts": ["view", "sex"]}
    return Config.model_validate(
        {
            "data": {"root": root, "include": ["images/**"], "modality": {"**": "DX"}},
            "store": work / "store",
            "backbone": {"name": "dinov2_vits14", "weights": weights},
            "labels": {"file": work / "labels.csv", "patient": "patient"},
            "split": {"kind": "kfold"},  # so that each of the few patients tests once
            "tasks": {"covid": {**task, "permutations": 1000}},
            "knn": {"features": "cls+mean"},
            "fewshot": {"features": "cls+mean"},
        }
    )


def write_labels(root: Path, path: Path, left_out: set[str]) -> None:
    """Write the labels of all images but those left out."""
    with (root / "labels.csv").open(newline="") as file, path.open("w", newline="") as into:
        out = csv.writer(into)
        out.writerow(["path", "patient", "covid", "view", "sex"])
        for row in csv.DictReader(file):
            if row["image"] not in left_out:
                covid = "covid" if row["label"] == "covid" else "rest"
                out.writerow([row["image"], row["patient_id"], covid, row["view"], row["sex"]])


def copies(root: Path, store: FeatureStore) -> dict[str, str]:
    """Return the images whose pixels an earlier image of another patient has: copy -> first."""
    with (root / "labels.csv").open(newline="") as file:
        patient = {row["image"]: row["patient_id"] for row in csv.DictReader(file)}
    rows = store.slices()["row"].to_numpy()
    names = Names(store.path, "hide").revealed(store.slices())["path"].to_pylist()
    digests = store.read("pixel_digest", rows)
    first: dict[bytes, str] = {}
    found = {}
    for name, digest in zip(names, map(bytes, digests), strict=True):
        earlier = first.setdefault(digest, name)
        if patient[earlier] != patient[name]:
            found[name] = earlier
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--weights", default="random:0")
    words.add_argument("--work", type=Path)
    words.add_argument("--methods", nargs="+", default=["knn", "probe", "fewshot", "linear"])
    given = words.parse_args()
    root = Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr"
    work = given.work or Path(tempfile.mkdtemp(prefix="xrays-"))
    work.mkdir(exist_ok=True)
    config = config_of(root, work, given.weights)
    started = time.perf_counter()
    extract(config, Speed())
    print(f"extracted in {time.perf_counter() - started:.1f} s, store {config.store}")
    twice = copies(root, FeatureStore.open(config.store))
    for copy, earlier in twice.items():
        print(f"left out {copy}: the pixels of {earlier}, under another patient's id")
    write_labels(root, work / "labels.csv", set(twice))
    results = evaluate(config, given.methods)
    show_results(Console(width=160), results)
    for result in results:
        for name, group in result.scores[-1].subgroups.items():
            metric = group.metrics.get("auroc")
            if metric and metric.low is not None:
                span = f"{metric.value:.3f} [{metric.low:.2f}, {metric.high:.2f}]"
                seen = f"{group.units} images of {group.patients} patients {group.positives}"
                print(f"{result.task}, {result.method}, {name}: {seen}, AUROC {span}")
        p = [s.metrics["auroc"].p for s in result.scores if "auroc" in s.metrics]
        print(f"{result.task}, {result.method}: permutation p of each setting {np.array(p)}")


if __name__ == "__main__":
    main()
