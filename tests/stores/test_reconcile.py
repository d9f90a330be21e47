from __future__ import annotations

from collections.abc import Set
from typing import Any

import pyarrow as pa
import pytest

from stores.reconcile import Known, Reconciled, _Matching, reconcile
from tests.stores.conftest import slice_table

STORED = slice_table([(0, "a"), (1, "b"), (2, "c")])
CONTENT = {0: "A", 1: "B", 2: "C"}


def reconciled(
    discovered: pa.Table,
    now: dict[str, str],
    stored: pa.Table = STORED,
    opened: set[str] | None = None,
    content: dict[int, str] = CONTENT,
    failed: dict[int, str] | None = None,
    spent: Set[int] = frozenset(),
    boundary: int = 8,
    joined: bool = False,
) -> Reconciled:
    """Reconcile with every discovered file opened, as after a touch of the whole folder."""
    known = Known(
        opened=pa.array(set(now) if opened is None else opened, pa.string()),
        digest_of=content.get,
        hash_file=now.get,
        boundary=boundary,
        failed=failed or {},
        spent=spent,
        joined=lambda modality: joined and modality == "MR",
    )
    return reconcile(stored, discovered, known)


def counts(result: Reconciled) -> dict[str, int]:
    """Return the counts that are not zero."""
    return {name: n for name, n in result.counts.items() if n}


def discovered(*paths: str, **common: Any) -> pa.Table:
    return slice_table([(0, path) for path in paths], **common)


def rows(result: Reconciled) -> dict[int, tuple[str, bool]]:
    return {r["row"]: (r["path"], r["withdrawn"]) for r in result.slices.to_pylist()}


def test_a_touched_but_equal_collection_changes_nothing() -> None:
    result = reconciled(discovered("a", "b", "c"), {"a": "A", "b": "B", "c": "C"})
    assert result.slices.equals(STORED)
    assert counts(result) == {"same": 3}


def test_what_is_new_or_merely_touched_is_not_matched_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matched: list[Any] = []
    match_all = _Matching.match
    monkeypatch.setattr(
        _Matching,
        "match",
        lambda self, discovered: matched.extend(discovered) or match_all(self, discovered),
    )
    result = reconciled(discovered("a", "aa", "b", "c", "d"), {"a": "A", "b": "B", "c": "C"})
    assert matched == []
    assert counts(result) == {"same": 3, "added": 2}
    assert result.added["row"].to_pylist() == [8, 9]
    assert [(c.kind, c.path, c.row) for c in result.changes] == [
        ("added", "aa", 8),
        ("added", "d", 9),
    ]
    reconciled(discovered("a", "b", "e"), {"a": "A", "b": "other", "e": "E"})
    assert [row.path for row in matched] == ["b"]


def test_files_that_were_not_opened_are_not_hashed() -> None:
    result = reconciled(discovered("a", "b", "c"), {}, opened=set())
    assert result.slices.equals(STORED)


def test_added_slices_start_at_the_next_part() -> None:
    result = reconciled(discovered("a", "b", "bb", "c"), {"a": "A", "b": "B", "c": "C", "bb": "X"})
    assert rows(result)[8] == ("bb", False)
    assert counts(result) == {"same": 3, "added": 1}


def test_a_changed_file_gets_a_new_row_and_the_old_one_is_withdrawn() -> None:
    result = reconciled(discovered("a", "b", "c"), {"a": "A", "b": "other", "c": "C"})
    assert rows(result) == {0: ("a", False), 1: ("b", True), 2: ("c", False), 8: ("b", False)}
    assert counts(result) == {"same": 2, "changed": 1, "withdrawn": 1}


def test_a_moved_file_keeps_its_row() -> None:
    result = reconciled(discovered("a", "c", "z/b"), {"a": "A", "c": "C", "z/b": "B"})
    assert rows(result) == {0: ("a", False), 1: ("z/b", False), 2: ("c", False)}
    assert counts(result) == {"same": 2, "moved": 1}


def test_two_files_that_swap_names_keep_their_rows() -> None:
    result = reconciled(discovered("a", "b", "c"), {"a": "B", "b": "A", "c": "C"})
    assert rows(result) == {0: ("b", False), 1: ("a", False), 2: ("c", False)}
    assert counts(result) == {"same": 1, "moved": 2}


