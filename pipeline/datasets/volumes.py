"""AMOS22, three tasks of the Medical Segmentation Decathlon and BTCV: volumes with organ masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.tasks import Part
from pipeline.datasets.contracts import Contents, DataSet, Item, below, files_of

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


def _stem(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def _numbered(organs: tuple[str, ...]) -> dict[int, str]:
    return dict(enumerate(organs, start=1))


_DATA: dict[str, Any] = {"exclude": ["**/._*"], "modality": {"**": "CT"}}


def _decathlon(
    name: str, task: str, modality: str, volumes: int, organs: tuple[str, ...]
) -> DataSet:
    return DataSet(
        title=f"MSD {name}",
        source="medicaldecathlon.com",
        layout=f"{task}: imagesTr/*.nii.gz, labelsTr/*.nii.gz",
        find=_find_decathlon,
        data=_DATA | {"include": ["imagesTr/*.nii.gz"], "modality": {"**": modality}},
        published={"volumes with masks": volumes},
        values=_numbered(organs),
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
)
MSD_HEART = _decathlon("heart", "Task02_Heart", "MR", 20, ("left atrium",))
MSD_HIPPOCAMPUS = _decathlon(
    "hippocampus", "Task04_Hippocampus", "MR", 260, ("anterior", "posterior")
)
MSD_SPLEEN = _decathlon("spleen", "Task09_Spleen", "CT", 41, ("spleen",))
BTCV = DataSet(
    title="BTCV",
    source="synapse.org/Synapse:syn3193805",
    layout="Abdomen/RawData/Training: img/img0001.nii.gz, ..., label/label0001.nii.gz, ...",
    find=_find_btcv,
    data=_DATA | {"include": ["img/*.nii.gz"]},
    published={"volumes with masks": 30},
    values=_numbered(BTCV_ORGANS),
)
