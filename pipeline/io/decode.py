"""One file to headers and slices, whatever its format.

- A file is recognised by its content, never by its suffix.
- Pixels are float32 (H, W): HU for CT, scanner units or grey levels otherwise; NaN is padding.
- A bad file raises UnreadableError with a reason from a fixed list; a bad frame is a Failure in
  its place. Nothing is substituted, no slice shifts.
- Format libraries are imported when a file needs them; torch never is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.io.detached import content_digest
from pipeline.io.digests import narrow, pixel_digest
from pipeline.io.formats.contract import FormatReader
from pipeline.io.formats.limits import as_unreadable
from pipeline.io.formats.registry import FORMATS
from pipeline.io.sniff import sniff
from pipeline.io.types import FrameRead, StoredPixels
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError


def check_tags(keywords: Sequence[str]) -> None:
    """Raise ConfigError where a keyword is not in the DICOM dictionary, or no text or number."""
    if not keywords:
        return  # the dictionary takes a while to load
    from pipeline.io.formats import dicom_tags

    dicom_tags.check_tags(keywords)


def read_headers(path: Path, plane: Plane = "axial", tags: Sequence[str] = ()) -> list[Header]:
    """Return the headers of a file's slices, one a frame, without decoding pixels.

    tags: DICOM keywords whose values are wanted too. Raises UnreadableError; `not-an-image` where
    no format is recognised or a DICOM has no pixels.
    """
    return _reader_of(path).read_headers(path, plane, tags)


def read_slices(
    path: Path, frames: Sequence[int], plane: Plane = "axial"
) -> Iterator[Slice | Failure]:
    """Yield one item a frame, in the requested order; the file is opened and decompressed once.

    Raises UnreadableError where the whole file fails.
    """
    return _reader_of(path).read_slices(path, frames, plane)


def _reader_of(path: Path) -> FormatReader:
    """Return what reads a file, by its content. Raises UnreadableError."""
    return FORMATS[sniff(path)].reader()


def stored_pixels(path: Path) -> StoredPixels | None:
    """Return what tells a DICOM of one frame by its pixels; None for all other files.

    Nothing is decoded.
    """
    try:
        if sniff(path) != "dicom":
            return None
        from pipeline.io.formats import dicom  # heavy, and only few collections need it here

        return dicom.stored_pixels(path)
    except UnreadableError:
        return None


def read_frames(path: Path, frames: Sequence[int], plane: Plane) -> Iterator[FrameRead]:
    """Read frames of one file in this process; what ends it early fails the frames that are left.

    A fault of the installation (ImportError) is raised.
    """
    left = deque(frames)
    digest: str | None = None
    started = time.perf_counter()
    try:
        digest = content_digest(path)
        for item in read_slices(path, frames, plane):
            pixels: str | None = None
            if isinstance(item, Slice):
                pixels = pixel_digest(item.pixels)  # of float32, whatever type they travel in
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
