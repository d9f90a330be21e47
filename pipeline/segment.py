"""FLOW 2, segmentation: masks + split + cached patch tokens -> head -> scores. Runs no backbone.

An answer is a file named by all it depends on, as those of `evaluate` are: the head and its
settings, the masks by content, the split, the store's fingerprint. What a head predicts on the test
units is filed beside it, so that pictures and files of it need no second fit.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.config.segmentation import Segment
from pipeline.evaluation.result_files import (
    MASKS,
    SEGMENTATIONS,
    UNITS,
    Computed,
    find_or_compute,
    publish,
    read_answer,
)
from pipeline.results import Metric, Score, Segmented, Tuned
from pipeline.segmentation.cases import CONTRACT, Asked, Progress, native
from pipeline.segmentation.predictions import Labels2D, _counts, _label_table, _unit_table
from pipeline.segmentation.sources import Unit, native_mask
from stores.errors import ConfigError, LabelError

if TYPE_CHECKING:
    from pipeline.segmentation.contracts import Fitted, Parts
    from pipeline.segmentation.scores import Measured

LIBRARIES = ("radprobe", "numpy", "torch", "monai")
# Fits a head on train and val of a turn (rows), by the turn's number.
Fit = Callable[[int, "Parts"], "Fitted"]


def segment(config: Config, *, progress: Progress | None = None) -> list[Segmented]:
    """Answer for all masks of a config by every head, from `segmentations/` where nothing changed.

    Raises ConfigError where there is nothing to ask, StoreNotFoundError, or LabelError.
    """
    if not config.segment or not config.masks:
        raise ConfigError(
            "There is nothing to segment: the config must have `masks` (a name for what is to be "
            "segmented, with where its masks are) and `segment` (a name for each head)."
        )
    answers: list[Segmented] = []
    for task in config.masks:
        asked = Asked.of(config, task, progress)
        for head in config.segment:
            if progress:
                progress(f"{task}: {head}", len(answers), len(config.masks) * len(config.segment))
            answers.append(answer(asked, head, functools.partial(_heads, asked, head)))
    publish(config.store, answers)
    return answers


def on_file(config: Config, heads: Iterable[str] | None = None) -> list[Segmented]:
    """Return those answers that `segment` would find; computes none. Raises as `segment` does.

    heads: by name, those of the config if not given; or methods that tune the network.
    """
    wanted = config.segment if heads is None else heads
    found: list[Segmented | None] = []
    # To know an answer's name, masks are looked at: not where there is none to be named.
    if any((config.store / SEGMENTATIONS).glob("*.json")):
        for task in config.masks:
            asked = Asked.of(config, task)
            if asked.cases.is_split:
                found += [read_answer(asked.path(head), Segmented) for head in wanted]
    return [answer for answer in found if answer is not None]


def answer(
    asked: Asked,
    head: str,
    compute: Callable[[Sequence[Parts]], tuple[list[Trial], tuple[Tuned, ...]]],
) -> Segmented:
    """Return the answer that is on file, or compute it and file it.

    compute: turns of the split -> trials, and what was tuned for them.
    """
    path = functools.partial(asked.path, head)
    return find_or_compute(asked.cases, path, Segmented, lambda: _computed(asked, head, compute))


def _computed(
    asked: Asked,
    head: str,
    compute: Callable[[Sequence[Parts]], tuple[list[Trial], tuple[Tuned, ...]]],
) -> Computed[Segmented]:
    """Return a head's answer, with the tables of its predictions and of its units."""
    turns = asked.cases.folds
    started = time.perf_counter()
    trials, tuned = compute(turns)
    settings = asked.settings(head)
    notes = [*asked.cases.notes, *_distances(asked), *(n for t in trials for n in t.notes)]
    answer = Segmented(
        task=asked.cases.name,
        head=head,
        method=settings.method if isinstance(settings, Segment) else head,
        classes=asked.kept.classes,
        level="volume" if asked.cases.task.level == "series" else "image",
        settings=settings.model_dump(mode="json"),
        counts=_counts(asked, turns),
        tally=asked.cases.units.tally,
        scores=tuple(trial.score for trial in trials),
        notes=tuple(dict.fromkeys(notes)),
        provenance=asked.cases.provenance(asked.key(head), CONTRACT, asked.kept.digest, LIBRARIES),
        seconds=time.perf_counter() - started,
        tuned=tuned,
    )
    tables = {
        MASKS: trials[-1].predicted,
        UNITS: pa.concat_tables([trial.units for trial in trials]),
    }
    return Computed(answer, tables)


