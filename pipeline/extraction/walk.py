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

    A few folders are listed ahead by threads, since a disk elsewhere takes its time for each
    question.
    """
    wanted = _wanted(data)
    seen: set[tuple[int, int]] = set()
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="radprobe-walk")
    begun: dict[str, Future[_Listing]] = {}
    try:
        stack = [""]
        while stack:
            for path in reversed(stack[-_THREADS:]):
                if path not in begun:
                    begun[path] = threads.submit(_list, data.root, path, wanted)
            found = begun.pop(stack.pop()).result()
            if found.place is not None:
                if found.place in seen:
                    continue  # a link back to a folder already walked
                seen.add(found.place)
            yield found.files
            stack.extend(reversed(found.below))
    finally:
        threads.shutdown(cancel_futures=True)


def _list(root: Path, folder: str, wanted: Callable[[str], bool]) -> _Listing:
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
        about = os.stat(root / folder)
        files = as_table(rows(), FILE_SCHEMA)
    except OSError as error:
        known = as_unreadable(error, "listing the folder")
        lost = _file_row(folder, None, known.reason, known.detail)
        return _Listing(None, as_table([lost], FILE_SCHEMA), [])
    return _Listing((about.st_dev, about.st_ino), files, sorted(below, key=os.fsencode))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _stat(file: str, path: str) -> Row:
    try:
        return _file_row(path, os.stat(file))
    except OSError as error:
        known = as_unreadable(error, "looking at the file")
        return _file_row(path, None, known.reason, known.detail)


def _file_row(
    path: str, about: os.stat_result | None, reason: str | None = None, detail: str | None = None
) -> Row:
    return {
        "path": escape_path(path),
        "size": about.st_size if about else None,
        "mtime_ns": about.st_mtime_ns if about else None,
        "slices": 0,
        "reason": reason,
        "detail": detail,
    }


def _wanted(data: Data) -> Callable[[str], bool]:
    """Return whether a relative path is included and not excluded."""
    include, exclude = matcher(data.include), matcher(data.exclude)
    return lambda path: include(path) and not exclude(path)
