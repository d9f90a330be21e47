from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import stores.slices
from pipeline.extraction.slices import PartSlices
from stores import ArraySpec, FeatureStore
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

# Twenty rows of five series, in parts of four; of MR, what is made of a slice needs its volume.
SERIES = [f"s{row // 4}" if row % 2 else "mr" if row < 12 else "mr2" for row in range(20)]
WITHDRAWN = {3, 4, 5, 6, 7, 18}


def table() -> pa.Table:
    rows = [
        {
            "row": row,
            "path": f"{row}.dcm",
            "frame": 0,
            "series": series,
            "modality": "MR" if series.startswith("mr") else "CT",
            "withdrawn": row in WITHDRAWN,
        }
        for row, series in enumerate(SERIES)
    ]
    return pa.Table.from_pylist(rows, schema=SLICE_SCHEMA)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setattr(stores.slices, "_GROUP_ROWS", 3)
    made = FeatureStore.create(tmp_path / "s", "{}", {"cls": ArraySpec((2,), "float16")}, 4)
    made.write_tables(table(), FILE_SCHEMA.empty_table())
    return made


def of_mr(modality: str) -> bool:
    return modality == "MR"


def test_each_part_has_its_live_slices_whatever_order_is_asked(store: FeatureStore) -> None:
    parts = [store.layout.part(index) for index in (4, 0, 1)]
    slices = PartSlices(store, parts, of_mr)
    live = {p.index: [r for r in range(p.start, p.stop) if r not in WITHDRAWN] for p in parts}
    assert live == {4: [16, 17, 19], 0: [0, 1, 2], 1: []}
    assert slices.counts == {4: 3, 0: 3}
    for part in parts:
        found = slices.of(part)
        assert [each.row for each in found] == live[part.index]
        assert [each.path for each in found] == [f"{row}.dcm" for row in live[part.index]]


def test_whole_volumes_are_at_hand_where_slices_depend_on_them(store: FeatureStore) -> None:
    last = PartSlices(store, [store.layout.part(4)], of_mr)
    assert last.joined["row"].to_pylist() == [12, 14, 16]  # 18 is withdrawn
    first = PartSlices(store, [store.layout.part(0)], of_mr)
    assert first.joined["row"].to_pylist() == [0, 2, 8, 10]
    near = first.neighbours(first.of(store.layout.part(0)), of_mr)
    assert {row: [each.row for each in many] for row, many in near.items()} == {
        0: [2],
        2: [0, 8],
    }


def test_nothing_is_held_where_no_slice_depends_on_another(store: FeatureStore) -> None:
    slices = PartSlices(store, store.missing(), lambda modality: False)
    assert slices.joined.num_rows == 0
    assert slices.counts.total() == len(SERIES) - len(WITHDRAWN)
    assert slices.neighbours(slices.of(store.layout.part(0)), lambda modality: False) == {}


def test_whoever_is_withdrawn_meanwhile_is_in_no_part_that_begins(store: FeatureStore) -> None:
    slices = PartSlices(store, store.missing(), of_mr)
    assert slices.of(store.layout.part(0))
    gone = table().set_column(
        SLICE_SCHEMA.get_field_index("withdrawn"), "withdrawn", pa.array(np.ones(20, bool))
    )
    FeatureStore.open(store.path).write_tables(gone, FILE_SCHEMA.empty_table())
    assert slices.of(store.layout.part(0)) == []
    assert store.missing() == []
