"""Stores whose numbers ask for the impossible: refused as corrupt, before memory is asked for."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores import FeatureStore, manifest
from stores._disk import seal, sha256, unseal, write_atomic
from stores.errors import CorruptStoreError
from stores.receipt import receipt_name
from stores.slices import table_bytes
from stores.verify import verify
from tests.stores.conftest import fill, numbered

Edit = Callable[[Any], Any]


def put(store: FeatureStore, name: str, data: bytes) -> None:
    """Put a file of the manifest, its copy and its checksum as whoever makes a store can."""
    write_atomic(store.path / "copies" / sha256(data), data)
    write_atomic(store.path / name, data)
    files = manifest.digests(store.path) | {name: sha256(data)}
    write_atomic(store.path / "manifest.json", manifest.text(files))


def edit_json(store: FeatureStore, name: str, edit: Edit) -> None:
    document = json.loads((store.path / name).read_bytes())
    document = edit(document) or document
    put(store, name, json.dumps(document).encode())


def use(path: Path) -> None:
    """Do what every reader of a store does."""
    store = FeatureStore.open(path)
    store.tables()
    store.parts()
    store.status()
    store.failures()
    store.spent()
    store.read("cls")
    store.read("mean", [0])
    store.fingerprint()


def shape(document: Any, value: Any) -> None:
    document["shape"][0] = value


def rows(document: Any, value: Any) -> None:
    document["shape"][1] = value
    document["chunk_grid"]["configuration"]["chunk_shape"][1] = value


def chunk(document: Any, value: Any) -> None:
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = value


MEAN = "features.zarr/mean/zarr.json"
STATUS = "features.zarr/status/zarr.json"
GROUP = "features.zarr/zarr.json"


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (STATUS, lambda d: shape(d, 2**50)),
        (STATUS, lambda d: shape(d, -1)),
        (STATUS, lambda d: shape(d, 1e300)),
        (STATUS, lambda d: shape(d, True)),
        (STATUS, lambda d: d.pop("shape") and None),
        (MEAN, lambda d: rows(d, 2**40)),
        (MEAN, lambda d: rows(d, 0)),
        (MEAN, lambda d: chunk(d, 0)),
        (MEAN, lambda d: chunk(d, 3)),
        (MEAN, lambda d: chunk(d, 2**40)),
        (MEAN, lambda d: d.update(data_type="object")),
        (MEAN, lambda d: d.update(data_type={"name": "string"})),
        (MEAN, lambda d: d.update(codecs=7)),
        (MEAN, lambda d: [d]),
        (GROUP, lambda d: d["attributes"].update(part_rows=2**40)),
        (GROUP, lambda d: d["attributes"].update(part_rows=0)),
        (GROUP, lambda d: d["attributes"].update(part_rows="many")),
        (GROUP, lambda d: d.pop("attributes") and None),
        ("withdrawn.json", lambda d: d.pop("patients") and None),
        ("withdrawn.json", lambda d: {"patients": 5}),
    ],
)
def test_odd_numbers_are_corrupt(store: FeatureStore, name: str, edit: Edit) -> None:
    for index in range(3):
        fill(store, index)
    edit_json(store, name, edit)
    tracemalloc.start()
    with pytest.raises(CorruptStoreError):
        use(store.path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert not verify(store.path).sound


def odd_tables() -> dict[str, pa.Table]:
    table = numbered(20)
    last = [*range(19), 2**60]
    below = [-5, *range(1, 20)]
    null = [None, *range(1, 20)]
    return {
        "far": table.set_column(0, table.schema.field(0), pa.array(last)),
        "negative": table.set_column(0, table.schema.field(0), pa.array(below)),
        "null": table.set_column(0, table.schema.field(0), pa.array(null, pa.int64())),
        "no rows": table.drop_columns(["row"]),
        "no withdrawn": table.drop_columns(["withdrawn"]),
        "text": table.set_column(0, "row", pa.array([str(i) for i in range(20)])),
    }


@pytest.mark.parametrize("odd", odd_tables())
def test_odd_slice_tables_are_corrupt(store: FeatureStore, odd: str) -> None:
    put(store, "slices.parquet", table_bytes(odd_tables()[odd]))
    with pytest.raises(CorruptStoreError):
        use(store.path)
    assert not verify(store.path).sound


def test_a_table_of_more_rows_than_its_bytes_can_hold_is_not_decoded(store: FeatureStore) -> None:
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int8)), pa.array(["x"]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"path": same}), sink, compression="zstd")
    put(store, "slices.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(CorruptStoreError, match="which no table of"):
        use(store.path)


def test_a_path_that_leads_out_of_the_collection_is_damage(store: FeatureStore) -> None:
    for index in range(3):
        fill(store, index)
    table = numbered(20)
    paths = ["../x.png", "/etc/passwd", *table["path"].to_pylist()[2:]]
    table = table.set_column(1, table.schema.field(1), pa.array(paths))
    put(store, "slices.parquet", table_bytes(table))
    assert [f.detail for f in verify(store.path).findings if f.damage] == [
        "2 of its paths lead out of the collection"
    ]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(chunks={}),
        lambda d: d.update(chunks={"../../../x": {"bytes": 1, "sha256": "0" * 64}}),
        lambda d: d.update(part="zero"),
        lambda d: d.update(counts={"one": 1}),
        lambda d: d.update(links=[[1]]),
        lambda d: d.update(links=5),
        lambda d: d.update(seconds=[1]),
        lambda d: d.update(failures=[{"row": -1, "reason": "x"}]),
        lambda d: next(iter(d["chunks"].values())).update(bytes=-1),
        lambda d: next(iter(d["chunks"].values())).update(bytes=2**70),
        lambda d: next(iter(d["chunks"].values())).update(sha256="../x"),
    ],
)
def test_odd_receipts_are_damage_and_never_a_fault(store: FeatureStore, edit: Edit) -> None:
    for index in range(3):
        fill(store, index)
    path = store.path / receipt_name(0)
    document = unseal(path)
    edit(document)
    path.write_bytes(seal(document))
    reader = FeatureStore.open(store.path)
    for read in (reader.status, reader.failures, reader.spent, lambda: reader.read("mean", [0])):
        try:
            read()
        except (CorruptStoreError, KeyError):
            continue
    assert not verify(store.path).sound


def test_nesting_without_end_is_corrupt(store: FeatureStore) -> None:
    put(store, GROUP, b"[" * 100_000)
    with pytest.raises(CorruptStoreError):
        use(store.path)


def test_row_checksums_of_another_number_are_corrupt(tmp_path: Path) -> None:
    from stores import ArraySpec
    from tests.stores.conftest import NO_FILES

    wide = {"cls": ArraySpec((400_000,), "float16"), "mean": ArraySpec((6,), "float16")}
    store = FeatureStore.create(tmp_path / "wide", "{}", wide, 4)
    store.write_tables(numbered(4), NO_FILES)
    fill(store, 0)
    path = store.path / receipt_name(0)
    document = unseal(path)
    document["chunks"]["cls/c/0/0"]["row_crc32c"] = ""
    path.write_bytes(seal(document))
    with pytest.raises(CorruptStoreError, match="checksums of 0 rows"):
        FeatureStore.open(store.path).read("cls", np.array([1]))
