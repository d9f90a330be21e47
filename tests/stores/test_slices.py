from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from stores import slices
from stores.errors import CorruptStoreError
from stores.slices import SLICE_SCHEMA, SliceRow, TableFile, slice_rows, table_bytes, where
from tests.stores.conftest import slice_table


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """A table of rows with gaps, in a file of many groups."""
    monkeypatch.setattr(slices, "_GROUP_ROWS", 4)
    rows = np.flatnonzero(np.random.default_rng(0).random(60) < 0.5)
    return slice_table([(int(row), f"{row}.dcm") for row in rows])


def test_rows_between_two_are_those_of_the_table(table: pa.Table) -> None:
    file = TableFile(table_bytes(table))
    rows = table["row"].to_numpy()
    for start in range(-1, 62, 3):  # of every place within a group of four rows
        for stop in range(start, 63):
            paths = []
            for piece in file.between(start, stop, ["row", "path"]):
                paths += piece["path"].to_pylist()
            between = rows[(rows >= start) & (rows < stop)]
            assert paths == [f"{row}.dcm" for row in between]
    assert len(list(file.between(0, 60, ["row"]))) == -(-len(rows) // 4)


def test_a_table_is_read_whole_or_by_columns(table: pa.Table) -> None:
    file = TableFile(table_bytes(table))
    assert file.read() == file.table == table
    assert file.table is file.table
    assert file.read(["modality", "row"]) == table.select(["modality", "row"])


def test_an_empty_table_has_nothing_between() -> None:
    file = TableFile(table_bytes(SLICE_SCHEMA.empty_table()))
    assert list(file.between(0, 100, ["row"])) == []
    assert file.read() == SLICE_SCHEMA.empty_table()


def test_damage_is_told_wherever_it_is_met(table: pa.Table) -> None:
    data = bytearray(table_bytes(table))
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        TableFile(bytes(data[:-1]))
    data[len(data) // 4] ^= 1  # within the pages: the end of the file is sound
    file = TableFile(bytes(data))
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        file.read()
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        list(file.between(0, 60, SLICE_SCHEMA.names))


def test_a_mask_that_keeps_all_copies_nothing(table: pa.Table) -> None:
    rows = table["row"].to_numpy()
    assert where(table, pa.array(rows >= 0)) is table
    assert where(table, pa.array(rows > 20))["row"].to_pylist() == rows[rows > 20].tolist()
    unknown = pa.array([True] * (len(rows) - 1) + [None], pa.bool_())
    assert where(table, unknown)["row"].to_pylist() == rows[:-1].tolist()
    assert where(table.slice(0, 0), pa.array([], pa.bool_())).num_rows == 0


def test_slices_one_by_one_have_what_was_read_of_them() -> None:
    table = slice_table([(3, "a"), (8, "b")], patient="p", position_mm=1.5)
    rows = slice_rows(table)
    assert [(each.row, each.path, each.patient, each.position_mm) for each in rows] == [
        (3, "a", "p", 1.5),
        (8, "b", "p", 1.5),
    ]
    assert rows[0].series == ""  # of no series
    few = slice_rows(table.select(["modality", "series", "frame", "path", "row"]))
    assert few[1] == SliceRow(8, "b", 0, "", "CT")
    assert few[1].patient is None
    assert slice_rows(table.slice(0, 0)) == []
    with pytest.raises(KeyError, match=r"'frame'.*path, row"):
        slice_rows(table.select(["modality", "series", "path", "row"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows[0].row = 4  # type: ignore[misc]
