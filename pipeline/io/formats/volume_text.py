"""What the text headers of volumes (MetaImage, NRRD) say before a library reads their voxels.

- A header is hostile until checked: it names its data file, which may lie anywhere, and sizes.
- What is read here is stricter than what libraries take: one line a field, each field once, so that
  both understand the same by it.
- Nothing heavy is imported, since a walk over a folder looks at such headers too.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from stores.errors import UnreadableError

# Bytes of a header, and of a line of it, at the most.
MOST_BYTES = 2**20
MOST_LINE = 2**14
# No size has more digits.
_WHOLE = re.compile(r"-?[0-9]{1,18}")
Encoding = Literal["raw", "deflate", "text"]
# What several values of a voxel are: colours, volumes one behind the other, or a direction.
Channels = Literal["colour", "volumes", "vector"]


@dataclass(frozen=True)
class VolumeText:
    """A checked header. sizes: of all axes, the fastest first; channels: of an axis that is none
    of space or time, None where there is none.

    data: the file of the voxels, the header's own where it has them behind it; offset: where they
    begin there. coded: how many bytes of them it declares, None where it does not. placed: whether
    the file says how the volume lies in the patient. unit_mm: millimetres to its unit of space.
    """

    sizes: tuple[int, ...]
    itemsize: int
    encoding: Encoding
    data: Path
    offset: int
    placed: bool
    channels: Channels | None = None
    coded: int | None = None
    unit_mm: float = 1.0

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """The bytes of all values, decoded."""
        return self.count * self.itemsize

    @property
    def stored(self) -> int:
        """The bytes that the data file has for the voxels."""
        return self.data.stat().st_size - self.offset


def header_bytes(path: Path) -> bytes:
    """Return the beginning of a file, as long as a header may be."""
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def text_of(line: bytes) -> str:
    """Return a line of a header as text. Raises UnreadableError for what no text holds."""
    if len(line) > MOST_LINE:
        raise UnreadableError("corrupt", f"has a line of {len(line)} bytes in its header")
    text = line.decode("utf-8", "replace").rstrip("\r")
    if not text.replace("\t", " ").isprintable():
        raise UnreadableError("corrupt", "has bytes in its header that are no text")
    return text


def data_file(header: Path, name: str) -> Path:
    """Return the file of a header's voxels. Raises UnreadableError.

    Only within the header's own folder: a file from elsewhere must not be made to read another.
    """
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or name.startswith("~")
    # A path of Windows, or the standard input.
    foreign = "\\" in name or ":" in name or name in ("", "-", ".")
    if outside or foreign:
        raise UnreadableError("unsupported", "names a file of voxels outside its own folder")
    path = header.parent / pure
    try:
        mode = path.stat().st_mode
    except OSError:
        raise UnreadableError("truncated", "its voxels are a file that is not there") from None
    if not stat.S_ISREG(mode):
        raise UnreadableError("corrupt", "its voxels are no regular file")
    return path


def begin_of_last(data: Path, count: int) -> int:
    """Return where the last `count` bytes of a file begin, which its voxels then are."""
    return max(0, data.stat().st_size - count)


def whole_numbers(text: str, count: int, name: str) -> tuple[int, ...]:
    """Return so many whole numbers of a field. Raises UnreadableError."""
    words = text.split()
    if len(words) != count or not all(map(_WHOLE.fullmatch, words)):
        raise UnreadableError("corrupt", f"its {name} must be {count} whole numbers")
    return tuple(map(int, words))


def numbers(text: str, count: int, name: str) -> tuple[float, ...]:
    """Return so many finite numbers of a field. Raises UnreadableError."""
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UnreadableError("corrupt", f"its {name} must be {count} numbers")
    return values


def sizes_of(text: str, count: int, name: str) -> tuple[int, ...]:
    """Return the sizes of the axes, one or more each. Raises UnreadableError."""
    sizes = whole_numbers(text, count, name)
    if min(sizes) < 1:
        raise UnreadableError("corrupt", f"its {name} must be 1 or more")
    return sizes


def spacings_of(text: str, count: int, name: str) -> tuple[float, ...]:
    """Return distances along the axes. Raises UnreadableError where one is 0 or less."""
    values = numbers(text, count, name)
    if min(values) <= 0:
        raise UnreadableError("corrupt", f"its {name} must be above 0")
    return values
