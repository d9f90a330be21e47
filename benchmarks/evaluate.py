"""Seconds and peak memory of the heads and statistics, beside the obvious alternative.

    python benchmarks/evaluate.py [N] [D] [--only NAME ...] [--folder DIR] [--queries Q]
                                  [--memory GB]

By default 10,000 x 768. Features are generated into a real store (float16, in DIR, kept for the
next run) and read from it into one float32 array, so that 1,000,000 x 1,024 takes 2 GB of disk and
4 GB of memory before any head. They have clusters, a falling spectrum and an offset, as CLS tokens
have, and labels that lean to every direction. Each number is of a process of its own, whose peak
memory includes the features. Alternatives that would take minutes run on a share of the work and
are scaled up; the table says which share.

With --memory, ours alone, twice: with the features in memory, and as on a machine of so many GB, a
quarter of which is less than the features, so that they lie in a scratch file. Peak memory is then
what belongs to the process (RssAnon), without the pages of the file, which the system takes back
when it needs them; what both runs said is compared.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from pipeline.annotations.units import Units
from pipeline.evaluation.heads import fewshot, knn, probe
from pipeline.evaluation.heads.contract import fit_and_predict
from pipeline.evaluation.heads.fewshot import FewShotSettings
from pipeline.evaluation.heads.knn import KnnSettings
from pipeline.evaluation.heads.probe import ProbeSettings
from pipeline.evaluation.metrics import metrics
from pipeline.evaluation.pooling import read_features
from pipeline.recipe import Architecture, Recipe
from pipeline.results import Tally
from pipeline.shared import arrays
from stores import ArraySpec, FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

Array = np.ndarray
PART, CLUSTERS, SHOTS = 4096, 500, 4
KS = (5, 10, 20)


# --- the data ------------------------------------------------------------------------------


def make_store(path: Path, n: int, d: int) -> FeatureStore:
    """Return the store of n rows, made a part at a time if it is not there."""
    if path.exists():
        return FeatureStore.open(path)
    architecture = Architecture(dim=d, depth=12, heads=d // 64)
    recipe = Recipe(architecture=architecture, weights="random:0", blocks=1)
    specs, rows = {"cls": ArraySpec((1, d), "float16")}, np.arange(n)
    store = FeatureStore.create(path, recipe.canonical(), specs, PART)
    known = {"row": rows, "frame": np.zeros(n, int), "withdrawn": np.zeros(n, bool)}
    known |= {"path": np.char.add(rows.astype(str), ".png"), "modality": np.full(n, "CR")}
    table = [
        pa.array(known[each.name], each.type) if each.name in known else pa.nulls(n, each.type)
        for each in SLICE_SCHEMA
    ]
    store.write_tables(pa.Table.from_arrays(table, schema=SLICE_SCHEMA), FILE_SCHEMA.empty_table())
    centres = np.random.default_rng(1).standard_normal((CLUSTERS, d), dtype=np.float32)
    for part in store.missing():
        rng = np.random.default_rng([2, part.index])
        arrays, m = store.empty_part(), min(part.stop, n) - part.start
        x = rng.standard_normal((m, d), dtype=np.float32) + centres[rng.integers(0, CLUSTERS, m)]
        arrays["cls"][:m, 0] = x * spectrum(d) + 1
        arrays["status"][:m] = 1
        with store.reclaim(part) as claim:
            store.write(part, claim, arrays, {"failures": []})
    return store


def spectrum(d: int) -> Array:
    return np.geomspace(1, 0.1, d).astype(np.float32)


@dataclass(frozen=True)
class Data:
    """Features (n, d), their units, and who trains, validates and tests."""

    x: Array
    units: Units
    parts: dict[str, Array]

    @property
    def known(self) -> Array:
        return np.concatenate([self.parts["train"], self.parts["val"]])


def read(store: FeatureStore, n: int, queries: int) -> Data:
    rows = np.arange(n)
    groups = np.char.add("p", (rows // 2).astype(str))
    y = np.zeros(n, np.int64)
    units = Units(y, groups, ("no", "yes"), "binary", rows.astype(str), rows, rows, Tally())
    x = read_features(store, units, "cls")
    w = np.random.default_rng(3).standard_normal(x.shape[1]).astype(np.float32) / spectrum(
        x.shape[1]
    )
    logits = np.concatenate([x[now] @ w for now in arrays.batches(n)])
    logits = 3 * (logits - logits.mean()) / logits.std()
    y[:] = np.random.default_rng(4).random(n) < 1 / (1 + np.exp(-logits))
    parts = {"test": rows[:queries], "val": rows[queries : n // 4], "train": rows[n // 4 :]}
    return Data(x, units, parts)


# --- the work: what is ours, what is the alternative, and which share of it is run ----------


def knn_ours(data: Data) -> Array:
    predicted = fit_and_predict(knn.HEAD, data.x, data.units, data.parts, KnnSettings(k=KS))
    return list(predicted.predictions)[-1].proba


def knn_other(data: Data) -> float:
    share = 1 if len(data.x) <= 100_000 else 10
    asked = data.parts["test"][: len(data.parts["test"]) // share]
    for k in KS:
        model = KNeighborsClassifier(
            k, weights=lambda distance: np.exp(-distance / 0.07), metric="cosine", algorithm="brute"
        )
        model.fit(data.x[data.known], data.units.y[data.known]).predict_proba(data.x[asked])
    return share


def ivf_ours(data: Data) -> Array:
    settings = KnnSettings(k=KS, exact_up_to=1, recall=0.95)
    predicted = fit_and_predict(knn.HEAD, data.x, data.units, data.parts, settings)
    print("#", *(note for note in predicted.notes if "inverted" in note))
    return list(predicted.predictions)[-1].proba


def ivf_other(data: Data) -> float:
    knn_ours(data)
    return 1


def grid(data: Data) -> ProbeSettings:
    if data.x.size <= 10**7:
        return ProbeSettings()
    if data.x.size <= 2 * 10**8:
        return ProbeSettings(low=-6, high=2, steps=9)
    return ProbeSettings(low=-5, high=-3, steps=3)


def probe_ours(data: Data) -> Array:
    predicted = fit_and_predict(probe.HEAD, data.x, data.units, data.parts, grid(data))
    (found,) = predicted.predictions
    print("#", grid(data).steps, "values of C,", *found.setting.items(), *predicted.notes)
    return found.proba


def probe_other(data: Data) -> float:
    settings, (train, val) = grid(data), (data.parts["train"], data.parts["val"])
    share = 1 if data.x.size <= 10**7 else 3  # the middle of every three C, and no refit
    values = (10 ** np.linspace(settings.low, settings.high, settings.steps))[share // 2 :: share]
    y, x, best = data.units.y, data.x[train], (0.0, 1.0)
    for c in values:
        model = LogisticRegression(C=c, max_iter=1000).fit(x, y[train])
        best = max(best, (roc_auc_score(y[val], model.decision_function(data.x[val])), c))
    del x
    if share == 1:
        both = data.known
        LogisticRegression(C=best[1], max_iter=1000).fit(data.x[both], y[both])
    return share


def fewshot_ours(data: Data) -> Array:
    settings = FewShotSettings(shots=(SHOTS,), episodes=600)
    predicted = fit_and_predict(fewshot.HEAD, data.x, data.units, data.parts, settings)
    (score,) = predicted.scores
    return np.array([metric.value for metric in score.metrics.values()])


def fewshot_other(data: Data) -> float:
    share, y, rng = 30, data.units.y, np.random.default_rng(0)
    for _ in range(600 // share):
        drawn = [
            np.concatenate([rng.choice(rows[y[rows] == c], k, False) for c in (0, 1)])
            for rows, k in ((data.known, SHOTS), (data.parts["test"], 15))
        ]
        support, query = (
            data.x[r] / np.linalg.norm(data.x[r], axis=1, keepdims=True) for r in drawn
        )
        NearestCentroid().fit(support, y[drawn[0]]).score(query, y[drawn[1]])
    return share


def scored(data: Data) -> tuple[Units, Array]:
    """Return a fifth of the units, as a test set, and a score of each."""
    n = len(data.x) // 5
    value = data.x[:n].mean(axis=1).astype(float) + data.units.y[:n] * 0.05
    sure = (value - value.min()) / np.ptp(value)
    return data.units.at(np.arange(n)), np.stack([1 - sure, sure], axis=1)


def bootstrap_ours(data: Data) -> Array:
    return np.array([metric.low for metric in metrics.score(*scored(data))[0].values()])


def bootstrap_other(data: Data) -> float:
    share, rng = 40, np.random.default_rng(0)
    truth, proba = scored(data)
    patient = np.unique(truth.groups, return_inverse=True)[1]
    rows = np.split(np.argsort(patient), np.cumsum(np.bincount(patient))[:-1])
    for _ in range(2000 // share):
        take = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        roc_auc_score(truth.y[take], proba[take, 1])
    return share


WORK: dict[str, tuple[str, Callable[[Data], Array], Callable[[Data], float]]] = {
    "knn": ("exact kNN, k 5 10 20 / 3 KNeighborsClassifier", knn_ours, knn_other),
    "ivf": ("inverted file, recall 0.95 / exact", ivf_ours, ivf_other),
    "probe": ("probe path, refit / cold C grid", probe_ours, probe_other),
    "fewshot": ("600 episodes, 4 shots, interval / loop, no interval", fewshot_ours, fewshot_other),
    "bootstrap": ("2,000 draws of n/5, all metrics / AUROC alone", bootstrap_ours, bootstrap_other),
}


# --- measuring -----------------------------------------------------------------------------


class Watch(threading.Thread):
    """Looks at what memory belongs to this process, again and again: peak MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            self.peak = max(self.peak, int(found[1]) / 1024 if found else 0.0)
            time.sleep(0.02)


