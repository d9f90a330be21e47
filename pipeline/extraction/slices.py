"""The slices of parts to embed, from the store's table: a part's when its turn comes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.preprocessing.volume_range import by_series
from stores import FeatureStore, PartRange
from stores.slices import SLICE_SCHEMA, SliceRow, of_modalities, slice_rows

_COLUMNS = ["row", "path", "frame", "series", "modality", "withdrawn"]
# What tells how the slices of a volume lie.
VOLUME_COLUMNS = ("position_mm", "height", "width", "spacing_y_mm", "spacing_x_mm", "flags")


class PartSlices:
    """The live slices of some parts, as the table was at one moment; withdrawn since, none.

    counts: part -> how many slices it has. joined: a table, by row, of the slices that depend on
    their volumes, of every series that has one in these parts: all of the table that is in memory.
    """

    def __init__(
        self,
        store: FeatureStore,
        parts: Sequence[PartRange],
        depends: Callable[[str], bool],
        more: Sequence[str] = (),
    ) -> None:
        """depends: whether what is made of a slice of a modality depends on its volume as well.

        more: columns that are wanted beside those that say where pixels are.
        """
        self._columns = [*_COLUMNS, *more]
        self._store = store
        self._file = store.slice_file
        self.counts = Counter[int]()
        start = min(part.start for part in parts)
        stop = max(part.stop for part in parts)
        indices = np.array([part.index for part in parts])
        series = set[str]()
        # Piece by piece: a table of 10^7 slices is not read for the parts of one process.
        for piece in self._file.between(start, stop, ["row", "series", "modality", "withdrawn"]):
            live = _live(piece)
            part_of = live["row"].to_numpy() // store.layout.part_rows
            here = np.isin(part_of, indices)
            self.counts.update(part_of[here].tolist())
            dependent = _dependent(live.filter(pa.array(here)), depends)
            # Of their volumes all slices are wanted, of whichever parts they are.
            series.update(dependent["series"].drop_null().to_pylist())
        self.joined = self._all_of(series, depends)
        self._rows: NDArray[np.int64] = self.joined["row"].to_numpy()

    def _all_of(self, series: set[str], depends: Callable[[str], bool]) -> pa.Table:
        """Return the dependent slices of some series, also of parts that are not to be embedded."""
        tables = [pa.schema([SLICE_SCHEMA.field(name) for name in self._columns]).empty_table()]
        if series:
            names = pa.array(sorted(series), pa.string())
            for piece in self._file.between(0, np.iinfo(np.int64).max, self._columns):
                dependent = _dependent(_live(piece), depends)
                tables.append(dependent.filter(pc.is_in(dependent["series"], names)))
        return pa.concat_tables(tables)

    def of(self, part: PartRange) -> list[SliceRow]:
        """Return the slices of one part, in row order, but for those withdrawn since.

        To be called once the part is claimed: whoever withdraws a patient later finds the claim.
        """
        slices: list[SliceRow] = []
        for piece in self._file.between(part.start, part.stop, self._columns):
            slices += slice_rows(_live(piece))
        withdrawn = set(self._store.withdrawn_in(part).tolist())
        return [slice_ for slice_ in slices if slice_.row not in withdrawn]

    def neighbours(
        self, slices: Iterable[SliceRow], thickens: Callable[[str], bool]
    ) -> dict[int, list[SliceRow]]:
        """Return the neighbours in their series of those slices that are seen thicker, by row.

        The rows of a series are in the order of its slices.
        """
        neighbours: dict[int, list[SliceRow]] = {}
        for slice_ in slices:
            if thickens(slice_.modality):
                places = self._series[slice_.series]
                at = int(np.searchsorted(self._rows[places], slice_.row))
                near = [*places[max(0, at - 1) : at], *places[at + 1 : at + 2]]
                rows = self.joined.take(pa.array(near, pa.int64()))
                neighbours[slice_.row] = slice_rows(rows)
        return neighbours

    @functools.cached_property
    def _series(self) -> dict[str, NDArray[np.int64]]:
        """The places in `joined` of each series' slices, looked for at the first thick slice."""
        return by_series(self.joined)


def _live(slices: pa.Table) -> pa.Table:
    return slices.filter(pc.invert(slices["withdrawn"]))


def _dependent(slices: pa.Table, depends: Callable[[str], bool]) -> pa.Table:
    return slices.filter(of_modalities(slices, depends))
