"""A stranger's store, bucket or mirror: nothing outside is touched by its names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from stores import FeatureStore, manifest, remote
from stores._disk import read_checked, seal, sha256, write_atomic, write_checked
from stores.bucket import Bucket
from stores.contents import DERIVED
from stores.errors import CorruptStoreError
from stores.folder import LocalFolder
from stores.inside import inside, is_below, is_store_name
from stores.mirror import MirroredBucket
from stores.purge import purge, withdraw
from stores.storage import storage_of
from stores.verify import repair, verify
from tests.stores.conftest import NO_FILES, fill, numbered

EVIL = b"written by a store"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder of the user's own, beside the store."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.tex").write_bytes(b"mine")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/.",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
        "a\\b",
        "a\u202eb",
        "a\ud800b",
        "x" * 256,
        "/".join("a" * 33),
        "/".join(["a" * 250] * 5),
    ],
)
def test_odd_names_are_no_names_of_a_store(name: str, tmp_path: Path) -> None:
    assert not is_store_name(name)
    with pytest.raises(CorruptStoreError, match="no name of a file of a store"):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["recipe.json", "features.zarr/cls/c/0/0", "splits/räntgen-1.json", "/".join("a" * 32)]
)
def test_ordinary_names_lie_inside(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_a_path_of_a_collection_may_have_any_characters_but_stays_below() -> None:
    assert is_below("a b/\x1b[2J/c\\d")
    assert not is_below("a/../../b")
    assert not is_below("/a")


def test_links_are_followed_within_the_store_alone(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "store"
    (root / "parts").mkdir(parents=True)
    (root / "inner").symlink_to("parts")
    (root / "out").symlink_to(outside)
    (root / "none").symlink_to(outside / "none")
    (root / "loop").symlink_to("loop")
    assert inside(root, "inner/x") == root / "inner/x"
    for name in ("out", "out/x", "none", "loop", "loop/x"):
        with pytest.raises(CorruptStoreError, match="leads out"):
            inside(root, name)
    # The store as a whole may be a link.
    (tmp_path / "linked").symlink_to(root)
    assert inside(tmp_path / "linked", "parts/x") == tmp_path / "linked/parts/x"


def plant(store: FeatureStore, name: str) -> None:
    """Have the manifest name a file whose copy is at hand."""
    write_atomic(store.path / "copies" / sha256(EVIL), EVIL)
    files = manifest.digests(store.path) | {name: sha256(EVIL)}
    write_atomic(store.path / "manifest.json", manifest.text(files))


@pytest.mark.parametrize(
    "to", ["../outside/thesis.tex", "../outside/new", "ABSOLUTE", "manifest.json"]
)
@pytest.mark.parametrize("act", [verify, repair, FeatureStore.open, lambda path: storage_of(path)])
def test_a_manifest_that_names_what_is_outside_writes_nothing(
    store: FeatureStore, outside: Path, to: str, act: Callable[[Path], object]
) -> None:
    name = str(outside / "thesis.tex") if to == "ABSOLUTE" else to
    plant(store, name)
    with contextlib.suppress(CorruptStoreError):
        act(store.path)
    assert content(outside) == {"thesis.tex": b"mine"}
    # A repair may have written another manifest, of the files that their copies bear out.
    assert not verify(store.path).sound or name not in manifest.digests(store.path)


def test_a_manifest_with_a_digest_that_is_a_path_is_refused(store: FeatureStore) -> None:
    files = manifest.digests(store.path) | {"recipe.json": "../../outside/thesis.tex"}
    write_atomic(store.path / "manifest.json", manifest.text(files))
    with pytest.raises(CorruptStoreError, match="names"):
        FeatureStore.open(store.path)


@pytest.mark.parametrize(
    "folder", ["results", "copies", "runs", "parts", "claims", "features.zarr"]
)
def test_a_folder_that_leads_out_is_left_alone(
    store: FeatureStore, outside: Path, folder: str
) -> None:
    withdraw(store, "someone")
    if (store.path / folder).exists():
        (store.path / folder).rename(store.path.parent / "moved")
    (store.path / folder).symlink_to(outside)
    for act in (
        lambda: repair(store.path),
        lambda: purge(FeatureStore.open(store.path), "someone"),
        lambda: store.storage.clear(folder),
        lambda: store.storage.remove([f"{folder}/thesis.tex"]),
        lambda: FeatureStore.open(store.path),
    ):
        with pytest.raises(CorruptStoreError, match="leads out"):
            act()
    assert content(outside) == {"thesis.tex": b"mine"}
    assert not verify(store.path).sound


def test_links_within_a_folder_go_and_what_they_lead_to_stays(
    store: FeatureStore, outside: Path
) -> None:
    (store.path / "results/link").symlink_to(outside)
    (store.path / "results/file").symlink_to(outside / "thesis.tex")
    store.storage.clear("results")
    assert not list((store.path / "results").iterdir())
    assert content(outside) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize(
    "name", ["splits/task.json", "results/knn-0.json", "parts/0000000.json", "copies/x"]
)
@pytest.mark.parametrize("act", [repair, lambda path: purge(FeatureStore.open(path), "someone")])
def test_a_link_to_be_removed_goes_itself_and_what_it_leads_to_stays(
    store: FeatureStore, outside: Path, name: str, act: Callable[[Path], object]
) -> None:
    fill(store, 0)
    withdraw(store, "someone")
    place = store.path / name
    if place.parent.name in DERIVED:
        write_checked(place, b"{}")
    place.unlink(missing_ok=True)
    place.symlink_to(outside / "thesis.tex")
    act(store.path)
    repair(store.path)
    if store.receipt(0) is None:
        fill(store, 0)
    assert verify(store.path).sound
    assert not place.is_symlink()
    assert content(outside) == {"thesis.tex": b"mine"}


def test_an_array_that_leads_out_is_neither_read_nor_written(
    store: FeatureStore, outside: Path
) -> None:
    (store.path / "features.zarr/mean/c").symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="leads out"):
        FeatureStore.open(store.path)
    with pytest.raises(CorruptStoreError, match="leads out"):
        fill(store, 0)
    assert content(outside) == {"thesis.tex": b"mine"}


def test_a_chunk_that_leads_out_is_damage(store: FeatureStore, outside: Path) -> None:
    fill(store, 0)
    chunk = store.path / "features.zarr/mean/c/0/0"
    chunk.rename(outside / "chunk")
    chunk.symlink_to(outside / "chunk")
    findings = [each for each in verify(store.path).findings if each.damage]
    assert [(each.kind, each.where) for each in findings] == [
        ("checksum", "features.zarr/mean/c/0/0")
    ]
    assert "leads out" in findings[0].detail


@pytest.mark.parametrize("link", ["mean/c/0/0", "mean/c/0", "cls/c/0/0/0", "cls/c/0/0"])
def test_a_chunk_that_leads_out_is_not_read(store: FeatureStore, outside: Path, link: str) -> None:
    fill(store, 0)
    place = store.path / "features.zarr" / link
    place.rename(outside / "moved")
    place.symlink_to(outside / "moved")
    name = link.partition("/")[0]
    for rows in (None, [0], [0, 1, 2, 3]):
        with pytest.raises(CorruptStoreError, match="leads out"):
            FeatureStore.open(store.path).read(name, rows)


@pytest.mark.parametrize("name", ["results/knn-0.json", "splits/task.json", "parts/0000000.json"])
def test_a_document_that_is_a_link_is_not_read(
    store: FeatureStore, outside: Path, name: str
) -> None:
    fill(store, 0)
    path = store.path / name
    data = path.read_bytes() if path.is_file() else b"{}"
    write_checked(outside / path.name, data)
    for each in outside.glob(f"{path.name}*"):
        link = path.with_name(each.name)
        link.unlink(missing_ok=True)
        link.symlink_to(each)
    with pytest.raises(CorruptStoreError, match="is a link"):
        read_checked(path)
    assert store.receipt(0) is None or not name.startswith("parts/")
    assert not verify(store.path).sound


def test_claims_that_are_links_without_an_end_are_nobodys(store: FeatureStore) -> None:
    claim = store.path / "claims/0000001.claim.0"
    claim.symlink_to(claim.name)
    assert store.holders() == {}
    assert store.claim(store.layout.part(1)) is not None


def test_pipes_in_a_store_are_no_wait_without_end(store: FeatureStore) -> None:
    fill(store, 0)
    receipt = store.receipts.path(0)
    receipt.unlink()
    os.mkfifo(receipt)
    os.mkfifo(store.path / "claims/0000001.claim.0")
    assert store.receipt(0) is None
    assert not verify(store.path).sound
    assert store.owner(store.layout.part(1)) is None
    chunk = store.path / "features.zarr/mean/c/2/0"
    fill(FeatureStore.open(store.path), 2)
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(CorruptStoreError):
        store.array("mean").read_part(store.layout.part(2))


# --- records of mirrors, and buckets -------------------------------------------------------------


def test_a_record_beside_a_folder_makes_no_mirror_of_it(
    store: FeatureStore, outside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RADPROBE_MIRRORS", str(tmp_path / "mirrors"))
    record = {"url": "memory://loot", "objects": {"../outside/thesis.tex": [4, "x"]}}
    (store.path.parent / f".{store.path.name}.mirror").write_text(json.dumps(record))
    assert isinstance(storage_of(store.path), LocalFolder)
    again = FeatureStore.open(store.path)
    again.write_tables(numbered(24), NO_FILES)
    fill(again, 0)
    again.publish()
    assert content(outside) == {"thesis.tex": b"mine"}
    assert verify(store.path).sound


def test_a_record_of_no_kind_is_corrupt(tmp_path: Path, store: FeatureStore) -> None:
    (store.path.parent / f".{store.path.name}.mirror").write_text("{")
    with pytest.raises(CorruptStoreError, match="not as a store has it"):
        MirroredBucket.of(store.path)


def test_objects_that_lead_out_of_a_bucket_are_left_there(
    full: FeatureStore, s3_url: str, tmp_path: Path, outside: Path
) -> None:
    remote.push(full.path, s3_url)
    s3 = fsspec.filesystem("s3")
    odd = ["results/../../../outside/thesis.tex", "splits/../../thesis.tex", "results/a\\b"]
    for name in odd:
        s3.pipe_file(f"{s3_url}/{name}", EVIL)
    FeatureStore.open(s3_url)
    remote.fetch(s3_url, tmp_path / "deep/er/copy")
    assert verify(s3_url).sound
    assert content(outside) == {"thesis.tex": b"mine"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or path.read_bytes() != EVIL
    # They are nobody's of ours: a copy that brings the bucket up to date leaves them as well.
    remote.push(full.path, s3_url)
    assert s3.cat_file(f"{s3_url}/{odd[2]}") == EVIL


@pytest.mark.parametrize(
    "name", ["manifest.json", "slices.parquet", "features.zarr/cls/c/0", "tuned/x/a.safetensors"]
)
def test_objects_too_large_for_their_names_are_not_read(tmp_path: Path, name: str) -> None:
    for place in (name, "results/sound.json"):
        path = tmp_path / "bucket" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with (tmp_path / "bucket" / name).open("wb") as file:
        file.truncate(2**40)
    assert Bucket(f"file://{tmp_path}/bucket").names() == {"results/sound.json"}


def test_a_sealed_document_may_be_of_anything(tmp_path: Path) -> None:
    from stores._disk import unseal

    path = tmp_path / "x.json"
    for text in (seal({}).replace(b"{", b"[", 1), b'\n "seal": "' + b"0" * 64 + b'"'):
        path.write_bytes(text)
        with pytest.raises(CorruptStoreError):
            unseal(path)
