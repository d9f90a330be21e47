"""What a run would do, and why, by the same look at the collection that the run takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.extraction.failures import Lost, aside
from pipeline.extraction.recipes import (
    Difference,
    check_levels,
    differences,
    feature_arrays,
    make_recipe,
    open_store,
    part_rows_of,
)
from pipeline.extraction.selection import LEFT_OUT, OTHER, left_out_folders, set_aside
from pipeline.extraction.sync import Look, look
from pipeline.inference.throughput import load_throughput
from pipeline.recipe import Recipe
from stores import FeatureStore, Layout
from stores.errors import ConfigError, StoreNotFoundError
from stores.features import LEDGER
from stores.reconcile import Change
from stores.storage import storage_of


@dataclass(frozen=True)
class Plan:
    """What `extract` would do now.

    found: how many slices came which way, or were left out as unmasked; embed: slices that the
    network would see (of those, some may turn out to have known pixels); set_aside: the files that
    are set aside and the folders left out, by reason, their paths real; folders_left_out: by what
    they are; notes: what of the config has no effect; parts, bytes, files: what would be written;
    part_rows: slices that a part takes the room of, full or not; hours: by what `hours_by` names,
    None where nothing is known: what this machine measured of the network, or else the pace of what
    the store holds.
    """

    store: str
    new: bool
    weights: str
    slices: int
    found: dict[str, int]
    files_set_aside: dict[str, int]
    set_aside: list[Lost]
    folders_left_out: dict[str, int]
    notes: list[str]
    embed: int
    parts: int
    part_rows: int
    bytes: int
    files: int
    hours: float | None
    hours_by: Literal["bench", "store", "nothing"]


@dataclass(frozen=True)
class Explanation:
    """Why a store is stale: fields of the recipe, slices of the collection, parts on disk."""

    store: str
    fields: list[Difference]
    changes: list[Change]
    parts: list[tuple[int, str]]

    @property
    def fresh(self) -> bool:
        """True where nothing is stale."""
        return not (self.fields or self.changes or self.parts)


def plan(
    config: Config,
    *,
    rehash: bool = False,
    on_look: Callable[[Look], None] = lambda look: None,
) -> Plan:
    """Return what `extract` would do; writes nothing.

    on_look: is given the look at the collection, which holds all slices, and is not kept. Raises
    RecipeMismatchError, WeightsError or ConfigError where `extract` would.
    """
    check_levels(config)
    recipe, _ = make_recipe(config)
    store = _existing(config)
    if store is not None:
        open_store(config, recipe)  # refuses another recipe in the words of `extract`
    this_look = _look(config, store, rehash)
    on_look(this_look)
    layout = store.layout if store is not None else Layout(part_rows_of(config, recipe))
    live = _live_rows(this_look.slices)
    parts = _missing(store, layout, live)
    part_bytes, part_files = _part_size(recipe, layout)
    embed = int(np.isin(live // layout.part_rows, parts).sum())
    size = len(parts) * part_bytes
    hours, source = _hours(config, store, recipe, embed, size)
    return Plan(
        store=storage_of(config.store).place,
        new=store is None,
        weights=recipe.weights,
        slices=len(live),
        found=this_look.counts,
        files_set_aside=dict(set_aside(this_look.files)),
        set_aside=_by_reason(this_look),
        folders_left_out=dict(left_out_folders(this_look.files)),
        notes=list(this_look.notes),
        embed=embed,
        parts=len(parts),
        part_rows=layout.part_rows,
        bytes=size,
        files=len(parts) * part_files,
        hours=hours,
        hours_by=source,
    )


def _by_reason(this_look: Look) -> list[Lost]:
    """Return what a look sets aside, by reason: what may be images first, folders left out last."""

    def rank(each: Lost) -> tuple[bool, str, bool]:
        return each.reason == OTHER, each.reason, each.detail.startswith(LEFT_OUT)

    return sorted(aside(this_look.names.revealed(this_look.files)), key=rank)


def unnamed(lost: Sequence[Lost]) -> list[Lost]:
    """Return the first of each reason, without its path."""
    first: dict[str, Lost] = {}
    for each in lost:
        first.setdefault(each.reason, replace(each, path=""))
    return [*first.values()]


def explain(config: Config, *, rehash: bool = False) -> Explanation:
    """Return what makes a store stale; writes nothing. Raises StoreNotFoundError."""
    recipe, _ = make_recipe(config)
    store = FeatureStore.open(config.store)
    fields = differences(store, recipe)
    if fields:  # another recipe makes every slice stale: there is no more to say
        return Explanation(store.place, fields, [], [])
    changes = list(_look(config, store, rehash).reconciled.changes)
    parts = [(part.index, store.receipts.doubt(part.index) or "") for part in store.missing()]
    return Explanation(store.place, [], changes, parts)


def _existing(config: Config) -> FeatureStore | None:
    try:
        return FeatureStore.open(config.store)
    except StoreNotFoundError:
        return None


def _look(config: Config, store: FeatureStore | None, rehash: bool) -> Look:
    if config.demo is not None and not config.data.root.exists():
        raise ConfigError(
            f"The demo collection {str(config.data.root)!r} is not written yet: `radprobe extract` "
            "writes it, and so does `radprobe demo-data`."
        )
    return look(config, store, rehash=rehash)


def _live_rows(slices: pa.Table) -> NDArray[np.int64]:
    """Return (n,) the rows of the slices that are not withdrawn."""
    withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
    return np.asarray(slices["row"].to_numpy()[~withdrawn])


def _missing(store: FeatureStore | None, layout: Layout, live: NDArray[np.int64]) -> list[int]:
    """Return the parts of the live rows that have no receipt to be believed."""
    needed = [int(index) for index in np.unique(live // layout.part_rows)]
    return [index for index in needed if store is None or store.receipt(index) is None]


def _part_size(recipe: Recipe, layout: Layout) -> tuple[int, int]:
    """Return bytes and files of one part: its chunks, and its receipt."""
    size = 0
    files = 1  # the receipt
    for spec in (LEDGER | feature_arrays(recipe)).values():
        size += spec.row_bytes * layout.part_rows
        files += layout.part_rows // layout.chunk_rows(spec.row_bytes)
    return size, files


def _hours(
    config: Config, store: FeatureStore | None, recipe: Recipe, slices: int, size: int
) -> tuple[float | None, Literal["bench", "store", "nothing"]]:
    """Return how long so many slices and bytes would take, and by what that is said."""
    # What was measured of this machine comes before what some machines took in the past.
    measured = load_throughput(recipe)
    if measured is not None:
        seconds = measured.seconds(slices, size / 1e6, recipe.precision, config.data.root)
        if seconds is not None:
            return seconds / 3600, "bench"
    slice_s = seconds_a_slice(store)
    if slice_s is None:
        return None, "nothing"
    return slices * slice_s / 3600, "store"


def seconds_a_slice(store: FeatureStore | None) -> float | None:
    """Return the seconds a slice took so far, without loading the network, by the receipts."""
    if store is None:
        return None
    seconds = 0.0
    slices = 0
    for part in store.parts():
        receipt = store.receipt(part.index)
        if receipt is None or not receipt.seconds:
            continue
        seconds += receipt.seconds.get("all", 0.0) - receipt.seconds.get("load", 0.0)
        slices += receipt.read  # an unreadable slice took its time too
    return seconds / slices if slices else None
