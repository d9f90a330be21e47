"""SARS-CoV-2 CT, CC-CCII, figshare's brain tumours: slices, with a class a patient or a slice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config.tasks import Part
from pipeline.datasets.contracts import (
    Contents,
    DataSet,
    Item,
    Systematic,
    below,
    files_of,
    table_rows,
)
from pipeline.io.formats.arrays import hdf5_text, hdf5_values
from pipeline.io.formats.limits import as_unreadable, check_size
from stores.errors import ConfigError
from stores.hdf5 import member_there

_GROUPS = {"covid": "1", "healthy": "0", "others": "0"}
# Novel coronavirus pneumonia, common pneumonia, neither.
PNEUMONIAS = ("NCP", "CP", "Normal")
TUMOURS = {1: "meningioma", 2: "glioma", 3: "pituitary"}


def _find_sars(folder: Path, out: Path) -> Contents:
    root = below(folder, "Healthy", "Others")
    items = []
    counts = {"patients": 0, "slices": 0, "patients with COVID-19": 0}
    for group in sorted(path for path in root.iterdir() if path.name.lower() in _GROUPS):
        name = group.name.lower()
        for patient in sorted(path for path in group.iterdir() if path.is_dir()):
            labels = {"covid": _GROUPS[name], "group": name}
            path = patient.relative_to(root).as_posix()
            items.append(Item(path, f"{name} {patient.name}", labels=labels))
            counts["slices"] += len(files_of(patient, "*.png"))
    counts["patients"] = len(items)
    counts["patients with COVID-19"] = sum(item.labels["covid"] == "1" for item in items)
    return Contents(root, items, counts)


# --- CC-CCII ------------------------------------------------------------------------------------


def _find_cc_ccii(folder: Path, out: Path) -> Contents:
    root = below(folder, *PNEUMONIAS)
    items = []
    scans = slices = 0
    for name in PNEUMONIAS:
        for patient in sorted(path for path in (root / name).iterdir() if path.is_dir()):
            # Numbers of patients begin anew in each class.
            labels = {"diagnosis": name}
            path = patient.relative_to(root).as_posix()
            items.append(Item(path, f"{name} {patient.name}", labels=labels))
            for scan in sorted(path for path in patient.iterdir() if path.is_dir()):
                scans += 1
                slices += sum(len(files_of(scan, f"*.{suffix}")) for suffix in ("png", "jpg"))
    counts = {"patients": len(items), "scans": scans, "slices": slices}
    table = root / "unzip_filenames.csv"
    if table.is_file():
        return Contents(root, items, counts, published=_listed(table))
    notes = ["unzip_filenames.csv is not there: what the set should hold is not known"]
    return Contents(root, items, counts, notes=notes)


def _listed(table: Path) -> dict[str, int]:
    """Return what CC-CCII's own list of scans counts."""
    rows = list(table_rows(table))
    return {
        "patients": len({(row["label"], row["patient_id"]) for row in rows}),
        "scans": len({(row["label"], row["patient_id"], row["scan_id"]) for row in rows}),
        "slices": sum(int(row["n_slice"]) for row in rows),
    }


# --- figshare -----------------------------------------------------------------------------------


def _find_tumours(folder: Path, out: Path) -> Contents:
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {str(folder)!r}. Name the unpacked download.")
    every = [path for path in folder.rglob("*.mat") if path.stem.isdecimal()]
    if not every:
        raise ConfigError(f"{str(folder)!r} holds no 1.mat, 2.mat, ...: unpack the archives in it.")
    every.sort(key=lambda path: int(path.stem))
    folds = _folds(folder)
    items = [_tumour(path, folder, out, folds.get(int(path.stem))) for path in every]
    items, notes = _without_torn(items)
    if not folds:
        notes.append("cvind.mat is not there: the official folds are not used")
    notes.append(f"the masks of the tumours are unpacked under {out / 'masks'}")
    counts = {"slices": len(items), "patients": len({item.patient for item in items})}
    for name in TUMOURS.values():
        counts[name] = sum(item.labels["tumour"] == name for item in items)
    return Contents(folder, items, counts, masks=out / "masks", notes=notes)


