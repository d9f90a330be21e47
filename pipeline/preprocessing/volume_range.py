"""Grey ranges of whole volumes, for rules of scope `volume`: found once, then kept in receipts.

A volume's range is found in one pass over its slices, before the first of them is embedded. Values
are counted after their float32 is cut to 14 significant bits: exact for integers to 16,384, and
within 1/8,192 of any other. Counts need 32 MB whatever the volume's size, and are whole numbers,
so that the same volume gives the same bits in whatever order it is read.

A range is kept in the receipt of every part that was scaled by it, under the volume's first row,
and later parts of that volume take it from there: what could be read then may not be readable now.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.recipe import Intensity, Percentiles, Preprocess, ZScore, of_volume
from pipeline.types import Failure, Slice
from stores.errors import ConfigError, UnreadableError
from stores.features import FeatureStore
from stores.slices import SliceRow, of_modalities, row_numbers, slice_rows

_DROPPED = 10  # of the 23 bits behind the point of a float32
_ZERO = 2 ** (31 - _DROPPED)  # where the value zero is counted; negative values stand below

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Name = tuple[str, str]  # of a volume: series, modality
Ends = tuple[float, float]
Ranges = dict[int, Ends]  # first row of a volume -> its range


class Histogram:
    """How often each value occurs in a volume."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * _ZERO, np.int64)

    def add(self, pixels: NDArray[Any]) -> None:
        """Count the finite values of a slice, float32 or integers that it can hold."""
        finite = pixels[np.isfinite(pixels)].astype(np.float32, copy=False)
        bits = finite.view(np.int32)
        # The bits of a float without its sign are in the order of its values.
        places = (bits & 0x7FFFFFFF) >> _DROPPED
        signed = np.where(bits < 0, -places, places)
        np.add.at(self._counts, _ZERO + signed, 1)

    def ends(self, rule: Intensity) -> Ends | None:
        """Return the values that a rule of scope `volume` makes 0 and 1; None of no values."""
        places = np.flatnonzero(self._counts)
        if not len(places):
            return None
        values = _values(places)
        counts = self._counts[places]
        match rule:
            case Percentiles():
                upto = counts.cumsum()
                low = _percentile(values, upto, rule.low)
                high = _percentile(values, upto, rule.high)
                return low, high
            case ZScore():
                total = counts.sum()
                mean = float((values * counts).sum() / total)
                squares = (values - mean) ** 2
                variance = float((squares * counts).sum() / total)
                reach = rule.clip * math.sqrt(variance)
                return mean - reach, mean + reach
        return None


def _values(places: Integers) -> Floats:
    """Return the value that is counted at each place."""
    bits = np.abs(places - _ZERO) << _DROPPED
    cut = bits.astype(np.int32).view(np.float32)
    signed: Floats = np.where(places < _ZERO, -cut, cut)
    return signed.astype(np.float64)


def _percentile(values: Floats, upto: Integers, percent: float) -> float:
    """Return a percentile of ascending values, linear between neighbours as in NumPy.

    upto: how many are at most each value.
    """
    place = percent / 100 * (int(upto[-1]) - 1)
    ranks = [math.floor(place), math.ceil(place)]
    places = np.searchsorted(upto, ranks, side="right")
    below, above = values[places]
    return float(below + (above - below) * (place % 1))


def by_series(slices: pa.Table) -> dict[str, Integers]:
    """Return the places in a table of the slices of each series, ascending."""
    series = slices["series"].combine_chunks().dictionary_encode()
    which = series.indices.to_numpy()
    order = np.argsort(which, kind="stable")
    numbers = np.arange(len(series.dictionary) + 1)
    bounds = np.searchsorted(which[order], numbers).tolist()
    places: dict[str, Integers] = {}
    for number, name in enumerate(series.dictionary.to_pylist()):
        start = bounds[number]
        stop = bounds[number + 1]
        places[name] = order[start:stop]
    return places


