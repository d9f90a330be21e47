"""Stores whose numbers ask for the impossible: refused as corrupt, before memory is asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.shared.pseudonyms import load_key, relabelled
from stores import FeatureStore, manifest, parquet_file
from stores._disk import (
    CHECKSUM,
    seal,
    sha256,
    sweep_temporaries,
    unseal,
    write_atomic,
    write_checked,
)
from stores.errors import ConfigError, CorruptStoreError, StoreError
from stores.filed_tables import read_filed_table
from stores.parquet_file import ParquetFile
from stores.purge import purge_all, withdraw
from stores.receipt import receipt_name
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA, table_bytes
from stores.verify import repair, verify
from tests.stores.conftest import numbered, slice_table

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


def deeper(document: Any) -> None:
    """Give rows more axes, so that the folders of the chunks are where files are."""
    document["shape"][1:] = [1, 6]
    document["chunk_grid"]["configuration"]["chunk_shape"][1:] = [1, 6]


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
        (MEAN, deeper),
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
        ("withdrawn.json", lambda d: {"patients": "abc"}),
        ("withdrawn.json", lambda d: {"patients": [], "purged": [1]}),
        ("withdrawn.json", lambda d: {"patients": [""]}),
    ],
)
def test_odd_numbers_are_corrupt(full: FeatureStore, name: str, edit: Edit) -> None:
    edit_json(full, name, edit)
    tracemalloc.start()
    with pytest.raises(CorruptStoreError):
        use(full.path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert not verify(full.path).sound


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
        "twice": table.append_column("path", table["path"]),
    }


@pytest.mark.parametrize("odd", odd_tables())
def test_odd_slice_tables_are_corrupt(store: FeatureStore, odd: str) -> None:
    put(store, "slices.parquet", table_bytes(odd_tables()[odd]))
    with pytest.raises(CorruptStoreError):
        use(store.path)
    assert not verify(store.path).sound


@pytest.mark.parametrize("lacks", ["tags", "series", "path"])
def test_a_table_of_a_version_before_is_written_anew_with_all_columns(
    full: FeatureStore, lacks: str
) -> None:
    put(full, "slices.parquet", table_bytes(numbered(20, patient="p").drop_columns([lacks])))
    files = full.files().drop_columns(["detail"]).replace_schema_metadata({"rules": "kept"})
    put(full, "files.parquet", table_bytes(files))
    assert full.slices([lacks, "row"])[lacks].null_count == 20
    (piece,) = full.slice_file.between(0, 20, ["row", lacks])
    assert piece[lacks].null_count == 20
    assert withdraw(full, "p") == 20
    assert full.slices().schema.names == SLICE_SCHEMA.names
    assert full.files().schema.names == FILE_SCHEMA.names
    assert full.files().schema.metadata == {b"rules": b"kept"}
    assert verify(full.path).sound


def test_rows_that_stand_twice_are_corrupt_where_they_are_to_be_written(
    store: FeatureStore,
) -> None:
    table = numbered(20, patient="p")
    put(store, "slices.parquet", table_bytes(pa.concat_tables([table.slice(0, 1), table])))
    with pytest.raises(CorruptStoreError, match="ascending order of unique rows"):
        withdraw(store, "p")
    assert not verify(store.path).sound


def test_a_number_too_large_for_its_column_is_corrupt(store: FeatureStore) -> None:
    table = numbered(20)
    far = pa.array([2**40] * 20)
    place = table.schema.get_field_index("frame")
    put(store, "slices.parquet", table_bytes(table.set_column(place, "frame", far)))
    with pytest.raises(CorruptStoreError, match="not in range"):
        withdraw(store, "p")
    assert not verify(store.path).sound


@pytest.mark.parametrize("name", ["slices.parquet", "files.parquet"])
def test_text_that_is_no_text_is_corrupt(store: FeatureStore, name: str) -> None:
    bad = pa.array([b"\xff\xfe"] * 20)
    text = pa.Array.from_buffers(pa.string(), 20, bad.buffers())
    table = numbered(20)
    if name == "files.parquet":
        table = pa.table({"path": text, "size": pa.array([1] * 20)})
    else:
        table = table.set_column(1, "path", text)
    put(store, name, table_bytes(table))
    with pytest.raises(CorruptStoreError, match="UTF8"):
        use(store.path)
    assert not verify(store.path).sound


@pytest.mark.parametrize("check", [5, [], "\ud800", "", True, {"a": 1}])
def test_no_key_fits_an_odd_check_of_keys(store: FeatureStore, check: Any) -> None:
    edit_json(store, GROUP, lambda d: d["attributes"].update(key_check=check))
    (store.path.parent / f"{store.path.name}.key").write_text("0" * 64)
    with pytest.raises(ConfigError, match="is not the one"):
        load_key(store.path)


def test_a_table_of_more_rows_than_its_bytes_can_hold_is_not_decoded(store: FeatureStore) -> None:
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int8)), pa.array(["x"]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"path": same}), sink, compression="zstd")
    put(store, "slices.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(CorruptStoreError, match="which no table of"):
        use(store.path)


def test_a_path_that_leads_out_of_the_collection_is_damage(full: FeatureStore) -> None:
    table = numbered(20)
    paths = ["../x.png", "/etc/passwd", *table["path"].to_pylist()[2:]]
    table = table.set_column(1, table.schema.field(1), pa.array(paths))
    put(full, "slices.parquet", table_bytes(table))
    assert [f.detail for f in verify(full.path).findings if f.damage] == [
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
def test_odd_receipts_are_damage_and_never_a_fault(full: FeatureStore, edit: Edit) -> None:
    path = full.path / receipt_name(0)
    document = unseal(path)
    edit(document)
    path.write_bytes(seal(document))
    reader = FeatureStore.open(full.path)
    for read in (reader.status, reader.failures, reader.spent, lambda: reader.read("mean", [0])):
        try:
            read()
        except (CorruptStoreError, KeyError):
            continue
    assert not verify(full.path).sound


@pytest.mark.parametrize("name", [GROUP, MEAN, "withdrawn.json"])
def test_nesting_without_end_is_corrupt(store: FeatureStore, name: str) -> None:
    put(store, name, b"[" * 100_000)
    with pytest.raises(CorruptStoreError):
        use(store.path)
    assert not verify(store.path).sound


def test_a_split_nested_without_end_goes_with_the_patient_that_it_names(
    store: FeatureStore,
) -> None:
    path = store.path / "splits/finding.json"
    write_checked(path, b"[" * 100_000 + b'"p"')
    withdraw(store, "p")
    purge_all(store, "p")
    assert not path.exists()


def nest(folder: Path, depth: int) -> None:
    """Put folders in each other, of which the last has a file; their path may be too long."""
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)


def test_folders_nested_without_end_are_corrupt(full: FeatureStore, tmp_path: Path) -> None:
    withdraw(full, "p")
    deep = tmp_path / "deep"
    nest(deep, 3000)
    try:
        for name in ("parts", "features.zarr/mean/c", "copies", "runs", "results", "other"):
            place = full.path / name / ".tmp-x"
            place.parent.mkdir(exist_ok=True)
            deep.rename(place)
            os.utime(place, (0, 0))
            use(full.path)  # what it needs is there
            assert [finding.kind for finding in verify(full.path).findings] == ["odd"]
            works = (repair, lambda path: purge_all(FeatureStore.open(path), "p"))
            for work in (*works, lambda _, place=place: sweep_temporaries([place])):
                with pytest.raises(CorruptStoreError, match="more than 32 deep"):
                    work(full.path)
            place.rename(deep)
    finally:
        subprocess.run(["rm", "-r", tmp_path], check=True)  # pytest could not


# --- what is no file, in the place of one --------------------------------------------------------


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


def put_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": put_socket,
    "sparse": put_sparse,
}
PLACES = [
    "recipe.json",
    "slices.parquet",
    "parts",
    "parts/0000000.json",
    "copies",
    "features.zarr/mean",
    "features.zarr/mean/c/0/0",
    "results/x.json",
    "results/results.parquet",
]


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_damage_and_holds_nothing_up(
    full: FeatureStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full.path, tmp_path / "sound")
    for name in PLACES:
        shutil.rmtree(full.path)
        shutil.copytree(tmp_path / "sound", full.path)
        path = full.path / name
        if path.is_dir():
            if kind == "folder":
                continue
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        monkeypatch.chdir(path.parent)  # the path of a socket is short
        STRANGE[kind](path)
        if name.endswith("results.parquet"):
            path.with_name(f"{path.name}{CHECKSUM}").write_bytes(b"")
            with pytest.raises(CorruptStoreError):
                read_filed_table(path)
        began = time.monotonic()
        # What is nobody's answer tells of nothing.
        assert name.startswith("results/") or not verify(full.path).sound, name
        with contextlib.suppress(StoreError):
            use(full.path)
            withdraw(FeatureStore.open(full.path), "p")
        with contextlib.suppress(StoreError):
            repair(full.path)
        assert time.monotonic() - began < 5, name


# --- Parquet files that ask for more than they are ----------------------------------------------


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def with_values(name: str, values: pa.Array) -> pa.Table:
    table = numbered(len(values))
    return table.set_column(table.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("path", pa.array(["x" * 2**16] * 2**11)),
        ("flags", pa.array([["x" * 2**15] * 2] * 2**11, pa.list_(pa.string()))),
        ("flags", pa.array([[""] * 2**14] * 2**10, pa.list_(pa.string()))),
        ("tags", pa.array([[("k", "x" * 2**16)]] * 2**11, SLICE_SCHEMA.field("tags").type)),
    ],
)
def test_a_table_that_asks_for_much_more_than_its_bytes_is_not_decoded(
    store: FeatureStore, name: str, values: pa.Array
) -> None:
    data = parquet(with_values(name, values))
    assert len(data) < 2**18
    put(store, "slices.parquet", data)
    pool = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(pool)  # what tests before this one took is not in its peak
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(CorruptStoreError, match="asks for more"):
            FeatureStore.open(store.path).tables()
    finally:
        pa.set_memory_pool(pool)
    assert counted.max_memory() < 2**28
    assert not verify(store.path).sound


def test_what_a_footer_says_of_sizes_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "FREE_BYTES", 0)
    monkeypatch.setattr(parquet_file, "BYTES_A_BYTE", 10)
    data = parquet(pa.table({"row": np.zeros(2**14, np.int64)}))
    with pytest.raises(CorruptStoreError, match="asks for more"):
        ParquetFile(data).read(["row"])
    # Headers of pages that are none are no pages.
    for place in range(4, 40, 3):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        with pytest.raises((CorruptStoreError, pa.ArrowException, OSError)):
            ParquetFile(bytes(damaged)).read()


@pytest.mark.parametrize("rows", [1, 10_000])
def test_tables_of_volumes_stay_far_below_the_bound(rows: int) -> None:
    """Frames of regular volumes, whose rows differ in next to nothing, come closest to it."""
    table = slice_table([(row, "hidden" * 20) for row in range(rows)], series="s" * 16)
    file = ParquetFile(table_bytes(table))
    assert file.read() == table
    assert table.nbytes < max(parquet_file.BYTES_A_BYTE * len(table_bytes(table)) / 2, 2**20)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_text_of_another_width_is_read_as_text(store: FeatureStore, kind: pa.DataType) -> None:
    wide = pa.array([f"f{i}" for i in range(20)], kind)
    put(store, "slices.parquet", parquet(with_values("path", wide)))
    assert store.slices()["path"].to_pylist() == numbered(20)["path"].to_pylist()
    assert store.slices().schema == SLICE_SCHEMA


def test_rows_without_a_path_have_an_empty_one_for_peoples_eyes(store: FeatureStore) -> None:
    put(store, "slices.parquet", parquet(with_values("path", pa.nulls(20, pa.string()))))
    assert relabelled(store.slices(), str)["path"].to_pylist() == [""] * 20


def test_rows_that_do_not_ascend_are_corrupt(store: FeatureStore) -> None:
    put(store, "slices.parquet", table_bytes(numbered(20)[::-1]))
    with pytest.raises(CorruptStoreError, match="ascending"):
        store.live_rows()
    assert not verify(store.path).sound


# --- folders that may not be looked into ---------------------------------------------------------


@pytest.mark.parametrize("name", ["results", "parts", "splits", "runs"])
def test_a_folder_that_is_not_to_be_seen_is_no_empty_one(
    full: FeatureStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(full, "p")
    (full.path / name).mkdir(exist_ok=True)
    real = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path) == full.path / name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    use = full.fingerprint if name == "parts" else functools.partial(purge_all, full, "p")
    with pytest.raises(CorruptStoreError, match="may not be looked into"):
        use()
    assert not verify(full.path).sound
