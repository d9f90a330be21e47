"""Withdrawing a patient: out of every answer at once, and, purged, out of the files too.

The order is what the promise rests on, whoever else works on the store at the same moment:

1. The withdrawal is written first. Whoever commits a part, or files an answer, reads it again while
   holding a claim (`FeatureStore.write`, `FeatureStore.filing`), and leaves the patient out.
2. Then the parts and the derived files are gone through under the same claims: what was committed
   or filed before the withdrawal was seen is found here.
3. The table's entries, which say which rows are the patient's, go behind all else, and last of all
   the notes of label files, which say it of rows whose headers do not: a purge that was interrupted
   is finished by the same call, and a note that is made meanwhile is found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stores._disk import (
    CHECKSUM,
    MOST_TABLE_BYTES,
    TEMPORARY,
    below,
    entries_of,
    files_in,
    read_checked,
    read_file,
    remove_folder,
    sync_folders,
    write_checked,
)
from stores._types import Mask, Rows
from stores.contents import DERIVED, FEATURES, FOLDERS, PATIENTS, RUNS, SPLITS, WITHDRAWN
from stores.errors import ConfigError, CorruptStoreError, StaleTablesError, as_corrupt
from stores.features import FeatureStore
from stores.filed_tables import read_filed_table
from stores.layout import PartRange
from stores.parquet_file import ParquetFile
from stores.receipt import notes_without
from stores.slices import SLICE_SCHEMA, Tables, as_table, row_numbers, where, with_column
from stores.split_files import names_any, text_without
from stores.withdrawn import Withdrawn

log = logging.getLogger(__name__)

# How long a purge waits for a part that another process is embedding.
PATIENCE_S = 3600.0
NO_ROWS: Rows = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Changed:
    """The tables as a change leaves them."""

    slices: pa.Table
    files: pa.Table
    withdrawn: Withdrawn


@dataclass(frozen=True)
class Purged:
    """What a purge took out: rows, and files by folder; and what it cannot reach, in words."""

    rows: int
    files: dict[str, int] = field(default_factory=dict)
    out_of_reach: tuple[str, ...] = ()


def withdraw(
    store: FeatureStore,
    *patients: str,
    rows: Rows = NO_ROWS,
    files: Mapping[str, frozenset[str]] | None = None,
) -> int:
    """Withdraw a patient (a pseudonym, or several of one) and keep later slices of the patient out.

    rows: of slices that are the patient's by a label file alone; files: the keyed hashes of their
    paths, by patient. Returns how many slices it took. The rows stay, and so do their numbers until
    they are purged. Raises ConfigError where a patient has no name.
    """
    _check_named(patients)
    taken = 0

    def change(tables: Tables) -> _Changed:
        nonlocal taken
        theirs = _of(tables.slices, patients, rows)
        before = tables.slices["withdrawn"]
        newly = pc.and_(theirs, pc.invert(before))
        taken = pc.sum(newly).as_py() or 0
        slices = with_column(tables.slices, "withdrawn", pc.or_(theirs, before))
        return _Changed(slices, tables.files, tables.withdrawn.adding(patients, files or {}))

    _change(store, change)
    return taken


def readmit(store: FeatureStore, *patients: str) -> None:
    """Undo a withdrawal: the next extract brings back the slices that are still found.

    Raises ConfigError where a patient has no name.
    """
    _check_named(patients)

    def change(tables: Tables) -> _Changed:
        return _Changed(tables.slices, tables.files, tables.withdrawn.without(patients))

    _change(store, change)


def purge(store: FeatureStore, *patients: str, rows: Rows = NO_ROWS) -> int:
    """Do what `purge_all` does; return how many rows were the patient's."""
    return purge_all(store, *patients, rows=rows).rows


def purge_all(store: FeatureStore, *patients: str, rows: Rows = NO_ROWS) -> Purged:
    """Remove what the store holds of a withdrawn patient: numbers, digests, table entries, names.

    rows: those that are the patient's by a label file alone. The row numbers stay, void. Results,
    predictions, masks, tuned networks and the state of their runs go altogether, since they are of
    the patient too; splits go on without the patient. Raises ClaimedError where another process
    holds one of the parts for an hour, ConfigError where a patient has no name.
    """
    _check_named(patients)
    slices = store.slices()
    theirs = row_numbers(slices.filter(_of(slices, patients, rows)))
    # The numbers first, while the table still says which rows are the patient's: a purge that is
    # cut here finds them again.
    void_parts(store, theirs)
    # What writers that are dead left of parts: it holds numbers too.
    swept = len(store.sweep())
    store.storage.refresh()  # what others have put into a bucket since the store was opened
    removed = drop_derived(store, patients)
    if swept:
        removed["temporary files"] = swept
    _blank(store, theirs, patients)
    # Behind the table: of rows that a label file alone gives to the patient, nothing else says so.
    drop_notes(store, patients, theirs)
    return Purged(len(theirs), removed, out_of_reach(store))


