"""Networks tuned on images: what is trained, what moves, what comes of a kill, and the way back."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from pipeline.backbones.load import load_backbone
from pipeline.backbones.weights import BACKBONES, locate
from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.config.tuning import BitFit, FineTune, FrozenTune, Lora, LoraTarget, NormTune, Tuning
from pipeline.evaluate import evaluate
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.result_files import read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.extraction.withdrawal import find_patient
from pipeline.fitted.kinds import fit_model
from pipeline.fitted.model import Model
from pipeline.recipe import Recipe
from pipeline.results import Result
from pipeline.tune import tune
from pipeline.tuning.augment import augmented
from pipeline.tuning.network import TunableNetwork, make_trainable, parameter_groups
from pipeline.tuning.saving import save_network
from pipeline.tuning.training import rate_factor
from stores import FeatureStore
from stores.errors import ConfigError, RecipeMismatchError, StaleTablesError
from stores.verify import verify
from tests.pipeline.backbones.test_models import saved
from tests.pipeline.collection import probed_on_train
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.processes import COMMAND, environment
from tests.waiting import until
from tests.warm import WarmProcess

SIZE = 56
DEPTH = 2
# To a network of so few blocks, some of the images are all but the same.
APART: dict[str, Any] = {"allow": ["near-duplicates"]}
QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch": 8,
    "at_once": 4,
    "patience": 2,
    "features": "cls+mean",
}
EACH = {
    "finetune": FineTune(**QUICK),
    "lora": Lora(**QUICK, rank=4),
    "bitfit": BitFit(**QUICK),
    "norm": NormTune(**QUICK),
    "frozen": FrozenTune(**QUICK),
}


def write_collection(folder: Path, patients: int = 20) -> Path:
    """Write noise with the signs of sickness, labels and a config; return that.

    Two images a patient. `a`: stripes; `b`: a bright lower half; `c`: one of three, without a sign.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(patients):
        for j in range(2):
            pixels = rng.integers(0, 60, (60, 64)).astype(np.uint8)
            a, b = i % 2, i // 2 % 2
            pixels[:, np.arange(64) % 8 < 4] += np.uint8(90 * a)
            pixels[30:] += np.uint8(90 * b)
            Image.fromarray(pixels).save(folder / f"images/{i:02}_{j}.png")
            rows.append([f"images/{i:02}_{j}.png", f"p{i}", a, b, "xyz"[i % 3]])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "patient", "a", "b", "c"], *rows])
    write_tiny_folder(folder / "network", depth=DEPTH)
    block = {name: value for name, value in QUICK.items() if name != "features"}
    config = {
        "data": {"root": ".", "include": ["images/**"], "modality": {"**": "DX"}},
        "backbone": {"name": f"hf:{folder / 'network'}", "image_size": SIZE},
        "outputs": {"blocks": 1},
        "store": "store",
        "split": APART,
        "labels": {"file": "labels.csv", "patient": "patient"},
        "tasks": {"a": {"labels": ["a"]}},
        "probe": {"steps": 5},
        "finetune": block,
        "lora": {**block, "rank": 4},
        "bitfit": block,
        "norm": block,
        "frozen": block,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose collection is embedded."""
    path = write_collection(tmp_path_factory.mktemp("tune"))
    extract(load_config(path), Speed(workers=0))
    return path


def config_of(path: Path, **changes: Any) -> Config:
    """Return the config with other blocks; `store` of its own keeps answers apart."""
    content = yaml.safe_load(path.read_text()) | changes
    altered = path.with_name(f"altered-{os.getpid()}.yaml")
    altered.write_text(yaml.safe_dump(content))
    return load_config(altered)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a network of four blocks."""
    return write_tiny_folder(tmp_path_factory.mktemp("network"), depth=4)


def network_of(folder: Path, settings: Tuning) -> TunableNetwork:
    torch.manual_seed(0)
    backbone = load_backbone(f"hf:{folder}", image_size=SIZE, blocks=1)
    return TunableNetwork(backbone, nn.Linear(96, 1), settings.features)


# --- what is trained -----------------------------------------------------------------------

# Of each method, the parameters of a block and those outside that are to be trained; those of the
# network itself that are then to move are the same, but for LoRA's.
NORMS = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
LINEAR = {f"attention.{x}_proj" for x in "qkvo"} | {"mlp.fc1", "mlp.fc2"}
BIASES = {f"{name}.bias" for name in LINEAR} | {"norm1.bias", "norm2.bias"}
WEIGHTS = {f"{name}.weight" for name in LINEAR}
EMBEDDINGS = {f"patch_embeddings.projection.{x}" for x in ("weight", "bias")}
FINAL = {"layernorm.weight", "layernorm.bias"}
LAYERS = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.fc1", "mlp.fc2"}
INTENDED: dict[str, tuple[set[str], set[str]]] = {
    "finetune": (
        WEIGHTS | BIASES | NORMS | {"layer_scale1.lambda1", "layer_scale2.lambda1"},
        FINAL
        | {f"embeddings.{x}" for x in EMBEDDINGS | {"cls_token", "position_embeddings"}},
    ),
    "lora": (
        {f"{name}.lora_{x}.default.weight" for name in LAYERS for x in "AB"},
        set(),
    ),
    "bitfit": (BIASES, {"layernorm.bias", "embeddings.patch_embeddings.projection.bias"}),
    "norm": (NORMS, FINAL),
    "frozen": (set(), set()),
}  # fmt: skip


def everywhere(block: set[str], outside: set[str], depth: int = DEPTH) -> set[str]:
    return outside | {f"encoder.layer.{i}.{name}" for i in range(depth) for name in block}


@pytest.mark.parametrize("method", EACH)
def test_gradients_reach_what_is_meant_and_nothing_else(tiny: Path, method: str) -> None:
    network = network_of(tiny, EACH[method])
    make_trainable(network, EACH[method])
    meant = {f"body.{name}" for name in everywhere(*INTENDED[method], depth=4)}
    meant |= {"head.weight", "head.bias"}
    assert set(network.trained()) == meant
    x = torch.randn((3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    network.switch_dropout(True)
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():  # LoRA's B and the head's bias
            nn.init.normal_(parameter)
    network(x, torch.eye(3)).square().sum().backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    # A bias of the keys shifts all of a query's scores alike, which softmax takes out again.
    assert meant - reached <= {n for n in meant if n.endswith("k_proj.bias")}
    assert reached <= meant
    listed = [p for group in parameter_groups(network, EACH[method]) for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in network.trained().values()}


def test_rates_fall_from_the_last_block_to_the_first_and_norms_do_not_decay(tiny: Path) -> None:
    settings = FineTune(rate=1.0, layer_decay=0.5, weight_decay=0.1, head_rate=7.0)
    network = network_of(tiny, settings)
    make_trainable(network, settings)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(network, settings)
        for p in group["params"]
    }
    assert found["body.encoder.layer.3.mlp.fc1.weight"] == (1.0, 0.1)
    assert found["body.encoder.layer.0.mlp.fc1.weight"] == (0.125, 0.1)
    assert found["body.encoder.layer.0.mlp.fc1.bias"] == (0.125, 0.0)
    assert found["body.embeddings.cls_token"] == (0.0625, 0.0)
    assert found["body.layernorm.weight"] == (1.0, 0.0)
    assert found["head.weight"] == (7.0, 0.1)


def test_the_papers_settings_by_name_and_what_is_given_beside_them() -> None:
    lora = Lora.model_validate({"protocol": "paper", "epochs": 3})
    assert (lora.rank, lora.alpha, lora.dropout, lora.optimizer) == (48, 16, 0.1, "sgd")
    assert (lora.rate, lora.weight_decay, lora.epochs) == (1e-5, 0, 3)
    assert lora.targets == ("shared-qkv", "fc1", "fc2")
    assert FineTune.model_validate({"protocol": "paper"}).layer_decay == 1
    assert Lora().rank == 16
    with pytest.raises(ValueError, match="as they are"):
        Lora(scaling="l2")


@pytest.mark.parametrize(
    ("targets", "attention"),
    [(("qkv", "fc1", "fc2"), 3 * (48 + 48)), (("shared-qkv", "fc1", "fc2"), 48 + 3 * 48)],
)
def test_lora_has_as_many_numbers_as_its_formula(
    tiny: Path, targets: tuple[LoraTarget, ...], attention: int
) -> None:
    settings = Lora(rank=5, dropout=0, targets=targets)
    network = network_of(tiny, settings)
    make_trainable(network, settings)
    body = sum(p.numel() for n, p in network.trained().items() if n.startswith("body."))
    assert body == 4 * 5 * (attention + 2 * (48 + 4 * 48))


@pytest.mark.parametrize("attention", ["qkv", "shared-qkv"])
def test_lora_merged_says_what_it_said_unmerged(tiny: Path, attention: LoraTarget) -> None:
    settings = Lora(rank=4, targets=(attention, "fc1", "fc2"))
    network = network_of(tiny, settings)
    adapters = make_trainable(network, settings)
    assert adapters is not None
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    x = torch.randn((4, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    plain = network_of(tiny, settings).features(x)
    network.switch_dropout(False)
    apart = network.features(x)
    adapters.merge_and_unload()
    together = network.features(x)
    assert not any("lora_" in name for name, _ in network.named_parameters())
    scale = apart.norm()
    assert (apart - plain).norm() > 0.05 * scale  # the updates do something
    assert (apart - together).norm() < 1e-5 * scale


@pytest.mark.parametrize("family", ["vit", "clip", "sam", "resnet", "dinov3_vit"])
def test_other_networks_are_tuned_saved_and_loaded_again(family: str, tmp_path: Path) -> None:
    folder, _ = saved(family, tmp_path / "network")
    name = "" if family == "resnet" else "lora"
    for method in ("finetune", name, "bitfit", "norm"):
        if not method:
            continue
        backbone = load_backbone(f"hf:{folder}", image_size=64, blocks=1)
        settings = EACH[method].model_copy(update={"features": "cls"})
        network = TunableNetwork(backbone, nn.Linear(48, 2), "cls")
        adapters = make_trainable(network, settings)
        assert len(parameter_groups(network, settings)) > 1
        with torch.no_grad():
            for parameter in network.trained().values():
                parameter += 0.05
        if adapters is not None:
            adapters.merge_and_unload()
        architecture = backbone.architecture
        to = tmp_path / method
        # What random weights became stays said to be random, through a second tuning too.
        began = {"lora": "random:3", "norm": f"random:3+sha256:{'0' * 64}"}.get(
            method, f"sha256:{'0' * 64}"
        )
        identity = save_network(network.body, network.head, architecture, began, to)
        assert identity.startswith("random:3+" if "random" in began else "sha256:")
        recipe = Recipe(architecture=architecture, weights=identity, image_size=64, blocks=1)
        assert recipe.random == ("random" in began)
        found = locate(f"hf:{folder}", str(to))
        assert found.identity == identity
        x = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        again = load_backbone(f"hf:{folder}", to, image_size=64, blocks=1)
        assert torch.equal(again(x).cls, backbone(x).cls)
        assert not torch.allclose(again(x).cls, load_backbone(f"hf:{folder}", image_size=64)(x).cls)


def test_lora_says_where_a_network_has_no_such_layers(tmp_path: Path) -> None:
    folder, _ = saved("resnet", tmp_path / "network")
    backbone = load_backbone(f"hf:{folder}", image_size=64, blocks=1)
    with pytest.raises(ConfigError, match="no linear layers"):
        make_trainable(TunableNetwork(backbone, nn.Linear(48, 2), "cls"), EACH["lora"])


def test_augmentation_is_what_its_draws_say() -> None:
    architecture = BACKBONES["dinov2_vits14"].architecture
    grey = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0)).expand(2, 3, 8, 8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (architecture.mean, architecture.std))
    x = (grey - mean) / std
    middle = np.full((2, 6), 0.5)
    for kind, draws in (("mild", middle), ("none", middle)):
        torch.testing.assert_close(augmented(x, kind, draws, architecture), x, atol=1e-5, rtol=0)
    whole = np.tile([1.0, 0.5, 0.5, 0.5, 0.9, 0], (2, 1))  # the whole area, square
    torch.testing.assert_close(augmented(x, "paper", whole, architecture), x, atol=1e-5, rtol=0)
    whole[:, 4] = 0.1
    flipped = augmented(x, "paper", whole, architecture)
    torch.testing.assert_close(flipped, x.flip(-1), atol=1e-5, rtol=0)
    for kind in ("mild", "paper"):
        draws = np.random.default_rng(0).random((2, 6))
        one = augmented(x, kind, draws, architecture)
        alone = augmented(x[1:], kind, draws[1:], architecture)
        torch.testing.assert_close(one[1:], alone)
        assert not torch.allclose(one[0], one[1])


def test_rates_rise_and_fall() -> None:
    assert [rate_factor(step, 10, 0.2) for step in (0, 1, 2)] == [0.5, 1, 1]
    assert rate_factor(6, 10, 0.2) == pytest.approx(0.5)
    assert rate_factor(0, 10, 0) == 1


# --- the whole way -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(collection: Path) -> list[Result]:
    return tune(load_config(collection), device="cpu", workers=0)


def test_each_method_moves_what_it_says_and_scores_as_the_probe_does(
    collection: Path, answers: list[Result]
) -> None:
    (probe,) = evaluate(load_config(collection), ["probe"])
    assert [result.method for result in answers] == list(EACH)
    for result in answers:
        (tuned,) = result.tuned
        block, outside = INTENDED[result.method]
        if result.method == "lora":
            block = {f"{name}.weight" for name in LAYERS}
        still = {n for n in everywhere(block, outside) if n.endswith("k_proj.bias")}
        assert everywhere(block, outside) - still <= set(tuned.moved)
        assert set(tuned.moved) <= everywhere(block, outside)
        assert result.counts == probe.counts
        assert result.provenance.split == probe.provenance.split
        assert result.provenance.labels == probe.provenance.labels
        metric = result.scores[0].metrics["auroc"]
        assert metric.low is not None
        assert len(tuned.history) == 2
        assert tuned.head == 97
    again = tune(load_config(collection), device="cpu", workers=0)
    assert all(result.cached for result in again)
    told = CliRunner().invoke(app, ["tune", str(collection), "--method", "frozen"]).stdout
    assert "a, frozen: the network is as it was." in told
    assert not list((load_config(collection).store / "runs").glob("*/"))
    assert not verify(load_config(collection).store).findings


def test_a_tuned_network_is_a_backbone_whose_features_are_what_was_scored(
    collection: Path, answers: list[Result]
) -> None:
    """Extract by the saved network; its head on those features gives the answer's predictions."""
    base = load_config(collection)
    for result in answers[:2]:
        (tuned,) = result.tuned
        folder = base.store / tuned.weights
        content = yaml.safe_load(collection.read_text())
        config = config_of(
            collection,
            backbone={**content["backbone"], "weights": str(folder)},
            store=f"store-{result.method}",
            outputs={"blocks": 1, "dtype": "float32"},
        )
        summary = extract(config, Speed(workers=0))
        assert summary.weights == tuned.identity
        assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
        store = FeatureStore.open(config.store)
        rows = store.slices()["row"].to_numpy()
        x = np.concatenate([store.read("cls", rows)[:, -1], store.read("mean", rows)], axis=1)
        head = load_file(folder / "head.safetensors")
        logits = torch.from_numpy(x) @ head["weight"].T + head["bias"]
        name = f"{result.method}-{result.provenance.key[:16]}.parquet"
        said = pq.read_table(base.store / "results" / name).to_pydict()
        # Both stores number the slices alike; ids of images are their rows.
        at = [int(np.flatnonzero(rows == int(unit))[0]) for unit in said["unit"]]
        np.testing.assert_allclose(torch.sigmoid(logits[at, 0]).numpy(), said["proba:1"], atol=1e-4)
        assert evaluate(config, ["probe"])[0].scores
        # As a network of its own, with nothing else named.
        alone = load_backbone(f"hf:{folder}", image_size=SIZE)
        assert alone.architecture == load_backbone(base.backbone.name).architecture


@pytest.mark.parametrize(
    ("task", "block"),
    [
        ({"labels": ["a"]}, {"finetune": {}}),
        ({"labels": ["a", "b"]}, {"lora": {"epochs": 5, "rate": 1e-2, "head_rate": 3e-2}}),
        ({"labels": ["a"]}, {"bitfit": {"rate": 5e-3, "start": "probe"}}),
        ({"labels": ["a"], "level": "patient"}, {"norm": {"rate": 1e-2, "slices": 1}}),
    ],
)
def test_it_learns(collection: Path, task: dict[str, Any], block: dict[str, Any]) -> None:
    (method,) = block
    settings = {"epochs": 3, "batch": 8, "at_once": 8, "augment": "none"}
    rates = {"rate": 1e-3, "head_rate": 1e-2}
    plain: dict[str, Any] = dict.fromkeys(EACH)
    config = config_of(
        collection, tasks={"planted": task}, **plain | {method: settings | rates | block[method]}
    )
    (result,) = tune(config, device="cpu", workers=0)
    (score,) = result.scores
    assert score.labels.get("a", score.metrics)["auroc"].value > 0.9, result.tuned[0].history


def test_the_probes_head_is_where_lp_ft_begins(collection: Path) -> None:
    """With steps too small to matter, the answer is the probe's of the same features."""
    content = {"start": "probe", "epochs": 1, "rate": 1e-12, "head_rate": 1e-12}
    plain: dict[str, Any] = dict.fromkeys(EACH)
    for task in ({"labels": ["a"]}, {"labels": ["c"]}, {"labels": ["a", "b"]}):
        config = config_of(collection, tasks={"t": task}, **plain | {"bitfit": content})
        (result,) = tune(config, device="cpu", workers=0)
        (cases,) = cases_of(config)
        (parts,) = cases.folds
        x = cases.features(config.probe, parts)
        expected = probed_on_train(x, cases.units, parts, config.probe)
        _, proba, _ = read_predictions(config.store, result, 0)
        np.testing.assert_allclose(proba, expected.proba, atol=2e-2)
    other = {"probe": {"steps": 3}, "bitfit": content}
    config = config_of(collection, tasks={"t": task}, **plain | other)
    (again,) = tune(config, device="cpu", workers=0)
    assert not again.cached  # another probe is another beginning


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = write_collection(tmp_path, patients=14)
    content = yaml.safe_load(path.read_text())
    content["lora"]["refit"] = "train+val"
    path.write_text(yaml.safe_dump(content))
    config = load_config(path)
    extract(config, Speed(workers=0))
    options = ["--method", "lora", "--device", "cpu", "--workers", "0", "--checkpoint-s", "0"]
    process = WarmProcess(COMMAND, "tune", str(path), *options, environment=environment())
    until(lambda: list((config.store / "runs").glob("lora-*/all-chosen/checkpoint.safetensors")))
    process.kill()
    process.communicate()
    assert not list((config.store / "results").glob("*"))
    (resumed,) = tune(config, ["lora"], device="cpu", workers=0)
    assert resumed.tuned[0].resumed == 1
    for file in (config.store / "results").glob("*"):
        file.unlink()
    (straight,) = tune(config, ["lora"], device="cpu", workers=0)
    assert straight.tuned[0].resumed == 0
    assert straight.tuned[0].identity == resumed.tuned[0].identity
    assert straight.scores == resumed.scores


def test_it_may_be_trained_again_on_train_and_val(collection: Path, tmp_path: Path) -> None:
    """By the epochs that val chose, where the first network still says where cases are called."""
    block = {"epochs": 3, "batch": 16, "augment": "none", "rate": 1e-2}
    plain: dict[str, Any] = dict.fromkeys(EACH)
    config = config_of(collection, **plain | {"bitfit": block})
    (once,) = tune(config, device="cpu", workers=0)
    config = config_of(collection, **plain | {"bitfit": {**block, "refit": "train+val"}})
    (twice,) = tune(config, device="cpu", workers=0)
    assert not twice.cached
    assert ("refit" in once.settings, twice.settings["refit"]) == (False, "train+val")
    (chosen,), (again,) = once.tuned, twice.tuned
    assert (again.history, again.epoch) == (chosen.history, chosen.epoch)
    assert again.identity != chosen.identity
    folder = config.store / again.weights
    assert [each.name for each in folder.parent.iterdir()] == ["all"]
    assert twice.main_score.operating_points == once.main_score.operating_points
    model = fit_model(config, tmp_path / "model", method="bitfit", device="cpu")
    assert isinstance(model, Model)
    (point,) = twice.main_score.operating_points[""]
    assert model.record.thresholds == {"1": pytest.approx(point)}
    # Val has been learnt, and says nothing of how far its probabilities are from right.
    assert model.record.calibration is None


def test_gradients_add_up_to_the_batch_and_folds_test_every_unit(collection: Path) -> None:
    """Images at once change rounding alone; of k folds each makes a network of its own."""
    block = {"epochs": 1, "batch": 16, "augment": "none", "rate": 0.1, "optimizer": "sgd"}
    plain: dict[str, Any] = dict.fromkeys(EACH)
    found = []
    for at_once in (16, 3):
        config = config_of(
            collection,
            split=APART | {"kind": "kfold", "folds": 3},
            **plain | {"bitfit": block | {"at_once": at_once}},
        )
        (result,) = tune(config, device="cpu", workers=0)
        assert result.counts["test"].units == 40
        assert len({each.identity for each in result.tuned}) == 3
        found.append((config.store, result))
    one, other = (
        [load_file(store / each.weights / "model.safetensors") for each in result.tuned]
        for store, result in found
    )
    for a, b in zip(one, other, strict=True):
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], atol=1e-4, rtol=0)


