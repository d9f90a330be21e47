"""Heads fitted and scored: one fit a fold and a draw of training patients, all scored together.

A trial is one setting of a head. It has one draw of training patients, all of them; or, where few
are to be learned from, several draws. Each draw is fitted on every fold. Dims: n units scored,
S side of the network's input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.segmentation import Segment
from pipeline.evaluation.scoring import interval_notes
from pipeline.results import Metric, Score
from pipeline.segmentation import heads
from pipeline.segmentation.cases import SegmentationCases
from pipeline.segmentation.contracts import FittedHead, Parts, Rows
from pipeline.segmentation.geometry import Labels
from pipeline.segmentation.predictions import label_table, unit_table
from pipeline.segmentation.scores import (
    CEILING,
    SECONDS,
    UnitScores,
    confusion,
    dice,
    measure,
    summarise,
)
from pipeline.segmentation.units import Unit, native_labels, native_mask
from stores.errors import LabelError

# Fits a head on train and val (rows) of a fold, by the fold's number.
Fit = Callable[[int, Parts], FittedHead]
Draw = Sequence[Parts]  # units of train, val and test, a fold each


@dataclass(frozen=True)
class Trial:
    """What one setting of a head gave: its score, and tables of its units and predictions."""

    score: Score
    units: pa.Table
    predicted: pa.Table
    notes: list[str]


# --- the trials of a head ------------------------------------------------------------------------


def head_trials(
    cases: SegmentationCases,
    settings: Segment,
    device: str,
    keep: Callable[[FittedHead], object] | None = None,
) -> Iterator[Trial]:
    """Yield a trial for each number of training patients in `shots`, and one with all of them.

    keep: called with each head that learnt from all of them, a fold after the other.
    """

    def fit(of_trial: Segment, fold: int, parts: Parts) -> FittedHead:
        return heads.fit(cases.source, parts, of_trial, device=device)

    def fit_on_all(fold: int, parts: Parts) -> FittedHead:
        head = fit(settings, fold, parts)
        if keep is not None:
            keep(head)
        return head

    folds = cases.task_cases.folds
    # Few patients are never trained again on val, which would outnumber them.
    few = settings.model_copy(update={"refit": "none"})
    patients = [_patients(cases, fold["train"]) for fold in folds]
    fewest = min(len(each) for each in patients)
    for shots in settings.shots:
        if shots >= fewest:  # that is the trial with all of them
            continue
        draws = [_few_patients(cases, folds, shots, i) for i in range(settings.draws)]
        setting = {"patients": float(shots), "draws": float(settings.draws)}
        yield trial(cases, functools.partial(fit, few), draws, setting)
    yield trial(cases, fit_on_all, [folds])


def _patients(cases: SegmentationCases, units: Rows) -> NDArray[np.str_]:
    """Return the patients of some units, in the order of their first units."""
    groups = cases.task_cases.units.groups[units]
    patients, first = np.unique(groups, return_index=True)
    return patients[np.argsort(first)]


def _few_patients(cases: SegmentationCases, folds: Draw, shots: int, draw: int) -> Draw:
    """Return the folds with the units of `shots` training patients each.

    A draw is an order of patients, whose first few are taken: more are those and others.
    """
    fewer: list[Parts] = []
    for fold in folds:
        # By the order of their units, not by their names, which differ from store to store.
        train = fold["train"]
        patients = _patients(cases, train)
        rng = np.random.default_rng((cases.config.split.seed, draw))
        order = rng.permutation(len(patients))
        chosen = patients[order[:shots]]
        of_chosen = np.isin(cases.task_cases.units.groups[train], chosen)
        fewer.append({**fold, "train": train[of_chosen]})
    return fewer


def trial(
    cases: SegmentationCases,
    fit: Fit,
    draws: Sequence[Draw],
    few: Mapping[str, float] | None = None,
) -> Trial:
    """Fit once for each draw of training patients, and score all fits together.

    few: how many patients and draws, where not all patients are learned from. Raises LabelError
    where no test unit can be read any more.
    """
    fits = [_fit_folds(cases, fit, draw) for draw in draws]
    scores = UnitScores.joined([each.scores for each in fits])
    order = np.concatenate([each.order for each in fits])
    draw = np.repeat(np.arange(len(fits)), [len(each.order) for each in fits])
    groups = cases.task_cases.units.groups[order]
    classes = cases.masks.classes
    several = draw if len(fits) > 1 else None
    overall, labels = summarise(scores, groups, classes, several, folds=len(draws[0]))
    without = interval_notes(overall)
    overall[SECONDS] = Metric(value=float(np.mean([each.seconds for each in fits])))
    first = fits[0]
    setting = dict(few or {})
    if len(fits) == 1:
        setting |= first.setting
    notes = _undefined(scores, classes) + without
    if few:
        notes = [f"{few['patients']:.0f} patients to learn from: {note}" for note in notes]
    else:
        notes = [*first.notes, *notes]
    return Trial(
        score=Score(setting=setting, metrics=overall, labels=labels),
        units=unit_table(cases, order, draw, scores, setting),
        predicted=label_table(first.predicted),
        notes=notes,
    )


# --- one fit a fold ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FitScores:
    """What the fits of all folds predicted on their test units, and how well.

    order (n,): the units; predicted: rows with their label values (S, S); setting: what was chosen,
    where there is one fold.
    """

    order: Rows
    scores: UnitScores
    predicted: list[tuple[int, Labels]]
    setting: dict[str, float]
    notes: list[str]
    seconds: float


def _fit_folds(cases: SegmentationCases, fit: Fit, folds: Draw) -> _FitScores:
    """Fit and score one head for each fold of a split."""
    order: list[int] = []
    scores = []
    predicted: list[tuple[int, Labels]] = []
    notes: list[str] = []
    setting: dict[str, float] = {}
    seconds = 0.0
    for i, fold in enumerate(folds):
        # Of test a head sees nothing before it is fitted.
        rows: Parts = {part: cases.rows_of(fold[part]) for part in ("train", "val")}
        head = fit(i, rows)
        seconds += head.seconds
        if len(folds) == 1:
            notes += head.notes
            setting = dict(head.setting)
        else:
            notes += [f"fold {i}: {note}" for note in head.notes]
        of_fold = dict(_scored_units(cases, fold["test"], head, predicted))
        # By their numbers, not as their rows happened to be complete: patients are drawn by it.
        for number in sorted(of_fold):
            order.append(number)
            scores.append(of_fold[number])
    if not order:
        raise LabelError(f"No test unit of {cases.task_cases.name!r} can be read any more.")
    return _FitScores(
        np.array(order, np.int64), UnitScores.of(scores), predicted, setting, notes, seconds
    )


def _scored_units(
    cases: SegmentationCases,
    units: Rows,
    head: FittedHead,
    predicted: list[tuple[int, Labels]],
) -> Iterator[tuple[int, tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]]]:
    """Yield each test unit with what it scored; adds its rows and label values to `predicted`."""
    for number, labels in _predict_units(cases, units, head):
        unit = cases.units[number]
        yield number, score_unit(cases, unit, labels)
        predicted += zip(unit.rows, labels, strict=True)


def _predict_units(
    cases: SegmentationCases, units: Rows, head: FittedHead
) -> Iterator[tuple[int, list[Labels]]]:
    """Yield each test unit with the label values (S, S) of its slices, once all are there.

    A unit of which a slice cannot be read is left out: the head does not yield that slice.
    """
    unit_of = {}
    for number in units.tolist():
        for row in cases.units[number].rows:
            unit_of[row] = number
    # Slices of a unit need not follow each other: those that wait for the others.
    incomplete: dict[int, dict[int, Labels]] = {}
    for row, labels in head.predict(cases.source, cases.rows_of(units)):
        number = unit_of[row]
        by_row = incomplete.setdefault(number, {})
        by_row[row] = labels
        rows = cases.units[number].rows
        if len(by_row) == len(rows):
            yield number, [by_row[each] for each in rows]
            del incomplete[number]


def score_unit(
    cases: SegmentationCases, unit: Unit, predicted: Sequence[Labels]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Return a unit's metrics, and its confusion at the size of the input."""
    masks = cases.masks
    c = len(masks.classes)
    mask = native_mask(masks, unit)
    placements = [masks.placement(row) for row in unit.rows]
    at_native = native_labels(unit, predicted, placements)
    tolerance = cases.mask_settings.tolerance
    scores = measure(at_native, mask, c, unit.spacing, tolerance)
    # The mask itself, through the geometry of the input and back: no head could do better.
    size = cases.source.image_size
    at_input = [masks.at_input(row, size) for row in unit.rows]
    through_input = native_labels(unit, at_input, placements)
    scores[CEILING] = dice(through_input, mask, c)
    counts = np.zeros((c, c), np.int64)
    for labels, true in zip(predicted, at_input, strict=True):
        counts += confusion(labels, true, c)
    return scores, counts


def _undefined(scores: UnitScores, classes: Sequence[str]) -> list[str]:
    """Return a note for each structure that some scores are not defined of, and how often."""
    notes = []
    for i, structure in enumerate(classes[1:]):
        of_dice = scores.values["dice"][:, i]
        of_hd95 = scores.values["hd95"][:, i]
        nowhere = np.isnan(of_dice)
        missed = np.isnan(of_hd95) & ~nowhere
        if missed.any():
            notes.append(
                f"{structure}: {missed.sum()} of {len(of_dice)} times only the mask or only the "
                "head had it, which counts 0 in Dice, IoU and NSD and is left out of HD95"
            )
        if nowhere.any():
            notes.append(
                f"{structure}: {nowhere.sum()} of {len(of_dice)} times neither the mask nor the "
                "head had it, which is not scored"
            )
    return notes
