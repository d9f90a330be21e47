"""Whether a name lies inside: one judge for whatever is read, written or removed by a name.

Names stand in manifests, receipts, slice tables, mirrors, buckets and answers, and any of these may
be of a stranger. A name lies inside its folder where it is relative, has no `..`, and meets no link
that leads out; within a store its characters print, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from stores._disk import MOST_BYTES, MOST_CHECKED, MOST_NESTED, MOST_TABLE_BYTES, status_of
from stores.contents import COPIES, FEATURES, FOLDERS, TOP_FILES, is_large
from stores.errors import CorruptStoreError

# Bytes of a file's name, and of one within its store (as of an object of S3), at the most.
_LONGEST = 255
_LONGEST_WITHIN = 1024


def is_below(name: str) -> bool:
    """Return whether a name, as it is written, stays below the folder that it is relative to."""
    if "\0" in name:
        return False
    # An absolute name begins with an empty part.
    return not any(part in ("", ".", "..") for part in name.split("/"))


def is_store_name(name: str) -> bool:
    """Return whether a name, as it is written, can be that of a file of a store."""
    if not is_below(name) or "\\" in name or not name.isprintable():
        return False
    parts = name.split("/")
    if len(parts) > MOST_NESTED or len(name.encode()) > _LONGEST_WITHIN:
        return False
    return all(len(part.encode()) <= _LONGEST for part in parts)


def most_bytes(name: str) -> int:
    """Return how many bytes a file of a store may have, by its name; none of ours has more."""
    if is_large(name):
        return MOST_CHECKED
    is_table = name.endswith(".parquet") or name.partition("/")[0] in (FEATURES, COPIES)
    return MOST_TABLE_BYTES if is_table else MOST_BYTES


def inside(root: Path, name: str) -> Path:
    """Return the path of a file of the store at `root`, by its name there.

    Raises CorruptStoreError where the name, or a link on the way, leads out of the store.
    """
    _check_name(root, name)
    check_links(root, name)
    return root / name


def removable(root: Path, name: str) -> Path:
    """Return the path of a file of the store that is to go; a link goes itself, wherever it leads.

    Raises CorruptStoreError where the name, or a link among its folders, leads out of the store.
    """
    _check_name(root, name)
    folder, _, _ = name.rpartition("/")
    if folder:
        check_links(root, folder)
    return root / name


def _check_name(root: Path, name: str) -> None:
    if not is_store_name(name):
        raise CorruptStoreError(
            f"{name!r} is no name of a file of a store, and {str(root)!r} has it. It was altered, "
            "or made to harm: take the store from where it came, again."
        )


def check_links(root: Path, name: str, checked: str = "") -> None:
    """Raise CorruptStoreError where a link below `root`, on the way to a name, leads out of it.

    checked: how the name begins, of which this is known already.
    """
    # Put together as text: this is asked of every chunk that is read, written or verified.
    place = f"{root}/{checked}" if checked else str(root)
    rest = name[len(checked) :].lstrip("/")
    for part in rest.split("/"):
        place = f"{place}/{part}"
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing is there yet, nor below
        if stat.S_ISLNK(status.st_mode) and not _ends_below(place, root):
            raise CorruptStoreError(
                f"{place!r} is a link that leads out of the store. Put what it leads to in its "
                "place; the store as a whole may be a link."
            )


def _ends_below(link: str, root: Path) -> bool:
    end = os.path.realpath(link)
    top = os.path.realpath(root)
    return end.startswith(f"{top}/") and not os.path.islink(end)


def check_folders(root: Path) -> None:
    """Raise CorruptStoreError where a folder or a top file of a store is a link out of it.

    Or something else, such as a pipe. Whoever opens a store has this checked first; deeper names
    are checked as they are used.
    """
    for folder in FOLDERS:
        check_links(root, folder.name)
        _check_kind(root / folder.name, stat.S_ISDIR, "folder")
    for name in TOP_FILES:
        check_links(root, name)
        _check_kind(root / name, stat.S_ISREG, "file")
    try:
        arrays = os.listdir(root / FEATURES)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in arrays:
        # The chunks of an array lie in its folder `c`.
        check_links(root, f"{FEATURES}/{name}/c")


def _check_kind(path: Path, fits: Callable[[int], bool], kind: str) -> None:
    """Raise CorruptStoreError where something is at a path, and is of another kind."""
    status = status_of(path)
    if status is not None and not fits(status.st_mode):
        raise CorruptStoreError(
            f"{str(path)!r} is no {kind}. Remove it: what the store had there comes from a copy, "
            "or is made again."
        )
