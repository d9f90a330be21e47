"""NIH ChestX-ray14 and CheXpert: findings on chest X-rays."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from pipeline.config.tasks import Part
from pipeline.datasets.contracts import Contents, DataSet, Item, below, table_rows
from stores.errors import ConfigError

NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
# The paper's 15: an image without a finding is its own label.
NIH_LABELS = (*NIH_FINDINGS, "No Finding")
# The table has had both names: corrected in 2020, it was put in the place of the first.
NIH_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
CHEXPERT_FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# The paper's code has a sixth label: that any of the five is uncertain.
CHEXPERT_LABELS = (*CHEXPERT_FINDINGS, "Uncertain")


def _find_nih(folder: Path, out: Path) -> Contents:
    root = below(folder, "test_list.txt")
    table = _nih_table(root)
    # The table names files alone: the archives put them in images_001 to images_012.
    here = {path.name: path.relative_to(root).as_posix() for path in root.glob("images*/**/*.png")}
    test = set((root / "test_list.txt").read_text().split())
    rows = [row for row in table_rows(table) if row["Image Index"] in here]
    items = [nih_item(row, here[row["Image Index"]], test) for row in rows]
    counts = {
        "images": len(items),
        "patients": len({item.patient for item in items}),
        "test images": sum(item.part == "test" for item in items),
    }
    notes = []
    if len(here) > len(items):
        notes.append(f"{len(here) - len(items)} images are in no row of {table.name}")
    return Contents(root, items, counts, notes=notes)


def _nih_table(root: Path) -> Path:
    for name in NIH_TABLES:
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"{str(root)!r} does not hold {' or '.join(NIH_TABLES)}.")


def nih_item(row: dict[str, str], path: str, test: Container[str]) -> Item:
    """Return the item of a row of NIH's table. test: names of the images that test."""
    findings = row["Finding Labels"].split("|")
    labels = {name: str(int(name in findings)) for name in NIH_LABELS}
    labels |= {"sex": row["Patient Gender"], "view": row["View Position"]}
    part: Part = "test" if row["Image Index"] in test else "train"
    return Item(path, row["Patient ID"], part, labels=labels)


def _find_chexpert(folder: Path, out: Path) -> Contents:
    root = below(folder, "train.csv", "valid.csv")
    # The 500 patients of the test came later; without them the validation set tests.
    has_test = (root / "test.csv").is_file()
    parts: dict[str, Part] = {"train": "train", "valid": "val" if has_test else "test"}
    parts |= {"test": "test"} if has_test else {}
    items: list[Item] = []
    counts: dict[str, int] = {}
    absent = 0
    for name, part in parts.items():
        frontal = list(frontal_items(table_rows(root / f"{name}.csv"), part))
        there = [item for item in frontal if (root / item.path).is_file()]
        items += there
        absent += len(frontal) - len(there)
        counts[f"frontal images of {name}.csv"] = len(there)
    notes = ["frontal images alone, as the paper; an uncertain finding counts as none (U-Zeros)"]
    if not has_test:
        notes.append("there is no test.csv: valid.csv tests, and patients of train.csv validate")
    if absent:
        notes.append(f"{absent} frontal images of the tables are not there")
    published = {key: PUBLISHED_CHEXPERT[key] for key in counts}
    return Contents(root, items, counts, published=published, notes=notes)


def frontal_items(rows: Iterable[dict[str, str]], part: Part) -> Iterator[Item]:
    """Yield the frontal images of one of CheXpert's tables."""
    for row in rows:
        if "frontal" in row["Path"]:
            yield chexpert_item(row, part)


def chexpert_item(row: dict[str, str], part: Part) -> Item:
    """Return the image of a row of CheXpert's tables, without its download's folder."""
    _, _, path = row["Path"].partition("/")
    labels = {name: row[name] for name in CHEXPERT_FINDINGS}
    is_uncertain = any(mark in ("-1", "-1.0") for mark in labels.values())
    labels |= {"Uncertain": str(int(is_uncertain))}
    labels |= {"sex": row.get("Sex", ""), "view": row.get("AP/PA", "")}
    return Item(path, path.split("/")[1], part, labels=labels)


PUBLISHED_CHEXPERT = {
    "frontal images of train.csv": 191_027,
    "frontal images of valid.csv": 202,
    "frontal images of test.csv": 518,
}

NIH = DataSet(
    title="NIH ChestX-ray14",
    source="nihcc.app.box.com/v/ChestXray-NIHCC",
    layout="Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), test_list.txt, images*/**/*.png",
    find=_find_nih,
    data={"include": ["images*/**/*.png"], "modality": {"**": "DX"}},
    published={"images": 112_120, "patients": 30_805, "test images": 25_596},
    split={"folds": 9},  # of train_val a ninth validates, about the paper's 10,002 images
    tasks={
        "findings": {"labels": list(NIH_FINDINGS)},
        "findings, paper": {"labels": list(NIH_LABELS)},
    },
)
CHEXPERT = DataSet(
    title="CheXpert",
    source="stanfordmlgroup.github.io/competitions/chexpert",
    layout="train.csv, valid.csv (and test.csv), train/, valid/ (and test/) as unpacked",
    find=_find_chexpert,
    data={"include": ["*/**/*frontal.jpg"], "modality": {"**": "DX"}},
    published=PUBLISHED_CHEXPERT,
    labels={"uncertain": "zero", "missing": "zero"},
    split={"folds": 20},
    tasks={
        "findings": {"labels": list(CHEXPERT_FINDINGS)},
        "findings, paper": {"labels": list(CHEXPERT_LABELS)},
    },
    unverified="the columns of test.csv",
)
