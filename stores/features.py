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
import errno
import functools
import glob
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from stores import manifest
from stores._build import build
from stores._disk import (
    TEMPORARY,
    seal,
    sha256,
    sweep_temporaries,
    sync,
    sync_folder,
    temporary_name,
    writing,
)
from stores.arrays import Chunk, StoredArray, row_crcs
from stores.claims import CLAIMS, Claim, Holder, exclusive, holders, owner, try_claim
from stores.errors import (
    ClaimedError,
    MissingRowsError,
    OccupiedError,
    StaleTablesError,
    StoreNotFoundError,
)
from stores.layout import Layout, PartRange
from stores.mirror import Mirror, located
from stores.receipts import Receipts, Stamp
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, TableFile, Tables, table_bytes

VOID, OK, UNREADABLE, WITHDRAWN = 0, 1, 2, 3
# What runs leave for each other and for `status`. No result depends on it.
RUNS = "runs"
# Arrays every store has beside its features; a digest is the 32 bytes of a sha256.
LEDGER: dict[str, tuple[tuple[int, ...], str]] = {
    "status": ((), "uint8"),
    "file_digest": ((32,), "uint8"),
    "pixel_digest": ((32,), "uint8"),
}


@dataclass(frozen=True)
class ArraySpec:
    """One feature array: the shape of a row and its dtype."""

    row_shape: tuple[int, ...]
    dtype: str


