from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from stores import ArraySpec, FeatureStore
from stores._disk import seal, unseal
from stores.claims import try_claim
from stores.errors import (
    ClaimedError,
    CorruptStoreError,
    MissingRowsError,
    StoreError,
    StoreNotFoundError,
    UnalignedWriteError,
)
from stores.receipt import ChunkRecord, receipt_name
from stores.verify import verify
from tests.at_once import at_once
from tests.stores.conftest import ARRAYS, NO_FILES, fill, numbered, slice_table
from tests.warm import WarmProcess


def test_what_was_written_is_read_in_the_order_asked(full: FeatureStore) -> None:
    plain = zarr.open_group(full.path / "features.zarr", mode="r")
    whole = np.asarray(plain["cls"][:])
    rows = [17, 0, 3, 3, 9]
    assert np.array_equal(full.read("cls", rows), whole[rows])
    assert full.read("cls", []).shape == (0, 4, 6)
    assert np.array_equal(full.read("mean"), np.asarray(plain["mean"][:]), equal_nan=True)


def test_only_parts_with_slices_are_missing_and_a_receipt_ends_that(store: FeatureStore) -> None:
    assert [part.index for part in store.missing()] == [0, 1, 2]
    fill(store, 1)
    assert [part.index for part in store.missing()] == [0, 2]
    assert store.status().tolist() == [0] * 8 + [1] * 8 + [0] * 8


def test_arrays_without_a_receipt_do_not_exist(store: FeatureStore) -> None:
    fill(store, 0)
    (store.path / "parts/0000000.json").unlink()
    assert store.status().tolist() == [0] * 24
    assert np.isnan(store.read("cls")).all()
    with pytest.raises(MissingRowsError, match="2 of the 2 rows"):
        store.read("cls", [0, 1])


def test_void_is_not_zero(store: FeatureStore) -> None:
    assert np.isnan(store.read("mean")).all()


@pytest.mark.parametrize("row", [24, -1])
def test_rows_outside_are_refused(store: FeatureStore, row: int) -> None:
    with pytest.raises(MissingRowsError, match=rf"\[{row}\]"):
        store.read("cls", [row])


def test_an_unknown_array_is_named_with_those_there_are(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match="no array 'patch'. It has: cls, file_digest, mean"):
        store.read("patch")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_text(path.read_text().replace('"1": 8', '"1": 7')),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("[]"),
    ],
)
def test_a_damaged_receipt_is_not_believed(store: FeatureStore, damage: object) -> None:
    fill(store, 0)
    damage(store.path / "parts/0000000.json")  # type: ignore[operator]
    assert store.receipt(0) is None
    assert store.missing()[0].index == 0


def test_a_lost_or_shortened_chunk_takes_the_receipt_with_it(store: FeatureStore) -> None:
    receipt = fill(store, 0)
    chunk = store.path / "features.zarr" / next(iter(receipt.chunks))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert store.receipt(0) is None
    chunk.unlink()
    assert store.receipt(0) is None


def test_a_receipt_of_another_recipe_is_not_believed(store: FeatureStore, tmp_path: Path) -> None:
    fill(store, 0)
    other = FeatureStore.create(tmp_path / "other", '{"made": "otherwise"}', ARRAYS, 8)
    other.write_tables(slice_table([(0, "f0")]), NO_FILES)
    shutil.copytree(store.path / "parts", other.path / "parts", dirs_exist_ok=True)
    shutil.copytree(store.path / "features.zarr", other.path / "features.zarr", dirs_exist_ok=True)
    assert store.receipt(0) is not None
    assert other.receipt(0) is None


