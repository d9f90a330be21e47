"""A patient by whatever names one: an id or a pseudonym, in headers, paths or a label file.

`stores.purge` takes slices out by their rows and pseudonyms; here is found whose they are, and what
found them is told, so that nobody believes a patient gone of whom half the images are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.label_file import LabelTable, read_labels
from pipeline.annotations.label_join import column_texts, pseudonyms_of
from pipeline.annotations.patients import notes_of, patient_names, patients_by_labels
from pipeline.config.data import Data
from pipeline.config.root import Config
from pipeline.extraction.discover import PathRules
from pipeline.extraction.kept_out import hash_of_content, hash_of_path
from pipeline.shared.paths import unescape_path
from pipeline.shared.pseudonyms import Names
from stores import FeatureStore
from stores._types import Mask, Rows
from stores.errors import ConfigError
from stores.purge import Purged, purge_all, readmit, withdraw
from stores.slices import row_numbers
from stores.storage import storage_of

HEADERS = "headers"
PATH_RULE = "the path rule"
EITHER = "headers or the path rule"
LABELS = "labels"
COPIES = "the bytes of their files, without a name"
Digests = NDArray[np.uint8]  # (m, 32): of the file of each slice, 0 where none was read


@dataclass(frozen=True)
class PatientSlices:
    """What a store has of one patient.

    names: the patient's pseudonyms; several where a label file calls the patient of a header
    otherwise. rows: of slices that no header gives to the patient: those that a label file does,
    and copies of the patient's files that name nobody. files: the keyed hashes of their paths, and
    of the contents of all the patient's files, by patient. found_by: how many slices by what.
    """

    names: tuple[str, ...]
    rows: Rows
    files: Mapping[str, frozenset[str]] = field(default_factory=dict)
    found_by: Mapping[str, int] = field(default_factory=dict)

    def withdraw(self, store: FeatureStore) -> int:
        """Withdraw the patient; return how many slices it took."""
        return withdraw(store, *self.names, rows=self.rows, files=self.files)

    def readmit(self, store: FeatureStore) -> None:
        """Let the patient in again."""
        readmit(store, *self.names)

    def purge(self, store: FeatureStore) -> Purged:
        """Take out what the store holds of the patient, who was withdrawn."""
        return purge_all(store, *self.names, rows=self.rows)


def find_patient(path: Path, patient: str, config: Config | None = None) -> PatientSlices:
    """Return what a store has of a patient, given by id or by pseudonym.

    config: whose label file and path rule are asked as well; without one, the word that earlier
    runs left of label files. Raises ConfigError where nothing is of that patient.
    """
    store = FeatureStore.open(path)
    names = Names(path)
    slices = store.slices()
    in_headers = column_texts(slices, "patient")
    sources = list(_label_sources(store, config, slices, names))
    known = set(in_headers) | store.withdrawn.patients
    for source in sources:
        known |= source.known
    wanted = patient_names(names, patient) & known
    if not wanted:
        raise ConfigError(_unknown(path, config))
    # A label file may call one patient otherwise than the headers do: both names are withdrawn.
    for source in sources:
        wanted |= source.aliases(wanted, in_headers)
    patients = tuple(sorted(wanted))
    of_header = np.isin(in_headers.astype(object), patients)
    by_labels = np.zeros(len(slices), bool)
    for source in sources:
        by_labels |= np.isin(source.patients, patients)
    # Only these must be named by row: a later look knows the others by their headers.
    alone = by_labels & ~of_header
    named = in_headers.astype(bool)
    for source in sources:
        named |= np.array([patient is not None for patient in source.patients], bool)
    theirs = of_header | by_labels
    digests = store.read("file_digest")[row_numbers(slices)]
    copies = _same_files(digests, theirs, ~named)
    found_by = _found_by(config, names, slices, of_header, alone, wanted)
    if copies.any():
        found_by[COPIES] = int(copies.sum())
    files = _files_of(sources, names, slices, alone, wanted)
    if names.has_key:
        known_by = _contents(names, digests[theirs]) | _files_without_name(names, slices, copies)
        files[patients[0]] = files.get(patients[0], frozenset()) | known_by
    return PatientSlices(
        names=patients,
        rows=row_numbers(slices)[alone | copies],
        files=files,
        found_by=found_by,
    )


def _same_files(digests: Digests, theirs: Mask, nameless: Mask) -> Mask:
    """Return (m,) which slices without a patient's name are of a file equal to one of theirs."""
    known = {bytes(digest) for digest in digests[theirs] if digest.any()}
    same = np.zeros(len(digests), bool)
    if known:
        for place in np.flatnonzero(nameless & ~theirs).tolist():
            same[place] = bytes(digests[place]) in known
    return same