def test_a_removed_file_is_withdrawn_and_comes_back_to_its_row() -> None:
    gone = reconciled(discovered("a", "c"), {"a": "A", "c": "C"})
    assert rows(gone)[1] == ("b", True)
    assert counts(gone) == {"same": 2, "withdrawn": 1}
    back = reconciled(discovered("a", "b", "c"), {"a": "A", "b": "B", "c": "C"}, stored=gone.slices)
    assert back.slices.equals(STORED)


def test_another_modality_is_another_slice() -> None:
    result = reconciled(discovered("a", "b", "c", modality="MR"), {}, opened=set())
    assert counts(result) == {"changed": 3, "withdrawn": 3}


def test_a_row_that_was_never_embedded_takes_the_file_as_it_is() -> None:
    result = reconciled(discovered("a", "b", "c"), {"a": "x", "b": "y", "c": "z"}, content={})
    assert result.same == 3


def test_a_copy_is_added_and_the_original_stays() -> None:
    result = reconciled(discovered("a", "b", "c", "d"), {"a": "A", "b": "B", "c": "C", "d": "A"})
    assert rows(result)[0] == ("a", False)
    assert rows(result)[8] == ("d", False)


# --- rows that could not be read, or hold nothing ---------------------------------------------


def test_a_passing_failure_is_tried_again_in_a_new_row_three_times_in_all() -> None:
    table = slice_table([(0, "a")])
    failed = {0: "vanished"}
    for row in (8, 16):
        result = reconciled(discovered("a"), {}, table, set(), {}, failed, boundary=row)
        assert counts(result) == {"retried": 1, "withdrawn": 1}
        table = result.slices
        failed[row] = "vanished"
    result = reconciled(discovered("a"), {}, table, set(), {}, failed, boundary=24)
    assert counts(result) == {"same": 1}
    again = reconciled(discovered("a"), {"a": "A"}, table, {"a"}, {}, failed, boundary=24)
    assert counts(again) == {"retried": 1, "withdrawn": 1}


def test_a_lasting_failure_is_not_tried_again_until_the_file_changes() -> None:
    failed = {0: "corrupt"}  # its decoder crashed, so nobody knows its digest
    assert counts(reconciled(discovered("a", "b", "c"), {}, opened=set(), failed=failed)) == {
        "same": 3
    }
    content = {1: "B", 2: "C"}
    result = reconciled(discovered("a", "b", "c"), {"a": "A"}, STORED, {"a"}, content, failed)
    assert counts(result) == {"same": 2, "changed": 1, "withdrawn": 1}


def test_a_row_that_holds_nothing_is_not_revived() -> None:
    result = reconciled(discovered("a", "b", "c"), {}, opened=set(), spent={1})
    assert rows(result)[8] == ("b", False)
    assert counts(result) == {"same": 2, "added": 1, "withdrawn": 1}


def test_copies_of_one_file_that_move_together_keep_their_rows() -> None:
    stored = slice_table([(0, "a"), (1, "b")])
    content = {0: "A", 1: "A"}
    result = reconciled(discovered("c", "d"), {"c": "A", "d": "A"}, stored, content=content)
    assert counts(result) == {"moved": 2}
    assert sorted(rows(result)) == [0, 1]


def test_the_order_in_which_slices_are_found_is_no_change() -> None:
    assert counts(reconciled(discovered("c", "a", "b"), {}, opened=set())) == {"same": 3}


def test_each_change_says_why() -> None:
    result = reconciled(discovered("z", "b", "d"), {"z": "A", "b": "other", "d": "D"})
    assert [(c.kind, c.path, c.why) for c in result.changes] == [
        ("moved", "z", "it was 'a'"),
        ("changed", "b", "the content of its file changed"),
        ("withdrawn", "b", "row 8 takes its place"),
        ("withdrawn", "c", "it is no longer found"),
        ("added", "d", "it is new"),
    ]


# --- series whose slices stand or fall together -----------------------------------------------