def test_checksums_are_those_of_the_files(store: FeatureStore) -> None:
    for name, record in fill(store, 0).chunks.items():
        content = (store.path / "features.zarr" / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert record == ChunkRecord(len(content), digest)
        assert record.as_json() == {"bytes": len(content), "sha256": digest}


def test_a_flipped_bit_in_a_chunk_is_noticed_on_reading(store: FeatureStore) -> None:
    receipt = fill(store, 0)
    name = next(name for name in receipt.chunks if name.startswith("cls/"))
    chunk = store.path / "features.zarr" / name
    content = bytearray(chunk.read_bytes())
    content[11] ^= 4
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        store.read("cls", [0])


@pytest.fixture
def wide(tmp_path: Path) -> FeatureStore:
    """Return a store of 16 rows of 128 kB in one chunk: rows that pay to be read alone."""
    arrays = {"patch": ArraySpec((256, 256), "float16")}
    store = FeatureStore.create(tmp_path / "wide", "{}", arrays, 16)
    table = numbered(16)
    store.write_tables(table, NO_FILES)
    part = store.layout.part(0)
    claim = store.claim(part)
    assert claim is not None
    values = store.empty_part()
    values["patch"][:] = np.random.default_rng(0).standard_normal(values["patch"].shape)
    values["status"][:] = 1
    store.write(part, claim, values, {})
    return store


def test_a_few_rows_of_a_chunk_are_read_alone_and_held_against_their_checksums(
    wide: FeatureStore,
) -> None:
    whole = wide.read("patch")
    wanted = [9, 3, 3]
    np.testing.assert_array_equal(wide.read("patch", wanted), whole[wanted])
    chunk = wide.array("patch").chunk_of(0)
    path = wide.path / "features.zarr" / chunk.name
    bytes_a_row = wide.array("patch").row_bytes
    with path.open("r+b") as file:  # a bit of row 5
        file.seek(5 * bytes_a_row + 77)
        flipped = bytes([file.read(1)[0] ^ 4])
        file.seek(5 * bytes_a_row + 77)
        file.write(flipped)
    np.testing.assert_array_equal(wide.read("patch", wanted), whole[wanted])  # 5 was not read
    with pytest.raises(CorruptStoreError, match="bits flipped"):
        wide.read("patch", [3, 5])
    with pytest.raises(CorruptStoreError, match="bits flipped"):
        wide.read("patch", range(16))


def test_rows_of_a_receipt_without_their_checksums_are_read_by_the_chunk(
    wide: FeatureStore,
) -> None:
    whole = wide.read("patch")
    receipt = unseal(wide.receipts.path(0))
    del receipt["chunks"]["patch/c/0/0/0"]["row_crc32c"]
    wide.receipts.path(0).write_bytes(seal(receipt))
    np.testing.assert_array_equal(FeatureStore.open(wide.path).read("patch", [7, 1]), whole[[7, 1]])


@pytest.mark.parametrize("rows", [7, 9, 16])
def test_anything_but_one_part_is_refused(store: FeatureStore, rows: int) -> None:
    part = store.layout.part(0)
    arrays = store.empty_part()
    arrays["cls"] = np.zeros((rows, 4, 6), np.float16)
    claim = store.claim(part)
    assert claim is not None
    with pytest.raises(UnalignedWriteError, match="exactly part 0"):
        store.write(part, claim, arrays, {})
    assert store.receipt(0) is None


def test_overflow_is_refused_and_leaves_no_receipt(store: FeatureStore) -> None:
    part = store.layout.part(0)
    arrays = store.empty_part()
    arrays["status"][:] = 1
    arrays["cls"] = np.full((8, 4, 6), 1e6, np.float32)
    arrays["mean"][:] = 0
    claim = store.claim(part)
    assert claim is not None
    with pytest.raises(StoreError, match="cls of part 0 .* float16"):
        store.write(part, claim, arrays, {})
    assert store.receipt(0) is None


def test_a_committed_part_is_never_written_again(store: FeatureStore) -> None:
    """A worker given up for lost that comes back must stop before it writes."""
    part = store.layout.part(0)
    late = store.claim(part)
    assert late is not None
    late.path.unlink()  # its claim was taken over, and the part committed by somebody else
    fill(store, 0)
    before = store.read("cls", range(8))
    arrays = store.empty_part()
    with pytest.raises(ClaimedError, match="Part 0 was taken over"):
        store.write(part, late, arrays, {})
    assert np.array_equal(store.read("cls", range(8)), before)
    assert store.claim(part) is None


def test_an_append_rewrites_no_chunk_and_leaves_rows_between_void(full: FeatureStore) -> None:
    chunks = {p: p.stat().st_mtime_ns for p in (full.path / "features.zarr").rglob("c/*")}
    start = full.layout.next_boundary(20)
    names = [(i, f"f{i}") for i in range(20)] + [(start, "new")]
    full.write_tables(slice_table(names), NO_FILES)
    assert [part.index for part in full.missing()] == [3]
    fill(full, 3)
    for path, written in chunks.items():
        assert path.stat().st_mtime_ns == written
    assert full.status()[start] == 1


def test_withdrawn_slices_keep_their_row_and_say_so(store: FeatureStore) -> None:
    fill(store, 0)
    table = numbered(20).to_pydict()
    table["withdrawn"][2] = True
    store.write_tables(
        slice_table([]).from_pydict(table, schema=slice_table([]).schema), store.files()
    )
    assert store.status()[:4].tolist() == [1, 1, 3, 1]
    with pytest.raises(MissingRowsError):
        store.read("cls", [2])


def test_rows_out_of_order_are_refused(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="ascending"):
        store.write_tables(slice_table([(1, "a"), (0, "b")]), NO_FILES)


def test_the_fingerprint_follows_what_answers_depend_on(store: FeatureStore) -> None:
    empty = store.fingerprint()
    fill(store, 0)
    one = store.fingerprint()
    assert one != empty
    assert FeatureStore.open(store.path).fingerprint() == one
    store.write_tables(numbered(20, "g"), store.files())
    assert store.fingerprint() != one


def test_no_store_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="radprobe extract"):
        FeatureStore.open(tmp_path)


