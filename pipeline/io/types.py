"""What is requested of a file, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types import Failure, Slice

FileStamp = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """Frames wanted of one file; `path` is relative to the root, as the slice table has it.

    stamp: the size and time (ns) that the file had when its slices were found. One that has others
    by now is another file: it is not read.
    """

    path: str
    frames: tuple[int, ...]
    stamp: FileStamp | None = None


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """What tells a picture by its pixels as stored, undecoded.

    is_blank: whether all of it is one value, as pictures that are no copies of each other can be.
    """

    digest: str
    is_blank: bool


@dataclass(frozen=True, slots=True)
class FrameRead:
    """What came of one frame of a Request.

    file_digest: sha256 of the file's bytes; None where they could not be read. pixel_digest: of the
    slice's shape and values (`digests.pixel_digest`); None for a failure. seconds: spent reading
    and decoding. The pixels of the item may be of a narrower type (`digests.narrow`).
    """

    item: Slice | Failure
    file_digest: str | None = None
    pixel_digest: str | None = None
    seconds: float = 0.0
