"""Volumes with masks: AMOS22, the Decathlon, BTCV, KiTS23, TotalSegmentator and BraTS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

# Scans of AMOS22 up to this number are CT, the others MR.
LAST_CT = 500
AMOS_ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)
BTCV_ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


def _find_amos(folder: Path, out: Path) -> Contents:
    root = below(folder, "imagesTr", "labelsTr", "imagesVa", "labelsVa")
    items: list[Item] = []
    parts: tuple[tuple[str, Part], ...] = (("Tr", "train"), ("Va", "test"))
    for suffix, part in parts:
        images = f"images{suffix}"
        labels = f"labels{suffix}"
        for path in files_of(root / images, "amos_*.nii.gz"):
            is_ct = int(_stem(path).rpartition("_")[2]) <= LAST_CT
            if is_ct and (root / labels / path.name).is_file():
                item = Item(f"{images}/{path.name}", _stem(path), part, f"{labels}/{path.name}")
                items.append(item)
    counts = {
        "CT volumes for training": sum(item.part == "train" for item in items),
        "CT volumes for validation": sum(item.part == "test" for item in items),
    }
    notes = ["CT alone, as the paper; the masks of imagesTs are not public, so imagesVa tests"]
    return Contents(root, items, counts, notes=notes)


def _find_decathlon(folder: Path, out: Path) -> Contents:
    root = below(folder, "imagesTr", "labelsTr")
    items = [
        Item(f"imagesTr/{path.name}", _stem(path), mask=f"labelsTr/{path.name}")
        for path in files_of(root / "imagesTr", "*.nii.gz")
        if (root / "labelsTr" / path.name).is_file()
    ]
    return Contents(root, items, {"volumes with masks": len(items)})


def _find_btcv(folder: Path, out: Path) -> Contents:
    root = below(folder, "img", "label")  # Abdomen/RawData/Training, or a folder above it
    items = []
    for path in files_of(root / "img", "img*.nii.gz"):
        mask = path.name.replace("img", "label")
        if (root / "label" / mask).is_file():
            items.append(Item(f"img/{path.name}", _stem(path), mask=f"label/{mask}"))
    return Contents(root, items, {"volumes with masks": len(items)})


def _find_kits(folder: Path, out: Path) -> Contents:
    root = below(folder, "case_*")
    items = [
        Item(f"{case.name}/imaging.nii.gz", case.name, mask=f"{case.name}/segmentation.nii.gz")
        for case in files_of(root, "case_*")
        # The masks come with the code, the images by its download: some may not be there yet.
        if (case / "imaging.nii.gz").is_file() and (case / "segmentation.nii.gz").is_file()
    ]
    return Contents(root, items, {"volumes with masks": len(items)})


def _find_total(folder: Path, out: Path) -> Contents:
    root = below(folder, "meta.csv", "s[0-9]*")
    parts: dict[str, Part] = {"train": "train", "val": "val", "test": "test"}
    items = []
    for row in table_rows(root / "meta.csv", ";"):
        subject = row["image_id"]
        if (root / subject / "ct.nii.gz").is_file():
            items.append(Item(f"{subject}/ct.nii.gz", subject, parts[row["split"]]))
    counts = {f"{name} volumes": sum(item.part == name for item in items) for name in parts}
    # Every subject has a file of every structure, empty where it is not in the picture.
    first = root / items[0].patient / "segmentations" if items else root
    structures = [_stem(path) for path in files_of(first, "*.nii.gz")]
    counts["structures"] = len(structures)
    files = [f"{{folder}}/segmentations/{name}.nii.gz" for name in structures]
    named = [name.replace("_", " ") for name in structures]
    join = {"by": "path", "files": {"*/ct.nii.gz": files}, "values": named}
    notes = ["each structure has a file of its own: the config is shorter with fewer of them"]
    return Contents(root, items, counts, join=join, notes=notes)


def _find_brats(folder: Path, out: Path) -> Contents:
    root = below(folder, "BraTS-GLI-*")
    items = []
    cases = 0
    for case in files_of(root, "BraTS-GLI-*"):
        name = case.name
        mask = f"{name}/{name}-seg.nii.gz"
        if not (root / mask).is_file():
            continue
        cases += 1
        patient, _, _ = name.rpartition("-")  # what follows is the time of the scan
        for path in files_of(case, f"{name}-t[12]?.nii.gz"):
            sequence = _stem(path).rpartition("-")[2]
            labels = {"sequence": sequence}
            items.append(Item(f"{name}/{path.name}", patient, mask=mask, labels=labels))
    counts = {"cases with masks": cases, "volumes of them": len(items)}
    return Contents(root, items, counts)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def _numbered(organs: tuple[str, ...]) -> dict[int, str]:
    return dict(enumerate(organs, start=1))


_DATA: dict[str, Any] = {"exclude": ["**/._*"], "modality": {"**": "CT"}}


def _decathlon(
    name: str,
    task: str,
    modality: str,
    volumes: int,
    organs: tuple[str, ...],
    paper_split: Systematic | None = None,
) -> DataSet:
    return DataSet(
        title=f"MSD {name}",
        source="medicaldecathlon.com",
        layout=f"{task}: imagesTr/*.nii.gz, labelsTr/*.nii.gz",
        find=_find_decathlon,
        data=_DATA | {"include": ["imagesTr/*.nii.gz"], "modality": {"**": modality}},
        published={"volumes with masks": volumes},
        values=_numbered(organs),
        paper_split=paper_split,
    )


AMOS = DataSet(
    title="AMOS22",
    source="amos22.grand-challenge.org",
    layout="imagesTr/, labelsTr/, imagesVa/, labelsVa/ of amos_0001.nii.gz, ...",
    find=_find_amos,
    # MR has the numbers from 501 on.
    data={
        "include": ["imagesTr/*.nii.gz", "imagesVa/*.nii.gz"],
        "exclude": ["**/._*", "**/amos_05*", "**/amos_06*"],
        "modality": {"**": "CT"},
    },
    published={"CT volumes for training": 200, "CT volumes for validation": 100},
    values=_numbered(AMOS_ORGANS),
    # 80 of all 300 train; of the other 220 are 20 val, and of 200 50 test; 150 are left out.
    paper_split=Systematic(200 / 50, 220 / 20, train=300 / 80),
)
MSD_HEART = _decathlon("heart", "Task02_Heart", "MR", 20, ("left atrium",))
MSD_HIPPOCAMPUS = _decathlon(
    "hippocampus",
    "Task04_Hippocampus",
    "MR",
    260,
    ("anterior", "posterior"),
    Systematic(260 / 80, 180 / 60),
)
MSD_SPLEEN = _decathlon(
    "spleen", "Task09_Spleen", "CT", 41, ("spleen",), Systematic(41 / 15, 26 / 10)
)
BTCV = DataSet(
    title="BTCV",
    source="synapse.org/Synapse:syn3193805",
    layout="Abdomen/RawData/Training: img/img0001.nii.gz, ..., label/label0001.nii.gz, ...",
    find=_find_btcv,
    data=_DATA | {"include": ["img/*.nii.gz"]},
    published={"volumes with masks": 30},
    values=_numbered(BTCV_ORGANS),
)
KITS = DataSet(
    title="KiTS23",
    source="github.com/neheller/kits23",
    layout="dataset/: case_00000/imaging.nii.gz and segmentation.nii.gz, ...",
    find=_find_kits,
    data=_DATA | {"include": ["case_*/imaging.nii.gz"]},
    published={"volumes with masks": 489},
    values={1: "kidney", 2: "tumour", 3: "cyst"},
)
TOTAL_SEGMENTATOR = DataSet(
    title="TotalSegmentator v2",
    source="zenodo.org/records/10047292",
    layout="meta.csv, s0000/ct.nii.gz, s0000/segmentations/*.nii.gz, ...",
    find=_find_total,
    data=_DATA | {"include": ["s*/ct.nii.gz"]},
    published={"train volumes": 1_082, "val volumes": 57, "test volumes": 89, "structures": 117},
    unverified="the three counts of the split, of 1,228 volumes; that no structures overlap",
)
BRATS = DataSet(
    title="BraTS 2023 glioma",
    source="synapse.org/Synapse:syn51156910",
    layout="ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData: BraTS-GLI-00000-000/"
    "BraTS-GLI-00000-000-t1c.nii.gz, -t1n, -t2f, -t2w and -seg, ...",
    find=_find_brats,
    data=_DATA | {"include": ["BraTS-GLI-*/*-t[12]?.nii.gz"], "modality": {"**": "MR"}},
    published={"cases with masks": 1_251, "volumes of them": 5_004},
    values={1: "necrotic core", 2: "edema", 3: "enhancing tumour"},
)
