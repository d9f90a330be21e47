"""What stands for patients, studies, series and paths in a store: keyed pseudonyms.

The key lies beside the store, never in it. Identifiers are hashed; a path is encrypted folder by
folder, so that whoever has the key, and nobody else, finds the files again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from stores._disk import hard_link, make_folder, sync_folder, writing
from stores.contents import FEATURES, TOP_FILES
from stores.errors import ConfigError
from stores.features import stored_key_check
from stores.slices import with_column
from stores.storage import storage_of

KEY_BYTES = 32
_MOST_KEY_BYTES = 2**10
# Stands before each hidden folder or file name.
HIDDEN = "~"
# Names of folders and files that are met again and again, one folder after the other.
_REMEMBERED = 2**12
# Paths that Python holds at a time.
_AT_ONCE = 2**12
_ENCODING = ("utf-8", "surrogatepass")


def pseudonym(key: bytes, kind: str, raw: str) -> str:
    """Return the keyed hash that stands for an identifier: HMAC-SHA256 of `kind:raw`, 16 hex.

    kind: patient, study, series, instance, or `tag:` and a DICOM keyword.
    """
    message = f"{kind}:{raw}".encode(*_ENCODING)
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:16]


@dataclass(frozen=True)
class Names:
    """What a store calls patients, studies, series, tags and paths; its key is read at first use.

    paths: whether it hides paths or keeps them (`data.paths`). key: of a store that is not there.
    """

    store: Path
    paths: Literal["hide", "keep"] = "hide"
    key: bytes | None = None
    _loaded: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def _load_key(self) -> bytes:
        """Return the key, which is read, or made, once. Raises ConfigError (see `load_key`)."""
        if not self._loaded:
            self._loaded.append(self.key or load_key(self.store))
        return self._loaded[0]

    @property
    def has_key(self) -> bool:
        """Whether the key lies where it is looked for."""
        return _key_path(self.store).is_file()

    def pseudonym(self, kind: str, raw: str) -> str:
        """Return what stands for an identifier of a kind."""
        return pseudonym(self._load_key(), kind, raw)

    def shown(self, path: str) -> str:
        """Return a path as the store and its results may show it."""
        return hide_path(self._load_key(), path) if self.paths == "hide" else path

    def in_message(self, path: str, row: int) -> str:
        """Return how a message names a slice: by its path only where the store keeps paths."""
        return repr(path) if self.paths == "keep" else f"row {row}"

    def revealed(self, slices: pa.Table) -> pa.Table:
        """Return a slice or file table with the real paths, for the user's own eyes."""
        return relabelled(slices, functools.partial(reveal_path, self._load_key()))


# --- paths -------------------------------------------------------------------------------------


def hide_path(key: bytes, path: str) -> str:
    """Return a relative path with each folder and file name encrypted; hidden ones stay.

    Equal names become equal ones (AES-SIV, RFC 5297), so that folders still hold their files.
    """
    if not path:
        return path
    names = [_hidden(key, name) for name in path.split("/")]
    return "/".join(names)


def reveal_path(key: bytes, path: str) -> str:
    """Return what `hide_path` was given; names that this key did not hide stay."""
    return "/".join(_revealed(key, name) for name in path.split("/"))


def relabelled(table: pa.Table, label: Callable[[str], str]) -> pa.Table:
    """Return a slice or file table with label(path) for each path."""
    paths = table["path"].fill_null("")  # of a table that lacks them
    chunks = []
    # Some at a time: Python's take ten times the room.
    for start in range(0, len(paths), _AT_ONCE):
        some = paths.slice(start, _AT_ONCE).combine_chunks()
        chunks.append(_relabelled(some, label))
    return with_column(table, "path", pa.chunked_array(chunks, pa.string()))


def _relabelled(paths: pa.Array, label: Callable[[str], str]) -> pa.Array:
    encoded = paths.dictionary_encode()  # the frames of a file have one
    names = pa.array(map(label, encoded.dictionary.to_pylist()), pa.string())
    return names.take(encoded.indices)


@functools.lru_cache(maxsize=_REMEMBERED)
def _hidden(key: bytes, name: str) -> str:
    """Return a folder's or file's name encrypted; one that this key has hidden stays."""
    if _revealed(key, name) != name:
        return name
    sealed = _cipher(key).aead.encrypt(name.encode(*_ENCODING), None)
    return HIDDEN + base64.urlsafe_b64encode(sealed).decode("ascii").rstrip("=")


