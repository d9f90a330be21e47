"""The descriptions of public sets, held against the sets' real tables.

Packages of PyPI ship these tables: torchxrayvision those of NIH ChestX-ray14, CheXpert, the RSNA
challenge and VinDr-CXR (as Kaggle has it), medmnist its counts. Where one is installed it is read;
the licences of data are not those of code, so none is copied here.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.datasets.contracts import Item
from pipeline.datasets.known import DATASETS
from pipeline.datasets.medmnist import PUBLISHED
from pipeline.datasets.readings import VINDR_FINDINGS, rsna_targets, vindr_items
from pipeline.datasets.xrays import (
    NIH_LABELS,
    chexpert_item,
    frontal_items,
    nih_item,
)

# Of 112,120 images, as the table of 2020 counts them.
NIH_COUNTS = {
    "Atelectasis": 11_559,
    "Cardiomegaly": 2_776,
    "Effusion": 13_317,
    "Infiltration": 19_894,
    "Mass": 5_782,
    "Nodule": 6_331,
    "Pneumonia": 1_431,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Edema": 2_303,
    "Emphysema": 2_516,
    "Fibrosis": 1_686,
    "Pleural_Thickening": 3_385,
    "Hernia": 227,
    "No Finding": 60_361,
}
# Of 187,641 studies: positive and uncertain, in table 1 of Irvin et al. (arXiv 1901.07031).
CHEXPERT_STUDIES = {
    "Atelectasis": (29_333, 29_377),
    "Cardiomegaly": (23_002, 6_597),
    "Consolidation": (12_730, 23_976),
    "Edema": (48_905, 11_571),
    "Pleural Effusion": (75_696, 9_419),
}


def package(name: str) -> Path:
    """Return an installed package's folder, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name}, which ships the real tables, is not installed")
    return Path(spec.submodule_search_locations[0])


def table(name: str) -> Iterator[dict[str, str]]:
    data = (package("torchxrayvision") / "data" / name).read_bytes()
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(archive.namelist()[0])
    else:
        data = gzip.decompress(data)
    yield from csv.DictReader(io.StringIO(data.decode()))


def test_nih() -> None:
    items = [nih_item(row, row["Image Index"], ()) for row in table("Data_Entry_2017_v2020.csv.gz")]
    assert len({item.path for item in items}) == len(items) == DATASETS["nih"].published["images"]
    assert len({item.patient for item in items}) == DATASETS["nih"].published["patients"]
    counts = {name: sum(item.labels[name] == "1" for item in items) for name in NIH_LABELS}
    assert counts == NIH_COUNTS
    # No Finding stands alone, and every image has it or a finding.
    assert all(
        (item.labels["No Finding"] == "1")
        != any(item.labels[name] == "1" for name in NIH_LABELS[:-1])
        for item in items
    )


def test_chexpert() -> None:
    rows = list(table("chexpert_train.csv.gz"))
    assert len(rows) == 223_414
    items = list(frontal_items(rows, "train"))
    assert len(items) == DATASETS["chexpert"].published["frontal images of train.csv"]
    assert (
        len({item.patient for item in items}) == 64_534
    )  # of 64,540: six have lateral views alone
    uncertain = [item.labels["Uncertain"] for item in items]
    assert uncertain.count("1") == sum("-1.0" in item.labels.values() for item in items) > 50_000
    # The paper counts studies, lateral views among them.
    every = [chexpert_item(row, "train") for row in rows]
    assert len({_study(item) for item in every}) == 187_641
    for name, published in CHEXPERT_STUDIES.items():
        found = [
            len({_study(item) for item in every if item.labels[name] == mark})
            for mark in ("1.0", "-1.0")
        ]
        assert tuple(found) == published, name


def _study(item: Item) -> str:
    return item.path.rpartition("/")[0]


def test_rsna() -> None:
    targets = rsna_targets(table("kaggle_stage_2_train_labels.csv.zip"))
    published = DATASETS["rsna-pneumonia"].published
    assert Counter(targets.values()) == {
        "1": published["images with pneumonia"],
        "0": published["images"] - published["images with pneumonia"],
    }
    headers = list(table("kaggle_stage_2_train_images_dicom_headers.csv.gz"))
    assert {row["PatientID"] for row in headers} == targets.keys()
    assert all(row["Filename"] == f"{row['PatientID']}.dcm" for row in headers)


def test_vindr() -> None:
    names = (*VINDR_FINDINGS, "No finding")
    rows = list(table("vinbigdata-train.csv.gz"))
    assert {row["class_name"] for row in rows} == set(names)
    items = list(vindr_items(rows, "train", None, names))
    assert len(items) == DATASETS["vindr-cxr"].published["training images"]
    # All three readers agree on the healthy, or none says it.
    counts = Counter(name for item in items for name in names if item.labels[name] == "1")
    assert counts["No finding"] == 10_606
    assert min(counts, key=lambda name: counts[name]) == "Pneumothorax"


def test_medmnist() -> None:
    source = (package("medmnist") / "info.py").read_text(encoding="utf-8")
    counts = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            fields = dict(
                zip((getattr(k, "value", None) for k in node.keys), node.values, strict=True)
            )
            if "n_samples" in fields and "python_class" in fields:
                name = ast.literal_eval(fields["python_class"]).lower()
                samples = ast.literal_eval(fields["n_samples"])
                counts[name] = (samples["train"], samples["val"], samples["test"])
    assert counts == PUBLISHED
