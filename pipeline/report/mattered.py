"""The slices that mattered: what heads that weigh slices heeded most in their surest answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config.heads import declared
from pipeline.evaluation.result_files import predicted_units
from pipeline.evaluation.slice_weights import most_heeded, read_slice_weights
from pipeline.report.judged import Judged
from pipeline.report.sources import Source
from pipeline.results import Result

# Units that are shown, and slices of each.
MOST_UNITS = 6
SLICES = 3


@dataclass(frozen=True)
class Heeded:
    """What an answer heeded. units: the number of each among the judged, what is said of it, and
    row and weight of its slices, those that counted most first.
    """

    title: str
    about: str
    judged: Judged
    units: tuple[tuple[int, str, list[tuple[int, float]]], ...]

    @property
    def rows(self) -> list[int]:
        """The rows of all slices that are shown."""
        return [row for _, _, slices in self.units for row, _ in slices]


def heeded_slices(source: Source) -> dict[str, list[Heeded]]:
    """Return by task what each of its answers heeded, of those that say it."""
    by_task: dict[str, list[Heeded]] = {}
    for (task, method), result in source.results.items():
        heeded = _heeded(source, method, result) if result.scores else None
        if heeded is not None:
            by_task.setdefault(task, []).append(heeded)
    return by_task


def _heeded(source: Source, method: str, result: Result) -> Heeded | None:
    table = read_slice_weights(source.store, result)
    judged = Judged.of(source, result)
    if table is None or judged is None:
        return None
    heeded = most_heeded(table, SLICES)
    ids = predicted_units(source.store.path, result).tolist()
    live = set(source.rows.tolist())
    truth = judged.truth
    # Of two classes the positive one; else whichever is likeliest, or the greatest number.
    at = judged.proba[:, 1] if truth.kind == "binary" else np.nanmax(judged.proba, axis=1)
    units: list[tuple[int, str, list[tuple[int, float]]]] = []
    for i in np.argsort(-at, kind="stable").tolist():
        slices = [each for each in heeded.get(judged.ids[i], ()) if each[0] in live]
        if slices and len(units) < MOST_UNITS:
            units.append((i, _verdict(judged, i), slices))
    title = declared(method).title
    about = (
        f"Of the {len(units)} of {len(ids)} test units with the highest numbers, the slices that "
        f"counted most (`weight`; all of a unit's add up to 1)."
    )
    return Heeded(f"Slices that mattered: {title}", about, judged, tuple(units))


def _verdict(judged: Judged, i: int) -> str:
    """Return what was said of a unit, and what is true of it."""
    truth = judged.truth
    if truth.kind == "regression":
        return f"predicted {judged.proba[i, 0]:.4g}, truly {truth.y[i]:.4g}"
    if truth.kind == "survival":
        return f"risk {judged.proba[i, 0]:.2g}, watched for {truth.y[i, 0]:.4g}"
    j = 1 if truth.kind == "binary" else int(np.nanargmax(judged.proba[i]))
    is_so = "unknown" if not truth.known[i, j] else "yes" if truth.indicator[i, j] else "no"
    return f"probability of {truth.classes[j]!r} {judged.proba[i, j]:.3g}, truly {is_so}"
