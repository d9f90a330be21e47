"""Disks that are full, read-only or not ours: said plainly, nothing half-written is believed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stores import FeatureStore
from stores._disk import (
    files_in,
    seal,
    sync_folder,
    temporary_name,
    unseal,
    write_atomic,
)
from stores.errors import CorruptStoreError, UnwritableError
from stores.verify import verify
from tests.stores.conftest import ARRAYS, NO_FILES, fill, numbered

ROOT = os.geteuid() == 0


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let this process write no larger file: a quota that needs no root.

    Not a fixture: the test runner's own output may be a file, and is written between fixtures.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 200 kB, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        not ROOT
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(place)], check=False
        ).returncode
    ):
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def names(n: int) -> object:
    return numbered(n)


def fill_up(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_part_that_does_not_fit_leaves_the_store_as_it_was(store: FeatureStore) -> None:
    fill(store, 0)
    before = files_of(store.path)
    part = store.layout.part(1)
    claim = store.claim(part)
    assert claim is not None
    refused = pytest.raises(UnwritableError, match=r"cls/c/1/0/0.*ulimit.*run the same command")
    with no_file_above(300), refused:
        store.write(part, claim, store.empty_part(), {})
    claim.release()
    assert files_of(store.path) == before
    fill(store, 1)
    assert [p.index for p in store.missing()] == [2]


def test_a_store_that_does_not_fit_is_not_there(tmp_path: Path) -> None:
    with no_file_above(300), pytest.raises(UnwritableError):
        FeatureStore.create(tmp_path / "store", "{" + " " * 400 + "}", ARRAYS, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_store_may_be_made_where_a_link_leads(tmp_path: Path, there: bool) -> None:
    """To another disk, as often as not, so that it is built over there too."""
    real = tmp_path / "disk/real"
    real.parent.mkdir()
    if there:
        real.mkdir()
    (tmp_path / "store").symlink_to(real)
    store = FeatureStore.create(tmp_path / "store", "{}", ARRAYS, 8)
    assert (tmp_path / "store").is_symlink()
    store.write_tables(names(8), NO_FILES)
    fill(store, 0)
    assert verify(real).sound
    assert {path.name for path in real.parent.iterdir()} == {"real"}
    assert {path.name for path in tmp_path.iterdir()} == {"store", "disk"}


def test_a_full_disk_that_shows_when_names_are_forced_is_said(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.path / "results/x.json").write_text("{}")

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    for act in (
        lambda: store.storage.remove(["results/x.json"]),
        lambda: store.storage.clear("results"),
        lambda: sync_folder(store.path),
    ):
        with pytest.raises(UnwritableError, match="the disk is full"):
            act()


def test_a_full_disk_is_said_and_the_store_goes_on_when_there_is_room(tiny_disk: Path) -> None:
    store = FeatureStore.create(tiny_disk / "store", "{}", ARRAYS, 8)
    store.write_tables(names(20), NO_FILES)
    fill(store, 0)
    fill_up(tiny_disk / "ballast")
    with pytest.raises(UnwritableError, match="the disk is full"):
        fill(store, 1)
    with pytest.raises(UnwritableError, match="the disk is full"):
        store.write_tables(names(24), NO_FILES)
    assert verify(store.path).sound
    (tiny_disk / "ballast").unlink()
    for path in store.claims.iterdir():
        path.unlink()  # this process is alive, so its claim stands
    fill(store, 1)
    assert np.isfinite(store.read("cls", range(16))).all()
    assert verify(store.path).sound


def test_a_read_only_disk_reads_and_refuses_to_be_written(tiny_disk: Path) -> None:
    store = FeatureStore.create(tiny_disk / "store", "{}", ARRAYS, 8)
    store.write_tables(names(8), NO_FILES)
    fill(store, 0)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    opened = FeatureStore.open(store.path)
    assert opened.read("cls", [3]).shape == (1, 4, 6)
    assert verify(store.path).sound
    assert opened.sweep() == []
    with pytest.raises(UnwritableError, match="the file system is read-only"):
        opened.write_tables(names(9), NO_FILES)


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnwritableError, match="permission is denied"):
        FeatureStore.create(tmp_path / "store", "{}", ARRAYS, 8)


def test_power_loss_before_the_receipt_loses_the_part_alone(store: FeatureStore) -> None:
    """Chunks that never reached the disk are empty or short; no receipt vouches for them."""
    fill(store, 0)
    receipt = fill(store, 1)
    for name in receipt.chunks:
        (store.path / "features.zarr" / name).write_bytes(b"")
    assert [part.index for part in store.missing()] == [1, 2]
    fill(store, 1)
    assert [part.index for part in store.missing()] == [2]


def test_a_write_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with no_file_above(10), pytest.raises(UnwritableError):
        write_atomic(path, bytes(20))
    assert files_of(tmp_path) == {path: b"old"}


def test_every_flipped_bit_of_a_sealed_document_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    document = {"a": [1, 2.5, "ü"], "nested": {"seal": ""}, "z": None}
    sealed = seal(document)
    path.write_bytes(sealed)
    assert unseal(path) == document
    for place in range(len(sealed) * 8):
        data = bytearray(sealed)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(CorruptStoreError):
            unseal(path)


def test_what_is_being_written_is_not_listed(tmp_path: Path) -> None:
    """A note, an answer or a split that another process has written half of is none yet."""
    (tmp_path / "b.json").touch()
    (tmp_path / "a.json").touch()
    (tmp_path / "a.parquet").touch()
    (tmp_path / temporary_name("c.json")).touch()
    assert [path.name for path in files_in(tmp_path, "*.json")] == ["a.json", "b.json"]
    assert files_in(tmp_path / "nowhere", "*.json") == []
