"""Paths as they are stored, and patterns that match them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from stores.errors import UnreadableError
from stores.inside import is_below


def escape_path(path: str) -> str:
    r"""Return a relative path as it can be stored: bytes that are not UTF-8 as `\xff`."""
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def unescape_path(stored: str) -> str:
    """Return the relative path that `escape_path` stored, as the file system wants it."""
    if "\\" not in stored:
        return stored
    parts = stored.split("\\\\")
    return "\\".join(os.fsdecode(_unescape(part)) for part in parts)


def collection_file(root: Path, stored: str) -> Path:
    """Return the file of a collection that a store's tables name, once revealed.

    Raises UnreadableError where the name leads out of the collection: the tables may be of a
    stranger, and what is read by them is shown.
    """
    path = unescape_path(stored)
    if not is_below(path):
        raise UnreadableError("no-permission", "its path leads out of the collection")
    return root / path


def _unescape(text: str) -> bytes:
    r"""Return text without backslashes of its own as bytes: `\xff` stands for one."""
    head, *rest = text.split("\\x")
    raw = head.encode()
    for piece in rest:
        raw += bytes.fromhex(piece[:2]) + piece[2:].encode()
    return raw


def matcher(globs: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a relative path matches one of the globs; `**` stands for any folders."""
    patterns = [re.compile(_regex(glob), re.DOTALL) for glob in globs]
    return lambda path: any(pattern.fullmatch(path) for pattern in patterns)


def _regex(glob: str) -> str:
    """Return a glob as a regular expression: `*` and `?` stop at a slash, `**` does not."""
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob):
        if piece in special:
            pattern += special[piece]
        elif piece.startswith("[") and piece.endswith("]"):
            pattern += _one_of(piece[1:-1])
        else:
            pattern += re.escape(piece)
    return pattern


def _one_of(characters: str) -> str:
    """Return a regular expression of the characters in brackets; `[[]` is a bracket itself."""
    negated = characters[:1] in ("!", "^") and len(characters) > 1
    listed = characters[1:] if negated else characters
    escaped = re.sub(r"[\\\[^]", r"\\\g<0>", listed)
    return f"[{'^' if negated else ''}{escaped}]"
