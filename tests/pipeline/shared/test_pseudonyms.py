from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shared.pseudonyms import (
    Names,
    hide_path,
    key_check,
    load_key,
    relabelled,
    reveal_path,
)
from stores import ArraySpec, FeatureStore
from stores.contents import TOP_FILES
from stores.errors import ConfigError, UnwritableError
from stores.slices import FILE_SCHEMA, SLICE_SCHEMA

KEY, OTHER = bytes(32), bytes([1]) * 32
names = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40)


@given(st.lists(names, min_size=1, max_size=4))
def test_a_path_comes_back_with_its_key_alone(parts: list[str]) -> None:
    path = "/".join(parts)
    hidden = hide_path(KEY, path)
    assert reveal_path(KEY, hidden) == path
    assert reveal_path(OTHER, hidden) == hidden
    assert hide_path(KEY, hidden) == hidden
    assert hide_path(KEY, path) == hidden
    assert hidden.count("/") == path.count("/")
    assert not {*parts} & {*hidden.split("/")}


def test_a_folder_holds_its_files_hidden_too() -> None:
    assert hide_path(KEY, "a/b/c.dcm").startswith(hide_path(KEY, "a/b") + "/")
    assert hide_path(KEY, "a/b/c.dcm").split("/")[1] == hide_path(KEY, "b")
    assert hide_path(KEY, "") == ""


@pytest.mark.parametrize("name", ["~", "~x", "~" + "A" * 30, "~caf\u00e9", "~a=b"])
def test_a_file_that_looks_hidden_is_a_file(name: str) -> None:
    assert reveal_path(KEY, name) == name
    assert reveal_path(KEY, hide_path(KEY, name)) == name != hide_path(KEY, name)


def test_tables_are_relabelled_row_by_row() -> None:
    table = pa.table({"row": [0, 1, 2], "path": pa.array(["b", "a", "b"])})
    assert relabelled(table, str.upper).to_pydict() == {"row": [0, 1, 2], "path": ["B", "A", "B"]}
    assert relabelled(table.slice(0, 0), str.upper).num_rows == 0


def test_paths_are_shown_as_asked(tmp_path) -> None:
    store = tmp_path / "store"
    assert Names(store, "keep").shown("DOE/1.dcm") == "DOE/1.dcm"
    assert "DOE" not in Names(store).shown("DOE/1.dcm")


# --- the key -----------------------------------------------------------------------------------

ARRAYS = {"mean": ArraySpec((4,), "float16")}


def made(folder: Path) -> FeatureStore:
    """Return an empty store that knows its key."""
    path = folder / "store"
    return FeatureStore.create(path, "{}", ARRAYS, 8, key_check(load_key(path)))


@pytest.mark.parametrize("text", ["", "\n", "00", "0" * 62, "0" * 66, "g" * 64, "é" * 64])
def test_a_key_is_32_bytes(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.key").write_text(text)
    with pytest.raises(ConfigError, match="must be a file of 64 hexadecimal digits"):
        load_key(tmp_path / "store")


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_no_key(tmp_path: Path, put: Callable[[Path], object]) -> None:
    put(tmp_path / "store.key")
    with pytest.raises(ConfigError, match="must be a file of 64 hexadecimal digits"):
        load_key(tmp_path / "store")


def test_a_store_knows_its_key_again(tmp_path: Path) -> None:
    store = made(tmp_path)
    key = load_key(store.path)
    (tmp_path / "store.key").write_text(secrets.token_hex(32))
    with pytest.raises(ConfigError, match=r"not the one that the store .* was made with"):
        load_key(store.path)
    (tmp_path / "store.key").write_text(f"  {key.hex().upper()}\r\n")
    assert load_key(store.path) == key
    assert key.hex() not in (store.path / "features.zarr/zarr.json").read_text()


def test_a_store_of_before_learns_its_key(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = FeatureStore.create(path, "{}", ARRAYS, 8)
    store.write_tables(SLICE_SCHEMA.empty_table(), FILE_SCHEMA.empty_table())
    fingerprint = store.fingerprint()
    (tmp_path / "store.key").write_text(KEY.hex())
    store.keep_key_check(key_check(KEY))
    assert FeatureStore.open(path).fingerprint() == fingerprint
    assert FeatureStore.open(path).layout.part_rows == 8
    (tmp_path / "store.key").write_text(OTHER.hex())
    with pytest.raises(ConfigError, match="not the one"):
        load_key(path)
    store.keep_key_check(key_check(OTHER))  # the first one stays
    with pytest.raises(ConfigError, match="not the one"):
        load_key(path)


@pytest.mark.parametrize("left", [*TOP_FILES, "features.zarr/zarr.json"])
def test_whatever_is_left_of_a_store_no_key_is_made(tmp_path: Path, left: str) -> None:
    (tmp_path / "store" / left).parent.mkdir(parents=True)
    (tmp_path / "store" / left).write_text("{}")
    with pytest.raises(ConfigError, match="lost its key"):
        load_key(tmp_path / "store")
    assert not (tmp_path / "store.key").exists()


def test_a_key_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def do(*arguments: Any) -> None:
            done.append(name)
            call(*arguments)

        return do

    monkeypatch.setattr(os, "fsync", noted("fsync", fsync))
    monkeypatch.setattr(os, "link", noted("link", link))
    load_key(tmp_path / "store")
    assert done == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*paths: str) -> None:
        raise OSError(code, os.strerror(code), paths[0])

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(UnwritableError, match="no hard links"):
        load_key(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
