"""Folders that are no part of a collection: hidden ones, and what systems and tools keep there."""

from __future__ import annotations

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
