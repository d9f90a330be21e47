"""The text header of an NRRD file (.nrrd, .nhdr)."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pipeline.io.formats.volume_text import (
    MOST_BYTES,
    MOST_LINE,
    Channels,
    Encoding,
    VolumeText,
    begin_of_last,
    data_file,
    header_bytes,
    numbers,
    sizes_of,
    text_of,
    whole_numbers,
)
from stores.errors import UnreadableError

MAGIC = b"NRRD000"
# Fields by all their names (https://teem.sourceforge.net/nrrd/format.html).
_NAMES = {
    "datafile": "data file",
    "centerings": "centers",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "blocksize": "block size",
    "byteskip": "byte skip",
    "lineskip": "line skip",
    "oldmin": "old min",
    "oldmax": "old max",
    "sampleunits": "sample units",
}
# fmt: off
_FIELDS = frozenset({
    "dimension", "sizes", "type", "encoding", "endian", "data file", "kinds", "space", "content",
    "space dimension", "space directions", "space origin", "space units", "measurement frame",
    "spacings", "thicknesses", "axis mins", "axis maxs", "centers", "labels", "units", "number",
    "line skip", "byte skip", "block size", "old min", "old max", "min", "max", "sample units",
})
# fmt: on
_ITEMSIZES = {
    1: "char,signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
    2: "short,short int,signed short,signed short int,int16,int16_t,"
    "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
    8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
    "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
}
_SIZE_OF = {name: size for size, names in _ITEMSIZES.items() for name in names.split(",")}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "txt": "text",
    "text": "text",
    "ascii": "text",
}
# Millimetres to a unit of space.
_MILLIMETRES = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "µm": 0.001}
# Kinds of axes that are places or times, a voxel each; the others hold what a voxel has.
_DOMAINS = ("domain", "space", "time", "???", "none")
_COLOURS = ("rgb-color", "3-color", "rgba-color", "4-color")
_PATIENT = re.compile(r"(right|left)-(anterior|posterior)-superior(-time)?|[rl][ap]st?")


def read_nrrd_text(path: Path) -> VolumeText:
    """Return the checked header of an NRRD file. Raises UnreadableError."""
    fields, end = _fields(header_bytes(path))
    dimensions = whole_numbers(fields.get("dimension", ""), 1, "dimension")[0]
    if not 2 <= dimensions <= 5:
        raise UnreadableError("unsupported", f"has {dimensions} axes, not 2 to 5")
    sizes = sizes_of(fields.get("sizes", ""), dimensions, "sizes")
    itemsize = _SIZE_OF.get(fields.get("type", "").lower())
    if itemsize is None:
        raise UnreadableError("unsupported", "voxels of an unknown type")
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise UnreadableError("unsupported", "an encoding other than raw, gzip or text")
    if "spacings" in fields:
        _check_spacings(fields["spacings"])
    # Of a detached header the voxels lie beside it, and nowhere else.
    name = fields.get("data file")
    data = path if name is None else data_file(path, name)
    needed = math.prod(sizes) * itemsize
    offset = _offset(fields, encoding, data, 0 if name else end, needed)
    in_patient = bool(_PATIENT.fullmatch(fields.get("space", "").lower()))
    return VolumeText(
        sizes=sizes,
        itemsize=itemsize,
        encoding=encoding,
        data=data,
        offset=offset,
        placed=in_patient and "space directions" in fields,
        channels=_channels(fields, dimensions, sizes, itemsize),
        unit_mm=_unit_mm(fields),
    )


def _fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and where it ends: at an empty line, or with the file."""
    fields: dict[str, str] = {}
    magic, newline, _ = start.partition(b"\n")
    place = len(magic) + len(newline)
    while True:
        line, newline, _ = start[place : place + MOST_LINE + 1].partition(b"\n")
        place += len(line) + len(newline)
        if place >= MOST_BYTES:
            raise UnreadableError("corrupt", f"has a header of more than {MOST_BYTES} bytes")
        text = text_of(line)
        if not text:
            break
        name, colon, value = text.partition(": ")
        name = _NAMES.get(name.lower(), name.lower())
        if text.startswith("#"):
            continue
        if not colon or name not in _FIELDS:
            if ":=" in text:  # of the user's own
                continue
            raise UnreadableError("corrupt", "has a line in its header that is no field")
        if name in fields:
            raise UnreadableError("corrupt", "has a field twice in its header")
        fields[name] = value.strip()
        if name == "data file":
            _refuse_several(fields[name])  # whose names would be the rest of the header
    return fields, place


def _check_spacings(text: str) -> None:
    """Raise UnreadableError where a spacing is 0 or less; NaN stands for none."""
    for word in text.split():
        if word.lower() != "nan" and numbers(word, 1, "spacings")[0] <= 0:
            raise UnreadableError("corrupt", "its spacings must be above 0")


def _refuse_several(name: str) -> None:
    if name.upper().startswith("LIST") or "%" in name:
        raise UnreadableError("unsupported", "its voxels lie in several files")


def _unit_mm(fields: dict[str, str]) -> float:
    """Return how many millimetres the unit of space has; 1 where no or another unit is stated."""
    units = {unit.strip('"').lower() for unit in fields.get("space units", "").split()}
    return _MILLIMETRES.get(units.pop(), 1.0) if len(units) == 1 else 1.0


def _offset(fields: dict[str, str], encoding: Encoding, data: Path, end: int, needed: int) -> int:
    """Return where the voxels begin in their file. Raises UnreadableError."""
    lines = whole_numbers(fields.get("line skip", "0"), 1, "line skip")[0]
    skipped = whole_numbers(fields.get("byte skip", "0"), 1, "byte skip")[0]
    if lines or (skipped and encoding != "raw") or skipped < -1:
        raise UnreadableError("unsupported", "skips lines, or bytes of what is coded")
    if skipped == -1:
        return begin_of_last(data, needed)
    return end + skipped


def _channels(
    fields: dict[str, str], dimensions: int, sizes: tuple[int, ...], itemsize: int
) -> Channels | None:
    """Return what several values of a voxel are. Raises UnreadableError."""
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != dimensions:
        raise UnreadableError("corrupt", f"its kinds must be {dimensions}")
    ranges = [number for number, kind in enumerate(kinds) if kind not in _DOMAINS]
    if len(ranges) > 1:
        raise UnreadableError("unsupported", "has several axes that are none of space or time")
    if not ranges:
        return None
    kind = kinds[ranges[0]]
    values = sizes[ranges[0]]
    if values == 1:
        return None
    if kind in _COLOURS or (kind == "vector" and values in (3, 4) and itemsize == 1):
        return "colour"
    return "volumes" if kind == "list" else "vector"
