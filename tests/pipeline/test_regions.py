"""Regions: what masks cover of patches, tokens pooled under them, and every question asked of them.

Tokens are those of `tests.pipeline.tokens`, whose first number is the mean grey of a patch.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pydicom
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from pipeline.annotations.regions import Regions
from pipeline.cli import app as cli
from pipeline.config.data import Data
from pipeline.config.loading import load_config
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.config.segmentation import Masks
from pipeline.config.tuning import NormTune
from pipeline.evaluate import evaluate
from pipeline.evaluation.pooling import read_features
from pipeline.evaluation.questions import cases_of
from pipeline.evaluation.slice_weights import most_heeded, read_slice_weights
from pipeline.fitted.fit import fit
from pipeline.fitted.predict import predictions
from pipeline.fitted.regions import regions_of
from pipeline.fitted.sources import Source
from pipeline.io.decode import read_slices
from pipeline.outlook import outlook_of
from pipeline.recipe import Preprocess
from pipeline.report.cases import task_cases
from pipeline.report.models import Mark
from pipeline.report.page import write_report
from pipeline.report.regions import RegionPlaces
from pipeline.report.sources import Source as ReportSource
from pipeline.report.sources import open_sources
from pipeline.results import Result
from pipeline.segmentation.coverage import coverage
from pipeline.segmentation.crops import write_crops
from pipeline.segmentation.dicom_writer import segmentation
from pipeline.segmentation.geometry import shown
from pipeline.segmentation.patch_search import search_patches
from pipeline.segmentation.region_outlook import regions_ahead
from pipeline.segmentation.region_sources import BoxRegions
from pipeline.segmentation.regions import update_regions
from pipeline.shared.pseudonyms import Names
from pipeline.tune import tune
from pipeline.types import Plane, Slice
from stores.errors import ConfigError, CorruptStoreError, LabelError
from stores.features import FeatureStore
from stores.purge import purge, withdraw
from stores.slices import with_column
from stores.verify import verify
from tests.phantoms import (
    volume,
    write_nifti_of_series,
    write_png,
    write_series,
    write_structures,
)
from tests.pipeline.annotations.test_contours import outlines
from tests.pipeline.collection import write_csv
from tests.pipeline.tokens import PATCH, config_of, token_store

SIDE = 8 * PATCH
LUNGS = {1: "left lung", 2: "right lung"}


def write_image(
    root: Path, name: str, boxes: dict[int, tuple[slice, slice]], bright: int, seed: int = 0
) -> None:
    """Write an X-ray whose box of one value is brighter than all else, and the boxes' mask."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 90, (SIDE, SIDE)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for value, box in boxes.items():
        mask[box] = value
    if bright:
        pixels[boxes[bright]] += 120
    write_png(root / "images" / name, pixels)
    write_png(root / "masks" / name, mask)


def write_lungs(root: Path, patients: int = 24) -> list[dict[str, str]]:
    """Write an X-ray a patient: one of its two lungs, wherever it lies, is white; return whose."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(patients):
        y, x = rng.integers(0, 4, (2, 2)) * PATCH
        boxes = {
            side + 1: (slice(y[side], y[side] + 2 * PATCH), slice(x[side], x[side] + 3 * PATCH))
            for side in range(2)
        }
        # One in each half, which is which by chance.
        half = rng.permutation([0, 4 * PATCH])
        boxes = {
            value: (slice(box[0].start, box[0].stop), slice(half[k], half[k] + 3 * PATCH))
            for k, (value, box) in enumerate(boxes.items())
        }
        bright = 1 + i % 2
        write_image(root, f"p{i:02}.png", boxes, bright, seed=i)
        rows.append({"path": f"p{i:02}.png", "white": LUNGS[bright]})
    return rows


def regions_config(root: Path, tasks: dict[str, Any], kind: str = "holdout", **more: Any) -> Config:
    """Return a config over write_lungs; their noise is so alike that images pass for copies."""
    masks = {"lungs": {"files": {"*": "{name}"}, "values": LUNGS}}
    small = {
        "knn": {"k": [1, 3]},
        "probe": {"low": -3, "high": 1, "steps": 3},
        "fewshot": {"episodes": 20, "shots": [2]},
    }
    return config_of(
        root,
        masks=masks,
        tasks=tasks,
        **{
            "labels": {"file": root / "labels.csv"},
            "outputs": {"keep": ["cls", "mean", "patch"], "blocks": 1},
        }
        | {"split": {"kind": kind, "folds": 3, "allow": ["near-duplicates"]}}
        | small
        | more,
    )


def region_task(pool: str = "mean", **more: Any) -> dict[str, Any]:
    region = {"masks": "lungs", "pool": pool, **more.pop("region", {})}
    return {"labels": ["white"], "positive": "1", "level": "region", "region": region, **more}


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of X-rays of which one lung is white; labels say it of each lung, and of images."""
    root = tmp_path_factory.mktemp("lungs")
    rows = write_lungs(root)
    of_lungs = [
        (row["path"], name, int(row["white"] == name)) for row in rows for name in LUNGS.values()
    ]
    paths, names, white = zip(*of_lungs, strict=True)
    write_csv(root / "labels.csv", path=paths, lung=names, white=white)
    write_csv(
        root / "images.csv",
        path=[row["path"] for row in rows],
        white=[int(row["white"] == "left lung") for row in rows],
    )
    config = regions_config(root, {"white": region_task()}, labels=by_lung(root))
    token_store(config)
    return root


def write_yaml(root: Path, config: Config) -> Path:
    settings = config.model_dump(mode="json", exclude_unset=True)
    settings["masks"]["lungs"]["values"] = LUNGS  # whose numbers JSON has as text
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def by_lung(root: Path) -> dict[str, Any]:
    return {"file": root / "labels.csv", "structure": "lung"}


def auroc(result: Result) -> float:
    return result.main_score.metrics["auroc"].value


# --- what is covered ---------------------------------------------------------------------------