def _files_without_name(names: Names, slices: pa.Table, copies: Mask) -> frozenset[str]:
    """Return the keyed hashes of the paths of copies."""
    if not copies.any():
        return frozenset()
    paths = names.revealed(slices.filter(pa.array(copies)))["path"].to_pylist()
    return frozenset(hash_of_path(names, path) for path in paths if path)


def _contents(names: Names, digests: Digests) -> frozenset[str]:
    """Return the keyed hashes of the contents of files, by which a copy is known."""
    if not digests.any():
        return frozenset()
    each = np.unique(digests[digests.any(axis=1)], axis=0)
    return frozenset(hash_of_content(names, bytes(digest).hex()) for digest in each)


def _unknown(path: Path, config: Config | None) -> str:
    # Not who was asked for: messages end in logs.
    looked_at = "headers, the path rule or labels" if config else "headers or the path rule"
    hint = (
        ""
        if config
        else " Where a label file names patients, give the config in the place of the store."
    )
    return (
        f"No slice of the store {storage_of(path).place!r} is of that patient, by {looked_at}. "
        "Give the id as the images, the config's `patient` rule or the label file have it, or the "
        f"pseudonym of the slice table.{hint}"
    )


# --- what label files say ----------------------------------------------------------------------


@dataclass(frozen=True)
class _LabelSource:
    """Whose slices are by one label file: patients (m,), None where it says nothing.

    agrees: that headers and labels name the same people, each by names of its own.
    """

    patients: NDArray[np.object_]
    known: frozenset[str]
    agrees: bool

    def aliases(self, wanted: set[str], headers: NDArray[np.object_]) -> set[str]:
        """Return what some patients are called on the other side, where both sides agree."""
        if not self.agrees:
            return set()
        others: set[str] = set()
        for header, label in zip(headers, self.patients, strict=True):
            if header and label and (header in wanted or label in wanted):
                others |= {header, label}
        return others


def _label_sources(
    store: FeatureStore, config: Config | None, slices: pa.Table, names: Names
) -> Iterator[_LabelSource]:
    """Yield what the config's label file says, and what was noted of such files."""
    rows = row_numbers(slices)
    for note in notes_of(store):
        patients = np.full(len(slices), None, dtype=object)
        there = np.isin(note.rows, rows)
        patients[np.searchsorted(rows, note.rows[there])] = note.patients[there]
        yield _LabelSource(patients, frozenset(note.patients) - {None}, note.agrees)
    if config is not None and config.labels is not None and config.labels.patient is not None:
        table = read_labels(config.labels, [])
        patients = patients_by_labels(table, names.revealed(slices), config.data.root, names)
        yield _LabelSource(patients, _everybody(table, names), config.labels.headers == "agree")


def _everybody(table: LabelTable, names: Names) -> frozenset[str]:
    """Return all patients of a label file, with slices or without."""
    assert table.settings.patient is not None
    raw = table.columns[table.settings.patient]
    return frozenset(pseudonyms_of("patient", raw, names).values())


def _files_of(
    sources: list[_LabelSource], names: Names, slices: pa.Table, alone: Mask, wanted: set[str]
) -> dict[str, frozenset[str]]:
    """Return the keyed hashes of the files that label files alone give to the patient."""
    if not alone.any():
        return {}
    paths = names.revealed(slices.filter(pa.array(alone)))["path"].to_pylist()
    hashes: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for path, patient in zip(paths, source.patients[alone], strict=True):
            if path and patient in wanted:
                hashes[patient].add(hash_of_path(names, path))
    return {patient: frozenset(each) for patient, each in hashes.items()}


# --- what found them ---------------------------------------------------------------------------


def _found_by(
    config: Config | None,
    names: Names,
    slices: pa.Table,
    of_header: Mask,
    alone: Mask,
    wanted: set[str],
) -> dict[str, int]:
    """Count the patient's slices by what named the patient, those withdrawn before included."""
    in_table = int(of_header.sum())
    counts: dict[str, int] = {}
    if config is None:
        counts[EITHER] = in_table
    else:
        by_path = _count_by_path(config.data, names, slices.filter(pa.array(of_header)), wanted)
        counts[HEADERS] = in_table - by_path
        counts[PATH_RULE] = by_path
    counts[LABELS] = int(alone.sum())
    return {what: count for what, count in counts.items() if count}


def _count_by_path(data: Data, names: Names, slices: pa.Table, wanted: set[str]) -> int:
    """Count the slices whose path names the patient by the config's rule."""
    if data.patient is None:
        return 0
    rules = PathRules(data)
    counts = pc.value_counts(names.revealed(slices)["path"]).to_pylist()
    by_path = 0
    for each in counts:
        path = unescape_path(each["values"])
        named = rules.patient(path)
        if named and names.pseudonym("patient", rules.id_of(path, named)) in wanted:
            by_path += each["counts"]
    return by_path
