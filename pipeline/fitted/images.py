"""The volumes and images of a store that masks are drawn on: which slices, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.fitted.units import in_words, reasons_by_row
from pipeline.segmentation.units import groups_of
from pipeline.shared.arrays import Rows
from pipeline.shared.pseudonyms import Names
from stores.features import OK, UNREADABLE, VOID, FeatureStore
from stores.slices import SliceRow, is_withdrawn, slice_rows, with_column

COLUMNS = (
    "row",
    "path",
    "frame",
    "patient",
    "series",
    "position_mm",
    "modality",
    "height",
    "width",
    "spacing_y_mm",
    "spacing_x_mm",
    "withdrawn",
)


@dataclass(frozen=True)
class LiveImage:
    """A volume or an image. name: of its series, or its row; first: its first slice.

    slices: those with features, by their rows; unreadable: how many have none, for good; why: these
    could not be read, "" where all could.
    """

    name: str
    first: SliceRow
    slices: list[SliceRow]
    unreadable: int
    why: str

    @property
    def rows(self) -> Rows:
        """The rows of its slices."""
        return np.array([row.row for row in self.slices], np.int64)


@dataclass(frozen=True)
class LiveImages:
    """The live slices (m,) of a store, with real paths where the key is there.

    pending: how many await extraction, and are not among them. reasons: row -> why it could not be
    read.
    """

    slices: pa.Table
    status: NDArray[np.uint8]
    pending: int
    reasons: dict[int, str]

    @classmethod
    def of(cls, store: FeatureStore, names: Names, patients: NDArray[np.str_] | None) -> LiveImages:
        """Gather the slices of a store.

        patients (all slices,): who each is of where labels say it, None for the headers' word.
        """
        slices = store.slices(COLUMNS)
        if patients is not None:
            slices = with_column(slices, "patient", pa.array(patients, pa.string()))
        if names.has_key:
            slices = names.revealed(slices)
        by_row = store.status()
        status = by_row[slices["row"].to_numpy()]
        is_live = ~is_withdrawn(slices)
        use = is_live & np.isin(status, (OK, UNREADABLE))
        pending = int((is_live & (status == VOID)).sum())
        reasons = reasons_by_row(store, by_row)
        return cls(slices.filter(pa.array(use)), status[use], pending, reasons)

    @property
    def readable(self) -> int:
        """How many slices have features."""
        return int((self.status == OK).sum())

    def images(self) -> Iterator[LiveImage]:
        """Yield the volumes and images, series after series."""
        series = self.slices["series"].fill_null("").combine_chunks().dictionary_encode()
        number = series.indices.to_numpy()
        order = np.argsort(number, kind="stable")
        cuts = np.flatnonzero(np.diff(number[order])) + 1
        # A series at a time: as Python's, a slice takes ten times the room.
        for places in np.split(order, cuts):
            rows = slice_rows(self.slices.take(pa.array(places)))
            yield from _of_series(rows, self.status[places] == OK, self.reasons)

    def pieces(self, slices: int) -> Iterator[list[LiveImage]]:
        """Yield images, of so many slices together at least, but for the last."""
        piece: list[LiveImage] = []
        size = 0
        for image in self.images():
            piece.append(image)
            size += len(image.slices)
            if size >= slices:
                yield piece
                piece = []
                size = 0
        if piece:
            yield piece


def _of_series(
    rows: Sequence[SliceRow], has_features: NDArray[np.bool_], reasons: Mapping[int, str]
) -> Iterator[LiveImage]:
    """Yield the images of a series, or its volume; what cannot be read is its, or by itself."""
    there = [rows[place] for place in np.flatnonzero(has_features).tolist()]
    unreadable = [rows[place] for place in np.flatnonzero(~has_features).tolist()]
    names, members = groups_of(there)
    of_volume: list[SliceRow] = []
    if len(members) == 1 and len(there) > 1:
        of_volume = unreadable
        unreadable = []

    def why(lost: Sequence[SliceRow]) -> str:
        return in_words([reasons[row.row] for row in lost if row.row in reasons])

    for name, places in zip(names, members, strict=True):
        slices = [there[place] for place in places]
        yield LiveImage(name, slices[0], slices, len(of_volume), why(of_volume))
    for row in unreadable:
        yield LiveImage(f"{row.row}", row, [], 1, why([row]))
