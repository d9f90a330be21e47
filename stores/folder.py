"""A store whose folder holds all of it: the backend of a local or shared file system."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stores import manifest
from stores._disk import (
    below,
    entries_of,
    link_new,
    remove_folder,
    status_of,
    sync_folder,
    sync_folders,
    write_atomic,
    writing,
)
from stores.claims import Holder
from stores.errors import REPAIR, ClaimedError, CorruptStoreError, OccupiedError
from stores.inside import inside, removable


def linked_place(folder: Path) -> Path:
    """Return where a store's folder is: a store as a whole may be a link, which is not replaced."""
    return folder.resolve() if folder.is_symlink() else folder


class LocalFolder:
    """A folder with every file of its store; see `stores.storage.Storage` for the contract.

    Any number of processes may write at a time: their claims, part by part, are files too.
    """

    shareable = True
    dates_commits = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder, as people are told of it."""
        return str(self.folder)

    # --- who writes ------------------------------------------------------------------------

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Do nothing: parts are claimed one by one, and no process needs the whole."""
        yield

    def writer(self) -> Holder | None:
        """Return None: there is no one writer."""
        return None

    def check_shareable(self) -> None:
        """Do nothing: the work may be shared."""

    def check_writable(self) -> None:
        """Do nothing: the file system itself refuses what is not to be written."""

    # --- what is there ---------------------------------------------------------------------

    def refresh(self, *, anew: bool = False) -> None:
        """Do nothing: the folder is what there is."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        # Put together as text: this is asked of every chunk of every part.
        status = status_of(f"{self.folder}/{name}")
        return None if status is None else status.st_size

    def names(self) -> set[str]:
        """Return the names of all files, whoever they are of."""
        return self.names_in("")

    def names_in(self, folder: str) -> set[str]:
        """Return the names of all files below a folder of the store.

        Raises CorruptStoreError where folders are nested deeper than a store's.
        """
        files = (path for path in below(self.folder / folder) if path.is_file())
        return {path.relative_to(self.folder).as_posix() for path in files}

    def fetch(self, name: str, digest: str) -> None:
        """Raise CorruptStoreError: what is not in the folder is nowhere."""
        raise CorruptStoreError(f"{self.folder / name} is missing. {REPAIR}")

    @contextlib.contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[None]:
        """Do nothing: the files are here, or nowhere."""
        yield

    def fetch_folder(self, folder: str) -> None:
        """Do nothing: the files are here, or nowhere."""

    # --- writing ---------------------------------------------------------------------------

    def adopt(self, built: Path) -> None:
        """Rename a store that was built beside the folder to its place.

        The place may be an empty folder, or nothing. Raises OccupiedError.
        """
        place = linked_place(self.folder)
        with writing(self.folder):
            try:
                built.replace(place)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
                    message = f"{self.folder} was filled by another process meanwhile."
                    raise OccupiedError(message) from None
                raise
            sync_folder(place.parent)

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replace files of the manifest, all or none. One process at a time may do this."""
        manifest.replace(self.folder, files)

    def restore(self, names: Iterable[str]) -> None:
        """Do nothing: what was mended in the folder is mended."""

    def commit(
        self, receipt: str, data: bytes, chunks: Mapping[str, str], *, over: bool = False
    ) -> None:
        """Put the receipt of a part whose chunks are in the folder and on the disk: the commit.

        Raises ClaimedError where a receipt is there, unless it is to be written over.
        """
        path = inside(self.folder, receipt)
        if over:
            write_atomic(path, data)
        elif not link_new(path, data):
            raise ClaimedError(f"{path} was committed by another process.")

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of some files that are there."""
        paths = [removable(self.folder, name) for name in names]
        with writing(self.folder):
            for path in paths:
                path.unlink(missing_ok=True)
        sync_folders(path.parent for path in paths)

    def clear(self, folder: str) -> None:
        """Remove all that is in a folder of the store, which stays."""
        place = inside(self.folder, folder)
        for entry in entries_of(place):
            path = place / entry.name
            # A link goes, and what it leads to stays.
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        sync_folders([place])

    def publish(self) -> None:
        """Do nothing: what was computed is where the store is."""
