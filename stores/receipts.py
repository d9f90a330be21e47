"""The receipts of a store's parts: which can be believed, and why others cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stores._disk import status_of, unseal
from stores.contents import chunk_file
from stores.errors import CorruptStoreError
from stores.receipt import Receipt, receipt_name
from stores.storage import Storage

Stamp = tuple[int, int, int]  # time, inode and size of a receipt


@dataclass(frozen=True)
class Receipts:
    """The receipts of a store whose recipe has the digest `recipe`."""

    storage: Storage
    recipe: str
    _stamps: dict[int, Stamp] = field(default_factory=dict)

    def path(self, index: int) -> Path:
        """Return where a part's receipt is, or would be."""
        return self.storage.folder / receipt_name(index)

    def read(self, index: int) -> Receipt | None:
        """Return a part's receipt where it can be believed, else None.

        It must be whole (its own seal), of this recipe, and its chunk files must be there in
        their recorded sizes; `verify` compares their content too.
        """
        receipt = self._examine(index)
        return None if isinstance(receipt, str) else receipt

    def doubt(self, index: int) -> str | None:
        """Return why a part's receipt is not believed; None where it is."""
        receipt = self._examine(index)
        return receipt if isinstance(receipt, str) else None

    def believed(self, index: int) -> Stamp | None:
        """Return what tells a part's receipt from any other, if it is believed; else None.

        A receipt is examined once and then believed for as long as it is the same file.
        """
        status = status_of(self.path(index))
        if status is None:
            return None
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if self._stamps.get(index) != stamp:
            if self.read(index) is None:
                return None
            self._stamps[index] = stamp
        return stamp

    def _examine(self, index: int) -> Receipt | str:
        """Return a receipt, or what is wrong with it."""
        try:
            receipt = Receipt.parse(unseal(self.path(index)))
        except FileNotFoundError:
            return "it was never embedded, or is to be embedded again"
        except CorruptStoreError:
            return "its receipt is damaged"
        if receipt.recipe != self.recipe or receipt.part != index:
            return "its receipt is of another recipe or part"
        for name, record in receipt.chunks.items():
            if self.storage.size(chunk_file(name)) != record.bytes:
                return f"{name} is missing or has another size"
        return receipt
