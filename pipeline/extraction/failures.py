"""What of a collection is not in its store, and why: files set aside, slices unreadable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores.features import UNREADABLE
from stores.slices import slice_rows


@dataclass(frozen=True)
class Lost:
    """One file, or one slice (frame) of a file, that has no features. path: the real one."""

    path: str
    frame: int | None
    reason: str
    detail: str


def aside(files: pa.Table) -> list[Lost]:
    """Return the files of a file table (real paths) that were set aside, or not searched."""
    lost = files.filter(pc.is_valid(files["reason"])).to_pylist()
    return [Lost(f["path"], None, f["reason"], f["detail"] or "") for f in lost]


def failures(path: Path) -> list[Lost]:
    """Return the files of a store's collection that were set aside, then the unreadable slices.

    Raises StoreNotFoundError, and ConfigError without the key that reveals paths.
    """
    store = FeatureStore.open(path)
    names = Names(store.path)
    lost = aside(names.revealed(store.files()))
    # The arrays say which rows are unreadable, the receipts of their parts why.
    status = store.status()
    unreadable = np.flatnonzero(status == UNREADABLE)
    failures_by_row = {failure.row: failure for failure in store.unreadable(status)}
    slices = store.slices()
    places = np.searchsorted(slices["row"].to_numpy(), unreadable)
    for row in slice_rows(names.revealed(slices.take(places))):
        failure = failures_by_row[row.row]
        lost.append(Lost(row.path, row.frame, failure.reason, failure.detail))
    return lost
