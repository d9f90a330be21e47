"""Headers whose voxels lie in another file: both are one image, and are told by both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.io.formats.registry import FORMATS, START_BYTES, recognise

# Names of such headers, and the bytes below which files of other names may be some.
_ALWAYS = (".mhd", ".nhdr", ".hdr", ".hdr.gz")
_SOMETIMES = (".mha", ".nrrd")
_SMALL = 2**16


def may_be_detached(name: str, size: int) -> bool:
    """Return whether a file may be a header without voxels, by its name and its bytes."""
    lower = name.lower()
    return lower.endswith(_ALWAYS) or (size < _SMALL and lower.endswith(_SOMETIMES))


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a header's voxels; none where it has them itself or is no header."""
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError:
        return ()
    name = recognise(start)
    if name is None and path.name.lower().endswith(".hdr.gz"):
        name = "nifti"
    known = FORMATS.get(name or "")
    if known is None or known.data_files is None:
        return ()
    return known.data_files(path)


@dataclass(frozen=True)
class ImageStat:
    """The bytes of an image and the time it was last changed, of all its files together.

    others: the files beside its own that it is made of.
    """

    size: int
    mtime_ns: int
    others: tuple[Path, ...] = ()

    @classmethod
    def of(cls, path: Path) -> ImageStat:
        """Return what the disk says of an image by its header. Raises OSError."""
        status = path.stat()
        others: tuple[Path, ...] = ()
        if may_be_detached(path.name, status.st_size):
            others = data_files(path)
        statuses = [status, *(other.stat() for other in others)]
        size = sum(each.st_size for each in statuses)
        newest = max(each.st_mtime_ns for each in statuses)
        return cls(size, newest, others)


def content_digest(path: Path) -> str:
    """Return the sha256 of an image's bytes as hex: of a header, and of its voxels behind it.

    Headers of two patients may be the same to the last byte. Raises OSError.
    """
    digest = hashlib.sha256()
    for part in (path, *data_files(path)):
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
