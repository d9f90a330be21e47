"""The receipts of a store's parts: which can be believed, and why others cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stores._disk import seal, unseal, write_atomic
from stores.errors import CorruptStoreError
from stores.mirror import Mirror

Stamp = tuple[int, int, int]  # time, inode and size of a receipt


@dataclass(frozen=True)
class Receipts:
    """The receipts of the store at `root`, whose recipe has the digest `recipe`.

    mirror: of a store at a URL: what it lists counts, not what is here of it.
    """

    root: Path
    recipe: str
    mirror: Mirror | None = None
    _stamps: dict[int, Stamp] = field(default_factory=dict)

    def path(self, index: int) -> Path:
        """Return where a part's receipt is, or would be."""
        return self.root / "parts" / f"{index:07d}.json"

    def write(self, index: int, receipt: Mapping[str, Any]) -> None:
        """Put a receipt in place: the commit."""
        write_atomic(self.path(index), seal(receipt))

    def read(self, index: int) -> dict[str, Any] | None:
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
        try:
            about = os.stat(self.path(index))
        except FileNotFoundError:
            return None
        stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
        if self._stamps.get(index) != stamp:
            if self.read(index) is None:
                return None
            self._stamps[index] = stamp
        return stamp

    def _examine(self, index: int) -> dict[str, Any] | str:
        """Return a receipt, or what is wrong with it."""
        try:
            receipt = unseal(self.path(index))
            if receipt["recipe"] != self.recipe or receipt["part"] != index:
                return "its receipt is of another recipe or part"
            for name, entry in receipt["chunks"].items():
                if self._size(f"features.zarr/{name}") != entry["bytes"]:
                    return f"{name} is missing or has another size"
        except FileNotFoundError:
            return "it was never embedded, or is to be embedded again"
        except (CorruptStoreError, KeyError, TypeError, AttributeError):
            return "its receipt is damaged"
        return receipt

    def _size(self, name: str) -> int:
        if self.mirror is not None:
            there = self.mirror.objects.get(name)
            return -1 if there is None else there.size
        try:
            return os.stat(f"{self.root}/{name}").st_size
        except FileNotFoundError:
            return -1
