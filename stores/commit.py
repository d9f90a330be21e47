"""How a part comes into being, in an order that a crash may cut anywhere.

1. Chunks under temporary names: what is left of them is swept, and read by nobody.
2. The chunks forced to disk.
3. Each chunk linked to its name, which replaces nothing: a writer that stood still while another
   took its part over and committed it finds the name taken, and changes no byte.
4. The folders forced to disk, so that no receipt outlives the names of its chunks.
5. The receipt, linked too: the commit. A receipt on disk vouches for bytes that are on disk.

A purge alone writes over a committed part, by renames.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stores._disk import TEMPORARY, hard_link, seal, sweep_temporaries, sync, sync_folder, writing
from stores._types import Values
from stores.arrays import StoredArray
from stores.claims import Claim
from stores.contents import FEATURES, OK, PARTS, chunk_file
from stores.errors import ClaimedError
from stores.inside import inside
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
        *,
        over: bool,
    ) -> Receipt:
        """Commit a part; over: one that is committed already. See `FeatureStore.write`."""
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
        chunks = self._write_chunks(part, claim, fitted, over)
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
        name = receipt_name(part.index)
        self.storage.commit(name, seal(document), receipt.digests(), over=over)
        return receipt

    def _write_chunks(
        self, part: PartRange, claim: Claim, values: Mapping[str, Values], over: bool
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
                    path = inside(self.storage.folder, chunk_file(chunk.name))
                    temporary, record = array.stage(chunk, rows)
                    staged[temporary] = path
                    records[chunk.name] = record
            with writing(self.storage.folder):
                # Together: forcing the first of them brings most of the rest along.
                for temporary in staged:
                    sync(temporary)
            # Before the links: whoever took the part over may have put its own chunks there.
            check_claim(claim, part)
            folders = {path.parent for path in staged.values()}
            for temporary, path in staged.items():
                if over:
                    os.replace(temporary, path)
                else:
                    _place(temporary, path, claim, part)
        finally:
            for temporary in staged:
                temporary.unlink(missing_ok=True)
        for folder in self._with_parents(folders):
            sync_folder(folder)
        if claim.inherited:  # its owner died, perhaps while it wrote
            self._sweep([*folders, self.storage.folder / PARTS])
        return records

    def _with_parents(self, folders: Iterable[Path]) -> list[Path]:
        """Return folders of chunks and those above them, up to the arrays' own, the lowest first.

        A folder that is new is an entry of the one above it.
        """
        top = self.storage.folder / FEATURES
        with_parents = set(folders)
        for folder in folders:
            above = [each for each in folder.parents if each.is_relative_to(top) and each != top]
            with_parents.update(above)
        return sorted(with_parents, reverse=True)

    def _sweep(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            sweep_temporaries(folder.glob(f"{TEMPORARY}*"))


def _place(temporary: Path, path: Path, claim: Claim, part: PartRange) -> None:
    """Link a chunk to its name. Raises ClaimedError where another process has the part."""
    try:
        hard_link(temporary, path)
        return
    except FileExistsError:
        # Left by a writer that died, or put there by one that took the part over from this one.
        check_claim(claim, part)
    path.unlink()
    try:
        hard_link(temporary, path)
    except FileExistsError:
        raise ClaimedError(f"Part {part.index} was taken over by another process.") from None


def check_claim(claim: Claim, part: PartRange) -> None:
    """Raise ClaimedError where another process took the part over."""
    if not claim.stands():
        raise ClaimedError(f"Part {part.index} was taken over by another process.")
