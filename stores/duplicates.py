"""The same pixels in two rows: found by their digests, across files and formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores._types import Bytes, Rows
from stores.contents import OK
from stores.features import FeatureStore
from stores.slices import row_numbers


@dataclass(frozen=True)
class Twins:
    """Rows whose slices have exactly the same pixels, ascending.

    patients: how many they are of, by the slice table; nameless: slices that it gives no patient.
    Twins of several patients leak from train to test, however the patients are divided.
    """

    rows: tuple[int, ...]
    patients: int
    nameless: int


def find_twins(store: FeatureStore) -> list[Twins]:
    """Return the groups of live embedded rows with equal pixels, by their first rows."""
    rows = np.flatnonzero(store.status() == OK)
    groups = group_equal(store.read("pixel_digest")[rows])
    slices = store.slices(["row", "patient"])
    patients = slices["patient"].to_pylist()
    patient_of = dict(zip(slices["row"].to_pylist(), patients, strict=True))
    twins = []
    for group in groups:
        members = tuple(rows[group].tolist())
        people = [patient_of.get(row) for row in members]
        nameless = sum(not person for person in people)
        twins.append(Twins(members, len({*filter(None, people)}), nameless))
    return sorted(twins, key=lambda each: each.rows)


def group_equal(digests: Bytes) -> list[Rows]:
    """Return the places of each digest (m, 32) that occurs more than once, ascending."""
    if not len(digests):
        return []
    size = digests.shape[1]
    keys = np.ascontiguousarray(digests).view(f"V{size}").ravel()
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(counts)
    groups = np.split(order, ends[:-1])
    return [places for places in groups if len(places) > 1]


class Originals:
    """Which row first held which pixels, so that the same picture is embedded once.

    A row stands for another where the pixels and the intensity rule are equal: then the network
    sees the same numbers. Keys are 15 bytes of the digest and one for the rule, 24 bytes a row in
    all. Rows of the part at work are kept apart until it is committed. They are read from the store
    once: what other processes commit later is not known, and `holds` tells what became of a row.
    """

    def __init__(self, store: FeatureStore, rule_of: Callable[[str], int | None]) -> None:
        """rule_of: modality -> a number below 256; None where equal pixels are not enough."""
        self._store = store
        self._rule_of = rule_of
        self._keys: NDArray[np.bytes_] = np.empty(0, "S16")  # ascending
        self._rows: Rows = np.empty(0, np.int64)
        self._part: dict[bytes, int] = {}
        ok = store.status() == OK
        slices = store.slices(["row", "modality"])
        embedded = ok[row_numbers(slices)]
        slices = slices.filter(pa.array(embedded))
        if not len(slices):
            return  # and no digest is read
        digests = store.read("pixel_digest")
        modalities = slices["modality"]
        for modality in pc.unique(modalities).to_pylist():
            rule = rule_of(modality)
            if rule is None:
                continue
            of_modality = slices.filter(pc.equal(modalities, modality))
            rows = row_numbers(of_modality)
            keys = np.full((len(rows), 16), rule, np.uint8)
            keys[:, :15] = digests[rows, :15]
            self._insert(keys.view("S16").ravel(), rows)

    def find(
        self, rows: Sequence[int], digests: Sequence[bytes], modalities: Sequence[str]
    ) -> dict[int, int]:
        """Return row -> the row that first held its pixels; rows of new pixels are remembered."""
        key_of_row: dict[int, bytes] = {}
        for row, digest, modality in zip(rows, digests, modalities, strict=True):
            rule = self._rule_of(modality)
            if rule is not None:
                key_of_row[row] = digest[:15] + bytes([rule])
        committed = self._committed(list(key_of_row.values()))
        first: dict[int, int] = {}
        for (row, key), known in zip(key_of_row.items(), committed, strict=True):
            original = self._part.setdefault(key, row) if known is None else known
            if original != row:
                first[row] = original
        return first

    def _committed(self, keys: list[bytes]) -> list[int | None]:
        """Return the row that is known for each key, of those of committed parts."""
        if not len(self._keys):
            return [None] * len(keys)
        wanted = np.array(keys, "S16")
        places = self._keys.searchsorted(wanted)
        places[places == len(self._keys)] = 0
        known = self._keys[places] == wanted
        rows = self._rows[places].tolist()
        return [row if is_known else None for row, is_known in zip(rows, known, strict=True)]

    def holds(self, row: int, digest: bytes) -> bool:
        """Return whether a row is committed and has features of these pixels now, on disk."""
        store = self._store
        place = np.array([row])
        if store.receipts.believed(row // store.layout.part_rows) is None:
            return False
        if store.array("status").gather(place)[0] != OK:  # purged since
            return False
        return bytes(store.array("pixel_digest").gather(place)[0]) == digest

    def commit(self) -> None:
        """Take the rows of the part at work over."""
        if self._part:
            keys = np.array(list(self._part), "S16")
            rows = np.array(list(self._part.values()), np.int64)
            self._insert(keys, rows)
        self.forget()

    def forget(self) -> None:
        """Forget the rows of the part at work."""
        self._part.clear()

    def _insert(self, keys: NDArray[np.bytes_], rows: Rows) -> None:
        """Add keys; of equal ones, the lowest row counts."""
        order = np.lexsort((rows, keys))
        keys = keys[order]
        rows = rows[order]
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        keys = keys[first]
        rows = rows[first]
        places = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, places, keys)
        self._rows = np.insert(self._rows, places, rows)
