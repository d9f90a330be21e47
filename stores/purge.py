"""Withdrawing a patient: out of every answer at once, and, purged, out of the files too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stores._types import Rows
from stores.contents import FOLDERS, RUNS, WITHDRAWN
from stores.errors import StaleTablesError
from stores.features import FeatureStore
from stores.layout import PartRange
from stores.slices import SLICE_SCHEMA, Tables, as_table, row_numbers, with_column

# A slice table, and the patients who are withdrawn by name.
_Changed = tuple[pa.Table, frozenset[str]]


def withdraw(store: FeatureStore, patient: str) -> int:
    """Withdraw a patient (a pseudonym) and keep later slices of the patient out.

    Returns how many slices it took. The rows stay, and so do their numbers until they are purged.
    """
    taken = 0
    _finish_others(store)

    def change(tables: Tables) -> _Changed:
        nonlocal taken
        of_patient = pc.fill_null(pc.equal(tables.slices["patient"], patient), False)
        before = tables.slices["withdrawn"]
        newly = pc.and_(of_patient, pc.invert(before))
        taken = pc.sum(newly).as_py() or 0
        slices = with_column(tables.slices, "withdrawn", pc.or_(of_patient, before))
        return slices, tables.patients | {patient}

    _change(store, change)
    return taken


def readmit(store: FeatureStore, patient: str) -> None:
    """Undo a withdrawal: the next extract brings back the slices that are still found."""
    _change(store, lambda tables: (tables.slices, tables.patients - {patient}))


def purge(store: FeatureStore, patient: str) -> int:
    """Remove the numbers, digests and table entries of a withdrawn patient; return how many rows.

    The row numbers stay, void. Results, masks and tuned networks are dropped: they are of the
    patient too. A purge that was interrupted is finished by the same call, since the table's
    entries, which say which rows are the patient's, go last.
    """
    _finish_others(store)
    slices = store.slices()
    rows = row_numbers(slices.filter(pc.equal(slices["patient"], patient)))
    for index in np.unique(rows // store.layout.part_rows).tolist():
        _void(store, store.layout.part(index), rows)
    for folder in FOLDERS:
        if folder.of_patients:
            store.storage.clear(folder.name)
    for path in (store.path / RUNS).glob("*/"):  # networks that are learning from the patient
        if not path.is_symlink():  # what a link leads to is not the store's
            shutil.rmtree(path)
    _blank(store, rows)
    return len(rows)


def _finish_others(store: FeatureStore) -> None:
    """Mend and remove what dead writers left: their half-written files are of the patient too."""
    store.recover()
    store.sweep()


def _void(store: FeatureStore, part: PartRange, rows: Rows) -> None:
    """Rewrite one part without the numbers of some rows."""
    with store.reclaim(part) as claim:
        receipt = store.receipt(part.index)
        if receipt is None:  # whatever lies there is no part: it goes altogether
            store.storage.remove(store.chunk_files(part))
            return
        arrays = store.read_part(part)
        inside = part.within(rows) - part.start
        for name, values in arrays.items():
            values[inside] = store.arrays[name].void
        arrays["status"][inside] = WITHDRAWN
        gone = set((inside + part.start).tolist())
        # A crash between the chunks and the receipt leaves one that vouches for the old bytes. The
        # same call, made again, reads the chunks by their own checksums and writes both.
        store.overwrite(part, claim, arrays, receipt.purged_of(gone))


def _blank(store: FeatureStore, rows: Rows) -> None:
    """Empty the slice table's entries of some rows but for the row numbers."""
    nothing = {"path": "", "frame": 0, "flags": [], "withdrawn": True}
    empty = as_table(({"row": row, **nothing} for row in rows.tolist()), SLICE_SCHEMA)

    def change(tables: Tables) -> _Changed:
        blanked = np.isin(row_numbers(tables.slices), rows)
        others = tables.slices.filter(~blanked)
        return pa.concat_tables([others, empty]).sort_by("row"), tables.patients

    _change(store, change)


def _change(store: FeatureStore, change: Callable[[Tables], _Changed]) -> None:
    """Replace the slice table and the withdrawn patients, again where somebody was quicker."""
    while True:
        tables = store.tables()
        slices, patients = change(tables)
        try:
            store.write_tables(slices, tables.files, patients=patients, seen=tables.seen)
            return
        except StaleTablesError:
            continue


def patients_on(path: Path) -> frozenset[str]:
    """Return the pseudonyms of every patient of a store, withdrawn ones included."""
    tables = FeatureStore.open(path).tables()
    return frozenset(tables.slices["patient"].drop_null().to_pylist()) | tables.patients
