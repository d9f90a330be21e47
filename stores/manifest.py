"""The files of a store that nothing can compute again: checked, kept twice, replaced together.

`manifest.json`, sealed, names the sha256 of each; `copies/<sha256>` holds the same bytes again.
Replacing any of them: new copies first, then the manifest (that is the commit), then the files
themselves. A reader takes a file whose content fits the manifest, or else its copy, so that it
never sees half a change; a crash in the middle and a flipped bit are mended in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from stores._disk import TEMPORARY, file_sha256, seal, sha256, unseal, write_atomic
from stores.errors import CorruptStoreError

MANIFEST, COPIES = "manifest.json", "copies"
_TRIES = 5


def digests(root: Path) -> dict[str, str]:
    """Return name -> sha256 of the kept files. Raises CorruptStoreError for a broken manifest."""
    path = root / MANIFEST
    try:
        about = path.stat()
        return _digests(path, about.st_mtime_ns, about.st_ino, about.st_size)
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
    return dict(unseal(path)["files"])


def version(root: Path) -> str:
    """Return the sha256 of the manifest: equal where every kept file is equal."""
    return file_sha256(root / MANIFEST)


_REPAIR = "Run `radprobe verify --repair` on the store."


def load(root: Path, name: str) -> bytes:
    """Return a kept file's bytes as the manifest has them, from its copy where it must be."""
    for _ in range(_TRIES):  # again where another process replaced it meanwhile
        expected = digests(root).get(name, "")
        for path in (root / name, root / COPIES / expected):
            data = path.read_bytes() if expected and path.is_file() else None
            if data is not None and sha256(data) == expected:
                return data
    raise CorruptStoreError(f"{root / name} and its copy are both missing or damaged. {_REPAIR}")


def begin(root: Path, names: Mapping[str, bytes]) -> None:
    """Give a new store its manifest and copies; `names` are files that are already there."""
    (root / COPIES).mkdir()
    _copy(root, names)
    write_atomic(root / MANIFEST, text({name: sha256(data) for name, data in names.items()}))


def replace(root: Path, new: Mapping[str, bytes]) -> None:
    """Replace kept files, all or none. One process at a time may do this."""
    files = digests(root) | {name: sha256(data) for name, data in new.items()}
    _copy(root, new)
    write_atomic(root / MANIFEST, text(files))
    settle(root)


def settle(root: Path) -> list[str]:
    """Bring files and copies to what the manifest says; return what had to be mended.

    Raises CorruptStoreError where a file and its copy are both lost. One process at a time.
    """
    files, mended = digests(root), []
    for name, expected in files.items():
        copy = root / COPIES / expected
        for path in (root / name, copy):
            if not _is(path, expected):
                write_atomic(path, load(root, name))
                mended.append(path.relative_to(root).as_posix())
    for path in (root / COPIES).iterdir():
        if path.name not in files.values() and not path.name.startswith(TEMPORARY):
            path.unlink()
    return mended


def rebuild(root: Path) -> None:
    """Write a lost manifest anew from the files whose copies bear them out."""
    names = ["recipe.json", "slices.parquet", "files.parquet", "withdrawn.json"]
    names += [
        p.relative_to(root).as_posix() for p in sorted((root / "features.zarr").rglob("zarr.json"))
    ]
    files = {name: file_sha256(root / name) for name in names}
    unproven = [name for name, digest in files.items() if not _is(root / COPIES / digest, digest)]
    if unproven:
        raise CorruptStoreError(
            f"{root / MANIFEST} is lost, and so are the copies of {', '.join(unproven)}: nothing "
            "says any more what they should hold. Take them from a backup."
        )
    write_atomic(root / MANIFEST, text(files))


def _copy(root: Path, new: Mapping[str, bytes]) -> None:
    for data in new.values():
        path = root / COPIES / sha256(data)
        if not _is(path, path.name):
            write_atomic(path, data)


def _is(path: Path, expected: str) -> bool:
    return path.is_file() and file_sha256(path) == expected


def text(files: Mapping[str, str]) -> bytes:
    """Return the manifest of files (name -> sha256)."""
    return seal({"files": dict(files)})