def test_coverage_is_the_share_of_each_patch() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[:, :3] = 1
    labels[0, 7] = 2
    found = coverage(labels, shown(8, 8, "square"), (2, 2), 3)
    assert found.shares[1].tolist() == [0.75, 0, 0.75, 0]
    assert found.shares[2].tolist() == [0, 1 / 16, 0, 0]
    assert found.pixels.tolist() == [39, 24, 1]
    # A square in the middle of a wide slice: what lies beside it is not seen.
    wide = np.zeros((4, 8), np.uint8)
    wide[:, :4] = 1
    cut = coverage(wide, shown(4, 8, "crop"), (2, 2), 2)
    assert cut.shares[1].tolist() == [1, 0, 1, 0]
    assert (cut.pixels[1], cut.seen[1]) == (16, 8)
    # Padding has patches that no slice covers.
    padded = coverage(np.ones((4, 8), np.uint8), shown(4, 8, "pad"), (4, 4), 2)
    assert padded.shares[1].reshape(4, 4).sum(axis=1).tolist() == [0, 4, 4, 0]


VALUES = {1: "liver", 2: "spleen"}


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint8]]:
    """A CT series of six slices, and what its mask says of them, (z, H, W)."""
    root = tmp_path_factory.mktemp("ct")
    voxels = volume()
    write_series(root / "images" / "p1", voxels)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[1, 3:17, 2:9] = labels[4, 5:12, 5:20] = 1
    labels[2:5, 1:4, 20:23] = 2
    (root / "masks").mkdir()
    write_nifti_of_series(root / "masks" / "ct.nii.gz", labels)
    write_csv(root / "labels.csv", path=["p1"], site=["a"])
    token_store(ct_config(root, "mean"))
    return root, labels


def ct_config(root: Path, pool: str) -> Config:
    region = {"masks": "organs", "pool": pool}
    task = {"labels": ["region.structure"], "positive": "spleen", "level": "region"}
    return config_of(
        root,
        masks={"organs": {"files": {"**": "ct.nii.gz"}, "values": VALUES}},
        labels={"file": root / "labels.csv"},
        tasks={"organ": task | {"region": region}},
    )


@pytest.mark.parametrize("pool", ["mean", "max", "moments"])
def test_pools_are_what_they_say_over_all_slices_of_a_volume(
    ct: tuple[Path, NDArray[np.uint8]], pool: str
) -> None:
    root, labels = ct
    config = ct_config(root, pool)
    update_regions(config)
    (cases,) = cases_of(config)
    assert cases.units.classes == ("liver", "spleen")
    store = FeatureStore.open(config.store)
    x = store.read("patch", np.arange(6)).astype(np.float64).reshape(6 * 64, -1)
    found = dict(
        zip(cases.units.y.tolist(), read_features(cases.store, cases.units, "cls"), strict=True)
    )
    for value in VALUES:
        w = np.concatenate(
            [coverage(each, shown(20, 24, "square"), (8, 8), 3).shares[value] for each in labels]
        )
        mean = (w[:, None] * x).sum(axis=0) / w.sum()
        deviation = np.sqrt((w[:, None] * (x - mean) ** 2).sum(axis=0) / w.sum())
        expected = {
            "mean": mean,
            "max": x[w >= min(0.5, w.max())].max(axis=0),
            "moments": np.concatenate([mean, deviation]),
        }[pool]
        np.testing.assert_allclose(found[value - 1], expected, rtol=1e-4, atol=1e-3)


# --- asked ---------------------------------------------------------------------------------------


def test_regions_of_images_that_are_copies_stand_on_one_side(lungs: Path, tmp_path: Path) -> None:
    root = tmp_path / "copied"
    for folder in ("images", "masks"):
        shutil.copytree(lungs / folder, root / folder)
    shutil.copy(lungs / "labels.csv", root)
    copies = [0, 5, 10]  # each its own patient's
    for k in copies[1:]:
        shutil.copy(root / "images/p00.png", root / f"images/p{k:02}.png")
    split = {"kind": "holdout", "folds": 3, "group": "duplicates", "allow": ["near-duplicates"]}
    config = regions_config(root, {"white": region_task()}, labels=by_lung(root), split=split)
    token_store(config)
    update_regions(config)
    (cases,) = cases_of(config)
    cases.ensure_split()
    units = cases.units
    side_of = {who: side for side, each in cases.split.patients.items() for who in each}
    sides = {side_of[who] for who in units.groups[units.unit[np.isin(units.rows, copies)]].tolist()}
    assert len(sides) == 1


def test_only_the_region_tells_a_planted_finding(lungs: Path) -> None:
    """Both lungs of an image are told apart; the image as a whole, and by itself, is chance."""
    tasks = {"region": region_task(), "same": region_task("whole")}
    of_lungs = regions_config(lungs, tasks, "kfold", labels=by_lung(lungs))
    update_regions(of_lungs)
    results = {(r.task, r.method): r for r in evaluate(of_lungs, ["knn", "probe"])}
    image = {"labels": ["white"], "positive": "1"}
    file = {"file": lungs / "images.csv"}
    of_images = regions_config(lungs, {"image": image}, "kfold", labels=file)
    (whole,) = evaluate(of_images, ["probe"])
    assert auroc(results["region", "probe"]) > 0.95
    assert auroc(results["region", "knn"]) > 0.95
    assert 0.2 < auroc(whole) < 0.8
    # The two lungs of an image have one and the same whole image.
    assert auroc(results["same", "probe"]) == pytest.approx(0.5, abs=0.02)
    one = results["region", "probe"]
    assert (one.level, one.features, results["same", "probe"].features) == (
        "region",
        "region-mean",
        "cls+mean",
    )
    assert (one.counts["test"].units, one.counts["test"].patients) == (48, 24)


