"""A store whose features heads are fitted on, while those of another are tested (`fit_on`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.tasks import FeatureSet, Pool
from pipeline.evaluation.metrics.agreement import icc
from pipeline.evaluation.pooling import pooled_features
from pipeline.recipe import Recipe, recipe_of
from stores.errors import LabelError, RecipeMismatchError
from stores.features import OK, FeatureStore

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
# Test units whose features are compared with those of the store that heads are fitted on.
MOST_COMPARED = 1000


@dataclass(frozen=True)
class FitStore:
    """The store that heads are fitted on, its fingerprint, and the one that is tested.

    A slice is the same in both where its pixels are.
    """

    store: FeatureStore
    fingerprint: str
    tested: FeatureStore

    @classmethod
    def of(cls, path: Path, tested: FeatureStore) -> FitStore:
        """Open the store that heads are fitted on.

        Raises StoreNotFoundError, and RecipeMismatchError where it is by another network.
        """
        store = FeatureStore.open(path)
        names = differences(store, tested, but=("preprocess",))
        if names:
            raise RecipeMismatchError(
                "Heads can be fitted on one store and tested on another only where both are by "
                f"one network. {path} and {tested.path} differ in {', '.join(names)}; only "
                "`preprocess` may be another."
            )
        return cls(store, store.fingerprint(), tested)

    def replace_features(
        self,
        x: Floats,
        units: Units,
        tested: Rows,
        which: FeatureSet,
        pool: Pool,
    ) -> float | None:
        """Put this store's features in the place of x (n, d), but for the units `tested`.

        Returns how far the features of those agree with this store's: the median over the numbers
        of a feature of ICC(A,1), on MOST_COMPARED units at most; None for fewer than two.
        """
        # In x those keep their own features, which are so at hand to be compared.
        stays = np.zeros(len(x), bool)
        stays[tested] = True
        compared = _evenly_chosen(tested)
        theirs = np.empty((len(compared), x.shape[1]), np.float32)
        for now, features in self._features(units, which, pool):
            inside = (compared >= now.start) & (compared < now.stop)
            theirs[inside] = features[compared[inside] - now.start]
            fitted = ~stays[now]
            x[now][fitted] = features[fitted]
        if len(compared) < 2:
            return None
        both = np.stack([x[compared], theirs], axis=1)
        return float(np.nanmedian(icc(both)))

    def _features(
        self,
        units: Units,
        which: FeatureSet,
        pool: Pool,
    ) -> Iterator[tuple[slice, Floats]]:
        """Yield this store's features (b, d) of some units after others, and which units."""
        # The same units, by the rows of their slices here: pooled as they are there.
        there = replace(units, rows=self.rows_of(units.rows))
        first = 0
        for features in pooled_features(self.store, there, which, pool):
            stop = first + len(features)
            yield slice(first, stop), features
            first = stop

    def rows_of(self, rows: Rows) -> Rows:
        """Return (m,) this store's rows of the slices that the tested one has in rows (m,).

        Raises LabelError where it lacks any.
        """
        # Rows are numbers of one store alone; pixels are the same in both.
        digests = self.tested.read("pixel_digest", rows)
        places = [self._row_of_pixels.get(digest.tobytes(), -1) for digest in digests]
        ours = np.array(places, np.int64)
        lacking = int((ours < 0).sum())
        if lacking:
            raise LabelError(
                f"{self.store.path} lacks {lacking} of the {len(rows)} slices that heads are to be "
                "fitted or tested on. Run `radprobe extract` of the same folder into it."
            )
        return ours

    @cached_property
    def _row_of_pixels(self) -> dict[bytes, int]:
        """The row of each slice that has features in the store, by the digest of its pixels."""
        rows = np.flatnonzero(self.store.status() == OK)
        digests = self.store.read("pixel_digest", rows)
        return {digest.tobytes(): int(row) for digest, row in zip(digests, rows, strict=True)}


def differences(one: FeatureStore, other: FeatureStore, but: Sequence[str]) -> list[str]:
    """Return in what two stores' recipes differ, but for some fields."""
    ours = recipe_of(one)
    theirs = recipe_of(other)
    names = sorted(set(Recipe.model_fields) - set(but))
    return [name for name in names if getattr(ours, name) != getattr(theirs, name)]


def _evenly_chosen(units: Rows) -> Rows:
    """Return MOST_COMPARED of the units at most, from the first to the last."""
    number = min(len(units), MOST_COMPARED)
    places = np.linspace(0, len(units) - 1, number).astype(int)
    chosen: Rows = units[places]
    return chosen
