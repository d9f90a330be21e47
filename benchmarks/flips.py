"""Single-bit flips at random places of a store: each must be found, and mended.

    .venv/bin/python -m benchmarks.flips --flips 200

Half of the flips fall on a file picked at random, half on a byte picked at random over the whole
store. After each: verify must find it, --repair and one extract must give the same bits again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.tiny import write_setup
from pipeline.config.loading import load_config
from pipeline.extract import Speed, extract
from stores import FeatureStore
from stores.verify import repair, verify

HERE = Speed(device="cpu", workers=0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--flips", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(write_setup(Path(folder)))
        store = FeatureStore.open(extract(config, HERE).store)
        whole = {name: store.read(name) for name in store.arrays}
        assert verify(store.path).sound
        print(f"{sum(1 for p in store.path.rglob('*') if p.is_file())} files")
        hits, found, mended, started = Counter[str](), 0, 0, time.perf_counter()
        for number in range(args.flips):
            path = flip(store.path, rng, by_byte=number % 2 == 0)
            hits[kind(path.relative_to(store.path))] += 1
            found += not verify(store.path).sound
            repair(store.path)
            extract(config, HERE)
            after = FeatureStore.open(store.path)
            same = all(
                np.array_equal(after.read(n), v, equal_nan=v.dtype.kind == "f")
                for n, v in whole.items()
            )
            mended += same and verify(store.path).sound
        print(dict(hits))
        seconds = time.perf_counter() - started
        print(f"found {found} of {args.flips}, mended {mended} of {args.flips}, {seconds:.0f} s")
        shutil.rmtree(store.path)


def flip(root: Path, rng: random.Random, *, by_byte: bool) -> Path:
    """Flip one bit of one file and return the file."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [p.stat().st_size for p in files]
    path = rng.choices(files, sizes)[0] if by_byte else rng.choice(files)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path


def kind(where: Path) -> str:
    """Return what a file of a store is, for the count."""
    if where.parts[0] == "features.zarr":
        return "metadata" if where.name == "zarr.json" else "features"
    return {"parts": "receipts", "copies": "copies"}.get(where.parts[0], "tables and recipe")


if __name__ == "__main__":
    main()
