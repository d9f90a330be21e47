"""Models on real X-rays: the same numbers in new folders, what is unlike, masks, reports, flips.

    RADPROBE_REAL_DATA=DIR python -m benchmarks.models [--weights FILE] [--work DIR] [--only tasks]

DIR/cxr holds images and labels.csv (image, patient_id, label, source), DIR/dicom_ct_philips and
DIR/dicom_mr_ge slices of other kinds. Without --weights the network is untrained, and every line
says so. How often the intervals of `validate` cover the truth, `benchmarks.trials` tells.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pydicom
import yaml
from PIL import Image

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics.weighted import auroc
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.draw import draw
from pipeline.fitted.fit import fit
from pipeline.fitted.kinds import fit_model, load_model
from pipeline.fitted.mask_model import MaskModel
from pipeline.fitted.model import FiledModel, Model
from pipeline.fitted.predict import predict, predictions
from pipeline.fitted.reports import report
from pipeline.fitted.sources import FolderOptions
from pipeline.fitted.validate import validate
from pipeline.segmentation.predictions import write_predictions
from pipeline.shared.pseudonyms import Names
from pipeline.tune import tune
from stores.errors import ModelError
from stores.features import FeatureStore

TRAINED = 80  # patients of train and val
PARTS = ("tasks", "masks", "tuned")
M = TypeVar("M")
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


def anew(out: Path, make: Callable[[Path], M]) -> M:
    """Make a model in the place of one of an earlier run."""
    shutil.rmtree(out, ignore_errors=True)
    return make(out)


def said_elsewhere(model: Model, config: Config, rows: Any, work: Path) -> Any:
    """Return (q, c) what a model says of copies of some images, by row, under other names."""
    store = FeatureStore.open(config.store)
    paths = Names(store.path).revealed(store.slices())["path"].to_pylist()
    new = work / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for place, row in enumerate(rows):
        shutil.copy(config.data.root / paths[row], new / f"{place:03d}.jpg")
    table = predictions(Model.load(model.path), new, FolderOptions(speed=SPEED))
    names = [f"proba:{name}" for name in model.record.classes]
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def same_numbers(config_path: Path, work: Path, method: str) -> Model:
    """Copy the test images elsewhere and hold what the model says of them against the answer."""
    config = load_config(config_path)
    (result,) = evaluate(config, [method])
    model = anew(work / f"model-{method}", lambda out: fit(config, out, method=method))
    _, expected, _ = read_predictions(config.store, result)
    rows = predicted_units(config.store, result).astype(int)
    proba = said_elsewhere(model, config, rows, work)
    stamp = " RANDOM WEIGHTS" if model.record.random else ""
    print(
        f"{method}: {len(rows)} images of {result.counts['test'].patients} patients elsewhere: "
        f"greatest difference from evaluate {np.abs(proba - expected).max():.2g} (in the store "
        f"itself {model.record.difference:.2g}); {model.record.score.metrics['auroc']}{stamp}"
    )
    return model


def times(model: Model, work: Path) -> None:
    """Time 20 new images, one more beside them, and all again: on the clock and the processor."""
    images = sorted((work / "new").iterdir())
    folder = work / "twenty"
    for place in (folder, work / "new-store"):
        shutil.rmtree(place, ignore_errors=True)
    (work / "new-store.key").unlink(missing_ok=True)
    folder.mkdir()
    options = FolderOptions(store=work / "new-store", speed=SPEED)
    for number, what in ((20, "20 new images"), (21, "one more"), (21, "none more")):
        for image in images[:number]:
            shutil.copy2(image, folder)
        started = time.perf_counter()
        spent = time.process_time()
        predict(model, folder, work / "p.csv", options)
        print(
            f"{what}: {time.perf_counter() - started:.2f} s, of which the processor "
            f"{time.process_time() - spent:.2f} s (readers are processes of their own)"
        )


# --- masks, tuned networks, reports --------------------------------------------------------


def masks_config(root: Path, work: Path, weights: str) -> Config:
    """Return a config over 40 of the X-rays that have lung masks, at 224 pixels."""
    with (root / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lung_mask"]][:40]
    with (work / "masked.csv").open("w", newline="") as into:
        out = csv.writer(into)
        out.writerow(["path", "patient", "covid", "lungs"])
        for row in rows:
            covid = "covid" if row["label"] == "covid" else "rest"
            out.writerow([row["image"], row["patient_id"], covid, row["lung_mask"]])
    return Config.model_validate(
        {
            "data": {
                "root": root,
                "include": [row["image"] for row in rows],
                "modality": {"**": "DX"},
            },
            "store": work / "masked-store",
            "backbone": {"name": "dinov2_vits14", "weights": weights},
            "outputs": {"keep": ["cls", "mean", "patch"]},
            "labels": {"file": work / "masked.csv", "patient": "patient"},
            "split": {"allow": ["duplicates", "near-duplicates"]},
            "tasks": {"covid": {"labels": ["covid"], "positive": "covid"}},
            "masks": {"lungs": {"by": "table", "column": "lungs", "values": "lung"}},
            "segment": {"knn": {"method": "knn"}},
            "bitfit": {"epochs": 1, "augment": "none", "batch": 8},
        }
    )


def masks(root: Path, work: Path, weights: str) -> MaskModel:
    """Draw on copies of the test images elsewhere; hold the masks against those of `segment`."""
    config = masks_config(root, work, weights)
    extract(config, SPEED)
    model = anew(work / "model-lungs", lambda out: fit_model(config, out, task="lungs"))
    assert isinstance(model, MaskModel)
    for name in ("answered", "drawn", "masked-new"):
        shutil.rmtree(work / name, ignore_errors=True)
    written, failed = write_predictions(config, work / "answered")
    answered = {path.name: path for path in written if path.parent.name == "images"}
    (work / "masked-new").mkdir()
    for path in (root / "images").iterdir():
        if f"{path.stem}.png" in answered:
            shutil.copy(path, work / "masked-new")
    tally = draw(model, work / "masked-new", work / "drawn", FolderOptions(speed=SPEED))
    different = 0
    for path in (work / "drawn").rglob("*.png"):
        with Image.open(path) as drawn, Image.open(answered[path.name]) as expected:
            different += int((np.asarray(drawn) != np.asarray(expected)).sum())
    print(
        f"masks: {tally.files} of {len(answered)} drawn elsewhere, {different} pixels other than "
        f"segment's; {len(failed)} not written; {model.record.score.metrics['dice']}"
    )
    return model


def tuned(root: Path, work: Path, weights: str) -> Model:
    """Tune biases for an epoch and hold what the model says elsewhere against the answer."""
    config = masks_config(root, work, weights)
    extract(config, SPEED)
    model = anew(
        work / "model-tuned", lambda out: fit_model(config, out, task="covid", method="bitfit")
    )
    assert isinstance(model, Model)
    (result,) = tune(config, ["bitfit"])
    _, expected, _ = read_predictions(config.store, result)
    said = said_elsewhere(model, config, predicted_units(config.store, result).astype(int), work)
    print(
        f"tuned: {len(said)} images elsewhere: greatest difference from tune "
        f"{np.abs(said - expected).max():.2g}"
    )
    return model


def reports(model: Model, root: Path, work: Path) -> None:
    """Write a structured report of each CT slice, read it back, hold it against the table."""
    out = work / "reports"
    shutil.rmtree(out, ignore_errors=True)
    tally = report(model, root / "dicom_ct_philips", out, FolderOptions(speed=SPEED))
    with (out / "units.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    worst = 0.0
    for row in rows:
        numbers = [
            float(item.MeasuredValueSequence[0].NumericValue)
            for item in items_of(pydicom.dcmread(out / row["files"]))
            if "MeasuredValueSequence" in item and item.MeasuredValueSequence
        ]
        for name in model.record.classes:
            value = float(row[f"proba:{name}"])
            worst = max(worst, min(abs(number - value) for number in numbers))
    print(
        f"reports: {len(rows)} slices, {tally.unwritten} without a report, probabilities read back "
        f"to {worst:.2g}"
    )


def items_of(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Yield all items of a report's content, the deeper ones after those above."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items_of(item)


# --- what is filed -------------------------------------------------------------------------


def flips(path: Path, number: int) -> None:
    """Flip a bit anywhere in a model's files, so often; each must be found as it is loaded."""
    rng = np.random.default_rng(0)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    found = 0
    for i in range(number):
        file = files[i % len(files)]
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            load_model(path)
        except ModelError:
            found += 1
        finally:
            file.write_bytes(whole)
    print(f"{path.name}: {found} of {number} flipped bits refused, in {len(files)} files")


