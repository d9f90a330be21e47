"""How a part comes into being, in an order that a crash may cut anywhere.

1. Chunks under temporary names: what is left of them is swept, and read by nobody.
2. The chunks forced to disk, then renamed: until the receipt, they are of no part.
3. The folders forced to disk, so that no receipt outlives the names of its chunks.
4. The receipt: the commit. A receipt on disk vouches for bytes that are on disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stores._disk import TEMPORARY, seal, sweep_temporaries, sync, sync_folder, writing
from stores._types import Values
from stores.arrays import StoredArray
from stores.claims import Claim
from stores.contents import OK, PARTS
from stores.errors import ClaimedError
from stores.layout import PartRange
from stores.receipt import ChunkRecord, Receipt, receipt_name
from stores.storage import Storage


@dataclass(frozen=True)
class PartWriter:
    """Writes parts of one store. arrays: all of them; recipe: the digest of the store's."""

    storage: Storage
    arrays: Mapping[str, StoredArray]
    recipe: str

    def write(
        self,
        part: PartRange,
        claim: Claim,
        values: Mapping[str, Values],
        notes: Mapping[str, Any],
    ) -> Receipt:
        """Commit a part, whether there is one already or not; see `FeatureStore.write`."""
        if self.arrays.keys() != values.keys():
            raise ValueError(
                f"A part needs the arrays {sorted(self.arrays)}. Got {sorted(values)}."
            )
        # Everything is refused that would be, before the first byte is written.
        ok = values["status"] == OK
        fitted = {}
        for name, of_part in values.items():
            fitted[name] = self.arrays[name].fit(of_part, part, ok)
        began = time.perf_counter()
        chunks = self._write_chunks(part, claim, fitted)
        counts = np.bincount(values["status"].astype(np.int64))
        document = {
            **notes,
            "part": part.index,
            "rows": [part.start, part.stop],
            "recipe": self.recipe,
            "chunks": {name: record.as_json() for name, record in chunks.items()},
            "write_s": round(time.perf_counter() - began, 3),
            "counts": {str(status): n for status, n in enumerate(counts.tolist()) if n},
        }
        receipt = Receipt.parse(document)
        # Once more, since forcing to disk takes long: who took the part over may have committed it.
        check_claim(claim, part)
        self.storage.commit(receipt_name(part.index), seal(document), receipt.digests())
        return receipt

    def _write_chunks(
        self, part: PartRange, claim: Claim, values: Mapping[str, Values]
    ) -> dict[str, ChunkRecord]:
        """Put the chunks of a part in place, on the disk; return what the receipt vouches for."""
        staged: dict[Path, Path] = {}  # temporary path -> the chunk's own
        records: dict[str, ChunkRecord] = {}
        try:
            for name, of_part in values.items():
                array = self.arrays[name]
                for chunk in array.chunks(part):
                    start = chunk.start - part.start
                    rows = of_part[start : start + chunk.rows]
                    temporary, record = array.stage(chunk, rows)
                    staged[temporary] = array.root / chunk.name
                    records[chunk.name] = record
            with writing(self.storage.folder):
                # Together: forcing the first of them brings most of the rest along.
                for temporary in staged:
                    sync(temporary)
            # Before the renames: whoever took the part over may have put its own chunks there.
            check_claim(claim, part)
            folders = {path.parent for path in staged.values()}
            for temporary in list(staged):
                temporary.replace(staged[temporary])
                del staged[temporary]
        finally:
            for temporary in staged:
                temporary.unlink(missing_ok=True)
        for folder in folders:
            sync_folder(folder)
        if claim.inherited:  # its owner died, perhaps while it wrote
            self._sweep([*folders, self.storage.folder / PARTS])
        return records

    def _sweep(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            sweep_temporaries(folder.glob(f"{TEMPORARY}*"))


def check_claim(claim: Claim, part: PartRange) -> None:
    """Raise ClaimedError where another process took the part over."""
    if not claim.stands():
        raise ClaimedError(f"Part {part.index} was taken over by another process.")
