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
from numpy.typing import NDArray

from pipeline.evaluation.metrics.bootstrap import Values, bootstrap
from pipeline.evaluation.metrics.weighted import mean, ratio
from pipeline.results import Metric

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
METRICS = ("dice", "iou", "hd95", "nsd")
# The paper's, named, and what resizing alone leaves of Dice.
PAPER_DICE, PAPER_JACCARD, CEILING = "paper_dice", "paper_jaccard", "dice_ceiling"
# How long a head learned for, its choice included: the mean of several fits.
SECONDS = "fit_seconds"


@dataclass(frozen=True)
class Measured:
    """What n units scored.

    values: metric -> (n, c - 1), NaN where undefined; confusion (n, c, c): pixels by label value in
    the mask (rows) and in the prediction, at the size of the network's input.
    """

    values: dict[str, Floats]
    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, units: Sequence[tuple[dict[str, Floats], NDArray[np.int64]]]) -> Measured:
        """Gather what `measure` and `confusion` said of each unit."""
        values = {
            name: np.stack([each[name] for each, _ in units])
            for name in (units[0][0] if units else ())
        }
        return cls(values, np.stack([counts for _, counts in units]))

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Return the units of all parts, one after the other."""
        values = {
            name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values
        }
        return cls(values, np.concatenate([part.confusion for part in parts]))


def measure(
    predicted: Labels, mask: Labels, c: int, spacing: Sequence[float], tolerance: float
) -> dict[str, Floats]:
    """Return metric -> (c - 1,) of one unit, NaN where undefined.

    predicted, mask: (z, H, W) of a volume or (H, W) of an image; spacing: mm a voxel along each
    axis, ones where unknown; tolerance: of the surface Dice, in the same unit.
    """
    found = {name: np.full(c - 1, np.nan) for name in METRICS}
    for i in range(1, c):
        one, two = predicted == i, mask == i
        if not one.any() and not two.any():
            continue
        if not one.any() or not two.any():
            for name in ("dice", "iou", "nsd"):
                found[name][i - 1] = 0.0
            continue
        for name, value in _by_monai(one, two, spacing, tolerance).items():
            found[name][i - 1] = value
    return found


def _by_monai(
    predicted: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, float]:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_dice import compute_surface_dice

    # What lies far from both changes nothing, and costs the distances their time.
    box = _box(predicted | mask)
    y_pred, y = (
        torch.from_numpy(np.ascontiguousarray(a[box]))[None, None] for a in (predicted, mask)
    )
    scale = [float(value) for value in spacing]
    whole: dict[str, Any] = {"include_background": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI at calls of its own
        hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, spacing=scale, **whole)
        nsd = compute_surface_dice(y_pred, y, [tolerance], spacing=scale, **whole)
    return {
        "dice": float(compute_dice(y_pred, y, **whole)),
        "iou": float(compute_iou(y_pred, y, **whole)),
        "hd95": float(hd95),
        "nsd": float(nsd),
    }


def _box(found: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box of what is set, and a margin that keeps its surface inside."""
    box = []
    for axis in range(found.ndim):
        others = tuple(other for other in range(found.ndim) if other != axis)
        on = np.flatnonzero(found.any(axis=others))
        box.append(slice(max(0, int(on[0]) - 1), int(on[-1]) + 2))
    return tuple(box)


def dice(predicted: Labels, mask: Labels, c: int) -> Floats:
    """Return (c - 1,) Dice alone, NaN for a structure that neither has."""
    counts = confusion(predicted, mask, c).astype(np.float64)
    hits = np.diag(counts)[1:]
    return ratio(2 * hits, counts.sum(axis=0)[1:] + counts.sum(axis=1)[1:])


def confusion(predicted: Labels, mask: Labels, c: int) -> NDArray[np.int64]:
    """Return (c, c): pixels by label value in the mask (rows) and in the prediction."""
    pairs = mask.astype(np.int64).ravel() * c + predicted.ravel()
    return np.bincount(pairs, minlength=c * c).reshape(c, c)


# --- all units together ------------------------------------------------------------------------


def summarise(
    measured: Measured,
    groups: NDArray[np.str_],
    classes: Sequence[str],
    fits: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the metrics over all structures, and by structure, each with its 95 % interval.

    groups (n,): the patients, who are drawn with replacement; fits (n,): of several fits, the one
    that scored each unit: a unit then counts once a fit, and fits are drawn as well. A metric of a
    structure is its mean over the units that define it; over all, the mean of those. `paper_dice`
    and `paper_jaccard` are of all pixels of all units together, at the size of the input (see
    `of_the_paper`).
    """
    structures = list(classes)[1:]

    def statistic(weights: Floats) -> Values:
        found: Values = {}
        for name, values in measured.values.items():
            defined = ~np.isnan(values)
            own = ratio(
                np.where(defined, values, 0.0).T @ weights, defined.T.astype(float) @ weights
            )
            found |= _named(name, own, structures)
        c = len(classes)
        counts = (measured.confusion.reshape(-1, c * c).T @ weights).reshape(c, c, -1)
        for name, own in of_the_paper(counts).items():
            found |= _named(name, own, structures)
        return found

    overall: dict[str, Metric] = {}
    labels: dict[str, dict[str, Metric]] = {}
    metrics = bootstrap(statistic, groups, len(classes) ** 2, fits=fits)
    for (name, label), metric in metrics.items():
        into = labels.setdefault(label, {}) if label else overall
        into[name] = metric
    return overall, labels


def _named(name: str, own: Floats, structures: Sequence[str]) -> Values:
    """Return (c - 1, b) values by structure, and their mean."""
    found: Values = {(name, ""): mean(own)}
    if len(structures) > 1:
        found |= {(name, label): own[i] for i, label in enumerate(structures)}
    return found


def of_the_paper(counts: NDArray[Any]) -> dict[str, Floats]:
    """Return the Dice and Jaccard of arXiv 2312.02366's code: (c - 1, b) of counts (c, c, b).

    Both are of the whole test set at the resized grid, background left out of the mean, and of a
    structure nobody has undefined. The Jaccard drops the pixels whose target is background first,
    so that a structure drawn over background costs nothing: it can exceed Dice / (2 - Dice).
    """
    hits = np.einsum("iib->ib", counts)[1:].astype(np.float64)
    targets, drawn = counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]
    inside = counts[1:].sum(axis=0)[1:]  # drawn, where the target is a structure
    return {
        PAPER_DICE: ratio(2 * hits, (targets + drawn).astype(np.float64)),
        PAPER_JACCARD: ratio(hits, (targets + inside - hits).astype(np.float64)),
    }
