"""Stores are sent to a bucket and fetched; of S3, by a real server of its protocol."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from stores import FeatureStore, remote
from stores.errors import ConfigError, CorruptStoreError, OccupiedError, StoreNotFoundError
from stores.purge import purge, withdraw
from stores.verify import verify
from tests.stores.conftest import ARRAYS, NO_FILES, fill, numbered, slice_table


def test_there_and_back_is_the_same_store(full: FeatureStore, s3_url: str, tmp_path: Path) -> None:
    (full.path.with_name("store.key")).write_text("secret")
    sent = remote.push(full.path, s3_url)
    assert sent.objects > 20
    remote.fetch(s3_url, tmp_path / "back")
    back = FeatureStore.open(tmp_path / "back")
    assert verify(back.path).findings == []
    assert back.fingerprint() == full.fingerprint()
    np.testing.assert_array_equal(back.read("cls"), full.read("cls"))
    assert not any("key" in name for name in remote.Bucket(s3_url).names())


def test_plain_zarr_reads_it_where_it_is(full: FeatureStore, s3_url: str) -> None:
    remote.push(full.path, s3_url)
    group = zarr.open_group(f"{s3_url}/features.zarr", mode="r")
    np.testing.assert_array_equal(group["cls"][:20], full.read("cls")[:20])


def test_a_second_push_sends_what_is_new(store: FeatureStore, url: str, tmp_path: Path) -> None:
    fill(store, 0)
    first = remote.push(store.path, url)
    fill(store, 1)
    fill(store, 2)
    before = remote.Bucket(url).get(["parts/0000000.json"])
    second = remote.push(store.path, url)
    chunks = 5 * 2  # of the arrays of two parts
    assert second.objects == first.objects - 5 - 1 + chunks + 2
    assert remote.Bucket(url).get(["parts/0000000.json"]) == before
    remote.fetch(url, tmp_path / "back")
    assert FeatureStore.open(tmp_path / "back").missing() == []


def test_a_push_cut_short_is_no_store_and_goes_on(
    full: FeatureStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = remote.Bucket(url)
    put = remote.Bucket.put
    left = [0]  # puts before the network is gone

    def fails(self: remote.Bucket, objects: dict[str, bytes]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("the network is gone")
        put(self, objects)

    for left[0] in (2, 5):  # within the parts; before the manifest
        with monkeypatch.context() as broken:
            broken.setattr(remote.Bucket, "put", fails)
            with pytest.raises(ConnectionError):
                remote.push(full.path, url)
        assert "features.zarr/cls/c/0/0/0" in bucket.names()
        with pytest.raises(StoreNotFoundError):
            remote.fetch(url, tmp_path / "half")
    remote.push(full.path, url)
    remote.fetch(url, tmp_path / "back")
    assert FeatureStore.open(tmp_path / "back").fingerprint() == full.fingerprint()


def test_a_flipped_bit_is_neither_sent_nor_fetched(
    full: FeatureStore, url: str, tmp_path: Path
) -> None:
    chunk = "features.zarr/cls/c/1/0/0"
    whole = (full.path / chunk).read_bytes()
    flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    (full.path / chunk).write_bytes(flipped)
    with pytest.raises(CorruptStoreError, match="cls/c/1"):
        remote.push(full.path, url)
    (full.path / chunk).write_bytes(whole)
    remote.push(full.path, url)
    remote.Bucket(url).put({chunk: flipped})
    with pytest.raises(CorruptStoreError, match="cls"):
        remote.fetch(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_store_is_never_overwritten(full: FeatureStore, url: str, tmp_path: Path) -> None:
    remote.push(full.path, url)
    for name, recipe in (("other", "{}"), ("twin", full.recipe_text)):
        other = FeatureStore.create(tmp_path / name, recipe, ARRAYS, 8)
        other.write_tables(slice_table([(0, "x")]), NO_FILES)
        fill(other, 0, seed=1)
        with pytest.raises(OccupiedError, match="another store"):
            remote.push(other.path, url)
    remote.fetch(url, tmp_path / "back")
    with pytest.raises(OccupiedError, match="not empty"):
        remote.fetch(url, tmp_path / "back")


def test_what_was_purged_is_gone_there_too(full: FeatureStore, url: str) -> None:
    table = numbered(20, patient="p")
    full.write_tables(table, NO_FILES)
    (full.path / "results" / "knn-1.json").write_text("{}")
    fill_again = FeatureStore.open(full.path)
    remote.push(full.path, url)
    one = table.set_column(
        table.schema.get_field_index("patient"), "patient", [["q"] * 8 + ["p"] * 12]
    )
    fill_again.write_tables(one, NO_FILES)
    withdraw(fill_again, "p")
    purge(fill_again, "p")
    remote.push(full.path, url)
    names = remote.Bucket(url).names()
    assert not any(name.startswith("results/") for name in names)
    chunk = "features.zarr/cls/c/2/0/0"
    assert remote.Bucket(url).get([chunk])[chunk] == (full.path / chunk).read_bytes()


@pytest.mark.parametrize("moment", [0, 1, 4])
def test_a_patient_who_is_purged_while_a_store_is_copied_is_not_in_the_copy(
    full: FeatureStore,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
) -> None:
    """There, and back again: within the parts, and behind them."""
    monkeypatch.setattr(remote, "_MOMENT_S", 0.0)
    table = numbered(20, patient="q").set_column(3, "patient", [["p"] * 8 + ["q"] * 12])
    full.write_tables(table, NO_FILES)
    (full.path / "results/knn-1.json").write_text("{}")
    puts = [moment]

    def purge_beside(place: Path | str, call: Callable[..., Any]) -> Callable[..., Any]:
        def beside(*args: Any) -> Any:
            done = call(*args)
            puts[0] -= 1
            if puts[0] == -1:
                there = FeatureStore.open(place)
                with there.storage.occupied():
                    withdraw(there, "p")
                    purge(there, "p")
            return done

        return beside

    secret = full.read("cls", [0]).tobytes()
    monkeypatch.setattr(remote.Bucket, "put", purge_beside(full.path, remote.Bucket.put))
    remote.push(full.path, url)
    bucket = remote.Bucket(url)
    assert not any(secret in data for data in bucket.get(bucket.names()).values())
    assert not any(name.startswith("results/") for name in bucket.names())
    remote.fetch(url, tmp_path / "back")
    assert verify(tmp_path / "back").findings == []


def test_unknown_places_are_told(full: FeatureStore, url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        remote.push(full.path, "nowhere://bucket/store")
    with pytest.raises(StoreNotFoundError):
        remote.fetch(url, tmp_path / "back")
    shutil.rmtree(full.path)
    with pytest.raises(StoreNotFoundError):
        remote.push(full.path, url)


def test_a_copy_that_a_purge_ended_within_is_made_again() -> None:
    """The manifest was changed before it began, and nobody is at work when an object is missed."""
    made: Iterator[Exception | remote.Copied] = iter(
        [FileNotFoundError("results/a.json"), remote.Copied(1, 1)]
    )
    busy = iter([True, False, False])

    def copy() -> remote.Copied:
        result = next(made)
        if isinstance(result, Exception):
            raise result
        return result

    copied = remote._undisturbed(copy, lambda: "purged", lambda: next(busy), "here")
    assert copied == remote.Copied(1, 1)
