"""What of a collection is not in its store, and why: files set aside, slices unreadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shared.pseudonyms import Names
from pipeline.shared.texts import count
from stores import FeatureStore
from stores.features import UNREADABLE
from stores.slices import slice_rows


@dataclass(frozen=True)
class Lost:
    """One file, or one slice (frame) of a file, that has no features.

    path: the real one; series: the pseudonym of a slice's, None where its file names none.
    """

    path: str
    frame: int | None
    reason: str
    detail: str
    series: str | None = None


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
        lost.append(Lost(row.path, row.frame, failure.reason, failure.detail, row.series or None))
    return lost


def in_lines(lost: Sequence[Lost]) -> Iterator[str]:
    """Yield a line for each file and each volume that was lost for one reason, and what it is."""

    def of_one_line(each: Lost) -> tuple[str | None, str, str]:
        # No volume is a fault of the series; any other must be mended file by file.
        is_volume = each.reason == "not-a-volume" and each.series is not None
        return each.series if is_volume else each.path, each.reason, each.detail

    for _, group in groupby(lost, of_one_line):
        alike = list(group)
        first = alike[0]
        # A folder of a tool is called what it is: `.git`.
        detail = first.detail.removesuffix(f": {first.path.rpartition('/')[2]}")
        yield f"{first.reason}: {first.path}{_others(alike)}: {detail}"


def _others(alike: Sequence[Lost]) -> str:
    """Return which frames of the first one's file a line is of, and of how many other files."""
    first = alike[0]
    frames = [each.frame for each in alike if each.path == first.path and each.frame is not None]
    files = len({each.path for each in alike}) - 1
    text = ""
    if len(frames) > 1:
        is_run = frames == list(range(frames[0], frames[-1] + 1))
        text = f" frames {frames[0]} to {frames[-1]}" if is_run else f" {len(frames)} frames"
    elif frames and not files:
        text = f" frame {frames[0]}"
    return f"{text} and {count(files, 'other file')} of its series" if files else text
