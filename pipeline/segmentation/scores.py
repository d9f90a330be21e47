"""How well label values fit: of each volume at its native resolution, and as the paper counts.

Dice, IoU, HD95 and NSD are MONAI's, a structure at a time. A structure that neither the mask nor
the prediction has is not scored; one that only one of them has scores 0, and has no HD95.
Dims: n units, c label values, the background first; b draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray

from pipeline.evaluation.metrics.bootstrap import IntervalRules, Scale, Values, bootstrap
from pipeline.evaluation.metrics.weighted import mean, ratio
from pipeline.results import Metric

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
METRICS = ("dice", "iou", "hd95", "nsd")
# Those that are 0 of a structure that only the mask or only the prediction has.
OVERLAPS = ("dice", "iou", "nsd")
# As the paper counts them.
PAPER_DICE = "paper_dice"
PAPER_JACCARD = "paper_jaccard"
# What resizing to the input and back alone leaves of Dice.
CEILING = "dice_ceiling"
# How long a head learned for, its choice included: the mean of several fits.
SECONDS = "fit_seconds"

SHARES = (*OVERLAPS, CEILING, PAPER_DICE, PAPER_JACCARD)
SCALES: dict[str, Scale] = {**dict.fromkeys(SHARES, "logit"), "hd95": "log"}


@dataclass(frozen=True)
class UnitScores:
    """What n units scored.

    values: metric -> (n, c - 1), NaN where undefined; confusion (n, c, c): pixels by label value in
    the mask (rows) and in the prediction, at the size of the network's input.
    """

    values: dict[str, Floats]
    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, units: Sequence[tuple[dict[str, Floats], NDArray[np.int64]]]) -> UnitScores:
        """Return the scores of units, each given as `measure` and `confusion` return them."""
        all_scores = [scores for scores, _ in units]
        values = {}
        for name in all_scores[0]:
            values[name] = np.stack([scores[name] for scores in all_scores])
        counts = [confusion for _, confusion in units]
        return cls(values, np.stack(counts))

    @classmethod
    def joined(cls, parts: Sequence[UnitScores]) -> UnitScores:
        """Return the units of all parts, one after the other."""
        values = {}
        for name in parts[0].values:
            values[name] = np.concatenate([part.values[name] for part in parts])
        counts = [part.confusion for part in parts]
        return cls(values, np.concatenate(counts))


# --- one unit ----------------------------------------------------------------------------------


def measure(
    predicted: Labels, mask: Labels, c: int, spacing: Sequence[float], tolerance: float
) -> dict[str, Floats]:
    """Return metric -> (c - 1,) of one unit, NaN where undefined.

    predicted, mask: (z, H, W) of a volume or (H, W) of an image; spacing: mm a voxel along each
    axis, ones where unknown; tolerance: of the surface Dice, in the same unit.
    """
    scores = {name: np.full(c - 1, np.nan) for name in METRICS}
    for i in range(1, c):
        of_prediction = predicted == i
        of_mask = mask == i
        match (bool(of_prediction.any()), bool(of_mask.any())):
            case (False, False):
                continue
            case (True, True):
                values = _by_monai(of_prediction, of_mask, spacing, tolerance)
            case _:
                values = dict.fromkeys(OVERLAPS, 0.0)
        for name, value in values.items():
            scores[name][i - 1] = value
    return scores


def _by_monai(
    predicted: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, float]:
    """Return every metric of one structure that both have."""
    # What lies far from both changes nothing, and costs the distances their time.
    box = _box(predicted | mask)
    y_pred = _one_of_a_batch(predicted[box])
    y = _one_of_a_batch(mask[box])
    mm = [float(value) for value in spacing]
    # The structure is the only channel: without this it would be left out as the background.
    options: dict[str, Any] = {"include_background": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI, at calls that MONAI makes
        hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, spacing=mm, **options)
        nsd = compute_surface_dice(y_pred, y, [tolerance], spacing=mm, **options)
    return {
        "dice": float(compute_dice(y_pred, y, **options)),
        "iou": float(compute_iou(y_pred, y, **options)),
        "hd95": float(hd95),
        "nsd": float(nsd),
    }


def _one_of_a_batch(structure: NDArray[np.bool_]) -> torch.Tensor:
    """Return (1, 1, ...): a batch of one, of one channel, as MONAI takes it."""
    return torch.from_numpy(np.ascontiguousarray(structure))[None, None]


def _box(structure: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box of what is set, and a margin that keeps its surface inside."""
    box = []
    for axis in range(structure.ndim):
        others = tuple(other for other in range(structure.ndim) if other != axis)
        occupied = np.flatnonzero(structure.any(axis=others))
        first = int(occupied[0])
        last = int(occupied[-1])
        box.append(slice(max(0, first - 1), last + 2))
    return tuple(box)


