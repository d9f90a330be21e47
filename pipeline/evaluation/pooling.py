"""From the features of slices to those of units: read in bounded batches, pooled, scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never, get_args

import numpy as np

from pipeline.annotations.units import Units
from pipeline.config.feature_sets import are_kept, kept_features, made_of
from pipeline.config.regions import RegionFeatures
from pipeline.config.tasks import FeatureSet, Pool, Scaling
from pipeline.recipe import recipe_of
from pipeline.shared.arrays import (
    ROWS_AT_ONCE,
    Doubles,
    Floats,
    Rows,
    allocate,
    allocate_like,
    batches,
    principal_axes,
    unit_length,
)
from stores.codes import read_patch
from stores.errors import ConfigError
from stores.features import FeatureStore

# Values of a feature that `top5` averages.
TOP = 5
# Slices whose patch tokens are read at once.
IMAGES_AT_ONCE = 256
# Directions with less variance than this share of the greatest are float16's rounding.
NOISE = 1e-6

# Reads the features (m, d) of slices, by their rows in a store.
ReadSlices = Callable[[Rows], Floats]


# --- reading -------------------------------------------------------------------------------


def read_features(
    store: FeatureStore,
    units: Units,
    which: FeatureSet | RegionFeatures,
    pool: Pool = "mean",
) -> Floats:
    """Return (n, d) float32: each unit's slices pooled; in a scratch file where they are many.

    Of units that are seen by something else, that. Raises ConfigError where the store does not hold
    what the feature set needs.
    """
    if units.seen is not None:
        return units.seen.features(units.unit, len(units.ids), which, pool)
    _, d = _blocks_and_width(store, which)
    x = allocate(len(units.ids), d, store.path)
    first = 0
    for pooled in pooled_features(store, units, which, pool):
        x[first : first + len(pooled)] = pooled
        first += len(pooled)
    return x


def read_slice_features(
    store: FeatureStore, units: Units, which: FeatureSet | RegionFeatures
) -> Floats:
    """Return (m, d) float32: the features of every slice of the units, in the order of `rows`."""
    return read_features(store, units.each_slice(), which)


def pooled_features(
    store: FeatureStore,
    units: Units,
    which: FeatureSet | RegionFeatures,
    pool: Pool = "mean",
) -> Iterator[Floats]:
    """Yield (b, d) float32, some units after others: what `read_features` returns, of any size."""
    blocks, _ = _blocks_and_width(store, which)

    def read_volumes(rows: Rows) -> Floats:
        return np.asarray(store.read("volume", rows), np.float32)

    def read(rows: Rows) -> Floats:
        last_blocks = store.read("cls", rows)[:, -blocks:]
        tokens = [last_blocks.reshape(len(rows), -1)]
        if made_of(which).mean:
            tokens.append(store.read("mean", rows))
        return np.concatenate(tokens, axis=1).astype(np.float32)

    of_volumes = recipe_of(store).level == "volume"
    yield from _pooled_by_unit(units, read_volumes if of_volumes else read, pool)


def comparable_features(
    store: FeatureStore,
    units: Units,
    pool: Pool = "mean",
) -> Iterator[Floats]:
    """Yield (b, d) float32, some units after others: what tells images apart in any store.

    CLS of the last block, or where it is not stored the mean patch token, or the mean of the last
    block's patch tokens.
    """
    for which in ("cls", "volume"):
        if which in store.arrays:
            return pooled_features(store, units, which, pool)
    if "mean" in store.arrays:

        def read(rows: Rows) -> Floats:
            return np.asarray(store.read("mean", rows), np.float32)

    else:

        def read(rows: Rows) -> Floats:
            return _mean_of_patches(store, rows)

    return _pooled_by_unit(units, read, pool)


def _mean_of_patches(store: FeatureStore, rows: Rows) -> Floats:
    """Return (m, d) the mean patch token of the last block, read some images at a time."""
    means = []
    for now in batches(len(rows), IMAGES_AT_ONCE):
        tokens = read_patch(store, rows[now])
        # (b, h, w, d), or (b, l, h, w, d) where several blocks are stored
        of_last_block = tokens[:, -1] if tokens.ndim == 5 else tokens
        means.append(of_last_block.mean(axis=(1, 2), dtype=np.float32))
    return np.concatenate(means)


def _blocks_and_width(store: FeatureStore, which: FeatureSet | RegionFeatures) -> tuple[int, int]:
    """Return how many blocks a feature set takes and its width, if the store has them."""
    if which in get_args(RegionFeatures):
        raise ConfigError(
            f"{which!r} are features of regions. Ask of a config that has their masks."
        )
    recipe = recipe_of(store)
    if recipe.level == "volume":  # has one vector, which is what each set of features is of it
        (width,), _ = recipe.arrays["volume"]
        return 1, width
    made = made_of(which)
    if not are_kept(which, recipe.outputs, recipe.blocks):
        choice = "Extract with these outputs."
        available = kept_features(recipe.outputs, recipe.blocks)
        if available:
            shown = ", ".join(f"`{each}`" for each in available)
            choice = (
                f"Give the head those that are kept ({shown}), as in `probe: {{features: "
                f"{available[0]}}}`, or extract with these outputs."
            )
        raise ConfigError(
            f"The features {which!r} need {made.blocks} blocks and the outputs "
            f"{sorted(made.outputs)}; the store has {recipe.blocks} blocks of "
            f"{list(recipe.outputs)}. {choice}"
        )
    return made.blocks, recipe.architecture.dim * made.tokens


# --- pooling -------------------------------------------------------------------------------


def _pooled_by_unit(
    units: Units,
    read: ReadSlices,
    pool: Pool,
) -> Iterator[Floats]:
    """Yield the pooled features (b, d) of some units after others."""
    bags = units.bags()
    bounds = bags.first
    for first, stop in runs_of_units(bounds, ROWS_AT_ONCE):
        start = bounds[first]
        rows = units.rows[bags.order[start : bounds[stop]]]
        yield _pooled(read(rows), bounds[first:stop] - start, pool)


def runs_of_units(bounds: Rows, at_once: int) -> Iterator[tuple[int, int]]:
    """Yield runs of whole units, from the first to before the second, of `at_once` slices at most.

    bounds (n + 1,): unit i has the slices from bounds[i] to before bounds[i + 1].
    """
    n = len(bounds) - 1
    first = 0
    while first < n:
        limit = bounds[first] + at_once
        # A unit of more slices than that is a run of its own.
        within = int(np.searchsorted(bounds[1:], limit, side="right"))
        stop = max(first + 1, within)
        yield first, stop
        first = stop


def _pooled(
    values: Floats,
    starts: Rows,
    pool: Pool,
) -> Floats:
    """Return a row a unit, from its slices' (m, d); starts: where each unit's slices begin.

    gem3: the generalised mean of Radenovic et al. (arXiv 1711.02512, eq. 3) with p = 3, an odd
    power, so that negative features keep their sign; top5: the mean of each feature's five
    greatest values.
    """
    sizes = np.diff(starts, append=len(values))
    # Most images: nothing to pool, and no copy of it.
    if (sizes == 1).all():
        return values
    count = sizes[:, None].astype(np.float32)
    match pool:
        case "mean":
            pooled = np.add.reduceat(values, starts, axis=0) / count
        case "max":
            pooled = np.maximum.reduceat(values, starts, axis=0)
        case "gem3":
            pooled = np.cbrt(np.add.reduceat(values**3, starts, axis=0) / count)
        case "top5":
            by_unit = np.split(values, starts[1:])
            pooled = np.stack([_mean_of_greatest(slices) for slices in by_unit])
        case _:
            assert_never(pool)
    return np.asarray(pooled, np.float32)


def _mean_of_greatest(slices: Floats) -> Floats:
    """Return (d,) the mean of the TOP greatest values of each column."""
    greatest = np.sort(slices, axis=0)[-TOP:]
    mean: Floats = greatest.mean(axis=0)
    return mean


# --- scaling -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FittedScaling:
    """How features are scaled, as some units said: of other units as well, by the same numbers.

    centre (d,): what is taken from each feature, where the kind takes any; over (d,): what each is
    then divided by (`standardise`); onto (d, k): the directions it is then turned to (`whiten`).
    """

    kind: Scaling
    centre: Doubles | None = None
    over: Doubles | None = None
    onto: Doubles | None = None

    def apply(self, x: Floats) -> Floats:
        """Return x (n, d) scaled: (n, d) or (n, k), float32."""
        match self.kind:
            case "none":
                return x
            case "l2":
                return _by_rows(x, x.shape[1], unit_length)
            case "standardise":
                return _by_rows(x, x.shape[1], self._standardised)
            case "whiten":
                assert self.onto is not None
                return _by_rows(x, self.onto.shape[1], self._whitened)
            case _:
                assert_never(self.kind)

    def _standardised(self, rows: Floats) -> Doubles:
        assert self.centre is not None
        assert self.over is not None
        standardised: Doubles = (rows - self.centre) / self.over
        return standardised

    def _whitened(self, rows: Floats) -> Doubles:
        assert self.centre is not None
        assert self.onto is not None
        whitened: Doubles = (rows - self.centre) @ self.onto
        return whitened


def fit_scaling(
    x: Floats,
    fit: Rows,
    scaling: Scaling,
    components: int,
) -> FittedScaling:
    """Return the scaling that the units `fit` of x (n, d) alone say.

    l2: rows of length 1; standardise: columns of mean 0 and variance 1; whiten: the first
    principal components (at most `components`), each of variance 1.
    """
    match scaling:
        case "none" | "l2":
            return FittedScaling(scaling)
        case "standardise":
            centre, deviation = _mean_and_deviation(x, fit)
            # A flat column deviates by rounding alone, which is not to be blown up.
            deviation[deviation <= NOISE * np.abs(centre)] = 1
            return FittedScaling(scaling, centre, over=deviation)
        case "whiten":
            centre, _ = _mean_and_deviation(x, fit)
            return FittedScaling(scaling, centre, onto=_directions(x, fit, centre, components))
        case _:
            assert_never(scaling)


def scaled(
    x: Floats,
    fit: Rows,
    scaling: Scaling,
    components: int,
) -> Floats:
    """Return x (n, d) scaled by what the units `fit` alone say (see `fit_scaling`)."""
    return fit_scaling(x, fit, scaling, components).apply(x)


def _directions(
    x: Floats,
    fit: Rows,
    centre: Doubles,
    components: int,
) -> Doubles:
    """Return the first principal axes (d, k) of the rows `fit`, each over its deviation."""
    variance, axes = principal_axes(_covariance(x, fit, centre))
    is_signal = np.flatnonzero(variance > NOISE * variance[0])
    # So many units span one direction less.
    first = is_signal[: min(components, len(fit) - 1)]
    directions: Doubles = axes[:, first] / np.sqrt(variance[first])
    return directions


def _by_rows(
    x: Floats,
    d: int,
    of: Callable[[Floats], Floats | Doubles],
) -> Floats:
    """Return (n, d) float32: `of` of x, some rows at a time, where x lies: memory or a file."""
    out = allocate_like(x, len(x), d)
    for now in batches(len(x)):
        out[now] = of(x[now])
    return out


def _doubles(x: Floats, rows: Rows) -> Iterator[Doubles]:
    """Yield the rows `rows` of x in float64, some at a time."""
    for now in batches(len(rows)):
        yield x[rows[now]].astype(np.float64)


def _mean_and_deviation(x: Floats, fit: Rows) -> tuple[Doubles, Doubles]:
    """Return the mean and the standard deviation (d,) of the rows `fit`."""
    total = np.zeros(x.shape[1])
    for rows in _doubles(x, fit):
        total += rows.sum(axis=0)
    centre = total / len(fit)
    square = np.zeros(x.shape[1])
    for rows in _doubles(x, fit):
        square += ((rows - centre) ** 2).sum(axis=0)
    return centre, np.sqrt(square / len(fit))


def _covariance(
    x: Floats,
    fit: Rows,
    centre: Doubles,
) -> Doubles:
    """Return the covariance (d, d) of the rows `fit`."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for rows in _doubles(x, fit):
        total += (rows - centre).T @ (rows - centre)
    return total / (len(fit) - 1)
