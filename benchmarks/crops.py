"""Linear heads on random crops and flips: what they gain, and what they cost.

    RADPROBE_REAL_DATA=DIR python -m benchmarks.crops [--name NAME --weights FILE --size PX]

DIR/cxr as benchmarks.xrays has it; covid against the rest, and sex, folds by patient. Heads learn
from the images as they are, or from k crops of each, drawn by seed (`augment: paper`) and embedded
once, as a store of each would hold them. All go through the images equally often: with as many
crops as epochs each is seen once, as where images are embedded anew in every epoch (`frozen`).
Tested are the images as they are. Images that are there twice under other patients' ids are left
out, by name. Seconds are of processor, and reading is told apart from the network.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.real import write_dataset
from pipeline.annotations.units import Units
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluation.cases import Cases
from pipeline.evaluation.heads import linear_fit
from pipeline.evaluation.heads.contract import FitInput
from pipeline.evaluation.heads.linear import LinearSettings
from pipeline.evaluation.questions import cases_of
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.recipe import recipe_of
from pipeline.tuning.augment import augmented
from pipeline.tuning.images import Images, all_slices
from stores.features import FeatureStore

Floats = NDArray[np.float32]
AT_ONCE = 16


def config_of(root: Path, work: Path, args: argparse.Namespace) -> Config:
    """Write a config of the X-rays by the network that is asked for; return it."""
    write_dataset(root, work)
    content = yaml.safe_load((work / "xrays.yaml").read_text())
    weights = args.weights or None
    content["backbone"] = {"name": args.name, "weights": weights, "image_size": args.size}
    content["outputs"] = {"blocks": 1}
    (work / "xrays.yaml").write_text(yaml.safe_dump(content))
    return load_config(work / "xrays.yaml")


def read(config: Config) -> torch.Tensor:
    """Return the network's input (n, 3, S, S) of every slice of the store, by its row."""
    store = FeatureStore.open(config.store)
    rows = store.slices()["row"].to_numpy()
    images = Images(config, store, recipe_of(store), torch.device("cpu"), workers=0)
    requests = all_slices(rows, [rows[i : i + 1] for i in range(len(rows))], AT_ONCE, "test")
    return torch.cat([batch.x for batch in images.batches(requests)])


@torch.inference_mode()
def embedded(backbone: Backbone, x: torch.Tensor) -> Floats:
    """Return (n, d) the features of inputs (n, 3, S, S)."""
    parts = []
    for batch in x.split(AT_ONCE):
        outputs = backbone.forward(batch)
        parts.append(torch.cat([outputs.cls[:, -1], outputs.mean], dim=1))
    return torch.cat(parts).numpy()


def crops(
    backbone: Backbone, x: torch.Tensor, number: int, seconds: list[float]
) -> Iterator[Floats]:
    """Yield (n, d) the features of a crop of each input, one seed after the other, and time it."""
    for seed in range(number):
        began = time.process_time()
        draws = np.random.default_rng(seed).random((len(x), 6))
        yield embedded(backbone, augmented(x, "paper", draws, backbone.architecture))
        seconds.append(time.process_time() - began)


def auroc(cases: Cases, seen: list[Floats], plain: Floats, settings: LinearSettings) -> float:
    """Return the mean AUROC over folds; seen: what heads learn from, one array a crop (n, d)."""
    n, k = len(plain), len(seen)
    row = cases.units.rows
    # The units once as they are, and once a crop: n units more each.
    x = np.concatenate([plain[row], *[crop[row] for crop in seen]])
    units = tiled(cases.units, k + 1)
    n = len(row)
    values = []
    for parts in cases.folds:
        train = np.concatenate([parts["train"] + n * (i + 1) for i in range(k)])
        given = FitInput(x, units, {**parts, "train": train}, settings)
        model = linear_fit.fit(given)
        predicted = linear_fit.predict(model, x, parts["test"])
        for prediction in predicted.predictions:
            y = cases.units.y[parts["test"]]
            values.append(roc_auc_score(y, np.asarray(prediction.proba)[:, -1]))
    return float(np.mean(values))


def tiled(units: Units, times: int) -> Units:
    """Return units so many times over, each copy with numbers of its own."""
    n = len(units.ids)
    return replace(
        units,
        y=np.tile(units.y, times),
        groups=np.tile(units.groups, times),
        ids=np.tile(units.ids, times),
        rows=np.tile(units.rows, times),
        unit=np.concatenate([units.unit + n * i for i in range(times)]),
    )


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--name", default="dinov2_vits14")
    words.add_argument("--weights", default="random:0", help='"" takes those of the name')
    words.add_argument("--size", type=int, default=112)
    words.add_argument("--epochs", type=int, default=8)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--work", type=Path)
    args = words.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="crops-"))
    work.mkdir(parents=True, exist_ok=True)
    config = config_of(Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr", work, args)
    extract(config, Speed(device="cpu", workers=0))
    began = time.process_time()
    x = read(config)
    reading = time.process_time() - began
    backbone = load_backbone(args.name, args.weights or None, image_size=args.size, blocks=1)
    began = time.process_time()
    plain = embedded(backbone, x)
    passing = time.process_time() - began
    seconds: list[float] = []
    seen = list(crops(backbone, x, args.epochs, seconds))
    size = plain.astype(np.float16).nbytes / len(plain)
    print(f"{args.name}, {args.weights}, {args.size} px, {len(x)} images, {args.epochs} epochs")
    print(
        f"read {reading:.1f} s, embedded {passing:.1f} s, a crop of each {np.mean(seconds):.1f} s"
    )
    print(f"a store: {size / 1024:.2f} KiB an image and crop")
    every = list(cases_of(config))
    for cases in every:
        cases.ensure_split()
    print(
        f"{'learnt from':>14}" + "".join(f"{cases.name:>18}" for cases in every) + "   KiB an image"
    )
    for k in [0, *(2**i for i in range(args.epochs.bit_length()) if 2**i <= args.epochs)]:
        cells = []
        for cases in every:
            values = []
            for seed in range(args.seeds):
                settings = LinearSettings(
                    features="cls+mean", batch=16, epochs=args.epochs // max(1, k), seed=seed
                )
                values.append(auroc(cases, seen[:k] or [plain], plain, settings))
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        name = f"{k} crops" if k else "as they are"
        print(
            f"{name:>14}"
            + "".join(f"{cell:>18}" for cell in cells)
            + f"{size * (k + 1) / 1024:>15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
