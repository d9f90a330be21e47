"""Stores in object storage: pushed there and fetched from there, object by object, by fsspec.

An object is put whole or not at all, so a copy needs no renames. What makes it trustworthy is the
order: the recipe, created and never replaced; the chunks of a part, read back and held against its
receipt; tables and results; the manifest; receipts last. A push that was cut short goes on where it
stopped. A fetch is verified byte by byte before it is called a store. The key of the pseudonyms
lies beside a store and never travels.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stores import manifest
from stores._disk import sha256, sync_folder, sync_folders, temporary_name, write_new, writing
from stores.bucket import Bucket
from stores.claims import holders
from stores.contents import MANIFEST, PARTS, RECIPE, TOP_FILES, TRAVELLING, folder_of, is_large
from stores.errors import (
    CorruptStoreError,
    OccupiedError,
    StaleTablesError,
    StoreNotFoundError,
)
from stores.features import FeatureStore
from stores.inside import inside
from stores.mirror import derived_files
from stores.receipt import Receipt, receipt_name
from stores.verify import verify
from stores.writer import WriterClaim

# How often a store is copied that others change meanwhile.
_TRIES = 5
_MOMENT_S = 1.0


@dataclass(frozen=True)
class Copied:
    """What a copy moved: objects and their bytes; those that were there already are not counted."""

    objects: int
    bytes: int


@dataclass(frozen=True)
class _Part:
    """A committed part: its receipt, and that as it lies on disk."""

    receipt: Receipt
    data: bytes


def push(source: Path, url: str) -> Copied:
    """Send a store's committed parts and all that explains them to a URL, or bring it up to date.

    Raises OccupiedError where another store is there, CorruptStoreError where a chunk does not fit
    its receipt, here or when it is read back, and StaleTablesError.
    """
    store = FeatureStore.open(source)
    bucket = Bucket(url)
    return _undisturbed(
        copy=lambda: _push(store, bucket),
        version=lambda: store.version,
        is_busy=lambda: bool(holders(store.claims)),
        place=store.place,
    )


def _push(store: FeatureStore, bucket: Bucket) -> Copied:
    """Send a store as it is at this moment."""
    sent = _Sent(bucket)
    parts = _committed(store)
    theirs = _occupy(bucket, store, parts)
    news: dict[str, bytes] = {}
    for name, part in parts.items():
        if theirs.get(name) == part.data:
            continue
        # A receipt that is there goes first: it would vouch for chunks that are being replaced.
        bucket.remove([name] if name in theirs else [])
        _send_chunks(sent, store, name, part.receipt)
        news[name] = part.data
    _send_files(sent, store)
    _send_derived(sent, store)
    # The manifest comes when all that it names is there: from here on it is a store.
    sent.put({MANIFEST: (store.path / MANIFEST).read_bytes()})
    # The parts that are new are in it from here on: their chunks, and their rows in the tables,
    # came before.
    sent.put(news)
    _remove_all_but(bucket, sent.names | _names(store, parts))
    return Copied(sent.objects, sent.bytes)


def fetch(url: str, target: Path) -> Copied:
    """Bring a store from a URL to a folder that is empty or not there, and verify all of it.

    Raises StoreNotFoundError, OccupiedError, CorruptStoreError where a byte is not as its receipt
    has it, and StaleTablesError; nothing is left then.
    """
    bucket = Bucket(url)
    if MANIFEST not in bucket.names():
        raise StoreNotFoundError(f"There is no whole store at {url!r} (no {MANIFEST}).")
    if target.exists() and any(target.iterdir()):
        raise OccupiedError(f"{target} is not empty. Fetch into a new folder.")
    # Aside, and renamed once all of it is checked: what was cut short or damaged is no store.
    aside = target.with_name(temporary_name(target.name))
    try:
        copied = _undisturbed(
            copy=lambda: _fetch(bucket, target, aside),
            version=lambda: sha256(bucket.get([MANIFEST])[MANIFEST]),
            is_busy=lambda: WriterClaim(bucket).writer() is not None,
            place=url,
        )
        aside.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copied


def _fetch(bucket: Bucket, target: Path, aside: Path) -> Copied:
    """Bring a store as it is at this moment into the folder `aside`, and verify it."""
    shutil.rmtree(aside, ignore_errors=True)  # of a try before
    wanted = sorted(name for name in bucket.names() if _is_of_a_store(name))
    with writing(target):
        size = _fetch_files(bucket, wanted, aside)
    _check_sound(aside, bucket.url)
    return Copied(len(wanted), size)


def _undisturbed(
    copy: Callable[[], Copied],
    version: Callable[[], str],
    is_busy: Callable[[], bool],
    place: str,
) -> Copied:
    """Copy a store, and again where it was changed meanwhile: nobody who was purged is in a copy.

    version: of the manifest where the store is; is_busy: whether anybody changes the store. Raises
    what `copy` raises where nobody does, and StaleTablesError where there is no end of it.
    """
    for _ in range(_TRIES):
        # First: a purge that has changed the manifest already may end within the copy.
        busy = is_busy()
        before = version()
        try:
            copied = copy()
        except (CorruptStoreError, FileNotFoundError):
            # Of what a purge takes out at the moment, some is gone, and some does not fit.
            if version() == before and not busy and not is_busy():
                raise
            time.sleep(_MOMENT_S)
            continue
        if version() == before:
            return copied
    raise StaleTablesError(
        f"{place} was changed all the while it was copied. Run the same command again."
    )


def _fetch_files(bucket: Bucket, names: list[str], folder: Path) -> int:
    """Write objects into a new folder; return their bytes."""
    size = 0
    for name in names:
        data = bucket.get([name])[name]
        path = inside(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, data)
        size += len(data)
    for each in TRAVELLING:
        (folder / each).mkdir(exist_ok=True)
    sync_folders([folder, *filter(Path.is_dir, folder.rglob("*"))])
    return size


def _check_sound(folder: Path, url: str) -> None:
    damage = [finding for finding in verify(folder).findings if finding.damage]
    if damage:
        first = f"{damage[0].where} {damage[0].detail}"
        raise CorruptStoreError(
            f"{url} is damaged: {first} ({len(damage)} findings). "
            "Push it again from a store that verifies."
        )


def _is_of_a_store(name: str) -> bool:
    return name in TOP_FILES or folder_of(name) in TRAVELLING


class _Sent:
    """Puts objects and counts them."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.names: set[str] = set()
        self.objects = 0
        self.bytes = 0

    def put(self, objects: Mapping[str, bytes]) -> None:
        self.bucket.put(objects)
        self.names |= objects.keys()
        self.objects += len(objects)
        self.bytes += sum(map(len, objects.values()))


