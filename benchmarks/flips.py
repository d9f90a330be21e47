"""Single-bit flips at random places of a store: none changes a number, each is found and mended.

    .venv/bin/python -m benchmarks.flips --flips 200

Half of the flips fall on a file picked at random, half on a byte picked at random over the whole
store, its answers, their predictions, splits and tables among it. After each the store is used as
if nothing had been: features are read, every task is answered, predictions are read. What comes is
as it was, or an error that says what to do; a number that is another is counted as changed. Verify
must find the flip, and --repair, one extract and one evaluate must give the same again.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tiny import write_setup
from pipeline.config.loading import load_config
from pipeline.config.methods import Method
from pipeline.config.root import Config
from pipeline.evaluate import evaluate
from pipeline.evaluation.result_files import filed, predictions_path, read_predictions
from pipeline.extract import Speed, extract
from stores import FeatureStore
from stores.errors import RadprobeError
from stores.verify import repair, verify

HERE = Speed(device="cpu", workers=0)
METHODS: tuple[Method, ...] = ("knn", "probe")
REFUSED = "refused"
QUESTIONS: dict[str, Any] = {
    "labels": {"file": "collection/labels.csv", "key": "path", "patient": "patient_id"},
    "tasks": {"mass": {"labels": ["mass"], "level": "patient", "modality": ["CT"]}},
    "split": {"kind": "kfold", "folds": 3},
    "knn": {"k": [3]},
    "probe": {"steps": 5},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--flips", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(write_setup(Path(folder), **QUESTIONS))
        store = FeatureStore.open(extract(config, HERE).store)
        before = used(config)
        assert verify(store.path).sound
        print(f"{sum(1 for p in store.path.rglob('*') if p.is_file())} files")
        hits = Counter[str]()
        outcomes = Counter[str]()
        started = time.perf_counter()
        for number in range(args.flips):
            path = flip(store.path, rng, by_byte=number % 2 == 0)
            where = path.relative_to(store.path)
            hits[kind(where)] += 1
            # Found first: an answer that is computed again mends the flip in its file.
            outcomes["found"] += not verify(store.path).sound
            changed = [what for what, value in used(config).items() if differs(value, before[what])]
            if changed:
                print(f"CHANGED after a flip in {where}: {changed}", flush=True)
            outcomes["changed"] += bool(changed)
            repair(store.path)
            extract(config, HERE)
            after = used(config)
            same = all(np.array_equal(after[what], value) for what, value in before.items())
            outcomes["mended"] += same and verify(store.path).sound
        print(dict(hits))
        seconds = time.perf_counter() - started
        print(
            f"of {args.flips}: numbers changed {outcomes['changed']}, found {outcomes['found']}, "
            f"mended {outcomes['mended']}, {seconds:.0f} s"
        )
        shutil.rmtree(store.path)


def used(config: Config) -> dict[str, Any]:
    """Return what the store gives its users, by what it is: numbers, or that it is refused."""
    path = config.store
    outcomes = {"features": attempt(lambda: features(path))}
    for method in METHODS:
        outcomes[method] = attempt(functools.partial(answered, config, method))
        outcomes[f"{method} predicted"] = attempt(functools.partial(predicted, path, method))
    return outcomes


def features(path: Path) -> bytes:
    """Return every feature of a store; raises where a row has none."""
    store = FeatureStore.open(path)
    rows = store.live_rows()
    return b"".join(store.read(name, rows).tobytes() for name in sorted(store.arrays))


def answered(config: Config, method: Method) -> str:
    """Return the scores of every task by a method."""
    results = evaluate(config, (method,))
    return "".join(score.model_dump_json() for result in results for score in result.scores)


def predicted(path: Path, method: Method) -> bytes:
    """Return the probabilities behind the answers of a method."""
    values = []
    for _, result in filed(path):
        if result.method == method and predictions_path(path, result).is_file():
            values.append(read_predictions(path, result, 0)[1].tobytes())
    return b"".join(sorted(values))


def attempt(use: Callable[[], Any]) -> Any:
    """Return what a use of the store gives; REFUSED where it raises an error of ours."""
    try:
        return use()
    except RadprobeError:
        return REFUSED


def differs(value: Any, before: Any) -> bool:
    """Return whether a use gave a number, and another than before."""
    return value is not REFUSED and bool(value != before)


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
    if len(where.parts) == 1:
        return "tables and recipe"
    return {"parts": "receipts"}.get(where.parts[0], where.parts[0])


if __name__ == "__main__":
    main()
