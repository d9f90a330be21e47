"""The files of a store that nothing can compute again: checked, kept twice, replaced together.

`manifest.json`, sealed, names the sha256 of each; `copies/<sha256>` holds the same bytes again.
Replacing any of them: new copies first, then the manifest (that is the commit), then the files
themselves. A reader takes a file whose content fits the manifest, or else its copy, so that it
never sees half a change; a crash in the middle and a flipped bit are mended in the same way. A
crash before the manifest leaves the old state and copies that nothing names, one after it the new
state and files that do not fit: `mend` removes the ones and writes the others. Whoever is to write
mends first; plain Zarr and Parquet readers, who know nothing of copies, read the files alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from stores._disk import (
    MOST_BYTES,
    MOST_TABLE_BYTES,
    TEMPORARY,
    below,
    entries_of,
    file_sha256,
    is_digest,
    make_folder,
    seal,
    sha256,
    status_of,
    sync_folder,
    unseal,
    write_atomic,
)
from stores.contents import COPIES, FEATURES, MANIFEST, TOP_FILES, folder_of
from stores.errors import CorruptStoreError
from stores.inside import inside, is_store_name, removable

_TRIES = 5
_REPAIR = "Run `radprobe verify --repair` on the store."


def digests(root: Path) -> dict[str, str]:
    """Return name -> sha256 of the files. Raises CorruptStoreError for a broken manifest."""
    path = root / MANIFEST
    try:
        status = path.stat()
        return _digests(path, status.st_mtime_ns, status.st_ino, status.st_size)
    except FileNotFoundError:
        if not (root / COPIES).is_dir():
            raise CorruptStoreError(
                f"{root} has no {MANIFEST} and no {COPIES}/: it is no store of this version. "
                "Extract into a new folder."
            ) from None
        raise CorruptStoreError(f"{path} is missing. {_REPAIR}") from None
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{error} {_REPAIR}") from None


@functools.lru_cache(maxsize=16)
def _digests(path: Path, *stamp: int) -> dict[str, str]:
    """Read the manifest; `stamp` tells one from the next, since each is a new file."""
    return _checked(unseal(path), path)


def parse(text: bytes, where: str) -> dict[str, str]:
    """Return name -> sha256 of the files that a manifest names. Raises CorruptStoreError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{where} is no manifest: {error}.") from None
    return _checked(document, where)


def _checked(document: object, where: object) -> dict[str, str]:
    """Return the files of a manifest, once each name is a store's and each digest is one.

    Both become paths, which whoever made the store may have chosen.
    """
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict):
        raise CorruptStoreError(f"{where} names no files.")
    for name, digest in files.items():
        sound = is_store_name(name) and is_digest(digest)
        # Its own file, or a copy of a file, it cannot name.
        if not sound or name == MANIFEST or folder_of(name) == COPIES:
            raise CorruptStoreError(f"{where} names {name!r}, which no store has.")
    return dict(files)


def look_again(root: Path) -> None:
    """Have a network file system say anew which manifest there is.

    It may answer `stat` from memory for a minute, but asks its server when a file is opened.
    """
    with contextlib.suppress(OSError), (root / MANIFEST).open("rb"):
        pass


def version(root: Path) -> str:
    """Return the sha256 of the manifest: equal where every file it names is equal."""
    return file_sha256(root / MANIFEST)


def load(root: Path, name: str) -> bytes:
    """Return a file's bytes as the manifest has them, from its copy where it must be.

    Raises CorruptStoreError where both are lost.
    """
    for _ in range(_TRIES):  # again where another process replaced it meanwhile
        expected = digests(root).get(name, "")
        for where in (name, copy_name(expected)) if expected else ():
            path = inside(root, where)
            # What is large is compared before memory is asked for it.
            if not _fits_in_memory(path) and not has(path, expected):
                continue
            data = path.read_bytes() if path.is_file() else None
            if data is not None and sha256(data) == expected:
                return data
    raise CorruptStoreError(f"{root / name} and its copy are both missing or damaged. {_REPAIR}")


def load_all(root: Path) -> dict[str, bytes]:
    """Return name -> bytes of every file the manifest names. Raises as `load` does."""
    return {name: load(root, name) for name in digests(root)}


def copy_name(digest: str) -> str:
    """Return where the copy of a file is within its store, by the file's sha256."""
    return f"{COPIES}/{digest}"


