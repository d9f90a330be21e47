"""Parquet files of whoever made them: decoded within a bound of memory, whatever they say.

A page of one repeated value decodes to any number of them, and a text that stands once in a file
may stand in each of its rows. What the footer says of sizes is what its writer chose: the pages
themselves are asked, whose headers the decoder goes by, before any of a group of rows is decoded.
Text is decoded as numbers of a list of texts, whose lengths are added up before it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stores.errors import CorruptStoreError, as_corrupt

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# What a table may come to in memory: this, and so many bytes for each of its file. Slices come to
# 7 times their bytes in the file, frames of regular volumes to 90 times.
FREE_BYTES = 2**26
BYTES_A_BYTE = 2**8
# What a value takes beside its own bytes: its number in the list of texts, and where it begins.
_BYTES_A_VALUE = 8

# Of a page's header, by its numbers in parquet.thrift.
_UNCOMPRESSED, _COMPRESSED = 2, 3
_OF_KIND = (5, 7, 8)  # of a data page, a list of values, a data page of version 2
_VALUES = 1  # in each of these


class ParquetFile:
    """A Parquet file as bytes, of which as much is decoded as is asked for.

    Raises ArrowException and OSError, here and where it is read, for what cannot be decoded.
    """

    def __init__(self, data: bytes | pa.Buffer) -> None:
        self._data = pa.py_buffer(data)
        self._about: pq.FileMetaData | None = None
        file = self._open([])
        self.about: pq.FileMetaData = file.metadata
        self.schema: pa.Schema = file.schema_arrow
        self._about = self.about

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return some columns, or all. Raises CorruptStoreError where they ask for too much."""
        pieces = list(self.groups(columns))
        return pa.concat_tables(pieces) if pieces else self._schema_of(columns).empty_table()

    def groups(self, columns: Sequence[str] | None = None, first: int = 0) -> Iterator[pa.Table]:
        """Yield the rows, group by group from the first on, as `read` returns them."""
        schema = self._schema_of(columns)
        if len(set(schema.names)) < len(schema):
            raise CorruptStoreError("A table in a Parquet file has one column twice.")
        leaves = [
            place
            for place in range(self.about.num_columns)
            if _is_below(self.about.schema.column(place).path, schema.names)
        ]
        texts = [leaf for leaf in leaves if self._column(leaf).physical_type == "BYTE_ARRAY"]
        file = self._open([self._column(leaf).path for leaf in texts])
        left = FREE_BYTES + BYTES_A_BYTE * self._data.size
        for group in range(first, self.about.num_row_groups):
            left -= sum(self._bytes_of(group, leaf) for leaf in leaves)
            self._check(left)
            piece = file.read_row_group(group, schema.names, use_threads=False)
            left -= sum(_text_bytes(chunk) for column in piece.columns for chunk in column.chunks)
            self._check(left)
            yield piece.cast(schema)

    def _check(self, left: int) -> None:
        if left < 0:
            size = self._data.size
            raise CorruptStoreError(
                f"A table in a Parquet file of {size} bytes asks for more than "
                f"{FREE_BYTES + BYTES_A_BYTE * size} bytes of memory, as no table of slices, "
                "labels or answers does."
            )

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        there = [self.schema.field(name) for name in columns if name in self.schema.names]
        return pa.schema(there, self.schema.metadata)

    def _open(self, texts: list[str]) -> pq.ParquetFile:
        # Nothing here is read by Arrow's threads: a process that ends soon after may be aborted by
        # them (apache/arrow #34314).
        import pyarrow.parquet as pq  # where a table is read: an answer on file needs none

        return pq.ParquetFile(
            pa.BufferReader(self._data),
            metadata=self._about,
            page_checksum_verification=True,
            read_dictionary=texts,
        )

    def _column(self, leaf: int) -> pq.ColumnSchema:
        return self.about.schema.column(leaf)

    def _bytes_of(self, group: int, leaf: int) -> int:
        """Return what a column of a group takes in memory at the most, but for repeated text."""
        about = self.about.row_group(group).column(leaf)
        if not about.num_values:
            return 0  # of nothing no page is read
        start = about.data_page_offset
        if about.has_dictionary_page and 0 < about.dictionary_page_offset < start:
            start = about.dictionary_page_offset
        end = start + about.total_compressed_size
        a_value = max(_BYTES_A_VALUE, self._column(leaf).length or 0)
        total = 0
        with as_corrupt("A page of a Parquet file"):
            for page_bytes, values in _pages(memoryview(self._data)[start:end]):
                total += page_bytes + values * a_value
        return total


def _is_below(path: str, columns: Sequence[str]) -> bool:
    """Return whether a leaf of the schema is one of some columns, or below one."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _text_bytes(array: pa.Array) -> int:
    """Return how many bytes the texts of an array come to once they are written out."""
    if not pa.types.is_nested(array.type):
        if not pa.types.is_dictionary(array.type) or not len(array):
            return 0
        import pyarrow.compute as pc

        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_map(array.type):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    flat = array.flatten()
    return sum(map(_text_bytes, flat)) if isinstance(flat, list) else _text_bytes(flat)


# --- headers of pages, in Thrift's compact protocol --------------------------------------------


def _pages(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the bytes of each page once it is unpacked, and how many values it has.

    Raises IndexError, TypeError, KeyError and ValueError for what is no page.
    """
    at = 0
    while at < len(data):
        header, at = _struct(data, at)
        (kind,) = (header[number] for number in _OF_KIND if number in header)
        sizes = (header[_UNCOMPRESSED], header[_COMPRESSED], kind[_VALUES])
        if min(sizes) < 0:
            raise ValueError("a page of less than nothing")
        yield header[_UNCOMPRESSED], kind[_VALUES]
        at += header[_COMPRESSED]


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by their numbers, and where it ends."""
    fields = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    """Return a value, None for one that is not asked for, and where it ends."""
    match kind:
        case 1 | 2:
            return kind == 1, at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            return _integer(data, at)
        case 7:
            return None, at + 8
        case 8:
            length, at = _varint(data, at)
            return None, at + length
        case 12:
            return _struct(data, at)
    raise ValueError(f"a field of the kind {kind}")


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
    return value | data[at] << shift, at + 1
