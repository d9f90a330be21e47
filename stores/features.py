"""FeatureStore: embeddings of a collection in one folder, committed a part at a time.

<store>/manifest.json     the checksums of the files below that nothing can compute again
<store>/recipe.json       what made the numbers; written first
<store>/slices.parquet    a row a slice; files.parquet: a row a file of the collection
<store>/withdrawn.json    the patients (pseudonyms) who were withdrawn by name
<store>/features.zarr     arrays over rows: the features, status, file_digest, pixel_digest
<store>/parts/*.json      a receipt a part, written last: the commit
<store>/claims/           who writes which part; <store>/runs/: what runs tell of themselves
<store>/copies/           the manifest's files a second time, named by their sha256
<store>/results/, splits/ what was computed from it

1. A row number is an address for life; a slice that is gone is withdrawn, its row stays.
2. A part has one writer and is a whole number of chunks in every array.
3. A part without a valid receipt does not exist, whatever lies in the arrays.
4. A committed part is never written again (`purge` alone takes numbers out of it).
5. Void and zero differ: floats are filled with NaN, and status says what a row holds.
6. Features are raw, in the recipe's dtype: never normalised, never silently overflown.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from stores import manifest
from stores._build import build
from stores._disk import (
    TEMPORARY,
    below,
    files_in,
    make_folder,
    sha256,
    sweep_temporaries,
    temporary_name,
    writing,
)
from stores._types import Bytes, Crcs, Rows, Values
from stores.arrays import Chunk, StoredArray
from stores.claims import Claim, Holder, exclusive, holders, owner, stems, try_claim
from stores.commit import PartWriter, check_claim
from stores.contents import (
    CLAIMS,
    FEATURES,
    FILES,
    KEY_CHECK,
    LEDGER,
    MANIFEST,
    OK,
    PARTS,
    PUBLISHED,
    RECIPE,
    RUNS,
    SLICES,
    UNREADABLE,
    VOID,
    WITHDRAWN,
    WITHDRAWN_PATIENTS,
    ArraySpec,
    chunk_file,
)
from stores.errors import (
    REPAIR,
    ClaimedError,
    CorruptStoreError,
    MissingRowsError,
    OccupiedError,
    StaleTablesError,
    StoreError,
    StoreNotFoundError,
    as_corrupt,
)
from stores.folder import linked_place
from stores.inside import check_folders
from stores.layout import Layout, PartRange
from stores.receipt import Receipt, UnreadableRow, notes_without, part_of, receipt_name
from stores.receipts import Receipts, Stamp
from stores.slices import (
    FILE_SCHEMA,
    SLICE_SCHEMA,
    TableFile,
    Tables,
    end_of,
    is_withdrawn,
    row_numbers,
    table_bytes,
)
from stores.storage import Storage, mend, storage_at, storage_of
from stores.withdrawn import Withdrawn

__all__ = [
    "LEDGER",
    "OK",
    "RUNS",
    "UNREADABLE",
    "VOID",
    "WITHDRAWN",
    "ArraySpec",
    "FeatureStore",
]

# Of all arrays together.
_GROUP = f"{FEATURES}/zarr.json"


class FeatureStore:
    """A feature store on disk; see the module's docstring for its rules."""

    def __init__(self, storage: Storage, recipe_text: str, layout: Layout) -> None:
        self.storage = storage
        self.path = storage.folder
        self.recipe_text = recipe_text
        self.layout = layout
        self._parsed_files: dict[str, tuple[str, Any]] = {}  # name -> sha256, what it holds
        self._withdrawn_rows: tuple[TableFile, int, Rows] | None = None
        self._status: dict[int, tuple[Stamp, Bytes]] = {}
        # Of each part: by which receipt, and the checksums of each chunk's rows.
        self._row_crcs: dict[int, tuple[Stamp | None, dict[str, Crcs | None]]] = {}

    # --- open and create -------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        recipe_text: str,
        arrays: Mapping[str, ArraySpec],
        part_rows: int,
        key_check: str | None = None,
    ) -> FeatureStore:
        """Make an empty store: built aside and renamed, so that it is there wholly or not at all.

        key_check: by which the key of its pseudonyms is known again.

        Raises OccupiedError where the path holds anything, UnwritableError.
        """
        layout = Layout(part_rows)
        check_free(path)
        place = linked_place(path)
        aside = place.with_name(temporary_name(place.name))
        try:
            with writing(path):
                make_folder(place.parent)
                # What was built aside by processes that died since.
                sweep_temporaries(place.parent.glob(f"{TEMPORARY}*-{glob.escape(place.name)}"))
                build(aside, recipe_text, LEDGER | dict(arrays), layout, key_check)
            storage_of(path).adopt(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a store, in a folder or at a URL (see `stores.storage`).

        Raises StoreNotFoundError, CorruptStoreError naming what is missing, ConfigError for a URL
        that cannot be reached.
        """
        storage = storage_at(path)
        folder = storage.folder
        check_there(storage)
        check_folders(folder)
        recipe = manifest.load(folder, RECIPE)
        group = manifest.load(folder, _GROUP)
        with as_corrupt(str(folder)):
            part_rows = int(json.loads(group)["attributes"]["part_rows"])
            return cls(storage, recipe.decode(), Layout(part_rows))

    def keep_key_check(self, key_check: str) -> None:
        """Have a store that was made before keys were checked know its key again."""
        self.storage.check_writable()
        with exclusive(self.claims, "tables"):
            mend(self.storage)
            group = json.loads(manifest.load(self.path, _GROUP))
            group["attributes"].setdefault(KEY_CHECK, key_check)
            self.storage.replace({_GROUP: json.dumps(group, indent=2).encode()})

    @property
    def place(self) -> str:
        """Where the store is, as people are told: a folder, or a URL."""
        return self.storage.place

    @cached_property
    def digest(self) -> str:
        """The sha256 of recipe.json's content, which receipts name."""
        return sha256(self.recipe_text.encode())

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """Every array of the store, as it is now."""
        root = self.path / FEATURES
        # Not a method of this store: what is kept in `_parsed_files` must not hold the store alive.
        fetch = functools.partial(_fetch_chunk, self.receipts, self.layout)
        arrays: dict[str, StoredArray] = {}
        for file, digest in manifest.digests(self.path).items():
            folder, _, name = file.removesuffix("/zarr.json").partition("/")
            if folder == FEATURES and name:
                parse = functools.partial(StoredArray.parse, root, name, fetch=fetch)
                array = self._parsed(file, parse, digest)
                array.check_part(self.layout)
                arrays[name] = array
        missing = LEDGER.keys() - arrays.keys()
        if missing:
            raise CorruptStoreError(f"{self.path} has no arrays {sorted(missing)}. {REPAIR}")
        return arrays

    def array(self, name: str) -> StoredArray:
        """Return one array. Raises KeyError naming those there are."""
        arrays = self.arrays
        if name not in arrays:
            names = ", ".join(sorted(arrays))
            raise KeyError(f"The store {self.path} has no array {name!r}. It has: {names}.")
        return arrays[name]

    # --- tables ----------------------------------------------------------------------------

    def slices(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the slice table (SLICE_SCHEMA), rows ascending, withdrawn ones included.

        It is kept in memory, unless some columns alone are asked for.
        """
        file = self.slice_file
        return file.table if columns is None else file.read(columns)

    @property
    def slice_file(self) -> TableFile:
        """The slice table of this moment, to be read piece by piece."""
        file: TableFile = self._parsed(SLICES, functools.partial(TableFile, schema=SLICE_SCHEMA))
        return file

    def files(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the file table (FILE_SCHEMA), set-aside files included, or some columns of it."""
        parse = functools.partial(TableFile, schema=FILE_SCHEMA)
        return self._parsed(FILES, parse).read(columns)

    @property
    def withdrawn(self) -> Withdrawn:
        """Who is withdrawn by name at this moment."""
        withdrawn: Withdrawn = self._parsed(WITHDRAWN_PATIENTS, _withdrawn_of)
        return withdrawn

    def withdrawn_in(self, part: PartRange) -> Rows:
        """Return the rows of a part whose slices are withdrawn by the table of this moment."""
        manifest.look_again(self.path)
        rows = [np.zeros(0, np.int64)]
        for piece in self.slice_file.between(part.start, part.stop, ["row", "withdrawn"]):
            rows.append(row_numbers(piece)[is_withdrawn(piece)])
        return np.concatenate(rows)

    def live_rows(self) -> Rows:
        """Return (n,) the rows of the slices that are not withdrawn, ascending."""
        slices = self.slices(["row", "withdrawn"])
        rows: Rows = self._checked_rows(slices)[~is_withdrawn(slices)]
        return rows

    def _checked_rows(self, slices: pa.Table) -> Rows:
        """Return (n,) the rows of slices, ascending.

        Raises CorruptStoreError where they do not ascend, or the arrays lack one.
        """
        rows = row_numbers(slices)
        if (np.diff(rows) <= 0).any():
            raise CorruptStoreError(
                f"{self.path / SLICES} has rows that are not in ascending order. {REPAIR}"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= self.n_rows):
            raise CorruptStoreError(
                f"{self.path / SLICES} has the rows {rows.min()} to {rows.max()}, and the arrays "
                f"have {self.n_rows}. {REPAIR}"
            )
        return rows

    def tables(self) -> Tables:
        """Return both tables and the withdrawn patients, of one moment; nothing is kept."""
        while True:  # until nobody replaced one of them while the others were read
            seen = manifest.version(self.path)
            tables = Tables(self.slice_file.read(), self.files(), self.withdrawn, seen)
            if manifest.version(self.path) == seen:
                return tables

    def write_tables(
        self,
        slices: pa.Table,
        files: pa.Table,
        *,
        withdrawn: Withdrawn | None = None,
        seen: str | None = None,
    ) -> None:
        """Replace both tables at once, and grow the arrays to hold every row of the slice table.

        Rows of slices must keep their meaning. withdrawn: who is, by name, if that changed.
        seen: of the `tables()` these come from; raises StaleTablesError where they are no longer
        the store's, since two that number new rows must not both be believed.
        """
        rows = row_numbers(slices)
        if rows.size and (np.diff(rows) <= 0).any():
            # Of a stranger's table, as often as of a caller's mistake.
            raise CorruptStoreError("slices must be in ascending order of unique rows.")
        metadata = files.schema.metadata  # the rules of discovery travel here
        files = files.cast(FILE_SCHEMA).replace_schema_metadata(metadata)
        new = {
            FILES: table_bytes(files),
            SLICES: table_bytes(slices.cast(SLICE_SCHEMA)),
        }
        if withdrawn is not None:
            new[WITHDRAWN_PATIENTS] = withdrawn.as_json()
        self.storage.check_writable()
        with exclusive(self.claims, "tables"):
            # What a crash left half done is finished first, so that `seen` is judged by what holds.
            mend(self.storage)
            if seen is not None and seen != manifest.version(self.path):
                raise StaleTablesError(f"The tables of {self.path} were replaced meanwhile.")
            n = self.layout.next_boundary(end_of(rows))
            # Tables and arrays in one replacement: no slice without a row to hold its features.
            self.storage.replace(new | self._grown(n))

    def recover(self) -> None:
        """Finish what a crash left half done of the manifest's files, wherever the store is.

        Whoever is to write calls this first: what is left as it is, radprobe reads by its copies,
        but nobody else can, and a run that changes no table would leave it for good. Raises
        UnwritableError.
        """
        if manifest.is_mended(self.path):
            return
        self.storage.check_writable()
        # Another process may be at it right now: then there is nothing left to mend.
        with exclusive(self.claims, "tables"):
            mend(self.storage)

    def _grown(self, n: int) -> dict[str, bytes]:
        """Return the zarr.json of each array that has fewer than n rows, with n."""
        grown = {}
        for name, array in self.arrays.items():
            if array.n < n:
                file = f"{FEATURES}/{name}/zarr.json"
                metadata = json.loads(manifest.load(self.path, file))
                metadata["shape"][0] = n
                grown[file] = json.dumps(metadata, indent=2).encode()
        return grown

    def _parsed(self, name: str, parse: Callable[[bytes], Any], digest: str | None = None) -> Any:
        """Return what `parse` makes of a file of the manifest, remembered until it changes.

        digest: its sha256, where the manifest was asked for it just now.
        """
        digest = digest or manifest.digests(self.path).get(name)
        known = self._parsed_files.get(name)
        if known is None or known[0] != digest:
            data = manifest.load(self.path, name)
            # Not `digest`: the file may have been replaced since the manifest was looked at.
            known = self._parsed_files[name] = (sha256(data), parse(data))
        return known[1]

    # --- parts -----------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """How many rows the arrays have, void ones included.

        Raises CorruptStoreError for more than the slice table can ask for.
        """
        n = self.arrays["status"].n
        # Each slice that was added began a part of its own, at the most.
        most = (self.slice_file.rows + 1) * self.layout.part_rows
        if n > most:
            raise CorruptStoreError(
                f"{self.path} has arrays of {n} rows, and its {self.slice_file.rows} slices need "
                f"{most} at the most. {REPAIR}"
            )
        return n

    def parts(self) -> list[PartRange]:
        """Return every part, committed or not, in order."""
        return self.layout.parts(self.n_rows)

    def missing(self) -> list[PartRange]:
        """Return the parts that hold live slices and have no valid receipt, in order."""
        needed = np.unique(self.live_rows() // self.layout.part_rows)
        missing = [index for index in needed.tolist() if self.receipt(index) is None]
        return list(map(self.layout.part, missing))

    def without_receipt(self, parts: Iterable[PartRange]) -> list[PartRange]:
        """Return those of the parts that are not committed; a receipt seen once is believed."""
        return [part for part in parts if self.receipts.believed(part.index) is None]

    @cached_property
    def receipts(self) -> Receipts:
        """The receipts of the parts."""
        return Receipts(self.storage, self.digest)

    def receipt(self, index: int) -> Receipt | None:
        """Return a part's receipt where it can be believed, else None."""
        return self.receipts.read(index)

    def unreadable(self, status: Bytes) -> list[UnreadableRow]:
        """Return why slices could not be read, of all parts that have such a row by `status()`."""
        bad = np.flatnonzero(status == UNREADABLE)
        indices = np.unique(bad // self.layout.part_rows)
        rows: list[UnreadableRow] = []
        for index in indices.tolist():
            receipt = self.receipt(index)
            if receipt is not None:
                rows += receipt.failures
        return rows

    def failures(self) -> dict[int, str]:
        """Return row -> reason for every row of a committed part that could not be read."""
        reasons: dict[int, str] = {}
        for part in self.parts():
            status = self._committed(part)
            if status is not None and (status == UNREADABLE).any():
                receipt = self.receipt(part.index)
                failures = () if receipt is None else receipt.failures
                reasons |= {failure.row: failure.reason for failure in failures}
        return reasons

    def spent(self) -> set[int]:
        """Return the rows of slices in committed parts that hold nothing and never will.

        They were withdrawn before their part was embedded, or purged.
        """
        rows = self._checked_rows(self.slices(["row"]))
        usable = np.ones(self.n_rows, bool)
        for part in self.parts():
            status = self._committed(part)
            if status is not None:
                usable[part.span] = np.isin(status, (OK, UNREADABLE))
        return set(rows[~usable[rows]].tolist())

    @property
    def claims(self) -> Path:
        """The folder of claims: those of living writers alone, so that to list it costs nothing."""
        return self.path / CLAIMS

    def claim(self, part: PartRange) -> Claim | None:
        """Claim a part for writing; None where it is committed or another live process has it."""
        self.storage.check_writable()
        claim = try_claim(self.claims, _stem(part.index))
        # Looked at once it is claimed: it may have been committed since the caller looked.
        if claim is not None and self.receipt(part.index) is not None:
            claim.release()
            return None
        return claim

    def reclaim(self, part: PartRange, wait_s: float = 60.0) -> AbstractContextManager[Claim]:
        """Claim a part, committed or not, to mend it. Raises ClaimedError if it stays taken."""
        self.storage.check_writable()
        return exclusive(self.claims, _stem(part.index), wait_s)

    def empty_part(self) -> dict[str, Values]:
        """Return arrays (part_rows, ...) for one part, every row void, ready to be filled."""
        rows = self.layout.part_rows
        return {name: array.empty(rows) for name, array in self.arrays.items()}

    def owner(self, part: PartRange) -> str | None:
        """Return `host:pid` of the live process that holds a part's claim, or None."""
        return owner(self.claims, _stem(part.index))

    def holders(self) -> dict[int, Holder]:
        """Return the live holder of each part that has one."""
        # Other claims are of the tables, and of looks at the collection.
        by_stem = holders(self.claims)
        parts = filter(str.isdecimal, by_stem)
        return {int(stem): by_stem[stem] for stem in parts}

    def writer(self) -> Holder | None:
        """Return the one process that writes, where there may be one alone; None otherwise."""
        return self.storage.writer()

    def write(
        self,
        part: PartRange,
        claim: Claim,
        arrays: Mapping[str, Values],
        notes: Mapping[str, Any],
    ) -> Receipt:
        """Commit one part: data, fsync, checksums, then the receipt. Returns the receipt.

        arrays: name -> (part_rows, ...) for every array of the store; notes: JSON to keep in the
        receipt. Rows that were withdrawn meanwhile are emptied in `arrays`, and left out of the
        notes. Raises ClaimedError where the part was taken over, UnalignedWriteError where the
        shapes are not exactly one part, StoreError where a feature overflows the dtype,
        UnwritableError for a full disk and its like.
        """
        if self.receipt(part.index) is not None:
            raise ClaimedError(f"Part {part.index} was taken over or committed by another process.")
        if self.receipts.path(part.index).is_file():
            # One that is not believed. It goes first: it may fit the sizes of the new chunks, and
            # must not vouch for them.
            check_claim(claim, part)
            self.storage.remove([receipt_name(part.index)])
        # Looked at while the claim is held: whoever is withdrawn before this is left out, and a
        # purge of whoever is withdrawn after it waits for the claim, and finds the part committed.
        rows = self.withdrawn_in(part)
        self.empty_rows(part, rows, arrays, VOID)
        gone = set(rows.tolist())
        # A volume is named by its first row, which may be of an earlier part: each of these is
        # looked at once, however many volumes a part has.
        first_rows = {row for row, *_ in notes.get("ranges", ())}
        earlier = {row // self.layout.part_rows for row in first_rows} - {part.index}
        for index in earlier:
            gone |= first_rows.intersection(self.withdrawn_in(self.layout.part(index)).tolist())
        return self._part_writer.write(part, claim, arrays, notes_without(notes, gone), over=False)

    def overwrite(
        self,
        part: PartRange,
        claim: Claim,
        arrays: Mapping[str, Values],
        notes: Mapping[str, Any],
    ) -> Receipt:
        """Do what `write` does, over a committed part too: for a purge, and nothing else."""
        return self._part_writer.write(part, claim, arrays, notes, over=True)

    @property
    def _part_writer(self) -> PartWriter:
        return PartWriter(self.storage, self.arrays, self.digest)

    def empty_rows(
        self, part: PartRange, rows: Rows, arrays: Mapping[str, Values], status: int
    ) -> None:
        """Take the numbers and digests of some rows of a part out of its arrays, in place.

        rows: ascending; those of other parts are passed over.
        """
        inside = part.within(rows) - part.start
        stored = self.arrays
        for name, values in arrays.items():
            values[inside] = stored[name].void
        arrays["status"][inside] = status

    def fetched(self, part: PartRange) -> AbstractContextManager[None]:
        """Have a part's chunk files in the folder as they are, sound or not, for a while."""
        return self.storage.fetched(self.chunk_files(part))

    def chunk_files(self, part: PartRange) -> list[str]:
        """Return the names within the store of the chunks that a part has, committed or not."""
        names = []
        for array in self.arrays.values():
            names += [chunk_file(chunk.name) for chunk in array.chunks(part)]
        return names

    def deriving(self) -> AbstractContextManager[Claim]:
        """Be the one process that changes what was computed from the store, for a moment."""
        return exclusive(self.claims, "derived")

    @contextlib.contextmanager
    def filing(self, withdrawn: Withdrawn) -> Iterator[None]:
        """File what was computed while `withdrawn` was who is; a purge waits until it is filed.

        Raises StaleTablesError where a patient was withdrawn since: the answer is of the patient
        too, and a purge that has gone through the files already would not find it.
        """
        with self.deriving():
            self.check_withdrawn(withdrawn)
            yield

    def check_withdrawn(self, before: Withdrawn) -> None:
        """Raise StaleTablesError where a patient was withdrawn since `before` was who is."""
        manifest.look_again(self.path)
        if self.withdrawn.patients - before.patients:
            raise StaleTablesError(
                f"A patient was withdrawn from {self.place} while this was computed, so that it is "
                "not filed. Run the same command again."
            )

    def publish(self) -> None:
        """Send what was computed from the store to where that is.

        What others left half written beside it is removed, where they are dead, and so are their
        claims on what is no part.
        """
        with contextlib.suppress(OSError):  # answers on file are read from a read-only disk too
            self._drop_dead_claims(each for each in stems(self.claims) if not each.isdecimal())
            for folder in (*PUBLISHED, CLAIMS):
                sweep_temporaries((self.path / folder).glob(f"{TEMPORARY}*"))
        self.storage.publish()

    def fetch_folder(self, folder: str) -> None:
        """Have the files of a folder of derived ones here, such as a tuned network."""
        self.storage.fetch_folder(folder)

    def sweep(self) -> list[Path]:
        """Remove what dead writers left: claims and temporary files; return the latter."""
        self._drop_dead_claims(stems(self.claims))
        with writing(self.path):
            left = [path for path in below(self.path) if path.name.startswith(TEMPORARY)]
            return sweep_temporaries(left)

    def sweep_committed(self) -> None:
        """Remove the claims that dead writers left on parts they had committed.

        A process that is killed between its receipt and the release of its claim leaves one, which
        nobody takes over, since the part is done. Claims on other parts stay: who takes such a part
        over needs them.
        """
        parts = [stem for stem in stems(self.claims) if stem.isdecimal()]
        self._drop_dead_claims(stem for stem in parts if self.receipt(int(stem)) is not None)

    def _drop_dead_claims(self, claimed: Iterable[str]) -> None:
        for stem in claimed:
            claim = try_claim(self.claims, stem)  # a dead owner's can be taken, and nobody else's
            if claim is not None:
                claim.release()

    # --- reading ---------------------------------------------------------------------------

    def status(self) -> Bytes:
        """Return (n,) what each row holds: 0 void, 1 ok, 2 unreadable, 3 withdrawn."""
        return self._status_in(self.parts())

    def _status_in(self, parts: Iterable[PartRange]) -> Bytes:
        """Return (n,) the status of the rows of some parts; that of all others is 0 or 3."""
        status: Bytes = np.zeros(self.n_rows, np.uint8)
        for part in parts:
            committed = self._committed(part)
            if committed is not None:
                status[part.span] = committed
        status[self._rows_withdrawn()] = WITHDRAWN
        return status

    def _rows_withdrawn(self) -> Rows:
        """Return the rows of withdrawn slices, remembered until the slice table changes.

        Whatever reads features asks for them, be it of a few rows.
        """
        file = self.slice_file
        # The table, how many rows the arrays had, and the rows: one value, whole for each thread.
        known = self._withdrawn_rows
        if known is None or known[0] is not file or known[1] != self.n_rows:
            slices = file.read(["row", "withdrawn"])
            known = (file, self.n_rows, self._checked_rows(slices)[is_withdrawn(slices)])
            self._withdrawn_rows = known
        return known[2]

    def read(self, name: str, rows: ArrayLike | None = None) -> Values:
        """Return features (len(rows), ...) of an array, in the order of rows; all if None.

        With rows, each must hold features: else MissingRowsError names the first few. Without,
        rows of parts that are not committed are void (NaN; 0 in digests), others as they are on
        disk. Raises KeyError where the store has no such array, CorruptStoreError for bad chunks.
        """
        array = self.array(name)
        if rows is None:
            return self._read_all(array)
        wanted = np.asarray(rows, dtype=np.int64)
        absent = self._absent(wanted, array.n)
        if absent.size:
            raise MissingRowsError(
                f"{absent.size} of the {wanted.size} rows asked for hold no features "
                f"(first: {absent[:5].tolist()}). Extract them, or leave them out by status()."
            )
        return array.gather(wanted, self.row_crcs)

    def _absent(self, rows: Rows, n: int) -> Rows:
        """Return those of some rows that are none of n rows, or else those without features."""
        absent = rows[(rows < 0) | (rows >= n)]
        if not absent.size:
            touched = np.unique(rows // self.layout.part_rows).tolist()
            status = self._status_in(map(self.layout.part, touched))
            absent = rows[status[rows] != OK]
        return absent

    def row_crcs(self, chunk: Chunk) -> Crcs | None:
        """Return the crc32c of each row of a committed chunk; None where its receipt has none."""
        index = chunk.start // self.layout.part_rows
        stamp = self.receipts.believed(index)
        known = self._row_crcs.get(index)
        if known is None or known[0] != stamp:
            receipt = self.receipt(index)
            records = {} if receipt is None else receipt.chunks
            crcs = {name: record.row_crcs() for name, record in records.items()}
            known = self._row_crcs[index] = (stamp, crcs)
        return known[1].get(chunk.name)

    def read_part(self, part: PartRange) -> dict[str, Values]:
        """Return every array of a committed part as it is on disk."""
        values = {}
        for name, array in self.arrays.items():
            values[name] = array.read_part(part)
        return values

    @property
    def version(self) -> str:
        """The sha256 of the manifest: another whenever a table is."""
        return manifest.version(self.path)

    def fingerprint(self) -> str:
        """Return a digest of all that answers depend on: receipts and the slice table.

        It reads no array. Two equal fingerprints hold equal features for equal slices. Raises
        CorruptStoreError where a receipt is there and cannot be believed.
        """
        digest = hashlib.sha256(self.digest.encode())
        digest.update(manifest.digests(self.path)[SLICES].encode())
        for path in files_in(self.path / PARTS, "[0-9]*.json"):
            index = part_of(path.name)
            if index is None:
                continue
            receipt = self.receipt(index)
            if receipt is None:
                # Not the same as a part that was never embedded: an answer without its slices would
                # look like any other.
                raise CorruptStoreError(
                    f"Part {index} of {self.path} is damaged: {self.receipts.doubt(index)}. "
                    f"{REPAIR}"
                )
            # As the receipt has them: answers on file are named by this digest.
            chunks = receipt.document["chunks"]
            entry = json.dumps([path.stem, chunks], sort_keys=True)
            digest.update(entry.encode())
        return digest.hexdigest()

    def _read_all(self, array: StoredArray) -> Values:
        out = array.aligned(array.n)
        chunks: list[Chunk] = []
        for part in self.layout.parts(array.n):
            if self.receipts.believed(part.index) is None:
                out[part.span] = array.void
            else:
                chunks += array.chunks(part)
        array.read_chunks(chunks, out)
        return out

    def _committed(self, part: PartRange) -> Bytes | None:
        """Return the status of a committed part's rows; None where the part does not exist."""
        stamp = self.receipts.believed(part.index)
        if stamp is None:
            return None
        known = self._status.get(part.index)
        if known is None or known[0] != stamp:
            known = self._status[part.index] = (stamp, self.arrays["status"].read_part(part))
        return known[1]


def check_there(storage: Storage) -> None:
    """Raise StoreNotFoundError where there is no store, not even a damaged one."""
    folder = storage.folder
    if folder.is_file():
        raise StoreNotFoundError(
            f"{storage.place!r} is a file, and a feature store is a folder. Where it is a "
            "config, give the folder that its `store` names."
        )
    if not any(path.is_file() for path in (folder / MANIFEST, folder / RECIPE)):
        raise StoreNotFoundError(
            f"There is no feature store at {storage.place!r} (no {RECIPE}). "
            "Run `radprobe extract` first, or check the path."
        )


def check_free(path: Path) -> None:
    """Raise OccupiedError where a new store's path holds anything."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OccupiedError(f"{path} is not empty and holds no store. Choose another path.")


def stored_key_check(folder: Path) -> str | None:
    """Return by what a store's key is known; None where there is no store, or it does not say."""
    try:
        with as_corrupt(_GROUP):
            group = json.loads(manifest.load(folder, _GROUP))
            check = group["attributes"].get(KEY_CHECK)
            return None if check is None else str(check)
    except (StoreError, OSError):
        return None


def _fetch_chunk(receipts: Receipts, layout: Layout, chunk: Chunk) -> None:
    """Fetch a chunk from where the store is, held against its receipt."""
    receipt = receipts.read(chunk.start // layout.part_rows)
    record = None if receipt is None else receipt.chunks.get(chunk.name)
    # Without a receipt no content is right.
    digest = "" if record is None else record.sha256
    receipts.storage.fetch(chunk_file(chunk.name), digest)


def _withdrawn_of(text: bytes) -> Withdrawn:
    """Return who is withdrawn by name. Raises CorruptStoreError."""
    with as_corrupt(WITHDRAWN_PATIENTS):
        return Withdrawn.parse(text)


def _stem(index: int) -> str:
    return f"{index:07d}"
