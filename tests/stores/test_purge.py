"""A patient who was withdrawn is gone, whoever works on the store at the same moment."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores import FeatureStore
from stores import purge as purge_module
from stores._disk import write_checked
from stores.contents import PATIENTS, SPLITS
from stores.errors import ConfigError, StaleTablesError
from stores.folder import LocalFolder
from stores.layout import PartRange
from stores.purge import purge, purge_all, readmit, withdraw
from stores.slices import SLICE_SCHEMA, with_column
from stores.split_files import digest_of
from stores.verify import repair, verify
from stores.withdrawn import Withdrawn
from tests.stores.conftest import NO_FILES, fill, numbered

ANNA = "a" * 16
BERT = "b" * 16
# Of 20 slices in parts of 8, every third is Anna's.
HERS = [row for row in range(20) if row % 3 == 0]


@pytest.fixture
def store(store: FeatureStore) -> FeatureStore:
    names = [ANNA if row in HERS else BERT for row in range(20)]
    slices = with_column(numbered(20), "patient", pa.array(names))
    store.write_tables(slices, NO_FILES)
    return store


def holds(store: FeatureStore) -> list[int]:
    """Return the rows that hold any number on the disk, whatever the tables say."""
    rows: list[int] = []
    for part in store.parts():
        if store.receipt(part.index) is not None:
            arrays = store.read_part(part)
            full = np.isfinite(arrays["cls"]).any(axis=(1, 2)) | arrays["file_digest"].any(axis=1)
            rows += (np.flatnonzero(full) + part.start).tolist()
    return rows


def others(rows: range) -> list[int]:
    return [row for row in rows if row not in HERS]


# --- while parts are embedded ----------------------------------------------------------------


def test_who_is_withdrawn_after_the_claim_is_not_committed(store: FeatureStore) -> None:
    part = store.layout.part(0)
    claim = store.claim(part)
    assert claim is not None
    arrays = store.empty_part()
    for values in arrays.values():
        values[:] = 1
    notes = {
        "failures": [{"row": 3, "reason": "corrupt"}, {"row": 4, "reason": "corrupt"}],
        "links": [[6, 1], [7, 1]],
        "ranges": [[0, -1.0, 1.0], [1, 0.0, 2.0]],
        "left_out": [0, 1],
    }
    withdraw(FeatureStore.open(store.path), ANNA)  # another process
    receipt = store.write(part, claim, arrays, notes)
    claim.release()
    assert holds(store) == others(range(8))
    assert receipt.counts == {0: 3, 1: 5}
    told = {name: receipt.document[name] for name in notes}
    assert told == {
        "failures": [{"row": 4, "reason": "corrupt"}],
        "links": [[7, 1]],
        "ranges": [[1, 0.0, 2.0]],
        "left_out": [1],
    }


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_purge_finds_what_is_committed_at_that_moment(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The table is read again, the patient is purged, the part is committed: in that order."""
    part = store.layout.part(1)
    claim = store.claim(part)
    assert claim is not None
    arrays = store.empty_part()
    for values in arrays.values():
        values[:] = 1
    looked = threading.Event()
    withdrawn = threading.Event()
    look = FeatureStore.withdrawn_in

    def look_and_wait(self: FeatureStore, wanted: PartRange) -> np.ndarray:
        rows = look(self, wanted)
        looked.set()
        assert withdrawn.wait(10)
        return rows

    def purge_meanwhile() -> None:
        there = FeatureStore.open(store.path)
        assert looked.wait(10)
        withdraw(there, ANNA)
        withdrawn.set()
        purge(there, ANNA)

    if when == "between":
        monkeypatch.setattr(FeatureStore, "withdrawn_in", look_and_wait)
    else:
        looked.set()
    other = threading.Thread(target=purge_meanwhile)
    other.start()
    if when == "before":
        assert withdrawn.wait(10)
    store.write(part, claim, arrays, {"failures": []})
    assert other.is_alive()  # it waits for the part
    claim.release()
    other.join(20)
    assert not other.is_alive()
    assert holds(FeatureStore.open(store.path)) == others(range(8, 16))
    assert not [each for each in verify(store.path).findings if each.damage]


def test_a_part_that_was_cut_short_is_gone_with_its_temporary_files(store: FeatureStore) -> None:
    part = store.layout.part(0)
    secret = np.full((8, 4, 6), 7, np.float16)
    chunk = store.path / store.chunk_files(part)[0]
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(secret.tobytes())
    left = chunk.with_name(".tmp-nowhere-1-1-0123456789ab-0")
    left.write_bytes(secret.tobytes())
    os.utime(left, (1e9, 1e9))  # of another machine, long ago
    withdraw(store, ANNA)
    purged = purge_all(store, ANNA)
    assert purged.files == {"temporary files": 1}
    assert not [path for path in store.path.rglob("*") if _holds(path, secret.tobytes())]