@functools.lru_cache(maxsize=_REMEMBERED)
def _revealed(key: bytes, name: str) -> str:
    """Return the name that was encrypted; one that this key has not hidden stays."""
    if not name.startswith(HIDDEN):
        return name
    cipher = _cipher(key)
    try:
        text = name[len(HIDDEN) :]
        padding = "=" * (-len(text) % 4)  # which names do without
        sealed = base64.urlsafe_b64decode(text + padding)
        return str(cipher.aead.decrypt(sealed, None), *_ENCODING)
    except (binascii.Error, ValueError, cipher.invalid):  # a file that is really called so
        return name


@dataclass(frozen=True)
class _Cipher:
    """What encrypts and decrypts names (AES-SIV), and the error of one sealed by another key."""

    aead: Any
    invalid: type[Exception]


@functools.lru_cache(maxsize=8)
def _cipher(key: bytes) -> _Cipher:
    # Imported where there is a path to hide: an answer on file has none.
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    return _Cipher(AESSIV(hmac.new(key, b"path", hashlib.sha256).digest()), InvalidTag)


# --- the key -----------------------------------------------------------------------------------


def load_key(store: Path) -> bytes:
    """Return the key of a store's pseudonyms: the 32 bytes in the file `<store>.key` beside it.

    It is made on first use, where nothing of a store is there yet. Raises ConfigError where the
    key of a store is not there, is no key, or is another store's: by a new one its patients would
    be strangers, and those who were withdrawn would come back.
    """
    path = _key_path(store)
    if not path.exists():
        if is_begun(store):
            raise ConfigError(
                f"The store {storage_of(store).place!r} has lost its key {str(path)!r}, without "
                "which labels by path, patient, study or series do not join. Put the key back, or "
                "make the store anew."
            )
        _make_key(path)
    key = _read_key(path)
    _refuse_foreign(store, path, key)
    return key


def drop_key(store: Path) -> None:
    """Remove the key of a store that was not made after all."""
    if not is_begun(store):
        _key_path(store).unlink(missing_ok=True)


def key_check(key: bytes) -> str:
    """Return what a store keeps to know its key again, and from which no key can be found."""
    return pseudonym(key, "key", "radprobe")


def is_begun(store: Path) -> bool:
    """Return whether there is anything of a store in a folder, its recipe or not."""
    # Not what is there while a store of object storage is made, or claimed: empty folders.
    return any((store / name).is_file() for name in TOP_FILES) or (store / FEATURES).is_dir()


def _read_key(path: Path) -> bytes:
    # Whoever brought the store along brought this too: it may be a pipe, or have no end.
    is_small = path.is_file() and path.stat().st_size <= _MOST_KEY_BYTES
    text = path.read_bytes().strip() if is_small else b""
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"The key {str(path)!r} must be a file of {2 * KEY_BYTES} hexadecimal digits. Got what "
            "is none, or too few or many of them: put back the one that was."
        )
    return key


def _refuse_foreign(store: Path, path: Path, key: bytes) -> None:
    """Raise ConfigError where a store was made by another key."""
    check = stored_key_check(store)
    # As bytes: what a stranger's store says may be any text.
    expected = key_check(key).encode()
    if check is not None and not hmac.compare_digest(check.encode(*_ENCODING), expected):
        raise ConfigError(
            f"The key {str(path)!r} is not the one that the store {storage_of(store).place!r} was "
            "made with: by it, every patient would be another, and whoever was withdrawn would "
            "come back. Put back the one that was."
        )


def _key_path(store: Path) -> Path:
    return store.with_name(store.name + ".key")


def _make_key(path: Path) -> None:
    """Make a key that only its owner reads; where another process is first, its key counts."""
    with writing(path):
        make_folder(path.parent)
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        # Linked once it is whole: whoever finds the name reads all of it, and a link, unlike a
        # rename, never replaces the key of a process that was first.
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
                file.flush()
                # On the disk before any store is made by it: a store outlives no key.
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                hard_link(fresh, path)
        finally:
            fresh.unlink()
        sync_folder(path.parent)