def measured(store: Path, n: int, queries: int, name: str, side: str) -> None:
    """Print seconds (of all the work, if a share was run), the share, peak MB, seconds to read.

    side: ours, other, or a file to keep what ours said in, of whose memory the own is told.
    """
    warnings.simplefilter("ignore")
    watch = Watch()
    watch.start()
    started = time.perf_counter()
    data = read(FeatureStore.open(store), n, queries)
    reading = time.perf_counter() - started
    _, ours, other = WORK[name]
    started, share = time.perf_counter(), 1.0
    if side == "other":
        share = other(data)
    else:
        said = ours(data)
        if side != "ours":
            np.save(side, said)
    took = (time.perf_counter() - started) * share
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(took, share, peak if side in ("ours", "other") else watch.peak, reading)


def run(
    store: Path, n: int, queries: int, name: str, side: str, memory: float | None = None
) -> list[float]:
    command = [sys.executable, __file__, str(n), "--one", name, side]
    command += ["--folder", str(store), "--queries", str(queries)]
    command += ["--memory", str(memory)] if memory else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *notes, numbers = done.stdout.splitlines()
    for note in notes:
        print(f"  {note}")
    return [float(word) for word in numbers.split()]


def bounded(store: Path, n: int, d: int, queries: int, name: str, memory: float) -> None:
    """Print one head with the features in memory and in a scratch file, and how they differ."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{side}.npy" for side in ("memory", "scratch")]
        seconds, _, peak, _ = run(store, n, queries, name, files[0], 1e6)
        mapped, _, own, _ = run(store, n, queries, name, files[1], memory)
        one, two = map(np.load, files)
    print(
        f"{name:10} features {4 * n * d / 2**20:6.0f} MB: in memory {seconds:7.2f} s, peak "
        f"{peak:6.0f} MB; in a scratch file {mapped:7.2f} s, {own:6.0f} MB; largest difference "
        f"{abs(one - two).max():.1e}",
        flush=True,
    )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("n", type=int, nargs="?", default=10_000)
    words.add_argument("d", type=int, nargs="?", default=768)
    words.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    words.add_argument("--folder", type=Path)
    words.add_argument("--queries", type=int, default=2000)
    words.add_argument("--memory", type=float)
    words.add_argument("--one", nargs=2)
    given = words.parse_args()
    if given.memory:
        arrays.memory_bytes = lambda: int(given.memory * 2**30)
    if given.one:
        measured(given.folder, given.n, given.queries, *given.one)
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="evaluate-"))
    store = folder / f"store-{given.n}-{given.d}"
    make_store(store, given.n, given.d)
    print(f"{given.n:,} x {given.d}, {given.queries} queries")
    for name in given.only:
        if given.memory:
            bounded(store, given.n, given.d, given.queries, name, given.memory)
            continue
        ours, _, peak, reading = run(store, given.n, given.queries, name, "ours")
        other, share, other_peak, _ = run(store, given.n, given.queries, name, "other")
        part = f" (1/{share:.0f} run)" if share > 1 else ""
        print(
            f"{WORK[name][0]:52} {ours:8.2f} s {peak:6.0f} MB / {other:8.2f} s {other_peak:6.0f} MB"
            f"{part}: {other / ours:.1f} x   (features read in {reading:.1f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
