"""Networks tuned on masks and on numbers; volumes that scale their slices."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline.backbones.load import load_backbone
from pipeline.backbones.weights import BACKBONES
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.recipe import recipe_of
from pipeline.segment import segment
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.linear import LinearTokenHead
from pipeline.segmentation.predictions import write_predictions
from pipeline.tune import tune, tune_masks
from pipeline.tuning.augment import augmented, moved_along
from pipeline.tuning.goals import MaskGoal
from pipeline.tuning.images import BatchRequest, ImageBatch, Images
from pipeline.tuning.network import TunableNetwork, make_trainable
from stores import FeatureStore
from stores.errors import ConfigError
from tests.pipeline.collection import probed_on_train
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import COMMAND, environment
from tests.pipeline.test_tune import APART, DEPTH, EACH, INTENDED, everywhere
from tests.waiting import until
from tests.warm import WarmProcess

SIZE = 56
BLOCK: dict[str, Any] = {"epochs": 2, "batch": 8, "at_once": 4, "augment": "mild"}


def write_collection(folder: Path, patients: int = 12) -> Path:
    """Write noise, two images a patient, brighter inside their masks; return the config.

    `light` of a label row is how bright.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for i in range(patients):
        for j in range(2):
            mask = np.zeros((64, 64), np.uint8)
            x, y, width = *rng.integers(0, 24, 2), int(rng.integers(16, 40))
            mask[y : y + 36, x : x + width] = 1
            light = 60 + 130 * (2 * i + j) / (2 * patients)
            pixels = (rng.integers(0, 60, mask.shape) + light * mask).astype(np.uint8)
            name = f"{i:02}_{j}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            Image.fromarray(mask * 255).save(folder / "masks" / name)
            rows.append([f"images/{name}", f"p{i}", light])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "patient", "light"], *rows])
    write_tiny_folder(folder / "network", depth=DEPTH)
    config = {
        "data": {"root": ".", "include": ["images/**"], "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{folder / 'network'}", "image_size": SIZE},
        "outputs": {"keep": ["cls", "mean", "patch"], "blocks": 1},
        "store": "store",
        "labels": {"file": "labels.csv", "patient": "patient"},
        "masks": {"thing": {"root": ".", "files": {"**": "masks/{name}"}, "values": "thing"}},
        "split": APART | {"folds": 3},
        "lora": {**BLOCK, "rank": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose collection is embedded."""
    path = write_collection(tmp_path_factory.mktemp("outlines"))
    extract(load_config(path), Speed(workers=0))
    return path


def config_of(path: Path, **changes: Any) -> Config:
    content = yaml.safe_load(path.read_text()) | changes
    altered = path.with_name(f"altered-{os.getpid()}.yaml")
    altered.write_text(yaml.safe_dump(content))
    return load_config(altered)


@pytest.mark.parametrize("method", EACH)
def test_masks_send_gradients_to_what_is_meant_and_nothing_else(
    collection: Path, method: str
) -> None:
    config, settings = load_config(collection), EACH[method]
    cases = SegmentationCases.of(config, "thing")
    backbone = load_backbone(config.backbone.name, image_size=SIZE, blocks=1)
    network = TunableNetwork(backbone, LinearTokenHead(48, 2, SIZE, norm=False), "patch")
    make_trainable(network, settings)
    meant = {f"body.{name}" for name in everywhere(*INTENDED[method])}
    meant |= {"head.classify.weight", "head.classify.bias"}
    assert set(network.trained()) == meant
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():  # LoRA's B
            torch.nn.init.normal_(parameter)
    rows = cases.task_cases.units.rows[:3]
    goal = MaskGoal(cases.source, settings, backbone.architecture)
    x = torch.from_numpy(cases.source.images(rows))
    request = BatchRequest("train", 0, np.arange(3), rows, np.arange(3))
    batch = ImageBatch(request, x, np.arange(3))
    draws = np.random.default_rng(0).random((3, 6))
    goal.loss(network, batch, draws).backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert meant - reached <= {n for n in meant if n.endswith("k_proj.bias")}
    assert reached <= meant


def test_masks_go_where_their_images_go() -> None:
    architecture = BACKBONES["dinov2_vits14"].architecture
    mask = torch.zeros((2, SIZE, SIZE), dtype=torch.uint8)
    mask[:, 10:40, 20:35] = 1
    mean, std = (torch.tensor(v)[:, None, None] for v in (architecture.mean, architecture.std))
    x = (mask[:, None].float().expand(2, 3, SIZE, SIZE) - mean) / std
    draws = np.random.default_rng(3).random((2, 6))
    draws[:, 4:] = 0.5  # contrast and brightness as they are; of `paper`, no flip
    for kind in ("none", "mild", "paper"):
        image = augmented(x, kind, draws, architecture) * std + mean
        moved = moved_along(mask, kind, draws)
        assert moved.dtype == mask.dtype
        assert ((image[:, 0] > 0.5) != moved.bool()).float().mean() < 0.01
        assert (kind == "none") == bool((moved == mask).all())


def test_a_network_learns_masks_and_stands_beside_heads_on_its_tokens(collection: Path) -> None:
    block = {"epochs": 5, "batch": 2, "augment": "none", "rate": 1e-2, "head_rate": 0.1}
    heads = {"cached": {"method": "linear", "epochs": 2, "learning_rates": [1e-2]}}
    config = config_of(collection, lora={**block, "rank": 4}, segment=heads)
    (cached,) = segment(config)
    (answer,) = tune_masks(config, device="cpu", workers=0)
    assert (answer.head, answer.method, answer.level) == ("lora", "lora", "image")
    assert answer.counts == cached.counts
    assert answer.provenance.split == cached.provenance.split
    dice = answer.scores[-1].metrics["dice"]
    assert dice.low is not None
    assert dice.value > 0.6, answer.tuned[0].history
    assert dice.value > cached.scores[-1].metrics["dice"].value
    (tuned,) = answer.tuned
    assert tuned.history[-1] == pytest.approx(dice.value, abs=0.15)
    assert (config.store / tuned.weights / "head.safetensors").is_file()
    assert tune_masks(config, device="cpu", workers=0)[0].cached
    told = pq.read_table(config.store / "results/results.parquet").to_pylist()
    assert {row["method"] for row in told} == {"cached", "lora"}
    written, failed = write_predictions(config, collection.parent / "out")
    assert not failed
    assert {part for path in written for part in path.parts} >= {"cached", "lora"}
    # A backbone as any other: its tokens, drawn from by heads.
    base = yaml.safe_load(collection.read_text())
    network = {**base["backbone"], "weights": str(config.store / tuned.weights)}
    again = config_of(collection, backbone=network, store="store-lora", segment=heads)
    assert extract(again, Speed(workers=0)).weights == tuned.identity
    assert segment(again)[0].scores


def test_the_cached_head_is_where_masks_begin(collection: Path) -> None:
    """With steps too small to matter, the answer is the linear head's of the same tokens."""
    linear = {"method": "linear", "epochs": 4, "learning_rates": [0.05], "refit": "none"}
    still = {"epochs": 1, "rate": 1e-12, "head_rate": 1e-12, "start": "probe"}
    config = config_of(collection, segment={"cached": linear}, lora=None, bitfit=still)
    (cached,), (answer,) = segment(config), tune_masks(config, device="cpu", workers=0)
    mine, theirs = (each.scores[-1].metrics["dice"].value for each in (answer, cached))
    assert mine == pytest.approx(theirs, abs=0.01)  # the cache holds float16
    assert any("began as the linear one" in note for note in answer.notes)
    (again,) = tune_masks(config, device="cpu", workers=0)
    assert again.cached
    shorter = {"cached": linear | {"epochs": 1}}
    config = config_of(collection, segment=shorter, lora=None, bitfit=still)
    (other,) = tune_masks(config, device="cpu", workers=0)
    assert not other.cached
    assert other.provenance.key != answer.provenance.key


def test_a_killed_run_on_masks_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = write_collection(tmp_path, patients=9)
    config = load_config(path)
    extract(config, Speed(workers=0))
    (tmp_path / "images/00_0.png").write_bytes(b"")  # not to be read any more
    options = ["--device", "cpu", "--workers", "0", "--checkpoint-s", "0"]
    process = WarmProcess(COMMAND, "tune", str(path), *options, environment=environment())
    until(lambda: list((config.store / "runs").glob("*/all/checkpoint.safetensors")))
    process.kill()
    process.communicate()
    assert not list((config.store / "segmentations").glob("*.json"))
    (resumed,) = tune_masks(config, device="cpu", workers=0)
    assert resumed.tuned[0].resumed == 1
    assert any("slices were left out: empty" in note for note in resumed.notes)
    for file in (config.store / "segmentations").glob("*"):
        file.unlink()
    (straight,) = tune_masks(config, device="cpu", workers=0)
    assert straight.tuned[0].resumed == 0
    assert straight.tuned[0].identity == resumed.tuned[0].identity
    dice = [each.scores[-1].metrics["dice"] for each in (straight, resumed)]
    assert dice[0] == dice[1]
    assert not list((config.store / "runs").glob("*/"))


def test_a_network_learns_a_number(collection: Path) -> None:
    """How bright the thing is, where one window shows all images."""
    config = config_of(
        collection,
        data={"root": ".", "include": ["images/**"], "modality": {"**": "CT"}},
        preprocess={"ct": {"low": 0, "high": 255}},
        store="windowed",
        tasks={"light": {"labels": ["light"], "values": "number"}},
        lora=None,
        finetune={
            "epochs": 16,
            "batch": 2,
            "augment": "none",
            "rate": 5e-3,
            "head_rate": 0.1,
            "layer_decay": 1.0,
        },
    )
    extract(config, Speed(workers=0))
    (result,) = tune(config, device="cpu", workers=0)
    errors = [-(value or 0.0) for value in result.tuned[0].history]
    assert min(errors) < errors[0] / 3
    assert result.scores[-1].metrics["r2"].value > 0.5


def test_a_number_begins_as_its_probe(collection: Path) -> None:
    """With steps too small to matter, the answer is ridge regression's of the same features."""
    tasks = {"light": {"labels": ["light"], "values": "number"}}
    still = {"epochs": 1, "rate": 1e-12, "head_rate": 1e-12, "start": "probe"}
    config = config_of(collection, tasks=tasks, lora=None, bitfit=still)
    (result,) = tune(config, device="cpu", workers=0)
    assert result.kind == "regression"
    assert result.tuned[0].history[0] is not None
    (cases,) = cases_of(config)
    (parts,) = cases.folds
    x = cases.features(config.probe, parts)
    expected = probed_on_train(x, cases.units, parts, config.probe)
    _, said, _ = read_predictions(config.store, result, 0)
    np.testing.assert_allclose(said, expected.proba, atol=1.0)


def test_masks_to_tune_on_are_asked_for(collection: Path) -> None:
    with pytest.raises(ConfigError, match="no masks"):
        tune_masks(config_of(collection, masks={}), device="cpu")
    with pytest.raises(ConfigError, match="a name of its own"):
        config_of(collection, segment={"lora": {}})


def test_volumes_scale_the_slices_that_a_network_learns(tmp_path: Path) -> None:
    """As they scaled what was embedded; an X-ray beside them has no volume."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        voxels = rng.normal(0, 30, (40, 40, 4)) + 100 * np.arange(4)
        nib.save(
            nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), tmp_path / f"images/p{i}.nii.gz"
        )
    Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "images/x.png")
    network = write_tiny_folder(tmp_path / "network", depth=2)
    content = {
        "data": {"root": "images", "modality": {"**/*.png": "DX", "**": "MR"}},
        "backbone": {"name": f"hf:{network}", "image_size": SIZE},
        "preprocess": {"mr": {"kind": "percentiles", "scope": "volume"}},
        "outputs": {"blocks": 1, "dtype": "float32"},
        "store": "store",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "c.yaml")
    extract(config, Speed(workers=0))
    store = FeatureStore.open(config.store)
    recipe = recipe_of(store)
    images = Images(config, store, recipe, torch.device("cpu"), 0)
    rows = store.slices()["row"].to_numpy()
    every = BatchRequest("test", 0, rows, rows, np.arange(len(rows)))
    (batch,) = images.batches([every])
    assert len(batch.places) == len(rows) == 9
    backbone = load_backbone(config.backbone.name, image_size=SIZE, blocks=1)
    want: NDArray[np.float32] = store.read("mean", rows)
    np.testing.assert_allclose(backbone(batch.x).mean.numpy(), want, atol=1e-4)
