"""Seconds and peak memory of the heads, beside the obvious alternative in the same run.

    python benchmarks/evaluate.py [N] [D]      default: 10,000 x 384, then 100,000 x 768

Features are generated: a decaying spectrum round an offset, as a ViT's CLS tokens have, and a
signal in one direction. Alternatives that would take minutes are run on a share of the work and
scaled up; the table says which share.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from pipeline.config import FewShot, Knn, Probe
from pipeline.heads import fewshot, knn, probe
from pipeline.questions import Tally, Units
from pipeline.stats import metrics

QUERIES = 2000
COLD_STARTS_UP_TO = 20_000
GRID = Probe(low=-6, high=2, steps=9)


def make(n: int, d: int) -> tuple[np.ndarray, Units, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    y = (x[:, 0] + rng.standard_normal(n) > 0).astype(np.int64)
    x *= np.linspace(1, 0.05, d, dtype=np.float32)
    x += rng.standard_normal(d).astype(np.float32)
    rows = np.arange(n)
    groups = np.char.add("p", (rows // 2).astype(str))
    units = Units(rows.astype(str), y, groups, ("no", "yes"), "binary", rows, rows, Tally())
    parts = {"test": rows[:QUERIES], "val": rows[QUERIES : n // 4], "train": rows[n // 4 :]}
    return x, units, parts


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def neighbours(x: np.ndarray, units: Units, parts: dict[str, np.ndarray]) -> tuple[float, float]:
    known, test = np.concatenate([parts["train"], parts["val"]]), parts["test"]

    def softmax(distance: np.ndarray) -> np.ndarray:
        return np.exp(-distance / 0.07)

    def alternative() -> None:
        for k in (5, 10, 20):
            model = KNeighborsClassifier(k, weights=softmax, metric="cosine", algorithm="brute")
            model.fit(x[known], units.y[known]).predict_proba(x[test])

    return seconds(lambda: knn.predict(x, units, parts, Knn(k=(5, 10, 20)))), seconds(alternative)


def probes(x: np.ndarray, units: Units, parts: dict[str, np.ndarray]) -> tuple[float, float]:
    grid = 10 ** np.linspace(GRID.low, GRID.high, GRID.steps)
    train, val = parts["train"], parts["val"]

    def alternative() -> None:
        best = 0.0, grid[0]
        for c in grid:
            model = LogisticRegression(C=c, max_iter=1000).fit(x[train], units.y[train])
            best = max(best, (roc_auc_score(units.y[val], model.predict_proba(x[val])[:, 1]), c))
        both = np.concatenate([train, val])
        LogisticRegression(C=best[1], max_iter=1000).fit(x[both], units.y[both])

    ours = seconds(lambda: probe.predict(x, units, parts, GRID))
    return ours, seconds(alternative) if len(x) <= COLD_STARTS_UP_TO else float("nan")


def episodes(x: np.ndarray, units: Units, parts: dict[str, np.ndarray]) -> tuple[float, float]:
    shots, share = 4, 30
    known = np.concatenate([parts["train"], parts["val"]])

    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def alternative() -> None:
        rng = np.random.default_rng(0)
        for _ in range(600 // share):
            support, query = (
                np.concatenate([rng.choice(rows[units.y[rows] == c], k, False) for c in (0, 1)])
                for rows, k in ((known, shots), (parts["test"], 15))
            )
            model = NearestCentroid().fit(unit[support], units.y[support])
            model.score(unit[query], units.y[query])

    settings = FewShot(shots=(shots,), episodes=600)
    return seconds(lambda: fewshot.score(x, units, parts, settings)), share * seconds(alternative)


def bootstrap(x: np.ndarray, units: Units, parts: dict[str, np.ndarray]) -> tuple[float, float]:
    share, n = 40, len(x) // 5
    y, groups = units.indicator[:n], units.groups[:n]
    sure = np.clip((x[:n, 0] - x[:n, 0].min()) / np.ptp(x[:n, 0]), 0, 1).astype(float)
    proba = np.stack([1 - sure, sure], axis=1)

    def alternative() -> None:
        rng = np.random.default_rng(0)
        patient = np.unique(groups, return_inverse=True)[1]
        rows = np.split(np.argsort(patient), np.cumsum(np.bincount(patient))[:-1])
        for _ in range(metrics.DRAWS // share):
            take = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
            roc_auc_score(y[take, 1], sure[take])

    ours = seconds(lambda: metrics.score(y, proba, groups, units.classes, units.kind))
    return ours, share * seconds(alternative)


WORK = {
    f"kNN, {QUERIES} queries, k 5 10 20 (3 x KNeighborsClassifier)": neighbours,
    "few-shot, 600 episodes (Python loop, 1/30 run)": episodes,
    "bootstrap of n/5 units, 2,000 draws, all metrics (loop of AUROC alone, 1/40 run)": bootstrap,
    f"probe, {GRID.steps} values of C (cold starts)": probes,
}


def main(sizes: list[tuple[int, int]]) -> None:
    warnings.simplefilter("ignore")
    for n, d in sizes:
        data = make(n, d)
        print(f"n = {n:,}, d = {d}: ours s, alternative s, ratio; peak MB of the process so far")
        for name, work in WORK.items():
            ours, other = work(*data)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"  {name}: {ours:.2f}  {other:.2f}  {other / ours:.1f}x  {peak:.0f}", flush=True)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    main([(given[0], given[1])] if len(given) == 2 else [(10_000, 384), (100_000, 768)])
