"""Gzipped files of which more follows than their stream: bytes of a transfer, zeros of a tape.

`gunzip` ignores these with a warning, libraries refuse the file at the very end. What the stream
itself holds is checked by its own sum in either case.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from isal import igzip, isal_zlib

from pipeline.io.formats.limits import MAX_FILE_BYTES
from stores.errors import UnreadableError

MAGIC = b"\x1f\x8b"
# A stream with gzip's header and sum around it, for zlib.
_GZIP = 31
# Bytes that are read and decompressed at a time.
_BLOCK = 2**18


def open_gzip(path: Path, end: int | None = None) -> BinaryIO:
    """Open a gzipped file to read what it holds. end: where its stream ends, if before the file."""
    if end is None:
        return cast(BinaryIO, igzip.open(path, "rb"))  # type: ignore[no-untyped-call]
    until = _Until(path, end)
    stream = igzip.open(until, "rb")  # type: ignore[no-untyped-call]
    return cast(BinaryIO, stream)


def stated_size(path: Path) -> int:
    """Return how many bytes the end of a gzipped file says it holds, modulo 2**32."""
    with path.open("rb") as file:
        file.seek(-4, io.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def end_of_gzip(path: Path) -> int | None:
    """Return where the stream of a gzipped file ends; None where that is the end of the file.

    None, too, where the stream is damaged: who reads it finds out. Decompresses all of it. Raises
    UnreadableError for one that is too large.
    """
    stored = path.stat().st_size
    end = 0
    done = 0
    with path.open("rb") as file:
        while end < stored:
            file.seek(end)
            # Several streams may follow each other, and are one.
            if end and file.read(2) != MAGIC:
                return end
            file.seek(end)
            try:
                done += _inflated_size(file, MAX_FILE_BYTES - done)
            except (isal_zlib.error, EOFError):  # type: ignore[misc]  # a class, to Python
                return None
            end = file.tell()
    return None


def start_of_gzip(path: Path, size: int) -> bytes:
    """Return the first bytes that a gzipped file holds, whatever follows them.

    Raises EOFError for one that is cut, and zlib.error for one that is damaged.
    """
    start = b""
    with path.open("rb") as file:
        while len(start) < size:
            inflating = zlib.decompressobj(wbits=_GZIP)
            while len(start) < size and not inflating.eof:
                block = file.read(_BLOCK)
                if not block:
                    raise EOFError
                start += inflating.decompress(block, size - len(start))
            # Several streams may follow each other, and are one.
            file.seek(-len(inflating.unused_data), io.SEEK_CUR)
            following = file.read(len(MAGIC))
            file.seek(-len(following), io.SEEK_CUR)
            if following != MAGIC:
                break
    return start


def _inflated_size(file: BinaryIO, most: int) -> int:
    """Return what one stream holds, and leave the file behind its end. Raises EOFError."""
    inflating = isal_zlib.decompressobj(wbits=_GZIP)
    done = 0
    block = b""
    while not inflating.eof:
        block = inflating.unconsumed_tail or file.read(_BLOCK)
        if not block:
            raise EOFError
        done += len(inflating.decompress(block, _BLOCK))
        if done > most:
            raise UnreadableError("too-large", f"holds more than {MAX_FILE_BYTES} bytes")
    file.seek(-len(inflating.unused_data), io.SEEK_CUR)
    return done


class _Until(io.RawIOBase):
    """The first bytes of a file, as if it ended there."""

    def __init__(self, path: Path, end: int) -> None:
        self._file = path.open("rb")
        self._end = end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        left = self._end - self._file.tell()
        return self._file.readinto(memoryview(room)[: max(0, left)])

    def close(self) -> None:
        self._file.close()
        super().close()
