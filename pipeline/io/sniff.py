"""What a file is, by its content."""

from __future__ import annotations

import stat
import zlib
from pathlib import Path

from pipeline.io.formats.gzip_stream import MAGIC as GZIP
from pipeline.io.formats.gzip_stream import start_of_gzip
from pipeline.io.formats.limits import NO_PICTURE, as_unreadable
from pipeline.io.formats.registry import FORMATS, START_BYTES, recognise
from stores.errors import UnreadableError

# How the detail of a file begins in which nothing recognised an image, and of one that may hold
# some: a file is a finding then only where its name promises images.
NO_FORMAT = "no known image format"
ARCHIVE = "packed in an archive"

# Signatures of files that hold others: where they stand, and what unpacks them.
_ARCHIVES = {
    (0, b"PK\3\4"): "zip",
    (0, b"PK\5\6"): "zip",  # of no files
    (0, b"PK\7\x08"): "zip",  # of several volumes
    (257, b"ustar"): "tar",
    (0, b"7z\xbc\xaf\x27\x1c"): "7z",
    (0, b"Rar!\x1a\x07"): "rar",
    (0, b"BZh"): "bzip2",
    (0, b"\xfd7zXZ\0"): "xz",
    (0, b"\x28\xb5\x2f\xfd"): "zstd",
    (0, b"\x04\x22\x4d\x18"): "lz4",
}
# Files that are packed like an archive and are none to whoever made them, by their suffix.
_OFFICE = {
    "a spreadsheet": (".xlsx", ".xlsm", ".xlsb", ".xltx", ".ods", ".numbers"),
    "a text document": (".docx", ".docm", ".dotx", ".odt", ".pages", ".epub"),
    "slides of a talk": (".pptx", ".pptm", ".ppsx", ".odp", ".key"),
}
_BIG_ENDIAN_TIFF = b"MM\0+"
# What macOS keeps beside each file on a foreign disk, under the file's own name with `._` in front.
_APPLE_DOUBLE = b"\0\x05\x16\x07"


def sniff(path: Path) -> str:
    """Return the name of a file's format (`registry.FORMATS`). Raises UnreadableError."""
    try:
        # A pipe or device would be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError("not-an-image", "not a regular file")
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        if start.startswith(GZIP):
            return _sniff_zipped(path)
    except Exception as error:
        raise as_unreadable(error, "opening the file") from error
    if not start:
        raise UnreadableError("empty", "the file has no bytes")
    name = recognise(start)
    if name is None:
        raise _unknown(path, start)
    return name


def _sniff_zipped(path: Path) -> str:
    try:
        start = start_of_gzip(path, START_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise as_unreadable(error, "decompressing the header") from error
    name = recognise(start)
    if name is None:
        raise _unknown(path, start, zipped=True)
    if not FORMATS[name].gzipped:
        raise UnreadableError("unsupported", "a gzipped picture or array: unpack it with gunzip")
    return name


def _unknown(path: Path, start: bytes, *, zipped: bool = False) -> UnreadableError:
    """Return why a file is set aside in which no format was recognised, by its first bytes."""
    if start.startswith(b"PK"):
        for what, suffixes in _OFFICE.items():
            if path.suffix.lower() in suffixes:
                return UnreadableError("not-an-image", f"{NO_PICTURE}{what}")
    for (place, magic), packer in _ARCHIVES.items():
        if start.startswith(magic, place):
            name = f"{packer}, gzipped" if zipped else packer
            return UnreadableError(
                "unsupported",
                f"{ARCHIVE} ({name}): unpack it where it lies, or name it in data.exclude",
            )
    if start.startswith(_BIG_ENDIAN_TIFF):
        return UnreadableError("unsupported", "a BigTIFF of big-endian byte order")
    if start.startswith(_APPLE_DOUBLE):
        return UnreadableError("not-an-image", f"{NO_PICTURE}what macOS keeps beside a file")
    return UnreadableError("not-an-image", f"{NO_FORMAT} (gzipped)" if zipped else NO_FORMAT)
