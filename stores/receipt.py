"""What a receipt says of its part, read once into types.

Of a receipt's JSON, `document` keeps every key, those of other versions too: what is written again
(a purge) loses none, and stays byte for byte what it was.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stores._disk import is_digest
from stores._types import Crcs
from stores.contents import OK, PARTS, UNREADABLE, chunk_file
from stores.errors import as_corrupt
from stores.inside import is_store_name

_RECEIPT = re.compile(r"([0-9]{7,12})\.json")


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What a receipt vouches for of one chunk's file.

    bytes, sha256: of the file. row_crc32c: base64 of the crc32c of each row, little-endian uint32;
    None where rows are too small to be read alone.
    """

    bytes: int
    sha256: str
    row_crc32c: str | None = None

    @classmethod
    def of(cls, size: int, digest: str, row_crcs: Crcs | None) -> ChunkRecord:
        """Return the record of a file of so many bytes; row_crcs: (chunk rows,) little-endian."""
        text = None if row_crcs is None else base64.b64encode(row_crcs.tobytes()).decode()
        return cls(size, digest, text)

    def row_crcs(self) -> Crcs | None:
        """Return (chunk rows,) the crc32c of each row; None where the receipt has none.

        Raises CorruptStoreError where the text is no such numbers.
        """
        text = self.row_crc32c
        if text is None:
            return None
        with as_corrupt("a receipt's row_crc32c"):
            return np.frombuffer(base64.b64decode(text), "<u4")

    def as_json(self) -> dict[str, Any]:
        """Return the entry that stands for the chunk in a receipt."""
        entry: dict[str, Any] = {"bytes": self.bytes, "sha256": self.sha256}
        if self.row_crc32c is not None:
            entry["row_crc32c"] = self.row_crc32c
        return entry


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row whose slice could not be read. reason: one of `stores.errors.Reason`."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Link:
    """A row that has the same pixels as an earlier one, and its features by copying."""

    row: int
    original: int


@dataclass(frozen=True, slots=True)
class VolumeRange:
    """The values that became 0 and 1 throughout one volume, named by its first row."""

    row: int
    low: float
    high: float


@dataclass(frozen=True)
class Receipt:
    """One committed part.

    recipe: the digest of the store's. chunks: name (`cls/c/0/0/0`) -> what is vouched for. counts:
    status -> how many rows. left_out: rows that a volume's range or a thicker slice lacks. purged:
    rows that a purge emptied. by: the process that wrote it (`host:pid`); empty where features were
    imported. seconds: by stage.
    """

    part: int
    recipe: str
    chunks: Mapping[str, ChunkRecord]
    counts: Mapping[int, int]
    failures: tuple[UnreadableRow, ...]
    links: tuple[Link, ...]
    ranges: tuple[VolumeRange, ...]
    left_out: tuple[int, ...]
    purged: tuple[int, ...]
    by: str
    seconds: Mapping[str, float]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Receipt:
        """Read a receipt's JSON. Raises CorruptStoreError where it is not as receipts are.

        Only the part, the recipe and the chunks must be there: other keys came with versions, and
        features that were imported never had them.
        """
        with as_corrupt("a receipt"):
            seconds = document.get("seconds", {}).items()
            return cls(
                part=_number(document["part"]),
                recipe=document["recipe"],
                chunks={name: _chunk(name, entry) for name, entry in document["chunks"].items()},
                counts={int(status): _number(n) for status, n in _counts(document).items()},
                failures=tuple(_unreadable(entry) for entry in document.get("failures", ())),
                links=tuple(_link(pair) for pair in document.get("links", ())),
                ranges=tuple(_range(entry) for entry in document.get("ranges", ())),
                left_out=tuple(_number(row) for row in document.get("left_out", ())),
                purged=tuple(_number(row) for row in document.get("purged", ())),
                by=str(document.get("by", "")),
                seconds={str(stage): float(spent) for stage, spent in seconds},
                document=document,
            )

    @property
    def embedded(self) -> int:
        """How many rows have features by a forward pass of their own."""
        return self.counts.get(OK, 0) - len(self.links)

    @property
    def read(self) -> int:
        """How many slices were read, or tried."""
        return self.counts.get(OK, 0) + self.counts.get(UNREADABLE, 0)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each chunk's file, by its name within the store."""
        return {chunk_file(name): record.sha256 for name, record in self.chunks.items()}

    def purged_of(self, rows: Collection[int]) -> dict[str, Any]:
        """Return the document without what it tells of some rows, which it names as purged."""
        left = {"failures": [], "links": [], **self.document}
        return {**notes_without(left, rows), "purged": sorted({*self.purged, *rows})}


def notes_without(notes: Mapping[str, Any], rows: Collection[int]) -> dict[str, Any]:
    """Return what is noted of a part without what is noted of some of its rows.

    A volume is named by its first row, and its range is a range of that row's patient.
    """
    gone = set(rows)
    left = dict(notes)
    if "failures" in notes:
        left["failures"] = [entry for entry in notes["failures"] if entry["row"] not in gone]
    for name in ("links", "ranges"):
        if name in notes:
            left[name] = [list(entry) for entry in notes[name] if entry[0] not in gone]
    if "left_out" in notes:
        left["left_out"] = [row for row in notes["left_out"] if row not in gone]
    return left


def receipt_name(index: int) -> str:
    """Return where the receipt of a part is within its store."""
    return f"{PARTS}/{index:07d}.json"


def part_of(file: str) -> int | None:
    """Return the index of the part whose receipt is in a file of a name; None for other files."""
    match = _RECEIPT.fullmatch(file)
    return None if match is None else int(match[1])


def _chunk(name: str, entry: Mapping[str, Any]) -> ChunkRecord:
    if not is_store_name(chunk_file(name)) or not is_digest(entry["sha256"]):
        raise ValueError(f"no chunk is {name!r}")
    return ChunkRecord(_number(entry["bytes"]), entry["sha256"], entry.get("row_crc32c"))


def _counts(document: Mapping[str, Any]) -> Mapping[str, Any]:
    counts: Mapping[str, Any] = document.get("counts", {})
    return counts


def _unreadable(entry: Mapping[str, Any]) -> UnreadableRow:
    detail = str(entry.get("detail", ""))
    return UnreadableRow(_number(entry["row"]), str(entry["reason"]), detail)


def _link(pair: Any) -> Link:
    row, original = map(_number, pair)
    return Link(row, original)


def _range(entry: Any) -> VolumeRange:
    row, low, high = entry
    return VolumeRange(_number(row), float(low), float(high))


def _number(value: Any) -> int:
    """Return a whole number that is not negative. Raises ValueError for anything else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value
