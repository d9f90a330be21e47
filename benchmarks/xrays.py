"""Real X-rays, end to end: covid against the rest, by patient, with every interval.

    RADPROBE_REAL_DATA=DIR python benchmarks/xrays.py [--weights FILE] [--work DIR] [--methods ...]

DIR/cxr holds images and labels.csv (image, patient_id, label, view, sex). Without --weights the
network is untrained, and every table says so: the run then shows that the machinery works on real
files, and nothing of DINOv2. The set holds images twice under other patients' ids, some of them
encoded again: what the check of leakage refuses is shown, then the later copy of each is left out
by name.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Set
from pathlib import Path

import numpy as np
from rich.console import Console

from pipeline.annotations.labels import read_labels
from pipeline.commands.printing import show_results
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.leakage import near_copies
from pipeline.evaluation.pooling import read_features
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.shared.pseudonyms import Names
from stores.duplicates import group_equal
from stores.errors import LabelError
from stores.features import FeatureStore


def config_of(root: Path, work: Path, weights: str) -> Config:
    task = {
        "labels": ["covid"],
        "positive": "covid",
        "subgroups": ["view", "sex"],
        "shortcuts": ["view", "sex"],
    }
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


def write_labels(root: Path, path: Path, left_out: Set[str]) -> None:
    """Write the labels of all images but those left out."""
    with (root / "labels.csv").open(newline="") as file, path.open("w", newline="") as into:
        out = csv.writer(into)
        out.writerow(["path", "patient", "covid", "view", "sex"])
        for row in csv.DictReader(file):
            if row["image"] not in left_out:
                covid = "covid" if row["label"] == "covid" else "rest"
                out.writerow([row["image"], row["patient_id"], covid, row["view"], row["sex"]])


def copies(config: Config) -> dict[str, str]:
    """Return the images that the check of leakage finds again: copy -> first, and how near."""
    store = FeatureStore.open(config.store)
    table = read_labels(config.labels, config.tasks.values())
    split = config.split.model_copy(update={"allow": ("duplicates", "near-duplicates")})
    allowed = config.model_copy(update={"split": split})
    cases = Cases(allowed, store, table, store.fingerprint(), "covid", config.tasks["covid"])
    units, names = cases.units, Names(store.path, "hide").revealed(store.slices())["path"]
    path = np.array(names.to_pylist())[units.rows]
    digests = store.read("pixel_digest", units.rows)
    patient = units.patient  # whatever the split: each a side
    found = {}
    for group in group_equal(digests):
        for copy in group[1:]:
            if patient[copy] != patient[group[0]]:
                found[path[copy]] = f"the pixels of {path[group[0]]}"
    near = near_copies([read_features(store, units, "cls")], digests, units, patient)
    for each in near:
        first, copy = sorted((each.first, each.second))
        found[path[copy]] = f"all but {path[first]}, {each.share:.3f} of the usual distance"
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
    write_labels(root, work / "labels.csv", set())
    twice = copies(config)
    for copy, why in twice.items():
        print(f"left out {copy}: {why}, under another patient's id")
    equal = {copy for copy, why in twice.items() if why.startswith("the pixels")}
    for left_out in (set(), equal):
        write_labels(root, work / "labels.csv", left_out)
        try:
            evaluate(config, ["knn"])
        except LabelError as error:
            print(f"with {len(left_out)} left out: {error}")
    write_labels(root, work / "labels.csv", set(twice))
    results = evaluate(config, given.methods)
    show_results(Console(width=160), results)
    for result in results:
        for name, group in result.main_score.subgroups.items():
            metric = group.metrics.get("auroc")
            if metric and metric.low is not None:
                span = f"{metric.value:.3f} [{metric.low:.2f}, {metric.high:.2f}]"
                seen = f"{group.units} images of {group.patients} patients {group.positives}"
                print(f"{result.task}, {result.method}, {name}: {seen}, AUROC {span}")
        p = [s.metrics["auroc"].p for s in result.scores if "auroc" in s.metrics]
        print(f"{result.task}, {result.method}: permutation p of each setting {np.array(p)}")


if __name__ == "__main__":
    main()