@dataclass(frozen=True)
class Trial:
    """What one setting of a head gave: its score, and tables of its units and predictions."""

    score: Score
    units: pa.Table
    predicted: pa.Table
    notes: list[str]


@dataclass(frozen=True)
class _Fits:
    """What one fit predicted on the test units of all turns, and how well.

    order (n,): the units; setting: what it chose, where there is one turn.
    """

    order: NDArray[np.int64]
    measured: Measured
    drawn: list[tuple[int, Labels2D]]
    setting: dict[str, float]
    notes: list[str]
    seconds: float


def _heads(
    asked: Asked, head: str, turns: Sequence[Parts]
) -> tuple[list[Trial], tuple[Tuned, ...]]:
    asked.source.tokens(asked.cases.units.rows[:1])  # there are tokens: said before hours of work
    return list(_trials(asked, asked.config.segment[head], turns)), ()


def _trials(asked: Asked, settings: Segment, turns: Sequence[Parts]) -> Iterator[Trial]:
    """Yield a trial for each number of training patients asked, and one with all of them."""
    from pipeline.segmentation import heads

    def fit(own: Segment, _: int, parts: Parts) -> Fitted:
        return heads.fit(asked.source, parts, own)

    few = settings.model_copy(update={"refit": "none"})
    groups = asked.cases.units.groups
    most = min(len(np.unique(groups[turn["train"]])) for turn in turns)
    for shots in (shots for shots in settings.shots if shots < most):
        draws = [[_few(asked, turn, shots, i) for turn in turns] for i in range(settings.draws)]
        said = {"patients": float(shots), "draws": float(settings.draws)}
        yield trial(asked, functools.partial(fit, few), draws, said)
    yield trial(asked, functools.partial(fit, settings), [turns])


def _few(asked: Asked, turn: Parts, shots: int, draw: int) -> Parts:
    """Return a turn with the units of `shots` training patients.

    A draw is an order of patients, whose first few are taken: more are those and others.
    """
    groups = asked.cases.units.groups[turn["train"]]
    patients, first = np.unique(groups, return_index=True)
    patients = patients[np.argsort(first)]  # by their order, not by their names
    order = np.random.default_rng((asked.config.split.seed, draw)).permutation(len(patients))
    return {**turn, "train": turn["train"][np.isin(groups, patients[order[:shots]])]}


def trial(
    asked: Asked,
    fit: Fit,
    draws: Sequence[Sequence[Parts]],
    said: dict[str, float] | None = None,
) -> Trial:
    """Fit once for each draw of training patients, and score all fits together."""
    from pipeline.segmentation.scores import SECONDS, Measured, summarise

    said = said or {}
    fits = [_fitted(asked, fit, turns) for turns in draws]
    measured = Measured.joined([fit.measured for fit in fits])
    order = np.concatenate([fit.order for fit in fits])
    of = np.repeat(np.arange(len(fits)), [len(fit.order) for fit in fits])
    groups = asked.cases.units.groups[order]
    joint, labels = summarise(measured, groups, asked.kept.classes, of if len(fits) > 1 else None)
    joint[SECONDS] = Metric(value=float(np.mean([fit.seconds for fit in fits])))
    setting = said | (fits[0].setting if len(fits) == 1 else {})
    few = f"{said['patients']:.0f} patients to learn from: " if said else ""
    notes = [] if said else [*fits[0].notes]
    return Trial(
        Score(setting=setting, metrics=joint, labels=labels),
        _unit_table(asked, order, of, measured, setting),
        _label_table(fits[0].drawn),
        notes + [f"{few}{note}" for note in _undefined(measured, asked.kept.classes)],
    )


