"""Two backbones' answers to one question, held against each other on the same test units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.benchmark.asked import Cell
from pipeline.compare import compare
from pipeline.questions import Metric, Result, Segmented
from pipeline.tables import SEGMENTATIONS
from stores.errors import LabelError


@dataclass(frozen=True)
class Paired:
    """Second less first, with its interval; p: of `test`, or None where there is none."""

    difference: Metric
    p: float | None
    test: str


def pair(
    metric: str, one: Cell, first: Result | Segmented, two: Cell, second: Result | Segmented
) -> Paired | None:
    """Return how two answers differ, or None for few-shot episodes, which share no test units.

    Classification: `compare`'s bootstrap over patients, DeLong's p. Segmentation: patients' mean
    Dice, its bootstrap and Wilcoxon's signed ranks. Raises LabelError for other test units.
    """
    if isinstance(first, Segmented) and isinstance(second, Segmented):
        return _segmented(_dice(one, first), _dice(two, second))
    if not isinstance(first, Result) or not isinstance(second, Result):
        raise LabelError("One backbone was asked for a class, the other for a segmentation.")
    if not all(_predictions(cell, each).is_file() for cell, each in ((one, first), (two, second))):
        return None
    found = compare((one.config.store, first), (two.config.store, second))
    d = next((d for d in found if d.metric == metric and not d.label), None)
    if d is None:
        return None
    # DeLong's p is of a label; of several labels, the joint difference has its interval alone.
    p = d.p if d.p is not None else _only_p([x.p for x in found if x.metric == metric])
    return Paired(d.difference, p, "" if p is None else "DeLong")


def _only_p(every: list[float | None]) -> float | None:
    known = [p for p in every if p is not None]
    return known[0] if len(known) == 1 else None


def _predictions(cell: Cell, result: Result) -> Path:
    name = f"{result.method}-{result.provenance.key[:16]}.parquet"
    return cell.config.store / "results" / name


def _dice(cell: Cell, answer: Segmented) -> NDArray[np.float64]:
    """Return each test patient's mean Dice (p,), in the order of the test units."""
    folder = cell.config.store / SEGMENTATIONS
    (path,) = folder.glob(f"*-{answer.provenance.key[:16]}.units.parquet")
    table = pq.read_table(path).to_pylist()
    patients: dict[str, list[float]] = {}
    last = table[-1]["setting"]  # of all training patients
    for row in table:
        if row["setting"] == last and row["dice"] is not None and not np.isnan(row["dice"]):
            patients.setdefault(row["patient"], []).append(row["dice"])
    return np.array([np.mean(values) for values in patients.values()])


def _segmented(one: NDArray[np.float64], two: NDArray[np.float64]) -> Paired:
    if len(one) != len(two):
        raise LabelError(
            f"Two backbones segmented other test patients: {len(one)} and {len(two)}. Embed the "
            "same collection with both."
        )
    from scipy import stats

    apart: Any = two - one
    draws = np.random.default_rng(0).integers(0, len(apart), (2000, len(apart)))
    low, high = np.quantile(apart[draws].mean(axis=1), [0.025, 0.975]).tolist()
    p = float(stats.wilcoxon(apart).pvalue) if np.any(apart) else 1.0
    return Paired(Metric(value=float(apart.mean()), low=low, high=high), p, "Wilcoxon")
