"""Sizes and times of a collection's files as they were when their slices were found.

A file that has others when it is read is another file, perhaps of another patient, and is not
embedded as the slice that was found.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.extraction.slices import VOLUME_COLUMNS, PartSlices
from pipeline.io.types import FileStamp
from pipeline.recipe import Preprocess
from stores import FeatureStore, PartRange, manifest

_COLUMNS = ["path", "size", "mtime_ns"]
# Paths that Python holds at a time.
_AT_ONCE = 2**12


class FileStamps:
    """The stamp of each file of a store's file table, by its path there.

    Of a path its hash is kept, in 24 bytes a file: paths themselves would fill the memory.
    """

    def __init__(self, files: pa.Table) -> None:
        """files: columns path, size and mtime_ns."""
        hashes = np.empty(len(files), np.int64)
        for start in range(0, len(files), _AT_ONCE):
            some = files["path"].slice(start, _AT_ONCE).to_pylist()
            hashes[start : start + len(some)] = list(map(hash, some))
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._sizes = _numbers(files["size"])[order]
        self._times = _numbers(files["mtime_ns"])[order]

    def of(self, paths: Sequence[str]) -> list[FileStamp | None]:
        """Return the size and time (ns) of each file; None where the table does not tell."""
        if not len(self._hashes):
            return [None] * len(paths)
        wanted = np.array(list(map(hash, paths)), np.int64)
        places = self._hashes.searchsorted(wanted)
        places[places == len(self._hashes)] = 0
        known = (self._hashes[places] == wanted) & (self._sizes[places] >= 0)
        stamps = zip(self._sizes[places].tolist(), self._times[places].tolist(), strict=True)
        return [stamp if is_known else None for stamp, is_known in zip(stamps, known, strict=True)]


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.fill_null(-1).to_numpy()
    return numbers


def slices_and_stamps(
    store: FeatureStore, parts: Sequence[PartRange], preprocess: Preprocess
) -> tuple[PartSlices, FileStamps]:
    """Return the slices of some parts and the stamps of their files, both of one moment."""
    while True:  # until nobody replaced one of them while the other was read
        seen = manifest.version(store.path)
        more = () if preprocess.volume is None else VOLUME_COLUMNS
        slices = PartSlices(store, parts, preprocess.by_volume, more)
        stamps = _stamps(store, seen)
        if manifest.version(store.path) == seen:
            return slices, stamps


@functools.lru_cache(maxsize=1)
def _stamps(store: FeatureStore, seen: str) -> FileStamps:
    """Return the stamps by the tables that are called `seen`; kept for the parts that follow."""
    return FileStamps(store.files(_COLUMNS))
