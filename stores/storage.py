"""Where the files of a store are: the contract of a backend, and which one a place has.

1. A file is named as within the store: `parts/0000003.json`.
2. Whoever uses a store never asks which backend it has; what one of them cannot do, a property
   says (`shareable`, `dates_commits`).
3. What is read, is read as a file in `folder`. All small files are there; of chunks and networks,
   a mirror has those that were asked for, and `fetch` brings one more.
4. A file is there whole or not at all, and of several replaced together all are new or none.
5. `commit` is the one way a part comes into being: chunks first, the receipt last.
6. What was removed stays gone, a loss of power included.
7. A name that leads out of the store, by itself or by a link, is refused with CorruptStoreError.
8. What `check_writable` refuses is refused by every writing method too, but for `publish`: answers
   may be given by many.

Every backend passes the tests in `tests/stores/storage_tests.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from stores import manifest
from stores.claims import Holder
from stores.contents import MANIFEST
from stores.errors import ConfigError
from stores.folder import LocalFolder
from stores.mirror import MirroredBucket, url_of


class Storage(Protocol):
    """The files of one store.

    folder: those that are here, at their names; of a local store, all of them.
    """

    folder: Path

    @property
    def place(self) -> str:
        """Where the store is, as people are told: a folder, or a URL."""

    @property
    def shareable(self) -> bool:
        """Whether several processes may write at a time."""

    @property
    def dates_commits(self) -> bool:
        """Whether the time of a receipt's file is that of its commit."""

    # --- who writes ------------------------------------------------------------------------

    def occupied(self) -> AbstractContextManager[None]:
        """Be the one writer, where there may be one alone.

        Raises ClaimedError where another living process is.
        """

    def writer(self) -> Holder | None:
        """Return the one writer at work; None where none is, or where many may be."""

    def check_shareable(self) -> None:
        """Raise ConfigError where the work on the store cannot be shared among processes."""

    def check_writable(self) -> None:
        """Raise UnwritableError where this process is not to write, ClaimedError where no more."""

    # --- what is there ---------------------------------------------------------------------

    def refresh(self, *, anew: bool = False) -> None:
        """Bring the folder to what there is now; anew: whatever the folder has already."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""

    def names(self) -> set[str]:
        """Return the names of all files."""

    def fetch(self, name: str, digest: str) -> None:
        """Bring a file that the folder lacks, if its sha256 is the digest.

        Raises CorruptStoreError where it is another, or there is none.
        """

    def fetched(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """Have those of some files that exist in the folder for a while, sound or not."""

    def fetch_folder(self, folder: str) -> None:
        """Bring those files below a folder of the store that `folder` lacks."""

    # --- writing ---------------------------------------------------------------------------

    def adopt(self, built: Path) -> None:
        """Make the store of no rows that was built in a folder beside this one's the store here.

        Raises OccupiedError where there is a store already.
        """

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replace files of the manifest, all or none. One process at a time may do this."""

    def restore(self, names: Iterable[str]) -> None:
        """Bring files that were mended in the folder to where the store is."""

    def commit(
        self, receipt: str, data: bytes, chunks: Mapping[str, str], *, over: bool = False
    ) -> None:
        """Commit a part whose chunks (name -> sha256) are in the folder and forced to disk.

        receipt, data: the receipt's name and bytes. Where this raises, the part does not exist.
        over: over a receipt that is there, as a purge does. Raises ClaimedError where another
        process has committed it.
        """

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of some files that are there."""

    def clear(self, folder: str) -> None:
        """Remove all that is in a folder of the store."""

    def publish(self) -> None:
        """Bring what was computed in the folder to where the store is."""


def mend(storage: Storage) -> list[str]:
    """Bring the manifest's files to what it says, wherever the store is; return what was mended.

    Raises CorruptStoreError where a file and its copy are both lost. One process at a time.
    """
    unnamed = manifest.unnamed_copies(storage.folder)
    mended = manifest.mend(storage.folder)
    if mended:
        storage.restore([*mended, MANIFEST])
    if unnamed:  # there too: a mirror would have them back
        storage.remove(unnamed)
    return mended


def storage_of(folder: Path) -> Storage:
    """Return the backend of the store that has its files in a folder, or will have.

    Raises ConfigError for a folder without a name, beside which a store's key cannot lie.
    """
    if folder.name in ("", ".."):  # `.`, `..` and what ends in them: called by the name it has
        folder = Path(os.path.abspath(folder))
    if not folder.name:
        raise ConfigError(f"A store must be a folder with a name. Got {str(folder)!r} instead.")
    return MirroredBucket.of(folder) or LocalFolder(folder)


def storage_at(place: Path | str) -> Storage:
    """Return the backend of the store at a folder or a URL, brought up to what is there now.

    Raises ConfigError where the URL cannot be reached.
    """
    url = url_of(place)
    return storage_of(Path(place)) if url is None else MirroredBucket.at(url)


def located(place: Path | str) -> Path:
    """Return the folder of a store at a folder or a URL, as `storage_at` has it."""
    return storage_at(place).folder
