"""The units of a task: what is true of them, whose they are, which slices are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.levels import column_of_parts
from pipeline.config.tasks import Kind, Pool
from pipeline.results import Tally
from pipeline.shared.arrays import numbers_of


@dataclass(frozen=True)
class Truth:
    """What is true of n units, and whose they are.

    y (n,) int64 class indices; (n, c) int8 for multi-label: 1, 0, or -1 where not known; (n,)
    float64 for regression; or (n, 2) float64 for survival: how long each was watched, and 1 where
    its event was seen or 0. groups (n,): the patients; classes: the c names in index order, of
    which the last is the positive one where there are two (see `classes.encode`); for regression
    the column's name, and for survival that of the event.
    """

    y: NDArray[Any]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    kind: Kind

    @property
    def indicator(self) -> NDArray[np.bool_]:
        """(n, c): which classes or labels, or the event, each unit is known to carry."""
        if self.kind == "multilabel":
            return np.asarray(self.y == 1)
        if self.kind == "survival":
            return np.asarray(self.y[:, 1:] == 1)
        return np.asarray(self.y[:, None] == np.arange(len(self.classes)))

    @property
    def strata(self) -> NDArray[np.bool_]:
        """(n, c): the classes or labels each unit carries, of a number its quarter.

        Of survival whether its event was seen.
        """
        if self.kind == "survival":
            return np.concatenate([self.indicator, ~self.indicator], axis=1)
        if self.kind != "regression":
            return self.indicator
        # A quarter as a class, so that every side has young and old.
        bounds = np.quantile(self.y, [0.25, 0.5, 0.75])
        quarter = np.searchsorted(bounds, self.y)
        return np.asarray(quarter[:, None] == np.arange(4))

    @property
    def patient(self) -> NDArray[np.int64]:
        """(n,) the number of each unit's patient, as `numbers_of` counts: by their first units."""
        return numbers_of(self.groups)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n, c): of which classes or labels a unit is known to carry them or not."""
        if self.kind == "multilabel":
            return np.asarray(self.y >= 0)
        return np.ones((len(self.y), len(self.classes)), bool)

    def at(self, which: NDArray[Any]) -> Truth:
        """Return the truth of some units, by number or by mask."""
        return Truth(self.y[which], self.groups[which], self.classes, self.kind)


class Seen(Protocol):
    """What each slice of some units has of them, where that is not the slice as a whole."""

    def at(self, places: NDArray[np.int64]) -> Seen:
        """Return that of some of the slices (m,), by their places."""

    def features(
        self, unit: NDArray[np.int64], n: int, which: str, pool: Pool
    ) -> NDArray[np.float32]:
        """Return (n, d) the features of units; unit (m,): the unit of each slice.

        which, pool: what a head and a task say of the features of whole slices.
        """


@dataclass(frozen=True)
class Units(Truth):
    """What a task is scored on: n images, series, studies or patients, with their labels.

    ids (n,): row number, or pseudonym; rows (m,) ascending: the slices; unit (m,): the unit each
    slice belongs to, whose features are pooled over its slices. notes: what results say of the
    labels. along (m,): see `places_along`; None where it is not known. seen: what the units are
    seen by in the place of their slices' features; None for these.
    """

    ids: NDArray[np.str_]
    rows: NDArray[np.int64]
    unit: NDArray[np.int64]
    tally: Tally
    notes: tuple[str, ...] = ()
    along: NDArray[np.float64] | None = None
    seen: Seen | None = None

    @classmethod
    def unlabelled(
        cls,
        ids: NDArray[np.str_],
        rows: NDArray[np.int64],
        unit: NDArray[np.int64],
        along: NDArray[np.float64] | None = None,
        seen: Seen | None = None,
    ) -> Units:
        """Return units of which the features alone matter, each a group of its own."""
        return cls(
            y=np.zeros(len(ids)),
            groups=ids,
            classes=("",),
            kind="regression",
            ids=ids,
            rows=rows,
            unit=unit,
            tally=Tally(),
            along=along,
            seen=seen,
        )

    @cached_property
    def z(self) -> NDArray[np.float64]:
        """(m,) where each slice lies in its volume, from 0 to 1; if unknown by order."""
        return _by_order(self.unit) if self.along is None else self.along

    def in_order(self, order: NDArray[np.int64]) -> Units:
        """Return the same units numbered anew: order (n,) has the numbers that they have by now."""
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        return replace(
            self,
            y=self.y[order],
            groups=self.groups[order],
            ids=self.ids[order],
            unit=number[self.unit],
        )

    def each_slice(self) -> Units:
        """Return every slice as a unit of its own, in the order of `rows`, without its label."""
        return replace(self, unit=np.arange(len(self.rows)), ids=self.rows.astype(np.str_))

    def places_in(self, slices: pa.Table) -> NDArray[np.int64]:
        """Return (m,) where each slice of the units stands in a slice table, in order of its rows.

        In one of regions, where a slice stands once for each that it has, that of its unit.
        """
        rows = slices["row"].to_numpy()
        column = column_of_parts(slices)
        if column is None:
            return np.searchsorted(rows, self.rows)
        names = slices[column].to_pylist()
        place = {pair: i for i, pair in enumerate(zip(rows.tolist(), names, strict=True))}
        of_units = zip(self.rows.tolist(), self.ids[self.unit].tolist(), strict=True)
        return np.array([place[pair] for pair in of_units], np.int64)

    def one_a_volume(self, slices: pa.Table) -> Units:
        """Return the same units by one slice of each volume, the middle one.

        Where all slices of a volume have one vector, so that none counts more for its slices.
        slices: those of `rows`, as a slice table.
        """
        volume = _volumes_of(slices)
        order = np.argsort(volume, kind="stable")
        size = np.bincount(volume)
        kept = np.sort(order[np.cumsum(size) - size + size // 2])
        return replace(
            self,
            rows=self.rows[kept],
            unit=self.unit[kept],
            along=None if self.along is None else self.along[kept],
        )

    def bags(self) -> Bags:
        """Return which slices belong to each unit."""
        counts = np.bincount(self.unit, minlength=len(self.ids))
        first = np.concatenate([[0], np.cumsum(counts)])
        # Stable, so that places ascend within each unit.
        return Bags(np.argsort(self.unit, kind="stable"), first)


def places_along(slices: pa.Table) -> NDArray[np.float64]:
    """Return (m,) where each slice of a slice table lies in its volume, from 0 to 1.

    By its position along the normal, between those of the volume's first and last slice in the
    table; in a volume without positions by order. One alone lies in the middle.
    """
    volume = _volumes_of(slices)
    position = slices["position_mm"].to_numpy(zero_copy_only=False).astype(np.float64)
    number = int(volume.max(initial=-1)) + 1
    low = np.full(number, np.inf)
    high = np.full(number, -np.inf)
    is_known = ~np.isnan(position)
    np.minimum.at(low, volume[is_known], position[is_known])
    np.maximum.at(high, volume[is_known], position[is_known])
    length = (high - low)[volume]
    is_placed = (length > 0) & ~np.isin(volume, volume[~is_known])
    places = _by_order(volume)
    places[is_placed] = (position - low[volume])[is_placed] / length[is_placed]
    return places


def _volumes_of(slices: pa.Table) -> NDArray[np.int64]:
    """Return (m,) the number of each slice's volume; one without a series is its own."""
    codes = slices["series"].combine_chunks().dictionary_encode().indices
    volume: NDArray[np.int64] = codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    alone = volume < 0
    volume[alone] = volume.max(initial=-1) + 1 + np.arange(alone.sum())
    return volume