def _holds(path: Path, secret: bytes) -> bool:
    return path.is_file() and secret in path.read_bytes()


# --- what was computed -------------------------------------------------------------------------


def test_an_answer_of_before_is_not_filed_after(store: FeatureStore) -> None:
    before = store.withdrawn
    with store.filing(before):
        pass
    withdraw(FeatureStore.open(store.path), ANNA)
    stale = pytest.raises(StaleTablesError, match="withdrawn .* while this was computed")
    with stale, store.filing(before):
        raise AssertionError("filed")
    with store.filing(store.withdrawn):
        pass


def test_a_purge_waits_for_an_answer_that_is_being_filed(store: FeatureStore) -> None:
    withdraw(store, ANNA)
    result = store.path / "results" / "knn-0.json"
    other = threading.Thread(target=lambda: purge(FeatureStore.open(store.path), ANNA))
    with store.filing(store.withdrawn):
        other.start()
        write_checked(result, json.dumps({"patient": ANNA}).encode())
    other.join(20)
    assert not result.exists()


def split(*sides: list[str]) -> dict[str, object]:
    patients = dict(zip(("train", "val", "test"), sides, strict=True))
    return {"patients": patients, "digest": digest_of(patients)}


def test_splits_go_on_without_the_patient(store: FeatureStore) -> None:
    folder = store.path / SPLITS
    before = split(["x", ANNA], ["y"], ["z"]) | {"additions": [split([], [ANNA, "w"], [])]}
    write_checked(folder / "t-1.json", json.dumps(before).encode())
    alone = split(["x"], ["y"], [ANNA]) | {"additions": []}
    write_checked(folder / "t-2.json", json.dumps(alone).encode())
    write_checked(folder / "t-3.json", json.dumps(split(["x"], ["y"], ["z"])).encode())
    untouched = (folder / "t-3.json").read_bytes()
    withdraw(store, ANNA)
    assert purge_all(store, ANNA).files == {SPLITS: 2}
    after = json.loads((folder / "t-1.json").read_text())
    assert after == split(["x"], ["y"], ["z"]) | {"additions": [split([], ["w"], [])]}
    assert not (folder / "t-2.json").exists()  # nobody is left to test on: dealt anew
    assert (folder / "t-3.json").read_bytes() == untouched
    assert verify(store.path).sound


def test_damaged_files_go_since_nobody_can_say_whom_they_name(store: FeatureStore) -> None:
    patients = {"train": [ANNA, BERT], "val": [BERT], "test": [BERT]}
    split = {"patients": patients, "additions": [], "digest": digest_of(patients)}
    note = pa.table({"row": pa.array([1], pa.int64()), "patient": [BERT]})
    sink = pa.BufferOutputStream()
    pq.write_table(note, sink)
    (store.path / PATIENTS).mkdir()
    write_checked(store.path / SPLITS / "sound.json", json.dumps(split).encode())
    write_checked(store.path / SPLITS / "flipped.json", json.dumps(split).encode())
    write_checked(store.path / PATIENTS / "flipped.parquet", sink.getvalue().to_pybytes())
    for path in (store.path / SPLITS / "flipped.json", store.path / PATIENTS / "flipped.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x80
        path.write_bytes(data)
    withdraw(store, ANNA)
    assert purge_all(store, ANNA).files == {SPLITS: 2}
    names = {path.name for folder in (SPLITS, PATIENTS) for path in (store.path / folder).iterdir()}
    assert names == {"sound.json", "sound.json.sha256"}
    assert verify(store.path).sound


def test_rows_of_a_label_file_are_taken_too(store: FeatureStore) -> None:
    fill(store, 0)
    note(store, [ANNA, BERT])
    rows = np.array([1])
    assert withdraw(store, ANNA, rows=rows, files={ANNA: frozenset(["hash"])}) == len(HERS) + 1
    assert store.withdrawn.all_files == {"hash"}
    assert purge(store, ANNA, rows=rows) == len(HERS) + 1
    assert holds(store) == [2, 4, 5, 7]
    left = pq.read_table(store.path / PATIENTS / "n.parquet")
    assert left["patient"].to_pylist() == [BERT]
    readmit(store, ANNA)
    assert store.withdrawn == Withdrawn()


def test_a_purge_that_ends_between_a_file_and_its_checksum_is_finished(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        fill(store, index)
    write_checked(store.path / SPLITS / "damaged.json", ANNA.encode())
    withdraw(store, ANNA)
    remove = LocalFolder.remove

    def remove_first(self: LocalFolder, names: Iterable[str]) -> None:
        remove(self, list(names)[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "remove", remove_first)
        with pytest.raises(KeyboardInterrupt):
            purge(store, ANNA)
    purge(store, ANNA)
    assert list((store.path / SPLITS).iterdir()) == []
    assert verify(store.path).findings == []


def note(store: FeatureStore, patients: list[str]) -> None:
    """Leave word of whom a label file gives the first rows to, as an evaluation does."""
    rows = pa.array(range(1, len(patients) + 1), pa.int64())
    (store.path / PATIENTS).mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"row": rows, "patient": patients}), store.path / PATIENTS / "n.parquet"
    )


