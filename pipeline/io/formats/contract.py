"""What a file format declares, and what its module must do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from pipeline.types import Failure, Header, Plane, Slice


class FormatReader(Protocol):
    """The two functions of a module that reads files of one format.

    - Frames are counted from 0; a file's headers are those of all its frames, in this order.
    - `read_headers` decodes no pixels, but where only they tell how many frames there are.
    - Pixels are float32 (H, W), C-contiguous, of the shape that the header says: HU for CT, scanner
      units or grey levels otherwise, higher is brighter, NaN is padding.
    - `read_slices` yields one item a frame, in the order of `frames`, which may repeat; a frame
      that the file does not have, or that cannot be decoded, is a Failure in its place.
    - No size in a header is believed (`limits.check_size`), nothing is unpickled, and no more is in
      memory than a frame and what it takes to decode it.
    - A file that fails as a whole raises UnreadableError, whose detail has nothing of the file's
      contents (`limits.as_unreadable`).
    """

    def read_headers(self, path: Path, plane: Plane, tags: Sequence[str]) -> list[Header]:
        """Return one header a frame.

        plane: which cut of a volume its slices are, for formats that hold volumes. tags: DICOM
        keywords whose values go into the headers, for formats that have such.
        """
        ...

    def read_slices(
        self, path: Path, frames: Sequence[int], plane: Plane
    ) -> Iterator[Slice | Failure]:
        """Yield the requested frames, one item each."""
        ...


@dataclass(frozen=True)
class Format:
    """One file format: the module that reads its files, and how these are recognised.

    module: a FormatReader, imported when the first of its files is read. signatures: bytes and the
    place where they stand, one of which each file of the format has. resembles: whether a file
    without any format's signature could be one of these, by its first bytes. gzipped: whether its
    files are also read gzipped. data_files: which other files have the voxels of one that is a
    header alone, for formats that have such; it imports nothing heavy.
    """

    module: str
    signatures: tuple[tuple[int, bytes], ...]
    resembles: Callable[[bytes], bool] | None = None
    gzipped: bool = False
    data_files: Callable[[Path], tuple[Path, ...]] | None = None

    def has_signature(self, start: bytes) -> bool:
        """Return whether a file that starts with these bytes has a signature of the format."""
        return any(start.startswith(magic, place) for place, magic in self.signatures)

    def reader(self) -> FormatReader:
        """Return the module that reads the format's files, and import no other."""
        return cast(FormatReader, importlib.import_module(self.module))
