"""What a file is, by its content."""

from __future__ import annotations

import gzip
import stat
import zlib
from pathlib import Path
from typing import Literal

from pipeline.io.formats.limits import as_unreadable
from stores.errors import UnreadableError

Format = Literal["dicom", "nifti", "raster", "array"]

# How the detail of a file begins in which nothing recognised an image.
NO_FORMAT = "no known image format"
# How the detail of the index of a DICOM folder begins.
DICOMDIR = "a DICOMDIR"

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR"
    b" US UT UV".split()
)


def sniff(path: Path) -> Format:
    """Return the format of a file by its first bytes. Raises UnreadableError."""
    try:
        # A pipe or device would be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError("not-an-image", "not a regular file")
        with path.open("rb") as file:
            start = file.read(540)
        if start[:2] == b"\x1f\x8b":
            return _sniff_zipped(path)
    except Exception as error:
        raise as_unreadable(error, "opening the file") from error
    if not start:
        raise UnreadableError("empty", "the file has no bytes")
    found = _sniff_bytes(start)
    if found is None:
        raise UnreadableError("not-an-image", NO_FORMAT)
    return found


def _sniff_zipped(path: Path) -> Format:
    try:
        with gzip.open(path) as file:
            start = file.read(540)
    except (EOFError, OSError, zlib.error) as error:
        raise as_unreadable(error, "decompressing the header") from error
    if _sniff_bytes(start) != "nifti":
        raise UnreadableError("not-an-image", f"{NO_FORMAT} (gzipped)")
    return "nifti"


def _sniff_bytes(start: bytes) -> Format | None:
    # DICOM first: its preamble may hold another format's magic (dual TIFF files).
    if start[128:132] == b"DICM":
        return "dicom"
    if start[512:520] == b"\x89HDF\r\n\x1a\n":  # behind MATLAB's own 512 bytes
        return "array"
    if start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0":
        return "nifti"
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")):
        return "raster"
    if start.startswith((b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"MATLAB 5.0 MAT", b"MATLAB 7.3 MAT")):
        return "array"
    return "dicom" if _is_bare_dicom(start) else None


def _is_bare_dicom(start: bytes) -> bool:
    """Return whether bytes begin like a DICOM dataset without preamble: a low group, then sense."""
    if len(start) < 16:
        return False
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        group = int.from_bytes(start[:2], order)
        element = int.from_bytes(start[2:4], order)
        if group not in (0x0002, 0x0008) or element > 0x3000:
            continue
        if start[4:6] in _VRS:
            return True
        length = int.from_bytes(start[4:8], order)
        if length <= 256 and length % 2 == 0:
            return True
    return False
