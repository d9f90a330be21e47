from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from stores import FeatureStore
from stores._disk import seal, unseal
from stores.contents import DERIVED, FOLDERS, PUBLISHED, TRAVELLING
from stores.errors import CorruptStoreError
from stores.receipt import ChunkRecord, Link, Receipt, UnreadableRow, VolumeRange, receipt_name
from tests.stores.conftest import fill

# As versions before wrote it: with keys that nobody reads any more.
DOCUMENT = {
    "part": 3,
    "rows": [24, 32],
    "recipe": "digest",
    "chunks": {"cls/c/3/0/0": {"bytes": 388, "sha256": "a" * 64, "row_crc32c": "AAAAAAEAAAA="}},
    "counts": {"0": 1, "1": 6, "2": 1},
    "failures": [{"row": 25, "reason": "corrupt", "detail": "ends early"}],
    "links": [[26, 2], [27, 3]],
    "ranges": [[24, -1000.0, 400.5]],
    "left_out": [28],
    "by": "host:12",
    "seconds": {"all": 2.5, "load": 1.0},
    "of_another_version": {"kept": True},
    "write_s": 0.25,
}


def test_a_receipt_is_read_into_types() -> None:
    receipt = Receipt.parse(DOCUMENT)
    assert (receipt.part, receipt.recipe, receipt.by) == (3, "digest", "host:12")
    assert receipt.counts == {0: 1, 1: 6, 2: 1}
    assert receipt.failures == (UnreadableRow(25, "corrupt", "ends early"),)
    assert receipt.links == (Link(26, 2), Link(27, 3))
    assert receipt.ranges == (VolumeRange(24, -1000.0, 400.5),)
    assert receipt.left_out == (28,)
    assert receipt.purged == ()
    assert receipt.embedded == 4
    assert receipt.read == 7
    assert receipt.digests() == {"features.zarr/cls/c/3/0/0": "a" * 64}


def test_imported_features_have_little_of_a_receipt() -> None:
    names = ("part", "recipe", "chunks")
    receipt = Receipt.parse({name: DOCUMENT[name] for name in names})
    assert (receipt.by, receipt.seconds, receipt.failures, receipt.links) == ("", {}, (), ())


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": []},
        {"chunks": {"cls/c/3/0/0": {"bytes": 388}}},
        {"counts": {"many": 1}},
        {"links": [[26]]},
        {"failures": [25]},
    ],
)
def test_what_is_no_receipt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptStoreError, match="a receipt is not as a store has it"):
        Receipt.parse(DOCUMENT | change)
    with pytest.raises(CorruptStoreError):
        Receipt.parse({})


def test_a_purge_leaves_every_other_key_as_it_was() -> None:
    purged = Receipt.parse(DOCUMENT).purged_of({25, 26})
    assert purged == DOCUMENT | {"failures": [], "links": [[27, 3]], "purged": [25, 26]}
    again = Receipt.parse(purged).purged_of({27})
    assert again == DOCUMENT | {"failures": [], "links": [], "purged": [25, 26, 27]}


def test_the_crcs_of_rows_come_back_as_they_went() -> None:
    crcs = np.array([7, 2**32 - 1], "<u4")
    record = ChunkRecord.of(388, "a" * 64, crcs)
    assert record.as_json()["row_crc32c"] == base64.b64encode(crcs.tobytes()).decode()
    read = record.row_crcs()
    assert read is not None
    np.testing.assert_array_equal(read, crcs)
    assert ChunkRecord.of(388, "a" * 64, None).as_json() == {"bytes": 388, "sha256": "a" * 64}


def test_what_is_returned_of_a_commit_is_what_lies_on_disk(store: FeatureStore) -> None:
    receipt = fill(store, 1)
    path = store.path / receipt_name(1)
    assert store.receipt(1) == receipt
    assert unseal(path) == receipt.document
    assert path.read_bytes() == seal(receipt.document)


def test_lists_of_folders_are_of_one_table() -> None:
    assert DERIVED == (
        "results",
        "splits",
        "patients",
        "segmentations",
        "masks",
        "regions",
        "tuned",
    )
    assert PUBLISHED == ("results", "splits", "patients", "segmentations", "tuned")
    assert set(TRAVELLING) == {"parts", "features.zarr", "copies", *PUBLISHED}
    of_patients = {folder.name for folder in FOLDERS if folder.of_patients}
    assert of_patients == {"results", "segmentations", "masks", "regions", "tuned"}
    from_start = {folder.name for folder in FOLDERS if folder.from_start}
    assert from_start == {"parts", "claims", "results", "splits"}