def dice(predicted: Labels, mask: Labels, c: int) -> Floats:
    """Return (c - 1,) Dice alone, NaN for a structure that neither has."""
    counts = confusion(predicted, mask, c).astype(np.float64)
    hits = np.diag(counts)
    of_prediction = counts.sum(axis=0)
    of_mask = counts.sum(axis=1)
    of_all = ratio(2 * hits, of_prediction + of_mask)
    return of_all[1:]


def confusion(predicted: Labels, mask: Labels, c: int) -> NDArray[np.int64]:
    """Return (c, c): pixels by label value in the mask (rows) and in the prediction."""
    # A pair of label values is a number of two digits to the base c.
    pairs = mask.astype(np.int64).ravel() * c + predicted.ravel()
    counts = np.bincount(pairs, minlength=c * c)
    return counts.reshape(c, c)


# --- all units together ------------------------------------------------------------------------


def summarise(
    scores: UnitScores,
    groups: NDArray[np.str_],
    classes: Sequence[str],
    fits: NDArray[np.int64] | None = None,
    folds: int = 1,
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all structures, and by structure, each with its 95 % interval.

    groups (n,): the patients, who are drawn with replacement; fits (n,): of several fits, the one
    that scored each unit: a unit then counts once a fit, and fits are drawn as well. folds: on how
    many the units were tested. The interval is Student's, of the patients that a structure has, on
    the scale that `SCALES` names, by the standard error of the draws. A metric of a
    structure is its mean over the units that define it; over all, the mean of those. `paper_dice`
    and `paper_jaccard` are of all pixels of all units together, at the size of the input (see
    `of_the_paper`).
    """
    structures = list(classes)[1:]
    c = len(classes)

    def statistic(weights: Floats) -> Values:
        """Return every metric of the units as weights (n, b) count them."""
        values: Values = {}
        for name, of_units in scores.values.items():
            defined = ~np.isnan(of_units)
            known = np.where(defined, of_units, 0.0)
            total = known.T @ weights
            number = defined.T.astype(float) @ weights
            values |= _by_structure(name, ratio(total, number), structures)
        pairs = scores.confusion.reshape(-1, c * c)
        counts = (pairs.T @ weights).reshape(c, c, -1)
        for name, of_paper in of_the_paper(counts).items():
            values |= _by_structure(name, of_paper, structures)
        return values

    overall: dict[str, Metric] = {}
    labels: dict[str, dict[str, Metric]] = {}
    rules = IntervalRules(
        rarest=_patients_with(scores, groups, structures),
        folds=folds,
        scales=SCALES,
        bounded=dict.fromkeys(SHARES, 0.0),
    )
    metrics = bootstrap(statistic, groups, c**2, rules, fits=fits)
    for (name, label), metric in metrics.items():
        into = labels.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, labels


def _patients_with(
    scores: UnitScores,
    groups: NDArray[np.str_],
    structures: Sequence[str],
) -> dict[str, float]:
    """Return how many patients have a Dice of each structure."""
    patients = {}
    for i, structure in enumerate(structures):
        defined = ~np.isnan(scores.values["dice"][:, i])
        patients[structure] = float(len(np.unique(groups[defined])))
    return patients


def _by_structure(name: str, values: Floats, structures: Sequence[str]) -> Values:
    """Return a metric (c - 1, b) by structure, where there are several, and their mean."""
    by_structure: Values = {(name, ""): mean(values)}
    if len(structures) > 1:
        for i, label in enumerate(structures):
            by_structure[name, label] = values[i]
    return by_structure


def of_the_paper(counts: NDArray[Any]) -> dict[str, Floats]:
    """Return the Dice and Jaccard of arXiv 2312.02366's code: (c - 1, b) of counts (c, c, b).

    Both are of the whole test set at the resized grid, background left out of the mean, and of a
    structure nobody has undefined. The Jaccard drops the pixels whose target is background first,
    so that a structure drawn over background costs nothing: it can exceed Dice / (2 - Dice).
    """
    hits = np.einsum("iib->ib", counts)[1:].astype(np.float64)
    targets = counts.sum(axis=1)[1:]
    drawn = counts.sum(axis=0)[1:]
    both = (targets + drawn).astype(np.float64)
    # The rows of structures alone: what is drawn where the target is the background is dropped.
    drawn_inside = counts[1:].sum(axis=0)[1:]
    either = (targets + drawn_inside - hits).astype(np.float64)
    return {PAPER_DICE: ratio(2 * hits, both), PAPER_JACCARD: ratio(hits, either)}