@pytest.mark.parametrize("end", ["interrupted", "noted again"])
def test_notes_of_label_files_go_last(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """They alone say which rows are the patient's until the table's entries are gone."""
    fill(store, 0)
    rows = np.array([1])
    note(store, [ANNA, BERT])
    withdraw(store, ANNA, rows=rows)
    blank = purge_module._blank

    def meanwhile(*args: Any) -> None:
        assert ANNA in pq.read_table(store.path / PATIENTS / "n.parquet")["patient"].to_pylist()
        if end == "interrupted":
            raise KeyboardInterrupt
        blank(*args)
        note(store, [ANNA, BERT])  # another process, by the table as it was

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(purge_module, "_blank", meanwhile)
        purge(store, ANNA, rows=rows)
    if end == "interrupted":
        purge(store, ANNA, rows=rows)
    left = pq.read_table(store.path / PATIENTS / "n.parquet")
    assert left["patient"].to_pylist() == [BERT]
    assert "f1" not in store.slices()["path"].to_pylist()


# --- what verify says of it ----------------------------------------------------------------------


def kinds(store: FeatureStore) -> list[str]:
    return [finding.kind for finding in verify(store.path).findings if finding.kind != "pending"]


def test_verify_tells_withdrawn_rows_that_hold_numbers(store: FeatureStore) -> None:
    fill(store, 0)
    assert kinds(store) == []
    withdraw(store, ANNA)
    assert kinds(store) == ["withdrawn"]
    purge(store, ANNA)
    assert kinds(store) == []


def test_verify_finds_and_repair_takes_out_what_is_left(store: FeatureStore) -> None:
    fill(store, 0)
    withdraw(store, ANNA)
    purge(store, ANNA)
    # As a version before left them: numbers in a part, and a patient in files.
    part = store.layout.part(0)
    arrays = store.read_part(part)
    for values in arrays.values():
        values[0] = 1
    with store.reclaim(part) as claim:
        store.overwrite(part, claim, arrays, {"failures": []})
    write_checked(store.path / "results" / "a.json", f'{{"p": "{ANNA}"}}'.encode())
    pq.write_table(pa.table({"patient": [BERT, ANNA]}), store.path / "results" / "a.parquet")
    report = verify(store.path)
    found = [each.where for each in report.findings if each.kind == "purged"]
    assert found == ["part 0", "results/a.json", "results/a.parquet"]
    assert not report.sound
    repair(store.path)
    assert verify(store.path).sound
    assert holds(store) == others(range(8))


def test_entries_and_files_of_the_patient_leave_the_tables(store: FeatureStore) -> None:
    withdraw(store, ANNA)
    purge(store, ANNA)
    slices = store.slices()
    assert slices.schema.equals(SLICE_SCHEMA)
    assert [path for path in slices["path"].to_pylist() if path] == [
        f"f{row}" for row in others(range(20))
    ]
    assert store.withdrawn == Withdrawn(frozenset([ANNA]), frozenset([ANNA]))


# --- whom it takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("nobody", [None, ""])
@pytest.mark.parametrize("act", [withdraw, readmit, purge])
def test_slices_of_no_patient_are_not_taken_by_name(
    store: FeatureStore, act: Callable[..., object], nobody: Any
) -> None:
    names = [None if row in HERS else BERT for row in range(20)]
    slices = with_column(numbered(20), "patient", pa.array(names))
    store.write_tables(slices, NO_FILES)
    fill(store, 0)
    before = holds(store)
    with pytest.raises(ConfigError, match="Got no name"):
        act(store, nobody)
    assert holds(store) == before
    assert store.withdrawn == Withdrawn()
    assert not any(store.slices()["withdrawn"].to_pylist())