class FeatureStore:
    """A feature store on disk; see the module's docstring for its rules."""

    def __init__(
        self, path: Path, recipe_text: str, layout: Layout, mirror: Mirror | None = None
    ) -> None:
        self.path = path
        self.mirror = mirror  # where the store is at a URL, and `path` has some of it
        self.recipe_text = recipe_text
        self.layout = layout
        self._kept: dict[str, tuple[str, Any]] = {}  # name -> sha256, what was parsed from it
        self._status: dict[int, tuple[Stamp, NDArray[np.uint8]]] = {}
        self._row_crcs: dict[int, tuple[Stamp | None, dict[str, NDArray[np.uint32] | None]]] = {}

    # --- open and create -------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: Path, recipe_text: str, arrays: Mapping[str, ArraySpec], part_rows: int
    ) -> FeatureStore:
        """Make an empty store: built aside and renamed, so that it is there wholly or not at all.

        Raises OccupiedError where the path holds anything, UnwritableError.
        """
        layout = Layout(part_rows)
        if path.exists() and any(path.iterdir()):
            raise OccupiedError(f"{path} is not empty and holds no store. Choose another path.")
        specs = LEDGER | {name: (spec.row_shape, spec.dtype) for name, spec in arrays.items()}
        aside = path.with_name(temporary_name(path.name))
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                sweep_temporaries(path.parent.glob(f"{TEMPORARY}*-{glob.escape(path.name)}"))
                build(aside, recipe_text, specs, layout)
                _claim_place(aside, path)
            mirror = Mirror.of(path)
            if mirror is not None:
                mirror.found(path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a store, in a folder or at a URL (see `stores.mirror`).

        Raises StoreNotFoundError, CorruptStoreError naming what is missing, ConfigError for a URL
        that cannot be reached.
        """
        path = located(path)
        mirror = Mirror.of(path)
        if not (path / manifest.MANIFEST).is_file() and not (path / "recipe.json").is_file():
            raise StoreNotFoundError(
                f"There is no feature store at {mirror.url if mirror else str(path)!r} (no "
                "recipe.json). "
                "Run `radprobe extract` first, or check the path."
            )
        recipe = manifest.load(path, "recipe.json").decode()
        group = json.loads(manifest.load(path, "features.zarr/zarr.json"))
        return cls(path, recipe, Layout(int(group["attributes"]["part_rows"])), mirror)

    @property
    def place(self) -> str:
        """Return where the store is, as people are told: a folder, or a URL."""
        return self.mirror.url if self.mirror else str(self.path)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of recipe.json's content: receipts name it."""
        return sha256(self.recipe_text.encode())

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """Return every array of the store, as it is now."""
        root = self.path / "features.zarr"
        found = {}
        for kept, digest in manifest.digests(self.path).items():
            folder, _, name = kept.removesuffix("/zarr.json").partition("/")
            if folder == "features.zarr" and name:
                parse = functools.partial(StoredArray.parse, root, name)
                array = self._parsed(kept, parse, digest)
                found[name] = replace(array, bring=self._bring) if self.mirror else array
        return found

    def array(self, name: str) -> StoredArray:
        """Return one array. Raises KeyError naming those there are."""
        arrays = self.arrays
        if name not in arrays:
            have = ", ".join(sorted(arrays))
            raise KeyError(f"The store {self.path} has no array {name!r}. It has: {have}.")
        return arrays[name]

    # --- tables ----------------------------------------------------------------------------

    def slices(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the slice table (SLICE_SCHEMA), rows ascending, withdrawn ones included.

        It is kept in memory, unless some columns alone are asked for.
        """
        file = self.slice_file
        return file.whole if columns is None else file.read(columns)

    @property
    def slice_file(self) -> TableFile:
        """The slice table of this moment, to be read piece by piece."""
        found: TableFile = self._parsed("slices.parquet", TableFile)
        return found

    def files(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the file table (FILE_SCHEMA), set-aside files included, or some columns of it."""
        return self._parsed("files.parquet", TableFile).read(columns)

    def live_rows(self) -> NDArray[np.int64]:
        """Return (n,) the rows of the slices that are not withdrawn, ascending."""
        slices = self.slices(["row", "withdrawn"])
        live = ~slices["withdrawn"].to_numpy(zero_copy_only=False)
        return np.asarray(slices["row"].to_numpy()[live])

    def tables(self) -> Tables:
        """Return both tables and the withdrawn patients, of one moment; nothing is kept."""
        while True:
            seen = manifest.version(self.path)
            patients = frozenset(self._parsed("withdrawn.json", json.loads)["patients"])
            tables = Tables(self.slice_file.read(), self.files(), patients, seen)
            if manifest.version(self.path) == seen:
                return tables

    def write_tables(
        self,
        slices: pa.Table,
        files: pa.Table,
        *,
        patients: frozenset[str] | None = None,
        seen: str | None = None,
    ) -> None:
        """Replace both tables at once, and grow the arrays to hold every row of the slice table.

        Rows of slices must keep their meaning. patients: who is withdrawn by name, if that changed.
        seen: of the `tables()` these come from; raises StaleTablesError where they are no longer
        the store's, since two that number new rows must not both be believed.
        """
        rows = slices["row"].to_numpy()
        if rows.size and (np.diff(rows) <= 0).any():
            raise ValueError("slices must be in ascending order of unique rows.")
        metadata = files.schema.metadata  # the rules of discovery travel here
        new = {
            "files.parquet": table_bytes(files.cast(FILE_SCHEMA).replace_schema_metadata(metadata)),
            "slices.parquet": table_bytes(slices.cast(SLICE_SCHEMA)),
        }
        if patients is not None:
            new["withdrawn.json"] = json.dumps({"patients": sorted(patients)}).encode()
        self._check_writable()
        with exclusive(self.claims, "tables"):
            manifest.settle(self.path)  # what a crash left half done
            if seen is not None and seen != manifest.version(self.path):
                raise StaleTablesError(f"The tables of {self.path} were replaced meanwhile.")
            grown = self._grown(self.layout.next_boundary(int(rows[-1]) + 1 if rows.size else 0))
            if self.mirror is not None:
                self.mirror.replace(new | grown)
            else:
                manifest.replace(self.path, new | grown)

    def _grown(self, n: int) -> dict[str, bytes]:
        """Return the zarr.json of each array that has fewer than n rows, with n."""
        grown = {}
        for name, array in self.arrays.items():
            if array.n < n:
                kept = f"features.zarr/{name}/zarr.json"
                about = json.loads(manifest.load(self.path, kept))
                about["shape"][0] = n
                grown[kept] = json.dumps(about, indent=2).encode()
        return grown

    def _parsed(self, name: str, parse: Callable[[bytes], Any], digest: str | None = None) -> Any:
        """Return what `parse` makes of a file of the manifest, remembered until it changes.

        digest: its sha256, where the manifest was asked for it just now.
        """
        known = self._kept.get(name)
        if known is None or known[0] != (digest or manifest.digests(self.path).get(name)):
            data = manifest.load(self.path, name)
            known = self._kept[name] = (sha256(data), parse(data))
        return known[1]

    # --- parts -----------------------------------------------------------------------------

    def missing(self) -> list[PartRange]:
        """Return the parts that hold live slices and have no valid receipt, in order."""
        needed = np.unique(self.live_rows() // self.layout.part_rows)
        return [self.layout.part(int(i)) for i in needed if self.receipt(int(i)) is None]

    def without_receipt(self, parts: Iterable[PartRange]) -> list[PartRange]:
        """Return those of the parts that are not committed; a receipt seen once is believed."""
        return [part for part in parts if self.receipts.believed(part.index) is None]

    @cached_property
    def receipts(self) -> Receipts:
        """The receipts of the parts."""
        return Receipts(self.path, self.digest, self.mirror)

    def receipt(self, index: int) -> dict[str, Any] | None:
        """Return a part's receipt where it can be believed, else None."""
        return self.receipts.read(index)

    def failures(self) -> dict[int, str]:
        """Return row -> reason for every row of a committed part that could not be read."""
        found: dict[int, str] = {}
        for part in self.layout.parts(self.arrays["status"].n):
            status = self._committed(part)
            if status is not None and (status == UNREADABLE).any():
                receipt = self.receipt(part.index) or {}
                found |= {f["row"]: f["reason"] for f in receipt.get("failures", [])}
        return found

    def spent(self) -> set[int]:
        """Return the rows of slices in committed parts that hold nothing and never will.

        They were withdrawn before their part was embedded, or purged.
        """
        rows = self.slices(["row"])["row"].to_numpy()
        held = np.ones(self.arrays["status"].n, bool)
        for part in self.layout.parts(len(held)):
            status = self._committed(part)
            if status is not None:
                held[part.start : part.stop] = np.isin(status, (OK, UNREADABLE))
        return set(rows[~held[rows]].tolist())

    @property
    def claims(self) -> Path:
        """The folder of claims: those of living writers alone, so that to list it costs nothing."""
        return self.path / CLAIMS

    def claim(self, part: PartRange) -> Claim | None:
        """Claim a part for writing; None where it is committed or another live process has it."""
        self._check_writable()
        claim = try_claim(self.claims, _stem(part.index))
        if claim is not None and self.receipt(part.index) is not None:
            claim.release()  # committed between the look and the claim
            return None
        return claim

    def own(self, part: PartRange) -> AbstractContextManager[Claim]:
        """Hold a part, committed or not, to mend it. Raises ClaimedError if it stays taken."""
        self._check_writable()
        return exclusive(self.claims, _stem(part.index))

    def empty_part(self) -> dict[str, NDArray[Any]]:
        """Return arrays (part_rows, ...) for one part, every row void, ready to be filled."""
        return {name: array.empty(self.layout.part_rows) for name, array in self.arrays.items()}

    def owner(self, part: PartRange) -> str | None:
        """Return `host:pid` of the live process that holds a part's claim, or None."""
        return owner(self.claims, _stem(part.index))

    def held(self) -> dict[int, Holder]:
        """Return the live holder of each part that has one."""
        found = holders(self.claims)
        return {int(stem): holder for stem, holder in found.items() if stem.isdecimal()}

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
        shapes are not exactly one part, StoreError where a feature overflows the dtype,
        UnwritableError for a full disk and its like.
        """
        if self.receipt(part.index) is not None:
            raise ClaimedError(f"Part {part.index} was taken over or committed by another process.")
        return self.overwrite(part, claim, arrays, notes)

    def overwrite(
        self,
        part: PartRange,
        claim: Claim,
        arrays: Mapping[str, NDArray[Any]],
        notes: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Do what `write` does, over a committed part too: for a purge, and nothing else."""
        known = self.arrays
        if known.keys() != arrays.keys():
            raise ValueError(f"A part needs the arrays {sorted(known)}. Got {sorted(arrays)}.")
        ok = arrays["status"] == OK
        ready = {name: known[name].fit(values, part, ok) for name, values in arrays.items()}
        status, counts = np.unique(arrays["status"], return_counts=True)
        began = time.perf_counter()
        chunks = self._put(part, claim, ready)
        receipt = {
            **notes,
            "part": part.index,
            "rows": [part.start, part.stop],
            "recipe": self.digest,
            "chunks": chunks,
            "write_s": round(time.perf_counter() - began, 3),
            "counts": {str(s): int(c) for s, c in zip(status, counts, strict=True)},
        }
        _check_held(claim, part)
        if self.mirror is not None:
            self._send(part, receipt)
        self.receipts.write(part.index, receipt)
        return receipt

    def _send(self, part: PartRange, receipt: Mapping[str, Any]) -> None:
        """Commit a part to where the store is; its features are not kept here."""
        assert self.mirror is not None
        name = self.receipts.path(part.index).relative_to(self.path).as_posix()
        self.mirror.withdraw([name])  # one that was not believed
        chunks = {f"features.zarr/{n}": entry["sha256"] for n, entry in receipt["chunks"].items()}
        self.mirror.commit(name, seal(receipt), chunks)
        for chunk in receipt["chunks"]:
            if chunk.partition("/")[0] not in LEDGER:
                (self.path / "features.zarr" / chunk).unlink(missing_ok=True)

    def _bring(self, chunk: Chunk) -> None:
        """Fetch a chunk from where the store is, held against its receipt."""
        assert self.mirror is not None
        receipt = self.receipt(chunk.start // self.layout.part_rows)
        digest = receipt["chunks"][chunk.name]["sha256"] if receipt else ""
        self.mirror.bring(f"features.zarr/{chunk.name}", digest)

    def _check_writable(self) -> None:
        if self.mirror is not None:
            self.mirror.check_held()

    @contextlib.contextmanager
    def at_hand(self, part: PartRange) -> Iterator[None]:
        """Have a part's chunk files in the folder as they are, sound or not, for a while."""
        chunks = [chunk for array in self.arrays.values() for chunk in array.chunks(part)]
        if self.mirror is None:
            yield
            return
        self.mirror.bring_all(f"features.zarr/{chunk.name}" for chunk in chunks)
        try:
            yield
        finally:
            for chunk in chunks:
                (self.path / "features.zarr" / chunk.name).unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file of the store, wherever that is."""
        if self.mirror is not None:
            self.mirror.withdraw([path.relative_to(self.path).as_posix()])
        path.unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """Remove all that is in a folder of the store, wherever that is."""
        if self.mirror is not None:
            self.mirror.withdraw([n for n in self.mirror.objects if n.startswith(f"{folder}/")])
        for path in (self.path / folder).glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Send what was computed from the store to where that is."""
        if self.mirror is not None:
            self.mirror.publish()

    def bring(self, folder: str) -> None:
        """Have the files of a folder of derived ones here, such as a tuned network."""
        if self.mirror is not None:
            self.mirror.bring_below(folder)

    def _put(
        self, part: PartRange, claim: Claim, ready: Mapping[str, NDArray[Any]]
    ) -> dict[str, dict[str, Any]]:
        """Write a part's chunks aside, then rename them all; return the receipt's entries."""
        staged: dict[Path, Path] = {}
        entries, arrays = {}, self.arrays
        try:
            for name, values in ready.items():
                array = arrays[name]
                for chunk in array.chunks(part):
                    rows = values[chunk.start - part.start : chunk.stop - part.start]
                    temporary, entries[chunk.name] = array.stage(chunk, rows)
                    staged[temporary] = array.root / chunk.name
            with writing(self.path):  # together: the first of them brings most of the rest along
                for temporary in staged:
                    sync(temporary)
            _check_held(claim, part)
            folders = {path.parent for path in staged.values()}
            for temporary in list(staged):
                temporary.replace(staged[temporary])
                del staged[temporary]
        finally:
            for temporary in staged:
                temporary.unlink(missing_ok=True)
        for folder in folders:
            sync_folder(folder)
        if claim.inherited:  # its owner died, perhaps while it wrote
            for folder in (*folders, self.path / "parts"):
                sweep_temporaries(folder.glob(f"{TEMPORARY}*"))
        return entries

    def sweep(self) -> list[Path]:
        """Remove what dead writers left: claims and temporary files; return the latter."""
        for stem in {path.name.partition(".claim.")[0] for path in self.claims.glob("*.claim.*")}:
            claim = try_claim(self.claims, stem)  # a dead owner's can be taken, and nobody else's
            if claim is not None:
                claim.release()
        with writing(self.path):
            return sweep_temporaries(self.path.rglob(f"{TEMPORARY}*"))

    # --- reading ---------------------------------------------------------------------------

    def status(self) -> NDArray[np.uint8]:
        """Return (n,) what each row holds: 0 void, 1 ok, 2 unreadable, 3 withdrawn."""
        return self._status_in(self.layout.parts(self.arrays["status"].n))

    def _status_in(self, parts: Iterable[PartRange]) -> NDArray[np.uint8]:
        """Return (n,) the status of the rows of some parts; that of all others is 0 or 3."""
        status: NDArray[np.uint8] = np.zeros(self.arrays["status"].n, np.uint8)
        for part in parts:
            committed = self._committed(part)
            if committed is not None:
                status[part.start : part.stop] = committed
        slices = self.slices(["row", "withdrawn"])
        withdrawn = slices["withdrawn"].to_numpy(zero_copy_only=False)
        status[slices["row"].to_numpy()[withdrawn]] = WITHDRAWN
        return status

    def read(self, name: str, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Return features (len(rows), ...) of an array, in the order of rows; all if None.

        With rows, each must hold features: else MissingRowsError names the first few. Without,
        rows of parts that are not committed are void (NaN; 0 in digests), others as they are on
        disk. Raises KeyError where the store has no such array, CorruptStoreError for bad chunks.
        """
        array = self.array(name)
        if rows is None:
            return self._read_whole(array)
        wanted = np.asarray(rows, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= array.n)]
        touched = np.unique(wanted // self.layout.part_rows).tolist() if not outside.size else []
        status = self._status_in(map(self.layout.part, touched))
        absent = outside if outside.size else wanted[status[wanted] != OK]
        if absent.size:
            raise MissingRowsError(
                f"{absent.size} of the {wanted.size} rows asked for hold no features "
                f"(first: {absent[:5].tolist()}). Extract them, or leave them out by status()."
            )
        return array.gather(wanted, self.row_crcs)

    def row_crcs(self, chunk: Chunk) -> NDArray[np.uint32] | None:
        """Return the crc32c of each row of a committed chunk; None where its receipt has none."""
        index = chunk.start // self.layout.part_rows
        stamp = self.receipts.believed(index)
        known = self._row_crcs.get(index)
        if known is None or known[0] != stamp:
            entries = (self.receipt(index) or {"chunks": {}})["chunks"]
            found = {name: row_crcs(entry) for name, entry in entries.items()}
            known = self._row_crcs[index] = (stamp, found)
        return known[1].get(chunk.name)

    def read_part(self, part: PartRange) -> dict[str, NDArray[Any]]:
        """Return every array of a committed part as it is on disk."""
        arrays = {name: array.empty(self.layout.part_rows) for name, array in self.arrays.items()}
        for name, out in arrays.items():
            for chunk in self.arrays[name].chunks(part):
                self.arrays[name].read_into(chunk, out[chunk.start - part.start :][: chunk.rows])
        return arrays

    def fingerprint(self) -> str:
        """Return a digest of all that answers depend on: receipts and the slice table.

        It reads no array. Two equal fingerprints hold equal features for equal slices.
        """
        digest = hashlib.sha256(self.digest.encode())
        digest.update(manifest.digests(self.path)["slices.parquet"].encode())
        for path in sorted((self.path / "parts").glob("[0-9]*.json")):
            receipt = self.receipt(int(path.stem))
            chunks = receipt["chunks"] if receipt else None
            digest.update(json.dumps([path.stem, chunks], sort_keys=True).encode())
        return digest.hexdigest()

    def _read_whole(self, array: StoredArray) -> NDArray[Any]:
        out = array.aligned(array.n)
        chunks: list[Chunk] = []
        for part in self.layout.parts(array.n):
            if self.receipts.believed(part.index) is None:
                out[part.start : part.stop] = array.void
            else:
                chunks += array.chunks(part)
        array.read_chunks(chunks, out)
        return out

    def _committed(self, part: PartRange) -> NDArray[np.uint8] | None:
        """Return the status of a committed part's rows; None where the part does not exist."""
        stamp = self.receipts.believed(part.index)
        if stamp is None:
            return None
        known = self._status.get(part.index)
        if known is None or known[0] != stamp:
            array = self.arrays["status"]
            status = array.empty(self.layout.part_rows)
            for chunk in array.chunks(part):
                array.read_into(chunk, status[chunk.start - part.start :][: chunk.rows])
            known = self._status[part.index] = (stamp, status)
        return known[1]


def _claim_place(aside: Path, path: Path) -> None:
    """Rename a new store to its place: that of an empty folder, or of nothing."""
    try:
        aside.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
            raise OccupiedError(f"{path} was filled by another process meanwhile.") from None
        raise


def _stem(index: int) -> str:
    return f"{index:07d}"


def _check_held(claim: Claim, part: PartRange) -> None:
    if not claim.held():
        raise ClaimedError(f"Part {part.index} was taken over by another process.")