def test_structures_inherit_what_is_said_of_their_image(lungs: Path) -> None:
    task = region_task(region={"structures": ["left lung"]}, subgroups=["region.structure"])
    config = regions_config(lungs, {"left": task}, labels={"file": lungs / "images.csv"})
    update_regions(config)
    (result,) = evaluate(config, ["probe"])
    assert auroc(result) > 0.95
    assert sum(part.units for part in result.counts.values()) == 24
    assert [*result.main_score.subgroups] == ["region.structure=left lung"]


def test_every_head_answers_or_says_why_not(lungs: Path) -> None:
    config = regions_config(lungs, {"white": region_task()}, labels=by_lung(lungs))
    update_regions(config)
    results = evaluate(config, ["knn", "fewshot", "attention"])
    assert {r.method for r in results if r.scores} == {"knn", "fewshot"}
    (attention,) = (r for r in results if r.method == "attention")
    assert attention.notes[-1].startswith("attention needs units of several slices")
    assert [r.cached for r in evaluate(config, ["knn"])] == [True]
    with pytest.raises(ConfigError, match="its cases are regions. Tune on their crops"):
        tune(config.model_copy(update={"norm": NormTune()}), ["norm"])
    beside = {"white": region_task(columns=["lung"])}
    config = regions_config(lungs, beside, labels=by_lung(lungs), knn={"features": "cls+columns"})
    with pytest.raises(LabelError, match="its cases are regions, of which an image may have sev"):
        evaluate(config, ["knn"])


def test_a_model_of_regions_says_of_a_config_what_its_answer_does(
    lungs: Path, tmp_path: Path
) -> None:
    config = regions_config(lungs, {"white": region_task()}, labels=by_lung(lungs))
    model = fit(config, tmp_path / "model")
    assert (model.record.level, model.record.features) == ("region", "region-mean")
    assert model.record.difference < 1e-6
    said = predictions(model, write_yaml(lungs, config))
    assert said.num_rows == 48
    assert {name.partition(":")[2] for name in said["unit"].to_pylist()} == {*LUNGS.values()}
    with pytest.raises(ConfigError, match="Name a config that has them"):
        predictions(model, config.store)


def test_crops_are_squares_round_structures_embedded_by_themselves(tmp_path: Path) -> None:
    """Of one case a region, so that what crops, tokens and whole images score is paired."""
    boxes = {1: np.s_[30:50, 20:44], 2: np.s_[60:100, 70:90]}
    for i in range(1, 4):
        write_image(tmp_path, f"p{i}.png", boxes, 1 + i % 2, seed=i)
    write_csv(tmp_path / "labels.csv", path=[f"p{i}.png" for i in range(1, 4)], white=[0, 1, 1])
    region = {"region": {"crops": tmp_path / "crops" / "store"}}
    config = regions_config(tmp_path, {"w": region_task("crop", **region)})
    token_store(config)
    written = write_crops(config, "lungs", tmp_path / "crops", margin_mm=3)
    assert (written.crops, written.new) == (6, 6)
    shapes = {
        path.name.split("-")[1]: np.load(path).shape
        for path in (tmp_path / "crops" / "images").rglob("*.npy")
    }
    assert shapes == {"left_lung": (30, 30), "right_lung": (46, 46)}
    assert write_crops(config, "lungs", tmp_path / "crops", margin_mm=3).new == 0
    mine = tmp_path / "mine" / "images" / "p1.npy"  # what no run wrote is not removed as stale
    mine.parent.mkdir(parents=True)
    mine.touch()
    for folder in (tmp_path / "mine", tmp_path, tmp_path / "images" / "crops"):
        with pytest.raises(ConfigError, match=r"are no crops|images of the collection"):
            write_crops(config, "lungs", folder, margin_mm=3)
    assert mine.is_file()
    of_crops = load_config(written.config)
    assert (of_crops.preprocess.crop, of_crops.preprocess.aspect) == ("region", "pad")
    of_crops = of_crops.model_copy(update={"outputs": config.outputs, "backbone": config.backbone})
    crops = token_store(of_crops)
    (cases,) = cases_of(config)
    x = read_features(cases.store, cases.units, "cls")
    names = Names(crops.path, "hide").revealed(crops.slices())["path"].to_pylist()
    for name, features in zip(cases.units.ids.tolist(), x, strict=True):
        row, _, structure = name.partition(":")
        (own,) = (
            i for i, path in enumerate(names) if f"/{row}-{structure.replace(' ', '_')}-" in path
        )
        np.testing.assert_array_equal(features, crops.read("cls", np.array([own]))[0, 0])
    assert "crops round the regions" in cases.units.notes[-1]
    # A mask that changed has no crop until it is cut again.
    write_image(tmp_path, "p2.png", boxes | {1: np.s_[30:80, 20:44]}, 1)
    update_regions(config)
    (cases,) = cases_of(config)
    for _ in range(2):  # the second head is not told of whole images in their place
        with pytest.raises(ConfigError, match="1 of 6 crops are not in the store"):
            _ = cases.units
        with pytest.raises(ConfigError, match="1 of 6 crops are not in the store"):
            _ = cases.keys


@pytest.mark.parametrize(
    ("column", "name"), [("modality", "../../out"), ("patient", "/tmp/out"), ("patient", "..")]
)
def test_crops_of_a_strangers_table_lie_nowhere_else(
    tmp_path: Path, column: str, name: str
) -> None:
    write_image(tmp_path, "p1.png", {1: np.s_[30:50, 20:44]}, 1)
    write_csv(tmp_path / "labels.csv", path=["p1.png"], white=[0])
    config = regions_config(tmp_path, {"w": region_task("whole")})
    store = token_store(config)
    tables = store.tables()
    names = pa.array([name] * len(tables.slices))
    store.write_tables(with_column(tables.slices, column, names), tables.files)
    with pytest.raises(CorruptStoreError, match="cannot name a folder"):
        write_crops(config, "lungs", tmp_path / "a" / "crops", margin_mm=3)
    assert not [*tmp_path.rglob("*.npy")]


