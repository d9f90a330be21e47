"""One array of a store: plain Zarr v3 chunks, read and written file by file.

A chunk file is the rows' bytes in C order, little-endian, and their crc32c (4 bytes): what
zarr-python's `bytes` and `crc32c` codecs make. Reading it straight into the caller's array costs
one copy, which zarr's own pipeline does not manage (measured: benchmarks/store.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from stores._disk import sha256, temporary_name, write_new, writing
from stores.errors import CorruptStoreError, StoreError, UnalignedWriteError
from stores.layout import PartRange

# Threads that read chunks: copies out of the page cache, which take no interpreter lock.
READ_THREADS = 2
_CRC_BYTES = 4
_CODECS = ["bytes", "crc32c"]


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


@dataclass(frozen=True)
class StoredArray:
    """An array (n, *row_shape) in the Zarr group at `root`."""

    root: Path
    name: str
    n: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int

    @classmethod
    def parse(cls, root: Path, name: str, metadata: bytes) -> StoredArray:
        """Read zarr.json. Raises CorruptStoreError where the chunks are not as ours are."""
        about = json.loads(metadata)
        codecs = [codec["name"] for codec in about["codecs"]]
        chunk = about["chunk_grid"]["configuration"]["chunk_shape"]
        if codecs != _CODECS or chunk[1:] != about["shape"][1:]:
            raise CorruptStoreError(
                f"{root / name} has the codecs {codecs} and chunks {chunk}; a store's arrays have "
                f"{_CODECS} and chunks of whole rows. Read it with zarr instead."
            )
        n, *row_shape = about["shape"]
        return cls(root, name, n, tuple(row_shape), np.dtype(about["data_type"]), chunk[0])

    @property
    def void(self) -> float:
        """The value of rows that hold nothing: NaN for features, else 0."""
        return float("nan") if self.dtype.kind == "f" else 0

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    def empty(self, rows: int) -> NDArray[Any]:
        """Return (rows, *row_shape) of nothing."""
        return np.full((rows, *self.row_shape), self.void, self.dtype)

    def chunks(self, part: PartRange) -> Iterator[Chunk]:
        """Yield the chunks of a part."""
        rest = "/0" * len(self.row_shape)
        for start in range(part.start, part.stop, self.chunk_rows):
            name = f"{self.name}/c/{start // self.chunk_rows}{rest}"
            yield Chunk(name, start, start + self.chunk_rows)

    def chunk_of(self, row: int) -> Chunk:
        """Return the chunk that holds a row."""
        start = row // self.chunk_rows * self.chunk_rows
        return next(self.chunks(PartRange(0, start, start + self.chunk_rows)))

    def read_into(self, chunk: Chunk, out: NDArray[Any]) -> None:
        """Fill out (chunk rows, *row_shape), contiguous, from a chunk's file.

        Raises CorruptStoreError where the file is missing, short or fails its checksum.
        """
        path = self.root / chunk.name
        view = out.reshape(-1).view(np.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                got = file.readinto(view.data) or 0
                while 0 < got < len(view) and (more := file.readinto(view.data[got:])):
                    got += more
                crc = file.read(_CRC_BYTES + 1)
        except FileNotFoundError:
            raise CorruptStoreError(f"{path} is missing. {_REPAIR}") from None
        if got != len(view) or len(crc) != _CRC_BYTES:
            raise CorruptStoreError(f"{path} has not {len(view) + _CRC_BYTES} bytes. {_REPAIR}")
        if google_crc32c.value(view) != int.from_bytes(crc, "little"):
            raise CorruptStoreError(f"{path} does not fit its checksum: bits flipped. {_REPAIR}")

    def read_chunks(self, chunks: Sequence[Chunk], out: NDArray[Any]) -> None:
        """Read whole chunks into their rows of out (n, *row_shape)."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            for _ in threads.map(lambda c: self.read_into(c, out[c.start : c.stop]), chunks):
                pass  # an error of a thread is raised here

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return (len(rows), *row_shape) in the order of rows, each chunk read once."""
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        order = np.argsort(rows, kind="stable")
        breaks = np.flatnonzero(np.diff(rows[order] // self.chunk_rows)) + 1
        groups = np.split(order, breaks) if len(rows) else []

        def read(share: Sequence[NDArray[np.int64]]) -> None:
            buffer = np.empty((self.chunk_rows, *self.row_shape), self.dtype)
            for places in share:
                chunk = self.chunk_of(int(rows[places[0]]))
                self.read_into(chunk, buffer)
                out[places] = buffer[rows[places] - chunk.start]

        with ThreadPoolExecutor(READ_THREADS) as threads:
            for _ in threads.map(read, [groups[i::READ_THREADS] for i in range(READ_THREADS)]):
                pass
        return out

    def fit(self, values: NDArray[Any], part: PartRange, ok: NDArray[np.bool_]) -> NDArray[Any]:
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
        if cast.dtype.kind == "f" and not np.isfinite(cast[ok]).all():
            raise StoreError(
                f"{self.name} of part {part.index} holds values that are not finite as "
                f"{self.dtype}. Set outputs.dtype to float32; if that fails too, check the weights."
            )
        return cast

    def stage(self, chunk: Chunk, values: NDArray[Any]) -> tuple[Path, dict[str, Any]]:
        """Write a chunk under a temporary name; return that and the receipt's entry for it."""
        data = np.ascontiguousarray(values, self.dtype).tobytes()
        data += google_crc32c.value(data).to_bytes(_CRC_BYTES, "little")
        path = self.root / chunk.name
        temporary = path.with_name(temporary_name(path.name))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_new(temporary, data)
        return temporary, {"bytes": len(data), "sha256": sha256(data)}


_REPAIR = "Run `radprobe verify --repair` on the store, then `radprobe extract`."