def _check_named(patients: Collection[str]) -> None:
    """Raise ConfigError for None or an empty name: slices of no patient are nobody's to take."""
    for patient in patients:
        if not isinstance(patient, str) or not patient:
            raise ConfigError(
                "A patient must be a pseudonym, as the slice table has it. Got no name instead: "
                "slices of no patient are named by `rows`."
            )


def out_of_reach(store: FeatureStore) -> tuple[str, ...]:
    """Return what a purge cannot reach and somebody has to look after, in words."""
    left = ["the images and label files themselves", "reports and exports outside the store"]
    left.append("copies and backups of the store, and stores and networks made from it")
    if store.place != str(store.path):
        left.append("old versions of objects, where the bucket keeps versions")
    living = 0
    for folder in (FEATURES, *DERIVED):
        for path in below(store.path / folder):
            living += path.name.startswith(TEMPORARY) and path.is_file()
    if living:
        left.append(
            f"{living} temporary files of processes at work: purge again when they are done"
        )
    return tuple(left)


# --- parts -------------------------------------------------------------------------------------


def void_parts(store: FeatureStore, rows: Rows) -> None:
    """Take rows out of their parts; parts that others are at come last."""
    rows = np.unique(rows)  # ascending, whatever made the table
    indices = np.unique(rows // store.layout.part_rows).tolist()
    holders = store.holders()
    for index in sorted(indices, key=lambda index: (index in holders, index)):
        part = store.layout.part(index)
        owner = store.owner(part)
        if owner is not None:
            log.warning("Waiting for %s, which is embedding part %d.", owner, index)
        _void(store, part, rows)


def _void(store: FeatureStore, part: PartRange, rows: Rows) -> None:
    """Rewrite one part without the numbers of some rows, which ascend."""
    with store.reclaim(part, PATIENCE_S) as claim:
        receipt = store.receipt(part.index)
        if receipt is None:  # whatever lies there is no part: it goes altogether
            store.storage.remove(store.chunk_files(part))
            return
        inside = part.within(rows)
        if set(inside.tolist()) <= set(receipt.purged):
            return
        arrays = store.read_part(part)
        store.empty_rows(part, inside, arrays, WITHDRAWN)
        document = receipt.purged_of(set(inside.tolist()))
        # A crash between the chunks and the receipt leaves one that vouches for the old bytes. The
        # same call, made again, reads the chunks by their own checksums and writes both.
        store.overwrite(part, claim, arrays, notes_without(document, rows.tolist()))


# --- what was computed -------------------------------------------------------------------------


def drop_derived(store: FeatureStore, patients: Collection[str]) -> dict[str, int]:
    """Take patients out of what was computed from the store; return how many files, by folder."""
    removed: dict[str, int] = {}
    # Whoever files an answer holds the same claim, and has not seen the withdrawal before it.
    with store.deriving():
        for folder in FOLDERS:
            if folder.of_patients:
                count = _count_files(store.path / folder.name)
                store.storage.clear(folder.name)
                if count:
                    removed[folder.name] = count
        for entry in entries_of(store.path / RUNS):  # networks that are learning from the patient
            if entry.is_dir(follow_symlinks=False):  # what a link leads to is not the store's
                remove_folder(store.path / RUNS / entry.name)
        sync_folders([store.path / RUNS])
        changed = sum(1 for _ in _rewrite_splits(store, patients))
        if changed:
            removed[SPLITS] = changed
        store.storage.publish()
    return removed


def drop_notes(store: FeatureStore, patients: Collection[str], rows: Rows) -> None:
    """Take patients out of what label files said of rows."""
    with store.deriving():
        _rewrite_patients(store, patients, rows)
        store.storage.publish()


def _count_files(folder: Path) -> int:
    files = (path for path in below(folder) if path.is_file())
    return sum(1 for path in files if not path.name.endswith(CHECKSUM))


def _rewrite_splits(store: FeatureStore, patients: Collection[str]) -> Iterator[Path]:
    """Take patients out of the splits; yield those that named one, or are damaged."""
    for path in files_in(store.path / SPLITS, "*.json"):
        try:
            text = read_checked(path).decode()
            if not names_any(text, patients):
                continue
            with as_corrupt(str(path)):
                left = text_without(text, patients)
        except (CorruptStoreError, UnicodeDecodeError):
            left = None  # damaged, or no split: nobody can say whom it names
        if left is None:
            _remove_derived(store, path)
        else:
            write_checked(path, left.encode())
        yield path


def _rewrite_patients(store: FeatureStore, patients: Collection[str], rows: Rows) -> None:
    import pyarrow.parquet as pq

    for path in files_in(store.path / PATIENTS, "*.parquet"):
        try:
            table = read_filed_table(path)
            theirs = np.isin(row_numbers(table), rows) | _named(table, patients)
        except (CorruptStoreError, pa.ArrowException, KeyError):
            _remove_derived(store, path)  # damaged, or of another kind, as above
            continue
        if theirs.any():
            sink = pa.BufferOutputStream()
            pq.write_table(table.filter(pa.array(~theirs)), sink)
            write_checked(path, sink.getvalue().to_pybytes())


def _remove_derived(store: FeatureStore, path: Path) -> None:
    name = path.relative_to(store.path).as_posix()
    # The checksum first: a crash in between leaves a file, which the same command removes.
    store.storage.remove([f"{name}{CHECKSUM}", name])


# --- tables ------------------------------------------------------------------------------------


def _of(slices: pa.Table, patients: Collection[str], rows: Rows) -> pa.ChunkedArray:
    """Return which slices are of any of the patients, or have one of the rows: bool, one each."""
    by_name = _named(slices, patients)
    return pa.chunked_array([by_name | np.isin(row_numbers(slices), rows)])


def _named(table: pa.Table, patients: Collection[str]) -> Mask:
    """Return (n,) which rows of a table have one of the patients in the column of that name."""
    names = pa.array(sorted(patients), pa.string())
    named: Mask = pc.is_in(table["patient"].cast(pa.string()), names).to_numpy()
    return named


def _blank(store: FeatureStore, rows: Rows, patients: Collection[str]) -> None:
    """Empty the slice table's entries of some rows, but for the row numbers; drop their files'."""
    nothing = {"path": "", "frame": 0, "flags": [], "withdrawn": True}
    empty = as_table(({"row": row, **nothing} for row in rows.tolist()), SLICE_SCHEMA)

    def change(tables: Tables) -> _Changed:
        blanked = np.isin(row_numbers(tables.slices), rows)
        theirs = tables.slices["path"].filter(pa.array(blanked)).combine_chunks()
        others = tables.slices.filter(~blanked)
        # Of a file with slices of others too, the entry stays.
        shared = pc.is_in(tables.files["path"], others["path"].combine_chunks())
        gone = pc.and_(pc.is_in(tables.files["path"], theirs), pc.invert(shared))
        files = where(tables.files, pc.invert(gone))
        slices = pa.concat_tables([others, empty]).sort_by("row")
        return _Changed(slices, files, tables.withdrawn.purging(patients))

    _change(store, change)


def _change(store: FeatureStore, change: Callable[[Tables], _Changed]) -> None:
    """Replace the tables and who is withdrawn, again where somebody was quicker."""
    while True:
        tables = store.tables()
        new = change(tables)
        try:
            store.write_tables(new.slices, new.files, withdrawn=new.withdrawn, seen=tables.seen)
            return
        except StaleTablesError:
            continue


def patients_on(path: Path) -> frozenset[str]:
    """Return the pseudonyms of every patient of a store, withdrawn ones included."""
    tables = FeatureStore.open(path).tables()
    in_images = frozenset(tables.slices["patient"].drop_null().to_pylist())
    return in_images | tables.withdrawn.patients


# --- what is left of those who were purged -----------------------------------------------------


def purged_rows(store: FeatureStore) -> Rows:
    """Return the rows whose entries a purge emptied."""
    slices = store.slices(["row", "path", "withdrawn"])
    empty = pc.and_(slices["withdrawn"], pc.equal(slices["path"], ""))
    return row_numbers(slices.filter(pc.fill_null(empty, False)))


def files_naming(store: FeatureStore, patients: Collection[str]) -> Iterator[str]:
    """Yield the names of the derived files that name any of the patients."""
    if not patients:
        return
    for folder in DERIVED:
        for path in sorted(below(store.path / folder)):
            if path.is_file() and _names_patient(path, patients):
                yield path.relative_to(store.path).as_posix()


def _names_patient(path: Path, patients: Collection[str]) -> bool:
    if path.suffix in (".json", ".jsonl"):
        return names_any(path.read_text("utf-8", errors="replace"), patients)
    if path.suffix != ".parquet":
        return False
    try:
        table = ParquetFile(read_file(path, MOST_TABLE_BYTES)).read()
    except (CorruptStoreError, pa.ArrowException, OSError):  # damaged: found by its checksum
        return False
    names = pa.array(sorted(patients), pa.string())
    for column in table.columns:
        if pa.types.is_string(column.type) and pc.any(pc.is_in(column, names)).as_py():
            return True
    return False