def _fitted(asked: Asked, fit: Fit, turns: Sequence[Parts]) -> _Fits:
    """Fit and score one head for each turn of a split."""
    from pipeline.segmentation.scores import Measured

    marks: list[tuple[int, Any]] = []
    drawn: list[tuple[int, Labels2D]] = []
    notes: list[str] = []
    setting: dict[str, float] = {}
    seconds = 0.0
    for i, turn in enumerate(turns):
        parts: Parts = {part: asked.rows_of(which) for part, which in turn.items()}
        fitted = fit(i, {"train": parts["train"], "val": parts["val"]})
        said = f"fold {i}: " if len(turns) > 1 else ""
        notes += [f"{said}{note}" for note in fitted.notes]
        setting = dict(fitted.setting) if len(turns) == 1 else {}
        seconds += fitted.seconds
        for unit, labels in _by_unit(asked, turn["test"], fitted):
            marks.append((unit, _marks(asked, asked.units[unit], labels)))
            drawn += zip(asked.units[unit].rows, labels, strict=True)
    if not marks:
        raise LabelError(f"No test unit of {asked.cases.name!r} can be read any more.")
    order = np.array([unit for unit, _ in marks], np.int64)
    return _Fits(order, Measured.of([mark for _, mark in marks]), drawn, setting, notes, seconds)


def _by_unit(
    asked: Asked, which: NDArray[np.int64], fitted: Fitted
) -> Iterator[tuple[int, list[Labels2D]]]:
    """Yield each test unit with the label values (S, S) of its slices, once all are there."""
    units = asked.cases.units
    rows = asked.rows_of(which)
    unit_of = dict(zip(units.rows.tolist(), units.unit.tolist(), strict=True))
    open_: dict[int, dict[int, Labels2D]] = {}
    for row, labels in fitted.predict(asked.source, rows):
        unit = unit_of[int(row)]
        got = open_.setdefault(unit, {})
        got[int(row)] = labels
        if len(got) == len(asked.units[unit].rows):
            yield unit, [got[each] for each in asked.units[unit].rows]
            del open_[unit]


def _marks(
    asked: Asked, unit: Unit, predicted: Sequence[Labels2D]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Return a unit's metrics, and its confusion at the size of the input."""
    from pipeline.segmentation import scores

    c, mask = len(asked.kept.classes), native_mask(asked.kept, unit)
    at_input = [asked.kept.at_input(row, asked.source.image_size) for row in unit.rows]
    tolerance = asked.masks.tolerance
    found = scores.measure(native(asked.kept, unit, predicted), mask, c, unit.spacing, tolerance)
    found[scores.CEILING] = scores.dice(native(asked.kept, unit, at_input), mask, c)
    counts = sum(scores.confusion(p, m, c) for p, m in zip(predicted, at_input, strict=True))
    return found, np.asarray(counts)


def _undefined(measured: Measured, classes: Sequence[str]) -> list[str]:
    """Return a note for each structure that some scores are not defined of, and how often."""
    notes = []
    for i, structure in enumerate(classes[1:]):
        dice, hd95 = measured.values["dice"][:, i], measured.values["hd95"][:, i]
        nowhere, missed = np.isnan(dice), np.isnan(hd95) & ~np.isnan(dice)
        if missed.any():
            notes.append(
                f"{structure}: {missed.sum()} of {len(dice)} times only the mask or only the head "
                "had it, which counts 0 in Dice, IoU and NSD and is left out of HD95"
            )
        if nowhere.any():
            notes.append(
                f"{structure}: {nowhere.sum()} of {len(dice)} times neither the mask nor the head "
                "had it, which is not scored"
            )
    return notes


def _distances(asked: Asked) -> list[str]:
    """Return a note where HD95 and the tolerance of NSD are no millimetres."""
    pixels = sum(not unit.in_mm for unit in asked.units)
    if not pixels:
        return []
    some = "" if pixels == len(asked.units) else f" of {pixels} of {len(asked.units)} units"
    return [f"HD95 and the tolerance of NSD{some} are in pixels: the images name no spacing"]
