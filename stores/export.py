"""Features for others: HDF5, npy and Parquet, each written aside and renamed when it is whole.

Only live rows that hold features leave the store, in row order; what was written is put on a list,
for whoever may have to take it back (`stores.leaving`). Beside the numbers go the columns
of the slice table, whose identifiers are pseudonyms.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stores._disk import sync, temporary_name, writing
from stores._types import Rows, Values
from stores.codes import read_patch
from stores.contents import OK, SLICES
from stores.errors import CorruptStoreError, UnwritableError
from stores.features import FeatureStore
from stores.inside import is_store_name
from stores.slices import row_numbers

Format = Literal["h5", "npy", "parquet"]
_BATCH_BYTES = 64 * 2**20
# Where an export says that its identifiers are pseudonyms: the digest of these very columns.
SEAL = "radprobe"
_SEALED = ("path", "patient", "study", "series", "instance", "tags")
_COLUMNS = ("path", "frame", "patient", "study", "series", "modality", "position_mm")


@dataclass(frozen=True)
class Selection:
    """Which features: an array; of `cls`, how many of the last blocks, side by side."""

    array: str = "cls"
    blocks: int = 1

    def of(self, store: FeatureStore, rows: Rows) -> Values:
        """Return (n, d) for cls and mean, patch tokens as they lie, as floats. Raises KeyError."""
        if self.array == "patch":
            return read_patch(store, rows)
        values = store.read(self.array, rows)
        if self.array == "cls":
            values = values[:, -self.blocks :]
        return values.reshape(len(values), *self.row_shape(store))

    def row_shape(self, store: FeatureStore) -> tuple[int, ...]:
        """Return the shape of one row. Raises KeyError or ValueError for what is not there."""
        shape = store.array(self.array).row_shape
        if self.array != "cls":
            return shape
        if not 1 <= self.blocks <= shape[0]:
            raise ValueError(
                f"blocks must be between 1 and {shape[0]}, the blocks that the store keeps. "
                f"Got {self.blocks} instead."
            )
        return (self.blocks * shape[1],)

    def dtype(self, store: FeatureStore) -> np.dtype[Any]:
        """Return the dtype of what `of` returns."""
        dtype = store.array(self.array).dtype
        return np.dtype(np.float32) if dtype == np.int8 else dtype


def live_slices(store: FeatureStore) -> pa.Table:
    """Return the slice table's rows that hold features, in row order."""
    slices = store.slices()
    status = store.status()[row_numbers(slices)]
    return slices.filter(pa.array(status == OK))