def _tumour(path: Path, root: Path, out: Path, part: Part | None) -> Item:
    try:
        label, patient, mask = _read_struct(path)
    except Exception as error:
        known = as_unreadable(error, "reading the struct cjdata")
        raise ConfigError(f"{path} is no file of this set: {known.detail}.") from error
    into = out / "masks" / f"{path.stem}.png"
    into.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(into)
    shown = path.relative_to(root).as_posix()
    return Item(shown, patient, part, into.name, {"tumour": TUMOURS[label]})


def _read_struct(path: Path) -> tuple[int, str, NDArray[np.uint8]]:
    """Return label, patient and mask (H, W) of a v7.3 file, whose axes are MATLAB's reversed."""
    import h5py

    # Each value is held against what the set has before it is read: a file may declare anything.
    with h5py.File(path, "r") as file:
        label = int(hdf5_values(member_there(file, "cjdata/label"), most=10_000).ravel()[0])
        patient = hdf5_text(member_there(file, "cjdata/PID"))
        mask = member_there(file, "cjdata/tumorMask")
        height, width = mask.shape
        check_size(height, width, 1, mask.dtype.itemsize, path.stat().st_size, coded=True)
        values = hdf5_values(mask).T
    return label, patient, np.ascontiguousarray(values != 0, dtype=np.uint8)


def _folds(folder: Path) -> dict[int, Part]:
    """Return the part of each file's number by cvind.mat: fold 1 tests, fold 2 validates."""
    import h5py

    try:
        path = below(folder, "cvind.mat") / "cvind.mat"
    except ConfigError:
        return {}
    with h5py.File(path, "r") as file:
        fold = hdf5_values(member_there(file, "cvind"), most=10_000).ravel().astype(int).tolist()
    parts: dict[int, Part] = {1: "test", 2: "val"}
    return {i: parts.get(number, "train") for i, number in enumerate(fold, start=1)}


def _without_torn(items: list[Item]) -> tuple[list[Item], list[str]]:
    """Return the items without official parts, where these tear a patient apart, and a note."""
    parts: dict[str, set[Part | None]] = defaultdict(set)
    for item in items:
        parts[item.patient].add(item.part)
    torn = sum(len(each) > 1 for each in parts.values())
    if not torn:
        return items, []
    without = [replace(item, part=None) for item in items]
    return without, [f"cvind.mat puts {torn} patients on two sides, so patients are dealt anew"]


SARS = DataSet(
    title="SARS-CoV-2 CT (COVID multiclass)",
    source="kaggle.com/plameneduardo/a-covid-multiclass-dataset-of-ct-scans",
    layout="New_Data_CoV2: Covid/, Healthy/, Others/, in each a folder of PNG slices a patient",
    find=_find_sars,
    # Pictures, not HU: taken by minimum and maximum.
    data={"include": ["*/*/*.png"], "modality": {"**": "OT"}},
    published={"patients": 210, "slices": 4173, "patients with COVID-19": 80},
    tasks={"covid": {"labels": ["covid"], "level": "patient"}},
    unverified="80 patients with COVID-19",
    paper_split=Systematic(3, 140 / 50),
)
CC_CCII = DataSet(
    title="CC-CCII",
    source="ncov-ai.big.ac.cn/download",
    layout="NCP/, CP/, Normal/: patient/scan/*.png or *.jpg; unzip_filenames.csv",
    find=_find_cc_ccii,
    # Pictures, not HU: taken by minimum and maximum.
    data={"include": ["*/*/*/*.png", "*/*/*/*.jpg"], "modality": {"**": "OT"}},
    tasks={"diagnosis": {"labels": ["diagnosis"], "level": "patient"}},
    unverified="that equal numbers in two classes are two patients",
)
BRAIN_TUMOUR = DataSet(
    title="figshare brain tumours",
    source="figshare.com/articles/dataset/brain_tumor_dataset/1512427",
    layout="1.mat to 3064.mat (v7.3, struct cjdata), in folders or not; cvind.mat",
    find=_find_tumours,
    data={"include": ["**/[0-9]*.mat"], "modality": {"**": "MR"}},
    published={
        "slices": 3064,
        "patients": 233,
        "meningioma": 708,
        "glioma": 1426,
        "pituitary": 930,
    },
    tasks={"tumour": {"labels": ["tumour"]}},
    values="tumour",
    unverified="the layout of cvind.mat",
    paper_split=Systematic(233 / 70, 163 / 50),
)
