"""Tuned networks as models: what they say of new images is what `tune` scored."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.loading import load_config
from pipeline.config.tuning import Lora
from pipeline.evaluation.result_files import predicted_units, read_predictions
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.fitted.draw import draw
from pipeline.fitted.kinds import fit_model, load_model
from pipeline.fitted.mask_model import MaskModel
from pipeline.fitted.model import Model
from pipeline.fitted.predict import predictions
from pipeline.fitted.sources import FolderOptions
from pipeline.segmentation.predictions import write_predictions
from pipeline.tune import tune
from stores.errors import ConfigError, ModelError, RecipeMismatchError
from tests.pipeline.fitted.test_mask_models import values_of
from tests.pipeline.test_tune import write_collection
from tests.pipeline.tuning.test_masks import write_collection as write_masked

HERE = FolderOptions(speed=Speed(device="cpu", workers=0))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the config of an embedded collection."""
    path = write_collection(tmp_path_factory.mktemp("tuned"))
    extract(load_config(path), HERE.speed)
    return path


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_new_images_are_answered_as_while_it_was_tuned(
    collection: Path, tmp_path: Path, method: str
) -> None:
    config = load_config(collection)
    made = fit_model(config, tmp_path / "model", method=method, device="cpu")
    assert made.record.difference <= 1e-6
    (result,) = tune(config, [method], device="cpu")
    _, expected, _ = read_predictions(config.store, result)
    rows = predicted_units(config.store, result).astype(int)
    paths = sorted(path.name for path in (collection.parent / "images").iterdir())
    # Copied elsewhere; nothing is left of what it was tuned on but the model.
    (tmp_path / "new").mkdir()
    for place, row in enumerate(rows):
        source = collection.parent / "images" / paths[row]
        shutil.copy(source, tmp_path / f"new/scan{place:02d}.png")
    moved = Path(shutil.move(tmp_path / "model", tmp_path / "elsewhere"))
    model = load_model(moved)
    assert isinstance(model, Model)
    table = predictions(model, tmp_path / "new", HERE)
    said = np.stack([table["proba:0"].to_numpy(), table["proba:1"].to_numpy()], axis=1)
    np.testing.assert_allclose(said, expected, atol=1e-6)
    point = result.main_score.operating_points[""][0]
    assert model.record.thresholds["1"] == pytest.approx(point, abs=1e-6)
    assert model.record.score == result.main_score
    assert model.record.calibration is None or set(model.record.calibration.labels) == {"1"}
    # The store of the network before it was tuned has other features.
    with pytest.raises(RecipeMismatchError, match=r"weights: 'sha256:.*' there, 'sha256:.*' in"):
        predictions(model, config.store)


def test_a_flipped_bit_of_the_network_is_refused(collection: Path, tmp_path: Path) -> None:
    model = fit_model(load_config(collection), tmp_path / "model", method="norm", device="cpu")
    names = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*")}
    network = {"network/config.json", "network/model.safetensors"}
    assert network < names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    for name in sorted(network):
        data = bytearray((model.path / name).read_bytes())
        data[len(data) // 2] ^= 4
        whole = (model.path / name).read_bytes()
        (model.path / name).write_bytes(data)
        with pytest.raises(ModelError, match="was altered"):
            load_model(model.path)
        (model.path / name).write_bytes(whole)
    load_model(model.path)


def test_a_network_that_the_config_does_not_tune_is_said(collection: Path, tmp_path: Path) -> None:
    config = load_config(collection).model_copy(update={"lora": None})
    with pytest.raises(ConfigError, match="It lacks lora"):
        fit_model(config, tmp_path / "model", method="lora")
    assert not (tmp_path / "model").exists()


def test_new_images_get_the_masks_of_a_tuned_network(tmp_path: Path) -> None:
    config = load_config(write_masked(tmp_path / "collection"))
    extract(config, HERE.speed)
    lora = Lora(epochs=4, batch=2, augment="none", rate=1e-2, head_rate=0.1, rank=4)
    config = config.model_copy(update={"lora": lora})
    model = fit_model(config, tmp_path / "model", method="lora", device="cpu")
    assert isinstance(model, MaskModel)
    assert model.record.difference == 0
    written, _ = write_predictions(config, tmp_path / "answered")
    root = tmp_path / "answered/thing/lora"
    expected = {path.relative_to(root).as_posix(): path for path in written if root in path.parents}
    for name in expected:
        target = tmp_path / "new" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "collection" / name, target)
    tally = draw(model, tmp_path / "new", tmp_path / "out", HERE)
    assert tally.units == len(expected)
    different = [
        (values_of(path) != values_of(tmp_path / "out" / name)).mean()
        for name, path in expected.items()
    ]
    assert max(different) < 1e-3
    assert any(values_of(path).any() for path in expected.values())
