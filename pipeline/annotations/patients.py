"""Whose a slice is by whatever names a patient: its headers, the path rule, a label file.

Headers and the path rule stand in the slice table. What a label file alone says does not: whoever
extracts or evaluates leaves word of it in the store's folder `patients/`, and whoever has the
config reads the label file itself. Dims: m slices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, Texts
from pipeline.annotations.label_join import column_texts, label_keys, label_rows, pseudonyms_of
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores._disk import files_in, write_checked
from stores._types import Rows
from stores.contents import PATIENTS
from stores.errors import REPAIR, CorruptStoreError
from stores.filed_tables import read_filed_table
from stores.slices import row_numbers
from stores.withdrawn import Withdrawn

_SCHEMA = pa.schema([("row", pa.int64()), ("patient", pa.string())])
# What an id looks like once it is hidden.
_PSEUDONYM = re.compile(r"[0-9a-f]{16}")
# Where a note's metadata has the label file's setting of that name.
_HEADERS = b"headers"


def patients_by_labels(table: LabelTable, slices: pa.Table, root: Path, names: Names) -> Texts:
    """Return (m,) the patient (pseudonym) that the label file gives each slice, or None.

    slices: SLICE_SCHEMA, with the real paths.
    """
    column = table.settings.patient
    if column is None:
        return np.full(len(slices), None, dtype=object)
    raw = table.columns[column]
    pseudonyms = pseudonyms_of("patient", raw, names)
    of_row = np.array([*map(pseudonyms.get, raw), None], dtype=object)
    # -1, of a slice that no row names, takes the None at the end.
    keys = label_keys(table, slices, root, names).keys
    patients: Texts = of_row[label_rows(table, keys, slices)]
    return patients


def patient_names(names: Names, patient: str) -> set[str]:
    """Return the pseudonyms that may be meant by a patient's id, or by a pseudonym."""
    text = patient.strip()
    if _PSEUDONYM.fullmatch(text) and not names.has_key:
        return {text}
    return {text, names.pseudonym("patient", text), names.pseudonym("patient", patient)}


def rows_of_withdrawn(
    table: LabelTable, keys: Sequence[str], slices: pa.Table, names: Names, withdrawn: Withdrawn
) -> NDArray[np.bool_]:
    """Return (rows,) which label rows are of patients who were withdrawn by name.

    By the patient column, by the key, or by a slice or file of theirs that the row names. A purge
    leaves no slices: a file that its header alone gave to a patient is not known then.
    keys (rows,): as `label_keys` has them; slices: SLICE_SCHEMA, with the real paths.
    """
    patients = withdrawn.patients
    theirs = np.zeros(len(keys), bool)
    if not patients:
        return theirs
    settings = table.settings
    if settings.patient is not None:
        raw = table.columns[settings.patient]
        pseudonyms = pseudonyms_of("patient", raw, names)
        theirs |= [pseudonyms.get(text) in patients for text in raw]
    if settings.by == "patient":
        theirs |= [key in patients for key in keys]
    if settings.by == "path" and withdrawn.files:
        files = withdrawn.all_files
        theirs |= [bool(key) and names.pseudonym("file", key) in files for key in keys]
    is_theirs = np.isin(column_texts(slices, "patient").astype(np.str_), sorted(patients))
    joined = label_rows(table, keys, slices)[is_theirs]
    theirs[joined[joined >= 0]] = True
    return theirs


def note_patients(
    store: FeatureStore, table: LabelTable, slices: pa.Table, root: Path, names: Names
) -> None:
    """Leave word in the store of which slices a label file gives to whom, for a withdrawal.

    slices: with the real paths. Of slices whose headers say the same, no word is needed.
    """
    settings = table.settings
    if settings.patient is None:
        return
    by_labels = patients_by_labels(table, slices, root, names)
    says_more: NDArray[np.bool_] = by_labels != column_texts(slices, "patient")
    says_more &= by_labels != None  # noqa: E711  element by element
    columns = [slices["row"].to_numpy()[says_more], pa.array(by_labels[says_more], pa.string())]
    record = pa.table(columns, schema=_SCHEMA)
    record = record.replace_schema_metadata({_HEADERS: settings.headers.encode()})
    # One a label file and how it is read, so that the same evaluation made again replaces it.
    which = [str(settings.file), settings.key, settings.by, settings.patient]
    path = store.path / PATIENTS / f"{names.pseudonym('labels', '|'.join(which))}.parquet"
    data = _as_parquet(record)
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(exist_ok=True)
    write_checked(path, data)


def _as_parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq  # where it is written: an answer on file needs none

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@dataclass(frozen=True)
class PatientNote:
    """Which rows (n,) one label file gives to which patients (n,).

    agrees: that headers and labels name the same people.
    """

    rows: Rows
    patients: Texts
    agrees: bool


def notes_of(store: FeatureStore) -> list[PatientNote]:
    """Return what was noted of label files.

    Raises CorruptStoreError where a note does not fit the checksum beside it, or is none: a flipped
    bit would leave a patient where he withdrew from.
    """
    notes = []
    for path in files_in(store.path / PATIENTS, "*.parquet"):
        table = read_filed_table(path)
        metadata = table.schema.metadata or {}
        if not table.schema.equals(_SCHEMA):
            raise CorruptStoreError(f"{path} is no note of a label file. {REPAIR}")
        patients = column_texts(table, "patient")
        agrees = metadata.get(_HEADERS) == b"agree"
        notes.append(PatientNote(row_numbers(table), patients, agrees))
    return notes
