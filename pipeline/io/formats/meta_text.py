"""The text header of a MetaImage (.mha, .mhd)."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pipeline.io.formats.volume_text import (
    MOST_LINE,
    Channels,
    Encoding,
    VolumeText,
    begin_of_last,
    data_file,
    header_bytes,
    numbers,
    sizes_of,
    spacings_of,
    text_of,
    whole_numbers,
)
from stores.errors import UnreadableError

_LINE = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,63})[ \t]*=[ \t]*(.*?)[ \t]*")
_FIRST_KEYS = (b"ObjectType", b"ObjectSubType", b"Comment", b"NDims", b"Name", b"ID")
_ITEMSIZES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
# Fields of several names, each of which may be given.
_SPACING = ("ElementSpacing", "ElementSize")
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_PLACE = ("Offset", "Position", "Origin", "CenterOfRotation")


def is_meta_image(start: bytes) -> bool:
    """Return whether a file begins as the header of a MetaImage does."""
    key, equals, _ = start.partition(b"=")
    if not equals or key.strip() not in _FIRST_KEYS:
        return False
    kind = re.search(rb"^ObjectType[ \t]*=[ \t]*(\w+)", start, re.MULTILINE)
    is_image = kind is None or kind[1] == b"Image"
    return is_image and re.search(rb"^NDims[ \t]*=", start, re.MULTILINE) is not None


def read_meta_text(path: Path) -> VolumeText:
    """Return the checked header of a MetaImage. Raises UnreadableError."""
    fields, end = _fields(header_bytes(path))
    dimensions = whole_numbers(fields.get("NDims", ""), 1, "NDims")[0]
    if not 2 <= dimensions <= 4:
        raise UnreadableError("unsupported", f"has {dimensions} dimensions, not 2 to 4")
    sizes = sizes_of(fields.get("DimSize", ""), dimensions, "DimSize")
    # Whoever reads numbers one by one would take those of the next line for what a field lacks.
    for name in _SPACING:
        if name in fields:
            spacings_of(fields[name], dimensions, name)
    for name in _PLACE:
        if name in fields:
            numbers(fields[name], dimensions, name)
    for name in _MATRIX:
        if name in fields:
            numbers(fields[name], dimensions**2, name)
    element = fields.get("ElementType", "")
    if element not in _ITEMSIZES:
        raise UnreadableError("unsupported", "voxels of an unknown ElementType")
    values = _one(fields, "ElementNumberOfChannels", 1)
    if not 1 <= values <= 2**16:
        raise UnreadableError("corrupt", f"declares {values} channels")
    encoding: Encoding = "raw"
    if not _is_true(fields.get("BinaryData", "True")):
        encoding = "text"
    if _is_true(fields.get("CompressedData", "False")):
        encoding = "deflate"
    itemsize = _ITEMSIZES[element]
    data = path
    offset = end
    skipped = _one(fields, "HeaderSize", 0)
    name = fields["ElementDataFile"]
    if name.upper() != "LOCAL":
        data = _data(path, name)
        offset = skipped
    elif skipped > 0:
        raise UnreadableError("unsupported", "has a HeaderSize, and its voxels behind its header")
    if offset == -1:
        offset = begin_of_last(data, math.prod(sizes) * values * itemsize)
    if offset < 0:
        raise UnreadableError("corrupt", f"declares a HeaderSize of {offset}")
    return VolumeText(
        sizes=sizes if values == 1 else (values, *sizes),
        itemsize=itemsize,
        encoding=encoding,
        data=data,
        offset=offset,
        placed=dimensions > 2 and any(name in fields for name in _MATRIX),
        channels=_channels(values, element),
        coded=_one(fields, "CompressedDataSize", 0) or None,
    )


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and where it ends. Raises UnreadableError."""
    fields: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[place : place + MOST_LINE + 1].partition(b"\n")
        if not line and not newline:
            raise UnreadableError("truncated", "its header does not end")
        place += len(line) + len(newline)
        match = _LINE.fullmatch(text_of(line))
        if match is None or match[1] in fields:
            raise UnreadableError("corrupt", "has a line in its header that is no field, or twice")
        fields[match[1]] = match[2]
    return fields, place


def _one(fields: dict[str, str], name: str, default: int) -> int:
    return whole_numbers(fields[name], 1, name)[0] if name in fields else default


def _is_true(word: str) -> bool:
    return word[:1] in ("T", "t", "1")


def _data(path: Path, name: str) -> Path:
    if name.split(" ")[0] == "LIST" or "%" in name:
        raise UnreadableError("unsupported", "its voxels lie in several files")
    return data_file(path, name)


def _channels(values: int, element: str) -> Channels | None:
    """Return what several values of a voxel are, which the header does not say."""
    if values == 1:
        return None
    if values in (3, 4) and element == "MET_UCHAR":
        return "colour"
    # Displacements are what two or three real numbers mostly are.
    return "vector" if values <= 3 and element in ("MET_FLOAT", "MET_DOUBLE") else "volumes"
