"""What every backend of a store promises, as tests that each implementation passes.

A class for an implementation gives the fixture `storage` and three helpers that go round the
backend, to what lies on the disk or in the bucket: what a backend wrote must be there, not only in
the backend's own account of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stores import FeatureStore, Layout, manifest
from stores._build import build
from stores._disk import sha256, temporary_name, write_checked
from stores.contents import COPIES, FOLDERS, LEDGER, MANIFEST, RECIPE, SLICES
from stores.errors import (
    ClaimedError,
    ConfigError,
    CorruptStoreError,
    OccupiedError,
    UnwritableError,
)
from stores.purge import purge, withdraw
from stores.storage import Storage, storage_at
from stores.verify import verify
from tests.stores.conftest import ARRAYS, NO_FILES, fill, numbered

CHUNK = "features.zarr/status/c/0"
RECEIPT = "parts/0000000.json"
OLD = b"old tables"
NEW = b"new tables"


class CutShortError(Exception):
    """What a write raises that a test cuts short."""


class StorageTests:
    """The contract of `stores.storage.Storage`."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        """Yield a backend of a place where nothing is yet, which this process may write to."""
        raise NotImplementedError

    def put(self, storage: Storage, name: str, data: bytes) -> None:
        """Put a file where the store is, going round the backend."""
        raise NotImplementedError

    def get(self, storage: Storage, name: str) -> bytes | None:
        """Return a file as it lies where the store is, going round the backend; None if absent."""
        raise NotImplementedError

    def breaking(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Have each write of a file where the store is raise CutShortError."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, storage: Storage) -> Storage:
        """Return the backend with a store of no rows in its place."""
        storage.adopt(built(storage))
        return storage

    # --- a place, and who writes -------------------------------------------------------------

    def test_a_place_leads_back_to_its_backend(self, store: Storage) -> None:
        again = storage_at(store.place)
        assert (type(again), again.place, again.folder) == (type(store), store.place, store.folder)

    def test_what_cannot_be_shared_is_refused_and_has_one_writer(self, store: Storage) -> None:
        store.check_writable()
        if store.shareable:
            store.check_shareable()
            assert store.writer() is None
            with store.occupied(), store.occupied():
                return
        assert store.writer() is not None
        with pytest.raises(ConfigError, match=store.place):
            store.check_shareable()
        with pytest.raises(ClaimedError, match=store.place), store.occupied():
            pass

    # --- a new store -------------------------------------------------------------------------

    def test_an_adopted_store_is_there_with_all_that_its_manifest_names(
        self, storage: Storage
    ) -> None:
        aside = built(storage)
        files = {name: manifest.load(aside, name) for name in manifest.digests(aside)}
        storage.adopt(aside)
        assert not aside.exists()
        assert self.get(storage, MANIFEST) is not None
        for name, data in files.items():
            assert self.get(storage, name) == data
            assert self.get(storage, f"{COPIES}/{sha256(data)}") == data
        assert storage.names() >= {MANIFEST, *files}

    def test_no_store_is_adopted_over_another(self, store: Storage) -> None:
        self.put(store, "parts/note.json", b"of the first")
        with pytest.raises(OccupiedError):
            store.adopt(built(store, '{"another": "recipe"}'))
        assert self.get(store, "parts/note.json") == b"of the first"
        assert self.get(store, RECIPE) == b"{}"

    # --- what is there -----------------------------------------------------------------------

    def test_size_and_names_are_those_of_the_files_that_are_there(self, store: Storage) -> None:
        assert store.size(RECEIPT) is None
        self.put(store, RECEIPT, b"12345")
        store.refresh()
        assert store.size(RECEIPT) == 5
        assert RECEIPT in store.names()
        assert (store.folder / RECEIPT).read_bytes() == b"12345"

    @pytest.mark.parametrize("name", ["../x", "/x", "results/../../x", "a//b", "a\nb"])
    def test_a_name_that_leads_out_is_refused(self, store: Storage, name: str) -> None:
        for act in (
            lambda: store.fetch(name, sha256(b"")),
            lambda: store.remove([name]),
            lambda: store.commit(name, b"", {}),
            lambda: store.clear(name),
        ):
            with pytest.raises(CorruptStoreError):
                act()

    def test_a_fetched_file_has_its_digest_or_is_refused(self, store: Storage) -> None:
        self.put(store, CHUNK, b"rows")
        store.refresh()
        with pytest.raises(CorruptStoreError, match=f"{store.place}/{CHUNK}.*--repair"):
            store.fetch(CHUNK, sha256(b"other rows"))
        if not (store.folder / CHUNK).is_file():
            store.fetch(CHUNK, sha256(b"rows"))
        assert (store.folder / CHUNK).read_bytes() == b"rows"

    def test_what_is_nowhere_is_not_fetched(self, store: Storage) -> None:
        with pytest.raises(CorruptStoreError, match=f"{store.place}/{CHUNK} is missing"):
            store.fetch(CHUNK, sha256(b"rows"))
        with store.fetched([CHUNK]):
            assert not (store.folder / CHUNK).exists()

    def test_files_are_at_hand_for_a_while_and_stay_where_the_store_is(
        self, store: Storage
    ) -> None:
        self.put(store, CHUNK, b"rows, sound or not")
        store.refresh()
        with store.fetched(name for name in (CHUNK, RECEIPT)):
            assert (store.folder / CHUNK).read_bytes() == b"rows, sound or not"
        assert self.get(store, CHUNK) == b"rows, sound or not"

    def test_a_folder_is_fetched_with_all_below_it(self, store: Storage) -> None:
        self.put(store, "tuned/a/model.safetensors", b"weights")
        self.put(store, "tuned/another/model.safetensors", b"others")
        store.refresh()
        store.fetch_folder("tuned/a")
        assert (store.folder / "tuned/a/model.safetensors").read_bytes() == b"weights"

    def test_another_process_sees_what_was_written(self, store: Storage) -> None:
        store.replace({SLICES: NEW})
        assert manifest.load(storage_at(store.place).folder, SLICES) == NEW

    # --- files of the manifest ---------------------------------------------------------------

    def test_replaced_files_and_their_copies_are_there_and_the_old_ones_gone(
        self, store: Storage
    ) -> None:
        store.replace({SLICES: OLD})
        store.replace({SLICES: NEW, "withdrawn.json": b"nobody"})
        assert self.get(store, SLICES) == NEW
        assert self.get(store, "withdrawn.json") == b"nobody"
        assert self.get(store, f"{COPIES}/{sha256(NEW)}") == NEW
        assert self.get(store, f"{COPIES}/{sha256(OLD)}") is None
        assert manifest.load(store.folder, SLICES) == NEW

    @pytest.mark.parametrize(
        ("cut", "left"), [(f"{COPIES}/{sha256(NEW)}", OLD), (MANIFEST, OLD), (SLICES, NEW)]
    )
    def test_a_replacement_cut_short_is_the_old_state_or_the_new(
        self, store: Storage, cut: str, left: bytes
    ) -> None:
        store.replace({SLICES: OLD})
        with self.breaking(cut), pytest.raises(CutShortError):
            store.replace({SLICES: NEW})
        store.refresh()
        assert manifest.load(store.folder, SLICES) == left
        store.replace({SLICES: NEW})
        assert self.get(store, SLICES) == NEW

    def test_what_was_mended_here_is_mended_where_the_store_is(self, store: Storage) -> None:
        good = self.get(store, SLICES)
        self.put(store, SLICES, b"flipped")
        store.refresh()
        mended = manifest.mend(store.folder)
        assert mended == [SLICES]
        store.restore(mended)
        assert self.get(store, SLICES) == good

    # --- parts -------------------------------------------------------------------------------

    def test_a_committed_part_is_there_with_its_chunks(self, store: Storage) -> None:
        commit(store, b"a receipt", b"rows")
        assert self.get(store, RECEIPT) == b"a receipt"
        assert self.get(store, CHUNK) == b"rows"
        assert store.size(CHUNK) == 4
        assert (store.folder / RECEIPT).read_bytes() == b"a receipt"

    def test_a_part_is_committed_over_itself(self, store: Storage) -> None:
        commit(store, b"a receipt", b"rows")
        with pytest.raises(ClaimedError):
            commit(store, b"another receipt", b"rows")
        commit(store, b"another receipt", b"purged rows", over=True)
        assert self.get(store, RECEIPT) == b"another receipt"
        assert self.get(store, CHUNK) == b"purged rows"
        assert store.size(CHUNK) == 11

    def test_what_a_dead_writer_left_of_a_part_is_replaced(self, store: Storage) -> None:
        self.put(store, CHUNK, b"half")
        commit(store, b"a receipt", b"all rows")
        assert self.get(store, CHUNK) == b"all rows"

    def test_a_commit_cut_short_has_no_receipt(self, store: Storage) -> None:
        with self.breaking(RECEIPT), pytest.raises(CutShortError):
            commit(store, b"a receipt", b"rows")
        assert self.get(store, RECEIPT) is None
        commit(store, b"a receipt", b"rows")
        assert self.get(store, RECEIPT) == b"a receipt"

    # --- taking away -------------------------------------------------------------------------

    def test_removed_files_are_gone_there_and_here(self, store: Storage) -> None:
        commit(store, b"a receipt", b"rows")
        store.refresh()
        store.remove(name for name in (RECEIPT, CHUNK, "parts/none.json"))
        assert self.get(store, RECEIPT) is None
        assert self.get(store, CHUNK) is None
        assert not (store.folder / RECEIPT).exists()
        assert store.size(RECEIPT) is None
        assert self.get(store, RECIPE) == b"{}"

    def test_a_cleared_folder_is_empty_and_others_are_as_they_were(self, store: Storage) -> None:
        for name in ("tuned/a/heads.json", "tuned/b.json", "results/r.json"):
            self.put(store, name, b"{}")
        store.refresh()
        store.clear("tuned")
        assert self.get(store, "tuned/a/heads.json") is None
        assert self.get(store, "tuned/b.json") is None
        assert self.get(store, "results/r.json") == b"{}"
        assert not list((store.folder / "tuned").rglob("*.json"))
        store.clear("segmentations")  # of nothing

    # --- answers -----------------------------------------------------------------------------

    def test_answers_come_to_where_the_store_is(self, store: Storage) -> None:
        answer = store.folder / "results" / "knn-1.json"
        write_checked(answer, b"{}")
        (answer.parent / temporary_name("half")).write_bytes(b"half")
        store.publish()
        assert self.get(store, "results/knn-1.json") == b"{}"
        assert self.get(store, "results/knn-1.json.sha256") is not None
        write_checked(answer, b'{"again": 1}')
        store.publish()
        assert self.get(store, "results/knn-1.json") == b'{"again": 1}'

    def test_who_may_not_write_may_not_remove_either(self, storage: Storage) -> None:
        """Whatever `check_writable` refuses, every method but `publish` does: see `refused`."""
        for refuse in self.refused(storage):
            with pytest.raises(UnwritableError):
                refuse()

    def refused(self, storage: Storage) -> Iterator[Callable[[], object]]:
        """Yield calls that are refused to a process that is not the writer."""
        yield from ()

    # --- a store on it -----------------------------------------------------------------------

    def test_a_feature_store_lives_on_it(self, storage: Storage, tmp_path: Path) -> None:
        """Made, filled, read, verified and purged, with the bits of any other backend."""
        here = FeatureStore.create(storage.folder, "{}", ARRAYS, 8)
        plain = FeatureStore.create(tmp_path / "plain", "{}", ARRAYS, 8)
        for store in (here, plain):
            table = numbered(20, patient="p")
            store.write_tables(table, NO_FILES)
            for index in range(3):
                fill(store, index)
        there = FeatureStore.open(storage.place)
        assert there.place == storage.place
        assert there.missing() == []
        assert there.fingerprint() == here.fingerprint() == plain.fingerprint()
        for name in here.arrays:
            np.testing.assert_array_equal(there.read(name), plain.read(name))
        np.testing.assert_array_equal(there.read("cls", [9, 2]), plain.read("cls", [9, 2]))
        assert verify(storage.folder).sound
        for store in (there, plain):
            assert (withdraw(store, "p"), purge(store, "p")) == (20, 20)
        assert FeatureStore.open(storage.place).fingerprint() == plain.fingerprint()
        assert np.isnan(FeatureStore.open(storage.place).read("cls")).all()
        assert verify(storage.folder).sound


def built(storage: Storage, recipe: str = "{}") -> Path:
    """Return the folder of a store of no rows, beside that of a backend."""
    aside = storage.folder.with_name(temporary_name(storage.folder.name))
    aside.parent.mkdir(parents=True, exist_ok=True)
    build(aside, recipe, LEDGER, Layout(8))
    assert {path.name for path in aside.iterdir()} >= {f.name for f in FOLDERS if f.from_start}
    return aside


def commit(storage: Storage, receipt: bytes, chunk: bytes, *, over: bool = False) -> None:
    """Commit a part of one chunk, as a writer does: the chunk lies in the folder already."""
    path = storage.folder / CHUNK
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chunk)
    storage.commit(RECEIPT, receipt, {CHUNK: sha256(chunk)}, over=over)
