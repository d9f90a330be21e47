"""The patches of other patients that are most like one patch of an image, from cached tokens.

Of each unit of other patients the patch that is nearest, by the cosine of the patch tokens of the
last block. Dims: b slices, h, w patch grid, d features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.levels import LEVELS
from pipeline.config.root import Config
from pipeline.config.tasks import Level
from pipeline.evaluation.neighbours import exact
from pipeline.evaluation.search import queried, slices_with_features
from pipeline.recipe import Preprocess
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.geometry import Placement, patch_at, patch_middle
from pipeline.segmentation.placement import placement_of
from pipeline.segmentation.tokens import Tokens
from pipeline.shared.arrays import Floats
from pipeline.shared.pseudonyms import Names
from stores.errors import ConfigError
from stores.features import FeatureStore
from stores.slices import slice_rows

# Of a slice so many of the nearest patches are kept: the nearest may show padding alone.
_KEPT = 4


@dataclass(frozen=True)
class PatchHit:
    """One patch that is like another: how much, whose, and where its middle lies (the real path).

    x, y: the column and the row of the slice, in its own pixels from 0.
    """

    cosine: float
    unit: str
    patient: str | None
    modality: str
    row: int
    path: str
    frame: int
    x: int
    y: int


def search_patches(
    config: Config,
    query: str,
    at: tuple[int, int],
    *,
    k: int = 10,
    level: Level = "series",
) -> list[PatchHit]:
    """Return the k units whose nearest patch is most like the one that shows a pixel, in order.

    query: a slice, by its row number, or by its path where the file has one slice; at: the column
    and row (x, y) of the pixel. The slice's own patient is left out. Raises ConfigError for what is
    no slice of the store, for a pixel that it has not or that the network was not shown, and where
    the store has no patch tokens; UnreadableError where the place of the body must be looked for in
    an image that is gone.
    """
    store = FeatureStore.open(config.store)
    tokens = Tokens(store)
    slices = slices_with_features(store, config)
    place = _one_slice(slices, queried(slices, query, config, Names(store.path)), query)
    patients = LEVELS["patient"].unit_names(slices)
    others = slices.filter(pa.array(patients != patients[place]))
    if not len(others):
        raise ConfigError("All slices of the store are of the query's patient.")
    vector = token_at(config, store, slices.slice(place, 1), at)
    return nearest_patches(config, tokens, others, vector, k, level)


def _one_slice(slices: pa.Table, places: Rows, query: str) -> int:
    if len(places) > 1:
        rows = slices["row"].take(pa.array(places)).to_pylist()
        raise ConfigError(
            f"A patch is of one slice. {query!r} names {len(places)}, rows {rows[0]} to "
            f"{rows[-1]}: give the row number of one; `radprobe slices` lists them."
        )
    return int(places[0])


def token_at(config: Config, store: FeatureStore, slices: pa.Table, at: tuple[int, int]) -> Floats:
    """Return (d,) the token of the patch that shows a pixel of the one slice of a table."""
    tokens = Tokens(store)
    (placement,) = _placements(config, slices)
    height, width = placement.shape
    x, y = at
    if not (0 <= x < width and 0 <= y < height):
        raise ConfigError(
            f"--at must be a pixel of the slice, column and row from 0. Got {x},{y} instead; it "
            f"has {width} columns and {height} rows."
        )
    patch = patch_at(placement.shows, tokens.grid, y, x)
    if patch is None:
        raise ConfigError(
            f"The network was not shown the pixel {x},{y}: preprocess cuts it away. Name one "
            f"within {placement.shows}."
        )
    token: Floats = tokens.read(slices["row"].to_numpy())[0, -1][patch].astype(np.float32)
    return token


def nearest_patches(
    config: Config, tokens: Tokens, slices: pa.Table, vector: Floats, k: int, level: Level
) -> list[PatchHit]:
    """Return the k units of some slices whose nearest patch is most like a token (d,)."""
    units = LEVELS[level].unit_names(slices)
    rows = slices["row"].to_numpy()
    near: list[tuple[float, int, int]] = []
    for first, cosine, patch in _each_slice(tokens, rows, vector):
        for i in range(len(cosine)):
            near += zip(cosine[i], [first + i] * cosine.shape[1], patch[i], strict=True)
    # The nearest first; of equals the earlier.
    near.sort(key=lambda each: (-each[0], each[1], each[2]))
    hits: dict[str, PatchHit] = {}
    h, w = tokens.grid
    for cosine_, place, number in near:
        if len(hits) == k:
            break
        if units[place] in hits:
            continue
        one = slices.slice(place, 1)
        (placement,) = _placements(config, one)
        middle = patch_middle(placement, (h, w), divmod(int(number), w))
        if middle is None:  # it shows padding
            continue
        y, x = middle
        (found,) = one.select(["patient", "modality", "row", "path", "frame"]).to_pylist()
        hits[units[place]] = PatchHit(
            cosine=float(cosine_), unit=str(units[place]), x=x, y=y, **found
        )
    return list(hits.values())


def _each_slice(
    tokens: Tokens, rows: Rows, vector: Floats
) -> Iterator[tuple[int, Floats, NDArray[np.int64]]]:
    """Yield of some slices after others the place of the first, cosines (b, _KEPT) and patches."""
    for first in range(0, len(rows), tokens.chunk_rows):
        some = tokens.read(rows[first : first + tokens.chunk_rows])[:, -1]
        b, h, w, d = some.shape
        # The query stands behind the slices' patches, of which each slice is searched by itself.
        x = np.concatenate([some.reshape(b * h * w, d).astype(np.float32), vector[None]])
        cosine = np.empty((b, min(_KEPT, h * w)), np.float32)
        patch = np.empty(cosine.shape, np.int64)
        for i in range(b):
            of_slice = np.arange(i * h * w, (i + 1) * h * w)
            cosine[i], patch[i] = exact(x, of_slice, np.array([b * h * w]), cosine.shape[1])
        yield first, cosine, patch


def _placements(config: Config, slices: pa.Table) -> list[Placement]:
    """Return where the network's input lies in each slice."""
    rules: Preprocess = config.preprocess
    return [placement_of(row, config.data.root, rules) for row in slice_rows(slices)]
