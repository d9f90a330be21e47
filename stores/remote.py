"""Stores in object storage: pushed there and fetched from there, object by object, by fsspec.

An object is put whole or not at all, so a copy needs no renames. What makes it trustworthy is the
order: the recipe, created and never replaced; the chunks of a part, read back and held against its
receipt; tables and results; the manifest; receipts last. A push that was cut short goes on where it
stopped. A fetch is verified byte by byte before it is called a store. The key of the pseudonyms
lies beside a store and never travels.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores import manifest
from stores._disk import sha256, temporary_name, writing
from stores.bucket import Bucket
from stores.errors import CorruptStoreError, OccupiedError, StoreNotFoundError
from stores.features import FeatureStore
from stores.mirror import DERIVED, FILES, FOLDERS, is_derived, is_large
from stores.verify import verify

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Copied:
    """What a copy moved: objects and their bytes; those that were there already are not counted."""

    objects: int
    bytes: int


def push(source: Path, url: str) -> Copied:
    """Send a store's committed parts and all that explains them to a URL, or bring it up to date.

    Raises OccupiedError where another store is there, CorruptStoreError where a chunk does not fit
    its receipt, here or when it is read back.
    """
    store, bucket = FeatureStore.open(source), Bucket(url)
    ours = _receipts(store)
    there = _occupy(bucket, store, ours, url)
    sent = _Sent(bucket)
    for name, (receipt, data) in ours.items():
        if there.get(name) != data:
            bucket.remove([name] if name in there else [])
            _send_part(sent, store, name, receipt)
            there.pop(name, None)
    kept = manifest.digests(source)
    files = {name: manifest.load(source, name) for name in kept}
    sent.put({f"{manifest.COPIES}/{sha256(data)}": data for data in files.values()})
    sent.put({name: data for name, data in files.items() if name != RECIPE})
    paths = filter(is_derived, (p for folder in DERIVED for p in (source / folder).rglob("*")))
    derived = {path.relative_to(source).as_posix(): path for path in paths}
    sent.put({name: path.read_bytes() for name, path in derived.items() if not is_large(name)})
    for name in filter(is_large, derived):
        sent.put({name: derived[name].read_bytes()})
    sent.put({manifest.MANIFEST: (source / manifest.MANIFEST).read_bytes()})
    sent.put({name: data for name, (_, data) in ours.items() if name not in there})
    valid = {
        *kept,
        *ours,
        *sent.names,
        *(f"{manifest.COPIES}/{digest}" for digest in kept.values()),
    }
    valid |= {f"features.zarr/{c}" for receipt, _ in ours.values() for c in receipt["chunks"]}
    bucket.remove(name for name in bucket.names() - valid if name.partition("/")[0] in FOLDERS)
    return Copied(sent.objects, sent.bytes)


def fetch(url: str, target: Path) -> Copied:
    """Bring a store from a URL to a folder that is empty or not there, and verify all of it.

    Raises StoreNotFoundError, OccupiedError, CorruptStoreError where a byte is not as its receipt
    has it; nothing is left then.
    """
    bucket = Bucket(url)
    names = bucket.names()
    if manifest.MANIFEST not in names:
        raise StoreNotFoundError(f"There is no whole store at {url!r} (no {manifest.MANIFEST}).")
    if target.exists() and any(target.iterdir()):
        raise OccupiedError(f"{target} is not empty. Fetch into a new folder.")
    wanted = sorted(n for n in names if n in FILES or n.partition("/")[0] in FOLDERS)
    aside, size = target.with_name(temporary_name(target.name)), 0
    try:
        with writing(target):
            for name in wanted:
                data = bucket.get([name])[name]
                path = aside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                size += len(data)
            for folder in FOLDERS:
                (aside / folder).mkdir(exist_ok=True)
        damage = [finding for finding in verify(aside).findings if finding.damage]
        if damage:
            raise CorruptStoreError(
                f"{url} is damaged: {damage[0].where} {damage[0].detail} ({len(damage)} findings). "
                "Push it again from a store that verifies."
            )
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Copied(len(wanted), size)


class _Sent:
    """Puts objects and counts them."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.names: set[str] = set()
        self.objects = self.bytes = 0

    def put(self, objects: Mapping[str, bytes]) -> None:
        self.bucket.put(objects)
        self.names |= objects.keys()
        self.objects += len(objects)
        self.bytes += sum(map(len, objects.values()))


def _receipts(store: FeatureStore) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return name -> (receipt, its bytes) of the parts that can be believed."""
    found = {}
    for part in store.layout.parts(store.arrays["status"].n):
        path = store.receipts.path(part.index)
        data = path.read_bytes() if path.is_file() else b""
        receipt = store.receipt(part.index)
        if receipt is not None:
            found[path.relative_to(store.path).as_posix()] = receipt, data
    return found


def _occupy(
    bucket: Bucket, store: FeatureStore, ours: Mapping[str, tuple[Any, bytes]], url: str
) -> dict[str, bytes]:
    """Take the place, or find it to be this store's; return the receipts that are there."""
    if bucket.create(RECIPE, store.recipe_text.encode()):
        return {}
    receipts = [n for n in bucket.names() if n.startswith("parts/") and n.endswith(".json")]
    there = bucket.get(receipts)
    same = bucket.get([RECIPE])[RECIPE] == store.recipe_text.encode()
    # A receipt tells its part's checksums, times and writer: no two stores share one.
    if not same or (there and not any(ours.get(n, (0, b""))[1] == d for n, d in there.items())):
        raise OccupiedError(f"{url} holds another store. Choose another URL, or remove that.")
    return there


def _send_part(sent: _Sent, store: FeatureStore, name: str, receipt: Mapping[str, Any]) -> None:
    """Put a part's chunks, and read them back."""
    chunks = {
        f"features.zarr/{chunk}": entry["sha256"] for chunk, entry in receipt["chunks"].items()
    }
    objects = {chunk: (store.path / chunk).read_bytes() for chunk in chunks}
    _check(objects, chunks, f"{name} of {store.path}: run `radprobe verify --repair`")
    sent.put(objects)
    _check(sent.bucket.get(chunks), chunks, f"{name} once it was sent: push again")


def _check(objects: Mapping[str, bytes], digests: Mapping[str, str], of: str) -> None:
    for name, digest in digests.items():
        if sha256(objects[name]) != digest:
            raise CorruptStoreError(f"{name} does not fit its checksum in {of}.")
