"""Regions gathered: masks to what their structures cover, cached tokens to features of each.

What did not change is kept: a slice whose mask is as it was, and of one that changed each structure
that covers what it did. No image is embedded; `pipeline.annotations.regions` reads what is filed.
Dims: p pieces, h, w patch grid, d features.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotations.region_notes import region_notes
from pipeline.annotations.regions import (
    COVERED,
    EXAMPLES,
    FEATURES,
    INDEX_SCHEMA,
    POOLS,
    Regions,
    coverages_digest,
    features_path,
    index_path,
    region_name,
    structures_of,
    with_origin,
)
from pipeline.config.regions import RegionChoice
from pipeline.config.root import Config
from pipeline.evaluation.result_files import write_table
from pipeline.segmentation.contracts import Rows
from pipeline.segmentation.region_sources import RegionSource, region_source
from pipeline.segmentation.tokens import Tokens
from pipeline.segmentation.units import groups_of
from pipeline.shared.arrays import Floats
from pipeline.shared.texts import count
from stores._disk import CHECKSUM, files_in, sha256
from stores.errors import ConfigError, CorruptStoreError
from stores.features import OK, FeatureStore
from stores.slices import slice_rows

log = logging.getLogger(__name__)

# What is being done, how much of it is done, of how much.
Progress = Callable[[str, int, int], None]
Piece = dict[str, Any]  # INDEX_SCHEMA


@dataclass(frozen=True)
class Gathered:
    """What some masks or boxes come to: regions, those pooled now, and what is to be said of them.

    faults: the masks or boxes that cannot be used; notes: of these too, counted.
    """

    masks: str
    slices: int
    regions: int
    pooled: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it in sentences."""
        lines = [
            f"Regions of {self.masks}: {count(self.regions, 'region')} in "
            f"{count(self.slices, 'slice')}, "
            f"{self.pooled} of them pooled now."
        ]
        return lines + [f"Regions of {self.masks}: {note}." for note in self.notes]

    def fault_lines(self) -> list[str]:
        """Return what cannot be used, in sentences."""
        lines = [
            f"Regions of {self.masks}: cannot be used: {each}." for each in self.faults[:EXAMPLES]
        ]
        others = len(self.faults) - EXAMPLES
        if others > 0:
            lines.append(f"Regions of {self.masks}: {others} more cannot be used.")
        return lines


def update_regions(config: Config, progress: Progress | None = None) -> list[Gathered]:
    """Bring the regions that the config's tasks ask for up to its masks; none where none do.

    And those of the collection that its heads are fitted on, where that is another. Raises
    LabelError where no mask can be used, ConfigError where the store has no patch tokens, and
    StaleTablesError where a patient was withdrawn meanwhile.
    """
    gathered = []
    for each in (config, config.fit_on):
        if not isinstance(each, Config):
            continue
        choices = [task.region for task in each.tasks.values() if task.region is not None]
        if choices:
            store = FeatureStore.open(each.store)
            gathered += [
                gather(each, store, choice, progress) for choice in _one_a_source(each, choices)
            ]
    return gathered


def _one_a_source(config: Config, choices: Iterable[RegionChoice]) -> list[RegionChoice]:
    """Return a choice for each masks or boxes, of the structures that any choice names of them."""
    by_source: dict[tuple[str | None, str | None], RegionChoice] = {}
    for choice in choices:
        source = choice.masks, choice.boxes
        before = by_source[source].structures if source in by_source else ()
        structures = dict.fromkeys([*before, *structures_of(config, choice)])
        by_source[source] = choice.model_copy(update={"structures": tuple(structures)})
    return list(by_source.values())