def copies(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the copies (name -> bytes) of files (name -> bytes)."""
    return {copy_name(sha256(data)): data for data in files.values()}


def names(root: Path) -> set[str]:
    """Return the names of the manifest, of every file it names, and of their copies."""
    files = digests(root)
    return {MANIFEST, *files, *map(copy_name, files.values())}


def begin(root: Path, files: Mapping[str, bytes]) -> None:
    """Give a new store its manifest and copies; the files themselves are already there."""
    (root / COPIES).mkdir()
    _copy(root, files)
    write_atomic(root / MANIFEST, text(_digests_of(files)))


def replace(root: Path, files: Mapping[str, bytes]) -> None:
    """Replace files, all or none. One process at a time may do this."""
    replaced = text_with(root, files)
    _copy(root, files)  # first: the manifest names nothing that has no copy
    write_atomic(root / MANIFEST, replaced)  # the commit
    mend(root)  # the files still have the old content, and the old copies go


def mend(root: Path) -> list[str]:
    """Bring files and copies to what the manifest says; return what had to be mended.

    Raises CorruptStoreError where a file and its copy are both lost. One process at a time.
    """
    expected = digests(root)
    mended = []
    for name, digest in expected.items():
        for place in (name, copy_name(digest)):
            path = inside(root, place)
            if not has(path, digest):
                data = load(root, name)
                make_folder(path.parent)  # a loss of power may have taken it too
                write_atomic(path, data)
                mended.append(place)
    unnamed = unnamed_copies(root)
    for copy in unnamed:
        removable(root, copy).unlink()
    if unnamed:  # they may be of a table that a purge has emptied
        sync_folder(root / COPIES)
    return mended


def is_mended(root: Path) -> bool:
    """Return whether every file and copy is as the manifest has it, and no copy is too many.

    It reads each of them, and needs no claim: somebody may be writing them right now.
    """
    expected = digests(root)
    for name, digest in expected.items():
        for place in (name, copy_name(digest)):
            if not has(inside(root, place), digest):
                return False
    return not unnamed_copies(root)


def unnamed_copies(root: Path) -> list[str]:
    """Return the names of the copies that the manifest does not name, whole ones alone."""
    expected = set(digests(root).values())
    folder = inside(root, COPIES)
    unnamed = []
    for entry in entries_of(folder):
        path = folder / entry.name
        being_written = path.name.startswith(TEMPORARY)
        is_file = path.is_file() or path.is_symlink()
        if is_file and not being_written and path.name not in expected:
            unnamed.append(copy_name(path.name))
    return unnamed


def rebuild(root: Path) -> None:
    """Write a lost manifest anew from the files whose copies bear them out.

    Raises CorruptStoreError where a file has no copy of the same content.
    """
    paths = [root / name for name in TOP_FILES if name != MANIFEST]
    paths += sorted(path for path in below(root / FEATURES) if path.name == "zarr.json")
    files = {}
    unproven = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        inside(root, name)
        if not path.is_file():
            unproven.append(name)
            continue
        digest = files[name] = file_sha256(path)
        if not has(root / copy_name(digest), digest):
            unproven.append(name)
    if unproven:
        raise CorruptStoreError(
            f"{root / MANIFEST} is lost, and so are the copies of {', '.join(unproven)}: nothing "
            "says any more what they should hold. Take them from a backup."
        )
    write_atomic(root / MANIFEST, text(files))


def _copy(root: Path, files: Mapping[str, bytes]) -> None:
    for name, data in copies(files).items():
        path = inside(root, name)
        if not has(path, path.name):  # it may be the copy of another file too
            write_atomic(path, data)


def has(path: Path, digest: str) -> bool:
    """Return whether a file of a manifest, or a copy of one, has the sha256 that it must have."""
    try:
        # Of a file with holes, of which nothing is on the disk, too many bytes may be read.
        readable = path.is_file() and path.stat().st_size <= MOST_TABLE_BYTES
        return readable and file_sha256(path) == digest
    except FileNotFoundError:  # another process mends, and was quicker
        return False


def _fits_in_memory(path: Path) -> bool:
    status = status_of(path)
    return status is None or status.st_size <= MOST_BYTES


def text(files: Mapping[str, str]) -> bytes:
    """Return the manifest of files (name -> sha256)."""
    return seal({"files": dict(files)})


def text_with(root: Path, files: Mapping[str, bytes]) -> bytes:
    """Return the manifest as it is once some files (name -> bytes) are replaced."""
    return text(digests(root) | _digests_of(files))


def _digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: sha256(data) for name, data in files.items()}
