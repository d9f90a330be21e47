"""Headers (.hdr) whose voxels lie in a file (.img) beside them: pairs of NIfTI, and Analyze 7.5."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from pipeline.io.formats.gzip_stream import MAGIC as GZIP
from stores.errors import UnreadableError

HEADER_BYTES = 540
# Where a NIfTI header says that it is one of a pair.
_PAIRS = ((344, b"ni1\0"), (4, b"ni2\0"))
_SINGLE = ((344, b"n+1\0"), (4, b"n+2\0"))
# The length of an Analyze header, which it begins with, in either byte order.
_LENGTHS = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
# Codes of Analyze's voxels: bits, 8 to 64 bits, complex, colour.
_CODES = frozenset({1, 2, 4, 8, 16, 32, 64, 128})


def is_pair(start: bytes) -> bool:
    """Return whether a file begins as the header of a NIfTI pair does."""
    return any(start.startswith(magic, place) for place, magic in _PAIRS)


def is_analyze(start: bytes) -> bool:
    """Return whether a file begins as an Analyze header does, which has no signature."""
    if len(start) < 348 or start[:4] not in _LENGTHS:
        return False
    if any(start.startswith(magic, place) for place, magic in (*_PAIRS, *_SINGLE)):
        return False
    order = "little" if start[:4] == _LENGTHS[0] else "big"
    numbers = [int.from_bytes(start[at : at + 2], order) for at in range(40, 74, 2)]  # type: ignore[arg-type]
    dimensions = numbers[0]
    code = numbers[15]
    return 1 <= dimensions <= 7 and all(numbers[1 : dimensions + 1]) and code in _CODES


def voxels_of(header: Path) -> Path:
    """Return the file of a header's voxels. Raises UnreadableError where there is none."""
    name = header.name.removesuffix(".gz")
    stem, _, suffix = name.rpartition(".")
    image = f"{stem or name}{'.IMG' if suffix.isupper() else '.img'}"
    for path in (header.with_name(image), header.with_name(f"{image}.gz")):
        if path.is_file():
            return path
    raise UnreadableError("truncated", "its voxels must lie beside it, in an .img of its name")


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the file of a header's voxels; none where it has them itself."""
    try:
        start = _start(path)
        return (voxels_of(path),) if is_pair(start) or is_analyze(start) else ()
    except (UnreadableError, OSError, EOFError, zlib.error):
        return ()


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if not start.startswith(GZIP):
        return start
    with gzip.open(path) as stream:
        return stream.read(HEADER_BYTES)