class Volumes:
    """The volumes that scale their slices, and their ranges once they were surveyed."""

    def __init__(
        self,
        preprocess: Preprocess,
        slices: pa.Table,
        recorded: Callable[[Iterable[int]], Ranges],
    ) -> None:
        """slices: live ones by row, all of each volume; recorded: rows -> ranges on file there."""
        self._preprocess = preprocess
        # Asked of every slice, of few modalities.
        self._scales = functools.cache(lambda modality: of_volume(preprocess.rule(modality)))
        self._recorded = recorded
        self._first: dict[Name, int] = {}  # of the volumes met so far
        self._ends: dict[Name, Ends | None] = {}
        self._slices = slices.filter(of_modalities(slices, self._scales))
        self._places = by_series(self._slices)

    def take(self, slices: Iterable[SliceRow]) -> dict[Name, list[SliceRow]]:
        """Return the volumes to be surveyed, with all their slices.

        Those are the ones met here first, of which no committed part has the range on file.
        """
        surveyed: dict[Name, list[SliceRow]] = {}
        for name in filter(None, map(self._name, slices)):
            if name in self._first:
                continue
            volume = self._volume(*name)
            first = volume[0].row
            self._first[name] = first
            # A range on file stands: not all slices that made it may be readable by now.
            recorded = self._recorded(slice_.row for slice_ in volume)
            if first in recorded:
                self._ends[name] = recorded[first]
            else:
                surveyed[name] = volume
        return surveyed

    def _volume(self, series: str, modality: str) -> list[SliceRow]:
        """Return the slices of a volume, in row order."""
        places = pa.array(self._places[series])
        slices = slice_rows(self._slices.take(places))
        return [slice_ for slice_ in slices if slice_.modality == modality]

    def survey(
        self, name: Name, slices: Iterable[SliceRow], items: Iterator[Slice | Failure]
    ) -> list[int]:
        """Find the range of a volume from an item a slice; return the rows that are left out.

        Those are the slices that cannot be read.
        """
        left_out: list[int] = []
        histogram = Histogram()
        for slice_ in slices:
            item = next(items)
            if isinstance(item, Slice):
                histogram.add(item.pixels)
            else:
                left_out.append(slice_.row)
        _, modality = name
        self._ends[name] = histogram.ends(self._preprocess.rule(modality))
        return left_out

    def ranges(self, slices: Iterable[SliceRow]) -> Ranges:
        """Return the ranges that scale some slices, to be put on file in their part's receipt."""
        ranges: Ranges = {}
        for name in set(filter(None, map(self._name, slices))):
            ends = self._ends[name]
            if ends is None:
                continue  # nothing of it could be read
            first = self._first[name]
            ranges[first] = ends
        return dict(sorted(ranges.items()))

    def ranged(self, slice_: SliceRow, item: Slice) -> Slice:
        """Return a slice with the range of its volume, where that scales it.

        Raises UnreadableError where a slice can be read of whose volume nothing could be before.
        """
        name = self._name(slice_)
        if name is None:
            return item
        ends = self._ends[name]
        if ends is None and np.isfinite(item.pixels).any():
            raise UnreadableError("vanished", "no slice of its volume could be read for its range")
        return replace(item, ends=ends)

    def _name(self, slice_: SliceRow) -> Name | None:
        """Return which volume scales a slice; None where it does so itself."""
        if self._scales(slice_.modality):
            return slice_.series, slice_.modality
        return None


def recorded_ends(
    store: FeatureStore, slices: pa.Table, preprocess: Preprocess, row: SliceRow
) -> Ends | None:
    """Return the range that a slice was scaled by; None where it was scaled by itself.

    slices: the store's table, by row. Raises ConfigError where its part's receipt does not tell it.
    """
    if not of_volume(preprocess.rule(row.modality)):
        return None
    receipt = store.receipt(row.row // store.layout.part_rows)
    for volume in () if receipt is None else receipt.ranges:
        place = int(np.searchsorted(row_numbers(slices), volume.row))
        (first,) = slice_rows(slices.slice(place, 1))
        if first.series == row.series and first.modality == row.modality:
            return volume.low, volume.high
    raise ConfigError(
        f"Row {row.row} was scaled by the range of its volume, which the store does not "
        "tell: it was extracted by an earlier version. Extract a new store for what sees images, "
        "or ask heads on features alone."
    )
