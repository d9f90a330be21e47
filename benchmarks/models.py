"""Models on real X-rays: the same numbers in new folders, what is unlike, other sources.

    RADPROBE_REAL_DATA=DIR python -m benchmarks.models [--weights FILE] [--work DIR]

DIR/cxr holds images and labels.csv (image, patient_id, label, source), DIR/dicom_ct_philips and
DIR/dicom_mr_ge slices of other kinds. Without --weights the network is untrained, and every line
says so. How often the intervals of `validate` cover the truth, `benchmarks.trials` tells.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics.weighted import auroc
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.fit import fit
from pipeline.fitted.model import Model
from pipeline.fitted.predict import predict, predictions
from pipeline.fitted.sources import FolderOptions
from pipeline.fitted.validate import validate
from pipeline.shared.pseudonyms import Names
from stores.features import FeatureStore

TRAINED = 80  # patients of train and val
SPEED = Speed(device="cpu")


def rows_of(root: Path) -> list[dict[str, str]]:
    """Return the labelled images, patient after patient in a seeded order."""
    with (root / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] != "none"]
    patients = sorted({row["patient_id"] for row in rows})
    order = np.random.default_rng(0).permutation(len(patients))
    rank = {patient: int(place) for patient, place in zip(patients, order, strict=True)}
    return sorted(rows, key=lambda row: rank[row["patient_id"]])


def write_config(root: Path, work: Path, weights: str, name: str, rows: list[Any]) -> Path:
    """Write labels, a split of the first 80 patients (or 3 of 4) and the others, and a config."""
    patients = list(dict.fromkeys(row["patient_id"] for row in rows))
    part = dict.fromkeys(patients, "test")
    trained = min(TRAINED, len(patients) * 3 // 4)
    for i, patient in enumerate(patients[:trained]):
        part[patient] = "val" if i % 4 == 0 else "train"
    with (work / f"{name}.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "patient", "covid", "key", "part"])
        for row in rows:
            label = "covid" if row["label"] == "covid" else "rest"
            path, patient = row["image"], row["patient_id"]
            out.writerow([path, patient, label, path, part[patient]])
    settings = {
        "data": {"root": str(root), "include": ["images/**"], "modality": {"**": "DX"}},
        "store": str(work / "store"),
        "backbone": {"name": "dinov2_vits14", "weights": weights},
        "labels": {"file": str(work / f"{name}.csv"), "patient": "patient"},
        "split": {
            "kind": "list",
            "file": str(work / f"{name}.csv"),
            "allow": ["duplicates", "near-duplicates"],
        },
        "tasks": {"covid": {"labels": ["covid"], "positive": "covid"}},
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def fit_anew(config: Config, out: Path, method: str) -> Model:
    """Fit a model in the place of one of an earlier run."""
    shutil.rmtree(out, ignore_errors=True)
    return fit(config, out, method=method)


def same_numbers(config_path: Path, work: Path, method: str) -> Model:
    """Copy the test images elsewhere and hold what the model says of them against the answer."""
    config = load_config(config_path)
    (result,) = evaluate(config, [method])
    model = fit_anew(config, work / f"model-{method}", method)
    _, expected, _ = read_predictions(config.store, result)
    rows = predicted_units(config.store, result).astype(int)
    store = FeatureStore.open(config.store)
    paths = Names(store.path).revealed(store.slices())["path"].to_pylist()
    new = work / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for place, row in enumerate(rows):
        shutil.copy(config.data.root / paths[row], new / f"{place:03d}.jpg")
    table = predictions(Model.load(model.path), new, FolderOptions(speed=SPEED))
    names = [f"proba:{name}" for name in model.record.classes]
    proba = np.stack([table[name].to_numpy() for name in names], axis=1)
    stamp = " RANDOM WEIGHTS" if model.record.random else ""
    print(
        f"{method}: {len(rows)} images of {result.counts['test'].patients} patients elsewhere: "
        f"greatest difference from evaluate {np.abs(proba - expected).max():.2g} (in the store "
        f"itself {model.record.difference:.2g}); {model.record.score.metrics['auroc']}{stamp}"
    )
    return model


def times(model: Model, work: Path) -> None:
    """Time 20 new images, one more beside them, and all again."""
    images = sorted((work / "new").iterdir())
    folder = work / "twenty"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = FolderOptions(store=work / "new-store", speed=SPEED)
    for number, what in ((20, "20 new images"), (21, "one more"), (21, "none more")):
        for image in images[:number]:
            shutil.copy2(image, folder)
        started = time.perf_counter()
        predict(model, folder, work / "p.csv", options)
        print(f"{what}: {time.perf_counter() - started:.2f} s")


def unlike(model: Model, root: Path, config_path: Path) -> None:
    """Hold X-rays that the model has not seen against CT and MR slices, by their p-values."""
    config = load_config(config_path)
    rows = rows_of(root / "cxr")
    patients = list(dict.fromkeys(row["patient_id"] for row in rows))
    held_out = {row["image"] for row in rows if row["patient_id"] in patients[TRAINED:]}
    table = predictions(model, config.store)
    paths = table["path"].to_pylist()
    p = table["unlike_p"].to_numpy()
    xrays = np.array([value for path, value in zip(paths, p, strict=True) if path in held_out])
    others = []
    for name in ("dicom_ct_philips", "dicom_mr_ge"):
        of_kind = predictions(model, root / name, FolderOptions(speed=SPEED))["unlike_p"].to_numpy()
        print(f"{name}: {(of_kind <= 0.05).mean():.3f} of {len(of_kind)} slices are called unlike")
        others.append(of_kind)
    each = np.concatenate([xrays, *others])
    is_other = np.arange(len(each)) >= len(xrays)
    print(f"held-out X-rays: {(xrays <= 0.05).mean():.3f} of {len(xrays)} are called unlike")
    print(f"AUROC of 1 - p: {auroc(is_other, -each):.4f}")


def elsewhere(root: Path, work: Path, weights: str) -> None:
    """Fit on the X-rays of one source and validate on those of the others."""
    rows = rows_of(root)
    hosts = [urlsplit(row["source"]).hostname or "" for row in rows]
    most = max(set(hosts), key=hosts.count)
    here = [row for row, host in zip(rows, hosts, strict=True) if host == most]
    whose = {row["patient_id"] for row in here}
    there = [row for row in rows if row["patient_id"] not in whose]
    config = load_config(write_config(root, work, weights, "here", here))
    model = fit_anew(config, work / "model-here", "probe")
    config = load_config(write_config(root, work, weights, "there", there))
    started = time.perf_counter()
    validation = validate(model, config, leave_out_known=True)
    print(
        f"from {most} to {len(set(hosts)) - 1} other sources, {validation.count.units} images of "
        f"{validation.count.patients} patients, {validation.left_out} left out, "
        f"{time.perf_counter() - started:.1f} s"
    )
    print("  at home", validation.internal["auroc"], "here", validation.score.metrics["auroc"])
    for label, metrics in validation.calibration.items():
        print("  calibration", label, metrics)
    print("  unlike", validation.unlike, "domain AUROC", f"{validation.domain_auroc:.3f}")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--weights", default="random:0")
    words.add_argument("--work", type=Path)
    words.add_argument("--elsewhere", action="store_true", help="the other sources alone")
    given = words.parse_args()
    root = Path(os.environ["RADPROBE_REAL_DATA"])
    work = given.work or Path(tempfile.mkdtemp(prefix="models-"))
    work.mkdir(exist_ok=True)
    config_path = write_config(root / "cxr", work, given.weights, "all", rows_of(root / "cxr"))
    started = time.perf_counter()
    extract(load_config(config_path), SPEED)
    print(f"extracted in {time.perf_counter() - started:.1f} s")
    if not given.elsewhere:
        for method in ("knn", "probe"):
            model = same_numbers(config_path, work, method)
        times(model, work)
        unlike(model, root, config_path)
    elsewhere(root / "cxr", work, given.weights)


if __name__ == "__main__":
    main()