def test_a_foreign_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="Choose another path"):
        FeatureStore.create(tmp_path, "{}", ARRAYS, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_table_is_read_from_its_copy_and_said_when_that_is_gone(
    store: FeatureStore,
) -> None:
    path = store.path / "slices.parquet"
    copy = store.path / "copies" / hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:50])
    assert FeatureStore.open(store.path).slices().num_rows == 20
    copy.write_bytes(b"")
    with pytest.raises(CorruptStoreError, match="slices.parquet and its copy .* --repair"):
        FeatureStore.open(store.path).slices()


def test_patch_chunks_stay_small_and_a_part_is_whole_chunks(tmp_path: Path) -> None:
    arrays = {"patch": ArraySpec((37, 37, 768), "float16")}
    store = FeatureStore.create(tmp_path / "s", "{}", arrays, 32)
    meta = json.loads((store.path / "features.zarr/patch/zarr.json").read_text())
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [4, 37, 37, 768]


def test_a_plain_zarr_and_pyarrow_reader_needs_nothing_of_ours(store: FeatureStore) -> None:
    fill(store, 0)
    group = zarr.open_group(store.path / "features.zarr", mode="r")
    slices = pq.read_table(store.path / "slices.parquet")
    ok = np.asarray(group["status"][:]) == 1
    assert np.asarray(group["cls"][:])[ok].shape == (8, 4, 6)
    assert slices["path"].to_pylist()[:2] == ["f0", "f1"]


def _write_all(path: Path) -> None:
    store = FeatureStore.open(path)
    for part in store.missing():
        claim = store.claim(part)
        if claim is None:
            continue
        arrays = store.empty_part()
        arrays["status"][:] = 1
        for name in ("cls", "mean"):
            arrays[name][:] = part.index
        store.write(part, claim, arrays, {"pid": os.getpid()})
        claim.release()


