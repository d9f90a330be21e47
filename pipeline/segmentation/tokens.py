"""Patch tokens of a store, as heads ask for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stores import FeatureStore
from stores.codes import read_patch
from stores.errors import ConfigError


class Tokens:
    """The patch tokens of a store by row. Raises ConfigError where it has none."""

    def __init__(self, store: FeatureStore) -> None:
        if "patch" not in store.arrays:
            have = ", ".join(sorted({"cls", "mean", "volume"} & store.arrays.keys()))
            by = ", by a network of slices" if "volume" in store.arrays else ""
            raise ConfigError(
                f"This asks patch tokens, and the store {store.path} has none (it has "
                f"{have}). Extract a store with outputs.keep: [patch]{by}."
            )
        self._store = store

    @property
    def blocks(self) -> int:
        """The number of blocks that there are tokens of."""
        shape = self._store.array("patch").row_shape
        return shape[0] if len(shape) == 4 else 1

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns (h, w) of patches."""
        h, w, _ = self._store.array("patch").row_shape[-3:]
        return h, w

    @property
    def chunk_rows(self) -> int:
        """How many rows are read at once."""
        return self._store.array("patch").chunk_rows

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return (b, l, h, w, d) as floats, oldest block first. Raises as the store does."""
        values = read_patch(self._store, rows)
        return values if values.ndim == 5 else values[:, None]


def mean_tokens(store: FeatureStore, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (b, d) the mean patch token of each row's last block.

    Raises ConfigError where the store keeps neither the mean nor patch tokens.
    """
    if "mean" in store.arrays:
        return np.asarray(store.read("mean", rows), np.float32)
    last = Tokens(store).read(rows)[:, -1]
    return np.asarray(last.mean(axis=(1, 2), dtype=np.float32))
