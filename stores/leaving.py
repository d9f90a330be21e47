"""What is written outside of a store: never with a patient who was withdrawn while it was made.

A purge goes through the store, and finds nothing that lies elsewhere. So whoever writes a report, a
model, predictions or an export looks once more when all of it is there. A withdrawal that began
before is seen then, and what was written goes; one that begins later finds it there, and says that
such files are out of its reach.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from stores import manifest
from stores.errors import StaleTablesError
from stores.features import FeatureStore


@contextlib.contextmanager
def leaving(*stores: FeatureStore) -> Iterator[list[Path]]:
    """Yield a list for what is written of some stores elsewhere: files, and folders of its own.

    It begins before anything of the stores is read. Where a patient was withdrawn or purged until
    it ends, what is on the list is removed, and StaleTablesError says so, also in the place of an
    error: of files that a purge takes away, whoever reads them says that they are missing.
    """
    before = [(store, store.withdrawn) for store in stores]
    written: list[Path] = []
    try:
        yield written
    finally:
        for store, withdrawn in before:
            store.storage.refresh()  # what others have done where the store is
            manifest.look_again(store.path)
            if store.withdrawn.is_beyond(withdrawn):
                _remove(written)
                raise StaleTablesError(
                    f"A patient was withdrawn from {store.place} while this was made, so that it "
                    "is not kept. Run the same command again."
                )


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path.resolve())  # what was written is where a link leads to
        else:
            path.unlink(missing_ok=True)
