"""FeatureStore: embeddings of a collection in one folder, committed a part at a time.

<store>/recipe.json       what made the numbers; written first
<store>/slices.parquet    a row a slice; files.parquet: a row a file of the collection
<store>/features.zarr     arrays over rows: the features, status, file_digest, pixel_digest
<store>/parts/*.json      a receipt a part, written last: the commit
<store>/results/, splits/ what was computed from it

1. A row number is an address for life; a slice that is gone is withdrawn, its row stays.
2. A part has one writer and is a whole number of chunks in every array.
3. A part without a valid receipt does not exist, whatever lies in the arrays.
4. A committed part is never written again.
5. Void and zero differ: floats are filled with NaN, and status says what a row holds.
6. Features are raw, in the recipe's dtype: never normalised, never silently overflown.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from stores._disk import TEMPORARY, seal, sync_file, sync_folder, unseal, write_atomic
from stores.claims import Claim, owner, try_claim
from stores.errors import (
    ClaimedError,
    CorruptStoreError,
    MissingRowsError,
    StoreError,
    StoreNotFoundError,
    UnalignedWriteError,
)
from stores.layout import Layout, PartRange
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

VOID, OK, UNREADABLE, WITHDRAWN = 0, 1, 2, 3
# Arrays every store has beside its features; a digest is the 32 bytes of a sha256.
LEDGER: dict[str, tuple[tuple[int, ...], str]] = {
    "status": ((), "uint8"),
    "file_digest": ((32,), "uint8"),
    "pixel_digest": ((32,), "uint8"),
}


@dataclass(frozen=True)
class ArraySpec:
    """One feature array: the shape of a row and its float dtype."""

    row_shape: tuple[int, ...]
    dtype: str


class FeatureStore:
    """A feature store on disk; see the module's docstring for its rules."""

    def __init__(self, path: Path, recipe_text: str, layout: Layout) -> None:
        self.path = path
        self.recipe_text = recipe_text
        self.layout = layout

    # --- open and create -------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: Path, recipe_text: str, arrays: Mapping[str, ArraySpec], part_rows: int
    ) -> FeatureStore:
        """Make an empty store: built aside and renamed, so that it is there wholly or not at all.

        Raises FileExistsError where the path holds anything.
        """
        import zarr

        layout = Layout(part_rows)
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty and holds no store. Choose another path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
        for folder in ("parts", "results", "splits"):
            (aside / folder).mkdir(parents=True)
        write_atomic(aside / "recipe.json", recipe_text.encode())
        group = zarr.create_group(
            aside / "features.zarr", zarr_format=3, attributes={"part_rows": part_rows}
        )
        specs = {name: ArraySpec(*spec) for name, spec in LEDGER.items()} | dict(arrays)
        for name, spec in specs.items():
            _create_array(group, name, spec, layout)
        _write_table(aside / "slices.parquet", SLICE_SCHEMA.empty_table())
        _write_table(aside / "files.parquet", FILE_SCHEMA.empty_table())
        try:
            aside.replace(path)  # takes the place of an empty folder, fails on a filled one
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a store. Raises StoreNotFoundError, or CorruptStoreError naming what is missing."""
        path = Path(path)
        if not (path / "recipe.json").is_file():
            raise StoreNotFoundError(
                f"There is no feature store at {str(path)!r} (no recipe.json). "
                "Run `radprobe extract` first, or check the path."
            )
        try:
            attributes = json.loads((path / "features.zarr/zarr.json").read_bytes())["attributes"]
            layout = Layout(int(attributes["part_rows"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(f"{path}/features.zarr cannot be opened: {error!r}.") from None
        return cls(path, (path / "recipe.json").read_text(encoding="utf-8"), layout)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of recipe.json's content: receipts name it."""
        return hashlib.sha256(self.recipe_text.encode()).hexdigest()

    # --- tables ----------------------------------------------------------------------------

    def slices(self) -> pa.Table:
        """Return the slice table (SLICE_SCHEMA), rows ascending, withdrawn ones included."""
        return _read_table(self.path / "slices.parquet")

    def files(self) -> pa.Table:
        """Return the file table (FILE_SCHEMA), set-aside files included."""
        return _read_table(self.path / "files.parquet")

    def write_tables(self, slices: pa.Table, files: pa.Table) -> None:
        """Replace both tables, and grow the arrays to hold every row of the slice table.

        One process at a time may do this. Rows of slices must keep their meaning.
        """
        rows = slices["row"].to_numpy()
        if rows.size and (np.diff(rows) <= 0).any():
            raise ValueError("slices must be in ascending order of unique rows.")
        n = self.layout.next_boundary(int(rows[-1]) + 1 if rows.size else 0)
        group = self._group("r+")
        for _, array in sorted(group.arrays()):
            if array.shape[0] < n:
                array.resize((n, *array.shape[1:]))
        # Slices last: files without their slices only cost a second look at those files.
        metadata = files.schema.metadata  # the rules of discovery travel here
        files = files.cast(FILE_SCHEMA).replace_schema_metadata(metadata)
        _write_table(self.path / "files.parquet", files)
        _write_table(self.path / "slices.parquet", slices.cast(SLICE_SCHEMA))

    # --- parts -----------------------------------------------------------------------------

    def missing(self) -> list[PartRange]:
        """Return the parts that hold live slices and have no valid receipt, in order."""
        slices = self.slices()
        live = slices["row"].to_numpy()[~slices["withdrawn"].to_numpy(zero_copy_only=False)]
        needed = np.unique(live // self.layout.part_rows)
        return [self.layout.part(int(i)) for i in needed if self.receipt(int(i)) is None]

    def receipt(self, index: int) -> dict[str, Any] | None:
        """Return a part's receipt where it can be believed, else None.

        It must be whole (its own seal), of this recipe, and its chunk files must be there in
        their recorded sizes; `verify` compares their content too.
        """
        path = self._receipt_path(index)
        if not path.is_file():
            return None
        try:
            receipt = unseal(path)
            fits = receipt["recipe"] == self.digest and receipt["part"] == index
            chunks = receipt["chunks"].items()
            whole = all(_size(self._zarr / name) == entry["bytes"] for name, entry in chunks)
        except (CorruptStoreError, KeyError, TypeError, AttributeError):
            return None
        return receipt if fits and whole else None

    def claim(self, part: PartRange) -> Claim | None:
        """Claim a part for writing; None where it is committed or another live process has it."""
        claim = try_claim(self.path / "parts", _stem(part.index))
        if claim is not None and self.receipt(part.index) is not None:
            claim.release()  # committed between the look and the claim
            return None
        return claim

    def empty_part(self) -> dict[str, NDArray[Any]]:
        """Return arrays (part_rows, ...) for one part, every row void, ready to be filled."""
        arrays = self._group("r").arrays()
        return {
            name: np.full((self.layout.part_rows, *array.shape[1:]), array.fill_value, array.dtype)
            for name, array in arrays
        }

    def owner(self, part: PartRange) -> str | None:
        """Return `host:pid` of the live process that holds a part's claim, or None."""
        return owner(self.path / "parts", _stem(part.index))

    def write(
        self,
        part: PartRange,
        claim: Claim,
        arrays: Mapping[str, NDArray[Any]],
        notes: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Commit one part: data, fsync, checksums, then the receipt. Returns the receipt.

        arrays: name -> (part_rows, ...) for every array of the store; notes: JSON to keep in the
        receipt. Raises ClaimedError where the part was taken over, UnalignedWriteError where the
        shapes are not exactly one part, StoreError where a feature overflows the dtype.
        """
        import zarr

        group = self._group("r+")
        known = {name for name, _ in group.arrays()}
        if known != set(arrays):
            raise ValueError(f"A part needs the arrays {sorted(known)}. Got {sorted(arrays)}.")
        ok = arrays["status"] == OK
        ready = {
            name: _fitted(name, values, group[name], part, ok) for name, values in arrays.items()
        }
        if not claim.held() or self.receipt(part.index) is not None:
            raise ClaimedError(f"Part {part.index} was taken over or committed by another process.")
        chunks: dict[str, dict[str, Any]] = {}
        for name, values in ready.items():
            # Without it zarr leaves out chunks that hold the fill value alone, and a receipt
            # could not tell such a chunk from one that was lost.
            with zarr.config.set({"array.write_empty_chunks": True}):
                array = zarr.open_array(self._zarr / name, mode="r+")
                array[part.start : part.stop] = values
            for path in _chunk_paths(group[name], part):
                sync_file(self._zarr / name / path)
                chunks[f"{name}/{path}"] = _checksum(self._zarr / name / path)
        status, counts = np.unique(arrays["status"], return_counts=True)
        receipt = {
            "part": part.index,
            "rows": [part.start, part.stop],
            "recipe": self.digest,
            "chunks": chunks,
            "counts": {str(s): int(c) for s, c in zip(status, counts, strict=True)},
            **notes,
        }
        if not claim.held():
            raise ClaimedError(f"Part {part.index} was taken over by another process.")
        write_atomic(self._receipt_path(part.index), seal(receipt))
        return receipt

    # --- reading ---------------------------------------------------------------------------

    def status(self) -> NDArray[np.uint8]:
        """Return (n,) what each row holds: 0 void, 1 ok, 2 unreadable, 3 withdrawn."""
        array = self._group("r")["status"]
        status: NDArray[np.uint8] = np.zeros(array.shape, np.uint8)
        for part in self.layout.parts(len(status)):
            if self.receipt(part.index) is not None:
                status[part.start : part.stop] = array[part.start : part.stop]
        slices = self.slices()
        withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
        status[slices["row"].to_numpy()[withdrawn]] = WITHDRAWN
        return status

    def read(self, name: str, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Return features (len(rows), ...) of an array, in the order of rows; all if None.

        With rows, each must hold features: else MissingRowsError names the first few. Without,
        rows that hold none are NaN. Raises KeyError where the store has no such array.
        """
        group = self._group("r")
        if name not in group:
            have = ", ".join(sorted(key for key, _ in group.arrays()))
            raise KeyError(f"The store {self.path} has no array {name!r}. It has: {have}.")
        array = group[name]
        if rows is None:
            whole: NDArray[Any] = np.asarray(array[:])
            if whole.dtype.kind == "f":
                whole[~np.isin(self.status(), (OK, WITHDRAWN))] = np.nan
            return whole
        wanted = np.asarray(rows, dtype=np.int64)
        status = self.status()
        outside = wanted[(wanted < 0) | (wanted >= len(status))]
        absent = outside if outside.size else wanted[status[wanted] != OK]
        if absent.size:
            raise MissingRowsError(
                f"{absent.size} of the {wanted.size} rows asked for hold no features "
                f"(first: {absent[:5].tolist()}). Extract them, or leave them out by status()."
            )
        return _gather(array, wanted)

    def fingerprint(self) -> str:
        """Return a digest of all that answers depend on: receipts and the slice table.

        It reads no array. Two equal fingerprints hold equal features for equal slices.
        """
        digest = hashlib.sha256(self.digest.encode())
        digest.update((self.path / "slices.parquet").read_bytes())
        for path in sorted((self.path / "parts").glob("*.json")):
            receipt = self.receipt(int(path.stem))
            chunks = receipt["chunks"] if receipt else None
            digest.update(json.dumps([path.stem, chunks], sort_keys=True).encode())
        return digest.hexdigest()

    # --- private ---------------------------------------------------------------------------

    @property
    def _zarr(self) -> Path:
        return self.path / "features.zarr"

    def _receipt_path(self, index: int) -> Path:
        return self.path / "parts" / f"{_stem(index)}.json"

    def _group(self, mode: str) -> Any:
        import zarr

        return zarr.open_group(self._zarr, mode=mode)  # type: ignore[arg-type]


def _stem(index: int) -> str:
    return f"{index:07d}"


def _create_array(group: Any, name: str, spec: ArraySpec, layout: Layout) -> None:
    """Make one array of no rows: plain chunks with a checksum, which costs reading nothing."""
    from zarr.codecs import Crc32cCodec

    dtype = np.dtype(spec.dtype)
    row_bytes = int(np.prod(spec.row_shape, dtype=np.int64)) * dtype.itemsize
    group.create_array(
        name,
        shape=(0, *spec.row_shape),
        chunks=(layout.chunk_rows(row_bytes), *spec.row_shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        fill_value=float("nan") if dtype.kind == "f" else 0,
    )


def _fitted(
    name: str, values: NDArray[Any], array: Any, part: PartRange, ok: NDArray[np.bool_]
) -> NDArray[Any]:
    """Return values as exactly one part in the array's dtype, refusing what would not survive."""
    expected = (part.stop - part.start, *array.shape[1:])
    if values.shape != expected or part.stop > array.shape[0]:
        raise UnalignedWriteError(
            f"{name} must be {expected}, exactly part {part.index} of {array.shape[0]} rows. "
            f"Got {values.shape} instead; rows of another part would be lost."
        )
    with np.errstate(over="ignore"):  # the check below names what overflowed
        cast = values.astype(array.dtype, copy=False)
    if cast.dtype.kind == "f" and not np.isfinite(cast[ok]).all():
        raise StoreError(
            f"{name} of part {part.index} holds values that are not finite as {array.dtype}. "
            "Set outputs.dtype to float32; if that fails too, check the weights."
        )
    return cast


def _chunk_paths(array: Any, part: PartRange) -> list[str]:
    """Return the chunk files of a part, relative to the array's folder."""
    rows = array.chunks[0]
    rest = (0,) * (array.ndim - 1)
    chunks = range(part.start // rows, part.stop // rows)
    return [array.metadata.encode_chunk_key((chunk, *rest)) for chunk in chunks]


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _gather(array: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read rows chunk by chunk, each chunk once: long index lists are slow in zarr."""
    out = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
    order = np.argsort(rows, kind="stable")
    size = array.chunks[0]
    for group in _runs(rows[order] // size):
        places = order[group]
        low, high = int(rows[places[0]]), int(rows[places[-1]]) + 1
        out[places] = array[low:high][rows[places] - low]
    return out


def _runs(chunks: NDArray[np.int64]) -> Sequence[slice]:
    """Split sorted chunk numbers into slices of neighbouring chunks, bounded in size."""
    if not chunks.size:
        return []
    breaks = np.flatnonzero((np.diff(chunks) > 1) | (np.diff(chunks // 8) > 0)) + 1
    edges = [0, *breaks.tolist(), len(chunks)]
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise CorruptStoreError(f"{path} is missing.") from None
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"{path} cannot be read: {error}.") from None


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())
