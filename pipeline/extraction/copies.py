"""Which slices of a store have the pixels of another, by row and, where asked for, by real path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shared.pseudonyms import HIDDEN, Names
from stores import FeatureStore
from stores.duplicates import Twins
from stores.storage import storage_at


@dataclass(frozen=True)
class Copy:
    """A slice that has the pixels of others. path: the real one; None where it is hidden."""

    row: int
    path: str | None
    frame: int


def copies_of(
    path: Path | str, twins: Sequence[Twins], *, reveal: bool = False
) -> list[list[Copy]]:
    """Return the slices of each group of twins of a store; reveal: hidden paths too, by its key."""
    if not twins:
        return []
    store = FeatureStore.open(storage_at(path).folder)
    names = Names(store.path)
    rows = [row for each in twins for row in each.rows]
    slices = store.slices(["row", "path", "frame"])
    slices = slices.filter(pc.is_in(slices["row"], pa.array(rows)))
    if reveal and names.has_key:
        slices = names.revealed(slices)
    copies = {}
    for row in slices.to_pylist():
        # A store that keeps paths has them without a key too.
        hidden = any(name.startswith(HIDDEN) for name in row["path"].split("/"))
        copies[row["row"]] = Copy(row["row"], None if hidden else row["path"], row["frame"])
    return [[copies[row] for row in each.rows] for each in twins]