def test_two_writers_share_the_parts_and_corrupt_none(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store", "{}", ARRAYS, 2)
    n = 60
    store.write_tables(numbered(n), NO_FILES)
    at_once(_write_all, *[[store.path]] * 3)
    assert store.missing() == []
    assert np.array_equal(store.read("mean", range(n))[:, 0], np.arange(n) // 2)
    assert not list(store.claims.iterdir())


def test_arrays_of_any_name_and_shape(tmp_path: Path) -> None:
    arrays = {"x": ArraySpec((2, 3, 4), "float16"), "cls": ArraySpec((2, 3, 4), "float16")}
    store = FeatureStore.create(tmp_path / "any", "{}", arrays, 8)
    assert store.array("x").row_shape == store.array("cls").row_shape == (2, 3, 4)


def test_what_a_dead_writer_left_goes_when_its_part_is_taken_over(store: FeatureStore) -> None:
    code = (
        "import os, sys, signal\n"
        "from stores import FeatureStore\n"
        "from stores._disk import temporary_name\n"
        "store = FeatureStore.open(sys.argv[1])\n"
        "part = store.layout.part(1)\n"
        "assert store.claim(part)\n"
        "for array in store.arrays.values():\n"
        "    for chunk in array.chunks(part):\n"
        "        path = array.root / chunk.name\n"
        "        path.parent.mkdir(parents=True, exist_ok=True)\n"
        "        path.with_name(temporary_name(path.name)).touch()\n"
        "store.receipts.path(1).with_name(temporary_name('1')).touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    writer = WarmProcess(code, str(store.path), environment=os.environ)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    assert list(store.path.rglob(".tmp-*"))
    fill(store, 1)
    assert not list(store.path.rglob(".tmp-*"))


def test_a_dead_writers_claim_on_what_it_committed_is_swept_and_no_other(
    store: FeatureStore,
) -> None:
    fill(store, 0)
    claims = {}
    for index in (0, 1, 2):
        claims[index] = try_claim(store.claims, f"{index:07d}")
    for index in (0, 1):  # the process of these is dead: its number was born at another time
        claim = claims[index]
        assert claim is not None
        holder = json.loads(claim.path.read_text())
        claim.path.write_text(json.dumps(holder | {"born": "1"}))

    assert len(list(store.claims.iterdir())) == 3
    store.sweep_committed()
    left = sorted(path.name[:7] for path in store.claims.iterdir())
    assert left == ["0000001", "0000002"]  # to be taken over; of a living writer


def test_who_files_answers_leaves_nothing_of_writers_that_died(store: FeatureStore) -> None:
    """As a kill leaves it between the link of a claim and the removal of its temporary name."""
    for name in ("derived.claim.0", "0000001.claim.0", ".tmp-x-claim"):
        (store.claims / name).write_bytes(b"")
        os.utime(store.claims / name, (0, 0))
    store.publish()
    # Of a part, who takes it over needs the claim.
    assert [path.name for path in store.claims.iterdir()] == ["0000001.claim.0"]

    (store.claims / ".tmp-x-claim").write_bytes(b"")
    os.utime(store.claims / ".tmp-x-claim", (0, 0))
    with store.deriving():
        pass
    assert [path.name for path in store.claims.iterdir()] == ["0000001.claim.0"]


class StandStillError(Exception):
    """Where a writer of these tests stands still for good."""


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("left_over", [True, False])
def test_a_writer_that_stood_still_changes_no_byte_of_who_took_over(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, call: int, left_over: bool
) -> None:
    """Before each link that it makes; also where another's chunks lay there at first."""
    part = store.layout.part(0)
    if left_over:
        fill(store, 0, seed=5)
        store.storage.remove([receipt_name(0)])
    claim = store.claim(part)
    assert claim is not None
    arrays = store.empty_part()
    real = os.link
    links = 0
    after: dict[Path, bytes] = {}

    def link(source: Any, target: Any) -> None:
        nonlocal links
        number = links
        links += 1
        if number == call:
            monkeypatch.setattr(os, "link", real)
            os.utime(claim.path, (0, 0))
            _disown(claim.path)
            fill(FeatureStore.open(store.path), 0, seed=7)
            after.update(_files_of(store.path))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    try:
        store.write(part, claim, arrays, {"failures": []})
    except ClaimedError:
        assert after
    claim.release()
    for path, data in after.items():
        assert path.read_bytes() == data, path
    assert verify(store.path).sound or not after


def _disown(claim: Path) -> None:
    """Have a claim be of another host."""
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "host": "another"}))
    os.utime(claim, (0, 0))


def _files_of(store: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and ".tmp-" not in p.name}


def test_a_receipt_that_is_not_believed_goes_before_it_vouches_for_other_chunks(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 0, seed=5)
    (store.path / "features.zarr/cls/c/0/0/0").unlink()
    monkeypatch.setattr(type(store.storage), "commit", _stop)
    with pytest.raises(StandStillError):
        fill(store, 0, seed=7)
    monkeypatch.undo()
    assert FeatureStore.open(store.path).receipt(0) is None


def _stop(*_: Any, **__: Any) -> None:
    raise StandStillError
