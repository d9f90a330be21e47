"""What of paths must not stand in a message: which files a collection has.

Messages name rows, or paths as the store shows them. This is the net below them: words of a library
or of the system that name a file of the collection lose its name on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

INSTEAD = "<a file of the collection>"
# Folders whose files have no names here, and paths within them that may be named after all.
_private: dict[str, None] = {}
_public: dict[str, None] = {}


def keep_private(folders: Iterable[Path], but: Iterable[Path] = ()) -> None:
    """Have no file of some folders named in messages from now on, but for the paths of `but`."""
    for folder in folders:
        _private.update(dict.fromkeys(_spellings(folder)))
    for path in but:
        _public.update(dict.fromkeys(_spellings(path)))


def without_files(text: str) -> str:
    """Return a text without the names of files in private folders."""
    for folder in sorted(_private, key=len, reverse=True):
        pattern = rf"(?<![\w.-]){re.escape(folder)}/[^'\"\n]+"
        text = re.sub(pattern, _hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    named = match[0]
    for path in _public:
        # What is within a private folder, not that folder or one above it. Behind the path the line
        # may go on with the sentence around it.
        is_above = any(f"{folder}/".startswith(f"{path}/") for folder in _private)
        if not is_above and re.match(rf"{re.escape(path)}([/\s:.,;)]|$)", named):
            return named
    return INSTEAD


def _spellings(path: Path) -> list[str]:
    """Return how a path may be written in a message."""
    spellings = [str(path.absolute()), str(path)]
    return [spelling for spelling in spellings if spelling not in ("", ".", "/")]
