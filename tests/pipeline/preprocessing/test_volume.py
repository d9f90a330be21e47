"""Intensities by the whole volume: the range itself, and that what is cached stays true to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.extract import extract
from pipeline.extraction.embed import Progress, Speed
from pipeline.extraction.plan import explain, plan
from pipeline.io.decode import read_slices
from pipeline.preprocessing.prepare import prepare
from pipeline.preprocessing.volume_range import Histogram
from pipeline.recipe import Percentiles, Preprocess, ZScore, recipe_of
from pipeline.segmentation.sources import StoreSource
from pipeline.types import Slice
from stores import FeatureStore
from stores._disk import seal, unseal
from stores.errors import ConfigError
from stores.verify import verify
from tests.phantoms import volume, write_jpeg_12, write_series
from tests.pipeline.models import write_tiny_folder

HERE = Speed(device="cpu", batch_size=2, workers=0)
RULE = {"kind": "percentiles", "low": 2, "high": 90, "scope": "volume"}


# --- the range ------------------------------------------------------------------------------------


def counted(*slices: np.ndarray) -> Histogram:
    histogram = Histogram()
    for pixels in slices:
        histogram.add(pixels.astype(np.float32))
    return histogram


@pytest.mark.parametrize(("low", "high"), [(1, 99), (0, 100), (0.5, 33.3)])
def test_percentiles_of_integers_are_those_of_numpy(low: float, high: float) -> None:
    slices = np.random.default_rng(0).integers(-3000, 16_385, (5, 40, 44))
    ends = counted(*slices).ends(Percentiles(low=low, high=high, scope="volume"))
    np.testing.assert_allclose(ends, np.percentile(slices, [low, high]), rtol=1e-12)


def test_ranges_of_fractions_are_within_one_part_in_8192() -> None:
    slices = np.exp(np.random.default_rng(0).normal(0, 5, (4, 50, 50))) - 1
    ends = counted(*slices).ends(Percentiles(scope="volume"))
    np.testing.assert_allclose(ends, np.percentile(slices, [1, 99]), rtol=1 / 8192)
    ends = counted(*slices).ends(ZScore(clip=2, scope="volume"))
    mean, reach = slices.mean(), 2 * slices.std()
    np.testing.assert_allclose(ends, [mean - reach, mean + reach], rtol=1e-3)


def test_order_changes_no_bit_and_what_is_not_finite_does_not_count() -> None:
    slices = np.random.default_rng(0).normal(0, 1e6, (3, 20, 20)).astype(np.float32)
    for rule in (Percentiles(scope="volume"), ZScore(scope="volume")):
        assert counted(*slices).ends(rule) == counted(*slices[::-1]).ends(rule)
        odd = np.array([[np.nan, np.inf, -np.inf]], np.float32)
        assert counted(odd, *slices).ends(rule) == counted(*slices).ends(rule)
        assert counted(odd).ends(rule) is None
        whole = slices.round(-3) % 30_000
        narrow = Histogram()
        narrow.add(whole.astype(np.int16))
        assert narrow.ends(rule) == counted(whole).ends(rule)
    assert counted(np.zeros((2, 2)), -np.zeros((2, 2))).ends(Percentiles()) == (0, 0)


def test_a_slice_without_the_range_of_its_volume_is_refused() -> None:
    from tests.pipeline.preprocessing.test_preprocess import recipe

    rules = recipe(mr=Percentiles(scope="volume"))
    with pytest.raises(ValueError, match="ends must be those of the volume"):
        prepare(Slice(0, np.eye(20, dtype=np.float32)), "MR", rules)


def test_the_slice_is_the_default() -> None:
    assert (Percentiles().scope, ZScore().scope) == ("slice", "slice")
    assert Preprocess(mr="percentiles").mr == Percentiles()


# --- what is cached -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    """Return a folder with two MR volumes, of which one lies in three parts, a CT, and a store."""
    root = tmp_path_factory.mktemp("made")
    bright = volume(9, 40, 44) % 700 * np.arange(1, 10)[:, None, None]
    write_series(root / "data/a", bright.astype(np.uint16), Modality="MR")
    tags = {"Modality": "MR", "SeriesInstanceUID": "1.2"}
    write_series(root / "data/b", bright[:3].astype(np.uint16), **tags)
    write_series(root / "data/c", volume(3, 40, 44), SeriesInstanceUID="1.3")
    extract(write_config(root, network), HERE)
    return root


@pytest.fixture
def config(made: Path, tmp_path: Path, network: Path) -> Config:
    """Return a config over a copy of what was `made`, without its store."""
    shutil.copytree(made / "data", tmp_path / "data")
    return write_config(tmp_path, network)


@pytest.fixture
def embedded(made: Path, tmp_path: Path, network: Path) -> Config:
    """Return a config over a copy of what was `made`, its store too."""
    return write_config(shutil.copytree(made, tmp_path, dirs_exist_ok=True), network)


def write_config(folder: Path, network: Path) -> Config:
    content = {
        "data": {"root": "data", "paths": "keep"},
        "backbone": {"name": f"hf:{network}", "image_size": 56},
        "store": "store",
        "preprocess": {"mr": RULE},
        "outputs": {"part_rows": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config(folder / "config.yaml")


def write_unreadable(path: Path) -> None:
    """Write a slice of the volume `a` that is cut short."""
    tags = {"Modality": "MR", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    tags |= {"ImagePositionPatient": [-30, -40, 80], "PixelSpacing": [0.8, 0.7]}
    write_jpeg_12(path, np.full((1, 40, 44), 4000, np.uint16), cut=20, **tags)


def live(store: FeatureStore, folder: str = "") -> dict[str, int]:
    """Return path -> row of the live slices in a folder."""
    rows = [row for row in store.slices().to_pylist() if not row["withdrawn"]]
    return {row["path"]: row["row"] for row in rows if row["path"].startswith(folder)}


def assert_true(config: Config, network: Path, folder: str, left_out: str = "") -> None:
    """Hold each slice's features against those of its pixels under its volume's percentiles."""
    from pipeline.backbones.load import load_backbone

    store, backbone = FeatureStore.open(config.store), load_backbone(f"hf:{network}", image_size=56)
    recipe = recipe_of(store)
    rows = {path: row for path, row in live(store, folder).items() if path != left_out}
    items = {path: next(iter(read_slices(config.data.root / path, [0]))) for path in rows}
    low, high = np.percentile([item.pixels for item in items.values()], [2, 90])
    for path, row in rows.items():
        prepared = prepare(replace(items[path], ends=(low, high)), "MR", recipe)
        want = backbone(prepared[None]).cls[0]
        np.testing.assert_allclose(store.read("cls", [row])[0], want, atol=2e-3)


def test_slices_are_scaled_by_the_volume_even_across_parts(config: Config, network: Path) -> None:
    summary = extract(config, HERE)
    # The same pixels in another volume are another picture: only the CT might be linked.
    assert (summary.embedded, summary.linked, summary.clean) == (15, 0, True)
    for folder in "ab":
        assert_true(config, network, folder)
    assert plan(config).embed == 0


def test_images_are_shown_again_as_the_network_saw_them(embedded: Config) -> None:
    config = embedded
    store = FeatureStore.open(config.store)
    rows = live(store, "a")
    kept = SimpleNamespace(classes=("background", "x"))
    source = StoreSource(config, store, kept)  # type: ignore[arg-type]
    seen = source.images(np.array(sorted(rows.values()))[::-1])
    recipe = recipe_of(store)
    items = {r: next(iter(read_slices(config.data.root / p, [0]))) for p, r in rows.items()}
    ends = np.percentile([item.pixels for item in items.values()], [2, 90])
    for image, row in zip(seen, sorted(rows.values(), reverse=True), strict=True):
        want = prepare(replace(items[row], ends=tuple(ends)), "MR", recipe)
        np.testing.assert_allclose(image, want, atol=1e-4)
    receipt = store.receipts.path(0)
    told = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(told | {"ranges": []}))
    with pytest.raises(ConfigError, match="extracted by an earlier version"):
        StoreSource(config, FeatureStore.open(store.path), kept).images(np.array([0]))  # type: ignore[arg-type]


def test_runs_that_stopped_and_reading_processes_give_the_same_bits(embedded: Config) -> None:
    assert_same_bits_again(embedded)


def assert_same_bits_again(config: Config) -> None:
    """Extract; lose two parts of four slices and go on; extract elsewhere, read by a process."""
    store = FeatureStore.open(extract(config, HERE).store)
    want = store.read("cls")
    for part in (0, 2):
        store.receipts.path(part).unlink()
    assert extract(config, HERE).embedded == 8
    assert store.read("cls").tobytes() == want.tobytes()
    elsewhere = config.model_copy(update={"store": config.store.with_name("other")})
    extract(elsewhere, Speed(device="cpu", batch_size=2, workers=1))
    assert FeatureStore.open(elsewhere.store).read("cls").tobytes() == want.tobytes()


def test_a_volume_that_gains_or_loses_a_slice_is_embedded_anew(
    embedded: Config, network: Path, tmp_path: Path
) -> None:
    config = embedded
    other = sorted((tmp_path / "data/b").iterdir())[0]
    kept = shutil.move(other, tmp_path / "kept")
    assert {c.why for c in explain(config).changes} == {
        "a slice of its series came, went or changed",
        "it is no longer found",
        "row 16 takes its place",
        "row 17 takes its place",
    }
    summary = extract(config, HERE)
    assert (summary.embedded, summary.found["same"]) == (2, 12)
    assert_true(config, network, "b")
    shutil.move(kept, other)
    assert extract(config, HERE).embedded == 3
    assert_true(config, network, "b")
    assert extract(config, HERE).found["same"] == 15


def test_a_slice_that_cannot_be_read_is_left_out_and_noted(
    config: Config, network: Path, tmp_path: Path
) -> None:
    write_unreadable(tmp_path / "data/a/bad")
    summary = extract(config, HERE)
    assert summary.unreadable == {"truncated": 1}
    store = FeatureStore.open(config.store)
    assert len({row["series"] for row in store.slices().to_pylist()}) == 3
    assert_true(config, network, "a", left_out="a/bad")
    receipts = [json.loads(store.receipts.path(part).read_text()) for part in range(4)]
    assert [receipt["left_out"] for receipt in receipts] == [[live(store)["a/bad"]], [], [], []]


def test_parts_of_one_volume_keep_one_range_whatever_can_be_read_later(config: Config) -> None:
    one = sorted((config.data.root / "a").iterdir())[8]
    gone = config.data.root.parent / "gone"

    def lose(slices: int) -> None:  # found, and away while the range of its volume is sought
        one.rename(gone)

    def regain(slices: int) -> None:
        if gone.exists():
            gone.rename(one)

    store = FeatureStore.open(extract(config, HERE, Progress(lose, regain)).store)
    row = live(store)[f"a/{one.name}"]
    receipts = [store.receipt(part) for part in range(4)]
    assert [receipt and receipt.left_out for receipt in receipts] == [(row,), (), (), ()]
    want = store.read("cls")
    for part in (1, 2):
        store.receipts.path(part).unlink()
    assert extract(config, HERE).embedded == 8
    assert store.read("cls").tobytes() == want.tobytes()
    assert verify(store.path).sound
    # Two hosts at once, of which one could not read a slice.
    path = store.receipts.path(1)
    receipt = unseal(path)
    ((first, low, high),) = receipt["ranges"]
    path.write_bytes(seal(receipt | {"ranges": [[first, low, high + 1]]}))
    assert [(f.kind, f.part) for f in verify(store.path).findings] == [("values", 1)]


def test_z_scores_by_volume(tmp_path: Path, embedded: Config) -> None:
    rules = Preprocess(mr=ZScore(scope="volume"))
    other = embedded.model_copy(update={"preprocess": rules, "store": tmp_path / "z"})
    assert extract(other, HERE).embedded == 15
    one, two = FeatureStore.open(other.store), FeatureStore.open(embedded.store)
    assert not np.allclose(one.read("cls")[:9], two.read("cls")[:9], atol=2e-3)
