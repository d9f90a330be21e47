from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shared.pseudonyms import Names, hide_path, relabelled, reveal_path

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