def _by_order(group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (m,) the place of each item in its group, the first 0 and the last 1; alone 0.5."""
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    start = np.cumsum(size) - size
    place = np.empty(len(group))
    place[order] = np.arange(len(group)) - np.repeat(start, size)
    last = size[group] - 1
    return np.where(last > 0, place / np.maximum(last, 1), 0.5)


@dataclass(frozen=True)
class SliceWeights:
    """What the slices of some units counted. rows (s,): of a store; unit (s,): each one's unit,
    by its place among those predicted; weight (s,): sums to 1 over the slices of a unit.
    """

    rows: NDArray[np.int64]
    unit: NDArray[np.int64]
    weight: NDArray[np.float64]

    @classmethod
    def joined(cls, each: Sequence[tuple[SliceWeights, int]]) -> SliceWeights:
        """Return the weights of units after units; each with the number of its units."""
        first = np.cumsum([0, *(q for _, q in each)])
        return cls(
            rows=np.concatenate([weights.rows for weights, _ in each]),
            unit=np.concatenate(
                [weights.unit + start for (weights, _), start in zip(each, first, strict=False)]
            ),
            weight=np.concatenate([weights.weight for weights, _ in each]),
        )


@dataclass(frozen=True)
class Bags:
    """The slices of n units: places in `Units.rows`, ascending, of any unit by its number.

    order (m,): all places, unit by unit; first (n + 1,): where those of each unit begin in it.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]

    def __getitem__(self, unit: int) -> NDArray[np.int64]:
        return self.order[self.first[unit] : self.first[unit + 1]]


@dataclass(frozen=True)
class Prediction:
    """Probabilities (q, c) of the test units under one setting, such as {"k": 10}.

    Rows sum to 1, but for multi-label, where each column stands by itself. For regression: the
    numbers (q, 1). draws: where models were fitted on so many draws of the train units, proba is
    (draws * q, c), draw after draw; None for one model of all of them. on_val (v, c): what models
    that were fitted on train alone say of val, draw after draw, by which the operating point is
    chosen; None where a head says nothing of val. thresholds, as proba: the operating points, once
    they are chosen; NaN where a decision has none. chosen: of several predictions the one that val
    chose, and that stands for the answer; where none is, the last does. weights: how much each
    slice of the units counted, of heads that say so.
    """

    setting: dict[str, float]
    proba: NDArray[np.float64]
    draws: int | None = None
    on_val: NDArray[np.float64] | None = None
    thresholds: NDArray[np.float64] | None = None
    chosen: bool = False
    weights: SliceWeights | None = None
