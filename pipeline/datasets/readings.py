"""RSNA pneumonia and VinDr-CXR: chest X-rays as DICOM that radiologists read for the set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.config.tasks import Part
from pipeline.datasets.contracts import Contents, DataSet, Item, below, files_of, table_rows

# Those that Kaggle's challenge asks; of each, boxes were drawn.
VINDR_FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
# PhysioNet's table has more, rarer ones, and six labels of the whole image, which come last.
VINDR_LABELS = (
    *VINDR_FINDINGS,
    "Clavicle fracture",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Rib fracture",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)


def _find_rsna(folder: Path, out: Path) -> Contents:
    root = below(folder, "stage_2_train_labels.csv", "stage_2_train_images")
    detailed = root / "stage_2_detailed_class_info.csv"
    # It splits the healthy from those with something else, which the labels take together.
    classes = {}
    if detailed.is_file():
        classes = {row["patientId"]: row["class"] for row in table_rows(detailed)}
    here = {path.stem for path in files_of(root / "stage_2_train_images", "*.dcm")}
    items = []
    for image, target in rsna_targets(table_rows(root / "stage_2_train_labels.csv")).items():
        if image in here:
            labels = {"pneumonia": target} | ({"class": classes.get(image, "")} if classes else {})
            items.append(Item(f"stage_2_train_images/{image}.dcm", image, labels=labels))
    counts = {
        "images": len(items),
        "images with pneumonia": sum(item.labels["pneumonia"] == "1" for item in items),
    }
    notes = [
        "the images are of NIH ChestX-ray14 under other names, and which are of one patient is not "
        "said: each image counts as its own patient"
    ]
    return Contents(root, items, counts, notes=notes)


def rsna_targets(rows: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return image -> 1 where there is a box of pneumonia, else 0: the table has a row a box."""
    return {row["patientId"]: row["Target"] for row in rows}


def _find_vindr(folder: Path, out: Path) -> Contents:
    root = below(folder, "train")
    official = root / "annotations"
    items: list[Item] = []
    notes = ["the set names no patients: each image counts as its own"]
    if official.is_dir():
        parts: tuple[Part, ...] = ("train", "test")
        for part in parts:
            rows = table_rows(official / f"image_labels_{part}.csv")
            items += vindr_items(rows, part, part, VINDR_LABELS)
    else:
        names = (*VINDR_FINDINGS, "No finding")
        items += vindr_items(table_rows(root / "train.csv"), "train", None, names)
        notes.append("Kaggle's table labels the training images alone: patients are dealt")
    items = [item for item in items if (root / item.path).is_file()]
    counts = {"training images": sum(item.part != "test" for item in items)}
    if official.is_dir():
        counts["test images"] = len(items) - counts["training images"]
    return Contents(root, items, counts, notes=notes)


def vindr_items(
    rows: Iterable[dict[str, str]], folder: str, part: Part | None, names: Sequence[str]
) -> Iterator[Item]:
    """Yield the images of a table of VinDr-CXR with the labels that most of their readers gave.

    rows: PhysioNet's, one a reader with a column a label, or of the test part, which the readers
    agreed upon, one an image; or Kaggle's, one a box. names: of the labels that the table has.
    """
    read: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        signs = read[row["image_id"]][row.get("rad_id", "all")]
        signs.update(_signs_of(row))
    for image, readers in read.items():
        votes = {name: sum(name in signs for signs in readers.values()) for name in names}
        labels = {name: str(int(2 * given > len(readers))) for name, given in votes.items()}
        yield Item(f"{folder}/{image}.dicom", image, part, labels=labels)


def _signs_of(row: dict[str, str]) -> set[str]:
    """Return what a row says is there."""
    if "class_name" in row:
        return {row["class_name"]}
    # The two tables of PhysioNet differ in this one name.
    named = ("Other diseases" if name == "Other disease" else name for name in row)
    return {name for name, value in zip(named, row.values(), strict=True) if value in ("1", "1.0")}


RSNA = DataSet(
    title="RSNA pneumonia",
    source="kaggle.com/c/rsna-pneumonia-detection-challenge",
    layout="stage_2_train_labels.csv, stage_2_train_images/*.dcm (and "
    "stage_2_detailed_class_info.csv)",
    find=_find_rsna,
    data={"include": ["stage_2_train_images/*.dcm"]},
    published={"images": 26_684, "images with pneumonia": 6_012},
    tasks={"pneumonia": {"labels": ["pneumonia"]}},
)
VINDR = DataSet(
    title="VinDr-CXR",
    source="physionet.org/content/vindr-cxr",
    layout="PhysioNet's annotations/image_labels_train.csv and image_labels_test.csv, "
    "train/*.dicom, test/*.dicom; or Kaggle's train.csv, train/*.dicom",
    find=_find_vindr,
    data={"include": ["train/*.dicom", "test/*.dicom"]},
    published={"training images": 15_000, "test images": 3_000},
    tasks={"findings": {"labels": list(VINDR_FINDINGS)}},
)
