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

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.io.digests import file_digest, narrow, pixel_digest
from pipeline.io.formats.limits import as_unreadable
from pipeline.io.sniff import sniff
from pipeline.io.types import FrameRead, Request
from pipeline.shared.paths import unescape_path
from pipeline.types import Failure, Header, Plane, Slice


def check_tags(keywords: Iterable[str]) -> None:
    """Raise ConfigError where a keyword is not in the DICOM dictionary, or no text or number."""
    from pipeline.io.formats import dicom_tags

    dicom_tags.check_tags(keywords)


def read_headers(path: Path, plane: Plane = "axial", tags: Sequence[str] = ()) -> list[Header]:
    """Return the headers of a file's slices, one a frame, without decoding pixels.

    tags: DICOM keywords whose values are wanted too. Raises UnreadableError; `not-an-image` where
    no format is recognised or a DICOM has no pixels.
    """
    kind = sniff(path)
    if kind == "dicom":
        from pipeline.io.formats import dicom

        return dicom.read_headers(path, tags)
    if kind == "nifti":
        from pipeline.io.formats import nifti

        return nifti.read_headers(path, plane)
    if kind == "raster":
        from pipeline.io.formats import raster

        return raster.read_headers(path)
    from pipeline.io.formats import arrays

    return arrays.read_headers(path)


def read_slices(
    path: Path, frames: Sequence[int], plane: Plane = "axial"
) -> Iterator[Slice | Failure]:
    """Yield one item a frame, in the order asked; the file is opened and decompressed once.

    Raises UnreadableError where the whole file fails.
    """
    kind = sniff(path)
    if kind == "dicom":
        from pipeline.io.formats import dicom

        return dicom.read_slices(path, frames)
    if kind == "nifti":
        from pipeline.io.formats import nifti

        return nifti.read_slices(path, frames, plane)
    if kind == "raster":
        from pipeline.io.formats import raster

        return raster.read_slices(path, frames)
    from pipeline.io.formats import arrays

    return arrays.read_slices(path, frames)


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
