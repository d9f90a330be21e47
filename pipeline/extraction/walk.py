"""The files of a folder: which are wanted, and what the disk says of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.extraction.selection import LEFT_OUT, OTHER, STORE, Selection
from pipeline.io.detached import ImageStat, may_be_detached
from pipeline.io.formats.limits import NO_PICTURE, as_unreadable
from pipeline.shared.paths import escape_path
from stores.contents import FEATURES, RECIPE
from stores.slices import FILE_SCHEMA, as_table, with_column

Row = dict[str, Any]

# Folders that are listed at a time.
_THREADS = 16


@dataclass(frozen=True)
class _Listing:
    """What a folder holds: `place` tells it from others; its files, and the folders below."""

    place: tuple[int, int] | None
    files: pa.Table
    below: list[str]


def walk(root: Path, selection: Selection) -> Iterator[pa.Table]:
    """Yield tables (FILE_SCHEMA) of the wanted files, a folder each, or why it cannot be listed.

    A folder that is left out is a row too. A few folders are listed ahead by threads, since a disk
    elsewhere takes its time for each call.
    """
    seen: set[tuple[int, int]] = set()
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="radprobe-walk")
    begun: dict[str, Future[_Listing]] = {}
    try:
        stack = [""]
        while stack:
            # The next folders by turn, which are at the end of the stack.
            for path in reversed(stack[-_THREADS:]):
                if path not in begun:
                    begun[path] = threads.submit(_list, root, path, selection)
            listing = begun.pop(stack.pop()).result()
            if listing.place is not None:
                if listing.place in seen:
                    continue  # a link back to a folder already walked
                seen.add(listing.place)
            yield listing.files
            stack.extend(reversed(listing.below))
    finally:
        threads.shutdown(cancel_futures=True)


def _list(root: Path, folder: str, selection: Selection) -> _Listing:
    """Return what a folder holds; one that cannot be listed is a row with its reason."""
    below: list[str] = []
    headers: list[str] = []
    marks: set[str] = set()

    def rows() -> Iterator[Row]:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name in (RECIPE, FEATURES):
                    marks.add(entry.name)
                if not _is_folder(entry):
                    if selection.wants(path):
                        row = _stat(f"{root}/{path}", path)
                        if may_be_detached(entry.name, row["size"] or 0):
                            headers.append(path)
                        yield row
                elif kind := selection.left_out(path):
                    yield _file_row(path, None, OTHER, f"{LEFT_OUT}{kind}")
                else:
                    below.append(path)

    try:
        status = os.stat(root / folder)
        files = as_table(rows(), FILE_SCHEMA)
    except OSError as error:
        known = as_unreadable(error, "listing the folder")
        unlisted = _file_row(folder, None, known.reason, known.detail)
        return _Listing(None, as_table([unlisted], FILE_SCHEMA), [])
    # By which a folder that links lead to twice is known again.
    place = (status.st_dev, status.st_ino)
    # A store in the midst of a collection: its chunks are no images.
    if folder and len(marks) == 2:
        store = _file_row(folder, None, OTHER, f"{LEFT_OUT}{STORE}")
        return _Listing(place, as_table([store], FILE_SCHEMA), [])
    files = _with_voxels(root, files, headers)
    return _Listing(place, files, sorted(below, key=os.fsencode))


def _with_voxels(root: Path, files: pa.Table, headers: list[str]) -> pa.Table:
    """Return files of which headers have the size and the time of their voxels as well.

    So that one whose voxels have changed has changed. The files of voxels are set aside: what their
    bytes look like says nothing.
    """
    voxels: set[str] = set()
    stats: dict[str, ImageStat] = {}
    for header in headers:
        try:
            stat = ImageStat.of(root / header)
        except OSError:
            continue  # which is told when it is opened
        if stat.others:
            stats[escape_path(header)] = stat
            voxels.update(escape_path(os.path.relpath(other, root)) for other in stat.others)
    if not stats:
        return files
    paths = files["path"].to_pylist()
    for name in ("size", "mtime_ns"):
        values = files[name].to_pylist()
        for number, path in enumerate(paths):
            if path in stats:
                values[number] = getattr(stats[path], name)
        files = with_column(files, name, pa.array(values, pa.int64()))
    is_voxels = pc.is_in(files["path"], pa.array(sorted(voxels), pa.string()))
    for name, value in (("reason", OTHER), ("detail", f"{NO_PICTURE}voxels of a header")):
        column = pc.if_else(is_voxels, value, files[name])
        files = with_column(files, name, column)
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _stat(file: str, path: str) -> Row:
    """Return the row of a file: its size and time, or why it cannot be looked at."""
    try:
        return _file_row(path, os.stat(file))
    except OSError as error:
        known = as_unreadable(error, "looking at the file")
        return _file_row(path, None, known.reason, known.detail)


def _file_row(
    path: str, status: os.stat_result | None, reason: str | None = None, detail: str | None = None
) -> Row:
    return {
        "path": escape_path(path),
        "size": status.st_size if status else None,
        "mtime_ns": status.st_mtime_ns if status else None,
        "slices": 0,
        "reason": reason,
        "detail": detail,
    }