def gather(
    config: Config, store: FeatureStore, choice: RegionChoice, progress: Progress | None = None
) -> Gathered:
    """Bring the regions of masks or boxes of a config up to them. Raises as `update_regions`."""
    name = choice.name
    withdrawn = store.withdrawn  # before anything of the store is read
    report = functools.partial(progress, f"{name}: masks") if progress else None
    source = region_source(config, store, choice, report)
    before = _on_file(config, store, choice)
    index = _index(store, source, before)
    has_features = store.status()[index["row"].to_numpy()] == OK
    wanted = np.flatnonzero((index["weight"].to_numpy() > 0) & has_features)
    kept, todo = _known(index, wanted, before)
    if before is None or len(todo) or not index.equals(before.index, check_metadata=True):
        pooled = None
        if len(todo):
            report = functools.partial(progress, f"{name}: patch tokens") if progress else None
            pooled = _pooled(store, source, index, todo, report)
        table = _features_table(wanted, kept, before, pooled)
        path = index_path(config, choice)
        features = features_path(path, coverages_digest(index))
        with store.filing(withdrawn):
            path.parent.mkdir(exist_ok=True)
            # The index comes last: a kill in between leaves features that no index names.
            write_table(features, table)
            write_table(path, index)
            _remove_others(path, features)
    named = index.select(["whole", "structure", "box"])
    regions = Regions(index_path(config, choice), index)
    return Gathered(
        name,
        slices=len(source.rows),
        regions=len(_names(named.take(pa.array(wanted)))),
        pooled=len(_names(named.take(pa.array(todo)))),
        faults=tuple(source.faults),
        notes=tuple(region_notes(regions, structures_of(config, choice), store)),
    )


def _names(pieces: pa.Table) -> set[str]:
    """Return the names of the regions that some pieces are of."""
    return {region_name(**piece) for piece in pieces.to_pylist()}


def _on_file(config: Config, store: FeatureStore, choice: RegionChoice) -> Regions | None:
    """Return what was gathered before; None where nothing is there, whole, of this version."""
    try:
        regions = Regions.of(config, store, choice)
        if regions.index.schema.equals(INDEX_SCHEMA):
            regions.check_features()
            return regions
    except (ConfigError, FileNotFoundError, CorruptStoreError) as error:
        log.info("Regions of %s are gathered anew: %s", choice.name, error)
    return None


# --- what is covered -----------------------------------------------------------------------------


def _index(store: FeatureStore, source: RegionSource, before: Regions | None) -> pa.Table:
    """Return the pieces of all slices that may show any, by row; what is as it was is kept."""
    known: dict[tuple[int, str], list[Piece]] = {}
    for piece in before.index.to_pylist() if before else ():
        known.setdefault((piece["row"], piece["mask"]), []).append(piece)
    grid = Tokens(store).grid
    pieces = []
    for row, digest, whole in zip(
        source.rows.tolist(), source.digests, _wholes(store, source.rows), strict=True
    ):
        of_slice = known.get((row, digest)) or list(_pieces(source, row, digest, grid))
        pieces += [piece | {"whole": whole} for piece in of_slice]
    table = pa.Table.from_pylist(pieces, schema=INDEX_SCHEMA)
    return with_origin(table, source.faults, source.cut, store.fingerprint(), source.structures)


def _wholes(store: FeatureStore, rows: Rows) -> list[str]:
    """Return the image or volume (n,) of each slice."""
    table = store.slices()
    places = np.searchsorted(table["row"].to_numpy(), rows)
    ids, members = groups_of(slice_rows(table.take(pa.array(places))))
    wholes = [""] * len(rows)
    for name, of_unit in zip(ids, members, strict=True):
        for place in of_unit:
            wholes[place] = name
    return wholes


def _pieces(source: RegionSource, row: int, digest: str, grid: tuple[int, int]) -> Iterator[Piece]:
    """Yield what each region covers of a slice; of a slice without any, that it has none."""
    none: Piece = dict.fromkeys(INDEX_SCHEMA.names) | {"row": row, "mask": digest, "weight": 0.0}
    covered = list(source.covered(row, grid))
    for each in covered:
        yield none | {
            "structure": each.structure,
            "box": each.box,
            "pixels": each.pixels,
            "seen": each.seen,
            "weight": float(each.shares.sum(dtype=np.float64)),
            "cover": float(each.shares.max()),
            "coverage": sha256(each.shares.tobytes()),
        }
    if not covered:
        yield none


