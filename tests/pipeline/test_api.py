"""What a notebook does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import api
from pipeline.extraction.embed import load_network
from pipeline.shared.versions import UNKNOWN, version_of
from stores.errors import ConfigError, PartsFailedError, StoreNotFoundError, WeightsError
from tests.phantoms import volume, write_png, write_series
from tests.pipeline.models import write_tiny_folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> api.Config:
    folder = tmp_path_factory.mktemp("notebook")
    write_series(folder / "data/ct", volume(5))
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 200, (40, 40), np.uint8)
        write_png(folder / f"data/p{i}.png", pixels + 50 * np.uint8(i % 2))
    rows = [f"p{i}.png,{i % 2},patient {i}" for i in range(12)]
    (folder / "labels.csv").write_text("\n".join(["path,bright,patient", *rows]) + "\n")
    config = api.Config.model_validate(
        {
            "data": {"root": folder / "data"},
            "backbone": {"name": f"hf:{write_tiny_folder(folder / 'net')}", "image_size": 28},
            "store": folder / "store",
            "labels": {"file": folder / "labels.csv", "patient": "patient"},
            "split": {"folds": 3},
            "tasks": {"bright": {"labels": ["bright"]}},
        }
    )
    assert api.extract(config).embedded == 17
    return config


def test_a_folder_is_looked_at_without_a_store(config: api.Config) -> None:
    slices, files = api.discover(config.data.root, include=("*.png",))
    assert slices["path"].to_pylist() == files["path"].to_pylist()
    assert slices.num_rows == 12


def test_features_stand_row_for_row_beside_their_slices(config: api.Config) -> None:
    x, slices = api.features(config.store, blocks=2)
    assert x.shape == (17, 2 * 48)
    assert slices["path"].to_pylist()[-1] == "p9.png"
    store = api.FeatureStore.open(config.store)
    assert np.array_equal(x, store.read("cls", slices["row"].to_numpy())[:, -2:].reshape(17, -1))
    with pytest.raises(KeyError):
        api.features(config.store, "patch")
    with pytest.raises(StoreNotFoundError):
        api.features(config.store.with_name("elsewhere"))


def test_a_config_may_be_its_path_everywhere(config: api.Config) -> None:
    path = config.store.with_name("my.yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    assert len(api.data(str(path), "bright").X) == 12
    assert api.extract(path).embedded == 0
    assert [each.method for each in api.evaluate(path, ["knn"])] == ["knn"]
    whole = api.features(config.store)[0]
    for store in (path, config, str(config.store)):
        assert np.array_equal(api.features(store)[0], whole)
    model = api.fit(path, path.with_name("model"))
    assert model.predict_proba(config.data.root).shape == (17, 2)
    with pytest.raises(TypeError, match="must be a path, or what load_config returns. Got dict"):
        api.extract({"store": "x"})  # type: ignore[arg-type]


def test_a_word_that_is_none_is_refused_with_those_that_are(config: api.Config) -> None:
    with pytest.raises(ConfigError, match=r"one of: cls, .*Got 'clss' instead. Did you mean 'cls'"):
        api.data(config, "bright", features="clss")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="A task of this config must be one of: bright.*'dim'"):
        api.data(config, "dim")
    with pytest.raises(ConfigError, match=r"A method must be .*Got 'prob' instead. Did you mean"):
        api.evaluate(config, ["prob"])
    with pytest.raises(KeyError, match="no array 'clss'. It has: cls, "):
        api.features(config.store, "clss")


def test_a_loader_of_torch_takes_them_in_any_order(config: api.Config) -> None:
    from torch.utils.data import DataLoader

    data = api.Features(config.store, "mean")
    order = [3, 16, 0, 7]
    loader = DataLoader(data, batch_size=3, sampler=order)  # type: ignore[arg-type]
    batches = [batch.numpy() for batch in loader]
    assert [len(batch) for batch in batches] == [3, 1]
    assert np.array_equal(np.concatenate(batches), api.features(config.store, "mean")[0][order])
    assert np.array_equal(data[5], data[4:6][1])


def test_xarray_opens_the_store_as_it_is(config: api.Config) -> None:
    xarray = pytest.importorskip("xarray")
    data = xarray.open_zarr(config.store / "features.zarr", consolidated=False, chunks=None)
    assert data["cls"].dims == ("row", "block", "d")
    x, slices = api.features(config.store, "mean")
    assert np.array_equal(data["mean"].isel(row=slices["row"].to_numpy()), x)


def test_a_probe_in_three_lines(config: api.Config) -> None:
    (result,) = api.evaluate(config, ["probe"])
    (score, *_) = result.scores
    assert 0 <= score.metrics["auroc"].value <= 1
    assert api.evaluate(config, ["probe"])[0].cached


def test_a_store_without_its_key_opens_with_its_paths_hidden(
    config: api.Config, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(config.store, tmp_path / "copy")
    assert all(path.startswith("~") for path in api.features(copy)[1]["path"].to_pylist())


def test_parts_that_failed_are_no_success(
    config: api.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(api.FeatureStore, "write", refuse)
    again = config.model_copy(update={"store": tmp_path / "store"})
    with pytest.raises(PartsFailedError, match=r"1 parts of .*part 0: ValueError: no") as failed:
        api.extract(again)
    assert failed.value.summary.slices == 17


def test_a_store_is_made_once_its_network_has_loaded(
    config: api.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object) -> None:
        raise WeightsError("torn")

    monkeypatch.setattr("pipeline.extract.load_network", torn)
    again = config.model_copy(update={"store": tmp_path / "new" / "store"})
    with pytest.raises(WeightsError):
        api.extract(again)
    assert not list(tmp_path.iterdir())


def test_the_network_of_a_new_store_is_loaded_once(
    config: api.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def load(*request: Any) -> Any:
        loaded.append(load_network(*request))
        return loaded[-1]

    monkeypatch.setattr("pipeline.extract.load_network", load)
    again = config.model_copy(update={"store": tmp_path / "new"})
    assert api.extract(again).embedded == 17
    assert len(loaded) == 1
    np.testing.assert_array_equal(api.features(again.store)[0], api.features(config.store)[0])


def test_a_package_that_is_not_installed_has_a_version_all_the_same() -> None:
    assert version_of("no-such-package-anywhere") == UNKNOWN
    assert version_of("torch") != UNKNOWN
