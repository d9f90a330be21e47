"""What a file is, by its content."""

from __future__ import annotations

import gzip
import stat
import zlib
from pathlib import Path

from pipeline.io.formats.limits import as_unreadable
from pipeline.io.formats.registry import FORMATS, START_BYTES, recognise
from stores.errors import UnreadableError

# How the detail of a file begins in which nothing recognised an image.
NO_FORMAT = "no known image format"

_GZIP = b"\x1f\x8b"


def sniff(path: Path) -> str:
    """Return the name of a file's format (`registry.FORMATS`). Raises UnreadableError."""
    try:
        # A pipe or device would be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError("not-an-image", "not a regular file")
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        if start.startswith(_GZIP):
            return _sniff_zipped(path)
    except Exception as error:
        raise as_unreadable(error, "opening the file") from error
    if not start:
        raise UnreadableError("empty", "the file has no bytes")
    name = recognise(start)
    if name is None:
        raise UnreadableError("not-an-image", NO_FORMAT)
    return name


def _sniff_zipped(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            start = file.read(START_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise as_unreadable(error, "decompressing the header") from error
    name = recognise(start)
    if name is None or not FORMATS[name].gzipped:
        raise UnreadableError("not-an-image", f"{NO_FORMAT} (gzipped)")
    return name
