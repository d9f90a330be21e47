"""Files to slices: one door for DICOM, NIfTI, rasters and arrays.

- A file is recognised by its content, never by its suffix.
- Pixels are float32 (H, W): HU for CT, scanner units or grey levels otherwise; NaN is padding.
- A bad file raises UnreadableError with a reason from a fixed list; a bad frame is a Failure in
  its place. Nothing is substituted, no slice shifts.
- `read_files` decodes in worker processes that are killed when a file takes too long; a file that
  crashes its worker is one failed file.
- Format libraries are imported when a file needs them; torch never is.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.limits import as_unreadable
from pipeline.types import Failure, Header, Plane, Slice
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


@dataclass(frozen=True)
class Request:
    """Frames wanted of one file; `path` is relative to the root, as the slice table has it."""

    path: str
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FrameRead:
    """What came of one frame of a Request.

    file_digest: sha256 of the file's bytes; None where they could not be read. pixel_digest: see
    there; None for a failure. seconds: spent reading and decoding. The pixels of the item may be of
    a narrower type (see `narrow`).
    """

    item: Slice | Failure
    file_digest: str | None = None
    pixel_digest: str | None = None
    seconds: float = 0.0


def escape_path(path: str) -> str:
    r"""Return a relative path as it can be stored: bytes that are not UTF-8 as `\xff`."""
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def unescape_path(stored: str) -> str:
    """Return the relative path that `escape_path` stored, as the file system wants it."""
    if "\\" not in stored:
        return stored
    parts = stored.split("\\\\")
    return "\\".join(os.fsdecode(_unescape(part)) for part in parts)


def _unescape(text: str) -> bytes:
    head, *rest = text.split("\\x")
    tail = (bytes.fromhex(piece[:2]) + piece[2:].encode() for piece in rest)
    return b"".join((head.encode(), *tail))


def check_tags(keywords: Iterable[str]) -> None:
    """Raise ConfigError where a keyword is not in the DICOM dictionary, or no text or number."""
    from pipeline.formats import dicom_tags

    dicom_tags.check_tags(keywords)


def read_headers(path: Path, plane: Plane = "axial", tags: Sequence[str] = ()) -> list[Header]:
    """Return the headers of a file's slices, one a frame, without decoding pixels.

    tags: DICOM keywords whose values are wanted too. Raises UnreadableError; `not-an-image` where
    no format is recognised or a DICOM has no pixels.
    """
    kind = sniff(path)
    if kind == "dicom":
        from pipeline.formats import dicom

        return dicom.read_headers(path, tags)
    if kind == "nifti":
        from pipeline.formats import nifti

        return nifti.read_headers(path, plane)
    if kind == "raster":
        from pipeline.formats import raster

        return raster.read_headers(path)
    from pipeline.formats import arrays

    return arrays.read_headers(path)


def read_slices(
    path: Path, frames: Sequence[int], plane: Plane = "axial"
) -> Iterator[Slice | Failure]:
    """Yield one item a frame, in the order asked; the file is opened and decompressed once.

    Raises UnreadableError where the whole file fails.
    """
    kind = sniff(path)
    if kind == "dicom":
        from pipeline.formats import dicom

        return dicom.read_slices(path, frames)
    if kind == "nifti":
        from pipeline.formats import nifti

        return nifti.read_slices(path, frames, plane)
    if kind == "raster":
        from pipeline.formats import raster

        return raster.read_slices(path, frames)
    from pipeline.formats import arrays

    return arrays.read_slices(path, frames)


def read_files(
    root: Path,
    requests: Iterable[Request | None],
    *,
    plane: Plane = "axial",
    workers: int = 1,
    time_limit_s: float = 60.0,
) -> Generator[FrameRead]:
    """Yield a FrameRead for each frame of each request, in order; never raises for a bad file.

    A None among the requests says that no more are to be begun for now: they are asked again when
    a read was taken, of which there must be one to come.
    Workers end with the generator: close it where it may be left early. workers: reading
    processes, ahead of the caller by a bounded number of files and bytes; 0 reads in this process,
    without protection from files that crash or never end. time_limit_s: decoding time of one file.
    """
    if workers == 0:
        return _read_here(root, requests, plane)
    from pipeline.reading.pool import read_in_workers

    return read_in_workers(root, requests, plane, workers, time_limit_s)


def _read_here(
    root: Path, requests: Iterable[Request | None], plane: Plane
) -> Generator[FrameRead]:
    for request in filter(None, requests):
        yield from read_frames(root / unescape_path(request.path), request.frames, plane)


def read_frames(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[FrameRead]:
    """Read frames of one file in this process; what ends it early fails the frames that are left.

    A fault of the installation (ImportError) is raised.
    """
    left, digest, started = deque(frames), None, time.perf_counter()
    try:
        digest = file_digest(path)
        for item in read_slices(path, frames, plane):
            pixels = None
            if isinstance(item, Slice):
                pixels = pixel_digest(item.pixels)
                item = replace(item, pixels=narrow(item.pixels))
            left.popleft()  # last: what fails before is a failed frame, and none is lost
            yield FrameRead(item, digest, pixels, time.perf_counter() - started)
            started = time.perf_counter()
    except Exception as error:
        known = as_unreadable(error, "reading the file")
        for frame in left:
            failure = Failure(frame, known.reason, known.detail)
            yield FrameRead(failure, digest, None, time.perf_counter() - started)
            started = time.perf_counter()


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """Return the sha256 of a slice's shape and float32 values: equal pictures, equal digests."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels, dtype="<f4").data)
    return digest.hexdigest()


def narrow(pixels: NDArray[np.float32]) -> NDArray[Any]:
    """Return pixels as the narrowest of uint8, int16 and uint16 that holds the same numbers.

    What most files hold: a quarter or half of the bytes to pass between processes and to a GPU.
    """
    low, high = float(pixels.min()), float(pixels.max())  # NaN where a pixel is
    for dtype in (np.uint8, np.int16, np.uint16):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            whole = pixels.astype(dtype)
            return whole if np.array_equal(whole, pixels) else pixels
    return pixels


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
