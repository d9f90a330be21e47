"""How long an unchanged collection of many files takes to be checked, and one with little new.

    .venv/bin/python -m benchmarks.recheck --files 100000

The files are empty names beside a store whose tables know them as slices: what is timed is the
walk, the comparison and the tables, as `plan` and `extract` run them, and no decoding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.tiny import write_setup
from pipeline.config.loading import load_config
from pipeline.extraction.recipes import make_recipe, open_store
from pipeline.extraction.sync import look, update_tables
from stores import FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=100_000)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_config(write_setup(folder, part_rows=1024))
        store = open_store(config, make_recipe(config)[0])
        update_tables(config, store)
        rules = store.files().schema.metadata
        slices, files = pretend(config.data.root, args.files, store.slices(), store.files())
        store.write_tables(slices, files.replace_schema_metadata(rules))
        embed(store)
        for what, change in CHANGES.items():
            change(config.data.root)
            started = time.perf_counter()
            found = look(config, store)
            seconds = time.perf_counter() - started
            print(f"{what:<28} {seconds:6.2f} s  {found.reconciled.counts}")


def pretend(root: Path, n: int, slices: pa.Table, files: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Write n files, 200 a folder, and return tables in which each is a slice."""
    rows, stats = slices.to_pylist(), files.to_pylist()
    start = 1024 * -(-len(rows) // 1024)
    for i in range(n):
        path = f"many/{i // 200:05}/{i % 200:03}.dcm"
        file = root / path
        if i % 200 == 0:
            file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        about = file.stat()
        rows.append(
            {
                **rows[0],
                "row": start + i,
                "path": path,
                "series": f"s{i // 200}",
                "instance": f"i{i}",
                "patient": f"p{i // 1000}",
                "position_mm": float(i % 200),
            }
        )
        stats.append(
            {**stats[0], "path": path, "size": 1, "mtime_ns": about.st_mtime_ns, "slices": 1}
        )
        stats[-1].update(reason=None, detail=None)
    return pa.Table.from_pylist(rows, SLICE_SCHEMA), pa.Table.from_pylist(stats, FILE_SCHEMA)


def embed(store: FeatureStore) -> None:
    """Commit every part with made-up features, so that digests and receipts are there to read."""
    rng = np.random.default_rng(0)
    for part in store.missing():
        arrays = store.empty_part()
        for name in ("cls", "mean", "file_digest", "pixel_digest"):
            arrays[name][:] = rng.integers(1, 255, arrays[name].shape)
        arrays["status"][:] = 1
        claim = store.claim(part)
        store.write(part, claim, arrays, {"failures": []})
        claim.release()


def one_new(root: Path) -> None:
    (root / "cxr/new.txt").write_text("no image")


def removed(root: Path) -> None:
    for path in (root / "many/00001").iterdir():
        path.unlink()


CHANGES = {
    "first look (caches cold)": lambda root: None,
    "unchanged": lambda root: None,
    "a file that is no image": one_new,
    "a series removed": removed,
}


if __name__ == "__main__":
    main()