def batches(store: FeatureStore, which: Selection, rows: Rows) -> Iterator[Values]:
    """Yield the features of rows, in order, in pieces that fit in memory."""
    if not len(rows):
        return
    row_bytes = which.of(store, rows[:1]).nbytes
    size = max(1, _BATCH_BYTES // row_bytes)
    for start in range(0, len(rows), size):
        yield which.of(store, rows[start : start + size])


# --- the formats -----------------------------------------------------------------------------


def export_npy(store: FeatureStore, out: Path, which: Selection, written: list[Path]) -> int:
    """Write features as one .npy (n, d) and the slices of its rows as .parquet beside it."""
    slices = live_slices(store)
    rows = row_numbers(slices)
    shape = (len(rows), *which.row_shape(store))
    table_file = out.with_suffix(".parquet")
    with aside(out, written) as path, aside(table_file, written) as table:
        _write_parquet(table, [slices], slices.schema.with_metadata({SEAL: _seal(slices)}))
        # Piece by piece, since the features of a large store do not fit in memory, and by no map of
        # the file: where the disk takes no more, that ends the process.
        with path.open("xb") as disk:
            dtype = which.dtype(store)
            about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(disk, about)
            for piece in batches(store, which, rows):
                disk.write(np.ascontiguousarray(piece, dtype).data)
    return len(rows)


def export_parquet(store: FeatureStore, out: Path, which: Selection, written: list[Path]) -> int:
    """Write the slice table with a column `features`: a float32 list of fixed size d a row."""
    slices = live_slices(store)
    rows = row_numbers(slices)
    d = int(np.prod(which.row_shape(store)))
    column = pa.field("features", pa.list_(pa.float32(), d))
    schema = slices.schema.append(column)

    def pieces() -> Iterator[pa.Table]:
        start = 0
        for batch in batches(store, which, rows):
            flat = pa.array(batch.reshape(-1).astype(np.float32))
            features = pa.FixedSizeListArray.from_arrays(flat, d)
            piece = slices.slice(start, len(batch))
            yield piece.append_column(column, features)
            start += len(batch)

    with aside(out, written) as path:
        _write_parquet(path, pieces(), schema.with_metadata({"recipe": store.recipe_text}))
    return len(rows)


def export_h5(
    store: FeatureStore,
    out: Path,
    which: Selection,
    written: list[Path],
    *,
    per_study: bool = False,
) -> int:
    """Write HDF5 as MIL tools read it: `features` (n, d) and `coords` (n, 2) int64.

    coords: the series' number in the file, and the slice's number in its series. per_study: out is
    a folder with a file a study, named by its pseudonym; slices of no study share `no-study.h5`.
    """
    slices = live_slices(store)
    which.row_shape(store)  # refused before anything is written
    if not per_study:
        _write_h5(store, out, which, slices, written)
        return int(slices.num_rows)
    studies = slices["study"]
    names = pc.unique(studies).to_pylist()
    _check_file_names(store, names)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for study in names:
        same = pc.is_null(studies) if study is None else pc.equal(studies, study)
        of_study = slices.filter(pc.fill_null(same, False))
        _write_h5(store, out / f"{study or 'no-study'}.h5", which, of_study, written)
    return int(slices.num_rows)


def _check_file_names(store: FeatureStore, studies: list[str | None]) -> None:
    """Raise CorruptStoreError where a study cannot name a file: it may lead out of the folder."""
    for study in filter(None, studies):
        if "/" in study or not is_store_name(f"{study}.h5"):
            raise CorruptStoreError(
                f"{store.path / SLICES} has a study that cannot name a file. It was altered, or "
                "made to harm: take the store from where it came, again."
            )


def _write_h5(
    store: FeatureStore, out: Path, which: Selection, slices: pa.Table, written: list[Path]
) -> None:
    import h5py

    rows = row_numbers(slices)
    # To a file of Python's: where the disk takes no more, HDF5's own ends the process as it closes.
    with aside(out, written) as path, path.open("x+b") as disk, h5py.File(disk, "w") as file:
        names = [name for name in _COLUMNS if name in _SEALED]
        seal = _seal(slices.select(names))
        file.attrs.update({"recipe": store.recipe_text, "array": which.array, SEAL: seal})
        shape = (len(rows), *which.row_shape(store))
        features = file.create_dataset("features", shape, which.dtype(store))
        _fill(features, batches(store, which, rows))
        file["coords"] = _coords(slices["series"].to_pylist())
        file["row"] = rows
        for name in _COLUMNS:
            values = slices[name].to_pylist()
            if name == "position_mm":
                file[name] = np.array(values, np.float64)  # NaN where there is none
            elif name == "frame":
                file[name] = np.array(values, np.int64)
            else:
                texts = [value or "" for value in values]
                file.create_dataset(name, data=texts, dtype=h5py.string_dtype())


def seal_of(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the digest of the columns that hold identifiers, by which an import knows its own.

    A column of another tool never has it by chance; one that was changed since has it no more.
    """
    digest = hashlib.sha256(b"radprobe export")
    for name in _SEALED:
        if name in columns:
            digest.update(f"\0{name}".encode())
            for value in columns[name]:
                digest.update(b"\0" + _cell(value))
    return digest.hexdigest()


def _seal(slices: pa.Table) -> str:
    there = [name for name in _SEALED if name in slices.column_names]
    return seal_of({name: slices[name].to_pylist() for name in there})


def _cell(value: Any) -> bytes:
    """Return a cell as text, the same whichever format it went through; nothing is no text."""
    if isinstance(value, bytes):
        return value
    pairs = "" if not value else str(sorted(value)) if isinstance(value, list) else str(value)
    return pairs.encode("utf-8", "surrogatepass")


def _fill(out: Any, pieces: Iterator[Values]) -> None:
    """Write pieces (some rows each) one after the other into an array or a data set."""
    start = 0
    for piece in pieces:
        out[start : start + len(piece)] = piece
        start += len(piece)


def _coords(series: list[str]) -> Rows:
    """Return (n, 2): the number of each slice's series, and its number in that series."""
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    coords = np.empty((len(series), 2), np.int64)
    for i, name in enumerate(series):
        before = counts.get(name, 0)
        coords[i] = numbers.setdefault(name, len(numbers)), before
        counts[name] = before + 1
    return coords


def _write_parquet(path: Path, tables: Any, schema: pa.Schema) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


@contextlib.contextmanager
def aside(out: Path, written: list[Path]) -> Iterator[Path]:
    """Yield a temporary path that becomes `out`, and is on the list, when all went well.

    written: see `stores.leaving`. Raises UnwritableError.
    """
    if out.exists():
        raise UnwritableError(f"{out} is there already, and an export replaces nothing. Move it.")
    temporary = out.with_name(temporary_name(out.name))
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            # The bytes before the name: a file that stands after a crash is whole.
            sync(temporary)
            temporary.replace(out)
            # Only what has its name can be taken back, should a patient be withdrawn meanwhile.
            written.append(out)
    finally:
        temporary.unlink(missing_ok=True)
