"""From the features of slices to those of units: pooled, in bounded batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import FeatureSet, Pool, Recipe, Units
from stores.errors import ConfigError
from stores.features import FeatureStore

ROWS_AT_ONCE = 16384

Floats = NDArray[np.float32]


def read_features(
    store: FeatureStore, units: Units, which: FeatureSet, pool: Pool = "mean"
) -> Floats:
    """Return (n, d) float32: the mean or the maximum over each unit's slices.

    Raises ConfigError where the store does not hold what the feature set needs.
    """
    blocks, d = _needs(store, which)
    n = len(units.ids)
    x = np.full((n, d), 0.0 if pool == "mean" else -np.inf, np.float32)
    for start in range(0, len(units.rows), ROWS_AT_ONCE):
        now = slice(start, start + ROWS_AT_ONCE)
        rows = units.rows[now]
        read = [store.read("cls", rows)[:, -blocks:].reshape(len(rows), -1)]
        if "mean" in which:
            read.append(store.read("mean", rows))
        _gather(x, units.unit[now], np.concatenate(read, axis=1).astype(np.float32), pool)
    if pool == "mean":
        x /= np.bincount(units.unit, minlength=n)[:, None].astype(np.float32)
    return x


def _needs(store: FeatureStore, which: FeatureSet) -> tuple[int, int]:
    """Return how many blocks a feature set takes and its width, if the store has them."""
    recipe = Recipe.model_validate_json(store.recipe_text)
    blocks = 4 if which.startswith("cls4") else 1
    needed = {"cls", "mean"} if "mean" in which else {"cls"}
    if needed - set(recipe.outputs) or blocks > recipe.blocks:
        raise ConfigError(
            f"The features {which!r} need {blocks} blocks and the outputs {sorted(needed)}; the "
            f"store has {recipe.blocks} blocks of {list(recipe.outputs)}. Choose other features, "
            "or extract with these outputs."
        )
    return blocks, recipe.architecture.dim * (blocks + ("mean" in which))


def _gather(x: Floats, unit: NDArray[np.int64], values: Floats, pool: Pool) -> None:
    """Add the values (b, d) of some slices to the units they belong to, or raise these to them."""
    order = np.argsort(unit, kind="stable")
    ids, starts = np.unique(unit[order], return_index=True)
    into = np.add if pool == "mean" else np.maximum
    x[ids] = into(x[ids], into.reduceat(values[order], starts, axis=0))