# --- what changes, and what does not -----------------------------------------------------------


def test_a_mask_that_changes_makes_its_regions_stale_and_no_others(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", path=["p1.png", "p2.png"], white=[0, 1])
    boxes = {1: np.s_[0:28, 0:28], 2: np.s_[0:28, 60:90]}
    for name in ("p1.png", "p2.png"):
        write_image(tmp_path, name, boxes, 1)
    tasks = {
        side: region_task(region={"structures": [f"{side} lung"]}) for side in ("left", "right")
    }
    config = regions_config(tmp_path, tasks)
    token_store(config)

    def gathered() -> tuple[int, int, list[str]]:
        (each,) = update_regions(config)
        digests = [cases.depends_on["regions"] for cases in cases_of(config)]
        return each.regions, each.pooled, digests

    regions, pooled, before = gathered()
    assert (regions, pooled) == (4, 4)
    filed = {path: path.stat().st_mtime_ns for path in (config.store / "regions").iterdir()}
    assert gathered() == (4, 0, before)
    assert filed == {p: p.stat().st_mtime_ns for p in (config.store / "regions").iterdir()}
    # The left lung of one image grows: that region alone is pooled again.
    write_image(tmp_path, "p2.png", boxes | {1: np.s_[0:40, 0:28]}, 1)
    regions, pooled, after = gathered()
    assert (regions, pooled) == (4, 1)
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    # What is damaged is made anew.
    (features,) = (config.store / "regions").glob("*.features.parquet")
    features.write_bytes(b"nothing")
    assert gathered() == (4, 4, after)
    assert verify(config.store).sound


def test_a_purge_takes_the_regions_too(lungs: Path, tmp_path: Path) -> None:
    shutil.copytree(lungs, tmp_path / "copy")
    config = regions_config(tmp_path / "copy", {"w": region_task()}, labels=by_lung(lungs))
    update_regions(config)
    store = FeatureStore.open(config.store)
    patient = store.slices()["patient"][0].as_py()
    withdraw(store, patient)
    purge(FeatureStore.open(config.store), patient)
    assert not [*(config.store / "regions").glob("*.parquet")]
    (each,) = update_regions(config)
    assert each.regions == 46


# --- patches that are like one -------------------------------------------------------------------


def test_search_at_finds_the_same_thing_in_other_patients(tmp_path: Path) -> None:
    """A white patch finds the white patches of others, none of its own patient's."""
    places = {"p1_a": (14, 28), "p1_b": (14, 28), "p2_a": (28, 56), "p3_a": (70, 0)}
    for i, (name, (y, x)) in enumerate(places.items()):
        box = (slice(y, y + PATCH), slice(x, x + PATCH))
        write_image(tmp_path, f"{name}.png", {1: box}, bright=1, seed=i)
    config = regions_config(tmp_path, {}, labels=None)
    token_store(config)
    hits = search_patches(config, "p1_a.png", (28 + 3, 14 + 11), k=2)
    assert {hit.path: (hit.x, hit.y) for hit in hits} == {
        f"{name}.png": (places[name][1] + PATCH // 2, places[name][0] + PATCH // 2)
        for name in ("p2_a", "p3_a")
    }
    asked = ["search", str(write_yaml(tmp_path, config)), "0", "--at", "31,25", "--json"]
    done = CliRunner().invoke(cli, asked)
    assert [hit["cosine"] for hit in json.loads(done.stdout)][:1] == [hits[0].cosine]


@pytest.mark.parametrize(
    ("at", "words"),
    [((112, 3), "112 columns and 112 rows"), ((-1, 3), "must be a pixel of the slice")],
)
def test_a_pixel_that_is_none_is_refused(lungs: Path, at: tuple[int, int], words: str) -> None:
    config = regions_config(lungs, {}, labels=None)
    with pytest.raises(ConfigError, match=words):
        search_patches(config, "p00.png", at)


def test_a_patch_is_of_one_slice_with_tokens(ct: tuple[Path, NDArray[np.uint8]]) -> None:
    with pytest.raises(ConfigError, match="names 6, rows 0 to 5"):
        search_patches(ct_config(ct[0], "mean"), "p1", (3, 3))


# --- what is wrong is said -----------------------------------------------------------------------


def test_bad_structures_are_named_and_counted(tmp_path: Path) -> None:
    """Of six images each has its own fault; a region that covers nothing is no case."""
    whole = (slice(0, 60), slice(0, 60))
    faults = {
        "p1.png": {1: whole, 2: np.s_[70:100, 70:100]},
        "p2.png": {1: whole},  # no right lung
        "p3.png": {1: whole, 2: np.s_[100:103, 100:103]},  # less than a patch
        "p4.png": {1: whole, 2: np.s_[0:20, 0:20]},
    }
    for i, (name, boxes) in enumerate(faults.items()):
        write_image(tmp_path, name, boxes, bright=1, seed=i)
    write_png(tmp_path / "masks" / "p4.png", np.ones((50, 50), np.uint8))  # of another image
    write_csv(tmp_path / "labels.csv", path=[f"p{i}.png" for i in range(1, 5)], white=[0, 1, 0, 1])
    config = regions_config(tmp_path, {"w": region_task()})
    token_store(config)
    (each,) = update_regions(config)
    (fault,) = each.faults
    assert "is 50 x 50 pixels, its image 112 x 112" in fault
    (cases,) = cases_of(config)
    notes = "\n".join(cases.units.notes)
    assert "1 mask cannot be used, first" in notes
    assert "1 of 3 images or volumes with a mask have no 'right lung', first 1" in notes
    assert "1 region covers less than one patch in all" in notes
    assert "first 2:right lung" in notes
    assert len(cases.units.ids) == 5
    store = FeatureStore.open(config.store)
    source = Source(store, Names(store.path), config)  # a model that is asked about them says so
    regions_of(config.tasks["w"], source)
    assert set(source.notes) <= set(cases.units.notes)
    assert source.notes[0].startswith("1 mask cannot be used")


def test_what_the_input_does_not_show_is_no_case(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((40, 120), np.uint8)
    mask[:, :20], mask[:, 20:60] = 1, 2
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 255, mask.shape).astype(np.uint8)
        write_png(tmp_path / "images" / f"p{i}.png", pixels)
        write_png(tmp_path / "masks" / f"p{i}.png", mask)
    write_csv(tmp_path / "labels.csv", path=["p1.png", "p2.png"], white=[0, 1])
    config = regions_config(tmp_path, {"w": region_task()}, preprocess={"aspect": "crop"})
    token_store(config)
    update_regions(config)
    (cases,) = cases_of(config)
    notes = "\n".join(cases.units.notes)
    assert cases.units.ids.tolist() == ["0:right lung", "1:right lung"]
    assert "2 regions lie outside of what the network's input shows, and no case" in notes


def test_regions_that_were_not_gathered_are_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path, "p1.png", {1: np.s_[0:20, 0:20]}, 1)
    write_csv(tmp_path / "labels.csv", path=["p1.png"], white=[0])
    config = regions_config(tmp_path, {"w": region_task()})
    token_store(config)
    with pytest.raises(ConfigError, match="Run `radprobe regions CONFIG`"):
        evaluate(config, ["knn"])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"labels": ["a"], "level": "region"}, "says which by `region`"),
        ({"labels": ["a"], "region": {"masks": "lungs"}}, "says which by `region`"),
        ({"labels": ["region.structure"]}, "is known of regions alone"),
        ({"labels": ["a"], "level": "region", "region": {"masks": "x"}}, "Got 'x' instead"),
        (
            {"labels": ["a"], "level": "region", "region": {"boxes": "x"}},
            "name boxes of the config",
        ),
        ({"labels": ["a"], "level": "region", "region": {}}, "name one of both"),
        (region_task(region={"structures": ["heart"]}), "Got 'heart' instead; they have left lung"),
    ],
)
def test_settings_of_regions_say_what_they_lack(
    tmp_path: Path, task: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        regions_config(tmp_path, {"w": task})


def test_what_regions_come_to_is_told_before_anything_is_embedded(lungs: Path) -> None:
    tasks = {"white": region_task(), "side": region_task() | {"labels": ["region.structure"]}}
    tasks["side"]["positive"] = "left lung"
    config = regions_config(lungs, tasks, labels=by_lung(lungs), outputs={"keep": ["cls"]})
    store = FeatureStore.open(config.store)
    names = Names(store.path, config.data.paths)
    lines = outlook_of(config, names.revealed(store.slices()), names).lines()
    text = "\n".join(lines)
    of_both = "48 region units of 24 patients: "
    assert f"Task white: {of_both}24 with '0' (24 patients), 24 with '1' (24 patients)." in text
    assert f"Task side: {of_both}24 with 'right lung' (24 patients), 24 with 'left lung'" in text
    assert "as if each had every structure" in text
    assert "Regions are made of patch tokens, which are not kept" in text


def test_commands_tell_of_regions(lungs: Path, tmp_path: Path) -> None:
    """Tables, predictions by path and structure, the report with its cases."""
    config = regions_config(lungs, {"white": region_task()}, labels=by_lung(lungs))
    path = str(write_yaml(lungs, config))
    said = tmp_path / "said.csv"
    done = CliRunner().invoke(cli, ["probe", path, "--out", str(said)])
    assert done.exit_code == 0, done.output
    assert "regions of" in done.stdout
    assert "region-mean" in done.stdout
    with said.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["structure"] for row in rows} == {*LUNGS.values()}
    assert len({(row["path"], row["structure"]) for row in rows}) == len(rows) / 2
    page = tmp_path / "report.html"
    done = CliRunner().invoke(cli, ["report", path, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "white" in page.read_text(encoding="utf-8")
    done = CliRunner().invoke(cli, ["regions", path])
    assert done.stdout == "Regions of lungs: 48 regions in 24 slices, 0 of them pooled now.\n"


@pytest.fixture(scope="module")
def page(lungs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on images that no whole image tells apart, so that it has cases to show."""
    file = {"file": lungs / "images.csv"}
    config = regions_config(lungs, {"image": {"labels": ["white"]}}, labels=file)
    evaluate(config, ["knn"])
    page = tmp_path_factory.mktemp("page") / "report.html"
    write_report([write_yaml(lungs, config)], page)
    return page


def test_a_click_on_a_patch_shows_those_like_it(page: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = started.new_page()
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(page.as_uri())
        picture = tab.locator(".cases img[data-patches]").first
        picture.click(position={"x": 90, "y": 3})
        assert picture.get_attribute("data-patch") == "7"  # at the right of the first row of eight
        texts = tab.locator(".alike figcaption").all_inner_texts()
        assert texts[0] == "this patch"
        assert len(texts) == 4
        assert all(re.fullmatch(r"row \d+, -?[01]\.\d\d", text) for text in texts[1:])
        picture.press("ArrowDown")
        assert picture.get_attribute("data-patch") == "15"
        assert faults == []
        started.close()


def test_a_picture_of_the_report_knows_what_its_patches_are_like(lungs: Path, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'data-row="(\d+)" tabindex="0" role="button" data-patches="([^"]+)"', text)
    assert found
    store = FeatureStore.open(lungs / "store")
    patients = store.slices()["patient"].to_pylist()
    row, data = int(found[0][0]), json.loads(html.unescape(found[0][1]))
    assert data["grid"] == [8, 8]
    others = data["rows"]
    assert patients[row] not in {patients[other] for other in others}
    of_page = [("picture", "<u2"), ("patch", "<u2"), ("cosine", "i1")]
    near = np.frombuffer(base64.b64decode(data["near"]), of_page).reshape(64, data["shown"])
    unit = store.read("patch", np.arange(24)).astype(np.float64).reshape(24, 64, -1)
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    for patch in (0, 27, 63):
        each = (unit[others] @ unit[row, patch]).max(axis=1)
        assert near["cosine"][patch, 0] == pytest.approx(100 * each.max(), abs=1)
        first = others[near["picture"][patch, 0]]
        assert unit[first, near["patch"][patch, 0]] @ unit[row, patch] == pytest.approx(each.max())


def test_the_report_says_which_structure_a_case_is_and_where_it_lies(lungs: Path) -> None:
    """By the whole image both lungs of one are alike, so that half of them are told wrong."""
    config = regions_config(lungs, {"white": region_task("whole")}, labels=by_lung(lungs))
    update_regions(config)
    evaluate(config, ["knn"])
    (source,) = open_sources([write_yaml(lungs, config)])
    cases = [case for group in task_cases(source, None, {})["white"] for case in group.cases]
    assert {case.part for case in cases} == {*LUNGS.values()}
    assert cases[0].name == f"row {cases[0].row}, {cases[0].part}"
    values = {name: value for value, name in LUNGS.items()}
    paths = source.names.revealed(source.slices)["path"].to_pylist()
    for case in cases:
        mask = np.asarray(Image.open(lungs / "masks" / Path(paths[case.row]).name))
        y, x = np.nonzero(mask == values[case.part])
        size = (SIDE, SIDE)
        assert case.mark == Mark(size, x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)


def test_a_region_of_a_volume_is_shown_by_the_slice_with_most_of_it(
    ct: tuple[Path, NDArray[np.uint8]],
) -> None:
    root, labels = ct
    config = ct_config(root, "mean")
    update_regions(config)
    store = FeatureStore.open(config.store)
    places = RegionPlaces.of(ReportSource("ct", store, config), "organ")
    assert places is not None
    for name in places.pieces:
        row = places.row(name)
        assert row is not None
        counts = (labels == {"liver": 1, "spleen": 2}[name.partition(":")[2]]).sum(axis=(1, 2))
        assert row in places.pieces[name]
        assert counts.max() == places.pieces[name][row]["pixels"]
        mark = places.mark(name, row)
        assert mark is not None
        assert (mark.width, mark.height) == {"liver": (15, 7), "spleen": (3, 3)}[
            name.partition(":")[2]
        ]
    # Of a slice without it there is nothing to draw.
    assert places.mark(next(iter(places.pieces)), 0) is None


# --- boxes ---------------------------------------------------------------------------------------


def box_config(root: Path, unit: str, **region: Any) -> Config:
    boxes = {"nodules": {"file": root / "boxes.csv", "structure": "what", "unit": unit}}
    task = {"labels": ["region.structure"], "positive": "nodule", "level": "region"}
    return config_of(
        root,
        masks={},
        boxes=boxes,
        labels={"file": root / "labels.csv"},
        tasks={"t": task | {"region": {"boxes": "nodules"} | region}},
    )


BOX_COLUMNS = ("path", "what", "x0", "x1", "y0", "y1", "z0", "z1")


@pytest.mark.parametrize("unit", ["voxels", "mm"])
def test_each_box_of_a_table_is_a_region(
    ct: tuple[Path, NDArray[np.uint8]], tmp_path: Path, unit: str
) -> None:
    """The series has pixels of 0.7 mm across and 0.8 mm down, and slices 2.5 mm apart."""
    shutil.copytree(ct[0], tmp_path / "ct")
    root = tmp_path / "ct"
    x, y, z = (0.7, 0.8, 2.5) if unit == "mm" else (1, 1, 1)
    rows = [
        ("p1", "nodule", 2 * x, 9 * x, 3 * y, 17 * y, 1 * z, 3 * z),
        ("p1", "nodule", 5 * x, 12 * x, 3 * y, 8 * y, 2 * z, 3 * z),  # over the first
        ("p1", "vessel", 10 * x, 99 * x, 0, 5 * y, 0, 1 * z),  # beyond the image
        ("p1", "vessel", 9 * x, 3 * x, 0, 5 * y, 0, 1 * z),
        ("p1", "vessel", 2 * x, 3 * x, 0, 5 * y, "", ""),
        ("p2", "vessel", 2 * x, 3 * x, 0, 5 * y, 0, 1 * z),
        ("p1", "vessel", "left", 3 * x, 0, 5 * y, 0, 1 * z),
        ("p1", "nodule", 2 * x, 9 * x, 3 * y, 17 * y, 1 * z, 3 * z),  # the first once more
        ("p1", "vessel", 24 * x, 29 * x, 0, 5 * y, 0, 1 * z),  # outside of the image
    ]
    lines = [";".join(map(str, row)) for row in (BOX_COLUMNS, *rows)]
    (root / "boxes.csv").write_text("\n".join(lines).replace(".", ","))
    config = box_config(root, unit)
    (each,) = update_regions(config)
    assert (each.slices, each.regions) == (3, 3)
    faults = "; ".join(each.faults)
    assert "data row 4: x0" in faults
    assert "must be below" in faults
    assert "data row 5: its volume has 6 slices, and it says no z0 and z1" in faults
    assert "data row 6: its image is not in the store" in faults
    assert "data row 7: x0 'left'" in faults
    assert "data row 8: it is the box of data row 1 once more" in faults
    (cases,) = cases_of(config)
    names = [name.partition("#")[2] for name in cases.units.ids.tolist()]
    assert sorted(names) == ["1:nodule", "2:nodule", "3:vessel"]
    x_all = FeatureStore.open(config.store).read("patch", np.arange(6)).astype(np.float64)
    labels = np.zeros(ct[1].shape, np.uint8)
    labels[1:3, 3:17, 2:9] = 1
    w = np.concatenate(
        [coverage(each, shown(20, 24, "square"), (8, 8), 2).shares[1] for each in labels]
    )
    expected = (w[:, None] * x_all.reshape(6 * 64, -1)).sum(axis=0) / w.sum()
    found = read_features(cases.store, cases.units, "cls")[names.index("1:nodule")]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    notes = "; ".join(cases.units.notes)
    assert "6 boxes cannot be used, first data row 4" in notes
    assert "1 box ends outside of the image or volume, of which alone the regions" in notes
    assert "are, first data row 3" in notes
    assert f"data row 9: no pixel has its middle in it, by x {24 * x:g} to {29 * x:g}" in faults
    assert "of an image of 24 x 20 pixels in 6 slices" in faults
    assert {*cases.units.notes} >= {*each.notes}
    crops = write_crops(config, "nodules", tmp_path / "crops", margin_mm=0)
    assert crops.crops == 4
    assert "3 more cannot be used" in crops.faults[-1]
    store = FeatureStore.open(config.store)
    hidden = Names(store.path, config.data.paths)
    slices = hidden.revealed(store.slices())
    _, ahead = regions_ahead(config, config.tasks["t"], cases.table, slices, hidden)
    assert {name for name in ahead["region"].to_pylist() if name} == {*cases.units.ids.tolist()}


def test_a_structure_that_no_box_is_called_by_is_refused(
    ct: tuple[Path, NDArray[np.uint8]], tmp_path: Path
) -> None:
    write_csv(tmp_path / "boxes.csv", path=["p1"], what=["nodule"], x0=[1], x1=[9], y0=[1], y1=[9],
              z0=[0], z1=[9])  # fmt: skip
    config = box_config(ct[0], "voxels")
    boxes = {"nodules": config.boxes["nodules"].model_copy(update={"file": tmp_path / "boxes.csv"})}
    task = config.tasks["t"]
    assert task.region is not None
    region = task.region.model_copy(update={"structures": ("nodul",)})
    tasks = {"t": task.model_copy(update={"region": region})}
    misspelt = config.model_copy(update={"boxes": boxes, "tasks": tasks})
    for ask in (update_regions, lambda config: next(cases_of(config)).structures):
        with pytest.raises(ConfigError, match="Got 'nodul' instead; they have nodule"):
            ask(misspelt)
    (gathered,) = update_regions(config.model_copy(update={"boxes": boxes}))
    assert gathered.notes == (
        "1 box ends outside of the image or volume, of which alone the regions are, first data "
        "row 1",
    )


def test_a_table_of_no_box_says_so(ct: tuple[Path, NDArray[np.uint8]], tmp_path: Path) -> None:
    write_csv(tmp_path / "boxes.csv", path=["x"], what=["a"], x0=[0], x1=[1], y0=[0], y1=[1])
    config = box_config(ct[0], "voxels")
    boxes = {"nodules": config.boxes["nodules"].model_copy(update={"file": tmp_path / "boxes.csv"})}
    with pytest.raises(LabelError, match="No box of .* data row 1: its image is not in the store"):
        update_regions(config.model_copy(update={"boxes": boxes}))
    write_csv(tmp_path / "boxes.csv", path=["p1"], what=["a"], x0=[0], x1=["b"], y0=[0], y1=[1])
    with pytest.raises(LabelError, match="data row 1: x1 'b' is no number"):
        update_regions(config.model_copy(update={"boxes": boxes}))
    write_csv(tmp_path / "boxes.csv", path=["p1"], what=["a"], x=[0], y=[1])
    with pytest.raises(LabelError, match="The table of boxes .* has no column 'x0'"):
        update_regions(config.model_copy(update={"boxes": boxes}))
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(LabelError, match="cannot be read: No such file.* Set `file` of these"):
        update_regions(config.model_copy(update={"boxes": boxes}))


# Of a voxel, mm to the patient's left, posterior and superior: i runs to superior, j to the right.
LPS_OF_VOXEL = np.array([[0, -1.5, 0, 9.0], [0, 0, 2.0, -12.0], [3.0, 0, 0, 40.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("unit", ["LPS", "RAS"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_boxes_in_the_patient_are_where_the_files_say(
    tmp_path: Path, plane: Plane, unit: str
) -> None:
    shape = (7, 9, 11)
    (tmp_path / "images").mkdir()
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    affine = np.diag([-1.0, -1, 1, 1]) @ LPS_OF_VOXEL
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "images/p1.nii.gz")
    nib.save(nib.Nifti1Image(voxels, affine @ turned(20)), tmp_path / "images/p2.nii.gz")
    box = {"x0": -2.0, "x1": 4.4, "y0": -7, "y1": 3, "z0": 42.0, "z1": 53}  # LPS
    in_unit = box
    if unit == "RAS":
        in_unit = box | {"x0": -4.4, "x1": 2.0, "y0": -3, "y1": 7}
    rows = [{"path": f"p{i}.nii.gz", "what": "nodule"} | in_unit for i in (1, 2)]
    columns = {name: [row[name] for row in rows] for name in BOX_COLUMNS}
    write_csv(tmp_path / "boxes.csv", **columns)
    data = Data(root=tmp_path / "images", modality={"**": "CT"})
    settings = {"preprocess": Preprocess(plane=plane), "data": data}
    config = box_config(tmp_path, unit).model_copy(update=settings)
    source = BoxRegions.of(config, token_store(config), config.boxes["nodules"])
    places = np.stack(np.unravel_index(voxels.ravel(), shape))
    lps = LPS_OF_VOXEL[:3, :3] @ places + LPS_OF_VOXEL[:3, 3:]
    inside = np.ones(voxels.size, bool)
    for along, name in zip(lps, "xyz", strict=True):
        inside &= (box[f"{name}0"] < along) & (along < box[f"{name}1"])
    found = []
    for row in source.rows.tolist():
        frame = source.slices[row].frame
        (item,) = read_slices(tmp_path / "images/p1.nii.gz", [frame], plane)
        assert isinstance(item, Slice)
        top, bottom, left, right = source.rectangle(row, "nodule", 1)
        found += item.pixels[top:bottom, left:right].astype(int).ravel().tolist()
    assert sorted(found) == np.flatnonzero(inside).tolist()
    assert "data row 2: its volume does not say how it lies, or lies askew" in source.faults[0]


def turned(degrees: float) -> NDArray[np.float64]:
    """Return what turns voxels about their third axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def test_boxes_in_the_patient_are_the_same_of_a_series_and_its_nifti(tmp_path: Path) -> None:
    found = []
    for kind in ("dicom", "nifti"):
        root = tmp_path / kind
        (root / "images").mkdir(parents=True)
        if kind == "dicom":
            write_series(root / "images/p1", volume())
        else:
            write_nifti_of_series(root / "images/p1.nii", volume())
        rows = {"x0": [-28.0], "x1": [-20], "y0": [-35], "y1": [-30.5], "z0": [101], "z1": [108]}
        write_csv(root / "boxes.csv", path=["p1" if kind == "dicom" else "p1.nii"],
                  what=["nodule"], **rows)  # fmt: skip
        config = box_config(root, "LPS")
        source = BoxRegions.of(config, token_store(config), config.boxes["nodules"])
        assert source.faults == []
        found.append([source.rectangle(row, "nodule", 1) for row in source.rows.tolist()])
    assert found[0] == found[1]
    assert len(found[0]) == 3  # at 102.5, 105 and 107.5 mm


# --- masks of DICOM, and regions of several slices -----------------------------------------------


@pytest.mark.parametrize("kind", ["segmentation", "structure set"])
def test_structures_of_dicom_are_the_regions_of_the_same_nifti(
    ct: tuple[Path, NDArray[np.uint8]], tmp_path: Path, kind: str
) -> None:
    labels = ct[1]
    files = write_series(tmp_path / "images" / "p1", volume(), FrameOfReferenceUID="1.2.3")
    masks = tmp_path / "masks"
    masks.mkdir()
    write_nifti_of_series(masks / "ct.nii.gz", labels)
    if kind == "segmentation":
        datasets = [pydicom.dcmread(file) for file in files]
        segments = segmentation(datasets, list(labels), ("background", *VALUES.values()))
        segments.save_as(masks / "any.dcm")
    else:
        drawn = {name: outlines(labels == value) for value, name in VALUES.items()}
        write_structures(masks / "any.dcm", files, drawn)
    write_csv(tmp_path / "labels.csv", path=["p1"], site=["a"])
    found = []
    for source in (
        {"files": {"**": "ct.nii.gz"}, "values": VALUES},
        {"by": "uid", "values": {name: name for name in VALUES.values()}},
    ):
        config = ct_config(tmp_path, "mean")
        config = config.model_copy(
            update={"masks": {"organs": Masks(root=masks, **source)}}  # type: ignore[arg-type]
        )
        token_store(config)
        update_regions(config)
        (cases,) = cases_of(config)
        regions = Regions.of(config, cases.store, RegionChoice(masks="organs"))
        found.append(regions.index.select(["row", "structure", "pixels", "coverage"]).to_pylist())
    assert found[0] == found[1]
    assert {each["structure"] for each in found[0]} == {*VALUES.values(), None}
    # What the file has is named, where `values` names something else.
    misnamed = Masks(root=masks, by="uid", values={"tumour": "tumour"})
    has = {
        "segmentation": r"the segment 'liver' \(1\), which `values` does not name: it names ",
        "structure set": r"has 2 structures \('liver', 'spleen'\), and none of ",
    }
    with pytest.raises(LabelError, match=f"{has[kind]}'tumour'"):
        update_regions(config.model_copy(update={"masks": {"organs": misnamed}}))


def test_attention_weighs_the_slices_of_a_region(tmp_path: Path) -> None:
    """Of half the patients one of the four slices that the lesion is in is bright."""
    rng = np.random.default_rng(5)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    bright = {}
    for i in range(24):
        voxels = rng.normal(0, 30, (28, 28, 7))
        mask = np.zeros(voxels.shape, np.uint8)
        mask[4:18, 6:22, 1:5] = 1
        if i % 2:
            bright[f"p{i:02}.nii"] = int(rng.integers(1, 5))
            voxels[4:18, 6:22, bright[f"p{i:02}.nii"]] += 300
        voxels[20:, :, :] += rng.normal(0, 300, 7)  # beside it, and of no meaning
        for folder, values in (("images", voxels.astype(np.int16)), ("masks", mask)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / folder / f"p{i:02}.nii")
    names = [f"p{i:02}.nii" for i in range(24)]
    write_csv(tmp_path / "labels.csv", path=names, sick=[i % 2 for i in range(24)])
    config = config_of(
        tmp_path,
        masks={"lesions": {"files": {"**": "{name}"}, "values": "lesion"}},
        data={"root": tmp_path / "images", "modality": {"**": "CT"}, "patient": r"(p\d+)",
              "paths": "keep"},
        labels={"file": tmp_path / "labels.csv"},
        split={"kind": "kfold", "folds": 3, "allow": ["near-duplicates"]},
        tasks={"sick": {"labels": ["sick"], "level": "region", "region": {"masks": "lesions"}}},
        attention={"epochs": 10, "hidden": 8, "rate": 1e-2},
    )  # fmt: skip
    store = token_store(config)
    update_regions(config)
    (result,) = evaluate(config, ["attention"])
    assert result.features == "region-mean"
    assert result.main_score.metrics["auroc"].value > 0.9
    table = read_slice_weights(store, result)
    assert table is not None
    # Of each region the four slices that it is in, and no others.
    assert table.num_rows == 4 * len(set(table["unit"].to_pylist())) == 4 * 24
    slices = Names(store.path, "keep").revealed(store.slices())
    heeded = [slices.slice(row, 1).to_pylist()[0] for ((row, _),) in most_heeded(table, 1).values()]
    right = [bright[each["path"]] == each["frame"] for each in heeded if each["path"] in bright]
    assert len(right) == 12
    assert np.mean(right) > 0.9
