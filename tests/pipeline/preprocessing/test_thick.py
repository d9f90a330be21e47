"""Slices seen three times as thick: with their neighbours in the volume, and true to those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.annotations.labels import Task
from pipeline.backbones.load import load_backbone
from pipeline.config.data import Labels
from pipeline.config.root import Config
from pipeline.config.tuning import FineTune
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.io.decode import read_slices
from pipeline.preprocessing.perturb import thickened
from pipeline.preprocessing.prepare import prepare
from pipeline.recipe import Preprocess, recipe_of
from pipeline.segmentation.sources import StoreSource
from pipeline.tune import tune
from pipeline.types import Slice
from stores import FeatureStore
from stores.errors import ConfigError
from tests.phantoms import volume, write_series
from tests.pipeline.collection import write_csv
from tests.pipeline.models import write_tiny_folder
from tests.pipeline.preprocessing.test_volume import (
    assert_same_bits_again,
    live,
    write_config,
    write_unreadable,
)

HERE = Speed(device="cpu", batch_size=2, workers=0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(tmp_path: Path, network: Path) -> Config:
    """Return a config over an MR of three parts, its first slices as another, and two X-rays."""
    pixels = volume(9, 40, 44).astype(np.uint16)
    write_series(tmp_path / "data/a", pixels, Modality="MR")
    tags = {"SeriesInstanceUID": "1.2", "Modality": "MR"}
    write_series(tmp_path / "data/b", pixels[:3], **tags)
    write_series(tmp_path / "data/x", pixels[:2], SeriesInstanceUID="1.3", Modality="DX")
    config = write_config(tmp_path, network)
    thick = Preprocess(view="thick")
    return config.model_copy(update={"preprocess": thick, "store": tmp_path / "thick"})


def assert_true(config: Config, network: Path, folder: str, near: int, gone: str = "") -> None:
    """Hold each slice's features against those of the mean of its and `near` slices beside it."""
    store, backbone = FeatureStore.open(config.store), load_backbone(f"hf:{network}", image_size=56)
    recipe = recipe_of(store)
    rows = live(store, folder)
    paths = sorted(rows, key=lambda path: rows[path])
    items = {p: next(iter(read_slices(config.data.root / p, [0]))) for p in paths if p != gone}
    for i, path in enumerate(paths):
        if path == gone:
            continue
        some = [items[p] for p in paths[max(0, i - near) : i + near + 1] if p in items]
        mean = np.mean([item.pixels for item in some], axis=0, dtype=np.float64)
        modality = "DX" if folder == "x" else "MR"
        prepared = prepare(Slice(0, mean.astype(np.float32)), modality, recipe)
        want = backbone(prepared[None]).cls[0]
        np.testing.assert_allclose(store.read("cls", [rows[path]])[0], want, atol=2e-3)


def test_a_thicker_slice_is_the_mean_of_what_is_there() -> None:
    nan = np.nan
    own = Slice(3, np.array([[1.0, 2, nan]], np.float32))
    above = Slice(2, np.array([[4, 8, nan]], np.float32))
    below = Slice(4, np.array([[1, 2, 6]], np.int16))
    got = thickened(own, [above, below, Slice(5, np.zeros((2, 3), np.float32))])
    assert got.frame == 3
    assert got.pixels.dtype == np.float32
    np.testing.assert_array_equal(got.pixels, [[2, 4, 6]])
    np.testing.assert_array_equal(thickened(own, []).pixels, own.pixels)


def test_slices_are_seen_with_their_neighbours_across_parts(config: Config, network: Path) -> None:
    summary = extract(config, HERE)
    # Equal pixels in another volume are another picture; of the X-rays, none is the other's.
    assert (summary.embedded, summary.linked, summary.clean) == (14, 0, True)
    assert_true(config, network, "a", near=1)
    assert_true(config, network, "b", near=1)
    assert_true(config, network, "x", near=0)


def test_runs_that_stopped_and_reading_processes_give_the_same_bits(config: Config) -> None:
    assert_same_bits_again(config)


def test_a_neighbour_that_changed_is_seen_by_all_of_its_volume(
    config: Config, network: Path, tmp_path: Path
) -> None:
    extract(config, HERE)
    before = live(FeatureStore.open(config.store), "b")
    tags = {"SeriesInstanceUID": "1.2", "Modality": "MR"}
    write_series(tmp_path / "other", volume(3, 40, 44).astype(np.uint16) + 50, **tags)
    last = max(before, key=lambda path: before[path])
    shutil.copy(tmp_path / "other" / Path(last).name, tmp_path / "data" / last)
    assert extract(config, HERE).embedded == 3  # the first, which is not its neighbour, too
    assert live(FeatureStore.open(config.store), "b").keys() == before.keys()
    assert_true(config, network, "b", near=1)
    assert extract(config, HERE).embedded == 0


def test_a_neighbour_that_cannot_be_read_is_left_out_and_noted(
    config: Config, network: Path, tmp_path: Path
) -> None:
    write_unreadable(tmp_path / "data/a/bad")
    assert extract(config, HERE).unreadable == {"truncated": 1}
    store = FeatureStore.open(config.store)
    row = live(store)["a/bad"]
    assert_true(config, network, "a", near=1, gone="a/bad")
    receipt = json.loads(store.receipts.path(row // 4).read_text())
    assert {*receipt["left_out"]} == {row}


def test_what_reads_single_slices_refuses(config: Config, tmp_path: Path) -> None:
    store = FeatureStore.open(extract(config, HERE).store)
    kept = SimpleNamespace(classes=("background", "x"))
    with pytest.raises(ConfigError, match="each would need its neighbours"):
        StoreSource(config, store, kept).images(np.array([0]))  # type: ignore[arg-type]
    paths = sorted(live(store))
    sick = [i % 2 for i in range(len(paths))]
    who = [f"p{i}" for i in range(len(paths))]
    file = write_csv(tmp_path / "l.csv", path=paths, sick=sick, who=who)
    labels = Labels(file=file, patient="who", headers="ignore")
    split = config.split.model_copy(update={"allow": ("duplicates", "near-duplicates")})
    task = Task(labels=("sick",), level="image")
    asked = {"labels": labels, "tasks": {"t": task}, "split": split}
    with pytest.raises(ConfigError, match="each read by itself"):
        tune(config.model_copy(update=asked | {"finetune": FineTune()}), device="cpu")
