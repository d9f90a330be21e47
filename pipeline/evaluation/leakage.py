"""Copies of an image on two sides of a split: of equal pixels, or of features all but equal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.recipe import Recipe, recipe_of
from stores.errors import LabelError, RecipeMismatchError
from stores.features import OK, FeatureStore

EXAMPLES = 3
# Units are all but copies where they are nearer than this share of what is usual: of the distance
# to the fifth nearest, theirs and everybody's. Of real X-rays, by an untrained network, images
# encoded again stand at 0.01 to 0.1, different images at 0.2 and above (benchmarks/xrays.py); among
# features that spread in ten directions, chance brings one query in ten million so near.
NEAR, FEW = 0.15, 5
# Distances are looked at in so many directions, drawn at random: to about a tenth.
DIRECTIONS, SEED = 64, 0

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def refuse_duplicates(digests: NDArray[np.uint8], units: Units, side: NDArray[np.int64]) -> None:
    """Raise LabelError where a unit on one side is, for the most part, copied on another.

    digests (m, 32): of the pixels of units.rows, zero where unknown; side (n,): of each unit, -1
    for none. For the most part: series share blank slices and are no copies for that.
    """
    sides = side[units.unit]
    asked = digests.any(axis=1) & (sides >= 0)
    images = np.ascontiguousarray(digests[asked]).view("V32").ravel()
    image = np.unique(images, return_inverse=True)[1]
    lowest = np.full(len(images), side.max() + 1)
    highest = np.full(len(images), -1)
    np.minimum.at(lowest, image, sides[asked])
    np.maximum.at(highest, image, sides[asked])
    shared = np.zeros(len(units.rows), bool)
    shared[asked] = (lowest < highest)[image]
    n = len(units.ids)
    copied = np.bincount(units.unit, weights=shared, minlength=n)
    leaked = np.flatnonzero(copied > np.bincount(units.unit, minlength=n) / 2)
    if len(leaked):
        row = units.rows[shared & np.isin(units.unit, leaked)][0]
        same = units.rows[(digests == digests[units.rows == row]).all(axis=1)]
        raise LabelError(
            f"{len(leaked)} units have the pixels of units on another side of the split, for "
            f"example rows {same[:EXAMPLES].tolist()} of the slice table: scores would be leaked. "
            'Leave the copies\' labels empty, or set split.allow: ["duplicates"].'
        )


@dataclass(frozen=True)
class Near:
    """Two units on two sides of a split, by number, and how near: 1 is what is usual."""

    first: int
    second: int
    share: float


def near_copies(
    features: Iterable[Floats], digests: NDArray[np.uint8], units: Units, side: NDArray[np.int64]
) -> list[Near]:
    """Return the units (n,) that are all but copies of one on another side, the nearest first.

    features: of all units in order, some (b, d) at a time; digests, side: as `refuse_duplicates`
    has them, which answers for units of equal pixels. An image in more than five versions hides
    itself.
    """
    from pipeline.evaluation.neighbours import closest

    sketch, pixels = _sketch(features), _pixels(digests, units)
    sides, sizes = np.unique(side[side >= 0], return_counts=True)
    order = sides[np.argsort(sizes, kind="stable")]  # the largest is only looked into
    asked, nearest, distance = [], [], []
    for i in range(len(order) - 1):
        queries = np.flatnonzero(side == order[i])
        others = np.flatnonzero(np.isin(side, order[i + 1 :]))
        each, at = closest(sketch, others, queries, min(FEW, len(others)))
        asked.append(queries)
        nearest.append(at[:, 0])
        distance.append(each[:, [0, -1]])
    if not asked:
        return []
    a, b, (least, few) = *map(np.concatenate, (asked, nearest)), np.concatenate(distance).T
    usual = np.minimum(few, np.median(few))
    share = np.divide(least, usual, out=np.ones_like(least), where=usual > 0)
    near = (share < NEAR) & ((pixels[a] != pixels[b]) | (pixels[a] == 0))
    found = np.flatnonzero(near)[np.argsort(share[near], kind="stable")]
    return [Near(int(a[i]), int(b[i]), float(share[i])) for i in found]


def _sketch(features: Iterable[Floats]) -> Floats:
    """Return features (n, d), or where d is more than DIRECTIONS so many projections of them.

    Distances stay what they are to about a tenth (Johnson and Lindenstrauss, 1984).
    """
    kept, onto, middle = [], None, None
    for x in features:
        if middle is None:
            d = x.shape[1]
            middle = x.mean(axis=0)  # far from the origin, float32 would be rounded
            if d > DIRECTIONS:
                onto = np.random.default_rng(SEED).standard_normal((d, DIRECTIONS), np.float32)
        kept.append(x - middle if onto is None else (x - middle) @ onto)
    return np.concatenate(kept)


def _pixels(digests: NDArray[np.uint8], units: Units) -> NDArray[np.uint64]:
    """Return (n,) a number for the pixels of all of a unit's slices; 0 where they are unknown."""
    total = np.zeros(len(units.ids), np.uint64)
    each = np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
    np.add.at(total, units.unit, each)
    return total