def test_what_cannot_be_read_any_more_is_left_out_and_told(tmp_path: Path) -> None:
    path = write_collection(tmp_path, patients=14)
    config = load_config(path)
    extract(config, Speed(workers=0))
    (tmp_path / "images/00_0.png").write_bytes(b"")
    Image.fromarray(np.zeros((60, 64), np.uint8)).save(tmp_path / "images/01_0.png")
    (result,) = tune(config, ["norm"], device="cpu", workers=0)
    assert "1 slices were left out: changed since it was embedded" in result.notes
    assert "1 slices were left out: empty" in result.notes
    tested = len(set(result.notes) & {"1 test units are not scored: none of their slices"})
    assert result.counts["test"].units + tested in (6, 4, 5)


def test_what_does_not_fit_is_refused(collection: Path) -> None:
    plain: dict[str, Any] = dict.fromkeys(EACH)
    with pytest.raises(ConfigError, match="It lacks any"):
        tune(config_of(collection, **plain))
    with pytest.raises(ConfigError, match="It lacks lora"):
        tune(config_of(collection, **plain | {"norm": {}}), ["lora"])
    with pytest.raises(RecipeMismatchError, match="preprocess.aspect"):
        tune(config_of(collection, preprocess={"aspect": "pad"}, norm={"seed": 9}), ["norm"])


def test_a_purged_patient_takes_tuned_networks_along(tmp_path: Path) -> None:
    path = write_collection(tmp_path, patients=14)
    config = load_config(path)
    extract(config, Speed(workers=0))
    tune(config, ["norm"], device="cpu", workers=0)
    assert list((config.store / "tuned").glob("*"))
    store = FeatureStore.open(config.store)
    patient = find_patient(config.store, "p0", config)
    assert patient.withdraw(store) == 2
    assert patient.purge(store).rows == 2
    assert not list((config.store / "tuned").glob("*"))

    def purge_another(*_: object) -> None:
        other = find_patient(config.store, "p2", config)
        there = FeatureStore.open(config.store)
        if other.withdraw(there):
            other.purge(there)

    # At its next checkpoint, not at the end of hours.
    with pytest.raises(StaleTablesError, match="A patient was withdrawn"):
        tune(config, ["norm"], device="cpu", workers=0, checkpoint_s=0, progress=purge_another)
    assert not list((config.store / "tuned").glob("*"))
    assert not list((config.store / "runs").glob("*/"))