# --- what their tokens come to -------------------------------------------------------------------


def _known(index: pa.Table, wanted: Rows, before: Regions | None) -> tuple[dict[int, int], Rows]:
    """Return which pieces were pooled before, as which of then, and the numbers of the others."""
    if before is None:
        return {}, wanted
    then: dict[tuple[Any, ...], int] = {}
    keys = _keys(before.index)
    for number in before.pooled.tolist():
        then[keys[number]] = number
    keys = _keys(index)
    kept = {piece: then[keys[piece]] for piece in wanted.tolist() if keys[piece] in then}
    return kept, np.array([piece for piece in wanted.tolist() if piece not in kept], np.int64)


def _keys(index: pa.Table) -> list[tuple[Any, ...]]:
    """Return what the features of each piece depend on: its slice, and what it covers of it."""
    columns = (index[name].to_pylist() for name in ("row", "structure", "box", "coverage"))
    return list(zip(*columns, strict=True))


def _pooled(
    store: FeatureStore,
    source: RegionSource,
    index: pa.Table,
    pieces: Rows,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Floats]:
    """Return (b, d) for each of POOLS, of pieces in the order of their rows."""
    tokens = Tokens(store)
    rows = index["row"].to_numpy()[pieces]
    own = index.select(["structure", "box"]).take(pa.array(pieces)).to_pylist()
    each: dict[str, list[Floats]] = {name: [] for name in POOLS}
    distinct = np.unique(rows)
    for first in range(0, len(distinct), tokens.chunk_rows):
        some = distinct[first : first + tokens.chunk_rows]
        for row, of_slice in zip(some.tolist(), tokens.read(some)[:, -1], strict=True):
            x = of_slice.reshape(-1, of_slice.shape[-1]).astype(np.float32)
            covered = source.covered(row, tokens.grid)
            shares = {(each.structure, each.box): each.shares for each in covered}
            start, stop = np.searchsorted(rows, [row, row + 1])
            for place in range(start, stop):
                for name, values in _pools(
                    x, shares[own[place]["structure"], own[place]["box"]]
                ).items():
                    each[name].append(values)
        if progress:
            progress(min(first + tokens.chunk_rows, len(distinct)), len(distinct))
    return {name: np.stack(values) for name, values in each.items()}


def _pools(x: Floats, shares: Floats) -> dict[str, Floats]:
    """Return (d,) for each of POOLS, of tokens x (h * w, d) and the share (h * w,) of each."""
    covers = shares > 0
    x, shares = x[covers], shares[covers]
    weight = (shares / shares.sum(dtype=np.float64)).astype(np.float32)
    counts = shares >= min(COVERED, shares.max())
    return {"mean": weight @ x, "max": x[counts].max(axis=0), "square": weight @ x**2}


def _features_table(
    pieces: Rows, kept: dict[int, int], before: Regions | None, pooled: dict[str, Floats] | None
) -> pa.Table:
    """Return the features of pieces, by number: those that were kept, and those pooled now."""
    is_kept = np.isin(pieces, list(kept))
    columns: dict[str, Any] = {"piece": pieces}
    for name in POOLS:
        of_kept = None
        if before is not None and kept:
            of_kept = before.features(name, np.array(list(kept.values()), np.int64))
        of_new = None if pooled is None else pooled[name]
        parts = [each for each in (of_kept, of_new) if each is not None]
        if not parts:  # no structure covers anything
            continue
        values = np.empty((len(pieces), parts[0].shape[1]), np.float32)
        if of_kept is not None:
            values[is_kept] = of_kept
        if of_new is not None:
            values[~is_kept] = of_new
        columns[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    return pa.table(columns)


def _remove_others(index: Path, features: Path) -> None:
    """Remove the features of an index as it was before."""
    for path in files_in(index.parent, f"{index.stem}-*{FEATURES}"):
        if path != features:
            path.unlink(missing_ok=True)
            path.with_name(path.name + CHECKSUM).unlink(missing_ok=True)
