"""The files of a folder: which are wanted, and what the disk says of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.data import Data
from pipeline.io.formats.limits import as_unreadable
from pipeline.shared.paths import escape_path, matcher
from stores.slices import FILE_SCHEMA, as_table

Row = dict[str, Any]

# Folders that are listed at a time.
_THREADS = 16


@dataclass(frozen=True)
class _Listing:
    """What a folder holds: `place` tells it from others; its files, and the folders below."""

    place: tuple[int, int] | None
    files: pa.Table
    below: list[str]


def walk(data: Data) -> Iterator[pa.Table]:
    """Yield tables (FILE_SCHEMA) of the wanted files, a folder each, or why it cannot be listed.

    A few folders are listed ahead by threads, since a disk elsewhere takes its time for each call.
    """
    wanted = _wanted(data)
    seen: set[tuple[int, int]] = set()
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="radprobe-walk")
    begun: dict[str, Future[_Listing]] = {}
    try:
        stack = [""]
        while stack:
            # The next folders by turn, which are at the end of the stack.
            for path in reversed(stack[-_THREADS:]):
                if path not in begun:
                    begun[path] = threads.submit(_list, data.root, path, wanted)
            listing = begun.pop(stack.pop()).result()
            if listing.place is not None:
                if listing.place in seen:
                    continue  # a link back to a folder already walked
                seen.add(listing.place)
            yield listing.files
            stack.extend(reversed(listing.below))
    finally:
        threads.shutdown(cancel_futures=True)


def _list(root: Path, folder: str, wanted: Callable[[str], bool]) -> _Listing:
    """Return what a folder holds; one that cannot be listed is a row with its reason."""
    below: list[str] = []

    def rows() -> Iterator[Row]:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_folder(entry):
                    below.append(path)
                elif wanted(path):
                    yield _stat(f"{root}/{path}", path)

    try:
        status = os.stat(root / folder)
        files = as_table(rows(), FILE_SCHEMA)
    except OSError as error:
        known = as_unreadable(error, "listing the folder")
        unlisted = _file_row(folder, None, known.reason, known.detail)
        return _Listing(None, as_table([unlisted], FILE_SCHEMA), [])
    place = (status.st_dev, status.st_ino)
    return _Listing(place, files, sorted(below, key=os.fsencode))


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


def _wanted(data: Data) -> Callable[[str], bool]:
    """Return whether a relative path is included and not excluded."""
    include = matcher(data.include)
    exclude = matcher(data.exclude)
    return lambda path: include(path) and not exclude(path)
