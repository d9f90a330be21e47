"""One array of a store: plain Zarr v3 chunks, read and written file by file.

A chunk file is the rows' bytes in C order, little-endian, and their crc32c (4 bytes): what
zarr-python's `bytes` and `crc32c` codecs make. Reading it straight into the caller's array costs
one copy, which zarr's own pipeline does not manage (measured: benchmarks/store.py). Where a few
rows of a chunk are wanted, they alone are read: the receipt has the crc32c of each row.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from stores._disk import sha256, temporary_name, write_new, writing
from stores._types import Bytes, Crcs, Mask, Rows, Values
from stores.errors import REPAIR, CorruptStoreError, StoreError, UnalignedWriteError, as_corrupt
from stores.inside import check_links
from stores.layout import MOST_PART_BYTES, Layout, PartRange
from stores.receipt import ChunkRecord

# Threads that read chunks: copies out of the page cache, which take no interpreter lock.
READ_THREADS = 2
# A row read alone costs about as much as so many bytes of a chunk that is read in one go.
SEEK_BYTES = 64 * 2**10
# A chunk is asked for a little at first. Linux then reads ahead in steps that grow, and keeps the
# rest in large pages; asked for all at once, it keeps the chunk in pages of 4 kB, from which every
# later read copies at half the speed (measured: 93 ms of processor time against 49 for 300 MB).
_FIRST_BYTES = 8 * 2**10
_CRC_BYTES = 4
# Memory that begins where a page does is filled faster: a copy out of the page cache to 16 bytes
# behind one, where numpy allocates, stalls on every page (a third more time, measured).
_PAGE = 4096
_CODECS = ["bytes", "crc32c"]
# Numbers alone, by the names that Zarr has for them: nothing of Python's is ever made of bytes.
_DTYPES = frozenset(
    ["float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


@dataclass(frozen=True)
class Chunk:
    """One chunk: its file relative to features.zarr, and its rows start to stop."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.stop - self.start


def _nowhere(chunk: Chunk) -> None:
    """Bring no chunk: an array that was parsed alone has those that are in its folder."""


