"""Which head finds the one slice of a volume that decides, and how well it answers by it.

    python benchmarks/slices_that_mattered.py [--phantoms 200] [--faint 1.0]

NIfTI volumes of 8 to 16 slices of noise that is smooth within each slice; in one slice of every
second volume lies a disc. A network of random weights embeds them, and five folds are asked by a
probe on pooled features (mean, GeM of p = 3, mean of the five greatest, maximum), by gated
attention and by the slice transformer. `found`: of the volumes with a disc those in which the
disc's slice has the greatest weight, each by the model that had not seen it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.slice_weights import most_heeded, read_slice_weights
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.results import Result
from stores import FeatureStore

POOLS = ("mean", "gem3", "top5", "max")
SIDE = 70  # pixels, and of what the network sees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=200)
    parser.add_argument(
        "--faint", type=float, default=1.0, help="The disc, in deviations of noise."
    )
    parser.add_argument("--work", type=Path, help="Keep images and features in this folder.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.work or Path(folder)
        root.mkdir(exist_ok=True)
        planted = write_phantoms(root, arguments.phantoms, arguments.faint)
        config = config_of(root)
        extract(config, Speed(device="cpu", workers=0))
        print(f"{arguments.phantoms} volumes, {len(planted)} with a disc; RANDOM WEIGHTS")
        print(f"{'':<28} {'AUROC':<22} found")
        for result in evaluate(only(config, POOLS), ["probe"]):
            print(f"{'probe, ' + result.task:<28} {auroc(result):<22} -")
        for result in evaluate(only(config, POOLS[:1]), ["attention", "transformer"]):
            found = count_found(config, result, planted)
            print(f"{result.method:<28} {auroc(result):<22} {found} of {len(planted)}")


def write_phantoms(root: Path, count: int, faint: float) -> dict[str, int]:
    """Write volumes and their labels; return the slice of the disc by the file's name."""
    rng = np.random.default_rng(0)
    planted = {}
    lines = ["path,patient,sick"]
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        slices = int(rng.integers(8, 17))
        voxels = rng.standard_normal((SIDE, SIDE, slices))
        voxels = ndimage.gaussian_filter(voxels, (4, 4, 0))
        voxels /= voxels.std()
        name = f"v{i:03}.nii.gz"
        if i % 2:
            place = int(rng.integers(slices))
            centre = rng.uniform(20, SIDE - 20, 2)
            disc = np.hypot(y - centre[0], x - centre[1]) < rng.uniform(8, 12)
            voxels[..., place] += 3 * faint * disc
            planted[name] = place
        image = nib.Nifti1Image((voxels * 100).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0]))
        nib.save(image, root / name)
        lines.append(f"{name},p{i:03},{i % 2}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return planted


def config_of(root: Path) -> Config:
    """Return a config over the phantoms, with a task for each pooling."""
    task = {"labels": ["sick"], "level": "series"}
    given: dict[str, Any] = {
        "data": {"root": root, "modality": {"**": "MR"}, "paths": "keep"},
        "store": root / "store",
        "backbone": {"name": "dinov2_vits14", "weights": "random:0", "image_size": SIDE},
        "preprocess": {"mr": {"kind": "window", "low": -400, "high": 800}},
        "outputs": {"blocks": 1, "keep": ["cls"]},
        "labels": {"file": root / "labels.csv", "patient": "patient"},
        "split": {"kind": "kfold"},
        "tasks": {pool: task | {"pool": pool} for pool in POOLS},
        "probe": {"features": "cls"},
        "attention": {"epochs": 30},
        "transformer": {"epochs": 30},
    }
    return Config.model_validate(given)


def only(config: Config, names: tuple[str, ...]) -> Config:
    """Return a config with some of its tasks."""
    return config.model_copy(update={"tasks": {name: config.tasks[name] for name in names}})


def auroc(result: Result) -> str:
    """Return the AUROC of an answer with its interval."""
    metric = result.main_score.metrics["auroc"]
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"


def count_found(config: Config, result: Result, planted: dict[str, int]) -> int:
    """Return in how many volumes the slice of the disc has the greatest weight."""
    store = FeatureStore.open(config.store)
    weights = read_slice_weights(store, result)
    assert weights is not None
    frame = dict(zip(weights["row"].to_pylist(), weights["frame"].to_pylist(), strict=True))
    path = dict(zip(weights["row"].to_pylist(), weights["path"].to_pylist(), strict=True))
    found = 0
    for ((row, _),) in most_heeded(weights, 1).values():
        found += planted.get(path[row]) == frame[row]
    return found


if __name__ == "__main__":
    main()
