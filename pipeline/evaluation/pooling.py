"""From the features of slices to those of units: read in bounded batches, pooled, scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.units import Units
from pipeline.config.tasks import FeatureSet, Pool, Scaling
from pipeline.recipe import recipe_of
from pipeline.shared.arrays import ROWS_AT_ONCE, batches, beside, room
from stores.codes import read_patch
from stores.errors import ConfigError
from stores.features import FeatureStore

TOP = 5
# Slices whose patch tokens are read at once.
IMAGES_AT_ONCE = 256
# Directions with less variance than this share of the greatest are float16's rounding.
NOISE = 1e-6

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def read_features(
    store: FeatureStore, units: Units, which: FeatureSet, pool: Pool = "mean"
) -> Floats:
    """Return (n, d) float32: each unit's slices pooled; in a scratch file where they are many.

    Raises ConfigError where the store does not hold what the feature set needs.
    """
    x, first = room(len(units.ids), _needs(store, which)[1], store.path), 0
    for pooled in pooled_features(store, units, which, pool):
        x[first : first + len(pooled)] = pooled
        first += len(pooled)
    return x


def pooled_features(
    store: FeatureStore, units: Units, which: FeatureSet, pool: Pool = "mean"
) -> Iterator[Floats]:
    """Yield (b, d) float32, some units after others: what `read_features` returns, of any size."""
    blocks, _ = _needs(store, which)

    def read(rows: Rows) -> Floats:
        found = [store.read("cls", rows)[:, -blocks:].reshape(len(rows), -1)]
        if "mean" in which:
            found.append(store.read("mean", rows))
        return np.concatenate(found, axis=1).astype(np.float32)

    yield from _by_units(units, read, pool)


def looks(store: FeatureStore, units: Units, pool: Pool = "mean") -> Iterator[Floats]:
    """Yield (b, d) float32, some units after others: what tells images apart in any store.

    CLS of the last block, or where it is not stored the mean patch token, or the mean of the last
    block's patch tokens.
    """
    have = store.arrays.keys()
    if "cls" in have:
        return pooled_features(store, units, "cls", pool)

    def read(rows: Rows) -> Floats:
        if "mean" in have:
            return np.asarray(store.read("mean", rows), np.float32)
        some = (read_patch(store, rows[now]) for now in batches(len(rows), IMAGES_AT_ONCE))
        last = (tokens[:, -1] if tokens.ndim == 5 else tokens for tokens in some)
        return np.concatenate([tokens.mean(axis=(1, 2), dtype=np.float32) for tokens in last])

    return _by_units(units, read, pool)


def _by_units(units: Units, read: Callable[[Rows], Floats], pool: Pool) -> Iterator[Floats]:
    """Yield the pooled features of some units after others; read: of slices, by row."""
    order = np.argsort(units.unit, kind="stable")
    ends = np.cumsum(np.bincount(units.unit, minlength=len(units.ids)))
    for first, stop in _batches(ends):
        start = ends[first - 1] if first else 0
        rows = units.rows[order[start : ends[stop - 1]]]
        starts = np.concatenate([[start], ends[first : stop - 1]]) - start
        yield _pooled(read(rows), starts, pool)


def _needs(store: FeatureStore, which: FeatureSet) -> tuple[int, int]:
    """Return how many blocks a feature set takes and its width, if the store has them."""
    recipe = recipe_of(store)
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
            return _by_rows(x, x.shape[1], lambda rows: rows / _above_zero(rows))
        case "standardise":
            centre, spread = _moments(x, fit)
            spread[spread <= NOISE * np.abs(centre)] = 1  # a flat column, but for rounding
            return _by_rows(x, x.shape[1], lambda rows: (rows - centre) / spread)
        case "whiten":
            centre, _ = _moments(x, fit)
            variance, axes = np.linalg.eigh(_covariance(x, fit, centre))
            keep = np.flatnonzero(variance > NOISE * variance[-1])[::-1]
            keep = keep[: min(components, len(fit) - 1)]
            onto = axes[:, keep] / np.sqrt(variance[keep])
            return _by_rows(x, len(keep), lambda rows: (rows - centre) @ onto)
        case _:
            assert_never(scaling)


def _by_rows(x: Floats, d: int, of: Callable[[Floats], NDArray[np.float64] | Floats]) -> Floats:
    """Return (n, d) float32: `of` of x, some rows at a time, held as x is."""
    out = beside(x, len(x), d)
    for now in batches(len(x)):
        out[now] = of(x[now])
    return out


def _above_zero(rows: Floats) -> Floats:
    """Return the lengths (b, 1) of rows; of a zero row the least that can be divided by."""
    norm: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.maximum(norm, np.finfo(np.float32).tiny)


def _fitted(x: Floats, fit: Rows) -> Iterator[NDArray[np.float64]]:
    """Yield the rows `fit` of x in float64, some at a time."""
    for now in batches(len(fit)):
        yield x[fit[now]].astype(np.float64)


def _moments(x: Floats, fit: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation (d,) of the rows `fit`."""
    centre = sum(rows.sum(axis=0) for rows in _fitted(x, fit)) / len(fit)
    square = sum(((rows - centre) ** 2).sum(axis=0) for rows in _fitted(x, fit)) / len(fit)
    return np.asarray(centre), np.sqrt(square)


def _covariance(x: Floats, fit: Rows, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance (d, d) of the rows `fit`."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for rows in _fitted(x, fit):
        total += (rows - centre).T @ (rows - centre)
    return total / (len(fit) - 1)