def series(**members: str) -> pa.Table:
    """Return MR slices by series, `s="ab"` being two files of the series s; rows as they come."""
    tables = []
    for name, paths in members.items():
        modality = "CT" if name == "ct" else "MR"
        for path in paths:
            row = len(tables)
            tables.append(slice_table([(row, path)], series=name, modality=modality))
    return pa.concat_tables(tables)


BEFORE = series(s="abc", t="de", ct="fg")
BYTES = {row: path.upper() for row, path in enumerate("abcdefg")}
NOW = {path: path.upper() for path in "abcdefgxyz"}


def joined(
    now: pa.Table, stored: pa.Table = BEFORE, bytes_now: dict[str, str] = NOW, **known: Any
) -> Reconciled:
    return reconciled(now, bytes_now, stored, **{"content": BYTES, "joined": True} | known)


def test_joined_series_that_are_as_they_were_keep_their_rows() -> None:
    assert joined(BEFORE).slices.equals(BEFORE)
    assert counts(joined(series(t="de", ct="fg", s="abc"))) == {"same": 7}


def test_a_joined_series_that_gains_a_slice_is_appended_as_a_whole() -> None:
    result = joined(series(s="abxc", t="de", ct="fgy"))
    live = {row: path for row, (path, withdrawn) in rows(result).items() if not withdrawn}
    assert live == {3: "d", 4: "e", 5: "f", 6: "g", 8: "a", 9: "b", 10: "x", 11: "c", 12: "y"}
    assert [(c.kind, c.path, c.why) for c in result.changes if c.kind != "withdrawn"] == [
        ("changed", "a", "a slice of its series came, went or changed"),
        ("changed", "b", "a slice of its series came, went or changed"),
        ("added", "x", "it is new"),
        ("changed", "c", "a slice of its series came, went or changed"),
        ("added", "y", "it is new"),
    ]
    assert counts(result) == {"same": 4, "changed": 3, "added": 2, "withdrawn": 3}


def test_a_joined_series_that_loses_a_slice_is_appended_as_a_whole_and_back() -> None:
    lost = joined(series(s="ab", t="de", ct="f"))
    assert counts(lost) == {"same": 3, "changed": 2, "withdrawn": 4}
    content = BYTES | {8: "A", 9: "B"}
    again = joined(series(s="ab", t="de", ct="f"), lost.slices, content=content, boundary=16)
    assert counts(again) == {"same": 5}
    # The rows of before are of these very slices; but who says so, once there were others between?
    back = joined(BEFORE, lost.slices, content=content, boundary=16)
    assert counts(back) == {"same": 4, "changed": 3, "withdrawn": 2}
    assert {row for row, (path, gone) in rows(back).items() if path in "abc" and not gone} == {
        16, 17, 18,
    }  # fmt: skip


def test_a_changed_or_failed_slice_takes_its_joined_series_along() -> None:
    other = joined(BEFORE, bytes_now=NOW | {"b": "other"})
    assert counts(other) == {"same": 4, "changed": 3, "withdrawn": 3}
    tried = joined(BEFORE, failed={3: "vanished"}, opened=set())
    assert counts(tried) == {"same": 5, "changed": 1, "retried": 1, "withdrawn": 2}


def test_a_joined_series_that_moves_as_a_whole_keeps_its_rows_and_a_part_does_not() -> None:
    now = NOW | {"x": "A", "y": "B", "z": "C"}
    moved = joined(series(u="xyz", t="de", ct="fg"), bytes_now=now)
    assert counts(moved) == {"same": 4, "moved": 3}
    parted = joined(series(s="ab", u="z", t="de", ct="fg"), bytes_now=now)
    assert counts(parted) == {"same": 4, "changed": 3, "withdrawn": 3}


def test_slices_that_change_their_joined_series_are_embedded_anew() -> None:
    result = joined(series(s="ab", t="cde", ct="fg"), opened=set())
    assert counts(result) == {"same": 2, "changed": 5, "withdrawn": 5}


def test_a_slice_touched_before_it_was_embedded_may_already_count_in_its_joined_series() -> None:
    half = {row: digest for row, digest in BYTES.items() if row not in (2, 6)}
    result = joined(BEFORE, bytes_now=NOW | {"c": "other", "g": "other"}, content=half)
    assert counts(result) == {"same": 4, "changed": 3, "withdrawn": 3}
