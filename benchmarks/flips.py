"""Single-bit flips at random places of a store and its models: none changes a number.

    .venv/bin/python -m benchmarks.flips --flips 200

A third of the flips fall on a byte picked at random over the whole store, its answers, their
predictions, splits, tables and tuned networks among it, a third on a file of it picked at random,
and a third on a file of its models: of a probe, of masks, and of a tuned network. After each, store
and models are used as if nothing had been: features are read, every task is answered, answers are
compared and reported, models are fitted, and asked about the store and new images. What comes is as
it was, or an error that says what to do; a number that is another is counted as changed. Verify
must find a flip in the store, and --repair, one extract and one evaluate must give the same again;
a model that has one is refused.
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
from pipeline.evaluation.compare import compare_stores
from pipeline.evaluation.result_files import filed, predictions_path, read_predictions
from pipeline.extract import Speed, extract
from pipeline.fitted.draw import draw
from pipeline.fitted.kinds import fit_model, load_model
from pipeline.fitted.model import Model
from pipeline.fitted.predict import predictions
from pipeline.fitted.sources import FolderOptions
from pipeline.report.sources import open_sources
from pipeline.report.tables import lines_of
from stores import FeatureStore
from stores.errors import RadprobeError
from stores.verify import repair, verify

HERE = Speed(device="cpu", workers=0)
METHODS: tuple[Method, ...] = ("knn", "probe")
REFUSED = "refused"
# The models, by the names of their folders: the task and the method of each.
MODELS = {"probe": ("mass", "probe"), "masks": ("chest", "knn"), "tuned": ("mass", "norm")}
# A folder of new images, for the tuned network, which sees no features of the store.
IMAGES = "new"
QUESTIONS: dict[str, Any] = {
    "outputs": {"part_rows": 32, "keep": ["cls", "mean", "patch"]},
    "labels": {"file": "collection/labels.csv", "key": "path", "patient": "patient_id"},
    "tasks": {"mass": {"labels": ["mass"], "level": "patient", "modality": ["CT"]}},
    "split": {"kind": "kfold", "folds": 3},
    "knn": {"k": [3]},
    "probe": {"steps": 5},
    "masks": {
        "chest": {
            "root": "collection/masks",
            "files": {"cxr/*": "cxr/{stem}.png"},
            "values": {1: "right lung", 2: "left lung"},
        }
    },
    "segment": {"knn": {"method": "knn"}},
    "norm": {"epochs": 1, "slices": 1},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--flips", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = load_config(write_setup(place, patients=24, **QUESTIONS))
        store = FeatureStore.open(extract(config, HERE).store)
        first = next((place / "collection/ct").iterdir())
        shutil.copytree(first, place / IMAGES) if first.is_dir() else _copy(first, place / IMAGES)
        for name, (task, method) in MODELS.items():
            fit_model(config, place / "models" / name, task=task, method=method)
        shutil.copytree(place / "models", place / "sound")
        used(config)  # what is answered for the first time is on the page from now on
        before = used(config)
        assert REFUSED not in before.values(), before
        assert verify(store.path).sound
        print(f"{sum(1 for p in store.path.rglob('*') if p.is_file())} files")
        hits = Counter[str]()
        outcomes = Counter[str]()
        started = time.perf_counter()
        for number in range(args.flips):
            of_model = number % 3 == 2
            root = place / "models" if of_model else store.path
            path = flip(root, rng, by_byte=number % 3 == 0)
            where = path.relative_to(root)
            hits["models" if of_model else kind(where)] += 1
            # Found first: an answer that is computed again mends the flip in its file.
            outcomes["found"] += is_refused(path) if of_model else not verify(store.path).sound
            now = used(config)
            changed = [what for what, value in now.items() if differs(value, before[what])]
            if changed:
                print(f"CHANGED after a flip in {where}: {changed}", flush=True)
            outcomes["changed"] += bool(changed)
            if of_model:  # nobody can mend it: it is copied anew, or fitted again
                shutil.rmtree(place / "models")
                shutil.copytree(place / "sound", place / "models")
            repair(store.path)
            extract(config, HERE)
            after = used(config)
            same = all(np.array_equal(after[what], value) for what, value in before.items())
            outcomes["mended"] += same and verify(store.path).sound
            seconds = time.perf_counter() - started
            # After each, since whoever runs out of time wants to know of those that were tried.
            print(
                f"of {number + 1}: numbers changed {outcomes['changed']}, "
                f"found {outcomes['found']}, mended {outcomes['mended']}, {seconds:.0f} s",
                flush=True,
            )
        print(dict(hits))
        shutil.rmtree(store.path)


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(file, folder)


def used(config: Config) -> dict[str, Any]:
    """Return what store and models give their users, by what it is: numbers, or REFUSED."""
    path = config.store
    outcomes = {"features": attempt(lambda: features(path))}
    for method in METHODS:
        outcomes[method] = attempt(functools.partial(answered, config, method))
        outcomes[f"{method} predicted"] = attempt(functools.partial(predicted, path, method))
    outcomes["compared"] = attempt(lambda: compared(path))
    outcomes["reported"] = attempt(lambda: reported(path))
    for name, (task, method) in MODELS.items():
        model = path.parent / "models" / name
        outcomes[f"model {name}"] = attempt(functools.partial(asked, model, config))
        outcomes[f"fit {name}"] = attempt(functools.partial(fitted, config, task, method))
    return outcomes


def compared(path: Path) -> str:
    """Return how the methods differ on every task."""
    differences = []
    for _, of_task in compare_stores(path, path, METHODS):
        differences += [each.model_dump_json() for each in of_task]
    return "".join(differences)


def reported(path: Path) -> set[str]:
    """Return the lines of a report's table, but for how long training took.

    A damaged answer is left out of it, and said.
    """
    lines = lines_of(open_sources([path]))
    for line in lines:
        line.metrics.pop("fit_seconds", None)
    return {str(line) for line in lines}


def asked(path: Path, config: Config) -> set[str] | set[bytes]:
    """Return what a model says of each unit: of the store, or of new images what they show.

    Units of a damaged part are left out, and counted.
    """
    model = load_model(path)
    images = config.store.parent / IMAGES
    if isinstance(model, Model):
        # A tuned network has features of its own. Names are by a key that is made each time.
        table = predictions(model, images if model.record.tuned else config.store)
        rows = table.drop_columns(["unit", "path", "patient"]).to_pylist()
        return {str({name: _rounded(value) for name, value in row.items()}) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks"
        draw(model, config.store.parent / "config.yaml", out, FolderOptions(speed=HERE))
        return {path.read_bytes() for path in out.rglob("*.png")}


def _rounded(value: Any) -> Any:
    """Return a number without its last digits, which depend on how many units are asked at once."""
    return round(value, 9) if isinstance(value, float) else value


def fitted(config: Config, task: str, method: Method) -> str:
    """Return the files of a model that is fitted now, but for its record and card, which tell when.

    By their digests, and how far the model is from its answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = fit_model(config, Path(folder) / "model", task=task, method=method)
        record = model.record
        files = {name: digest for name, digest in record.files.items() if name != "card.md"}
        return f"{sorted(files.items())} {record.difference}"


def is_refused(path: Path) -> bool:
    """Return whether the model that a file is of is not loaded."""
    name = next(each for each in path.parents if each.parent.name == "models")
    return attempt(lambda: load_model(name)) is REFUSED


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
    if isinstance(value, set):
        return not value <= before
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