@dataclass(frozen=True)
class StoredArray:
    """An array (n, *row_shape) in the Zarr group at `root`.

    fetch: brings the file of a chunk that is not there, or raises CorruptStoreError.
    """

    root: Path
    name: str
    n: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    fetch: Callable[[Chunk], None] = field(default=_nowhere, compare=False, repr=False)

    @classmethod
    def parse(
        cls,
        root: Path,
        name: str,
        metadata: bytes,
        fetch: Callable[[Chunk], None] = _nowhere,
    ) -> StoredArray:
        """Read zarr.json. Raises CorruptStoreError where the chunks are not as ours are."""
        with as_corrupt(str(root / name)):
            array = json.loads(metadata)
            codecs = [codec["name"] for codec in array["codecs"]]
            chunk_shape = _sizes(array["chunk_grid"]["configuration"]["chunk_shape"])
            n, *row_shape = _sizes(array["shape"])
            if array["data_type"] not in _DTYPES:
                raise ValueError(f"numbers of the type {array['data_type']!r}")
        if codecs != _CODECS or chunk_shape[1:] != row_shape:
            raise CorruptStoreError(
                f"{root / name} has the codecs {codecs} and chunks {chunk_shape}; a store's arrays "
                f"have {_CODECS} and chunks of whole rows. Read it with zarr instead."
            )
        dtype = np.dtype(array["data_type"])
        return cls(root, name, n, tuple(row_shape), dtype, chunk_shape[0], fetch)

    def check_part(self, layout: Layout) -> None:
        """Raise CorruptStoreError where a part of the layout is no whole number of chunks.

        Or where it is larger than any of ours: memory is asked for by these numbers.
        """
        chunk_bytes = self.chunk_rows * self.row_bytes
        part_bytes = layout.part_rows * self.row_bytes
        divides = self.chunk_rows > 0 and layout.part_rows % self.chunk_rows == 0
        if not divides or self.row_bytes < 1 or max(chunk_bytes, part_bytes) > MOST_PART_BYTES:
            raise CorruptStoreError(
                f"{self.root / self.name} has rows of {self.row_shape} {self.dtype}, "
                f"{self.chunk_rows} a chunk, and {layout.part_rows} a part. A part must be a whole "
                f"number of chunks and at most {MOST_PART_BYTES >> 30} GiB."
            )

    @property
    def void(self) -> float:
        """The value of rows that hold nothing: NaN for features, else 0."""
        return float("nan") if self.dtype.kind == "f" else 0

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    def empty(self, rows: int) -> Values:
        """Return (rows, *row_shape) of nothing."""
        return np.full((rows, *self.row_shape), self.void, self.dtype)

    def chunks(self, part: PartRange) -> Iterator[Chunk]:
        """Yield the chunks of a part."""
        rest = "/0" * len(self.row_shape)  # a chunk has whole rows: it is the first of each axis
        for start in range(part.start, part.stop, self.chunk_rows):
            number = start // self.chunk_rows
            name = f"{self.name}/c/{number}{rest}"
            yield Chunk(name, start, start + self.chunk_rows)

    def chunk_of(self, row: int) -> Chunk:
        """Return the chunk that holds a row."""
        start = row // self.chunk_rows * self.chunk_rows
        alone = PartRange(0, start, start + self.chunk_rows)
        return next(self.chunks(alone))

    def read_into(self, chunk: Chunk, out: Values) -> None:
        """Fill out (chunk rows, *row_shape), contiguous, from a chunk's file.

        Raises CorruptStoreError where the file is missing, short or fails its checksum.
        """
        view = out.reshape(-1).view(np.uint8)
        crc = bytearray(_CRC_BYTES + 1)  # with room for one byte too many, which is damage
        with self._opened(chunk) as file:
            got = os.preadv(file, [view.data[:_FIRST_BYTES]], 0)
            # The kernel may give less than is asked for; the checksum is read with the last rows.
            while got <= len(view) and (more := os.preadv(file, [view.data[got:], crc], got)):
                got += more
        expected = len(view) + _CRC_BYTES
        if got != expected:
            raise CorruptStoreError(f"{self.root / chunk.name} has not {expected} bytes. {REPAIR}")
        self._check(chunk, view, int.from_bytes(crc[:_CRC_BYTES], "little"))

    def read_part(self, part: PartRange) -> Values:
        """Return (part rows, *row_shape) of a committed part. Raises as `read_into` does."""
        out = self.empty(part.stop - part.start)
        for chunk in self.chunks(part):
            start = chunk.start - part.start
            self.read_into(chunk, out[start : start + chunk.rows])
        return out

    def read_rows(
        self,
        chunk: Chunk,
        rows: Rows,
        crcs: Crcs,
        out: Values,
        places: Rows,
    ) -> None:
        """Fill out[places] (out contiguous) with rows of a chunk, reading no others.

        crcs (chunk rows,): the checksums by the receipt. Raises CorruptStoreError as `read_into`.
        """
        if len(crcs) != self.chunk_rows:
            raise CorruptStoreError(
                f"The receipt of {self.root / chunk.name} has checksums of {len(crcs)} rows; the "
                f"chunk has {self.chunk_rows}. {REPAIR}"
            )
        # As bytes: the checksums are of these, whatever the dtype.
        view = out.reshape(len(out), -1).view(np.uint8)
        size = self.row_bytes
        within = rows - chunk.start
        with self._opened(chunk) as file:
            for place, row in zip(places.tolist(), within.tolist(), strict=True):
                got = os.preadv(file, [view[place].data], row * size)
                if got != size:
                    raise CorruptStoreError(f"{self.root / chunk.name} ends early. {REPAIR}")
                self._check(chunk, view[place], int(crcs[row]))

    @contextlib.contextmanager
    def _opened(self, chunk: Chunk) -> Iterator[int]:
        """Yield the file descriptor of a chunk's file, which is fetched where it is elsewhere.

        Raises CorruptStoreError where there is none, or a link leads out of the store.
        """
        # Folders as far as the chunks are checked when the store is opened.
        check_links(self.root, chunk.name, checked=f"{self.name}/c")
        path = f"{self.root}/{chunk.name}"
        # Opening a pipe, which nobody of ours made, must not wait for whoever may write to it.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            file = os.open(path, flags)
        except (FileNotFoundError, NotADirectoryError):
            self.fetch(chunk)
            try:
                file = os.open(path, flags)
            except (FileNotFoundError, NotADirectoryError):
                raise CorruptStoreError(f"{path} is missing. {REPAIR}") from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CorruptStoreError(f"{path} is no file. {REPAIR}")
            yield file
        finally:
            os.close(file)

    def _check(self, chunk: Chunk, view: Bytes, crc: int) -> None:
        if google_crc32c.value(view) != crc:
            path = self.root / chunk.name
            raise CorruptStoreError(f"{path} does not fit its checksum: bits flipped. {REPAIR}")

    def read_chunks(self, chunks: Sequence[Chunk], out: Values) -> None:
        """Read whole chunks into their rows of out (n, *row_shape)."""

        def read(share: Sequence[Chunk]) -> None:
            for chunk in share:
                self.read_into(chunk, out[chunk.start : chunk.stop])

        _in_threads(read, chunks)

    def gather(
        self,
        rows: Rows,
        crcs: Callable[[Chunk], Crcs | None] = lambda chunk: None,
    ) -> Values:
        """Return (len(rows), *row_shape) in the order of rows, each chunk opened once.

        crcs: the checksums of a chunk's rows, without which the chunk is read whole.
        """
        out = self.aligned(len(rows))
        # Chunk by chunk: each is opened and checked once, however the rows are mixed.
        order = np.argsort(rows, kind="stable")
        chunk_numbers = rows[order] // self.chunk_rows
        breaks = np.flatnonzero(np.diff(chunk_numbers)) + 1
        groups = np.split(order, breaks) if len(rows) else []

        def read(share: Sequence[Rows]) -> None:
            buffer = self.aligned(self.chunk_rows)
            for places in share:
                wanted = rows[places]
                chunk = self.chunk_of(int(wanted[0]))
                checks = crcs(chunk) if self._pays(len(wanted)) else None
                if checks is None:
                    self.read_into(chunk, buffer)
                    out[places] = buffer[wanted - chunk.start]
                else:
                    self.read_rows(chunk, wanted, checks, out, places)

        _in_threads(read, groups)
        return out

    def _pays(self, rows: int) -> bool:
        """Return whether so many rows of a chunk are quicker read alone than the whole of it."""
        alone = rows * (self.row_bytes + SEEK_BYTES)
        return alone < self.chunk_rows * self.row_bytes

    def aligned(self, rows: int) -> Values:
        """Return (rows, *row_shape) of anything, in memory that begins where a page does."""
        size = rows * self.row_bytes
        memory = np.empty(size + _PAGE, np.uint8)
        start = -memory.ctypes.data % _PAGE
        from_a_page_on = memory[start : start + size]
        return from_a_page_on.view(self.dtype).reshape(rows, *self.row_shape)

    def fit(self, values: Values, part: PartRange, ok: Mask) -> Values:
        """Return values as exactly one part in the dtype, refusing what would not survive.

        ok (part rows,): the rows whose values must be finite. Raises UnalignedWriteError or
        StoreError.
        """
        expected = (part.stop - part.start, *self.row_shape)
        if values.shape != expected or part.stop > self.n:
            raise UnalignedWriteError(
                f"{self.name} must be {expected}, exactly part {part.index} of {self.n} rows. "
                f"Got {values.shape} instead; rows of another part would be lost."
            )
        with np.errstate(over="ignore"):  # the check below names what overflowed
            cast = values.astype(self.dtype, copy=False)
        overflown = cast.dtype.kind == "f" and not np.isfinite(cast[ok]).all()
        if overflown:
            raise StoreError(
                f"{self.name} of part {part.index} holds values that are not finite as "
                f"{self.dtype}. Set outputs.dtype to float32; if that fails too, check the weights."
            )
        return cast

    def stage(self, chunk: Chunk, values: Values) -> tuple[Path, ChunkRecord]:
        """Write a chunk under a temporary name; return that and what the receipt vouches for.

        The file is not forced to disk yet.
        """
        contiguous = np.ascontiguousarray(values, self.dtype)
        data = contiguous.reshape(len(values), -1).view(np.uint8)
        crc32c = google_crc32c.value(data.reshape(-1))
        crc = crc32c.to_bytes(_CRC_BYTES, "little")
        path = self.root / chunk.name
        temporary = path.with_name(temporary_name(path.name))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_new(temporary, data.data, crc, force=False)
        row_crcs = None
        if self._pays(1):
            row_crcs = np.fromiter(map(google_crc32c.value, data), "<u4", len(data))
        digest = sha256(data.data, crc)
        return temporary, ChunkRecord.of(data.nbytes + _CRC_BYTES, digest, row_crcs)


def _sizes(shape: Any) -> list[int]:
    """Return a shape that was read. Raises ValueError where one of its sizes is none."""
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} is no size")
    return list(shape)


def _in_threads(read: Callable[[Sequence[Any]], None], items: Sequence[Any]) -> None:
    """Let each thread read its share of the items; raises what one raises.

    A share is handed out once: a task for each item costs a tenth more time (measured).
    """
    count = min(READ_THREADS, len(items))
    if count < 2:
        read(items)
        return
    with ThreadPoolExecutor(count) as threads:
        shares = [items[i::count] for i in range(count)]
        for _ in threads.map(read, shares):
            pass  # what a thread raised is raised here
