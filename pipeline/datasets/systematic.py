"""The systematic splits of arXiv 2312.02366: every so-manieth unit, in the order of their names.

The paper's code takes them in the order in which its file system lists them, so that its own lists
cannot be remade: sizes and rule are the paper's, the units are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.config.tasks import Part
from pipeline.datasets.contracts import Item, Systematic


def with_parts(items: Sequence[Item], steps: Systematic) -> list[Item]:
    """Return items with parts dealt by patient; where a set has masks, those without one train."""
    have_masks = any(item.mask for item in items)
    patients = sorted({item.patient for item in items if item.mask or not have_masks})
    parts = dict(zip(patients, systematic_parts(len(patients), steps), strict=True))
    rest: Part | None = "train" if steps.train is None else None
    return [replace(item, part=parts.get(item.patient, rest)) for item in items]


def systematic_parts(n: int, steps: Systematic) -> list[Part | None]:
    """Return the part of each of n units, as `Systematic` deals them; None for one left out.

    A step may be broken: places are rounded, as numpy rounds them.
    """
    steps_of: list[tuple[Part, float]] = [("test", steps.test), ("val", steps.val)]
    if steps.train is not None:
        steps_of = [("train", steps.train), *reversed(steps_of)]
    parts = np.full(n, "train" if steps.train is None else None, dtype=object)
    left = np.arange(n)
    for part, step in steps_of:
        places = np.arange(0, len(left), step).round().astype(int)
        chosen = left[places[places < len(left)]]
        parts[chosen] = part
        left = np.setdiff1d(left, chosen)
    return list(parts)
