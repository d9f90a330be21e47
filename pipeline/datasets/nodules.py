"""LUNA25: lung nodules of screening CT, cut out as blocks; malignant or benign."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.contracts import Contents, DataSet, Item, below, files_of, table_rows

TABLE = "LUNA25_Public_Training_Development_Data.csv"
BLOCKS = "luna25_nodule_blocks"


def _find_luna(folder: Path, out: Path) -> Contents:
    root = below(folder, TABLE, BLOCKS)
    here = {path.stem for path in files_of(root / BLOCKS / "image", "*.npy")}
    rows = [row for row in table_rows(root / TABLE) if row["AnnotationID"] in here]
    items = [
        Item(
            f"{BLOCKS}/image/{row['AnnotationID']}.npy",
            row["PatientID"],
            labels={"malignant": row["label"], "sex": row["Gender"]},
        )
        for row in rows
    ]
    counts = {
        "nodules": len(items),
        "malignant nodules": sum(item.labels["malignant"] == "1" for item in items),
        "patients": len({item.patient for item in items}),
        "scans": len({row["SeriesInstanceUID"] for row in rows}),
    }
    return Contents(root, items, counts)


LUNA25 = DataSet(
    title="LUNA25",
    source="luna25.grand-challenge.org",
    layout=f"{TABLE}, {BLOCKS}/image/*.npy",
    find=_find_luna,
    # Whole numbers of HU; the pickles beside them, of where each block lay, are not read.
    data={"include": [f"{BLOCKS}/image/*.npy"], "modality": {"**": "CT"}},
    published={"nodules": 6_163, "malignant nodules": 555, "patients": 2_120, "scans": 4_069},
    tasks={"malignancy": {"labels": ["malignant"], "level": "series"}},
)