def _committed(store: FeatureStore) -> dict[str, _Part]:
    """Return the parts whose receipts can be believed, by the names of those."""
    parts = {}
    for part in store.parts():
        path = store.receipts.path(part.index)
        data = path.read_bytes() if path.is_file() else b""
        receipt = store.receipt(part.index)
        if receipt is not None:
            parts[receipt_name(part.index)] = _Part(receipt, data)
    return parts


def _occupy(bucket: Bucket, store: FeatureStore, parts: Mapping[str, _Part]) -> dict[str, bytes]:
    """Take the place, or find it to be this store's; return the receipts that are there."""
    recipe = store.recipe_text.encode()
    # Created and never replaced: of two stores that are sent here at once, one takes the place.
    if bucket.create(RECIPE, recipe):
        return {}
    names = bucket.listing(PARTS)
    theirs = bucket.get(name for name in names if name.endswith(".json"))
    same_recipe = bucket.get([RECIPE])[RECIPE] == recipe
    # A receipt tells its part's checksums, times and writer: no two stores share one.
    ours = {name: part.data for name, part in parts.items()}
    shared = theirs.items() & ours.items()
    if not same_recipe or (theirs and not shared):
        raise OccupiedError(
            f"{bucket.url} holds another store. Choose another URL, or remove that."
        )
    return theirs


def _send_chunks(sent: _Sent, store: FeatureStore, name: str, receipt: Receipt) -> None:
    """Put a part's chunks, and read them back."""
    digests = receipt.digests()
    objects = _read(store, digests)
    _check(objects, digests, f"{name} of {store.path}: run `radprobe verify --repair`")
    sent.put(objects)
    _check(sent.bucket.get(digests), digests, f"{name} once it was sent: push again")


def _send_files(sent: _Sent, store: FeatureStore) -> None:
    """Put the files of the manifest, their copies first: a reader falls back to those."""
    files = manifest.load_all(store.path)
    sent.put(manifest.copies(files))
    del files[RECIPE]  # it took the place
    sent.put(files)


def _send_derived(sent: _Sent, store: FeatureStore) -> None:
    """Put what was computed from the store; networks one by one, since each fills the memory."""
    names = derived_files(store.path)
    small = [name for name in names if not is_large(name)]
    sent.put(_read(store, small))
    for name in filter(is_large, names):
        sent.put(_read(store, [name]))


def _read(store: FeatureStore, names: Iterable[str]) -> dict[str, bytes]:
    return {name: inside(store.path, name).read_bytes() for name in names}


def _names(store: FeatureStore, parts: Mapping[str, _Part]) -> set[str]:
    """Return the names of all that makes a store, whether it was sent now or before."""
    names = manifest.names(store.path) | parts.keys()
    for part in parts.values():
        names |= part.receipt.digests().keys()
    return names


def _remove_all_but(bucket: Bucket, valid: set[str]) -> None:
    """Remove what the folders of a store have no more: purged rows, old copies and answers."""
    others = bucket.names() - valid
    bucket.remove(name for name in others if folder_of(name) in TRAVELLING)


def _check(objects: Mapping[str, bytes], digests: Mapping[str, str], of: str) -> None:
    """Raise CorruptStoreError where an object's sha256 is not the one that it must have."""
    for name, digest in digests.items():
        if sha256(objects[name]) != digest:
            raise CorruptStoreError(f"{name} does not fit its checksum in {of}.")
