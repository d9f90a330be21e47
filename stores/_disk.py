"""Writes that are either wholly there or not there: temporary name, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stores._process import has_ended, own_birth, place
from stores.errors import CorruptStoreError, UnwritableError

TEMPORARY = ".tmp-"
CHECKSUM = ".sha256"
# A temporary file of another host is an orphan when it is this old.
ORPHAN_AFTER_S = 3600.0
# Documents, answers and claims are read whole: none of ours comes near this.
MOST_BYTES = 2**28
# A table has a row a unit, a slice or a mask: that of 50 million slices.
MOST_TABLE_BYTES = 2**33
# Folders that lie in each other below a store: ours are ten, where rows have many axes. Whatever
# goes through more of them runs out of stack, or of files that may be open.
MOST_NESTED = 32
# No network comes near this. Of a file with holes, of which nothing is on the disk, more might be
# read for hours.
MOST_CHECKED = 2**36
# How often a file and its checksum are written, or read, where another process writes them too.
_TRIES = 5
_MOMENT_S = 0.05

# With this indent, only a key of the document itself stands behind one space.
_EMPTY = b'\n "seal": ""'
_SEAL = re.compile(rb'\n "seal": "([0-9a-f]{64})"')
_DIGEST = re.compile(r"[0-9a-f]{64}")

_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not grow so large here (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "the disk reports an input/output error",
    errno.EEXIST: "there is something else in its place",
    errno.EISDIR: "there is a folder in the place of a file",
    errno.ENOTDIR: "there is a file in the place of a folder",
    errno.ELOOP: "there is a link that leads to itself",
}

# Nothing is at a path; a file stands in the place of its folder; a link leads to itself.
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_DENIED = (errno.EACCES, errno.EPERM)
# What sockets, and devices that are not there, are refused with.
_NO_FILES = (errno.ENXIO, errno.ENODEV)
# What a link is refused with where there are none at all.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in words what a disk refuses: raises UnwritableError for a full disk and its like."""
    try:
        yield
    except OSError as error:
        trouble = _TROUBLE.get(error.errno or 0)
        if trouble is None or isinstance(error, UnwritableError):
            raise
        raise UnwritableError(
            f"{path} cannot be written: {trouble}. What was committed is kept; mend that and run "
            "the same command again."
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a crash leaves the old file or the new one, never a half."""
    temporary = path.with_name(temporary_name(path.name))
    with writing(path):
        write_new(temporary, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def link_new(path: Path, data: bytes) -> bool:
    """Put `data` at `path` whole, where nothing is yet; False where something is.

    Unlike a rename, a link never replaces what a quicker process put there.
    """
    temporary = path.with_name(temporary_name(path.name))
    with writing(path):
        write_new(temporary, data)
        try:
            hard_link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


def write_checked(path: Path, data: bytes) -> None:
    """Put `data` at `path`, and its checksum (as `sha256sum` writes it) beside it first.

    A crash in between leaves a file that does not fit, which nobody reads and `verify` finds. Of
    two processes that write at once, whoever ends last leaves a file and a checksum that fit.
    """
    checksum = path.with_name(path.name + CHECKSUM)
    for _ in range(_TRIES):
        write_atomic(checksum, checksum_text(path.name, sha256(data)))
        write_atomic(path, data)
        # Another process may have put its checksum, or its file, between these two.
        if fits_checksum(path):
            return


def fits_checksum(path: Path) -> bool | None:
    """Return whether a file fits the checksum beside it; None where there is no checksum.

    A file that is not there fits none, nor does a link.
    """
    try:
        text = read_file(path.with_name(path.name + CHECKSUM))
    except FileNotFoundError:
        return None
    except (OSError, CorruptStoreError):
        return False
    is_file = path.is_file() and not path.is_symlink()
    if not is_file or path.stat().st_size > MOST_CHECKED:
        return False
    return text == checksum_text(path.name, file_sha256(path))


def read_checked(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's bytes, held against the checksum beside it.

    A file without a checksum is believed, as versions before wrote them. Raises FileNotFoundError,
    and CorruptStoreError where the two do not fit.
    """
    checksum = path.with_name(path.name + CHECKSUM)
    status = status_of(path)
    # What is large is compared before memory is asked for it.
    if status is not None and status.st_size > MOST_BYTES and not fits_checksum(path):
        raise CorruptStoreError(
            f"{path} is too large for what it is, or does not fit its checksum."
        )
    for attempt in range(_TRIES):
        if attempt:  # another process may be between the two
            time.sleep(_MOMENT_S)
        data = read_file(path, most)
        try:
            text = read_file(checksum)
        except FileNotFoundError:
            return data
        if text == checksum_text(path.name, sha256(data)):
            return data
    raise CorruptStoreError(
        f"{path} does not fit the checksum beside it: bits flipped. `radprobe verify --repair` "
        "removes it, and it is computed again."
    )


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file. Raises FileNotFoundError.

    Raises CorruptStoreError for a link, which may lead anywhere, for a pipe or a device, which
    might never end, and for a file of more than so many bytes: nobody knows who made the store.
    """
    # Without O_NONBLOCK, opening a pipe waits for whoever may write to it.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = f"{path} is a link. Put what it leads to in its place."
            raise CorruptStoreError(message) from None
        if error.errno in _NO_FILES:
            raise CorruptStoreError(f"{path} is no file as a store has it.") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise CorruptStoreError(f"{path} is no file as a store has it.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def status_of(path: Path | str) -> os.stat_result | None:
    """Return the status of what is at a path; None where nothing can be: no file, no folder."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in _NOWHERE:
            return None
        raise


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder; nothing where there is none.

    Raises CorruptStoreError where it may not be looked into: what is not seen is not nothing.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in _NOWHERE:
            return []
        if error.errno not in _DENIED:
            raise
        raise CorruptStoreError(
            f"The folder {folder} may not be looked into: permission is denied, so that nobody "
            "knows what it holds. Make it readable for you (`chmod u+rx`), or ask whose it is."
        ) from None


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return what is in a folder under names that fit, sorted: nothing that is being written.

    Raises CorruptStoreError as `entries_of` does.
    """
    names = [entry.name for entry in entries_of(folder) if not entry.name.startswith(TEMPORARY)]
    return sorted(folder / name for name in fnmatch.filter(names, pattern))


def below(folder: Path) -> Iterator[Path]:
    """Yield all that is below a folder, at any depth; links as such. Nothing where there is none.

    Raises CorruptStoreError where folders are nested deeper than those of a store, and where one
    may not be looked into.
    """
    pending = [(folder, 0)]
    while pending:
        place, depth = pending.pop()
        if depth > MOST_NESTED:
            top = folder.joinpath(*place.relative_to(folder).parts[:2])
            raise CorruptStoreError(
                f"Below {str(top)!r} folders lie more than {MOST_NESTED} deep in each other, which "
                "no store has. Remove them (`rm -r`), or take the store from where it came, again."
            )
        for entry in entries_of(place):
            path = place / entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append((path, depth + 1))
            yield path


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it. Raises CorruptStoreError as `below` does."""
    for _ in below(folder):
        pass  # before anything of it goes
    shutil.rmtree(folder)


def checksum_text(name: str, digest: str) -> bytes:
    """Return what stands in the file beside another that has its sha256."""
    return f"{digest}  {name}\n".encode()


def write_new(path: Path, *pieces: bytes | memoryview, force: bool = True) -> None:
    """Write a file that is not there yet; nothing is left if that fails.

    force: onto the disk, before this returns.
    """
    try:
        with open(path, "xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            if force:
                os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):  # the first error tells more
            path.unlink()
        raise


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk. Raises UnwritableError on a full one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with writing(path):  # the error of an open file names none
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, where the system can."""
    with contextlib.suppress(PermissionError):  # some systems refuse to open a folder
        sync(path)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are not there; their names are on the disk then.

    Raises UnwritableError where something else is there.
    """
    new = list(itertools.takewhile(lambda each: not each.exists(), [path, *path.parents]))
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    for each in new:
        sync_folder(each.parent)


def sync_folders(paths: Iterable[Path]) -> None:
    """Force the entries of those of some folders that are there, so that what went stays gone."""
    for path in sorted(set(paths)):
        with contextlib.suppress(FileNotFoundError):
            sync_folder(path)


def hard_link(source: Path, path: Path) -> None:
    """Give a file a second name, which nobody has yet.

    Raises FileExistsError, and UnwritableError where the file system has no hard links.
    """
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise UnwritableError(
            f"{path} cannot be made: the file system has no hard links (FAT, exFAT and some "
            "network mounts have none), by which processes that share a store stay apart. Put the "
            "store on another file system."
        ) from error


# --- temporary files -------------------------------------------------------------------------


def temporary_name(name: str) -> str:
    """Return a name nobody else uses, which tells whose it is."""
    owner = f"{place()}-{os.getpid()}-{own_birth()}"
    return f"{TEMPORARY}{owner}-{uuid.uuid4().hex[:12]}-{name}"


def is_orphan(path: Path) -> bool:
    """Return whether a temporary file's writer has ended, or was silent for too long."""
    match path.name.removeprefix(TEMPORARY).split("-", 4):
        case [here, pid, born, _, _] if here == place() and pid.isdecimal():
            ended = has_ended(int(pid), born)
            if ended is not None:
                return ended
    # Of another machine, container or user: its age alone tells.
    try:
        return is_silent(path, ORPHAN_AFTER_S)
    except FileNotFoundError:
        return False


def is_silent(path: Path, for_s: float) -> bool:
    """Return whether nobody has touched a file for so long. Raises FileNotFoundError.

    A time as far ahead is nobody's either, who is alive: it would stand for years.
    """
    return abs(time.time() - path.lstat().st_mtime) > for_s


def sweep_temporaries(paths: Iterable[Path]) -> list[Path]:
    """Remove those temporary files and folders whose writers are dead; return them."""
    orphans = [path for path in paths if is_orphan(path)]
    for path in orphans:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    sync_folders(path.parent for path in orphans)
    return orphans


# --- documents -------------------------------------------------------------------------------


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as readable JSON that carries its own checksum.

    `seal` is the sha256 of the file's bytes without the 64 digits of the seal itself.
    """
    unsealed = {**document, "seal": ""}
    text = json.dumps(unsealed, indent=1, sort_keys=True).encode() + b"\n"
    digest = sha256(text).encode()
    return text.replace(_EMPTY, b'\n "seal": "' + digest + b'"')


def unseal(path: Path) -> dict[str, Any]:
    """Read a sealed document. Raises CorruptStoreError where one of its bytes was altered."""
    data = read_file(path)
    digits = _SEAL.search(data)
    if digits is None:
        raise CorruptStoreError(f"{path} is not a sealed document.")
    unsealed = data[: digits.start(1)] + data[digits.end(1) :]
    if sha256(unsealed) != digits[1].decode():
        raise CorruptStoreError(f"{path} was altered: its content does not fit its seal.")
    # Whoever seals can seal anything: what it is of, its reader checks.
    try:
        document = dict(json.loads(data))
        del document["seal"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(f"{path} is no document of a store: {error!r}.") from None
    return document


def is_digest(text: object) -> bool:
    """Return whether something is a sha256 as hex: it names files, so nothing else may stand so."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def sha256(*pieces: bytes | memoryview) -> str:
    """Return the sha256 of bytes, one piece after the other, as hex."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
