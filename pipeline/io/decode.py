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
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.io.detached import ImageStat, content_digest
from pipeline.io.digests import narrow, pixel_digest
from pipeline.io.formats.contract import FormatReader
from pipeline.io.formats.limits import as_unreadable
from pipeline.io.formats.registry import FORMATS
from pipeline.io.sniff import sniff
from pipeline.io.types import FileStamp, FrameRead, Request, StoredPixels
from pipeline.shared.paths import collection_file
from pipeline.types import Failure, Header, Plane, Slice
from stores.errors import UnreadableError

CHANGED = "it changed after its slices were found, and is looked at again by the next run"
_SECOND_NS = 10**9
_TICK_NS = 10**3


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


def read_request(root: Path, request: Request, plane: Plane) -> Generator[FrameRead]:
    """Read what is requested of a file below `root` in this process, as `read_frames` does."""
    try:
        path = collection_file(root, request.path)
    except UnreadableError as error:
        for frame in request.frames:
            yield FrameRead(Failure(frame, error.reason, error.detail))
        return
    yield from read_frames(path, request.frames, plane, request.stamp)


def read_frames(
    path: Path, frames: Sequence[int], plane: Plane, stamp: FileStamp | None = None
) -> Generator[FrameRead]:
    """Read frames of one file in this process; what ends it early fails the frames that are left.

    stamp: the size and time that it must have, before and after each frame. A fault of the
    installation (ImportError) is raised.
    """
    left = deque(frames)
    digest: str | None = None
    started = time.perf_counter()
    try:
        _check_stamp(path, stamp)
        digest = content_digest(path)
        for item in read_slices(path, frames, plane):
            pixels: str | None = None
            if isinstance(item, Slice):
                pixels = pixel_digest(item.pixels)  # of float32, whatever type they travel in
                item = replace(item, pixels=narrow(item.pixels))
            # Behind the reading: what came is of the file as it was found, or it does not come.
            _check_stamp(path, stamp)
            left.popleft()  # last: what fails before is a failed frame, and none is lost
            yield FrameRead(item, digest, pixels, time.perf_counter() - started)
            started = time.perf_counter()
    except Exception as error:
        known = as_unreadable(error, "reading the file")
        if known.detail == CHANGED:
            digest = None  # of another file than the one that was found
        for frame in left:
            failure = Failure(frame, known.reason, known.detail)
            yield FrameRead(failure, digest, None, time.perf_counter() - started)
            started = time.perf_counter()


def _check_stamp(path: Path, stamp: FileStamp | None) -> None:
    """Raise UnreadableError where a file has not the size and time that it had when it was found.

    Another patient's picture may lie under its name by now, and would be embedded as this one's.
    """
    if stamp is None:
        return
    size, mtime_ns = stamp
    image = ImageStat.of(path)
    # Seen from another machine, a time may have lost its fractions.
    times = (image.mtime_ns, mtime_ns)
    step = _SECOND_NS if any(time_ns % _SECOND_NS == 0 for time_ns in times) else _TICK_NS
    if image.size != size or times[0] // step != times[1] // step:
        raise UnreadableError("vanished", CHANGED)
