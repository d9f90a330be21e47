"""Text headers of the volumes that ITK reads, and where their voxels are."""

from __future__ import annotations

from pathlib import Path

from pipeline.io.formats.meta_text import read_meta_text
from pipeline.io.formats.nrrd_text import MAGIC, read_nrrd_text
from pipeline.io.formats.volume_text import VolumeText
from stores.errors import UnreadableError


def is_nrrd(path: Path) -> bool:
    """Return whether a file begins as an NRRD does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_text(path: Path) -> VolumeText:
    """Return the checked header of a MetaImage or an NRRD. Raises UnreadableError."""
    return read_nrrd_text(path) if is_nrrd(path) else read_meta_text(path)


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the file of a header's voxels, where that is another one and may be read."""
    try:
        text = read_text(path)
    except UnreadableError:
        return ()
    return () if text.data == path else (text.data,)
