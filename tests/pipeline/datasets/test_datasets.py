"""Public data sets on made-up folders of their layouts: checked, described, extracted, answered."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.loading import load_config
from pipeline.config.root import Config
from pipeline.datasets.describing import describe
from pipeline.datasets.known import DATASETS
from pipeline.datasets.lidc import nodules_of, outlines_of
from pipeline.datasets.medmnist import WITH_COPIES
from pipeline.datasets.systematic import systematic_parts
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.extraction.embed import Speed
from pipeline.io.decode import read_headers
from pipeline.segment import segment
from pipeline.segmentation.regions import update_regions
from stores.errors import ConfigError
from tests.pipeline import layouts
from tests.pipeline.models import write_tiny_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("network") / "tiny")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ready(out: Path, network: Path) -> Config:
    """Return the config that was written, with a network that can be had here."""
    text = yaml.safe_load((out / "config.yaml").read_text())
    text["backbone"] = {"name": f"hf:{network}", "image_size": 56}
    if "segment" in text:
        text["segment"] = {"knn": {"method": "knn", "k": [1]}}
    (out / "config.yaml").write_text(yaml.safe_dump(text))
    config = load_config(out / "config.yaml")
    assert extract(config, Speed(device="cpu", workers=0)).clean
    update_regions(config)
    return config


# name -> writer, slices, units labelled, masks, official parts
WRITTEN: dict[str, tuple[Callable[[Path], None], int, int, int, dict[str, int]]] = {
    "nih": (layouts.nih, 60, 60, 0, {"train": 40, "test": 20}),
    "chexpert": (layouts.chexpert, 32, 32, 0, {"train": 24, "test": 8}),
    "montgomery": (layouts.montgomery, 24, 24, 24, {}),
    "shenzhen": (layouts.shenzhen, 20, 20, 19, {}),
    "sars": (layouts.sars, 72, 24, 0, {}),
    "cc-ccii": (layouts.cc_ccii, 42, 18, 0, {}),
    "brain-tumour": (layouts.brain_tumour, 30, 30, 30, {"train": 18, "val": 6, "test": 6}),
    "amos": (layouts.amos, 32, 8, 8, {"train": 5, "test": 3}),
    "msd-heart": (lambda root: layouts.decathlon(root, "la", 1), 24, 6, 6, {}),
    "msd-hippocampus": (lambda root: layouts.decathlon(root, "hippocampus", 2), 24, 6, 6, {}),
    "msd-spleen": (lambda root: layouts.decathlon(root, "spleen", 1), 24, 6, 6, {}),
    "btcv": (layouts.btcv, 24, 6, 6, {}),
    "rsna-pneumonia": (layouts.rsna_pneumonia, 24, 24, 0, {}),
    "vindr-cxr": (layouts.vindr_cxr, 32, 32, 0, {"train": 24, "test": 8}),
    "kits23": (layouts.kits23, 24, 6, 6, {}),
    "totalsegmentator": (layouts.totalsegmentator, 28, 7, 7, {"train": 4, "val": 1, "test": 2}),
    "brats": (layouts.brats, 100, 24, 24, {}),
    "lidc": (layouts.lidc, 79, 24, 0, {}),
    "luna25": (layouts.luna25, 48, 24, 0, {}),
    "medmnist": (
        lambda root: layouts.medmnist(root / "pneumoniamnist.npz"),
        52,
        52,
        0,
        {"train": 30, "val": 10, "test": 12},
    ),
}


def test_every_known_set_is_tested() -> None:
    assert WRITTEN.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_as_downloaded_is_described_extracted_and_answered(
    name: str, tmp_path: Path, network: Path
) -> None:
    write, slices, items, masks, parts = WRITTEN[name]
    write(tmp_path / "download")
    out = tmp_path / "out"
    described = describe(name, tmp_path / "download", out)
    assert described.images == items
    assert not described.full  # made up: a few images of thousands
    labels = rows_of(out / "labels.csv")
    assert len(labels) == items
    written = yaml.safe_load((out / "config.yaml").read_text())
    if any(block["by"] == "table" for block in written.get("masks", {}).values()) or not masks:
        assert sum(bool(row.get("mask")) for row in labels) == masks
    listed = rows_of(out / "split.csv") if parts else []
    assert Counter(row["part"] for row in listed) == parts
    config = ready(out, network)
    assert bool(config.tasks) or bool(config.masks)
    if config.tasks:
        for result in evaluate(config, ["knn"]):
            tally = result.tally
            assert tally.unmatched_labels == tally.unmatched_slices == 0, tally
            assert sum(count.units for count in result.counts.values()) == items
            if parts:
                assert result.counts["test"].units == parts["test"]
    if config.masks:
        (answer,) = segment(config)
        assert answer.tally.unmatched_labels == 0, answer.tally
        assert sum(count.units for count in answer.counts.values()) == masks
        assert answer.scores[-1].metrics["dice_ceiling"].value > 0.9
    from stores import FeatureStore

    assert int((FeatureStore.open(config.store).status() == 1).sum()) == slices


def test_lidcs_readers_are_joined_and_their_boxes_lie_in_the_patient(tmp_path: Path) -> None:
    root = tmp_path / "LIDC-IDRI"
    layouts.lidc(tmp_path, patients=2)
    described = describe("lidc", tmp_path, tmp_path / "out")
    assert [(count.what, count.got) for count in described.counts] == [
        ("scans", 3),
        ("patients", 3),
        ("nodules of 3 mm or more", 4),
    ]
    benign, _, malignant, _ = rows_of(tmp_path / "out/labels.csv")
    assert benign == {
        "path": "LIDC-IDRI-0001/01-01-2000-30178/3000566-03192",
        "patient": "LIDC-IDRI-0001",
        "nodule": "nodule 1",
        "malignant": "0",
        "malignancy": "1",
        "readers": "1",
    }
    assert (malignant["malignant"], malignant["readers"]) == ("1", "2")
    box, *_ = rows_of(tmp_path / "out/boxes.csv")
    # Of a disc of radius 3 about pixel (10, 12), of 0.7 by 0.8 mm, in slices 2 and 3.
    ends = [float(box[name]) for name in ("x0", "x1", "y0", "y1", "z0", "z1")]
    wanted = [-150 + 0.7 * 6.5, -150 + 0.7 * 13.5, -140 + 0.8 * 8.5, -140 + 0.8 * 15.5]
    assert ends == pytest.approx([*wanted, -95.2, -92.3])
    (header,) = read_headers(root / malignant["path"] / "1-001.dcm")
    # Three read one nodule, a fourth another that lies away from it; the median rating decides.
    near = [((10, 12), 3, 2), ((11, 12), 4, 3), ((10, 13), 3, 5)]
    layouts.lidc_reading(tmp_path / "a.xml", "1.2", [[one] for one in (*near, ((30, 28), 2, 4))])
    first, second = nodules_of(outlines_of(tmp_path / "a.xml", header))
    assert [outline.malignancy for outline in first] == [2, 3, 5]
    assert [outline.malignancy for outline in second] == [4]


@pytest.mark.parametrize(
    ("whole", "torn", "said"),
    [("</readingSession>", "", "mismatched tag"), (">12<", ">wide<", "yCoord 'wide' is no number")],
)
def test_a_torn_reading_of_lidc_is_named(whole: str, torn: str, said: str, tmp_path: Path) -> None:
    layouts.lidc(tmp_path, patients=1)
    (file, *_) = sorted(tmp_path.rglob("000.xml"))
    file.write_text(file.read_text().replace(whole, torn))
    with pytest.raises(
        ConfigError, match=rf"000\.xml is no reading of this set, or is torn.*{said}"
    ):
        describe("lidc", tmp_path, tmp_path / "out")


def test_lidc_without_its_readings_says_where_they_come_from(tmp_path: Path) -> None:
    layouts.lidc(tmp_path, patients=1)
    for file in tmp_path.rglob("*.xml"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"0 readings and 2 CT scans.*LIDC-XML-only\.zip"):
        describe("lidc", tmp_path, tmp_path / "out")


def test_montgomerys_two_masks_become_one(tmp_path: Path) -> None:
    layouts.montgomery(tmp_path / "set/MontgomerySet", images=3)
    describe("montgomery", tmp_path / "set", tmp_path / "out")  # a folder above is enough
    name = "MCUCXR_0002_1.png"
    merged = np.asarray(Image.open(tmp_path / "out/masks" / name))
    for side, value in (("left", 1), ("right", 2)):
        path = tmp_path / f"set/MontgomerySet/ManualMask/{side}Mask" / name
        assert np.array_equal(merged == value, np.asarray(Image.open(path)) > 0)
    row = next(row for row in rows_of(tmp_path / "out/labels.csv") if row["mask"] == name)
    assert row["tuberculosis"] == "1"


def test_chexperts_policy_views_and_test(tmp_path: Path) -> None:
    layouts.chexpert(tmp_path / "CheXpert", train=6, valid=3, test=4)
    described = describe("chexpert", tmp_path / "CheXpert", tmp_path / "out")
    assert [count.got for count in described.counts] == [6, 3, 4]
    parts = Counter(row["part"] for row in rows_of(tmp_path / "out/split.csv"))
    assert parts == {"train": 6, "val": 3, "test": 4}
    labels = rows_of(tmp_path / "out/labels.csv")
    assert all("frontal" in row["path"] for row in labels)
    # The paper's sixth label; the official val and test have no uncertain finding.
    assert [row["Uncertain"] for row in labels] == [*"000100", *"0000000"]
    config = load_config(tmp_path / "out/config.yaml")
    assert config.labels is not None
    assert (config.labels.uncertain, config.labels.missing) == ("zero", "zero")


@pytest.mark.parametrize(
    ("name", "units", "sizes"),
    [
        ("montgomery", 138, (69, 23, 46)),
        ("shenzhen", 566, (361, 91, 114)),
        ("sars", 210, (90, 50, 70)),
        ("brain-tumour", 233, (113, 50, 70)),
        ("msd-hippocampus", 260, (120, 60, 80)),
        ("msd-spleen", 41, (16, 10, 15)),
        ("amos", 300, (80, 20, 50)),
    ],
)
def test_the_papers_splits_have_its_sizes(
    name: str, units: int, sizes: tuple[int, int, int]
) -> None:
    steps = DATASETS[name].paper_split
    assert steps is not None
    parts = systematic_parts(units, steps)
    assert tuple(parts.count(part) for part in ("train", "val", "test")) == sizes
    if steps.train is not None:  # which is dealt first, and the rest left out
        assert (parts[0], parts[round(steps.train)], parts[1]) == ("train", "train", "val")
        assert parts.count(None) == units - sum(sizes)
        return
    assert parts[0] == "test"
    assert parts[round(steps.test)] == "test"


def test_the_papers_split_is_written_and_says_what_it_is(tmp_path: Path) -> None:
    layouts.shenzhen(tmp_path / "set")
    described = describe("shenzhen", tmp_path / "set", tmp_path / "out", paper_split=True)
    parts = [row["part"] for row in rows_of(tmp_path / "out/split.csv")]
    # Nineteen of twenty have a mask; the other trains.
    assert Counter(parts) == {"test": 4, "val": 3, "train": 13}
    assert load_config(tmp_path / "out/config.yaml").split.kind == "list"
    assert any("order of a file system" in note for note in described.notes)
    layouts.amos(tmp_path / "amos")
    described = describe("amos", tmp_path / "amos", tmp_path / "amos-out", paper_split=True)
    left_out = 8 - len(rows_of(tmp_path / "amos-out/split.csv"))
    assert any(f"{left_out} of 8 stand in no part" in note for note in described.notes)
    layouts.nih(tmp_path / "nih")
    with pytest.raises(ConfigError, match="it is for montgomery, shenzhen, "):
        describe("nih", tmp_path / "nih", tmp_path / "nih-out", paper_split=True)


@pytest.mark.parametrize("kaggle", [False, True])
def test_of_vindrs_readers_most_count(kaggle: bool, tmp_path: Path) -> None:
    layouts.vindr_cxr(tmp_path / "set", train=4, test=2, kaggle=kaggle)
    described = describe("vindr-cxr", tmp_path / "set", tmp_path / "out")
    assert [count.got for count in described.counts] == ([4] if kaggle else [4, 2])
    rows = rows_of(tmp_path / "out/labels.csv")
    assert [row["Cardiomegaly"] for row in rows] == [str(i % 2) for i in range(len(rows))]
    assert {row["Other lesion"] for row in rows} == {"0"}  # one of three said so
    assert ("Tuberculosis" in rows[0]) == (not kaggle)  # what was not asked is not denied
    assert (tmp_path / "out/split.csv").exists() == (not kaggle)


def test_cc_ccii_is_held_against_its_own_list(tmp_path: Path) -> None:
    layouts.cc_ccii(tmp_path / "set", patients=2)
    described = describe("cc-ccii", tmp_path / "set", tmp_path / "out")
    counts = {count.what: (count.got, count.published) for count in described.counts}
    assert counts == {"patients": (6, 7), "scans": (9, 10), "slices": (18, 58)}
    patients = [row["patient"] for row in rows_of(tmp_path / "out/labels.csv")]
    assert patients == ["NCP 1", "NCP 2", "CP 1", "CP 2", "Normal 1", "Normal 2"]


def test_rsnas_boxes_are_images_and_its_classes_a_column(tmp_path: Path) -> None:
    layouts.rsna_pneumonia(tmp_path / "set", images=4)
    describe("rsna-pneumonia", tmp_path / "set", tmp_path / "out")
    rows = rows_of(tmp_path / "out/labels.csv")
    assert [(row["pneumonia"], row["class"]) for row in rows] == [
        ("0", "Normal"),
        ("1", "Lung Opacity"),
    ] * 2


def test_a_patient_of_brats_has_cases_and_a_case_four_volumes(tmp_path: Path) -> None:
    layouts.brats(tmp_path / "set", patients=2)
    described = describe("brats", tmp_path / "set", tmp_path / "out")
    assert [count.got for count in described.counts] == [3, 12]
    rows = rows_of(tmp_path / "out/labels.csv")
    assert Counter(row["patient"] for row in rows) == {"BraTS-GLI-00000": 8, "BraTS-GLI-00001": 4}
    assert Counter(row["sequence"] for row in rows) == dict.fromkeys(
        ("t1c", "t1n", "t2f", "t2w"), 3
    )


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_nihs_table_has_either_name_and_its_tasks_14_and_15_labels(
    table: str, tmp_path: Path
) -> None:
    layouts.nih(tmp_path / "NIH", patients=3, table=table)
    assert describe("nih", tmp_path / "NIH", tmp_path / "out").images == 6
    tasks = load_config(tmp_path / "out/config.yaml").tasks
    assert {name: len(task.labels) for name, task in tasks.items()} == {
        "findings": 14,
        "findings, paper": 15,
    }
    for row in rows_of(tmp_path / "out/labels.csv"):
        assert row["No Finding"] == str(1 - int(row["Effusion"]))


def test_nih_without_a_table_is_told_both_names(tmp_path: Path) -> None:
    layouts.nih(tmp_path / "NIH", patients=1, table="labels.csv")
    with pytest.raises(ConfigError, match=r"Data_Entry_2017_v2020\.csv or Data_Entry_2017\.csv"):
        describe("nih", tmp_path / "NIH", tmp_path / "out")


def test_a_torn_patient_is_dealt_anew(tmp_path: Path) -> None:
    layouts.brain_tumour(tmp_path / "set", files=12, torn=True)
    described = describe("brain-tumour", tmp_path / "set", tmp_path / "out")
    assert any("4 patients on two sides" in note for note in described.notes)
    assert not (tmp_path / "out/split.csv").exists()


def test_volumes_of_medmnist_stay_volumes(tmp_path: Path, network: Path) -> None:
    layouts.medmnist(tmp_path / "organmnist3d.npz", (8, 4, 4), deep=True)
    described = describe("medmnist", tmp_path / "organmnist3d.npz", tmp_path / "out")
    assert [count.published for count in described.counts] == [971, 161, 610]
    (result,) = evaluate(ready(tmp_path / "out", network), ["knn"])
    assert result.level == "series"
    assert result.counts["test"].units == 4


@pytest.mark.parametrize(
    ("name", "published", "said"),
    [
        ("breastmnist", [546, 78, 156], ""),
        ("breastmnist_224", [546, 78, 156], ""),
        ("organsmnist_224", [13_932, 2_452, 8_827], ""),
        ("sharkmnist", [None] * 3, "no published counts"),
    ],
)
def test_medmnist_has_its_counts_in_every_size(
    name: str, published: list[int | None], said: str, tmp_path: Path
) -> None:
    layouts.medmnist(tmp_path / f"{name}.npz", (2, 1, 1))
    described = describe("medmnist", tmp_path, tmp_path / "out")
    assert [count.published for count in described.counts] == published
    assert said in " ".join(described.notes)


def test_a_file_of_medmnist_with_the_copies_of_old_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WITH_COPIES, "organsmnist", (2, 1, 1))
    layouts.medmnist(tmp_path / "organsmnist.npz", (2, 1, 1))
    described = describe("medmnist", tmp_path, tmp_path / "out")
    assert described.full
    assert any("copies of a few images" in note for note in described.notes)


@pytest.mark.parametrize("name", WRITTEN)
def test_another_folder_is_refused_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match="is looked for as"):
        describe(name, tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_false_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chestmnist.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(ConfigError, match="no archive of MedMNIST"):
        describe("medmnist", tmp_path, tmp_path / "out")
    objects: Any = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "chestmnist.npz", train_images=objects, train_labels=objects)
    with pytest.raises(ConfigError, match="no archive of MedMNIST"):
        describe("medmnist", tmp_path, tmp_path / "out")


def test_a_config_that_is_there_stays_and_tables_are_new(tmp_path: Path) -> None:
    layouts.shenzhen(tmp_path / "set", images=4)
    assert not describe("shenzhen", tmp_path / "set", tmp_path / "out").kept
    (tmp_path / "out/config.yaml").write_text("data: {root: mine}\nstore: mine\n")
    (tmp_path / "set/CXR_png/CHNCXR_0001_0.png").unlink()
    assert describe("shenzhen", tmp_path / "set", tmp_path / "out").kept
    assert "mine" in (tmp_path / "out/config.yaml").read_text()
    assert len(rows_of(tmp_path / "out/labels.csv")) == 3


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    layouts.montgomery(tmp_path / "set", images=4)
    run = ["dataset", "montgomery", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 1, done.output
    assert "Not the full set: got 4 images, published 138." in done.stdout
    told = json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
    assert told["counts"][0] == {"what": "images", "got": 4, "published": 138}


def test_the_documented_table_is_the_codes() -> None:
    text = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    for name, each in DATASETS.items():
        counts = ", ".join(f"{n:,} {what}" for what, n in each.published.items()) or "by set"
        assert f"| `{name}` | {each.title} | {counts} | {each.unverified} |" in text, name
