"""What the store is left with of label files that alone say who a patient is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.annotations.labels import read_labels
from pipeline.annotations.patients import note_patients, notes_of
from pipeline.shared.pseudonyms import Names
from stores.errors import CorruptStoreError
from tests.pipeline.collection import config_of, make_store, write_csv


def test_a_note_says_whose_rows_are_and_a_flipped_bit_in_it_is_found(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", np.zeros((3, 1, 4)), [{}, {}, {}])
    write_csv(tmp_path / "labels.csv", path=["f0.png", "f2.png"], who=["ann", "bob"])
    config = config_of(tmp_path, labels={"patient": "who"})
    assert config.labels is not None
    names = Names(store.path, "keep")
    note_patients(store, read_labels(config.labels, []), store.slices(), tmp_path, names)
    (note,) = notes_of(store)
    assert note.rows.tolist() == [0, 2]
    assert note.patients.tolist() == [names.pseudonym("patient", who) for who in ("ann", "bob")]
    (path,) = (store.path / "patients").glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="does not fit the checksum"):
        notes_of(store)
