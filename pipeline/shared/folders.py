"""Folders that are no part of a collection: hidden ones, and what systems and tools keep there."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

from pipeline.shared.paths import escape_path

log = logging.getLogger(__name__)

HIDDEN = "a hidden folder"
# By name, which no patient has. Others that begin with a dot are hidden folders.
# fmt: off
TOOLS = frozenset({
    # Versions, and what data sets are managed by.
    ".git", ".hg", ".svn", ".datalad", ".dvc", ".heudiconv", ".bids",
    # Notebooks, Python, editors.
    ".ipynb_checkpoints", "__pycache__", ".venv", ".cache", ".idea", ".vscode",
    # macOS, Windows, Linux.
    "__MACOSX", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems",
    "$RECYCLE.BIN", "System Volume Information", ".Trash", ".thumbnails", "lost+found",
    # Network disks: thumbnails, what was deleted, snapshots.
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".snapshot", ".zfs",
})
# fmt: on


def hidden_kind(name: str) -> str | None:
    """Return what a folder of such a name is, None for one that may be of a collection."""
    if name in TOOLS:
        return name
    return HIDDEN if name.startswith(".") and name not in (".", "..") else None


def files_below(root: Path, but: Collection[str] = ()) -> list[str]:
    """Return the files below a folder, relative and escaped as they are stored, in their order.

    Links to folders are followed once, so that loops end; hidden folders, and those called as one
    of `but`, are not searched. Those that cannot be listed are counted in a warning.
    """
    seen: set[tuple[int, int]] = set()
    paths = []
    pending = [os.fspath(root)]
    unlisted: list[OSError] = []
    while pending:
        # One folder at a time: before Python 3.12 `os.walk` takes stack for each that is nested.
        walk = os.walk(pending.pop(), onerror=unlisted.append, followlinks=True)
        folder, folders, files = next(walk, ("", [], []))
        if not folder:
            continue  # not to be looked into
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in seen:
            continue
        seen.add(place)
        searched = [each for each in folders if not hidden_kind(each) and each not in but]
        pending += [os.path.join(folder, each) for each in reversed(searched)]
        above = Path(folder).relative_to(root)
        paths += [escape_path((above / file).as_posix()) for file in files]
    there = [error for error in unlisted if not isinstance(error, FileNotFoundError)]
    if there:
        log.warning(
            "%d folders below %s cannot be listed (%s): what they hold is left out.",
            len(there),
            root,
            there[0].strerror,
        )
    return sorted(paths)
