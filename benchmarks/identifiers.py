"""Search everything radprobe writes for the identifiers of what it read.

    .venv/bin/python -m benchmarks.identifiers [FOLDER ...]

The DICOM files of each folder (by default pydicom's own test files) are embedded with a tiny
network, a kNN task over their modality is answered, predictions of it, a report and a model are
written, and everything but the key is searched: names, ids, birth dates and UIDs of every header,
and the names of the folders and files. Parquet tables and Zarr metadata are searched as bytes and
as what they say. Prints a line a folder; what is found is printed and ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pydicom.data
import yaml
from pydicom.errors import InvalidDicomError

from tests.pipeline.models import write_tiny_folder

KEYWORDS = {
    "AccessionNumber",
    "InstitutionName",
    "OperatorsName",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PerformingPhysicianName",
    "ReferringPhysicianName",
    "StationName",
    "StudyID",
}
# Shorter values stand everywhere by chance.
SHORTEST = 6
RADPROBE = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folders", nargs="*", type=Path)
    options.add_argument("--keep", action="store_true", help="keep paths: then they are found")
    args = options.parse_args()
    folders = args.folders or [Path(pydicom.data.__file__).parent / "test_files"]
    print(f"{'folder':<24}{'headers':>9}{'identifiers':>13}{'files':>7}{'MB':>8}{'found':>7}")
    clean = True
    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            clean &= check(folder.absolute(), Path(scratch), keep=args.keep)
    sys.exit(0 if clean else 1)


def check(folder: Path, scratch: Path, *, keep: bool) -> bool:
    """Embed a folder and search what was written; return whether nothing was found."""
    headers = dict(read_headers(folder))
    names = {part for path in headers for part in path.relative_to(folder).parts}
    names |= {path.stem for path in headers}
    wanted = {value for found in headers.values() for value in found} | names
    wanted = {value for value in wanted if len(value) >= SHORTEST} - {"DICOMDIR"}
    run_all(folder, headers, scratch, keep=keep)
    hits, files, size = [], 0, 0
    for path, text in written(scratch):
        files, size = files + 1, size + len(text)
        hits += [(path, value) for value in wanted if stands(value, text)]
    print(
        f"{folder.name:<24}{len(headers):>9}{len(wanted):>13}{files:>7}{size / 1e6:>8.1f}"
        f"{len(hits):>7}",
        flush=True,
    )
    for path, value in hits[:20]:
        print(f"  {value!r} in {path.relative_to(scratch)}")
    return not hits


def read_headers(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield each DICOM file and the identifiers in its header, at any depth."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=False)
            values = {
                str(element.value).strip()
                for element in dataset.iterall()
                if element.keyword in KEYWORDS
                or (element.VR == "UI" and element.keyword.endswith("InstanceUID"))
            }
        except (InvalidDicomError, OSError, ValueError, NotImplementedError, KeyError):
            continue
        yield path, values


def stands(value: str, text: bytes) -> bool:
    """Return whether a value stands in a text; figures not as a part of a longer figure."""
    raw = value.encode("utf-8", "ignore")
    if value.isdecimal():
        return re.search(rb"(?<![0-9.])" + raw + rb"(?![0-9])", text) is not None
    return raw in text


def run_all(folder: Path, headers: dict[Path, set[str]], scratch: Path, *, keep: bool) -> None:
    """Run the commands a user would, their words kept in a file."""
    write_tiny_folder(scratch / "network")
    table = [(p.relative_to(folder).as_posix(), k % 2, f"P{k}") for k, p in enumerate(headers)]
    inputs = scratch / "inputs"
    inputs.mkdir()
    with (inputs / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "odd", "who"), *table])
    config = {
        "data": {"root": str(folder), "paths": "keep" if keep else "hide"},
        "backbone": {"name": f"hf:{scratch / 'network'}", "image_size": 56},
        "store": "../written/store",
        "labels": {"file": "labels.csv", "patient": "who", "headers": "ignore"},
        "tasks": {"odd": {"labels": ["odd"], "level": "image"}},
        "split": {"allow": ["duplicates", "near-duplicates"]},
        "knn": {"k": [5]},
    }
    (inputs / "config.yaml").write_text(yaml.safe_dump(config))
    (scratch / "written").mkdir()
    path = str(inputs / "config.yaml")
    with (scratch / "written/said.txt").open("wb") as said:
        for command in (
            ["plan", path],
            ["extract", path],
            ["explain", path],
            ["knn", path],
            ["report", path],
            ["fit", path, "--method", "knn", "--out", str(scratch / "written/model")],
            ["status", str(scratch / "written/store")],
            ["verify", str(scratch / "written/store")],
        ):
            subprocess.run([*RADPROBE, *command], stdout=said, stderr=said, check=False)


def written(scratch: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every file that was written but the key, as bytes, and tables as their text too."""
    for path in sorted(p for p in (scratch / "written").rglob("*") if p.is_file()):
        if path.suffix == ".key":
            continue
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += pq.read_table(path).to_pandas().to_csv().encode()
        yield path, text


if __name__ == "__main__":
    main()
