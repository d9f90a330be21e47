"""From the features of slices to those of units: read in bounded batches, pooled, scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from pipeline.questions import FeatureSet, Pool, Scaling, Units
from pipeline.types import Recipe
from stores.errors import ConfigError
from stores.features import FeatureStore

ROWS_AT_ONCE = 16384
TOP = 5
# Directions with less variance than this share of the greatest are float16's rounding.
NOISE = 1e-6

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def read_features(
    store: FeatureStore, units: Units, which: FeatureSet, pool: Pool = "mean"
) -> Floats:
    """Return (n, d) float32: each unit's slices pooled.

    Raises ConfigError where the store does not hold what the feature set needs.
    """
    blocks, d = _needs(store, which)
    order = np.argsort(units.unit, kind="stable")
    ends = np.cumsum(np.bincount(units.unit, minlength=len(units.ids)))
    x = np.empty((len(units.ids), d), np.float32)
    for first, stop in _batches(ends):
        start = ends[first - 1] if first else 0
        rows = units.rows[order[start : ends[stop - 1]]]
        read = [store.read("cls", rows)[:, -blocks:].reshape(len(rows), -1)]
        if "mean" in which:
            read.append(store.read("mean", rows))
        starts = np.concatenate([[start], ends[first : stop - 1]]) - start
        x[first:stop] = _pooled(np.concatenate(read, axis=1).astype(np.float32), starts, pool)
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


def _batches(ends: Rows) -> Iterator[tuple[int, int]]:
    """Yield runs of whole units of about ROWS_AT_ONCE slices; ends (n,): after each unit's last."""
    first = 0
    while first < len(ends):
        limit = (ends[first - 1] if first else 0) + ROWS_AT_ONCE
        stop = max(first + 1, int(np.searchsorted(ends, limit, side="right")))
        yield first, stop
        first = stop


def _pooled(values: Floats, starts: Rows, pool: Pool) -> Floats:
    """Return a row a unit, from its slices' (m, d); starts: where each unit's slices begin.

    gem3: the generalised mean of Radenovic et al. (arXiv 1711.02512, eq. 3) with p = 3, an odd
    power, so that negative features keep their sign; top5: the mean of each feature's five
    greatest values.
    """
    sizes = np.diff(starts, append=len(values))
    if (sizes == 1).all():
        return values
    each = sizes[:, None].astype(np.float32)
    match pool:
        case "mean":
            pooled = np.add.reduceat(values, starts, axis=0) / each
        case "max":
            pooled = np.maximum.reduceat(values, starts, axis=0)
        case "gem3":
            pooled = np.cbrt(np.add.reduceat(values**3, starts, axis=0) / each)
        case "top5":
            own = np.split(values, starts[1:])
            pooled = np.stack([np.sort(slices, axis=0)[-TOP:].mean(axis=0) for slices in own])
        case _:
            assert_never(pool)
    return np.asarray(pooled, np.float32)


# --- scaling -------------------------------------------------------------------------------


def scaled(x: Floats, fit: Rows, scaling: Scaling, components: int) -> Floats:
    """Return x (n, d) scaled by what the units `fit` alone say.

    l2: rows of length 1; standardise: columns of mean 0 and variance 1; whiten: the first
    principal components (at most `components`), each of variance 1.
    """
    match scaling:
        case "none":
            return x
        case "l2":
            norm = np.linalg.norm(x, axis=1, keepdims=True)
            return np.asarray(x / np.maximum(norm, np.finfo(np.float32).tiny))
        case "standardise":
            spread = x[fit].std(axis=0, dtype=np.float64)
            spread[spread == 0] = 1
            centre = x[fit].mean(axis=0, dtype=np.float64)
            return np.asarray((x - centre) / spread, np.float32)
        case "whiten":
            centre = x[fit].mean(axis=0, dtype=np.float64)
            variance, axes = np.linalg.eigh(np.cov(x[fit].astype(np.float64), rowvar=False))
            keep = np.flatnonzero(variance > NOISE * variance[-1])[::-1]
            keep = keep[: min(components, len(fit) - 1)]
            whitened = (x - centre).astype(np.float32) @ (axes[:, keep] / np.sqrt(variance[keep]))
            return np.asarray(whitened, np.float32)
        case _:
            assert_never(scaling)