def said_of(near: list[Near], units: Units) -> str:
    """Return what there is to say of near copies, the nearest by the rows of their slices."""
    rows = {i: units.rows[units.unit == i][0] for n in near[:EXAMPLES] for i in (n.first, n.second)}
    named = ", ".join(
        f"rows {rows[n.first]} and {rows[n.second]} ({n.share:.2f})" for n in near[:EXAMPLES]
    )
    return (
        f"{len(near)} units are all but copies of units on another side of the split, by features "
        f"nearer than {NEAR} of what is usual, for example {named} of the slice table"
    )


def refuse_near(near: list[Near], units: Units) -> None:
    """Raise LabelError where there are near copies."""
    if near:
        raise LabelError(
            f"{said_of(near, units)}: scores would be leaked. Look at both (`radprobe slices` says "
            "which files they are). If they are of one patient, give both the same in the column "
            "that labels.patient names; else leave the label of one empty, or set split.allow: "
            '["near-duplicates"].'
        )


@dataclass(frozen=True)
class Fitted:
    """The store that heads are fitted on, its fingerprint, and the one that is tested.

    A slice is the same in both where its pixels are.
    """

    store: FeatureStore
    fingerprint: str
    tested: FeatureStore

    @classmethod
    def of(cls, path: Path, tested: FeatureStore) -> Fitted:
        """Open the store that heads are fitted on.

        Raises StoreNotFoundError, and RecipeMismatchError where it is by another network.
        """
        store = FeatureStore.open(path)
        one = recipe_of(store)
        two = recipe_of(tested)
        names = set(Recipe.model_fields) - {"preprocess"}
        other = sorted(name for name in names if getattr(one, name) != getattr(two, name))
        if other:
            raise RecipeMismatchError(
                "Heads can be fitted on one store and tested on another only where both are by "
                f"one network. {path} and {tested.path} differ in {', '.join(other)}; only "
                "`preprocess` may be another."
            )
        return cls(store, store.fingerprint(), tested)

    @cached_property
    def _places(self) -> dict[bytes, int]:
        """The row of each slice that has features in the store, by the digest of its pixels."""
        rows = np.flatnonzero(self.store.status() == OK)
        digests = self.store.read("pixel_digest", rows)
        return {digest.tobytes(): int(row) for digest, row in zip(digests, rows, strict=True)}

    def rows_of(self, rows: Rows) -> Rows:
        """Return (m,) this store's rows of the slices that the tested one has in rows (m,).

        Raises LabelError where it lacks any.
        """
        digests = self.tested.read("pixel_digest", rows)
        found = np.array([self._places.get(digest.tobytes(), -1) for digest in digests], np.int64)
        if lacking := int((found < 0).sum()):
            raise LabelError(
                f"{self.store.path} lacks {lacking} of the {len(rows)} slices that heads are to be "
                "fitted or tested on. Run `radprobe extract` of the same folder into it."
            )
        return found
