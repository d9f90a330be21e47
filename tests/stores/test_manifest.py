from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stores import FeatureStore, manifest
from stores._disk import sha256
from stores.errors import CorruptStoreError, StaleTablesError
from stores.verify import verify
from tests.at_once import at_once
from tests.stores.conftest import NO_FILES, slice_table


def table(prefix: str, n: int) -> object:
    return slice_table([(i, f"{prefix}{i}") for i in range(n)])


def test_a_crash_between_manifest_and_files_is_the_new_state(store: FeatureStore) -> None:
    old = {p: (store.path / p).read_bytes() for p in ("slices.parquet", "files.parquet")}
    store.write_tables(table("new", 30), NO_FILES)
    for name, data in old.items():
        (store.path / name).write_bytes(data)
    assert FeatureStore.open(store.path).slices()["path"][0].as_py() == "new0"
    assert set(manifest.mend(store.path)) == {"slices.parquet"}
    assert manifest.mend(store.path) == []


def test_a_crash_before_the_manifest_is_the_old_state(store: FeatureStore) -> None:
    (store.path / "copies" / sha256(b"new")).write_bytes(b"new")
    assert store.slices()["path"][0].as_py() == "f0"
    manifest.mend(store.path)
    assert not (store.path / "copies" / sha256(b"new")).exists()


def test_a_lost_manifest_is_rebuilt_from_the_copies(store: FeatureStore) -> None:
    before = (store.path / "manifest.json").read_bytes()
    (store.path / "manifest.json").write_bytes(before[:-9])
    with pytest.raises(CorruptStoreError, match="--repair"):
        FeatureStore.open(store.path)
    manifest.rebuild(store.path)
    assert (store.path / "manifest.json").read_bytes() == before


def test_a_manifest_is_not_rebuilt_on_files_nothing_bears_out(store: FeatureStore) -> None:
    (store.path / "manifest.json").unlink()
    (store.path / "recipe.json").write_text("{}")
    with pytest.raises(CorruptStoreError, match="copies of recipe.json"):
        manifest.rebuild(store.path)


def test_a_file_lost_with_its_copy_is_said(store: FeatureStore) -> None:
    digest = manifest.digests(store.path)["recipe.json"]
    (store.path / "recipe.json").unlink()
    assert FeatureStore.open(store.path).recipe_text == store.recipe_text
    (store.path / "copies" / digest).unlink()
    with pytest.raises(CorruptStoreError, match=r"recipe.json and its copy"):
        FeatureStore.open(store.path)


def test_tables_of_an_older_moment_are_refused(store: FeatureStore) -> None:
    """Two planners that number different new slices alike must not both be believed."""
    one = store.tables()
    two = store.tables()
    store.write_tables(table("f", 22), NO_FILES, seen=one.seen)
    with pytest.raises(StaleTablesError):
        store.write_tables(table("g", 23), NO_FILES, seen=two.seen)
    assert store.slices()["path"][0].as_py() == "f0"


def _append(path: Path, name: str) -> None:
    store = FeatureStore.open(path)
    for i in range(15):
        while True:
            tables = store.tables()
            rows = tables.slices.to_pylist()
            names = [(r["row"], r["path"]) for r in rows] + [(len(rows), f"{name}{i}")]
            try:
                store.write_tables(slice_table(names), tables.files, seen=tables.seen)
                break
            except StaleTablesError:
                continue


def test_planners_at_once_lose_nothing_and_number_each_slice_once(store: FeatureStore) -> None:
    at_once(_append, *[(store.path, name) for name in "xyz"])
    paths = store.slices()["path"].to_pylist()
    expected = {f"f{i}" for i in range(20)}
    for planner in "xyz":
        expected |= {f"{planner}{i}" for i in range(15)}
    assert len(paths) == 65
    assert set(paths) == expected
    assert not list(store.claims.iterdir())


def test_a_reader_beside_a_writer_sees_whole_tables(store: FeatureStore) -> None:
    reader = FeatureStore.open(store.path)
    for n in range(21, 40):
        assert reader.tables().slices.num_rows == n - 1
        store.write_tables(table("f", n), NO_FILES)
        assert reader.arrays["status"].n == store.layout.next_boundary(n)


def test_a_writer_finishes_what_a_crash_left_half_done(store: FeatureStore) -> None:
    """Also where it then changes nothing: plain readers know no copies."""
    old = {p: (store.path / p).read_bytes() for p in ("slices.parquet", "files.parquet")}
    store.write_tables(table("new", 30), NO_FILES)
    new = (store.path / "slices.parquet").read_bytes()
    for name, data in old.items():
        (store.path / name).write_bytes(data)
    (store.path / "copies" / sha256(b"never named")).write_bytes(b"never named")
    (store.path / "features.zarr/cls/zarr.json").unlink()
    FeatureStore.open(store.path).recover()
    assert (store.path / "slices.parquet").read_bytes() == new
    assert manifest.is_mended(store.path)
    assert verify(store.path).sound
    assert not [f for f in verify(store.path).findings if f.kind in ("foreign", "orphan")]


def test_a_folder_that_was_lost_with_the_power_is_made_again(store: FeatureStore) -> None:
    shutil.rmtree(store.path / "features.zarr/mean")
    FeatureStore.open(store.path).recover()
    assert manifest.is_mended(store.path)


def test_nothing_is_written_where_nothing_is_half_done(store: FeatureStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    store.recover()
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
