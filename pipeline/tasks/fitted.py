"""A store whose features heads are fitted on, while those of another are tested."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Recipe
from stores.errors import LabelError, RecipeMismatchError
from stores.features import OK, FeatureStore

Rows = NDArray[np.int64]


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
        one, two = (Recipe.model_validate_json(each.recipe_text) for each in (store, tested))
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