def identifiers(path: Path, root: Path) -> None:
    """Look for patients' ids and names of images in all files of a model."""
    rows = rows_of(root)
    known = {row["patient_id"] for row in rows}
    known |= {Path(row["image"]).stem for row in rows} | {str(root)}
    there = set()
    for file in path.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            there |= {each for each in known if len(each) > 5 and each.encode() in text}
            if file.suffix in (".json", ".md"):
                # An id such as p12 is one where no letter or digit stands beside it.
                words = set(re.findall(r"[0-9A-Za-z]+", text.decode()))
                there |= known & words
    print(f"{path.name}: {len(there)} of {len(known)} identifiers stand in its files {there or ''}")


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
    model = anew(work / "model-here", lambda out: fit(config, out))
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
    words.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    words.add_argument("--flips", type=int, default=200)
    given = words.parse_args()
    root = Path(os.environ["RADPROBE_REAL_DATA"])
    work = given.work or Path(tempfile.mkdtemp(prefix="models-"))
    work.mkdir(exist_ok=True)
    config_path = write_config(root / "cxr", work, given.weights, "all", rows_of(root / "cxr"))
    started = time.perf_counter()
    extract(load_config(config_path), SPEED)
    print(f"extracted in {time.perf_counter() - started:.1f} s")
    models: list[FiledModel[Any]] = []
    if "tasks" in given.only:
        for method in ("knn", "probe"):
            model = same_numbers(config_path, work, method)
            models.append(model)
        times(model, work)
        unlike(model, root, config_path)
        reports(model, root, work)
        elsewhere(root / "cxr", work, given.weights)
    if "masks" in given.only:
        models.append(masks(root / "cxr", work, given.weights))
    if "tuned" in given.only:
        models.append(tuned(root / "cxr", work, given.weights))
    for filed in models:
        identifiers(filed.path, root / "cxr")
        flips(filed.path, given.flips)


if __name__ == "__main__":
    main()
